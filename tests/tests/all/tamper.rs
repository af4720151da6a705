//! One byte of an archived segment is flipped: it is named, and the rest is served.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use scrinium_tests::corpus::Corpus;
use scrinium_tests::lab::{Lab, text};
use scrinium_tests::wait_until;

#[test]
fn a_flipped_byte_anywhere_in_a_segment_is_found_and_named_and_the_rest_is_served() {
    let mut lab = Lab::start("tamper");
    lab.add_agent("web1", lab.sl, "");
    for name in ["a.log", "b.log"] {
        let mut lines = Vec::new();
        Corpus::new().lines(8000, &mut lines);
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(lab.log(name))
            .unwrap()
            .write_all(&lines)
            .unwrap();
    }
    lab.start_agent("web1");
    wait_until("everything is archived", Duration::from_secs(60), || {
        lab.count("stream:.log") == 16_000
    });
    lab.stop_agent("web1");
    lab.stop_server();
    lab.start_server();
    let archive = lab.data().join("archive");
    let segment = || {
        let files = std::fs::read_dir(&archive).unwrap().flatten();
        files
            .max_by_key(|file| file.metadata().unwrap().len())
            .map(|file| file.path())
    };
    wait_until("the log is sealed", Duration::from_secs(60), || {
        std::fs::read_dir(lab.data().join("log")).unwrap().count() == 1 && segment().is_some()
    });
    let path = segment().unwrap();
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(lab.verify().0, 0);

    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let len = file.metadata().unwrap().len();
    let flip = |at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    };
    // Header, first record's length, inside blocks, filters, index, end: spread over all of it.
    let places = [
        0,
        9,
        20,
        60,
        80,
        88,
        92,
        93,
        len / 4,
        len / 2,
        len * 3 / 4,
        len * 9 / 10,
        len - 40,
        len - 20,
        len - 1,
    ];
    for at in places {
        flip(at);
        let (code, report) = lab.verify();
        assert_eq!(code, 3, "byte {at} of {len}: {report}");
        assert!(
            report.contains(&name)
                && report.contains("web1")
                // The agent's own stream is in the segment too, if it came in time, and may lie first.
                && [".log sequence", "stream scrinium-agent sequence"]
                    .iter()
                    .any(|stream| report.contains(stream))
                && report.contains("sequence"),
            "{report}"
        );
        flip(at);
    }
    assert_eq!(lab.verify().0, 0);

    flip(len / 4);
    let served = lab.count("seq*");
    assert!(
        (1..16_000).contains(&served) && served >= 7000,
        "{served} of 16000 served"
    );
    flip(len / 4);
    assert_eq!(lab.count("seq*"), 16_000);

    // What was verified is not read again by who asks for what is new, and a range is a range.
    let verify = |more: &[&str]| {
        let output = lab.server(&[&["verify"], more].concat());
        (output.status.code(), text(&output.stdout))
    };
    let (code, report) = verify(&["--incremental"]);
    assert!(
        code == Some(0) && report.contains("were verified before"),
        "{report}"
    );
    let (code, report) = verify(&["--from", "2000-01-01", "--to", "2000-01-02"]);
    assert!(
        code == Some(0) && report.contains(" 0 entries, 0 bytes"),
        "{report}"
    );
    assert_eq!(verify(&["--from", "24h"]).0, Some(0));
    flip(len / 4);
    assert_eq!(verify(&["--incremental"]).0, Some(0));
    assert_eq!(verify(&["--from", "24h"]).0, Some(3));
    assert_eq!(verify(&[]).0, Some(3));
    // It was found damaged: now it is read again.
    assert_eq!(verify(&["--incremental"]).0, Some(3));
    flip(len / 4);

    // A segment that is gone is not silently missing either.
    drop(file);
    #[expect(clippy::disallowed_methods, reason = "what a thief does")]
    std::fs::rename(&path, lab.dir.join("stolen")).unwrap();
    let (code, report) = lab.verify();
    assert_eq!(code, 3);
    assert!(report.contains(&name), "{report}");
}

#[test]
fn a_damaged_log_does_not_keep_the_server_from_starting_and_is_named() {
    let mut lab = Lab::start("damaged-log");
    lab.add_agent("web1", lab.sl, "");
    lab.start_agent("web1");
    for (n, name) in ["a.log", "b.log", "a.log", "b.log"].into_iter().enumerate() {
        let line = format!("line{n} of {name}\n");
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(lab.log(name))
            .unwrap()
            .write_all(line.as_bytes())
            .unwrap();
        wait_until("the line is archived", Duration::from_secs(30), || {
            lab.count(&format!("line{n}")) == 1
        });
    }
    lab.stop_agent("web1");
    lab.kill_server();
    let logs = std::fs::read_dir(lab.data().join("log")).unwrap().flatten();
    let path = logs
        .max_by_key(|file| file.metadata().unwrap().len())
        .unwrap()
        .path();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let len = file.metadata().unwrap().len();
    let mut byte = [0];
    file.read_exact_at(&mut byte, len / 2).unwrap();
    file.write_all_at(&[byte[0] ^ 1], len / 2).unwrap();

    lab.start_server();
    let (code, report) = lab.verify();
    assert_eq!(code, 3, "{report}");
    let served = (0..4)
        .filter(|n| lab.count(&format!("line{n}")) == 1)
        .count();
    assert!(served >= 3, "{served} of 4 served");
    assert_eq!(lab.count("line3"), 1);
}
