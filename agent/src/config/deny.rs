//! What the administrator of this machine forbids, for every kind of source: files, journals, sockets.
//!
//! A path is forbidden by each of its names: as it is written, by every link on its way, where it really is, and as
//! what it was before rotation renamed it. A pattern forbids what it says, and where that leads.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

#[cfg(unix)]
use walkdir::WalkDir;

use super::Pattern;
use super::pattern::{is_path, split_fixed};
use crate::clock;
use crate::source::generations::names_before;

/// Paths that nothing may collect, whatever a configuration says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deny(Arc<Denied>);

#[derive(Debug, Default)]
struct Denied {
    patterns: Vec<Pattern>,
    elsewhere: Mutex<Elsewhere>,
}

/// Where the directories that patterns name really are, if somewhere else: what is there has another name, too.
#[derive(Debug, Default)]
struct Elsewhere {
    looked_at: Option<Instant>,
    patterns: Arc<[Pattern]>,
}

impl PartialEq for Deny {
    fn eq(&self, other: &Self) -> bool {
        self.texts().eq(other.texts())
    }
}

impl Deny {
    pub(super) fn new(patterns: Vec<Pattern>) -> Self {
        Self(Arc::new(Denied {
            patterns,
            elsewhere: Mutex::default(),
        }))
    }

    /// What either forbids.
    pub(super) fn and(&self, other: &Self) -> Self {
        let patterns = self.0.patterns.iter().chain(&other.0.patterns);
        Self::new(patterns.cloned().collect())
    }

    /// The patterns as they were written.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.0.patterns.iter().map(|pattern| &*pattern.text)
    }

    /// Whether it forbids the path by one of its names.
    pub(crate) fn forbids(&self, path: &Path) -> bool {
        if self.0.patterns.is_empty() {
            return false;
        }
        let elsewhere = self.elsewhere();
        let matches = |name: &Path| {
            let mut patterns = self.0.patterns.iter().chain(&*elsewhere);
            patterns.any(|pattern| pattern.is_match(name))
        };
        ways_to(path)
            .iter()
            .any(|way| matches(way) || names_before(way).any(|name| matches(&name)))
    }

    /// The patterns as they are where their directories lead now.
    fn elsewhere(&self) -> Arc<[Pattern]> {
        let elsewhere = self.0.elsewhere.lock();
        let mut elsewhere = elsewhere.unwrap_or_else(PoisonError::into_inner);
        let now = clock::now();
        let is_fresh = |at: Instant| now.saturating_duration_since(at) < LOOK_INTERVAL;
        if !elsewhere.looked_at.is_some_and(is_fresh) {
            let patterns = self.0.patterns.iter();
            elsewhere.patterns = patterns.filter_map(|one| led(&one.text)).collect();
            elsewhere.looked_at = Some(now);
        }
        elsewhere.patterns.clone()
    }

    /// What it forbids of a journal in `directory`, or of this machine's own one: the directory, a journal that
    /// is or could be in it. `journalctl` reads all of a directory, so one file forbids the whole.
    #[cfg(unix)]
    pub(crate) fn forbids_journal(&self, directory: Option<&Path>) -> Option<PathBuf> {
        if self.0.patterns.is_empty() {
            return None;
        }
        match directory {
            Some(directory) => self.forbids_in(directory),
            None => OWN_JOURNALS
                .iter()
                .find_map(|own| self.forbids_in(Path::new(own))),
        }
    }

    #[cfg(unix)]
    fn forbids_in(&self, directory: &Path) -> Option<PathBuf> {
        let real = std::fs::canonicalize(directory).ok();
        for base in [Some(directory), real.as_deref()].into_iter().flatten() {
            for place in ["", "system.journal", "machine/system.journal"] {
                let possible = base.join(place);
                if self.forbids(&possible) {
                    return Some(possible);
                }
            }
        }
        let walk = WalkDir::new(directory).follow_links(true).max_depth(2);
        for (count, entry) in walk.into_iter().flatten().enumerate() {
            // Too many to look at each: nobody can say that none is forbidden.
            if count >= JOURNAL_FILES_MAX || self.forbids(entry.path()) {
                return Some(entry.into_path());
            }
        }
        None
    }
}

/// What a pattern says of where its fixed part really is; none when it is there, or is no text.
fn led(text: &str) -> Option<Pattern> {
    let (fixed, rest) = split_fixed(text);
    let (real, rest) = match is_path(text) {
        true => (real_of(Path::new(text))?, ""),
        false => (std::fs::canonicalize(fixed).ok()?, rest),
    };
    let real = globset::escape(real.to_str()?);
    // Of the root nothing is left, so that the rest still begins with a separator.
    let led = format!("{}{rest}", real.trim_end_matches('/'));
    if led == text {
        return None;
    }
    Pattern::new("deny", &led).ok()
}

/// The path, what each link on its way makes of it, and where it really is.
#[cfg(unix)]
fn ways_to(path: &Path) -> Vec<PathBuf> {
    // Without a separator at its end, which no pattern has.
    let mut way: PathBuf = path.components().collect();
    let mut ways = vec![way.clone()];
    while ways.len() <= LINKS_MAX
        && let Some(next) = follow_one(&way)
    {
        ways.push(next.clone());
        way = next;
    }
    ways
}

/// The path with the first link on its way followed.
#[cfg(unix)]
fn follow_one(path: &Path) -> Option<PathBuf> {
    use std::path::Component;
    let mut at = PathBuf::new();
    let mut parts = path.components();
    while let Some(part) = parts.next() {
        match part {
            Component::ParentDir => {
                at.pop(); // no link is before it
                continue;
            }
            Component::CurDir => continue,
            part @ (Component::Prefix(_) | Component::RootDir | Component::Normal(_)) => {
                at.push(part);
            }
        }
        // A target that begins at the root replaces what was before it.
        if let Ok(target) = std::fs::read_link(&at) {
            at.pop();
            return Some(at.join(target).join(parts.as_path()).components().collect());
        }
    }
    (at != path).then_some(at)
}

#[cfg(not(unix))]
fn ways_to(path: &Path) -> Vec<PathBuf> {
    [Some(path.to_owned()), real_of(path)]
        .into_iter()
        .flatten()
        .collect()
}

/// Where a path leads; one that is not there yet, by where its directory leads.
pub(super) fn real_of(path: &Path) -> Option<PathBuf> {
    let real = std::fs::canonicalize(path);
    real.ok().or_else(|| {
        let directory = std::fs::canonicalize(path.parent()?).ok()?;
        Some(directory.join(path.file_name()?))
    })
}

/// How long it is believed where the directories of patterns lead, besides the links on the way of what is asked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// As many links as the system follows (path_resolution(7)).
#[cfg(unix)]
const LINKS_MAX: usize = 40;
/// Where journald keeps what `journalctl` reads without a directory (systemd-journald.service(8)).
#[cfg(unix)]
const OWN_JOURNALS: [&str; 2] = ["/var/log/journal", "/run/log/journal"];
/// Journal files of one directory that are looked at.
#[cfg(unix)]
const JOURNAL_FILES_MAX: usize = 10_000;

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_forbidden_by_its_directory_its_files_and_where_they_lead() {
        let deny = |texts: &[&str]| {
            let patterns = texts.iter().map(|text| Pattern::new("deny", text).unwrap());
            Deny::new(patterns.collect())
        };
        let dir = std::env::temp_dir().join(format!("scrinium-deny-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        let (journal, linked) = (dir.join("journal"), dir.join("linked"));
        std::fs::create_dir_all(journal.join("machine")).unwrap();
        std::fs::File::create(journal.join("machine/user-1000.journal")).unwrap();
        std::os::unix::fs::symlink(&journal, &linked).unwrap();
        let at = |end: &str| format!("{}{end}", dir.display());
        for (pattern, forbids) in [
            (at("/journal"), true),
            (at("/journal/**"), true),
            (at("/journal/*/system.journal"), true),
            (at("/journal/*/user-1000.journal"), true),
            (at("/journal/*/user-1001.journal"), false),
            (at("/journals/**"), false),
        ] {
            let deny = deny(&[&pattern]);
            for directory in [&journal, &linked] {
                let found = deny.forbids_journal(Some(directory));
                assert_eq!(found.is_some(), forbids, "{pattern} {found:?}");
            }
        }
        assert!(
            deny(&["/var/log/journal/**"])
                .forbids_journal(None)
                .is_some()
        );
        assert!(deny(&["/var/log/*.log"]).forbids_journal(None).is_none());
        // A socket that is not there yet, in a directory that leads elsewhere.
        assert!(deny(&[&at("/journal/*.sock")]).forbids(&linked.join("x.sock")));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_denied_file_is_denied_by_each_of_its_names_and_with_its_generations() {
        let dir = std::env::temp_dir().join(format!("scrinium-names-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(dir.join("real/deep")).unwrap();
        let dir = std::fs::canonicalize(dir).unwrap();
        let link = |to: &str, at: &str| {
            std::os::unix::fs::symlink(to, dir.join(at)).unwrap();
        };
        std::fs::File::create(dir.join("real/secret.log")).unwrap();
        link("real", "linked");
        link("real/secret.log", "other.log");
        link("other.log", "chain.log");
        link("../real/deep/..", "real/way");
        link("loop", "loop");
        let at = |end: &str| format!("{}/{end}", dir.display());
        let deny = |text: &str| Deny::new(vec![Pattern::new("deny", &at(text)).unwrap()]);
        for (pattern, path, forbids) in [
            // The file itself, by links.
            ("real/secret.log", "chain.log", true),
            ("real/secret.log", "linked/secret.log", true),
            ("real/secret.log", "real/way/secret.log", true),
            // A link, by its own name, by one that leads through it, and by where it leads.
            ("other.log", "chain.log", true),
            ("other.log", "real/secret.log", true),
            ("linked/**", "real/secret.log", true),
            ("linked/*.log", "real/deep/secret.log", false),
            ("linked/**", "other.log", true),
            ("real/plain.log", "other.log", false),
            // What it was before it was renamed.
            ("real/secret.log", "real/secret.log.1", true),
            ("real/secret.log", "real/secret.log.2.gz", true),
            ("real/secret.log", "real/secret.log-20261128.zst", true),
            ("real/secret.log", "real/secret.log.gz", true),
            ("real/secret.log", "linked/secret.1.log", true),
            ("real/secret.log", "real/secrets.log.1", false),
            // Generations may be denied alone.
            ("real/*.1", "real/secret.log", false),
            ("real/*.1", "real/secret.log.1", true),
            ("elsewhere", "loop", false),
        ] {
            let found = deny(pattern).forbids(&dir.join(path));
            assert_eq!(found, forbids, "{pattern} {path}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
