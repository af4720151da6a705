//! The agent at work: sources, sockets and clock around the [`Shipper`].
//!
//! ```text
//! sources ─▶ Shipper ─▶ socket         Shipper ─orders─▶ [Orders] ─▶ sources ─what they took up─▶ Shipper
//! ```

mod finish;
mod orders;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ed25519_dalek::SigningKey;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::shown;
use tokio::io::AsyncReadExt as _;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use self::orders::Orders;
use crate::clock;
use crate::config::{Config, Uploads};
use crate::ending::Ending;
use crate::identity::{Identity, State};
use crate::link::{self, Connected, Dial, Look, Looked, Memory, NotLetPass, Way};
use crate::production::Production;
use crate::shipper::{Check, Order, Produced, Refused, Shipper};
use crate::source::since::Since;
use crate::source::standing::Health;
use crate::source::{self, Command, Heard, Positions, Tells};
use crate::status::Status;
use crate::upload::{self, Pace, Queue};

/// What the agent runs with, and who it tells how it does.
pub(crate) struct Setting {
    pub(crate) config: Config,
    pub(crate) stop: watch::Receiver<bool>,
    /// What is this machine's configuration from then on.
    pub(crate) reloads: mpsc::Receiver<Config>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) health: Health,
    pub(crate) ending: Ending,
}

/// The way to the server as the configuration names it, or else the token. An agent joins by the port that encrypts,
/// whatever it sends by later.
fn way_of(config: &Config, state: &State) -> Result<Way> {
    let in_clear = config.integrity_only.as_deref();
    Way::new(
        &config.reach,
        &state.address,
        in_clear.filter(|_| state.token.is_none()),
        link::variable,
        scrinium_segment::random::<1>().map_or(0, |[spread]| spread),
    )
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
        mut reloads,
        status,
        health,
        ending,
    } = setting;
    let central = identity.state.central.as_ref();
    let (central, refused) = central.map_or((None, None), |c| config.resume_central(&c.text));
    let in_force = config.under(central.as_ref());
    let mut shipper = Shipper::open(dir, key, in_force.limits(), identity, check_of(&config))?;
    shipper.set_refused(refused);
    shipper.set_revert_after(config.revert_after);
    shipper.set_migrate_after(config.migrate_after);
    shipper.set_in_force(config.settings(central.as_ref()));
    let joins = shipper.state().token.is_some();
    let way = way_of(&config, shipper.state())?;
    let since = Since::open(dir, shipper.state().positions.is_empty());
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
            since,
        )),
        health,
        orders: Orders::default(),
        configurations: 0,
        socket: Socket::Down {
            until: clock::now(),
        },
        backoff: BACKOFF_MIN,
        joins,
        way,
        upload: watch::Sender::default(),
        pace: Pace::default(),
        production: Production::default(),
    };
    uplink.limit_upload();
    let mut look = Look::default();
    info!(version = env!("CARGO_PKG_VERSION"), "started");
    let (mut is_shown, mut shown_at) = (false, clock::now());
    let mut health_at = clock::now() + HEALTH_INTERVAL;
    while !*stop.borrow() {
        let show_at = shown_at + SHOW_INTERVAL;
        let look_at = uplink.way.returns_at();
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
            Some(config) = reloads.recv() => uplink.reload(config),
            () = tokio::time::sleep_until(show_at.into()), if !is_shown => {}
            looked = look.wait(look_at) => match looked {
                Looked::Due => {
                    uplink.way.note_looked(clock::now());
                    look.begin(uplink.new_dial(), uplink.way.earlier());
                }
                Looked::Done(found) => uplink.go_back(found),
            },
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
    out: Option<(mpsc::Sender<Produced>, Tells, Since)>,
    health: Health,
    /// What the sources are still to be told.
    orders: Orders,
    /// Configurations that they took up.
    configurations: u64,
    socket: Socket,
    backoff: Duration,
    /// It uses a token.
    joins: bool,
    way: Way,
    /// How fast the socket may be written to.
    upload: watch::Sender<Uploads>,
    pace: Pace,
    production: Production,
}

enum Socket {
    Down { until: Instant },
    Dialling(JoinHandle<(Memory, Result<Connected>)>),
    Up(Box<Up>),
}

struct Up {
    reader: OwnedReadHalf,
    writes: mpsc::Sender<Vec<u8>>,
    queue: Arc<Queue>,
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
                .or_else(|| self.health.hang(clock::now()))
                .or_else(|| self.shipper.problem.clone()),
            acked_entries: self.shipper.acked_entries,
            lasts,
            key: Some(key),
            server_key,
            way: Some(self.way.shown(clock::now())),
            upload: self.pace.shown(&self.in_force.uploads, clock::now()),
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
                        let dialled = dialled.context("dialling").and_then(|(memory, dialled)| {
                            self.way.remember(memory);
                            dialled
                        });
                        match dialled {
                            Ok(connected) => self.go_up(connected),
                            Err(error) => self.lose_link(&error),
                        }
                    }
                    _ = stop.changed() => {}
                }
            }
            Socket::Up(up) => {
                let deadline = self.shipper.poll_timeout().unwrap_or_else(clock::now);
                let full = up.writes.capacity() == 0;
                let behind = up.queue.is_behind(&self.upload.borrow());
                let (writes, queue) = (up.writes.clone(), up.queue.clone());
                let happened = tokio::select! {
                    biased;
                    read = up.reader.read(&mut up.buffer) => Happened::Read(read),
                    room = writes.reserve(), if full => {
                        drop(room);
                        Happened::Room
                    }
                    () = queue.moved(), if behind => Happened::Room,
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
        self.shipper.hung_at = self.health.hung_at(now);
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
                    if let Some((out, tells, since)) = self.out.take() {
                        let state = self.shipper.state();
                        let signing = SigningKey::from_bytes(state.signing.expose());
                        let started = source::start(
                            &self.in_force,
                            signing,
                            Positions::new(state.agent, state.epoch, positions, lost),
                            out,
                            tells,
                            since,
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
                Order::Configure { text, answers } => self.configure(text.as_deref(), answers),
            }
        }
        if let Some((commands, _)) = &self.sources {
            self.orders.pass(commands)?;
        }
        Ok(())
    }

    /// This machine's own configuration is this one from now on.
    fn reload(&mut self, config: Config) {
        let is_led_elsewhere = (&config.reach, &config.integrity_only)
            != (&self.config.reach, &self.config.integrity_only);
        self.config = config;
        if is_led_elsewhere {
            self.lead_elsewhere();
        }
        self.shipper.set_check(check_of(&self.config));
        self.shipper.set_revert_after(self.config.revert_after);
        self.shipper.set_migrate_after(self.config.migrate_after);
        let central = self.shipper.state().central.as_ref();
        let text = central.map(|central| central.text.clone());
        self.configure(text.as_deref(), None);
        info!("this machine's configuration was read again and is in force");
    }

    /// The configuration names another way to the server.
    fn lead_elsewhere(&mut self) {
        match way_of(&self.config, self.shipper.state()) {
            Ok(way) => self.way = way,
            Err(error) => {
                let error = format!("{error:#}");
                return warn!(error, "the way to the server stays as it was");
            }
        }
        self.end_link(&anyhow::anyhow!(
            "the configuration names another way to the server"
        ));
        self.socket = Socket::Down {
            until: clock::now(),
        };
    }

    /// Puts this machine's configuration in force, with what the server wants on top as far as that goes here.
    fn configure(&mut self, central: Option<&str>, answers: Option<u64>) {
        let (central, refused) = match central {
            Some(text) => self.config.resume_central(text),
            None => (None, None),
        };
        self.in_force = self.config.under(central.as_ref());
        self.limit_upload();
        self.shipper.set_limits(self.in_force.limits());
        self.shipper.set_refused(refused);
        let settings = self.config.settings(central.as_ref());
        self.shipper.set_in_force(settings);
        self.orders.configure(self.in_force.clone(), answers);
    }

    /// The sources took up what they were told.
    fn handle_heard(&mut self, heard: Heard) {
        let is_news = core::mem::replace(&mut self.configurations, heard.configurations)
            != heard.configurations;
        if is_news {
            let answered = self.shipper.handle_configured(heard.answers, clock::now());
            if let Err(error) = answered {
                self.lose_link(&error);
            }
        }
    }

    fn limit_upload(&mut self) {
        self.upload.send_replace(self.in_force.uploads.clone());
        self.pace = Pace::default();
    }

    fn new_dial(&self) -> Dial {
        let is_in_clear = self.config.integrity_only.is_some() && !self.joins;
        Dial::new(self.shipper.state(), self.shipper.credential(), is_in_clear)
    }

    fn dial(&mut self) {
        let joins = self.shipper.state().token.is_some();
        if core::mem::replace(&mut self.joins, joins) != joins
            && let Ok(way) = way_of(&self.config, self.shipper.state())
        {
            self.way = way;
        }
        let round = self.way.round(clock::now());
        self.socket = Socket::Dialling(tokio::spawn(self.new_dial().run(round)));
    }

    fn go_up(&mut self, connected: Connected) {
        let Connected {
            stream,
            established,
            hop,
            peer,
        } = connected;
        self.way.note_up(hop, peer, clock::now());
        info!(server = self.way.shown(clock::now()).to_string(), "dialled");
        let (reader, half) = stream.into_split();
        let (writes, bytes) = mpsc::channel::<Vec<u8>>(WRITES_MAX);
        let queue: Arc<Queue> = Arc::default();
        let uploads = self.upload.subscribe();
        let writer = tokio::spawn(upload::write_all(half, bytes, uploads, queue.clone()));
        self.shipper.handle_connected(established, clock::now());
        self.socket = Socket::Up(Box::new(Up {
            reader,
            writes,
            queue,
            writer,
            buffer: vec![0; READ_LEN],
        }));
    }

    /// An earlier address answers: the session ends, and the next one is sought there. What is not acknowledged is sent
    /// again, as after every loss of the link, and taken once.
    fn go_back(&mut self, found: Option<usize>) {
        if !found.is_some_and(|hop| self.way.go_back(hop)) {
            return;
        }
        info!("an earlier address of the server answers: it is gone back to");
        self.end_link(&anyhow::anyhow!("an earlier address is gone back to"));
        self.socket = Socket::Down {
            until: clock::now(),
        };
    }

    fn end_link(&mut self, error: &anyhow::Error) {
        if let Socket::Up(up) = &self.socket {
            up.writer.abort();
        }
        self.shipper.handle_disconnected(error);
    }

    /// Sends as many batches as credits and socket take.
    fn send_waiting(&mut self) -> Result<()> {
        while let Socket::Up(up) = &mut self.socket
            && up.writes.capacity() > 0
        {
            if let Some(bytes) = self.shipper.poll_transmit() {
                up.queue.put(bytes.len());
                let sent = up.writes.try_send(bytes);
                sent.ok().context("the connection broke")?;
            } else if up.queue.is_behind(&self.upload.borrow())
                || !self.shipper.send_next(clock::now())?
            {
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
        self.way.note_down(self.shipper.is_ready());
        self.end_link(error);
        // Between two sessions, however soon the next begins.
        self.shipper.review_configuration(clock::now());
        let wait = jittered(if error.is::<Refused>() {
            BACKOFF_REFUSED
        } else if error.is::<NotLetPass>() {
            BACKOFF_PROXY
        } else {
            self.backoff
        });
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        self.socket = Socket::Down {
            until: clock::now() + wait,
        };
    }
}

/// Checks what the server sends by this machine's configuration.
fn check_of(config: &Config) -> Check {
    let own = config.clone();
    Box::new(move |text: &str| own.accept_central(text).map(drop))
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
const READ_LEN: usize = 64 << 10;
/// What `status` says is at most this old.
const SHOW_INTERVAL: Duration = Duration::from_millis(100);
/// How often the agent says how it does; it comes around at least as often as it keeps alive or dials.
const HEALTH_INTERVAL: Duration = Duration::from_secs(300);
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// The server answered, and said no: somebody may be about to change that.
const BACKOFF_REFUSED: Duration = Duration::from_secs(5);
/// The proxy does not take what we show: ten tries in ten minutes lock an account in many a directory.
const BACKOFF_PROXY: Duration = Duration::from_secs(300);
