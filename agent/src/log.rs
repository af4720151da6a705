//! What the agent says: to its own system's log, and into a short queue from which it goes to the server.

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use scrinium_protocol::shown;
use scrinium_segment::say;
use tokio::sync::Notify;
use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{self, FieldFn};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Every line this process says from now on, unless there are too many.
pub(crate) static LOG: Log = Log {
    lines: Mutex::new(Lines {
        waiting: VecDeque::new(),
        dropped: 0,
    }),
    said: Notify::const_new(),
};

/// Lines on their way to the server.
pub(crate) struct Log {
    lines: Mutex<Lines>,
    said: Notify,
}

struct Lines {
    waiting: VecDeque<Vec<u8>>,
    dropped: u64,
}

impl Log {
    /// Waits for lines; returns them, and how many after them found no room.
    pub(crate) async fn take(&self) -> (VecDeque<Vec<u8>>, u64) {
        loop {
            let said = self.said.notified();
            let taken = {
                let mut lines = self.lock();
                let waiting = core::mem::take(&mut lines.waiting);
                (waiting, core::mem::take(&mut lines.dropped))
            };
            if !taken.0.is_empty() || taken.1 > 0 {
                return taken;
            }
            said.await;
        }
    }

    fn put(&self, line: &[u8]) {
        let mut lines = self.lock();
        if lines.waiting.len() < LINES_MAX && lines.dropped == 0 {
            lines
                .waiting
                .push_back(line.get(..LINE_LEN_MAX).unwrap_or(line).to_vec());
        } else {
            lines.dropped += 1;
        }
        drop(lines);
        self.said.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the lines of the subscriber, one a call.
struct Writer;

impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        LOG.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Writer {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

/// Begins to say: to standard error what `SCRINIUM_LOG` asks for, else what is of interest, and that into
/// the agent's own stream in any case.
pub(crate) fn start() {
    let filter = EnvFilter::try_from_env("SCRINIUM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let local = tracing_subscriber::fmt::layer()
        .with_writer(|| say::Stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .fmt_fields(one_line().delimited(" "))
        .with_filter(filter);
    let own = tracing_subscriber::fmt::layer()
        .with_writer(Writer)
        .with_ansi(false)
        .with_target(false)
        .fmt_fields(one_line().delimited(" "))
        .with_filter(LevelFilter::INFO);
    tracing_subscriber::registry().with(local).with(own).init();
}

/// Fields that make no line of their own, whatever others called things.
fn one_line() -> FieldFn<impl Fn(&mut format::Writer<'_>, &Field, &dyn Debug) -> fmt::Result + Clone>
{
    format::debug_fn(|writer, field, value| writer.write_str(&shown::field(field.name(), value)))
}

const LINES_MAX: usize = 1000;
const LINE_LEN_MAX: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_finds_no_room_is_counted() {
        let log = Log {
            lines: Mutex::new(Lines {
                waiting: VecDeque::new(),
                dropped: 0,
            }),
            said: Notify::const_new(),
        };
        for n in 0..LINES_MAX + 3 {
            log.put(format!("{n}\n").as_bytes());
        }
        log.put(&[b'x'; LINE_LEN_MAX + 1]);
        let (lines, dropped) = log.take().await;
        assert_eq!((lines.len(), dropped), (LINES_MAX, 4));
        log.put(&[b'x'; LINE_LEN_MAX + 1]);
        let (lines, dropped) = log.take().await;
        assert_eq!((lines.len(), dropped, lines[0].len()), (1, 0, LINE_LEN_MAX));
    }
}
