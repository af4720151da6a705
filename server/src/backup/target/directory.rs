//! A directory of this machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use scrinium_segment::durable;

use super::{PART, Place};

/// Objects are files.
pub(super) struct Directory {
    dir: PathBuf,
}

impl Directory {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }
}

impl Place for Directory {
    fn list(&self, prefix: &str) -> Result<BTreeMap<String, u64>> {
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

    fn put(&self, name: &str, from: &Path) -> Result<()> {
        // One that was taken away meanwhile, or is not mounted, is not made again on another disk.
        ensure!(
            self.dir.is_dir(),
            "{} is not there; mount what belongs there, or make the directory",
            self.dir.display()
        );
        let to = self.dir.join(name);
        if let Some(parent) = to.parent() {
            durable::create_dir(parent)?;
        }
        copy(from, &to)
    }

    fn read(&self, name: &str, sink: &mut dyn Write) -> Result<()> {
        append(&self.dir.join(name), sink)
    }

    fn remove(&self, name: &str) -> Result<()> {
        Ok(durable::remove(&self.dir.join(name))?)
    }
}

/// Copies a file; what was there is replaced when the whole is durable.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = replace(to, |file| append(from, file));
    copied.with_context(|| format!("copying {} to {}", from.display(), to.display()))
}

/// Makes a file of what `fill` writes; what was there is replaced when the whole is durable.
pub(super) fn replace(to: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let mut part = to.as_os_str().to_owned();
    part.push(PART);
    let part = PathBuf::from(part);
    durable::remove(&part)?;
    let mut file = durable::create_new(&part)?;
    fill(&mut file)?;
    file.sync_all()?;
    scrinium_segment::fault::point("server: object copied");
    Ok(durable::rename(&part, to)?)
}

fn append(from: &Path, sink: &mut dyn Write) -> Result<()> {
    let file = File::open(from);
    let mut file = file.with_context(|| format!("reading {}", from.display()))?;
    std::io::copy(&mut file, sink)?;
    Ok(())
}
