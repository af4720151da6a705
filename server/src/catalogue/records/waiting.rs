//! What was asked for and is done after a delay, unless somebody stops it.

use scrinium_protocol::identity::AgentId;
use serde::{Deserialize, Serialize};

use super::{OfficerRecord, RuleRecord, codec};
use crate::catalogue::Stored;
use crate::clock::Day;
use crate::said::Arg;

/// An act that waits.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct WaitingRecord {
    /// What people call it: eight hexadecimal digits.
    pub(crate) id: String,
    pub(crate) act: WaitingAct,
    /// The same in a sentence; an English text in records of earlier versions.
    pub(crate) what: Arg,
    /// Who wants it, whoever asked first.
    pub(crate) voices: Vec<Voice>,
    pub(crate) since_us: u64,
    /// When it is done, Unix µs.
    pub(crate) due_us: u64,
    /// It is done when two persons want it, and never by time alone.
    pub(crate) needs_two: bool,
    /// Two persons wanted it: it is done, and done again after a crash, until the last of it is durable.
    #[serde(default)]
    pub(crate) is_agreed: bool,
    /// Why it was not done when it was due; an English text in records of earlier versions.
    #[serde(default)]
    pub(crate) hindered: Option<Arg>,
}

/// Somebody who wants it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Voice {
    pub(crate) by: String,
    pub(crate) address: String,
    /// It is an account that proved itself, not the local command.
    pub(crate) is_account: bool,
    pub(crate) time_us: u64,
}

/// What is done.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WaitingAct {
    /// How long a class keeps.
    Class(ClassChange),
    /// Which stream is of which class; only while the rules are those of `before`.
    Rules {
        rules: Vec<RuleRecord>,
        before: Vec<RuleRecord>,
    },
    /// Who opens the second container of a tenant.
    Officer(OfficerRecord),
    /// The end of a contract, with which the tenant's logs go.
    Contract {
        tenant: String,
        end: Day,
        grace_days: u32,
    },
    /// Deletions take one person.
    OnePerson,
    /// An agent goes, with all that is archived of it.
    Agent {
        #[serde(with = "codec")]
        agent: AgentId,
        name: String,
        why: String,
        /// Whether it might connect before.
        enabled: bool,
    },
}

/// How long a class keeps. What is not given stays, or is as it is in class `general`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct ClassChange {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keep_days: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) floor_days: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ceiling_days: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) operations_days: Option<u32>,
}

impl Stored for WaitingRecord {
    const KIND: u8 = 46;

    fn name(&self) -> Vec<u8> {
        self.id.clone().into_bytes()
    }
}
