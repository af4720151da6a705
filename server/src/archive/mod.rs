//! Where batches rest: first in the log as they came, later in sealed segments by stream.
//!
//! ```text
//! ingest ─▶ [log] 64 MiB ─▶ [sealer] ─▶ segment: blocks of one stream, ~1 MiB, zstd 3, filters
//!             │                            │
//!             └──────── [Archive] ─────────┴─▶ search, export, [verify]
//! ```
//!
//! Invariants:
//! 1. A batch is in exactly one place that readers see: the swap from log to segment is one step
//!    under the lock, after the segment is durable and catalogued.
//! 2. Bytes of a segment are never rewritten. Blocks keep the batches' own headers, so every root,
//!    chain and signature can be recomputed for as long as the segment lives.

pub(crate) mod block;
pub(crate) mod export;
pub(crate) mod log;
pub(crate) mod sealer;
pub(crate) mod verify;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context as _, Result};
use scrinium_protocol::batch::{BatchHeader, StreamPosition};
use scrinium_protocol::identity::{AgentId, StreamId, StreamKind};
use scrinium_protocol::secret::Secret;
use scrinium_segment::cipher::Cipher;
use scrinium_segment::reader::SegmentReader;
use scrinium_segment::{Kind, Place, segment_name, segment_numbers};

use self::block::StoredBatch;
use self::log::Log;
use crate::catalogue::Catalogue;
use crate::catalogue::records::{BlockRecord, SegmentRecord, StreamRecord};
use crate::volume::{ARCHIVE_DIR, LOG_DIR, Volume};

/// The archive as every reader sees it.
pub(crate) struct Archive {
    dir: PathBuf,
    log_key: Secret<32>,
    archive_key: Secret<32>,
    /// What is written from now on is sealed with.
    cipher: Cipher,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    streams: BTreeMap<StreamId, StreamRecord>,
    /// The streams as the last segment left them: what the catalogue says of them.
    archived: BTreeMap<StreamId, StreamRecord>,
    segments: Vec<Arc<SegmentRecord>>,
    logs: Vec<Arc<Log>>,
}

/// Consecutive batches of one stream, wherever they lie.
#[derive(Clone)]
pub(crate) struct Extent {
    pub(crate) stream: StreamId,
    /// Collection times of its entries, Unix µs.
    pub(crate) times_us: (u64, u64),
    pub(crate) sequences: (u64, u64),
    pub(crate) entries: u64,
    source: Source,
}

#[derive(Clone)]
enum Source {
    Log {
        log: Arc<Log>,
        place: Place,
    },
    Segment {
        segment: Arc<SegmentRecord>,
        block: usize,
    },
}

impl Archive {
    /// Opens the archive of a volume and reads back the logs that were not yet sealed.
    pub(crate) fn open(volume: &Volume, catalogue: &Catalogue, cipher: Cipher) -> Result<Self> {
        let archive = Self {
            dir: volume.dir().to_owned(),
            log_key: volume.key("log"),
            archive_key: volume.key("archive"),
            cipher,
            state: RwLock::default(),
        };
        let mut state = State::default();
        for stream in catalogue.load::<StreamRecord>()? {
            state.streams.insert(stream.id, stream);
        }
        state.archived = state.streams.clone();
        state.segments = catalogue
            .load::<SegmentRecord>()?
            .into_iter()
            .map(Arc::new)
            .collect();
        state.segments.sort_by_key(|segment| segment.number);
        let archived = state.segments.last().map_or(0, |segment| segment.log);
        let numbers = segment_numbers(&archive.log_dir(), Kind::Log)?;
        let path_of = |number: u64| archive.log_dir().join(segment_name(Kind::Log, number));
        let limits: BTreeMap<u64, u64> = numbers
            .iter()
            .filter_map(|&number| Log::limit_of_previous(&path_of(number), &archive.log_key))
            .collect();
        for number in numbers {
            let path = path_of(number);
            if number <= archived {
                // Sealed, but we died before its removal.
                scrinium_segment::durable::remove(&path)?;
                continue;
            }
            if let Some(log) = Log::recover(
                &path,
                &archive.log_key,
                limits.get(&number).copied(),
                &mut state.streams,
            )? {
                state.logs.push(Arc::new(log));
            }
        }
        *archive
            .state
            .write()
            .unwrap_or_else(PoisonError::into_inner) = state;
        Ok(archive)
    }

    /// The number for the next log.
    pub(crate) fn next_log_number(&self) -> Result<u64> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let archived = state.segments.last().map_or(0, |segment| segment.log);
        let present = segment_numbers(&self.log_dir(), Kind::Log)?
            .last()
            .copied()
            .unwrap_or(0);
        Ok(archived.max(present) + 1)
    }

    pub(crate) fn log_dir(&self) -> PathBuf {
        self.dir.join(LOG_DIR)
    }

    pub(crate) fn archive_dir(&self) -> PathBuf {
        self.dir.join(ARCHIVE_DIR)
    }

    pub(crate) fn log_key(&self) -> &Secret<32> {
        &self.log_key
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

    /// Puts a sealed segment in the place of the log it was made of.
    pub(crate) fn replace_log(
        &self,
        sealed: Option<(SegmentRecord, BTreeMap<StreamId, StreamRecord>)>,
        log: u64,
    ) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.logs.retain(|held| held.number() != log);
        if let Some((segment, streams)) = sealed {
            state.segments.push(Arc::new(segment));
            state.archived.extend(streams);
        }
    }

    /// Streams that no segment knows yet, as they were introduced.
    pub(crate) fn introduced(&self) -> Vec<StreamRecord> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let unknown = state
            .streams
            .values()
            .filter(|stream| !state.archived.contains_key(&stream.id));
        unknown
            .map(|live| log::new_stream(live.id, live.agent, live.kind, live.name.clone()))
            .collect()
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
        (state.segments.clone(), state.logs.clone())
    }

    /// Every extent, in the order of the archive: within a stream, in the order of its entries.
    pub(crate) fn extents(&self) -> Vec<Extent> {
        let (segments, logs) = self.parts();
        let mut extents = Vec::new();
        for segment in segments {
            for (block, record) in segment.blocks.iter().enumerate() {
                extents.push(Extent {
                    stream: record.stream,
                    times_us: record.times_us,
                    sequences: record.sequences,
                    entries: record.entries,
                    source: Source::Segment {
                        segment: segment.clone(),
                        block,
                    },
                });
            }
        }
        for log in logs {
            for batch in log.batches() {
                extents.push(Extent {
                    stream: batch.stream,
                    times_us: batch.times_us,
                    sequences: batch.sequences,
                    entries: batch.sequences.1 - batch.sequences.0,
                    source: Source::Log {
                        log: log.clone(),
                        place: batch.place,
                    },
                });
            }
        }
        extents
    }

    /// Reads the batches of an extent.
    pub(crate) fn read(&self, extent: &Extent) -> Result<Vec<StoredBatch>> {
        match &extent.source {
            Source::Log { log, place } => Ok(vec![log.read(*place)?]),
            Source::Segment { segment, block } => {
                let reader = self.open_segment(segment)?;
                let record = segment
                    .blocks
                    .get(*block)
                    .context("a block of the catalogue")?;
                self.read_block(&reader, record)
            }
        }
    }

    /// Whether another batch is archived in the place of this one: the same sequence of the same epoch,
    /// and other entries.
    pub(crate) fn contradicts(&self, header: &BatchHeader) -> Result<bool> {
        let first = header.first.0;
        let covers = |extent: &&Extent| {
            extent.stream == header.stream
                && extent.sequences.0 <= first
                && first < extent.sequences.1
        };
        for extent in self.extents().iter().filter(covers) {
            for batch in self.read(extent)? {
                let same_place =
                    batch.header.epoch == header.epoch && batch.header.first == header.first;
                if same_place {
                    return Ok(batch.header.root != header.root);
                }
            }
        }
        Ok(false)
    }

    /// Reads one block of an open segment.
    pub(crate) fn read_block(
        &self,
        reader: &SegmentReader,
        block: &BlockRecord,
    ) -> Result<Vec<StoredBatch>> {
        let record = reader.read(place_of(block.place))?;
        let batches = block::decode(&record.payload, block.raw_len)?;
        Ok(batches)
    }

    pub(crate) fn open_segment(&self, segment: &SegmentRecord) -> Result<SegmentReader> {
        let reader = SegmentReader::open(
            &self.segment_path(segment.number),
            &self.archive_key,
            Kind::Archive,
        )?;
        anyhow::ensure!(
            reader.tag() == segment.tag,
            "segment {:016x} is not the one that was sealed",
            segment.number
        );
        Ok(reader)
    }

    pub(crate) fn segment_path(&self, number: u64) -> PathBuf {
        self.archive_dir().join(segment_name(Kind::Archive, number))
    }
}

impl Extent {
    /// The segment and block of an archived extent; logs have no filters.
    pub(crate) fn block(&self) -> Option<(&Arc<SegmentRecord>, usize)> {
        match &self.source {
            Source::Segment { segment, block } => Some((segment, *block)),
            Source::Log { .. } => None,
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

pub(crate) fn place_of((offset, len, index): (u64, u32, u64)) -> Place {
    Place { offset, len, index }
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
