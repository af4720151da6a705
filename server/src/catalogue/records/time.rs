//! What is known of the clocks, so that a restart forgets no step.

use serde::{Deserialize, Serialize};

use crate::catalogue::Stored;

/// What the clocks showed when they were looked at last, and what was made of it; one row. Boot times are µs since the
/// machine was started.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct TimeRecord {
    /// Names the run of the machine that boot times are of; empty before the first look.
    pub(crate) run: String,
    /// The wall clock and the boot time at the last look.
    pub(crate) wall_us: u64,
    pub(crate) boot_us: u64,
    /// Wall clock minus boot time that steps are measured against, and the boot time it was taken at.
    pub(crate) ahead_us: i64,
    pub(crate) ahead_taken_us: u64,
    /// The boot time since which the wall clock runs as boot time does.
    pub(crate) steady_from_us: u64,
    /// Server time minus boot time.
    pub(crate) scale_us: i64,
    /// The latest wall clock that was confirmed, Unix µs; 0 before the first.
    pub(crate) confirmed_us: u64,
    pub(crate) is_confirmed: bool,
    /// The clock was set while the machine ran, away from a time that may have been right: server time stays where it
    /// is until the wait is over.
    pub(crate) is_held: bool,
    /// The boot time at which agents contradicted the clock last, until as many agree with it.
    pub(crate) contradicted_us: Option<u64>,
    /// The boot time of what deletion waits for.
    pub(crate) wait_from_us: Option<u64>,
    /// What was seen last of a clock that went another way.
    pub(crate) step: Option<Step>,
    /// Steps that are not in the trail yet, oldest first.
    pub(crate) untold: Vec<Step>,
    /// How long the machine was off, as the wall clock says, less what it ran since, µs: more than the wait is a step.
    #[serde(default)]
    pub(crate) off_us: u64,
    /// Server time since which the time is not confirmed.
    pub(crate) unconfirmed_from_us: Option<u64>,
}

impl Stored for TimeRecord {
    const KIND: u8 = 40;

    fn name(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// A clock that did not go as time went.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Step {
    pub(crate) kind: StepKind,
    /// Server time when it was seen.
    pub(crate) at_us: u64,
    /// What the wall clock should have shown, and what it showed.
    pub(crate) expected_us: u64,
    pub(crate) shown_us: u64,
}

/// How a clock went another way.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StepKind {
    /// It was set while the machine ran.
    Set,
    /// The machine was started, and it stands before what it had shown.
    Behind,
    /// The machine was started, and it stands so far after what it had shown that it may be wrong.
    Ahead,
}

/// Server time that turned out to have been behind the true time.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct TimeSpan {
    /// Server times, both ends included.
    pub(crate) from_us: u64,
    pub(crate) to_us: u64,
    /// By how much.
    pub(crate) behind_us: u64,
}

/// Every such span, in order; one row.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct SpansRecord {
    pub(crate) spans: Vec<TimeSpan>,
}

impl Stored for SpansRecord {
    const KIND: u8 = 41;

    fn name(&self) -> Vec<u8> {
        Vec::new()
    }
}
