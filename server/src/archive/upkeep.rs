//! The one thread that changes what is archived: it seals, compacts and forgets.
//!
//! What cannot be undone is done on a confirmed time alone; sealing and compaction go on without one.
//! One after the other: a key that is destroyed is never one that something is being sealed with.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use ed25519_dalek::SigningKey;
use tokio::sync::oneshot;
use tracing::{error, info};

use super::{Archive, sealer};
use crate::allocator;
use crate::catalogue::Catalogue;
use crate::clock::{self, Day};
use crate::policy::Policy;
use crate::time::ServerTime;

/// What the thread works on.
pub(crate) struct Upkeep {
    pub(crate) archive: Arc<Archive>,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(super) policy: Arc<Policy>,
    pub(super) signing: SigningKey,
    pub(crate) time: Arc<ServerTime>,
    /// Segments that cannot be compacted.
    pub(super) damaged: Mutex<BTreeSet<u64>>,
    /// What is due is done without being asked for. Not by a command on a stopped volume.
    by_itself: bool,
}

/// What the thread is asked to do.
pub(crate) enum Work {
    /// Logs before this one are finished.
    Finished(u64),
    /// Something somebody waits for; logs before the given one are sealed before it.
    Do(u64, Job),
}

pub(crate) type Job = Box<dyn FnOnce(&Upkeep) + Send>;

impl Upkeep {
    pub(crate) fn new(
        archive: Arc<Archive>,
        catalogue: Arc<Catalogue>,
        policy: Arc<Policy>,
        signing: SigningKey,
        time: Arc<ServerTime>,
        by_itself: bool,
    ) -> Self {
        Self {
            archive,
            catalogue,
            policy,
            signing,
            time,
            damaged: Mutex::default(),
            by_itself,
        }
    }

    /// Works until the sender is gone. What cannot be done now (disk full, say) is tried again later.
    pub(crate) fn run(&self, work: &Receiver<Work>) {
        let mut active_from = 0;
        let mut looked = None;
        let mut waited = false;
        let mut patience = RETRY_INTERVAL;
        loop {
            match work.recv_timeout(patience) {
                Ok(Work::Finished(next_active)) => active_from = active_from.max(next_active),
                Ok(Work::Do(next_active, job)) => {
                    active_from = active_from.max(next_active);
                    self.seal(active_from);
                    job(self);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.seal(active_from);
            if !self.by_itself {
                continue;
            }
            let today = Day::of(clock::unix_us());
            let worked = self.remove_what_nobody_reads();
            // One at a time: what comes meanwhile is sealed in between.
            match worked.and_then(|()| self.compact_some(today.before(COMPACTION_AFTER_DAYS))) {
                Ok(more) => patience = if more { Duration::ZERO } else { RETRY_INTERVAL },
                Err(error) => {
                    let error = format!("{error:#}");
                    error!(error, "a day could not be compacted and is kept as it is");
                    patience = RETRY_INTERVAL;
                }
            }
            let now = clock::now();
            let due = looked.is_none_or(|at| now.duration_since(at) >= EXPIRY_INTERVAL);
            if due && active_from > 0 {
                looked = Some(now);
                match self.time.today() {
                    Ok(today) => {
                        waited = false;
                        self.do_what_is_due(today);
                    }
                    Err(waits) if !waited => {
                        waited = true;
                        info!(
                            why = waits.why,
                            "nothing is deleted or enclosed while the time is not confirmed"
                        );
                    }
                    Err(_) => {}
                }
            }
        }
    }

    /// Deletes and encloses what is due on a confirmed day.
    fn do_what_is_due(&self, today: Day) {
        if let Err(error) = self.expire(today).and_then(|()| self.enclose(today)) {
            let error = format!("{error:#}");
            error!(
                error,
                "what is due could not be deleted or enclosed; it is tried again"
            );
        }
    }

    /// Seals every log before `active_from`.
    pub(crate) fn seal(&self, active_from: u64) {
        let (_, logs) = self.archive.parts();
        for log in logs.iter().filter(|log| log.number() < active_from) {
            if let Err(error) = sealer::seal(self, log) {
                error!(
                    log = log.number(),
                    error = format!("{error:#}"),
                    "a log could not be sealed and is kept"
                );
                return;
            }
            // As much was in memory as the log has; it costs about a millisecond.
            allocator::give_back();
        }
    }
}

/// The way to the thread.
#[derive(Clone)]
pub(crate) struct UpkeepQueue(pub(crate) std::sync::mpsc::SyncSender<Work>);

impl UpkeepQueue {
    /// Has `job` done after the logs before `active` are sealed, and waits for what it returns.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        active: u64,
        job: impl FnOnce(&Upkeep) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, done) = oneshot::channel();
        let job: Job = Box::new(move |upkeep| {
            let _gave_up = answer.send(job(upkeep));
        });
        let sender = self.0.clone();
        let sent = tokio::task::spawn_blocking(move || sender.send(Work::Do(active, job)));
        sent.await?.ok().context("the server stops")?;
        done.await.context("the server stops")?
    }
}

/// Days after which one that is over is compacted: by then all of it is sealed.
const COMPACTION_AFTER_DAYS: u32 = 1;
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// How often it is looked for what is due.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(600);
