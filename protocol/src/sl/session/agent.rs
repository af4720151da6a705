//! The agent's side: sends batches within the window, takes statements and receipts.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use ed25519_dalek::VerifyingKey;

use super::channel::Channel;
use super::credits::Credits;
use super::{KEEP_ALIVE_MAX, KEEP_ALIVE_MIN};
use crate::batch::{BatchHeader, StreamPosition};
use crate::error::{Error, PeerMisbehaved};
use crate::identity::{AgentId, Head, Sequence, StreamId, StreamKind};
use crate::secret::Secret;
use crate::sl::handshake::Established;
use crate::sl::message::{
    Configuration, ConfigurationAnswer, KeepAlive, Lane, Message, Ready, Receipt,
};
use crate::sl::noise::KeyPair;
use crate::sl::record::Interference;

/// What an agent's session tells its owner.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AgentEvent {
    /// The first record of the server was opened: it holds the next credential durably.
    CredentialRolled,
    /// The server accepted the token and named this agent.
    Enrolled { agent: AgentId },
    /// Where the archive stands for one stream.
    StreamState {
        stream: StreamId,
        position: StreamPosition,
    },
    /// Every stream was stated; batches may be sent.
    Ready {
        /// The agent's state is known to be a restored copy: begin a new epoch.
        restored: bool,
        /// Ed25519 key that signs receipts and configurations.
        signing: VerifyingKey,
    },
    /// The administrator's wishes; not yet verified.
    Configuration(Configuration),
    /// The key of the state that was asked for.
    StateKey(Secret<32>),
    /// Everything of the stream before `receipt.next` is durable: the spool may drop it.
    Acked(Receipt),
    /// The server ended the session.
    Closed { reason: String },
    /// Nothing was heard for two keep-alives: reconnect.
    PeerSilent,
}

/// The window of unacknowledged batches is full: leave the batch in the spool.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the window of unacknowledged batches is full")]
pub struct WindowFull;

/// The agent's side.
#[derive(Debug)]
pub struct AgentSession {
    pub(super) channel: Channel,
    heard: bool,
    ready: Option<(Ready, VerifyingKey)>,
    in_flight: BTreeMap<StreamId, VecDeque<InFlight>>,
    live: Credits,
    backlog: Credits,
    events: VecDeque<AgentEvent>,
    silent: bool,
    /// When the state of the queues is to be told next: whatever else is sent says nothing of it.
    state_due: Instant,
}

#[derive(Debug)]
struct InFlight {
    lane: Lane,
    sent_at: Instant,
    next: Sequence,
    head: Head,
    bytes: u64,
}

impl AgentSession {
    #[must_use]
    pub fn new(established: Established, now: Instant) -> Self {
        let channel = Channel::new(established, now);
        Self {
            state_due: now + channel.keep_alive,
            channel,
            heard: false,
            ready: None,
            in_flight: BTreeMap::new(),
            live: Credits::default(),
            backlog: Credits::default(),
            events: VecDeque::new(),
            silent: false,
        }
    }

    /// Says that the next credential is durable on this side.
    ///
    /// # Errors
    /// [`PeerMisbehaved::KeyExhausted`] when the session is too old.
    pub fn send_credential_stored(&mut self, now: Instant) -> Result<(), Error> {
        self.channel.send(&Message::CredentialStored, now)
    }

    /// Names a stream before its first batch of this session.
    ///
    /// # Errors
    /// [`PeerMisbehaved::KeyExhausted`] when the session is too old.
    pub fn send_stream_open(
        &mut self,
        stream: StreamId,
        kind: StreamKind,
        name: &str,
        now: Instant,
    ) -> Result<(), Error> {
        let name = name.to_owned();
        self.channel
            .send(&Message::StreamOpen { stream, kind, name }, now)
    }

    /// Whether [`AgentSession::send_batch`] would take a batch of `len` encoded bytes.
    #[must_use]
    pub fn has_window(&self, lane: Lane, len: usize) -> bool {
        self.ready.is_some() && self.credits(lane).take(len as u64)
    }

    fn credits(&self, lane: Lane) -> &Credits {
        match lane {
            Lane::Live => &self.live,
            Lane::Backlog => &self.backlog,
        }
    }

    fn credits_mut(&mut self, lane: Lane) -> &mut Credits {
        match lane {
            Lane::Live => &mut self.live,
            Lane::Backlog => &mut self.backlog,
        }
    }

    /// Sends one encoded batch in `lane`.
    ///
    /// # Errors
    /// [`WindowFull`] inside `Ok` until acks make room; an error ends the session.
    pub fn send_batch(
        &mut self,
        lane: Lane,
        header: &BatchHeader,
        encoded: Vec<u8>,
        now: Instant,
    ) -> Result<Result<(), WindowFull>, Error> {
        if !self.has_window(lane, encoded.len()) {
            return Ok(Err(WindowFull));
        }
        let bytes = encoded.len() as u64;
        self.channel.send(&Message::Batch(encoded), now)?;
        self.credits_mut(lane).sent(bytes);
        self.in_flight
            .entry(header.stream)
            .or_default()
            .push_back(InFlight {
                lane,
                sent_at: now,
                next: header.next(),
                head: header.head(),
                bytes,
            });
        Ok(Ok(()))
    }

    /// Sends a keep-alive with the state of the queues.
    ///
    /// # Errors
    /// [`PeerMisbehaved::KeyExhausted`] when the session is too old.
    pub fn send_keep_alive(&mut self, state: KeepAlive, now: Instant) -> Result<(), Error> {
        self.state_due = now + self.channel.keep_alive;
        self.channel.send(&Message::KeepAlive(state), now)
    }

    /// Whether the owner must draw an ephemeral key and call [`AgentSession::renew`] now.
    #[must_use]
    pub fn is_renewal_due(&self, now: Instant) -> bool {
        self.ready.is_some() && self.channel.is_renewal_due(now)
    }

    /// Asks for new keys; what is sent meanwhile goes on under the old ones.
    ///
    /// # Errors
    /// [`PeerMisbehaved::KeyExhausted`] when the session is too old.
    pub fn renew(&mut self, ephemeral: KeyPair, now: Instant) -> Result<(), Error> {
        self.channel.ask_renewal(ephemeral, now)
    }

    /// Says what became of a configuration.
    ///
    /// # Errors
    /// [`PeerMisbehaved::KeyExhausted`] when the session is too old.
    pub fn send_configuration_answer(
        &mut self,
        answer: ConfigurationAnswer,
        now: Instant,
    ) -> Result<(), Error> {
        let message = Message::ConfigurationAnswer(answer);
        self.channel.send(&message, now)
    }

    /// Ends the session; what is in flight stays in the spool.
    ///
    /// # Errors
    /// [`PeerMisbehaved::KeyExhausted`] when the session is too old.
    pub fn send_close(&mut self, reason: &str, now: Instant) -> Result<(), Error> {
        let reason = reason.to_owned();
        self.channel.send(&Message::Close { reason }, now)
    }

    /// Takes received bytes.
    ///
    /// # Errors
    /// The session is over; reconnect.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) -> Result<(), Error> {
        let mut messages = Vec::new();
        self.channel.handle_bytes(bytes, now, &mut messages)?;
        for message in messages {
            if !self.heard {
                self.heard = true;
                self.events.push_back(AgentEvent::CredentialRolled);
            }
            self.handle_message(message, now)?;
        }
        Ok(())
    }

    fn handle_message(&mut self, message: Message, now: Instant) -> Result<(), Error> {
        match message {
            Message::Enrolled { agent } if self.ready.is_none() => {
                self.events.push_back(AgentEvent::Enrolled { agent });
            }
            Message::StreamState { stream, position } if self.ready.is_none() => {
                self.events
                    .push_back(AgentEvent::StreamState { stream, position });
            }
            Message::Ready(ready) if self.ready.is_none() => {
                let key = VerifyingKey::from_bytes(&ready.signing_public)
                    .map_err(|_| PeerMisbehaved::LowOrderKey)?;
                let interval = u64::from(ready.keep_alive_ms);
                self.channel.keep_alive =
                    Duration::from_millis(interval).clamp(KEEP_ALIVE_MIN, KEEP_ALIVE_MAX);
                // The first state of a session goes out at once: the clock, and what waits.
                self.state_due = now;
                self.live = Credits::new(ready.live_bytes_max);
                self.backlog = Credits::new(ready.backlog_bytes_max);
                self.events.push_back(AgentEvent::Ready {
                    restored: ready.restored,
                    signing: key,
                });
                self.ready = Some((ready, key));
            }
            Message::Receipt(receipt) => self.handle_receipt(receipt, now)?,
            Message::Configuration(configuration) if self.ready.is_some() => {
                self.events
                    .push_back(AgentEvent::Configuration(configuration));
            }
            Message::StateKey(key) if self.ready.is_none() => {
                self.events.push_back(AgentEvent::StateKey(key));
            }
            Message::KeepAlive(_) => {}
            Message::Close { reason } => self.events.push_back(AgentEvent::Closed { reason }),
            Message::Enrolled { .. }
            | Message::StreamState { .. }
            | Message::Ready(_)
            | Message::CredentialStored
            | Message::StreamOpen { .. }
            | Message::Batch(_)
            | Message::Renewal(_)
            | Message::Renewed
            | Message::Configuration(_)
            | Message::ConfigurationAnswer(_)
            | Message::StateKey(_) => {
                return Err(PeerMisbehaved::UnexpectedMessage.into());
            }
        }
        Ok(())
    }

    /// Shows the server a receipt of its own for more than it stated.
    ///
    /// # Errors
    /// [`PeerMisbehaved::KeyExhausted`] when the session is too old.
    pub fn send_receipt(&mut self, receipt: Receipt, now: Instant) -> Result<(), Error> {
        self.channel.send(&Message::Receipt(receipt), now)
    }

    fn handle_receipt(&mut self, receipt: Receipt, now: Instant) -> Result<(), Error> {
        let Some((_, key)) = &self.ready else {
            return Err(PeerMisbehaved::UnexpectedMessage.into());
        };
        receipt.verify(key)?;
        let queue = self.in_flight.get_mut(&receipt.stream);
        let queue = queue.ok_or(PeerMisbehaved::AckOfUnsentBatch)?;
        let acked = queue
            .iter()
            .position(|sent| sent.next == receipt.next && sent.head == receipt.head)
            .ok_or(PeerMisbehaved::AckOfUnsentBatch)?;
        let acked: Vec<InFlight> = queue.drain(..=acked).collect();
        if queue.is_empty() {
            // Of a hundred thousand streams few have something to say.
            self.in_flight.remove(&receipt.stream);
        }
        for sent in acked {
            let InFlight {
                lane,
                sent_at,
                bytes,
                ..
            } = sent;
            self.credits_mut(lane).acked(bytes, sent_at, now);
        }
        self.events.push_back(AgentEvent::Acked(receipt));
        Ok(())
    }

    /// How often each side says that it is there.
    #[must_use]
    pub fn keep_alive(&self) -> Duration {
        self.channel.keep_alive
    }

    /// Whether the owner must call [`AgentSession::send_keep_alive`] now: at the start, and then every interval,
    /// however much else is sent.
    #[must_use]
    pub fn is_keep_alive_due(&self, now: Instant) -> bool {
        now >= self.state_due
    }

    /// Acts on every deadline that `now` has reached.
    pub fn handle_timeout(&mut self, now: Instant) {
        if !self.silent && self.channel.is_peer_silent(now) {
            self.silent = true;
            self.events.push_back(AgentEvent::PeerSilent);
        }
    }

    /// What somebody on the way did, when that ended the session.
    #[must_use]
    pub fn interference(&self) -> Option<Interference> {
        self.channel.interference
    }

    /// Returns the next bytes to write.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.channel.poll_transmit()
    }

    /// Returns the next event for the owner.
    pub fn poll_event(&mut self) -> Option<AgentEvent> {
        self.events.pop_front()
    }

    /// Returns when a deadline is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        self.channel.silent_at().min(self.state_due)
    }

    /// Whether the server ended the session with an authenticated close.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.channel.closed
    }
}
