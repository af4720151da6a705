//! Turns a finished log into a sealed segment: by stream, harder compressed, with filters.
//!
//! ```text
//! segment: block records (1) … | filters record (2) | index record (3) | end
//! ```
//!
//! A crash anywhere repeats the work: an unfinished segment is not in the catalogue and is removed
//! at the next attempt; a finished one whose log still lies there wins over the log.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use scrinium_protocol::compress::Compressor;
use scrinium_protocol::entry::view;
use scrinium_protocol::identity::StreamId;
use scrinium_segment::Kind;
use scrinium_segment::durable;
use scrinium_segment::writer::SegmentWriter;
use tracing::{error, info};

use super::Archive;
use super::block::{RAW_LEN_FLUSH, StoredBatch, encode_batch};
use super::log::{Log, apply};
use crate::catalogue::Catalogue;
use crate::catalogue::records::{BlockRecord, SegmentRecord, StreamRecord};
use crate::index::filter::FilterBuilder;

/// Seals logs as they are finished, until the sender is gone. A log that cannot be sealed now
/// (disk full, say) is tried again with the next.
pub(crate) fn run(archive: &Archive, catalogue: &Catalogue, finished: &Receiver<u64>) {
    let mut active_from = u64::MAX;
    loop {
        match finished.recv_timeout(RETRY_INTERVAL) {
            Ok(next_active) => active_from = next_active,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let (_, logs) = archive.parts();
        for log in logs
            .iter()
            .filter(|log| log.number() < active_from && active_from != u64::MAX)
        {
            if let Err(error) = seal(archive, catalogue, log) {
                error!(
                    log = log.number(),
                    error = format!("{error:#}"),
                    "a log could not be sealed and is kept"
                );
                break;
            }
        }
    }
}

fn seal(archive: &Archive, catalogue: &Catalogue, log: &Arc<Log>) -> Result<()> {
    let number = log.number();
    if log.batches().is_empty() {
        let introduced = archive.introduced();
        catalogue.write(|changes| introduced.iter().try_for_each(|stream| changes.put(stream)))?;
        archive.replace_log(None, number);
        durable::remove(
            &archive
                .log_dir()
                .join(scrinium_segment::segment_name(Kind::Log, number)),
        )?;
        return Ok(());
    }
    // A segment is named after its log, so an unfinished attempt lies where this one goes.
    durable::remove(&archive.segment_path(number))?;
    let (segments, _) = archive.parts();
    let previous = segments.last().map_or([0; 16], |segment| segment.tag);
    let writer = SegmentWriter::create(
        &archive.archive_dir(),
        archive.archive_key(),
        archive.cipher(),
        Kind::Archive,
        number,
        previous,
    )?;
    let mut sealing = Sealing {
        writer,
        compressor: Compressor::new(ARCHIVE_LEVEL),
        open: BTreeMap::new(),
        open_bytes: 0,
        blocks: Vec::new(),
        filters: Vec::new(),
        streams: BTreeMap::new(),
    };
    let mut sealed = 0;
    for shown in log.batches() {
        // Read at its place, root and all: a batch that cannot be read keeps its log.
        let batch = log.read(shown.place)?;
        let id = batch.header.stream;
        let stream = match sealing.streams.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let stream = archive.archived_stream(id);
                new.insert(stream.context("a batch in the log has no stream")?)
            }
        };
        apply(stream, &batch.header, batch.received_us);
        sealed += u64::from(batch.header.count);
        sealing.add(&batch)?;
    }
    // A stream whose first batch lies in a later log was introduced in this one.
    for stream in archive.introduced() {
        sealing.streams.entry(stream.id).or_insert(stream);
    }
    let (segment, streams) = sealing.finish(number)?;
    let blocks: u64 = segment.blocks.iter().map(|block| block.entries).sum();
    ensure!(
        blocks == sealed,
        "segment {number:016x} holds {blocks} entries of {sealed}"
    );
    // At this point the segment is durable; if we die now, the log is sealed again.
    catalogue.write(|changes| {
        for stream in streams.values() {
            changes.put(stream)?;
        }
        changes.put(&segment)?;
        Ok(())
    })?;
    // At this point the segment is the archive's; if we die now, the start removes the log.
    info!(
        log = number,
        bytes = segment.len,
        blocks = segment.blocks.len(),
        "sealed a log"
    );
    archive.replace_log(Some((segment, streams)), number);
    let path = archive
        .log_dir()
        .join(scrinium_segment::segment_name(Kind::Log, number));
    if log.damage().is_empty() {
        durable::remove(&path)?;
    } else {
        // Kept for whoever wants to know what happened to it; no longer a log.
        durable::rename(&path, &path.with_extension("log.damaged"))?;
    }
    Ok(())
}

struct Sealing {
    writer: SegmentWriter,
    compressor: Compressor,
    open: BTreeMap<StreamId, OpenBlock>,
    open_bytes: usize,
    blocks: Vec<BlockRecord>,
    /// Per block: length (4) and filter.
    filters: Vec<u8>,
    /// The streams touched, as this segment leaves them.
    streams: BTreeMap<StreamId, StreamRecord>,
}

struct OpenBlock {
    raw: Vec<u8>,
    filter: FilterBuilder,
    sequences: (u64, u64),
    times_us: (u64, u64),
    entries: u64,
}

impl Sealing {
    fn add(&mut self, batch: &StoredBatch) -> Result<()> {
        let header = &batch.header;
        let last_us = batch
            .entries
            .iter()
            .last()
            .map_or(header.time_first_us, |(meta, _)| meta.time_us);
        let block = self.open.entry(header.stream).or_insert_with(|| OpenBlock {
            raw: Vec::new(),
            filter: FilterBuilder::new(),
            sequences: (header.first.0, header.first.0),
            times_us: (header.time_first_us, last_us),
            entries: 0,
        });
        let before = block.raw.len();
        encode_batch(&mut block.raw, batch);
        if batch.entries.is_text() {
            block.filter.add(batch.entries.bytes());
        } else {
            for (meta, bytes) in batch.entries.iter() {
                block.filter.add(&view(bytes, meta.flags));
            }
        }
        block.sequences.1 = header.next().0;
        block.times_us = (
            block.times_us.0.min(header.time_first_us),
            block.times_us.1.max(last_us),
        );
        block.entries += u64::from(header.count);
        self.open_bytes += block.raw.len() - before;
        if block.raw.len() >= RAW_LEN_FLUSH {
            self.close(header.stream)?;
        }
        while self.open_bytes > OPEN_BYTES_MAX {
            let largest = self.open.iter().max_by_key(|(_, block)| block.raw.len());
            let Some(stream) = largest.map(|(stream, _)| *stream) else {
                break;
            };
            self.close(stream)?;
        }
        Ok(())
    }

    fn close(&mut self, stream: StreamId) -> Result<()> {
        let Some(block) = self.open.remove(&stream) else {
            return Ok(());
        };
        self.open_bytes -= block.raw.len();
        let place = self
            .writer
            .append(RECORD_BLOCK, &[&self.compressor.compress(&block.raw)])?;
        self.blocks.push(BlockRecord {
            place: (place.offset, place.len, place.index),
            stream,
            sequences: block.sequences,
            times_us: block.times_us,
            entries: block.entries,
            raw_len: u32::try_from(block.raw.len()).context("a block's length")?,
        });
        let filter = block.filter.build();
        let len = u32::try_from(filter.len()).context("a filter's length")?;
        self.filters.extend_from_slice(&len.to_be_bytes());
        self.filters.extend_from_slice(&filter);
        Ok(())
    }

    fn finish(mut self, number: u64) -> Result<(SegmentRecord, BTreeMap<StreamId, StreamRecord>)> {
        while let Some((&stream, _)) = self.open.first_key_value() {
            self.close(stream)?;
        }
        let filters = self.writer.append(RECORD_FILTERS, &[&self.filters])?;
        // The index stands in the segment too, so the catalogue can be rebuilt from it.
        let index = serde_json::to_vec(&self.blocks)?;
        self.writer
            .append(RECORD_INDEX, &[&self.compressor.compress(&index)])?;
        let tag = self.writer.tag();
        let len = self.writer.finish()?;
        let segment = SegmentRecord {
            number,
            len,
            tag,
            blocks: self.blocks,
            filters: (filters.offset, filters.len, filters.index),
            log: number,
        };
        Ok((segment, self.streams))
    }
}

const RECORD_BLOCK: u8 = 1;
const RECORD_FILTERS: u8 = 2;
const RECORD_INDEX: u8 = 3;
/// zstd level of blocks.
const ARCHIVE_LEVEL: i32 = 3;
/// Most raw bytes of blocks not yet full.
const OPEN_BYTES_MAX: usize = 64 << 20;
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
