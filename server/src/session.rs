//! One agent's session: verifies its batches, hands them to the writer, sends its receipts.
//!
//! ```text
//! socket ─▶ ServerSession ─▶ verify signature and root ─▶ ingest queue
//! socket ◀─ ServerSession ◀─ receipt, the last of each stream ◀─ answers, in order
//! ```

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use ed25519_dalek::VerifyingKey;
use scrinium_protocol::batch::SealedBatch;
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::identity::{AgentId, StreamId};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::Established;
use scrinium_protocol::sl::message::{Configuration, Message, Ready, Receipt};
use scrinium_protocol::sl::noise::KeyPair;
use scrinium_protocol::sl::session::{ServerEvent, ServerSession};
use scrinium_segment::random;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

use crate::agents::{Accepted, Told};
use crate::alarms::{AlarmKind, Raise};
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
    accepted: Accepted,
    established: Established,
) {
    let id = accepted.agent.id;
    let (number, told) = core.agents.begin_session(id, address, clock::unix_us());
    info!(agent = %id, "an agent connected");
    let outcome = drive(&core, stream, accepted, established, told).await;
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
    accepted: Accepted,
    established: Established,
    mut told: watch::Receiver<Told>,
) -> Result<String> {
    let Accepted {
        agent, enrolled, ..
    } = accepted;
    let next_psk = established.next_psk.clone();
    let signing =
        VerifyingKey::from_bytes(&agent.signing_public).context("the agent's signing key")?;
    let mut session = ServerSession::new(established, core.keep_alive, clock::now());
    // What an older session of this agent submitted must be settled before we state where it stands.
    let (barrier, settled) = oneshot::channel();
    submit(core, Submission::Barrier(barrier))?;
    settled.await.context("the writer stopped")?;
    state(core, &mut session, &agent, enrolled)?;

    let mut driver = Driver {
        core,
        agent: agent.id,
        signing,
        next_psk,
        session,
        waiting: VecDeque::new(),
    };
    drop(agent);
    driver.send_configuration()?;
    let (reader, mut writer) = stream.into_split();
    loop {
        if let Some(bytes) = driver.session.poll_transmit() {
            writer.write_all(&bytes).await?;
        }
        let deadline = driver.session.poll_timeout();
        let has_room = driver.waiting.len() < IN_FLIGHT_MAX;
        tokio::select! {
            biased;
            answer = next_answer(&mut driver.waiting) => driver.handle_answers(answer).await?,
            readable = reader.readable(), if has_room => {
                readable?;
                driver.read(&reader)?;
            }
            changed = told.changed() => {
                let now = *told.borrow_and_update();
                if changed.is_err() || now.ended {
                    return Ok("replaced by a newer session, disabled, or no longer allowed in clear".to_owned());
                }
                driver.send_configuration()?;
            }
            () = tokio::time::sleep_until(deadline.into()) => {
                driver.session.handle_timeout(clock::now(), clock::unix_us())?;
            }
        }
        while let Some(event) = driver.session.poll_event() {
            if let Some(reason) = driver.handle_event(event).await? {
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
        live_bytes_max: LANE_BYTES_MAX,
        backlog_bytes_max: LANE_BYTES_MAX,
        keep_alive_ms: u32::try_from(core.keep_alive.as_millis()).unwrap_or(u32::MAX),
        signing_public: core.signing.verifying_key().to_bytes(),
        restored: agent.restored,
    };
    session.send(&Message::Ready(ready), now)?;
    Ok(())
}

struct Driver<'a> {
    core: &'a Core,
    agent: AgentId,
    signing: VerifyingKey,
    next_psk: Secret<32>,
    session: ServerSession,
    /// Batches handed to the writer, oldest first.
    waiting: VecDeque<oneshot::Receiver<Outcome>>,
}

impl Driver<'_> {
    /// Takes what the socket has, through a buffer that sessions share: an idle one has none.
    fn read(&mut self, reader: &OwnedReadHalf) -> Result<()> {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_LEN]);
        }
        BUFFER.with_borrow_mut(|buffer| match reader.try_read(buffer) {
            Ok(0) => bail!("the agent ended the connection without a close: truncated"),
            Ok(n) => {
                let bytes = buffer.get(..n).unwrap_or_default();
                Ok(self.session.handle_bytes(bytes, clock::now())?)
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        })
    }

    /// Sends the agent's configuration, unless it has answered to this one already.
    fn send_configuration(&mut self) -> Result<()> {
        let agent = self.core.agents.get(self.agent);
        let configuration = agent.and_then(|agent| agent.configuration);
        let Some(wanted) = configuration.filter(|wanted| wanted.answered != wanted.version) else {
            return Ok(());
        };
        let signed =
            Configuration::new(wanted.version, wanted.text, self.agent, &self.core.signing);
        self.session
            .send(&Message::Configuration(signed), clock::now())?;
        Ok(())
    }

    /// Acts on one event; returns why the session is over, when it is.
    async fn handle_event(&mut self, event: ServerEvent) -> Result<Option<String>> {
        let keep_alive = match &event {
            ServerEvent::KeepAlive(state) => Some(state.clone()),
            _ => None,
        };
        if let Some(raise) = self.core.agents.heard(self.agent, keep_alive) {
            self.core.alarms.raise(raise).await;
        }
        match event {
            ServerEvent::CredentialStored => self
                .core
                .agents
                .credential_stored(self.agent, &self.next_psk)?,
            ServerEvent::StreamOpen { stream, kind, name } => {
                self.core.agents.epoch_begun(self.agent)?;
                if StreamId::derive(self.agent, kind, &name) != stream {
                    bail!("the agent named a stream that is not its own");
                }
                if self.core.archive.stream(stream).is_none() {
                    let stream = new_stream(stream, self.agent, kind, name);
                    submit(self.core, Submission::Stream(stream))?;
                }
            }
            ServerEvent::Batch(encoded) => self.handle_batch(encoded)?,
            ServerEvent::KeepAlive(_) => {}
            ServerEvent::ConfigurationAnswer(answer) => {
                let detail = json!({
                    "agent": self.agent.to_string(),
                    "version": answer.version,
                    "rejected": answer.rejected,
                });
                self.core.agents.configured(self.agent, answer)?;
                self.core.audit.record("agent", "configured", detail).await;
            }
            ServerEvent::RenewalAsked => {
                let ephemeral = KeyPair::from_secret(&Secret::new(random()?));
                self.session.renew(ephemeral, clock::now())?;
            }
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
            agent: self.agent,
            batch,
            encoded,
            answer,
        };
        submit(self.core, Submission::Batch(submission))?;
        self.waiting.push_back(outcome);
        Ok(())
    }

    /// Sends the receipts of every batch answered so far, one per stream.
    async fn handle_answers(&mut self, first: Outcome) -> Result<()> {
        let mut receipts: BTreeMap<StreamId, Receipt> = BTreeMap::new();
        let mut next = Some(first);
        while let Some(outcome) = next {
            match outcome {
                Outcome::Durable(receipt) => {
                    receipts.insert(receipt.stream, *receipt);
                }
                Outcome::Conflict => {
                    self.send(receipts)?;
                    self.raise_conflict().await;
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

    async fn raise_conflict(&self) {
        let agent = self.core.agents.get(self.agent);
        let agent = agent.map(|agent| agent.name).unwrap_or_default();
        let text = "it sent a batch, signed with its own key, that contradicts what is archived: same sequence, other history. The archive was not changed.";
        let raise = Raise {
            kind: AlarmKind::ConflictingBatch,
            agent,
            text: text.to_owned(),
            key: String::new(),
        };
        self.core.alarms.raise(raise).await;
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

/// Most bytes of batches an agent may have in flight in one lane.
const LANE_BYTES_MAX: u32 = 4 << 20;
/// Most batches of one session at the writer.
const IN_FLIGHT_MAX: usize = 256;
const READ_LEN: usize = 256 << 10;
