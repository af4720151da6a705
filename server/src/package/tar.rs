//! A tar file, written as it comes.

use std::io::{Read as _, Write};

use anyhow::{Result, ensure};

/// Where the members of a package go (POSIX.1-1988 ustar, with nothing in it that is not needed). `docs/PACKAGE.md` has
/// every byte, and a reader takes no other.
pub(super) struct Tar<'a> {
    out: &'a mut dyn Write,
    /// When the package was made, Unix seconds; every member is of this time.
    time_s: u64,
}

impl<'a> Tar<'a> {
    pub(super) fn new(out: &'a mut dyn Write, time_s: u64) -> Self {
        Self { out, time_s }
    }

    /// Begins a member whose content is `len` bytes and follows through [`Self::content`].
    pub(super) fn begin(&mut self, name: &str, len: u64) -> Result<()> {
        ensure!(
            name.len() <= NAME_LEN_MAX && len <= NUMBER_MAX,
            "{name} of {len} bytes has no header"
        );
        let mut header = [0_u8; 512];
        let mut put = |offset: usize, bytes: &[u8]| {
            if let Some(field) = header.get_mut(offset..offset + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        let time_s = self.time_s.min(NUMBER_MAX);
        put(0, name.as_bytes());
        put(100, b"0000644\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{len:011o}\0").as_bytes());
        put(136, format!("{time_s:011o}\0").as_bytes());
        put(148, b"        ");
        put(156, b"0");
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        if let Some(field) = header.get_mut(148..156) {
            field.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        Ok(self.out.write_all(&header)?)
    }

    /// Where the content of the member that was begun goes.
    pub(super) fn content(&mut self) -> &mut dyn Write {
        self.out
    }

    /// Ends a member of `len` bytes.
    pub(super) fn end(&mut self, len: u64) -> Result<()> {
        let padding = (512 - len % 512) % 512;
        std::io::copy(&mut std::io::repeat(0).take(padding), self.out)?;
        Ok(())
    }

    /// Ends the archive.
    pub(super) fn finish(self) -> Result<()> {
        Ok(self.out.write_all(&[0; 1024])?)
    }
}

const NAME_LEN_MAX: usize = 99;
/// What eleven octal digits hold: a byte less than 8 GiB.
const NUMBER_MAX: u64 = (1 << 33) - 1;
