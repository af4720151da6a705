//! One open file and how far it was read.

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;
use std::time::{Instant, SystemTime};

use super::bookmark::{Bookmark, FileId, HEAD_LEN_MAX, TAIL_LEN_MAX};
use super::content::{Content, Hole, Packing};
#[cfg(unix)]
use super::trust;

/// A file being read.
pub(super) struct Follow {
    pub(super) content: Content,
    pub(super) id: FileId,
    /// Everything before was put into entries.
    pub(super) offset: u64,
    /// The start of the file, as far as seen.
    pub(super) head: Vec<u8>,
    /// The bytes before the offset.
    pub(super) tail: Vec<u8>,
    /// An unfinished line's length at the end of the file, and since when it has it.
    pub(super) unfinished: Option<(usize, Instant)>,
    /// Since when it is no longer at the path.
    pub(super) renamed: Option<Instant>,
    /// From the offset to this length, its end, nobody has written anything.
    pub(super) unwritten: Option<u64>,
    /// Such a hole was said, or may have been before this file was opened again.
    pub(super) says_no_unwritten: bool,
}

/// What was done about a hole, and its length.
pub(super) enum Skipped {
    Nothing,
    Hole(u64),
    /// It goes to the end of the file: nothing more is there now.
    Waits(u64),
}

impl Follow {
    pub(super) fn new(content: Content, id: FileId) -> Self {
        Self {
            content,
            id,
            offset: 0,
            head: Vec::new(),
            tail: Vec::new(),
            unfinished: None,
            renamed: None,
            unwritten: None,
            says_no_unwritten: false,
        }
    }

    /// Goes on at a bookmark that was found in this file.
    pub(super) fn resume_at(&mut self, bookmark: &Bookmark) -> io::Result<()> {
        let mut head = vec![0; HEAD_LEN_MAX];
        let got = self.content.read_at(&mut head, 0)?;
        head.truncate(got);
        head.shrink_to_fit();
        let tail_len = usize::try_from(bookmark.offset)
            .unwrap_or(usize::MAX)
            .min(TAIL_LEN_MAX);
        let mut tail = vec![0; tail_len];
        let got = self
            .content
            .read_at(&mut tail, bookmark.offset - tail_len as u64)?;
        if got != tail_len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.says_no_unwritten = true;
        self.offset = bookmark.offset;
        self.head = head;
        self.tail = tail;
        Ok(())
    }

    pub(super) fn bookmark(&self, in_line: bool) -> Bookmark {
        Bookmark::new(self.id, self.offset, in_line, &self.head, &self.tail)
    }

    /// Whether this is the file in which `bookmark` was taken, at least up to its offset; whatever its name.
    pub(super) fn is_of(&mut self, bookmark: &Bookmark) -> io::Result<bool> {
        if self.content.len()?.is_some_and(|len| len < bookmark.offset) {
            return Ok(false);
        }
        let mut head = vec![0; bookmark.head_len()];
        let mut tail = vec![0; bookmark.tail_len()];
        let tail_at = bookmark.offset.saturating_sub(tail.len() as u64);
        Ok(self.content.read_at(&mut head, 0)? == head.len()
            && self.content.read_at(&mut tail, tail_at)? == tail.len()
            && bookmark.is_of(&head, &tail))
    }

    /// When it was written last.
    pub(super) fn modified(&self) -> io::Result<SystemTime> {
        self.content.file().metadata()?.modified()
    }

    /// Whether it was created after `time`; not when the file system does not know.
    pub(super) fn begins_after(&self, time: SystemTime) -> bool {
        let created = self.content.file().metadata().and_then(|m| m.created());
        created.is_ok_and(|created| created > time)
    }

    /// Whether nothing was written to it since it was read.
    pub(super) fn is_at_end(&self) -> io::Result<bool> {
        let unfinished = self.unfinished.map_or(0, |(len, _)| len as u64);
        let len = self.content.len()?;
        Ok(len.is_none_or(|len| len == self.offset + unfinished) || self.is_unwritten(len))
    }

    /// Whether a hole goes from the offset to the end of the file, as it did when it was looked at last.
    pub(super) fn is_unwritten(&self, len: Option<u64>) -> bool {
        let at = self.offset;
        self.unwritten.is_some()
            && self.unwritten == len
            && self.content.after_hole(at) == Some(Hole::ToTheEnd)
    }

    /// Skips a hole that nobody wrote; returns its length. One that goes to the end of the file is not skipped: what
    /// is written there later is read then.
    pub(super) fn skip_hole(&mut self) -> io::Result<Skipped> {
        let Some(hole) = self.content.after_hole(self.offset) else {
            return Ok(Skipped::Nothing);
        };
        let end = match hole {
            Hole::Until(data) => data,
            Hole::ToTheEnd => self.content.len()?.unwrap_or(0),
        };
        let len = end.saturating_sub(self.offset);
        if len < HOLE_LEN_MIN {
            return Ok(Skipped::Nothing);
        }
        if hole == Hole::ToTheEnd {
            self.unwritten = Some(end);
            return Ok(Skipped::Waits(len));
        }
        self.offset = end;
        self.tail = vec![0; TAIL_LEN_MAX];
        Ok(Skipped::Hole(len))
    }

    /// Moves the offset to `at` of a window that begins `tail_len` bytes before the offset.
    pub(super) fn move_to(&mut self, at: usize, tail_len: usize, window: &[u8]) {
        self.offset = self.offset - tail_len as u64 + at as u64;
        let from = at.saturating_sub(TAIL_LEN_MAX);
        self.tail = window.get(from..at).unwrap_or_default().to_vec();
    }

    /// Notes more of the file's start, as far as `window`, which begins at `start`, shows it.
    pub(super) fn learn_head(&mut self, window: &[u8], start: u64) {
        if self.head.len() < HEAD_LEN_MAX && start <= self.head.len() as u64 {
            let known = self.head.len() - usize::try_from(start).unwrap_or(0);
            let unseen = window.get(known..).unwrap_or_default();
            let missing = (HEAD_LEN_MAX - self.head.len()).min(unseen.len());
            let unseen = unseen.get(..missing).unwrap_or_default();
            self.head.extend_from_slice(unseen);
        }
    }

    /// Moves the offset behind `bytes`, which stand there.
    pub(super) fn go_on(&mut self, bytes: &[u8]) {
        self.offset += bytes.len() as u64;
        self.tail.extend_from_slice(bytes);
        let too_long = self.tail.len().saturating_sub(TAIL_LEN_MAX);
        self.tail.drain(..too_long);
    }

    /// Undoes [`Follow::move_to`], so that further positions count from the window's start again.
    pub(super) fn move_back(&mut self, at: usize, tail_len: usize, window: &[u8]) {
        self.offset = self.offset - at as u64 + tail_len as u64;
        self.tail = window.get(..tail_len).unwrap_or_default().to_vec();
    }
}

/// Opens a regular file, compressed or not; `None` when there is none. Links below `root` count by their owners.
///
/// # Errors
/// A link is not followed, see [`trust::is_refusal`]; the file cannot be opened, or is renamed faster than that.
pub(super) fn open(path: &Path, root: &Path) -> io::Result<Option<Follow>> {
    for _ in 0..OPENS_MAX {
        let file = match open_shared(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(None);
        }
        let id = FileId::of(&file, &metadata)?;
        // What is open is what the links that count lead to, whoever changed them meanwhile.
        if is_led_to(id, path, root)? {
            let content = Content::new(file, Packing::of(path))?;
            return Ok(Some(Follow::new(content, id)));
        }
    }
    Err(io::Error::other(
        "the file is renamed faster than it is opened",
    ))
}

#[cfg(unix)]
fn is_led_to(id: FileId, path: &Path, root: &Path) -> io::Result<bool> {
    match trust::leads_to(path, root) {
        Ok(found) => Ok(found == id),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "on other systems it can fail")]
fn is_led_to(_id: FileId, _path: &Path, _root: &Path) -> io::Result<bool> {
    Ok(true)
}

/// What the file system calls the regular file at `path`, and its length.
pub(super) fn look(path: &Path) -> io::Result<Option<(FileId, u64)>> {
    match look_at(path) {
        Ok((metadata, id)) => Ok(metadata.is_file().then_some((id, metadata.len()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is at a path, and its length; when it is another file than `known`, whether links may lead to it.
pub(super) fn look_within(
    path: &Path,
    root: &Path,
    known: Option<(FileId, u64)>,
) -> io::Result<Option<(FileId, u64)>> {
    let seen = look(path)?;
    #[cfg(unix)]
    if let Some((id, _)) = seen
        && known.is_none_or(|(known, _)| known != id)
    {
        match trust::leads_to(path, root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            led_to => led_to.map(drop)?,
        }
    }
    #[cfg(not(unix))]
    let _no_owners = (root, known);
    Ok(seen)
}

/// Whether no name leads to the file any more.
#[cfg(unix)]
pub(super) fn is_deleted(follow: &Follow) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = follow.content.file().metadata();
    metadata.is_ok_and(|metadata| metadata.nlink() == 0)
}

/// Whether no name will lead to the file any more when everybody has let go of it.
#[cfg(windows)]
pub(super) fn is_deleted(follow: &Follow) -> bool {
    let information = winapi_util::file::information(follow.content.file());
    information.is_ok_and(|information| information.number_of_links() == 0)
}

#[cfg(unix)]
fn look_at(path: &Path) -> io::Result<(Metadata, FileId)> {
    let metadata = std::fs::metadata(path)?;
    let id = FileId::of_metadata(&metadata);
    Ok((metadata, id))
}

/// Only an open file says what it is called.
#[cfg(windows)]
fn look_at(path: &Path) -> io::Result<(Metadata, FileId)> {
    let file = open_shared(path)?;
    let metadata = file.metadata()?;
    let id = FileId::of(&file, &metadata)?;
    Ok((metadata, id))
}

/// Whether the file at a path can be opened, whatever is there by now.
pub(crate) fn can_open(path: &Path) -> io::Result<()> {
    open_shared(path).map(drop)
}

/// Whatever took the place of the file: a FIFO without a writer and a device are not waited for, and no terminal
/// becomes ours.
#[cfg(not(windows))]
fn open_shared(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;

    use rustix::fs::OFlags;
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut options = File::options();
    let options = options.read(true).custom_flags(flags.bits().cast_signed());
    options.open(path)
}

/// The writer goes on writing, renaming and deleting while we read.
#[cfg(windows)]
fn open_shared(path: &Path) -> io::Result<File> {
    use std::os::windows::fs::OpenOptionsExt as _;
    const READ_WRITE_DELETE: u32 = 7;
    let mut options = File::options();
    options.read(true).share_mode(READ_WRITE_DELETE).open(path)
}

/// A shorter hole is read as the zeros that it is.
const HOLE_LEN_MIN: u64 = 64 << 10;
/// How often a file may be renamed while it is opened.
const OPENS_MAX: usize = 8;
