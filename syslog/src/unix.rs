//! Messages over a local socket, as `syslog(3)` sends them to `/dev/log`.
//!
//! ```text
//! bind ─▶ [LocalSocket] ─receive─▶ Sink         its path is looked at every two seconds:
//!              ▲                                 gone ─▶ Left::Gone ─▶ bind again, drain the old one
//! ```

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use scrinium_protocol::identity::StreamKind;
use tokio::net::UnixDatagram;
use tracing::warn;

use crate::udp::DATAGRAM_LEN_MAX;
use crate::{Sink, to_entries};

/// A socket, and what lies at its path because of it.
#[derive(Debug)]
pub struct LocalSocket {
    socket: UnixDatagram,
    path: PathBuf,
    /// Device and inode. As long as the socket is open no other file has them.
    id: (u64, u64),
}

/// Why no more is received from a socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Left {
    /// Its path does not lead to it any more: nobody new finds it. What was connected to it still sends.
    Gone,
    /// The sink wants no more.
    Unwanted,
}

impl LocalSocket {
    /// Binds a path, with the permissions `mode`. A socket that nobody serves any more is replaced; one that somebody
    /// serves, of whatever type, and anything else that is no socket stays.
    ///
    /// # Errors
    /// The path is in use, or cannot be made.
    pub fn bind(path: &Path, mode: u32) -> Result<Self> {
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
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
            .with_context(named)?;
        let id = id_of(path).with_context(named)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            id,
        })
    }

    /// Receives messages until there is no more use in it. A sink that is full makes the writers wait.
    pub async fn run(&self, name: &str, sink: &impl Sink) -> Left {
        let mut buffer = vec![0; DATAGRAM_LEN_MAX];
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        looks.reset();
        loop {
            let received = tokio::select! {
                _ = looks.tick() => {
                    if self.is_gone().await {
                        return Left::Gone;
                    }
                    continue;
                }
                received = self.socket.recv(&mut buffer) => received,
            };
            match received {
                Ok(len) => {
                    if !put(buffer.get(..len).unwrap_or_default(), name, sink).await {
                        return Left::Unwanted;
                    }
                }
                Err(error) => {
                    warn!(%error, "receiving from a local socket failed");
                    tokio::time::sleep(RECEIVE_RETRY).await;
                }
            }
        }
    }

    /// Takes nothing new, and hands over what was sent before; who still writes learns of it and opens the path
    /// anew.
    pub async fn drain(self, name: &str, sink: &impl Sink) {
        // Of the system, not of the runtime: that may not know yet of what just came.
        let Ok(socket) = self.socket.into_std() else {
            return;
        };
        if let Err(error) = socket.shutdown(std::net::Shutdown::Read) {
            warn!(%error, "a local socket that nobody finds any more cannot be shut down");
        }
        let mut buffer = vec![0; DATAGRAM_LEN_MAX];
        for _ in 0..DRAINED_MAX {
            let Ok(len) = socket.recv(&mut buffer) else {
                return; // there is no more
            };
            if !put(buffer.get(..len).unwrap_or_default(), name, sink).await {
                return;
            }
        }
    }

    /// Whether something else, or nothing, is at the path.
    async fn is_gone(&self) -> bool {
        let path = self.path.clone();
        // The file system may not answer, and others must go on.
        let found = tokio::task::spawn_blocking(move || id_of(&path)).await;
        match found {
            Ok(Ok(id)) => id != self.id,
            Ok(Err(error)) => {
                matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
            }
            Err(_) => false,
        }
    }
}

async fn put(bytes: &[u8], name: &str, sink: &impl Sink) -> bool {
    // Some libraries end messages with a zero byte.
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    for entry in to_entries(StreamKind::SyslogUnix, name, 0, sink.now_us(), bytes, false) {
        if !sink.put(entry).await {
            return false;
        }
    }
    true
}

fn id_of(path: &Path) -> std::io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Pause after a failed receive.
const RECEIVE_RETRY: Duration = Duration::from_millis(50);
/// How often it is looked whether the path still leads to the socket.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Messages that are taken out of a socket that was shut down: it holds `net.unix.max_dgram_qlen`, some hundreds, and
/// gets no more.
const DRAINED_MAX: usize = 100_000;

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
        let error = LocalSocket::bind(&path, 0o666).unwrap_err();
        assert!(
            format!("{error:#}").contains("another program"),
            "{error:#}"
        );
        std::os::unix::net::UnixStream::connect(&path).expect("it is still served");
        std::fs::remove_file(&path).unwrap();
        drop(stream);
        let datagrams = Datagrams::bind(&path).unwrap();
        LocalSocket::bind(&path, 0o666).unwrap_err();
        // Nobody serves it any more.
        drop(datagrams);
        let _bound = LocalSocket::bind(&path, 0o620).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o620);
        // What is no socket is never removed.
        let file = dir.join("file");
        std::fs::File::create(&file).unwrap();
        LocalSocket::bind(&file, 0o666).unwrap_err();
        assert!(file.is_file());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[derive(Clone)]
    struct Heard(tokio::sync::mpsc::Sender<Vec<u8>>);

    impl Sink for Heard {
        fn now_us(&self) -> u64 {
            0
        }

        fn now(&self) -> std::time::Instant {
            tokio::time::Instant::now().into_std()
        }

        fn try_put(&self, received: crate::Received) -> bool {
            self.0.try_send(received.bytes).is_ok()
        }

        async fn put(&self, received: crate::Received) -> bool {
            self.try_put(received)
        }
    }

    #[tokio::test]
    async fn a_socket_that_nobody_finds_any_more_is_left_and_drained_and_another_takes_its_place() {
        let dir = std::env::temp_dir().join(format!("scrinium-gone-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("log");
        let (heard, mut messages) = tokio::sync::mpsc::channel(16);
        let sink = Heard(heard);
        let old = LocalSocket::bind(&path, 0o666).unwrap();
        let connected = Datagrams::unbound().unwrap();
        connected.connect(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(old.run("x", &sink).await, Left::Gone);
        let new = LocalSocket::bind(&path, 0o666).unwrap();
        connected.send(b"to the old one").unwrap();
        old.drain("x", &sink).await;
        assert_eq!(messages.recv().await.unwrap(), b"to the old one\n");
        connected.send(b"to nobody").unwrap_err();
        connected.connect(&path).unwrap();
        connected.send(b"to the new one").unwrap();
        tokio::select! {
            left = new.run("x", &sink) => panic!("{left:?}"),
            message = messages.recv() => assert_eq!(message.unwrap(), b"to the new one\n"),
        }
        // What another program put there stays, and is noticed too.
        std::fs::remove_file(&path).unwrap();
        let other = Datagrams::bind(&path).unwrap();
        assert_eq!(new.run("x", &sink).await, Left::Gone);
        LocalSocket::bind(&path, 0o666).unwrap_err();
        drop(other);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
