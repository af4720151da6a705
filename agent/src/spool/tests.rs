//! The spool beside what it must keep, through crashes at any point.

use std::path::PathBuf;

use ed25519_dalek::SigningKey;
use scrinium_protocol::batch::{BatchBuilder, Relation};
use scrinium_protocol::compress::Compressor;
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::identity::{AgentId, StreamKind};

use super::*;

#[test]
fn streams_take_turns_and_one_with_something_on_disk_is_backlog_until_that_is_acked() {
    let mut rig = Rig::new("turns");
    for _ in 0..3 {
        rig.add(1);
    }
    rig.spool.spill().unwrap();
    rig.add(1);
    for _ in 0..3 {
        rig.add(2);
    }
    rig.add(3);
    assert_eq!(rig.send_all(Lane::Live), [2, 3, 2, 2]);
    assert_eq!(rig.send_all(Lane::Backlog), [1, 1, 1, 1]);
    rig.spool.restart();
    rig.spool.ack(stream(1), Sequence(3));
    assert!(rig.send_all(Lane::Backlog).is_empty());
    let live = rig.send_all(Lane::Live);
    assert_eq!(live.iter().filter(|&&stream| stream == 1).count(), 1);
    assert_eq!(live.len(), 5);
}

#[test]
fn what_follows_the_server_is_kept_and_everything_else_is_dropped() {
    let mut rig = Rig::new("reconcile");
    let positions: Vec<StreamPosition> = (0..4).map(|_| rig.add(1)).collect();
    rig.spool.spill().unwrap();
    rig.add(1);
    let owner = (AgentId([9; 16]), Epoch([8; 16]));
    // The server has the first two.
    let server = &positions[1];
    let reached = rig.spool.reconcile(owner, stream(1), Some(server));
    assert_eq!(reached.unwrap().next, Sequence(5));
    assert_eq!(rig.spool.entries(), 3);
    // The server was restored from a backup: what waits follows nothing.
    let reached = rig.spool.reconcile(owner, stream(1), Some(&positions[0]));
    assert_eq!(reached.unwrap(), positions[0]);
    rig.spool.remove_acked().unwrap();
    assert_eq!((rig.spool.entries(), rig.spool.fill().bytes), (0, 0));
    // A stream it does not know begins with what waits, whatever epoch that is of.
    let first = rig.add(2);
    let reached = rig.spool.reconcile(owner, stream(2), None);
    assert_eq!(reached.unwrap(), first);
}

#[test]
fn a_backlog_in_ram_makes_room_for_others_by_going_to_the_disk() {
    let mut rig = Rig::new("room");
    rig.add(1);
    rig.spool.spill().unwrap();
    while rig.spool.has_ram() {
        rig.add(1);
    }
    assert!(rig.spool.has_backlog_in_ram());
    rig.add(2);
    rig.spool.spill_backlog().unwrap();
    assert!(rig.spool.has_ram() && !rig.spool.has_backlog_in_ram());
    assert_eq!(rig.send_all(Lane::Live), [2]);
}

#[test]
fn what_was_spilled_is_found_again_and_removed_when_it_is_acked() {
    let mut rig = Rig::new("again");
    let last = (0..3).map(|_| rig.add(1)).last().unwrap();
    rig.spool.spill().unwrap();
    let dir = rig.dir.clone();
    let mut spool = Spool::open(&dir, &Secret::new([1; 32]), LIMITS, key()).unwrap();
    assert_eq!(spool.ends(), BTreeMap::from([(stream(1), last)]));
    spool.ack(stream(1), Sequence(3));
    spool.remove_acked().unwrap();
    assert_eq!((spool.entries(), spool.fill().disk_bytes), (0, 0));
}

/// Every byte of a small spool flipped, every file cut at every length, any two swapped, any one gone,
/// or put back as it was before: what is found is what was there, in its order; nothing hangs.
#[test]
fn e2_a_spool_altered_anywhere_opens_and_gives_only_what_was_put_in() {
    let mut rig = Rig::new("altered");
    let mut early = Vec::new();
    for n in 0..3 {
        rig.add(1);
        rig.add(2);
        rig.spool.spill().unwrap();
        rig.reopen();
        if n == 1 {
            early = files(&rig.dir);
        }
    }
    let whole = files(&rig.dir);
    assert_eq!(whole.len(), 3);
    let whole_len: usize = whole.iter().map(|(_, bytes)| bytes.len()).sum();
    let check = |altered: &[(PathBuf, Vec<u8>)], lost_max: u64| {
        drop(std::fs::remove_dir_all(&rig.dir));
        std::fs::create_dir(&rig.dir).unwrap();
        for (path, bytes) in altered {
            let mut file = std::fs::File::create(path).unwrap();
            std::io::Write::write_all(&mut file, bytes).unwrap();
        }
        let mut spool = Spool::open(&rig.dir, &Secret::new([1; 32]), LIMITS, key()).unwrap();
        assert!(
            spool.entries() >= 6 - lost_max,
            "{} entries left",
            spool.entries()
        );
        for number in [1, 2] {
            let id = stream(number);
            let owner = (AgentId([9; 16]), Epoch([7; 16]));
            let reached = spool.reconcile(owner, id, None).unwrap();
            assert!(reached.next <= Sequence(3));
            let expected = &rig.positions[&id];
            assert!(reached.next < expected.next || reached.head == expected.head);
        }
        while let Some(next) = spool.peek(Lane::Backlog).unwrap() {
            spool.ack(next.header.stream, next.header.next());
            spool.remove_acked().unwrap();
        }
        assert_eq!(spool.entries(), 0);
    };
    check(&whole, 0);
    let mut flipped = 0;
    for file in 0..3 {
        for at in 0..whole[file].1.len() {
            let mut altered = whole.clone();
            altered[file].1[at] ^= 1 << (at % 8);
            check(&altered, 2);
            altered[file].1.truncate(at);
            check(&altered, 2);
            flipped += 1;
        }
    }
    assert_eq!(flipped, whole_len);
    for (one, two) in [(0, 1), (0, 2), (1, 2)] {
        let mut altered = whole.clone();
        let kept = core::mem::take(&mut altered[one].1);
        altered[one].1 = core::mem::replace(&mut altered[two].1, kept);
        check(&altered, 4);
    }
    for gone in 0..3 {
        let mut altered = whole.clone();
        altered.remove(gone);
        check(&altered, 2);
    }
    check(&early, 2);
}

/// A sender cannot be asked again: what is gone becomes as many gap entries, the rest is shipped after
/// them, and a crash at any point of that changes nothing.
#[test]
fn what_waits_of_a_sender_after_a_lost_segment_follows_a_gap() {
    for reached in 0..=6 {
        let mut rig = Rig::new("sender");
        for _ in 0..6 {
            rig.add(100);
            rig.spool.spill().unwrap();
            rig.reopen(); // a segment each
        }
        let paths = files(&rig.dir);
        std::fs::remove_file(&paths[2].0).unwrap();
        std::fs::remove_file(&paths[3].0).unwrap();
        rig.reopen();
        let id = stream(100);
        let mut server = StreamPosition::start(OWNER.0, id, OWNER.1);
        let mut archived = Vec::new();
        // The second time after a crash, when the server has `reached` batches.
        for limit in [reached, usize::MAX] {
            let known = (!archived.is_empty()).then_some(&server);
            let end = rig.spool.reconcile(OWNER, id, known).unwrap();
            assert_eq!(end.next, Sequence(6));
            while archived.len() < limit {
                let Some(next) = rig.spool.peek(Lane::Backlog).unwrap() else {
                    break;
                };
                assert_eq!(next.header.relation_to(&server), Relation::Follows);
                next.header
                    .verify_signature(&key().verifying_key())
                    .unwrap();
                let batch = SealedBatch::decode(&next.encoded, "batch").unwrap();
                let entries = batch.open().unwrap();
                archived.push(
                    entries
                        .iter()
                        .filter(|(meta, _)| meta.flags.is_gap())
                        .count(),
                );
                server = next.header.position_after();
                rig.spool.advance(Lane::Backlog);
            }
            rig.reopen();
        }
        assert_eq!(archived, [0, 0, 2, 0, 0], "after {reached}");
        assert_eq!(server.next, Sequence(6));
    }
}

/// A server that once claimed to stand far ahead does not make the agent fill that for ever: one gap entry, and what
/// waits goes on in another epoch, wherever the agent dies meanwhile.
#[test]
fn what_waits_far_ahead_of_the_server_begins_anew_after_one_gap_entry() {
    // Bytes that a damaged record has; batches the server has before the agent dies, and before it dies again.
    for (damaged, first, second) in [(false, 0, 0), (false, 2, 0), (true, 3, 1), (false, 7, 9)] {
        let mut rig = Rig::new("ahead");
        let id = stream(100);
        let mut server = rig.add(100);
        rig.spool.ack(id, server.next);
        let far = StreamPosition {
            next: Sequence(1 << 60),
            ..server.clone()
        };
        rig.positions.insert(id, far);
        for _ in 0..5 {
            rig.add(100);
            rig.spool.spill().unwrap();
            rig.reopen();
        }
        if damaged {
            std::fs::remove_file(&files(&rig.dir)[2].0).unwrap();
            rig.reopen();
        }
        let epoch = server.epoch;
        let mut archived: Vec<Vec<u8>> = Vec::new();
        for (round, limit) in [first, second, usize::MAX].into_iter().enumerate() {
            rig.spool.reconcile(OWNER, id, Some(&server)).unwrap();
            let bytes = rig.spool.fill().bytes;
            assert!(bytes < 100_000, "{bytes} in round {round}");
            let mut sent = 0;
            while sent < limit
                && let Some(next) = rig.spool.peek(Lane::Backlog).unwrap()
            {
                let begins = StreamPosition::start(OWNER.0, id, next.header.epoch);
                let follows = next.header.relation_to(&server) == Relation::Follows
                    || next.header.relation_to(&begins) == Relation::Follows;
                assert!(follows, "{:?} after {server:?}", next.header);
                next.header
                    .verify_signature(&key().verifying_key())
                    .unwrap();
                let batch = SealedBatch::decode(&next.encoded, "batch").unwrap();
                let entries = batch.open().unwrap();
                archived.extend(entries.iter().map(|(_, bytes)| bytes.to_vec()));
                server = next.header.position_after();
                rig.spool.advance(Lane::Backlog);
                sent += 1;
            }
            rig.reopen();
        }
        assert_ne!(server.epoch, epoch);
        let (gaps, lines): (Vec<_>, Vec<_>) = archived
            .iter()
            .partition(|bytes| bytes.starts_with(b"gap: "));
        assert_eq!(lines.len(), if damaged { 4 } else { 5 });
        assert_eq!(gaps.len(), if damaged { 2 } else { 1 });
        assert!(gaps[0].starts_with(b"gap: 1152921504606846975 entries from number 1 on"));
        // Everything is with the server: the old copies are not for it.
        rig.spool.reconcile(OWNER, id, Some(&server)).unwrap();
        rig.spool.remove_acked().unwrap();
        assert_eq!((rig.spool.entries(), rig.spool.fill().bytes), (0, 0));
    }
}

fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| (path.clone(), std::fs::read(path).unwrap());
    paths.into_iter().map(read).collect()
}

const OWNER: (AgentId, Epoch) = (AgentId([9; 16]), Epoch([7; 16]));
const LIMITS: Limits = Limits {
    ram_bytes_max: 4000,
    disk_bytes_max: 1 << 20,
};

struct Rig {
    spool: Spool,
    dir: PathBuf,
    positions: BTreeMap<StreamId, StreamPosition>,
}

impl Rig {
    fn new(name: &str) -> Self {
        // Thousands of spools are opened, and durability is not what these tests are about.
        let memory = Path::new("/dev/shm");
        let base = match memory.is_dir() {
            true => memory.to_owned(),
            false => std::env::temp_dir(),
        };
        let dir = base.join(format!("scrinium-spool-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        Self {
            spool: Spool::open(&dir, &Secret::new([1; 32]), LIMITS, key()).unwrap(),
            dir,
            positions: BTreeMap::new(),
        }
    }

    fn reopen(&mut self) {
        self.spool = Spool::open(&self.dir, &Secret::new([1; 32]), LIMITS, key()).unwrap();
    }

    /// Adds a batch of one entry; returns the position after it.
    fn add(&mut self, number: u8) -> StreamPosition {
        let id = stream(number);
        let start = || StreamPosition::start(AgentId([9; 16]), id, Epoch([7; 16]));
        let position = self.positions.entry(id).or_insert_with(start);
        let mut builder = BatchBuilder::new();
        let meta = EntryMeta {
            time_us: 1,
            flags: EntryFlags::NONE,
        };
        assert!(builder.push(b"line\n", meta));
        let (batch, after) =
            builder.seal(id, position, Vec::new(), &key(), &mut Compressor::new(1));
        *position = after.clone();
        self.spool.add(&name(number), &batch);
        after
    }

    /// Sends everything a lane has; returns the streams in their order.
    fn send_all(&mut self, lane: Lane) -> Vec<u8> {
        let mut sent = Vec::new();
        while let Some(next) = self.spool.peek(lane).unwrap() {
            let StreamId([number, ..]) = next.header.stream;
            sent.push(number);
            self.spool.advance(lane);
        }
        sent
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

/// Streams from 100 on are of a sender.
fn name(number: u8) -> StreamName {
    StreamName {
        kind: match number {
            ..100 => StreamKind::File,
            100.. => StreamKind::SyslogUdp,
        },
        name: "name".into(),
    }
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[5; 32])
}

fn stream(number: u8) -> StreamId {
    StreamId([number; 16])
}

/// The server, or this agent, was restored from a copy: what senders said and waits goes into the new epoch, without what
/// the server has.
#[test]
fn what_waits_is_carried_over_into_a_new_epoch() {
    // Batches that the server has in addition to the first, and whether they wait on the disk.
    for (had, on_disk) in [(0, false), (0, true), (2, true), (5, false)] {
        let lane = if on_disk { Lane::Backlog } else { Lane::Live };
        let mut rig = Rig::new("carried");
        let id = stream(101);
        let mut said = rig.add(101);
        let first = said.clone();
        rig.spool.ack(id, said.next);
        for batch in 0..5 {
            let after = rig.add(101);
            if batch < had {
                said = after;
            }
            if on_disk {
                rig.spool.spill().unwrap();
            }
        }
        let owner = (OWNER.0, Epoch([9; 16]));
        let begin = StreamPosition::start(owner.0, id, owner.1);
        let reached = rig.spool.carry_over(owner, id, Some(&said), Some(&begin));
        let reached = reached.unwrap();
        assert_eq!(reached.epoch, owner.1);
        let mut position = begin;
        let mut count = 0;
        while let Some(next) = rig.spool.peek(lane).unwrap() {
            assert_eq!(next.header.relation_to(&position), Relation::Follows);
            next.header
                .verify_signature(&key().verifying_key())
                .unwrap();
            position = next.header.position_after();
            count += 1;
            rig.spool.advance(lane);
        }
        assert_eq!(count, 5 - had, "{had} {on_disk}");
        assert_eq!(position.next, reached.next);
        assert_eq!(position.head, reached.head);

        // What the server had and has no more is a gap entry before it.
        let mut rig = Rig::new("carried-gap");
        let mut acked = first.clone();
        for _ in 0..3 {
            acked = rig.add(101);
        }
        rig.spool.ack(id, acked.next);
        let kept = rig.add(101);
        let before = StreamPosition::start(OWNER.0, id, first.epoch);
        let begin = StreamPosition::start(owner.0, id, owner.1);
        rig.spool
            .carry_over(owner, id, Some(&before), Some(&begin))
            .unwrap();
        let gap = rig.spool.peek(Lane::Live).unwrap().unwrap();
        let gap = SealedBatch::decode(&gap.encoded, "batch").unwrap();
        let said = gap.open().unwrap();
        let (_, text) = said.iter().next().unwrap();
        let text = String::from_utf8_lossy(text).into_owned();
        assert!(
            text.contains(&format!("{} entries", acked.next.0)),
            "{text}"
        );
        rig.spool.advance(Lane::Live);
        let next = rig.spool.peek(Lane::Live).unwrap().unwrap();
        assert_eq!(
            next.header.count,
            u32::try_from(kept.next.0 - acked.next.0).unwrap()
        );
    }
}
