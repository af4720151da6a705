//! What was sealed must be there as it was, and a checkpoint kept elsewhere says so even against whoever holds
//! the server and all its keys.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use scrinium_tests::lab::{Lab, text};
use scrinium_tests::wait_until;
use scrinium_tests::writer::append;

/// As root on a stopped server: the whole volume as it was before, which is whole in itself; the intervals
/// without their end; another server's checkpoint; the checkpoint changed or gone.
#[test]
fn what_was_taken_back_or_away_is_seen_by_a_checkpoint_that_was_kept() {
    let mut lab = Lab::start("evidence");
    let kept = lab.dir.join("kept");
    std::fs::create_dir(&kept).unwrap();
    seal_every_second(&mut lab, &kept);
    lab.add_agent("web1", lab.sl, "");
    let log = lab.log("app.log");
    lab.start_agent("web1");
    write(&lab, &log, 1);
    lab.stop_server();
    let early = lab.dir.join("early");
    copy(&lab.data(), &early);

    lab.start_server();
    write(&lab, &log, 2);
    let checkpoint = checkpoint_in(&kept);
    assert!(
        checkpoint.lines().nth(1).unwrap().parse::<u64>().unwrap() > 2,
        "{checkpoint}"
    );
    lab.write("outside", checkpoint.as_bytes());
    let outside = lab.dir.join("outside");
    let verify = |lab: &Lab, outside: Option<&Path>| {
        let mut command = lab.server_command(&["verify"]);
        if let Some(outside) = outside {
            command.arg("--checkpoint").arg(outside);
        }
        let output = command.output().unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        (output.status.code().unwrap(), said)
    };
    // While the server runs, and when it does not.
    let (code, said) = verify(&lab, Some(&outside));
    assert_eq!(code, 0, "{said}");
    lab.stop_agent("web1");
    lab.stop_server();
    let (code, said) = verify(&lab, Some(&outside));
    assert!(
        code == 0 && !said.contains("; 0 sealed intervals"),
        "{said}"
    );
    let whole = lab.dir.join("whole");
    copy(&lab.data(), &whole);

    // The whole volume as it was: nothing in it contradicts itself.
    restore(&lab, &early);
    assert_eq!(verify(&lab, None).0, 0);
    let (code, said) = verify(&lab, Some(&outside));
    assert!(
        code == 3 && said.contains("the rest was taken away"),
        "{said}"
    );

    // The same, and another history from there on, signed with the server's own keys.
    let sealed: u64 = checkpoint.lines().nth(1).unwrap().parse().unwrap();
    lab.start_server();
    let own = lab.data().join("evidence/checkpoint");
    wait_until(
        "as many intervals as before",
        Duration::from_secs(60),
        || {
            let note = std::fs::read_to_string(&own).unwrap();
            note.lines().nth(1).unwrap().parse::<u64>().unwrap() > sealed
        },
    );
    lab.stop_server();
    assert_eq!(verify(&lab, None).0, 0);
    let (code, said) = verify(&lab, Some(&outside));
    assert!(
        code == 3 && said.contains("history was rewritten"),
        "{said}"
    );

    // The catalogue and what is archived as they were, the intervals as they are: entries are missing.
    restore(&lab, &whole);
    for part in ["catalogue.db", "log", "archive"] {
        let own = lab.data().join(part);
        remove(&own);
        copy(&early.join(part), &own);
    }
    let (code, said) = verify(&lab, None);
    assert!(
        code == 3 && said.contains("entries that are not here"),
        "{said}"
    );

    // The last intervals are gone, and so is a file of them.
    restore(&lab, &whole);
    let files = files(&lab.data().join("evidence"));
    remove(files.last().unwrap());
    let (code, said) = verify(&lab, None);
    assert!(
        code == 3 && said.contains("the checkpoint of this archive does not match"),
        "{said}"
    );
    restore(&lab, &whole);
    remove(&files[0]);
    let (code, said) = verify(&lab, None);
    assert!(
        code == 3 && said.contains("does not follow the file before it"),
        "{said}"
    );
    // A server that finds less than it signed seals nothing more, and says so.
    lab.start_server();
    assert!(
        lab.wait_for_alarm("evidence-stopped", "server")
            .contains("does not follow")
    );
    lab.stop_server();

    // The checkpoint itself.
    restore(&lab, &whole);
    let changed = std::fs::read_to_string(&own)
        .unwrap()
        .replacen("time 1", "time 2", 1);
    let mut file = std::fs::File::create(&own).unwrap();
    std::io::Write::write_all(&mut file, changed.as_bytes()).unwrap();
    let (code, said) = verify(&lab, None);
    assert!(
        code == 3 && said.contains("not signed by this server's key"),
        "{said}"
    );
    restore(&lab, &whole);
    let other = Lab::start("evidence-other");
    let foreign = other.data().join("evidence/checkpoint");
    wait_until("the other server has one", Duration::from_secs(20), || {
        foreign.is_file()
    });
    let (code, said) = verify(&lab, Some(&foreign));
    assert!(
        code == 3 && said.contains("not signed by this server's key"),
        "{said}"
    );
    assert_eq!(verify(&lab, Some(&outside)).0, 0);
}

/// A copy that cannot be made is not taken for one that was.
#[test]
fn a_checkpoint_that_does_not_leave_the_machine_is_an_alarm() {
    let mut lab = Lab::start("evidence-copies");
    let elsewhere = lab.dir.join("not/mounted");
    seal_every_second(&mut lab, &elsewhere);
    let alarm = lab.wait_for_alarm("evidence-stopped", "server");
    assert!(
        alarm.contains("did not leave this machine") && alarm.contains("not/mounted"),
        "{alarm}"
    );
    assert_eq!(lab.verify().0, 0);
}

fn seal_every_second(lab: &mut Lab, copies: &Path) {
    lab.stop_server();
    let config = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    let copies = copies.display();
    let config = format!("{config}[evidence]\ninterval_s = 1\ncopies = [\"{copies}\"]\n");
    lab.write("server.toml", config.as_bytes());
    lab.start_server();
}

/// Writes lines, and waits until an interval was sealed over them.
fn write(lab: &Lab, log: &Path, round: u32) {
    let before = std::fs::metadata(log).map_or(0, |file| file.len());
    let lines = format!("round {round}\n").repeat(100);
    std::io::Write::write_all(&mut append(log), lines.as_bytes()).unwrap();
    let len = usize::try_from(before).unwrap() + lines.len();
    lab.wait_for_bytes("web1", log, len, Duration::from_secs(20));
    let kept = lab.dir.join("kept");
    let size = |kept: &Path| {
        checkpoint_in(kept)
            .lines()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let sealed = size(&kept);
    wait_until("two more intervals", Duration::from_secs(20), || {
        size(&kept) >= sealed + 2
    });
}

/// The last checkpoint that left the machine.
fn checkpoint_in(dir: &Path) -> String {
    let mut found = String::new();
    wait_until("a checkpoint is there", Duration::from_secs(20), || {
        let last = files(dir).into_iter().find(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.ends_with(".checkpoint") && name.matches('-').count() == 1
        });
        found = last.map_or_else(String::new, |path| std::fs::read_to_string(path).unwrap());
        found.lines().count() > 4
    });
    found
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| !path.ends_with("checkpoint") || dir.ends_with("kept"));
    paths.sort();
    paths
}

fn restore(lab: &Lab, from: &Path) {
    remove(&lab.data());
    copy(from, &lab.data());
}

fn copy(from: &Path, to: &Path) {
    assert!(
        Command::new("cp")
            .arg("-a")
            .arg(from)
            .arg(to)
            .status()
            .unwrap()
            .success()
    );
}

fn remove(path: &Path) {
    assert!(
        Command::new("rm")
            .arg("-r")
            .arg(path)
            .status()
            .unwrap()
            .success()
    );
}
