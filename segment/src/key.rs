//! Keys made of keys.

use hkdf::Hkdf;
use scrinium_protocol::secret::Secret;
use sha2::Sha256;
use zeroize::Zeroize as _;

/// Derives a key from `base` for the use named by `info` (HKDF-SHA-256, RFC 5869).
///
/// # Panics
/// Never: 32 bytes are a valid length.
#[must_use]
pub fn derive(base: &Secret<32>, salt: Option<&[u8]>, info: &[&[u8]]) -> Secret<32> {
    let mut key = [0; 32];
    Hkdf::<Sha256>::new(salt, base.expose())
        .expand_multi_info(info, &mut key)
        .expect("32 bytes are a valid HKDF length");
    let derived = Secret::new(key);
    key.zeroize();
    derived
}

/// What opens an agent's state when too much of its machine changed: made of the recovery credential that agent and
/// server agreed on at enrolment. The server gives it to whom a person let in; no file of the agent holds it.
#[must_use]
pub fn state_key(recovery: &Secret<32>) -> Secret<32> {
    derive(recovery, None, &[b"scrinium state key v1"])
}

/// The credential with which an agent asks for that. It opens nothing, and lies beside the state.
#[must_use]
pub fn asking_credential(recovery: &Secret<32>) -> Secret<32> {
    derive(recovery, None, &[b"scrinium asking credential v1"])
}
