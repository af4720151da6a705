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

use super::troubles::Trouble;
use super::{Archive, sealer};
use crate::allocator;
use crate::catalogue::Catalogue;
use crate::clock::{self, Day};
use crate::duties::{Duties, Ended};
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
    pub(crate) fn run(&self, work: &Receiver<Work>, duties: &Duties) {
        let mut active_from = 0;
        let mut looked = None;
        let mut waited = false;
        let mut patience = RETRY_INTERVAL;
        loop {
            match work.recv_timeout(patience) {
                Ok(Work::Finished(next_active)) => active_from = active_from.max(next_active),
                Ok(Work::Do(next_active, job)) => {
                    active_from = active_from.max(next_active);
                    // Whoever asked learns from what it does; that it failed stands among the troubles.
                    let _noted = self.seal(active_from);
                    job(self);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            duties.begin(SEAL, RETRY_INTERVAL);
            let sealed = self.seal(active_from);
            duties.end(SEAL, ended(sealed), RETRY_INTERVAL);
            if !self.by_itself {
                continue;
            }
            duties.begin(COMPACT, RETRY_INTERVAL);
            let today = Day::of(clock::unix_us());
            let worked = self.remove_what_nobody_reads();
            // One at a time: what comes meanwhile is sealed in between.
            let compacted =
                worked.and_then(|()| self.compact_some(today.before(COMPACTION_AFTER_DAYS)));
            patience = match &compacted {
                Ok(true) => Duration::ZERO,
                Ok(false) => RETRY_INTERVAL,
                Err(error) => {
                    let error = format!("{error:#}");
                    error!(error, "a day could not be compacted and is kept as it is");
                    RETRY_INTERVAL
                }
            };
            duties.end(COMPACT, ended(compacted), patience);
            let now = clock::now();
            let due = looked.is_none_or(|at| now.duration_since(at) >= EXPIRY_INTERVAL);
            if due && active_from > 0 {
                looked = Some(now);
                duties.begin(DELETE, EXPIRY_INTERVAL);
                let mut done = Ok(());
                match self.time.today() {
                    Ok(today) => {
                        waited = false;
                        done = self.do_what_is_due(today);
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
                duties.end(DELETE, ended(done), EXPIRY_INTERVAL);
            }
        }
    }

    /// Deletes and encloses what is due on a confirmed day.
    fn do_what_is_due(&self, today: Day) -> Result<()> {
        let done = self.expire(today).and_then(|()| self.enclose(today));
        if let Err(error) = &done {
            let error = format!("{error:#}");
            error!(
                error,
                "what is due could not be deleted or enclosed; it is tried again"
            );
        }
        self.note(Trouble::Deleting, &done);
        done
    }

    /// Seals every log before `active_from`.
    ///
    /// # Errors
    /// One cannot be sealed, and is kept.
    pub(crate) fn seal(&self, active_from: u64) -> Result<()> {
        let (_, logs) = self.archive.parts();
        let mut sealed = Ok(());
        for log in logs.iter().filter(|log| log.number() < active_from) {
            sealed = sealer::seal(self, log);
            if let Err(error) = &sealed {
                let (log, error) = (log.number(), format!("{error:#}"));
                error!(log, error, "a log could not be sealed and is kept");
                break;
            }
            // As much was in memory as the log has; it costs about a millisecond.
            allocator::give_back();
        }
        self.note(Trouble::Sealing, &sealed);
        sealed
    }

    /// What could not be done stands until it is done.
    fn note(&self, trouble: Trouble, done: &Result<()>) {
        let troubles = self.archive.troubles();
        match done {
            Ok(()) => troubles.end(trouble),
            Err(error) => troubles.meet(trouble, format!("{error:#}")),
        }
    }
}

fn ended<T>(done: Result<T>) -> Ended {
    match done {
        Ok(_) => Ended::Good,
        Err(error) => Ended::Failed(format!("{error:#}")),
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

/// What the thread does, in the table of duties.
const SEAL: &str = "sealing";
const COMPACT: &str = "compaction";
const DELETE: &str = "deletion";
/// Days after which one that is over is compacted: by then all of it is sealed.
const COMPACTION_AFTER_DAYS: u32 = 1;
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// How often it is looked for what is due.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(600);
