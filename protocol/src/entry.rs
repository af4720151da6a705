//! An entry: one log record with its exact bytes, and what is known of it.

use std::ops::Range;

use crate::batch::BatchHeader;
use crate::codec::Reader;
use crate::error::InvalidMessage;
use crate::merkle::MerkleTree;

/// What is known of an entry besides its bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EntryMeta {
    /// When it was collected, in microseconds since 1970-01-01T00:00Z.
    pub time_us: u64,
    pub flags: EntryFlags,
}

/// Properties of an entry.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EntryFlags(u8);

impl EntryFlags {
    pub const NONE: Self = Self(0);
    /// The line is not over: the next entry of the stream goes on with it.
    pub const FRAGMENT: Self = Self(1);
    /// Not a log line, but the collector's statement that something is missing here, and why.
    pub const GAP: Self = Self(2);

    #[must_use]
    pub fn is_fragment(self) -> bool {
        self.0 & Self::FRAGMENT.0 != 0
    }

    #[must_use]
    pub fn is_gap(self) -> bool {
        self.0 & Self::GAP.0 != 0
    }

    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    pub(crate) fn from_bits(bits: u8) -> Result<Self, InvalidMessage> {
        if bits & !(Self::FRAGMENT.0 | Self::GAP.0) != 0 {
            return Err(InvalidMessage::NotCanonical("entry flags"));
        }
        Ok(Self(bits))
    }
}

/// The entries of an opened batch.
#[derive(Clone, Debug)]
pub struct Entries {
    raw: Vec<u8>,
    table: Vec<(EntryMeta, Range<usize>)>,
}

impl Entries {
    /// Parses a decompressed body; does not compare it with the root.
    ///
    /// # Errors
    /// Fails when the body does not hold exactly the entries the header counts.
    pub fn parse(raw: Vec<u8>, header: &BatchHeader) -> Result<Self, InvalidMessage> {
        let mut r = Reader::new(&raw);
        let table_len = r.u32("entry table")? as usize;
        let mut table_bytes = Reader::new(r.take(table_len, "entry table")?);
        let data_start = 4 + table_len;
        let mut offset = data_start;
        let mut time_us = header.time_first_us;
        let mut table = Vec::with_capacity(header.count as usize);
        for _ in 0..header.count {
            let len = table_bytes.varint("entry length")?;
            let len = usize::try_from(len).map_err(|_| InvalidMessage::TooLong("entry"))?;
            if len > ENTRY_LEN_MAX {
                return Err(InvalidMessage::TooLong("entry"));
            }
            let flags = EntryFlags::from_bits(table_bytes.u8("entry flags")?)?;
            time_us = time_us.saturating_add(table_bytes.varint("entry time")?);
            let end = offset + len;
            if end > raw.len() {
                return Err(InvalidMessage::MissingData("entry"));
            }
            table.push((EntryMeta { time_us, flags }, offset..end));
            offset = end;
        }
        table_bytes.finish("entry table")?;
        if offset != raw.len() {
            return Err(InvalidMessage::TrailingData("entries"));
        }
        Ok(Self { raw, table })
    }

    /// The entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (EntryMeta, &[u8])> {
        self.table
            .iter()
            .map(|(meta, range)| (*meta, self.raw.get(range.clone()).unwrap_or_default()))
    }

    /// The bytes of all entries, one after the other.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let start = self.table.first().map_or(self.raw.len(), |(_, r)| r.start);
        self.raw.get(start..).unwrap_or_default()
    }

    /// The body as it was before compression.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Computes the Merkle root over the entries.
    #[must_use]
    pub fn root(&self) -> [u8; 32] {
        let mut tree = MerkleTree::new();
        for (meta, bytes) in self.iter() {
            push_leaf(&mut tree, meta, bytes);
        }
        tree.root()
    }
}

/// Adds the leaf of one entry: its time, flags and bytes.
pub fn push_leaf(tree: &mut MerkleTree, meta: EntryMeta, bytes: &[u8]) {
    tree.push(&[&meta.time_us.to_be_bytes(), &[meta.flags.bits()], bytes]);
}

/// Longest entry; a longer line becomes linked fragments.
pub const ENTRY_LEN_MAX: usize = 64 << 10;
