//! The agent at work: takes batches from the sources, keeps them in the spool, ships them.
//!
//! ```text
//! sources ─▶ spool ─▶ AgentSession ─▶ socket         receipts ─▶ spool drops
//!    ▲                    │
//!    └──── rewind ◀───────┘ the server states where each stream stands
//! ```
//!
//! One task owns spool, state and session. Sources are started when it is known where they go on: at
//! once when the last stop left nothing unsaid (`behind` is false), else when the server has spoken.
//!
//! Invariants:
//! 1. `behind` is durable before a batch that lies only in RAM is sent.
//! 2. It is cleared only with RAM empty: by a spill, after which the disk knows everything sent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ed25519_dalek::SigningKey;
use scrinium_protocol::batch::StreamPosition;
use scrinium_protocol::identity::{StreamId, StreamKind};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::Established;
use scrinium_protocol::sl::message::KeepAlive;
use scrinium_protocol::sl::session::{AgentEvent, AgentSession};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use crate::clock;
use crate::config::Config;
use crate::identity::Identity;
use crate::link::{self, Dial, Refused};
use crate::source::{self, Command, Produced};
use crate::spool::{Fill, Spool};

/// What `status` shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status {
    pub(crate) connected: bool,
    pub(crate) fill: Fill,
    pub(crate) problem: Option<String>,
    pub(crate) acked_entries: u64,
}

/// Runs until `stop` says so.
pub(crate) async fn run(
    config: Config,
    dir: &Path,
    key: &Secret<32>,
    identity: Identity,
    mut stop: watch::Receiver<bool>,
    status: watch::Sender<Status>,
) -> Result<()> {
    let spool = Spool::open(
        &dir.join("spool"),
        key,
        config.ram_bytes_max,
        config.disk_bytes_max,
    )?;
    let (out, produced) = mpsc::channel(PRODUCED_MAX);
    let mut uplink = Uplink {
        config,
        identity,
        spool,
        sources: None,
        out: Some(out),
        positions: BTreeMap::new(),
        rewinds: BTreeMap::new(),
        link: Link::Down {
            until: clock::now(),
        },
        backoff: BACKOFF_MIN,
        status: Status::default(),
    };
    uplink
        .positions
        .clone_from(&uplink.identity.state.positions);
    uplink.positions.extend(uplink.spool.ends()?);
    if !uplink.identity.state.behind && uplink.identity.state.token.is_none() {
        uplink.start_sources()?;
    }
    let mut produced = produced;
    while !*stop.borrow() {
        uplink.status.fill = uplink.spool.fill();
        uplink.status.connected = matches!(&uplink.link, Link::Up(up) if up.ready);
        status.send_replace(uplink.status.clone());
        uplink.step(&mut produced, &mut stop).await?;
    }
    uplink.finish(produced).await
}

struct Uplink {
    config: Config,
    identity: Identity,
    spool: Spool,
    sources: Option<(SyncSender<Command>, std::thread::JoinHandle<()>)>,
    /// The sources' end of the channel, until they are started.
    out: Option<mpsc::Sender<Produced>>,
    /// Where each stream stands after its last batch produced.
    positions: BTreeMap<StreamId, StreamPosition>,
    rewinds: BTreeMap<StreamId, u64>,
    link: Link,
    backoff: Duration,
    status: Status,
}

enum Link {
    Down { until: Instant },
    Dialling(JoinHandle<Result<(TcpStream, Established)>>),
    Up(Box<Up>),
}

struct Up {
    session: AgentSession,
    next_credential: Secret<32>,
    reader: OwnedReadHalf,
    writes: mpsc::Sender<Vec<u8>>,
    writer: JoinHandle<()>,
    buffer: Vec<u8>,
    /// Bytes before the first record, in case they are a refusal.
    first: Option<Vec<u8>>,
    stated: BTreeMap<StreamId, StreamPosition>,
    opened: BTreeSet<StreamId>,
    ready: bool,
}

impl Uplink {
    /// Waits for the next thing to happen and acts on it.
    async fn step(
        &mut self,
        produced: &mut mpsc::Receiver<Produced>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<()> {
        let takes = self.makes_room();
        if let Err(error) = self.send_waiting() {
            self.lose_link(&error);
        }
        match &mut self.link {
            Link::Down { until } => {
                let until = *until;
                tokio::select! {
                    item = produced.recv(), if takes => self.take(item),
                    () = tokio::time::sleep_until(until.into()) => self.dial(),
                    _ = stop.changed() => {}
                }
            }
            Link::Dialling(dialling) => {
                tokio::select! {
                    item = produced.recv(), if takes => self.take(item),
                    dialled = dialling => {
                        let dialled = dialled.context("dialling").and_then(|dialled| dialled);
                        match dialled {
                            Ok((stream, established)) => self.go_up(stream, established),
                            Err(error) => self.lose_link(&error),
                        }
                    }
                    _ = stop.changed() => {}
                }
            }
            Link::Up(up) => {
                let deadline = up.session.poll_timeout();
                let full = up.writes.capacity() == 0;
                let writes = up.writes.clone();
                let happened = tokio::select! {
                    biased;
                    read = up.reader.read(&mut up.buffer) => Happened::Read(read),
                    room = writes.reserve(), if full => {
                        drop(room);
                        Happened::Room
                    }
                    item = produced.recv(), if takes => Happened::Produced(item.map(Box::new)),
                    () = tokio::time::sleep_until(deadline.into()) => Happened::Deadline,
                    _ = stop.changed() => Happened::Room,
                };
                let outcome = match happened {
                    Happened::Read(Ok(0)) => {
                        Err(anyhow::anyhow!("the server closed the connection"))
                    }
                    Happened::Read(Ok(n)) => self.handle_read(n),
                    Happened::Read(Err(error)) => Err(error.into()),
                    Happened::Produced(item) => {
                        self.take(item.map(|item| *item));
                        Ok(())
                    }
                    Happened::Deadline => self.handle_deadline(),
                    Happened::Room => Ok(()),
                };
                if let Err(error) = outcome {
                    self.lose_link(&error);
                }
            }
        }
        Ok(())
    }

    /// Spills when the link is down and RAM is full. Returns whether another batch can be taken.
    fn makes_room(&mut self) -> bool {
        if self.spool.has_ram() {
            return true;
        }
        let is_up = matches!(&self.link, Link::Up(up) if up.ready);
        // While the link is up, files wait: they are their own buffer, and the disk is spared.
        if is_up || !self.spool.has_disk() {
            return false;
        }
        match self.spill() {
            Ok(()) => true,
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "the spool cannot be written; sources wait"
                );
                self.status.problem = Some(format!("{error:#}"));
                false
            }
        }
    }

    /// Moves RAM to the disk, and writes down that the disk knows everything.
    fn spill(&mut self) -> Result<()> {
        self.spool.spill()?;
        // At this point the segments are durable; if we die now, `behind` makes us ask the server first.
        self.identity.state.behind = false;
        self.identity.state.positions.clone_from(&self.positions);
        self.identity.save()
    }

    fn take(&mut self, item: Option<Produced>) {
        let Some(produced) = item else {
            return;
        };
        let header = &produced.batch.header;
        if produced.rewinds != self.rewinds.get(&header.stream).copied().unwrap_or(0) {
            return; // made before the stream was rewound; it is read again
        }
        self.positions
            .insert(header.stream, header.position_after());
        self.spool.add(&produced.name, &produced.batch);
    }

    fn dial(&mut self) {
        let dial = Dial::new(&self.identity.state);
        self.link = Link::Dialling(tokio::spawn(dial.run()));
    }

    fn go_up(&mut self, stream: TcpStream, established: Established) {
        let (reader, mut half) = stream.into_split();
        let (writes, mut bytes) = mpsc::channel::<Vec<u8>>(WRITES_MAX);
        let writer = tokio::spawn(async move {
            while let Some(bytes) = bytes.recv().await {
                if let Err(error) = half.write_all(&bytes).await {
                    debug!(%error, "writing to the server failed");
                    return;
                }
            }
        });
        let next_credential = established.next_psk.clone();
        self.link = Link::Up(Box::new(Up {
            session: AgentSession::new(established, clock::now()),
            next_credential,
            reader,
            writes,
            writer,
            buffer: vec![0; READ_LEN],
            first: Some(Vec::new()),
            stated: BTreeMap::new(),
            opened: BTreeSet::new(),
            ready: false,
        }));
    }

    fn handle_read(&mut self, n: usize) -> Result<()> {
        let Link::Up(up) = &mut self.link else {
            return Ok(());
        };
        let bytes = up.buffer.get(..n).unwrap_or_default();
        if let Some(first) = &mut up.first {
            first.extend_from_slice(bytes);
            if let Some(refused) = link::as_refusal(first) {
                return Err(refused.into());
            }
        }
        up.session.handle_bytes(bytes, clock::now())?;
        while let Some(event) = self.poll_event() {
            self.handle_event(event)?;
        }
        Ok(())
    }

    fn poll_event(&mut self) -> Option<AgentEvent> {
        match &mut self.link {
            Link::Up(up) => up.session.poll_event(),
            Link::Down { .. } | Link::Dialling(_) => None,
        }
    }

    fn handle_event(&mut self, event: AgentEvent) -> Result<()> {
        let Link::Up(up) = &mut self.link else {
            return Ok(());
        };
        match event {
            AgentEvent::CredentialRolled => {
                up.first = None;
                self.identity.state.credential = up.next_credential.clone();
                if self.identity.state.token.is_none() {
                    self.identity.save()?;
                    // At this point the next credential is ours; if we die before saying so, the
                    // server learns it from the next connection.
                    up.session.send_credential_stored(clock::now())?;
                }
            }
            AgentEvent::Enrolled { agent } => {
                self.identity.state.agent = agent;
                self.identity.state.token = None;
                self.identity.save()?;
                up.session.send_credential_stored(clock::now())?;
                info!(%agent, "enrolled");
            }
            AgentEvent::StreamState { stream, position } => {
                up.stated.insert(stream, position);
            }
            AgentEvent::Ready => self.handle_ready()?,
            AgentEvent::Acked(receipt) => {
                let before = self.spool.fill().entries;
                self.spool.ack(receipt.stream, receipt.next)?;
                self.status.acked_entries += before - self.spool.fill().entries;
            }
            AgentEvent::Closed { reason } => {
                anyhow::bail!("the server ended the session: {reason}")
            }
            AgentEvent::PeerSilent => anyhow::bail!("the server was silent for three keep-alives"),
        }
        Ok(())
    }

    /// The server has stated where every stream stands: goes on exactly there.
    fn handle_ready(&mut self) -> Result<()> {
        let Link::Up(up) = &mut self.link else {
            return Ok(());
        };
        let stated = core::mem::take(&mut up.stated);
        up.ready = true;
        self.backoff = BACKOFF_MIN;
        self.status.problem = None;
        self.spool.restart();
        let agent = self.identity.state.agent;
        let known: BTreeSet<StreamId> = self
            .positions
            .keys()
            .chain(stated.keys())
            .copied()
            .collect();
        for stream in known {
            let server = match stated.get(&stream) {
                Some(position) => position.clone(),
                None => StreamPosition::start(agent, stream, self.identity.state.epoch),
            };
            let reached = self.spool.reconcile(stream, &server)?;
            let ours = self.positions.get(&stream);
            let agrees =
                ours.is_some_and(|ours| ours.next == reached.next && ours.head == reached.head);
            if agrees {
                continue;
            }
            if let Some((commands, _)) = &self.sources {
                let rewinds = self.rewinds.entry(stream).or_default();
                *rewinds += 1;
                let (position, rewinds) = (reached.clone(), *rewinds);
                // The sources may be waiting for us to take a batch: do not wait for them.
                commands
                    .try_send(Command::Rewind {
                        stream,
                        position,
                        rewinds,
                    })
                    .ok()
                    .context("the sources do not listen")?;
            }
            self.positions.insert(stream, reached);
        }
        info!(
            "connected; the server has stated where {} streams stand",
            stated.len()
        );
        if self.sources.is_none() {
            self.start_sources()?;
        }
        Ok(())
    }

    fn start_sources(&mut self) -> Result<()> {
        let Some(out) = self.out.take() else {
            return Ok(());
        };
        let state = &self.identity.state;
        let signing = SigningKey::from_bytes(state.signing.expose());
        let started = source::start(
            &self.config,
            state.agent,
            state.epoch,
            signing,
            self.positions.clone(),
            out,
        )?;
        self.sources = Some(started);
        Ok(())
    }

    /// Sends as many batches as window and socket take.
    fn send_waiting(&mut self) -> Result<()> {
        loop {
            self.flush()?;
            let Link::Up(up) = &mut self.link else {
                return Ok(());
            };
            if !up.ready || up.writes.capacity() == 0 {
                return Ok(());
            }
            let Some(next) = self.spool.peek()? else {
                return Ok(());
            };
            if !up.session.has_window(next.encoded.len()) {
                return Ok(());
            }
            if next.is_in_ram && !self.identity.state.behind {
                self.identity.state.behind = true;
                self.identity.save()?;
            }
            let now = clock::now();
            let stream = next.header.stream;
            if up.opened.insert(stream) {
                up.session
                    .send_stream_open(stream, StreamKind::File, &next.name, now)?;
            }
            if up
                .session
                .send_batch(&next.header, next.encoded, now)?
                .is_ok()
            {
                self.spool.advance();
            }
        }
    }

    /// Hands sealed records to the socket's task.
    fn flush(&mut self) -> Result<()> {
        if let Link::Up(up) = &mut self.link
            && up.writes.capacity() > 0
            && let Some(bytes) = up.session.poll_transmit()
        {
            up.writes
                .try_send(bytes)
                .ok()
                .context("the connection broke")?;
        }
        Ok(())
    }

    fn handle_deadline(&mut self) -> Result<()> {
        let fill = self.spool.fill();
        let Link::Up(up) = &mut self.link else {
            return Ok(());
        };
        let now = clock::now();
        if up.session.is_keep_alive_due(now) {
            let state = KeepAlive {
                time_us: clock::unix_us(),
                backlog_entries: fill.entries,
                backlog_bytes: fill.bytes,
                oldest_us: fill.oldest_us,
                disk_bytes: fill.disk_bytes,
                disk_bytes_max: fill.disk_bytes_max,
            };
            up.session.send_keep_alive(state, now)?;
        }
        up.session.handle_timeout(now);
        while let Some(event) = self.poll_event() {
            self.handle_event(event)?;
        }
        Ok(())
    }

    /// The link is gone: what was in flight is sent again by the next session.
    fn lose_link(&mut self, error: &anyhow::Error) {
        let refused = error.is::<Refused>();
        warn!(
            error = format!("{error:#}"),
            retry_ms = self.backoff.as_millis(),
            "no link to the server"
        );
        self.status.problem = Some(format!("{error:#}"));
        if let Link::Up(up) = &self.link {
            up.writer.abort();
        }
        self.spool.restart();
        let wait = if refused {
            BACKOFF_MAX
        } else {
            jittered(self.backoff)
        };
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        self.link = Link::Down {
            until: clock::now() + wait,
        };
    }

    /// Stops: sources first, then what they had read goes to the disk unless it was acked.
    async fn finish(mut self, mut produced: mpsc::Receiver<Produced>) -> Result<()> {
        let had_started = self.sources.is_some();
        if let Some((commands, thread)) = self.sources.take() {
            let _best_effort = commands.try_send(Command::Stop);
            drop(commands);
            let joined = tokio::task::spawn_blocking(move || thread.join());
            // The thread may wait for room in the channel: keep taking until it ends.
            let mut joined = joined;
            loop {
                tokio::select! {
                    item = produced.recv() => match item {
                        Some(item) => self.take(Some(item)),
                        None => break,
                    },
                    _ = &mut joined => break,
                }
            }
            while let Ok(item) = produced.try_recv() {
                self.take(Some(item));
            }
        }
        // Sources that never started know nothing new: the server is still to be asked first.
        if had_started {
            self.spill()?;
        }
        if let Link::Up(mut up) = self.link {
            if up
                .session
                .send_close("the agent stops", clock::now())
                .is_ok()
                && let Some(bytes) = up.session.poll_transmit()
            {
                let _best_effort = up.writes.try_send(bytes);
            }
            drop(up.writes);
            drop(tokio::time::timeout(CLOSE_MAX, up.writer).await);
        }
        info!(waiting = self.spool.fill().entries, "stopped");
        Ok(())
    }
}

enum Happened {
    Read(std::io::Result<usize>),
    Room,
    Produced(Option<Box<Produced>>),
    Deadline,
}

/// Spreads reconnects of many agents: between half and all of the interval.
fn jittered(interval: Duration) -> Duration {
    let [byte] = scrinium_segment::random::<1>().unwrap_or([128]);
    interval / 2 + interval / 2 * u32::from(byte) / 255
}

/// Batches between sources and spool: 1 MiB.
const PRODUCED_MAX: usize = 4;
/// Records between session and socket: 1 MiB.
const WRITES_MAX: usize = 4;
const READ_LEN: usize = 64 << 10;
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
const CLOSE_MAX: Duration = Duration::from_secs(2);
