//! What the catalogue holds. Fields may be added with a default; none is ever reused.

mod acts;
mod agents;
mod archive;
mod places;
mod policy;
mod time;
mod waiting;

use std::collections::BTreeSet;
use std::net::IpAddr;

use scrinium_protocol::identity::AgentId;
use scrinium_protocol::secret::Secret;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) use self::acts::{AbsenceRecord, LateActRecord, RestRecord, RunRecord};
pub(crate) use self::agents::{AgentConfiguration, AgentRecord, Quarantine, TokenRecord};
pub(crate) use self::archive::{
    AckedRecord, ArchiveMark, BackupRecord, CertificateRecord, ChainRecord, Group, GroupKeys,
    LogEnd, LogKey, LossRecord, LostEntries, PrunedRange, PrunedRecord, RemovedSegment, SealedKeys,
    SegmentRecord, StampRecord, StreamRecord, TenantRecord, UnmetReceipt, VerificationRecord,
    WrappedKeys,
};
pub(crate) use self::places::PlaceRecord;
pub(crate) use self::policy::{
    ClassRecord, ContractRecord, HoldRecord, OfficerRecord, PolicySettings, RuleRecord,
    RulesRecord, WishRecord, operations_days,
};
pub(crate) use self::time::{SpansRecord, Step, StepKind, TimeRecord, TimeSpan};
pub(crate) use self::waiting::{ClassChange, Voice, WaitingAct, WaitingRecord};
use super::Stored;
use crate::alarms::AlarmKind;
use crate::clock::Day;
use crate::control::export::ExportRequest;
use crate::said::Said;

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

/// A text that several records share.
mod shared_text {
    use std::sync::Arc;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(text: &Arc<str>, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Arc<str>, D::Error> {
        String::deserialize(d).map(Arc::from)
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
    /// Until when it is valid, Unix µs, and for which names; 0 when an earlier version made it.
    #[serde(default)]
    pub(crate) certificate_ends_us: u64,
    #[serde(default)]
    pub(crate) certificate_names: Vec<String>,
}

impl Stored for ServerKeys {
    const KIND: u8 = 1;

    fn name(&self) -> Vec<u8> {
        Vec::new()
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
    /// When it was made, or last given a password, Unix µs; 0 when an earlier version did.
    #[serde(default)]
    pub(crate) changed_us: u64,
}

impl Stored for UserRecord {
    const KIND: u8 = 4;

    fn name(&self) -> Vec<u8> {
        self.name.clone().into_bytes()
    }
}

/// Something a person must hear of.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct AlarmRecord {
    pub(crate) id: u64,
    pub(crate) kind: AlarmKind,
    pub(crate) agent: String,
    /// In English: all that an earlier version wrote.
    pub(crate) text: String,
    /// The same for a reader of any language.
    #[serde(default)]
    pub(crate) said: Option<Said>,
    pub(crate) key: String,
    pub(crate) first_us: u64,
    pub(crate) last_us: u64,
    pub(crate) count: u64,
    pub(crate) acknowledged_by: Option<String>,
    pub(crate) acknowledged_us: u64,
    /// From where it came: the first address, then others, the last one last.
    #[serde(default)]
    pub(crate) addresses: Vec<IpAddr>,
    /// There were more.
    #[serde(default)]
    pub(crate) more_addresses: bool,
    /// When it was over by itself, and why; 0 while it lasts.
    #[serde(default)]
    pub(crate) over_us: u64,
    #[serde(default)]
    pub(crate) over_why: Option<Said>,
    /// The channels by which it left.
    #[serde(default)]
    pub(crate) told: BTreeSet<String>,
}

impl Stored for AlarmRecord {
    const KIND: u8 = 7;

    fn name(&self) -> Vec<u8> {
        self.id.to_be_bytes().to_vec()
    }
}

/// Something that can be downloaded for a while.
#[derive(Clone, Deserialize, Serialize)]
pub(crate) struct LinkRecord {
    /// Names it, and cannot be guessed.
    pub(crate) id: String,
    pub(crate) request: ExportRequest,
    pub(crate) by: String,
    pub(crate) made_us: u64,
    /// From then on it gives nothing.
    pub(crate) end_us: u64,
    pub(crate) downloads: u64,
    pub(crate) last_us: u64,
}

impl Stored for LinkRecord {
    const KIND: u8 = 23;

    fn name(&self) -> Vec<u8> {
        self.id.clone().into_bytes()
    }
}

/// The last statistics that were sent; one row.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct StatisticsMark {
    pub(crate) day: Day,
    /// The tenants before it in order are done for that day; empty before the first.
    pub(crate) tenant: String,
    /// Where their stream stood when it was sent: behind that, it is in it.
    pub(crate) at: u64,
}

impl Stored for StatisticsMark {
    const KIND: u8 = 24;

    fn name(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// The tenant of who is given no other, and of the server itself.
pub(crate) const FIRST_TENANT: &str = "default";
