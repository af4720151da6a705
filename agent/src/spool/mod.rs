//! Batches wait here: in RAM first, then in sealed segments on the disk, until the server has acked
//! them.
//!
//! ```text
//! sources ─▶ [ queue: on disk … | in RAM … ] ─▶ uplink        front = oldest
//!                └─ segments ([disk])   └─ spill when the link is down and RAM is full, and at the stop
//! ```
//!
//! Invariants:
//! 1. The queue is in order per stream; everything on disk is older than everything in RAM.
//! 2. A batch leaves only by an ack, or because its stream is rewound.
//! 3. Full is full: nothing is dropped, the sources wait.

mod disk;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use anyhow::Result;
use scrinium_protocol::batch::{BatchHeader, SealedBatch, StreamPosition};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::identity::{Head, Sequence, StreamId};
use scrinium_protocol::secret::Secret;

use self::disk::{Disk, DiskPlace};

/// The queue between sources and server.
pub(crate) struct Spool {
    queue: VecDeque<Item>,
    /// How many of the front were sent in this session.
    sent: usize,
    names: BTreeMap<StreamId, String>,
    disk: Disk,
    ram_bytes: u64,
    ram_bytes_max: u64,
    entries: u64,
}

struct Item {
    stream: StreamId,
    first: Sequence,
    next: Sequence,
    previous: Head,
    head: Head,
    count: u32,
    time_us: u64,
    acked: bool,
    at: Place,
}

enum Place {
    Ram(Vec<u8>),
    Disk(DiskPlace),
}

/// A batch to be sent.
pub(crate) struct Next {
    pub(crate) header: BatchHeader,
    pub(crate) encoded: Vec<u8>,
    pub(crate) name: String,
    pub(crate) is_in_ram: bool,
}

/// What waits.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fill {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) oldest_us: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) disk_bytes_max: u64,
}

impl Spool {
    /// Opens the segments of `dir`. What is damaged is left out and said; its streams are rewound
    /// to before it when the server has spoken.
    pub(crate) fn open(
        dir: &Path,
        key: &Secret<32>,
        ram_bytes_max: u64,
        disk_bytes_max: u64,
    ) -> Result<Self> {
        let (disk, found) = Disk::open(dir, key, disk_bytes_max)?;
        let mut spool = Self {
            queue: VecDeque::new(),
            sent: 0,
            names: BTreeMap::new(),
            disk,
            ram_bytes: 0,
            ram_bytes_max,
            entries: 0,
        };
        for (name, header, place) in found {
            spool.names.insert(header.stream, name);
            spool.push(&header, Place::Disk(place));
        }
        Ok(spool)
    }

    /// Whether RAM takes another batch.
    pub(crate) fn has_ram(&self) -> bool {
        self.ram_bytes < self.ram_bytes_max
    }

    /// Whether the disk takes what is in RAM.
    pub(crate) fn has_disk(&self) -> bool {
        self.disk.has_room(self.ram_bytes)
    }

    /// Takes a batch into RAM.
    pub(crate) fn add(&mut self, name: &str, batch: &SealedBatch) {
        let encoded = batch.encoded();
        self.ram_bytes += encoded.len() as u64;
        self.names
            .entry(batch.header.stream)
            .or_insert_with(|| name.to_owned());
        self.push(&batch.header, Place::Ram(encoded));
    }

    fn push(&mut self, header: &BatchHeader, at: Place) {
        self.entries += u64::from(header.count);
        self.queue.push_back(Item {
            stream: header.stream,
            first: header.first,
            next: header.next(),
            previous: header.previous,
            head: header.head(),
            count: header.count,
            time_us: header.time_first_us,
            acked: false,
            at,
        });
    }

    /// Moves everything from RAM to the disk; durable when this returns.
    pub(crate) fn spill(&mut self) -> Result<()> {
        let names = &self.names;
        let mut moved = Vec::new();
        for (i, item) in self.queue.iter().enumerate() {
            if let Place::Ram(encoded) = &item.at
                && !item.acked
            {
                let name = names.get(&item.stream).map_or("", String::as_str);
                moved.push((i, self.disk.append(name, encoded)?));
            }
        }
        self.disk.sync()?;
        // At this point both copies are there; RAM forgets its own.
        for (i, place) in moved {
            if let Some(item) = self.queue.get_mut(i) {
                item.at = Place::Disk(place);
            }
        }
        self.ram_bytes = 0;
        Ok(())
    }

    /// The oldest batch not yet sent in this session.
    pub(crate) fn peek(&mut self) -> Result<Option<Next>> {
        while self.queue.get(self.sent).is_some_and(|item| item.acked) {
            self.sent += 1;
        }
        let Some(item) = self.queue.get(self.sent) else {
            return Ok(None);
        };
        let encoded = match &item.at {
            Place::Ram(encoded) => encoded.clone(),
            Place::Disk(place) => self.disk.read(*place)?,
        };
        let batch = SealedBatch::decode(&encoded, "batch")?;
        Ok(Some(Next {
            header: batch.header,
            name: self.names.get(&item.stream).cloned().unwrap_or_default(),
            is_in_ram: matches!(item.at, Place::Ram(_)),
            encoded,
        }))
    }

    /// The batch last peeked at was sent.
    pub(crate) fn advance(&mut self) {
        self.sent += 1;
    }

    /// A new session sends everything unacked again.
    pub(crate) fn restart(&mut self) {
        self.sent = 0;
    }

    /// Everything of `stream` before `next` is durable on the server.
    pub(crate) fn ack(&mut self, stream: StreamId, next: Sequence) -> Result<()> {
        for item in self
            .queue
            .iter_mut()
            .take_while(|item| item.stream != stream || item.next <= next)
        {
            if item.stream == stream && !item.acked {
                item.acked = true;
                self.entries -= u64::from(item.count);
                if let Place::Ram(encoded) = &mut item.at {
                    self.ram_bytes -= encoded.len() as u64;
                    *encoded = Vec::new();
                }
            }
        }
        self.remove_acked()
    }

    fn remove_acked(&mut self) -> Result<()> {
        let before = self.queue.len();
        while self.queue.pop_front_if(|item| item.acked).is_some() {}
        self.sent = self.sent.saturating_sub(before - self.queue.len());
        let oldest = self.queue.iter().find_map(|item| match item.at {
            Place::Disk(place) if !item.acked => Some(place.segment),
            Place::Disk(_) | Place::Ram(_) => None,
        });
        self.disk.remove_before(oldest)
    }

    /// Compares what waits of one stream with where the server stands: what it has is dropped, what
    /// follows is kept, and what follows nothing is dropped too. Returns the position after what is
    /// kept: the source must go on there.
    pub(crate) fn reconcile(
        &mut self,
        stream: StreamId,
        server: &StreamPosition,
    ) -> Result<StreamPosition> {
        let mut expected = server.clone();
        let mut last_kept = None;
        for i in 0..self.queue.len() {
            let Some(item) = self
                .queue
                .get_mut(i)
                .filter(|item| item.stream == stream && !item.acked)
            else {
                continue;
            };
            if item.first == expected.next && item.previous == expected.head {
                expected.next = item.next;
                expected.head = item.head;
                last_kept = Some(i);
                continue;
            }
            item.acked = true;
            self.entries -= u64::from(item.count);
            if let Place::Ram(encoded) = &mut item.at {
                self.ram_bytes -= encoded.len() as u64;
                *encoded = Vec::new();
            }
        }
        if let Some(item) = last_kept.and_then(|i| self.queue.get(i)) {
            let encoded = match &item.at {
                Place::Ram(encoded) => encoded.clone(),
                Place::Disk(place) => self.disk.read(*place)?,
            };
            expected = SealedBatch::decode(&encoded, "batch")?
                .header
                .position_after();
        }
        self.remove_acked()?;
        Ok(expected)
    }

    /// Where each stream stands after the last of its batches here.
    pub(crate) fn ends(&self) -> Result<BTreeMap<StreamId, StreamPosition>> {
        let mut last = BTreeMap::new();
        for item in self.queue.iter().filter(|item| !item.acked) {
            last.insert(item.stream, item);
        }
        let mut ends = BTreeMap::new();
        for (stream, item) in last {
            let encoded = match &item.at {
                Place::Ram(encoded) => encoded.clone(),
                Place::Disk(place) => self.disk.read(*place)?,
            };
            ends.insert(
                stream,
                SealedBatch::decode(&encoded, "batch")?
                    .header
                    .position_after(),
            );
        }
        Ok(ends)
    }

    pub(crate) fn fill(&self) -> Fill {
        let waiting = || self.queue.iter().filter(|item| !item.acked);
        Fill {
            entries: self.entries,
            bytes: self.ram_bytes + self.disk.bytes(),
            oldest_us: waiting().next().map_or(0, |item| item.time_us),
            disk_bytes: self.disk.bytes(),
            disk_bytes_max: self.disk.bytes_max(),
        }
    }
}
