//! Recomputes everything the archive claims: every record's tag, every Merkle root, every chain
//! head, every signature, every sequence.
//!
//! Reads what the disk holds now, not what memory remembers; the catalogue says what must be there.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use ed25519_dalek::VerifyingKey;
use scrinium_protocol::batch::{BatchHeader, Relation, StreamPosition};
use scrinium_protocol::identity::{AgentId, Epoch, Sequence, StreamId};
use scrinium_segment::{Kind, segment_name, segment_numbers};
use serde::{Deserialize, Serialize};

use super::block::StoredBatch;
use super::container::Access;
use super::keys::Unreadable;
use super::{Archive, EVER, Extent, is_out_of_descriptors};
use crate::agents::Signer;
use crate::catalogue::records::{LossRecord, PrunedRange, SegmentRecord, UnmetReceipt};
use crate::evidence::{Claims, Doubted};
use crate::present;

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
    /// Entries of the second container: that they are as they were sealed was checked, not what they say.
    #[serde(default)]
    pub(crate) sealed: u64,
    /// Entries that were not read again because they were verified before.
    #[serde(default)]
    pub(crate) verified_before: u64,
    /// Entries that were deleted lawfully, each named in a certificate.
    #[serde(default)]
    pub(crate) pruned: u64,
    /// When the bytes were read that were read longest ago, Unix µs; none of a range.
    #[serde(default)]
    pub(crate) read_since_us: Option<u64>,
    /// What is no damage, and worth knowing.
    #[serde(default)]
    pub(crate) notes: Vec<String>,
    pub(crate) findings: Vec<Finding>,
    /// The verification before this one found the same.
    #[serde(skip)]
    pub(crate) is_known: bool,
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

/// What of the archive is verified.
pub(crate) struct Scope {
    /// Segments that were verified before: of them only that they are there, and that the chains go through them.
    pub(crate) verified: BTreeSet<u64>,
    /// Collection times, Unix µs, both ends included.
    pub(crate) times_us: (u64, u64),
}

impl Scope {
    /// Every byte.
    pub(crate) fn all() -> Self {
        Self {
            verified: BTreeSet::new(),
            times_us: EVER,
        }
    }

    fn is_range(&self) -> bool {
        self.times_us != EVER
    }
}

/// Verifies the archive as far as `scope` says. `agents` gives each agent's name and signing key, `claims` what the sealed
/// intervals say of it.
pub(crate) fn verify(
    archive: &Archive,
    agents: &BTreeMap<AgentId, Signer>,
    claims: Claims,
    scope: Scope,
) -> Result<Report> {
    let mut run = Run {
        lacking: None,
        archive,
        agents,
        report: Report::default(),
        positions: BTreeMap::new(),
        damaged: BTreeMap::new(),
        broken: BTreeSet::new(),
        claims,
        pruned: archive.pruned(),
        met: BTreeSet::new(),
        scope,
    };
    run.report.pruned = run
        .pruned
        .values()
        .flatten()
        .map(|range| range.sequences.1 - range.sequences.0)
        .sum();
    run.structure();
    for extent in archive.extents(|_| true, run.scope.times_us).list {
        run.extent(&extent);
    }
    if !run.scope.is_range() {
        run.ends();
    }
    run.known();
    if !run.scope.is_range() {
        run.intervals();
    }
    if let Some(error) = run.lacking {
        return Err(error.context("not everything could be read: the server has no file descriptor left. Nothing was found damaged by that; verify again, or raise the server's LimitNOFILE"));
    }
    let mut report = run.report;
    report.streams = run.positions.len() as u64;
    report.whole = report.findings.is_empty();
    Ok(report)
}

struct Run<'a> {
    archive: &'a Archive,
    /// Something was not read, for want of file descriptors: there is no verdict.
    lacking: Option<anyhow::Error>,
    agents: &'a BTreeMap<AgentId, Signer>,
    report: Report,
    positions: BTreeMap<StreamId, StreamPosition>,
    /// Streams whose chain was broken by damage already reported.
    damaged: BTreeMap<StreamId, ()>,
    /// Streams of which something was reported already.
    broken: BTreeSet<StreamId>,
    claims: Claims,
    /// What was deleted lawfully.
    pruned: BTreeMap<StreamId, Vec<PrunedRange>>,
    /// Streams whose unmet receipt was met since.
    met: BTreeSet<(StreamId, Epoch)>,
    scope: Scope,
}

impl Run<'_> {
    /// Headers, lengths, filters and index of every segment.
    fn structure(&mut self) {
        let (segments, logs) = self.archive.parts();
        self.report.logs = logs.len() as u64;
        for log in &logs {
            for problem in log.damage() {
                self.find_file(segment_name(Kind::Log, log.number()), problem.clone());
            }
        }
        for name in self.archive.set_aside() {
            self.find_file(name, "no key of the catalogue opens it".into());
        }
        let known: BTreeSet<u64> = segments.iter().map(|segment| segment.number).collect();
        let present = segment_numbers(&self.archive.archive_dir(), Kind::Archive);
        for number in present.unwrap_or_default() {
            // One that was sealed or replaced while we read is no stranger.
            if !known.contains(&number) && self.archive.is_strange(number) {
                let name = segment_name(Kind::Archive, number);
                self.find_file(name, "the catalogue does not know this segment".into());
            }
        }
        for segment in segments {
            self.report.segments += 1;
            if let Err(error) = self.archive.check_frame(&segment)
                && !self.archive.is_replaced(segment.number)
            {
                if is_out_of_descriptors(&error) {
                    self.lacking = Some(error);
                    return;
                }
                self.find_segment(&segment, &format!("{error:#}"));
            }
        }
    }

    /// Something about a segment: named for each stream in it, as far as its index can still be read.
    fn find_segment(&mut self, segment: &SegmentRecord, problem: &str) {
        let name = segment_name(Kind::Archive, segment.number);
        let Ok(index) = self.archive.index(segment) else {
            return self.find_file(name, problem.to_owned());
        };
        let mut ranges = BTreeMap::new();
        for block in &index.blocks {
            let range = ranges.entry(block.stream).or_insert(block.sequences);
            range.1 = block.sequences.1;
        }
        for (stream, sequences) in ranges {
            self.find(name.clone(), stream, sequences, problem.to_owned());
        }
    }

    /// Something about a file; which streams it concerns, their chains tell.
    fn find_file(&mut self, segment: String, problem: String) {
        self.report.findings.push(Finding {
            segment,
            agent: "?".to_owned(),
            stream: "?".to_owned(),
            sequences: (0, 0),
            problem,
        });
    }

    fn extent(&mut self, extent: &Extent) {
        let known = extent.block().map(|(segment, _)| segment.number);
        let is_awaited = self.claims.unmet.iter().any(|receipt| {
            let (first, next) = extent.sequences;
            receipt.stream == extent.stream && (first..=next).contains(&receipt.sequences.1)
        });
        if !is_awaited && known.is_some_and(|number| self.scope.verified.contains(&number)) {
            self.report.verified_before += extent.entries();
            return self.unread(extent);
        }
        let batches = match self.archive.read(extent, &Access::operations()) {
            Ok(batches) => batches,
            Err(error) => match error.downcast_ref() {
                None if is_out_of_descriptors(&error) => {
                    self.lacking = Some(error);
                    return;
                }
                // Deleted since the list was made.
                Some(Unreadable::Forgotten) => return,
                Some(Unreadable::Sealed) => {
                    self.report.sealed += extent.entries();
                    if let Err(error) = self.archive.check_sealed(extent) {
                        if is_out_of_descriptors(&error) {
                            self.lacking = Some(error);
                            return;
                        }
                        self.find(
                            extent.place_name(),
                            extent.stream,
                            extent.sequences,
                            format!("{error:#}"),
                        );
                    }
                    return self.unread(extent);
                }
                None => {
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
            },
        };
        if let Err(error) = self.archive.check_filter(extent) {
            if is_out_of_descriptors(&error) {
                self.lacking = Some(error);
                return;
            }
            self.find(
                extent.place_name(),
                extent.stream,
                extent.sequences,
                format!("{error:#}"),
            );
        }
        let is_signed = batches.last().is_some_and(|last| last.header.is_signed());
        for batch in batches {
            self.batch(extent, &batch);
        }
        if !is_signed {
            self.find(
                extent.place_name(),
                extent.stream,
                extent.sequences,
                "its last batch is not signed".into(),
            );
        }
    }

    /// A block that is not opened: its chain is checked at both ends.
    fn unread(&mut self, extent: &Extent) {
        let Some((_, block)) = extent.block() else {
            return;
        };
        let (epoch, head) = (block.epoch, block.head);
        let (first, next) = block.sequences;
        let stood = self.positions.get(&extent.stream);
        let stood = stood.filter(|position| position.epoch == epoch);
        let pruned = self.pruned.get(&extent.stream).into_iter().flatten();
        let is_after_pruned = pruned
            .filter(|range| range.epoch == epoch)
            .any(|range| range.sequences.1 == first);
        let follows = stood.map_or(first == 0, |position| position.next.0 == first)
            || self.begins_here(extent.stream, first);
        if !follows && !is_after_pruned && self.damaged.remove(&extent.stream).is_none() {
            self.find(
                extent.place_name(),
                extent.stream,
                extent.sequences,
                "the entries before it are missing".into(),
            );
        }
        // What was sealed at an end of an interval inside it cannot be compared; what it ends with can.
        let inside = (extent.stream, epoch, first + 1)..(extent.stream, epoch, next);
        let inside: Vec<_> = self.claims.heads.range(inside).map(|(at, _)| *at).collect();
        for at in inside {
            self.claims.heads.remove(&at);
        }
        if let Some((claimed, interval)) = self.claims.heads.remove(&(extent.stream, epoch, next))
            && claimed != head
        {
            self.find(
                extent.place_name(),
                extent.stream,
                extent.sequences,
                format!("interval {interval} was sealed over another history"),
            );
        }
        let position = StreamPosition {
            epoch,
            next: Sequence(next),
            head,
            bookmark: Vec::new(),
        };
        self.positions.insert(extent.stream, position);
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
        let signer = self.agents.get(&batch.agent);
        let mut keys = signer.iter().flat_map(|signer| &signer.keys);
        let signed = keys.any(|key| {
            let key = VerifyingKey::from_bytes(key);
            key.is_ok_and(|key| header.verify_signature(&key).is_ok())
        });
        // One without is vouched for by the next that has one: a block does not end before it.
        if header.is_signed() && !signed {
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
            _ if self.begins_here(stream, header.first.0) => true,
            _ => header.relation_to(&start) == Relation::Follows,
        };
        if !follows && !self.was_pruned_before(header) {
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
        let met = self.claims.unmet.iter().filter(|receipt| {
            (
                receipt.stream,
                receipt.epoch,
                receipt.sequences.1,
                receipt.head,
            ) == (stream, after.epoch, after.next.0, after.head)
        });
        self.met
            .extend(met.map(|receipt| (receipt.stream, receipt.epoch)));
        self.positions.insert(stream, after);
    }

    /// What was noticed when the volume was opened stays a finding.
    fn find_loss(&mut self, loss: LossRecord) {
        let noticed = present::rfc3339(loss.time_us);
        let problem = format!("{} (noticed {noticed})", loss.problem);
        let Some(entries) = loss.entries else {
            return self.find_file(loss.file, problem);
        };
        let agent = self.agents.get(&entries.agent);
        self.report.findings.push(Finding {
            segment: loss.file,
            agent: agent.map_or_else(|| entries.agent.to_string(), |signer| signer.name.clone()),
            stream: entries.name.unwrap_or_else(|| entries.stream.to_string()),
            sequences: entries.sequences,
            problem,
        });
    }

    /// What an agent holds a receipt for is missing, unless the very same batches came again. What else came since then
    /// excuses nothing.
    fn find_unmet(&mut self, receipt: UnmetReceipt) {
        let (first, last) = (receipt.sequences.0, receipt.sequences.1.saturating_sub(1));
        let said = format!(
            "stream {}: entries {first} to {last} were missing when their agent showed its receipt",
            receipt.name
        );
        if self.met.contains(&(receipt.stream, receipt.epoch)) {
            self.report
                .notes
                .push(format!("{said}, and came again as the receipt says"));
            return;
        }
        if self.scope.is_range() {
            self.report.notes.push(format!(
                "{said}; a verification of everything tells whether they came again"
            ));
            return;
        }
        let agent = self.agents.get(&receipt.agent);
        self.report.findings.push(Finding {
            segment: "log".to_owned(),
            agent: agent.map_or_else(|| receipt.agent.to_string(), |signer| signer.name.clone()),
            stream: receipt.name,
            sequences: receipt.sequences,
            problem: "the agent holds a receipt for entries that were missing when it showed it, and that did not come again as they were"
                .to_owned(),
        });
    }

    /// Whether nothing is known of what came before, because only a range is verified.
    fn begins_here(&self, stream: StreamId, first: u64) -> bool {
        let stood = self.positions.get(&stream);
        self.scope.is_range() && stood.is_none_or(|position| position.next.0 < first)
    }

    /// Whether what is missing before a batch was deleted, and said so.
    fn was_pruned_before(&self, header: &BatchHeader) -> bool {
        let from = match self.positions.get(&header.stream) {
            Some(position) if position.epoch == header.epoch => position.next.0,
            _ => 0,
        };
        let pruned = self.pruned.get(&header.stream).into_iter().flatten();
        let mut before = pruned.filter(|range| {
            range.epoch == header.epoch
                && range.sequences == (from, header.first.0)
                && range.head == header.previous
        });
        before.next().is_some()
    }

    /// What is known to be wrong, whatever is read.
    fn known(&mut self) {
        self.report.intervals = self.claims.intervals;
        self.report.notes.append(&mut self.claims.notes);
        let doubted = self.claims.doubted.iter();
        self.report.notes.extend(doubted.map(Doubted::sentence));
        for (file, problem) in core::mem::take(&mut self.claims.problems) {
            self.find_file(file, problem);
        }
        for loss in core::mem::take(&mut self.claims.losses) {
            self.find_loss(loss);
        }
        for receipt in core::mem::take(&mut self.claims.unmet) {
            self.find_unmet(receipt);
        }
    }

    /// Everything that was sealed is here, as it was.
    fn intervals(&mut self) {
        let mut missing: BTreeMap<StreamId, (u64, u64)> = BTreeMap::new();
        for ((stream, epoch, next), (head, interval)) in core::mem::take(&mut self.claims.heads) {
            let pruned = self.pruned.get(&stream).into_iter().flatten();
            let mut covering = pruned
                .filter(|range| range.epoch == epoch)
                .filter(|range| range.sequences.0 <= next && next <= range.sequences.1);
            let is_pruned = covering.any(|range| next < range.sequences.1 || range.head == head);
            if !is_pruned && !self.broken.contains(&stream) {
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
                .filter(|position| position.epoch == stream.position.epoch)
                .map_or(0, |position| position.next.0);
            // Batches that came while we read are not missing.
            let pruned = self.pruned.get(&id).into_iter().flatten();
            let mut at_the_end = pruned.filter(|range| {
                range.epoch == stream.position.epoch && range.head == stream.position.head
            });
            let is_pruned = at_the_end.any(|range| {
                reached == range.sequences.0 && range.sequences.1 == stream.position.next.0
            });
            if reached < stream.position.next.0 && !is_pruned && !self.grew_since(id, reached) {
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
        let extents = self.archive.extents(|other| other == stream, EVER);
        extents
            .list
            .iter()
            .any(|extent| extent.sequences.0 <= reached && reached < extent.sequences.1)
    }

    fn find(&mut self, segment: String, stream: StreamId, sequences: (u64, u64), problem: String) {
        self.broken.insert(stream);
        let record = self.archive.stream(stream);
        let agent = record
            .as_ref()
            .and_then(|record| self.agents.get(&record.agent));
        self.report.findings.push(Finding {
            segment,
            agent: agent.map_or_else(|| "?".to_owned(), |signer| signer.name.clone()),
            stream: record.map_or_else(|| stream.to_string(), |record| record.name.to_string()),
            sequences,
            problem,
        });
    }
}

impl Report {
    /// The report as sentences.
    pub(crate) fn to_lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} streams, {} batches, {} entries, {} bytes, in {} segments and {} logs; {} gap entries; {} sealed intervals; {} entries deleted lawfully; {} entries in the second container",
            self.streams,
            self.batches,
            self.entries,
            self.bytes,
            self.segments,
            self.logs,
            self.gaps,
            self.intervals,
            self.pruned,
            self.sealed
        )];
        if self.verified_before > 0 {
            lines.push(format!(
                "{} entries more were verified before and were not read again",
                self.verified_before
            ));
        }
        if let Some(since_us) = self.read_since_us {
            lines.push(format!(
                "every byte was read again since {}",
                present::rfc3339(since_us)
            ));
        }
        for note in &self.notes {
            lines.push(format!("note: {note}"));
        }
        for finding in &self.findings {
            lines.push(format!(
                "DAMAGED {} agent {} stream {} sequence {} to {}: {}",
                finding.segment,
                finding.agent,
                finding.stream,
                finding.sequences.0,
                finding.sequences.1.saturating_sub(1),
                finding.problem
            ));
        }
        let end = if self.whole {
            "the archive is whole"
        } else {
            "the archive is NOT whole"
        };
        lines.push(end.to_owned());
        lines
    }
}
