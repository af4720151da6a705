//! Since when each source is looked for, whatever became of the agent meanwhile: a file that was made later is collected
//! with its old generations, although it was rotated before any of it was read, or the process ended before that was
//! written down.
//!
//! ```text
//! since: one line per source     µs since 1970 │ space │ its glob, as it is configured
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use scrinium_segment::durable;
use tracing::warn;

use crate::clock;

/// When sources were configured.
#[derive(Debug)]
pub(crate) struct Since {
    file: PathBuf,
    /// By their globs, µs since 1970.
    sources: BTreeMap<String, u64>,
    /// Of those that nothing is known of when the agent starts: of others, since they are configured.
    begun: Option<u64>,
    /// What the file says is something else.
    is_other: bool,
}

impl Since {
    /// Reads what was written down in a state directory. An agent that collected nothing yet and wrote nothing down looks
    /// since its directory was made.
    pub(crate) fn open(dir: &Path, is_new: bool) -> Self {
        let file = dir.join(FILE_NAME);
        let now = clock::unix_us();
        let text = std::fs::read_to_string(&file);
        let begun = text.as_ref().err().filter(|_| is_new);
        let begun = begun.and_then(|_| made_at(dir)).unwrap_or(now);
        let text = text.unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        let sources = lines.filter_map(|(time, glob)| Some((glob.to_owned(), time.parse().ok()?)));
        let mut since = Self {
            file,
            sources: sources.collect(),
            begun: Some(begun.min(now)),
            is_other: false,
        };
        since.end_at(now);
        since
    }

    /// The state directory.
    pub(super) fn dir(&self) -> &Path {
        self.file.parent().unwrap_or(&self.file)
    }

    /// Takes up the sources that are configured now, and writes down what is new of them.
    pub(super) fn configure<'a>(&mut self, globs: impl Iterator<Item = &'a str>) {
        let now = clock::unix_us();
        let begun = self.begun.take().unwrap_or(now);
        let sources: BTreeMap<String, u64> = globs
            .map(|glob| {
                let since = self.sources.get(glob).copied().unwrap_or(begun);
                (glob.to_owned(), since)
            })
            .collect();
        self.is_other |= sources != self.sources;
        self.sources = sources;
        self.end_at(now);
        if self.is_other {
            self.write();
        }
    }

    /// None begins later than this: a clock was ahead when it was written down. Were that kept, it would be since ever
    /// another moment.
    fn end_at(&mut self, now: u64) -> bool {
        let mut is_other = false;
        for time in self.sources.values_mut().filter(|time| **time > now) {
            *time = now;
            is_other = true;
        }
        self.is_other |= is_other;
        is_other
    }

    fn write(&mut self) {
        self.is_other = false;
        let lines = self.sources.iter().filter(|(glob, _)| !glob.contains('\n'));
        let text: String = lines
            .map(|(glob, time)| format!("{time} {glob}\n"))
            .collect();
        if let Err(error) = durable::write_file(&self.file, text.as_bytes()) {
            self.is_other = true;
            warn!(%error, file = %self.file.display(), "since when sources are looked for cannot be written down; after a start it is since then");
        }
    }

    /// Since when a source is looked for. A clock that is wrong now, or was, makes it no later than now.
    pub(super) fn of(&mut self, glob: &str) -> SystemTime {
        let now = clock::unix_us();
        if self.end_at(now) {
            self.write();
        }
        let since = self.sources.get(glob).copied().or(self.begun);
        SystemTime::UNIX_EPOCH + Duration::from_micros(since.unwrap_or(now))
    }
}

/// When a state directory was made, or its key was last wrapped.
fn made_at(dir: &Path) -> Option<u64> {
    let modified = std::fs::metadata(dir.join("machine.json")).and_then(|file| file.modified());
    let since = modified.ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_micros()).ok()
}

pub(crate) const FILE_NAME: &str = "since";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_looked_for_since_it_was_configured_whatever_ended_in_between() {
        let dir = std::env::temp_dir().join(format!("scrinium-since-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        durable::write_file(&dir.join("machine.json"), b"{}").unwrap();
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let made = std::fs::File::options()
            .write(true)
            .open(dir.join("machine.json"));
        made.unwrap().set_modified(at(1_000_000_000)).unwrap();
        // Nothing was collected yet: since it was enrolled. One of version 0.1.0, since now.
        let mut since = Since::open(&dir, true);
        assert_eq!(since.of("/a/*.log"), at(1_000_000_000));
        assert!(Since::open(&dir, false).of("/a/*.log") > at(1_700_000_000));
        since.configure(["/a/*.log", "/b c.log"].into_iter());
        // One that is configured later, since then and not since the one before; and one that is no more.
        let before = clock::unix_us();
        since.configure(["/a/*.log", "/d.log"].into_iter());
        let later = since.of("/d.log");
        assert!(later >= SystemTime::UNIX_EPOCH + Duration::from_micros(before));
        for is_new in [true, false] {
            let mut again = Since::open(&dir, is_new);
            assert_eq!(again.of("/a/*.log"), at(1_000_000_000));
            assert_eq!(again.of("/d.log"), later);
            assert!(again.of("/b c.log") > at(1_700_000_000));
        }
        // Written by a clock that was ahead, and damaged.
        let text = "99999999999999999 /a/*.log\nx /d.log\n\n";
        durable::write_file(&dir.join(FILE_NAME), text.as_bytes()).unwrap();
        let mut ahead = Since::open(&dir, false);
        ahead.configure(["/a/*.log", "/d.log"].into_iter());
        let begun = ahead.of("/a/*.log");
        assert!(begun <= SystemTime::UNIX_EPOCH + Duration::from_micros(clock::unix_us()));
        assert!(ahead.of("/d.log") > at(1_700_000_000));
        // It stays that moment, after a start too.
        let before = clock::unix_us();
        while clock::unix_us() == before {}
        assert_eq!(ahead.of("/a/*.log"), begun);
        assert_eq!(Since::open(&dir, false).of("/a/*.log"), begun);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
