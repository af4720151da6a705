//! Packs the segments of a day that is over into few, harder compressed: a stream's blocks lie together then,
//! and small ones become large ones.
//!
//! A crash anywhere repeats the work: the catalogue takes the new segment and lets the old ones go in one step.
//! Files of those stay while somebody reads them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use anyhow::{Result, ensure};
use scrinium_protocol::identity::StreamId;
use scrinium_segment::fault;
use tracing::{error, info};

use super::container::Access;
use super::segment::{BLOCK_LEN, Block, Packing};
use super::upkeep::Upkeep;
use crate::catalogue::records::{Group, RemovedSegment, SegmentRecord};
use crate::clock::Day;

impl Upkeep {
    /// Compacts some segments of one group whose day ended before `until`; `false` when there are none.
    pub(crate) fn compact_some(&self, until: Day) -> Result<bool> {
        let (segments, _) = self.archive.parts();
        let mut groups: BTreeMap<&Group, Vec<&Arc<SegmentRecord>>> = BTreeMap::new();
        for segment in &segments {
            let is_loose = !segment.compacted && segment.group.day < until;
            let is_open = !self.archive.keys().is_sealed(&segment.group);
            if is_loose && is_open && !self.is_damaged(segment) {
                groups.entry(&segment.group).or_default().push(segment);
            }
        }
        let Some((group, mut loose)) = groups.pop_first() else {
            return Ok(false);
        };
        loose.sort_by_key(|segment| segment.logs);
        let mut total = 0;
        let taken = loose.into_iter().take_while(|segment| {
            let fits = total == 0 || total + segment.len <= SEGMENT_LEN_MAX;
            total += segment.len;
            fits
        });
        self.compact(group, &taken.collect::<Vec<_>>())?;
        Ok(true)
    }

    /// Whether a segment was found damaged, now or before: it is left as it lies, and verify names it.
    fn is_damaged(&self, segment: &SegmentRecord) -> bool {
        let known = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(&segment.number) {
            return true;
        }
        drop(known);
        let is_damaged = self.archive.check_frame(segment).is_err();
        if is_damaged {
            self.note_damaged(segment.number);
        }
        is_damaged
    }

    fn note_damaged(&self, number: u64) {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        damaged.insert(number);
    }

    fn compact(&self, group: &Group, old: &[&Arc<SegmentRecord>]) -> Result<()> {
        let archive = &self.archive;
        let kept = archive.keys().kept(group);
        let mut mark = archive.mark();
        mark.segment += 1;
        let bytes = old.iter().map(|segment| segment.bytes).sum();
        let mut builder = archive.build(group.clone(), mark.segment, packing(bytes))?;
        let mut sources = Vec::new();
        for segment in old {
            sources.push((*segment, archive.index(segment)?));
        }
        let mut readers = BTreeMap::new();
        let mut streams: BTreeMap<StreamId, Vec<(usize, &Block)>> = BTreeMap::new();
        for (source, (_, index)) in sources.iter().enumerate() {
            for block in index.blocks.iter().filter(|block| kept.has(block.stream)) {
                streams
                    .entry(block.stream)
                    .or_default()
                    .push((source, block));
            }
        }
        let mut entries = 0;
        for (stream, mut blocks) in streams {
            blocks.sort_by_key(|(_, block)| block.order);
            for (source, block) in blocks {
                let Some((segment, index)) = sources.get(source) else {
                    continue;
                };
                let Some(introduced) = index.streams.get(&stream) else {
                    continue;
                };
                if !readers.contains_key(&source) {
                    if readers.len() >= READERS_MAX {
                        readers.pop_first();
                    }
                    readers.insert(source, archive.open_segment(segment)?);
                }
                let Some(reader) = readers.get(&source) else {
                    continue;
                };
                let Ok(batches) = archive.read_block(reader, segment, block, &Access::operations())
                else {
                    error!(
                        segment = segment.number,
                        "a damaged segment is left as it lies; run verify"
                    );
                    self.note_damaged(segment.number);
                    return Ok(());
                };
                let (log, first) = block.order;
                for (order, batch) in (first..).zip(batches) {
                    entries += u64::from(batch.header.count);
                    builder.add(introduced, batch, (log, order))?;
                }
            }
        }
        if entries == 0 {
            return self.replace(old, None);
        }
        let new = builder.finish(archive.archive_key(), true)?;
        ensure!(
            new.entries == entries,
            "the compacted segment holds {} entries of {entries}",
            new.entries
        );
        let (before, after): (u64, u64) = (old.iter().map(|segment| segment.len).sum(), new.len);
        info!(
            day = %group.day, class = group.class, tenant = group.tenant,
            segments = old.len(), before, after, "compacted"
        );
        self.replace(old, Some(new))
    }

    /// Puts one segment in the place of others.
    fn replace(&self, old: &[&Arc<SegmentRecord>], new: Option<SegmentRecord>) -> Result<()> {
        let archive = &self.archive;
        let mut mark = archive.mark();
        if let Some(new) = &new {
            mark.segment = new.number;
        }
        // At this point the new segment is durable; if we die now, it is removed and made again.
        fault::point("server: compacted");
        self.catalogue.write(|changes| {
            new.iter().try_for_each(|new| changes.put(new))?;
            for segment in old {
                changes.remove(&***segment)?;
                let number = segment.number;
                changes.put(&RemovedSegment { number })?;
            }
            changes.put(&mark)
        })?;
        // At this point the old ones are no longer the archive's; if we die now, the start moves the new one to
        // its place and removes them.
        fault::point("server: compaction catalogued");
        if let Some(new) = &new {
            archive.settle(new.number)?;
        }
        let numbers: Vec<u64> = old.iter().map(|segment| segment.number).collect();
        archive.swap(new, &numbers, mark);
        self.remove_what_nobody_reads()
    }

    /// Removes the files of segments that were replaced and that no reader holds any more.
    pub(crate) fn remove_what_nobody_reads(&self) -> Result<()> {
        self.remove_files(&self.archive.unread())
    }
}

/// How so many bytes of entries are packed. What is at rest is worth more time, and little of it the more; each
/// step takes about ten seconds of one core at its limit, and what is above takes 40 s per GB.
fn packing(bytes: u64) -> Packing {
    let level = match bytes >> 20 {
        0..16 => 19,
        16..128 => 15,
        _ => 11,
    };
    Packing {
        level,
        block_len: BLOCK_LEN,
    }
}

/// Segments that are open at once while many become one.
const READERS_MAX: usize = 64;
/// Bytes that are compacted into one segment at most, but for a single one that is longer.
const SEGMENT_LEN_MAX: u64 = 512 << 20;
