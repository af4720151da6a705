//! An established session: who may say what, when; acks, window and liveness.
//!
//! ```text
//! spool ─send_batch─▶ AgentSession ─poll_transmit─▶ socket ─handle_bytes─▶ ServerSession ─▶ ingest
//! spool ◀─poll_event─ AgentSession ◀─handle_bytes─ socket ◀─poll_transmit─ ServerSession ◀─ receipts
//! ```
//!
//! Sans-IO: bytes and time come in through `handle_*`, commands are verbs, and what is to be done
//! goes out through `poll_*` until `None`. After an error the session is dead: drop it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use ed25519_dalek::VerifyingKey;

use super::handshake::Established;
use super::message::{KeepAlive, Message, Ready, Receipt};
use super::record::{HEADER_LEN, RecordOpener, RecordSealer};
use crate::batch::{BatchHeader, StreamPosition};
use crate::error::{Error, PeerMisbehaved};
use crate::identity::{AgentId, Head, Sequence, StreamId, StreamKind};

/// Records in both directions, and when they passed.
#[derive(Debug)]
struct Channel {
    sealer: RecordSealer,
    opener: RecordOpener,
    /// Received and not yet opened.
    input: Vec<u8>,
    /// Sealed and not yet written.
    output: Vec<u8>,
    keep_alive: Duration,
    heard_at: Instant,
    sent_at: Instant,
    closed: bool,
}

impl Channel {
    fn new(established: Established, now: Instant) -> Self {
        Self {
            sealer: established.sealer,
            opener: established.opener,
            input: Vec::new(),
            output: Vec::new(),
            keep_alive: KEEP_ALIVE_DEFAULT,
            heard_at: now,
            sent_at: now,
            closed: false,
        }
    }

    /// Opens every whole record of `bytes` and what was left before.
    fn handle_bytes(
        &mut self,
        bytes: &[u8],
        now: Instant,
        messages: &mut Vec<Message>,
    ) -> Result<(), Error> {
        self.input.extend_from_slice(bytes);
        let mut start = 0;
        while !self.closed {
            let rest = self.input.get_mut(start..).unwrap_or_default();
            let Some((header, rest)) = rest.split_first_chunk_mut::<HEADER_LEN>() else {
                break;
            };
            let body_len = self.opener.body_len(header)?;
            let Some(body) = rest.get_mut(..body_len) else {
                self.input.reserve(body_len);
                break;
            };
            let (kind, payload) = self.opener.open(header, body)?;
            let message = Message::decode(kind, payload)?;
            start += HEADER_LEN + body_len;
            self.heard_at = now;
            self.closed = matches!(message, Message::Close { .. });
            messages.push(message);
        }
        self.input.drain(..start);
        Ok(())
    }

    fn send(&mut self, message: &Message, now: Instant) -> Result<(), Error> {
        let mut payload = Vec::new();
        message.encode_payload(&mut payload);
        self.sealer
            .seal(message.kind(), &payload, &mut self.output)?;
        self.sent_at = now;
        Ok(())
    }

    fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        (!self.output.is_empty()).then(|| core::mem::take(&mut self.output))
    }

    fn is_peer_silent(&self, now: Instant) -> bool {
        now >= self.heard_at + self.keep_alive * KEEP_ALIVES_MISSED_MAX
    }

    fn is_keep_alive_due(&self, now: Instant) -> bool {
        now >= self.sent_at + self.keep_alive
    }

    fn poll_timeout(&self) -> Instant {
        let silence = self.heard_at + self.keep_alive * KEEP_ALIVES_MISSED_MAX;
        silence.min(self.sent_at + self.keep_alive)
    }
}

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
    Ready,
    /// Everything of the stream before `receipt.next` is durable: the spool may drop it.
    Acked(Receipt),
    /// The server ended the session.
    Closed { reason: String },
    /// Nothing was heard for three keep-alives: reconnect.
    PeerSilent,
}

/// The window of unacknowledged batches is full: leave the batch in the spool.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the window of unacknowledged batches is full")]
pub struct WindowFull;

/// The agent's side.
#[derive(Debug)]
pub struct AgentSession {
    channel: Channel,
    heard: bool,
    ready: Option<(Ready, VerifyingKey)>,
    in_flight: BTreeMap<StreamId, VecDeque<InFlight>>,
    in_flight_bytes: u64,
    events: VecDeque<AgentEvent>,
    silent: bool,
}

#[derive(Debug)]
struct InFlight {
    next: Sequence,
    head: Head,
    bytes: u64,
}

impl AgentSession {
    #[must_use]
    pub fn new(established: Established, now: Instant) -> Self {
        Self {
            channel: Channel::new(established, now),
            heard: false,
            ready: None,
            in_flight: BTreeMap::new(),
            in_flight_bytes: 0,
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
    pub fn has_window(&self, len: usize) -> bool {
        let Some((ready, _)) = &self.ready else {
            return false;
        };
        self.in_flight_bytes == 0
            || self.in_flight_bytes + len as u64 <= u64::from(ready.window_bytes_max)
    }

    /// Sends one encoded batch.
    ///
    /// # Errors
    /// [`WindowFull`] inside `Ok` until acks make room; an error ends the session.
    pub fn send_batch(
        &mut self,
        header: &BatchHeader,
        encoded: Vec<u8>,
        now: Instant,
    ) -> Result<Result<(), WindowFull>, Error> {
        if !self.has_window(encoded.len()) {
            return Ok(Err(WindowFull));
        }
        let bytes = encoded.len() as u64;
        self.channel.send(&Message::Batch(encoded), now)?;
        self.in_flight_bytes += bytes;
        self.in_flight
            .entry(header.stream)
            .or_default()
            .push_back(InFlight {
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
        self.channel.send(&Message::KeepAlive(state), now)
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
            self.handle_message(message)?;
        }
        Ok(())
    }

    fn handle_message(&mut self, message: Message) -> Result<(), Error> {
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
                self.ready = Some((ready, key));
                self.events.push_back(AgentEvent::Ready);
            }
            Message::Receipt(receipt) => self.handle_receipt(receipt)?,
            Message::KeepAlive(_) => {}
            Message::Close { reason } => self.events.push_back(AgentEvent::Closed { reason }),
            Message::Enrolled { .. }
            | Message::StreamState { .. }
            | Message::Ready(_)
            | Message::CredentialStored
            | Message::StreamOpen { .. }
            | Message::Batch(_) => return Err(PeerMisbehaved::UnexpectedMessage.into()),
        }
        Ok(())
    }

    fn handle_receipt(&mut self, receipt: Receipt) -> Result<(), Error> {
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
        self.in_flight_bytes -= queue.drain(..=acked).map(|sent| sent.bytes).sum::<u64>();
        self.events.push_back(AgentEvent::Acked(receipt));
        Ok(())
    }

    /// Whether the owner must call [`AgentSession::send_keep_alive`] now.
    #[must_use]
    pub fn is_keep_alive_due(&self, now: Instant) -> bool {
        self.channel.is_keep_alive_due(now)
    }

    /// Acts on every deadline that `now` has reached.
    pub fn handle_timeout(&mut self, now: Instant) {
        if !self.silent && self.channel.is_peer_silent(now) {
            self.silent = true;
            self.events.push_back(AgentEvent::PeerSilent);
        }
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
        self.channel.poll_timeout()
    }

    /// Whether the server ended the session with an authenticated close.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.channel.closed
    }
}

/// What a server's session tells its owner.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ServerEvent {
    /// The agent holds the next credential durably: the one before may be forgotten.
    CredentialStored,
    StreamOpen {
        stream: StreamId,
        kind: StreamKind,
        name: String,
    },
    /// An encoded batch, not yet verified.
    Batch(Vec<u8>),
    KeepAlive(KeepAlive),
    Closed {
        reason: String,
    },
    PeerSilent,
}

/// The server's side.
#[derive(Debug)]
pub struct ServerSession {
    channel: Channel,
    events: VecDeque<ServerEvent>,
    silent: bool,
}

impl ServerSession {
    #[must_use]
    pub fn new(established: Established, keep_alive: Duration, now: Instant) -> Self {
        let mut channel = Channel::new(established, now);
        channel.keep_alive = keep_alive.clamp(KEEP_ALIVE_MIN, KEEP_ALIVE_MAX);
        Self {
            channel,
            events: VecDeque::new(),
            silent: false,
        }
    }

    /// Sends a message of the server.
    ///
    /// # Errors
    /// [`PeerMisbehaved::KeyExhausted`] when the session is too old.
    pub fn send(&mut self, message: &Message, now: Instant) -> Result<(), Error> {
        self.channel.send(message, now)
    }

    /// Takes received bytes.
    ///
    /// # Errors
    /// The session is over.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) -> Result<(), Error> {
        let mut messages = Vec::new();
        self.channel.handle_bytes(bytes, now, &mut messages)?;
        for message in messages {
            self.events.push_back(match message {
                Message::CredentialStored => ServerEvent::CredentialStored,
                Message::StreamOpen { stream, kind, name } => {
                    ServerEvent::StreamOpen { stream, kind, name }
                }
                Message::Batch(bytes) => ServerEvent::Batch(bytes),
                Message::KeepAlive(state) => ServerEvent::KeepAlive(state),
                Message::Close { reason } => ServerEvent::Closed { reason },
                Message::Enrolled { .. }
                | Message::StreamState { .. }
                | Message::Ready(_)
                | Message::Receipt(_) => return Err(PeerMisbehaved::UnexpectedMessage.into()),
            });
        }
        Ok(())
    }

    /// Acts on every deadline that `now` has reached; `time_us` is the clock told to the agent.
    ///
    /// # Errors
    /// [`PeerMisbehaved::KeyExhausted`] when the session is too old.
    pub fn handle_timeout(&mut self, now: Instant, time_us: u64) -> Result<(), Error> {
        if !self.silent && self.channel.is_peer_silent(now) {
            self.silent = true;
            self.events.push_back(ServerEvent::PeerSilent);
        }
        if self.channel.is_keep_alive_due(now) {
            let state = KeepAlive {
                time_us,
                ..KeepAlive::default()
            };
            self.channel.send(&Message::KeepAlive(state), now)?;
        }
        Ok(())
    }

    /// Returns the next bytes to write.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.channel.poll_transmit()
    }

    /// Returns the next event for the owner.
    pub fn poll_event(&mut self) -> Option<ServerEvent> {
        self.events.pop_front()
    }

    /// Returns when a deadline is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        self.channel.poll_timeout()
    }
}

/// Interval of keep-alives unless the server says otherwise.
pub const KEEP_ALIVE_DEFAULT: Duration = Duration::from_secs(10);
const KEEP_ALIVE_MIN: Duration = Duration::from_millis(100);
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(600);
/// A peer that missed this many keep-alives is gone.
pub const KEEP_ALIVES_MISSED_MAX: u32 = 3;

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::batch::{BatchBuilder, SealedBatch};
    use crate::codec::Codec as _;
    use crate::compress::Compressor;
    use crate::entry::{EntryFlags, EntryMeta};
    use crate::identity::Epoch;
    use crate::secret::Secret;
    use crate::sl::handshake::{
        AgentHello, AgentKeys, ExpectAgentStart, Purpose, ServerHello, start,
    };
    use crate::sl::noise::KeyPair;

    #[test]
    fn a_batch_is_acked_once_and_opens_the_window_again() {
        let mut link = Link::ready();
        let batch = batch();
        let encoded = batch.encoded();
        assert_eq!(
            link.agent
                .send_batch(&batch.header, encoded.clone(), link.now),
            Ok(Ok(()))
        );
        let second = link.agent.send_batch(&batch.header, vec![0; 900], link.now);
        assert_eq!(second, Ok(Err(WindowFull)));
        link.exchange();
        assert_eq!(link.server.poll_event(), Some(ServerEvent::Batch(encoded)));

        link.send(&Message::Receipt(receipt(&batch)));
        let event = link.agent.poll_event();
        assert_eq!(event, Some(AgentEvent::Acked(receipt(&batch))));
        assert!(link.agent.has_window(900));
    }

    #[test]
    fn a_receipt_for_what_was_never_sent_ends_the_session() {
        let mut link = Link::ready();
        link.server
            .send(&Message::Receipt(receipt(&batch())), link.now)
            .unwrap();
        let bytes = link.server.poll_transmit().unwrap();
        assert_eq!(
            link.agent.handle_bytes(&bytes, link.now),
            Err(PeerMisbehaved::AckOfUnsentBatch.into())
        );
    }

    #[test]
    fn a_forged_receipt_ends_the_session() {
        let mut link = Link::ready();
        let batch = batch();
        link.agent
            .send_batch(&batch.header, batch.encoded(), link.now)
            .unwrap()
            .unwrap();
        let mut forged = receipt(&batch);
        forged.sign(&SigningKey::from_bytes(&[66; 32]));
        link.server
            .send(&Message::Receipt(forged), link.now)
            .unwrap();
        let bytes = link.server.poll_transmit().unwrap();
        assert_eq!(
            link.agent.handle_bytes(&bytes, link.now),
            Err(PeerMisbehaved::WrongSignature.into())
        );
    }

    #[test]
    fn messages_of_the_other_side_are_refused() {
        let mut link = Link::ready();
        link.agent
            .channel
            .send(
                &Message::Enrolled {
                    agent: AgentId([1; 16]),
                },
                link.now,
            )
            .unwrap();
        let bytes = link.agent.poll_transmit().unwrap();
        assert_eq!(
            link.server.handle_bytes(&bytes, link.now),
            Err(PeerMisbehaved::UnexpectedMessage.into())
        );
    }

    #[test]
    fn silence_is_noticed_after_three_keep_alives() {
        let mut link = Link::ready();
        link.now += KEEP_ALIVE_DEFAULT * 3 - Duration::from_millis(1);
        link.agent.handle_timeout(link.now);
        assert_eq!(link.agent.poll_event(), None);
        assert!(link.agent.is_keep_alive_due(link.now));
        link.now += Duration::from_millis(1);
        link.agent.handle_timeout(link.now);
        assert_eq!(link.agent.poll_event(), Some(AgentEvent::PeerSilent));
        link.server.handle_timeout(link.now, 0).unwrap();
        assert_eq!(link.server.poll_event(), Some(ServerEvent::PeerSilent));
    }

    #[test]
    fn bytes_may_come_one_at_a_time() {
        let mut link = Link::ready();
        link.agent.send_close("done", link.now).unwrap();
        for byte in link.agent.poll_transmit().unwrap() {
            assert_eq!(link.server.poll_event(), None);
            link.server.handle_bytes(&[byte], link.now).unwrap();
        }
        let closed = ServerEvent::Closed {
            reason: "done".into(),
        };
        assert_eq!(link.server.poll_event(), Some(closed));
    }

    struct Link {
        agent: AgentSession,
        server: ServerSession,
        now: Instant,
    }

    impl Link {
        fn ready() -> Self {
            #[expect(clippy::disallowed_methods, reason = "the epoch of virtual time")]
            let now = Instant::now();
            let (agent, server) = established();
            let mut link = Self {
                agent: AgentSession::new(agent, now),
                server: ServerSession::new(server, KEEP_ALIVE_DEFAULT, now),
                now,
            };
            link.send(&Message::Ready(Ready {
                window_bytes_max: 1000,
                keep_alive_ms: 10_000,
                signing_public: server_key().verifying_key().to_bytes(),
            }));
            assert_eq!(link.agent.poll_event(), Some(AgentEvent::CredentialRolled));
            assert_eq!(link.agent.poll_event(), Some(AgentEvent::Ready));
            link
        }

        fn send(&mut self, message: &Message) {
            self.server.send(message, self.now).unwrap();
            self.exchange();
        }

        fn exchange(&mut self) {
            while let Some(bytes) = self.agent.poll_transmit() {
                self.server.handle_bytes(&bytes, self.now).unwrap();
            }
            while let Some(bytes) = self.server.poll_transmit() {
                self.agent.handle_bytes(&bytes, self.now).unwrap();
            }
        }
    }

    fn established() -> (Established, Established) {
        let pair = |seed| KeyPair::from_secret(&Secret::new([seed; 32]));
        let keys = AgentKeys {
            static_keys: pair(1),
            ephemeral: pair(2),
            server_public: *pair(3).public(),
            psk: Secret::new([5; 32]),
        };
        let (sent, agent) = start(keys, "", Purpose::Connect).unwrap();
        let server = ExpectAgentStart::new(&sent[..5], pair(3), pair(4));
        let (_, server) = server.handle(&sent[8..]).unwrap();
        let (sent, server) = server.answer(&ServerHello::Welcome { time_us: 0 }).unwrap();
        let (_, agent) = agent.handle(&sent[3..]).unwrap();
        let (sent, agent) = agent.finish(&AgentHello::default()).unwrap();
        let (_, _, server) = server.handle(&sent[3..], &[Secret::new([5; 32])]).unwrap();
        (agent, server)
    }

    fn batch() -> SealedBatch {
        let mut builder = BatchBuilder::new();
        builder.push(
            b"line\n",
            EntryMeta {
                time_us: 1,
                flags: EntryFlags::NONE,
            },
        );
        let stream = StreamId([2; 16]);
        let position = StreamPosition::start(AgentId([1; 16]), stream, Epoch([3; 16]));
        let key = SigningKey::from_bytes(&[5; 32]);
        builder
            .seal(stream, &position, Vec::new(), &key, &mut Compressor::new(1))
            .0
    }

    fn receipt(batch: &SealedBatch) -> Receipt {
        let mut receipt = Receipt {
            stream: batch.header.stream,
            epoch: batch.header.epoch,
            next: batch.header.next(),
            head: batch.header.head(),
            log: 1,
            offset: 2,
            signature: [0; 64],
        };
        receipt.sign(&server_key());
        receipt
    }

    fn server_key() -> SigningKey {
        SigningKey::from_bytes(&[6; 32])
    }
}
