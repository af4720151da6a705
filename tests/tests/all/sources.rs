//! Sources that are no files: a site's syslog, commands, the systemd journal (scenarios F and H).

use std::io::Write as _;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use scrinium_segment::HEADER_LEN;
use scrinium_tests::lab::{Lab, free_address, text};
use scrinium_tests::{has_tool, skipped, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);

/// A lab whose agent collects what `sources` says.
fn lab(name: &str, sources: &str) -> Lab {
    let mut lab = Lab::start(name);
    lab.add_agent("site", lab.sl, "");
    lab.write("site.toml", sources.as_bytes());
    lab
}

/// What gear without an agent sends over an untrusted network goes through the agent on the site:
/// through an outage, and each sender stays a stream of its own.
#[test]
fn syslog_relayed_by_an_agent_is_conserved_through_an_outage() {
    let (udp, tcp) = (free_address(), free_address());
    let mut lab = lab("relay", "");
    let unix = lab.dir.join("log.sock");
    let sources = format!(
        "[[source]]\nsyslog = \"udp://{udp}\"\n[[source]]\nsyslog = \"tcp://{tcp}\"\n[[source]]\nsyslog = \"unix://{}\"\n",
        unix.display()
    );
    lab.write("site.toml", sources.as_bytes());
    lab.start_agent("site");
    wait_until("the relay listens", PATIENCE, || {
        lab.count("agent:site \"gap: listening on\"") == 3
    });
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let local = UnixDatagram::unbound().unwrap();
    let send = |from: u32, to: u32| {
        let mut connection = TcpStream::connect(tcp).unwrap();
        for n in from..to {
            let line = |how: &str| format!("<11>Nov 22 10:00:00 gate app: {how} {n:05}");
            datagrams.send_to(line("datagram").as_bytes(), udp).unwrap();
            writeln!(connection, "{}", line("connection")).unwrap();
            local.send_to(line("socket").as_bytes(), &unix).unwrap();
        }
    };
    send(0, 200);
    wait_until("the first lines are archived", PATIENCE, || {
        lab.count("agent:site app") == 600
    });
    lab.stop_server();
    send(200, 2000);
    // The agent, too, stops in the middle: what it holds goes to its disk, and what came before goes on.
    wait_until("the agent holds them", PATIENCE, || {
        let status = lab.agent_status("site");
        status.is_some_and(|status| status["backlog_entries"].as_u64() >= Some(3 * 1800))
    });
    lab.stop_agent("site");
    lab.start_server();
    lab.start_agent("site");
    wait_until("everything is archived", PATIENCE, || {
        lab.count("agent:site app") == 6000
    });
    for (how, stream, kind) in [
        ("datagram", "127.0.0.1", "syslog-udp"),
        ("connection", "127.0.0.1", "syslog-tcp"),
        (
            "socket",
            &*format!("unix://{}", unix.display()),
            "syslog-unix",
        ),
    ] {
        let exported = lab.server(&[
            "export", "--agent", "site", "--path", stream, "--kind", kind, "--format", "raw",
            "--out", "-",
        ]);
        let archived = text(&exported.stdout);
        let mut lines = archived.lines();
        for n in 0..2000 {
            let expected = format!("<11>Nov 22 10:00:00 gate app: {how} {n:05}");
            assert_eq!(lines.next(), Some(&*expected));
        }
        assert_eq!(lines.next(), None);
    }
    // Nobody listened while the agent was stopped: that is said, once for each way in.
    assert_eq!(lab.count("agent:site \"gap: listening on\""), 6);
    assert_eq!(lab.verify().0, 0);
}

/// Another program takes the path of the socket away, and puts its own there and away again: the agent binds it as
/// soon as nothing is there, keeps what was sent to the old one, and says so.
#[test]
fn a_local_socket_whose_path_was_taken_away_is_bound_again() {
    let mut lab = lab("unlinked", "");
    let unix = lab.dir.join("log.sock");
    let sources = format!("[[source]]\nsyslog = \"unix://{}\"\n", unix.display());
    lab.write("site.toml", sources.as_bytes());
    lab.start_agent("site");
    let send = |words: &str| {
        let local = UnixDatagram::unbound().unwrap();
        let line = format!("<13>Nov 28 10:00:00 gate app: {words}");
        local.send_to(line.as_bytes(), &unix).is_ok()
    };
    wait_until("the relay listens", PATIENCE, || send("first words"));
    let connected = UnixDatagram::unbound().unwrap();
    connected.connect(&unix).unwrap();
    std::fs::remove_file(&unix).unwrap();
    // Who was connected still is.
    connected.send(b"<13>connected words").unwrap();
    wait_until("the path is bound again", PATIENCE, || send("second words"));
    wait_until("both are archived, and it is said", PATIENCE, || {
        ["second words", "connected words", "gap: the socket of"]
            .iter()
            .all(|words| lab.count(&format!("agent:site \"{words}\"")) >= 1)
    });
    std::fs::remove_file(&unix).unwrap();
    let other = UnixDatagram::bind(&unix).unwrap();
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    wait_until("the other program's is left", PATIENCE, || {
        lab.count("agent:site \"gap: the socket of\" \"cannot be bound again\"") == 1
    });
    assert!(send("words for the other"));
    let mut buffer = [0; 100];
    assert!(other.recv(&mut buffer).is_ok());
    drop(other);
    wait_until(
        "its socket, that nobody serves, is replaced",
        PATIENCE,
        || send("third words"),
    );
    wait_until("what is sent then is archived", PATIENCE, || {
        lab.count("agent:site \"third words\"") >= 1
    });
    assert_eq!(lab.count("\"words for the other\""), 0);
    assert_eq!(lab.verify().0, 0);
}

/// What a sender said is nowhere else: what was in a damaged segment of the cache becomes as many gap
/// entries in its place, and everything after it is archived.
#[test]
fn relayed_syslog_around_a_damaged_part_of_the_cache_is_archived_and_the_rest_said() {
    let unix = std::env::temp_dir().join(format!("scrinium-relay-{}.sock", std::process::id()));
    let mut lab = lab(
        "damage",
        &format!("[[source]]\nsyslog = \"unix://{}\"\n", unix.display()),
    );
    lab.start_agent("site");
    lab.wait_connected("site");
    lab.stop_server();
    let local = UnixDatagram::unbound().unwrap();
    for part in 0..4_u64 {
        for n in 0..100 {
            let line = format!("<13>part {part} line {n:03}");
            wait_until("the relay listens", PATIENCE, || {
                local.send_to(line.as_bytes(), &unix).is_ok()
            });
        }
        wait_until("the agent holds them", PATIENCE, || {
            let status = lab.agent_status("site");
            status
                .is_some_and(|status| status["backlog_entries"].as_u64() >= Some(100 * (part + 1)))
        });
        // A segment for each stop.
        lab.stop_agent("site");
        if part < 3 {
            lab.start_agent("site");
        }
    }
    let mut segments: Vec<_> = std::fs::read_dir(lab.state("site").join("spool"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    segments.sort();
    let damaged = segments.get(1).unwrap();
    let mut bytes = std::fs::read(damaged).unwrap();
    // In its first record: what comes after it is of another stream, or of this one.
    bytes[HEADER_LEN + 8] ^= 1;
    std::fs::File::create(damaged)
        .unwrap()
        .write_all(&bytes)
        .unwrap();
    lab.start_agent("site");
    lab.start_server();
    wait_until("the last part is archived", PATIENCE, || {
        lab.count("\"part 3\"") == 100
    });
    for (part, expected) in [(0, 100), (1, 0), (2, 100)] {
        assert_eq!(lab.count(&format!("\"part {part}\"")), expected);
    }
    // The hundred lines, and that the relay listened again.
    assert_eq!(lab.count("\"gap: 101 entries\""), 1);
    assert_eq!(lab.count("\"gap: lost with the one before\""), 100);
    let archived = text(&lab.export("site", Path::new(&format!("unix://{}", unix.display()))));
    let lines: Vec<&str> = archived.lines().collect();
    assert_eq!(lines.len(), 300);
    assert!(lines.is_sorted());
    assert_eq!(lab.verify().0, 0);
}

/// A command's lines are entries; that it failed is in the archive too. The server cannot name a
/// command: a server that was taken over does not run programs on every machine.
#[test]
fn the_output_of_a_command_is_collected_and_its_failure_said() {
    let script = "[[source]]\ncommand = [\"/bin/sh\", \"-c\", \"echo checked; test -e good\"]\nevery_s = 1\n";
    let mut lab = lab("command", script);
    lab.start_agent("site");
    wait_until("it ran twice", PATIENCE, || {
        lab.count("agent:site checked") >= 2
    });
    wait_until("its failure is said", PATIENCE, || {
        lab.count("\"gap: the command ended with exit status: 1\"") >= 1
    });
    lab.write("central.toml", script.as_bytes());
    let central = lab.dir.join("central.toml");
    let pushed = lab.server(&[
        "agent",
        "configure",
        "site",
        "--file",
        central.to_str().unwrap(),
    ]);
    assert!(pushed.status.success(), "{}", text(&pushed.stderr));
    wait_until("it is refused", PATIENCE, || {
        let state = lab.agent("site");
        let rejected = state["configuration"]["rejected"].as_str();
        rejected.is_some_and(|why| why.contains("source.command can be set on the machine alone"))
    });
}

/// A journald of its own, which nobody else writes to.
struct Journald {
    namespace: Child,
    dir: PathBuf,
}

impl Journald {
    /// `None`, and why, where there is none or it may not be started.
    fn start(dir: &Path) -> Option<Self> {
        let daemon = "/lib/systemd/systemd-journald";
        if !Path::new(daemon).is_file() || !has_tool("journalctl") || !has_tool("unshare") {
            skipped("there is no journald here");
            return None;
        }
        for name in ["journal", "sockets", "etc"] {
            std::fs::create_dir_all(dir.join(name)).unwrap();
        }
        let settings = "[Journal]\nStorage=volatile\nReadKMsg=no\nRateLimitIntervalSec=0\n";
        let mut file = std::fs::File::create(dir.join("etc/journald.conf")).unwrap();
        file.write_all(settings.as_bytes()).unwrap();
        let script = "set -e; mount -t tmpfs none /run; mkdir -p /run/systemd/journal /run/log/journal; \
            mount --bind $0/sockets /run/systemd/journal; mount --bind $0/journal /run/log/journal; \
            mkdir -p /etc/systemd; mount --bind $0/etc /etc/systemd; \
            test -s /etc/machine-id || { echo 0123456789abcdef0123456789abcdef > /run/id; mount --bind /run/id /etc/machine-id; }; \
            exec $1";
        let namespace = Command::new("unshare")
            .args(["--mount", "sh", "-c", script])
            .arg(dir)
            .arg(daemon)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let own = Self {
            namespace,
            dir: dir.to_owned(),
        };
        wait_until("the journal is written", PATIENCE, || {
            own.dir.join("sockets/socket").try_exists().unwrap()
        });
        Some(own)
    }

    fn say(&self, from: u32, to: u32) {
        let socket = UnixDatagram::unbound().unwrap();
        let path = self.dir.join("sockets/socket");
        for n in from..to {
            let entry =
                format!("MESSAGE=note {n:05}\nPRIORITY=4\nSYSLOG_IDENTIFIER=teller\nORDER={n}\n");
            socket.send_to(entry.as_bytes(), &path).unwrap();
        }
    }

    /// `journalctl` where this journald is the only one.
    fn control(&self, arguments: &[&str]) {
        let done = Command::new("nsenter")
            .args([
                "--mount",
                "--target",
                &self.namespace.id().to_string(),
                "journalctl",
            ])
            .args(arguments)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", text(&done.stderr));
    }

    fn sources(&self) -> String {
        format!(
            "[[source]]\njournal = \"{}\"\nmatches = [\"SYSLOG_IDENTIFIER=teller\"]\n",
            self.dir.join("journal").display()
        )
    }
}

impl Drop for Journald {
    fn drop(&mut self) {
        let _ended = self.namespace.kill();
        let _reaped = self.namespace.wait();
    }
}

/// H1, H4: rotated and vacuumed while the agent looks and while it does not; the reader killed; every
/// entry once, and what is gone said with both ends.
#[test]
fn h1_h4_the_journal_is_conserved_and_what_was_vacuumed_is_said() {
    let mut lab = lab("journal", "");
    let Some(journald) = Journald::start(&lab.dir.join("journald")) else {
        return;
    };
    lab.write("site.toml", journald.sources().as_bytes());
    journald.say(0, 100);
    lab.start_agent("site");
    let archived = |lab: &Lab, expected: u64| {
        wait_until("the journal is archived", PATIENCE, || {
            lab.count("agent:site note") == expected
        });
    };
    archived(&lab, 100);
    let entry = &lab.search("\"note 00042\"")[0];
    assert_eq!(
        (entry["severity"].as_str(), entry["app"].as_str()),
        (Some("warning"), Some("teller"))
    );
    assert!(
        entry["text"].as_str().unwrap().contains("ORDER=\"42\""),
        "{entry}"
    );

    // Rotated and vacuumed while it is read.
    journald.say(100, 200);
    archived(&lab, 200);
    journald.control(&["--rotate", "--vacuum-files=1"]);
    journald.say(200, 300);
    archived(&lab, 300);

    // H4: the reader dies.
    let agent = lab.agent_pid("site").to_string();
    let killed = Command::new("pkill")
        .args(["-9", "-P", &agent, "journalctl"])
        .status();
    assert!(killed.unwrap().success());
    journald.say(300, 400);
    archived(&lab, 400);

    // Or hangs: after a silence it is asked whether there is more than it said.
    let stopped = Command::new("pkill")
        .args(["-STOP", "-P", &agent, "journalctl"])
        .status();
    assert!(stopped.unwrap().success());
    journald.say(400, 401);
    wait_until(
        "the hung reader is replaced",
        Duration::from_secs(80),
        || lab.count("agent:site note") == 401,
    );

    // The agent is stopped and killed meanwhile: it goes on at its cursor.
    lab.stop_agent("site");
    journald.say(401, 500);
    lab.start_agent("site");
    archived(&lab, 500);
    lab.kill_agent("site");
    journald.say(500, 600);
    lab.start_agent("site");
    archived(&lab, 600);
    assert!(lab.verify().1.contains("; 0 gap entries"));

    // Everything it read last, and more, is vacuumed while it is stopped.
    lab.stop_agent("site");
    journald.say(600, 700);
    journald.control(&["--rotate"]);
    journald.control(&["--vacuum-files=1"]);
    journald.say(700, 800);
    lab.start_agent("site");
    wait_until("the loss is said", PATIENCE, || {
        lab.count("agent:site \"the journal no longer holds its entry\"") == 1
    });
    archived(&lab, 700);
    assert_eq!(lab.count("\"note 00700\""), 1);
    assert_eq!(lab.verify().0, 0);
}

/// H3: the state of the agent was made with another machine's journal.
#[test]
fn h3_another_journal_is_read_from_its_start_and_the_change_said() {
    let mut lab = lab("other-journal", "");
    let dir = lab.dir.join("journald");
    let Some(journald) = Journald::start(&dir) else {
        return;
    };
    lab.write("site.toml", journald.sources().as_bytes());
    journald.say(0, 50);
    lab.start_agent("site");
    wait_until("the first is archived", PATIENCE, || {
        lab.count("agent:site note") == 50
    });
    lab.stop_agent("site");
    drop(journald);
    std::fs::remove_dir_all(&dir).unwrap();
    let Some(journald) = Journald::start(&dir) else {
        return;
    };
    journald.say(50, 100);
    lab.start_agent("site");
    wait_until("the second is archived", PATIENCE, || {
        lab.count("agent:site note") == 100
    });
    assert_eq!(lab.count("\"the journal is another one\""), 1);
}
