//! What plain syslog sent while the server was not there is nowhere: the time between is a gap entry of its sources.
//!
//! Senders of datagrams ask for no answer, and those of connections keep what they cannot send, or do not: nobody knows. Agents
//! keep it, and say nothing here.

use std::cmp::Reverse;

use scrinium_protocol::entry::EntryFlags;
use scrinium_protocol::identity::StreamKind;
use scrinium_syslog::senders::is_sender;
use tracing::info;

use crate::catalogue::records::{RunRecord, StreamRecord};
use crate::clock;
use crate::core::Core;
use crate::local::{LocalEntry, LocalQueue};
use crate::present::rfc3339;

/// Writes the gap since `last` ended into the streams that spoke in the day before, when the server is there again.
pub(crate) async fn tell(core: &Core, local: &LocalQueue, last: Option<&RunRecord>) {
    let Some(last) = last else {
        return;
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
    let to_us = clock::unix_us();
    let sources = sources(core, from_us);
    let named = sources.len().min(SOURCES_MAX);
    let span = format!("from {} ({how}) to {}", rfc3339(from_us), rfc3339(to_us));
    for stream in sources.iter().take(SOURCES_MAX) {
        let text = format!(
            "gap: the server was not there {span}; what this source sent meanwhile is not here, unless it keeps it and sends it again\n"
        );
        put(local, stream.kind, &stream.name, to_us, text).await;
    }
    if let Some(more) = sources
        .len()
        .checked_sub(SOURCES_MAX)
        .filter(|&more| more > 0)
    {
        let text = format!(
            "gap: the server was not there {span}; what {more} more sources of syslog sent meanwhile is not here either\n"
        );
        put(local, StreamKind::SyslogUdp, ALL_SOURCES, to_us, text).await;
    }
    if named > 0 {
        info!(
            sources = sources.len(),
            "the time without the server is a gap entry of its sources of syslog"
        );
    }
}

/// The senders of syslog that were heard in the day before, the last first.
fn sources(core: &Core, before_us: u64) -> Vec<StreamRecord> {
    let since_us = before_us.saturating_sub(clock::DAY_US);
    let mut sources = core.archive.streams_of(core.own_agent);
    sources.retain(|stream| is_sender(stream.kind, &stream.name) && stream.last_us >= since_us);
    sources.sort_by_key(|stream| (Reverse(stream.last_us), stream.id));
    sources
}

async fn put(local: &LocalQueue, kind: StreamKind, name: &str, time_us: u64, text: String) {
    let entry = LocalEntry {
        kind,
        name: name.to_owned(),
        connection: 0,
        time_us,
        flags: EntryFlags::GAP,
        bytes: text.into_bytes(),
        durable: None,
        room: None,
    };
    // It fails when the server stops again.
    let _stops = local.send(entry).await;
}

/// Sources that get an entry of their own at a start: a second of work.
const SOURCES_MAX: usize = 1000;
/// The stream that has the others'.
const ALL_SOURCES: &str = "all sources";
