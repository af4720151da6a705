//! A browser's connection that must go on: whoever takes nothing of an answer for [`STALLED_MAX`] is cut off.
//!
//! There is no limit to the whole of an answer: an honest download of gigabytes over a narrow link goes on.

use std::future::Future as _;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use scrinium_syslog::admission::Place;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::clock;

/// The socket of one connection, and its place.
pub(crate) struct Progress {
    stream: TcpStream,
    place: Arc<Place>,
    /// Ends the connection; there while nothing can be written.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Progress {
    pub(crate) fn new(stream: TcpStream, place: Arc<Place>) -> Self {
        Self {
            stream,
            place,
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
            let sleep = || Box::pin(tokio::time::sleep(STALLED_MAX));
            let stalled = self.stalled.get_or_insert_with(sleep);
            if stalled.as_mut().poll(cx).is_ready() {
                let text = "the browser took nothing of the answer for too long";
                return Poll::Ready(Err(Error::new(ErrorKind::TimedOut, text)));
            }
            return Poll::Pending;
        }
        self.stalled = None;
        self.place.moved(clock::now());
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

/// As long as the slowest honest reader needs for a third of the kernel's send buffer, which is when one can write again.
const STALLED_MAX: Duration = Duration::from_secs(30);
