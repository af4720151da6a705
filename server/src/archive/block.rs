//! Blocks: consecutive batches of one stream and epoch, packed so that they compress well.
//!
//! ```text
//! version 2 (1) | stream (16) | agent (16) | epoch (16) | first sequence (8) | head before it (32) | batches
//! per batch, column by column:  received, as the difference to the one before | entries
//!                             | time of the first, as the difference to received | bookmark behind its length
//!                             | 1 if its signature is kept (1)
//! Merkle roots (32 each) of the batches of more than 16 entries | the signatures that are kept (64 each)
//! per entry, column by column:  flags (1), 128 added when it is a line | µs since the entry before | its group
//! per entry, group by group:    length, of those that are no lines
//!                               bytes
//! ```
//!
//! Numbers without a width are LEB128; differences that may be negative are zigzag-coded. Entries that look
//! alike lie together: a group is what begins with the same words, digits aside. A line is an entry that ends
//! with its only line feed. Everything the agent signed is given back exactly; what a batch's header repeats
//! of the one before (sequence, head) or says of its body (its length, the root of few entries) is recomputed.
//!
//! A signature is over a head, and a head names the one before: the last one of a chain vouches for all of it. The
//! last batch of a block keeps its signature, and one about every 256 KiB before it, where a block may end when it
//! is packed anew. Of a source that says a line a minute, signatures and roots were most of what was stored.
//!
//! A batch whose table of entries is not in the one shortest form lies in a block of version 1, as it came:
//! version 1 (1), then per batch received (8) | agent (16) | header length (2) | header | body.
//!
//! A record of the log is the same as one batch of version 1, its body still as the agent compressed it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use scrinium_protocol::batch::{BOOKMARK_LEN_MAX, BatchHeader, SealedBatch, StreamPosition};
use scrinium_protocol::codec::{Codec as _, Reader, put_bytes16, put_varint};
use scrinium_protocol::compress::decompress;
use scrinium_protocol::entry::{ENTRY_LEN_MAX, Entries};
use scrinium_protocol::identity::{AgentId, Epoch, Head, Sequence, StreamId};

/// A batch as the archive holds it.
#[derive(Clone, Debug)]
pub(crate) struct StoredBatch {
    /// When the server received it, Unix µs.
    pub(crate) received_us: u64,
    /// Who made and signed it.
    pub(crate) agent: AgentId,
    pub(crate) header: BatchHeader,
    pub(crate) entries: Entries,
}

/// The time by which an entry is ordered and found, Unix µs: when it was collected, as its agent says; when it was
/// received, where that is said to have been later. So nobody stands before what came after him.
pub(crate) fn order_us(claimed_us: u64, received_us: u64) -> u64 {
    if is_of_the_future(claimed_us, received_us) {
        received_us
    } else {
        claimed_us
    }
}

/// Whether an agent says of an entry that it was collected after it was received.
pub(crate) fn is_of_the_future(claimed_us: u64, received_us: u64) -> bool {
    claimed_us > received_us.saturating_add(AHEAD_US_MAX)
}

/// The bytes of a block of these batches, which follow one another.
pub(crate) fn encode(batches: &[StoredBatch]) -> Vec<u8> {
    encode_packed(batches).unwrap_or_else(|| encode_verbatim(batches))
}

/// Reads the batches of a block whose raw length the index knows.
pub(crate) fn decode(payload: &[u8], raw_len: u32) -> Result<Vec<StoredBatch>> {
    ensure!(raw_len <= RAW_LEN_MAX, "a block is longer than any block");
    let mut raw = Vec::new();
    decompress(payload, raw_len, &mut raw)?;
    decode_raw(&raw)
}

/// The same of its bytes before compression.
pub(crate) fn decode_raw(raw: &[u8]) -> Result<Vec<StoredBatch>> {
    let mut r = Reader::new(raw);
    match r.u8("block version")? {
        VERBATIM => decode_verbatim(r),
        PACKED => decode_packed(r),
        version => anyhow::bail!("block version {version} is of a newer program"),
    }
}

fn encode_verbatim(batches: &[StoredBatch]) -> Vec<u8> {
    let mut out = vec![VERBATIM];
    for batch in batches {
        out.extend_from_slice(&batch.received_us.to_be_bytes());
        out.extend_from_slice(&batch.agent.0);
        put_bytes16(&mut out, &batch.header.encoded());
        out.extend_from_slice(batch.entries.raw());
    }
    out
}

fn decode_verbatim(mut r: Reader<'_>) -> Result<Vec<StoredBatch>> {
    let mut batches = Vec::new();
    while !r.is_empty() {
        let received_us = r.u64("receive time")?;
        let agent = AgentId::read(&mut r)?;
        let header = r.bytes16(usize::from(u16::MAX), "batch header")?;
        let header = BatchHeader::decode(header, "batch header")?;
        let body = r.take(header.raw_len as usize, "batch body")?.to_vec();
        let entries = Entries::parse(body, &header)?;
        batches.push(StoredBatch {
            received_us,
            agent,
            header,
            entries,
        });
    }
    Ok(batches)
}

/// `None` when something could not be given back exactly.
fn encode_packed(batches: &[StoredBatch]) -> Option<Vec<u8>> {
    let first = batches.first()?;
    let total: usize = batches.iter().map(|batch| batch.entries.raw().len()).sum();
    let mut out = Vec::with_capacity(total + total / 8);
    out.push(PACKED);
    first.header.stream.encode(&mut out);
    first.agent.encode(&mut out);
    first.header.epoch.encode(&mut out);
    out.extend_from_slice(&first.header.first.0.to_be_bytes());
    first.header.previous.encode(&mut out);
    put_varint(&mut out, batches.len() as u64);

    let mut position = (first.header.first, first.header.previous);
    let mut received_us = 0;
    if !batches.last()?.header.is_signed() {
        return None;
    }
    for batch in batches {
        let header = &batch.header;
        let follows = (header.first, header.previous) == position
            && (batch.agent, header.stream, header.epoch)
                == (first.agent, first.header.stream, first.header.epoch);
        let root_is_known = !has_few(header.count) || batch.entries.root() == header.root;
        if !follows || !root_is_known || !has_shortest_table(batch) {
            return None;
        }
        position = (header.next(), header.head());
        put_signed(&mut out, received_us, batch.received_us);
        received_us = batch.received_us;
    }
    for batch in batches {
        put_varint(&mut out, u64::from(batch.header.count));
    }
    for batch in batches {
        put_signed(&mut out, batch.received_us, batch.header.time_first_us);
    }
    for batch in batches {
        put_varint(&mut out, batch.header.bookmark.len() as u64);
        out.extend_from_slice(&batch.header.bookmark);
    }
    let kept = kept_signatures(batches);
    out.extend(kept.iter().map(|&kept| u8::from(kept)));
    for batch in batches.iter().filter(|batch| !has_few(batch.header.count)) {
        out.extend_from_slice(&batch.header.root);
    }
    for (batch, _) in batches.iter().zip(kept).filter(|(_, kept)| *kept) {
        out.extend_from_slice(&batch.header.signature);
    }
    let entries = || batches.iter().flat_map(|batch| batch.entries.iter());
    for (meta, bytes) in entries() {
        let line = if is_line(bytes) { LINE } else { 0 };
        out.push(meta.flags.bits() | line);
    }
    for batch in batches {
        let mut before_us = batch.header.time_first_us;
        for (meta, _) in batch.entries.iter() {
            put_varint(&mut out, meta.time_us - before_us);
            before_us = meta.time_us;
        }
    }
    let groups = groups(entries().map(|(_, bytes)| bytes));
    let mut numbers = vec![0; entries().count()];
    for (number, members) in (0_u64..).zip(&groups) {
        for &(entry, _) in members {
            if let Some(slot) = numbers.get_mut(entry) {
                *slot = number;
            }
        }
    }
    for number in numbers {
        put_varint(&mut out, number);
    }
    let members = || groups.iter().flatten();
    for (_, bytes) in members().filter(|(_, bytes)| !is_line(bytes)) {
        put_varint(&mut out, bytes.len() as u64);
    }
    for (_, bytes) in members() {
        out.extend_from_slice(bytes);
    }
    Some(out)
}

/// Which batches keep their signatures: the last, and before it one now and then.
fn kept_signatures(batches: &[StoredBatch]) -> Vec<bool> {
    let mut since = 0;
    let mut kept: Vec<bool> = batches
        .iter()
        .map(|batch| {
            since += batch.entries.raw().len();
            let keeps = since >= SIGNED_EVERY && batch.header.is_signed();
            if keeps {
                since = 0;
            }
            keeps
        })
        .collect();
    if let Some(last) = kept.last_mut() {
        *last = true;
    }
    kept
}

/// Whether a batch has so few entries that its root is recomputed.
fn has_few(entries: u32) -> bool {
    entries <= FEW_ENTRIES
}

fn decode_packed(mut r: Reader<'_>) -> Result<Vec<StoredBatch>> {
    let stream = StreamId::read(&mut r)?;
    let agent = AgentId::read(&mut r)?;
    let epoch = Epoch::read(&mut r)?;
    let mut next = Sequence(r.u64("first sequence")?);
    let mut head = Head::read(&mut r)?;
    let count = r.varint("batches")?;
    ensure!(
        count <= u64::from(RAW_LEN_MAX) / 6,
        "a block has too many batches"
    );
    let count = usize::try_from(count)?;
    let mut received = Vec::with_capacity(count);
    let mut received_us = 0;
    for _ in 0..count {
        received_us = read_signed(&mut r, received_us, "receive time")?;
        received.push(received_us);
    }
    let mut counts = Vec::with_capacity(count);
    let mut total = 0_usize;
    for _ in 0..count {
        let entries = u32::try_from(r.varint("entries of a batch")?)?;
        total = total
            .checked_add(entries as usize)
            .context("too many entries")?;
        counts.push(entries);
    }
    ensure!(
        total <= RAW_LEN_MAX as usize,
        "a block has too many entries"
    );
    let times = received
        .iter()
        .map(|&received_us| read_signed(&mut r, received_us, "time of the first entry"))
        .collect::<Result<Vec<_>>>()?;
    let mut bookmarks = Vec::with_capacity(count);
    for _ in 0..count {
        let len = usize::try_from(r.varint("bookmark")?)?;
        ensure!(len <= BOOKMARK_LEN_MAX, "a bookmark is too long");
        bookmarks.push(r.take(len, "bookmark")?.to_vec());
    }
    let kept = (0..count).map(|_| r.flag("whether a signature is kept"));
    let kept: Vec<bool> = kept.collect::<Result<_, _>>()?;
    ensure!(
        kept.last().is_none_or(|last| *last),
        "the last batch of a block is not signed"
    );
    let mut roots = Vec::with_capacity(count);
    for &entries in &counts {
        roots.push(match has_few(entries) {
            true => None,
            false => Some(r.array("Merkle root")?),
        });
    }
    let mut signatures = Vec::with_capacity(count);
    for is_kept in kept {
        signatures.push(match is_kept {
            true => r.array("signature")?,
            false => [0; 64],
        });
    }
    let mut rows = read_rows(&mut r, total)?;
    let data = place(&mut r, &mut rows)?;

    let mut batches = Vec::with_capacity(count);
    let mut rows = rows.into_iter();
    let columns = received.into_iter().zip(counts).zip(times).zip(bookmarks);
    for (column, (root, signature)) in columns.zip(roots.into_iter().zip(signatures)) {
        let (((received_us, count), time_first_us), bookmark) = column;
        let mut table = Vec::new();
        let mut bytes = Vec::new();
        for row in rows.by_ref().take(count as usize) {
            put_row(&mut table, row.len, row.flags, row.delta_us);
            let end = row.offset + row.len;
            bytes.extend_from_slice(data.get(row.offset..end).context("an entry is cut")?);
        }
        let table_len = u32::try_from(table.len())?;
        let body = [&table_len.to_be_bytes()[..], &table, &bytes].concat();
        let mut header = BatchHeader {
            stream,
            epoch,
            first: next,
            count,
            time_first_us,
            root: root.unwrap_or_default(),
            raw_len: u32::try_from(body.len())?,
            bookmark,
            previous: head,
            signature,
        };
        header.check()?;
        let entries = Entries::parse(body, &header)?;
        if root.is_none() {
            header.root = entries.root();
        }
        StreamPosition {
            epoch: _,
            next,
            head,
            bookmark: _,
        } = header.position_after();
        batches.push(StoredBatch {
            received_us,
            agent,
            header,
            entries,
        });
    }
    Ok(batches)
}

/// One entry of a packed block.
#[derive(Clone, Copy, Default)]
struct Row {
    flags: u8,
    is_line: bool,
    delta_us: u64,
    group: usize,
    offset: usize,
    len: usize,
}

fn read_rows(r: &mut Reader<'_>, total: usize) -> Result<Vec<Row>> {
    let mut rows = vec![Row::default(); total];
    for (row, &flags) in rows.iter_mut().zip(r.take(total, "entry flags")?) {
        row.flags = flags & !LINE;
        row.is_line = flags & LINE != 0;
    }
    for row in &mut rows {
        row.delta_us = r.varint("entry time")?;
    }
    for row in &mut rows {
        row.group = usize::try_from(r.varint("group")?)?;
        ensure!(row.group < total, "a group that is not there");
    }
    Ok(rows)
}

/// Finds where each entry lies; returns the bytes of all.
fn place<'a>(r: &mut Reader<'a>, rows: &mut [Row]) -> Result<&'a [u8]> {
    // The order in which they lie: by group, and in a group as they came.
    let mut starts = vec![0_usize; rows.len() + 1];
    for row in rows.iter() {
        if let Some(start) = starts.get_mut(row.group + 1) {
            *start += 1;
        }
    }
    let mut before = 0;
    for start in &mut starts {
        before += *start;
        *start = before;
    }
    let mut order = vec![0_usize; rows.len()];
    for (entry, row) in rows.iter().enumerate() {
        let start = starts.get_mut(row.group).context("a group")?;
        *order.get_mut(*start).context("an entry")? = entry;
        *start += 1;
    }
    for &entry in &order {
        let row = rows.get_mut(entry).context("an entry")?;
        if !row.is_line {
            row.len = usize::try_from(r.varint("entry length")?)?;
            ensure!(row.len <= ENTRY_LEN_MAX, "an entry is too long");
        }
    }
    let data = core::mem::replace(r, Reader::new(&[])).rest();
    let mut offset = 0;
    for entry in order {
        let row = rows.get_mut(entry).context("an entry")?;
        row.offset = offset;
        if row.is_line {
            let rest = data.get(offset..).unwrap_or_default();
            let end = memchr::memchr(b'\n', rest).context("a line does not end")?;
            row.len = end + 1;
        }
        offset += row.len;
    }
    ensure!(offset == data.len(), "bytes behind the last entry");
    Ok(data)
}

/// Entries that look alike, with their numbers, in the order in which they came.
fn groups<'a>(entries: impl Iterator<Item = &'a [u8]>) -> Vec<Vec<(usize, &'a [u8])>> {
    let mut groups: BTreeMap<Vec<u8>, Vec<(usize, &[u8])>> = BTreeMap::new();
    let mut shape = Vec::new();
    let mut total = 0;
    for (number, bytes) in entries.enumerate() {
        shape_of(bytes, &mut shape);
        total += 1;
        match groups.get_mut(&shape) {
            Some(group) => group.push((number, bytes)),
            None => drop(groups.insert(shape.clone(), vec![(number, bytes)])),
        }
    }
    if groups.len() <= total / ALIKE_MIN {
        return groups.into_values().collect();
    }
    // Nothing looks alike: they stay as they came.
    let mut all: Vec<_> = groups.into_values().flatten().collect();
    all.sort_unstable_by_key(|(number, _)| *number);
    vec![all]
}

/// The first words of an entry, each run of digits as one.
fn shape_of(bytes: &[u8], shape: &mut Vec<u8>) {
    shape.clear();
    let mut words = 0;
    let mut digits = false;
    for &byte in bytes.iter().take(SHAPE_BYTES_READ) {
        if byte == b' ' {
            words += 1;
            if words == SHAPE_WORDS {
                return;
            }
        }
        let is_digit = byte.is_ascii_digit();
        if !(is_digit && digits) {
            shape.push(if is_digit { b'0' } else { byte });
        }
        if shape.len() == SHAPE_LEN_MAX {
            return;
        }
        digits = is_digit;
    }
}

fn is_line(bytes: &[u8]) -> bool {
    memchr::memchr(b'\n', bytes).is_some_and(|at| at + 1 == bytes.len())
}

/// Whether the table of a batch's entries is what [`decode`] would write.
fn has_shortest_table(batch: &StoredBatch) -> bool {
    let raw = batch.entries.raw();
    let Some((len, rest)) = raw.split_first_chunk::<4>() else {
        return false;
    };
    let Some(table) = rest.get(..u32::from_be_bytes(*len) as usize) else {
        return false;
    };
    let mut rewritten = Vec::with_capacity(table.len());
    let mut before_us = batch.header.time_first_us;
    for (meta, bytes) in batch.entries.iter() {
        let delta_us = meta.time_us - before_us;
        put_row(&mut rewritten, bytes.len(), meta.flags.bits(), delta_us);
        before_us = meta.time_us;
    }
    rewritten == table && raw.len() == batch.header.raw_len as usize
}

fn put_row(table: &mut Vec<u8>, len: usize, flags: u8, delta_us: u64) {
    put_varint(table, len as u64);
    table.push(flags);
    put_varint(table, delta_us);
}

/// `to` as its difference to `from`.
fn put_signed(out: &mut Vec<u8>, from: u64, to: u64) {
    let difference = to.wrapping_sub(from).cast_signed();
    put_varint(
        out,
        ((difference << 1) ^ (difference >> 63)).cast_unsigned(),
    );
}

fn read_signed(r: &mut Reader<'_>, from: u64, field: &'static str) -> Result<u64> {
    let coded = r.varint(field)?;
    let difference = (coded >> 1) ^ (coded & 1).wrapping_neg();
    Ok(from.wrapping_add(difference))
}

/// The head of a log record: what precedes the encoded batch.
pub(crate) fn log_head(received_us: u64, agent: AgentId) -> [u8; LOG_HEAD_LEN] {
    let mut head = [0; LOG_HEAD_LEN];
    let (time, id) = head.split_at_mut(8);
    time.copy_from_slice(&received_us.to_be_bytes());
    id.copy_from_slice(&agent.0);
    head
}

/// Reads a log record without opening the batch's body.
pub(crate) fn decode_log(payload: &[u8]) -> Result<(u64, AgentId, SealedBatch)> {
    let mut r = Reader::new(payload);
    let received_us = r.u64("receive time")?;
    let agent = AgentId::read(&mut r)?;
    let batch = SealedBatch::decode(r.rest(), "batch")?;
    Ok((received_us, agent, batch))
}

/// So far a clock may be ahead of the server's and still be believed, in µs: five minutes, as Kerberos has it.
pub(crate) const AHEAD_US_MAX: u64 = 300_000_000;
const VERBATIM: u8 = 1;
const PACKED: u8 = 2;
/// Added to the flags of an entry that ends with its only line feed.
const LINE: u8 = 128;
const LOG_HEAD_LEN: usize = 24;
/// Roots of batches with at most so many entries are recomputed.
const FEW_ENTRIES: u32 = 16;
/// Bytes of bodies after which a signature is kept.
const SIGNED_EVERY: usize = 256 << 10;
/// Longest raw block: one batch may come on top of the longest [`super::segment::Packing`].
const RAW_LEN_MAX: u32 = 6 << 20;
/// Entries to a group, below which grouping costs more than it gives.
const ALIKE_MIN: usize = 2;
/// What of an entry says which group it is in.
const SHAPE_WORDS: usize = 4;
const SHAPE_LEN_MAX: usize = 48;
const SHAPE_BYTES_READ: usize = 120;

#[cfg(test)]
mod tests;
