//! The agent at work: sources, sockets and clock around the [`Shipper`].
//!
//! ```text
//! sources ─▶ Shipper ─▶ socket         Shipper ─orders─▶ [Orders] ─▶ sources ─what they took up─▶ Shipper
//! ```

mod orders;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ed25519_dalek::SigningKey;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::shown;
use scrinium_protocol::sl::handshake::Established;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use self::orders::Orders;
use crate::clock;
use crate::config::Config;
use crate::ending::Ending;
use crate::identity::Identity;
use crate::link::Dial;
use crate::production::Production;
use crate::shipper::{Order, Produced, Refused, Shipper};
use crate::source::standing::Health;
use crate::source::{self, Command, Heard, Positions, Tells};
use crate::status::Status;

/// What the agent runs with, and who it tells how it does.
pub(crate) struct Setting {
    pub(crate) config: Config,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) health: Health,
    pub(crate) ending: Ending,
}

/// Runs until `stop` says so.
pub(crate) async fn run(
    dir: &Path,
    key: &Secret<32>,
    identity: Identity,
    setting: Setting,
) -> Result<()> {
    let Setting {
        config,
        mut stop,
        status,
        health,
        ending,
    } = setting;
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
    let (out, mut produced) = mpsc::channel(PRODUCED_MAX);
    let (heard, mut hears) = watch::channel(Heard::default());
    let mut uplink = Uplink {
        config,
        in_force,
        shipper,
        sources: None,
        out: Some((
            out,
            Tells {
                heard,
                health: health.clone(),
            },
        )),
        health,
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
    uplink.finish(produced, &ending).await
}

struct Uplink {
    /// As this machine's administrator wrote it, and with what the server wants on top.
    config: Config,
    in_force: Config,
    shipper: Shipper,
    sources: Option<(SyncSender<Command>, std::thread::JoinHandle<()>)>,
    /// The sources' ends of the channels, until they are started.
    out: Option<(mpsc::Sender<Produced>, Tells)>,
    health: Health,
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
    queue: Arc<Queue>,
    writer: JoinHandle<()>,
    buffer: Vec<u8>,
}

/// What was handed to the task that writes and is not written yet.
#[derive(Default)]
struct Queue {
    bytes: AtomicU64,
    /// Some of it was written.
    moved: Notify,
}

impl Up {
    /// Whether more than a moment's worth waits to be written at the rate that was asked for: what is sent next, such as
    /// the state of the agent, comes behind it.
    fn is_behind(&self, rate: u64) -> bool {
        rate > 0 && self.queue.bytes.load(Ordering::Relaxed) > rate
    }
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
                .or_else(|| self.health.hang(clock::now()))
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
        self.pass_orders()?;
        // However much there is to do: the state of the agent travels on time.
        let now = clock::now();
        if self.shipper.poll_timeout().is_some_and(|at| now >= at)
            && let Err(error) = self.handle_deadline()
        {
            self.lose_link(&error);
        }
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
                let behind = up.is_behind(self.upload.load(Ordering::Relaxed));
                let (writes, queue) = (up.writes.clone(), up.queue.clone());
                let happened = tokio::select! {
                    biased;
                    read = up.reader.read(&mut up.buffer) => Happened::Read(read),
                    room = writes.reserve(), if full => {
                        drop(room);
                        Happened::Room
                    }
                    () = queue.moved.notified(), if behind => Happened::Room,
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
                    Happened::Deadline => self.handle_deadline(),
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

    fn handle_deadline(&mut self) -> Result<()> {
        let now = clock::now();
        self.shipper.reports = self.health.reports();
        self.shipper.hang = self.health.hang(now);
        self.shipper.handle_timeout(now, clock::unix_us())
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
                    if let Some((out, tells)) = self.out.take() {
                        let state = self.shipper.state();
                        let signing = SigningKey::from_bytes(state.signing.expose());
                        let started = source::start(
                            &self.in_force,
                            signing,
                            Positions::new(state.agent, state.epoch, positions, lost),
                            out,
                            tells,
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
        let queue: Arc<Queue> = Arc::default();
        let queued = queue.clone();
        let writer = tokio::spawn(async move {
            while let Some(bytes) = bytes.recv().await {
                for part in bytes.chunks(PART_LEN) {
                    if let Err(error) = half.write_all(part).await {
                        debug!(%error, "writing to the server failed");
                        return;
                    }
                    queued.bytes.fetch_sub(part.len() as u64, Ordering::Relaxed);
                    queued.moved.notify_one();
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
            queue,
            writer,
            buffer: vec![0; READ_LEN],
        }));
    }

    /// Sends as many batches as credits and socket take.
    fn send_waiting(&mut self) -> Result<()> {
        let rate = self.upload.load(Ordering::Relaxed);
        while let Socket::Up(up) = &mut self.socket
            && up.writes.capacity() > 0
        {
            if let Some(bytes) = self.shipper.poll_transmit() {
                let len = bytes.len() as u64;
                up.queue.bytes.fetch_add(len, Ordering::Relaxed);
                let sent = up.writes.try_send(bytes);
                sent.ok().context("the connection broke")?;
            } else if up.is_behind(rate) || !self.shipper.send_next(clock::now())? {
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

    /// Stops: sources first, then what they had read goes to the disk unless it was acked. A thread that hangs is not
    /// waited for.
    async fn finish(
        mut self,
        mut produced: mpsc::Receiver<Produced>,
        ending: &Ending,
    ) -> Result<()> {
        let had_started = self.sources.is_some();
        if let Some((commands, thread)) = self.sources.take() {
            ending.at("the thread that reads did not end");
            let _best_effort = commands.try_send(Command::Stop);
            drop(commands);
            let joined = tokio::task::spawn_blocking(move || thread.join());
            // The thread may wait for room in the channel: keep taking until it ends.
            let mut joined = joined;
            let deadline = clock::now() + JOIN_MAX;
            loop {
                tokio::select! {
                    item = produced.recv() => match item {
                        Some(item) => self.shipper.take(item),
                        None => break,
                    },
                    _ = &mut joined => break,
                    () = tokio::time::sleep_until(deadline.into()) => {
                        let (silent, path) = self.health.beat.silent_for(clock::now(), Duration::ZERO).unwrap_or_default();
                        let text = format!(
                            "the thread that reads did not end within {} s; for {} s it was at {}",
                            JOIN_MAX.as_secs(), silent.as_secs(), path.display()
                        );
                        warn!("{text}");
                        ending.leave_note(&text);
                        break;
                    }
                }
            }
            while let Ok(item) = produced.try_recv() {
                self.shipper.take(item);
            }
        }
        // Sources that never started know nothing new: the server is still to be asked first.
        if had_started {
            ending.at("the disk did not take what was read");
            self.shipper.spill()?;
        }
        ending.at("the connection did not end");
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
/// How long the thread that reads may take to end. With the end of the connection it is less than what
/// [`Ending`] allows for all.
const JOIN_MAX: Duration = Duration::from_secs(5);
const CLOSE_MAX: Duration = Duration::from_secs(2);
