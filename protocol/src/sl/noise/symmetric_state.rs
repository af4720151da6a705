//! Noise §5.2, the SymmetricState object.

use zeroize::Zeroize as _;

use super::cipher_state::CipherState;
use crate::error::PeerMisbehaved;
use crate::kdf::{hkdf_sha256, hmac_sha256, sha256};
use crate::secret::Secret;

/// Chaining key, transcript hash and the handshake's cipher.
#[derive(Clone, Debug)]
pub(super) struct SymmetricState {
    ck: Secret<32>,
    h: [u8; 32],
    pub(super) cipher: CipherState,
}

impl SymmetricState {
    /// `InitializeSymmetric(protocol_name)`; names of our patterns are all longer than 32 bytes.
    pub(super) fn new(protocol_name: &str) -> Self {
        let h = match <[u8; 32]>::try_from(protocol_name.as_bytes()) {
            Ok(exact) => exact,
            Err(_) => sha256(&[protocol_name.as_bytes()]),
        };
        Self {
            ck: Secret::new(h),
            h,
            cipher: CipherState::default(),
        }
    }

    pub(super) fn mix_key(&mut self, input: &[u8]) {
        let [ck, mut key, _] = hkdf(self.ck.expose(), input);
        self.ck = Secret::new(ck);
        self.cipher = CipherState::new(&key);
        key.zeroize();
    }

    pub(super) fn mix_hash(&mut self, data: &[u8]) {
        self.h = sha256(&[&self.h, data]);
    }

    pub(super) fn mix_key_and_hash(&mut self, input: &[u8]) {
        let [ck, hash, mut key] = hkdf(self.ck.expose(), input);
        self.ck = Secret::new(ck);
        self.mix_hash(&hash);
        self.cipher = CipherState::new(&key);
        key.zeroize();
    }

    /// `EncryptAndHash(plaintext)`, appended to `out`.
    pub(super) fn encrypt_and_hash(
        &mut self,
        plaintext: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), PeerMisbehaved> {
        let start = out.len();
        out.extend_from_slice(plaintext);
        self.cipher.encrypt(&self.h, out, start)?;
        let text = out.get(start..).unwrap_or_default().to_vec();
        self.mix_hash(&text);
        Ok(())
    }

    /// `DecryptAndHash(ciphertext)`.
    pub(super) fn decrypt_and_hash(&mut self, text: &[u8]) -> Result<Vec<u8>, PeerMisbehaved> {
        let mut plain = text.to_vec();
        let len = self.cipher.decrypt(&self.h, &mut plain)?;
        plain.truncate(len);
        self.mix_hash(text);
        Ok(plain)
    }

    /// `Split()`: the two transport keys, initiator's first.
    pub(super) fn split(&self) -> [Secret<32>; 2] {
        let [first, second, _] = hkdf(self.ck.expose(), &[]);
        [Secret::new(first), Secret::new(second)]
    }

    /// A secret of this handshake for uses beside the transport, told apart by `label`.
    ///
    /// Keyed with the secret chaining key, never with the public hash alone; `Split()` uses the
    /// empty input, so a labelled one is independent of the transport keys.
    pub(super) fn export(&self, label: &str) -> Secret<32> {
        let exporter = hmac_sha256(self.ck.expose(), &[b"SL/1 exporter"]);
        Secret::new(hmac_sha256(&exporter, &[label.as_bytes(), &self.h]))
    }

    pub(super) fn hash(&self) -> &[u8; 32] {
        &self.h
    }
}

/// Noise §4.3, `HKDF(chaining_key, input_key_material, 3)`; with two outputs the first two are used.
fn hkdf(ck: &[u8; 32], input: &[u8]) -> [[u8; 32]; 3] {
    let mut out = [[0; 32]; 3];
    hkdf_sha256(ck, input, &[], out.as_flattened_mut());
    out
}
