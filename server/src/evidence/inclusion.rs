//! What was sealed and signed about stretches of streams, for an export.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use ed25519_dalek::VerifyingKey;
use scrinium_protocol::evidence::checkpoint::Checkpoint;
use scrinium_protocol::evidence::interval::Reached;
use scrinium_protocol::identity::{Epoch, StreamId};
use scrinium_protocol::merkle::{AuditPaths, leaf_hash};
use scrinium_segment::cipher::Cipher;
use tracing::warn;

use super::leaves::{Leaf, Leaves};
use super::read_note;
use crate::volume::{EVIDENCE_DIR, Volume};

/// Consecutive entries of one epoch of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stretch {
    pub(crate) stream: StreamId,
    pub(crate) epoch: Epoch,
    /// Sequences, end excluded.
    pub(crate) sequences: (u64, u64),
}

/// An interval that says where a stream stood.
#[derive(Clone, Debug)]
pub(crate) struct Seal {
    /// The interval's number.
    pub(crate) number: u64,
    /// As it was sealed.
    pub(crate) leaf: Arc<[u8]>,
    pub(crate) reached: Reached,
}

/// What was sealed about one stretch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seals {
    /// By the first interval at its end or behind it.
    pub(crate) all: Option<Seal>,
    /// By the last interval inside it.
    pub(crate) part: Option<Seal>,
    /// By the last interval inside it that is under a token.
    pub(crate) stamped: Option<Seal>,
}

/// A checkpoint that somebody else put a time on (RFC 3161).
pub(crate) struct Stamp {
    /// The day it was asked for, which names its files.
    pub(crate) day: String,
    pub(crate) note: String,
    pub(crate) token: Vec<u8>,
    leaves: u64,
}

/// What was sealed, and the way from there to what was signed.
pub(crate) struct Inclusions {
    /// The last checkpoint; `None` while nothing was signed.
    pub(crate) note: Option<String>,
    hashes: Vec<[u8; 32]>,
    paths: AuditPaths,
    /// Oldest first.
    stamps: Vec<Stamp>,
}

impl Inclusions {
    /// The hashes from an interval to the root that the last checkpoint signs.
    pub(crate) fn path(&self, number: u64) -> Result<Vec<[u8; 32]>> {
        let path = usize::try_from(number)
            .ok()
            .and_then(|number| self.paths.path(number));
        path.context("the interval is among those that were signed")
    }

    /// The first stamped checkpoint over an interval, and the hashes from there to its root.
    pub(crate) fn stamped(&self, number: u64) -> Option<(&Stamp, Vec<[u8; 32]>)> {
        let stamp = self.stamps.iter().find(|stamp| number < stamp.leaves)?;
        let leaves = self.hashes.get(..usize::try_from(stamp.leaves).ok()?)?;
        let path = AuditPaths::new(leaves.to_vec()).path(usize::try_from(number).ok()?)?;
        Some((stamp, path))
    }
}

/// What was sealed and signed until now about each of these stretches, in their order.
///
/// # Errors
/// The intervals cannot be read back, or the checkpoint is not the server's.
pub(crate) fn inclusions(
    volume: &Volume,
    key: &VerifyingKey,
    stretches: &[Stretch],
) -> Result<(Vec<Seals>, Inclusions)> {
    let dir = volume.dir().join(EVIDENCE_DIR);
    let mut seals = vec![Seals::default(); stretches.len()];
    let mut hashes = Vec::new();
    let (note, signed) = read_note(&dir, key)?.unzip();
    let signed_leaves = signed.map_or(0, |checkpoint| checkpoint.leaves);
    let mut of_stream: BTreeMap<StreamId, Vec<usize>> = BTreeMap::new();
    for (at, stretch) in stretches.iter().enumerate() {
        of_stream.entry(stretch.stream).or_default().push(at);
    }
    let stamps = stamps(&dir, key)?;
    let stamped_leaves = stamps.last().map_or(0, |stamp| stamp.leaves);
    let mut leaves = Leaves::open(&dir, volume.key("evidence"), Cipher::default())?;
    leaves.read_all(|leaf| {
        let Leaf::Interval(leaf, interval) = leaf else {
            return Ok(());
        };
        if hashes.len() as u64 == signed_leaves {
            return Ok(()); // sealed since
        }
        hashes.push(leaf_hash(&[leaf]));
        let mut own: Option<Arc<[u8]>> = None;
        for reached in interval.streams {
            for &at in of_stream.get(&reached.stream).into_iter().flatten() {
                let (Some(stretch), Some(seals)) = (stretches.get(at), seals.get_mut(at)) else {
                    continue;
                };
                let leaf = || own.get_or_insert_with(|| Arc::from(leaf)).clone();
                let is_stamped = interval.number < stamped_leaves;
                seals.consider(stretch, interval.number, reached, is_stamped, leaf);
            }
        }
        Ok(())
    })?;
    let paths = AuditPaths::new(hashes.clone());
    let inclusions = Inclusions {
        note,
        hashes,
        paths,
        stamps,
    };
    Ok((seals, inclusions))
}

impl Seals {
    /// Of two stretches that become one, the seals: these, and where there are none those of the first.
    pub(crate) fn after(self, before: Self) -> Self {
        Self {
            all: self.all,
            part: self.part.or(before.all).or(before.part),
            stamped: self.stamped.or(before.stamped),
        }
    }

    /// Takes note of an interval, if it says more of the stretch than those before.
    fn consider(
        &mut self,
        stretch: &Stretch,
        number: u64,
        reached: Reached,
        is_stamped: bool,
        leaf: impl FnOnce() -> Arc<[u8]>,
    ) {
        let (next, (first, end)) = (reached.next.0, stretch.sequences);
        if reached.epoch != stretch.epoch || next <= first || self.all.is_some() {
            return;
        }
        let seal = Some(Seal {
            number,
            leaf: leaf(),
            reached,
        });
        if next >= end {
            self.all = seal;
            return;
        }
        if is_stamped {
            self.stamped.clone_from(&seal);
        }
        self.part = seal;
    }
}

/// Every checkpoint with a token, oldest first. One that is not as it was left proves nothing and is left out.
fn stamps(dir: &Path, key: &VerifyingKey) -> Result<Vec<Stamp>> {
    let mut stamps = Vec::new();
    for file in std::fs::read_dir(dir)? {
        let path = file?.path();
        if path.extension().is_none_or(|extension| extension != "tsr") {
            continue;
        }
        match stamp(&path, key) {
            Ok(stamp) => stamps.push(stamp),
            Err(error) => {
                let (path, error) = (path.display(), format!("{error:#}"));
                warn!(%path, error, "a time-stamp token cannot be used");
            }
        }
    }
    stamps.sort_by_key(|stamp| stamp.leaves);
    Ok(stamps)
}

fn stamp(path: &Path, key: &VerifyingKey) -> Result<Stamp> {
    let day = path.file_stem().and_then(|stem| stem.to_str());
    let note = std::fs::read_to_string(path.with_extension("checkpoint"))?;
    let checkpoint = Checkpoint::of_note(&note, key)?;
    Ok(Stamp {
        day: day.context("its name is no day")?.to_owned(),
        note,
        token: std::fs::read(path)?,
        leaves: checkpoint.leaves,
    })
}
