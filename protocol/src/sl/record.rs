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

use super::noise::nonce_bytes;
use super::suite::Suite;
use crate::aead::{Aead, TAG_LEN};
use crate::error::{Error, InvalidMessage, PeerMisbehaved};
use crate::kdf::hmac_sha256;
use crate::secret::Secret;

/// Keys of one direction.
#[derive(Debug)]
pub struct RecordKeys {
    pub suite: Suite,
    pub body: Secret<32>,
    pub length: Secret<32>,
}

/// What protects the bodies of one direction, and how much it has protected.
#[derive(Debug)]
struct Protection {
    body: BodyKey,
    length_key: Secret<32>,
    /// Number of the next record.
    number: u64,
    bytes: u64,
}

#[derive(Debug)]
enum BodyKey {
    /// Boxed: the key schedule is long, and an idle session has little else.
    Encrypted(Box<Aead>),
    IntegrityOnly(Secret<32>),
}

impl Protection {
    fn new(keys: RecordKeys) -> Self {
        let body = match keys.suite {
            Suite::Encrypted => BodyKey::Encrypted(Box::new(Aead::new(keys.body.expose()))),
            Suite::IntegrityOnly => BodyKey::IntegrityOnly(keys.body),
        };
        Self {
            body,
            length_key: keys.length,
            number: 0,
            bytes: 0,
        }
    }

    /// Header of the next record, of `len` bytes of body and tag.
    fn header(&self, len: usize, kind: u8) -> Result<[u8; HEADER_LEN], PeerMisbehaved> {
        if self.number >= RECORDS_MAX || self.bytes >= BYTES_MAX {
            return Err(PeerMisbehaved::KeyExhausted);
        }
        let [a, b, c] = u24(len);
        let key = self.length_key.expose();
        let mac = hmac_sha256(key, &[&self.number.to_be_bytes(), &[a, b, c, kind]]);
        let [w, x, y, z, ..] = mac;
        Ok([a, b, c, kind, w, x, y, z])
    }

    fn seal(&mut self, header: &[u8], out: &mut Vec<u8>, start: usize) {
        match &self.body {
            BodyKey::Encrypted(aead) => aead.seal(&nonce_bytes(self.number), header, out, start),
            BodyKey::IntegrityOnly(key) => {
                let body = out.get(start..).unwrap_or_default();
                let tag = tag(key, self.number, header, body);
                out.extend_from_slice(&tag);
            }
        }
        self.advance(out.len() - start);
    }

    fn open(&mut self, header: &[u8], body: &mut [u8]) -> Result<usize, PeerMisbehaved> {
        let whole_len = body.len();
        let len = match &self.body {
            BodyKey::Encrypted(aead) => aead.open(&nonce_bytes(self.number), header, body)?,
            BodyKey::IntegrityOnly(key) => {
                let Some((body, given)) = body.split_last_chunk::<TAG_LEN>() else {
                    return Err(PeerMisbehaved::BadTag);
                };
                if !bool::from(tag(key, self.number, header, body).ct_eq(given)) {
                    return Err(PeerMisbehaved::BadTag);
                }
                body.len()
            }
        };
        self.advance(whole_len);
        Ok(len)
    }

    fn advance(&mut self, len: usize) {
        self.number += 1;
        self.bytes += len as u64;
    }

    /// Whether these keys have served long enough.
    fn is_worn(&self) -> bool {
        self.number >= RENEW_AFTER_RECORDS || self.bytes >= RENEW_AFTER_BYTES
    }
}

fn tag(key: &Secret<32>, number: u64, header: &[u8], body: &[u8]) -> [u8; TAG_LEN] {
    let mac = hmac_sha256(key.expose(), &[&number.to_be_bytes(), header, body]);
    let (tag, _) = mac.split_first_chunk().expect("a tag is half a hash");
    *tag
}

/// Protects records of one direction.
#[derive(Debug)]
pub struct RecordSealer(Protection);

impl RecordSealer {
    #[must_use]
    pub fn new(keys: RecordKeys) -> Self {
        Self(Protection::new(keys))
    }

    /// Number of the next record.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0.number
    }

    /// Whether 2^20 records or 1 GiB were sealed: time for new keys.
    #[must_use]
    pub fn is_worn(&self) -> bool {
        self.0.is_worn()
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
        let header = self.0.header(body_len + TAG_LEN, kind)?;
        out.reserve(HEADER_LEN + body_len + TAG_LEN);
        out.extend_from_slice(&header);
        let start = out.len();
        out.extend_from_slice(&u24(payload.len()));
        out.extend_from_slice(payload);
        out.resize(start + body_len, 0);
        self.0.seal(&header, out, start);
        Ok(())
    }
}

/// Opens records of one direction.
#[derive(Debug)]
pub struct RecordOpener(Protection);

impl RecordOpener {
    #[must_use]
    pub fn new(keys: RecordKeys) -> Self {
        Self(Protection::new(keys))
    }

    /// Number of the next record.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0.number
    }

    /// Whether 2^20 records or 1 GiB were opened: time for new keys.
    #[must_use]
    pub fn is_worn(&self) -> bool {
        self.0.is_worn()
    }

    /// Checks a header; returns how many bytes follow it.
    ///
    /// # Errors
    /// [`PeerMisbehaved::BadLengthCheck`] when any bit of it was altered.
    pub fn body_len(&self, header: &[u8; HEADER_LEN]) -> Result<usize, Error> {
        let [a, b, c, kind, ..] = *header;
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        let expected = self.0.header(len, kind)?;
        if !bool::from(expected.ct_eq(header)) {
            return Err(PeerMisbehaved::BadLengthCheck.into());
        }
        if len > BODY_LEN_MAX + TAG_LEN {
            return Err(InvalidMessage::TooLong("record").into());
        }
        Ok(len)
    }

    /// What a record with this header is, when it is not the one that must come next; says so after an error.
    #[must_use]
    pub fn interference(&self, header: &[u8; HEADER_LEN]) -> Interference {
        let expected = self.0.number;
        let [a, b, c, kind, w, x, y, z] = *header;
        let is = |number: &u64| {
            let key = self.0.length_key.expose();
            let mac = hmac_sha256(key, &[&number.to_be_bytes(), &[a, b, c, kind]]);
            mac.starts_with(&[w, x, y, z])
        };
        let seen = if is(&expected) {
            Seen::Altered
        } else if let Some(before) = (expected.saturating_sub(NEAR)..expected).rev().find(is) {
            Seen::Repeated(before)
        } else if let Some(after) = (expected + 1..=expected + NEAR).find(is) {
            Seen::Skipped(after)
        } else {
            Seen::Forged
        };
        Interference { expected, seen }
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
        let len = self.0.open(header, body)?;
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

/// What was seen of a record that is not the one that must come next: somebody on the way interfered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Interference {
    /// Number of the record that must come next, since the keys in use were made.
    pub expected: u64,
    pub seen: Seen,
}

/// What came in its place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Seen {
    /// One that was opened already: it was doubled.
    Repeated(u64),
    /// A later one: what is between was dropped, or comes behind it.
    Skipped(u64),
    /// The one that must come, with a body that does not authenticate.
    Altered,
    /// A header that is none of this session's near here: forged, or altered.
    Forged,
}

impl core::fmt::Display for Interference {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let expected = self.expected;
        match self.seen {
            Seen::Repeated(number) => write!(
                f,
                "record {number} came again, where record {expected} must come"
            ),
            Seen::Skipped(number) => write!(
                f,
                "record {number} came where record {expected} must come: what is between was dropped or held back"
            ),
            Seen::Altered => write!(f, "record {expected} was altered"),
            Seen::Forged => write!(
                f,
                "where record {expected} must come, came one that was forged or altered"
            ),
        }
    }
}

/// Length of a body of `len` bytes with its padding: short ones all look like one of five.
fn padded(len: usize) -> usize {
    if len > PADDED_LEN_MAX {
        return len;
    }
    len.next_power_of_two().max(64)
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
/// Most records under one key. With [`BYTES_MAX`], 2^32 blocks of 16 bytes, far below the 2^34.5 of
/// draft-irtf-cfrg-aead-limits §5.1.1 for a distinguishing advantage of 2^-60. A session that reaches
/// either ends.
pub const RECORDS_MAX: u64 = 1 << 24;
/// Most bytes under one key.
pub const BYTES_MAX: u64 = 64 << 30;
/// New keys are made after this many records or bytes.
pub const RENEW_AFTER_RECORDS: u64 = 1 << 20;
/// See [`RENEW_AFTER_RECORDS`].
pub const RENEW_AFTER_BYTES: u64 = 1 << 30;
const PADDED_LEN_MAX: usize = 1024;
/// Records before and behind the one that must come among which another is looked for.
const NEAR: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const SUITES: [Suite; 2] = [Suite::Encrypted, Suite::IntegrityOnly];

    #[test]
    fn records_open_in_order() {
        for suite in SUITES {
            let (mut sealer, mut opener) = pair(suite);
            for payload in [&b"hello"[..], b"", &[7; 5000]] {
                let mut wire = Vec::new();
                sealer.seal(9, payload, &mut wire).unwrap();
                let (header, mut body) = split(&wire);
                assert_eq!(opener.body_len(&header), Ok(body.len()));
                assert_eq!(opener.open(&header, &mut body), Ok((9, payload)));
            }
        }
    }

    #[test]
    fn only_confidentiality_differs() {
        let wire = |suite| {
            let mut wire = Vec::new();
            pair(suite).0.seal(9, b"readable", &mut wire).unwrap();
            wire
        };
        let (encrypted, clear) = (wire(Suite::Encrypted), wire(Suite::IntegrityOnly));
        let shows = |wire: &[u8]| wire.windows(8).any(|window| window == b"readable");
        assert_eq!(encrypted.len(), clear.len());
        assert!(!shows(&encrypted) && shows(&clear));
    }

    #[test]
    fn short_records_have_one_of_a_few_lengths() {
        let (mut sealer, _) = pair(Suite::Encrypted);
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
        for suite in SUITES {
            let mut wire = Vec::new();
            pair(suite).0.seal(1, b"payload", &mut wire).unwrap();
            for bit in 0..wire.len() * 8 {
                let mut bad = wire.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                let (header, mut body) = split(&bad);
                let mut opener = pair(suite).1;
                let length = opener.body_len(&header);
                if bit < HEADER_LEN * 8 {
                    let expected = Err(PeerMisbehaved::BadLengthCheck.into());
                    assert_eq!(length, expected, "bit {bit}");
                } else {
                    let opened = opener.open(&header, &mut body);
                    assert_eq!(opened, Err(PeerMisbehaved::BadTag.into()), "bit {bit}");
                }
            }
        }
    }

    #[test]
    fn a_repeated_record_is_noticed() {
        for suite in SUITES {
            let (mut sealer, mut opener) = pair(suite);
            let mut wire = Vec::new();
            sealer.seal(1, b"once", &mut wire).unwrap();
            let (header, mut body) = split(&wire);
            assert!(opener.open(&header, &mut body.clone()).is_ok());
            let length = opener.body_len(&header);
            assert_eq!(length, Err(PeerMisbehaved::BadLengthCheck.into()));
            let opened = opener.open(&header, &mut body);
            assert_eq!(opened, Err(PeerMisbehaved::BadTag.into()));
        }
    }

    #[test]
    fn what_came_in_the_place_of_a_record_is_told() {
        for suite in SUITES {
            let (mut sealer, mut opener) = pair(suite);
            let records: Vec<Vec<u8>> = (0..6)
                .map(|i| {
                    let mut wire = Vec::new();
                    sealer.seal(i, b"payload", &mut wire).unwrap();
                    wire
                })
                .collect();
            for record in &records[..3] {
                let (header, mut body) = split(record);
                opener.open(&header, &mut body).unwrap();
            }
            let seen = |record: usize| opener.interference(&split(&records[record]).0).seen;
            assert_eq!(seen(1), Seen::Repeated(1));
            assert_eq!(seen(3), Seen::Altered);
            assert_eq!(seen(5), Seen::Skipped(5));
            let forged = opener.interference(&[7; HEADER_LEN]);
            assert_eq!((forged.expected, forged.seen), (3, Seen::Forged));
        }
    }

    #[test]
    fn worn_keys_say_so_and_exhausted_ones_refuse() {
        let (mut sealer, mut opener) = pair(Suite::Encrypted);
        sealer.0.number = RENEW_AFTER_RECORDS - 1;
        assert!(!sealer.is_worn());
        sealer.seal(1, b"", &mut Vec::new()).unwrap();
        assert!(sealer.is_worn());
        sealer.0.number = RECORDS_MAX - 1;
        sealer.seal(1, b"", &mut Vec::new()).unwrap();
        let refused = sealer.seal(1, b"", &mut Vec::new());
        assert_eq!(refused, Err(PeerMisbehaved::KeyExhausted));
        opener.0.bytes = BYTES_MAX;
        let refused = opener.body_len(&[0; HEADER_LEN]);
        assert_eq!(refused, Err(PeerMisbehaved::KeyExhausted.into()));
    }

    fn pair(suite: Suite) -> (RecordSealer, RecordOpener) {
        let keys = || RecordKeys {
            suite,
            body: Secret::new([1; 32]),
            length: Secret::new([2; 32]),
        };
        (RecordSealer::new(keys()), RecordOpener::new(keys()))
    }

    fn split(wire: &[u8]) -> ([u8; HEADER_LEN], Vec<u8>) {
        let (header, body) = wire.split_first_chunk().unwrap();
        (*header, body.to_vec())
    }
}
