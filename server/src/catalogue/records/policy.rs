//! What is kept for how long, and who decides.

use serde::{Deserialize, Serialize};

use crate::catalogue::Stored;
use crate::clock::Day;

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
#[derive(Clone, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
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

/// What version 0.1.0 had one person want and another want too. None is made any more.
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
    /// What waits takes two persons, and is never done by time alone.
    pub(crate) two_persons: bool,
}

impl Stored for PolicySettings {
    const KIND: u8 = 20;

    fn name(&self) -> Vec<u8> {
        Vec::new()
    }
}
