//! What plain syslog sent while the server was not there is nowhere: the time between is a gap entry of its sources.
//!
//! Senders of datagrams ask for no answer, and those of connections keep what they cannot send, or do not: nobody knows. Agents
//! keep it, and say nothing here.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use scrinium_protocol::entry::EntryFlags;
use scrinium_protocol::identity::StreamKind;
use scrinium_syslog::senders::is_sender;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::catalogue::records::{AbsenceRecord, RunRecord, StreamRecord};
use crate::clock;
use crate::core::Core;
use crate::local::{LocalEntry, LocalQueue};
use crate::present::rfc3339;

/// The times without the server of which the sources were not told: the one until `now_us`, and what the last start did not come
/// to.
pub(crate) fn untold(core: &Core, last: Option<&RunRecord>, now_us: u64) -> Vec<AbsenceRecord> {
    let Some(last) = last else {
        return Vec::new();
    };
    let (from_us, how) = match &last.ended {
        Some((time_us, by)) => (*time_us, format!("it was stopped by {by}")),
        // What came after the last durable entry was not written.
        None => {
            let (_, interval_us) = core.evidence.sealed();
            let known_us = core.archive.totals().last_us.max(interval_us);
            let how = "it ended without being stopped; this is when it was last known to run";
            (known_us.max(last.started_us), how.to_owned())
        }
    };
    let mut absences = last.absences.clone();
    absences.push(AbsenceRecord {
        from_us,
        to_us: now_us,
        how,
    });
    bound(&mut absences);
    absences
}

/// Of very many, the first two are one.
fn bound(absences: &mut Vec<AbsenceRecord>) {
    while absences.len() > UNTOLD_MAX {
        let first = absences.remove(0);
        if let Some(second) = absences.first_mut() {
            let how = first.how.strip_suffix(BETWEEN).unwrap_or(&first.how);
            second.how = format!("{how}{BETWEEN}");
            second.from_us = first.from_us;
        }
    }
}

/// Writes the gaps into the streams that spoke in the day before, when the server is there again. They are told when all of them
/// are durable; a start that does not come to that leaves them to the next, which may then write some twice.
pub(crate) async fn tell(core: &Arc<Core>, local: &LocalQueue, absences: Vec<AbsenceRecord>) {
    if absences.is_empty() {
        return;
    }
    let queued = async {
        let mut waiting = Vec::new();
        for absence in &absences {
            waiting.extend(queue(core, local, absence).await?);
        }
        Some(waiting)
    };
    // An archive that takes nothing holds up no start.
    let Ok(Some(waiting)) = tokio::time::timeout(PATIENCE, queued).await else {
        warn!(
            "the time without the server is no gap entry of its sources of syslog yet; the next start writes it"
        );
        return;
    };
    let of = Arc::downgrade(core);
    // It ends with the writer, which it waits for.
    tokio::spawn(async move {
        for durable in waiting {
            if durable.await.is_err() {
                return;
            }
        }
        if let Some(core) = of.upgrade()
            && let Err(error) = note_told(&core)
        {
            let error = format!("{error:#}");
            warn!(
                error,
                "the next start writes gap entries of its sources of syslog again"
            );
        }
    });
}

fn note_told(core: &Core) -> Result<()> {
    let run = core.catalogue.load::<RunRecord>()?.pop();
    let mut run = run.context("the start was not noted")?;
    run.absences.clear();
    core.catalogue.put(&run)
}

/// Queues the entries of one. None when the server stops again.
async fn queue(
    core: &Core,
    local: &LocalQueue,
    absence: &AbsenceRecord,
) -> Option<Vec<oneshot::Receiver<()>>> {
    let AbsenceRecord {
        from_us,
        to_us,
        how,
    } = absence;
    let (sources, mut waiting) = (sources(core, *from_us), Vec::new());
    let named = sources.len().min(SOURCES_MAX);
    let span = format!("from {} ({how}) to {}", rfc3339(*from_us), rfc3339(*to_us));
    for stream in sources.iter().take(SOURCES_MAX) {
        let text = format!(
            "gap: the server was not there {span}; what this source sent meanwhile is not here, unless it keeps it and sends it again\n"
        );
        waiting.push(put(local, stream.kind, &stream.name, *to_us, text).await?);
    }
    if let Some(more) = sources
        .len()
        .checked_sub(SOURCES_MAX)
        .filter(|&more| more > 0)
    {
        let text = format!(
            "gap: the server was not there {span}; what {more} more sources of syslog sent meanwhile is not here either\n"
        );
        waiting.push(put(local, StreamKind::SyslogUdp, ALL_SOURCES, *to_us, text).await?);
    }
    if named > 0 {
        info!(
            sources = sources.len(),
            "the time without the server is a gap entry of its sources of syslog"
        );
    }
    Some(waiting)
}

/// The senders of syslog that were heard in the day before, the last first.
fn sources(core: &Core, before_us: u64) -> Vec<StreamRecord> {
    let since_us = before_us.saturating_sub(clock::DAY_US);
    let mut sources = core.archive.streams_of(core.own_agent);
    sources.retain(|stream| is_sender(stream.kind, &stream.name) && stream.last_us >= since_us);
    sources.sort_by_key(|stream| (Reverse(stream.last_us), stream.id));
    sources
}

/// Queues an entry; what is returned hears when it is durable. None when the server stops again.
async fn put(
    local: &LocalQueue,
    kind: StreamKind,
    name: &str,
    time_us: u64,
    text: String,
) -> Option<oneshot::Receiver<()>> {
    let (durable, done) = oneshot::channel();
    let entry = LocalEntry {
        kind,
        name: name.to_owned(),
        connection: 0,
        time_us,
        flags: EntryFlags::GAP,
        bytes: text.into_bytes(),
        durable: Some(durable),
        room: None,
    };
    local.send(entry).await.ok()?;
    Some(done)
}

/// Sources that get an entry of their own at a start: a second of work.
const SOURCES_MAX: usize = 1000;
/// The stream that has the others'.
const ALL_SOURCES: &str = "all sources";
/// Times without the server that wait to be told: a server that does not come up again and again.
const UNTOLD_MAX: usize = 16;
const BETWEEN: &str = "; it was there for moments in between";
/// A start does not wait longer for a disk that takes nothing.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::{new_volume, running};

    /// The start died between noting itself and telling the sources: what it did not come to is told by the next one.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_start_that_died_in_the_middle_loses_no_absence() {
        let before = AbsenceRecord {
            from_us: 1_800_000_000_000_000,
            to_us: 1_800_000_100_000_000,
            how: "it was stopped by SIGTERM".into(),
        };
        let dir = new_volume("absence", |catalogue| {
            let run = RunRecord {
                version: "1".into(),
                started_us: before.to_us,
                ended: None,
                absences: vec![before.clone()],
            };
            catalogue.put(&run).unwrap();
        });
        let running = running(&dir);
        let last = running.core.catalogue.load::<RunRecord>().unwrap().pop();
        let untold = untold(&running.core, last.as_ref(), before.to_us + 7);
        assert_eq!(untold.len(), 2);
        assert_eq!(untold[0], before);
        assert_eq!(untold[1].from_us, before.to_us);
        tell(&running.core, &running.local, untold).await;
        let core = running.core.clone();
        let is_told = || {
            let run = core.catalogue.load::<RunRecord>().unwrap().pop();
            run.unwrap().absences.is_empty()
        };
        while !is_told() {
            tokio::task::yield_now().await;
        }
        drop(core);
        running.close().await;
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn very_many_absences_are_few_and_none_is_left_out() {
        let mut absences = Vec::new();
        for n in 0..40 {
            absences.push(AbsenceRecord {
                from_us: n * 10,
                to_us: n * 10 + 1,
                how: "it fell".into(),
            });
            bound(&mut absences);
        }
        assert_eq!(absences.len(), UNTOLD_MAX);
        assert_eq!((absences[0].from_us, absences[15].to_us), (0, 391));
        assert_eq!(absences[0].how, format!("it fell{BETWEEN}"));
    }
}
