//! `kill -9` at every named place between two durable steps, on both sides (fault points of debug builds).

use std::time::Duration;

use scrinium_tests::lab::Lab;
use scrinium_tests::random::Random;
use scrinium_tests::wait_until;

/// J5: between every pair of durable steps of the credential's roll. After each the agent connects again,
/// with nothing approved by anybody.
#[test]
fn j5_no_crash_between_two_steps_of_the_credential_roll_locks_an_agent_out() {
    let mut lab = Lab::start("j5");
    lab.add_agent("web1", lab.sl, "");
    let log = lab.log("app.log");
    let mut written = Vec::new();
    let mut random = Random::from_env_or(5);
    for round in 0..rounds() {
        let (side, point) = ROLL[usize::try_from(random.below(ROLL.len() as u64)).unwrap()];
        let line = format!("round {round} {point}\n");
        written.extend_from_slice(line.as_bytes());
        let file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(&log);
        std::io::Write::write_all(&mut file.unwrap(), line.as_bytes()).unwrap();
        match side {
            Side::Agent => {
                lab.spawn_agent("web1", point, &[]);
                lab.wait_for_agent_end("web1", Duration::from_secs(20));
                lab.start_agent("web1");
            }
            Side::Server => {
                lab.stop_server();
                lab.spawn_server(point);
                lab.start_agent("web1");
                lab.wait_for_server_end(Duration::from_secs(20));
                lab.start_server();
            }
        }
        wait_until(
            &format!("{point}: the agent is back and the credential rolls on"),
            Duration::from_secs(20),
            || {
                let agent = lab.agent("web1");
                let generation = agent["credential_generation"].as_u64().unwrap();
                agent["state"] == "connected" && generation > round / 2
            },
        );
        assert!(lab.agent("web1")["quarantine"].is_null(), "{point}");
        lab.kill_agent("web1");
    }
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, written.len(), Duration::from_secs(30));
    assert!(lab.export("web1", &log) == written);
    assert_eq!(lab.alarms(), Vec::<serde_json::Value>::new());
}

/// The enrolment is such a roll too: a token used by an agent that died is used by it again.
#[test]
fn j5_no_crash_during_enrolment_wastes_the_token() {
    for (side, point) in [
        (Side::Agent, "agent: enrolment durable"),
        (Side::Agent, "agent: binding durable"),
        (Side::Server, "server: handshake proven"),
        (Side::Server, "server: next credential durable"),
    ] {
        let mut lab = Lab::start("j5-enrolment");
        let token = lab.token("web1", lab.sl);
        if matches!(side, Side::Server) {
            lab.stop_server();
            lab.spawn_server(point);
            wait_until("the server listens", Duration::from_secs(20), || {
                std::net::TcpStream::connect(lab.sl).is_ok()
            });
        }
        let fault = if matches!(side, Side::Agent) {
            point
        } else {
            ""
        };
        assert!(
            !lab.enrol_with_fault("web1", &token, fault).status.success(),
            "{point}"
        );
        if matches!(side, Side::Server) {
            lab.wait_for_server_end(Duration::from_secs(20));
            lab.start_server();
        }
        if matches!(side, Side::Agent) {
            // It is enrolled, and only did not say so.
            lab.adopt_agent("web1");
        } else {
            assert!(
                lab.enrol_with_fault("web1", &token, "").status.success(),
                "{point}"
            );
            lab.adopt_agent("web1");
        }
        lab.start_agent("web1");
        lab.wait_connected("web1");
    }
}

/// I7: before the fsync, after it and before the ack, after the ack; and the agent's own steps.
#[test]
fn i7_a_crash_at_any_step_of_a_batch_leaves_exactly_one_copy() {
    let mut lab = Lab::start("i7");
    lab.add_agent("web1", lab.sl, "");
    let log = lab.log("app.log");
    let mut written = Vec::new();
    let mut write = |line: &str| {
        let file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(&log);
        std::io::Write::write_all(&mut file.unwrap(), line.as_bytes()).unwrap();
        written.extend_from_slice(line.as_bytes());
        written.len()
    };
    for (n, (side, point)) in BATCH.iter().cycle().take(BATCH.len() * 3).enumerate() {
        let len = write(&format!("{n} {point}\n"));
        match side {
            Side::Agent => {
                // Spills happen at the stop, and when there is no server.
                lab.spawn_agent("web1", point, &[]);
                if point.contains("spilled") || point.contains("positions") {
                    lab.wait_connected("web1");
                    lab.stop_agent("web1");
                } else {
                    lab.wait_for_agent_end("web1", Duration::from_secs(20));
                }
                lab.start_agent("web1");
            }
            Side::Server => {
                lab.stop_server();
                // Its own audit entries pass the same steps: die at one of the first ten passings.
                lab.spawn_server(&format!("{point}#{}", 1 + n % 10));
                lab.start_agent("web1");
                for more in 0..40 {
                    if lab.server_has_ended() {
                        break;
                    }
                    let _len = write(&format!("{n} {point} {more}\n"));
                    scrinium_tests::pause(Duration::from_millis(150));
                }
                lab.wait_for_server_end(Duration::from_secs(20));
                lab.start_server();
            }
        }
        lab.wait_for_bytes("web1", &log, len, Duration::from_secs(30));
        // A clean stop: the next round passes every step again.
        lab.stop_agent("web1");
    }
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, written.len(), Duration::from_secs(30));
    assert!(lab.export("web1", &log) == written);
    assert_eq!(lab.verify().0, 0);
}

/// E1: at every place between two steps of the cache, while it fills and while it drains.
#[test]
fn e1_a_crash_at_any_step_of_the_cache_loses_and_doubles_nothing() {
    let mut lab = Lab::start("e1");
    let limits = "[spool]\nram_bytes_max = \"512 KiB\"\ndisk_bytes_max = \"64 MiB\"\n";
    lab.add_agent("web1", lab.sl, limits);
    let log = lab.log("app.log");
    let mut written = Vec::new();
    let mut random = Random::from_env_or(1);
    let mut died = std::collections::BTreeSet::new();
    for round in 0..CACHE.len() * 5 {
        let point = CACHE[round % CACHE.len()];
        let passes = match round < CACHE.len() {
            true => 1,
            false => 1 + random.below(3),
        };
        // A segment is complete at 4 MiB.
        let (bytes, enough) = match point {
            "segment: complete" => (7_000_000, 4_500_000),
            _ => (900_000, 300_000),
        };
        lab.spawn_agent("web1", &format!("{point}#{passes}"), &[]);
        // One that was killed reads nothing before the server has spoken.
        wait_until("it is connected", Duration::from_secs(30), || {
            lab.agent_has_ended("web1") || lab.agent("web1")["state"] == "connected"
        });
        lab.stop_server();
        let mut lines = Vec::new();
        while lines.len() < bytes {
            lines.extend((0..90).map(|_| b'!' + u8::try_from(random.below(90)).unwrap()));
            lines.push(b'\n');
        }
        let mut file = scrinium_tests::writer::append(&log);
        std::io::Write::write_all(&mut file, &lines).unwrap();
        written.extend_from_slice(&lines);
        wait_until("the cache is in use", Duration::from_secs(30), || {
            let status = lab.agent_status("web1");
            lab.agent_has_ended("web1")
                || status.is_some_and(|status| status["disk_bytes"].as_u64() > Some(enough))
        });
        lab.start_server();
        wait_until("it is drained", Duration::from_secs(30), || {
            lab.agent_has_ended("web1")
                || lab.agent_status("web1").is_some_and(|status| {
                    status["connected"] == true && status["backlog_entries"] == 0
                })
        });
        if lab.agent_has_ended("web1") {
            died.insert(point);
        }
        lab.kill_agent("web1");
        lab.start_agent("web1");
        lab.wait_for_bytes("web1", &log, written.len(), Duration::from_secs(30));
        // Half of the next rounds begin with what a clean stop leaves.
        match random.below(2) {
            0 => lab.kill_agent("web1"),
            _ => lab.stop_agent("web1"),
        }
    }
    assert!(lab.export("web1", &log) == written);
    assert_eq!(
        died.len(),
        CACHE.len(),
        "never died elsewhere than at {died:?}"
    );
    let (code, report) = lab.verify();
    assert!(code == 0 && report.contains("; 0 gap entries"), "{report}");
}

#[derive(Clone, Copy, Debug)]
enum Side {
    Agent,
    Server,
}

/// The places between the durable steps of the roll, in their order.
const ROLL: [(Side, &str); 6] = [
    (Side::Server, "server: handshake proven"),
    (Side::Server, "server: next credential durable"),
    (Side::Agent, "agent: first record opened"),
    (Side::Agent, "agent: credential durable"),
    (Side::Server, "server: credential stored heard"),
    (Side::Server, "server: credential superseded"),
];

/// The places between the durable steps of a batch.
const BATCH: [(Side, &str); 6] = [
    (Side::Agent, "agent: behind durable"),
    (Side::Agent, "agent: spilled"),
    (Side::Agent, "agent: positions durable"),
    (Side::Server, "server: appended"),
    (Side::Server, "server: synced"),
    (Side::Server, "server: shown"),
];

/// The places between the steps of the agent's cache.
const CACHE: [&str; 10] = [
    "segment: created",
    "segment: written",
    "segment: synced",
    "segment: complete",
    "agent: spilled",
    "slot: emptied",
    "slot: written",
    "agent: positions durable",
    "agent: segment about to go",
    "agent: segment removed",
];

/// `SCRINIUM_TEST_ROUNDS` for more or fewer.
fn rounds() -> u64 {
    let text = std::env::var("SCRINIUM_TEST_ROUNDS").ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(200)
}
