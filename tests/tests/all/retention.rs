//! What is kept for how long, held, deleted, and said of it, with the real programs and a clock that is set.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use scrinium_tests::days::{Days, ship_a_line};
use scrinium_tests::lab::{Lab, text};
use scrinium_tests::wait_until;
use serde_json::Value;

/// Days go by: what is due goes and is certified, what is held stays, and what an old copy brings back
/// cannot be read.
#[test]
fn what_is_due_is_forgotten_and_certified_and_what_is_held_stays() {
    let Some(mut days) = Days::start("retention") else {
        return;
    };
    let lab = &mut days.lab;
    ship_a_line(lab, "web1", "MARKERONE of web1\n");
    ship_a_line(lab, "web2", "MARKERTWO of web2\n");
    let compacted = lab.server(&["compact"]);
    assert!(compacted.status.success(), "{}", text(&compacted.stderr));
    assert_eq!(lab.verify().0, 0);
    let old = copy_of(lab);

    // Within floor and ceiling, by one person; beyond, not.
    let refused = lab.server(&["policy", "class", "general", "--keep-days", "400"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("ceiling of 365 days"));
    ok(lab, &["policy", "class", "general", "--keep-days", "30"]);
    let wider = [
        "policy",
        "class",
        "general",
        "--keep-days",
        "400",
        "--ceiling-days",
        "400",
    ];
    let waits = lab.server(&wider);
    assert_eq!(waits.status.code(), Some(4), "{}", text(&waits.stderr));
    let said = text(&waits.stderr);
    assert!(said.contains("two persons"), "{said}");
    let (_, id) = said.split_once("waits as ").unwrap();
    ok(lab, &["policy", "stop", id.split_once(';').unwrap().0]);
    let hold = [
        "policy",
        "hold",
        "case-12",
        "--reason",
        "requisition",
        "--agent",
        "web2",
    ];
    ok(lab, &hold);

    // What will go is told before it goes.
    assert_eq!(preview(lab, "7"), Vec::<Value>::new());
    days.go_to(27);
    let lab = &mut days.lab;
    let rows = preview(lab, "7");
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0]["class"], "general");
    // Its file, and what the agent says of itself if that has come.
    assert!(rows[0]["streams_held"].as_u64() >= Some(1), "{rows:?}");
    assert_eq!(lab.count("MARKERONE"), 1);

    days.go_to(31);
    let lab = &mut days.lab;
    wait_until("what is due is gone", PATIENCE, || {
        lab.count("MARKERONE") == 0 && lab.count("stream:deletions certificate") == 1
    });
    assert_eq!(lab.count("MARKERTWO"), 1);
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
    assert!(!report.contains("; 0 entries deleted lawfully"), "{report}");
    let certificate = lab.search("stream:deletions certificate");
    let certificate: Value =
        serde_json::from_str(certificate[0]["text"].as_str().unwrap()).unwrap();
    assert_eq!(certificate["reason"]["expired"]["keep_days"], 30);
    assert_eq!(certificate["holds"], serde_json::json!(["case-12"]));
    assert!(certificate["bytes"].as_u64() > Some(0), "{certificate}");
    assert_eq!(certificate["inside_floor"], false);
    let names: Vec<&str> = certificate["streams"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stream| stream["agent"].as_str().unwrap())
        .collect();
    assert!(names.iter().all(|name| *name == "web1"), "{names:?}");

    // An old copy of the segments is noticed, and says nothing.
    lab.stop_server();
    let stranger = lab.data().join("archive/00000000000000ff.seg");
    std::fs::copy(&old, &stranger).unwrap();
    days.go_to(31);
    let lab = &mut days.lab;
    let (code, report) = lab.verify();
    assert_eq!(code, 3);
    assert!(report.contains("the catalogue does not know"), "{report}");
    assert_eq!(lab.count("MARKERONE"), 0);
    std::fs::remove_file(stranger).unwrap();
    assert_eq!(lab.verify().0, 0);

    // Released, it goes on the next day.
    ok(lab, &["policy", "release", "case-12", "--reason", "closed"]);
    days.go_to(32);
    let lab = &mut days.lab;
    wait_until("what was held is gone", PATIENCE, || {
        lab.count("MARKERTWO") == 0
    });
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
}

/// Deleting an agent is asked twice, refused under a hold, done by two persons, and leaves nothing but the
/// certificate.
#[test]
fn an_agent_is_deleted_by_two_persons_and_not_while_it_is_held() {
    let Some(mut days) = Days::start("delete-agent") else {
        return;
    };
    ship_a_line(&mut days.lab, "web1", "MARKERONE of web1\n");
    ok(&days.lab, &["policy", "two-persons", "on"]);
    days.lab.write("second", b"another good password");
    let second = days.lab.dir.join("second").display().to_string();
    ok(
        &days.lab,
        &["user", "password", "second", "--password-file", &second],
    );
    // Accounts are persons when they are three days old.
    days.go_to(4);
    let lab = &mut days.lab;
    ok(lab, &["policy", "hold", "case-1", "--reason", "court"]);
    let delete = ["agent", "delete", "web1", "--reason", "customer left"];
    let held = lab.server(&delete);
    assert_eq!(held.status.code(), Some(4));
    assert!(text(&held.stderr).contains("case-1"));
    ok(lab, &["policy", "release", "case-1", "--reason", "closed"]);

    let told = text(&lab.server(&delete).stdout);
    assert!(told.contains("Nothing was deleted"), "{told}");
    let word = told.split_whitespace().last().unwrap().to_owned();
    let delete = [&delete[..], &["--confirm", &word]].concat();
    let first = lab.server(&delete);
    assert_eq!(first.status.code(), Some(4));
    assert!(text(&first.stderr).contains("two persons"));
    assert_eq!(lab.server(&delete).status.code(), Some(4));
    assert_eq!(lab.count("MARKERONE"), 1);
    let password = lab.dir.join("password").display().to_string();
    let admin = ["--user", "admin", "--password-file", &password];
    let person = ["--user", "second", "--password-file", &second];
    let wrong = ["--user", "nobody", "--password-file", &second];
    let nobody = lab.server(&[&delete[..], &wrong].concat());
    assert_eq!(nobody.status.code(), Some(4));
    // The local command and one account are not two persons, however often they say it, and time is none either.
    for _ in 0..2 {
        let one = lab.server(&[&delete[..], &person].concat());
        assert_eq!(one.status.code(), Some(4), "{}", text(&one.stderr));
    }
    assert_eq!(lab.count("MARKERONE"), 1);
    days.go_to(8);
    let lab = &mut days.lab;
    assert_eq!(lab.count("MARKERONE"), 1);
    // The second person's word stands, though the server dies over it.
    lab.stop_server();
    lab.spawn_server("server: act agreed");
    lab.wait_for_socket();
    assert!(!lab.server(&[&delete[..], &admin].concat()).status.success());
    lab.wait_for_server_end(PATIENCE);
    lab.start_server();
    wait_until("the agent is gone", PATIENCE, || {
        lab.count("stream:deletions certificate") > 0
    });
    wait_until("its name is, too", PATIENCE, || {
        text(&lab.server(&["policy", "pending"]).stdout).contains("nothing waits")
    });

    assert_eq!(lab.count("MARKERONE"), 0);
    let agents = text(&lab.server(&["agent", "list"]).stdout);
    assert!(!agents.contains("web1"), "{agents}");
    let found = lab.search("stream:deletions certificate");
    let reasons: Vec<&str> = found
        .iter()
        .map(|entry| entry["text"].as_str().unwrap())
        .collect();
    assert!(!reasons.is_empty() && reasons.iter().all(|text| text.contains("customer left")));
    assert!(
        reasons[0].contains("local command and second and admin"),
        "{reasons:?}"
    );
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
    // The name is free again.
    lab.stop_server();
    lab.start_server();
    let _token = lab.token("web1", lab.sl);
    assert_eq!(lab.verify().0, 0);
}

/// A copy of the longest segment there is.
fn copy_of(lab: &Lab) -> PathBuf {
    let files = std::fs::read_dir(lab.data().join("archive")).unwrap();
    let longest = files
        .flatten()
        .max_by_key(|file| file.metadata().unwrap().len())
        .unwrap();
    let copy = lab.dir.join("old-segment");
    let copied = Command::new("cp").arg(longest.path()).arg(&copy).status();
    assert!(copied.unwrap().success());
    copy
}

fn preview(lab: &Lab, days: &str) -> Vec<Value> {
    let output = ok(lab, &["policy", "preview", "--days", days, "--json"]);
    serde_json::from_slice(&output.stdout).unwrap()
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
