//! Argon2id in memory that is used again.
//!
//! A hash fills 19 MiB. Taken from the allocator each time, they stay in as many arenas as there are threads; so there
//! are [`PLACES`] buffers, each made with its first use and kept, and whoever finds none free waits.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, anyhow};
use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Block, Params, Version};
use data_encoding::BASE64_NOPAD;
use scrinium_segment::random;
use subtle::ConstantTimeEq as _;

/// A password's hash in PHC form, with a salt of its own.
pub(super) fn hash(password: &str) -> Result<String> {
    let salt: [u8; 16] = random()?;
    let params = Params::default();
    let (memory_kib, passes, lanes) = (params.m_cost(), params.t_cost(), params.p_cost());
    let mut out = [0; 32];
    run(
        Algorithm::Argon2id,
        Version::V0x13,
        params,
        password,
        &salt,
        &mut out,
    )
    .map_err(|error| anyhow!("hashing the password: {error}"))?;
    Ok(format!(
        "$argon2id$v=19$m={memory_kib},t={passes},p={lanes}${}${}",
        BASE64_NOPAD.encode(&salt),
        BASE64_NOPAD.encode(&out)
    ))
}

/// Whether `password` is that of `hash`, in PHC form.
pub(super) fn verify(hash: &str, password: &str) -> bool {
    let matches = || {
        let hash = PasswordHash::new(hash).ok()?;
        let algorithm = Algorithm::try_from(hash.algorithm.as_str()).ok()?;
        let version = match hash.version {
            Some(version) => Version::try_from(version).ok()?,
            None => Version::default(),
        };
        let params = Params::try_from(&hash).ok()?;
        let (salt, wanted) = (hash.salt?, hash.hash?);
        let mut out = vec![0; wanted.len()];
        run(
            algorithm,
            version,
            params,
            password,
            salt.as_ref(),
            &mut out,
        )
        .ok()?;
        Some(bool::from(out.ct_eq(wanted.as_bytes())))
    };
    matches().unwrap_or(false)
}

fn run(
    algorithm: Algorithm,
    version: Version,
    params: Params,
    password: &str,
    salt: &[u8],
    out: &mut [u8],
) -> argon2::Result<()> {
    let blocks = params.block_count();
    let mut memory = MEMORY.take();
    if memory.0.len() < blocks {
        memory.0.resize(blocks, Block::default());
    }
    let argon2 = Argon2::new(algorithm, version, params);
    let memory = memory.0.get_mut(..blocks).unwrap_or_default();
    argon2.hash_password_into_with_memory(password.as_bytes(), salt, out, memory)
}

/// The buffers that are free, and how many were made.
struct Memory {
    state: Mutex<(Vec<Vec<Block>>, usize)>,
    freed: Condvar,
}

/// A buffer that is in use.
struct Taken(Vec<Block>);

impl Memory {
    fn take(&self) -> Taken {
        let mut state = self.lock();
        loop {
            let (free, made) = &mut *state;
            if let Some(memory) = free.pop() {
                return Taken(memory);
            }
            if *made < PLACES {
                *made += 1;
                return Taken(Vec::new());
            }
            state = self
                .freed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Vec<Vec<Block>>, usize)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        MEMORY.lock().0.push(core::mem::take(&mut self.0));
        MEMORY.freed.notify_one();
    }
}

static MEMORY: Memory = Memory {
    state: Mutex::new((Vec::new(), 0)),
    freed: Condvar::new(),
};

/// Passwords that are hashed at once: 19 MiB and a core each.
pub(crate) const PLACES: usize = 2;

#[cfg(test)]
mod tests {
    use argon2::{PasswordHasher as _, PasswordVerifier as _};

    use super::*;

    #[test]
    fn it_is_the_argon2_of_everybody_else() {
        let ours = hash("correct horse").unwrap();
        let parsed = PasswordHash::new(&ours).unwrap();
        Argon2::default()
            .verify_password(b"correct horse", &parsed)
            .unwrap();
        let theirs = Argon2::default()
            .hash_password_with_salt(b"correct horse", &[7; 16])
            .unwrap()
            .to_string();
        assert!(verify(&theirs, "correct horse") && verify(&ours, "correct horse"));
        assert!(!verify(&theirs, "correct horsf") && !verify("$argon2id$", "correct horse"));
    }

    #[test]
    fn memory_is_made_for_the_places_and_no_more() {
        let hashed: Vec<_> = (0..6)
            .map(|_| std::thread::spawn(|| hash("a password").unwrap()))
            .collect();
        for hashed in hashed {
            assert!(verify(&hashed.join().unwrap(), "a password"));
        }
        assert!(MEMORY.lock().1 <= PLACES);
    }
}
