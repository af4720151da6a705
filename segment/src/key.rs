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
