//! What happened, and the trail does not have yet.
//!
//! ```text
//! it happened ─▶ [Unsaid::tell] ─▶ the trail takes it
//!                            └─▶ it takes nothing now ─▶ memory ─▶ written when it does; at a stop, kept beside the volume
//! ```
//!
//! An act of a person is refused where it cannot be written down. What an agent did, or the server itself, has happened by
//! then: it is written when that can be done, with the time at which it happened. A kill loses what waits in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use data_encoding::HEXLOWER;
use scrinium_segment::random;
use serde_json::{Value, json};
use tracing::error;

use crate::archive::troubles::Troubles;
use crate::audit::{Actor, Audit, LateAct};
use crate::catalogue::records::LateActRecord;
use crate::clock;
use crate::core::OWN_NAME;

/// The way into the trail of what has happened.
pub(crate) struct Unsaid {
    audit: Audit,
    /// Whether the archive takes entries now.
    troubles: Arc<Troubles>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<LateActRecord>,
    /// What found no room there.
    lost: u64,
}

impl Unsaid {
    pub(crate) fn new(audit: Audit, troubles: Arc<Troubles>) -> Self {
        Self {
            audit,
            troubles,
            state: Mutex::default(),
        }
    }

    /// Writes into the trail that `actor` did `action`. Where that takes nothing now, it is kept in memory and written later; an
    /// entry that the trail took after all is then there twice.
    pub(crate) async fn tell(&self, actor: &Actor, action: &str, detail: Value) {
        let time_us = clock::unix_us();
        let is_stuck = !self.lock().waiting.is_empty() || !self.troubles.takes_entries();
        if !is_stuck && self.audit.note(actor, action, detail.clone()).await.is_ok() {
            return;
        }
        let made: [u8; 16] = random().unwrap_or_default();
        let act = LateActRecord {
            record: HEXLOWER.encode(&made),
            time_us,
            actor: actor.name.clone(),
            address: actor.address.clone(),
            action: action.to_owned(),
            detail,
            sent_at: None,
        };
        let mut state = self.lock();
        if state.waiting.len() < WAITING_MAX {
            state.waiting.push_back(act);
        } else {
            state.lost += 1;
        }
        drop(state);
        error!(
            action,
            "the audit trail takes nothing now; it is written there later"
        );
    }

    /// Writes what could not be written when it happened. `false` while something waits.
    pub(crate) async fn write_down(&self) -> bool {
        loop {
            let Some(act) = self.lock().waiting.front().cloned() else {
                break;
            };
            let actor = Actor {
                name: act.actor,
                address: act.address,
                is_account: false,
            };
            let late = LateAct {
                record: &act.record,
                time_us: act.time_us,
                action: &act.action,
                detail: &act.detail,
            };
            if !self.troubles.takes_entries() || self.audit.note_late(&actor, late).await.is_err() {
                return false;
            }
            let mut state = self.lock();
            // Who stops the server may have taken what waits.
            let front = state.waiting.front();
            if front.is_some_and(|front| front.record == act.record) {
                state.waiting.pop_front();
            }
        }
        let lost = self.lock().lost;
        if lost > 0 {
            let detail = json!({ "count": lost });
            let action = "acts that could not be written down";
            if !self.audit.record(OWN_NAME, action, detail).await {
                return false;
            }
            let mut state = self.lock();
            state.lost = state.lost.saturating_sub(lost);
        }
        true
    }

    /// Takes what waits: the server stops, and keeps it elsewhere.
    pub(crate) fn take(&self) -> Vec<LateActRecord> {
        core::mem::take(&mut self.lock().waiting).into()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What waits in memory for the trail: about 2 MiB.
const WAITING_MAX: usize = 2000;

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::archive::troubles::Trouble;

    #[tokio::test]
    async fn what_the_trail_does_not_take_is_written_when_it_does_with_the_time_it_happened() {
        let (queue, mut entries) = mpsc::channel(4);
        let troubles = Arc::<Troubles>::default();
        let unsaid = Unsaid::new(Audit::new(queue), troubles.clone());
        let agent = Actor::of("agent");
        troubles.meet(Trouble::Archiving, "No space left on device");
        let before_us = clock::unix_us();
        unsaid
            .tell(&agent, "enrolled", json!({ "agent": "web1" }))
            .await;
        unsaid.tell(&agent, "rollback", json!({})).await;
        assert!(!unsaid.write_down().await);
        assert!(entries.try_recv().is_err());
        troubles.end(Trouble::Archiving);
        let taken = tokio::spawn(async move {
            let mut lines = Vec::new();
            for _ in 0..2 {
                let entry: crate::local::LocalEntry = entries.recv().await.unwrap();
                lines.push(serde_json::from_slice::<Value>(&entry.bytes).unwrap());
                entry.durable.unwrap().send(()).unwrap();
            }
            lines
        });
        assert!(unsaid.write_down().await);
        let lines = taken.await.unwrap();
        assert_eq!(
            (&lines[0]["action"], &lines[1]["action"]),
            (&json!("enrolled"), &json!("rollback"))
        );
        assert!(lines[0]["time_us"].as_u64().unwrap() >= before_us);
        assert!(lines[0]["late_us"].is_u64() && unsaid.take().is_empty());
    }

    #[tokio::test]
    async fn what_still_waits_at_a_stop_is_taken_and_what_found_no_room_is_counted() {
        let (queue, entries) = mpsc::channel(1);
        drop(entries);
        let unsaid = Unsaid::new(Audit::new(queue), Arc::default());
        for _ in 0..WAITING_MAX + 3 {
            unsaid
                .tell(&Actor::of("agent"), "enrolled", json!({}))
                .await;
        }
        assert_eq!(unsaid.lock().lost, 3);
        assert_eq!(unsaid.take().len(), WAITING_MAX);
    }
}
