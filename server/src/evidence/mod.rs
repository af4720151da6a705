//! Every few minutes a leaf that says where each stream stands, a tree over all of them, and its signed root.
//!
//! ```text
//! archive: durable positions ─▶ interval ─▶ DATA/evidence/*.evd ─▶ tree ─▶ DATA/evidence/checkpoint
//!                                                              showing: each place by itself ◀─┘
//! ```
//!
//! Invariants:
//! 1. A leaf is durable before a checkpoint covers it: what is lost in a crash was never signed.
//! 2. Leaves are never taken away or changed; when fewer are found than were signed, no more are made until a
//!    person has looked.

pub(crate) mod chain;
mod check;
mod demand;
mod destination;
pub(crate) mod http;
mod inclusion;
mod leaves;
mod letter;
mod memory;
mod patience;
mod publishing;
pub(crate) mod showing;
mod stamps;
mod timestamp;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use anyhow::{Context as _, Result, bail};
use ed25519_dalek::{SigningKey, VerifyingKey};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::evidence::checkpoint::Checkpoint;
use scrinium_protocol::evidence::interval::{Doubt, Interval, Reached};
use scrinium_protocol::identity::StreamId;
use scrinium_protocol::merkle::MerkleTree;
use scrinium_protocol::secret::Secret;
use scrinium_segment::cipher::Cipher;
use scrinium_segment::{durable, fault};
use tokio::sync::watch;
use tracing::{error, warn};

use self::chain::{Chain, Link};
pub(crate) use self::check::{Claims, Doubted, Expected, check};
use self::demand::Demand;
pub(crate) use self::inclusion::{Inclusions, Seal, Seals, Stretch, inclusions};
use self::leaves::{Leaf, Leaves};
pub(crate) use self::letter::Correspondence;
use self::memory::Memory;
pub(crate) use self::publishing::{Intervals, plan};
use crate::archive::Archive;
use crate::archive::troubles::Trouble;
use crate::catalogue::Catalogue;
use crate::catalogue::records::{ChainRecord, LostEntries};
use crate::volume::{EVIDENCE_DIR, Volume};
use crate::waits;

/// Who else sees checkpoints.
#[derive(Clone, Debug)]
pub(crate) struct Elsewhere {
    /// Who time-stamps one a day (RFC 3161).
    pub(crate) authority: Option<String>,
    /// URLs that each one is posted to.
    pub(crate) witnesses: Vec<String>,
    /// Who gets one a day by mail.
    pub(crate) correspondence: Option<Correspondence>,
}

/// A checkpoint that was just signed.
struct Signed {
    note: String,
    /// Intervals that it covers.
    leaves: u64,
    /// When it was made.
    time_us: u64,
}

/// The intervals of a volume, and their tree.
pub(crate) struct Evidence {
    dir: PathBuf,
    signing: SigningKey,
    origin: String,
    /// Directories that get every checkpoint, on other machines.
    copies: Vec<PathBuf>,
    /// The last checkpoint that is to be shown elsewhere.
    newest: watch::Sender<Option<Arc<Signed>>>,
    memory_key: Secret<32>,
    /// Intervals are published by themselves: the server runs.
    is_live: AtomicBool,
    /// What was asked for beside them, and who waits for that.
    demand: (Mutex<Demand>, Condvar),
    state: Mutex<State>,
    /// What the state says of how many there are and when the last one ended, Unix µs: who asks does not wait until one is
    /// sealed, which takes as long as the disk and the archive let it.
    sealed: (AtomicU64, AtomicU64),
}

struct State {
    leaves: Leaves,
    chain: Chain,
    /// The last interval, when it is durable and not signed by its own key yet.
    unsigned: Option<(u64, Vec<u8>)>,
    /// First keys of chains that the catalogue does not know yet.
    begun: Vec<(u64, [u8; 32])>,
    tree: MerkleTree,
    count: u64,
    ends: Ends,
    /// Where each stream stood at the end of the last interval.
    reached: BTreeMap<StreamId, Reached>,
    /// Why no more intervals are made.
    broken: Option<String>,
}

impl Evidence {
    /// Reads back what is there.
    pub(crate) fn open(
        volume: &Volume,
        cipher: Cipher,
        signing: SigningKey,
        copies: Vec<PathBuf>,
    ) -> Result<Self> {
        let dir = volume.dir().join(EVIDENCE_DIR);
        durable::create_dir(&dir)?;
        let leaves = Leaves::open(&dir, volume.key("evidence"), cipher)?;
        let origin = format!("scrinium/{}", volume.id());
        let chain = Chain::open(&dir, &volume.key("keys of intervals"), origin.clone())?;
        let mut state = State {
            leaves,
            chain,
            unsigned: None,
            begun: Vec::new(),
            tree: MerkleTree::new(),
            count: 0,
            ends: Ends::default(),
            reached: BTreeMap::new(),
            broken: None,
        };
        let signed = read_checkpoint(&dir, &signing.verifying_key());
        let mut root_when_signed = None;
        let memory_key = volume.key("evidence memory");
        let mut from = None;
        let signed_leaves = signed.as_ref().ok().and_then(Option::as_ref);
        let signed_leaves = signed_leaves.map_or(0, |signed| signed.leaves);
        // What was signed before is compared with all that is there.
        let remembered = memory::read(&dir, &memory_key).ok();
        if let Some(memory) = remembered.filter(|memory| memory.count <= signed_leaves) {
            if memory.count == signed_leaves {
                root_when_signed = Some(memory.tree.root());
            }
            from = Some(memory.end);
            state.tree = memory.tree;
            state.count = memory.count;
            state.ends = memory.ends;
            state.reached = memory.reached;
        }
        let (mut unsigned, mut begun) = (None, Vec::new());
        let read = state.leaves.read_from(from, |leaf| {
            let (leaf, interval) = match leaf {
                Leaf::Interval(leaf, interval) => (leaf, interval),
                Leaf::Link(link) => {
                    match link {
                        Link::Signed { .. } => unsigned = None,
                        Link::Root { number, public, .. } => begun.push((number, public)),
                    }
                    return Ok(());
                }
            };
            unsigned = Some((interval.number, leaf.to_vec()));
            if interval.number != state.count {
                bail!("interval {} is missing", state.count);
            }
            state.tree.push(&[leaf]);
            state.count += 1;
            state.ends.add(&interval);
            for reached in interval.streams {
                state.reached.insert(reached.stream, reached);
            }
            if let Ok(Some(signed)) = &signed
                && signed.leaves == state.count
            {
                root_when_signed = Some(state.tree.root());
            }
            Ok(())
        });
        if read.is_ok() {
            let next = unsigned.as_ref().map_or(state.count, |(number, _)| *number);
            state.chain.destroy_before(next)?;
        }
        (state.unsigned, state.begun) = (unsigned, begun);
        state.broken = match (&read, &signed) {
            (Err(error), _) | (_, Err(error)) => Some(format!("{error:#}")),
            (Ok(()), Ok(Some(signed))) if signed.leaves > 0 => match root_when_signed {
                None => Some(format!(
                    "{} intervals were signed and {} are there",
                    signed.leaves, state.count
                )),
                Some(root) if root != signed.root => {
                    Some("the intervals are not those that were signed".to_owned())
                }
                Some(_) => None,
            },
            (Ok(()), Ok(_)) => None,
        };
        if let Some(broken) = &state.broken {
            error!(
                broken,
                "the evidence is not whole; no more intervals are sealed"
            );
        }
        Ok(Self {
            dir,
            signing,
            origin,
            copies,
            newest: watch::Sender::new(None),
            memory_key,
            is_live: AtomicBool::new(false),
            demand: Default::default(),
            sealed: (state.count.into(), state.ends.last_us.into()),
            state: Mutex::new(state),
        })
    }

    /// Remembers where it stands, for the next start.
    fn remember(&self, state: &State) -> Result<()> {
        let Some(end) = state.leaves.end() else {
            return Ok(());
        };
        let memory = Memory {
            tree: state.tree.clone(),
            count: state.count,
            ends: state.ends,
            reached: state.reached.clone(),
            end,
        };
        memory::write(&self.dir, &self.memory_key, memory)
    }

    /// How many intervals are sealed, and when the last one ended, Unix µs.
    pub(crate) fn sealed(&self) -> (u64, u64) {
        let (count, last_us) = &self.sealed;
        (
            count.load(Ordering::Acquire),
            last_us.load(Ordering::Acquire),
        )
    }

    /// The last interval there is a key of.
    pub(crate) fn last_key(&self) -> Option<u64> {
        self.lock().chain.last()
    }

    /// What is certain of the time: the end of the last interval that was confirmed, and the last time stamp. Unix µs.
    pub(crate) fn certain_us(&self) -> u64 {
        let confirmed_us = self.lock().ends.confirmed_us;
        confirmed_us.max(timestamp::last_us(&self.dir))
    }

    /// Seals the interval that ends now. Its checkpoint is the newest, for whoever shows it elsewhere. `doubt` says that the
    /// time is not confirmed.
    ///
    /// # Errors
    /// What is wrong, in a sentence.
    fn work(&self, archive: &Archive, now_us: u64, doubt: Option<Doubt>) -> Result<(), String> {
        let sealed = self.seal(archive, now_us, doubt);
        match &sealed {
            Ok(_) => archive.troubles().end(Trouble::Proving),
            Err(error) => archive
                .troubles()
                .meet(Trouble::Proving, format!("{error:#}")),
        }
        let note = sealed.map_err(|error| {
            format!(
                "no interval was sealed: {error:#}. What was received since is archived, and not yet proven."
            )
        })?;
        let (leaves, _) = self.sealed();
        self.newest.send_replace(Some(Arc::new(Signed {
            note,
            leaves,
            time_us: now_us,
        })));
        Ok(())
    }

    /// The newest checkpoint that is to be shown, now and as it changes.
    fn newest(&self) -> watch::Receiver<Option<Arc<Signed>>> {
        self.newest.subscribe()
    }

    /// Directories that get every checkpoint.
    fn copies(&self) -> &[PathBuf] {
        &self.copies
    }

    /// Seals the interval that ends now; returns the signed checkpoint. Ends never go back: one before the last is that
    /// one, in doubt. An interval in doubt says so, and what the wall clock showed.
    ///
    /// # Errors
    /// The evidence is not whole, or the disk does not take it: the interval goes on.
    pub(crate) fn seal(
        &self,
        archive: &Archive,
        now_us: u64,
        doubt: Option<Doubt>,
    ) -> Result<String> {
        let mut state = self.lock();
        if let Some(broken) = &state.broken {
            bail!("{broken}");
        }
        let is_behind = state.ends.last_us.saturating_sub(now_us) > BEHIND_US_MAX;
        let doubt = doubt.or_else(|| is_behind.then_some(Doubt { wall_us: now_us }));
        // Before it is looked where the streams stand: what is noted in the files before is in this interval.
        let introduced = archive.introduced();
        let acked = archive.acked().begin(&introduced)?;
        let moved: Vec<Reached> = archive
            .reached()
            .into_iter()
            .filter(|reached| state.reached.get(&reached.stream) != Some(reached))
            .collect();
        let interval = Interval {
            number: state.count,
            from_us: state.ends.last_us,
            to_us: now_us.max(state.ends.last_us),
            doubt,
            streams: moved,
        };
        let leaf = interval.encoded();
        self.sign_last(&mut state)?;
        state.leaves.append(&leaf)?;
        fault::point("server: interval durable");
        state.unsigned = Some((interval.number, leaf.clone()));
        // At this point it is part of the tree; if we die before signing it, the next checkpoint covers it.
        state.tree.push(&[&leaf]);
        state.count += 1;
        state.ends.add(&interval);
        self.sealed.1.store(state.ends.last_us, Ordering::Release);
        self.sealed.0.store(state.count, Ordering::Release);
        for reached in interval.streams {
            state.reached.insert(reached.stream, reached);
        }
        self.sign_last(&mut state)?;
        let checkpoint = Checkpoint {
            origin: self.origin.clone(),
            leaves: state.count,
            root: state.tree.root(),
            time_s: state.ends.last_us / 1_000_000,
        };
        let note = checkpoint.to_note(&self.signing);
        durable::write_file(&self.dir.join(CHECKPOINT_FILE), note.as_bytes())
            .context("writing the checkpoint")?;
        fault::point("server: checkpoint durable");
        // At this point it is signed; if we die now, the start finds the files of acknowledgements and keeps them.
        let mut noting = archive.acked();
        noting.note_signed(state.count)?;
        noting.remove_before(acked)?;
        drop(noting);
        if state.count.is_multiple_of(REMEMBERED_EVERY) {
            self.remember(&state)
                .context("remembering where the evidence stands")?;
        }
        Ok(note)
    }

    /// Entries that an interval has and the archive does not: they were taken away since.
    pub(crate) fn behind(&self, archive: &Archive) -> Vec<LostEntries> {
        let state = self.lock();
        let behind = state.reached.values().filter_map(|reached| {
            let stream = archive.stream(reached.stream)?;
            let position = &stream.position;
            let is_behind = position.epoch == reached.epoch && position.next < reached.next;
            is_behind.then(|| LostEntries {
                stream: reached.stream,
                name: Some(stream.name.to_string()),
                agent: stream.agent,
                epoch: reached.epoch,
                sequences: (position.next.0, reached.next.0),
                head: reached.head,
            })
        });
        behind.collect()
    }

    /// Signs the last interval with its own key, which is destroyed, unless that is done.
    fn sign_last(&self, state: &mut State) -> Result<()> {
        let State {
            leaves,
            chain,
            unsigned,
            begun,
            ..
        } = state;
        let Some((number, leaf)) = unsigned else {
            return Ok(());
        };
        let append = |kind, payload: &[u8]| leaves.append_record(kind, payload);
        let root = chain.sign(&self.signing, *number, leaf, append)?;
        begun.extend(root.map(|public| (*number, public)));
        *unsigned = None;
        Ok(())
    }

    /// Writes rows for what came since the last time and must not go unnoticed again: first keys of chains, tokens.
    pub(crate) fn register(&self, catalogue: &Catalogue) -> Result<()> {
        let begun = core::mem::take(&mut self.lock().begun);
        let known = catalogue.load::<ChainRecord>()?;
        for (number, public) in begun {
            if known.iter().all(|known| known.number != number) {
                if !known.is_empty() {
                    warn!(
                        interval = number,
                        "the keys of intervals were lost, or the volume was restored: a new chain of keys begins"
                    );
                }
                catalogue.put(&ChainRecord {
                    number,
                    public,
                    ended: false,
                })?;
            }
        }
        stamps::register(&self.dir, catalogue)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        waits::lock(&self.state)
    }
}

/// Where intervals end, Unix µs.
#[derive(Clone, Copy, Debug, Default)]
struct Ends {
    last_us: u64,
    /// The end of the last one whose end was confirmed.
    confirmed_us: u64,
}

impl Ends {
    /// The last interval is this one.
    fn add(&mut self, interval: &Interval) {
        self.last_us = interval.to_us;
        if interval.doubt.is_none() {
            self.confirmed_us = interval.to_us;
        }
    }
}

/// The day of a time in UTC, as `2026-01-31`.
fn day(time_us: u64) -> Result<String> {
    let seconds = i64::try_from(time_us / 1_000_000)?;
    Ok(jiff::Timestamp::from_second(seconds)?
        .strftime("%F")
        .to_string())
}

/// The checkpoint of a directory, if there is one, signed by `key`.
fn read_checkpoint(dir: &Path, key: &VerifyingKey) -> Result<Option<Checkpoint>> {
    Ok(read_note(dir, key)?.map(|(_, checkpoint)| checkpoint))
}

/// The same, and the signed note itself.
fn read_note(dir: &Path, key: &VerifyingKey) -> Result<Option<(String, Checkpoint)>> {
    let path = dir.join(CHECKPOINT_FILE);
    let note = match std::fs::read_to_string(&path) {
        Ok(note) => note,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let checkpoint = Checkpoint::of_note(&note, key);
    let checkpoint = checkpoint.with_context(|| path.display().to_string())?;
    Ok(Some((note, checkpoint)))
}

/// The end of an interval is in doubt when the time stands further before the last one.
const BEHIND_US_MAX: u64 = 2_000_000;
/// Intervals that a start reads at most.
const REMEMBERED_EVERY: u64 = 64;
const CHECKPOINT_FILE: &str = "checkpoint";

#[cfg(test)]
mod tests;
