//! One process at a time in a state directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

/// Held while a process owns a directory; the operating system lets go when it dies.
#[derive(Debug)]
pub struct DirLock(#[expect(dead_code, reason = "holds the lock until it is dropped")] File);

impl DirLock {
    /// Takes the lock of `dir`.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another process holds it.
    pub fn acquire(dir: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                format!("{} is in use by another process", dir.display()),
            )),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}
