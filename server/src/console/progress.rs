//! A browser's connection that must go on: whoever takes an answer more slowly than [`RATE_MIN`] is cut off, soon when it
//! takes nothing.
//!
//! ```text
//! time in which the server waits for the browser ─▶ [Debt] ◀─ bytes that were taken, at the slowest rate
//! ```
//!
//! There is no limit to the whole of an answer: an honest download of gigabytes over a narrow link goes on.

use std::future::Future as _;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use scrinium_syslog::admission::Place;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::clock;

/// The socket of one connection, and its place.
pub(crate) struct Progress {
    stream: TcpStream,
    place: Arc<Place>,
    debt: Debt,
    /// Since when nothing can be written, and what ends the connection then.
    stalled: Option<(Instant, Pin<Box<Sleep>>)>,
}

/// The time that a browser made the server wait beyond what it would have at [`RATE_MIN`]. What is taken faster is not saved
/// up: else a fast beginning would pay for hours of nothing.
#[derive(Debug, Default)]
struct Debt(Duration);

impl Debt {
    fn waited(&mut self, time: Duration) {
        self.0 = self.0.saturating_add(time);
    }

    fn taken(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let worth = Duration::from_micros(bytes.saturating_mul(1_000_000) / RATE_MIN);
        self.0 = self.0.saturating_sub(worth);
    }

    /// How much longer nothing may be taken.
    fn left(&self) -> Duration {
        DEBT_MAX.saturating_sub(self.0)
    }
}

impl Progress {
    pub(crate) fn new(stream: TcpStream, place: Arc<Place>) -> Self {
        Self {
            stream,
            place,
            debt: Debt::default(),
            stalled: None,
        }
    }

    /// Looks at the outcome of a write.
    fn written(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<Result<usize>>,
    ) -> Poll<Result<usize>> {
        if written.is_pending() {
            let left = self.debt.left();
            let sleep = || (clock::now(), Box::pin(tokio::time::sleep(left)));
            let (_, ends) = self.stalled.get_or_insert_with(sleep);
            if ends.as_mut().poll(cx).is_ready() {
                let text = "the browser took the answer too slowly";
                return Poll::Ready(Err(Error::new(ErrorKind::TimedOut, text)));
            }
            return Poll::Pending;
        }
        let now = clock::now();
        if let Some((since, _)) = self.stalled.take() {
            self.debt.waited(now.duration_since(since));
        }
        if let Poll::Ready(Ok(bytes)) = &written {
            self.debt.taken(*bytes);
        }
        self.place.moved(now);
        written
    }
}

impl AsyncRead for Progress {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.place.moved(clock::now());
        }
        read
    }
}

impl AsyncWrite for Progress {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Bytes a second that a browser takes at least, on average, while an answer waits for it. Four downloads at once over a
/// link of 64 KiB/s do.
const RATE_MIN: u64 = 16 << 10;
/// How far it may be behind: a link that is gone for so long is forgiven. At the slowest rate one can write again after
/// six seconds, when a third of the kernel's send buffer is free.
const DEBT_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_keeps_the_slowest_rate_goes_on_for_ever_and_whoever_does_not_ends() {
        // A third of the send buffer at a time, as the kernel lets one write.
        let piece = 85 << 10;
        let ends = |rate: u32| {
            let mut debt = Debt::default();
            let wait = Duration::from_secs(piece as u64) / rate;
            let mut time = Duration::ZERO;
            while time < Duration::from_secs(24 * 3600) {
                if wait >= debt.left() {
                    return Some(time + debt.left());
                }
                debt.waited(wait);
                debt.taken(piece);
                time += wait;
            }
            None
        };
        assert_eq!(ends(64 << 10), None);
        assert_eq!(ends(16 << 10), None);
        assert!(ends(8 << 10).unwrap() < Duration::from_secs(70));
        assert!(ends(3 << 10).unwrap() < Duration::from_secs(45));
        assert_eq!(ends(1 << 10), Some(DEBT_MAX));
    }

    #[test]
    fn a_fast_beginning_pays_for_no_slow_end() {
        let mut debt = Debt::default();
        debt.taken(1 << 30);
        assert_eq!(debt.left(), DEBT_MAX);
        debt.waited(Duration::from_secs(20));
        assert_eq!(debt.left(), Duration::from_secs(10));
    }
}
