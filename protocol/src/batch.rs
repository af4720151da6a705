//! A batch: consecutive entries of one stream, compressed, chained and signed by who collected them.
//!
//! The unit of compression, of sealing in the agent's spool, of signing and of ack. It is made once,
//! by [`BatchBuilder`], and its entries are never changed: the spool, the wire and the server's log
//! carry the same [`SealedBatch`]. Only who made it can put it after another batch, when the one it
//! followed is lost.
//!
//! ```text
//! header length (2) | header | body
//! header: version 1 (1) | stream (16) | epoch (16) | first sequence (8) | count (4)
//!         | time of first entry, Unix µs (8) | Merkle root (32) | raw length (4)
//!         | bookmark length (2) | bookmark | previous head (32) | signature (64)
//! body:   zstd( table length (4) | table | bytes of the entries, one after the other )
//! table:  per entry: varint length | flags (1) | varint µs since the entry before
//! ```
//!
//! Invariants:
//! 1. The root covers every entry's time, flags and bytes.
//! 2. `head = SHA-256("scrinium batch head v1" | header without signature)`; it names the previous
//!    head, so one head vouches for the whole stream before it.
//! 3. The signature is over the head alone.

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};

use crate::codec::{Codec, Reader, put_bytes16, put_varint};
use crate::compress::{Compressor, decompress};
use crate::entry::{ENTRY_LEN_MAX, Entries, EntryMeta, push_leaf};
use crate::error::{Error, InvalidMessage, PeerMisbehaved};
use crate::identity::{AgentId, Epoch, Head, Sequence, StreamId};
use crate::kdf::sha256;
use crate::merkle::MerkleTree;
use crate::signature;

/// Where a stream stands: what the next batch must follow.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StreamPosition {
    pub epoch: Epoch,
    /// Sequence of the next entry.
    pub next: Sequence,
    pub head: Head,
    /// Opaque position in the source after the last entry.
    pub bookmark: Vec<u8>,
}

impl StreamPosition {
    /// The position before the first entry of `stream` in `epoch`.
    #[must_use]
    pub fn start(agent: AgentId, stream: StreamId, epoch: Epoch) -> Self {
        let head = sha256(&[b"scrinium chain start v1", &agent.0, &stream.0, &epoch.0]);
        Self {
            epoch,
            next: Sequence(0),
            head: Head(head),
            bookmark: Vec::new(),
        }
    }
}

impl Codec for StreamPosition {
    fn encode(&self, out: &mut Vec<u8>) {
        self.epoch.encode(out);
        out.extend_from_slice(&self.next.0.to_be_bytes());
        self.head.encode(out);
        put_bytes16(out, &self.bookmark);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        Ok(Self {
            epoch: Epoch::read(r)?,
            next: Sequence(r.u64("next sequence")?),
            head: Head::read(r)?,
            bookmark: r.bytes16(BOOKMARK_LEN_MAX, "bookmark")?.to_vec(),
        })
    }
}

/// What a batch says of itself, in clear inside the encrypted session and the sealed files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BatchHeader {
    pub stream: StreamId,
    pub epoch: Epoch,
    pub first: Sequence,
    /// Number of entries, at least 1.
    pub count: u32,
    pub time_first_us: u64,
    pub root: [u8; 32],
    /// Bytes of the body before compression.
    pub raw_len: u32,
    pub bookmark: Vec<u8>,
    pub previous: Head,
    pub signature: [u8; 64],
}

impl BatchHeader {
    /// Computes the chain head this batch leaves.
    #[must_use]
    pub fn head(&self) -> Head {
        let mut signed = Vec::with_capacity(256);
        self.encode_signed(&mut signed);
        Head(sha256(&[b"scrinium batch head v1", &signed]))
    }

    /// Whether its numbers are those a batch can have.
    ///
    /// # Errors
    /// [`InvalidMessage`] names the first that is not.
    pub fn check(&self) -> Result<(), InvalidMessage> {
        if self.count == 0 {
            return Err(InvalidMessage::Empty("batch"));
        }
        if self.count > BATCH_ENTRIES_MAX {
            return Err(InvalidMessage::TooLong("entry count"));
        }
        if self.raw_len > RAW_LEN_MAX {
            return Err(InvalidMessage::TooLong("raw length"));
        }
        if self.first.0.checked_add(u64::from(self.count)).is_none() {
            return Err(InvalidMessage::TooLong("first sequence"));
        }
        Ok(())
    }

    /// Whether it has a signature of its own. An archive leaves out those of batches that a later one of the same
    /// chain vouches for.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        self.signature != [0; 64]
    }

    /// Checks the signature of the head.
    ///
    /// # Errors
    /// [`PeerMisbehaved::WrongSignature`] when `key` did not sign it.
    pub fn verify_signature(&self, key: &VerifyingKey) -> Result<(), PeerMisbehaved> {
        signature::verify(key, &signed_text(self.head()), &self.signature)
    }

    /// The sequence after the last entry.
    #[must_use]
    pub fn next(&self) -> Sequence {
        Sequence(self.first.0.saturating_add(u64::from(self.count)))
    }

    /// Where the stream stands after this batch.
    #[must_use]
    pub fn position_after(&self) -> StreamPosition {
        StreamPosition {
            epoch: self.epoch,
            next: self.next(),
            head: self.head(),
            bookmark: self.bookmark.clone(),
        }
    }

    /// Compares this batch with where its stream stands.
    #[must_use]
    pub fn relation_to(&self, position: &StreamPosition) -> Relation {
        if self.epoch != position.epoch {
            return Relation::Conflict;
        }
        if self.first == position.next {
            if self.previous == position.head {
                return Relation::Follows;
            }
            return Relation::Conflict;
        }
        if self.next() == position.next && self.head() != position.head {
            return Relation::Conflict;
        }
        if self.next() <= position.next {
            return Relation::Repeated;
        }
        Relation::Conflict
    }

    /// Puts the batch after what left `position` instead of after what it followed, signed anew by `key`.
    pub fn relink(&mut self, position: &StreamPosition, key: &SigningKey) {
        self.epoch = position.epoch;
        self.first = position.next;
        self.previous = position.head;
        self.signature = key.sign(&signed_text(self.head())).to_bytes();
    }

    fn encode_signed(&self, out: &mut Vec<u8>) {
        out.push(BATCH_VERSION);
        self.stream.encode(out);
        self.epoch.encode(out);
        out.extend_from_slice(&self.first.0.to_be_bytes());
        out.extend_from_slice(&self.count.to_be_bytes());
        out.extend_from_slice(&self.time_first_us.to_be_bytes());
        out.extend_from_slice(&self.root);
        out.extend_from_slice(&self.raw_len.to_be_bytes());
        put_bytes16(out, &self.bookmark);
        self.previous.encode(out);
    }
}

impl Codec for BatchHeader {
    fn encode(&self, out: &mut Vec<u8>) {
        self.encode_signed(out);
        out.extend_from_slice(&self.signature);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        let version = r.u8("batch version")?;
        if version != BATCH_VERSION {
            return Err(InvalidMessage::UnknownType(version));
        }
        let header = Self {
            stream: StreamId::read(r)?,
            epoch: Epoch::read(r)?,
            first: Sequence(r.u64("first sequence")?),
            count: r.u32("entry count")?,
            time_first_us: r.u64("time of the first entry")?,
            root: r.array("Merkle root")?,
            raw_len: r.u32("raw length")?,
            bookmark: r.bytes16(BOOKMARK_LEN_MAX, "bookmark")?.to_vec(),
            previous: Head::read(r)?,
            signature: r.array("signature")?,
        };
        header.check()?;
        Ok(header)
    }
}

/// How a batch stands to the position of its stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Relation {
    /// It is the next one.
    Follows,
    /// All of it is already there: discard and count.
    Repeated,
    /// It overlaps, skips, or continues another history.
    Conflict,
}

/// A finished batch: header, and body as compressed by who made it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SealedBatch {
    pub header: BatchHeader,
    pub body: Vec<u8>,
}

impl SealedBatch {
    /// Decompresses the body and checks the root against every entry.
    ///
    /// # Errors
    /// Fails when the body does not decode to exactly `count` entries under `root`.
    pub fn open(&self) -> Result<Entries, Error> {
        let mut raw = Vec::new();
        decompress(&self.body, self.header.raw_len, &mut raw)?;
        let entries = Entries::parse(raw, &self.header)?;
        if entries.root() != self.header.root {
            return Err(PeerMisbehaved::WrongRoot.into());
        }
        Ok(entries)
    }
}

impl Codec for SealedBatch {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut header = Vec::with_capacity(256);
        self.header.encode(&mut header);
        put_bytes16(out, &header);
        out.extend_from_slice(&self.body);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        let header = r.bytes16(HEADER_LEN_MAX, "batch header")?;
        let header = BatchHeader::decode(header, "batch header")?;
        let body = core::mem::replace(r, Reader::new(&[])).rest();
        if body.len() > BODY_LEN_MAX {
            return Err(InvalidMessage::TooLong("batch body"));
        }
        Ok(Self {
            header,
            body: body.to_vec(),
        })
    }
}

/// Collects entries of one stream until a batch is worth sealing.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    table: Vec<u8>,
    bytes: Vec<u8>,
    tree: MerkleTree,
    count: u32,
    time_first_us: u64,
    time_last_us: u64,
}

impl BatchBuilder {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry. Its time is moved up to the one before it if the clock went back. `false`, and nothing is added,
    /// when it is longer than [`ENTRY_LEN_MAX`] or [`BatchBuilder::has_room`] is false.
    #[must_use = "an entry that is not taken is lost"]
    pub fn push(&mut self, bytes: &[u8], meta: EntryMeta) -> bool {
        if bytes.len() > ENTRY_LEN_MAX || !self.has_room(bytes.len()) {
            return false;
        }
        if self.count == 0 {
            self.time_first_us = meta.time_us;
            self.time_last_us = meta.time_us;
        }
        let time_us = meta.time_us.max(self.time_last_us);
        put_varint(&mut self.table, bytes.len() as u64);
        self.table.push(meta.flags.bits());
        put_varint(&mut self.table, time_us - self.time_last_us);
        self.time_last_us = time_us;
        self.bytes.extend_from_slice(bytes);
        push_leaf(&mut self.tree, EntryMeta { time_us, ..meta }, bytes);
        self.count += 1;
        true
    }

    /// Whether an entry of `len` bytes still fits.
    #[must_use]
    pub fn has_room(&self, len: usize) -> bool {
        self.has_room_for(1, len)
    }

    /// Whether `entries` entries of `len` bytes together still fit.
    #[must_use]
    pub fn has_room_for(&self, entries: u32, len: usize) -> bool {
        self.count.saturating_add(entries) <= BATCH_ENTRIES_MAX
            && self.bytes.len().saturating_add(len) <= BATCH_BYTES_MAX
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The time of the last entry that was added, Unix µs; no other of the batch is later.
    #[must_use]
    pub fn time_last_us(&self) -> u64 {
        self.time_last_us
    }

    /// The bytes of the entries that were added, without anything around them.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many were added.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Seals what was collected: it follows `position`, leaves the source at `bookmark`, and is
    /// signed by `key`. Returns the batch and the position after it; the builder is empty again.
    ///
    /// # Panics
    /// If the builder is empty, or the bookmark longer than [`BOOKMARK_LEN_MAX`].
    pub fn seal(
        &mut self,
        stream: StreamId,
        position: &StreamPosition,
        bookmark: Vec<u8>,
        key: &SigningKey,
        compressor: &mut Compressor,
    ) -> (SealedBatch, StreamPosition) {
        assert!(!self.is_empty(), "an empty batch is not sealed");
        assert!(
            bookmark.len() <= BOOKMARK_LEN_MAX,
            "sources bound their bookmarks"
        );
        let table_len = u32::try_from(self.table.len()).expect("at most 4096 short rows");
        let mut raw = Vec::with_capacity(4 + self.table.len() + self.bytes.len());
        raw.extend_from_slice(&table_len.to_be_bytes());
        raw.extend_from_slice(&self.table);
        raw.extend_from_slice(&self.bytes);

        let mut header = BatchHeader {
            stream,
            epoch: position.epoch,
            first: position.next,
            count: self.count,
            time_first_us: self.time_first_us,
            root: self.tree.root(),
            raw_len: u32::try_from(raw.len()).expect("bounded by BATCH_BYTES_MAX"),
            bookmark,
            previous: position.head,
            signature: [0; 64],
        };
        header.relink(position, key);
        let after = header.position_after();
        let body = compressor.compress(&raw);

        self.table.clear();
        self.bytes.clear();
        self.tree.clear();
        self.count = 0;
        (SealedBatch { header, body }, after)
    }
}

fn signed_text(head: Head) -> [u8; 49] {
    let mut text = *b"scrinium batch v1                                ";
    if let Some(tail) = text.last_chunk_mut::<32>() {
        *tail = head.0;
    }
    text
}

/// Most entries in one batch.
pub const BATCH_ENTRIES_MAX: u32 = 4096;
/// Most bytes of entries in one batch, before compression.
pub const BATCH_BYTES_MAX: usize = 192 << 10;
/// Longest bookmark.
pub const BOOKMARK_LEN_MAX: usize = 1024;
/// Longest encoded header.
pub const HEADER_LEN_MAX: usize = 256 + BOOKMARK_LEN_MAX;
/// Longest decompressed body: the entries and the longest possible table (14 bytes a row).
pub const RAW_LEN_MAX: u32 = 4 + (192 << 10) + 4096 * 14;
/// Longest compressed body: zstd adds at most 1/256 and a frame header to what it cannot compress.
pub const BODY_LEN_MAX: usize = RAW_LEN_MAX as usize + (RAW_LEN_MAX as usize >> 8) + 64;
const BATCH_VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::EntryFlags;

    #[test]
    fn what_does_not_fit_is_not_taken_and_nothing_panics() {
        let mut builder = BatchBuilder::new();
        let meta = EntryMeta {
            time_us: 1,
            flags: EntryFlags::NONE,
        };
        assert!(!builder.push(&vec![b'x'; ENTRY_LEN_MAX + 1], meta));
        assert!(builder.is_empty());
        for _ in 0..BATCH_ENTRIES_MAX {
            assert!(builder.push(b"", meta));
        }
        assert!(!builder.has_room(0) && !builder.push(b"", meta));
        let mut builder = BatchBuilder::new();
        let piece = vec![b'x'; ENTRY_LEN_MAX];
        let mut taken = 0;
        while builder.push(&piece, meta) {
            taken += piece.len();
        }
        assert!(taken <= BATCH_BYTES_MAX && taken + piece.len() > BATCH_BYTES_MAX);
        assert!(!builder.has_room_for(1, usize::MAX) && !builder.has_room_for(u32::MAX, 0));
    }

    #[test]
    fn a_batch_opens_to_the_entries_it_was_made_of() {
        let (batch, after) = sample(&[b"one\n", b"", b"three\r\n"]);

        let entries = batch.open().unwrap();

        let bytes: Vec<&[u8]> = entries.iter().map(|(_, bytes)| bytes).collect();
        assert_eq!(bytes, [&b"one\n"[..], b"", b"three\r\n"]);
        assert_eq!(entries.bytes(), b"one\nthree\r\n");
        assert_eq!(after.next, Sequence(3));
        assert_eq!(
            batch.header.verify_signature(&key().verifying_key()),
            Ok(())
        );
        let decoded = SealedBatch::decode(&batch.encoded(), "batch").unwrap();
        assert_eq!(decoded, batch);
    }

    #[test]
    fn the_header_is_frozen() {
        let (batch, after) = sample(&[b"one\n"]);
        assert_eq!(
            after.head.to_string(),
            "de0f3d861f7a6b83a2458343ab9ff67ce9b741cfa1715174ca142c49585b7268"
        );
        assert_eq!(
            batch.header.encoded().len(),
            16 + 16 + 8 + 4 + 8 + 32 + 4 + 2 + 3 + 32 + 64 + 1
        );
    }

    #[test]
    fn any_altered_byte_of_a_batch_is_noticed() {
        let (batch, after) = sample(&[b"one\n", b"two\n"]);
        let good = batch.encoded();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let whole = SealedBatch::decode(&bad, "batch").is_ok_and(|b| {
                b.header.head() == after.head
                    && b.header.verify_signature(&key().verifying_key()).is_ok()
                    && b.open().is_ok()
            });
            assert!(!whole, "byte {at}");
        }
    }

    #[test]
    fn the_bounds_hold_for_incompressible_entries_of_one_byte() {
        let mut builder = BatchBuilder::new();
        let mut state = 1_u64;
        while builder.has_room(1) {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let time_us = state >> 1;
            assert!(builder.push(
                &state.to_be_bytes()[..1],
                EntryMeta {
                    time_us,
                    flags: EntryFlags::NONE,
                },
            ));
        }
        let stream = StreamId([2; 16]);
        let position = StreamPosition::start(AgentId([1; 16]), stream, Epoch([3; 16]));
        let (batch, _) = builder.seal(
            stream,
            &position,
            Vec::new(),
            &key(),
            &mut Compressor::new(1),
        );
        assert!(batch.header.raw_len <= RAW_LEN_MAX);
        assert!(batch.body.len() <= BODY_LEN_MAX);
        assert!(
            SealedBatch::decode(&batch.encoded(), "batch")
                .unwrap()
                .open()
                .is_ok()
        );
    }

    #[test]
    fn i9_a_body_that_is_a_bomb_or_not_as_long_as_declared_is_refused_within_bounds() {
        let (good, _) = sample(&[b"one\n", b"two\n"]);
        let bomb = Compressor::new(3).compress(&vec![0; 256 << 20]);
        assert!(
            bomb.len() < BODY_LEN_MAX,
            "{} bytes on the wire",
            bomb.len()
        );
        for (body, raw_len) in [
            (bomb, good.header.raw_len),
            (good.body.clone(), good.header.raw_len - 1),
            (good.body.clone(), good.header.raw_len + 1),
            (Vec::new(), good.header.raw_len),
            // A batch in a batch is no entry.
            (
                Compressor::new(1).compress(&good.encoded()),
                good.header.raw_len,
            ),
        ] {
            let mut bad = good.clone();
            bad.body = body;
            bad.header.raw_len = raw_len;
            assert!(bad.open().is_err());
        }
        let mut bad = good;
        bad.header.raw_len = RAW_LEN_MAX + 1;
        assert!(SealedBatch::decode(&bad.encoded(), "batch").is_err());
    }

    #[test]
    fn a_batch_is_next_repeated_or_in_conflict() {
        let stream = StreamId([2; 16]);
        let start = StreamPosition::start(AgentId([1; 16]), stream, Epoch([3; 16]));
        let (batch, after) = sample(&[b"one\n"]);
        assert_eq!(batch.header.relation_to(&start), Relation::Follows);
        assert_eq!(batch.header.relation_to(&after), Relation::Repeated);
        let (other, _) = sample(&[b"two\n"]);
        assert_eq!(other.header.relation_to(&after), Relation::Conflict);
        let other = StreamPosition {
            head: Head([9; 32]),
            ..start.clone()
        };
        assert_eq!(batch.header.relation_to(&other), Relation::Conflict);
        let skipped = StreamPosition {
            next: Sequence(7),
            epoch: Epoch([4; 16]),
            ..start
        };
        assert_eq!(batch.header.relation_to(&skipped), Relation::Conflict);
    }

    fn sample(lines: &[&[u8]]) -> (SealedBatch, StreamPosition) {
        let mut builder = BatchBuilder::new();
        for (i, line) in lines.iter().enumerate() {
            let meta = EntryMeta {
                time_us: 1_000 + i as u64,
                flags: EntryFlags::NONE,
            };
            assert!(builder.push(line, meta));
        }
        let stream = StreamId([2; 16]);
        let position = StreamPosition::start(AgentId([1; 16]), stream, Epoch([3; 16]));
        builder.seal(
            stream,
            &position,
            b"at3".to_vec(),
            &key(),
            &mut Compressor::new(1),
        )
    }

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[5; 32])
    }
}
