//! A tar file, written as it comes.

use std::io::{Read as _, Write};

use anyhow::Result;

use crate::clock;

/// One member of a tar (POSIX.1-1988 ustar).
pub(super) fn member(
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

/// Ends the archive.
pub(super) fn end(out: &mut dyn Write) -> Result<()> {
    Ok(out.write_all(&[0; 1024])?)
}
