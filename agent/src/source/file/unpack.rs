//! Compressed generations are compared with what is known of files, for which they are decompressed: a little in each turn
//! of the stream, so that one with many large ones keeps nobody waiting.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;

use super::FileStream;
use super::survey::{Found, Survey};
use crate::source::bookmark::{Bookmark, FileId, Mark};
use crate::source::disk::Seen;
use crate::source::follow::{Follow, Start};

/// What was decompressed for a look that is not over.
#[derive(Default)]
pub(super) struct Unpack {
    /// Files that were looked into, as they were.
    files: BTreeMap<FileId, (Seen, Follow)>,
    /// Bytes left in this turn, and taken.
    left: u64,
    taken: u64,
}

impl Unpack {
    /// A turn begins, in which so many bytes may be decompressed at most.
    pub(super) fn begin(&mut self, left: u64) {
        self.left = left.min(STEP);
        self.taken = 0;
    }

    /// How many were.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// A file as it was looked into before, if it did not change.
    pub(super) fn take(&mut self, seen: Seen, path: &Path) -> Option<Follow> {
        let (_, mut follow) = self
            .files
            .remove(&seen.id)
            .filter(|(known, _)| *known == seen)?;
        follow.path = path.to_owned();
        Some(follow)
    }

    /// The look goes on in the next turn, with these.
    pub(super) fn keep(&mut self, survey: Survey) {
        for Found { seen, follow, .. } in survey.beside {
            let follow = follow.filter(|follow| follow.content.is_packed());
            if let Some(follow) = follow {
                self.files.insert(seen.id, (seen, follow));
            }
        }
    }

    /// The look is over.
    pub(super) fn end(&mut self) {
        self.files.clear();
    }
}

impl FileStream {
    /// Looks up in a compressed file what those marks ask for that begin like it, so that comparing it takes nothing.
    ///
    /// # Errors
    /// There is more to decompress than there is room for in this turn, see [`is_unpacking`].
    pub(super) fn look_up(
        &self,
        follow: &mut Follow,
        start: &mut Start,
        current: Option<&Bookmark>,
    ) -> io::Result<()> {
        if !follow.content.is_packed() {
            return Ok(());
        }
        let current = current.filter(|own| own.offset > 0 && start.begins(own));
        let current = current.map(|own| (own.offset, own.tail_len()));
        let inherited = self.inherited.marks(follow.id);
        let marks = self.chain.past.iter().map(|past| &past.mark);
        let marks = marks
            .chain(&inherited)
            .filter(|mark| mark.offset != Mark::ALL);
        let marks = marks.filter(|mark| mark.offset > 0 && start.is_of(mark));
        let marks = marks.map(|mark| (mark.offset, mark.tail_len()));
        // Whether anything comes behind it, too.
        let places = current.into_iter().chain(marks);
        let places = places.map(|(at, len)| (at.saturating_sub(len as u64), len + 1));
        let places: Vec<(u64, usize)> = places.collect();
        let mut unpack = self.unpack.borrow_mut();
        let mut left = unpack.left;
        // A damaged one is none that is known: who compares it says so.
        let is_done = follow.content.look_up(&places, &mut left).unwrap_or(true);
        unpack.left = left;
        unpack.taken += follow.content.take_unpacked();
        if is_done {
            follow.content.let_go(u64::MAX);
        }
        match is_done {
            true => Ok(()),
            false => Err(io::Error::other(Unpacking)),
        }
    }
}

/// Whether an error says that compressed files are still to be looked into.
pub(super) fn is_unpacking(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Unpacking>())
}

#[derive(Debug)]
struct Unpacking;

impl std::error::Error for Unpacking {}

impl fmt::Display for Unpacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("compressed files are still compared")
    }
}

/// Bytes decompressed to be compared in one turn of a stream: about ten milliseconds.
const STEP: u64 = 2 << 20;
