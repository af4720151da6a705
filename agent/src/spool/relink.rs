//! What waits of a stream after the server has said where it stands.
//!
//! ```text
//! server ─▶ expected: kept | has it: dropped | follows nothing: its source is asked again, or, where
//!           nobody can be asked, [gap entries for what is lost] and then what waits, put after those
//! ```
//!
//! The gap takes as many sequence numbers as entries are lost, so that every entry that waits keeps its
//! own: after a crash the server's word alone says again how far this had come. Where more is lost than
//! [`GAP_ENTRIES_MAX`] there is one gap entry, and what waits is written down once more, in an epoch of its own that
//! begins with it: a server that once claimed to stand far ahead, and then not, must not have the agent make entries
//! for ever. What of both copies a crash leaves is told apart by the epoch the server states.

use std::collections::VecDeque;

use anyhow::Result;
use scrinium_protocol::batch::{BATCH_ENTRIES_MAX, BatchBuilder, SealedBatch, StreamPosition};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::compress::{AGENT_LEVEL, Compressor};
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::identity::{AgentId, Epoch, Sequence, StreamId, StreamName};
use scrinium_segment::random;
use tracing::warn;

use super::{Item, Place, Queue, Spool, is_damage};

impl Spool {
    /// Compares what waits of one stream with where the server stands: what it has is dropped, what
    /// follows is kept. What follows nothing is dropped too when its source can be read again, else it
    /// follows a gap. A stream the server does not know begins with what waits of it, or with `epoch`.
    /// Returns the position after what is kept: the source must go on there.
    ///
    /// # Errors
    /// A segment cannot be read or written now; what waits still does.
    pub fn reconcile(
        &mut self,
        (agent, epoch): (AgentId, Epoch),
        stream: StreamId,
        server: Option<&StreamPosition>,
    ) -> Result<StreamPosition> {
        let start = StreamPosition::start(agent, stream, epoch);
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
        let mut waiting = core::mem::take(&mut queue.items);
        while let Some(mut item) = waiting.pop_front() {
            let follows = item.first == expected.next && item.previous == expected.head;
            let is_later = item.epoch == expected.epoch && item.first >= expected.next;
            let mut is_kept = follows;
            if !follows && is_later && !can_be_read_again {
                let lost = item.first.0 - expected.next.0;
                if lost > self.gap_entries_left {
                    waiting.push_front(item);
                    let begun = self
                        .begin_of_its_own(agent, stream, &expected)
                        .and_then(|begin| {
                            let from = (expected.epoch, expected.next);
                            self.begin_anew((stream, begin), &queue.name, from, &waiting)
                        });
                    match begun {
                        Ok(anew) => {
                            waiting
                                .drain(..)
                                .for_each(|item| self.drop_from(&mut queue, &item));
                            queue.on_disk += anew.iter().filter(|item| item.is_on_disk()).count();
                            kept.extend(anew);
                        }
                        Err(error) => failed = Some(error),
                    }
                    break;
                }
                if lost > 0 {
                    warn!(
                        stream = queue.name.name,
                        from = expected.next.0,
                        until = item.first.0,
                        "entries that waited in the cache are lost; a gap entry says so in their place"
                    );
                    self.gap_entries_left -= lost;
                    kept.extend(self.fill_gap(stream, &mut expected, item.first));
                }
                match self.relink(&mut item, &expected) {
                    Err(error) if !is_damage(&error) => {
                        failed = Some(error);
                        kept.push_back(item);
                        break;
                    }
                    relinked => is_kept = relinked.is_ok(),
                }
            }
            if !is_kept {
                self.drop_from(&mut queue, &item);
                continue;
            }
            expected.next = item.next;
            expected.head = item.head;
            kept.push_back(item);
        }
        kept.append(&mut waiting);
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

    fn drop_from(&mut self, queue: &mut Queue, item: &Item) {
        queue.on_disk -= usize::from(item.is_on_disk());
        self.forget(item);
    }

    /// The same where this agent's streams begin a new epoch, because its state, or the server's, was restored from a
    /// copy: what waits and cannot be read again goes into it, without what the server has. `said` is what the server
    /// stated, `server` where the stream goes on.
    ///
    /// # Errors
    /// A segment cannot be read or written now; what waits still does.
    pub fn carry_over(
        &mut self,
        (agent, epoch): (AgentId, Epoch),
        stream: StreamId,
        said: Option<&StreamPosition>,
        server: Option<&StreamPosition>,
    ) -> Result<StreamPosition> {
        let has_own = self.queues.get(&stream).is_some_and(|queue| {
            let begins = queue
                .items
                .front()
                .is_some_and(|front| front.first == Sequence(0));
            !(queue.name.kind.can_be_read_again() || said.is_none() && begins)
        });
        let Some(mut queue) = has_own.then(|| self.queues.remove(&stream)).flatten() else {
            return self.reconcile((agent, epoch), stream, server);
        };
        let mut waiting = core::mem::take(&mut queue.items);
        // Where the server stands may be within what waits: what is before it came.
        let came = said.and_then(|said| {
            waiting.iter().position(|item| {
                (item.epoch, item.next, item.head) == (said.epoch, said.next, said.head)
            })
        });
        for item in waiting.drain(..came.map_or(0, |at| at + 1)) {
            self.drop_from(&mut queue, &item);
        }
        let start = StreamPosition::start(agent, stream, epoch);
        let begin = server.cloned().unwrap_or(start);
        let Some(front) = waiting.front() else {
            return Ok(begin);
        };
        let next = match said {
            None => Sequence(0),
            Some(said) if said.epoch == front.epoch => said.next.min(front.first),
            Some(_) => front.first,
        };
        warn!(
            stream = queue.name.name,
            from = front.first.0,
            "what waits of a stream goes into its new epoch"
        );
        let from = (front.epoch, next);
        let carried = self.begin_anew((stream, begin.clone()), &queue.name, from, &waiting);
        let (items, outcome) = match carried {
            Err(error) => (waiting, Err(error)),
            Ok(anew) => {
                waiting
                    .drain(..)
                    .for_each(|item| self.drop_from(&mut queue, &item));
                queue.on_disk += anew.iter().filter(|item| item.is_on_disk()).count();
                let reached = anew.last().map_or(begin, Item::position_after);
                (VecDeque::from(anew), Ok(reached))
            }
        };
        if !items.is_empty() {
            queue.items = items;
            queue.sent = 0;
            self.turns(queue.lane()).push_back(stream);
            self.queues.insert(stream, queue);
        }
        outcome
    }

    /// An epoch of its own for one stream.
    fn begin_of_its_own(
        &self,
        agent: AgentId,
        stream: StreamId,
        expected: &StreamPosition,
    ) -> Result<StreamPosition> {
        let mut begin = StreamPosition::start(agent, stream, Epoch(random()?));
        begin.bookmark.clone_from(&expected.bookmark);
        Ok(begin)
    }

    /// What waits of a stream, as far as it is of the history of `from` and can be read, put after one gap entry for
    /// what is missing, where an epoch begins. It is written down before this returns: nothing of it is sent before.
    fn begin_anew(
        &mut self,
        (stream, begin): (StreamId, StreamPosition),
        name: &StreamName,
        (epoch, mut next): (Epoch, Sequence),
        waiting: &VecDeque<Item>,
    ) -> Result<Vec<Item>> {
        let mut position = begin;
        let mut anew = Vec::new();
        // In RAM alone what is before something on the disk would be gone after a crash, and that not. It is past the
        // limit of the disk by what goes from there right after.
        let is_on_disk = waiting.iter().any(Item::is_on_disk);
        for item in waiting {
            if item.epoch != epoch || item.first < next {
                continue;
            }
            let encoded = match self.read(item) {
                Err(error) if is_damage(&error) => continue, // it is a part of the next gap
                read => read?,
            };
            if item.first > next {
                warn!(
                    stream = name.name,
                    from = next.0,
                    until = item.first.0,
                    "more entries are missing than a gap is filled with; one gap entry says so, and the numbers of the stream begin again"
                );
                let text = format!(
                    "gap: {} entries from number {} on are not here any more, or never were: the server stands elsewhere than it said; the numbers begin again\n",
                    item.first.0 - next.0,
                    next.0
                );
                let gap = self.gap_batch(stream, &position, &mut text.as_bytes(), 1);
                position = gap.header.position_after();
                let at = self.place(name, gap.encoded(), is_on_disk)?;
                anew.push(Item::new(&gap.header, at));
            }
            let mut batch = SealedBatch::decode(&encoded, "batch")?;
            batch.header.relink(&position, &self.signing);
            position = batch.header.position_after();
            let at = self.place(name, batch.encoded(), is_on_disk)?;
            anew.push(Item {
                taken: item.taken,
                ..Item::new(&batch.header, at)
            });
            next = item.next;
        }
        self.disk.sync()?;
        // At this point both copies are there; if we die now, the server's word says which of them counts.
        for item in &anew {
            self.entries += u64::from(item.count);
            match &item.at {
                Place::Ram(encoded) => self.ram_bytes += encoded.len() as u64,
                Place::Disk(place) => self.disk.hold(*place),
            }
        }
        Ok(anew)
    }

    fn place(&mut self, name: &StreamName, encoded: Vec<u8>, on_disk: bool) -> Result<Place> {
        Ok(match on_disk {
            true => Place::Disk(self.disk.append(name, &encoded)?),
            false => Place::Ram(encoded),
        })
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
        let mut items = Vec::new();
        while position.next < until {
            let count = (until.0 - position.next.0).min(u64::from(BATCH_ENTRIES_MAX));
            let batch = self.gap_batch(stream, position, &mut text, count);
            *position = batch.header.position_after();
            let encoded = batch.encoded();
            self.ram_bytes += encoded.len() as u64;
            self.entries += count;
            items.push(Item::new(&batch.header, Place::Ram(encoded)));
        }
        items
    }

    /// A batch of `count` gap entries after `position`, the first of which says `text`.
    fn gap_batch(
        &self,
        stream: StreamId,
        position: &StreamPosition,
        text: &mut &[u8],
        count: u64,
    ) -> SealedBatch {
        let mut builder = BatchBuilder::new();
        for _ in 0..count {
            let meta = EntryMeta {
                time_us: crate::clock::unix_us(),
                flags: EntryFlags::GAP,
            };
            let taken = builder.push(core::mem::replace(text, LOST_TOO), meta);
            debug_assert!(taken, "so many short entries fit into a batch");
        }
        let bookmark = position.bookmark.clone();
        let mut compressor = Compressor::new(AGENT_LEVEL);
        let (batch, _) = builder.seal(stream, position, bookmark, &self.signing, &mut compressor);
        batch
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

/// Gap entries that are made for one session, of all its streams: some megabytes of RAM, and a second.
pub(super) const GAP_ENTRIES_MAX: u64 = 1 << 20;
/// What stands for each further entry that is lost.
const LOST_TOO: &[u8] = b"gap: lost with the one before\n";
