//! The duty that publishes intervals: seals, shows the checkpoint elsewhere, and tells when that fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, bail};
use tracing::info;

use super::Elsewhere;
use crate::alarms::{AlarmKind, Raise};
use crate::clock;
use crate::core::{Core, OWN_NAME};
use crate::duties::keep::{Duty, Plan};
use crate::said::said;

/// Seals intervals and shows the checkpoints elsewhere; a failure is an alarm.
pub(crate) struct Intervals {
    core: Arc<Core>,
    elsewhere: Elsewhere,
    told: Option<String>,
}

impl Intervals {
    pub(crate) fn new(core: Arc<Core>, elsewhere: Elsewhere) -> Self {
        core.evidence.is_live.store(true, Ordering::Relaxed);
        Self {
            core,
            elsewhere,
            told: None,
        }
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
                core.evidence
                    .work(&core.archive, &core.catalogue, now_us, doubt)
            };
            tokio::task::spawn_blocking(work).await
        };
        let failed = match worked {
            Ok(Ok(signed)) => {
                let shown = core.evidence.show(&self.elsewhere, &signed, now_us).await;
                let registered = core.evidence.register(&core.catalogue);
                let registered = registered
                    .err()
                    .map(|error| format!("what came could not be registered: {error:#}"));
                shown.err().or(registered)
            }
            Ok(Err(failed)) => Some(failed),
            Err(error) => Some(error.to_string()),
        };
        // A time stamp that came is certain too.
        core.time.raise_floor(core.evidence.certain_us());
        if let Some(failed) = failed
            .clone()
            .filter(|failed| self.told.as_ref() != Some(failed))
        {
            let raise = Raise {
                kind: AlarmKind::EvidenceStopped,
                agent: OWN_NAME.to_owned(),
                text: said!("alarm_text.evidence-stopped", failed),
                key: String::new(),
            };
            // The same was told before a restart.
            if self.told.is_some() || !core.alarms.says(&raise) {
                core.alarms.raise(raise).await;
            }
        }
        if failed.is_none() {
            if self.told.is_some() {
                info!("intervals are sealed, and their checkpoints leave, again");
            }
            // One that stood when the server started is over too.
            let over = said!("over.evidence");
            core.alarms
                .end(AlarmKind::EvidenceStopped, OWN_NAME, over)
                .await;
        }
        self.told.clone_from(&failed);
        match failed {
            Some(failed) => bail!("{failed}"),
            None => Ok(()),
        }
    }
}

/// Every `interval`. Authorities, witnesses and mail servers have deadlines of their own.
pub(crate) fn plan(interval: Duration) -> Plan {
    Plan {
        point: "duty: intervals",
        every: interval,
        long: Duration::from_secs(600),
        raises: true,
    }
}
