//! Where batches rest: first in the log as they came, later in sealed segments by stream.
//!
//! ```text
//! ingest ─▶ [log] 64 MiB ─▶ [sealer] ─▶ segment: blocks of one stream, ~4 MiB, zstd 3, filters
//!             │                            │ └─▶ [compaction]: a day, zstd 9 ─▶ [retention]: its keys destroyed
//!             └──────── [Archive] ─────────┴─▶ search, export, [verify]
//! ```
//!
//! One thread, the [upkeep], does all that changes what is at rest. What a start does is in [opening], who the streams are in [streams].
//!
//! Invariants:
//! 1. A batch is in exactly one place that readers see: the swap from log to segment is one step
//!    under the lock, after the segment is durable and catalogued.
//! 2. Bytes of a segment are never rewritten. Blocks keep the batches' own headers, so every root,
//!    chain and signature can be recomputed for as long as the segment lives.

mod acked;
pub(crate) mod block;
mod compaction;
pub(crate) mod container;
pub(crate) mod extents;
pub(crate) mod fsck;
pub(crate) mod keys;
pub(crate) mod log;
pub(crate) mod losses;
mod opening;
pub(crate) mod retention;
pub(crate) mod sealer;
pub(crate) mod segment;
mod streams;
pub(crate) mod troubles;
pub(crate) mod upkeep;
pub(crate) mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use anyhow::Result;
use scrinium_protocol::identity::StreamId;
use scrinium_protocol::secret::Secret;
use scrinium_segment::cipher::Cipher;
use scrinium_segment::reader::SegmentReader;
use scrinium_segment::{Kind, durable, segment_name, segment_numbers};

use self::acked::Acked;
use self::container::Openings;
use self::extents::Indexes;
pub(crate) use self::extents::{EVER, Extent, is_out_of_descriptors};
use self::keys::Keyring;
use self::log::Log;
use self::segment::{Packing, SegmentBuilder};
pub(crate) use self::streams::Totals;
use self::troubles::Troubles;
use crate::catalogue::records::{
    ArchiveMark, Group, LogEnd, PrunedRange, SegmentRecord, StreamRecord,
};
use crate::volume::{ARCHIVE_DIR, LOG_DIR, SEALING_DIR};
use crate::waits;

/// The archive as every reader sees it.
pub(crate) struct Archive {
    dir: PathBuf,
    keys: Keyring,
    /// Opens headers and indexes of segments.
    archive_key: Secret<32>,
    /// What is written from now on is sealed with.
    cipher: Cipher,
    state: RwLock<State>,
    indexes: Mutex<Indexes>,
    openings: Openings,
    acked: Mutex<Acked>,
    troubles: Arc<Troubles>,
}

#[derive(Default)]
struct State {
    streams: BTreeMap<StreamId, StreamRecord>,
    /// The streams as the last segment left them: what the catalogue says of them.
    archived: BTreeMap<StreamId, StreamRecord>,
    segments: BTreeMap<u64, Arc<SegmentRecord>>,
    logs: Vec<Arc<Log>>,
    mark: ArchiveMark,
    /// Segments that the catalogue knows and that are on their way to their place.
    settling: BTreeSet<u64>,
    /// Segments that were replaced or deleted, and whose files are still there.
    leaving: BTreeMap<u64, Arc<SegmentRecord>>,
    pruned: BTreeMap<StreamId, Vec<PrunedRange>>,
    /// Logs that no key opens.
    set_aside: Vec<String>,
}

impl Archive {
    /// What it cannot do now.
    pub(crate) fn troubles(&self) -> &Arc<Troubles> {
        &self.troubles
    }

    /// How far the log is acknowledged.
    pub(crate) fn acked(&self) -> MutexGuard<'_, Acked> {
        waits::lock(&self.acked)
    }

    /// Writes down how a log ended.
    pub(crate) fn end_log(&self, number: u64, end: LogEnd) -> Result<()> {
        self.keys.end_log(number, end)
    }

    /// The number for the next log.
    pub(crate) fn next_log_number(&self) -> Result<u64> {
        let archived = self.mark().log;
        let present = segment_numbers(&self.log_dir(), Kind::Log)?
            .last()
            .copied()
            .unwrap_or(0);
        Ok(archived.max(present) + 1)
    }

    /// How far it is.
    pub(crate) fn mark(&self) -> ArchiveMark {
        self.state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .mark
    }

    /// Logs that were found without a key at the start.
    pub(crate) fn set_aside(&self) -> Vec<String> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.set_aside.clone()
    }

    pub(crate) fn log_dir(&self) -> PathBuf {
        self.dir.join(LOG_DIR)
    }

    pub(crate) fn archive_dir(&self) -> PathBuf {
        self.dir.join(ARCHIVE_DIR)
    }

    /// Where segments lie that the catalogue does not know yet.
    fn sealing_dir(&self) -> PathBuf {
        self.dir.join(SEALING_DIR)
    }

    /// Begins a segment that the catalogue does not know yet.
    pub(crate) fn build(
        &self,
        group: Group,
        number: u64,
        packing: Packing,
    ) -> Result<SegmentBuilder<'_>> {
        let dir = self.sealing_dir();
        // What is left of an attempt that failed.
        durable::remove(&dir.join(segment_name(Kind::Archive, number)))?;
        let seal = (&self.archive_key, self.cipher);
        SegmentBuilder::create(&dir, &self.keys, seal, group, number, packing)
    }

    /// Moves the file of a segment that the catalogue knows to its place.
    pub(crate) fn settle(&self, number: u64) -> Result<()> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.settling.insert(number);
        drop(state);
        let built = self.sealing_dir().join(segment_name(Kind::Archive, number));
        durable::rename(&built, &self.segment_path(number))?;
        Ok(())
    }

    /// What was opened of the second container.
    pub(crate) fn openings(&self) -> &Openings {
        &self.openings
    }

    pub(crate) fn keys(&self) -> &Keyring {
        &self.keys
    }

    /// What is written from now on is sealed with.
    pub(crate) fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// How many files, and bytes of them, each cipher seals. A file whose header is damaged counts nowhere.
    pub(crate) fn sealed_with(&self) -> BTreeMap<&'static str, (u64, u64)> {
        let (segments, logs) = self.parts();
        let opened = segments.iter().filter_map(|segment| {
            let reader = self.open_segment(segment).ok()?;
            Some((reader.cipher(), reader.len()))
        });
        let mut sealed = BTreeMap::new();
        for (cipher, len) in opened.chain(logs.iter().map(|log| log.cipher())) {
            let (files, bytes) = sealed.entry(cipher.name()).or_insert((0, 0));
            *files += 1;
            *bytes += len;
        }
        sealed
    }

    pub(crate) fn archive_key(&self) -> &Secret<32> {
        &self.archive_key
    }

    /// Makes a new log visible to readers.
    pub(crate) fn add_log(&self, log: Arc<Log>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.logs.push(log);
    }

    /// Puts sealed segments in the place of the log they were made of.
    pub(crate) fn replace_log(
        &self,
        segments: Vec<SegmentRecord>,
        streams: BTreeMap<StreamId, StreamRecord>,
        mark: ArchiveMark,
    ) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.logs.retain(|held| held.number() != mark.log);
        for segment in segments {
            state.settling.remove(&segment.number);
            state.segments.insert(segment.number, Arc::new(segment));
        }
        state.archived.extend(streams);
        state.mark = mark;
    }

    /// Segments and logs, oldest first.
    pub(crate) fn parts(&self) -> (Vec<Arc<SegmentRecord>>, Vec<Arc<Log>>) {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        (
            state.segments.values().cloned().collect(),
            state.logs.clone(),
        )
    }

    /// Whether nothing says why a segment of this number is there.
    pub(crate) fn is_strange(&self, number: u64) -> bool {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let is_known = state.segments.contains_key(&number) || state.leaving.contains_key(&number);
        !is_known && !state.settling.contains(&number)
    }

    /// Segments are no longer the archive's; their files are still there. `pruned` is what is known since then of
    /// the streams that were in them.
    pub(crate) fn leave(
        &self,
        numbers: &[u64],
        pruned: BTreeMap<StreamId, Vec<PrunedRange>>,
        mark: ArchiveMark,
    ) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.leave(numbers);
        state.pruned.extend(pruned);
        state.mark = mark;
    }

    /// One segment is in the place of others, whose files are still there.
    pub(crate) fn swap(&self, new: Option<SegmentRecord>, old: &[u64], mark: ArchiveMark) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.leave(old);
        if let Some(segment) = new {
            state.settling.remove(&segment.number);
            state.segments.insert(segment.number, Arc::new(segment));
        }
        state.mark = mark;
    }

    /// Segments that are no longer the archive's and that nobody reads.
    pub(crate) fn unread(&self) -> Vec<u64> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let unread = state.leaving.iter();
        let unread = unread.filter(|(_, segment)| Arc::strong_count(segment) == 1);
        unread.map(|(number, _)| *number).collect()
    }

    /// The files of these segments are gone.
    pub(crate) fn left(&self, numbers: &[u64]) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.leaving.retain(|number, _| !numbers.contains(number));
        drop(state);
        let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.iter().for_each(|number| indexes.release(*number));
    }

    /// Whether a segment is no longer the archive's.
    pub(crate) fn is_replaced(&self, number: u64) -> bool {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        !state.segments.contains_key(&number)
    }

    /// What was deleted of each stream.
    pub(crate) fn pruned(&self) -> BTreeMap<StreamId, Vec<PrunedRange>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.pruned.clone()
    }

    pub(crate) fn open_segment(&self, segment: &SegmentRecord) -> Result<SegmentReader> {
        let reader = self.open_numbered(segment.number)?;
        anyhow::ensure!(
            reader.tag() == segment.tag,
            "segment {:016x} is not the one that was sealed",
            segment.number
        );
        Ok(reader)
    }

    /// Opens a segment of which the catalogue may know nothing.
    pub(crate) fn open_numbered(&self, number: u64) -> Result<SegmentReader> {
        let path = self.segment_path(number);
        Ok(SegmentReader::open(
            &path,
            &self.archive_key,
            Kind::Archive,
        )?)
    }

    pub(crate) fn segment_path(&self, number: u64) -> PathBuf {
        self.archive_dir().join(segment_name(Kind::Archive, number))
    }
}

impl State {
    fn leave(&mut self, numbers: &[u64]) {
        for number in numbers {
            if let Some(segment) = self.segments.remove(number) {
                self.leaving.insert(*number, segment);
            }
        }
    }
}

/// Bytes of the files below `dir`, for people.
pub(crate) fn disk_bytes(dir: &Path) -> u64 {
    waits::off_worker(|| {
        let Ok(entries) = std::fs::read_dir(dir) else {
            return 0;
        };
        entries
            .flatten()
            .filter_map(|entry| entry.metadata().ok())
            .map(|meta| meta.len())
            .sum()
    })
}
