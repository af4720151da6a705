//! Parts without which the server must not go on.
//!
//! ```text
//! local, ingest, upkeep, listeners, … ── panic ─▶ [Watch] dropped ─▶ [Fallen] ─▶ the process ends, exit code 70
//! ```
//!
//! A task that panics is otherwise just gone: the server would answer, and archive nothing. One that has no end and ends
//! all the same is as bad. The end is that of a crash, which every start recovers from; what was acknowledged is durable.
//! A supervisor starts the server again.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::duties::Duties;

/// Gives out watches.
#[derive(Clone, Debug)]
pub(crate) struct Vital {
    fell: mpsc::Sender<&'static str>,
    duties: Arc<Duties>,
}

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
    /// Parts stand in the table of `duties` while they run.
    pub(crate) fn new(duties: Arc<Duties>) -> (Self, Fallen) {
        let (fell, fallen) = mpsc::channel(FALLEN_MAX);
        (Self { fell, duties }, Fallen(fallen))
    }

    /// To be held by `part` until it ends.
    pub(crate) fn watch(&self, part: &'static str) -> Watch {
        self.duties.part(part, true);
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

    /// The same of a task that has no end but being dropped.
    pub(crate) async fn endless(self, part: &'static str, task: impl Future<Output = ()>) {
        self.clone().watched(part, task).await;
        self.fall(part);
    }

    fn fall(&self, part: &'static str) {
        let _first_is_enough = self.fell.try_send(part);
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
        self.vital.duties.part(self.part, false);
        if std::thread::panicking() {
            self.vital.fall(self.part);
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
    async fn a_part_that_panics_or_has_no_end_and_ends_is_named() {
        let duties = Arc::<Duties>::default();
        let (vital, mut fallen) = Vital::new(duties.clone());
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
        vital.clone().endless("listener", async {}).await;
        assert_eq!(fallen.first().await.0, "listener");
        let (_, parts) = duties.list();
        assert!(parts.len() == 4 && parts.iter().all(|part| part.running == 0));
        let _watch = vital.watch("listener");
        let (_, parts) = duties.list();
        assert!(
            parts
                .iter()
                .any(|part| part.name == "listener" && part.running == 1)
        );
    }
}
