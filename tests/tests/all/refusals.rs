//! What a machine refuses for a while: writes, syncs, handles, permissions (`tests/refusals/refuse.c`).

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use scrinium_tests::lab::{Lab, text};
use scrinium_tests::random::Random;
use scrinium_tests::refusals::Refusals;
use scrinium_tests::writer::append;
use scrinium_tests::{has_tool, unix_s, wait_until};

/// E4, E5: whatever the disk of the agent answers, its sources wait, the server hears of it, it goes on by
/// itself, and a failed sync is not believed later.
#[test]
fn e4_e5_whatever_error_the_disk_gives_is_waited_out_said_and_costs_nothing() {
    let limits = "[spool]\nram_bytes_max = \"512 KiB\"\ndisk_bytes_max = \"64 MiB\"\n";
    let Some(mut rig) = Rig::start("e4-errors", limits) else {
        return;
    };
    let log = rig.lab.log("app.log");
    let mut written = Vec::new();
    let mut random = Random::from_env_or(4);
    let mut write = |bytes: usize| {
        let lines = noise(bytes, &mut random);
        append(&log).write_all(&lines).unwrap();
        written.extend_from_slice(&lines);
        written.len()
    };
    rig.lab.stop_server();
    for (rule, says) in [
        ("write agent-web1 5", "Input/output error"),
        ("sync agent-web1 5", "Input/output error"),
        ("write agent-web1 122", "quota exceeded"),
        ("create agent-web1 30", "Read-only file system"),
        ("rename agent-web1 28", "No space left"),
        ("unlink agent-web1 5", "Input/output error"),
    ] {
        rig.lab.start_server();
        rig.lab.wait_connected("web1");
        rig.lab.stop_server();
        // Some backlog on the disk, so that there is something to remove.
        write(1_500_000);
        wait_until("a backlog is on the disk", PATIENCE, || {
            let status = rig.lab.agent_status("web1");
            status.is_some_and(|status| status["disk_bytes"].as_u64() > Some(500_000))
        });
        rig.rule(rule);
        let len = write(1_500_000);
        if !rule.starts_with("unlink") && !rule.starts_with("rename") {
            wait_until(&format!("{rule}: it is met"), PATIENCE, || {
                rig.has_said(says)
            });
        }
        rig.lab.start_server();
        let log = rig.lab.log("app.log");
        rig.lab
            .wait_for_bytes("web1", &log, len, Duration::from_secs(60));
        wait_until(&format!("{rule}: the server knows"), PATIENCE, || {
            let agent = rig.lab.agent("web1");
            agent["trouble"]
                .as_str()
                .is_some_and(|text| text.contains(says))
                || rule.starts_with("rename")
        });
        rig.rule("");
        wait_until(&format!("{rule}: it is over"), PATIENCE, || {
            rig.lab.agent("web1")["trouble"].is_null()
        });
        // What it says is durable is.
        rig.lab.stop_server();
        let len = write(1_500_000);
        wait_until("the disk is in use", PATIENCE, || {
            let status = rig.lab.agent_status("web1");
            status.is_some_and(|status| status["disk_bytes"].as_u64() > Some(500_000))
        });
        rig.lab.kill_agent("web1");
        rig.start_agent();
        rig.lab.start_server();
        rig.lab
            .wait_for_bytes("web1", &log, len, Duration::from_secs(60));
        rig.lab.stop_server();
    }
    rig.lab.start_server();
    assert!(rig.lab.export("web1", &log) == written);
    let (code, report) = rig.lab.verify();
    assert!(code == 0 && report.contains("; 0 gap entries"), "{report}");
}

/// C7: a file server that came back knows its files by other handles, and what is deleted while it is open
/// gets a name of its own.
#[test]
fn c7_a_file_whose_handle_went_stale_is_opened_again_where_it_was() {
    let Some(mut rig) = Rig::start("c7", "") else {
        return;
    };
    let log = rig.lab.log("app.log");
    append(&log).write_all(b"before\n").unwrap();
    rig.lab.wait_for_bytes("web1", &log, 7, PATIENCE);
    rig.rule("read app.log 116");
    append(&log).write_all(b"meanwhile\n").unwrap();
    wait_until("the stale handle is met", PATIENCE, || {
        rig.has_said("Stale file handle")
    });
    // The same file under another handle.
    let copy = rig.lab.log("copy");
    std::fs::copy(&log, &copy).unwrap();
    mv(&copy, &log);
    rig.rule("");
    append(&log).write_all(b"after\n").unwrap();
    rig.lab.wait_for_bytes("web1", &log, 23, PATIENCE);
    // Deleted by its writer, who begins another; the client keeps the one we have open.
    append(&log).write_all(b"last words\n").unwrap();
    mv(&log, &rig.lab.log(".nfs000000000000002a00000001"));
    append(&log).write_all(b"another file\n").unwrap();
    rig.lab.wait_for_bytes("web1", &log, 47, PATIENCE);
    let expected = "before\nmeanwhile\nafter\nlast words\nanother file\n";
    assert_eq!(text(&rig.lab.export("web1", &log)), expected);
    assert_eq!(rig.lab.count("words"), 1);
    rig.lab.stop_agent("web1");
}

/// L4, L6: what access control denies is said with its name, on the server too, and collected once it is
/// allowed; everything else is collected meanwhile.
#[test]
fn l4_l6_a_denied_file_is_reported_and_collected_when_it_is_allowed() {
    if !has_tool("setpriv") {
        return;
    }
    let mut lab = Lab::start("l6");
    lab.add_agent("web1", lab.sl, "");
    // Root, but for what lets it read everything.
    let wrapper = [
        "setpriv",
        "--bounding-set",
        "-dac_override,-dac_read_search",
    ];
    let (denied, other) = (lab.log("denied.log"), lab.log("other.log"));
    append(&denied).write_all(b"at first\n").unwrap();
    lab.spawn_agent("web1", "", &wrapper);
    lab.wait_for_bytes("web1", &denied, 9, PATIENCE);
    lab.stop_agent("web1");
    append(&denied).write_all(b"while it is denied\n").unwrap();
    let mode = |mode| std::fs::set_permissions(&denied, Permissions::from_mode(mode)).unwrap();
    mode(0);
    lab.spawn_agent("web1", "", &wrapper);
    append(&other).write_all(b"allowed\n").unwrap();
    lab.wait_for_bytes("web1", &other, 8, PATIENCE);
    wait_until("it is reported to the server", PATIENCE, || {
        lab.count("stream:scrinium-agent \"cannot be read\" denied.log \"Permission denied\"") > 0
    });
    assert_eq!(lab.export("web1", &denied).len(), 9);
    mode(0o644);
    lab.wait_for_bytes("web1", &denied, 28, PATIENCE);
    let archived = text(&lab.export("web1", &denied));
    assert_eq!(archived, "at first\nwhile it is denied\n");
}

/// H2: an hour back, ten years on, a machine that begins in 1970: nothing stops, the order is that of the
/// file, and the server says what each line's clock said and when it came.
#[test]
fn h2_whatever_the_clock_does_lines_are_archived_in_their_order() {
    let Some(mut rig) = Rig::start("h2", "") else {
        return;
    };
    let log = rig.lab.log("app.log");
    let mut written = String::new();
    let now = i64::try_from(unix_s()).unwrap();
    let hour = 3600;
    for (n, offset) in [0, -hour, 10 * 365 * 24 * hour, -now + 60, 0]
        .into_iter()
        .enumerate()
    {
        rig.rule(&format!("clock now {offset}"));
        if n == 3 {
            // Its clock is set some time after it started.
            rig.lab.kill_agent("web1");
            rig.start_agent();
        }
        let line = format!("at offset {offset} line {n}\n");
        append(&log).write_all(line.as_bytes()).unwrap();
        written += &line;
        rig.lab
            .wait_for_bytes("web1", &log, written.len(), PATIENCE);
    }
    assert_eq!(text(&rig.lab.export("web1", &log)), written);
    let mut found = rig.lab.search("agent:web1 offset");
    found.sort_by_key(|entry| entry["sequence"].as_u64());
    let lines: Vec<&str> = found
        .iter()
        .map(|entry| entry["text"].as_str().unwrap())
        .collect();
    assert_eq!(lines, written.lines().collect::<Vec<_>>());
    assert_eq!(rig.lab.verify().0, 0);
}

/// A laboratory whose agent runs behind the double.
struct Rig {
    lab: Lab,
    refusals: Refusals,
}

impl Rig {
    /// `None` where it cannot be built.
    fn start(name: &str, more: &str) -> Option<Self> {
        let mut lab = Lab::start(name);
        lab.add_agent("web1", lab.sl, more);
        let refusals = Refusals::build(&lab.dir)?;
        let mut rig = Self { lab, refusals };
        rig.start_agent();
        rig.lab.wait_connected("web1");
        Some(rig)
    }

    fn start_agent(&mut self) {
        let variables = self.refusals.environment();
        let [preload, rules] = variables.map(|(name, value)| format!("{name}={value}"));
        self.lab.spawn_agent("web1", "", &["env", &preload, &rules]);
    }

    /// From now on this is refused.
    fn rule(&self, rule: &str) {
        self.refusals.rule(rule);
    }

    fn has_said(&self, text: &str) -> bool {
        let out = std::fs::read_to_string(self.lab.dir.join("web1.out"));
        out.unwrap().contains(text)
    }
}

fn mv(from: &std::path::Path, to: &std::path::Path) {
    let moved = Command::new("mv").arg(from).arg(to).status();
    assert!(moved.unwrap().success());
}

/// Lines that do not compress.
fn noise(bytes: usize, random: &mut Random) -> Vec<u8> {
    let mut lines = Vec::with_capacity(bytes + 100);
    while lines.len() < bytes {
        for _ in 0..90 {
            lines.push(b'!' + u8::try_from(random.below(90)).unwrap());
        }
        lines.push(b'\n');
    }
    lines
}

const PATIENCE: Duration = Duration::from_secs(30);
