//! The streams that moved in one interval, as a leaf of the tree.
//!
//! ```text
//! version 1 (1) | number (8) | from, to: Unix µs (8, 8) | streams (4)
//! | per stream, in the order of their ids: id (16) | epoch (16) | next sequence (8) | head (32)
//! ```

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
    /// The streams that moved, in the order of their ids.
    pub streams: Vec<Reached>,
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
        out.push(VERSION);
        for number in [self.number, self.from_us, self.to_us] {
            out.extend_from_slice(&number.to_be_bytes());
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
        if version != VERSION {
            return Err(InvalidMessage::UnknownType(version));
        }
        let (number, from_us, to_us) = (
            r.u64("interval number")?,
            r.u64("begin of the interval")?,
            r.u64("end of the interval")?,
        );
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
            streams,
        })
    }
}

/// Streams of one interval: what a record of a segment holds.
pub const STREAMS_MAX: u32 = 800_000;
const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kdf::sha256;

    fn sample() -> Interval {
        Interval {
            number: 7,
            from_us: 1,
            to_us: 2,
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
}
