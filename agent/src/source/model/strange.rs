//! Files whose numbers, beginnings and names are those of others: each is collected once, by one stream.

use std::path::Path;

use super::cases::Case;

/// What was made and what was moved aside while its stream could not look is found beside the path: nothing is missing.
#[test]
fn what_came_and_was_renamed_before_it_was_looked_at_is_not_gone() {
    let mut case = Case::new();
    case.create("/log/app.log", b"the first\n");
    case.pass(5);
    case.rename("/log/app.log", "/log/app.log.2");
    case.create("/log/app.log", b"the second\n");
    case.rename("/log/app.log", "/log/app.log.1");
    case.agent
        .arrive("/log/app.log", (Some(1), true), case.now());
    case.pass(80);
    case.create("/log/app.log", b"the third\n");
    case.agent
        .arrive("/log/app.log", (Some(1), true), case.now());
    case.pass(80);
    assert_eq!(
        case.text("/log/app.log"),
        "the first\nthe second\nthe third\n"
    );
    assert_eq!(case.gaps("/log/app.log"), [""; 0]);
}

/// A program that begins each of its files with the same lines makes one under another name, and the file system gives it
/// the number of one that is gone.
#[test]
fn what_is_made_at_a_path_is_nobody_elses_whatever_its_number_and_its_beginning() {
    let mut case = Case::new();
    case.create("/log/job2.log", b"the second before\n");
    let first = case.create("/log/job1.log", b"header\n");
    case.pass(5);
    case.remove("/log/job1.log");
    case.pass(200); // its stream is closed, and what it read is remembered
    case.rename("/log/job2.log", "/old/job2.log");
    assert_eq!(case.create("/log/job2.log", b"header\n"), first);
    case.agent
        .arrive("/log/job2.log", (Some(1), true), case.now());
    case.pass(10);
    assert_eq!(case.text("/log/job2.log"), "the second before\nheader\n");
}

/// Of a large file, in whose beginning a program counts, not all is collected again with each change.
#[test]
fn a_large_file_whose_beginning_is_written_over_is_said_and_not_collected_again() {
    let mut case = Case::new();
    let lines: String = (0..60_000)
        .map(|n| format!("a line, {n:07}, and more\n"))
        .collect();
    let inode = case.create("/log/ring.log", lines.as_bytes());
    case.pass(5);
    for n in 1..4 {
        let counter = format!("a count {n:06}");
        case.disk.lock().write(inode, 0, counter.as_bytes());
        case.pass(5);
    }
    case.append("/log/ring.log", b"one more\n");
    case.pass(5);
    assert!(case.text("/log/ring.log") == lines + "one more\n");
    let gaps = case.gaps("/log/ring.log");
    assert!(
        matches!(&*gaps, [gap] if gap.contains("beginning was written over")),
        "{gaps:?}"
    );
}

/// Whoever compresses a renamed file may come to its end before its writer does, who opens the new one a moment later: what the
/// compressed one holds was collected.
#[test]
fn what_was_compressed_before_its_last_line_was_written_is_collected_once() {
    for is_gone in [true, false] {
        let mut case = Case::new();
        let lines: String = (0..100).map(|n| format!("line {n:04}\n")).collect();
        case.create("/log/app.log", lines.as_bytes());
        case.pass(5);
        case.rename("/log/app.log", "/log/app.log.1");
        case.create("/log/app.log", b"the next\n");
        case.append("/log/app.log.1", b"a late one\n");
        case.pass(3);
        case.create(
            "/log/app.log.1.gz",
            &super::happenings::gzip(lines.as_bytes()),
        );
        if is_gone {
            case.remove("/log/app.log.1");
        } else {
            case.rename("/log/app.log.1.gz", "/log/app.log.2.gz");
        }
        case.pass(20);
        case.append("/log/app.log", b"and more\n");
        case.pass(2);
        case.agent.stop(1000);
        case.agent.start();
        case.pass(60);
        let text = case.text("/log/app.log").replacen("a late one\n", "", 1);
        assert_eq!(text, lines + "the next\nand more\n", "{is_gone}");
    }
}

/// A copy of the file at the path, which is written on, is no file of its own: not a compressed one either.
#[test]
fn compressed_copies_of_a_file_that_goes_on_are_not_collected() {
    let mut case = Case::new();
    let mut all = String::new();
    for n in 0..3 {
        all += &format!("{}\n", "line ".repeat(300));
        match n {
            0 => drop(case.create("/log/app.log", all.as_bytes())),
            _ => case.append("/log/app.log", &all.as_bytes()[all.len() - 1501..]),
        }
        case.pass(5);
        case.create(
            &format!("/log/app.log-2026112{n}.gz"),
            &super::happenings::gzip(all.as_bytes()),
        );
        all += "more\n";
        case.append("/log/app.log", b"more\n");
        case.pass(20);
    }
    assert_eq!(case.text("/log/app.log"), all);
}

/// `olddir`: generations are moved to a directory of their own, in which files of that name are wanted too, and compressed
/// there.
#[test]
fn generations_in_another_directory_are_collected_once() {
    let all = |case: &Case| {
        let archive = case.agent.archive.keys();
        let texts: Vec<String> = archive.map(|stream| case.text(stream)).collect();
        let mut lines: Vec<String> = texts
            .iter()
            .flat_map(|text| text.lines().map(str::to_owned))
            .collect();
        lines.sort();
        lines
    };
    for is_packed in [false, true] {
        let mut case = Case::new();
        let text = |n: u32| {
            (0..50)
                .map(|line| format!("of {n}, line {line:03}\n"))
                .collect::<String>()
        };
        case.create("/log/app.log", text(0).as_bytes());
        case.pass(20);
        for n in 1..5 {
            for k in (1..n).rev() {
                for end in ["", ".gz"] {
                    let name = |k: u32| format!("/log/old/app.log.{k}{end}");
                    if case.disk.lock().inode(Path::new(&name(k))).is_some() {
                        case.rename(&name(k), &name(k + 1));
                    }
                }
            }
            case.rename("/log/app.log", "/log/old/app.log.1");
            if is_packed {
                let packed = super::happenings::gzip(text(n - 1).as_bytes());
                case.create("/log/old/app.log.1.gz", &packed);
                case.remove("/log/old/app.log.1");
            }
            case.create("/log/app.log", text(n).as_bytes());
            case.pass(40);
        }
        let expected: Vec<String> = (0..5)
            .flat_map(|n| text(n).lines().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        assert!(
            all(&case) == expected,
            "{is_packed}: {} lines",
            all(&case).len()
        );
    }
}

/// A generation that has several names, or wanders from one file's to another's, is collected once.
#[test]
fn a_generation_of_several_streams_is_collected_once() {
    let mut case = Case::new();
    for n in 0..4 {
        case.create(&format!("/log/x{n}.log"), format!("of {n}\n").as_bytes());
    }
    case.pass(10);
    let text: String = (0..100).map(|n| format!("line {n:04}\n")).collect();
    case.create("/log/x0.log.1", text.as_bytes());
    case.pass(30);
    for n in 1..4 {
        case.rename(
            &format!("/log/x{}.log.1", n - 1),
            &format!("/log/x{n}.log.1"),
        );
        case.pass(30);
    }
    let texts: String = (0..4)
        .map(|n| case.text(&format!("/log/x{n}.log")))
        .collect();
    assert_eq!(texts.matches("line 0000").count(), 1);
    assert_eq!(texts.matches("line 0099").count(), 1);
}
