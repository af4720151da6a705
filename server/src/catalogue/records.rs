//! What the catalogue holds. Fields may be added with a default; none is ever reused.

use scrinium_protocol::batch::StreamPosition;
use scrinium_protocol::codec::Codec;
use scrinium_protocol::identity::{AgentId, Epoch, Head, StreamId, StreamKind};
use scrinium_protocol::secret::Secret;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Stored;
use crate::alarms::AlarmKind;
use crate::clock::Day;

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
    #[serde(default = "first_tenant")]
    pub(crate) tenant: String,
}

fn first_tenant() -> String {
    FIRST_TENANT.to_owned()
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
    #[serde(default = "first_tenant")]
    pub(crate) tenant: String,
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

/// What is kept and forgotten together: one day of one class of one tenant.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) struct Group {
    pub(crate) tenant: String,
    pub(crate) class: String,
    pub(crate) day: Day,
}

/// A sealed segment of the archive; what lies where in it, its own index says.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct SegmentRecord {
    /// Never given twice.
    pub(crate) number: u64,
    pub(crate) group: Group,
    /// Bytes of the file; one more or less is tampering.
    pub(crate) len: u64,
    /// Tag of its header; another file of the same number is noticed.
    #[serde(with = "hex")]
    pub(crate) tag: [u8; 16],
    /// Where its index lies: offset, length and index of the record.
    pub(crate) index: (u64, u32, u64),
    /// Collection times of its entries, Unix µs.
    pub(crate) times_us: (u64, u64),
    pub(crate) entries: u64,
    /// Bytes of its entries.
    pub(crate) bytes: u64,
    /// The logs it was made of, first and last.
    pub(crate) logs: (u64, u64),
    /// It holds a whole day, compressed harder.
    pub(crate) compacted: bool,
}

impl Stored for SegmentRecord {
    const KIND: u8 = 6;

    fn name(&self) -> Vec<u8> {
        self.number.to_be_bytes().to_vec()
    }
}

/// How far the archive is; one row.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct ArchiveMark {
    /// Logs up to here were sealed, and are gone.
    pub(crate) log: u64,
    /// The last segment number that was given.
    pub(crate) segment: u64,
    /// The last certificate number that was given.
    #[serde(default)]
    pub(crate) certificate: u64,
}

impl Stored for ArchiveMark {
    const KIND: u8 = 8;

    fn name(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// A segment that is no longer the archive's, and whose file may still be there.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct RemovedSegment {
    pub(crate) number: u64,
}

impl Stored for RemovedSegment {
    const KIND: u8 = 9;

    fn name(&self) -> Vec<u8> {
        self.number.to_be_bytes().to_vec()
    }
}

/// The key of a log, gone with it.
#[derive(Deserialize, Serialize)]
pub(crate) struct LogKey {
    pub(crate) number: u64,
    pub(crate) key: StoredSecret,
}

impl Stored for LogKey {
    const KIND: u8 = 10;

    fn name(&self) -> Vec<u8> {
        self.number.to_be_bytes().to_vec()
    }
}

/// A customer whose logs are kept apart.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct TenantRecord {
    pub(crate) name: String,
    /// Wraps the keys of its days.
    pub(crate) key: StoredSecret,
}

impl Stored for TenantRecord {
    const KIND: u8 = 11;

    fn name(&self) -> Vec<u8> {
        self.name.clone().into_bytes()
    }
}

/// The keys of a group, wrapped under its tenant's.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct GroupKeys {
    pub(crate) group: Group,
    pub(crate) keys: WrappedKeys,
}

/// What is left of the keys of a group.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum WrappedKeys {
    /// The key all its streams' keys come from.
    Whole(String),
    /// Some streams were forgotten: the keys of the others, one by one.
    Streams(Vec<(String, String)>),
    /// In the second container: under the officer's key.
    Sealed(SealedKeys),
}

/// The keys of a group that the server alone cannot open.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct SealedKeys {
    /// The officer's age recipient.
    pub(crate) recipient: String,
    /// An age file with the key of this container, in base 64.
    pub(crate) key: String,
    /// Its streams, and their keys under that.
    pub(crate) streams: Vec<(String, String)>,
}

impl Stored for GroupKeys {
    const KIND: u8 = 12;

    fn name(&self) -> Vec<u8> {
        let Group { tenant, class, day } = &self.group;
        format!("{tenant}\0{class}\0{day}").into_bytes()
    }
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

/// How long a category of logs is kept.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClassRecord {
    pub(crate) name: String,
    /// Days its entries are kept after the day they were received on.
    pub(crate) keep_days: u32,
    /// `keep_days` may not be set below this,
    pub(crate) floor_days: u32,
    /// nor above this.
    pub(crate) ceiling_days: u32,
    /// Days after which its entries are in the second container, where the tenant has an officer.
    #[serde(default = "operations_days")]
    pub(crate) operations_days: u32,
}

/// Three months.
pub(crate) fn operations_days() -> u32 {
    90
}

/// Who opens the second container of a tenant.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct OfficerRecord {
    pub(crate) tenant: String,
    /// An age recipient, X25519.
    pub(crate) recipient: String,
}

impl Stored for OfficerRecord {
    const KIND: u8 = 21;

    fn name(&self) -> Vec<u8> {
        self.tenant.clone().into_bytes()
    }
}

impl Stored for ClassRecord {
    const KIND: u8 = 13;

    fn name(&self) -> Vec<u8> {
        self.name.clone().into_bytes()
    }
}

/// Which streams belong to which class: the first rule that matches says it. One row.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct RulesRecord {
    pub(crate) rules: Vec<RuleRecord>,
}

/// One rule. An empty field matches everything.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RuleRecord {
    pub(crate) class: String,
    pub(crate) tenant: String,
    pub(crate) site: String,
    pub(crate) agent: String,
    /// A pattern of stream names, as in a shell; `**` crosses directories.
    pub(crate) stream: String,
}

impl Stored for RulesRecord {
    const KIND: u8 = 14;

    fn name(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// Somebody wants a range kept, whatever its time.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct HoldRecord {
    /// The reference of the matter, which names it.
    pub(crate) name: String,
    pub(crate) reason: String,
    pub(crate) by: String,
    pub(crate) since_us: u64,
    /// Whose entries; an empty field matches everything.
    pub(crate) tenant: String,
    pub(crate) site: String,
    pub(crate) agent: String,
    /// A pattern of stream names.
    pub(crate) stream: String,
    /// Days of receipt, both included.
    pub(crate) from: Day,
    pub(crate) to: Day,
}

impl Stored for HoldRecord {
    const KIND: u8 = 15;

    fn name(&self) -> Vec<u8> {
        self.name.clone().into_bytes()
    }
}

/// When the contract with a tenant ends, or ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct ContractRecord {
    pub(crate) tenant: String,
    /// Its last day.
    pub(crate) end: Day,
    /// Days after that its logs are still kept.
    pub(crate) grace_days: u32,
}

impl Stored for ContractRecord {
    const KIND: u8 = 18;

    fn name(&self) -> Vec<u8> {
        self.tenant.clone().into_bytes()
    }
}

/// What one person wants and another has to want too.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct WishRecord {
    /// All of it, in words and numbers: whoever approves wants the very same.
    pub(crate) what: String,
    pub(crate) by: String,
    pub(crate) since_us: u64,
}

impl Stored for WishRecord {
    const KIND: u8 = 19;

    fn name(&self) -> Vec<u8> {
        self.what.clone().into_bytes()
    }
}

/// Settings of the policy that are about all of it; one row.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct PolicySettings {
    /// Deleting an agent takes two persons.
    pub(crate) two_persons: bool,
}

impl Stored for PolicySettings {
    const KIND: u8 = 20;

    fn name(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// The last verification that was not of a range; one row.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct VerificationRecord {
    pub(crate) time_us: u64,
    pub(crate) whole: bool,
    pub(crate) findings: u64,
    /// When every byte was verified last.
    pub(crate) full_us: u64,
    /// The segments that were found as they were sealed.
    pub(crate) segments: Vec<u64>,
}

impl Stored for VerificationRecord {
    const KIND: u8 = 22;

    fn name(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// What was deleted of a stream, as far as its chain went through it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct PrunedRecord {
    #[serde(with = "codec")]
    pub(crate) stream: StreamId,
    pub(crate) ranges: Vec<PrunedRange>,
}

/// Entries of one epoch that were deleted together.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct PrunedRange {
    #[serde(with = "codec")]
    pub(crate) epoch: Epoch,
    /// Sequences, end excluded.
    pub(crate) sequences: (u64, u64),
    /// The chain head after them.
    #[serde(with = "codec")]
    pub(crate) head: Head,
    /// The last certificate that says so.
    pub(crate) certificate: u64,
}

impl Stored for PrunedRecord {
    const KIND: u8 = 16;

    fn name(&self) -> Vec<u8> {
        self.stream.encoded()
    }
}

/// A certificate of deletion; kept for a while after it is in the archive's own trail, which a backup may not
/// have of the same day.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct CertificateRecord {
    pub(crate) number: u64,
    /// The signed text, one line.
    pub(crate) text: String,
    /// Where the trail stood when it was sent there: behind that, it is in it.
    pub(crate) published_at: Option<u64>,
    pub(crate) made_us: u64,
}

impl Stored for CertificateRecord {
    const KIND: u8 = 17;

    fn name(&self) -> Vec<u8> {
        self.number.to_be_bytes().to_vec()
    }
}

/// The tenant of who is given no other, and of the server itself.
pub(crate) const FIRST_TENANT: &str = "default";

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
