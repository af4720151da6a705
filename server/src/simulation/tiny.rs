//! Fifty million entries of a byte each, which one agent sends in a few megabytes: what comes is searched at once, and a log is
//! finished before it has very many.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use scrinium_protocol::batch::{BatchBuilder, SealedBatch, StreamPosition};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::compress::Compressor;
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::identity::{AgentId, Epoch, StreamId, StreamKind};
use scrinium_segment::cipher::Cipher;
use tokio::sync::oneshot;

use crate::archive::Archive;
use crate::archive::container::Access;
use crate::archive::log::{Inside, new_stream};
use crate::archive::segment::{BLOCK_LEN, Block, Introduced, Packing};
use crate::catalogue::records::Group;
use crate::clock::{self, Day};
use crate::index::cancelled::Cancelled;
use crate::index::gate::Gate;
use crate::index::query::Query;
use crate::index::search::{Search, Wanted};
use crate::ingest::{BatchSubmission, Ingest, LOG_ENTRIES_MAX, LogLimits, Outcome, Submission};
use crate::volume::{Binding, Volume};

/// The Merkle root of every batch was computed again for each search: twenty seconds of it were not enough.
#[test]
fn a_word_among_fifty_million_entries_of_a_byte_is_found_at_once() {
    let dir = std::env::temp_dir().join(format!("scrinium-tiny-{}", std::process::id()));
    drop(std::fs::remove_dir_all(&dir));
    std::fs::create_dir_all(&dir).unwrap();
    drop(Volume::create(&dir, &Binding::default()).unwrap());
    let volume = Volume::open(&dir).unwrap();
    let catalogue = Arc::new(crate::core::make_catalogue(&volume).unwrap());
    let archive = Archive::open(&volume, &catalogue, Cipher::default()).unwrap();
    let archive = Arc::new(archive);
    let (finished, _nobody) = sync_channel(1);
    let limits = LogLimits {
        bytes_max: 64 << 20,
        age_max: Duration::from_secs(3600),
        entries_max: LOG_ENTRIES_MAX,
    };
    let signing = SigningKey::from_bytes(&[7; 32]);
    let mut ingest = Ingest::new(archive.clone(), signing.clone(), finished, limits).unwrap();
    let mut tiny = Sender::new("/tiny", signing.clone(), &vec![&b"x"[..]; ENTRIES]);
    let mut other = Sender::new("/other", signing, &[b"the needle of all\n"]);
    let begun = clock::now();
    for round in 0..ROUNDS {
        let mut submissions = Vec::new();
        let mut answers = Vec::new();
        for _ in 0..BATCHES {
            tiny.send(&mut submissions, &mut answers);
        }
        if round == ROUNDS / 2 {
            other.send(&mut submissions, &mut answers);
        }
        ingest.round(submissions);
        for mut outcome in answers {
            assert!(matches!(outcome.try_recv(), Ok(Outcome::Durable(_))));
        }
        ingest.roll_if_due();
    }
    let written = clock::now().duration_since(begun);
    let all = u64::try_from(ROUNDS * BATCHES * ENTRIES).unwrap();
    let (_, logs) = archive.parts();
    // Nobody seals them here: all are still logs, and each has what one may have.
    assert_eq!(logs.len() as u64, all / LOG_ENTRIES_MAX + 1);
    let agents = BTreeMap::from([(AGENT, "agent".to_owned())]);
    for (text, count) in [("needle", 1), ("need* -x", 1), ("absent", 0)] {
        let begun = clock::now();
        let mut search = Search::new(
            archive.clone(),
            &agents,
            Query::parse(text).unwrap(),
            Access::operations(),
            Cancelled::default(),
            None,
            &Gate::open(),
        );
        let wanted = Wanted {
            lines_max: 10,
            bytes_max: 1 << 20,
            histogram: None,
            count_all: true,
            deadline: None,
        };
        let found = search.page(wanted, &Gate::open());
        let took = clock::now().duration_since(begun);
        println!("{all} entries written in {written:?}; {text:?} found in {took:?}");
        assert_eq!((found.count, found.damaged), (count, 0));
        // About one on a machine that does nothing else; more than twenty with the roots.
        assert!(took < Duration::from_secs(8), "{text}: {took:?}");
    }
    // Sealed, they are blocks of no more entries than one may have: a search reads one at a time, and so does the sealer.
    let group = Group {
        tenant: "default".into(),
        class: "general".into(),
        day: Day::of(clock::unix_us()),
    };
    let packing = Packing {
        level: 1,
        block_len: BLOCK_LEN,
    };
    let mut segment = archive.build(group, 1, packing).unwrap();
    let introduced = Introduced {
        agent: AGENT,
        kind: StreamKind::File,
        name: tiny.name.into(),
    };
    for (order, shown) in (0..100).zip(logs[0].batches()) {
        let batch = logs[0].read(shown.place).unwrap();
        segment.add(&introduced, batch, (1, order)).unwrap();
        assert!(segment.open_bytes() < 8 << 20, "{}", segment.open_bytes());
    }
    let segment = segment.finish(archive.archive_key(), false).unwrap();
    archive.settle(segment.number).unwrap();
    let index = archive.index(&segment).unwrap();
    let entries: Vec<u64> = index.blocks.iter().map(Block::entries).collect();
    assert_eq!(entries, [1 << 17, 1 << 17, 1 << 17, 4 * 4096]);
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Sends the same batch again and again.
struct Sender {
    stream: StreamId,
    name: &'static str,
    position: StreamPosition,
    signing: SigningKey,
    batch: SealedBatch,
    inside: Inside,
    is_known: bool,
}

impl Sender {
    fn new(name: &'static str, signing: SigningKey, entries: &[&[u8]]) -> Self {
        let stream = StreamId::derive(AGENT, StreamKind::File, name);
        let position = StreamPosition::start(AGENT, stream, Epoch::default());
        let mut builder = BatchBuilder::new();
        let meta = EntryMeta {
            time_us: clock::unix_us(),
            flags: EntryFlags::NONE,
        };
        for entry in entries {
            assert!(builder.push(entry, meta));
        }
        let inside = Inside::built(&builder);
        let mut compressor = Compressor::new(1);
        let (batch, _) = builder.seal(stream, &position, Vec::new(), &signing, &mut compressor);
        Self {
            stream,
            name,
            position,
            signing,
            batch,
            inside,
            is_known: false,
        }
    }

    fn send(&mut self, round: &mut Vec<Submission>, answers: &mut Vec<oneshot::Receiver<Outcome>>) {
        if !core::mem::replace(&mut self.is_known, true) {
            let stream = new_stream(self.stream, AGENT, StreamKind::File, self.name);
            round.push(Submission::Stream(stream));
        }
        self.batch.header.relink(&self.position, &self.signing);
        self.position = self.batch.header.position_after();
        let (answer, outcome) = oneshot::channel();
        round.push(Submission::Batch(BatchSubmission {
            agent: AGENT,
            encoded: self.batch.encoded(),
            inside: self.inside,
            batch: self.batch.clone(),
            answer,
        }));
        answers.push(outcome);
    }
}

const AGENT: AgentId = AgentId([1; 16]);
/// Of a batch: as many as it may have.
const ENTRIES: usize = 4096;
/// Of a round, and rounds: more than fifty million entries.
const BATCHES: usize = 256;
const ROUNDS: usize = 48;
