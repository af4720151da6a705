//! The segments of the spool.
//!
//! ```text
//! record 1 (batch): kind of the stream (1) | length of its name (2) | name | encoded batch
//! ```
//!
//! A new segment begins at every start and after every error; one is removed when nothing in it
//! waits any more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use scrinium_protocol::batch::{BatchHeader, SealedBatch};
use scrinium_protocol::codec::{Codec as _, Reader, put_bytes16};
use scrinium_protocol::error::InvalidMessage;
use scrinium_protocol::identity::{StreamKind, StreamName};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::message::STREAM_NAME_LEN_MAX;
use scrinium_segment::cipher::Cipher;
use scrinium_segment::reader::{Next, SegmentReader};
use scrinium_segment::writer::SegmentWriter;
use scrinium_segment::{Error, Kind, durable, fault, segment_name, segment_numbers};
use tracing::{error, warn};

/// Where a batch lies on the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct DiskPlace {
    segment: u64,
    place: scrinium_segment::Place,
}

/// The segments in a directory.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    key: Secret<32>,
    bytes_max: u64,
    /// Complete segments, and the one being written.
    segments: BTreeMap<u64, Segment>,
    writer: Option<(u64, SegmentWriter)>,
    next_number: u64,
    last_tag: [u8; 16],
}

#[derive(Debug, Default)]
struct Segment {
    len: u64,
    /// Batches in it that wait.
    held: u64,
}

type Found = Vec<(StreamName, BatchHeader, DiskPlace)>;

impl Disk {
    /// Opens the directory; returns every batch in it, oldest first.
    pub(super) fn open(dir: &Path, key: &Secret<32>, bytes_max: u64) -> Result<(Self, Found)> {
        durable::create_dir(dir)?;
        let mut disk = Self {
            dir: dir.to_owned(),
            key: key.clone(),
            bytes_max,
            segments: BTreeMap::new(),
            writer: None,
            next_number: 1,
            last_tag: [0; 16],
        };
        let numbers = segment_numbers(dir, Kind::Spool)
            .with_context(|| format!("listing {}", dir.display()))?;
        let mut found = Vec::new();
        for number in numbers {
            disk.next_number = number + 1;
            match disk.read_segment(number, &mut found) {
                Ok(len) => {
                    disk.segments.insert(number, Segment { len, held: 0 });
                }
                Err(error) => {
                    // Kept out of the queue; what it held is read again, or becomes gap entries.
                    error!(segment = number, %error, "a segment of the spool is damaged");
                    durable::rename(
                        &disk.path(number),
                        &disk.path(number).with_extension("damaged"),
                    )?;
                    found.retain(|(_, _, place): &(_, _, DiskPlace)| place.segment != number);
                }
            }
        }
        Ok((disk, found))
    }

    fn read_segment(&mut self, number: u64, found: &mut Found) -> Result<u64, Error> {
        let reader = SegmentReader::open(&self.path(number), &self.key, Kind::Spool)?;
        if reader.previous() != [0; 16]
            && reader.previous() != self.last_tag
            && self.last_tag != [0; 16]
        {
            warn!(
                segment = number,
                "a segment of the spool does not follow the one before it"
            );
        }
        self.last_tag = reader.tag();
        let mut cursor = reader.start();
        loop {
            let record = match reader.next(&mut cursor)? {
                Next::Record(record) => record,
                Next::End | Next::Torn { bytes: 0, .. } => break,
                Next::Torn { .. } => {
                    warn!(
                        segment = number,
                        "the end of a segment of the spool is cut or damaged; what it held is read again"
                    );
                    break;
                }
            };
            let parsed = parse(&record.payload);
            let Some((name, batch)) = parsed else {
                return Err(Error::Record {
                    path: self.path(number),
                    offset: record.place.offset,
                    index: record.place.index,
                });
            };
            let place = DiskPlace {
                segment: number,
                place: record.place,
            };
            found.push((name, batch.header, place));
        }
        Ok(reader.len())
    }

    /// Whether `bytes` more stay below the limit.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.bytes() + bytes <= self.bytes_max
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.len).sum()
    }

    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    pub(super) fn set_bytes_max(&mut self, bytes_max: u64) {
        self.bytes_max = bytes_max;
    }

    /// A batch waits in its segment.
    pub(super) fn hold(&mut self, place: DiskPlace) {
        self.segments.entry(place.segment).or_default().held += 1;
    }

    /// A batch waits no more; see [`Disk::remove_unheld`].
    pub(super) fn release(&mut self, place: DiskPlace) {
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.held = segment.held.saturating_sub(1);
        }
    }

    /// Appends a batch; durable after [`Disk::sync`].
    pub(super) fn append(&mut self, name: &StreamName, encoded: &[u8]) -> Result<DiskPlace> {
        let (number, mut writer) = match self.writer.take() {
            Some(open) => open,
            None => self.create()?,
        };
        let mut head = vec![name.kind.to_byte()];
        put_bytes16(&mut head, name.name.as_bytes());
        // On error the writer is dropped: the next append begins a new segment.
        let place = writer.append(RECORD_BATCH, &[&head, encoded])?;
        self.segments.entry(number).or_default().len = writer.len();
        if writer.len() >= SEGMENT_BYTES_MAX {
            writer.finish()?;
        } else {
            self.writer = Some((number, writer));
        }
        Ok(DiskPlace {
            segment: number,
            place,
        })
    }

    fn create(&mut self) -> Result<(u64, SegmentWriter)> {
        let number = self.next_number;
        self.next_number += 1;
        let writer = SegmentWriter::create(
            &self.dir,
            &self.key,
            Cipher::default(),
            Kind::Spool,
            number,
            self.last_tag,
        )?;
        self.last_tag = writer.tag();
        Ok((number, writer))
    }

    pub(super) fn sync(&mut self) -> Result<()> {
        if let Some((number, mut writer)) = self.writer.take() {
            writer.sync()?;
            self.writer = Some((number, writer));
        }
        Ok(())
    }

    /// Whether the disk takes anything at all.
    pub(super) fn probe(&self) -> Result<()> {
        let path = self.dir.join("probe");
        durable::write_file(&path, &[0; PROBE_LEN])?;
        Ok(durable::remove(&path)?)
    }

    /// Reads one batch back.
    pub(super) fn read(&self, place: DiskPlace) -> Result<Vec<u8>> {
        let reader = SegmentReader::open(&self.path(place.segment), &self.key, Kind::Spool)?;
        let record = reader.read(place.place)?;
        let mut r = Reader::new(&record.payload);
        read_name(&mut r)?;
        Ok(r.rest().to_vec())
    }

    /// Removes the oldest segments in which nothing waits. Later ones stay until it is their turn, so
    /// that a missing segment is noticed.
    pub(super) fn remove_unheld(&mut self) -> Result<()> {
        while let Some((&number, segment)) = self.segments.first_key_value() {
            if segment.held > 0 {
                break;
            }
            if self
                .writer
                .as_ref()
                .is_some_and(|(open, _)| *open == number)
            {
                self.writer = None;
            }
            fault::point("agent: segment about to go");
            durable::remove(&self.path(number))?;
            fault::point("agent: segment removed");
            self.segments.remove(&number);
        }
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(segment_name(Kind::Spool, number))
    }
}

fn read_name(r: &mut Reader<'_>) -> Result<StreamName, InvalidMessage> {
    Ok(StreamName {
        kind: StreamKind::from_byte(r.u8("stream kind")?)?,
        name: r.text16(STREAM_NAME_LEN_MAX, "stream name")?,
    })
}

fn parse(payload: &[u8]) -> Option<(StreamName, SealedBatch)> {
    let mut r = Reader::new(payload);
    let name = read_name(&mut r).ok()?;
    Some((name, SealedBatch::decode(r.rest(), "batch").ok()?))
}

/// More than a batch.
const PROBE_LEN: usize = 512 << 10;
const RECORD_BATCH: u8 = 1;
/// A segment is complete at this length.
const SEGMENT_BYTES_MAX: u64 = 4 << 20;
