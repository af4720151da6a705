//! What waits before it is done, so that no single person goes around the law (ADR 9).
//!
//! ```text
//! asked ─▶ waits three days ─▶ due ─▶ done
//!             │        └─ two persons want it ─▶ done at once
//!             └─ anybody entitled stops it
//! ```
//!
//! Invariants:
//! 1. Nothing that waits is done by time before it is due, and what needs two persons never by time.
//! 2. A person is an account that proved itself and that was neither made nor given a password in the three days
//!    before the act was asked for. The local command is nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Result;
use data_encoding::HEXLOWER;
use scrinium_segment::random;

use crate::audit::Actor;
use crate::catalogue::records::{Voice, WaitingAct, WaitingRecord, WishRecord};
use crate::catalogue::{Catalogue, Changes};
use crate::said::{Said, said};
use crate::waits;

/// Every act that waits.
pub(crate) struct Waiting {
    catalogue: Arc<Catalogue>,
    state: Mutex<BTreeMap<String, WaitingRecord>>,
    /// Held while it is decided what becomes of one: two persons at once come one after the other. What takes long, as the
    /// deletion of an agent does behind a compaction, is not done in it: see [`Waiting::begin`].
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// Which are being done.
    doing: Arc<Mutex<BTreeSet<String>>>,
}

/// An act is being done: nobody else does, agrees to or stops it meanwhile.
#[derive(Debug)]
pub(crate) struct Doing {
    id: String,
    doing: Arc<Mutex<BTreeSet<String>>>,
}

impl Drop for Doing {
    fn drop(&mut self) {
        let mut doing = waits::lock(&self.doing);
        doing.remove(&self.id);
    }
}

impl Waiting {
    pub(crate) fn load(catalogue: Arc<Catalogue>) -> Result<Self> {
        // Wishes of an earlier version counted the local command as a person: whoever wants it asks again.
        let wishes = catalogue.load::<WishRecord>()?;
        if !wishes.is_empty() {
            catalogue.write(|changes| wishes.iter().try_for_each(|wish| changes.remove(wish)))?;
        }
        let waiting = catalogue.load::<WaitingRecord>()?.into_iter();
        let state = waiting.map(|waiting| (waiting.id.clone(), waiting));
        Ok(Self {
            state: Mutex::new(state.collect()),
            turn: tokio::sync::Mutex::default(),
            doing: Arc::default(),
            catalogue,
        })
    }

    /// Begins to do an act, which goes on when the turn is over. To be called in a turn.
    ///
    /// # Errors
    /// It is being done.
    pub(crate) fn begin(&self, id: &str) -> Result<Doing> {
        let mut doing = waits::lock(&self.doing);
        if !doing.insert(id.to_owned()) {
            return Err(said!("refused.being_done", id).into());
        }
        Ok(Doing {
            id: id.to_owned(),
            doing: self.doing.clone(),
        })
    }

    /// What waits, the first due first.
    pub(crate) fn list(&self) -> Vec<WaitingRecord> {
        let mut list: Vec<WaitingRecord> = self.lock().values().cloned().collect();
        list.sort_by(|a, b| (a.due_us, &a.id).cmp(&(b.due_us, &b.id)));
        list
    }

    pub(crate) fn get(&self, id: &str) -> Result<WaitingRecord> {
        let waiting = self.lock().get(id).cloned();
        Ok(waiting.ok_or_else(|| said!("refused.nothing_waits", id))?)
    }

    /// The same act, if it waits already.
    pub(crate) fn find(&self, what: &Said) -> Option<WaitingRecord> {
        let state = self.lock();
        // One of an earlier version is in English.
        let is_same = |waiting: &&WaitingRecord| {
            Said::from(waiting.what.clone()).to_string() == what.to_string()
        };
        state.values().find(is_same).cloned()
    }

    /// An act that `actor` asks for at `now_us`; it does not wait before it is put.
    pub(crate) fn make(
        &self,
        act: WaitingAct,
        what: Said,
        needs_two: bool,
        actor: &Actor,
        now_us: u64,
    ) -> Result<WaitingRecord> {
        if self.lock().len() >= WAITING_MAX {
            return Err(said!("refused.acts", WAITING_MAX).into());
        }
        let id: [u8; 4] = random()?;
        Ok(WaitingRecord {
            id: HEXLOWER.encode(&id),
            act,
            what: what.into(),
            voices: vec![voice(actor, now_us)],
            since_us: now_us,
            due_us: now_us.saturating_add(DELAY_US),
            needs_two,
            is_agreed: false,
            hindered: None,
        })
    }

    /// Has an act wait, or changes one that does; `write` is what makes it durable, with what else goes with it.
    pub(crate) fn put(
        &self,
        waiting: WaitingRecord,
        write: impl FnOnce(&WaitingRecord) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.lock();
        write(&waiting)?;
        state.insert(waiting.id.clone(), waiting);
        Ok(())
    }

    /// The same alone.
    pub(crate) fn save(&self, waiting: WaitingRecord) -> Result<()> {
        self.put(waiting, |waiting| self.catalogue.put(waiting))
    }

    /// An act waits no longer; `write` is what makes that durable.
    pub(crate) fn take(
        &self,
        waiting: &WaitingRecord,
        write: impl FnOnce(&dyn Fn(&Changes<'_>) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.lock();
        write(&|changes| changes.remove(waiting))?;
        state.remove(&waiting.id);
        Ok(())
    }

    /// The same alone.
    pub(crate) fn end(&self, waiting: &WaitingRecord) -> Result<()> {
        self.take(waiting, |remove| {
            self.catalogue.write(|changes| remove(changes))
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, WaitingRecord>> {
        waits::lock(&self.state)
    }
}

impl WaitingRecord {
    /// Adds a voice; somebody who wants it already has none more.
    pub(crate) fn agree(&mut self, actor: &Actor, now_us: u64) {
        let has_spoken =
            |voice: &Voice| (&voice.by, voice.is_account) == (&actor.name, actor.is_account);
        if self.voices.len() < VOICES_MAX && !self.voices.iter().any(has_spoken) {
            self.voices.push(voice(actor, now_us));
        }
    }

    /// Whether two persons want it. Of an account,
    /// `settled` whether it is a person's own since long enough before a time.
    pub(crate) fn has_two(&self, settled: impl Fn(&str, u64) -> bool) -> bool {
        let voices = self.voices.iter();
        let persons = voices.filter(|voice| voice.is_account && settled(&voice.by, self.since_us));
        let persons: BTreeSet<&str> = persons.map(|voice| voice.by.as_str()).collect();
        persons.len() >= 2
    }

    /// Who wants it, for certificate and trail.
    pub(crate) fn wanted_by(&self) -> String {
        let voices: Vec<&str> = self.voices.iter().map(|voice| voice.by.as_str()).collect();
        voices.join(" and ")
    }
}

/// Whether an act is to be done: two persons wanted it, or it has waited long enough. `passed_us` is how long the machine
/// ran since it was asked for; none while the time is not confirmed. `two_persons` is whether that is what holds now.
/// This is the only place that decides it.
pub(crate) fn is_due(waiting: &WaitingRecord, passed_us: Option<u64>, two_persons: bool) -> bool {
    let has_waited = passed_us.is_some_and(|passed| passed >= DELAY_US);
    waiting.is_agreed || !waiting.needs_two && !two_persons && has_waited
}

/// Whether an account is a person's own since long enough to have a voice in what was asked for at `since_us`:
/// `jumped_us` of the server time between was no time that passed.
pub(crate) fn is_settled(changed_us: u64, since_us: u64, jumped_us: u64) -> bool {
    let settled_us = changed_us.saturating_add(DELAY_US);
    settled_us.saturating_add(jumped_us) <= since_us
}

fn voice(actor: &Actor, time_us: u64) -> Voice {
    Voice {
        by: actor.name.clone(),
        address: actor.address.clone(),
        is_account: actor.is_account,
        time_us,
    }
}

/// How long an act waits.
pub(crate) const DELAY_US: u64 = DELAY_H * 3_600_000_000;
/// The same in hours.
pub(crate) const DELAY_H: u64 = 72;
const WAITING_MAX: usize = 200;
const VOICES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use scrinium_protocol::secret::Secret;

    use super::*;

    #[test]
    fn time_alone_does_what_one_person_wants_and_never_what_needs_two() {
        let (one, mut two) = (waiting(), waiting());
        two.needs_two = true;
        for (passed_us, due) in [
            (None, false),
            (Some(DELAY_US - 1), false),
            (Some(DELAY_US), true),
            (Some(u64::MAX), true),
        ] {
            assert_eq!(is_due(&one, passed_us, false), due);
            assert!(!is_due(&one, passed_us, true));
            assert!(!is_due(&two, passed_us, false));
        }
        two.is_agreed = true;
        assert!(is_due(&two, None, true));
    }

    #[test]
    fn two_persons_are_two_accounts_that_nobody_made_for_it() {
        let since_us = waiting().since_us;
        let settled = |name: &str, since_us: u64| match name {
            "old" | "older" => is_settled(since_us - DELAY_US, since_us, 0),
            "young" => is_settled(since_us - DELAY_US + 1, since_us, 0),
            "jumped" => is_settled(since_us - DELAY_US, since_us, 1),
            "later" => is_settled(since_us + 1, since_us, 0),
            _ => false,
        };
        let agreed = |voices: &[(&str, bool)]| {
            let mut waiting = waiting();
            waiting.voices.clear();
            for &(name, is_account) in voices {
                let actor = Actor {
                    is_account,
                    ..Actor::of(name)
                };
                waiting.agree(&actor, since_us);
            }
            waiting.has_two(settled)
        };
        assert!(agreed(&[("old", true), ("older", true)]));
        assert!(agreed(&[
            ("local command", false),
            ("old", true),
            ("older", true)
        ]));
        for voices in [
            [("old", true), ("old", true)],
            [("old", true), ("local command", false)],
            [("old", true), ("older", false)],
            [("old", true), ("young", true)],
            [("old", true), ("jumped", true)],
            [("old", true), ("later", true)],
            [("old", true), ("deleted", true)],
        ] {
            assert!(!agreed(&voices), "{voices:?}");
        }
    }

    #[test]
    fn what_is_being_done_is_nobody_elses_until_it_is_over() {
        let path = std::env::temp_dir().join(format!("scrinium-doing-{}.db", std::process::id()));
        drop(std::fs::remove_file(&path));
        let catalogue = Catalogue::create(&path, &Secret::new([7; 32])).unwrap();
        let waiting = Waiting::load(Arc::new(catalogue)).unwrap();
        let doing = waiting.begin("one").unwrap();
        let refused = waiting.begin("one").unwrap_err();
        assert!(refused.to_string().contains("is being done now"));
        let other = waiting.begin("other").unwrap();
        drop((doing, other));
        drop(waiting.begin("one").unwrap());
        std::fs::remove_file(&path).unwrap();
    }

    fn waiting() -> WaitingRecord {
        let now_us = 10 * DELAY_US;
        WaitingRecord {
            id: "00000000".into(),
            act: WaitingAct::OnePerson,
            what: "something".into(),
            voices: vec![voice(&Actor::of("local command"), now_us)],
            since_us: now_us,
            due_us: now_us + DELAY_US,
            needs_two: false,
            is_agreed: false,
            hindered: None,
        }
    }
}
