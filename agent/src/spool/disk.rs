//! The segments of the spool.
//!
//! ```text
//! record 1 (batch): length of the stream's name (2) | name | encoded batch
//! ```
//!
//! A new segment begins at every start and after every error; one is removed when nothing in it
//! waits any more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use scrinium_protocol::batch::{BatchHeader, SealedBatch};
use scrinium_protocol::codec::{Codec as _, Reader, put_bytes16};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::message::STREAM_NAME_LEN_MAX;
use scrinium_segment::reader::{Next, SegmentReader};
use scrinium_segment::writer::SegmentWriter;
use scrinium_segment::{Error, Kind, durable, segment_name};
use tracing::{error, warn};

/// Where a batch lies on the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskPlace {
    pub(crate) segment: u64,
    place: scrinium_segment::Place,
}

/// The segments in a directory.
pub(crate) struct Disk {
    dir: PathBuf,
    key: Secret<32>,
    bytes_max: u64,
    /// Complete segments, and the one being written, with their lengths.
    segments: BTreeMap<u64, u64>,
    writer: Option<(u64, SegmentWriter)>,
    next_number: u64,
    last_tag: [u8; 16],
}

type Found = Vec<(String, BatchHeader, DiskPlace)>;

impl Disk {
    /// Opens the directory; returns every batch in it, oldest first.
    pub(crate) fn open(dir: &Path, key: &Secret<32>, bytes_max: u64) -> Result<(Self, Found)> {
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
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
            let name = entry?.file_name();
            let hex = name.to_str().and_then(|name| name.strip_suffix(".spool"));
            numbers.extend(hex.and_then(|hex| u64::from_str_radix(hex, 16).ok()));
        }
        numbers.sort_unstable();
        let mut found = Vec::new();
        for number in numbers {
            disk.next_number = number + 1;
            match disk.read_segment(number, &mut found) {
                Ok(len) => {
                    disk.segments.insert(number, len);
                }
                Err(error) => {
                    // Kept out of the queue; what it held is read again from the source.
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
        while let Next::Record(record) = reader.next(&mut cursor)? {
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
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.bytes() + bytes <= self.bytes_max
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.segments.values().sum()
    }

    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Appends a batch; durable after [`Disk::sync`].
    pub(crate) fn append(&mut self, name: &str, encoded: &[u8]) -> Result<DiskPlace> {
        let (number, mut writer) = match self.writer.take() {
            Some(open) => open,
            None => self.create()?,
        };
        let mut head = Vec::with_capacity(2 + name.len());
        put_bytes16(&mut head, name.as_bytes());
        // On error the writer is dropped: the next append begins a new segment.
        let place = writer.append(RECORD_BATCH, &[&head, encoded])?;
        self.segments.insert(number, writer.len());
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
        let writer =
            SegmentWriter::create(&self.dir, &self.key, Kind::Spool, number, self.last_tag)?;
        self.last_tag = writer.tag();
        Ok((number, writer))
    }

    pub(crate) fn sync(&mut self) -> Result<()> {
        if let Some((number, mut writer)) = self.writer.take() {
            writer.sync()?;
            self.writer = Some((number, writer));
        }
        Ok(())
    }

    /// Reads one batch back.
    pub(crate) fn read(&self, place: DiskPlace) -> Result<Vec<u8>> {
        let reader = SegmentReader::open(&self.path(place.segment), &self.key, Kind::Spool)?;
        let record = reader.read(place.place)?;
        let mut r = Reader::new(&record.payload);
        r.text16(STREAM_NAME_LEN_MAX, "stream name")?;
        Ok(r.rest().to_vec())
    }

    /// Removes the segments before `oldest`; all of them when nothing waits on the disk.
    pub(crate) fn remove_before(&mut self, oldest: Option<u64>) -> Result<()> {
        while let Some((&number, _)) = self.segments.first_key_value() {
            if oldest.is_some_and(|oldest| number >= oldest) {
                break;
            }
            if self
                .writer
                .as_ref()
                .is_some_and(|(open, _)| *open == number)
            {
                self.writer = None;
            }
            durable::remove(&self.path(number))?;
            self.segments.remove(&number);
        }
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(segment_name(Kind::Spool, number))
    }
}

fn parse(payload: &[u8]) -> Option<(String, SealedBatch)> {
    let mut r = Reader::new(payload);
    let name = r.text16(STREAM_NAME_LEN_MAX, "stream name").ok()?;
    Some((name, SealedBatch::decode(r.rest(), "batch").ok()?))
}

const RECORD_BATCH: u8 = 1;
/// A segment is complete at this length.
const SEGMENT_BYTES_MAX: u64 = 4 << 20;
