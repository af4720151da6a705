//! Looks at what the server stands on, and tells people of what it cannot do.
//!
//! ```text
//! disk, descriptors ─▶ [Troubles] ◀─ ingest, upkeep, evidence
//!                          └─▶ an alarm when one begins, its end when it was over for a while
//! panics anywhere ────────────▶ an alarm
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use scrinium_segment::{process, say};

use crate::alarms::{AlarmKind, Raise};
use crate::archive::troubles::Trouble;
use crate::clock;
use crate::core::{Core, OWN_NAME};
use crate::disk::{Forecast, Space};
use crate::duties::keep::{Duty, Plan};
use crate::said::{Said, said};

/// The duty.
pub(crate) struct Health {
    core: Arc<Core>,
    forecast: Forecast,
    /// Troubles that were told, and when they stood last.
    told: BTreeMap<Trouble, Instant>,
    panics: u64,
}

impl Health {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        // What was told before the server was restarted ends too.
        let now = clock::now();
        let told = Trouble::ALL.into_iter().filter(|trouble| {
            alarm_of(*trouble).is_some_and(|kind| {
                let lasting = core.alarms.lasting_of_server(kind);
                lasting.contains(trouble.name())
            })
        });
        Self {
            told: told.map(|trouble| (trouble, now)).collect(),
            core,
            forecast: Forecast::default(),
            panics: 0,
        }
    }

    /// What the disk has, and what this process may open.
    async fn look(&mut self) -> Result<()> {
        let core = self.core.clone();
        let looked = move || (Space::of(core.data_dir()), process::descriptors_used());
        let (space, used) = tokio::task::spawn_blocking(looked).await?;
        let troubles = self.core.archive.troubles().clone();
        let (refuses, runs_short) = match &space {
            Ok(space) => (space.refuses(), self.runs_short(space)),
            Err(error) => (
                Some(said!(
                    "met.no_look",
                    self.core.data_dir().display().to_string(),
                    error.to_string()
                )),
                None,
            ),
        };
        let is_full = refuses.is_some();
        let descriptors = used.zip(process::descriptors_max());
        let descriptors = descriptors.filter(|(used, max)| *used > max - max / DESCRIPTORS_PART);
        let descriptors = descriptors.map(|(used, max)| said!("met.descriptors", used, max));
        for (trouble, met) in [
            (Trouble::Disk, refuses),
            // What is gone is not short any more: one alarm.
            (Trouble::DiskShort, runs_short.filter(|_| !is_full)),
            (Trouble::Descriptors, descriptors),
        ] {
            match met {
                Some(text) => troubles.meet(trouble, text),
                None => troubles.end(trouble),
            }
        }
        Ok(())
    }

    fn runs_short(&mut self, space: &Space) -> Option<Said> {
        let left = self.forecast.look(clock::now(), space.free_bytes);
        let text = space.runs_short();
        text.or_else(|| {
            let left = left.filter(|left| *left < FORECAST_MIN)?;
            let (days, hours) = (left.as_secs() / 86_400, left.as_secs() % 86_400 / 3600);
            Some(said!("met.forecast", days, hours))
        })
    }

    /// Alarms of what stands, and their ends.
    async fn tell(&mut self) {
        let now = clock::now();
        for standing in self.core.archive.troubles().list() {
            let trouble = standing.trouble;
            let Some(kind) = alarm_of(trouble) else {
                continue;
            };
            if self.told.insert(trouble, now).is_none() {
                let text = said!("alarm_text.trouble", trouble_said(trouble), standing.text);
                self.raise(kind, trouble.name(), text).await;
            }
        }
        let over = self.told.iter();
        let over = over.filter(|(_, stood)| now.duration_since(**stood) >= CALM);
        let over: Vec<Trouble> = over.map(|(trouble, _)| *trouble).collect();
        for trouble in over {
            self.told.remove(&trouble);
            if let Some(kind) = alarm_of(trouble) {
                let alarms = &self.core.alarms;
                alarms
                    .end_of(kind, OWN_NAME, trouble.name(), said!("over.trouble"))
                    .await;
            }
        }
        let (panics, last) = say::panics();
        if panics > self.panics {
            self.panics = panics;
            let text = said!("alarm_text.program-fault", last.to_string());
            self.raise(AlarmKind::ProgramFault, "", text).await;
        }
    }

    async fn raise(&self, kind: AlarmKind, key: &str, text: Said) {
        self.core
            .alarms
            .raise(Raise {
                kind,
                agent: OWN_NAME.to_owned(),
                text,
                key: key.to_owned(),
            })
            .await;
    }
}

impl Duty for Health {
    async fn round(&mut self) -> Result<()> {
        let looked = self.look().await;
        self.tell().await;
        if self.core.archive.troubles().takes_entries() {
            let _rest_waits = self.core.alarms.write_down().await;
        }
        looked
    }
}

/// What a trouble means.
fn trouble_said(trouble: Trouble) -> Said {
    Said::new(&format!("trouble.{}", trouble.name()), Vec::new())
}

/// What evidence cannot do, it tells itself.
fn alarm_of(trouble: Trouble) -> Option<AlarmKind> {
    match trouble {
        Trouble::Archiving => Some(AlarmKind::CannotArchive),
        Trouble::Sealing => Some(AlarmKind::CannotSeal),
        Trouble::Deleting => Some(AlarmKind::CannotDelete),
        Trouble::Proving => None,
        Trouble::Disk => Some(AlarmKind::DiskFull),
        Trouble::DiskShort => Some(AlarmKind::DiskShort),
        Trouble::Descriptors => Some(AlarmKind::DescriptorsShort),
    }
}

pub(crate) const PLAN: Plan = Plan {
    point: "duty: health",
    every: Duration::from_secs(2),
    long: Duration::from_secs(60),
    raises: false,
};
/// A trouble that comes and goes is one alarm.
const CALM: Duration = Duration::from_secs(60);
/// A disk that is full sooner is an alarm: there is a week to buy another one.
const FORECAST_MIN: Duration = Duration::from_secs(7 * 86_400);
/// With less than one part in so many of the file descriptors free, a person is to raise the limit.
const DESCRIPTORS_PART: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::{new_volume, running};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_stood_before_a_restart_ends_and_what_waits_is_written_while_logs_are_not_sealed()
    {
        let dir = new_volume("health", |_| {});
        let running = running(&dir);
        let core = running.core.clone();
        let before = Health::new(core.clone());
        let (kind, name) = (AlarmKind::CannotSeal, Trouble::Sealing.name());
        before.raise(kind, name, Said::from("x")).await;
        // The server is restarted, and it seals.
        let mut health = Health::new(core.clone());
        let calm = clock::now().checked_sub(CALM).unwrap();
        health.told.values_mut().for_each(|stood| *stood = calm);
        health.tell().await;
        assert!(core.alarms.lasting(kind).is_empty());
        // An alarm while the disk takes nothing; then it takes something, and still nothing is sealed.
        let troubles = core.archive.troubles();
        troubles.meet(Trouble::Archiving, "No space left on device");
        health
            .raise(AlarmKind::CannotArchive, "", Said::from("x"))
            .await;
        troubles.meet(Trouble::Sealing, "x");
        troubles.end(Trouble::Archiving);
        health.round().await.unwrap();
        assert!(core.unsaid.take().is_empty());
        drop((core, before, health));
        running.close().await;
        std::fs::remove_dir_all(dir).unwrap();
    }
}
