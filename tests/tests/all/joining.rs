//! How an agent comes to be one on its machine: machines that change, states that move, copies that ask (scenarios J).

use std::path::Path;
use std::time::Duration;

use scrinium_agent::identity::{Identity, prepare};
use scrinium_protocol::secret::Secret;
use scrinium_segment::{durable, machine};
use scrinium_tests::lab::{Lab, text};
use scrinium_tests::package::verify;
use scrinium_tests::wait_until;

use crate::identity::{approve, audited, has_root, write_line};

/// J7: a cloud starts the machine on another processor, or an image gives it another machine-id: the state opens with the
/// batches of an outage in it, says what changed, and is bound to what the machine is now.
#[test]
fn j7_another_processor_and_then_another_machine_id_open_the_state_and_are_said() {
    if !has_root() {
        return;
    }
    let mut lab = Lab::start("j7-processor");
    lab.add_agent("web1", lab.sl, "");
    let log = write_line(&lab, "app.log", "one");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 4, Duration::from_secs(20));
    lab.stop_server();
    write_line(&lab, "app.log", "two, in an outage");
    wait_until("it waits in the agent", Duration::from_secs(20), || {
        lab.agent_status("web1")
            .is_some_and(|status| status["backlog_entries"].as_u64() >= Some(1))
    });
    lab.stop_agent("web1");
    lab.start_server();

    let other = other_machine(&lab, "Another CPU", None);
    lab.spawn_agent("web1", "", &words(&other));
    lab.wait_for_bytes("web1", &log, 22, Duration::from_secs(20));
    assert_eq!(lab.export("web1", &log), b"one\ntwo, in an outage\n");
    let alarm = lab.wait_for_alarm("machine-changed", "web1");
    assert!(alarm.contains("cpu-model"), "{alarm}");
    wait_until(
        "the agent's own log has it",
        Duration::from_secs(20),
        || lab.count("stream:scrinium-agent \"characteristics of this machine\" cpu-model") == 1,
    );
    lab.stop_agent("web1");

    // It was bound anew: one more may change.
    let other = other_machine(
        &lab,
        "Another CPU",
        Some("0123456789abcdef0123456789abcdef"),
    );
    write_line(&lab, "app.log", "three");
    lab.spawn_agent("web1", "", &words(&other));
    lab.wait_for_bytes("web1", &log, 28, Duration::from_secs(20));
    lab.stop_agent("web1");
    // On the machine it was enrolled on, two are others by now.
    lab.start_agent("web1");
    wait_until("it is refused", Duration::from_secs(20), || {
        problem(&lab, "web1").contains("cpu-model, machine-id")
            || problem(&lab, "web1").contains("machine-id, cpu-model")
    });
    assert_eq!(lab.export("web1", &log).len(), 28);
    assert_eq!(lab.verify().0, 0);
}

/// J1: the copied directory opens on no other machine. It asks, which is an alarm; while its original is connected, and
/// without a person's word, it gets nothing.
#[test]
fn j1_a_copied_directory_does_not_open_on_another_machine_and_is_an_alarm_when_it_asks() {
    if !has_root() {
        return;
    }
    let mut lab = Lab::start("j1-elsewhere");
    lab.add_agent("web1", lab.sl, "");
    let log = write_line(&lab, "app.log", "one");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 4, Duration::from_secs(20));
    lab.copy_agent("web1", "copy");
    let bytes = |lab: &Lab| std::fs::read(lab.state("copy").join("machine.json")).unwrap();
    let before = bytes(&lab);
    let other = other_machine(
        &lab,
        "Another CPU",
        Some("0123456789abcdef0123456789abcdef"),
    );
    lab.spawn_agent("copy", "", &words(&other));
    let alarm = lab.wait_for_alarm("identity-used-twice", "web1");
    assert!(
        alarm.contains("second process") && alarm.contains("cpu-model"),
        "{alarm}"
    );
    // The original was not disturbed, and nobody can let the copy in while it is there.
    assert_eq!(lab.agent("web1")["state"], "connected");
    let approved = lab.server(&["agent", "approve", "web1"]);
    assert!(text(&approved.stderr).contains("nothing waits for approval"));
    write_line(&lab, "app.log", "two");
    lab.wait_for_bytes("web1", &log, 8, Duration::from_secs(20));
    wait_until("the copy says why", Duration::from_secs(20), || {
        problem(&lab, "copy").contains("another machine")
            && problem(&lab, "copy").contains("another process of this agent is connected")
    });

    // When the original is gone it is a quarantine, for a person to decide.
    lab.stop_agent("web1");
    wait_until("it waits for approval", Duration::from_secs(40), || {
        let reason = lab.agent("web1")["quarantine"]["reason"].clone();
        reason
            .as_str()
            .is_some_and(|reason| reason.contains("it is a copy"))
    });
    lab.stop_agent("copy");
    assert_eq!(bytes(&lab), before);
    assert_eq!(audited(&lab, "\"state opened\""), 0);
    // The original is let in as before.
    write_line(&lab, "app.log", "three");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 14, Duration::from_secs(20));
    assert_eq!(lab.export("web1", &log), b"one\ntwo\nthree\n");
    assert_eq!(lab.verify().0, 0);
}

/// J7: everything changed. The agent does not die: it asks, a person approves, it goes on with what it had.
#[test]
fn j7_a_machine_that_is_another_one_goes_on_when_a_person_approves() {
    if !has_root() {
        return;
    }
    let mut lab = Lab::start("j7-moved");
    lab.add_agent("web1", lab.sl, "");
    let log = write_line(&lab, "app.log", "one");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 4, Duration::from_secs(20));
    lab.stop_server();
    // One write, so that the agent has read all of it when it has read enough of it.
    let outage: Vec<String> = (100..300).map(|n| format!("in an outage {n}")).collect();
    write_line(&lab, "app.log", &outage.join("\n"));
    let lines = std::fs::read(&log).unwrap();
    wait_until("it waits in the agent", Duration::from_secs(20), || {
        lab.agent_status("web1")
            .is_some_and(|status| status["backlog_entries"].as_u64() >= Some(200))
    });
    // What the agent itself says is not a tenth of that.
    lab.stop_agent("web1");
    // What it holds is on its disk alone.
    std::fs::remove_file(&log).unwrap();

    let other = other_machine(
        &lab,
        "Another CPU",
        Some("0123456789abcdef0123456789abcdef"),
    );
    lab.spawn_agent("web1", "", &words(&other));
    wait_until(
        "it says why it does not go on",
        Duration::from_secs(20),
        || problem(&lab, "web1").contains("too much of this one changed"),
    );
    // It can be stopped while it waits.
    lab.stop_agent("web1");
    lab.start_server();
    // And told where its server is now.
    let config = std::fs::read_to_string(lab.dir.join("web1.toml")).unwrap();
    let nowhere = format!("{config}\n[server]\naddresses = [\"127.0.0.9:9\"]\n");
    lab.write("web1.toml", nowhere.as_bytes());
    lab.spawn_agent("web1", "", &words(&other));
    wait_until("it asks in vain", Duration::from_secs(20), || {
        problem(&lab, "web1").contains("127.0.0.9:9")
    });
    lab.write("web1.toml", config.as_bytes());
    crate::signals::signal(lab.agent_pid("web1"), "-HUP");
    let alarm = lab.wait_for_alarm("identity-used-twice", "web1");
    assert!(alarm.contains("does not open on its machine"), "{alarm}");
    assert_eq!(lab.agent("web1")["quarantine"]["approved"], false);
    assert_eq!(lab.agent("web1")["state"], "refused");
    approve(&lab, "web1");
    lab.wait_connected("web1");
    lab.wait_for_bytes("web1", &log, lines.len(), Duration::from_secs(20));
    assert!(lab.export("web1", &log) == lines);
    assert_eq!(audited(&lab, "\"state opened\" web1"), 1);

    // From now on this is its machine.
    lab.stop_agent("web1");
    let alarms = lab.alarms().len();
    assert_eq!(alarms, 1);
    write_line(&lab, "app.log", "three");
    lab.spawn_agent("web1", "", &words(&other));
    lab.wait_for_bytes("web1", &log, lines.len() + 6, Duration::from_secs(20));
    assert_eq!(audited(&lab, "\"state opened\" web1"), 1);
    assert_eq!(lab.alarms().len(), alarms);
    assert_eq!(lab.verify().0, 0);
}

/// What an agent's `status` says is wrong.
fn problem(lab: &Lab, agent: &str) -> String {
    let status = lab.agent_status(agent);
    let problem = status.map(|status| status["problem"].clone());
    let problem = problem.and_then(|problem| problem.as_str().map(str::to_owned));
    problem.unwrap_or_default()
}

/// A machine with this processor, and this machine-id.
fn other_machine(lab: &Lab, processor: &str, machine_id: Option<&str>) -> Vec<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let lines = info.lines().map(|line| match line.split_once(':') {
        Some((name, _)) if name.starts_with("model name") => format!("{name}: {processor}\n"),
        _ => format!("{line}\n"),
    });
    lab.write("cpuinfo", lines.collect::<String>().as_bytes());
    let own = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    lab.write("machine-id", machine_id.unwrap_or(&own).as_bytes());
    let script = "mount --bind \"$1\" /proc/cpuinfo && mount --bind \"$2\" /etc/machine-id && shift 2 && exec \"$@\"";
    let path = |name: &str| shown(&lab.dir.join(name));
    let before = ["unshare", "-m", "sh", "-c", script, "sh"].map(str::to_owned);
    [&before[..], &[path("cpuinfo"), path("machine-id")]].concat()
}

fn shown(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn words(wrapper: &[String]) -> Vec<&str> {
    wrapper.iter().map(String::as_str).collect()
}

/// A token of several uses: each machine joins at its first start with an identity and a name of its own, every use is
/// counted and in the trail, and neither more than it says nor anybody after it was revoked joins.
#[test]
fn a_token_of_several_uses_enrols_so_many_machines_each_with_a_name_of_its_own() {
    let mut lab = Lab::start("uses");
    let token = many(&lab, "box", "3");
    assert!(lab.enrol("one", &token).status.success());
    assert!(lab.enrol("two", &token).status.success());
    // The third at its first start, by a file.
    lab.write("token", token.as_bytes());
    lab.adopt_agent("three");
    let log = write_line(&lab, "app.log", "from the third");
    start_with_token(&mut lab, "three", &[]);
    lab.wait_for_bytes("box-3", &log, 15, Duration::from_secs(20));
    lab.stop_agent("three");
    // Started again it is itself, whether the file is there, is something else by now, or is gone.
    for spoilt in [true, false] {
        start_with_token(&mut lab, "three", &[]);
        lab.wait_connected("box-3");
        lab.stop_agent("three");
        if spoilt {
            lab.write("token", b"no token");
        } else {
            std::fs::remove_file(lab.dir.join("token")).unwrap();
        }
    }
    start_with_token(&mut lab, "three", &[]);
    lab.wait_connected("box-3");
    lab.stop_agent("three");
    let names = |lab: &Lab| -> Vec<String> {
        let listed = lab.server(&["agent", "list", "--json"]);
        let agents: Vec<serde_json::Value> = serde_json::from_slice(&listed.stdout).unwrap();
        let names = agents
            .iter()
            .map(|agent| agent["name"].as_str().unwrap().to_owned());
        names.collect()
    };
    assert_eq!(names(&lab), ["box", "box-2", "box-3"]);

    let fourth = lab.enrol("four", &token);
    assert_eq!(fourth.status.code(), Some(4));
    assert!(
        text(&fourth.stderr).contains("as often as it may be"),
        "{}",
        text(&fourth.stderr)
    );
    // The first is no other's: with its state it is enrolled, and says so.
    let again = lab.enrol("one", &token);
    assert!(text(&again.stderr).contains("holds an enrolled agent"));
    assert_eq!(lab.trail("enrolled").len(), 3);
    let uses = lab
        .trail("enrolled")
        .iter()
        .map(|entry| entry["detail"]["uses"].as_u64())
        .collect::<Vec<_>>();
    assert_eq!(uses, [Some(1), Some(2), Some(3)]);

    // Listed while it is good for something, counted over a restart of the server, ended by a person.
    let token = many(&lab, "node-{host}-{n}", "500");
    assert!(lab.enrol("five", &token).status.success());
    lab.kill_server();
    lab.start_server();
    let listed = lab.server(&["agent", "tokens", "--json"]);
    let open: Vec<serde_json::Value> = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(open.len(), 1, "{open:?}");
    assert_eq!(
        (&open[0]["uses"], &open[0]["uses_max"]),
        (&1.into(), &500.into())
    );
    assert!(
        names(&lab)
            .iter()
            .any(|name| name.starts_with("node-") && name.ends_with("-1"))
    );
    let id = open[0]["id"].as_str().unwrap();
    assert!(lab.server(&["agent", "revoke-token", id]).status.success());
    let refused = lab.enrol("six", &token);
    assert_eq!(refused.status.code(), Some(4));
    assert!(text(&refused.stderr).contains("revoked"));
    // Who joined stays.
    lab.adopt_agent("five");
    lab.start_agent("five");
    wait_until("it is connected", Duration::from_secs(20), || {
        lab.agent_status("five")
            .is_some_and(|status| status["connected"] == true)
    });
}

/// What a token for several may be is said before there is one.
#[test]
fn tokens_of_several_uses_have_bounds_that_are_said() {
    let lab = Lab::start("uses-bounds");
    for (words, expected) in [
        (&["box", "--uses", "0"][..], "uses must be"),
        (&["box", "--uses", "100001"], "uses must be"),
        (&["box", "--uses", "2", "--expires", "401d"], "400 days"),
        (&["box", "--expires", "31d"], "30 days"),
        (&["{host}"], "agent name"),
        (&["{nobody}", "--uses", "2"], "agent name"),
    ] {
        let made = lab.server(&[&["agent", "enroll"], words].concat());
        let said = text(&made.stderr);
        assert!(
            !made.status.success() && said.contains(expected),
            "{words:?}: {said}"
        );
    }
    let unknown = lab.server(&["agent", "revoke-token", &"0".repeat(32)]);
    assert!(text(&unknown.stderr).contains("no token has the id"));
}

/// A golden master with the state of its first start in it: each clone notices that it is one, sets that state aside and
/// enrols anew; the original is not disturbed. Without a token of several uses it says so and asks.
#[test]
fn a_cloned_image_enrols_anew_with_a_token_of_several_uses() {
    if !has_root() {
        return;
    }
    let mut lab = Lab::start("image");
    let token = many(&lab, "web", "10");
    lab.write("token", token.as_bytes());
    lab.adopt_agent("original");
    let log = write_line(&lab, "app.log", "one");
    start_with_token(&mut lab, "original", &[]);
    lab.wait_for_bytes("web", &log, 4, Duration::from_secs(20));
    lab.copy_agent("original", "clone");
    let other = other_machine(
        &lab,
        "Another CPU",
        Some("0123456789abcdef0123456789abcdef"),
    );
    // It dies while it sets the state aside: what is left of it is still another machine's, and follows.
    let file = format!("SCRINIUM_TOKEN_FILE={}", shown(&lab.dir.join("token")));
    let wrapper = [&["env", &file], &words(&other)[..]].concat();
    lab.spawn_agent("clone", "agent: a part of the state set aside", &wrapper);
    lab.wait_for_agent_end("clone", Duration::from_secs(20));
    start_with_token(&mut lab, "clone", &words(&other));
    lab.wait_for_bytes("web-2", &log, 4, Duration::from_secs(20));
    let [first, second, third] =
        ["set-aside-1", "set-aside-2", "set-aside-3"].map(|name| lab.state("clone").join(name));
    assert!(first.join("state.a").is_file() && second.join("machine.json").is_file());
    assert_eq!(lab.agent("web")["state"], "connected");
    assert!(
        lab.alarms()
            .iter()
            .all(|alarm| alarm["kind"] != "identity-used-twice")
    );
    // It is itself from now on.
    lab.stop_agent("clone");
    start_with_token(&mut lab, "clone", &words(&other));
    write_line(&lab, "app.log", "two");
    lab.wait_for_bytes("web-2", &log, 8, Duration::from_secs(20));
    lab.wait_for_bytes("web", &log, 8, Duration::from_secs(20));
    assert_eq!(lab.trail("enrolled").len(), 2);
    assert!(!third.try_exists().unwrap());
}

/// Makes a token for several machines.
fn many(lab: &Lab, name: &str, uses: &str) -> String {
    let address = lab.sl.to_string();
    let made = lab.server(&[
        "agent",
        "enroll",
        name,
        "--uses",
        uses,
        "--expires",
        "90d",
        "--address",
        &address,
    ]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    text(&made.stdout).trim().to_owned()
}

/// Starts an agent that may use the token in the laboratory's file `token`.
fn start_with_token(lab: &mut Lab, agent: &str, wrapper: &[&str]) {
    let file = format!("SCRINIUM_TOKEN_FILE={}", shown(&lab.dir.join("token")));
    let wrapper = [&["env", &file], wrapper].concat();
    lab.spawn_agent(agent, "", &wrapper);
}

/// The machine was reinstalled, or stands on another disk: a person gives the new state the place of the lost one. It goes
/// on where the server stands, file by file, says what it cannot find, and what the lost key signed is still proven.
#[test]
fn an_agent_whose_state_is_lost_is_replaced_and_neither_loses_nor_repeats() {
    let mut lab = Lab::start("replaced");
    lab.add_agent("web1", lab.sl, "");
    let log = write_line(&lab, "app.log", "one");
    let other = write_line(&lab, "other.log", "of the other file");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 4, Duration::from_secs(20));
    lab.wait_for_bytes("web1", &other, 18, Duration::from_secs(20));
    let replace = |lab: &Lab, name: &str| {
        let address = lab.sl.to_string();
        lab.server(&["agent", "replace", name, "--address", &address])
    };
    // Nothing is replaced that is there.
    let refused = text(&replace(&lab, "web1").stderr);
    assert!(refused.contains("its state is not lost"), "{refused}");
    let refused = text(&replace(&lab, "nobody").stderr);
    assert!(refused.contains("no agent is named"), "{refused}");
    let id = lab.agent("web1")["id"].clone();
    let key = lab.agent("web1")["key"].clone();
    lab.kill_agent("web1");
    wait_until("the server has noticed", Duration::from_secs(20), || {
        lab.agent("web1")["state"] != "connected"
    });
    lab.copy_agent("web1", "lost");
    std::fs::remove_dir_all(lab.state("web1")).unwrap();
    // Meanwhile one file goes on, and one is gone.
    write_line(&lab, "app.log", "two");
    std::fs::remove_file(&other).unwrap();
    let exists = lab.server(&["agent", "enroll", "web1"]);
    let said = text(&exists.stderr);
    assert!(
        said.contains("exists") && said.contains("agent replace"),
        "{said}"
    );

    let made = replace(&lab, "web1");
    assert!(made.status.success(), "{}", text(&made.stderr));
    let token = text(&made.stdout).trim().to_owned();
    // It dies when it has just been enrolled: the same keys go on.
    let died = lab.enrol_with_fault("web1", &token, "agent: enrolment durable");
    assert!(!died.status.success());
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 8, Duration::from_secs(20));
    write_line(&lab, "app.log", "three");
    lab.wait_for_bytes("web1", &log, 14, Duration::from_secs(20));
    assert_eq!(lab.export("web1", &log), b"one\ntwo\nthree\n");
    assert_eq!(lab.export("web1", &other), b"of the other file\n");
    assert_eq!(lab.agent("web1")["id"], id);
    assert_ne!(lab.agent("web1")["key"], key);
    assert_eq!(lab.trail("agent to be replaced").len(), 1);
    assert!(!lab.trail("replaced").is_empty());
    let (code, said) = lab.verify();
    assert_eq!(code, 0, "{said}");

    // A package of both proves both keys' work.
    let package = lab.dir.join("package.tar");
    let made = lab.server(&[
        "export",
        "--agent",
        "web1",
        "--path",
        log.to_str().unwrap(),
        "--out",
        package.to_str().unwrap(),
    ]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let (code, said) = verify(&package, &[]);
    assert_eq!(code, Some(0), "{said}");

    // The state that was lost comes back: it is nobody's, whatever it holds.
    lab.start_agent("lost");
    wait_until("it is refused", Duration::from_secs(20), || {
        problem(&lab, "lost").contains("not known to the server")
    });
    assert_eq!(lab.agent("web1")["state"], "connected");

    // A second time, at the first start of the new state.
    lab.stop_agent("lost");
    lab.stop_agent("web1");
    std::fs::remove_dir_all(lab.state("web1")).unwrap();
    let made = replace(&lab, "web1");
    assert!(made.status.success(), "{}", text(&made.stderr));
    lab.write("token", &made.stdout);
    write_line(&lab, "app.log", "four");
    start_with_token(&mut lab, "web1", &[]);
    lab.wait_for_bytes("web1", &log, 19, Duration::from_secs(20));
    assert_eq!(lab.export("web1", &log), b"one\ntwo\nthree\nfour\n");
    let (code, said) = lab.verify();
    assert_eq!(code, 0, "{said}");
}

/// K5: a state that version 0.1.0 bound goes on, is left as it is until the new program has proven itself, and is taken
/// over then; nothing is lost or sent twice, before and after.
#[test]
fn k5_a_state_of_0_1_0_goes_on_and_is_taken_over_once_the_program_has_proven_itself() {
    let mut lab = Lab::start("k5-state");
    lab.add_agent("web1", lab.sl, "");
    let log = write_line(&lab, "app.log", "one");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 4, Duration::from_secs(20));
    lab.stop_agent("web1");
    let old = bind_as_0_1_0(&lab.state("web1"));
    let binding = |lab: &Lab| std::fs::read(lab.state("web1").join("machine.json")).unwrap();

    write_line(&lab, "app.log", "two");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 8, Duration::from_secs(20));
    lab.stop_agent("web1");
    // Ten minutes are not over: the program before this one opens it.
    assert_eq!(binding(&lab), old);

    let mut config = std::fs::read_to_string(lab.dir.join("web1.toml")).unwrap();
    config += "[state]\nmigrate_after_s = 1\n";
    lab.write("web1.toml", config.as_bytes());
    lab.start_agent("web1");
    wait_until("it is taken over", Duration::from_secs(30), || {
        text(&binding(&lab)).contains("a newer scrinium-agent, which alone opens it")
    });
    for (line, bytes) in [("three", 14), ("four", 19)] {
        write_line(&lab, "app.log", line);
        lab.wait_for_bytes("web1", &log, bytes, Duration::from_secs(20));
        lab.stop_agent("web1");
        lab.start_agent("web1");
    }
    assert_eq!(lab.export("web1", &log), b"one\ntwo\nthree\nfour\n");
    assert_eq!(lab.verify().0, 0);
}

/// Binds the state of a stopped agent as version 0.1.0 did; returns what that wrote.
fn bind_as_0_1_0(dir: &Path) -> Vec<u8> {
    let state = Identity::open(dir, &prepare(dir).unwrap()).unwrap().state;
    let found = machine::characteristics().into_iter();
    let names: Vec<String> = found.map(|found| found.name.to_owned()).collect();
    let key = machine::bind(&names, &Secret::new([7; 32])).unwrap();
    for name in ["machine.json", "state.a", "state.b"] {
        drop(std::fs::remove_file(dir.join(name)));
    }
    drop(std::fs::remove_dir_all(dir.join("spool")));
    let old = serde_json::json!({ "characteristics": names, "secret": "07".repeat(32) });
    let old = serde_json::to_vec(&old).unwrap();
    durable::write_file(&dir.join("machine.json"), &old).unwrap();
    drop(Identity::create(dir, &key, state).unwrap());
    old
}
