//! One agent's session, without socket or clock: verifies its batches, hands them on, sends receipts.
//!
//! ```text
//! bytes ─▶ ServerSession ─▶ verify signature and root ─▶ effects: to the writer, alarms, audit
//! bytes ◀─ ServerSession ◀─ receipt, the last of each stream ◀─ answers, in order
//! ```

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
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::warn;

use super::budget::{Budget, OverBudget, Rates, Taken};
use super::held::{Held, HeldBatch, HeldBytes};
use super::left::LeftEpochs;
use crate::agents::{Accepted, Agents, Answered, Limit, News, interference_with};
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
    /// For the audit stream, where many of them are a sum: what somebody on the way did.
    Interference(Value),
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
        for (stream, position) in shared.archive.positions_of(agent.id) {
            if position.next.0 > 0 {
                session.send(&Message::StreamState { stream, position }, now)?;
            }
        }
        let ready = Ready {
            live_bytes_max: LANE_BYTES_MAX,
            backlog_bytes_max: LANE_BYTES_MAX,
            keep_alive_ms: u32::try_from(shared.keep_alive.as_millis()).unwrap_or(u32::MAX),
            signing_public: shared.signing.verifying_key().to_bytes(),
            restored: agent.restored,
        };
        session.send(&Message::Ready(ready), now)?;
        let totals = shared.archive.totals_of(agent.id);
        let mut receiver = Self {
            unmet: BTreeSet::new(),
            left: LeftEpochs::default(),
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
        };
        receiver.send_configuration(now)?;
        Ok(receiver)
    }

    /// Whether more may be read: else too much waits at the writer. Streams that come too fast wait by themselves:
    /// keep-alives and the batches of others are behind theirs, and must be read.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.len() < IN_FLIGHT_MAX
    }

    /// Takes received bytes. Returns why the session is over, when it is on purpose.
    pub(crate) fn handle_bytes(&mut self, bytes: &[u8], now: Instant) -> Result<Option<String>> {
        if let Err(error) = self.session.handle_bytes(bytes, now) {
            if let Some(seen) = self.session.interference() {
                self.note_interference(&seen.to_string());
            }
            return Err(error.into());
        }
        self.handle_events(now)
    }

    /// An alarm and an entry of the trail, with what was seen and how far the session had come.
    fn note_interference(&mut self, seen: &str) {
        let agent = self.name();
        let stream = self.last.and_then(|(id, next)| {
            let stream = self.shared.archive.stream(id)?;
            Some((stream.name.to_string(), next))
        });
        let (behind, stream, next) = match stream {
            Some((name, next)) => (
                format!(
                    "; the last that came whole is of stream {name}, up to sequence {}",
                    next.saturating_sub(1)
                ),
                Some(name),
                Some(next),
            ),
            None => {
                let streams = self.shared.archive.streams_of(self.agent).into_iter();
                let newest = streams.max_by_key(|stream| stream.last_us);
                let newest = newest.map(|stream| (stream.name.to_string(), stream.position.next.0));
                let behind = match &newest {
                    Some((name, next)) => format!(
                        "; no entry had come in this session, the newest before it is of stream {name}, sequence {}",
                        next.saturating_sub(1)
                    ),
                    None => "; no entry had ever come".to_owned(),
                };
                let (name, next) = newest.unzip();
                (behind, name, next)
            }
        };
        let text = format!("on the way from the agent, {seen}{behind}");
        self.effects
            .push_back(Effect::Raise(interference_with(&agent, &text)));
        let detail =
            json!({ "agent": agent, "seen": seen, "stream": stream, "next_sequence": next });
        self.effects.push_back(Effect::Interference(detail));
    }

    /// An agent shows a receipt of this server for more than it was told.
    fn handle_receipt(&mut self, receipt: &Receipt) -> Result<()> {
        receipt.verify(&self.shared.signing.verifying_key())?;
        let stream = self.shared.archive.stream(receipt.stream);
        // Up to where the archive has the epoch that the receipt is of: the agent may have left it since.
        let have = match &stream {
            Some(stream) if stream.agent != self.agent => return Ok(()),
            Some(stream) if stream.position.epoch == receipt.epoch => stream.position.next.0,
            Some(_) => {
                let (archive, agent) = (&self.shared.archive, self.agent);
                self.left.end(archive, agent, receipt.stream, receipt.epoch)
            }
            None => 0,
        };
        if stream.is_some() && have >= receipt.next.0 {
            return Ok(());
        }
        // One that is shown again says nothing new.
        if !self
            .unmet
            .insert((receipt.stream, receipt.epoch, receipt.next.0))
        {
            return Ok(());
        }
        if self.unmet.len() > UNMET_MAX {
            bail!("it shows more than {UNMET_MAX} receipts for what is missing");
        }
        // All are in the trail; of very many the alarm counts.
        let key = match self.unmet.len() {
            ..=UNMET_ALARMS_MAX => receipt.stream.to_string(),
            _ => String::new(),
        };
        let agent = self.name();
        let name = stream.map_or_else(
            || receipt.stream.to_string(),
            |stream| stream.name.to_string(),
        );
        self.effects.push_back(Effect::Raise(Raise {
            kind: AlarmKind::ReceiptUnmet,
            agent: agent.clone(),
            text: said!(
                "alarm_text.receipt-unmet",
                &name,
                receipt.next.0.saturating_sub(1),
                have.saturating_sub(1)
            ),
            key,
        }));
        let detail = json!({
            "agent": agent, "stream": name, "first": have, "next": receipt.next.0,
            "head": receipt.head.to_string(),
        });
        self.effects.push_back(Effect::Audit(
            "receipt for entries that are missing",
            detail,
        ));
        self.effects.push_back(Effect::Unmet(UnmetReceipt {
            stream: receipt.stream,
            agent: self.agent,
            name,
            epoch: receipt.epoch,
            sequences: (have, receipt.next.0),
            head: receipt.head,
        }));
        Ok(())
    }

    /// Acts on every deadline that `now` has reached; `time_us` is the clock told to the agent.
    pub(crate) fn handle_timeout(&mut self, now: Instant, time_us: u64) -> Result<Option<String>> {
        self.session.handle_timeout(now, time_us)?;
        if let Some(reason) = self.release_held(now)? {
            return Ok(Some(reason));
        }
        self.handle_events(now)
    }

    pub(crate) fn poll_timeout(&self) -> Instant {
        let session = self.session.poll_timeout();
        match self.held.is_empty() || !self.has_room() {
            true => session,
            false => session.min(self.budget.next_at()),
        }
    }

    pub(crate) fn poll_transmit(&mut self) -> Option<Vec<u8>> {
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

    fn handle_events(&mut self, now: Instant) -> Result<Option<String>> {
        while let Some(event) = self.session.poll_event() {
            if let Some(reason) = self.handle_event(event, now)? {
                return Ok(Some(reason));
            }
        }
        Ok(None)
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
            ServerEvent::ConfigurationAnswer(answer) => {
                let detail = json!({
                    "agent": self.agent.to_string(),
                    "version": answer.version,
                    "rejected": answer.rejected,
                });
                match agents.configured(self.agent, answer)? {
                    Answered::Known => {}
                    Answered::Written => {
                        self.effects.push_back(Effect::Audit("configured", detail));
                    }
                    Answered::Counted(count) => self.note_counted(count),
                }
            }
            ServerEvent::RenewalAsked => {
                let ephemeral = KeyPair::from_secret(&Secret::new(random()?));
                self.session.renew(ephemeral, now)?;
            }
            ServerEvent::Closed { reason } => return Ok(Some(reason)),
            ServerEvent::PeerSilent => bail!("nothing was heard for two keep-alives"),
        }
        Ok(None)
    }

    /// The agent changed what it says of its configuration once more than is written down.
    fn note_counted(&mut self, count: u64) {
        if count.is_power_of_two() {
            warn!(agent = %self.agent, count, "answers to a configuration were counted and not written down");
        }
        if count == 1 {
            self.effects.push_back(Effect::Raise(Raise {
                kind: AlarmKind::AgentTrouble,
                agent: self.name(),
                text: said!("alarm_text.answers", News::Answers.a_day()),
                key: "answers".to_owned(),
            }));
        }
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
        let why = format!(
            "they come faster than limits.agent_new_streams_per_minute_max, {per_minute}. Everything else of it is archived as before"
        );
        let said = format!("{count} new streams wait: {why}");
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
                    if waits::off_worker(|| archive.contradicts(&header))? {
                        self.effects.push_back(Effect::Raise(self.conflict()));
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

/// Streams of which each has an alarm of its own in one session.
const UNMET_ALARMS_MAX: usize = 16;
/// Receipts for what is missing in one session: about 5 MiB.
const UNMET_MAX: usize = 100_000;
/// Most bytes of batches an agent may have in flight in one lane.
const LANE_BYTES_MAX: u32 = 4 << 20;
/// Most batches of one session at the writer.
const IN_FLIGHT_MAX: usize = 256;
