//! Tokens: wrong, expired and reused ones are refused with a reason.

use std::time::Duration;

use scrinium_tests::lab::{Lab, text};
use scrinium_tests::{pause, wait_until};

#[test]
fn wrong_expired_and_reused_tokens_are_refused_with_a_reason() {
    let lab = Lab::start("tokens");
    let token = lab.token("web1", lab.sl);
    assert!(lab.enrol("one", &token).status.success());

    let reused = lab.enrol("two", &token);
    assert_eq!(reused.status.code(), Some(4));
    assert!(
        text(&reused.stderr).contains("already used"),
        "{}",
        text(&reused.stderr)
    );

    let mut mistyped = lab.token("web2", lab.sl);
    mistyped.pop();
    let wrong = lab.enrol("three", &mistyped);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(
        text(&wrong.stderr).contains("token"),
        "{}",
        text(&wrong.stderr)
    );

    // A token of another server, and one of this server whose secret is another's.
    let other = Lab::start("tokens-other");
    let foreign = other.enrol("four", &other.token("web1", lab.sl));
    assert!(!foreign.status.success());
    assert!(!text(&foreign.stderr).is_empty());

    let made = lab.server(&["agent", "enroll", "web3", "--ttl", "1s"]);
    pause(Duration::from_millis(2100)); // the passing of the token's second is under test
    let expired = lab.enrol("five", text(&made.stdout).trim());
    assert!(!expired.status.success());
    assert!(
        text(&expired.stderr).contains("expired"),
        "{}",
        text(&expired.stderr)
    );
}

#[test]
fn a_second_agent_process_on_one_state_is_refused() {
    let mut lab = Lab::start("twice");
    lab.add_agent("web1", lab.sl, "");
    lab.start_agent("web1");
    wait_until("the agent runs", Duration::from_secs(20), || {
        lab.agent_status("web1").is_some()
    });
    let second = std::process::Command::new(scrinium_tests::program("scrinium-agent"))
        .arg("run")
        .arg("--state")
        .arg(lab.state("web1"))
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(
        text(&second.stderr).contains("in use by another process"),
        "{}",
        text(&second.stderr)
    );
}

/// F1: what is written while the server refuses is archived when it takes it again.
#[test]
fn f1_a_disabled_agent_is_refused_and_goes_on_when_it_is_enabled_again() {
    let mut lab = Lab::start("disabled");
    lab.add_agent("web1", lab.sl, "");
    lab.start_agent("web1");
    let connected = |lab: &Lab| {
        lab.agent_status("web1")
            .is_some_and(|status| status["connected"] == true)
    };
    wait_until("the agent is connected", Duration::from_secs(20), || {
        connected(&lab)
    });
    assert!(lab.server(&["agent", "disable", "web1"]).status.success());
    wait_until("the agent is refused", Duration::from_secs(20), || {
        lab.agent_status("web1").is_some_and(|status| {
            status["problem"]
                .as_str()
                .is_some_and(|problem| problem.contains("disabled"))
        })
    });
    let log = lab.log("app.log");
    lab.write("logs/app.log", b"while it was refused\n");
    assert!(lab.server(&["agent", "enable", "web1"]).status.success());
    wait_until(
        "the agent is connected again",
        Duration::from_secs(40),
        || connected(&lab),
    );
    lab.wait_for_bytes("web1", &log, 21, Duration::from_secs(20));
}
