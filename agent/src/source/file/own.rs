//! Which files are this stream's: what lies at a path may be read by it already, or was, whatever it is called.

use std::path::Path;

use super::FileStream;
use super::chain::Past;
use crate::source::bookmark::{Bookmark, FileId};
use crate::source::disk::{Name, Seen};

impl FileStream {
    pub(crate) fn path(&self) -> &Path {
        &self.place.path
    }

    /// Whether it collects the file that lies at `path`.
    pub(crate) fn collects(&self, file: Seen, path: &Path) -> bool {
        self.is_reading(file.id, path) || self.has_settled(file, path) || self.leads_to(path)
    }

    /// The files that it has open: their numbers are their own for as long.
    pub(crate) fn reading(&self) -> impl Iterator<Item = FileId> {
        self.chain.open_ones().map(|follow| follow.id)
    }

    /// What the file system called the files that it knows and has not open: by now it may call others so.
    pub(crate) fn known(&self) -> impl Iterator<Item = u64> {
        let closed = self.chain.closed.iter().map(|closed| closed.id);
        let named = closed.chain(self.seen.map(|seen| seen.id));
        // Where nothing was collected, the number says nothing.
        let past = self.chain.past.iter().filter(|past| past.mark.offset > 0);
        let past = past.map(|past| past.mark.key);
        past.chain(named.map(FileId::key))
    }

    /// What a link at its path led to.
    pub(crate) fn target(&self) -> Option<&Path> {
        self.target.as_deref()
    }

    /// Whether a link at its path leads to `path`: what is made there next is read by this stream.
    pub(crate) fn leads_to(&self, path: &Path) -> bool {
        let is_target = self.target.as_deref() == Some(path);
        is_target && matches!(self.place.disk.read_link(&self.place.path), Ok(Some(_)))
    }

    /// Whether a link at its path led to `path`, and there is nothing now.
    pub(crate) fn has_left(&self, path: &Path) -> bool {
        let is_target = self.target.as_deref() == Some(path);
        is_target && matches!(self.place.disk.look(&self.place.path), Ok(None))
    }

    /// Whether the file called `id`, which lies at `path`, is the one this stream reads.
    fn is_reading(&self, id: FileId, path: &Path) -> bool {
        let is_at_path = || {
            let seen = self.place.disk.look(&self.place.path).ok().flatten();
            seen.is_some_and(|seen| seen.id == id)
        };
        let closed = self.chain.closed.as_ref();
        self.chain.is_reading(id)
            || (self.seen.is_some_and(|seen| seen.id == id) && is_at_path())
            || closed.is_some_and(|closed| closed.id == id && self.is_closed(closed, path))
    }

    /// Whether what lies at `path` is the file that was read up to a bookmark, of which the number is the same.
    fn is_closed(&self, bookmark: &Bookmark, path: &Path) -> bool {
        match self.open(path) {
            // Of one of which nothing was read, the number is all there is.
            _ if bookmark.offset == 0 => self.is_beside(path),
            Ok(Some(mut follow)) => {
                follow.id != bookmark.id || follow.is_of(bookmark).unwrap_or(true)
            }
            Ok(None) | Err(_) => true, // it is looked at again
        }
    }

    /// Whether the stream settled the file that lies at `path`, and that is still its business: it knows the file where it
    /// is. A number may have been given to another file: its content tells.
    fn has_settled(&self, file: Seen, path: &Path) -> bool {
        let is_it = |past: &&Past| {
            past.mark.key == file.id.key() && past.mark.offset > 0 && past.identifies(file)
        };
        let mut known = self.chain.past.iter().filter(is_it).peekable();
        if known.peek().is_none() || !self.is_beside(path) {
            return false;
        }
        if known.clone().any(|past| past.seen == Some(file)) {
            return true;
        }
        let matches = |past: &Past| match self.open(path) {
            Ok(Some(mut follow)) => {
                let start = follow.start();
                let answer = start.and_then(|mut start| follow.matches(&mut start, &past.mark));
                follow.id != file.id || answer.unwrap_or(true)
            }
            Ok(None) => true, // gone again, or forbidden
            // One that may not be read says no more than its length.
            Err(_) => past.mark.offset <= file.len,
        };
        known.any(matches)
    }

    /// Whether a file that is not at the path any more has another name beside it, and held nothing before it got that: what
    /// is written to it is the business of whoever is to read it there.
    pub(super) fn is_moved_on(&self, file: Seen) -> bool {
        let (Some(dir), Some(stem)) = (self.place.path.parent(), self.place.path.file_stem())
        else {
            return false;
        };
        let disk = &*self.place.disk;
        let names = disk.names((dir, &self.place.root), stem, file.id.inode, false);
        let is_it = |name: &Name| {
            let seen = disk.look(&name.path).ok().flatten();
            seen.is_some_and(|seen| seen.id == file.id)
        };
        file.len == 0 && names.is_ok_and(|names| names.iter().any(is_it))
    }

    /// Whether a path is named like the stream's own, or like what a link there led to.
    fn is_beside(&self, path: &Path) -> bool {
        let is_beside = |own: &Path| {
            let names = own.file_stem().zip(path.file_name());
            let names =
                names.map(|(stem, name)| (stem.as_encoded_bytes(), name.as_encoded_bytes()));
            own.parent() == path.parent()
                && names.is_some_and(|(stem, name)| name.starts_with(stem))
        };
        is_beside(&self.place.path) || self.target.as_deref().is_some_and(is_beside)
    }
}
