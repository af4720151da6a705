//! An event log that does what the real one does to its readers: it wraps, is cleared, made anew, restarted,
//! and forgets the event of a bookmark. A test double for an operating system we do not have here.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Channel, Event, EventLog, Failure, Subscription};

/// One channel.
#[derive(Clone, Default)]
pub(super) struct Simulator(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    exists: bool,
    /// Record ids from `first` on.
    events: VecDeque<u64>,
    next: u64,
    /// Raised when every subscription ends: the service was restarted.
    generation: u64,
    /// The next answers.
    failures: VecDeque<Failure>,
}

impl Simulator {
    pub(super) fn new() -> Self {
        let own = Self::default();
        own.with(|state| {
            state.exists = true;
            state.next = 1;
        });
        own
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }

    pub(super) fn write(&self, count: u64) {
        self.with(|state| {
            for _ in 0..count {
                state.events.push_back(state.next);
                state.next += 1;
            }
        });
    }

    /// The newest event of all time.
    pub(super) fn last(&self) -> u64 {
        self.with(|state| state.next - 1)
    }

    /// The oldest events make room.
    pub(super) fn wrap(&self, keep: usize) {
        self.with(|state| {
            let gone = state.events.len().saturating_sub(keep);
            state.events.drain(..gone);
        });
    }

    /// As event 1102 of Security says: everything is gone, and that is the first new event.
    pub(super) fn clear(&self) {
        self.wrap(0);
        self.write(1);
    }

    /// Deleted and made again: numbers begin anew.
    pub(super) fn make_anew(&self) {
        self.wrap(0);
        self.with(|state| state.next = 1);
        self.write(1);
    }

    pub(super) fn set_exists(&self, exists: bool) {
        self.with(|state| state.exists = exists);
    }

    pub(super) fn restart(&self) {
        self.with(|state| state.generation += 1);
    }

    pub(super) fn fail(&self, failure: Failure) {
        self.with(|state| state.failures.push_back(failure));
    }
}

impl EventLog for Simulator {
    type Subscription = Place;

    fn subscribe(&mut self, _: &Channel, bookmark: Option<&str>) -> Result<Place, Failure> {
        self.with(|state| {
            if let Some(failure) = state.failures.pop_front() {
                return Err(failure);
            }
            if !state.exists {
                return Err(Failure::NoChannel);
            }
            let after: u64 = bookmark.map_or(0, |text| text.parse().unwrap());
            if bookmark.is_some() && !state.events.contains(&after) {
                return Err(Failure::Stale);
            }
            Ok(Place {
                log: self.clone(),
                after,
                generation: state.generation,
            })
        })
    }
}

/// A subscription.
pub(super) struct Place {
    log: Simulator,
    after: u64,
    generation: u64,
}

impl Subscription for Place {
    fn next(&mut self, patience: Duration) -> Result<Vec<Event>, Failure> {
        let found: Vec<u64> = self.log.with(|state| {
            if let Some(failure) = state.failures.pop_front() {
                return Err(failure);
            }
            if state.generation != self.generation {
                return Err(Failure::Lost(1734));
            }
            let after = state.events.iter().filter(|&&id| id > self.after);
            Ok(after.take(7).copied().collect())
        })?;
        if found.is_empty() {
            std::thread::park_timeout(patience.min(Duration::from_millis(1)));
        }
        self.after = found.last().copied().unwrap_or(self.after);
        Ok(found.into_iter().map(event).collect())
    }
}

fn event(id: u64) -> Event {
    Event {
        xml: format!("<Event><System><EventRecordID>{id}</EventRecordID></System></Event>"),
        // Every third publisher is not installed.
        message: (!id.is_multiple_of(3)).then(|| format!("event {id} happened")),
        bookmark: id.to_string(),
    }
}
