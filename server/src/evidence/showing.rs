//! The duty that shows checkpoints elsewhere: each place has its own turn, and is tried later and later while it fails.
//!
//! ```text
//! [super::publishing] ─▶ the newest checkpoint ─▶ of each [Destination] that is due: one try ─▶ shown
//!                                                      ▲                                    └▶ failed ─▶ alarm
//!                                                      └────────────── waits ◀─────────────────┘
//! ```
//!
//! Invariant: what a place does, or does not do, holds up no interval and no other place. Only the newest checkpoint is shown: it
//! covers all before it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tracing::info;

use super::destination::{Destination, copy};
use super::patience::Patience;
use super::publishing::SEALING;
use super::{Elsewhere, Signed};
use crate::alarms::{AlarmKind, Raise};
use crate::bounds::{ALARM_LEN_MAX, cut};
use crate::clock;
use crate::core::{Core, OWN_NAME};
use crate::duties::keep::{Duty, Plan};
use crate::said::said;

/// Shows the newest checkpoint to every place; a place that does not take it is an alarm of its own.
pub(crate) struct Showing {
    core: Arc<Core>,
    newest: watch::Receiver<Option<Arc<Signed>>>,
    turns: Vec<Turn>,
    tries: JoinSet<Result<()>>,
    /// Alarms of places that are not configured any more were ended.
    is_begun: bool,
}

/// What is known of one place.
struct Turn {
    to: Destination,
    /// What its alarm is known by.
    name: String,
    patience: Patience,
    /// Intervals that the last checkpoint covers which it took; none before the first.
    shown: Option<u64>,
    trying: Option<Try>,
    /// What is wrong, as long as something is.
    failed: Option<String>,
    /// What people were told last.
    told: Option<String>,
}

/// A try that has not ended.
struct Try {
    task: Id,
    since: Instant,
    leaves: u64,
    is_long: bool,
}

impl Showing {
    pub(crate) fn new(core: Arc<Core>, elsewhere: Elsewhere) -> Self {
        let lasting = core.alarms.lasting_of_server(AlarmKind::EvidenceStopped);
        let mut names = BTreeSet::new();
        let places = Destination::all(core.evidence.copies(), elsewhere);
        let turns = places.into_iter().map(|to| {
            let (mut name, mut count) = (to.name(), 1);
            // Two witnesses of one machine.
            while !names.insert(name.clone()) {
                count += 1;
                name = format!("{} ({count})", to.name());
            }
            Turn {
                patience: Patience::new(lasting.contains(&name)),
                to,
                name,
                shown: None,
                trying: None,
                failed: None,
                told: None,
            }
        });
        let turns = turns.collect();
        Self {
            newest: core.evidence.newest(),
            core,
            turns,
            tries: JoinSet::new(),
            is_begun: false,
        }
    }

    /// Begins a try of every place that is due.
    fn begin(&mut self, now: Instant) {
        let Some(newest) = self.newest.borrow_and_update().clone() else {
            return;
        };
        let is_to_be_stamped = self.turns.iter().any(|turn| {
            matches!(turn.to, Destination::Authority(_))
                && (turn.trying.is_some() || turn.is_due(&newest, now))
        });
        for turn in &mut self.turns {
            // The letter has the token in it: it waits for an answer of the authority, whatever that is.
            let waits = matches!(turn.to, Destination::Mail(_)) && is_to_be_stamped;
            if waits || !turn.is_due(&newest, now) {
                continue;
            }
            let (core, signed) = (self.core.clone(), newest.clone());
            // A disk of another machine may take as long as it likes: a stop does not wait for it.
            let begun = if let Destination::Copies(dir) = turn.to.clone() {
                let (name, catalogue) = (core.evidence.name(), core.catalogue.clone());
                self.tries
                    .spawn_blocking(move || copy(&dir, &name, &catalogue, &signed))
            } else {
                let to = turn.to.clone();
                self.tries
                    .spawn(async move { to.show(&core, &signed).await })
            };
            turn.trying = Some(Try {
                task: begun.id(),
                since: now,
                leaves: newest.leaves,
                is_long: false,
            });
        }
    }

    /// When somebody is to be looked after again, if nothing happens before.
    fn next(&self, now: Instant) -> Instant {
        let newest = self.newest.borrow().as_ref().map(|newest| newest.leaves);
        let times = self.turns.iter().filter_map(|turn| match &turn.trying {
            Some(trying) => (!trying.is_long).then(|| trying.since + LONG),
            None if turn.shown == newest => None,
            None => turn.patience.free_at(),
        });
        // Who may be tried and is not waits for somebody else, whose end is heard.
        let times = times.filter(|time| *time > now);
        times.min().map_or(now + IDLE, |next| next.min(now + IDLE))
    }

    /// A try ended.
    async fn ended(&mut self, ended: Result<(Id, Result<()>), JoinError>) {
        let (task, shown) = match ended {
            Ok((task, shown)) => (task, shown),
            Err(fault) => (fault.id(), Err(anyhow!("a fault of the program: {fault}"))),
        };
        let now = clock::now();
        let is_it = |turn: &&mut Turn| turn.trying.as_ref().is_some_and(|it| it.task == task);
        let Some(turn) = self.turns.iter_mut().find(is_it) else {
            return;
        };
        let leaves = turn.trying.take().map(|trying| trying.leaves);
        match shown {
            Ok(()) => {
                turn.shown = leaves;
                turn.failed = None;
                if turn.patience.went_well(now) {
                    turn.told = None;
                    info!(place = turn.name, "checkpoints leave again");
                    let over = said!("over.evidence");
                    let alarms = &self.core.alarms;
                    alarms
                        .end_of(AlarmKind::EvidenceStopped, OWN_NAME, &turn.name, over)
                        .await;
                }
            }
            Err(error) => turn.fail(&self.core, &error, now).await,
        }
    }

    /// Those that do not answer at all have failed, though they may answer yet. Whether there are new ones.
    async fn tell_long(&mut self, now: Instant) -> bool {
        let mut is_news = false;
        for turn in &mut self.turns {
            let Some(trying) = &mut turn.trying else {
                continue;
            };
            if !trying.is_long && now.duration_since(trying.since) >= LONG {
                trying.is_long = true;
                is_news = true;
                let error = anyhow!("it has not answered for {} s", LONG.as_secs());
                turn.fail(&self.core, &error, now).await;
            }
        }
        is_news
    }

    /// What is wrong with all places, and how many checkpoints each has not seen.
    fn failing(&self) -> Vec<String> {
        let newest = self.newest.borrow().as_ref().map(|newest| newest.leaves);
        let failing = self.turns.iter().filter_map(|turn| {
            let failed = turn.failed.as_ref()?;
            let unseen = newest.unwrap_or(0).saturating_sub(turn.shown.unwrap_or(0));
            Some(match turn.shown {
                Some(_) => format!("{failed} ({} has not seen the last {unseen})", turn.name),
                None => format!(
                    "{failed} ({} has seen none since the server began)",
                    turn.name
                ),
            })
        });
        failing.collect()
    }
}

impl Duty for Showing {
    async fn round(&mut self) -> Result<()> {
        if !self.is_begun {
            self.is_begun = true;
            let mut kept: BTreeSet<String> =
                self.turns.iter().map(|turn| turn.name.clone()).collect();
            kept.insert(SEALING.to_owned());
            let alarms = &self.core.alarms;
            alarms.end_all_but(AlarmKind::EvidenceStopped, &kept).await;
        }
        let begun = clock::now();
        loop {
            let now = clock::now();
            self.begin(now);
            let next = self.next(now);
            let mut is_news = false;
            tokio::select! {
                Some(ended) = self.tries.join_next_with_id() => {
                    self.ended(ended).await;
                    is_news = true;
                }
                changed = self.newest.changed() => changed?,
                () = tokio::time::sleep(next.saturating_duration_since(now)) => {}
            }
            // Whatever else has ended by now.
            while let Some(ended) = self.tries.try_join_next_with_id() {
                self.ended(ended).await;
            }
            let now = clock::now();
            is_news |= self.tell_long(now).await;
            let failing = self.failing();
            let passed = now.duration_since(begun);
            if failing.is_empty() && passed >= IDLE {
                return Ok(());
            }
            // What is known is not said again each time that somebody looks.
            if !failing.is_empty() && (is_news || passed >= FAILING_MAX) {
                bail!("{}", cut(&failing.join(" "), ALARM_LEN_MAX));
            }
        }
    }
}

impl Turn {
    fn is_due(&self, newest: &Signed, now: Instant) -> bool {
        self.trying.is_none()
            && self.shown != Some(newest.leaves)
            && self.patience.free_at().is_none_or(|free_at| free_at <= now)
    }

    /// It did not take it: people are told, unless they know.
    async fn fail(&mut self, core: &Core, error: &anyhow::Error, now: Instant) {
        let failed = self.to.failed(error);
        let is_to_be_told = self.patience.failed(now);
        self.failed = Some(failed.clone());
        if !is_to_be_told || self.told.as_ref() == Some(&failed) {
            return;
        }
        let raise = Raise {
            kind: AlarmKind::EvidenceStopped,
            agent: OWN_NAME.to_owned(),
            text: said!("alarm_text.evidence-stopped", &failed),
            key: self.name.clone(),
        };
        // The same was told before a restart.
        if self.told.is_some() || !core.alarms.says(&raise) {
            core.alarms.raise(raise).await;
        }
        self.told = Some(failed);
    }
}

/// A round ends when a place answers while one fails, after [`IDLE`], and after [`FAILING_MAX`].
pub(crate) const PLAN: Plan = Plan {
    point: "duty: showing",
    every: Duration::from_secs(1),
    long: Duration::from_secs(600),
    raises: true,
};

/// A try that takes longer is a failure that people hear of, whatever becomes of it: a witness or an authority has 30 s, and a
/// letter has.
const LONG: Duration = Duration::from_secs(120);
/// A round in which nothing fails, so that it is known to go on.
const IDLE: Duration = Duration::from_secs(30);
/// A round in which something fails still, and nobody answered.
const FAILING_MAX: Duration = Duration::from_secs(300);
