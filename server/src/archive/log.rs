//! The log: batches in the order they were committed, as they came, until they are sealed.
//!
//! ```text
//! record 1 (batch):  received, Unix µs (8) | agent (16) | encoded batch
//! record 2 (stream): stream (16) | agent (16) | kind (1) | name
//! record 3 (limit):  number of the log before (8) | its committed bytes (8)
//! record 4 (mark):   number of a file of acknowledgements (8) | records of it that are durable (8)
//! ```
//!
//! A stream's record precedes its first batch; both become durable by the same sync. A log begun
//! after a failed write names, in record 3, how much of the one before was committed: what lies
//! behind that was never acked and is sent again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context as _, Result};
use scrinium_protocol::batch::{BatchBuilder, BatchHeader, Relation, SealedBatch, StreamPosition};
use scrinium_protocol::codec::{Codec as _, Reader};
use scrinium_protocol::compress::decompress;
use scrinium_protocol::entry::Entries;
use scrinium_protocol::identity::{AgentId, Epoch, StreamId, StreamKind};
use scrinium_protocol::secret::Secret;
use scrinium_segment::cipher::Cipher;
use scrinium_segment::reader::{Next, SegmentReader};
use scrinium_segment::{Error, HEADER_LEN, Kind, Place};
use tracing::{error, warn};

use super::block::{StoredBatch, decode_log, is_of_the_future};
use crate::catalogue::records::StreamRecord;
use crate::index::words::Words;

/// A log that readers may read, active or waiting to be sealed.
pub(crate) struct Log {
    reader: SegmentReader,
    batches: RwLock<Vec<LogBatch>>,
    /// Records that could not be read back at the start, in words.
    damage: Vec<String>,
    /// How far it could be read back at the start.
    pub(super) found: Found,
}

/// How far a log could be read back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    /// Bytes before the end record, or before what is torn.
    pub(super) bytes: u64,
    /// Whether the end record follows.
    pub(super) finished: bool,
    /// The last mark: number of a file of acknowledgements, records of it.
    pub(super) mark: Option<(u64, u64)>,
}

/// What lies where in a log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogBatch {
    pub(crate) place: Place,
    pub(crate) stream: StreamId,
    pub(crate) epoch: Epoch,
    pub(crate) sequences: (u64, u64),
    /// All times by which its entries are ordered lie between these, both included, Unix µs.
    pub(crate) times_us: (u64, u64),
    pub(crate) received_us: u64,
    pub(crate) words: Words,
}

impl Log {
    /// Opens a log whose header is on the disk.
    pub(crate) fn open(path: &Path, key: &Secret<32>) -> Result<Self> {
        Ok(Self {
            reader: SegmentReader::open(path, key, Kind::Log)?,
            batches: RwLock::default(),
            damage: Vec::new(),
            found: Found::default(),
        })
    }

    /// Reads a log back after a stop or a crash, moving `streams` to where it leaves them. A torn
    /// tail was never acked: it is left out and said. `None` for a log that never got its header.
    pub(crate) fn recover(
        path: &Path,
        key: &Secret<32>,
        committed: Option<u64>,
        streams: &mut BTreeMap<StreamId, StreamRecord>,
    ) -> Result<Option<Self>> {
        let mut log = match Self::open(path, key) {
            Ok(log) => log,
            Err(_) if std::fs::metadata(path)?.len() <= HEADER_LEN as u64 => {
                // We died between creating the file and its first sync: nothing in it was acked.
                scrinium_segment::durable::remove(path)?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let mut cursor = log.reader.start();
        while committed.is_none_or(|committed| cursor.offset < committed) {
            let at = cursor;
            let record = match log.reader.next(&mut cursor) {
                Ok(Next::Record(record)) => record,
                Ok(Next::End) => {
                    log.found.finished = true;
                    cursor = at;
                    break;
                }
                Err(error @ Error::Record { .. }) => {
                    // What was acked here is gone; verify names it, everything else is served.
                    error!(%error, "a record of the log is damaged and left out");
                    log.damage.push(error.to_string());
                    if !log.reader.skip(&mut cursor, at)? {
                        break;
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
                Ok(Next::Torn { offset, bytes }) => {
                    if bytes > 0 {
                        warn!(log = %path.display(), offset, bytes, "the tail of a log was not complete and is left out");
                    }
                    break;
                }
            };
            match record.kind {
                RECORD_BATCH => {
                    let (received_us, _, batch) = decode_log(&record.payload)?;
                    let Some(stream) = streams.get_mut(&batch.header.stream) else {
                        log.damage.push(format!(
                            "the introduction of stream {} is missing",
                            batch.header.stream
                        ));
                        continue;
                    };
                    let follows = starts_anew(stream, &batch)
                        || batch.header.relation_to(&stream.position) == Relation::Follows;
                    if !follows {
                        // The batch before it was damaged: the chain goes on from here.
                        let finding = format!(
                            "entries before sequence {} of stream {} are missing",
                            batch.header.first.0, stream.name
                        );
                        log.damage.push(finding);
                    }
                    let inside = Inside::kept(&batch);
                    apply(stream, &batch.header, inside.bytes, received_us);
                    log.push(LogBatch::new(
                        &batch.header,
                        record.place,
                        received_us,
                        inside,
                    ));
                }
                RECORD_STREAM => {
                    let stream = decode_stream(&record.payload)?;
                    streams.entry(stream.id).or_insert(stream);
                }
                RECORD_LIMIT => {}
                RECORD_MARK => {
                    let mut r = Reader::new(&record.payload);
                    let mark = (r.u64("file of acknowledgements")?, r.u64("records")?);
                    log.found.mark = Some(mark);
                }
                unknown => anyhow::bail!(
                    "{}: record kind {unknown} is of a newer version",
                    path.display()
                ),
            }
        }
        log.found.bytes = cursor.offset;
        Ok(Some(log))
    }

    /// What it is sealed with, and its bytes as they were when it was opened.
    pub(crate) fn cipher(&self) -> (Cipher, u64) {
        (self.reader.cipher(), self.reader.len())
    }

    /// What could not be read back at the start.
    pub(crate) fn damage(&self) -> &[String] {
        &self.damage
    }

    /// What the log at `path` says of the one before it: its number and committed bytes.
    pub(crate) fn limit_of_previous(path: &Path, key: &Secret<32>) -> Option<(u64, u64)> {
        let reader = SegmentReader::open(path, key, Kind::Log).ok()?;
        let Ok(Next::Record(record)) = reader.next(&mut reader.start()) else {
            return None;
        };
        if record.kind != RECORD_LIMIT {
            return None;
        }
        let mut r = Reader::new(&record.payload);
        Some((r.u64("log").ok()?, r.u64("bytes").ok()?))
    }

    pub(crate) fn number(&self) -> u64 {
        self.reader.number()
    }

    /// Shows a committed batch to readers.
    pub(crate) fn push(&self, batch: LogBatch) {
        let mut batches = self.batches.write().unwrap_or_else(PoisonError::into_inner);
        batches.push(batch);
    }

    pub(crate) fn batches(&self) -> Vec<LogBatch> {
        self.batches
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Reads a batch for whoever looks at its entries. The log's key vouches for it: it was compared with its root before
    /// it came here, and of entries of a few bytes the root takes longer than all else. `verify` and the sealer compare
    /// it again.
    pub(crate) fn read(&self, place: Place) -> Result<StoredBatch> {
        let record = self.reader.read(place)?;
        let (received_us, agent, batch) = decode_log(&record.payload)?;
        let mut raw = Vec::new();
        decompress(&batch.body, batch.header.raw_len, &mut raw)?;
        let entries = Entries::parse(raw, &batch.header)?;
        Ok(StoredBatch {
            received_us,
            agent,
            header: batch.header,
            entries,
        })
    }
}

impl LogBatch {
    pub(crate) fn new(
        header: &BatchHeader,
        place: Place,
        received_us: u64,
        inside: Inside,
    ) -> Self {
        let Inside { last_us, words, .. } = inside;
        let first_us = header.time_first_us;
        // Times do not go back within a batch. What is claimed to be of the future is ordered by its receipt.
        let times_us = if is_of_the_future(last_us, received_us) {
            (first_us.min(received_us), last_us)
        } else {
            (first_us, last_us)
        };
        Self {
            place,
            stream: header.stream,
            epoch: header.epoch,
            sequences: (header.first.0, header.next().0),
            times_us,
            received_us,
            words,
        }
    }
}

/// What the entries of a batch say that its header does not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inside {
    /// The time of the last one, Unix µs: a backlog has batches that span hours.
    pub(crate) last_us: u64,
    /// Bytes of all of them, as they were collected.
    pub(crate) bytes: u64,
    pub(crate) words: Words,
}

impl Inside {
    pub(crate) fn of(entries: &Entries, header: &BatchHeader) -> Self {
        Self {
            last_us: entries.time_last_us().unwrap_or(header.time_first_us),
            bytes: entries.bytes().len() as u64,
            words: Words::of(entries),
        }
    }

    /// Of a batch of our own that is about to be sealed: none of its entries is UTF-16.
    pub(crate) fn built(builder: &BatchBuilder) -> Self {
        Self {
            last_us: builder.time_last_us(),
            bytes: builder.bytes().len() as u64,
            words: Words::of_bytes(builder.bytes(), builder.len()),
        }
    }

    /// Of a batch that was verified when it came. One that cannot be read any more holds nothing that could be found.
    fn kept(batch: &SealedBatch) -> Self {
        let header = &batch.header;
        let mut raw = Vec::new();
        let read = decompress(&batch.body, header.raw_len, &mut raw).ok();
        let entries = read.and_then(|()| Entries::parse(raw, header).ok());
        entries.map_or(
            Self {
                last_us: header.time_first_us,
                bytes: 0,
                words: Words::ANY,
            },
            |entries| Self::of(&entries, header),
        )
    }
}

/// Whether a batch opens a new epoch of its stream properly.
pub(crate) fn starts_anew(stream: &StreamRecord, batch: &SealedBatch) -> bool {
    let start = StreamPosition::start(stream.agent, stream.id, batch.header.epoch);
    batch.header.epoch != stream.position.epoch
        && batch.header.relation_to(&start) == Relation::Follows
}

/// Moves a stream over a batch that was committed, with so many bytes of entries in it.
pub(crate) fn apply(stream: &mut StreamRecord, header: &BatchHeader, bytes: u64, received_us: u64) {
    stream.position = header.position_after();
    stream.entries += u64::from(header.count);
    stream.bytes += bytes;
    stream.last_us = stream.last_us.max(received_us);
}

/// A stream that has no entry yet.
pub(crate) fn new_stream(
    id: StreamId,
    agent: AgentId,
    kind: StreamKind,
    name: impl Into<Arc<str>>,
) -> StreamRecord {
    StreamRecord {
        id,
        agent,
        kind,
        name: name.into(),
        position: StreamPosition::start(agent, id, Epoch::default()),
        entries: 0,
        bytes: 0,
        last_us: 0,
    }
}

/// The record that introduces a stream.
pub(crate) fn encode_stream(stream: &StreamRecord) -> Vec<u8> {
    let mut out = stream.id.encoded();
    stream.agent.encode(&mut out);
    out.push(stream.kind.to_byte());
    out.extend_from_slice(stream.name.as_bytes());
    out
}

pub(super) fn decode_stream(payload: &[u8]) -> Result<StreamRecord> {
    let mut r = Reader::new(payload);
    let id = StreamId::read(&mut r)?;
    let agent = AgentId::read(&mut r)?;
    let kind = StreamKind::from_byte(r.u8("stream kind")?)?;
    let name = String::from_utf8(r.rest().to_vec()).context("a stream's name in the log")?;
    Ok(new_stream(id, agent, kind, name))
}

pub(crate) const RECORD_BATCH: u8 = 1;
pub(crate) const RECORD_STREAM: u8 = 2;
pub(crate) const RECORD_LIMIT: u8 = 3;
pub(crate) const RECORD_MARK: u8 = 4;
