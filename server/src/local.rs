//! Streams the server makes itself: syslog senders, and its own audit trail.
//!
//! ```text
//! syslog listeners ─┐
//! console, commands ┴─▶ queue ─▶ batches, signed with the server's key ─▶ ingest
//! ```
//!
//! Streams rest in the archive: of those that were silent nothing is held here, and new senders are counted
//! (`scrinium_syslog::senders`), so strangers cannot fill the memory.
//!
//! One round collects, seals and submits, and ends when all of it is durable; what the disk did not
//! take is submitted again, byte for byte. Meanwhile the queue fills: TCP senders wait, and UDP
//! datagrams that find it full are counted and become a gap entry.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use scrinium_protocol::batch::{BatchBuilder, SealedBatch, StreamPosition};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::compress::{AGENT_LEVEL, Compressor};
use scrinium_protocol::entry::{ENTRY_LEN_MAX, EntryFlags, EntryMeta};
use scrinium_protocol::identity::{AgentId, Epoch, StreamId, StreamKind};
use scrinium_segment::fault;
use scrinium_syslog::senders::{Placed, SenderLimits, Senders, is_sender};
use scrinium_syslog::{Received, Sink};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::error;

use crate::archive::Archive;
use crate::archive::log::{Inside, new_stream};
use crate::catalogue::records::StreamRecord;
use crate::clock;
use crate::ingest::{BatchSubmission, Outcome, Queue, Submission};

/// One entry of a stream the server makes.
pub(crate) struct LocalEntry {
    pub(crate) kind: StreamKind,
    pub(crate) name: String,
    /// The connection it came on; 0 where there is none.
    pub(crate) connection: u64,
    pub(crate) time_us: u64,
    pub(crate) flags: EntryFlags,
    pub(crate) bytes: Vec<u8>,
    /// Answered when the entry is durable.
    pub(crate) durable: Option<oneshot::Sender<()>>,
    /// What it takes of the [`Room`], until it is durable; none of what the server says itself.
    pub(crate) room: Option<OwnedSemaphorePermit>,
}

/// The way in. A full queue holds [`QUEUE_MAX`] entries.
pub(crate) type LocalQueue = mpsc::Sender<LocalEntry>;

/// Bytes of what senders sent that is not durable yet: each kind of listener has as many, so that datagrams have room
/// while connections fill theirs.
#[derive(Clone)]
pub(crate) struct Room {
    udp: Arc<Semaphore>,
    tcp: Arc<Semaphore>,
}

impl Room {
    pub(crate) fn new() -> Self {
        let room = || Arc::new(Semaphore::new(ROOM_MAX));
        Self {
            udp: room(),
            tcp: room(),
        }
    }

    /// The bytes an entry counts for, and whose.
    fn of(&self, received: &Received) -> (&Arc<Semaphore>, u32) {
        let counted = received.bytes.len().saturating_add(ENTRY_COST);
        let counted = counted.max(ENTRY_COST_MIN);
        let counted = u32::try_from(counted.min(ROOM_MAX)).unwrap_or(u32::MAX);
        let room = if received.kind == StreamKind::SyslogUdp {
            &self.udp
        } else {
            &self.tcp
        };
        (room, counted)
    }
}

/// Where the syslog listeners put what they receive.
#[derive(Clone)]
pub(crate) struct SyslogSink {
    pub(crate) queue: LocalQueue,
    pub(crate) room: Room,
    /// Datagrams that were dropped.
    pub(crate) dropped: Arc<AtomicU64>,
}

impl Sink for SyslogSink {
    fn now_us(&self) -> u64 {
        clock::unix_us()
    }

    fn now(&self) -> std::time::Instant {
        clock::now()
    }

    fn try_put(&self, received: Received) -> bool {
        let (room, counted) = self.room.of(&received);
        let Ok(room) = room.clone().try_acquire_many_owned(counted) else {
            return false;
        };
        self.queue.try_send(entry(received, room)).is_ok()
    }

    async fn put(&self, received: Received) -> bool {
        let (room, counted) = self.room.of(&received);
        let Ok(room) = room.clone().acquire_many_owned(counted).await else {
            return false;
        };
        self.queue.send(entry(received, room)).await.is_ok()
    }

    fn dropped(&self, datagrams: u64) {
        self.dropped.fetch_add(datagrams, Ordering::Relaxed);
    }
}

fn entry(received: Received, room: OwnedSemaphorePermit) -> LocalEntry {
    LocalEntry {
        kind: received.kind,
        name: received.name,
        connection: received.connection,
        time_us: received.time_us,
        flags: received.flags,
        bytes: received.bytes,
        durable: None,
        room: Some(room),
    }
}

/// Entries of senders that have no stream of their own, since the start.
#[derive(Debug, Default)]
pub(crate) struct Unknown(AtomicU64);

impl Unknown {
    pub(crate) fn entries(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs until every sender is gone and all they sent is durable.
pub(crate) async fn run(
    archive: Arc<Archive>,
    agent: AgentId,
    signing: SigningKey,
    ingest: Queue,
    mut entries: mpsc::Receiver<LocalEntry>,
    limits: SenderLimits,
    unknown: Arc<Unknown>,
) {
    let mut maker = Maker::new(archive, agent, signing, limits, unknown);
    let mut buffer = Vec::new();
    while entries.recv_many(&mut buffer, ROUND_MAX).await > 0 {
        fault::point("server: entries of its own taken");
        let mut waiting = Vec::new();
        let mut sealed = Vec::new();
        // Given back when all of the round is durable.
        let mut room = Vec::new();
        for mut entry in buffer.drain(..) {
            room.extend(entry.room.take());
            sealed.extend(maker.add(entry, &mut waiting));
        }
        sealed.extend(maker.seal_all());
        if submit(&ingest, agent, sealed).await {
            for durable in waiting {
                let _gave_up = durable.send(());
            }
            if maker.streams.len() > HELD_MAX {
                // All of it is durable: each is taken up again where the archive stands.
                maker.streams.clear();
            }
        } else {
            // Whoever waits learns from the dropped senders that it is not durable. The streams are
            // taken up again where the archive stands.
            maker.streams.clear();
        }
        drop(room);
        // Gathers a few more before the next batch of a quiet stream, at the cost of this delay.
        if entries.len() < GATHER_MIN {
            tokio::time::sleep(GATHER_DELAY).await;
        }
    }
}

/// Submits until the disk took everything, introductions of streams included. `false` when not
/// everything is durable: the server stops, or the archive holds another history.
async fn submit(ingest: &Queue, agent: AgentId, submissions: Vec<Made>) -> bool {
    let mut left = submissions;
    let mut all_durable = true;
    while !left.is_empty() {
        let mut answers = Vec::new();
        for made in &left {
            let (answer, outcome) = oneshot::channel();
            let submission = Submission::Batch(BatchSubmission {
                agent,
                batch: made.batch.clone(),
                encoded: made.batch.encoded(),
                inside: made.inside,
                answer,
            });
            let introduction = made.stream.clone().map(Submission::Stream);
            let sent = tokio::task::block_in_place(|| {
                introduction.is_none_or(|stream| ingest.send(stream).is_ok())
                    && ingest.send(submission).is_ok()
            });
            if !sent {
                return false; // the server stops; nothing of this was promised to anyone
            }
            answers.push(outcome);
        }
        let mut failed = Vec::new();
        for (outcome, item) in answers.into_iter().zip(left) {
            match outcome.await {
                Ok(Outcome::Durable(_)) => {}
                Ok(Outcome::NotWritten) => failed.push(item),
                // It follows one that was not written: both go again.
                Ok(Outcome::Conflict | Outcome::Stale(_)) if !failed.is_empty() => {
                    failed.push(item)
                }
                Ok(Outcome::Conflict | Outcome::Stale(_)) => {
                    error!("a batch of the server's own was refused as conflicting");
                    all_durable = false;
                }
                Err(_) => return false,
            }
        }
        left = failed;
        if !left.is_empty() {
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }
    all_durable
}

struct Made {
    stream: Option<StreamRecord>,
    batch: SealedBatch,
    /// The time of its last entry, Unix µs.
    inside: Inside,
}

struct Maker {
    archive: Arc<Archive>,
    agent: AgentId,
    signing: SigningKey,
    compressor: Compressor,
    streams: BTreeMap<StreamId, LocalStream>,
    senders: Senders,
    unknown: Arc<Unknown>,
}

struct LocalStream {
    builder: BatchBuilder,
    position: StreamPosition,
    introduction: Option<StreamRecord>,
}

impl Maker {
    fn new(
        archive: Arc<Archive>,
        agent: AgentId,
        signing: SigningKey,
        limits: SenderLimits,
        unknown: Arc<Unknown>,
    ) -> Self {
        let is_sender =
            |stream: &StreamRecord| stream.agent == agent && is_sender(stream.kind, &stream.name);
        let known = archive.matching(is_sender).len();
        Self {
            senders: Senders::new(limits, known),
            archive,
            agent,
            signing,
            compressor: Compressor::new(AGENT_LEVEL),
            streams: BTreeMap::new(),
            unknown,
        }
    }

    /// Adds an entry; one that is too long becomes linked fragments. Returns the batches it filled.
    fn add(&mut self, entry: LocalEntry, waiting: &mut Vec<oneshot::Sender<()>>) -> Vec<Made> {
        waiting.extend(entry.durable);
        let received = Received {
            kind: entry.kind,
            name: entry.name,
            connection: entry.connection,
            time_us: entry.time_us,
            flags: entry.flags,
            bytes: entry.bytes,
        };
        let (archive, streams, agent) = (&self.archive, &self.streams, self.agent);
        let placed = self.senders.place(received, |received| {
            let id = StreamId::derive(agent, received.kind, &received.name);
            streams.contains_key(&id) || archive.has_stream(id)
        });
        match placed {
            Placed::Own { line_end, entry } => {
                let mut made = line_end.map_or_else(Vec::new, |end| self.add_own(&end));
                made.extend(self.add_own(&entry));
                made
            }
            Placed::Unknown(entries) => {
                self.unknown.0.fetch_add(1, Ordering::Relaxed);
                self.add_linked(&entries)
            }
        }
    }

    fn add_own(&mut self, entry: &Received) -> Vec<Made> {
        let (id, stream, signing, compressor) = self.stream(entry);
        let mut made = Vec::new();
        let mut rest = entry.bytes.as_slice();
        loop {
            let (piece, after) = rest.split_at(rest.len().min(ENTRY_LEN_MAX));
            rest = after;
            let flags = if rest.is_empty() {
                entry.flags
            } else {
                entry.flags.and(EntryFlags::FRAGMENT)
            };
            if !stream.builder.has_room(piece.len()) {
                made.push(stream.seal(id, signing, compressor));
            }
            let time_us = entry.time_us;
            stream.push(piece, EntryMeta { time_us, flags });
            if rest.is_empty() {
                return made;
            }
        }
    }

    /// Adds the pieces of one line, none longer than an entry, to one batch: whoever reads it sees one line.
    fn add_linked(&mut self, entries: &[Received]) -> Vec<Made> {
        let Some(first) = entries.first() else {
            return Vec::new();
        };
        let (id, stream, signing, compressor) = self.stream(first);
        let mut made = Vec::new();
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let len = entries.iter().map(|entry| entry.bytes.len()).sum();
        if !stream.builder.has_room_for(count, len) {
            made.push(stream.seal(id, signing, compressor));
        }
        for entry in entries {
            let (time_us, flags) = (entry.time_us, entry.flags);
            stream.push(&entry.bytes, EntryMeta { time_us, flags });
        }
        made
    }

    /// The stream of an entry, taken up where the archive stands.
    fn stream(
        &mut self,
        entry: &Received,
    ) -> (StreamId, &mut LocalStream, &SigningKey, &mut Compressor) {
        let id = StreamId::derive(self.agent, entry.kind, &entry.name);
        let (archive, agent) = (&self.archive, self.agent);
        let stream = self.streams.entry(id).or_insert_with(|| {
            let known = archive.stream(id);
            let introduction = new_stream(id, agent, entry.kind, entry.name.clone());
            let start = StreamPosition::start(agent, id, Epoch::default());
            LocalStream {
                builder: BatchBuilder::new(),
                position: known
                    .as_ref()
                    .map_or(start, |stream| stream.position.clone()),
                introduction: known.is_none().then_some(introduction),
            }
        });
        (id, stream, &self.signing, &mut self.compressor)
    }

    fn seal_all(&mut self) -> Vec<Made> {
        let pending = self
            .streams
            .iter_mut()
            .filter(|(_, stream)| !stream.builder.is_empty());
        pending
            .map(|(id, stream)| stream.seal(*id, &self.signing, &mut self.compressor))
            .collect()
    }
}

impl LocalStream {
    /// Adds an entry, for which there is room: an empty batch takes every piece.
    fn push(&mut self, bytes: &[u8], meta: EntryMeta) {
        if !self.builder.push(bytes, meta) {
            error!(
                bytes = bytes.len(),
                "an entry did not fit into a batch and is lost; please report this"
            );
        }
    }

    fn seal(&mut self, id: StreamId, key: &SigningKey, compressor: &mut Compressor) -> Made {
        let inside = Inside::built(&self.builder);
        let (batch, after) = self
            .builder
            .seal(id, &self.position, Vec::new(), key, compressor);
        self.position = after;
        Made {
            stream: self.introduction.take(),
            batch,
            inside,
        }
    }
}

/// Bytes of entries of one kind of listener that wait or are being made durable: a round has three times as much in
/// memory at most.
const ROOM_MAX: usize = 16 << 20;
/// What an entry takes beside its bytes.
const ENTRY_COST: usize = 128;
/// What an entry counts for at least: the shortest lines of one kind of listener fill half of the queue, so that connections
/// leave room for datagrams, which nobody sends again.
const ENTRY_COST_MIN: usize = ROOM_MAX / (QUEUE_MAX / 2);
/// Entries waiting to be put into batches.
pub(crate) const QUEUE_MAX: usize = 65_536;
/// Most entries of one round.
const ROUND_MAX: usize = 16_384;
/// Streams that are held between rounds, about 2 KiB each.
const HELD_MAX: usize = 1024;
const GATHER_MIN: usize = 256;
const GATHER_DELAY: Duration = Duration::from_millis(50);
const RETRY_DELAY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// Short lines of connections filled the queue that datagrams go through, too.
    #[test]
    fn connections_leave_room_for_datagrams() {
        let (queue, _entries) = mpsc::channel(QUEUE_MAX);
        let room = Room::new();
        let dropped = Arc::default();
        let sink = SyslogSink {
            queue,
            room,
            dropped,
        };
        let received = |kind| Received {
            kind,
            name: "192.0.2.1".into(),
            connection: 1,
            time_us: 1,
            flags: EntryFlags::NONE,
            bytes: b"x\n".to_vec(),
        };
        let taken = |kind| {
            let mut taken = 0;
            while sink.try_put(received(kind)) {
                taken += 1;
            }
            taken
        };
        assert_eq!(taken(StreamKind::SyslogTcp), QUEUE_MAX / 2);
        assert_eq!(taken(StreamKind::SyslogUdp), QUEUE_MAX / 2);
    }

    #[test]
    fn an_entry_that_is_too_long_becomes_linked_fragments_and_nothing_of_it_is_lost() {
        let rig = Rig::new("local-long");
        let mut maker = rig.maker();
        let pattern: Vec<u8> = (0..251).collect();
        let long = pattern.repeat(5 * ENTRY_LEN_MAX / 250);
        for bytes in [vec![b'x'; ENTRY_LEN_MAX], long, Vec::new()] {
            let mut waiting = Vec::new();
            let (durable, _done) = oneshot::channel();
            let entry = LocalEntry {
                kind: StreamKind::Audit,
                name: "deletions".to_owned(),
                connection: 0,
                time_us: 1,
                flags: EntryFlags::NONE,
                bytes: bytes.clone(),
                durable: Some(durable),
                room: None,
            };
            let mut made = maker.add(entry, &mut waiting);
            made.extend(maker.seal_all());
            assert_eq!(waiting.len(), 1);
            let mut joined = Vec::new();
            let mut fragments = Vec::new();
            for made in &made {
                let entries = made.batch.open().unwrap();
                for (meta, piece) in entries.iter() {
                    joined.extend_from_slice(piece);
                    fragments.push(meta.flags.is_fragment());
                }
            }
            assert_eq!(joined, bytes);
            assert_eq!(fragments.pop(), Some(false), "the last one ends the line");
            assert!(fragments.into_iter().all(|is_fragment| is_fragment));
        }
    }

    #[test]
    fn a_line_of_an_unknown_sender_is_whole_in_one_batch_and_is_counted() {
        let rig = Rig::new("local-unknown");
        let mut maker = rig.maker();
        let mut made = Vec::new();
        for n in 0..9_000_u32 {
            let entry = LocalEntry {
                kind: StreamKind::SyslogUdp,
                name: std::net::Ipv4Addr::from(n).to_string(),
                connection: 0,
                time_us: 1,
                flags: EntryFlags::NONE,
                bytes: b"<13>a line\n".to_vec(),
                durable: None,
                room: None,
            };
            made.extend(maker.add(entry, &mut Vec::new()));
        }
        assert_eq!(
            maker.streams.len(),
            3,
            "two of their own, and the unknown ones"
        );
        made.extend(maker.seal_all());
        assert_eq!(maker.unknown.entries(), 8_998);
        let mut lines = 0;
        for batch in made.iter().map(|made| made.batch.open().unwrap()) {
            let flags: Vec<bool> = batch
                .iter()
                .map(|(meta, _)| meta.flags.is_fragment())
                .collect();
            assert_eq!(
                flags.last(),
                Some(&false),
                "no line is cut by the end of a batch"
            );
            lines += flags.iter().filter(|is_fragment| !**is_fragment).count();
        }
        assert_eq!(lines, 9_000);
    }

    struct Rig {
        dir: std::path::PathBuf,
        archive: Arc<Archive>,
        _volume: crate::volume::Volume,
    }

    impl Rig {
        fn new(name: &str) -> Self {
            let name = format!("scrinium-{name}-{}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            drop(std::fs::remove_dir_all(&dir));
            let (volume, _shares) =
                crate::volume::Volume::create(&dir, &crate::volume::Binding::default()).unwrap();
            let catalogue = Arc::new(crate::core::make_catalogue(&volume).unwrap());
            let cipher = scrinium_segment::cipher::Cipher::default();
            let archive = Arc::new(Archive::open(&volume, &catalogue, cipher).unwrap());
            Self {
                dir,
                archive,
                _volume: volume,
            }
        }

        fn maker(&self) -> Maker {
            let limits = SenderLimits {
                new_per_day: 2,
                max: 100,
            };
            Maker::new(
                self.archive.clone(),
                AgentId([1; 16]),
                SigningKey::from_bytes(&[2; 32]),
                limits,
                Arc::default(),
            )
        }
    }

    impl Drop for Rig {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.dir));
        }
    }
}
