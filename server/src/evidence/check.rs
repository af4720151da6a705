//! Whether the archive is the one that the sealed intervals, and a checkpoint kept elsewhere, speak of.

use std::collections::BTreeMap;

use anyhow::Context as _;
use ed25519_dalek::VerifyingKey;
use scrinium_protocol::evidence::checkpoint::Checkpoint;
use scrinium_protocol::evidence::interval::{Doubt, Interval, Reached};
use scrinium_protocol::identity::{Epoch, Head, StreamId};
use scrinium_protocol::merkle::MerkleTree;
use scrinium_segment::cipher::Cipher;

use super::chain::{Follower, KEY_FILE};
use super::leaves::{Leaf, Leaves};
use super::stamps::hashed;
use super::{CHECKPOINT_FILE, read_checkpoint};
use crate::catalogue::records::{ChainRecord, LossRecord, StampRecord, UnmetReceipt};
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
    /// What is wrong with the evidence itself: which file, and what.
    pub(crate) problems: Vec<(String, String)>,
    /// What was noticed when the volume was opened.
    pub(crate) losses: Vec<LossRecord>,
    /// What is worth knowing.
    pub(crate) notes: Vec<String>,
    /// The interval whose key must be there: its public key was signed.
    pub(crate) next_key: Option<u64>,
    /// Receipts that agents hold for entries that were not there.
    pub(crate) unmet: Vec<UnmetReceipt>,
}

/// What is known of the evidence from elsewhere on the volume.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// Intervals that were signed, at least.
    pub(crate) signed: u64,
    /// Time-stamp tokens that came.
    pub(crate) stamps: Vec<StampRecord>,
    /// First keys of chains of keys.
    pub(crate) chains: Vec<ChainRecord>,
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

/// Reads every interval, and compares their tree with the checkpoint here and those of `kept`, and the files with what
/// is `expected`.
pub(crate) fn check(
    volume: &Volume,
    key: &VerifyingKey,
    kept: &[String],
    expected: &Expected,
) -> Claims {
    let mut claims = Claims::default();
    let mut problem = |file: &str, problem: String| {
        let file = format!("{EVIDENCE_DIR}/{file}");
        claims.problems.push((file, problem));
    };
    let dir = volume.dir().join(EVIDENCE_DIR);
    let mut signed = Vec::new();
    let own = read_checkpoint(&dir, key);
    match &own {
        Ok(found) => {
            let leaves = found.as_ref().map_or(0, |found| found.leaves);
            if leaves < expected.signed {
                let found = if found.is_some() {
                    "the checkpoint was put back"
                } else {
                    "the checkpoint is missing"
                };
                problem(
                    CHECKPOINT_FILE,
                    format!(
                        "{found}: {} intervals were signed, and it is over {leaves}",
                        expected.signed
                    ),
                );
            }
        }
        Err(error) => problem(CHECKPOINT_FILE, format!("{error:#}")),
    }
    for stamp in &expected.stamps {
        let files = [("tsr", &stamp.token), ("checkpoint", &stamp.checkpoint)];
        for (extension, sha256) in files {
            let name = format!("{}.{extension}", stamp.day);
            match std::fs::read(dir.join(&name)) {
                Ok(bytes) if hashed(&bytes) == *sha256 => {}
                Ok(_) => problem(&name, "it is not the one that was time-stamped".into()),
                Err(error) => problem(&name, format!("it was time-stamped, and now: {error}")),
            }
        }
    }
    let own = own.ok().flatten();
    signed.extend(own.map(|own| ("the checkpoint of this archive", own)));
    for note in kept {
        match Checkpoint::of_note(note, key) {
            Ok(found) => signed.push(("the checkpoint that was kept", found)),
            Err(error) => claims.problems.push((
                "a checkpoint that was kept".into(),
                format!("it is none of this server: {error}"),
            )),
        }
    }
    let origin = format!("scrinium/{}", volume.id());
    let mut tree = MerkleTree::new();
    let mut roots = BTreeMap::new();
    let mut said = Said::default();
    let mut follower = Follower::default();
    let leaves = Leaves::open(&dir, volume.key("evidence"), Cipher::default());
    let read = leaves.and_then(|mut leaves| {
        leaves.read_all(|leaf| {
            let (leaf, interval) = match leaf {
                Leaf::Interval(leaf, interval) => (leaf, interval),
                Leaf::Link(link) => {
                    follower.link(&origin, key, &link);
                    return Ok(());
                }
            };
            follower.leaf(interval.number, leaf);
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
                said.take(&mut claims, &reached, interval.number);
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
        claims
            .problems
            .push((EVIDENCE_DIR.into(), format!("{error:#}")));
    }
    let covered = signed
        .iter()
        .map(|(_, signed)| signed.leaves)
        .max()
        .unwrap_or(0);
    follower.finish(covered);
    let follower_problems = follower.problems.drain(..);
    let follower_problems = follower_problems.map(|problem| (EVIDENCE_DIR.to_owned(), problem));
    claims.problems.extend(follower_problems);
    for chain in &expected.chains {
        if !follower.roots.contains(&(chain.number, chain.public)) {
            let number = chain.number;
            let problem = format!(
                "the chain of keys that begins with interval {number} is not the one that is registered: history was rewritten"
            );
            claims.problems.push((EVIDENCE_DIR.to_owned(), problem));
        }
    }
    claims.problems.extend(
        said.problems
            .drain(..)
            .map(|problem| (EVIDENCE_DIR.to_owned(), problem)),
    );
    // One chain follows the other where the volume was restored, and nowhere else.
    for pair in follower.roots.windows(2) {
        let [(before, _), (number, _)] = pair else {
            continue;
        };
        let chains = expected.chains.iter();
        let mut registered = chains.filter(|chain| chain.number == *before);
        if !registered.any(|chain| chain.ended) {
            let problem = format!(
                "a new chain of keys begins with interval {number}, and the one before had not ended: either {KEY_FILE} was lost, or what was there before was rewritten by who has the server's key"
            );
            claims.problems.push((EVIDENCE_DIR.to_owned(), problem));
        }
    }
    let last = follower.roots.last().map(|(number, _)| *number);
    let ended = expected
        .chains
        .iter()
        .filter(|chain| Some(chain.number) == last);
    if ended.clone().all(|chain| !chain.ended) {
        claims.next_key = follower.next();
    }
    for (number, public) in &follower.roots {
        claims.notes.push(format!(
            "from interval {number} on each is signed with a key of its own that is destroyed then; the first was {}",
            data_encoding::HEXLOWER.encode(public)
        ));
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
        claims.problems.extend(problem.map(|problem| {
            let problem = format!("{what} does not match: {problem}");
            (EVIDENCE_DIR.to_owned(), problem)
        }));
    }
    claims
}

/// What the intervals said of each stream so far.
#[derive(Default)]
struct Said {
    /// The farthest place in the present epoch, and the interval that said so.
    last: BTreeMap<StreamId, (Epoch, u64, u64)>,
    problems: Vec<String>,
}

impl Said {
    /// Takes what interval `number` says of a stream: never another head at a place that was spoken of, nor an earlier
    /// place.
    fn take(&mut self, claims: &mut Claims, reached: &Reached, number: u64) {
        let (stream, next) = (reached.stream, reached.next.0);
        let at = (stream, reached.epoch, next);
        let (head, by) = *claims.heads.entry(at).or_insert((reached.head, number));
        let last = self.last.insert(stream, (reached.epoch, next, number));
        let problem = if head != reached.head {
            format!(
                "intervals {by} and {number} say two different things of stream {stream} before sequence {next}: one was rewritten"
            )
        } else if let Some((epoch, stood, by)) = last
            && epoch == reached.epoch
            && next < stood
        {
            format!(
                "interval {by} says that stream {stream} stood before sequence {stood}, and interval {number}, which is later, that it stood before {next}"
            )
        } else {
            return;
        };
        if self.problems.len() < SAID_MAX {
            self.problems.push(problem);
        }
    }
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

/// Contradictions that are told apart.
const SAID_MAX: usize = 100;
/// Rows of doubted intervals that are told apart.
const DOUBTED_MAX: usize = 100;
/// Smaller differences of clocks are not told.
const TOLD_US_MIN: u64 = 5_000_000;

#[cfg(test)]
mod tests {
    use scrinium_protocol::identity::Sequence;

    use super::*;

    #[test]
    fn intervals_that_contradict_one_another_are_told_and_the_first_word_stands() {
        let reached = |epoch: u8, next: u64, head: u8| Reached {
            stream: StreamId([1; 16]),
            epoch: Epoch([epoch; 16]),
            next: Sequence(next),
            head: Head([head; 32]),
        };
        let (mut said, mut claims) = (Said::default(), Claims::default());
        let right = [(1, 5, 1), (1, 5, 1), (1, 9, 2), (2, 3, 3)];
        for (number, (epoch, next, head)) in (0..).zip(right) {
            said.take(&mut claims, &reached(epoch, next, head), number);
        }
        assert!(said.problems.is_empty(), "{:?}", said.problems);
        said.take(&mut claims, &reached(2, 3, 4), 4);
        assert!(
            said.problems[0].contains("intervals 3 and 4"),
            "{:?}",
            said.problems
        );
        let at = (StreamId([1; 16]), Epoch([2; 16]), 3);
        assert_eq!(claims.heads[&at], (Head([3; 32]), 3));
        said.take(&mut claims, &reached(2, 2, 5), 5);
        assert!(
            said.problems[1].contains("stood before 2"),
            "{:?}",
            said.problems
        );
    }
}
