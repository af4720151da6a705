//! The second container: what operations may no longer read takes the security officer's key, a purpose, and
//! has an end.

use std::process::Output;
use std::time::Duration;

use age::secrecy::ExposeSecret as _;
use scrinium_tests::console::Console;
use scrinium_tests::days::{Days, ship_a_line};
use scrinium_tests::lab::{Lab, PASSWORD, text};
use scrinium_tests::{has_tool, wait_until};

#[test]
fn after_three_months_only_the_officer_reads_for_a_purpose_and_a_while() {
    if !has_tool("curl") {
        return;
    }
    let Some(mut days) = Days::start("container") else {
        return;
    };
    let lab = &mut days.lab;
    let officer = age::x25519::Identity::generate();
    let somebody = age::x25519::Identity::generate();
    for (name, identity) in [("officer.key", &officer), ("somebody.key", &somebody)] {
        let secret = identity.to_string();
        lab.write(name, secret.expose_secret().as_bytes());
    }
    let recipient = officer.to_public().to_string();
    let wrong = lab.server(&["policy", "officer", "--recipient", "age1wrong"]);
    assert!(text(&wrong.stderr).contains("age recipient"));
    ok(lab, &["policy", "officer", "--recipient", &recipient]);
    ship_a_line(lab, "web1", "MARKEROLD of web1\n");
    let first_day = day_of(lab);
    let log = lab.dir.join("logs-web1/app.log");
    let log = log.to_str().unwrap().to_owned();

    days.go_to(90);
    assert_eq!(days.lab.count("MARKEROLD"), 1);
    days.go_to(91);
    let lab = &mut days.lab;
    wait_until("the day is in the second container", PATIENCE, || {
        lab.count("MARKEROLD") == 0
    });

    // Operations, and the server with all its keys, get nothing by any way.
    let search = lab.server(&["search", "MARKEROLD"]);
    assert_eq!(text(&search.stdout), "");
    assert!(text(&search.stderr).contains("second container"));
    let export = ["export", "--agent", "web1", "--path", &log, "--format"];
    for format in ["raw", "package"] {
        let out = lab.dir.join(format!("export-{format}"));
        let out = out.to_str().unwrap();
        let exported = lab.server(&[&export[..], &[format, "--out", out]].concat());
        assert!(!exported.status.success());
        assert!(!text(&exported.stdout).contains("MARKEROLD"));
    }
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
    assert!(!report.contains("; 0 entries in the second"), "{report}");
    let (target, keys) = (lab.dir.join("target"), lab.dir.join("safe/keys"));
    std::fs::create_dir_all(lab.dir.join("safe")).unwrap();
    let (target, keys) = (target.to_str().unwrap(), keys.to_str().unwrap());
    ok(lab, &["backup", "create", "--to", target, "--keys", keys]);
    lab.stop_server();
    let gone = std::process::Command::new("mv")
        .arg(lab.data())
        .arg(lab.dir.join("gone"))
        .status();
    assert!(gone.unwrap().success());
    let mut restore = vec!["backup", "restore", "--from", target, "--keys", keys];
    for share in &lab.shares {
        restore.extend(["--share", share]);
    }
    ok(lab, &restore);
    days.go_to(91);
    let lab = &mut days.lab;
    assert_eq!(lab.count("MARKEROLD"), 0);

    let session = Console::sign_in(lab, PASSWORD);
    let by_the_api = |opening: &str| {
        let found = session.get(&format!("/api/v1/search?range=all&q=MARKEROLD{opening}"));
        let found: serde_json::Value = serde_json::from_str(&found).unwrap();
        found["entries"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(by_the_api(""), 0);
    let wrong = session.get("/api/v1/search?range=all&q=MARKEROLD&opening=guessed");
    assert!(wrong.contains("no such opening"), "{wrong}");
    let of_it = log.replace('/', "%2F");
    for path in [
        "/search?range=all&q=MARKEROLD".to_owned(),
        "/search/raw?range=all&q=MARKEROLD".to_owned(),
        "/export?q=MARKEROLD".to_owned(),
        format!("/export?agent=web1&path={of_it}"),
    ] {
        let answer = session.get(&path);
        assert!(!answer.contains("MARKEROLD of"), "{path}");
    }

    // Whoever is not the officer opens nothing.
    let open = |identity: &str, purpose: &str| -> Output {
        let identity = lab.dir.join(identity);
        let words = [
            "container",
            "open",
            "--identity",
            identity.to_str().unwrap(),
            "--purpose",
            purpose,
            "--from",
            &first_day,
            "--to",
            &first_day,
        ];
        lab.server(&words)
    };
    let refused = open("somebody.key", "curiosity");
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("not the officer"));
    assert!(!open("officer.key", " ").status.success());

    // The officer does, for a purpose, and every use is written down.
    let opened = open("officer.key", "requisition 12");
    assert!(opened.status.success(), "{}", text(&opened.stderr));
    let word = text(&opened.stdout).trim().to_owned();
    let found = ok(lab, &["search", "MARKEROLD", "--opening", &word]);
    assert_eq!(text(&found.stdout), "MARKEROLD of web1\n");
    let raw = ["raw", "--out", "-", "--opening", &word];
    let exported = ok(lab, &[&export[..], &raw].concat());
    assert_eq!(text(&exported.stdout), "MARKEROLD of web1\n");
    assert_eq!(lab.count("MARKEROLD"), 0, "nobody else");
    assert_eq!(by_the_api(&format!("&opening={word}")), 1);
    assert_eq!(by_the_api(""), 0);
    let package = session.get(&format!("/export?q=MARKEROLD&opening={word}"));
    assert!(package.contains("MARKEROLD of web1"));
    let said = |action: &str| {
        let entries = lab.search("stream:audit \"requisition 12\"");
        let action = format!("\"action\":\"{action}\"");
        let said = entries.iter().filter_map(|entry| entry["text"].as_str());
        said.filter(|text| text.contains(&action) && text.contains("\"purpose\""))
            .count()
    };
    assert_eq!((said("container opened"), said("export")), (1, 2));
    assert_eq!(said("search"), 2);

    // Closed, or over, it is closed.
    ok(lab, &["container", "close", &word]);
    let closed = lab.server(&["search", "MARKEROLD", "--opening", &word]);
    assert!(text(&closed.stderr).contains("no such opening"));
    let opened = open("officer.key", "requisition 13");
    let word = text(&opened.stdout).trim().to_owned();
    ok(lab, &["search", "MARKEROLD", "--opening", &word]);
    days.pass_hours(91, 5);
    let lab = &mut days.lab;
    let over = lab.server(&["search", "MARKEROLD", "--opening", &word]);
    assert!(!over.status.success() && text(&over.stdout).is_empty());

    // It is forgotten in time all the same.
    days.go_to(366);
    let lab = &mut days.lab;
    wait_until("what is due is gone", PATIENCE, || {
        lab.count("stream:deletions certificate") >= 1
    });
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
    assert!(report.contains("; 0 entries in the second"), "{report}");
}

/// The day of receipt of what the laboratory has, as the policy names it.
fn day_of(lab: &Lab) -> String {
    let entry = &lab.search("MARKEROLD")[0];
    let received = entry["received"].as_str().unwrap();
    received.split('T').next().unwrap().to_owned()
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
