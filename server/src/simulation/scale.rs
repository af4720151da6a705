//! The catalogue, indexes and evidence of a year of a hundred gigabytes: the server starts at once, and what is
//! new is verified in seconds.
//!
//! Blocks hold one line each in place of four megabytes: what a start and an incremental verification read is as
//! much as a real year has of it.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use scrinium_protocol::batch::{BatchBuilder, StreamPosition};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::compress::Compressor;
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::identity::{AgentId, Epoch, StreamId, StreamKind};
use scrinium_segment::cipher::Cipher;
use tokio::sync::oneshot;

use crate::agents::{Agents, Signer};
use crate::archive::block::StoredBatch;
use crate::archive::log::{Inside, new_stream};
use crate::archive::segment::{BLOCK_LEN, Introduced, Packing};
use crate::archive::verify::{self, Scope};
use crate::archive::{Archive, EVER};
use crate::catalogue::records::{ArchiveMark, Group};
use crate::clock::{self, DAY_US, Day};
use crate::evidence::{self, Evidence};
use crate::index::words::Words;
use crate::ingest::{BatchSubmission, Ingest, LOG_ENTRIES_MAX, LogLimits, Outcome, Submission};
use crate::policy::Policy;
use crate::volume::{Binding, Volume};

#[test]
fn a_year_of_a_hundred_gigabytes_starts_at_once_and_is_verified_in_seconds() {
    let shm = Path::new("/dev/shm");
    let root = shm.is_dir().then(|| shm.to_owned());
    let root = root.unwrap_or_else(std::env::temp_dir);
    let dir = root.join(format!("scrinium-scale-{}", std::process::id()));
    drop(std::fs::remove_dir_all(&dir));
    std::fs::create_dir_all(&dir).unwrap();
    drop(Volume::create(&dir, &Binding::default()).unwrap());
    let signing = SigningKey::from_bytes(&[5; 32]);
    build(&dir, &signing);

    // From the opened volume to the first ack.
    let begun = clock::now();
    let volume = Volume::open(&dir).unwrap();
    let catalogue = Arc::new(crate::core::make_catalogue(&volume).unwrap());
    let archive = Arc::new(Archive::open(&volume, &catalogue, Cipher::default()).unwrap());
    let agents = Arc::new(Agents::load(catalogue.clone(), 1).unwrap());
    let _policy = Policy::load(catalogue, agents).unwrap();
    let _evidence =
        Evidence::open(&volume, Cipher::default(), signing.clone(), Vec::new()).unwrap();
    let (finished, _nobody) = sync_channel(1);
    let limits = LogLimits {
        bytes_max: 64 << 20,
        age_max: Duration::from_secs(3600),
        entries_max: LOG_ENTRIES_MAX,
    };
    let mut ingest = Ingest::new(archive.clone(), signing.clone(), finished, limits).unwrap();
    let mut line = Line::new(0, signing.clone());
    line.position = archive.stream(line.id).unwrap().position;
    let (batch, _) = line.batch(0);
    let (answer, mut outcome) = oneshot::channel();
    ingest.round(vec![Submission::Batch(BatchSubmission {
        agent: line.agent,
        encoded: batch.encoded(),
        inside: Inside {
            last_us: 0,
            bytes: 0,
            words: Words::ANY,
        },
        batch,
        answer,
    })]);
    assert!(matches!(outcome.try_recv(), Ok(Outcome::Durable(_))));
    let to_first_ack = clock::now().duration_since(begun);

    let begun = clock::now();
    let (segments, _) = archive.parts();
    let scope = Scope {
        verified: segments.iter().map(|segment| segment.number).collect(),
        times_us: EVER,
    };
    let claims = evidence::check(&volume, &signing.verifying_key(), &[], &expected(&archive));
    let signer = Signer {
        name: "agent".to_owned(),
        keys: vec![signing.verifying_key().to_bytes()],
    };
    let signers = [(line.agent, signer)];
    let report = verify::verify(&archive, &signers.into(), claims, scope).unwrap();
    let verified = clock::now().duration_since(begun);
    assert!(report.whole, "{}", report.to_lines().join("\n"));
    assert_eq!(report.verified_before, DAYS * BLOCKS_A_DAY);
    println!(
        "{} segments, {} blocks, {} streams, {} intervals: first ack after {to_first_ack:?}, verified in {verified:?}",
        segments.len(),
        DAYS * BLOCKS_A_DAY,
        STREAMS,
        report.intervals
    );
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(to_first_ack < Duration::from_secs(5), "{to_first_ack:?}");
    assert!(verified < Duration::from_secs(20), "{verified:?}");
}

/// One stream that goes on.
struct Line {
    agent: AgentId,
    id: StreamId,
    name: String,
    position: StreamPosition,
    signing: SigningKey,
    compressor: Compressor,
}

impl Line {
    fn new(number: u64, signing: SigningKey) -> Self {
        let agent = AgentId([1; 16]);
        let name = format!("/var/log/host-{number}/app.log");
        let id = StreamId::derive(agent, StreamKind::File, &name);
        Self {
            agent,
            id,
            position: StreamPosition::start(agent, id, Epoch::default()),
            name,
            signing,
            compressor: Compressor::new(1),
        }
    }

    fn batch(&mut self, time_us: u64) -> (scrinium_protocol::batch::SealedBatch, StreamPosition) {
        let mut builder = BatchBuilder::new();
        let flags = EntryFlags::NONE;
        assert!(builder.push(
            b"in place of four megabytes\n",
            EntryMeta { time_us, flags },
        ));
        let bookmark = vec![0; 60];
        builder.seal(
            self.id,
            &self.position,
            bookmark,
            &self.signing,
            &mut self.compressor,
        )
    }
}

fn build(dir: &Path, signing: &SigningKey) {
    let volume = Volume::open(dir).unwrap();
    let catalogue = Arc::new(crate::core::make_catalogue(&volume).unwrap());
    let archive = Archive::open(&volume, &catalogue, Cipher::default()).unwrap();
    let mut lines: Vec<Line> = (0..STREAMS)
        .map(|number| Line::new(number, signing.clone()))
        .collect();
    let evidence = Evidence::open(&volume, Cipher::default(), signing.clone(), Vec::new()).unwrap();
    let first = Day(20_000);
    let mut mark = ArchiveMark::default();
    let mut records = std::collections::BTreeMap::new();
    for day in 0..DAYS {
        let group = Group {
            tenant: "default".into(),
            class: "general".into(),
            day: first.plus(u32::try_from(day).unwrap()),
        };
        mark.segment += 1;
        let packing = Packing {
            level: 1,
            block_len: BLOCK_LEN,
        };
        let begin_us = group.day.begin_us();
        let mut builder = archive.build(group, mark.segment, packing).unwrap();
        for block in 0..BLOCKS_A_DAY {
            let number = usize::try_from((day * BLOCKS_A_DAY + block) % STREAMS).unwrap();
            let line = &mut lines[number];
            let (batch, after) = line.batch(begin_us + block);
            line.position = after;
            let introduced = Introduced {
                agent: line.agent,
                kind: StreamKind::File,
                name: line.name.as_str().into(),
            };
            let mut record = records.remove(&line.id).unwrap_or_else(|| {
                new_stream(line.id, line.agent, StreamKind::File, line.name.clone())
            });
            crate::archive::log::apply(&mut record, &batch.header, 0, begin_us);
            archive.define_stream(record.clone());
            archive.advance(vec![record.clone()]);
            records.insert(line.id, record);
            let stored = StoredBatch {
                received_us: begin_us,
                agent: line.agent,
                entries: batch.open().unwrap(),
                header: batch.header,
            };
            let order = (day + 1, u32::try_from(block).unwrap());
            builder.add(&introduced, stored, order).unwrap();
        }
        let segment = builder.finish(archive.archive_key(), true).unwrap();
        catalogue.put(&segment).unwrap();
        archive.settle(segment.number).unwrap();
        // One an hour, for the sake of the time this takes: a start reads 64 of them at most.
        for interval in 1..=INTERVALS_A_DAY {
            let now_us = begin_us + interval * (DAY_US / INTERVALS_A_DAY);
            evidence.seal(&archive, now_us, None).unwrap();
        }
    }
    mark.log = DAYS;
    catalogue
        .write(|changes| {
            records
                .values()
                .try_for_each(|record| changes.put(record))?;
            changes.put(&mark)
        })
        .unwrap();
}

const DAYS: u64 = 365;
/// Of 4 MiB each: 100 GB a year.
const BLOCKS_A_DAY: u64 = 66;
const STREAMS: u64 = 1000;
const INTERVALS_A_DAY: u64 = 24;

fn expected(archive: &Archive) -> evidence::Expected {
    evidence::Expected {
        signed: archive.acked().signed(),
        ..evidence::Expected::default()
    }
}
