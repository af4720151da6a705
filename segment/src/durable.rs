//! Files that survive a power cut.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Replaces `path` with `bytes`, readable by its owner only: after this returns, a crash leaves
/// either the old file or the new one, whole. The new one begins as a file of a name that nobody can
/// guess, which must not exist: whoever may write into the directory can neither lay a link there nor
/// wait with a file of his own. A crash before the rename leaves it; see [`remove_left`].
///
/// # Errors
/// Those of the file system; the old file is then still there.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_of(path)?;
    let mut options = OpenOptions::new();
    let mut file = private(options.write(true).create_new(true)).open(&temporary)?;
    let replaced = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| rename(&temporary, path));
    if replaced.is_err() {
        let _best_effort = std::fs::remove_file(&temporary);
    }
    replaced
}

/// Beside `path`: its name, something random, and [`TEMPORARY`].
fn temporary_of(path: &Path) -> io::Result<PathBuf> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    let random = crate::random::<8>().map_err(io::Error::other)?;
    name.push(format!(".{:016x}.{TEMPORARY}", u64::from_le_bytes(random)));
    Ok(path.with_file_name(name))
}

/// Removes what [`write_file`] left in `dir`, and in the directories in it, when the process died in the
/// middle. To be called while nobody else writes there.
///
/// # Errors
/// Those of the file system.
pub fn remove_left(dir: &Path) -> io::Result<()> {
    let mut dirs = vec![(dir.to_owned(), 0)];
    while let Some((dir, depth)) = dirs.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() && depth < LEFT_DEPTH_MAX {
                dirs.push((entry.path(), depth + 1));
            } else if kind.is_file() && entry.file_name().to_str().is_some_and(is_temporary) {
                remove(&entry.path())?;
            }
        }
    }
    Ok(())
}

/// Whether a file of this name is one that [`write_file`] did not finish.
#[must_use]
pub fn is_temporary(name: &str) -> bool {
    let random = name
        .strip_suffix(TEMPORARY)
        .and_then(|name| name.strip_suffix('.'))
        .and_then(|name| name.rsplit_once('.'))
        .map(|(_, random)| random);
    random.is_some_and(|random| {
        random.len() == RANDOM_LEN && random.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Renames a file of the same directory; durable when this returns.
///
/// # Errors
/// Those of the file system.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "this is the durable rename")]
    std::fs::rename(from, to)?;
    sync_parent(to)?;
    Ok(())
}

/// Creates a file that must not exist, readable by its owner only, its name durable.
///
/// # Errors
/// Those of the file system; [`io::ErrorKind::AlreadyExists`] among them.
pub fn create_new(path: &Path) -> io::Result<File> {
    let file = private(OpenOptions::new().read(true).write(true).create_new(true)).open(path)?;
    sync_parent(path)?;
    Ok(file)
}

/// Removes a file; durable when this returns. A file that is not there is not an error, so an
/// interrupted removal can be repeated.
///
/// # Errors
/// Those of the file system.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    sync_parent(path)?;
    Ok(())
}

/// Creates a directory and its parents, the last one open to its owner only. One that is there stays as it
/// is: see [`close_dir`].
///
/// # Errors
/// Those of the file system.
pub fn create_dir(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    #[cfg(unix)]
    let builder = {
        use std::os::unix::fs::DirBuilderExt as _;
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        builder
    };
    #[cfg(not(unix))]
    let builder = DirBuilder::new();
    match builder.create(path) {
        Ok(()) => sync_parent(path)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Takes from everybody but its owner what they may do in a directory that holds what is ours alone; returns
/// the mode it had if that was more.
///
/// # Errors
/// It is open to others and cannot be closed; the error says so and what to do.
pub fn close_dir(dir: &Path) -> io::Result<Option<u32>> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(dir)?.permissions().mode() & 0o7777;
        if mode & 0o077 == 0 {
            return Ok(None);
        }
        let closed = std::fs::Permissions::from_mode(mode & 0o700);
        std::fs::set_permissions(dir, closed).map_err(|error| {
            let dir = dir.display();
            io::Error::new(
                error.kind(),
                format!("{dir} is open to other users (mode {mode:04o}) and cannot be closed to them ({error}); as its owner: chmod 0700 {dir}"),
            )
        })?;
        Ok(Some(mode))
    }
    #[cfg(not(unix))]
    {
        std::fs::metadata(dir)?;
        Ok(None)
    }
}

/// Makes the names in the directory of `path` durable.
///
/// # Errors
/// Those of the file system.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    sync_dir(parent.unwrap_or_else(|| Path::new(".")))?;
    Ok(())
}

/// Opens options of a file that only its owner may read.
fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    options
}

#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    Ok(())
}

#[cfg(windows)]
#[expect(clippy::unnecessary_wraps, reason = "on other systems it can fail")]
fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(()) // a directory cannot be flushed; NTFS journals the rename
}

/// Overwrites what lies at `offset`, in place. Not synced.
///
/// # Errors
/// Those of the file system.
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileExt as _;
        file.write_all_at(bytes, offset)?;
    }
    #[cfg(windows)]
    {
        use std::io::{Seek as _, SeekFrom};
        let mut file = file;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)?;
    }
    Ok(())
}

/// Fills `buffer` from `offset` on, without moving the file's position.
///
/// # Errors
/// Those of the file system; [`io::ErrorKind::UnexpectedEof`] past the end.
pub fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileExt as _;
        file.read_exact_at(buffer, offset)?;
    }
    #[cfg(windows)]
    {
        use std::os::windows::fs::FileExt as _;
        let (mut buffer, mut offset) = (buffer, offset);
        while !buffer.is_empty() {
            match file.seek_read(buffer, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => {
                    buffer = buffer.get_mut(n..).unwrap_or_default();
                    offset += n as u64;
                }
            }
        }
    }
    Ok(())
}

/// What the names of unfinished files end in.
const TEMPORARY: &str = "new";
/// Digits of what nobody can guess of such a name.
const RANDOM_LEN: usize = 16;
/// Directories below the one in which unfinished files are looked for: `DATA/archive/DAY/…` has no more.
const LEFT_DEPTH_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(name: &str) -> PathBuf {
        let dir =
            std::env::temp_dir().join(format!("scrinium-durable-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// Whoever may write into the directory lays links where a temporary file is expected.
    #[cfg(unix)]
    #[test]
    fn a_planted_name_is_neither_followed_nor_written_to() {
        let dir = dir("planted");
        let other = dir.join("of-somebody-else");
        write_file(&other, b"untouched").unwrap();
        for name in ["recovery.new", "recovery"] {
            std::os::unix::fs::symlink(&other, dir.join(name)).unwrap();
        }
        write_file(&dir.join("recovery"), b"secret").unwrap();
        assert_eq!(std::fs::read(&other).unwrap(), b"untouched");
        let made = std::fs::symlink_metadata(dir.join("recovery")).unwrap();
        assert!(made.is_file());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_a_death_left_is_removed_and_nothing_else() {
        let dir = dir("left");
        let inner = dir.join("evidence");
        std::fs::create_dir(&inner).unwrap();
        let left = temporary_of(&inner.join("head.state")).unwrap();
        let kept = [dir.join("recovery.new"), dir.join("a.0123456789abcdeg.new")];
        for path in kept.iter().chain([&left]) {
            write_file(path, b"x").unwrap();
        }
        remove_left(&dir).unwrap();
        assert!(!left.try_exists().unwrap());
        assert!(kept.iter().all(|path| path.try_exists().unwrap()));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_that_is_open_to_others_is_closed() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = dir("open");
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(close_dir(&dir).unwrap(), Some(0o755));
        assert_eq!(close_dir(&dir).unwrap(), None);
        let mode = std::fs::metadata(&dir).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
