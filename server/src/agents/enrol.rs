//! Enrolment: one-time tokens, and the agents they make.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
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
    /// The account that makes the token; empty for the local command.
    pub(crate) by: &'a str,
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
        let NewAgent {
            name,
            site,
            tenant,
            by,
        } = *agent;
        check_agent_name(name)?;
        bounds::check("site", site, NAME_LEN_MAX)?;
        check_name("tenant", tenant)?;
        check_proxy(Route::parse(address).context("address")?.proxy.as_ref())?;
        if ttl_s == 0 || ttl_s > TTL_S_MAX {
            bail!("ttl must be between 1 second and 30 days");
        }
        let state = self.lock();
        check_unused(name, state.agents.values())?;
        check_share(&state, by, clock::unix_s())
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
        let NewAgent {
            name,
            site,
            tenant,
            by,
        } = *agent;
        let now_s = clock::unix_s();
        let mut state = self.lock();
        // Somebody else may have been quicker.
        check_unused(name, state.agents.values())?;
        check_share(&state, by, now_s)?;
        let token = Token {
            address: address.to_owned(),
            server_public,
            id: random()?,
            secret: Secret::new(random()?),
            expires_s: now_s + ttl_s,
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
            by: by.to_owned(),
        };
        let past = past_tokens(&state, by, now_s);
        self.catalogue.write(|changes| {
            past.values().try_for_each(|old| changes.remove(old))?;
            changes.put(&record)
        })?;
        state.tokens.retain(|id, _| !past.contains_key(id));
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

/// Whether an account may make one token more: tokens that wait for their agent have a share for each.
fn check_share(state: &State, by: &str, now_s: u64) -> Result<()> {
    let tokens = state.tokens.values();
    let waiting =
        tokens.filter(|token| token.by == by && token.used_by.is_none() && now_s < token.expires_s);
    let (who, max) = match by {
        "" => ("the local command", WAITING_OF_LOCAL_MAX),
        account => (account, WAITING_OF_ONE_MAX),
    };
    ensure!(
        waiting.count() < max,
        "{who} has {max} enrolment tokens that nobody used yet, which is all that one account may have; use some, or wait until they expire"
    );
    Ok(())
}

/// The tokens that need not be known any more when `by` makes another one. Who shows one is told that it is unknown, and
/// not that it expired.
fn past_tokens(state: &State, by: &str, now_s: u64) -> BTreeMap<[u8; 16], TokenRecord> {
    let is_past = |token: &&TokenRecord| now_s >= token.expires_s.saturating_add(REMEMBERED_S);
    let past = state.tokens.values().filter(is_past);
    let expired = |token: &&TokenRecord| token.by == by && now_s >= token.expires_s;
    let mut of_one: Vec<_> = state.tokens.values().filter(expired).collect();
    of_one.sort_by_key(|token| core::cmp::Reverse(token.expires_s));
    let oldest = of_one.into_iter().skip(EXPIRED_OF_ONE_MAX);
    let all = past.chain(oldest);
    all.map(|token| (token.id, token.clone())).collect()
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
            agents.make_token(&agent, "192.0.2.1:720", [1; 32], 600)
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
