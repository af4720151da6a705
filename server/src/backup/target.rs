//! Where a backup lies: a directory, which may be a mounted one.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use scrinium_segment::durable;

/// A place for objects that are written once.
pub(crate) struct Target {
    dir: PathBuf,
}

impl Target {
    /// The directory named on a command line or in the configuration.
    pub(crate) fn open(location: &str) -> Result<Self> {
        anyhow::ensure!(
            !location.contains("://"),
            "'{location}' must be a directory; mount what is elsewhere"
        );
        let dir = PathBuf::from(location);
        anyhow::ensure!(dir.is_absolute(), "'{location}' must be an absolute path");
        Ok(Self { dir })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What lies below `prefix`, with its length.
    pub(crate) fn list(&self, prefix: &str) -> Result<BTreeMap<String, u64>> {
        let dir = self.dir.join(prefix);
        let mut found = BTreeMap::new();
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(error).with_context(|| format!("reading {}", dir.display())),
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.ends_with(PART) && entry.metadata()?.is_file() {
                found.insert(format!("{prefix}/{name}"), entry.metadata()?.len());
            }
        }
        Ok(found)
    }

    /// Copies a file there; durable when this returns.
    pub(crate) fn put(&self, name: &str, from: &Path) -> Result<()> {
        let to = self.dir.join(name);
        if let Some(parent) = to.parent() {
            durable::create_dir(parent)?;
        }
        copy(from, &to).with_context(|| format!("copying {} to {}", from.display(), to.display()))
    }

    /// Copies a file from there.
    pub(crate) fn get(&self, name: &str, to: &Path) -> Result<()> {
        let from = self.dir.join(name);
        copy(&from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))
    }

    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        durable::remove(&self.dir.join(name))?;
        Ok(())
    }
}

/// Copies a file; what was there is replaced when the whole is durable.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut part = to.as_os_str().to_owned();
    part.push(PART);
    let part = PathBuf::from(part);
    durable::remove(&part)?;
    let mut source = File::open(from)?;
    let mut file = durable::create_new(&part)?;
    std::io::copy(&mut source, &mut file)?;
    file.sync_all()?;
    scrinium_segment::fault::point("server: object copied");
    durable::rename(&part, to)
}

const PART: &str = ".part";
