//! One process at a time in a state directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

use crate::durable;

/// Held while a process owns a directory; the operating system lets go when it dies.
#[derive(Debug)]
pub struct DirLock(#[expect(dead_code, reason = "holds the lock until it is dropped")] File);

impl DirLock {
    /// Takes the lock of `dir`, closes it to other users, and removes what a death left unfinished in it.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another process holds it; the directory is open to other users and
    /// cannot be closed to them.
    pub fn acquire(dir: &Path) -> io::Result<Self> {
        if let Some(mode) = durable::close_dir(dir)? {
            tracing::warn!(
                dir = %dir.display(),
                mode = format!("{mode:04o}"),
                "the directory was open to other users; it is closed to them (0700) now"
            );
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt as _;
            options.mode(0o600);
        }
        let file = options.open(dir.join("lock"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    io::ErrorKind::WouldBlock,
                    format!("{} is in use by another process", dir.display()),
                ));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        durable::remove_left(dir)?;
        Ok(Self(file))
    }
}
