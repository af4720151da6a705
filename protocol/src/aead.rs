//! AES-256-GCM as every part of SL uses it: in place, with a 96-bit nonce and a 128-bit tag
//! (NIST SP 800-38D).

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::{Aes256Gcm, KeyInit as _};

use crate::error::PeerMisbehaved;

/// A key, expanded. The key schedule zeroizes itself.
#[derive(Clone)]
pub struct Aead(Aes256Gcm);

impl Aead {
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self(Aes256Gcm::new(key.into()))
    }

    /// Encrypts `buffer[start..]` in place and appends the tag. A nonce is used once under a key.
    ///
    /// # Panics
    /// If `start` lies behind the buffer, or the text is longer than 64 GiB.
    pub fn seal(&self, nonce: &[u8; 12], ad: &[u8], buffer: &mut Vec<u8>, start: usize) {
        let text = buffer.get_mut(start..).expect("start is within the buffer");
        let tag = self
            .0
            .encrypt_inout_detached(nonce.into(), ad, text.into())
            .expect("a text is far below 64 GiB");
        buffer.extend_from_slice(&tag);
    }

    /// Decrypts `text` in place, its last [`TAG_LEN`] bytes being the tag; returns the plaintext's
    /// length.
    ///
    /// # Errors
    /// [`PeerMisbehaved::BadTag`] when any bit of nonce, `ad` or `text` is not what was sealed.
    pub fn open(
        &self,
        nonce: &[u8; 12],
        ad: &[u8],
        text: &mut [u8],
    ) -> Result<usize, PeerMisbehaved> {
        let Some((text, tag)) = text.split_last_chunk_mut::<TAG_LEN>() else {
            return Err(PeerMisbehaved::BadTag);
        };
        let tag = (*tag).into();
        let len = text.len();
        self.0
            .decrypt_inout_detached(nonce.into(), ad, text.into(), &tag)
            .map_err(|_| PeerMisbehaved::BadTag)?;
        Ok(len)
    }
}

/// Bytes of a tag.
pub const TAG_LEN: usize = 16;

impl core::fmt::Debug for Aead {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Aead(..)")
    }
}
