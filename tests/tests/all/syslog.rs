//! Real senders: `logger` and rsyslog, over UDP and TCP.

use std::io::Write as _;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use scrinium_tests::lab::Lab;
use scrinium_tests::{has_tool, wait_until};

#[test]
fn logger_is_found_with_its_host_time_and_severity() {
    if !has_tool("logger") {
        return;
    }
    let lab = Lab::start("logger");
    for (flags, word, port) in [
        (["-d", "--rfc5424"], "datagramme", lab.syslog_udp.port()),
        (["-d", "--rfc3164"], "datagramold", lab.syslog_udp.port()),
        (["-T", "--rfc5424"], "streamnew", lab.syslog_tcp.port()),
        (
            ["-T", "--octet-count"],
            "streamcount",
            lab.syslog_tcp.port(),
        ),
    ] {
        let sent = Command::new("logger")
            .args([
                "-n",
                "127.0.0.1",
                "-P",
                &port.to_string(),
                "-p",
                "auth.warning",
                "-t",
                "myapp",
            ])
            .args(flags)
            .arg(format!("user root {word}"))
            .status()
            .unwrap();
        assert!(sent.success());
        wait_until("the line is found", Duration::from_secs(10), || {
            lab.count(word) == 1
        });
        let entry = &lab.search(word)[0];
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert_eq!(entry["host"].as_str().unwrap(), host.trim(), "{entry}");
        assert_eq!(entry["severity"], "warning");
        assert_eq!(entry["app"], "myapp");
        let (event, received) = (
            entry["time"].as_str().unwrap(),
            entry["received"].as_str().unwrap(),
        );
        assert_eq!(
            event.get(..16),
            received.get(..16),
            "the minute it happened is the minute it came"
        );
    }
    assert_eq!(lab.verify().0, 0);
}

/// A line that is too long for an entry is several; what another connection of the same address said was read as a part
/// of it.
#[test]
fn long_lines_of_two_connections_of_one_sender_do_not_mix() {
    let lab = Lab::start("syslog-mixed");
    let mut first = TcpStream::connect(lab.syslog_tcp).unwrap();
    let mut second = TcpStream::connect(lab.syslog_tcp).unwrap();
    let long = format!("<13>firstbegin {}", "x".repeat(80_000));
    first.write_all(long.as_bytes()).unwrap();
    wait_until("a piece is archived", Duration::from_secs(20), || {
        lab.count("firstbegin") == 1
    });
    second.write_all(b"<13>second speaks\n").unwrap();
    wait_until("the other is archived", Duration::from_secs(20), || {
        lab.count("\"second speaks\"") == 1
    });
    first.write_all(b" firstend\n").unwrap();
    wait_until("the rest is archived", Duration::from_secs(20), || {
        lab.count("firstend") == 1
    });
    assert_eq!(
        lab.search("\"second speaks\"")[0]["text"],
        "<13>second speaks"
    );
    assert_eq!(lab.count("second firstend"), 0);
    assert_eq!(lab.count("second firstbegin"), 0);
    // Nor does it go on with what a connection left behind that is gone.
    let mut third = TcpStream::connect(lab.syslog_tcp).unwrap();
    third.write_all(&vec![b'y'; 65_537]).unwrap();
    wait_until("a piece is archived", Duration::from_secs(20), || {
        lab.search("stream:127.0.0.1")[0]["text"]
            .as_str()
            .unwrap()
            .starts_with("yyyy")
    });
    drop(third);
    second.write_all(b"<13>second again\n").unwrap();
    wait_until("the other is archived", Duration::from_secs(20), || {
        lab.count("\"second again\"") == 1
    });
    assert_eq!(
        lab.search("\"second again\"")[0]["text"],
        "<13>second again"
    );
    let log = std::fs::read_to_string(lab.dir.join("server.out")).unwrap();
    assert!(
        log.contains("another connection of the same sender"),
        "{log}"
    );
    assert_eq!(lab.verify().0, 0);
}

#[test]
fn rsyslog_sends_over_udp_and_tcp() {
    if !has_tool("rsyslogd") {
        return;
    }
    let lab = Lab::start("rsyslog");
    let (socket, work) = (lab.dir.join("in.sock"), lab.dir.join("rsyslog"));
    std::fs::create_dir_all(&work).unwrap();
    let config = format!(
        "global(workDirectory=\"{}\")\nmodule(load=\"imuxsock\" SysSock.Use=\"off\")\ninput(type=\"imuxsock\" Socket=\"{}\" CreatePath=\"on\")\n\
         *.* action(type=\"omfwd\" target=\"127.0.0.1\" port=\"{}\" protocol=\"udp\" template=\"RSYSLOG_SyslogProtocol23Format\")\n\
         *.* action(type=\"omfwd\" target=\"127.0.0.1\" port=\"{}\" protocol=\"tcp\" TCP_Framing=\"octet-counted\" template=\"RSYSLOG_SyslogProtocol23Format\")\n\
         *.* action(type=\"omfwd\" target=\"127.0.0.1\" port=\"{}\" protocol=\"tcp\" template=\"RSYSLOG_TraditionalForwardFormat\")\n",
        work.display(),
        socket.display(),
        lab.syslog_udp.port(),
        lab.syslog_tcp.port(),
        lab.syslog_tcp.port(),
    );
    lab.write("rsyslog.conf", config.as_bytes());
    let mut rsyslog = Command::new("/usr/sbin/rsyslogd")
        .args(["-n", "-f"])
        .arg(lab.dir.join("rsyslog.conf"))
        .arg("-i")
        .arg(lab.dir.join("rsyslog.pid"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("rsyslog listens", Duration::from_secs(20), || {
        socket.try_exists().unwrap()
    });
    for n in 0..500 {
        let sent = Command::new("logger")
            .arg("-u")
            .arg(&socket)
            .args([
                "-t",
                "relayed",
                "-p",
                "local3.err",
                &format!("message number{n}"),
            ])
            .status();
        assert!(sent.unwrap().success());
    }
    wait_until("every copy is found", Duration::from_secs(30), || {
        lab.count("relayed") == 1500
    });
    let entry = &lab.search("number499")[0];
    assert_eq!(entry["severity"], "error");
    assert_eq!(entry["app"], "relayed");
    rsyslog.kill().unwrap();
    rsyslog.wait().unwrap();
    assert_eq!(lab.verify().0, 0);
}
