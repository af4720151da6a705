//! Enrolment: tokens for one agent or several, and the agents they make.
//!
//! A use is counted in the same durable write as the agent that it makes. An agent that is removed gives no use back.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use data_encoding::HEXLOWER;
use scrinium_protocol::identity::AgentId;
use scrinium_protocol::route::{ADDRESSES_MAX, InvalidRoute, Proxy, Route};
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
use crate::said::{Said, said};

/// What an agent will be called, and whose it will be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewAgent<'a> {
    /// A pattern, of a token of several uses.
    pub(crate) name: &'a str,
    pub(crate) site: &'a str,
    pub(crate) tenant: &'a str,
    /// The account that makes the token; empty for the local command.
    pub(crate) by: &'a str,
}

/// The addresses of a token, with the proxy that is named for it.
pub(crate) fn route_through(addresses: &str, proxy: Option<&str>) -> Result<String> {
    let Some(proxy) = proxy else {
        return Ok(addresses.to_owned());
    };
    let proxy = Proxy::parse(proxy).map_err(|wrong| route_said("proxy", &wrong))?;
    check_proxy(Some(&proxy))?;
    let route = parse_route(addresses)?;
    Ok(route.through(proxy).context("proxy")?.to_string())
}

/// Tokens are sent around, and what they say is in the audit trail.
fn check_proxy(proxy: Option<&Proxy>) -> Result<()> {
    if proxy.is_some_and(|proxy| proxy.password.is_some()) {
        return Err(said!("refused.proxy_password").into());
    }
    Ok(())
}

/// The address of a token: one or more, and perhaps a proxy without a password.
fn check_address(address: &str) -> Result<()> {
    check_proxy(parse_route(address)?.proxy.as_ref())
}

fn parse_route(addresses: &str) -> Result<Route> {
    let route = Route::parse(addresses);
    Ok(route.map_err(|wrong| route_said("address", &wrong))?)
}

/// Why a way to the server is none, for whoever typed it.
fn route_said(field: &str, wrong: &InvalidRoute) -> Said {
    match wrong {
        InvalidRoute::Address(text) => {
            said!("refused.address", field, text.escape_debug().to_string())
        }
        InvalidRoute::TooManyAddresses | InvalidRoute::TooLong => {
            said!("refused.addresses", field, ADDRESSES_MAX, ADDRESS_LEN_MAX)
        }
        InvalidRoute::Proxy => said!("refused.proxy", field),
        InvalidRoute::ProxyScheme(scheme) => {
            said!(
                "refused.proxy_scheme",
                field,
                scheme.escape_debug().to_string()
            )
        }
        InvalidRoute::ProxyCredential => said!("refused.proxy_credential", field),
        other => Said::from(format!("{field}: {other}")),
    }
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
            return Err(said!("refused.between", "uses", 1_u64, u64::from(USES_MAX)).into());
        }
        let (longest_s, days) = if uses == 1 {
            (TTL_S_MAX, 30_u64)
        } else {
            (TTL_OF_MANY_S_MAX, 400)
        };
        if ttl_s == 0 || ttl_s > longest_s {
            return Err(said!("refused.ttl", days).into());
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
        let NewAgent {
            name,
            site,
            tenant,
            by,
        } = *agent;
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
        let state = self.lock();
        if is_for_one {
            check_unused(name, state.agents.values())?;
        }
        check_share(&state, by, clock::unix_s())
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

    /// Whether `by` can make a token for the machine that takes the place of an agent whose state is lost.
    pub(crate) fn check_replaced(&self, name: &str, by: &str) -> Result<AgentId> {
        let id = self.find(name);
        let id = id.ok_or_else(|| said!("refused.no_agent", name))?;
        let agent = self
            .get(id)
            .ok_or_else(|| said!("refused.no_agent", name))?;
        if !agent.enabled {
            return Err(said!("refused.replace_disabled", name).into());
        }
        if self.is_connected(id) {
            return Err(said!("refused.replace_connected", name).into());
        }
        if agent.signing_before.len() >= REPLACED_MAX {
            return Err(said!("refused.replace_often", name, REPLACED_MAX).into());
        }
        check_share(&self.lock(), by, clock::unix_s())?;
        Ok(id)
    }

    /// Makes a token for a machine whose new state goes on where that of the agent called `name` stood.
    pub(crate) fn make_replacement(
        &self,
        (name, by): (&str, &str),
        address: &str,
        server_public: [u8; 32],
        ttl_s: u64,
    ) -> Result<Token> {
        let allowance = Allowance::once(ttl_s);
        allowance.check()?;
        check_address(address)?;
        let id = self.check_replaced(name, by)?;
        let agent = self.get(id).context("the agent is gone")?;
        let agent = NewAgent {
            name: &agent.name,
            site: &agent.site,
            tenant: &agent.tenant,
            by,
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
        let NewAgent {
            name,
            site,
            tenant,
            by,
        } = *agent;
        let Allowance { uses, ttl_s } = allowance;
        let now_s = clock::unix_s();
        // Somebody else may have been quicker.
        check_share(state, by, now_s)?;
        let token = Token {
            address: address.to_owned(),
            server_public,
            id: random()?,
            secret: Secret::new(random()?),
            expires_s: now_s + ttl_s,
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
            by: by.to_owned(),
        };
        let past = past_tokens(state, by, now_s);
        self.catalogue.write(|changes| {
            past.values().try_for_each(|old| changes.remove(old))?;
            changes.put(&record)
        })?;
        state.tokens.retain(|id, _| !past.contains_key(id));
        state.tokens.insert(record.id, record);
        Ok(token)
    }

    /// The tokens that still enrol somebody, the newest first.
    pub(crate) fn open_tokens(&self) -> Vec<TokenRecord> {
        let now_s = clock::unix_s();
        let state = self.lock();
        let open = state.tokens.values().filter(|token| is_open(token, now_s));
        let mut open: Vec<_> = open.cloned().collect();
        open.sort_by_key(|token| core::cmp::Reverse(token.made_us));
        open
    }

    /// From now on nobody enrols with a token; who did stays.
    pub(crate) fn revoke_token(&self, id: &[u8; 16]) -> Result<()> {
        let mut state = self.lock();
        let token = state.tokens.get_mut(id);
        let token = token.ok_or_else(|| said!("refused.no_token", HEXLOWER.encode(id)))?;
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

/// Whether a token still enrols somebody.
fn is_open(token: &TokenRecord, now_s: u64) -> bool {
    !token.revoked && now_s < token.expires_s && uses_of(token) < token.uses_max
}

/// Whether an account may make one token more: tokens that wait for their agents have a share for each.
fn check_share(state: &State, by: &str, now_s: u64) -> Result<()> {
    let tokens = state.tokens.values();
    let waiting = tokens.filter(|token| token.by == by && is_open(token, now_s));
    let (who, max) = match by {
        "" => ("the local command", WAITING_OF_LOCAL_MAX),
        account => (account, WAITING_OF_ONE_MAX),
    };
    if waiting.count() >= max {
        return Err(said!("refused.tokens", who, max).into());
    }
    Ok(())
}

/// The tokens that need not be known any more when `by` makes another one. Who shows one is told that it is unknown, and
/// not that it expired.
fn past_tokens(state: &State, by: &str, now_s: u64) -> BTreeMap<[u8; 16], TokenRecord> {
    let is_past = |token: &&TokenRecord| now_s >= token.expires_s.saturating_add(REMEMBERED_S);
    let past = state.tokens.values().filter(is_past);
    let expired =
        |token: &&TokenRecord| token.by == by && (token.revoked || now_s >= token.expires_s);
    let mut of_one: Vec<_> = state.tokens.values().filter(expired).collect();
    of_one.sort_by_key(|token| core::cmp::Reverse(token.expires_s));
    let oldest = of_one.into_iter().skip(EXPIRED_OF_ONE_MAX);
    let all = past.chain(oldest);
    all.map(|token| (token.id, token.clone())).collect()
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
    let name = name.map_err(|error| {
        let said = error.downcast_ref::<Said>().cloned();
        Refused::Name(said.unwrap_or_else(|| Said::from(error.to_string())))
    })?;
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
/// Tokens of one account that wait for their agent: a roll-out by hand. About 80 KiB.
const WAITING_OF_ONE_MAX: usize = 200;
/// The same of the local command, whose user could take everything anyway: a roll-out by a program.
const WAITING_OF_LOCAL_MAX: usize = 100_000;
/// Expired tokens of one account that are remembered, and for how long, seconds.
const EXPIRED_OF_ONE_MAX: usize = 200;
const REMEMBERED_S: u64 = 30 * 86_400;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;

    #[test]
    fn an_account_fills_its_own_share_of_tokens_and_expired_ones_make_room() {
        let path = std::env::temp_dir().join(format!("scrinium-tokens-{}.db", std::process::id()));
        drop(std::fs::remove_file(&path));
        let catalogue = Catalogue::create(&path, &Secret::new([1; 32])).unwrap();
        let agents = Agents::load(std::sync::Arc::new(catalogue), 0).unwrap();
        let make = |by: &str, n: usize| {
            let agent = NewAgent {
                name: &format!("web{by}-{n}"),
                site: "",
                tenant: "first",
                by,
            };
            agents.make_token(&agent, "192.0.2.1:720", [1; 32], Allowance::once(600))
        };
        for n in 0..WAITING_OF_ONE_MAX {
            make("one", n).unwrap();
        }
        let refused = make("one", 9999).err().unwrap().to_string();
        assert!(
            refused.contains("one has 200 enrolment tokens"),
            "{refused}"
        );
        make("two", 0).unwrap();
        make("", 0).unwrap();
        // Those that expired are remembered, as many as may be; those that were used count for nothing.
        let age = |by: &str, seconds: u64| {
            let mut state = agents.lock();
            let tokens = state.tokens.values_mut().filter(|token| token.by == by);
            tokens.for_each(|token| token.expires_s -= seconds);
        };
        age("one", 700);
        for n in 0..WAITING_OF_ONE_MAX {
            make("one", n).unwrap();
        }
        age("one", 700);
        make("one", 1).unwrap();
        let count = |by: &str| {
            let state = agents.lock();
            state.tokens.values().filter(|token| token.by == by).count()
        };
        assert_eq!(count("one"), EXPIRED_OF_ONE_MAX + 1);
        age("one", 700 + REMEMBERED_S);
        make("two", 1).unwrap();
        assert_eq!((count("one"), count("two")), (0, 2));
        let kept = agents.catalogue.load::<TokenRecord>().unwrap();
        assert_eq!(kept.len(), 3);
    }
}
