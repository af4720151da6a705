//! The way to a relay, and what is taken from it: so many bytes in a session, and no more.
//!
//! ```text
//! [Place] ─▶ TCP ─▶ [Bounded] ─▶ TLS, if it is wanted ─▶ SMTP
//! ```
//!
//! Invariant: a relay that answers without an end is an error after [`RECEIVED_LEN_MAX`]. The library reads a line until it
//! ends, in memory.

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lettre::transport::smtp::client::{AsyncSmtpConnection, AsyncTokioStream, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::{SMTP_PORT, SUBMISSION_PORT, SUBMISSIONS_PORT};
use reqwest::Url;
use rustls::ClientConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where a relay is, and how it is spoken to.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// A name, or an address without brackets.
    host: String,
    port: u16,
    tls: Tls,
    /// What we call ourselves, where the configuration says so.
    hello: Option<String>,
}

/// When the connection becomes an encrypted one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Tls {
    Never,
    /// From its first byte on.
    AtOnce,
    /// After STARTTLS, or nothing is sent.
    Required,
    /// After STARTTLS, where the relay knows it.
    IfOffered,
}

impl Place {
    /// Reads `smtps://HOST[:PORT][/NAME]` or `smtp://HOST[:PORT][/NAME][?tls=required]`; `NAME` is what we call ourselves.
    ///
    /// # Errors
    /// It is something else.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let url = Url::parse(url)?;
        let host = url.host_str().context("it names no host")?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        ensure!(!host.is_empty(), "it names no host");
        let mut pairs = url.query_pairs();
        let tls = pairs.find(|(key, _)| key == "tls").map(|(_, value)| value);
        let (port, tls) = match (url.scheme(), tls.as_deref()) {
            ("smtps", _) => (SUBMISSIONS_PORT, Tls::AtOnce),
            ("smtp", None) => (SMTP_PORT, Tls::Never),
            ("smtp", Some("required")) => (SUBMISSION_PORT, Tls::Required),
            ("smtp", Some("opportunistic")) => (SUBMISSION_PORT, Tls::IfOffered),
            _ => bail!(
                "it must be smtps://HOST[:PORT] or smtp://HOST[:PORT], which may end with ?tls=required"
            ),
        };
        let hello = url.path().trim_matches('/');
        Ok(Self {
            host: host.to_owned(),
            port: url.port().unwrap_or(port),
            tls,
            hello: (!hello.is_empty()).then(|| hello.to_owned()),
        })
    }

    /// Goes there, encrypts the connection as it is wanted, and hears what the relay can do.
    pub(super) async fn connect(&self) -> Result<AsyncSmtpConnection> {
        let hello = self
            .hello
            .clone()
            .map_or_else(ClientId::default, ClientId::Domain);
        let stream = Bounded::new(self.reach().await?);
        if self.tls == Tls::AtOnce {
            let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
                .with_safe_default_protocol_versions()?
                .with_platform_verifier()?
                .with_no_client_auth();
            let name = ServerName::try_from(self.host.clone())?;
            let peer = stream.peer;
            let encrypted = TlsConnector::from(Arc::new(config)).connect(name, stream);
            let stream = Box::new(Bounded::over(encrypted.await?, peer));
            return Ok(AsyncSmtpConnection::connect_with_transport(stream, &hello).await?);
        }
        let connection = AsyncSmtpConnection::connect_with_transport(Box::new(stream), &hello);
        let mut connection = connection.await?;
        let is_wanted = match self.tls {
            Tls::Never | Tls::AtOnce => false,
            Tls::Required => true,
            Tls::IfOffered => connection.can_starttls(),
        };
        if is_wanted {
            let parameters = TlsParameters::new(self.host.clone())?;
            connection.starttls(parameters, &hello).await?;
        }
        Ok(connection)
    }

    /// A connection to the first of its addresses that takes one.
    async fn reach(&self) -> Result<(TcpStream, SocketAddr)> {
        let addresses = tokio::net::lookup_host((&*self.host, self.port)).await?;
        let mut failed = None;
        for address in addresses {
            match tokio::time::timeout(CONNECT_MAX, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok((stream, address)),
                Ok(Err(error)) => failed = Some(anyhow::Error::from(error)),
                Err(_) => failed = Some(anyhow::anyhow!("{address} takes no connection")),
            }
        }
        Err(failed.unwrap_or_else(|| anyhow::anyhow!("its name has no address")))
    }
}

/// Both ways, of any kind.
trait Stream: AsyncRead + AsyncWrite + Debug + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Debug + Send + Sync + Unpin> Stream for T {}

/// A stream that ends with an error when more came than one session may need.
#[derive(Debug)]
struct Bounded {
    stream: Box<dyn Stream>,
    peer: SocketAddr,
    /// Bytes that may still come.
    left: usize,
}

impl Bounded {
    fn new((stream, peer): (TcpStream, SocketAddr)) -> Self {
        Self::over(stream, peer)
    }

    fn over(stream: impl Stream + 'static, peer: SocketAddr) -> Self {
        Self {
            stream: Box::new(stream),
            peer,
            left: RECEIVED_LEN_MAX,
        }
    }
}

impl AsyncTokioStream for Bounded {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.peer)
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, left, .. } = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(stream).poll_read(cx, buffer))?;
        let came = buffer.filled().len().saturating_sub(before);
        let rest = left.checked_sub(came);
        *left = rest.unwrap_or(0);
        Poll::Ready(match rest {
            Some(_) => Ok(()),
            None => {
                buffer.set_filled(before);
                Err(io::Error::other(format!(
                    "the relay answers with more than {} KiB",
                    RECEIVED_LEN_MAX >> 10
                )))
            }
        })
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Bytes that a relay may say in a session: some ten replies of 512 bytes, and the certificates of a TLS handshake.
const RECEIVED_LEN_MAX: usize = 64 << 10;
/// For one of its addresses, so that there is time for the next.
const CONNECT_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[test]
    fn a_relay_is_named_as_the_manual_says() {
        let place = |url: &str| {
            let place = Place::parse(url).unwrap();
            (place.host, place.port, place.tls)
        };
        let host = || "mail.example.org".to_owned();
        assert_eq!(place("smtp://mail.example.org"), (host(), 25, Tls::Never));
        assert_eq!(
            place("smtps://mail.example.org"),
            (host(), 465, Tls::AtOnce)
        );
        assert_eq!(
            place("smtp://mail.example.org?tls=required"),
            (host(), 587, Tls::Required)
        );
        assert_eq!(
            place("smtp://mail.example.org:25/me?tls=opportunistic"),
            (host(), 25, Tls::IfOffered)
        );
        assert_eq!(
            place("smtp://[::1]:2525"),
            ("::1".to_owned(), 2525, Tls::Never)
        );
        let named = Place::parse("smtp://mail.example.org/logs.example.org").unwrap();
        assert_eq!(named.hello.as_deref(), Some("logs.example.org"));
        for wrong in [
            "mail.example.org",
            "http://mail.example.org",
            "smtp://",
            "smtp://mail.example.org?tls=perhaps",
            "",
        ] {
            assert!(Place::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_stream_gives_as_much_as_it_may_and_then_an_error() {
        let peer: SocketAddr = "127.0.0.1:25".parse().unwrap();
        let (near, mut far) = tokio::io::duplex(4096);
        let writing = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt as _;
            while far.write_all(&[b'a'; 4096]).await.is_ok() {}
        });
        let mut stream = Bounded::over(near, peer);
        let mut came = Vec::new();
        let error = stream.read_to_end(&mut came).await.unwrap_err();
        assert!(error.to_string().contains("more than 64 KiB"), "{error}");
        assert!(came.len() <= RECEIVED_LEN_MAX, "{}", came.len());
        // It does not begin again.
        assert!(stream.read_u8().await.is_err());
        drop(stream);
        writing.await.unwrap();
    }
}
