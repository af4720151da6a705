//! zstd, bounded on both sides.

use std::cell::RefCell;
use std::io::Read as _;

use zstd::stream::read::Decoder;
use zstd::zstd_safe::{DCtx, DParameter, ResetDirective};

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
    let mut inflate = |decoder: Decoder<'_, &[u8]>| {
        let mut reader = decoder.single_frame().take(raw_len as u64 + 1);
        reader.read_to_end(out)
    };
    let inflated = if raw_len > SMALL_LEN_MAX {
        Decoder::with_buffer(body).and_then(inflate)
    } else {
        // Of a line or two, making a context costs most of the time.
        CONTEXT.with_borrow_mut(|context| {
            let ready = context.reset(ResetDirective::SessionOnly).is_ok()
                && context.set_parameter(SMALL_WINDOW_MAX).is_ok();
            if !ready {
                return Err(std::io::ErrorKind::Other.into());
            }
            inflate(Decoder::with_context(body, context))
        })
    };
    match inflated {
        Ok(len) if len == raw_len => Ok(()),
        Ok(_) | Err(_) => {
            out.truncate(start);
            Err(bad)
        }
    }
}

thread_local! {
    /// What decompresses small bodies, one for each thread.
    static CONTEXT: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

/// Bodies up to this length are decompressed with the thread's context, which keeps what it needed for the longest.
const SMALL_LEN_MAX: usize = 512 << 10;
/// A frame of such a body refers back at most 1 MiB, whatever it declares.
const SMALL_WINDOW_MAX: DParameter = DParameter::WindowLogMax(20);

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

    #[test]
    fn what_a_body_was_damaged_in_does_not_reach_the_next() {
        let mut compressor = Compressor::new(3);
        for len in [0, 1, 100, SMALL_LEN_MAX, SMALL_LEN_MAX + 1] {
            let raw: Vec<u8> = (0..=250).cycle().take(len).collect();
            let body = compressor.compress(&raw);
            let declared = u32::try_from(len).unwrap();
            for end in [0, body.len() / 2, body.len() - 1] {
                let mut out = b"before".to_vec();
                assert!(decompress(&body[..end], declared, &mut out).is_err());
                assert_eq!(out, b"before");
            }
            for (other, fits) in [(declared, true), (declared + 1, false)] {
                let mut out = b"before".to_vec();
                assert_eq!(decompress(&body, other, &mut out).is_ok(), fits, "{len}");
            }
            let mut out = b"before".to_vec();
            decompress(&body, declared, &mut out).unwrap();
            assert!(out[6..] == raw);
        }
    }
}
