//! What a user of an agent's machine does with names beside a file that is collected: his own or another's. Nobody else's
//! lines are held up, lost or forged for it.

#![expect(
    clippy::disallowed_methods,
    reason = "files are written and renamed as their owners do it, at times that they set"
)]

use std::fs::{File, FileTimes, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, lchown};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use scrinium_tests::lab::Lab;
use scrinium_tests::{pause, skipped, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
const ALICE: u32 = 65533;
const BOB: u32 = 65534;

/// `None` where nobody can make files of others.
fn lab(name: &str) -> Option<Lab> {
    let mut lab = Lab::start(name);
    lab.add_agent("web1", lab.sl, "");
    let logs = lab.dir.join("logs");
    let config = format!("[[source]]\nfile = \"{}/**/*.log\"\n", logs.display());
    lab.write("web1.toml", config.as_bytes());
    let shared = logs.join("shared");
    std::fs::create_dir_all(&shared).unwrap();
    if lchown(&shared, Some(ALICE), Some(ALICE)).is_err() {
        skipped("only root can make files of others");
        return None;
    }
    std::fs::set_permissions(&shared, Permissions::from_mode(0o1777)).unwrap();
    Some(lab)
}

fn write(path: &Path, text: &str, owner: u32) {
    let mut options = File::options();
    let mut file = options.create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    lchown(path, Some(owner), Some(owner)).unwrap();
}

fn set_time(path: &Path, time: SystemTime) {
    let file = File::options().append(true).open(path).unwrap();
    file.set_times(FileTimes::new().set_modified(time)).unwrap();
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

#[test]
fn what_another_user_puts_beside_a_file_is_no_part_of_it() {
    let Some(mut lab) = lab("beside-foreign") else {
        return;
    };
    let path = lab.log("shared/app.log");
    write(
        &path,
        "alice: the first line of her log, and more of it, and more\n",
        ALICE,
    );
    lab.start_agent("web1");
    wait_until("hers", PATIENCE, || {
        lab.count("\"first line of her log\"") == 1
    });
    write(&lab.log("shared/app.log.1"), "FORGED: alice did it\n", BOB);
    let said = "stream:app.log \"belong to other users\"";
    wait_until("it is said", PATIENCE, || lab.count(said) == 1);
    // Her own are as ever, and a copy of hers with more behind it is his.
    let copy = std::fs::read_to_string(&path).unwrap() + "FORGED behind her lines\n";
    write(&path, "alice: the second line\n", ALICE);
    std::fs::rename(&path, lab.log("shared/app.log.3")).unwrap();
    write(&lab.log("shared/app.log.2"), &copy, BOB);
    write(&path, "alice: the third line\n", ALICE);
    for words in ["second line", "third line"] {
        wait_until(words, PATIENCE, || {
            lab.count(&format!("\"alice: the {words}\"")) == 1
        });
    }
    wait_until("it is said of two", PATIENCE, || lab.count(said) == 2);
    lab.stop_agent("web1");
    write(&lab.log("shared/app.log.4"), "FORGED meanwhile\n", BOB);
    std::fs::rename(&path, lab.log("shared/app.log.5")).unwrap();
    write(&path, "alice: the fourth line\n", ALICE);
    lab.start_agent("web1");
    wait_until("fourth", PATIENCE, || {
        lab.count("\"alice: the fourth line\"") == 1
    });
    wait_until("it is said again", PATIENCE, || lab.count(said) == 3);
    assert_eq!(lab.count("FORGED"), 0);
    assert_eq!(lab.count("\"first line of her log\""), 1);
}

#[test]
fn a_time_that_is_still_to_come_hides_nothing_that_comes() {
    let Some(mut lab) = lab("beside-future") else {
        return;
    };
    let path = lab.log("shared/app.log");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    let future = SystemTime::now() + Duration::from_secs(5 * 365 * 86_400);
    for n in (101..=150).rev() {
        let old = lab.log(&format!("shared/app.log.{n}"));
        write(
            &old,
            &format!("alice: generation {n} of a far time\n"),
            ALICE,
        );
        set_time(&old, future);
        let probe = lab.dir.join("probe");
        let made = |path: &Path| path.metadata().unwrap().created().unwrap();
        wait_until("the file system's clock ticks", PATIENCE, || {
            let _first = std::fs::remove_file(&probe);
            File::create(&probe).unwrap();
            made(&probe) > made(&old)
        });
    }
    write(&path, "alice: the file itself\n", ALICE);
    wait_until("all", PATIENCE, || lab.count("\"of a far time\"") == 50);
    wait_until("itself", PATIENCE, || lab.count("\"the file itself\"") == 1);
    for round in ["away", "here"] {
        if round == "away" {
            lab.stop_agent("web1");
        }
        for n in 1..=3 {
            // As logrotate does: each moves up by one.
            for old in (1..n).rev() {
                let name = |n| lab.log(&format!("shared/app.log.{n}"));
                std::fs::rename(name(old), name(old + 1)).unwrap();
            }
            std::fs::rename(&path, lab.log("shared/app.log.1")).unwrap();
            write(
                &path,
                &format!("alice: {round}, after rotation {n}\n"),
                ALICE,
            );
        }
        if round == "away" {
            lab.start_agent("web1");
        }
        for n in 1..=3 {
            let words = format!("\"alice: {round}, after rotation {n}\"");
            wait_until(&words, PATIENCE, || lab.count(&words) == 1);
        }
        for n in 1..=3 {
            std::fs::remove_file(lab.log(&format!("shared/app.log.{n}"))).unwrap();
        }
    }
    assert_eq!(lab.count("\"of a far time\""), 50);
}

#[test]
fn generations_are_read_in_their_order_and_few_of_them_are_open_however_many_there_are() {
    const GENERATIONS: u64 = 400;
    let Some(mut lab) = lab("beside-many") else {
        return;
    };
    lab.start_agent("web1");
    lab.wait_connected("web1");
    let path = lab.log("shared/x.log");
    let before = descriptors(lab.agent_pid("web1"));
    let began = SystemTime::now();
    let mut expected = String::new();
    for n in (1..=GENERATIONS).rev() {
        let old = lab.log(&format!("shared/x.log.{n}"));
        let text = format!("generation {n} of bob, which nobody read before\n");
        write(&old, &text, BOB);
        set_time(&old, began - Duration::from_secs(n));
        expected += &text;
    }
    write(&path, "the file itself\n", BOB);
    expected += "the file itself\n";
    let mut most = 0;
    wait_until("all", PATIENCE * 2, || {
        for _ in 0..20 {
            most = most.max(descriptors(lab.agent_pid("web1")));
            pause(Duration::from_millis(10));
        }
        lab.count("\"the file itself\"") == 1
    });
    assert_eq!(
        String::from_utf8(lab.export("web1", &path)).unwrap(),
        expected
    );
    assert!(most < before + 150, "{most} descriptors, {before} before");
}

#[test]
fn very_many_names_beside_a_file_that_is_renamed_all_the_while_hold_nobody_up() {
    let Some(mut lab) = lab("beside-names") else {
        return;
    };
    let (busy, good) = (lab.log("shared/x.log"), lab.log("good.log"));
    write(
        &busy,
        "a line that is long enough to say which file this is, and a copy\n",
        BOB,
    );
    write(&good, "good 0\n", ALICE);
    lab.start_agent("web1");
    wait_until("good", PATIENCE, || lab.count("\"good 0\"") == 1);
    for n in 0..20_000 {
        let name = lab.log(&format!("shared/x.log{n}.tmp"));
        std::fs::write(name, format!("a line, another {n}\n")).unwrap();
    }
    let before = descriptors(lab.agent_pid("web1"));
    let is_over = AtomicBool::new(false);
    let mut most = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let old = lab.log("shared/x.log.1");
            let mut n = 0;
            while !is_over.load(Ordering::Relaxed) {
                n += 1;
                std::fs::rename(&busy, &old).unwrap();
                write(&busy, &format!("line {n}\n"), BOB);
                pause(Duration::from_millis(50));
            }
        });
        let mut is_there = true;
        for n in 1..=4 {
            write(&good, &format!("good {n}\n"), ALICE);
            let until = scrinium_tests::now() + PATIENCE;
            while is_there && lab.count(&format!("\"good {n}\"")) == 0 {
                most = most.max(descriptors(lab.agent_pid("web1")));
                is_there = scrinium_tests::now() < until;
            }
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(is_there, "the other's lines wait");
    });
    assert!(most < before + 300, "{most} descriptors, {before} before");
    // And his own come when he leaves them be.
    write(&busy, "the last of bob\n", BOB);
    wait_until("bob's", PATIENCE, || lab.count("\"the last of bob\"") == 1);
}
