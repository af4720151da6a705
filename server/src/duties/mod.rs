//! What is done again and again, and what runs all the time: the table that says of each when it was and how it went.
//!
//! ```text
//! [keep]: a task for each duty ─┐
//! upkeep's thread ──────────────┼─▶ [Duties] ─▶ scrinium-server duties, /metrics
//! [crate::vital]: parts ────────┘
//! ```
//!
//! Invariant: a duty that fails or panics stands here with what it said, and is begun again; a part that ends ends the
//! process.

pub(crate) mod keep;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::clock;
use crate::present::rfc3339;

/// The table of all duties and parts of this process.
#[derive(Debug, Default)]
pub(crate) struct Duties(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    duties: BTreeMap<&'static str, Row>,
    /// How many of each run.
    parts: BTreeMap<&'static str, usize>,
}

/// What is known of a duty. Times are Unix µs; 0: not yet.
#[derive(Clone, Debug, Default)]
struct Row {
    every: Duration,
    rounds: u64,
    panics: u64,
    is_running: bool,
    began_us: u64,
    ended_us: u64,
    next_us: u64,
    good_us: u64,
    /// How often it failed since it was last good, since when, and what it said last.
    failing: Option<Failing>,
}

/// A duty that fails.
#[derive(Clone, Debug)]
pub(crate) struct Failing {
    pub(crate) times: u64,
    pub(crate) since_us: u64,
    pub(crate) error: String,
}

/// How a round ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Good,
    Failed(String),
    Panicked(String),
}

/// A duty, for people and programs; the names are stable.
#[derive(Debug, Serialize)]
pub(crate) struct Duty {
    pub(crate) name: &'static str,
    /// `waits`, `runs` or `fails`.
    pub(crate) state: &'static str,
    pub(crate) every_s: u64,
    pub(crate) rounds: u64,
    pub(crate) panics: u64,
    /// When the last round began, and ended.
    pub(crate) began: Option<String>,
    pub(crate) ended: Option<String>,
    /// When the last round that was good ended.
    pub(crate) good: Option<String>,
    pub(crate) next: Option<String>,
    /// How often it failed in a row, and what it said.
    pub(crate) failures: u64,
    pub(crate) error: Option<String>,
    /// The same, Unix µs, for `/metrics`.
    #[serde(skip)]
    pub(crate) good_us: u64,
}

/// What runs all the time: its end is the end of the process.
#[derive(Debug, Serialize)]
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) running: usize,
}

impl Duties {
    /// A round of `name` begins.
    pub(crate) fn begin(&self, name: &'static str, every: Duration) {
        let mut table = self.lock();
        let row = table.duties.entry(name).or_default();
        (row.every, row.is_running) = (every, true);
        row.began_us = clock::unix_us();
        row.next_us = 0;
    }

    /// The round ended; the next is in `wait`. Returns how it fails, if it does.
    pub(crate) fn end(&self, name: &'static str, ended: Ended, wait: Duration) -> Option<Failing> {
        let now_us = clock::unix_us();
        let mut table = self.lock();
        let row = table.duties.entry(name).or_default();
        row.is_running = false;
        row.rounds += 1;
        row.ended_us = now_us;
        let wait_us = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        row.next_us = now_us.saturating_add(wait_us);
        let error = match ended {
            Ended::Good => {
                row.good_us = now_us;
                row.failing = None;
                return None;
            }
            Ended::Failed(error) => error,
            Ended::Panicked(error) => {
                row.panics += 1;
                error
            }
        };
        let failing = row.failing.get_or_insert(Failing {
            times: 0,
            since_us: now_us,
            error: String::new(),
        });
        failing.times += 1;
        failing.error = error;
        Some(failing.clone())
    }

    /// A part runs from now on, or one of it no longer does.
    pub(crate) fn part(&self, name: &'static str, runs: bool) {
        let mut table = self.lock();
        let running = table.parts.entry(name).or_default();
        *running = if runs {
            *running + 1
        } else {
            running.saturating_sub(1)
        };
    }

    /// All of it, by name.
    pub(crate) fn list(&self) -> (Vec<Duty>, Vec<Part>) {
        let table = self.lock();
        let time = |us: u64| (us > 0).then(|| rfc3339(us));
        let duties = table.duties.iter().map(|(name, row)| Duty {
            name,
            state: match row {
                Row {
                    is_running: true, ..
                } => "runs",
                Row {
                    failing: Some(_), ..
                } => "fails",
                Row { .. } => "waits",
            },
            every_s: row.every.as_secs(),
            rounds: row.rounds,
            panics: row.panics,
            began: time(row.began_us),
            ended: time(row.ended_us),
            good: time(row.good_us),
            next: time(row.next_us),
            failures: row.failing.as_ref().map_or(0, |failing| failing.times),
            error: row.failing.as_ref().map(|failing| failing.error.clone()),
            good_us: row.good_us,
        });
        let parts = table.parts.iter().map(|(name, running)| Part {
            name,
            running: *running,
        });
        (duties.collect(), parts.collect())
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duty_says_when_it_was_and_how_often_it_failed_since_it_was_good() {
        let duties = Duties::default();
        let every = Duration::from_secs(600);
        let round = |ended| {
            duties.begin("backup", every);
            assert_eq!(duties.list().0.first().unwrap().state, "runs");
            duties.end("backup", ended, every)
        };
        assert!(round(Ended::Good).is_none());
        assert_eq!(round(Ended::Failed("no room".into())).unwrap().times, 1);
        let failing = round(Ended::Panicked("a fault".into())).unwrap();
        assert_eq!((failing.times, &*failing.error), (2, "a fault"));
        let (list, _) = duties.list();
        let [duty] = list.as_slice() else {
            panic!("{list:?}")
        };
        assert_eq!((duty.state, duty.rounds, duty.panics), ("fails", 3, 1));
        assert!(duty.next > duty.ended && duty.good.is_some());
        assert!(round(Ended::Good).is_none());
        assert_eq!(duties.list().0.first().unwrap().failures, 0);
    }
}
