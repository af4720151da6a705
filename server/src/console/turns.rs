//! Whose password is checked next: places take turns, so that many tries from one do not make another wait.
//!
//! ```text
//! known places  ─▶ ○ ○ ─┐
//! other places  ─▶ ○ ○ ○┴▶ one turn each, round and round ─▶ [PLACES] checks at once
//! ```
//!
//! Invariants:
//! 1. At most `free` turns are out, and each comes back when it is dropped, in whatever thread.
//! 2. Places wait in a ring: whoever comes first of a place waits for one turn of each other place at most. Places from
//!    which the account signed in before have a ring of their own, which comes first.
//! 3. What waits is bounded, of each place and in all; one more is told to come again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::accounts::tries::Place;
use crate::ring::Ring;

/// Gives turns out.
#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<Mutex<State>>);

/// The right to check one password.
#[derive(Debug)]
pub(super) struct Turn(Option<Turns>);

#[derive(Debug)]
struct State {
    free: usize,
    waiting: usize,
    /// Of places that are known, and of others.
    rings: [Ring<Place, oneshot::Sender<Turn>>; 2],
    /// The last turn went to a place that is known: the next one goes to another, if one waits.
    was_known: bool,
}

impl Turns {
    pub(super) fn new(free: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            free,
            waiting: 0,
            rings: Default::default(),
            was_known: false,
        })))
    }

    /// Waits for a turn; `None` when too many wait already.
    pub(super) async fn take(&self, place: Place, is_known: bool) -> Option<Turn> {
        let turn = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Some(Turn(Some(self.clone())));
            }
            let waiting = state.waiting;
            let [known, other] = &mut state.rings;
            let ring = if is_known { known } else { other };
            if ring.count(&place) >= WAITING_OF_PLACE_MAX || waiting >= WAITING_MAX {
                return None;
            }
            let (sender, turn) = oneshot::channel();
            ring.push(place, sender);
            state.waiting += 1;
            turn
        };
        turn.await.ok()
    }

    /// Hands a turn that came back to whoever is next.
    fn hand_on(&self) {
        loop {
            let next = {
                let mut state = self.lock();
                let next = state.next();
                match next {
                    Some(next) => {
                        state.waiting -= 1;
                        next
                    }
                    None => {
                        state.free += 1;
                        return;
                    }
                }
            };
            match next.send(Turn(Some(self.clone()))) {
                Ok(()) => return,
                // The browser is gone: this one is not given back, but handed to the next.
                Err(mut turn) => turn.0 = None,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Known places first, and no two of them while others wait.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        let [known, other] = &mut self.rings;
        let (next, was_known) = if self.was_known {
            let next = other.next();
            match next {
                Some(next) => (Some(next), false),
                None => (known.next(), true),
            }
        } else {
            match known.next() {
                Some(next) => (Some(next), true),
                None => (other.next(), false),
            }
        };
        self.was_known = was_known;
        next
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.hand_on();
        }
    }
}

/// Of one place: a browser and a few more.
const WAITING_OF_PLACE_MAX: usize = 8;
/// In all: at some 40 checks a second the last one waits 13 seconds.
const WAITING_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    #[tokio::test]
    async fn a_crowd_of_one_place_makes_nobody_else_wait() {
        let turns = Turns::new(1);
        let first = turns.take(place(1), false).await.unwrap();
        let mut crowd: Vec<_> = (0..WAITING_OF_PLACE_MAX)
            .map(|_| Box::pin(turns.take(place(1), false)))
            .collect();
        for waiting in &mut crowd {
            assert!(is_pending(waiting));
        }
        assert!(turns.take(place(1), false).await.is_none(), "no more of it");
        let mut honest = Box::pin(turns.take(place(2), false));
        let mut known = Box::pin(turns.take(place(3), true));
        assert!(is_pending(&mut honest) && is_pending(&mut known));
        drop(first);
        // The known place is first, then one of the crowd, then the honest one.
        let turn = known.await.unwrap();
        assert!(is_pending(&mut honest));
        drop(turn);
        let mut crowd = crowd.into_iter();
        drop(crowd.next().unwrap().await.unwrap());
        drop(honest.await.unwrap());
        // Whoever went away does not keep its turn.
        drop(crowd);
        assert!(turns.take(place(4), false).await.is_some());
        assert_eq!(turns.lock().waiting, 0);
    }

    #[tokio::test]
    async fn who_waits_is_bounded() {
        let turns = Turns::new(0);
        let mut waiting: Vec<_> = (0..WAITING_MAX)
            .map(|n| Box::pin(turns.take(place(u8::try_from(n / 4).unwrap()), n % 2 == 0)))
            .collect();
        for waiting in &mut waiting {
            assert!(is_pending(waiting));
        }
        assert!(turns.take(place(255), true).await.is_none());
    }

    fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        matches!(std::pin::Pin::new(future).poll(&mut context), Poll::Pending)
    }

    fn place(n: u8) -> Place {
        Place::V4([192, 0, 2, n])
    }
}
