//! Where the threads of one search give way to others, between two pieces of work.
//!
//! ```text
//! threads of a search ─▶ [Gate]: go on │ the slice is over and somebody waits: all pause, one waits for the next place
//! ```
//!
//! A thread that pauses holds no block. Time that passes meanwhile is not the search's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::cancelled::Cancelled;
use super::turns::{Busy, ScanTurn};
use crate::clock;

/// What the threads of one search pass.
pub(crate) struct Gate {
    turn: Option<Turn>,
    waited_us: AtomicU64,
}

struct Turn {
    /// Read by who works, written by who gives on.
    held: RwLock<ScanTurn>,
    runtime: Handle,
    cancelled: Cancelled,
    /// No place came for very long: none of the threads waits for one again.
    given_up: OnceLock<Busy>,
}

/// While it is there, its thread works, and the place is not given on.
pub(crate) struct Working<'a>(
    #[expect(dead_code, reason = "held")] Option<RwLockReadGuard<'a, ScanTurn>>,
);

impl Gate {
    /// Of a search that shares the archive with nobody.
    #[cfg(test)]
    pub(crate) fn open() -> Self {
        Self {
            turn: None,
            waited_us: AtomicU64::new(0),
        }
    }

    /// With a place that was waited for. To be made where there is a runtime; threads may then wait.
    pub(crate) fn new(held: ScanTurn, runtime: Handle, cancelled: Cancelled) -> Self {
        Self {
            turn: Some(Turn {
                held: RwLock::new(held),
                runtime,
                cancelled,
                given_up: OnceLock::new(),
            }),
            waited_us: AtomicU64::new(0),
        }
    }

    /// Before the next piece of work, by a thread that is in none: waits where others are to search first.
    ///
    /// # Errors
    /// No place came for very long, to this thread or to another one of the search.
    pub(crate) fn step(&self) -> Result<Working<'_>, Busy> {
        let Some(turn) = &self.turn else {
            return Ok(Working(None));
        };
        if let Some(busy) = turn.given_up.get() {
            return Err(*busy);
        }
        let held = turn.held.read().unwrap_or_else(PoisonError::into_inner);
        if !held.is_due() {
            return Ok(Working(Some(held)));
        }
        drop(held);
        {
            // From here on no thread of this search works; the first one here gives on.
            let mut held = turn.held.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(busy) = turn.given_up.get() {
                return Err(*busy);
            }
            if held.is_due() && !turn.cancelled.is_set() {
                let begun = clock::now();
                let given = turn.runtime.block_on(async {
                    tokio::select! {
                        given = held.give_on() => given,
                        () = turn.cancelled.set() => Ok(()),
                    }
                });
                let waited = clock::now().duration_since(begun).as_micros();
                let waited = u64::try_from(waited).unwrap_or(u64::MAX);
                self.waited_us.fetch_add(waited, Ordering::Relaxed);
                if let Err(busy) = given {
                    return Err(*turn.given_up.get_or_init(|| busy));
                }
            }
        }
        let held = turn.held.read().unwrap_or_else(PoisonError::into_inner);
        Ok(Working(Some(held)))
    }

    /// How long the search waited for others.
    pub(crate) fn waited(&self) -> Duration {
        Duration::from_micros(self.waited_us.load(Ordering::Relaxed))
    }

    /// Whether a time is up, of which what was waited is no part.
    pub(crate) fn is_past(&self, deadline: Option<Instant>) -> bool {
        deadline.is_some_and(|end| clock::now() >= end + self.waited())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::turns::{SLICE, Turns};

    /// Of one account two searches run; a third waits until one of their threads comes to the gate, and all of that search pause.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_search_whose_slice_is_over_pauses_with_all_of_its_threads() {
        let turns = Turns::new();
        let mut gates = Vec::new();
        for account in ["a", "b", "c", "d"] {
            let answer = turns.answer(account).await.unwrap();
            let scan = answer.scan().await.unwrap();
            let gate = Gate::new(scan, Handle::current(), Cancelled::default());
            gates.push((answer, gate));
        }
        let answer = turns.answer("e").await.unwrap();
        // Nobody waits: nobody pauses, however long it takes.
        tokio::time::sleep(SLICE).await;
        let stepped = tokio::task::block_in_place(|| gates[0].1.step().is_ok());
        assert!(stepped && gates[0].1.waited() == Duration::ZERO);
        let mut next = Box::pin(answer.scan());
        tokio::select! {
            biased;
            _ = &mut next => panic!("four search"),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        let gate = &gates[0].1;
        std::thread::scope(|scope| {
            let working = gate.turn.as_ref().unwrap().held.read().unwrap();
            let steps: Vec<_> = (0..2)
                .map(|_| scope.spawn(|| gate.step().is_ok()))
                .collect();
            // A thread of it works: the place is not given on yet.
            let early = tokio::task::block_in_place(|| {
                Handle::current().block_on(async {
                    tokio::time::timeout(Duration::from_millis(50), &mut next)
                        .await
                        .is_ok()
                })
            });
            assert!(!early);
            drop(working);
            let scan = tokio::task::block_in_place(|| Handle::current().block_on(&mut next));
            let scan = scan.unwrap();
            assert!(steps.iter().all(|step| !step.is_finished()), "both pause");
            drop(scan);
            assert!(steps.into_iter().all(|step| step.join().unwrap()));
        });
        assert!(gate.waited() > Duration::ZERO);
        let soon = clock::now() + Duration::from_millis(1);
        assert!(!gate.is_past(Some(soon)), "its time goes on later");
    }

    /// Each thread of a search waited for ten minutes, one after the other, and then the next page of it did.
    #[tokio::test(flavor = "multi_thread")]
    async fn where_no_place_comes_one_thread_waits_and_all_end() {
        let wait_max = Duration::from_millis(20);
        let turns = Turns::waiting(wait_max);
        let mut gates = Vec::new();
        for account in ["a", "b", "c", "d"] {
            let answer = turns.answer(account).await.unwrap();
            let scan = answer.scan().await.unwrap();
            let gate = Gate::new(scan, Handle::current(), Cancelled::default());
            gates.push((answer, gate));
        }
        let answer = turns.answer("e").await.unwrap();
        tokio::time::sleep(SLICE).await;
        let gate = &gates[0].1;
        let next = tokio::spawn(async move { answer.scan_again().await.unwrap() });
        while turns.searches_waiting() == 0 {
            tokio::task::yield_now().await;
        }
        let waited = tokio::task::block_in_place(|| {
            std::thread::scope(|scope| {
                let steps: Vec<_> = (0..8)
                    .map(|_| scope.spawn(|| gate.step().map(drop)))
                    .collect();
                for step in steps {
                    assert!(matches!(step.join().unwrap(), Err(Busy::AllScans)));
                }
            });
            assert!(matches!(gate.step().map(drop), Err(Busy::AllScans)));
            gate.waited()
        });
        let once = wait_max * 20;
        assert!(waited >= once && waited < once * 2, "{waited:?}");
        drop(next.await.unwrap());
    }

    #[test]
    fn who_is_alone_never_waits() {
        let gate = Gate::open();
        drop(gate.step().unwrap());
        assert_eq!(gate.waited(), Duration::ZERO);
        assert!(!gate.is_past(None));
    }
}
