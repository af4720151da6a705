//! Files that are read to their ends and do not change: of each a few words are remembered instead of a
//! stream, so that a hundred thousand old files cost neither the memory nor the time of living ones.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use scrinium_protocol::identity::StreamId;

use super::bookmark::FileId;
use super::disk::Seen;

/// The files at rest, by what each can be recognised by.
#[derive(Debug, Default)]
pub(super) struct Resting {
    files: BTreeMap<Arc<Path>, Rest>,
    by_id: BTreeMap<FileId, Arc<Path>>,
}

/// One of them, as it was when it was looked at last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    pub(super) stream: StreamId,
    pub(super) seen: Seen,
}

impl Resting {
    pub(super) fn insert(&mut self, path: &Path, rest: Rest) {
        let path: Arc<Path> = path.into();
        self.by_id.insert(rest.seen.id, path.clone());
        self.files.insert(path, rest);
    }

    /// Whether the file at `path` rests, and is still what it was.
    pub(super) fn is_unchanged(&self, path: &Path, seen: Seen) -> bool {
        let rest = self.files.get(path);
        rest.is_some_and(|rest| rest.seen == seen)
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
    use super::*;

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
        };
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        resting.insert(a, rest(1, 10));
        assert!(resting.is_unchanged(a, seen(10, 7)));
        let others = [seen(10, 8), seen(11, 7)];
        assert!(others.iter().all(|other| !resting.is_unchanged(a, *other)));
        // The inode was given to another file meanwhile.
        resting.insert(b, rest(2, 10));
        resting.remove(a);
        assert_eq!(resting.path_of(id(10)), Some(b));
        resting.remove_streams(&BTreeSet::from([StreamId([2; 16])]));
        assert!(resting.path_of(id(10)).is_none() && !resting.contains(b));
        resting.insert(a, rest(1, 10));
        assert_eq!(resting.take_unless(|path| path != a), [a]);
        assert!(!resting.contains(a));
    }
}
