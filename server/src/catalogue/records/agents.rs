//! Agents, and what lets them in.

use scrinium_protocol::identity::AgentId;
use serde::{Deserialize, Serialize};

use super::{FIRST_TENANT, StoredSecret, codec, hex};
use crate::catalogue::Stored;
use crate::said::{Arg, Said};

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
    /// Keys of states that were lost, the first one first, as hexadecimal text: what they signed can still be verified.
    #[serde(default)]
    pub(crate) signing_before: Vec<String>,
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
    /// It was removed: nobody reads what it sent, and its keys are destroyed when the delay is over.
    #[serde(default)]
    pub(crate) set_aside: bool,
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
    pub(crate) reason: Arg,
    pub(crate) address: String,
    pub(crate) host_name: String,
    pub(crate) fingerprint: Vec<(String, String)>,
    pub(crate) since_us: u64,
    pub(crate) approved: bool,
}

impl Quarantine {
    /// Whether it stands for this reason. Records of earlier versions have the English words.
    pub(crate) fn is_because_of(&self, reason: &Said) -> bool {
        Said::from(self.reason.clone()).to_string() == reason.to_string()
    }
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
    /// What the agent will be called: of a token of several uses a pattern, see `agents/names.rs`.
    pub(crate) agent_name: String,
    pub(crate) site: String,
    #[serde(default = "first_tenant")]
    pub(crate) tenant: String,
    pub(crate) made_us: u64,
    pub(crate) expires_s: u64,
    /// The static key of the agent that used it last.
    pub(crate) used_by: Option<String>,
    /// The account that made it; empty when the local command or an earlier version did.
    #[serde(default)]
    pub(crate) by: String,
    /// How many agents it enrols, and has enrolled.
    #[serde(default = "once")]
    pub(crate) uses_max: u32,
    #[serde(default)]
    pub(crate) uses: u32,
    /// The agent whose lost state the new one takes the place of; zeros: none.
    #[serde(default, with = "hex")]
    pub(crate) replaces: [u8; 16],
    /// Nobody enrols with it any more.
    #[serde(default)]
    pub(crate) revoked: bool,
}

fn once() -> u32 {
    1
}

impl Stored for TokenRecord {
    const KIND: u8 = 3;

    fn name(&self) -> Vec<u8> {
        self.id.to_vec()
    }
}

#[cfg(test)]
impl AgentRecord {
    /// One that only has a name.
    pub(crate) fn named(name: &str, id: u8, enrolled_us: u64) -> Self {
        let (zero, none) = ("00".repeat(32), "00".repeat(16));
        let agent = serde_json::json!({
            "id": none, "name": name, "site": "", "static_public": zero, "signing_public": zero,
            "credential": zero, "credential_next": null, "credential_superseded": null, "generation": 0,
            "enabled": true, "token_id": none, "enrolled_us": enrolled_us, "host_name": "", "version": "",
            "os": "", "fingerprint": [],
        });
        let agent: Self = serde_json::from_value(agent).unwrap();
        Self {
            id: AgentId([id; 16]),
            ..agent
        }
    }
}
