//! Backup while the server runs, restoring it elsewhere, and what an old one no longer says.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use scrinium_tests::corpus::Corpus;
use scrinium_tests::days::{Days, ship_a_line};
use scrinium_tests::lab::{Lab, text};
use scrinium_tests::wait_until;
use scrinium_tests::writer::append;
use serde_json::Value;

/// Incremental, encrypted, checked, and restored on another machine with two shares.
#[test]
fn a_backup_is_incremental_says_nothing_and_comes_back_with_two_shares() {
    let mut lab = Lab::start("backup");
    lab.add_agent("web1", lab.sl, "");
    lab.start_agent("web1");
    let log = lab.log("app.log");
    let mut written = Vec::new();
    Corpus::new().lines(20_000, &mut written);
    written.extend_from_slice(b"MARKERONE\n");
    std::io::Write::write_all(&mut append(&log), &written).unwrap();
    lab.wait_for_bytes("web1", &log, written.len(), PATIENCE);
    let first = create(&lab);
    assert!(first["copied"].as_u64() > Some(2), "{first}");

    std::io::Write::write_all(&mut append(&log), b"MARKERTWO\n").unwrap();
    written.extend_from_slice(b"MARKERTWO\n");
    lab.wait_for_bytes("web1", &log, written.len(), PATIENCE);
    lab.stop_agent("web1");
    let second = create(&lab);
    let (copied, before) = (&second["copied_bytes"], &first["copied_bytes"]);
    assert!(copied.as_u64() < before.as_u64(), "{second} after {first}");
    assert!(second["objects"].as_u64() > second["copied"].as_u64());
    assert_eq!(Lab::holds(&target(&lab), b"MARKER"), None);
    assert_eq!(Lab::holds(&lab.dir.join("safe"), b"MARKER"), None);
    assert_eq!(status(&lab)["last"]["verified_us"], 0);
    let checked = ask(&lab, "verify", "--from");
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    let said = status(&lab);
    let last = &said["last"];
    assert_eq!(
        (&last["generation"], &last["whole"]),
        (&2.into(), &true.into())
    );
    assert!(last["made_us"].as_u64() < last["verified_us"].as_u64());
    assert_eq!((&said["to"], &said["late"]), (&Value::Null, &false.into()));

    // A byte of it altered is named, and put back it is well again.
    let object = longest(&target(&lab).join("archive"));
    let name = object.file_name().unwrap().to_str().unwrap().to_owned();
    let good = std::fs::read(&object).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    overwrite(&object, &bad);
    let damaged = ask(&lab, "verify", "--from");
    assert_eq!(damaged.status.code(), Some(3));
    assert!(text(&damaged.stdout).contains(&name));
    assert_eq!(status(&lab)["last"]["whole"], false);
    overwrite(&object, &good);

    // The machine is gone; another one has the shares.
    lab.stop_server();
    mv(&lab.data(), &lab.dir.join("gone"));
    let no_shares = restore(&lab, &lab.shares[..1]);
    assert_eq!(no_shares.status.code(), Some(1));
    let restored = restore(&lab, &lab.shares);
    assert!(restored.status.success(), "{}", text(&restored.stderr));
    lab.start_server();
    assert!(lab.export("web1", &log) == written);
    assert_eq!(lab.count("MARKERTWO"), 1);
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
    let again = restore(&lab, &lab.shares);
    assert!(text(&again.stderr).contains("already holds a volume"));
}

/// What was deleted since a backup was made cannot be read from it any more.
#[test]
fn an_old_backup_says_nothing_of_what_was_deleted_since() {
    let Some(mut days) = Days::start("old-backup") else {
        return;
    };
    let lab = &mut days.lab;
    ship_a_line(lab, "web1", "MARKEROLD of web1\n");
    let kept = ["policy", "class", "general", "--keep-days", "30"];
    assert!(lab.server(&kept).status.success());
    create(lab);
    let old = lab.dir.join("old-target");
    copy(&target(lab), &old);

    days.go_to(20);
    let lab = &mut days.lab;
    ship_a_line(lab, "web2", "MARKERNEW of web2\n");
    days.go_to(31);
    let lab = &mut days.lab;
    wait_until("what is due is gone", PATIENCE, || {
        lab.count("MARKEROLD") == 0
    });
    create(lab);
    lab.stop_server();
    mv(&lab.data(), &lab.dir.join("gone"));

    // The old backup, and the keys file of today.
    mv(&target(lab), &lab.dir.join("new-target"));
    mv(&old, &target(lab));
    let restored = restore(lab, &lab.shares);
    assert!(restored.status.success(), "{}", text(&restored.stderr));
    assert!(text(&restored.stdout).contains("deleted since"));
    days.go_to(31);
    let lab = &mut days.lab;
    assert_eq!(lab.count("MARKEROLD"), 0);
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");

    // The new one has what is kept.
    lab.stop_server();
    mv(&lab.data(), &lab.dir.join("gone-too"));
    mv(&target(lab), &old);
    mv(&lab.dir.join("new-target"), &target(lab));
    let restored = restore(lab, &lab.shares);
    assert!(restored.status.success(), "{}", text(&restored.stderr));
    days.go_to(31);
    let lab = &mut days.lab;
    assert_eq!((lab.count("MARKEROLD"), lab.count("MARKERNEW")), (0, 1));
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
    assert_eq!(lab.count("stream:deletions certificate"), 1);
}

/// `kill -9` at every step of a backup: the one before stays whole, and the next one is made.
#[test]
fn a_server_that_dies_while_it_makes_a_backup_leaves_the_one_before() {
    let mut lab = Lab::start("backup-dies");
    ship_a_line(&mut lab, "web1", "MARKERONE of web1\n");
    create(&lab);
    for (n, fault) in [
        "server: object copied",
        "server: object copied#2",
        "server: object copied#3",
        "server: backup objects written",
        "server: backup keys written",
        "server: backup complete",
    ]
    .into_iter()
    .enumerate()
    {
        let agent = format!("agent{n}");
        ship_a_line(&mut lab, &agent, &format!("MARKER{n} of it\n"));
        lab.stop_server();
        lab.spawn_server(fault);
        lab.wait_for_socket();
        let died = ask(&lab, "create", "--to");
        assert!(!died.status.success(), "{fault}");
        lab.wait_for_server_end(PATIENCE);
        lab.start_server();
        let checked = ask(&lab, "verify", "--from");
        assert!(
            checked.status.success(),
            "{fault}: {}",
            text(&checked.stdout)
        );
        create(&lab);
        assert_eq!(lab.verify().0, 0, "{fault}");
    }
    lab.stop_server();
    mv(&lab.data(), &lab.dir.join("gone"));
    assert!(restore(&lab, &lab.shares).status.success());
    lab.start_server();
    for n in 0..6 {
        assert_eq!(lab.count(&format!("MARKER{n}")), 1);
    }
}

/// Who owns the directory of a backup laid links there: root removed what they led to, and wrote there.
#[test]
fn links_in_the_place_of_a_backup_lead_it_nowhere() {
    let mut lab = Lab::start("backup-links");
    ship_a_line(&mut lab, "web1", "MARKER of web1\n");
    let aim = lab.dir.join("aim");
    std::fs::create_dir_all(&aim).unwrap();
    let names = [
        "passwd",
        "id_rsa",
        "shadow-.0123456789abcdef",
        "0000000000000099.seg",
    ];
    for name in names {
        lab.write(&format!("aim/{name}"), b"root");
    }
    let whole = || {
        let mut there: Vec<_> = std::fs::read_dir(&aim)
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        there.sort();
        let mut names = names.map(std::ffi::OsString::from);
        names.sort();
        assert_eq!(there, names);
    };
    for part in ["archive", "evidence", "generations"] {
        let _none = std::fs::remove_dir_all(target(&lab));
        std::fs::create_dir_all(target(&lab)).unwrap();
        std::os::unix::fs::symlink(&aim, target(&lab).join(part)).unwrap();
        std::fs::create_dir_all(lab.dir.join("safe")).unwrap();
        for words in [&[][..], &["--anew"]] {
            let mut command = lab.server_command(&["backup", "create"]);
            command
                .arg("--to")
                .arg(target(&lab))
                .arg("--keys")
                .arg(lab.dir.join("safe/keys"));
            let done = command.args(words).output().unwrap();
            let said = text(&done.stderr);
            assert!(!done.status.success() && said.contains(part), "{said}");
            assert!(said.contains("is a link or no directory"), "{said}");
            whole();
        }
    }
    // What others lay beside the objects stays, links to files too.
    std::fs::remove_dir_all(target(&lab)).unwrap();
    std::fs::create_dir_all(target(&lab).join("archive")).unwrap();
    lab.write("target/archive/notes.txt", b"notes");
    std::os::unix::fs::symlink(aim.join("passwd"), target(&lab).join("archive/link")).unwrap();
    let mut command = lab.server_command(&["backup", "create", "--anew"]);
    command
        .arg("--to")
        .arg(target(&lab))
        .arg("--keys")
        .arg(lab.dir.join("safe/keys"));
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    whole();
    assert_eq!(
        std::fs::read(target(&lab).join("archive/notes.txt")).unwrap(),
        b"notes"
    );
    assert!(target(&lab).join("archive/link").is_symlink());
    assert_eq!(std::fs::read(aim.join("passwd")).unwrap(), b"root");
}

fn create(lab: &Lab) -> Value {
    std::fs::create_dir_all(lab.dir.join("safe")).unwrap();
    let made = lab
        .server_command(&["backup", "create", "--json"])
        .arg("--to")
        .arg(target(lab))
        .arg("--keys")
        .arg(lab.dir.join("safe/keys"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    serde_json::from_slice(&made.stdout).unwrap()
}

fn status(lab: &Lab) -> Value {
    let said = lab.server(&["backup", "status", "--json"]);
    assert!(said.status.success(), "{}", text(&said.stderr));
    serde_json::from_slice(&said.stdout).unwrap()
}

fn ask(lab: &Lab, what: &str, option: &str) -> Output {
    lab.server_command(&["backup", what])
        .arg(option)
        .arg(target(lab))
        .arg("--keys")
        .arg(lab.dir.join("safe/keys"))
        .output()
        .unwrap()
}

fn restore(lab: &Lab, shares: &[String]) -> Output {
    let mut command = lab.server_command(&["backup", "restore"]);
    command
        .arg("--from")
        .arg(target(lab))
        .arg("--keys")
        .arg(lab.dir.join("safe/keys"));
    for share in shares {
        command.args(["--share", share]);
    }
    command.output().unwrap()
}

fn target(lab: &Lab) -> PathBuf {
    lab.dir.join("target")
}

fn longest(dir: &Path) -> PathBuf {
    let files = std::fs::read_dir(dir).unwrap().flatten();
    let longest = files.max_by_key(|file| file.metadata().unwrap().len());
    longest.unwrap().path()
}

fn overwrite(path: &Path, bytes: &[u8]) {
    let mut file = std::fs::File::create(path).unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
}

fn mv(from: &Path, to: &Path) {
    assert!(
        Command::new("mv")
            .arg(from)
            .arg(to)
            .status()
            .unwrap()
            .success()
    );
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

const PATIENCE: Duration = Duration::from_secs(30);
