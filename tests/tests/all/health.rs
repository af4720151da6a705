//! It says when it does not work: what stops is seen, what cannot be done is told, and what is not there is not made.

use std::fs::File;
use std::io::Read as _;
use std::net::{TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use scrinium_tests::lab::{Lab, text};
use scrinium_tests::{has_tool, program, wait_until};
use serde_json::Value;

/// A full disk behind standard error (ENOSPC), and a reader of it that is gone (EPIPE): every thread goes on.
#[test]
fn no_thread_ends_when_standard_error_takes_nothing() {
    for broken in ["full", "gone"] {
        let mut lab = Lab::start(&format!("stderr-{broken}"));
        lab.stop_server();
        let stderr: Stdio = match broken {
            "full" => File::options()
                .write(true)
                .open("/dev/full")
                .unwrap()
                .into(),
            _ => {
                let (reader, writer) = std::io::pipe().unwrap();
                drop(reader);
                writer.into()
            }
        };
        lab.spawn_server_into("", stderr);
        lab.wait_for_socket();
        let mut before = Vec::new();
        for round in 0..3 {
            send(&lab, &format!("line{round}"));
            wait_until("the line is archived", PATIENCE, || {
                lab.count(&format!("line{round}")) == 1
            });
            if round == 0 {
                before = threads(lab.server_pid());
            }
            let packed = lab.server(&["compact"]);
            assert!(packed.status.success(), "{}", text(&packed.stderr));
        }
        let table = duties(&lab);
        assert!(table["messages_lost"].as_u64() > Some(0), "{table}");
        assert_eq!(table["panics"], 0);
        let after = threads(lab.server_pid());
        for name in ["ingest", "upkeep", "stderr"] {
            assert!(before.contains(&name.to_owned()), "{before:?}");
            assert!(after.contains(&name.to_owned()), "{broken}: {after:?}");
        }
        assert_eq!(lab.alarms(), [] as [Value; 0], "{broken}");
        lab.stop_server();
    }
}

/// A reader that hangs: what is said waits in bounded memory, is dropped, and is counted; nobody waits for it.
#[test]
fn a_reader_of_standard_error_that_hangs_holds_nobody_up() {
    let mut lab = Lab::start("stderr-hangs");
    lab.stop_server();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let log = ("SCRINIUM_LOG".to_owned(), "debug".to_owned());
    lab.server_environment.push(log);
    lab.spawn_server_into("", writer.into());
    lab.wait_for_socket();
    wait_until("messages are dropped", Duration::from_secs(120), || {
        // Each is a line of the log: not admitted, or a handshake that failed.
        for _ in 0..1000 {
            drop(TcpStream::connect(lab.sl));
        }
        let asked = lab.server(&["duties", "--json"]);
        let table: Value = serde_json::from_slice(&asked.stdout).unwrap();
        table["messages_lost"].as_u64() > Some(0)
    });
    send(&lab, "needle");
    wait_until("a line is archived", PATIENCE, || lab.count("needle") == 1);
    // It reads again.
    let reading = std::thread::spawn(move || {
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        said
    });
    lab.stop_server();
    let said = reading.join().unwrap();
    assert!(said.contains("messages before this could not be written"));
}

/// Each duty panics in its first round: it is begun again, and told; the server goes on.
#[test]
fn each_duty_that_panics_is_begun_again_and_told() {
    let mut lab = Lab::start("duties");
    let config = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    let (to, keys) = (lab.dir.join("target"), lab.dir.join("keys"));
    std::fs::create_dir(&to).unwrap();
    let backup = format!(
        "[backup]\nto = \"{}\"\nkeys = \"{}\"\n",
        to.display(),
        keys.display()
    );
    lab.stop_server();
    lab.write("server.toml", format!("{config}{backup}").as_bytes());
    lab.start_server();
    let names = |table: &Value| -> Vec<String> {
        let duties = table["duties"].as_array().unwrap().iter();
        let kept = duties.filter(|duty| !OF_UPKEEP.contains(&duty["name"].as_str().unwrap()));
        kept.map(|duty| duty["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let mut all = Vec::new();
    wait_until("every duty was begun", PATIENCE, || {
        all = names(&duties(&lab));
        all.len() >= 13
    });
    for expected in [
        "health",
        "intervals",
        "backup",
        "verification",
        "clocks",
        "statistics",
    ] {
        assert!(all.contains(&expected.to_owned()), "{all:?}");
    }
    lab.stop_server();
    let points: Vec<String> = all.iter().map(|name| format!("duty: {name}")).collect();
    let panics = ("SCRINIUM_PANIC".to_owned(), points.join("|"));
    lab.server_environment.push(panics);
    lab.start_server();
    wait_until("all are done again", Duration::from_secs(60), || {
        let table = duties(&lab);
        let rows = table["duties"].as_array().unwrap().clone();
        let again = |name: &String| {
            let row = rows.iter().find(|duty| duty["name"] == name.as_str());
            row.is_some_and(|row| row["panics"] == 1 && row["good"].is_string())
        };
        all.iter().all(again)
    });
    let alarms = lab.alarms();
    let told = |name: &str| {
        alarms.iter().any(|alarm| {
            let text = alarm["text"].as_str().unwrap();
            alarm["kind"] == "duty-failed" && text.contains(&format!("the duty '{name}' failed"))
        })
    };
    for name in &all {
        assert!(told(name), "{name}: {alarms:?}");
    }
    let fault = lab.wait_for_alarm("program-fault", "server");
    assert!(fault.contains("a test wants a panic here"), "{fault}");
    let table = duties(&lab);
    assert_eq!(table["panics"], all.len());
    for part in table["parts"].as_array().unwrap() {
        assert!(part["running"].as_u64() >= Some(1), "{part}");
    }
    assert_eq!(ready(&lab).0, 200);
    if has_tool("curl") {
        let metrics = format!("http://{}/metrics", lab.metrics);
        let said = Command::new("curl")
            .args(["-s", &metrics])
            .output()
            .unwrap();
        let said = text(&said.stdout);
        for line in [
            "scrinium_ready 1",
            "scrinium_duty_fails{duty=\"backup\"} 0",
            "scrinium_panics_total ",
        ] {
            assert!(said.contains(line), "{said}");
        }
    }
    lab.stop_server();
}

/// Threads that nothing can do without: the end of each is the end of the process, with a last word.
#[test]
fn a_thread_that_panics_ends_the_server_and_the_next_start_goes_on() {
    for (part, point) in [
        ("ingest", "server: synced#6"),
        ("upkeep", "server: segments durable"),
    ] {
        let mut lab = Lab::start(&format!("falls-{part}"));
        lab.stop_server();
        lab.server_environment
            .push(("SCRINIUM_PANIC".to_owned(), point.to_owned()));
        // It may end before anybody reaches it.
        lab.spawn_server("");
        let console = lab.console;
        wait_until("it listens, or is gone", PATIENCE, || {
            TcpStream::connect(console).is_ok() || lab.server_has_ended()
        });
        wait_until("the server has ended", Duration::from_secs(60), || {
            if !lab.server_has_ended() {
                send(&lab, "a line");
                let _outcome = lab.server(&["compact"]);
            }
            lab.server_has_ended()
        });
        assert_eq!(lab.wait_for_server_exit(Duration::from_secs(1)), Some(70));
        let said = std::fs::read_to_string(lab.dir.join("server.out")).unwrap();
        let last = format!("a part of the server, {part}, met a fault of the program");
        assert!(said.contains(&last), "{said}");
        lab.server_environment.clear();
        lab.start_server();
        send(&lab, "after the fall");
        wait_until("it archives", PATIENCE, || {
            lab.count("\"after the fall\"") == 1
        });
        lab.stop_server();
    }
}

/// The time without the server is a gap entry of the senders of syslog; a crash is told from a stop.
#[test]
fn the_time_without_the_server_is_a_gap_of_plain_syslog() {
    let mut lab = Lab::start("absence");
    send(&lab, "before");
    wait_until("the line is archived", PATIENCE, || {
        lab.count("before") == 1
    });
    let gaps = |lab: &Lab, how: &str| lab.count(&format!("stream:127.0.0.1 gap \"{how}\""));
    assert_eq!(gaps(&lab, "the server was not there"), 0);
    lab.stop_server();
    lab.start_server();
    wait_until("the gap is there", PATIENCE, || {
        gaps(&lab, "it was stopped by SIGTERM") == 1
    });
    lab.kill_server();
    lab.start_server();
    wait_until("the other gap is there", PATIENCE, || {
        gaps(&lab, "it ended without being stopped") == 1
    });
    assert_eq!(gaps(&lab, "the server was not there"), 2);
    let ends: Vec<String> = lab
        .trail("server started")
        .iter()
        .map(Value::to_string)
        .collect();
    assert!(ends[1].contains("in order, SIGTERM"), "{ends:?}");
    assert!(ends[2].contains("NOT in order"), "{ends:?}");
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
    lab.stop_server();
}

/// An administrator's certificate: shown when its files change, kept while they do not fit, an alarm before its end.
#[test]
fn a_replaced_certificate_is_shown_and_one_that_ends_is_an_alarm() {
    if !has_tool("openssl") {
        return;
    }
    let mut lab = Lab::start("certificate");
    make(&lab, "first.example", "10");
    put(&lab, "certificate");
    put(&lab, "key");
    let config = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    let files = format!(
        "{config}[console]\ncertificate = \"{0}/certificate.pem\"\nkey = \"{0}/key.pem\"\n",
        lab.dir.display()
    );
    lab.write("server.toml", files.as_bytes());
    lab.stop_server();
    lab.start_server();
    assert!(subject(&lab).contains("first.example"));
    let alarm = lab.wait_for_alarm("certificate-ends", "server");
    assert!(alarm.contains("certificate.pem"), "{alarm}");
    // Half of it is not taken.
    make(&lab, "second.example", "90");
    put(&lab, "certificate");
    let failed = lab.wait_for_alarm("duty-failed", "server");
    assert!(failed.contains("do not fit together"), "{failed}");
    assert!(subject(&lab).contains("first.example"));
    put(&lab, "key");
    wait_until("the new one is shown", Duration::from_secs(15), || {
        subject(&lab).contains("second.example")
    });
    assert_eq!(lab.trail("console certificate replaced").len(), 1);
    wait_until("both alarms are over", PATIENCE, || {
        let alarms = lab.alarms();
        alarms.iter().all(|alarm| !alarm["over"].is_null())
    });
    lab.stop_server();
}

/// What is not mounted looks like an empty directory, or none: nothing is made there, and somebody hears of it.
#[test]
fn a_place_that_is_not_mounted_gets_no_backup_and_no_copies() {
    let mut lab = Lab::start("not-mounted");
    let (to, copies) = (lab.dir.join("nas"), lab.dir.join("copies"));
    let keys = lab.dir.join("keys");
    let backup = |more: &[&str]| {
        let mut command = lab.server_command(&["backup", "create"]);
        let made = command
            .arg("--to")
            .arg(&to)
            .arg("--keys")
            .arg(&keys)
            .args(more);
        made.output().unwrap()
    };
    let made = backup(&[]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let mounted = lab.dir.join("mounted");
    mv(&to, &mounted);
    let refused = backup(&[]);
    assert!(!refused.status.success());
    assert!(
        text(&refused.stderr).contains("is not there"),
        "{}",
        text(&refused.stderr)
    );
    assert!(!to.exists_now());
    std::fs::create_dir(&to).unwrap();
    let refused = backup(&[]);
    assert!(
        text(&refused.stderr).contains("has nothing of it now"),
        "{}",
        text(&refused.stderr)
    );
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 0);
    let anew = backup(&["--anew"]);
    assert!(anew.status.success(), "{}", text(&anew.stderr));

    // By itself nothing is made where nothing is, not even the first time.
    let config = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    let absent = lab.dir.join("absent/backup");
    std::fs::create_dir(&copies).unwrap();
    let more = format!(
        "[backup]\nto = \"{}\"\nkeys = \"{}\"\n[evidence]\ninterval_s = 1\ncopies = [\"{}\"]\n",
        absent.display(),
        keys.display(),
        copies.display()
    );
    lab.write("server.toml", format!("{config}{more}").as_bytes());
    lab.stop_server();
    lab.start_server();
    let alarm = lab.wait_for_alarm("backup-failed", "server");
    assert!(alarm.contains("absent/backup is not there"), "{alarm}");
    assert!(!lab.dir.join("absent").exists_now());
    wait_until("a checkpoint is copied", PATIENCE, || {
        std::fs::read_dir(&copies).unwrap().count() > 0
    });
    // Unmounted: the directory below is empty.
    mv(&copies, &lab.dir.join("copies-mounted"));
    std::fs::create_dir(&copies).unwrap();
    // A copy may have met it between the two.
    wait_until("it is said", PATIENCE, || {
        let alarm = lab.wait_for_alarm("evidence-stopped", "server");
        alarm.contains("has nothing of it now")
    });
    assert_eq!(std::fs::read_dir(&copies).unwrap().count(), 0);
    lab.stop_server();
}

/// What would go wrong after the volume is made is found before.
#[test]
fn init_makes_nothing_when_something_is_wrong() {
    let dir = std::env::temp_dir().join(format!("scrinium-init-{}", std::process::id()));
    drop(std::fs::remove_dir_all(&dir));
    std::fs::create_dir(&dir).unwrap();
    let data = dir.join("data");
    let init = |words: &[&str], stdout: Stdio| {
        let mut command = Command::new(program("scrinium-server"));
        command.args(["init", "--data"]).arg(&data).args(words);
        command
            .stdout(stdout)
            .stderr(Stdio::piped())
            .output()
            .unwrap()
    };
    let place = |name: &str| dir.join(name).display().to_string();
    for name in ["short", "taken"] {
        File::create(dir.join(name)).unwrap();
    }
    for (words, says) in [
        (
            vec!["--admin-password-file".to_owned(), place("short")],
            "password",
        ),
        (
            vec!["--recovery-out".to_owned(), place("nowhere/shares")],
            "nowhere/shares",
        ),
        (
            vec!["--recovery-out".to_owned(), place("taken")],
            "must be a new file",
        ),
    ] {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let made = init(&words, Stdio::null());
        assert!(!made.status.success());
        let said = text(&made.stderr);
        assert!(said.contains(says), "{said}");
        assert!(!data.join("volume.json").exists_now(), "{words:?}");
    }
    // Nobody would see password and shares.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let made = init(&[], full.into());
    assert!(!made.status.success() && !data.join("volume.json").exists_now());
    assert!(
        text(&made.stderr).contains("nothing was made"),
        "{}",
        text(&made.stderr)
    );
    let out = place("shares");
    let made = init(&["--recovery-out", &out], Stdio::piped());
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert_eq!(std::fs::read_to_string(&out).unwrap().lines().count(), 3);
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Makes a certificate and its key, beside those that are in use.
fn make(lab: &Lab, name: &str, days: &str) {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ])
        .args([
            "-nodes",
            "-subj",
            &format!("/CN={name}"),
            "-days",
            days,
            "-keyout",
        ])
        .arg(lab.dir.join("key.new"))
        .arg("-out")
        .arg(lab.dir.join("certificate.new"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
}

/// Puts one of the new files in its place.
fn put(lab: &Lab, file: &str) {
    let bytes = std::fs::read(lab.dir.join(format!("{file}.new"))).unwrap();
    lab.write(&format!("{file}.pem"), &bytes);
}

trait Exists {
    fn exists_now(&self) -> bool;
}

impl Exists for std::path::Path {
    fn exists_now(&self) -> bool {
        self.try_exists().unwrap()
    }
}

fn mv(from: &std::path::Path, to: &std::path::Path) {
    #[expect(clippy::disallowed_methods, reason = "nothing of a test is durable")]
    std::fs::rename(from, to).unwrap();
}

fn send(lab: &Lab, line: &str) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let line = format!("<13>{line}");
    socket.send_to(line.as_bytes(), lab.syslog_udp).unwrap();
}

fn duties(lab: &Lab) -> Value {
    let asked = lab.server(&["duties", "--json"]);
    serde_json::from_slice(&asked.stdout).unwrap_or_else(|_| panic!("{}", text(&asked.stderr)))
}

/// Status and text of `/readyz`.
pub(crate) fn ready(lab: &Lab) -> (u16, String) {
    let url = format!("https://{}/readyz", lab.console);
    let asked = Command::new("curl")
        .args(["-sk", "-w", "\n%{http_code}", &url])
        .output()
        .unwrap();
    let said = text(&asked.stdout);
    let (body, status) = said.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

/// Who the console's certificate is of.
fn subject(lab: &Lab) -> String {
    let words =
        "openssl s_client -connect $0 </dev/null 2>/dev/null | openssl x509 -noout -subject";
    let shown = Command::new("sh")
        .args(["-c", words, &lab.console.to_string()])
        .output();
    text(&shown.unwrap().stdout)
}

/// Names of a process's threads.
fn threads(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = tasks.flatten().filter_map(|task| {
        let name = std::fs::read_to_string(task.path().join("comm"));
        Some(name.ok()?.trim().to_owned())
    });
    names.collect()
}

/// What one thread does in turns; its end is the end of the process.
const OF_UPKEEP: [&str; 3] = ["sealing", "compaction", "deletion"];
const PATIENCE: Duration = Duration::from_secs(30);
