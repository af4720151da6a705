//! Which of the addresses of a name answers first (RFC 8305, "Happy Eyeballs"), without socket or clock.
//!
//! ```text
//! resolver ─▶ order ─▶ [Race] ─poll_attempt─▶ connect          handle_failed ◀─ connect
//! ```
//!
//! Invariants:
//! 1. An address that says nothing delays the next by [`ATTEMPT_DELAY`]; one that refuses, not at all.
//! 2. Every address is tried once, whatever the others do.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The addresses of a name in the order in which they are tried: the one that worked last, then families in turns,
/// those that led nowhere last.
///
/// The resolver has sorted them (RFC 6724), and what its administrator prefers comes first: where there is a way by
/// IPv6, that is IPv6.
//= https://www.rfc-editor.org/rfc/rfc8305#section-4
pub(super) fn order(
    resolved: &[SocketAddr],
    good: Option<SocketAddr>,
    bad: impl Fn(&SocketAddr) -> bool,
) -> Vec<SocketAddr> {
    let mut unique: Vec<SocketAddr> = Vec::with_capacity(resolved.len());
    for address in resolved {
        if !unique.contains(address) {
            unique.push(*address);
        }
    }
    let first_is_v6 = unique.first().is_some_and(SocketAddr::is_ipv6);
    let (of_first, of_other): (Vec<SocketAddr>, Vec<SocketAddr>) = unique
        .into_iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let (mut of_first, mut of_other) = (of_first.into_iter(), of_other.into_iter());
    let mut in_turns = Vec::with_capacity(resolved.len());
    loop {
        let pair = (of_first.next(), of_other.next());
        if pair == (None, None) {
            break;
        }
        in_turns.extend(pair.0.into_iter().chain(pair.1));
    }
    // A stable sort: within each rank the order stays.
    in_turns.sort_by_key(|address| match (good == Some(*address), bad(address)) {
        (_, true) => 2,
        (true, false) => 0,
        (false, false) => 1,
    });
    in_turns.truncate(TRIED_MAX);
    in_turns
}

/// Attempts to reach one host.
#[derive(Debug)]
pub(super) struct Race {
    waiting: VecDeque<SocketAddr>,
    next_at: Instant,
}

impl Race {
    pub(super) fn new(ordered: Vec<SocketAddr>, now: Instant) -> Self {
        Self {
            waiting: ordered.into(),
            next_at: now,
        }
    }

    /// The address to connect to now, if it is time for another.
    pub(super) fn poll_attempt(&mut self, now: Instant) -> Option<SocketAddr> {
        if now < self.next_at {
            return None;
        }
        let address = self.waiting.pop_front()?;
        self.next_at = now + ATTEMPT_DELAY;
        Some(address)
    }

    /// An attempt has failed: the next need not wait.
    pub(super) fn handle_failed(&mut self, now: Instant) {
        self.next_at = self.next_at.min(now);
    }

    /// When the next attempt begins; `None` when all have.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.next_at)
    }
}

/// RFC 8305, 5: the recommended Connection Attempt Delay.
pub(super) const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried: with [`ATTEMPT_DELAY`] between them, four seconds until all are.
pub(super) const TRIED_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        let parse = |text: &&str| format!("{text}:720").parse().unwrap();
        texts.iter().map(parse).collect()
    }

    #[test]
    fn families_take_turns_and_the_resolvers_first_is_first() {
        let resolved = addresses(&["[::1]", "[::2]", "[::3]", "1.1.1.1", "1.1.1.2", "[::1]"]);
        let expected = addresses(&["[::1]", "1.1.1.1", "[::2]", "1.1.1.2", "[::3]"]);
        assert_eq!(order(&resolved, None, |_| false), expected);
        // A machine whose administrator, or whose routes, prefer IPv4.
        let resolved = addresses(&["1.1.1.1", "[::1]", "[::2]"]);
        assert_eq!(order(&resolved, None, |_| false), resolved);
        assert!(order(&[], None, |_| false).is_empty());
    }

    #[test]
    fn what_worked_is_first_and_what_led_nowhere_is_last() {
        let resolved = addresses(&["[::1]", "1.1.1.1", "[::2]", "1.1.1.2"]);
        let [a, b, c, d] = resolved[..] else {
            unreachable!()
        };
        assert_eq!(order(&resolved, Some(d), |_| false), [d, a, b, c]);
        assert_eq!(order(&resolved, Some(d), |x| *x == a), [d, b, c, a]);
        // It worked once, and does not any more.
        assert_eq!(order(&resolved, Some(a), |x| *x == a), [b, c, d, a]);
        // It is none of the name's any more.
        let moved = addresses(&["9.9.9.9"])[0];
        assert_eq!(order(&resolved, Some(moved), |_| false), resolved);
    }

    #[test]
    fn a_name_of_very_many_addresses_is_tried_so_far() {
        let many: Vec<String> = (0..100).map(|n| format!("1.1.1.{n}")).collect();
        let many = addresses(&many.iter().map(String::as_str).collect::<Vec<_>>());
        let last = many[99];
        assert_eq!(order(&many, Some(last), |_| false).len(), TRIED_MAX);
        assert_eq!(order(&many, Some(last), |_| false)[0], last);
    }

    /// Silence costs the next address a quarter of a second, a refusal nothing.
    #[test]
    fn the_next_begins_after_the_delay_or_with_the_failure_of_the_one_before() {
        let [a, b, c] = addresses(&["[::1]", "1.1.1.1", "[::2]"])[..] else {
            unreachable!()
        };
        let start = crate::clock::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let mut race = Race::new(vec![a, b, c], start);
        assert_eq!(race.poll_timeout(), Some(start));
        assert_eq!(race.poll_attempt(start), Some(a));
        assert_eq!(race.poll_attempt(ms(249)), None);
        assert_eq!(race.poll_timeout(), Some(ms(250)));
        assert_eq!(race.poll_attempt(ms(250)), Some(b));
        race.handle_failed(ms(260));
        assert_eq!(race.poll_timeout(), Some(ms(260)));
        assert_eq!(race.poll_attempt(ms(260)), Some(c));
        assert_eq!(race.poll_timeout(), None);
        race.handle_failed(ms(300));
        assert_eq!(race.poll_attempt(ms(900)), None);
    }
}
