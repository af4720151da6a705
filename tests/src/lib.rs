//! Real programs under test: a laboratory of one server, agents, files, and a link that can be cut.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::unwrap_in_result,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a step that fails is a test that fails"
)]

pub mod browser;
pub mod client;
pub mod console;
pub mod corpus;
pub mod days;
pub mod disk;
pub mod forge;
pub mod fuzz;
pub mod hostile;
pub mod lab;
pub mod network;
pub mod package;
pub mod peers;
pub mod proxies;
pub mod proxy;
pub mod random;
pub mod refusals;
pub mod strangers;
pub mod terminal;
pub mod writer;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Waits until `condition` holds, or fails the test with `what` after `limit`.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = now() + limit;
    while !condition() {
        assert!(now() < deadline, "waited {limit:?} in vain: {what}");
        pause(Duration::from_millis(20));
    }
}

/// Lets real time pass: between looks at a condition, or because the passing itself is under test.
#[expect(clippy::disallowed_methods, reason = "real processes need real time")]
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// The real clock.
#[expect(clippy::disallowed_methods, reason = "real processes need real time")]
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock, Unix seconds.
#[expect(clippy::disallowed_methods, reason = "real processes need real time")]
#[must_use]
pub fn unix_s() -> u64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// A program of this build.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let dir = own.ancestors().find(|dir| dir.join(name).is_file());
    let dir = dir.unwrap_or_else(|| panic!("{name} is not built; run: cargo build --workspace"));
    dir.join(name)
}

/// Whether a tool of the system is there; says so when it is not.
#[must_use]
pub fn has_tool(name: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).any(|dir| dir.join(name).is_file())
        || ["/usr/sbin", "/sbin"]
            .iter()
            .any(|dir| PathBuf::from(dir).join(name).is_file());
    if !found {
        skipped(&format!("{name} is not installed"));
    }
    found
}

/// Says that a test does nothing here, and why.
#[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
pub fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
}
