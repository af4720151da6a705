//! Files that came and went before anybody could read them: that they were there is all that is known, and it is said in
//! the stream of their path.
//!
//! Each such path is a stream for ever, on the server too, so it is said of so many an hour; of the others there is a
//! number in the agent's own stream.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::warn;

use super::Sources;
use super::discover::stream_of;
use super::generations;
use super::watching::Made;

/// Of how many it was said, and which are still to be said.
#[derive(Debug, Default)]
pub(super) struct Vanished {
    since: Option<Instant>,
    said: usize,
    further: usize,
    waiting: Vec<PathBuf>,
}

impl Vanished {
    /// Whether one more is said in its own stream.
    pub(super) fn is_said(&mut self, path: &Path, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= HOUR {
            if self.further > 0 {
                warn!(
                    further = self.further,
                    "further files came and went in an hour before they could be read"
                );
            }
            (self.since, self.said, self.further) = (Some(now), 0, 0);
        }
        if self.said < SAID_MAX {
            self.said += 1;
            return true;
        }
        if self.further == 0 {
            warn!(path = %path.display(), said = SAID_MAX, "files come and go before they can be read: of so many it was said in their streams, further ones are counted");
        }
        self.further += 1;
        false
    }
}

impl Sources {
    /// Something was made at a path, and there is nothing now.
    pub(super) fn note_vanished(&mut self, path: &Path, made: &Made, now: Instant) {
        // What another stream reads is no business of this one, whatever its name is for a while.
        let is_others = |path: &Path| {
            self.streams.contains_key(path)
                || self.resting.contains(path)
                || generations::bases_of(path).any(|base| self.discovery.wants(&base))
        };
        let is_wanted = |path: &Path| is_others(path) || self.discovery.wants(path);
        let was_wanted = made.from.as_deref().is_some_and(is_wanted);
        // savelog -t makes `app.log.new`, and renames it to `app.log`: what came there is read there.
        let are_moved = made.left >= made.times && made.to.as_deref().is_some_and(is_wanted);
        if !self.discovery.wants(path) || was_wanted || are_moved || is_others(path) {
            return;
        }
        if self.context.vanished.is_said(path, now) {
            self.context.vanished.waiting.push(path.to_owned());
        }
    }

    /// Says it, as far as there is room.
    pub(super) fn say_vanished(&mut self) {
        while self.context.has_room()
            && let Some(path) = self.context.vanished.waiting.pop()
        {
            // It may be there again, and have a stream.
            if self.streams.contains_key(&path) || self.resting.contains(&path) {
                continue;
            }
            let mut output = self.positions.open(stream_of(&path));
            output.push_gap(GONE);
            let bookmark = output.position().bookmark.clone();
            output.seal(bookmark, &mut self.context);
            self.positions.close(&output, None);
        }
    }
}

pub(super) const GONE: &str = "a file was made here and was gone before it was opened; what it held, if anything, was not collected unless it is found under another name";

/// Files of which it is said in streams of their own in an hour.
const SAID_MAX: usize = 100;
const HOUR: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_hundred_files_an_hour_it_is_said_that_they_were_there() {
        let mut vanished = Vanished::default();
        let start = crate::clock::now();
        let path = Path::new("/a");
        let mut said = |hours, count: usize| {
            let now = start + HOUR * hours;
            let said = (0..count).filter(|_| vanished.is_said(path, now));
            said.count()
        };
        assert_eq!(said(0, 60), 60);
        assert_eq!(said(0, 1000), 40);
        assert_eq!(said(1, 1000), SAID_MAX);
        assert_eq!(vanished.further, 900);
    }
}
