//! What a session states at its beginning: where the archive stands for each stream of the agent, and that it is ready.
//!
//! ```text
//! streams of the agent: 16 bytes each ─▶ [Statement]: some at a time ─▶ written ─▶ the next … ─▶ ready, configuration
//! ```
//!
//! A bookmark may have a KiB and an agent hundreds of thousands of streams, so what is stated is made as it is taken: an
//! agent that reads nothing holds no more than one part of it.

use scrinium_protocol::batch::StreamPosition;
use scrinium_protocol::identity::{AgentId, StreamId};

use crate::archive::Archive;

/// Streams that are still to be stated.
pub(super) struct Statement(std::vec::IntoIter<StreamId>);

impl Statement {
    pub(super) fn new(archive: &Archive, agent: AgentId) -> Self {
        Self(archive.begun_of(agent).into_iter())
    }

    /// Where the next ones stand; `None`: all were stated.
    pub(super) fn next_part(
        &mut self,
        archive: &Archive,
    ) -> Option<Vec<(StreamId, StreamPosition)>> {
        loop {
            let ids: Vec<StreamId> = self.0.by_ref().take(PART).collect();
            if ids.is_empty() {
                return None;
            }
            let part = archive.positions(&ids);
            // One that was deleted meanwhile is not there to be stated.
            if !part.is_empty() {
                return Some(part);
            }
        }
    }
}

/// Streams that are stated at once: with the longest bookmarks 40 KiB.
const PART: usize = 32;
