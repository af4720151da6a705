//! How often the catalogue was written, once more, in a small file beside it.
//!
//! ```text
//! nonce (12) | generation (8), sealed with AES-256-GCM | tag (16)
//! ```
//!
//! Overwritten after each transaction and not synced: a killed server has written it, and a power cut may leave an
//! older one. So it says how often at least: a catalogue that was written less often was put back.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead as _, Payload};
use anyhow::{Context as _, Result, anyhow};
use scrinium_segment::{durable, random};

/// The open file.
pub(super) struct Count {
    file: File,
}

impl Count {
    /// Makes the file for the catalogue at `path`, in the place of one that is there.
    pub(super) fn create(path: &Path, cipher: &Aes256Gcm, generation: u64) -> Result<Self> {
        durable::write_file(&beside(path), &seal(cipher, generation)?)?;
        Self::of(path)
    }

    /// Opens the file; what it says, or why it says nothing.
    pub(super) fn open(path: &Path, cipher: &Aes256Gcm) -> Result<(Self, Result<u64>)> {
        let bytes = std::fs::read(beside(path));
        let bytes = bytes.context("how often the catalogue was written is not there")?;
        Ok((Self::of(path)?, open(cipher, &bytes)))
    }

    /// Whether there is one for the catalogue at `path`.
    pub(super) fn is_there(path: &Path) -> bool {
        beside(path).try_exists().unwrap_or(true)
    }

    /// Removes it.
    pub(super) fn remove(path: &Path) -> Result<()> {
        durable::remove(&beside(path))?;
        Ok(())
    }

    fn of(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().write(true).open(beside(path))?;
        Ok(Self { file })
    }

    /// Overwrites it.
    pub(super) fn write(&self, cipher: &Aes256Gcm, generation: u64) -> Result<()> {
        durable::write_all_at(&self.file, &seal(cipher, generation)?, 0)?;
        Ok(())
    }
}

fn seal(cipher: &Aes256Gcm, generation: u64) -> Result<Vec<u8>> {
    let nonce: [u8; 12] = random()?;
    let payload = Payload {
        msg: &generation.to_be_bytes(),
        aad: ABOUT,
    };
    let sealed = cipher.encrypt(&nonce.into(), payload);
    let sealed = sealed.map_err(|_| anyhow!("sealing how often the catalogue was written"))?;
    Ok([&nonce[..], &sealed].concat())
}

fn open(cipher: &Aes256Gcm, bytes: &[u8]) -> Result<u64> {
    let altered = || anyhow!("it was altered");
    let (nonce, sealed) = bytes.split_first_chunk::<12>().ok_or_else(altered)?;
    let payload = Payload {
        msg: sealed,
        aad: ABOUT,
    };
    let opened = cipher.decrypt(&(*nonce).into(), payload);
    let opened = opened.map_err(|_| altered())?;
    let generation = opened.try_into().map_err(|_| altered())?;
    Ok(u64::from_be_bytes(generation))
}

fn beside(path: &Path) -> PathBuf {
    path.with_extension("count")
}

const ABOUT: &[u8] = b"scrinium catalogue count v1";
