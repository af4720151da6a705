//! Dialling the server: a connection, preamble, handshake.
//!
//! ```text
//! [way]: which address, which proxy ─▶ [connect], [race]: a socket ─▶ [proxy]: a tunnel ─▶ [Dial]: a session's keys
//! ```

mod connect;
mod environment;
mod look;
mod proxy;
mod race;
mod way;

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use scrinium_protocol::identity::AgentId;
use scrinium_protocol::route::Proxy;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::{
    AgentHello, AgentKeys, Established, FRAME_HEAD_LEN, FrameHead, Purpose, RefusalCode,
    SendAgentHello, ServerHello, parse_refusal, start,
};
use scrinium_protocol::sl::noise::KeyPair;
use scrinium_protocol::sl::suite::Suite;
use scrinium_segment::{machine, random};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tracing::{debug, warn};

pub(crate) use self::connect::Memory;
pub(crate) use self::look::{Look, Looked};
pub(crate) use self::proxy::NotLetPass;
use self::way::Through;
pub(crate) use self::way::{Hop, Round, Shown, Way};
use crate::clock;
use crate::config::read_password;
use crate::identity::State;
use crate::identity::asking::Asking;
use crate::shipper::Refused;

/// What dialling needs of the agent's state.
pub(crate) struct Dial {
    suite: Suite,
    server_public: [u8; 32],
    noise: Secret<32>,
    credential: Secret<32>,
    purpose: Purpose,
    hello: AgentHello,
}

/// A session's begin.
pub(crate) struct Connected {
    pub(crate) stream: TcpStream,
    pub(crate) established: Established,
    /// Which of the addresses it is.
    pub(crate) hop: usize,
    /// Where the socket leads: the server, or the proxy.
    pub(crate) peer: SocketAddr,
}

impl Dial {
    /// Dials with `credential`, in clear if `is_in_clear`.
    pub(crate) fn new(state: &State, credential: &Secret<32>, is_in_clear: bool) -> Self {
        let signing = ed25519_dalek::SigningKey::from_bytes(state.signing.expose());
        let mut hello = hello(state.agent, &state.server_public);
        hello.signing_public = signing.verifying_key().to_bytes();
        Self {
            suite: match is_in_clear {
                true => Suite::IntegrityOnly,
                false => Suite::Encrypted,
            },
            server_public: state.server_public,
            noise: state.noise.clone(),
            credential: credential.clone(),
            purpose: state
                .token
                .map_or(Purpose::Connect, |token| Purpose::Enrol { token }),
            hello,
        }
    }

    /// Dials to ask for the key of a state that does not open here. The keys shown are nobody's: the credential alone
    /// says which agent is meant.
    pub(crate) fn to_ask(asking: &Asking) -> Result<Self> {
        let mut hello = hello(asking.agent, &asking.server_public);
        hello.signing_public = *KeyPair::from_secret(&Secret::new(random()?)).public();
        Ok(Self {
            suite: Suite::Encrypted,
            server_public: asking.server_public,
            noise: Secret::new(random()?),
            credential: asking.credential.clone(),
            purpose: Purpose::Ask {
                agent: asking.agent,
            },
            hello,
        })
    }

    /// Tries the addresses of a round until the server shakes hands at one; each within a deadline. What was learned of
    /// the way comes back with it.
    pub(crate) async fn run(mut self, round: Round) -> (Memory, Result<Connected>) {
        let Round { hops, mut memory } = round;
        let mut problems = Vec::new();
        let mut refused = None;
        let mut closed: Vec<Hop> = Vec::new();
        for (index, hop) in hops {
            // It would be asked the same again.
            if closed.iter().any(|closed| closed.has_proxy_of(&hop)) {
                continue;
            }
            let error = match self.shake_hands_at(&hop, &mut memory).await {
                Ok((stream, established, peer)) => {
                    // Once for each session: what is never reached is said with the reason why there is none.
                    if !problems.is_empty() {
                        warn!(
                            problems = problems.join("; "),
                            "addresses of the server lead nowhere: another one is used"
                        );
                    }
                    let connected = Connected {
                        stream,
                        established,
                        hop: index,
                        peer,
                    };
                    return (memory, Ok(connected));
                }
                Err(error) => error,
            };
            if error.is::<Refused>() && refused.is_none() {
                // Of all reasons this one is the server's own.
                refused = Some(error);
            } else if error.is::<NotLetPass>() && refused.is_none() {
                refused = Some(error);
                closed.push(hop);
            } else {
                problems.push(format!("{error:#}"));
            }
        }
        let error = refused.unwrap_or_else(|| anyhow!("{}", problems.join("; ")));
        (memory, Err(error))
    }

    async fn shake_hands_at(
        &mut self,
        hop: &Hop,
        memory: &mut Memory,
    ) -> Result<(TcpStream, Established, SocketAddr)> {
        let (mut stream, peer) = reach(hop, memory).await?;
        let shaken = tokio::time::timeout(HANDSHAKE_MAX, self.shake_hands(&mut stream)).await;
        let shaken = shaken.unwrap_or_else(|_| Err(unanswered(hop)));
        hop.note(memory, peer, &shaken);
        Ok((stream, shaken?, peer))
    }

    async fn shake_hands(&mut self, stream: &mut TcpStream) -> Result<Established> {
        let send = self.greet(stream).await?;
        self.hello.time_us = clock::unix_us();
        let (bytes, established) = send.finish(&self.hello)?;
        stream.write_all(&bytes).await?;
        Ok(established)
    }

    /// The first half of a handshake: whether the server is there, and takes agents. Nobody is let in by it.
    async fn greet(&self, stream: &mut TcpStream) -> Result<SendAgentHello> {
        let keys = AgentKeys {
            suite: self.suite,
            static_keys: KeyPair::from_secret(&self.noise),
            ephemeral: KeyPair::from_secret(&Secret::new(random()?)),
            server_public: self.server_public,
            psk: self.credential.clone(),
        };
        let (bytes, expect) = start(keys, "", self.purpose)?;
        stream.write_all(&bytes).await?;
        let frame = read_frame(stream).await?;
        let (answer, send) = expect
            .handle(&frame)
            .context("the server's answer is not from the server of the token")?;
        if let ServerHello::Refused { reason } = answer {
            return Err(Refused::new((RefusalCode::Other, reason)).into());
        }
        Ok(send)
    }

    /// The first address of a round at which the server is, and takes agents.
    pub(crate) async fn find(self, round: Round) -> Option<usize> {
        let Round { hops, mut memory } = round;
        for (index, hop) in hops {
            match self.is_at(&hop, &mut memory).await {
                Ok(()) => return Some(index),
                Err(error) => debug!(
                    address = hop.named(),
                    error = format!("{error:#}"),
                    "the server is not to be found there yet"
                ),
            }
        }
        None
    }

    async fn is_at(&self, hop: &Hop, memory: &mut Memory) -> Result<()> {
        let (mut stream, _) = reach(hop, memory).await?;
        let greeted = tokio::time::timeout(HANDSHAKE_MAX, self.greet(&mut stream)).await;
        greeted.unwrap_or_else(|_| Err(unanswered(hop)))?;
        Ok(())
    }
}

/// A connection to an address of the server, through its proxy if it has one; and where the socket leads.
async fn reach(hop: &Hop, memory: &mut Memory) -> Result<(TcpStream, SocketAddr)> {
    let Some(through) = &hop.proxy else {
        let (stream, peer) = connect::connect(&hop.address, memory).await?;
        stream.set_nodelay(true)?;
        return Ok((stream, peer));
    };
    let described = || through.described();
    let proxy = with_password(through).await.with_context(described)?;
    let connected = connect::connect(through.address(), memory).await;
    let (mut stream, peer) = connected.with_context(described)?;
    stream.set_nodelay(true)?;
    let opened = proxy::open(&mut stream, &proxy, &hop.address);
    let opened = tokio::time::timeout(TUNNEL_MAX, opened).await;
    let opened = opened.unwrap_or_else(|_| Err(anyhow!("it did not answer in time")));
    opened.with_context(described)?;
    Ok((stream, peer))
}

/// The proxy with its password, which is read for each connection: it may be another than that of yesterday.
async fn with_password(through: &Through) -> Result<Proxy> {
    static READS: Semaphore = Semaphore::const_new(1);
    let mut proxy = through.proxy.clone();
    let Some(path) = through.password_file.clone() else {
        return Ok(proxy);
    };
    let read = async {
        let permit = READS.acquire().await?;
        let read = tokio::task::spawn_blocking(move || {
            let password = read_password(&path);
            drop(permit);
            password
        });
        read.await?
    };
    let read = tokio::time::timeout(PASSWORD_READ_MAX, read).await;
    proxy.password = Some(read.context("the file of the password does not answer")??);
    Ok(proxy)
}

fn unanswered(hop: &Hop) -> anyhow::Error {
    anyhow!("{} did not answer in time", hop.named())
}

impl Hop {
    /// Remembers whether the socket led to the server. Of a proxy nothing is known by that.
    fn note<T>(&self, memory: &mut Memory, peer: SocketAddr, shaken: &Result<T>) {
        if self.proxy.is_some() {
            return;
        }
        match shaken {
            Ok(_) => memory.note_good(&self.address, peer),
            Err(error) if error.is::<Refused>() => {}
            Err(_) => memory.note_bad(&self.address, peer, clock::now()),
        }
    }
}

/// What this machine and process say of themselves.
fn hello(agent: AgentId, server_public: &[u8; 32]) -> AgentHello {
    AgentHello {
        agent,
        signing_public: [0; 32],
        boot_id: boot_id(),
        instance: instance(),
        time_us: 0,
        host_name: host_name(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        os: os_name(),
        // Salted with the server's key: two servers cannot compare what they know of a machine.
        fingerprint: machine::fingerprint(server_public),
    }
}

/// Reads a frame of the handshake; a refusal is an error.
async fn read_frame(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut head = [0; FRAME_HEAD_LEN];
    stream
        .read_exact(&mut head)
        .await
        .context("the server closed the connection")?;
    let head = FrameHead::parse(head).context(
        "what answers there does not speak as a server does to agents: the port may be that of the console, or of another program. Dial what listen.sl of the server says",
    )?;
    let (len, refused) = match head {
        FrameHead::Message(len) => (len, false),
        FrameHead::Refusal(len) => (len, true),
    };
    let mut frame = vec![0; len];
    stream.read_exact(&mut frame).await?;
    if refused {
        return Err(Refused::new(parse_refusal(&frame)).into());
    }
    Ok(frame)
}

/// Checks that the server can be reached at all by a hop.
pub(crate) async fn can_connect(hop: &Hop) -> Result<()> {
    reach(hop, &mut Memory::default()).await.map(drop)
}

/// The variables of the environment that are texts.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// What this process is called as long as it lives.
fn instance() -> [u8; 16] {
    static INSTANCE: OnceLock<[u8; 16]> = OnceLock::new();
    *INSTANCE.get_or_init(|| random().unwrap_or_default())
}

fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let value = u128::from_str_radix(&hex, 16).unwrap_or(0);
    value.to_be_bytes()
}

fn host_name() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = kernel
        .or_else(|| std::env::var("COMPUTERNAME").ok())
        .or_else(|| std::env::var("HOSTNAME").ok());
    name.unwrap_or_default().trim().to_owned()
}

fn os_name() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    pretty.map_or_else(
        || std::env::consts::OS.to_owned(),
        |name| name.trim_matches('"').to_owned(),
    )
}

/// From the socket to the session's keys.
const HANDSHAKE_MAX: Duration = Duration::from_secs(15);
/// Until the proxy says whether it reaches the server: it has its own time for that.
const TUNNEL_MAX: Duration = Duration::from_secs(20);
/// A file on a server that is gone, say, or a pipe that nobody writes to.
const PASSWORD_READ_MAX: Duration = Duration::from_secs(5);
