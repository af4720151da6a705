//! Dialling the server: TCP, preamble, handshake.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use scrinium_protocol::identity::AgentId;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::{
    AgentHello, AgentKeys, Established, FRAME_HEAD_LEN, FrameHead, Purpose, RefusalCode,
    ServerHello, parse_refusal, start,
};
use scrinium_protocol::sl::noise::KeyPair;
use scrinium_protocol::sl::suite::Suite;
use scrinium_segment::{machine, random};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::clock;
use crate::identity::State;
use crate::identity::asking::Asking;
use crate::shipper::Refused;

/// What dialling needs of the agent's state.
pub(crate) struct Dial {
    suite: Suite,
    address: String,
    server_public: [u8; 32],
    noise: Secret<32>,
    credential: Secret<32>,
    purpose: Purpose,
    hello: AgentHello,
}

impl Dial {
    /// Dials with `credential`; in clear, if `integrity_only` says where.
    pub(crate) fn new(
        state: &State,
        credential: &Secret<32>,
        integrity_only: Option<String>,
    ) -> Self {
        let signing = ed25519_dalek::SigningKey::from_bytes(state.signing.expose());
        let mut hello = hello(state.agent, &state.server_public);
        hello.signing_public = signing.verifying_key().to_bytes();
        Self {
            suite: match integrity_only {
                Some(_) => Suite::IntegrityOnly,
                None => Suite::Encrypted,
            },
            address: integrity_only.unwrap_or_else(|| state.address.clone()),
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
            address: asking.address.clone(),
            server_public: asking.server_public,
            noise: Secret::new(random()?),
            credential: asking.credential.clone(),
            purpose: Purpose::Ask {
                agent: asking.agent,
            },
            hello,
        })
    }

    /// Connects and shakes hands, within a deadline.
    pub(crate) async fn run(self) -> Result<(TcpStream, Established)> {
        let address = self.address.clone();
        let dialled = tokio::time::timeout(DIAL_MAX, self.shake_hands()).await;
        dialled.with_context(|| format!("{address} did not answer in time"))?
    }

    async fn shake_hands(mut self) -> Result<(TcpStream, Established)> {
        let connected = TcpStream::connect(&self.address).await;
        let mut stream = connected.with_context(|| format!("connecting to {}", self.address))?;
        stream.set_nodelay(true)?;
        let keys = AgentKeys {
            suite: self.suite,
            static_keys: KeyPair::from_secret(&self.noise),
            ephemeral: KeyPair::from_secret(&Secret::new(random()?)),
            server_public: self.server_public,
            psk: self.credential.clone(),
        };
        let (bytes, expect) = start(keys, "", self.purpose)?;
        stream.write_all(&bytes).await?;
        let frame = read_frame(&mut stream).await?;
        let (answer, send) = expect
            .handle(&frame)
            .context("the server's answer is not from the server of the token")?;
        if let ServerHello::Refused { reason } = answer {
            return Err(Refused::new((RefusalCode::Other, reason)).into());
        }
        self.hello.time_us = clock::unix_us();
        let (bytes, established) = send.finish(&self.hello)?;
        stream.write_all(&bytes).await?;
        Ok((stream, established))
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
    let (len, refused) = match FrameHead::parse(head)? {
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

/// Checks that the server can be reached at all.
pub(crate) async fn can_connect(address: &str) -> Result<()> {
    let connected = tokio::time::timeout(DIAL_MAX, TcpStream::connect(address)).await;
    match connected {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => bail!("{address}: {error}"),
        Err(_) => bail!("{address} did not answer in time"),
    }
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

const DIAL_MAX: Duration = Duration::from_secs(15);
