//! Agent and server over a bad link, dying anywhere, in virtual time.
//!
//! ```text
//! Source ─▶ Shipper ═ up, down: cut, delayed, doubled, spoiled ═ Receiver ─▶ Ingest ─▶ Archive
//!   └ lines    └ its spool and state, real files                    └ Agents, Catalogue, real files
//! ```
//!
//! Everything but socket, clock and thread is the product's own: a process dies by a panic at one of the
//! product's fault points, or between two steps; what was not synced by then may be torn. After every
//! step the invariants of [`world::World::check`] hold, and in the end, when the link is good and nobody
//! dies, everything written is archived, once and in order.
//!
//! [`Sabotage`] breaks one rule of the product each: the tests of the test.

mod agent;
mod link;
mod ranges;
mod scale;
mod server;
mod tiny;
mod world;
mod year;

use std::sync::atomic::{AtomicU64, Ordering};

use self::world::World;

/// One rule of the product, broken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sabotage {
    Nothing,
    /// The server's disk says "synced" and has not: an ack precedes the commit.
    AckBeforeCommit,
    /// The server forgets the credential in use when it gives out the next.
    CredentialDroppedEarly,
    /// The agent takes the next credential before the server has spoken under it.
    CredentialTakenEarly,
    /// The agent writes down where it read to before that is acked, and believes itself, not the server.
    BookmarkBeforeAck,
    /// The agent forgets to write down that RAM was sent.
    BehindNotWritten,
}

/// Seeds of the normal run; `SCRINIUM_TEST_WORLDS` for another number.
fn worlds() -> u64 {
    let text = std::env::var("SCRINIUM_TEST_WORLDS").ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(10_000)
}

/// Where the seeds begin: `SCRINIUM_TEST_SEED`.
fn first_seed() -> u64 {
    let text = std::env::var("SCRINIUM_TEST_SEED").ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[test]
fn every_world_converges_and_breaks_no_invariant() {
    let (first, count) = (first_seed(), worlds());
    let next = AtomicU64::new(first);
    let failures = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|worker| {
                let next = &next;
                scope.spawn(move || {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= first + count {
                            return None;
                        }
                        if let Err(broken) = World::run(seed, worker, Sabotage::Nothing) {
                            next.store(u64::MAX / 2, Ordering::Relaxed);
                            return Some(format!("seed {seed}: {broken}"));
                        }
                    }
                })
            })
            .collect();
        let joined = workers.into_iter().map(|worker| worker.join().unwrap());
        joined.flatten().collect::<Vec<_>>()
    });
    assert!(failures.is_empty(), "{failures:#?}");
}

/// I1: cut after every byte of a session, from the first of the handshake on.
#[test]
fn i1_a_session_cut_at_every_byte_is_resumed() {
    let whole = World::run_cut(u64::MAX, 7).unwrap();
    assert!(whole > 1000, "{whole} bytes");
    for bytes in 0..whole {
        if let Err(broken) = World::run_cut(bytes, 7) {
            panic!("cut after {bytes} bytes: {broken}");
        }
    }
}

/// Each broken rule is caught within a few worlds.
#[test]
fn broken_variants_are_caught() {
    for sabotage in [
        Sabotage::AckBeforeCommit,
        Sabotage::CredentialDroppedEarly,
        Sabotage::CredentialTakenEarly,
        Sabotage::BookmarkBeforeAck,
        Sabotage::BehindNotWritten,
    ] {
        let caught = (0..4000).find_map(|seed| World::run(seed, 9, sabotage).err());
        assert!(
            caught.is_some(),
            "{sabotage:?} was not noticed in 400 worlds"
        );
    }
}
