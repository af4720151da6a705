//! `machine.json`: the key of an agent's state and spool, wrapped for this machine and for the server.
//!
//! ```text
//! install secret ─┬─ and every characteristic ─▶ slot 1 ─┐
//!                 ├─ without the first ────────▶ slot 2 ─┼─▶ key ─▶ state, spool
//!                 └─ without the second ───────▶ …      ─┘    ▲
//! the server's part, given when a person let the agent in ────┘
//! ```
//!
//! Invariants:
//! 1. The key never changes, so renewing a binding is one small file, replaced in one step: a death leaves the one before.
//! 2. With two characteristics or more at least two are as they were, or nothing opens. No file here holds the server's part.
//! 3. What version 0.1.0 wrote stays as it is until it is renewed, and that program opens it until then. What is written
//!    here it refuses, in the words of [`Sealed`]'s first field.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use data_encoding::HEXLOWER;
use scrinium_protocol::secret::Secret;
use scrinium_segment::key::derive;
use scrinium_segment::machine::{self, Characteristic};
use scrinium_segment::slots::Slots;
use scrinium_segment::wrap::{self, unwrap};
use scrinium_segment::{durable, fault, random};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::asking::Asking;
use super::{STATE_NAME, State, no_agent};

/// What is bound to, opened.
pub(crate) struct Binding {
    path: PathBuf,
    install: Secret<32>,
    key: Secret<32>,
    /// As it is on the disk; `None` for what version 0.1.0 wrote.
    sealed: Option<Sealed>,
    changed: Vec<String>,
}

/// What opening comes to.
#[derive(Debug)]
pub(crate) enum Opened {
    Here(Binding),
    /// It lies on another machine, or too much of this one changed.
    Elsewhere(Elsewhere),
}

/// A binding that does not open.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    /// Characteristics that are not what they were, as far as that is known.
    changed: Vec<String>,
    /// What it takes to ask the server.
    pub(crate) asking: Option<Asking>,
    binding: Option<(PathBuf, Secret<32>, Sealed)>,
}

/// `machine.json`.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    /// Programs of version 0.1.0 refuse a field that they do not know, and print its name.
    #[serde(rename = "this state was taken over by a newer scrinium-agent, which alone opens it")]
    version: u32,
    /// The random part of the key.
    secret: String,
    /// What it is bound to: names, never values.
    characteristics: Vec<String>,
    /// How many of them may change.
    machine_changes_max: usize,
    hints: BTreeMap<String, u8>,
    slots: Vec<Slot>,
    /// What it takes to ask the server, sealed under the secret: neither name nor credential can be read here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    asking: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Slot {
    /// Characteristics that may be others.
    without: Vec<String>,
    wrapped: String,
}

/// `machine.json` of version 0.1.0: the key is made of the characteristics themselves.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Of01 {
    characteristics: Vec<String>,
    secret: String,
}

impl Binding {
    /// Opens the binding of `dir`; makes one when there is none.
    pub(crate) fn prepare(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE_NAME);
        if !path.try_exists()? {
            let (install, key) = (Secret::new(random()?), Secret::new(random()?));
            let found = machine::of_agents();
            let sealed = Sealed::new(&found, CHANGES_MAX_DEFAULT, &install, &key, None)?;
            sealed.write(&path)?;
        }
        match Self::open(dir)? {
            Opened::Here(binding) => Ok(binding),
            Opened::Elsewhere(elsewhere) => bail!("{}: {}", dir.display(), elsewhere.in_words()),
        }
    }

    /// Opens the binding of `dir` on this machine.
    pub(crate) fn open(dir: &Path) -> Result<Opened> {
        Self::open_on(dir, &machine::of_agents())
    }

    fn open_on(dir: &Path, found: &[Characteristic]) -> Result<Opened> {
        let path = dir.join(FILE_NAME);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(no_agent(dir)),
            text => text.with_context(|| format!("reading {}", path.display()))?,
        };
        let text = Zeroizing::new(text);
        let damaged = || format!("{} is damaged", path.display());
        if let Ok(old) = serde_json::from_slice::<Of01>(&text) {
            let install = secret_of(&old.secret).with_context(damaged)?;
            return old.open(dir, path, install);
        }
        let sealed: Sealed = serde_json::from_slice(&text).with_context(damaged)?;
        if sealed.version != VERSION {
            bail!(
                "{}: version {} is newer than this program",
                path.display(),
                sealed.version
            );
        }
        let install = secret_of(&sealed.secret).with_context(damaged)?;
        for slot in &sealed.slots {
            let Some(slot_key) = slot.key(&sealed.characteristics, found, &install) else {
                continue;
            };
            if let Some(key) = unwrap(&slot_key, &slot.wrapped, ABOUT_SLOT) {
                return Ok(Opened::Here(Self {
                    path,
                    install,
                    key,
                    changed: slot.without.clone(),
                    sealed: Some(sealed),
                }));
            }
        }
        Ok(Opened::Elsewhere(Elsewhere {
            changed: sealed.differs(found, &install),
            asking: sealed.asking(&install),
            binding: Some((path, install, sealed)),
        }))
    }

    /// The key of state and spool.
    pub(crate) fn key(&self) -> &Secret<32> {
        &self.key
    }

    /// The characteristics that are not what they were when it was bound.
    pub(crate) fn changed(&self) -> &[String] {
        &self.changed
    }

    pub(crate) fn is_of_0_1(&self) -> bool {
        self.sealed.is_none()
    }

    /// See [`super::Identity::renew_binding`].
    pub(super) fn renew(&mut self, changes_max: usize, state: &State) -> Result<bool> {
        self.renew_on(&machine::of_agents(), changes_max, state)
    }

    fn renew_on(
        &mut self,
        found: &[Characteristic],
        changes_max: usize,
        state: &State,
    ) -> Result<bool> {
        let is_as_wanted = self.changed.is_empty()
            && self.sealed.as_ref().is_some_and(|sealed| {
                sealed.machine_changes_max == changes_max
                    && sealed.characteristics == names_of(found)
                    && match &state.recovery {
                        Some(recovery) => sealed
                            .asking(&self.install)
                            .is_some_and(|asking| asking.is_of(state, recovery, &self.key)),
                        None => sealed.asking.is_none(),
                    }
            });
        if is_as_wanted {
            return Ok(false);
        }
        let asking = Asking::new(state, &self.key)?;
        let sealed = Sealed::new(found, changes_max, &self.install, &self.key, asking)?;
        sealed.write(&self.path)?;
        fault::point("agent: binding durable");
        self.sealed = Some(sealed);
        self.changed.clear();
        Ok(true)
    }
}

impl std::fmt::Debug for Binding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Binding")
            .field("path", &self.path)
            .field("changed", &self.changed)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealed").finish_non_exhaustive()
    }
}

impl Elsewhere {
    /// What is wrong, for people.
    pub(crate) fn in_words(&self) -> String {
        let changed = if self.changed.is_empty() {
            "which characteristic is not known".to_owned()
        } else {
            self.changed.join(", ")
        };
        format!(
            "this state belongs to another machine, or too much of this one changed ({changed})"
        )
    }

    /// Opens it with what the server gave.
    pub(crate) fn open_with(self, state_key: &Secret<32>) -> Result<Binding> {
        let opened = self.asking.and_then(|asking| asking.open(state_key));
        let (Some(key), Some((path, install, sealed))) = (opened, self.binding) else {
            bail!("what the server gave does not open this state");
        };
        Ok(Binding {
            path,
            install,
            key,
            sealed: Some(sealed),
            changed: self.changed,
        })
    }
}

impl Sealed {
    fn new(
        found: &[Characteristic],
        changes_max: usize,
        install: &Secret<32>,
        key: &Secret<32>,
        asking: Option<Asking>,
    ) -> Result<Self> {
        let characteristics = names_of(found);
        let may_change = changes_max.min(found.len().saturating_sub(UNCHANGED_MIN));
        let mut slots = Vec::new();
        for without in subsets(&characteristics, may_change) {
            let mut slot = Slot {
                without,
                wrapped: String::new(),
            };
            let slot_key = slot.key(&characteristics, found, install);
            let slot_key = slot_key.context("a characteristic is bound to that is not there")?;
            slot.wrapped = wrap::wrap(&slot_key, key, ABOUT_SLOT)?;
            slots.push(slot);
        }
        let hints = found
            .iter()
            .map(|found| (found.name.to_owned(), machine::hint(found, install)));
        let asking = asking.map(|asking| {
            let bytes = Zeroizing::new(asking.encoded());
            wrap::seal(&asking_key(install), &bytes, ABOUT_ASKING)
        });
        Ok(Self {
            version: VERSION,
            secret: HEXLOWER.encode(install.expose()),
            machine_changes_max: changes_max,
            hints: hints.collect(),
            characteristics,
            slots,
            asking: asking.transpose()?,
        })
    }

    fn write(&self, path: &Path) -> Result<()> {
        let text = Zeroizing::new(serde_json::to_vec_pretty(self)?);
        durable::write_file(path, &text)?;
        Ok(())
    }

    /// The characteristics that are not what they were, as far as the hints tell.
    fn differs(&self, found: &[Characteristic], install: &Secret<32>) -> Vec<String> {
        let is_other = |name: &&String| {
            let now = found.iter().find(|found| found.name == **name);
            now.map(|found| machine::hint(found, install)) != self.hints.get(*name).copied()
        };
        let names = self.characteristics.iter();
        names.filter(is_other).cloned().collect()
    }

    fn asking(&self, install: &Secret<32>) -> Option<Asking> {
        let sealed = self.asking.as_ref()?;
        let bytes = wrap::open(&asking_key(install), sealed, ABOUT_ASKING)?;
        Asking::decode(&bytes)
    }
}

impl Slot {
    /// The key it is wrapped under on a machine of which this was found; `None` when that has not all of it.
    fn key(
        &self,
        names: &[String],
        found: &[Characteristic],
        install: &Secret<32>,
    ) -> Option<Secret<32>> {
        let kept = names.iter().filter(|name| !self.without.contains(name));
        let kept: Option<Vec<&Characteristic>> = kept
            .map(|name| found.iter().find(|found| found.name == name))
            .collect();
        Some(machine::bind_to(kept?.into_iter(), install))
    }
}

impl Of01 {
    fn open(self, dir: &Path, path: PathBuf, install: Secret<32>) -> Result<Opened> {
        let elsewhere = |changed: Vec<String>| {
            Ok(Opened::Elsewhere(Elsewhere {
                changed,
                asking: None,
                binding: None,
            }))
        };
        let key = match machine::bind(&self.characteristics, &install) {
            Ok(key) => key,
            Err(missing) => return elsewhere(vec![missing.0.to_owned()]),
        };
        match Slots::open(dir, STATE_NAME, &key) {
            Err(scrinium_segment::Error::Header { .. }) => elsewhere(Vec::new()),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(Opened::Here(Binding {
                path,
                install,
                key,
                sealed: None,
                changed: Vec::new(),
            })),
        }
    }
}

fn names_of(found: &[Characteristic]) -> Vec<String> {
    found.iter().map(|found| found.name.to_owned()).collect()
}

/// Every choice of at most `max` of `names`, the smaller ones first.
fn subsets(names: &[String], max: usize) -> Vec<Vec<String>> {
    let mut all = vec![Vec::new()];
    let mut begin = 0;
    for _ in 0..max {
        let end = all.len();
        for at in begin..end {
            let chosen = all.get(at).cloned().unwrap_or_default();
            let last = chosen
                .last()
                .and_then(|last| names.iter().position(|name| name == last));
            let after = names.iter().skip(last.map_or(0, |last| last + 1));
            all.extend(after.map(|name| [&chosen[..], core::slice::from_ref(name)].concat()));
        }
        begin = end;
    }
    all
}

fn asking_key(install: &Secret<32>) -> Secret<32> {
    derive(install, None, &[b"scrinium asking v1"])
}

fn secret_of(hex: &str) -> Option<Secret<32>> {
    let bytes = Zeroizing::new(HEXLOWER.decode(hex.as_bytes()).ok()?);
    Some(Secret::new(bytes.as_slice().try_into().ok()?))
}

const FILE_NAME: &str = "machine.json";
/// Version 0.1.0 wrote none.
const VERSION: u32 = 2;
const ABOUT_SLOT: &str = "agent state, slot";
const ABOUT_ASKING: &str = "agent state, asking";
/// Characteristics that may change without a person's approval, unless the configuration says otherwise: a processor of a
/// cloud, the machine-id of an image, a network card. As the server's own number.
pub(crate) const CHANGES_MAX_DEFAULT: usize = 1;
/// The most that a configuration may say: of five characteristics two stay.
pub(crate) const CHANGES_MAX: usize = 3;
/// Characteristics that must be as they were, where there are so many.
const UNCHANGED_MIN: usize = 2;

#[cfg(test)]
mod tests;
