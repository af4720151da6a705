//! Where the intervals lie: sealed segments, one for each run of the server.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::evidence::interval::Interval;
use scrinium_protocol::secret::Secret;
use scrinium_segment::cipher::Cipher;
use scrinium_segment::reader::{Next, SegmentReader};
use scrinium_segment::writer::SegmentWriter;
use scrinium_segment::{HEADER_LEN, Kind, segment_name, segment_numbers};
use serde::{Deserialize, Serialize};

use super::chain::Link;

/// The files of the intervals.
pub(super) struct Leaves {
    dir: PathBuf,
    key: Secret<32>,
    cipher: Cipher,
    writer: Option<SegmentWriter>,
    next_number: u64,
    last_tag: [u8; 16],
    /// Where the last interval ends.
    end: Option<Position>,
}

/// What the files hold.
pub(super) enum Leaf<'a> {
    /// An interval, with its encoded form.
    Interval(&'a [u8], Interval),
    /// What signs it.
    Link(Link),
}

/// Between two intervals: the file, and where in it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Position {
    number: u64,
    tag: [u8; 16],
    offset: u64,
    index: u64,
}

impl Leaves {
    pub(super) fn open(dir: &Path, key: Secret<32>, cipher: Cipher) -> Result<Self> {
        Ok(Self {
            dir: dir.to_owned(),
            key,
            cipher,
            writer: None,
            next_number: segment_numbers(dir, Kind::Evidence)?
                .last()
                .map_or(0, |last| last + 1),
            last_tag: [0; 16],
            end: None,
        })
    }

    /// Where the last interval ends that was read or appended.
    pub(super) fn end(&self) -> Option<Position> {
        self.end
    }

    /// Hands every interval to `each`, in order, with its encoded form.
    ///
    /// # Errors
    /// A file is missing, damaged, or not what was written; or `each` fails.
    pub(super) fn read_all(&mut self, each: impl FnMut(Leaf<'_>) -> Result<()>) -> Result<()> {
        self.read_from(None, each)
    }

    /// The same for those behind `from`.
    pub(super) fn read_from(
        &mut self,
        from: Option<Position>,
        mut each: impl FnMut(Leaf<'_>) -> Result<()>,
    ) -> Result<()> {
        let numbers = segment_numbers(&self.dir, Kind::Evidence)?;
        if let Some(from) = from {
            anyhow::ensure!(
                numbers.contains(&from.number),
                "a file of intervals is missing"
            );
        }
        let behind = |number: &u64| from.is_none_or(|from| *number >= from.number);
        for number in numbers.into_iter().filter(behind) {
            let path = self.dir.join(segment_name(Kind::Evidence, number));
            let reader = match SegmentReader::open(&path, &self.key, Kind::Evidence) {
                Ok(reader) => reader,
                // We died between creating the file and its first sync: no interval was in it.
                Err(_) if std::fs::metadata(&path)?.len() <= HEADER_LEN as u64 => continue,
                Err(error) => return Err(error.into()),
            };
            let mut cursor = reader.start();
            let follows = match from.filter(|from| from.number == number) {
                Some(from) => {
                    cursor.offset = from.offset;
                    cursor.index = from.index;
                    reader.tag() == from.tag
                }
                None => reader.previous() == self.last_tag,
            };
            anyhow::ensure!(
                follows,
                "{} does not follow the file before it",
                path.display()
            );
            self.last_tag = reader.tag();
            while let Next::Record(record) = reader.next(&mut cursor)? {
                let found = || path.display().to_string();
                if record.kind == RECORD_INTERVAL {
                    let interval = Interval::decode(&record.payload, "interval");
                    each(Leaf::Interval(
                        &record.payload,
                        interval.with_context(found)?,
                    ))?;
                } else {
                    let link = Link::decode(record.kind, &record.payload);
                    each(Leaf::Link(link.with_context(found)?))?;
                }
                self.end = Some(Position {
                    number,
                    tag: reader.tag(),
                    offset: cursor.offset,
                    index: cursor.index,
                });
            }
        }
        Ok(())
    }

    /// Appends an interval; durable when this returns.
    pub(super) fn append(&mut self, leaf: &[u8]) -> Result<()> {
        self.append_record(RECORD_INTERVAL, leaf)
    }

    /// Appends what stands beside the intervals; durable when this returns.
    pub(super) fn append_record(&mut self, kind: u8, payload: &[u8]) -> Result<()> {
        let mut writer = match self.writer.take() {
            Some(open) => open,
            None => {
                let number = self.next_number;
                self.next_number += 1;
                SegmentWriter::create(
                    &self.dir,
                    &self.key,
                    self.cipher,
                    Kind::Evidence,
                    number,
                    self.last_tag,
                )?
            }
        };
        self.last_tag = writer.tag();
        let place = writer.append(kind, &[payload])?;
        writer.sync()?;
        self.end = Some(Position {
            number: self.next_number - 1,
            tag: writer.tag(),
            offset: writer.len(),
            index: place.index + 1,
        });
        // On error the writer is dropped: the next append begins another file.
        self.writer = Some(writer);
        Ok(())
    }
}

const RECORD_INTERVAL: u8 = 1;
