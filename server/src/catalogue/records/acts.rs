//! What was done while nothing could be written into the audit trail, and how the server's last run ended.

use serde::{Deserialize, Serialize};

use crate::catalogue::Stored;

/// An act that the audit trail does not have yet: a row of `acts.pending`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct LateActRecord {
    /// Names it, in the trail too.
    pub(crate) record: String,
    pub(crate) time_us: u64,
    pub(crate) actor: String,
    pub(crate) address: String,
    pub(crate) action: String,
    pub(crate) detail: serde_json::Value,
    /// Where the trail stood when it was sent there; it may be behind that.
    pub(crate) sent_at: Option<u64>,
}

impl Stored for LateActRecord {
    const KIND: u8 = 45;

    fn name(&self) -> Vec<u8> {
        self.record.clone().into_bytes()
    }
}

/// Whether the last stop wrote down how the volume lies; one row.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct RestRecord {
    pub(crate) lies: bool,
}

impl Stored for RestRecord {
    const KIND: u8 = 42;

    fn name(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// The last run of the server; one row.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct RunRecord {
    pub(crate) version: String,
    pub(crate) started_us: u64,
    /// When it ended in order, Unix µs, and by what.
    pub(crate) ended: Option<(u64, String)>,
    /// Times without the server of which the sources of syslog have no gap entry yet, the first one first.
    #[serde(default)]
    pub(crate) absences: Vec<AbsenceRecord>,
}

/// A time without the server.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct AbsenceRecord {
    /// Unix µs.
    pub(crate) from_us: u64,
    pub(crate) to_us: u64,
    /// How it ended before, in words.
    pub(crate) how: String,
}

impl Stored for RunRecord {
    const KIND: u8 = 47;

    fn name(&self) -> Vec<u8> {
        Vec::new()
    }
}
