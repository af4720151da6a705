//! The bytes of a file at an offset, whether it lies there as it was written or compressed since.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bookmark::{HEAD_LEN_MAX, TAIL_LEN_MAX};
use super::disk::{Hole, OpenFile, Stat};

/// What a file is read through.
pub(super) enum Content {
    Plain(Arc<dyn OpenFile>),
    Packed(Box<Packed>),
}

/// What stands somewhere in a compressed file.
struct Place {
    bytes: Vec<u8>,
    /// Nothing comes behind it.
    is_end: bool,
}

/// How a file was compressed after it was rotated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Packing {
    Gzip,
    Zstd,
}

/// A compressed file: read forwards, with a little memory of how it begins, of what came last, and of places that were
/// looked up.
pub(super) struct Packed {
    file: Arc<dyn OpenFile>,
    packing: Packing,
    /// Where it stands; none at the start.
    decoder: Option<Box<dyn Read + Send>>,
    /// How much was decompressed.
    at: u64,
    first: Option<Vec<u8>>,
    /// By their offsets; one that is shorter than was asked for goes to the end.
    places: BTreeMap<u64, Place>,
    /// Bytes decompressed since that was asked last.
    unpacked: u64,
    /// What was decompressed last.
    recent: Vec<u8>,
    /// How much of it is read at most.
    limit: u64,
    /// How long the text is, and its last bytes, when its end was seen.
    end: Option<(u64, Vec<u8>)>,
}

impl Content {
    pub(super) fn new(file: Arc<dyn OpenFile>, packing: Option<Packing>) -> io::Result<Self> {
        Ok(match packing {
            None => Self::Plain(file),
            Some(packing) => Self::Packed(Box::new(Packed {
                limit: unpacked_max(file.stat()?.len),
                decoder: None,
                file,
                packing,
                at: 0,
                first: None,
                places: BTreeMap::new(),
                unpacked: 0,
                recent: Vec::new(),
                end: None,
            })),
        })
    }

    pub(super) fn file(&self) -> &dyn OpenFile {
        match self {
            Self::Plain(file) => &**file,
            Self::Packed(packed) => &*packed.file,
        }
    }

    pub(super) fn stat(&self) -> io::Result<Stat> {
        self.file().stat()
    }

    pub(super) fn is_packed(&self) -> bool {
        matches!(self, Self::Packed(_))
    }

    /// How long it is now; `None` when only its end will tell.
    pub(super) fn len(&self) -> io::Result<Option<u64>> {
        match self {
            Self::Plain(file) => Ok(Some(file.stat()?.len)),
            Self::Packed(_) => Ok(None),
        }
    }

    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end.
    pub(super) fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Self::Plain(file) => read_full(buffer, |rest, done| file.read_at(rest, offset + done)),
            Self::Packed(packed) => packed.read_at(buffer, offset),
        }
    }

    /// How long it is and its last bytes, [`TAIL_LEN_MAX`] at most; `None` of a compressed one whose end was not seen.
    pub(super) fn end(&self) -> io::Result<Option<(u64, Vec<u8>)>> {
        match self {
            Self::Plain(file) => {
                let len = file.stat()?.len;
                let tail_len = usize::try_from(len).unwrap_or(usize::MAX).min(TAIL_LEN_MAX);
                let mut tail = vec![0; tail_len];
                let from = len - tail_len as u64;
                let got = read_full(&mut tail, |rest, done| file.read_at(rest, from + done))?;
                tail.truncate(got);
                Ok(Some((from + got as u64, tail)))
            }
            Self::Packed(packed) => Ok(packed.end.clone()),
        }
    }

    /// Looks up what stands at offsets, each with its length, in one go from the start to the end: later it is read from
    /// memory. Decompresses no more than `budget` bytes, which it takes from that; whether it is done.
    pub(super) fn look_up(
        &mut self,
        places: &[(u64, usize)],
        budget: &mut u64,
    ) -> io::Result<bool> {
        match self {
            Self::Plain(_) => Ok(true),
            Self::Packed(packed) => packed.look_up(places, budget),
        }
    }

    /// Goes to an offset that is read next, no more than `budget` bytes at once; whether it is there.
    pub(super) fn go_to(&mut self, offset: u64, mut budget: u64) -> io::Result<bool> {
        match self {
            Self::Plain(_) => Ok(true),
            Self::Packed(packed) => packed.go_to(offset, &mut budget),
        }
    }

    /// Bytes that were decompressed since this was asked last.
    pub(super) fn take_unpacked(&mut self) -> u64 {
        match self {
            Self::Plain(_) => 0,
            Self::Packed(packed) => core::mem::take(&mut packed.unpacked),
        }
    }

    /// Gives back what decompressing needs where that may be much, until it goes on from the start; not when more than
    /// this was decompressed.
    pub(super) fn let_go(&mut self, at_most: u64) {
        if let Self::Packed(packed) = self
            && packed.packing == Packing::Zstd
            && packed.at <= at_most
        {
            packed.begin();
        }
    }

    /// What hole begins at `offset`, of which nobody wrote a byte.
    pub(super) fn after_hole(&self, offset: u64) -> Option<Hole> {
        match self {
            Self::Plain(file) => file.after_hole(offset),
            Self::Packed(_) => None,
        }
    }
}

impl Packing {
    /// How a file of this name is compressed, as far as we can read it.
    pub(super) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "gz" => Some(Self::Gzip),
            "zst" => Some(Self::Zstd),
            _ => None,
        }
    }

    fn decoder(self, file: &Arc<dyn OpenFile>) -> io::Result<Box<dyn Read + Send>> {
        let file = FromStart {
            file: file.clone(),
            at: 0,
        };
        let file = BufReader::with_capacity(BUFFER_LEN, file);
        Ok(match self {
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(file)?;
                decoder.window_log_max(WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
        })
    }
}

/// The bytes of a file one after the other.
struct FromStart {
    file: Arc<dyn OpenFile>,
    at: u64,
}

impl Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read_at(buffer, self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

impl Packed {
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if let Some(got) = self.known_at(buffer, offset) {
            return Ok(got);
        }
        let is_first = offset == 0 && buffer.len() <= HEAD_LEN_MAX;
        if is_first {
            let mut first = vec![0; HEAD_LEN_MAX];
            let got = self.read_through(&mut first, 0)?;
            first.truncate(got);
            self.first = Some(first);
            return Ok(self.known_at(buffer, 0).unwrap_or(0));
        }
        self.read_through(buffer, offset)
    }

    /// What is remembered of a place, when that is all that is asked for.
    fn known_at(&self, buffer: &mut [u8], offset: u64) -> Option<usize> {
        let is_all = |bytes: &[u8]| bytes.len() < HEAD_LEN_MAX;
        let first = self.first.as_deref();
        let first = first.map(|first| (0, first, is_all(first)));
        let place = self.places.range(..=offset).next_back();
        let place = place.map(|(at, place)| (*at, &*place.bytes, place.is_end));
        first
            .into_iter()
            .chain(place)
            .find_map(|(at, bytes, is_end)| {
                let from = usize::try_from(offset - at).ok()?;
                let known = bytes.get(from.min(bytes.len())..)?;
                if known.len() < buffer.len() && !is_end {
                    return None;
                }
                let len = known.len().min(buffer.len());
                buffer.get_mut(..len)?.copy_from_slice(known.get(..len)?);
                Some(len)
            })
    }

    fn look_up(&mut self, places: &[(u64, usize)], budget: &mut u64) -> io::Result<bool> {
        let mut wanted: Vec<(u64, usize)> = places
            .iter()
            .filter(|(offset, _)| !self.places.contains_key(offset))
            .copied()
            .collect();
        wanted.sort_unstable();
        for (offset, len) in wanted {
            if !self.go_to(offset, budget)? {
                return Ok(false);
            }
            let mut bytes = vec![0; len];
            let got = self.read_through(&mut bytes, offset)?;
            bytes.truncate(got);
            let is_end = got < len;
            self.places.insert(offset, Place { bytes, is_end });
        }
        Ok(true)
    }

    /// From the start again.
    fn begin(&mut self) {
        self.decoder = None;
        self.at = 0;
        self.recent = Vec::new();
    }

    fn go_to(&mut self, offset: u64, budget: &mut u64) -> io::Result<bool> {
        if offset < self.at - self.recent.len() as u64 {
            self.begin();
        }
        let mut skipped = vec![0; SKIP_LEN];
        while self.at < offset {
            if *budget == 0 {
                return Ok(false);
            }
            let left = usize::try_from(offset - self.at).unwrap_or(usize::MAX);
            let part = skipped.get_mut(..left.min(SKIP_LEN)).unwrap_or_default();
            let got = self.advance(part)?;
            *budget = budget.saturating_sub(got as u64);
            if got < part.len() {
                return Ok(true); // it ends before
            }
        }
        Ok(true)
    }

    fn read_through(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.go_to(offset, &mut u64::MAX.clone())?;
        if self.at < offset {
            return Ok(0);
        }
        // What was read already comes from memory, the rest from the decoder.
        let known = usize::try_from(self.at - offset).unwrap_or(usize::MAX);
        let from = self.recent.len().saturating_sub(known);
        let known = self.recent.get(from..).unwrap_or_default();
        let known_len = known.len().min(buffer.len());
        let (head, rest) = buffer.split_at_mut(known_len);
        head.copy_from_slice(known.get(..known_len).unwrap_or_default());
        if rest.is_empty() {
            return Ok(known_len);
        }
        Ok(known_len + self.advance(rest)?)
    }

    /// Decompresses into the whole of `buffer`, or less at the end.
    fn advance(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.limit {
            let limit = self.limit;
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!(
                    "it unpacks to more than {limit} bytes, and has {} itself",
                    self.file.stat()?.len
                ),
            ));
        }
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(self.packing.decoder(&self.file)?),
        };
        let got = read_full(buffer, |rest, _| decoder.read(rest))?;
        let read = buffer.get(..got).unwrap_or_default();
        self.at += got as u64;
        self.unpacked += got as u64;
        let kept = self.recent.len().min(RECENT_LEN.saturating_sub(got));
        self.recent.drain(..self.recent.len() - kept);
        let from = got.saturating_sub(RECENT_LEN);
        self.recent
            .extend_from_slice(read.get(from..).unwrap_or_default());
        if got < buffer.len() {
            let from = self.recent.len().saturating_sub(TAIL_LEN_MAX);
            let tail = self.recent.get(from..).unwrap_or_default();
            self.end = Some((self.at, tail.to_vec()));
        }
        Ok(got)
    }
}

/// The compressed twin's plain name: `app.log.1` of `app.log.1.gz`.
pub(super) fn plain_name(path: &Path) -> PathBuf {
    match Packing::of(path) {
        Some(_) => path.with_extension(""),
        None => path.to_owned(),
    }
}

pub(super) fn read_full(
    buffer: &mut [u8],
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = buffer.get_mut(done..).unwrap_or_default();
        match read(rest, done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// What a compressed file of `len` bytes may unpack to.
fn unpacked_max(len: u64) -> u64 {
    len.saturating_mul(UNPACKED_RATIO_MAX).max(UNPACKED_MIN)
}

/// How many times its own length a compressed file is read for. Logs are 5 to 30 times smaller when compressed,
/// very monotonous ones 100 times; a thousand, of which gzip is capable, is one byte again and again.
const UNPACKED_RATIO_MAX: u64 = 200;
/// So much is read of any: a small file's ratio says little.
const UNPACKED_MIN: u64 = 64 << 20;
/// The largest memory that decompressing one file takes, as a power of two: 32 MiB. zstd's levels up to 20 need no more,
/// and very many files are open at once.
const WINDOW_LOG_MAX: u32 = 25;
const BUFFER_LEN: usize = 64 << 10;
const SKIP_LEN: usize = 64 << 10;
/// Bytes of a compressed file that are read at once.
pub(super) const PACKED_READ_LEN: usize = 128 << 10;
/// More than what is read twice: what was read last, of which the spool may not have taken all, and what identifies
/// a position before it. Beyond that it would have to be decompressed from its start once more, again and again.
const RECENT_LEN: usize = PACKED_READ_LEN + (68 << 10);

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_file_of_few_bytes_that_unpacks_to_many_is_read_up_to_a_limit() {
        let path = std::env::temp_dir().join(format!("scrinium-bomb-{}", std::process::id()));
        let mut encoder =
            zstd::stream::write::Encoder::new(File::create(&path).unwrap(), 1).unwrap();
        for _ in 0..UNPACKED_MIN / (1 << 20) + 1 {
            encoder.write_all(&vec![b'x'; 1 << 20]).unwrap();
        }
        encoder.finish().unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        let mut content = Content::new(file, Some(Packing::Zstd)).unwrap();
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        let error = loop {
            match content.read_at(&mut buffer, at) {
                Ok(got) => at += got as u64,
                Err(error) => break error,
            }
        };
        assert_eq!(at, UNPACKED_MIN);
        assert!(
            error.to_string().contains("unpacks to more than"),
            "{error}"
        );
        assert_eq!(unpacked_max(1 << 30), 200 << 30);
        std::fs::remove_file(path).unwrap();
    }

    /// Who compares a compressed file with what is known does so a little at a time, and once.
    #[test]
    fn places_in_a_compressed_file_are_looked_up_in_steps_and_remembered() {
        let path = std::env::temp_dir().join(format!("scrinium-places-{}", std::process::id()));
        let bytes: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let packed = zstd::stream::encode_all(&*bytes, 1).unwrap();
        File::create(&path).unwrap().write_all(&packed).unwrap();
        let file: Arc<File> = Arc::new(File::open(&path).unwrap());
        let mut content = Content::new(file, Some(Packing::Zstd)).unwrap();
        let mut head = vec![0; HEAD_LEN_MAX];
        assert_eq!(content.read_at(&mut head, 0).unwrap(), HEAD_LEN_MAX);
        content.let_go(HEAD_LEN_MAX as u64);
        // The last of them goes beyond the end.
        let len = bytes.len() as u64;
        let wanted = [
            (len - 10, 257),
            (5_000_000, 257),
            (100, 257),
            (len + 5, 257),
        ];
        let (mut steps, step) = (0, 1 << 20);
        loop {
            steps += 1;
            let mut budget = step;
            let is_done = content.look_up(&wanted, &mut budget).unwrap();
            assert!(content.take_unpacked() <= step + (70 << 10));
            if is_done {
                break;
            }
        }
        assert_eq!(steps, 8);
        for (offset, len) in [
            (0, 1024),
            (100, 257),
            (5_000_001, 256),
            (len - 10, 100),
            (len, 1),
        ] {
            let mut buffer = vec![0; len];
            let got = content.read_at(&mut buffer, offset).unwrap();
            let from = usize::try_from(offset).unwrap();
            assert_eq!(&buffer[..got], &bytes[from..(from + len).min(bytes.len())]);
        }
        assert_eq!(content.take_unpacked(), 0);
        // What is before comes from the start, in steps too.
        let mut steps = 1;
        while !content.go_to(4_000_000, 1 << 20).unwrap() {
            steps += 1;
        }
        assert_eq!((steps, content.take_unpacked()), (4, 4_000_000));
        // One that takes more memory than it may is an error.
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(WINDOW_LOG_MAX + 1).unwrap();
        encoder.write_all(&bytes).unwrap();
        let packed = encoder.finish().unwrap();
        File::create(&path).unwrap().write_all(&packed).unwrap();
        let file: Arc<File> = Arc::new(File::open(&path).unwrap());
        let mut content = Content::new(file, Some(Packing::Zstd)).unwrap();
        content.read_at(&mut head, 0).unwrap_err();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_compressed_file_is_read_anywhere() {
        let path = std::env::temp_dir().join(format!("scrinium-packed-{}", std::process::id()));
        let bytes: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        for packing in [Packing::Gzip, Packing::Zstd] {
            let packed = match packing {
                Packing::Gzip => {
                    let mut encoder =
                        flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    encoder.write_all(&bytes).unwrap();
                    encoder.finish().unwrap()
                }
                Packing::Zstd => zstd::stream::encode_all(&*bytes, 1).unwrap(),
            };
            File::create(&path).unwrap().write_all(&packed).unwrap();
            let file = Arc::new(File::open(&path).unwrap());
            let mut content = Content::new(file, Some(packing)).unwrap();
            for (offset, len) in [
                (0, 10),
                (799_990, 100),
                (5, 70_000),
                (69_000, 10),
                (1, 3),
                (900_000, 5),
            ] {
                let mut buffer = vec![0; len];
                let got = content.read_at(&mut buffer, offset).unwrap();
                let from = usize::try_from(offset).unwrap().min(bytes.len());
                let expected = &bytes[from..(from + len).min(bytes.len())];
                assert_eq!(&buffer[..got], expected, "{packing:?} {offset} {len}");
            }
        }
        std::fs::remove_file(path).unwrap();
    }
}
