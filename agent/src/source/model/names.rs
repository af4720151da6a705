//! Names that say nothing of what came after them, names of other streams, and names that count upwards: what is missing
//! between a file and the next is said, and nothing where nothing is missing.

use super::cases::Case;
use super::disk::Node;

/// What is at the path is moved aside and made anew, so often.
fn rotate(case: &Case, times: usize, name: impl Fn(usize) -> String) -> String {
    let mut lines = String::new();
    for n in 0..times {
        case.rename("/log/app.log", &name(n));
        let line = format!("number {n}\n");
        case.create("/log/app.log", line.as_bytes());
        lines += &line;
    }
    lines
}

const KINDS: [fn(usize) -> String; 4] = [
    |n| format!("/log/@400000006929a{n:013x}.s"),
    |n| format!("/log/app.{n}.done"),
    |n| format!("/log/app-old{n}"),
    |n| format!("/log/{n}"),
];

/// multilog, svlogd and s6-log (`@4000….s`), `app.7.done`: such a name does not say what came after the file, and what did
/// may lie beside it under names that nobody knows.
#[test]
fn what_may_have_been_moved_aside_while_the_agent_was_stopped_is_a_gap_entry() {
    for name in KINDS {
        for times in [1, 3] {
            let mut case = Case::new();
            case.create("/log/app.log", b"the first\n");
            case.pass(5);
            case.agent.stop(usize::MAX);
            case.append("/log/app.log", b"and its end\n");
            rotate(&case, times, name);
            case.agent.start();
            case.pass(20);
            let last = format!("number {}\n", times - 1);
            let text = case.text("/log/app.log");
            assert_eq!(text, format!("the first\nand its end\n{last}"));
            let gaps = case.gaps("/log/app.log");
            assert!(
                matches!(&*gaps, [gap] if gap.contains("before it was left")),
                "{} {times}: {gaps:?}",
                name(0)
            );
        }
    }
    // Where a source names them, each is collected.
    let mut case = Case::new();
    case.create("/log/app.log", b"the first\n");
    case.pass(5);
    case.agent.stop(usize::MAX);
    rotate(&case, 3, |n| format!("/log/app-{n}th.log"));
    case.agent.start();
    case.pass(20);
    for (name, text) in [
        ("app", "the first\nnumber 2\n"),
        ("app-1th", "number 0\n"),
        ("app-2th", "number 1\n"),
    ] {
        let name = format!("/log/{name}.log");
        assert_eq!(case.text(&name), text);
        assert_eq!(case.gaps(&name), [""; 0]);
    }
    // Names of generations say what came after them.
    let mut case = Case::new();
    case.create("/log/app.log", b"the first\n");
    case.pass(5);
    case.agent.stop(usize::MAX);
    let lines = rotate(&case, 3, |n| format!("/log/app.log.{}", 9 - n));
    case.agent.start();
    case.pass(20);
    assert_eq!(case.text("/log/app.log"), format!("the first\n{lines}"));
    assert_eq!(case.gaps("/log/app.log"), [""; 0]);
}

/// A link that glog and others switch to the file that is written now.
#[test]
fn what_a_link_may_have_led_to_while_the_agent_was_stopped_is_a_gap_entry() {
    let mut case = Case::new();
    let lead = |case: &Case, n: usize| {
        let to = format!("/log/app.host.user.log.INFO.20261128-14030{n}.{n}");
        case.create(&to, format!("number {n}\n").as_bytes());
        let link = Node::Link(to.into(), 0);
        let mut disk = case.disk.lock();
        disk.names.insert("/log/app.log".into(), link);
    };
    lead(&case, 0);
    case.pass(5);
    case.agent.stop(usize::MAX);
    for n in 1..4 {
        lead(&case, n);
    }
    case.agent.start();
    case.pass(20);
    assert_eq!(case.text("/log/app.log"), "number 0\nnumber 3\n");
    assert_eq!(case.gaps("/log/app.log").len(), 1);
}

/// There is nothing at the path when the agent starts: the system tells only of what comes then.
#[test]
fn what_may_have_been_moved_aside_before_a_start_is_said_when_the_next_comes() {
    for quiet in [5, 200] {
        let mut case = Case::new();
        case.create("/log/app.log", b"the first\n");
        case.pass(5);
        case.agent.stop(usize::MAX);
        rotate(&case, 1, |_| "/log/app.0.done".into());
        case.rename("/log/app.log", "/log/app.1.done");
        case.agent.start();
        case.create("/log/else.log", b"x\n");
        case.pass(quiet);
        case.create("/log/app.log", b"the last\n");
        case.agent
            .arrive("/log/app.log", (Some(1), true), case.now());
        case.pass(20);
        assert_eq!(case.text("/log/app.log"), "the first\nthe last\n");
        assert_eq!(case.gaps("/log/app.log").len(), 1, "{quiet}");
    }
}

/// While the agent runs the system tells how many files came, where the directory is watched.
#[test]
fn what_may_have_been_moved_aside_where_nobody_tells_is_a_gap_entry() {
    for name in KINDS {
        for (times, came, is_said) in [
            (1, Some(1), false),
            (2, Some(2), true),
            (1, None, true),
            (2, None, true),
        ] {
            for quiet in [5, 50] {
                let mut case = Case::new();
                case.create("/log/app.log", b"the first\n");
                case.pass(quiet);
                rotate(&case, times, name);
                case.agent.arrive("/log/app.log", (came, true), case.now());
                case.pass(20);
                let last = format!("the first\nnumber {}\n", times - 1);
                assert_eq!(case.text("/log/app.log"), last);
                let gaps = case.gaps("/log/app.log");
                assert_eq!(
                    !gaps.is_empty(),
                    is_said,
                    "{} {times} {came:?}: {gaps:?}",
                    name(0)
                );
            }
        }
    }
}

/// java.util.logging's `app%g.log`, `Player.log` and `Player-prev.log`: each name is a stream, and what lies at one was
/// read by another.
#[test]
fn files_that_are_moved_to_the_names_of_other_streams_while_the_agent_is_stopped_miss_nothing() {
    for between in [3, 120] {
        let mut case = Case::new();
        let shift = |case: &Case, n: usize| {
            case.remove("/log/app4.log");
            for n in (0..4).rev() {
                let to = format!("/log/app{}.log", n + 1);
                case.rename(&format!("/log/app{n}.log"), &to);
            }
            case.create(
                "/log/app0.log",
                format!("line {n} of the program\n").as_bytes(),
            );
            case.rename("/log/Player.log", "/log/Player-prev.log");
            case.create(
                "/log/Player.log",
                format!("line {n} of the player\n").as_bytes(),
            );
        };
        for n in 0..12 {
            shift(&case, n);
            case.pass(between);
        }
        for n in 12..16 {
            case.agent.stop(usize::MAX);
            shift(&case, n);
            case.agent.start();
            case.pass(between);
        }
        case.pass(120);
        let archive = case.agent.archive.iter();
        let all: String = archive.clone().map(|(name, _)| case.text(name)).collect();
        for n in 0..16 {
            for whose in ["program", "player"] {
                let line = format!("line {n} of the {whose}\n");
                assert_eq!(all.matches(&line).count(), 1, "{between}: {line}{all}");
            }
        }
        for (name, archived) in archive {
            assert_eq!(archived.gaps, [""; 0], "{between}: {name}");
        }
    }
}

/// What was read of a file that another stream never had, and is gone, may be missing whatever lies at its path.
#[test]
fn a_file_that_is_gone_is_a_gap_entry_although_anothers_took_its_place() {
    let mut case = Case::new();
    case.create("/log/a.log", b"the first of a\n");
    case.create("/log/b.log", b"the first of b\n");
    case.pass(5);
    case.agent.stop(usize::MAX);
    case.append("/log/a.log", b"the end of a\n");
    case.rename("/log/b.log", "/log/a.log");
    case.create("/log/b.log", b"the second of b\n");
    case.agent.start();
    case.pass(20);
    let gaps = case.gaps("/log/a.log");
    assert!(
        matches!(&*gaps, [gap] if gap.contains("is gone")),
        "{gaps:?}"
    );
    assert_eq!(case.text("/log/b.log"), "the first of b\nthe second of b\n");
}

/// log4j2's `fileIndex=nomax`: every later number was written later, and of many the earliest are forgotten.
#[test]
fn of_generations_that_count_upwards_the_earliest_are_forgotten_without_a_word() {
    for first in [1, 95] {
        let mut case = Case::new();
        case.create("/log/app.log", b"begun\n");
        case.pass(2);
        let mut lines = String::from("begun\n");
        for n in 0..60 {
            let to = format!("/log/app.log.{}", first + n);
            case.rename("/log/app.log", &to);
            let line = format!("number {n}\n");
            case.create("/log/app.log", line.as_bytes());
            lines += &line;
            case.pass(1);
            if n % 25 == 24 {
                case.agent.stop(usize::MAX);
                case.agent.start();
            }
        }
        case.pass(60);
        assert_eq!(case.text("/log/app.log"), lines);
        assert_eq!(case.gaps("/log/app.log"), [""; 0]);
        // One whose owner set it back is said.
        let late = case.create("/log/app.log.900", b"never seen\n");
        case.disk.lock().files.get_mut(&late).unwrap().modified /= 2;
        case.pass(20);
        let gaps = case.gaps("/log/app.log");
        assert!(
            matches!(&*gaps, [gap] if gap.contains("though not by their names")),
            "{gaps:?}"
        );
    }
}
