//! New streams that the server does not take: they are set aside, and every other stream goes on.
//!
//! A file, a journal or an Event Log is its own buffer: what was read of it is forgotten here, and is read again when the
//! server is asked anew. What nobody can be asked for again is lost; it is counted, and the server is told.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use scrinium_protocol::identity::{StreamId, StreamKind};
use scrinium_protocol::sl::message::NO_STREAMS;
use tracing::{error, warn};

/// What the server takes no new streams for.
#[derive(Debug, Default)]
pub(super) struct Aside {
    /// Since when, and which limit it named.
    refused: Option<(Instant, String)>,
    /// Streams that the server has.
    archived: BTreeSet<StreamId>,
    lost_entries: u64,
}

impl Aside {
    /// The server has stated what it has; after a while it is asked anew.
    pub(super) fn stated(&mut self, streams: impl Iterator<Item = StreamId>, now: Instant) {
        self.archived = streams.collect();
        let since = self.refused.as_ref().map(|(since, _)| *since);
        if since.is_some_and(|since| now.saturating_duration_since(since) >= ASK_AGAIN_AFTER) {
            self.refused = None;
        }
    }

    /// The server has this one.
    pub(super) fn acked(&mut self, stream: StreamId) {
        self.archived.insert(stream);
    }

    /// The server refused a new stream.
    pub(super) fn refuse(&mut self, limit: &str, now: Instant) {
        if self.refused.is_none() {
            warn!(
                limit,
                "the server takes no new streams of this agent; those it has go on"
            );
        }
        self.refused = Some((now, limit.to_owned()));
    }

    /// Whether a stream is not to be sent now.
    pub(super) fn has(&self, stream: StreamId) -> bool {
        self.refused.is_some() && !self.archived.contains(&stream)
    }

    /// Entries of a stream that is set aside are given up here.
    pub(super) fn give_up(&mut self, kind: StreamKind, name: &str, entries: u32) {
        if !kind.can_be_read_again() {
            if self.lost_entries == 0 {
                error!(
                    stream = name,
                    entries, "entries are lost: the server takes no new streams of this agent"
                );
            }
            self.lost_entries += u64::from(entries);
        }
    }

    /// What the server is told of it.
    pub(super) fn problem(&self) -> Option<String> {
        let (_, limit) = self.refused.as_ref()?;
        Some(format!(
            "{NO_STREAMS}{} entries are lost; {limit}",
            self.lost_entries
        ))
    }
}

/// The server is asked again after so long, with the next connection.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_streams_wait_archived_ones_go_on_and_what_is_lost_is_told() {
        let mut aside = Aside::default();
        let now = crate::clock::now();
        let (old, new) = (StreamId([1; 16]), StreamId([2; 16]));
        aside.stated([old].into_iter(), now);
        assert!(!aside.has(new) && aside.problem().is_none());
        aside.refuse("two are enough", now);
        assert!(aside.has(new) && !aside.has(old));
        aside.give_up(StreamKind::File, "/a", 5);
        assert!(aside.problem().unwrap().contains(" 0 entries"));
        aside.give_up(StreamKind::SyslogUdp, "192.0.2.1", 7);
        let problem = aside.problem().unwrap();
        assert!(
            problem.contains("two are enough") && problem.contains("7 entries"),
            "{problem}"
        );
        // The next connection soon after changes nothing, a later one asks again.
        aside.stated([old].into_iter(), now);
        assert!(aside.has(new));
        aside.stated([old].into_iter(), now + ASK_AGAIN_AFTER);
        assert!(!aside.has(new) && aside.problem().is_none());
    }
}
