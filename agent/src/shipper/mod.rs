//! What the agent knows and does about shipping, without socket, clock or thread.
//!
//! ```text
//! sources ─take─▶ spool ─▶ AgentSession ─poll_transmit─▶ socket
//!    ▲                         │ handle_bytes ◀────────── socket
//!    └──────poll_order◀────────┘ the server states where each stream stands
//! ```
//!
//! Invariants:
//! 1. `behind` is durable before a batch is sent that positions on the disk do not know: one that lies
//!    only in RAM, or was spilled without writing positions down.
//! 2. It is cleared only with RAM empty: by a spill, after which the disk knows everything sent.
//! 3. The credential is replaced, durably, when the server's first record was opened, and before the
//!    server is told so.
//! 4. A configuration is in force only after it is durable, and is answered only after the thread that collects
//!    has taken it up.

mod aside;
mod binding;
mod configuration;
mod disk;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use ed25519_dalek::{SigningKey, VerifyingKey};
use scrinium_protocol::batch::{SealedBatch, StreamPosition};
use scrinium_protocol::identity::{Epoch, Sequence, StreamId, StreamName};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::{Established, RefusalCode, refusal_of};
use scrinium_protocol::sl::in_force::Setting;
use scrinium_protocol::sl::message::{INTERFERENCE, KeepAlive, Lane, MARKS_MAX, refused_stream};
use scrinium_protocol::sl::noise::KeyPair;
use scrinium_protocol::sl::session::{AgentEvent, AgentSession};
use scrinium_protocol::sl::sources::SourceReports;
use scrinium_segment::{fault, random};
use tracing::{info, warn};

use self::aside::Aside;
use self::binding::Migration;
use crate::config::Limits;
use crate::identity::{Identity, State};
use crate::spool::{Fill, Spool};

/// A batch on its way to the spool.
#[derive(Debug)]
pub struct Produced {
    /// What the stream is called.
    pub name: StreamName,
    /// How often the stream was rewound before this batch was made: one made before the last
    /// rewind is dropped.
    pub rewinds: u64,
    pub batch: SealedBatch,
}

/// What the sources are to do.
#[derive(Debug)]
pub enum Order {
    /// Begin, from where each stream stands.
    Start {
        positions: BTreeMap<StreamId, StreamPosition>,
        /// Streams of which something sealed is gone: it is to be said, or read again.
        lost: BTreeSet<StreamId>,
    },
    /// Forget what was read of this stream after `position`, and go on there.
    Rewind {
        stream: StreamId,
        position: StreamPosition,
        rewinds: u64,
        /// Something sealed after `position` is gone.
        lost: bool,
    },
    /// Collect what the server's configuration says, of this text; without one, what this machine's own
    /// says.
    Configure {
        text: Option<String>,
        /// The version that is answered once it is taken up: see [`Shipper::handle_configured`].
        answers: Option<u64>,
    },
}

/// The server refused, in its own words.
#[derive(Debug, thiserror::Error)]
#[error("the server refused: {reason}")]
pub struct Refused {
    pub code: RefusalCode,
    pub reason: String,
}

impl Refused {
    /// What [`refusal_of`] found.
    #[must_use]
    pub fn new((code, reason): (RefusalCode, String)) -> Self {
        Self { code, reason }
    }
}

/// Checks the text of a configuration; says why it cannot be applied.
pub type Check = Box<dyn Fn(&str) -> Result<()> + Send>;

/// The agent's shipping.
pub struct Shipper {
    identity: Identity,
    spool: Spool,
    link: Option<Link>,
    /// Where each stream stands after its last batch produced.
    positions: BTreeMap<StreamId, StreamPosition>,
    rewinds: BTreeMap<StreamId, u64>,
    /// Streams of which something sealed is gone, until the sources are told.
    lost: BTreeSet<StreamId>,
    has_sources: bool,
    orders: VecDeque<Order>,
    /// Streams that moved since the last keep-alive.
    moved: BTreeSet<StreamId>,
    /// How often in a row the server did not know the credential.
    unknown: u8,
    check: Check,
    /// How the configuration on trial does.
    trial: Option<configuration::Progress>,
    /// What of the configuration that was in force before is not, since this process began.
    refused: Option<String>,
    /// What is in force, for the server.
    in_force: Vec<Setting>,
    /// How long it may keep the server out of reach.
    revert_after: Duration,
    /// Why there is no link, while there is none.
    pub problem: Option<String>,
    /// Why the disk does not take what it must, while it does not.
    pub disk_problem: Option<String>,
    /// How long an outage the cache outlasts, as far as its owner knows.
    pub cache_lasts: Option<Duration>,
    pub acked_entries: u64,
    /// What somebody on the way did to the last session, until the server was told.
    interference: Option<String>,
    /// Receipts for more than the server stated that were shown to it since this process began: one that does not
    /// know the message ends the session, and is not asked again.
    shown: BTreeSet<(StreamId, Sequence)>,
    /// New streams that the server does not take.
    aside: Aside,
    /// Bytes of batches taken from the sources.
    pub produced_bytes: u64,
    /// How the sources do, and that their thread hangs: as their owner knows, before a keep-alive is due.
    pub reports: Arc<SourceReports>,
    pub hang: Option<String>,
    /// When what the state is bound to is looked after.
    migration: Migration,
}

/// A connection after its handshake.
#[derive(Debug)]
struct Link {
    session: AgentSession,
    next_credential: Secret<32>,
    recovery: Secret<32>,
    /// Bytes before the first record, in case they are a refusal.
    first: Option<Vec<u8>>,
    stated: BTreeMap<StreamId, StreamPosition>,
    /// How many of them are of no stream that we know.
    unknown: usize,
    opened: BTreeSet<StreamId>,
    /// What is sent and not acked, in the order it was sent.
    in_flight: VecDeque<(StreamId, Sequence, Instant)>,
    /// Since when batches flow.
    ready_since: Option<Instant>,
    /// The next credential is durably ours.
    is_rolled: bool,
    /// How the sources did when that was told last.
    told: Option<Arc<SourceReports>>,
}

impl Link {
    /// Whether the link is busy with what it has: more would only delay what is newer.
    fn is_behind(&self, now: Instant) -> bool {
        let oldest = self.in_flight.front();
        oldest.is_some_and(|(.., sent_at)| now.duration_since(*sent_at) > IN_FLIGHT_MAX)
    }
}

impl std::fmt::Debug for Shipper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shipper = f.debug_struct("Shipper");
        { shipper }
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

impl Shipper {
    /// Opens the spool in `dir`.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn open(
        dir: &Path,
        key: &Secret<32>,
        limits: Limits,
        identity: Identity,
        check: Check,
    ) -> Result<Self> {
        let signing = SigningKey::from_bytes(identity.state.signing.expose());
        let spool = Spool::open(&dir.join("spool"), key, limits, signing)?;
        let mut positions = identity.state.positions.clone();
        let mut lost = BTreeSet::new();
        for (stream, end) in spool.ends() {
            let before = positions.insert(stream, end.clone());
            if before.is_some_and(|before| is_before(&end, &before)) {
                lost.insert(stream);
            }
        }
        let mut shipper = Self {
            identity,
            spool,
            link: None,
            positions,
            rewinds: BTreeMap::new(),
            lost,
            has_sources: false,
            orders: VecDeque::new(),
            moved: BTreeSet::new(),
            unknown: 0,
            check,
            trial: None,
            refused: None,
            in_force: Vec::new(),
            revert_after: REVERT_AFTER,
            problem: None,
            disk_problem: None,
            cache_lasts: None,
            acked_entries: 0,
            interference: None,
            shown: BTreeSet::new(),
            aside: Aside::default(),
            produced_bytes: 0,
            reports: Arc::default(),
            hang: None,
            migration: Migration::default(),
        };
        // When the last stop left nothing unsaid the sources go on at once, else when the server has
        // spoken.
        if !shipper.identity.state.behind && shipper.identity.state.token.is_none() {
            shipper.start_sources();
        }
        Ok(shipper)
    }

    /// What is written down of this agent.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.identity.state
    }

    /// The credential of the next attempt to connect.
    #[must_use]
    pub fn credential(&self) -> &Secret<32> {
        let state = &self.identity.state;
        match &state.recovery {
            Some(recovery) if self.unknown >= UNKNOWN_MAX => recovery,
            _ => &state.credential,
        }
    }

    /// The credential agreed in this connection, not yet ours before the server's first record.
    #[must_use]
    pub fn next_credential(&self) -> Option<&Secret<32>> {
        Some(&self.link.as_ref()?.next_credential)
    }

    /// Sets what the spool may use.
    pub fn set_limits(&mut self, limits: Limits) {
        self.spool.set_limits(limits);
    }

    /// What waits.
    #[must_use]
    pub fn fill(&self) -> Fill {
        self.spool.fill()
    }

    /// Whether batches flow.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.ready_since.is_some())
    }

    /// Shook hands.
    pub fn handle_connected(&mut self, established: Established, now: Instant) {
        self.link = Some(Link {
            next_credential: established.next_psk.clone(),
            recovery: established.recovery_psk.clone(),
            session: AgentSession::new(established, now),
            first: Some(Vec::new()),
            stated: BTreeMap::new(),
            unknown: 0,
            opened: BTreeSet::new(),
            in_flight: VecDeque::new(),
            ready_since: None,
            is_rolled: true,
            told: None,
        });
    }

    /// The connection is gone, or was refused before it was one: what was in flight is sent again by
    /// the next session.
    pub fn handle_disconnected(&mut self, error: &anyhow::Error) {
        // A refusal is a hint, anybody on the way can make one, and it changes nothing that is written
        // down: after a few in a row one attempt shows the recovery credential, then it begins anew.
        if let Some(refused) = error.downcast_ref::<Refused>() {
            let counts = refused.code == RefusalCode::Credential
                && self.unknown < UNKNOWN_MAX
                && self.identity.state.token.is_none();
            self.unknown = if counts { self.unknown + 1 } else { 0 };
        }
        self.problem = Some(format!("{error:#}"));
        self.probe_disk();
        self.link = None;
        self.spool.restart();
    }

    /// Takes received bytes.
    ///
    /// # Errors
    /// The connection is over, by a refusal, by the protocol, or because the disk did not take what
    /// must be durable.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) -> Result<()> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        if let Some(first) = &mut link.first {
            first.extend_from_slice(bytes);
            if let Some(refusal) = refusal_of(first) {
                return Err(Refused::new(refusal).into());
            }
        }
        if let Err(error) = link.session.handle_bytes(bytes, now) {
            if let Some(seen) = link.session.interference() {
                self.interference = Some(format!("on the way from the server, {seen}"));
            }
            return Err(error.into());
        }
        self.handle_events(now)
    }

    /// Acts on every deadline that `now` has reached; `time_us` is the clock told to the server.
    ///
    /// # Errors
    /// The connection is over.
    pub fn handle_timeout(&mut self, now: Instant, time_us: u64) -> Result<()> {
        let is_due = |link: &Link| link.session.is_keep_alive_due(now);
        if self.link.as_ref().is_some_and(is_due) {
            self.probe_disk();
            self.store_credential(now)?;
            self.send_keep_alive(now, time_us)?;
        }
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        link.session.handle_timeout(now);
        self.handle_events(now)
    }

    fn send_keep_alive(&mut self, now: Instant, time_us: u64) -> Result<()> {
        if let Some(link) = &mut self.link {
            let fill = self.spool.fill();
            let mut marks = Vec::new();
            while marks.len() < MARKS_MAX
                && let Some(stream) = self.moved.pop_first()
            {
                marks.extend(self.positions.get(&stream).map(|at| (stream, at.next)));
            }
            let state = KeepAlive {
                time_us,
                backlog_entries: fill.entries,
                backlog_bytes: fill.bytes,
                oldest_us: fill.oldest_us,
                disk_bytes: fill.disk_bytes,
                disk_bytes_max: fill.disk_bytes_max,
                cache_lasts_s: self.cache_lasts.map_or(0, |lasts| lasts.as_secs()),
                marks,
                problem: match (
                    self.disk_problem.as_ref().or(self.hang.as_ref()),
                    &self.interference,
                ) {
                    (Some(problem), _) => problem.clone(),
                    (None, Some(seen)) => format!("{INTERFERENCE}{seen}"),
                    (None, None) => self.aside.problem().unwrap_or_default(),
                },
                sources: (link.told.as_ref() != Some(&self.reports))
                    .then(|| (*self.reports).clone()),
            };
            link.told = Some(self.reports.clone());
            if self.disk_problem.is_none() && self.hang.is_none() {
                self.interference = None;
            }
            link.session.send_keep_alive(state, now)?;
        }
        Ok(())
    }

    /// When a deadline is due, while there is a connection.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        Some(self.link.as_ref()?.session.poll_timeout())
    }

    /// Returns the next bytes to write.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.link.as_mut()?.session.poll_transmit()
    }

    /// Returns what the sources are to do next.
    pub fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    fn handle_events(&mut self, now: Instant) -> Result<()> {
        while let Some(event) = self
            .link
            .as_mut()
            .and_then(|link| link.session.poll_event())
        {
            self.handle_event(event, now)?;
        }
        Ok(())
    }

    fn handle_event(&mut self, event: AgentEvent, now: Instant) -> Result<()> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        let state = &mut self.identity.state;
        match event {
            AgentEvent::CredentialRolled => {
                link.first = None;
                if state.token.is_some() {
                    state.credential = link.next_credential.clone();
                } else {
                    link.is_rolled = false;
                    self.unknown = 0;
                    self.store_credential(now)?;
                }
            }
            AgentEvent::Enrolled { agent } => {
                state.agent = agent;
                state.token = None;
                state.recovery = Some(link.recovery.clone());
                // It may take the place of an agent whose state is lost: should we die now, nothing is read before the
                // server has said where it stands.
                state.behind = true;
                self.identity.save()?;
                fault::point("agent: enrolment durable");
                link.session.send_credential_stored(now)?;
                info!(%agent, "enrolled");
            }
            AgentEvent::StateKey(_) => {
                anyhow::bail!("the server gave a key that nobody asked for");
            }
            AgentEvent::StreamState { stream, position } => {
                if !self.positions.contains_key(&stream) && !link.stated.contains_key(&stream) {
                    link.unknown += 1;
                }
                anyhow::ensure!(
                    position.next.0 <= SEQUENCE_MAX,
                    "the server states where no stream can stand"
                );
                anyhow::ensure!(
                    self.positions.len() + link.unknown <= STREAMS_MAX,
                    "the server states where more than {STREAMS_MAX} streams stand"
                );
                link.stated.insert(stream, position);
            }
            AgentEvent::Ready { restored, signing } => {
                self.handle_ready(restored, &signing, now)?;
            }
            AgentEvent::Configuration(configuration) => {
                let version = configuration.version;
                // One that is accepted is answered when it is taken up.
                if let Some(reason) = self.handle_configuration(configuration, now) {
                    self.answer_configuration(version, Some(reason), now)?;
                }
            }
            AgentEvent::Acked(receipt) => {
                link.in_flight
                    .retain(|(stream, next, _)| *stream != receipt.stream || *next > receipt.next);
                let before = self.spool.entries();
                self.spool.ack(receipt.stream, receipt.next);
                self.acked_entries += before - self.spool.entries();
                self.aside.acked(receipt.stream);
                state.receipts.insert(receipt.stream, receipt);
                self.remove_acked();
            }
            AgentEvent::Closed { reason } => {
                if let Some((_, limit)) = refused_stream(&reason) {
                    self.aside.refuse(limit, now);
                    let aside = &mut self.aside;
                    self.spool.give_up(|stream, name, entries| {
                        let is_aside = aside.has(stream);
                        if is_aside {
                            aside.give_up(name.kind, &name.name, entries);
                        }
                        is_aside
                    });
                    self.remove_acked();
                }
                anyhow::bail!("the server ended the session: {reason}")
            }
            AgentEvent::PeerSilent => anyhow::bail!("the server was silent for two keep-alives"),
        }
        Ok(())
    }

    /// The server has stated where every stream stands: goes on exactly there.
    fn handle_ready(&mut self, restored: bool, signing: &VerifyingKey, now: Instant) -> Result<()> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        let mut stated = core::mem::take(&mut link.stated);
        self.aside.stated(stated.keys().copied(), now);
        link.ready_since = Some(now);
        self.problem = None;
        self.spool.restart();
        let state = &mut self.identity.state;
        let mut must_save = state.server_signing.is_none();
        state
            .server_signing
            .get_or_insert_with(|| signing.to_bytes());
        // What the server has, in its own words; its receipts are compared with that.
        let mut said = None;
        if restored || is_rolled_back(state, &stated) {
            said = Some(stated.clone());
            warn!(
                "this agent's state was restored from a copy: a new epoch begins where the server stands"
            );
            state.epoch = Epoch(random()?);
            state.behind = true;
            for (stream, position) in &mut stated {
                let start = StreamPosition::start(state.agent, *stream, state.epoch);
                position.epoch = start.epoch;
                position.next = start.next;
                position.head = start.head;
            }
            must_save = true;
        }
        if must_save {
            self.identity.save()?;
        }
        let (agent, epoch) = (self.identity.state.agent, self.identity.state.epoch);
        let known: BTreeSet<StreamId> = self
            .positions
            .keys()
            .chain(stated.keys())
            .copied()
            .collect();
        for stream in known {
            let server = stated.get(&stream);
            let reached = match &said {
                None => self.spool.reconcile((agent, epoch), stream, server)?,
                Some(said) => {
                    let said = said.get(&stream);
                    self.spool
                        .carry_over((agent, epoch), stream, said, server)?
                }
            };
            let ours = self.positions.get(&stream);
            let agrees =
                ours.is_some_and(|ours| ours.next == reached.next && ours.head == reached.head);
            if agrees {
                continue;
            }
            let lost = ours.is_some_and(|ours| is_before(&reached, ours));
            if self.has_sources {
                self.rewind(stream, reached.clone(), lost);
            } else if lost {
                self.lost.insert(stream);
            }
            self.positions.insert(stream, reached);
        }
        self.remove_acked();
        self.tell_in_force(now)?;
        self.show_receipts(said.as_ref().unwrap_or(&stated), now)?;
        info!(
            "connected; the server has stated where {} streams stand",
            stated.len()
        );
        if !self.has_sources {
            self.start_sources();
        }
        Ok(())
    }

    /// Shows the server its own receipts for entries that it does not have any more.
    fn show_receipts(
        &mut self,
        stated: &BTreeMap<StreamId, StreamPosition>,
        now: Instant,
    ) -> Result<()> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        let receipts = self.identity.state.receipts.values();
        let lost = receipts.filter(|receipt| match stated.get(&receipt.stream) {
            Some(position) => position.epoch == receipt.epoch && position.next < receipt.next,
            None => true,
        });
        for receipt in lost.take(RECEIPTS_MAX) {
            if self.shown.insert((receipt.stream, receipt.next)) {
                warn!(
                    stream = %receipt.stream,
                    next = receipt.next.0,
                    "the server acknowledged entries that it does not have any more"
                );
                link.session.send_receipt(receipt.clone(), now)?;
            }
        }
        Ok(())
    }

    /// Lets the source of a stream go on at `position`.
    fn rewind(&mut self, stream: StreamId, position: StreamPosition, lost: bool) {
        let rewinds = self.rewinds.entry(stream).or_default();
        *rewinds += 1;
        self.orders.push_back(Order::Rewind {
            stream,
            position,
            rewinds: *rewinds,
            lost,
        });
    }

    fn start_sources(&mut self) {
        self.has_sources = true;
        self.orders.push_back(Order::Start {
            positions: self.positions.clone(),
            lost: core::mem::take(&mut self.lost),
        });
    }

    /// Whether another batch can be taken; spills for it when it must and may.
    pub fn has_room(&mut self) -> bool {
        if self.spool.has_ram() {
            return true;
        }
        if self.disk_problem.is_some() {
            return false;
        }
        // While the link is up, files wait: they are their own buffer, and the disk is spared; but what
        // waits behind a backlog on the disk must not keep other streams out of RAM.
        let spilled = if self.is_ready() {
            if !self.spool.has_backlog_in_ram() || !self.spool.has_disk() {
                return false;
            }
            // What is sent from there was not yet known when positions were written down last.
            self.identity
                .note_behind()
                .and_then(|()| self.spool.spill_backlog())
        } else if self.spool.has_disk() {
            self.spill()
        } else {
            return false;
        };
        self.note_disk(spilled) && self.spool.has_ram()
    }

    /// Moves RAM to the disk, and writes down that the disk knows everything.
    ///
    /// # Errors
    /// The disk does not take it; RAM still holds what it held.
    pub fn spill(&mut self) -> Result<()> {
        self.spool.spill()?;
        fault::point("agent: spilled");
        // At this point the segments are durable; if we die now, `behind` makes us ask the server first.
        self.identity.state.behind = false;
        self.identity.state.positions.clone_from(&self.positions);
        self.identity.save()?;
        fault::point("agent: positions durable");
        Ok(())
    }

    /// Whether sources were started: else nothing is known that was not known at the last stop.
    #[must_use]
    pub fn has_sources(&self) -> bool {
        self.has_sources
    }

    /// Takes a batch from the sources.
    pub fn take(&mut self, produced: Produced) {
        let Produced {
            name,
            rewinds,
            mut batch,
        } = produced;
        let stream = batch.header.stream;
        if rewinds != self.rewinds.get(&stream).copied().unwrap_or(0) {
            // Made before the stream was rewound.
            let Some(position) = self.positions.get(&stream) else {
                return;
            };
            if name.kind.can_be_read_again() {
                return;
            }
            let signing = SigningKey::from_bytes(self.identity.state.signing.expose());
            batch.header.relink(position, &signing);
            // What the source makes from now on must follow it.
            let after = batch.header.position_after();
            self.rewind(stream, after, false);
        }
        self.positions.insert(stream, batch.header.position_after());
        if self.aside.has(stream) {
            self.aside
                .give_up(name.kind, &name.name, batch.header.count);
            return;
        }
        self.moved.insert(stream);
        self.produced_bytes += batch.body.len() as u64;
        self.spool.add(&name, &batch);
    }

    /// Sends one batch if the session takes one: of the live lane first. Returns whether it did.
    ///
    /// # Errors
    /// The connection is over.
    pub fn send_next(&mut self, now: Instant) -> Result<bool> {
        let Some(link) = self.link.as_mut().filter(|link| link.ready_since.is_some()) else {
            return Ok(false);
        };
        if link.session.is_renewal_due(now) {
            let ephemeral = KeyPair::from_secret(&Secret::new(random()?));
            link.session.renew(ephemeral, now)?;
        }
        if link.is_behind(now) {
            return Ok(false);
        }
        for lane in [Lane::Live, Lane::Backlog] {
            let Some(next) = self.spool.peek(lane)? else {
                continue;
            };
            if !link.session.has_window(lane, next.encoded.len()) {
                continue;
            }
            if next.is_in_ram {
                let noted = self.identity.note_behind();
                if noted.is_err() {
                    // Unsent: after a crash we would not know that the server knows more.
                    return Ok(self.note_disk(noted));
                }
            }
            let (stream, reached) = (next.header.stream, next.header.next());
            if link.opened.insert(stream) {
                link.session
                    .send_stream_open(stream, next.name.kind, &next.name.name, now)?;
            }
            let sent = link
                .session
                .send_batch(lane, &next.header, next.encoded, now)?;
            if sent.is_ok() {
                link.in_flight.push_back((stream, reached, now));
                self.spool.advance(lane);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Ends the session on purpose; returns the last bytes to write.
    pub fn close(&mut self, reason: &str, now: Instant) -> Option<Vec<u8>> {
        let link = self.link.as_mut()?;
        link.session.send_close(reason, now).ok()?;
        link.session.poll_transmit()
    }
}

/// Whether `one` is earlier in the same history than `other`.
fn is_before(one: &StreamPosition, other: &StreamPosition) -> bool {
    one.epoch == other.epoch && one.next < other.next
}

/// Whether the server knows more than an agent can have sent that had said everything to its disk.
fn is_rolled_back(state: &State, stated: &BTreeMap<StreamId, StreamPosition>) -> bool {
    !state.behind
        && state.positions.iter().any(|(stream, ours)| {
            stated
                .get(stream)
                .is_some_and(|server| server.epoch == ours.epoch && server.next > ours.next)
        })
}

/// Streams that an agent remembers, its own and those the server states: twice as many as it follows files at
/// once, for those that are gone. Each costs about a kilobyte, and a server that states others in every session must not
/// fill the memory.
const STREAMS_MAX: usize = 500_000;
/// No stream has so many entries: a million a second would take 146,000 years. What follows it still has a number.
const SEQUENCE_MAX: u64 = 1 << 62;
/// Receipts shown in one session.
const RECEIPTS_MAX: usize = 1000;
/// Nothing more is sent while something is unacked for longer: a narrow link stays short.
const IN_FLIGHT_MAX: Duration = Duration::from_secs(1);
/// How long a new configuration may keep the server out of reach, unless this machine's says otherwise.
const REVERT_AFTER: Duration = Duration::from_secs(600);
/// Refusals of the rolling credential in a row before the recovery credential is shown.
const UNKNOWN_MAX: u8 = 3;

#[cfg(test)]
pub(super) mod tests {
    use ed25519_dalek::SigningKey;
    use scrinium_protocol::identity::AgentId;

    use super::*;

    #[test]
    fn the_recovery_credential_is_shown_once_after_three_unknown_ones() {
        let dir = std::env::temp_dir().join(format!("scrinium-recovery-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        let (mut shipper, _) = shipper(&dir);
        let refused = |code| anyhow::Error::from(Refused::new((code, String::new())));
        let mut shown = Vec::new();
        for _ in 0..9 {
            shown.push(*shipper.credential().expose() == [4; 32]);
            shipper.handle_disconnected(&refused(RefusalCode::Credential));
        }
        let expected = [false, false, false, true, false, false, false, true, false];
        assert_eq!(shown, expected);
        // Other refusals, and broken connections, are no reason.
        for _ in 0..9 {
            shipper.handle_disconnected(&refused(RefusalCode::Other));
            shipper.handle_disconnected(&anyhow::anyhow!("broken"));
            assert_eq!(shipper.credential().expose(), &[3; 32]);
        }
        drop(shipper);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    pub(super) fn shipper(dir: &Path) -> (Shipper, SigningKey) {
        let server = SigningKey::from_bytes(&[6; 32]);
        let key = crate::identity::prepare(dir).unwrap();
        let state = State {
            agent: AgentId([1; 16]),
            address: "localhost:720".into(),
            server_public: [0; 32],
            noise: Secret::new([1; 32]),
            signing: Secret::new([2; 32]),
            credential: Secret::new([3; 32]),
            token: None,
            recovery: Some(Secret::new([4; 32])),
            server_signing: Some(server.verifying_key().to_bytes()),
            central: None,
            trial: None,
            reverted: None,
            epoch: Epoch([5; 16]),
            behind: false,
            positions: BTreeMap::new(),
            receipts: BTreeMap::new(),
        };
        let limits = Limits {
            ram_bytes_max: 1 << 20,
            disk_bytes_max: 1 << 20,
        };
        let check = Box::new(|text: &str| {
            anyhow::ensure!(text.starts_with("fine"), "the text is bad");
            Ok(())
        });
        let identity = Identity::create(dir, &key, state).unwrap();
        let shipper = Shipper::open(dir, &key, limits, identity, check).unwrap();
        (shipper, server)
    }
}
