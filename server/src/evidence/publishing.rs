//! The duty that seals intervals, and tells when that fails. It waits for nobody else: [`super::showing`] shows their checkpoints.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, bail};
use tracing::info;

use crate::alarms::{AlarmKind, Raise};
use crate::clock;
use crate::core::{Core, OWN_NAME};
use crate::duties::keep::{Duty, Plan};
use crate::said::said;

/// Seals intervals; a failure is an alarm.
pub(crate) struct Intervals {
    core: Arc<Core>,
    told: Option<String>,
}

impl Intervals {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        core.evidence.is_live.store(true, Ordering::Relaxed);
        Self { core, told: None }
    }
}

impl Duty for Intervals {
    async fn round(&mut self) -> Result<()> {
        let core = &self.core;
        let now_us = clock::unix_us();
        let worked = {
            let core = core.clone();
            let work = move || {
                let doubt = core.time.doubt();
                core.evidence.work(&core.archive, now_us, doubt)?;
                let registered = core.evidence.register(&core.catalogue);
                registered.map_err(|error| format!("what came could not be registered: {error:#}"))
            };
            tokio::task::spawn_blocking(work).await
        };
        let failed = match worked {
            Ok(worked) => worked.err(),
            Err(error) => Some(error.to_string()),
        };
        core.time.raise_floor(core.evidence.certain_us());
        if let Some(failed) = failed
            .clone()
            .filter(|failed| self.told.as_ref() != Some(failed))
        {
            let raise = Raise {
                kind: AlarmKind::EvidenceStopped,
                agent: OWN_NAME.to_owned(),
                text: said!("alarm_text.evidence-stopped", failed),
                key: SEALING.to_owned(),
            };
            // The same was told before a restart.
            if self.told.is_some() || !core.alarms.says(&raise) {
                core.alarms.raise(raise).await;
            }
        }
        if failed.is_none() {
            if self.told.is_some() {
                info!("intervals are sealed again");
            }
            // One that stood when the server started is over too.
            let over = said!("over.evidence");
            core.alarms
                .end_of(AlarmKind::EvidenceStopped, OWN_NAME, SEALING, over)
                .await;
        }
        self.told.clone_from(&failed);
        match failed {
            Some(failed) => bail!("{failed}"),
            None => Ok(()),
        }
    }
}

/// The key of the alarm that they are not sealed; those of places that checkpoints go to have names.
pub(super) const SEALING: &str = "";

/// Every `interval`.
pub(crate) fn plan(interval: Duration) -> Plan {
    Plan {
        point: "duty: intervals",
        every: interval,
        long: Duration::from_secs(600),
        raises: true,
    }
}
