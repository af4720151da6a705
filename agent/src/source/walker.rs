//! The thread that looks for files, so that the one that reads them never waits for a directory.
//!
//! ```text
//! [round] step ─▶ one slot ─taken by the reading thread─▶ streams       reading thread ─hurry, configure─▶ here
//! ```
//!
//! A walk takes [`STEP_NAMES_MAX`] names or [`STEP_MAX`] at a time, then rests many times as long, and goes on where it
//! stopped. A file system that does not answer holds one thread: another one goes on without the path, up to
//! [`WALKERS_MAX`], and the path is walked again when the answer came.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::discover::Discovery;
use super::feed::Waker;
use super::round::{Found, Met, Round};
use super::walk::Budget;
use crate::clock;

/// What a step of a walk came to.
pub(super) enum Looked {
    /// A round goes on: files that are new in it, and what was met so far.
    Part(BTreeMap<PathBuf, usize>, Vec<Met>),
    /// All there is.
    Whole(Found),
}

/// The looking for files.
pub(super) struct Walker {
    shared: Arc<Shared>,
}

struct Shared {
    board: Mutex<Board>,
    changed: Condvar,
    waker: Waker,
}

struct Board {
    discovery: Arc<Discovery>,
    /// How often it was replaced.
    version: u64,
    /// Files are to be looked for before it is time; at once, because it is known that there are more.
    hurries: bool,
    goes_on: bool,
    /// What the reading thread has not taken yet.
    looked: Option<Looked>,
    /// How long it took to take up what it took last.
    taking: Duration,
    /// The thread that walks now; any other ends as soon as it can.
    walker: u64,
    /// What it asks the file system about, and since when.
    asks: Option<(PathBuf, Instant)>,
    /// What others asked and got no answer to yet.
    hung: BTreeMap<u64, PathBuf>,
    /// It was said that there are too many of those.
    said_too_many: bool,
    stopped: bool,
}

impl Board {
    /// Whether no further thread may walk in the place of one that hangs.
    fn is_full(&self) -> bool {
        self.hung.len() + 1 >= WALKERS_MAX
    }
}

impl Drop for Walker {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
    }
}

impl Walker {
    pub(super) fn start(discovery: Arc<Discovery>, waker: Waker) -> std::io::Result<Self> {
        let board = Board {
            discovery,
            version: 0,
            hurries: false,
            goes_on: false,
            looked: None,
            taking: Duration::ZERO,
            walker: 0,
            asks: None,
            hung: BTreeMap::new(),
            said_too_many: false,
            stopped: false,
        };
        let shared = Arc::new(Shared {
            board: Mutex::new(board),
            changed: Condvar::new(),
            waker,
        });
        Shared::spawn(&shared, 0)?;
        Ok(Self { shared })
    }

    /// Looks for what this names from now on, at once.
    pub(super) fn configure(&self, discovery: Arc<Discovery>) {
        let mut board = self.shared.lock();
        board.discovery = discovery;
        board.version += 1;
        board.looked = None;
        drop(board);
        self.shared.changed.notify_all();
    }

    /// Waits for the first step of the first walk: what is there when the agent starts is read at once. A file system that
    /// takes its time is not waited for.
    pub(super) fn wait_for_first(&self) {
        let until = clock::now() + FIRST_MAX;
        let mut board = self.shared.lock();
        while board.looked.is_none()
            && let Some(left) = until.checked_duration_since(clock::now())
            && !left.is_zero()
        {
            board = self.shared.wait(board, Some(left));
        }
    }

    /// Looks again soon.
    pub(super) fn hurry(&self) {
        self.shared.lock().hurries = true;
        self.shared.changed.notify_all();
    }

    /// Looks again at once: there are files for which there was no room, and now there is.
    pub(super) fn go_on(&self) {
        self.shared.lock().goes_on = true;
        self.shared.changed.notify_all();
    }

    /// What was found since the last call.
    pub(super) fn take(&self) -> Option<Looked> {
        let looked = self.shared.lock().looked.take();
        if looked.is_some() {
            self.shared.changed.notify_all();
        }
        looked
    }

    /// How long it took to take that up: the rest after it is many times as long.
    pub(super) fn took(&self, taking: Duration) {
        self.shared.lock().taking = taking;
    }

    /// Where no answer comes, when so many file systems do not answer that nobody walks any more.
    pub(super) fn stuck(&self, now: Instant) -> Option<PathBuf> {
        let board = self.shared.lock();
        let (path, since) = board.asks.as_ref()?;
        let hangs = now.saturating_duration_since(*since) >= HUNG_AFTER;
        (hangs && board.is_full()).then(|| path.clone())
    }

    /// Lets another thread go on when the one that walks gets no answer for too long.
    pub(super) fn review(&self, now: Instant) {
        let mut board = self.shared.lock();
        let asks = board.asks.as_ref();
        let Some(path) = asks
            .filter(|(_, since)| now.saturating_duration_since(*since) >= HUNG_AFTER)
            .map(|(path, _)| path.clone())
        else {
            return;
        };
        if board.is_full() {
            if !core::mem::replace(&mut board.said_too_many, true) {
                error!(path = %path.display(), "no new files are found: too many file systems do not answer");
            }
            return;
        }
        warn!(path = %path.display(), "a file system does not answer; the walk goes on without it");
        let hung = board.walker;
        board.hung.insert(hung, path);
        board.walker += 1;
        board.asks = None;
        let walker = board.walker;
        drop(board);
        if let Err(error) = Shared::spawn(&self.shared, walker) {
            error!(%error, "no new files are found: a thread cannot be started");
        }
    }
}

impl Shared {
    fn spawn(this: &Arc<Self>, walker: u64) -> std::io::Result<()> {
        let shared = this.clone();
        let walk = move || shared.walk(walker);
        let named = std::thread::Builder::new().name("walk".into());
        named.spawn(walk).map(drop)
    }

    /// Walks for as long as it is this thread's turn.
    fn walk(&self, walker: u64) {
        let mut is_first = true;
        let mut version = None;
        while let Some((discovery, new_version)) = self.begin(walker) {
            is_first = is_first || version != Some(new_version);
            version = Some(new_version);
            let mut began = clock::now();
            let mut round = Round::new();
            let rest = loop {
                let hung: Vec<PathBuf> = self.lock().hung.values().cloned().collect();
                let mut budget = Budget::new(STEP_NAMES_MAX, began + STEP_MAX);
                let (new, is_over) = round.step(&discovery, &hung, &mut budget, &|path| {
                    self.ask(walker, path)
                });
                let took = clock::now().saturating_duration_since(began);
                let looked = match is_over {
                    false => Looked::Part(new, round.so_far(&discovery)),
                    true => Looked::Whole(round.finish()),
                };
                let Some(taking) = self.publish(walker, new_version, looked) else {
                    break None;
                };
                // What nobody waits for yet is found quickly; later it is never more than a small part of the work.
                let share = match is_first {
                    true if !is_over => FIRST_SHARE,
                    _ => WALK_SHARE,
                };
                let rest = (took + taking) * share;
                if is_over {
                    break Some(rest);
                }
                if !self.rest(walker, new_version, rest, rest) {
                    break None;
                }
                began = clock::now();
            };
            if let Some(rest) = rest {
                is_first = false;
                // Somebody may make directories as fast as they are found.
                let earliest = rest / HURRY_PART;
                self.rest(walker, new_version, rest.max(WALK_INTERVAL), earliest);
            }
        }
        let mut board = self.lock();
        if board.hung.remove(&walker).is_some() {
            board.said_too_many = false;
            board.hurries = true;
            info!("a file system that did not answer does again");
        }
        drop(board);
        self.changed.notify_all();
    }

    /// What to look for, while it is this thread's turn.
    fn begin(&self, walker: u64) -> Option<(Arc<Discovery>, u64)> {
        let mut board = self.lock();
        let goes_on = !board.stopped && board.walker == walker;
        board.hurries = false;
        board.goes_on = false;
        goes_on.then(|| (board.discovery.clone(), board.version))
    }

    /// Notes what the file system is asked about next.
    fn ask(&self, walker: u64, path: &Path) {
        let mut board = self.lock();
        if board.walker == walker {
            board.asks = Some((path.to_owned(), clock::now()));
        }
    }

    /// Hands over what was found, when there is room for it; how long the last of it took to be taken up. `None` when it
    /// is of no use any more.
    fn publish(&self, walker: u64, version: u64, looked: Looked) -> Option<Duration> {
        let mut board = self.lock();
        if board.walker == walker {
            board.asks = None;
        }
        loop {
            if board.stopped || board.walker != walker || board.version != version {
                return None;
            }
            if board.looked.is_none() {
                break;
            }
            board = self.wait(board, None);
        }
        board.looked = Some(looked);
        let taking = board.taking;
        drop(board);
        self.changed.notify_all();
        self.waker.wake();
        Some(taking)
    }

    /// Rests; less when it is hurried, but no less than `earliest`. Whether the walk goes on as before.
    fn rest(&self, walker: u64, version: u64, rest: Duration, earliest: Duration) -> bool {
        let began = clock::now();
        let mut board = self.lock();
        loop {
            if board.stopped || board.walker != walker || board.version != version {
                return false;
            }
            let passed = clock::now().saturating_duration_since(began);
            let least = match (board.goes_on, board.hurries) {
                (true, _) => rest / WALK_SHARE,
                (false, true) => earliest,
                (false, false) => rest,
            };
            if passed >= least {
                return true;
            }
            board = self.wait(board, Some(least - passed));
        }
    }

    fn wait<'a>(
        &self,
        board: MutexGuard<'a, Board>,
        limit: Option<Duration>,
    ) -> MutexGuard<'a, Board> {
        match limit {
            Some(limit) => {
                let waited = self.changed.wait_timeout(board, limit);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => {
                let waited = self.changed.wait(board);
                waited.unwrap_or_else(PoisonError::into_inner)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names in one step of a walk.
const STEP_NAMES_MAX: u32 = 100_000;
/// How long one step takes.
const STEP_MAX: Duration = Duration::from_millis(500);
/// Files are looked for so often at most.
const WALK_INTERVAL: Duration = Duration::from_secs(1);
/// The rest after a step is so many times as long as the step.
const WALK_SHARE: u32 = 50;
/// The same while nothing is collected yet that was not looked into.
const FIRST_SHARE: u32 = 1;
/// How long the reading thread waits for it before it begins.
const FIRST_MAX: Duration = Duration::from_millis(200);
/// Who is hurried rests for one part in so many of the rest at least.
const HURRY_PART: u32 = 3;
/// A question that a file system does not answer for so long is not waited for.
const HUNG_AFTER: Duration = Duration::from_secs(10);
/// Threads that walk, those included that wait for an answer.
const WALKERS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::config::Config;

    /// When eight threads wait, no file is found any more: that is said for as long as it is so.
    #[test]
    fn that_nobody_walks_any_more_is_known_until_an_answer_comes() {
        let config = Config::parse("[[source]]\nfile = \"/none/x.log\"\n").unwrap();
        let discovery = Arc::new(Discovery::new(&config));
        let (told, _hears) = sync_channel(1);
        let walker = Walker::start(discovery, Waker::new(told)).unwrap();
        let now = clock::now();
        let later = now + HUNG_AFTER;
        let dead = PathBuf::from("/dead/8");
        {
            let mut board = walker.shared.lock();
            board.walker = 100; // no thread of ours asks from now on
            let hung = (0..7).map(|n| (n + 50, format!("/dead/{n}").into()));
            board.hung.extend(hung);
            board.asks = Some((dead.clone(), now));
        }
        assert_eq!(walker.stuck(now), None);
        walker.review(later);
        assert_eq!(walker.stuck(later), Some(dead.clone()));
        assert_eq!(walker.shared.lock().walker, 100);
        // One answers.
        walker.shared.lock().hung.remove(&50);
        assert_eq!(walker.stuck(later), None);
        walker.review(later);
        let board = walker.shared.lock();
        assert!(board.hung.values().any(|path| *path == dead) && board.walker == 101);
    }
}
