//! A connection after its handshake: what comes in, what time demands, and how it ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use scrinium_protocol::batch::StreamPosition;
use scrinium_protocol::identity::{Sequence, StreamId};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::{Established, RefusalCode, refusal_of};
use scrinium_protocol::sl::message::{
    DISK, HANG, INTERFERENCE, KeepAlive, MARKS_MAX, refused_stream,
};
use scrinium_protocol::sl::session::{AgentEvent, AgentSession};
use scrinium_protocol::sl::sources::SourceReports;
use scrinium_segment::fault;
use tracing::info;

use super::{Refused, Shipper, UNKNOWN_MAX};

/// A connection after its handshake.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) session: AgentSession,
    pub(super) next_credential: Secret<32>,
    pub(super) recovery: Secret<32>,
    /// Bytes before the first record, in case they are a refusal.
    pub(super) first: Option<Vec<u8>>,
    pub(super) stated: BTreeMap<StreamId, StreamPosition>,
    /// How many of them are of no stream that we know.
    pub(super) unknown: usize,
    pub(super) opened: BTreeSet<StreamId>,
    /// What is sent and not acked, in the order it was sent.
    pub(super) in_flight: VecDeque<(StreamId, Sequence, Instant)>,
    /// Since when batches flow.
    pub(super) ready_since: Option<Instant>,
    /// The next credential is durably ours.
    pub(super) is_rolled: bool,
    /// How the sources did when that was told last.
    pub(super) told: Option<Arc<SourceReports>>,
}

impl Link {
    /// Whether the link is busy with what it has: more would only delay what is newer.
    pub(super) fn is_behind(&self, now: Instant) -> bool {
        let oldest = self.in_flight.front();
        oldest.is_some_and(|(.., sent_at)| now.duration_since(*sent_at) > IN_FLIGHT_MAX)
    }
}

impl Shipper {
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

    pub(super) fn send_keep_alive(&mut self, now: Instant, time_us: u64) -> Result<()> {
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
                problem: match (&self.disk_problem, &self.hung_at, &self.interference) {
                    (Some(error), ..) => format!("{DISK}{error}"),
                    (None, Some(path), _) => format!("{HANG}{path}"),
                    (None, None, Some(seen)) => format!("{INTERFERENCE}{seen}"),
                    (None, None, None) => self.aside.problem().unwrap_or_default(),
                },
                sources: (link.told.as_ref() != Some(&self.reports))
                    .then(|| (*self.reports).clone()),
            };
            link.told = Some(self.reports.clone());
            if self.disk_problem.is_none() && self.hung_at.is_none() {
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

    pub(super) fn handle_events(&mut self, now: Instant) -> Result<()> {
        while let Some(event) = self
            .link
            .as_mut()
            .and_then(|link| link.session.poll_event())
        {
            self.handle_event(event, now)?;
        }
        Ok(())
    }

    pub(super) fn handle_event(&mut self, event: AgentEvent, now: Instant) -> Result<()> {
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

    /// Ends the session on purpose; returns the last bytes to write.
    pub fn close(&mut self, reason: &str, now: Instant) -> Option<Vec<u8>> {
        let link = self.link.as_mut()?;
        link.session.send_close(reason, now).ok()?;
        link.session.poll_transmit()
    }
}

/// Nothing more is sent while something is unacked for longer: a narrow link stays short.
const IN_FLIGHT_MAX: Duration = Duration::from_secs(1);
/// Streams that an agent remembers, its own and those the server states: twice as many as it follows files at
/// once, for those that are gone. Each costs about a kilobyte, and a server that states others in every session must not
/// fill the memory.
const STREAMS_MAX: usize = 500_000;
/// No stream has so many entries: a million a second would take 146,000 years. What follows it still has a number.
const SEQUENCE_MAX: u64 = 1 << 62;
