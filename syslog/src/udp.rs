//! Messages in datagrams: RFC 5426.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use scrinium_protocol::entry::EntryFlags;
use scrinium_protocol::identity::StreamKind;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tracing::warn;

use crate::{Received, Sink, sender_name, to_entries};

/// Binds one UDP address with a large receive buffer.
///
/// # Errors
/// It is not `IP:PORT`, or in use.
pub fn bind_udp(address: &str) -> Result<UdpSocket> {
    let parsed: SocketAddr = address
        .parse()
        .with_context(|| format!("'{address}' is not IP:PORT"))?;
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
    bind().with_context(|| format!("cannot listen on {address}"))
}

/// Receives datagrams until the task is dropped.
pub async fn run_udp(socket: UdpSocket, sink: impl Sink) {
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
                drops.report(&sink).await;
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
        for entry in to_entries(StreamKind::SyslogUdp, name, 0, sink.now_us(), bytes, false) {
            if !sink.try_put(entry) {
                drops.queue_full += 1;
            }
        }
    }
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
    async fn report(&mut self, sink: &impl Sink) {
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
        let entry = Received {
            kind: StreamKind::SyslogUdp,
            name: format!("port {}", self.port),
            connection: 0,
            time_us: sink.now_us(),
            flags: EntryFlags::GAP,
            bytes: text.into_bytes(),
        };
        if sink.put(entry).await {
            sink.dropped(kernel + self.queue_full);
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
pub(crate) const DATAGRAM_LEN_MAX: usize = 65_536;
const SENDERS_MAX: usize = 65_536;
const DROP_CHECK_INTERVAL: Duration = Duration::from_secs(2);
