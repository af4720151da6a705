//! The bytes of a segment.
//!
//! ```text
//! header:  "SCRSEG" 0 1 (8) | kind (1) | cipher (1) | zeros (6) | number (8) | salt (32) | previous (16) | tag (16)
//! record:  length (4) | kind (1) | ciphertext | tag (16)          length counts ciphertext and tag
//! end:     a record of kind 0xff holding the number of records before it (8)
//! ```
//!
//! The key of a segment is HKDF-SHA-256(base key, salt), so no two segments share one and a nonce
//! can be the record's index. The header's tag authenticates the header; `previous` is the tag of
//! the segment before, so a segment removed from the middle, or an older copy put back, shows. A
//! record's length and kind are its associated data.

use std::io;
use std::path::{Path, PathBuf};

use scrinium_protocol::secret::Secret;

use crate::cipher::{Cipher, Sealer};

/// What a segment is for; keys of different kinds never meet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The agent's spool.
    Spool,
    /// The server's log, as batches came.
    Log,
    /// The server's archive.
    Archive,
    /// The sealed intervals of an archive.
    Evidence,
    /// Rows of the server's catalogue.
    Copy,
    /// How far the server's log was acknowledged.
    Acked,
}

impl Kind {
    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Self::Spool => 1,
            Self::Log => 2,
            Self::Archive => 3,
            Self::Evidence => 4,
            Self::Copy => 5,
            Self::Acked => 6,
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Spool => "spool",
            Self::Log => "log",
            Self::Archive => "seg",
            Self::Evidence => "evd",
            Self::Copy => "copy",
            Self::Acked => "ack",
        }
    }
}

/// The file name of segment `number`; sorts by number.
#[must_use]
pub fn segment_name(kind: Kind, number: u64) -> String {
    format!("{number:016x}.{}", kind.extension())
}

/// The numbers of the segments of `kind` in `dir`, ascending.
///
/// # Errors
/// The directory cannot be listed.
pub fn segment_numbers(dir: &Path, kind: Kind) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = PathBuf::from(entry?.file_name());
        if path.extension().is_some_and(|own| own == kind.extension()) {
            let hex = path.file_stem().and_then(|stem| stem.to_str());
            numbers.extend(hex.and_then(|hex| u64::from_str_radix(hex, 16).ok()));
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Where a record lies in its segment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place {
    pub offset: u64,
    /// Bytes of the record, header and tag included.
    pub len: u32,
    /// Number of the record in its segment.
    pub index: u64,
}

/// What can be wrong with a segment.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The header is not one, or was not written under this key.
    #[error("{}: its header is damaged or belongs to another volume", path.display())]
    Header { path: PathBuf },
    /// A record does not authenticate.
    #[error("{}: record {index} at byte {offset} is damaged", path.display())]
    Record {
        path: PathBuf,
        offset: u64,
        index: u64,
    },
    /// An earlier write failed: what reached the disk is unknown until the segment is reopened.
    #[error("{}: an earlier write failed", path.display())]
    Poisoned { path: PathBuf },
    /// No record is that long; nothing was written.
    #[error("{}: a record of {bytes} bytes does not fit into one; at most {RECORD_LEN_MAX}", path.display())]
    TooLong { path: PathBuf, bytes: usize },
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    Random,
}

/// What makes the keys of one segment, besides a base key.
#[derive(Clone, Copy)]
pub(crate) struct Keyed {
    pub(crate) cipher: Cipher,
    pub(crate) kind: Kind,
    pub(crate) salt: [u8; 32],
}

impl Keyed {
    pub(crate) fn cipher(&self, base: &Secret<32>) -> SegmentCipher {
        SegmentCipher::new(self.cipher, base, self.kind, &self.salt)
    }
}

/// Seals and opens the records of one segment.
pub(crate) struct SegmentCipher(Sealer);

impl SegmentCipher {
    pub(crate) fn new(cipher: Cipher, base: &Secret<32>, kind: Kind, salt: &[u8; 32]) -> Self {
        let info = [&b"scrinium segment v1"[..], &[kind.to_byte()]];
        Self(Sealer::new(cipher, base, salt, &info))
    }

    /// The tag of a header without its tag.
    pub(crate) fn header_tag(&self, header: &[u8]) -> [u8; TAG_LEN] {
        self.0.authenticate_header(header)
    }

    /// Seals `buffer[start..]` in place and appends the tag.
    pub(crate) fn seal(&self, index: u64, head: &[u8], buffer: &mut Vec<u8>, start: usize) {
        let text = buffer.get_mut(start..).expect("start is within the buffer");
        let tag = self.0.seal(index, head, text);
        buffer.extend_from_slice(&tag);
    }

    /// Opens `text` in place; the tag is cut off. `false` when it does not authenticate.
    pub(crate) fn open(&self, index: u64, head: &[u8], text: &mut Vec<u8>) -> bool {
        let Some((body, tag)) = text.split_last_chunk_mut::<TAG_LEN>() else {
            return false;
        };
        let opened = self.0.open(index, head, body, tag);
        text.truncate(text.len() - TAG_LEN);
        opened
    }
}

/// `N` bytes from the operating system.
///
/// # Errors
/// [`Error::Random`].
pub fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes)
}

pub(crate) const MAGIC: &[u8; 8] = b"SCRSEG\0\x01";
/// Bytes before the first record.
pub const HEADER_LEN: usize = 88;
pub(crate) const RECORD_HEAD_LEN: usize = 5;
/// The same, as it is added to lengths on the disk.
pub(crate) const RECORD_HEAD_LEN_U32: u32 = 5;
pub(crate) const TAG_LEN: usize = 16;
pub(crate) const END: u8 = 0xff;
/// Bytes a record costs besides its payload.
pub const RECORD_OVERHEAD: usize = RECORD_HEAD_LEN + TAG_LEN;
/// Longest payload of a record; compared before anything is allocated.
pub const RECORD_LEN_MAX: usize = 64 << 20;
