//! Blocks: consecutive batches of one stream, decompressed, one after the other, compressed again.
//!
//! ```text
//! zstd( per batch: received, Unix µs (8) | agent (16) | header length (2) | header | body )
//! ```
//! The body's length is the header's `raw_len`. A record of the log is the same with one batch
//! whose body is still as the agent compressed it.

use anyhow::{Result, ensure};
use scrinium_protocol::batch::{BatchHeader, SealedBatch};
use scrinium_protocol::codec::{Codec as _, Reader, put_bytes16};
use scrinium_protocol::compress::decompress;
use scrinium_protocol::entry::Entries;
use scrinium_protocol::identity::AgentId;

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

/// Appends one batch to the raw bytes of a block.
pub(crate) fn encode_batch(out: &mut Vec<u8>, batch: &StoredBatch) {
    out.extend_from_slice(&batch.received_us.to_be_bytes());
    out.extend_from_slice(&batch.agent.0);
    put_bytes16(out, &batch.header.encoded());
    out.extend_from_slice(batch.entries.raw());
}

/// Reads the batches of a block whose raw length the catalogue knows.
pub(crate) fn decode(payload: &[u8], raw_len: u32) -> Result<Vec<StoredBatch>> {
    ensure!(raw_len <= RAW_LEN_MAX, "a block is longer than any block");
    let mut raw = Vec::new();
    decompress(payload, raw_len, &mut raw)?;
    let mut r = Reader::new(&raw);
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

const LOG_HEAD_LEN: usize = 24;
/// A block is flushed when it reaches this many raw bytes.
pub(crate) const RAW_LEN_FLUSH: usize = 1 << 20;
/// Longest raw block: one batch may come on top.
const RAW_LEN_MAX: u32 = 2 << 20;
