//! An agent whose state does not open asks for its key: it was moved, too much of its machine changed, or it is a copy.
//!
//! It shows a credential that lies beside the state, and that whoever copied it has too. So it proves nothing but which
//! agent is meant: a person decides, and an agent that is connected is one already.

use scrinium_protocol::identity::AgentId;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::suite::Suite;
use scrinium_segment::key::{asking_credential, state_key};

use super::accept::{changed_components, hex_fingerprint, waiting};
use super::{Agents, Proven, Refused};
use crate::said::said;

impl Agents {
    /// The credential with which an agent asks; none of an agent that is not known, or was enrolled by no program that
    /// agreed on one.
    pub(crate) fn asking_credential(&self, id: AgentId) -> Option<Secret<32>> {
        let recovery = self.get(id)?.recovery?;
        Some(asking_credential(&recovery.0))
    }

    /// The key of the agent's state, for the machine that a person let in.
    pub(crate) fn grant_state_key(
        &self,
        id: AgentId,
        proven: &Proven<'_>,
    ) -> Result<Secret<32>, Refused> {
        // What is in clear is read on the wire.
        if proven.suite != Suite::Encrypted {
            return Err(Refused::SuiteNotAllowed);
        }
        let mut state = self.lock();
        let agent = state.agents.get(&id).ok_or(Refused::UnknownAgent)?.clone();
        if !agent.enabled || agent.set_aside {
            return Err(Refused::Disabled);
        }
        let recovery = agent.recovery.as_ref().ok_or(Refused::UnknownAgent)?;
        // Looked up again: it may have been enrolled anew meanwhile.
        if id != proven.hello.agent || asking_credential(&recovery.0) != *proven.used {
            return Err(Refused::WrongCredential);
        }
        if state.sessions.contains_key(&id) {
            return Err(Refused::InUse);
        }
        let seen = hex_fingerprint(proven.hello);
        let is_approved = agent
            .quarantine
            .as_ref()
            .is_some_and(|quarantine| quarantine.approved && quarantine.fingerprint == seen);
        if is_approved {
            return Ok(state_key(&recovery.0));
        }
        let changed = changed_components(&agent.fingerprint, &seen);
        // Short: with what a person is to do it must fit into a refusal.
        let reason = match changed.is_empty() {
            true => said!("quarantine.asks"),
            false => said!("quarantine.asks_changed", changed.join(", ")),
        };
        let seen = waiting(proven, &reason, seen);
        Err(self.quarantine(&mut state, agent, reason, seen))
    }
}
