//! The parts of a running server, put together: opened from the end of the pipe, closed from its
//! beginning.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use ed25519_dalek::SigningKey;
use scrinium_protocol::identity::AgentId;
use scrinium_protocol::sl::noise::KeyPair;
use scrinium_syslog::senders::SenderLimits;
use tokio::sync::mpsc;
use tracing::{error, warn};

use crate::accounts::{Accounts, BROWSERS_KEY};
use crate::agents::{Agents, Signer};
use crate::alarms::Alarms;
use crate::archive::upkeep::{Upkeep, UpkeepQueue};
use crate::archive::{Archive, losses};
use crate::audit::Audit;
use crate::catalogue::records::{ServerKeys, StoredSecret};
use crate::catalogue::{Catalogue, copies};
use crate::config::Config;
use crate::duties::Duties;
use crate::evidence::Evidence;
use crate::index::query::Query;
use crate::index::turns::Turns;
use crate::links::Links;
use crate::listener::doors::Doors;
use crate::local::{LocalQueue, Unknown};
use crate::notices::Channel;
use crate::policy::Policy;
use crate::refusals::Refusals;
use crate::session::budget::Rates;
use crate::session::held::HeldBytes;
use crate::session::receiver::Shared;
use crate::time::ServerTime;
use crate::unsaid::Unsaid;
use crate::vital::{Fallen, Vital};
use crate::volume::{Volume, rest};
use crate::waits::Places;
use crate::{clock, config, ingest, local, self_signed};

/// What every task of the server shares.
pub(crate) struct Core {
    pub(crate) volume: Volume,
    /// Caches that were missing or not the last stop's, in sentences.
    pub(crate) remade: Vec<String>,
    pub(crate) archive: Arc<Archive>,
    pub(crate) policy: Arc<Policy>,
    pub(crate) catalogue: Arc<Catalogue>,
    /// Held while certificates are published.
    pub(crate) publishing: tokio::sync::Mutex<()>,
    pub(crate) evidence: Evidence,
    pub(crate) time: Arc<ServerTime>,
    pub(crate) agents: Arc<Agents>,
    pub(crate) alarms: Alarms,
    /// How alarms leave.
    pub(crate) channels: Vec<Channel>,
    /// Datagrams of syslog that were dropped since the start.
    pub(crate) dropped: Arc<AtomicU64>,
    /// What is done again and again, and what runs.
    pub(crate) duties: Arc<Duties>,
    pub(crate) accounts: Accounts,
    /// What strangers were refused lately.
    pub(crate) refusals: Refusals,
    pub(crate) links: Links,
    pub(crate) audit: Audit,
    /// What happened, for the trail, now or when that takes something again.
    pub(crate) unsaid: Arc<Unsaid>,
    /// Who may work at what may wait for a disk.
    pub(crate) at_work: Places,
    pub(crate) ingest: ingest::Queue,
    pub(crate) upkeep: UpkeepQueue,
    pub(crate) noise: KeyPair,
    pub(crate) signing: SigningKey,
    /// The server as an agent of its own.
    pub(crate) own_agent: AgentId,
    pub(crate) keep_alive: Duration,
    /// What every session needs.
    pub(crate) sessions: Shared,
    pub(crate) silent_after: Duration,
    /// Days within which every byte of the archive is read again.
    pub(crate) reread_days: u32,
    /// How often a backup is made by itself, and where.
    pub(crate) backup: Option<config::Backup>,
    /// Held while a backup is made or read: they share scratch files.
    pub(crate) backing_up: Mutex<()>,
    /// Who may come in where.
    pub(crate) doors: Doors,
    /// Entries of senders that have no stream of their own.
    pub(crate) unknown_senders: Arc<Unknown>,
    /// How many searches and exports are answered at once.
    pub(crate) turns: Turns,
    /// What agents dial.
    pub(crate) address: String,
}

/// What must be waited for when the server stops.
pub(crate) struct Running {
    pub(crate) core: Arc<Core>,
    pub(crate) local: LocalQueue,
    ingest: std::thread::JoinHandle<()>,
    upkeep: std::thread::JoinHandle<()>,
    local_task: tokio::task::JoinHandle<()>,
    /// What else must not panic in silence.
    pub(crate) vital: Vital,
    pub(crate) fallen: Fallen,
}

impl Running {
    /// Opens everything that stands on the volume; no listener yet.
    /// Everything is read before anything is written; one that acts `by_itself` deletes what is due, and compacts.
    pub(crate) fn open(
        volume: Volume,
        address: String,
        config: &Config,
        by_itself: bool,
    ) -> Result<Self> {
        let mut volume = volume;
        let found = rest::look(&volume).context("looking how the last stop left the volume")?;
        let catalogue = Arc::new(open_catalogue(&volume)?);
        let changed = found.compare(&catalogue)?;
        let put_back = catalogue.put_back().iter().cloned();
        losses::write_down(&catalogue, changed.evidence.into_iter().chain(put_back))?;
        catalogue.recount()?;
        rest::taken(&volume, &catalogue)?;
        if !volume.is_counted() {
            // At this point the catalogue states what its rows are; if we die now, the next start does this.
            volume
                .count()
                .context("binding the catalogue's sum to the volume")?;
        }
        let keys = load_keys(&catalogue)?;
        let duties = Arc::<Duties>::default();
        let (vital, fallen) = Vital::new(duties.clone());
        let archive = Arc::new(
            Archive::open(&volume, &catalogue, config.cipher).context("opening the archive")?,
        );
        for note in &changed.caches {
            warn!("{note}");
        }
        let agents = Agents::load(catalogue.clone(), config.machine_changes_max)?;
        let agents = Arc::new(agents);
        let policy = Arc::new(Policy::load(catalogue.clone(), agents.clone())?);
        let (finished, work) = sync_channel(WORK_MAX);
        let upkeep = UpkeepQueue(finished.clone());
        let signing = SigningKey::from_bytes(keys.signing.0.expose());
        let evidence = Evidence::open(
            &volume,
            config.cipher,
            signing.clone(),
            config.checkpoint_copies.clone(),
        )
        .context("opening the evidence")?;
        losses::write_down_entries(&catalogue, evidence.behind(&archive))?;
        let received_us = archive.totals().last_us;
        let time = Arc::new(ServerTime::open(
            catalogue.clone(),
            agents.clone(),
            config.step_wait,
            evidence.certain_us(),
            received_us,
        )?);
        let upkeep_thread = {
            let (archive, catalogue) = (archive.clone(), catalogue.clone());
            let (signing, time) = (signing.clone(), time.clone());
            let policy = policy.clone();
            let upkeep = Upkeep::new(archive, catalogue, policy, signing, time, by_itself);
            let (watch, duties) = (vital.watch("upkeep"), duties.clone());
            let run = move || {
                let _watch = watch;
                upkeep.run(&work, &duties);
            };
            std::thread::Builder::new()
                .name("upkeep".into())
                .spawn(run)?
        };
        let (queue, ingest) = ingest::start(
            vital.watch("ingest"),
            archive.clone(),
            signing.clone(),
            finished,
            ingest::LogLimits {
                bytes_max: config.log_bytes_max,
                age_max: config.log_age_max,
                entries_max: ingest::LOG_ENTRIES_MAX,
            },
        )?;
        let (local_queue, entries) = mpsc::channel(local::QUEUE_MAX);
        let unknown_senders = Arc::<Unknown>::default();
        let local = local::run(
            archive.clone(),
            keys.agent,
            signing.clone(),
            queue.clone(),
            entries,
            SenderLimits {
                new_per_day: config.senders.new_per_day_max,
                max: config.senders.max,
            },
            unknown_senders.clone(),
        );
        let local_task = tokio::spawn(vital.clone().watched("local", local));
        let audit = Audit::new(local_queue.clone());
        let unsaid = Arc::new(Unsaid::new(audit.clone(), archive.troubles().clone()));
        let core = Core {
            evidence,
            time,
            sessions: Shared {
                agents: agents.clone(),
                archive: archive.clone(),
                signing: signing.clone(),
                keep_alive: config.keep_alive,
                streams: config.agent_streams,
                rates: Rates::default(),
                held: HeldBytes::default(),
            },
            agents,
            alarms: Alarms::load(catalogue.clone(), unsaid.clone())?,
            unsaid,
            channels: config.channels.clone(),
            dropped: Arc::default(),
            duties,
            accounts: Accounts::load(catalogue.clone(), volume.key(BROWSERS_KEY))?,
            refusals: Refusals::default(),
            links: Links::load(catalogue.clone())?,
            audit,
            at_work: Places::new(),
            archive,
            policy,
            catalogue,
            publishing: tokio::sync::Mutex::new(()),
            ingest: queue,
            upkeep,
            noise: KeyPair::from_secret(&keys.noise.0),
            signing,
            own_agent: keys.agent,
            keep_alive: config.keep_alive,
            silent_after: config.silent_after,
            reread_days: config.reread_days,
            backup: config.backup.clone(),
            backing_up: Mutex::new(()),
            unknown_senders,
            doors: Doors::new(
                config.handshakes,
                config.connections,
                scrinium_segment::process::descriptors_max(),
            ),
            turns: Turns::new(),
            address,
            remade: changed.caches,
            volume,
        };
        Ok(Self {
            core: Arc::new(core),
            local: local_queue,
            ingest,
            upkeep: upkeep_thread,
            local_task,
            vital,
            fallen,
        })
    }

    /// Waits until everything accepted is durable. Listeners and sessions must be gone already.
    pub(crate) async fn close(self) {
        let Self {
            core,
            local,
            ingest,
            upkeep,
            local_task,
            vital: _,
            fallen: _,
        } = self;
        drop(local);
        // Aborted tasks end at their next await, and only the count of their references says when.
        // What is not gone in five seconds is left behind, and said.
        for _ in 0..STEPS_MAX {
            if Arc::strong_count(&core) == 1 {
                break;
            }
            tokio::time::sleep(STEP).await;
        }
        let Some(core) = Arc::into_inner(core) else {
            warn!(
                "a task still runs at the stop; what it had not submitted is sent again by its agent"
            );
            return;
        };
        // A clock that was set since the last look is seen before it is written down how the clocks stand.
        core.time.look();
        core.time.save();
        let doubt = core.time.doubt();
        // All else goes here: the ways to the writers, which then end, and what holds the catalogue.
        let (archive, evidence, catalogue, volume) = {
            let core = core;
            (core.archive, core.evidence, core.catalogue, core.volume)
        };
        drop(local_task.await);
        // The writer finishes its log; the upkeep ends after what it is at.
        let rest = move || {
            drop(ingest.join());
            drop(upkeep.join());
            // What was received since the last interval is in one before the server is gone.
            let sealed = evidence.seal(&archive, clock::unix_us(), doubt);
            let sealed = sealed.and_then(|_note| evidence.register(&catalogue));
            if let Err(error) = sealed {
                let error = format!("{error:#}");
                error!(error, "no interval was published at the stop");
            }
            if let Err(error) = rest::announce(&volume, &catalogue) {
                let error = format!("{error:#}");
                error!(error, "how the volume lies is not written down");
            }
            if let Err(error) = copies::write_rest(&volume, &catalogue) {
                let error = format!("{error:#}");
                error!(
                    error,
                    "the catalogue's copy could not be written at the stop"
                );
            }
            // The last that holds the catalogue closes its file.
            drop((archive, evidence));
            if Arc::into_inner(catalogue).is_none() {
                warn!("something still holds the catalogue at the stop");
                return;
            }
            if let Err(error) = rest::write(&volume) {
                let error = format!("{error:#}");
                error!(error, "how the volume lies could not be written down");
            }
            drop(volume);
        };
        if let Err(error) = tokio::task::spawn_blocking(rest).await {
            error!(%error, "the stop failed");
        }
    }
}

impl Core {
    /// Names of all whose entries are archived: the agents, and the server itself.
    pub(crate) fn agent_names(&self) -> BTreeMap<AgentId, String> {
        let agents = self.agents.list();
        let mut names: BTreeMap<_, _> = agents
            .into_iter()
            .map(|(agent, _)| (agent.id, agent.name))
            .collect();
        names.insert(self.own_agent, OWN_NAME.to_owned());
        names
    }

    /// Reads a query, and refuses agents that nobody knows: those of tokens that still enrol somebody are known.
    pub(crate) fn read_query(&self, text: &str) -> Result<Query> {
        let query = Query::parse(text)?;
        if !query.agents.is_empty() {
            let mut known: BTreeSet<String> = self.agent_names().into_values().collect();
            let tokens = self.agents.open_tokens().into_iter();
            known.extend(tokens.map(|token| token.agent_name));
            query.check_agents(&known)?;
        }
        Ok(query)
    }

    /// Names and keys of all who signed batches.
    pub(crate) fn signers(&self) -> BTreeMap<AgentId, Signer> {
        let mut signers = self.agents.signers();
        let own = Signer {
            name: OWN_NAME.to_owned(),
            keys: vec![self.signing.verifying_key().to_bytes()],
        };
        signers.insert(self.own_agent, own);
        signers
    }

    pub(crate) fn data_dir(&self) -> &Path {
        self.volume.dir()
    }
}

/// Opens the catalogue of a volume.
pub(crate) fn open_catalogue(volume: &Volume) -> Result<Catalogue> {
    let path = volume.dir().join("catalogue.db");
    Catalogue::open(&path, &volume.key("catalogue"), volume.is_counted())
}

/// The same; makes it where there is none.
pub(crate) fn make_catalogue(volume: &Volume) -> Result<Catalogue> {
    Catalogue::create(&volume.dir().join("catalogue.db"), &volume.key("catalogue"))
}

/// Makes the server's keys at `init`.
pub(crate) fn make_keys(catalogue: &Catalogue, names: &[String]) -> Result<()> {
    let mut keys = ServerKeys {
        noise: StoredSecret(scrinium_protocol::secret::Secret::new(
            scrinium_segment::random()?,
        )),
        signing: StoredSecret(scrinium_protocol::secret::Secret::new(
            scrinium_segment::random()?,
        )),
        agent: AgentId(scrinium_segment::random()?),
        certificate: String::new(),
        certificate_key: String::new(),
        certificate_ends_us: 0,
        certificate_names: Vec::new(),
    };
    self_signed::renew(&mut keys, names, clock::unix_us())?;
    catalogue.put(&keys)
}

pub(crate) fn load_keys(catalogue: &Catalogue) -> Result<ServerKeys> {
    let keys = catalogue.load::<ServerKeys>()?.pop();
    keys.context("the catalogue has no server keys. On a new volume init was interrupted: remove the directory and run it again. On any other the catalogue is damaged: scrinium-server fsck --rebuild, or restore a backup")
}

/// The key that others know the server of a stopped volume by: what it signs is checked with it.
pub(crate) fn public_key(volume: &Volume) -> Result<[u8; 32]> {
    let keys = load_keys(&open_catalogue(volume)?)?;
    let signing = SigningKey::from_bytes(keys.signing.0.expose());
    Ok(signing.verifying_key().to_bytes())
}

/// The name of this machine, as agents and browsers may call it.
pub(crate) fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// How the server itself is called among the agents.
pub(crate) const OWN_NAME: &str = "server";
const WORK_MAX: usize = 16;
const STEP: Duration = Duration::from_millis(10);
const STEPS_MAX: u32 = 500;

/// A server on a new volume, for tests of what stands on it.
#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::volume::Binding;

    /// A volume in a directory of its own, with what `fill` writes into its catalogue.
    pub(crate) fn new_volume(name: &str, fill: impl FnOnce(&Catalogue)) -> PathBuf {
        let name = format!("scrinium-core-{name}-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        drop(std::fs::remove_dir_all(&dir));
        let (volume, _shares) = Volume::create(&dir, &Binding::default()).unwrap();
        let catalogue = make_catalogue(&volume).unwrap();
        make_keys(&catalogue, &["localhost".to_owned()]).unwrap();
        fill(&catalogue);
        dir
    }

    /// Opens it as the server does.
    pub(crate) fn running(dir: &Path) -> Running {
        running_with(dir, "")
    }

    /// The same, as is configured.
    pub(crate) fn running_with(dir: &Path, config: &str) -> Running {
        let config = Config::parse(config).unwrap();
        let volume = Volume::open(dir).unwrap();
        Running::open(volume, "localhost:720".into(), &config, false).unwrap()
    }
}
