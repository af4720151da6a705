//! The agents: who they are, which credential they hold, and what is known of them now.
//!
//! ```text
//! token ─enrol─▶ {n} ─handshake─▶ {n, n+1} ─n+1 proven─▶ {n+1}      n-1 used again ─▶ refused, said
//! ```
//!
//! Invariants:
//! 1. The next credential is durable here before the first record leaves, and the one before works
//!    until the next is proven: a crash on either side locks nobody out.
//! 2. A token enrols one static key. The same key may use it again until it has connected, so an
//!    agent that died while enrolling can repeat it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail};
use data_encoding::HEXLOWER;
use scrinium_protocol::identity::AgentId;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::AgentHello;
use scrinium_protocol::sl::message::KeepAlive;
use scrinium_protocol::token::Token;
use scrinium_segment::random;
use tokio::sync::watch;
use tracing::warn;

use crate::catalogue::Catalogue;
use crate::catalogue::records::{AgentRecord, StoredSecret, TokenRecord};
use crate::clock;

/// All agents and tokens.
pub(crate) struct Agents {
    catalogue: Arc<Catalogue>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    agents: BTreeMap<AgentId, AgentRecord>,
    tokens: BTreeMap<[u8; 16], TokenRecord>,
    live: BTreeMap<AgentId, Live>,
    sessions: BTreeMap<AgentId, (u64, watch::Sender<bool>)>,
    session_counter: u64,
}

/// What is known of an agent while the server runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live {
    pub(crate) connected: bool,
    pub(crate) address: Option<SocketAddr>,
    /// When its last record was opened, Unix µs.
    pub(crate) heard_us: u64,
    pub(crate) keep_alive: KeepAlive,
    /// Its clock minus ours, µs.
    pub(crate) clock_offset_us: i64,
    /// Why its last session broke, or why the server refused it.
    pub(crate) trouble: Option<String>,
    /// The server refused it.
    pub(crate) refused: bool,
}

/// Why a handshake is refused; told to the agent in these words.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("this enrolment token is not known to the server")]
    UnknownToken,
    #[error("this enrolment token has expired; make a new one with: scrinium-server agent enroll")]
    ExpiredToken,
    #[error(
        "this enrolment token was already used; make a new one with: scrinium-server agent enroll"
    )]
    UsedToken,
    #[error("this agent is not known to the server; enrol it again")]
    UnknownAgent,
    #[error("the credential or the token is wrong")]
    WrongCredential,
    #[error(
        "this credential was already replaced: the agent's state was copied or restored. The agent that holds the newer one is not affected"
    )]
    SupersededCredential,
    #[error("this agent is disabled on the server")]
    Disabled,
    #[error("the server cannot write its catalogue now")]
    Unavailable,
}

/// Who may finish a handshake with which credential.
pub(crate) enum Candidate {
    Enrol(Box<TokenRecord>),
    Connect,
}

impl Agents {
    pub(crate) fn load(catalogue: Arc<Catalogue>) -> Result<Self> {
        let agents = catalogue.load::<AgentRecord>()?;
        let tokens = catalogue.load::<TokenRecord>()?;
        let state = State {
            agents: agents.into_iter().map(|agent| (agent.id, agent)).collect(),
            tokens: tokens.into_iter().map(|token| (token.id, token)).collect(),
            ..State::default()
        };
        Ok(Self {
            catalogue,
            state: Mutex::new(state),
        })
    }

    /// Makes an enrolment token for an agent to be called `name`.
    pub(crate) fn make_token(
        &self,
        name: &str,
        site: &str,
        address: &str,
        server_public: [u8; 32],
        ttl_s: u64,
    ) -> Result<Token> {
        check_name("agent name", name)?;
        if address.len() > scrinium_protocol::token::ADDRESS_LEN_MAX || !address.contains(':') {
            bail!("address '{address}' must be HOST:PORT");
        }
        if ttl_s == 0 || ttl_s > TTL_S_MAX {
            bail!("ttl must be between 1 second and 30 days");
        }
        let mut state = self.lock();
        if state.agents.values().any(|agent| agent.name == name) {
            bail!("an agent named '{name}' exists; choose another name or delete it");
        }
        let token = Token {
            address: address.to_owned(),
            server_public,
            id: random()?,
            secret: Secret::new(random()?),
            expires_s: clock::unix_s() + ttl_s,
        };
        let record = TokenRecord {
            id: token.id,
            secret: StoredSecret(token.secret.clone()),
            agent_name: name.to_owned(),
            site: site.to_owned(),
            made_us: clock::unix_us(),
            expires_s: token.expires_s,
            used_by: None,
        };
        self.catalogue.put(&record)?;
        state.tokens.insert(record.id, record);
        Ok(token)
    }

    /// Looks a token up at the first message of a handshake.
    pub(crate) fn check_token(&self, id: &[u8; 16]) -> Result<TokenRecord, Refused> {
        let state = self.lock();
        let token = state.tokens.get(id).ok_or(Refused::UnknownToken)?;
        if clock::unix_s() >= token.expires_s {
            return Err(Refused::ExpiredToken);
        }
        Ok(token.clone())
    }

    /// The agent a token was used by, for the page that waits for it.
    pub(crate) fn enrolled_with(&self, token: &[u8; 16]) -> Option<AgentRecord> {
        self.lock()
            .agents
            .values()
            .find(|agent| agent.token_id == *token)
            .cloned()
    }

    /// Finds who claims to connect with `static_public`, and the credentials to try, newest first.
    pub(crate) fn candidates(
        &self,
        token: Option<TokenRecord>,
        static_public: &[u8; 32],
    ) -> Result<(Candidate, Vec<Secret<32>>), Refused> {
        let state = self.lock();
        if let Some(token) = token {
            let ours = HEXLOWER.encode(static_public);
            let has_connected = state
                .agents
                .values()
                .any(|agent| agent.token_id == token.id && agent.generation > 0);
            if token
                .used_by
                .as_ref()
                .is_some_and(|used| *used != ours || has_connected)
            {
                return Err(Refused::UsedToken);
            }
            let psk = token.secret.0.clone();
            return Ok((Candidate::Enrol(Box::new(token)), vec![psk]));
        }
        let agent = state
            .agents
            .values()
            .find(|agent| agent.static_public == *static_public);
        let agent = agent.ok_or(Refused::UnknownAgent)?.clone();
        let credentials = [
            agent.credential_next.as_ref(),
            Some(&agent.credential),
            agent.credential_superseded.as_ref(),
        ];
        let credentials = credentials
            .into_iter()
            .flatten()
            .map(|secret| secret.0.clone())
            .collect();
        Ok((Candidate::Connect, credentials))
    }

    /// Accepts a finished handshake in which `used` was proven; makes the next credential durable.
    /// When this returns, records may leave. Returns the agent and whether it was just enrolled.
    pub(crate) fn accept(
        &self,
        candidate: Candidate,
        used: &Secret<32>,
        next: &Secret<32>,
        static_public: &[u8; 32],
        hello: &AgentHello,
    ) -> Result<(AgentRecord, bool), Refused> {
        let mut state = self.lock();
        let (mut agent, token) = match candidate {
            Candidate::Enrol(token) => {
                let (agent, token) = new_agent(&state, *token, static_public, next)?;
                (agent, Some(token))
            }
            Candidate::Connect => {
                // Looked up again: another session of this agent may have moved it on meanwhile.
                let current = state
                    .agents
                    .values()
                    .find(|agent| agent.static_public == *static_public);
                let mut agent = current.ok_or(Refused::UnknownAgent)?.clone();
                if !agent.enabled {
                    return Err(Refused::Disabled);
                }
                if agent.id != hello.agent {
                    return Err(Refused::UnknownAgent);
                }
                if agent
                    .credential_next
                    .as_ref()
                    .is_some_and(|next| next.0 == *used)
                {
                    prove_next(&mut agent);
                } else if agent.credential.0 != *used {
                    return Err(Refused::SupersededCredential);
                }
                agent.credential_next = Some(StoredSecret(next.clone()));
                (agent, None)
            }
        };
        agent.signing_public = hello.signing_public;
        agent.host_name.clone_from(&hello.host_name);
        agent.version.clone_from(&hello.version);
        agent.os.clone_from(&hello.os);
        agent.fingerprint = hello
            .fingerprint
            .iter()
            .map(|(name, hash)| (name.clone(), HEXLOWER.encode(hash)))
            .collect();
        let written = self.catalogue.write(|changes| {
            changes.put(&agent)?;
            token.iter().try_for_each(|token| changes.put(token))
        });
        if let Err(error) = written {
            warn!(
                error = format!("{error:#}"),
                "an agent's credential could not be made durable"
            );
            return Err(Refused::Unavailable);
        }
        // At this point both credentials work; if we die now, the agent comes back with the one it has.
        let enrolled = token.is_some();
        if let Some(token) = token {
            state.tokens.insert(token.id, token);
        }
        state.agents.insert(agent.id, agent.clone());
        Ok((agent, enrolled))
    }

    /// The agent says it holds the next credential: the one before is superseded.
    pub(crate) fn credential_stored(&self, id: AgentId, next: &Secret<32>) -> Result<()> {
        let mut state = self.lock();
        let Some(agent) = state.agents.get_mut(&id) else {
            return Ok(());
        };
        if agent
            .credential_next
            .as_ref()
            .is_some_and(|held| held.0 == *next)
        {
            let mut moved = agent.clone();
            prove_next(&mut moved);
            self.catalogue.put(&moved)?;
            *agent = moved;
        }
        Ok(())
    }

    /// Begins a session: an older one of the same agent is told to end. Returns the session's
    /// number and the signal that ends it.
    pub(crate) fn begin_session(
        &self,
        id: AgentId,
        address: SocketAddr,
        time_us: u64,
    ) -> (u64, watch::Receiver<bool>) {
        let mut state = self.lock();
        state.session_counter += 1;
        let number = state.session_counter;
        let (end, ended) = watch::channel(false);
        if let Some((_, older)) = state.sessions.insert(id, (number, end)) {
            let _already_gone = older.send(true);
        }
        let live = state.live.entry(id).or_default();
        live.connected = true;
        live.address = Some(address);
        live.trouble = None;
        live.refused = false;
        let now = clock::unix_us();
        live.heard_us = now;
        live.clock_offset_us = time_us.cast_signed().saturating_sub(now.cast_signed());
        (number, ended)
    }

    /// Notes that a session ended.
    pub(crate) fn end_session(&self, id: AgentId, number: u64, trouble: Option<String>) {
        let mut state = self.lock();
        if state
            .sessions
            .get(&id)
            .is_some_and(|(current, _)| *current == number)
        {
            state.sessions.remove(&id);
            let live = state.live.entry(id).or_default();
            live.connected = false;
            live.trouble = trouble;
        }
    }

    /// Notes a sign of life.
    pub(crate) fn heard(&self, id: AgentId, keep_alive: Option<KeepAlive>) {
        let now = clock::unix_us();
        let mut state = self.lock();
        let live = state.live.entry(id).or_default();
        live.heard_us = now;
        if let Some(keep_alive) = keep_alive {
            live.clock_offset_us = keep_alive
                .time_us
                .cast_signed()
                .saturating_sub(now.cast_signed());
            live.keep_alive = keep_alive;
        }
    }

    /// Notes a refusal, so that a person sees it on the agent's row.
    pub(crate) fn note_trouble(
        &self,
        static_public: &[u8; 32],
        trouble: &Refused,
        address: SocketAddr,
    ) {
        let mut state = self.lock();
        let agent = state
            .agents
            .values()
            .find(|agent| agent.static_public == *static_public);
        if let Some(id) = agent.map(|agent| agent.id) {
            let live = state.live.entry(id).or_default();
            live.trouble = Some(format!("{trouble} ({address})"));
            live.refused = true;
        }
    }

    /// Allows or forbids an agent to connect; a session it has is ended.
    pub(crate) fn set_enabled(&self, name: &str, enabled: bool) -> Result<()> {
        let mut state = self.lock();
        let Some(agent) = state.agents.values().find(|agent| agent.name == name) else {
            bail!("no agent is named '{name}'");
        };
        let mut agent = agent.clone();
        agent.enabled = enabled;
        self.catalogue.put(&agent)?;
        if let Some((_, session)) = state.sessions.get(&agent.id).filter(|_| !enabled) {
            let _already_gone = session.send(true);
        }
        state.agents.insert(agent.id, agent);
        Ok(())
    }

    /// Every agent with what is known of it now, by name.
    pub(crate) fn list(&self) -> Vec<(AgentRecord, Live)> {
        let state = self.lock();
        let with_live = |agent: &AgentRecord| {
            (
                agent.clone(),
                state.live.get(&agent.id).cloned().unwrap_or_default(),
            )
        };
        let mut agents: Vec<_> = state.agents.values().map(with_live).collect();
        agents.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        agents
    }

    /// Name and signing key of every agent.
    pub(crate) fn signers(&self) -> BTreeMap<AgentId, (String, [u8; 32])> {
        let state = self.lock();
        state
            .agents
            .values()
            .map(|agent| (agent.id, (agent.name.clone(), agent.signing_public)))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The agent a token makes, and the token as used.
fn new_agent(
    state: &State,
    mut token: TokenRecord,
    static_public: &[u8; 32],
    next: &Secret<32>,
) -> Result<(AgentRecord, TokenRecord), Refused> {
    let ours = HEXLOWER.encode(static_public);
    let current = state.tokens.get(&token.id).ok_or(Refused::UnknownToken)?;
    if current.used_by.as_ref().is_some_and(|used| *used != ours) {
        return Err(Refused::UsedToken);
    }
    let repeated = state
        .agents
        .values()
        .find(|agent| agent.token_id == token.id);
    let id = match repeated {
        Some(agent) => agent.id,
        None => AgentId(random().map_err(|_| Refused::Unavailable)?),
    };
    token.used_by = Some(ours);
    let agent = AgentRecord {
        id,
        name: token.agent_name.clone(),
        site: token.site.clone(),
        static_public: *static_public,
        signing_public: [0; 32],
        credential: StoredSecret(next.clone()),
        credential_next: None,
        credential_superseded: None,
        generation: 0,
        enabled: true,
        token_id: token.id,
        enrolled_us: clock::unix_us(),
        host_name: String::new(),
        version: String::new(),
        os: String::new(),
        fingerprint: Vec::new(),
    };
    Ok((agent, token))
}

/// n+1 was proven: it becomes n, and n is superseded.
fn prove_next(agent: &mut AgentRecord) {
    if let Some(next) = agent.credential_next.take() {
        let before = core::mem::replace(&mut agent.credential, next);
        agent.credential_superseded = Some(before);
        agent.generation += 1;
    }
}

/// Names are shown in tables, typed in commands and used in file names.
pub(crate) fn check_name(field: &str, name: &str) -> Result<()> {
    let fine = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 128 || !name.chars().all(fine) {
        bail!("{field} '{name}' must be 1 to 128 letters, digits, '-', '_' or '.'");
    }
    Ok(())
}

const TTL_S_MAX: u64 = 30 * 86_400;
