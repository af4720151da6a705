//! A program that logs: a line every fifth of a millisecond into a file that somebody rotates.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::pause;

/// Writes 5,000 numbered lines a second until it is stopped.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    reopen: Arc<AtomicBool>,
    thread: JoinHandle<Vec<u8>>,
}

impl Writer {
    /// Starts to write to `path`; numbers begin at `first`.
    #[must_use]
    pub fn start(path: &Path, first: u64) -> Self {
        let (stop, reopen) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let (stopped, reopens, path) = (stop.clone(), reopen.clone(), path.to_owned());
        let thread = std::thread::spawn(move || write(&path, first, &stopped, &reopens));
        Self {
            stop,
            reopen,
            thread,
        }
    }

    /// As SIGHUP to a daemon: the next lines go to the file that is at the path then.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::SeqCst);
    }

    /// Stops; returns everything that was written, in order.
    #[must_use]
    pub fn stop(self) -> Vec<u8> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

fn write(path: &Path, first: u64, stop: &AtomicBool, reopen: &AtomicBool) -> Vec<u8> {
    let mut file = append(path);
    let mut all = Vec::new();
    let mut number = first;
    while !stop.load(Ordering::SeqCst) {
        if reopen.swap(false, Ordering::SeqCst) {
            file = append(path);
        }
        let asked = path.with_extension(REOPEN);
        if asked.is_file() {
            file = append(path);
            std::fs::remove_file(asked).unwrap();
        }
        let mut lines = String::new();
        for _ in 0..25 {
            lines += &line(number);
            number += 1;
        }
        file.write_all(lines.as_bytes()).unwrap();
        all.extend_from_slice(lines.as_bytes());
        pause(Duration::from_millis(5));
    }
    all
}

/// A file of this extension asks the writer to reopen its own, as a signal would; it is removed then.
pub const REOPEN: &str = "reopen";

/// The line of a number.
#[must_use]
pub fn line(number: u64) -> String {
    format!("{number:010} something happened, and this is what is known of it\n")
}

/// Opens a file to append to it.
#[must_use]
pub fn append(path: &Path) -> File {
    File::options()
        .append(true)
        .create(true)
        .open(path)
        .unwrap()
}
