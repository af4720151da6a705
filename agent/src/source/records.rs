//! Where entries end in the bytes of a file.
//!
//! ```text
//! bytes      … \n |            UTF-16   … 000A at an even offset |
//! multiline  a line that matches begins an entry, all others go on with it
//! ```

use memchr::memchr_iter;
use regex::bytes::Regex;
use scrinium_protocol::entry::EntryFlags;

/// How wide a file's characters are. Only UTF-16 has line ends that a byte does not show.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Encoding {
    /// UTF-8, Latin-1 and everything else in which a line ends with the byte 0A.
    Bytes,
    Utf16Le,
    Utf16Be,
}

impl Encoding {
    /// By the first bytes of a file: a byte order mark, or so many characters of which one half says nothing that no
    /// other text looks like that.
    pub(super) fn of(head: &[u8]) -> Self {
        match head {
            [0xff, 0xfe, ..] => return Self::Utf16Le,
            [0xfe, 0xff, ..] => return Self::Utf16Be,
            _ => {}
        }
        let (units, _) = head.as_chunks();
        let Some(units) = units.get(..EVIDENCE) else {
            return Self::Bytes;
        };
        let count = |is_one: fn(&[u8; 2]) -> bool| units.iter().filter(|unit| is_one(unit)).count();
        let (low, high) = (
            count(|[first, second]| *first != 0 && *second == 0),
            count(|[first, second]| *first == 0 && *second != 0),
        );
        match (low >= EVIDENCE_MIN, high >= EVIDENCE_MIN) {
            (true, _) if high == 0 => Self::Utf16Le,
            (_, true) if low == 0 => Self::Utf16Be,
            _ => Self::Bytes,
        }
    }

    pub(super) fn flags(self) -> EntryFlags {
        match self {
            Self::Bytes => EntryFlags::NONE,
            Self::Utf16Le => EntryFlags::UTF16LE,
            Self::Utf16Be => EntryFlags::UTF16BE,
        }
    }

    /// How much of `len` bytes, which stand at `start` of the file, does not cut a character's unit.
    pub(super) fn whole_units(self, len: usize, start: u64) -> usize {
        let is_cut = self != Self::Bytes && !(start + len as u64).is_multiple_of(2);
        len - usize::from(is_cut)
    }

    /// The ends of the lines in `bytes`, which stand at `offset` of the file.
    fn line_ends(self, bytes: &[u8], offset: u64) -> impl Iterator<Item = usize> {
        memchr_iter(b'\n', bytes).filter_map(move |at| {
            let is_even = (offset + at as u64).is_multiple_of(2);
            match self {
                Self::Bytes => Some(at + 1),
                Self::Utf16Le => (is_even && bytes.get(at + 1) == Some(&0)).then_some(at + 2),
                Self::Utf16Be => {
                    let high = at.checked_sub(1).and_then(|at| bytes.get(at));
                    (!is_even && high == Some(&0)).then_some(at + 1)
                }
            }
        })
    }

    /// The ends of the entries in `bytes`, which stand at `offset` of the file. With `start` an entry
    /// ends before a whole line that matches.
    pub(super) fn ends(self, bytes: &[u8], offset: u64, start: Option<&Regex>) -> Vec<usize> {
        let lines = self.line_ends(bytes, offset);
        let Some(start) = start else {
            return lines.collect();
        };
        let mut ends = Vec::new();
        let mut previous = 0;
        for end in lines {
            let line = bytes.get(previous..end).unwrap_or_default();
            if previous > 0 && start.is_match(line) {
                ends.push(previous);
            }
            previous = end;
        }
        ends
    }
}

/// So many characters at the start of a file show that it is UTF-16 without saying so, when so many of them are of the
/// first 256.
const EVIDENCE: usize = 16;
const EVIDENCE_MIN: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    /// D1: U+0A0A and U+0D0A hold the byte of a line end, and are none.
    #[test]
    fn d1_lines_of_utf_16_end_where_a_character_says_so() {
        let text = "a\u{a0a}b\r\n\u{d0a}c\nd";
        for (encoding, bytes) in [
            (
                Encoding::Utf16Le,
                text.encode_utf16()
                    .flat_map(u16::to_le_bytes)
                    .collect::<Vec<u8>>(),
            ),
            (
                Encoding::Utf16Be,
                text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
            ),
        ] {
            assert_eq!(encoding.ends(&bytes, 0, None), [10, 16], "{encoding:?}");
            // Cut anywhere, at an odd offset too: the ends stay where they are in the file.
            for from in 0..10 {
                let ends = encoding.ends(&bytes[from..], from as u64, None);
                let expected: Vec<usize> = match (encoding, from) {
                    (Encoding::Utf16Be, 9) => vec![7],
                    (Encoding::Utf16Le, 9) => vec![7],
                    _ => vec![10 - from, 16 - from],
                };
                assert_eq!(ends, expected, "{encoding:?} {from}");
            }
        }
    }

    #[test]
    fn the_encoding_shows_in_the_first_bytes() {
        for (head, expected) in [
            (&b"\xff\xfea\0"[..], Encoding::Utf16Le),
            (b"\xfe\xff\0a", Encoding::Utf16Be),
            (&b"a\0".repeat(16), Encoding::Utf16Le),
            (&b"\0a".repeat(16), Encoding::Utf16Be),
            // Nine bytes are no evidence.
            (b"a\0b\0c\0d\0\n", Encoding::Bytes),
            (&b"\0a".repeat(15), Encoding::Bytes),
            (
                &[b"a\0b\0".repeat(5), b"abcdefghijkl".to_vec()].concat(),
                Encoding::Bytes,
            ),
            (b"\0\0\0\0", Encoding::Bytes),
            (b"ab", Encoding::Bytes),
            (b"", Encoding::Bytes),
            (b"\xef\xbb\xbfa", Encoding::Bytes),
        ] {
            assert_eq!(Encoding::of(head), expected, "{head:?}");
        }
    }

    #[test]
    fn an_entry_of_several_lines_ends_before_the_line_that_begins_the_next() {
        let start = Regex::new("^[0-9]{4}-").unwrap();
        let text = b"2026-01 a\n  at x\n  at y\n2026-02 b\n2026-03 c\n  at z\n2026-0";
        let ends = Encoding::Bytes.ends(text, 0, Some(&start));
        assert_eq!(ends, [24, 34]);
    }
}
