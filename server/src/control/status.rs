//! What `status` says: how the server does, and what waits for what.

use std::sync::Arc;

use anyhow::Result;
use axum::Json;
use axum::extract::State;
use scrinium_segment::say;
use serde::Serialize;
use serde_json::{Value, json};

use super::Failure;
use crate::archive::disk_bytes;
use crate::archive::retention;
use crate::backup;
use crate::catalogue::records::AlarmRecord;
use crate::clock;
use crate::core::Core;
use crate::disk::Space;
use crate::present::rfc3339;
use crate::time::Said;
use crate::verification;

/// The state of the server; its names are stable.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    running: bool,
    version: &'static str,
    /// `ok`, `attention` or `failing`.
    health: &'static str,
    /// What is not as it should be, a sentence each.
    problems: Vec<String>,
    time: Said,
    intervals: Intervals,
    waits: Vec<Waiting>,
    alarms: Alarms,
    verification: Option<Verification>,
    backup: backup::Status,
    disk: Disk,
}

#[derive(Debug, Serialize)]
struct Intervals {
    count: u64,
    last: Option<String>,
    age_s: Option<u64>,
}

/// Something that cannot be undone and is not done now.
#[derive(Debug, Serialize)]
pub(crate) struct Waiting {
    /// `deletion`, `second-container` or `statistics`.
    what: &'static str,
    /// How much of it would be done now if the clock were right: entries, or days.
    pub(crate) entries: u64,
    days: u64,
    why: String,
    until: Option<String>,
    pub(crate) sentence: String,
}

#[derive(Debug, Serialize)]
struct Alarms {
    open: usize,
    kinds: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct Verification {
    last: String,
    whole: bool,
    full: Option<String>,
}

#[derive(Debug, Serialize)]
struct Disk {
    /// Bytes of logs and segments.
    archive_bytes: u64,
    free_bytes: Option<u64>,
    total_bytes: Option<u64>,
}

pub(super) async fn handle(State(core): State<Arc<Core>>) -> Result<Json<Status>, Failure> {
    let status = tokio::task::spawn_blocking(move || status(&core)).await??;
    Ok(Json(status))
}

/// The table of duties and parts.
pub(super) async fn handle_duties(State(core): State<Arc<Core>>) -> Json<Value> {
    let (duties, parts) = core.duties.list();
    Json(json!({
        "running": true, "duties": duties, "parts": parts, "panics": say::panics().0, "messages_lost": say::lost(),
    }))
}

fn status(core: &Core) -> Result<Status> {
    let time = core.time.said();
    let now_us = clock::unix_us();
    let (count, last_us) = core.evidence.sealed();
    let age_s = (count > 0).then(|| now_us.saturating_sub(last_us) / 1_000_000);
    let verified = verification::last(core)?;
    let disk = disk(core);
    let open = core.alarms.list().into_iter();
    let open: Vec<_> = open.filter(AlarmRecord::is_standing).collect();
    let mut kinds: Vec<_> = open.iter().map(|alarm| alarm.kind.name()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let backup = backup::status(core)?;
    let mut failing = Vec::new();
    let mut attention = Vec::new();
    if age_s.is_some_and(|age_s| age_s > INTERVAL_AGE_S_MAX) {
        failing.push(
            "the last interval is old: what came since is archived and not yet proven".to_owned(),
        );
    }
    if verified.as_ref().is_some_and(|verified| !verified.whole) {
        failing.push("the last verification found that the archive is not whole".to_owned());
    }
    for standing in core.archive.troubles().list() {
        let (since, met) = (rfc3339(standing.since_us), standing.text.to_string());
        failing.push(format!(
            "{}, since {since}: {met}",
            standing.trouble.sentence()
        ));
    }
    let (duties, _) = core.duties.list();
    let fails = duties.iter().filter(|duty| duty.state == "fails");
    attention.extend(fails.map(|duty| {
        let error = duty.error.as_deref().unwrap_or_default();
        format!("the duty '{}' fails: {error}", duty.name)
    }));
    attention.extend(time.waits.clone());
    if !open.is_empty() {
        attention.push(format!("{} alarms are open: alarm list", open.len()));
    }
    if backup.late {
        attention.push("the last backup is late".to_owned());
    }
    let health = match (failing.is_empty(), attention.is_empty()) {
        (true, true) => "ok",
        (true, false) => "attention",
        (false, _) => "failing",
    };
    failing.extend(attention);
    Ok(Status {
        running: true,
        version: env!("CARGO_PKG_VERSION"),
        health,
        problems: failing,
        time,
        intervals: Intervals {
            count,
            last: (count > 0).then(|| rfc3339(last_us)),
            age_s,
        },
        waits: waiting(core),
        alarms: Alarms {
            open: open.len(),
            kinds,
        },
        verification: verified.map(|verified| Verification {
            last: rfc3339(verified.time_us),
            whole: verified.whole,
            full: (verified.full_us > 0).then(|| rfc3339(verified.full_us)),
        }),
        backup,
        disk,
    })
}

/// What waits for the time, and how much of it there would be.
pub(crate) fn waiting(core: &Core) -> Vec<Waiting> {
    let Some(waits) = core.time.waits() else {
        return Vec::new();
    };
    let (today, spans) = (core.time.latest_day(), core.time.spans());
    let due = retention::due(&core.archive, &core.policy, &spans, today);
    let entries = due.iter().map(retention::Due::entries).sum();
    let enclosed: Vec<_> = core.archive.keys().containers().into_iter().collect();
    let groups = core.archive.keys().groups().into_iter();
    let to_enclose = groups.filter(|group| {
        let received = spans.counted_from(group.day);
        let is_due = core.policy.officer_of(group, received, today).is_some();
        is_due && !enclosed.iter().any(|(sealed, _)| sealed == group)
    });
    let to_enclose = to_enclose.count() as u64;
    let until = waits.until_us.map(rfc3339);
    let waiting = |what, entries, days, does: String| Waiting {
        what,
        entries,
        days,
        why: waits.why.clone(),
        until: until.clone(),
        sentence: format!("{does}: {}", waits.why),
    };
    let deletion = if entries > 0 {
        format!("deletion of {} entries waits", thousands(entries))
    } else {
        "deletion waits".to_owned()
    };
    let mut all = vec![waiting("deletion", entries, due.len() as u64, deletion)];
    if to_enclose > 0 {
        let does = format!("putting {to_enclose} days under the officer's key waits");
        all.push(waiting("second-container", 0, to_enclose, does));
    }
    all
}

fn disk(core: &Core) -> Disk {
    let archive = &core.archive;
    let space = Space::of(core.data_dir()).ok();
    Disk {
        archive_bytes: disk_bytes(&archive.log_dir()) + disk_bytes(&archive.archive_dir()),
        free_bytes: space.map(|space| space.free_bytes),
        total_bytes: space.map(|space| space.total_bytes),
    }
}

/// A number with its thousands apart.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Intervals come every five minutes or sooner.
const INTERVAL_AGE_S_MAX: u64 = 900;
