//! Whether the archive is the one that the sealed intervals, and a checkpoint kept elsewhere, speak of.

use std::collections::BTreeMap;

use anyhow::Context as _;
use ed25519_dalek::VerifyingKey;
use scrinium_protocol::evidence::checkpoint::Checkpoint;
use scrinium_protocol::identity::{Epoch, Head, StreamId};
use scrinium_protocol::merkle::MerkleTree;
use scrinium_segment::cipher::Cipher;

use super::leaves::Leaves;
use super::read_checkpoint;
use crate::volume::{EVIDENCE_DIR, Volume};

/// What the intervals say must be in the archive.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// The head of a stream before a sequence, and the interval that says so.
    pub(crate) heads: BTreeMap<(StreamId, Epoch, u64), (Head, u64)>,
    pub(crate) intervals: u64,
    /// What is wrong with the intervals themselves.
    pub(crate) problems: Vec<String>,
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
