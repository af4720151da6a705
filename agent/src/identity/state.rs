//! What is written down of an agent: who it is, and where its streams stood.
//!
//! `behind` says whether the server may know more than this file: it is set, durably, before the
//! first batch that lies only in memory is sent. An agent that starts with it set reads nothing
//! until the server has stated where each stream stands; one that starts without it goes on at once.

use std::collections::BTreeMap;

use anyhow::Result;
use scrinium_protocol::batch::StreamPosition;
use scrinium_protocol::codec::{Codec as _, Reader, put_bytes16};
use scrinium_protocol::identity::{AgentId, Epoch, StreamId};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::message::{CONFIGURATION_LEN_MAX, Receipt};
use scrinium_protocol::token::Token;
use scrinium_segment::random;

/// What is written down. No field is shown by `Debug` that is secret.
#[derive(Debug)]
pub struct State {
    pub agent: AgentId,
    /// `HOST:PORT` of the server.
    pub address: String,
    pub server_public: [u8; 32],
    /// X25519 secret of this agent.
    pub noise: Secret<32>,
    /// Ed25519 secret that signs batches.
    pub signing: Secret<32>,
    /// The rolling password of the next connection.
    pub credential: Secret<32>,
    /// The token being used, until the server has answered.
    pub token: Option<[u8; 16]>,
    /// What is shown when the server does not know the rolling credential: agreed at enrolment.
    pub recovery: Option<Secret<32>>,
    /// Ed25519 key of the server, from the first session: signs configurations.
    pub server_signing: Option<[u8; 32]>,
    /// The configuration from the server that is in force.
    pub central: Option<Central>,
    /// What was in force before it, until it is known that the server can be reached with it.
    pub trial: Option<Trial>,
    /// The version that kept the server out of reach and was taken back.
    pub reverted: Option<u64>,
    /// Epoch of streams begun by this installation, or since its state was restored from a copy.
    pub epoch: Epoch,
    pub behind: bool,
    pub positions: BTreeMap<StreamId, StreamPosition>,
    /// The last receipt of each stream: the server's signed word that everything before is durable.
    pub receipts: BTreeMap<StreamId, Receipt>,
}

/// A configuration from the server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Central {
    pub version: u64,
    pub text: String,
}

/// What is gone back to should the configuration in force keep the server out of reach.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trial {
    /// `None` for this machine's own alone.
    pub previous: Option<Central>,
}

impl Central {
    fn encode(central: Option<&Self>, out: &mut Vec<u8>) {
        let (version, text) =
            central.map_or((0, ""), |central| (central.version, central.text.as_str()));
        out.extend_from_slice(&version.to_be_bytes());
        put_bytes16(out, text.as_bytes());
    }

    fn read(r: &mut Reader<'_>) -> Result<Option<Self>> {
        let version = r.u64("configuration version")?;
        let text = r.text16(CONFIGURATION_LEN_MAX, "configuration")?;
        Ok((version > 0).then_some(Self { version, text }))
    }
}

impl State {
    /// What an agent has that is about to use a token.
    ///
    /// # Errors
    /// The operating system gives no random bytes.
    pub fn new(token: &Token) -> Result<Self> {
        Ok(Self {
            agent: AgentId::default(),
            address: token.address.clone(),
            server_public: token.server_public,
            noise: Secret::new(random()?),
            signing: Secret::new(random()?),
            credential: token.secret.clone(),
            token: Some(token.id),
            recovery: None,
            server_signing: None,
            central: None,
            trial: None,
            reverted: None,
            epoch: Epoch(random()?),
            behind: false,
            positions: BTreeMap::new(),
            receipts: BTreeMap::new(),
        })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        // Without what only this version knows it is what the one before wrote, which may run again.
        let is_older = self.trial.is_none() && self.reverted.is_none();
        let mut out = vec![if is_older { VERSION_OLDER } else { VERSION }];
        self.agent.encode(&mut out);
        put_bytes16(&mut out, self.address.as_bytes());
        out.extend_from_slice(&self.server_public);
        for secret in [&self.noise, &self.signing, &self.credential] {
            out.extend_from_slice(secret.expose());
        }
        out.push(u8::from(self.token.is_some()));
        out.extend_from_slice(&self.token.unwrap_or_default());
        out.push(u8::from(self.recovery.is_some()));
        let recovery = self.recovery.as_ref().map_or(&[0; 32], Secret::expose);
        out.extend_from_slice(recovery);
        out.push(u8::from(self.server_signing.is_some()));
        out.extend_from_slice(&self.server_signing.unwrap_or_default());
        Central::encode(self.central.as_ref(), &mut out);
        if !is_older {
            out.push(u8::from(self.trial.is_some()));
            let previous = self
                .trial
                .as_ref()
                .and_then(|trial| trial.previous.as_ref());
            Central::encode(previous, &mut out);
            out.extend_from_slice(&self.reverted.unwrap_or(0).to_be_bytes());
        }
        self.epoch.encode(&mut out);
        out.push(u8::from(self.behind));
        let count = u32::try_from(self.positions.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        for (stream, position) in &self.positions {
            stream.encode(&mut out);
            position.encode(&mut out);
        }
        for receipt in self.receipts.values() {
            receipt.encode(&mut out);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader::new(bytes);
        let version = r.u8("state version")?;
        anyhow::ensure!(
            [VERSION_OLDER, VERSION].contains(&version),
            "state version {version}"
        );
        let is_older = version == VERSION_OLDER;
        let mut state = Self {
            agent: AgentId::read(&mut r)?,
            address: r.text16(scrinium_protocol::token::ADDRESS_LEN_MAX, "address")?,
            server_public: r.array("server public key")?,
            noise: Secret::new(r.array("noise key")?),
            signing: Secret::new(r.array("signing key")?),
            credential: Secret::new(r.array("credential")?),
            token: None,
            recovery: None,
            server_signing: None,
            central: None,
            trial: None,
            reverted: None,
            epoch: Epoch::default(),
            behind: false,
            positions: BTreeMap::new(),
            receipts: BTreeMap::new(),
        };
        let has_token = r.flag("token flag")?;
        let token = r.array("token")?;
        state.token = has_token.then_some(token);
        let has_recovery = r.flag("recovery flag")?;
        let recovery = Secret::new(r.array("recovery credential")?);
        state.recovery = has_recovery.then_some(recovery);
        let has_signing = r.flag("server signing flag")?;
        let signing = r.array("server signing key")?;
        state.server_signing = has_signing.then_some(signing);
        state.central = Central::read(&mut r)?;
        if !is_older {
            let is_on_trial = r.flag("trial flag")?;
            let previous = Central::read(&mut r)?;
            state.trial = is_on_trial.then_some(Trial { previous });
            state.reverted = Some(r.u64("reverted version")?).filter(|version| *version > 0);
        }
        state.epoch = Epoch::read(&mut r)?;
        state.behind = r.flag("behind flag")?;
        for _ in 0..r.u32("number of positions")? {
            let stream = StreamId::read(&mut r)?;
            let position = StreamPosition::read(&mut r)?;
            state.positions.insert(stream, position);
        }
        while !r.is_empty() {
            let receipt = Receipt::read(&mut r)?;
            state.receipts.insert(receipt.stream, receipt);
        }
        Ok(state)
    }
}

const VERSION: u8 = 3;
const VERSION_OLDER: u8 = 2;

#[cfg(test)]
pub(super) mod tests {
    use scrinium_protocol::identity::{Head, Sequence};

    use super::*;

    pub(in crate::identity) fn sample() -> State {
        let position = StreamPosition {
            epoch: Epoch([1; 16]),
            next: Sequence(9),
            head: Head([2; 32]),
            bookmark: vec![1, 2, 3],
        };
        State {
            agent: AgentId([3; 16]),
            address: "localhost:720".into(),
            server_public: [4; 32],
            noise: Secret::new([5; 32]),
            signing: Secret::new([6; 32]),
            credential: Secret::new([7; 32]),
            token: Some([8; 16]),
            recovery: Some(Secret::new([10; 32])),
            server_signing: Some([11; 32]),
            central: Some(Central {
                version: 12,
                text: "[[source]]".into(),
            }),
            trial: Some(Trial { previous: None }),
            reverted: Some(11),
            epoch: Epoch([9; 16]),
            behind: true,
            positions: BTreeMap::from([(StreamId([1; 16]), position)]),
            receipts: BTreeMap::from([(
                StreamId([1; 16]),
                Receipt {
                    stream: StreamId([1; 16]),
                    epoch: Epoch([1; 16]),
                    next: Sequence(9),
                    head: Head([2; 32]),
                    log: 3,
                    offset: 4,
                    signature: [5; 64],
                },
            )]),
        }
    }

    #[test]
    fn the_state_reads_back() {
        let state = sample();
        let read = State::decode(&state.encode()).unwrap();
        assert_eq!(read.encode(), state.encode());
        assert_eq!(read.positions, state.positions);
        assert_eq!(read.receipts, state.receipts);
        assert_eq!(read.trial, state.trial);
        assert_eq!(read.reverted, state.reverted);
        assert!(State::decode(&state.encode()[..50]).is_err());
        let mut newer = state.encode();
        newer[0] = VERSION + 1;
        assert!(State::decode(&newer).is_err());
    }
    /// K5: what needs nothing newer is written as the program before this one wrote it, so that after an
    /// upgrade either of the two can run; these bytes are frozen.
    #[test]
    fn k5_a_state_is_readable_before_and_after_an_upgrade() {
        let mut state = State::decode(&sample().encode()).unwrap();
        (state.trial, state.reverted) = (None, None);
        let older = state.encode();
        assert_eq!(older[0], VERSION_OLDER);
        assert_eq!(State::decode(&older).unwrap().encode(), older);
        let digest = scrinium_protocol::kdf::sha256(&[&older]);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "2a1cf2396d380f1f2369d1178fdc02d488f9efd571bf1504758d53ff9ca527a9"
        );
    }
}
