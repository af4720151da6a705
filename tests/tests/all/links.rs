//! Links to packages: for 31 days, counted and written down.

use std::time::Duration;

use scrinium_tests::console::Console;
use scrinium_tests::days::{Days, ship_a_line};
use scrinium_tests::lab::{Lab, PASSWORD, text};
use scrinium_tests::package::verify;
use scrinium_tests::{has_tool, wait_until};
use serde_json::Value;

/// From the command line; until day 31 whole, on day 32 gone; what was deleted meanwhile is not in it.
#[test]
fn a_link_lives_31_days_and_gives_what_is_still_there() {
    if !has_tool("curl") {
        return;
    }
    let Some(mut days) = Days::start("links") else {
        return;
    };
    let lab = &mut days.lab;
    ship_a_line(lab, "web1", "MARKEROLD of web1\n");
    let link = make(lab, &["--query", "MARKER*", "--authority", "Procura"]);
    assert_eq!(link["downloads"], 0);
    assert_eq!(link["subject"], "MARKER*");
    ship_a_line(lab, "web2", "MARKERLATE of web2\n");
    let path = link["path"].as_str().unwrap();

    // Whole, with what was there when it was made.
    let file = lab.dir.join("package.tar");
    let console = Console::sign_in(lab, PASSWORD);
    assert_eq!(console.download(path, &file), 200);
    let (code, said) = verify(&file, &[]);
    assert_eq!(code, Some(0), "{said}");
    let package = std::fs::read(&file).unwrap();
    assert!(text(&package).contains("MARKEROLD") && !text(&package).contains("MARKERLATE"));
    assert_eq!(console.download("/downloads/another", &file), 404);

    // Nobody who is not signed in.
    let stranger = Console::sign_in(lab, "wrong");
    assert_ne!(stranger.download(path, &file), 200);

    // What is deleted is in no download.
    let kept = ["policy", "class", "general", "--keep-days", "20"];
    assert!(lab.server(&kept).status.success());
    days.go_to(30);
    let lab = &days.lab;
    wait_until("what is due is gone", Duration::from_secs(30), || {
        lab.count("MARKEROLD") == 0
    });
    let console = Console::sign_in(lab, PASSWORD);
    assert_eq!(console.download(path, &file), 200);
    assert!(!text(&std::fs::read(&file).unwrap()).contains("MARKEROLD"));

    // A day later it is over.
    days.go_to(32);
    let lab = &days.lab;
    let console = Console::sign_in(lab, PASSWORD);
    assert_eq!(console.download(path, &file), 410);
    let listed = list(lab);
    assert_eq!(listed[0]["over"], true);
    assert_eq!(listed[0]["downloads"], 2);
    assert_eq!(acts(lab, "link used"), 2);
    assert_eq!(lab.verify().0, 0);
}

/// From the console, with its form; ended by hand before its time.
#[test]
fn a_link_is_made_and_ended_on_the_console() {
    if !has_tool("curl") {
        return;
    }
    let mut lab = Lab::start("links-console");
    ship_a_line(&mut lab, "web1", "MARKERONE of web1\n");
    let console = Console::sign_in(&lab, PASSWORD);
    assert!(console.get("/downloads").contains("There are no links yet"));
    let wrong = [("q", "MARKERONE"), ("recipient", "age1wrong")];
    let (status, said) = console.post("/downloads", "/downloads", &wrong);
    assert!(status == 422 && said.contains("recipient"), "{said}");
    let wrong = [("q", "MARKERONE"), ("from", "2026-13-01")];
    let (status, said) = console.post("/downloads", "/downloads", &wrong);
    assert!(status == 422 && said.contains("2026-13-01"), "{said}");
    let wanted = [("q", "MARKERONE"), ("authority", "Garante")];
    assert_eq!(console.post("/downloads", "/downloads", &wanted).0, 303);
    let page = console.get("/downloads");
    assert!(page.contains("Garante") && page.contains("31 days") && page.contains("MARKERONE"));
    let link = &list(&lab)[0];
    assert_eq!(link["by"], "admin");
    let path = link["path"].as_str().unwrap();
    let file = lab.dir.join("package.tar");
    assert_eq!(console.download(path, &file), 200);
    assert_eq!(verify(&file, &[]).0, Some(0));
    let end = format!("{path}/end");
    assert_eq!(console.post("/downloads", &end, &[]).0, 303);
    assert_eq!(console.download(path, &file), 410);
    assert_eq!(acts(&lab, "link ended"), 1);
    let unknown = lab.server(&["link", "end", "another"]);
    assert!(text(&unknown.stderr).contains("there is no such link"));
}

/// How often the audit trail has an act; searches for it are acts too.
fn acts(lab: &Lab, action: &str) -> usize {
    let entries = lab.search("stream:audit link");
    let action = format!("\"action\":\"{action}\"");
    let has_it = |entry: &&Value| entry["text"].as_str().unwrap().contains(&action);
    entries.iter().filter(has_it).count()
}

fn make(lab: &Lab, words: &[&str]) -> Value {
    let made = lab.server(&[&["export", "--link"], words].concat());
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert!(text(&made.stdout).starts_with("/downloads/"));
    list(lab)[0].clone()
}

fn list(lab: &Lab) -> Value {
    let listed = lab.server(&["link", "list", "--json"]);
    assert!(listed.status.success(), "{}", text(&listed.stderr));
    serde_json::from_slice(&listed.stdout).unwrap()
}
