//! Messages over a local socket, as `syslog(3)` sends them to `/dev/log`.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use scrinium_protocol::identity::StreamKind;
use tokio::net::UnixDatagram;
use tracing::warn;

use crate::udp::DATAGRAM_LEN_MAX;
use crate::{Sink, to_entries};

/// Binds a path, with the permissions `mode`. A socket that nobody serves any more is replaced; one that somebody
/// serves, of whatever type, and anything else that is no socket stays.
///
/// # Errors
/// The path is in use, or cannot be made.
pub fn bind_unix(path: &Path, mode: u32) -> Result<UnixDatagram> {
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
    let named = || format!("cannot listen on {}", path.display());
    if let Ok(metadata) = std::fs::symlink_metadata(path)
        && metadata.file_type().is_socket()
    {
        // unix(7): only a socket without a process refuses. One of another type is EPROTOTYPE, one of a
        // process that may not be asked EACCES; both belong to somebody.
        match UnixDatagram::unbound()?.connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).with_context(named)?;
            }
            Err(error) => bail!("{}: another program may listen there ({error})", named()),
            Ok(()) => bail!("{}: another program listens there", named()),
        }
    }
    let socket = UnixDatagram::bind(path).with_context(named)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).with_context(named)?;
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
        for entry in to_entries(
            StreamKind::SyslogUnix,
            &name,
            0,
            sink.now_us(),
            bytes,
            false,
        ) {
            if !sink.put(entry).await {
                return;
            }
        }
    }
}

/// Pause after a failed receive.
const RECEIVE_RETRY: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::{UnixDatagram as Datagrams, UnixListener};

    use super::*;

    #[tokio::test]
    async fn only_a_socket_that_nobody_serves_is_replaced() {
        let dir = std::env::temp_dir().join(format!("scrinium-sockets-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("log");
        let stream = UnixListener::bind(&path).unwrap();
        let error = bind_unix(&path, 0o666).unwrap_err();
        assert!(
            format!("{error:#}").contains("another program"),
            "{error:#}"
        );
        std::os::unix::net::UnixStream::connect(&path).expect("it is still served");
        std::fs::remove_file(&path).unwrap();
        drop(stream);
        let datagrams = Datagrams::bind(&path).unwrap();
        bind_unix(&path, 0o666).unwrap_err();
        // Nobody serves it any more.
        drop(datagrams);
        let _bound = bind_unix(&path, 0o620).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o620);
        // What is no socket is never removed.
        let file = dir.join("file");
        std::fs::File::create(&file).unwrap();
        bind_unix(&file, 0o666).unwrap_err();
        assert!(file.is_file());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
