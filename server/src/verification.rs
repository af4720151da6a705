//! Verifications: by hand, of a range, of what is new; and one by itself every night.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tracing::error;

use crate::alarms::{AlarmKind, Raise};
use crate::archive::EVER;
use crate::archive::verify::{self, Report, Scope};
use crate::catalogue::records::{LossRecord, VerificationRecord};
use crate::clock::{self, DAY_US};
use crate::core::{Core, OWN_NAME};
use crate::evidence::{self, Expected};

/// What is verified.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Extent {
    /// Every byte.
    All,
    /// What was sealed since the last time; of the rest that it is there and follows.
    New,
    /// What was collected in a range, Unix µs, both ends included.
    Range(u64, u64),
}

/// Verifies, and remembers what it found when it was not a range.
pub(crate) fn run(core: &Core, extent: Extent, checkpoints: &[String]) -> Result<Report> {
    let before = last(core)?;
    let scope = match (extent, &before) {
        (Extent::All, _) | (Extent::New, None) => Scope::all(),
        (Extent::New, Some(before)) => Scope {
            verified: before.segments.iter().copied().collect(),
            times_us: EVER,
        },
        (Extent::Range(from_us, to_us), _) => Scope {
            verified: BTreeSet::new(),
            times_us: (from_us, to_us),
        },
    };
    let is_full = scope.verified.is_empty();
    let (segments, _) = core.archive.parts();
    let key = core.signing.verifying_key();
    let expected = Expected {
        signed: core.archive.acked().signed(),
        stamps: core.catalogue.load()?,
        chains: core.catalogue.load()?,
    };
    let mut claims = evidence::check(&core.volume, &key, checkpoints, &expected);
    claims.losses = core.catalogue.load()?;
    claims.unmet = core.catalogue.load()?;
    if let Err(error) = core.catalogue.check() {
        claims
            .problems
            .push(("catalogue.db".into(), format!("{error:#}")));
    }
    let mut report = verify::verify(&core.archive, &core.signers(), claims, scope);
    report.notes.extend(core.remade.iter().cloned());
    if matches!(extent, Extent::Range(..)) {
        return Ok(report);
    }
    let now = clock::unix_us();
    let verified = segments.iter().map(|segment| segment.number);
    core.catalogue.put(&VerificationRecord {
        time_us: now,
        whole: report.whole,
        findings: report.findings.len() as u64,
        full_us: match &before {
            _ if is_full => now,
            Some(before) => before.full_us,
            None => 0,
        },
        // What was found damaged is looked at again.
        segments: if report.whole {
            verified.collect()
        } else {
            Vec::new()
        },
    })?;
    Ok(report)
}

/// The last verification of everything, or of everything new.
pub(crate) fn last(core: &Core) -> Result<Option<VerificationRecord>> {
    Ok(core.catalogue.load()?.pop())
}

/// Verifies what is new once a day and everything once a week, until the task is dropped; an archive that is not
/// whole is an alarm.
pub(crate) async fn nightly(core: Arc<Core>) {
    if let Err(error) = tell_losses(&core).await {
        let error = format!("{error:#}");
        error!(error, "what is not as it was left could not be told");
    }
    loop {
        let verified = {
            let core = core.clone();
            tokio::task::spawn_blocking(move || verify_if_due(&core)).await
        };
        let problem = match verified {
            Ok(Ok(None)) => None,
            Ok(Ok(Some(report))) => (!report.whole).then(|| {
                let first = report.findings.first();
                format!(
                    "the archive is not whole: {} findings, the first in {}: {}. Run scrinium-server verify.",
                    report.findings.len(),
                    first.map_or("?", |finding| finding.segment.as_str()),
                    first.map_or("?", |finding| finding.problem.as_str())
                )
            }),
            Ok(Err(error)) => Some(format!("the archive could not be verified: {error:#}")),
            Err(error) => Some(format!("the archive could not be verified: {error}")),
        };
        if let Some(text) = problem {
            error!("{text}");
            core.alarms
                .raise(Raise {
                    kind: AlarmKind::ArchiveDamaged,
                    agent: OWN_NAME.to_owned(),
                    text,
                    key: String::new(),
                })
                .await;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// What was found not to be as it was left is an alarm, once.
async fn tell_losses(core: &Core) -> Result<()> {
    for loss in core.catalogue.load::<LossRecord>()? {
        if loss.told {
            continue;
        }
        let entries = loss.entries.as_ref().map(|entries| {
            format!(
                ": stream {}, sequence {} to {}",
                entries
                    .name
                    .clone()
                    .unwrap_or_else(|| entries.stream.to_string()),
                entries.sequences.0,
                entries.sequences.1.saturating_sub(1)
            )
        });
        core.alarms
            .raise(Raise {
                kind: AlarmKind::ArchiveDamaged,
                agent: OWN_NAME.to_owned(),
                text: format!(
                    "the volume is not as it was left: {}: {}{}. Run scrinium-server verify.",
                    loss.file,
                    loss.problem,
                    entries.unwrap_or_default()
                ),
                key: format!("loss {}", loss.number),
            })
            .await;
        core.catalogue.put(&LossRecord { told: true, ..loss })?;
    }
    Ok(())
}

fn verify_if_due(core: &Core) -> Result<Option<Report>> {
    let now = clock::unix_us();
    let last = last(core)?;
    let (time_us, full_us) = last.map_or((0, 0), |last| (last.time_us, last.full_us));
    // A new volume has nothing to verify; its first night comes.
    if time_us == 0 && core.archive.parts().0.is_empty() {
        return Ok(None);
    }
    if now.saturating_sub(time_us) < DAY_US {
        return Ok(None);
    }
    let extent = if now.saturating_sub(full_us) < 7 * DAY_US {
        Extent::New
    } else {
        Extent::All
    };
    run(core, extent, &[]).map(Some)
}

/// How often it is looked whether a verification is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(600);
