//! A server that seals, compacts, forgets and backs up while its power fails or it is killed: the archive opens,
//! every line is there once, and what is due is gone.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use scrinium_tests::days::Days;
use scrinium_tests::disk::Disk;
use scrinium_tests::lab::text;
use scrinium_tests::random::Random;
use scrinium_tests::writer::append;
use scrinium_tests::{pause, wait_until};

/// Each round is a day: it begins with what the last one left to seal, to compact and to forget, lines come and a
/// backup is made, and then the power fails. `SCRINIUM_TEST_ROUNDS` for another number of rounds.
#[test]
fn power_cuts_during_sealing_compaction_deletion_and_backup_lose_and_repeat_nothing() {
    let Some(mut rig) = Rig::start("upkeep-power") else {
        return;
    };
    let image = rig.days.lab.dir.join("disk.img");
    let Some(disk) = Disk::in_place_of(&rig.days.lab.data(), &image, 256) else {
        return;
    };
    rig.days.lab.start_server();
    for _ in 0..rounds(16) {
        rig.write();
        let mut backup = rig.backup().spawn().unwrap();
        rig.compact_sometimes();
        pause(Duration::from_millis(rig.random.below(1500)));
        disk.shut_down();
        rig.days.lab.kill_server();
        let _failed_or_done = backup.wait().unwrap();
        disk.start_again();
        rig.day += 1;
        rig.days.set(rig.day);
        // Half of the time it fails once more while the server puts things in order.
        if rig.random.below(2) == 0 {
            rig.days.lab.spawn_server("");
            pause(Duration::from_millis(rig.random.below(400)));
            disk.shut_down();
            rig.days.lab.kill_server();
            disk.start_again();
        }
        rig.days.lab.start_server();
        rig.check();
    }
    rig.check_backup();
    rig.days.lab.stop_agent("web1");
    rig.days.lab.stop_server();
}

/// The power fails at each named step of each kind of work. `SCRINIUM_TEST_ROUNDS` for so many rounds of each kind.
#[test]
fn power_cuts_at_each_step_of_each_kind_of_work_lose_and_repeat_nothing() {
    let Some(mut rig) = Rig::start("upkeep-power-steps") else {
        return;
    };
    let image = rig.days.lab.dir.join("disk.img");
    let Some(disk) = Disk::in_place_of(&rig.days.lab.data(), &image, 512) else {
        return;
    };
    rig.days.lab.start_server();
    rig.live_some_days();
    for faults in [SEALING, COMPACTION, DELETION, BACKUP] {
        for round in 0..rounds(faults.len()) {
            let fault = faults[round % faults.len()];
            rig.write();
            rig.end_day_and_die_at(fault, || disk.shut_down());
            disk.start_again();
            rig.days.lab.start_server();
            rig.check();
        }
    }
    rig.check_backup();
    rig.days.lab.stop_agent("web1");
    rig.days.lab.stop_server();
}

/// `kill -9` at each named step.
#[test]
fn a_server_killed_at_any_step_of_its_upkeep_goes_on_where_it_was() {
    let Some(mut rig) = Rig::start("upkeep-kill") else {
        return;
    };
    rig.days.lab.start_server();
    rig.live_some_days();
    for fault in [SEALING, COMPACTION, DELETION].concat() {
        rig.write();
        rig.end_day_and_die_at(fault, || {});
        rig.days.lab.start_server();
        rig.check();
    }
    rig.days.lab.stop_agent("web1");
}

struct Rig {
    days: Days,
    random: Random,
    day: u32,
    /// The day each file was received on, and its bytes.
    files: Vec<(u32, PathBuf, Vec<u8>)>,
}

impl Rig {
    fn start(name: &str) -> Option<Self> {
        let mut days = Days::start(name)?;
        let lab = &mut days.lab;
        let keep = KEPT_DAYS.to_string();
        let kept = lab.server(&["policy", "class", "general", "--keep-days", &keep]);
        assert!(kept.status.success(), "{}", text(&kept.stderr));
        lab.add_agent("web1", lab.sl, "");
        lab.start_agent("web1");
        lab.wait_connected("web1");
        std::fs::create_dir_all(lab.dir.join("safe")).unwrap();
        lab.stop_server();
        Some(Self {
            days,
            random: Random::from_env_or(3),
            day: 0,
            files: Vec::new(),
        })
    }

    /// More than one log of lines that do not compress, all of it acked.
    fn write(&mut self) {
        let mut bytes = Vec::new();
        while bytes.len() < 1_600_000 {
            let noise = (0..90).map(|_| b'!' + u8::try_from(self.random.below(90)).unwrap());
            bytes.extend(noise);
            bytes.push(b'\n');
        }
        let path = self.days.lab.log(&format!("day-{}.log", self.day));
        append(&path).write_all(&bytes).unwrap();
        let lab = &self.days.lab;
        lab.wait_for_bytes("web1", &path, bytes.len(), PATIENCE);
        self.files.push((self.day, path, bytes));
    }

    /// So that there is something to compact and to forget every day.
    fn live_some_days(&mut self) {
        for _ in 0..KEPT_DAYS + 2 {
            self.write();
            self.day += 1;
            self.days.go_to(self.day);
        }
    }

    /// The server is killed, the next day begins, and the server dies at a step of what it does then.
    fn end_day_and_die_at(&mut self, fault: &str, and: impl FnOnce()) {
        self.days.lab.kill_server();
        self.day += 1;
        self.days.set(self.day);
        self.days.lab.spawn_server(fault);
        if BACKUP.contains(&fault) {
            self.days.lab.wait_for_socket();
            assert!(!self.backup().status().unwrap().success(), "{fault}");
        }
        self.days.lab.wait_for_server_end(PATIENCE);
        and();
    }

    /// What is kept is there once, what is due is gone, and nothing looks like tampering.
    fn check(&mut self) {
        // What is gone for long is looked at no more.
        let day = self.day;
        self.files
            .retain(|(received, ..)| received + KEPT_DAYS + 4 >= day);
        let lab = &self.days.lab;
        for (received, path, bytes) in &self.files {
            if received + KEPT_DAYS >= self.day {
                assert!(lab.export("web1", path) == *bytes, "{}", path.display());
            } else {
                wait_until("what is due is gone", PATIENCE, || {
                    let exported = lab.try_export("web1", path);
                    if exported.status.success() {
                        return exported.stdout.is_empty();
                    }
                    // It met the deletion in the middle; nothing else may end it.
                    let said = text(&exported.stderr);
                    assert!(said.contains("the export is not complete"), "{said}");
                    false
                });
            }
        }
        let (code, report) = lab.verify();
        assert_eq!(code, 0, "{report}");
    }

    fn target(&self) -> PathBuf {
        self.days.lab.data().join("target")
    }

    fn backup(&self) -> std::process::Command {
        let mut command = self.days.lab.server_command(&["backup", "create"]);
        command.arg("--to").arg(self.target());
        command.arg("--keys").arg(self.keys());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn keys(&self) -> PathBuf {
        self.days.lab.data().join("safe/keys")
    }

    fn compact_sometimes(&mut self) {
        if self.random.below(2) == 0 {
            let mut command = self.days.lab.server_command(&["compact"]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            drop(command.spawn().unwrap());
        }
    }

    /// One more backup, and all of it is right.
    fn check_backup(&self) {
        let made = self.backup().status();
        assert!(made.unwrap().success());
        let words = ["backup", "verify", "--from"];
        let (target, keys) = (self.target(), self.keys());
        let words = [&words[..], &[path(&target), "--keys", path(&keys)]].concat();
        let checked = self.days.lab.server(&words);
        assert!(checked.status.success(), "{}", text(&checked.stdout));
    }
}

/// So many rounds as the environment says, or else these.
fn rounds(normally: usize) -> usize {
    let rounds = std::env::var("SCRINIUM_TEST_ROUNDS").ok();
    rounds
        .and_then(|text| text.parse().ok())
        .unwrap_or(normally)
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The steps of what a server does besides receiving.
const SEALING: &[&str] = &["server: segments durable", "server: segments catalogued"];
const COMPACTION: &[&str] = &["server: compacted", "server: compaction catalogued"];
const DELETION: &[&str] = &["server: keys destroyed", "server: segment removed"];
const BACKUP: &[&str] = &[
    "server: object copied",
    "server: backup objects written",
    "server: backup keys written",
    "server: backup complete",
];
const KEPT_DAYS: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(60);
