//! What the administrator of this machine forbids, for every kind of source: files, journals, sockets.

use std::path::{Path, PathBuf};
use std::sync::Arc;

#[cfg(unix)]
use walkdir::WalkDir;

use super::Pattern;

/// Paths that nothing may collect, whatever a configuration says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deny(Arc<[Pattern]>);

impl Deny {
    pub(super) fn new(patterns: Vec<Pattern>) -> Self {
        Self(patterns.into())
    }

    /// What either forbids.
    pub(super) fn and(&self, other: &Self) -> Self {
        Self(self.0.iter().chain(&*other.0).cloned().collect())
    }

    /// Whether it forbids the path, or what the path leads to.
    pub(crate) fn forbids(&self, path: &Path) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let real = real_of(path);
        self.0.iter().any(|pattern| {
            pattern.matcher.is_match(path)
                || real
                    .as_ref()
                    .is_some_and(|real| pattern.matcher.is_match(real))
        })
    }

    /// What it forbids of a journal in `directory`, or of this machine's own one: the directory, a journal that
    /// is or could be in it. `journalctl` reads all of a directory, so one file forbids the whole.
    #[cfg(unix)]
    pub(crate) fn forbids_journal(&self, directory: Option<&Path>) -> Option<PathBuf> {
        if self.0.is_empty() {
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

/// Where a path leads; one that is not there yet, by where its directory leads.
pub(super) fn real_of(path: &Path) -> Option<PathBuf> {
    let real = std::fs::canonicalize(path);
    real.ok().or_else(|| {
        let directory = std::fs::canonicalize(path.parent()?).ok()?;
        Some(directory.join(path.file_name()?))
    })
}

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
}
