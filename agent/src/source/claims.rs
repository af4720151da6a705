//! Whose a file is: one file is one stream, whatever it is called, and goes on where another left it.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bookmark::{Bookmarks, FileId, Mark};
use super::disk::Disk;
use super::file::FileStream;

/// How far streams collected files, by what the file system called those.
#[derive(Debug, Default)]
pub(super) struct Collected {
    /// Of streams that are not open: there may be very many, and every stream that begins is told of them.
    closed: Arc<Marks>,
    open: Marks,
}

/// One mark of each file, in the order of their keys: of very many files, so they take no more room than they need.
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

    pub(super) fn mark(&self, file: FileId) -> Option<Mark> {
        let key = file.key();
        let known = self.closed.get(key).into_iter().chain(self.open.get(key));
        known.max_by_key(|mark| mark.offset).cloned()
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
            .sort_unstable_by_key(|mark| (mark.key, Reverse(mark.offset)));
        self.0.dedup_by_key(|mark| mark.key);
    }

    fn get(&self, key: u64) -> Option<&Mark> {
        let place = self.0.binary_search_by_key(&key, |mark| mark.key);
        self.0.get(place.ok()?)
    }
}

/// What open streams may have to do with, so that not each of very many files is asked of each of them.
#[derive(Debug, Default)]
pub(super) struct Claims {
    reading: BTreeSet<FileId>,
    settled: BTreeSet<u64>,
    targets: BTreeSet<PathBuf>,
}

impl Claims {
    pub(super) fn of<'a>(streams: impl Iterator<Item = &'a FileStream>) -> Self {
        let mut claims = Self::default();
        streams.for_each(|stream| claims.add(stream));
        claims
    }

    pub(super) fn add(&mut self, stream: &FileStream) {
        self.reading.extend(stream.reading());
        self.settled.extend(stream.settled());
        self.targets.extend(stream.target().map(Path::to_owned));
    }

    /// Whether a link of one of the streams led to `path` when it was looked at last.
    pub(super) fn is_target(&self, path: &Path) -> bool {
        self.targets.contains(path)
    }

    /// A stream that is being opened reads this file, whether it sees it yet or not.
    pub(super) fn reading_of(&mut self, file: Option<FileId>) {
        self.reading.extend(file);
    }

    /// The same as [`is_anothers`], of the streams that were added.
    pub(super) fn is_anothers<'a>(
        &self,
        streams: impl Iterator<Item = &'a FileStream>,
        file: FileId,
        path: &Path,
    ) -> bool {
        let may_be = self.settled.contains(&file.key()) || self.targets.contains(path);
        self.reading.contains(&file) || (may_be && is_anothers(streams, file, path))
    }
}

/// Whether a stream that is open collects the file called `file`, which lies at `path`.
pub(super) fn is_anothers<'a>(
    mut streams: impl Iterator<Item = &'a FileStream>,
    file: FileId,
    path: &Path,
) -> bool {
    streams.any(|stream| {
        stream.is_reading(file) || stream.has_settled(file, path) || stream.leads_to(path)
    })
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
