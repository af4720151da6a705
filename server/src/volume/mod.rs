//! The encrypted volume: one master key, kept only wrapped, in slots.
//!
//! ```text
//! machine characteristics ─┐
//! a secret of its TPM ─────┤
//! install secret ──────────┴─▶ slot "machine"  ─┐
//! two of three shares ───────▶ slot "recovery" ─┴─▶ master key ─▶ log, archive, catalogue
//! ```
//!
//! `volume.json` holds the slots; it shows which characteristics are bound, never their values.
//! Slots are rewritten when the machine changes; what the master key protects is not.

pub(crate) mod refusals;
pub(crate) mod rest;
mod shares;
mod slots;
mod tpm;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use data_encoding::HEXLOWER;
use scrinium_protocol::secret::Secret;
use scrinium_segment::key::derive;
use scrinium_segment::lock::DirLock;
use scrinium_segment::{durable, fault, machine, random};
use serde::Serialize;
use zeroize::Zeroizing;

pub(crate) use self::slots::{Binding, UseTpm};
use self::slots::{OtherMachine, Slots, read_install_secret, write_install_secret};

/// What must be as it was for a volume to open.
#[derive(Debug, Serialize)]
pub(crate) struct BoundTo {
    pub(crate) volume: String,
    /// Names of characteristics.
    pub(crate) bound: Vec<String>,
    pub(crate) may_change: Vec<String>,
    pub(crate) tpm: Option<PathBuf>,
    /// The key the server signs with, as people compare it; `None` where the volume does not open.
    pub(crate) server_key: Option<String>,
}

/// An open volume: this process owns its directory.
pub(crate) struct Volume {
    dir: PathBuf,
    id: String,
    master: Secret<32>,
    /// The catalogue states what all its rows are: one that does not was altered.
    is_counted: bool,
    _lock: DirLock,
}

impl Volume {
    /// Creates a volume in `dir`, which must hold none, and binds it to this machine. Returns the recovery
    /// shares, which are written nowhere.
    pub(crate) fn create(dir: &Path, binding: &Binding) -> Result<(Self, Vec<Zeroizing<String>>)> {
        durable::create_dir(dir).with_context(|| format!("creating {}", dir.display()))?;
        let lock = DirLock::acquire(dir)?;
        Self::check_new(dir)?;
        for sub in SUBDIRECTORIES {
            durable::create_dir(&dir.join(sub))?;
        }
        let master = Secret::new(random()?);
        let volume_id: [u8; 16] = random()?;
        let id = HEXLOWER.encode(&volume_id);
        let install = write_install_secret(&dir.join(INSTALL_FILE))?;
        let (slots, shares) = Slots::create(id.clone(), &master, &install, binding)?;
        // The slots come last: at this point the volume exists.
        slots.write(&dir.join(SLOTS_FILE))?;
        let volume = Self {
            dir: dir.to_owned(),
            id,
            master,
            is_counted: true,
            _lock: lock,
        };
        Ok((volume, shares))
    }

    /// Whether a volume may be made in `dir`.
    ///
    /// # Errors
    /// It holds one, or cannot be looked at.
    pub(crate) fn check_new(dir: &Path) -> Result<()> {
        let is_there = dir.join(SLOTS_FILE).try_exists();
        let is_there = is_there.with_context(|| format!("looking into {}", dir.display()))?;
        if is_there {
            bail!(
                "{} already holds a volume; choose another --data directory",
                dir.display()
            );
        }
        Ok(())
    }

    /// Opens the volume of this machine.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let (lock, slots) = Slots::read(dir)?;
        let opened = open_slots(dir, &slots);
        if let Err(error) = &opened
            && let Some(refused) = error.downcast_ref::<OtherMachine>()
        {
            refusals::note(dir, &refused.differs);
        }
        let master = opened?;
        Ok(Self {
            dir: dir.to_owned(),
            is_counted: slots.is_counted(),
            id: slots.volume_id,
            master,
            _lock: lock,
        })
    }

    /// Opens the volume with recovery shares and binds it to this machine; what `before` says goes first.
    pub(crate) fn recover(
        dir: &Path,
        shares: &[String],
        before: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Self> {
        let (lock, slots) = Slots::read(dir)?;
        let (volume, slots) = Self::rebind(dir, lock, slots, shares)?;
        before(&volume)?;
        slots.write(&dir.join(SLOTS_FILE))?;
        Ok(volume)
    }

    /// The same for the slots of a backup, in a directory that is to become the volume; [`Volume::settle`] makes
    /// it one.
    pub(crate) fn adopt(dir: &Path, slots: &Path, shares: &[String]) -> Result<Self> {
        let lock = DirLock::acquire(dir)?;
        for sub in SUBDIRECTORIES {
            durable::create_dir(&dir.join(sub))?;
        }
        let slots = Slots::parse(slots)?;
        let (volume, slots) = Self::rebind(dir, lock, slots, shares)?;
        slots.write(&dir.join(ADOPTED_FILE))?;
        Ok(volume)
    }

    /// What was adopted is whole: from now on it is a volume.
    pub(crate) fn settle(&self) -> Result<()> {
        durable::rename(&self.dir.join(ADOPTED_FILE), &self.dir.join(SLOTS_FILE))?;
        Ok(())
    }

    fn rebind(
        dir: &Path,
        lock: DirLock,
        mut slots: Slots,
        shares: &[String],
    ) -> Result<(Self, Slots)> {
        let master = slots.recover(shares)?;
        let install = match read_install_secret(&dir.join(INSTALL_FILE)) {
            Ok(install) => install,
            Err(_) => write_install_secret(&dir.join(INSTALL_FILE))?,
        };
        let found = machine::characteristics();
        let mut may_change = slots.machine.may_change.clone();
        may_change.retain(|name| found.iter().any(|found| found.name == name));
        let binding = Binding {
            may_change,
            ..Binding::default()
        };
        slots.bind(&master, &install, &binding)?;
        let volume = Self {
            dir: dir.to_owned(),
            id: slots.volume_id.clone(),
            master,
            is_counted: slots.is_counted(),
            _lock: lock,
        };
        Ok((volume, slots))
    }

    /// Wraps the master key anew: with another install secret, for what `binding` says, and, with two of the
    /// shares there are, for new shares. What the master key protects stays as it is.
    pub(crate) fn rekey(
        dir: &Path,
        binding: &Binding,
        shares: &[String],
    ) -> Result<Vec<Zeroizing<String>>> {
        let (_lock, mut slots) = Slots::read(dir)?;
        let master = open_slots(dir, &slots)?;
        let dealt = if shares.is_empty() {
            Vec::new()
        } else {
            slots.recover(shares)?;
            slots.deal(&master)?
        };
        let next = dir.join(NEXT_INSTALL_FILE);
        let install = write_install_secret(&next)?;
        slots.bind(&master, &install, binding)?;
        fault::point("server: next install secret written");
        slots.write(&dir.join(SLOTS_FILE))?;
        // At this point the new slots count; if we die now, the next start puts their secret into its place.
        fault::point("server: slots written");
        durable::rename(&next, &dir.join(INSTALL_FILE))?;
        Ok(dealt)
    }

    /// Whether the catalogue states what all its rows are.
    pub(crate) fn is_counted(&self) -> bool {
        self.is_counted
    }

    /// From now on it does, and the volume does not open for whoever takes that back. Of a volume that version 0.1.0
    /// had last.
    pub(crate) fn count(&mut self) -> Result<()> {
        let path = self.dir.join(SLOTS_FILE);
        let mut slots = Slots::parse(&path)?;
        let install = read_install_secret(&self.dir.join(INSTALL_FILE))?;
        slots.count(&self.master, &install)?;
        slots.write(&path)?;
        self.is_counted = true;
        Ok(())
    }

    /// What the volume in `dir` is bound to.
    pub(crate) fn bound_to(dir: &Path) -> Result<BoundTo> {
        let slots = Slots::parse(&dir.join(SLOTS_FILE))?;
        Ok(BoundTo {
            volume: slots.volume_id.clone(),
            tpm: slots.machine.tpm().map(Path::to_owned),
            bound: slots.machine.characteristics,
            may_change: slots.machine.may_change,
            server_key: None,
        })
    }

    /// The key for the use named `purpose`.
    pub(crate) fn key(&self, purpose: &str) -> Secret<32> {
        derive(
            &self.master,
            None,
            &[b"scrinium volume v1", purpose.as_bytes()],
        )
    }

    /// What tells it from every other: 32 hexadecimal digits.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where something may be made before it goes to its place; emptied of what nobody knows at the start.
    pub(crate) fn scratch_dir(&self) -> PathBuf {
        self.dir.join(SEALING_DIR)
    }
}

/// The master key by this machine; completes a rekeying that was cut off.
fn open_slots(dir: &Path, slots: &Slots) -> Result<Secret<32>> {
    let (path, next) = (dir.join(INSTALL_FILE), dir.join(NEXT_INSTALL_FILE));
    let Ok(install) = read_install_secret(&next) else {
        return slots.open(&read_install_secret(&path)?);
    };
    if let Ok(master) = slots.open(&install) {
        durable::rename(&next, &path)?;
        return Ok(master);
    }
    let master = slots.open(&read_install_secret(&path)?)?;
    // The slots that the next one was made for were not written.
    durable::remove(&next)?;
    Ok(master)
}

/// Where segments of the log lie.
pub(crate) const LOG_DIR: &str = "log";
/// Where it lies how far the log was acknowledged.
pub(crate) const ACKED_DIR: &str = "acked";
/// Where segments of the archive lie.
pub(crate) const ARCHIVE_DIR: &str = "archive";
/// Where segments lie until the catalogue knows them.
pub(crate) const SEALING_DIR: &str = "sealing";
/// Where the sealed intervals and the last checkpoint lie.
pub(crate) const EVIDENCE_DIR: &str = "evidence";
const SUBDIRECTORIES: [&str; 5] = [LOG_DIR, ACKED_DIR, SEALING_DIR, ARCHIVE_DIR, EVIDENCE_DIR];
/// The wrapped keys.
pub(crate) const SLOTS_FILE: &str = "volume.json";
const ADOPTED_FILE: &str = "volume.json.adopted";
const INSTALL_FILE: &str = "install.secret";
const NEXT_INSTALL_FILE: &str = "install.secret.next";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_two_shares_open_the_volume_and_one_does_not() {
        let dir = std::env::temp_dir().join(format!("scrinium-volume-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        let (volume, shares) = Volume::create(&dir, &Binding::default()).unwrap();
        let key = volume.key("test");
        drop(volume);
        assert_eq!(Volume::open(&dir).unwrap().key("test"), key);

        for (one, two) in [(0, 1), (0, 2), (2, 1)] {
            let pair = [shares[one].to_string(), shares[two].to_string()];
            std::fs::remove_file(dir.join(INSTALL_FILE)).unwrap();
            assert!(Volume::open(&dir).is_err());
            assert_eq!(
                Volume::recover(&dir, &pair, |_| Ok(()))
                    .unwrap()
                    .key("test"),
                key
            );
            assert_eq!(Volume::open(&dir).unwrap().key("test"), key);
        }
        assert!(Volume::recover(&dir, &[shares[0].to_string()], |_| Ok(())).is_err());
        let twice = [shares[0].to_string(), shares[0].to_string()];
        assert!(Volume::recover(&dir, &twice, |_| Ok(())).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
