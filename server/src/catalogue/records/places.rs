//! Places beside the volume that once held something of it.

use serde::{Deserialize, Serialize};

use crate::catalogue::Stored;

/// A place that was written to: what is not there any more was not mounted, or was removed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct PlaceRecord {
    /// What for: `backup` or `copies`.
    pub(crate) what: String,
    pub(crate) place: String,
    /// When it was first written to, Unix µs.
    pub(crate) since_us: u64,
}

impl Stored for PlaceRecord {
    const KIND: u8 = 58;

    fn name(&self) -> Vec<u8> {
        format!("{} {}", self.what, self.place).into_bytes()
    }
}
