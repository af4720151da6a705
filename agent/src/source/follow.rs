//! One open file and how far it was read.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Instant;

use super::bookmark::{Bookmark, FileId, HEAD_LEN_MAX, TAIL_LEN_MAX};

/// A file being read.
pub(super) struct Follow {
    pub(super) file: File,
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
}

impl Follow {
    pub(super) fn new(file: File, id: FileId) -> Self {
        Self {
            file,
            id,
            offset: 0,
            head: Vec::new(),
            tail: Vec::new(),
            unfinished: None,
            renamed: None,
        }
    }

    /// Goes on at a bookmark that was found in this file.
    pub(super) fn resume_at(&mut self, bookmark: &Bookmark) -> io::Result<()> {
        let len = self.file.metadata()?.len();
        let mut head = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(HEAD_LEN_MAX)];
        let got = read_at(&self.file, &mut head, 0)?;
        head.truncate(got);
        let tail_len = usize::try_from(bookmark.offset)
            .unwrap_or(usize::MAX)
            .min(TAIL_LEN_MAX);
        let mut tail = vec![0; tail_len];
        let got = read_at(&self.file, &mut tail, bookmark.offset - tail_len as u64)?;
        if got != tail_len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset = bookmark.offset;
        self.head = head;
        self.tail = tail;
        Ok(())
    }

    pub(super) fn bookmark(&self, in_line: bool) -> Bookmark {
        Bookmark::new(self.id, self.offset, in_line, &self.head, &self.tail)
    }

    /// Moves the offset to `at` of a window that begins `tail_len` bytes before the offset.
    pub(super) fn move_to(&mut self, at: usize, tail_len: usize, window: &[u8]) {
        self.offset = self.offset - tail_len as u64 + at as u64;
        let from = at.saturating_sub(TAIL_LEN_MAX);
        self.tail = window.get(from..at).unwrap_or_default().to_vec();
    }

    /// Undoes [`Follow::move_to`], so that further positions count from the window's start again.
    pub(super) fn move_back(&mut self, at: usize, tail_len: usize, window: &[u8]) {
        self.offset = self.offset - at as u64 + tail_len as u64;
        self.tail = window.get(..tail_len).unwrap_or_default().to_vec();
    }
}

/// Opens a regular file; `None` when there is none.
pub(super) fn open(path: &Path) -> io::Result<Option<Follow>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(None);
    }
    Ok(Some(Follow::new(file, FileId::of(&metadata))))
}

/// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end of the file.
pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = buffer.get_mut(done..).unwrap_or_default();
        #[cfg(unix)]
        let got = {
            use std::os::unix::fs::FileExt as _;
            file.read_at(rest, offset + done as u64)
        };
        #[cfg(windows)]
        let got = {
            use std::os::windows::fs::FileExt as _;
            file.seek_read(rest, offset + done as u64)
        };
        match got {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
