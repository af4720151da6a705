//! Verifications: by hand, of a range, of what is new; and one by itself every night.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use scrinium_protocol::kdf::sha256;
use scrinium_segment::{Kind, segment_name};
use tracing::error;

use crate::alarms::{AlarmKind, Raise};
use crate::archive::EVER;
use crate::archive::verify::{self, Report, Scope};
use crate::catalogue::records::{LossRecord, VerificationRecord};
use crate::clock::{self, DAY_US};
use crate::core::{Core, OWN_NAME};
use crate::duties::keep::{Duty, Plan};
use crate::evidence::{self, Expected};
use crate::said::said;

/// What is verified.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Extent {
    /// Every byte.
    All,
    /// What was sealed since the last time; of the rest that it is there and follows.
    New,
    /// The same, and so much of the rest that every byte is read again within so many days.
    Night(u32),
    /// What was collected in a range, Unix µs, both ends included.
    Range(u64, u64),
}

/// Verifies, and remembers what it found when it was not a range.
pub(crate) fn run(core: &Core, extent: Extent, checkpoints: &[String]) -> Result<Report> {
    let before = last(core)?;
    let (segments, _) = core.archive.parts();
    let now = clock::unix_us();
    let known = |number| before.as_ref().and_then(|before| before.read_us(number));
    let scope = match extent {
        Extent::All => Scope::all(),
        Extent::New | Extent::Night(_) => {
            let mut verified: BTreeMap<u64, u64> = segments
                .iter()
                .filter_map(|segment| Some((segment.number, known(segment.number)?)))
                .collect();
            if let Extent::Night(days) = extent {
                let lens = segments.iter().map(|segment| (segment.number, segment.len));
                for number in turns(&verified, &lens.collect(), days, now) {
                    verified.remove(&number);
                }
            }
            Scope {
                verified: verified.into_keys().collect(),
                times_us: EVER,
            }
        }
        Extent::Range(from_us, to_us) => Scope {
            verified: BTreeSet::new(),
            times_us: (from_us, to_us),
        },
    };
    let again = scope.verified.clone();
    let key = core.signing.verifying_key();
    let expected = Expected {
        signed: core.archive.acked().signed(),
        stamps: core.catalogue.load()?,
        chains: core.catalogue.load()?,
    };
    let mut claims = evidence::check(&core.volume, &key, checkpoints, &expected);
    if let Some(number) = claims.next_key
        && core.evidence.last_key().is_none_or(|last| last < number)
    {
        let problem = format!(
            "the key of interval {number} is gone: it was lost, or another chain of keys is to follow"
        );
        claims
            .problems
            .push(("evidence/interval.key".into(), problem));
    }
    claims.losses = core.catalogue.load()?;
    claims.unmet = core.catalogue.load()?;
    if let Err(error) = core.catalogue.check() {
        claims
            .problems
            .push(("catalogue.db".into(), format!("{error:#}")));
    }
    let mut report = verify::verify(&core.archive, &core.signers(), claims, scope)?;
    report.notes.extend(core.remade.iter().cloned());
    if matches!(extent, Extent::Range(..)) {
        report
            .notes
            .push("only what was collected in the range was read".to_owned());
        return Ok(report);
    }
    let mut read: BTreeMap<u64, u64> = segments
        .iter()
        .map(|segment| {
            let number = segment.number;
            let kept = again.contains(&number).then(|| known(number)).flatten();
            (number, kept.unwrap_or(now))
        })
        .collect();
    // All of it since then: what is not sealed yet is read each time.
    let full_us = read.values().copied().min().unwrap_or(now);
    report.read_since_us = Some(full_us);
    // A segment in which something was found is looked at again.
    let found: BTreeSet<&str> = report
        .findings
        .iter()
        .map(|found| found.segment.as_str())
        .collect();
    read.retain(|number, _| !found.contains(segment_name(Kind::Archive, *number).as_str()));
    let digest = digest(&report)?;
    report.is_known = before.is_some_and(|before| before.digest == digest);
    core.catalogue.put(&VerificationRecord {
        time_us: now,
        whole: report.whole,
        findings: report.findings.len() as u64,
        digest,
        full_us,
        segments: read.keys().copied().collect(),
        read,
    })?;
    Ok(report)
}

/// What tells the findings of one verification from those of another; zeros where there are none.
fn digest(report: &Report) -> Result<[u8; 32]> {
    if report.whole {
        return Ok([0; 32]);
    }
    Ok(sha256(&[&serde_json::to_vec(&report.findings)?]))
}

/// The segments whose turn it is to be read again: so many bytes a night that all are within `days`, the oldest first,
/// and whatever would be too old the next night.
fn turns(read: &BTreeMap<u64, u64>, lens: &BTreeMap<u64, u64>, days: u32, now: u64) -> Vec<u64> {
    let total: u64 = read.keys().filter_map(|number| lens.get(number)).sum();
    let share = total.div_ceil(u64::from(days.max(1)));
    let oldest_us = now.saturating_sub(u64::from(days.saturating_sub(1)) * DAY_US);
    let mut order: Vec<(u64, u64)> = read.iter().map(|(number, at)| (*at, *number)).collect();
    order.sort_unstable();
    let mut taken = 0;
    let turns = order.into_iter().take_while(|(at, number)| {
        let is_due = taken < share || *at <= oldest_us;
        taken += lens.get(number).copied().unwrap_or(0);
        is_due
    });
    turns.map(|(_, number)| number).collect()
}

/// The last verification of everything, or of everything new.
pub(crate) fn last(core: &Core) -> Result<Option<VerificationRecord>> {
    Ok(core.catalogue.load()?.pop())
}

/// Verifies what is new once a day, and everything again within `archive.reread_days`, a part each night; an archive that
/// is not whole is an alarm.
pub(crate) struct Nightly {
    core: Arc<Core>,
    has_told_losses: bool,
}

impl Nightly {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            has_told_losses: false,
        }
    }
}

impl Duty for Nightly {
    async fn round(&mut self) -> Result<()> {
        if !self.has_told_losses {
            let told = tell_losses(&self.core).await;
            told.context("what is not as it was left could not be told")?;
            self.has_told_losses = true;
        }
        let core = self.core.clone();
        let verified = tokio::task::spawn_blocking(move || verify_if_due(&core)).await?;
        let (problem, verified) = match verified {
            Ok(None) => (None, Ok(())),
            // The same as in the night before: its alarm stands, or somebody has seen it.
            Ok(Some(report)) => {
                let problem = (!report.whole && !report.is_known).then(|| {
                    let first = report.findings.first();
                    let segment = first.map_or("?", |finding| finding.segment.as_str());
                    let problem = first.map_or("?", |finding| finding.problem.as_str());
                    let findings = report.findings.len();
                    said!("alarm_text.not-whole", findings, segment, problem)
                });
                (problem, Ok(()))
            }
            Err(error) => (
                Some(said!("alarm_text.not-verified", format!("{error:#}"))),
                Err(error),
            ),
        };
        if let Some(text) = problem {
            error!("{text}");
            self.core
                .alarms
                .raise(Raise {
                    kind: AlarmKind::ArchiveDamaged,
                    agent: OWN_NAME.to_owned(),
                    text,
                    key: String::new(),
                })
                .await;
        }
        verified
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
                text: said!(
                    "alarm_text.not-as-left",
                    &loss.file,
                    format!("{}{}", loss.problem, entries.unwrap_or_default())
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
    let time_us = last.map_or(0, |last| last.time_us);
    // A new volume has nothing to verify; its first night comes.
    if time_us == 0 && core.archive.parts().0.is_empty() {
        return Ok(None);
    }
    if now.saturating_sub(time_us) < DAY_US {
        return Ok(None);
    }
    run(core, Extent::Night(core.reread_days), &[]).map(Some)
}

/// How often it is looked whether a verification is due.
pub(crate) const PLAN: Plan = Plan {
    point: "duty: verification",
    every: Duration::from_secs(600),
    long: Duration::from_secs(12 * 3600),
    raises: true,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_segment_has_its_turn_within_the_days_stated_and_the_oldest_first() {
        let lens: BTreeMap<u64, u64> = (1..=20).map(|number| (number, number * 1000)).collect();
        let mut read: BTreeMap<u64, u64> = lens.keys().map(|number| (*number, DAY_US)).collect();
        for night in 2..60 {
            let now = night * DAY_US;
            let turns = turns(&read, &lens, 7, now);
            let bytes: u64 = turns.iter().map(|number| lens[number]).sum();
            assert!(bytes >= 210_000 / 7, "night {night}: {bytes}");
            for number in turns {
                read.insert(number, now);
            }
            let oldest = read.values().min().unwrap();
            assert!(now - oldest < 7 * DAY_US, "night {night}");
        }
        // A server that was away for a month reads all of it the first night.
        assert_eq!(turns(&read, &lens, 7, 100 * DAY_US).len(), 20);
        assert!(turns(&BTreeMap::new(), &lens, 7, DAY_US).is_empty());
    }
}
