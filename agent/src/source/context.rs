//! What the sources share: how batches are made, and where they go.

use std::time::Duration;

use ed25519_dalek::SigningKey;
use scrinium_protocol::compress::Compressor;
use scrinium_syslog::senders::Senders;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::beat::Beat;
use super::pace::Pace;
use super::vanished::Vanished;
use crate::config::Deny;
use crate::shipper::Produced;

/// What every stream needs to make batches.
pub(crate) struct Context {
    pub(crate) signing: SigningKey,
    pub(crate) compressor: Compressor,
    pub(super) out: mpsc::Sender<Produced>,
    pub(super) runtime: Handle,
    pub(super) stopped: bool,
    /// There are more files than descriptors: those that are read are closed.
    pub(super) parks: bool,
    /// What nothing may collect.
    pub(super) deny: Deny,
    /// Who has a stream of those that send syslog.
    pub(super) senders: Senders,
    /// How much of compressed files is read.
    pub(super) unpacking: Pace,
    /// How much of them is compared with what is known.
    pub(super) comparing: Pace,
    /// That this thread lives.
    pub(super) beat: Beat,
    /// How long a stream waits for room before the others and the commands have their turn.
    pub(super) patience: Duration,
    /// Files that came and went unread.
    pub(super) vanished: Vanished,
}

impl Context {
    /// Hands a batch over. There is room, or next to: see [`Context::has_room`].
    pub(super) fn send(&mut self, produced: Produced) {
        if self.out.blocking_send(produced).is_err() {
            self.stopped = true;
        }
    }

    /// Whether a batch can be sealed, and those that the end of a pass may need.
    pub(super) fn has_room(&self) -> bool {
        self.out.capacity() >= BATCHES_AT_END
    }

    /// Waits a moment for room; whether there is still none.
    pub(super) fn is_blocked(&mut self) -> bool {
        self.beat.tick();
        if self.has_room() {
            return false;
        }
        let room = async {
            let room = self.out.reserve_many(BATCHES_AT_END);
            let room = tokio::time::timeout(self.patience, room).await;
            room.map(|room| room.is_ok())
        };
        match self.runtime.block_on(room) {
            Ok(true) => false,
            Ok(false) => {
                self.stopped = true;
                true
            }
            Err(_) => true,
        }
    }
}

/// Room for a batch, and for what the end of a pass may seal beside it.
const BATCHES_AT_END: usize = 3;
/// How long a stream waits for room in a running agent.
pub(super) const BLOCKED_MAX: Duration = Duration::from_millis(100);
