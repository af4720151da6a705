//! More than a year of an archive, in virtual time: what is kept, what is forgotten, and what is said of it.
//!
//! Three tenants, forty streams, holds that come and go, classes that change how long they keep, lines that say
//! they are of another year, an agent that is deleted, a contract that ends, a clock that is set wrong for hours or
//! dead after a start, and a process that dies at any fault point. A small model says what must be readable; after every
//! week:
//!
//! 1. exactly that is, in order; `verify` finds the archive whole and nothing called tampering;
//! 2. nothing is gone before the floor of its class, nothing is readable after the ceiling unless it is held;
//! 3. nothing was deleted while the clock was wrong or for a day after, and every day has its interval;
//! 4. the certificates speak of exactly what is gone, and the server signed them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use data_encoding::BASE64;
use ed25519_dalek::{Signature, SigningKey, Verifier as _};
use scrinium_protocol::batch::{BatchBuilder, StreamPosition};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::compress::Compressor;
use scrinium_protocol::entry::ENTRY_LEN_MAX;
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::identity::{AgentId, Epoch, StreamId, StreamKind};
use scrinium_protocol::secret::Secret;
use scrinium_segment::cipher::Cipher;
use scrinium_segment::fault;
use tokio::sync::oneshot;

use super::world::{Died, Random};
use crate::agents::Agents;
use crate::archive::container::Access;
use crate::archive::log::{Inside, new_stream};
use crate::archive::retention::{Due, Reason, SIGNED_AS, due, of_agent};
use crate::archive::upkeep::Upkeep;
use crate::archive::verify::Scope;
use crate::archive::{Archive, verify};
use crate::catalogue::Catalogue;
use crate::catalogue::records::{
    AgentRecord, CertificateRecord, ClassRecord, HoldRecord, RuleRecord, StoredSecret,
};
use crate::clock::{self, DAY_US, Day, VIRTUAL, VirtualClocks};
use crate::evidence::{self, Evidence};
use crate::ingest::{BatchSubmission, Ingest, LOG_ENTRIES_MAX, LogLimits, Outcome, Submission};
use crate::policy::Policy;
use crate::time::ServerTime;
use crate::volume::{Binding, Volume};

/// A year and the days its longest class keeps; 2028 has a leap day in it.
#[test]
fn a_year_of_retention_forgets_on_time_and_never_by_accident() {
    let seeds = std::env::var("SCRINIUM_TEST_YEARS").ok();
    let seeds: u64 = seeds.and_then(|text| text.parse().ok()).unwrap_or(1);
    for seed in super::first_seed()..super::first_seed() + seeds {
        let first: Day = "2027-09-20".parse().unwrap();
        Year::new(seed, first).run(430);
    }
}

struct Year {
    seed: u64,
    dir: PathBuf,
    random: Random,
    today: Day,
    first: Day,
    signing: SigningKey,
    process: Option<Process>,
    streams: Vec<Stream>,
    /// Fault points that are passed before the process dies at one.
    fuse: Rc<Cell<Option<u64>>>,
    /// Days each class keeps now.
    keeps: BTreeMap<&'static str, u32>,
    holds: Vec<HoldRecord>,
    deleted: Option<u8>,
    compressor: Compressor,
    deaths: u64,
    /// The last day on which what was due was forgotten.
    expired_on: Option<Day>,
    /// The wall clock minus true time.
    wrong_us: i64,
    /// How often the machine was started, and when it was last, Unix µs.
    runs: u64,
    started_us: u64,
    /// Somebody keeps the clock right when nothing is wrong with it.
    is_kept: bool,
    /// Steps of the clock, and days on which nothing could be deleted for them.
    steps: u64,
    waited: u64,
    /// Nothing goes wrong with the clock any more.
    is_calm: bool,
}

struct Process {
    volume: Volume,
    catalogue: Arc<Catalogue>,
    archive: Arc<Archive>,
    agents: Arc<Agents>,
    policy: Arc<Policy>,
    upkeep: Upkeep,
    evidence: Evidence,
    time: Arc<ServerTime>,
    ingest: Ingest,
}

struct Stream {
    agent: u8,
    tenant: usize,
    class: &'static str,
    name: String,
    id: StreamId,
    position: StreamPosition,
    lines: Vec<Line>,
}

struct Line {
    received: Day,
    text: String,
    gone: bool,
}

impl Year {
    fn new(seed: u64, first: Day) -> Self {
        let shm = Path::new("/dev/shm");
        let root = shm.is_dir().then(|| shm.to_owned());
        let root = root.unwrap_or_else(std::env::temp_dir);
        let dir = root.join(format!("scrinium-year-{}-{seed}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        drop(Volume::create(&dir, &Binding::default()).unwrap());
        let mut year = Self {
            seed,
            dir,
            random: Random(seed),
            today: first,
            first,
            signing: SigningKey::from_bytes(&[7; 32]),
            process: None,
            streams: Vec::new(),
            fuse: Rc::default(),
            keeps: CLASSES
                .iter()
                .map(|&(name, _, keep, _)| (name, keep))
                .collect(),
            holds: Vec::new(),
            deleted: None,
            compressor: Compressor::new(1),
            deaths: 0,
            expired_on: None,
            wrong_us: 0,
            runs: 0,
            started_us: first.begin_us() - DAY_US,
            is_kept: seed.is_multiple_of(2),
            steps: 0,
            waited: 0,
            is_calm: false,
        };
        year.set_clock(0);
        let volume = Volume::open(&year.dir).unwrap();
        let catalogue = crate::core::make_catalogue(&volume).unwrap();
        for agent in 0..AGENTS {
            catalogue.put(&agent_record(agent, &year.signing)).unwrap();
        }
        drop((catalogue, volume));
        year.start();
        year.set_policy();
        for n in 0..STREAMS {
            let agent = n % AGENTS;
            let (class, ..) = CLASSES[usize::from(n) % CLASSES.len()];
            let name = format!("/var/log/{class}/{n}.log");
            let owner = AgentId([agent; 16]);
            let id = StreamId::derive(owner, StreamKind::File, &name);
            year.streams.push(Stream {
                agent,
                tenant: tenant_of(agent),
                class,
                name,
                id,
                position: StreamPosition::start(owner, id, Epoch::default()),
                lines: Vec::new(),
            });
        }
        let fuse = year.fuse.clone();
        fault::listen(Some(Box::new(move |_| {
            match fuse.get() {
                Some(0) => {
                    fuse.set(None);
                    resume_unwind(Box::new(Died));
                }
                left => fuse.set(left.map(|left| left - 1)),
            };
        })));
        year
    }

    fn set_clock(&self, into_the_day_us: u64) {
        let true_us = self.today.begin_us() + into_the_day_us;
        VIRTUAL.set(Some(VirtualClocks {
            wall_us: true_us.saturating_add_signed(self.wrong_us),
            boot_us: true_us - self.started_us,
            run: self.runs,
            synchronised: Some(self.is_kept && self.wrong_us == 0),
            scale: VIRTUAL.get().and_then(|clocks| clocks.scale),
        }));
        if let Some(process) = &self.process {
            process.time.look();
        }
    }

    /// Now and then the clock goes wrong; what is wrong is set right at the end of the day at the latest.
    fn upset_the_clock(&mut self, into_the_day_us: u64) {
        if self.is_calm || !self.random.one_in(12) {
            return;
        }
        if self.wrong_us != 0 {
            self.wrong_us = 0;
        } else {
            let days = |days: i64| days * DAY_US.cast_signed();
            let wrong = [days(400), days(-400), days(1) + 7_200_000_000];
            self.wrong_us = wrong[self.random.size(3)];
            if self.random.one_in(3) {
                // The machine was started, and its clock has no battery.
                self.wrong_us = -(self.today.begin_us() + into_the_day_us).cast_signed();
                self.runs += 1;
                self.started_us = self.today.begin_us() + into_the_day_us - 1_000_000;
                self.process = None;
                self.set_clock(into_the_day_us);
                let fuse = self.fuse.take();
                self.start();
                self.fuse.set(fuse);
            }
        }
        self.steps += 1;
        self.set_clock(into_the_day_us);
    }

    /// The end of a day: the clock is right again.
    fn settle_the_clock(&mut self) {
        self.wrong_us = 0;
        self.set_clock(DAY_US - 1);
    }

    fn start(&mut self) {
        let volume = Volume::open(&self.dir).unwrap();
        let catalogue = Arc::new(crate::core::make_catalogue(&volume).unwrap());
        let archive = Archive::open(&volume, &catalogue, Cipher::default()).unwrap();
        let archive = Arc::new(archive);
        let agents = Arc::new(Agents::load(catalogue.clone(), 1).unwrap());
        let policy = Arc::new(Policy::load(catalogue.clone(), agents.clone()).unwrap());
        let signing = self.signing.clone();
        let evidence =
            Evidence::open(&volume, Cipher::default(), signing.clone(), Vec::new()).unwrap();
        let streams = archive.streams().into_values();
        let received_us = streams.map(|stream| stream.last_us).max().unwrap_or(0);
        // A process that begins knows no server time yet.
        VIRTUAL.set(VIRTUAL.get().map(|clocks| VirtualClocks {
            scale: None,
            ..clocks
        }));
        let time = ServerTime::open(
            catalogue.clone(),
            agents.clone(),
            core::time::Duration::from_secs(86_400),
            evidence.certain_us(),
            received_us,
        );
        let time = Arc::new(time.unwrap());
        let upkeep = Upkeep::new(
            archive.clone(),
            catalogue.clone(),
            policy.clone(),
            signing.clone(),
            time.clone(),
            true,
        );
        let (finished, _nobody) = sync_channel(1);
        let ingest = Ingest::new(
            archive.clone(),
            signing,
            finished,
            LogLimits {
                bytes_max: 64 << 20,
                age_max: core::time::Duration::from_secs(3600),
                entries_max: LOG_ENTRIES_MAX,
            },
        )
        .unwrap();
        self.process = Some(Process {
            volume,
            catalogue,
            archive,
            agents,
            policy,
            upkeep,
            evidence,
            time,
            ingest,
        });
    }

    fn set_policy(&self) {
        let policy = &self.up().policy;
        for (name, floor_days, keep_days, ceiling_days) in CLASSES {
            let class = ClassRecord {
                name: name.into(),
                keep_days,
                floor_days,
                ceiling_days,
                operations_days: 0,
            };
            policy.set_class(class, true).unwrap();
        }
        let rules = CLASSES.iter().map(|(name, ..)| RuleRecord {
            class: (*name).into(),
            stream: format!("/var/log/{name}/*"),
            ..RuleRecord::default()
        });
        policy.set_rules(rules.collect()).unwrap();
    }

    fn up(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    fn run(mut self, days: u32) {
        for n in 0..days {
            self.today = self.first.plus(n);
            self.one_day();
            if n % 7 == 6 {
                self.check();
            }
        }
        // When nothing is wrong any more, everything goes that is due.
        self.is_calm = true;
        for n in days..days + 3 {
            self.today = self.first.plus(n);
            self.one_day();
        }
        assert_eq!(self.expired_on, Some(self.today));
        self.check();
        fault::listen(None);
        VIRTUAL.set(None);
        assert!(self.deaths > 10, "{} deaths", self.deaths);
        assert!(self.steps > 50, "{} steps", self.steps);
        assert!(self.waited > 20, "{} days waited", self.waited);
        std::fs::remove_dir_all(&self.dir).unwrap();
    }

    fn one_day(&mut self) {
        let begun = self.random.below(DAY_US / 2);
        self.set_clock(begun);
        if self.random.one_in(3) {
            self.fuse.set(Some(self.random.below(60)));
        }
        self.upset_the_clock(begun);
        self.receive();
        let later = begun + self.random.below(DAY_US / 2);
        self.set_clock(later);
        self.upset_the_clock(later);
        self.change_policy();
        // What is at rest is sealed most days; when it is not, one log spans two days.
        if self.is_calm || !self.random.one_in(5) {
            self.act(|year| {
                let process = year.process.as_mut().unwrap();
                let (answer, mut rolled) = oneshot::channel();
                process.ingest.round(vec![Submission::Roll(answer)]);
                process.upkeep.seal(rolled.try_recv().unwrap()).unwrap();
            });
            self.upset_the_clock(later);
            self.expire();
            self.upset_the_clock(later);
            self.act(|year| {
                let upkeep = &year.up().upkeep;
                while upkeep.compact_some(year.today.before(1)).unwrap() {}
            });
        }
        if self.deleted.is_none() && self.today >= self.first.plus(200) {
            self.delete_an_agent();
        }
        self.act(|year| {
            year.set_clock(DAY_US - 1);
            let process = year.up();
            let (now, doubt) = (clock::unix_us(), process.time.doubt());
            let sealed = process.evidence.sealed();
            process.evidence.seal(&process.archive, now, doubt).unwrap();
            let after = process.evidence.sealed();
            assert!(
                after.0 > sealed.0 && after.1 >= sealed.1,
                "an interval is published"
            );
        });
        self.fuse.set(None);
        self.settle_the_clock();
    }

    /// Deletes what is due, if the time allows it now.
    fn expire(&mut self) {
        let expired = Cell::new(false);
        self.act(|year| {
            let upkeep = &year.up().upkeep;
            let Ok(today) = upkeep.time.today() else {
                return;
            };
            assert_eq!(year.wrong_us, 0, "deleted on a wrong clock");
            assert_eq!(today, year.today, "deleted on another day");
            upkeep.expire(today).unwrap();
            expired.set(true);
        });
        if expired.get() {
            self.forget_in_the_model();
            self.expired_on = Some(self.today);
        } else {
            self.waited += 1;
        }
    }

    /// Does something that may die in it: then all of it is done again.
    fn act(&mut self, act: impl Fn(&mut Self)) {
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| act(self))) {
            self.revive(panic);
        }
    }

    fn revive(&mut self, panic: Box<dyn core::any::Any + Send>) {
        if !panic.is::<Died>() {
            println!("seed {} on {}", self.seed, self.today);
            resume_unwind(panic);
        }
        self.deaths += 1;
        self.process = None;
        self.start();
    }

    fn receive(&mut self) {
        let mut round = Vec::new();
        let mut sent = Vec::new();
        for n in 0..self.streams.len() {
            if self.random.one_in(2) || self.deleted == Some(self.streams[n].agent) {
                continue;
            }
            let stream = &mut self.streams[n];
            if self.random.one_in(200) {
                let owner = AgentId([stream.agent; 16]);
                let epoch = Epoch([u8::try_from(self.random.below(256)).unwrap(); 16]);
                if epoch != stream.position.epoch {
                    stream.position = StreamPosition::start(owner, stream.id, epoch);
                }
            }
            let mut batch = BatchBuilder::new();
            let mut lines = Vec::new();
            for _ in 0..1 + self.random.below(3) {
                // What a line says of its time is not when it came.
                let years = [-730_i64, 0, 0, 0, 0, 365][self.random.size(6)];
                let said = i64::from(self.today.0) + years;
                let text = format!(
                    "{} {} MARKER{}\n",
                    Day(u32::try_from(said).unwrap()),
                    stream.name,
                    self.random.below(1 << 40)
                );
                let time_us = u64::try_from(said).unwrap() * DAY_US;
                let flags = EntryFlags::NONE;
                assert!(batch.push(text.as_bytes(), EntryMeta { time_us, flags }));
                lines.push(text);
            }
            let owner = AgentId([stream.agent; 16]);
            let known = self.process.as_ref().unwrap().archive.stream(stream.id);
            if known.is_none() {
                let record = new_stream(stream.id, owner, StreamKind::File, stream.name.clone());
                round.push(Submission::Stream(record));
            }
            let inside = Inside::built(&batch);
            let (batch, after) = batch.seal(
                stream.id,
                &stream.position,
                Vec::new(),
                &self.signing,
                &mut self.compressor,
            );
            let (answer, outcome) = oneshot::channel();
            let encoded = batch.encoded();
            round.push(Submission::Batch(BatchSubmission {
                agent: owner,
                batch,
                encoded,
                inside,
                answer,
            }));
            sent.push((n, after, lines, outcome));
        }
        let process = self.process.as_mut().unwrap();
        let died = catch_unwind(AssertUnwindSafe(|| process.ingest.round(round)));
        if let Err(panic) = died {
            self.revive(panic);
        }
        for (n, after, lines, mut outcome) in sent {
            let archived = self
                .process
                .as_ref()
                .unwrap()
                .archive
                .stream(self.streams[n].id);
            let is_there = archived.is_some_and(|archived| archived.position == after);
            if let Ok(outcome) = outcome.try_recv() {
                assert!(is_there && matches!(outcome, Outcome::Durable(_)));
            }
            if is_there {
                let stream = &mut self.streams[n];
                stream.position = after;
                let received = self.today;
                stream.lines.extend(lines.into_iter().map(|text| Line {
                    received,
                    text,
                    gone: false,
                }));
            }
        }
    }

    fn change_policy(&mut self) {
        if self.random.one_in(12) {
            let number = self.holds.len() + self.random.size(1000) * 100;
            let from = self
                .first
                .plus(u32::try_from(self.random.below(300)).unwrap());
            let hold = HoldRecord {
                name: format!("hold{number}"),
                reason: "case".into(),
                by: "somebody".into(),
                since_us: 0,
                tenant: ["", "", "tenant1"][self.random.size(3)].into(),
                site: String::new(),
                agent: ["", "agent2"][self.random.size(2)].into(),
                stream: ["", "/var/log/short/*"][self.random.size(2)].into(),
                from,
                to: from.plus(u32::try_from(self.random.below(40)).unwrap()),
            };
            if !self.holds.iter().any(|other| other.name == hold.name) {
                self.up().policy.hold(hold.clone()).unwrap();
                self.holds.push(hold);
            }
        }
        if self.random.one_in(14) && !self.holds.is_empty() {
            let at = self.random.size(self.holds.len() as u64);
            let hold = self.holds.remove(at);
            self.up().policy.release(&hold.name).unwrap();
        }
        if self.random.one_in(20) {
            let (name, floor, _, ceiling) = CLASSES[self.random.size(CLASSES.len() as u64)];
            let range = u64::from(ceiling - floor) + 21;
            let wanted =
                (floor + u32::try_from(self.random.below(range)).unwrap()).saturating_sub(10);
            let class = ClassRecord {
                name: name.into(),
                keep_days: wanted,
                floor_days: floor,
                ceiling_days: ceiling,
                operations_days: 0,
            };
            let fits = (floor..=ceiling).contains(&wanted);
            assert_eq!(self.up().policy.set_class(class, false).is_ok(), fits);
            if fits {
                self.keeps.insert(name, wanted);
            }
        }
        if self.today == self.first.plus(300) {
            let end = Some((self.first.plus(310), 15));
            self.up().policy.set_contract("tenant2", end).unwrap();
        }
    }

    fn delete_an_agent(&mut self) {
        let agent = AGENTS - 1;
        let id = AgentId([agent; 16]);
        let held = self.streams.iter().any(|stream| {
            stream.agent == agent
                && stream
                    .lines
                    .iter()
                    .any(|line| !line.gone && is_held(&self.holds, stream, line))
        });
        let reason = Reason::AgentDeleted {
            by: "two persons".into(),
            why: "left".into(),
        };
        let deleted = Cell::new(false);
        self.act(|year| {
            let process = year.process.as_mut().unwrap();
            let (answer, mut rolled) = oneshot::channel();
            process.ingest.round(vec![Submission::Roll(answer)]);
            process.upkeep.seal(rolled.try_recv().unwrap()).unwrap();
            let spans = process.time.spans();
            match of_agent(&process.archive, &process.policy, &spans, id, &reason) {
                Ok(due) => {
                    process.upkeep.forget(&due).unwrap();
                    deleted.set(true);
                }
                Err(_) => assert!(held, "nothing holds the agent"),
            }
        });
        assert_ne!(held, deleted.get());
        if deleted.get() {
            self.deleted = Some(agent);
            for stream in self.streams.iter_mut().filter(|s| s.agent == agent) {
                stream.lines.iter_mut().for_each(|line| line.gone = true);
            }
        }
    }

    /// What the rules say, written a second time.
    fn forget_in_the_model(&mut self) {
        let contract_over = self.today > self.first.plus(310 + 15);
        for stream in &mut self.streams {
            let keep = self.keeps[stream.class];
            let over = contract_over && stream.tenant == 2;
            for n in 0..stream.lines.len() {
                let line = &stream.lines[n];
                let aged = self.today > line.received.plus(keep);
                let forget = (aged || over) && !is_held(&self.holds, stream, line);
                let (_, floor, _, _) = CLASSES.iter().find(|c| c.0 == stream.class).unwrap();
                assert!(
                    !forget || over || self.today.0 - line.received.0 > *floor,
                    "below the floor"
                );
                stream.lines[n].gone |= forget;
            }
        }
    }

    fn check(&self) {
        self.fuse.set(None);
        let process = self.up();
        for stream in &self.streams {
            let mut read = Vec::new();
            for extent in process.archive.extents_of(stream.id).unwrap() {
                for batch in process
                    .archive
                    .read(&extent, &Access::operations())
                    .unwrap()
                {
                    read.extend(
                        batch
                            .entries
                            .iter()
                            .map(|(_, bytes)| String::from_utf8(bytes.to_vec()).unwrap()),
                    );
                }
            }
            let expected: Vec<&String> = stream
                .lines
                .iter()
                .filter(|line| !line.gone)
                .map(|line| &line.text)
                .collect();
            assert!(
                read.iter().eq(expected.iter().copied()),
                "seed {} on {}: {} has {} lines of {}",
                self.seed,
                self.today,
                stream.name,
                read.len(),
                expected.len()
            );
            let (_, _, _, ceiling) = CLASSES.iter().find(|c| c.0 == stream.class).unwrap();
            let late = stream.lines.iter().find(|line| {
                // A log that is not sealed yet may be a day or two late.
                let age = self.today.0 - line.received.0;
                !line.gone && age > ceiling + 4 && !is_held(&self.holds, stream, line)
            });
            // While the clock is not believed everything waits.
            let is_late = late.is_some() && self.expired_on == Some(self.today);
            assert!(!is_late, "above the ceiling");
        }
        let expected = evidence::Expected {
            signed: process.archive.acked().signed(),
            ..evidence::Expected::default()
        };
        let key = self.signing.verifying_key();
        let mut claims = evidence::check(&process.volume, &key, &[], &expected);
        claims.losses = process.catalogue.load().unwrap();
        process.catalogue.check().unwrap();
        let report = verify::verify(
            &process.archive,
            &process.agents.signers(),
            claims,
            Scope::all(),
        )
        .unwrap();
        assert!(
            report.whole,
            "seed {} on {}: {}",
            self.seed,
            self.today,
            report.to_lines().join("\n")
        );
        let gone = self.streams.iter().flat_map(|stream| &stream.lines);
        let gone = gone.filter(|line| line.gone).count() as u64;
        assert_eq!(report.pruned, gone);
        let certified: u64 = process
            .catalogue
            .load::<CertificateRecord>()
            .unwrap()
            .iter()
            .map(|certificate| self.certified(&certificate.text))
            .sum();
        assert_eq!(certified, gone, "certificates speak of what is gone");
        // A second look the same day finds nothing more.
        let spans = process.time.spans();
        let more = due(&process.archive, &process.policy, &spans, self.today);
        let more: u64 = more.iter().map(Due::entries).sum();
        assert!(
            more == 0 || self.expired_on != Some(self.today),
            "{more} entries are due still"
        );
    }

    /// The entries a certificate speaks of; the server must have signed it.
    fn certified(&self, text: &str) -> u64 {
        let (body, signature) = text.trim_end().rsplit_once(",\"signature\":\"").unwrap();
        let signature = BASE64
            .decode(signature.trim_end_matches("\"}").as_bytes())
            .unwrap();
        let signature = Signature::from_slice(&signature).unwrap();
        let signed = format!("{SIGNED_AS}{body}}}");
        let key = self.signing.verifying_key();
        key.verify(signed.as_bytes(), &signature).unwrap();
        assert!(text.len() <= ENTRY_LEN_MAX, "a certificate is one entry");
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        value["entries"].as_u64().unwrap()
    }
}

fn is_held(holds: &[HoldRecord], stream: &Stream, line: &Line) -> bool {
    holds.iter().any(|hold| {
        let tenant = format!("tenant{}", stream.tenant);
        (hold.tenant.is_empty() || hold.tenant == tenant)
            && (hold.agent.is_empty() || hold.agent == format!("agent{}", stream.agent))
            && (hold.stream.is_empty() || stream.class == "short")
            && hold.from <= line.received
            && line.received <= hold.to
    })
}

fn tenant_of(agent: u8) -> usize {
    usize::from(agent % 3)
}

fn agent_record(agent: u8, signing: &SigningKey) -> AgentRecord {
    AgentRecord {
        id: AgentId([agent; 16]),
        name: format!("agent{agent}"),
        // An earlier version took a site of any length.
        site: "S".repeat(if agent == 1 { 66_000 } else { 0 }),
        static_public: [agent; 32],
        signing_public: signing.verifying_key().to_bytes(),
        signing_before: Vec::new(),
        credential: StoredSecret(Secret::new([agent; 32])),
        credential_next: None,
        credential_superseded: None,
        generation: 0,
        enabled: true,
        token_id: [agent; 16],
        enrolled_us: 0,
        host_name: String::new(),
        version: String::new(),
        os: String::new(),
        fingerprint: Vec::new(),
        recovery: None,
        quarantine: None,
        restored: false,
        integrity_only: false,
        set_aside: false,
        instance: [0; 16],
        configuration: None,
        tenant: format!("tenant{}", tenant_of(agent)),
    }
}

/// Name, floor, days kept at first, ceiling.
const CLASSES: [(&str, u32, u32, u32); 4] = [
    ("short", 7, 30, 60),
    ("medium", 30, 90, 120),
    ("long", 183, 200, 365),
    ("year", 365, 365, 365),
];
const AGENTS: u8 = 8;
const STREAMS: u8 = 40;
