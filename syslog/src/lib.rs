//! Syslog as gear and programs send it: over UDP (RFC 5426), TCP (RFC 6587) and local sockets.
//!
//! ```text
//! udp, tcp, unix ─▶ Received, byte for byte ─▶ Sink: the server's archive, or an agent's spool
//! ```
//!
//! `admission.rs` says who may hold a connection, of these and of every other listener.
//!
//! One stream per sender and transport, as far as `senders.rs` lets them; the bytes stay as they came, fields are derived when they are
//! shown. Nothing is dropped silently: datagrams that the kernel or a full sink dropped are counted and
//! become a gap entry of the listener's own stream.

mod accept;
pub mod admission;
pub mod senders;
mod tcp;
mod udp;
#[cfg(unix)]
mod unix;

use std::future::Future;
use std::net::IpAddr;
use std::time::Instant;

use scrinium_protocol::entry::{ENTRY_LEN_MAX, EntryFlags};
use scrinium_protocol::identity::StreamKind;

pub use self::accept::{accept, limit_send_buffer};
pub use self::tcp::{run_tcp, tcp_limits, tell_refusals};
pub use self::udp::{bind_udp, run_udp};
#[cfg(unix)]
pub use self::unix::{Left, LocalSocket};

/// One message or a piece of it, as an entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Received {
    /// The transport.
    pub kind: StreamKind,
    /// The sender's address, the socket's path, or the listener itself.
    pub name: String,
    /// The connection it came on, of this process; 0 where there is none.
    pub connection: u64,
    /// When it was received, Unix µs.
    pub time_us: u64,
    pub flags: EntryFlags,
    /// Ends with a line feed, unless it is a fragment.
    pub bytes: Vec<u8>,
}

/// What takes the entries.
pub trait Sink: Clone + Send + Sync + 'static {
    /// The time now, Unix µs.
    fn now_us(&self) -> u64;

    /// The time now, for what passes.
    fn now(&self) -> Instant;

    /// Takes an entry if there is room at this moment.
    fn try_put(&self, received: Received) -> bool;

    /// Waits for room; `false` when entries are no longer taken.
    fn put(&self, received: Received) -> impl Future<Output = bool> + Send;

    /// Hears of datagrams that were dropped, once for each of them.
    fn dropped(&self, _datagrams: u64) {}
}

/// A message as entries: one, or linked fragments when it is longer than an entry may be. Each ends
/// with a line feed, so an export is one line per message.
fn to_entries(
    kind: StreamKind,
    name: &str,
    connection: u64,
    time_us: u64,
    bytes: &[u8],
    goes_on: bool,
) -> Vec<Received> {
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
        entries.push(Received {
            kind,
            name: name.to_owned(),
            connection,
            time_us,
            flags,
            bytes,
        });
        if is_last {
            return entries;
        }
    }
}

fn sender_name(address: IpAddr) -> String {
    address.to_canonical().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_longer_than_an_entry_becomes_linked_fragments() {
        let long = vec![b'x'; ENTRY_LEN_MAX * 2];
        let entries = to_entries(StreamKind::SyslogTcp, "192.0.2.1", 9, 1, &long, false);
        let flags: Vec<bool> = entries.iter().map(|e| e.flags.is_fragment()).collect();
        assert_eq!(flags, [true, true, false]);
        let joined: Vec<u8> = entries.into_iter().flat_map(|entry| entry.bytes).collect();
        assert_eq!(joined.len(), long.len() + 1);
    }

    #[test]
    fn an_empty_message_is_an_empty_line() {
        let entries = to_entries(StreamKind::SyslogUdp, "192.0.2.1", 0, 1, b"", false);
        let bytes: Vec<&[u8]> = entries.iter().map(|entry| &*entry.bytes).collect();
        assert_eq!(bytes, [b"\n"]);
    }
}
