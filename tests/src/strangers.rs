//! Connections and datagrams of people nobody knows, from as many loopback addresses as are wanted.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use socket2::{Domain, Socket, Type};

/// The `n`th stranger: none of them is 127.0.0.1.
#[must_use]
pub fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + n)
}

/// A connection from `source`. None if it is refused. Its end leaves no port occupied.
#[must_use]
pub fn connect(source: Ipv4Addr, to: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    // The port is chosen with the other end in view: so every source has all of them.
    drop(socket.set_tcp_nodelay(true));
    socket.bind(&SocketAddr::from((source, 0)).into()).ok()?;
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket
        .connect_timeout(&to.into(), Duration::from_secs(5))
        .ok()?;
    socket.set_nonblocking(false).unwrap();
    Some(socket.into())
}

/// One datagram from `source`.
pub fn send(source: Ipv4Addr, to: SocketAddr, text: &str) {
    let socket = UdpSocket::bind(SocketAddrV4::new(source, 0)).unwrap();
    socket.send_to(text.as_bytes(), to).unwrap();
}

/// A connection to the console that speaks TLS.
pub type Browser = StreamOwned<ClientConnection, TcpStream>;

/// Opens one from `source`, and sends `request` on it. None if it is refused.
#[must_use]
pub fn browse(source: Ipv4Addr, to: SocketAddr, request: &str) -> Option<Browser> {
    let stream = connect(source, to)?;
    let limit = Some(Duration::from_secs(20));
    stream.set_read_timeout(limit).unwrap();
    stream.set_write_timeout(limit).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut browser = StreamOwned::new(connection, stream);
    browser.write_all(request.as_bytes()).ok()?;
    browser.flush().ok()?;
    Some(browser)
}

/// Believes every certificate: the console's is its own.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
