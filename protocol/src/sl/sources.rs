//! How the sources of an agent do, as a keep-alive carries it behind its older fields.
//!
//! ```text
//! number of rows (1) | each row: length (2), then
//!     state (1) | somebody must see to it (1) | files (4) | source, path, cause (2 + n each)
//! | rows that had no room (4)
//! ```
//!
//! A reader skips what follows the fields of a row that it knows, so that a later version may say more. An agent of
//! an earlier version says none of this, and an earlier server reads none of it.

use std::collections::BTreeSet;

use crate::codec::{Reader, put_bytes16, truncated};
use crate::error::InvalidMessage;

/// How a source does, or one of its files or directories.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum SourceState {
    /// Something was read a short time ago.
    Collecting,
    /// All is read, and nothing new was written.
    Quiet,
    /// There is more to read, and the spool takes nothing.
    Waiting,
    /// The glob matches no file, or the file is not there.
    NoMatch,
    /// A directory, a file system or what is no regular file is left out.
    NotWalked,
    /// A symbolic link is not followed.
    RefusedLink,
    /// The machine's own configuration forbids it.
    Denied,
    /// The system does not let it be listed or read.
    Unreadable,
    /// A program or a journal ended, or a place to listen is taken.
    Ended,
    /// A state of a later version.
    Other(u8),
}

impl SourceState {
    const KNOWN: [(Self, &'static str); 9] = [
        (Self::Collecting, "collecting"),
        (Self::Quiet, "quiet"),
        (Self::Waiting, "waiting"),
        (Self::NoMatch, "no-match"),
        (Self::NotWalked, "not-walked"),
        (Self::RefusedLink, "refused-link"),
        (Self::Denied, "denied"),
        (Self::Unreadable, "unreadable"),
        (Self::Ended, "ended"),
    ];

    /// The word of commands, programs and catalogues.
    #[must_use]
    pub fn name(self) -> &'static str {
        let known = Self::KNOWN.iter().find(|(state, _)| *state == self);
        known.map_or("other", |(_, name)| name)
    }

    fn to_byte(self) -> u8 {
        if let Self::Other(byte) = self {
            return byte;
        }
        let place = Self::KNOWN.iter().position(|(state, _)| *state == self);
        let place = place.and_then(|place| u8::try_from(place).ok());
        place.expect("every state but the others is in the table")
    }

    fn from_byte(byte: u8) -> Self {
        let known = Self::KNOWN.get(usize::from(byte));
        known.map_or(Self::Other(byte), |(state, _)| *state)
    }
}

/// One row: a source, or one finding of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SourceReport {
    /// As it is configured: a glob, or what kind of source it is and its name.
    pub source: String,
    pub state: SourceState,
    /// It stays so until somebody does something about it.
    pub needs_person: bool,
    /// Files that are followed; of a finding 0.
    pub files: u32,
    /// What the state is about; empty when it is the source as a whole.
    pub path: String,
    /// Why; empty when the state says all.
    pub cause: String,
}

/// How all sources do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SourceReports {
    /// At most [`SOURCES_MAX`], and [`SOURCES_LEN_MAX`] bytes together. The first row of a source is about itself.
    pub rows: Vec<SourceReport>,
    /// Rows that had no room.
    pub more: u32,
}

impl SourceReports {
    /// Those of `rows` that a keep-alive has room for, in their order: first of all one that needs a person of each
    /// source and state, so that no source's long list leaves no room for another's trouble; then the others that need
    /// a person, then the rest. What has no room is counted.
    #[must_use]
    pub fn bounded(rows: Vec<SourceReport>, more: u32) -> Self {
        let mut said = BTreeSet::new();
        let rank = |row: &SourceReport| match row.needs_person {
            true if said.insert((row.source.clone(), row.state)) => 0,
            true => 1,
            false => 2,
        };
        let ranks: Vec<u8> = rows.iter().map(rank).collect();
        let mut order: Vec<(u8, usize, SourceReport)> = (ranks.into_iter().zip(rows).enumerate())
            .map(|(place, (rank, row))| (rank, place, row))
            .collect();
        order.sort_by_key(|(rank, place, _)| (*rank, *place));
        let (mut len, mut count, total) = (0, 0, order.len());
        order.retain(|(_, _, row)| {
            let with_it = len + row.encoded_len() + ROW_HEADER_LEN;
            let fits = count < SOURCES_MAX && with_it <= SOURCES_LEN_MAX;
            if fits {
                (len, count) = (with_it, count + 1);
            }
            fits
        });
        order.sort_by_key(|(_, place, _)| *place);
        let left_out = u32::try_from(total - order.len()).unwrap_or(u32::MAX);
        Self {
            rows: order.into_iter().map(|(_, _, row)| row).collect(),
            more: more.saturating_add(left_out),
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let Self { rows, more } = Self::bounded(self.rows.clone(), self.more);
        out.push(u8::try_from(rows.len()).expect("at most 64"));
        for row in &rows {
            put_bytes16(out, &row.encoded());
        }
        out.extend_from_slice(&more.to_be_bytes());
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        let count = usize::from(r.u8("number of sources")?);
        if count > SOURCES_MAX {
            return Err(InvalidMessage::TooLong("sources"));
        }
        let mut left = SOURCES_LEN_MAX;
        let mut rows = Vec::with_capacity(count);
        for _ in 0..count {
            let row = r.bytes16(left.saturating_sub(ROW_HEADER_LEN), "source")?;
            left -= row.len() + ROW_HEADER_LEN;
            rows.push(SourceReport::read(&mut Reader::new(row))?);
        }
        let more = r.u32("more sources")?;
        Ok(Self { rows, more })
    }
}

impl SourceReport {
    /// Its texts as they are sent.
    fn texts(&self) -> [&str; 3] {
        [
            truncated(&self.source, SOURCE_LEN_MAX),
            truncated(&self.path, PATH_LEN_MAX),
            truncated(&self.cause, CAUSE_LEN_MAX),
        ]
    }

    fn encoded_len(&self) -> usize {
        let texts = self.texts();
        FIXED_LEN + texts.iter().map(|text| 2 + text.len()).sum::<usize>()
    }

    fn encoded(&self) -> Vec<u8> {
        let mut out = vec![self.state.to_byte(), u8::from(self.needs_person)];
        out.extend_from_slice(&self.files.to_be_bytes());
        for text in self.texts() {
            put_bytes16(&mut out, text.as_bytes());
        }
        out
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        Ok(Self {
            state: SourceState::from_byte(r.u8("source state")?),
            needs_person: r.flag("source needs a person")?,
            files: r.u32("files of a source")?,
            source: r.text16(SOURCE_LEN_MAX, "name of a source")?,
            path: r.text16(PATH_LEN_MAX, "path of a source")?,
            cause: r.text16(CAUSE_LEN_MAX, "cause of a source")?,
        })
    }
}

/// Most rows of one keep-alive.
pub const SOURCES_MAX: usize = 64;
/// Most bytes of all rows together: a keep-alive stays a small record on a narrow link, and ten thousand agents a small
/// part of the server's memory.
pub const SOURCES_LEN_MAX: usize = 8 << 10;
/// State, whether it needs a person, and files of a row, in bytes.
const FIXED_LEN: usize = 6;
/// The length before each row, in bytes.
const ROW_HEADER_LEN: usize = 2;
/// Longest name, path and cause of a row, in bytes; what is longer is cut.
const SOURCE_LEN_MAX: usize = 256;
const PATH_LEN_MAX: usize = 512;
const CAUSE_LEN_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn row(source: &str, state: SourceState, needs_person: bool) -> SourceReport {
        SourceReport {
            source: source.into(),
            state,
            needs_person,
            files: 3,
            path: "/var/log/é".into(),
            cause: "Permission denied".into(),
        }
    }

    #[test]
    fn every_state_reads_back_and_an_unknown_one_is_kept() {
        let states = (0..=u8::MAX).map(SourceState::from_byte);
        let rows: Vec<SourceReport> = states
            .take(SOURCES_MAX)
            .map(|state| row("/var/log/*.log", state, false))
            .collect();
        let reports = SourceReports { rows, more: 7 };
        let mut bytes = Vec::new();
        reports.encode(&mut bytes);
        for cut in 0..bytes.len() {
            assert!(SourceReports::read(&mut Reader::new(&bytes[..cut])).is_err());
        }
        assert_eq!(SourceReports::read(&mut Reader::new(&bytes)), Ok(reports));
        assert_eq!(SourceState::from_byte(9).name(), "other");
    }

    /// A hundred thousand findings are one small message, and those that need somebody are in it.
    #[test]
    fn what_needs_a_person_has_room_first_and_the_rest_is_counted() {
        let long = "x".repeat(10_000);
        let mut rows = vec![row(&long, SourceState::Collecting, false); 1000];
        rows.push(row("bad", SourceState::Unreadable, true));
        let bounded = SourceReports::bounded(rows, 5);
        assert!(bounded.rows.len() < SOURCES_MAX);
        assert_eq!(bounded.rows.last().unwrap().source, "bad");
        assert_eq!(bounded.rows.len() + bounded.more as usize, 1001 + 5);
        let mut bytes = Vec::new();
        bounded.encode(&mut bytes);
        assert!(bytes.len() <= SOURCES_LEN_MAX + 5, "{}", bytes.len());
        let read = SourceReports::read(&mut Reader::new(&bytes)).unwrap();
        assert_eq!(read.more, bounded.more);
        assert_eq!(read.rows.len(), bounded.rows.len());
    }

    /// A source with many long paths in trouble leaves room for another source, and for its own other state.
    #[test]
    fn each_source_and_state_that_needs_a_person_is_said_once_before_any_is_said_twice() {
        let mut rows: Vec<SourceReport> = (0..1000)
            .map(|place| SourceReport {
                path: format!("/{place}{}", "x".repeat(600)),
                ..row("/home/**", SourceState::Unreadable, true)
            })
            .collect();
        rows.push(row("/home/**", SourceState::NotWalked, true));
        rows.push(row("/var/log/app.log", SourceState::Unreadable, true));
        rows.push(row("/var/log/quiet.log", SourceState::Quiet, false));
        let bounded = SourceReports::bounded(rows, 0);
        let said = |source: &str, state| {
            let is = |row: &&SourceReport| row.source == source && row.state == state;
            bounded.rows.iter().filter(is).count()
        };
        assert_eq!(said("/var/log/app.log", SourceState::Unreadable), 1);
        assert_eq!(said("/home/**", SourceState::NotWalked), 1);
        assert!(said("/home/**", SourceState::Unreadable) > 5);
        assert_eq!(bounded.rows.len() + bounded.more as usize, 1003);
        assert!(bounded.rows.iter().all(|row| {
            let encoded = row.encoded();
            encoded.len() == row.encoded_len()
        }));
    }

    /// What a later version adds to a row is skipped; one row or one byte too many is refused.
    #[test]
    fn a_longer_row_is_read_and_too_many_are_refused() {
        let mut bytes = vec![1];
        let mut longer = row("a", SourceState::Quiet, false).encoded();
        longer.extend_from_slice(b"later");
        put_bytes16(&mut bytes, &longer);
        bytes.extend_from_slice(&[0; 4]);
        let read = SourceReports::read(&mut Reader::new(&bytes)).unwrap();
        assert_eq!(read.rows, [row("a", SourceState::Quiet, false)]);
        let too_many = vec![u8::try_from(SOURCES_MAX + 1).unwrap(); 10_000];
        assert!(SourceReports::read(&mut Reader::new(&too_many)).is_err());
        let mut too_long = vec![1];
        put_bytes16(&mut too_long, &vec![0; SOURCES_LEN_MAX + 1]);
        too_long.extend_from_slice(&[0; 4]);
        assert!(SourceReports::read(&mut Reader::new(&too_long)).is_err());
    }
}
