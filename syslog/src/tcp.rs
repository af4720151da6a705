//! Messages over connections: RFC 6587, octet-counted or line-framed.
//!
//! A connection may rest for as long as the idle limit: gear opens one and says nothing for hours. Keep-alive
//! probes find those whose other end is gone, as behind a firewall that forgot them. Where places are short, the one
//! that is missed least makes room (`admission.rs`), which is counted and becomes a gap entry.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use scrinium_protocol::entry::EntryFlags;
use scrinium_protocol::identity::StreamKind;
use scrinium_protocol::syslog::frame::{Deframer, Frame};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::accept::accept;
use crate::admission::{Admission, Counts, Limits, Place};
use crate::{Received, Sink, sender_name, to_entries};

/// Accepts senders until the task is dropped. A sink that is full makes them wait. A connection on which nothing
/// comes for `idle_max` is closed; `None`: never.
pub async fn run_tcp(
    listener: TcpListener,
    sink: impl Sink,
    admission: Arc<Admission>,
    idle_max: Option<Duration>,
) {
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let (stream, from) = accept(&listener, &admission).await;
        let Some(place) = admission.admit(from.ip(), sink.now()) else {
            debug!(%from, "a syslog connection was not admitted");
            continue;
        };
        let sink = sink.clone();
        tasks.spawn(async move {
            if let Err(error) = receive(stream, from, &sink, &place, idle_max).await {
                debug!(%from, %error, "a syslog connection ended");
            }
        });
    }
}

/// Says, in the log and in the sink, what `admission` refused or closed, until the task is dropped. `name` is the
/// stream that is told.
pub async fn tell_refusals(admission: Arc<Admission>, name: String, sink: impl Sink) {
    let mut check = tokio::time::interval(TELL_INTERVAL);
    let mut told = Counts::default();
    loop {
        check.tick().await;
        let now = admission.counts();
        let new = now.since(told);
        if new.is_nothing() {
            continue;
        }
        let (used, most) = admission.used();
        let most = most.map_or_else(String::new, |(peer, count)| {
            format!("; {count} are of {peer}")
        });
        warn!(listener = %name, "syslog connections: {new}; {used} are open{most}");
        let text =
            format!("gap: syslog connections: {new}; what was to be sent on them is not here\n");
        let entry = Received {
            kind: StreamKind::SyslogTcp,
            name: name.clone(),
            connection: 0,
            time_us: sink.now_us(),
            flags: EntryFlags::GAP,
            bytes: text.into_bytes(),
        };
        if sink.put(entry).await {
            told = now;
        }
    }
}

async fn receive(
    stream: TcpStream,
    from: SocketAddr,
    sink: &impl Sink,
    place: &Place,
    idle_max: Option<Duration>,
) -> Result<()> {
    let probes = TcpKeepalive::new()
        .with_time(PROBE_AFTER)
        .with_interval(PROBE_INTERVAL);
    SockRef::from(&stream).set_tcp_keepalive(&probes)?;
    let sender = Sender {
        name: sender_name(from.ip()),
        connection: NEXT.fetch_add(1, Ordering::Relaxed),
    };
    let mut deframer = Deframer::new();
    loop {
        let limit = match deframer.pending() {
            0 => idle_max,
            _ => Some(UNFINISHED_MAX),
        };
        let is_over = tokio::select! {
            () = place.displaced() => true,
            () = wait(limit) => true,
            readable = stream.readable() => {
                readable?;
                false
            }
        };
        // One that must go is read once more: what it sent already is not lost.
        let read = read(&stream, &mut deframer);
        match &read {
            Ok(0) => {}
            Ok(_) => place.moved(sink.now()),
            Err(error) if error.kind() == ErrorKind::WouldBlock && !is_over => continue,
            Err(_) => {}
        }
        while let Some(frame) = deframer.poll_frame() {
            place.prove(sink.now());
            put(&sender, &frame, sink).await?;
        }
        if is_over || !matches!(read, Ok(1..)) {
            // The rest of a connection that ended in the middle of a message is kept too.
            if let Some(frame) = deframer.finish() {
                put(&sender, &frame, sink).await?;
            }
            if is_over {
                debug!(%from, "a syslog connection at rest was closed");
                return Ok(());
            }
            read?;
            return Ok(());
        }
    }
}

async fn wait(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Takes what the socket has, through a buffer that connections share: one at rest has none.
fn read(stream: &TcpStream, deframer: &mut Deframer) -> std::io::Result<usize> {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_LEN]);
    }
    BUFFER.with_borrow_mut(|buffer| {
        let len = stream.try_read(buffer)?;
        deframer.handle_bytes(buffer.get(..len).unwrap_or_default());
        Ok(len)
    })
}

/// Who sends on a connection, and which one that is: lines of two of one sender are told apart.
struct Sender {
    name: String,
    connection: u64,
}

/// The number of the next connection of this process.
static NEXT: AtomicU64 = AtomicU64::new(1);

async fn put(sender: &Sender, frame: &Frame, sink: &impl Sink) -> Result<()> {
    let time_us = sink.now_us();
    for entry in to_entries(
        StreamKind::SyslogTcp,
        &sender.name,
        sender.connection,
        time_us,
        &frame.bytes,
        frame.is_cut,
    ) {
        let taken = sink.put(entry).await;
        taken.then_some(()).context("no entry is taken any more")?;
    }
    Ok(())
}

/// The limits of a listener that may have `places` connections, `each` of them from one address.
#[must_use]
pub fn tcp_limits(places: usize, each: usize) -> Limits {
    Limits {
        places,
        each,
        kept: places / KEPT_SHARE,
        // Programs that open a connection for each message are many.
        per_second: None,
        rests_after: RESTS_AFTER,
    }
}

const READ_LEN: usize = 64 << 10;
/// One part in so many of the places is for addresses that sent a message before.
const KEPT_SHARE: usize = 4;
/// A sender that said nothing for so long may make room for another: what it is about to say next it may lose, so
/// not sooner.
const RESTS_AFTER: Duration = Duration::from_secs(60);
/// What of a message came is held back for the rest of it for so long, then it is kept as it is.
const UNFINISHED_MAX: Duration = Duration::from_secs(300);
/// A connection at rest is probed after so long, and so often: firewalls forget after five minutes and more, and do
/// not while they see probes.
const PROBE_AFTER: Duration = Duration::from_secs(120);
const PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// Refusals are told at most so often.
const TELL_INTERVAL: Duration = Duration::from_secs(5);
