//! Server time, and what may be done on it that cannot be undone.
//!
//! ```text
//! clocks, agents, checkpoints ─▶ [confirmation] ─▶ server time (clock.rs), day of receipt ([spans]): ingest, sealer
//!                                      │         └─▶ today, or why it waits ([told]): deletion, second container
//!                                      └─ steps ─▶ [watch] ─▶ alarm, audit trail
//! ```
//!
//! Invariants:
//! 1. Nothing that cannot be undone is done on a time that is not confirmed, nor sooner than the wait after a step.
//! 2. What is known of the clocks is in the catalogue: a restart forgets no step, and the wait goes on.
//! 3. A step that could not be told before the server died is told after its start.

mod confirmation;
#[cfg(test)]
mod model;
pub(crate) mod spans;
mod told;
pub(crate) mod watch;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Result;
use scrinium_protocol::evidence::interval::Doubt;
use tracing::{error, info, warn};

use self::confirmation::{Event, Look, STEP_US_MAX, Verdict};
pub(crate) use self::spans::Spans;
pub(crate) use self::told::{Said, Waits, duration};
use crate::agents::Agents;
use crate::catalogue::Catalogue;
use crate::catalogue::records::{SpansRecord, Step, TimeRecord};
use crate::clock::{self, Clocks, Day};
use crate::waits;

/// The server's time. There is one in a process.
pub(crate) struct ServerTime {
    catalogue: Arc<Catalogue>,
    agents: Arc<Agents>,
    /// How long a step keeps deletion waiting.
    wait_us: u64,
    /// What the last checkpoint and time stamp say, Unix µs.
    floor_us: AtomicU64,
    state: Mutex<State>,
}

struct State {
    record: TimeRecord,
    spans: Spans,
    verdict: Verdict,
    /// The boot time at which `record` was made durable last.
    saved_us: u64,
}

impl ServerTime {
    /// Reads what is known of the clocks, looks at them, and sets server time. `floor_us` is what the last checkpoint
    /// and time stamp say, `received_us` the latest time that an archived batch carries.
    pub(crate) fn open(
        catalogue: Arc<Catalogue>,
        agents: Arc<Agents>,
        step_wait: Duration,
        floor_us: u64,
        received_us: u64,
    ) -> Result<Self> {
        let mut record: TimeRecord = catalogue.load()?.pop().unwrap_or_default();
        // In the same run of the machine boot time has counted since; in another one it is known how it stood alone.
        let now = clock::clocks();
        let at_us = if record.run == now.run {
            now.boot_us
        } else {
            record.boot_us
        };
        let stood_us = record.server_us(at_us);
        // What came after the last time it was written down is later than that; how far, is bounded.
        let since_us = received_us.saturating_sub(stood_us);
        if since_us <= UNSAVED_US_MAX && !record.run.is_empty() {
            record.scale_us = record.scale_us.saturating_add_unsigned(since_us);
        }
        let spans: SpansRecord = catalogue.load()?.pop().unwrap_or_default();
        let time = Self {
            catalogue,
            agents,
            wait_us: u64::try_from(step_wait.as_micros()).unwrap_or(u64::MAX),
            floor_us: AtomicU64::new(floor_us),
            state: Mutex::new(State {
                record,
                spans: Spans::new(spans.spans),
                verdict: Verdict::Nobody { left_us: 0 },
                saved_us: 0,
            }),
        };
        time.look();
        time.save();
        Ok(time)
    }

    /// Looks at the clocks: moves server time, and notes steps for [`watch`] to tell.
    pub(crate) fn look(&self) {
        drop(self.looked());
    }

    fn looked(&self) -> (MutexGuard<'_, State>, Clocks) {
        let mut state = self.lock();
        let clocks = clock::clocks();
        let look = Look {
            agents_us: self.agents.clocks(clocks.boot_us),
            clocks: clocks.clone(),
            floor_us: self.floor_us.load(Ordering::Acquire),
            wait_us: self.wait_us,
        };
        let (verdict, events) = state.record.look(&look);
        state.verdict = verdict;
        let goes_back = events.contains(&Event::WentBack);
        clock::set_scale(state.record.scale_us, goes_back);
        for event in &events {
            state.note(*event);
        }
        let unsaved_us = clocks.boot_us.saturating_sub(state.saved_us);
        if !events.is_empty() || unsaved_us >= SAVE_US {
            self.save_state(&mut state);
        }
        (state, clocks)
    }

    /// Makes what is known durable: before the server ends.
    pub(crate) fn save(&self) {
        self.save_state(&mut self.lock());
    }

    fn save_state(&self, state: &mut State) {
        let spans = SpansRecord {
            spans: state.spans.list().to_vec(),
        };
        let saved = self.catalogue.write(|changes| {
            changes.put(&state.record)?;
            changes.put(&spans)
        });
        match saved {
            Ok(()) => state.saved_us = state.record.boot_us,
            // In memory it counts; after a restart the clocks are compared with what was saved before.
            Err(error) => {
                let error = format!("{error:#}");
                error!(error, "what the clocks show could not be written down");
            }
        }
    }

    /// The day on which what cannot be undone may be done now.
    ///
    /// # Errors
    /// Why nothing may be.
    pub(crate) fn today(&self) -> Result<Day, Waits> {
        let (state, clocks) = self.looked();
        match self.waits_in(&state, &clocks) {
            Some(waits) => Err(waits),
            None => Ok(Day::of(state.record.confirmed_us)),
        }
    }

    /// What deletion waits for, if it does.
    pub(crate) fn waits(&self) -> Option<Waits> {
        self.today().err()
    }

    /// The time that is confirmed now, Unix µs; none while nothing that cannot be undone may be done.
    pub(crate) fn confirmed_us(&self) -> Option<u64> {
        let (state, clocks) = self.looked();
        let waits = self.waits_in(&state, &clocks).is_some();
        (!waits).then_some(state.record.confirmed_us)
    }

    fn waits_in(&self, state: &State, clocks: &Clocks) -> Option<Waits> {
        Waits::of(&state.record, state.verdict, clocks, self.wait_us)
    }

    /// The later of what server time and the wall clock say of the day: what would be due if both were right.
    pub(crate) fn latest_day(&self) -> Day {
        Day::of(clock::unix_us().max(clock::wall_us()))
    }

    /// Nothing is confirmed any more that stands before a checkpoint or a time stamp.
    pub(crate) fn raise_floor(&self, time_us: u64) {
        self.floor_us.fetch_max(time_us, Ordering::AcqRel);
    }

    /// What an interval says of the time it ends at; none while it is confirmed.
    pub(crate) fn doubt(&self) -> Option<Doubt> {
        let (state, clocks) = self.looked();
        let wall_us = clocks.wall_us;
        // Server time that is still being slowed down to the wall clock is ahead of what is confirmed.
        let ahead_us = state
            .record
            .server_us(clocks.boot_us)
            .saturating_sub(wall_us);
        let is_certain = state.record.is_confirmed && ahead_us <= STEP_US_MAX;
        (!is_certain).then_some(Doubt { wall_us })
    }

    /// How long the machine has run since a server time, µs; none while nothing that cannot be undone may be done.
    /// Delays that end in such an act are measured so: a clock that is set, and a machine that is off, shorten none.
    pub(crate) fn passed_us(&self, since_us: u64) -> Option<u64> {
        let (state, clocks) = self.looked();
        if self.waits_in(&state, &clocks).is_some() {
            return None;
        }
        let now_us = state.record.server_us(clocks.boot_us);
        let jumped_us = state.spans.jumped_us(since_us);
        Some(now_us.saturating_sub(since_us).saturating_sub(jumped_us))
    }

    /// The day on which something was received that carries a server time.
    pub(crate) fn day_of_receipt(&self, received_us: u64) -> Day {
        self.lock().spans.day_of_receipt(received_us)
    }

    /// The days that count otherwise.
    pub(crate) fn spans(&self) -> Spans {
        self.lock().spans.clone()
    }

    /// What is known of the time, for people and programs.
    pub(crate) fn said(&self) -> Said {
        let (state, clocks) = self.looked();
        let waits = self.waits_in(&state, &clocks);
        let agents_us = self.agents.clocks(clocks.boot_us);
        Said::new(&state.record, state.verdict, &clocks, &agents_us, waits)
    }

    /// The time that agents' clocks are compared with: the wall clock, unless that was set away from server time.
    fn reference_us(&self) -> (u64, bool) {
        let (state, clocks) = self.looked();
        let reference_us = if state.record.is_held {
            state.record.server_us(clocks.boot_us)
        } else {
            clocks.wall_us
        };
        (reference_us, state.record.is_confirmed)
    }

    /// The first step that is not in the trail yet.
    fn untold(&self) -> Option<Step> {
        self.lock().record.untold.first().copied()
    }

    /// The first step is in the trail now.
    fn told(&self, step: Step) {
        let mut state = self.lock();
        state.record.untold.retain(|untold| *untold != step);
        self.save_state(&mut state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        waits::lock(&self.state)
    }
}

impl State {
    fn note(&mut self, event: Event) {
        match event {
            Event::Stepped(step) => warn!(
                expected_us = step.expected_us,
                shown_us = step.shown_us,
                "the clock was set: nothing is deleted until its time is confirmed"
            ),
            Event::Caught(span) => {
                let counts = self.spans.add(span);
                info!(
                    behind_s = span.behind_us / 1_000_000,
                    counts, "server time had been behind, and is not any more"
                );
            }
            Event::WentBack => info!("server time had run ahead and went back"),
            Event::Confirmed => info!("the time is confirmed"),
            Event::Doubted => warn!("the time is not confirmed any more"),
        }
    }
}

/// How often what is known is written down when nothing changes.
const SAVE_US: u64 = 600_000_000;
/// Server time that may have passed since then.
const UNSAVED_US_MAX: u64 = 3_600_000_000;

#[cfg(test)]
mod tests {
    use scrinium_protocol::secret::Secret;

    use super::*;
    use crate::clock::{DAY_US, VIRTUAL, VirtualClocks};

    #[test]
    fn a_step_while_the_server_is_down_is_seen_told_once_and_waited_for() {
        let dir = std::env::temp_dir().join(format!("scrinium-time-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        let open = || {
            let path = dir.join("catalogue.db");
            let catalogue = Catalogue::create(&path, &Secret::new([1; 32])).unwrap();
            let catalogue = Arc::new(catalogue);
            let agents = Arc::new(Agents::load(catalogue.clone(), 1).unwrap());
            // A process that begins knows no server time yet.
            set(|clocks| clocks.scale = None);
            ServerTime::open(catalogue, agents, Duration::from_secs(86_400), 0, 0).unwrap()
        };
        set(|clocks| {
            clocks.wall_us = BEGIN_US;
            clocks.synchronised = Some(true);
        });
        let time = open();
        assert_eq!(time.today(), Ok(Day::of(BEGIN_US)));
        assert_eq!(time.doubt(), None);
        let asked_us = clock::unix_us();
        drop(time);

        // An hour later, with the clock 400 days ahead.
        set(|clocks| {
            clocks.boot_us += HOUR_US;
            clocks.wall_us += HOUR_US + 400 * DAY_US;
        });
        let time = open();
        let waits = time.today().unwrap_err();
        assert!(waits.why.contains("forward by 400 days"), "{}", waits.why);
        assert_eq!(waits.until_us, Some(BEGIN_US + HOUR_US + DAY_US));
        assert_eq!(clock::unix_us(), BEGIN_US + HOUR_US);
        assert_eq!(time.passed_us(asked_us), None);
        assert!(time.doubt().is_some());
        drop(time);
        let time = open();
        let step = time.untold().unwrap();
        assert_eq!(step.shown_us - step.expected_us, 400 * DAY_US);
        time.told(step);
        drop(time);

        // Right again: that is a step too, and the wait begins again with it.
        set(|clocks| {
            clocks.boot_us += HOUR_US;
            clocks.wall_us = BEGIN_US + 2 * HOUR_US;
        });
        let time = open();
        let step = time.untold().unwrap();
        assert_eq!(step.expected_us - step.shown_us, 400 * DAY_US);
        assert!(time.today().is_err());
        assert_eq!(time.confirmed_us(), None);
        assert_eq!(time.doubt(), None);
        set(|clocks| {
            clocks.boot_us += DAY_US;
            clocks.wall_us += DAY_US;
        });
        assert_eq!(time.today(), Ok(Day::of(BEGIN_US + DAY_US)));
        assert_eq!(time.passed_us(asked_us), Some(2 * HOUR_US + DAY_US));

        // A checkpoint that is later than the clock.
        time.raise_floor(BEGIN_US + 3 * DAY_US);
        let waits = time.today().unwrap_err();
        assert_eq!(waits.until_us, None);
        assert!(waits.why.contains("46 hours before"), "{}", waits.why);
        VIRTUAL.set(None);
        std::fs::remove_dir_all(dir).unwrap();
    }

    fn set(change: impl FnOnce(&mut VirtualClocks)) {
        let mut clocks = VIRTUAL.get().unwrap_or_default();
        change(&mut clocks);
        VIRTUAL.set(Some(clocks));
    }

    const BEGIN_US: u64 = 1_800_000_000_000_000;
    const HOUR_US: u64 = 3_600_000_000;
}
