//! One stream: the file at a path, through its rotations, in order.
//!
//! ```text
//! generation: app.log.2.gz ─▶ app.log.1 ─▶ app.log     each read to its end before the next
//! ```
//!
//! Invariants:
//! 1. The bytes of the entries, one after the other, are the bytes of the generations, one after the
//!    other. What cannot be read is a gap entry.
//! 2. A file is never known by its name, nor by its inode alone: [`Bookmark::is_of`] decides.
//! 3. A line without its end is held back; after a moment it is sent as a fragment, and what completes
//!    it later is linked to it.

mod around;
mod read;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use regex::bytes::Regex;
use scrinium_protocol::entry::ENTRY_LEN_MAX;
use scrinium_protocol::identity::StreamId;
use scrinium_protocol::sl::sources::SourceState;
use tracing::{info, warn};

use self::read::Read;
use super::Context;
use super::bookmark::{Bookmark, FileId};
use super::findings::Finding;
use super::follow::{Follow, is_deleted, look, look_within, open};
use super::output::{Output, Positions};
use super::records::Encoding;
use super::resting::Rest;
use super::trust;
use crate::clock;
use crate::config::Deny;

/// A file's path, and the directory below which links are followed by their owners.
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) root: PathBuf,
    /// What nothing may collect: generations beside the path may be forbidden although it is not.
    pub(crate) deny: Deny,
}

/// The stream of one path.
pub(crate) struct FileStream {
    output: Output,
    path: PathBuf,
    /// Below it links are followed by their owners.
    root: PathBuf,
    deny: Deny,
    /// A line that matches begins an entry of several lines.
    multiline: Option<Regex>,
    /// The sources ask for its old generations too: they are read first when nothing was read yet.
    history: bool,
    /// When the agent began to look for files.
    began: SystemTime,
    /// The file at the path when it was looked at last, and its length.
    seen: Option<(FileId, u64)>,
    current: Option<Follow>,
    /// Generations after the current one, oldest first; the file at the path comes after them.
    queued: VecDeque<Follow>,
    /// Renamed files whose writer may not have noticed yet.
    lingering: Vec<Follow>,
    /// Renamed files that were read to their ends, the latest last.
    finished: VecDeque<Bookmark>,
    /// A copy is read to its end before the file it was made of, which was truncated.
    truncated: bool,
    resumed: bool,
    /// Closed after it was read to the end.
    parked: bool,
    /// When something was read of it last.
    read_at: Instant,
    /// Something was read since it was opened.
    has_read: bool,
    /// Why it cannot be read, once that was said.
    complaint: Option<(SourceState, String)>,
    wanting: Wanting,
}

/// Whether the configuration names the stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wanting {
    Wanted,
    /// Not any more, and that is still to be said.
    Ending,
    Ended,
}

/// Which of the files is being read.
#[derive(Clone, Copy)]
enum Role {
    Current,
    /// The renamed one at this place, taken out of its list.
    Lingering(usize),
}

/// What a pass over a source came to; of several the last of these counts.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Pass {
    /// Everything is read.
    Idle,
    /// There is more to read, a moment later.
    Paced,
    /// There is more to read at once.
    Busy,
    /// The spool takes no more.
    Blocked,
}

impl FileStream {
    pub(crate) fn new(
        output: Output,
        place: Place,
        multiline: Option<Regex>,
        history: bool,
        began: SystemTime,
    ) -> Self {
        let Place { path, root, deny } = place;
        Self {
            output,
            seen: look_within(&path, &root, None).ok().flatten(),
            path,
            root,
            deny,
            multiline,
            history,
            began,
            current: None,
            queued: VecDeque::new(),
            lingering: Vec::new(),
            finished: VecDeque::new(),
            truncated: false,
            resumed: false,
            parked: false,
            read_at: clock::now(),
            has_read: false,
            complaint: None,
            wanting: Wanting::Wanted,
        }
    }

    pub(crate) fn id(&self) -> StreamId {
        self.output.id()
    }

    /// Should there be a file at the path again, the stream goes on: at the start of the file, if all of
    /// the one before was read and no name leads to that any more.
    pub(crate) fn close(&self, positions: &mut Positions) {
        let is_done = |follow: &Follow| is_deleted(follow) && follow.is_at_end().unwrap_or(false);
        let is_read = self.current.as_ref().is_none_or(is_done);
        let is_wanted = self.wanting == Wanting::Wanted;
        let starts_anew = self.resumed && is_read && is_wanted && !self.history;
        positions.close(&self.output, starts_anew);
    }

    /// The files that this stream reads already, the one at the path when it was looked at last among them.
    pub(crate) fn reading(&self) -> impl Iterator<Item = FileId> {
        let known = self.known().map(|follow| follow.id);
        known.chain(self.seen.map(|(seen, _)| seen))
    }

    fn known(&self) -> impl Iterator<Item = &Follow> {
        let older = self.queued.iter().chain(&self.lingering);
        self.current.iter().chain(older)
    }

    /// Whether the configuration names this stream, and what it forbids.
    pub(crate) fn set_wanted(&mut self, wanted: bool, deny: &Deny) {
        self.deny = deny.clone();
        self.wanting = match (wanted, self.wanting) {
            (true, _) => Wanting::Wanted,
            (false, Wanting::Wanted) => Wanting::Ending,
            (false, ending) => ending,
        };
    }

    /// Says that collecting ends here. Should the stream be named again, it goes on where it stands.
    fn end(&mut self, context: &mut Context) -> Pass {
        if context.is_blocked() {
            return Pass::Blocked;
        }
        self.seal(context);
        if self.output.position().bookmark.is_empty() {
            self.wanting = Wanting::Ended; // nothing was collected
            return Pass::Idle;
        }
        self.output.push_end();
        match &self.current {
            Some(_) => self.seal(context),
            None => {
                let bookmark = self.output.position().bookmark.clone();
                self.output.seal(bookmark, context);
            }
        }
        self.wanting = Wanting::Ended;
        Pass::Idle
    }

    /// Whether it is not wanted any more, or its file is gone and everything of it was read.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        if self.wanting == Wanting::Ended {
            return true;
        }
        let over = |follow: &Follow| {
            follow
                .renamed
                .is_some_and(|at| now.duration_since(at) > FORGET_AFTER)
        };
        self.resumed
            && self.output.is_empty()
            && self.queued.is_empty()
            && self.lingering.is_empty()
            && self.current.as_ref().is_none_or(over)
            && !self.path.is_file()
    }

    /// When something was read of it last.
    pub(crate) fn read_at(&self) -> Option<Instant> {
        self.has_read.then_some(self.read_at)
    }

    /// Why what is at its path cannot be read.
    pub(crate) fn trouble(&self, path: &Path) -> Option<Finding> {
        let (state, complaint) = self.complaint.as_ref()?;
        Some(Finding::trouble(*state, path, complaint.clone()))
    }

    /// What is to be remembered of its file while the stream is closed, if all of it was read some time ago.
    pub(crate) fn rest(&self, now: Instant) -> Option<Rest> {
        let (file, len) = self.seen?;
        let rests = self.parked
            && self.wanting == Wanting::Wanted
            && self.complaint.is_none()
            && self.output.is_empty()
            && now.duration_since(self.read_at) >= REST_AFTER;
        rests.then(|| Rest {
            stream: self.id(),
            file,
            len,
        })
    }

    /// Bytes on the disk that only we still hold there: of deleted files not read to the end.
    pub(crate) fn deleted_bytes(&self) -> u64 {
        let bytes = self.known().map(|follow| match is_deleted(follow) {
            true => follow.content.len().ok().flatten().unwrap_or(0),
            false => 0,
        });
        bytes.sum()
    }

    /// Lets deleted files go before they were read to the end; a gap entry says what that costs.
    pub(crate) fn drop_deleted(&mut self) {
        let all = self.current.take().into_iter().chain(self.queued.drain(..));
        let (gone, kept): (Vec<Follow>, Vec<Follow>) = all.partition(is_deleted);
        self.queued = kept.into();
        self.current = self.queued.pop_front();
        self.lingering.retain(|follow| !is_deleted(follow));
        for follow in gone {
            let len = follow.content.len().ok().flatten().unwrap_or(0);
            let lost = len.saturating_sub(follow.offset);
            warn!(stream = %self.id(), lost, "a deleted file was let go before it was read to the end; a gap entry says so");
            self.output.push_gap(&format!(
                "the file was deleted, and let go to free its disk space; bytes {} to {len} of it were not collected",
                follow.offset
            ));
        }
    }

    /// Reads on.
    pub(crate) fn pass(&mut self, context: &mut Context, now: Instant) -> Pass {
        if self.wanting != Wanting::Wanted {
            return self.end(context);
        }
        match self.try_pass(context, now) {
            Ok(pass) => {
                self.complaint = None;
                // What was unpacked is not unpacked once more for a moment's wait.
                if context.parks && pass != Pass::Paced {
                    self.park(pass, context);
                }
                pass
            }
            Err(error) => {
                if self.complaint.is_none() {
                    if trust::is_refusal(&error) {
                        if context.is_blocked() {
                            return Pass::Blocked;
                        }
                        self.say_refused(&error, context);
                    }
                    let path = self.path.display();
                    warn!(%path, %error, "a file cannot be read; trying again");
                    let state = match trust::is_refusal(&error) {
                        true => SourceState::RefusedLink,
                        false => SourceState::Unreadable,
                    };
                    self.complaint = Some((state, error.to_string()));
                }
                if error.kind() == io::ErrorKind::StaleNetworkFileHandle {
                    self.reopen(context);
                }
                Pass::Idle
            }
        }
    }

    /// Says in the stream that a link is at its path which is not followed.
    fn say_refused(&mut self, error: &io::Error, context: &mut Context) {
        self.output
            .push_gap(&format!("{error}; what is at its end is not collected"));
        match &self.current {
            Some(_) => self.seal(context),
            None => {
                let bookmark = self.output.position().bookmark.clone();
                self.output.seal(bookmark, context);
            }
        }
    }

    /// Opens a file at the path or beside it, unless that is forbidden.
    fn open(&self, path: &Path) -> io::Result<Option<Follow>> {
        if self.deny.forbids(path) {
            return Ok(None);
        }
        open(path, &self.root)
    }

    fn try_pass(&mut self, context: &mut Context, now: Instant) -> io::Result<Pass> {
        let seen = match look_within(&self.path, &self.root, self.seen) {
            Err(error) if cfg!(windows) => {
                self.let_go(context)?;
                return Err(error);
            }
            // What was read before a link was laid there is read to its end.
            Err(error) if trust::is_refusal(&error) && self.current.is_some() => None,
            seen => seen?,
        };
        if !self.resumed {
            // A closed file that did not change needs no descriptor to know that.
            if self.parked && seen == self.seen {
                return Ok(Pass::Idle);
            }
            self.parked = false;
            self.resume()?;
        }
        self.seen = seen;
        if self.current.is_none() {
            self.current = match self.queued.pop_front() {
                Some(next) => Some(next),
                None => self.open(&self.path)?,
            };
        }
        let mut taken = 0;
        while taken < PASS_BYTES && !context.stopped {
            if context.is_blocked() {
                return Ok(Pass::Blocked);
            }
            let is_packed = self
                .current
                .as_ref()
                .is_some_and(|file| file.content.is_packed());
            if is_packed && context.unpacking.is_used_up(clock::now()) {
                return Ok(Pass::Paced);
            }
            let Some(mut follow) = self.current.take() else {
                // There is no file, and what is said about that is said at no place in one.
                self.output.seal(Vec::new(), context);
                return Ok(Pass::Idle);
            };
            let before = follow.offset;
            let read = self.read(&mut follow, Role::Current, context, now);
            taken += follow.offset - before;
            if is_packed {
                context.unpacking.take(follow.offset - before);
            }
            if follow.offset > before {
                (self.read_at, self.has_read) = (now, true);
            }
            self.current = Some(follow);
            match read? {
                Read::More => {}
                Read::Truncated => self.handle_truncation(context)?,
                Read::End => {
                    if !self.handle_end(context, now)? {
                        self.linger(context, now)?;
                        self.seal(context);
                        return Ok(Pass::Idle);
                    }
                }
            }
        }
        Ok(Pass::Busy)
    }

    /// On Windows the name of a deleted file may stay, and open no more, until everybody has let go of
    /// it. What was read is found again by its content, should it be another reason.
    fn let_go(&mut self, context: &mut Context) -> io::Result<()> {
        let Some(current) = &self.current else {
            return Ok(());
        };
        if current.is_at_end()? && self.queued.is_empty() {
            self.finish_line(context);
            self.seal(context);
            self.current = None;
            self.lingering.clear();
            self.resumed = false;
        }
        Ok(())
    }

    /// A file server that came back knows its files by other handles: what was read is found again by its
    /// content.
    fn reopen(&mut self, context: &mut Context) {
        if self.current.is_some() {
            self.seal(context);
        }
        self.current = None;
        self.queued.clear();
        self.lingering.clear();
        self.resumed = false;
    }

    /// Closes a file that needs no open descriptor to be found again.
    fn park(&mut self, pass: Pass, context: &mut Context) {
        let is_plain = |follow: &Follow| follow.unfinished.is_none() && follow.renamed.is_none();
        let can = self.current.as_ref().is_some_and(is_plain);
        if !can || !self.queued.is_empty() {
            return;
        }
        self.seal(context);
        // Their late lines are looked for when this stream is opened again.
        self.lingering.clear();
        self.output.shrink();
        self.current = None;
        self.resumed = false;
        self.parked = pass == Pass::Idle;
    }

    /// Where this stream stands while `follow` is read.
    fn bookmark(&self, follow: &Follow, role: Role) -> Vec<u8> {
        let in_line = self.output.in_line;
        let mut older: Vec<&Follow> = self.lingering.iter().collect();
        let first = match role {
            Role::Current => follow,
            Role::Lingering(place) => {
                older.insert(place.min(older.len()), follow);
                self.current.as_ref().unwrap_or(follow)
            }
        };
        let older = older.iter().rev().take(LINGERING_MAX);
        let older = older.map(|follow| follow.bookmark(false));
        let all: Vec<Bookmark> = core::iter::once(first.bookmark(in_line))
            .chain(older)
            .collect();
        Bookmark::encode_all(&all)
    }

    /// The current file ends here: goes on to the next generation if there is one. Returns whether
    /// there is more to read.
    fn handle_end(&mut self, context: &mut Context, now: Instant) -> io::Result<bool> {
        if !self.queued.is_empty() {
            return self.go_to_next(context, now);
        }
        let at_path = look(&self.path)?;
        let Some(current) = &mut self.current else {
            return Ok(false);
        };
        if at_path.is_some_and(|(id, _)| id == current.id) {
            current.renamed = None;
            return Ok(false);
        }
        let renamed = *current.renamed.get_or_insert(now);
        let Some((_, len)) = at_path else {
            return Ok(false); // renamed, and not yet created again
        };
        if len == 0 && now.duration_since(renamed) < SWITCH_AFTER {
            return Ok(false);
        }
        self.queued = self.while_nothing_moves(|own| own.later_files(own.current.as_ref()))?;
        Ok(!self.queued.is_empty())
    }

    /// Goes on to the next generation, once the writer has begun it or one after it: until then it may
    /// still write to the current one. Returns whether there is more to read.
    fn go_to_next(&mut self, context: &mut Context, now: Instant) -> io::Result<bool> {
        let Some(current) = &mut self.current else {
            return Ok(false);
        };
        // Nobody goes on writing to a copy.
        let is_copy = self.truncated || current.content.is_packed();
        let renamed = *current.renamed.get_or_insert(now);
        if !is_copy && now.duration_since(renamed) < SWITCH_AFTER {
            let mut begun = false;
            for next in &self.queued {
                begun = begun || next.content.len()? != Some(0);
            }
            if !begun {
                return Ok(false);
            }
        }
        // What it wrote to this one before is there now. Read once more to the end.
        if !current.is_at_end()? {
            return Ok(true);
        }
        self.finish_line(context);
        let next = self.queued.pop_front();
        if self.queued.is_empty() && core::mem::take(&mut self.truncated) {
            self.output.push_gap(
                "the file was truncated after it was copied; what was written to it between the two, if anything, was not collected",
            );
        }
        self.seal(context);
        if let Some(done) = core::mem::replace(&mut self.current, next) {
            self.let_linger(done, now);
        }
        Ok(true)
    }

    /// A renamed file that was read to its end is watched for late lines; a compressed one has none.
    fn let_linger(&mut self, done: Follow, now: Instant) {
        self.finished.push_back(done.bookmark(false));
        if self.finished.len() > FINISHED_MAX {
            self.finished.pop_front();
        }
        if done.content.is_packed() {
            return;
        }
        self.lingering.push(Follow {
            renamed: Some(done.renamed.unwrap_or(now)),
            ..done
        });
        if self.lingering.len() > LINGERING_MAX {
            self.lingering.remove(0);
        }
    }

    /// The file was truncated under us: what it held after our position may be in a copy beside it.
    fn handle_truncation(&mut self, context: &mut Context) -> io::Result<()> {
        self.seal(context);
        let Some(current) = self.current.take() else {
            return Ok(());
        };
        let bookmark = current.bookmark(self.output.in_line);
        let own = current.id;
        let copied = self.while_nothing_moves(|stream| {
            let Some((copy, ..)) = stream.find(&bookmark, Some(own))? else {
                return Ok(None);
            };
            // It may have been copied and truncated more than once since the last look.
            let mut later = stream.later_files(Some(&copy))?;
            later.retain(|follow| follow.id != own);
            Ok(Some((copy, later)))
        });
        let copied = match copied {
            Ok(copied) => copied,
            Err(error) => {
                self.current = Some(current);
                return Err(error);
            }
        };
        let again = Follow::new(current.content, own);
        if let Some((mut copy, later)) = copied {
            info!(stream = %self.id(), "a file was truncated; its copy is read to the end first");
            copy.resume_at(&bookmark)?;
            copy.renamed = Some(clock::now());
            self.queued = later;
            self.queued.push_back(again);
            self.current = Some(copy);
            self.truncated = true;
            return Ok(());
        }
        warn!(stream = %self.id(), offset = bookmark.offset, "a file was truncated and no copy is beside it; a gap entry says so");
        self.output.push_gap(&format!(
            "the file was truncated after byte {}; what was written to it between the last look and that, if anything, was not collected",
            bookmark.offset
        ));
        self.current = Some(again);
        Ok(())
    }

    /// The last line of a generation ends with its file.
    fn finish_line(&mut self, context: &mut Context) {
        let Some(mut follow) = self.current.take() else {
            return;
        };
        let len = follow.unfinished.take().map_or(0, |(len, _)| len);
        let mut window = vec![0; len.min(ENTRY_LEN_MAX)];
        let got = follow.content.read_at(&mut window, follow.offset);
        window.truncate(got.unwrap_or(0));
        if !window.is_empty() {
            let flags = Encoding::of(&follow.head).flags();
            let (mut at, end) = (0, window.len());
            let tail = core::mem::take(&mut follow.tail);
            let time_us = clock::unix_us();
            let role = Role::Current;
            self.push_line(
                &mut at,
                end,
                (flags, flags),
                &window,
                &mut follow,
                role,
                time_us,
                context,
            );
            follow.tail = tail;
            follow.go_on(window.get(..at).unwrap_or_default());
        }
        self.current = Some(follow);
        self.output.close_line();
    }

    /// Reads what a slow writer still added to renamed files; lets them go after a quiet while.
    fn linger(&mut self, context: &mut Context, now: Instant) -> io::Result<()> {
        let mut outcome = Ok(());
        let mut place = 0;
        while place < self.lingering.len() && self.current.is_some() {
            let mut follow = self.lingering.remove(place);
            let before = follow.offset;
            if !follow.is_at_end()? {
                // What comes is of another file than the line that is open.
                self.output.close_line();
            }
            let read = self.read(&mut follow, Role::Lingering(place), context, now);
            outcome = outcome.and_then(|()| read.map(drop));
            self.output.close_line();
            if follow.offset > before {
                follow.renamed = Some(now);
            }
            let quiet = follow
                .renamed
                .is_none_or(|at| now.duration_since(at) >= LINGER);
            if !quiet {
                self.lingering.insert(place, follow);
                place += 1;
            }
        }
        outcome
    }

    /// Seals what was collected, up to where the current file was read.
    fn seal(&mut self, context: &mut Context) {
        if let Some(current) = &self.current
            && !self.output.is_empty()
        {
            let bookmark = self.bookmark(current, Role::Current);
            self.output.seal(bookmark, context);
        }
    }
}

/// A file that is not read for so long rests, should there be many.
const REST_AFTER: Duration = Duration::from_secs(2);
/// Bytes read from one file before the next file's turn.
const PASS_BYTES: u64 = 4 << 20;
/// A new, still empty file does not end the reading of the renamed one before this.
const SWITCH_AFTER: Duration = Duration::from_secs(5);
/// How long a renamed file is watched for late lines after the last one.
const LINGER: Duration = Duration::from_secs(30);
/// Renamed files watched at once; their bookmarks travel with every batch.
const LINGERING_MAX: usize = 4;
/// Files remembered as read.
const FINISHED_MAX: usize = 16;
/// A file that is gone is forgotten after this.
const FORGET_AFTER: Duration = Duration::from_secs(60);
