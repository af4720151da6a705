//! The members of a tar file (POSIX.1-1988 ustar).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek as _, SeekFrom};

use anyhow::{Context as _, Result, bail};

/// Where a member lies, and how long it is.
pub(crate) type Place = (u64, u64);

/// The members, by name. Two of one name are an error: programs would not agree which one counts.
pub(crate) fn members(file: &mut File) -> Result<BTreeMap<String, Place>> {
    let mut found = BTreeMap::new();
    let end = file.metadata()?.len();
    let mut at = 0;
    while at + 512 <= end {
        file.seek(SeekFrom::Start(at))?;
        let mut header = [0; 512];
        file.read_exact(&mut header)?;
        let field = |from: usize, to: usize| {
            let text = header
                .get(from..to)
                .and_then(|bytes| str::from_utf8(bytes).ok())
                .unwrap_or_default();
            text.trim_matches(['\0', ' ']).to_owned()
        };
        let name = field(0, 100);
        if name.is_empty() {
            break;
        }
        let sum: u64 = header
            .iter()
            .enumerate()
            .map(|(i, &byte)| {
                if (148..156).contains(&i) {
                    32
                } else {
                    u64::from(byte)
                }
            })
            .sum();
        if u64::from_str_radix(&field(148, 156), 8).ok() != Some(sum) {
            bail!("the package's entry for {name} is damaged");
        }
        let len = u64::from_str_radix(&field(124, 136), 8)
            .ok()
            .filter(|len| at + 512 + len <= end);
        let len = len.with_context(|| format!("the package is cut in {name}"))?;
        if found.contains_key(&name) {
            bail!("the package holds {name} twice");
        }
        found.insert(name, (at + 512, len));
        at += 512 + len.div_ceil(512) * 512;
    }
    Ok(found)
}

/// A reader of one member, with a file position of its own.
pub(crate) fn part(file: &File, (start, len): Place) -> Result<impl Read + use<>> {
    Ok(BufReader::with_capacity(
        1 << 18,
        Part {
            file: file.try_clone()?,
            at: start,
            end: start + len,
        },
    ))
}

struct Part {
    file: File,
    at: u64,
    end: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        // Clones of a file share one position: set it for every read.
        self.file.seek(SeekFrom::Start(self.at))?;
        let n = (&self.file).take(self.end - self.at).read(buffer)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// A member that is read as a whole.
pub(crate) fn small(file: &mut File, (start, len): Place, name: &str) -> Result<Vec<u8>> {
    if len > SMALL_LEN_MAX {
        bail!("{name} is longer than any can be");
    }
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What the intervals of very many streams need.
const SMALL_LEN_MAX: u64 = 128 << 20;
