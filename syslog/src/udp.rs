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
    let mut drops = Drops {
        port: socket.local_addr().map_or(0, |address| address.port()),
        inode: inode_of(&socket),
        queue_full: 0,
        reported_kernel: 0,
    };
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
    /// By which the kernel's tables name the socket.
    inode: Option<u64>,
    queue_full: u64,
    /// Of those that the kernel dropped since the socket was bound. Nothing was reported before: what comes between that and
    /// the first look is lost too.
    reported_kernel: u64,
}

impl Drops {
    /// Puts what was lost since the last report into the archive.
    async fn report(&mut self, sink: &impl Sink) {
        let dropped = self.inode.map_or(0, kernel_drops);
        let kernel = dropped.saturating_sub(self.reported_kernel);
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
            self.reported_kernel += kernel;
            self.queue_full = 0;
        }
    }
}

/// The number of a socket in the kernel's tables.
#[cfg(unix)]
fn inode_of(socket: &UdpSocket) -> Option<u64> {
    rustix::fs::fstat(socket).ok().map(|stat| stat.st_ino)
}

#[cfg(not(unix))]
fn inode_of(_socket: &UdpSocket) -> Option<u64> {
    None
}

/// Datagrams that the kernel dropped on one socket, from `/proc/net/udp`. Where there is no IPv6, there is no table of it.
fn kernel_drops(inode: u64) -> u64 {
    let tables = ["/proc/net/udp", "/proc/net/udp6"].into_iter();
    let tables = tables.filter_map(|table| std::fs::read_to_string(table).ok());
    tables
        .filter_map(|table| drops_in(&table, inode))
        .next()
        .unwrap_or(0)
}

/// What a table of the kernel says of one socket. Several may have one port, at different addresses.
fn drops_in(table: &str, inode: u64) -> Option<u64> {
    let lines = table.lines().skip(1);
    let mut lines = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    let fields = lines.find(|fields| {
        let number = fields.get(INODE_FIELD);
        number.and_then(|number| number.parse().ok()) == Some(inode)
    })?;
    fields.last()?.parse().ok()
}

/// Number of the field of a socket's inode in `/proc/net/udp`; that of its drops is the last.
const INODE_FIELD: usize = 9;
const RECEIVE_BUFFER: usize = 16 << 20;
pub(crate) const DATAGRAM_LEN_MAX: usize = 65_536;
const SENDERS_MAX: usize = 65_536;
const DROP_CHECK_INTERVAL: Duration = Duration::from_secs(2);

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn drops_are_of_one_socket_among_several_of_a_port() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n \
             164: 0100007F:0202 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 71 2 0 5\n \
             165: 0200007F:0202 00000000:0000 07 00000000:007F2AA0 00:00000000 00000000     0        0 72 2 0 1863   \n";
        assert_eq!(drops_in(table, 71), Some(5));
        assert_eq!(drops_in(table, 72), Some(1863));
        assert_eq!(drops_in(table, 7), None);
    }

    /// What was dropped before anybody looked counted as reported already.
    #[tokio::test]
    async fn what_the_kernel_drops_from_the_first_moment_on_is_counted() {
        let socket = bind_udp("127.0.0.1:0").unwrap();
        let inode = inode_of(&socket).unwrap();
        assert_eq!(kernel_drops(inode), 0);
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = socket.local_addr().unwrap();
        let datagram = vec![0; 60_000];
        // More than any receive buffer that is granted takes.
        for _ in 0..2000 {
            sender.send_to(&datagram, to).unwrap();
        }
        assert!(kernel_drops(inode) > 0);
    }
}
