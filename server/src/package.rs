//! An export package: the bytes of one stream and everything needed to check them elsewhere.
//!
//! ```text
//! tar: manifest.json   who, what, from where; the agent's key; count and digest of the bytes
//!      log.txt         the exact bytes of the source
//!      batches.bin     per batch: length (4) | received, Unix µs (8) | batch as the agent signed it
//!      evidence.json   the server's key, the interval sealed over the stream last, the hashes from it to the
//!                      root, and the signed checkpoint; absent while nothing was sealed
//! ```
//!
//! `scrinium-verify` needs nothing else: it recomputes every root, chain head and signature and
//! compares the entries with `log.txt`.

use std::io::{Read as _, Write};

use anyhow::{Context as _, Result};
use data_encoding::{BASE64, HEXLOWER};
use scrinium_protocol::batch::SealedBatch;
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::compress::{AGENT_LEVEL, Compressor};
use scrinium_protocol::identity::{Head, StreamId};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::archive::Extent;
use crate::archive::block::StoredBatch;
use crate::archive::container::Access;
use crate::clock;
use crate::core::Core;
use crate::evidence;
use crate::present;

/// Writes the package of `stream`. Reads it three times instead of holding it: a tar needs lengths
/// before bytes, and plain text must never lie on the server's disk.
pub(crate) fn write(
    core: &Core,
    stream: StreamId,
    access: &Access,
    out: &mut dyn Write,
) -> Result<()> {
    let record = core
        .archive
        .stream(stream)
        .context("the stream is not in the archive")?;
    let signers = core.signers();
    let (agent, key) = signers
        .get(&record.agent)
        .context("the stream's agent is not known")?;
    // Before the entries: what it speaks of is among them.
    let server = core.signing.verifying_key();
    let inclusion = evidence::inclusion_of(&core.volume, &server, stream)?;
    // What is sealed or added meanwhile does not change this list, nor what it reads.
    let extents = core.archive.extents_of(stream)?;

    let mut total = Total::default();
    let mut digest = Sha256::new();
    let mut compressor = Compressor::new(AGENT_LEVEL);
    for_each_batch(core, &extents, access, |batch| {
        for (meta, entry) in batch.entries.iter() {
            if meta.flags.is_gap() {
                total.gaps += 1;
                continue;
            }
            digest.update(entry);
            total.entries += 1;
            total.log_len += entry.len() as u64;
        }
        total.last_head = Some(batch.header.head());
        total.batches_len += packed(batch, &mut compressor)?.len() as u64;
        Ok(())
    })?;
    let sha256: [u8; 32] = digest.finalize().into();
    let manifest = json!({
        "format": "scrinium-package-1",
        "made": present::rfc3339(clock::unix_us()),
        "agent": agent,
        "agent_id": record.agent.to_string(),
        "agent_key": HEXLOWER.encode(key),
        "stream": record.name,
        "stream_id": stream.to_string(),
        "kind": record.kind.name(),
        "entries": total.entries,
        "gaps": total.gaps,
        "bytes": total.log_len,
        "sha256": HEXLOWER.encode(&sha256),
        "last_head": total.last_head.map(|head| head.to_string()),
    });
    let manifest = serde_json::to_vec_pretty(&manifest)?;
    tar_member(out, "manifest.json", manifest.len() as u64, |out| {
        Ok(out.write_all(&manifest)?)
    })?;
    tar_member(out, "log.txt", total.log_len, |out| {
        for_each_batch(core, &extents, access, |batch| {
            let entries = batch
                .entries
                .iter()
                .filter(|(meta, _)| !meta.flags.is_gap());
            for (_, entry) in entries {
                out.write_all(entry)?;
            }
            Ok(())
        })
    })?;
    tar_member(out, "batches.bin", total.batches_len, |out| {
        for_each_batch(core, &extents, access, |batch| {
            Ok(out.write_all(&packed(batch, &mut compressor)?)?)
        })
    })?;
    if let Some(inclusion) = inclusion {
        let evidence = serde_json::to_vec_pretty(&json!({
            "server_key": HEXLOWER.encode(server.as_bytes()),
            "checkpoint": inclusion.note,
            "interval": BASE64.encode(&inclusion.leaf),
            "path": inclusion.path.iter().map(|hash| BASE64.encode(hash)).collect::<Vec<_>>(),
        }))?;
        tar_member(out, "evidence.json", evidence.len() as u64, |out| {
            Ok(out.write_all(&evidence)?)
        })?;
    }
    out.write_all(&[0; 1024])?;
    Ok(())
}

#[derive(Default)]
struct Total {
    entries: u64,
    gaps: u64,
    log_len: u64,
    batches_len: u64,
    last_head: Option<Head>,
}

fn for_each_batch(
    core: &Core,
    extents: &[Extent],
    access: &Access,
    mut each: impl FnMut(&StoredBatch) -> Result<()>,
) -> Result<()> {
    for extent in extents {
        for batch in core.archive.read(extent, access)? {
            each(&batch)?;
        }
    }
    Ok(())
}

/// One batch of `batches.bin`: the header as signed; the body compressed anew, the same each time.
fn packed(batch: &StoredBatch, compressor: &mut Compressor) -> Result<Vec<u8>> {
    let encoded = SealedBatch {
        header: batch.header.clone(),
        body: compressor.compress(batch.entries.raw()),
    }
    .encoded();
    let len = u32::try_from(encoded.len() + 8).context("a batch's length")?;
    Ok([
        &len.to_be_bytes()[..],
        &batch.received_us.to_be_bytes(),
        &encoded,
    ]
    .concat())
}

/// One member of a tar (POSIX.1-1988 ustar).
fn tar_member(
    out: &mut dyn Write,
    name: &str,
    len: u64,
    content: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut header = [0_u8; 512];
    let mut put = |offset: usize, bytes: &[u8]| {
        if let Some(field) = header.get_mut(offset..offset + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{len:011o}\0").as_bytes());
    put(136, format!("{:011o}\0", clock::unix_s()).as_bytes());
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    if let Some(field) = header.get_mut(148..156) {
        field.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    out.write_all(&header)?;
    content(out)?;
    let padding = (512 - len % 512) % 512;
    std::io::copy(&mut std::io::repeat(0).take(padding), out)?;
    Ok(())
}
