//! Epochs that an agent left: how far the archive has them.
//!
//! An agent that was restored, or lost its state, begins a new epoch in its streams. It may still hold receipts of the one
//! before, which the archive meets though the stream stands elsewhere now.

use std::collections::{BTreeMap, BTreeSet};

use scrinium_protocol::identity::{AgentId, Epoch, StreamId};

use crate::archive::{Archive, EVER};

/// Looked up once in a session, when it is needed: 56 bytes for each stream and epoch.
#[derive(Default)]
pub(super) struct LeftEpochs(Option<BTreeMap<(StreamId, Epoch), u64>>);

impl LeftEpochs {
    /// The sequence after the last entry of an epoch that is archived, or was before it was deleted lawfully. 0: none.
    pub(super) fn end(
        &mut self,
        archive: &Archive,
        agent: AgentId,
        stream: StreamId,
        epoch: Epoch,
    ) -> u64 {
        let ends = self.0.get_or_insert_with(|| find(archive, agent));
        ends.get(&(stream, epoch)).copied().unwrap_or(0)
    }
}

fn find(archive: &Archive, agent: AgentId) -> BTreeMap<(StreamId, Epoch), u64> {
    let streams = archive.streams_of(agent).into_iter();
    let streams: BTreeSet<StreamId> = streams.map(|stream| stream.id).collect();
    let mut ends = BTreeMap::new();
    let mut add = |stream: StreamId, epoch: Epoch, end: u64| {
        let known = ends.entry((stream, epoch)).or_insert(0);
        *known = end.max(*known);
    };
    let found = archive.extents(|stream| streams.contains(&stream), EVER);
    for extent in found.list {
        add(extent.stream, extent.epoch, extent.sequences.1);
    }
    for (stream, ranges) in archive.pruned() {
        if streams.contains(&stream) {
            for range in ranges {
                add(stream, range.epoch, range.sequences.1);
            }
        }
    }
    ends
}
