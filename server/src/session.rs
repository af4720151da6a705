//! One agent's session: verifies its batches, hands them to the writer, sends its receipts.
//!
//! ```text
//! socket ─▶ ServerSession ─▶ verify signature and root ─▶ ingest queue
//! socket ◀─ ServerSession ◀─ receipt, the last of each stream ◀─ answers, in order
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use ed25519_dalek::VerifyingKey;
use scrinium_protocol::batch::SealedBatch;
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::identity::StreamId;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::Established;
use scrinium_protocol::sl::message::{Message, Ready, Receipt};
use scrinium_protocol::sl::session::{ServerEvent, ServerSession};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::archive::log::new_stream;
use crate::catalogue::records::AgentRecord;
use crate::clock;
use crate::core::Core;
use crate::ingest::{BatchSubmission, Outcome, Submission};

/// Runs the session to its end.
pub(crate) async fn run(
    core: Arc<Core>,
    stream: TcpStream,
    address: SocketAddr,
    agent: AgentRecord,
    enrolled: bool,
    established: Established,
) {
    let id = agent.id;
    let (number, mut ended) = core.agents.begin_session(id, address, clock::unix_us());
    info!(agent = %id, "an agent connected");
    let outcome = tokio::select! {
        outcome = drive(&core, stream, &agent, enrolled, established) => outcome,
        _ = ended.changed() => Ok("replaced by a newer session, or disabled".to_owned()),
    };
    let trouble = match outcome {
        Ok(reason) => {
            info!(agent = %id, reason, "an agent's session ended");
            None
        }
        Err(error) => {
            warn!(agent = %id, error = format!("{error:#}"), "an agent's session broke");
            Some(format!("{error:#}"))
        }
    };
    core.agents.end_session(id, number, trouble);
}

async fn drive(
    core: &Core,
    stream: TcpStream,
    agent: &AgentRecord,
    enrolled: bool,
    established: Established,
) -> Result<String> {
    let next_psk = established.next_psk.clone();
    let signing =
        VerifyingKey::from_bytes(&agent.signing_public).context("the agent's signing key")?;
    let mut session = ServerSession::new(established, core.keep_alive, clock::now());
    // What an older session of this agent submitted must be settled before we state where it stands.
    let (barrier, settled) = oneshot::channel();
    submit(core, Submission::Barrier(barrier))?;
    settled.await.context("the writer stopped")?;
    state(core, &mut session, agent, enrolled)?;

    let mut driver = Driver {
        core,
        agent,
        signing,
        next_psk,
        session,
        waiting: VecDeque::new(),
    };
    let (mut reader, mut writer) = stream.into_split();
    let mut buffer = vec![0; READ_LEN];
    loop {
        if let Some(bytes) = driver.session.poll_transmit() {
            writer.write_all(&bytes).await?;
        }
        let deadline = driver.session.poll_timeout();
        let has_room = driver.waiting.len() < IN_FLIGHT_MAX;
        tokio::select! {
            biased;
            answer = next_answer(&mut driver.waiting) => driver.handle_answers(answer)?,
            read = reader.read(&mut buffer), if has_room => match read? {
                0 => bail!("the agent ended the connection without a close: truncated"),
                n => {
                    let bytes = buffer.get(..n).unwrap_or_default();
                    driver.session.handle_bytes(bytes, clock::now())?;
                }
            },
            () = tokio::time::sleep_until(deadline.into()) => {
                driver.session.handle_timeout(clock::now(), clock::unix_us())?;
            }
        }
        while let Some(event) = driver.session.poll_event() {
            if let Some(reason) = driver.handle_event(event)? {
                return Ok(reason);
            }
        }
    }
}

/// States where the archive stands for every stream of the agent.
fn state(
    core: &Core,
    session: &mut ServerSession,
    agent: &AgentRecord,
    enrolled: bool,
) -> Result<()> {
    let now = clock::now();
    if enrolled {
        session.send(&Message::Enrolled { agent: agent.id }, now)?;
    }
    for (stream, position) in core.archive.positions_of(agent.id) {
        if position.next.0 > 0 {
            session.send(&Message::StreamState { stream, position }, now)?;
        }
    }
    let ready = Ready {
        window_bytes_max: WINDOW_BYTES_MAX,
        keep_alive_ms: u32::try_from(core.keep_alive.as_millis()).unwrap_or(u32::MAX),
        signing_public: core.signing.verifying_key().to_bytes(),
    };
    session.send(&Message::Ready(ready), now)?;
    Ok(())
}

struct Driver<'a> {
    core: &'a Core,
    agent: &'a AgentRecord,
    signing: VerifyingKey,
    next_psk: Secret<32>,
    session: ServerSession,
    /// Batches handed to the writer, oldest first.
    waiting: VecDeque<oneshot::Receiver<Outcome>>,
}

impl Driver<'_> {
    /// Acts on one event; returns why the session is over, when it is.
    fn handle_event(&mut self, event: ServerEvent) -> Result<Option<String>> {
        self.core.agents.heard(self.agent.id, None);
        match event {
            ServerEvent::CredentialStored => self
                .core
                .agents
                .credential_stored(self.agent.id, &self.next_psk)?,
            ServerEvent::StreamOpen { stream, kind, name } => {
                if StreamId::derive(self.agent.id, kind, &name) != stream {
                    bail!("the agent named a stream that is not its own");
                }
                if self.core.archive.stream(stream).is_none() {
                    let stream = new_stream(stream, self.agent.id, kind, name);
                    submit(self.core, Submission::Stream(stream))?;
                }
            }
            ServerEvent::Batch(encoded) => self.handle_batch(encoded)?,
            ServerEvent::KeepAlive(state) => self.core.agents.heard(self.agent.id, Some(state)),
            ServerEvent::Closed { reason } => return Ok(Some(reason)),
            ServerEvent::PeerSilent => bail!("nothing was heard for three keep-alives"),
        }
        Ok(None)
    }

    /// Verifies a batch and hands it to the writer.
    fn handle_batch(&mut self, encoded: Vec<u8>) -> Result<()> {
        let batch =
            SealedBatch::decode(&encoded, "batch").map_err(scrinium_protocol::Error::from)?;
        // Milliseconds of hashing and decompression: other sessions go on meanwhile.
        tokio::task::block_in_place(|| -> Result<()> {
            batch.header.verify_signature(&self.signing)?;
            batch.open()?;
            Ok(())
        })?;
        let (answer, outcome) = oneshot::channel();
        let submission = BatchSubmission {
            agent: self.agent.id,
            batch,
            encoded,
            answer,
        };
        submit(self.core, Submission::Batch(submission))?;
        self.waiting.push_back(outcome);
        Ok(())
    }

    /// Sends the receipts of every batch answered so far, one per stream.
    fn handle_answers(&mut self, first: Outcome) -> Result<()> {
        let mut receipts: BTreeMap<StreamId, Receipt> = BTreeMap::new();
        let mut next = Some(first);
        while let Some(outcome) = next {
            match outcome {
                Outcome::Durable(receipt) => {
                    receipts.insert(receipt.stream, *receipt);
                }
                Outcome::Conflict => {
                    self.send(receipts)?;
                    bail!(
                        "the agent sent a batch that conflicts with the archive: same sequence, other history"
                    );
                }
                Outcome::NotWritten => {
                    self.send(receipts)?;
                    bail!("the archive cannot be written now");
                }
            }
            next = self
                .waiting
                .front_mut()
                .and_then(|front| front.try_recv().ok());
            if next.is_some() {
                self.waiting.pop_front();
            }
        }
        self.send(receipts)
    }

    fn send(&mut self, receipts: BTreeMap<StreamId, Receipt>) -> Result<()> {
        let now = clock::now();
        for receipt in receipts.into_values() {
            self.session.send(&Message::Receipt(receipt), now)?;
        }
        Ok(())
    }
}

/// Waits for the oldest answer; for ever when none is due.
async fn next_answer(waiting: &mut VecDeque<oneshot::Receiver<Outcome>>) -> Outcome {
    let Some(front) = waiting.front_mut() else {
        return std::future::pending().await;
    };
    let outcome = front.await.unwrap_or(Outcome::NotWritten);
    waiting.pop_front();
    outcome
}

fn submit(core: &Core, submission: Submission) -> Result<()> {
    // Waits while the writer's queue is full: the agent's window closes, its spool fills.
    tokio::task::block_in_place(|| core.ingest.send(submission).ok()).context("the writer stopped")
}

/// Most bytes of batches an agent may have in flight.
const WINDOW_BYTES_MAX: u32 = 4 << 20;
/// Most batches of one session at the writer.
const IN_FLIGHT_MAX: usize = 256;
const READ_LEN: usize = 256 << 10;
