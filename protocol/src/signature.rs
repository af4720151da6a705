//! Ed25519 signatures (RFC 8032), checked strictly: one signature of a text by a key, no low-order
//! keys, so that a signature means the same to every verifier.

use ed25519_dalek::{Signature, VerifyingKey};

use crate::error::PeerMisbehaved;

/// Checks that the holder of `key` signed `text`.
///
/// # Errors
/// [`PeerMisbehaved::WrongSignature`] when it did not.
pub fn verify(key: &VerifyingKey, text: &[u8], signature: &[u8; 64]) -> Result<(), PeerMisbehaved> {
    key.verify_strict(text, &Signature::from_bytes(signature))
        .map_err(|_| PeerMisbehaved::WrongSignature)
}
