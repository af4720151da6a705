//! A directory of this machine.
//!
//! Others may be allowed to write there, or own it: below it no link is followed, so that nothing is read, replaced or
//! removed elsewhere. Every part of a name is opened from the directory before it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
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

    /// The target itself. It may be a link: whoever names it says so.
    fn top(&self) -> Result<OwnedFd> {
        match rustix::fs::openat(
            CWD,
            &self.dir,
            FOLDER.difference(OFlags::NOFOLLOW),
            Mode::empty(),
        ) {
            Ok(dir) => Ok(dir),
            // One that was taken away meanwhile, or is not mounted, is not made again on another disk.
            Err(Errno::NOENT | Errno::NOTDIR) => bail!(
                "{} is not there; mount what belongs there, or make the directory",
                self.dir.display()
            ),
            Err(error) => Err(error).with_context(|| format!("opening {}", self.dir.display())),
        }
    }

    /// The directory of an object, and its name there. One that is not there is made, if that is wanted; else `None`.
    fn parent<'a>(&self, name: &'a str, is_to_be_made: bool) -> Result<Option<(OwnedFd, &'a str)>> {
        let mut dir = self.top()?;
        let mut parts: Vec<&str> = name.split('/').collect();
        let last = parts.pop().context("a name is not empty")?;
        for part in parts {
            match self.below(&dir, part)? {
                Some(inner) => dir = inner,
                None if is_to_be_made => {
                    match rustix::fs::mkdirat(&dir, part, Mode::RWXU) {
                        Ok(()) => rustix::fs::fsync(&dir)?,
                        Err(Errno::EXIST) => {}
                        Err(error) => return Err(error).with_context(|| self.said(part)),
                    }
                    let made = self.below(&dir, part)?;
                    dir = made.with_context(|| self.said(part))?;
                }
                None => return Ok(None),
            }
        }
        Ok(Some((dir, last)))
    }

    fn below(&self, dir: &OwnedFd, part: &str) -> Result<Option<OwnedFd>> {
        ensure!(
            !part.is_empty() && part != "." && part != "..",
            "'{part}' is no part of a name"
        );
        match rustix::fs::openat(dir, part, FOLDER, Mode::empty()) {
            Ok(inner) => Ok(Some(inner)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => bail!(
                "{} is a link or no directory; nothing is written there, and nothing removed: take it away, and see who may write into {}",
                self.dir.join(part).display(),
                self.dir.display()
            ),
            Err(error) => Err(error).with_context(|| self.said(part)),
        }
    }

    fn said(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

impl Place for Directory {
    fn list(&self, prefix: &str) -> Result<BTreeMap<String, u64>> {
        let mut found = BTreeMap::new();
        let dir = match self.top() {
            Err(_) if matches!(self.dir.try_exists(), Ok(false)) => return Ok(found),
            dir => dir?,
        };
        let Some(dir) = self.below(&dir, prefix)? else {
            return Ok(found);
        };
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            if name.ends_with(PART) {
                continue;
            }
            // One that is removed meanwhile is not there.
            let Ok(stat) = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            if FileType::from_raw_mode(stat.st_mode).is_file() {
                let len = u64::try_from(stat.st_size).unwrap_or_default();
                found.insert(format!("{prefix}/{name}"), len);
            }
        }
        Ok(found)
    }

    fn put(&self, name: &str, from: &Path) -> Result<()> {
        let (dir, last) = self.parent(name, true)?.context("it was made")?;
        let part = format!("{last}{PART}");
        let copied = || {
            unlink(&dir, &part)?;
            let file = rustix::fs::openat(&dir, &*part, NEW, Mode::RUSR | Mode::WUSR)?;
            let mut file = File::from(file);
            append(from, &mut file)?;
            file.sync_all()?;
            scrinium_segment::fault::point("server: object copied");
            rustix::fs::renameat(&dir, &*part, &dir, last)?;
            anyhow::Ok(rustix::fs::fsync(&dir)?)
        };
        copied().with_context(|| format!("copying {} to {}", from.display(), self.said(name)))
    }

    fn read(&self, name: &str, sink: &mut dyn Write) -> Result<()> {
        let opened = || {
            let parent = self.parent(name, false)?;
            let (dir, last) = parent.ok_or_else(|| std::io::Error::from(ErrorKind::NotFound))?;
            let file = File::from(rustix::fs::openat(&dir, last, OBJECT, Mode::empty())?);
            ensure!(file.metadata()?.is_file(), "it is no file");
            Ok(file)
        };
        let mut file = opened().with_context(|| format!("reading {}", self.said(name)))?;
        std::io::copy(&mut file, sink)?;
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<()> {
        let Some((dir, last)) = self.parent(name, false)? else {
            return Ok(());
        };
        unlink(&dir, last).with_context(|| format!("removing {}", self.said(name)))
    }
}

/// Removes a file, durably; none is as good.
fn unlink(dir: &OwnedFd, name: &str) -> Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) => Ok(rustix::fs::fsync(dir)?),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
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

/// How a directory is opened, a file that is read, and one that is made. A pipe in the place of a file waits for nobody.
const FOLDER: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const OBJECT: OFlags = OFlags::NOFOLLOW
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);
const NEW: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
