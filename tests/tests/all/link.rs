//! What a link can do to a session, in both suites: it is noticed, the session ends, the next one goes
//! on, and nothing is lost or doubled (scenarios I).

use std::path::PathBuf;
use std::time::Duration;

use scrinium_tests::lab::{Lab, resident_bytes};
use scrinium_tests::network::in_own_network;
use scrinium_tests::proxy::{Direction, Proxy, Spoil};
use scrinium_tests::{now, pause, wait_until};

/// A server, a link, an agent behind it, and a file that is written to.
struct Rig {
    lab: Lab,
    proxy: Proxy,
    log: PathBuf,
    written: Vec<u8>,
}

impl Rig {
    /// With the suite that encrypts, or the one that only authenticates.
    fn start(name: &str, integrity_only: bool) -> Self {
        let mut lab = Lab::start(name);
        let target = if integrity_only {
            lab.sl_integrity
        } else {
            lab.sl
        };
        let proxy = Proxy::start(target);
        add_agent(&mut lab, &proxy, integrity_only);
        let log = lab.log("app.log");
        lab.start_agent("web1");
        let mut rig = Self {
            lab,
            proxy,
            log,
            written: Vec::new(),
        };
        rig.write(b"the first line\n");
        rig.settle();
        rig
    }

    fn write(&mut self, bytes: &[u8]) {
        let file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(&self.log);
        std::io::Write::write_all(&mut file.unwrap(), bytes).unwrap();
        self.written.extend_from_slice(bytes);
    }

    /// Waits until everything written is archived, once and in order.
    fn settle(&self) {
        let limit = Duration::from_secs(40);
        self.lab
            .wait_for_bytes("web1", &self.log, self.written.len(), limit);
        assert_eq!(self.lab.export("web1", &self.log), self.written);
    }

    fn server_log(&self) -> String {
        std::fs::read_to_string(self.lab.dir.join("server.out")).unwrap()
    }
}

/// Enrols over the encrypting port, as every agent must, then dials through the proxy.
fn add_agent(lab: &mut Lab, proxy: &Proxy, integrity_only: bool) {
    if integrity_only {
        let line = format!("[server]\nintegrity_only = \"{}\"", proxy.address());
        lab.add_agent("web1", lab.sl, &line);
        let allowed = lab.server(&["agent", "integrity-only", "web1", "--allow"]);
        assert!(allowed.status.success());
    } else {
        // The token carries the proxy's address: the agent knows no other.
        lab.add_agent("web1", proxy.address(), "");
    }
}

#[test]
fn a_spoiled_record_is_noticed_the_session_ends_and_the_next_one_loses_nothing() {
    for integrity_only in [false, true] {
        let mut rig = Rig::start(
            if integrity_only { "spoil-2" } else { "spoil-1" },
            integrity_only,
        );
        let spoils = [
            Spoil::Drop,
            Spoil::Duplicate,
            Spoil::Swap,
            Spoil::Inject,
            Spoil::Flip(1),  // length
            Spoil::Flip(3),  // type
            Spoil::Flip(5),  // length check
            Spoil::Flip(20), // body
            Spoil::Flip(-1), // tag
            Spoil::Reset,
        ];
        for (n, spoil) in spoils.into_iter().enumerate() {
            for direction in [Direction::Up, Direction::Down] {
                // Not the first record: a session under way. What follows it makes a missing one show.
                rig.proxy.spoil(direction, 1, spoil);
                let before = rig.proxy.connections();
                rig.proxy.break_all();
                for line in 0..4 {
                    rig.write(format!("{n} {direction:?} line {line}\n").as_bytes());
                    pause(Duration::from_millis(30));
                }
                wait_until("the record is spoiled", Duration::from_secs(30), || {
                    rig.proxy.has_spoiled()
                });
                // One connection was broken here, the next was spoiled, and a third took its place.
                let what = format!("a new session after {spoil:?} {direction:?}");
                wait_until(&what, Duration::from_secs(30), || {
                    rig.proxy.connections() >= before + 2
                });
                rig.settle();
            }
        }
        assert_eq!(rig.lab.verify().0, 0);
        assert_eq!(rig.lab.count("line"), 81);
        // What was seen is an alarm, with the stream, and in the trail.
        let alarm = rig.lab.wait_for_alarm("interference", "web1");
        assert!(alarm.contains("interfered"), "{alarm}");
        let seen = rig.lab.search("stream:audit \"interference on the wire\"");
        let seen: String = seen
            .iter()
            .map(|entry| entry["text"].as_str().unwrap())
            .collect();
        for what in [
            "came again",
            "was dropped or held back",
            "was altered",
            "\"stream\":\"scrinium-agent\"",
        ] {
            assert!(seen.contains(what), "{what}: {seen}");
        }
        // Only confidentiality differs.
        assert_eq!(
            rig.proxy.saw(b"scrinium") || rig.proxy.saw(b"app.log"),
            integrity_only
        );
    }
}

#[test]
fn sending_in_clear_is_refused_unless_it_was_allowed_and_again_when_it_no_longer_is() {
    let mut lab = Lab::start("clear");
    let line = format!("[server]\nintegrity_only = \"{}\"", lab.sl_integrity);
    lab.add_agent("web1", lab.sl, &line);
    let log = lab.log("app.log");
    lab.write("logs/app.log", b"one\n");
    lab.start_agent("web1");
    wait_until("it is refused", Duration::from_secs(20), || {
        lab.agent("web1")["state"] == "refused"
    });
    assert!(
        lab.server(&["agent", "integrity-only", "web1", "--allow"])
            .status
            .success()
    );
    lab.wait_for_bytes("web1", &log, 4, Duration::from_secs(30));
    assert!(
        lab.server(&["agent", "integrity-only", "web1"])
            .status
            .success()
    );
    wait_until("it is refused again", Duration::from_secs(30), || {
        lab.agent("web1")["state"] == "refused"
    });
    // A suite on the other suite's port is no agreement either: nothing is negotiated.
    lab.stop_agent("web1");
    let wrong = format!(
        "[[source]]\nfile = \"{}/*.log\"\n[server]\nintegrity_only = \"{}\"\n",
        lab.dir.join("logs").display(),
        lab.sl
    );
    lab.write("web1.toml", wrong.as_bytes());
    lab.start_agent("web1");
    pause(Duration::from_secs(2)); // that nothing happens is under test
    assert_ne!(lab.agent("web1")["state"], "connected");
}

/// I1, with real programs at 40 places; the simulation cuts at every byte.
#[test]
fn i1_a_session_cut_anywhere_is_resumed_and_everything_conserved() {
    let mut rig = Rig::start("i1", false);
    for n in 0..40_u64 {
        rig.proxy.cut_next_after(1 + n * 97 % 2900);
        let before = rig.proxy.connections();
        rig.proxy.break_all();
        rig.write(format!("line {n}\n").as_bytes());
        wait_until("the next connection", Duration::from_secs(20), || {
            rig.proxy.connections() > before
        });
    }
    rig.settle();
}

/// I2 and I7 (after the fsync, before the ack): the batch is durable, its receipt never arrives.
#[test]
fn i2_a_batch_whose_receipt_was_lost_is_sent_again_and_archived_once() {
    for spoil in [Spoil::Reset, Spoil::BlackHole] {
        let mut rig = Rig::start("i2", false);
        // Down records: stream states and ready were the first ones; the receipt is the next.
        rig.proxy.spoil(Direction::Down, 2, spoil);
        rig.proxy.break_all();
        pause(Duration::from_millis(600)); // the new session is up
        rig.write(b"archived, never acked\n");
        wait_until("the receipt is lost", Duration::from_secs(20), || {
            rig.proxy.has_spoiled()
        });
        rig.settle();
        rig.write(b"after it\n");
        rig.settle();
        assert_eq!(rig.lab.count("\"archived, never acked\""), 1);
    }
}

/// I4: acks that come late, twice or not at all; each ends the session or changes nothing.
#[test]
fn i4_receipts_reordered_delayed_dropped_and_doubled_change_nothing() {
    let mut rig = Rig::start("i4", false);
    for spoil in [Spoil::Swap, Spoil::Duplicate, Spoil::Drop] {
        rig.proxy.spoil(Direction::Down, 2, spoil);
        rig.proxy.break_all();
        for n in 0..10 {
            rig.write(format!("{spoil:?} {n}\n").as_bytes());
            pause(Duration::from_millis(100));
        }
        rig.settle();
    }
    rig.proxy.delay(300);
    rig.write(b"late\n");
    rig.settle();
}

/// I5: a peer that is there and says nothing is dead after two keep-alives, to both sides.
#[test]
fn i5_a_half_open_peer_is_noticed_by_both_sides() {
    let mut rig = Rig::start("i5", false);
    rig.proxy.spoil(Direction::Down, 2, Spoil::BlackHole);
    rig.proxy.break_all();
    wait_until("the answers are swallowed", Duration::from_secs(20), || {
        rig.proxy.has_spoiled()
    });
    let since = now();
    let before = rig.proxy.connections();
    rig.write(b"into a black hole\n");
    wait_until(
        "the agent gives the connection up",
        Duration::from_secs(20),
        || rig.proxy.connections() > before,
    );
    // Keep-alives are 2 s apart here; then it dials again.
    assert!(now().duration_since(since) < Duration::from_secs(6));
    rig.settle();

    // The other way round: the server hears nothing.
    rig.proxy.spoil(Direction::Up, 2, Spoil::BlackHole);
    rig.proxy.break_all();
    wait_until("the server gives up", Duration::from_secs(30), || {
        rig.server_log()
            .contains("nothing was heard for two keep-alives")
    });
    rig.write(b"heard again\n");
    rig.settle();
}

/// I8: the end of a session is authenticated: a truncation is told apart from a goodbye.
#[test]
fn i8_a_truncated_session_is_told_apart_from_a_closed_one() {
    let mut rig = Rig::start("i8", false);
    assert!(!rig.server_log().contains("truncated"));
    rig.proxy.break_all();
    wait_until("the truncation is said", Duration::from_secs(20), || {
        rig.server_log().contains("without a close: truncated")
    });
    rig.write(b"after the cut\n");
    rig.settle();
    rig.lab.stop_agent("web1");
    wait_until("the goodbye is said", Duration::from_secs(20), || {
        rig.server_log().contains("the agent stops")
    });
    let said = rig.server_log();
    assert_eq!(
        said.matches("without a close: truncated").count(),
        1,
        "{said}"
    );
}

/// I10: an MTU of 576, one packet in twenty lost, one byte a segment and 800 ms there and back: slow,
/// and right.
#[test]
fn i10_a_miserable_link_still_carries_everything() {
    let setup = "ip link set lo mtu 576 && nft add table inet lossy \
        && nft add chain inet lossy in '{ type filter hook input priority 0; }' \
        && nft add rule inet lossy in meta l4proto tcp numgen random mod 100 \\< 5 drop";
    if !in_own_network("link::i10_a_miserable_link_still_carries_everything", setup) {
        return;
    }
    let mut rig = Rig::start("i10", false);
    rig.proxy.delay(400);
    rig.proxy.break_all();
    let since = now();
    for n in 0..400 {
        rig.write(format!("over a miserable link {n}\n").as_bytes());
    }
    rig.settle();
    let floor = rig.written.len() as f64 / now().duration_since(since).as_secs_f64();
    assert!(floor > 300.0, "only {floor:.0} bytes a second got through");
    assert_eq!(rig.lab.verify().0, 0);
}

/// F2: what takes connections in the server's place and says nothing costs time and no memory.
#[test]
fn f2_a_server_that_takes_connections_and_never_answers_costs_nothing() {
    let mut lab = Lab::start("f2");
    lab.add_agent(
        "web1",
        lab.sl,
        "[spool]\nram_bytes_max = \"1 MiB\"\ndisk_bytes_max = \"4 MiB\"",
    );
    let log = lab.log("app.log");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    lab.stop_server();
    let hole = std::net::TcpListener::bind(lab.sl).unwrap();
    hole.set_nonblocking(true).unwrap();
    let mut taken = Vec::new();
    let mut written = Vec::new();
    let mut settled = 0;
    let mut file = scrinium_tests::writer::append(&log);
    wait_until("it has tried often", Duration::from_secs(120), || {
        taken.extend(hole.accept().ok());
        if written.len() < 40 << 20 {
            let lines = format!("into the hole {:09}\n", written.len()).repeat(2000);
            std::io::Write::write_all(&mut file, lines.as_bytes()).unwrap();
            written.extend_from_slice(lines.as_bytes());
        }
        // The cache is full, and it dialled twice.
        if taken.len() == 2 && settled == 0 {
            settled = resident_bytes(lab.agent_pid("web1"));
        }
        taken.len() >= 4
    });
    let grown = resident_bytes(lab.agent_pid("web1")).saturating_sub(settled);
    assert!(grown < 2 << 20, "grew by {grown} bytes");
    drop((taken, hole));
    lab.start_server();
    lab.wait_for_bytes("web1", &log, written.len(), Duration::from_secs(120));
    assert!(lab.export("web1", &log) == written);
}

/// F5: a machine that ships to two servers has an agent for each, and what happens to one is nothing to the
/// other.
#[test]
fn f5_with_one_of_two_servers_gone_the_other_gets_everything() {
    let (mut one, mut other) = (Lab::start("f5-one"), Lab::start("f5-other"));
    let log = one.log("app.log");
    one.add_agent("web1", one.sl, "");
    let both = format!("[[source]]\nfile = \"{}\"\n", log.display());
    other.add_agent("web1", other.sl, &both);
    one.start_agent("web1");
    other.start_agent("web1");
    one.wait_connected("web1");
    other.wait_connected("web1");
    one.stop_server();
    let lines = "to both\n".repeat(10_000);
    std::io::Write::write_all(&mut scrinium_tests::writer::append(&log), lines.as_bytes()).unwrap();
    other.wait_for_bytes("web1", &log, lines.len(), Duration::from_secs(20));
    one.start_server();
    one.wait_for_bytes("web1", &log, lines.len(), Duration::from_secs(40));
}

/// F4: receipts come seconds late: the window shrinks, memory stays flat, nothing is lost.
#[test]
fn f4_receipts_that_come_late_do_not_let_memory_grow() {
    let mut lab = Lab::start("f4");
    let proxy = Proxy::start(lab.sl);
    lab.add_agent("web1", proxy.address(), "");
    let log = lab.log("app.log");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    proxy.lag(1500);
    proxy.break_all();
    lab.wait_connected("web1");
    let mut file = scrinium_tests::writer::append(&log);
    let mut written = Vec::new();
    let mut seen = Vec::new();
    for n in 0..30 {
        let lines = format!("slowly {n:09}\n").repeat(20_000);
        std::io::Write::write_all(&mut file, lines.as_bytes()).unwrap();
        written.extend_from_slice(lines.as_bytes());
        pause(Duration::from_millis(500));
        seen.push(resident_bytes(lab.agent_pid("web1")));
    }
    let (first, last) = (
        seen[10..20].iter().max().unwrap(),
        seen[20..].iter().max().unwrap(),
    );
    assert!(*last < first + first / 10, "{seen:?}");
    proxy.lag(0);
    lab.wait_for_bytes("web1", &log, written.len(), Duration::from_secs(120));
    assert!(lab.export("web1", &log) == written);
}

/// Lanes: what piled up during an outage drains through a narrow link, and a line of another file does
/// not wait for it.
#[test]
fn f1_a_backlog_does_not_delay_live_lines() {
    let mut lab = Lab::start("lanes");
    let proxy = Proxy::start(lab.sl);
    let limits = "[spool]\nram_bytes_max = \"512 KiB\"\ndisk_bytes_max = \"256 MiB\"";
    lab.add_agent("web1", proxy.address(), limits);
    lab.start_agent("web1");
    lab.wait_connected("web1");
    proxy.cut();
    let backlog = backlog();
    lab.write("logs/busy.log", &backlog);
    wait_until(
        "the backlog is on the disk",
        Duration::from_secs(60),
        || {
            lab.agent_status("web1")
                .is_some_and(|status| status["disk_bytes"].as_u64().unwrap() > 11 << 20)
        },
    );
    proxy.pace(2 << 20);
    proxy.mend();
    lab.wait_connected("web1");
    let mut worst = Duration::ZERO;
    for n in 0..5 {
        let marker = format!("livemarker{n}");
        let file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(lab.log("live.log"));
        std::io::Write::write_all(&mut file.unwrap(), format!("{marker}\n").as_bytes()).unwrap();
        let since = now();
        wait_until("the live line is found", Duration::from_secs(30), || {
            lab.count(&marker) == 1
        });
        worst = worst.max(now().duration_since(since));
        assert!(
            lab.agent_status("web1").unwrap()["disk_bytes"]
                .as_u64()
                .unwrap()
                > 0,
            "the backlog must still be draining for this to mean anything"
        );
    }
    assert!(worst < Duration::from_secs(2), "a live line took {worst:?}");
    proxy.pace(0);
    let busy = lab.log("busy.log");
    lab.wait_for_bytes("web1", &busy, backlog.len(), Duration::from_secs(120));
    assert!(lab.export("web1", &busy) == backlog);
}

/// 24 MiB of lines that do not compress much.
fn backlog() -> Vec<u8> {
    let mut random = scrinium_tests::random::Random::new(7);
    let mut bytes = Vec::new();
    while bytes.len() < 24 << 20 {
        for _ in 0..12 {
            bytes.extend_from_slice(format!("{:016x}", random.below(u64::MAX)).as_bytes());
        }
        bytes.push(b'\n');
    }
    bytes
}
