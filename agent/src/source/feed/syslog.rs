//! A local relay: gear and programs on the site send syslog here, and it goes on buffered and encrypted.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use scrinium_protocol::identity::{StreamKind, StreamName};
use scrinium_syslog::admission::Admission;
#[cfg(unix)]
use scrinium_syslog::{Left, LocalSocket};
use tracing::{info, warn};

use super::{Item, Sink};
use crate::config::Deny;

/// Where to listen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Syslog {
    Udp(SocketAddr),
    Tcp(SocketAddr),
    /// A socket at `path`, with the permissions `mode`.
    Unix {
        path: PathBuf,
        mode: u32,
    },
}

impl Syslog {
    /// Reads `udp://IP:PORT`, `tcp://IP:PORT` or `unix:///PATH` of a field; a socket gets `mode`.
    pub(crate) fn parse(field: &str, text: &str, mode: u32) -> Result<Self> {
        let address = |text: &str| {
            let address = text.parse::<SocketAddr>();
            address.with_context(|| format!("{field}: '{text}' is not IP:PORT"))
        };
        Ok(match text.split_once("://") {
            Some(("udp", rest)) => Self::Udp(address(rest)?),
            Some(("tcp", rest)) => Self::Tcp(address(rest)?),
            Some(("unix", path)) if cfg!(unix) && path.starts_with('/') => Self::Unix {
                path: path.into(),
                mode,
            },
            _ => bail!("{field}: '{text}' must be udp://IP:PORT, tcp://IP:PORT or unix:///PATH"),
        })
    }

    /// The stream of the listener itself: what was missed is said there.
    pub(crate) fn own_stream(&self) -> StreamName {
        let (kind, name) = match self {
            Self::Udp(address) => (StreamKind::SyslogUdp, format!("udp://{address}")),
            Self::Tcp(address) => (StreamKind::SyslogTcp, format!("tcp://{address}")),
            Self::Unix { path, .. } => {
                (StreamKind::SyslogUnix, format!("unix://{}", path.display()))
            }
        };
        StreamName { kind, name }
    }

    /// Listens, and tries again while that is not possible.
    pub(crate) async fn run(self, deny: Deny, sink: Sink) {
        let own = self.own_stream();
        let mut complained = false;
        loop {
            match self.listen(&deny, &sink, &own).await {
                Ok(()) => return,
                Err(error) if complained => {
                    sink.set_trouble(Some(format!("syslog is not received: {error:#}")));
                }
                Err(error) => {
                    sink.set_trouble(Some(format!("syslog is not received: {error:#}")));
                    warn!(source = %own.name, error = format!("{error:#}"), "syslog is not received; trying again");
                    complained = true;
                }
            }
            // Nobody tells when the place is free again.
            tokio::time::sleep(BIND_RETRY).await;
        }
    }

    async fn listen(&self, deny: &Deny, sink: &Sink, own: &StreamName) -> Result<()> {
        enum Socket {
            Udp(tokio::net::UdpSocket),
            Tcp(tokio::net::TcpListener),
            #[cfg(unix)]
            Unix(LocalSocket),
        }
        let socket = match self {
            Self::Udp(address) => Socket::Udp(scrinium_syslog::bind_udp(&address.to_string())?),
            Self::Tcp(address) => Socket::Tcp(tokio::net::TcpListener::bind(address).await?),
            Self::Unix { path, .. } if deny.forbids(path) => {
                bail!("{} is denied on this machine", path.display())
            }
            #[cfg(unix)]
            Self::Unix { path, mode } => Socket::Unix(LocalSocket::bind(path, *mode)?),
            #[cfg(not(unix))]
            Self::Unix { .. } => bail!("there are no such sockets on this system"),
        };
        info!(source = %own.name, "listening for syslog");
        sink.set_trouble(None);
        let text = format!(
            "listening on {} begins here; what was sent there while nobody listened was not collected, nor what an agent that was killed had not yet sent",
            own.name
        );
        if !sink.put_item(Item::gap(own, &text)).await {
            return Ok(());
        }
        match socket {
            Socket::Udp(socket) => scrinium_syslog::run_udp(socket, sink.clone()).await,
            Socket::Tcp(listener) => {
                let limits = scrinium_syslog::tcp_limits(TCP_PLACES, TCP_PLACES_EACH);
                let admission = Admission::new(limits);
                let told = scrinium_syslog::tell_refusals(
                    admission.clone(),
                    own.name.clone(),
                    sink.clone(),
                );
                let run = scrinium_syslog::run_tcp(listener, sink.clone(), admission, IDLE_MAX);
                tokio::select! {
                    () = run => {}
                    () = told => {}
                }
            }
            #[cfg(unix)]
            Socket::Unix(socket) => self.receive_locally(socket, deny, sink, own).await,
        }
        Ok(())
    }
}

#[cfg(unix)]
impl Syslog {
    /// Receives from a socket, and binds the path again when somebody took it away: programs find nobody there then.
    /// What another program put in its place stays, and is said.
    async fn receive_locally(
        &self,
        mut socket: LocalSocket,
        deny: &Deny,
        sink: &Sink,
        own: &StreamName,
    ) {
        let mut complained = false;
        while socket.run(&own.name, sink).await == Left::Gone {
            let anew = match self {
                Self::Unix { path, .. } if deny.forbids(path) => Err(anyhow::anyhow!(
                    "{} is denied on this machine",
                    path.display()
                )),
                Self::Unix { path, mode } => LocalSocket::bind(path, *mode),
                Self::Udp(_) | Self::Tcp(_) => return,
            };
            let text = match anew {
                Ok(anew) => {
                    warn!(source = %own.name, "the socket was taken away and is bound again");
                    core::mem::replace(&mut socket, anew)
                        .drain(&own.name, sink)
                        .await;
                    complained = false;
                    format!(
                        "the socket of {} was taken away by another program and is bound again here; what was sent there meanwhile was not collected",
                        own.name
                    )
                }
                Err(_) if complained => continue,
                // Who was connected before still is, and is heard.
                Err(error) => {
                    complained = true;
                    warn!(source = %own.name, error = format!("{error:#}"), "the socket was taken away and cannot be bound again; trying again");
                    format!(
                        "the socket of {} was taken away by another program and cannot be bound again ({error:#}); what is sent there is not collected until it is",
                        own.name
                    )
                }
            };
            if !sink.put_item(Item::gap(own, &text)).await {
                return;
            }
        }
    }
}

/// Connections of one relay at once, and of them from one address or IPv6 /64. With 64 KiB of an unfinished
/// message on each they are 64 MiB.
const TCP_PLACES: usize = 1024;
const TCP_PLACES_EACH: usize = 256;
/// A sender of which nothing is heard for a day is taken for gone.
const IDLE_MAX: Option<Duration> = Some(Duration::from_secs(24 * 3600));
/// Pause before listening is tried again.
const BIND_RETRY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_how_and_where_to_listen() {
        let udp = Syslog::parse("source.syslog", "udp://0.0.0.0:514", 0).unwrap();
        assert_eq!(udp, Syslog::Udp("0.0.0.0:514".parse().unwrap()));
        assert!(matches!(
            Syslog::parse("source.syslog", "tcp://[::1]:601", 0),
            Ok(Syslog::Tcp(_))
        ));
        for bad in [
            "",
            "udp://",
            "udp://host:514",
            "tcp://1.2.3.4",
            "unix://dev/log",
            "tls://1.2.3.4:6514",
        ] {
            let error = Syslog::parse("source.syslog", bad, 0)
                .unwrap_err()
                .to_string();
            assert!(error.contains("source.syslog"), "{bad}: {error}");
        }
    }
}
