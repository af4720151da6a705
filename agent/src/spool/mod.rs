//! Batches wait here: in RAM first, then in sealed segments on the disk, until the server has acked
//! them.
//!
//! ```text
//! sources ─▶ one queue per stream [ on disk … | in RAM … ] ─▶ shipper        front = oldest
//!                └─ segments ([disk])   └─ spill when the link is down and RAM is full, and at the stop
//! ```
//!
//! A stream with something on the disk is in the backlog lane, every other in the live lane. Within a
//! lane streams take turns, a batch each: one with much to say does not keep the others waiting.
//!
//! Invariants:
//! 1. Each queue is in order; what it has on disk is older than what it has in RAM.
//! 2. A batch leaves only by an ack, or because its stream is rewound (`relink.rs`).
//! 3. Full is full: nothing is dropped, the sources wait.

mod disk;
mod relink;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use anyhow::Result;
use ed25519_dalek::SigningKey;
use scrinium_protocol::batch::{BatchHeader, SealedBatch, StreamPosition};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::identity::{Epoch, Head, Sequence, StreamId, StreamName};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::message::Lane;
use scrinium_segment::Error;

use self::disk::{Disk, DiskPlace};
use crate::config::Limits;

/// The queues between sources and server.
#[derive(Debug)]
pub struct Spool {
    queues: BTreeMap<StreamId, Queue>,
    /// Streams with something unsent, in the order of their turns. One may stand in the wrong lane, or
    /// twice, or have nothing left: looked at when its turn comes.
    live: VecDeque<StreamId>,
    backlog: VecDeque<StreamId>,
    disk: Disk,
    signing: SigningKey,
    ram_bytes: u64,
    ram_bytes_max: u64,
    entries: u64,
    /// Batches taken since the start.
    taken: u64,
    /// Of them, the number of the last one that was acked.
    acked: u64,
    /// Gap entries that may still be made in this session.
    gap_entries_left: u64,
}

#[derive(Debug)]
struct Queue {
    name: StreamName,
    items: VecDeque<Item>,
    /// How many of the front were sent in this session.
    sent: usize,
    on_disk: usize,
}

#[derive(Debug)]
struct Item {
    epoch: Epoch,
    first: Sequence,
    next: Sequence,
    previous: Head,
    head: Head,
    bookmark: Vec<u8>,
    count: u32,
    time_us: u64,
    /// Its number among those taken since the start, from 1 on; 0 for one made to fill a gap.
    taken: u64,
    /// It follows another batch than its bytes on the disk say.
    relinked: bool,
    at: Place,
}

#[derive(Debug)]
enum Place {
    Ram(Vec<u8>),
    Disk(DiskPlace),
}

/// A batch to be sent.
#[derive(Debug)]
pub struct Next {
    pub header: BatchHeader,
    pub encoded: Vec<u8>,
    pub name: StreamName,
    /// A crash would forget it.
    pub is_in_ram: bool,
}

/// What waits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fill {
    pub entries: u64,
    pub bytes: u64,
    /// When the oldest entry was collected, Unix µs; 0 when nothing waits.
    pub oldest_us: u64,
    pub disk_bytes: u64,
    pub disk_bytes_max: u64,
}

impl Item {
    fn new(header: &BatchHeader, at: Place) -> Self {
        Self {
            epoch: header.epoch,
            first: header.first,
            next: header.next(),
            previous: header.previous,
            head: header.head(),
            bookmark: header.bookmark.clone(),
            count: header.count,
            time_us: header.time_first_us,
            taken: 0,
            relinked: false,
            at,
        }
    }

    fn is_on_disk(&self) -> bool {
        matches!(self.at, Place::Disk(_))
    }

    fn position_after(&self) -> StreamPosition {
        StreamPosition {
            epoch: self.epoch,
            next: self.next,
            head: self.head,
            bookmark: self.bookmark.clone(),
        }
    }
}

impl Queue {
    fn lane(&self) -> Lane {
        if self.on_disk > 0 {
            Lane::Backlog
        } else {
            Lane::Live
        }
    }
}

impl Spool {
    /// Opens the segments of `dir`. What is damaged is left out and said; its streams are rewound
    /// to before it when the server has spoken.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(dir: &Path, key: &Secret<32>, limits: Limits, signing: SigningKey) -> Result<Self> {
        let (disk, found) = Disk::open(dir, key, limits.disk_bytes_max)?;
        let mut spool = Self {
            queues: BTreeMap::new(),
            live: VecDeque::new(),
            backlog: VecDeque::new(),
            disk,
            signing,
            ram_bytes: 0,
            ram_bytes_max: limits.ram_bytes_max,
            entries: 0,
            taken: 0,
            acked: 0,
            gap_entries_left: relink::GAP_ENTRIES_MAX,
        };
        for (name, header, place) in found {
            spool.disk.hold(place);
            spool.push(&name, &header, Place::Disk(place));
        }
        Ok(spool)
    }

    /// Sets other limits; what is over them stays, and no more comes.
    pub fn set_limits(&mut self, limits: Limits) {
        self.ram_bytes_max = limits.ram_bytes_max;
        self.disk.set_bytes_max(limits.disk_bytes_max);
    }

    /// Tries whether the disk takes anything at all.
    ///
    /// # Errors
    /// Why it does not.
    pub fn probe_disk(&self) -> Result<()> {
        self.disk.probe()
    }

    /// Whether RAM takes another batch.
    #[must_use]
    pub fn has_ram(&self) -> bool {
        self.ram_bytes < self.ram_bytes_max
    }

    /// Whether the disk takes what is in RAM.
    #[must_use]
    pub fn has_disk(&self) -> bool {
        self.disk.has_room(self.ram_bytes)
    }

    /// Entries that wait.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Takes a batch into RAM.
    pub fn add(&mut self, name: &StreamName, batch: &SealedBatch) {
        let encoded = batch.encoded();
        self.ram_bytes += encoded.len() as u64;
        self.push(name, &batch.header, Place::Ram(encoded));
    }

    fn push(&mut self, name: &StreamName, header: &BatchHeader, at: Place) {
        self.entries += u64::from(header.count);
        self.taken += 1;
        let item = Item {
            taken: self.taken,
            ..Item::new(header, at)
        };
        let queue = self.queues.entry(header.stream).or_insert_with(|| Queue {
            name: name.clone(),
            items: VecDeque::new(),
            sent: 0,
            on_disk: 0,
        });
        queue.on_disk += usize::from(item.is_on_disk());
        let was_idle = queue.sent == queue.items.len();
        queue.items.push_back(item);
        let lane = queue.lane();
        if was_idle {
            self.turns(lane).push_back(header.stream);
        }
    }

    fn turns(&mut self, lane: Lane) -> &mut VecDeque<StreamId> {
        match lane {
            Lane::Live => &mut self.live,
            Lane::Backlog => &mut self.backlog,
        }
    }

    /// Moves everything from RAM to the disk; durable when this returns.
    ///
    /// # Errors
    /// The disk does not take it; RAM still holds it.
    pub fn spill(&mut self) -> Result<()> {
        self.spill_where(|_| true)
    }

    /// Moves to the disk what waits in RAM behind something on the disk.
    ///
    /// # Errors
    /// The disk does not take it; RAM still holds it.
    pub fn spill_backlog(&mut self) -> Result<()> {
        self.spill_where(|queue| queue.lane() == Lane::Backlog)
    }

    /// Whether [`Spool::spill_backlog`] would make room.
    #[must_use]
    pub fn has_backlog_in_ram(&self) -> bool {
        self.queues
            .values()
            .any(|queue| queue.on_disk > 0 && queue.on_disk < queue.items.len())
    }

    fn spill_where(&mut self, which: impl Fn(&Queue) -> bool) -> Result<()> {
        let mut moved = Vec::new();
        for (stream, queue) in self.queues.iter().filter(|(_, queue)| which(queue)) {
            for (i, item) in queue.items.iter().enumerate() {
                if let Place::Ram(encoded) = &item.at {
                    moved.push((*stream, i, self.disk.append(&queue.name, encoded)?));
                }
            }
        }
        self.disk.sync()?;
        // At this point both copies are there; RAM forgets its own.
        for (stream, i, place) in moved {
            let Some(queue) = self.queues.get_mut(&stream) else {
                continue;
            };
            let lane = queue.lane();
            if let Some(item) = queue.items.get_mut(i)
                && let Place::Ram(encoded) = &item.at
            {
                self.ram_bytes -= encoded.len() as u64;
                item.at = Place::Disk(place);
                self.disk.hold(place);
                queue.on_disk += 1;
            }
            if lane == Lane::Live && queue.sent < queue.items.len() {
                self.backlog.push_back(stream);
            }
        }
        self.disk.remove_unheld()
    }

    /// The next batch of `lane` not yet sent in this session.
    ///
    /// # Errors
    /// A segment cannot be read. Is it damaged, the batch is dropped: the next [`Spool::reconcile`] finds
    /// that it is missing.
    pub fn peek(&mut self, lane: Lane) -> Result<Option<Next>> {
        while let Some(&stream) = self.turns(lane).front() {
            let queue = self.queues.get(&stream);
            let queue = queue.filter(|queue| queue.lane() == lane);
            let Some((queue, item)) =
                queue.and_then(|queue| Some((queue, queue.items.get(queue.sent)?)))
            else {
                self.turns(lane).pop_front();
                continue;
            };
            let encoded = match self.read(item) {
                Ok(encoded) => encoded,
                Err(error) => {
                    if is_damage(&error) {
                        self.drop_unsent(stream);
                    }
                    return Err(error);
                }
            };
            return Ok(Some(Next {
                header: SealedBatch::decode(&encoded, "batch")?.header,
                name: queue.name.clone(),
                is_in_ram: matches!(item.at, Place::Ram(_)),
                encoded,
            }));
        }
        Ok(None)
    }

    /// Drops the next unsent batch of a stream.
    fn drop_unsent(&mut self, stream: StreamId) {
        let Some(queue) = self.queues.get_mut(&stream) else {
            return;
        };
        if let Some(item) = queue.items.remove(queue.sent) {
            queue.on_disk -= usize::from(item.is_on_disk());
            self.forget(&item);
        }
    }

    /// The batch of `lane` last peeked at was sent: the next stream has its turn.
    pub fn advance(&mut self, lane: Lane) {
        let Some(stream) = self.turns(lane).pop_front() else {
            return;
        };
        if let Some(queue) = self.queues.get_mut(&stream) {
            queue.sent += 1;
            if queue.sent < queue.items.len() {
                self.turns(lane).push_back(stream);
            }
        }
    }

    /// A new session sends everything unacked again.
    pub fn restart(&mut self) {
        self.gap_entries_left = relink::GAP_ENTRIES_MAX;
        self.live.clear();
        self.backlog.clear();
        for (stream, queue) in &mut self.queues {
            queue.sent = 0;
            if !queue.items.is_empty() {
                match queue.lane() {
                    Lane::Live => self.live.push_back(*stream),
                    Lane::Backlog => self.backlog.push_back(*stream),
                }
            }
        }
    }

    /// Everything of `stream` before `next` is durable on the server.
    pub fn ack(&mut self, stream: StreamId, next: Sequence) {
        let acked = self.queues.get(&stream).map_or(0, |queue| {
            let before = |item: &&Item| item.next <= next;
            queue.items.iter().take_while(before).count()
        });
        let last = self.queues.get(&stream).into_iter();
        let last = last.flat_map(|queue| queue.items.iter().take(acked));
        self.acked = last.map(|item| item.taken).fold(self.acked, u64::max);
        self.drop_front(stream, acked);
    }

    /// Forgets everything of the streams that are `unwanted`, which is told each one's name and entries.
    pub fn give_up(&mut self, mut unwanted: impl FnMut(StreamId, &StreamName, u32) -> bool) {
        let streams: Vec<(StreamId, usize)> = self
            .queues
            .iter()
            .filter(|(stream, queue)| {
                let entries = queue.items.iter().map(|item| item.count).sum();
                unwanted(**stream, &queue.name, entries)
            })
            .map(|(stream, queue)| (*stream, queue.items.len()))
            .collect();
        for (stream, items) in streams {
            self.drop_front(stream, items);
        }
    }

    /// How many batches were taken since the start, and the number of the last of them that was acked.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.taken, self.acked)
    }

    /// The batch that each stream waits for: what its epoch and next sequence will be.
    #[must_use]
    pub fn fronts(&self) -> BTreeMap<StreamId, (Epoch, Sequence)> {
        let front = |queue: &Queue| queue.items.front().map(|item| (item.epoch, item.next));
        let queues = self.queues.iter();
        queues
            .filter_map(|(stream, queue)| Some((*stream, front(queue)?)))
            .collect()
    }

    /// Whether that batch of a stream still waits.
    #[must_use]
    pub fn waits(&self, stream: StreamId, front: (Epoch, Sequence)) -> bool {
        let queue = self.queues.get(&stream);
        queue.is_some_and(|queue| {
            let mut items = queue.items.iter();
            items.any(|item| (item.epoch, item.next) == front)
        })
    }

    /// Removes the segments in which nothing waits any more. Those that stay, because the disk refuses, do
    /// no harm: at the next start the server says that it has what is in them.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn remove_acked(&mut self) -> Result<()> {
        self.disk.remove_unheld()
    }

    fn drop_front(&mut self, stream: StreamId, count: usize) {
        let Some(mut queue) = self.queues.remove(&stream) else {
            return;
        };
        for item in queue.items.drain(..count) {
            queue.on_disk -= usize::from(item.is_on_disk());
            self.forget(&item);
        }
        queue.sent = queue.sent.saturating_sub(count);
        let (lane, has_unsent) = (queue.lane(), queue.sent < queue.items.len());
        if has_unsent && lane == Lane::Live && !self.live.contains(&stream) {
            // Its last batch on the disk is acked: what it has in RAM is live now.
            self.live.push_back(stream);
        }
        if !queue.items.is_empty() {
            self.queues.insert(stream, queue);
        }
    }

    fn forget(&mut self, item: &Item) {
        self.entries -= u64::from(item.count);
        match &item.at {
            Place::Ram(encoded) => self.ram_bytes -= encoded.len() as u64,
            Place::Disk(place) => self.disk.release(*place),
        }
    }

    /// Where each stream stands after the last of its batches here.
    #[must_use]
    pub fn ends(&self) -> BTreeMap<StreamId, StreamPosition> {
        let last = |queue: &Queue| Some(queue.items.back()?.position_after());
        let queues = self.queues.iter();
        queues
            .filter_map(|(stream, queue)| Some((*stream, last(queue)?)))
            .collect()
    }

    fn read(&self, item: &Item) -> Result<Vec<u8>> {
        let place = match &item.at {
            Place::Ram(encoded) => return Ok(encoded.clone()),
            Place::Disk(place) => *place,
        };
        let encoded = self.disk.read(place)?;
        if !item.relinked {
            return Ok(encoded);
        }
        let mut batch = SealedBatch::decode(&encoded, "batch")?;
        let position = StreamPosition {
            epoch: item.epoch,
            next: item.first,
            head: item.previous,
            bookmark: Vec::new(),
        };
        batch.header.relink(&position, &self.signing);
        Ok(batch.encoded())
    }

    #[must_use]
    pub fn fill(&self) -> Fill {
        let oldest = self.queues.values().filter_map(|queue| queue.items.front());
        Fill {
            entries: self.entries,
            bytes: self.ram_bytes + self.disk.bytes(),
            oldest_us: oldest.map(|item| item.time_us).min().unwrap_or(0),
            disk_bytes: self.disk.bytes(),
            disk_bytes_max: self.disk.bytes_max(),
        }
    }
}

/// Whether what was read is not what was written; else the disk may give it later.
fn is_damage(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(Error::Header { .. } | Error::Record { .. }) => true,
        Some(Error::Io { source, .. }) => source.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
