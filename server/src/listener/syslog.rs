//! Syslog over UDP and TCP, from gear that has no agent.
//!
//! One stream per sender and transport; the bytes are stored as they came, the fields are derived
//! when they are shown. Nothing is dropped silently: datagrams the kernel or a full queue dropped are
//! counted and become a gap entry of the listener's stream.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use scrinium_protocol::entry::{ENTRY_LEN_MAX, EntryFlags};
use scrinium_protocol::identity::StreamKind;
use scrinium_protocol::syslog::frame::{Deframer, Frame};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::accept;
use crate::clock;
use crate::local::{LocalEntry, LocalQueue};

/// Binds one UDP address with a large receive buffer.
pub(crate) fn bind_udp(address: &str) -> Result<UdpSocket> {
    let parsed: SocketAddr = address
        .parse()
        .with_context(|| format!("listen.syslog_udp: '{address}' is not IP:PORT"))?;
    let bind = || -> Result<UdpSocket> {
        let socket = Socket::new(
            Domain::for_address(parsed),
            Type::DGRAM,
            Some(Protocol::UDP),
        )?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        let effective = socket.recv_buffer_size()?;
        if effective < RECEIVE_BUFFER {
            warn!(%address, effective, wanted = RECEIVE_BUFFER, "the kernel grants a smaller receive buffer; raise net.core.rmem_max");
        }
        socket.set_nonblocking(true)?;
        socket.bind(&parsed.into())?;
        Ok(UdpSocket::from_std(socket.into())?)
    };
    bind().with_context(|| format!("listen.syslog_udp: cannot listen on {address}"))
}

/// Receives datagrams until the task is dropped.
pub(crate) async fn run_udp(socket: UdpSocket, entries: LocalQueue) {
    let port = socket.local_addr().map_or(0, |address| address.port());
    let mut drops = Drops {
        port,
        queue_full: 0,
        kernel: kernel_drops(port).unwrap_or(0),
        reported_kernel: 0,
    };
    drops.reported_kernel = drops.kernel;
    let mut buffer = vec![0; DATAGRAM_LEN_MAX];
    let mut names: BTreeMap<IpAddr, String> = BTreeMap::new();
    let mut check = tokio::time::interval(DROP_CHECK_INTERVAL);
    loop {
        let (len, from) = tokio::select! {
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                Err(error) => {
                    warn!(%error, "receiving syslog over UDP failed");
                    continue;
                }
            },
            _ = check.tick() => {
                drops.report(&entries).await;
                continue;
            }
        };
        if names.len() > SENDERS_MAX {
            names.clear();
        }
        let name = names
            .entry(from.ip())
            .or_insert_with(|| sender_name(from.ip()));
        let bytes = buffer.get(..len).unwrap_or_default();
        for entry in to_entries(StreamKind::SyslogUdp, name, bytes, false) {
            if entries.try_send(entry).is_err() {
                drops.queue_full += 1;
            }
        }
    }
}

/// Accepts TCP senders until the task is dropped.
pub(crate) async fn run_tcp(listener: TcpListener, entries: LocalQueue) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut tasks = JoinSet::new();
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        };
        while tasks.try_join_next().is_some() {}
        let (stream, from) = accept(&listener).await;
        let entries = entries.clone();
        tasks.spawn(async move {
            if let Err(error) = receive_tcp(stream, from, &entries).await {
                debug!(%from, %error, "a syslog connection ended");
            }
            drop(permit);
        });
    }
}

async fn receive_tcp(mut stream: TcpStream, from: SocketAddr, entries: &LocalQueue) -> Result<()> {
    let name = sender_name(from.ip());
    let mut deframer = Deframer::new();
    let mut buffer = vec![0; READ_LEN];
    loop {
        let read = stream.read(&mut buffer).await;
        let len = *read.as_ref().unwrap_or(&0);
        deframer.handle_bytes(buffer.get(..len).unwrap_or_default());
        while let Some(frame) = deframer.poll_frame() {
            send_frame(&name, &frame, entries).await?;
        }
        if len == 0 {
            // The rest of a connection that ended in the middle of a message is kept too.
            if let Some(frame) = deframer.finish() {
                send_frame(&name, &frame, entries).await?;
            }
            read?;
            return Ok(());
        }
    }
}

async fn send_frame(name: &str, frame: &Frame, entries: &LocalQueue) -> Result<()> {
    for entry in to_entries(StreamKind::SyslogTcp, name, &frame.bytes, frame.is_cut) {
        entries.send(entry).await.ok().context("the server stops")?;
    }
    Ok(())
}

/// A message as entries: one, or linked fragments when it is longer than an entry may be. Each ends
/// with a line feed, so an export is one line per message.
fn to_entries(kind: StreamKind, name: &str, bytes: &[u8], goes_on: bool) -> Vec<LocalEntry> {
    let time_us = clock::unix_us();
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let mut pieces = bytes.chunks(ENTRY_LEN_MAX - 1).peekable();
    let mut entries = Vec::with_capacity(1);
    loop {
        let piece = pieces.next().unwrap_or_default();
        let is_last = pieces.peek().is_none();
        let mut bytes = piece.to_vec();
        let flags = if is_last && !goes_on {
            bytes.push(b'\n');
            EntryFlags::NONE
        } else {
            EntryFlags::FRAGMENT
        };
        entries.push(LocalEntry {
            kind,
            name: name.to_owned(),
            time_us,
            flags,
            bytes,
            durable: None,
        });
        if is_last {
            return entries;
        }
    }
}

fn sender_name(address: IpAddr) -> String {
    address.to_canonical().to_string()
}

/// Datagrams that were not stored.
struct Drops {
    port: u16,
    queue_full: u64,
    kernel: u64,
    reported_kernel: u64,
}

impl Drops {
    /// Puts what was lost since the last report into the archive.
    async fn report(&mut self, entries: &LocalQueue) {
        self.kernel = kernel_drops(self.port).unwrap_or(self.kernel);
        let kernel = self.kernel.saturating_sub(self.reported_kernel);
        if kernel == 0 && self.queue_full == 0 {
            return;
        }
        warn!(
            port = self.port,
            kernel,
            queue = self.queue_full,
            "syslog datagrams were lost"
        );
        let text = format!(
            "gap: {} datagrams to UDP port {} were lost ({kernel} in the kernel, {} before the archive)\n",
            kernel + self.queue_full,
            self.port,
            self.queue_full
        );
        let entry = LocalEntry {
            kind: StreamKind::SyslogUdp,
            name: format!("port {}", self.port),
            time_us: clock::unix_us(),
            flags: EntryFlags::GAP,
            bytes: text.into_bytes(),
            durable: None,
        };
        if entries.send(entry).await.is_ok() {
            self.reported_kernel = self.kernel;
            self.queue_full = 0;
        }
    }
}

/// Datagrams the kernel dropped on the sockets of a port, from `/proc/net/udp`.
fn kernel_drops(port: u16) -> Option<u64> {
    let mut drops = 0;
    for table in ["/proc/net/udp", "/proc/net/udp6"] {
        let text = std::fs::read_to_string(table).ok()?;
        for line in text.lines().skip(1) {
            let mut fields = line.split_whitespace();
            let local = fields.nth(1).unwrap_or_default();
            if local.ends_with(&format!(":{port:04X}")) {
                drops += fields
                    .last()
                    .and_then(|drops| drops.parse::<u64>().ok())
                    .unwrap_or(0);
            }
        }
    }
    Some(drops)
}

const RECEIVE_BUFFER: usize = 16 << 20;
const DATAGRAM_LEN_MAX: usize = 65_536;
const READ_LEN: usize = 64 << 10;
const CONNECTIONS_MAX: usize = 1024;
const SENDERS_MAX: usize = 65_536;
const DROP_CHECK_INTERVAL: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_longer_than_an_entry_becomes_linked_fragments() {
        let long = vec![b'x'; ENTRY_LEN_MAX * 2];
        let entries = to_entries(StreamKind::SyslogTcp, "192.0.2.1", &long, false);
        assert_eq!(entries.len(), 3);
        let joined: Vec<u8> = entries
            .iter()
            .flat_map(|entry| entry.bytes.clone())
            .collect();
        assert_eq!(joined.len(), long.len() + 1);
        assert!(
            entries[0].flags.is_fragment()
                && entries[1].flags.is_fragment()
                && !entries[2].flags.is_fragment()
        );
    }

    #[test]
    fn an_empty_message_is_an_empty_line() {
        let entries = to_entries(StreamKind::SyslogUdp, "192.0.2.1", b"", false);
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].bytes, b"\n");
    }
}
