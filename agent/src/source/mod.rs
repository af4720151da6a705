//! Files become entries, entries become sealed batches.
//!
//! ```text
//! [discover] globs ─▶ [file] one stream per path ─▶ batches ─▶ bounded channel ─▶ spool
//!                        ▲ [bookmark]: where to go on       ◀─ rewind, stop
//! ```
//!
//! One thread owns every source. It waits while the channel is full: a full spool stops sources, and
//! what was not read stays in its file.

pub mod bookmark;
pub(crate) mod discover;
mod file;
mod follow;
mod generations;

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use notify::{EventKind, RecursiveMode, Watcher as _};
use scrinium_protocol::batch::StreamPosition;
use scrinium_protocol::compress::{AGENT_LEVEL, Compressor};
use scrinium_protocol::identity::{AgentId, Epoch, StreamId, StreamKind};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use self::discover::Discovery;
use self::file::FileStream;
use crate::clock;
use crate::config::Config;
use crate::shipper::Produced;

/// What the sources are told.
pub(crate) enum Command {
    /// Forget what was read of this stream after `position`, and go on there.
    Rewind {
        stream: StreamId,
        position: StreamPosition,
        rewinds: u64,
    },
    /// Collect what this says from now on.
    Configure(Box<Config>),
    /// Something changed on the disk.
    Wake,
    Stop,
}

/// What every stream needs to make batches.
pub(crate) struct Context {
    pub(crate) signing: SigningKey,
    pub(crate) compressor: Compressor,
    out: mpsc::Sender<Produced>,
    stopped: bool,
}

impl Context {
    /// Hands a batch over; waits while the spool is full. `false` when the agent stops.
    fn send(&mut self, produced: Produced) -> bool {
        if self.out.blocking_send(produced).is_err() {
            self.stopped = true;
        }
        !self.stopped
    }
}

/// Starts the thread of the sources, which go on from `positions`.
pub(crate) fn start(
    config: &Config,
    agent: AgentId,
    epoch: Epoch,
    signing: SigningKey,
    positions: BTreeMap<StreamId, StreamPosition>,
    out: mpsc::Sender<Produced>,
) -> std::io::Result<(SyncSender<Command>, std::thread::JoinHandle<()>)> {
    let (commands, received) = sync_channel(COMMANDS_MAX);
    let mut sources = Sources {
        agent,
        epoch,
        positions,
        rewinds: BTreeMap::new(),
        discovery: Discovery::new(config),
        streams: BTreeMap::new(),
        unnamed: BTreeSet::new(),
        watcher: None,
        watched: Vec::new(),
        wake_pending: Arc::default(),
        context: Context {
            signing,
            compressor: Compressor::new(AGENT_LEVEL),
            out,
            stopped: false,
        },
    };
    sources.watch(commands.clone());
    let thread = std::thread::Builder::new()
        .name("sources".into())
        .spawn(move || sources.run(&received))?;
    Ok((commands, thread))
}

struct Sources {
    agent: AgentId,
    epoch: Epoch,
    /// Where streams not yet open go on.
    positions: BTreeMap<StreamId, StreamPosition>,
    rewinds: BTreeMap<StreamId, u64>,
    discovery: Discovery,
    streams: BTreeMap<PathBuf, FileStream>,
    /// Files that cannot be followed, and about which it was said.
    unnamed: BTreeSet<PathBuf>,
    watcher: Option<notify::RecommendedWatcher>,
    watched: Vec<PathBuf>,
    /// A wake-up lies in the channel.
    wake_pending: Arc<AtomicBool>,
    context: Context,
}

impl Sources {
    fn run(&mut self, commands: &Receiver<Command>) {
        let mut discovered_at: Option<Instant> = None;
        while !self.context.stopped {
            let now = clock::now();
            if discovered_at.is_none_or(|at| now.duration_since(at) >= DISCOVER_INTERVAL) {
                self.discover();
                discovered_at = Some(now);
            }
            let mut busy = false;
            for stream in self.streams.values_mut() {
                busy |= stream.pass(&mut self.context, now);
                if self.context.stopped {
                    return;
                }
            }
            let positions = &mut self.positions;
            self.streams.retain(|_, stream| {
                let over = stream.is_over(now);
                if over {
                    // Should a file of this name come back, its stream goes on.
                    positions.insert(stream.id(), stream.position().clone());
                }
                !over
            });
            let patience = if busy {
                Duration::ZERO
            } else {
                self.poll_interval()
            };
            if !self.wait(commands, patience) {
                return;
            }
        }
    }

    /// Acts on commands for `patience`; a wake-up ends the wait after a moment in which the writer
    /// may go on, so that a batch is worth its name.
    fn wait(&mut self, commands: &Receiver<Command>, patience: Duration) -> bool {
        let mut deadline = clock::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(clock::now());
            match commands.recv_timeout(left) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Ok(Command::Wake) => {
                    self.wake_pending.store(false, Ordering::Release);
                    deadline = deadline.min(clock::now() + GATHER_DELAY);
                }
                Ok(Command::Rewind {
                    stream,
                    position,
                    rewinds,
                }) => self.rewind(stream, position, rewinds),
                Ok(Command::Configure(config)) => self.configure(&config),
                Err(RecvTimeoutError::Timeout) => return true,
            }
        }
    }

    fn rewind(&mut self, stream: StreamId, position: StreamPosition, rewinds: u64) {
        info!(%stream, next = position.next.0, "going on where the server stands");
        self.positions.insert(stream, position);
        self.rewinds.insert(stream, rewinds);
        // Opened again by the next discovery, from the new position.
        self.streams.retain(|_, open| open.id() != stream);
        self.discover();
    }

    /// Follows what the new configuration names, and no longer what it does not.
    fn configure(&mut self, config: &Config) {
        self.discovery = Discovery::new(config);
        let files = self.discovery.files();
        let positions = &mut self.positions;
        self.streams.retain(|path, stream| {
            let stays = files.contains(path);
            if !stays {
                // Should it be named again, its stream goes on.
                positions.insert(stream.id(), stream.position().clone());
            }
            stays
        });
        self.discover();
    }

    /// Opens a stream for every file that matches and has none.
    fn discover(&mut self) {
        let files = self.discovery.files();
        let bases: LazyCell<BTreeSet<PathBuf>, _> = LazyCell::new(|| {
            files
                .iter()
                .flat_map(|path| generations::bases_of(path))
                .collect()
        });
        for path in &files {
            if self.streams.contains_key(path) {
                continue;
            }
            // A rotated file that matches a glob itself is still the stream it began as.
            if let Some(known) = self.streams.values().find(|stream| stream.is_reading(path)) {
                debug!(stream = %known.id(), "a followed file has another name now");
                continue;
            }
            // Old generations belong to the stream of the file they were, and are read before it.
            if generations::bases_of(path).any(|base| files.contains(&base)) {
                continue;
            }
            let Some(name) = path.to_str().map(str::to_owned) else {
                if self.unnamed.insert(path.clone()) {
                    warn!("a file name is not UTF-8 and is not followed");
                }
                continue;
            };
            let history = bases.contains(path);
            let id = StreamId::derive(self.agent, StreamKind::File, &name);
            let start = StreamPosition::start(self.agent, id, self.epoch);
            let position = self.positions.get(&id).cloned().unwrap_or(start);
            let rewinds = self.rewinds.get(&id).copied().unwrap_or(0);
            self.streams.insert(
                path.clone(),
                FileStream::new(id, name, path.clone(), position, rewinds, history),
            );
        }
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

    fn watch(&mut self, commands: SyncSender<Command>) {
        let pending = self.wake_pending.clone();
        let wake = move |event: notify::Result<notify::Event>| {
            // Reading a file is an event too: only changes count, or we would wake ourselves.
            let changed = event.is_ok_and(|event| {
                matches!(
                    event.kind,
                    EventKind::Modify(_) | EventKind::Create(_) | EventKind::Remove(_)
                )
            });
            if changed {
                // One wake-up in the channel is enough, and leaves it room for commands.
                if !pending.swap(true, Ordering::AcqRel) {
                    let _stopping = commands.try_send(Command::Wake);
                }
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

const COMMANDS_MAX: usize = 1024;
const DISCOVER_INTERVAL: Duration = Duration::from_secs(1);
const GATHER_DELAY: Duration = Duration::from_millis(60);
const POLL_WATCHED: Duration = Duration::from_millis(1000);
const POLL_UNWATCHED: Duration = Duration::from_millis(250);
const WATCHES_MAX: usize = 1024;
