//! One open file and how far it was read.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::bookmark::{Bookmark, FileId, HEAD_LEN_MAX, MARK_HASH_LEN, Mark, TAIL_LEN_MAX};
use super::content::{Content, Packing, read_full};
use super::disk::{Disk, Hole, Led, Seen};
use super::trust;

/// A file being read.
pub(super) struct Follow {
    pub(super) content: Content,
    pub(super) id: FileId,
    /// Where it was when it was opened.
    pub(super) path: PathBuf,
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
    /// The zeros at its end, as far as they were looked at.
    pub(super) blank: Option<Blank>,
    /// A hole that goes to its end was said, or may have been before this file was opened again.
    pub(super) says_no_unwritten: bool,
    /// All of it was looked at again before it is left.
    pub(super) is_final: bool,
    /// How long it was, and when it was written last, before it was read to its end.
    pub(super) ended: Option<(u64, SystemTime)>,
    /// It was written to after it was left.
    pub(super) grew: bool,
    /// It was made of the file at the path, which was truncated then.
    pub(super) is_copy: bool,
}

/// The first bytes of a file, to be compared with many marks.
pub(super) struct Start {
    bytes: Vec<u8>,
    /// Of so many of them.
    hashes: Vec<(usize, [u8; MARK_HASH_LEN])>,
}

impl Start {
    /// Whether a file that began like `earlier` may begin like this now.
    pub(super) fn goes_on(&self, earlier: &Self) -> bool {
        self.bytes.starts_with(&earlier.bytes)
    }

    /// Whether the file in which a bookmark was taken may begin like this.
    pub(super) fn begins(&self, bookmark: &Bookmark) -> bool {
        let head = self.bytes.get(..bookmark.head_len());
        head.is_some_and(|head| bookmark.begins_with(head))
    }

    pub(super) fn is_of(&mut self, mark: &Mark) -> bool {
        let len = mark.head_len();
        let Some(bytes) = self.bytes.get(..len) else {
            return false;
        };
        let known = self.hashes.iter().find(|(known, _)| *known == len);
        let hash = match known {
            Some((_, hash)) => *hash,
            None => {
                let hash = Mark::hash(bytes);
                self.hashes.push((len, hash));
                hash
            }
        };
        mark.begins_with(hash)
    }
}

/// Zeros that go to the end of a file: no text, or not yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blank {
    pub(super) from: u64,
    /// So far they were looked at.
    pub(super) to: u64,
    /// The file's length and time then.
    pub(super) len: u64,
    pub(super) modified: SystemTime,
    /// Since when this is known.
    pub(super) since: Instant,
}

impl Blank {
    pub(super) fn is_whole(&self) -> bool {
        self.to >= self.len
    }
}

impl Follow {
    pub(super) fn new(content: Content, id: FileId, path: &Path) -> Self {
        Self {
            content,
            id,
            path: path.to_owned(),
            offset: 0,
            head: Vec::new(),
            tail: Vec::new(),
            unfinished: None,
            renamed: None,
            blank: None,
            says_no_unwritten: false,
            is_final: false,
            ended: None,
            grew: false,
            is_copy: false,
        }
    }

    /// The same file, from its start.
    pub(super) fn anew(self) -> Self {
        Self::new(self.content, self.id, &self.path)
    }

    /// Goes on at a bookmark that was found in this file.
    pub(super) fn resume_at(&mut self, offset: u64) -> io::Result<()> {
        let mut head = vec![0; HEAD_LEN_MAX];
        let got = self.content.read_at(&mut head, 0)?;
        head.truncate(got);
        // Zeros after the offset may be room for lines to come.
        let text = head
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1);
        let read = usize::try_from(offset).unwrap_or(usize::MAX);
        head.truncate(text.max(read.min(got)));
        head.shrink_to_fit();
        let tail_len = read.min(TAIL_LEN_MAX);
        let mut tail = vec![0; tail_len];
        let got = self.content.read_at(&mut tail, offset - tail_len as u64)?;
        if got != tail_len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.says_no_unwritten = true;
        self.offset = offset;
        self.head = head;
        self.tail = tail;
        Ok(())
    }

    pub(super) fn bookmark(&self, in_line: bool) -> Bookmark {
        Bookmark::new(self.id, self.offset, in_line, self.read_head(), &self.tail)
    }

    /// The start of the file as far as it was read: what comes after that may not be in a copy that was made of it
    /// before. Where nothing was read, what was seen is all there is.
    fn read_head(&self) -> &[u8] {
        let read = match self.offset {
            0 => usize::MAX,
            offset => usize::try_from(offset).unwrap_or(usize::MAX),
        };
        self.head.get(..read).unwrap_or(&self.head)
    }

    pub(super) fn mark(&self) -> Mark {
        let mut mark = Mark::new(self.id, self.offset, self.read_head(), &self.tail);
        mark.grew = self.grew;
        mark
    }

    /// What it was when all of it was collected, if it was.
    pub(super) fn as_collected(&self) -> Option<Seen> {
        if self.unfinished.is_some() {
            return None;
        }
        match (self.content.is_packed(), self.ended) {
            (true, _) => self.seen().ok(),
            (false, None) => None,
            (false, Some((len, modified))) => Some(Seen {
                id: self.id,
                len,
                modified,
            }),
        }
    }

    /// The mark of all there is, of a file that nobody reads: it was there before.
    pub(super) fn mark_of_all(&mut self) -> io::Result<Mark> {
        let mut head = vec![0; HEAD_LEN_MAX];
        let got = self.content.read_at(&mut head, 0)?;
        head.truncate(got);
        let Some(len) = self.content.len()? else {
            return Ok(Mark::new(self.id, Mark::ALL, &head, b""));
        };
        let tail_len = usize::try_from(len).unwrap_or(usize::MAX).min(TAIL_LEN_MAX);
        let mut tail = vec![0; tail_len];
        let got = self.content.read_at(&mut tail, len - tail_len as u64)?;
        tail.truncate(got);
        Ok(Mark::new(self.id, len, &head, &tail))
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

    /// Whether this is the first part of what was read of a file, as far as its start tells: of that all is known, or
    /// the hash in the bookmark.
    pub(super) fn is_part_of(
        &mut self,
        bookmark: &Bookmark,
        head: Option<&[u8]>,
    ) -> io::Result<bool> {
        let end = self.content.end()?;
        let Some((len, _)) = end.filter(|(len, _)| *len <= bookmark.offset) else {
            return Ok(false);
        };
        let start = self.start()?.bytes;
        Ok(len >= PART_MIN
            && match head {
                Some(head) => head.starts_with(&start),
                None => start
                    .get(..bookmark.head_len())
                    .is_some_and(|start| bookmark.begins_with(start)),
            })
    }

    /// Whether this file, which is open, was read further than the other goes, and holds what that begins and ends with in
    /// the same places.
    pub(super) fn holds(&self, start: &Start, end: &(u64, Vec<u8>)) -> io::Result<bool> {
        let (len, tail) = end;
        if self.content.is_packed() || *len >= self.offset {
            return Ok(false);
        }
        let file = self.content.file();
        let is_at = |bytes: &[u8], at: u64| {
            let mut own = vec![0; bytes.len()];
            let got = read_full(&mut own, |rest, done| file.read_at(rest, at + done))?;
            Ok::<bool, io::Error>(got == bytes.len() && own == bytes)
        };
        Ok(is_at(&start.bytes, 0)? && is_at(tail, len - tail.len() as u64)?)
    }

    /// A mark of all that a compressed file holds, of which the end was seen.
    pub(super) fn mark_of_part(&mut self) -> io::Result<Option<Mark>> {
        let Some((len, tail)) = self.content.end()? else {
            return Ok(None);
        };
        let start = self.start()?;
        Ok(Some(Mark::new(self.id, len, &start.bytes, &tail)))
    }

    /// How the file begins.
    pub(super) fn start(&mut self) -> io::Result<Start> {
        let mut bytes = vec![0; HEAD_LEN_MAX];
        let got = self.content.read_at(&mut bytes, 0)?;
        bytes.truncate(got);
        // Many are only looked at.
        self.content.let_go(HEAD_LEN_MAX as u64);
        Ok(Start {
            bytes,
            hashes: Vec::new(),
        })
    }

    /// Whether this is a file that was settled up to `mark`, which begins like this.
    pub(super) fn matches(&mut self, start: &mut Start, mark: &Mark) -> io::Result<bool> {
        let ends_before = |len| mark.offset != Mark::ALL && len < mark.offset;
        if self.content.len()?.is_some_and(ends_before) || !start.is_of(mark) {
            return Ok(false);
        }
        let mut tail = vec![0; mark.tail_len()];
        if tail.is_empty() {
            return Ok(true);
        }
        let tail_at = mark.offset.saturating_sub(tail.len() as u64);
        let got = self.content.read_at(&mut tail, tail_at)?;
        Ok(got == tail.len() && mark.follows(&tail))
    }

    pub(super) fn seen(&self) -> io::Result<Seen> {
        let stat = self.content.stat()?;
        Ok(Seen {
            id: self.id,
            len: stat.len,
            modified: stat.modified,
        })
    }

    /// Whether it was created after `time`; not when the file system does not know. A compressed one keeps the time when
    /// the plain one was written last, to the second: what it holds is no younger.
    pub(super) fn begins_after(&self, time: SystemTime) -> bool {
        let Ok(stat) = self.content.stat() else {
            return false;
        };
        let was_written = !self.content.is_packed() || stat.modified + SECOND > time;
        was_written && self.created().is_some_and(|created| created > time)
    }

    /// Whether it is one of the agent itself.
    pub(super) fn is_own(&self, disk: &dyn Disk) -> bool {
        disk.is_own(self.content.file(), &self.path)
    }

    /// Whether it was made after `file` and is no compressed one: whoever renames makes a new file at the path later.
    pub(super) fn is_made_after(&self, file: FileId, created: Option<SystemTime>) -> bool {
        let own = self.content.stat().ok().and_then(|stat| stat.created);
        let is_later = own.zip(created).is_some_and(|(own, file)| own > file);
        is_later && !self.content.is_packed() && self.id != file
    }

    /// When it was made; `None` when the file system does not know.
    pub(super) fn created(&self) -> Option<SystemTime> {
        self.content.stat().ok()?.created
    }

    /// Whether a compressed one goes on after what was collected of the file it was. A damaged one is read, which says so.
    pub(super) fn has_after(&mut self, offset: u64) -> bool {
        let next = self.content.read_at(&mut [0], offset);
        next.is_ok_and(|got| got > 0)
    }

    /// Whether the bytes after the offset, of which some were looked at before, are others now: `window` begins at `start`.
    pub(super) fn is_rewritten(&self, window: &[u8], start: u64) -> bool {
        let Some((unfinished, _)) = self.unfinished else {
            return false;
        };
        let from = usize::try_from(self.offset - start).unwrap_or(usize::MAX);
        let fresh = window.get(from..).unwrap_or_default();
        let known = usize::try_from(self.offset).ok();
        let known = known.and_then(|from| self.head.get(from..));
        let known = known.unwrap_or_default();
        let known = known.get(..unfinished).unwrap_or(known);
        // Zeros are room that may be written.
        let is_other = |(known, now): (&u8, &u8)| *known != 0 && known != now;
        known.len() > fresh.len() || known.iter().zip(fresh).any(is_other)
    }

    /// Whether it begins, and whether it ends before the offset, as it did when that was read.
    pub(super) fn is_as_read(&mut self) -> io::Result<(bool, bool)> {
        if self.offset == 0 {
            return Ok((true, true));
        }
        let mut head = vec![0; self.read_head().len()];
        let mut tail = vec![0; self.tail.len()];
        let tail_at = self.offset.saturating_sub(tail.len() as u64);
        let got = self.content.read_at(&mut head, 0)?;
        let begins = got == head.len() && head == self.read_head();
        let got = self.content.read_at(&mut tail, tail_at)?;
        Ok((begins, got == tail.len() && tail == self.tail))
    }

    /// Whether no name leads to the file any more.
    pub(super) fn is_deleted(&self) -> bool {
        self.content.stat().is_ok_and(|stat| stat.is_deleted)
    }

    /// Up to where it was looked at: read, or the start of a line.
    pub(super) fn looked_at(&self) -> u64 {
        self.offset + self.unfinished.map_or(0, |(len, _)| len as u64)
    }

    /// Whether nothing was written to it since it was read.
    pub(super) fn is_at_end(&self) -> io::Result<bool> {
        let len = self.content.len()?;
        let at = self.looked_at();
        let is_blank =
            |blank: Blank| blank.is_whole() && blank.from == at && Some(blank.len) == len;
        Ok(len.is_none_or(|len| len == at) || self.blank.is_some_and(is_blank))
    }

    /// How many zeros at the end of the file are no text.
    pub(super) fn blank_len(&self) -> u64 {
        self.blank
            .map_or(0, |blank| blank.len.saturating_sub(blank.from))
    }

    /// Skips a hole that nobody wrote and behind which there is something; returns its length.
    pub(super) fn skip_hole(&mut self) -> Option<u64> {
        // The file's last block before a hole is filled up with zeros.
        let edge = self.offset.next_multiple_of(BLOCK_LEN);
        let hole = self.content.after_hole(self.offset);
        let Some(Hole::Until(end)) = hole.or_else(|| self.content.after_hole(edge)) else {
            return None;
        };
        let len = end.saturating_sub(self.offset);
        if len < HOLE_LEN_MIN {
            return None;
        }
        self.offset = end;
        self.tail = vec![0; TAIL_LEN_MAX];
        Some(len)
    }

    /// Looks whether there is anything but zeros from `from` to the end; goes on where it was last time.
    /// Returns where there is something.
    pub(super) fn look_for_text(&mut self, from: u64, now: Instant) -> io::Result<Option<u64>> {
        let stat = self.content.stat()?;
        let known = self
            .blank
            .filter(|blank| blank.len == stat.len && blank.from <= from);
        let mut at = known.map_or(from, |blank| blank.to.max(from));
        let mut window = vec![0; SCAN_LEN];
        let mut budget = SCANS_AT_ONCE;
        let mut found = None;
        while at < stat.len && budget > 0 {
            match self.content.after_hole(at) {
                Some(Hole::Until(data)) => at = data,
                Some(Hole::ToTheEnd) => {
                    at = stat.len;
                    break;
                }
                None => {}
            }
            let got = self.content.read_at(&mut window, at)?;
            if got == 0 {
                break;
            }
            let read = window.get(..got).unwrap_or_default();
            if let Some(text) = read.iter().position(|byte| *byte != 0) {
                found = Some(at + text as u64);
                break;
            }
            at += got as u64;
            budget -= 1;
        }
        self.blank = match found {
            Some(_) => None,
            None => Some(Blank {
                from,
                to: at,
                len: stat.len,
                modified: stat.modified,
                since: known.map_or(now, |blank| blank.since),
            }),
        };
        Ok(found)
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
pub(super) fn open(disk: &dyn Disk, path: &Path, root: &Path) -> io::Result<Option<Follow>> {
    for _ in 0..OPENS_MAX {
        // What is open is what the links that count lead to, whoever changed them meanwhile.
        match trust::open(disk, path, root)? {
            Led::To(opened) => {
                let content = Content::new(opened.file, Packing::of(path))?;
                return Ok(Some(Follow::new(content, opened.id, path)));
            }
            Led::Nowhere => return Ok(None),
            Led::Moved => {}
        }
    }
    Err(io::Error::other(
        "the file is renamed faster than it is opened",
    ))
}

/// What is at a path; when it is another file than `known`, whether links may lead to it.
pub(super) fn look_within(
    disk: &dyn Disk,
    path: &Path,
    root: &Path,
    known: Option<FileId>,
) -> io::Result<Option<Seen>> {
    // Of a file that is open already nothing is taken but that it is still there.
    let seen = disk.look(path)?;
    match known.is_some() && seen.map(|seen| seen.id) == known {
        true => Ok(seen),
        false if seen.is_none() => Ok(None),
        false => trust::look(disk, path, root),
    }
}

/// So many bytes that are the same show that one file is a copy of another, or of its first part: less may be what all
/// files of a program begin with.
pub(super) const PART_MIN: u64 = 64;
const SECOND: Duration = Duration::from_secs(1);
/// Holes begin and end at multiples of this on common file systems.
pub(super) const BLOCK_LEN: u64 = 4096;
/// A shorter hole is read as the zeros that it is.
pub(super) const HOLE_LEN_MIN: u64 = 64 << 10;
/// How often a file may be renamed while it is opened.
const OPENS_MAX: usize = 8;
/// Bytes looked at in one go for what stands behind zeros, and how often before others have their turn.
const SCAN_LEN: usize = 64 << 10;
const SCANS_AT_ONCE: usize = 64;
