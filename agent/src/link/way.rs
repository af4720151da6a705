//! The way to the server: which of its addresses is tried next, through which proxy, and when the first has its turn
//! again. No socket, no clock.
//!
//! ```text
//! configuration, state, environment ─▶ [Way] ─round─▶ Dial        note_up, note_down, go_back ◀─ uplink
//! ```
//!
//! Invariants:
//! 1. A round tries every address once. It begins where the last session was, else with the first.
//! 2. Who is not at the first address goes back to the first that answers, [`Way::returns_at`] after it was left.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use scrinium_protocol::route::{Address, Proxy, ProxyKind, Route};
use serde::Serialize;

use super::connect::Memory;
use super::environment;
use crate::config::{ProxyChoice, Reach};

/// One address of the server, and what is before it.
#[derive(Clone, Debug)]
pub(crate) struct Hop {
    pub(super) address: Address,
    pub(super) proxy: Option<Arc<Through>>,
}

/// A proxy, and who named it.
#[derive(Debug)]
pub(crate) struct Through {
    pub(super) proxy: Proxy,
    named_by: &'static str,
    /// Where its password is, if it takes one and has none.
    pub(super) password_file: Option<PathBuf>,
}

/// What is tried in one go: hops by their number.
#[derive(Debug)]
pub(crate) struct Round {
    pub(super) hops: Vec<(usize, Hop)>,
    pub(super) memory: Memory,
}

/// Where sessions are sought, and where one is.
#[derive(Debug)]
pub(crate) struct Way {
    hops: Vec<Hop>,
    /// Where the next round begins.
    begin: usize,
    up: Option<(usize, SocketAddr)>,
    /// From leaving the first address until it is looked at again; longer while it only seems to be there.
    wait: Duration,
    return_after: Duration,
    returns_at: Option<Instant>,
    /// The hop that answered, and is gone back to.
    returns_to: Option<usize>,
    memory: Memory,
}

/// The way, for people and programs.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Shown {
    /// Of the session, or of the one that is tried first.
    address: String,
    /// The first is 1.
    number: usize,
    addresses: Vec<String>,
    /// Where the socket leads: the server, or the proxy.
    peer: Option<String>,
    proxy: Option<String>,
    /// `configuration`, `token`, or the variable of the environment.
    proxy_named_by: Option<&'static str>,
    /// Until the addresses before this one are looked at.
    returns_in_s: Option<u64>,
    sentence: String,
}

impl Way {
    /// The way that this machine's configuration names, else the token's, with the proxy that one of them or the
    /// environment names. In clear to `integrity_only`, if that is set. `spread` is drawn once for each process: agents that
    /// left an address together do not come back to it together.
    ///
    /// # Errors
    /// The state has an address that is none.
    pub(crate) fn new(
        reach: &Reach,
        of_token: &str,
        integrity_only: Option<&str>,
        get: impl Fn(&str) -> Option<String>,
        spread: u8,
    ) -> Result<Self> {
        let route = Route::parse(of_token).context("the server's address in the agent's state")?;
        let addresses = match integrity_only {
            Some(text) => {
                Route::parse(text)
                    .context("server.integrity_only")?
                    .addresses
            }
            None if reach.addresses.is_empty() => route.addresses,
            None => reach.addresses.clone(),
        };
        let (named, is_direct) = match &reach.proxy {
            Some(ProxyChoice::Through(proxy)) => (Some((proxy.clone(), "configuration")), false),
            Some(ProxyChoice::Direct) => (None, true),
            None => (route.proxy.map(|proxy| (proxy, "token")), false),
        };
        let through = |(proxy, named_by): (Proxy, &'static str)| {
            let has_none = proxy.user.is_some() && proxy.password.is_none();
            Arc::new(Through {
                password_file: reach.password_file.clone().filter(|_| has_none),
                proxy,
                named_by,
            })
        };
        let named = named.map(through);
        let mut hops = Vec::with_capacity(addresses.len());
        for address in addresses {
            let proxy = match &named {
                Some(named) => Some(named.clone()),
                None if is_direct => None,
                None => environment::proxy_for(&address, &get).map(through),
            };
            hops.push(Hop { address, proxy });
        }
        let longer = reach.return_after / SPREAD_PART * u32::from(spread) / u32::from(u8::MAX);
        let return_after = reach.return_after + longer;
        Ok(Self {
            hops,
            begin: 0,
            up: None,
            wait: return_after,
            return_after,
            returns_at: None,
            returns_to: None,
            memory: Memory::default(),
        })
    }

    /// Every address once: where the last session was, then the others in their order.
    pub(crate) fn round(&mut self, now: Instant) -> Round {
        if self.returns_at.is_some_and(|at| at <= now) && self.returns_to.is_none() {
            // Without a session nothing is lost by asking the first.
            self.begin = 0;
            self.returns_at = Some(now + self.wait);
        }
        let others = (0..self.hops.len()).filter(|index| *index != self.begin);
        let order = core::iter::once(self.begin).chain(others);
        self.round_of(order)
    }

    /// The addresses that come before that of the session.
    pub(crate) fn earlier(&self) -> Round {
        let count = self.up.map_or(0, |(hop, _)| hop);
        self.round_of(0..count)
    }

    fn round_of(&self, order: impl Iterator<Item = usize>) -> Round {
        let hop = |index: usize| Some((index, self.hops.get(index)?.clone()));
        Round {
            hops: order.filter_map(hop).collect(),
            memory: self.memory.clone(),
        }
    }

    /// What was learned of names and addresses meanwhile.
    pub(crate) fn remember(&mut self, memory: Memory) {
        self.memory = memory;
    }

    /// The server was found at this hop.
    pub(crate) fn note_up(&mut self, hop: usize, peer: SocketAddr, now: Instant) {
        self.up = Some((hop, peer));
        self.begin = hop;
        let returned = self.returns_to.take();
        if hop == 0 {
            self.wait = self.return_after;
            self.returns_at = None;
            return;
        }
        if returned.is_some_and(|to| to < hop) {
            // It answered, and took no session: each further attempt costs one.
            self.wait = (self.wait * 2).min(RETURN_AFTER_MAX).max(self.return_after);
            self.returns_at = None;
        }
        self.returns_at.get_or_insert(now + self.wait);
    }

    /// The session is over; `was_of_use` says whether batches flowed.
    pub(crate) fn note_down(&mut self, was_of_use: bool) {
        if let Some((hop, _)) = self.up.take()
            && !was_of_use
        {
            self.begin = (hop + 1) % self.hops.len().max(1);
        }
    }

    /// When the addresses before that of the session are to be looked at.
    pub(crate) fn returns_at(&self) -> Option<Instant> {
        self.up.and(self.returns_at)
    }

    /// They are looked at now; if none answers, again after a while.
    pub(crate) fn note_looked(&mut self, now: Instant) {
        self.returns_at = Some(now + self.wait);
    }

    /// One of them answered: the session is given up for it, and the next round begins there. `false` if there is none
    /// to be given up.
    pub(crate) fn go_back(&mut self, hop: usize) -> bool {
        if self.up.is_none_or(|(current, _)| current <= hop) {
            return false;
        }
        self.begin = hop;
        self.returns_to = Some(hop);
        self.up = None;
        true
    }

    /// For `status`, and the log.
    pub(crate) fn shown(&self, now: Instant) -> Shown {
        let number = self.up.map_or(self.begin, |(hop, _)| hop);
        let Some(hop) = self.hops.get(number) else {
            return Shown::default();
        };
        let returns_in = self
            .returns_at()
            .map(|at| at.saturating_duration_since(now).as_secs());
        let mut sentence = match self.up {
            Some((_, peer)) if hop.proxy.is_none() && hop.is_named() => {
                format!("{} at {}", hop.address, peer.ip())
            }
            Some(_) => hop.address.to_string(),
            None => format!("{}, tried first", hop.address),
        };
        if self.hops.len() > 1 {
            sentence += &format!(" (number {} of {})", number + 1, self.hops.len());
        }
        if let Some(through) = &hop.proxy {
            sentence += &format!(
                ", through {} (named by the {})",
                through.proxy,
                through.named()
            );
        }
        if let Some(seconds) = returns_in {
            sentence += &format!(
                "; the addresses before it are looked at in {} min",
                seconds.div_ceil(60)
            );
        }
        Shown {
            address: hop.address.to_string(),
            number: number + 1,
            addresses: self.addresses(),
            peer: self.up.map(|(_, peer)| peer.to_string()),
            proxy: hop.proxy.as_ref().map(|through| through.proxy.to_string()),
            proxy_named_by: hop.proxy.as_ref().map(|through| through.named_by),
            returns_in_s: returns_in,
            sentence,
        }
    }

    fn addresses(&self) -> Vec<String> {
        self.hops
            .iter()
            .map(|hop| hop.address.to_string())
            .collect()
    }

    /// Each address by itself, to be checked.
    pub(crate) fn each(&self) -> impl Iterator<Item = Hop> {
        self.hops.iter().cloned()
    }
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl Hop {
    /// Whether it takes a resolver to find it.
    fn is_named(&self) -> bool {
        self.address.host.parse::<IpAddr>().is_err()
    }

    pub(super) fn has_proxy_of(&self, other: &Self) -> bool {
        let pair = self.proxy.as_ref().zip(other.proxy.as_ref());
        pair.is_some_and(|(one, other)| one.proxy == other.proxy)
    }

    /// How it is called in a sentence.
    pub(crate) fn named(&self) -> String {
        match &self.proxy {
            Some(through) => format!("{} through {}", self.address, through.proxy),
            None => self.address.to_string(),
        }
    }
}

impl Through {
    fn named(&self) -> String {
        match self.named_by {
            "configuration" | "token" => self.named_by.to_owned(),
            variable => format!("environment, {variable}"),
        }
    }

    pub(super) fn address(&self) -> &Address {
        &self.proxy.address
    }

    /// What it is, and where.
    pub(super) fn described(&self) -> String {
        format!("{} proxy {}", self.kind(), self.proxy)
    }

    fn kind(&self) -> &'static str {
        match self.proxy.kind {
            ProxyKind::Http => "HTTP",
            ProxyKind::Socks5 => "SOCKS 5",
        }
    }
}

/// A quarter of the time is what [`Way::new`] spreads agents over.
const SPREAD_PART: u32 = 4;
/// The longest wait when a first address answers and never takes a session: each try costs a connection.
const RETURN_AFTER_MAX: Duration = Duration::from_secs(6 * 3600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn way(config: &str, of_token: &str, variables: &[(&str, &str)]) -> Way {
        let config = Config::parse(config).unwrap();
        let get = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Way::new(
            &config.reach,
            of_token,
            config.integrity_only.as_deref(),
            get,
            0,
        )
        .unwrap()
    }

    fn order(round: &Round) -> Vec<usize> {
        round.hops.iter().map(|(index, _)| *index).collect()
    }

    fn peer() -> SocketAddr {
        "127.0.0.1:720".parse().unwrap()
    }

    #[test]
    fn a_round_tries_every_address_and_begins_where_the_session_was() {
        let now = crate::clock::now();
        let mut way = way("", "a:720,b:720,c:720", &[]);
        assert_eq!(order(&way.round(now)), [0, 1, 2]);
        way.note_up(1, peer(), now);
        assert_eq!(order(&way.earlier()), [0]);
        way.note_down(true);
        assert_eq!(order(&way.round(now)), [1, 0, 2]);
        // What took us and let nothing through is not the next to be asked.
        way.note_up(1, peer(), now);
        way.note_down(false);
        assert_eq!(order(&way.round(now)), [2, 0, 1]);
        way.note_up(2, peer(), now);
        way.note_down(false);
        assert_eq!(order(&way.round(now)), [0, 1, 2]);
    }

    #[test]
    fn it_goes_back_to_the_first_after_the_stated_time_however_often_the_link_breaks() {
        let start = crate::clock::now();
        let at = |s| start + Duration::from_secs(s);
        let mut way = way("[server]\nreturn_after_s = 100", "a:720,b:720", &[]);
        assert_eq!(way.returns_at(), None);
        way.note_up(1, peer(), start);
        assert_eq!(way.returns_at(), Some(at(100)));
        way.note_down(true);
        assert_eq!(way.returns_at(), None);
        way.note_up(1, peer(), at(50));
        assert_eq!(way.returns_at(), Some(at(100)));
        // Nobody answers there: again later.
        way.note_looked(at(100));
        assert_eq!(way.returns_at(), Some(at(200)));
        way.note_looked(at(200));
        assert!(way.go_back(0));
        assert_eq!(order(&way.round(at(200))), [0, 1]);
        way.note_up(0, peer(), at(201));
        assert_eq!(way.returns_at(), None);
        assert!(!way.go_back(0));
        // Without a link when the time comes, the first is asked first.
        way.note_down(true);
        way.note_up(1, peer(), at(300));
        way.note_down(true);
        assert_eq!(order(&way.round(at(399))), [1, 0]);
        assert_eq!(order(&way.round(at(400))), [0, 1]);
    }

    #[test]
    fn a_first_address_that_only_seems_to_be_there_is_gone_back_to_ever_more_rarely() {
        let start = crate::clock::now();
        let mut way = way("[server]\nreturn_after_s = 100", "a:720,b:720", &[]);
        way.note_up(1, peer(), start);
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..10 {
            let at = way.returns_at().unwrap();
            waits.push(at.duration_since(now).as_secs());
            now = at;
            way.note_looked(now);
            assert!(way.go_back(0));
            assert_eq!(order(&way.round(now)), [0, 1]);
            way.note_up(1, peer(), now);
        }
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[9], RETURN_AFTER_MAX.as_secs());
    }

    #[test]
    fn the_configuration_counts_before_the_token_and_that_before_the_environment() {
        let proxies = |config: &str, of_token: &str| {
            let variables = [("HTTPS_PROXY", "http://e:secret@env:1"), ("NO_PROXY", "b")];
            let way = way(config, of_token, &variables);
            let through = way.hops.iter().map(|hop| hop.proxy.clone());
            let text = |through: Arc<Through>| format!("{} {}", through.proxy, through.named_by);
            (
                way.addresses().join(","),
                through
                    .map(|through| through.map_or_else(|| "-".into(), text))
                    .collect::<Vec<_>>()
                    .join(","),
            )
        };
        for (config, of_token, addresses, through) in [
            ("", "a:1,b:1", "a:1,b:1", "http://e@env:1 HTTPS_PROXY,-"),
            (
                "",
                "a:1,b:1 via http://p:1",
                "a:1,b:1",
                "http://p:1 token,http://p:1 token",
            ),
            (
                "[server]\nproxy = 'socks5://c:1'",
                "a:1 via http://p:1",
                "a:1",
                "socks5://c:1 configuration",
            ),
            ("[server]\nproxy = 'none'", "a:1 via http://p:1", "a:1", "-"),
            (
                "[server]\naddresses = ['c:2', 'b:2']",
                "a:1",
                "c:2,b:2",
                "http://e@env:1 HTTPS_PROXY,-",
            ),
            (
                "[server]\naddress = 'c:2'\nintegrity_only = 'd:721,b:721'",
                "a:1",
                "d:721,b:721",
                "http://e@env:1 HTTPS_PROXY,-",
            ),
        ] {
            let expected = (addresses.to_owned(), through.to_owned());
            assert_eq!(proxies(config, of_token), expected, "{config} {of_token}");
        }
    }

    #[test]
    fn what_is_shown_says_address_number_and_proxy_and_no_password() {
        let now = crate::clock::now();
        let variables = [("ALL_PROXY", "socks5h://me:secret@proxy")];
        let mut way = way("", "a.example:720,b.example:720", &variables);
        way.note_up(1, peer(), now);
        let shown = way.shown(now);
        assert_eq!(
            shown.sentence,
            "b.example:720 (number 2 of 2), through socks5://me@proxy:1080 (named by the environment, ALL_PROXY); the addresses before it are looked at in 10 min"
        );
        let json = serde_json::to_string(&shown).unwrap();
        assert!(
            !json.contains("secret") && json.contains("\"number\":2"),
            "{json}"
        );
        assert!(!format!("{way:?}").contains("secret"));
    }
}
