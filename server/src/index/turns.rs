//! Whose turn it is: how many answers are given at once, and how many searches run, for one account and for all.
//!
//! ```text
//! request ─▶ [answer]: memory of a page, as long as somebody takes it ─▶ [scan]: the processors, page by page
//! ```
//!
//! Every account has its own queue and a share of the places; behind that, the first that came is served first.
//! So one account that asks for very much waits for itself, and the others for one of its searches at most.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

/// The places of everybody.
pub(crate) struct Turns {
    answers: Arc<Semaphore>,
    /// Of the commands on this machine: accounts never take them.
    local_answers: Arc<Semaphore>,
    scans: Arc<Semaphore>,
    accounts: Mutex<BTreeMap<String, Weak<Share>>>,
    wait_max: Duration,
}

/// The places of one account.
struct Share {
    answers: Arc<Semaphore>,
    scans: Arc<Semaphore>,
}

/// One answer that is being given. It holds memory, so it is one of few.
pub(crate) struct AnswerTurn {
    share: Arc<Share>,
    scans: Arc<Semaphore>,
    wait_max: Duration,
    _places: [OwnedSemaphorePermit; 2],
}

/// One search that runs. It holds processors.
pub(crate) struct ScanTurn {
    _places: [OwnedSemaphorePermit; 2],
}

/// No place became free in time.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(crate) enum Busy {
    #[error(
        "{ANSWERS_OF_ONE_MAX} searches and exports of this account are being answered already, and none ended in {} s; wait for one, or end one",
        WAIT_MAX.as_secs()
    )]
    OwnAnswers,
    #[error(
        "{ANSWERS_MAX} searches and exports are being answered already, which is all that the server does at once; try again when one has ended"
    )]
    AllAnswers,
    #[error(
        "{SCANS_OF_ONE_MAX} searches of this account run already, and none ended in {} s; wait for one, end one, or ask for a shorter time",
        WAIT_MAX.as_secs()
    )]
    OwnScans,
    #[error(
        "{SCANS_MAX} searches run already, which is all that the server does at once; try again when one has ended"
    )]
    AllScans,
}

impl Turns {
    pub(crate) fn new() -> Self {
        Self::waiting(WAIT_MAX)
    }

    fn waiting(wait_max: Duration) -> Self {
        Self {
            answers: Arc::new(Semaphore::new(ANSWERS_MAX)),
            local_answers: Arc::new(Semaphore::new(ANSWERS_OF_ONE_MAX)),
            scans: Arc::new(Semaphore::new(SCANS_MAX)),
            accounts: Mutex::default(),
            wait_max,
        }
    }

    /// A place for an answer to `account`; waits a while for it.
    pub(crate) async fn answer(&self, account: &str) -> Result<AnswerTurn, Busy> {
        let share = self.share(account);
        let own = place(&share.answers, self.wait_max, Busy::OwnAnswers).await?;
        let all = match account {
            LOCAL => &self.local_answers,
            _ => &self.answers,
        };
        let all = place(all, self.wait_max, Busy::AllAnswers).await?;
        Ok(AnswerTurn {
            share,
            wait_max: self.wait_max,
            scans: self.scans.clone(),
            _places: [own, all],
        })
    }

    fn share(&self, account: &str) -> Arc<Share> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = accounts.get(account).and_then(Weak::upgrade) {
            return share;
        }
        accounts.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Share {
            answers: Arc::new(Semaphore::new(ANSWERS_OF_ONE_MAX)),
            scans: Arc::new(Semaphore::new(SCANS_OF_ONE_MAX)),
        });
        accounts.insert(account.to_owned(), Arc::downgrade(&share));
        share
    }
}

impl AnswerTurn {
    /// A place to search; waits a while for it.
    pub(crate) async fn scan(&self) -> Result<ScanTurn, Busy> {
        let own = place(&self.share.scans, self.wait_max, Busy::OwnScans).await?;
        let all = place(&self.scans, self.wait_max, Busy::AllScans).await?;
        Ok(ScanTurn {
            _places: [own, all],
        })
    }
}

async fn place(
    places: &Arc<Semaphore>,
    wait_max: Duration,
    busy: Busy,
) -> Result<OwnedSemaphorePermit, Busy> {
    let free = tokio::time::timeout(wait_max, places.clone().acquire_owned());
    match free.await {
        Ok(Ok(place)) => Ok(place),
        Ok(Err(_)) | Err(_) => {
            warn!(%busy, "a search or an export was refused");
            Err(busy)
        }
    }
}

/// Who uses the control socket.
pub(crate) const LOCAL: &str = "local";
/// Answers at once: each holds a page of lines, or what an export is made with.
const ANSWERS_MAX: usize = 16;
/// Of one account, or of the local user, who has as many of his own. Four accounts are needed to take all others.
const ANSWERS_OF_ONE_MAX: usize = 4;
/// Searches that run at once: each uses every processor, and memory for each.
const SCANS_MAX: usize = 4;
/// Of one account, or of the local user: half, so that another one's search always runs.
const SCANS_OF_ONE_MAX: usize = 2;
/// As long as a search of the console may take, and some.
const WAIT_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_account_waits_for_itself_and_leaves_places_to_others() {
        let turns = Turns::waiting(Duration::from_millis(20));
        let mut of_one = Vec::new();
        for _ in 0..ANSWERS_OF_ONE_MAX {
            of_one.push(turns.answer("one").await.unwrap());
        }
        let refused = turns.answer("one").await.err().unwrap();
        assert!(
            refused
                .to_string()
                .contains("4 searches and exports of this account")
        );
        let mut scans = Vec::new();
        for answer in of_one.iter().take(SCANS_OF_ONE_MAX) {
            scans.push(answer.scan().await.unwrap());
        }
        let refused = of_one[3].scan().await.err().unwrap();
        assert!(
            refused
                .to_string()
                .contains("2 searches of this account run")
        );
        // The other one is served at once.
        let other = turns.answer("other").await.unwrap();
        let other_scan = other.scan().await.unwrap();
        // What ends makes room.
        scans.pop();
        of_one[3].scan().await.unwrap();
        drop((scans, other_scan));
        of_one.pop();
        turns.answer("one").await.unwrap();
        // Who is gone is not remembered.
        drop((of_one, other));
        drop(turns.answer("third").await.unwrap());
        assert_eq!(turns.accounts.lock().unwrap().len(), 1);
    }
}
