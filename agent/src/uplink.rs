//! The agent at work: sources, sockets and clock around the [`Shipper`].
//!
//! ```text
//! sources ─▶ Shipper ─▶ socket         Shipper ─orders─▶ [Orders] ─▶ sources ─what they took up─▶ Shipper
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ed25519_dalek::SigningKey;
use scrinium_protocol::batch::StreamPosition;
use scrinium_protocol::identity::StreamId;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::shown;
use scrinium_protocol::sl::handshake::Established;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use crate::clock;
use crate::config::Config;
use crate::identity::Identity;
use crate::link::Dial;
use crate::production::Production;
use crate::shipper::{Order, Produced, Refused, Shipper};
use crate::source::{self, Command, Heard, Positions};
use crate::status::Status;

/// Runs until `stop` says so.
pub(crate) async fn run(
    config: Config,
    dir: &Path,
    key: &Secret<32>,
    identity: Identity,
    mut stop: watch::Receiver<bool>,
    status: watch::Sender<Status>,
) -> Result<()> {
    let (in_force, refused) = match &identity.state.central {
        Some(central) => config.resume_central(&central.text),
        None => (config.clone(), None),
    };
    let own = config.clone();
    let check = Box::new(move |text: &str| own.accept_central(text).map(drop));
    let mut shipper = Shipper::open(dir, key, in_force.limits, identity, check)?;
    if let Some(reason) = refused {
        shipper.set_refused(reason);
    }
    if let Some(revert_after) = config.revert_after {
        shipper.set_revert_after(revert_after);
    }
    if let Some(migrate_after) = config.migrate_after {
        shipper.set_migrate_after(migrate_after);
    }
    let (out, mut produced) = mpsc::channel(PRODUCED_MAX);
    let (heard, mut hears) = watch::channel(Heard::default());
    let mut uplink = Uplink {
        config,
        in_force,
        shipper,
        sources: None,
        out: Some((out, heard)),
        orders: Orders::default(),
        configurations: 0,
        socket: Socket::Down {
            until: clock::now(),
        },
        backoff: BACKOFF_MIN,
        upload: Arc::default(),
        production: Production::default(),
    };
    uplink.limit_upload();
    info!(version = env!("CARGO_PKG_VERSION"), "started");
    let (mut is_shown, mut shown_at) = (false, clock::now());
    let mut health_at = clock::now() + HEALTH_INTERVAL;
    while !*stop.borrow() {
        let show_at = shown_at + SHOW_INTERVAL;
        tokio::select! {
            // It may be cut short where it waits: nothing is taken before it is acted on.
            done = uplink.step(&mut produced, &mut stop) => {
                done?;
                is_shown = false;
            }
            // What was ordered is passed on by the next step, as far as there is room now.
            Ok(()) = hears.changed() => {
                let heard = *hears.borrow_and_update();
                uplink.handle_heard(heard);
            }
            () = tokio::time::sleep_until(show_at.into()), if !is_shown => {}
        }
        let now = clock::now();
        if !is_shown && now >= show_at {
            (is_shown, shown_at) = (true, now);
            status.send_replace(uplink.status());
        }
        if now >= health_at {
            health_at = now + HEALTH_INTERVAL;
            uplink.status().say();
        }
    }
    uplink.finish(produced).await
}

struct Uplink {
    /// As this machine's administrator wrote it, and with what the server wants on top.
    config: Config,
    in_force: Config,
    shipper: Shipper,
    sources: Option<(SyncSender<Command>, std::thread::JoinHandle<()>)>,
    /// The sources' ends of the channels, until they are started.
    out: Option<(mpsc::Sender<Produced>, watch::Sender<Heard>)>,
    /// What the sources are still to be told.
    orders: Orders,
    /// Configurations that they took up.
    configurations: u64,
    socket: Socket,
    backoff: Duration,
    /// Bytes a second that go out; 0 for as many as do.
    upload: Arc<AtomicU64>,
    production: Production,
}

enum Socket {
    Down { until: Instant },
    Dialling(JoinHandle<Result<(TcpStream, Established)>>),
    Up(Box<Up>),
}

struct Up {
    reader: OwnedReadHalf,
    writes: mpsc::Sender<Vec<u8>>,
    writer: JoinHandle<()>,
    buffer: Vec<u8>,
}

impl Uplink {
    fn status(&mut self) -> Status {
        let fill = self.shipper.fill();
        self.production
            .update(clock::now(), self.shipper.produced_bytes);
        let room = fill.disk_bytes_max.saturating_sub(fill.disk_bytes);
        let lasts = self.production.time_for(room);
        self.shipper.cache_lasts = lasts;
        let state = self.shipper.state();
        let signing = SigningKey::from_bytes(state.signing.expose());
        let key = shown::key(&signing.verifying_key().to_bytes());
        let server_key = state.server_signing.as_ref().map(shown::key);
        Status {
            connected: self.shipper.is_ready(),
            fill,
            problem: self
                .shipper
                .disk_problem
                .clone()
                .or_else(|| self.shipper.problem.clone()),
            acked_entries: self.shipper.acked_entries,
            lasts,
            key: Some(key),
            server_key,
        }
    }

    /// Waits for the next thing to happen and acts on it.
    async fn step(
        &mut self,
        produced: &mut mpsc::Receiver<Produced>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<()> {
        self.shipper.review_configuration(clock::now());
        self.shipper.review_binding(clock::now());
        self.pass_orders()?;
        let takes = self.shipper.has_room();
        if let Err(error) = self.send_waiting() {
            self.lose_link(&error);
        }
        match &mut self.socket {
            Socket::Down { until } => {
                let until = *until;
                tokio::select! {
                    item = produced.recv(), if takes => self.take(item)?,
                    () = tokio::time::sleep_until(until.into()) => self.dial(),
                    _ = stop.changed() => {}
                }
            }
            Socket::Dialling(dialling) => {
                tokio::select! {
                    item = produced.recv(), if takes => self.take(item)?,
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
            Socket::Up(up) => {
                let deadline = self.shipper.poll_timeout().unwrap_or_else(clock::now);
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
                    Happened::Read(Ok(n)) => {
                        let bytes = up.buffer.get(..n).unwrap_or_default();
                        self.shipper.handle_bytes(bytes, clock::now())
                    }
                    Happened::Read(Err(error)) => Err(error.into()),
                    Happened::Produced(item) => {
                        self.take(item.map(|item| *item))?;
                        Ok(())
                    }
                    Happened::Deadline => {
                        let time_us = clock::unix_us();
                        self.shipper.handle_timeout(clock::now(), time_us)
                    }
                    Happened::Room => Ok(()),
                };
                if self.shipper.is_ready() {
                    self.backoff = BACKOFF_MIN;
                }
                if let Err(error) = outcome {
                    self.lose_link(&error);
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, item: Option<Produced>) -> Result<()> {
        let produced = item.context("the sources ended by themselves")?;
        self.shipper.take(produced);
        Ok(())
    }

    /// Tells the sources what the shipper wants of them, as far as they listen: they may be waiting for us to take
    /// a batch, so nobody waits for them here.
    fn pass_orders(&mut self) -> Result<()> {
        while let Some(order) = self.shipper.poll_order() {
            match order {
                Order::Start { positions, lost } => {
                    if let Some((out, heard)) = self.out.take() {
                        let state = self.shipper.state();
                        let signing = SigningKey::from_bytes(state.signing.expose());
                        let started = source::start(
                            &self.in_force,
                            signing,
                            Positions::new(state.agent, state.epoch, positions, lost),
                            out,
                            heard,
                        )?;
                        self.sources = Some(started);
                    }
                }
                Order::Rewind {
                    stream,
                    position,
                    rewinds,
                    lost,
                } => self.orders.rewind(stream, position, rewinds, lost),
                Order::Configure { text, answers } => {
                    self.in_force = match text {
                        Some(text) => self.config.with_central(&Config::parse_central(&text)?),
                        None => self.config.clone(),
                    };
                    self.limit_upload();
                    self.shipper.set_limits(self.in_force.limits);
                    let config = Box::new(self.in_force.clone());
                    self.orders.configure = Some(Command::Configure { config, answers });
                }
            }
        }
        if let Some((commands, _)) = &self.sources {
            self.orders.pass(commands)?;
        }
        Ok(())
    }

    /// The sources took up what they were told.
    fn handle_heard(&mut self, heard: Heard) {
        let is_news = core::mem::replace(&mut self.configurations, heard.configurations)
            != heard.configurations;
        if let Some(version) = heard.answers.filter(|_| is_news) {
            let answered = self.shipper.handle_configured(version, clock::now());
            if let Err(error) = answered {
                self.lose_link(&error);
            }
        }
    }

    fn limit_upload(&self) {
        let rate = self.in_force.rates.upload_bytes_per_s_max.unwrap_or(0);
        self.upload.store(rate, Ordering::Relaxed);
    }

    fn dial(&mut self) {
        let integrity_only = self.config.integrity_only.clone();
        let dial = Dial::new(
            self.shipper.state(),
            self.shipper.credential(),
            integrity_only,
        );
        self.socket = Socket::Dialling(tokio::spawn(dial.run()));
    }

    fn go_up(&mut self, stream: TcpStream, established: Established) {
        let (reader, mut half) = stream.into_split();
        let (writes, mut bytes) = mpsc::channel::<Vec<u8>>(WRITES_MAX);
        let rate = self.upload.clone();
        let writer = tokio::spawn(async move {
            while let Some(bytes) = bytes.recv().await {
                for part in bytes.chunks(PART_LEN) {
                    if let Err(error) = half.write_all(part).await {
                        debug!(%error, "writing to the server failed");
                        return;
                    }
                    let rate = rate.load(Ordering::Relaxed);
                    if rate > 0 {
                        let seconds = part.len() as f64 / rate as f64;
                        // So long the part takes at the rate that was asked for.
                        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
                    }
                }
            }
        });
        self.shipper.handle_connected(established, clock::now());
        self.socket = Socket::Up(Box::new(Up {
            reader,
            writes,
            writer,
            buffer: vec![0; READ_LEN],
        }));
    }

    /// Sends as many batches as credits and socket take.
    fn send_waiting(&mut self) -> Result<()> {
        while let Socket::Up(up) = &mut self.socket
            && up.writes.capacity() > 0
        {
            if let Some(bytes) = self.shipper.poll_transmit() {
                let sent = up.writes.try_send(bytes);
                sent.ok().context("the connection broke")?;
            } else if !self.shipper.send_next(clock::now())? {
                break;
            }
        }
        Ok(())
    }

    fn lose_link(&mut self, error: &anyhow::Error) {
        warn!(
            error = format!("{error:#}"),
            retry_ms = self.backoff.as_millis(),
            "no link to the server"
        );
        if let Socket::Up(up) = &self.socket {
            up.writer.abort();
        }
        self.shipper.handle_disconnected(error);
        // Between two sessions, however soon the next begins.
        self.shipper.review_configuration(clock::now());
        let wait = if error.is::<Refused>() {
            jittered(BACKOFF_REFUSED)
        } else {
            jittered(self.backoff)
        };
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        self.socket = Socket::Down {
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
                        Some(item) => self.shipper.take(item),
                        None => break,
                    },
                    _ = &mut joined => break,
                }
            }
            while let Ok(item) = produced.try_recv() {
                self.shipper.take(item);
            }
        }
        // Sources that never started know nothing new: the server is still to be asked first.
        if had_started {
            self.shipper.spill()?;
        }
        if let Socket::Up(up) = self.socket {
            if let Some(bytes) = self.shipper.close("the agent stops", clock::now()) {
                let _best_effort = up.writes.try_send(bytes);
            }
            drop(up.writes);
            drop(tokio::time::timeout(CLOSE_MAX, up.writer).await);
        }
        info!(waiting = self.shipper.fill().entries, "stopped");
        Ok(())
    }
}

/// What the sources are still to be told: of each stream the last word, then the last configuration. A server can
/// have no more of it than there are streams.
#[derive(Default)]
struct Orders {
    rewinds: BTreeMap<StreamId, (StreamPosition, u64, bool)>,
    configure: Option<Command>,
}

impl Orders {
    fn rewind(&mut self, stream: StreamId, position: StreamPosition, rewinds: u64, lost: bool) {
        let before = self.rewinds.remove(&stream);
        let lost = lost || before.is_some_and(|(.., lost)| lost);
        self.rewinds.insert(stream, (position, rewinds, lost));
    }

    /// Passes on what there is room for; the rest when the sources have taken some of it.
    fn pass(&mut self, commands: &SyncSender<Command>) -> Result<()> {
        loop {
            let command = match self.rewinds.pop_first() {
                Some((stream, (position, rewinds, lost))) => Command::Rewind {
                    stream,
                    position,
                    rewinds,
                    lost,
                },
                None => match self.configure.take() {
                    Some(configure) => configure,
                    None => return Ok(()),
                },
            };
            match commands.try_send(command) {
                Ok(()) => {}
                Err(TrySendError::Full(Command::Rewind {
                    stream,
                    position,
                    rewinds,
                    lost,
                })) => {
                    self.rewind(stream, position, rewinds, lost);
                    return Ok(());
                }
                Err(TrySendError::Full(configure)) => {
                    self.configure = Some(configure);
                    return Ok(());
                }
                Err(TrySendError::Disconnected(_)) => bail!("the sources ended by themselves"),
            }
        }
    }
}

enum Happened {
    Read(std::io::Result<usize>),
    Room,
    Produced(Option<Box<Produced>>),
    Deadline,
}

/// Spreads reconnects of many agents: between half and all of the interval.
pub(crate) fn jittered(interval: Duration) -> Duration {
    let [byte] = scrinium_segment::random::<1>().unwrap_or([128]);
    interval / 2 + interval / 2 * u32::from(byte) / 255
}

/// Batches between sources and spool: a good megabyte.
const PRODUCED_MAX: usize = 6;
/// Records between session and socket: 1 MiB.
const WRITES_MAX: usize = 4;
/// Written at once; a limit on the rate is kept from one to the next.
const PART_LEN: usize = 16 << 10;
const READ_LEN: usize = 64 << 10;
/// What `status` says is at most this old.
const SHOW_INTERVAL: Duration = Duration::from_millis(100);
/// How often the agent says how it does; it comes around at least as often as it keeps alive or dials.
const HEALTH_INTERVAL: Duration = Duration::from_secs(300);
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// The server answered, and said no: somebody may be about to change that.
const BACKOFF_REFUSED: Duration = Duration::from_secs(5);
const CLOSE_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use scrinium_protocol::identity::{AgentId, Epoch};

    use super::*;

    /// More than the sources listen to at once waits, the last word about each stream, the configuration last.
    #[test]
    fn orders_wait_until_the_sources_listen_and_none_is_lost() {
        let mut orders = Orders::default();
        let stream = |n: u8| StreamId([n; 16]);
        let start = |n: u8| StreamPosition::start(AgentId([9; 16]), stream(n), Epoch([8; 16]));
        for rewinds in 1..=2 {
            for n in 0..5 {
                orders.rewind(stream(n), start(n), rewinds, rewinds == 1);
            }
        }
        let config = Box::new(Config::parse("").unwrap());
        let answers = Some(7);
        orders.configure = Some(Command::Configure { config, answers });
        let (commands, received) = std::sync::mpsc::sync_channel(2);
        let mut told = Vec::new();
        while told.len() < 6 {
            orders.pass(&commands).unwrap();
            let taken: Vec<Command> = received.try_iter().collect();
            assert!((1..=2).contains(&taken.len()));
            told.extend(taken);
        }
        for (n, command) in (0..5).zip(&told) {
            // Something sealed is gone, as the first word said.
            let Command::Rewind {
                stream: of,
                rewinds: 2,
                lost: true,
                ..
            } = command
            else {
                panic!("the stream {n}");
            };
            assert_eq!(*of, stream(n));
        }
        let last = told.last();
        assert!(matches!(
            last,
            Some(Command::Configure {
                answers: Some(7),
                ..
            })
        ));
        assert!(orders.rewinds.is_empty() && orders.configure.is_none());
        drop(received);
        orders.rewind(stream(1), start(1), 3, false);
        assert!(orders.pass(&commands).is_err());
    }
}
