//! Enrolment: tokens for one agent or several, and the agents they make.
//!
//! A use is counted in the same durable write as the agent that it makes. An agent that is removed gives no use back.

use anyhow::{Context as _, Result, bail, ensure};
use data_encoding::HEXLOWER;
use scrinium_protocol::identity::AgentId;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::Established;
use scrinium_protocol::token::{ADDRESS_LEN_MAX, Token, USES_MAX};
use scrinium_segment::random;

use super::accept::{Proven, Refused};
use super::names::{check_agent_name, check_agent_pattern, check_name, check_unused, name_of_use};
use super::{Agents, State};
use crate::bounds::{self, NAME_LEN_MAX};
use crate::catalogue::records::{AgentRecord, StoredSecret, TokenRecord};
use crate::clock;

/// What an agent will be called, and whose it will be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewAgent<'a> {
    /// A pattern, of a token of several uses.
    pub(crate) name: &'a str,
    pub(crate) site: &'a str,
    pub(crate) tenant: &'a str,
}

/// What a token lets do, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    pub(crate) uses: u32,
    pub(crate) ttl_s: u64,
}

impl Allowance {
    /// One agent, within so many seconds.
    pub(crate) fn once(ttl_s: u64) -> Self {
        Self { uses: 1, ttl_s }
    }

    fn check(&self) -> Result<()> {
        let Self { uses, ttl_s } = *self;
        if !(1..=USES_MAX).contains(&uses) {
            bail!("uses must be between 1 and {USES_MAX}");
        }
        let (longest_s, days) = if uses == 1 {
            (TTL_S_MAX, 30)
        } else {
            (TTL_OF_MANY_S_MAX, 400)
        };
        if ttl_s == 0 || ttl_s > longest_s {
            bail!("ttl must be between 1 second and {days} days");
        }
        Ok(())
    }
}

impl Agents {
    /// Whether a token can be made for an agent.
    pub(crate) fn check_new(
        &self,
        agent: &NewAgent<'_>,
        address: &str,
        allowance: Allowance,
    ) -> Result<()> {
        let NewAgent { name, site, tenant } = *agent;
        let is_for_one = allowance.uses == 1;
        if is_for_one {
            check_agent_name(name)?;
        } else {
            check_agent_pattern(name)?;
        }
        bounds::check("site", site, NAME_LEN_MAX)?;
        check_name("tenant", tenant)?;
        check_address(address)?;
        allowance.check()?;
        if is_for_one {
            check_unused(name, self.lock().agents.values())?;
        }
        Ok(())
    }

    /// Makes an enrolment token for an agent to be called `name`, or for several.
    pub(crate) fn make_token(
        &self,
        agent: &NewAgent<'_>,
        address: &str,
        server_public: [u8; 32],
        allowance: Allowance,
    ) -> Result<Token> {
        self.check_new(agent, address, allowance)?;
        let mut state = self.lock();
        // Somebody else may have been quicker.
        if allowance.uses == 1 {
            check_unused(agent.name, state.agents.values())?;
        }
        self.put_token(
            &mut state,
            agent,
            address,
            server_public,
            allowance,
            [0; 16],
        )
    }

    /// Whether a token can be made for the machine that takes the place of an agent whose state is lost.
    pub(crate) fn check_replaced(&self, name: &str) -> Result<AgentId> {
        let id = self.find(name);
        let id = id.with_context(|| format!("no agent is named '{name}'"))?;
        let agent = self.get(id).context("the agent is gone")?;
        ensure!(
            agent.enabled,
            "the agent '{name}' is disabled; enable it before it is replaced"
        );
        ensure!(
            !self.is_connected(id),
            "the agent '{name}' is connected: its state is not lost"
        );
        ensure!(
            agent.signing_before.len() < REPLACED_MAX,
            "the agent '{name}' was replaced {REPLACED_MAX} times; enrol a new one"
        );
        Ok(id)
    }

    /// Makes a token for a machine whose new state goes on where that of the agent called `name` stood.
    pub(crate) fn make_replacement(
        &self,
        name: &str,
        address: &str,
        server_public: [u8; 32],
        ttl_s: u64,
    ) -> Result<Token> {
        let allowance = Allowance::once(ttl_s);
        allowance.check()?;
        check_address(address)?;
        let id = self.check_replaced(name)?;
        let agent = self.get(id).context("the agent is gone")?;
        let agent = NewAgent {
            name: &agent.name,
            site: &agent.site,
            tenant: &agent.tenant,
        };
        self.put_token(
            &mut self.lock(),
            &agent,
            address,
            server_public,
            allowance,
            id.0,
        )
    }

    fn put_token(
        &self,
        state: &mut State,
        agent: &NewAgent<'_>,
        address: &str,
        server_public: [u8; 32],
        allowance: Allowance,
        replaces: [u8; 16],
    ) -> Result<Token> {
        let NewAgent { name, site, tenant } = *agent;
        let Allowance { uses, ttl_s } = allowance;
        let token = Token {
            address: address.to_owned(),
            server_public,
            id: random()?,
            secret: Secret::new(random()?),
            expires_s: clock::unix_s() + ttl_s,
            uses_max: uses,
        };
        let record = TokenRecord {
            id: token.id,
            secret: StoredSecret(token.secret.clone()),
            agent_name: name.to_owned(),
            site: site.to_owned(),
            tenant: tenant.to_owned(),
            made_us: clock::unix_us(),
            expires_s: token.expires_s,
            used_by: None,
            uses_max: uses,
            uses: 0,
            replaces,
            revoked: false,
        };
        self.catalogue.put(&record)?;
        state.tokens.insert(record.id, record);
        Ok(token)
    }

    /// The tokens that still enrol somebody, the newest first.
    pub(crate) fn open_tokens(&self) -> Vec<TokenRecord> {
        let now_s = clock::unix_s();
        let state = self.lock();
        let is_open = |token: &&TokenRecord| {
            !token.revoked && now_s < token.expires_s && uses_of(token) < token.uses_max
        };
        let mut open: Vec<_> = state.tokens.values().filter(is_open).cloned().collect();
        open.sort_by_key(|token| core::cmp::Reverse(token.made_us));
        open
    }

    /// From now on nobody enrols with a token; who did stays.
    pub(crate) fn revoke_token(&self, id: &[u8; 16]) -> Result<()> {
        let mut state = self.lock();
        let token = state.tokens.get_mut(id);
        let token =
            token.with_context(|| format!("no token has the id {}", HEXLOWER.encode(id)))?;
        let mut revoked = token.clone();
        revoked.revoked = true;
        self.catalogue.put(&revoked)?;
        *token = revoked;
        Ok(())
    }

    /// Looks a token up at the first message of a handshake.
    pub(crate) fn check_token(&self, id: &[u8; 16]) -> Result<TokenRecord, Refused> {
        let state = self.lock();
        let token = state.tokens.get(id).ok_or(Refused::UnknownToken)?;
        if token.revoked {
            return Err(Refused::RevokedToken);
        }
        if clock::unix_s() >= token.expires_s {
            return Err(Refused::ExpiredToken);
        }
        Ok(token.clone())
    }

    /// The agent a token was used by last, for the page that waits for it.
    pub(crate) fn enrolled_with(&self, token: &[u8; 16]) -> Option<AgentRecord> {
        let state = self.lock();
        let of_token = state
            .agents
            .values()
            .filter(|agent| agent.token_id == *token);
        of_token.max_by_key(|agent| agent.enrolled_us).cloned()
    }
}

fn check_address(address: &str) -> Result<()> {
    ensure!(
        address.len() <= ADDRESS_LEN_MAX && address.contains(':'),
        "address '{}' must be HOST:PORT",
        bounds::shortened(address).escape_debug()
    );
    Ok(())
}

/// How often a token was used. Those of an earlier version say only by whom.
fn uses_of(token: &TokenRecord) -> u32 {
    token.uses.max(u32::from(token.used_by.is_some()))
}

/// The agent that this token made for this static key, which may use it again until it has connected.
fn repeated<'a>(
    state: &'a State,
    token: &TokenRecord,
    static_public: &[u8; 32],
) -> Option<&'a AgentRecord> {
    let mut agents = state.agents.values();
    agents.find(|agent| agent.token_id == token.id && agent.static_public == *static_public)
}

/// Whether a token still enrols this static key.
pub(super) fn check_use(
    state: &State,
    token: &TokenRecord,
    static_public: &[u8; 32],
) -> Result<(), Refused> {
    if token.revoked {
        return Err(Refused::RevokedToken);
    }
    match repeated(state, token, static_public) {
        Some(agent) if agent.generation > 0 => Err(Refused::UsedToken),
        Some(_) => Ok(()),
        None if uses_of(token) < token.uses_max => Ok(()),
        None if token.uses_max > 1 => Err(Refused::UsedUpToken),
        None => Err(Refused::UsedToken),
    }
}

/// The agent whose lost state the holder of this token takes the place of, as it will be.
fn replaced_agent(
    state: &State,
    token: &TokenRecord,
    proven: &Proven<'_>,
) -> Result<AgentRecord, Refused> {
    let id = AgentId(token.replaces);
    let mut agent = state.agents.get(&id).ok_or(Refused::UnknownAgent)?.clone();
    if !agent.enabled || agent.set_aside {
        return Err(Refused::Disabled);
    }
    if state.sessions.contains_key(&id) {
        return Err(Refused::InUse);
    }
    // The same state may use the token again, until it has connected.
    let before = HEXLOWER.encode(&agent.signing_public);
    if agent.signing_public != proven.hello.signing_public {
        agent.signing_before.push(before);
    }
    let Established {
        next_psk,
        recovery_psk,
        ..
    } = proven.established;
    agent.static_public = *proven.static_public;
    agent.credential = StoredSecret(next_psk.clone());
    agent.credential_next = None;
    agent.credential_superseded = None;
    agent.recovery = Some(StoredSecret(recovery_psk.clone()));
    agent.generation = 0;
    agent.token_id = token.id;
    agent.quarantine = None;
    // It begins a new epoch where the server stands: in each epoch one key signs.
    agent.restored = true;
    Ok(agent)
}

/// The agent a token makes, and the token as used.
pub(super) fn new_agent(
    state: &State,
    token: &[u8; 16],
    proven: &Proven<'_>,
) -> Result<(AgentRecord, TokenRecord), Refused> {
    let static_public = proven.static_public;
    // As it is now: others may have used it during the handshake.
    let current = state.tokens.get(token).ok_or(Refused::UnknownToken)?;
    check_use(state, current, static_public)?;
    let mut token = current.clone();
    if token.replaces != [0; 16] {
        let agent = replaced_agent(state, &token, proven)?;
        token.uses = 1;
        token.used_by = Some(HEXLOWER.encode(static_public));
        return Ok((agent, token));
    }
    let repeated = repeated(state, &token, static_public);
    let id = match repeated {
        Some(agent) => agent.id,
        None => AgentId(random().map_err(|_| Refused::Unavailable)?),
    };
    // What a person ended does not begin again with its old token.
    if repeated.is_some_and(|agent| !agent.enabled || agent.set_aside) {
        return Err(Refused::Disabled);
    }
    // A token may be of an earlier version, and another of the same name may have been used meanwhile.
    let others = || state.agents.values().filter(|agent| agent.id != id);
    let name = match repeated {
        Some(agent) => Ok(agent.name.clone()),
        None if token.uses_max > 1 => name_of_use(
            &token.agent_name,
            token.uses + 1,
            &proven.hello.host_name,
            others(),
        ),
        None => check_agent_name(&token.agent_name)
            .and_then(|()| check_unused(&token.agent_name, others()))
            .map(|()| token.agent_name.clone()),
    };
    let name = name.map_err(|error| Refused::Name(error.to_string()))?;
    if repeated.is_none() {
        token.uses += 1;
    }
    token.used_by = Some(HEXLOWER.encode(static_public));
    let Established {
        next_psk: next,
        recovery_psk: recovery,
        ..
    } = proven.established;
    let agent = AgentRecord {
        id,
        name,
        site: token.site.clone(),
        static_public: *static_public,
        signing_public: [0; 32],
        signing_before: Vec::new(),
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
        recovery: Some(StoredSecret(recovery.clone())),
        quarantine: None,
        restored: false,
        integrity_only: false,
        set_aside: false,
        instance: [0; 16],
        configuration: None,
        tenant: token.tenant.clone(),
    };
    Ok((agent, token))
}

/// How long a token for one agent may be valid: it is used at once, or forgotten somewhere.
const TTL_S_MAX: u64 = 30 * 86_400;
/// One for several: images and manifests are renewed once a year.
const TTL_OF_MANY_S_MAX: u64 = 400 * 86_400;
/// How often an agent may be replaced: each time is another key that what it signed is verified with.
const REPLACED_MAX: usize = 60;
