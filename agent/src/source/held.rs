//! A way through directories that is held by its descriptors: whoever renames or exchanges what is on it changes nothing
//! of where it stands.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2, readlinkat};
use rustix::io::Errno;

use super::bookmark::FileId;
use super::disk::{Led, Opened, Seen, Way};
use super::entries::Entries;

/// Where a way stands.
#[derive(Debug)]
pub(super) struct Held {
    /// Open without a right to read it.
    here: File,
    /// The directory in which that was found, and under which name; none of a directory that was not entered by name.
    above: Option<(File, OsString)>,
}

impl Held {
    /// At a directory, as it is named: it may be a link itself.
    pub(super) fn at(dir: &Path) -> io::Result<Self> {
        let named = DIRECTORY.difference(OFlags::NOFOLLOW);
        Ok(Self::of(openat(CWD, dir, named, Mode::empty())?.into()))
    }

    /// At a directory to which no link leads.
    pub(super) fn straight(dir: &Path) -> io::Result<Self> {
        let resolve = ResolveFlags::NO_SYMLINKS;
        let here = openat2(CWD, dir, DIRECTORY, Mode::empty(), resolve)?;
        Ok(Self::of(here.into()))
    }

    fn of(here: File) -> Self {
        Self { here, above: None }
    }
}

impl Way for Held {
    fn step(&mut self, name: &OsStr) -> io::Result<Option<(u32, PathBuf)>> {
        // A directory is opened as one: what is mounted there only when somebody goes in is mounted.
        let next = match openat(&self.here, name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let node = File::from(openat(&self.here, name, NODE, Mode::empty())?);
                let metadata = node.metadata()?;
                if metadata.is_symlink() {
                    let target = readlinkat(&node, "", Vec::new())?.into_bytes();
                    return Ok(Some((metadata.uid(), OsString::from_vec(target).into())));
                }
                node
            }
            directory => directory?.into(),
        };
        let above = core::mem::replace(&mut self.here, next);
        self.above = Some((above, name.to_owned()));
        Ok(None)
    }

    fn up(&mut self) -> io::Result<()> {
        let above = openat(&self.here, "..", DIRECTORY, Mode::empty())?;
        *self = Self::of(above.into());
        Ok(())
    }

    fn to_root(&mut self) -> io::Result<()> {
        *self = Self::at(Path::new("/"))?;
        Ok(())
    }

    fn owner(&self) -> io::Result<(FileId, u32)> {
        let metadata = self.here.metadata()?;
        Ok((FileId::of_metadata(&metadata), metadata.uid()))
    }

    fn look(&self) -> io::Result<Option<Seen>> {
        let metadata = self.here.metadata()?;
        if !metadata.is_file() {
            return Ok(None);
        }
        Seen::of(FileId::of_metadata(&metadata), &metadata).map(Some)
    }

    fn open(&self) -> io::Result<Led> {
        let Some((above, name)) = &self.above else {
            return Ok(Led::Nowhere);
        };
        // A device may do something when it is opened, a pipe lets a writer go on.
        let Some(seen) = self.look()? else {
            return Ok(Led::Nowhere);
        };
        let file = match openat(above, &**name, FILE, Mode::empty()) {
            Err(Errno::LOOP | Errno::NOENT | Errno::NXIO) => return Ok(Led::Moved),
            file => File::from(file?),
        };
        let metadata = file.metadata()?;
        let id = FileId::of_metadata(&metadata);
        // Another may have taken its place, of somebody whom nobody asked about.
        if id != seen.id || !metadata.is_file() {
            return Ok(Led::Moved);
        }
        let file = Arc::new(file);
        Ok(Led::To(Opened { file, id }))
    }

    fn list(&self) -> io::Result<Entries> {
        Entries::of_held(&self.here)
    }
}

/// What is at a name, be it a link: to be asked about, not to be read.
const NODE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = NODE.union(OFlags::DIRECTORY);
/// Nobody is waited for, and no terminal becomes ours.
const FILE: OFlags = OFlags::NOFOLLOW
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// What is exchanged behind a way's back is not where the way stands.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "nothing of a test is durable")]
    fn a_way_stands_where_it_went_whatever_takes_its_place() {
        let dir = std::env::temp_dir().join(format!("scrinium-held-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(dir.join("mine/a")).unwrap();
        std::fs::create_dir_all(dir.join("secret/a")).unwrap();
        std::fs::write(dir.join("mine/a/x.log"), "mine").unwrap();
        std::fs::write(dir.join("secret/a/x.log"), "secret").unwrap();
        let mut way = Held::at(&dir).unwrap();
        assert!(way.step(OsStr::new("mine")).unwrap().is_none());
        std::fs::rename(dir.join("mine"), dir.join("away")).unwrap();
        symlink(dir.join("secret"), dir.join("mine")).unwrap();
        assert!(way.step(OsStr::new("a")).unwrap().is_none());
        assert!(way.step(OsStr::new("x.log")).unwrap().is_none());
        let Led::To(opened) = way.open().unwrap() else {
            panic!("it is there");
        };
        let mut text = [0; 16];
        let len = opened.file.read_at(&mut text, 0).unwrap();
        assert_eq!(&text[..len], b"mine");
        // Nor what takes the file's own place.
        std::fs::remove_file(dir.join("away/a/x.log")).unwrap();
        symlink(dir.join("secret/a/x.log"), dir.join("away/a/x.log")).unwrap();
        assert!(matches!(way.open().unwrap(), Led::Moved));
        std::fs::remove_file(dir.join("away/a/x.log")).unwrap();
        std::fs::write(dir.join("away/a/x.log"), "another").unwrap();
        assert!(matches!(way.open().unwrap(), Led::Moved));
        // A link is said, and not followed; nor is a way straight that leads through one.
        let mut way = Held::at(&dir).unwrap();
        let (_, target) = way.step(OsStr::new("mine")).unwrap().unwrap();
        assert_eq!(target, dir.join("secret"));
        assert!(Held::straight(&dir.join("mine/a")).is_err());
        assert!(Held::at(&dir.join("mine/a")).is_ok());
        assert!(Held::at(&dir.join("mine")).is_ok());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
