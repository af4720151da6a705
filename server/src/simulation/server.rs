//! The server's end: its agents, its archive, and one connection at a time.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ed25519_dalek::SigningKey;
use scrinium_protocol::identity::AgentId;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::{
    ExpectAgentHello, ExpectAgentStart, FRAME_HEAD_LEN, FrameHead, PREAMBLE_HEAD_LEN, Preamble,
    Purpose, ServerHello, refusal_frame,
};
use scrinium_protocol::sl::noise::KeyPair;
use scrinium_protocol::sl::suite::Suite;
use scrinium_segment::random;

use crate::agents::{Agents, Proven, Refused};
use crate::alarms::Raise;
use crate::archive::Archive;
use crate::catalogue::Catalogue;
use crate::catalogue::records::TokenRecord;
use crate::ingest::{Ingest, LOG_ENTRIES_MAX, LogLimits, Submission};
use crate::session::budget::Rates;
use crate::session::held::HeldBytes;
use crate::session::receiver::{Effect, Receiver, Shared};
use crate::volume::{Binding, Volume};

/// The server's machine: what outlives its processes.
pub(super) struct Server {
    pub(super) dir: PathBuf,
    noise: KeyPair,
    signing: SigningKey,
    pub(super) process: Option<Process>,
}

pub(super) struct Process {
    pub(super) shared: Shared,
    pub(super) catalogue: Arc<Catalogue>,
    pub(super) ingest: Ingest,
    noise: KeyPair,
    pub(super) queue: VecDeque<Submission>,
    pub(super) alarms: Vec<Raise>,
    connection: Option<Connection>,
    /// Connections whose end was not noticed yet, by the agent's session number.
    unnoticed: Vec<(AgentId, u64)>,
    _volume: Volume,
}

struct Connection {
    received: Vec<u8>,
    stage: Stage,
}

enum Stage {
    Preamble,
    Start(Box<ExpectAgentStart>),
    Hello(Box<ExpectAgentHello>, Option<TokenRecord>),
    Session(Box<Receiver>, AgentId, u64),
}

impl Server {
    pub(super) fn new(dir: &Path) -> Result<Self> {
        drop(Volume::create(dir, &Binding::default())?);
        Ok(Self {
            dir: dir.to_owned(),
            noise: KeyPair::from_secret(&Secret::new(random()?)),
            signing: SigningKey::from_bytes(&random()?),
            process: None,
        })
    }

    pub(super) fn public(&self) -> [u8; 32] {
        *self.noise.public()
    }

    pub(super) fn start(&mut self) -> Result<()> {
        let volume = Volume::open(&self.dir)?;
        let catalogue = Arc::new(crate::core::make_catalogue(&volume)?);
        let archive = Arc::new(Archive::open(
            &volume,
            &catalogue,
            scrinium_segment::cipher::Cipher::default(),
        )?);
        let (finished, _nobody) = sync_channel(1);
        let ingest = Ingest::new(
            archive.clone(),
            self.signing.clone(),
            finished,
            LogLimits {
                bytes_max: 1 << 20,
                age_max: Duration::from_secs(3600),
                entries_max: LOG_ENTRIES_MAX,
            },
        )?;
        let shared = Shared {
            agents: Arc::new(Agents::load(catalogue.clone(), 1)?),
            archive,
            signing: self.signing.clone(),
            keep_alive: Duration::from_secs(10),
            streams: crate::config::AgentStreams {
                max: 250_000,
                new_per_minute_max: 60_000,
            },
            rates: Rates::default(),
            held: HeldBytes::default(),
        };
        self.process = Some(Process {
            shared,
            catalogue,
            ingest,
            noise: self.noise.clone(),
            queue: VecDeque::new(),
            alarms: Vec::new(),
            connection: None,
            unnoticed: Vec::new(),
            _volume: volume,
        });
        Ok(())
    }
}

impl Process {
    /// Somebody connects.
    pub(super) fn accept(&mut self) {
        self.hang_up(true);
        self.connection = Some(Connection {
            received: Vec::new(),
            stage: Stage::Preamble,
        });
    }

    /// The connection is over; `noticed` or not yet.
    pub(super) fn hang_up(&mut self, noticed: bool) {
        if let Some(Connection {
            stage: Stage::Session(_, agent, number),
            ..
        }) = self.connection.take()
        {
            self.unnoticed.push((agent, number));
        }
        if noticed {
            self.notice();
        }
    }

    /// Notices the end of every connection that is over.
    pub(super) fn notice(&mut self) {
        for (agent, number) in self.unnoticed.drain(..) {
            self.shared.agents.end_session(agent, number, None);
        }
    }

    /// Takes bytes of the connection; returns bytes to send. An error ends the connection, after those
    /// that come with it.
    pub(super) fn handle_bytes(
        &mut self,
        bytes: &[u8],
        now: Instant,
    ) -> (Vec<u8>, Option<anyhow::Error>) {
        let mut out = Vec::new();
        let Some(mut connection) = self.connection.take() else {
            return (out, None);
        };
        let ended = self.advance(&mut connection, bytes, now, &mut out).err();
        self.connection = Some(connection);
        self.collect(now, &mut out);
        (out, ended)
    }

    fn advance(
        &mut self,
        connection: &mut Connection,
        bytes: &[u8],
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        if let Stage::Session(receiver, ..) = &mut connection.stage {
            receiver.take_bytes(bytes, now)?;
            return handle_all(receiver, now);
        }
        connection.received.extend_from_slice(bytes);
        if matches!(connection.stage, Stage::Preamble) {
            let Some(head) = connection.received.first_chunk::<PREAMBLE_HEAD_LEN>() else {
                return Ok(());
            };
            let len = PREAMBLE_HEAD_LEN + Preamble::hint_len(head, Suite::Encrypted)?;
            if connection.received.len() < len {
                return Ok(());
            }
            let preamble: Vec<u8> = connection.received.drain(..len).collect();
            let ephemeral = KeyPair::from_secret(&Secret::new(random()?));
            let noise = self.noise.clone();
            let expect = ExpectAgentStart::new(Suite::Encrypted, &preamble, noise, ephemeral);
            connection.stage = Stage::Start(Box::new(expect));
        }
        while let Some(frame) = take_frame(&mut connection.received)? {
            match core::mem::replace(&mut connection.stage, Stage::Preamble) {
                Stage::Start(expect) => {
                    let (purpose, send) = expect.handle(&frame)?;
                    let token = match purpose {
                        Purpose::Connect => None,
                        Purpose::Ask { .. } => bail!("no agent of the simulation asks"),
                        Purpose::Enrol { token } => Some(self.shared.agents.check_token(&token)?),
                    };
                    let (answer, expect) = send.answer(&ServerHello::Welcome { time_us: 0 })?;
                    out.extend_from_slice(&answer);
                    connection.stage = Stage::Hello(Box::new(expect), token);
                }
                Stage::Hello(expect, token) => {
                    let static_public = expect.claimed_static(&frame)?;
                    match self.finish(*expect, token, &static_public, &frame, now) {
                        Ok(stage) => connection.stage = stage,
                        Err(error) => {
                            if let Some(refused) = error.downcast_ref::<Refused>() {
                                let agents = &self.shared.agents;
                                let raise = agents
                                    .with_static(&static_public)
                                    .and_then(|id| agents.note_refusal(id, refused, address()));
                                self.alarms.extend(raise);
                                let reason = refused.to_string();
                                out.extend_from_slice(&refusal_frame(refused.code(), &reason));
                            }
                            return Err(error);
                        }
                    }
                    let rest = core::mem::take(&mut connection.received);
                    return self.advance(connection, &rest, now, out);
                }
                Stage::Preamble | Stage::Session(..) => bail!("no frame is expected"),
            }
        }
        Ok(())
    }

    fn finish(
        &mut self,
        expect: ExpectAgentHello,
        token: Option<TokenRecord>,
        static_public: &[u8; 32],
        frame: &[u8],
        now: Instant,
    ) -> Result<Stage> {
        let agents = self.shared.agents.clone();
        let (candidate, credentials) = agents.candidates(token, static_public)?;
        let (hello, used, established) = expect
            .handle(frame, &credentials)
            .map_err(|_| Refused::WrongCredential)?;
        let proven = Proven {
            suite: Suite::Encrypted,
            address: address(),
            static_public,
            used: credentials.get(used).context("which was used")?,
            hello: &hello,
            established: &established,
        };
        let accepted = agents.accept(candidate, &proven)?;
        let id = accepted.agent.id;
        let begun = agents.begin_session(id, Suite::Encrypted, address());
        let number = begun.number;
        // What an older session submitted is settled before this one states where it stands.
        self.commit();
        let receiver = Receiver::new(self.shared.clone(), &accepted, established, now)?;
        Ok(Stage::Session(Box::new(receiver), id, number))
    }

    /// What the session wants done, and to send.
    fn collect(&mut self, now: Instant, out: &mut Vec<u8>) {
        if let Some(Connection {
            stage: Stage::Session(receiver, ..),
            ..
        }) = &mut self.connection
        {
            while let Some(effect) = receiver.poll_effect() {
                match effect {
                    Effect::Submit(submission) => self.queue.push_back(submission),
                    Effect::Raise(raise) => self.alarms.push(raise),
                    // What a restored server lost is told; the worlds look at the entries themselves.
                    Effect::Audit(..) | Effect::Unmet(_) => {}
                }
            }
            while let Ok(Some(bytes)) = receiver.poll_transmit(now) {
                out.extend_from_slice(&bytes);
            }
        }
    }

    /// The writer takes everything that waits.
    pub(super) fn commit(&mut self) {
        let round: Vec<Submission> = self.queue.drain(..).collect();
        if !round.is_empty() {
            self.ingest.round(round);
        }
    }

    /// The session takes the writer's answers; returns bytes to send, and why it is over.
    pub(super) fn answer(&mut self, now: Instant) -> (Vec<u8>, Option<anyhow::Error>) {
        let mut out = Vec::new();
        let Some(Connection {
            stage: Stage::Session(receiver, ..),
            ..
        }) = &mut self.connection
        else {
            return (out, None);
        };
        let ended = receiver.handle_answers(None, now).err();
        self.collect(now, &mut out);
        (out, ended)
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> (Vec<u8>, Option<anyhow::Error>) {
        let mut out = Vec::new();
        let Some(Connection {
            stage: Stage::Session(receiver, ..),
            ..
        }) = &mut self.connection
        else {
            return (out, None);
        };
        let ended = match receiver.handle_timeout(now, 0) {
            Ok(None) => handle_all(receiver, now).err(),
            Ok(Some(reason)) => Some(anyhow::anyhow!(reason)),
            Err(error) => Some(error),
        };
        self.collect(now, &mut out);
        (out, ended)
    }
}

/// Everything that came, one after the other.
fn handle_all(receiver: &mut Receiver, now: Instant) -> Result<()> {
    while receiver.has_next() {
        if let Some(reason) = receiver.handle_next(now)? {
            bail!("closed: {reason}");
        }
    }
    Ok(())
}

fn take_frame(received: &mut Vec<u8>) -> Result<Option<Vec<u8>>> {
    let Some((head, rest)) = received.split_first_chunk::<FRAME_HEAD_LEN>() else {
        return Ok(None);
    };
    let FrameHead::Message(len) = FrameHead::parse(*head)? else {
        bail!("an agent cannot refuse");
    };
    if rest.len() < len {
        return Ok(None);
    }
    let frame = rest.get(..len).unwrap_or_default().to_vec();
    received.drain(..FRAME_HEAD_LEN + len);
    Ok(Some(frame))
}

fn address() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 1))
}
