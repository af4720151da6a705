//! The encrypted volume: one master key, kept only wrapped, in slots.
//!
//! ```text
//! machine characteristics ─┐
//! install secret ──────────┴─▶ slot "machine"  ─┐
//! two of three shares ───────▶ slot "recovery" ─┴─▶ master key ─▶ log, archive, catalogue
//! ```
//!
//! `volume.json` holds the slots; it shows which characteristics are bound, never their values.
//! Slots are rewritten when the machine changes; what the master key protects is not.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use blahaj::{Share, Sharks};
use data_encoding::{BASE32_NOPAD, HEXLOWER};
use scrinium_protocol::kdf::sha256;
use scrinium_protocol::secret::Secret;
use scrinium_segment::key::derive;
use scrinium_segment::lock::DirLock;
use scrinium_segment::{durable, machine, random};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::wrap::{unwrap, wrap};

/// An open volume: this process owns its directory.
pub(crate) struct Volume {
    dir: PathBuf,
    id: String,
    master: Secret<32>,
    _lock: DirLock,
}

/// The wrapped keys, as `volume.json` has them.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Slots {
    version: u32,
    volume_id: String,
    machine: MachineSlot,
    recovery: RecoverySlot,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct MachineSlot {
    characteristics: Vec<String>,
    wrapped: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RecoverySlot {
    shares: u8,
    needed: u8,
    wrapped: String,
}

impl Volume {
    /// Creates a volume in `dir`, which must hold none. Returns the recovery shares, which are
    /// written nowhere.
    pub(crate) fn create(dir: &Path) -> Result<(Self, Vec<Zeroizing<String>>)> {
        durable::create_dir(dir).with_context(|| format!("creating {}", dir.display()))?;
        let lock = DirLock::acquire(dir)?;
        if dir.join(SLOTS_FILE).try_exists()? {
            bail!(
                "{} already holds a volume; choose another --data directory",
                dir.display()
            );
        }
        for sub in SUBDIRECTORIES {
            durable::create_dir(&dir.join(sub))?;
        }
        let master = Secret::new(random()?);
        let install = Secret::new(random()?);
        let recovery = Secret::new(random()?);
        let volume_id: [u8; 16] = random()?;
        let hex = Zeroizing::new(HEXLOWER.encode(install.expose()));
        durable::write_file(&dir.join(INSTALL_FILE), hex.as_bytes())?;
        let volume_id = HEXLOWER.encode(&volume_id);
        let id = volume_id.clone();
        let slots = Slots {
            version: 1,
            machine: MachineSlot::wrap(&master, &install, &volume_id)?,
            recovery: RecoverySlot {
                shares: SHARES,
                needed: SHARES_NEEDED,
                wrapped: wrap(&recovery, &master, &volume_id)?,
            },
            volume_id,
        };
        let shares = Sharks(SHARES_NEEDED)
            .dealer(recovery.expose())
            .take(usize::from(SHARES))
            .map(|share| share_text(&share))
            .collect();
        // The slots come last: at this point the volume exists.
        slots.write(dir)?;
        let volume = Self {
            dir: dir.to_owned(),
            id,
            master,
            _lock: lock,
        };
        Ok((volume, shares))
    }

    /// Opens the volume of this machine.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let (lock, slots) = Slots::read(dir)?;
        let install = read_install_secret(dir)?;
        let refused = "this volume is bound to another machine: its characteristics (machine id, \
                       processor, board) are not those it was made on. Open it with two recovery \
                       shares: scrinium-server recover --data DIR";
        let key = match machine::bind(&slots.machine.characteristics, &install) {
            Ok(key) => key,
            Err(missing) => bail!("{refused} ({missing})"),
        };
        let Some(master) = unwrap(&key, &slots.machine.wrapped, &slots.volume_id) else {
            bail!("{refused}");
        };
        Ok(Self {
            dir: dir.to_owned(),
            id: slots.volume_id,
            master,
            _lock: lock,
        })
    }

    /// Opens the volume with recovery shares and binds it to this machine.
    pub(crate) fn recover(dir: &Path, shares: &[String]) -> Result<Self> {
        let (lock, slots) = Slots::read(dir)?;
        let (volume, slots) = Self::rebind(dir, lock, slots, shares)?;
        slots.write(dir)?;
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
        slots.write_as(&dir.join(ADOPTED_FILE))?;
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
        let shares: Vec<Share> = shares
            .iter()
            .map(|text| parse_share(text))
            .collect::<Result<_>>()?;
        let recovery = Sharks(slots.recovery.needed)
            .recover(&shares)
            .map_err(|_| {
                anyhow::anyhow!("{} different shares are needed", slots.recovery.needed)
            })?;
        let recovery = Zeroizing::new(recovery);
        let recovery = <[u8; 32]>::try_from(recovery.as_slice())
            .context("these shares do not belong together")?;
        let master = unwrap(
            &Secret::new(recovery),
            &slots.recovery.wrapped,
            &slots.volume_id,
        )
        .context("these shares belong to another volume")?;
        let install = match read_install_secret(dir) {
            Ok(install) => install,
            Err(_) => {
                let install = Secret::new(random()?);
                let hex = Zeroizing::new(HEXLOWER.encode(install.expose()));
                durable::write_file(&dir.join(INSTALL_FILE), hex.as_bytes())?;
                install
            }
        };
        slots.machine = MachineSlot::wrap(&master, &install, &slots.volume_id)?;
        let volume = Self {
            dir: dir.to_owned(),
            id: slots.volume_id.clone(),
            master,
            _lock: lock,
        };
        Ok((volume, slots))
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

impl Slots {
    fn read(dir: &Path) -> Result<(DirLock, Self)> {
        let path = dir.join(SLOTS_FILE);
        if !path.try_exists()? {
            bail!(
                "{} holds no volume; make one with: scrinium-server init --data {0}",
                dir.display()
            );
        }
        let lock = DirLock::acquire(dir)?;
        Ok((lock, Self::parse(&path)?))
    }

    fn parse(path: &Path) -> Result<Self> {
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

    fn write(&self, dir: &Path) -> Result<()> {
        self.write_as(&dir.join(SLOTS_FILE))
    }

    fn write_as(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        durable::write_file(path, &text)?;
        Ok(())
    }
}

impl MachineSlot {
    fn wrap(master: &Secret<32>, install: &Secret<32>, volume_id: &str) -> Result<Self> {
        let characteristics: Vec<String> = machine::characteristics()
            .into_iter()
            .map(|c| c.name.to_owned())
            .collect();
        let key = match machine::bind(&characteristics, install) {
            Ok(key) => key,
            Err(missing) => bail!("{missing}"),
        };
        Ok(Self {
            wrapped: wrap(&key, master, volume_id)?,
            characteristics,
        })
    }
}

fn read_install_secret(dir: &Path) -> Result<Secret<32>> {
    let path = dir.join(INSTALL_FILE);
    let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let text = Zeroizing::new(text);
    let bytes = HEXLOWER.decode(text.trim_ascii()).ok();
    let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let bytes = bytes.with_context(|| format!("{} is damaged", path.display()))?;
    Ok(Secret::new(bytes))
}

fn share_text(share: &Share) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new(Vec::from(share));
    let [a, b, c, ..] = sha256(&[b"scrinium share v1", &bytes]);
    bytes.extend_from_slice(&[a, b, c]);
    Zeroizing::new(format!("{SHARE_PREFIX}{}", BASE32_NOPAD.encode(&bytes)))
}

fn parse_share(text: &str) -> Result<Share> {
    let wrong = "is not a recovery share; it begins with SCRINIUM-SHARE-";
    let encoded = text
        .trim()
        .strip_prefix(SHARE_PREFIX)
        .with_context(|| format!("'{text}' {wrong}"))?;
    let bytes = BASE32_NOPAD.decode(encoded.as_bytes()).ok();
    let bytes = Zeroizing::new(bytes.context("a recovery share has a wrong character")?);
    let (share, check) = bytes
        .split_last_chunk::<3>()
        .context("a recovery share is cut short")?;
    let [a, b, c, ..] = sha256(&[b"scrinium share v1", share]);
    if [a, b, c] != *check {
        bail!("a recovery share was copied with a mistake");
    }
    Share::try_from(share).map_err(|_| anyhow::anyhow!("a recovery share is cut short"))
}

/// Where segments of the log lie.
pub(crate) const LOG_DIR: &str = "log";
/// Where segments of the archive lie.
pub(crate) const ARCHIVE_DIR: &str = "archive";
/// Where segments lie until the catalogue knows them.
pub(crate) const SEALING_DIR: &str = "sealing";
/// Where the sealed intervals and the last checkpoint lie.
pub(crate) const EVIDENCE_DIR: &str = "evidence";
const SUBDIRECTORIES: [&str; 4] = [LOG_DIR, SEALING_DIR, ARCHIVE_DIR, EVIDENCE_DIR];
/// The wrapped keys.
pub(crate) const SLOTS_FILE: &str = "volume.json";
const ADOPTED_FILE: &str = "volume.json.adopted";
const INSTALL_FILE: &str = "install.secret";
const SHARE_PREFIX: &str = "SCRINIUM-SHARE-";
const SHARES: u8 = 3;
const SHARES_NEEDED: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_two_shares_open_the_volume_and_one_does_not() {
        let dir = std::env::temp_dir().join(format!("scrinium-volume-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        let (volume, shares) = Volume::create(&dir).unwrap();
        let key = volume.key("test");
        drop(volume);
        assert_eq!(Volume::open(&dir).unwrap().key("test"), key);

        for (one, two) in [(0, 1), (0, 2), (2, 1)] {
            let pair = [shares[one].to_string(), shares[two].to_string()];
            std::fs::remove_file(dir.join(INSTALL_FILE)).unwrap();
            assert!(Volume::open(&dir).is_err());
            assert_eq!(Volume::recover(&dir, &pair).unwrap().key("test"), key);
            assert_eq!(Volume::open(&dir).unwrap().key("test"), key);
        }
        assert!(Volume::recover(&dir, &[shares[0].to_string()]).is_err());
        let twice = [shares[0].to_string(), shares[0].to_string()];
        assert!(Volume::recover(&dir, &twice).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
