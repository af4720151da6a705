//! Intervals signed with keys that are gone when the next one begins: whoever breaks in and takes every key finds
//! none that could have signed what was there before.
//!
//! ```text
//! root: number (8) | public key (32) | signature by the server's key (64)
//! signature: number of the interval (8) | public key of the next one (32) | signature by the key of this one (64)
//!
//! key N ─signs─▶ leaf N, public key N+1      key N is overwritten when that is durable
//! ```
//!
//! An interval has the heads of all streams, the server's own among them: to rewrite one of its trails takes the
//! interval, and so its key. The first public key of a chain is a row of the catalogue, and is shown, so that it can
//! be noted elsewhere.
//!
//! `evidence/interval.key` has two slots of 68 bytes at bytes 0 and 512: nonce (12), number (8) and seed (32) sealed
//! with AES-256-GCM, tag (16). The highest bit of the number is set in the slot of the first key of a chain. A slot is overwritten in place; what a copying file system or a flash disk keeps of it
//! is sealed under the volume's key.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use anyhow::{Context as _, Result, anyhow};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use scrinium_protocol::codec::Reader;
use scrinium_protocol::kdf::sha256;
use scrinium_protocol::secret::Secret;
use scrinium_segment::{durable, fault, random};
use zeroize::Zeroizing;

/// What a record beside the intervals says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Link {
    /// A chain begins with the key of interval `number`.
    Root {
        number: u64,
        public: [u8; 32],
        signature: [u8; 64],
    },
    /// Interval `number` is signed, and `next` is the key of the one after it.
    Signed {
        number: u64,
        next: [u8; 32],
        signature: [u8; 64],
    },
}

impl Link {
    pub(super) fn decode(kind: u8, payload: &[u8]) -> Result<Self> {
        let mut r = Reader::new(payload);
        let (number, public) = (r.u64("number")?, r.array("public key")?);
        let signature = r.array("signature")?;
        r.finish("signature of an interval")?;
        match kind {
            RECORD_ROOT => Ok(Self::Root {
                number,
                public,
                signature,
            }),
            RECORD_SIGNED => Ok(Self::Signed {
                number,
                next: public,
                signature,
            }),
            _ => Err(anyhow!("record kind {kind} is of a newer version")),
        }
    }

    pub(super) fn encode(&self) -> (u8, Vec<u8>) {
        let (kind, number, public, signature) = match self {
            Self::Root {
                number,
                public,
                signature,
            } => (RECORD_ROOT, number, public, signature),
            Self::Signed {
                number,
                next,
                signature,
            } => (RECORD_SIGNED, number, next, signature),
        };
        (
            kind,
            [&number.to_be_bytes()[..], public, signature].concat(),
        )
    }
}

/// The keys of the present interval and of the next.
pub(super) struct Chain {
    origin: String,
    file: File,
    cipher: Aes256Gcm,
    /// By the parity of their number.
    keys: [Option<Held>; 2],
}

/// A key of an interval.
#[derive(Clone)]
struct Held {
    number: u64,
    key: SigningKey,
    /// A chain begins with it: the record that says its public key may not be durable yet.
    is_first: bool,
}

impl Chain {
    /// Opens the keys in `dir`; makes the file where there is none.
    pub(super) fn open(dir: &Path, key: &Secret<32>, origin: String) -> Result<Self> {
        let path = path(dir);
        if !path.try_exists()? {
            durable::write_file(&path, &[0; SLOT_AT + SLOT_LEN])?;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut chain = Self {
            origin,
            file,
            cipher: Aes256Gcm::new(key.expose().into()),
            keys: [None, None],
        };
        chain.keys = [chain.read(0)?, chain.read(1)?];
        Ok(chain)
    }

    /// Signs interval `number`, whose leaf is durable. `append` makes a record durable. A chain begins anew where no
    /// key of this number is left: its first public key is returned.
    pub(super) fn sign(
        &mut self,
        server: &SigningKey,
        number: u64,
        leaf: &[u8],
        mut append: impl FnMut(u8, &[u8]) -> Result<()>,
    ) -> Result<Option<[u8; 32]>> {
        let Held { key, is_first, .. } = match self.key(number) {
            Some(held) => held,
            None => self.make(number, true)?,
        };
        fault::point("server: first key of a chain made");
        let mut begun = None;
        if is_first {
            // Said again if we died before it was signed with: the same record twice begins one chain.
            let public = key.verifying_key().to_bytes();
            let signature = server.sign(&root_text(&self.origin, number, &public));
            let root = Link::Root {
                number,
                public,
                signature: signature.to_bytes(),
            };
            let (kind, payload) = root.encode();
            append(kind, &payload)?;
            begun = Some(public);
        }
        // Made before, if we died before its public key was durable.
        let next = match self.key(number + 1) {
            Some(next) => next,
            None => self.make(number + 1, false)?,
        };
        fault::point("server: key of an interval made");
        let next = next.key.verifying_key().to_bytes();
        let signature = key.sign(&signed_text(&self.origin, number, leaf, &next));
        let (kind, payload) = Link::Signed {
            number,
            next,
            signature: signature.to_bytes(),
        }
        .encode();
        append(kind, &payload)?;
        // At this point the interval is signed; if we die now, the start destroys its key.
        fault::point("server: interval signed");
        self.destroy(number)?;
        Ok(begun)
    }

    /// What somebody signs who took the keys that are there.
    #[cfg(test)]
    pub(super) fn forge(&self, number: u64, leaf: &[u8], next: [u8; 32]) -> (u8, Vec<u8>) {
        let held = self.keys.iter().flatten().next().unwrap();
        let signature = held
            .key
            .sign(&signed_text(&self.origin, number, leaf, &next));
        let signature = signature.to_bytes();
        Link::Signed {
            number,
            next,
            signature,
        }
        .encode()
    }

    /// Destroys keys of intervals before `number`.
    pub(super) fn destroy_before(&mut self, number: u64) -> Result<()> {
        let old: Vec<u64> = self.keys.iter().flatten().map(|held| held.number).collect();
        old.into_iter()
            .filter(|of| *of < number)
            .try_for_each(|of| self.destroy(of))
    }

    /// The last interval there is a key of.
    pub(super) fn last(&self) -> Option<u64> {
        self.keys.iter().flatten().map(|held| held.number).max()
    }

    fn key(&self, number: u64) -> Option<Held> {
        let mut keys = self.keys.iter().flatten();
        keys.find(|held| held.number == number).cloned()
    }

    fn make(&mut self, number: u64, is_first: bool) -> Result<Held> {
        let seed = Zeroizing::new(random::<32>()?);
        let marked = if is_first { number | FIRST } else { number };
        let text = Zeroizing::new([&marked.to_be_bytes()[..], &*seed].concat());
        let nonce: [u8; 12] = random()?;
        let payload = Payload {
            msg: &text,
            aad: ABOUT,
        };
        let sealed = self.cipher.encrypt(&nonce.into(), payload);
        let sealed = sealed.map_err(|_| anyhow!("sealing the key of an interval"))?;
        self.overwrite(number, &[&nonce[..], &sealed].concat())?;
        let held = Held {
            number,
            key: SigningKey::from_bytes(&seed),
            is_first,
        };
        *self.slot(number) = Some(held.clone());
        Ok(held)
    }

    fn destroy(&mut self, number: u64) -> Result<()> {
        self.overwrite(number, &random::<SLOT_LEN>()?)?;
        *self.slot(number) = None;
        Ok(())
    }

    fn slot(&mut self, number: u64) -> &mut Option<Held> {
        let [even, odd] = &mut self.keys;
        if number.is_multiple_of(2) { even } else { odd }
    }

    fn overwrite(&self, number: u64, bytes: &[u8]) -> Result<()> {
        let at = slot_at(number);
        durable::write_all_at(&self.file, bytes, at).context("writing the key of an interval")?;
        self.file.sync_data()?;
        Ok(())
    }

    fn read(&self, parity: u64) -> Result<Option<Held>> {
        let mut bytes = Zeroizing::new([0; SLOT_LEN]);
        match durable::read_exact_at(&self.file, &mut *bytes, slot_at(parity)) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let Some((nonce, sealed)) = bytes.split_first_chunk::<12>() else {
            return Ok(None);
        };
        let payload = Payload {
            msg: sealed,
            aad: ABOUT,
        };
        // Overwritten, torn, or of another volume: there is no key, and a chain begins anew.
        let Ok(text) = self
            .cipher
            .decrypt(&(*nonce).into(), payload)
            .map(Zeroizing::new)
        else {
            return Ok(None);
        };
        let Some((number, seed)) = text.split_first_chunk::<8>() else {
            return Ok(None);
        };
        let seed: &[u8; 32] = seed.try_into().context("a seed")?;
        let marked = u64::from_be_bytes(*number);
        Ok(Some(Held {
            number: marked & !FIRST,
            key: SigningKey::from_bytes(seed),
            is_first: marked & FIRST != 0,
        }))
    }
}

/// Follows the links of the intervals, and tells what is wrong with them.
#[derive(Default)]
pub(super) struct Follower {
    /// The key that signs the next interval, and its number.
    key: Option<(u64, [u8; 32])>,
    /// The leaf of the last interval, until it is signed.
    unsigned: Option<(u64, Vec<u8>)>,
    /// Where chains begin, with their first public keys.
    pub(super) roots: Vec<(u64, [u8; 32])>,
    pub(super) problems: Vec<String>,
}

impl Follower {
    pub(super) fn leaf(&mut self, number: u64, leaf: &[u8]) {
        self.miss();
        self.unsigned = Some((number, leaf.to_vec()));
    }

    /// Everything is read. A checkpoint is over intervals that were signed: of the `covered` ones none may lack it.
    pub(super) fn finish(&mut self, covered: u64) {
        if self
            .unsigned
            .as_ref()
            .is_some_and(|(number, _)| *number < covered)
        {
            self.miss();
        }
    }

    /// An interval that is not the last must be signed once a chain has begun.
    fn miss(&mut self) {
        if let (Some((number, _)), Some(_)) = (self.unsigned.take(), self.key) {
            let problem = format!("interval {number} is not signed by the key of its time");
            self.problems.push(problem);
        }
    }

    /// The interval whose key is known and has signed nothing yet.
    pub(super) fn next(&self) -> Option<u64> {
        self.key.map(|(number, _)| number)
    }

    pub(super) fn link(&mut self, origin: &str, server: &VerifyingKey, link: &Link) {
        match link {
            Link::Root {
                number,
                public,
                signature,
            } => {
                let text = root_text(origin, *number, public);
                if !verifies(server, &text, signature) {
                    let problem = format!(
                        "the chain of keys that begins with interval {number} is not this server's"
                    );
                    self.problems.push(problem);
                }
                let root = (*number, *public);
                // Said twice by a server that died before it signed with the key.
                if self.key != Some(root) || self.roots.last() != Some(&root) {
                    self.roots.push(root);
                }
                self.key = Some(root);
            }
            Link::Signed {
                number,
                next,
                signature,
            } => {
                let key = self.key.filter(|(of, _)| of == number);
                let leaf = self.unsigned.take().filter(|(of, _)| of == number);
                let key = key.and_then(|(_, public)| VerifyingKey::from_bytes(&public).ok());
                let signed = key.zip(leaf).is_some_and(|(key, (_, leaf))| {
                    verifies(&key, &signed_text(origin, *number, &leaf, next), signature)
                });
                if !signed {
                    let problem = format!(
                        "interval {number} is not signed by the key of its time: it was rewritten"
                    );
                    self.problems.push(problem);
                }
                self.key = Some((number + 1, *next));
            }
        }
    }
}

fn verifies(key: &VerifyingKey, text: &[u8], signature: &[u8; 64]) -> bool {
    key.verify_strict(text, &Signature::from_bytes(signature))
        .is_ok()
}

fn root_text(origin: &str, number: u64, public: &[u8; 32]) -> Vec<u8> {
    let head = format!("scrinium signing chain v1\n{origin}\n{number}\n");
    [head.as_bytes(), public].concat()
}

fn signed_text(origin: &str, number: u64, leaf: &[u8], next: &[u8; 32]) -> Vec<u8> {
    let head = format!("scrinium interval v1\n{origin}\n{number}\n");
    [head.as_bytes(), &sha256(&[leaf]), next].concat()
}

/// The file of the keys; never in a backup.
pub(crate) const KEY_FILE: &str = "interval.key";

fn path(dir: &Path) -> PathBuf {
    dir.join(KEY_FILE)
}

fn slot_at(number: u64) -> u64 {
    if number.is_multiple_of(2) {
        0
    } else {
        SLOT_AT as u64
    }
}

/// Kinds of records beside the intervals'.
const RECORD_SIGNED: u8 = 2;
const RECORD_ROOT: u8 = 3;
/// The bit of a slot's number that says that a chain begins with its key.
const FIRST: u64 = 1 << 63;
/// Nonce, number, seed, tag.
const SLOT_LEN: usize = 12 + 8 + 32 + 16;
/// Where the second slot begins: another sector.
const SLOT_AT: usize = 512;
const ABOUT: &[u8] = b"scrinium key of an interval v1";
