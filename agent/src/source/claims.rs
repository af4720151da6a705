//! Whose a file is: one file is one stream, whatever it is called, and goes on where another left it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::bookmark::{Bookmarks, FileId, Mark};
use super::file::FileStream;

/// How far streams collected files, by what the file system called those.
#[derive(Debug, Default)]
pub(super) struct Collected(BTreeMap<u64, Mark>);

impl Collected {
    /// Of what streams wrote down, those of files among them, and of streams that are open.
    pub(super) fn of<'a>(
        bookmarks: impl Iterator<Item = &'a [u8]>,
        streams: impl Iterator<Item = &'a FileStream>,
    ) -> Self {
        let mut collected = Self::default();
        for bookmarks in bookmarks {
            let Ok(Some(bookmarks)) = Bookmarks::decode(bookmarks) else {
                continue;
            };
            let current = bookmarks.current.iter().map(Mark::from);
            collected.extend(current.chain(bookmarks.marks));
        }
        for stream in streams {
            collected.extend(stream.marks());
        }
        collected
    }

    fn extend(&mut self, marks: impl Iterator<Item = Mark>) {
        // A mark of nothing is one of any file.
        for mark in marks.filter(|mark| mark.offset != Mark::ALL && mark.offset > 0) {
            let known = self.0.entry(mark.key).or_default();
            if known.offset <= mark.offset {
                *known = mark;
            }
        }
    }

    pub(super) fn mark(&self, file: FileId) -> Option<Mark> {
        self.0.get(&file.key()).cloned()
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
