//! What a lack of file descriptors does to searches: nothing, and what it is called.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use scrinium_tests::lab::{Lab, text};
use scrinium_tests::{has_tool, pause, wait_until};

/// Searches held one descriptor for each segment; with more segments than descriptors lines were missing, and the
/// archive was called damaged.
#[test]
fn searches_need_few_descriptors_and_a_lack_of_them_is_called_that() {
    if !has_tool("prlimit") {
        return;
    }
    let lab = Lab::start("strangers-descriptors");
    let mut random = scrinium_tests::random::Random::new(7);
    let mut sender = TcpStream::connect(lab.syslog_tcp).unwrap();
    let mut lines = 0;
    wait_until("there are many segments", Duration::from_secs(60), || {
        for _ in 0..20 {
            let noise: String = (0..50_000)
                .map(|_| char::from(33 + u8::try_from(random.below(90)).unwrap()))
                .collect();
            sender
                .write_all(format!("<13>needle77 {noise}\n").as_bytes())
                .unwrap();
            lines += 1;
        }
        segments(&lab) >= 24
    });
    wait_until("all is found", Duration::from_secs(20), || {
        lab.count("needle77") == lines
    });
    // Room for six commands, and what two threads of each read.
    leave_descriptors(&lab, 24);
    let counts: Vec<_> = std::thread::scope(|scope| {
        let lab = &lab;
        let ask = || lab.server(&["search", "needle77", "--count"]);
        let asked: Vec<_> = (0..6).map(|_| scope.spawn(ask)).collect();
        asked
            .into_iter()
            .map(|asked| asked.join().unwrap())
            .collect()
    });
    for found in counts {
        assert!(
            found.status.success() && found.stderr.is_empty(),
            "{found:?}"
        );
        assert_eq!(text(&found.stdout).trim(), lines.to_string());
    }
    let (code, said) = lab.verify();
    assert_eq!(code, 0, "{said}");
    // One for the command, none for what it wants to read.
    leave_descriptors(&lab, 1);
    let found = lab.server(&["search", "needle77", "--count"]);
    let said = text(&found.stderr);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    assert!(
        said.contains("no file descriptor left") && said.contains("Nothing is damaged"),
        "{said}"
    );
    let (code, said) = lab.verify();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("no file descriptor left"), "{said}");
    limit_descriptors(&lab, 1024);
    assert_eq!(lab.count("needle77"), lines);
    assert!(
        lab.alarms()
            .iter()
            .all(|alarm| alarm["kind"] != "archive-damaged")
    );
}

/// The soft limit of open files is raised to the hard one: systemd's default of 1,024 is for programs that use `select`.
#[test]
fn the_server_may_open_as_many_files_as_it_ever_may() {
    let lab = Lab::start("strangers-limit");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", lab.server_pid())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let numbers: Vec<&str> = line.unwrap().split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers[0], numbers[1], "{limits}");
}

fn segments(lab: &Lab) -> u64 {
    lab.metric("scrinium_segments ")
}

/// Lets the server open `free` files more than it has open when it does nothing: connections of commands that just ended
/// are not among those. The limit is one of numbers, of which the lowest free one is taken.
fn leave_descriptors(lab: &Lab, free: usize) {
    let dir = format!("/proc/{}/fd", lab.server_pid());
    let numbers = || -> BTreeSet<usize> {
        let open = std::fs::read_dir(&dir).unwrap().flatten();
        open.map(|entry| entry.file_name().to_str().unwrap().parse().unwrap())
            .collect()
    };
    let open = (0..20).fold(numbers(), |open, _| {
        pause(Duration::from_millis(50));
        open.intersection(&numbers()).copied().collect()
    });
    let mut unused = (0..).filter(|number| !open.contains(number));
    limit_descriptors(lab, unused.nth(free).unwrap());
}

fn limit_descriptors(lab: &Lab, soft: usize) {
    let pid = lab.server_pid().to_string();
    let set = Command::new("prlimit")
        .args(["--pid", &pid, &format!("--nofile={soft}:")])
        .status();
    assert!(set.unwrap().success());
}
