//! Bytes of a file become entries.

use std::io;
use std::time::{Duration, Instant};

use scrinium_protocol::entry::{ENTRY_LEN_MAX, EntryFlags};

use super::FileStream;
use super::chain::Role;
use crate::clock;
use crate::source::Context;
use crate::source::content::PACKED_READ_LEN;
use crate::source::disk::Hole;
use crate::source::follow::{BLOCK_LEN, Blank, Follow, HOLE_LEN_MIN};
use crate::source::records::Encoding;

/// What a read met.
pub(super) enum Read {
    /// Whole lines were taken; there may be more.
    More,
    /// The end of the file, as it is at this moment.
    End,
    /// Zeros were looked at, and there may be more of them.
    Looking,
    /// The bytes before the offset are not what they were: truncated or rewritten.
    Truncated,
}

/// How much of what was read is text.
enum Text {
    All,
    /// So many bytes; behind them is nothing yet.
    Until(usize),
    /// So many bytes; behind them are zeros, and more.
    Before(usize),
    /// Nothing is known yet of what is behind zeros.
    Looking,
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
        let stat = match follow.content.is_packed() {
            true => None, // only its end will tell how long it is
            false => Some(follow.content.stat()?),
        };
        let len = stat.map(|stat| stat.len);
        if len.is_some_and(|len| len < follow.offset) {
            return Ok(Read::Truncated);
        }
        if len == Some(follow.offset) {
            follow.blank = None;
            // A line's start that was looked at is gone.
            if follow.unfinished.is_some() {
                return Ok(Read::Truncated);
            }
            let ended = stat.map(|stat| (stat.len, stat.modified));
            if follow.ended != ended && self.is_another(follow, role, stat, now)? {
                return Ok(Read::Truncated); // written anew, and as long
            }
            if matches!(role, Role::Current) {
                self.see_same(follow, stat, now);
            }
            follow.ended = ended;
            return Ok(Read::End);
        }
        if matches!(role, Role::Current) {
            self.same.is_longer();
        }
        // What was blank is so still, up to where the text goes on; at times all of it is looked at again.
        let blank = follow.blank.filter(|blank| {
            let is_old = now.duration_since(blank.since) >= BLANK_LASTS;
            Some(blank.len) == len
                && !(is_old && stat.is_some_and(|stat| stat.modified != blank.modified))
        });
        follow.blank = blank;
        let blank = blank.filter(Blank::is_whole);
        let tail_len = follow.tail.len();
        let start = follow.offset - tail_len as u64;
        // Only a compressed file's length is not known.
        let wanted = len.map_or(PACKED_READ_LEN as u64, |len| len - start);
        let wanted = match blank {
            Some(blank) => wanted.min(blank.from.max(follow.offset) - start + PROBE_LEN),
            None => wanted,
        };
        let mut window = vec![0; usize::try_from(wanted).unwrap_or(usize::MAX).min(CHUNK_LEN)];
        let got = match follow.content.go_to(start, GO_MAX) {
            Ok(false) => return Ok(Read::Looking),
            Ok(true) => follow.content.read_at(&mut window, start),
            Err(error) => Err(error),
        };
        let got = match got {
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
        if !window.starts_with(&follow.tail) || follow.is_rewritten(&window, start) {
            return Ok(Read::Truncated);
        }
        let fresh = window.get(tail_len..).unwrap_or_default();
        if fresh.len() >= HOLE_SEEN && fresh.iter().take(HOLE_SEEN).all(|&byte| byte == 0) {
            let from = follow.offset;
            if let Some(hole) = follow.skip_hole() {
                self.output.push_gap(&format!(
                    "the file has a hole of {hole} bytes at byte {from}; nobody wrote them"
                ));
                return Ok(Read::More);
            }
        }
        let mut reached_end = reached_end;
        match self.text_of(follow, fresh, blank.is_some(), reached_end, now)? {
            Text::All => {}
            Text::Looking => return Ok(Read::Looking),
            Text::Until(text) => {
                reached_end = true;
                window.truncate(tail_len + text);
            }
            Text::Before(text) => {
                reached_end = false;
                window.truncate(tail_len + text);
            }
        }
        let fresh = window.get(tail_len..).unwrap_or_default();
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
                        // Half of a character waits for the other half, or the end of the file.
                        let left = window.len() - at;
                        follow.unfinished = (left > 0).then_some((left, now));
                    }
                }
                _ => follow.unfinished = Some((rest, now)),
            }
        }
        if !reached_end && at == tail_len {
            follow.blank = None; // a long line: more than a probe of it is to be seen
        }
        follow.move_to(at, tail_len, &window);
        match reached_end {
            true => {
                follow.ended = stat.map(|stat| (stat.len, stat.modified));
                Ok(Read::End)
            }
            false => Ok(Read::More),
        }
    }

    /// How much of `fresh`, which stands at the offset, is text: zeros up to the end of the file are room for lines to
    /// come, unless they are few and the file is no block that somebody laid out.
    fn text_of(
        &mut self,
        follow: &mut Follow,
        fresh: &[u8],
        is_blank: bool,
        reached_end: bool,
        now: Instant,
    ) -> io::Result<Text> {
        if fresh.last() != Some(&0) || follow.content.is_packed() {
            return Ok(Text::All);
        }
        let mut text = fresh
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1);
        let len = follow.content.len()?.unwrap_or(0);
        let is_room = |from: u64| {
            self.chain.has_room || len - from >= ROOM_LEN_MIN || len.is_multiple_of(SECTOR_LEN)
        };
        // The second half of a UTF-16 character may be a zero.
        let is_half = !(follow.offset + text as u64).is_multiple_of(2);
        if text > 0 && is_half && Encoding::of(&follow.head) == Encoding::Utf16Le {
            text += 1;
        }
        let from = follow.offset + text as u64;
        if text == fresh.len() || (reached_end && !is_room(from)) {
            return Ok(Text::All);
        }
        if !is_blank || follow.blank.is_none_or(|blank| blank.from > from) {
            // Lines before the zeros do not wait for what is behind them.
            let lines = Encoding::of(&follow.head).ends(
                fresh.get(..text).unwrap_or_default(),
                follow.offset,
                self.multiline.as_ref(),
            );
            if !reached_end && !lines.is_empty() {
                return Ok(Text::Before(text));
            }
            if let Some(found) = follow.look_for_text(from, now)? {
                return Ok(match found < follow.offset + fresh.len() as u64 {
                    true => Text::Before(0), // written this moment: it is read once more
                    false => Text::All,
                });
            }
            if !follow.blank.is_some_and(|blank| blank.is_whole()) {
                return Ok(Text::Looking);
            }
        }
        if let Some(blank) = &mut follow.blank {
            blank.from = from;
            self.chain.has_room = true;
        }
        let hole = len - from;
        let is_hole = || {
            let edge = from.next_multiple_of(BLOCK_LEN);
            follow.content.after_hole(edge) == Some(Hole::ToTheEnd)
        };
        // Once for a file, however much is written there and wherever it goes on.
        if !follow.says_no_unwritten && hole >= HOLE_LEN_MIN && is_hole() {
            follow.says_no_unwritten = true;
            self.output.push_gap(&format!(
                "the file has a hole of {hole} bytes from byte {from} to its end; nobody wrote them, and what is written there later is collected then"
            ));
        }
        Ok(Text::Until(text))
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
                let reading = Some((role, &*follow));
                let bookmark = self.chain.bookmarks(reading, self.output.in_line);
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

/// Bytes decompressed at once on the way to where a compressed file is read on.
const GO_MAX: u64 = 2 << 20;
/// Bytes read at once.
const CHUNK_LEN: usize = 512 << 10;
/// Bytes looked at behind the text of a file whose rest is zeros.
const PROBE_LEN: u64 = 16 << 10;
/// For so long zeros at the end of a file count as such without a look at all of them, although something was written.
const BLANK_LASTS: Duration = Duration::from_secs(30);
/// So many zeros at the end of a file are room for lines to come; fewer are the end of a character or a number. They are
/// room too in a file that is laid out in sectors of a disk, and in a stream whose files had room before.
const ROOM_LEN_MIN: u64 = 4;
const SECTOR_LEN: u64 = 512;
/// So many zeros at once may be a hole.
const HOLE_SEEN: usize = 4 << 10;
/// An unfinished line that did not grow for this long is sent as a fragment.
const FLUSH_AFTER: Duration = Duration::from_millis(900);
