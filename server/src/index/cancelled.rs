//! Whether nobody waits for an answer any more: who works for it stops then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Looked at by who works.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancelled(Arc<Flag>);

#[derive(Debug, Default)]
struct Flag {
    is_set: AtomicBool,
    changed: Notify,
}

/// Held by who waits for an answer.
#[derive(Debug)]
pub(crate) struct CancelOnDrop(Cancelled);

impl Cancelled {
    /// Nobody waits for it from when this is dropped.
    pub(crate) fn guard(&self) -> CancelOnDrop {
        CancelOnDrop(self.clone())
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.is_set.load(Ordering::Relaxed)
    }

    /// Comes when nobody waits any more.
    pub(crate) async fn set(&self) {
        let mut changed = std::pin::pin!(self.0.changed.notified());
        // Told of what happens from here on: nothing is missed between the look and the wait.
        changed.as_mut().enable();
        if !self.is_set() {
            changed.await;
        }
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let Cancelled(flag) = &self.0;
        flag.is_set.store(true, Ordering::Relaxed);
        flag.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_works_hears_that_nobody_waits() {
        let cancelled = Cancelled::default();
        let guard = cancelled.guard();
        let working = tokio::spawn({
            let cancelled = cancelled.clone();
            async move { cancelled.set().await }
        });
        tokio::task::yield_now().await;
        assert!(!cancelled.is_set() && !working.is_finished());
        drop(guard);
        working.await.unwrap();
        // And later, too.
        cancelled.set().await;
    }
}
