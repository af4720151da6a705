//! Batches of streams that are new, and came faster than the agent may have new ones: they wait here for their turn, while
//! everything else of the session goes on.
//!
//! ```text
//! batch of a stream that exists ─▶ the writer
//! batch of a new one, too fast ──▶ [Held] ─ as the pace allows ─▶ the writer, its stream before it
//! ```
//!
//! What waits is not acknowledged: if the session ends, the agent sends it again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use scrinium_protocol::batch::SealedBatch;
use scrinium_protocol::identity::StreamId;

use crate::archive::log::Inside;
use crate::catalogue::records::StreamRecord;

/// Bytes that the sessions of all agents hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeldBytes(Arc<AtomicUsize>);

/// What waits of one session, stream by stream in the order in which they came.
pub(super) struct Held {
    order: VecDeque<StreamId>,
    streams: BTreeMap<StreamId, HeldStream>,
    bytes: usize,
    all: HeldBytes,
}

/// A stream that is new, and its batches.
pub(super) struct HeldStream {
    pub(super) record: StreamRecord,
    pub(super) batches: Vec<HeldBatch>,
    bytes: usize,
}

/// A batch whose signature and root were checked.
pub(super) struct HeldBatch {
    pub(super) batch: SealedBatch,
    pub(super) encoded: Vec<u8>,
    pub(super) inside: Inside,
}

impl HeldBatch {
    /// Memory it takes: once as it came, once taken apart.
    fn bytes(&self) -> usize {
        2 * self.encoded.len() + BATCH_OVERHEAD
    }
}

impl Held {
    pub(super) fn new(all: HeldBytes) -> Self {
        Self {
            order: VecDeque::new(),
            streams: BTreeMap::new(),
            bytes: 0,
            all,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// How many streams wait.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn has(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream)
    }

    /// The first batch of a new stream waits. `false` when there is no room.
    #[must_use]
    pub(super) fn push_stream(&mut self, record: StreamRecord, batch: HeldBatch) -> bool {
        let bytes = batch.bytes() + record.name.len() + STREAM_OVERHEAD;
        if !self.take_room(bytes) {
            return false;
        }
        self.order.push_back(record.id);
        let stream = HeldStream {
            record,
            batches: vec![batch],
            bytes,
        };
        self.streams.insert(stream.record.id, stream);
        true
    }

    /// A further batch of a stream that waits. `false` when there is no room.
    #[must_use]
    pub(super) fn push(&mut self, id: StreamId, batch: HeldBatch) -> bool {
        let bytes = batch.bytes();
        if !self.take_room(bytes) {
            return false;
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.batches.push(batch);
            stream.bytes += bytes;
        }
        true
    }

    /// The stream whose turn is next.
    pub(super) fn front(&self) -> Option<&StreamRecord> {
        let stream = self.streams.get(self.order.front()?)?;
        Some(&stream.record)
    }

    /// Takes that one out, with all of its batches.
    pub(super) fn pop(&mut self) -> Option<HeldStream> {
        let stream = self.streams.remove(&self.order.pop_front()?)?;
        self.give_room(stream.bytes);
        Some(stream)
    }

    fn take_room(&mut self, bytes: usize) -> bool {
        let all = self.all.0.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let own = self.bytes + bytes;
        let has_room = own <= EACH_BYTES_MAX && (all <= ALL_BYTES_MAX || own <= EACH_BYTES_KEPT);
        self.bytes = own;
        if !has_room {
            self.give_room(bytes);
        }
        has_room
    }

    fn give_room(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.all.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_room(self.bytes);
    }
}

/// Of one session: what both lanes of an agent have in flight when its batches are large, and some 10,000 small ones.
const EACH_BYTES_MAX: usize = 8 << 20;
/// Of all sessions together.
const ALL_BYTES_MAX: usize = 32 << 20;
/// Of one session, however much others hold: an agent that begins has no more in flight before its first receipt than twice that.
const EACH_BYTES_KEPT: usize = 512 << 10;
/// What a batch takes beside its bytes.
const BATCH_OVERHEAD: usize = 512;
/// What a stream takes beside its name.
const STREAM_OVERHEAD: usize = 512;

#[cfg(test)]
mod tests {
    use scrinium_protocol::batch::{BatchBuilder, StreamPosition};
    use scrinium_protocol::codec::Codec as _;
    use scrinium_protocol::compress::Compressor;
    use scrinium_protocol::entry::{EntryFlags, EntryMeta};
    use scrinium_protocol::identity::{AgentId, Epoch, StreamKind};

    use super::*;
    use crate::archive::log::new_stream;

    #[test]
    fn what_one_session_holds_is_bounded_and_others_have_their_part() {
        let all = HeldBytes::default();
        let mut sessions: Vec<Held> = (0..6).map(|_| Held::new(all.clone())).collect();
        let mut counts = Vec::new();
        for session in &mut sessions {
            let mut n = 0;
            while session.push_stream(stream(n), batch(n, 64 << 10)) {
                n += 1;
            }
            counts.push(session.bytes);
        }
        assert!(counts.iter().all(|&bytes| bytes <= EACH_BYTES_MAX));
        assert!(counts[..4].iter().all(|&bytes| bytes > EACH_BYTES_MAX / 2));
        assert!(counts[5] > EACH_BYTES_KEPT / 2, "{counts:?}");
        assert!(counts[5] <= EACH_BYTES_KEPT, "{counts:?}");
        assert_eq!(all.0.load(Ordering::Relaxed), counts.iter().sum::<usize>());
        drop(sessions);
        assert_eq!(all.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_stream_leaves_with_all_of_its_batches_and_the_first_one_first() {
        let mut held = Held::new(HeldBytes::default());
        for n in [7, 3, 5] {
            assert!(held.push_stream(stream(n), batch(n, 10)));
        }
        assert!(held.push(stream(7).id, batch(7, 10)));
        assert!(held.has(stream(7).id) && held.len() == 3);
        assert_eq!(held.front().unwrap().id, stream(7).id);
        let first = held.pop().unwrap();
        assert_eq!((first.record.id, first.batches.len()), (stream(7).id, 2));
        assert!(!held.has(stream(7).id));
        assert_eq!(held.pop().unwrap().record.id, stream(3).id);
        assert_eq!(held.pop().unwrap().record.id, stream(5).id);
        assert!(held.pop().is_none() && held.is_empty());
        assert_eq!((held.bytes, held.all.0.load(Ordering::Relaxed)), (0, 0));
    }

    fn stream(n: u32) -> StreamRecord {
        let agent = AgentId([1; 16]);
        let id = StreamId::derive(agent, StreamKind::File, &n.to_string());
        new_stream(id, agent, StreamKind::File, n.to_string())
    }

    /// `len` is of what the session is charged for, give or take.
    fn batch(n: u32, len: usize) -> HeldBatch {
        let stream = stream(n);
        let mut builder = BatchBuilder::new();
        let meta = EntryMeta {
            time_us: 1,
            flags: EntryFlags::NONE,
        };
        assert!(builder.push(b"line\n", meta));
        let start = StreamPosition::start(stream.agent, stream.id, Epoch([7; 16]));
        let key = ed25519_dalek::SigningKey::from_bytes(&[5; 32]);
        let mut compressor = Compressor::new(1);
        let (batch, _) = builder.seal(stream.id, &start, Vec::new(), &key, &mut compressor);
        let mut encoded = batch.encoded();
        encoded.resize(len.max(encoded.len()), 0);
        HeldBatch {
            batch,
            encoded,
            inside: Inside {
                last_us: 1,
                bytes: 1,
                words: crate::index::words::Words::ANY,
            },
        }
    }
}
