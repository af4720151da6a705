//! A key under a key: AES-256-GCM with a random nonce, as hexadecimal text.

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use anyhow::Result;
use data_encoding::HEXLOWER;
use scrinium_protocol::secret::Secret;
use scrinium_segment::random;
use zeroize::Zeroizing;

/// Wraps `secret` under `key`, for the use named by `about`.
pub(crate) fn wrap(key: &Secret<32>, secret: &Secret<32>, about: &str) -> Result<String> {
    let nonce: [u8; 12] = random()?;
    let payload = Payload {
        msg: secret.expose(),
        aad: about.as_bytes(),
    };
    let sealed = Aes256Gcm::new(key.expose().into())
        .encrypt(&nonce.into(), payload)
        .map_err(|_| anyhow::anyhow!("wrapping a key"))?;
    Ok(HEXLOWER.encode(&[&nonce[..], &sealed].concat()))
}

/// What was wrapped under `key` for the same use; `None` for anything else.
pub(crate) fn unwrap(key: &Secret<32>, wrapped: &str, about: &str) -> Option<Secret<32>> {
    let bytes = HEXLOWER.decode(wrapped.as_bytes()).ok()?;
    let (nonce, sealed) = bytes.split_first_chunk::<12>()?;
    let payload = Payload {
        msg: sealed,
        aad: about.as_bytes(),
    };
    let cipher = Aes256Gcm::new(key.expose().into());
    let secret = Zeroizing::new(cipher.decrypt(&(*nonce).into(), payload).ok()?);
    Some(Secret::new(secret.as_slice().try_into().ok()?))
}
