//! The agents: who they are, which credential they hold, and what is known of them now.
//!
//! ```text
//! token ─[enrol]─▶ {n} ─handshake─▶ [accept] {n, n+1} ─n+1 proven─▶ {n+1}
//!                                       └─ n-1, a copy, another machine ─▶ refused, quarantine, alarm
//! ```
//!
//! Invariants:
//! 1. The next credential is durable here before the first record leaves, and the one before works
//!    until the next is proven: a crash on either side locks nobody out.
//! 2. A token enrols one static key, or as many as it says. The same key may use it again until it has connected, so an
//!    agent that died while enrolling can repeat it.

mod accept;
mod ask;
mod enrol;
mod live;
mod names;
mod news;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context as _, Result};
use data_encoding::HEXLOWER;
use scrinium_protocol::identity::AgentId;
use scrinium_protocol::sl::message::CONFIGURATION_LEN_MAX;
use scrinium_protocol::sl::suite::Suite;
use tokio::sync::watch;

pub(crate) use self::accept::{Accepted, Proven, Refused};
pub(crate) use self::enrol::{Allowance, NewAgent, route_through};
pub(crate) use self::live::{Limit, Live, interference_with};
pub(crate) use self::names::{check_account_name, check_name};
pub(crate) use self::news::{Answered, News};
use crate::bounds;
use crate::catalogue::records::{AgentConfiguration, AgentRecord, TokenRecord};
use crate::catalogue::{Catalogue, Changes};
use crate::clock;
use crate::said::{Said, said};
use crate::waits;

/// All agents and tokens.
pub(crate) struct Agents {
    catalogue: Arc<Catalogue>,
    /// Components of a machine that may change without a person's approval.
    changes_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    agents: BTreeMap<AgentId, AgentRecord>,
    tokens: BTreeMap<[u8; 16], TokenRecord>,
    live: BTreeMap<AgentId, Live>,
    sessions: BTreeMap<AgentId, (u64, watch::Sender<Told>)>,
    /// Sessions that were told to end for a newer one, and have not yet.
    ending: BTreeMap<AgentId, Vec<watch::Sender<Told>>>,
    session_counter: u64,
    /// Who was refused because the agent is connected, until that is proven or over.
    rivals: BTreeMap<AgentId, Rival>,
    /// How often agents said something else today.
    said: BTreeMap<(AgentId, News), news::Said>,
}

/// What a session is told from outside.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Told {
    /// To end.
    pub(crate) ended: bool,
    /// How often the agent's configuration changed since the session began.
    pub(crate) configurations: u64,
}

/// A session that begins.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) number: u64,
    /// The signal that ends it.
    pub(crate) told: watch::Receiver<Told>,
    /// The sessions of the same agent that it takes the place of.
    pub(crate) older: Older,
}

/// Sessions that were told to end because a newer one has come. Several: one that waits for a disk does not end, and the one
/// that waited for it has gone.
#[derive(Debug)]
pub(crate) struct Older(Vec<watch::Sender<Told>>);

impl Older {
    /// Waits until they have ended: they hold nothing any more, and submit nothing.
    pub(crate) async fn ended(self) {
        for session in self.0 {
            session.closed().await;
        }
    }
}

/// Who signed batches.
#[derive(Clone, Debug)]
pub(crate) struct Signer {
    pub(crate) name: String,
    /// The one in use first, then those of states that were lost.
    pub(crate) keys: Vec<[u8; 32]>,
}

/// Another process that showed the identity of a connected agent.
#[derive(Clone, Debug)]
struct Rival {
    address: SocketAddr,
    host_name: String,
    differs: String,
    /// When the agent was first heard after it.
    heard_us: Option<u64>,
}

impl Agents {
    pub(crate) fn load(catalogue: Arc<Catalogue>, changes_max: usize) -> Result<Self> {
        let agents = catalogue.load::<AgentRecord>()?;
        let tokens = catalogue.load::<TokenRecord>()?;
        let state = State {
            agents: agents.into_iter().map(|agent| (agent.id, agent)).collect(),
            tokens: tokens.into_iter().map(|token| (token.id, token)).collect(),
            ..State::default()
        };
        Ok(Self {
            catalogue,
            changes_max,
            state: Mutex::new(state),
        })
    }

    /// Components of a machine that may change without a person's approval.
    pub(crate) fn changes_max(&self) -> usize {
        self.changes_max
    }

    /// Begins a session: an older one of the same agent is told to end. What was forbidden since the agent was accepted is
    /// told at once.
    pub(crate) fn begin_session(&self, id: AgentId, suite: Suite, address: SocketAddr) -> Begun {
        let mut state = self.lock();
        state.session_counter += 1;
        let number = state.session_counter;
        let may = state.agents.get(&id).is_some_and(|agent| {
            agent.enabled && (suite == Suite::Encrypted || agent.integrity_only)
        });
        let (tell, told) = watch::channel(Told {
            ended: !may,
            configurations: 0,
        });
        let older = state.sessions.insert(id, (number, tell));
        let ending = state.ending.entry(id).or_default();
        if let Some((_, older)) = older {
            older.send_modify(|told| told.ended = true);
            ending.push(older);
        }
        ending.retain(|session| !session.is_closed());
        let older = Older(ending.clone());
        if ending.is_empty() {
            state.ending.remove(&id);
        }
        state.rivals.remove(&id);
        let live = state.live.entry(id).or_default();
        live.begin_session(address, clock::unix_us());
        Begun {
            number,
            told,
            older,
        }
    }

    /// Notes that a session ended.
    pub(crate) fn end_session(&self, id: AgentId, number: u64, trouble: Option<Said>) {
        let mut state = self.lock();
        if state
            .sessions
            .get(&id)
            .is_some_and(|(current, _)| *current == number)
        {
            state.sessions.remove(&id);
            state.rivals.remove(&id);
            let live = state.live.entry(id).or_default();
            live.connected = false;
            live.trouble = trouble;
            live.leave(Limit::NewStreams);
        }
    }

    /// Allows or forbids an agent to connect; a session it has is ended.
    pub(crate) fn set_enabled(&self, name: &str, enabled: bool) -> Result<()> {
        let id = self.change(name, |agent| {
            agent.enabled = enabled;
            Ok(())
        })?;
        if let Some((_, session)) = self.lock().sessions.get(&id).filter(|_| !enabled) {
            session.send_modify(|told| told.ended = true);
        }
        Ok(())
    }

    /// Allows or forbids an agent to send in clear; a session it has is ended.
    pub(crate) fn set_integrity_only(&self, name: &str, allowed: bool) -> Result<()> {
        let id = self.change(name, |agent| {
            agent.integrity_only = allowed;
            Ok(())
        })?;
        if let Some((_, session)) = self.lock().sessions.get(&id).filter(|_| !allowed) {
            session.send_modify(|told| told.ended = true);
        }
        Ok(())
    }

    /// Gives an agent another configuration; its session sends it at once.
    pub(crate) fn configure(&self, name: &str, text: &str) -> Result<u64> {
        bounds::check_len("the configuration", text, CONFIGURATION_LEN_MAX)?;
        let mut version = 0;
        let id = self.change(name, |agent| {
            let before = agent.configuration.as_ref();
            version = before.map_or(0, |before| before.version) + 1;
            agent.configuration = Some(AgentConfiguration {
                version,
                text: text.to_owned(),
                answered: 0,
                rejected: None,
            });
            Ok(())
        })?;
        if let Some((_, session)) = self.lock().sessions.get(&id) {
            session.send_modify(|told| told.configurations += 1);
        }
        Ok(version)
    }

    /// The agent has begun its new epoch: it is no longer to be told to.
    pub(crate) fn epoch_begun(&self, id: AgentId) -> Result<()> {
        if self
            .lock()
            .agents
            .get(&id)
            .is_none_or(|agent| !agent.restored)
        {
            return Ok(());
        }
        self.change_id(id, |agent| {
            agent.restored = false;
            Ok(())
        })
    }

    /// The agent that is shown as `name`.
    pub(crate) fn find(&self, name: &str) -> Option<AgentId> {
        let shown = self.shown().into_iter();
        let mut named = shown.filter(|(_, shown)| shown == name);
        named.next().map(|(id, _)| id)
    }

    /// What every agent is called, those aside that were removed: no two alike, and none like the server.
    pub(crate) fn shown(&self) -> BTreeMap<AgentId, String> {
        let state = self.lock();
        let mut shown = names::shown(state.agents.values());
        shown.retain(|id, _| !state.agents.get(id).is_some_and(|agent| agent.set_aside));
        shown
    }

    /// Removes an agent for every reader: no session, and nothing of it is shown. `with` is written in the same step.
    pub(crate) fn set_aside(
        &self,
        id: AgentId,
        with: impl FnOnce(&Changes<'_>) -> Result<()>,
    ) -> Result<()> {
        self.change_with(id, with, |agent| {
            agent.set_aside = true;
            agent.enabled = false;
        })?;
        if let Some((_, session)) = self.lock().sessions.get(&id) {
            session.send_modify(|told| told.ended = true);
        }
        Ok(())
    }

    /// Whether an agent was removed for every reader.
    pub(crate) fn is_set_aside(&self, id: AgentId) -> bool {
        let state = self.lock();
        state.agents.get(&id).is_some_and(|agent| agent.set_aside)
    }

    /// Takes that back.
    pub(crate) fn bring_back(
        &self,
        id: AgentId,
        enabled: bool,
        with: impl FnOnce(&Changes<'_>) -> Result<()>,
    ) -> Result<()> {
        self.change_with(id, with, |agent| {
            agent.set_aside = false;
            agent.enabled = enabled;
        })
    }

    /// What the clocks of connected agents show at a boot time, Unix µs; of those that were heard a short time ago.
    pub(crate) fn clocks(&self, boot_us: u64) -> Vec<u64> {
        let named = self.named_clocks(boot_us).into_iter();
        named.map(|(_, _, shown_us)| shown_us).collect()
    }

    /// The same, with whose they are.
    pub(crate) fn named_clocks(&self, boot_us: u64) -> Vec<(AgentId, String, u64)> {
        let state = self.lock();
        let shown = state.live.iter().filter_map(|(id, live)| {
            let (shown_us, at_us) = live.clock_us.filter(|_| live.connected)?;
            let passed_us = boot_us.checked_sub(at_us)?;
            let agent = state.agents.get(id).filter(|agent| agent.enabled)?;
            let shown_us = shown_us.saturating_add(passed_us);
            (passed_us <= CLOCK_FRESH_US).then(|| (*id, agent.name.clone(), shown_us))
        });
        shown.collect()
    }

    /// The names of those that may connect.
    pub(crate) fn enabled_names(&self) -> BTreeSet<String> {
        let state = self.lock();
        let enabled = state.agents.values().filter(|agent| agent.enabled);
        enabled.map(|agent| agent.name.clone()).collect()
    }

    pub(crate) fn is_connected(&self, id: AgentId) -> bool {
        let state = self.lock();
        state.live.get(&id).is_some_and(|live| live.connected)
    }

    /// Forgets an agent: its identity lets nobody in any more, and its name is free. `with` is written in the same
    /// step.
    pub(crate) fn remove(
        &self,
        id: AgentId,
        with: impl FnOnce(&Changes<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.lock();
        let Some(agent) = state.agents.get(&id).cloned() else {
            return self.catalogue.write(with);
        };
        // One of several uses is still other agents'.
        let token = state.tokens.get(&agent.token_id);
        let token = token.filter(|token| token.uses_max == 1).cloned();
        self.catalogue.write(|changes| {
            changes.remove(&agent)?;
            token.iter().try_for_each(|token| changes.remove(token))?;
            with(changes)
        })?;
        state.agents.remove(&id);
        if let Some(token) = token {
            state.tokens.remove(&token.id);
        }
        state.live.remove(&id);
        state.rivals.remove(&id);
        state.forget_said(id);
        if let Some((_, session)) = state.sessions.remove(&id) {
            session.send_modify(|told| told.ended = true);
        }
        Ok(())
    }

    /// The record of one agent as it stands now.
    pub(crate) fn get(&self, id: AgentId) -> Option<AgentRecord> {
        self.lock().agents.get(&id).cloned()
    }

    /// Changes the record of the agent called `name`, durably.
    fn change(
        &self,
        name: &str,
        change: impl FnOnce(&mut AgentRecord) -> Result<()>,
    ) -> Result<AgentId> {
        let id = self.find(name);
        let id = id.ok_or_else(|| said!("refused.no_agent", name))?;
        self.change_id(id, change)?;
        Ok(id)
    }

    fn change_id(
        &self,
        id: AgentId,
        change: impl FnOnce(&mut AgentRecord) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.lock();
        let agent = state.agents.get_mut(&id).context("the agent is gone")?;
        let mut changed = agent.clone();
        change(&mut changed)?;
        self.catalogue.put(&changed)?;
        *agent = changed;
        Ok(())
    }

    fn change_with(
        &self,
        id: AgentId,
        with: impl FnOnce(&Changes<'_>) -> Result<()>,
        change: impl FnOnce(&mut AgentRecord),
    ) -> Result<()> {
        let mut state = self.lock();
        let agent = state.agents.get_mut(&id).context("the agent is gone")?;
        let mut changed = agent.clone();
        change(&mut changed);
        self.catalogue.write(|changes| {
            changes.put(&changed)?;
            with(changes)
        })?;
        *agent = changed;
        Ok(())
    }

    /// Every agent that was not removed, under the name it is shown by, with what is known of it now; by name.
    pub(crate) fn list(&self) -> Vec<(AgentRecord, Live)> {
        let state = self.lock();
        let mut shown = names::shown(state.agents.values());
        let with_live = |agent: &AgentRecord| {
            let name = shown.remove(&agent.id);
            let agent = AgentRecord {
                name: name.unwrap_or_else(|| agent.name.clone()),
                ..agent.clone()
            };
            let live = state.live.get(&agent.id).cloned().unwrap_or_default();
            (agent, live)
        };
        let there = state.agents.values().filter(|agent| !agent.set_aside);
        let mut agents: Vec<_> = there.map(with_live).collect();
        agents.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        agents
    }

    /// Name and signing keys of every agent, those that were removed too: what they signed can still be verified.
    pub(crate) fn signers(&self) -> BTreeMap<AgentId, Signer> {
        let state = self.lock();
        let shown = names::shown(state.agents.values()).into_iter();
        let signers = shown.filter_map(|(id, name)| {
            let agent = state.agents.get(&id)?;
            let before = agent.signing_before.iter().rev();
            let before =
                before.filter_map(|key| HEXLOWER.decode(key.as_bytes()).ok()?.try_into().ok());
            let keys = [agent.signing_public].into_iter().chain(before).collect();
            Some((id, Signer { name, keys }))
        });
        signers.collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        waits::lock(&self.state)
    }
}

/// How long what an agent's clock showed says something of it.
const CLOCK_FRESH_US: u64 = 600_000_000;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// The oldest waits for a disk, the one behind it has gone: the newest waits for the oldest all the same.
    #[test]
    fn a_session_waits_for_all_older_ones_and_not_for_the_last_alone() {
        let path = std::env::temp_dir().join(format!("scrinium-older-{}.db", std::process::id()));
        drop(std::fs::remove_file(&path));
        let key = scrinium_protocol::secret::Secret::new([1; 32]);
        let catalogue = Catalogue::create(&path, &key).unwrap();
        catalogue.put(&AgentRecord::named("web1", 1, 0)).unwrap();
        let agents = Agents::load(Arc::new(catalogue), 0).unwrap();
        let id = AgentId([1; 16]);
        let begin = || agents.begin_session(id, Suite::Encrypted, "192.0.2.1:5".parse().unwrap());
        let oldest = begin();
        assert!(oldest.older.ended().now_or_never().is_some());
        let middle = begin();
        assert!(oldest.told.borrow().ended && middle.older.ended().now_or_never().is_none());
        let newest = begin();
        assert!(middle.told.borrow().ended);
        drop(middle.told);
        agents.end_session(id, middle.number, None);
        let mut ended = Box::pin(newest.older.ended());
        assert!((&mut ended).now_or_never().is_none());
        drop(oldest.told);
        assert!(ended.now_or_never().is_some());
        drop(newest.told);
        let last = begin();
        assert!(last.older.ended().now_or_never().is_some());
        assert!(agents.lock().ending.is_empty());
        std::fs::remove_file(path).unwrap();
    }
}
