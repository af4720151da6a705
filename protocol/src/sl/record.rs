//! Records: protected units on the wire.
//!
//! ```text
//! length (3) | type (1) | length check (4) | protected body | tag (16)
//! body: payload length (3) | payload | zeros up to the bucket
//! ```
//!
//! `length` counts body and tag. The header is the AEAD's associated data; the record number is
//! its nonce. The length check is a keyed hash of record number, length and type, so a damaged
//! length is noticed before anything waits for bytes that never come, and before any allocation.

use subtle::ConstantTimeEq as _;

use super::noise::CipherState;
use crate::error::{Error, InvalidMessage, PeerMisbehaved};
use crate::kdf::hmac_sha256;
use crate::secret::Secret;

/// Keys of one direction.
#[derive(Debug)]
pub struct RecordKeys {
    pub cipher: Secret<32>,
    pub length: Secret<32>,
}

/// Protects records of one direction.
#[derive(Debug)]
pub struct RecordSealer {
    cipher: CipherState,
    length_key: Secret<32>,
}

impl RecordSealer {
    #[must_use]
    pub fn new(keys: RecordKeys) -> Self {
        Self {
            cipher: CipherState::new(keys.cipher.expose()),
            length_key: keys.length,
        }
    }

    /// Appends the record of `kind` carrying `payload` to `out`.
    ///
    /// # Errors
    /// [`PeerMisbehaved::KeyExhausted`] when the session must be renewed first.
    ///
    /// # Panics
    /// If the payload is longer than [`PAYLOAD_LEN_MAX`]; messages bound themselves.
    pub fn seal(
        &mut self,
        kind: u8,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), PeerMisbehaved> {
        assert!(
            payload.len() <= PAYLOAD_LEN_MAX,
            "messages bound themselves"
        );
        let body_len = padded(payload.len() + 3);
        let header = header(
            &self.length_key,
            self.cipher.nonce(),
            body_len + TAG_LEN,
            kind,
        )?;
        out.reserve(HEADER_LEN + body_len + TAG_LEN);
        out.extend_from_slice(&header);
        let start = out.len();
        out.extend_from_slice(&u24(payload.len()));
        out.extend_from_slice(payload);
        out.resize(start + body_len, 0);
        self.cipher.encrypt(&header, out, start)?;
        Ok(())
    }
}

/// Opens records of one direction.
#[derive(Debug)]
pub struct RecordOpener {
    cipher: CipherState,
    length_key: Secret<32>,
}

impl RecordOpener {
    #[must_use]
    pub fn new(keys: RecordKeys) -> Self {
        Self {
            cipher: CipherState::new(keys.cipher.expose()),
            length_key: keys.length,
        }
    }

    /// Checks a header; returns how many bytes follow it.
    ///
    /// # Errors
    /// [`PeerMisbehaved::BadLengthCheck`] when any bit of it was altered.
    pub fn body_len(&self, header: &[u8; HEADER_LEN]) -> Result<usize, Error> {
        let [a, b, c, kind, ..] = *header;
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        let expected = self::header(&self.length_key, self.cipher.nonce(), len, kind)?;
        if !bool::from(expected.ct_eq(header)) {
            return Err(PeerMisbehaved::BadLengthCheck.into());
        }
        if len > BODY_LEN_MAX + TAG_LEN {
            return Err(InvalidMessage::TooLong("record").into());
        }
        Ok(len)
    }

    /// Opens a body in place; returns the record's type and payload.
    ///
    /// # Errors
    /// [`PeerMisbehaved::BadTag`] when it was altered, replayed or reordered.
    pub fn open<'a>(
        &mut self,
        header: &[u8; HEADER_LEN],
        body: &'a mut [u8],
    ) -> Result<(u8, &'a [u8]), Error> {
        let [.., kind, _, _, _, _] = *header;
        let len = self.cipher.decrypt(header, body)?;
        let body = body.get(..len).unwrap_or_default();
        let Some((prefix, rest)) = body.split_first_chunk::<3>() else {
            return Err(InvalidMessage::MissingData("payload length").into());
        };
        let [a, b, c] = *prefix;
        let payload_len = u32::from_be_bytes([0, a, b, c]) as usize;
        let Some((payload, padding)) = rest.split_at_checked(payload_len) else {
            return Err(InvalidMessage::MissingData("payload").into());
        };
        if len != padded(payload_len + 3) || padding.iter().any(|&byte| byte != 0) {
            return Err(InvalidMessage::NotCanonical("padding").into());
        }
        Ok((kind, payload))
    }
}

/// Length of a body of `len` bytes with its padding: short ones all look like one of five.
fn padded(len: usize) -> usize {
    if len > PADDED_LEN_MAX {
        return len;
    }
    len.next_power_of_two().max(64)
}

fn header(
    key: &Secret<32>,
    number: u64,
    len: usize,
    kind: u8,
) -> Result<[u8; HEADER_LEN], PeerMisbehaved> {
    if number >= RECORDS_MAX {
        return Err(PeerMisbehaved::KeyExhausted);
    }
    let [a, b, c] = u24(len);
    let mac = hmac_sha256(key.expose(), &[&number.to_be_bytes(), &[a, b, c, kind]]);
    let [w, x, y, z, ..] = mac;
    Ok([a, b, c, kind, w, x, y, z])
}

fn u24(len: usize) -> [u8; 3] {
    let len = u32::try_from(len).expect("lengths here are below 2^24");
    let [_, a, b, c] = len.to_be_bytes();
    [a, b, c]
}

/// Bytes before the body.
pub const HEADER_LEN: usize = 8;
/// Longest body, without tag.
pub const BODY_LEN_MAX: usize = 256 << 10;
/// Longest payload.
pub const PAYLOAD_LEN_MAX: usize = BODY_LEN_MAX - 3;
/// Most records under one key; far below the limits of draft-irtf-cfrg-aead-limits for bodies of
/// 256 KiB. A session that reaches it ends, and the agent makes a new one.
pub const RECORDS_MAX: u64 = 1 << 24;
const PADDED_LEN_MAX: usize = 1024;
const TAG_LEN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_open_in_order() {
        let (mut sealer, mut opener) = pair();
        for payload in [&b"hello"[..], b"", &[7; 5000]] {
            let mut wire = Vec::new();
            sealer.seal(9, payload, &mut wire).unwrap();
            let (header, mut body) = split(&wire);
            assert_eq!(opener.body_len(&header), Ok(body.len()));
            assert_eq!(opener.open(&header, &mut body), Ok((9, payload)));
        }
    }

    #[test]
    fn short_records_have_one_of_a_few_lengths() {
        let (mut sealer, _) = pair();
        let lengths: Vec<usize> = [0, 61, 62, 125, 126]
            .into_iter()
            .map(|len| {
                let mut wire = Vec::new();
                sealer.seal(1, &vec![1; len], &mut wire).unwrap();
                wire.len() - HEADER_LEN - TAG_LEN
            })
            .collect();
        assert_eq!(lengths, [64, 64, 128, 128, 256]);
    }

    #[test]
    fn any_altered_bit_is_noticed_and_a_length_before_its_body() {
        let mut wire = Vec::new();
        pair().0.seal(1, b"payload", &mut wire).unwrap();
        for bit in 0..wire.len() * 8 {
            let mut bad = wire.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let (header, mut body) = split(&bad);
            let mut opener = pair().1;
            let length = opener.body_len(&header);
            if bit < HEADER_LEN * 8 {
                assert_eq!(
                    length,
                    Err(PeerMisbehaved::BadLengthCheck.into()),
                    "bit {bit}"
                );
            } else {
                assert_eq!(
                    opener.open(&header, &mut body),
                    Err(PeerMisbehaved::BadTag.into())
                );
            }
        }
    }

    #[test]
    fn a_repeated_record_is_noticed() {
        let (mut sealer, mut opener) = pair();
        let mut wire = Vec::new();
        sealer.seal(1, b"once", &mut wire).unwrap();
        let (header, mut body) = split(&wire);
        assert!(opener.open(&header, &mut body.clone()).is_ok());
        assert_eq!(
            opener.body_len(&header),
            Err(PeerMisbehaved::BadLengthCheck.into())
        );
        assert_eq!(
            opener.open(&header, &mut body),
            Err(PeerMisbehaved::BadTag.into())
        );
    }

    fn pair() -> (RecordSealer, RecordOpener) {
        let keys = || RecordKeys {
            cipher: Secret::new([1; 32]),
            length: Secret::new([2; 32]),
        };
        (RecordSealer::new(keys()), RecordOpener::new(keys()))
    }

    fn split(wire: &[u8]) -> ([u8; HEADER_LEN], Vec<u8>) {
        let (header, body) = wire.split_first_chunk().unwrap();
        (*header, body.to_vec())
    }
}
