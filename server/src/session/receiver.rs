//! One agent's session, without socket or clock: verifies its batches, hands them on, sends receipts.
//!
//! ```text
//! bytes ─▶ ServerSession ─▶ verify signature and root ─▶ effects: to the writer, alarms, audit
//! bytes ◀─ ServerSession ◀─ receipt, the last of each stream ◀─ answers, in order
//! ```

mod noted;
mod receipts;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ed25519_dalek::{SigningKey, VerifyingKey};
use scrinium_protocol::batch::SealedBatch;
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::identity::{AgentId, Epoch, StreamId, StreamKind};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::Established;
use scrinium_protocol::sl::message::{Configuration, Message, Ready, Receipt, stream_refused};
use scrinium_protocol::sl::noise::KeyPair;
use scrinium_protocol::sl::session::{ServerEvent, ServerSession};
use scrinium_segment::random;
use serde_json::Value;
use tokio::sync::oneshot;
use tracing::warn;

use super::budget::{Budget, OverBudget, Rates, Taken};
use super::epochs::{Epochs, Going};
use super::held::{Held, HeldBatch, HeldBytes};
use super::left::LeftEpochs;
use super::statement::Statement;
use crate::agents::{Accepted, Agents, Limit, News};
use crate::alarms::{AlarmKind, Raise};
use crate::archive::Archive;
use crate::archive::log::{Inside, new_stream};
use crate::catalogue::records::{StreamRecord, UnmetReceipt};
use crate::config::AgentStreams;
use crate::ingest::{BatchSubmission, Outcome, Submission};
use crate::said::said;
use crate::waits;

/// What a session wants done.
pub(crate) enum Effect {
    /// For the writer; its answer is among [`Receiver::waiting`].
    Submit(Submission),
    Raise(Raise),
    /// For the audit stream: what the agent did, and the detail.
    Audit(&'static str, Value),
    /// For the catalogue, so that every verification names it.
    Unmet(UnmetReceipt),
}

/// What a session needs of the server.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) agents: Arc<Agents>,
    pub(crate) archive: Arc<Archive>,
    pub(crate) signing: SigningKey,
    pub(crate) keep_alive: Duration,
    /// What one agent may have.
    pub(crate) streams: AgentStreams,
    /// How fast new streams came.
    pub(crate) rates: Rates,
    /// What waits of new streams that come too fast.
    pub(crate) held: HeldBytes,
}

/// The server's side of one session.
pub(crate) struct Receiver {
    shared: Shared,
    agent: AgentId,
    signing: VerifyingKey,
    next_psk: Secret<32>,
    session: ServerSession,
    /// What is still to be stated before the agent may send.
    statement: Option<Statement>,
    /// The agent is to begin a new epoch.
    restored: bool,
    /// Batches handed to the writer, oldest first.
    pub(crate) waiting: VecDeque<oneshot::Receiver<Outcome>>,
    effects: VecDeque<Effect>,
    budget: Budget,
    /// New streams that came too fast.
    held: Held,
    /// Whether it was said that some wait.
    is_held_said: bool,
    /// The stream of the last batch that came, and the sequence after it.
    last: Option<(StreamId, u64)>,
    /// Receipts for what is missing that were shown in this session: no more than streams that the agent may have, a few
    /// times over.
    unmet: BTreeSet<(StreamId, Epoch, u64)>,
    /// What the archive has of epochs that the agent left.
    left: LeftEpochs,
    /// Receipts of which that could not be looked up.
    not_looked_up: u64,
    epochs: Epochs,
}

impl Receiver {
    /// Begins, with what an older session of the agent submitted already settled: states where the
    /// archive stands for every stream of the agent.
    pub(crate) fn new(
        shared: Shared,
        accepted: &Accepted,
        established: Established,
        now: Instant,
    ) -> Result<Self> {
        let Accepted {
            agent, enrolled, ..
        } = accepted;
        let signing = VerifyingKey::from_bytes(&agent.signing_public);
        let next_psk = established.next_psk.clone();
        let mut session = ServerSession::new(established, shared.keep_alive, now);
        if *enrolled {
            session.send(&Message::Enrolled { agent: agent.id }, now)?;
        }
        let totals = shared.archive.totals_of(agent.id);
        Ok(Self {
            statement: Some(Statement::new(&shared.archive, agent.id)),
            restored: agent.restored,
            unmet: BTreeSet::new(),
            left: LeftEpochs::default(),
            not_looked_up: 0,
            epochs: Epochs::default(),
            budget: Budget::new(agent.id, shared.rates.clone(), shared.streams, totals, now),
            held: Held::new(shared.held.clone()),
            is_held_said: false,
            shared,
            agent: agent.id,
            signing: signing.context("the agent's signing key")?,
            next_psk,
            session,
            waiting: VecDeque::new(),
            effects: VecDeque::new(),
            last: None,
        })
    }

    /// States the next part of where the archive stands, and behind the last one that it is ready.
    fn state_next(&mut self, now: Instant) -> Result<()> {
        let Some(statement) = &mut self.statement else {
            return Ok(());
        };
        if let Some(part) = statement.next_part(&self.shared.archive) {
            for (stream, position) in part {
                self.session
                    .send(&Message::StreamState { stream, position }, now)?;
            }
            return Ok(());
        }
        self.statement = None;
        let ready = Ready {
            live_bytes_max: LANE_BYTES_MAX,
            backlog_bytes_max: LANE_BYTES_MAX,
            keep_alive_ms: u32::try_from(self.shared.keep_alive.as_millis()).unwrap_or(u32::MAX),
            signing_public: self.shared.signing.verifying_key().to_bytes(),
            restored: self.restored,
        };
        self.session.send(&Message::Ready(ready), now)?;
        self.send_configuration(now)
    }

    /// Whether more may be read: else too much waits at the writer. Streams that come too fast wait by themselves:
    /// keep-alives and the batches of others are behind theirs, and must be read.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.len() < IN_FLIGHT_MAX
    }

    /// Takes received bytes; what is in them is for [`Receiver::handle_next`].
    pub(crate) fn take_bytes(&mut self, bytes: &[u8], now: Instant) -> Result<()> {
        if let Err(error) = self.session.handle_bytes(bytes, now) {
            if let Some(seen) = self.session.interference() {
                self.note_interference(&seen.to_string());
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// Whether something came that was not handled yet.
    pub(crate) fn has_next(&self) -> bool {
        self.session.has_event()
    }

    /// Handles one thing that came. Returns why the session is over, when it is on purpose.
    pub(crate) fn handle_next(&mut self, now: Instant) -> Result<Option<String>> {
        match self.session.poll_event() {
            Some(event) => {
                // It may have waited: what came behind it was not listened to yet.
                self.session.defer_silence(now);
                self.handle_event(event, now)
            }
            None => Ok(None),
        }
    }

    /// From `begun` to `now` its alarms, entries and bytes were seen to, and the agent was not listened to: a disk that is
    /// slow makes no agent silent.
    pub(crate) fn was_busy(&mut self, begun: Instant, now: Instant) {
        if now.saturating_duration_since(begun) >= BUSY_MIN {
            self.session.defer_silence(now);
        }
    }

    /// Acts on every deadline that `now` has reached; `time_us` is the clock told to the agent.
    pub(crate) fn handle_timeout(&mut self, now: Instant, time_us: u64) -> Result<Option<String>> {
        if self.has_next() || !self.has_room() {
            // Whether the agent is silent is not known while nobody listens.
            self.session.defer_silence(now);
        }
        self.session.handle_timeout(now, time_us)?;
        self.release_held(now)
    }

    pub(crate) fn poll_timeout(&self) -> Instant {
        let session = self.session.poll_timeout();
        match self.held.is_empty() || !self.has_room() {
            true => session,
            false => session.min(self.budget.next_at()),
        }
    }

    /// The next bytes to write. What is stated at the beginning is made part by part, as these are taken.
    pub(crate) fn poll_transmit(&mut self, now: Instant) -> Result<Option<Vec<u8>>> {
        let bytes = self.session.poll_transmit();
        if bytes.is_some() {
            return Ok(bytes);
        }
        self.state_next(now)?;
        Ok(self.session.poll_transmit())
    }

    /// What is to be written when the session is over.
    pub(crate) fn poll_farewell(&mut self) -> Option<Vec<u8>> {
        self.session.poll_transmit()
    }

    pub(crate) fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Nothing more of what the agent sent is handed to the writer.
    pub(crate) fn forget_submissions(&mut self) {
        let is_other = |effect: &Effect| !matches!(effect, Effect::Submit(_));
        self.effects.retain(is_other);
    }

    /// Sends the agent's configuration, unless it has answered to this one already.
    pub(crate) fn send_configuration(&mut self, now: Instant) -> Result<()> {
        let agent = self.shared.agents.get(self.agent);
        let configuration = agent.and_then(|agent| agent.configuration);
        let Some(wanted) = configuration.filter(|wanted| wanted.answered != wanted.version) else {
            return Ok(());
        };
        let key = &self.shared.signing;
        let signed = Configuration::new(wanted.version, wanted.text, self.agent, key);
        self.session.send(&Message::Configuration(signed), now)?;
        Ok(())
    }

    fn handle_event(&mut self, event: ServerEvent, now: Instant) -> Result<Option<String>> {
        let agents = &self.shared.agents;
        let keep_alive = if let ServerEvent::KeepAlive(state) = &event {
            Some(state.clone())
        } else {
            None
        };
        let raised = agents.heard(self.agent, keep_alive);
        self.effects.extend(raised.into_iter().map(Effect::Raise));
        match event {
            ServerEvent::CredentialStored => {
                agents.credential_stored(self.agent, &self.next_psk)?;
            }
            ServerEvent::StreamOpen { stream, kind, name } => {
                agents.epoch_begun(self.agent)?;
                // The server's own streams are not for agents to write.
                if kind == StreamKind::Audit || StreamId::derive(self.agent, kind, &name) != stream
                {
                    bail!("the agent named a stream that is not its own");
                }
                if !self.shared.archive.has_stream(stream) && !self.held.has(stream) {
                    let new = new_stream(stream, self.agent, kind, name);
                    if let Err(over) = self.budget.open(new) {
                        return self.refuse_stream(stream, over, now).map(Some);
                    }
                }
            }
            ServerEvent::Batch(encoded) => {
                if let Some(reason) = self.handle_batch(encoded, now)? {
                    return Ok(Some(reason));
                }
            }
            ServerEvent::KeepAlive(_) => {}
            ServerEvent::Receipt(receipt) => self.handle_receipt(&receipt)?,
            ServerEvent::ConfigurationAnswer(answer) => self.note_answer(answer)?,
            ServerEvent::RenewalAsked => {
                let ephemeral = KeyPair::from_secret(&Secret::new(random()?));
                self.session.renew(ephemeral, now)?;
            }
            ServerEvent::Closed { reason } => return Ok(Some(reason)),
            ServerEvent::PeerSilent => return Err(said!("session.silent").into()),
        }
        Ok(None)
    }

    fn name(&self) -> String {
        let agent = self.shared.agents.get(self.agent);
        agent.map_or_else(|| self.agent.to_string(), |agent| agent.name)
    }

    /// Tells the agent which limit it has reached, and ends the session: it sets the stream aside, comes again, and
    /// goes on with its others. Returns the reason.
    fn refuse_stream(
        &mut self,
        stream: StreamId,
        over: OverBudget,
        now: Instant,
    ) -> Result<String> {
        let reason = stream_refused(stream, &over.to_string());
        let agent = self.name();
        self.effects.push_back(Effect::Raise(Raise {
            kind: AlarmKind::TooManyStreams,
            agent,
            text: said!("alarm_text.too-many-streams", over.to_string()),
            key: String::new(),
        }));
        self.close(reason, now)
    }

    /// Tells the agent why the session ends. Returns it.
    fn close(&mut self, reason: String, now: Instant) -> Result<String> {
        let close = Message::Close {
            reason: reason.clone(),
        };
        self.session.send(&close, now)?;
        Ok(reason)
    }

    /// Verifies a batch and hands it to the writer, its stream before it when it is new. Milliseconds of hashing and
    /// decompression. Returns why the session is over.
    fn handle_batch(&mut self, encoded: Vec<u8>, now: Instant) -> Result<Option<String>> {
        let batch =
            SealedBatch::decode(&encoded, "batch").map_err(scrinium_protocol::Error::from)?;
        batch.header.verify_signature(&self.signing)?;
        let inside = Inside::of(&batch.open()?, &batch.header);
        let stream = batch.header.stream;
        if let Some(reason) = self.check_epoch(stream, batch.header.epoch, now)? {
            return Ok(Some(reason));
        }
        let known = || self.shared.archive.bookmark_len(stream);
        if let Err(over) = self
            .budget
            .bookmark(stream, batch.header.bookmark.len(), known)
        {
            return self.refuse_stream(stream, over, now).map(Some);
        }
        let batch = HeldBatch {
            batch,
            encoded,
            inside,
        };
        let has_room = if self.held.has(stream) {
            self.held.push(stream, batch)
        } else {
            match self.budget.take(stream, now) {
                Ok(Taken::Known) => {
                    self.submit(batch);
                    return Ok(None);
                }
                Ok(Taken::New(new)) => {
                    self.submit_stream(new);
                    self.submit(batch);
                    return Ok(None);
                }
                Ok(Taken::Later(new)) => self.held.push_stream(new, batch),
                Err(over) => return self.refuse_stream(stream, over, now).map(Some),
            }
        };
        self.say_held();
        if !has_room {
            let reason = "more new streams wait than a session may hold; what was not acknowledged is to be sent again".to_owned();
            return self.close(reason, now).map(Some);
        }
        Ok(None)
    }

    /// Refuses a batch that goes back into an epoch, and more new epochs than an agent has reason for. Returns why the
    /// session is over.
    fn check_epoch(
        &mut self,
        stream: StreamId,
        epoch: Epoch,
        now: Instant,
    ) -> Result<Option<String>> {
        let (archive, agent) = (self.shared.archive.clone(), self.agent);
        let archived = archive.stream(stream).filter(|stream| stream.entries > 0);
        let archived = archived.map(|stream| stream.position.epoch);
        let left = &mut self.left;
        let had = || {
            // It reads the archive.
            let end = waits::off_worker(|| left.end(&archive, agent, stream, epoch))?;
            Ok(end > 0)
        };
        match self.epochs.take(stream, epoch, archived, had)? {
            Going::On => Ok(None),
            Going::Anew if self.shared.agents.begins_epoch(self.agent, epoch) == 0 => Ok(None),
            Going::Anew => {
                let reason = format!(
                    "the agent began more than {} new epochs in a day; what was not acknowledged is to be sent again",
                    News::Epochs.a_day()
                );
                self.close(reason, now).map(Some)
            }
            Going::Back => {
                self.effects.push_back(Effect::Raise(self.conflict()));
                bail!("the agent went back into an epoch that its stream had left")
            }
        }
    }

    fn submit_stream(&mut self, new: StreamRecord) {
        let new = Submission::Stream(new);
        self.effects.push_back(Effect::Submit(new));
    }

    fn submit(&mut self, held: HeldBatch) {
        let HeldBatch {
            batch,
            encoded,
            inside,
        } = held;
        self.last = Some((batch.header.stream, batch.header.next().0));
        let (answer, outcome) = oneshot::channel();
        let submission = BatchSubmission {
            agent: self.agent,
            batch,
            encoded,
            inside,
            answer,
        };
        self.effects
            .push_back(Effect::Submit(Submission::Batch(submission)));
        self.waiting.push_back(outcome);
    }

    /// Hands over the streams that waited, as many as may be now. Returns why the session is over.
    fn release_held(&mut self, now: Instant) -> Result<Option<String>> {
        while self.has_room()
            && let Some(front) = self.held.front()
        {
            let stream = front.id;
            match self.budget.admit(front, now) {
                Ok(false) => break,
                Ok(true) => {
                    if let Some(held) = self.held.pop() {
                        self.submit_stream(held.record);
                        held.batches
                            .into_iter()
                            .for_each(|batch| self.submit(batch));
                    }
                }
                Err(over) => return self.refuse_stream(stream, over, now).map(Some),
            }
        }
        self.say_held();
        Ok(None)
    }

    /// Tells the agent's page how many streams wait, and raises an alarm when the first ones do.
    fn say_held(&mut self) {
        let agents = &self.shared.agents;
        if self.held.is_empty() {
            if core::mem::take(&mut self.is_held_said) {
                agents.limit(self.agent, Limit::NewStreams, None);
            }
            return;
        }
        let (count, per_minute) = (self.held.len(), self.budget.per_minute());
        let said = said!("agent_says.new_streams", count, per_minute);
        agents.limit(self.agent, Limit::NewStreams, Some(said));
        if !core::mem::replace(&mut self.is_held_said, true) {
            self.effects.push_back(Effect::Raise(Raise {
                kind: AlarmKind::TooManyStreams,
                agent: self.name(),
                text: said!("alarm_text.new-streams", per_minute),
                key: "pace".to_owned(),
            }));
        }
    }

    /// Sends the receipts of every batch answered so far, one per stream. `first` is an answer already
    /// taken from the front of [`Receiver::waiting`].
    pub(crate) fn handle_answers(&mut self, first: Option<Outcome>, now: Instant) -> Result<()> {
        let mut receipts: BTreeMap<StreamId, Receipt> = BTreeMap::new();
        let mut next = first.or_else(|| self.next_answer());
        let mut refused = None;
        while let Some(outcome) = next {
            match outcome {
                Outcome::Durable(receipt) => {
                    self.left.note(&receipt);
                    receipts.insert(receipt.stream, *receipt);
                }
                Outcome::Conflict => {
                    self.effects.push_back(Effect::Raise(self.conflict()));
                    refused = Some(
                        "the agent sent a batch that conflicts with the archive: same sequence, other history",
                    );
                }
                Outcome::Stale(header) => {
                    // It reads the archive.
                    let archive = &self.shared.archive;
                    match waits::off_worker(|| archive.contradicts(&header))? {
                        Some(true) => self.effects.push_back(Effect::Raise(self.conflict())),
                        Some(false) => {}
                        None => warn!(
                            agent = %self.agent,
                            "an agent repeats a batch of long ago: whether it is the one that is archived was not looked up"
                        ),
                    }
                    refused = Some("the agent sent a batch that is older than what it was told");
                }
                Outcome::NotWritten => refused = Some("the archive cannot be written now"),
            }
            if refused.is_some() {
                break;
            }
            next = self.next_answer();
        }
        for receipt in receipts.into_values() {
            self.session.send(&Message::Receipt(receipt), now)?;
        }
        match refused {
            Some(reason) => bail!(reason),
            None => Ok(()),
        }
    }

    fn next_answer(&mut self) -> Option<Outcome> {
        let answer = self.waiting.front_mut()?.try_recv().ok()?;
        self.waiting.pop_front();
        Some(answer)
    }

    fn conflict(&self) -> Raise {
        let agent = self.shared.agents.get(self.agent);
        Raise {
            kind: AlarmKind::ConflictingBatch,
            agent: agent.map(|agent| agent.name).unwrap_or_default(),
            text: said!("alarm_text.conflicting-batch"),
            key: String::new(),
        }
    }
}

/// Most bytes of batches an agent may have in flight in one lane.
const LANE_BYTES_MAX: u32 = 4 << 20;
/// The shortest time without listening that is counted: with the quickest keep-alives an agent is silent after 200 ms.
const BUSY_MIN: Duration = Duration::from_millis(100);
/// Most batches of one session at the writer.
const IN_FLIGHT_MAX: usize = 256;
