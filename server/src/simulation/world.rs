//! One world: what happens in it is drawn from its seed.

mod acts;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use scrinium_protocol::compress::Compressor;
use scrinium_protocol::identity::{Epoch, StreamId};
use scrinium_segment::fault;

use super::Sabotage;
use super::agent::{Agent, File, line_of};
use super::link::{Direction, Link};
use super::server::Server;
use crate::agents::{Allowance, NewAgent};
use crate::alarms::AlarmKind;
use crate::archive::container::Access;
use crate::catalogue::records::FIRST_TENANT;
use crate::index::reading::Reading;
use crate::package::{self, Wanted};

/// A process died at a fault point.
pub(super) struct Died;

/// Lengths up to which files survive a power cut.
type Synced = Rc<RefCell<BTreeMap<PathBuf, u64>>>;

pub(super) struct World {
    random: Random,
    now: Instant,
    files: Vec<File>,
    agent: Agent,
    server: Server,
    link: Option<Link>,
    dialled_at: Instant,
    /// How often something was altered on the way.
    spoils: u64,
    sabotage: Sabotage,
    /// Fault points that are passed before the process dies at one.
    fuse: Rc<Cell<Option<u64>>>,
    synced: Synced,
    /// Entries that were durable, and the epoch, per stream: neither ever goes back.
    seen: BTreeMap<StreamId, (u64, Epoch)>,
    compressor: Compressor,
    cut_next: Option<u64>,
    /// What happened last, for whoever reads a failure.
    trace: VecDeque<String>,
}

/// SplitMix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub(super) fn size(&mut self, bound: u64) -> usize {
        usize::try_from(self.below(bound)).unwrap_or(0)
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

impl World {
    /// Lives through the world of `seed`.
    pub(super) fn run(seed: u64, worker: u64, sabotage: Sabotage) -> Result<(), String> {
        let world = Self::new(seed, worker, sabotage);
        let mut world = world.map_err(|error| format!("setting up: {error:#}"))?;
        let steps = 60 + world.random.below(120);
        let lived = (0..steps)
            .try_for_each(|_| {
                world.step()?;
                world.check()
            })
            .and_then(|()| world.settle());
        world.end(lived)
    }

    /// A world in which nothing happens but one connection that is cut after `bytes`; returns how many
    /// passed in it.
    pub(super) fn run_cut(bytes: u64, worker: u64) -> Result<u64, String> {
        let world = Self::new(1, worker, Sabotage::Nothing);
        let mut world = world.map_err(|error| format!("setting up: {error:#}"))?;
        world.cut_next = Some(bytes);
        for file in &mut world.files {
            file.lines = (0..3).map(|n| format!("line {n}\n").into_bytes()).collect();
        }
        let lived = world.settle();
        let passed = world.link.as_ref().map_or(0, |link| link.delivered);
        world.end(lived)?;
        Ok(passed)
    }

    fn new(seed: u64, worker: u64, sabotage: Sabotage) -> Result<Self> {
        let root = Path::new("/dev/shm");
        let root = if root.is_dir() {
            root.to_owned()
        } else {
            std::env::temp_dir()
        };
        let dir = root.join(format!(
            "scrinium-simulation-{}-{worker}",
            std::process::id()
        ));
        let _absent = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir)?;
        let fuse = Rc::new(Cell::new(None));
        let synced: Synced = Rc::default();
        listen(&dir, sabotage, fuse.clone(), synced.clone());
        let mut server = Server::new(&dir.join("server"))?;
        {
            let volume = crate::volume::Volume::open(&server.dir)?;
            drop(crate::core::make_catalogue(&volume)?);
        }
        server.start()?;
        let process = server.process.as_ref().context("just started")?;
        let public = server.public();
        let agents = &process.shared.agents;
        let agent = NewAgent {
            name: "web1",
            site: "",
            tenant: FIRST_TENANT,
            by: "",
        };
        let token = agents.make_token(&agent, "192.0.2.1:720", public, Allowance::once(3600))?;
        let agent = Agent::new(&dir.join("agent"), &token)?;
        #[expect(clippy::disallowed_methods, reason = "the epoch of virtual time")]
        let now = Instant::now();
        let world = Self {
            random: Random(seed),
            now,
            files: ["a.log", "b.log"]
                .map(|name| File {
                    name: name.to_owned(),
                    lines: Vec::new(),
                })
                .into(),
            agent,
            server,
            link: None,
            dialled_at: now,
            spoils: 0,
            sabotage,
            fuse,
            synced,
            seen: BTreeMap::new(),
            compressor: Compressor::new(1),
            cut_next: None,
            trace: VecDeque::new(),
        };
        world.note_synced();
        Ok(world)
    }

    fn end(self, lived: Result<()>) -> Result<(), String> {
        fault::listen(None);
        let Err(error) = lived else {
            return Ok(());
        };
        let trace: Vec<String> = self.trace.into_iter().collect();
        Err(format!("{error:#}; before: {}", trace.join(", ")))
    }

    fn tell(&mut self, what: impl Into<String>) {
        if self.trace.len() == TRACE_MAX {
            self.trace.pop_front();
        }
        self.trace.push_back(what.into());
    }

    /// What holds after every step.
    fn check(&mut self) -> Result<()> {
        let Some(server) = &self.server.process else {
            return Ok(());
        };
        let streams = server.shared.archive.streams();
        let mut durable = 0;
        for (id, stream) in &streams {
            let file = self.files.iter().find(|file| *file.name == *stream.name);
            let written = file.map_or(0, |file| file.lines.len() as u64);
            let bookmark = line_of(&stream.position.bookmark) as u64;
            ensure!(
                stream.entries == bookmark,
                "{}: {} entries are archived, and its bookmark is {bookmark}",
                stream.name,
                stream.entries
            );
            ensure!(
                stream.entries <= written,
                "{}: more is archived than was written",
                stream.name
            );
            durable += stream.entries;
            let seen = self.seen.entry(*id).or_insert((0, stream.position.epoch));
            ensure!(
                stream.entries >= seen.0,
                "{}: {} entries were durable, and {} are",
                stream.name,
                seen.0,
                stream.entries
            );
            seen.0 = stream.entries;
            if stream.entries > 0 {
                if seen.1 == Epoch::default() {
                    seen.1 = stream.position.epoch;
                }
                ensure!(
                    seen.1 == stream.position.epoch,
                    "{}: an epoch began for no reason",
                    stream.name
                );
            }
        }
        // A handshake that was altered on the way looks like a wrong credential, and is said to be one.
        let unexplained = server.alarms.iter().find(|alarm| {
            let of_spoils = [AlarmKind::WrongCredential, AlarmKind::Interference];
            self.spoils == 0 || !of_spoils.contains(&alarm.kind)
        });
        ensure!(
            unexplained.is_none(),
            "an alarm without reason: {unexplained:?}"
        );
        let Some(agent) = &self.agent.process else {
            return Ok(());
        };
        let state = agent.shipper.state();
        ensure!(
            agent.shipper.acked_entries <= durable,
            "{} entries are acked, {durable} durable",
            agent.shipper.acked_entries
        );
        for (stream, receipt) in &state.receipts {
            let stands = streams.get(stream).map(|stream| &stream.position);
            ensure!(
                stands.is_some_and(|stands| stands.next >= receipt.next),
                "acked up to {}, durable up to {:?}",
                receipt.next.0,
                stands.map(|stands| stands.next)
            );
        }
        if state.token.is_none() {
            let record = server.shared.agents.get(state.agent);
            let record = record.context("the server does not know the agent")?;
            let next = record.credential_next.as_ref();
            ensure!(
                record.credential.0 == state.credential
                    || next.is_some_and(|next| next.0 == state.credential),
                "the server knows no credential that the agent holds: it is locked out"
            );
            ensure!(record.quarantine.is_none(), "a quarantine without reason");
        }
        Ok(())
    }

    /// Nobody dies any more and the link is good: everything written is archived, and nothing else.
    fn settle(&mut self) -> Result<()> {
        self.tell("settling");
        self.fuse.set(None);
        for _ in 0..SETTLE_STEPS {
            self.start_what_is_down()?;
            if let Some(server) = &mut self.server.process {
                server.notice();
            }
            self.dial();
            for n in 0..self.files.len() {
                self.produce_from(n, 100);
            }
            self.send();
            while self.deliver_up_to(Direction::Up, 1 << 20) {}
            self.commit();
            self.answer();
            while self.deliver_up_to(Direction::Down, 1 << 20) {}
            self.now += Duration::from_millis(250);
            self.handle_timeouts();
            self.check()?;
            if self.is_settled() {
                return self.compare();
            }
        }
        Err(anyhow!("it does not converge"))
    }

    fn is_settled(&self) -> bool {
        let (Some(agent), Some(server)) = (&self.agent.process, &self.server.process) else {
            return false;
        };
        let streams = server.shared.archive.streams();
        let archived = |file: &File| {
            let stream = streams.values().find(|stream| *stream.name == *file.name);
            stream.map_or(0, |stream| stream.entries) == file.lines.len() as u64
        };
        agent.shipper.is_ready()
            && agent.shipper.fill().entries == 0
            && self.files.iter().all(archived)
    }

    /// The archive holds the very bytes of the files.
    fn compare(&self) -> Result<()> {
        let server = self.server.process.as_ref().context("it runs")?;
        for stream in server.shared.archive.streams().values() {
            let file = self.files.iter().find(|file| *file.name == *stream.name);
            let file = file.context("a stream of no file")?;
            let mut exported = Vec::new();
            package::raw(
                &server.shared.archive,
                &BTreeMap::new(),
                Wanted::whole(stream.id),
                &Access::operations(),
                &Reading::alone(),
                &mut exported,
            )?;
            ensure!(
                exported == file.lines.concat(),
                "{}: other bytes are archived",
                file.name
            );
        }
        Ok(())
    }
}

/// Dies when the fuse has burnt down, and notes what is synced.
fn listen(dir: &Path, sabotage: Sabotage, fuse: Rc<Cell<Option<u64>>>, synced: Synced) {
    let (log, spool) = (dir.join("server/log"), dir.join("agent/spool"));
    fault::listen(Some(Box::new(move |name| {
        if name == "server: synced" && sabotage != Sabotage::AckBeforeCommit {
            note_synced(&log, &synced);
        }
        if name == "agent: spilled" {
            note_synced(&spool, &synced);
        }
        match fuse.get() {
            Some(0) => resume_unwind(Box::new(Died)),
            Some(left) => fuse.set(Some(left - 1)),
            None => {}
        }
    })));
}

fn note_synced(dir: &Path, synced: &Synced) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if let Ok(metadata) = entry.metadata() {
            synced.borrow_mut().insert(entry.path(), metadata.len());
        }
    }
}

const TRACE_MAX: usize = 60;
const SETTLE_STEPS: usize = 400;
