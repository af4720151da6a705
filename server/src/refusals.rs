//! Refusals of strangers in the audit trail and as an alarm: the first at once, a flood of them in sums.
//!
//! ```text
//! refused ─▶ [Refusals] ── the first few of a minute ─▶ an entry each, durable before the answer
//!                       └─ all further ones ──────────▶ one entry a minute: how many, from where, for whom
//! ```
//!
//! Anybody may fail as often as the wire carries, and the trail is kept for years. A kill loses the sum of the minute
//! that runs; a stop writes it. The same round writes the sums of what agents say ([`crate::agents::News`]).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tracing::warn;

use crate::alarms::{AlarmKind, Raise};
use crate::audit::{Actor, NotWritten};
use crate::clock;
use crate::core::{Core, OWN_NAME};
use crate::duties::keep::{Duty, Plan};
use crate::present::rfc3339;
use crate::said::said;

/// What was refused.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum What {
    SignIn,
    Enrolment,
    Agent,
}

impl What {
    /// What a sum of them is called in the trail.
    fn action(self) -> &'static str {
        match self {
            Self::SignIn => "sign-ins refused, in sum",
            Self::Enrolment => "enrolments refused, in sum",
            Self::Agent => "agents refused, in sum",
        }
    }
}

/// One refusal, as the trail has it.
#[derive(Debug)]
pub(crate) struct Refusal<'a> {
    pub(crate) what: What,
    pub(crate) actor: &'a Actor,
    pub(crate) action: &'a str,
    pub(crate) detail: Value,
    pub(crate) from: SocketAddr,
}

/// What was refused lately.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<BTreeMap<What, Minute>>);

#[derive(Debug, Default)]
struct Minute {
    begun_us: u64,
    /// Refusals in it, and how many of them are entries of their own.
    count: u64,
    single: u64,
    sum: Sum,
}

/// Refusals that are no entries of their own.
#[derive(Clone, Debug, Default)]
struct Sum {
    count: u64,
    first_us: u64,
    last_us: u64,
    addresses: Counts<IpAddr>,
    names: Counts<String>,
    actions: Counts<String>,
}

/// How often each, of a bounded number, and of all others together.
#[derive(Clone, Debug)]
struct Counts<T>(BTreeMap<T, u64>, u64);

impl<T> Default for Counts<T> {
    fn default() -> Self {
        Self(BTreeMap::new(), 0)
    }
}

impl<T: Ord + ToString> Counts<T> {
    fn add(&mut self, what: T) {
        if let Some(count) = self.0.get_mut(&what) {
            *count += 1;
        } else if self.0.len() < NAMED_MAX {
            self.0.insert(what, 1);
        } else {
            self.1 += 1;
        }
    }

    fn to_json(&self) -> Value {
        let named = self
            .0
            .iter()
            .map(|(what, count)| (what.to_string(), *count));
        let named: BTreeMap<String, u64> = named.collect();
        json!({ "named": named, "others": self.1 })
    }
}

impl Refusals {
    /// Counts one; whether it is to be an entry of its own, and how many there were in this minute.
    fn count(&self, refusal: &Refusal<'_>, now_us: u64) -> (bool, u64) {
        let mut minutes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let minute = minutes.entry(refusal.what).or_insert_with(|| Minute {
            begun_us: now_us,
            ..Minute::default()
        });
        minute.count += 1;
        if minute.single < SINGLE_MAX {
            minute.single += 1;
            return (true, minute.count);
        }
        let sum = &mut minute.sum;
        if sum.count == 0 {
            sum.first_us = now_us;
        }
        sum.count += 1;
        sum.last_us = now_us;
        sum.addresses.add(refusal.from.ip().to_canonical());
        sum.actions.add(refusal.action.to_owned());
        if !refusal.actor.name.is_empty() {
            sum.names.add(refusal.actor.name.clone());
        }
        (false, minute.count)
    }

    /// The sums of minutes that are over; of all, when `all` says so.
    fn due(&self, now_us: u64, all: bool) -> Vec<(What, Sum)> {
        let mut minutes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut due = Vec::new();
        minutes.retain(|what, minute| {
            if !all && now_us < minute.begun_us.saturating_add(MINUTE_US) {
                return true;
            }
            if minute.sum.count == 0 {
                return false;
            }
            due.push((*what, core::mem::take(&mut minute.sum)));
            // It may go on: then no entry but the next sum.
            *minute = Minute {
                begun_us: now_us,
                single: SINGLE_MAX,
                ..Minute::default()
            };
            true
        });
        due
    }
}

/// The same of whom nobody asks for a password: what is not written down now is written later.
pub(crate) async fn note_late(core: &Core, refusal: Refusal<'_>) {
    let (is_single, _) = core.refusals.count(&refusal, clock::unix_us());
    if is_single {
        let Refusal {
            actor,
            action,
            detail,
            ..
        } = refusal;
        core.unsaid.tell(actor, action, detail).await;
    }
}

/// Writes a refusal down, alone or in a sum, and raises an alarm when they are many.
pub(crate) async fn note(core: &Core, refusal: Refusal<'_>) -> Result<(), NotWritten> {
    let (what, from) = (refusal.what, refusal.from);
    let (is_single, count) = core.refusals.count(&refusal, clock::unix_us());
    if is_single {
        let Refusal {
            actor,
            action,
            detail,
            ..
        } = refusal;
        core.audit.note(actor, action, detail).await?;
    }
    if what == What::SignIn && count >= ALARM_FROM {
        raise(core, from).await;
    }
    Ok(())
}

/// Somebody tries passwords.
pub(crate) async fn raise(core: &Core, from: SocketAddr) {
    let raise = Raise {
        kind: AlarmKind::SignInsRefused,
        agent: OWN_NAME.to_owned(),
        text: said!(
            "alarm_text.sign-ins-refused",
            from.ip().to_canonical().to_string()
        ),
        key: String::new(),
    };
    core.alarms.raise_from(raise, from.ip()).await;
}

/// Writes a sum each minute, while there is something to sum up.
pub(crate) struct Sums(pub(crate) Arc<Core>);

impl Duty for Sums {
    async fn round(&mut self) -> Result<()> {
        write_sums(&self.0, false).await;
        Ok(())
    }
}

/// Writes down what was counted and is due; at a stop, all of it.
pub(crate) async fn write_sums(core: &Core, all: bool) {
    for (what, sum) in core.refusals.due(clock::unix_us(), all) {
        warn!(
            refused = sum.count,
            "{}: the audit trail has from where",
            what.action()
        );
        let detail = json!({
            "count": sum.count,
            "from": rfc3339(sum.first_us),
            "to": rfc3339(sum.last_us),
            "addresses": sum.addresses.to_json(),
            "accounts": sum.names.to_json(),
            "actions": sum.actions.to_json(),
        });
        let by = Actor::of(OWN_NAME);
        core.unsaid.tell(&by, what.action(), detail).await;
    }
    for sum in core.agents.news_due(all) {
        let action = sum.news.action();
        warn!(agent = sum.agent, counted = sum.count, "{action}");
        let detail = json!({
            "agent": sum.agent,
            "count": sum.count,
            "from": rfc3339(sum.first_us),
            "to": rfc3339(sum.last_us),
        });
        core.unsaid.tell(&Actor::of("agent"), action, detail).await;
    }
}

/// Refusals of a minute that are entries of their own: a person's mistakes are there as they were.
const SINGLE_MAX: u64 = 5;
/// Refused sign-ins in a minute from which on they are an alarm.
const ALARM_FROM: u64 = 10;
/// Addresses and names that a sum has by name.
const NAMED_MAX: usize = 50;
const MINUTE_US: u64 = 60_000_000;
pub(crate) const PLAN: Plan = Plan {
    point: "duty: sums of refusals",
    every: Duration::from_secs(5),
    long: Duration::from_secs(300),
    raises: false,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_entries_and_a_sum_a_minute_that_loses_none() {
        let refusals = Refusals::default();
        let actor = Actor::of("admin");
        let mut single = 0;
        let mut summed = 0;
        let mut sums = 0;
        for n in 0..600_u64 {
            let now_us = 1_000_000_000 + n * 500_000;
            let address = format!("192.0.2.{}:9", n % 200);
            let refusal = Refusal {
                what: What::SignIn,
                actor: &actor,
                action: "refused",
                detail: json!({}),
                from: address.parse().unwrap(),
            };
            single += u64::from(refusals.count(&refusal, now_us).0);
            for (_, sum) in refusals.due(now_us, false) {
                sums += 1;
                summed += sum.count;
                assert!(sum.addresses.0.len() <= NAMED_MAX);
                let named: u64 = sum.addresses.0.values().sum();
                assert_eq!(named + sum.addresses.1, sum.count);
            }
        }
        assert_eq!(
            (single, sums),
            (SINGLE_MAX, 4),
            "five minutes, the last one runs"
        );
        summed += refusals
            .due(u64::MAX, true)
            .iter()
            .map(|(_, sum)| sum.count)
            .sum::<u64>();
        assert_eq!(single + summed, 600);
        assert!(refusals.due(u64::MAX, true).is_empty());
        assert!(refusals.0.lock().unwrap().is_empty(), "quiet again");
    }
}
