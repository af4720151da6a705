//! A key under a key, or a few bytes: AES-256-GCM with a random nonce, as hexadecimal text.

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use data_encoding::HEXLOWER;
use scrinium_protocol::secret::Secret;
use zeroize::Zeroizing;

use crate::format::{Error, random};

/// Wraps `secret` under `key`, for the use named by `about`.
///
/// # Errors
/// [`Error::Random`]: the operating system gives no random bytes.
pub fn wrap(key: &Secret<32>, secret: &Secret<32>, about: &str) -> Result<String, Error> {
    seal(key, secret.expose(), about)
}

/// What was wrapped under `key` for the same use; `None` for anything else.
#[must_use]
pub fn unwrap(key: &Secret<32>, wrapped: &str, about: &str) -> Option<Secret<32>> {
    let secret = open(key, wrapped, about)?;
    Some(Secret::new(secret.as_slice().try_into().ok()?))
}

/// Seals a few bytes under `key`, for the use named by `about`.
///
/// # Errors
/// [`Error::Random`]: the operating system gives no random bytes.
pub fn seal(key: &Secret<32>, bytes: &[u8], about: &str) -> Result<String, Error> {
    let nonce: [u8; 12] = random()?;
    let payload = Payload {
        msg: bytes,
        aad: about.as_bytes(),
    };
    let sealed = Aes256Gcm::new(key.expose().into())
        .encrypt(&nonce.into(), payload)
        .map_err(|_| Error::Random)?; // unreachable: what is sealed here is far below the limit of GCM
    Ok(HEXLOWER.encode(&[&nonce[..], &sealed].concat()))
}

/// What was sealed under `key` for the same use; `None` for anything else.
#[must_use]
pub fn open(key: &Secret<32>, sealed: &str, about: &str) -> Option<Zeroizing<Vec<u8>>> {
    let bytes = HEXLOWER.decode(sealed.as_bytes()).ok()?;
    let (nonce, sealed) = bytes.split_first_chunk::<12>()?;
    let payload = Payload {
        msg: sealed,
        aad: about.as_bytes(),
    };
    let cipher = Aes256Gcm::new(key.expose().into());
    Some(Zeroizing::new(
        cipher.decrypt(&(*nonce).into(), payload).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrapped_opens_for_its_key_and_use_alone() {
        let (key, secret) = (Secret::new([1; 32]), Secret::new([2; 32]));
        let wrapped = wrap(&key, &secret, "use").unwrap();
        assert_eq!(unwrap(&key, &wrapped, "use"), Some(secret));
        assert_eq!(unwrap(&key, &wrapped, "other use"), None);
        assert_eq!(unwrap(&Secret::new([3; 32]), &wrapped, "use"), None);
        let mut cut = wrapped;
        cut.pop();
        for bad in ["", "00", "x", &cut] {
            assert_eq!(unwrap(&key, bad, "use"), None);
        }
        // A few bytes are no key.
        let few = seal(&key, b"few", "use").unwrap();
        assert_eq!(**open(&key, &few, "use").unwrap(), *b"few");
        assert_eq!(unwrap(&key, &few, "use"), None);
    }
}
