//! Formats of the archive, for tests that read anybody's bytes in them.

use crate::archive::block;
use crate::archive::segment::Index;

/// Reads the bytes of a block. `None` when they are none; else whether what was read is written and read back
/// as it was.
#[must_use]
pub fn block(raw: &[u8]) -> Option<bool> {
    let batches = block::decode_raw(raw).ok()?;
    let again = block::decode_raw(&block::encode(&batches)).unwrap_or_default();
    let same = again.len() == batches.len()
        && again.iter().zip(&batches).all(|(again, batch)| {
            // Signatures that another one stands for are left out.
            let mut header = batch.header.clone();
            if !again.header.is_signed() {
                header.signature = [0; 64];
            }
            again.header == header && again.entries.raw() == batch.entries.raw()
        });
    Some(same)
}

/// The same of the index of a segment.
#[must_use]
pub fn index(raw: &[u8]) -> Option<bool> {
    let index = Index::decode(raw).ok()?;
    Some(Index::decode(&index.encode()).ok()? == index)
}
