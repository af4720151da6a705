//! Every few minutes a leaf that says where each stream stands, a tree over all of them, and its signed root.
//!
//! ```text
//! archive: durable positions ─▶ interval ─▶ DATA/evidence/*.evd ─▶ tree ─▶ DATA/evidence/checkpoint
//!                                                                          └─▶ copies elsewhere
//! ```
//!
//! Invariants:
//! 1. A leaf is durable before a checkpoint covers it: what is lost in a crash was never signed.
//! 2. Leaves are never taken away or changed; when fewer are found than were signed, no more are made until a
//!    person has looked.

mod check;
mod leaves;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ed25519_dalek::{SigningKey, VerifyingKey};
use scrinium_protocol::batch::StreamPosition;
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::evidence::checkpoint::Checkpoint;
use scrinium_protocol::evidence::interval::{Interval, Reached};
use scrinium_protocol::identity::StreamId;
use scrinium_protocol::merkle::MerkleTree;
use scrinium_segment::cipher::Cipher;
use scrinium_segment::{durable, fault};
use tracing::{error, info};

pub(crate) use self::check::{Claims, check};
use self::leaves::Leaves;
use crate::alarms::{AlarmKind, Raise};
use crate::archive::Archive;
use crate::clock;
use crate::core::Core;
use crate::volume::{EVIDENCE_DIR, Volume};

/// The intervals of a volume, and their tree.
pub(crate) struct Evidence {
    dir: PathBuf,
    signing: SigningKey,
    origin: String,
    /// Directories that get every checkpoint, on other machines.
    copies: Vec<PathBuf>,
    state: Mutex<State>,
}

struct State {
    leaves: Leaves,
    tree: MerkleTree,
    count: u64,
    to_us: u64,
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
        let mut state = State {
            leaves,
            tree: MerkleTree::new(),
            count: 0,
            to_us: 0,
            reached: BTreeMap::new(),
            broken: None,
        };
        let origin = format!("scrinium/{}", volume.id());
        let signed = read_checkpoint(&dir, &signing.verifying_key());
        let mut root_when_signed = None;
        let read = state.leaves.read_all(|leaf, interval| {
            if interval.number != state.count {
                bail!("interval {} is missing", state.count);
            }
            state.tree.push(&[leaf]);
            state.count += 1;
            state.to_us = interval.to_us;
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
            state: Mutex::new(state),
        })
    }

    /// Seals the interval that ends now.
    ///
    /// # Errors
    /// The evidence is not whole, or the disk does not take it: the interval goes on.
    pub(crate) fn seal(&self, archive: &Archive, now_us: u64) -> Result<()> {
        let mut state = self.lock();
        if let Some(broken) = &state.broken {
            bail!("{broken}");
        }
        let streams = archive.streams().into_values();
        let reached = streams
            .filter(|stream| stream.entries > 0)
            .map(|stream| reached(stream.id, &stream.position));
        let moved: Vec<Reached> = reached
            .filter(|reached| state.reached.get(&reached.stream) != Some(reached))
            .collect();
        let interval = Interval {
            number: state.count,
            from_us: state.to_us,
            to_us: now_us.max(state.to_us),
            streams: moved,
        };
        let leaf = interval.encoded();
        state.leaves.append(&leaf)?;
        fault::point("server: interval durable");
        // At this point it is part of the tree; if we die before signing it, the next checkpoint covers it.
        state.tree.push(&[&leaf]);
        state.count += 1;
        state.to_us = interval.to_us;
        for reached in interval.streams {
            state.reached.insert(reached.stream, reached);
        }
        let checkpoint = Checkpoint {
            origin: self.origin.clone(),
            leaves: state.count,
            root: state.tree.root(),
            time_s: state.to_us / 1_000_000,
        };
        let note = checkpoint.to_note(&self.signing);
        durable::write_file(&self.dir.join(CHECKPOINT_FILE), note.as_bytes())
            .context("writing the checkpoint")?;
        self.copy(&note, state.to_us)
    }

    /// Leaves the checkpoint where others keep it: the last one, and the last one of each day.
    fn copy(&self, note: &str, time_us: u64) -> Result<()> {
        let time = i64::try_from(time_us / 1_000_000).unwrap_or(0);
        let time = jiff::Timestamp::from_second(time)?;
        let name = self.origin.replace('/', "-");
        for dir in &self.copies {
            for file in [
                format!("{name}.checkpoint"),
                format!("{name}-{}.checkpoint", time.strftime("%F")),
            ] {
                durable::write_file(&dir.join(file), note.as_bytes()).with_context(|| {
                    format!(
                        "evidence.copies: copying the checkpoint to {}",
                        dir.display()
                    )
                })?;
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reached(stream: StreamId, position: &StreamPosition) -> Reached {
    Reached {
        stream,
        epoch: position.epoch,
        next: position.next,
        head: position.head,
    }
}

/// The checkpoint of a directory, if there is one, signed by `key`.
fn read_checkpoint(dir: &std::path::Path, key: &VerifyingKey) -> Result<Option<Checkpoint>> {
    let path = dir.join(CHECKPOINT_FILE);
    let note = match std::fs::read_to_string(&path) {
        Ok(note) => note,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let checkpoint = Checkpoint::of_note(&note, key);
    Ok(Some(
        checkpoint.with_context(|| format!("{}", path.display()))?,
    ))
}

/// Seals intervals until the task is dropped; a failure is an alarm.
pub(crate) async fn run(core: Arc<Core>, interval: Duration) {
    let mut told = None;
    loop {
        let sealed = {
            let core = core.clone();
            tokio::task::spawn_blocking(move || core.evidence.seal(&core.archive, clock::unix_us()))
                .await
        };
        let failed = match sealed {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(error) => Some(error.to_string()),
        };
        if let Some(failed) = failed
            .clone()
            .filter(|failed| told.as_ref() != Some(failed))
        {
            core.alarms
                .raise(Raise {
                    kind: AlarmKind::EvidenceStopped,
                    agent: crate::core::OWN_NAME.to_owned(),
                    text: format!(
                        "no interval was sealed: {failed}. What was received since is archived, and not yet proven."
                    ),
                    key: String::new(),
                })
                .await;
        }
        if failed.is_none() && told.is_some() {
            info!("intervals are sealed again");
        }
        told = failed;
        tokio::time::sleep(interval).await;
    }
}

const CHECKPOINT_FILE: &str = "checkpoint";
