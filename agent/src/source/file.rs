//! One stream: the file at a path, through its rotations, in order.
//!
//! ```text
//! generation: app.log.2 ─▶ app.log.1 ─▶ app.log     each read to its end before the next
//! ```
//!
//! Invariants:
//! 1. The bytes of the entries, one after the other, are the bytes of the generations, one after the
//!    other. What cannot be read is a gap entry.
//! 2. A file is never known by its name, nor by its inode alone: [`Bookmark::is_in`] decides.
//! 3. A line without its end is held back; after a moment it is sent as a fragment, and what completes
//!    it later is linked to it.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use memchr::memchr_iter;
use scrinium_protocol::batch::{BatchBuilder, StreamPosition};
use scrinium_protocol::entry::{ENTRY_LEN_MAX, EntryFlags, EntryMeta};
use scrinium_protocol::identity::StreamId;
use tracing::{info, warn};

use super::Context;
use super::bookmark::{Bookmark, FileId, HEAD_LEN_MAX};
use super::follow::{Follow, open, read_at};
use super::generations::{is_generation_of, siblings};
use crate::clock;
use crate::shipper::Produced;

/// The stream of one path.
pub(crate) struct FileStream {
    id: StreamId,
    name: String,
    path: PathBuf,
    rewinds: u64,
    /// The sources ask for its old generations too: they are read first when nothing was read yet.
    history: bool,
    /// After the last sealed batch.
    position: StreamPosition,
    builder: BatchBuilder,
    current: Option<Follow>,
    /// Generations after the current one, oldest first; the file at the path comes after them.
    queued: VecDeque<Follow>,
    /// Renamed files whose writer may not have noticed yet.
    lingering: Vec<Follow>,
    /// Set while older files are read: what their lines are sealed with.
    bookmark_of_current: Option<Bookmark>,
    /// The last entry was a fragment.
    in_line: bool,
    resumed: bool,
    complained: bool,
}

/// What a read met.
enum Read {
    /// Whole lines were taken; there may be more.
    More,
    /// The end of the file, as it is at this moment.
    End,
    /// The bytes before the offset are not what they were: truncated or rewritten.
    Truncated,
}

impl FileStream {
    pub(crate) fn new(
        id: StreamId,
        name: String,
        path: PathBuf,
        position: StreamPosition,
        rewinds: u64,
        history: bool,
    ) -> Self {
        Self {
            id,
            name,
            path,
            rewinds,
            history,
            position,
            builder: BatchBuilder::new(),
            current: None,
            queued: VecDeque::new(),
            lingering: Vec::new(),
            bookmark_of_current: None,
            in_line: false,
            resumed: false,
            complained: false,
        }
    }

    pub(crate) fn id(&self) -> StreamId {
        self.id
    }

    /// After the last sealed batch.
    pub(crate) fn position(&self) -> &StreamPosition {
        &self.position
    }

    /// Whether the file at `path` is one this stream reads already.
    pub(crate) fn is_reading(&self, path: &Path) -> bool {
        let Ok(metadata) = std::fs::metadata(path) else {
            return false;
        };
        let id = FileId::of(&metadata);
        let follows = self
            .current
            .iter()
            .chain(&self.queued)
            .chain(&self.lingering);
        follows.into_iter().any(|follow| follow.id == id)
    }

    /// Whether the file is gone and everything of it was read.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        let over = |follow: &Follow| {
            follow
                .renamed
                .is_some_and(|at| now.duration_since(at) > FORGET_AFTER)
        };
        self.resumed
            && self.builder.is_empty()
            && self.queued.is_empty()
            && self.lingering.is_empty()
            && self.current.as_ref().is_none_or(over)
            && !self.path.is_file()
    }

    /// Reads on. Returns whether there is more to read at once.
    pub(crate) fn pass(&mut self, context: &mut Context, now: Instant) -> bool {
        match self.try_pass(context, now) {
            Ok(busy) => {
                self.complained = false;
                busy
            }
            Err(error) => {
                if !self.complained {
                    warn!(stream = %self.id, %error, "a file cannot be read; trying again");
                    self.complained = true;
                }
                false
            }
        }
    }

    fn try_pass(&mut self, context: &mut Context, now: Instant) -> io::Result<bool> {
        if !self.resumed {
            self.resume()?;
        }
        if self.current.is_none() {
            self.current = match self.queued.pop_front() {
                Some(next) => Some(next),
                None => open(&self.path)?,
            };
        }
        let mut taken = 0;
        while taken < PASS_BYTES && !context.stopped {
            let Some(mut follow) = self.current.take() else {
                break;
            };
            let before = follow.offset;
            let read = self.read(&mut follow, context, now);
            taken += follow.offset - before;
            self.current = Some(follow);
            match read? {
                Read::More => {}
                Read::Truncated => self.handle_truncation(context)?,
                Read::End => {
                    if !self.handle_end(context, now)? {
                        self.linger(context, now)?;
                        self.seal(context);
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Finds the file the bookmark was taken in, and what came after it.
    fn resume(&mut self) -> io::Result<()> {
        self.queued.clear();
        self.lingering.clear();
        let bookmark = match Bookmark::decode(&self.position.bookmark) {
            Ok(bookmark) => bookmark,
            Err(_) if self.position.bookmark.is_empty() => {
                if self.history {
                    let old = self.later_generations(FileId::default(), SystemTime::UNIX_EPOCH)?;
                    self.queued.extend(old);
                    self.queued.extend(open(&self.path)?);
                }
                self.current = match self.queued.pop_front() {
                    Some(oldest) => Some(oldest),
                    None => open(&self.path)?,
                };
                self.resumed = true;
                return Ok(());
            }
            Err(error) => return Err(io::Error::other(error)),
        };
        self.in_line = bookmark.in_line;
        let Some((mut follow, modified, at_path)) = self.find(&bookmark, None)? else {
            let lost = format!(
                "gap: the file read up to byte {} is gone; what was written to it after that, if anything, was not collected\n",
                bookmark.offset
            );
            self.push_gap(&lost);
            warn!(stream = %self.id, offset = bookmark.offset, "a followed file is gone; a gap entry says so");
            self.current = open(&self.path)?;
            self.resumed = true;
            return Ok(());
        };
        follow.resume_at(&bookmark)?;
        if !at_path {
            info!(stream = %self.id, "a file was rotated while the agent was stopped; reading its rest first");
            let found = follow.id;
            self.queued.extend(self.later_generations(found, modified)?);
            self.queued.extend(open(&self.path)?);
        }
        self.current = Some(follow);
        self.resumed = true;
        Ok(())
    }

    /// Finds the file in which `bookmark` was taken: first by inode, then by content; at the path,
    /// then beside it. Returns it with its modification time and whether it is at the path.
    fn find(
        &self,
        bookmark: &Bookmark,
        except: Option<FileId>,
    ) -> io::Result<Option<(Follow, SystemTime, bool)>> {
        let mut candidates = vec![self.path.clone()];
        candidates.extend(siblings(&self.path)?);
        let mut by_content = None;
        for path in candidates {
            let Some(follow) = open(&path)? else { continue };
            if except.is_some_and(|except| except == follow.id) || !bookmark.is_in(&follow.file)? {
                continue;
            }
            let modified = follow.file.metadata()?.modified()?;
            let is_same_inode = follow.id == bookmark.id;
            let found = (follow, modified, path == self.path);
            if is_same_inode {
                return Ok(Some(found));
            }
            by_content.get_or_insert(found);
        }
        Ok(by_content)
    }

    /// The rotated files written after the one called `id`, oldest first: generations that came and
    /// went while nobody looked.
    fn later_generations(&self, id: FileId, modified: SystemTime) -> io::Result<Vec<Follow>> {
        let at_path = std::fs::metadata(&self.path)
            .ok()
            .map(|metadata| FileId::of(&metadata));
        let mut found = Vec::new();
        for path in siblings(&self.path)? {
            if !is_generation_of(&self.path, &path) {
                continue;
            }
            let Some(follow) = open(&path)? else { continue };
            let written = follow.file.metadata()?.modified()?;
            let known = follow.id == id
                || Some(follow.id) == at_path
                || self
                    .lingering
                    .iter()
                    .any(|lingering| lingering.id == follow.id);
            if written > modified && !known {
                found.push((written, follow));
            }
        }
        found.sort_by_key(|(written, _)| *written);
        Ok(found.into_iter().map(|(_, follow)| follow).collect())
    }

    /// Takes the lines of one chunk.
    fn read(
        &mut self,
        follow: &mut Follow,
        context: &mut Context,
        now: Instant,
    ) -> io::Result<Read> {
        let len = follow.file.metadata()?.len();
        if len < follow.offset {
            return Ok(Read::Truncated);
        }
        if len == follow.offset {
            return Ok(Read::End);
        }
        let tail_len = follow.tail.len();
        let start = follow.offset - tail_len as u64;
        let wanted = usize::try_from(len - start)
            .unwrap_or(usize::MAX)
            .min(CHUNK_LEN);
        let mut window = vec![0; wanted];
        let got = read_at(&follow.file, &mut window, start)?;
        window.truncate(got);
        if !window.starts_with(&follow.tail) {
            return Ok(Read::Truncated);
        }
        if follow.head.len() < HEAD_LEN_MAX && start <= follow.head.len() as u64 {
            let known = follow.head.len() - usize::try_from(start).unwrap_or(0);
            let unseen = window.get(known..).unwrap_or_default();
            let missing = (HEAD_LEN_MAX - follow.head.len()).min(unseen.len());
            follow
                .head
                .extend_from_slice(unseen.get(..missing).unwrap_or_default());
        }

        let time_us = clock::unix_us();
        let mut at = tail_len;
        for end in memchr_iter(b'\n', window.get(tail_len..).unwrap_or_default()) {
            let end = tail_len + end + 1;
            self.push_line(&mut at, end, true, &window, follow, time_us, context);
            if context.stopped {
                return Ok(Read::End);
            }
        }
        // A line longer than an entry goes out in linked pieces as it comes.
        while window.len() - at > ENTRY_LEN_MAX {
            let piece_end = at + ENTRY_LEN_MAX;
            self.push_line(&mut at, piece_end, false, &window, follow, time_us, context);
        }
        let rest = window.len() - at;
        let reached_end = start + window.len() as u64 >= len;
        if rest == 0 {
            follow.unfinished = None;
        } else if reached_end {
            match follow.unfinished {
                Some((length, since)) if length == rest => {
                    if now.duration_since(since) >= FLUSH_AFTER {
                        let end = window.len();
                        self.push_line(&mut at, end, false, &window, follow, time_us, context);
                        follow.unfinished = None;
                    }
                }
                _ => follow.unfinished = Some((rest, now)),
            }
        }
        follow.move_to(at, tail_len, &window);
        if reached_end {
            Ok(Read::End)
        } else {
            Ok(Read::More)
        }
    }

    /// Puts `window[at..end]` into entries and moves `at` there. Seals a batch that has no room.
    fn push_line(
        &mut self,
        at: &mut usize,
        end: usize,
        is_whole: bool,
        window: &[u8],
        follow: &mut Follow,
        time_us: u64,
        context: &mut Context,
    ) {
        while *at < end {
            let piece_end = end.min(*at + ENTRY_LEN_MAX);
            let bytes = window.get(*at..piece_end).unwrap_or_default();
            if !self.builder.has_room(bytes.len()) {
                let tail_len = follow.tail.len();
                follow.move_to(*at, tail_len, window);
                let bookmark = self.bookmark_of_current.clone();
                self.seal_at(
                    bookmark.unwrap_or_else(|| follow.bookmark(self.in_line)),
                    context,
                );
                // The window still begins where it did.
                follow.move_back(*at, tail_len, window);
            }
            let flags = if is_whole && piece_end == end {
                EntryFlags::NONE
            } else {
                EntryFlags::FRAGMENT
            };
            self.builder.push(bytes, EntryMeta { time_us, flags });
            self.in_line = flags.is_fragment();
            *at = piece_end;
        }
    }

    /// The current file ends here: goes on to the next generation if there is one. Returns whether
    /// there is more to read.
    fn handle_end(&mut self, context: &mut Context, now: Instant) -> io::Result<bool> {
        if let Some(next) = self.queued.pop_front() {
            self.finish_line(context);
            self.seal(context);
            if let Some(done) = self.current.replace(next) {
                self.lingering.push(Follow {
                    renamed: Some(done.renamed.unwrap_or(now)),
                    ..done
                });
            }
            return Ok(true);
        }
        let Some(current) = &mut self.current else {
            return Ok(false);
        };
        let at_path = match std::fs::metadata(&self.path) {
            Ok(metadata) => Some((FileId::of(&metadata), metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if at_path.is_some_and(|(id, _)| id == current.id) {
            current.renamed = None;
            return Ok(false);
        }
        let renamed = *current.renamed.get_or_insert(now);
        let Some((_, len)) = at_path else {
            return Ok(false); // renamed, and not yet created again
        };
        // Until the writer has begun the new file it may still write to the old one.
        if len == 0 && now.duration_since(renamed) < SWITCH_AFTER {
            return Ok(false);
        }
        // It has begun: what it wrote to the old one before is there now. Read once more to the end.
        if current.file.metadata()?.len()
            != current.offset + current.unfinished.map_or(0, |(len, _)| len as u64)
        {
            return Ok(true);
        }
        let (id, modified) = (current.id, current.file.metadata()?.modified()?);
        let later = self.later_generations(id, modified)?;
        self.queued.extend(later);
        self.queued.extend(open(&self.path)?);
        Ok(!self.queued.is_empty())
    }

    /// The file was truncated under us: what it held after our position may be in a copy beside it.
    fn handle_truncation(&mut self, context: &mut Context) -> io::Result<()> {
        self.seal(context);
        let Some(current) = self.current.take() else {
            return Ok(());
        };
        let bookmark = current.bookmark(self.in_line);
        let again = Follow::new(current.file, current.id);
        if let Some((mut copy, _, _)) = self.find(&bookmark, Some(again.id))? {
            info!(stream = %self.id, "a file was truncated; its copy is read to the end first");
            copy.resume_at(&bookmark)?;
            copy.renamed = Some(clock::now());
            self.current = Some(copy);
            self.queued.push_front(again);
            return Ok(());
        }
        warn!(stream = %self.id, offset = bookmark.offset, "a file was truncated and no copy is beside it; a gap entry says so");
        self.close_fragment();
        self.push_gap(&format!(
            "gap: the file was truncated after byte {}; what was written to it between the last look and that, if anything, was not collected\n",
            bookmark.offset
        ));
        self.current = Some(again);
        Ok(())
    }

    /// The last line of a generation ends with its file.
    fn finish_line(&mut self, context: &mut Context) {
        let Some(mut follow) = self.current.take() else {
            return;
        };
        let rest = usize::try_from(
            follow
                .file
                .metadata()
                .map_or(0, |m| m.len())
                .saturating_sub(follow.offset),
        )
        .unwrap_or(0);
        let mut window = vec![0; rest.min(ENTRY_LEN_MAX)];
        let got = read_at(&follow.file, &mut window, follow.offset).unwrap_or(0);
        window.truncate(got);
        if !window.is_empty() {
            let (mut at, end) = (0, window.len());
            follow.tail.clear();
            self.push_line(
                &mut at,
                end,
                true,
                &window,
                &mut follow,
                clock::unix_us(),
                context,
            );
            follow.move_to(at, 0, &window);
        }
        self.current = Some(follow);
        self.close_fragment();
    }

    /// Ends an open line, so that the next file does not go on with it.
    fn close_fragment(&mut self) {
        if core::mem::take(&mut self.in_line) {
            let meta = EntryMeta {
                time_us: clock::unix_us(),
                flags: EntryFlags::NONE,
            };
            self.builder.push(b"", meta);
        }
    }

    fn push_gap(&mut self, text: &str) {
        let meta = EntryMeta {
            time_us: clock::unix_us(),
            flags: EntryFlags::GAP,
        };
        self.builder.push(text.as_bytes(), meta);
    }

    /// Reads what a slow writer still added to renamed files; lets them go after a quiet while.
    fn linger(&mut self, context: &mut Context, now: Instant) -> io::Result<()> {
        let Some(current) = &self.current else {
            return Ok(());
        };
        // Where the stream goes on is in the current file, whatever is still read from older ones.
        self.bookmark_of_current = Some(current.bookmark(self.in_line));
        let mut lingering = core::mem::take(&mut self.lingering);
        let mut outcome = Ok(());
        for follow in &mut lingering {
            let before = follow.offset;
            let read = self.read(follow, context, now).map(drop);
            outcome = outcome.and(read);
            if follow.offset > before {
                follow.renamed = Some(now);
            }
        }
        lingering.retain(|follow| {
            follow
                .renamed
                .is_some_and(|at| now.duration_since(at) < LINGER)
        });
        self.lingering = lingering;
        self.bookmark_of_current = None;
        outcome
    }

    /// Seals what was collected, up to where the current file was read.
    fn seal(&mut self, context: &mut Context) {
        if let Some(current) = &self.current {
            let bookmark = current.bookmark(self.in_line);
            self.seal_at(bookmark, context);
        }
    }

    fn seal_at(&mut self, bookmark: Bookmark, context: &mut Context) {
        if self.builder.is_empty() {
            return;
        }
        let (batch, after) = self.builder.seal(
            self.id,
            &self.position,
            bookmark.encode(),
            &context.signing,
            &mut context.compressor,
        );
        self.position = after;
        context.send(Produced {
            name: self.name.clone(),
            rewinds: self.rewinds,
            batch,
        });
    }
}

/// Bytes read at once.
const CHUNK_LEN: usize = 512 << 10;
/// Bytes read from one file before the next file's turn.
const PASS_BYTES: u64 = 4 << 20;
/// An unfinished line that did not grow for this long is sent as a fragment.
const FLUSH_AFTER: Duration = Duration::from_millis(900);
/// A new, still empty file does not end the reading of the renamed one before this.
const SWITCH_AFTER: Duration = Duration::from_secs(5);
/// How long a renamed file is watched for late lines.
const LINGER: Duration = Duration::from_secs(30);
/// A file that is gone is forgotten after this.
const FORGET_AFTER: Duration = Duration::from_secs(60);
