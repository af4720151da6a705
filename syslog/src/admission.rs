//! Who may hold a connection of a listener, decided before it costs anything.
//!
//! ```text
//! accept ─▶ [Admission]: rate, share of the network, places ─▶ Place ─▶ the connection's task
//!                 └─ where places are short, the connection that is missed least makes room
//! ```
//!
//! One rule for every listener of server and agents. A peer is an IPv4 address or an IPv6 /64; a /56 and a
//! /48 have shares too, because whoever rents one address of them may often use all.
//!
//! Invariants:
//! 1. No more connections than places, and no more of one network than its share.
//! 2. Some places are for peers that showed before who they are; strangers never take those. Some are for strangers; known
//!    peers never take those. What is between is for both, and there the one at rest longest makes room, known or not.
//! 3. A connection that proved itself and is at work is never closed for another one, unless its peer has very many and
//!    the other one few.
//! 4. What is refused or closed is counted; [`Admission::counts`] says so to whoever tells people.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// The limits of one listener, or of several that share their places.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub places: usize,
    /// Of them from one IPv4 address or IPv6 /64; a /56 may have twice, a /48 four times as many.
    pub each: usize,
    /// Of the places those that only known peers get. One in `STRANGERS_SHARE` is for strangers alone, whatever is said
    /// here.
    pub kept: usize,
    /// Connections begun by one network, in the long run, and four times as many at once; none: any number.
    pub per_second: Option<u32>,
    /// A connection that proved itself may make room when nothing came or went for so long.
    pub rests_after: Duration,
}

/// What was refused or closed since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Begun more often than one network may.
    pub too_often: u64,
    /// The share of the network was used up.
    pub over_share: u64,
    /// No place was left.
    pub full: u64,
    /// Closed to make room.
    pub displaced: u64,
    /// Not accepted, for want of file descriptors.
    pub not_accepted: u64,
}

impl Counts {
    /// What was counted since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            too_often: self.too_often - before.too_often,
            over_share: self.over_share - before.over_share,
            full: self.full - before.full,
            displaced: self.displaced - before.displaced,
            not_accepted: self.not_accepted - before.not_accepted,
        }
    }

    /// Connections that were not let in.
    #[must_use]
    pub fn refused(self) -> u64 {
        self.too_often + self.over_share + self.full
    }

    #[must_use]
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

/// In words, for the log, an alarm or a gap entry.
impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            (self.too_often, "refused because one address began too many"),
            (self.over_share, "refused because one address had its share"),
            (self.full, "refused because no place was left"),
            (self.displaced, "closed to make room"),
            (
                self.not_accepted,
                "times none was accepted for want of file descriptors",
            ),
        ];
        let said = parts.iter().filter(|(count, _)| *count > 0);
        let said: Vec<String> = said
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        f.write_str(&said.join(", "))
    }
}

/// The limits, and what of them is used.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    held: BTreeMap<u64, Held>,
    /// Connections of each network, at each width.
    counts: HashMap<Network, usize>,
    strangers: usize,
    buckets: HashMap<IpAddr, Bucket>,
    known: Known,
    total: Counts,
    /// When it was said last that none could be accepted.
    said_at: Option<Instant>,
}

#[derive(Debug)]
struct Held {
    networks: Networks,
    moved: Instant,
    /// The peer showed on this connection who it is.
    proven: bool,
    /// It was known when it came.
    is_known: bool,
    leave: Arc<Notify>,
}

/// Connections a network may begin now: refilled with time, up to four seconds' worth.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Millionths of a connection.
    tokens: u64,
    filled_at: Instant,
}

/// Peers that showed who they are. When one set is full, it takes the place of the older one: the peers seen
/// last are remembered, and memory is bounded.
#[derive(Debug, Default)]
struct Known {
    newer: BTreeSet<IpAddr>,
    older: BTreeSet<IpAddr>,
}

impl Known {
    fn has(&self, peer: IpAddr) -> bool {
        self.newer.contains(&peer) || self.older.contains(&peer)
    }

    fn add(&mut self, peer: IpAddr) {
        if self.newer.len() >= KNOWN_MAX {
            self.older = core::mem::take(&mut self.newer);
        }
        self.newer.insert(peer);
    }
}

/// A prefix of an address, and its width.
type Network = (IpAddr, u8);

/// The networks of one address, the narrowest first.
#[derive(Clone, Copy, Debug)]
enum Networks {
    V4(IpAddr),
    V6([Network; 3]),
}

impl Networks {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(IpAddr::V4(v4)),
            IpAddr::V6(v6) => {
                let cut = |width: u8| {
                    let bits = 128 - u32::from(width);
                    let prefix = Ipv6Addr::from_bits(v6.to_bits() >> bits << bits);
                    (IpAddr::V6(prefix), width)
                };
                Self::V6([64, 56, 48].map(cut))
            }
        }
    }

    /// What one administrator has: an IPv4 address, or an IPv6 /64.
    fn peer(&self) -> IpAddr {
        match self {
            Self::V4(address) => *address,
            Self::V6([(prefix, _), ..]) => *prefix,
        }
    }

    fn widest(&self) -> Network {
        match self {
            Self::V4(address) => (*address, 32),
            Self::V6([.., widest]) => *widest,
        }
    }

    fn iter(&self) -> impl Iterator<Item = Network> {
        let (one, three) = match self {
            Self::V4(address) => (Some((*address, 32)), None),
            Self::V6(networks) => (None, Some(*networks)),
        };
        one.into_iter().chain(three.into_iter().flatten())
    }

    fn contains(&self, network: Network) -> bool {
        self.iter().any(|other| other == network)
    }
}

/// A place among the connections; free again when dropped.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Admission>,
    id: u64,
    leave: Arc<Notify>,
}

impl Place {
    /// Ends when another connection needs the place: close this one.
    pub async fn displaced(&self) {
        self.leave.notified().await;
    }

    /// Bytes came or went.
    pub fn moved(&self, now: Instant) {
        if let Some(held) = self.admission.lock().held.get_mut(&self.id) {
            held.moved = now;
        }
    }

    /// The peer showed who it is: a session, a message, somebody who signed in.
    pub fn prove(&self, now: Instant) {
        let mut state = self.admission.lock();
        let state = &mut *state;
        if let Some(held) = state.held.get_mut(&self.id) {
            held.moved = now;
            if !held.proven {
                held.proven = true;
                state.known.add(held.networks.peer());
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.lock().remove(self.id);
    }
}

impl Admission {
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            state: Mutex::default(),
        })
    }

    /// Gives a connection from `address` a place, or not.
    pub fn admit(self: &Arc<Self>, address: IpAddr, now: Instant) -> Option<Place> {
        let networks = Networks::of(address);
        let mut state = self.lock();
        if !state.takes_token(self.limits.per_second, networks.peer(), now) {
            state.total.too_often += 1;
            return None;
        }
        for network in networks.iter() {
            let share = self.limits.share(network.1);
            let used = state.counts.get(&network).copied().unwrap_or(0);
            let is_its = |held: &Held| held.networks.contains(network);
            if used >= share && !state.displace(&self.limits, now, is_its) {
                state.total.over_share += 1;
                return None;
            }
        }
        // A few places are kept for each known peer: whoever has very many is as any stranger.
        let width = if networks.peer().is_ipv4() { 32 } else { 64 };
        let of_peer = state.counts.get(&(networks.peer(), width)).copied();
        let of_peer = of_peer.unwrap_or(0);
        let is_known = state.known.has(networks.peer()) && of_peer < KEPT_EACH;
        let has_share = match is_known {
            true => state.held.len() - state.strangers < self.limits.for_known(),
            false => state.strangers < self.limits.for_strangers(),
        };
        let is_full = state.held.len() >= self.limits.places || !has_share;
        if is_full && of_peer < KEPT_EACH && state.displace_of_crowd() {
            return Some(self.hold(&mut state, networks, is_known, now));
        }
        // Whose share is used up takes a place of its own kind. Else any may leave; a known peer's leaves for a stranger
        // only when it rests.
        let may_leave = |held: &Held| match has_share {
            false => held.is_known == is_known,
            true => is_known || !held.is_known || held.rests(now, KNOWN_RESTS_AFTER),
        };
        if is_full && !state.displace(&self.limits, now, may_leave) {
            state.total.full += 1;
            return None;
        }
        Some(self.hold(&mut state, networks, is_known, now))
    }

    /// Takes a place for a connection.
    fn hold(
        self: &Arc<Self>,
        state: &mut State,
        networks: Networks,
        is_known: bool,
        now: Instant,
    ) -> Place {
        let leave = Arc::new(Notify::new());
        let id = state.next;
        state.next += 1;
        for network in networks.iter() {
            *state.counts.entry(network).or_default() += 1;
        }
        state.strangers += usize::from(!is_known);
        let held = Held {
            networks,
            moved: now,
            proven: false,
            is_known,
            leave: leave.clone(),
        };
        state.held.insert(id, held);
        Place {
            admission: self.clone(),
            id,
            leave,
        }
    }

    /// A connection was refused by a limit behind this one.
    pub fn note_full(&self) {
        self.lock().total.full += 1;
    }

    /// A connection was refused because its address has its share of something behind this.
    pub fn note_over_share(&self) {
        self.lock().total.over_share += 1;
    }

    /// Nothing could be accepted, for want of file descriptors. Whether that is to be said: once in `SAID_EVERY`,
    /// however often something was accepted meanwhile.
    pub fn note_not_accepted(&self, now: Instant) -> bool {
        let mut state = self.lock();
        state.total.not_accepted += 1;
        let is_due = |at: Instant| now.saturating_duration_since(at) >= SAID_EVERY;
        let is_said = state.said_at.is_none_or(is_due);
        if is_said {
            state.said_at = Some(now);
        }
        is_said
    }

    /// What was refused or closed since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().total
    }

    /// Connections now, and the network that has most of them.
    #[must_use]
    pub fn used(&self) -> (usize, Option<(IpAddr, usize)>) {
        let state = self.lock();
        let mut most: Option<(IpAddr, usize)> = None;
        for held in state.held.values() {
            let peer = held.networks.peer();
            let width = if peer.is_ipv4() { 32 } else { 64 };
            let count = state.counts.get(&(peer, width)).copied().unwrap_or(0);
            if most.is_none_or(|(_, other)| count > other) {
                most = Some((peer, count));
            }
        }
        (state.held.len(), most)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Limits {
    /// Places that strangers may have.
    fn for_strangers(&self) -> usize {
        let kept = self.kept.min(self.for_known());
        self.places.saturating_sub(kept)
    }

    /// Places that known peers may have.
    fn for_known(&self) -> usize {
        let strangers = self.places.div_ceil(STRANGERS_SHARE);
        self.places.saturating_sub(strangers).max(1)
    }

    fn share(&self, width: u8) -> usize {
        let wide = |times: usize| (self.each.saturating_mul(times)).min(self.places / 2);
        match width {
            56 => wide(2).max(self.each),
            48 => wide(4).max(self.each),
            _ => self.each,
        }
    }
}

impl Held {
    /// Whether nothing came or went for so long.
    fn rests(&self, now: Instant, rests_after: Duration) -> bool {
        now.saturating_duration_since(self.moved) >= rests_after
    }
}

impl State {
    /// The connection at rest longest of the peer that has most makes room for a peer that has few, even one that is at
    /// work: nobody needs so many.
    fn displace_of_crowd(&mut self) -> bool {
        let candidates = self.held.iter().filter_map(|(id, held)| {
            let peer = held.networks.peer();
            let width = if peer.is_ipv4() { 32 } else { 64 };
            let count = self.counts.get(&(peer, width)).copied().unwrap_or(0);
            (count >= CROWD_MIN).then_some((core::cmp::Reverse(count), held.moved, *id))
        });
        let Some((_, _, id)) = candidates.min() else {
            return false;
        };
        if let Some(held) = self.remove(id) {
            self.total.displaced += 1;
            held.leave.notify_one();
        }
        true
    }

    /// Closes the connection that is missed least among those that `may` leave and either proved nothing or rest. First
    /// those that proved nothing, of them one of the largest crowd, of that the one where nothing moved for longest; then of those that
    /// proved themselves the same.
    fn displace(&mut self, limits: &Limits, now: Instant, may: impl Fn(&Held) -> bool) -> bool {
        let candidates = self
            .held
            .iter()
            .filter(|(_, held)| may(held) && (!held.proven || held.rests(now, limits.rests_after)));
        let least = candidates.min_by_key(|(_, held)| {
            let crowd = self.counts.get(&held.networks.widest()).copied();
            (held.proven, core::cmp::Reverse(crowd), held.moved)
        });
        let Some(id) = least.map(|(id, _)| *id) else {
            return false;
        };
        if let Some(held) = self.remove(id) {
            self.total.displaced += 1;
            held.leave.notify_one();
        }
        true
    }

    fn remove(&mut self, id: u64) -> Option<Held> {
        let held = self.held.remove(&id)?;
        for network in held.networks.iter() {
            if let Some(count) = self.counts.get_mut(&network) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&network);
                }
            }
        }
        self.strangers -= usize::from(!held.is_known);
        Some(held)
    }

    fn takes_token(&mut self, per_second: Option<u32>, peer: IpAddr, now: Instant) -> bool {
        let Some(per_second) = per_second else {
            return true;
        };
        let full = u64::from(per_second) * BURST_S * TOKEN;
        let buckets = &mut self.buckets;
        if buckets.len() >= BUCKETS_MAX && !buckets.contains_key(&peer) {
            // Those refilled by now are like new; should all still be in use, all begin again: the other
            // limits stand.
            buckets.retain(|_, bucket| {
                let passed = now.saturating_duration_since(bucket.filled_at);
                passed < Duration::from_secs(BURST_S)
            });
            if buckets.len() >= BUCKETS_MAX {
                buckets.clear();
            }
        }
        let bucket = buckets.entry(peer).or_insert(Bucket {
            tokens: full,
            filled_at: now,
        });
        let passed_us = now.saturating_duration_since(bucket.filled_at).as_micros();
        let passed_us = u64::try_from(passed_us).unwrap_or(u64::MAX);
        let refilled = passed_us.saturating_mul(u64::from(per_second));
        bucket.tokens = bucket.tokens.saturating_add(refilled).min(full);
        bucket.filled_at = now;
        let left = bucket.tokens.checked_sub(TOKEN);
        bucket.tokens = left.unwrap_or(bucket.tokens);
        left.is_some()
    }
}

/// That nothing can be accepted is logged so often at most.
const SAID_EVERY: Duration = Duration::from_secs(10);
const TOKEN: u64 = 1_000_000;
const BURST_S: u64 = 4;
/// One place in so many is for strangers, however many known peers there are: who was never here can begin.
const STRANGERS_SHARE: usize = 16;
/// A known peer's connection on which nothing moved for so long makes room for a stranger, where known peers have more
/// than what is kept for them. Gear that speaks once in ten minutes keeps its connection.
const KNOWN_RESTS_AFTER: Duration = Duration::from_secs(600);
/// Connections of a known peer that may take kept places.
const KEPT_EACH: usize = 8;
/// From so many connections on those of a peer make room for peers that have fewer than [`KEPT_EACH`].
const CROWD_MIN: usize = 64;
/// Addresses whose rate is remembered: 4 MiB.
const BUCKETS_MAX: usize = 65_536;
/// Known peers of one set; two sets are 4 MiB.
const KNOWN_MAX: usize = 32_768;

#[cfg(test)]
mod tests;
