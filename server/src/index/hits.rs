//! What a search found, newest first, and never more of it than was asked for.

use std::collections::BTreeMap;

use scrinium_protocol::identity::{Epoch, StreamId};

/// One line found.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    pub(crate) place: Place,
    /// When it was collected as its agent says, where that is after its receipt, Unix µs.
    pub(crate) claimed_us: Option<u64>,
    /// When the server received it, Unix µs.
    pub(crate) received_us: u64,
    pub(crate) bytes: Vec<u8>,
    /// It is a collector's statement that something is missing.
    pub(crate) is_gap: bool,
}

/// Where a line stands among all: by time, and lines of one stream collected at once in their order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Place {
    /// See [`crate::archive::block::order_us`].
    pub(crate) time_us: u64,
    pub(crate) stream: StreamId,
    /// Sequence of its (first) entry.
    pub(crate) sequence: u64,
    pub(crate) epoch: Epoch,
}

/// The newest lines of those that were offered: as many as both bounds allow, and none that is older than one that
/// was left out.
#[derive(Debug)]
pub(crate) struct Newest {
    hits: BTreeMap<Place, Hit>,
    bytes: usize,
    lines_max: usize,
    bytes_max: usize,
    /// The newest line that was left out.
    left_out: Option<Place>,
    /// Another one is full of lines that are no older than this.
    full_elsewhere: Option<Place>,
}

impl Newest {
    pub(crate) fn new(lines_max: usize, bytes_max: usize) -> Self {
        Self {
            hits: BTreeMap::new(),
            bytes: 0,
            lines_max,
            bytes_max,
            left_out: None,
            full_elsewhere: None,
        }
    }

    /// As much again, of a thread of its own: what this one would refuse, that one does too.
    pub(crate) fn beside(&self) -> Self {
        Self {
            full_elsewhere: self.floor(),
            ..Self::new(self.lines_max, self.bytes_max)
        }
    }

    /// Nothing that is older than this is taken.
    pub(crate) fn floor(&self) -> Option<Place> {
        let oldest = self.hits.first_key_value().map(|(place, _)| *place);
        let full = oldest.filter(|_| self.hits.len() >= self.lines_max);
        full.max(self.left_out).max(self.full_elsewhere)
    }

    /// Takes the line of a place, if it is one of the newest.
    pub(crate) fn offer(&mut self, place: Place, hit: impl FnOnce() -> Hit) {
        if self.lines_max == 0 {
            return;
        }
        if self.floor().is_some_and(|floor| place <= floor) {
            self.left_out = self.left_out.max(Some(place));
            return;
        }
        let hit = hit();
        self.bytes += cost(&hit);
        if let Some(before) = self.hits.insert(place, hit) {
            self.bytes -= cost(&before);
        }
        self.trim();
    }

    /// Takes what another one has.
    pub(crate) fn merge(&mut self, other: Self) {
        self.left_out = self.left_out.max(other.left_out);
        for (place, hit) in other.hits {
            self.offer(place, || hit);
        }
        self.trim();
    }

    /// The lines, newest first, and whether one was left out.
    pub(crate) fn finish(self) -> (Vec<Hit>, bool) {
        let left_out = self.left_out.is_some();
        (self.hits.into_values().rev().collect(), left_out)
    }

    fn trim(&mut self) {
        while let Some((&oldest, _)) = self.hits.first_key_value() {
            // One line is taken however long it is: else nothing would follow it.
            let is_over = self.hits.len() > self.lines_max
                || self.bytes > self.bytes_max && self.hits.len() > 1;
            if !is_over && self.left_out.is_none_or(|left_out| oldest > left_out) {
                return;
            }
            self.left_out = self.left_out.max(Some(oldest));
            if let Some((_, gone)) = self.hits.pop_first() {
                self.bytes -= cost(&gone);
            }
        }
    }
}

/// What a line takes of memory.
fn cost(hit: &Hit) -> usize {
    hit.bytes.capacity() + HIT_OVERHEAD
}

/// Of each line besides its text, its place in the tree included.
const HIT_OVERHEAD: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_none_that_is_older_than_one_left_out() {
        let place = |time_us: u64| Place {
            time_us,
            stream: StreamId([1; 16]),
            sequence: time_us,
            epoch: Epoch([2; 16]),
        };
        // Of any lengths, in any order, by one thread or three: what is kept is what stands first in the whole order.
        let mut state = 7_u64;
        let mut random = move |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..300 {
            let lines: Vec<(u64, usize)> = (0..random(40))
                .map(|number| {
                    (
                        random(50) * 100 + number,
                        usize::try_from(random(2000)).unwrap(),
                    )
                })
                .collect();
            let (lines_max, bytes_max) = (usize::try_from(1 + random(20)).unwrap(), 4000);
            let mut kept = Newest::new(lines_max, bytes_max);
            for part in lines.chunks(15) {
                let mut own = kept.beside();
                for &(time_us, len) in part {
                    let hit = || Hit {
                        place: place(time_us),
                        claimed_us: None,
                        received_us: 0,
                        bytes: vec![b'x'; len],
                        is_gap: false,
                    };
                    own.offer(place(time_us), hit);
                }
                kept.merge(own);
            }
            let (hits, left_out) = kept.finish();
            let times: Vec<u64> = hits.iter().map(|hit| hit.place.time_us).collect();
            let mut all: Vec<u64> = lines.iter().map(|(time_us, _)| *time_us).collect();
            all.sort_unstable_by_key(|&time_us| core::cmp::Reverse(time_us));
            assert_eq!(times, all[..times.len()]);
            assert_eq!(left_out, times.len() < all.len());
            let bytes: usize = hits.iter().map(cost).sum();
            assert!(hits.len() == 1 || bytes <= bytes_max);
            assert!(times.len() <= lines_max && (lines.is_empty() || !times.is_empty()));
        }
    }
}
