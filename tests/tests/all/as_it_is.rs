//! Log files as programs, rotation and people leave them: each a public complaint about a collector.

#![expect(clippy::disallowed_methods, reason = "what other programs do to files")]

use std::fs::{File, remove_file, rename};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use scrinium_tests::lab::{Lab, cpu_seconds};
use scrinium_tests::writer::{append, line};
use scrinium_tests::{now, pause, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

/// An agent and one file that was begun.
struct Rig {
    lab: Lab,
    log: PathBuf,
    written: Vec<u8>,
    number: u64,
}

impl Rig {
    fn start(name: &str, glob: &str) -> Self {
        let mut lab = Lab::start(name);
        lab.add_agent("web1", lab.sl, "");
        let sources = format!("[[source]]\nfile = \"{}/logs/{glob}\"\n", lab.dir.display());
        lab.write("web1.toml", sources.as_bytes());
        let mut rig = Self {
            log: lab.log("app.log"),
            lab,
            written: Vec::new(),
            number: 0,
        };
        rig.lab.start_agent("web1");
        rig.lab.wait_connected("web1");
        rig
    }

    fn lines(&mut self, count: u64) -> Vec<u8> {
        let lines: String = (self.number..self.number + count).map(line).collect();
        self.number += count;
        self.written.extend_from_slice(lines.as_bytes());
        lines.into_bytes()
    }

    fn write(&mut self, path: &Path, count: u64) {
        let lines = self.lines(count);
        append(path).write_all(&lines).unwrap();
    }

    /// Everything that was written is archived, once, wherever it is found, and nothing else.
    fn settle(&self) {
        let expected = self.number;
        wait_until("every line is archived", PATIENCE, || {
            self.lab.count("agent:web1 happened") >= expected
        });
        // What comes twice comes by itself. A name that came back after a restart would be a file that is gone.
        let (end, words) = (
            self.lab.log(&format!("end-{expected}.log")),
            format!("the end of {expected} lines"),
        );
        append(&end)
            .write_all(format!("{words}\n").as_bytes())
            .unwrap();
        let query = format!("\"{words}\"");
        wait_until("the end", PATIENCE, || self.lab.count(&query) >= 1);
        assert_eq!(self.lab.count("agent:web1 happened"), expected);
        remove_file(end).unwrap();
    }

    /// The same, in the order in which it was written.
    fn settle_in_order(&self) {
        self.lab
            .wait_for_bytes("web1", &self.log, self.written.len(), PATIENCE);
        let archived = self.lab.export("web1", &self.log);
        let differ = archived.iter().zip(&self.written).position(|(a, b)| a != b);
        let len = (archived.len(), self.written.len());
        assert!(
            differ.is_none() && len.0 == len.1,
            "{len:?}, from {differ:?}"
        );
    }

    fn generation(&self, suffix: &str) -> PathBuf {
        PathBuf::from(format!("{}{suffix}", self.log.display()))
    }

    fn has_no_gap(&self) {
        let report = self.lab.verify().1;
        assert!(report.contains("; 0 gap entries"), "{report}");
    }
}

/// apisix#7826: the old program writes its last line after the second rotation; kinesis-agent#75, chrony: the clock is
/// hours behind between two rotations. Times order nothing.
#[test]
fn f1_a_rotated_file_older_than_the_one_before_it_is_read() {
    for steps_back in [false, true] {
        let mut rig = Rig::start("as-generations", "*.log");
        let log = rig.log.clone();
        rig.write(&log, 50);
        rig.settle_in_order();
        rig.lab.stop_agent("web1");
        rig.write(&log, 50);
        let old = append(&log);
        let late = rig.lines(1);
        rename(&log, rig.generation(".1")).unwrap();
        rig.write(&log, 50);
        if steps_back {
            let hours_ago = SystemTime::now() - Duration::from_secs(4 * 3600);
            append(&log).set_modified(hours_ago).unwrap();
        }
        rename(rig.generation(".1"), rig.generation(".2")).unwrap();
        rename(&log, rig.generation(".1")).unwrap();
        rig.write(&log, 50);
        pause(Duration::from_millis(30)); // the file system's clock ticks
        (&old).write_all(&late).unwrap();
        rig.lab.start_agent("web1");
        rig.settle_in_order();
        rig.has_no_gap();
    }
}

/// YunoHost#2549, cloudstack#10180: a program that never opens the new file. Restarts of the agent included.
#[test]
fn a5_what_a_program_writes_to_a_file_that_was_left_is_read_on_at_any_time() {
    let mut rig = Rig::start("as-never", "*.log");
    let log = rig.log.clone();
    rig.write(&log, 10);
    rig.settle();
    let mut old = append(&log);
    rename(&log, rig.generation(".1")).unwrap();
    rig.write(&log, 1);
    rig.settle();
    for round in 0..3 {
        // Nothing is open of it any more after a restart.
        rig.lab.stop_agent("web1");
        rig.lab.start_agent("web1");
        rig.lab.wait_connected("web1");
        let late = rig.lines(1);
        old.write_all(&late).unwrap();
        rig.settle();
        let (from, to) = (format!(".{}", round + 1), format!(".{}", round + 2));
        rename(rig.generation(&from), rig.generation(&to)).unwrap();
        let late = rig.lines(1);
        old.write_all(&late).unwrap();
        rig.settle();
    }
    rig.has_no_gap();
}

/// vector#2681, log4j2's mapped files, HTTP.sys: room is laid out as zeros, and lines are written into it.
#[test]
fn b3_lines_in_a_file_that_was_laid_out_before_arrive_once_each_and_its_zeros_do_not() {
    let mut rig = Rig::start("as-room", "*.log");
    for (name, len, writes) in [
        ("written.log", 4 << 20, true),
        ("blocks.log", 64 << 10, true),
        ("hole.log", 4 << 20, false),
    ] {
        let path = rig.lab.log(name);
        let file = File::create(&path).unwrap();
        match writes {
            true => (&file).write_all(&vec![0; len]).unwrap(),
            false => file.set_len(len as u64).unwrap(),
        }
        let mut at = 0;
        for n in 0..4 {
            let lines = rig.lines(1 + n % 2 * 200);
            file.write_all_at(&lines, at).unwrap();
            at += lines.len() as u64;
            rig.settle();
            if n == 2 {
                rig.lab.stop_agent("web1");
                rig.lab.start_agent("web1");
            }
        }
        // The program fills up what there is, lays out more, and ends.
        let fill = vec![b'x'; usize::try_from((len as u64 - at) % 4096).unwrap() + 100];
        file.write_all_at(&fill, at).unwrap();
        at += fill.len() as u64;
        file.write_all_at(b"\n", at).unwrap();
        file.set_len(at + 1).unwrap();
        wait_until("it is archived", PATIENCE, || {
            let archived = rig.lab.export("web1", &path);
            archived.len() as u64 == at + 1
        });
        assert!(!rig.lab.export("web1", &path).contains(&0));
    }
}

/// A sparse terabyte costs nothing.
#[test]
fn b3_a_hole_that_reaches_the_end_costs_nothing() {
    let mut rig = Rig::start("as-sparse", "*.log");
    let log = rig.log.clone();
    rig.write(&log, 10);
    append(&log).set_len(1 << 40).unwrap();
    rig.settle();
    let before = cpu_seconds(rig.lab.agent_pid("web1"));
    let since = now();
    let other = rig.lab.log("other.log");
    while now().duration_since(since) < Duration::from_secs(10) {
        rig.write(&other, 1);
        rig.settle();
    }
    let spent = cpu_seconds(rig.lab.agent_pid("web1")) - before;
    assert!(spent < 2.0, "{spent} s of 10 s");
}

/// logrotate#607: a pipe in the place of a log; and the renamed file is truncated, so that every name is looked at.
#[test]
fn a_pipe_in_the_place_of_a_file_holds_up_nobody() {
    let mut rig = Rig::start("as-pipe", "*.log");
    let (log, other) = (rig.log.clone(), rig.lab.log("other.log"));
    rig.write(&log, 2);
    rig.write(&other, 1);
    rig.settle();
    rename(&log, rig.lab.log("app.was")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&log).status();
    assert!(made.unwrap().success());
    rig.write(&other, 1);
    rig.settle();
    drop(File::create(rig.lab.log("app.was")).unwrap());
    rig.write(&other, 1);
    rig.settle();
    rig.lab.stop_agent("web1");
}

/// integrations#9488, kubernetes#52172: rotation behind a link while the agent is restarted; the link vanishes, and both
/// names match.
#[test]
fn kubernetes_links_lose_nothing_and_repeat_nothing() {
    let mut rig = Rig::start("as-links", "**/*.log");
    let pod = rig.lab.log("pods/shop_web/web");
    std::fs::create_dir_all(&pod).unwrap();
    std::fs::create_dir_all(rig.lab.log("containers")).unwrap();
    let (real, link) = (pod.join("0.log"), rig.lab.log("containers/web.log"));
    rig.write(&real, 100);
    symlink("../pods/shop_web/web/0.log", &link).unwrap();
    rig.settle();
    let rotated = |stamp: &str| pod.join(format!("0.log.{stamp}"));
    rename(&real, rotated("20241015-100000")).unwrap();
    rig.write(&real, 100);
    rig.settle();
    rig.lab.stop_agent("web1");
    rig.write(&real, 100);
    rename(&real, rotated("20241015-101000")).unwrap();
    rig.write(&real, 100);
    rig.lab.start_agent("web1");
    rig.settle();
    rig.has_no_gap();
    // A restart, so that nothing is open of the link's stream.
    rig.lab.stop_agent("web1");
    remove_file(&link).unwrap();
    rig.lab.start_agent("web1");
    rig.write(&real, 3);
    rig.settle();
    rig.lab.stop_agent("web1");
    symlink("../pods/shop_web/web/0.log", &link).unwrap();
    rig.write(&real, 3);
    rig.lab.start_agent("web1");
    rig.settle();
}

/// log-courier#260, beats#40056: rsync and `sed -i` put the same content under another number; fluent-bit#1118: a link
/// is switched, and back.
#[test]
fn the_same_content_under_another_number_is_read_once() {
    let mut rig = Rig::start("as-same", "*.log");
    let log = rig.log.clone();
    rig.write(&log, 200);
    rig.settle();
    for _ in 0..3 {
        let temporary = rig.lab.log(".app.tmp");
        std::fs::copy(&log, &temporary).unwrap();
        rig.write(&temporary, 1);
        rename(&temporary, &log).unwrap();
        rig.settle();
    }
    let (blue, green) = (rig.lab.dir.join("blue"), rig.lab.dir.join("green"));
    rig.write(&blue, 50);
    rig.write(&green, 50);
    let link = rig.lab.log("current.log");
    symlink(&blue, &link).unwrap();
    wait_until("blue is read", PATIENCE, || {
        rig.lab.count("agent:web1 happened") == rig.number - 50
    });
    for target in [&green, &blue, &green, &blue] {
        remove_file(&link).unwrap();
        rig.write(target, 1);
        symlink(target, &link).unwrap();
        rig.settle();
    }
}

/// opentelemetry-collector-contrib#40523, mina#18788: names that rotation gives, all of which the glob names too.
#[test]
fn a_finished_file_under_a_new_name_is_the_file_that_was_finished() {
    let mut rig = Rig::start("as-names", "*");
    let names = [
        ("xorg.log", "xorg.log.old"),
        ("mina.log", "mina.log.2026-01-15T10:30:00Z"),
        ("day.log", "day.Mon.log"),
        ("word.log", "word-archive.log"),
        ("moved.log", "elsewhere.txt"),
    ];
    for (name, _) in names {
        let path = rig.lab.log(name);
        rig.write(&path, 100);
    }
    rig.settle();
    for is_running in [true, false] {
        if !is_running {
            rig.lab.stop_agent("web1");
        }
        for (name, old) in names {
            let (path, old) = (rig.lab.log(name), rig.lab.log(old));
            rename(&path, &old).unwrap();
            rig.write(&path, 10);
        }
        if !is_running {
            rig.lab.start_agent("web1");
        }
        rig.settle();
        // Nothing of the old ones is open after a restart.
        rig.lab.stop_agent("web1");
        rig.lab.start_agent("web1");
        rig.settle();
    }
}

/// vector#22297: a quiet file is closed, so that its file system can be unmounted, and goes on where it was.
#[test]
fn a_quiet_file_is_closed_and_goes_on() {
    let mut rig = Rig::start("as-quiet", "*.log");
    let log = rig.log.clone();
    rig.write(&log, 10);
    rig.settle();
    let descriptors = format!("/proc/{}/fd", rig.lab.agent_pid("web1"));
    wait_until("it is closed", PATIENCE, || {
        let all = std::fs::read_dir(&descriptors).unwrap().flatten();
        let mut all = all.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        all.all(|path| path != log)
    });
    rig.write(&log, 10);
    rig.settle_in_order();
    rig.has_no_gap();
}

/// A few bytes with zeros among them are no UTF-16, and none of them is lost.
#[test]
fn nine_bytes_with_zeros_are_archived_as_they_are() {
    let rig = Rig::start("as-nine", "*.log");
    for (name, bytes) in [
        ("nine.log", &b"a\0b\0c\0d\0e"[..]),
        ("line.log", b"a\0b\0c\0d\0\n"),
        ("big.log", b"\0a\0b\0c\0d\0"),
    ] {
        let path = rig.lab.log(name);
        append(&path).write_all(bytes).unwrap();
        rig.lab.wait_for_bytes("web1", &path, bytes.len(), PATIENCE);
        assert_eq!(rig.lab.export("web1", &path), bytes);
    }
}
