//! What the catalogue says of the archive, made again from the segments themselves.
//!
//! Segments know their group, their streams and where each block lies; the keys come from the copy beside the
//! catalogue. Where a stream stands is read from its last block.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use scrinium_protocol::batch::StreamPosition;
use scrinium_protocol::identity::{Epoch, Sequence, StreamId};
use scrinium_segment::{Kind, segment_name, segment_numbers};

use super::Archive;
use super::container::Access;
use super::segment::{Block, Index, find_index};
use crate::catalogue::Catalogue;
use crate::catalogue::records::{ArchiveMark, RemovedSegment, SegmentRecord, StreamRecord};

/// What was found.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct Rebuilt {
    pub(crate) segments: u64,
    pub(crate) streams: u64,
    pub(crate) entries: u64,
    /// Segments that were compacted or deleted, and whose files were still there.
    pub(crate) replaced: u64,
    /// What could not be taken in.
    pub(crate) findings: Vec<String>,
}

/// Writes rows for every segment in the archive's directory into `catalogue`, which has the keys already.
pub(crate) fn rebuild(archive: &Archive, catalogue: &Catalogue) -> Result<Rebuilt> {
    let mut rebuilt = Rebuilt::default();
    let mut found = Vec::new();
    for number in segment_numbers(&archive.archive_dir(), Kind::Archive)? {
        match read(archive, number) {
            Ok(segment) => found.push(segment),
            Err(error) => rebuilt.findings.push(format!(
                "{}: {error:#}",
                segment_name(Kind::Archive, number)
            )),
        }
    }
    // A compacted segment wins over those it was made of, and a log that is still there over what was made of it.
    let mut covered: BTreeMap<(StreamId, Epoch), Vec<(u64, u64)>> = BTreeMap::new();
    for (_, index) in found.iter().filter(|(segment, _)| segment.compacted) {
        for block in &index.blocks {
            let ranges = covered.entry((block.stream, block.epoch)).or_default();
            ranges.push(block.sequences);
        }
    }
    for ranges in covered.values_mut() {
        ranges.sort_unstable();
        ranges.dedup_by(|next, range| {
            let touches = next.0 <= range.1;
            if touches {
                range.1 = range.1.max(next.1);
            }
            touches
        });
    }
    let is_covered = |block: &Block| {
        let ranges = covered.get(&(block.stream, block.epoch));
        ranges
            .into_iter()
            .flatten()
            .any(|range| range.0 <= block.sequences.0 && block.sequences.1 <= range.1)
    };
    let first_log = archive.parts().1.iter().map(|log| log.number()).min();
    let mut kept = Vec::new();
    let mut removed = Vec::new();
    for (segment, index) in &found {
        let forgotten = !archive.keys().has(&segment.group);
        let replaced = !segment.compacted
            && (index.blocks.iter().all(is_covered)
                || first_log.is_some_and(|log| log <= segment.logs.0));
        if forgotten || replaced {
            removed.push(RemovedSegment {
                number: segment.number,
            });
        } else {
            kept.push((segment, index));
        }
    }
    let streams = streams(archive, &kept, &mut rebuilt.findings);
    let mark = archive.mark();
    let sealed = kept.iter().map(|(segment, _)| segment.logs.1).max();
    let mark = ArchiveMark {
        log: match first_log {
            Some(log) => log - 1,
            None => sealed.unwrap_or(0).max(mark.log),
        },
        segment: found
            .iter()
            .map(|(segment, _)| segment.number)
            .max()
            .unwrap_or(0)
            .max(mark.segment),
        certificate: mark.certificate,
    };
    catalogue.write(|changes| {
        for (segment, _) in &kept {
            changes.put(*segment)?;
        }
        for stream in &streams {
            changes.put(stream)?;
        }
        for removed in &removed {
            changes.put(removed)?;
        }
        changes.put(&mark)
    })?;
    rebuilt.segments = kept.len() as u64;
    rebuilt.replaced = removed.len() as u64;
    rebuilt.streams = streams.len() as u64;
    rebuilt.entries = kept.iter().map(|(segment, _)| segment.entries).sum();
    Ok(rebuilt)
}

/// What a segment says of itself.
fn read(archive: &Archive, number: u64) -> Result<(SegmentRecord, Index)> {
    let reader = archive.open_numbered(number)?;
    let place = find_index(&reader)?;
    let index = Index::read(&reader, place)?;
    let record = index.record(&reader, place)?;
    Ok((record, index))
}

/// Where every stream stands after its last block.
fn streams(
    archive: &Archive,
    kept: &[(&SegmentRecord, &Index)],
    findings: &mut Vec<String>,
) -> Vec<StreamRecord> {
    let mut last: BTreeMap<StreamId, (&SegmentRecord, &Index, &Block)> = BTreeMap::new();
    let mut sums: BTreeMap<StreamId, (u64, u64)> = BTreeMap::new();
    for (segment, index) in kept {
        for block in &index.blocks {
            let sum = sums.entry(block.stream).or_default();
            sum.0 += block.entries();
            sum.1 += block.bytes;
            let later = last
                .get(&block.stream)
                .is_none_or(|(_, _, known)| known.order < block.order);
            if later {
                last.insert(block.stream, (segment, index, block));
            }
        }
    }
    let pruned = archive.pruned();
    let mut streams = Vec::new();
    for (id, (segment, index, block)) in last {
        let Some(introduced) = index.streams.get(&id) else {
            continue;
        };
        let read = archive
            .open_segment(segment)
            .and_then(|reader| archive.read_block(&reader, segment, block, &Access::operations()))
            .and_then(|batches| batches.into_iter().last().context("an empty block"));
        let (position, last_us) = match read {
            Ok(batch) => (batch.header.position_after(), batch.received_us),
            Err(error) => {
                // Its agent reads its source again from where the head still holds.
                findings.push(format!(
                    "the last block of {} cannot be read: {error:#}",
                    introduced.name
                ));
                let position = StreamPosition {
                    epoch: block.epoch,
                    next: Sequence(block.sequences.1),
                    head: block.head,
                    bookmark: Vec::new(),
                };
                (position, block.times_us.1)
            }
        };
        let (entries, bytes) = sums.get(&id).copied().unwrap_or_default();
        let gone: u64 = pruned
            .get(&id)
            .into_iter()
            .flatten()
            .map(|range| range.sequences.1 - range.sequences.0)
            .sum();
        streams.push(StreamRecord {
            id,
            agent: introduced.agent,
            kind: introduced.kind,
            name: introduced.name.clone(),
            position,
            entries: entries + gone,
            bytes,
            last_us,
        });
    }
    streams
}
