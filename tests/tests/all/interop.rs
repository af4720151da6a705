//! Live peers that share no code with us: both roles, both patterns, handshake and transport.
//!
//! Every key is fixed, so the whole conversation is known: `tests/interop/transcript.txt` holds it,
//! and each pair of peers must produce it byte for byte.

#![expect(
    clippy::unnecessary_wraps,
    clippy::unwrap_in_result,
    reason = "a peer may be missing, each in its own way; a step that fails is a test that fails"
)]

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use data_encoding::HEXLOWER;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::noise::{CipherState, HandshakeState, KeyPair, Pattern, Role};
use scrinium_tests::peers::python_tool;

/// One end of a Noise conversation.
trait Peer {
    fn write(&mut self, payload: &[u8]) -> Vec<u8>;
    fn read(&mut self, message: &[u8]) -> Vec<u8>;
    fn hash(&mut self) -> Vec<u8>;
    fn seal(&mut self, text: &[u8]) -> Vec<u8>;
    fn open(&mut self, text: &[u8]) -> Vec<u8>;
}

type MakePeer = fn(Pattern, Role) -> Option<Box<dyn Peer>>;

#[test]
fn snow_agrees_in_both_roles() {
    agrees(Snow::start);
}

#[test]
fn noiseprotocol_agrees_in_both_roles() {
    agrees(Python::start);
}

fn agrees(other: MakePeer) {
    let mut transcript = String::new();
    for pattern in [Pattern::XKpsk3, Pattern::NNpsk0] {
        let mut conversations = Vec::new();
        for (initiator, responder) in [(Ours::start as MakePeer, other), (other, Ours::start)] {
            let ends = (
                initiator(pattern, Role::Initiator),
                responder(pattern, Role::Responder),
            );
            let (Some(initiator), Some(responder)) = ends else {
                return; // said by who is missing
            };
            conversations.push(converse(pattern, initiator, responder));
        }
        assert_eq!(conversations[0], conversations[1]);
        let _infallible = write!(transcript, "{pattern:?}\n{}", conversations[0]);
    }
    assert_eq!(transcript, include_str!("../../interop/transcript.txt"));
}

/// The whole handshake and six transport messages; returns what went over the wire.
fn converse(
    pattern: Pattern,
    mut initiator: Box<dyn Peer>,
    mut responder: Box<dyn Peer>,
) -> String {
    let mut transcript = String::new();
    let messages = if pattern == Pattern::XKpsk3 { 3 } else { 2 };
    for n in 0..messages + 6 {
        let (from, to) = if n % 2 == 0 {
            (&mut initiator, &mut responder)
        } else {
            (&mut responder, &mut initiator)
        };
        let payload = format!("payload {n}");
        let (wire, read) = if n < messages {
            let wire = from.write(payload.as_bytes());
            let read = to.read(&wire);
            (wire, read)
        } else {
            let wire = from.seal(payload.as_bytes());
            let read = to.open(&wire);
            (wire, read)
        };
        assert_eq!(read, payload.as_bytes());
        let _infallible = writeln!(transcript, "{n} {}", HEXLOWER.encode(&wire));
        if n + 1 == messages {
            let hash = initiator.hash();
            assert_eq!(hash, responder.hash());
            let _infallible = writeln!(transcript, "hash {}", HEXLOWER.encode(&hash));
        }
    }
    transcript
}

struct Ours {
    role: Role,
    state: HandshakeState,
    /// Sending and receiving, once the handshake is over.
    transport: Option<(CipherState, CipherState)>,
}

impl Ours {
    fn start(pattern: Pattern, role: Role) -> Option<Box<dyn Peer>> {
        let has_statics = pattern == Pattern::XKpsk3;
        let remote = has_statics && role == Role::Initiator;
        let state = HandshakeState::new(
            pattern,
            role,
            PROLOGUE,
            has_statics.then(|| pair(own_static(role))),
            pair(own_ephemeral(role)),
            remote.then(|| *pair(own_static(Role::Responder)).public()),
            Some(Secret::new(PSK)),
        );
        Some(Box::new(Self {
            role,
            state,
            transport: None,
        }))
    }

    fn transport(&mut self) -> &mut (CipherState, CipherState) {
        self.transport.get_or_insert_with(|| {
            let split = self.state.split();
            let initiator = CipherState::new(split.initiator.expose());
            let responder = CipherState::new(split.responder.expose());
            match self.role {
                Role::Initiator => (initiator, responder),
                Role::Responder => (responder, initiator),
            }
        })
    }
}

impl Peer for Ours {
    fn write(&mut self, payload: &[u8]) -> Vec<u8> {
        self.state.write_message(payload).unwrap()
    }

    fn read(&mut self, message: &[u8]) -> Vec<u8> {
        self.state.read_message(message).unwrap()
    }

    fn hash(&mut self) -> Vec<u8> {
        self.state.split().hash.to_vec()
    }

    fn seal(&mut self, text: &[u8]) -> Vec<u8> {
        let mut text = text.to_vec();
        self.transport().0.encrypt(&[], &mut text, 0).unwrap();
        text
    }

    fn open(&mut self, text: &[u8]) -> Vec<u8> {
        let mut text = text.to_vec();
        let len = self.transport().1.decrypt(&[], &mut text).unwrap();
        text.truncate(len);
        text
    }
}

enum Snow {
    Handshake(Box<snow::HandshakeState>),
    Transport(Box<snow::TransportState>),
    Between,
}

impl Snow {
    fn start(pattern: Pattern, role: Role) -> Option<Box<dyn Peer>> {
        let params = format!("Noise_{pattern:?}_25519_AESGCM_SHA256")
            .parse()
            .unwrap();
        let (own, ephemeral) = (own_static(role), own_ephemeral(role));
        let remote = *pair(own_static(Role::Responder)).public();
        let mut builder = snow::Builder::new(params)
            .prologue(PROLOGUE)
            .unwrap()
            .psk(if pattern == Pattern::XKpsk3 { 3 } else { 0 }, &PSK)
            .unwrap()
            .fixed_ephemeral_key_for_testing_only(&ephemeral);
        if pattern == Pattern::XKpsk3 {
            builder = builder.local_private_key(&own).unwrap();
        }
        let state = match role {
            Role::Initiator if pattern == Pattern::XKpsk3 => builder
                .remote_public_key(&remote)
                .unwrap()
                .build_initiator(),
            Role::Initiator => builder.build_initiator(),
            Role::Responder => builder.build_responder(),
        };
        Some(Box::new(Self::Handshake(Box::new(state.unwrap()))))
    }

    fn handshake(&mut self) -> &mut snow::HandshakeState {
        match self {
            Self::Handshake(state) => state,
            Self::Transport(_) | Self::Between => panic!("the handshake is over"),
        }
    }

    fn transport(&mut self) -> &mut snow::TransportState {
        *self = match core::mem::replace(self, Self::Between) {
            Self::Handshake(state) => {
                Self::Transport(Box::new(state.into_transport_mode().unwrap()))
            }
            transport @ (Self::Transport(_) | Self::Between) => transport,
        };
        match self {
            Self::Transport(state) => state,
            Self::Handshake(_) | Self::Between => panic!("just made"),
        }
    }
}

impl Peer for Snow {
    fn write(&mut self, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; 1024];
        let len = self.handshake().write_message(payload, &mut out).unwrap();
        out.truncate(len);
        out
    }

    fn read(&mut self, message: &[u8]) -> Vec<u8> {
        let mut out = vec![0; 1024];
        let len = self.handshake().read_message(message, &mut out).unwrap();
        out.truncate(len);
        out
    }

    fn hash(&mut self) -> Vec<u8> {
        self.handshake().get_handshake_hash().to_vec()
    }

    fn seal(&mut self, text: &[u8]) -> Vec<u8> {
        let mut out = vec![0; 1024];
        let state = self.transport();
        let len = state.write_message(text, &mut out).unwrap();
        out.truncate(len);
        out
    }

    fn open(&mut self, text: &[u8]) -> Vec<u8> {
        let mut out = vec![0; 1024];
        let state = self.transport();
        let len = state.read_message(text, &mut out).unwrap();
        out.truncate(len);
        out
    }
}

/// `noise_peer.py` over pipes.
struct Python {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Python {
    fn start(pattern: Pattern, role: Role) -> Option<Box<dyn Peer>> {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let python = python_tool("python")?;
        let hex = |bytes: &[u8]| HEXLOWER.encode(bytes);
        let has_statics = pattern == Pattern::XKpsk3;
        let own = if has_statics {
            hex(&own_static(role))
        } else {
            "-".into()
        };
        let remote = if has_statics && role == Role::Initiator {
            hex(pair(own_static(Role::Responder)).public())
        } else {
            "-".into()
        };
        let mut child = Command::new(python)
            .args(["-W", "ignore"])
            .arg(format!("{root}/tests/interop/noise_peer.py"))
            .args([
                format!("{pattern:?}"),
                format!("{role:?}").to_lowercase(),
                own,
                remote,
            ])
            .args([hex(&own_ephemeral(role)), hex(&PSK), hex(PROLOGUE)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Some(Box::new(Self {
            child,
            input,
            output,
        }))
    }

    fn ask(&mut self, verb: &str, data: &[u8]) -> Vec<u8> {
        writeln!(self.input, "{verb} {}", HEXLOWER.encode(data)).unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        HEXLOWER.decode(line.trim().as_bytes()).unwrap()
    }
}

impl Peer for Python {
    fn write(&mut self, payload: &[u8]) -> Vec<u8> {
        self.ask("write", payload)
    }

    fn read(&mut self, message: &[u8]) -> Vec<u8> {
        self.ask("read", message)
    }

    fn hash(&mut self) -> Vec<u8> {
        self.ask("hash", b"")
    }

    fn seal(&mut self, text: &[u8]) -> Vec<u8> {
        self.ask("seal", text)
    }

    fn open(&mut self, text: &[u8]) -> Vec<u8> {
        self.ask("open", text)
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn pair(secret: [u8; 32]) -> KeyPair {
    KeyPair::from_secret(&Secret::new(secret))
}

fn own_static(role: Role) -> [u8; 32] {
    match role {
        Role::Initiator => [11; 32],
        Role::Responder => [22; 32],
    }
}

fn own_ephemeral(role: Role) -> [u8; 32] {
    match role {
        Role::Initiator => [44; 32],
        Role::Responder => [55; 32],
    }
}

const PSK: [u8; 32] = [33; 32];
const PROLOGUE: &[u8] = b"scrinium interoperation";
