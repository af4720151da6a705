//! The files of a stream, one after the other: those that are settled, the one that is read, those that come after it.
//!
//! ```text
//! past: app.log.3 ─▶ app.log.2 ─▶ current: app.log.1 ─▶ queued: …, app.log
//! ```

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use crate::source::bookmark::{Bookmark, Bookmarks, FileId, MARKS_MAX, Mark};
use crate::source::disk::Seen;
use crate::source::follow::Follow;

/// What is known of a stream's files.
#[derive(Default)]
pub(super) struct Chain {
    pub(super) current: Option<Follow>,
    /// Where the current file is to be read on while it is closed.
    pub(super) closed: Option<Bookmark>,
    /// Its file server knows the current file by that handle no more: the one at the path that begins with what was read
    /// is it, however little that is.
    pub(super) is_stale: bool,
    /// Generations after the current one, oldest first; the file at the path comes after them.
    pub(super) queued: VecDeque<Follow>,
    /// Files that are settled, the latest first.
    pub(super) past: VecDeque<Past>,
    /// Every file beside it that is not in `past` is not collected yet.
    pub(super) knows: bool,
    /// There were more files than are remembered.
    pub(super) forgot: bool,
    /// When the latest of those was written last, as far as that is known.
    pub(super) forgotten_until: Option<SystemTime>,
    /// Its files have room for lines to come at their ends: the program lays them out before it writes them.
    pub(super) has_room: bool,
    /// Settled files so far.
    serials: u64,
}

/// A file of which everything was collected, or was there before the stream began.
pub(super) struct Past {
    /// What it is called here, whatever the file system calls it.
    pub(super) serial: u64,
    pub(super) mark: Mark,
    /// Where it was when it was looked at last.
    pub(super) path: Option<PathBuf>,
    /// What it was then, when its content was compared.
    pub(super) seen: Option<Seen>,
    /// Open while its writer may go on.
    pub(super) open: Option<Follow>,
}

/// Which of the files is being read.
#[derive(Clone, Copy)]
pub(super) enum Role {
    Current,
    /// A settled one, taken out of its place.
    Late(u64),
}

impl Past {
    /// A file that may still grow.
    pub(super) fn of(follow: Follow, now: Instant) -> Self {
        let renamed = Some(follow.renamed.unwrap_or(now));
        Self {
            serial: 0,
            mark: follow.mark(),
            path: Some(follow.path.clone()),
            seen: None,
            open: Some(Follow { renamed, ..follow }),
        }
    }

    /// A file that is known, and lies nowhere now.
    pub(super) fn lost(mark: Mark) -> Self {
        Self {
            serial: 0,
            mark,
            path: None,
            seen: None,
            open: None,
        }
    }

    /// Whether the mark says more of a file than its number, which may have been given to another; or the file is as it
    /// was when it was looked at.
    pub(super) fn identifies(&self, seen: Seen) -> bool {
        let says_more = self.mark.offset > 0 && self.mark.head_len() > 0;
        says_more || self.seen == Some(seen)
    }

    /// Its writer had its time: what comes later shows in its length.
    pub(super) fn close(&mut self) {
        let Some(follow) = self.open.take() else {
            return;
        };
        self.mark = follow.mark();
        // What was not read yet, or not sent, is seen when it is looked at the next time.
        self.seen = follow.as_collected();
        self.path = (!follow.is_deleted()).then_some(follow.path);
    }
}

impl Chain {
    /// Takes up where a stream stood.
    pub(super) fn take_up(bookmarks: Bookmarks) -> Self {
        let mut chain = Self {
            closed: bookmarks.current,
            knows: bookmarks.knows,
            forgot: bookmarks.forgot,
            has_room: bookmarks.has_room,
            ..Self::default()
        };
        for mark in bookmarks.marks {
            chain.settle_first(Past::lost(mark));
        }
        chain
    }

    /// Where it stands while `reading` is read, which is taken out of its place.
    pub(super) fn bookmarks(&self, reading: Option<(Role, &Follow)>, in_line: bool) -> Vec<u8> {
        let current = match reading {
            Some((Role::Current, follow)) => Some(follow),
            Some((Role::Late(_), _)) | None => self.current.as_ref(),
        };
        let late = |serial| match reading {
            Some((Role::Late(own), follow)) if own == serial => Some(follow),
            _ => None,
        };
        let past = self.past.iter().map(|past| {
            let follow = late(past.serial).or(past.open.as_ref());
            follow.map_or_else(|| past.mark.clone(), Follow::mark)
        });
        // One that was settled before and comes next is so still.
        let marks = self.queued.iter().map(Follow::mark).chain(past);
        // Of what nothing was collected nothing can be known again.
        let marks = marks.filter(|mark| mark.offset > 0);
        let bookmarks = Bookmarks {
            current: current
                .map(|follow| follow.bookmark(in_line))
                .or_else(|| self.closed.clone()),
            marks: marks.collect(),
            knows: self.knows,
            forgot: self.forgot,
            has_room: self.has_room,
        };
        bookmarks.encode()
    }

    /// Whether nothing is known at all.
    pub(super) fn is_new(&self) -> bool {
        self.current.is_none() && self.closed.is_none() && self.past.is_empty() && !self.knows
    }

    /// Open files.
    pub(super) fn open_ones(&self) -> impl Iterator<Item = &Follow> {
        let late = self.past.iter().filter_map(|past| past.open.as_ref());
        self.current.iter().chain(&self.queued).chain(late)
    }

    /// Whether a file is one that is read now or will be.
    pub(super) fn is_reading(&self, id: FileId) -> bool {
        self.open_ones().any(|follow| follow.id == id)
    }

    /// The settled file that is open and called so: its number is its own for as long.
    pub(super) fn open_past(&self, id: FileId) -> Option<u64> {
        let is_it = |past: &&Past| past.open.as_ref().is_some_and(|follow| follow.id == id);
        self.past.iter().find(is_it).map(|past| past.serial)
    }

    pub(super) fn past(&mut self, serial: u64) -> Option<&mut Past> {
        self.past.iter_mut().find(|past| past.serial == serial)
    }

    /// How far a settled file was collected.
    pub(super) fn offset_of(&self, serial: u64) -> u64 {
        let past = self.past.iter().find(|past| past.serial == serial);
        past.map_or(0, |past| past.mark.offset)
    }

    pub(super) fn take_past(&mut self, serial: u64) -> Option<Past> {
        let place = self.past.iter().position(|past| past.serial == serial)?;
        self.past.remove(place)
    }

    /// Adds a settled file; what was known of an earlier part of it is forgotten. One that had the same number before is
    /// another, and may be compressed by now. Returns its serial number.
    pub(super) fn settle(&mut self, past: Past) -> u64 {
        self.past
            .retain(|other| other.open.is_some() || !other.mark.is_part_of(&past.mark));
        self.serials += 1;
        self.past.push_front(Past {
            serial: self.serials,
            ..past
        });
        self.forget();
        self.serials
    }

    /// Adds one that was there before all others.
    pub(super) fn settle_first(&mut self, past: Past) {
        self.serials += 1;
        self.past.push_back(Past {
            serial: self.serials,
            ..past
        });
        self.forget();
    }

    /// Of too many the earliest is forgotten. One that is nowhere now may be compressed this moment.
    fn forget(&mut self) {
        while self.past.len() > MARKS_MAX {
            self.forgot = true;
            let Some(past) = self.past.pop_back() else {
                return;
            };
            let open = past.open.as_ref().and_then(|follow| follow.seen().ok());
            let written = past.seen.or(open).map(|seen| seen.modified);
            self.forgotten_until = self.forgotten_until.max(written);
        }
    }
}
