//! The streams that moved in one interval, as a leaf of the tree.
//!
//! ```text
//! version 1 (1) | number (8) | from, to: Unix µs (8, 8) | streams (4)
//! | per stream, in the order of their ids: id (16) | epoch (16) | next sequence (8) | head (32)
//! version 2 (1) | the same, with what the wall clock showed: Unix µs (8) behind from and to
//! ```
//!
//! Version 2 is for an interval whose end nobody confirmed: the server's clock had been set, or was not yet believed.
//! Its times are the server's own count, which never goes back.

use crate::codec::{Codec, Reader};
use crate::error::InvalidMessage;
use crate::identity::{Epoch, Head, Sequence, StreamId};

/// One interval; an empty one says that nothing came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Interval {
    /// Counted from 0: the number of the leaf.
    pub number: u64,
    pub from_us: u64,
    pub to_us: u64,
    /// Its end is not confirmed.
    pub doubt: Option<Doubt>,
    /// The streams that moved, in the order of their ids.
    pub streams: Vec<Reached>,
}

/// What is known of an end that nobody confirmed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Doubt {
    /// What the wall clock showed then, Unix µs.
    pub wall_us: u64,
}

/// Where a stream stood at the end of an interval.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reached {
    pub stream: StreamId,
    pub epoch: Epoch,
    /// Sequence of the entry after the last.
    pub next: Sequence,
    pub head: Head,
}

impl Codec for Interval {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(match self.doubt {
            None => VERSION,
            Some(_) => VERSION_DOUBTED,
        });
        for number in [self.number, self.from_us, self.to_us] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        if let Some(doubt) = self.doubt {
            out.extend_from_slice(&doubt.wall_us.to_be_bytes());
        }
        let count = u32::try_from(self.streams.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        for reached in &self.streams {
            reached.stream.encode(out);
            reached.epoch.encode(out);
            out.extend_from_slice(&reached.next.0.to_be_bytes());
            reached.head.encode(out);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        let version = r.u8("interval version")?;
        if ![VERSION, VERSION_DOUBTED].contains(&version) {
            return Err(InvalidMessage::UnknownType(version));
        }
        let (number, from_us, to_us) = (
            r.u64("interval number")?,
            r.u64("begin of the interval")?,
            r.u64("end of the interval")?,
        );
        let doubt = if version == VERSION_DOUBTED {
            let wall_us = r.u64("wall clock of the interval")?;
            Some(Doubt { wall_us })
        } else {
            None
        };
        let count = r.u32("number of streams")?;
        if count > STREAMS_MAX {
            return Err(InvalidMessage::TooLong("number of streams"));
        }
        let mut streams = Vec::new();
        for _ in 0..count {
            streams.push(Reached {
                stream: StreamId::read(r)?,
                epoch: Epoch::read(r)?,
                next: Sequence(r.u64("next sequence")?),
                head: Head::read(r)?,
            });
        }
        Ok(Self {
            number,
            from_us,
            to_us,
            doubt,
            streams,
        })
    }
}

/// Streams of one interval: what a record of a segment holds.
pub const STREAMS_MAX: u32 = 800_000;
const VERSION: u8 = 1;
const VERSION_DOUBTED: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kdf::sha256;

    fn sample() -> Interval {
        Interval {
            number: 7,
            from_us: 1,
            to_us: 2,
            doubt: None,
            streams: vec![Reached {
                stream: StreamId([1; 16]),
                epoch: Epoch([2; 16]),
                next: Sequence(3),
                head: Head([4; 32]),
            }],
        }
    }

    #[test]
    fn an_interval_reads_back_and_its_bytes_are_frozen() {
        let bytes = sample().encoded();
        assert_eq!(bytes.len(), 1 + 24 + 4 + 72);
        assert_eq!(Interval::decode(&bytes, "interval").unwrap(), sample());
        let digest: String = sha256(&[&bytes])
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(
            digest,
            "6fe8cd38ddd4939961d2f6227eb48825618cb0d25f3cdcd885782c2be2cc4343"
        );
        for len in 0..bytes.len() {
            assert!(Interval::decode(&bytes[..len], "interval").is_err());
        }
        let mut many = bytes;
        many[25..29].copy_from_slice(&(STREAMS_MAX + 1).to_be_bytes());
        assert!(Interval::decode(&many, "interval").is_err());
    }

    #[test]
    fn an_interval_whose_end_is_not_confirmed_says_what_the_clock_showed() {
        let doubted = Interval {
            doubt: Some(Doubt { wall_us: 5 }),
            ..sample()
        };
        let (bytes, plain) = (doubted.encoded(), sample().encoded());
        assert_eq!(bytes[..25], [&[2], &plain[1..25]].concat());
        assert_eq!(bytes[25..33], 5_u64.to_be_bytes());
        assert_eq!(bytes[33..], plain[25..]);
        assert_eq!(Interval::decode(&bytes, "interval").unwrap(), doubted);
        for len in 0..bytes.len() {
            assert!(Interval::decode(&bytes[..len], "interval").is_err());
        }
        let mut unknown = bytes;
        unknown[0] = 3;
        assert!(Interval::decode(&unknown, "interval").is_err());
    }
}
