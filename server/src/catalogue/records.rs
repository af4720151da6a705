//! What the catalogue holds. Fields may be added with a default; none is ever reused.

use scrinium_protocol::batch::StreamPosition;
use scrinium_protocol::codec::Codec;
use scrinium_protocol::identity::{AgentId, StreamId, StreamKind};
use scrinium_protocol::secret::Secret;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Stored;
use crate::alarms::AlarmKind;

/// Binary values as lower-case hexadecimal text.
mod hex {
    use data_encoding::HEXLOWER;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer, T: AsRef<[u8]>>(
        bytes: &T,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        s.serialize_str(&HEXLOWER.encode(bytes.as_ref()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        d: D,
    ) -> Result<[u8; N], D::Error> {
        let text = String::deserialize(d)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(D::Error::custom)?;
        bytes
            .try_into()
            .map_err(|_| D::Error::custom("wrong length"))
    }
}

/// Types of the protocol, by their one encoding.
mod codec {
    use data_encoding::HEXLOWER;
    use scrinium_protocol::codec::Codec;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer, T: Codec>(value: &T, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&HEXLOWER.encode(&value.encoded()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, T: Codec>(d: D) -> Result<T, D::Error> {
        let text = String::deserialize(d)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(D::Error::custom)?;
        T::decode(&bytes, "row").map_err(D::Error::custom)
    }
}

/// A secret inside a sealed row.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct StoredSecret(pub(crate) Secret<32>);

impl Serialize for StoredSecret {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        hex::serialize(self.0.expose(), s)
    }
}

impl<'de> Deserialize<'de> for StoredSecret {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(Self(Secret::new(hex::deserialize(d)?)))
    }
}

/// The server's own keys; one row.
#[derive(Deserialize, Serialize)]
pub(crate) struct ServerKeys {
    /// X25519: what agents trust.
    pub(crate) noise: StoredSecret,
    /// Ed25519: receipts, and batches the server makes itself.
    pub(crate) signing: StoredSecret,
    /// The server as an agent of its own: syslog and audit streams.
    #[serde(with = "codec")]
    pub(crate) agent: AgentId,
    /// Self-signed certificate of the console and its key, PEM.
    pub(crate) certificate: String,
    pub(crate) certificate_key: String,
}

impl Stored for ServerKeys {
    const KIND: u8 = 1;

    fn name(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// An enrolled agent.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct AgentRecord {
    #[serde(with = "codec")]
    pub(crate) id: AgentId,
    pub(crate) name: String,
    pub(crate) site: String,
    #[serde(with = "hex")]
    pub(crate) static_public: [u8; 32],
    #[serde(with = "hex")]
    pub(crate) signing_public: [u8; 32],
    /// The credential last proven, and the one given out since.
    pub(crate) credential: StoredSecret,
    pub(crate) credential_next: Option<StoredSecret>,
    /// The one before: whoever uses it is a copy of this agent.
    pub(crate) credential_superseded: Option<StoredSecret>,
    /// How often the credential was rolled.
    pub(crate) generation: u64,
    pub(crate) enabled: bool,
    #[serde(with = "hex")]
    pub(crate) token_id: [u8; 16],
    pub(crate) enrolled_us: u64,
    pub(crate) host_name: String,
    pub(crate) version: String,
    pub(crate) os: String,
    /// The machine it was last let in on: components by name, as keyed hashes.
    pub(crate) fingerprint: Vec<(String, String)>,
    /// What an agent shows whose rolling credential is out of step; alone it lets nobody in.
    #[serde(default)]
    pub(crate) recovery: Option<StoredSecret>,
    /// Who showed this identity in a way that a person must decide about.
    #[serde(default)]
    pub(crate) quarantine: Option<Quarantine>,
    /// Its state was restored from a copy: it is told to begin a new epoch.
    #[serde(default)]
    pub(crate) restored: bool,
    /// It may use the suite without encryption.
    #[serde(default)]
    pub(crate) integrity_only: bool,
    /// The process that was last let in.
    #[serde(default, with = "hex")]
    pub(crate) instance: [u8; 16],
    #[serde(default)]
    pub(crate) configuration: Option<AgentConfiguration>,
}

/// What was seen of somebody refused until a person approves.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Quarantine {
    pub(crate) reason: String,
    pub(crate) address: String,
    pub(crate) host_name: String,
    pub(crate) fingerprint: Vec<(String, String)>,
    pub(crate) since_us: u64,
    pub(crate) approved: bool,
}

/// What an administrator wants an agent to do, and what it said to that.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct AgentConfiguration {
    pub(crate) version: u64,
    pub(crate) text: String,
    /// The version the agent last spoke of.
    pub(crate) answered: u64,
    /// Why it did not apply that.
    pub(crate) rejected: Option<String>,
}

impl Stored for AgentRecord {
    const KIND: u8 = 2;

    fn name(&self) -> Vec<u8> {
        self.id.0.to_vec()
    }
}

/// An enrolment token that was given out.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct TokenRecord {
    #[serde(with = "hex")]
    pub(crate) id: [u8; 16],
    pub(crate) secret: StoredSecret,
    pub(crate) agent_name: String,
    pub(crate) site: String,
    pub(crate) made_us: u64,
    pub(crate) expires_s: u64,
    /// The static key of the agent that used it.
    pub(crate) used_by: Option<String>,
}

impl Stored for TokenRecord {
    const KIND: u8 = 3;

    fn name(&self) -> Vec<u8> {
        self.id.to_vec()
    }
}

/// Somebody who may sign in to the console.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct UserRecord {
    pub(crate) name: String,
    /// Argon2id in PHC form.
    pub(crate) password_hash: String,
    /// Language chosen in the console.
    pub(crate) language: Option<String>,
}

impl Stored for UserRecord {
    const KIND: u8 = 4;

    fn name(&self) -> Vec<u8> {
        self.name.clone().into_bytes()
    }
}

/// A stream and where it stood when the last log was archived.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct StreamRecord {
    #[serde(with = "codec")]
    pub(crate) id: StreamId,
    #[serde(with = "codec")]
    pub(crate) agent: AgentId,
    #[serde(with = "stream_kind")]
    pub(crate) kind: StreamKind,
    pub(crate) name: String,
    #[serde(with = "codec")]
    pub(crate) position: StreamPosition,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    /// When its last batch was received.
    pub(crate) last_us: u64,
}

impl Stored for StreamRecord {
    const KIND: u8 = 5;

    fn name(&self) -> Vec<u8> {
        self.id.encoded()
    }
}

/// A sealed segment of the archive, and what lies where in it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct SegmentRecord {
    pub(crate) number: u64,
    /// Bytes of the file; one more or less is tampering.
    pub(crate) len: u64,
    /// Tag of its header; another file of the same number is noticed.
    #[serde(with = "hex")]
    pub(crate) tag: [u8; 16],
    pub(crate) blocks: Vec<BlockRecord>,
    /// The filters of all blocks.
    pub(crate) filters: (u64, u32, u64),
    /// The log it was made of; logs up to here are gone.
    pub(crate) log: u64,
}

impl Stored for SegmentRecord {
    const KIND: u8 = 6;

    fn name(&self) -> Vec<u8> {
        self.number.to_be_bytes().to_vec()
    }
}

/// One block of a segment: consecutive batches of one stream.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct BlockRecord {
    /// Offset, length and index of its record.
    pub(crate) place: (u64, u32, u64),
    #[serde(with = "codec")]
    pub(crate) stream: StreamId,
    /// Sequences of its entries, end excluded (of the last epoch, when it spans two).
    pub(crate) sequences: (u64, u64),
    /// Collection times of its entries, Unix µs.
    pub(crate) times_us: (u64, u64),
    pub(crate) entries: u64,
    pub(crate) raw_len: u32,
}

/// Something a person must hear of.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct AlarmRecord {
    pub(crate) id: u64,
    pub(crate) kind: AlarmKind,
    pub(crate) agent: String,
    pub(crate) text: String,
    pub(crate) key: String,
    pub(crate) first_us: u64,
    pub(crate) last_us: u64,
    pub(crate) count: u64,
    pub(crate) acknowledged_by: Option<String>,
    pub(crate) acknowledged_us: u64,
}

impl Stored for AlarmRecord {
    const KIND: u8 = 7;

    fn name(&self) -> Vec<u8> {
        self.id.to_be_bytes().to_vec()
    }
}

mod stream_kind {
    use scrinium_protocol::identity::StreamKind;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(kind: &StreamKind, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u8(kind.to_byte())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<StreamKind, D::Error> {
        let byte = u8::deserialize(d)?;
        StreamKind::from_byte(byte).map_err(D::Error::custom)
    }
}
