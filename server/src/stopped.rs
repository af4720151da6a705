//! Acts on a stopped volume, and start and stop of the server: what the audit trail could not take when it happened.
//!
//! ```text
//! recover, restore, fsck --rebuild ─▶ acts.pending, sealed ─▶ trail, before anything else of the next start
//! start, stop ─────────────────────────────────────────────▶ trail
//! ```
//!
//! Invariants:
//! 1. An act on a stopped volume is durable in `acts.pending` before it is done; one that cannot be is refused.
//! 2. It is in the trail once. Before it is sent, the file notes where the trail stands; after a crash the next start
//!    looks behind that for it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use data_encoding::HEXLOWER;
use scrinium_protocol::identity::StreamKind;
use scrinium_protocol::secret::Secret;
use scrinium_segment::{durable, fault, random};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{error, warn};

use crate::absence;
use crate::archive::container::Access;
use crate::audit::{AUDIT, Actor, LateAct};
use crate::backup::copy;
use crate::catalogue::records::{LateActRecord, RunRecord};
use crate::catalogue::{Row, Stored as _};
use crate::clock;
use crate::control::caller;
use crate::core::Core;
use crate::local::LocalQueue;
use crate::present::rfc3339;
use crate::volume::Volume;
use crate::volume::refusals;
use crate::volume::rest::{self, ACTS_FILE};

/// Writes down what this command does to a stopped volume; durable when this returns.
pub(crate) fn note(volume: &Volume, action: &str, detail: Value) -> Result<()> {
    note_as(volume, &caller::local(), action, detail)?;
    // At this point it is durable; if we die now, nobody misses it when it goes.
    rest::add(volume, ACTS_FILE)
}

fn note_as(volume: &Volume, actor: &Actor, action: &str, detail: Value) -> Result<()> {
    keep(volume, vec![act(actor, action, detail)?])
}

/// Adds acts to those that wait.
fn keep(volume: &Volume, more: Vec<LateActRecord>) -> Result<()> {
    let mut acts = read(volume)?;
    acts.extend(more);
    anyhow::ensure!(
        acts.len() <= ACTS_MAX,
        "{ACTS_MAX} acts wait for the audit trail; start the server, which writes them down"
    );
    write(volume, &acts)
}

fn write(volume: &Volume, acts: &[LateActRecord]) -> Result<()> {
    let (path, key) = file_of(volume);
    let rows = acts.iter().map(|act| {
        Ok(Row {
            kind: LateActRecord::KIND,
            name: act.name(),
            value: serde_json::to_vec(act)?.into(),
        })
    });
    let rows = rows.collect::<Result<Vec<Row>>>()?;
    copy::write(
        &path,
        &key,
        FILE_NUMBER,
        &Manifest { acts: rows.len() },
        &rows,
    )
    .with_context(|| format!("writing down the act in {}", path.display()))
}

/// What waits. A file that cannot be read is kept beside, and that is an act too.
fn read(volume: &Volume) -> Result<Vec<LateActRecord>> {
    let (path, key) = file_of(volume);
    if !path.try_exists()? {
        return Ok(Vec::new());
    }
    let acts = copy::read::<Manifest>(&path, &key).and_then(|(_, rows)| {
        let acts = rows.iter().map(|row| serde_json::from_slice(&row.value));
        Ok(acts.collect::<Result<_, _>>()?)
    });
    acts.or_else(|problem: anyhow::Error| {
        let (kept, problem) = (
            format!("acts.damaged-{}", clock::unix_s()),
            format!("{problem:#}"),
        );
        error!(
            problem,
            kept, "acts that wait for the audit trail cannot be read"
        );
        durable::rename(&path, &volume.dir().join(&kept))?;
        let detail = json!({ "kept_as": kept, "problem": problem });
        let action = "acts on the stopped volume cannot be read";
        let act = act(&Actor::of(SERVER), action, detail)?;
        write(volume, std::slice::from_ref(&act))?;
        Ok(vec![act])
    })
}

fn act(actor: &Actor, action: &str, detail: Value) -> Result<LateActRecord> {
    let made: [u8; 16] = random()?;
    Ok(LateActRecord {
        record: HEXLOWER.encode(&made),
        time_us: clock::unix_us(),
        actor: actor.name.clone(),
        address: actor.address.clone(),
        action: action.to_owned(),
        detail,
        sent_at: None,
    })
}

/// Writes down what waits and that the server starts; nothing else is in the trail of this run before it.
pub(crate) async fn begin(core: &Arc<Core>, local: &LocalQueue) -> Result<()> {
    publish(core).await?;
    tell_refusals(core).await;
    let last = core.catalogue.load::<RunRecord>()?.pop();
    let started_us = clock::unix_us();
    let absences = absence::untold(core, last.as_ref(), started_us);
    core.catalogue.put(&RunRecord {
        version: VERSION.to_owned(),
        started_us,
        ended: None,
        absences: absences.clone(),
    })?;
    // At this point the time without the server is durable; if we die now, the next start tells it.
    fault::point("server: start noted");
    let last_end = match &last {
        None => "not known: the first start, or the last one was of an earlier version".to_owned(),
        Some(RunRecord {
            started_us, ended, ..
        }) => match ended {
            Some((time_us, by)) => format!("in order, {by} at {}", rfc3339(*time_us)),
            None => format!(
                "NOT in order: started at {} and never stopped",
                rfc3339(*started_us)
            ),
        },
    };
    if last.as_ref().is_some_and(|last| last.ended.is_none()) {
        warn!(last_end, "the server did not end in order the last time");
    }
    let detail = json!({
        "version": VERSION, "last_version": last.as_ref().map(|last| &last.version), "last_end": last_end,
    });
    let actor = Actor::of(SERVER);
    let note = core.audit.note(&actor, "server started", detail);
    match tokio::time::timeout(PATIENCE, note).await {
        Ok(Ok(())) => {}
        // It is written when the disk takes it.
        Ok(Err(_)) | Err(_) => {
            warn!("the start is not written down yet: the archive takes nothing now")
        }
    }
    absence::tell(core, local, absences).await;
    Ok(())
}

/// Openings of the volume that were refused on another machine are in the trail too.
async fn tell_refusals(core: &Core) {
    let told = async {
        let refused = refusals::read(core.data_dir())?;
        if refused.is_empty() {
            return Ok(());
        }
        let detail = json!({ "times": refused.len(), "refusals": refused });
        let action = "openings of the volume on another machine were refused";
        let actor = Actor::of(SERVER);
        let note = core.audit.note(&actor, action, detail);
        tokio::time::timeout(PATIENCE, note).await??;
        refusals::remove(core.data_dir())
    };
    if let Err(error) = told.await {
        let error: anyhow::Error = error;
        error!(
            error = format!("{error:#}"),
            "refused openings could not be told"
        );
    }
}

/// Writes down that the server stops, and by what.
pub(crate) async fn end(core: &Core, by: &str) {
    let detail = json!({ "by": by, "version": VERSION });
    let actor = Actor {
        name: SIGNAL.to_owned(),
        address: "local".to_owned(),
        is_account: false,
    };
    let note = core.audit.note(&actor, "server stopped", detail.clone());
    if !matches!(tokio::time::timeout(PATIENCE, note).await, Ok(Ok(()))) {
        warn!("the archive takes nothing now; the stop is written down at the next start");
        if let Err(error) = note_as(&core.volume, &actor, "server stopped", detail) {
            error!(error = format!("{error:#}"), "the stop could not be kept");
        }
    }
    if let Err(error) = mark_end(core, by) {
        error!(
            error = format!("{error:#}"),
            "the next start will say that this one did not end in order"
        );
    }
}

/// Keeps what the trail did not take to the end, for the next start.
pub(crate) fn keep_unsaid(core: &Core) {
    let acts = core.unsaid.take();
    if acts.is_empty() {
        return;
    }
    let count = acts.len();
    match keep(&core.volume, acts) {
        Ok(()) => warn!(
            count,
            "what the audit trail did not take is written there at the next start"
        ),
        Err(error) => error!(
            count,
            error = format!("{error:#}"),
            "what the audit trail did not take could not be kept"
        ),
    }
}

fn mark_end(core: &Core, by: &str) -> Result<()> {
    let run = core.catalogue.load::<RunRecord>()?.pop();
    let mut run = run.context("the start was not noted")?;
    run.ended = Some((clock::unix_us(), by.to_owned()));
    core.catalogue.put(&run)
}

/// Writes what was done before into the trail.
pub(crate) async fn publish(core: &Arc<Core>) -> Result<()> {
    let mut acts = read(&core.volume)?;
    if acts.is_empty() {
        return Ok(());
    }
    while let Some(act) = acts.first_mut() {
        if let Some(at) = act.sent_at
            && is_there(core, &act.record, at).await?
        {
            acts.remove(0);
            continue;
        }
        let trail = core
            .archive
            .find_stream(core.own_agent, StreamKind::Audit, AUDIT);
        act.sent_at = Some(trail.map_or(0, |trail| trail.position.next.0));
        let act = act.clone();
        // What was published before it is no longer in the file.
        write(&core.volume, &acts)?;
        fault::point("server: act sent");
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
        let note = core.audit.note_late(&actor, late);
        if !matches!(tokio::time::timeout(PATIENCE, note).await, Ok(Ok(()))) {
            // If it is written after all, the next start finds it there.
            warn!("acts on the stopped volume wait: the archive takes nothing now");
            return Ok(());
        }
        fault::point("server: act published");
        acts.remove(0);
    }
    durable::remove(&file_of(&core.volume).0)?;
    Ok(())
}

/// Whether the trail has all of a record behind `from`.
async fn is_there(core: &Arc<Core>, record: &str, from: u64) -> Result<bool> {
    let (core, record) = (core.clone(), record.to_owned());
    let look = move || {
        let Some(trail) = core
            .archive
            .find_stream(core.own_agent, StreamKind::Audit, AUDIT)
        else {
            return false;
        };
        let access = Access::operations();
        let mut parts = 0;
        for extent in core.archive.extents_of(trail.id).unwrap_or_default() {
            if extent.sequences.1 <= from {
                continue;
            }
            // What cannot be read is written again: twice is better than never.
            for batch in core.archive.read(&extent, &access).unwrap_or_default() {
                for (_, bytes) in batch.entries.iter() {
                    let line: Value = serde_json::from_slice(bytes).unwrap_or_default();
                    if line.get("record").and_then(Value::as_str) == Some(&record) {
                        parts += 1;
                        let all = line.get("parts").and_then(Value::as_u64).unwrap_or(1);
                        if parts >= all {
                            return true;
                        }
                    }
                }
            }
        }
        false
    };
    Ok(tokio::task::spawn_blocking(look).await?)
}

fn file_of(volume: &Volume) -> (PathBuf, Secret<32>) {
    (volume.dir().join(ACTS_FILE), volume.key("acts"))
}

#[derive(Deserialize, Serialize)]
struct Manifest {
    acts: usize,
}

const SERVER: &str = "server";
const SIGNAL: &str = "signal";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Tells the file's unfinished form from those of the catalogue's copies.
const FILE_NUMBER: u64 = 2;
/// Acts that wait in the file.
const ACTS_MAX: usize = 10_000;
/// A start and a stop do not wait longer for a disk that takes nothing.
const PATIENCE: Duration = Duration::from_secs(5);
