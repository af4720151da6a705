//! What waits of a stream after the server has said where it stands.
//!
//! ```text
//! server ─▶ expected: kept | has it: dropped | follows nothing: its source is asked again, or, where
//!           nobody can be asked, [gap entries for what is lost] and then what waits, put after those
//! ```
//!
//! The gap takes as many sequence numbers as entries are lost, so that every entry that waits keeps its
//! own: after a crash the server's word alone says again how far this had come.

use std::collections::VecDeque;

use anyhow::Result;
use scrinium_protocol::batch::{BATCH_ENTRIES_MAX, BatchBuilder, SealedBatch, StreamPosition};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::compress::{AGENT_LEVEL, Compressor};
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::identity::{Sequence, StreamId};
use tracing::warn;

use super::{Item, Place, Spool, is_damage};

impl Spool {
    /// Compares what waits of one stream with where the server stands: what it has is dropped, what
    /// follows is kept. What follows nothing is dropped too when its source can be read again, else it
    /// follows a gap. A stream the server does not know begins with what waits of it, or at `start`.
    /// Returns the position after what is kept: the source must go on there.
    ///
    /// # Errors
    /// A segment cannot be read now; what waits still does.
    pub fn reconcile(
        &mut self,
        stream: StreamId,
        server: Option<&StreamPosition>,
        start: StreamPosition,
    ) -> Result<StreamPosition> {
        let Some(queue) = self.queues.get(&stream) else {
            return Ok(server.cloned().unwrap_or(start));
        };
        let mut expected = match (server, queue.items.front()) {
            (Some(server), _) => server.clone(),
            (None, Some(front)) if front.first == Sequence(0) => StreamPosition {
                epoch: front.epoch,
                head: front.previous,
                ..start
            },
            (None, _) => start,
        };
        let Some(mut queue) = self.queues.remove(&stream) else {
            return Ok(expected);
        };
        let can_be_read_again = queue.name.kind.can_be_read_again();
        let mut kept = VecDeque::new();
        let mut failed = None;
        for mut item in core::mem::take(&mut queue.items) {
            if failed.is_some() {
                kept.push_back(item);
                continue;
            }
            let follows = item.first == expected.next && item.previous == expected.head;
            let is_later = item.epoch == expected.epoch && item.first >= expected.next;
            let mut is_kept = follows;
            if !follows && is_later && !can_be_read_again {
                if item.first > expected.next {
                    warn!(
                        stream = queue.name.name,
                        from = expected.next.0,
                        until = item.first.0,
                        "entries that waited in the cache are lost; a gap entry says so in their place"
                    );
                    kept.extend(self.fill_gap(stream, &mut expected, item.first));
                }
                match self.relink(&mut item, &expected) {
                    Err(error) if !is_damage(&error) => failed = Some(error),
                    relinked => is_kept = relinked.is_ok(),
                }
            }
            if failed.is_none() && !is_kept {
                queue.on_disk -= usize::from(matches!(item.at, Place::Disk(_)));
                self.forget(&item);
                continue;
            }
            expected.next = item.next;
            expected.head = item.head;
            kept.push_back(item);
        }
        if let Some(last) = kept.back() {
            expected = last.position_after();
            queue.items = kept;
            queue.sent = 0;
            self.turns(queue.lane()).push_back(stream);
            self.queues.insert(stream, queue);
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(expected),
        }
    }

    /// Makes the gap entries from `position` until `next`, in RAM, and moves `position` there.
    fn fill_gap(
        &mut self,
        stream: StreamId,
        position: &mut StreamPosition,
        until: Sequence,
    ) -> Vec<Item> {
        let lost = until.0 - position.next.0;
        let text = format!(
            "gap: {lost} entries from number {} on are lost: they waited in the agent's cache, which was damaged\n",
            position.next.0
        );
        let mut text = text.as_bytes();
        let mut compressor = Compressor::new(AGENT_LEVEL);
        let mut items = Vec::new();
        while position.next < until {
            let mut builder = BatchBuilder::new();
            let count = (until.0 - position.next.0).min(u64::from(BATCH_ENTRIES_MAX));
            for _ in 0..count {
                let meta = EntryMeta {
                    time_us: crate::clock::unix_us(),
                    flags: EntryFlags::GAP,
                };
                let taken = builder.push(core::mem::replace(&mut text, LOST_TOO), meta);
                debug_assert!(taken, "so many short entries fit into a batch");
            }
            let bookmark = position.bookmark.clone();
            let (batch, after) =
                builder.seal(stream, position, bookmark, &self.signing, &mut compressor);
            let encoded = batch.encoded();
            self.ram_bytes += encoded.len() as u64;
            self.entries += count;
            items.push(Item::new(&batch.header, Place::Ram(encoded)));
            *position = after;
        }
        items
    }

    /// Puts what waits after `position`.
    fn relink(&self, item: &mut Item, position: &StreamPosition) -> Result<()> {
        let mut batch = SealedBatch::decode(&self.read(item)?, "batch")?;
        batch.header.relink(position, &self.signing);
        item.previous = position.head;
        item.head = batch.header.head();
        match &mut item.at {
            Place::Ram(encoded) => *encoded = batch.encoded(),
            Place::Disk(_) => item.relinked = true,
        }
        Ok(())
    }
}

/// What stands for each further entry that is lost.
const LOST_TOO: &[u8] = b"gap: lost with the one before\n";
