//! Parts without which the server must not go on.
//!
//! ```text
//! local, ingest, upkeep, listeners, … ── panic ─▶ [Watch] dropped ─▶ [Fallen] ─▶ the process ends, exit code 70
//! ```
//!
//! A task that panics is otherwise just gone: the server would answer, and archive nothing. The end is that of a
//! crash, which every start recovers from; what was acknowledged is durable. A supervisor starts the server again.

use tokio::sync::mpsc;

/// Gives out watches.
#[derive(Clone, Debug)]
pub(crate) struct Vital(mpsc::Sender<&'static str>);

/// Hears which part panicked.
#[derive(Debug)]
pub(crate) struct Fallen(mpsc::Receiver<&'static str>);

/// Lives as long as its part, inside it.
#[derive(Debug)]
pub(crate) struct Watch {
    part: &'static str,
    vital: Vital,
}

/// A part of the server panicked. Exit code 70: `EX_SOFTWARE` of `sysexits.h`.
#[derive(Debug, thiserror::Error)]
#[error(
    "a part of the server, {0}, met a fault of the program and is gone, so the server ends; what was acknowledged is kept. Start it again, and report the lines above"
)]
pub(crate) struct PartFell(pub(crate) &'static str);

impl Vital {
    pub(crate) fn new() -> (Self, Fallen) {
        let (fell, fallen) = mpsc::channel(FALLEN_MAX);
        (Self(fell), Fallen(fallen))
    }

    /// To be held by `part` until it ends.
    pub(crate) fn watch(&self, part: &'static str) -> Watch {
        Watch {
            part,
            vital: self.clone(),
        }
    }

    /// A task that is watched.
    pub(crate) async fn watched<F: Future>(self, part: &'static str, task: F) -> F::Output {
        let _watch = self.watch(part);
        task.await
    }
}

impl Fallen {
    /// Waits for the first part that panics; for ever, when none does.
    pub(crate) async fn first(&mut self) -> PartFell {
        match self.0.recv().await {
            Some(part) => PartFell(part),
            None => std::future::pending().await,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _first_is_enough = self.vital.0.try_send(self.part);
        }
    }
}

/// Parts that fall before the first is heard of: one ends the process.
const FALLEN_MAX: usize = 8;
/// What the process exits with.
pub(crate) const EXIT_CODE: u8 = 70;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_panics_is_named_and_one_that_ends_is_not() {
        let (vital, mut fallen) = Vital::new();
        tokio::spawn(vital.clone().watched("quiet", async {}))
            .await
            .unwrap();
        let task = vital.clone().watched("task", async {
            std::panic::panic_any("a fault");
        });
        assert!(tokio::spawn(task).await.is_err());
        assert_eq!(fallen.first().await.0, "task");
        let watch = vital.watch("thread");
        let thread = std::thread::spawn(move || {
            let _watch = watch;
            std::panic::panic_any("a fault");
        });
        assert!(thread.join().is_err());
        assert_eq!(fallen.first().await.0, "thread");
    }
}
