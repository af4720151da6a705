//! Files and what else speaks become entries, entries become sealed batches.
//!
//! ```text
//! [walker] a thread that looks for what the globs match ─▶ [file] one stream per path ─▶ batches ─▶ bounded channel ─▶ spool
//!                        ▲ [bookmark]: where to go on       ◀─ rewind, stop
//! syslog, journal, commands ─▶ [feed] one per source ─▶ batches ─▶ …
//! how each source does ─▶ [standing] ─▶ status, keep-alives
//! ```
//!
//! One thread owns every source. It reads nothing while the channel is full: a full spool stops sources,
//! and what was not read stays in its file. It gives signs of life, see `beat`.

mod asked;
pub(crate) mod beat;
pub mod bookmark;
mod claims;
mod content;
mod context;
pub(crate) mod discover;
mod disk;
mod entries;
pub(crate) mod feed;
mod file;
mod findings;
mod follow;
pub(crate) mod generations;
#[cfg(target_os = "linux")]
mod held;
#[cfg(test)]
mod model;
mod mounts;
mod opening;
mod output;
mod pace;
mod passing;
mod records;
mod resting;
pub(crate) mod round;
mod shares;
pub(crate) mod since;
pub(crate) mod standing;
#[cfg(test)]
#[cfg(unix)]
mod tests;
mod trust;
mod vanished;
mod walk;
mod walker;
mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use scrinium_protocol::batch::StreamPosition;
use scrinium_protocol::compress::{AGENT_LEVEL, Compressor};
use scrinium_protocol::identity::StreamId;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use self::claims::Collected;
use self::context::BLOCKED_MAX;
pub(crate) use self::context::Context;
use self::discover::Discovery;
pub(crate) use self::disk::can_open;
use self::disk::{Disk, RealDisk};
use self::feed::{Feed, Waker};
use self::file::{FileStream, Pass, Terms};
pub(crate) use self::output::Positions;
use self::pace::{COMPARED_PER_S_MAX, PACE_INTERVAL, Pace, UNPACKED_PER_S_MAX};
use self::passing::Due;
use self::resting::Resting;
use self::round::Met;
use self::shares::Shares;
use self::since::Since;
use self::standing::{Facts, Health, Standing};
use self::vanished::Vanished;
use self::walker::Walker;
use self::watching::Watching;
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

/// What the thread of the sources tells others.
pub(crate) struct Tells {
    pub(crate) heard: watch::Sender<Heard>,
    pub(crate) health: Health,
}

/// Starts the thread of the sources, which go on from `positions`.
pub(crate) fn start(
    config: &Config,
    signing: SigningKey,
    positions: Positions,
    out: mpsc::Sender<Produced>,
    tells: Tells,
    since: Since,
) -> std::io::Result<(SyncSender<Command>, std::thread::JoinHandle<()>)> {
    let (commands, received) = sync_channel(COMMANDS_MAX);
    let waker = Waker::new(commands.clone());
    let mut sources = prepare(config, signing, positions, out, tells, since, waker)?;
    let thread = std::thread::Builder::new()
        .name("sources".into())
        .spawn(move || sources.run(&received))?;
    Ok((commands, thread))
}

fn prepare(
    config: &Config,
    signing: SigningKey,
    positions: Positions,
    out: mpsc::Sender<Produced>,
    tells: Tells,
    mut since: Since,
    waker: Waker,
) -> std::io::Result<Sources> {
    let discovery = Arc::new(Discovery::new(config));
    since.configure(discovery.globs());
    Ok(Sources {
        positions,
        collected: Collected::default(),
        disk: Arc::new(RealDisk::keeping_off(since.dir())),
        since,
        streams: BTreeMap::new(),
        left: BTreeMap::new(),
        resting: Resting::default(),
        wanted: config.feeds().collect(),
        feeds: Vec::new(),
        feeds_first: false,
        feed_at: None,
        due: Due::default(),
        turn: None,
        waiting: None,
        rest_at: None,
        met: None,
        blocked_at: None,
        deleted_bytes_max: config.rates().deleted_bytes_max,
        governor: Governor::new(config.rates().cpu_percent_max),
        descriptors_max: descriptors_max(),
        watching: Watching::start(waker.clone()),
        walker: Walker::start(discovery.clone(), waker.clone())?,
        discovery,
        waker,
        heard: tells.heard,
        standing: Standing::new(tells.health.reports),
        rewound: BTreeSet::new(),
        shares: Shares::default(),
        context: Context {
            signing,
            compressor: Compressor::new(AGENT_LEVEL),
            out,
            runtime: Handle::current(),
            stopped: false,
            parks: false,
            deny: config.deny.clone(),
            senders: feed::senders(),
            unpacking: Pace::new(UNPACKED_PER_S_MAX),
            comparing: Pace::new(COMPARED_PER_S_MAX),
            patience: BLOCKED_MAX,
            vanished: Vanished::default(),
            beat: tells.health.beat,
        },
    })
}

struct Sources {
    positions: Positions,
    /// How far streams that are not open collected their files.
    collected: Collected,
    disk: Arc<dyn Disk>,
    discovery: Arc<Discovery>,
    walker: Walker,
    /// Since when it looks for files.
    since: Since,
    streams: BTreeMap<PathBuf, Followed>,
    /// Paths without files when they were looked for last, and the numbers of their old generations.
    left: BTreeMap<PathBuf, BTreeSet<u64>>,
    /// Files that need no stream now.
    resting: Resting,
    /// Sources that are no files: those to collect, and those at work.
    wanted: Vec<FeedSource>,
    feeds: Vec<Feed>,
    feeds_first: bool,
    /// When it is looked again whether a source that is no file ended.
    feed_at: Option<Instant>,
    /// Streams that are to be read.
    due: Due,
    /// The stream whose turn it is after the spool had no room for it.
    turn: Option<PathBuf>,
    /// Files were found that need a stream, and there were too many of those.
    waiting: Option<Waiting>,
    /// When quiet files make room for others the next time.
    rest_at: Option<Instant>,
    /// What the last walk met.
    met: Option<Vec<Met>>,
    /// Since when the spool takes nothing.
    blocked_at: Option<Instant>,
    deleted_bytes_max: u64,
    governor: Governor,
    /// Files that may be open at once.
    descriptors_max: usize,
    watching: Watching,
    waker: Waker,
    heard: watch::Sender<Heard>,
    standing: Standing,
    /// Streams that are to go on elsewhere.
    rewound: BTreeSet<StreamId>,
    /// New files of users.
    shares: Shares,
    context: Context,
}

/// Files that need a stream and have none: the first of them.
struct Waiting {
    source: usize,
    path: PathBuf,
    files: u64,
}

/// A stream, and the source that names its file; none when none does any more.
struct Followed {
    /// Of very many streams the map would else keep half as much room again for those that are to come.
    stream: Box<FileStream>,
    source: Option<usize>,
}

impl Deref for Followed {
    type Target = FileStream;

    fn deref(&self) -> &FileStream {
        &self.stream
    }
}

impl DerefMut for Followed {
    fn deref_mut(&mut self) -> &mut FileStream {
        &mut self.stream
    }
}

impl Sources {
    fn run(&mut self, commands: &Receiver<Command>) {
        self.walker.wait_for_first();
        while !self.context.stopped {
            let now = clock::now();
            self.context.beat.tick();
            self.look(now);
            if self.feed_at.is_none_or(|at| now >= at) {
                self.feed_at = Some(now + FEED_INTERVAL);
                self.feed();
            }
            let pass = self.pass(now);
            if self.context.stopped {
                return;
            }
            let is_full = self.streams.len() >= AWAKE_MAX || self.waiting.is_some();
            if is_full && self.rest_at.is_none_or(|at| now >= at) {
                self.rest_at = Some(now + REST_INTERVAL);
                self.rest(now);
            }
            if self.waiting.is_some() && self.streams.len() < AWAKE_MAX / 2 {
                self.waiting = None;
                self.walker.go_on();
            }
            if self.standing.is_due(now) {
                self.stand(now);
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
            self.context.beat.rests_until(deadline);
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
                        // One that came with nothing to answer leaves what was not read yet.
                        heard.answers = answers.or(heard.answers);
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
        self.resting.remove_streams(&rewound);
        self.streams.retain(|_, open| !rewound.contains(&open.id()));
        self.walker.hurry();
    }

    /// Follows what the new configuration names, and no longer what it does not.
    fn configure(&mut self, config: &Config) {
        self.discovery = Arc::new(Discovery::new(config));
        self.since.configure(self.discovery.globs());
        self.walker.configure(self.discovery.clone());
        self.met = None;
        self.context.deny = config.deny.clone();
        self.deleted_bytes_max = config.rates().deleted_bytes_max;
        self.governor = Governor::new(config.rates().cpu_percent_max);
        // What rests and is not wanted any more says so, like others.
        for path in self.resting.take_unless(|path| self.discovery.wants(path)) {
            self.open(path, None, false, &Arc::default());
        }
        for (path, followed) in &mut self.streams {
            followed.source = self.discovery.source_of(path);
            let terms = followed.source.map(|source| Terms {
                multiline: self.discovery.multiline(source),
                root: self.discovery.root_of(Some(source), path),
                named: self.discovery.named(),
            });
            followed.set_wanted(terms, &config.deny);
        }
        let discovery = &self.discovery;
        self.resting.name_sources(|path| discovery.source_of(path));
        self.due.all_at = None;
        self.wanted = config.feeds().collect();
        self.feed();
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

    /// Says how the sources do.
    fn stand(&mut self, now: Instant) {
        let mut streams: BTreeMap<usize, standing::StreamsStanding> = BTreeMap::new();
        for followed in self.streams.values() {
            let Some(source) = followed.source else {
                continue;
            };
            let standing = streams.entry(source).or_default();
            standing.read_at = standing.read_at.max(followed.read_at());
            if let Some(trouble) = followed.trouble() {
                standing.troubles.push(trouble);
            }
        }
        for (source, finding) in self.stuck(now) {
            let standing = streams.entry(source).or_default();
            standing.troubles.push(finding);
        }
        for (source, finding) in self.resting.troubles().take(TROUBLES_MAX) {
            let standing = streams.entry(*source).or_default();
            standing.troubles.push(finding.clone());
        }
        let blocked_at = self.blocked_at;
        self.standing.say(&Facts {
            discovery: &self.discovery,
            met: self.met.as_deref(),
            streams,
            feeds: self.feeds.iter().filter_map(Feed::standing).collect(),
            is_blocked: blocked_at.is_some_and(|at| now.duration_since(at) >= BLOCKED_AFTER),
            now,
        });
    }

    fn poll_interval(&self) -> Duration {
        if self.watching.works() {
            POLL_WATCHED
        } else {
            POLL_UNWATCHED
        }
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
/// How often quiet files make room where there is none: renamed ones beside each are looked at for it.
const REST_INTERVAL: Duration = Duration::from_secs(1);
/// Files at rest that cannot be read, of which it is said in one look: of each source a few have room anyway.
const TROUBLES_MAX: usize = 1000;
const COMMANDS_MAX: usize = 1024;
/// How often it is looked whether a source that is no file ended.
const FEED_INTERVAL: Duration = Duration::from_secs(1);
const DESCRIPTORS_MAX: usize = 4096;
/// For sockets, spool, watches, and the generations of files that are being rotated.
const DESCRIPTORS_SPARE: usize = 96;
/// How long the last entries wait for room at the end: less than the agent may take to stop.
const FINISH_MAX: Duration = Duration::from_secs(3);
/// Sources wait for a spool that was full for this long; a full channel for a moment is how a busy agent works.
const BLOCKED_AFTER: Duration = Duration::from_secs(2);
const GATHER_DELAY: Duration = Duration::from_millis(60);
const POLL_WATCHED: Duration = Duration::from_millis(1000);
const POLL_UNWATCHED: Duration = Duration::from_millis(250);
