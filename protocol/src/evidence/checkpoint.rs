//! A signed tree head, as text that other tools read too: C2SP `tlog-checkpoint` in a C2SP `signed-note`.
//!
//! ```text
//! scrinium/1f3c…            origin
//! 4711                      leaves
//! CsUYapGGPo4dkMgIAUqom…=   root, base64
//! time 1793491200           Unix seconds of the last leaf (an extension line)
//!
//! — scrinium/1f3c… Az3grl…= key id (4) and Ed25519 signature (64), base64
//! ```

use data_encoding::BASE64;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

use crate::kdf::sha256;

/// A tree head.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Checkpoint {
    /// Names the tree: `scrinium/` and the id of the volume.
    pub origin: String,
    pub leaves: u64,
    pub root: [u8; 32],
    /// Unix seconds of the end of the last interval.
    pub time_s: u64,
}

/// Why a text is no checkpoint of whom it should be.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidCheckpoint {
    #[error("it has not the form of a checkpoint")]
    Form,
    #[error("it is not signed by this server's key")]
    Signature,
}

impl Checkpoint {
    /// Signs it.
    #[must_use]
    pub fn to_note(&self, key: &SigningKey) -> String {
        let text = self.text();
        let signature = key.sign(text.as_bytes()).to_bytes();
        let id = key_id(&self.origin, &key.verifying_key());
        let signed = BASE64.encode(&[&id[..], &signature].concat());
        format!("{text}\n\u{2014} {} {signed}\n", self.origin)
    }

    /// Reads a note that `key` signed; other signatures are ignored.
    ///
    /// # Errors
    /// It is none, or not signed by `key`.
    pub fn of_note(note: &str, key: &VerifyingKey) -> Result<Self, InvalidCheckpoint> {
        let (text, signatures) = note.split_once("\n\n").ok_or(InvalidCheckpoint::Form)?;
        let checkpoint = Self::parse(text).ok_or(InvalidCheckpoint::Form)?;
        let prefix = format!("\u{2014} {} ", checkpoint.origin);
        let id = key_id(&checkpoint.origin, key);
        let is_signed = signatures.lines().any(|line| {
            let signed = line.strip_prefix(&prefix);
            let signed = signed.and_then(|text| BASE64.decode(text.as_bytes()).ok());
            let Some((own, signature)) = signed.as_deref().and_then(<[u8]>::split_first_chunk)
            else {
                return false;
            };
            let signature = Signature::from_slice(signature);
            *own == id
                && signature.is_ok_and(|signature| {
                    key.verify_strict(format!("{text}\n").as_bytes(), &signature)
                        .is_ok()
                })
        });
        if !is_signed {
            return Err(InvalidCheckpoint::Signature);
        }
        Ok(checkpoint)
    }

    fn text(&self) -> String {
        format!(
            "{}\n{}\n{}\ntime {}\n",
            self.origin,
            self.leaves,
            BASE64.encode(&self.root),
            self.time_s
        )
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let origin = lines.next().filter(|line| !line.is_empty())?.to_owned();
        let leaves = lines.next().and_then(canonical)?;
        let root = BASE64.decode(lines.next()?.as_bytes()).ok()?;
        let time_s = lines.next()?.strip_prefix("time ").and_then(canonical)?;
        Some(Self {
            origin,
            leaves,
            root: root.try_into().ok()?,
            time_s,
        })
    }
}

/// A number in decimal digits, without leading zeros.
fn canonical(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// What a signature line names the key by.
//= https://c2sp.org/signed-note#signatures
//# key ID = SHA-256(key name || 0x0A || signature type || public key)[:4]
fn key_id(name: &str, key: &VerifyingKey) -> [u8; 4] {
    let [a, b, c, d, ..] = sha256(&[name.as_bytes(), b"\n", &[ED25519], key.as_bytes()]);
    [a, b, c, d]
}

/// The public key as C2SP tools take it: name, key id, type and key.
#[must_use]
pub fn verifier_key(origin: &str, key: &VerifyingKey) -> String {
    let [a, b, c, d] = key_id(origin, key);
    let encoded = BASE64.encode(&[&[ED25519][..], key.as_bytes()].concat());
    format!("{origin}+{a:02x}{b:02x}{c:02x}{d:02x}+{encoded}")
}

/// The signature type of Ed25519.
const ED25519: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of C2SP signed-note: its key gives this id.
    #[test]
    fn the_key_id_is_that_of_the_specification() {
        let key = BASE64
            .decode(b"ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
            .unwrap();
        let key = VerifyingKey::from_bytes(key[1..].try_into().unwrap()).unwrap();
        let expected = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        assert_eq!(verifier_key("PeterNeumann", &key), expected);
        // And the note of the specification verifies under it, as far as its text goes.
        let text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
        let signed = BASE64.decode(b"x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=").unwrap();
        let signature = Signature::from_slice(&signed[4..]).unwrap();
        assert!(key.verify_strict(text.as_bytes(), &signature).is_ok());
    }

    #[test]
    fn a_checkpoint_reads_back_and_any_changed_character_is_noticed() {
        let key = SigningKey::from_bytes(&[5; 32]);
        let checkpoint = Checkpoint {
            origin: "scrinium/0123".into(),
            leaves: 4711,
            root: [6; 32],
            time_s: 1_793_491_200,
        };
        let note = checkpoint.to_note(&key);
        let public = key.verifying_key();
        assert_eq!(Checkpoint::of_note(&note, &public), Ok(checkpoint));
        let stranger = SigningKey::from_bytes(&[7; 32]).verifying_key();
        assert_eq!(
            Checkpoint::of_note(&note, &stranger),
            Err(InvalidCheckpoint::Signature)
        );
        // A signature of somebody else beside it changes nothing.
        let witnessed = format!("{note}\u{2014} witness AAAA\n");
        assert!(Checkpoint::of_note(&witnessed, &public).is_ok());
        for at in 0..note.len() - 1 {
            let mut changed = note.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            let Ok(changed) = String::from_utf8(changed) else {
                continue;
            };
            assert!(
                Checkpoint::of_note(&changed, &public).is_err(),
                "{at}: {changed}"
            );
        }
    }
}
