//! Which files changed, as the system tells it: they are read at once, the others a moment later.
//!
//! The system is asked by a thread of its own: while it has more to tell than is taken, because somebody renames files
//! as fast as he can, it takes no orders, for as long as he likes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{ModifyKind, RenameMode};
use notify::{EventKind, RecursiveMode, Watcher as _};
use tracing::{debug, warn};

use super::feed::Waker;
use crate::clock;

/// The watch over directories.
pub(super) struct Watching {
    /// `None`: nothing is told on this system.
    orders: Option<Arc<Orders>>,
    watched: BTreeSet<PathBuf>,
    news: Arc<Mutex<News>>,
    /// When it was looked at these last.
    taken_at: Instant,
}

/// What the thread that asks the system is to do.
#[derive(Default)]
struct Orders {
    board: Mutex<Board>,
    changed: Condvar,
    /// All is done that was ordered.
    done: Condvar,
}

#[derive(Default)]
struct Board {
    waiting: BTreeMap<PathBuf, Order>,
    /// Since when the system has not answered.
    asked: Option<Instant>,
    /// When that was said last.
    said: Option<Instant>,
    /// Directories that are watched since it was looked last.
    placed: BTreeSet<PathBuf>,
    is_over: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Order {
    Watch,
    Forget,
    /// Forget, then watch: there is another directory.
    Anew,
}

impl Orders {
    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an order, if there is room for it.
    fn take(&self, directory: &Path, order: Order) -> bool {
        let mut board = self.lock();
        let waiting = board.waiting.get(directory).copied();
        if waiting.is_none() && board.waiting.len() >= ORDERS_MAX {
            return false;
        }
        let order = match (waiting, order) {
            (Some(Order::Forget | Order::Anew), Order::Watch | Order::Anew) => Order::Anew,
            (_, order) => order,
        };
        board.waiting.insert(directory.to_owned(), order);
        drop(board);
        self.changed.notify_all();
        true
    }

    /// Waits a moment for the system: what is read after this is read again when it changes. Where it did not answer for
    /// as long already, nobody waits again.
    fn wait(&self, within: Duration) {
        let until = clock::now() + within;
        let mut board = self.lock();
        while board.asked.is_some() || !board.waiting.is_empty() {
            let now = clock::now();
            let is_slow = |asked| now.saturating_duration_since(asked) >= within;
            if now >= until || board.asked.is_some_and(is_slow) {
                return;
            }
            let waited = self.done.wait_timeout(board, until - now);
            (board, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether the system does not answer.
    fn is_stuck(&self) -> bool {
        let now = clock::now();
        let is_long = |asked| now.saturating_duration_since(asked) >= ANSWERS_WITHIN;
        let mut board = self.lock();
        let is_stuck = board.asked.is_some_and(is_long);
        let is_new = |at| now.saturating_duration_since(at) < SAID_INTERVAL;
        if is_stuck && !board.said.is_some_and(is_new) {
            board.said = Some(now);
            warn!(
                waiting = board.waiting.len(),
                "the system takes no orders of what to tell changes of, as when somebody changes names all the time; new directories are polled"
            );
        }
        is_stuck
    }

    /// Carries the orders out, one after the other, until the agent ends.
    fn serve(&self, mut system: impl FnMut(&Path, Order)) {
        loop {
            let mut board = self.lock();
            board.asked = None;
            let (directory, order) = loop {
                if board.is_over {
                    return;
                }
                if let Some(first) = board.waiting.pop_first() {
                    break first;
                }
                self.done.notify_all();
                let waited = self.changed.wait(board);
                board = waited.unwrap_or_else(PoisonError::into_inner);
            };
            board.asked = Some(clock::now());
            drop(board);
            system(&directory, order);
            if order != Order::Forget {
                self.lock().placed.insert(directory);
            }
        }
    }
}

impl Drop for Watching {
    /// The thread ends when the system answered; nobody waits for that.
    fn drop(&mut self) {
        if let Some(orders) = &self.orders {
            orders.lock().is_over = true;
            orders.changed.notify_all();
        }
    }
}

/// What was told since the last look.
#[derive(Default)]
pub(super) struct News {
    /// Paths at which something changed.
    pub(super) changed: BTreeSet<PathBuf>,
    /// Paths that appeared.
    pub(super) appeared: BTreeSet<PathBuf>,
    /// Those of them at which a file was made, or to which one was renamed, from where if that is known.
    pub(super) made: BTreeMap<PathBuf, Made>,
    /// Paths that are others now, or none: a directory among them is watched no more.
    moved: BTreeSet<PathBuf>,
    /// Directories that are watched since then: what came before was not told.
    pub(super) placed: BTreeSet<PathBuf>,
    /// When it was looked before, and now.
    pub(super) taken: Option<(Instant, Instant)>,
    /// There was more than is remembered: anything may have changed.
    pub(super) is_partial: bool,
}

/// What came to a path.
#[derive(Clone, Debug, Default)]
pub(super) struct Made {
    /// Where the last was before, if that is known.
    pub(super) from: Option<PathBuf>,
    /// How many.
    pub(super) times: u32,
    /// The last of them was made there, and not renamed to it.
    pub(super) is_made: bool,
    /// How many of them were renamed on, and where to the last was.
    pub(super) left: u32,
    pub(super) to: Option<PathBuf>,
}

impl News {
    pub(super) fn made(&mut self, to: PathBuf, from: Option<PathBuf>, is_made: bool) {
        if let Some(left) = from.as_ref().and_then(|from| self.made.get_mut(from)) {
            left.left = left.left.saturating_add(1);
            left.to = Some(to.clone());
        }
        if self.made.len() < PATHS_MAX || self.made.contains_key(&to) {
            let made = self.made.entry(to).or_default();
            // Where it was before is told a second time, when that is known.
            made.times = made.times.saturating_add(u32::from(from.is_none()));
            made.from = from;
            made.is_made = is_made;
        } else {
            self.is_partial = true;
        }
    }

    fn note(&mut self, path: PathBuf, appeared: bool) {
        let paths = match appeared {
            true => &mut self.appeared,
            false => &mut self.changed,
        };
        if paths.len() < PATHS_MAX {
            paths.insert(path);
        } else if !paths.contains(&path) {
            self.is_partial = true;
        }
    }
}

impl Watching {
    pub(super) fn start(waker: Waker) -> Self {
        let news: Arc<Mutex<News>> = Arc::default();
        let told = news.clone();
        let tell = move |event: notify::Result<notify::Event>| {
            if hear(&told, event) {
                waker.wake();
            }
        };
        let orders = match notify::recommended_watcher(tell) {
            Ok(mut watcher) => Self::serve(move |directory, order| {
                if matches!(order, Order::Forget | Order::Anew)
                    && let Err(error) = watcher.unwatch(directory)
                {
                    debug!(%error, "a directory is watched no more");
                }
                // Without a watch the poll finds it, a little later.
                if matches!(order, Order::Watch | Order::Anew)
                    && let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive)
                {
                    debug!(%error, "a directory cannot be watched and is polled");
                }
            }),
            Err(error) => {
                warn!(%error, "changes are not notified on this system; polling");
                None
            }
        };
        Self {
            orders,
            watched: BTreeSet::new(),
            news,
            taken_at: clock::now(),
        }
    }

    /// Begins the thread that asks the system.
    fn serve(system: impl FnMut(&Path, Order) + Send + 'static) -> Option<Arc<Orders>> {
        let orders: Arc<Orders> = Arc::default();
        let own = orders.clone();
        let thread = std::thread::Builder::new().name("watches".into());
        match thread.spawn(move || own.serve(system)) {
            Ok(_) => Some(orders),
            Err(error) => {
                warn!(%error, "there is no thread to be told of changes by; polling");
                None
            }
        }
    }

    /// Whether changes are told.
    pub(super) fn works(&self) -> bool {
        let orders = self.orders.as_ref();
        orders.is_some_and(|orders| !orders.is_stuck())
    }

    /// Watches these from now on, as far as there is room; when they are all there are, others make room for them.
    pub(super) fn add<'a>(&mut self, directories: impl Iterator<Item = &'a Path>, are_all: bool) {
        let directories: BTreeSet<&Path> = directories.collect();
        if are_all && self.watched.len() >= WATCHES_MAX {
            let others = self.watched.iter();
            let others = others.filter(|own| !directories.contains(&***own));
            let others: Vec<PathBuf> = others.cloned().collect();
            for other in others {
                self.forget(&other);
            }
        }
        let Some(orders) = &self.orders else {
            return;
        };
        let before = self.watched.len();
        for directory in directories {
            if self.watched.len() >= WATCHES_MAX {
                break;
            }
            if self.watched.contains(directory) {
                continue;
            }
            // Where the system has so much to do, it is asked again by the next walk.
            if orders.take(directory, Order::Watch) {
                self.watched.insert(directory.to_owned());
            }
        }
        if self.watched.len() > before {
            orders.wait(WAIT_MAX);
        }
    }

    /// Whether each file that comes to a directory is told, once. Other systems tell of it again, and not when they lost
    /// what they had to tell.
    pub(super) fn counts(&self, directory: &Path) -> bool {
        cfg!(target_os = "linux") && self.watched.contains(directory) && self.works()
    }

    /// What was told since the last call. A directory that was removed or renamed is watched when it is found again.
    pub(super) fn take(&mut self) -> News {
        let mut news = core::mem::take(&mut *lock(&self.news));
        let now = clock::now();
        news.taken = Some((core::mem::replace(&mut self.taken_at, now), now));
        if let Some(orders) = &self.orders {
            news.placed = core::mem::take(&mut orders.lock().placed);
        }
        for path in core::mem::take(&mut news.moved) {
            if self.watched.contains(&path) && !self.forget(&path) {
                lock(&self.news).moved.insert(path); // once more
            }
        }
        news
    }

    /// Whether there was room for the order.
    fn forget(&mut self, directory: &Path) -> bool {
        let orders = self.orders.as_ref();
        let is_taken = orders.is_none_or(|orders| orders.take(directory, Order::Forget));
        if is_taken {
            self.watched.remove(directory);
        }
        is_taken
    }
}

/// Remembers what the system tells. Whether somebody is to look.
fn hear(news: &Mutex<News>, event: notify::Result<notify::Event>) -> bool {
    let Ok(event) = event else {
        // Events were lost: any may be among them.
        lock(news).is_partial = true;
        return true;
    };
    if event.need_rescan() {
        // Some were lost, which is no change of a path.
        lock(news).is_partial = true;
        return true;
    }
    let appeared = match event.kind {
        EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(_)) => true,
        EventKind::Modify(_) | EventKind::Remove(_) => false,
        // Reading a file is an event too: only changes count, or we would wake ourselves.
        EventKind::Any | EventKind::Access(_) | EventKind::Other => return false,
    };
    let made = match (&event.kind, &*event.paths) {
        (EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(RenameMode::To)), [to]) => {
            Some((to.clone(), None))
        }
        (EventKind::Modify(ModifyKind::Name(RenameMode::Both)), [from, to]) => {
            Some((to.clone(), Some(from.clone())))
        }
        _ => None,
    };
    let is_moved = appeared || matches!(event.kind, EventKind::Remove(_));
    let mut news = lock(news);
    if let Some((to, from)) = made {
        news.made(to, from, matches!(event.kind, EventKind::Create(_)));
    }
    for path in event.paths {
        if is_moved && news.moved.len() < PATHS_MAX {
            news.moved.insert(path.clone());
        }
        if appeared {
            news.note(path.clone(), true);
        }
        news.note(path, false);
    }
    drop(news);
    true
}

fn lock(news: &Mutex<News>) -> MutexGuard<'_, News> {
    news.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Directories that are watched; those after them are polled.
const WATCHES_MAX: usize = 1024;
/// Orders that wait for the system: those of all watches, and as many for what is watched no more.
const ORDERS_MAX: usize = 2 * WATCHES_MAX;
/// How long the reading waits for watches to be in place; they take microseconds.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// The system answers an order in no time; after this the agent looks itself as often as where nothing is told.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// How often it is said that it does not.
const SAID_INTERVAL: Duration = Duration::from_secs(600);
/// Paths remembered between two looks: who changes more of them at once makes all files be looked at.
const PATHS_MAX: usize = 4096;

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::*;
    use crate::source::Command;

    /// A watch over directories, and who is woken by it.
    fn start() -> (Watching, Waker, Receiver<Command>) {
        let (told, woken) = sync_channel(100);
        let waker = Waker::new(told);
        (Watching::start(waker.clone()), waker, woken)
    }

    fn hears(
        watching: &mut Watching,
        waker: &Waker,
        woken: &Receiver<Command>,
        path: &Path,
    ) -> bool {
        let until = clock::now() + Duration::from_secs(10);
        while let Some(left) = until.checked_duration_since(clock::now()) {
            if watching.take().changed.contains(path) {
                return true;
            }
            if woken.recv_timeout(left).is_err() {
                return false;
            }
            waker.handle_wake();
        }
        false
    }

    /// What was ordered is done, however busy the machine is.
    fn is_in_place(watching: &Watching) {
        watching
            .orders
            .as_ref()
            .unwrap()
            .wait(Duration::from_secs(10));
    }

    /// A directory that is removed and made anew is another, of which the system tells nothing before it is asked to.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "nothing of a test is durable")]
    fn a_directory_that_was_made_anew_is_watched_again_and_gone_ones_keep_no_place() {
        let dir = std::env::temp_dir().join(format!("scrinium-watching-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        let (own, file) = (dir.join("own"), dir.join("own/a.log"));
        std::fs::create_dir_all(&own).unwrap();
        let (mut watching, waker, woken) = start();
        watching.add([&*own].into_iter(), true);
        is_in_place(&watching);
        std::fs::write(&file, "a\n").unwrap();
        assert!(hears(&mut watching, &waker, &woken, &file));
        std::fs::remove_dir_all(&own).unwrap();
        assert!(hears(&mut watching, &waker, &woken, &own));
        std::fs::create_dir_all(&own).unwrap();
        watching.add([&*own].into_iter(), true);
        is_in_place(&watching);
        std::fs::write(&file, "b\n").unwrap();
        assert!(hears(&mut watching, &waker, &woken, &file));
        // Where there is no more room, what is not found any more gives its own.
        for n in 0..WATCHES_MAX {
            watching.watched.insert(dir.join(n.to_string()));
        }
        watching.add([&*dir].into_iter(), true);
        assert!(watching.watched.iter().eq([&dir]));
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// Each file that comes to a path counts once, whatever was there before and wherever it was.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "nothing of a test is durable")]
    fn as_many_files_are_told_as_come_to_a_path() {
        let dir = std::env::temp_dir().join(format!("scrinium-arrivals-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        let (file, other, last) = (dir.join("a.log"), dir.join("b"), dir.join("last"));
        let (mut watching, waker, woken) = start();
        watching.add([&*dir].into_iter(), true);
        is_in_place(&watching);
        std::fs::write(&file, "a\n").unwrap();
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&other, "b\n").unwrap();
        std::fs::rename(&other, &file).unwrap();
        std::fs::write(&last, "").unwrap();
        let until = clock::now() + Duration::from_secs(10);
        let mut times = 0;
        loop {
            let news = watching.take();
            times += news.made.get(&file).map_or(0, |made| made.times);
            if news.appeared.contains(&last) {
                break;
            }
            let left = until.saturating_duration_since(clock::now());
            woken.recv_timeout(left).unwrap();
            waker.handle_wake();
        }
        assert_eq!(times, 2);
        assert!(watching.counts(&dir));
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// The queue of the system was full.
    #[test]
    fn that_something_was_not_told_is_known() {
        let news = Mutex::<News>::default();
        let lost = notify::Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
        assert!(hear(&news, Ok(lost)));
        assert!(lock(&news).is_partial);
        let news = Mutex::<News>::default();
        assert!(!hear(&news, Ok(notify::Event::new(EventKind::Other))));
        assert!(!lock(&news).is_partial);
    }

    /// The system may take no orders for as long as somebody renames files: nobody waits for it.
    #[test]
    fn a_system_that_does_not_answer_keeps_nobody_waiting() {
        let (mut watching, _, _woken) = start();
        let (asked, is_asked) = sync_channel(ORDERS_MAX);
        let (answer, answers) = sync_channel::<()>(4);
        watching.orders = Watching::serve(move |directory, order| {
            asked.send((directory.to_owned(), order)).unwrap();
            answers.recv().ok();
        });
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        watching.add([a].into_iter(), true);
        assert_eq!(is_asked.recv().unwrap(), (a.into(), Order::Watch));
        assert!(watching.works());
        // None of these waits longer than a moment.
        watching.add([b].into_iter(), false);
        lock(&watching.news).moved.insert(a.into());
        drop(watching.take());
        watching.add([a].into_iter(), false);
        let orders = watching.orders.clone().unwrap();
        let long_ago = clock::now().checked_sub(ANSWERS_WITHIN);
        orders.lock().asked = long_ago;
        assert!(!watching.works());
        // What is ordered meanwhile has an end.
        for n in 0..2 * ORDERS_MAX {
            orders.take(&Path::new("/many").join(n.to_string()), Order::Watch);
        }
        assert_eq!(orders.lock().waiting.len(), ORDERS_MAX);
        // When it answers, it is asked for all of it.
        answer.send(()).unwrap();
        assert_eq!(is_asked.recv().unwrap(), (a.into(), Order::Anew));
        assert!(watching.works());
        answer.send(()).unwrap();
        assert_eq!(is_asked.recv().unwrap(), (b.into(), Order::Watch));
        // Nobody waits for the end of the thread either.
        drop(watching);
        drop(answer);
        while is_asked.recv().is_ok() {}
    }
}
