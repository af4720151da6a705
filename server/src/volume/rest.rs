//! How a clean stop leaves the files of a volume, so that the next start sees what somebody changed meanwhile.
//!
//! ```text
//! stop: [announce] ─▶ row "it lies" ─▶ the catalogue is closed ─▶ [write]
//! start: [look] ─▶ the catalogue is opened ─▶ [Found::compare] ─▶ losses ─▶ row "it does not" ─▶ [discard]
//! ```
//!
//! `DATA/rest`, a sealed copy (docs/SEGMENT.md), has names and lengths of the files of log, archive and evidence,
//! and SHA-256 of the small ones. The start compares and removes it. It is a second look: everything in it is
//! protected by itself too, but for what no reader ever looks at, as unused bytes of the catalogue's file.
//! That it must be there, a row of the catalogue says.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result};
use data_encoding::HEXLOWER;
use scrinium_segment::{durable, fault};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{ACKED_DIR, ARCHIVE_DIR, EVIDENCE_DIR, LOG_DIR, Volume};
use crate::backup::copy;
use crate::catalogue::Catalogue;
use crate::catalogue::records::RestRecord;

#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Rest {
    /// By their place below the data directory.
    files: BTreeMap<String, Resting>,
    /// It only announces what is to be written, for a catalogue written so often: the stop was cut off.
    #[serde(default)]
    announced: Option<u64>,
}

#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Resting {
    len: u64,
    /// In hexadecimal; of small files alone.
    sha256: Option<String>,
}

/// What is not as a clean stop left it.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    /// Files that hold evidence, and what is wrong with each.
    pub(crate) evidence: Vec<(String, String)>,
    /// Files that are made again, in sentences.
    pub(crate) caches: Vec<String>,
}

/// Says in the catalogue that how the files lie is written down, which the stop does next.
pub(crate) fn announce(volume: &Volume, catalogue: &Catalogue) -> Result<()> {
    let rest = Rest {
        files: BTreeMap::new(),
        announced: Some(catalogue.generation() + 1),
    };
    let key = volume.key("rest");
    copy::write(&volume.dir().join(REST_FILE), &key, NUMBER, &rest, &[])?;
    fault::point("server: rest announced");
    // If we die from now on before it is written, the start finds the announcement of this very write.
    catalogue.put(&RestRecord { lies: true })
}

/// Writes down how the files lie; the last thing a clean stop does.
pub(crate) fn write(volume: &Volume) -> Result<()> {
    let rest = Rest {
        files: files(volume.dir())?,
        announced: None,
    };
    let key = volume.key("rest");
    copy::write(&volume.dir().join(REST_FILE), &key, NUMBER, &rest, &[])
}

/// Adds a file that a command on the stopped volume wrote, so that it is missed when it goes.
pub(crate) fn add(volume: &Volume, name: &str) -> Result<()> {
    let (path, key) = (volume.dir().join(REST_FILE), volume.key("rest"));
    let mut rest = Rest {
        files: BTreeMap::new(),
        announced: None,
    };
    if path.try_exists()? {
        // One that cannot be read stays as it is: the start says so.
        let Ok((found, _)) = copy::read::<Rest>(&path, &key) else {
            return Ok(());
        };
        rest = found;
        rest.announced = None;
    }
    let written = resting(&volume.dir().join(name), true)?;
    rest.files.insert(name.to_owned(), written);
    copy::write(&path, &key, NUMBER, &rest, &[])
}

/// Forgets how the files lay but for `name`: a command makes the others anew.
pub(crate) fn forget_but(volume: &Volume, name: &str) -> Result<()> {
    discard(volume)?;
    if volume.dir().join(name).try_exists()? {
        add(volume, name)?;
    }
    Ok(())
}

/// How the files lie before anything is opened, and what the last clean stop wrote down of it.
pub(crate) struct Found {
    left: Option<Result<Rest>>,
    files: BTreeMap<String, Resting>,
}

/// Looks how the files lie; changes nothing.
///
/// # Errors
/// The disk does not answer.
pub(crate) fn look(volume: &Volume) -> Result<Found> {
    let path = volume.dir().join(REST_FILE);
    let left = path
        .try_exists()?
        .then(|| Ok(copy::read::<Rest>(&path, &volume.key("rest"))?.0));
    Ok(Found {
        left,
        files: files(volume.dir())?,
    })
}

impl Found {
    /// Compares the two. What the catalogue says of them is of the state before anything was written to it.
    pub(crate) fn compare(self, catalogue: &Catalogue) -> Result<Changed> {
        let lies = catalogue.load::<RestRecord>()?.pop();
        let lies = lies.is_some_and(|record| record.lies);
        let mut changed = Changed::default();
        let mut problem = |problem: String| changed.evidence.push((REST_FILE.into(), problem));
        match self.left {
            None if lies => problem(
                "it is gone: what was done to the stopped volume since is not known".to_owned(),
            ),
            None => {} // killed, or of version 0.1.0
            Some(Err(error)) => problem(format!("it was altered: {error:#}")),
            Some(Ok(Rest {
                announced: Some(generation),
                ..
            })) if lies && generation != catalogue.generation() => {
                problem("it was put back".to_owned());
            }
            // The stop was cut off between the two.
            Some(Ok(Rest {
                announced: Some(_), ..
            })) => {}
            Some(Ok(mut rest)) => {
                if !lies {
                    // A start that was cut off had compared the rest.
                    rest.files.retain(|name, _| name == ACTS_FILE);
                }
                changed.compare(&rest.files, &self.files);
            }
        }
        Ok(changed)
    }
}

/// What was found is written down: the next stop writes anew how the files lie.
pub(crate) fn taken(volume: &Volume, catalogue: &Catalogue) -> Result<()> {
    let lies = catalogue.load::<RestRecord>()?.pop();
    if lies.is_none_or(|record| record.lies) {
        catalogue.put(&RestRecord { lies: false })?;
    }
    fault::point("server: rest taken");
    discard(volume)
}

/// It must be there at the next start, whatever is in it.
pub(crate) fn expect(catalogue: &Catalogue) -> Result<()> {
    catalogue.put(&RestRecord { lies: true })
}

fn discard(volume: &Volume) -> Result<()> {
    durable::remove(&volume.dir().join(REST_FILE))?;
    Ok(())
}

impl Changed {
    fn compare(&mut self, left: &BTreeMap<String, Resting>, found: &BTreeMap<String, Resting>) {
        for (name, resting) in left {
            let problem = match found.get(name) {
                None => "is missing since the last stop",
                Some(now) if now.len < resting.len => "was cut since the last stop",
                Some(now) if now != resting => "was changed since the last stop",
                Some(_) => continue,
            };
            if CACHES.contains(&&**name) {
                self.caches
                    .push(format!("{name} {problem}: it is made again"));
            } else {
                self.evidence.push((name.clone(), format!("it {problem}")));
            }
        }
    }
}

/// The files there are.
fn files(dir: &Path) -> Result<BTreeMap<String, Resting>> {
    let mut files = BTreeMap::new();
    for name in SMALL.into_iter().chain([ACTS_FILE]) {
        let path = dir.join(name);
        if path.try_exists()? {
            files.insert(name.to_owned(), resting(&path, true)?);
        }
    }
    for sub in [LOG_DIR, ACKED_DIR, ARCHIVE_DIR, EVIDENCE_DIR] {
        let path = dir.join(sub);
        if !path.try_exists()? {
            continue; // of version 0.1.0
        }
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            if !entry.file_type()?.is_file() {
                continue;
            }
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| !name.ends_with(".new")) else {
                continue;
            };
            // Checkpoints and tokens are small; segments authenticate themselves.
            let is_small =
                SMALL_EXTENSIONS.iter().any(|end| name.ends_with(end)) || !name.contains('.');
            files.insert(format!("{sub}/{name}"), resting(&entry.path(), is_small)?);
        }
    }
    Ok(files)
}

fn resting(path: &Path, is_hashed: bool) -> Result<Resting> {
    let read = || format!("reading {}", path.display());
    let mut file = File::open(path).with_context(read)?;
    let len = file.metadata().with_context(read)?.len();
    let sha256 = if is_hashed {
        let mut digest = Sha256::new();
        std::io::copy(&mut file, &mut Hashing(&mut digest)).with_context(read)?;
        Some(HEXLOWER.encode(&digest.finalize()))
    } else {
        None
    };
    Ok(Resting { len, sha256 })
}

struct Hashing<'a>(&'a mut Sha256);

impl std::io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Acts on the stopped volume that wait for the audit trail.
pub(crate) const ACTS_FILE: &str = "acts.pending";
const REST_FILE: &str = "rest";
/// Names the file while it is written; 0 and 1 are the copies' of the catalogue.
const NUMBER: u64 = 2;
const SMALL: [&str; 5] = [
    "catalogue.db",
    "catalogue.db-wal",
    "catalogue.count",
    "keys.copy",
    "catalogue.copy",
];
const SMALL_EXTENSIONS: [&str; 4] = [".tsr", ".checkpoint", ".ack", ".key"];
/// What is made again from what is there.
const CACHES: [&str; 3] = ["keys.copy", "catalogue.copy", "evidence/memory"];
