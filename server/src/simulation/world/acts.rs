//! What happens in a world: its steps, and the deaths in them.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::super::Sabotage;
use super::super::link::{Direction, Link};
use super::{Died, World, note_synced};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Side {
    Agent,
    Server,
}

impl World {
    /// One thing happens.
    pub(super) fn step(&mut self) -> Result<()> {
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

    pub(super) fn start_what_is_down(&mut self) -> Result<()> {
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

    pub(super) fn produce_from(&mut self, n: usize, max: usize) {
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

    pub(super) fn send(&mut self) {
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

    pub(super) fn deliver_up_to(&mut self, direction: Direction, max: usize) -> bool {
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

    pub(super) fn commit(&mut self) {
        self.on_server(|world| {
            if let Some(server) = &mut world.server.process {
                server.commit();
            }
            None
        });
    }

    pub(super) fn answer(&mut self) {
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

    pub(super) fn handle_timeouts(&mut self) {
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

    pub(super) fn dial(&mut self) {
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

    pub(super) fn note_synced(&self) {
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

/// Both programs end a handshake that takes longer.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
