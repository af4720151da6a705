//! A model of rotation: random worlds of programs, rotation, people and clocks drive the product's own streams over a
//! simulated file system.
//!
//! Every byte that a program wrote is collected exactly once, in the order of its file, or a gap entry says what is
//! missing; what was there before and what nobody may read is never collected. Tokens (`[17]`) stand for bytes.

mod agent;
mod cases;
mod disk;
mod happenings;
mod names;
mod strange;
mod tokens;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use self::world::World;

/// Worlds of a normal run. `SCRINIUM_TEST_WORLDS` and `SCRINIUM_TEST_SEED` take others.
const WORLDS: u64 = 10_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn every_byte_is_collected_once_or_a_gap_entry_says_what_is_missing() {
    let worlds = number("SCRINIUM_TEST_WORLDS").unwrap_or(WORLDS);
    let first = number("SCRINIUM_TEST_SEED").unwrap_or(1);
    let last = match number("SCRINIUM_TEST_SEED") {
        Some(seed) => seed + 1,
        None => 1 + worlds,
    };
    let says = number("SCRINIUM_TEST_SEED").is_some();
    if says {
        let format = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG);
        let _others = format.without_time().with_test_writer().try_init();
    }
    let next = AtomicU64::new(first);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .unwrap();
    let failures = std::thread::scope(|scope| {
        let threads = [(); 2].map(|()| {
            scope.spawn(|| {
                let mut failures = Vec::new();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= last {
                        return failures;
                    }
                    let lived = std::panic::catch_unwind(|| {
                        World::new(seed, runtime.handle().clone(), says).live()
                    });
                    match lived {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => failures.push(format!("seed {seed}: {error}")),
                        Err(_) => failures.push(format!("seed {seed}: a panic")),
                    }
                }
            })
        });
        let failures = threads.map(|thread| thread.join().unwrap());
        failures.concat()
    });
    println!("{} worlds:\n{}", failures.len(), failures.join("\n"));
    assert!(failures.is_empty(), "{} worlds", failures.len());
}
