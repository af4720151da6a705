//! The audit trail: whole, with addresses, and with what is done to a stopped volume; names that mean one thing.

use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::Duration;

use scrinium_tests::console::Console;
use scrinium_tests::lab::{Lab, PASSWORD, text};
use scrinium_tests::{program, wait_until};
use serde_json::Value;

/// A configuration that does not fit into an entry is in the trail all the same, to its last byte.
#[test]
fn an_act_is_whole_in_the_trail_however_long_it_is() {
    let mut lab = Lab::start("trail-long");
    lab.add_agent("web1", lab.sl, "");
    let console = Console::sign_in(&lab, PASSWORD);
    let ordered = "\n".repeat(34_000) + "[[source]]\nfile = \"/root/hidden-from-audit.log\"\n";
    let form = [("text", ordered.as_str())];
    let (status, _) = console.post("/agents/web1", "/agents/web1/configuration", &form);
    assert_eq!(status, 303);

    let parts = lab.trail("agent configured");
    assert!(parts.len() > 1, "{parts:?}");
    let mut joined = String::new();
    for (part, number) in parts.iter().zip(1..) {
        assert_eq!(part["part"], number);
        assert_eq!(part["parts"], parts.len());
        assert_eq!(part["record"], parts[0]["record"]);
        assert_eq!(part["actor"], "admin");
        assert!(part["address"].as_str().unwrap().starts_with("127.0.0.1:"));
        joined.push_str(part["text"].as_str().unwrap());
    }
    let detail: Value = serde_json::from_str(&joined).unwrap();
    assert_eq!(detail["agent"], "web1");
    assert_eq!(detail["configuration"]["text"], ordered.as_str());
    assert_eq!(detail["configuration"]["bytes"], ordered.len());
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
}

/// Who signed in, who did not, and who ran a command: each from where.
#[test]
fn an_act_says_from_where() {
    let lab = Lab::start("trail-address");
    let console = Console::sign_in(&lab, "a wrong password");
    assert!(!console.get("/").contains("/sign-out"));
    let console = Console::sign_in(&lab, PASSWORD);
    let _page = console.get("/search?q=word");
    let _status = console.post("/", "/sign-out", &[]);
    lab.write("wrong", b"another wrong password");
    let wrong = lab.dir.join("wrong").display().to_string();
    let person = ["--user", "admin", "--password-file", &wrong];
    let hold = ["policy", "hold", "case-1", "--reason", "court"];
    let refused = lab.server(&[&hold[..], &person].concat());
    assert_eq!(refused.status.code(), Some(4), "{}", text(&refused.stderr));

    let refusals = lab.trail("sign-in refused: wrong name or password");
    assert_eq!(refusals.len(), 2, "{refusals:?}");
    let at = |line: &Value| line["address"].as_str().unwrap().to_owned();
    assert!(at(&refusals[0]).starts_with("127.0.0.1:"));
    assert!(at(&refusals[1]).starts_with("local, uid "));
    for action in ["signed in", "signed out"] {
        let lines = lab.trail(action);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(at(&lines[0]).starts_with("127.0.0.1:"));
    }
    let searches = lab.trail("search");
    let by = |actor: &str| {
        let line = searches.iter().find(|line| line["actor"] == actor);
        at(line.unwrap())
    };
    assert!(by("admin").starts_with("127.0.0.1:"));
    assert!(by("local command").starts_with("local, uid "));
}

/// What was written down and not done after all says so, with the reason.
#[test]
fn an_act_that_was_not_done_is_not_left_as_if_it_were() {
    let lab = Lab::start("trail-not-done");
    lab.write("short", b"short");
    let file = lab.dir.join("short").display().to_string();
    for words in [
        &["agent", "disable", "nobody"][..],
        &["policy", "release", "no-case", "--reason", "closed"],
        &["user", "password", "bob", "--password-file", &file],
    ] {
        assert_eq!(lab.server(words).status.code(), Some(1), "{words:?}");
    }
    let console = Console::sign_in(&lab, PASSWORD);
    let (status, _) = console.post("/", "/agents/nobody/enabled", &[("enabled", "true")]);
    assert_eq!(status, 422);
    let said = lab.trail("not done");
    let action = |line: &Value| line["detail"]["action"].as_str().unwrap().to_owned();
    let actions: Vec<String> = said.iter().map(action).collect();
    let expected = [
        "agent enabled",
        "policy changed",
        "password set",
        "agent enabled",
    ];
    assert_eq!(actions, expected, "{said:?}");
    assert_eq!(said[3]["actor"], "admin");
    assert_eq!(said[3]["detail"]["problem"], "no agent is named 'nobody'");
}

/// What is too long is refused by the server, whatever the form allows, and nothing ends with it.
#[test]
fn texts_keep_to_their_bounds_on_the_server() {
    let mut lab = Lab::start("trail-bounds");
    lab.add_agent("web1", lab.sl, "");
    let console = Console::sign_in(&lab, PASSWORD);
    let long = "S".repeat(66_000);
    let form = [
        ("name", "bomb"),
        ("site", long.as_str()),
        ("address", "127.0.0.1:1"),
    ];
    let (_, answer) = console.post("/enrol", "/enrol", &form);
    assert!(!answer.contains("SCRINIUM1-"));
    assert!(answer.contains("site has 66000 bytes and may have 128"));
    let form = [
        ("q", "word"),
        ("authority", long.as_str()),
        ("purpose", "p"),
    ];
    let (status, answer) = console.post("/downloads", "/downloads", &form);
    assert_eq!(status, 422);
    assert!(answer.contains("--authority has 66000 bytes and may have 256"));
    for words in [
        &["agent", "enroll", "web2", "--site", &long][..],
        &["agent", "delete", "web1", "--reason", &long],
        &["policy", "hold", "case-1", "--reason", &long],
        &["policy", "release", "case-1", "--reason", &long],
        &["export", "--query", "w", "--purpose", &long, "--out", "-"],
    ] {
        let refused = lab.server(words);
        assert_eq!(refused.status.code(), Some(1), "{:?}", &words[..3]);
        let said = text(&refused.stderr);
        assert!(said.contains("has 66000 bytes and may have"), "{said}");
    }
    // What could end the trail's task did not: it takes acts as before.
    assert_eq!(lab.trail("token made").len(), 1);
}

/// Each start says how the last run ended, and each stop by what.
#[test]
fn starts_and_stops_are_in_the_trail() {
    let mut lab = Lab::start("trail-runs");
    lab.stop_server();
    lab.start_server();
    // It listens before it has begun; a command waits for that.
    assert_eq!(lab.trail("server started").len(), 2);
    lab.kill_server();
    lab.start_server();
    let starts = lab.trail("server started");
    let ends: Vec<&str> = starts
        .iter()
        .map(|line| line["detail"]["last_end"].as_str().unwrap())
        .collect();
    assert_eq!(ends.len(), 3, "{ends:?}");
    assert!(ends[0].contains("the first start"), "{ends:?}");
    assert!(ends[1].starts_with("in order, SIGTERM at"), "{ends:?}");
    assert!(ends[2].starts_with("NOT in order"), "{ends:?}");
    let stops = lab.trail("server stopped");
    assert_eq!(stops.len(), 1, "{stops:?}");
    assert_eq!(stops[0]["actor"], "signal");
    assert_eq!(stops[0]["detail"]["by"], "SIGTERM");
    assert_eq!(lab.trail("volume made").len(), 1);
}

/// What changes a stopped volume is in the trail of the next start, once, wherever that dies.
#[test]
fn what_is_done_to_a_stopped_volume_is_in_the_trail_once() {
    let mut lab = Lab::start("trail-stopped");
    let copy = lab.data().join("catalogue.copy");
    wait_until("the catalogue has a copy", PATIENCE, || {
        copy.try_exists().unwrap()
    });
    lab.stop_server();
    let share = |at: usize| lab.shares[at].clone();
    ok(&lab, &["volume", "rekey", "--tpm", "none"]);
    ok(
        &lab,
        &["recover", "--share", &share(0), "--share", &share(2)],
    );
    // What dies before it did anything is in the trail too: it was begun. A whole catalogue is not made again.
    ok(&lab, &["fsck", "--rebuild"]);
    std::fs::remove_file(lab.data().join("catalogue.db")).unwrap();
    let died = lab
        .server_command(&["fsck", "--rebuild"])
        .env("SCRINIUM_FAULT", "server: rebuilding noted")
        .output()
        .unwrap();
    assert!(!died.status.success());
    ok(&lab, &["fsck", "--rebuild"]);
    for fault in [
        "server: act sent",
        "server: act published",
        "server: act published",
        "server: start noted",
    ] {
        lab.spawn_server(fault);
        lab.wait_for_server_end(PATIENCE);
    }
    lab.start_server();
    for (action, times) in [
        ("volume rekeyed", 1),
        ("volume recovered with shares", 1),
        ("catalogue made again", 2),
    ] {
        let lines = lab.trail(action);
        assert_eq!(lines.len(), times, "{action}: {lines:?}");
        assert_eq!(lines[0]["actor"], "local command");
        assert!(lines[0]["address"].as_str().unwrap().starts_with("local"));
    }
    // It was late, and says when it was done and when it was written.
    let line = lab.trail("volume recovered with shares").remove(0);
    assert!(
        line["time_us"].as_u64() < line["late_us"].as_u64(),
        "{line}"
    );
    // Nothing of this run is before it.
    let start = lab.trail("server started").pop().unwrap();
    assert!(line["late_us"].as_u64() <= start["time_us"].as_u64());
    let pending = lab.data().join("acts.pending");
    assert!(!pending.try_exists().unwrap());
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
}

/// A file of waiting acts that somebody spoils is kept, and that is written down.
#[test]
fn waiting_acts_that_cannot_be_read_are_said() {
    let mut lab = Lab::start("trail-spoilt");
    lab.stop_server();
    let share = |at: usize| lab.shares[at].clone();
    ok(
        &lab,
        &["recover", "--share", &share(0), "--share", &share(1)],
    );
    let file = lab.data().join("acts.pending");
    let middle = std::fs::metadata(&file).unwrap().len() / 2;
    let spoilt = std::fs::OpenOptions::new().write(true).open(&file);
    spoilt.unwrap().write_all_at(b"spoilt", middle).unwrap();
    lab.start_server();
    let lines = lab.trail("acts on the stopped volume cannot be read");
    assert_eq!(lines.len(), 1, "{lines:?}");
    let kept = lines[0]["detail"]["kept_as"].as_str().unwrap();
    assert!(lab.data().join(kept).try_exists().unwrap());
}

/// A restored volume says that it is one.
#[test]
fn a_restore_is_in_the_trail_of_what_it_restored() {
    let lab = Lab::start("trail-restore");
    let place = |name: &str| lab.dir.join(name).display().to_string();
    let (to, keys, data) = (place("backup"), place("keys"), place("restored"));
    ok(&lab, &["backup", "create", "--to", &to, "--keys", &keys]);
    let run = |words: &[&str]| {
        let mut command = Command::new(program("scrinium-server"));
        let done = command.args(words).args(["--data", &data]).output();
        let done = done.unwrap();
        assert!(done.status.success(), "{}", text(&done.stderr));
        text(&done.stdout)
    };
    let (one, two) = (&lab.shares[0], &lab.shares[1]);
    let restore = ["backup", "restore", "--from", &to, "--keys", &keys];
    run(&[&restore[..], &["--share", one, "--share", two]].concat());
    let query = "stream:audit \"volume restored from a backup\" -search";
    for _ in 0..2 {
        assert_eq!(run(&["search", query, "--count"]).trim(), "1");
    }
}

/// Names are one rule wherever agents are made, and none is the server's or another's.
#[test]
fn an_agent_is_not_called_as_the_server_or_another_agent_is() {
    let lab = Lab::start("trail-names");
    let console = Console::sign_in(&lab, PASSWORD);
    for name in [
        "server",
        "SERVER",
        "..",
        "w\u{435}b1",
        "a/b",
        "admin",
        ".web",
        "Local",
        "web 1",
    ] {
        let form = [("name", name), ("site", ""), ("address", "127.0.0.1:1")];
        let (_, answer) = console.post("/enrol", "/enrol", &form);
        assert!(!answer.contains("SCRINIUM1-"), "{name}");
        let refused = lab.server(&["agent", "enroll", name]);
        assert_eq!(refused.status.code(), Some(1), "{name}");
        let said = text(&refused.stderr);
        let (_, sentence) = said.trim().split_once("agent name ").expect("names it");
        let shown = sentence.replace('\'', "&#39;");
        assert!(answer.contains(&shown), "{name}: {sentence}");
    }
    // Two tokens of one name make one agent, and case makes no other.
    let (one, two) = (lab.token("web1", lab.sl), lab.token("WEB1", lab.sl));
    assert!(lab.enrol("one", &one).status.success());
    let second = lab.enrol("two", &two);
    assert!(!second.status.success());
    let said = text(&second.stderr);
    assert!(said.contains("an agent named 'web1' exists"), "{said}");
    let refused = lab.server(&["agent", "enroll", "Web1"]);
    assert!(text(&refused.stderr).contains("an agent named 'web1' exists"));
    lab.write("second", b"another good password");
    let file = lab.dir.join("second").display().to_string();
    for name in ["server", "Admin", "local command", "two\nlines"] {
        let refused = lab.server(&["user", "password", name, "--password-file", &file]);
        assert_eq!(refused.status.code(), Some(1), "{name}");
    }
}

fn ok(lab: &Lab, words: &[&str]) {
    let output = lab.server(words);
    assert!(
        output.status.success(),
        "{words:?}: {}",
        text(&output.stderr)
    );
}

const PATIENCE: Duration = Duration::from_secs(30);
