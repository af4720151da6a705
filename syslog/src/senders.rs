//! Which senders of syslog get a stream of their own. The address of a datagram is whatever its sender writes there,
//! and one IPv6 /64 has more addresses than anybody can remember: new senders are counted.
//!
//! ```text
//! Received ─▶ [Senders] ─┬─▶ the stream of its sender
//!                        └─▶ the stream of unknown senders: its address, then its bytes as they came
//! ```
//!
//! Nothing is dropped: past the limits an entry goes into the stream [`UNKNOWN_SENDERS`], as two linked pieces. The
//! first one is `from ADDRESS: `, the second has the sender's bytes, unchanged and as an entry of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use scrinium_protocol::entry::EntryFlags;
use scrinium_protocol::identity::StreamKind;

use tracing::warn;

use crate::Received;

/// How many senders get a stream of their own.
#[derive(Clone, Copy, Debug)]
pub struct SenderLimits {
    /// That were not seen before, in one day.
    pub new_per_day: usize,
    /// In all.
    pub max: usize,
}

/// What becomes of an entry.
#[derive(Debug)]
pub enum Placed {
    /// It goes into the stream it names; before it, what ends the line of another connection.
    Own {
        line_end: Option<Received>,
        entry: Received,
    },
    /// These go into the stream of unknown senders, one after the other in one batch.
    Unknown(Vec<Received>),
}

/// Counts senders.
#[derive(Debug)]
pub struct Senders {
    limits: SenderLimits,
    known: usize,
    /// Days since 1970, of the last new sender.
    day: u64,
    new_today: usize,
    /// Connections of unknown senders whose last piece was not the end of a message.
    going_on: BTreeSet<(String, u64)>,
    open: OpenLines,
}

/// Which connection's line a sender's stream is in the middle of. A line too long for one entry is several: an entry of
/// another connection between them would be read as a part of it.
#[derive(Debug, Default)]
struct OpenLines {
    of_senders: BTreeMap<String, u64>,
    /// Lines that were ended early since it was said, and when that was, Unix µs.
    ended: u64,
    said_us: u64,
}

impl OpenLines {
    /// What ends the line that is open where an entry comes, if that is another connection's. The rest of that line
    /// becomes a line of its own. Takes note of the line that the entry leaves open.
    fn before(&mut self, entry: &mut Received) -> Option<Received> {
        if entry.kind != StreamKind::SyslogTcp {
            return None;
        }
        let open = self.of_senders.get(&entry.name).copied();
        let is_others = open.is_some_and(|connection| connection != entry.connection);
        let line_end = is_others.then(|| Received {
            flags: EntryFlags::NONE,
            bytes: b"\n".to_vec(),
            ..entry.clone()
        });
        if is_others {
            self.said(entry.time_us);
        }
        if entry.flags.is_fragment() && (open.is_some() || self.of_senders.len() < OPEN_MAX) {
            self.of_senders.insert(entry.name.clone(), entry.connection);
        } else {
            self.of_senders.remove(&entry.name);
            if entry.flags.is_fragment() {
                // Nobody could tell any more whose line goes on: it ends here. A piece leaves room for that.
                entry.flags = EntryFlags::NONE;
                entry.bytes.push(b'\n');
                self.said(entry.time_us);
            }
        }
        line_end
    }

    /// A line was ended early: said at once, then once a minute.
    fn said(&mut self, now_us: u64) {
        self.ended += 1;
        if now_us.abs_diff(self.said_us) >= SAY_EVERY_US {
            let lines = core::mem::take(&mut self.ended);
            self.said_us = now_us;
            warn!(
                lines,
                "long lines of syslog senders were ended where another connection of the same sender spoke; the rest of each is a line of its own, and nothing is lost"
            );
        }
    }
}

impl Senders {
    /// `known` senders have streams already.
    #[must_use]
    pub fn new(limits: SenderLimits, known: usize) -> Self {
        Self {
            limits,
            known,
            day: 0,
            new_today: 0,
            going_on: BTreeSet::new(),
            open: OpenLines::default(),
        }
    }

    /// Says where an entry goes; `has_stream` whether its sender has a stream.
    pub fn place(
        &mut self,
        received: Received,
        has_stream: impl FnOnce(&Received) -> bool,
    ) -> Placed {
        if !is_sender(received.kind, &received.name) || has_stream(&received) {
            return self.own(received);
        }
        let day = received.time_us / DAY_US;
        if day > self.day {
            (self.day, self.new_today) = (day, 0);
        }
        if self.new_today < self.limits.new_per_day && self.known < self.limits.max {
            self.new_today += 1;
            self.known += 1;
            return self.own(received);
        }
        Placed::Unknown(self.with_address(received))
    }

    fn own(&mut self, mut entry: Received) -> Placed {
        let line_end = self.open.before(&mut entry);
        Placed::Own { line_end, entry }
    }

    /// Adds the sender's address, and a line feed to a piece that has none.
    fn with_address(&mut self, received: Received) -> Vec<Received> {
        let line = (received.name.clone(), received.connection);
        let going_on = match self.going_on.remove(&line) {
            true => ", going on",
            false => "",
        };
        let head = format!("from {}{going_on}: ", received.name);
        let is_piece = received.flags.is_fragment();
        if is_piece {
            if self.going_on.len() >= GOING_ON_MAX {
                self.going_on.clear();
            }
            self.going_on.insert(line);
        }
        let entry = |bytes: Vec<u8>, flags: EntryFlags| Received {
            kind: received.kind,
            name: UNKNOWN_SENDERS.to_owned(),
            connection: received.connection,
            time_us: received.time_us,
            flags,
            bytes,
        };
        let mut entries = vec![
            entry(head.into_bytes(), EntryFlags::FRAGMENT),
            entry(received.bytes, received.flags),
        ];
        if is_piece {
            entries.push(entry(b"\n".to_vec(), EntryFlags::NONE));
        }
        entries
    }
}

/// Whether a stream is that of a sender's address: listeners have streams too.
#[must_use]
pub fn is_sender(kind: StreamKind, name: &str) -> bool {
    matches!(kind, StreamKind::SyslogUdp | StreamKind::SyslogTcp) && name.parse::<IpAddr>().is_ok()
}

/// The sender and the message of a line in the stream of unknown senders.
#[must_use]
pub fn split_sender(line: &[u8]) -> Option<(&str, &[u8])> {
    let rest = line.strip_prefix(b"from ")?;
    let end = rest
        .windows(2)
        .take(HEAD_LEN_MAX)
        .position(|pair| pair == b": ")?;
    let (head, message) = rest.split_at_checked(end)?;
    let head = str::from_utf8(head).ok()?;
    let address = head.strip_suffix(", going on").unwrap_or(head);
    address.parse::<IpAddr>().ok()?;
    Some((address, message.get(2..)?))
}

/// The stream of those who have none of their own; one for each transport.
pub const UNKNOWN_SENDERS: &str = "unknown senders";
const DAY_US: u64 = 86_400_000_000;
/// Unknown senders in the middle of a message that are remembered; past them a rest is not marked as one.
const GOING_ON_MAX: usize = 4096;
/// Senders of which a line is open: more than connections at once, as those that went away in a line count too. 1 MB.
const OPEN_MAX: usize = 10_000;
/// How often it is said that lines were ended early, µs.
const SAY_EVERY_US: u64 = 60_000_000;
/// The longest address, and what may stand behind it.
const HEAD_LEN_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_the_limit_of_a_day_new_senders_share_a_stream_and_keep_their_address_and_bytes() {
        let mut senders = senders(2, 100);
        let mut own = 0;
        let mut unknown = Vec::new();
        for n in 0..4 {
            match senders.place(datagram(n, b"<13>hello\n"), |_| false) {
                Placed::Own { .. } => own += 1,
                Placed::Unknown(entries) => unknown.push(entries),
            }
        }
        assert_eq!((own, unknown.len()), (2, 2));
        let [head, message] = unknown[0].as_slice() else {
            panic!("{unknown:?}");
        };
        assert_eq!(
            (&*head.bytes, head.flags),
            (&b"from 192.0.2.2: "[..], EntryFlags::FRAGMENT)
        );
        assert_eq!(
            (&*message.bytes, message.flags),
            (&b"<13>hello\n"[..], EntryFlags::NONE)
        );
        assert_eq!(message.name, UNKNOWN_SENDERS);
        let line = [&*head.bytes, &*message.bytes].concat();
        assert_eq!(
            split_sender(&line),
            Some(("192.0.2.2", &b"<13>hello\n"[..]))
        );
        // Who has a stream keeps it, and the next day others get theirs.
        assert!(matches!(
            senders.place(datagram(9, b"x\n"), |_| true),
            Placed::Own { .. }
        ));
        let tomorrow = Received {
            time_us: DAY_US * 2,
            ..datagram(10, b"x\n")
        };
        let placed = senders.place(tomorrow, |_| false);
        assert!(matches!(placed, Placed::Own { .. }));
    }

    #[test]
    fn past_the_limit_in_all_no_day_gives_new_streams() {
        let mut senders = senders(10, 3);
        let own = (0..20_u8).filter(|&n| {
            let received = Received {
                time_us: DAY_US * u64::from(n),
                ..datagram(n, b"x\n")
            };
            matches!(senders.place(received, |_| false), Placed::Own { .. })
        });
        assert_eq!(own.count(), 3);
    }

    #[test]
    fn a_long_message_of_an_unknown_sender_is_lines_that_say_so() {
        let mut senders = senders(0, 0);
        let piece = Received {
            flags: EntryFlags::FRAGMENT,
            ..datagram(1, b"first half")
        };
        let mut text = Vec::new();
        for received in [piece, datagram(1, b"rest\n")] {
            let Placed::Unknown(entries) = senders.place(received, |_| false) else {
                panic!("it has no stream");
            };
            assert!(!entries.last().unwrap().flags.is_fragment());
            text.extend(entries.into_iter().flat_map(|entry| entry.bytes));
        }
        let expected = b"from 192.0.2.1: first half\nfrom 192.0.2.1, going on: rest\n";
        assert_eq!(text, expected);
        let (_, rest) = text.split_at(27);
        assert_eq!(split_sender(rest), Some(("192.0.2.1", &b"rest\n"[..])));
    }

    #[test]
    fn listeners_and_what_only_looks_like_a_sender_are_told_apart() {
        let mut senders = senders(0, 0);
        let own = Received {
            name: "port 514".into(),
            ..datagram(1, b"gap\n")
        };
        let placed = senders.place(own, |_| false);
        assert!(matches!(placed, Placed::Own { .. }));
        assert_eq!(split_sender(b"from here: x"), None);
        assert_eq!(split_sender(b"from 192.0.2.1 and on"), None);
        let v6 = split_sender(b"from 2001:db8::1: x");
        assert_eq!(v6, Some(("2001:db8::1", &b"x"[..])));
    }

    #[test]
    fn no_entry_goes_on_with_the_line_of_another_connection() {
        let mut senders = senders(20, 20);
        let mut text = Vec::new();
        // (connection, text, whether its line goes on)
        for (connection, bytes, goes_on) in [
            (1, "one ", true),
            (1, "goes on ", true),
            (2, "two ", true),
            (1, "rest of one\n", false),
            (3, "three\n", false),
            (2, "rest of two\n", false),
            (4, "four is gone in the middle", true),
            (5, "five\n", false),
        ] {
            let piece = stream_piece("192.0.2.1", connection, bytes, goes_on);
            let Placed::Own { line_end, entry } = senders.place(piece, |_| true) else {
                panic!("it has a stream");
            };
            text.extend(line_end.into_iter().flat_map(|end| end.bytes));
            text.extend(entry.bytes);
        }
        let expected = "one goes on \ntwo \nrest of one\nthree\nrest of two\nfour is gone in the middle\nfive\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn open_lines_are_bounded_and_past_the_bound_a_piece_is_a_line() {
        let mut senders = senders(0, 0);
        let mut whole = 0;
        for n in 0..OPEN_MAX + 10 {
            let name = format!("10.0.{}.{}", n / 256, n % 256);
            let piece = stream_piece(&name, 1 + n as u64, "begin", true);
            let Placed::Own { line_end, entry } = senders.place(piece, |_| true) else {
                panic!("it has a stream");
            };
            assert!(line_end.is_none());
            whole += usize::from(!entry.flags.is_fragment() && entry.bytes == b"begin\n");
        }
        assert_eq!(whole, 10);
        assert_eq!(senders.open.of_senders.len(), OPEN_MAX);
    }

    fn stream_piece(name: &str, connection: u64, text: &str, goes_on: bool) -> Received {
        Received {
            kind: StreamKind::SyslogTcp,
            name: name.into(),
            connection,
            flags: match goes_on {
                true => EntryFlags::FRAGMENT,
                false => EntryFlags::NONE,
            },
            ..datagram(1, text.as_bytes())
        }
    }

    fn senders(new_per_day: usize, max: usize) -> Senders {
        Senders::new(SenderLimits { new_per_day, max }, 0)
    }

    fn datagram(n: u8, bytes: &[u8]) -> Received {
        Received {
            kind: StreamKind::SyslogUdp,
            name: format!("192.0.2.{n}"),
            connection: 0,
            time_us: 1,
            flags: EntryFlags::NONE,
            bytes: bytes.to_vec(),
        }
    }
}
