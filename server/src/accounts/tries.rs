//! Who may try a password now: what is remembered of tries that failed, without I/O.
//!
//! ```text
//! (place, account) ── wrong ─▶ a delay that doubles ── ten, of no browser that is known ─▶ a quarter of an hour
//! (place)          ── wrong for many accounts ───────▶ a delay that doubles
//! ```
//!
//! A *place* is an IPv4 address, or an IPv6 /64, which one subscriber has whole; or a browser in which the account signed
//! in before ([`super::devices`]), whatever its address is.
//!
//! Invariants:
//! 1. What comes from one place never keeps another place out: there is no lock of an account.
//! 2. A browser in which an account has signed in waits half a minute at most, and never for what others at its address
//!    do. An address gives no such right: nobody learns from a delay who signs in from there.
//! 3. A try during a delay is refused unread and makes the delay no longer.
//! 4. What is remembered is bounded. When it is full, what is over goes first, then the oldest that is not locked;
//!    nothing forgets all of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use scrinium_protocol::kdf::sha256;

/// Where a try comes from.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Place {
    /// A command on this machine.
    Local,
    V4([u8; 4]),
    /// The first 64 bits.
    V6([u8; 8]),
    /// A browser that showed that the account it tries has signed in there.
    Device([u8; 16]),
}

impl Place {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }

    /// Whether the account it tries has signed in there: it waits before strangers do not.
    pub(crate) fn is_known(self) -> bool {
        matches!(self, Self::Device(_))
    }

    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Local => vec![0],
            Self::V4(bytes) => [&[4][..], &bytes].concat(),
            Self::V6(bytes) => [&[6][..], &bytes].concat(),
            Self::Device(bytes) => [&[1][..], &bytes].concat(),
        }
    }
}

/// What is remembered. Times are seconds of any clock that does not go back.
#[derive(Debug, Default)]
pub(crate) struct Tries {
    failures: BTreeMap<Key, Failures>,
}

/// A place alone or with a name: 16 bytes of SHA-256, so that nobody fills the memory with names.
type Key = [u8; 16];

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    last_s: u64,
    /// No try before then.
    until_s: u64,
}

/// What a failed try leads to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Failed {
    /// Until the next try, seconds; 0 for at once.
    pub(crate) wait_s: u64,
    /// So many failed from there, in a row: more than a person's mistakes.
    pub(crate) is_attack: bool,
}

impl Tries {
    /// How long `place` has to wait before it may try a password of `name`, seconds; 0 for not at all.
    pub(crate) fn wait_s(&self, place: Place, name: &str, now_s: u64) -> u64 {
        let left = |key: Key| {
            let failures = self.failures.get(&key);
            failures.map_or(0, |failures| failures.until_s.saturating_sub(now_s))
        };
        let pair = key(place, Some(name));
        if place.is_known() {
            return left(pair);
        }
        left(pair).max(left(key(place, None)))
    }

    /// A wrong password came.
    pub(crate) fn failed(&mut self, place: Place, name: &str, now_s: u64) -> Failed {
        let pair = key(place, Some(name));
        let is_known = place.is_known();
        let count = self.count(pair, now_s, |count| match count {
            count if count < PAIR_FREE => 0,
            count if !is_known && count >= LOCK_AFTER => LOCK_S,
            count => {
                doubled(count - PAIR_FREE).min(if is_known { KNOWN_S_MAX } else { UNKNOWN_S_MAX })
            }
        });
        let mut is_attack = count >= LOCK_AFTER;
        if !is_known {
            is_attack |= self.failed_nobody(place, now_s).is_attack;
        }
        Failed {
            wait_s: self.wait_s(place, name, now_s),
            is_attack,
        }
    }

    /// Something that no account can be called: it counts for the place alone.
    pub(crate) fn failed_nobody(&mut self, place: Place, now_s: u64) -> Failed {
        let count = self.count(key(place, None), now_s, |count| match count {
            count if count < PLACE_FREE => 0,
            count => doubled(count - PLACE_FREE).min(UNKNOWN_S_MAX),
        });
        Failed {
            wait_s: self.wait_s(place, "", now_s),
            is_attack: count >= PLACE_FREE,
        }
    }

    /// The right password came.
    pub(crate) fn succeeded(&mut self, place: Place, name: &str) {
        self.failures.remove(&key(place, Some(name)));
    }

    /// Counts one more, which waits as `wait_s` says; returns how many there are now.
    fn count(&mut self, key: Key, now_s: u64, wait_s: impl Fn(u32) -> u64) -> u32 {
        if self.failures.len() >= FAILURES_MAX && !self.failures.contains_key(&key) {
            self.make_room(now_s);
        }
        let failures = self.failures.entry(key).or_insert(Failures {
            count: 0,
            last_s: now_s,
            until_s: 0,
        });
        if failures.is_over(now_s) {
            failures.count = 0;
        }
        failures.count = failures.count.saturating_add(1);
        failures.last_s = now_s;
        failures.until_s = now_s.saturating_add(wait_s(failures.count));
        failures.count
    }

    fn make_room(&mut self, now_s: u64) {
        self.failures.retain(|_, failures| !failures.is_over(now_s));
        if self.failures.len() < FAILURES_MAX {
            return;
        }
        let least = self.failures.iter();
        // Never the newest, or those that come last forget each other at once.
        let least =
            least.min_by_key(|(_, failures)| (failures.count >= LOCK_AFTER, failures.last_s));
        if let Some((least, _)) = least {
            let least = *least;
            self.failures.remove(&least);
        }
    }
}

impl Failures {
    fn is_over(&self, now_s: u64) -> bool {
        now_s >= self.last_s.saturating_add(REMEMBERED_S) && now_s >= self.until_s
    }
}

fn key(place: Place, name: Option<&str>) -> Key {
    // Names are bounded before, and a name never is another's place: the parts are told apart by their lengths.
    let digest = match name {
        Some(name) => sha256(&[b"scrinium try v1", &[1], &place.bytes(), name.as_bytes()]),
        None => sha256(&[b"scrinium try v1", &[0], &place.bytes()]),
    };
    let mut key = [0; 16];
    key.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    key
}

/// 1, 2, 4, … seconds.
fn doubled(times: u32) -> u64 {
    1_u64.checked_shl(times).unwrap_or(u64::MAX)
}

/// Wrong passwords of one account from one place without any delay: a person mistypes.
const PAIR_FREE: u32 = 3;
/// From this one on a place that is no known browser waits [`LOCK_S`].
pub(crate) const LOCK_AFTER: u32 = 10;
/// A quarter of an hour, seconds: 40 tries an hour from each place.
const LOCK_S: u64 = 15 * 60;
/// Wrong passwords from one place, of whatever accounts, without any delay: an office has one address for all.
const PLACE_FREE: u32 = 30;
/// Longest delay of a browser in which the account signed in before, seconds.
const KNOWN_S_MAX: u64 = 30;
/// Longest delay before the lock, seconds.
const UNKNOWN_S_MAX: u64 = 60;
/// So long after the last one, in seconds, all before are forgotten.
const REMEMBERED_S: u64 = 3600;
/// Places, and pairs of place and account, whose failures are remembered: about 1 MiB.
const FAILURES_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_is_locked_out_and_nobody_else() {
        let mut tries = Tries::default();
        let (stranger, home) = (place("203.0.113.7"), place("192.0.2.1"));
        let mut now_s = 1000;
        let mut tried = 0;
        while tries.wait_s(stranger, "admin", now_s) < LOCK_S {
            now_s += tries.wait_s(stranger, "admin", now_s);
            tries.failed(stranger, "admin", now_s);
            tried += 1;
            assert_eq!(tries.wait_s(home, "admin", now_s), 0, "after {tried}");
        }
        assert_eq!(tried, LOCK_AFTER);
        assert_eq!(tries.wait_s(stranger, "admin", now_s + LOCK_S), 0);
    }

    #[test]
    fn a_browser_in_which_one_signed_in_before_waits_half_a_minute_at_most() {
        let mut tries = Tries::default();
        let home = Place::Device([7; 16]);
        for at_s in (10..2000).step_by(31) {
            assert!(tries.failed(home, "admin", at_s).wait_s <= KNOWN_S_MAX);
        }
        assert!(tries.failed(home, "admin", 2000).is_attack);
        tries.succeeded(home, "admin");
        assert_eq!(tries.failed(home, "admin", 2041).wait_s, 0);
    }

    #[test]
    fn who_shares_an_address_with_an_attacker_waits_for_nothing_in_a_known_browser() {
        let (office, browser) = (place("192.0.2.1"), Place::Device([7; 16]));
        let mut tries = Tries::default();
        tries.succeeded(office, "admin");
        let mut now_s = 10;
        for n in 0..50 {
            now_s += tries.wait_s(office, "admin", now_s);
            tries.failed(office, "admin", now_s);
            tries.failed(office, &format!("user{n}"), now_s);
        }
        // That somebody signed in from there shortens no delay.
        assert!(tries.wait_s(office, "admin", now_s) > LOCK_S / 2);
        assert_eq!(tries.wait_s(browser, "admin", now_s), 0);
    }

    #[test]
    fn a_place_that_tries_many_names_waits_too() {
        let mut tries = Tries::default();
        let stranger = place("2001:db8::1");
        for n in 0..PLACE_FREE {
            tries.failed(stranger, &format!("user{n}"), 50);
        }
        assert!(tries.wait_s(place("2001:db8::ffff:2"), "somebody", 50) > 0);
        assert_eq!(tries.wait_s(place("2001:db8:0:1::1"), "somebody", 50), 0);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_a_lock_outlives_a_flood_of_names() {
        let mut tries = Tries::default();
        let stranger = place("203.0.113.7");
        for n in 0..u64::from(LOCK_AFTER) {
            tries.failed(stranger, "admin", 10 + 100 * n);
        }
        for n in 0..2 * FAILURES_MAX {
            tries.failed(place("198.51.100.9"), &format!("{n}"), 920);
        }
        assert!(tries.failures.len() <= FAILURES_MAX);
        assert!(tries.wait_s(stranger, "admin", 920) > 800);
    }

    #[test]
    fn an_ipv4_address_in_ipv6_is_the_same_place() {
        assert_eq!(place("::ffff:192.0.2.1"), place("192.0.2.1"));
    }

    fn place(address: &str) -> Place {
        Place::of(address.parse().unwrap())
    }
}
