//! A long reading of the archive by one thread, which gives way: to others between two pieces, and to nobody for long.
//!
//! ```text
//! [turns] ─▶ piece, piece, piece … ─▶ a turn is over after [SLICE], or while who asked takes nothing ─▶ [turns]
//!                └── nobody asks any more ─▶ an error ends the work
//! ```
//!
//! An export reads what it gives several times, for minutes. It holds a place among the searches while it works, and
//! none while it waits for its client.

use std::cell::RefCell;
use std::time::Instant;

use anyhow::{Result, bail};
use tokio::runtime::Handle;

use super::cancelled::Cancelled;
use super::turns::{AnswerTurn, SLICE, ScanTurn};
use crate::clock;

/// What an export works with.
pub(crate) struct Reading {
    cancelled: Cancelled,
    /// Whose turn it takes; none in a test where nobody else is.
    turns: Option<Turns>,
}

struct Turns {
    answer: AnswerTurn,
    runtime: Handle,
    /// The turn, and since when.
    held: RefCell<Option<(ScanTurn, Instant)>>,
}

impl Reading {
    /// Of somebody who shares the archive with nobody.
    #[cfg(test)]
    pub(crate) fn alone() -> Self {
        Self {
            cancelled: Cancelled::default(),
            turns: None,
        }
    }

    /// Begins with a turn that was waited for. To be made where there is a runtime; its thread may then wait.
    pub(crate) fn begin(answer: AnswerTurn, first: ScanTurn, cancelled: Cancelled) -> Self {
        Self {
            cancelled,
            turns: Some(Turns {
                answer,
                runtime: Handle::current(),
                held: RefCell::new(Some((first, clock::now()))),
            }),
        }
    }

    /// Whether nobody asks any more.
    pub(crate) fn is_over(&self) -> bool {
        self.cancelled.is_set()
    }

    /// Before the next piece of work: gives the turn on when it was long, and waits for another one.
    ///
    /// # Errors
    /// Nobody asks any more, or no turn came for very long.
    pub(crate) fn step(&self) -> Result<()> {
        if self.is_over() {
            bail!(GONE);
        }
        let Some(turns) = &self.turns else {
            return Ok(());
        };
        let now = clock::now();
        let is_long = |(_, since): &(_, Instant)| now.duration_since(*since) >= SLICE;
        let held = turns.held.take().filter(|held| !is_long(held));
        let held = match held {
            Some(held) => held,
            None => (self.next_turn(turns)?, clock::now()),
        };
        turns.held.replace(Some(held));
        Ok(())
    }

    /// Waits for something else, without a turn meanwhile.
    ///
    /// # Errors
    /// As [`Reading::step`].
    pub(crate) fn rest<T>(&self, wait: impl FnOnce() -> T) -> Result<T> {
        if let Some(turns) = &self.turns {
            turns.held.replace(None);
        }
        let waited = wait();
        self.step()?;
        Ok(waited)
    }

    fn next_turn(&self, turns: &Turns) -> Result<ScanTurn> {
        turns.runtime.block_on(async {
            tokio::select! {
                turn = turns.answer.scan_again() => Ok(turn?),
                () = self.cancelled.set() => bail!(GONE),
            }
        })
    }
}

const GONE: &str = "whoever asked went away";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::turns::Turns as Places;

    #[tokio::test(flavor = "multi_thread")]
    async fn who_rests_leaves_the_turn_to_others_and_who_is_left_ends() {
        let places = Places::new();
        let (cancelled, other) = (Cancelled::default(), Cancelled::default());
        let guard = cancelled.guard();
        let mut readings = Vec::new();
        for cancelled in [cancelled, other] {
            let answer = places.answer("one").await.unwrap();
            let scan = answer.scan().await.unwrap();
            readings.push(Reading::begin(answer, scan, cancelled));
        }
        let waiting = places.answer("one").await.unwrap();
        let work = move || {
            let [first, second] = &readings[..] else {
                panic!("two readings")
            };
            first.step().unwrap();
            second.step().unwrap();
            // Both turns of the account are taken: a third one gets one while the first rests.
            let runtime = Handle::current();
            let taken = || drop(runtime.block_on(waiting.scan()).unwrap());
            first.rest(taken).unwrap();
            drop(guard);
            assert!(first.step().is_err() && first.is_over());
            second.step().unwrap();
            Reading::alone().step().unwrap();
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }
}
