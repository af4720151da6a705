//! The audit trail: what people and commands did, as a stream of the archive like any other.
//!
//! Invariant: an act is durable in the trail before it is answered.

use serde_json::json;
use tokio::sync::oneshot;

use crate::clock;
use crate::local::{LocalEntry, LocalQueue};
use scrinium_protocol::entry::EntryFlags;
use scrinium_protocol::identity::StreamKind;

/// Where acts are written down.
#[derive(Clone)]
pub(crate) struct Audit(LocalQueue);

impl Audit {
    pub(crate) fn new(queue: LocalQueue) -> Self {
        Self(queue)
    }

    /// Writes down that `actor` did `action`; returns when it is durable. `false` when the archive
    /// takes nothing now: the act must then be refused.
    pub(crate) async fn record(
        &self,
        actor: &str,
        action: &str,
        detail: serde_json::Value,
    ) -> bool {
        let time_us = clock::unix_us();
        let line =
            json!({ "time_us": time_us, "actor": actor, "action": action, "detail": detail });
        let mut bytes = line.to_string().into_bytes();
        bytes.truncate(scrinium_protocol::entry::ENTRY_LEN_MAX - 1);
        bytes.push(b'\n');
        self.write(STREAM, bytes).await
    }

    /// Writes a line into one of the server's own trails; returns when it is durable. `false` when the archive
    /// takes nothing now.
    pub(crate) async fn write(&self, trail: &str, bytes: Vec<u8>) -> bool {
        let (durable, done) = oneshot::channel();
        let entry = LocalEntry {
            kind: StreamKind::Audit,
            name: trail.to_owned(),
            time_us: clock::unix_us(),
            flags: EntryFlags::NONE,
            bytes,
            durable: Some(durable),
        };
        if self.0.send(entry).await.is_err() {
            return false;
        }
        matches!(tokio::time::timeout(PATIENCE, done).await, Ok(Ok(())))
    }
}

/// The trail of certificates of deletion.
pub(crate) const DELETIONS: &str = "deletions";
/// What is left of each day in numbers.
pub(crate) const STATISTICS: &str = "statistics";
const STREAM: &str = "audit";
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
