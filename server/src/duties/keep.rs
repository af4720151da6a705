//! Keeps a duty: a round, the wait for the next, for as long as the task lives.
//!
//! ```text
//! Plan ─▶ round ─▶ good ──────────────────────────▶ wait ─▶ round …
//!              ├─▶ failed ─▶ alarm, the second time ─▶ wait
//!              ├─▶ panicked ─▶ alarm, made anew ─────▶ wait, shorter
//!              └─▶ takes long ─▶ alarm, goes on
//! ```

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use scrinium_segment::fault;
use tokio::task::JoinSet;
use tracing::{error, warn};

use super::Ended;
use crate::alarms::{AlarmKind, Raise};
use crate::clock;
use crate::core::{Core, OWN_NAME};
use crate::present::rfc3339;
use crate::said::{Said, said};

/// Something that is done again and again. What it holds is lost when it panics.
pub(crate) trait Duty: Send + 'static {
    /// Does it once.
    fn round(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// When a duty is done, and what is said of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// The place at which a test may have it panic: `duty: ` and its name.
    pub(crate) point: &'static str,
    /// From the beginning of a round to that of the next.
    pub(crate) every: Duration,
    /// Rounds that take longer are an alarm.
    pub(crate) long: Duration,
    /// It raises alarms of its own when it fails.
    pub(crate) raises: bool,
}

impl Plan {
    pub(crate) fn name(&self) -> &'static str {
        self.point.strip_prefix(POINT).unwrap_or(self.point)
    }
}

/// Keeps a duty until the task is dropped.
pub(crate) async fn keep<D: Duty>(core: Arc<Core>, plan: Plan, make: impl Fn() -> D + Send) {
    let name = plan.name();
    let mut duty = make();
    let mut panics = 0_u32;
    // One that was told before the server was restarted ends too.
    let lasting = core.alarms.lasting_of_server(AlarmKind::DutyFailed);
    let mut is_alarmed = lasting.contains(name);
    loop {
        core.duties.begin(name, plan.every);
        let begun = clock::now();
        let mut round = JoinSet::new();
        round.spawn(async move {
            fault::point(plan.point);
            let done = duty.round().await;
            (duty, done)
        });
        let mut is_late = false;
        let joined = loop {
            match tokio::time::timeout(plan.long, round.join_next()).await {
                Ok(joined) => break joined,
                Err(_) if is_late => {}
                Err(_) => {
                    is_late = true;
                    is_alarmed = true;
                    let text = said!("alarm_text.duty-late", name, plan.long.as_secs());
                    raise(&core, name, text).await;
                }
            }
        };
        let ended = match joined {
            Some(Ok((kept, done))) => {
                duty = kept;
                panics = 0;
                done.map_or_else(
                    |error| Ended::Failed(format!("{error:#}")),
                    |()| Ended::Good,
                )
            }
            Some(Err(fault)) => {
                panics = panics.saturating_add(1);
                duty = make();
                Ended::Panicked(format!("a fault of the program: {fault}"))
            }
            None => return,
        };
        let is_panic = matches!(ended, Ended::Panicked(_));
        // What panics each time is not begun as fast as it can.
        let wait = if is_panic {
            plan.every
                .min(PANIC_WAIT.saturating_mul(1 << panics.min(PANIC_DOUBLINGS_MAX)))
        } else {
            plan.every
        };
        let passed = clock::now().duration_since(begun);
        let wait = wait.saturating_sub(passed).max(wait.min(REST_MIN));
        match core.duties.end(name, ended, wait) {
            None if is_alarmed => {
                is_alarmed = false;
                let end =
                    core.alarms
                        .end_of(AlarmKind::DutyFailed, OWN_NAME, name, said!("over.duty"));
                end.await;
            }
            None => {}
            Some(failing) => {
                warn!(
                    duty = name,
                    error = failing.error,
                    times = failing.times,
                    "a duty failed; it is tried again"
                );
                // Where entries cannot be written, that is the alarm.
                let is_told = plan.raises || !core.archive.troubles().takes_entries();
                if is_panic || (failing.times >= FAILURES_MIN && !is_told) {
                    is_alarmed = true;
                    let since = rfc3339(failing.since_us);
                    let (times, error) = (failing.times, failing.error);
                    let text = said!("alarm_text.duty-failed", name, times, since, error);
                    raise(&core, name, text).await;
                }
            }
        }
        tokio::time::sleep(wait).await;
    }
}

async fn raise(core: &Core, name: &str, text: Said) {
    error!("{text}");
    core.alarms
        .raise(Raise {
            kind: AlarmKind::DutyFailed,
            agent: OWN_NAME.to_owned(),
            text,
            key: name.to_owned(),
        })
        .await;
}

/// What the place of a duty begins with.
const POINT: &str = "duty: ";
/// In a row: one failure may be a passing one.
const FAILURES_MIN: u64 = 2;
/// Until what panicked is begun again, the first time; doubled each time.
const PANIC_WAIT: Duration = Duration::from_secs(1);
const PANIC_DOUBLINGS_MAX: u32 = 16;
/// Between two rounds, however long one takes.
const REST_MIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::{new_volume, running};

    /// Takes long and fails, and then is done each time.
    struct Slow(u32);

    impl Duty for Slow {
        async fn round(&mut self) -> Result<()> {
            self.0 += 1;
            if self.0 > 1 {
                return Ok(());
            }
            tokio::time::sleep(PLAN.long.saturating_mul(3)).await;
            anyhow::bail!("it took long, and failed")
        }
    }

    const PLAN: Plan = Plan {
        point: "duty: of a test",
        every: Duration::from_millis(10),
        long: Duration::from_millis(20),
        raises: false,
    };

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_alarm_of_a_duty_ends_however_it_began_and_after_a_restart() {
        let dir = new_volume("duties", |_| {});
        let running = running(&dir);
        let core = running.core.clone();
        let is_over = |count: usize| {
            let alarms = core.alarms.list();
            alarms.len() == count && alarms.iter().all(|alarm| alarm.is_over())
        };
        let task = tokio::spawn(keep(core.clone(), PLAN, || Slow(0)));
        while !is_over(1) {
            tokio::task::yield_now().await;
        }
        task.abort();
        drop(task.await);
        // One of the last run of the server.
        raise(&core, PLAN.name(), Said::from("it failed")).await;
        let task = tokio::spawn(keep(core.clone(), PLAN, || Slow(1)));
        while !is_over(2) {
            tokio::task::yield_now().await;
        }
        task.abort();
        drop(task.await);
        drop(core);
        running.close().await;
        std::fs::remove_dir_all(dir).unwrap();
    }
}
