//! Recomputes everything the archive claims: every record's tag, every Merkle root, every chain
//! head, every signature, every sequence.
//!
//! Reads what the disk holds now, not what memory remembers; the catalogue says what must be there.

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::VerifyingKey;
use scrinium_protocol::batch::{Relation, StreamPosition};
use scrinium_protocol::identity::{AgentId, StreamId};
use scrinium_segment::{Kind, segment_name};
use serde::{Deserialize, Serialize};

use super::block::StoredBatch;
use super::{Archive, Extent, place_of};
use crate::evidence::Claims;

/// The outcome of a verification.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Report {
    pub(crate) whole: bool,
    pub(crate) segments: u64,
    pub(crate) logs: u64,
    pub(crate) streams: u64,
    pub(crate) batches: u64,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    /// Gap entries: what the collectors themselves said is missing.
    pub(crate) gaps: u64,
    /// Sealed intervals, with whose heads the archive was compared.
    #[serde(default)]
    pub(crate) intervals: u64,
    pub(crate) findings: Vec<Finding>,
}

/// Something that is not as it was sealed.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Finding {
    /// File name of the segment or log.
    pub(crate) segment: String,
    pub(crate) agent: String,
    pub(crate) stream: String,
    /// First sequence concerned, and the one after the last.
    pub(crate) sequences: (u64, u64),
    pub(crate) problem: String,
}

/// Verifies the whole archive. `agents` gives each agent's name and signing key, `claims` what the sealed
/// intervals say of it.
pub(crate) fn verify(
    archive: &Archive,
    agents: &BTreeMap<AgentId, (String, [u8; 32])>,
    claims: Claims,
) -> Report {
    let mut run = Run {
        archive,
        agents,
        report: Report::default(),
        positions: BTreeMap::new(),
        damaged: BTreeMap::new(),
        broken: BTreeSet::new(),
        claims,
    };
    run.structure();
    for extent in archive.extents() {
        run.extent(&extent);
    }
    run.ends();
    run.intervals();
    let mut report = run.report;
    report.streams = run.positions.len() as u64;
    report.whole = report.findings.is_empty();
    report
}

struct Run<'a> {
    archive: &'a Archive,
    agents: &'a BTreeMap<AgentId, (String, [u8; 32])>,
    report: Report,
    positions: BTreeMap<StreamId, StreamPosition>,
    /// Streams whose chain was broken by damage already reported.
    damaged: BTreeMap<StreamId, ()>,
    /// Streams of which something was reported already.
    broken: BTreeSet<StreamId>,
    claims: Claims,
}

impl Run<'_> {
    /// Headers, lengths, filters and index of every segment.
    fn structure(&mut self) {
        let (segments, logs) = self.archive.parts();
        self.report.logs = logs.len() as u64;
        for log in &logs {
            for problem in log.damage() {
                self.report.findings.push(Finding {
                    segment: segment_name(Kind::Log, log.number()),
                    agent: "?".to_owned(),
                    stream: "?".to_owned(),
                    sequences: (0, 0),
                    problem: problem.clone(),
                });
            }
        }
        for segment in segments {
            self.report.segments += 1;
            let problem = match self.archive.open_segment(&segment) {
                Err(error) => Some(format!("{error:#}")),
                Ok(reader) if reader.len() != segment.len => Some(format!(
                    "has {} bytes; {} were sealed",
                    reader.len(),
                    segment.len
                )),
                Ok(reader) => {
                    // Filters, index and end lie behind the blocks; walk them in order.
                    let mut cursor = reader.start();
                    cursor.offset = segment.filters.0;
                    cursor.index = segment.filters.2;
                    let mut records = 0;
                    loop {
                        match reader.next(&mut cursor) {
                            Ok(scrinium_segment::reader::Next::Record(_)) => records += 1,
                            Ok(scrinium_segment::reader::Next::End) if records == 2 => break None,
                            Ok(_) => break Some("its index or end is damaged".to_owned()),
                            Err(error) => break Some(error.to_string()),
                        }
                    }
                }
            };
            let Some(problem) = problem else { continue };
            let mut seen = BTreeMap::new();
            for block in &segment.blocks {
                let range = seen.entry(block.stream).or_insert(block.sequences);
                range.1 = block.sequences.1;
            }
            for (stream, sequences) in seen {
                self.find(
                    segment_name(Kind::Archive, segment.number),
                    stream,
                    sequences,
                    problem.clone(),
                );
            }
        }
    }

    fn extent(&mut self, extent: &Extent) {
        let batches = match self.archive.read(extent) {
            Ok(batches) => batches,
            Err(error) => {
                self.find(
                    extent.place_name(),
                    extent.stream,
                    extent.sequences,
                    format!("{error:#}"),
                );
                self.damaged.insert(extent.stream, ());
                self.positions.remove(&extent.stream);
                return;
            }
        };
        for batch in batches {
            self.batch(extent, &batch);
        }
    }

    fn batch(&mut self, extent: &Extent, batch: &StoredBatch) {
        let header = &batch.header;
        let stream = header.stream;
        let sequences = (header.first.0, header.next().0);
        self.report.batches += 1;
        self.report.entries += u64::from(header.count);
        self.report.bytes += batch.entries.bytes().len() as u64;
        self.report.gaps += batch
            .entries
            .iter()
            .filter(|(meta, _)| meta.flags.is_gap())
            .count() as u64;

        if batch.entries.root() != header.root {
            self.find(
                extent.place_name(),
                stream,
                sequences,
                "the Merkle root does not match the entries".into(),
            );
        }
        let key = self
            .agents
            .get(&batch.agent)
            .map(|(_, key)| VerifyingKey::from_bytes(key));
        let signed = matches!(&key, Some(Ok(key)) if header.verify_signature(key).is_ok());
        if !signed {
            self.find(
                extent.place_name(),
                stream,
                sequences,
                "the signature is not the agent's".into(),
            );
        }
        let start = StreamPosition::start(batch.agent, stream, header.epoch);
        let follows = match self.positions.get(&stream) {
            Some(position) if position.epoch == header.epoch => {
                header.relation_to(position) == Relation::Follows
            }
            // After damage the chain goes on from what can still be read.
            None if self.damaged.remove(&stream).is_some() => true,
            _ => header.relation_to(&start) == Relation::Follows,
        };
        if !follows {
            self.find(
                extent.place_name(),
                stream,
                sequences,
                "the chain does not follow the batch before".into(),
            );
        }
        let after = header.position_after();
        let at = (stream, after.epoch, after.next.0);
        if let Some((head, interval)) = self.claims.heads.remove(&at)
            && head != after.head
        {
            self.find(
                extent.place_name(),
                stream,
                sequences,
                format!("interval {interval} was sealed over another history"),
            );
        }
        self.positions.insert(stream, after);
    }

    /// Everything that was sealed is here, as it was.
    fn intervals(&mut self) {
        self.report.intervals = self.claims.intervals;
        for problem in core::mem::take(&mut self.claims.problems) {
            self.report.findings.push(Finding {
                segment: "evidence".into(),
                agent: "?".into(),
                stream: "?".into(),
                sequences: (0, 0),
                problem,
            });
        }
        let mut missing: BTreeMap<StreamId, (u64, u64)> = BTreeMap::new();
        for ((stream, _, next), (_, interval)) in core::mem::take(&mut self.claims.heads) {
            if !self.broken.contains(&stream) {
                let last = missing.entry(stream).or_default();
                *last = (*last).max((next, interval));
            }
        }
        for (stream, (next, interval)) in missing {
            let reached = self
                .positions
                .get(&stream)
                .map_or(0, |position| position.next.0);
            self.find(
                "evidence".into(),
                stream,
                (reached.min(next), next),
                format!("interval {interval} was sealed over entries that are not here"),
            );
        }
    }

    /// Nothing may be missing at the end of a stream either.
    fn ends(&mut self) {
        for (id, stream) in self.archive.streams() {
            if stream.entries == 0 || self.damaged.contains_key(&id) {
                continue;
            }
            let reached = self
                .positions
                .get(&id)
                .map_or(0, |position| position.next.0);
            // Batches that came while we read are not missing.
            if reached < stream.position.next.0 && !self.grew_since(id, reached) {
                let sequences = (reached, stream.position.next.0);
                self.find(
                    "archive".into(),
                    id,
                    sequences,
                    "entries at the end of the stream are missing".into(),
                );
            }
        }
    }

    fn grew_since(&self, stream: StreamId, reached: u64) -> bool {
        let extents = self.archive.extents();
        extents
            .iter()
            .any(|extent| extent.stream == stream && extent.sequences.0 == reached)
    }

    fn find(&mut self, segment: String, stream: StreamId, sequences: (u64, u64), problem: String) {
        self.broken.insert(stream);
        let record = self.archive.stream(stream);
        let agent = record
            .as_ref()
            .and_then(|record| self.agents.get(&record.agent));
        self.report.findings.push(Finding {
            segment,
            agent: agent.map_or_else(|| "?".to_owned(), |(name, _)| name.clone()),
            stream: record.map_or_else(|| stream.to_string(), |record| record.name),
            sequences,
            problem,
        });
    }
}

impl Report {
    /// The report as sentences.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!(
            "{} streams, {} batches, {} entries, {} bytes, in {} segments and {} logs; {} gap entries; {} sealed intervals\n",
            self.streams,
            self.batches,
            self.entries,
            self.bytes,
            self.segments,
            self.logs,
            self.gaps,
            self.intervals
        );
        for finding in &self.findings {
            text.push_str(&format!(
                "DAMAGED {} agent {} stream {} sequence {} to {}: {}\n",
                finding.segment,
                finding.agent,
                finding.stream,
                finding.sequences.0,
                finding.sequences.1.saturating_sub(1),
                finding.problem
            ));
        }
        text.push_str(if self.whole {
            "the archive is whole\n"
        } else {
            "the archive is NOT whole\n"
        });
        text
    }
}

/// Reads the filters of a segment, one per block; `None` when they are damaged.
pub(crate) fn filters(
    archive: &Archive,
    segment: &crate::catalogue::records::SegmentRecord,
) -> Option<Vec<Vec<u8>>> {
    let reader = archive.open_segment(segment).ok()?;
    let payload = reader.read(place_of(segment.filters)).ok()?.payload;
    let mut rest = payload.as_slice();
    let mut filters = Vec::with_capacity(segment.blocks.len());
    while let Some((len, after)) = rest.split_first_chunk::<4>() {
        let (filter, after) = after.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        filters.push(filter.to_vec());
        rest = after;
    }
    (filters.len() == segment.blocks.len()).then_some(filters)
}
