//! New keys inside the channel, so that a key that leaked stops to be worth anything.
//!
//! ```text
//! agent  renewal { psk, e }     old keys │ goes on sending under the old ones │ renewed  old │ new …
//! server                                 │ renewal { e, ee }  old keys │ new keys …
//! ```
//!
//! A `NNpsk0` handshake whose messages are records: prologue is the hash of the handshake before and
//! the number of the record that asks, psk a secret of the handshake before that no record used.
//! Neither side waits: each direction changes keys behind one record of its own.

use std::time::{Duration, Instant};

use crate::error::{Error, PeerMisbehaved};
use crate::secret::Secret;
use crate::sl::handshake::Established;
use crate::sl::message::Message;
use crate::sl::noise::{HandshakeState, KeyPair, Pattern, Role};
use crate::sl::record::{RecordOpener, RecordSealer};
use crate::sl::suite::Suite;

/// Where a renewal stands.
#[derive(Debug)]
pub(super) struct Renewal {
    suite: Suite,
    hash: [u8; 32],
    psk: Secret<32>,
    /// When the keys in use were agreed.
    agreed_at: Instant,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Idle,
    /// Agent: waits for the server's message.
    Asked(Box<HandshakeState>),
    /// Server: the agent's message, and the number of its record.
    Asking(Vec<u8>, u64),
    /// Server: the agent's records are under these keys after its *renewed*.
    Answered(Box<RecordOpener>),
}

impl Renewal {
    pub(super) fn new(suite: Suite, hash: [u8; 32], psk: Secret<32>, now: Instant) -> Self {
        Self {
            suite,
            hash,
            psk,
            agreed_at: now,
            phase: Phase::Idle,
        }
    }

    /// When keys that carried data are due for renewal.
    pub(super) fn due_at(&self) -> Instant {
        self.agreed_at + RENEW_AFTER
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    pub(super) fn is_asked(&self) -> bool {
        matches!(self.phase, Phase::Asking(..))
    }

    /// Agent: returns the message that asks, to be sent as record `number`.
    pub(super) fn ask(&mut self, ephemeral: KeyPair, number: u64) -> Result<Message, Error> {
        let mut state = self.state(Role::Initiator, ephemeral, number);
        let message = state.write_message(&[])?;
        self.phase = Phase::Asked(Box::new(state));
        Ok(Message::Renewal(message))
    }

    /// Takes a *renewal* that came as record `number`. The agent gets its new keys and sends *renewed*
    /// under the old one; the server is to [`Renewal::answer`].
    pub(super) fn handle(
        &mut self,
        message: Vec<u8>,
        number: u64,
        now: Instant,
    ) -> Result<Option<(RecordSealer, RecordOpener)>, Error> {
        match core::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Idle => {
                self.phase = Phase::Asking(message, number);
                Ok(None)
            }
            Phase::Asked(mut state) => {
                state.read_message(&message)?;
                let keys = self.adopt(&state, Role::Initiator, now);
                Ok(Some(keys))
            }
            Phase::Asking(..) | Phase::Answered(_) => Err(PeerMisbehaved::UnexpectedMessage.into()),
        }
    }

    /// Server: answers what the agent asked. Returns the message, to be sent under the old key, and
    /// the sealer of everything after it.
    pub(super) fn answer(
        &mut self,
        ephemeral: KeyPair,
        now: Instant,
    ) -> Result<Option<(Message, RecordSealer)>, Error> {
        let Phase::Asking(asked, number) = core::mem::replace(&mut self.phase, Phase::Idle) else {
            return Ok(None);
        };
        let mut state = self.state(Role::Responder, ephemeral, number);
        state.read_message(&asked)?;
        let message = state.write_message(&[])?;
        let (sealer, opener) = self.adopt(&state, Role::Responder, now);
        self.phase = Phase::Answered(Box::new(opener));
        Ok(Some((Message::Renewal(message), sealer)))
    }

    /// Server: the agent's *renewed* came; returns the opener of everything after it.
    pub(super) fn finish(&mut self) -> Result<RecordOpener, Error> {
        match core::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Answered(opener) => Ok(*opener),
            Phase::Idle | Phase::Asked(_) | Phase::Asking(..) => {
                Err(PeerMisbehaved::UnexpectedMessage.into())
            }
        }
    }

    fn state(&self, role: Role, ephemeral: KeyPair, number: u64) -> HandshakeState {
        let mut prologue = b"SL/1 renewal".to_vec();
        prologue.extend_from_slice(&self.hash);
        prologue.extend_from_slice(&number.to_be_bytes());
        let psk = Some(self.psk.clone());
        HandshakeState::new(Pattern::NNpsk0, role, &prologue, None, ephemeral, None, psk)
    }

    fn adopt(
        &mut self,
        state: &HandshakeState,
        role: Role,
        now: Instant,
    ) -> (RecordSealer, RecordOpener) {
        let established = Established::new(state, role, self.suite);
        self.hash = established.hash;
        self.psk = established.renewal_psk;
        self.agreed_at = now;
        (established.sealer, established.opener)
    }
}

/// Keys that carry data are renewed at this age, or when they are worn.
const RENEW_AFTER: Duration = Duration::from_secs(120);
