//! What is written is archived: every line, once, in order, byte for byte.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use scrinium_tests::corpus::Corpus;
use scrinium_tests::lab::Lab;
use scrinium_tests::random::Random;
use scrinium_tests::{pause, wait_until};

/// A million lines while agent and server are killed in turn, and the file is rotated twice.
#[test]
fn a_million_lines_survive_twenty_kills_and_two_rotations() {
    let mut lab = Lab::start("million");
    lab.add_agent("web1", lab.sl, "");
    lab.start_agent("web1");
    let path = lab.log("app.log");
    let writer = {
        let path = path.clone();
        std::thread::spawn(move || write_and_rotate(&path))
    };
    // Kills at random moments, alternately, spread over the writing and the catching up after it.
    let mut random = Random::from_env_or(0x5eed);
    for round in 0..KILLS {
        pause(Duration::from_millis(150 + random.below(700)));
        if round % 2 == 0 {
            lab.kill_agent("web1");
            pause(Duration::from_millis(random.below(300)));
            lab.start_agent("web1");
        } else {
            lab.kill_server();
            pause(Duration::from_millis(random.below(300)));
            lab.start_server();
        }
    }
    let expected = writer.join().unwrap();
    lab.wait_for_bytes("web1", &path, expected.len(), Duration::from_secs(180));
    assert_same(&lab.export("web1", &path), &expected);
    assert_eq!(lab.count("stream:app.log \"seq=\""), LINES);
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
    // The writer held still between copy and truncation; the agent cannot know that, and says so when it
    // was there to see a truncation.
    let gaps = lab.count("agent:web1 stream:app.log gap");
    assert!(
        gaps <= 1 && report.contains(&format!("; {gaps} gap entries")),
        "{report}"
    );

    // What was sealed meanwhile and what is still in the log are searched alike.
    lab.stop_server();
    lab.start_server();
    wait_until("the logs are sealed", Duration::from_secs(120), || {
        std::fs::read_dir(lab.data().join("log")).unwrap().count() <= 1
    });
    assert_eq!(lab.search("seq=000000777777").len(), 1);
    assert_eq!(lab.verify().0, 0);
    assert_same(&lab.export("web1", &path), &expected);
}

/// Appends a million lines; renames the file after a third and truncates it, as copytruncate does
/// while the writer is idle, after two thirds. Returns everything written, in order.
fn write_and_rotate(path: &Path) -> Vec<u8> {
    let mut corpus = Corpus::new();
    let mut all = Vec::new();
    let mut file = append(path);
    let mut chunk = Vec::new();
    let chunks = LINES / CHUNK;
    for n in 0..chunks {
        if n == chunks / 3 {
            #[expect(clippy::disallowed_methods, reason = "what logrotate does")]
            std::fs::rename(path, path.with_extension("log.1")).unwrap();
            file = append(path);
        }
        if n == chunks * 2 / 3 {
            std::fs::copy(path, path.with_extension("log.2")).unwrap();
            file.set_len(0).unwrap();
        }
        chunk.clear();
        corpus.lines(CHUNK, &mut chunk);
        file.write_all(&chunk).unwrap();
        all.extend_from_slice(&chunk);
        pause(Duration::from_millis(8));
    }
    all
}

#[test]
fn a_line_without_its_end_arrives_and_is_joined_with_its_rest() {
    let mut lab = Lab::start("unfinished");
    lab.add_agent("web1", lab.sl, "");
    let path = lab.log("app.log");
    let mut file = append(&path);
    file.write_all(b"first line\nbegun but not").unwrap();
    lab.start_agent("web1");
    wait_until("the beginning arrives", Duration::from_secs(20), || {
        lab.count("begun") == 1
    });
    file.write_all(b" ended until now\nlast\n").unwrap();
    let expected = b"first line\nbegun but not ended until now\nlast\n";
    lab.wait_for_bytes("web1", &path, expected.len(), Duration::from_secs(20));
    assert_same(&lab.export("web1", &path), expected);
    assert_eq!(lab.verify().0, 0);
}

#[test]
fn any_bytes_are_archived_as_they_are() {
    let mut lab = Lab::start("bytes");
    lab.add_agent("web1", lab.sl, "");
    let path = lab.log("odd.log");
    let mut bytes = Vec::new();
    for line in [
        "crlf\r\n",
        "\n",
        "\u{fffd}nul\0inside\n",
        "lone\rcarriage\n",
        "\u{1b}[31mred\u{1b}[0m <script>alert(1)</script>\n",
    ] {
        bytes.extend_from_slice(line.as_bytes());
    }
    bytes.extend((0..=255_u8).filter(|&byte| byte != b'\n'));
    bytes.push(b'\n');
    bytes.extend("U\0T\0F\0-\x001\x006\0\n\0".bytes());
    // Longer than an entry: linked fragments.
    bytes.extend(std::iter::repeat_n(b'x', 1_000_000));
    bytes.extend_from_slice(b" needle\nlast line without end");
    append(&path).write_all(&bytes).unwrap();
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &path, bytes.len(), Duration::from_secs(30));
    assert_same(&lab.export("web1", &path), &bytes);
    assert_eq!(lab.verify().0, 0);
}

#[test]
fn a2_rotations_while_the_agent_is_stopped_are_read_in_order() {
    let mut lab = Lab::start("stopped");
    lab.add_agent("web1", lab.sl, "");
    let path = lab.log("app.log");
    let mut corpus = Corpus::new();
    let mut all = Vec::new();
    let mut write = |count| {
        let mut chunk = Vec::new();
        corpus.lines(count, &mut chunk);
        append(&path).write_all(&chunk).unwrap();
        all.extend_from_slice(&chunk);
        all.len()
    };
    write(1000);
    lab.start_agent("web1");
    let len = write(1000);
    lab.wait_for_bytes("web1", &path, len, Duration::from_secs(30));
    lab.stop_agent("web1");

    write(500);
    rotate(&path, "log.1", "log.2");
    write(500);
    rotate(&path, "log.1", "log.2");
    let len = write(500);
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &path, len, Duration::from_secs(30));
    assert_same(&lab.export("web1", &path), &all);
    assert!(lab.verify().1.contains("; 0 gap entries"));
}

/// A glob that matches old generations too: they are read once, in order, as part of one stream.
#[test]
fn old_generations_that_match_the_glob_are_read_once_and_first() {
    let mut lab = Lab::start("history");
    lab.add_agent("web1", lab.sl, "");
    let config = format!(
        "[[source]]\nfile = \"{}/logs/app.log*\"\n",
        lab.dir.display()
    );
    lab.write("web1.toml", config.as_bytes());
    let path = lab.log("app.log");
    for line in ["one\n", "two\n", "three\n"] {
        append(&path).write_all(line.as_bytes()).unwrap();
        rotate(&path, "log.1", "log.2");
    }
    // The oldest was overwritten before the agent ever ran; two generations and the file are left.
    append(&path).write_all(b"four\n").unwrap();
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &path, 15, Duration::from_secs(30));
    rotate(&path, "log.1", "log.2");
    append(&path).write_all(b"five\n").unwrap();
    lab.wait_for_bytes("web1", &path, 20, Duration::from_secs(30));
    assert_same(&lab.export("web1", &path), b"two\nthree\nfour\nfive\n");
    assert_eq!(lab.count("agent:web1"), 4);
}

#[test]
fn a_file_that_vanished_unread_leaves_a_gap_entry() {
    let mut lab = Lab::start("vanished");
    lab.add_agent("web1", lab.sl, "");
    let path = lab.log("app.log");
    append(&path).write_all(b"one\n").unwrap();
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &path, 4, Duration::from_secs(30));
    lab.stop_agent("web1");
    append(&path).write_all(b"never read\n").unwrap();
    std::fs::remove_file(&path).unwrap();
    append(&path).write_all(b"two\n").unwrap();
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &path, 8, Duration::from_secs(30));
    assert_same(&lab.export("web1", &path), b"one\ntwo\n");
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
    assert!(report.contains("; 1 gap entries"), "{report}");
    assert!(lab.search("gap").iter().any(|entry| entry["gap"] == true));
}

/// As logrotate with two generations: `.1` becomes `.2`, the file becomes `.1`.
#[expect(clippy::disallowed_methods, reason = "what logrotate does")]
fn rotate(path: &Path, first: &str, second: &str) {
    let _absent = std::fs::rename(path.with_extension(first), path.with_extension(second));
    std::fs::rename(path, path.with_extension(first)).unwrap();
    // Modification times order generations; the file system's clock ticks every few milliseconds.
    pause(Duration::from_millis(30));
}

fn append(path: &Path) -> File {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .unwrap()
}

/// Compares without printing megabytes.
fn assert_same(archived: &[u8], written: &[u8]) {
    let differ = archived.iter().zip(written).position(|(a, b)| a != b);
    assert!(
        differ.is_none() && archived.len() == written.len(),
        "archived {} bytes, written {}, first difference at {differ:?}",
        archived.len(),
        written.len()
    );
}

const LINES: u64 = 1_000_000;
const CHUNK: u64 = 1_000;
const KILLS: u32 = 20;
