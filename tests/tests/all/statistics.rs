//! What is left in numbers of days whose entries are deleted.

use std::time::Duration;

use scrinium_tests::days::{Days, ship_a_line};
use scrinium_tests::lab::text;
use scrinium_tests::wait_until;
use serde_json::Value;

/// Counted once, of enough machines, naming nobody; there when the entries are gone for long.
#[test]
fn anonymous_numbers_outlive_the_entries_they_were_counted_from() {
    let Some(mut days) = Days::start("statistics") else {
        return;
    };
    for n in 1..=5 {
        let line = format!("MARKER{n} 192.0.2.{n} signed in\n");
        ship_a_line(&mut days.lab, &format!("workstation{n}"), &line);
    }
    for day in [2, 3] {
        days.go_to(day);
        wait_until("the day is counted", PATIENCE, || {
            days.lab.count(STATISTICS) == 1
        });
    }
    let entry = &days.lab.search(STATISTICS)[0];
    let said = entry["text"].as_str().unwrap();
    for name in ["workstation", "MARKER", "192.0.2", "logs", "app.log"] {
        assert!(!said.contains(name), "{name} in {said}");
    }
    let said: Value = serde_json::from_str(said).unwrap();
    let [cell] = &said["cells"].as_array().unwrap()[..] else {
        panic!("{said}");
    };
    assert_eq!(cell["kind"], "file");
    assert_eq!(
        (&cell["entries"], &cell["machines"]),
        (&5.into(), &5.into())
    );
    assert_eq!(said["left_out"], false);

    days.go_to(400);
    let lab = &days.lab;
    wait_until("what is due is gone", PATIENCE, || {
        lab.count("MARKER*") == 0
    });
    assert_eq!(lab.count(STATISTICS), 1);
    assert_eq!(lab.verify().0, 0);

    let rule = b"[[rule]]\nclass = \"statistics\"\nstream = \"**\"\n";
    lab.write("rules.toml", rule);
    let rules = lab.dir.join("rules.toml");
    let refused = lab.server(&["policy", "rules", "--file", rules.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(said.contains("what the server itself writes"), "{said}");
}

const STATISTICS: &str = "agent:server stream:statistics";
const PATIENCE: Duration = Duration::from_secs(60);
