//! A compressed text: one gzip member (RFC 1952) as a server writes it, and nothing behind it.
//!
//! ```text
//! 1f 8b 08 00 00 00 00 00 04 ff | DEFLATE | CRC-32 (4) | length (4), both little-endian
//! ```
//!
//! Programs do not agree on what a second member or what follows the last one is. So neither is there.

use std::io::{BufRead, Error, ErrorKind, Read};

use flate2::Crc;
use flate2::bufread::DeflateDecoder;

/// Reads the text in a member; fails at its end if anything of it is not as it must be.
pub(crate) struct Gunzip<R> {
    text: DeflateDecoder<R>,
    crc: Crc,
    /// Bytes that may still come.
    left: u64,
    is_over: bool,
}

impl<R: BufRead> Gunzip<R> {
    /// `len` is what the manifest says of the text: one byte more is an error, whatever it unpacks to.
    pub(crate) fn new(mut packed: R, len: u64) -> std::io::Result<Self> {
        let mut head = [0; HEAD.len()];
        packed.read_exact(&mut head)?;
        if head != HEAD {
            return Err(wrong("it does not begin as a server begins it"));
        }
        Ok(Self {
            text: DeflateDecoder::new(packed),
            crc: Crc::new(),
            left: len,
            is_over: false,
        })
    }

    fn finish(&mut self) -> std::io::Result<()> {
        let mut tail = [0; 8];
        let packed = self.text.get_mut();
        packed.read_exact(&mut tail)?;
        let expected = [
            self.crc.sum().to_le_bytes(),
            self.crc.amount().to_le_bytes(),
        ];
        if tail != *expected.as_flattened() {
            return Err(wrong("its check sum or length is wrong"));
        }
        if !packed.fill_buf()?.is_empty() {
            return Err(wrong("it goes on behind its end"));
        }
        self.is_over = true;
        Ok(())
    }
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.is_over || buffer.is_empty() {
            return Ok(0);
        }
        let n = self.text.read(buffer)?;
        if n as u64 > self.left {
            return Err(wrong("it unpacks to more than the manifest says"));
        }
        self.left -= n as u64;
        self.crc.update(buffer.get(..n).unwrap_or_default());
        if n == 0 {
            self.finish()?;
        }
        Ok(n)
    }
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

/// Nothing but the text: no name, no time, no system; compressed fast.
const HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 0xff];

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, GzBuilder};

    use super::*;

    fn packed(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzBuilder::new()
            .operating_system(0xff)
            .write(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(packed: &[u8], len: usize) -> std::io::Result<Vec<u8>> {
        let mut text = Vec::new();
        Gunzip::new(packed, len as u64)?.read_to_end(&mut text)?;
        Ok(text)
    }

    #[test]
    fn a_member_is_read_and_no_changed_bit_gives_another_text() {
        for text in [Vec::new(), b"a line\n".to_vec(), vec![b'x'; 100_000]] {
            let whole = packed(&text);
            assert_eq!(unpacked(&whole, text.len()).unwrap(), text);
            for at in (0..whole.len()).filter(|at| text.len() < 100 || at % 7 == 0) {
                for bit in 0..8 {
                    let mut changed = whole.clone();
                    changed[at] ^= 1 << bit;
                    // Some bits of DEFLATE mean nothing; the digest of the member covers them.
                    if let Ok(read) = unpacked(&changed, text.len()) {
                        assert!(read == text, "{at} {bit}");
                    }
                }
                assert!(unpacked(&whole[..at], text.len()).is_err());
            }
            assert!(unpacked(&[&whole[..], &[0]].concat(), text.len()).is_err());
            assert!(unpacked(&[&whole[..], &whole].concat(), 2 * text.len()).is_err());
        }
    }

    #[test]
    fn a_bomb_is_left_at_the_length_that_was_said() {
        let bomb = packed(&vec![0; 16 << 20]);
        let mut read = 0;
        let mut text = Gunzip::new(&bomb[..], 1000).unwrap();
        let mut buffer = vec![0; 4096];
        let error = loop {
            match text.read(&mut buffer) {
                Ok(n) => read += n,
                Err(error) => break error,
            }
        };
        assert!(
            read <= 1000 && error.to_string().contains("more than"),
            "{error}"
        );
    }
}
