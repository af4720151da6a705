//! One world: what happens in it is drawn from its seed.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
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
use crate::alarms::AlarmKind;
use crate::archive::export;

/// A process died at a fault point.
struct Died;

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
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn size(&mut self, bound: u64) -> usize {
        usize::try_from(self.below(bound)).unwrap_or(0)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Side {
    Agent,
    Server,
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
            drop(crate::core::open_catalogue(&volume)?);
        }
        server.start()?;
        let process = server.process.as_ref().context("just started")?;
        let public = server.public();
        let agents = &process.shared.agents;
        let token = agents.make_token("web1", "", "192.0.2.1:720", public, 3600)?;
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

    /// One thing happens.
    fn step(&mut self) -> Result<()> {
        self.start_what_is_down()?;
        match self.random.below(100) {
            0..15 => self.write(),
            15..30 => self.produce(),
            30..42 => self.send(),
            42..54 => self.deliver(Direction::Up),
            54..66 => self.deliver(Direction::Down),
            66..74 => self.commit(),
            74..80 => self.answer(),
            80..85 => self.pass_time(),
            85..89 => self.dial(),
            89..91 => {
                self.tell("cut");
                self.cut("the link was cut");
            }
            91..92 => self.spoil(),
            92..93 => {
                self.tell("agent dies");
                self.die(Side::Agent)?;
            }
            93..94 => {
                self.tell("server dies");
                self.die(Side::Server)?;
            }
            94..95 => self.stop_agent(),
            95..97 => {
                let passes = self.random.below(5);
                self.tell(format!("fuse {passes}"));
                self.fuse.set(Some(passes));
            }
            _ => {
                if let Some(server) = &mut self.server.process {
                    server.notice();
                }
            }
        }
        Ok(())
    }

    /// What holds after every step.
    fn check(&mut self) -> Result<()> {
        let Some(server) = &self.server.process else {
            return Ok(());
        };
        let streams = server.shared.archive.streams();
        let mut durable = 0;
        for (id, stream) in &streams {
            let file = self.files.iter().find(|file| file.name == stream.name);
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
        let unexplained = server
            .alarms
            .iter()
            .find(|alarm| self.spoils == 0 || alarm.kind != AlarmKind::WrongCredential);
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
            let stream = streams.values().find(|stream| stream.name == file.name);
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
            let file = self.files.iter().find(|file| file.name == stream.name);
            let file = file.context("a stream of no file")?;
            let mut exported = Vec::new();
            export::raw(&server.shared.archive, stream.id, &mut exported)?;
            ensure!(
                exported == file.lines.concat(),
                "{}: other bytes are archived",
                file.name
            );
        }
        Ok(())
    }

    fn start_what_is_down(&mut self) -> Result<()> {
        if self.server.process.is_none() {
            self.server.start()?;
            self.note_synced();
        }
        if self.agent.process.is_none() {
            self.agent.start()?;
        }
        Ok(())
    }

    fn write(&mut self) {
        let n = self.random.size(2);
        for _ in 0..=self.random.below(5) {
            let len = 1 + self.random.size(300);
            let letters = (0..len).map(|_| b'a' + u8::try_from(self.random.below(26)).unwrap_or(0));
            let line = letters.chain([b'\n']).collect();
            if let Some(file) = self.files.get_mut(n) {
                file.lines.push(line);
            }
        }
    }

    fn produce(&mut self) {
        let n = self.random.size(2);
        let max = 1 + self.random.size(8);
        self.produce_from(n, max);
    }

    fn produce_from(&mut self, n: usize, max: usize) {
        let deaf = self.sabotage == Sabotage::BookmarkBeforeAck;
        self.on_agent(|world| {
            let (Some(agent), Some(file)) = (&mut world.agent.process, world.files.get(n)) else {
                return Ok(());
            };
            agent.obey(deaf);
            agent.produce(file, max, &mut world.compressor);
            Ok(())
        });
    }

    fn send(&mut self) {
        let now = self.now;
        self.on_agent(|world| {
            let Some(agent) = &mut world.agent.process else {
                return Ok(());
            };
            while agent.is_in_session() && agent.shipper.send_next(now)? {}
            Ok(())
        });
        self.flush_agent();
    }

    fn flush_agent(&mut self) {
        if let (Some(agent), Some(link)) = (&mut self.agent.process, &mut self.link)
            && agent.is_in_session()
        {
            while let Some(bytes) = agent.shipper.poll_transmit() {
                link.push(Direction::Up, &bytes);
            }
        }
    }

    fn deliver(&mut self, direction: Direction) {
        let max = 1 + self.random.size(4000);
        let _delivered = self.deliver_up_to(direction, max);
    }

    fn deliver_up_to(&mut self, direction: Direction, max: usize) -> bool {
        let Some(link) = &mut self.link else {
            return false;
        };
        let bytes = link.deliver(direction, max);
        let is_used_up = link.is_used_up();
        let has_delivered = !bytes.is_empty();
        if has_delivered {
            match direction {
                Direction::Up => self.deliver_to_server(&bytes),
                Direction::Down => self.deliver_to_agent(&bytes),
            }
        }
        if is_used_up {
            self.cut("cut where the test said");
        }
        has_delivered
    }

    fn deliver_to_agent(&mut self, bytes: &[u8]) {
        let now = self.now;
        let deaf = self.sabotage == Sabotage::BookmarkBeforeAck;
        self.on_agent(|world| {
            let Some(agent) = &mut world.agent.process else {
                return Ok(());
            };
            let out = agent.handle_bytes(bytes, now)?;
            if let Some(link) = &mut world.link {
                link.push(Direction::Up, &out);
            }
            agent.obey(deaf);
            Ok(())
        });
        self.flush_agent();
        if self.sabotage == Sabotage::CredentialTakenEarly {
            self.take_credential_early();
        }
    }

    fn deliver_to_server(&mut self, bytes: &[u8]) {
        let now = self.now;
        self.on_server(|world| {
            let server = world.server.process.as_mut();
            server.map(|server| server.handle_bytes(bytes, now))
        });
        if self.sabotage == Sabotage::CredentialDroppedEarly {
            self.drop_credential_early();
        }
    }

    fn commit(&mut self) {
        self.on_server(|world| {
            if let Some(server) = &mut world.server.process {
                server.commit();
            }
            None
        });
    }

    fn answer(&mut self) {
        let now = self.now;
        self.on_server(|world| Some(world.server.process.as_mut()?.answer(now)));
    }

    fn pass_time(&mut self) {
        // Now and then so long that keys are renewed, or that everybody thinks the other dead.
        let seconds = if self.random.one_in(4) { 150 } else { 5 };
        self.now += Duration::from_millis(self.random.below(seconds * 1000));
        self.tell("time");
        self.handle_timeouts();
    }

    fn handle_timeouts(&mut self) {
        let now = self.now;
        let agent = self.agent.process.as_ref();
        if agent.is_some_and(|agent| !agent.is_in_session())
            && now >= self.dialled_at + HANDSHAKE_MAX
        {
            self.cut("a handshake took too long");
        }
        self.on_agent(|world| {
            if let Some(agent) = &mut world.agent.process
                && agent.is_in_session()
            {
                agent.shipper.handle_timeout(now, 1)?;
            }
            Ok(())
        });
        self.flush_agent();
        self.on_server(|world| Some(world.server.process.as_mut()?.handle_timeout(now)));
    }

    fn dial(&mut self) {
        if self.link.is_some() {
            return;
        }
        self.tell("dial");
        self.dialled_at = self.now;
        self.on_agent(|world| {
            let (Some(agent), Some(server)) = (&mut world.agent.process, &mut world.server.process)
            else {
                return Ok(());
            };
            let bytes = agent.dial()?;
            server.accept();
            let mut link = Link::new(world.cut_next.take());
            link.push(Direction::Up, &bytes);
            world.link = Some(link);
            Ok(())
        });
    }

    /// The connection ends; the server may notice later.
    fn cut(&mut self, why: &str) {
        if self.link.take().is_none() {
            return;
        }
        let error = anyhow!(why.to_owned());
        if let Some(agent) = &mut self.agent.process {
            agent.hang_up(&error);
        }
        let noticed = self.random.one_in(2);
        if let Some(server) = &mut self.server.process {
            server.hang_up(noticed);
        }
    }

    fn spoil(&mut self) {
        let (how, at) = (self.random.below(32), self.random.below(1 << 20));
        let direction = if self.random.one_in(2) {
            Direction::Up
        } else {
            Direction::Down
        };
        self.tell(format!("spoil {direction:?} {how}"));
        if let Some(link) = self
            .link
            .as_mut()
            .filter(|link| link.waiting(direction) > 0)
        {
            link.spoil(direction, how, at);
            self.spoils += 1;
        }
    }

    /// A clean stop, and the start after it.
    fn stop_agent(&mut self) {
        self.tell("agent stops");
        self.on_agent(|world| {
            if let Some(agent) = &mut world.agent.process
                && agent.shipper.has_sources()
            {
                agent.shipper.spill()?;
            }
            Ok(())
        });
        self.cut("the agent stopped");
        self.agent.process = None;
    }

    /// Runs what the agent's process does: it may die in it, and an error ends the connection.
    fn on_agent(&mut self, act: impl FnOnce(&mut Self) -> Result<()>) {
        match catch_unwind(AssertUnwindSafe(|| act(self))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.tell(format!("agent: {error:#}"));
                if self.link.take().is_some() {
                    let noticed = self.random.one_in(2);
                    if let Some(server) = &mut self.server.process {
                        server.hang_up(noticed);
                    }
                }
                if let Some(agent) = &mut self.agent.process {
                    agent.hang_up(&error);
                }
            }
            Err(panic) => self.died(Side::Agent, panic),
        }
    }

    /// The same for the server, which may have something to say.
    fn on_server(
        &mut self,
        act: impl FnOnce(&mut Self) -> Option<(Vec<u8>, Option<anyhow::Error>)>,
    ) {
        let (out, ended) = match catch_unwind(AssertUnwindSafe(|| act(self))) {
            Ok(said) => said.unwrap_or_default(),
            Err(panic) => {
                self.died(Side::Server, panic);
                return;
            }
        };
        if let Some(link) = &mut self.link {
            link.push(Direction::Down, &out);
        }
        if let Some(error) = ended {
            self.tell(format!("server: {error:#}"));
            // What it said last may still arrive.
            if self.random.one_in(2) {
                while self.deliver_up_to(Direction::Down, 1 << 20) {}
            }
            self.cut("the server ended the connection");
        }
    }

    fn died(&mut self, side: Side, panic: Box<dyn core::any::Any + Send>) {
        if !panic.is::<Died>() {
            resume_unwind(panic);
        }
        self.tell(format!("{side:?} died at a point"));
        if let Err(error) = self.die(side) {
            self.tell(format!("{error:#}"));
        }
    }

    /// A process is no more. What it had not synced is there, torn, or not.
    fn die(&mut self, side: Side) -> Result<()> {
        self.fuse.set(None);
        let read = self.agent.process.as_ref().map(|agent| agent.positions());
        let dir = match side {
            Side::Agent => {
                self.agent.process = None;
                self.agent.dir.join("spool")
            }
            Side::Server => {
                self.server.process = None;
                self.server.dir.join("log")
            }
        };
        self.cut("a process died");
        let synced = self.synced.borrow().clone();
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (path, len) = (entry.path(), entry.metadata()?.len());
            let safe = synced.get(&path).copied().unwrap_or(len);
            if len > safe {
                let kept = safe + self.random.below(len - safe + 1);
                std::fs::File::options()
                    .write(true)
                    .open(&path)?
                    .set_len(kept)?;
            }
        }
        if side == Side::Agent {
            let mut identity = self.agent.open_state()?;
            match self.sabotage {
                Sabotage::BehindNotWritten => identity.state.behind = false,
                Sabotage::BookmarkBeforeAck => {
                    identity.state.behind = false;
                    identity.state.positions = read.unwrap_or_default();
                }
                Sabotage::Nothing
                | Sabotage::AckBeforeCommit
                | Sabotage::CredentialDroppedEarly
                | Sabotage::CredentialTakenEarly => return Ok(()),
            }
            identity.save()?;
        }
        Ok(())
    }

    fn note_synced(&self) {
        note_synced(&self.server.dir.join("log"), &self.synced);
    }

    /// [`Sabotage::CredentialDroppedEarly`].
    fn drop_credential_early(&mut self) {
        let Some(server) = &mut self.server.process else {
            return;
        };
        for (mut agent, _) in server.shared.agents.list() {
            if let Some(next) = agent.credential_next.clone()
                && agent.credential != next
            {
                agent.credential = next;
                let written = server.catalogue.put(&agent);
                if written.is_ok() && self.random.one_in(3) {
                    self.tell("dropped a credential early");
                    // A server that did so in earnest would also have done it in memory.
                    drop(self.die(Side::Server));
                    return;
                }
            }
        }
    }

    /// [`Sabotage::CredentialTakenEarly`].
    fn take_credential_early(&mut self) {
        let Some(agent) = &self.agent.process else {
            return;
        };
        if !agent.is_in_session() || agent.shipper.is_ready() || self.random.one_in(2) {
            return;
        }
        let Some(next) = agent.shipper.next_credential().cloned() else {
            return;
        };
        self.tell("took a credential early");
        drop(self.die(Side::Agent));
        if let Ok(mut identity) = self.agent.open_state() {
            identity.state.credential = next;
            drop(identity.save());
        }
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

/// Both programs end a handshake that takes longer.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
const TRACE_MAX: usize = 60;
const SETTLE_STEPS: usize = 400;
