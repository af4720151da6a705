//! Where the batches of a stream lie, in logs and segments, and how they are read.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, PoisonError};

use anyhow::{Context as _, Result};
use scrinium_protocol::batch::BatchHeader;
use scrinium_protocol::identity::{Epoch, StreamId};
use scrinium_segment::reader::SegmentReader;
use scrinium_segment::{Kind, Place, segment_name};

use super::Archive;
use super::block::{self, StoredBatch, is_of_the_future};
use super::container::Access;
use super::log::Log;
use super::segment::{Block, Index, digest_of};
use crate::catalogue::records::{Group, SegmentRecord};
use crate::clock::{DAY_US, Day};
use crate::index::words::Words;

/// Indexes of segments, as many as were used last.
#[derive(Default)]
pub(super) struct Indexes {
    held: BTreeMap<u64, (Arc<Index>, u64)>,
    blocks: usize,
    uses: u64,
}

/// Consecutive batches of one stream, wherever they lie.
#[derive(Clone)]
pub(crate) struct Extent {
    pub(crate) stream: StreamId,
    /// The log its first batch came in, and its number there.
    pub(crate) order: (u64, u32),
    /// All times by which its entries are ordered ([`block::order_us`]) lie between these, Unix µs.
    pub(crate) times_us: (u64, u64),
    pub(crate) epoch: Epoch,
    pub(crate) sequences: (u64, u64),
    source: Source,
}

/// What was found of the archive.
#[derive(Default)]
pub(crate) struct Extents {
    /// In the order of the archive: within a stream, in the order of its entries.
    pub(crate) list: Vec<Extent>,
    /// Segments whose index cannot be read, and why.
    pub(crate) damaged: Vec<(Arc<SegmentRecord>, anyhow::Error)>,
}

#[derive(Clone)]
enum Source {
    Log {
        log: Arc<Log>,
        place: Place,
        words: Words,
    },
    Segment {
        segment: Arc<SegmentRecord>,
        index: Arc<Index>,
        block: usize,
    },
}

impl Archive {
    /// The extents of the streams that are `wanted` with entries collected in `times_us`, both ends included.
    /// What was forgotten is not among them.
    pub(crate) fn extents(
        &self,
        wanted: impl Fn(StreamId) -> bool,
        times_us: (u64, u64),
    ) -> Extents {
        let (mut list, mut damaged) = (Vec::new(), Vec::new());
        for part in self.each_part(wanted, times_us) {
            match part {
                Ok(extents) => list.extend(extents),
                Err(part) => damaged.push(part),
            }
        }
        list.sort_by_key(|extent| extent.order);
        Extents { list, damaged }
    }

    /// The same, of one log or segment after the other, the newest first: who has found what it looks for looks no further,
    /// and nobody holds those of a whole stream. An error is a segment whose index cannot be read.
    pub(crate) fn each_part(
        &self,
        wanted: impl Fn(StreamId) -> bool,
        times_us: (u64, u64),
    ) -> impl Iterator<Item = Result<Vec<Extent>, (Arc<SegmentRecord>, anyhow::Error)>> {
        let (segments, logs) = self.parts();
        let overlaps = move |of: (u64, u64)| of.0 <= times_us.1 && times_us.0 <= of.1;
        let wanted = Rc::new(wanted);
        let of_logs = wanted.clone();
        let logs = logs.into_iter().rev().map(move |log| {
            let batches = (0..).zip(log.batches());
            let batches =
                batches.filter(|(_, batch)| of_logs(batch.stream) && overlaps(batch.times_us));
            let extents = batches.map(|(number, batch)| Extent {
                stream: batch.stream,
                order: (log.number(), number),
                times_us: batch.times_us,
                epoch: batch.epoch,
                sequences: batch.sequences,
                source: Source::Log {
                    log: log.clone(),
                    place: batch.place,
                    words: batch.words,
                },
            });
            Ok(extents.collect())
        });
        let segments = segments.into_iter().rev();
        let segments = segments.filter(move |of| overlaps(possible_us(of.times_us, of.group.day)));
        let sealed = segments.map(move |segment| {
            let index = match self.index(&segment) {
                Ok(index) => index,
                Err(error) => return Err((segment, error)),
            };
            let day = segment.group.day;
            let kept = self.keys.kept(&segment.group);
            let mut extents = Vec::new();
            for (number, block) in index.blocks.iter().enumerate() {
                let times_us = possible_us(block.times_us, day);
                if wanted(block.stream) && overlaps(times_us) && kept.has(block.stream) {
                    extents.push(Extent {
                        stream: block.stream,
                        order: block.order,
                        times_us,
                        epoch: block.epoch,
                        sequences: block.sequences,
                        source: Source::Segment {
                            segment: segment.clone(),
                            index: index.clone(),
                            block: number,
                        },
                    });
                }
            }
            Ok(extents)
        });
        logs.chain(sealed)
    }

    /// Every extent of one stream; an error when some cannot be found.
    pub(crate) fn extents_of(&self, stream: StreamId) -> Result<Vec<Extent>> {
        let mut found = self.extents(|other| other == stream, EVER);
        match found.damaged.pop() {
            Some((_, error)) => Err(error),
            None => Ok(found.list),
        }
    }

    /// When the oldest entry was collected, Unix µs; one that is said to be much older than its receipt does not count.
    pub(crate) fn oldest_us(&self) -> Option<u64> {
        let (segments, logs) = self.parts();
        let sealed = segments.iter().map(|segment| {
            let begin_us = segment.group.day.begin_us();
            segment.times_us.0.max(begin_us.saturating_sub(LATE_US_MAX))
        });
        let live = logs.iter().flat_map(|log| log.batches());
        let live = live.map(|batch| {
            let (first, _) = batch.times_us;
            first.max(batch.received_us.saturating_sub(LATE_US_MAX))
        });
        sealed.chain(live).min()
    }

    /// What lies where in a segment.
    pub(crate) fn index(&self, segment: &SegmentRecord) -> Result<Arc<Index>> {
        {
            let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
            indexes.uses += 1;
            let now = indexes.uses;
            if let Some((index, used)) = indexes.held.get_mut(&segment.number) {
                *used = now;
                return Ok(index.clone());
            }
        }
        let reader = self.open_segment(segment)?;
        let mut index = Index::read(&reader, place_of(segment.index))?;
        self.share_names(&mut index);
        anyhow::ensure!(
            index.group == segment.group,
            "segment {:016x} is of another day, class or tenant",
            segment.number
        );
        let index = Arc::new(index);
        let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        indexes.hold(segment.number, index.clone());
        Ok(index)
    }

    /// Whether a reader may open what is archived of a group.
    pub(crate) fn may_read(&self, group: &Group, access: &Access) -> bool {
        !self.keys.is_sealed(group) || access.key_of(group).is_some()
    }

    /// Reads the batches of an extent.
    pub(crate) fn read(&self, extent: &Extent, access: &Access) -> Result<Vec<StoredBatch>> {
        match &extent.source {
            Source::Log { log, place, .. } => Ok(vec![log.read(*place)?]),
            Source::Segment {
                segment,
                index,
                block,
            } => {
                let reader = self.open_segment(segment)?;
                let block = index.blocks.get(*block).context("a block of the index")?;
                self.read_block(&reader, segment, block, access)
            }
        }
    }

    /// Whether another batch is archived in the place of this one: the same sequence of the same epoch,
    /// and other entries. None when it is not among the newest [`PARTS_LOOKED_AT_MAX`] logs and segments.
    pub(crate) fn contradicts(&self, header: &BatchHeader) -> Result<Option<bool>> {
        let first = header.first.0;
        let covers = |extent: &Extent| {
            extent.epoch == header.epoch
                && extent.sequences.0 <= first
                && first < extent.sequences.1
        };
        let mut parts = self.each_part(|stream| stream == header.stream, EVER);
        for part in parts.by_ref().take(PARTS_LOOKED_AT_MAX) {
            let extents = part.map_err(|(_, error)| error)?;
            for extent in extents.iter().filter(|extent| covers(extent)) {
                for batch in self.read(extent, &Access::operations())? {
                    let header_there = &batch.header;
                    if header_there.epoch == header.epoch && header_there.first == header.first {
                        return Ok(Some(header_there.root != header.root));
                    }
                }
            }
        }
        Ok(parts.next().is_none().then_some(false))
    }

    /// Reads one block of an open segment.
    pub(crate) fn read_block(
        &self,
        reader: &SegmentReader,
        segment: &SegmentRecord,
        block: &Block,
        access: &Access,
    ) -> Result<Vec<StoredBatch>> {
        let key = self
            .keys
            .for_reading(&segment.group, block.stream, access)?;
        let record = reader.read_under(&key, block.place)?;
        let batches = block::decode(&record.payload, block.raw_len)?;
        Ok(batches)
    }

    /// Reads the filter of one block of an open segment.
    pub(crate) fn read_filter(
        &self,
        reader: &SegmentReader,
        segment: &SegmentRecord,
        block: &Block,
        access: &Access,
    ) -> Result<Vec<u8>> {
        let key = self
            .keys
            .for_reading(&segment.group, block.stream, access)?;
        Ok(reader.read_under(&key, block.filter)?.payload)
    }

    /// Whether everything of a segment but its blocks and filters lies on the disk as it was sealed.
    pub(crate) fn check_frame(&self, segment: &SegmentRecord) -> Result<()> {
        let reader = self.open_segment(segment)?;
        anyhow::ensure!(
            reader.len() == segment.len,
            "has {} bytes; {} were sealed",
            reader.len(),
            segment.len
        );
        Index::check(&reader, place_of(segment.index))
    }

    /// Whether the filter of an extent lies on the disk as it was sealed.
    pub(crate) fn check_filter(&self, extent: &Extent) -> Result<()> {
        if let Some((segment, block)) = extent.block() {
            let reader = self.open_segment(segment)?;
            self.read_filter(&reader, segment, block, &Access::operations())?;
        }
        Ok(())
    }

    /// Whether the bytes of an extent that nobody may open now are the ones that were sealed.
    pub(crate) fn check_sealed(&self, extent: &Extent) -> Result<()> {
        let (segment, block) = extent.block().context("a log has no second container")?;
        let reader = self.open_segment(segment)?;
        let found = digest_of(&reader, block)?;
        anyhow::ensure!(
            found == block.digest,
            "its bytes are not those that were sealed"
        );
        Ok(())
    }
}

impl Indexes {
    fn hold(&mut self, number: u64, index: Arc<Index>) {
        self.blocks += cost(&index);
        if let Some((before, _)) = self.held.insert(number, (index, self.uses)) {
            self.blocks -= cost(&before);
        }
        while self.blocks > INDEXED_BLOCKS_MAX && self.held.len() > 1 {
            let oldest = self.held.iter().min_by_key(|(_, (_, used))| *used);
            let Some(oldest) = oldest.map(|(number, _)| *number) else {
                return;
            };
            self.release(oldest);
        }
    }

    pub(super) fn release(&mut self, number: u64) {
        if let Some((gone, _)) = self.held.remove(&number) {
            self.blocks -= cost(&gone);
        }
    }
}

/// What an index takes of memory, in blocks: the names of its streams may be longer than all else.
fn cost(index: &Index) -> usize {
    let names = index.streams.values().map(|stream| stream.name.len());
    index.blocks.len() + names.sum::<usize>() / BLOCK_COST
}

impl Extent {
    /// How many entries it has.
    pub(crate) fn entries(&self) -> u64 {
        self.sequences.1 - self.sequences.0
    }

    /// The segment and block of an archived extent; logs have no filters.
    pub(crate) fn block(&self) -> Option<(&Arc<SegmentRecord>, &Block)> {
        match &self.source {
            Source::Segment {
                segment,
                index,
                block,
            } => Some((segment, index.blocks.get(*block)?)),
            Source::Log { .. } => None,
        }
    }

    /// Which words may be in it, of a batch of the log.
    pub(crate) fn words(&self) -> Option<&Words> {
        match &self.source {
            Source::Log { words, .. } => Some(words),
            Source::Segment { .. } => None,
        }
    }

    /// Names where it lies, for a person.
    pub(crate) fn place_name(&self) -> String {
        match &self.source {
            Source::Segment { segment, .. } => segment_name(Kind::Archive, segment.number),
            Source::Log { log, .. } => segment_name(Kind::Log, log.number()),
        }
    }
}

/// The times, both ends included, by which entries are ordered that were collected in `times_us`, as is said, and
/// received on `day`. Blocks of version 0.1.0 do not say when what is of the future was received.
fn possible_us(times_us: (u64, u64), day: Day) -> (u64, u64) {
    let (first, last) = times_us;
    let end_us = day.begin_us().saturating_add(DAY_US);
    if is_of_the_future(last, end_us) {
        (first.min(day.begin_us()), last)
    } else {
        times_us
    }
}

fn place_of((offset, len, index): (u64, u32, u64)) -> Place {
    Place { offset, len, index }
}

/// Whether something could not be read because this process, or the system, had no file descriptor left. That says
/// nothing of the archive, and is never called damage.
pub(crate) fn is_out_of_descriptors(error: &anyhow::Error) -> bool {
    let mut causes = error.chain();
    causes.any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(scrinium_segment::process::is_out_of_descriptors)
    })
}

/// Older than its receipt by more than 31 days, an entry does not say where the archive begins, in µs.
const LATE_US_MAX: u64 = 31 * DAY_US;
/// Logs and segments in which a batch that is sent again is looked for: those of some months. An agent repeats what it sent
/// last; one that wants us to read an archive of years ends its session with less.
const PARTS_LOOKED_AT_MAX: usize = 256;
/// All times.
pub(crate) const EVER: (u64, u64) = (0, u64::MAX);
/// About what the place of a block takes of memory, bytes.
const BLOCK_COST: usize = 200;
/// Most blocks whose place is kept in memory; names of their streams count as so many blocks as they are long.
const INDEXED_BLOCKS_MAX: usize = 1 << 18;
