//! Connections and datagrams of people nobody knows, from as many loopback addresses as are wanted; and an agent and
//! accounts that mean no good.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use scrinium_protocol::batch::{BatchBuilder, StreamPosition};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::compress::Compressor;
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::identity::{Epoch, StreamId, StreamKind};
use scrinium_protocol::sl::message::Lane;
use scrinium_protocol::sl::session::AgentEvent;
use socket2::{Domain, Socket, Type};

use crate::client::Client;
use crate::console::Console;
use crate::lab::Lab;
use crate::{now, pause};

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

/// What an agent has done that wants as many streams as there can be.
#[derive(Debug, Default)]
pub struct ManyStreams {
    /// Streams of which an entry is archived.
    pub archived: u32,
    /// Why the server ended the session.
    pub reason: Option<String>,
}

/// Opens up to `streams` streams with names of 650 bytes, an entry in each, as fast as it is let, until it is told to
/// go, or `stop`. Then it stays connected until `stop`.
#[must_use]
pub fn open_many_streams(mut client: Client, streams: u32, stop: &AtomicBool) -> ManyStreams {
    let mut done = ManyStreams::default();
    let mut sent = 0;
    let mut compressor = Compressor::new(1);
    while !stop.load(Ordering::Relaxed) {
        let (events, stands) = client.breathe();
        for event in events {
            if let AgentEvent::Acked(_) = event {
                done.archived += 1;
            } else if let AgentEvent::Closed { reason } = event {
                done.reason = Some(reason);
            }
        }
        if !stands || done.reason.is_some() {
            break;
        }
        if !client.is_ready || sent >= streams || sent - done.archived >= MANY_IN_FLIGHT {
            pause(Duration::from_millis(2));
            continue;
        }
        let name = format!("/{sent}{}", "x".repeat(650));
        let id = StreamId::derive(client.agent, StreamKind::File, &name);
        let opened = client
            .session
            .send_stream_open(id, StreamKind::File, &name, now());
        opened.unwrap();
        let start = StreamPosition::start(client.agent, id, Epoch([7; 16]));
        let mut builder = BatchBuilder::new();
        let meta = EntryMeta {
            time_us: 1,
            flags: EntryFlags::NONE,
        };
        assert!(builder.push(b"a line of a hostile agent\n", meta));
        let (batch, _) = builder.seal(id, &start, Vec::new(), &Client::signing(), &mut compressor);
        let encoded = batch.encoded();
        let taken = client
            .session
            .send_batch(Lane::Live, &batch.header, encoded, now());
        taken.unwrap().unwrap();
        sent += 1;
    }
    done
}

/// Opened streams whose entries are not acknowledged.
const MANY_IN_FLIGHT: u32 = 64;

/// Accounts that ask for as much as there can be, and take it as slowly as they may.
#[derive(Debug)]
pub struct Greedy {
    consoles: Vec<Console>,
    dir: PathBuf,
    asked: Vec<Option<Child>>,
    /// Downloads and queries that were begun.
    pub begun: u32,
}

impl Greedy {
    /// Makes the accounts, and signs them in.
    #[must_use]
    pub fn sign_in(lab: &Lab, password: &str) -> Self {
        let consoles = (0..5).map(|n| {
            let name = format!("greedy{n}");
            lab.add_user(&name, password);
            Console::sign_in_as(lab, &name, password)
        });
        Self {
            consoles: consoles.collect(),
            dir: lab.dir.clone(),
            asked: (0..20).map(|_| None).collect(),
            begun: 0,
        }
    }

    /// Has 20 downloads and queries under way: each that ended is begun again.
    pub fn ask(&mut self) {
        let without: Vec<String> = (0..20).map(|n| format!("-nowhere{n}")).collect();
        let heavy = format!("x*+{}", without.join("+"));
        let paths = [
            "/search/raw?q=&range=all".to_owned(),
            "/export?q=filler".to_owned(),
            format!("/search?q={heavy}&range=all"),
            format!("/api/v1/search?q={heavy}&range=all&limit=100000"),
        ];
        for (number, asked) in self.asked.iter_mut().enumerate() {
            let is_under_way = asked
                .as_mut()
                .is_some_and(|asked| asked.try_wait().unwrap().is_none());
            if is_under_way {
                continue;
            }
            let console = &self.consoles[number / paths.len()];
            let path = &paths[number % paths.len()];
            let file = self.dir.join(format!("greedy-{number}"));
            *asked = Some(console.begin(path, &file, 20 << 10));
            self.begun += 1;
        }
    }
}

impl Drop for Greedy {
    fn drop(&mut self) {
        for asked in self.asked.iter_mut().flatten() {
            let _ended = asked.kill();
            let _reaped = asked.wait();
        }
    }
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
