//! One stream: the file at a path, through its rotations, in order.
//!
//! ```text
//! generation: app.log.2.gz ─▶ app.log.1 ─▶ app.log     each read to its end before the next
//! [survey] what lies there ─▶ [arrange] what comes next ─▶ [chain] ─▶ [read] entries ─▶ [leave] at its end
//! ```
//!
//! Invariants:
//! 1. The bytes of the entries, one after the other, are the bytes of the generations, one after the
//!    other. What cannot be read is a gap entry.
//! 2. A file is never known by its name, nor by its inode alone: its content decides.
//! 3. A file that is settled stays known, by a mark in every bookmark: it is not read again under another name, and
//!    when it grows it is read on.
//! 4. A line without its end is held back; after a moment it is sent as a fragment, and what completes
//!    it later is linked to it.

mod arrange;
mod arrivals;
mod aside;
mod chain;
mod choice;
mod identify;
mod leave;
mod own;
mod park;
mod read;
mod same;
mod settled;
mod strange;
mod survey;
mod toll;
mod unpack;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use regex::bytes::Regex;
use scrinium_protocol::identity::StreamId;
use scrinium_protocol::sl::sources::SourceState;
use tracing::warn;

use self::arrivals::Arrivals;
pub(crate) use self::arrivals::Told;
use self::aside::Aside;
use self::chain::{Chain, Past, Role};
use self::read::Read;
use self::same::Same;
use self::strange::{Strange, is_asking};
use self::toll::Toll;
use self::unpack::{Unpack, is_unpacking};
use super::Context;
use super::bookmark::{Bookmark, Bookmarks, Mark};
use super::claims::Collected;
use super::discover::Named;
use super::disk::{Disk, Seen};
use super::findings::Finding;
use super::follow::{Follow, look_within};
use super::output::{Output, Positions};
use super::trust;
use super::vanished::GONE;
use crate::clock;
use crate::config::Deny;

/// A file's path, and the directory below which links are followed by their owners.
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) root: PathBuf,
    /// What nothing may collect: generations beside the path may be forbidden although it is not.
    pub(crate) deny: Deny,
    /// What the sources name.
    pub(crate) named: Named,
    pub(super) disk: Arc<dyn Disk>,
}

/// How a source wants its files.
pub(crate) struct Terms {
    /// A line that matches begins an entry of several lines.
    pub(crate) multiline: Option<Regex>,
    /// See [`Place::root`].
    pub(crate) root: PathBuf,
    pub(crate) named: Named,
}

/// The stream of one path.
pub(crate) struct FileStream {
    output: Output,
    place: Place,
    /// A line that matches begins an entry of several lines.
    multiline: Option<Regex>,
    /// The sources ask for its old generations too: they are read first when nothing was read yet.
    history: bool,
    /// Since when its file is looked for.
    began: SystemTime,
    /// What other streams read of its files before this one began.
    inherited: Arc<Collected>,
    /// Whose the file at the path is, where another stream may have begun with it.
    strange: Strange,
    /// Why the stream cannot be gone on with.
    unreadable_bookmark: Option<String>,
    state: State,
    chain: Chain,
    /// The file at the path when it was looked at last.
    seen: Option<Seen>,
    /// What a link at the path led to.
    target: Option<PathBuf>,
    /// A copy is read to its end before the file it was made of, which was truncated.
    truncated: bool,
    /// What was read of a file that was truncated, of which no copy was seen because nothing was seen.
    cut: Option<(Bookmark, Option<Vec<u8>>)>,
    /// The file for which the stream was begun was gone before it was opened.
    has_vanished: bool,
    /// When settled files are looked at the next time, and whether they were since the start.
    look_back_at: Instant,
    looked_back: bool,
    /// When names beside the file changed last, before they were looked at.
    changed: Vec<Option<SystemTime>>,
    /// Files between the current one and the next may have come and gone.
    may_miss: bool,
    arrivals: Arrivals,
    /// Files that turned up beside the current one, and are collected when they are still the same at the next look.
    strangers: Vec<Seen>,
    /// Generations that could not be read, of which that was said.
    refused: BTreeSet<u64>,
    aside: Aside,
    /// There are more generations after those that are queued, before the file at the path.
    more_comes: bool,
    toll: Toll,
    unpack: RefCell<Unpack>,
    same: Same,
    /// When something was read of it last.
    read_at: Instant,
    /// Something was read since it was opened.
    has_read: bool,
    /// Why it cannot be read, once that was said.
    complaint: Option<(SourceState, String)>,
    wanting: Wanting,
    /// What may be read is another question than when its files were opened.
    is_rejudged: bool,
}

/// Whether the files are open.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// They are to be found.
    Closed,
    /// The file at the path was read to its end, as it was then; it was closed at this time.
    Parked(Seen, Instant),
    Open,
}

/// Whether the configuration names the stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wanting {
    Wanted,
    /// Not any more, and that is still to be said.
    Ending,
    Ended,
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
        now: Instant,
    ) -> Self {
        let bookmarks = Bookmarks::decode(&output.position().bookmark);
        let (chain, unreadable_bookmark) = match bookmarks {
            Ok(bookmarks) => (bookmarks.map(Chain::take_up).unwrap_or_default(), None),
            Err(error) => (Chain::default(), Some(error.to_string())),
        };
        let seen = look_within(&*place.disk, &place.path, &place.root, None);
        Self {
            output,
            seen: seen.ok().flatten(),
            place,
            multiline,
            history,
            began,
            inherited: Arc::default(),
            strange: Strange::default(),
            unreadable_bookmark,
            state: State::Closed,
            chain,
            target: None,
            truncated: false,
            cut: None,
            has_vanished: false,
            look_back_at: now,
            looked_back: false,
            changed: Vec::new(),
            may_miss: false,
            arrivals: Arrivals::default(),
            strangers: Vec::new(),
            refused: BTreeSet::new(),
            aside: Aside::default(),
            more_comes: false,
            toll: Toll::default(),
            unpack: RefCell::default(),
            same: Same::default(),
            read_at: now,
            has_read: false,
            complaint: None,
            wanting: Wanting::Wanted,
            is_rejudged: false,
        }
    }

    /// Other streams read files up to here: this one goes on there.
    pub(crate) fn inherit(&mut self, collected: &Arc<Collected>) {
        self.inherited = collected.clone();
    }

    pub(crate) fn id(&self) -> StreamId {
        self.output.id()
    }

    /// Should there be a file at the path again, the stream goes on: at the start of the file, if all of
    /// the one before was read and no name leads to that any more.
    pub(crate) fn close(&mut self, positions: &mut Positions) {
        let is_done = |follow: &Follow| follow.is_deleted() && follow.is_at_end().unwrap_or(false);
        if let Some(done) = self.chain.current.take_if(|current| is_done(current)) {
            self.chain.settle(Past::lost(done.mark()));
        }
        if self.is_unread() && self.seen.is_none() {
            return; // there were only old generations of a file that is not there
        }
        let is_known = !self.chain.is_new() && self.unreadable_bookmark.is_none();
        let bookmarks = is_known.then(|| self.chain.bookmarks(None, self.output.in_line));
        positions.close(&self.output, bookmarks);
    }

    /// Whether everything that it read is sealed.
    pub(crate) fn is_sealed(&self) -> bool {
        self.output.is_empty()
    }

    /// How far it read its files.
    pub(crate) fn marks(&self) -> impl Iterator<Item = Mark> {
        self.marks_that(|_| true)
    }

    /// How far it read files of this number.
    pub(crate) fn marks_of(&self, key: u64) -> impl Iterator<Item = Mark> {
        self.marks_that(move |own| own == key)
    }

    fn marks_that(&self, is_wanted: impl Fn(u64) -> bool + Copy) -> impl Iterator<Item = Mark> {
        let past = self.chain.past.iter();
        let past = past.filter(move |past| is_wanted(past.mark.key));
        let past = past.map(|past| {
            past.open
                .as_ref()
                .map_or_else(|| past.mark.clone(), Follow::mark)
        });
        let closed = self.chain.closed.iter();
        let closed = closed.filter(move |closed| is_wanted(closed.id.key()));
        let current = self.chain.current.iter();
        let current = current.filter(move |current| is_wanted(current.id.key()));
        past.chain(closed.map(Mark::from))
            .chain(current.map(Follow::mark))
    }

    /// How the configuration wants this stream from now on, if it names it, and what it forbids. What is open is judged
    /// anew by that.
    pub(crate) fn set_wanted(&mut self, terms: Option<Terms>, deny: &Deny) {
        self.is_rejudged |= *deny != self.place.deny;
        self.place.deny = deny.clone();
        self.wanting = match (&terms, self.wanting) {
            (Some(_), _) => Wanting::Wanted,
            (None, Wanting::Wanted) => Wanting::Ending,
            (None, ending) => ending,
        };
        if let Some(terms) = terms {
            self.is_rejudged |= terms.root != self.place.root;
            self.multiline = terms.multiline;
            (self.place.root, self.place.named) = (terms.root, terms.named);
        }
    }

    /// Says that collecting ends here. Should the stream be named again, it goes on where it stands.
    fn end(&mut self, context: &mut Context) -> Pass {
        if context.is_blocked() {
            return Pass::Blocked;
        }
        self.seal(context);
        if !self.output.position().bookmark.is_empty() {
            self.output.push_end();
            self.seal(context);
        }
        self.wanting = Wanting::Ended;
        Pass::Idle
    }

    /// When something was read of it last.
    pub(crate) fn read_at(&self) -> Option<Instant> {
        self.has_read.then_some(self.read_at)
    }

    /// Why what is at its path cannot be read.
    pub(crate) fn trouble(&self) -> Option<Finding> {
        let (state, complaint) = self.complaint.as_ref()?;
        let path = &self.place.path;
        Some(Finding::trouble(*state, path, complaint.clone()))
    }

    /// Reads on.
    pub(crate) fn pass(&mut self, context: &mut Context, now: Instant) -> Pass {
        if self.wanting != Wanting::Wanted {
            return self.end(context);
        }
        if self.is_rejudged {
            if context.is_blocked() {
                return Pass::Blocked;
            }
            self.shut(context);
            (self.is_rejudged, self.seen) = (false, None);
        }
        if self.toll.waits(now) {
            return Pass::Idle;
        }
        self.unpack.get_mut().begin(context.comparing.left(now));
        let mut pass = self.try_pass(context, now);
        if core::mem::take(&mut self.has_vanished)
            && context.vanished.is_said(&self.place.path, now)
        {
            self.output.push_gap(GONE);
            pass = match context.is_blocked() {
                true => pass.map(|_| Pass::Blocked), // it is sealed in the next turn
                false => {
                    self.seal(context);
                    pass
                }
            };
        }
        context.comparing.take(self.unpack.get_mut().taken());
        self.toll.settle(now);
        match pass {
            Ok(pass) => {
                let cause =
                    "there are so many names beside it that it is looked at only now and then";
                let is_long = self.toll.is_long(now);
                // Who only asks whose a file is has read nothing.
                if !self.strange.is_asking() {
                    self.complaint = is_long.then(|| (SourceState::NotWalked, cause.to_owned()));
                }
                let is_quiet = now.duration_since(self.read_at) >= QUIET_CLOSE;
                // What was unpacked is not unpacked once more for a moment's wait.
                if pass != Pass::Paced && (context.parks || (is_quiet && pass == Pass::Idle)) {
                    self.park(pass, context, now);
                }
                if pass == Pass::Idle && self.is_left(now) {
                    self.leave(context, now);
                }
                pass
            }
            Err(error) if is_unpacking(&error) || is_asking(&error) => {
                self.look_back_at = now;
                Pass::Paced
            }
            Err(error) => {
                if self.complaint.is_none() {
                    if trust::is_refusal(&error) {
                        if context.is_blocked() {
                            return Pass::Blocked;
                        }
                        self.output
                            .push_gap(&format!("{error}; what is at its end is not collected"));
                        self.seal(context);
                    }
                    let path = self.place.path.display();
                    warn!(%path, %error, "a file cannot be read; trying again");
                    let state = match trust::is_refusal(&error) {
                        true => SourceState::RefusedLink,
                        false => SourceState::Unreadable,
                    };
                    self.complaint = Some((state, error.to_string()));
                }
                if error.kind() == io::ErrorKind::StaleNetworkFileHandle {
                    // A file server that came back knows its files by other handles: what was read is found again
                    // by its content.
                    self.shut(context);
                    self.chain.is_stale = true;
                }
                Pass::Idle
            }
        }
    }

    fn try_pass(&mut self, context: &mut Context, now: Instant) -> io::Result<Pass> {
        let (disk, known) = (self.place.disk.clone(), self.seen.map(|seen| seen.id));
        let seen = match look_within(&*disk, &self.place.path, &self.place.root, known) {
            Err(error) if cfg!(windows) => {
                self.let_go(context)?;
                return Err(error);
            }
            // What was read before is read to its end, whatever is at the path now.
            Err(_) if self.chain.current.is_some() => None,
            seen => seen?,
        };
        if self.is_asking(seen, now) {
            return Ok(Pass::Paced);
        }
        match self.state {
            State::Open => {}
            // A closed file that did not change needs no descriptor to know that.
            State::Parked(file, since) if seen == Some(file) => {
                let is_due = self.chain.has_room && now.duration_since(since) >= ROOM_INTERVAL;
                if !self.look_back(now)? && !is_due {
                    // What the look came to is said now, and not with the next line.
                    if !context.is_blocked() {
                        self.seal(context);
                    }
                    return Ok(Pass::Idle);
                }
                self.resume(now)?;
            }
            State::Closed => self.resume(now)?,
            State::Parked(file, _) => {
                self.resume(now)?;
                if let Some(current) = &mut self.chain.current
                    && (current.id, current.offset) == (file.id, file.len)
                {
                    current.ended = Some((file.len, file.modified));
                }
            }
        }
        // What another stream reads is not this one's because it lies here.
        self.seen = seen.filter(|seen| !self.strange.is_anothers(seen.id));
        if self.chain.current.is_none() {
            let next = self.chain.queued.pop_front();
            if next.is_none() && self.seen.is_some() {
                self.find_next(now)?;
            }
            self.chain.current = next.or_else(|| self.chain.queued.pop_front());
        }
        let mut taken = 0;
        while taken < PASS_BYTES && !context.stopped {
            if context.is_blocked() {
                return Ok(Pass::Blocked);
            }
            let current = self.chain.current.as_ref();
            let is_packed = current.is_some_and(|file| file.content.is_packed());
            if is_packed && context.unpacking.is_used_up(clock::now()) {
                return Ok(Pass::Paced);
            }
            let Some(mut follow) = self.chain.current.take() else {
                let back = self.look_back(now);
                let late = self.late(context, now);
                self.seal(context);
                return back.and(late).map(|()| Pass::Idle);
            };
            let before = follow.offset;
            let read = self.read(&mut follow, Role::Current, context, now);
            taken += follow.offset - before;
            context.unpacking.take(follow.content.take_unpacked());
            if follow.offset > before {
                (self.read_at, self.has_read) = (now, true);
            }
            self.chain.current = Some(follow);
            match read? {
                Read::More => {}
                Read::Looking => return Ok(Pass::Busy),
                Read::Truncated => self.handle_truncation(context, now)?,
                Read::End => {
                    let next = self.handle_end(context, now);
                    if !matches!(next, Ok(true)) {
                        let back = self.look_back(now);
                        let late = self.late(context, now);
                        self.seal(context);
                        return next.and(back).and(late).map(|()| Pass::Idle);
                    }
                }
            }
        }
        Ok(Pass::Busy)
    }

    /// Seals what was collected, up to where the current file was read.
    fn seal(&mut self, context: &mut Context) {
        if !self.output.is_empty() {
            let bookmark = self.chain.bookmarks(None, self.output.in_line);
            self.output.seal(bookmark, context);
        }
    }
}

/// A file that is not read for so long is closed: its file system may be unmounted then.
const QUIET_CLOSE: Duration = Duration::from_secs(30);
/// How often a closed file is looked into that has room for lines at its end: a mapped file's time may stand still.
const ROOM_INTERVAL: Duration = Duration::from_secs(10);
/// Bytes read from one file before the next file's turn.
const PASS_BYTES: u64 = 4 << 20;
/// A new, still empty file does not end the reading of the renamed one before this.
const SWITCH_AFTER: Duration = Duration::from_secs(5);
/// How long a renamed file stays open after the last line that came late.
const LINGER: Duration = Duration::from_secs(30);
/// Renamed files open at once.
const LINGERING_MAX: usize = 4;
/// A file that was renamed, and is not made anew, is closed after this.
const FORGET_AFTER: Duration = Duration::from_secs(60);
