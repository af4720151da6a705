//! Epochs of an agent's streams: begun one after the other, and none a second time.
//!
//! An agent begins a new epoch when it was restored, or lost its state. Were it let back into one that it left, entries would
//! stand twice under the same numbers, and nobody could tell which were there first.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use scrinium_protocol::identity::{Epoch, StreamId};

/// Where the streams of a session stand, as far as the archive does not say it yet, and what they left meanwhile.
#[derive(Default)]
pub(super) struct Epochs {
    stands: BTreeMap<StreamId, Epoch>,
    left: BTreeSet<(StreamId, Epoch)>,
}

/// What a batch does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Going {
    /// It goes on, or is of a stream that has nothing.
    On,
    /// It begins an epoch that its stream never had.
    Anew,
    /// It goes back into one that its stream has left.
    Back,
}

impl Epochs {
    /// Takes note of a batch of `epoch`. `archived` is the epoch in which its stream stands in the archive, if it has
    /// entries there; `had` says whether the archive has entries of an epoch.
    pub(super) fn take(
        &mut self,
        stream: StreamId,
        epoch: Epoch,
        archived: Option<Epoch>,
        had: impl FnOnce() -> Result<bool>,
    ) -> Result<Going> {
        let stands = self.stands.get(&stream).copied().or(archived);
        let Some(before) = stands.filter(|before| *before != epoch) else {
            if archived.is_none() {
                self.stands.insert(stream, epoch);
            }
            return Ok(Going::On);
        };
        if self.left.contains(&(stream, epoch)) || had()? {
            return Ok(Going::Back);
        }
        self.left.insert((stream, before));
        self.stands.insert(stream, epoch);
        Ok(Going::Anew)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the archive knows by then: batches are on their way to it.
    #[test]
    fn no_epoch_is_begun_a_second_time() {
        let (stream, other) = (StreamId([1; 16]), StreamId([2; 16]));
        let [a, b, c] = [1, 2, 3].map(|n| Epoch([n; 16]));
        let never = || Ok(false);
        let mut epochs = Epochs::default();
        let mut take =
            |stream, epoch, archived| epochs.take(stream, epoch, archived, never).unwrap();
        assert_eq!(take(stream, a, None), Going::On);
        assert_eq!(take(stream, a, None), Going::On);
        assert_eq!(take(stream, b, Some(a)), Going::Anew);
        assert_eq!(take(stream, b, Some(a)), Going::On);
        assert_eq!(take(stream, a, Some(a)), Going::Back);
        assert_eq!(take(stream, a, Some(b)), Going::Back);
        assert_eq!(take(stream, c, Some(b)), Going::Anew);
        // Another stream comes later, and from the first epoch still.
        assert_eq!(take(other, c, Some(a)), Going::Anew);
        assert_eq!(take(other, a, Some(a)), Going::Back);
        // What a session before this one left the archive knows.
        let had = || Ok(true);
        let going = Epochs::default().take(stream, a, Some(b), had);
        assert_eq!(going.unwrap(), Going::Back);
    }
}
