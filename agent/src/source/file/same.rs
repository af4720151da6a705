//! A file whose time changes, and nothing that is compared: what may have been written to it once more is a gap entry.

use std::time::{Duration, Instant};

use super::FileStream;
use crate::source::disk::Stat;
use crate::source::follow::Follow;

/// What is known of that.
#[derive(Debug, Default)]
pub(super) struct Same {
    /// When a changed time was seen first, and the file as long as it is.
    since: Option<Instant>,
    /// When it was said last.
    said_at: Option<Instant>,
}

impl Same {
    /// There is more to be read: that is what changed the time.
    pub(super) const fn is_longer(&mut self) {
        self.since = None;
    }
}

impl FileStream {
    /// The end of a file was reached that is read up to there: it may be another than the one that was read, which is
    /// as long and begins and ends in the same way.
    pub(super) fn see_same(&mut self, follow: &Follow, stat: Option<Stat>, now: Instant) {
        let ended = stat.map(|stat| (stat.len, stat.modified));
        if follow.ended != ended {
            let is_as_long = follow.ended.map(|(len, _)| len) == stat.map(|stat| stat.len);
            self.same.since = is_as_long.then(|| self.same.since.unwrap_or(now));
        }
        let Some(since) = self.same.since else { return };
        // What is being written has its new time before it is longer.
        if now.saturating_duration_since(since) < WRITTEN_WITHIN {
            return;
        }
        self.same.since = None;
        let is_said = |at| now.saturating_duration_since(at) < SAID_INTERVAL;
        if self.same.said_at.is_some_and(is_said)
            || self.output.position().bookmark.is_empty()
            || !follow.content.file().tells_when_it_is_written()
        {
            return;
        }
        self.same.said_at = Some(now);
        self.output.push_gap(
            "the file's time changed, but neither its length nor how it begins and ends; should the same have been written to it once more, or something in its middle, that was not collected (said once an hour)",
        );
    }
}

/// A write lasts no longer than this.
const WRITTEN_WITHIN: Duration = Duration::from_secs(1);
/// Of a file that is written anew with the same again and again that is said so often: programs set times too.
const SAID_INTERVAL: Duration = Duration::from_secs(3600);
