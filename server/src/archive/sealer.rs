//! Turns a finished log into sealed segments: one for each group, by stream, harder compressed, with filters.
//!
//! A crash anywhere repeats the work: segments lie in a directory of their own until the catalogue knows
//! them, in the same step in which it forgets the log and its key.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use anyhow::{Context as _, Result, ensure};
use scrinium_protocol::identity::StreamId;
use scrinium_segment::{Kind, durable, fault, segment_name};
use tracing::info;

use super::Archive;
use super::block::StoredBatch;
use super::keys::Keyring;
use super::log::{Log, apply};
use super::segment::{BLOCK_LEN, Introduced, Packing, SegmentBuilder};
use super::upkeep::Upkeep;
use crate::catalogue::records::{ArchiveMark, Group, SegmentRecord, StreamRecord};
use crate::policy::Policy;
use crate::time::ServerTime;

/// Seals one log.
pub(super) fn seal(upkeep: &Upkeep, log: &Log) -> Result<()> {
    let Upkeep {
        archive,
        catalogue,
        policy,
        time,
        ..
    } = upkeep;
    let number = log.number();
    let mut sealing = Sealing {
        archive,
        policy,
        time,
        open: BTreeMap::new(),
        mark: archive.mark(),
        streams: BTreeMap::new(),
    };
    let mut entries = 0;
    for (order, shown) in (0..).zip(log.batches()) {
        // Read at its place, root and all: a batch that cannot be read keeps its log.
        let batch = log.read(shown.place)?;
        ensure!(
            batch.entries.root() == batch.header.root,
            "the Merkle root of a batch of log {number:016x} does not match its entries"
        );
        entries += u64::from(batch.header.count);
        sealing.add(batch, (number, order))?;
    }
    // A stream whose first batch lies in a later log was introduced in this one.
    for stream in archive.introduced() {
        sealing.streams.entry(stream.id).or_insert(stream);
    }
    let (segments, streams, mut mark) = sealing.finish()?;
    mark.log = number;
    let sealed: u64 = segments.iter().map(|segment| segment.entries).sum();
    ensure!(
        sealed == entries,
        "the segments of log {number:016x} hold {sealed} entries of {entries}"
    );
    archive.keys().write_copy()?;
    // At this point the segments are durable; if we die now, the log is sealed again.
    fault::point("server: segments durable");
    catalogue.write(|changes| {
        for stream in streams.values() {
            changes.put(stream)?;
        }
        for segment in &segments {
            changes.put(segment)?;
        }
        changes.put(&mark)?;
        Keyring::forget_log(changes, number)
    })?;
    // At this point the segments are the archive's; if we die now, the start moves them to their place and
    // removes the log.
    fault::point("server: segments catalogued");
    for segment in &segments {
        archive.settle(segment.number)?;
        info!(
            log = number,
            segment = segment.number,
            bytes = segment.len,
            "sealed a log"
        );
    }
    archive.replace_log(segments, streams, mark);
    let path = archive.log_dir().join(segment_name(Kind::Log, number));
    if log.damage().is_empty() {
        durable::remove(&path)?;
    } else {
        // Kept for whoever wants to know what happened to it; no longer a log.
        durable::rename(&path, &path.with_extension("log.damaged"))?;
    }
    Ok(())
}

struct Sealing<'a> {
    archive: &'a Archive,
    policy: &'a Policy,
    time: &'a ServerTime,
    open: BTreeMap<Group, SegmentBuilder<'a>>,
    mark: ArchiveMark,
    /// The streams touched, as these segments leave them.
    streams: BTreeMap<StreamId, StreamRecord>,
}

impl Sealing<'_> {
    fn add(&mut self, batch: StoredBatch, order: (u64, u32)) -> Result<()> {
        let id = batch.header.stream;
        let stream = match self.streams.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let stream = self.archive.archived_stream(id);
                new.insert(stream.context("a batch in the log has no stream")?)
            }
        };
        let bytes = batch.entries.bytes().len() as u64;
        apply(stream, &batch.header, bytes, batch.received_us);
        let day = self.time.day_of_receipt(batch.received_us);
        let group = self.policy.group_of(stream, day);
        let introduced = Introduced {
            agent: stream.agent,
            kind: stream.kind,
            name: stream.name.clone(),
        };
        let segment = match self.open.entry(group) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(new) => {
                self.mark.segment += 1;
                let segment = self
                    .archive
                    .build(new.key().clone(), self.mark.segment, PACKING)?;
                new.insert(segment)
            }
        };
        segment.add(&introduced, batch, order)?;
        while self
            .open
            .values()
            .map(SegmentBuilder::open_bytes)
            .sum::<usize>()
            > OPEN_BYTES_MAX
        {
            let segments = self.open.values_mut();
            let Some(largest) = segments.max_by_key(|segment| segment.open_bytes()) else {
                break;
            };
            largest.close_largest()?;
        }
        Ok(())
    }

    fn finish(
        self,
    ) -> Result<(
        Vec<SegmentRecord>,
        BTreeMap<StreamId, StreamRecord>,
        ArchiveMark,
    )> {
        let key = self.archive.archive_key();
        let segments = self.open.into_values();
        let segments = segments.map(|segment| segment.finish(key, false));
        Ok((segments.collect::<Result<_>>()?, self.streams, self.mark))
    }
}

/// Sealing keeps up with what comes; compaction packs harder.
const PACKING: Packing = Packing {
    level: 3,
    block_len: BLOCK_LEN,
};
/// Most that blocks which are not yet full take of memory, bytes.
const OPEN_BYTES_MAX: usize = 96 << 20;
