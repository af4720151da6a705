//! The agent's end: its shipper, its sources as lists of lines, and its handshake.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use ed25519_dalek::SigningKey;
use scrinium_agent::config::Limits;
use scrinium_agent::identity::{self, Identity, State};
use scrinium_agent::shipper::{Order, Produced, Refused, Shipper};
use scrinium_protocol::batch::{BatchBuilder, StreamPosition};
use scrinium_protocol::compress::Compressor;
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::identity::{StreamId, StreamKind, StreamName};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::{
    AgentHello, AgentKeys, ExpectServerHello, FRAME_HEAD_LEN, FrameHead, Purpose, ServerHello,
    parse_refusal, start,
};
use scrinium_protocol::sl::noise::KeyPair;
use scrinium_protocol::sl::suite::Suite;
use scrinium_protocol::token::Token;
use scrinium_segment::random;

/// A file on the agent's machine: it outlives every process.
pub(super) struct File {
    pub(super) name: String,
    pub(super) lines: Vec<Vec<u8>>,
}

/// The agent's process, and what it leaves on the disk.
pub(super) struct Agent {
    pub(super) dir: PathBuf,
    key: Secret<32>,
    pub(super) process: Option<Process>,
}

pub(super) struct Process {
    pub(super) shipper: Shipper,
    instance: [u8; 16],
    handshake: Option<ExpectServerHello>,
    received: Vec<u8>,
    /// Where reading stands, per stream; empty until the order to start.
    reading: BTreeMap<StreamId, Reading>,
    has_started: bool,
}

struct Reading {
    position: StreamPosition,
    rewinds: u64,
}

impl Agent {
    /// A machine on which a token was just given.
    pub(super) fn new(dir: &Path, token: &Token) -> Result<Self> {
        let key = identity::prepare(dir)?;
        let state = State::new(token)?;
        drop(Identity::create(dir, &key, state)?);
        Ok(Self {
            dir: dir.to_owned(),
            key,
            process: None,
        })
    }

    pub(super) fn open_state(&self) -> Result<Identity> {
        Identity::open(&self.dir, &self.key)
    }

    pub(super) fn start(&mut self) -> Result<()> {
        let limits = Limits {
            ram_bytes_max: 2000,
            disk_bytes_max: 100_000,
        };
        let check = Box::new(|_: &str| Ok(()));
        let identity = self.open_state()?;
        self.process = Some(Process {
            shipper: Shipper::open(&self.dir, &self.key, limits, identity, check)?,
            instance: random()?,
            handshake: None,
            received: Vec::new(),
            reading: BTreeMap::new(),
            has_started: false,
        });
        Ok(())
    }
}

impl Process {
    /// Begins a connection; returns the first bytes.
    pub(super) fn dial(&mut self) -> Result<Vec<u8>> {
        let state = self.shipper.state();
        let keys = AgentKeys {
            suite: Suite::Encrypted,
            static_keys: KeyPair::from_secret(&state.noise),
            ephemeral: KeyPair::from_secret(&Secret::new(random()?)),
            server_public: state.server_public,
            psk: self.shipper.credential().clone(),
        };
        let purpose = state
            .token
            .map_or(Purpose::Connect, |token| Purpose::Enrol { token });
        let (bytes, expect) = start(keys, "", purpose)?;
        self.handshake = Some(expect);
        self.received.clear();
        Ok(bytes)
    }

    /// Takes bytes of the connection; returns bytes of the handshake to send. An error ends the
    /// connection.
    pub(super) fn handle_bytes(&mut self, bytes: &[u8], now: Instant) -> Result<Vec<u8>> {
        if self.handshake.is_none() {
            self.shipper.handle_bytes(bytes, now)?;
            return Ok(Vec::new());
        }
        self.received.extend_from_slice(bytes);
        let Some((head, rest)) = self.received.split_first_chunk::<FRAME_HEAD_LEN>() else {
            return Ok(Vec::new());
        };
        let (len, is_refusal) = match FrameHead::parse(*head)? {
            FrameHead::Message(len) => (len, false),
            FrameHead::Refusal(len) => (len, true),
        };
        let Some((frame, rest)) = rest.split_at_checked(len) else {
            return Ok(Vec::new());
        };
        if is_refusal {
            return Err(Refused::new(parse_refusal(frame)).into());
        }
        let Some(expect) = self.handshake.take() else {
            return Ok(Vec::new());
        };
        let (answer, send) = expect.handle(frame)?;
        if let ServerHello::Refused { reason } = answer {
            bail!("refused: {reason}");
        }
        let state = self.shipper.state();
        let signing = SigningKey::from_bytes(state.signing.expose());
        let hello = AgentHello {
            agent: state.agent,
            signing_public: signing.verifying_key().to_bytes(),
            instance: self.instance,
            ..AgentHello::default()
        };
        let (out, established) = send.finish(&hello)?;
        let rest = rest.to_vec();
        self.shipper.handle_connected(established, now);
        self.shipper.handle_bytes(&rest, now)?;
        Ok(out)
    }

    /// Where reading stands.
    pub(super) fn positions(&self) -> BTreeMap<StreamId, StreamPosition> {
        let positions = self.reading.iter();
        positions
            .map(|(stream, reading)| (*stream, reading.position.clone()))
            .collect()
    }

    /// Whether the handshake is over.
    pub(super) fn is_in_session(&self) -> bool {
        self.handshake.is_none()
    }

    pub(super) fn hang_up(&mut self, error: &anyhow::Error) {
        self.handshake = None;
        self.shipper.handle_disconnected(error);
    }

    /// Carries out what the shipper orders of its sources. With `deaf` they do not listen to a rewind.
    pub(super) fn obey(&mut self, deaf: bool) {
        while let Some(order) = self.shipper.poll_order() {
            match order {
                Order::Start { positions, .. } => {
                    self.has_started = true;
                    let reading = |position| Reading {
                        position,
                        rewinds: 0,
                    };
                    self.reading = positions
                        .into_iter()
                        .map(|(stream, position)| (stream, reading(position)))
                        .collect();
                }
                Order::Rewind {
                    stream,
                    position,
                    rewinds,
                    ..
                } => {
                    let known = self.reading.remove(&stream).filter(|_| deaf);
                    let position = match known {
                        // Its epoch and chain are the server's, what it reads is not.
                        Some(known) => StreamPosition {
                            bookmark: known.position.bookmark,
                            ..position
                        },
                        None => position,
                    };
                    self.reading.insert(stream, Reading { position, rewinds });
                }
                Order::Configure { .. } => {}
            }
        }
    }

    /// Reads up to `max` lines of a file into one batch, if there is room for it.
    pub(super) fn produce(&mut self, file: &File, max: usize, compressor: &mut Compressor) {
        if !self.has_started || !self.shipper.has_room() {
            return;
        }
        let state = self.shipper.state();
        let name = StreamName {
            kind: StreamKind::File,
            name: file.name.clone(),
        };
        let stream = name.id(state.agent);
        let (agent, epoch) = (state.agent, state.epoch);
        let signing = SigningKey::from_bytes(state.signing.expose());
        let reading = self.reading.entry(stream).or_insert_with(|| Reading {
            position: StreamPosition::start(agent, stream, epoch),
            rewinds: 0,
        });
        let begin = line_of(&reading.position.bookmark);
        let lines: Vec<&Vec<u8>> = file.lines.iter().skip(begin).take(max).collect();
        if lines.is_empty() {
            return;
        }
        let mut builder = BatchBuilder::new();
        for line in &lines {
            let meta = EntryMeta {
                time_us: 1,
                flags: EntryFlags::NONE,
            };
            assert!(builder.push(line, meta));
        }
        let bookmark = ((begin + lines.len()) as u64).to_be_bytes().to_vec();
        let (batch, after) =
            builder.seal(stream, &reading.position, bookmark, &signing, compressor);
        reading.position = after;
        let rewinds = reading.rewinds;
        self.shipper.take(Produced {
            name,
            rewinds,
            batch,
        });
    }
}

/// The bookmark of a simulated file: how many lines were read.
pub(super) fn line_of(bookmark: &[u8]) -> usize {
    let number = bookmark.try_into().map_or(0, u64::from_be_bytes);
    usize::try_from(number).unwrap_or(usize::MAX)
}
