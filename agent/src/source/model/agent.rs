//! The product's own streams over the simulated file system, and what arrives of them at a server.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use scrinium_protocol::batch::StreamPosition;
use scrinium_protocol::compress::{AGENT_LEVEL, Compressor};
use scrinium_protocol::identity::{AgentId, Epoch, StreamId};
use tokio::sync::mpsc;

use super::disk::{Node, SimDisk};
use crate::config::Deny;
use crate::shipper::Produced;
use crate::source::asked::{Asked, Question};
use crate::source::claims::{self, Collected};
use crate::source::discover::stream_of;
use crate::source::disk::Disk as _;
use crate::source::file::{FileStream, Pass, Place, Told};
use crate::source::output::Positions;
use crate::source::pace::Pace;
use crate::source::{Context, generations};

const AGENT: AgentId = AgentId([1; 16]);
const EPOCH: Epoch = Epoch([2; 16]);
/// Batches between the sources and the spool.
const ROOM: usize = 6;

/// What arrived of a stream.
#[derive(Debug, Default)]
pub(super) struct Archived {
    /// Everything but gap entries, one after the other.
    pub(super) bytes: Vec<u8>,
    pub(super) gaps: Vec<String>,
}

pub(super) struct Agent {
    disk: SimDisk,
    /// Which paths are collected.
    wanted: fn(&Path) -> bool,
    running: Option<Running>,
    positions: BTreeMap<StreamId, StreamPosition>,
    pub(super) archive: BTreeMap<String, Archived>,
    /// When it was started first, since 1970.
    pub(super) began: Option<Duration>,
    runtime: tokio::runtime::Handle,
}

struct Running {
    streams: BTreeMap<PathBuf, FileStream>,
    positions: Positions,
    context: Context,
    produced: mpsc::Receiver<Produced>,
    /// Paths without files when they were looked for last, and their old generations.
    left: BTreeMap<PathBuf, BTreeSet<u64>>,
    began: SystemTime,
    wanted: fn(&Path) -> bool,
}

impl Agent {
    pub(super) fn new(
        disk: SimDisk,
        wanted: fn(&Path) -> bool,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        Self {
            disk,
            wanted,
            running: None,
            positions: BTreeMap::new(),
            archive: BTreeMap::new(),
            began: None,
            runtime,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub(super) fn start(&mut self) {
        let (out, produced) = mpsc::channel(ROOM);
        let clock = self.disk.lock().clock;
        let began = *self.began.get_or_insert(clock);
        let positions = self.positions.clone();
        self.running = Some(Running {
            streams: BTreeMap::new(),
            positions: Positions::new(AGENT, EPOCH, positions, BTreeSet::new()),
            context: Context {
                signing: ed25519_dalek::SigningKey::from_bytes(&[1; 32]),
                compressor: Compressor::new(AGENT_LEVEL),
                out,
                runtime: self.runtime.clone(),
                stopped: false,
                parks: false,
                deny: Deny::default(),
                senders: crate::source::feed::senders(),
                unpacking: Pace::new(u64::MAX / 2),
                comparing: Pace::new(u64::MAX / 2),
                patience: Duration::ZERO,
                vanished: crate::source::vanished::Vanished::default(),
                beat: crate::source::beat::Beat::default(),
            },
            produced,
            left: BTreeMap::new(),
            began: SystemTime::UNIX_EPOCH + began.min(clock),
            wanted: self.wanted,
        });
    }

    /// The system tells how many files came to a path.
    pub(super) fn arrive(
        &mut self,
        path: &str,
        (times, is_made): (Option<u32>, bool),
        now: Instant,
    ) {
        let streams = self.running.iter_mut().map(|running| &mut running.streams);
        for stream in streams.filter_map(|streams| streams.get_mut(Path::new(path))) {
            stream.count_arrivals(Told {
                times,
                is_made,
                before: now,
                now,
            });
        }
    }

    /// Streams of which the files cannot be read.
    pub(super) fn troubles(&self) -> usize {
        let streams = self
            .running
            .iter()
            .flat_map(|running| running.streams.values());
        streams.filter(|stream| stream.trouble().is_some()).count()
    }

    /// Ends; `delivered` of the batches that wait still arrive, the others never existed.
    pub(super) fn stop(&mut self, delivered: usize) {
        self.deliver(delivered);
        self.running = None;
    }

    /// Takes batches that were made as a server does.
    pub(super) fn deliver(&mut self, count: usize) {
        let Some(running) = &mut self.running else {
            return;
        };
        for _ in 0..count {
            let Ok(Produced { name, batch, .. }) = running.produced.try_recv() else {
                return;
            };
            let archived = self.archive.entry(name.name.clone()).or_default();
            for (meta, bytes) in batch.open().unwrap().iter() {
                match meta.flags.is_gap() {
                    true => archived
                        .gaps
                        .push(String::from_utf8_lossy(bytes).into_owned()),
                    false => archived.bytes.extend_from_slice(bytes),
                }
            }
            let after = batch.header.position_after();
            self.positions.insert(batch.header.stream, after);
        }
    }

    /// Files that are not there, of which there are other old generations than before.
    fn left(&mut self) -> Vec<PathBuf> {
        let bases: BTreeSet<PathBuf> = {
            let inner = self.disk.lock();
            let files = inner
                .names
                .iter()
                .filter(|(_, node)| matches!(node, Node::File(_)));
            let bases = files.flat_map(|(path, _)| generations::bases_of(path));
            bases
                .filter(|base| (self.wanted)(base) && !inner.names.contains_key(base))
                .collect()
        };
        let Some(running) = &mut self.running else {
            return Vec::new();
        };
        let bases = bases
            .into_iter()
            .filter(|base| !running.streams.contains_key(base));
        let left = bases.map(|base| {
            let inner = self.disk.lock();
            let files = inner.names.iter().filter_map(|(path, node)| match node {
                Node::File(inode) if generations::is_generation_of(&base, path) => Some(*inode),
                Node::File(_) | Node::Link(..) | Node::Pipe => None,
            });
            let generations = files.collect();
            drop(inner);
            (base, generations)
        });
        let left: BTreeMap<PathBuf, BTreeSet<u64>> = left.collect();
        let before = core::mem::replace(&mut running.left, left.clone());
        let new = left
            .into_iter()
            .filter(|(base, now)| before.get(base) != Some(now));
        new.map(|(base, _)| base).collect()
    }

    /// Looks for files as the sources do, and lets every stream read on; `false` when there was no room for all of it.
    pub(super) fn pass(&mut self, now: Instant, parks: bool) -> bool {
        let paths: Vec<PathBuf> = {
            let inner = self.disk.lock();
            let names = inner.names.iter();
            let names = names.filter(|(path, node)| (self.wanted)(path) && **node != Node::Pipe);
            names.map(|(path, _)| path.clone()).collect()
        };
        let left = self.left();
        let Some(running) = &mut self.running else {
            return true;
        };
        let mut had_room = true;
        for path in left {
            let mut closed = Collected::default();
            closed.note(running.positions.bookmarks());
            let collected = Arc::new(closed.with(running.streams.values()));
            running.open(&self.disk, path, (false, &collected), now);
        }
        running.context.parks = parks;
        running.discover(&self.disk, paths, self.wanted, now);
        for _ in 0..200 {
            running.answer(now);
            let mut reached = Pass::Idle;
            for stream in running.streams.values_mut() {
                reached = reached.max(stream.pass(&mut running.context, now));
            }
            had_room = reached != Pass::Blocked;
            if matches!(reached, Pass::Idle | Pass::Blocked) {
                break;
            }
        }
        let positions = &mut running.positions;
        running.streams.retain(|_, stream| {
            let is_over = stream.is_over(now);
            if is_over {
                stream.close(positions);
            }
            !is_over
        });
        had_room
    }
}

impl Running {
    /// As `Sources::answer`.
    fn answer(&mut self, now: Instant) {
        let asking = self.streams.values();
        let asking = asking.flat_map(|own| own.asks(false, now));
        let asking: Vec<Question> = asking.collect();
        let mut closed = Collected::default();
        closed.note(self.positions.bookmarks());
        let streams = self.streams.iter();
        let mut asked = Asked::of(asking, streams.map(|(path, own)| (&**path, own)));
        for n in 0..asked.len() {
            let at = |path: &Path| self.streams.get(path);
            let Some((question, answer)) = asked.answer(n, at, &closed) else {
                continue;
            };
            if let Some(own) = self.streams.get_mut(&question.by) {
                own.answer((&question.path, question.file), answer, now);
                if !own.waits() {
                    own.pass(&mut self.context, now);
                }
            }
            asked.note(n);
        }
    }

    /// As `Sources::discover`, without what is for many files.
    fn discover(
        &mut self,
        disk: &SimDisk,
        paths: Vec<PathBuf>,
        wanted: fn(&Path) -> bool,
        now: Instant,
    ) {
        let files: BTreeSet<PathBuf> = paths.iter().cloned().collect();
        let bases: BTreeSet<PathBuf> = files
            .iter()
            .flat_map(|path| generations::bases_of(path))
            .collect();
        let mut new: Vec<(bool, PathBuf)> = Vec::new();
        for path in paths {
            if !self.streams.contains_key(&path) {
                let id = self.positions.id(&stream_of(&path));
                new.push((!self.positions.knows(id), path));
            }
        }
        new.sort();
        let mut closed = Collected::default();
        closed.note(self.positions.bookmarks());
        let collected = Arc::new(closed.with(self.streams.values()));
        for (_, mut path) in new {
            let Ok(Some(seen)) = disk.look(&path) else {
                continue;
            };
            // Discovery does not follow a link that leads where its owner may not.
            #[cfg(unix)]
            if crate::source::trust::leads_to(disk, &path, Path::new("/log")).is_err() {
                continue;
            }
            let knows = |base: &Path| {
                wanted(base) && self.positions.knows(self.positions.id(&stream_of(base)))
            };
            let has_begun =
                |own: &Path| knows(own) || (wanted(own) && self.streams.contains_key(own));
            if claims::own_path(disk, &path, has_begun).is_some() {
                continue;
            }
            if let Some(base) = claims::base_of(&path, |base| files.contains(base), knows) {
                if files.contains(&base) || self.streams.contains_key(&base) {
                    continue;
                }
                path = base;
            } else if self
                .streams
                .values()
                .any(|stream| stream.collects(seen, &path))
            {
                continue;
            }
            let mut left = self.streams.iter();
            let left = left.find(|(_, stream)| stream.has_left(&path));
            if let Some((link, is_sealed)) =
                left.map(|(link, left)| (link.clone(), left.is_sealed()))
            {
                if !is_sealed {
                    continue;
                }
                let mut stream = self.streams.remove(&link).unwrap();
                stream.close(&mut self.positions);
            }
            let history = bases.contains(&path);
            self.open(disk, path, (history, &collected), now);
        }
    }

    fn open(
        &mut self,
        disk: &SimDisk,
        path: PathBuf,
        (history, collected): (bool, &Arc<Collected>),
        now: Instant,
    ) {
        let place = Place {
            path: path.clone(),
            root: "/log".into(),
            deny: Deny::default(),
            named: Arc::new(self.wanted),
            disk: Arc::new(disk.clone()),
        };
        let output = self.positions.open(stream_of(&path));
        let mut stream = FileStream::new(output, place, None, history, self.began, now);
        stream.inherit(collected);
        self.streams.insert(path, stream);
    }
}
