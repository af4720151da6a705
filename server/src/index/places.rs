//! Places to search: each is given to the next account, and given on when its time is over and somebody waits.
//!
//! ```text
//! accounts ─▶ ○ ○ ○ one of each, round and round ─▶ [places] ─▶ a slice of work ─▶ given on, or kept while nobody waits
//! ```
//!
//! A search that never ends so holds a place for a slice at a time: another account's waits for a slice of each account before
//! it, shared among the places.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::ring::Ring;

/// Gives places out.
#[derive(Clone, Debug)]
pub(super) struct Places(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    waiting: Ring<Arc<str>, oneshot::Sender<Place>>,
}

/// The right to search; given on when dropped.
#[derive(Debug)]
pub(super) struct Place(Option<Places>);

impl Places {
    pub(super) fn new(free: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            free,
            waiting: Ring::default(),
        })))
    }

    /// Waits for a place. Who stops waiting is passed over.
    pub(super) async fn take(&self, account: &Arc<str>) -> Place {
        let place = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Place(Some(self.clone()));
            }
            let (sender, place) = oneshot::channel();
            state.waiting.push(account.clone(), sender);
            place
        };
        match place.await {
            Ok(place) => place,
            // The places are gone, and with them whoever gives answers.
            Err(_) => std::future::pending().await,
        }
    }

    /// How many wait for a place.
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    fn hand_on(&self) {
        loop {
            let next = {
                let mut state = self.lock();
                let next = state.waiting.next();
                if next.is_none() {
                    state.free += 1;
                }
                next
            };
            let Some(next) = next else {
                return;
            };
            match next.send(Place(Some(self.clone()))) {
                Ok(()) => return,
                // Nobody waits there any more: this one is not given back, but handed to the next.
                Err(mut place) => place.0 = None,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(places) = self.0.take() {
            places.hand_on();
        }
    }
}
