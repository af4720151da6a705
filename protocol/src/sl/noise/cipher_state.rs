//! Noise §5.1, the CipherState object.

use crate::aead::Aead;
use crate::error::PeerMisbehaved;

/// A key and the number of the next message under it.
#[derive(Clone, Default)]
pub struct CipherState {
    cipher: Option<Aead>,
    n: u64,
}

impl CipherState {
    /// `InitializeKey(key)`.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self {
            cipher: Some(Aead::new(key)),
            n: 0,
        }
    }

    #[must_use]
    pub fn has_key(&self) -> bool {
        self.cipher.is_some()
    }

    /// Number of the next message.
    #[must_use]
    pub fn nonce(&self) -> u64 {
        self.n
    }

    /// `EncryptWithAd(ad, plaintext)` on `buffer[start..]` in place; the tag is appended.
    ///
    /// # Errors
    /// [`PeerMisbehaved::KeyExhausted`] when the nonce would become 2^64-1.
    pub fn encrypt(
        &mut self,
        ad: &[u8],
        buffer: &mut Vec<u8>,
        start: usize,
    ) -> Result<(), PeerMisbehaved> {
        let Some(cipher) = &self.cipher else {
            return Ok(());
        };
        let next = next_nonce(self.n)?;
        cipher.seal(&nonce_bytes(self.n), ad, buffer, start);
        self.n = next;
        Ok(())
    }

    /// `DecryptWithAd(ad, ciphertext)` in place; returns the plaintext's length. A failure leaves the
    /// nonce where it was.
    ///
    /// # Errors
    /// [`PeerMisbehaved::BadTag`] when the text was altered.
    pub fn decrypt(&mut self, ad: &[u8], text: &mut [u8]) -> Result<usize, PeerMisbehaved> {
        let Some(cipher) = &self.cipher else {
            return Ok(text.len());
        };
        let next = next_nonce(self.n)?;
        let len = cipher.open(&nonce_bytes(self.n), ad, text)?;
        self.n = next;
        Ok(len)
    }
}

fn next_nonce(n: u64) -> Result<u64, PeerMisbehaved> {
    // Noise §5.1: the maximum nonce, 2^64-1, is reserved.
    let next = n.checked_add(1).ok_or(PeerMisbehaved::KeyExhausted)?;
    if next == u64::MAX {
        return Err(PeerMisbehaved::KeyExhausted);
    }
    Ok(next)
}

/// Noise §12.4: 32 bits of zeros followed by big-endian encoding of n.
pub(crate) fn nonce_bytes(n: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    if let Some(tail) = nonce.last_chunk_mut::<8>() {
        *tail = n.to_be_bytes();
    }
    nonce
}

impl core::fmt::Debug for CipherState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("CipherState")
            .field("n", &self.n)
            .finish_non_exhaustive()
    }
}
