//! The strict reader of the tar file: only what a server writes, byte for byte.
//!
//! ```text
//! per member: header (512): name | 0000644 | 0 | 0 | length | time | sum | type 0 | ustar 00, zeros else
//!             content | zeros up to a multiple of 512
//! at the end: 1024 zeros, and the file is over
//! ```
//!
//! A header is rebuilt from its name, its length and its time, and compared byte for byte. So there is no prefix, no
//! link, no other type, no PAX or GNU header and no second way to write a number: every program that knows tar finds
//! the same members.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek as _, SeekFrom};

use anyhow::{Context as _, Result, bail, ensure};
use scrinium_protocol::shown;

/// A file that is read at places.
#[derive(Clone, Copy)]
pub(crate) struct Tar<'a> {
    file: &'a File,
    len: u64,
}

/// A member: where its content lies, how long that is, and when it was written, Unix seconds.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    start: u64,
    pub(crate) len: u64,
    pub(crate) time_s: u64,
}

impl<'a> Tar<'a> {
    pub(crate) fn new(file: &'a File) -> Result<Self> {
        let len = file.metadata().context("reading the file's length")?.len();
        Ok(Self { file, len })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The member whose header is at byte `at`, and where the next header is; `None` at the end.
    pub(crate) fn member(&self, at: u64) -> Result<Option<(Member, u64)>> {
        let mut header = [0; HEADER_LEN];
        match self.read_exact(at, &mut header) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                bail!("the package is cut at byte {}", self.len)
            }
            read => read?,
        }
        if header == [0; HEADER_LEN] {
            self.end(at)?;
            return Ok(None);
        }
        let (name, len, time_s) = fields(&header)
            .with_context(|| format!("at byte {at} is no header as a server writes it"))?;
        let (start, name) = (at + HEADER_LEN as u64, name.to_owned());
        let end = start.checked_add(len).filter(|&end| end <= self.len);
        let end = end.with_context(|| format!("the package is cut in {}", shown::name(&name)))?;
        let next = end.next_multiple_of(HEADER_LEN as u64);
        let mut padding = Vec::new();
        self.part(end, next - end).read_to_end(&mut padding)?;
        ensure!(
            padding.len() as u64 == next - end && padding.iter().all(|&byte| byte == 0),
            "behind {} are not the zeros that a server writes",
            shown::name(&name)
        );
        let member = Member {
            name,
            start,
            len,
            time_s,
        };
        Ok(Some((member, next)))
    }

    /// Checks that the file ends as it must: with the block of zeros at `at`, another, and nothing.
    fn end(&self, at: u64) -> Result<()> {
        let mut second = [0; HEADER_LEN];
        let is_there = self.read_exact(at + HEADER_LEN as u64, &mut second);
        is_there.context("the package is cut in the zeros at its end")?;
        let over = at + 2 * HEADER_LEN as u64;
        ensure!(
            second == [0; HEADER_LEN] && self.len == over,
            "the package goes on behind its end at byte {over}"
        );
        Ok(())
    }

    /// A reader of a member's content.
    pub(crate) fn open(&self, member: &Member) -> BufReader<Part<'a>> {
        BufReader::with_capacity(1 << 18, self.part(member.start, member.len))
    }

    /// A member that is read as a whole; it must not be longer than `len_max`.
    pub(crate) fn read(&self, member: &Member, len_max: u64) -> Result<Vec<u8>> {
        if member.len > len_max {
            bail!("{} is longer than any can be", shown::name(&member.name));
        }
        let mut bytes = Vec::new();
        self.part(member.start, member.len)
            .read_to_end(&mut bytes)?;
        ensure!(
            bytes.len() as u64 == member.len,
            "the package is cut in {}",
            shown::name(&member.name)
        );
        Ok(bytes)
    }

    fn read_exact(&self, at: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.part(at, buffer.len() as u64).read_exact(buffer)
    }

    fn part(&self, start: u64, len: u64) -> Part<'a> {
        Part {
            file: self.file,
            at: start,
            end: start.saturating_add(len),
        }
    }
}

/// Consecutive bytes of a file.
pub(crate) struct Part<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut file = self.file;
        // All parts share the file's position: it is set for every read.
        file.seek(SeekFrom::Start(self.at))?;
        let n = file.take(self.end - self.at).read(buffer)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// Name, length and time of a header; `None` when the same three make another header.
fn fields(header: &[u8; HEADER_LEN]) -> Option<(&str, u64, u64)> {
    let name = header.get(..NAME_LEN)?.split(|&byte| byte == 0).next()?;
    let name = str::from_utf8(name).ok().filter(|name| !name.is_empty())?;
    let octal = |at: usize| {
        let digits = str::from_utf8(header.get(at..at + 11)?).ok()?;
        u64::from_str_radix(digits, 8).ok()
    };
    let (len, time_s) = (octal(124)?, octal(136)?);
    (header_of(name, len, time_s) == *header).then_some((name, len, time_s))
}

/// The header that a server writes: POSIX.1-1988 ustar, with nothing in it that is not needed.
fn header_of(name: &str, len: u64, time_s: u64) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = header.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
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
    header
}

const HEADER_LEN: usize = 512;
/// A name fills its field at most but for the zero that ends it.
const NAME_LEN: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_header_of_a_name_a_length_and_a_time_is_one() {
        let header = header_of("log.txt.gz", 1234, 1_700_000_000);
        assert_eq!(fields(&header), Some(("log.txt.gz", 1234, 1_700_000_000)));
        // Whoever changes a byte has to change the sum too; even then nothing but the three fields may differ.
        for at in 0..HEADER_LEN {
            for bit in 0..8 {
                let mut changed = header;
                changed[at] ^= 1 << bit;
                assert_eq!(fields(&changed), None, "byte {at}, bit {bit}");
                if (148..156).contains(&at) {
                    continue;
                }
                changed[148..156].copy_from_slice(b"        ");
                let sum: u32 = changed.iter().map(|&byte| u32::from(byte)).sum();
                changed[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                if let Some(read) = fields(&changed) {
                    let is_field = at < 11 || (124..135).contains(&at) || (136..147).contains(&at);
                    assert!(is_field, "byte {at}, bit {bit}");
                    assert_ne!(read, ("log.txt.gz", 1234, 1_700_000_000));
                }
            }
        }
    }

    #[test]
    fn a_length_of_eight_gibibytes_has_no_header() {
        let most = (1_u64 << 33) - 1;
        assert_eq!(fields(&header_of("a", most, 0)), Some(("a", most, 0)));
        assert_eq!(fields(&header_of("a", most + 1, 0)), None);
        assert_eq!(fields(&header_of(" ", 0, 0)), Some((" ", 0, 0)));
        assert_eq!(fields(&header_of("", 0, 0)), None);
    }
}
