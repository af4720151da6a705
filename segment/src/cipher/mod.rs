//! What a segment is sealed with.
//!
//! ```text
//! AES-256-GCM            one key            tag of GCM
//! Serpent-256 │ CTR      key "encrypt"
//! Twofish-256 │          key "authenticate" HMAC-SHA-256-128 (RFC 4868) over what is associated, the number of
//!                                           the record, and the ciphertext: encrypt, then authenticate
//! ```
//!
//! Every key is 256 bits, and of one segment alone. A counter block is the number of the record (8) and of the
//! block in it (8), so none repeats under a key.

mod twofish;

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::{Aes256Gcm, KeyInit as _};
use hmac::{Hmac, Mac as _};
use scrinium_protocol::secret::Secret;
use serpent::Serpent;
use serpent::cipher::BlockCipherEncrypt as _;
use sha2::Sha256;

use self::twofish::Twofish;
use crate::format::TAG_LEN;
use crate::key::derive;

/// The ciphers a segment may be sealed with.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Cipher {
    /// AES-256-GCM (FIPS 197, NIST SP 800-38D).
    #[default]
    Aes256Gcm,
    /// Serpent with a 256-bit key in counter mode, then HMAC-SHA-256.
    Serpent256,
    /// Twofish with a 256-bit key in counter mode, then HMAC-SHA-256.
    Twofish256,
}

impl Cipher {
    pub const ALL: [Self; 3] = [Self::Aes256Gcm, Self::Serpent256, Self::Twofish256];

    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Self::Aes256Gcm => 0,
            Self::Serpent256 => 1,
            Self::Twofish256 => 2,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|cipher| cipher.to_byte() == byte)
    }

    /// The word used in configuration, commands and documents.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::Serpent256 => "serpent-256",
            Self::Twofish256 => "twofish-256",
        }
    }

    /// The cipher of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cipher| cipher.name() == name)
    }
}

/// Seals and opens the texts of one segment.
pub(crate) enum Sealer {
    Aes(Box<Aes256Gcm>),
    Serpent(Box<CounterMode<Serpent>>),
    Twofish(Box<CounterMode<Twofish>>),
}

impl Sealer {
    /// `info` says what the keys are for.
    pub(crate) fn new(cipher: Cipher, base: &Secret<32>, salt: &[u8; 32], info: &[&[u8]]) -> Self {
        let key = |purpose: &[&[u8]]| derive(base, Some(salt), &[info, purpose].concat());
        let name = cipher.name().as_bytes();
        let authenticate = || key(&[name, b"authenticate"]);
        let encrypt = || key(&[name, b"encrypt"]);
        match cipher {
            Cipher::Aes256Gcm => Self::Aes(Box::new(Aes256Gcm::new(key(&[]).expose().into()))),
            Cipher::Serpent256 => Self::Serpent(Box::new(CounterMode::new(
                Serpent::new_from_slice(encrypt().expose()).expect("256 bits are a length of it"),
                &authenticate(),
            ))),
            Cipher::Twofish256 => Self::Twofish(Box::new(CounterMode::new(
                Twofish::new(&encrypt()),
                &authenticate(),
            ))),
        }
    }

    /// Encrypts `text`, which is number `index`, in place; returns its tag, which covers `associated` too.
    pub(crate) fn seal(&self, index: u64, associated: &[u8], text: &mut [u8]) -> [u8; TAG_LEN] {
        match self {
            Self::Aes(cipher) => cipher
                .encrypt_inout_detached(&nonce(index).into(), associated, text.into())
                .expect("a record is far below the limit of GCM")
                .into(),
            Self::Serpent(cipher) => cipher.seal(index, associated, text),
            Self::Twofish(cipher) => cipher.seal(index, associated, text),
        }
    }

    /// The tag of a header, which is not encrypted and has no number.
    pub(crate) fn authenticate_header(&self, header: &[u8]) -> [u8; TAG_LEN] {
        match self {
            Self::Aes(cipher) => cipher
                .encrypt_inout_detached(&[0xff; 12].into(), header, (&mut [][..]).into())
                .expect("an empty text is below every limit")
                .into(),
            Self::Serpent(_) | Self::Twofish(_) => self.seal(u64::MAX, header, &mut []),
        }
    }

    /// Decrypts in place; `false`, and nothing of use in `text`, when the tag is not the one.
    pub(crate) fn open(
        &self,
        index: u64,
        associated: &[u8],
        text: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> bool {
        match self {
            Self::Aes(cipher) => cipher
                .decrypt_inout_detached(&nonce(index).into(), associated, text.into(), tag.into())
                .is_ok(),
            Self::Serpent(cipher) => cipher.open(index, associated, text, tag),
            Self::Twofish(cipher) => cipher.open(index, associated, text, tag),
        }
    }
}

/// A cipher of blocks of 128 bits.
trait BlockCipher {
    fn encrypt(&self, block: [u8; 16]) -> [u8; 16];
}

impl BlockCipher for Serpent {
    fn encrypt(&self, block: [u8; 16]) -> [u8; 16] {
        let mut block = block.into();
        self.encrypt_block(&mut block);
        block.into()
    }
}

impl BlockCipher for Twofish {
    fn encrypt(&self, block: [u8; 16]) -> [u8; 16] {
        Self::encrypt(self, block)
    }
}

/// Counter mode, then HMAC-SHA-256.
pub(crate) struct CounterMode<C> {
    cipher: C,
    mac: Hmac<Sha256>,
}

#[expect(private_bounds, reason = "the two ciphers are all there are")]
impl<C: BlockCipher> CounterMode<C> {
    fn new(cipher: C, key: &Secret<32>) -> Self {
        let mac = Hmac::new_from_slice(key.expose()).expect("HMAC takes any key");
        Self { cipher, mac }
    }

    fn seal(&self, index: u64, associated: &[u8], text: &mut [u8]) -> [u8; TAG_LEN] {
        self.apply(index, text);
        let full = self.authenticate(index, associated, text).finalize();
        let mut tag = [0; TAG_LEN];
        for (byte, full) in tag.iter_mut().zip(full.into_bytes()) {
            *byte = full;
        }
        tag
    }

    fn open(&self, index: u64, associated: &[u8], text: &mut [u8], tag: &[u8; TAG_LEN]) -> bool {
        let mac = self.authenticate(index, associated, text);
        let is_whole = mac.verify_truncated_left(tag).is_ok();
        if is_whole {
            self.apply(index, text);
        }
        is_whole
    }

    fn authenticate(&self, index: u64, associated: &[u8], text: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.mac.clone();
        mac.update(&index.to_be_bytes());
        mac.update(&(associated.len() as u64).to_be_bytes());
        mac.update(associated);
        mac.update(text);
        mac
    }

    /// Adds the key stream of text number `index`.
    fn apply(&self, index: u64, text: &mut [u8]) {
        let mut counter = [0; 16];
        for (number, chunk) in (0_u64..).zip(text.chunks_mut(16)) {
            let (high, low) = counter.split_at_mut(8);
            high.copy_from_slice(&index.to_be_bytes());
            low.copy_from_slice(&number.to_be_bytes());
            let stream = self.cipher.encrypt(counter);
            for (byte, key) in chunk.iter_mut().zip(stream) {
                *byte ^= key;
            }
        }
    }
}

fn nonce(index: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    if let Some(tail) = nonce.last_chunk_mut::<8>() {
        *tail = index.to_be_bytes();
    }
    nonce
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXUPPER;

    use super::*;

    /// NESSIE, Serpent with 256-bit keys, set 1, vector 0.
    #[test]
    fn serpent_has_its_published_vector_and_a_key_of_256_bits() {
        let mut key = [0; 32];
        key[0] = 0x80;
        let serpent = Serpent::new_from_slice(&key).unwrap();
        let sealed = BlockCipher::encrypt(&serpent, [0; 16]);
        assert_eq!(HEXUPPER.encode(&sealed), "A223AA1288463C0E2BE38EBD825616C0");
        key[31] = 1;
        let other = Serpent::new_from_slice(&key).unwrap();
        assert_ne!(BlockCipher::encrypt(&other, [0; 16]), sealed);
    }

    #[test]
    fn what_is_sealed_opens_and_nothing_that_was_changed_does() {
        for cipher in Cipher::ALL {
            let sealer =
                |base: u8| Sealer::new(cipher, &Secret::new([base; 32]), &[2; 32], &[b"test"]);
            for len in [0, 1, 15, 16, 17, 1000] {
                let plain: Vec<u8> = (0..=255).cycle().take(len).collect();
                let mut text = plain.clone();
                let tag = sealer(1).seal(7, b"head", &mut text);
                let opens = |index, head: &[u8], mut text: Vec<u8>, tag: [u8; TAG_LEN]| {
                    let opened = sealer(1).open(index, head, &mut text, &tag);
                    opened.then_some(text)
                };
                assert_eq!(opens(7, b"head", text.clone(), tag), Some(plain.clone()));
                assert!(len < 16 || text != plain);
                assert_eq!(opens(8, b"head", text.clone(), tag), None);
                assert_eq!(opens(7, b"heads", text.clone(), tag), None);
                for at in 0..len {
                    let mut changed = text.clone();
                    changed[at] ^= 1;
                    assert_eq!(opens(7, b"head", changed, tag), None);
                }
                for at in 0..TAG_LEN {
                    let mut changed = tag;
                    changed[at] ^= 0x80;
                    assert_eq!(opens(7, b"head", text.clone(), changed), None);
                }
                assert!(!sealer(9).open(7, b"head", &mut text, &tag));
            }
        }
    }

    /// Frozen: a segment of today must open for ever.
    #[test]
    fn each_cipher_gives_the_bytes_it_always_gave() {
        for (cipher, expected) in Cipher::ALL.into_iter().zip(FROZEN) {
            let sealer = Sealer::new(cipher, &Secret::new([1; 32]), &[2; 32], &[b"test"]);
            let mut text = *b"a text of more than a block";
            let tag = sealer.seal(3, b"head", &mut text);
            let all = [&text[..], &tag, &sealer.authenticate_header(b"header")].concat();
            let digest = scrinium_protocol::kdf::sha256(&[&all]);
            assert_eq!(HEXUPPER.encode(&digest), expected, "{}", cipher.name());
        }
    }

    const FROZEN: [&str; 3] = [
        "07BB9136AAC3E683FC794441A91A2261A05C86E69CA88A31A95590C1C24F19F4",
        "1B0F0FF9638FF4E431512B26D1BC3749B655EE53DD18A14BA96777B5F29A4A4C",
        "64A1CF2ABA15F9EA8BCD2B2AAFFA3EBD558A2F55270E8DCCABF0CFC31D427E41",
    ];
}
