//! What a program says on standard error: nothing that is wrong there stops whoever says it.
//!
//! ```text
//! log lines, panics, last words ─▶ [put] ─▶ a queue of bounded bytes ─▶ one thread ─▶ standard error
//! ```
//!
//! Standard error may be a file on a full disk, a pipe whose reader is gone, or one whose reader hangs. A line that cannot
//! be written is counted ([lost]), and said when lines can be written again. Whoever speaks waits for a full queue once,
//! for one second; from then on lines are dropped until the thread gets on.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Standard error, for subscribers of log lines: one line a write, and no write fails.
#[derive(Clone, Copy, Debug)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// To be called first of all: begins the thread that writes, and has panics said by it. Before, and where no thread can be
/// had, lines are written at once.
pub fn start() {
    let thread = std::thread::Builder::new().name("stderr".into());
    let begun = thread.spawn(|| SAYER.run(&mut io::stderr()));
    SAYER.lock().is_running = begun.is_ok();
    std::panic::set_hook(Box::new(|panic| {
        let said = said_of(panic);
        put(format!("{said}\n").as_bytes());
        let mut state = SAYER.lock();
        state.panics += 1;
        state.last_panic = said;
    }));
}

/// Says a line.
pub fn put(line: &[u8]) {
    SAYER.put(line, PATIENCE);
}

/// Waits until everything is said, for one second at most: the last words of a program.
pub fn flush() {
    let state = SAYER.lock();
    let until = |state: &mut State| state.is_running && state.is_busy();
    let waited = SAYER.room.wait_timeout_while(state, PATIENCE, until);
    drop(waited.unwrap_or_else(PoisonError::into_inner));
}

/// Lines that could not be written since the start.
pub fn lost() -> u64 {
    SAYER.lock().lost_in_all
}

/// Panics since the start, in whatever thread or task, and what the last one said.
pub fn panics() -> (u64, String) {
    let state = SAYER.lock();
    (state.panics, state.last_panic.clone())
}

fn said_of(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let place = panic.location().map(ToString::to_string);
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    format!(
        "a fault of the program: thread '{thread}' panicked at {}: {}",
        place.unwrap_or_default(),
        scrinium_protocol::shown::message(text.unwrap_or("(no text)"))
    )
}

struct Sayer {
    state: Mutex<State>,
    /// There is a line.
    said: Condvar,
    /// There is room again, or nothing waits any more.
    room: Condvar,
}

struct State {
    is_running: bool,
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    is_writing: bool,
    /// Somebody waited in vain: nobody waits again before the thread gets on.
    is_stuck: bool,
    /// Lines lost since this was said last.
    lost: u64,
    lost_in_all: u64,
    panics: u64,
    last_panic: String,
}

impl State {
    const fn new() -> Self {
        Self {
            is_running: false,
            waiting: VecDeque::new(),
            bytes: 0,
            is_writing: false,
            is_stuck: false,
            lost: 0,
            lost_in_all: 0,
            panics: 0,
            last_panic: String::new(),
        }
    }

    fn is_busy(&self) -> bool {
        self.is_writing || !self.waiting.is_empty()
    }

    fn is_full(&self) -> bool {
        self.bytes >= BYTES_MAX
    }

    fn lose(&mut self, lines: u64) {
        self.lost += lines;
        self.lost_in_all += lines;
    }
}

impl Sayer {
    const fn new() -> Self {
        Self {
            state: Mutex::new(State::new()),
            said: Condvar::new(),
            room: Condvar::new(),
        }
    }

    fn put(&self, line: &[u8], patience: Duration) {
        let mut state = self.lock();
        if !state.is_running {
            if io::stderr().write_all(line).is_err() {
                state.lose(1);
            }
            return;
        }
        if state.is_full() && !state.is_stuck {
            let waited = self
                .room
                .wait_timeout_while(state, patience, |state| state.is_full() && !state.is_stuck);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.is_stuck |= state.is_full();
        }
        if state.is_full() {
            state.lose(1);
            return;
        }
        state.bytes += line.len();
        state.waiting.push_back(line.to_vec());
        drop(state);
        self.said.notify_one();
    }

    fn run(&self, out: &mut impl Write) {
        loop {
            self.write_one(out);
        }
    }

    /// Writes the next line, and before it how many were lost.
    fn write_one(&self, out: &mut impl Write) {
        let mut state = self.lock();
        let line = loop {
            if let Some(line) = state.waiting.pop_front() {
                break line;
            }
            state = self
                .said
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        };
        state.bytes -= line.len();
        state.is_writing = true;
        let lost = core::mem::take(&mut state.lost);
        drop(state);
        // The line feed ends what may have been written of a line.
        let told = match lost {
            0 => Ok(()),
            lost => writeln!(out, "\n{lost} messages before this could not be written"),
        };
        let written = told.and_then(|()| out.write_all(&line));
        let mut state = self.lock();
        if written.is_err() {
            state.lost += lost;
            state.lose(1);
        }
        state.is_writing = false;
        state.is_stuck = false;
        drop(state);
        self.room.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

static SAYER: Sayer = Sayer::new();
/// Bytes of lines that wait; one more line may go beyond it.
const BYTES_MAX: usize = 1 << 20;
/// What a slow terminal is given to make room, and a program's last words to leave.
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many writes, then none, as a disk that is full.
    struct Disk {
        room: usize,
        written: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= 1;
            self.written.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_full_disk_did_not_take_is_counted_and_said_when_there_is_room_again() {
        let sayer = Sayer::new();
        sayer.lock().is_running = true;
        for line in ["one\n", "two\n", "three\n", "four\n"] {
            sayer.put(line.as_bytes(), Duration::ZERO);
        }
        let mut disk = Disk {
            room: 1,
            written: Vec::new(),
        };
        for _ in 0..3 {
            sayer.write_one(&mut disk);
        }
        assert_eq!(lost(&sayer), (2, 2));
        disk.room = 100;
        sayer.write_one(&mut disk);
        let written = String::from_utf8(disk.written).unwrap();
        assert_eq!(
            written,
            "one\n\n2 messages before this could not be written\nfour\n"
        );
        assert_eq!(lost(&sayer), (0, 2));
        assert!(!sayer.lock().is_busy());
    }

    /// Lines lost and not told, and all that were lost.
    fn lost(sayer: &Sayer) -> (u64, u64) {
        let state = sayer.lock();
        (state.lost, state.lost_in_all)
    }

    #[test]
    fn a_reader_that_hangs_is_waited_for_once_and_takes_bounded_memory() {
        let sayer = Sayer::new();
        sayer.lock().is_running = true;
        let line = vec![b'x'; 1000];
        let fit = BYTES_MAX.div_ceil(line.len());
        for _ in 0..fit {
            sayer.put(&line, Duration::from_secs(3600));
        }
        // From here nobody would come back, were each to wait.
        sayer.put(&line, Duration::from_millis(1));
        for _ in 0..100 {
            sayer.put(&line, Duration::from_secs(3600));
        }
        assert_eq!(sayer.lock().lost, 101);
        assert_eq!(sayer.lock().waiting.len(), fit);
        // It reads again: lines are taken again.
        let mut out = Vec::new();
        sayer.write_one(&mut out);
        sayer.put(b"again\n", Duration::ZERO);
        assert_eq!(sayer.lock().waiting.len(), fit);
        assert!(out.starts_with(b"\n101 messages before this could not be written\nxxx"));
    }
}
