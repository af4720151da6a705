//! What signals make of both programs: SIGHUP reads the configuration again, and those that mean nothing end nothing.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use scrinium_tests::lab::{Lab, free_address, text};
use scrinium_tests::{has_tool, skipped, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);
const HARMLESS: [&str; 5] = ["-USR1", "-USR2", "-PIPE", "-ALRM", "-WINCH"];

pub(crate) fn signal(pid: u32, which: &str) {
    let sent = Command::new("kill")
        .args([which, &pid.to_string()])
        .status();
    assert!(sent.unwrap().success());
}

fn append(path: &Path, line: &str) {
    let mut file = File::options()
        .append(true)
        .create(true)
        .open(path)
        .unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

fn said(lab: &Lab, name: &str, words: &str) -> bool {
    let log = std::fs::read_to_string(lab.dir.join(name)).unwrap();
    log.contains(words)
}

/// A source that is added is collected after SIGHUP, one that is taken out is not; a file that is wrong, or gone,
/// leaves what is in force, also what the server added; and the server knows each time.
#[test]
fn an_agent_reads_its_configuration_again_and_keeps_the_one_before_if_it_is_wrong() {
    let mut lab = Lab::start("hup-agent");
    lab.add_agent("web1", lab.sl, "");
    let source = |name: &str| {
        let path = lab.dir.join("logs").join(name);
        format!("[[source]]\nfile = \"{}\"\n", path.display())
    };
    let (one, two, three) = (source("one.log"), source("two.log"), source("three.log"));
    lab.write("web1.toml", one.as_bytes());
    lab.write("central.toml", three.as_bytes());
    lab.start_agent("web1");
    lab.wait_connected("web1");
    let pid = lab.agent_pid("web1");
    let central = lab.dir.join("central.toml").display().to_string();
    let done = lab.server(&["agent", "configure", "web1", "--file", &central]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let in_force = |lab: &Lab| -> Vec<String> {
        let agent = lab.agent("web1");
        let settings = agent["in_force"].as_array().unwrap();
        let sources = settings.iter().filter(|one| one["name"] == "source.file");
        let line = |one: &serde_json::Value| {
            let path = Path::new(one["value"].as_str().unwrap());
            let name = path.file_name().unwrap().to_str().unwrap();
            format!("{name} {}", one["from"].as_str().unwrap())
        };
        sources.map(line).collect()
    };
    wait_until("the server's is in force", PATIENCE, || {
        in_force(&lab) == ["three.log server", "one.log machine"]
    });
    for name in ["one", "two", "three"] {
        append(
            &lab.log(&format!("{name}.log")),
            &format!("first of {name}\n"),
        );
    }
    wait_until("they are collected", PATIENCE, || {
        lab.count("first stream:.log agent:web1 of") == 2
    });
    assert_eq!(lab.count("\"first of two\""), 0);

    // Another file, and a limit.
    lab.write(
        "web1.toml",
        (two + "[limits]\ncpu_percent_max = 77\n").as_bytes(),
    );
    signal(pid, "-HUP");
    wait_until("what was added is collected", PATIENCE, || {
        lab.count("\"first of two\"") == 1
    });
    wait_until("the server knows", PATIENCE, || {
        in_force(&lab) == ["three.log server", "two.log machine"]
    });
    append(&lab.log("one.log"), "second of one\n");
    wait_until("what was taken out ends", PATIENCE, || {
        lab.count("stream:one.log \"gap:\"") == 1
    });

    // A mistake, and a file that is gone.
    lab.write("web1.toml", b"[[source]]\nfile = 'relative'\n");
    signal(pid, "-HUP");
    wait_until("the mistake is said", PATIENCE, || {
        lab.count("stream:scrinium-agent \"is not taken\" \"source.file\"") == 1
    });
    std::fs::remove_file(lab.dir.join("web1.toml")).unwrap();
    signal(pid, "-HUP");
    wait_until("that it is gone is said", PATIENCE, || {
        lab.count("stream:scrinium-agent \"is not taken\" \"No such file\"") == 1
    });
    for name in ["two", "three"] {
        append(
            &lab.log(&format!("{name}.log")),
            &format!("third of {name}\n"),
        );
    }
    wait_until("both go on", PATIENCE, || {
        lab.count("third stream:.log agent:web1 of") == 2
    });
    assert_eq!(in_force(&lab), ["three.log server", "two.log machine"]);
    assert_eq!(lab.count("\"second of one\""), 0);
    for which in HARMLESS {
        signal(pid, which);
    }
    append(&lab.log("two.log"), "fourth of two\n");
    wait_until("it goes on", PATIENCE, || {
        lab.count("\"fourth of two\"") == 1
    });
    assert_eq!(lab.agent_pid("web1"), pid);
    assert!(!lab.agent_has_ended("web1"));
}

/// After SIGHUP the console shows the certificate that its files hold now; what needs a restart is named; a file that
/// is wrong changes nothing. Signals that mean nothing end nothing.
#[test]
fn a_server_shows_its_new_certificate_after_sighup_and_says_what_needs_a_restart() {
    if !has_tool("curl") {
        return skipped("curl is not here");
    }
    let mut lab = Lab::start("hup-server");
    let certificate = |lab: &Lab, name: &str| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        lab.write(&format!("{name}.trusted"), made.cert.pem().as_bytes());
        lab.write("console.pem", made.cert.pem().as_bytes());
        lab.write("console.key", made.signing_key.serialize_pem().as_bytes());
    };
    certificate(&lab, "first");
    let dir = lab.dir.display().to_string();
    let mut config = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    config +=
        &format!("[console]\ncertificate = \"{dir}/console.pem\"\nkey = \"{dir}/console.key\"\n");
    lab.write("server.toml", config.as_bytes());
    lab.stop_server();
    lab.start_server();
    lab.wait_for_socket();
    let (dir, port) = (lab.dir.clone(), lab.console.port());
    let shows = |name: &str| {
        let at = format!("https://localhost:{port}/healthz");
        let asked = Command::new("curl")
            .args(["-s", "-o", "/dev/null", "--cacert"])
            .arg(dir.join(format!("{name}.trusted")))
            .args(["--resolve", &format!("localhost:{port}:127.0.0.1"), &at])
            .status();
        asked.unwrap().success()
    };
    wait_until("the first is shown", PATIENCE, || shows("first"));
    certificate(&lab, "second");
    assert!(!shows("second"));
    let pid = lab.server_pid();
    signal(pid, "-HUP");
    wait_until("the second is shown", PATIENCE, || shows("second"));
    assert!(!shows("first"));
    assert_eq!(
        lab.trail("configuration read again").last().unwrap()["detail"]["certificate"],
        true
    );

    // A listener more, and a key that does not fit.
    let more = config.replace(
        "syslog_udp = [",
        &format!("syslog_udp = [\"{}\", ", free_address()),
    );
    lab.write(
        "server.toml",
        more.replace("keep_alive_s = 2", "keep_alive_s = 3")
            .as_bytes(),
    );
    signal(pid, "-HUP");
    wait_until("what needs a restart is said", PATIENCE, || {
        said(&lab, "server.out", "agents.keep_alive_s, listen.syslog_udp")
    });
    lab.write("console.key", b"no key\n");
    signal(pid, "-HUP");
    wait_until("the key is not taken", PATIENCE, || {
        !lab.trail("configuration not taken").is_empty()
    });
    for which in HARMLESS {
        signal(pid, which);
    }
    assert!(shows("second"));
    assert!(!lab.server_has_ended());
}

/// Its file lies where nothing answers: a stop is heard all the same.
#[test]
fn a_server_whose_configuration_does_not_answer_stops_when_it_is_told_to() {
    if !has_tool("mkfifo") {
        skipped("mkfifo");
        return;
    }
    let mut lab = Lab::start("hup-fifo");
    let file = lab.dir.join("server.toml");
    std::fs::remove_file(&file).unwrap();
    let made = Command::new("mkfifo").arg(&file).status();
    assert!(made.unwrap().success());
    signal(lab.server_pid(), "-HUP");
    // Whoever opens the other end waits until the server has opened this one.
    let writer = File::options().write(true).open(&file).unwrap();
    lab.stop_server();
    drop(writer);
}
