//! Files that are read to their ends and do not change: of each a few words are remembered instead of a
//! stream, so that a hundred thousand old files cost neither the memory nor the time of living ones.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use scrinium_protocol::identity::StreamId;

use super::bookmark::FileId;
use super::disk::{Disk, Seen};
use super::findings::Finding;

/// The files at rest, by what each can be recognised by.
#[derive(Debug, Default)]
pub(super) struct Resting {
    files: BTreeMap<Arc<Path>, Rest>,
    by_id: BTreeMap<FileId, Arc<Path>>,
    /// What is wrong with those of them that cannot be read, and which source names them.
    troubles: BTreeMap<Arc<Path>, (usize, Finding)>,
}

/// One of them, as it was when it was looked at last.
#[derive(Clone, Debug)]
pub(super) struct Rest {
    pub(super) stream: StreamId,
    pub(super) seen: Seen,
    /// Files that were renamed, as they were: whoever has them open may write to them.
    pub(super) beside: Box<[(PathBuf, Seen)]>,
    /// When it is looked into again although it seems to be as it was.
    pub(super) again_at: Option<Instant>,
}

impl Resting {
    pub(super) fn insert(&mut self, path: &Path, rest: Rest, trouble: Option<(usize, Finding)>) {
        let path: Arc<Path> = path.into();
        if let Some(trouble) = trouble {
            self.troubles.insert(path.clone(), trouble);
        }
        self.by_id.insert(rest.seen.id, path.clone());
        self.files.insert(path, rest);
    }

    /// Whether the file at `path` rests, and is still what it was, as are those that were renamed.
    pub(super) fn is_unchanged(
        &self,
        disk: &dyn Disk,
        path: &Path,
        seen: Seen,
        now: Instant,
    ) -> bool {
        let is_as_it_was =
            |(path, seen): &(PathBuf, Seen)| disk.look(path).ok().flatten() == Some(*seen);
        self.files.get(path).is_some_and(|rest| {
            rest.seen == seen
                && rest.again_at.is_none_or(|at| now < at)
                && rest.beside.iter().all(is_as_it_was)
        })
    }

    /// What is wrong with files at rest, and which source names each.
    pub(super) fn troubles(&self) -> impl ExactSizeIterator<Item = &(usize, Finding)> {
        self.troubles.values()
    }

    /// The sources are others now.
    pub(super) fn name_sources(&mut self, source_of: impl Fn(&Path) -> Option<usize>) {
        for (path, (source, _)) in &mut self.troubles {
            *source = source_of(path).unwrap_or(usize::MAX);
        }
    }

    pub(super) fn contains(&self, path: &Path) -> bool {
        self.files.contains_key(path)
    }

    /// Where the file called `id` lay when it came to rest.
    pub(super) fn path_of(&self, id: FileId) -> Option<&Path> {
        self.by_id.get(&id).map(|path| &**path)
    }

    pub(super) fn remove(&mut self, path: &Path) {
        let Some(rest) = self.files.remove(path) else {
            return;
        };
        self.troubles.remove(path);
        // Another may rest under this id by now.
        if self.path_of(rest.seen.id).is_some_and(|own| own == path) {
            self.by_id.remove(&rest.seen.id);
        }
    }

    /// Removes the files of streams that go on elsewhere: rarely so, hence each is looked at.
    pub(super) fn remove_streams(&mut self, streams: &BTreeSet<StreamId>) {
        let all = self.files.iter();
        let paths = all.filter(|(_, rest)| streams.contains(&rest.stream));
        let paths: Vec<Arc<Path>> = paths.map(|(path, _)| path.clone()).collect();
        for path in paths {
            self.remove(&path);
        }
    }

    /// Takes out those of which `stays` is false.
    pub(super) fn take_unless(&mut self, stays: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
        let leaving = self.files.keys().filter(|path| !stays(path));
        let leaving: Vec<PathBuf> = leaving.map(|path| path.to_path_buf()).collect();
        for path in &leaving {
            self.remove(path);
        }
        leaving
    }
}

#[cfg(test)]
mod tests {
    use scrinium_protocol::sl::sources::SourceState;

    use super::*;
    use crate::source::disk::RealDisk;

    #[test]
    fn a_file_at_rest_is_known_by_its_path_its_id_and_its_stream_until_it_is_removed() {
        let mut resting = Resting::default();
        let id = |inode| FileId { device: 1, inode };
        let seen = |inode, len| Seen {
            id: id(inode),
            len,
            modified: std::time::UNIX_EPOCH,
        };
        let rest = |n: u8, inode| Rest {
            stream: StreamId([n; 16]),
            seen: seen(inode, 7),
            beside: Box::default(),
            again_at: None,
        };
        let (disk, now) = (RealDisk::default(), crate::clock::now());
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        resting.insert(a, rest(1, 10), None);
        let is_unchanged = |resting: &Resting, seen| resting.is_unchanged(&disk, a, seen, now);
        assert!(is_unchanged(&resting, seen(10, 7)));
        let others = [seen(10, 8), seen(11, 7)];
        assert!(others.iter().all(|other| !is_unchanged(&resting, *other)));
        // The inode was given to another file meanwhile.
        resting.insert(b, rest(2, 10), None);
        resting.remove(a);
        assert_eq!(resting.path_of(id(10)), Some(b));
        resting.remove_streams(&BTreeSet::from([StreamId([2; 16])]));
        assert!(resting.path_of(id(10)).is_none() && !resting.contains(b));
        let trouble = Finding::trouble(SourceState::Unreadable, a, "it is not");
        resting.insert(a, rest(1, 10), Some((3, trouble.clone())));
        let troubles: Vec<_> = resting.troubles().collect();
        assert_eq!(troubles, [&(3, trouble)]);
        assert_eq!(resting.take_unless(|path| path != a), [a]);
        assert!(!resting.contains(a) && resting.troubles().len() == 0);
    }

    /// What is written to a file that was renamed is not seen in the one at the path; nor is that a file can be read again.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "nothing of a test is durable")]
    fn a_file_rests_no_longer_when_a_renamed_one_grows_or_its_time_is_over() {
        let dir = std::env::temp_dir().join(format!("scrinium-rests-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        let (own, renamed) = (dir.join("app.log"), dir.join("app.log.1"));
        std::fs::write(&own, "new\n").unwrap();
        std::fs::write(&renamed, "old\n").unwrap();
        let (disk, now) = (RealDisk::default(), crate::clock::now());
        let look = |path: &Path| disk.look(path).unwrap().unwrap();
        let mut resting = Resting::default();
        let later = now + std::time::Duration::from_secs(60);
        let rest = Rest {
            stream: StreamId([1; 16]),
            seen: look(&own),
            beside: [(renamed.clone(), look(&renamed))].into(),
            again_at: Some(later),
        };
        resting.insert(&own, rest, None);
        assert!(resting.is_unchanged(&disk, &own, look(&own), now));
        assert!(!resting.is_unchanged(&disk, &own, look(&own), later));
        std::fs::write(&renamed, "old\nand late\n").unwrap();
        assert!(!resting.is_unchanged(&disk, &own, look(&own), now));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
