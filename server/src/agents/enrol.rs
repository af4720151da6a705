//! Enrolment: one-time tokens, and the agents they make.

use anyhow::{Context as _, Result, bail};
use data_encoding::HEXLOWER;
use scrinium_protocol::identity::AgentId;
use scrinium_protocol::route::{Proxy, Route};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::token::Token;
use scrinium_segment::random;

use super::accept::Refused;
use super::names::{check_agent_name, check_name, check_unused};
use super::{Agents, State};
use crate::bounds::{self, NAME_LEN_MAX};
use crate::catalogue::records::{AgentRecord, StoredSecret, TokenRecord};
use crate::clock;

/// What an agent will be called, and whose it will be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewAgent<'a> {
    pub(crate) name: &'a str,
    pub(crate) site: &'a str,
    pub(crate) tenant: &'a str,
}

/// The addresses of a token, with the proxy that is named for it.
pub(crate) fn route_through(addresses: &str, proxy: Option<&str>) -> Result<String> {
    let Some(proxy) = proxy else {
        return Ok(addresses.to_owned());
    };
    let proxy = Proxy::parse(proxy).context("proxy")?;
    check_proxy(Some(&proxy))?;
    let route = Route::parse(addresses).context("address")?;
    Ok(route.through(proxy).context("proxy")?.to_string())
}

/// Tokens are sent around, and what they say is in the audit trail.
fn check_proxy(proxy: Option<&Proxy>) -> Result<()> {
    if proxy.is_some_and(|proxy| proxy.password.is_some()) {
        bail!(
            "proxy: a token holds no password of a proxy; put it on the machine, into the file of server.proxy_password_file"
        );
    }
    Ok(())
}

impl Agents {
    /// Whether a token can be made for an agent.
    pub(crate) fn check_new(&self, agent: &NewAgent<'_>, address: &str, ttl_s: u64) -> Result<()> {
        let NewAgent { name, site, tenant } = *agent;
        check_agent_name(name)?;
        bounds::check("site", site, NAME_LEN_MAX)?;
        check_name("tenant", tenant)?;
        check_proxy(Route::parse(address).context("address")?.proxy.as_ref())?;
        if ttl_s == 0 || ttl_s > TTL_S_MAX {
            bail!("ttl must be between 1 second and 30 days");
        }
        check_unused(name, self.lock().agents.values())
    }

    /// Makes an enrolment token for an agent to be called `name`.
    pub(crate) fn make_token(
        &self,
        agent: &NewAgent<'_>,
        address: &str,
        server_public: [u8; 32],
        ttl_s: u64,
    ) -> Result<Token> {
        self.check_new(agent, address, ttl_s)?;
        let NewAgent { name, site, tenant } = *agent;
        let mut state = self.lock();
        // Somebody else may have been quicker.
        check_unused(name, state.agents.values())?;
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
            tenant: tenant.to_owned(),
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
}

/// The agent a token makes, and the token as used.
pub(super) fn new_agent(
    state: &State,
    mut token: TokenRecord,
    static_public: &[u8; 32],
    next: &Secret<32>,
    recovery: &Secret<32>,
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
    // What a person ended does not begin again with its old token.
    if repeated.is_some_and(|agent| !agent.enabled || agent.set_aside) {
        return Err(Refused::Disabled);
    }
    // A token may be of an earlier version, and another of the same name may have been used meanwhile.
    let others = state.agents.values().filter(|agent| agent.id != id);
    check_agent_name(&token.agent_name)
        .and_then(|()| check_unused(&token.agent_name, others))
        .map_err(|error| Refused::Name(error.to_string()))?;
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

const TTL_S_MAX: u64 = 30 * 86_400;
