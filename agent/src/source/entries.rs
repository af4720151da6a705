//! The names in a directory.

use std::ffi::OsString;
use std::fs::{FileType, ReadDir};
use std::io;
use std::path::Path;

#[cfg(target_os = "linux")]
use rustix::fs::{AtFlags, Dir, DirEntry, FileType as Type, Mode, OFlags, openat, statat};

/// One of them.
pub(super) struct Entry {
    pub(super) name: OsString,
    /// Zero where the directory does not say it.
    pub(super) inode: u64,
    pub(super) kind: Kind,
}

/// What is at a name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    File,
    Directory,
    Link,
    /// A pipe, a socket or a device.
    Odd,
}

impl From<FileType> for Kind {
    fn from(kind: FileType) -> Self {
        match kind {
            kind if kind.is_symlink() => Self::Link,
            kind if kind.is_dir() => Self::Directory,
            kind if kind.is_file() => Self::File,
            _ => Self::Odd,
        }
    }
}

#[cfg(target_os = "linux")]
impl From<Type> for Kind {
    fn from(kind: Type) -> Self {
        match kind {
            Type::Symlink => Self::Link,
            Type::Directory => Self::Directory,
            Type::RegularFile => Self::File,
            Type::Fifo
            | Type::Socket
            | Type::CharacterDevice
            | Type::BlockDevice
            | Type::Unknown => Self::Odd,
        }
    }
}

/// Those of one directory, in its own order.
pub(super) enum Entries {
    Named(ReadDir),
    /// Of a directory that is open, whatever its name leads to by now.
    #[cfg(target_os = "linux")]
    Held(Dir),
}

impl Entries {
    /// Those at a path.
    pub(super) fn of(dir: &Path) -> io::Result<Self> {
        std::fs::read_dir(dir).map(Self::Named)
    }

    /// Those of a directory that is held.
    #[cfg(target_os = "linux")]
    pub(super) fn of_held(dir: &std::fs::File) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = openat(dir, ".", flags, Mode::empty())?;
        Ok(Self::Held(Dir::new(open)?))
    }
}

impl Iterator for Entries {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Named(names) => {
                let entry = names.next()?;
                Some(entry.and_then(|entry| {
                    let kind = entry.file_type()?.into();
                    #[cfg(unix)]
                    let inode = std::os::unix::fs::DirEntryExt::ino(&entry);
                    #[cfg(not(unix))]
                    let inode = 0;
                    let name = entry.file_name();
                    Ok(Entry { name, inode, kind })
                }))
            }
            #[cfg(target_os = "linux")]
            Self::Held(dir) => loop {
                let entry = match dir.read()? {
                    Err(error) => return Some(Err(error.into())),
                    Ok(entry) => entry,
                };
                if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                    return Some(told(dir, &entry));
                }
            },
        }
    }
}

#[cfg(target_os = "linux")]
fn told(dir: &Dir, entry: &DirEntry) -> io::Result<Entry> {
    use std::os::unix::ffi::OsStringExt as _;
    let name = entry.file_name();
    let mut kind = entry.file_type();
    if kind == Type::Unknown {
        // Not every file system says it in its directories.
        let stat = statat(dir.fd()?, name, AtFlags::SYMLINK_NOFOLLOW)?;
        kind = Type::from_raw_mode(stat.st_mode);
    }
    Ok(Entry {
        name: OsString::from_vec(name.to_bytes().to_vec()),
        inode: entry.ino(),
        kind: kind.into(),
    })
}
