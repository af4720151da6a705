//! The handshake: preamble, three Noise messages, the next credential.
//!
//! ```text
//! agent                                                                        server
//! preamble: "SL" | version 1 | suite (1) | hint length (1) | hint                 ──▶
//! frame 1:  e, es      { connect | enrol + token id }                             ──▶
//!                                              ◀──  frame 2:  e, ee  { time | refusal }
//! frame 3:  s, se, psk { who I am }                                               ──▶
//! records                                                                        ◀──▶
//! frame: kind (1) | length (2) | bytes
//! ```
//!
//! Each state is a type whose only method consumes it. The PSK is the rolling credential: the
//! token's secret at enrolment, afterwards what [`Established::next_psk`] was of the handshake
//! before. The preamble is the Noise prologue, so nothing in it can be altered.

use super::noise::{HandshakeState, KeyPair, Pattern, Role};
use super::record::{RecordKeys, RecordOpener, RecordSealer};
use super::suite::Suite;
use crate::codec::{Codec, Reader, put_bytes16, truncated};
use crate::error::{Error, InvalidMessage, PeerIncompatible, PeerMisbehaved};
use crate::identity::AgentId;
use crate::secret::Secret;

/// Why an agent connects.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// It is enrolled.
    Connect,
    /// It holds the token named here.
    Enrol { token: [u8; 16] },
    /// Its state does not open on its machine: it asks for the key that the server keeps, which a person must grant.
    /// A server of version 0.1.0 ends the connection.
    Ask { agent: AgentId },
}

impl Codec for Purpose {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Connect => out.push(1),
            Self::Enrol { token } => {
                out.push(2);
                out.extend_from_slice(token);
            }
            Self::Ask { agent } => {
                out.push(3);
                agent.encode(out);
            }
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        Ok(match r.u8("purpose")? {
            1 => Self::Connect,
            2 => Self::Enrol {
                token: r.array("token id")?,
            },
            3 => Self::Ask {
                agent: AgentId::read(r)?,
            },
            unknown => return Err(InvalidMessage::UnknownType(unknown)),
        })
    }
}

/// The server's answer in frame 2; only the holder of the server's key can have made it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ServerHello {
    Welcome { time_us: u64 },
    Refused { reason: String },
}

impl Codec for ServerHello {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Welcome { time_us } => {
                out.push(1);
                out.extend_from_slice(&time_us.to_be_bytes());
            }
            Self::Refused { reason } => {
                out.push(2);
                put_bytes16(out, truncated(reason, TEXT_LEN_MAX).as_bytes());
            }
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        Ok(match r.u8("server hello")? {
            1 => Self::Welcome {
                time_us: r.u64("server time")?,
            },
            2 => Self::Refused {
                reason: r.text16(TEXT_LEN_MAX, "reason")?,
            },
            unknown => return Err(InvalidMessage::UnknownType(unknown)),
        })
    }
}

/// What an agent says of itself in frame 3, hidden from everyone but the server.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AgentHello {
    /// All zeros at enrolment.
    pub agent: AgentId,
    /// Ed25519 key that signs this agent's batches.
    pub signing_public: [u8; 32],
    pub boot_id: [u8; 16],
    /// Drawn when the agent's process starts: a reconnect of the same process, or another one.
    pub instance: [u8; 16],
    pub time_us: u64,
    pub host_name: String,
    pub version: String,
    pub os: String,
    /// Keyed hashes of the machine's characteristics, each with its name.
    pub fingerprint: Vec<(String, [u8; 16])>,
}

impl Codec for AgentHello {
    fn encode(&self, out: &mut Vec<u8>) {
        self.agent.encode(out);
        out.extend_from_slice(&self.signing_public);
        out.extend_from_slice(&self.boot_id);
        out.extend_from_slice(&self.instance);
        out.extend_from_slice(&self.time_us.to_be_bytes());
        for text in [&self.host_name, &self.version, &self.os] {
            put_bytes16(out, truncated(text, TEXT_LEN_MAX).as_bytes());
        }
        let components = self.fingerprint.iter().take(FINGERPRINT_MAX);
        out.push(u8::try_from(components.len()).expect("at most 16"));
        for (name, hash) in components {
            put_bytes16(out, truncated(name, COMPONENT_LEN_MAX).as_bytes());
            out.extend_from_slice(hash);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        let mut hello = Self {
            agent: AgentId::read(r)?,
            signing_public: r.array("signing key")?,
            boot_id: r.array("boot id")?,
            instance: r.array("instance")?,
            time_us: r.u64("agent time")?,
            host_name: r.text16(TEXT_LEN_MAX, "host name")?,
            version: r.text16(TEXT_LEN_MAX, "agent version")?,
            os: r.text16(TEXT_LEN_MAX, "operating system")?,
            fingerprint: Vec::new(),
        };
        let components = usize::from(r.u8("fingerprint length")?);
        if components > FINGERPRINT_MAX {
            return Err(InvalidMessage::TooLong("fingerprint"));
        }
        for _ in 0..components {
            let name = r.text16(COMPONENT_LEN_MAX, "component name")?;
            hello.fingerprint.push((name, r.array("component hash")?));
        }
        Ok(hello)
    }
}

/// What both sides hold after the handshake.
#[derive(Debug)]
pub struct Established {
    pub suite: Suite,
    pub sealer: RecordSealer,
    pub opener: RecordOpener,
    /// The credential of the next connection. The server makes it durable before its first record;
    /// the agent when it has opened that record.
    pub next_psk: Secret<32>,
    /// Proves, without the rolling credential, that this enrolment was ours: what an agent whose state
    /// was restored shows to be let in by a person. Kept from the enrolment's handshake alone.
    pub recovery_psk: Secret<32>,
    /// Mixed into the first renewal of this session's keys.
    pub(crate) renewal_psk: Secret<32>,
    /// Names the session.
    pub hash: [u8; 32],
}

impl Established {
    /// Keys of a finished handshake: the connection's, or a renewal inside it.
    pub(crate) fn new(state: &HandshakeState, role: Role, suite: Suite) -> Self {
        let split = state.split();
        let initiator = RecordKeys {
            suite,
            body: split.initiator,
            length: state.export("length check, initiator"),
        };
        let responder = RecordKeys {
            suite,
            body: split.responder,
            length: state.export("length check, responder"),
        };
        let (ours, theirs) = match role {
            Role::Initiator => (initiator, responder),
            Role::Responder => (responder, initiator),
        };
        Self {
            suite,
            sealer: RecordSealer::new(ours),
            opener: RecordOpener::new(theirs),
            next_psk: state.export("next credential"),
            recovery_psk: state.export("recovery credential"),
            renewal_psk: state.export("renewal"),
            hash: split.hash,
        }
    }
}

/// What the agent brings to a handshake.
#[derive(Debug)]
pub struct AgentKeys {
    pub suite: Suite,
    pub static_keys: KeyPair,
    /// Drawn for this handshake only.
    pub ephemeral: KeyPair,
    pub server_public: [u8; 32],
    pub psk: Secret<32>,
}

/// Agent: waits for frame 2.
#[derive(Debug)]
pub struct ExpectServerHello {
    state: HandshakeState,
    suite: Suite,
}

/// Agent: starts; returns preamble and frame 1.
///
/// # Errors
/// [`PeerMisbehaved::LowOrderKey`] when the server's public key is worthless.
pub fn start(
    keys: AgentKeys,
    hint: &str,
    purpose: Purpose,
) -> Result<(Vec<u8>, ExpectServerHello), Error> {
    let mut out = Preamble {
        suite: keys.suite,
        hint: truncated(hint, usize::from(u8::MAX)).to_owned(),
    }
    .encoded();
    let mut state = HandshakeState::new(
        Pattern::XKpsk3,
        Role::Initiator,
        &out,
        Some(keys.static_keys),
        keys.ephemeral,
        Some(keys.server_public),
        Some(keys.psk),
    );
    let message = state.write_message(&purpose.encoded())?;
    put_frame(&mut out, FRAME_HANDSHAKE, &message);
    let suite = keys.suite;
    Ok((out, ExpectServerHello { state, suite }))
}

impl ExpectServerHello {
    /// Takes the bytes of frame 2; returns what the server said and the state that answers.
    ///
    /// # Errors
    /// Fails when the frame was not made by the holder of the server's key.
    pub fn handle(mut self, message: &[u8]) -> Result<(ServerHello, SendAgentHello), Error> {
        let payload = self.state.read_message(message)?;
        let hello = ServerHello::decode(&payload, "server hello")?;
        let (state, suite) = (self.state, self.suite);
        Ok((hello, SendAgentHello { state, suite }))
    }
}

/// Agent: about to say who it is.
#[derive(Debug)]
pub struct SendAgentHello {
    state: HandshakeState,
    suite: Suite,
}

impl SendAgentHello {
    /// Returns frame 3 and the session's keys.
    ///
    /// # Errors
    /// [`PeerMisbehaved::LowOrderKey`] when the server's ephemeral key is worthless.
    pub fn finish(mut self, hello: &AgentHello) -> Result<(Vec<u8>, Established), Error> {
        let message = self.state.write_message(&hello.encoded())?;
        let mut out = Vec::new();
        put_frame(&mut out, FRAME_HANDSHAKE, &message);
        let established = Established::new(&self.state, Role::Initiator, self.suite);
        Ok((out, established))
    }
}

/// The bytes before the first frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Preamble {
    pub suite: Suite,
    /// Which server or tenant is meant; empty for the only one.
    pub hint: String,
}

impl Preamble {
    fn encoded(&self) -> Vec<u8> {
        let hint_len = u8::try_from(self.hint.len()).expect("cut to 255 bytes");
        let mut out = vec![b'S', b'L', VERSION, self.suite.to_byte(), hint_len];
        out.extend_from_slice(self.hint.as_bytes());
        out
    }

    /// Checks the first five bytes against the suite of this port; returns how many bytes of hint
    /// follow.
    ///
    /// # Errors
    /// [`PeerIncompatible`] says in what the peer differs.
    pub fn hint_len(head: &[u8; PREAMBLE_HEAD_LEN], ours: Suite) -> Result<usize, Error> {
        let [b'S', b'L', version, suite, hint_len] = *head else {
            return Err(PeerIncompatible::NotSl.into());
        };
        if version != VERSION {
            return Err(PeerIncompatible::Version(version).into());
        }
        if Suite::from_byte(suite) != Some(ours) {
            return Err(PeerIncompatible::Suite(suite).into());
        }
        Ok(usize::from(hint_len))
    }
}

/// Server: waits for frame 1.
#[derive(Debug)]
pub struct ExpectAgentStart {
    state: HandshakeState,
    suite: Suite,
}

impl ExpectAgentStart {
    /// Begins with the preamble as received and an ephemeral key drawn for this handshake.
    #[must_use]
    pub fn new(suite: Suite, preamble: &[u8], static_keys: KeyPair, ephemeral: KeyPair) -> Self {
        let state = HandshakeState::new(
            Pattern::XKpsk3,
            Role::Responder,
            preamble,
            Some(static_keys),
            ephemeral,
            None,
            None,
        );
        Self { state, suite }
    }

    /// Takes the bytes of frame 1; returns why the agent connects and the state that answers.
    ///
    /// # Errors
    /// Fails when the sender does not know the server's public key.
    pub fn handle(mut self, message: &[u8]) -> Result<(Purpose, SendServerHello), Error> {
        let payload = self.state.read_message(message)?;
        let purpose = Purpose::decode(&payload, "agent start")?;
        let (state, suite) = (self.state, self.suite);
        Ok((purpose, SendServerHello { state, suite }))
    }
}

/// Server: about to answer.
#[derive(Debug)]
pub struct SendServerHello {
    state: HandshakeState,
    suite: Suite,
}

impl SendServerHello {
    /// Returns frame 2.
    ///
    /// # Errors
    /// [`PeerMisbehaved::LowOrderKey`] when the agent's ephemeral key is worthless.
    pub fn answer(mut self, hello: &ServerHello) -> Result<(Vec<u8>, ExpectAgentHello), Error> {
        let message = self.state.write_message(&hello.encoded())?;
        let mut out = Vec::new();
        put_frame(&mut out, FRAME_HANDSHAKE, &message);
        let (state, suite) = (self.state, self.suite);
        Ok((out, ExpectAgentHello { state, suite }))
    }
}

/// Server: waits for frame 3.
#[derive(Debug)]
pub struct ExpectAgentHello {
    state: HandshakeState,
    suite: Suite,
}

impl ExpectAgentHello {
    /// Reads the agent's static key from frame 3, to look its credential up. Not yet a proof that
    /// the agent is who it says: that is [`ExpectAgentHello::handle`].
    ///
    /// # Errors
    /// Fails when the frame is cut or altered.
    pub fn claimed_static(&self, message: &[u8]) -> Result<[u8; 32], Error> {
        self.state.peek_static(message)
    }

    /// Takes frame 3, trying each of `credentials` in turn. Returns which one was used.
    ///
    /// # Errors
    /// [`PeerMisbehaved::BadTag`] when none is the agent's.
    pub fn handle(
        self,
        message: &[u8],
        credentials: &[Secret<32>],
    ) -> Result<(AgentHello, usize, Established), Error> {
        for (used, psk) in credentials.iter().enumerate() {
            let mut state = self.state.clone();
            state.set_psk(psk.clone());
            let payload = match state.read_message(message) {
                Ok(payload) => payload,
                Err(Error::PeerMisbehaved(PeerMisbehaved::BadTag)) => continue,
                Err(error) => return Err(error),
            };
            let hello = AgentHello::decode(&payload, "agent hello")?;
            return Ok((
                hello,
                used,
                Established::new(&state, Role::Responder, self.suite),
            ));
        }
        Err(PeerMisbehaved::BadTag.into())
    }
}

/// A handshake frame's head, parsed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FrameHead {
    /// A Noise message of this many bytes follows.
    Message(usize),
    /// The peer gives up; this many bytes follow, see [`parse_refusal`].
    Refusal(usize),
}

impl FrameHead {
    /// # Errors
    /// Fails for an unknown kind, or past [`FRAME_LEN_MAX`].
    pub fn parse(head: [u8; FRAME_HEAD_LEN]) -> Result<Self, InvalidMessage> {
        let [kind, high, low] = head;
        let len = usize::from(u16::from_be_bytes([high, low]));
        if len > FRAME_LEN_MAX {
            return Err(InvalidMessage::TooLong("handshake frame"));
        }
        match kind {
            FRAME_HANDSHAKE => Ok(Self::Message(len)),
            FRAME_REFUSED => Ok(Self::Refusal(len)),
            unknown => Err(InvalidMessage::UnknownType(unknown)),
        }
    }
}

/// Why a handshake was refused, for programs. Not authenticated: a hint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RefusalCode {
    /// See the words.
    Other,
    /// The credential is not one the server knows: the recovery credential may be.
    Credential,
}

/// Returns the frame that tells the peer why the handshake ends, before keys are agreed.
#[must_use]
pub fn refusal_frame(code: RefusalCode, reason: &str) -> Vec<u8> {
    let mut bytes = vec![match code {
        RefusalCode::Other => 0,
        RefusalCode::Credential => 1,
    }];
    bytes.extend_from_slice(truncated(reason, TEXT_LEN_MAX).as_bytes());
    let mut out = Vec::new();
    put_frame(&mut out, FRAME_REFUSED, &bytes);
    out
}

/// The refusal, when the bytes after frame 3 are a refusal frame and not the first record.
#[must_use]
pub fn refusal_of(bytes: &[u8]) -> Option<(RefusalCode, String)> {
    let (head, rest) = bytes.split_first_chunk::<FRAME_HEAD_LEN>()?;
    match FrameHead::parse(*head) {
        Ok(FrameHead::Refusal(len)) if rest.len() == len => Some(parse_refusal(rest)),
        _ => None,
    }
}

/// Reads what a refusal frame carries. Unknown codes are [`RefusalCode::Other`].
#[must_use]
pub fn parse_refusal(bytes: &[u8]) -> (RefusalCode, String) {
    let (code, reason) = match bytes {
        [1, reason @ ..] => (RefusalCode::Credential, reason),
        [_, reason @ ..] => (RefusalCode::Other, reason),
        [] => (RefusalCode::Other, bytes),
    };
    (code, String::from_utf8_lossy(reason).into_owned())
}

fn put_frame(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    debug_assert!(bytes.len() <= FRAME_LEN_MAX, "hellos are bounded");
    out.push(kind);
    put_bytes16(out, bytes);
}

/// Bytes before the hint.
pub const PREAMBLE_HEAD_LEN: usize = 5;
/// Bytes before a frame's message.
pub const FRAME_HEAD_LEN: usize = 3;
/// Longest handshake message: above the largest hello (16 components of 82 bytes, three texts) and its
/// tags, and all that a half-open connection makes the server keep.
pub const FRAME_LEN_MAX: usize = 4 << 10;
const VERSION: u8 = 1;
const FRAME_HANDSHAKE: u8 = 1;
const FRAME_REFUSED: u8 = 2;
const TEXT_LEN_MAX: usize = 256;
const FINGERPRINT_MAX: usize = 16;
const COMPONENT_LEN_MAX: usize = 64;

#[cfg(test)]
mod tests;
