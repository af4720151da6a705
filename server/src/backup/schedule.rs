//! The duty that makes backups as often as is configured.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::target::Target;
use super::{Order, create, latest, one_at_a_time};
use crate::alarms::{AlarmKind, Raise};
use crate::core::{Core, OWN_NAME};
use crate::duties::keep::{Duty, Plan};
use crate::said::said;
use crate::{clock, config};

/// Makes a backup as often as is configured; what fails is an alarm and tried again.
pub(crate) struct Schedule {
    pub(crate) core: Arc<Core>,
    pub(crate) config: config::Backup,
}

impl Duty for Schedule {
    async fn round(&mut self) -> Result<()> {
        let (core, config) = (&self.core, &self.config);
        let made = self.make_if_due().await;
        match &made {
            Ok(()) => {
                let over = said!("over.backup");
                core.alarms
                    .end(AlarmKind::BackupFailed, OWN_NAME, over)
                    .await;
            }
            Err(error) => {
                let (to, error) = (config.to.to_string(), format!("{error:#}"));
                core.alarms
                    .raise(Raise {
                        kind: AlarmKind::BackupFailed,
                        agent: OWN_NAME.to_owned(),
                        text: said!("alarm_text.backup-failed", to, error),
                        key: String::new(),
                    })
                    .await;
            }
        }
        made
    }
}

impl Schedule {
    /// Backups are due by the clock: nothing else tells.
    async fn make_if_due(&self) -> Result<()> {
        let last_us = {
            let (core, to) = (self.core.clone(), self.config.to.clone());
            let look = move || {
                let _one_at_a_time = one_at_a_time(&core);
                let target = Target::open(&to)?;
                let found = latest(&target, &core.volume, &core.volume.scratch_dir())?;
                Ok(found.map_or(0, |(generation, _)| generation.made_us))
            };
            let looked: Result<u64> = tokio::task::spawn_blocking(look).await?;
            looked?
        };
        let age_us = clock::unix_us().saturating_sub(last_us);
        if u128::from(age_us) >= self.config.every.as_micros() {
            let order = Order {
                to: self.config.to.clone(),
                keys: self.config.keys.clone(),
                by_hand: false,
                anew: false,
            };
            create(&self.core, order).await?;
        }
        Ok(())
    }
}

/// How often it is looked whether a backup is due. A first one of everything, over a slow line, takes a day.
pub(crate) const PLAN: Plan = Plan {
    point: "duty: backup",
    every: Duration::from_secs(600),
    long: Duration::from_secs(24 * 3600),
    raises: true,
};
