//! Who gets a place and who makes room, with clocks and addresses of the tests' own.

use super::*;

#[test]
fn an_address_gets_its_burst_and_then_its_rate() {
    let admission = Admission::new(Limits {
        per_second: Some(10),
        ..limits(10_000)
    });
    let mut now = start();
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
    assert_eq!(admission.counts().too_often, 960 + 999 + 960);
}

#[test]
fn the_newest_of_an_address_takes_the_place_of_its_oldest_and_no_other() {
    let admission = Admission::new(limits(16));
    let now = start();
    let other = admission.admit(address(2), now).unwrap();
    let held: Vec<Place> = (0..4)
        .map(|_| admission.admit(address(1), now).unwrap())
        .collect();
    let later = now + Duration::from_secs(1);
    for place in held.get(1..).unwrap() {
        place.moved(later);
    }
    let newest = admission.admit(address(1), later).unwrap();
    assert!(left(&held[0]), "nothing moved there for longest");
    assert!(held.iter().skip(1).all(|place| !left(place)) && !left(&other));
    assert_eq!(admission.counts().displaced, 1);
    assert_eq!(admission.used(), (5, Some((address(1), 4))));
    drop((held, newest, other));
    assert_eq!(admission.used(), (0, None));
}

#[test]
fn what_proved_itself_and_is_at_work_stays_and_the_next_is_refused() {
    let admission = Admission::new(limits(16));
    let now = start();
    let held: Vec<Place> = (0..4)
        .map(|_| admission.admit(address(1), now).unwrap())
        .collect();
    held.iter().for_each(|place| place.prove(now));
    let soon = now + Duration::from_secs(59);
    assert!(admission.admit(address(1), soon).is_none());
    assert_eq!(admission.counts().over_share, 1);
    held[1].moved(soon);
    // One that rests makes room.
    let later = now + Duration::from_secs(60);
    assert!(admission.admit(address(1), later).is_some());
    assert!(left(&held[0]) && !left(&held[1]));
}

#[test]
fn strangers_never_take_the_places_kept_for_known_peers() {
    let admission = Admission::new(limits(16));
    let now = start();
    admission.admit(address(200), now).unwrap().prove(now);
    // Each from an address of its own: no share is reached.
    let strangers: Vec<Place> = (0..40)
        .filter_map(|n| admission.admit(address(n), now))
        .collect();
    assert_eq!(strangers.len(), 40, "each newer one is let in");
    assert_eq!(admission.used().0, 12, "in the place of an older one");
    assert_eq!(admission.counts().displaced, 28);
    let known = admission.admit(address(200), now).unwrap();
    assert_eq!(admission.used().0, 13);
    let more: Vec<Place> = (50..70)
        .filter_map(|n| admission.admit(address(n), now))
        .collect();
    assert_eq!((more.len(), left(&known)), (20, false));
}

#[test]
fn known_peers_at_rest_keep_no_stranger_out() {
    let admission = Admission::new(limits(16));
    let now = start();
    // Each was here before: all places but one are theirs.
    for n in 0..16 {
        admission.admit(address(n), now).unwrap().prove(now);
    }
    let proven = |n: u8, now: Instant| {
        let place = admission.admit(address(n), now)?;
        place.prove(now);
        Some(place)
    };
    let known: Vec<Place> = (0..16).filter_map(|n| proven(n, now)).collect();
    assert_eq!(known.len(), 15, "one place is for strangers");
    assert_eq!(admission.counts().full, 1);
    // At work they keep their places, and a stranger has the one that is left.
    let soon = now + Duration::from_secs(599);
    let stranger = proven(100, soon).unwrap();
    assert!(admission.admit(address(101), soon).is_none());
    assert!(!left(&stranger) && known.iter().all(|place| !left(place)));
    // At rest the oldest ones go, down to what is kept for them.
    known[3].moved(soon);
    let later = now + Duration::from_secs(600);
    let strangers: Vec<Place> = (110..130).filter_map(|n| proven(n, later)).collect();
    assert_eq!(strangers.len(), 11, "and those who speak stay");
    let staying = known.iter().filter(|place| !left(place)).count();
    assert_eq!(staying, 4, "as many as are kept for known peers");
    assert!(!left(&known[3]), "it spoke a second ago");
}

#[test]
fn that_nothing_is_accepted_is_said_once_in_ten_seconds_and_counted_each_time() {
    let admission = Admission::new(limits(16));
    let mut now = start();
    let mut said = 0;
    for n in 0..600_u32 {
        // In between something is accepted: that is no news.
        if n % 3 == 0 {
            drop(admission.admit(address(1), now));
        }
        said += u32::from(admission.note_not_accepted(now));
        now += Duration::from_millis(50);
    }
    assert_eq!((said, admission.counts().not_accepted), (3, 600));
}

#[test]
fn the_largest_crowd_makes_room_first() {
    let admission = Admission::new(limits(16));
    let now = start();
    let single = admission.admit(address(9), now).unwrap();
    let later = now + Duration::from_secs(5);
    let crowd: Vec<Place> = (0..11)
        .map(|n| admission.admit(address(1 + n / 4), later).unwrap())
        .collect();
    let _newcomer = admission.admit(address(7), later).unwrap();
    assert!(!left(&single), "it is older, but alone");
    assert_eq!(crowd.iter().filter(|place| left(place)).count(), 1);
}

#[test]
fn wider_ipv6_networks_have_shares_too_and_a_mapped_address_is_ipv4() {
    let admission = Admission::new(limits(64));
    let now = start();
    let of = |text: &str| Networks::of(text.parse().unwrap());
    assert_eq!(of("2001:db8::1").peer(), of("2001:db8::ffff:1").peer());
    assert_ne!(of("2001:db8::1").peer(), of("2001:db8:0:1::1").peer());
    assert_eq!(of("::ffff:192.0.2.1").peer(), address(1));
    // Each of its own /64, all of one /48: 4 * 16 are more than half of the places.
    let held: Vec<Place> = (0..100_u128)
        .filter_map(|n| {
            let bits = (0x2001_0db8_u128 << 96) | (n << 64) | 1;
            admission.admit(IpAddr::V6(Ipv6Addr::from_bits(bits)), now)
        })
        .collect();
    assert_eq!(held.iter().filter(|place| !left(place)).count(), 32);
}

#[test]
fn a_flood_of_addresses_is_remembered_within_bounds() {
    let admission = Admission::new(Limits {
        per_second: Some(10),
        ..limits(1 << 10)
    });
    let now = start();
    for n in 0..200_000_u32 {
        if let Some(place) = admission.admit(IpAddr::V4(n.into()), now) {
            place.prove(now);
        }
    }
    let state = admission.lock();
    assert!(state.buckets.len() <= BUCKETS_MAX);
    assert!(state.known.newer.len() + state.known.older.len() <= 2 * KNOWN_MAX);
    assert!(state.counts.is_empty() && state.held.is_empty() && state.strangers == 0);
}

fn limits(places: usize) -> Limits {
    Limits {
        places,
        each: places / 4,
        kept: places / 4,
        per_second: None,
        rests_after: Duration::from_secs(60),
    }
}

/// Whether a connection was told to leave.
fn left(place: &Place) -> bool {
    !place.admission.lock().held.contains_key(&place.id)
}

#[expect(clippy::disallowed_methods, reason = "a moment to count from")]
fn start() -> Instant {
    Instant::now()
}

fn address(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, n])
}
