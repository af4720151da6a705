//! A file whose time changes, and nothing that is compared: what may have been written to it once more is a gap entry.

use std::io;
use std::time::{Duration, Instant};

use super::FileStream;
use super::chain::Role;
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
    /// Whether the file that is read to its end is another by now, although it is as long. Of a large one that ends as it
    /// did only its beginning was written: that is said, and not all of it collected each time.
    pub(super) fn is_another(
        &mut self,
        follow: &mut Follow,
        role: Role,
        stat: Option<Stat>,
        now: Instant,
    ) -> io::Result<bool> {
        let (begins, ends) = follow.is_as_read()?;
        if ends && !begins && follow.offset > REWRITTEN_MAX {
            let is_as_long = follow.ended.map(|(len, _)| len) == stat.map(|stat| stat.len);
            if matches!(role, Role::Current) && is_as_long {
                self.say_same(BEGINS_ANEW, now);
            }
            return Ok(false);
        }
        Ok(!begins || !ends)
    }

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
        if follow.content.file().tells_when_it_is_written() {
            self.say_same(IS_SAME, now);
        }
    }

    fn say_same(&mut self, text: &str, now: Instant) {
        let is_said = |at| now.saturating_duration_since(at) < SAID_INTERVAL;
        if !self.same.said_at.is_some_and(is_said) && !self.output.position().bookmark.is_empty() {
            self.same.said_at = Some(now);
            self.output.push_gap(text);
        }
    }
}

const IS_SAME: &str = "the file's time changed, but neither its length nor how it begins and ends; should the same have been written to it once more, or something in its middle, that was not collected (said once an hour)";
const BEGINS_ANEW: &str = "the file's beginning was written over, and its length and its end are as they were; it is too large to be collected once more each time, so what was written there was not collected (said once an hour)";
/// What is longer, and ends as before, is not collected once more because its beginning was written over.
const REWRITTEN_MAX: u64 = 1 << 20;
/// A write lasts no longer than this.
const WRITTEN_WITHIN: Duration = Duration::from_secs(1);
/// Of a file that is written anew with the same again and again that is said so often: programs set times too.
const SAID_INTERVAL: Duration = Duration::from_secs(3600);
