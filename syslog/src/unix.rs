//! Messages over a local socket, as `syslog(3)` sends them to `/dev/log`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use scrinium_protocol::identity::StreamKind;
use tokio::net::UnixDatagram;
use tracing::warn;

use crate::udp::DATAGRAM_LEN_MAX;
use crate::{Sink, to_entries};

/// Binds a path; whoever can reach it may write to it. A socket that nobody serves any more is replaced.
///
/// # Errors
/// The path is in use, or cannot be made.
pub fn bind_unix(path: &Path) -> Result<UnixDatagram> {
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
    let named = || format!("cannot listen on {}", path.display());
    if let Ok(metadata) = std::fs::symlink_metadata(path)
        && metadata.file_type().is_socket()
    {
        let probe = UnixDatagram::unbound()?;
        if probe.connect(path).is_ok() {
            anyhow::bail!("{}: another program listens there", named());
        }
        std::fs::remove_file(path).with_context(named)?;
    }
    let socket = UnixDatagram::bind(path).with_context(named)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).with_context(named)?;
    Ok(socket)
}

/// Receives messages until the task is dropped. A sink that is full makes the writers wait.
pub async fn run_unix(socket: UnixDatagram, name: String, sink: impl Sink) {
    let mut buffer = vec![0; DATAGRAM_LEN_MAX];
    loop {
        let len = match socket.recv(&mut buffer).await {
            Ok(len) => len,
            Err(error) => {
                warn!(%error, "receiving from a local socket failed");
                tokio::time::sleep(RECEIVE_RETRY).await;
                continue;
            }
        };
        let bytes = buffer.get(..len).unwrap_or_default();
        // Some libraries end messages with a zero byte.
        let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
        for entry in to_entries(StreamKind::SyslogUnix, &name, sink.now_us(), bytes, false) {
            if !sink.put(entry).await {
                return;
            }
        }
    }
}

/// Pause after a failed receive.
const RECEIVE_RETRY: Duration = Duration::from_millis(50);
