//! Every file of a stopped volume, gone, cut, put back or changed: nothing that was acknowledged vanishes unnoticed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use scrinium_tests::lab::{Lab, text};
use scrinium_tests::writer::append;
use scrinium_tests::{pause, wait_until};

/// The files that `docs/SEGMENT.md` says hold no evidence: they are made again, or speak of the others.
const CACHES: [&str; 8] = [
    "keys.copy",
    "catalogue.copy",
    "catalogue.count",
    "catalogue.db-shm",
    "evidence/memory",
    "rest",
    "lock",
    "server.toml",
];

#[test]
fn no_file_with_evidence_of_a_cleanly_stopped_volume_is_whole_when_it_was_touched() {
    let mut lab = Lab::start("stopped");
    let early = live(&mut lab);
    lab.stop_server();
    table(&lab, &early, false);
}

#[test]
fn no_file_with_evidence_of_a_killed_server_is_whole_when_it_was_touched() {
    let mut lab = Lab::start("killed");
    let early = live(&mut lab);
    lab.kill_server();
    table(&lab, &early, true);
}

/// The log goes while the server is down; what was in it is named, by the volume itself and by the agent's receipts.
#[test]
fn a_log_that_was_acknowledged_and_is_gone_is_named_with_its_streams_and_an_alarm() {
    let mut lab = Lab::start("gone");
    lab.add_agent("web1", lab.sl, "");
    lab.start_agent("web1");
    write(&lab, 1);
    lab.stop_server();
    for entry in std::fs::read_dir(lab.data().join("log")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let (code, said) = verify(&lab.data());
    let named = said.lines().any(|line| {
        line.starts_with("DAMAGED")
            && line.contains("app.log")
            && line.contains("sequence 0 to 199")
    });
    assert!(
        code == 3 && named && said.contains(".log agent ? stream ?"),
        "{said}"
    );
    lab.start_server();
    wait_until(
        "an alarm says that the log is gone",
        Duration::from_secs(20),
        || {
            let alarms = lab.alarms();
            let mut texts = alarms.iter().map(|alarm| alarm["text"].as_str().unwrap());
            texts.any(|text| text.contains(".log: it is"))
        },
    );
    wait_until(
        "the agent shows its receipt",
        Duration::from_secs(20),
        || {
            let alarms = lab.alarms();
            let mut texts = alarms.iter().map(|alarm| alarm["text"].as_str().unwrap());
            texts.any(|text| text.contains("app.log up to sequence 199"))
        },
    );
    // The agent sends again what its file still has; that it was gone stays said.
    let log = lab.log("app.log");
    let len = std::fs::read(&log).unwrap().len();
    lab.wait_for_bytes("web1", &log, len, Duration::from_secs(20));
    let (code, said) = lab.verify();
    assert!(code == 3 && said.contains("it is gone"), "{said}");
}

/// Files that only grow are cut to the same moment; then the server goes on, and its own streams with it.
#[test]
fn log_and_acknowledgements_cut_together_are_named_for_good() {
    let mut lab = Lab::start("cut");
    lab.add_agent("web1", lab.sl, "");
    lab.start_agent("web1");
    write(&lab, 1);
    lab.kill_agent("web1");
    lab.kill_server();
    let left = lab.dir.join("left");
    copy(&lab.data(), &left);
    for keep in [88, 300, 1000] {
        std::fs::remove_dir_all(lab.data()).unwrap();
        copy(&left, &lab.data());
        for dir in ["log", "acked"] {
            for entry in std::fs::read_dir(lab.data().join(dir)).unwrap().flatten() {
                let path = entry.path();
                if path.extension().is_some() && entry.metadata().unwrap().len() > keep {
                    Case::Cut(keep).make(&path, &path);
                }
            }
        }
        for _ in 0..2 {
            lab.start_server();
            lab.stop_server();
            let (code, said) = verify(&lab.data());
            assert!(code == 3 && said.contains("it was cut"), "{keep}: {said}");
        }
    }
}

/// Whoever writes SQL takes rows away, and what counts them.
#[test]
fn rows_taken_out_of_the_catalogue_with_what_counts_them_are_missed() {
    if !scrinium_tests::has_tool("python3") {
        return;
    }
    let mut lab = Lab::start("sql");
    let hold = [
        "policy", "hold", "case-1", "--reason", "kept", "--agent", "web1",
    ];
    assert!(lab.server(&hold).status.success());
    lab.stop_server();
    let left = lab.dir.join("left");
    copy(&lab.data(), &left);
    for sql in [
        "delete from item where kind = 15",
        "delete from item where kind in (15, 30); drop table whole",
        "delete from item where kind = 15; delete from whole",
    ] {
        std::fs::remove_dir_all(lab.data()).unwrap();
        copy(&left, &lab.data());
        edit(&lab, sql);
        for file in ["rest", "catalogue.count"] {
            std::fs::remove_file(lab.data().join(file)).unwrap();
        }
        // What looks at the volume in between does not make it right.
        for _ in 0..2 {
            drop(lab.server(&["volume", "show"]));
            drop(lab.server(&["fsck"]));
            let (code, said) = verify(&lab.data());
            assert!(code != 0 && said.contains("catalogue"), "{sql}: {said}");
        }
    }
}

/// Everything that speaks of the entries goes together: files, and the rows that know of them.
#[test]
fn a_volume_that_was_emptied_with_every_row_that_knows_of_it_is_not_whole() {
    if !scrinium_tests::has_tool("python3") {
        return;
    }
    let mut lab = Lab::start("emptied");
    lab.add_agent("web1", lab.sl, "");
    lab.start_agent("web1");
    write(&lab, 1);
    lab.kill_agent("web1");
    lab.stop_server();
    for dir in ["acked", "log", "evidence", "archive"] {
        for entry in std::fs::read_dir(lab.data().join(dir)).unwrap().flatten() {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    for file in ["rest", "catalogue.count"] {
        std::fs::remove_file(lab.data().join(file)).unwrap();
    }
    let kinds = "30,31,10,32,34,42,5,6,8,9,12,11,16,17,22";
    edit(
        &lab,
        &format!("delete from whole; delete from item where kind in ({kinds})"),
    );
    for _ in 0..2 {
        let (code, said) = verify(&lab.data());
        assert!(code == 3 && said.contains("sum of its rows"), "{said}");
        lab.start_server();
        lab.stop_server();
    }
    let checked = lab.server(&["fsck"]);
    assert_eq!(checked.status.code(), Some(3), "{}", text(&checked.stdout));
}

/// What a stop wrote down is missed, and a start that fails takes nothing of it away.
#[test]
fn what_the_stop_wrote_down_is_missed_and_kept_by_a_start_that_fails() {
    let mut lab = Lab::start("rest");
    lab.stop_server();
    let left = lab.dir.join("left");
    copy(&lab.data(), &left);
    let rest = lab.data().join("rest");
    std::fs::remove_file(&rest).unwrap();
    for _ in 0..2 {
        let (code, said) = verify(&lab.data());
        assert!(
            code == 3 && said.contains("rest") && said.contains("is gone"),
            "{said}"
        );
    }
    std::fs::remove_dir_all(lab.data()).unwrap();
    copy(&left, &lab.data());
    let acked = std::fs::read_dir(lab.data().join("acked")).unwrap();
    let acked = acked.flatten().map(|entry| entry.path());
    let acked = acked
        .filter(|path| path.extension().is_some())
        .max()
        .unwrap();
    let len = std::fs::metadata(&acked).unwrap().len();
    Case::Byte(len - 1).make(&acked, &acked);
    let (catalogue, away) = (lab.data().join("catalogue.db"), lab.dir.join("away.db"));
    scrinium_segment::durable::rename(&catalogue, &away).unwrap();
    let (code, said) = verify(&lab.data());
    assert!(code == 1 && rest.try_exists().unwrap(), "{said}");
    scrinium_segment::durable::rename(&away, &catalogue).unwrap();
    let (code, said) = verify(&lab.data());
    assert_eq!(code, 3, "{said}");
}

/// The keys that sign intervals go: another chain would follow, and what was before it could be another history.
#[test]
fn keys_of_intervals_that_are_gone_are_named_for_good() {
    let mut lab = Lab::start("chain");
    assert!(lab.server(&["search", "nothing"]).status.success());
    lab.stop_server();
    std::fs::remove_file(lab.data().join("evidence/interval.key")).unwrap();
    for _ in 0..3 {
        let (code, said) = verify(&lab.data());
        assert!(code == 3 && said.contains("interval"), "{said}");
    }
    // What is known to be wrong is said of a range as well.
    let range = lab.server(&["verify", "--from", "2026-01-01"]);
    let said = text(&range.stdout);
    assert!(
        range.status.code() == Some(3) && said.contains("in the range"),
        "{said}"
    );
}

/// A tail that was written and never acknowledged is no loss.
#[test]
fn a_torn_tail_that_was_never_acknowledged_is_no_loss() {
    let mut lab = Lab::start("torn");
    lab.add_agent("web1", lab.sl, "");
    lab.start_agent("web1");
    write(&lab, 1);
    lab.kill_server();
    let log = std::fs::read_dir(lab.data().join("log")).unwrap();
    let log = log.flatten().map(|entry| entry.path()).max().unwrap();
    let mut tail = std::fs::File::options().append(true).open(&log).unwrap();
    std::io::Write::write_all(&mut tail, &[0, 0, 1, 0, 1, 7, 7, 7]).unwrap();
    let (code, said) = verify(&lab.data());
    assert_eq!(code, 0, "{said}");
}

/// Changes the catalogue of a stopped server as whoever writes SQL does.
fn edit(lab: &Lab, sql: &str) {
    let edit = format!(
        "import sqlite3\nc = sqlite3.connect({:?})\nc.executescript({sql:?})\nc.commit()\nc.close()",
        lab.data().join("catalogue.db").display().to_string()
    );
    let edited = Command::new("python3").args(["-c", &edit]).status();
    assert!(edited.unwrap().success());
}

/// Two logs sealed, one in the middle; what it was like before the last of it.
fn live(lab: &mut Lab) -> PathBuf {
    lab.add_agent("web1", lab.sl, "");
    lab.start_agent("web1");
    write(lab, 1);
    assert!(lab.server(&["compact"]).status.success());
    write(lab, 2);
    let early = lab.dir.join("early");
    copy(&lab.data(), &early);
    assert!(lab.server(&["compact"]).status.success());
    for round in 3..6 {
        write(lab, round);
        // What says how far the log is acknowledged is synced within a second, and the next entries say so.
        pause(Duration::from_millis(1100));
    }
    let enrolled = lab.server(&["agent", "enroll", "late"]);
    assert!(enrolled.status.success());
    write(lab, 6);
    lab.kill_agent("web1");
    early
}

fn write(lab: &Lab, round: u32) {
    let log = lab.log("app.log");
    let lines: String = (0..200)
        .map(|i| format!("round {round} line {i} of what was acknowledged\n"))
        .collect();
    std::io::Write::write_all(&mut append(&log), lines.as_bytes()).unwrap();
    lab.wait_for_bytes(
        "web1",
        &log,
        lines.len() * round as usize,
        Duration::from_secs(20),
    );
}

fn table(lab: &Lab, early: &Path, is_killed: bool) {
    let stopped = lab.dir.join("stopped");
    let work = lab.dir.join("server");
    let moved = Command::new("mv").arg(&work).arg(&stopped).status();
    assert!(moved.unwrap().success());
    copy(&stopped, &work);
    let (code, said) = verify(&work);
    assert!(code == 0 && said.contains("the archive is whole"), "{said}");
    let files = files(&stopped, &stopped);
    for kind in [
        ".log",
        ".seg",
        ".evd",
        ".ack",
        ".db",
        "checkpoint",
        "volume.json",
    ] {
        assert!(
            files.iter().any(|file| file.ends_with(kind)),
            "{kind}: {files:?}"
        );
    }
    let mut cases = Vec::new();
    for file in &files {
        let path = stopped.join(file);
        let len = std::fs::metadata(&path).unwrap().len();
        let is_put_back = std::fs::read(early.join(file))
            .is_ok_and(|before| before != std::fs::read(&path).unwrap());
        cases.push((file, Case::Removed));
        if len > 0 {
            cases.push((file, Case::Cut(0)));
            cases.push((file, Case::Byte(len / 2)));
        }
        if len > 4 {
            cases.extend((1..4).map(|quarter| (file, Case::Cut(len * quarter / 4))));
            cases.push((file, Case::Byte(len - 1)));
        }
        if is_put_back {
            cases.push((file, Case::PutBack));
        }
    }
    let seen = Mutex::new(BTreeSet::new());
    let wrong = Mutex::new(Vec::new());
    let next = Mutex::new(cases.iter());
    std::thread::scope(|scope| {
        for worker in 0..3 {
            let (next, seen, wrong, stopped) = (&next, &seen, &wrong, &stopped);
            let dir = lab.dir.join(format!("touched-{worker}"));
            scope.spawn(move || {
                loop {
                    let Some((file, case)) = next.lock().unwrap().next() else {
                        return;
                    };
                    drop(std::fs::remove_dir_all(&dir));
                    copy(stopped, &dir);
                    case.make(&dir.join(file), &early.join(file));
                    let (code, said) = verify(&dir);
                    let is_whole = code == 0 || said.contains("the archive is whole");
                    // A copy that was being written when the server was killed is one too.
                    if CACHES.contains(&file.as_str()) || file.ends_with(".copy") {
                        if !is_whole && *file != "catalogue.count" && *file != "rest" {
                            wrong
                                .lock()
                                .unwrap()
                                .push(format!("{file} {case:?}: {said}"));
                        }
                    } else if is_whole && !(is_killed && case.is_superseded(file, stopped)) {
                        wrong
                            .lock()
                            .unwrap()
                            .push(format!("{file} {case:?}: {said}"));
                    } else {
                        seen.lock()
                            .unwrap()
                            .insert(format!("{case:?}").split('(').next().unwrap().to_owned());
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    // Each way of touching was seen on something.
    assert_eq!(seen.into_inner().unwrap().len(), 4);
}

#[derive(Clone, Copy, Debug)]
enum Case {
    Removed,
    Cut(u64),
    PutBack,
    Byte(u64),
}

impl Case {
    /// After a kill a page of the catalogue may count in its write-ahead log alone, and the last record of what was
    /// acknowledged may be torn where the log has all of it: nothing was lost, and nothing is said.
    fn is_superseded(self, file: &str, stopped: &Path) -> bool {
        let len = std::fs::metadata(stopped.join(file)).unwrap().len();
        match self {
            // It says how far at least.
            Self::PutBack => file == "acked/head",
            // It has two places, of which one is in use.
            Self::Byte(_) | Self::Cut(1..) if file == "evidence/interval.key" => true,
            Self::Byte(at) => file == "catalogue.db" || (file.ends_with(".ack") && at == len - 1),
            Self::Removed | Self::Cut(_) => false,
        }
    }

    fn make(self, file: &Path, before: &Path) {
        match self {
            Self::Removed => std::fs::remove_file(file).unwrap(),
            Self::Cut(len) => {
                let file = std::fs::File::options().write(true).open(file).unwrap();
                file.set_len(len).unwrap();
            }
            Self::PutBack => {
                std::fs::copy(before, file).unwrap();
            }
            Self::Byte(at) => {
                use std::os::unix::fs::FileExt as _;
                let file = std::fs::File::options()
                    .read(true)
                    .write(true)
                    .open(file)
                    .unwrap();
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            }
        }
    }
}

fn verify(data: &Path) -> (i32, String) {
    let program = scrinium_tests::program("scrinium-server");
    let mut command = Command::new(program);
    let said = command
        .args(["verify", "--data"])
        .arg(data)
        .output()
        .unwrap();
    let all = format!("{}{}", text(&said.stdout), text(&said.stderr));
    (said.status.code().unwrap(), all)
}

/// The files below `dir`, by their place in it.
fn files(dir: &Path, root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, root));
        } else if path.is_file() {
            found.push(
                path.strip_prefix(root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned(),
            );
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

/// A server that starts has the volume before it listens: a command waits for it.
#[test]
fn a_command_waits_while_another_process_has_the_volume() {
    let mut lab = Lab::start("stopped-waits");
    lab.stop_server();
    let lock = scrinium_segment::lock::DirLock::acquire(&lab.data()).unwrap();
    let mut command = lab.server_command(&["agent", "list"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut waits = command.spawn().unwrap();
    let status = format!("/proc/{}/status", waits.id());
    let rests = || {
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        let line = status
            .lines()
            .find(|line| line.starts_with("voluntary_ctxt_switches"));
        line.map(str::to_owned)
    };
    // It rests again and again.
    let mut seen = BTreeSet::new();
    wait_until("it tries again", Duration::from_secs(15), || {
        assert!(waits.try_wait().unwrap().is_none(), "it gave up");
        seen.extend(rests());
        seen.len() > 8
    });
    drop(lock);
    let ended = waits.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", text(&ended.stderr));
}
