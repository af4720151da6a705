//! Who may begin a handshake, decided before it costs anything.
//!
//! Limits, each on its own: handshakes a second from one address (a token bucket), handshakes begun and
//! not finished, from one address and from all, and sessions. What is over a limit is closed at once;
//! established sessions do not feel it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Handshakes;

/// The limits, and what of them is used.
pub(crate) struct Admission {
    per_second: u32,
    half_open_each: u32,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
    half_open: Arc<Semaphore>,
    sessions: Arc<Semaphore>,
}

/// Handshakes an address may begin now: refilled with time, up to four seconds' worth.
#[derive(Clone, Copy)]
struct Bucket {
    /// Millionths of a handshake.
    tokens: u64,
    filled_at: Instant,
    half_open: u32,
}

/// A place among the half-open handshakes, and one among the sessions.
pub(crate) struct Admitted {
    pub(crate) half_open: HalfOpen,
    pub(crate) session: OwnedSemaphorePermit,
}

/// A half-open handshake; over when dropped.
pub(crate) struct HalfOpen {
    admission: Arc<Admission>,
    network: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        if let Some(bucket) = self.admission.lock().get_mut(&self.network) {
            bucket.half_open = bucket.half_open.saturating_sub(1);
        }
    }
}

impl Admission {
    pub(crate) fn new(limits: Handshakes) -> Self {
        let each = limits.half_open_max.div_ceil(HALF_OPEN_SHARE);
        Self {
            per_second: limits.per_second,
            half_open_each: u32::try_from(each).unwrap_or(u32::MAX),
            buckets: Mutex::new(HashMap::new()),
            half_open: Arc::new(Semaphore::new(limits.half_open_max)),
            sessions: Arc::new(Semaphore::new(limits.sessions_max)),
        }
    }

    /// Lets a connection from `address` begin a handshake, or not.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr, now: Instant) -> Option<Admitted> {
        let permit = self.half_open.clone().try_acquire_owned().ok()?;
        let session = self.sessions.clone().try_acquire_owned().ok()?;
        let network = network(address);
        self.takes_token(network, now).then(|| Admitted {
            half_open: HalfOpen {
                admission: self.clone(),
                network,
                _permit: permit,
            },
            session,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Bucket>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn takes_token(&self, network: IpAddr, now: Instant) -> bool {
        let full = u64::from(self.per_second) * BURST_S * TOKEN;
        let mut buckets = self.lock();
        if buckets.len() >= BUCKETS_MAX && !buckets.contains_key(&network) {
            // Those refilled by now are like new; should all still be in use, all begin again: the other
            // limits stand.
            buckets.retain(|_, bucket| {
                bucket.half_open > 0
                    || now.saturating_duration_since(bucket.filled_at)
                        < Duration::from_secs(BURST_S)
            });
            if buckets.len() >= BUCKETS_MAX {
                buckets.clear();
            }
        }
        let bucket = buckets.entry(network).or_insert(Bucket {
            tokens: full,
            filled_at: now,
            half_open: 0,
        });
        let passed_us = now.saturating_duration_since(bucket.filled_at).as_micros();
        let passed_us = u64::try_from(passed_us).unwrap_or(u64::MAX);
        let refilled = passed_us.saturating_mul(u64::from(self.per_second));
        bucket.tokens = bucket.tokens.saturating_add(refilled).min(full);
        bucket.filled_at = now;
        match bucket.tokens.checked_sub(TOKEN) {
            Some(left) if bucket.half_open < self.half_open_each => {
                bucket.tokens = left;
                bucket.half_open += 1;
                true
            }
            _ => false,
        }
    }
}

/// What one administrator has: an IPv4 address, or an IPv6 /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
    }
}

const TOKEN: u64 = 1_000_000;
const BURST_S: u64 = 4;
/// One address has at most one part in so many of the half-open handshakes.
const HALF_OPEN_SHARE: usize = 4;
/// Addresses remembered: 4 MiB.
const BUCKETS_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gets_its_burst_and_then_its_rate() {
        let admission = admission(512);
        let mut now = crate::clock::now();
        let granted = |now: Instant| {
            let tries = (0..1000).filter(|_| admission.admit(address(1), now).is_some());
            tries.count()
        };
        assert_eq!(granted(now), 40);
        now += Duration::from_millis(100);
        assert_eq!(granted(now), 1);
        now += Duration::from_secs(60);
        assert_eq!(granted(now), 40);
        assert!(admission.admit(address(2), now).is_some());
    }

    #[test]
    fn half_open_handshakes_are_capped_and_free_their_place() {
        let admission = admission(8);
        let now = crate::clock::now();
        let held: Vec<_> = (0..20)
            .filter_map(|n| admission.admit(address(n), now))
            .collect();
        assert_eq!(held.len(), 8);
        drop(held);
        // One address alone gets its share.
        let held: Vec<_> = (0..20)
            .filter_map(|_| admission.admit(address(1), now))
            .collect();
        assert_eq!(held.len(), 2);
        assert!(admission.admit(address(9), now).is_some());
        drop(held);
        assert!(admission.admit(address(1), now).is_some());
    }

    #[test]
    fn neighbours_in_an_ipv6_network_share_a_bucket_and_a_mapped_address_is_ipv4() {
        let a: IpAddr = "2001:db8::1".parse().unwrap();
        let b: IpAddr = "2001:db8::ffff:1".parse().unwrap();
        let c: IpAddr = "2001:db8:0:1::1".parse().unwrap();
        assert_eq!(network(a), network(b));
        assert_ne!(network(a), network(c));
        assert_eq!(network("::ffff:192.0.2.1".parse().unwrap()), address(1));
    }

    #[test]
    fn a_flood_of_addresses_is_remembered_within_bounds() {
        let admission = admission(1 << 20);
        let now = crate::clock::now();
        for n in 0..200_000_u32 {
            drop(admission.admit(IpAddr::V4(n.into()), now));
        }
        let buckets = admission.lock();
        assert!(buckets.len() <= BUCKETS_MAX);
    }

    fn admission(half_open_max: usize) -> Arc<Admission> {
        Arc::new(Admission::new(Handshakes {
            per_second: 10,
            half_open_max,
            sessions_max: 1 << 20,
        }))
    }

    fn address(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }
}
