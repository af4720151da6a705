//! Files are rotated, truncated and compressed, while the agent looks and while it does not
//! (scenarios A and B).

#![expect(
    clippy::disallowed_methods,
    reason = "what logrotate and its like do to files"
)]

use std::fs::{remove_file, rename};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use scrinium_tests::lab::{Lab, text};
use scrinium_tests::random::Random;
use scrinium_tests::writer::{REOPEN, Writer, append, line};
use scrinium_tests::{has_tool, now, pause};

/// A1, A4, and B1 with a writer that holds still: logrotate itself, a hundred times in each of its ways.
#[test]
fn a1_a_hundred_rotations_by_logrotate_under_load_are_conserved() {
    if !has_tool("logrotate") {
        return;
    }
    for how in [
        "create",
        "create\ncompress",
        "create\ncompress\ndelaycompress",
    ] {
        let mut lab = Lab::start("logrotate");
        lab.add_agent("web1", lab.sl, "");
        let log = lab.log("app.log");
        lab.start_agent("web1");
        // What came and went before it began to look is another test's.
        lab.wait_connected("web1");
        let writer = Writer::start(&log, 0);
        for round in 0..100 {
            pause(Duration::from_millis(20 + round % 5 * 20));
            logrotate(&lab, &log, how);
        }
        let written = writer.stop();
        settle(&lab, &log, &written);
        assert!(lab.verify().1.contains("; 0 gap entries"), "{how}");
    }
}

/// B1: copytruncate loses what is written between the copy and the truncation, and nothing else; the
/// agent cannot see that window, and says so each time.
#[test]
fn b1_copytruncate_under_load_loses_at_most_its_own_window_and_that_is_said() {
    if !has_tool("logrotate") {
        return;
    }
    let mut lab = Lab::start("copytruncate");
    lab.add_agent("web1", lab.sl, "");
    // The copies match a glob, too: they are not another stream.
    let sources = format!(
        "[[source]]\nfile = \"{}/logs/app.log*\"\n",
        lab.dir.display()
    );
    lab.write("web1.toml", sources.as_bytes());
    let log = lab.log("app.log");
    lab.start_agent("web1");
    let writer = Writer::start(&log, 0);
    for _ in 0..100 {
        pause(Duration::from_millis(60));
        logrotate(&lab, &log, "copytruncate");
    }
    let written = writer.stop();
    append(&log).write_all(b"the end\n").unwrap();
    scrinium_tests::wait_until("the end is archived", Duration::from_secs(60), || {
        lab.count("\"the end\"") == 1
    });
    let archived = text(&lab.export("web1", &log));
    let written = text(&written);
    // Every archived line was written, in this order and once; a cut line is one the truncation cut.
    let mut left = written.lines();
    let mut cut = 0;
    for found in archived.lines().filter(|line| *line != "the end") {
        if !left.any(|line| line == found) {
            cut += 1;
            left = written.lines();
            let last = archived.lines().take_while(|line| *line != found).last();
            let _skipped = left.find(|line| Some(*line) == last);
        }
    }
    let lost = written.lines().count() + 1 - archived.lines().count();
    let gaps = lab.count("agent:web1 \"gap: the file was truncated\"");
    assert!(cut <= 100 && lost <= 100 * 250, "{cut} cut, {lost} lost");
    assert!(
        (1..=100).contains(&gaps),
        "{gaps} gap entries for {lost} lost lines"
    );
    assert_eq!(lab.verify().0, 0);
}

/// A2: see `conserved::a2_rotations_while_the_agent_is_stopped_are_read_in_order`. A3: the older ones are
/// compressed meanwhile, and found by what is in them.
#[test]
fn a3_files_rotated_and_compressed_while_the_agent_was_stopped_are_finished() {
    for tool in ["gzip", "zstd"] {
        if tool == "zstd" && !has_tool(tool) {
            continue;
        }
        let mut rig = Rig::start("a3");
        rig.write(1000);
        rig.settle();
        rig.lab.stop_agent("web1");
        for _ in 0..3 {
            rig.write(500);
            rig.shift(3);
        }
        for name in ["log.2", "log.3"] {
            let status = Command::new(tool)
                .arg("-q")
                .args((tool == "zstd").then_some("--rm"))
                .arg(rig.log.with_extension(name))
                .status();
            assert!(status.unwrap().success());
        }
        rig.write(500);
        rig.lab.start_agent("web1");
        rig.settle();
        assert!(rig.lab.verify().1.contains("; 0 gap entries"));
    }
}

/// A3 with a compressor that keeps only the second of the modification time, as logrotate's does: which
/// of several generations of one second is older, their names say.
#[test]
fn a3_generations_of_one_second_are_read_in_the_order_of_their_names() {
    let mut rig = Rig::start("a3-second");
    rig.write(1000);
    rig.settle();
    rig.lab.stop_agent("web1");
    for _ in 0..4 {
        rig.write(500);
        rig.shift(4);
    }
    rig.write(500);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let second = UNIX_EPOCH + Duration::from_secs(since.as_secs());
    for n in [2, 3, 4] {
        let name = ext(&rig.log, n);
        let status = Command::new("gzip").arg("-q").arg(&name).status();
        assert!(status.unwrap().success());
        let packed = append(&rig.log.with_extension(format!("log.{n}.gz")));
        packed.set_modified(second).unwrap();
    }
    let plain = append(&ext(&rig.log, 1));
    plain
        .set_modified(second + Duration::from_millis(500))
        .unwrap();
    rig.lab.start_agent("web1");
    rig.settle();
    assert!(rig.lab.verify().1.contains("; 0 gap entries"));
}

/// A3, the other way it can end: the file was compressed in a way nobody reads.
#[test]
fn a3_what_cannot_be_read_any_more_is_a_gap_entry_with_its_place() {
    let mut rig = Rig::start("a3-gap");
    rig.write(10);
    rig.settle();
    let known = rig.written.len();
    rig.lab.stop_agent("web1");
    append(&rig.log).write_all(b"never read\n").unwrap();
    rename(&rig.log, rig.log.with_extension("log.1.xz")).unwrap();
    append(&rig.log.with_extension("log.1.xz"))
        .write_all(b"not really")
        .unwrap();
    append(&rig.log.with_extension("log.1.xz"))
        .set_len(3)
        .unwrap();
    rig.write(10);
    rig.lab.start_agent("web1");
    rig.settle();
    let gap = format!("\"up to byte {known} is gone\"");
    assert_eq!(rig.lab.search(&gap).len(), 1);
}

/// A1, at its shortest: a file that nobody knew of is written and rotated away, three times, before it is found.
#[test]
fn a1_files_that_came_and_went_before_they_were_found_are_read_first() {
    let mut rig = Rig::start("a1-born");
    rig.write(10);
    rig.settle();
    let born = rig.lab.log("born.log");
    let mut written = String::new();
    for n in (0..3).rev() {
        let line = format!("of the file {n}\n");
        append(&born).write_all(line.as_bytes()).unwrap();
        written += &line;
        if n > 0 {
            rename(&born, born.with_extension(format!("log.{n}"))).unwrap();
        }
    }
    rig.lab
        .wait_for_bytes("web1", &born, written.len(), Duration::from_secs(20));
    assert_eq!(text(&rig.lab.export("web1", &born)), written);
    assert!(rig.lab.verify().1.contains("; 0 gap entries"));
}

/// A4: the compressed copy is cut short: no cut line is taken for a whole one, nothing hangs.
#[test]
fn a4_a_damaged_compressed_file_is_a_gap_and_no_obstacle() {
    let mut rig = Rig::start("a4");
    rig.write(1000);
    rig.settle();
    rig.lab.stop_agent("web1");
    append(&rig.log).write_all(&vec![b'x'; 100_000]).unwrap();
    rig.shift(2);
    let packed = rig.log.with_extension("log.1");
    assert!(
        Command::new("gzip")
            .arg(&packed)
            .status()
            .unwrap()
            .success()
    );
    let packed = rig.log.with_extension("log.1.gz");
    let len = packed.metadata().unwrap().len();
    append(&packed).set_len(len - 12).unwrap();
    rig.write(10);
    rig.lab.start_agent("web1");
    scrinium_tests::wait_until("a gap entry says so", Duration::from_secs(30), || {
        rig.lab.count("\"compressed file is damaged\"") == 1
            || rig.lab.count("\"gap: the file read up to byte\"") == 1
    });
    scrinium_tests::wait_until("the new file is read", Duration::from_secs(30), || {
        rig.lab.count("agent:web1 0000001009") == 1
    });
}

/// A5: the writer goes on in the renamed file for half a minute, and so does the agent; when the agent is
/// restarted meanwhile, too.
#[test]
fn a5_late_lines_in_a_renamed_file_are_conserved() {
    let mut rig = Rig::start("a5");
    rig.write(100);
    rig.settle();
    let mut old = append(&rig.log);
    rename(&rig.log, rig.log.with_extension("log.1")).unwrap();
    rig.write(1);
    for n in 0..30 {
        old.write_all(format!("late {n}\n").as_bytes()).unwrap();
        pause(Duration::from_millis(1000));
        if n == 10 {
            rig.lab.kill_agent("web1");
            rig.lab.start_agent("web1");
        }
        if n == 20 {
            rig.lab.stop_agent("web1");
            rig.lab.start_agent("web1");
        }
    }
    scrinium_tests::wait_until("late lines are archived", Duration::from_secs(20), || {
        rig.lab.count("late") == 30
    });
    rig.write(1);
    scrinium_tests::wait_until("and the others", Duration::from_secs(20), || {
        rig.lab.count("agent:web1 happened") == 102
    });
    assert!(rig.lab.verify().1.contains("; 0 gap entries"));
}

/// A6: a thousand files in the same second, again and again.
#[test]
fn a6_a_thousand_files_rotated_at_once_are_conserved_twenty_times() {
    let mut lab = Lab::start("a6");
    lab.add_agent("web1", lab.sl, "");
    lab.start_agent("web1");
    let logs: Vec<PathBuf> = (0..1000)
        .map(|n| lab.log(&format!("app{n:04}.log")))
        .collect();
    for log in &logs {
        append(log).write_all(line(0).as_bytes()).unwrap();
    }
    let mut written = 1000;
    scrinium_tests::wait_until("every file is known", Duration::from_secs(60), || {
        lab.count("agent:web1") == written
    });
    for round in 0..20 {
        for (n, log) in logs.iter().enumerate() {
            append(log)
                .write_all(format!("{}{}", line(round * 2), line(n as u64)).as_bytes())
                .unwrap();
        }
        for log in &logs {
            rename(log, log.with_extension("log.1")).unwrap();
            append(log)
                .write_all(line(round * 2 + 1).as_bytes())
                .unwrap();
        }
        written += 3000;
        scrinium_tests::wait_until("everything is archived", Duration::from_secs(120), || {
            lab.count("agent:web1") >= written
        });
        assert_eq!(lab.count("agent:web1"), written, "round {round}");
    }
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
    assert!(report.contains("; 0 gap entries"), "{report}");
}

/// A7: the agent starts again exactly between rename and create, and between create and the first line.
#[test]
fn a7_a_restart_in_the_middle_of_a_rotation_loses_nothing() {
    let mut rig = Rig::start("a7");
    for created in [false, true] {
        rig.write(100);
        rig.settle();
        rig.lab.kill_agent("web1");
        rig.write(100);
        rename(&rig.log, rig.log.with_extension("log.1")).unwrap();
        if created {
            drop(append(&rig.log));
        }
        rig.lab.start_agent("web1");
        rig.lab.wait_connected("web1");
        rig.lab.kill_agent("web1");
        rig.write(100);
        rig.lab.start_agent("web1");
        rig.settle();
    }
    assert!(rig.lab.verify().1.contains("; 0 gap entries"));
}

/// A8: deleted while its lines are unread and the server is away: read to its end before it is let go.
#[test]
fn a8_a_file_deleted_before_it_was_read_is_read_to_its_end() {
    let mut rig = Rig::start("a8");
    rig.write(100);
    rig.settle();
    rig.lab.stop_server();
    rig.write(20_000);
    pause(Duration::from_millis(300)); // it is open, and hardly read
    remove_file(&rig.log).unwrap();
    rig.write(100);
    pause(Duration::from_secs(2)); // the server stays away
    rig.lab.start_server();
    rig.settle();
    assert!(rig.lab.verify().1.contains("; 0 gap entries"));
}

/// A9: app.0 to app.9, written and overwritten in turn.
#[test]
fn a9_a_cyclic_set_of_files_is_conserved() {
    let mut lab = Lab::start("a9");
    lab.add_agent("web1", lab.sl, "");
    lab.start_agent("web1");
    let mut number = 0;
    for round in 0..4 {
        for file in 0..10 {
            let log = lab.log(&format!("cycle{file}.log"));
            let mut lines = String::new();
            for _ in 0..50 + (round * 37 + file * 13) % 60 {
                lines += &line(number);
                number += 1;
            }
            // Overwritten from the start, as such programs do.
            let mut file = std::fs::File::create(&log).unwrap();
            file.write_all(lines.as_bytes()).unwrap();
            pause(Duration::from_millis(150));
        }
    }
    scrinium_tests::wait_until("everything is archived", Duration::from_secs(60), || {
        lab.count("agent:web1 happened") >= number
    });
    assert_eq!(lab.count("agent:web1 happened"), number);
    assert_eq!(lab.verify().0, 0);
}

/// A10: stopped and killed at random while lines come, the file is rotated and the server goes away; 200
/// times, without one line lost, twice or out of its order.
#[test]
fn a10_two_hundred_stops_and_kills_during_rotation_spill_and_drain_are_conserved() {
    let mut lab = Lab::start("a10");
    lab.add_agent("web1", lab.sl, "[spool]\nram_bytes_max = \"512 KiB\"");
    let log = lab.log("app.log");
    lab.start_agent("web1");
    let writer = Writer::start(&log, 0);
    let mut random = Random::from_env_or(10);
    let mut server_back = None;
    let since = now();
    for round in 0..200_u32 {
        if random.below(4) == 0 {
            for n in (1..20).rev() {
                let _absent = rename(ext(&log, n), ext(&log, n + 1));
            }
            rename(&log, ext(&log, 1)).unwrap();
            if random.below(2) == 0 {
                drop(append(&log));
            }
            writer.reopen();
        }
        pause(Duration::from_millis(random.below(150)));
        if random.below(2) == 0 {
            lab.kill_agent("web1");
        } else {
            lab.stop_agent("web1");
        }
        if server_back.is_none() && random.below(10) == 0 {
            lab.kill_server();
            server_back = Some(round + 10);
        }
        if server_back == Some(round) {
            lab.start_server();
            server_back = None;
        }
        lab.start_agent("web1");
    }
    if server_back.is_some() {
        lab.start_server();
    }
    let written = writer.stop();
    settle(&lab, &log, &written);
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
    assert!(report.contains("; 0 gap entries"), "{report}");
    assert!(now().duration_since(since) > Duration::from_secs(5));
}

/// B2 and B4: truncated, and longer again than before when it is looked at, with the same first KiB.
#[test]
fn b2_b4_a_file_truncated_and_longer_than_before_is_read_from_its_start() {
    let mut rig = Rig::start("b2");
    let head = "x".repeat(1022) + "#\n";
    append(&rig.log).write_all(head.as_bytes()).unwrap();
    rig.written.extend_from_slice(head.as_bytes());
    rig.write(10);
    rig.settle();
    rig.lab.stop_agent("web1");
    std::fs::File::create(&rig.log)
        .unwrap()
        .write_all(head.as_bytes())
        .unwrap();
    rig.written.extend_from_slice(head.as_bytes());
    rig.write(500);
    rig.lab.start_agent("web1");
    rig.settle();
    assert_eq!(rig.lab.search("\"gap: the file\"").len(), 1);
}

/// B3: a writer that does not append leaves a hole where its file was truncated: it is skipped and said.
#[test]
fn b3_a_hole_of_half_a_gigabyte_is_skipped_and_said() {
    let mut rig = Rig::start("b3");
    rig.write(100);
    rig.settle();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&rig.log)
        .unwrap();
    let line = line(7_777_777);
    file.set_len(0).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, line.as_bytes(), 500 << 20).unwrap();
    rig.written.extend_from_slice(line.as_bytes());
    let since = now();
    rig.settle();
    assert!(now().duration_since(since) < Duration::from_secs(15));
    let holes = rig.lab.search("\"the file has a hole of\"");
    assert_eq!(holes.len(), 1, "{holes:?}");
    assert!(holes[0].to_string().contains("at byte 0"), "{holes:?}");
}

/// A server, an agent, and one file.
struct Rig {
    lab: Lab,
    log: PathBuf,
    written: Vec<u8>,
    number: u64,
}

impl Rig {
    fn start(name: &str) -> Self {
        let mut lab = Lab::start(name);
        lab.add_agent("web1", lab.sl, "");
        lab.start_agent("web1");
        Self {
            log: lab.log("app.log"),
            lab,
            written: Vec::new(),
            number: 0,
        }
    }

    fn write(&mut self, count: u64) {
        let lines: String = (self.number..self.number + count).map(line).collect();
        self.number += count;
        append(&self.log).write_all(lines.as_bytes()).unwrap();
        self.written.extend_from_slice(lines.as_bytes());
    }

    fn settle(&self) {
        settle(&self.lab, &self.log, &self.written);
    }

    /// Renames the file and its generations, one number up, of which `last` is the highest.
    fn shift(&self, last: u32) {
        for n in (1..last).rev() {
            let _absent = rename(ext(&self.log, n), ext(&self.log, n + 1));
        }
        rename(&self.log, ext(&self.log, 1)).unwrap();
        // Modification times order generations; the file system's clock ticks every few milliseconds.
        pause(Duration::from_millis(30));
    }
}

fn ext(log: &Path, number: u32) -> PathBuf {
    log.with_extension(format!("log.{number}"))
}

/// Waits until everything written is archived, once and in order.
fn settle(lab: &Lab, log: &Path, written: &[u8]) {
    lab.wait_for_bytes("web1", log, written.len(), Duration::from_secs(90));
    let archived = lab.export("web1", log);
    let differ = archived.iter().zip(written).position(|(a, b)| a != b);
    assert!(
        differ.is_none() && archived.len() == written.len(),
        "archived {} bytes, written {}, first difference at {differ:?}",
        archived.len(),
        written.len()
    );
}

fn logrotate(lab: &Lab, log: &Path, how: &str) {
    let asked = log.with_extension(REOPEN);
    let config = format!(
        "{} {{\n rotate 300\n missingok\n ifempty\n {how}\n postrotate\n  touch {}; while [ -e {} ]; do sleep 0.002; done\n endscript\n}}\n",
        log.display(),
        asked.display(),
        asked.display()
    );
    lab.write("logrotate.conf", config.as_bytes());
    let output = Command::new("logrotate")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .args(["--force", "--state"])
        .arg(lab.dir.join("logrotate.state"))
        .arg(lab.dir.join("logrotate.conf"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}
