//! What worlds meet too rarely: single courses of events, each as it was found.

use std::path::Path;
use std::time::{Duration, Instant};

use super::agent::Agent;
use super::disk::{Node, SimDisk};
use crate::clock;

/// An agent, and the files that it collects.
pub(super) struct Case {
    pub(super) disk: SimDisk,
    pub(super) agent: Agent,
    now: Instant,
    _runtime: tokio::runtime::Runtime,
}

fn logs(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "log")
}

impl Case {
    pub(super) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap();
        let disk = SimDisk::default();
        disk.lock().clock = Duration::from_secs(1_795_000_000);
        let mut agent = Agent::new(disk.clone(), logs, runtime.handle().clone());
        agent.start();
        Self {
            disk,
            agent,
            now: clock::now(),
            _runtime: runtime,
        }
    }

    pub(super) fn create(&self, path: &str, bytes: &[u8]) -> u64 {
        let mut disk = self.disk.lock();
        let inode = disk.create(Path::new(path));
        disk.write(inode, 0, bytes);
        inode
    }

    pub(super) fn append(&self, path: &str, bytes: &[u8]) {
        let mut disk = self.disk.lock();
        let inode = disk.inode(Path::new(path)).unwrap();
        let len = disk.files[&inode].bytes.len();
        disk.write(inode, len, bytes);
    }

    /// Empties a file and writes it anew.
    fn rewrite(&self, path: &str, bytes: &[u8]) {
        let mut disk = self.disk.lock();
        let inode = disk.inode(Path::new(path)).unwrap();
        disk.files.get_mut(&inode).unwrap().bytes.clear();
        disk.write(inode, 0, bytes);
    }

    pub(super) fn rename(&self, from: &str, to: &str) {
        self.disk.lock().rename(Path::new(from), Path::new(to));
    }

    pub(super) fn remove(&self, path: &str) {
        self.disk.lock().remove(Path::new(path));
    }

    pub(super) const fn now(&self) -> Instant {
        self.now
    }

    /// So many seconds pass, and the agent looks in each.
    pub(super) fn pass(&mut self, seconds: u32) {
        for _ in 0..seconds {
            let second = Duration::from_secs(1);
            self.now += second;
            self.disk.lock().clock += second;
            self.agent.pass(self.now, false);
            self.agent.deliver(1000);
        }
    }

    pub(super) fn text(&self, stream: &str) -> String {
        let archived = self.agent.archive.get(stream);
        let bytes = archived.map_or(&[][..], |archived| &archived.bytes);
        String::from_utf8_lossy(bytes).into_owned()
    }

    pub(super) fn gaps(&self, stream: &str) -> Vec<String> {
        let archived = self.agent.archive.get(stream);
        archived.map_or_else(Vec::new, |archived| archived.gaps.clone())
    }
}

/// A file system gives the number of a file that was deleted to the next one: that may be another program's, of which the
/// name begins alike.
#[test]
fn a_file_that_has_the_number_of_a_settled_one_of_another_name_is_collected() {
    let mut case = Case::new();
    let first = case.create("/log/app.log", b"the first of app\n");
    case.pass(2);
    case.rename("/log/app.log", "/log/app.log.1");
    case.create("/log/app.log", b"the second of app\n");
    // It is let go when nobody wrote to it for a while.
    case.pass(40);
    case.remove("/log/app.log.1");
    case.pass(10);
    let again = case.create(
        "/log/app2.log",
        b"the first of app2, which is another program\n",
    );
    assert_eq!(first, again);
    case.pass(20);
    assert_eq!(
        case.text("/log/app.log"),
        "the first of app\nthe second of app\n"
    );
    assert_eq!(
        case.text("/log/app2.log"),
        "the first of app2, which is another program\n"
    );
    // Nor is it taken for one when the agent starts anew.
    case.agent.stop(usize::MAX);
    case.agent.start();
    case.append("/log/app2.log", b"more\n");
    case.pass(10);
    assert!(case.text("/log/app2.log").ends_with("program\nmore\n"));
    assert!(case.gaps("/log/app2.log").is_empty());
}

/// The same number, while the stream of the deleted file is closed.
#[test]
fn a_file_that_has_the_number_of_a_quiet_one_that_is_gone_is_collected() {
    let mut case = Case::new();
    let first = case.create("/log/app.log", b"app\n");
    case.pass(40); // quiet files are closed
    case.remove("/log/app.log");
    let again = case.create("/log/other.log", b"of another program\n");
    assert_eq!(first, again);
    case.pass(10);
    assert_eq!(case.text("/log/app.log"), "app\n");
    assert_eq!(case.text("/log/other.log"), "of another program\n");
}

/// What a settled file was is known by its content wherever its name goes.
#[test]
fn a_rotated_file_that_the_source_names_too_is_read_once() {
    let mut case = Case::new();
    case.create("/log/app.log", b"the first\n");
    case.pass(2);
    case.rename("/log/app.log", "/log/app-Mon.log");
    case.create("/log/app.log", b"the second\n");
    case.pass(50);
    case.append("/log/app-Mon.log", b"late\n");
    case.pass(20);
    assert_eq!(case.text("/log/app.log"), "the first\nthe second\nlate\n");
    assert_eq!(case.text("/log/app-Mon.log"), "");
    // A week later another is written under that name, in the same file.
    let inode = case
        .disk
        .lock()
        .inode(Path::new("/log/app-Mon.log"))
        .unwrap();
    case.disk
        .lock()
        .files
        .get_mut(&inode)
        .unwrap()
        .bytes
        .clear();
    case.append(
        "/log/app-Mon.log",
        b"of another week, and not of the one before\n",
    );
    case.pass(20);
    let week = "of another week, and not of the one before\n";
    assert_eq!(case.text("/log/app-Mon.log"), week);
}

/// A directory that is closed for a moment is no proof that what lies in it is gone.
#[test]
fn a_directory_that_refuses_for_a_moment_makes_no_settled_file_gone() {
    let mut case = Case::new();
    let link = Node::Link("/pods/0.log".into(), 0);
    case.disk.lock().names.insert("/log/app.log".into(), link);
    case.create("/pods/0.log", b"the first\n");
    case.pass(2);
    case.rename("/pods/0.log", "/pods/0.log.1");
    case.create("/pods/0.log", b"the second\n");
    case.pass(40);
    case.append("/pods/0.log.1", b"late\n");
    case.pass(50);
    case.disk.lock().refused = Some("/pods".into());
    case.create("/log/else.log", b"x\n");
    case.pass(20);
    case.disk.lock().refused = None;
    case.append("/pods/0.log.1", b"later\n");
    case.pass(20);
    assert_eq!(
        case.text("/log/app.log"),
        "the first\nthe second\nlate\nlater\n"
    );
    assert!(
        case.gaps("/log/app.log").is_empty(),
        "{:?}",
        case.gaps("/log/app.log")
    );
}

/// The last line of a compressed file has no line feed, and the spool no room for it just then: a batch is full with the
/// line before it, and nobody takes the one before that.
#[test]
fn the_last_line_of_a_compressed_file_waits_for_room() {
    // As many entries as a batch takes beside what may have to be said in it, or nearly.
    for full in 4086..=4090 {
        let mut case = Case::new();
        case.create("/log/app.log", b"begun\n");
        case.pass(2);
        case.agent.stop(usize::MAX);
        let lines = "x\n".repeat(full * 6);
        let bytes = format!("begun\n{lines}and the last, without its end");
        case.append("/log/app.log", &bytes.as_bytes()[6..]);
        let packed = super::happenings::gzip(bytes.as_bytes());
        case.create("/log/app.log.1.gz", &packed);
        case.remove("/log/app.log");
        case.disk.lock().clock += Duration::from_secs(5);
        case.create("/log/app.log", b"the second\n");
        case.agent.start();
        for _ in 0..40 {
            case.now += Duration::from_secs(1);
            case.disk.lock().clock += Duration::from_secs(1);
            case.agent.pass(case.now, false);
            case.agent.deliver(1); // one at a time
        }
        case.pass(20);
        let text = case.text("/log/app.log");
        assert!(
            text == format!("{bytes}the second\n"),
            "{full}: {}",
            text.len()
        );
    }
}

/// What is compared with a large compressed file takes many turns, and comes to the same.
#[test]
fn a_large_compressed_file_is_found_again_by_its_content() {
    let lines = (0..300_000).map(|n| format!("line {n} of many, each a little long\n"));
    let bytes = lines.collect::<String>().into_bytes();
    let zstd = zstd::stream::encode_all(&*bytes, 1).unwrap();
    for (name, packed) in [("gz", super::happenings::gzip(&bytes)), ("zst", zstd)] {
        let mut case = Case::new();
        case.create("/log/app.log", &bytes[..9_000_000]);
        case.pass(5);
        case.agent.stop(usize::MAX);
        case.create(&format!("/log/app.log.1.{name}"), &packed);
        case.remove("/log/app.log");
        case.disk.lock().clock += Duration::from_secs(5);
        case.create("/log/app.log", b"the second\n");
        case.agent.start();
        for _ in 0..1000 {
            case.now += Duration::from_millis(50);
            case.disk.lock().clock += Duration::from_millis(50);
            case.agent.pass(case.now, false);
            case.agent.deliver(1000);
        }
        let text = case.text("/log/app.log");
        let expected = [&*bytes, b"the second\n"].concat();
        assert!(text.as_bytes() == expected, "{name}: {}", text.len());
        let gaps = case.gaps("/log/app.log");
        assert!(gaps.is_empty(), "{gaps:?}");
    }
}

/// A name that is no text is rotated like any other.
#[cfg(unix)]
#[test]
fn a_file_whose_name_is_no_text_is_followed_through_its_rotation() {
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::PathBuf;
    let mut case = Case::new();
    let path = |name: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(name));
    let (own, old) = (path(b"/log/\xfcber.log"), path(b"/log/\xfcber.log.1"));
    let inode = case.disk.lock().create(&own);
    case.disk.lock().write(inode, 0, b"the first\n");
    case.pass(2);
    case.agent.stop(usize::MAX);
    case.disk.lock().write(inode, 10, b"and its end\n");
    case.disk.lock().rename(&own, &old);
    let inode = case.disk.lock().create(&own);
    case.disk.lock().write(inode, 0, b"the second\n");
    case.agent.start();
    case.pass(5);
    let name = crate::source::discover::name_of(&own);
    assert_eq!(case.text(&name), "the first\nand its end\nthe second\n");
    assert!(case.gaps(&name).is_empty());
}

/// `job > job.log` with lines of one length: between two looks nothing shows it but the file's time and content.
#[test]
fn a_file_that_is_written_anew_as_long_as_before_is_collected() {
    // While it is open, and while it is closed because it is quiet.
    for quiet in [2, 50] {
        let mut case = Case::new();
        case.create("/log/job.log", b"run 0\n");
        case.pass(quiet);
        for n in 1..4 {
            case.rewrite("/log/job.log", format!("run {n}\n").as_bytes());
            case.pass(quiet);
        }
        assert_eq!(case.text("/log/job.log"), "run 0\nrun 1\nrun 2\nrun 3\n");
    }
    // Longer than what is compared of it: only its start is another.
    let mut case = Case::new();
    let text = |n: u32| format!("run {n}\n{}", "the same in each\n".repeat(1000));
    case.create("/log/job.log", text(0).as_bytes());
    case.pass(2);
    case.rewrite("/log/job.log", text(1).as_bytes());
    case.pass(2);
    assert_eq!(case.text("/log/job.log"), text(0) + &text(1));
}

/// What nobody can tell from a file of which only the time was set is said, and not for ever.
#[test]
fn a_file_that_is_written_anew_with_the_same_is_a_gap_entry() {
    for quiet in [2, 50] {
        let mut case = Case::new();
        case.create("/log/job.log", b"done\n");
        case.pass(quiet);
        assert!(case.gaps("/log/job.log").is_empty());
        for _ in 0..4 {
            case.rewrite("/log/job.log", b"done\n");
            case.pass(quiet);
        }
        let gaps = case.gaps("/log/job.log");
        assert!(
            matches!(&*gaps, [gap] if gap.contains("the file's time changed")),
            "{gaps:?}"
        );
        // It is collected on as ever.
        case.append("/log/job.log", b"more\n");
        case.pass(2);
        assert_eq!(case.text("/log/job.log"), "done\nmore\n");
    }
}

/// What is being written has its new time before it is longer: that is no doubt.
#[test]
fn a_file_that_is_looked_at_in_the_middle_of_a_write_has_no_gap_entry() {
    let mut case = Case::new();
    case.create("/log/app.log", b"first\n");
    case.pass(2);
    for n in 0..4 {
        case.rewrite("/log/app.log", case.text("/log/app.log").as_bytes());
        case.pass(1);
        case.append("/log/app.log", format!("line {n}\n").as_bytes());
        case.pass(20);
    }
    assert!(case.gaps("/log/app.log").is_empty());
    assert!(case.text("/log/app.log").ends_with("line 3\n"));
}

/// Of what comes and goes between two looks nobody knows more than that it may have been.
#[test]
fn what_may_have_been_between_a_file_and_the_next_is_a_gap_entry() {
    // Deleted twice; moved away twice, to where nobody looks.
    for moves in [false, true] {
        let mut case = Case::new();
        case.create("/log/app.log", b"the first\n");
        case.pass(2);
        for n in 0..2 {
            match moves {
                true => case.rename("/log/app.log", &format!("/old/{n}")),
                false => case.remove("/log/app.log"),
            }
            case.create("/log/app.log", format!("number {n}\n").as_bytes());
        }
        case.pass(10);
        assert_eq!(case.text("/log/app.log"), "the first\nnumber 1\n");
        let gaps = case.gaps("/log/app.log");
        assert!(
            matches!(&*gaps, [gap] if gap.contains("before it was left")),
            "{gaps:?}"
        );
    }
    // Where all are found, nothing is missing.
    let mut case = Case::new();
    case.create("/log/app.log", b"the first\n");
    case.pass(2);
    for n in 0..2 {
        case.rename("/log/app.log", &format!("/log/app.log.{}", 2 - n));
        case.create("/log/app.log", format!("number {n}\n").as_bytes());
    }
    case.pass(10);
    assert_eq!(case.text("/log/app.log"), "the first\nnumber 0\nnumber 1\n");
    assert!(case.gaps("/log/app.log").is_empty());
}

/// Where the system tells how many files came, only what is missing of these is said.
#[test]
fn as_many_files_as_came_are_found_or_a_gap_entry_says_that_not() {
    for (came, is_missing) in [(1, false), (2, true)] {
        let mut case = Case::new();
        case.create("/log/app.log", b"the first\n");
        case.pass(5);
        case.rename("/log/app.log", "/old/0");
        case.create("/log/app.log", b"the second\n");
        case.agent
            .arrive("/log/app.log", (Some(came), true), case.now);
        case.pass(10);
        assert_eq!(case.text("/log/app.log"), "the first\nthe second\n");
        assert_eq!(!case.gaps("/log/app.log").is_empty(), is_missing);
    }
    // The last is the one that was read, or there is none.
    for (is_back, came, is_missing) in [
        (true, 1, false),
        (true, 2, true),
        (false, 0, false),
        (false, 1, true),
    ] {
        let mut case = Case::new();
        case.create("/log/app.log", b"the first\n");
        case.pass(5);
        case.rename("/log/app.log", "/log/else");
        if is_back {
            case.rename("/log/else", "/log/app.log");
        }
        case.agent
            .arrive("/log/app.log", (Some(came), false), case.now);
        case.pass(80);
        assert_eq!(!case.gaps("/log/app.log").is_empty(), is_missing);
    }
    // There is none for a while, and the stream is kept open.
    for (came, is_missing) in [(1, false), (3, true)] {
        let mut case = Case::new();
        case.create("/log/app.log", b"the first\n");
        case.pass(5);
        case.rename("/log/app.log", "/log/app.log.1");
        case.pass(20);
        case.create("/log/app.log", b"the second\n");
        case.agent
            .arrive("/log/app.log", (Some(came), true), case.now);
        case.pass(10);
        assert_eq!(case.text("/log/app.log"), "the first\nthe second\n");
        assert_eq!(!case.gaps("/log/app.log").is_empty(), is_missing);
    }
}

/// Names that have a stream each are moved one to the other's: java.util.logging's `app%g.log`, `Player-prev.log`, names
/// exchanged. Each file is read once.
#[test]
fn files_that_are_moved_to_the_names_of_other_streams_are_read_once() {
    let all = |case: &Case| {
        let archive = case.agent.archive.values();
        let bytes = archive.flat_map(|archived| archived.bytes.clone());
        String::from_utf8(bytes.collect()).unwrap()
    };
    for between in [1, 10, 45, 120] {
        let mut case = Case::new();
        let mut lines = Vec::new();
        let mut line = |case: &Case, path: &str| {
            let line = format!("line {} of the program\n", lines.len());
            case.append(path, line.as_bytes());
            lines.push(line);
        };
        for name in ["app0", "app1", "app2", "Player", "Player-prev", "a", "b"] {
            let path = format!("/log/{name}.log");
            case.create(&path, b"");
            line(&case, &path);
        }
        case.pass(3);
        for _ in 0..4 {
            for (from, to) in [
                ("app1", "app2"),
                ("app0", "app1"),
                ("Player", "Player-prev"),
            ] {
                case.rename(&format!("/log/{from}.log"), &format!("/log/{to}.log"));
            }
            for (from, to) in [("a.log", "c"), ("b.log", "a.log"), ("c", "b.log")] {
                case.rename(&format!("/log/{from}"), &format!("/log/{to}"));
            }
            for path in ["/log/app0.log", "/log/Player.log"] {
                case.create(path, b"");
                line(&case, path);
            }
            case.pass(between);
            for path in [
                "/log/app0.log",
                "/log/Player.log",
                "/log/a.log",
                "/log/b.log",
            ] {
                line(&case, path);
            }
            case.pass(between);
        }
        case.pass(120);
        let text = all(&case);
        for line in lines {
            let times = text.matches(&line).count();
            assert_eq!(times, 1, "{between}: {line}{text}");
        }
    }
}

/// A directory that is a file now holds nothing any more, and nothing is wrong with that.
#[test]
fn a_directory_that_becomes_a_file_is_no_trouble() {
    let mut case = Case::new();
    case.create("/log/d.log/in.log", b"in it\n");
    case.pass(3);
    case.remove("/log/d.log/in.log");
    case.create("/log/d.log", b"itself\n");
    for _ in 0..100 {
        case.pass(1);
        assert_eq!(case.agent.troubles(), 0);
    }
    assert_eq!(case.text("/log/d.log/in.log"), "in it\n");
    assert_eq!(case.text("/log/d.log"), "itself\n");
}

/// A program that begins each file with the same, and more of it than is compared, and writes little else.
#[test]
fn files_that_begin_alike_are_all_collected_however_long_that_is() {
    let banner: String = (0..40)
        .map(|n| format!("starting with option {n:03}, always the same\n"))
        .collect();
    for between in [3, 50] {
        let mut case = Case::new();
        for n in 0..4 {
            case.create("/log/app.log", banner.as_bytes());
            case.pass(between);
            case.rename("/log/app.log", &format!("/log/app.log.{}", 9 - n));
        }
        case.pass(between);
        let text = case.text("/log/app.log");
        assert_eq!(text.matches("option 000").count(), 4, "{between}");
        assert!(text == banner.repeat(4));
        // A start in the middle changes nothing.
        case.create("/log/app.log", banner.as_bytes());
        case.pass(between);
        case.agent.stop(usize::MAX);
        case.agent.start();
        case.pass(between);
        assert!(case.text("/log/app.log") == banner.repeat(5), "{between}");
    }
}

/// Cut back to the end of an earlier record: what is still there is collected once more, and that is said.
#[test]
fn what_is_collected_again_after_a_truncation_is_said() {
    let mut case = Case::new();
    case.create("/log/app.log", b"one\ntwo\nthree\n");
    case.pass(2);
    case.rewrite("/log/app.log", b"one\ntwo\n");
    case.pass(2);
    assert_eq!(case.text("/log/app.log"), "one\ntwo\nthree\none\ntwo\n");
    let gaps = case.gaps("/log/app.log");
    assert!(
        matches!(&*gaps, [gap] if gap.contains("also what was collected before")),
        "{gaps:?}"
    );
}
