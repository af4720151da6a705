//! SHA-256, HMAC-SHA-256 and HKDF, in the shapes the protocol uses.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// SHA-256 over the concatenation of `parts` (FIPS 180-4).
#[must_use]
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// HMAC-SHA-256 over the concatenation of `parts` (RFC 2104).
#[must_use]
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Fills `out` with HKDF-SHA-256 (RFC 5869); with an empty `info` it is the HKDF of Noise §4.3.
///
/// # Panics
/// If `out` is longer than 255 blocks of 32 bytes, the function's limit.
pub fn hkdf_sha256(salt: &[u8], input: &[u8], info: &[u8], out: &mut [u8]) {
    let mut key = hmac_sha256(salt, &[input]);
    let mut block = [0; 32];
    for (i, chunk) in out.chunks_mut(32).enumerate() {
        let number = u8::try_from(i + 1).expect("at most 255 blocks");
        let previous = block;
        let previous = if i == 0 { &[][..] } else { &previous };
        block = hmac_sha256(&key, &[previous, info, &[number]]);
        let fitting = block.get(..chunk.len()).unwrap_or_default();
        chunk.copy_from_slice(fitting);
    }
    zeroize::Zeroize::zeroize(&mut key);
    zeroize::Zeroize::zeroize(&mut block);
}
