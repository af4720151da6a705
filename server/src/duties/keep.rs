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
    fn name(&self) -> &'static str {
        self.point.strip_prefix(POINT).unwrap_or(self.point)
    }
}

/// Keeps a duty until the task is dropped.
pub(crate) async fn keep<D: Duty>(core: Arc<Core>, plan: Plan, make: impl Fn() -> D + Send) {
    let name = plan.name();
    let mut duty = make();
    let mut panics = 0_u32;
    let mut is_alarmed = false;
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
            None if is_alarmed || is_late => {
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
                let is_told = plan.raises || !core.archive.troubles().is_ready();
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
