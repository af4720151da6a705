//! `volume.json`: the master key, wrapped once for this machine and once for the recovery shares.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use data_encoding::HEXLOWER;
use scrinium_protocol::secret::Secret;
use scrinium_segment::key::derive;
use scrinium_segment::lock::DirLock;
use scrinium_segment::wrap::{unwrap, wrap};
use scrinium_segment::{durable, machine, random};
use serde::{Deserialize, Serialize};
use tracing::warn;
use zeroize::Zeroizing;

use super::tpm::{self, SealedSecret};
use super::{SLOTS_FILE, shares};

/// The wrapped keys, as `volume.json` has them.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Slots {
    version: u32,
    pub(super) volume_id: String,
    pub(super) machine: MachineSlot,
    recovery: RecoverySlot,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MachineSlot {
    /// What must be as it was: names, never values.
    pub(super) characteristics: Vec<String>,
    /// What this machine has besides, and may be exchanged.
    #[serde(default)]
    pub(super) may_change: Vec<String>,
    /// What its TPM must give besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tpm: Option<SealedSecret>,
    /// A byte of a keyed hash of each characteristic: enough to say which one differs, too little to find a value by.
    /// None of version 0.1.0.
    #[serde(default)]
    hints: BTreeMap<String, u8>,
    /// The catalogue states what all its rows are. The key is wrapped for it: who alters this opens nothing. Not so in
    /// a volume that version 0.1.0 had last.
    #[serde(default)]
    counted: bool,
    wrapped: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RecoverySlot {
    shares: u8,
    needed: u8,
    /// As in the slot of the machine.
    #[serde(default)]
    counted: bool,
    wrapped: String,
}

/// What a volume is to be bound to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Binding {
    /// Names of characteristics that may change.
    pub(crate) may_change: Vec<String>,
    pub(crate) tpm: UseTpm,
}

/// Whether a TPM must be there.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) enum UseTpm {
    /// If this machine has one that works.
    #[default]
    IfThere,
    /// That one, or it is an error.
    At(PathBuf),
    No,
}

/// The volume is bound to another machine.
#[derive(Debug, thiserror::Error)]
#[error(
    "this volume is bound to another machine: {}{problem}. What it is bound to (machine id, processor, board, TPM) is not what it was made on. Open it with two recovery shares: scrinium-server recover --data DIR",
    differs_in_words(differs)
)]
pub(super) struct OtherMachine {
    /// Names of characteristics that are others, as far as that is known.
    pub(super) differs: Vec<String>,
    problem: String,
}

fn differs_in_words(differs: &[String]) -> String {
    if differs.is_empty() {
        "which characteristic differs is not known".to_owned()
    } else {
        format!("{} differs", differs.join(", "))
    }
}

impl Slots {
    /// Wraps a new volume's master key; the recovery shares are written nowhere.
    pub(super) fn create(
        volume_id: String,
        master: &Secret<32>,
        install: &Secret<32>,
        binding: &Binding,
    ) -> Result<(Self, Vec<Zeroizing<String>>)> {
        let (recovery, shares) = RecoverySlot::deal(master, &volume_id, true)?;
        let slots = Self {
            version: 1,
            machine: MachineSlot::wrap(master, install, &volume_id, binding, true)?,
            recovery,
            volume_id,
        };
        Ok((slots, shares))
    }

    pub(super) fn read(dir: &Path) -> Result<(DirLock, Self)> {
        let path = dir.join(SLOTS_FILE);
        let is_there = path.try_exists().with_context(|| {
            format!(
                "looking into {}; run this as the user of the server, or as root",
                dir.display()
            )
        })?;
        if !is_there {
            bail!(
                "{} holds no volume; make one with: scrinium-server init --data {0}",
                dir.display()
            );
        }
        let lock = DirLock::acquire(dir).with_context(|| {
            format!(
                "locking {}: the server may be running on it as another user, or still be starting; run this as that user, or as root",
                dir.display()
            )
        })?;
        Ok((lock, Self::parse(&path)?))
    }

    pub(super) fn parse(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let slots: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is damaged", path.display()))?;
        if slots.version != 1 {
            bail!(
                "{}: version {} is newer than this program",
                path.display(),
                slots.version
            );
        }
        Ok(slots)
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        durable::write_file(path, &text)?;
        Ok(())
    }

    /// The master key, by this machine.
    pub(super) fn open(&self, install: &Secret<32>) -> Result<Secret<32>> {
        let refused = |missing: Option<anyhow::Error>| OtherMachine {
            differs: self.machine.differs(install),
            problem: missing.map_or_else(String::new, |missing| format!(" ({missing:#})")),
        };
        let key = match self.machine.key(install) {
            Ok(key) => key,
            Err(missing) => return Err(refused(Some(missing)).into()),
        };
        let about = self.machine.about(&self.volume_id);
        unwrap(&key, &self.machine.wrapped, &about).ok_or_else(|| refused(None).into())
    }

    /// Whether the catalogue states what its rows are.
    pub(super) fn is_counted(&self) -> bool {
        self.machine.counted || self.recovery.counted
    }

    /// From now on it does.
    pub(super) fn count(&mut self, master: &Secret<32>, install: &Secret<32>) -> Result<()> {
        let key = self.machine.key(install)?;
        self.machine.counted = true;
        self.machine.wrapped = wrap(&key, master, &self.machine.about(&self.volume_id))?;
        Ok(())
    }

    /// The master key, by recovery shares.
    pub(super) fn recover(&self, shares: &[String]) -> Result<Secret<32>> {
        let recovery = shares::join(self.recovery.needed, shares)?;
        let about = about(&self.volume_id, self.recovery.counted);
        let master = unwrap(&recovery, &self.recovery.wrapped, &about);
        master.context("these shares belong to another volume, or were replaced by others")
    }

    /// Binds the volume to this machine.
    pub(super) fn bind(
        &mut self,
        master: &Secret<32>,
        install: &Secret<32>,
        binding: &Binding,
    ) -> Result<()> {
        let counted = self.is_counted();
        self.machine = MachineSlot::wrap(master, install, &self.volume_id, binding, counted)?;
        Ok(())
    }

    /// Deals other shares; those before open nothing any more.
    pub(super) fn deal(&mut self, master: &Secret<32>) -> Result<Vec<Zeroizing<String>>> {
        let (recovery, shares) = RecoverySlot::deal(master, &self.volume_id, self.machine.counted)?;
        self.recovery = recovery;
        Ok(shares)
    }
}

impl MachineSlot {
    fn wrap(
        master: &Secret<32>,
        install: &Secret<32>,
        volume_id: &str,
        binding: &Binding,
        counted: bool,
    ) -> Result<Self> {
        let found = machine::characteristics().into_iter();
        let found: Vec<String> = found.map(|found| found.name.to_owned()).collect();
        for name in &binding.may_change {
            if !found.contains(name) {
                bail!(
                    "--may-change '{name}': this machine is told by {}",
                    found.join(", ")
                );
            }
        }
        let (may_change, characteristics): (Vec<String>, Vec<String>) = found
            .into_iter()
            .partition(|name| binding.may_change.contains(name));
        let mut slot = Self {
            characteristics,
            may_change,
            tpm: sealed(&binding.tpm)?,
            hints: BTreeMap::new(),
            counted,
            wrapped: String::new(),
        };
        slot.hints = machine::hints(&slot.characteristics, install);
        if slot.characteristics.is_empty() && slot.tpm.is_none() {
            bail!("--may-change: something must stay, or anybody's machine opens the volume");
        }
        slot.wrapped = wrap(&slot.key(install)?, master, &slot.about(volume_id))?;
        Ok(slot)
    }

    /// What the master key is wrapped for.
    fn about(&self, volume_id: &str) -> String {
        about(volume_id, self.counted)
    }

    /// The characteristics that are not what they were, as far as the hints tell.
    fn differs(&self, install: &Secret<32>) -> Vec<String> {
        let now = machine::hints(&self.characteristics, install);
        let hints = self.hints.iter();
        let mut differs: Vec<String> = hints
            .filter(|(name, hint)| now.get(*name) != Some(hint))
            .map(|(name, _)| name.clone())
            .collect();
        if differs.is_empty() && self.tpm.is_some() {
            differs.push("TPM".to_owned());
        }
        differs
    }

    fn key(&self, install: &Secret<32>) -> Result<Secret<32>> {
        let key = machine::bind(&self.characteristics, install);
        let key = key.map_err(|missing| anyhow::anyhow!("{missing}"))?;
        let Some(sealed) = &self.tpm else {
            return Ok(key);
        };
        let secret = tpm::unseal(sealed).context(
            "its part did not come; the server's own user must be allowed to ask the chip",
        )?;
        Ok(derive(
            &key,
            Some(secret.expose()),
            &[b"scrinium tpm binding v1"],
        ))
    }

    /// The TPM it is bound to.
    pub(super) fn tpm(&self) -> Option<&Path> {
        self.tpm.as_ref().map(|sealed| &*sealed.device)
    }
}

/// What a master key is wrapped for.
fn about(volume_id: &str, counted: bool) -> String {
    if counted {
        format!("{volume_id} counted")
    } else {
        volume_id.to_owned()
    }
}

/// A new secret, sealed by the TPM that is to be used.
fn sealed(wanted: &UseTpm) -> Result<Option<SealedSecret>> {
    let secret = Secret::new(random()?);
    match wanted {
        UseTpm::No => Ok(None),
        UseTpm::At(device) => Ok(Some(tpm::seal(device, &secret)?)),
        UseTpm::IfThere => {
            let device = Path::new(tpm::DEVICE);
            if !device.try_exists()? {
                return Ok(None);
            }
            let sealed = tpm::seal(device, &secret);
            if let Err(error) = &sealed {
                let error = format!("{error:#}");
                warn!(
                    error,
                    "this machine's TPM cannot be used; the volume is bound without it"
                );
            }
            Ok(sealed.ok())
        }
    }
}

impl RecoverySlot {
    fn deal(
        master: &Secret<32>,
        volume_id: &str,
        counted: bool,
    ) -> Result<(Self, Vec<Zeroizing<String>>)> {
        let recovery = Secret::new(random()?);
        let slot = Self {
            shares: shares::DEALT,
            needed: shares::NEEDED,
            counted,
            wrapped: wrap(&recovery, master, &about(volume_id, counted))?,
        };
        Ok((slot, shares::deal(&recovery)))
    }
}

/// The random part of the machine's key.
pub(super) fn read_install_secret(path: &Path) -> Result<Secret<32>> {
    let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let text = Zeroizing::new(text);
    let bytes = HEXLOWER.decode(text.trim_ascii()).ok();
    let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let bytes = bytes.with_context(|| format!("{} is damaged", path.display()))?;
    Ok(Secret::new(bytes))
}

/// Makes a new one.
pub(super) fn write_install_secret(path: &Path) -> Result<Secret<32>> {
    let install = Secret::new(random()?);
    let hex = Zeroizing::new(HEXLOWER.encode(install.expose()));
    durable::write_file(path, hex.as_bytes())?;
    Ok(install)
}
