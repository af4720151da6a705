//! Whose turn it is: how many answers are given at once, and how many searches run, for one account and for all.
//!
//! ```text
//! request ─▶ [answer]: memory of a page, as long as somebody takes it ─▶ [scan]: the processors, page by page
//! ```
//!
//! Every account has its own queue and a share of the places; behind that, the first that came is given an answer first,
//! and accounts search in turns, [`SLICE`] at a time ([`super::places`]). So one account that asks for very much waits for itself,
//! and many that do make another one wait for a slice of each. The last places for answers are for accounts that are given none yet: a
//! few accounts together cannot take all.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::warn;

use super::places::{Place, Places};

/// The places of everybody.
pub(crate) struct Turns {
    answers: Arc<Semaphore>,
    /// For the only answer of an account.
    first_answers: Arc<Semaphore>,
    scans: Places,
    /// Of the commands on this machine: accounts never take them.
    local_answers: Arc<Semaphore>,
    local_scans: Places,
    accounts: Mutex<BTreeMap<String, Weak<Share>>>,
    /// Bytes of pages that are being given.
    pages: Arc<AtomicUsize>,
    wait_max: Duration,
    slice: Duration,
}

/// The places of one account.
struct Share {
    answers: Arc<Semaphore>,
    /// Answers that are given, or wait for a place of all.
    given: AtomicUsize,
    scans: Arc<Semaphore>,
}

/// One answer that is being given. It holds memory, so it is one of few.
pub(crate) struct AnswerTurn {
    given: Given,
    account: Arc<str>,
    scans: Places,
    pages: Arc<AtomicUsize>,
    wait_max: Duration,
    slice: Duration,
    _places: [OwnedSemaphorePermit; 2],
}

/// What a page of lines may take of memory.
pub(crate) struct PageRoom {
    pages: Arc<AtomicUsize>,
    bytes: usize,
}

impl PageRoom {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for PageRoom {
    fn drop(&mut self) {
        self.pages.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// One answer, among those of its account.
struct Given(Arc<Share>);

impl Given {
    /// One more; and whether it is the only one.
    fn begin(share: Arc<Share>) -> (Self, bool) {
        let before = share.given.fetch_add(1, Ordering::Relaxed);
        (Self(share), before == 0)
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        self.0.given.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One search that runs. It holds processors.
pub(crate) struct ScanTurn {
    account: Arc<str>,
    scans: Places,
    wait_max: Duration,
    slice: Duration,
    /// The place, and since when; none after it was waited for in vain.
    held: Option<(Place, Instant)>,
    _own: OwnedSemaphorePermit,
}

impl ScanTurn {
    /// Whether it was long enough, and somebody waits for its place.
    pub(crate) fn is_due(&self) -> bool {
        let since = self.held.as_ref().map(|(_, since)| *since);
        since.is_none_or(|since| since.elapsed() >= self.slice) && self.scans.waiting() > 0
    }

    /// Gives the place to whoever is next, and waits for another one.
    ///
    /// # Errors
    /// None came for very long.
    pub(crate) async fn give_on(&mut self) -> Result<(), Busy> {
        self.held = None;
        let wait_max = self.wait_max.saturating_mul(AGAIN_FACTOR);
        let place = in_time(self.scans.take(&self.account), wait_max, Busy::AllScans).await?;
        self.held = Some((place, Instant::now()));
        Ok(())
    }
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

    pub(super) fn waiting(wait_max: Duration) -> Self {
        Self {
            answers: Arc::new(Semaphore::new(ANSWERS_MAX - FIRST_ANSWERS)),
            first_answers: Arc::new(Semaphore::new(FIRST_ANSWERS)),
            local_answers: Arc::new(Semaphore::new(ANSWERS_OF_ONE_MAX)),
            local_scans: Places::new(SCANS_OF_ONE_MAX),
            scans: Places::new(SCANS_MAX),
            accounts: Mutex::default(),
            pages: Arc::default(),
            wait_max,
            slice: SLICE,
        }
    }

    /// How many searches wait for a place, or for their next turn.
    pub(crate) fn searches_waiting(&self) -> usize {
        self.scans.waiting() + self.local_scans.waiting()
    }

    /// A place for an answer to `account`; waits a while for it.
    pub(crate) async fn answer(&self, account: &str) -> Result<AnswerTurn, Busy> {
        let share = self.share(account);
        let own = place(&share.answers, self.wait_max, Busy::OwnAnswers).await?;
        let (given, is_only) = Given::begin(share);
        let all = match account {
            LOCAL => place(&self.local_answers, self.wait_max, Busy::AllAnswers).await?,
            _ if is_only => self.first_place().await?,
            _ => place(&self.answers, self.wait_max, Busy::AllAnswers).await?,
        };
        let scans = match account {
            LOCAL => &self.local_scans,
            _ => &self.scans,
        };
        Ok(AnswerTurn {
            given,
            account: account.into(),
            pages: self.pages.clone(),
            wait_max: self.wait_max,
            slice: self.slice,
            scans: scans.clone(),
            _places: [own, all],
        })
    }

    /// A place for the only answer of an account: one of those for everybody, else one that is kept for it.
    async fn first_place(&self) -> Result<OwnedSemaphorePermit, Busy> {
        if let Ok(place) = self.answers.clone().try_acquire_owned() {
            return Ok(place);
        }
        if let Ok(place) = self.first_answers.clone().try_acquire_owned() {
            return Ok(place);
        }
        let either = async {
            tokio::select! {
                place = self.answers.clone().acquire_owned() => place,
                place = self.first_answers.clone().acquire_owned() => place,
            }
        };
        let place = in_time(either, self.wait_max, Busy::AllAnswers).await?;
        place.map_err(|_| Busy::AllAnswers)
    }

    fn share(&self, account: &str) -> Arc<Share> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = accounts.get(account).and_then(Weak::upgrade) {
            return share;
        }
        accounts.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Share {
            answers: Arc::new(Semaphore::new(ANSWERS_OF_ONE_MAX)),
            given: AtomicUsize::new(0),
            scans: Arc::new(Semaphore::new(SCANS_OF_ONE_MAX)),
        });
        accounts.insert(account.to_owned(), Arc::downgrade(&share));
        share
    }
}

impl AnswerTurn {
    /// Room for the next page: the more others hold, the less. So many that are taken slowly hold no more than a few.
    pub(crate) fn page_room(&self) -> PageRoom {
        let used = self.pages.load(Ordering::Relaxed);
        let bytes = PAGES_BYTES.saturating_sub(used) / 2;
        let bytes = bytes.clamp(PAGE_BYTES_MIN, PAGE_BYTES_MAX);
        self.pages.fetch_add(bytes, Ordering::Relaxed);
        PageRoom {
            pages: self.pages.clone(),
            bytes,
        }
    }

    /// A place to search; waits a while for it.
    pub(crate) async fn scan(&self) -> Result<ScanTurn, Busy> {
        self.scan_within(self.wait_max).await
    }

    /// The same for who had one already, and gave it on: what was begun is not lost to a crowd.
    pub(crate) async fn scan_again(&self) -> Result<ScanTurn, Busy> {
        self.scan_within(self.wait_max.saturating_mul(AGAIN_FACTOR))
            .await
    }

    async fn scan_within(&self, wait_max: Duration) -> Result<ScanTurn, Busy> {
        let own = place(&self.given.0.scans, wait_max, Busy::OwnScans).await?;
        let all = in_time(self.scans.take(&self.account), wait_max, Busy::AllScans).await?;
        Ok(ScanTurn {
            account: self.account.clone(),
            scans: self.scans.clone(),
            wait_max: self.wait_max,
            slice: self.slice,
            held: Some((all, Instant::now())),
            _own: own,
        })
    }
}

async fn place(
    places: &Arc<Semaphore>,
    wait_max: Duration,
    busy: Busy,
) -> Result<OwnedSemaphorePermit, Busy> {
    let place = in_time(places.clone().acquire_owned(), wait_max, busy).await?;
    place.map_err(|_| busy)
}

async fn in_time<T>(
    free: impl Future<Output = T>,
    wait_max: Duration,
    busy: Busy,
) -> Result<T, Busy> {
    let free = tokio::time::timeout(wait_max, free).await;
    free.map_err(|_| {
        warn!(%busy, "a search or an export was refused");
        busy
    })
}

/// Who uses the control socket.
pub(crate) const LOCAL: &str = "local";
/// Answers at once: each holds a page of lines, or what an export is made with.
const ANSWERS_MAX: usize = 12 + FIRST_ANSWERS;
/// Of these for accounts that are given no other: as many people as ask at once. Accounts that read as slowly as they may
/// hold the other twelve and one of these each, and a page of the smallest size with it: it takes 35 of them to hold all.
const FIRST_ANSWERS: usize = 32;
/// Of one account, or of the local user, who has as many of his own.
const ANSWERS_OF_ONE_MAX: usize = 4;
/// How long a search holds its place while others wait for one: five accounts that search without end have a sixth one wait
/// for two of these, and for what is under way at their ends.
pub(crate) const SLICE: Duration = Duration::from_millis(500);
/// Searches that run at once: each uses every processor, and memory for each.
const SCANS_MAX: usize = 4;
/// Of one account: half, so that another one's search always runs; and of the local user, who has as many of his own.
const SCANS_OF_ONE_MAX: usize = 2;
/// Bytes of lines of one page that are held at once. What matches and does not fit is found again.
const PAGE_BYTES_MAX: usize = 8 << 20;
/// Of all pages together, when none is smaller than [`PAGE_BYTES_MIN`]; each thread of a search holds as much again.
const PAGES_BYTES: usize = 16 << 20;
/// A page is never smaller.
const PAGE_BYTES_MIN: usize = 1 << 20;
/// As long as a search of the console may take, and some.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Who was at work already waits so many times as long: ten minutes, then the export breaks off.
const AGAIN_FACTOR: u32 = 20;

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

    /// Five accounts, each with as many searches as it may have, none of which ends: a sixth one's small searches begin soon.
    #[tokio::test]
    async fn a_small_search_waits_for_slices_and_not_for_searches() {
        let turns = Turns {
            slice: Duration::ZERO,
            ..Turns::waiting(Duration::from_secs(30))
        };
        let turns = Arc::new(turns);
        let mut endless = tokio::task::JoinSet::new();
        let given_on = Arc::new(AtomicUsize::new(0));
        for account in ["a", "b", "c", "d", "e"] {
            for _ in 0..SCANS_OF_ONE_MAX {
                let (turns, given_on) = (turns.clone(), given_on.clone());
                endless.spawn(async move {
                    let answer = turns.answer(account).await.unwrap();
                    let mut scan = answer.scan().await.unwrap();
                    loop {
                        tokio::task::yield_now().await;
                        if scan.is_due() {
                            given_on.fetch_add(1, Ordering::Relaxed);
                            scan.give_on().await.unwrap();
                        }
                    }
                });
            }
        }
        while given_on.load(Ordering::Relaxed) < 100 {
            tokio::task::yield_now().await;
        }
        let mut slices = Vec::new();
        for _ in 0..500 {
            let before = given_on.load(Ordering::Relaxed);
            let answer = turns.answer("small").await.unwrap();
            let scan = answer.scan().await.unwrap();
            slices.push(given_on.load(Ordering::Relaxed) - before);
            for _ in 0..7 {
                tokio::task::yield_now().await;
            }
            drop((scan, answer));
        }
        slices.sort_unstable();
        let p99 = slices[slices.len() * 99 / 100];
        // One of each account, and those that begin meanwhile: of four places two slices each, which is a second.
        assert!(p99 <= 8, "{p99}");
        assert!(slices[0] >= 1, "the places are short");
    }

    #[tokio::test]
    async fn four_accounts_do_not_take_all_answers_and_each_other_one_is_given_its_first() {
        let turns = Turns::waiting(Duration::from_millis(20));
        let mut held = Vec::new();
        for account in ["a", "b", "c", "d"] {
            for _ in 0..ANSWERS_OF_ONE_MAX {
                held.extend(turns.answer(account).await);
            }
        }
        assert_eq!(held.len(), ANSWERS_MAX - FIRST_ANSWERS + 1);
        // Everybody else is given an answer at once, and a second one is not.
        let begun = crate::clock::now();
        let mut first = Vec::new();
        for number in 1..FIRST_ANSWERS {
            first.push(turns.answer(&format!("e{number}")).await.unwrap());
        }
        assert!(crate::clock::now().duration_since(begun) < Duration::from_millis(20));
        assert!(matches!(turns.answer("e1").await, Err(Busy::AllAnswers)));
        assert!(matches!(turns.answer("h").await, Err(Busy::AllAnswers)));
        // Nor do they take those places by ending some of theirs and asking again.
        first.pop();
        assert!(matches!(turns.answer("d").await, Err(Busy::AllAnswers)));
        turns.answer("h").await.unwrap();
        // What they hold of lines is no more than a few pages.
        let rooms: Vec<_> = held.iter().map(AnswerTurn::page_room).collect();
        assert_eq!(rooms[0].bytes(), PAGE_BYTES_MAX);
        assert!(rooms.iter().all(|room| room.bytes() >= PAGE_BYTES_MIN));
        let all: usize = rooms.iter().map(PageRoom::bytes).sum();
        assert!(all < PAGES_BYTES + ANSWERS_MAX * PAGE_BYTES_MIN, "{all}");
        drop(rooms);
        assert_eq!(held[0].page_room().bytes(), PAGE_BYTES_MAX);
        // Nor do accounts keep the commands on this machine from searching.
        let mut scans = Vec::new();
        for answer in &held {
            scans.extend(answer.scan().await);
        }
        assert_eq!(scans.len(), SCANS_MAX);
        turns.answer(LOCAL).await.unwrap().scan().await.unwrap();
    }
}
