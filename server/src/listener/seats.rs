//! The places for sessions of agents, and how many of them are of one address.
//!
//! ```text
//! accept ─▶ [Seats]: is one left? has its address its share? ─▶ handshake ─▶ session ─▶ given back
//! ```
//!
//! An agent has one session at a time. Whoever may enrol many, or lets connections rest in the handshake, takes so many
//! places as he likes otherwise, and all are descriptors: the others find none.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The places.
#[derive(Debug)]
pub(crate) struct Seats {
    places: usize,
    each: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of: HashMap<IpAddr, usize>,
}

/// One place; free again when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    peer: IpAddr,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NoSeat {
    /// All are taken.
    Full,
    /// The address has its share.
    OverShare,
}

impl Seats {
    pub(crate) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self {
            places,
            each: places - places / OTHERS_SHARE,
            taken: Mutex::default(),
        })
    }

    pub(crate) fn take(self: &Arc<Self>, address: IpAddr) -> Result<Seat, NoSeat> {
        let peer = network_of(address);
        let mut taken = self.lock();
        if taken.all >= self.places {
            return Err(NoSeat::Full);
        }
        let of_peer = taken.of.entry(peer).or_default();
        if *of_peer >= self.each {
            return Err(NoSeat::OverShare);
        }
        *of_peer += 1;
        taken.all += 1;
        Ok(Seat {
            seats: self.clone(),
            peer,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        taken.all -= 1;
        if let Some(of_peer) = taken.of.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                taken.of.remove(&self.peer);
            }
        }
    }
}

/// What one owner has: an IPv4 address, or an IPv6 /48.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let bits = 128 - NETWORK_BITS;
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> bits << bits))
        }
        v4 => v4,
    }
}

/// One part in so many of the places is left to others, whoever it is. It is not more, because all agents of a site may come
/// from one address.
const OTHERS_SHARE: usize = 4;
const NETWORK_BITS: u32 = 48;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_places_to_others_and_what_ends_is_free_again() {
        let seats = Seats::new(8);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let mut of_one: Vec<_> = (0..6).map(|_| seats.take(one).unwrap()).collect();
        assert_eq!(seats.take(one).unwrap_err(), NoSeat::OverShare);
        // The same address, as a listener of both families has it.
        let mapped = address("::ffff:192.0.2.1");
        assert_eq!(seats.take(mapped).unwrap_err(), NoSeat::OverShare);
        let of_other = [seats.take(other).unwrap(), seats.take(other).unwrap()];
        assert_eq!(seats.take(other).unwrap_err(), NoSeat::Full);
        of_one.pop();
        drop(seats.take(one).unwrap());
        drop((of_one, of_other));
        assert!(seats.lock().of.is_empty() && seats.lock().all == 0);
        // Whoever rents a /48 is one.
        let held: Vec<_> = (0..6)
            .map(|n| seats.take(address(&format!("2001:db8:7:{n}::1"))).unwrap())
            .collect();
        let more = address("2001:db8:7:ffff::1");
        assert_eq!(seats.take(more).unwrap_err(), NoSeat::OverShare);
        drop(seats.take(address("2001:db8:8::1")).unwrap());
        drop(held);
        // No door is closed, however few there are.
        drop(Seats::new(1).take(one).unwrap());
    }
}
