//! What an export shows of a batch: all of its entries, some of them, or only that it was there.
//!
//! Entries that an authority did not ask for stay with the server; those it gets are proven by their way to the
//! batch's Merkle root, and the chain of heads by the headers of the batches between.
//!
//! ```text
//! received by the server, Unix µs (8) | kind (1) | header length (2) | header | content
//! kind 0  nothing: a link of the chain
//! kind 1  all entries: the body as compressed anew
//! kind 2  per entry: index (4) | time, Unix µs (8) | flags (1) | length (4) | bytes | hashes (1) | hash (32) each
//! ```

use ed25519_dalek::VerifyingKey;

use crate::batch::{BODY_LEN_MAX, BatchHeader, HEADER_LEN_MAX, RAW_LEN_MAX, SealedBatch};
use crate::codec::{Codec, Reader, put_bytes16};
use crate::entry::{ENTRY_LEN_MAX, Entries, EntryFlags, EntryMeta, leaf_of, view};
use crate::error::{Error, InvalidMessage, PeerMisbehaved};
use crate::merkle::root_of_path;

/// A batch, as far as it is shown.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Excerpt {
    /// When the server received it, Unix µs.
    pub received_us: u64,
    pub header: BatchHeader,
    pub shown: Shown,
}

/// Its entries, as far as they are shown.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Shown {
    Nothing,
    /// The compressed body.
    All(Vec<u8>),
    Some(Vec<ShownEntry>),
}

/// One entry, and the hashes beside its way to the root.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ShownEntry {
    /// Its number in the batch.
    pub index: u32,
    pub meta: EntryMeta,
    pub bytes: Vec<u8>,
    pub path: Vec<[u8; 32]>,
}

/// Entries that were proven to be of a batch.
#[derive(Debug)]
pub enum Proven<'a> {
    All(Entries),
    Some(&'a [ShownEntry]),
}

impl Excerpt {
    /// Checks the signature of the header, if it has one, and that what is shown belongs to it. The next of the
    /// chain that has one vouches for those without.
    ///
    /// # Errors
    /// `key` did not sign it; the body is not the one it speaks of; an entry's way leads to another root, or entries
    /// are not in their order.
    pub fn open(&self, key: &VerifyingKey) -> Result<Proven<'_>, Error> {
        let entries = match &self.shown {
            Shown::Nothing => Proven::Some(&[]),
            Shown::All(body) => {
                let (header, body) = (self.header.clone(), body.clone());
                Proven::All(SealedBatch { header, body }.open()?)
            }
            Shown::Some(entries) => {
                let mut least = 0;
                for entry in entries {
                    let leaf = leaf_of(entry.meta, &entry.bytes);
                    let (index, count) = (u64::from(entry.index), u64::from(self.header.count));
                    let root = root_of_path(leaf, index, count, &entry.path);
                    if root != Some(self.header.root) {
                        return Err(PeerMisbehaved::WrongRoot.into());
                    }
                    if index < least {
                        return Err(InvalidMessage::NotCanonical("index of an entry").into());
                    }
                    least = index + 1;
                }
                Proven::Some(entries)
            }
        };
        if self.header.is_signed() {
            self.header.verify_signature(key)?;
        }
        Ok(entries)
    }
}

impl Proven<'_> {
    /// Calls `each` with the number, the properties and the bytes of every entry, in order.
    pub fn for_each<E>(
        &self,
        mut each: impl FnMut(u32, EntryMeta, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match self {
            Self::All(entries) => (0..)
                .zip(entries.iter())
                .try_for_each(|(index, (meta, bytes))| each(index, meta, bytes)),
            Self::Some(entries) => entries
                .iter()
                .try_for_each(|entry| each(entry.index, entry.meta, &entry.bytes)),
        }
    }
}

impl Codec for Excerpt {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.received_us.to_be_bytes());
        out.push(match &self.shown {
            Shown::Nothing => 0,
            Shown::All(_) => 1,
            Shown::Some(_) => 2,
        });
        put_bytes16(out, &self.header.encoded());
        match &self.shown {
            Shown::Nothing => {}
            Shown::All(body) => out.extend_from_slice(body),
            Shown::Some(entries) => {
                for entry in entries {
                    entry.encode(out);
                }
            }
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        let received_us = r.u64("receive time")?;
        let kind = r.u8("kind of excerpt")?;
        let header = r.bytes16(HEADER_LEN_MAX, "batch header")?;
        let header = BatchHeader::decode(header, "batch header")?;
        let shown = match kind {
            0 => Shown::Nothing,
            1 => {
                let body = core::mem::replace(r, Reader::new(&[])).rest();
                if body.len() > BODY_LEN_MAX {
                    return Err(InvalidMessage::TooLong("batch body"));
                }
                Shown::All(body.to_vec())
            }
            2 => {
                let mut entries = Vec::new();
                while !r.is_empty() {
                    if entries.len() == header.count as usize {
                        return Err(InvalidMessage::TooLong("entries of an excerpt"));
                    }
                    entries.push(ShownEntry::read(r)?);
                }
                if entries.is_empty() {
                    return Err(InvalidMessage::Empty("excerpt"));
                }
                Shown::Some(entries)
            }
            _ => return Err(InvalidMessage::UnknownType(kind)),
        };
        Ok(Self {
            received_us,
            header,
            shown,
        })
    }
}

impl Codec for ShownEntry {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.index.to_be_bytes());
        out.extend_from_slice(&self.meta.time_us.to_be_bytes());
        out.push(self.meta.flags.bits());
        // Both are bounded where they are made: by ENTRY_LEN_MAX, and by the height of a batch's tree.
        let len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&self.bytes);
        out.push(u8::try_from(self.path.len()).unwrap_or(u8::MAX));
        for hash in &self.path {
            out.extend_from_slice(hash);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        let index = r.u32("index of an entry")?;
        let time_us = r.u64("entry time")?;
        let flags = EntryFlags::from_bits(r.u8("entry flags")?)?;
        let len = r.u32("entry length")? as usize;
        if len > ENTRY_LEN_MAX {
            return Err(InvalidMessage::TooLong("entry"));
        }
        let bytes = r.take(len, "entry")?.to_vec();
        let hashes = r.u8("number of hashes")?;
        if hashes > PATH_LEN_MAX {
            return Err(InvalidMessage::TooLong("path of an entry"));
        }
        let path = (0..hashes).map(|_| r.array("hash"));
        Ok(Self {
            index,
            meta: EntryMeta { time_us, flags },
            bytes,
            path: path.collect::<Result<_, _>>()?,
        })
    }
}

/// Whether a line of text is over with this entry, or the next entry goes on with it; else a list of lines
/// needs a line feed here.
#[must_use]
pub fn ends_line(meta: EntryMeta, bytes: &[u8]) -> bool {
    meta.flags.is_fragment() || view(bytes, meta.flags).ends_with(b"\n")
}

/// Longest encoded excerpt: every entry of the fullest batch by itself.
pub const EXCERPT_LEN_MAX: usize =
    16 + HEADER_LEN_MAX + RAW_LEN_MAX as usize + 4096 * (18 + 32 * PATH_LEN_MAX as usize);
/// The height of the tree over [`crate::batch::BATCH_ENTRIES_MAX`] leaves.
const PATH_LEN_MAX: u8 = 12;

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::batch::{BatchBuilder, StreamPosition};
    use crate::compress::{AGENT_LEVEL, Compressor};
    use crate::identity::{AgentId, Epoch, StreamId};
    use crate::merkle::AuditPaths;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn batch(lines: &[&[u8]]) -> SealedBatch {
        let (agent, stream) = (AgentId([1; 16]), StreamId([2; 16]));
        let mut builder = BatchBuilder::new();
        for (time_us, line) in (1000..).zip(lines) {
            let flags = EntryFlags::NONE;
            assert!(builder.push(line, EntryMeta { time_us, flags }));
        }
        let start = StreamPosition::start(agent, stream, Epoch([3; 16]));
        let mut compressor = Compressor::new(AGENT_LEVEL);
        builder
            .seal(stream, &start, vec![9], &key(), &mut compressor)
            .0
    }

    fn some_of(batch: &SealedBatch, wanted: &[u32]) -> Excerpt {
        let entries = batch.open().unwrap();
        let leaves = entries.iter().map(|(meta, bytes)| leaf_of(meta, bytes));
        let paths = AuditPaths::new(leaves.collect());
        let shown = (0..)
            .zip(entries.iter())
            .filter(|(index, _)| wanted.contains(index));
        let shown = shown.map(|(index, (meta, bytes))| ShownEntry {
            index,
            meta,
            bytes: bytes.to_vec(),
            path: paths.path(index as usize).unwrap(),
        });
        Excerpt {
            received_us: 5,
            header: batch.header.clone(),
            shown: Shown::Some(shown.collect()),
        }
    }

    fn seen(excerpt: &Excerpt) -> Result<Vec<(u32, Vec<u8>)>, Error> {
        let mut seen = Vec::new();
        let proven = excerpt.open(&key().verifying_key())?;
        proven.for_each(|index, _, bytes| {
            seen.push((index, bytes.to_vec()));
            Ok::<_, Error>(())
        })?;
        Ok(seen)
    }

    #[test]
    fn each_kind_is_read_back_and_shows_what_it_holds() {
        let batch = batch(&[b"one\n", b"two\n", b"three\n"]);
        let with = |shown| Excerpt {
            received_us: 5,
            header: batch.header.clone(),
            shown,
        };
        let one = |index, text: &[u8]| (index, text.to_vec());
        let all = vec![one(0, b"one\n"), one(1, b"two\n"), one(2, b"three\n")];
        for (excerpt, expected) in [
            (with(Shown::Nothing), Vec::new()),
            (with(Shown::All(batch.body.clone())), all),
            (some_of(&batch, &[2]), vec![one(2, b"three\n")]),
            (
                some_of(&batch, &[0, 2]),
                vec![one(0, b"one\n"), one(2, b"three\n")],
            ),
        ] {
            let read = Excerpt::decode(&excerpt.encoded(), "excerpt").unwrap();
            assert_eq!(read, excerpt);
            assert_eq!(seen(&read).unwrap(), expected);
        }
    }

    #[test]
    fn the_bytes_are_frozen() {
        let excerpt = some_of(&batch(&[b"one\n", b"two\n"]), &[1]);
        let encoded = excerpt.encoded();
        let (start, rest) = encoded.split_at(11);
        assert_eq!(start[..9], [0, 0, 0, 0, 0, 0, 0, 5, 2]);
        let header_len = usize::from(u16::from_be_bytes([start[9], start[10]]));
        assert_eq!(rest[..header_len], excerpt.header.encoded());
        let entry = &rest[header_len..];
        let expected = [
            &[0, 0, 0, 1][..],
            &1001_u64.to_be_bytes(),
            &[0, 0, 0, 0, 4],
            b"two\n",
            &[1],
            &leaf_of(
                EntryMeta {
                    time_us: 1000,
                    flags: EntryFlags::NONE,
                },
                b"one\n",
            ),
        ];
        assert_eq!(entry, expected.concat());
    }

    #[test]
    fn what_does_not_belong_to_the_batch_is_refused() {
        let whole = some_of(&batch(&[b"one\n", b"two\n", b"three\n"]), &[0, 1]);
        let changed = |change: fn(&mut Vec<ShownEntry>)| {
            let mut excerpt = whole.clone();
            let Shown::Some(entries) = &mut excerpt.shown else {
                unreachable!()
            };
            change(entries);
            seen(&excerpt)
        };
        assert!(changed(|_| {}).is_ok());
        assert!(changed(|entries| entries[0].bytes[0] ^= 1).is_err());
        assert!(changed(|entries| entries[0].meta.time_us += 1).is_err());
        assert!(changed(|entries| entries[1].index = 2).is_err());
        assert!(changed(|entries| entries[1].index = u32::MAX).is_err());
        assert!(changed(|entries| entries[1].path[0][0] ^= 1).is_err());
        assert!(changed(|entries| entries[1].path.truncate(1)).is_err());
        assert!(changed(|entries| entries.swap(0, 1)).is_err());
        assert!(changed(|entries| entries[1] = entries[0].clone()).is_err());
        let mut forged = whole.clone();
        forged.header.signature[0] ^= 1;
        assert!(seen(&forged).is_err());
    }

    #[test]
    fn neighbours_of_what_may_be_encoded_are_refused() {
        let encoded = some_of(&batch(&[b"one\n", b"two\n"]), &[1]).encoded();
        let decode = |bytes: &[u8]| Excerpt::decode(bytes, "excerpt");
        assert!(decode(&encoded).is_ok());
        for len in 0..encoded.len() {
            assert!(decode(&encoded[..len]).is_err(), "{len}");
        }
        let kind = |kind: u8| {
            let mut bytes = encoded.clone();
            bytes[8] = kind;
            bytes
        };
        assert!(decode(&kind(3)).is_err());
        // A link of the chain has no content; more entries than the batch has are none of it.
        assert!(decode(&kind(0)).is_err());
        let entry = encoded.len() - (4 + 8 + 1 + 4 + 4 + 1 + 32);
        let twice = [&encoded[..], &encoded[entry..]].concat();
        assert!(decode(&twice).is_ok());
        assert!(decode(&[&twice[..], &encoded[entry..]].concat()).is_err());
        let mut hashes = encoded.clone();
        hashes[entry + 21] = PATH_LEN_MAX + 1;
        assert!(decode(&hashes).is_err());
    }
}
