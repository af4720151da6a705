//! Which file is which, what is in it, and how many there are (scenarios C, D and F).

#![expect(clippy::disallowed_methods, reason = "what other programs do to files")]

use std::fs::{remove_file, rename};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use scrinium_tests::lab::{Lab, resident_bytes};
use scrinium_tests::writer::{append, line};
use scrinium_tests::{now, pause, wait_until};

/// C1: deleted and created at once: on many file systems the new file has the old one's inode.
#[test]
fn c1_a_new_file_in_the_place_and_inode_of_the_old_one_is_read_from_its_start() {
    let mut lab = start("c1");
    let log = lab.log("app.log");
    let mut written = Vec::new();
    for n in 0..30 {
        let lines = format!("{}{}", line(n * 2), line(n * 2 + 1));
        append(&log).write_all(lines.as_bytes()).unwrap();
        written.extend_from_slice(lines.as_bytes());
        settle(&lab, &log, &written);
        if n % 3 == 0 {
            lab.stop_agent("web1");
        }
        remove_file(&log).unwrap();
        append(&log)
            .write_all(line(1_000_000 + n).as_bytes())
            .unwrap();
        written.extend_from_slice(line(1_000_000 + n).as_bytes());
        if n % 3 == 0 {
            lab.start_agent("web1");
        }
        settle(&lab, &log, &written);
    }
}

/// C2: the disk has another number after a restart (LVM, ZFS, a cloud's disk attached again): a copy on
/// another file system is the same file to us.
#[test]
fn c2_another_device_and_inode_number_are_no_reason_to_read_again() {
    let mut lab = start("c2");
    let log = lab.log("app.log");
    let mut written: Vec<u8> = (0..100).flat_map(|n| line(n).into_bytes()).collect();
    append(&log).write_all(&written).unwrap();
    settle(&lab, &log, &written);
    lab.stop_agent("web1");
    let copy = lab.dir.join("elsewhere");
    std::fs::copy(&log, &copy).unwrap();
    remove_file(&log).unwrap();
    std::fs::copy(&copy, &log).unwrap();
    append(&log).write_all(line(100).as_bytes()).unwrap();
    written.extend_from_slice(line(100).as_bytes());
    lab.start_agent("web1");
    settle(&lab, &log, &written);
    assert!(lab.verify().1.contains("; 0 gap entries"));
}

/// C3 and C4: files that begin alike, of ten bytes, and of none.
#[test]
fn c3_c4_files_that_begin_alike_and_tiny_ones_are_all_read() {
    let lab = start("c3");
    let head = vec![b'='; 8192];
    let logs: Vec<PathBuf> = (0..4).map(|n| lab.log(&format!("app{n}.log"))).collect();
    for (n, log) in logs.iter().enumerate() {
        let text = [&head[..], b"\n", line(n as u64).as_bytes()].concat();
        append(log).write_all(&text).unwrap();
    }
    let tiny = lab.log("tiny.log");
    append(&tiny).write_all(b"ten bytes\n").unwrap();
    drop(append(&lab.log("empty.log")));
    let since = now();
    lab.wait_for_bytes("web1", &tiny, 10, Duration::from_secs(10));
    assert!(now().duration_since(since) < Duration::from_secs(4));
    for (n, log) in logs.iter().enumerate() {
        let text = [&head[..], b"\n", line(n as u64).as_bytes()].concat();
        settle(&lab, log, &text);
    }
}

/// C5: moved out of the glob and back, with two names, behind a link that changes: one stream, once.
#[test]
fn c5_moved_linked_and_retargeted_files_are_read_once() {
    let lab = start("c5");
    let log = lab.log("app.log");
    append(&log).write_all(line(0).as_bytes()).unwrap();
    settle(&lab, &log, line(0).as_bytes());
    std::fs::hard_link(&log, lab.log("twin.log")).unwrap();
    symlink(&log, lab.log("link.log")).unwrap();
    let away = lab.dir.join("away");
    rename(&log, &away).unwrap();
    pause(Duration::from_millis(1500)); // it is looked for, and not found
    rename(&away, &log).unwrap();
    append(&log).write_all(line(1).as_bytes()).unwrap();
    let written = [line(0), line(1)].concat();
    settle(&lab, &log, written.as_bytes());

    let (one, two) = (lab.dir.join("one"), lab.dir.join("two"));
    append(&one).write_all(line(2).as_bytes()).unwrap();
    append(&two).write_all(line(3).as_bytes()).unwrap();
    let link = lab.log("current.log");
    symlink(&one, &link).unwrap();
    settle(&lab, &link, line(2).as_bytes());
    remove_file(&link).unwrap();
    symlink(&two, &link).unwrap();
    settle(&lab, &link, [line(2), line(3)].concat().as_bytes());
    assert_eq!(lab.count("agent:web1 happened"), 4);
}

/// C8: the state was half written when the power went; see `segment::slots` for every cut and flip.
#[test]
fn c8_with_a_damaged_state_the_one_before_it_is_used_and_nothing_is_read_twice() {
    let mut lab = start("c8");
    let log = lab.log("app.log");
    let mut written = Vec::new();
    for n in 0..6 {
        append(&log).write_all(line(n).as_bytes()).unwrap();
        written.extend_from_slice(line(n).as_bytes());
        settle(&lab, &log, &written);
        lab.stop_agent("web1");
        // The slot written last, cut or zeroed.
        let slot = newest(&lab.state("web1"), "state");
        let len = slot.metadata().unwrap().len();
        if n % 2 == 0 {
            append(&slot).set_len(len / 2).unwrap();
        } else {
            std::fs::File::create(&slot)
                .unwrap()
                .write_all(&[0; 64])
                .unwrap();
        }
        append(&log).write_all(line(100 + n).as_bytes()).unwrap();
        written.extend_from_slice(line(100 + n).as_bytes());
        lab.start_agent("web1");
        settle(&lab, &log, &written);
    }
}

/// D1 and D3: UTF-16 and Latin-1 are archived as they are and found as text.
#[test]
fn d1_d3_what_is_not_utf_8_is_archived_as_it_is_and_found_as_text() {
    let mut lab = start("d1");
    let text = "\u{feff}première ligne ਊ\r\nzweite größe ഊ\r\nterza 𝄞 riga\r\n";
    for (name, bytes) in [
        (
            "le.log",
            text.encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect::<Vec<u8>>(),
        ),
        (
            "be.log",
            text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        ),
        (
            "bomless.log",
            text.trim_start_matches('\u{feff}')
                .encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect(),
        ),
        (
            "latin.log",
            b"premi\xe8re ligne\r\nzweite gr\xf6\xdfe\r\nterza riga\r\n".to_vec(),
        ),
    ] {
        let log = lab.log(name);
        // In two parts, the first with an odd number of bytes.
        append(&log).write_all(&bytes[..37]).unwrap();
        lab.wait_for_bytes("web1", &log, 34, Duration::from_secs(20));
        lab.stop_agent("web1");
        append(&log).write_all(&bytes[37..]).unwrap();
        lab.start_agent("web1");
        settle(&lab, &log, &bytes);
        for word in ["première", "größe", "terza"] {
            let found = lab.search(&format!("stream:{name} {word}"));
            assert_eq!(found.len(), 1, "{name} {word}");
            let message = found[0].to_string();
            assert!(
                message.contains(word) && !message.contains("\\u0000"),
                "{message}"
            );
        }
    }
    assert_eq!(lab.verify().0, 0);
}

/// D2: one line of a hundred megabytes: linked fragments, and little memory.
#[test]
fn d2_e9_a_line_of_a_hundred_megabytes_is_archived_in_linked_fragments() {
    let lab = start("d2");
    let log = lab.log("app.log");
    let mut file = append(&log);
    let mut written = Vec::new();
    for n in 0..100_u32 {
        let block: Vec<u8> = (0..1 << 20)
            .map(|i: u32| b'a' + ((i ^ n) % 26) as u8)
            .collect();
        file.write_all(&block).unwrap();
        written.extend_from_slice(&block);
    }
    written.extend_from_slice(b" end\nnext\n");
    file.write_all(b" end\nnext\n").unwrap();
    settle(&lab, &log, &written);
    let resident = resident_bytes(lab.agent_pid("web1"));
    assert!(resident < 64 << 20, "{resident} bytes resident");
    assert_eq!(lab.count("agent:web1 next"), 1);
}

/// D4: the end of a line stands at every place around the border of what is read at once.
#[test]
fn d4_lines_that_end_anywhere_around_the_border_of_a_read_are_right() {
    let lab = start("d4");
    for shift in 0..8_usize {
        let log = lab.log(&format!("app{shift}.log"));
        // What is read at once is 512 KiB: the ends of lines pass every place around its border.
        let mut bytes = vec![b'.'; shift];
        bytes.push(b'\n');
        while bytes.len() < 1_600_000 {
            bytes.extend(std::iter::repeat_n(b'x', 2 + shift % 3));
            bytes.extend_from_slice(b"\r\n");
        }
        append(&log).write_all(&bytes).unwrap();
        settle(&lab, &log, &bytes);
    }
    assert_eq!(lab.verify().0, 0);
}

/// D5: a line that is completed after a restart is one line to whoever reads it, linked by its flags.
#[test]
fn d5_a_line_completed_much_later_and_across_a_restart_is_linked() {
    let mut lab = start("d5");
    let log = lab.log("app.log");
    append(&log).write_all(b"begun ").unwrap();
    lab.wait_for_bytes("web1", &log, 6, Duration::from_secs(20));
    lab.stop_agent("web1");
    append(&log).write_all(b"and completed\nnext\n").unwrap();
    lab.start_agent("web1");
    settle(&lab, &log, b"begun and completed\nnext\n");
}

/// D6: a group of lines is one entry; open at a rotation, at a stop, or for ever, it is sent once.
#[test]
fn d6_an_entry_of_several_lines_is_sent_once_however_it_ends() {
    let mut lab = Lab::start("d6");
    lab.add_agent("web1", lab.sl, "");
    let source = format!(
        "[[source]]\nfile = \"{}/logs/*.log\"\nmultiline_start = '^\\d{{4}}-'\n",
        lab.dir.display()
    );
    lab.write("web1.toml", source.as_bytes());
    lab.start_agent("web1");
    let log = lab.log("app.log");
    let group = |n: u32| format!("2026-11-{n:02} exception\n  at one\n  at two\n");
    let mut written = String::new();
    for n in 1..=9 {
        written += &group(n);
    }
    append(&log).write_all(written.as_bytes()).unwrap();
    // The last group is never closed, and sent all the same.
    settle(&lab, &log, written.as_bytes());
    assert_eq!(lab.count("agent:web1 exception"), 9);
    let found = lab.search("\"2026-11-05 exception\"");
    assert!(found[0].to_string().contains("at two"), "{found:?}");

    append(&log).write_all(group(10).as_bytes()).unwrap();
    rename(&log, lab.log("app.log.1")).unwrap();
    append(&log).write_all(group(11).as_bytes()).unwrap();
    written += &(group(10) + &group(11));
    settle(&lab, &log, written.as_bytes());
    append(&log)
        .write_all(b"2026-11-12 exception\n  at one\n")
        .unwrap();
    lab.stop_agent("web1");
    lab.start_agent("web1");
    append(&log).write_all(b"  at two\n").unwrap();
    written += &group(12);
    settle(&lab, &log, written.as_bytes());
    assert_eq!(lab.verify().0, 0);
}

/// L5: names that are no text, and long ones, are followed through a rotation and a restart as others are.
#[test]
fn l5_files_whose_names_are_no_text_are_followed_like_others() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let mut lab = start("l5");
    let logs = lab.log("");
    let raw = logs.join(OsStr::from_bytes(b"caf\xe9.log"));
    let text = lab.log("caf\u{e9}.log");
    let long = lab.log(&format!("{}.log", "x".repeat(250)));
    let mut written = Vec::new();
    for n in 0..3 {
        for path in [&raw, &text, &long] {
            append(path).write_all(line(n).as_bytes()).unwrap();
        }
        written.extend_from_slice(line(n).as_bytes());
        let shown = logs.join("caf\u{fffd}e9.log");
        for path in [&shown, &text, &long] {
            settle(&lab, path, &written);
        }
        match n {
            0 => rename(&raw, logs.join(OsStr::from_bytes(b"caf\xe9.log.1"))).unwrap(),
            _ => {
                lab.kill_agent("web1");
                lab.start_agent("web1");
            }
        }
    }
}

/// D7: what looks like a line end, a terminal's command or another protocol's head is data.
#[test]
fn d7_bytes_that_look_like_something_else_are_inert() {
    let lab = start("d7");
    let log = lab.log("app.log");
    let text = "<34>1 2026-11-22T00:00:00Z host app - - - forged\n\u{1b}[2J\u{1b}]0;title\u{7}\n\"gap: nothing is missing\"\n";
    append(&log).write_all(text.as_bytes()).unwrap();
    // Four gibibytes of which nearly nothing was written.
    let sparse = lab.log("sparse.log");
    append(&sparse).set_len(4 << 30).unwrap();
    append(&sparse).write_all(b"at the end\n").unwrap();
    settle(&lab, &log, text.as_bytes());
    settle(&lab, &sparse, b"at the end\n");
    assert!(lab.verify().1.contains("; 1 gap entries"));
    assert!(
        lab.search("nothing")
            .iter()
            .all(|entry| entry["gap"] != true)
    );
}

/// C6: a hundred thousand old files cost little once they are read, and none of them is forgotten.
#[test]
fn c6_a_hundred_thousand_old_files_are_collected_and_none_is_forgotten() {
    let mut lab = Lab::start("c6");
    lab.add_agent("web1", lab.sl, "");
    let source = format!(
        "[[source]]\nfile = \"{}/logs/**/*.log\"\n",
        lab.dir.display()
    );
    lab.write("web1.toml", source.as_bytes());
    let count = old_files();
    let logs = lab.log("");
    let path = |n: u64| logs.join(format!("{}/app{n:06}.log", n / 1000));
    for n in 0..count {
        if n % 1000 == 0 {
            std::fs::create_dir(logs.join((n / 1000).to_string())).unwrap();
        }
        append(&path(n)).write_all(line(n).as_bytes()).unwrap();
    }
    lab.start_agent("web1");
    wait_until("every file is archived", Duration::from_secs(400), || {
        pause(Duration::from_secs(1));
        lab.count("agent:web1") >= count
    });
    // Whatever happens to an old one is noticed: more lines, a rotation, another file in its place.
    let mut expected = count;
    for n in (0..count).step_by(usize::try_from(count / 50).unwrap()) {
        match n / (count / 50) % 3 {
            0 => append(&path(n)).write_all(line(n).as_bytes()).unwrap(),
            1 => {
                append(&path(n)).write_all(line(n).as_bytes()).unwrap();
                rename(path(n), path(n).with_extension("log.1")).unwrap();
                append(&path(n)).write_all(line(n).as_bytes()).unwrap();
                expected += 1;
            }
            _ => {
                rename(path(n), logs.join(format!("{}/moved{n:06}.log", n / 1000))).unwrap();
                append(&path(n)).write_all(line(n).as_bytes()).unwrap();
            }
        }
        expected += 1;
    }
    wait_until("every change is archived", Duration::from_secs(200), || {
        pause(Duration::from_secs(1));
        lab.count("agent:web1 -gap") >= expected
    });
    assert_eq!(lab.count("agent:web1"), expected);
    let memory = resident_bytes(lab.agent_pid("web1"));
    assert!(memory < (40 << 20) + count * 1200, "{memory} bytes");
    // Nothing is read again after a restart.
    lab.stop_agent("web1");
    let state = lab.state("web1").join("state.a").metadata().unwrap().len();
    assert!(state < count * 400 + (64 << 10), "{state} bytes of state");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    append(&path(1)).write_all(line(1).as_bytes()).unwrap();
    wait_until(
        "the last line is archived",
        Duration::from_secs(200),
        || {
            pause(Duration::from_secs(1));
            lab.count("agent:web1") > expected
        },
    );
    assert_eq!(lab.count("agent:web1"), expected + 1);
}

/// `SCRINIUM_TEST_FILES`, 15,000 in the normal run.
fn old_files() -> u64 {
    let asked = std::env::var("SCRINIUM_TEST_FILES").ok();
    asked.map_or(15_000, |text| text.parse().unwrap())
}

/// F6: ten thousand files and 256 descriptors.
#[test]
fn f6_ten_thousand_files_are_followed_with_256_descriptors() {
    let mut lab = Lab::start("f6");
    lab.add_agent("web1", lab.sl, "");
    let logs: Vec<PathBuf> = (0..10_000)
        .map(|n| lab.log(&format!("app{n:05}.log")))
        .collect();
    for (n, log) in logs.iter().enumerate() {
        append(log).write_all(line(n as u64).as_bytes()).unwrap();
    }
    lab.spawn_agent("web1", "", &["prlimit", "--nofile=256:256"]);
    wait_until("every file is archived", Duration::from_secs(120), || {
        lab.count("agent:web1") >= 10_000
    });
    for log in logs.iter().step_by(3) {
        append(log).write_all(line(20_000).as_bytes()).unwrap();
    }
    for log in logs.iter().step_by(30) {
        rename(log, log.with_extension("log.1")).unwrap();
        append(log).write_all(line(20_001).as_bytes()).unwrap();
    }
    let expected = 10_000 + 3334 + 334;
    wait_until("everything is archived", Duration::from_secs(120), || {
        lab.count("agent:web1") >= expected
    });
    assert_eq!(lab.count("agent:web1"), expected);
    assert!(lab.verify().1.contains("; 0 gap entries"));
    let resident = resident_bytes(lab.agent_pid("web1"));
    assert!(resident < 80 << 20, "{resident} bytes resident");
}

/// F3: deleted files that hold disk space while the server is away are let go when they hold too much.
#[test]
fn f3_deleted_files_are_let_go_when_they_hold_too_much_disk() {
    let mut lab = Lab::start("f3");
    let limits = "[spool]\nram_bytes_max = \"512 KiB\"\ndisk_bytes_max = \"1 MiB\"\n[limits]\ndeleted_bytes_max = \"10 MiB\"";
    lab.add_agent("web1", lab.sl, limits);
    let log = lab.log("app.log");
    append(&log).write_all(line(0).as_bytes()).unwrap();
    lab.start_agent("web1");
    settle(&lab, &log, line(0).as_bytes());
    lab.stop_server();
    let mut random = scrinium_tests::random::Random::new(3);
    for _ in 0..20_000 {
        let noise: String = (0..64)
            .map(|_| format!("{:016x}", random.below(u64::MAX)))
            .collect();
        append(&log).write_all((noise + "\n").as_bytes()).unwrap();
    }
    pause(Duration::from_secs(2)); // the spool is full
    remove_file(&log).unwrap();
    let pid = lab.agent_pid("web1");
    let holds = || {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .flatten();
        let mut names = descriptors.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        names.any(|name| name.to_string_lossy().contains("app.log (deleted)"))
    };
    wait_until("the file is let go", Duration::from_secs(30), || !holds());
    lab.start_server();
    append(&log).write_all(line(1).as_bytes()).unwrap();
    wait_until("the gap is said", Duration::from_secs(60), || {
        lab.count("\"the file was deleted, and let go\"") == 1
    });
    wait_until("the new file is read", Duration::from_secs(60), || {
        lab.count("agent:web1 0000000001") == 1
    });
}

fn start(name: &str) -> Lab {
    let mut lab = Lab::start(name);
    lab.add_agent("web1", lab.sl, "");
    lab.start_agent("web1");
    lab
}

/// Waits until everything written is archived, once and in order.
fn settle(lab: &Lab, log: &Path, written: &[u8]) {
    lab.wait_for_bytes("web1", log, written.len(), Duration::from_secs(60));
    let archived = lab.export("web1", log);
    let differ = archived.iter().zip(written).position(|(a, b)| a != b);
    assert!(
        differ.is_none() && archived.len() == written.len(),
        "archived {} bytes, written {}, first difference at {differ:?}",
        archived.len(),
        written.len()
    );
}

/// The file in `dir` that was written last, of those whose names begin like this.
fn newest(dir: &Path, prefix: &str) -> PathBuf {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let newest = named.max_by_key(|entry| entry.metadata().unwrap().modified().unwrap());
    newest.unwrap().path()
}
