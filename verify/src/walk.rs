//! Walks the batches and the log side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use anyhow::{Context as _, Result, bail, ensure};
use ed25519_dalek::VerifyingKey;
use scrinium_protocol::batch::{Relation, StreamPosition};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::excerpt::{EXCERPT_LEN_MAX, Excerpt, ends_line};
use scrinium_protocol::identity::{AgentId, Epoch, Head, Sequence, StreamId};
use scrinium_protocol::shown;

use crate::evidence::{Evidence, Sealed};
use crate::manifest::{Manifest, StreamPart};

/// What was seen of one stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) batches: u64,
    pub(crate) lines: u64,
    pub(crate) entries: u64,
    pub(crate) gaps: u64,
    pub(crate) bytes: u64,
    /// Entries and gaps that were sealed, and the last place that was.
    pub(crate) sealed: u64,
    pub(crate) last_sealed: Option<Sealed>,
    /// Sequences behind the last place that was sealed, run by run: the first, and the one after the last.
    pub(crate) unsealed: Vec<(u64, u64)>,
    /// Those of them that somebody else saw, the last time of it, and whether all those authorities are trusted.
    pub(crate) stamped: u64,
    pub(crate) last_stamped: Option<(u64, bool)>,
    /// Entries that certificates say were deleted, and their numbers.
    pub(crate) deleted: u64,
    pub(crate) certificates: BTreeSet<u64>,
    /// Entries before the first that are neither shown nor certified.
    pub(crate) before: u64,
}

/// What was seen of one run of it, entries and gaps.
#[derive(Default)]
struct RunSeen {
    /// How many there were before it.
    begun: u64,
    sealed: u64,
    /// The sequence after the last that was sealed.
    sealed_until: u64,
    stamped: u64,
    /// The last batch has no signature: one behind it must have.
    is_unsigned: bool,
}

/// What is known of a stream that is being walked.
struct Stream<'a> {
    part: &'a StreamPart,
    agent: AgentId,
    id: StreamId,
    /// Of its agent, the one in use first.
    keys: Vec<VerifyingKey>,
}

struct Walk<'a> {
    is_whole_stream: bool,
    evidence: &'a Evidence,
    log: &'a mut dyn Read,
    batches: &'a mut dyn Read,
    /// Places that must be passed.
    unpassed: BTreeSet<(StreamId, Epoch, u64)>,
    count: u64,
    bytes: u64,
    buffer: Vec<u8>,
}

/// Walks everything.
///
/// # Errors
/// The first thing that is wrong; or it cannot be read.
pub(crate) fn walk(
    manifest: &Manifest,
    evidence: &Evidence,
    log: &mut dyn Read,
    batches: &mut dyn Read,
) -> Result<Vec<Seen>> {
    let mut walk = Walk {
        is_whole_stream: manifest.is_whole_stream,
        evidence,
        log,
        batches,
        unpassed: evidence.sealed.keys().copied().collect(),
        count: 0,
        bytes: 0,
        buffer: Vec::new(),
    };
    ensure!(
        manifest.streams.len() <= 1 || !manifest.is_whole_stream,
        "manifest.json: all of one stream is said to be several"
    );
    let mut streams = BTreeSet::new();
    let mut all = Vec::new();
    for part in &manifest.streams {
        let (agent, id) = part.ids()?;
        ensure!(
            streams.insert(id),
            "manifest.json: {} is shown twice",
            shown::name(&part.stream)
        );
        let keys = part.keys()?;
        let keys = keys.iter().map(VerifyingKey::from_bytes);
        let keys: Result<Vec<_>, _> = keys.collect();
        let stream = Stream {
            part,
            agent,
            id,
            keys: keys.context("manifest.json: agent_key")?,
        };
        all.push(walk.stream(&stream)?);
    }
    ensure!(
        next_excerpt(walk.batches)?.is_none(),
        "batches.bin goes on after the last batch of the manifest"
    );
    ensure!(
        walk.log.read(&mut [0])? == 0,
        "log.txt goes on after the last signed entry"
    );
    if let Some(place) = walk.unpassed.first() {
        let sealed = evidence.sealed.get(place);
        bail!(
            "interval {} was sealed over entries that are not in the package",
            sealed.map_or(0, |sealed| sealed.interval)
        );
    }
    Ok(all)
}

impl Walk<'_> {
    fn stream(&mut self, stream: &Stream<'_>) -> Result<Seen> {
        let mut seen = Seen::default();
        // What was shown of each epoch: nothing is shown twice.
        let mut shown: BTreeMap<Epoch, u64> = BTreeMap::new();
        for run in &stream.part.runs {
            let epoch: Epoch = run.epoch.parse().context("manifest.json: epoch")?;
            let mut position = StreamPosition {
                epoch,
                next: Sequence(run.first),
                head: run.after.parse().context("manifest.json: after")?,
                bookmark: Vec::new(),
            };
            let before = shown.insert(epoch, run.next);
            ensure!(
                before.is_none_or(|until| until <= run.first && !self.is_whole_stream),
                "manifest.json: entries are shown twice, or not in their order"
            );
            if self.is_whole_stream {
                self.begin(stream, &position, &mut seen);
            }
            let end: Head = run.head.parse().context("manifest.json: head")?;
            let mut own = RunSeen {
                begun: seen.entries + seen.gaps,
                sealed_until: run.first,
                ..RunSeen::default()
            };
            while (position.next.0, position.head) != (run.next, end) {
                let encoded = next_excerpt(self.batches)?.context(
                    "the last chain head is not the manifest's: batches are missing at the end",
                )?;
                self.count += 1;
                seen.batches += 1;
                self.batch(stream, &encoded, &mut position, &mut own, &mut seen)?;
            }
            ensure!(!own.is_unsigned, self.unsigned());
            seen.sealed += own.sealed;
            seen.stamped += own.stamped;
            if own.sealed_until < position.next.0 {
                seen.unsealed.push((own.sealed_until, position.next.0));
            }
        }
        Ok(seen)
    }

    fn unsigned(&self) -> String {
        format!(
            "batch {} is not signed by its agent, nor is one behind it",
            self.count
        )
    }

    /// What is before the first entry of an epoch of a whole stream.
    fn begin(&self, stream: &Stream<'_>, position: &StreamPosition, seen: &mut Seen) {
        let first = position.next.0;
        let start = StreamPosition::start(stream.agent, stream.id, position.epoch);
        if first == 0 && position.head == start.head {
            return;
        }
        let gone = (0, first);
        match self
            .evidence
            .lawfully_gone(stream.id, position.epoch, gone, position.head)
        {
            Some(certificates) => {
                seen.deleted = seen.deleted.saturating_add(first);
                seen.certificates.extend(certificates);
            }
            None => seen.before = seen.before.saturating_add(first.max(1)),
        }
    }

    fn batch(
        &mut self,
        stream: &Stream<'_>,
        encoded: &[u8],
        position: &mut StreamPosition,
        run: &mut RunSeen,
        seen: &mut Seen,
    ) -> Result<()> {
        let count = self.count;
        let excerpt = Excerpt::decode(encoded, "batch");
        let excerpt = excerpt.with_context(|| format!("batch {count}"))?;
        let header = &excerpt.header;
        ensure!(
            header.stream == stream.id,
            "batch {count} belongs to another stream"
        );
        if header.relation_to(position) != Relation::Follows {
            let gone = (position.next.0, header.first.0);
            let gone_lawfully = || {
                let same = header.epoch == position.epoch && gone.0 < gone.1;
                let evidence = same.then_some(self.evidence)?;
                evidence.lawfully_gone(stream.id, header.epoch, gone, header.previous)
            };
            ensure!(!run.is_unsigned, self.unsigned());
            let certificates = gone_lawfully().with_context(|| {
                format!(
                    "batch {count} does not follow the one before: something is missing, doubled or moved"
                )
            })?;
            seen.deleted = seen.deleted.saturating_add(gone.1 - gone.0);
            seen.certificates.extend(certificates);
        }
        let signer = stream
            .keys
            .iter()
            .find(|key| header.verify_signature(key).is_ok());
        let signer = signer
            .or_else(|| stream.keys.first())
            .context("an agent has a key")?;
        let entries = excerpt.open(signer);
        let entries = entries.with_context(|| format!("batch {count}"))?;
        run.is_unsigned = !header.is_signed();
        let mut shown = 0;
        let mut in_line = false;
        entries.for_each(|index, meta, entry| {
            shown += 1;
            if meta.flags.is_gap() {
                seen.gaps += 1;
                return Ok(());
            }
            let lf = !self.is_whole_stream && !ends_line(meta, entry);
            self.buffer.resize(entry.len() + usize::from(lf), 0);
            let differs = || {
                format!(
                    "log.txt differs from what was signed, at byte {} (near sequence {})",
                    self.bytes,
                    header.first.0.saturating_add(u64::from(index))
                )
            };
            let read = self.log.read_exact(&mut self.buffer);
            read.with_context(differs)?;
            let (text, end) = self.buffer.split_at(entry.len());
            ensure!(text == entry && (!lf || end == b"\n"), differs());
            self.bytes += self.buffer.len() as u64;
            seen.entries += 1;
            seen.bytes += entry.len() as u64;
            in_line = meta.flags.is_fragment();
            seen.lines += u64::from(!in_line);
            anyhow::Ok(())
        })?;
        seen.lines += u64::from(in_line); // it goes on in the next batch
        ensure!(
            !self.is_whole_stream || shown == header.count,
            "batch {count} does not show all its entries"
        );
        *position = header.position_after();
        let place = (stream.id, position.epoch, position.next.0);
        if let Some(sealed) = self.evidence.sealed.get(&place) {
            ensure!(
                sealed.head == position.head,
                "batch {count} ends another history than the one the server sealed"
            );
            self.unpassed.remove(&place);
            run.sealed = seen.entries + seen.gaps - run.begun;
            run.sealed_until = position.next.0;
            seen.last_sealed = Some(sealed.clone());
            if let Some((time_s, is_trusted)) = sealed.stamped {
                run.stamped = run.sealed;
                let all_trusted = seen.last_stamped.is_none_or(|(_, trusted)| trusted);
                seen.last_stamped = Some((time_s, is_trusted && all_trusted));
            }
        }
        Ok(())
    }
}

/// The next record of `batches.bin`.
fn next_excerpt(batches: &mut dyn Read) -> Result<Option<Vec<u8>>> {
    let mut len = [0; 4];
    match batches.read(&mut len)? {
        0 => return Ok(None),
        n => batches
            .read_exact(len.get_mut(n..).unwrap_or_default())
            .context("batches.bin is cut")?,
    }
    let len = u32::from_be_bytes(len) as usize;
    if len > EXCERPT_LEN_MAX {
        bail!("batches.bin: a batch of {len} bytes");
    }
    let mut encoded = Vec::new();
    batches.take(len as u64).read_to_end(&mut encoded)?;
    if encoded.len() < len {
        bail!("batches.bin is cut");
    }
    Ok(Some(encoded))
}
