//! Clocks that are wrong, with the real programs: nothing is deleted on one, and everything that is due at last.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use scrinium_tests::console::Console;
use scrinium_tests::days::{Days, ship_a_line};
use scrinium_tests::lab::{Lab, PASSWORD, text};
use scrinium_tests::package;
use scrinium_tests::refusals::Refusals;
use scrinium_tests::{pause, unix_s, wait_until};
use serde_json::Value;

/// The server is started with its clock 400 days ahead, whatever the kernel says of it.
#[test]
fn a_clock_set_far_forward_deletes_nothing_and_says_what_waits() {
    for kernel in ["loose", "kept"] {
        let Some(mut days) = Days::start(&format!("clock-forward-{kernel}")) else {
            return;
        };
        hasten_intervals(&days.lab);
        ship_a_line(&mut days.lab, "web1", "MARKERONE of web1\n");
        seal(&days.lab);
        restart(&mut days, 0, 400 * 24, kernel);
        let lab = &days.lab;
        let told = lab.wait_for_alarm("clock-stepped", "server");
        assert!(told.contains("forward by 400 days"), "{told}");
        assert_eq!(lab.count("MARKERONE"), 1);
        let audited = lab.count("stream:audit \"clock stepped\"");
        assert!(audited >= 1, "the trail has both times");

        // What waits is said by `status`, `policy preview` and the overview.
        let status = status(lab);
        assert_eq!(status["running"], true);
        assert_eq!(status["health"], "attention");
        assert_eq!(status["time"]["confirmed"], false);
        assert_eq!(status["waits"][0]["what"], "deletion");
        assert!(
            status["waits"][0]["entries"].as_u64() >= Some(1),
            "{status}"
        );
        let sentence = status["waits"][0]["sentence"].as_str().unwrap();
        assert!(
            sentence.contains("entries waits: the clock was set forward by 400 days"),
            "{sentence}"
        );
        let preview = text(&ok(lab, &["policy", "preview"]).stdout);
        assert!(
            preview.contains(sentence.split(" at ").next().unwrap()),
            "{preview}"
        );
        let rows = ok(lab, &["policy", "preview", "--json"]).stdout;
        let rows: Vec<Value> = serde_json::from_slice(&rows).unwrap();
        assert!(rows.iter().any(|row| row["waits"].is_string()), "{rows:?}");
        let shown = text(&ok(lab, &["status"]).stdout);
        assert!(shown.contains("NOT confirmed"), "{shown}");

        let page = Console::sign_in(lab, PASSWORD).get("/");
        assert!(
            page.contains("entries waits: the clock was set forward by 400 days"),
            "{page}"
        );

        // What is received carries the true time, and intervals go on.
        ship_a_line(&mut days.lab, "web2", "MARKERTWO of web2\n");
        let lab = &days.lab;
        assert!(same_day(lab, "MARKERONE", "MARKERTWO"));
        new_intervals(lab);
        let (code, report) = lab.verify();
        assert_eq!(code, 0, "{report}");
        assert!(
            report.contains("its clock was not confirmed then"),
            "{report}"
        );
        let package = lab.dir.join("package.tar");
        let out = package.display().to_string();
        let _exported = ok(lab, &["export", "--query", "MARKERTWO", "--out", &out]);
        let (code, said) = package::verify(&package, &[]);
        assert_eq!(code, Some(0), "{said}");
        assert!(
            said.contains("the server's clock was not confirmed then"),
            "{said}"
        );

        // Right again: nothing is gone; and when their days are over, all of it goes.
        restart(&mut days, 0, 0, kernel);
        let lab = &days.lab;
        assert_eq!(lab.count("MARKERONE") + lab.count("MARKERTWO"), 2);
        new_intervals(lab);
        seal(lab);
        restart(&mut days, 364 * 24, 0, kernel);
        assert_eq!(days.lab.count("MARKERONE") + days.lab.count("MARKERTWO"), 2);
        restart(&mut days, 367 * 24, 0, kernel);
        gone(&days.lab, "MARKERONE");
        gone(&days.lab, "MARKERTWO");
        assert_eq!(days.lab.verify().0, 0);
    }
}

/// The server is started under a clock 400 days behind, or with no battery, and it is set right while it runs.
#[test]
fn what_comes_while_the_clock_is_behind_is_kept_for_its_days_from_then() {
    for (name, wrong_hours) in [("behind", -400 * 24), ("dead", -hours_since_1970())] {
        let Some(mut days) = Days::start(&format!("clock-{name}")) else {
            return;
        };
        hasten_intervals(&days.lab);
        ship_a_line(&mut days.lab, "web1", "MARKERONE of web1\n");
        restart(&mut days, 0, wrong_hours, "loose");
        ship_a_line(&mut days.lab, "web2", "MARKERTWO of web2\n");
        let lab = &days.lab;
        assert!(same_day(lab, "MARKERONE", "MARKERTWO"));
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let line = b"<13>Nov 27 12:00:00 fw1 MARKERTHREE\n";
        sender.send_to(line, lab.syslog_udp).unwrap();
        wait_until("the line is archived", PATIENCE, || {
            lab.count("MARKERTHREE") == 1
        });
        new_intervals(lab);
        let told = lab.wait_for_alarm("clock-stepped", "server");
        assert!(told.contains("back by"), "{told}");

        days.clocks(0, 0, "kept");
        wait_until("the time is confirmed", PATIENCE, || {
            status(lab)["time"]["confirmed"] == true
        });
        assert_eq!(status(lab)["waits"][0]["what"], "deletion");
        seal(lab);
        restart(&mut days, 364 * 24, 0, "kept");
        let lab = &days.lab;
        let all = ["MARKERONE", "MARKERTWO", "MARKERTHREE"];
        assert!(all.iter().all(|word| lab.count(word) == 1));
        assert_eq!(lab.verify().0, 0);
        restart(&mut days, 367 * 24, 0, "kept");
        all.iter().for_each(|word| gone(&days.lab, word));
        assert_eq!(days.lab.verify().0, 0);
    }
}

/// A clock 26 hours ahead, a day before something is due: it goes on its day, not before.
#[test]
fn a_clock_a_day_ahead_deletes_nothing_a_day_early() {
    let Some(mut days) = Days::start("clock-26h") else {
        return;
    };
    ship_a_line(&mut days.lab, "web1", "MARKERONE of web1\n");
    ok(
        &days.lab,
        &["policy", "class", "general", "--keep-days", "30"],
    );
    seal(&days.lab);
    restart(&mut days, 29 * 24, 0, "kept");
    assert_eq!(status(&days.lab)["time"]["confirmed"], true);
    restart(&mut days, 29 * 24, 50, "kept");
    let waits = status(&days.lab)["waits"][0]["sentence"].to_string();
    assert!(waits.contains("forward by 2 days"), "{waits}");
    restart(&mut days, 30 * 24, 26, "kept");
    assert_eq!(days.lab.count("MARKERONE"), 1);
    restart(&mut days, 30 * 24, 0, "kept");
    assert_eq!(days.lab.count("MARKERONE"), 1);
    restart(&mut days, 32 * 24, 0, "kept");
    gone(&days.lab, "MARKERONE");
}

/// Three days asleep are three days, and no step.
#[test]
fn a_suspend_of_three_days_is_no_step() {
    let Some(mut days) = Days::start("clock-suspend") else {
        return;
    };
    ship_a_line(&mut days.lab, "web1", "MARKERONE of web1\n");
    ok(
        &days.lab,
        &["policy", "class", "general", "--keep-days", "1"],
    );
    seal(&days.lab);
    let lab = &days.lab;
    days.clocks(3 * 24, 0, "kept");
    wait_until("the server's time has gone on", PATIENCE, || {
        status(lab)["time"]["confirmed"] == true
    });
    assert!(
        lab.alarms()
            .iter()
            .all(|alarm| alarm["kind"] != "clock-stepped")
    );
    assert_eq!(status(lab)["time"]["step"], Value::Null);
    assert_eq!(status(lab)["waits"], serde_json::json!([]));
    restart(&mut days, 3 * 24, 0, "kept");
    gone(&days.lab, "MARKERONE");
}

/// The clock jumps to and fro while logs are sealed, a day is compacted, a backup is made and what is due goes.
#[test]
fn a_clock_that_jumps_during_the_work_deletes_only_what_is_due() {
    let Some(mut days) = Days::start("clock-jumps") else {
        return;
    };
    hasten_intervals(&days.lab);
    ship_a_line(&mut days.lab, "web1", "MARKEROLD of web1\n");
    ok(
        &days.lab,
        &["policy", "class", "general", "--keep-days", "30"],
    );
    seal(&days.lab);
    restart(&mut days, 29 * 24, 0, "kept");
    ship_a_line(&mut days.lab, "web2", "MARKERNEW of web2\n");
    seal(&days.lab);
    days.lab.stop_server();
    days.clocks(31 * 24 + 1, 0, "kept");
    // It starts right, finds what is due, and then the clock jumps.
    days.lab.start_server();
    let jumping = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let (jumping, jumper) = (&jumping, &days);
        scope.spawn(move || {
            for hours in [400 * 24, 0, -400 * 24, 26].into_iter().cycle() {
                if !jumping.load(Ordering::Relaxed) {
                    break;
                }
                jumper.clocks(31 * 24 + 1, hours, "kept");
                pause(Duration::from_millis(30));
            }
        });
        let lab = &days.lab;
        let (to, keys) = (lab.dir.join("backup"), lab.dir.join("keys"));
        let (to, keys) = (to.display().to_string(), keys.display().to_string());
        for _ in 0..4 {
            seal(lab);
            ok(lab, &["backup", "create", "--to", &to, "--keys", &keys]);
        }
        assert_eq!(lab.count("MARKERNEW"), 1);
        jumping.store(false, Ordering::Relaxed);
    });
    // However it stood when the jumping ended: it is right when the server stops.
    days.clocks(31 * 24 + 1, 0, "kept");
    restart(&mut days, 33 * 24, 0, "kept");
    gone(&days.lab, "MARKEROLD");
    assert_eq!(days.lab.count("MARKERNEW"), 1);
    new_intervals(&days.lab);
    let (code, report) = days.lab.verify();
    assert_eq!(code, 0, "{report}");
    restart(&mut days, 70 * 24, 0, "kept");
    gone(&days.lab, "MARKERNEW");
}

/// One agent says nothing of the server's clock; three confirm it, and contradict one that was set, whatever the
/// kernel says.
#[test]
fn three_agents_confirm_the_clock_and_contradict_a_wrong_one() {
    let Some(mut days) = Days::start("clock-agents") else {
        return;
    };
    days.clocks(0, 0, "loose");
    let names = ["web1", "web2", "web3"];
    for (n, name) in names.into_iter().enumerate() {
        let address = days.lab.sl;
        days.lab.add_agent(name, address, "");
        days.lab.start_agent(name);
        days.lab.wait_connected(name);
        wait_until("its clock is known", PATIENCE, || {
            status(&days.lab)["time"]["agents"] == n + 1
        });
        let is_confirmed = status(&days.lab)["time"]["confirmed"] == true;
        assert_eq!(is_confirmed, n == 2, "{name}");
    }
    days.clocks(0, 400 * 24, "kept");
    let lab = &days.lab;
    let told = lab.wait_for_alarm("clock-stepped", "server");
    assert!(told.contains("forward by 400 days"), "{told}");
    let said = status(lab);
    assert_eq!(said["time"]["confirmed"], false);
    let why = said["time"]["why"].as_str().unwrap();
    assert!(
        why.contains("400 days ahead of the median of 3 agents' clocks"),
        "{why}"
    );
    // It is the server's clock that is wrong, not theirs.
    assert!(
        lab.alarms()
            .iter()
            .all(|alarm| alarm["kind"] != "agent-clock")
    );
    days.clocks(0, 0, "loose");
    wait_until("the time is confirmed", PATIENCE, || {
        status(lab)["time"]["confirmed"] == true
    });
}

/// An agent whose clock is more than a minute off is an alarm, once, until it is right.
#[test]
fn an_agent_whose_clock_is_wrong_is_an_alarm_until_it_is_right() {
    let mut lab = Lab::start("clock-of-agent");
    let dir = lab.dir.join("double");
    std::fs::create_dir_all(&dir).unwrap();
    let Some(clock) = Refusals::build(&dir) else {
        return;
    };
    clock.rule("clock now 50");
    lab.add_agent("web1", lab.sl, "");
    let [preload, rules] = clock
        .environment()
        .map(|(name, value)| format!("{name}={value}"));
    lab.spawn_agent("web1", "", &["env", &preload, &rules]);
    lab.wait_connected("web1");
    wait_until("its clock is known", PATIENCE, || {
        status(&lab)["time"]["agents"] == 1
    });
    let of_clocks = |lab: &Lab| {
        let alarms = lab.alarms().into_iter();
        let alarms = alarms.filter(|alarm| alarm["kind"] == "agent-clock");
        alarms.collect::<Vec<_>>()
    };
    assert!(of_clocks(&lab).is_empty());
    clock.rule("clock now -7300");
    let told = lab.wait_for_alarm("agent-clock", "web1");
    assert!(told.contains("2 hours behind"), "{told}");
    clock.rule("clock now 0");
    wait_until("the alarm has ended", PATIENCE, || {
        !of_clocks(&lab)[0]["over"].is_null()
    });
    clock.rule("clock now 7300");
    wait_until("another one", PATIENCE, || of_clocks(&lab).len() == 2);
}

/// Without a server there is no status.
#[test]
fn the_status_of_a_stopped_server_says_that_it_is_stopped() {
    let mut lab = Lab::start("status-stopped");
    let said = status(&lab);
    for name in [
        "health",
        "problems",
        "time",
        "intervals",
        "waits",
        "alarms",
        "verification",
        "backup",
        "disk",
        "version",
    ] {
        assert!(said.get(name).is_some(), "{name}: {said}");
    }
    assert!(said["disk"]["free_bytes"].as_u64() > Some(0));
    lab.stop_server();
    let stopped = lab.server(&["status"]);
    assert_eq!(stopped.status.code(), Some(1));
    assert!(text(&stopped.stdout).contains("no server runs"));
    let stopped = lab.server(&["status", "--json"]);
    assert_eq!(stopped.status.code(), Some(1));
    let said: Value = serde_json::from_slice(&stopped.stdout).unwrap();
    assert_eq!(said["running"], false);
}

/// Starts the server again when so many hours have passed, under a clock that shows so many more.
fn restart(days: &mut Days, hours: i64, wrong_hours: i64, kernel: &str) {
    days.lab.stop_server();
    days.clocks(hours, wrong_hours, kernel);
    days.lab.start_server();
}

fn status(lab: &Lab) -> Value {
    serde_json::from_slice(&ok(lab, &["status", "--json"]).stdout).unwrap()
}

fn seal(lab: &Lab) {
    let _done = ok(lab, &["compact"]);
}

fn gone(lab: &Lab, word: &str) {
    wait_until("what is due is gone", PATIENCE, || lab.count(word) == 0);
}

/// Has the server publish an interval a second from its next start on.
fn hasten_intervals(lab: &Lab) {
    let path = lab.dir.join("server.toml");
    let config = std::fs::read_to_string(path).unwrap();
    lab.write(
        "server.toml",
        format!("{config}\n[evidence]\ninterval_s = 1\n").as_bytes(),
    );
}

/// Waits until an interval is published that began after this.
fn new_intervals(lab: &Lab) {
    let count = |status: &Value| status["intervals"]["count"].as_u64().unwrap();
    let before = count(&status(lab));
    wait_until("intervals are published", PATIENCE, || {
        count(&status(lab)) >= before + 2
    });
}

/// Whether two entries were received on one day, as the server says.
fn same_day(lab: &Lab, one: &str, other: &str) -> bool {
    let day = |word: &str| {
        let found = lab.search(word);
        let received = found[0]["received"].as_str().unwrap();
        received.split('T').next().unwrap().to_owned()
    };
    day(one) == day(other)
}

fn hours_since_1970() -> i64 {
    i64::try_from(unix_s() / 3600).unwrap()
}

fn ok(lab: &Lab, words: &[&str]) -> std::process::Output {
    let output = lab.server(words);
    assert!(
        output.status.success(),
        "{words:?}: {}",
        text(&output.stderr)
    );
    output
}

const PATIENCE: Duration = Duration::from_secs(30);
