//! What the agent knows and does about shipping, without socket, clock or thread.
//!
//! ```text
//! sources ─take─▶ spool ─▶ AgentSession ─poll_transmit─▶ socket
//!    ▲                         │ handle_bytes ◀────────── socket
//!    └──────poll_order◀────────┘ the server states where each stream stands
//! ```
//!
//! Invariants:
//! 1. `behind` is durable before a batch is sent that positions on the disk do not know: one that lies
//!    only in RAM, or was spilled without writing positions down.
//! 2. It is cleared only with RAM empty: by a spill, after which the disk knows everything sent.
//! 3. The credential is replaced, durably, when the server's first record was opened, and before the
//!    server is told so.
//! 4. A configuration is in force only after it is durable, and is answered only after the thread that collects
//!    has taken it up.

mod aside;
mod binding;
mod configuration;
mod disk;
mod link;
mod sending;
mod stands;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use ed25519_dalek::SigningKey;
use scrinium_protocol::batch::{SealedBatch, StreamPosition};
use scrinium_protocol::identity::{Sequence, StreamId, StreamName};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::RefusalCode;
use scrinium_protocol::sl::in_force::Setting;
use scrinium_protocol::sl::sources::SourceReports;

use self::aside::Aside;
use self::binding::Migration;
use self::link::Link;
use crate::config::Limits;
use crate::identity::{Identity, State};
use crate::spool::{Fill, Spool};

/// A batch on its way to the spool.
#[derive(Debug)]
pub struct Produced {
    /// What the stream is called.
    pub name: StreamName,
    /// How often the stream was rewound before this batch was made: one made before the last
    /// rewind is dropped.
    pub rewinds: u64,
    pub batch: SealedBatch,
}

/// What the sources are to do.
#[derive(Debug)]
pub enum Order {
    /// Begin, from where each stream stands.
    Start {
        positions: BTreeMap<StreamId, StreamPosition>,
        /// Streams of which something sealed is gone: it is to be said, or read again.
        lost: BTreeSet<StreamId>,
    },
    /// Forget what was read of this stream after `position`, and go on there.
    Rewind {
        stream: StreamId,
        position: StreamPosition,
        rewinds: u64,
        /// Something sealed after `position` is gone.
        lost: bool,
    },
    /// Collect what the server's configuration says, of this text; without one, what this machine's own
    /// says.
    Configure {
        text: Option<String>,
        /// The version that is answered once it is taken up: see [`Shipper::handle_configured`].
        answers: Option<u64>,
    },
}

/// The server refused, in its own words.
#[derive(Debug, thiserror::Error)]
#[error("the server refused: {reason}")]
pub struct Refused {
    pub code: RefusalCode,
    pub reason: String,
}

impl Refused {
    /// What [`scrinium_protocol::sl::handshake::refusal_of`] found.
    #[must_use]
    pub fn new((code, reason): (RefusalCode, String)) -> Self {
        Self { code, reason }
    }
}

/// Checks the text of a configuration; says why it cannot be applied.
pub type Check = Box<dyn Fn(&str) -> Result<()> + Send>;

/// The agent's shipping.
pub struct Shipper {
    identity: Identity,
    spool: Spool,
    link: Option<Link>,
    /// Where each stream stands after its last batch produced.
    positions: BTreeMap<StreamId, StreamPosition>,
    rewinds: BTreeMap<StreamId, u64>,
    /// Streams of which something sealed is gone, until the sources are told.
    lost: BTreeSet<StreamId>,
    has_sources: bool,
    orders: VecDeque<Order>,
    /// Streams that moved since the last keep-alive.
    moved: BTreeSet<StreamId>,
    /// How often in a row the server did not know the credential.
    unknown: u8,
    check: Check,
    /// How the configuration on trial does.
    trial: Option<configuration::Progress>,
    /// What of the configuration that was in force before is not, since this process began.
    refused: Option<String>,
    /// What is in force, for the server.
    in_force: Vec<Setting>,
    /// How long it may keep the server out of reach.
    revert_after: Duration,
    /// Why there is no link, while there is none.
    pub problem: Option<String>,
    /// Why the disk does not take what it must, while it does not.
    pub disk_problem: Option<String>,
    /// How long an outage the cache outlasts, as far as its owner knows.
    pub cache_lasts: Option<Duration>,
    pub acked_entries: u64,
    /// What somebody on the way did to the last session, until the server was told.
    interference: Option<String>,
    /// Receipts for more than the server stated that were shown to it since this process began: one that does not
    /// know the message ends the session, and is not asked again.
    shown: BTreeSet<(StreamId, Sequence)>,
    /// New streams that the server does not take.
    aside: Aside,
    /// Bytes of batches taken from the sources.
    pub produced_bytes: u64,
    /// How the sources do, and that their thread hangs: as their owner knows, before a keep-alive is due.
    pub reports: Arc<SourceReports>,
    pub hung_at: Option<String>,
    /// When what the state is bound to is looked after.
    migration: Migration,
}

impl std::fmt::Debug for Shipper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shipper = f.debug_struct("Shipper");
        { shipper }
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

impl Shipper {
    /// Opens the spool in `dir`.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn open(
        dir: &Path,
        key: &Secret<32>,
        limits: Limits,
        identity: Identity,
        check: Check,
    ) -> Result<Self> {
        let signing = SigningKey::from_bytes(identity.state.signing.expose());
        let spool = Spool::open(&dir.join("spool"), key, limits, signing)?;
        let mut positions = identity.state.positions.clone();
        let mut lost = BTreeSet::new();
        for (stream, end) in spool.ends() {
            let before = positions.insert(stream, end.clone());
            if before.is_some_and(|before| is_before(&end, &before)) {
                lost.insert(stream);
            }
        }
        let mut shipper = Self {
            identity,
            spool,
            link: None,
            positions,
            rewinds: BTreeMap::new(),
            lost,
            has_sources: false,
            orders: VecDeque::new(),
            moved: BTreeSet::new(),
            unknown: 0,
            check,
            trial: None,
            refused: None,
            in_force: Vec::new(),
            revert_after: REVERT_AFTER,
            problem: None,
            disk_problem: None,
            cache_lasts: None,
            acked_entries: 0,
            interference: None,
            shown: BTreeSet::new(),
            aside: Aside::default(),
            produced_bytes: 0,
            reports: Arc::default(),
            hung_at: None,
            migration: Migration::default(),
        };
        // When the last stop left nothing unsaid the sources go on at once, else when the server has
        // spoken.
        if !shipper.identity.state.behind && shipper.identity.state.token.is_none() {
            shipper.start_sources();
        }
        Ok(shipper)
    }

    /// What is written down of this agent.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.identity.state
    }

    /// The credential of the next attempt to connect.
    #[must_use]
    pub fn credential(&self) -> &Secret<32> {
        let state = &self.identity.state;
        match &state.recovery {
            Some(recovery) if self.unknown >= UNKNOWN_MAX => recovery,
            _ => &state.credential,
        }
    }

    /// The credential agreed in this connection, not yet ours before the server's first record.
    #[must_use]
    pub fn next_credential(&self) -> Option<&Secret<32>> {
        Some(&self.link.as_ref()?.next_credential)
    }

    /// Sets what the spool may use.
    pub fn set_limits(&mut self, limits: Limits) {
        self.spool.set_limits(limits);
    }

    /// What waits.
    #[must_use]
    pub fn fill(&self) -> Fill {
        self.spool.fill()
    }

    /// Whether batches flow.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.ready_since.is_some())
    }

    /// Returns what the sources are to do next.
    pub fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    fn start_sources(&mut self) {
        self.has_sources = true;
        self.orders.push_back(Order::Start {
            positions: self.positions.clone(),
            lost: core::mem::take(&mut self.lost),
        });
    }

    /// Whether sources were started: else nothing is known that was not known at the last stop.
    #[must_use]
    pub fn has_sources(&self) -> bool {
        self.has_sources
    }
}

/// Whether `one` is earlier in the same history than `other`.
fn is_before(one: &StreamPosition, other: &StreamPosition) -> bool {
    one.epoch == other.epoch && one.next < other.next
}

/// How long a new configuration may keep the server out of reach, unless this machine's says otherwise.
const REVERT_AFTER: Duration = Duration::from_secs(600);
/// Refusals of the rolling credential in a row before the recovery credential is shown.
const UNKNOWN_MAX: u8 = 3;

#[cfg(test)]
pub(super) mod tests {
    use ed25519_dalek::SigningKey;
    use scrinium_protocol::identity::{AgentId, Epoch};

    use super::*;

    #[test]
    fn the_recovery_credential_is_shown_once_after_three_unknown_ones() {
        let dir = std::env::temp_dir().join(format!("scrinium-recovery-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        let (mut shipper, _) = shipper(&dir);
        let refused = |code| anyhow::Error::from(Refused::new((code, String::new())));
        let mut shown = Vec::new();
        for _ in 0..9 {
            shown.push(*shipper.credential().expose() == [4; 32]);
            shipper.handle_disconnected(&refused(RefusalCode::Credential));
        }
        let expected = [false, false, false, true, false, false, false, true, false];
        assert_eq!(shown, expected);
        // Other refusals, and broken connections, are no reason.
        for _ in 0..9 {
            shipper.handle_disconnected(&refused(RefusalCode::Other));
            shipper.handle_disconnected(&anyhow::anyhow!("broken"));
            assert_eq!(shipper.credential().expose(), &[3; 32]);
        }
        drop(shipper);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    pub(super) fn shipper(dir: &Path) -> (Shipper, SigningKey) {
        let server = SigningKey::from_bytes(&[6; 32]);
        let key = crate::identity::prepare(dir).unwrap();
        let state = State {
            agent: AgentId([1; 16]),
            address: "localhost:720".into(),
            server_public: [0; 32],
            noise: Secret::new([1; 32]),
            signing: Secret::new([2; 32]),
            credential: Secret::new([3; 32]),
            token: None,
            recovery: Some(Secret::new([4; 32])),
            server_signing: Some(server.verifying_key().to_bytes()),
            central: None,
            trial: None,
            reverted: None,
            epoch: Epoch([5; 16]),
            behind: false,
            positions: BTreeMap::new(),
            receipts: BTreeMap::new(),
        };
        let limits = Limits {
            ram_bytes_max: 1 << 20,
            disk_bytes_max: 1 << 20,
        };
        let check = Box::new(|text: &str| {
            anyhow::ensure!(text.starts_with("fine"), "the text is bad");
            Ok(())
        });
        let identity = Identity::create(dir, &key, state).unwrap();
        let shipper = Shipper::open(dir, &key, limits, identity, check).unwrap();
        (shipper, server)
    }
}
