//! An entry: one log record with its exact bytes, and what is known of it.

use std::borrow::Cow;
use std::ops::Range;

use crate::batch::BatchHeader;
use crate::codec::Reader;
use crate::error::InvalidMessage;
use crate::merkle::{MerkleTree, leaf_hash};

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
    /// The bytes are UTF-16, little-endian: [`crate::entry::view`] reads them.
    pub const UTF16LE: Self = Self(4);
    /// The bytes are UTF-16, big-endian.
    pub const UTF16BE: Self = Self(8);

    /// Both properties.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub fn is_fragment(self) -> bool {
        self.0 & Self::FRAGMENT.0 != 0
    }

    #[must_use]
    pub fn is_gap(self) -> bool {
        self.0 & Self::GAP.0 != 0
    }

    #[must_use]
    fn is_utf16(self) -> bool {
        self.0 & (Self::UTF16LE.0 | Self::UTF16BE.0) != 0
    }

    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    pub(crate) fn from_bits(bits: u8) -> Result<Self, InvalidMessage> {
        let utf16 = Self::UTF16LE.0 | Self::UTF16BE.0;
        if bits & !(Self::FRAGMENT.0 | Self::GAP.0 | utf16) != 0 || bits & utf16 == utf16 {
            return Err(InvalidMessage::NotCanonical("entry flags"));
        }
        Ok(Self(bits))
    }
}

/// An entry as text: UTF-16 is decoded by its flag; what is not UTF-8 is read as Windows-1252, which
/// gives every byte a character; everything else is as it is.
#[must_use]
pub fn view(bytes: &[u8], flags: EntryFlags) -> Cow<'_, [u8]> {
    let unit: fn([u8; 2]) -> u16 = match flags.0 & (EntryFlags::UTF16LE.0 | EntryFlags::UTF16BE.0) {
        0 if str::from_utf8(bytes).is_ok() => return Cow::Borrowed(bytes),
        0 => {
            let text: String = bytes.iter().map(|&byte| windows_1252(byte)).collect();
            return Cow::Owned(text.into_bytes());
        }
        4 => u16::from_le_bytes,
        _ => u16::from_be_bytes,
    };
    let (pairs, _) = bytes.as_chunks::<2>();
    let units = pairs.iter().map(|&pair| unit(pair));
    let text: String = char::decode_utf16(units)
        .map(|decoded| decoded.unwrap_or(char::REPLACEMENT_CHARACTER))
        .filter(|&char| char != '\u{feff}')
        .collect();
    Cow::Owned(text.into_bytes())
}

/// The Encoding Standard's index windows-1252, whose first difference from Latin-1 is at 0x80.
fn windows_1252(byte: u8) -> char {
    const UPPER: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž',
        '\u{8f}', '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}',
        'ž', 'Ÿ',
    ];
    let upper = byte
        .checked_sub(0x80)
        .and_then(|at| UPPER.get(usize::from(at)));
    upper.copied().unwrap_or_else(|| char::from(byte))
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

    /// What they take of memory, bytes: of entries of a few bytes it is nearly all their places.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.raw.len() + self.table.len() * size_of::<(EntryMeta, Range<usize>)>()
    }

    /// Whether every entry is UTF-8: its own [`view`].
    #[must_use]
    pub fn is_text(&self) -> bool {
        str::from_utf8(self.bytes()).is_ok()
            && !self.table.iter().any(|(meta, _)| meta.flags.is_utf16())
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The time of the last entry, Unix µs; no other of the batch is later. `None` of a batch without entries.
    #[must_use]
    pub fn time_last_us(&self) -> Option<u64> {
        self.table.last().map(|(meta, _)| meta.time_us)
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
    tree.push_hash(leaf_of(meta, bytes));
}

/// The hash of that leaf.
#[must_use]
pub fn leaf_of(meta: EntryMeta, bytes: &[u8]) -> [u8; 32] {
    leaf_hash(&[&meta.time_us.to_be_bytes(), &[meta.flags.bits()], bytes])
}

/// Longest entry; a longer line becomes linked fragments.
pub const ENTRY_LEN_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_text_whatever_the_bytes_are() {
        let none = EntryFlags::NONE;
        assert_eq!(
            view("é\n".as_bytes(), none),
            Cow::Borrowed("é\n".as_bytes())
        );
        assert_eq!(*view(b"caf\xe9 \x80\n", none), *"café €\n".as_bytes());
        let le: Vec<u8> = "\u{feff}a€𝄞\n"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        assert_eq!(*view(&le, EntryFlags::UTF16LE), *"a€𝄞\n".as_bytes());
        let be: Vec<u8> = "a€\n".encode_utf16().flat_map(u16::to_be_bytes).collect();
        assert_eq!(
            *view(&be, EntryFlags::UTF16BE.and(EntryFlags::FRAGMENT)),
            *"a€\n".as_bytes()
        );
        // Half a unit and half a pair are no reason to fail.
        assert_eq!(
            *view(&[0x41, 0, 0x34, 0xd8, 7], EntryFlags::UTF16LE),
            *"A\u{fffd}".as_bytes()
        );
    }

    #[test]
    fn flags_that_are_not_ours_or_contradict_each_other_are_refused() {
        for bits in [0, 1, 2, 4, 5, 8, 9] {
            assert_eq!(EntryFlags::from_bits(bits).unwrap().bits(), bits);
        }
        for bits in [12, 16, 128] {
            assert!(EntryFlags::from_bits(bits).is_err());
        }
    }
}
