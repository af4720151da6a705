//! `scrinium-server demo`: one command, unprivileged, and a line is found within two seconds.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use scrinium_tests::lab::free_address;
use scrinium_tests::{now, program, wait_until};

#[test]
fn the_demo_finds_a_line_within_two_seconds_of_its_writing() {
    let dir = std::env::temp_dir().join(format!("scrinium-demo-test-{}", std::process::id()));
    let _absent = std::fs::remove_dir_all(&dir);
    let ports: Vec<String> = (0..4).map(|_| free_address().to_string()).collect();
    let mut demo = Command::new(program("scrinium-server"))
        .args(["demo", "--no-browser", "--dir"])
        .arg(&dir)
        .env("SCRINIUM_LISTEN_SL", &ports[0])
        .env("SCRINIUM_LISTEN_CONSOLE", &ports[1])
        .env("SCRINIUM_LISTEN_SYSLOG_UDP", &ports[2])
        .env("SCRINIUM_LISTEN_SYSLOG_TCP", &ports[3])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The pipe is closed in the middle of what the demo says, as `head` does: the demo goes on.
    let lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let said: Vec<String> = lines
        .map_while(Result::ok)
        .take_while(|line| !line.contains("The certificate is self-signed"))
        .collect();
    assert!(
        said.iter()
            .any(|line| line.contains(&format!("https://{}/", ports[1]))),
        "{said:?}"
    );
    assert!(
        said.iter().any(|line| line.contains("password")),
        "{said:?}"
    );

    let count = |query: &str| {
        let found = Command::new(program("scrinium-server"))
            .args(["search", query, "--count", "--data"])
            .arg(dir.join("server"))
            .output()
            .unwrap();
        String::from_utf8_lossy(&found.stdout)
            .trim()
            .parse::<u64>()
            .unwrap_or(0)
    };
    wait_until("generated lines are found", Duration::from_secs(30), || {
        assert!(demo.try_wait().unwrap().is_none(), "the demo ended");
        count("order") > 0 && count("dhcpd") > 0
    });
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(dir.join("sources/app.log"))
        .unwrap();
    file.write_all(b"hello from the test zqdemoqz\n").unwrap();
    let written = now();
    wait_until("the line is found", Duration::from_secs(2), || {
        count("zqdemoqz") == 1
    });
    assert!(now().duration_since(written) < Duration::from_secs(2));

    let pid = demo.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    wait_until("the demo stops", Duration::from_secs(30), || {
        demo.try_wait().unwrap().is_some()
    });
    std::fs::remove_dir_all(&dir).unwrap();
}
