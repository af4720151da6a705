//! Writes one segment.
//!
//! Invariant: after an error nothing more is written to this file, and no sync is repeated: what
//! the kernel kept of a failed write is unknown. The owner opens a new segment.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use scrinium_protocol::secret::Secret;

use crate::cipher::Cipher;
use crate::format::{
    END, Error, HEADER_LEN, Keyed, Kind, MAGIC, Place, RECORD_HEAD_LEN_U32, RECORD_LEN_MAX,
    SegmentCipher, TAG_LEN, random, segment_name,
};
use crate::{durable, fault};

/// A segment being written.
pub struct SegmentWriter {
    path: PathBuf,
    file: File,
    cipher: SegmentCipher,
    /// How to make the same for another key.
    keyed: Keyed,
    tag: [u8; TAG_LEN],
    /// Sealed and not yet handed to the kernel.
    buffer: Vec<u8>,
    /// Bytes before `buffer`.
    written: u64,
    records: u64,
    poisoned: bool,
}

impl SegmentWriter {
    /// Creates segment `number` of `kind` in `dir`. `previous` is the tag of the segment before.
    ///
    /// # Errors
    /// Those of the file system; a segment of that number must not exist.
    pub fn create(
        dir: &Path,
        key: &Secret<32>,
        cipher: Cipher,
        kind: Kind,
        number: u64,
        previous: [u8; TAG_LEN],
    ) -> Result<Self, Error> {
        let path = dir.join(segment_name(kind, number));
        let salt = random()?;
        let keyed = Keyed { cipher, kind, salt };
        let sealer = keyed.cipher(key);
        let mut buffer = Vec::with_capacity(HEADER_LEN);
        buffer.extend_from_slice(MAGIC);
        buffer.push(kind.to_byte());
        buffer.push(cipher.to_byte());
        buffer.extend_from_slice(&[0; 6]);
        buffer.extend_from_slice(&number.to_be_bytes());
        buffer.extend_from_slice(&salt);
        buffer.extend_from_slice(&previous);
        let tag = sealer.header_tag(&buffer);
        buffer.extend_from_slice(&tag);
        let file = durable::create_new(&path).map_err(|source| Error::Io {
            path: path.clone(),
            source,
        })?;
        fault::point("segment: created");
        Ok(Self {
            path,
            file,
            cipher: sealer,
            keyed,
            tag,
            buffer,
            written: 0,
            records: 0,
            poisoned: false,
        })
    }

    /// Adds a record holding the concatenation of `parts`. Not on the disk before
    /// [`SegmentWriter::sync`].
    ///
    /// # Errors
    /// Those of the file system; the segment is then poisoned. [`Error::TooLong`] when the payload is longer than
    /// [`RECORD_LEN_MAX`]; then nothing was added and the segment is as it was.
    pub fn append(&mut self, kind: u8, parts: &[&[u8]]) -> Result<Place, Error> {
        self.append_sealed(None, kind, parts)
    }

    /// Adds a record that `key` opens, and the segment's own key does not.
    ///
    /// # Errors
    /// As [`SegmentWriter::append`].
    pub fn append_under(
        &mut self,
        key: &Secret<32>,
        kind: u8,
        parts: &[&[u8]],
    ) -> Result<Place, Error> {
        let cipher = self.keyed.cipher(key);
        self.append_sealed(Some(&cipher), kind, parts)
    }

    fn append_sealed(
        &mut self,
        cipher: Option<&SegmentCipher>,
        kind: u8,
        parts: &[&[u8]],
    ) -> Result<Place, Error> {
        if self.poisoned {
            return Err(self.poisoned_error());
        }
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if len > RECORD_LEN_MAX {
            return Err(Error::TooLong {
                path: self.path.clone(),
                bytes: len,
            });
        }
        let sealed_len = u32::try_from(len + TAG_LEN).unwrap_or(u32::MAX);
        let [a, b, c, d] = sealed_len.to_be_bytes();
        let head = [a, b, c, d, kind];
        let offset = self.len();
        self.buffer.extend_from_slice(&head);
        let start = self.buffer.len();
        for part in parts {
            self.buffer.extend_from_slice(part);
        }
        let cipher = cipher.unwrap_or(&self.cipher);
        cipher.seal(self.records, &head, &mut self.buffer, start);
        let place = Place {
            offset,
            len: sealed_len + RECORD_HEAD_LEN_U32,
            index: self.records,
        };
        self.records += 1;
        if self.buffer.len() >= BUFFER_LEN_MAX {
            self.flush()?;
        }
        Ok(place)
    }

    /// Hands everything to the kernel: readers see it, a power cut may still lose it.
    ///
    /// # Errors
    /// Those of the file system; the segment is then poisoned.
    pub fn flush(&mut self) -> Result<(), Error> {
        if self.poisoned {
            return Err(self.poisoned_error());
        }
        if let Err(source) = self.file.write_all(&self.buffer) {
            return Err(self.poison(source));
        }
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        fault::point("segment: written");
        Ok(())
    }

    /// Makes every record durable.
    ///
    /// # Errors
    /// Those of the file system; the segment is then poisoned and the sync must not be repeated.
    pub fn sync(&mut self) -> Result<(), Error> {
        self.flush()?;
        if let Err(source) = self.file.sync_data() {
            return Err(self.poison(source));
        }
        fault::point("segment: synced");
        Ok(())
    }

    /// Writes the end record and makes the segment durable and complete.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn finish(mut self) -> Result<u64, Error> {
        let records = self.records.to_be_bytes();
        self.append(END, &[&records])?;
        self.sync()?;
        fault::point("segment: complete");
        Ok(self.len())
    }

    /// Bytes of the segment so far, buffered ones included.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Whether it holds no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The tag of the header, for the `previous` of the next segment.
    #[must_use]
    pub fn tag(&self) -> [u8; TAG_LEN] {
        self.tag
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn poison(&mut self, source: std::io::Error) -> Error {
        self.poisoned = true;
        Error::Io {
            path: self.path.clone(),
            source,
        }
    }

    fn poisoned_error(&self) -> Error {
        Error::Poisoned {
            path: self.path.clone(),
        }
    }
}

impl core::fmt::Debug for SegmentWriter {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SegmentWriter")
            .field("path", &self.path)
            .field("records", &self.records)
            .finish_non_exhaustive()
    }
}

/// Bytes gathered before they are handed to the kernel.
const BUFFER_LEN_MAX: usize = 1 << 20;
