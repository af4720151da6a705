//! A small sealed state in two files, A and B: the older one is overwritten, so one is always whole.
//!
//! ```text
//! "SCRSLOT" 1 (8) | counter (8) | nonce (12) | ciphertext | tag (16)
//! ```

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use scrinium_protocol::secret::Secret;
use zeroize::Zeroizing;

use crate::format::{Error, random};
use crate::key::derive;
use crate::{durable, fault};

/// The bytes of a state; zeroized when dropped.
pub type State = Zeroizing<Vec<u8>>;

/// The two files of one state.
pub struct Slots {
    paths: [PathBuf; 2],
    cipher: Aes256Gcm,
    counter: u64,
    /// Which of the two to write next.
    older: usize,
}

impl Slots {
    /// Opens `dir/name.a` and `dir/name.b`; returns the newest whole state, if there is one.
    ///
    /// # Errors
    /// [`Error::Header`] when files are there and none opens: they are another machine's, or both
    /// damaged. [`Error::Io`] when the disk does not answer.
    pub fn open(dir: &Path, name: &str, key: &Secret<32>) -> Result<(Self, Option<State>), Error> {
        let derived = derive(key, None, &[b"scrinium slot v1", name.as_bytes()]);
        let mut slots = Self {
            paths: ["a", "b"].map(|slot| dir.join(format!("{name}.{slot}"))),
            cipher: Aes256Gcm::new(derived.expose().into()),
            counter: 0,
            older: 0,
        };

        let mut newest = None;
        let mut found = None;
        for (slot, path) in slots.paths.iter().enumerate() {
            let bytes = match std::fs::read(path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    return Err(Error::Io {
                        path: path.clone(),
                        source,
                    });
                }
            };
            found = Some(path.clone());
            let Some((counter, state)) = slots.open_slot(&bytes) else {
                continue;
            };
            if newest.as_ref().is_none_or(|(best, _, _)| counter > *best) {
                newest = Some((counter, slot, state));
            }
        }
        let Some((counter, slot, state)) = newest else {
            if let Some(path) = found {
                return Err(Error::Header { path });
            }
            return Ok((slots, None));
        };
        slots.counter = counter;
        slots.older = 1 - slot;
        Ok((slots, Some(state)))
    }

    /// Replaces the state. When this returns it is durable; a crash before leaves the one before.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save(&mut self, state: &[u8]) -> Result<(), Error> {
        let counter = self.counter + 1;
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&counter.to_be_bytes());
        let nonce: [u8; 12] = random()?;
        let payload = Payload {
            msg: state,
            aad: &bytes,
        };
        let sealed = self
            .cipher
            .encrypt(&nonce.into(), payload)
            .map_err(|_| Error::Random)?; // unreachable: a state is far below the limit of GCM
        bytes.extend_from_slice(&nonce);
        bytes.extend_from_slice(&sealed);

        let path = self.paths.get(self.older).expect("there are two slots");
        write_slot(path, &bytes).map_err(|source| Error::Io {
            path: path.clone(),
            source,
        })?;
        // At this point the new state is durable; if we die before, the other slot is whole.
        self.counter = counter;
        self.older = 1 - self.older;
        Ok(())
    }

    fn open_slot(&self, bytes: &[u8]) -> Option<(u64, Zeroizing<Vec<u8>>)> {
        let (head, rest) = bytes.split_first_chunk::<16>()?;
        let (nonce, sealed) = rest.split_first_chunk::<12>()?;
        let counter = head.strip_prefix(MAGIC)?.first_chunk::<8>()?;
        let payload = Payload {
            msg: sealed,
            aad: head,
        };
        let state = self.cipher.decrypt(&(*nonce).into(), payload).ok()?;
        Some((u64::from_be_bytes(*counter), Zeroizing::new(state)))
    }
}

fn write_slot(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (mut file, is_new) = match durable::create_new(path) {
        Ok(file) => (file, true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let file = OpenOptions::new().write(true).truncate(true).open(path)?;
            fault::point("slot: emptied");
            (file, false)
        }
        Err(error) => return Err(error),
    };
    file.write_all(bytes)?;
    fault::point("slot: written");
    file.sync_all()?;
    if is_new {
        durable::sync_parent(path)?;
    }
    Ok(())
}

impl core::fmt::Debug for Slots {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Slots")
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

const MAGIC: &[u8; 8] = b"SCRSLOT\x01";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_state_is_read_and_a_damaged_one_falls_back_to_the_one_before() {
        let dir = std::env::temp_dir().join(format!("scrinium-slots-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        let key = Secret::new([1; 32]);
        let (mut slots, state) = Slots::open(&dir, "state", &key).unwrap();
        assert!(state.is_none());
        slots.save(b"first").unwrap();
        slots.save(b"second").unwrap();
        slots.save(b"third").unwrap();
        assert_eq!(
            *Slots::open(&dir, "state", &key).unwrap().1.unwrap(),
            b"third"
        );

        let third = std::fs::read(dir.join("state.a")).unwrap();
        for len in 0..third.len() {
            durable::write_file(&dir.join("state.a"), &third[..len]).unwrap();
            assert_eq!(
                *Slots::open(&dir, "state", &key).unwrap().1.unwrap(),
                b"second"
            );
        }
        assert!(Slots::open(&dir, "state", &Secret::new([2; 32])).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
