//! Epochs that an agent left: how far the archive has them.
//!
//! An agent that was restored, or lost its state, begins a new epoch in its streams. It may still hold receipts of the one
//! before, which the archive meets though the stream stands elsewhere now.
//!
//! ```text
//! first question ─▶ looked up in the archive ─▶ remembered ◀─ what became durable since, receipt by receipt
//! ```

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use scrinium_protocol::identity::{AgentId, Epoch, StreamId};
use scrinium_protocol::sl::message::Receipt;

use crate::archive::{Archive, EVER, is_out_of_descriptors};
use crate::said::said;

/// Ends of epochs: 56 bytes for each stream and epoch.
type Ends = BTreeMap<(StreamId, Epoch), u64>;

/// What is known of them in a session. An agent may leave an epoch in the middle of it: what it is told is durable moves
/// what was looked up before.
#[derive(Default)]
pub(super) enum LeftEpochs {
    /// Nobody asked.
    #[default]
    Unasked,
    Known(Ends),
    /// They are too many to be remembered: each is looked up when it is asked for, so many times.
    TooMany {
        looked_up: u64,
    },
}

impl LeftEpochs {
    /// The sequence after the last entry of an epoch that is archived, or was before it was deleted lawfully. 0: none.
    ///
    /// # Errors
    /// There is no file descriptor to look with, or it was looked too often: that says nothing of the archive.
    pub(super) fn end(
        &mut self,
        archive: &Archive,
        agent: AgentId,
        stream: StreamId,
        epoch: Epoch,
    ) -> Result<u64> {
        if matches!(self, Self::Unasked) {
            *self = find(archive, agent)?.map_or(TOO_MANY, Self::Known);
        }
        match self {
            Self::Known(ends) => Ok(ends.get(&(stream, epoch)).copied().unwrap_or(0)),
            Self::Unasked => find_one(archive, stream, epoch),
            Self::TooMany { looked_up } => {
                if *looked_up >= LOOKED_UP_MAX {
                    return Err(said!("session.many_epochs", LOOKED_UP_MAX).into());
                }
                *looked_up += 1;
                find_one(archive, stream, epoch)
            }
        }
    }

    /// Entries are durable of which the agent gets a receipt.
    pub(super) fn note(&mut self, receipt: &Receipt) {
        let Self::Known(ends) = self else {
            return;
        };
        add(ends, receipt.stream, receipt.epoch, receipt.next.0);
        if ends.len() > EPOCHS_MAX {
            *self = TOO_MANY;
        }
    }
}

const TOO_MANY: LeftEpochs = LeftEpochs::TooMany { looked_up: 0 };

fn add(ends: &mut Ends, stream: StreamId, epoch: Epoch, end: u64) {
    let known = ends.entry((stream, epoch)).or_insert(0);
    *known = end.max(*known);
}

/// All of an agent, unless they are too many.
fn find(archive: &Archive, agent: AgentId) -> Result<Option<Ends>> {
    let streams = archive.streams_of(agent).into_iter();
    let streams: BTreeSet<StreamId> = streams.map(|stream| stream.id).collect();
    let mut ends = Ends::new();
    let is_whole = each(archive, &streams, |stream, epoch, end| {
        add(&mut ends, stream, epoch, end);
        ends.len() <= EPOCHS_MAX
    })?;
    Ok(is_whole.then_some(ends))
}

fn find_one(archive: &Archive, stream: StreamId, epoch: Epoch) -> Result<u64> {
    let mut found = 0;
    each(archive, &BTreeSet::from([stream]), |_, of, end| {
        if of == epoch {
            found = end.max(found);
        }
        true
    })?;
    Ok(found)
}

/// Shows every entry range of some streams that is archived, or was deleted lawfully, as long as `take` wants more. Whether
/// it saw them all.
fn each(
    archive: &Archive,
    streams: &BTreeSet<StreamId>,
    mut take: impl FnMut(StreamId, Epoch, u64) -> bool,
) -> Result<bool> {
    for part in archive.each_part(|stream| streams.contains(&stream), EVER) {
        let extents = match part {
            Ok(extents) => extents,
            Err((_, error)) => {
                check_looked(&error)?;
                continue;
            }
        };
        let mut extents = extents.iter();
        if !extents.all(|extent| take(extent.stream, extent.epoch, extent.sequences.1)) {
            return Ok(false);
        }
    }
    for (stream, ranges) in archive.pruned() {
        for range in ranges {
            if streams.contains(&stream) && !take(stream, range.epoch, range.sequences.1) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Refuses to say what is there where it could not be looked at. What is damaged has nothing for anybody: that is missing.
fn check_looked(error: &anyhow::Error) -> Result<()> {
    if is_out_of_descriptors(error) {
        return Err(said!("session.no_descriptors").into());
    }
    Ok(())
}

/// Looks of one session into the archive for one epoch each, when they are too many to be remembered: each reads the index of
/// every segment.
const LOOKED_UP_MAX: u64 = 100;
/// Epochs that are remembered, of all streams of an agent: 20 MiB. One that was never restored has one for each stream.
const EPOCHS_MAX: usize = 300_000;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use scrinium_segment::cipher::Cipher;

    use super::*;
    use crate::volume::Volume;

    #[test]
    fn a_lack_of_descriptors_is_no_missing_entry_and_damage_is() {
        let lack = anyhow::Error::from(std::io::Error::from_raw_os_error(24)).context("opening");
        let damage = anyhow::anyhow!("its digest is another");
        assert!(check_looked(&damage).is_ok());
        let refused = check_looked(&lack).unwrap_err();
        assert!(refused.to_string().contains("file descriptor"));
    }

    #[test]
    fn what_is_too_much_to_be_remembered_is_looked_up_so_many_times() {
        let dir = std::env::temp_dir().join(format!("scrinium-left-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        let (volume, _) = Volume::create(&dir, &crate::volume::Binding::default()).unwrap();
        let catalogue = Arc::new(crate::core::make_catalogue(&volume).unwrap());
        let archive = Archive::open(&volume, &catalogue, Cipher::default()).unwrap();
        let mut left = TOO_MANY;
        let mut end = |n: u64| {
            let stream = StreamId([u8::try_from(n % 256).unwrap(); 16]);
            left.end(&archive, AgentId([1; 16]), stream, Epoch([2; 16]))
        };
        for n in 0..LOOKED_UP_MAX {
            assert_eq!(end(n).unwrap(), 0);
        }
        let refused = end(0).unwrap_err().to_string();
        assert!(refused.contains("100"), "{refused}");
        drop(archive);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
