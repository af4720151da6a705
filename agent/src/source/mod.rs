//! Files and what else speaks become entries, entries become sealed batches.
//!
//! ```text
//! [discover] globs ─▶ [file] one stream per path ─▶ batches ─▶ bounded channel ─▶ spool
//!                        ▲ [bookmark]: where to go on       ◀─ rewind, stop
//! syslog, journal, commands ─▶ [feed] one per source ─▶ batches ─▶ …
//! ```
//!
//! One thread owns every source. It reads nothing while the channel is full: a full spool stops sources,
//! and what was not read stays in its file.

pub mod bookmark;
mod claims;
mod content;
mod context;
pub(crate) mod discover;
mod disk;
pub(crate) mod feed;
mod file;
mod follow;
mod generations;
#[cfg(test)]
mod model;
mod output;
mod pace;
mod records;
mod resting;
mod trust;

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use ed25519_dalek::SigningKey;
use notify::{EventKind, RecursiveMode, Watcher as _};
use regex::bytes::Regex;
use scrinium_protocol::batch::StreamPosition;
use scrinium_protocol::compress::{AGENT_LEVEL, Compressor};
use scrinium_protocol::identity::{StreamId, StreamKind, StreamName};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use self::bookmark::FileId;
use self::claims::Collected;
use self::context::BLOCKED_MAX;
pub(crate) use self::context::Context;
use self::discover::{Discovery, FILES_MAX, Found};
use self::disk::{Disk, RealDisk};
use self::feed::{Feed, Waker};
use self::file::{FileStream, Pass, Place};
pub(crate) use self::output::Positions;
use self::pace::{PACE_INTERVAL, Pace, UNPACKED_PER_S_MAX};
use self::resting::Resting;
use crate::clock;
use crate::config::{Config, FeedSource};
use crate::governor::Governor;
use crate::shipper::Produced;

/// What the sources are told.
pub(crate) enum Command {
    /// Forget what was read of this stream after `position`, and go on there.
    Rewind {
        stream: StreamId,
        position: StreamPosition,
        rewinds: u64,
        /// Something that was sealed after `position` is gone.
        lost: bool,
    },
    /// Collect what this says from now on; that it is so answers the server about this version.
    Configure {
        config: Box<Config>,
        answers: Option<u64>,
    },
    /// Something changed on the disk.
    Wake,
    Stop,
}

/// What the thread of the sources took up of what it was told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Heard {
    /// Commands; there is room for as many others.
    commands: u64,
    /// Configurations among them.
    pub(crate) configurations: u64,
    /// What the last configuration answers.
    pub(crate) answers: Option<u64>,
}

/// Starts the thread of the sources, which go on from `positions`.
pub(crate) fn start(
    config: &Config,
    signing: SigningKey,
    positions: Positions,
    out: mpsc::Sender<Produced>,
    heard: watch::Sender<Heard>,
) -> std::io::Result<(SyncSender<Command>, std::thread::JoinHandle<()>)> {
    let (commands, received) = sync_channel(COMMANDS_MAX);
    let mut sources = Sources {
        positions,
        discovery: Discovery::new(config),
        disk: Arc::new(RealDisk::default()),
        began: SystemTime::UNIX_EPOCH + Duration::from_micros(clock::unix_us()),
        streams: BTreeMap::new(),
        resting: Resting::default(),
        wanted: config.feeds().collect(),
        feeds: Vec::new(),
        feeds_first: false,
        turn: None,
        waits_for_room: false,
        too_many: false,
        blocked_at: None,
        deleted_bytes_max: config.rates.deleted_bytes_max,
        governor: Governor::new(config.rates.cpu_percent_max),
        descriptors_max: descriptors_max(),
        watcher: None,
        watched: Vec::new(),
        waker: Waker::new(commands.clone()),
        heard,
        rewound: BTreeSet::new(),
        looks_again: false,
        refused: BTreeSet::new(),
        context: Context {
            signing,
            compressor: Compressor::new(AGENT_LEVEL),
            out,
            runtime: Handle::current(),
            stopped: false,
            parks: false,
            deny: config.deny.clone(),
            unpacking: Pace::new(UNPACKED_PER_S_MAX),
            patience: BLOCKED_MAX,
        },
    };
    sources.watch();
    let thread = std::thread::Builder::new()
        .name("sources".into())
        .spawn(move || sources.run(&received))?;
    Ok((commands, thread))
}

struct Sources {
    positions: Positions,
    discovery: Discovery,
    disk: Arc<dyn Disk>,
    /// When it began to look for files.
    began: SystemTime,
    streams: BTreeMap<PathBuf, FileStream>,
    /// Files that need no stream now.
    resting: Resting,
    /// Sources that are no files: those to collect, and those at work.
    wanted: Vec<FeedSource>,
    feeds: Vec<Feed>,
    feeds_first: bool,
    /// The stream whose turn it is after the spool had no room for it.
    turn: Option<PathBuf>,
    /// Files were found that need a stream, and there were too many of those.
    waits_for_room: bool,
    /// There are more files than are followed, and it was said.
    too_many: bool,
    /// Since when the spool takes nothing.
    blocked_at: Option<Instant>,
    deleted_bytes_max: u64,
    governor: Governor,
    /// Files that may be open at once.
    descriptors_max: usize,
    watcher: Option<notify::RecommendedWatcher>,
    watched: Vec<PathBuf>,
    waker: Waker,
    heard: watch::Sender<Heard>,
    /// Streams that are to go on elsewhere.
    rewound: BTreeSet<StreamId>,
    /// Files are to be looked for before it is time.
    looks_again: bool,
    /// Links that are not followed and were said to be so.
    refused: BTreeSet<PathBuf>,
    context: Context,
}

impl Sources {
    fn run(&mut self, commands: &Receiver<Command>) {
        let mut discover_at = clock::now();
        while !self.context.stopped {
            let now = clock::now();
            if now >= discover_at || core::mem::take(&mut self.looks_again) {
                self.looks_again = false;
                self.discover();
                self.feed();
                // Looking for files is never more than a small part of the work.
                discover_at = now + DISCOVER_INTERVAL.max((clock::now() - now) * DISCOVER_SHARE);
            }
            let pass = self.pass(now);
            if self.context.stopped {
                return;
            }
            let positions = &mut self.positions;
            self.streams.retain(|_, stream| {
                let over = stream.is_over(now);
                if over {
                    // Should a file of this name come back, its stream goes on.
                    stream.close(positions);
                }
                !over
            });
            if self.streams.len() >= AWAKE_MAX {
                self.rest(now);
                if self.waits_for_room && self.streams.len() < AWAKE_MAX / 2 {
                    discover_at = now;
                }
            }
            let patience = match pass {
                Pass::Paced => PACE_INTERVAL,
                Pass::Idle => self.poll_interval(),
                Pass::Busy | Pass::Blocked => Duration::ZERO,
            };
            let now = clock::now();
            let pause = self.governor.pause(now);
            if !self.wait(commands, now + pause, patience.max(pause)) {
                return self.finish();
            }
        }
    }

    /// What cannot be asked for again is sealed before the end.
    fn finish(&mut self) {
        for feed in &mut self.feeds {
            feed.end(None);
        }
        let deadline = clock::now() + FINISH_MAX;
        while self.pass_feeds() != Pass::Idle && !self.context.stopped && clock::now() < deadline {}
    }

    /// Lets every source have its turn. Files and the others are first in turns, so that neither has
    /// all the room there is.
    fn pass(&mut self, now: Instant) -> Pass {
        self.feeds_first = !self.feeds_first;
        let first = match self.feeds_first {
            true => self.pass_feeds(),
            false => self.pass_files(now),
        };
        let second = match self.feeds_first {
            _ if first == Pass::Blocked || self.context.stopped => Pass::Idle,
            true => self.pass_files(now),
            false => self.pass_feeds(),
        };
        let reached = first.max(second);
        if reached == Pass::Blocked {
            let since = *self.blocked_at.get_or_insert(now);
            if now.duration_since(since) >= DELETED_PATIENCE {
                self.free_deleted();
            }
        } else {
            self.blocked_at = None;
        }
        reached
    }

    fn pass_feeds(&mut self) -> Pass {
        let mut reached = Pass::Idle;
        for feed in &mut self.feeds {
            reached = reached.max(feed.pass(&mut self.positions, &mut self.context));
            if reached == Pass::Blocked || self.context.stopped {
                break;
            }
        }
        // Should there be no room before the last one had its turn, it is the first the next time.
        if let [_, _, ..] = &*self.feeds {
            self.feeds.rotate_left(1);
        }
        reached
    }

    /// Lets every file's stream read on, from the one whose turn it is.
    fn pass_files(&mut self, now: Instant) -> Pass {
        self.context.parks = self.streams.len() > self.descriptors_max;
        let mut reached = Pass::Idle;
        let turn = self.turn.take().unwrap_or_default();
        for is_after in [true, false] {
            let streams = self.streams.iter_mut();
            for (path, stream) in streams.filter(|(path, _)| (**path >= turn) == is_after) {
                let pass = stream.pass(&mut self.context, now);
                reached = reached.max(pass);
                if pass == Pass::Blocked {
                    self.turn = Some(path.clone());
                }
                if self.context.stopped || reached == Pass::Blocked {
                    return reached;
                }
            }
        }
        reached
    }

    /// Lets deleted files go that are not read yet, the largest first, while they hold too much disk.
    fn free_deleted(&mut self) {
        let mut held: Vec<(u64, PathBuf)> = self
            .streams
            .iter()
            .map(|(path, stream)| (stream.deleted_bytes(), path.clone()))
            .collect();
        held.sort_unstable();
        let mut total: u64 = held.iter().map(|(bytes, _)| bytes).sum();
        while total > self.deleted_bytes_max
            && let Some((bytes, path)) = held.pop()
        {
            if let Some(stream) = self.streams.get_mut(&path) {
                stream.drop_deleted();
            }
            total -= bytes;
        }
    }

    /// Acts on commands for `patience`; a wake-up ends the wait after a moment in which the writer
    /// may go on, so that a batch is worth its name, but never before `earliest`.
    fn wait(
        &mut self,
        commands: &Receiver<Command>,
        earliest: Instant,
        patience: Duration,
    ) -> bool {
        let mut deadline = clock::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(clock::now());
            match commands.recv_timeout(left) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Ok(Command::Wake) => {
                    self.waker.handle_wake();
                    deadline = deadline.min(earliest.max(clock::now() + GATHER_DELAY));
                }
                Ok(Command::Rewind {
                    stream,
                    position,
                    rewinds,
                    lost,
                }) => {
                    self.positions.rewind(stream, position, rewinds, lost);
                    self.rewound.insert(stream);
                    // Others may follow at once: all of them are one look at every stream.
                    deadline = deadline.min(clock::now() + GATHER_DELAY);
                    self.heard.send_modify(|heard| heard.commands += 1);
                }
                Ok(Command::Configure { config, answers }) => {
                    self.rewind();
                    self.configure(&config);
                    self.heard.send_modify(|heard| {
                        heard.commands += 1;
                        heard.configurations += 1;
                        heard.answers = answers;
                    });
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.rewind();
                    return true;
                }
            }
        }
    }

    /// Goes on with the streams that were rewound where they stand now.
    fn rewind(&mut self) {
        let rewound = core::mem::take(&mut self.rewound);
        if rewound.is_empty() {
            return;
        }
        for feed in &mut self.feeds {
            let mut asks_again = false;
            for stream in &rewound {
                asks_again |= feed.rewind(*stream, &mut self.positions);
            }
            if asks_again {
                let source = feed.source().clone();
                *feed = Feed::start(source, &self.positions, &self.context, self.waker.clone());
            }
        }
        // Opened again by the next discovery, from the new position.
        for stream in &rewound {
            self.resting.remove_stream(*stream);
        }
        self.streams.retain(|_, open| !rewound.contains(&open.id()));
        self.looks_again = true;
    }

    /// Follows what the new configuration names, and no longer what it does not.
    fn configure(&mut self, config: &Config) {
        self.discovery = Discovery::new(config);
        self.context.deny = config.deny.clone();
        self.deleted_bytes_max = config.rates.deleted_bytes_max;
        self.governor = Governor::new(config.rates.cpu_percent_max);
        // What rests and is not wanted any more says so, like others.
        for path in self.resting.take_unless(|path| self.discovery.wants(path)) {
            self.open(path, None, false, &Arc::default());
        }
        for (path, stream) in &mut self.streams {
            stream.set_wanted(self.discovery.wants(path), &config.deny);
        }
        self.wanted = config.feeds().collect();
        self.feed();
        self.discover();
    }

    /// Ends the sources that are no files and not wanted any more, once what they had is sealed, and
    /// starts those that are wanted and not at work.
    fn feed(&mut self) {
        for feed in &mut self.feeds {
            if !self.wanted.contains(feed.source()) {
                feed.end(Some(&self.positions));
            }
        }
        let feeds = core::mem::take(&mut self.feeds).into_iter();
        let (over, left): (Vec<Feed>, Vec<Feed>) = feeds.partition(Feed::is_over);
        self.feeds = left;
        for feed in over {
            feed.close(&mut self.positions);
        }
        for source in &self.wanted {
            if self.feeds.iter().all(|feed| feed.source() != source) {
                let (source, waker) = (source.clone(), self.waker.clone());
                let feed = Feed::start(source, &self.positions, &self.context, waker);
                self.feeds.push(feed);
            }
        }
    }

    /// Lets files that are read and quiet do without a stream.
    fn rest(&mut self, now: Instant) {
        let (positions, resting) = (&mut self.positions, &mut self.resting);
        self.streams.retain(|path, stream| {
            let Some(rest) = stream.rest(now) else {
                return true;
            };
            stream.close(positions);
            resting.insert(path, rest);
            false
        });
    }

    fn open(
        &mut self,
        path: PathBuf,
        multiline: Option<Regex>,
        history: bool,
        inherited: &Arc<Collected>,
    ) {
        let output = self.positions.open(stream_name(&path));
        let root = self.discovery.root_of(&path);
        let deny = self.context.deny.clone();
        let disk = self.disk.clone();
        let place = Place {
            path,
            root,
            deny,
            disk,
        };
        let path = place.path.clone();
        let now = clock::now();
        let mut stream = FileStream::new(output, place, multiline, history, self.began, now);
        stream.inherit(inherited);
        self.streams.insert(path, stream);
    }

    /// Opens a stream for every file that matches and has none.
    fn discover(&mut self) {
        let Found {
            files: found,
            refused,
        } = self.discovery.look();
        for (path, reason) in refused {
            if self.refused.len() < REFUSED_MAX && self.refused.insert(path.clone()) {
                warn!(path = %path.display(), reason, "a link is not collected");
            }
        }
        let too_many = found.len() >= FILES_MAX;
        if too_many && !self.too_many {
            warn!(
                followed = FILES_MAX,
                "the sources name more files than are followed at once; the rest waits until there are fewer"
            );
        }
        self.too_many = too_many;
        let files: BTreeSet<PathBuf> = found.keys().cloned().collect();
        let bases: LazyCell<BTreeSet<PathBuf>, _> = LazyCell::new(|| {
            files
                .iter()
                .flat_map(|path| generations::bases_of(path))
                .collect()
        });
        self.waits_for_room = false;
        let mut new = Vec::new();
        for (path, multiline) in found {
            if self.streams.contains_key(&path) {
                continue;
            }
            let file = match self.disk.look(&path) {
                Ok(Some(seen)) if self.resting.is_unchanged(&path, seen) => continue,
                Ok(Some(seen)) => Some(seen.id),
                Ok(None) => continue, // gone again
                Err(_) => None,       // its stream will say so
            };
            let stream = self.positions.id(&stream_name(&path));
            new.push((!self.positions.knows(stream), path, multiline, file));
        }
        // Streams that began before know whose the others are.
        new.sort_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
        let collected = match new.is_empty() {
            true => Collected::default(),
            false => Collected::of(self.positions.bookmarks(), self.streams.values()),
        };
        let collected = Arc::new(collected);
        let at_paths = self.streams.values().filter_map(FileStream::file_at_path);
        let mut at_paths: BTreeSet<FileId> = at_paths.collect();
        for (_, path, multiline, file) in new {
            if self.streams.len() >= AWAKE_MAX {
                self.waits_for_room = true;
                continue;
            }
            if self.resting.contains(&path) {
                self.resting.remove(&path);
                at_paths.extend(file);
                self.open(path, multiline, false, &collected);
                continue;
            }
            // What rested is somewhere else now: its stream knows what that means.
            if let Some(before) = file.and_then(|file| self.resting.path_of(file)) {
                let before = before.to_path_buf();
                self.resting.remove(&before);
                at_paths.extend(file);
                self.open(before, multiline, false, &collected);
                continue;
            }
            // Old generations belong to the stream of the file they were, and are read before it.
            let knows = |base: &Path| {
                self.discovery.wants(base)
                    && self.positions.knows(self.positions.id(&stream_name(base)))
            };
            if let Some(base) = claims::base_of(&path, |base| files.contains(base), knows) {
                if !files.contains(&base) && !self.streams.contains_key(&base) {
                    self.open(base, multiline, false, &collected);
                }
                continue;
            }
            let is_anothers = |file: FileId| {
                at_paths.contains(&file) || claims::is_anothers(self.streams.values(), file, &path)
            };
            if file.is_some_and(is_anothers) {
                debug!("a followed file has another name");
                continue;
            }
            at_paths.extend(file);
            let history = bases.contains(&path);
            self.open(path, multiline, history, &collected);
        }
        drop(self.resting.take_unless(|path| files.contains(path)));
        let directories = self.discovery.directories(&files);
        if let Some(watcher) = &mut self.watcher {
            for directory in directories {
                if !self.watched.contains(&directory) && self.watched.len() < WATCHES_MAX {
                    // Without a watch the poll finds it, a little later.
                    if let Err(error) = watcher.watch(&directory, RecursiveMode::NonRecursive) {
                        debug!(%error, "a directory cannot be watched and is polled");
                    }
                    self.watched.push(directory);
                }
            }
        }
    }

    fn watch(&mut self) {
        let waker = self.waker.clone();
        let wake = move |event: notify::Result<notify::Event>| {
            // Reading a file is an event too: only changes count, or we would wake ourselves.
            let changed = event.is_ok_and(|event| {
                matches!(
                    event.kind,
                    EventKind::Modify(_) | EventKind::Create(_) | EventKind::Remove(_)
                )
            });
            if changed {
                waker.wake();
            }
        };
        match notify::recommended_watcher(wake) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => warn!(%error, "changes are not notified on this system; polling"),
        }
    }

    fn poll_interval(&self) -> Duration {
        if self.watcher.is_some() {
            POLL_WATCHED
        } else {
            POLL_UNWATCHED
        }
    }
}

fn stream_name(path: &Path) -> StreamName {
    StreamName {
        kind: StreamKind::File,
        name: discover::name_of(path),
    }
}

/// How many files may be open: what the system allows, less what everything else needs.
fn descriptors_max() -> usize {
    #[cfg(unix)]
    let allowed = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .unwrap_or(u64::MAX);
    #[cfg(not(unix))]
    let allowed = 2048_u64;
    let allowed = usize::try_from(allowed).unwrap_or(usize::MAX);
    allowed
        .min(DESCRIPTORS_MAX)
        .saturating_sub(DESCRIPTORS_SPARE)
}

/// Streams of files at once; when there are so many, those that are quiet make room.
const AWAKE_MAX: usize = 10_240;
const COMMANDS_MAX: usize = 1024;
/// Links of which it is said that they are not followed; who makes more has been named often enough.
const REFUSED_MAX: usize = 1000;
const DISCOVER_INTERVAL: Duration = Duration::from_secs(1);
/// Looking for files takes at most one part in so many of the time.
const DISCOVER_SHARE: u32 = 50;
const DESCRIPTORS_MAX: usize = 4096;
/// For sockets, spool, watches, and the generations of files that are being rotated.
const DESCRIPTORS_SPARE: usize = 96;
/// How long the last entries wait for room at the end.
const FINISH_MAX: Duration = Duration::from_secs(5);
/// A spool that was full for this long may be so for longer: disk space counts then.
const DELETED_PATIENCE: Duration = Duration::from_secs(2);
const GATHER_DELAY: Duration = Duration::from_millis(60);
const POLL_WATCHED: Duration = Duration::from_millis(1000);
const POLL_UNWATCHED: Duration = Duration::from_millis(250);
const WATCHES_MAX: usize = 1024;
