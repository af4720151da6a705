//! Whose a file is: one file is one stream, whatever it is called, and goes on where another left it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bookmark::{Bookmarks, FileId, Mark};
use super::disk::{Disk, Seen};
use super::file::FileStream;

/// How far streams collected files, by what the file system called those.
#[derive(Debug, Default)]
pub(super) struct Collected {
    /// Of streams that are not open: there may be very many, and every stream that begins is told of them.
    closed: Arc<Marks>,
    open: Marks,
}

/// Marks in the order of their keys, one of each beginning: a number that was given again is that of several files. Of
/// very many files, so they take no more room than they need.
#[derive(Clone, Debug, Default)]
struct Marks(Vec<Mark>);

impl Collected {
    /// Notes what streams that are closed wrote down, those of files among them.
    pub(super) fn note<'a>(&mut self, bookmarks: impl Iterator<Item = &'a [u8]>) {
        let mut new = Vec::new();
        for bookmarks in bookmarks {
            let Ok(Some(bookmarks)) = Bookmarks::decode(bookmarks) else {
                continue;
            };
            new.extend(bookmarks.current.iter().map(Mark::from));
            new.extend(bookmarks.marks);
        }
        if !new.is_empty() {
            Arc::make_mut(&mut self.closed).extend(new);
        }
    }

    /// The same, with streams that are open.
    pub(super) fn with<'a>(&self, streams: impl Iterator<Item = &'a FileStream>) -> Self {
        let mut open = Marks::default();
        open.extend(streams.flat_map(FileStream::marks).collect());
        Self {
            closed: self.closed.clone(),
            open,
        }
    }

    /// Those of a few files alone, by what the file system called them.
    pub(super) fn of(&self, keys: &BTreeSet<u64>) -> Self {
        let all = keys.iter().flat_map(|key| {
            let open = self.open.get(*key).iter();
            self.closed.get(*key).iter().chain(open).cloned()
        });
        let mut open = Marks::default();
        open.extend(all.collect());
        Self {
            closed: Arc::default(),
            open,
        }
    }

    /// Those of one file: of streams that are not open, and these of others.
    pub(super) fn of_file(&self, file: FileId, marks: impl Iterator<Item = Mark>) -> Self {
        let mut found = self.of(&BTreeSet::from([file.key()]));
        found.open.extend(marks.collect());
        found
    }

    /// The marks of files that have or had this number, that which says most first: which of them is of this file, its
    /// content tells.
    pub(super) fn marks(&self, file: FileId) -> Vec<Mark> {
        let key = file.key();
        let known = self.closed.get(key).iter().chain(self.open.get(key));
        let mut known: Vec<Mark> = known.cloned().collect();
        known.sort_unstable_by_key(|mark| Reverse(mark.offset));
        known
    }
}

impl Marks {
    fn extend(&mut self, mut new: Vec<Mark>) {
        // A mark of nothing is one of any file.
        new.retain(|mark| mark.offset != Mark::ALL && mark.offset > 0);
        self.0.reserve_exact(new.len());
        self.0.append(&mut new);
        // Of several of one file that which says most.
        self.0
            .sort_unstable_by_key(|mark| (mark.key, mark.head(), Reverse(mark.offset)));
        self.0.dedup_by_key(|mark| (mark.key, mark.head()));
    }

    fn get(&self, key: u64) -> &[Mark] {
        let from = self.0.partition_point(|mark| mark.key < key);
        let to = self.0.partition_point(|mark| mark.key <= key);
        self.0.get(from..to).unwrap_or_default()
    }
}

/// What open streams may have to do with, so that not each of very many files is asked of each of them.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Files that are open: for as long their numbers are their own.
    reading: BTreeSet<FileId>,
    /// Paths of streams, and which of them may know a file of a number, or led to a path.
    streams: Vec<PathBuf>,
    known: BTreeSet<(u64, usize)>,
    targets: BTreeMap<PathBuf, Vec<usize>>,
}

impl Claims {
    pub(super) fn of<'a>(streams: impl Iterator<Item = &'a FileStream>) -> Self {
        let mut claims = Self::default();
        streams.for_each(|stream| claims.add(stream));
        claims
    }

    pub(super) fn add(&mut self, stream: &FileStream) {
        let own = self.streams.len();
        self.streams.push(stream.path().to_owned());
        self.reading.extend(stream.reading());
        self.known.extend(stream.known().map(|key| (key, own)));
        if let Some(target) = stream.target() {
            let leading = self.targets.entry(target.to_owned());
            leading.or_default().push(own);
        }
    }

    /// Whether a link of one of the streams led to `path` when it was looked at last.
    pub(super) fn is_target(&self, path: &Path) -> bool {
        self.targets.contains_key(path)
    }

    /// A stream that is being opened reads this file, whether it sees it yet or not.
    pub(super) fn reading_of(&mut self, file: Option<FileId>) {
        self.reading.extend(file);
    }

    /// Whether one of the streams that were added collects the file that lies at `path`; `at` is that of a path, if it is
    /// still open.
    pub(super) fn is_anothers<'a>(
        &self,
        at: impl Fn(&Path) -> Option<&'a FileStream>,
        file: Seen,
        path: &Path,
    ) -> bool {
        let key = file.id.key();
        let knowing = self.known.range((key, 0)..=(key, usize::MAX));
        let leading = self.targets.get(path).into_iter().flatten();
        let mut may_be = knowing.map(|(_, stream)| stream).chain(leading);
        let collects = |stream: &usize| {
            let stream = self.streams.get(*stream).and_then(|own| at(own));
            stream.is_some_and(|stream| stream.collects(file, path))
        };
        self.reading.contains(&file.id) || may_be.any(collects)
    }
}

/// The path whose stream collects the file that a link leads to: its own, once that stream began, because it was found
/// first or the link had vanished. Two streams in turns would know one half each.
pub(super) fn own_path(
    disk: &dyn Disk,
    path: &Path,
    knows: impl Fn(&Path) -> bool,
) -> Option<PathBuf> {
    let own = disk.canonical(path).ok()?;
    (own != path && knows(&own)).then_some(own)
}

/// The path whose stream a file belongs to that is named as an old generation of it: one at which there is a file now,
/// or was, which the stream knows.
pub(super) fn base_of(
    path: &Path,
    is_there: impl Fn(&Path) -> bool,
    was_there: impl Fn(&Path) -> bool,
) -> Option<PathBuf> {
    let mut bases = super::generations::bases_of(path);
    bases.find(|base| is_there(base) || was_there(base))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::bookmark::Bookmark;

    /// A number that was given again is that of several files: the mark of the one must not hide that of the other.
    #[test]
    fn of_files_that_had_one_number_each_is_known() {
        let id = FileId {
            device: 1,
            inode: 9,
        };
        let closed = |offset, head: &[u8]| {
            let bookmarks = Bookmarks {
                current: Some(Bookmark::new(id, offset, false, head, b"tail")),
                ..Bookmarks::default()
            };
            bookmarks.encode()
        };
        let mut collected = Collected::default();
        let all = [
            closed(5000, b"one"),
            closed(70, b"other"),
            closed(60, b"other"),
        ];
        collected.note(all.iter().map(|bookmarks| &**bookmarks));
        let found = collected.marks(id);
        let found: Vec<u64> = found.iter().map(|mark| mark.offset).collect();
        assert_eq!(found, [5000, 70]);
        let another = FileId { inode: 8, ..id };
        assert!(collected.marks(another).is_empty());
    }
}
