//! Whether the wall clock is to be believed: a state machine without clock, disk or network.
//!
//! ```text
//! looks at the clocks ─▶ [relate]: start, restart, step ─▶ [judge]: confirmed or why not ─▶ server time, events
//! ```
//!
//! Invariants:
//! 1. Server time runs with boot time. It jumps forward alone, and only to a wall clock that is confirmed.
//! 2. A wall clock that stands before a confirmed time, a checkpoint or a time stamp is never confirmed, and never one
//!    that the median of three or more agents contradicts.
//! 3. A wall clock that was set while the machine ran moves server time after the wait at the earliest.

use crate::catalogue::records::{Step, StepKind, TimeRecord, TimeSpan};
use crate::clock::Clocks;

/// What is known at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) clocks: Clocks,
    /// What the clocks of agents show now, Unix µs; of those that were heard a short time ago.
    pub(crate) agents_us: Vec<u64>,
    /// What the last checkpoint and time stamp say.
    pub(crate) floor_us: u64,
    /// How long a step keeps deletion waiting.
    pub(crate) wait_us: u64,
}

/// What makes a wall clock believed, or not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// The kernel says that somebody keeps it right.
    Kernel,
    /// The median of so many agents is near.
    Agents { agents: usize },
    /// Nobody contradicted it, and it ran steadily for a day.
    Steady,
    /// It was confirmed, and went on steadily since.
    Still,
    /// It stands before what is certain.
    Behind { floor_us: u64, by_us: u64 },
    /// The median of so many agents is so far ahead of it, µs.
    Contradicted { agents: usize, median_us: i64 },
    /// Agents contradicted it, and too few were heard since to take that back: so long until they are given up.
    Unheard { left_us: u64 },
    /// It was set while the machine ran: so long until it is believed.
    Held { left_us: u64 },
    /// Nobody says anything: so long until it ran steadily for a day.
    Nobody { left_us: u64 },
}

impl Verdict {
    pub(crate) fn is_confirmed(self) -> bool {
        match self {
            Self::Kernel | Self::Agents { .. } | Self::Steady | Self::Still => true,
            Self::Behind { .. }
            | Self::Contradicted { .. }
            | Self::Unheard { .. }
            | Self::Held { .. }
            | Self::Nobody { .. } => false,
        }
    }
}

/// What a look changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Event {
    Stepped(Step),
    /// Server time had been behind, and is not any more.
    Caught(TimeSpan),
    /// Server time was never confirmed and ran ahead: it goes back.
    WentBack,
    /// The wall clock is believed from now on.
    Confirmed,
    /// It is not believed any more.
    Doubted,
}

impl TimeRecord {
    /// Takes a look into account.
    pub(crate) fn look(&mut self, look: &Look) -> (Verdict, Vec<Event>) {
        let mut events = Vec::new();
        self.relate(look, &mut events);
        let verdict = self.judge(look, &mut events);
        self.wall_us = look.clocks.wall_us;
        self.boot_us = look.clocks.boot_us;
        (verdict, events)
    }

    /// Server time at a boot time of this run.
    pub(crate) fn server_us(&self, boot_us: u64) -> u64 {
        boot_us.saturating_add_signed(self.scale_us)
    }

    /// How long deletion still waits after a step or a long absence.
    pub(crate) fn wait_left_us(&self, boot_us: u64, wait_us: u64) -> Option<u64> {
        let waited_us = boot_us.saturating_sub(self.wait_from_us?);
        wait_us.checked_sub(waited_us).filter(|&left| left > 0)
    }

    /// Compares the clocks with the last look.
    fn relate(&mut self, look: &Look, events: &mut Vec<Event>) {
        let Clocks {
            wall_us, boot_us, ..
        } = look.clocks;
        let ahead_us = distance(wall_us, boot_us);
        if self.run.is_empty() {
            self.scale_us = ahead_us;
            self.begin_run(look);
            return;
        }
        if self.run != look.clocks.run || boot_us < self.boot_us {
            let stood_us = self.server_us(self.boot_us);
            let expected_us = if self.is_confirmed {
                self.wall_us
            } else {
                stood_us
            };
            // How long the machine was off nobody knows: server time goes on where it stood.
            self.scale_us = distance(stood_us, boot_us);
            let waits = self.wait_from_us.is_some();
            self.begin_run(look);
            self.wait_from_us = waits.then_some(boot_us);
            self.contradicted_us = self.contradicted_us.map(|_| boot_us);
            // So long the machine was off, if the clock is right: many short times count together.
            self.off_us = self
                .off_us
                .saturating_add(wall_us.saturating_sub(expected_us));
            let kind = if wall_us.saturating_add(STEP_US_MAX) < expected_us {
                Some(StepKind::Behind)
            } else if self.off_us > look.wait_us {
                Some(StepKind::Ahead)
            } else {
                None
            };
            if let Some(kind) = kind {
                self.step(kind, expected_us, look, events);
            }
            return;
        }
        // A machine that runs for half a day may be off for a whole one.
        let ran_us = boot_us.saturating_sub(self.boot_us);
        self.off_us = self
            .off_us
            .saturating_sub(ran_us.saturating_mul(OFF_PER_RUN));
        let moved_us = ahead_us.abs_diff(self.ahead_us);
        if moved_us > STEP_US_MAX {
            let expected_us = boot_us.saturating_add_signed(self.ahead_us);
            self.step(StepKind::Set, expected_us, look, events);
            // One that stood before what is certain was wrong: whoever sets it may be right.
            self.is_held |= expected_us.saturating_add(STEP_US_MAX) >= self.floor_us(look);
            self.doubt(boot_us);
            self.steady_from_us = boot_us;
            self.take_measure(ahead_us, boot_us);
            if self.server_us(boot_us) < RELEASED_US {
                // A new volume under a dead clock: it knows nothing better than what the clock shows now.
                self.catch_up(wall_us, boot_us, events);
                self.doubt(boot_us);
                self.is_held = false;
            }
        } else if boot_us.saturating_sub(self.ahead_taken_us) >= MEASURE_US {
            self.take_measure(ahead_us, boot_us);
        }
    }

    /// The first look of a run of the machine.
    fn begin_run(&mut self, look: &Look) {
        let boot_us = look.clocks.boot_us;
        self.run.clone_from(&look.clocks.run);
        self.steady_from_us = boot_us;
        self.take_measure(distance(look.clocks.wall_us, boot_us), boot_us);
        self.is_held = false;
        self.doubt(boot_us);
    }

    fn take_measure(&mut self, ahead_us: i64, boot_us: u64) {
        self.ahead_us = ahead_us;
        self.ahead_taken_us = boot_us;
    }

    fn doubt(&mut self, boot_us: u64) {
        self.is_confirmed = false;
        let since_us = self.server_us(boot_us);
        self.unconfirmed_from_us.get_or_insert(since_us);
    }

    /// Moves server time forward to the wall clock, and says since when it had been behind.
    fn catch_up(&mut self, wall_us: u64, boot_us: u64, events: &mut Vec<Event>) {
        let server_us = self.server_us(boot_us);
        let behind_us = wall_us.saturating_sub(server_us);
        let from_us = self.unconfirmed_from_us.take().unwrap_or(server_us);
        if behind_us > STEP_US_MAX {
            self.scale_us = distance(wall_us, boot_us);
            events.push(Event::Caught(TimeSpan {
                from_us: from_us.min(server_us),
                to_us: server_us,
                behind_us,
            }));
        }
    }

    fn step(&mut self, kind: StepKind, expected_us: u64, look: &Look, events: &mut Vec<Event>) {
        let step = Step {
            kind,
            at_us: self.server_us(look.clocks.boot_us),
            expected_us,
            shown_us: look.clocks.wall_us,
        };
        self.wait_from_us = Some(look.clocks.boot_us);
        self.off_us = 0;
        self.step = Some(step);
        self.untold.push(step);
        if self.untold.len() > UNTOLD_MAX {
            self.untold.remove(0);
        }
        events.push(Event::Stepped(step));
    }

    /// Whether the wall clock is believed now, and what server time is then.
    fn judge(&mut self, look: &Look, events: &mut Vec<Event>) -> Verdict {
        let Clocks {
            wall_us, boot_us, ..
        } = look.clocks;
        let verdict = self.verdict(look);
        match verdict {
            Verdict::Contradicted { .. } => self.contradicted_us = Some(boot_us),
            // The server may have been started again, and its agents not have come back yet.
            Verdict::Unheard { .. } | Verdict::Behind { .. } => {}
            Verdict::Kernel
            | Verdict::Agents { .. }
            | Verdict::Steady
            | Verdict::Still
            | Verdict::Held { .. }
            | Verdict::Nobody { .. } => self.contradicted_us = None,
        }
        if !verdict.is_confirmed() {
            if self.is_confirmed {
                self.doubt(boot_us);
                events.push(Event::Doubted);
            }
            return verdict;
        }
        if !self.is_confirmed {
            self.catch_up(wall_us, boot_us, events);
            let ran_ahead_us = self.server_us(boot_us).saturating_sub(wall_us);
            if self.confirmed_us == 0 && ran_ahead_us > STEP_US_MAX {
                self.scale_us = distance(wall_us, boot_us);
                events.push(Event::WentBack);
            }
            self.unconfirmed_from_us = None;
            self.is_confirmed = true;
            self.is_held = false;
            events.push(Event::Confirmed);
        }
        self.confirmed_us = self.confirmed_us.max(wall_us);
        let server_us = self.server_us(boot_us);
        if wall_us >= server_us {
            self.scale_us = distance(wall_us, boot_us);
        } else {
            // It goes at half its pace until the wall clock has come up with it.
            let passed_us = boot_us.saturating_sub(self.boot_us) / 2;
            let slower_us = passed_us.min(server_us.saturating_sub(wall_us));
            self.scale_us = self.scale_us.saturating_sub_unsigned(slower_us);
        }
        if self.wait_left_us(boot_us, look.wait_us).is_none() {
            self.wait_from_us = None;
        }
        verdict
    }

    /// No clock that stands before this is right, Unix µs.
    fn floor_us(&self, look: &Look) -> u64 {
        self.confirmed_us.max(look.floor_us).max(RELEASED_US)
    }

    fn verdict(&self, look: &Look) -> Verdict {
        let Clocks {
            wall_us, boot_us, ..
        } = look.clocks;
        let floor_us = self.floor_us(look);
        if wall_us.saturating_add(STEP_US_MAX) < floor_us {
            let by_us = floor_us.saturating_sub(wall_us);
            return Verdict::Behind { floor_us, by_us };
        }
        let agents = look.agents_us.len();
        let median_us = median(&look.agents_us).map(|median_us| distance(median_us, wall_us));
        let near = median_us.map(|median_us| median_us.unsigned_abs() <= AGENTS_US_MAX);
        if let (Some(median_us), Some(false)) = (median_us, near) {
            return Verdict::Contradicted { agents, median_us };
        }
        if near.is_none()
            && let Some(contradicted_us) = self.contradicted_us
        {
            let left_us = STEADY_US.saturating_sub(boot_us.saturating_sub(contradicted_us));
            if left_us > 0 {
                return Verdict::Unheard { left_us };
            }
        }
        let steady_us = boot_us.saturating_sub(self.steady_from_us);
        let believed = if look.clocks.synchronised == Some(true) {
            Verdict::Kernel
        } else if near == Some(true) {
            Verdict::Agents { agents }
        } else if self.is_confirmed {
            Verdict::Still
        } else if steady_us >= STEADY_US {
            Verdict::Steady
        } else {
            let left_us = STEADY_US.saturating_sub(steady_us);
            return Verdict::Nobody { left_us };
        };
        let moves = wall_us.abs_diff(self.server_us(boot_us)) > STEP_US_MAX;
        match self.wait_left_us(boot_us, look.wait_us) {
            Some(left_us) if self.is_held && moves => Verdict::Held { left_us },
            _ => believed,
        }
    }
}

/// The median of three or more; of fewer there is none.
fn median(times_us: &[u64]) -> Option<u64> {
    let mut times_us = times_us.to_vec();
    times_us.sort_unstable();
    let middle = times_us.get(times_us.len() / 2).copied();
    middle.filter(|_| times_us.len() >= AGENTS_MIN)
}

/// From `b_us` to `a_us`.
pub(crate) fn distance(a_us: u64, b_us: u64) -> i64 {
    a_us.cast_signed().saturating_sub(b_us.cast_signed())
}

/// A wall clock that moves by more against boot time, from one look to the next, was set.
pub(crate) const STEP_US_MAX: u64 = 5_000_000;
/// Agents of which the median counts; fewer say nothing.
pub(crate) const AGENTS_MIN: usize = 3;
/// How far the median of the agents may be from a wall clock that it confirms.
pub(crate) const AGENTS_US_MAX: u64 = 300_000_000;
/// How long a wall clock runs steadily until it is believed without a witness.
pub(crate) const STEADY_US: u64 = 86_400_000_000;
/// 2026-01-01: no clock that stands before this program was written is right.
const RELEASED_US: u64 = 1_767_225_600_000_000;
/// Steps that wait for the trail; of more the oldest are not told.
const UNTOLD_MAX: usize = 64;
/// How long a machine may have been off for each time that it ran, before somebody is to confirm that it was.
const OFF_PER_RUN: u64 = 2;
/// Small corrections within this time count together.
const MEASURE_US: u64 = 3_600_000_000;
