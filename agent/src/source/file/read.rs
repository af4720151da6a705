//! Bytes of a file become entries.

use std::io;
use std::time::{Duration, Instant};

use scrinium_protocol::entry::{ENTRY_LEN_MAX, EntryFlags};

use super::{FileStream, Role};
use crate::clock;
use crate::source::Context;
use crate::source::content::PACKED_READ_LEN;
use crate::source::follow::{Follow, Skipped};
use crate::source::records::Encoding;

/// What a read met.
pub(super) enum Read {
    /// Whole lines were taken; there may be more.
    More,
    /// The end of the file, as it is at this moment.
    End,
    /// The bytes before the offset are not what they were: truncated or rewritten.
    Truncated,
}

impl FileStream {
    /// Takes the lines of one chunk.
    pub(super) fn read(
        &mut self,
        follow: &mut Follow,
        role: Role,
        context: &mut Context,
        now: Instant,
    ) -> io::Result<Read> {
        let len = follow.content.len()?;
        if len.is_some_and(|len| len < follow.offset) {
            return Ok(Read::Truncated);
        }
        if len == Some(follow.offset) || follow.is_unwritten(len) {
            return Ok(Read::End);
        }
        follow.unwritten = None;
        let tail_len = follow.tail.len();
        let start = follow.offset - tail_len as u64;
        // Only a compressed file's length is not known.
        let wanted = len.map_or(PACKED_READ_LEN as u64, |len| len - start);
        let mut window = vec![0; usize::try_from(wanted).unwrap_or(usize::MAX).min(CHUNK_LEN)];
        let got = match follow.content.read_at(&mut window, start) {
            Err(error) if follow.content.is_packed() => {
                // It was whole when it replaced the plain file, so it will not get better.
                let what = match error.kind() == io::ErrorKind::FileTooLarge {
                    true => "left",
                    false => "damaged",
                };
                self.output.push_gap(&format!(
                    "a compressed file is {what} after byte {} ({error}); the rest of it was not collected",
                    follow.offset
                ));
                return Ok(Read::End);
            }
            got => got?,
        };
        let reached_end = got < window.len() || len.is_some_and(|len| start + got as u64 >= len);
        window.truncate(got);
        if !window.starts_with(&follow.tail) {
            return Ok(Read::Truncated);
        }
        let fresh = window.get(tail_len..).unwrap_or_default();
        if fresh.len() >= HOLE_SEEN && fresh.iter().take(HOLE_SEEN).all(|&byte| byte == 0) {
            let from = follow.offset;
            match follow.skip_hole()? {
                Skipped::Nothing => {}
                Skipped::Hole(hole) => {
                    self.output.push_gap(&format!(
                        "the file has a hole of {hole} bytes at byte {from}; nobody wrote them"
                    ));
                    return Ok(Read::More);
                }
                Skipped::Waits(hole) => {
                    // Once for a file, however much is written there and wherever it goes on.
                    if !core::mem::replace(&mut follow.says_no_unwritten, true) {
                        self.output.push_gap(&format!(
                            "the file has a hole of {hole} bytes from byte {from} to its end; nobody wrote them, and what is written there later is collected then"
                        ));
                    }
                    return Ok(Read::End);
                }
            }
        }
        follow.learn_head(&window, start);

        let encoding = Encoding::of(&follow.head);
        let flags = encoding.flags();
        let time_us = clock::unix_us();
        let mut at = tail_len;
        for end in encoding.ends(fresh, follow.offset, self.multiline.as_ref()) {
            let end = tail_len + end;
            if !self.push_line(
                &mut at,
                end,
                (flags, flags),
                &window,
                follow,
                role,
                time_us,
                context,
            ) {
                follow.move_to(at, tail_len, &window);
                return Ok(Read::More);
            }
        }
        // A line longer than an entry goes out in linked pieces as it comes.
        let fragment = flags.and(EntryFlags::FRAGMENT);
        let pieces = (fragment, fragment);
        while window.len() - at > ENTRY_LEN_MAX {
            let end = at + ENTRY_LEN_MAX;
            if !self.push_line(
                &mut at, end, pieces, &window, follow, role, time_us, context,
            ) {
                follow.move_to(at, tail_len, &window);
                return Ok(Read::More);
            }
        }
        let rest = window.len() - at;
        if rest == 0 {
            follow.unfinished = None;
        } else if reached_end {
            match follow.unfinished {
                Some((length, since)) if length == rest => {
                    if now.duration_since(since) >= FLUSH_AFTER || follow.content.is_packed() {
                        let end = encoding.whole_units(window.len(), start);
                        // What waits for the next entry to begin is whole lines; a line's start is not.
                        self.push_line(
                            &mut at, end, pieces, &window, follow, role, time_us, context,
                        );
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

    /// Puts `window[at..end]` into entries and moves `at` there; `flags` are those of its pieces and of
    /// its last one. Seals a batch that has no room; `false` when the spool has none either.
    pub(super) fn push_line(
        &mut self,
        at: &mut usize,
        end: usize,
        (of_pieces, of_last): (EntryFlags, EntryFlags),
        window: &[u8],
        follow: &mut Follow,
        role: Role,
        time_us: u64,
        context: &mut Context,
    ) -> bool {
        while *at < end {
            let piece_end = end.min(*at + ENTRY_LEN_MAX);
            let bytes = window.get(*at..piece_end).unwrap_or_default();
            if !self.output.has_room(bytes.len()) {
                if !context.has_room() {
                    return false;
                }
                let tail_len = follow.tail.len();
                follow.move_to(*at, tail_len, window);
                let bookmark = self.bookmark(follow, role);
                self.output.seal(bookmark, context);
                // The window still begins where it did.
                follow.move_back(*at, tail_len, window);
            }
            let flags = if piece_end == end {
                of_last
            } else {
                of_pieces.and(EntryFlags::FRAGMENT)
            };
            self.output.push(bytes, flags, time_us);
            *at = piece_end;
        }
        true
    }
}

/// Bytes read at once.
const CHUNK_LEN: usize = 512 << 10;
/// So many zeros at once may be a hole.
const HOLE_SEEN: usize = 4 << 10;
/// An unfinished line that did not grow for this long is sent as a fragment.
const FLUSH_AFTER: Duration = Duration::from_millis(900);
