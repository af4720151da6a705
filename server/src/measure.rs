//! Length and SHA-256 of what is written.

use std::io::Write;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

/// Counts and hashes what is written to it.
#[derive(Default)]
pub(crate) struct Measure {
    len: u64,
    digest: Sha256,
}

impl Measure {
    /// How much was written so far.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The length, and the SHA-256 in hexadecimal.
    pub(crate) fn finish(self) -> (u64, String) {
        let sha256: [u8; 32] = self.digest.finalize().into();
        (self.len, HEXLOWER.encode(&sha256))
    }
}

impl Write for Measure {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.len += bytes.len() as u64;
        self.digest.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
