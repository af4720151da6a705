//! Tells systemd that the service is ready, lives, and stops (sd_notify(3)).

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// The service manager's socket, if there is one.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    /// How long it may hear nothing before it takes us for dead.
    pub watchdog: Option<Duration>,
}

impl Notifier {
    /// From `NOTIFY_SOCKET` and `WATCHDOG_USEC`.
    #[must_use]
    pub fn from_environment() -> Self {
        let connect = || {
            let path = std::env::var_os("NOTIFY_SOCKET")?;
            let socket = UnixDatagram::unbound().ok()?;
            connect(&socket, path.to_str()?).ok()?;
            socket.set_nonblocking(true).ok()?;
            Some(socket)
        };
        let socket = connect();
        let micros = std::env::var("WATCHDOG_USEC").ok();
        let micros = micros.and_then(|text| text.parse::<u64>().ok());
        Self {
            watchdog: micros
                .filter(|_| socket.is_some())
                .map(Duration::from_micros),
            socket,
        }
    }

    /// How often we say that we live.
    #[must_use]
    pub fn watchdog_pause(&self) -> Option<Duration> {
        Some(self.watchdog? / 3)
    }

    /// Says `state`, such as `READY=1`.
    pub fn say(&self, state: &str) {
        if let Some(socket) = &self.socket {
            // A manager that does not listen is not our trouble.
            drop(socket.send(state.as_bytes()));
        }
    }
}

/// A name that begins with `@` is an abstract one.
#[cfg(target_os = "linux")]
fn connect(socket: &UnixDatagram, path: &str) -> std::io::Result<()> {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::SocketAddr;
    match path.strip_prefix('@') {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?),
        None => socket.connect(path),
    }
}

#[cfg(not(target_os = "linux"))]
fn connect(socket: &UnixDatagram, path: &str) -> std::io::Result<()> {
    socket.connect(path)
}
