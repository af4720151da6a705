//! A network of a test's own: a namespace with a loopback that can be narrow, lossy or small, and names of its own where
//! a file is mounted over `/etc/hosts`.

use std::process::Command;

use crate::{has_tool, skipped};

/// Runs the test called `test` once more, in a network of its own made by the shell lines of `setup`.
/// Returns `true` there, and `false` here when that run has passed or cannot be made.
#[must_use]
pub fn in_own_network(test: &str, setup: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !["unshare", "ip", "tc", "nft"].into_iter().all(has_tool) {
        return false;
    }
    let script =
        format!("{{ ip link set lo up && {setup}; }} || exit {NOT_ALLOWED}; exec \"$0\" \"$@\"");
    let status = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .env(
            "PATH",
            "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin",
        )
        .status()
        .unwrap();
    match status.code() {
        Some(1 | NOT_ALLOWED) if !is_allowed() => skipped("no network namespace can be made here"),
        _ => assert!(status.success(), "{test} failed in a network of its own"),
    }
    false
}

fn is_allowed() -> bool {
    let made = Command::new("unshare")
        .args(["--net", "--mount", "true"])
        .status();
    made.is_ok_and(|status| status.success())
}

const INSIDE: &str = "SCRINIUM_TEST_IN_OWN_NETWORK";
const NOT_ALLOWED: i32 = 77;
