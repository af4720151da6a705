//! Which of the files around a path is which: the one a bookmark was taken in, and those after it.
//!
//! Files are opened by name while somebody else renames them, so what was seen counts only when every
//! name still means the same file afterwards.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tracing::{info, warn};

use super::{FileStream, LINGER};
use crate::clock;
use crate::source::bookmark::{Bookmark, FileId};
use crate::source::follow::{Follow, look};
use crate::source::generations::{is_generation_of, rank, siblings};

impl FileStream {
    /// Finds the file the bookmark was taken in, and what came after it.
    pub(super) fn resume(&mut self) -> io::Result<()> {
        self.queued.clear();
        self.lingering.clear();
        let bookmarks = Bookmark::decode_all(&self.output.position().bookmark);
        let bookmarks = bookmarks.map_err(io::Error::other)?;
        let Some((bookmark, older)) = bookmarks.split_first() else {
            self.queued = match self.history {
                true => {
                    let all = |own: &Self| own.later_files(None);
                    self.while_nothing_moves(all)?
                }
                false => self.files_begun_since()?,
            };
            self.current = self.queued.pop_front();
            self.resumed = true;
            return Ok(());
        };
        self.output.in_line = bookmark.in_line;
        // Nearly always it is where it was: no need to look around.
        if older.is_empty()
            && let Some(mut follow) = self.open(&self.path)?
            && follow.id == bookmark.id
            && follow.is_of(bookmark)?
        {
            follow.resume_at(bookmark)?;
            self.current = Some(follow);
            self.resumed = true;
            return Ok(());
        }
        let found = self.while_nothing_moves(|own| {
            let Some((follow, modified, at_path)) = own.find(bookmark, None)? else {
                return Ok(None);
            };
            let later = match at_path {
                true => VecDeque::new(),
                false => own.later_files(Some(&follow))?,
            };
            // What was read is in a copy, and the file itself is still at the path: it was truncated.
            // A file begun after the copy's last byte only got the number that was free again.
            let truncated = match later.back() {
                Some(last) if follow.id != bookmark.id && last.id == bookmark.id => {
                    !last.begins_after(modified)
                }
                _ => false,
            };
            // Whoever still wrote to them may go on; what is gone or quiet had its time.
            let mut lingering = Vec::new();
            for bookmark in older {
                let found = own.find(bookmark, None)?;
                let found = found.filter(|(_, written, _)| !is_quiet(*written));
                lingering.extend(found.map(|(follow, ..)| (follow, bookmark)));
            }
            Ok(Some((follow, at_path, later, lingering, truncated)))
        })?;
        let Some((mut follow, at_path, later, lingering, truncated)) = found else {
            self.output.push_gap(&format!(
                "the file read up to byte {} is gone; what was written to it after that, if anything, was not collected",
                bookmark.offset
            ));
            warn!(stream = %self.id(), offset = bookmark.offset, "a followed file is gone; a gap entry says so");
            self.current = self.open(&self.path)?;
            self.resumed = true;
            return Ok(());
        };
        follow.resume_at(bookmark)?;
        for (mut follow, bookmark) in lingering {
            follow.resume_at(bookmark)?;
            follow.renamed = Some(clock::now());
            self.lingering.push(follow);
        }
        if !at_path {
            info!(stream = %self.id(), "a file was rotated while nobody looked; reading its rest first");
            self.truncated = truncated;
            follow.renamed = Some(clock::now());
        }
        self.queued = later;
        self.current = Some(follow);
        self.resumed = true;
        Ok(())
    }

    /// Does `look_around`, which opens files by name, until none of them was renamed meanwhile.
    pub(super) fn while_nothing_moves<T>(
        &self,
        look_around: impl Fn(&Self) -> io::Result<T>,
    ) -> io::Result<T> {
        for _ in 0..LOOKS_MAX {
            let before = self.names()?;
            let seen = look_around(self)?;
            if self.names()? == before {
                return Ok(seen);
            }
        }
        Err(io::Error::other(
            "files are renamed faster than they are found",
        ))
    }

    /// The files at the path and beside it, by name.
    fn names(&self) -> io::Result<Vec<(PathBuf, Option<FileId>)>> {
        let mut names = siblings(&self.path)?;
        names.push(self.path.clone());
        let named = names.into_iter().map(|path| {
            let id = look(&path)?.map(|(id, _)| id);
            Ok((path, id))
        });
        named.collect()
    }

    /// Finds the file in which `bookmark` was taken: first by inode, then by content; at the path,
    /// then beside it. Returns it with its modification time and whether it is at the path.
    pub(super) fn find(
        &self,
        bookmark: &Bookmark,
        except: Option<FileId>,
    ) -> io::Result<Option<(Follow, SystemTime, bool)>> {
        let mut candidates = vec![self.path.clone()];
        candidates.extend(siblings(&self.path)?);
        let mut by_content = None;
        for path in candidates {
            let Some(mut follow) = self.open(&path)? else {
                continue;
            };
            let is_same_inode = follow.id == bookmark.id;
            // A file of another name may begin alike and be another stream's.
            let may_be = is_same_inode || path == self.path || is_copy_of(&self.path, &path);
            if except == Some(follow.id) || !may_be {
                continue;
            }
            // A damaged compressed file is none we know.
            if !follow
                .is_of(bookmark)
                .or_else(|error| match follow.content.is_packed() {
                    true => Ok(false),
                    false => Err(error),
                })?
            {
                continue;
            }
            let found = (follow, path == self.path);
            if is_same_inode {
                let (follow, at_path) = found;
                let modified = follow.modified()?;
                return Ok(Some((follow, modified, at_path)));
            }
            by_content.get_or_insert(found);
        }
        let Some((follow, at_path)) = by_content else {
            return Ok(None);
        };
        let modified = follow.modified()?;
        Ok(Some((follow, modified, at_path)))
    }

    /// The file at the path, and before it those that came and went there since the agent began to look:
    /// nobody can have meant them not to be collected.
    fn files_begun_since(&self) -> io::Result<VecDeque<Follow>> {
        // One that was there before says that none did: no need to look around.
        if let Some(file) = self.open(&self.path)?
            && !file.begins_after(self.began)
        {
            return Ok(VecDeque::from([file]));
        }
        self.while_nothing_moves(|own| {
            let at_path = look(&own.path)?.map(|(id, _)| id);
            let mut all = own.later_files(None)?;
            all.retain(|file| Some(file.id) == at_path || file.begins_after(own.began));
            Ok(all)
        })
    }

    /// The files written after `current`, oldest first: generations that came and went while nobody
    /// looked, and the one at the path.
    pub(super) fn later_files(&self, current: Option<&Follow>) -> io::Result<VecDeque<Follow>> {
        let at_path = self.open(&self.path)?;
        let at_path_id = at_path.as_ref().map(|follow| follow.id);
        let mut found = Vec::new();
        for path in siblings(&self.path)? {
            let Some(rank) = rank(&self.path, &path) else {
                continue;
            };
            let Some(follow) = self.open(&path)? else {
                continue;
            };
            if Some(follow.id) != at_path_id {
                let written = follow.modified()?;
                let id = follow.id;
                found.push(Generation {
                    written,
                    rank,
                    id,
                    path,
                });
            }
        }
        if let Some(current) = current {
            let mut modified = current.modified()?;
            let mut times = found.iter().map(|found| found.written);
            // Whoever compressed a file may have kept its second only: within it, and within one tick
            // of the file system's clock, the names tell what is older.
            if times.any(|time| time == whole_second(time)) {
                modified = whole_second(modified);
                for found in &mut found {
                    found.written = whole_second(found.written);
                }
            }
            let rank = self.rank_of(current, modified, &found)?;
            found.retain(|found| match found.written.cmp(&modified) {
                Ordering::Less => false,
                Ordering::Equal => {
                    found.id != current.id && rank.as_ref().is_none_or(|rank| found.rank > *rank)
                }
                Ordering::Greater => true,
            });
        }
        found.sort();
        let mut later = VecDeque::new();
        for found in found {
            let is_known = self.known().any(|known| known.id == found.id);
            if let Some(mut follow) = self.open(&found.path)?
                && !is_known
                && !self.has_finished(&mut follow)?
            {
                later.push_back(follow);
            }
        }
        later.extend(at_path);
        Ok(later)
    }

    /// The rank of a file among its generations, should it still have a name; it may have been
    /// compressed meanwhile.
    fn rank_of(
        &self,
        current: &Follow,
        modified: SystemTime,
        generations: &[Generation],
    ) -> io::Result<Option<Vec<i64>>> {
        let own = generations.iter().find(|found| found.id == current.id);
        if let Some(own) = own {
            return Ok(Some(own.rank.clone()));
        }
        if current.offset == 0 {
            return Ok(None);
        }
        let bookmark = current.bookmark(false);
        for found in generations.iter().filter(|found| found.written == modified) {
            let follow = self.open(&found.path)?;
            let packed = follow.filter(|follow| follow.content.is_packed());
            // A damaged one is none we know.
            if packed.is_some_and(|mut packed| packed.is_of(&bookmark).unwrap_or(false)) {
                return Ok(Some(found.rank.clone()));
            }
        }
        Ok(None)
    }

    /// Whether a file was read to its end already, and was only written to late.
    fn has_finished(&self, follow: &mut Follow) -> io::Result<bool> {
        let (id, is_packed) = (follow.id, follow.content.is_packed());
        for done in &self.finished {
            // What was compressed meanwhile is another file with the same content.
            let is_done = match is_packed {
                true => follow.is_of(done).unwrap_or(false),
                false => done.id == id && follow.is_of(done)?,
            };
            if is_done {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A rotated file, ordered by age.
#[derive(Eq, Ord, PartialEq, PartialOrd)]
struct Generation {
    written: SystemTime,
    /// What its name says.
    rank: Vec<i64>,
    id: FileId,
    path: PathBuf,
}

fn whole_second(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(time, |since| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
    })
}

/// Whether a file was written last so long ago that nobody goes on writing to it.
fn is_quiet(written: SystemTime) -> bool {
    let written = written.duration_since(SystemTime::UNIX_EPOCH);
    let now = Duration::from_micros(clock::unix_us());
    written.is_ok_and(|written| now.saturating_sub(written) > LINGER)
}

/// Whether a copy of the file at `path` may be at `sibling`: a generation, or the same name with more
/// behind it.
fn is_copy_of(path: &Path, sibling: &Path) -> bool {
    let names = path.file_name().zip(sibling.file_name());
    let names = names.and_then(|(own, other)| Some((own.to_str()?, other.to_str()?)));
    is_generation_of(path, sibling) || names.is_some_and(|(own, other)| other.starts_with(own))
}

/// How often files may be renamed while we look at them.
const LOOKS_MAX: usize = 8;
