//! An agent of ours without a program: its session over a socket, to do what no agent does.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use ed25519_dalek::SigningKey;
use scrinium_protocol::identity::AgentId;
use scrinium_protocol::kdf::sha256;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::{
    AgentHello, AgentKeys, Established, ExpectAgentStart, FRAME_HEAD_LEN, Purpose, ServerHello,
    start,
};
use scrinium_protocol::sl::message::KeepAlive;
use scrinium_protocol::sl::noise::KeyPair;
use scrinium_protocol::sl::session::{AgentEvent, AgentSession};
use scrinium_protocol::sl::suite::Suite;
use scrinium_protocol::token::Token;

/// A connected agent.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    pub session: AgentSession,
    /// Named by the server.
    pub agent: AgentId,
    pub is_ready: bool,
    seed: u32,
    /// Of the next connection.
    credential: Secret<32>,
}

/// Shows a token that is refused, so many times, each time as another machine.
///
/// # Panics
/// It is not refused.
pub fn refused_tokens(token: &Token, address: SocketAddr, times: u32, seed: u32) {
    for number in seed..seed + times {
        let secret = |label: &[u8]| Secret::new(sha256(&[label, &number.to_be_bytes()]));
        let keys = AgentKeys {
            suite: Suite::Encrypted,
            static_keys: KeyPair::from_secret(&secret(b"static")),
            ephemeral: KeyPair::from_secret(&secret(b"ephemeral")),
            server_public: token.server_public,
            psk: token.secret.clone(),
        };
        let purpose = Purpose::Enrol { token: token.id };
        let (sent, expect) = start(keys, "", purpose).unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&sent).unwrap();
        let mut head = [0; FRAME_HEAD_LEN];
        stream.read_exact(&mut head).unwrap();
        let mut frame = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
        stream.read_exact(&mut frame).unwrap();
        let answer = expect.handle(&frame);
        assert!(
            !matches!(answer, Ok((ServerHello::Welcome { .. }, _))),
            "{number}"
        );
    }
}

impl Client {
    /// Uses a token; the keys are drawn from `seed`.
    #[must_use]
    pub fn enrol(token: &Token, address: SocketAddr, seed: u32) -> Self {
        Self::enrol_as(token, address, seed, Self::hello(seed))
    }

    /// The same, and says of itself what is in `hello`.
    #[must_use]
    pub fn enrol_as(token: &Token, address: SocketAddr, seed: u32, hello: AgentHello) -> Self {
        let purpose = Purpose::Enrol { token: token.id };
        let public = token.server_public;
        Self::shake_hands(purpose, hello, public, token.secret.clone(), address, seed)
    }

    /// Hangs up; returns what it takes to connect again.
    #[must_use]
    pub fn leave(self) -> Known {
        self.known()
    }

    /// What it takes to connect again.
    #[must_use]
    pub fn known(&self) -> Known {
        Known {
            agent: self.agent,
            seed: self.seed,
            credential: self.credential.clone(),
        }
    }

    /// Writes what is to be sent, however long the server takes to read it; reads nothing.
    pub fn push(&mut self) {
        self.stream.set_nonblocking(false).unwrap();
        while let Some(bytes) = self.session.poll_transmit() {
            self.stream.write_all(&bytes).unwrap();
        }
        self.stream.set_nonblocking(true).unwrap();
    }

    /// Waits until the server says something; reads none of it.
    pub fn wait_for_word(&self) {
        self.stream.set_nonblocking(false).unwrap();
        let patience = Some(std::time::Duration::from_secs(30));
        self.stream.set_read_timeout(patience).unwrap();
        assert_eq!(self.stream.peek(&mut [0]).unwrap(), 1, "it is let in");
        self.stream.set_nonblocking(true).unwrap();
    }

    /// Writes what is no record, as somebody on the way may.
    pub fn spoil(&mut self) {
        self.stream.write_all(&[0xa5; 64]).unwrap();
    }

    fn shake_hands(
        purpose: Purpose,
        hello: AgentHello,
        server_public: [u8; 32],
        psk: Secret<32>,
        address: SocketAddr,
        seed: u32,
    ) -> Self {
        let secret = |label: &[u8]| Secret::new(sha256(&[label, &seed.to_be_bytes()]));
        let keys = AgentKeys {
            suite: Suite::Encrypted,
            static_keys: KeyPair::from_secret(&secret(b"static")),
            ephemeral: KeyPair::from_secret(&secret(b"ephemeral")),
            server_public,
            psk,
        };
        let (sent, expect) = start(keys, "", purpose).unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(&sent).unwrap();
        let mut head = [0; FRAME_HEAD_LEN];
        stream.read_exact(&mut head).unwrap();
        let mut frame = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
        stream.read_exact(&mut frame).unwrap();
        let (answer, send) = expect.handle(&frame).unwrap();
        assert!(matches!(answer, ServerHello::Welcome { .. }), "{answer:?}");
        let (sent, established) = send.finish(&hello).unwrap();
        stream.write_all(&sent).unwrap();
        stream.set_nonblocking(true).unwrap();
        Self {
            stream,
            credential: established.next_psk.clone(),
            session: AgentSession::new(established, crate::now()),
            agent: hello.agent,
            is_ready: false,
            seed,
        }
    }

    /// What such an agent says of itself.
    #[must_use]
    pub fn hello(seed: u32) -> AgentHello {
        AgentHello {
            signing_public: Self::signing().verifying_key().to_bytes(),
            host_name: format!("client{seed}"),
            ..AgentHello::default()
        }
    }

    /// What every such agent signs its batches with.
    #[must_use]
    pub fn signing() -> SigningKey {
        SigningKey::from_bytes(&[5; 32])
    }

    /// Reads what is there, answers as an agent must, and writes what is to be sent. Returns what else
    /// happened, and whether the connection still stands.
    pub fn breathe(&mut self) -> (Vec<AgentEvent>, bool) {
        let time = crate::now();
        let mut buffer = [0; 4096];
        let mut stands = true;
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => stands = false,
                Ok(n) => {
                    self.session.handle_bytes(&buffer[..n], time).unwrap();
                    continue;
                }
                Err(error) => stands &= error.kind() == std::io::ErrorKind::WouldBlock,
            }
            break;
        }
        let mut events = Vec::new();
        while let Some(event) = self.session.poll_event() {
            match event {
                AgentEvent::Enrolled { agent } => {
                    self.agent = agent;
                    self.session.send_credential_stored(time).unwrap();
                }
                AgentEvent::Ready { .. } => self.is_ready = true,
                AgentEvent::CredentialRolled => {
                    // At enrolment it is said when the name is known.
                    if self.agent != AgentId::default() {
                        self.session.send_credential_stored(time).unwrap();
                    }
                }
                event @ (AgentEvent::StreamState { .. }
                | AgentEvent::Configuration(_)
                | AgentEvent::StateKey(_)
                | AgentEvent::Acked(_)
                | AgentEvent::Closed { .. }
                | AgentEvent::PeerSilent) => events.push(event),
            }
        }
        if self.session.is_keep_alive_due(time) {
            let state = KeepAlive::default();
            self.session.send_keep_alive(state, time).unwrap();
        }
        while let Some(bytes) = self.session.poll_transmit() {
            stands &= self.stream.write_all(&bytes).is_ok();
        }
        (events, stands)
    }
}

/// An enrolled agent that is not connected.
#[derive(Debug)]
pub struct Known {
    agent: AgentId,
    pub seed: u32,
    credential: Secret<32>,
}

impl Known {
    /// Connects with the credential of the connection before.
    #[must_use]
    pub fn connect(&self, server_public: [u8; 32], address: SocketAddr) -> Client {
        self.connect_as(server_public, address, Client::hello(self.seed))
    }

    /// The same, and says of itself what is in `hello`.
    #[must_use]
    pub fn connect_as(
        &self,
        server_public: [u8; 32],
        address: SocketAddr,
        hello: AgentHello,
    ) -> Client {
        let hello = AgentHello {
            agent: self.agent,
            ..hello
        };
        Client::shake_hands(
            Purpose::Connect,
            hello,
            server_public,
            self.credential.clone(),
            address,
            self.seed,
        )
    }
}

/// A key pair that is always the same.
#[must_use]
pub fn pair(seed: u8) -> KeyPair {
    KeyPair::from_secret(&Secret::new([seed; 32]))
}

/// What an agent brings to a handshake with the server of [`pair`] 3, its credential all fives.
#[must_use]
pub fn fixed_keys(suite: Suite) -> AgentKeys {
    AgentKeys {
        suite,
        static_keys: pair(1),
        ephemeral: pair(2),
        server_public: *pair(3).public(),
        psk: Secret::new([5; 32]),
    }
}

/// Both ends of a finished handshake, without a socket between them.
#[must_use]
pub fn established(suite: Suite) -> (Established, Established) {
    let keys = fixed_keys(suite);
    let (sent, agent) = start(keys, "", Purpose::Connect).unwrap();
    let server = ExpectAgentStart::new(suite, &sent[..5], pair(3), pair(4));
    let (_, server) = server.handle(&sent[8..]).unwrap();
    let (sent, server) = server.answer(&ServerHello::Welcome { time_us: 0 }).unwrap();
    let (_, agent) = agent.handle(&sent[3..]).unwrap();
    let (sent, agent) = agent.finish(&AgentHello::default()).unwrap();
    let (_, _, server) = server.handle(&sent[3..], &[Secret::new([5; 32])]).unwrap();
    (agent, server)
}
