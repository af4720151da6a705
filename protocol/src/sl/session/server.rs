//! The server's side: states, takes batches, sends receipts.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::{KEEP_ALIVE_MAX, KEEP_ALIVE_MIN};
use crate::error::{Error, PeerMisbehaved};
use crate::identity::{StreamId, StreamKind};
use crate::sl::handshake::Established;
use crate::sl::message::{ConfigurationAnswer, KeepAlive, Message, Receipt};
use crate::sl::noise::KeyPair;
use crate::sl::record::Interference;

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
    /// The agent holds a receipt for more than it was told; not yet verified.
    Receipt(Receipt),
    /// What became of a configuration.
    ConfigurationAnswer(ConfigurationAnswer),
    /// The agent asks for new keys: the owner draws one and calls [`ServerSession::renew`].
    RenewalAsked,
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
                Message::Receipt(receipt) => ServerEvent::Receipt(receipt),
                Message::ConfigurationAnswer(answer) => ServerEvent::ConfigurationAnswer(answer),
                Message::Close { reason } => ServerEvent::Closed { reason },
                Message::Enrolled { .. }
                | Message::StreamState { .. }
                | Message::Ready(_)
                | Message::Configuration(_)
                | Message::StateKey(_)
                | Message::Renewal(_)
                | Message::Renewed => return Err(PeerMisbehaved::UnexpectedMessage.into()),
            });
        }
        if self.channel.is_renewal_asked() {
            self.events.push_back(ServerEvent::RenewalAsked);
        }
        Ok(())
    }

    /// Answers the agent's wish for new keys with an ephemeral key drawn for it.
    ///
    /// # Errors
    /// The agent's message was not made by who holds the secret of this session.
    pub fn renew(&mut self, ephemeral: KeyPair, now: Instant) -> Result<(), Error> {
        self.channel.answer_renewal(ephemeral, now)
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

    /// What somebody on the way did, when that ended the session.
    #[must_use]
    pub fn interference(&self) -> Option<Interference> {
        self.channel.interference
    }

    /// The owner did not listen until `now`: the agent may have said that it is there all the while.
    pub fn defer_silence(&mut self, now: Instant) {
        self.channel.defer_silence(now);
    }

    /// Whether there is a next event for the owner.
    #[must_use]
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
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
