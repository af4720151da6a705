//! zstd, bounded on both sides.

use std::io::Read as _;

use crate::error::InvalidMessage;

/// A zstd compressor whose tables are allocated once.
pub struct Compressor(zstd::bulk::Compressor<'static>);

impl Compressor {
    /// # Panics
    /// If `level` is not a zstd level (a programming error).
    #[must_use]
    pub fn new(level: i32) -> Self {
        Self(zstd::bulk::Compressor::new(level).expect("a constant zstd level"))
    }

    /// Compresses `raw` into one zstd frame.
    ///
    /// # Panics
    /// If zstd runs out of memory.
    #[must_use]
    pub fn compress(&mut self, raw: &[u8]) -> Vec<u8> {
        self.0
            .compress(raw)
            .expect("zstd compresses anything into a buffer of its own bound")
    }
}

impl core::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Compressor")
    }
}

/// Decompresses exactly `raw_len` bytes to the end of `out`; never allocates more than that.
///
/// # Errors
/// [`InvalidMessage::BadCompression`] for a frame that is damaged, longer or shorter.
pub fn decompress(body: &[u8], raw_len: u32, out: &mut Vec<u8>) -> Result<(), InvalidMessage> {
    let bad = InvalidMessage::BadCompression("body");
    let start = out.len();
    let raw_len = raw_len as usize;
    out.reserve_exact(raw_len);
    let decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(|_| bad.clone())?;
    decoder
        .single_frame()
        .take(raw_len as u64 + 1)
        .read_to_end(out)
        .map_err(|_| bad.clone())?;
    if out.len() - start != raw_len {
        return Err(bad);
    }
    Ok(())
}

/// zstd level of the agent: the one that costs least CPU per line shipped.
pub const AGENT_LEVEL: i32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_inflates_past_its_declared_length_is_refused() {
        let bomb = Compressor::new(3).compress(&vec![0; 64 << 20]);
        let mut out = Vec::new();
        let outcome = decompress(&bomb, 1000, &mut out);
        assert_eq!(outcome, Err(InvalidMessage::BadCompression("body")));
        assert!(out.capacity() < 1 << 20, "{}", out.capacity());
    }
}
