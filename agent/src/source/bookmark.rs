//! Where a stream stands in its file, in a form that survives renames, copies and renumbered disks.
//!
//! ```text
//! version 1 (1) | flags (1) | device (8) | inode (8) | offset (8)
//! | head length (2) | SHA-256 of the head, half (16) | tail length (2) | SHA-256 of the tail, half (16)
//! ```
//!
//! One after the other, when renamed files may still be written to: first the file that is read, then
//! those. The head is the start of the file, the tail what lies just before the offset. A file is the one
//! meant when both match: content is the proof, the inode only says which candidate to try first.

use std::fs::{File, Metadata};
use std::io;

use scrinium_protocol::codec::Reader;
use scrinium_protocol::error::InvalidMessage;
use scrinium_protocol::kdf::sha256;

/// A position in a file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Bookmark {
    pub(crate) id: FileId,
    pub(crate) offset: u64,
    /// The last entry before the offset was a fragment: its line is still open.
    pub(crate) in_line: bool,
    head_len: u16,
    head: [u8; 16],
    tail_len: u16,
    tail: [u8; 16],
}

/// What the file system calls a file.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl FileId {
    /// What the file system calls an open file.
    #[cfg(unix)]
    #[expect(
        clippy::unnecessary_wraps,
        reason = "Windows has to ask, and may be refused"
    )]
    pub(crate) fn of(_file: &File, metadata: &Metadata) -> io::Result<Self> {
        Ok(Self::of_metadata(metadata))
    }

    /// What the file system calls an open file: NTFS' file index, until the file is gone.
    #[cfg(windows)]
    pub(crate) fn of(file: &File, _metadata: &Metadata) -> io::Result<Self> {
        let information = winapi_util::file::information(file)?;
        Ok(Self {
            device: information.volume_serial_number(),
            inode: information.file_index(),
        })
    }

    #[cfg(unix)]
    pub(crate) fn of_metadata(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

impl Bookmark {
    /// The bookmark at `offset` of a file that begins with `head` and has `tail` before the offset.
    pub(crate) fn new(id: FileId, offset: u64, in_line: bool, head: &[u8], tail: &[u8]) -> Self {
        Self {
            id,
            offset,
            in_line,
            head_len: u16::try_from(head.len()).unwrap_or(u16::MAX),
            head: half_hash(head),
            tail_len: u16::try_from(tail.len()).unwrap_or(u16::MAX),
            tail: half_hash(tail),
        }
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BOOKMARK_LEN);
        self.encode_to(&mut out);
        out
    }

    /// Several, one after the other.
    #[must_use]
    pub fn encode_all(bookmarks: &[Self]) -> Vec<u8> {
        let mut out = Vec::with_capacity(BOOKMARK_LEN * bookmarks.len());
        for bookmark in bookmarks {
            bookmark.encode_to(&mut out);
        }
        out
    }

    fn encode_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[1, u8::from(self.in_line)]);
        out.extend_from_slice(&self.id.device.to_be_bytes());
        out.extend_from_slice(&self.id.inode.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        out.extend_from_slice(&self.head_len.to_be_bytes());
        out.extend_from_slice(&self.head);
        out.extend_from_slice(&self.tail_len.to_be_bytes());
        out.extend_from_slice(&self.tail);
    }

    /// Reads what [`Bookmark::encode_all`] wrote.
    ///
    /// # Errors
    /// One of them is not valid.
    pub fn decode_all(bytes: &[u8]) -> Result<Vec<Self>, InvalidMessage> {
        bytes.chunks(BOOKMARK_LEN).map(Self::decode).collect()
    }

    /// Reads what [`Bookmark::encode`] wrote; it may have been with the server meanwhile.
    ///
    /// # Errors
    /// It is cut, too long, or of a version this agent does not know.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidMessage> {
        let mut r = Reader::new(bytes);
        let version = r.u8("bookmark version")?;
        if version != 1 {
            return Err(InvalidMessage::UnknownType(version));
        }
        let bookmark = Self {
            in_line: r.u8("bookmark flags")? & 1 != 0,
            id: FileId {
                device: r.u64("device")?,
                inode: r.u64("inode")?,
            },
            offset: r.u64("offset")?,
            head_len: r.u16("head length")?,
            head: r.array("head")?,
            tail_len: r.u16("tail length")?,
            tail: r.array("tail")?,
        };
        r.finish("bookmark")?;
        if usize::from(bookmark.head_len) > HEAD_LEN_MAX
            || usize::from(bookmark.tail_len) > TAIL_LEN_MAX
        {
            return Err(InvalidMessage::TooLong("bookmark"));
        }
        Ok(bookmark)
    }

    pub(crate) fn head_len(&self) -> usize {
        usize::from(self.head_len)
    }

    pub(crate) fn tail_len(&self) -> usize {
        usize::from(self.tail_len)
    }

    /// Whether a file with these bytes at its start and before the offset is the one this was taken in.
    pub(crate) fn is_of(&self, head: &[u8], tail: &[u8]) -> bool {
        half_hash(head) == self.head && half_hash(tail) == self.tail
    }
}

fn half_hash(bytes: &[u8]) -> [u8; 16] {
    let [head @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = sha256(&[bytes]);
    head
}

/// Every bookmark is as long as this.
const BOOKMARK_LEN: usize = 62;
/// Most bytes of the start of a file that identify it.
pub(crate) const HEAD_LEN_MAX: usize = 1024;
/// Most bytes before the offset that identify a position.
pub(crate) const TAIL_LEN_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bookmark_reads_back() {
        let id = FileId {
            device: 1,
            inode: 2,
        };
        let bookmark = Bookmark::new(id, 77, true, b"head", b"tail");
        assert_eq!(Bookmark::decode(&bookmark.encode()), Ok(bookmark.clone()));
        let encoded = bookmark.encode();
        for len in 0..encoded.len() {
            assert!(Bookmark::decode(&encoded[..len]).is_err());
        }
    }
}
