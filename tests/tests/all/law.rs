//! No single person goes around the law: what waits, who stops it, who shortens it, and what happens when it is due.

use std::process::Output;
use std::time::Duration;

use scrinium_tests::console::Console;
use scrinium_tests::days::{Days, ship_a_line};
use scrinium_tests::lab::{Lab, PASSWORD, text};
use scrinium_tests::{now, wait_until};
use serde_json::Value;

/// What goes beyond its category is not in force before three days are over, is shown, and is stopped by anybody.
#[test]
fn what_goes_beyond_its_category_waits_is_shown_and_is_stopped() {
    let Some(mut days) = Days::start("law-waits") else {
        return;
    };
    let lab = &days.lab;
    let forever = [
        "policy",
        "class",
        "forever",
        "--keep-days",
        "3650",
        "--ceiling-days",
        "3650",
    ];
    waits(lab, &forever);
    let shown = ["policy", "class", "general", "--operations-days", "30000"];
    waits(lab, &shown);
    let ended = ["policy", "contract", "default", "--end", "2020-01-01"];
    waits(lab, &ended);
    // Within its category, one person does it at once.
    ok(
        lab,
        &[
            "policy",
            "class",
            "short",
            "--keep-days",
            "30",
            "--operations-days",
            "30",
        ],
    );
    ok(
        lab,
        &["policy", "class", "general", "--operations-days", "30"],
    );
    assert_eq!(class(lab, "forever"), None);
    assert_eq!(class(lab, "general").unwrap()["operations_days"], 30);

    // A rule without a selector is refused, and names itself.
    lab.write(
        "rules.toml",
        b"[[rule]]\nclass = \"short\"\nstream = \"/a\"\n[[rule]]\nclass = \"short\"\n",
    );
    let file = lab.dir.join("rules.toml").display().to_string();
    let refused = lab.server(&["policy", "rules", "--file", &file]);
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(
        said.contains("rule 2 of class 'short' selects nothing"),
        "{said}"
    );
    lab.write(
        "rules.toml",
        b"[[rule]]\nclass = \"short\"\nstream = \"**\"\n",
    );
    ok(lab, &["policy", "rules", "--file", &file]);

    // Shown by command, console and trail.
    assert_eq!(pending(lab).len(), 3);
    let console = Console::sign_in(lab, PASSWORD);
    let page = console.get("/");
    assert!(
        page.contains("/stop\"") && page.contains("30,000"),
        "{page}"
    );
    assert_eq!(lab.trail("asked, and waits").len(), 3);

    // Anybody stops it: at the console, or by command.
    for (what, by_hand) in [("all of tenant default", true), ("operations read", false)] {
        let id = id_of(lab, what);
        if by_hand {
            ok(
                lab,
                &["policy", "stop", &id, "--reason", "nobody knows of it"],
            );
        } else {
            let (status, _) = console.post("/", &format!("/waiting/{id}/stop"), &[]);
            assert_eq!(status, 303);
        }
    }
    assert_eq!(pending(lab).len(), 1);
    let stopped = lab.trail("stopped what waits");
    assert_eq!(stopped.len(), 2);
    assert_eq!(stopped[0]["detail"]["reason"], "nobody knows of it");

    // What nobody stopped is done when it is due, and not an hour before.
    days.pass_hours(2, 23);
    days.lab.kill_server();
    days.lab.start_server();
    assert_eq!(class(&days.lab, "forever"), None);
    assert_eq!(pending(&days.lab).len(), 1);
    days.lab.stop_server();
    days.set(3);
    days.lab.spawn_server("server: waiting act done");
    days.lab.wait_for_server_end(PATIENCE);
    days.lab.start_server();
    let lab = &days.lab;
    wait_until("it is done", PATIENCE, || pending(lab).is_empty());
    assert_eq!(class(lab, "forever").unwrap()["ceiling_days"], 3650);
    assert_eq!(class(lab, "general").unwrap()["operations_days"], 30);

    // To bring streams into it waits, too.
    lab.write(
        "rules.toml",
        b"[[rule]]\nclass = \"forever\"\nstream = \"**\"\n",
    );
    waits(lab, &["policy", "rules", "--file", &file]);
}

/// Two persons shorten it: two accounts that nobody made or took over for it, and never the local command.
#[test]
fn two_persons_shorten_it_and_nobody_is_two() {
    let Some(mut days) = Days::start("law-persons") else {
        return;
    };
    account(&days.lab, "bob");
    let wider = ["policy", "class", "general", "--operations-days", "91"];
    // Both accounts are of today.
    waits(&days.lab, &[&wider[..], &person("bob", &days.lab)].concat());
    let id = id_of(&days.lab, "operations read");
    let refused = approve(&days.lab, &id, Some("admin"));
    assert_eq!(refused.status.code(), Some(4));
    assert!(
        text(&refused.stderr).contains("0 of 2"),
        "{}",
        text(&refused.stderr)
    );
    ok(&days.lab, &["policy", "stop", &id]);

    days.go_to(4);
    let lab = &days.lab;
    waits(lab, &wider);
    let id = id_of(lab, "operations read");
    // The local command is nobody, and one person is not two.
    assert_eq!(approve(lab, &id, None).status.code(), Some(4));
    let console = Console::sign_in_as(lab, "bob", "the password of bob");
    let (status, said) = console.post("/", &format!("/waiting/{id}/agree"), &[]);
    assert_eq!(status, 202, "{said}");
    assert_eq!(approve(lab, &id, Some("bob")).status.code(), Some(4));
    waits(lab, &wider);
    assert_eq!(class(lab, "general").unwrap()["operations_days"], 90);
    let done = approve(lab, &id, Some("admin"));
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert_eq!(class(lab, "general").unwrap()["operations_days"], 91);
    let changed = lab.trail("policy changed");
    let line = changed.last().unwrap();
    assert_eq!(
        line["detail"]["wanted_by"],
        "local command and bob and admin"
    );

    // Two at once are two, and it is done once.
    let narrow = ["policy", "class", "general", "--operations-days", "90"];
    ok(lab, &narrow);
    waits(lab, &wider);
    let id = id_of(lab, "operations read");
    let both = ["bob", "admin"].map(|name| {
        let words = [&["policy", "approve", &id][..], &person(name, lab)].concat();
        lab.server_command(&words).spawn().unwrap()
    });
    let both = both.map(|mut child| child.wait().unwrap().code());
    assert!(both.contains(&Some(0)), "{both:?}");
    assert_eq!(pending(lab), Vec::<Value>::new());
    assert_eq!(class(lab, "general").unwrap()["operations_days"], 91);
    assert_eq!(lab.trail("policy changed").len(), 3);

    // Whoever gives bob a password becomes him for nothing that is asked for now; an account made now is nobody.
    account(lab, "bob");
    account(lab, "carol");
    let wider = ["policy", "class", "general", "--ceiling-days", "400"];
    waits(lab, &[&wider[..], &person("admin", lab)].concat());
    let id = id_of(lab, "floor and ceiling");
    for name in ["bob", "carol", "admin"] {
        assert_eq!(approve(lab, &id, Some(name)).status.code(), Some(4));
    }
    assert_eq!(class(lab, "general").unwrap()["ceiling_days"], 365);
}

/// Removing an agent hides it from every reader at once; until it is due it can be brought back whole.
#[test]
fn a_removed_agent_is_gone_for_readers_at_once_and_comes_back_when_it_is_stopped() {
    let mut lab = Lab::start("law-aside");
    ship_a_line(&mut lab, "web1", "MARKERONE of web1\n");
    let path = lab.dir.join("logs-web1").join("app.log");
    let console = Console::sign_in(&lab, PASSWORD);
    assert!(
        console
            .get("/search?q=MARKERONE&range=all")
            .contains("of web1")
    );
    remove(&lab, "web1");

    let is_hidden = |lab: &Lab| {
        assert_eq!(lab.count("MARKERONE"), 0);
        assert!(!lab.try_export("web1", &path).status.success());
        let agents = text(&lab.server(&["agent", "list"]).stdout);
        assert!(!agents.contains("web1"), "{agents}");
        let found = [
            "export",
            "--query",
            "MARKERONE",
            "--format",
            "raw",
            "--out",
            "-",
        ];
        assert_eq!(text(&ok(lab, &found).stdout), "");
        let (code, report) = lab.verify();
        assert_eq!(code, 0, "{report}");
    };
    is_hidden(&lab);
    let page = console.get("/search?q=MARKERONE&range=all");
    assert!(!page.contains("of web1"), "{page}");
    assert!(!console.get("/agents").contains("/agents/web1"));
    // It is refused, neither enabled nor enrolled anew, and its name is taken.
    lab.start_agent("web1");
    wait_until("it is refused", PATIENCE, || {
        let said = lab.trail("refused");
        said.iter()
            .any(|line| line.to_string().contains("disabled"))
    });
    lab.stop_agent("web1");
    assert!(!lab.server(&["agent", "enable", "web1"]).status.success());
    let taken = lab.server(&["agent", "enroll", "web1"]);
    assert!(text(&taken.stderr).contains("was removed and waits"));
    // So it is after a restart.
    lab.stop_server();
    lab.start_server();
    is_hidden(&lab);

    let id = id_of(&lab, "delete agent web1");
    ok(&lab, &["policy", "stop", &id]);
    assert_eq!(lab.count("MARKERONE"), 1);
    assert_eq!(lab.export("web1", &path), b"MARKERONE of web1\n");
    lab.start_agent("web1");
    lab.wait_connected("web1");
}

/// When it is due its keys are destroyed: not under a hold, once, and wherever the server dies meanwhile.
#[test]
fn a_removed_agent_is_gone_for_good_after_three_days() {
    let Some(mut days) = Days::start("law-due") else {
        return;
    };
    ship_a_line(&mut days.lab, "web1", "MARKERONE of web1\n");
    remove(&days.lab, "web1");
    let hold = [
        "policy", "hold", "case-1", "--reason", "court", "--agent", "web1",
    ];
    ok(&days.lab, &hold);
    days.go_to(4);
    let lab = &mut days.lab;
    wait_until("the hold hinders it", PATIENCE, || {
        pending(lab)[0]["hindered"].to_string().contains("case-1")
    });
    assert_eq!(lab.count("stream:deletions certificate"), 0);
    ok(lab, &["policy", "release", "case-1", "--reason", "closed"]);
    for fault in ["server: keys destroyed", "server: agent's keys destroyed"] {
        lab.stop_server();
        lab.spawn_server(fault);
        lab.wait_for_server_end(PATIENCE);
    }
    lab.start_server();
    wait_until("it is gone", PATIENCE, || pending(lab).is_empty());
    wait_until("it is certified", PATIENCE, || {
        lab.count("stream:deletions certificate") > 0
    });
    for certificate in lab.search("stream:deletions certificate") {
        let said = certificate["text"].as_str().unwrap();
        assert!(said.contains("\"by\":\"local command\""), "{said}");
    }
    assert_eq!(lab.count("MARKERONE"), 0);
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
    // The name is free again.
    let _token = lab.token("web1", lab.sl);
}

/// The deletion of an agent waits for the thread of the archive, which may compact for hours: nothing else that waits, and no
/// command about it, waits behind it.
#[test]
fn an_act_that_takes_long_holds_up_no_other() {
    let Some(mut days) = Days::start("law-long") else {
        return;
    };
    account(&days.lab, "bob");
    ship_a_line(&mut days.lab, "web1", "MARKERONE of web1\n");
    let hang = (
        "SCRINIUM_HANG".to_owned(),
        "server: keys destroyed".to_owned(),
    );
    days.lab.server_environment.push(hang);
    days.go_to(4);
    let lab = &days.lab;
    remove(lab, "web1");
    let id = id_of(lab, "delete agent web1");
    assert_eq!(approve(lab, &id, Some("bob")).status.code(), Some(4));
    let words = [&["policy", "approve", &id][..], &person("admin", lab)].concat();
    let mut long = lab.server_command(&words).spawn().unwrap();
    wait_until("it is being done", PATIENCE, || {
        !lab.trail("agent deletion").is_empty()
    });
    let stopped = lab.server(&["policy", "stop", &id]);
    let said = text(&stopped.stderr);
    assert!(said.contains("is being done now"), "{said}");
    let begun = now();
    waits(
        lab,
        &["policy", "class", "general", "--operations-days", "91"],
    );
    let other = id_of(lab, "operations read");
    ok(lab, &["policy", "stop", &other]);
    let took = now().duration_since(begun);
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(long.try_wait().unwrap().is_none(), "it takes long");
    long.kill().unwrap();
    long.wait().unwrap();
    days.lab.kill_server();
    days.lab.server_environment.pop();
    days.lab.start_server();
    wait_until("it is done after all", PATIENCE, || {
        pending(&days.lab).is_empty()
    });
    assert_eq!(days.lab.trail("agent deleted").len(), 1);
}

/// Asks for the removal of an agent, and says it again.
fn remove(lab: &Lab, agent: &str) {
    let delete = ["agent", "delete", agent, "--reason", "customer left"];
    let told = text(&lab.server(&delete).stdout);
    assert!(told.contains("Nothing was deleted"), "{told}");
    let word = told.split_whitespace().last().unwrap().to_owned();
    ok(lab, &[&delete[..], &["--confirm", &word]].concat());
}

/// Gives an account the password of its name.
fn account(lab: &Lab, name: &str) {
    lab.write(name, format!("the password of {name}").as_bytes());
    let file = lab.dir.join(name).display().to_string();
    ok(lab, &["user", "password", name, "--password-file", &file]);
}

fn person(name: &str, lab: &Lab) -> [&'static str; 4] {
    let file = if name == "admin" { "password" } else { name };
    let file = lab.dir.join(file).display().to_string();
    let leaked = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    [
        "--user",
        leaked(name.to_owned()),
        "--password-file",
        leaked(file),
    ]
}

fn approve(lab: &Lab, id: &str, name: Option<&str>) -> Output {
    let person = name.map(|name| person(name, lab));
    let person = person.as_ref().map_or(&[][..], |person| &person[..]);
    lab.server(&[&["policy", "approve", id][..], person].concat())
}

/// What is asked for is not done, says how long it waits, and how it is stopped.
fn waits(lab: &Lab, words: &[&str]) {
    let output = lab.server(words);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{words:?}: {said}");
    assert!(
        said.contains("72 hours") && said.contains("policy stop "),
        "{said}"
    );
}

fn pending(lab: &Lab) -> Vec<Value> {
    let output = ok(lab, &["policy", "pending", "--json"]);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn id_of(lab: &Lab, what: &str) -> String {
    let pending = pending(lab);
    let mut found = pending
        .iter()
        .filter(|waits| waits["what"].as_str().unwrap().starts_with(what));
    found.next().expect(what)["id"].as_str().unwrap().to_owned()
}

fn class(lab: &Lab, name: &str) -> Option<Value> {
    let output = ok(lab, &["policy", "--json"]);
    let shown: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut classes = shown["classes"].as_array().into_iter().flatten();
    classes.find(|class| class["name"] == name).cloned()
}

fn ok(lab: &Lab, words: &[&str]) -> Output {
    let output = lab.server(words);
    assert!(
        output.status.success(),
        "{words:?}: {}",
        text(&output.stderr)
    );
    output
}

const PATIENCE: Duration = Duration::from_secs(30);
