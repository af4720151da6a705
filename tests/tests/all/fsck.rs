//! A catalogue that is damaged or gone is made again from its copies and the segments.

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use scrinium_tests::corpus::Corpus;
use scrinium_tests::lab::{Lab, text};
use scrinium_tests::wait_until;
use scrinium_tests::writer::append;

#[test]
fn a_damaged_catalogue_is_made_again_and_agents_go_on() {
    let mut lab = Lab::start("fsck");
    lab.add_agent("web1", lab.sl, "");
    lab.start_agent("web1");
    let log = lab.log("app.log");
    let mut written = Vec::new();
    let mut is_older = false;
    let mut write = |lines: u64| {
        let mut more = Vec::new();
        Corpus::new().lines(lines, &mut more);
        append(&log).write_all(&more).unwrap();
        written.extend_from_slice(&more);
        written.clone()
    };
    for round in 0..4 {
        let expected = write(8000);
        lab.wait_for_bytes("web1", &log, expected.len(), PATIENCE);
        if round == 1 {
            assert!(lab.server(&["compact"]).status.success());
        }
        let copy = lab.data().join("catalogue.copy");
        let quiet = || {
            let metadata = std::fs::metadata(&copy).ok();
            metadata.and_then(|metadata| metadata.modified().ok()?.elapsed().ok())
        };
        wait_until("the copy has caught up", PATIENCE, || {
            quiet().is_some_and(|quiet| quiet > Duration::from_secs(3))
        });
        // Some of it is in a log that is not sealed, and the server died.
        lab.kill_server();
        let whole = lab.server(&["fsck"]);
        assert!(whole.status.success(), "{}", text(&whole.stdout));
        match round {
            0 => remove(&lab, "catalogue.db"),
            1 => spoil(&lab.data().join("catalogue.db")),
            2 => remove(&lab, "catalogue.db-wal"),
            _ => {
                remove(&lab, "catalogue.db");
                remove(&lab, "catalogue.db-wal");
            }
        }
        if round == 1 {
            let damaged = lab.server(&["fsck"]);
            assert_eq!(damaged.status.code(), Some(3), "{}", text(&damaged.stdout));
            assert!(text(&damaged.stdout).contains("fsck --rebuild"));
        }
        let rebuilt = lab.server(&["fsck", "--rebuild"]);
        assert!(
            rebuilt.status.success(),
            "{}{}",
            text(&rebuilt.stdout),
            text(&rebuilt.stderr)
        );
        // Of a live catalogue the copy is a second behind at most; what it misses is said, and by every verification.
        let said = text(&rebuilt.stderr);
        assert!(said.is_empty() || said.contains("writes older"), "{said}");
        is_older |= !said.is_empty();
        lab.start_server();
        let (code, report) = lab.verify();
        assert_eq!(code == 3, is_older, "{report}");
        assert!(lab.export("web1", &log) == expected);
        lab.wait_connected("web1");
    }
    let expected = write(1000);
    lab.wait_for_bytes("web1", &log, expected.len(), PATIENCE);
    wait_until("all of it is there", PATIENCE, || {
        lab.export("web1", &log) == expected
    });
}

/// Older copies of the catalogue, and no word of what was acknowledged: what a rebuild cannot know is said for good.
#[test]
fn a_catalogue_made_again_from_older_copies_is_not_whole() {
    let mut lab = Lab::start("older");
    lab.stop_server();
    let copied = lab.data().join("catalogue.copy");
    let early = std::fs::read(&copied).unwrap();
    lab.start_server();
    let hold = [
        "policy", "hold", "case-1", "--reason", "kept", "--agent", "web1",
    ];
    assert!(lab.server(&hold).status.success());
    lab.stop_server();
    let left = lab.dir.join("left");
    copy(&lab.data(), &left);
    for acked in [true, false] {
        std::fs::remove_dir_all(lab.data()).unwrap();
        copy(&left, &lab.data());
        remove(&lab, "catalogue.db");
        if acked {
            scrinium_segment::durable::write_file(&copied, &early).unwrap();
        } else {
            std::fs::remove_dir_all(lab.data().join("acked")).unwrap();
        }
        let rebuilt = lab.server(&["fsck", "--rebuild"]);
        assert!(rebuilt.status.success(), "{}", text(&rebuilt.stderr));
        for _ in 0..2 {
            let (code, said) = lab.verify();
            let problem = if acked {
                "writes older"
            } else {
                "how far the log"
            };
            assert!(code == 3 && said.contains(problem), "{said}");
        }
        // What was done to the stopped volume cannot be hidden either.
        for file in ["rest", "acts.pending"] {
            remove(&lab, file);
        }
        let (code, said) = lab.verify();
        assert_eq!(code, 3, "{said}");
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status();
    assert!(copied.unwrap().success());
}

fn remove(lab: &Lab, file: &str) {
    let _absent = std::fs::remove_file(lab.data().join(file));
}

/// Alters every page of a file but the first.
fn spoil(path: &PathBuf) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    for at in (4096 + 100..len).step_by(1000) {
        file.write_all_at(b"spoilt", at).unwrap();
    }
}

const PATIENCE: Duration = Duration::from_secs(60);
