//! The statement of an export: where the stream stood in an interval, and that this interval is part of what a
//! checkpoint signs.

use ed25519_dalek::VerifyingKey;

use super::checkpoint::{Checkpoint, InvalidCheckpoint};
use super::interval::{Doubt, Interval, Reached};
use crate::codec::Codec as _;
use crate::error::InvalidMessage;
use crate::identity::StreamId;
use crate::merkle::{leaf_hash, root_of_path};

/// What is to be believed about a stream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Inclusion {
    /// The encoded interval.
    pub leaf: Vec<u8>,
    /// The hashes from it to the root.
    pub path: Vec<[u8; 32]>,
    /// The signed note.
    pub note: String,
}

/// What it proves.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Included {
    pub reached: Reached,
    pub interval: u64,
    /// End of the interval, Unix µs.
    pub to_us: u64,
    /// That end was not confirmed when the interval was sealed.
    pub doubt: Option<Doubt>,
    pub checkpoint: Checkpoint,
}

/// An interval that is part of what a checkpoint signs.
#[derive(Clone, Debug)]
pub struct Opened {
    pub interval: Interval,
    pub checkpoint: Checkpoint,
}

/// Why it proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum InvalidInclusion {
    #[error("the checkpoint: {0}")]
    Checkpoint(#[from] InvalidCheckpoint),
    #[error("the interval: {0}")]
    Interval(#[from] InvalidMessage),
    #[error("the interval is not part of what the checkpoint signs")]
    NotIncluded,
    #[error("the interval says nothing of this stream")]
    OtherStream,
}

impl Inclusion {
    /// Checks that the server of `key` sealed where `stream` stood.
    ///
    /// # Errors
    /// Anything of it is not as it must be.
    pub fn check(
        &self,
        stream: StreamId,
        key: &VerifyingKey,
    ) -> Result<Included, InvalidInclusion> {
        let Opened {
            interval,
            checkpoint,
        } = self.open(key)?;
        let mut streams = interval.streams.iter();
        let found = streams.find(|reached| reached.stream == stream);
        Ok(Included {
            reached: *found.ok_or(InvalidInclusion::OtherStream)?,
            interval: interval.number,
            to_us: interval.to_us,
            doubt: interval.doubt,
            checkpoint,
        })
    }

    /// Checks that the server of `key` sealed the interval, whatever streams it is about.
    ///
    /// # Errors
    /// Anything of it is not as it must be.
    pub fn open(&self, key: &VerifyingKey) -> Result<Opened, InvalidInclusion> {
        let checkpoint = Checkpoint::of_note(&self.note, key)?;
        let interval = Interval::decode(&self.leaf, "interval")?;
        let leaf = leaf_hash(&[&self.leaf]);
        let root = root_of_path(leaf, interval.number, checkpoint.leaves, &self.path);
        if root != Some(checkpoint.root) {
            return Err(InvalidInclusion::NotIncluded);
        }
        Ok(Opened {
            interval,
            checkpoint,
        })
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::identity::{Epoch, Head, Sequence};
    use crate::merkle::{AuditPaths, MerkleTree};

    #[test]
    fn a_stream_is_included_as_it_was_sealed_and_not_otherwise() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let stream = |n: u8| StreamId([n; 16]);
        let mut tree = MerkleTree::new();
        let leaves: Vec<Vec<u8>> = (0..5_u8)
            .map(|n| {
                let reached = Reached {
                    stream: stream(n),
                    epoch: Epoch([0; 16]),
                    next: Sequence(7),
                    head: Head([n; 32]),
                };
                let interval = Interval {
                    number: u64::from(n),
                    from_us: 0,
                    to_us: 1,
                    doubt: None,
                    streams: vec![reached],
                };
                let leaf = interval.encoded();
                tree.push(&[&leaf]);
                leaf
            })
            .collect();
        let paths = AuditPaths::new(leaves.iter().map(|leaf| leaf_hash(&[leaf])).collect());
        let note = Checkpoint {
            origin: "scrinium/1".into(),
            leaves: 5,
            root: tree.root(),
            time_s: 1,
        }
        .to_note(&key);
        let inclusion = |n: usize| Inclusion {
            leaf: leaves[n].clone(),
            path: paths.path(n).unwrap(),
            note: note.clone(),
        };
        let public = key.verifying_key();
        for (n, number) in (0..5).zip(0_u8..) {
            let included = inclusion(n).check(stream(number), &public).unwrap();
            assert_eq!(included.reached.head, Head([number; 32]));
        }
        assert!(matches!(
            inclusion(1).check(stream(2), &public),
            Err(InvalidInclusion::OtherStream)
        ));
        let mut moved = inclusion(1);
        moved.path.clone_from(&inclusion(2).path);
        assert!(matches!(
            moved.check(stream(1), &public),
            Err(InvalidInclusion::NotIncluded)
        ));
        let mut changed = inclusion(1);
        *changed.leaf.last_mut().unwrap() ^= 1;
        assert!(matches!(
            changed.check(stream(1), &public),
            Err(InvalidInclusion::NotIncluded)
        ));
        let other = SigningKey::from_bytes(&[2; 32]).verifying_key();
        assert!(matches!(
            inclusion(1).check(stream(1), &other),
            Err(InvalidInclusion::Checkpoint(InvalidCheckpoint::Signature))
        ));
    }
}
