//! What a range of time finds in a log that is not sealed yet, after an outage: the same as a look at every entry.
//!
//! A builder that waits behind a full spool goes on hours later, so one batch may span an outage; a clock may be ahead;
//! and a backlog comes in no order of time across streams.

use std::collections::BTreeMap;
use std::path::PathBuf;
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

use crate::agents::Agents;
use crate::archive::block::order_us;
use crate::archive::container::Access;
use crate::archive::log::{Inside, new_stream};
use crate::archive::upkeep::Upkeep;
use crate::archive::{Archive, EVER};
use crate::catalogue::Catalogue;
use crate::clock;
use crate::index::cancelled::Cancelled;
use crate::index::gate::Gate;
use crate::index::query::Query;
use crate::index::search::{Search, Wanted};
use crate::ingest::{BatchSubmission, Ingest, LOG_ENTRIES_MAX, LogLimits, Outcome, Submission};
use crate::policy::Policy;
use crate::simulation::world::Random;
use crate::time::ServerTime;
use crate::volume::{Binding, Volume};

#[test]
fn a_thousand_ranges_over_a_live_log_after_an_outage_find_what_a_look_at_every_entry_finds() {
    let mut rig = Rig::new();
    rig.receive_a_backlog();
    assert!(rig.spans_max_us > 3 * 3_600_000_000, "{}", rig.spans_max_us);
    rig.compare(1_000, "live");
    rig.start();
    rig.compare(200, "after a start");
    rig.seal();
    rig.compare(200, "sealed");
}

struct Rig {
    dir: PathBuf,
    random: Random,
    now_us: u64,
    signing: SigningKey,
    /// The longest time between first and last entry of a batch.
    spans_max_us: u64,
    process: Option<Process>,
}

struct Process {
    ingest: Ingest,
    archive: Arc<Archive>,
    catalogue: Arc<Catalogue>,
    _volume: Volume,
}

impl Rig {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("scrinium-ranges-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        drop(Volume::create(&dir, &Binding::default()).unwrap());
        let volume = Volume::open(&dir).unwrap();
        drop(crate::core::make_catalogue(&volume).unwrap());
        drop(volume);
        let mut rig = Self {
            dir,
            random: Random(16),
            now_us: clock::unix_us(),
            signing: SigningKey::from_bytes(&[3; 32]),
            spans_max_us: 0,
            process: None,
        };
        rig.start();
        rig
    }

    fn start(&mut self) {
        self.process = None;
        let volume = Volume::open(&self.dir).unwrap();
        let catalogue = Arc::new(crate::core::open_catalogue(&volume).unwrap());
        let archive = Archive::open(&volume, &catalogue, Cipher::default()).unwrap();
        let archive = Arc::new(archive);
        let (finished, _nobody) = sync_channel(1);
        let limits = LogLimits {
            bytes_max: 64 << 20,
            age_max: Duration::from_secs(3600),
            entries_max: LOG_ENTRIES_MAX,
        };
        let ingest = Ingest::new(archive.clone(), self.signing.clone(), finished, limits);
        self.process = Some(Process {
            ingest: ingest.unwrap(),
            archive,
            catalogue,
            _volume: volume,
        });
    }

    /// Six hours of several streams, with an outage of five in the middle of a batch; one clock is ahead.
    fn receive_a_backlog(&mut self) {
        let mut compressor = Compressor::new(1);
        let mut round = Vec::new();
        let mut answers = Vec::new();
        for number in 0..STREAMS {
            let agent = AgentId([u8::try_from(number).unwrap(); 16]);
            let name = format!("/var/log/{number}.log");
            let id = StreamId::derive(agent, StreamKind::File, &name);
            let record = new_stream(id, agent, StreamKind::File, name);
            round.push(Submission::Stream(record));
            let mut position = StreamPosition::start(agent, id, Epoch::default());
            let ahead_us = if number == 0 { 400 * clock::DAY_US } else { 0 };
            let mut time_us = self.now_us - 6 * HOUR_US + ahead_us;
            while time_us < self.now_us + ahead_us {
                let mut builder = BatchBuilder::new();
                let begun_us = time_us;
                for _ in 0..=self.random.below(40) {
                    let text = format!("entry at {time_us}\n");
                    let flags = EntryFlags::NONE;
                    assert!(builder.push(text.as_bytes(), EntryMeta { time_us, flags }));
                    time_us += self.random.below(20_000_000);
                    if self.random.one_in(200) {
                        time_us += 5 * HOUR_US;
                    }
                }
                let inside = Inside::built(&builder);
                self.spans_max_us = self.spans_max_us.max(inside.last_us - begun_us);
                let (batch, after) =
                    builder.seal(id, &position, Vec::new(), &self.signing, &mut compressor);
                position = after;
                let (answer, outcome) = oneshot::channel();
                round.push(Submission::Batch(BatchSubmission {
                    agent,
                    encoded: batch.encoded(),
                    inside,
                    batch,
                    answer,
                }));
                answers.push(outcome);
            }
        }
        self.process.as_mut().unwrap().ingest.round(round);
        for mut outcome in answers {
            assert!(matches!(outcome.try_recv(), Ok(Outcome::Durable(_))));
        }
    }

    fn compare(&mut self, ranges: usize, when: &str) {
        let archive = self.process.as_ref().unwrap().archive.clone();
        let access = Access::operations();
        let mut times = Vec::new();
        for extent in archive.extents(|_| true, EVER).list {
            for batch in archive.read(&extent, &access).unwrap() {
                for (meta, _) in batch.entries.iter() {
                    times.push(order_us(meta.time_us, batch.received_us));
                }
            }
        }
        times.sort_unstable();
        let agents: BTreeMap<AgentId, String> = (0..STREAMS)
            .map(|number| u8::try_from(number).unwrap())
            .map(|number| (AgentId([number; 16]), format!("agent-{number}")))
            .collect();
        let begin_us = self.now_us - 6 * HOUR_US;
        for n in 0..ranges {
            // Most are short: those end between two entries of a batch.
            let from_us = begin_us + self.random.below(7 * HOUR_US);
            let long = if self.random.one_in(4) {
                7 * HOUR_US
            } else {
                300_000_000
            };
            let to_us = from_us + 1 + self.random.below(long);
            let mut query = Query::parse("").unwrap();
            (query.from_us, query.to_us) = (Some(from_us), Some(to_us));
            let wanted = Wanted {
                lines_max: 0,
                bytes_max: 0,
                histogram: None,
                count_all: true,
                deadline: None,
            };
            let mut search = Search::new(
                archive.clone(),
                &agents,
                query,
                Access::operations(),
                Cancelled::default(),
                None,
                &Gate::open(),
            );
            let found = search.page(wanted, &Gate::open());
            let naive = times.partition_point(|&time| time < to_us)
                - times.partition_point(|&time| time < from_us);
            assert_eq!(
                found.count, naive as u64,
                "{when}, range {n}: {from_us} to {to_us}"
            );
        }
    }

    fn seal(&mut self) {
        let process = self.process.as_mut().unwrap();
        let (answer, mut rolled) = oneshot::channel();
        process.ingest.round(vec![Submission::Roll(answer)]);
        let agents = Arc::new(Agents::load(process.catalogue.clone(), 1).unwrap());
        let policy = Policy::load(process.catalogue.clone(), agents.clone()).unwrap();
        let time = ServerTime::open(
            process.catalogue.clone(),
            agents,
            Duration::from_secs(86_400),
            0,
            self.now_us,
        );
        let upkeep = Upkeep::new(
            process.archive.clone(),
            process.catalogue.clone(),
            Arc::new(policy),
            self.signing.clone(),
            Arc::new(time.unwrap()),
            true,
        );
        upkeep.seal(rolled.try_recv().unwrap()).unwrap();
        assert!(!process.archive.parts().0.is_empty(), "it is sealed");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.process = None;
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

const STREAMS: u64 = 4;
const HOUR_US: u64 = 3_600_000_000;
