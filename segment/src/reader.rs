//! Reads one segment, from its start or at a known place.

use std::fs::File;
use std::path::{Path, PathBuf};

use scrinium_protocol::secret::Secret;

use crate::cipher::Cipher;
use crate::durable::read_exact_at;
use crate::format::{
    END, Error, HEADER_LEN, Keyed, Kind, MAGIC, Place, RECORD_HEAD_LEN, RECORD_HEAD_LEN_U32,
    RECORD_LEN_MAX, SegmentCipher, TAG_LEN,
};

/// An open segment.
pub struct SegmentReader {
    path: PathBuf,
    file: File,
    cipher: SegmentCipher,
    keyed: Keyed,
    number: u64,
    tag: [u8; TAG_LEN],
    previous: [u8; TAG_LEN],
    len: u64,
}

/// One opened record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    pub kind: u8,
    pub payload: Vec<u8>,
    pub place: Place,
}

/// What follows a place in a segment.
#[derive(Debug)]
pub enum Next {
    Record(Record),
    /// The end record: the segment is complete.
    End,
    /// No whole record follows: where the writer was when it stopped, or a damaged tail.
    Torn {
        offset: u64,
        bytes: u64,
    },
}

impl SegmentReader {
    /// Opens the segment at `path` and checks its header.
    ///
    /// # Errors
    /// [`Error::Header`] when it is damaged, of another kind or under another key.
    pub fn open(path: &Path, key: &Secret<32>, kind: Kind) -> Result<Self, Error> {
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let bad = || Error::Header {
            path: path.to_owned(),
        };
        let mut header = [0; HEADER_LEN];
        read_exact_at(&file, &mut header, 0).map_err(|_| bad())?;
        let (head, tag) = header.split_last_chunk::<TAG_LEN>().ok_or_else(bad)?;
        let (rest, previous) = head.split_last_chunk::<TAG_LEN>().ok_or_else(bad)?;
        let (rest, salt) = rest.split_last_chunk::<32>().ok_or_else(bad)?;
        let (rest, number) = rest.split_last_chunk::<8>().ok_or_else(bad)?;
        let Some([found, cipher, ..]) = rest.strip_prefix(MAGIC) else {
            return Err(bad());
        };
        let chosen = Cipher::from_byte(*cipher).ok_or_else(bad)?;
        let keyed = Keyed {
            cipher: chosen,
            kind,
            salt: *salt,
        };
        let cipher = keyed.cipher(key);
        if *found != kind.to_byte() || cipher.header_tag(head) != *tag {
            return Err(bad());
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            cipher,
            keyed,
            number: u64::from_be_bytes(*number),
            tag: *tag,
            previous: *previous,
            len,
        })
    }

    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What it is sealed with.
    #[must_use]
    pub fn cipher(&self) -> Cipher {
        self.keyed.cipher
    }

    /// The tag of this segment's header.
    #[must_use]
    pub fn tag(&self) -> [u8; TAG_LEN] {
        self.tag
    }

    /// The tag of the header of the segment before.
    #[must_use]
    pub fn previous(&self) -> [u8; TAG_LEN] {
        self.previous
    }

    /// Bytes of the file when it was opened.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no record can be in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len <= HEADER_LEN as u64
    }

    /// Where the first record lies.
    #[must_use]
    pub fn start(&self) -> Cursor {
        Cursor {
            offset: HEADER_LEN as u64,
            index: 0,
        }
    }

    /// Reads the record at the cursor and moves it on.
    ///
    /// A record that does not authenticate and reaches the end of the file is a torn tail; one with
    /// bytes behind it is damage.
    ///
    /// # Errors
    /// [`Error::Record`] for damage, [`Error::Io`] when the disk does not answer.
    pub fn next(&self, cursor: &mut Cursor) -> Result<Next, Error> {
        let torn = Next::Torn {
            offset: cursor.offset,
            bytes: self.len - cursor.offset.min(self.len),
        };
        let left = self.len.saturating_sub(cursor.offset);
        if left < RECORD_HEAD_LEN as u64 {
            return Ok(torn);
        }
        let mut head = [0; RECORD_HEAD_LEN];
        self.read_exact(&mut head, cursor.offset)?;
        let [a, b, c, d, _] = head;
        let sealed_len = u32::from_be_bytes([a, b, c, d]);
        let whole = u64::from(sealed_len) + RECORD_HEAD_LEN as u64;
        if whole > left || sealed_len as usize > RECORD_LEN_MAX + TAG_LEN {
            return Ok(torn);
        }
        let place = Place {
            offset: cursor.offset,
            len: sealed_len.saturating_add(RECORD_HEAD_LEN_U32),
            index: cursor.index,
        };
        let record = match self.read(place) {
            Ok(record) => record,
            Err(Error::Record { .. }) if whole == left => return Ok(torn),
            Err(error) => return Err(error),
        };
        cursor.offset += whole;
        cursor.index += 1;
        if record.kind == END {
            return Ok(Next::End);
        }
        Ok(Next::Record(record))
    }

    /// The kind and place of the record at `cursor`, which is moved over it, unopened; `None` when no whole one
    /// follows.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk does not answer.
    pub fn peek(&self, cursor: &mut Cursor) -> Result<Option<(u8, Place)>, Error> {
        let at = *cursor;
        if self.len.saturating_sub(at.offset) < RECORD_HEAD_LEN as u64 {
            return Ok(None);
        }
        let mut head = [0; RECORD_HEAD_LEN];
        self.read_exact(&mut head, at.offset)?;
        let [a, b, c, d, kind] = head;
        let place = Place {
            offset: at.offset,
            len: u32::from_be_bytes([a, b, c, d]).saturating_add(RECORD_HEAD_LEN_U32),
            index: at.index,
        };
        Ok(self.skip(cursor, at)?.then_some((kind, place)))
    }

    /// Moves `cursor` over the damaged record at `at`, trusting its length; `false` when nothing can
    /// follow it.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk does not answer.
    pub fn skip(&self, cursor: &mut Cursor, at: Cursor) -> Result<bool, Error> {
        let left = self.len.saturating_sub(at.offset);
        if left < RECORD_HEAD_LEN as u64 {
            return Ok(false);
        }
        let mut head = [0; RECORD_HEAD_LEN];
        self.read_exact(&mut head, at.offset)?;
        let [a, b, c, d, _] = head;
        let whole = u64::from(u32::from_be_bytes([a, b, c, d])) + RECORD_HEAD_LEN as u64;
        if whole > left {
            return Ok(false);
        }
        cursor.offset = at.offset + whole;
        cursor.index = at.index + 1;
        Ok(true)
    }

    /// Reads the record at a known place.
    ///
    /// # Errors
    /// [`Error::Record`] when it is damaged or is not the one that was there.
    pub fn read(&self, place: Place) -> Result<Record, Error> {
        self.open_record(&self.cipher, place, self.read_sealed(place)?)
    }

    /// Reads a record that was added with [`crate::writer::SegmentWriter::append_under`] and `key`.
    ///
    /// # Errors
    /// As [`SegmentReader::read`].
    pub fn read_under(&self, key: &Secret<32>, place: Place) -> Result<Record, Error> {
        self.open_record(&self.keyed.cipher(key), place, self.read_sealed(place)?)
    }

    /// Reads a record as it lies on the disk, sealed.
    ///
    /// # Errors
    /// As [`SegmentReader::read`]; whether it is the one that was there only its key tells.
    pub fn read_sealed(&self, place: Place) -> Result<Vec<u8>, Error> {
        let damaged = || self.damaged(place);
        let len = place.len as usize;
        if !(RECORD_HEAD_LEN + TAG_LEN..=RECORD_LEN_MAX + RECORD_HEAD_LEN + TAG_LEN).contains(&len)
        {
            return Err(damaged());
        }
        let mut text = vec![0; len];
        match read_exact_at(&self.file, &mut text, place.offset) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(damaged());
            }
            Err(source) => {
                return Err(Error::Io {
                    path: self.path.clone(),
                    source,
                });
            }
        }
        let [a, b, c, d, ..] = *text.first_chunk::<RECORD_HEAD_LEN>().ok_or_else(damaged)?;
        if u32::from_be_bytes([a, b, c, d]) as usize + RECORD_HEAD_LEN != len {
            return Err(damaged());
        }
        Ok(text)
    }

    fn open_record(
        &self,
        cipher: &SegmentCipher,
        place: Place,
        mut text: Vec<u8>,
    ) -> Result<Record, Error> {
        let damaged = || self.damaged(place);
        let mut payload = text.split_off(RECORD_HEAD_LEN);
        let [.., kind] = *text.first_chunk::<RECORD_HEAD_LEN>().ok_or_else(damaged)?;
        if !cipher.open(place.index, &text, &mut payload) {
            return Err(damaged());
        }
        Ok(Record {
            kind,
            payload,
            place,
        })
    }

    fn damaged(&self, place: Place) -> Error {
        Error::Record {
            path: self.path.clone(),
            offset: place.offset,
            index: place.index,
        }
    }

    fn read_exact(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        read_exact_at(&self.file, buffer, offset).map_err(|source| Error::Io {
            path: self.path.clone(),
            source,
        })?;
        Ok(())
    }
}

/// A position between records.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cursor {
    pub offset: u64,
    pub index: u64,
}

impl core::fmt::Debug for SegmentReader {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SegmentReader")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::writer::SegmentWriter;

    #[test]
    fn records_read_back_in_order_and_at_their_places() {
        let dir = Dir::new("order");
        let (path, places) = dir.write(&[b"one", b"", b"three"], true);

        let reader = SegmentReader::open(&path, &key(), Kind::Log).unwrap();
        let mut cursor = reader.start();
        for expected in [&b"one"[..], b"", b"three"] {
            let Next::Record(record) = reader.next(&mut cursor).unwrap() else {
                panic!()
            };
            assert_eq!(record.payload, expected);
        }
        assert!(matches!(reader.next(&mut cursor), Ok(Next::End)));
        assert_eq!(reader.read(places[2]).unwrap().payload, b"three");
        let swapped = Place {
            index: 1,
            ..places[2]
        };
        assert!(reader.read(swapped).is_err());
    }

    #[test]
    fn a_record_under_a_key_of_its_own_opens_with_that_alone() {
        let dir = Dir::new("under");
        let own = Secret::new([9; 32]);
        let mut writer =
            SegmentWriter::create(&dir.0, &key(), Cipher::default(), Kind::Log, 7, [0; 16])
                .unwrap();
        let path = writer.path().to_owned();
        let first = writer.append_under(&own, 1, &[b"one"]).unwrap();
        let second = writer.append(2, &[b"two"]).unwrap();
        writer.finish().unwrap();

        let reader = SegmentReader::open(&path, &key(), Kind::Log).unwrap();
        assert_eq!(reader.read_under(&own, first).unwrap().payload, b"one");
        assert!(reader.read(first).is_err());
        assert!(reader.read_under(&Secret::new([8; 32]), first).is_err());
        assert!(reader.read_under(&own, second).is_err());
        assert_eq!(reader.read(second).unwrap().payload, b"two");
        assert_eq!(reader.read_sealed(first).unwrap().len(), 5 + 3 + 16);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let dir = Dir::new("flip");
        let (path, _) = dir.write(&[b"one", b"two"], true);
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            dir.replace(&path, &bad);
            assert!(!reads_whole(&path, 2), "byte {at}");
        }
    }

    #[test]
    fn a_tail_cut_at_any_length_leaves_the_records_before_it() {
        let dir = Dir::new("cut");
        let (path, places) = dir.write(&[b"one", b"two"], false);
        let good = std::fs::read(&path).unwrap();
        for len in HEADER_LEN..good.len() {
            dir.replace(&path, &good[..len]);
            let reader = SegmentReader::open(&path, &key(), Kind::Log).unwrap();
            let mut cursor = reader.start();
            let mut whole = 0;
            loop {
                match reader.next(&mut cursor).unwrap() {
                    Next::Record(_) => whole += 1,
                    Next::Torn { .. } => break,
                    Next::End => panic!("no end was written"),
                }
            }
            let expected = places
                .iter()
                .filter(|p| p.offset + u64::from(p.len) <= len as u64);
            assert_eq!(whole, expected.count(), "cut at {len}");
        }
    }

    #[test]
    fn another_key_or_kind_does_not_open_it() {
        let dir = Dir::new("key");
        let (path, _) = dir.write(&[b"one"], true);
        assert!(SegmentReader::open(&path, &Secret::new([2; 32]), Kind::Log).is_err());
        assert!(SegmentReader::open(&path, &key(), Kind::Spool).is_err());
    }

    /// A segment written by version 0.1.0: it must open for ever.
    #[test]
    fn the_first_format_opens() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/segment-1.log");
        let reader = SegmentReader::open(&path, &key(), Kind::Log).unwrap();
        assert_eq!((reader.number(), reader.previous()), (7, [0; 16]));
        assert!(reads_whole(&path, 2));
    }

    fn reads_whole(path: &Path, records: usize) -> bool {
        let Ok(reader) = SegmentReader::open(path, &key(), Kind::Log) else {
            return false;
        };
        let mut cursor = reader.start();
        for _ in 0..records {
            if !matches!(reader.next(&mut cursor), Ok(Next::Record(_))) {
                return false;
            }
        }
        matches!(reader.next(&mut cursor), Ok(Next::End))
    }

    #[test]
    fn a_segment_of_any_cipher_reads_back_and_says_which_it_is() {
        for cipher in Cipher::ALL {
            let dir = Dir::new(cipher.name());
            let mut writer =
                SegmentWriter::create(&dir.0, &key(), cipher, Kind::Log, 7, [0; 16]).unwrap();
            let path = writer.path().to_owned();
            writer.append(1, &[b"one", b"two"]).unwrap();
            writer.finish().unwrap();
            let reader = SegmentReader::open(&path, &key(), Kind::Log).unwrap();
            assert_eq!(reader.cipher(), cipher);
            let Next::Record(record) = reader.next(&mut reader.start()).unwrap() else {
                panic!("a record was written");
            };
            assert_eq!(record.payload, b"onetwo");
            // Nothing opens as if it were sealed with another.
            let bytes = std::fs::read(&path).unwrap();
            for other in 0..=4 {
                let mut changed = bytes.clone();
                changed[9] = other;
                dir.replace(&path, &changed);
                let opened = SegmentReader::open(&path, &key(), Kind::Log);
                assert_eq!(opened.is_ok(), other == cipher.to_byte());
            }
        }
    }

    fn key() -> Secret<32> {
        Secret::new([1; 32])
    }

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir =
                std::env::temp_dir().join(format!("scrinium-reader-{name}-{}", std::process::id()));
            drop(std::fs::remove_dir_all(&dir));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn write(&self, payloads: &[&[u8]], finish: bool) -> (PathBuf, Vec<Place>) {
            let mut writer =
                SegmentWriter::create(&self.0, &key(), Cipher::default(), Kind::Log, 7, [0; 16])
                    .unwrap();
            let path = writer.path().to_owned();
            let places = payloads
                .iter()
                .map(|p| writer.append(1, &[p]).unwrap())
                .collect();
            if finish {
                writer.finish().unwrap();
            } else {
                writer.sync().unwrap();
            }
            (path, places)
        }

        fn replace(&self, path: &Path, bytes: &[u8]) {
            crate::durable::write_file(path, bytes).unwrap();
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }
}
