//! Where a stream stands in its file, in a form that survives renames, copies and renumbered disks.
//!
//! ```text
//! version 1 (1) | flags (1) | device (8) | inode (8) | offset (8)
//! | head length (2) | SHA-256 of the head, half (16) | tail length (2) | SHA-256 of the tail, half (16)
//! ```
//!
//! The head is the start of the file, the tail what lies just before the offset. A file is the one meant when both
//! match: content is the proof, the inode only says which candidate to try first.
//!
//! After the file that is read come the files beside it of which everything is settled: read to their ends, or there
//! before the stream began. Two of them take the place of one bookmark, in a form that version 0.1.0 takes for a
//! bookmark of no file there is:
//!
//! ```text
//! version 1 (1) | flags: MARKS (1) | first mark, bytes 0 to 24 (24) | 0 (2) | its last 4, the second's first 12 (16) | 0 (2) | the second's last 16 (16)
//! mark: key of device and inode (8) | head length, its first bit: it grew (2) | head, SHA-256 cut (6) | offset (6) | tail, SHA-256 cut (6)
//! ```
//!
//! Version 0.1.0 wrote bookmarks there, of renamed files that might still be written to.

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

/// How far a file beside the one that is read was collected: all of it, when it was looked at last.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Mark {
    /// What the file system called it, see [`FileId::key`].
    pub(crate) key: u64,
    head_len: u16,
    head: [u8; MARK_HASH_LEN],
    /// [`Mark::ALL`] of a file that nobody goes on writing to.
    pub(crate) offset: u64,
    tail: [u8; MARK_HASH_LEN],
    /// It was written to after it was left, and may be again.
    pub(crate) grew: bool,
}

/// Where a stream stands: in its file, and which files beside it are settled, the latest first.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Bookmarks {
    /// `None`: no file of it was read to the end and is still there.
    pub(crate) current: Option<Bookmark>,
    pub(crate) marks: Vec<Mark>,
    /// Every file beside it that is not in `marks` is not collected yet. Version 0.1.0 knew no such thing.
    pub(crate) knows: bool,
    /// There were more files than marks.
    pub(crate) forgot: bool,
    /// Zeros at the end of the file are room for lines to come.
    pub(crate) has_room: bool,
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

    /// Both numbers in one.
    pub(crate) fn key(self) -> u64 {
        self.inode ^ self.device.rotate_left(32)
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

    /// Whether a file with these bytes at its start may be the one this was taken in.
    pub(crate) fn begins_with(&self, head: &[u8]) -> bool {
        half_hash(head) == self.head
    }

    /// Whether a file with these bytes at its start and before the offset is the one this was taken in.
    pub(crate) fn is_of(&self, head: &[u8], tail: &[u8]) -> bool {
        self.begins_with(head) && half_hash(tail) == self.tail
    }
}

impl Mark {
    /// The offset of a file that is settled whatever its length.
    pub(crate) const ALL: u64 = (1 << 48) - 1;

    /// The mark at `offset` of a file that begins with `head` and has `tail` before the offset.
    pub(crate) fn new(id: FileId, offset: u64, head: &[u8], tail: &[u8]) -> Self {
        Self {
            key: id.key(),
            head_len: u16::try_from(head.len()).unwrap_or(u16::MAX),
            head: cut(half_hash(head)),
            offset: offset.min(Self::ALL),
            tail: cut(half_hash(tail)),
            grew: false,
        }
    }

    /// The same of a copy, which has another number.
    pub(crate) fn of_copy(self, key: u64) -> Self {
        Self { key, ..self }
    }

    /// Of a file that nobody may read: known by its number alone.
    pub(crate) fn of_id(id: FileId) -> Self {
        Self::new(id, Self::ALL, b"", b"")
    }

    pub(crate) fn head_len(&self) -> usize {
        usize::from(self.head_len)
    }

    /// How its file begins, as far as it says.
    pub(crate) fn head(&self) -> (u16, [u8; MARK_HASH_LEN]) {
        (self.head_len, self.head)
    }

    /// Whether this says nothing that `other` does not: it has the same number, and the same start if any.
    pub(crate) fn is_part_of(&self, other: &Self) -> bool {
        let says_nothing = self.offset == 0 || self.head_len == 0;
        let is_earlier = self.offset <= other.offset
            && (self.head_len, self.head) == (other.head_len, other.head);
        self.key == other.key && (says_nothing || is_earlier)
    }

    pub(crate) fn tail_len(&self) -> usize {
        let all = usize::try_from(self.offset).unwrap_or(usize::MAX);
        match self.offset {
            Self::ALL => 0,
            _ => all.min(TAIL_LEN_MAX),
        }
    }

    /// Of the first bytes of a file, or those before the offset.
    pub(crate) fn hash(bytes: &[u8]) -> [u8; MARK_HASH_LEN] {
        cut(half_hash(bytes))
    }

    /// Whether a file whose first bytes have this hash is the one, as far as that tells.
    pub(crate) fn begins_with(&self, head: [u8; MARK_HASH_LEN]) -> bool {
        head == self.head
    }

    /// Whether it has these bytes before its offset.
    pub(crate) fn follows(&self, tail: &[u8]) -> bool {
        self.offset == Self::ALL || cut(half_hash(tail)) == self.tail
    }

    fn encode(&self) -> [u8; MARK_LEN] {
        let mut out = [0; MARK_LEN];
        let [_, _, offset @ ..] = self.offset.to_be_bytes();
        let fields = self.key.to_be_bytes().into_iter();
        let head_len = self.head_len | if self.grew { GREW } else { 0 };
        let fields = fields.chain(head_len.to_be_bytes()).chain(self.head);
        let fields = fields.chain(offset).chain(self.tail);
        for (place, byte) in out.iter_mut().zip(fields) {
            *place = byte;
        }
        out
    }

    /// `None` where there is none.
    fn decode(bytes: &[u8; MARK_LEN]) -> Option<Self> {
        let mut r = Reader::new(bytes);
        let key = r.u64("key").ok()?;
        let head_len = r.u16("head length").ok()?;
        let mark = Self {
            key,
            head_len: head_len & !GREW,
            head: r.array("head").ok()?,
            offset: {
                let [a, b, c, d, e, f] = r.array("offset").ok()?;
                u64::from_be_bytes([0, 0, a, b, c, d, e, f])
            },
            tail: r.array("tail").ok()?,
            grew: head_len & GREW != 0,
        };
        let is_one = usize::from(mark.head_len) <= HEAD_LEN_MAX && *bytes != [0; MARK_LEN];
        is_one.then_some(mark)
    }
}

impl From<&Bookmark> for Mark {
    fn from(bookmark: &Bookmark) -> Self {
        Self {
            key: bookmark.id.key(),
            head_len: bookmark.head_len,
            head: cut(bookmark.head),
            offset: bookmark.offset.min(Self::ALL - 1),
            tail: cut(bookmark.tail),
            grew: false,
        }
    }
}

impl Bookmarks {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let marks = self.marks.len().min(MARKS_MAX);
        let mut out = Vec::with_capacity(BOOKMARK_LEN * (1 + marks.div_ceil(2)));
        let nothing = Bookmark::new(FileId::default(), 0, false, b"", b"");
        let current = self.current.as_ref().unwrap_or(&nothing);
        current.encode_to(&mut out);
        let flags = [
            (current.in_line, IN_LINE),
            (self.knows, KNOWS),
            (self.forgot, FORGOT),
            (self.current.is_none(), NO_FILE),
            (self.has_room, HAS_ROOM),
        ];
        let flags = flags.into_iter().filter(|(is_set, _)| *is_set);
        if let Some(place) = out.get_mut(1) {
            *place = flags.fold(0, |all, (_, flag)| all | flag);
        }
        let mut marks = self.marks.iter().take(MARKS_MAX).map(Mark::encode);
        while let Some(first) = marks.next() {
            let second = marks.next().unwrap_or([0; MARK_LEN]);
            let mut bytes = first.into_iter().chain(second);
            out.extend_from_slice(&[1, MARKS]);
            out.extend(bytes.by_ref().take(24));
            out.extend_from_slice(&[0, 0]);
            out.extend(bytes.by_ref().take(16));
            out.extend_from_slice(&[0, 0]);
            out.extend(bytes);
        }
        out
    }

    /// Reads what [`Bookmarks::encode`] wrote, or version 0.1.0; `None` of a stream that has not begun.
    ///
    /// # Errors
    /// One of the bookmarks is not valid.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Option<Self>, InvalidMessage> {
        let mut chunks = bytes.chunks(BOOKMARK_LEN);
        let Some(first) = chunks.next() else {
            return Ok(None);
        };
        let current = Bookmark::decode(first)?;
        let flags = first.get(1).copied().unwrap_or(0);
        let mut place = Self {
            current: (flags & NO_FILE == 0).then_some(current),
            marks: Vec::new(),
            knows: flags & KNOWS != 0,
            forgot: flags & FORGOT != 0,
            has_room: flags & HAS_ROOM != 0,
        };
        for chunk in chunks {
            let bookmark = Bookmark::decode(chunk)?;
            if chunk.get(1).is_none_or(|flags| flags & MARKS == 0) {
                place.marks.push(Mark::from(&bookmark));
                continue;
            }
            let of_it = |from: usize, len: usize| chunk.iter().skip(from).take(len).copied();
            let all: Vec<u8> = of_it(2, 24)
                .chain(of_it(28, 16))
                .chain(of_it(46, 16))
                .collect();
            let marks = all
                .chunks_exact(MARK_LEN)
                .filter_map(|bytes| Mark::decode(bytes.try_into().ok()?));
            place.marks.extend(marks);
        }
        Ok(Some(place))
    }
}

fn cut(hash: [u8; 16]) -> [u8; MARK_HASH_LEN] {
    let [head @ .., _, _, _, _, _, _, _, _, _, _] = hash;
    head
}

fn half_hash(bytes: &[u8]) -> [u8; 16] {
    let [head @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = sha256(&[bytes]);
    head
}

/// Every bookmark is as long as this.
const BOOKMARK_LEN: usize = 62;
const MARK_LEN: usize = 28;
/// Forty-eight bits: nobody gains by a collision, and by chance there is none.
pub(crate) const MARK_HASH_LEN: usize = 6;
/// As many marks as a batch carries beside the bookmark of its file: 1,024 bytes are 16 bookmarks
/// (`scrinium_protocol::batch::BOOKMARK_LEN_MAX`).
pub(crate) const MARKS_MAX: usize = 30;
/// In the head length of a mark, which is no longer than [`HEAD_LEN_MAX`].
const GREW: u16 = 1 << 15;
/// Flags of a bookmark.
const IN_LINE: u8 = 1;
const MARKS: u8 = 2;
const KNOWS: u8 = 4;
const FORGOT: u8 = 8;
const NO_FILE: u8 = 16;
const HAS_ROOM: u8 = 32;
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

    #[test]
    fn a_place_reads_back_and_version_0_1_0_finds_bookmarks_of_no_file_in_it() {
        let id = |inode| FileId { device: 1, inode };
        for count in [0, 1, 2, 3, MARKS_MAX] {
            let marks = (0..count as u64).map(|n| Mark {
                grew: n % 2 == 1,
                ..Mark::new(id(n + 9), n * 1000, b"head", b"tail")
            });
            let place = Bookmarks {
                current: Some(Bookmark::new(id(2), 77, true, b"head", b"tail")),
                marks: marks.collect(),
                knows: true,
                forgot: count > 2,
                has_room: count == 1,
            };
            let encoded = place.encode();
            assert!(encoded.len() <= scrinium_protocol::batch::BOOKMARK_LEN_MAX);
            assert_eq!(Bookmarks::decode(&encoded).unwrap().as_ref(), Some(&place));
            let earlier = encoded.chunks(BOOKMARK_LEN).map(Bookmark::decode);
            let earlier: Vec<Bookmark> = earlier.collect::<Result<_, _>>().unwrap();
            assert!(earlier.iter().skip(1).all(|mark| !mark.is_of(b"", b"")));
            assert_eq!(earlier.first(), place.current.as_ref());
            let none = Bookmarks {
                current: None,
                ..place
            };
            assert_eq!(Bookmarks::decode(&none.encode()).unwrap(), Some(none));
            for len in (1..encoded.len()).filter(|len| len % BOOKMARK_LEN != 0) {
                assert!(Bookmarks::decode(&encoded[..len]).is_err());
            }
        }
        assert_eq!(Bookmarks::decode(b"").unwrap(), None);
    }

    #[test]
    fn what_version_0_1_0_wrote_of_renamed_files_is_taken_up() {
        let id = |inode| FileId { device: 1, inode };
        let bookmark = |inode| Bookmark::new(id(inode), 4, false, b"head", b"head");
        let bytes = [bookmark(1).encode(), bookmark(2).encode()].concat();
        let place = Bookmarks::decode(&bytes).unwrap().unwrap();
        assert_eq!(place.current, Some(bookmark(1)));
        assert!(!place.knows);
        let [mark] = &*place.marks else {
            panic!("{place:?}")
        };
        assert!(mark.offset == 4 && mark.begins_with(Mark::hash(b"head")) && mark.follows(b"head"));
    }
}
