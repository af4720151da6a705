//! What it takes to ask the server for the key of a state that does not open on this machine.
//!
//! ```text
//! agent id (16) | address (2 + n) | server public key (32) | credential (32) | wrapped key (2 + n)
//! ```
//!
//! It lies beside the state, sealed under the install secret alone: whoever copied the directory can ask too, and is an
//! alarm when it does. It opens nothing without what the server gives.

use anyhow::Result;
use scrinium_protocol::codec::{Codec as _, Reader, put_bytes16};
use scrinium_protocol::identity::AgentId;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::token::ADDRESS_LEN_MAX;
use scrinium_segment::key::{asking_credential, state_key};
use scrinium_segment::wrap::{unwrap, wrap};

use super::State;

/// What it takes to ask.
#[derive(Debug)]
pub(crate) struct Asking {
    pub(crate) agent: AgentId,
    pub(crate) address: String,
    pub(crate) server_public: [u8; 32],
    pub(crate) credential: Secret<32>,
    /// The key of the state, under what the server gives.
    wrapped: String,
}

impl Asking {
    /// None of an agent that has not agreed on a recovery credential with its server.
    pub(super) fn new(state: &State, key: &Secret<32>) -> Result<Option<Self>> {
        let Some(recovery) = &state.recovery else {
            return Ok(None);
        };
        Ok(Some(Self {
            agent: state.agent,
            address: state.address.clone(),
            server_public: state.server_public,
            credential: asking_credential(recovery),
            wrapped: wrap(&state_key(recovery), key, ABOUT)?,
        }))
    }

    /// Whether it is what this state would ask with.
    pub(super) fn is_of(&self, state: &State, recovery: &Secret<32>, key: &Secret<32>) -> bool {
        self.agent == state.agent
            && self.address == state.address
            && self.server_public == state.server_public
            && self.credential == asking_credential(recovery)
            && self.open(&state_key(recovery)).as_ref() == Some(key)
    }

    /// The key, with what the server gave.
    pub(super) fn open(&self, state_key: &Secret<32>) -> Option<Secret<32>> {
        unwrap(state_key, &self.wrapped, ABOUT)
    }

    pub(super) fn encoded(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.agent.encode(&mut out);
        put_bytes16(&mut out, self.address.as_bytes());
        out.extend_from_slice(&self.server_public);
        out.extend_from_slice(self.credential.expose());
        put_bytes16(&mut out, self.wrapped.as_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader::new(bytes);
        Some(Self {
            agent: AgentId::read(&mut r).ok()?,
            address: r.text16(ADDRESS_LEN_MAX, "address").ok()?,
            server_public: r.array("server public key").ok()?,
            credential: Secret::new(r.array("credential").ok()?),
            wrapped: r.text16(WRAPPED_LEN_MAX, "wrapped key").ok()?,
        })
    }
}

const ABOUT: &str = "agent state, server";
/// More than a nonce, a key and a tag take as hexadecimal text: 120 bytes.
const WRAPPED_LEN_MAX: usize = 256;
