//! Where batches rest: first in the log as they came, later in sealed segments by stream.
//!
//! ```text
//! ingest ─▶ [log] 64 MiB ─▶ [sealer] ─▶ segment: blocks of one stream, ~4 MiB, zstd 3, filters
//!             │                            │ └─▶ [compaction]: a day, zstd 9 ─▶ [retention]: its keys destroyed
//!             └──────── [Archive] ─────────┴─▶ search, export, [verify]
//! ```
//!
//! One thread, the [upkeep], does all that changes what is at rest.
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
pub(crate) mod retention;
pub(crate) mod sealer;
pub(crate) mod segment;
pub(crate) mod upkeep;
pub(crate) mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use anyhow::Result;
use scrinium_protocol::batch::StreamPosition;
use scrinium_protocol::evidence::interval::Reached;
use scrinium_protocol::identity::{AgentId, StreamId, StreamKind};
use scrinium_protocol::secret::Secret;
use scrinium_segment::cipher::Cipher;
use scrinium_segment::reader::SegmentReader;
use scrinium_segment::{Kind, durable, segment_name, segment_numbers};
use tracing::error;

use self::acked::{Acked, Remembered};
use self::container::Openings;
use self::extents::Indexes;
pub(crate) use self::extents::{EVER, Extent, is_out_of_descriptors};
use self::keys::Keyring;
use self::log::{Found, Log};
use self::losses::Left;
use self::segment::{Packing, SegmentBuilder};
use crate::catalogue::Catalogue;
use crate::catalogue::records::{
    AckedRecord, ArchiveMark, Group, LogEnd, PrunedRange, PrunedRecord, RemovedSegment,
    SegmentRecord, StreamRecord,
};
use crate::volume::{ACKED_DIR, ARCHIVE_DIR, LOG_DIR, SEALING_DIR, Volume};

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
}

/// Numbers of several streams together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) streams: usize,
    /// Bytes of their names.
    pub(crate) name_bytes: usize,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    /// When the last entry became durable, Unix µs; 0: none.
    pub(crate) last_us: u64,
}

impl Totals {
    fn add(&mut self, stream: &StreamRecord) {
        self.streams += 1;
        self.name_bytes += stream.name.len();
        self.entries += stream.entries;
        self.bytes += stream.bytes;
        self.last_us = self.last_us.max(stream.last_us);
    }
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
    /// Opens the archive of a volume, reads back the logs that were not yet sealed, and compares them with what was
    /// acknowledged.
    pub(crate) fn open(
        volume: &Volume,
        catalogue: &Arc<Catalogue>,
        cipher: Cipher,
    ) -> Result<Self> {
        Self::open_with(volume, catalogue, cipher, true)
    }

    /// The same for a catalogue that is made again and does not know yet what was sealed: nothing is compared.
    pub(crate) fn open_to_rebuild(volume: &Volume, catalogue: &Arc<Catalogue>) -> Result<Self> {
        Self::open_with(volume, catalogue, Cipher::default(), false)
    }

    /// What the files of acknowledgements are sealed with.
    pub(crate) fn acked_key(volume: &Volume) -> Secret<32> {
        volume.key("acknowledgements")
    }

    fn open_with(
        volume: &Volume,
        catalogue: &Arc<Catalogue>,
        cipher: Cipher,
        is_compared: bool,
    ) -> Result<Self> {
        let acked_dir = volume.dir().join(ACKED_DIR);
        durable::create_dir(&acked_dir)?;
        let acked_key = Self::acked_key(volume);
        let remembered = acked::read(&acked_dir, &acked_key)?;
        let acked = Acked::new(acked_dir, acked_key, cipher, catalogue.clone(), &remembered);
        let archive = Self {
            acked: Mutex::new(acked),
            dir: volume.dir().to_owned(),
            keys: Keyring::load(volume, catalogue.clone())?,
            archive_key: volume.key("archive"),
            cipher,
            state: RwLock::default(),
            indexes: Mutex::default(),
            openings: Openings::default(),
        };
        let mut state = State::default();
        for stream in catalogue.load::<StreamRecord>()? {
            state.streams.insert(stream.id, stream);
        }
        state.archived = state.streams.clone();
        for segment in catalogue.load::<SegmentRecord>()? {
            state.segments.insert(segment.number, Arc::new(segment));
        }
        state.mark = catalogue.load()?.pop().unwrap_or_default();
        for pruned in catalogue.load::<PrunedRecord>()? {
            state.pruned.insert(pruned.stream, pruned.ranges);
        }
        archive.finish_what_was_begun(catalogue, &state)?;
        let numbers = segment_numbers(&archive.log_dir(), Kind::Log)?;
        let path_of = |number: u64| archive.log_dir().join(segment_name(Kind::Log, number));
        let limits: BTreeMap<u64, u64> = numbers
            .iter()
            .filter_map(|&number| {
                Log::limit_of_previous(&path_of(number), &archive.keys.log_key(number)?)
            })
            .collect();
        let mut found = BTreeMap::new();
        for &number in &numbers {
            let path = path_of(number);
            if number <= state.mark.log {
                // Sealed, but we died before its removal.
                durable::remove(&path)?;
                continue;
            }
            let Some(key) = archive.keys.log_key(number) else {
                // Its key goes with the step that seals it: this catalogue is not the one of this log.
                error!(log = %path.display(), "the catalogue has no key for a log: it is set aside");
                durable::rename(&path, &path.with_extension("log.unreadable"))?;
                state.set_aside.push(segment_name(Kind::Log, number));
                continue;
            };
            let limit = limits.get(&number).copied();
            if let Some(log) = Log::recover(&path, &key, limit, &mut state.streams)? {
                found.insert(number, log.found);
                state.logs.push(Arc::new(log));
            }
        }
        if is_compared {
            // Streams whose introduction is gone with a log keep their names.
            for (&id, stream) in &remembered.introduced {
                state.streams.entry(id).or_insert_with(|| stream.clone());
            }
            archive.take_stock(catalogue, &state, &remembered, &found)?;
        }
        *archive
            .state
            .write()
            .unwrap_or_else(PoisonError::into_inner) = state;
        Ok(archive)
    }

    /// Compares what is there with what was acknowledged, writes down what is missing, and begins to note anew.
    fn take_stock(
        &self,
        catalogue: &Arc<Catalogue>,
        state: &State,
        remembered: &Remembered,
        found: &BTreeMap<u64, Found>,
    ) -> Result<()> {
        let mut keys = self.keys.logs();
        keys.retain(|number, _| *number > state.mark.log);
        let losses = losses::find(&Left {
            remembered,
            known: catalogue.load()?.pop(),
            keys: &keys,
            logs: found,
            streams: &state.streams,
            generation: catalogue.generation(),
            is_begun: catalogue.is_begun(),
        });
        let losses = losses::number(losses, &catalogue.load()?);
        for loss in &losses {
            error!(
                file = loss.file,
                problem = loss.problem,
                "the volume is not as it was left"
            );
        }
        let present: Vec<u64> = found.keys().copied().collect();
        let gone = self.keys.logs_but(&present);
        let ended = found.iter().filter_map(|(&number, found)| {
            let (committed, finished) = (found.bytes, found.finished);
            let end = LogEnd {
                committed,
                finished,
            };
            self.keys.ended(number, end)
        });
        let ended: Vec<_> = ended.collect();
        catalogue.write(|changes| {
            for loss in &losses {
                changes.put(loss)?;
            }
            for ended in &ended {
                changes.put(ended)?;
            }
            gone.iter()
                .try_for_each(|&number| Keyring::forget_log(changes, number))
        })?;
        self.keys.forgot_logs_but(&present);
        // At this point what is missing is written down; if we die now, the same is found again.
        let mut acked = self.acked();
        let number = acked.begin(&state.introduced())?;
        for (&log, found) in found {
            acked.note(log, found.bytes, core::iter::empty())?;
        }
        let moved = remembered.reached.keys();
        let moved: Vec<Reached> = moved
            .filter_map(|stream| state.streams.get(stream))
            .map(StreamRecord::reached)
            .collect();
        if let Some((&log, found)) = found.last_key_value() {
            acked.note(log, found.bytes, moved.into_iter())?;
        }
        acked.remove_before(number)
    }

    /// How often the catalogue was written, as far as the files of acknowledgements remember.
    pub(crate) fn writes_remembered(volume: &Volume) -> Result<u64> {
        let dir = volume.dir().join(ACKED_DIR);
        if !dir.try_exists()? {
            return Ok(0);
        }
        Ok(acked::read(&dir, &Self::acked_key(volume))?.generation)
    }

    /// A catalogue that was made again goes on where the files of acknowledgements stand; false where there are none.
    pub(crate) fn adopt_acknowledgements(
        &self,
        catalogue: &Catalogue,
        key: &Secret<32>,
    ) -> Result<bool> {
        let remembered = acked::read(&self.dir.join(ACKED_DIR), key)?;
        let Some(&number) = remembered.records.keys().max() else {
            return Ok(false);
        };
        catalogue.go_on_from(remembered.generation)?;
        let signed = remembered.signed;
        catalogue.put(&AckedRecord { number, signed })?;
        Ok(true)
    }

    /// How far the log is acknowledged.
    pub(crate) fn acked(&self) -> MutexGuard<'_, Acked> {
        self.acked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down how a log ended.
    pub(crate) fn end_log(&self, number: u64, end: LogEnd) -> Result<()> {
        self.keys.end_log(number, end)
    }

    /// Files of segments that the catalogue knows take their place, unfinished ones and removed ones go.
    fn finish_what_was_begun(&self, catalogue: &Catalogue, state: &State) -> Result<()> {
        for number in segment_numbers(&self.sealing_dir(), Kind::Archive)? {
            if state.segments.contains_key(&number) {
                self.settle(number)?;
            } else {
                durable::remove(&self.sealing_dir().join(segment_name(Kind::Archive, number)))?;
            }
        }
        // What else was being made when the server ended is made anew.
        for entry in std::fs::read_dir(self.sealing_dir())? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "seg") {
                durable::remove(&path)?;
            }
        }
        for removed in catalogue.load::<RemovedSegment>()? {
            durable::remove(&self.segment_path(removed.number))?;
            catalogue.write(|changes| changes.remove(&removed))?;
        }
        Ok(())
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

    /// Streams that no segment knows yet, as they were introduced.
    pub(crate) fn introduced(&self) -> Vec<StreamRecord> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.introduced()
    }

    /// One stream as the last segment left it, or before its first entry.
    pub(crate) fn archived_stream(&self, id: StreamId) -> Option<StreamRecord> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let archived = state.archived.get(&id).cloned();
        archived.or_else(|| {
            let live = state.streams.get(&id)?;
            Some(log::new_stream(
                live.id,
                live.agent,
                live.kind,
                live.name.clone(),
            ))
        })
    }

    /// Every stream, by id.
    pub(crate) fn streams(&self) -> BTreeMap<StreamId, StreamRecord> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.streams.clone()
    }

    /// Where every stream stands that has entries; without their names, which may be very long together.
    pub(crate) fn reached(&self) -> Vec<Reached> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let streams = state.streams.values();
        let with_entries = streams.filter(|stream| stream.entries > 0);
        with_entries.map(StreamRecord::reached).collect()
    }

    /// The streams that are `wanted`.
    pub(crate) fn matching(&self, wanted: impl Fn(&StreamRecord) -> bool) -> BTreeSet<StreamId> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let wanted = state.streams.values().filter(|stream| wanted(stream));
        wanted.map(|stream| stream.id).collect()
    }

    /// These streams, as far as they are known.
    pub(crate) fn streams_among(
        &self,
        ids: impl IntoIterator<Item = StreamId>,
    ) -> BTreeMap<StreamId, StreamRecord> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let known = |id: StreamId| Some((id, state.streams.get(&id)?.clone()));
        let ids: BTreeSet<StreamId> = ids.into_iter().collect();
        ids.into_iter().filter_map(known).collect()
    }

    /// Whether a stream is known.
    pub(crate) fn has_stream(&self, id: StreamId) -> bool {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.streams.contains_key(&id)
    }

    /// Numbers of all streams together.
    pub(crate) fn totals(&self) -> Totals {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut totals = Totals::default();
        for stream in state.streams.values() {
            totals.add(stream);
        }
        totals
    }

    /// The same of one agent.
    pub(crate) fn totals_of(&self, agent: AgentId) -> Totals {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut totals = Totals::default();
        for stream in state
            .streams
            .values()
            .filter(|stream| stream.agent == agent)
        {
            totals.add(stream);
        }
        totals
    }

    /// When the last entry of each agent became durable, Unix µs.
    pub(crate) fn last_of_agents(&self) -> BTreeMap<AgentId, u64> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut last = BTreeMap::new();
        for stream in state.streams.values().filter(|stream| stream.last_us > 0) {
            let known: &mut u64 = last.entry(stream.agent).or_default();
            *known = stream.last_us.max(*known);
        }
        last
    }

    /// Some streams of an agent in the order of their names, `skipped` of them left out, and how many it has.
    pub(crate) fn page_of(
        &self,
        agent: AgentId,
        skipped: usize,
        most: usize,
    ) -> (Vec<StreamRecord>, usize) {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let streams = state.streams.values();
        let mut own: Vec<&StreamRecord> = streams.filter(|stream| stream.agent == agent).collect();
        own.sort_unstable_by_key(|stream| (&stream.name, stream.id));
        let page = own.iter().skip(skipped).take(most);
        (page.map(|&stream| stream.clone()).collect(), own.len())
    }

    /// The streams of one agent.
    pub(crate) fn streams_of(&self, agent: AgentId) -> Vec<StreamRecord> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let streams = state.streams.values();
        let own = streams.filter(|stream| stream.agent == agent);
        own.cloned().collect()
    }

    /// Where each stream of one agent stands.
    pub(crate) fn positions_of(&self, agent: AgentId) -> Vec<(StreamId, StreamPosition)> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let of_agent = state
            .streams
            .values()
            .filter(|stream| stream.agent == agent);
        of_agent
            .map(|stream| (stream.id, stream.position.clone()))
            .collect()
    }

    /// Notes a stream not seen before. Returns whether it is new.
    pub(crate) fn define_stream(&self, stream: StreamRecord) -> bool {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.streams.contains_key(&stream.id) {
            return false;
        }
        state.streams.insert(stream.id, stream);
        true
    }

    /// One stream.
    pub(crate) fn stream(&self, id: StreamId) -> Option<StreamRecord> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.streams.get(&id).cloned()
    }

    /// Finds a stream by its agent, kind and name.
    pub(crate) fn find_stream(
        &self,
        agent: AgentId,
        kind: StreamKind,
        name: &str,
    ) -> Option<StreamRecord> {
        self.stream(StreamId::derive(agent, kind, name))
    }

    /// Moves streams on after a commit.
    pub(crate) fn advance(&self, changes: Vec<StreamRecord>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for stream in changes {
            state.streams.insert(stream.id, stream);
        }
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
    fn introduced(&self) -> Vec<StreamRecord> {
        let streams = self.streams.values();
        let unknown = streams.filter(|stream| !self.archived.contains_key(&stream.id));
        unknown
            .map(|live| log::new_stream(live.id, live.agent, live.kind, live.name.clone()))
            .collect()
    }

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
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|meta| meta.len())
        .sum()
}
