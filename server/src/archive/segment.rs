//! One sealed segment: blocks of the streams of one group, their filters, and the index of both.
//!
//! ```text
//! segment: block records (1) … | filter records (2) … | index record (3) | the same once more | end
//! index:   zstd( version 1 (1) | tenant | class, each behind its length (2) | day (4)
//!          | compacted (1) | first and last log (8, 8)
//!          | streams (4) | per stream: id (16) | agent (16) | kind (1) | name behind its length (2)
//!          | blocks (4) | per block: see [`Block`] )
//! ```
//!
//! Blocks and filters are sealed with the key of their stream and day, the index with the volume's: whoever
//! has no key of a day still sees what was there, and that its bytes are the ones that were sealed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use scrinium_protocol::codec::{Codec as _, Reader, put_bytes16};
use scrinium_protocol::compress::{Compressor, decompress};
use scrinium_protocol::identity::{AgentId, Epoch, Head, StreamId, StreamKind};
use scrinium_protocol::kdf::sha256;
use scrinium_protocol::secret::Secret;
use scrinium_segment::cipher::Cipher;
use scrinium_segment::reader::{Cursor, Next, SegmentReader};
use scrinium_segment::writer::SegmentWriter;
use scrinium_segment::{Kind, Place};

use super::block::{self, StoredBatch, order_us};
use super::keys::Keyring;
use crate::catalogue::records::{Group, SegmentRecord};
use crate::clock::Day;
use crate::index::filter::{FilterBuilder, GAP_WORD};
use crate::index::lines::{Line, for_each_line};
use crate::index::query::Query;

/// What lies where in a segment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Index {
    pub(crate) group: Group,
    pub(crate) compacted: bool,
    /// The logs it was made of, first and last.
    pub(crate) logs: (u64, u64),
    /// The streams it has blocks of.
    pub(crate) streams: BTreeMap<StreamId, Introduced>,
    pub(crate) blocks: Vec<Block>,
}

/// Whose a stream is, and what people call it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Introduced {
    pub(crate) agent: AgentId,
    pub(crate) kind: StreamKind,
    pub(crate) name: Arc<str>,
}

/// One block: consecutive batches of one stream and epoch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Block {
    pub(crate) stream: StreamId,
    /// Its first batch among all: the log it came in, and its number there.
    pub(crate) order: (u64, u32),
    pub(crate) epoch: Epoch,
    /// Sequences of its entries, end excluded.
    pub(crate) sequences: (u64, u64),
    /// Bytes of its entries.
    pub(crate) bytes: u64,
    /// Collection times of its entries, Unix µs; it begins before any of them is ordered
    /// ([`block::order_us`]), except in blocks of version 0.1.0.
    pub(crate) times_us: (u64, u64),
    /// The chain head it leaves.
    pub(crate) head: Head,
    pub(crate) raw_len: u32,
    pub(crate) place: Place,
    pub(crate) filter: Place,
    /// SHA-256 of both records as they lie on the disk.
    pub(crate) digest: [u8; 32],
}

impl Block {
    pub(crate) fn entries(&self) -> u64 {
        self.sequences.1 - self.sequences.0
    }

    fn encode(&self, out: &mut Vec<u8>) {
        self.stream.encode(out);
        out.extend_from_slice(&self.order.0.to_be_bytes());
        out.extend_from_slice(&self.order.1.to_be_bytes());
        self.epoch.encode(out);
        let (sequences, times) = (self.sequences, self.times_us);
        for number in [sequences.0, sequences.1, self.bytes, times.0, times.1] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        self.head.encode(out);
        out.extend_from_slice(&self.raw_len.to_be_bytes());
        for place in [self.place, self.filter] {
            out.extend_from_slice(&place.offset.to_be_bytes());
            out.extend_from_slice(&place.len.to_be_bytes());
            out.extend_from_slice(&place.index.to_be_bytes());
        }
        out.extend_from_slice(&self.digest);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self> {
        let block = Self {
            stream: StreamId::read(r)?,
            order: (r.u64("log")?, r.u32("batch")?),
            epoch: Epoch::read(r)?,
            sequences: (r.u64("first sequence")?, r.u64("next sequence")?),
            bytes: r.u64("bytes")?,
            times_us: (r.u64("first time")?, r.u64("last time")?),
            head: Head::read(r)?,
            raw_len: r.u32("raw length")?,
            place: read_place(r)?,
            filter: read_place(r)?,
            digest: r.array("digest")?,
        };
        ensure!(
            block.sequences.0 < block.sequences.1,
            "a block without entries"
        );
        Ok(block)
    }
}

fn read_place(r: &mut Reader<'_>) -> Result<Place> {
    Ok(Place {
        offset: r.u64("offset")?,
        len: r.u32("length")?,
        index: r.u64("record")?,
    })
}

impl Index {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![INDEX_VERSION];
        put_bytes16(&mut out, self.group.tenant.as_bytes());
        put_bytes16(&mut out, self.group.class.as_bytes());
        out.extend_from_slice(&self.group.day.0.to_be_bytes());
        out.push(u8::from(self.compacted));
        out.extend_from_slice(&self.logs.0.to_be_bytes());
        out.extend_from_slice(&self.logs.1.to_be_bytes());
        put_count(&mut out, self.streams.len());
        for (id, stream) in &self.streams {
            id.encode(&mut out);
            stream.agent.encode(&mut out);
            out.push(stream.kind.to_byte());
            put_bytes16(&mut out, stream.name.as_bytes());
        }
        put_count(&mut out, self.blocks.len());
        for block in &self.blocks {
            block.encode(&mut out);
        }
        out
    }

    /// Reads the index of an open segment, or its second copy when the first is damaged.
    pub(crate) fn read(reader: &SegmentReader, place: Place) -> Result<Self> {
        Self::read_copy(reader, place).or_else(|_| Self::read_copy(reader, next_place(place)))
    }

    /// What the catalogue keeps of the segment it is the index of.
    pub(crate) fn record(&self, reader: &SegmentReader, place: Place) -> Result<SegmentRecord> {
        let times_us = self.blocks.iter().fold((u64::MAX, 0), |times, block| {
            (times.0.min(block.times_us.0), times.1.max(block.times_us.1))
        });
        ensure!(!self.blocks.is_empty(), "a segment without entries");
        Ok(SegmentRecord {
            number: reader.number(),
            group: self.group.clone(),
            len: reader.len(),
            tag: reader.tag(),
            index: (place.offset, place.len, place.index),
            times_us,
            entries: self.blocks.iter().map(Block::entries).sum(),
            bytes: self.blocks.iter().map(|block| block.bytes).sum(),
            logs: self.logs,
            compacted: self.compacted,
        })
    }

    /// Reads both copies, and what follows them.
    pub(crate) fn check(reader: &SegmentReader, place: Place) -> Result<()> {
        let second = next_place(place);
        let after = next_place(second);
        let same = Self::read_copy(reader, place)? == Self::read_copy(reader, second)?;
        ensure!(same, "the copies of its index differ");
        let mut cursor = Cursor {
            offset: after.offset,
            index: after.index,
        };
        let end = reader.next(&mut cursor)?;
        ensure!(matches!(end, Next::End), "its end is damaged");
        Ok(())
    }

    fn read_copy(reader: &SegmentReader, place: Place) -> Result<Self> {
        let record = reader.read(place)?;
        ensure!(record.kind == RECORD_INDEX, "this record is no index");
        let (len, frame) = record
            .payload
            .split_first_chunk::<4>()
            .context("an index is cut")?;
        let mut raw = Vec::new();
        decompress(frame, u32::from_be_bytes(*len), &mut raw)?;
        Self::decode(&raw)
    }

    pub(crate) fn decode(raw: &[u8]) -> Result<Self> {
        let mut r = Reader::new(raw);
        let version = r.u8("index version")?;
        ensure!(
            version == INDEX_VERSION,
            "index version {version} is of a newer program"
        );
        let group = Group {
            tenant: read_text(&mut r, "tenant")?,
            class: read_text(&mut r, "class")?,
            day: Day(r.u32("day")?),
        };
        let compacted = r.flag("compacted")?;
        let logs = (r.u64("first log")?, r.u64("last log")?);
        let mut streams = BTreeMap::new();
        for _ in 0..r.u32("streams")? {
            let id = StreamId::read(&mut r)?;
            let stream = Introduced {
                agent: AgentId::read(&mut r)?,
                kind: StreamKind::from_byte(r.u8("stream kind")?)?,
                name: read_text(&mut r, "stream name")?.into(),
            };
            streams.insert(id, stream);
        }
        let mut blocks = Vec::new();
        for _ in 0..r.u32("blocks")? {
            blocks.push(Block::read(&mut r)?);
        }
        r.finish("index")?;
        Ok(Self {
            group,
            compacted,
            logs,
            streams,
            blocks,
        })
    }
}

/// Where the index of a segment lies of which nothing else is known: the kinds of records are not secret.
pub(crate) fn find_index(reader: &SegmentReader) -> Result<Place> {
    let mut cursor = reader.start();
    while let Some((kind, place)) = reader.peek(&mut cursor)? {
        if kind == RECORD_INDEX {
            return Ok(place);
        }
    }
    bail!("it has no index: it was never finished")
}

/// Where a record of the same length lies behind this one.
fn next_place(place: Place) -> Place {
    Place {
        offset: place.offset + u64::from(place.len),
        index: place.index + 1,
        ..place
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    out.extend_from_slice(&count.to_be_bytes());
}

fn read_text(r: &mut Reader<'_>, field: &'static str) -> Result<String> {
    let bytes = r.bytes16(usize::from(u16::MAX), field)?;
    String::from_utf8(bytes.to_vec()).with_context(|| field.to_owned())
}

/// The digest of a block's two records as they lie on the disk.
pub(crate) fn digest_of(reader: &SegmentReader, block: &Block) -> Result<[u8; 32]> {
    let records = [
        reader.read_sealed(block.place)?,
        reader.read_sealed(block.filter)?,
    ];
    Ok(sha256(&[&records[0], &records[1]]))
}

/// Writes one segment.
pub(crate) struct SegmentBuilder<'a> {
    keys: &'a Keyring,
    group: Group,
    writer: SegmentWriter,
    compressor: Compressor,
    /// A block is closed at this many raw bytes.
    block_len: usize,
    open: BTreeMap<StreamId, OpenBlock>,
    /// What the open blocks take of memory.
    open_bytes: usize,
    blocks: Vec<Block>,
    filters: Vec<Vec<u8>>,
    streams: BTreeMap<StreamId, Introduced>,
    logs: Option<(u64, u64)>,
}

struct OpenBlock {
    batches: Vec<StoredBatch>,
    /// Bytes of their bodies.
    len: usize,
    entries: usize,
    order: (u64, u32),
    epoch: Epoch,
    sequences: (u64, u64),
    times_us: (u64, u64),
    head: Head,
}

/// The filter over every line's text, as a search reads it: where entries are not the text themselves, the pieces of a line are
/// read as one.
fn filter_of(batches: &[StoredBatch]) -> Vec<u8> {
    let mut filter = FilterBuilder::new();
    let every = Query::default();
    for batch in batches {
        if batch.entries.iter().any(|(meta, _)| meta.flags.is_gap()) {
            filter.add(GAP_WORD);
        }
        if batch.entries.is_text() {
            filter.add(batch.entries.bytes());
        } else {
            let add = |line: Line<'_>| filter.add(&line.text);
            let _to_its_end = for_each_line(&every, batch, false, || false, add);
        }
    }
    filter.build()
}

/// How a segment is packed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packing {
    /// zstd level.
    pub(crate) level: i32,
    /// A block is closed at this many raw bytes.
    pub(crate) block_len: usize,
}

impl<'a> SegmentBuilder<'a> {
    pub(crate) fn create(
        dir: &Path,
        keys: &'a Keyring,
        (key, cipher): (&Secret<32>, Cipher),
        group: Group,
        number: u64,
        packing: Packing,
    ) -> Result<Self> {
        let writer = SegmentWriter::create(dir, key, cipher, Kind::Archive, number, [0; 16])?;
        Ok(Self {
            keys,
            group,
            writer,
            compressor: Compressor::new(packing.level),
            block_len: packing.block_len,
            open: BTreeMap::new(),
            open_bytes: 0,
            blocks: Vec::new(),
            filters: Vec::new(),
            streams: BTreeMap::new(),
            logs: None,
        })
    }

    /// Adds a batch of `stream`, which came as the `order`th. Batches of a stream come in their order.
    pub(crate) fn add(
        &mut self,
        stream: &Introduced,
        batch: StoredBatch,
        order: (u64, u32),
    ) -> Result<()> {
        let header = &batch.header;
        let id = header.stream;
        let follows = self.open.get(&id).is_none_or(|open| {
            open.epoch == header.epoch
                && open.sequences.1 == header.first.0
                && open.head == header.previous
        });
        if !follows {
            self.close(id)?;
        }
        self.streams.entry(id).or_insert_with(|| stream.clone());
        let last_us = batch.entries.time_last_us().unwrap_or(header.time_first_us);
        // What is said to be of the future is found by when it was received.
        let ordered_us = order_us(last_us, batch.received_us);
        let block = self.open.entry(id).or_insert_with(|| OpenBlock {
            batches: Vec::new(),
            len: 0,
            entries: 0,
            order,
            epoch: header.epoch,
            sequences: (header.first.0, header.first.0),
            times_us: (header.time_first_us, last_us),
            head: header.previous,
        });
        block.sequences.1 = header.next().0;
        block.times_us = (
            block.times_us.0.min(header.time_first_us).min(ordered_us),
            block.times_us.1.max(last_us),
        );
        block.head = header.head();
        block.len += batch.entries.raw().len();
        block.entries += batch.entries.len();
        self.open_bytes += batch.entries.memory();
        // A block ends with a signature: the batches before it may have lost theirs.
        let is_signed = header.is_signed();
        let logs = self.logs.get_or_insert((order.0, order.0));
        *logs = (logs.0.min(order.0), logs.1.max(order.0));
        block.batches.push(batch);
        let is_full = block.len >= self.block_len || block.entries >= BLOCK_ENTRIES;
        if is_full && is_signed {
            self.close(id)?;
        }
        Ok(())
    }

    /// What blocks that are not yet full take of memory.
    pub(crate) fn open_bytes(&self) -> usize {
        self.open_bytes
    }

    pub(crate) fn close_largest(&mut self) -> Result<()> {
        let largest = self.open.iter().max_by_key(|(_, block)| block.len);
        match largest.map(|(stream, _)| *stream) {
            Some(stream) => self.close(stream),
            None => Ok(()),
        }
    }

    fn close(&mut self, stream: StreamId) -> Result<()> {
        let Some(block) = self.open.remove(&stream) else {
            return Ok(());
        };
        let batches = block.batches.iter();
        self.open_bytes -= batches.map(|batch| batch.entries.memory()).sum::<usize>();
        let raw = block::encode(&block.batches);
        let key = self.keys.for_writing(&self.group, stream)?;
        let packed = self.compressor.compress(&raw);
        let place = self.writer.append_under(&key, RECORD_BLOCK, &[&packed])?;
        self.filters.push(filter_of(&block.batches));
        self.blocks.push(Block {
            stream,
            order: block.order,
            epoch: block.epoch,
            sequences: block.sequences,
            bytes: block
                .batches
                .iter()
                .map(|batch| batch.entries.bytes().len() as u64)
                .sum(),
            times_us: block.times_us,
            head: block.head,
            raw_len: u32::try_from(raw.len()).context("a block's length")?,
            place,
            filter: place, // known when the filters are written
            digest: [0; 32],
        });
        Ok(())
    }

    /// Writes what is open, the filters and the index; durable when this returns.
    pub(crate) fn finish(mut self, key: &Secret<32>, compacted: bool) -> Result<SegmentRecord> {
        while let Some((&stream, _)) = self.open.first_key_value() {
            self.close(stream)?;
        }
        for (block, filter) in self.blocks.iter_mut().zip(&self.filters) {
            let key = self.keys.for_writing(&self.group, block.stream)?;
            block.filter = self.writer.append_under(&key, RECORD_FILTER, &[filter])?;
        }
        self.writer.flush()?;
        let reader = SegmentReader::open(self.writer.path(), key, Kind::Archive)?;
        for block in &mut self.blocks {
            block.digest = digest_of(&reader, block)?;
        }
        // The index stands in the segment, so that the catalogue can be rebuilt from it.
        let index = Index {
            group: self.group,
            compacted,
            logs: self.logs.context("a segment without entries")?,
            streams: self.streams,
            blocks: self.blocks,
        };
        let raw = index.encode();
        let len = u32::try_from(raw.len()).context("an index's length")?;
        let packed = self.compressor.compress(&raw);
        let parts: [&[u8]; 2] = [&len.to_be_bytes(), &packed];
        let place = self.writer.append(RECORD_INDEX, &parts)?;
        // Without it nothing of the segment can be found: a damaged byte must not cost it.
        self.writer.append(RECORD_INDEX, &parts)?;
        let path = self.writer.path().to_owned();
        self.writer.finish()?;
        index.record(&SegmentReader::open(&path, key, Kind::Archive)?, place)
    }
}

/// A block is closed at so many raw bytes: larger ones compress better, smaller ones are read faster.
pub(crate) const BLOCK_LEN: usize = 4 << 20;
/// Or at so many entries: of a few bytes each they are far more work, and memory, than their bytes. Ordinary lines fill a block
/// by their bytes long before.
const BLOCK_ENTRIES: usize = 1 << 17;
const RECORD_BLOCK: u8 = 1;
const RECORD_FILTER: u8 = 2;
const RECORD_INDEX: u8 = 3;
const INDEX_VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use scrinium_protocol::batch::{BatchBuilder, StreamPosition};
    use scrinium_protocol::entry::{EntryFlags, EntryMeta};

    use super::*;
    use crate::index::filter::may_hold;

    /// One line in the batch is not UTF-8, and a word of another one came in two pieces.
    #[test]
    fn a_word_in_two_pieces_is_in_the_filter_beside_lines_of_any_encoding() {
        let (agent, stream) = (AgentId([1; 16]), StreamId([2; 16]));
        let mut builder = BatchBuilder::new();
        for (bytes, flags) in [
            (&b"caf\xe9\n"[..], EntryFlags::NONE),
            (b"enter the passw", EntryFlags::FRAGMENT),
            (b"ord\n", EntryFlags::NONE),
            (b"a piece", EntryFlags::FRAGMENT),
            (b"gap: of it\n", EntryFlags::GAP),
        ] {
            assert!(builder.push(bytes, EntryMeta { time_us: 1, flags }));
        }
        let key = SigningKey::from_bytes(&[5; 32]);
        let start = StreamPosition::start(agent, stream, Epoch::default());
        let mut compressor = Compressor::new(1);
        let (batch, _) = builder.seal(stream, &start, Vec::new(), &key, &mut compressor);
        let filter = filter_of(&[StoredBatch {
            received_us: 1,
            agent,
            entries: batch.open().unwrap(),
            header: batch.header,
        }]);
        let holds = |text: &str| may_hold(&filter, &Query::parse(text).unwrap().tokens());
        assert!(holds("password") && holds("café") && holds("piece") && holds("gap"));
        assert!(!holds("passw") && !holds("absent"));
    }
}
