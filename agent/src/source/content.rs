//! The bytes of a file at an offset, whether it lies there as it was written or compressed since.

use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Hole, OpenFile, Stat};

/// What a file is read through.
pub(super) enum Content {
    Plain(Arc<dyn OpenFile>),
    Packed(Box<Packed>),
}

/// How a file was compressed after it was rotated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Packing {
    Gzip,
    Zstd,
}

/// A compressed file: read forwards, with a little memory of what came last.
pub(super) struct Packed {
    file: Arc<dyn OpenFile>,
    packing: Packing,
    decoder: Box<dyn Read + Send>,
    /// How much was decompressed.
    at: u64,
    /// What was decompressed last.
    recent: Vec<u8>,
    /// How much of it is read at most.
    limit: u64,
}

impl Content {
    pub(super) fn new(file: Arc<dyn OpenFile>, packing: Option<Packing>) -> io::Result<Self> {
        Ok(match packing {
            None => Self::Plain(file),
            Some(packing) => Self::Packed(Box::new(Packed {
                limit: unpacked_max(file.stat()?.len),
                decoder: packing.decoder(&file)?,
                file,
                packing,
                at: 0,
                recent: Vec::new(),
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
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
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
        if offset < self.at - self.recent.len() as u64 {
            self.decoder = self.packing.decoder(&self.file)?;
            self.at = 0;
            self.recent.clear();
        }
        let mut skipped = vec![0; SKIP_LEN];
        while self.at < offset {
            let left = usize::try_from(offset - self.at).unwrap_or(usize::MAX);
            let part = skipped.get_mut(..left.min(SKIP_LEN)).unwrap_or_default();
            if self.advance(part)? < part.len() {
                return Ok(0);
            }
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
        let decoder = &mut self.decoder;
        let got = read_full(buffer, |rest, _| decoder.read(rest))?;
        let read = buffer.get(..got).unwrap_or_default();
        self.at += got as u64;
        let kept = self.recent.len().min(RECENT_LEN.saturating_sub(got));
        self.recent.drain(..self.recent.len() - kept);
        let from = got.saturating_sub(RECENT_LEN);
        self.recent
            .extend_from_slice(read.get(from..).unwrap_or_default());
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

fn read_full(
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
