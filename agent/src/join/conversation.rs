//! A short session: a few messages of the server are waited for, and it is over.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::refusal_of;
use scrinium_protocol::sl::session::{AgentEvent, AgentSession};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::clock;
use crate::config::Config;
use crate::link::{self, Connected, Dial, Way};
use crate::shipper::Refused;

/// The way to a server for such a session: by the port that encrypts, whatever the agent sends by later.
pub(super) fn way_of(config: &Config, address: &str) -> Result<Way> {
    Way::new(&config.reach, address, None, link::variable, 0)
}

/// A session and its socket.
pub(super) struct Conversation {
    stream: TcpStream,
    pub(super) session: AgentSession,
    /// The next credential, and the one for recovery.
    pub(super) credentials: (Secret<32>, Secret<32>),
    buffer: Vec<u8>,
    /// Bytes before the first record, in case they are a refusal.
    first: Option<Vec<u8>>,
}

impl Conversation {
    /// Dials by `way`, until the server shakes hands at one of its addresses.
    pub(super) async fn begin(dial: Dial, way: &mut Way) -> Result<Self> {
        let (memory, connected) = dial.run(way.round(clock::now())).await;
        way.remember(memory);
        let Connected {
            stream,
            established,
            hop,
            peer,
        } = connected?;
        way.note_up(hop, peer, clock::now());
        Ok(Self {
            stream,
            credentials: (
                established.next_psk.clone(),
                established.recovery_psk.clone(),
            ),
            session: AgentSession::new(established, clock::now()),
            buffer: vec![0; READ_LEN],
            first: Some(Vec::new()),
        })
    }

    /// What the server says next.
    pub(super) async fn next(&mut self) -> Result<AgentEvent> {
        loop {
            if let Some(event) = self.session.poll_event() {
                self.first = None;
                return Ok(event);
            }
            let read = tokio::time::timeout(ANSWER_MAX, self.stream.read(&mut self.buffer)).await;
            let n = read.context("the server did not answer in time")??;
            let bytes = self.buffer.get(..n).unwrap_or_default();
            if let Some(first) = &mut self.first {
                first.extend_from_slice(bytes);
                if let Some(refusal) = refusal_of(first) {
                    return Err(Refused::new(refusal).into());
                }
            }
            if n == 0 {
                bail!("the server closed the connection");
            }
            self.session.handle_bytes(bytes, clock::now())?;
        }
    }

    /// Ends it on purpose.
    pub(super) async fn close(mut self, reason: &str) -> Result<()> {
        self.session.send_close(reason, clock::now())?;
        if let Some(bytes) = self.session.poll_transmit() {
            self.stream.write_all(&bytes).await?;
        }
        Ok(())
    }
}

const READ_LEN: usize = 4096;
/// How long the next word of the server may take.
const ANSWER_MAX: Duration = Duration::from_secs(15);
