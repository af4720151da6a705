//! Whether the archive is the one that the sealed intervals, and a checkpoint kept elsewhere, speak of.

use std::collections::BTreeMap;

use anyhow::Context as _;
use ed25519_dalek::VerifyingKey;
use scrinium_protocol::evidence::checkpoint::Checkpoint;
use scrinium_protocol::evidence::interval::{Doubt, Interval};
use scrinium_protocol::identity::{Epoch, Head, StreamId};
use scrinium_protocol::merkle::MerkleTree;
use scrinium_segment::cipher::Cipher;

use super::leaves::Leaves;
use super::read_checkpoint;
use crate::present::rfc3339;
use crate::time::duration;
use crate::volume::{EVIDENCE_DIR, Volume};

/// What the intervals say must be in the archive.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// The head of a stream before a sequence, and the interval that says so.
    pub(crate) heads: BTreeMap<(StreamId, Epoch, u64), (Head, u64)>,
    pub(crate) intervals: u64,
    /// Intervals one after the other whose ends were not confirmed.
    pub(crate) doubted: Vec<Doubted>,
    /// What is wrong with the intervals themselves.
    pub(crate) problems: Vec<String>,
}

/// Intervals in a row whose ends nobody had confirmed when they were sealed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Doubted {
    /// Their numbers.
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// From the begin of the first to the end of the last, Unix µs.
    from_us: u64,
    to_us: u64,
    /// The least and the most that the wall clock was ahead of their ends, µs.
    ahead_us: (i64, i64),
}

impl Doubted {
    fn of(interval: &Interval, doubt: Doubt) -> Self {
        let ahead_us = doubt
            .wall_us
            .cast_signed()
            .saturating_sub(interval.to_us.cast_signed());
        Self {
            first: interval.number,
            last: interval.number,
            // The first of all begins nowhere.
            from_us: match interval.number {
                0 => interval.to_us,
                _ => interval.from_us,
            },
            to_us: interval.to_us,
            ahead_us: (ahead_us, ahead_us),
        }
    }

    fn join(&mut self, next: Self) {
        self.last = next.last;
        self.to_us = next.to_us;
        self.ahead_us.0 = self.ahead_us.0.min(next.ahead_us.0);
        self.ahead_us.1 = self.ahead_us.1.max(next.ahead_us.1);
    }

    /// What it means, in a sentence.
    pub(crate) fn sentence(&self) -> String {
        let (least, most) = self.ahead_us;
        let mut shown = Vec::new();
        if least.unsigned_abs() >= TOLD_US_MIN && least < 0 {
            shown.push(format!("{} behind", duration(least.unsigned_abs())));
        }
        if most.unsigned_abs() >= TOLD_US_MIN && most > 0 {
            shown.push(format!("{} ahead", duration(most.unsigned_abs())));
        }
        let shown = if shown.is_empty() {
            "it showed the same".to_owned()
        } else {
            format!("it stood up to {}", shown.join(" and "))
        };
        format!(
            "intervals {} to {}, {} to {}, carry the server's own count of time: its clock was not confirmed then, and {shown}",
            self.first,
            self.last,
            rfc3339(self.from_us),
            rfc3339(self.to_us)
        )
    }
}

/// Reads every interval, and compares their tree with the checkpoint here and those of `kept`.
pub(crate) fn check(volume: &Volume, key: &VerifyingKey, kept: &[String]) -> Claims {
    let mut claims = Claims::default();
    let dir = volume.dir().join(EVIDENCE_DIR);
    let mut signed = Vec::new();
    match read_checkpoint(&dir, key) {
        Ok(found) => signed.extend(found.map(|found| ("the checkpoint of this archive", found))),
        Err(error) => claims.problems.push(format!("{error:#}")),
    }
    for note in kept {
        match Checkpoint::of_note(note, key) {
            Ok(found) => signed.push(("the checkpoint that was kept", found)),
            Err(error) => claims
                .problems
                .push(format!("the checkpoint that was kept: {error}")),
        }
    }
    let origin = format!("scrinium/{}", volume.id());
    let mut tree = MerkleTree::new();
    let mut roots = BTreeMap::new();
    let leaves = Leaves::open(&dir, volume.key("evidence"), Cipher::default());
    let read = leaves.and_then(|mut leaves| {
        leaves.read_all(|leaf, interval| {
            anyhow::ensure!(
                interval.number == claims.intervals,
                "interval {} is missing",
                claims.intervals
            );
            tree.push(&[leaf]);
            claims.intervals += 1;
            if let Some(doubt) = interval.doubt {
                claims.doubt(Doubted::of(&interval, doubt));
            }
            for reached in interval.streams {
                let at = (reached.stream, reached.epoch, reached.next.0);
                claims.heads.insert(at, (reached.head, interval.number));
            }
            if signed
                .iter()
                .any(|(_, signed)| signed.leaves == claims.intervals)
            {
                roots.insert(claims.intervals, tree.root());
            }
            Ok(())
        })
    });
    if let Err(error) = read.context("the sealed intervals are not whole") {
        claims.problems.push(format!("{error:#}"));
    }
    for (what, signed) in signed {
        let problem = match roots.get(&signed.leaves) {
            _ if signed.origin != origin => {
                Some(format!("it is of another archive, {}", signed.origin))
            }
            _ if signed.leaves == 0 => None,
            None => Some(format!(
                "it was signed over {} intervals, and {} are there: the rest was taken away",
                signed.leaves, claims.intervals
            )),
            Some(root) if *root != signed.root => Some(format!(
                "the {} intervals it was signed over are not those that are there: history was rewritten",
                signed.leaves
            )),
            Some(_) => None,
        };
        claims
            .problems
            .extend(problem.map(|problem| format!("{what} does not match: {problem}")));
    }
    claims
}

impl Claims {
    fn doubt(&mut self, next: Doubted) {
        let is_full = self.doubted.len() >= DOUBTED_MAX;
        match self.doubted.last_mut() {
            // Of very many rows the last one stretches over what is between.
            Some(last) if is_full || last.last + 1 == next.first => last.join(next),
            _ => self.doubted.push(next),
        }
    }
}

/// Rows of doubted intervals that are told apart.
const DOUBTED_MAX: usize = 100;
/// Smaller differences of clocks are not told.
const TOLD_US_MIN: u64 = 5_000_000;
