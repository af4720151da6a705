//! One way by which alarms leave: a mailbox, a webhook, a syslog server.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lettre::message::Mailbox;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket};

use super::text::Message;
use crate::alarms::Severity;
use crate::evidence::http;
use crate::i18n::Language;
use crate::mail::{Letter, Relay};

/// A way, and what leaves by it.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    pub(crate) way: Way,
    /// Nothing less grave.
    pub(crate) severity: Severity,
    pub(crate) language: Language,
}

/// Where it goes.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    Mail { relay: Relay, to: Vec<Mailbox> },
    Webhook(String),
    Syslog { is_tcp: bool, address: String },
}

impl Way {
    /// A syslog server, as the configuration names it: `udp://HOST:PORT` or `tcp://HOST:PORT`.
    ///
    /// # Errors
    /// It is something else.
    pub(crate) fn syslog(url: &str) -> Result<Self> {
        let (is_tcp, address) = match url.split_once("://") {
            Some(("udp", address)) => (false, address),
            Some(("tcp", address)) => (true, address),
            _ => bail!("'{url}' must be udp://HOST:PORT or tcp://HOST:PORT"),
        };
        let port = address
            .rsplit_once(':')
            .map(|(_, port)| port.parse::<u16>());
        ensure!(
            matches!(port, Some(Ok(_))),
            "'{url}' must be udp://HOST:PORT or tcp://HOST:PORT"
        );
        Ok(Self::Syslog {
            is_tcp,
            address: address.to_owned(),
        })
    }
}

impl Channel {
    /// The word of messages and of the catalogue.
    pub(crate) fn name(&self) -> &'static str {
        match self.way {
            Way::Mail { .. } => "mail",
            Way::Webhook(_) => "webhook",
            Way::Syslog { .. } => "syslog",
        }
    }

    /// The same way for each who gets something by it: one whom the relay refuses keeps no letter from the others, and gives none
    /// of them one twice.
    pub(super) fn each(&self) -> Vec<Self> {
        let Way::Mail { relay, to } = &self.way else {
            return vec![self.clone()];
        };
        let each = to.iter().map(|to| Self {
            way: Way::Mail {
                relay: relay.clone(),
                to: vec![to.clone()],
            },
            ..self.clone()
        });
        each.collect()
    }

    /// The word, and of mail to whom: what is remembered to have been told, and what an alarm calls it.
    pub(super) fn full_name(&self) -> String {
        match self.way {
            Way::Mail { .. } => format!("{} {}", self.name(), self.to()),
            Way::Webhook(_) | Way::Syslog { .. } => self.name().to_owned(),
        }
    }

    /// Who or what it goes to. What of a URL may be a secret is not in it.
    pub(crate) fn to(&self) -> String {
        match &self.way {
            Way::Mail { to, .. } => {
                let to: Vec<String> = to.iter().map(|to| to.email.to_string()).collect();
                to.join(", ")
            }
            Way::Webhook(url) => http::host_of(url),
            Way::Syslog { address, .. } => address.clone(),
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// It was not taken in time.
    pub(super) async fn send(&self, message: &Message) -> Result<()> {
        let sent = tokio::time::timeout(SEND_MAX, self.try_to_send(message)).await;
        sent.with_context(|| format!("it took longer than {} s", SEND_MAX.as_secs()))?
    }

    async fn try_to_send(&self, message: &Message) -> Result<()> {
        match &self.way {
            Way::Mail { relay, to } => {
                let letter = Letter {
                    subject: message.subject.clone(),
                    text: message.text.clone(),
                    enclosed: Vec::new(),
                };
                // One at a time, see [`Channel::each`].
                for to in to {
                    relay.send(to, &letter).await?;
                }
                Ok(())
            }
            Way::Webhook(url) => {
                let body = serde_json::to_vec(&message.json)?;
                http::post(url, "application/json", body).await.map(drop)
            }
            Way::Syslog { is_tcp, address } => match is_tcp {
                true => by_tcp(address, &message.lines).await,
                false => by_udp(address, &message.lines).await,
            },
        }
        .with_context(|| self.to())
    }
}

/// Each line framed by its length, RFC 6587 §3.4.1.
async fn by_tcp(address: &str, lines: &[String]) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    for line in lines {
        let framed = format!("{} {line}", line.len());
        stream.write_all(framed.as_bytes()).await?;
    }
    Ok(stream.shutdown().await?)
}

/// Each line a datagram. That nobody takes it is not always seen.
async fn by_udp(address: &str, lines: &[String]) -> Result<()> {
    let mut addresses = tokio::net::lookup_host(address).await?;
    let address = addresses.next().context("it has no address")?;
    let own = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(own).await?;
    socket.connect(address).await?;
    for line in lines {
        socket.send(line.as_bytes()).await?;
    }
    Ok(())
}

/// Mail to several people takes the longest.
const SEND_MAX: Duration = Duration::from_secs(90);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syslog_server_is_named_with_its_transport_and_port() {
        for url in [
            "udp://10.0.0.9:514",
            "tcp://[::1]:601",
            "tcp://log.example.org:601",
        ] {
            assert!(Way::syslog(url).is_ok(), "{url}");
        }
        for url in [
            "10.0.0.9:514",
            "udp://10.0.0.9",
            "tls://a:1",
            "udp://a:99999",
            "",
        ] {
            assert!(Way::syslog(url).is_err(), "{url}");
        }
    }

    #[test]
    fn what_may_be_a_secret_of_a_url_is_not_said() {
        let channel = Channel {
            way: Way::Webhook("https://hooks.example.org/T0/secret?key=1".into()),
            severity: Severity::Warning,
            language: Language::En,
        };
        assert_eq!(channel.to(), "hooks.example.org");
    }
}
