//! The messages of a session: what a record carries, by its type.

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};

use crate::batch::StreamPosition;
use crate::codec::{Codec, Reader, put_bytes16, truncated};
use crate::error::{InvalidMessage, PeerMisbehaved};
use crate::identity::{AgentId, Epoch, Head, Sequence, StreamId, StreamKind};
use crate::secret::Secret;
use crate::signature;
use crate::sl::in_force::{self, Setting};
use crate::sl::sources::SourceReports;

/// One message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Message {
    /// Server: the agent's name from now on.
    Enrolled { agent: AgentId },
    /// Server: where one stream stands in the archive. Sent for each stream of the agent at the
    /// start of a session; the agent goes on exactly there.
    StreamState {
        stream: StreamId,
        position: StreamPosition,
    },
    /// Server: every stream was stated.
    Ready(Ready),
    /// Agent: the next credential is durable here; forget the one before.
    CredentialStored,
    /// Agent: what the stream named in the following batches is.
    StreamOpen {
        stream: StreamId,
        kind: StreamKind,
        name: String,
    },
    /// Agent: an encoded [`crate::batch::SealedBatch`].
    Batch(Vec<u8>),
    /// Server: a batch, and everything of its stream before it, is durable.
    Receipt(Receipt),
    /// Both: still here.
    KeepAlive(KeepAlive),
    /// Both: the session ends on purpose; nothing follows.
    Close { reason: String },
    /// Both: a message of the `NNpsk0` handshake that renews the session's keys; the agent's first.
    Renewal(Vec<u8>),
    /// Agent: the last record under its old keys.
    Renewed,
    /// Server: what the administrator wants this agent to do.
    Configuration(Configuration),
    /// Agent: what became of a configuration, and what is in force.
    ConfigurationAnswer(ConfigurationAnswer),
    /// Server: the answer to [`Purpose::Ask`](super::handshake::Purpose::Ask), in such a session alone.
    StateKey(Secret<32>),
}

/// A configuration for one agent, signed by the server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Configuration {
    /// Grows with every change; an agent refuses one that is not above what it applied last.
    pub version: u64,
    /// TOML, at most [`CONFIGURATION_LEN_MAX`] bytes.
    pub text: String,
    pub signature: [u8; 64],
}

impl Configuration {
    /// Makes the configuration for `agent`.
    #[must_use]
    pub fn new(version: u64, text: String, agent: AgentId, key: &SigningKey) -> Self {
        let signed = Self::signed_text(version, &text, agent);
        Self {
            version,
            text,
            signature: key.sign(&signed).to_bytes(),
        }
    }

    /// Checks that the server made it for `agent`.
    ///
    /// # Errors
    /// [`PeerMisbehaved::WrongSignature`] when `key` did not sign it for that agent.
    pub fn verify(&self, agent: AgentId, key: &VerifyingKey) -> Result<(), PeerMisbehaved> {
        let signed = Self::signed_text(self.version, &self.text, agent);
        signature::verify(key, &signed, &self.signature)
    }

    fn signed_text(version: u64, text: &str, agent: AgentId) -> Vec<u8> {
        let mut out = b"scrinium configuration v1".to_vec();
        agent.encode(&mut out);
        out.extend_from_slice(&version.to_be_bytes());
        out.extend_from_slice(text.as_bytes());
        out
    }
}

/// What became of a configuration, in the agent's words.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigurationAnswer {
    /// 0 for none: the agent says what is in force alone.
    pub version: u64,
    /// Why it was not applied; `None` when it is in force.
    pub rejected: Option<String>,
    /// What the agent does now, and who said so; empty when it does not say.
    pub in_force: Vec<Setting>,
}

/// The limits and the key of a server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ready {
    /// Most bytes of batches in flight, for each [`Lane`].
    pub live_bytes_max: u32,
    pub backlog_bytes_max: u32,
    pub keep_alive_ms: u32,
    /// Ed25519 key that signs receipts and configurations.
    pub signing_public: [u8; 32],
    /// The agent's state was restored from a copy: it begins a new epoch where the server stands.
    pub restored: bool,
}

/// Batches wait in one of two lanes, each with credits of its own; every other message overtakes both.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Lane {
    /// Of a stream that has nothing older waiting on the disk.
    Live,
    Backlog,
}

/// An application-level acknowledgement; leaves the server only after `fsync`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Receipt {
    pub stream: StreamId,
    pub epoch: Epoch,
    /// The sequence after the last durable entry.
    pub next: Sequence,
    pub head: Head,
    /// Where the batch lies in the server's log: log number and byte offset.
    pub log: u64,
    pub offset: u64,
    pub signature: [u8; 64],
}

impl Receipt {
    /// Signs the other fields.
    pub fn sign(&mut self, key: &SigningKey) {
        self.signature = key.sign(&self.signed_text()).to_bytes();
    }

    /// # Errors
    /// [`PeerMisbehaved::WrongSignature`] when `key` did not sign it.
    pub fn verify(&self, key: &VerifyingKey) -> Result<(), PeerMisbehaved> {
        signature::verify(key, &self.signed_text(), &self.signature)
    }

    fn signed_text(&self) -> Vec<u8> {
        let mut out = b"scrinium receipt v1".to_vec();
        self.encode_signed(&mut out);
        out
    }

    fn encode_signed(&self, out: &mut Vec<u8>) {
        self.stream.encode(out);
        self.epoch.encode(out);
        out.extend_from_slice(&self.next.0.to_be_bytes());
        self.head.encode(out);
        out.extend_from_slice(&self.log.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
    }
}

impl Codec for Receipt {
    fn encode(&self, out: &mut Vec<u8>) {
        self.encode_signed(out);
        out.extend_from_slice(&self.signature);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        Ok(Self {
            stream: StreamId::read(r)?,
            epoch: Epoch::read(r)?,
            next: Sequence(r.u64("next sequence")?),
            head: Head::read(r)?,
            log: r.u64("log number")?,
            offset: r.u64("log offset")?,
            signature: r.array("receipt signature")?,
        })
    }
}

/// What the problem of an agent begins with that saw somebody interfere on the way.
pub const INTERFERENCE: &str = "interference: ";
/// Of one whose disk refuses what it must take; the words of its system follow.
pub const DISK: &str = "disk: ";
/// Of one whose thread that reads gives no sign of life; what it looked at last follows, if anything is known.
pub const HANG: &str = "hangs: ";
/// Of one whose new streams the server does not take; how many entries are lost, and then the limit, follow.
pub const NO_STREAMS: &str = "streams wait: ";

/// Why a session is closed whose agent wants a stream more than it may have; see [`refused_stream`].
#[must_use]
pub fn stream_refused(stream: StreamId, limit: &str) -> String {
    format!("{STREAM_REFUSED}{stream}: {limit}")
}

/// The stream that the reason of a close refuses, and the limit it is over.
#[must_use]
pub fn refused_stream(reason: &str) -> Option<(StreamId, &str)> {
    let (stream, limit) = reason.strip_prefix(STREAM_REFUSED)?.split_once(": ")?;
    Some((stream.parse().ok()?, limit))
}

const STREAM_REFUSED: &str = "stream refused: ";

/// Liveness and the state of the agent's queues.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeepAlive {
    /// The sender's clock, Unix µs.
    pub time_us: u64,
    /// Entries collected and not yet acked.
    pub backlog_entries: u64,
    pub backlog_bytes: u64,
    /// When the oldest of them was collected, Unix µs; 0 when there is none.
    pub oldest_us: u64,
    /// Bytes of sealed segments on the agent's disk, and how many it may use.
    pub disk_bytes: u64,
    pub disk_bytes_max: u64,
    /// How long an outage the disk outlasts at the rate of the last minute, in seconds; 0 when that is
    /// not known, or next to nothing is collected.
    pub cache_lasts_s: u64,
    /// The sequence after the last entry collected, per stream that moved since the last keep-alive:
    /// what is withheld on the way shows at once. At most [`MARKS_MAX`].
    pub marks: Vec<(StreamId, Sequence)>,
    /// What the agent suffers from and somebody must see to; empty when all is well.
    pub problem: String,
    /// How the agent's sources do; `None` when that is as it said before in this session, or of a version that does
    /// not say it.
    pub sources: Option<SourceReports>,
}

impl Message {
    /// The record type of this message.
    #[must_use]
    pub fn kind(&self) -> u8 {
        match self {
            Self::Enrolled { .. } => ENROLLED,
            Self::StreamState { .. } => STREAM_STATE,
            Self::Ready(_) => READY,
            Self::CredentialStored => CREDENTIAL_STORED,
            Self::StreamOpen { .. } => STREAM_OPEN,
            Self::Batch(_) => BATCH,
            Self::Receipt(_) => RECEIPT,
            Self::KeepAlive(_) => KEEP_ALIVE,
            Self::Close { .. } => CLOSE,
            Self::Renewal(_) => RENEWAL,
            Self::Renewed => RENEWED,
            Self::Configuration(_) => CONFIGURATION,
            Self::ConfigurationAnswer(_) => CONFIGURATION_ANSWER,
            Self::StateKey(_) => STATE_KEY,
        }
    }

    /// Appends the payload to `out`.
    pub fn encode_payload(&self, out: &mut Vec<u8>) {
        match self {
            Self::Enrolled { agent } => agent.encode(out),
            Self::StreamState { stream, position } => {
                stream.encode(out);
                position.encode(out);
            }
            Self::Ready(ready) => {
                out.extend_from_slice(&ready.live_bytes_max.to_be_bytes());
                out.extend_from_slice(&ready.backlog_bytes_max.to_be_bytes());
                out.extend_from_slice(&ready.keep_alive_ms.to_be_bytes());
                out.extend_from_slice(&ready.signing_public);
                out.push(u8::from(ready.restored));
            }
            Self::CredentialStored | Self::Renewed => {}
            Self::StreamOpen { stream, kind, name } => {
                stream.encode(out);
                out.push(kind.to_byte());
                put_bytes16(out, truncated(name, STREAM_NAME_LEN_MAX).as_bytes());
            }
            Self::Batch(bytes) => out.extend_from_slice(bytes),
            Self::Receipt(receipt) => receipt.encode(out),
            Self::KeepAlive(keep_alive) => {
                for value in [
                    keep_alive.time_us,
                    keep_alive.backlog_entries,
                    keep_alive.backlog_bytes,
                    keep_alive.oldest_us,
                    keep_alive.disk_bytes,
                    keep_alive.disk_bytes_max,
                    keep_alive.cache_lasts_s,
                ] {
                    out.extend_from_slice(&value.to_be_bytes());
                }
                let marks = keep_alive.marks.iter().take(MARKS_MAX);
                out.push(u8::try_from(marks.len()).expect("at most 128"));
                for (stream, next) in marks {
                    stream.encode(out);
                    out.extend_from_slice(&next.0.to_be_bytes());
                }
                let problem = truncated(&keep_alive.problem, REASON_LEN_MAX);
                put_bytes16(out, problem.as_bytes());
                if let Some(sources) = &keep_alive.sources {
                    sources.encode(out);
                }
            }
            Self::Close { reason } => {
                put_bytes16(out, truncated(reason, REASON_LEN_MAX).as_bytes());
            }
            Self::Renewal(bytes) => put_bytes16(out, bytes),
            Self::Configuration(configuration) => {
                out.extend_from_slice(&configuration.version.to_be_bytes());
                let text = truncated(&configuration.text, CONFIGURATION_LEN_MAX);
                put_bytes16(out, text.as_bytes());
                out.extend_from_slice(&configuration.signature);
            }
            Self::ConfigurationAnswer(answer) => {
                out.extend_from_slice(&answer.version.to_be_bytes());
                out.push(u8::from(answer.rejected.is_none()));
                let reason = answer.rejected.as_deref().unwrap_or_default();
                put_bytes16(out, truncated(reason, REASON_LEN_MAX).as_bytes());
                if !answer.in_force.is_empty() {
                    in_force::put(&answer.in_force, out);
                }
            }
            Self::StateKey(key) => out.extend_from_slice(key.expose()),
        }
    }

    /// Reads the payload of a record of type `kind`. Unknown types are refused.
    ///
    /// # Errors
    /// Names the field that is not as it must be.
    pub fn decode(kind: u8, payload: &[u8]) -> Result<Self, InvalidMessage> {
        let mut r = Reader::new(payload);
        let message = match kind {
            ENROLLED => Self::Enrolled {
                agent: AgentId::read(&mut r)?,
            },
            STREAM_STATE => Self::StreamState {
                stream: StreamId::read(&mut r)?,
                position: StreamPosition::read(&mut r)?,
            },
            READY => Self::Ready(Ready {
                live_bytes_max: r.u32("live credits")?,
                backlog_bytes_max: r.u32("backlog credits")?,
                keep_alive_ms: r.u32("keep-alive interval")?,
                signing_public: r.array("signing key")?,
                restored: r.flag("restored flag")?,
            }),
            CREDENTIAL_STORED => Self::CredentialStored,
            STREAM_OPEN => Self::StreamOpen {
                stream: StreamId::read(&mut r)?,
                kind: StreamKind::from_byte(r.u8("stream kind")?)?,
                name: r.text16(STREAM_NAME_LEN_MAX, "stream name")?,
            },
            BATCH => return Ok(Self::Batch(r.rest().to_vec())),
            RECEIPT => Self::Receipt(Receipt::read(&mut r)?),
            KEEP_ALIVE => Self::KeepAlive(KeepAlive {
                time_us: r.u64("clock")?,
                backlog_entries: r.u64("backlog entries")?,
                backlog_bytes: r.u64("backlog bytes")?,
                oldest_us: r.u64("oldest entry")?,
                disk_bytes: r.u64("disk bytes")?,
                disk_bytes_max: r.u64("disk limit")?,
                cache_lasts_s: r.u64("time the cache lasts")?,
                marks: read_marks(&mut r)?,
                problem: r.text16(REASON_LEN_MAX, "problem")?,
                // Version 0.1.0 ended here.
                sources: match r.is_empty() {
                    true => None,
                    false => Some(SourceReports::read(&mut r)?),
                },
            }),
            CLOSE => Self::Close {
                reason: r.text16(REASON_LEN_MAX, "reason")?,
            },
            RENEWAL => Self::Renewal(r.bytes16(RENEWAL_LEN_MAX, "renewal")?.to_vec()),
            RENEWED => Self::Renewed,
            CONFIGURATION => Self::Configuration(Configuration {
                version: r.u64("configuration version")?,
                text: r.text16(CONFIGURATION_LEN_MAX, "configuration")?,
                signature: r.array("configuration signature")?,
            }),
            CONFIGURATION_ANSWER => Self::ConfigurationAnswer(ConfigurationAnswer {
                version: r.u64("configuration version")?,
                rejected: {
                    let applied = r.flag("applied flag")?;
                    let reason = r.text16(REASON_LEN_MAX, "reason")?;
                    (!applied).then_some(reason)
                },
                in_force: in_force::read(&mut r)?,
            }),
            STATE_KEY => Self::StateKey(Secret::new(r.array("key of a state")?)),
            unknown => return Err(InvalidMessage::UnknownType(unknown)),
        };
        // What follows the known fields belongs to a later version: it is ignored.
        Ok(message)
    }
}

fn read_marks(r: &mut Reader<'_>) -> Result<Vec<(StreamId, Sequence)>, InvalidMessage> {
    let count = usize::from(r.u8("number of marks")?);
    if count > MARKS_MAX {
        return Err(InvalidMessage::TooLong("marks"));
    }
    (0..count)
        .map(|_| Ok((StreamId::read(r)?, Sequence(r.u64("mark")?))))
        .collect()
}

/// Most high-water marks in one keep-alive.
pub const MARKS_MAX: usize = 128;
/// Longest configuration, in bytes.
pub const CONFIGURATION_LEN_MAX: usize = 60_000;
/// Longest name of a stream, in bytes.
pub const STREAM_NAME_LEN_MAX: usize = 4096;
const REASON_LEN_MAX: usize = 512;
const RENEWAL_LEN_MAX: usize = 128;

const ENROLLED: u8 = 0x01;
const STREAM_STATE: u8 = 0x02;
const READY: u8 = 0x03;
const CREDENTIAL_STORED: u8 = 0x04;
const STREAM_OPEN: u8 = 0x05;
const BATCH: u8 = 0x06;
const RECEIPT: u8 = 0x07;
const KEEP_ALIVE: u8 = 0x08;
const CLOSE: u8 = 0x09;
const RENEWAL: u8 = 0x0a;
const RENEWED: u8 = 0x0b;
const CONFIGURATION: u8 = 0x0c;
const CONFIGURATION_ANSWER: u8 = 0x0d;
const STATE_KEY: u8 = 0x10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sl::in_force::Origin;
    use crate::sl::sources::{SourceReport, SourceState};

    #[test]
    fn messages_read_back() {
        for message in samples() {
            let mut payload = Vec::new();
            message.encode_payload(&mut payload);
            assert_eq!(
                Message::decode(message.kind(), &payload),
                Ok(message.clone())
            );
            for cut in 0..payload.len() {
                let short = Message::decode(message.kind(), &payload[..cut]);
                assert!(
                    short.is_err() || may_end_early(&message, cut),
                    "{message:?} cut at {cut}"
                );
            }
        }
    }

    /// Whether an earlier version of the message ends there, or one with less in it.
    fn may_end_early(message: &Message, len: usize) -> bool {
        if let Message::ConfigurationAnswer(answer) = message {
            let reason = answer.rejected.as_ref().map_or(0, String::len);
            return !answer.in_force.is_empty() && len == 8 + 1 + 2 + reason;
        }
        matches!(message, Message::Batch(_))
    }

    /// A keep-alive of version 0.1.0 is the begin of one that says more, and each reads what it knows of the other's.
    #[test]
    fn a_keep_alive_with_sources_is_one_of_the_first_version_with_more_behind_it() {
        let old = samples()[7].clone();
        let Message::KeepAlive(mut state) = old.clone() else {
            panic!()
        };
        state.sources = Some(SourceReports {
            rows: vec![SourceReport {
                source: "/var/log/*.log".into(),
                state: SourceState::Unreadable,
                needs_person: true,
                files: 0,
                path: "/var/log/secret".into(),
                cause: "Permission denied".into(),
            }],
            more: 1,
        });
        let new = Message::KeepAlive(state);
        let (mut short, mut long) = (Vec::new(), Vec::new());
        old.encode_payload(&mut short);
        new.encode_payload(&mut long);
        assert!(long.starts_with(&short));
        assert_eq!(Message::decode(KEEP_ALIVE, &short), Ok(old));
        assert_eq!(Message::decode(KEEP_ALIVE, &long), Ok(new));
        for cut in short.len() + 1..long.len() {
            assert!(Message::decode(KEEP_ALIVE, &long[..cut]).is_err());
        }
    }

    #[test]
    fn an_unknown_type_is_refused_and_unknown_fields_are_ignored() {
        assert_eq!(
            Message::decode(0x7f, b""),
            Err(InvalidMessage::UnknownType(0x7f))
        );
        let mut payload = Vec::new();
        samples()[0].encode_payload(&mut payload);
        payload.extend_from_slice(b"from the future");
        assert_eq!(
            Message::decode(ENROLLED, &payload),
            Ok(samples()[0].clone())
        );
    }

    #[test]
    fn a_receipt_vouches_for_every_field() {
        let key = SigningKey::from_bytes(&[6; 32]);
        let Message::Receipt(mut receipt) = samples()[6].clone() else {
            panic!()
        };
        receipt.sign(&key);
        assert_eq!(receipt.verify(&key.verifying_key()), Ok(()));
        receipt.next.0 += 1;
        assert!(receipt.verify(&key.verifying_key()).is_err());
    }

    #[test]
    fn a_configuration_is_for_one_agent_and_one_version() {
        let key = SigningKey::from_bytes(&[6; 32]);
        let (agent, public) = (AgentId([1; 16]), key.verifying_key());
        let signed = Configuration::new(7, "text".into(), agent, &key);
        assert_eq!(signed.verify(agent, &public), Ok(()));
        let refused = Err(PeerMisbehaved::WrongSignature);
        assert_eq!(signed.verify(AgentId([2; 16]), &public), refused);
        let newer = Configuration {
            version: 8,
            ..signed.clone()
        };
        assert_eq!(newer.verify(agent, &public), refused);
        let other = Configuration {
            text: "texT".into(),
            ..signed
        };
        assert_eq!(other.verify(agent, &public), refused);
    }

    /// The bytes of every message, frozen: a change here is a new version of the protocol.
    #[test]
    fn messages_have_their_golden_bytes() {
        let mut lines = String::new();
        for message in samples() {
            let mut payload = Vec::new();
            message.encode_payload(&mut payload);
            let hex = data_encoding::HEXLOWER.encode(&payload);
            lines.push_str(&format!("{:02x} {hex}\n", message.kind()));
        }
        assert_eq!(lines, include_str!("golden/messages.txt"));
    }

    fn samples() -> Vec<Message> {
        let stream = StreamId([2; 16]);
        vec![
            Message::Enrolled {
                agent: AgentId([1; 16]),
            },
            Message::StreamState {
                stream,
                position: StreamPosition {
                    epoch: Epoch([3; 16]),
                    next: Sequence(77),
                    head: Head([4; 32]),
                    bookmark: b"bookmark".to_vec(),
                },
            },
            Message::Ready(Ready {
                live_bytes_max: 1,
                backlog_bytes_max: 3,
                keep_alive_ms: 2,
                signing_public: [5; 32],
                restored: true,
            }),
            Message::CredentialStored,
            Message::StreamOpen {
                stream,
                kind: StreamKind::File,
                name: "/var/log/é".into(),
            },
            Message::Batch(b"opaque".to_vec()),
            Message::Receipt(Receipt {
                stream,
                epoch: Epoch([3; 16]),
                next: Sequence(78),
                head: Head([4; 32]),
                log: 9,
                offset: 10,
                signature: [0; 64],
            }),
            Message::KeepAlive(KeepAlive {
                time_us: 1,
                disk_bytes_max: 6,
                cache_lasts_s: 7,
                marks: vec![(stream, Sequence(8))],
                problem: "full".into(),
                ..KeepAlive::default()
            }),
            Message::Close {
                reason: "stopping".into(),
            },
            Message::Renewal(vec![1; 48]),
            Message::Renewed,
            Message::Configuration(Configuration::new(
                3,
                "[[source]]\n".into(),
                AgentId([1; 16]),
                &SigningKey::from_bytes(&[6; 32]),
            )),
            Message::ConfigurationAnswer(ConfigurationAnswer {
                version: 3,
                rejected: None,
                in_force: Vec::new(),
            }),
            Message::ConfigurationAnswer(ConfigurationAnswer {
                version: 4,
                rejected: Some("glob 'x': …".into()),
                in_force: Vec::new(),
            }),
            Message::ConfigurationAnswer(ConfigurationAnswer {
                version: 0,
                rejected: None,
                in_force: vec![Setting {
                    origin: Origin::Machine,
                    name: "source.file".into(),
                    value: "/x".into(),
                }],
            }),
            Message::StateKey(Secret::new([9; 32])),
        ]
    }
}
