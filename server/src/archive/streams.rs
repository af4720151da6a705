//! The streams of an archive: who they are, how far they go, and their numbers together.
//!
//! A stream is known from its introduction on; its record moves with each commit of the log. What the last segment left is kept
//! beside it: that is what the catalogue says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use scrinium_protocol::batch::StreamPosition;
use scrinium_protocol::evidence::interval::Reached;
use scrinium_protocol::identity::{AgentId, StreamId, StreamKind};

use super::segment::Index;
use super::{Archive, State, log};
use crate::catalogue::records::StreamRecord;

/// Numbers of several streams together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) streams: usize,
    /// Bytes of their names.
    pub(crate) name_bytes: usize,
    /// Bytes of their bookmarks.
    pub(crate) bookmark_bytes: usize,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    /// When the last entry became durable, Unix µs; 0: none.
    pub(crate) last_us: u64,
}

impl Totals {
    fn add(&mut self, stream: &StreamRecord) {
        self.streams += 1;
        self.name_bytes += stream.name.len();
        self.bookmark_bytes += stream.position.bookmark.len();
        self.entries += stream.entries;
        self.bytes += stream.bytes;
        self.last_us = self.last_us.max(stream.last_us);
    }
}

impl Archive {
    /// Streams that no segment knows yet, as they were introduced.
    pub(crate) fn introduced(&self) -> Vec<StreamRecord> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.introduced()
    }

    /// One stream as the last segment left it, or before its first entry.
    pub(crate) fn archived_stream(&self, id: StreamId) -> Option<StreamRecord> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let archived = state.archived.get(&id).cloned();
        archived.or_else(|| {
            let live = state.streams.get(&id)?;
            Some(log::new_stream(
                live.id,
                live.agent,
                live.kind,
                live.name.clone(),
            ))
        })
    }

    /// Every stream, by id.
    pub(crate) fn streams(&self) -> BTreeMap<StreamId, StreamRecord> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.streams.clone()
    }

    /// Where every stream stands that has entries; without their names, which may be very long together.
    pub(crate) fn reached(&self) -> Vec<Reached> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let streams = state.streams.values();
        let with_entries = streams.filter(|stream| stream.entries > 0);
        with_entries.map(StreamRecord::reached).collect()
    }

    /// The streams that are `wanted`.
    pub(crate) fn matching(&self, wanted: impl Fn(&StreamRecord) -> bool) -> BTreeSet<StreamId> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let wanted = state.streams.values().filter(|stream| wanted(stream));
        wanted.map(|stream| stream.id).collect()
    }

    /// These streams, as far as they are known.
    pub(crate) fn streams_among(
        &self,
        ids: impl IntoIterator<Item = StreamId>,
    ) -> BTreeMap<StreamId, StreamRecord> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let known = |id: StreamId| Some((id, state.streams.get(&id)?.clone()));
        let ids: BTreeSet<StreamId> = ids.into_iter().collect();
        ids.into_iter().filter_map(known).collect()
    }

    /// Gives the streams of an index the names that are in memory already: those of one agent may be very long together.
    pub(super) fn share_names(&self, index: &mut Index) {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        for (id, stream) in &mut index.streams {
            if let Some(known) = state.streams.get(id)
                && known.name == stream.name
            {
                stream.name = known.name.clone();
            }
        }
    }

    /// Whether a stream is known.
    pub(crate) fn has_stream(&self, id: StreamId) -> bool {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.streams.contains_key(&id)
    }

    /// Numbers of all streams together.
    pub(crate) fn totals(&self) -> Totals {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut totals = Totals::default();
        for stream in state.streams.values() {
            totals.add(stream);
        }
        totals
    }

    /// The same of one agent.
    pub(crate) fn totals_of(&self, agent: AgentId) -> Totals {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut totals = Totals::default();
        for stream in state
            .streams
            .values()
            .filter(|stream| stream.agent == agent)
        {
            totals.add(stream);
        }
        totals
    }

    /// When the last entry of each agent became durable, Unix µs.
    pub(crate) fn last_of_agents(&self) -> BTreeMap<AgentId, u64> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut last = BTreeMap::new();
        for stream in state.streams.values().filter(|stream| stream.last_us > 0) {
            let known: &mut u64 = last.entry(stream.agent).or_default();
            *known = stream.last_us.max(*known);
        }
        last
    }

    /// Some streams of an agent in the order of their names, `skipped` of them left out, and how many it has.
    pub(crate) fn page_of(
        &self,
        agent: AgentId,
        skipped: usize,
        most: usize,
    ) -> (Vec<StreamRecord>, usize) {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let streams = state.streams.values();
        let mut own: Vec<&StreamRecord> = streams.filter(|stream| stream.agent == agent).collect();
        own.sort_unstable_by_key(|stream| (&stream.name, stream.id));
        let page = own.iter().skip(skipped).take(most);
        (page.map(|&stream| stream.clone()).collect(), own.len())
    }

    /// The streams of one agent.
    pub(crate) fn streams_of(&self, agent: AgentId) -> Vec<StreamRecord> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let streams = state.streams.values();
        let own = streams.filter(|stream| stream.agent == agent);
        own.cloned().collect()
    }

    /// The streams of one agent that have entries; 16 bytes each.
    pub(crate) fn begun_of(&self, agent: AgentId) -> Vec<StreamId> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let streams = state.streams.values();
        let begun = streams.filter(|stream| stream.agent == agent && stream.position.next.0 > 0);
        begun.map(|stream| stream.id).collect()
    }

    /// Where these streams stand.
    pub(crate) fn positions(&self, ids: &[StreamId]) -> Vec<(StreamId, StreamPosition)> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let known = ids.iter().filter_map(|id| state.streams.get(id));
        known
            .map(|stream| (stream.id, stream.position.clone()))
            .collect()
    }

    /// Notes a stream not seen before. Returns whether it is new.
    pub(crate) fn define_stream(&self, stream: StreamRecord) -> bool {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.streams.contains_key(&stream.id) {
            return false;
        }
        state.streams.insert(stream.id, stream);
        true
    }

    /// One stream.
    pub(crate) fn stream(&self, id: StreamId) -> Option<StreamRecord> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.streams.get(&id).cloned()
    }

    /// How long the bookmark of a stream is; 0 when it is not known.
    pub(crate) fn bookmark_len(&self, id: StreamId) -> usize {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let stream = state.streams.get(&id);
        stream.map_or(0, |stream| stream.position.bookmark.len())
    }

    /// Finds a stream by its agent, kind and name.
    pub(crate) fn find_stream(
        &self,
        agent: AgentId,
        kind: StreamKind,
        name: &str,
    ) -> Option<StreamRecord> {
        self.stream(StreamId::derive(agent, kind, name))
    }

    /// Moves streams on after a commit.
    pub(crate) fn advance(&self, changes: Vec<StreamRecord>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for stream in changes {
            state.streams.insert(stream.id, stream);
        }
    }
}

impl State {
    /// Streams that no segment knows yet, as they were introduced.
    pub(super) fn introduced(&self) -> Vec<StreamRecord> {
        let streams = self.streams.values();
        let unknown = streams.filter(|stream| !self.archived.contains_key(&stream.id));
        unknown
            .map(|live| log::new_stream(live.id, live.agent, live.kind, live.name.clone()))
            .collect()
    }
}
