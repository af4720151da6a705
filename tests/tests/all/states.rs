//! What is said of how an agent and its sources do is so, and is said in time: here, on the server, to the service
//! manager.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use scrinium_tests::console::Console;
use scrinium_tests::lab::{Lab, PASSWORD, text};
use scrinium_tests::{has_tool, now, program, skipped, unix_s, wait_until};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);
/// Two keep-alives of a laboratory, and what looking takes.
const TWO_KEEP_ALIVES: Duration = Duration::from_secs(10);
const NOBODY: u32 = 65534;

fn write(path: &Path, text: &str) {
    let mut file = File::options().create(true).append(true).open(path);
    file.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
}

/// Runs a command of the agent; what it says.
fn agent(lab: &Lab, words: &[&str], user: Option<u32>) -> String {
    let mut command = match user {
        Some(user) => {
            let mut command = Command::new("setpriv");
            command.args([&format!("--reuid={user}"), "--clear-groups"]);
            command.arg(program("scrinium-agent"));
            command
        }
        None => Command::new(program("scrinium-agent")),
    };
    command
        .args(words)
        .arg("--config")
        .arg(lab.dir.join("web1.toml"));
    let output = command.output().unwrap();
    text(&output.stdout) + &text(&output.stderr)
}

/// The rows of a source that ends so, in that state.
fn rows<'a>(shown: &'a Value, source: &str, state: &str) -> Vec<&'a Value> {
    let rows = shown["sources"].as_array().unwrap().iter();
    let rows = rows
        .filter(|row| row["source"].as_str().unwrap().ends_with(source) && row["state"] == state);
    rows.collect()
}

/// Waits until the agent's own status and the server say that a source is in a state, each within two keep-alives.
fn wait_for_state(lab: &Lab, source: &str, state: &str) -> Value {
    wait_until(
        &format!("{source} is {state}, says the agent"),
        TWO_KEEP_ALIVES,
        || {
            let status = lab.agent_status("web1");
            status.is_some_and(|status| !rows(&status, source, state).is_empty())
        },
    );
    let mut found = Value::Null;
    wait_until(
        &format!("{source} is {state}, says the server"),
        TWO_KEEP_ALIVES,
        || {
            let shown = lab.agent("web1");
            found = rows(&shown, source, state)
                .first()
                .map_or(Value::Null, |row| (*row).clone());
            !found.is_null()
        },
    );
    found
}

/// A lab whose agent runs as a user that may read nothing but what everybody may.
fn lab_of_nobody(name: &str, sources: &str) -> Option<Lab> {
    if !has_tool("setpriv") || File::open("/etc/shadow").is_err() {
        skipped("it takes root and setpriv to run an agent as somebody else");
        return None;
    }
    let mut lab = Lab::start(name);
    lab.add_agent("web1", lab.sl, "");
    let logs = lab.dir.join("logs");
    lab.write(
        "web1.toml",
        sources
            .replace("LOGS", &logs.display().to_string())
            .as_bytes(),
    );
    std::fs::set_permissions(&lab.dir, Permissions::from_mode(0o755)).unwrap();
    let mut dirs = vec![lab.state("web1")];
    while let Some(dir) = dirs.pop() {
        chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
        for entry in std::fs::read_dir(&dir).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => dirs.push(entry.path()),
                false => chown(entry.path(), Some(NOBODY), Some(NOBODY)).unwrap(),
            }
        }
    }
    Some(lab)
}

fn start_as_nobody(lab: &mut Lab) {
    let user = format!("--reuid={NOBODY}");
    let group = format!("--regid={NOBODY}");
    lab.spawn_agent("web1", "", &["setpriv", &user, &group, "--clear-groups"]);
    lab.wait_connected("web1");
}

/// fluent/fluent-bit#10656, #5346: a directory that cannot be listed and a file that cannot be read. Others go on, each
/// place where somebody may look says which path and why, an alarm calls a person, and all is well again once it is mended.
#[test]
fn what_cannot_be_listed_or_read_is_said_with_its_path_and_is_over_when_it_is_mended() {
    let sources = "[[source]]\nfile = \"LOGS/*/*.log\"\n[[source]]\nfile = \"LOGS/secret/audit.log\"\n[[source]]\nfile = \"LOGS/open/none-*.txt\"\n";
    let Some(mut lab) = lab_of_nobody("unlisted", sources) else {
        return;
    };
    for name in ["open", "secret"] {
        std::fs::create_dir_all(lab.log(name)).unwrap();
        write(
            &lab.log(name).join("audit.log"),
            &format!("words in {name}\n"),
        );
    }
    let closed = lab.log("open/closed.log");
    write(&closed, "words behind a lock\n");
    std::fs::set_permissions(lab.log("secret"), Permissions::from_mode(0o700)).unwrap();
    std::fs::set_permissions(&closed, Permissions::from_mode(0o600)).unwrap();
    start_as_nobody(&mut lab);
    wait_until("the readable one is collected", PATIENCE, || {
        lab.count("\"words in open\"") == 1
    });
    let listed = wait_for_state(&lab, "*/*.log", "unreadable");
    assert_eq!(listed["cause"], "Permission denied (os error 13)");
    let named = wait_for_state(&lab, "secret/audit.log", "unreadable");
    assert_eq!(named["path"], lab.log("secret/audit.log").to_str().unwrap());
    assert_eq!(named["needs_person"], true);
    let unmatched = wait_for_state(&lab, "none-*.txt", "no-match");
    assert_eq!(unmatched["path"], lab.log("open").to_str().unwrap());
    assert!(!rows(&lab.agent("web1"), "*/*.log", "collecting").is_empty());
    let paths: Vec<Value> = rows(&lab.agent("web1"), "*/*.log", "unreadable")
        .iter()
        .map(|row| row["path"].clone())
        .collect();
    for path in [&lab.log("secret"), &closed] {
        assert!(paths.contains(&path.to_str().unwrap().into()), "{paths:?}");
    }
    let alarm = lab.wait_for_alarm("source-trouble", "web1");
    assert!(
        alarm.contains("secret") && alarm.contains("Permission denied"),
        "{alarm}"
    );
    wait_until("the agent's own stream says it", PATIENCE, || {
        lab.count("stream:scrinium-agent \"is not collected\" secret") >= 1
    });
    let check = agent(
        &lab,
        &["check", "--state", lab.state("web1").to_str().unwrap()],
        Some(NOBODY),
    );
    assert!(check.contains("(unreadable; source"), "{check}");
    assert!(
        check.contains(&format!("unreadable: {}", closed.display())),
        "{check}"
    );
    assert!(check.contains("no-match"), "{check}");
    let secret = lab.log("secret/audit.log");
    let test = agent(
        &lab,
        &["sources", "test", secret.to_str().unwrap()],
        Some(NOBODY),
    );
    assert!(test.contains("Permission denied"), "{test}");
    let listed = agent(&lab, &["sources", "--json"], Some(NOBODY));
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let states: Vec<&Value> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["state"])
        .collect();
    for state in ["matches", "unreadable", "no-match"] {
        assert!(states.iter().any(|found| *found == state), "{listed}");
    }
    if has_tool("curl") {
        let page = Console::sign_in(&lab, PASSWORD).get("/agents/web1");
        assert!(
            page.contains("How its sources do") && page.contains("Unreadable"),
            "{page}"
        );
    }
    for path in [&lab.log("secret"), &closed] {
        std::fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    for words in ["words in secret", "words behind a lock"] {
        wait_until(words, PATIENCE, || lab.count(&format!("\"{words}\"")) == 1);
    }
    wait_until(
        "nothing is wrong any more, says the server",
        TWO_KEEP_ALIVES,
        || {
            let shown = lab.agent("web1");
            let rows = shown["sources"].as_array().unwrap();
            rows.iter().all(|row| row["needs_person"] == false)
        },
    );
    wait_for_state(&lab, "secret/audit.log", "collecting");
}

/// The states that no unreadable file makes: refused links, what the configuration denies, a place to listen that is
/// taken, a spool that is full.
#[test]
fn each_other_state_of_a_source_is_said_here_and_on_the_server() {
    let mut lab = Lab::start("states");
    lab.add_agent("web1", lab.sl, "");
    let logs = lab.dir.join("logs").display().to_string();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = format!(
        "deny = [\"{logs}/private*\"]\n[[source]]\nfile = \"{logs}/*.log\"\n[[source]]\nfile = \"{logs}/private.txt\"\n[[source]]\nfile = \"{logs}/links/**/*.txt\"\n[[source]]\nsyslog = \"tcp://{}\"\n[[source]]\ncommand = [\"/bin/false\"]\nevery_s = 1\n[spool]\nram_bytes_max = \"1 MiB\"\ndisk_bytes_max = \"1 MiB\"\n",
        taken.local_addr().unwrap()
    );
    lab.write("web1.toml", config.as_bytes());
    write(&lab.log("app.log"), "one\n");
    write(&lab.log("private.txt"), "two\n");
    std::fs::create_dir_all(lab.log("links/loop")).unwrap();
    symlink("..", lab.log("links/loop/up")).unwrap();
    symlink("/proc", lab.log("links/z:")).unwrap();
    lab.start_agent("web1");
    lab.wait_connected("web1");
    wait_for_state(&lab, "*.log", "collecting");
    let denied = wait_for_state(&lab, "private.txt", "denied");
    assert_eq!(denied["needs_person"], false);
    let walked = wait_for_state(&lab, "links/**/*.txt", "not-walked");
    assert_eq!(walked["needs_person"], false);
    let shown = lab.agent("web1");
    let causes: Vec<&str> = rows(&shown, "links/**/*.txt", "not-walked")
        .iter()
        .filter_map(|row| row["cause"].as_str())
        .collect();
    assert!(
        causes.iter().any(|cause| cause.contains("kind proc")),
        "{causes:?}"
    );
    assert!(
        causes.iter().any(|cause| cause.contains("walked already")),
        "{causes:?}"
    );
    wait_for_state(&lab, "links/**/*.txt", "no-match");
    let ended = wait_for_state(&lab, "/bin/false", "ended");
    assert!(
        ended["cause"].as_str().unwrap().contains("exit status: 1"),
        "{ended}"
    );
    let port = format!("{}", taken.local_addr().unwrap());
    let listens = wait_for_state(&lab, &port, "ended");
    assert!(
        listens["cause"].as_str().unwrap().contains("not received"),
        "{listens}"
    );
    // It listens once the place is free.
    drop(taken);
    wait_for_state(&lab, &port, "collecting");
    lab.stop_server();
    // More than the spool takes.
    let noise: String = (0..400_000_u64)
        .map(|n| {
            format!(
                "{:016x}{:016x}\n",
                n.wrapping_mul(0x9e37_79b9_7f4a_7c15),
                n.wrapping_mul(0xc2b2_ae3d_27d4_eb4f)
            )
        })
        .collect();
    write(&lab.log("app.log"), &noise);
    wait_until("the agent says that it waits", PATIENCE, || {
        let status = lab.agent_status("web1");
        status.is_some_and(|status| !rows(&status, "*.log", "waiting").is_empty())
    });
    lab.start_server();
    lab.wait_for_bytes("web1", &lab.log("app.log"), 4 + noise.len(), PATIENCE * 4);
    wait_for_state(&lab, "*.log", "collecting");
}

/// An agent that was enrolled and never started has said nothing: no zeros. The lamp of its enrolment is green when a
/// source of it was archived, not when its own log was.
#[test]
fn an_agent_that_never_ran_is_never_seen_and_the_lamp_is_green_with_the_first_entry_of_a_source() {
    let mut lab = Lab::start("never-ran");
    let token = lab.token("web1", lab.sl);
    let enrolled = lab.enrol("web1", &token);
    assert!(enrolled.status.success(), "{}", text(&enrolled.stderr));
    let never = |lab: &Lab| {
        let shown = lab.agent("web1");
        assert_eq!(shown["state"], "never-seen", "{shown}");
        for number in [
            "backlog_entries",
            "backlog_bytes",
            "cache_bytes",
            "cache_bytes_max",
            "clock_offset_ms",
        ] {
            assert!(shown[number].is_null(), "{shown}");
        }
    };
    wait_until("its enrolment is over", PATIENCE, || {
        lab.agent("web1")["state"] != "connected"
    });
    never(&lab);
    lab.stop_server();
    lab.start_server();
    never(&lab);
    lab.adopt_agent("web1");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    wait_until("its own log is archived", PATIENCE, || {
        lab.count("stream:scrinium-agent") > 0
    });
    let shown = lab.agent("web1");
    assert!(shown["cache_bytes_max"].as_u64() > Some(0), "{shown}");
    if !has_tool("curl") {
        return skipped("curl is not here to look at the lamp");
    }
    let console = Console::sign_in(&lab, PASSWORD);
    let id = scrinium_protocol::token::Token::parse(&token).unwrap().id;
    let lamp = || {
        console.get(&format!(
            "/enrol/{}/state",
            data_encoding::HEXLOWER.encode(&id)
        ))
    };
    assert!(lamp().contains("\"connected\""), "{}", lamp());
    write(&lab.log("app.log"), "the first entry\n");
    wait_until("the lamp is green", PATIENCE, || {
        lamp().contains("\"receiving\"")
    });
}

/// A thread that hangs in the file system: status and server say so and where, the service manager hears no more that the
/// agent lives, it ends in time, and the next start says what was left.
#[test]
fn a_thread_that_hangs_is_noticed_said_and_ended() {
    let mut lab = Lab::start("hangs");
    lab.add_agent("web1", lab.sl, "");
    let path = lab.dir.join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let notify = format!("NOTIFY_SOCKET={}", path.display());
    let heard = || {
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(len) = socket.recv(&mut buffer) {
            all.push(text(&buffer[..len]));
        }
        all
    };
    write(&lab.log("app.log"), "one\n");
    let hang = "SCRINIUM_HANG=agent: a file's turn#3";
    lab.spawn_agent("web1", "", &["env", &notify, "WATCHDOG_USEC=3000000", hang]);
    lab.wait_connected("web1");
    let at = lab.log("app.log").display().to_string();
    wait_until("its status says that it hangs, and where", PATIENCE, || {
        let status = lab.agent_status("web1");
        status.is_some_and(|status| {
            let problem = status["problem"].as_str().unwrap_or_default();
            problem.contains("hangs") && problem.contains(&at)
        })
    });
    let alarm = lab.wait_for_alarm("agent-trouble", "web1");
    assert!(alarm.contains("hangs") && alarm.contains(&at), "{alarm}");
    assert!(
        lab.agent("web1")["trouble"]
            .as_str()
            .unwrap()
            .contains("hangs")
    );
    // Every second for as long as it read; nothing of the kind since.
    assert!(
        heard()
            .iter()
            .any(|said| said.starts_with("STATUS=") && said.contains(&at))
    );
    let silent = now();
    wait_until(
        "three more times at which it would be said pass",
        PATIENCE,
        || now() - silent > Duration::from_secs(3),
    );
    assert_eq!(heard(), Vec::<String>::new());
    let asked = now();
    lab.stop_agent("web1");
    assert!(
        now() - asked < Duration::from_secs(10),
        "{:?}",
        now() - asked
    );
    lab.start_agent("web1");
    wait_until("the next start says what was left", PATIENCE, || {
        lab.count(
            "stream:scrinium-agent \"was stopped before it had ended\" \"did not end within\"",
        ) == 1
    });
    wait_until("it collects", PATIENCE, || {
        lab.count("one stream:app.log") == 1
    });
    assert!(!lab.state("web1").join("unfinished").is_file());
}

/// A directory whose file system does not answer: the walk goes on without it, and a person hears of it.
#[test]
fn a_directory_that_does_not_answer_is_said_and_new_files_beside_it_are_found() {
    let mut lab = Lab::start("no-answer");
    lab.add_agent("web1", lab.sl, "");
    let logs = lab.dir.join("logs");
    let config = format!("[[source]]\nfile = \"{}/**/*.log\"\n", logs.display());
    lab.write("web1.toml", config.as_bytes());
    for name in ["a", "b"] {
        std::fs::create_dir_all(logs.join(name)).unwrap();
    }
    write(&logs.join("first.log"), "first\n");
    // The root is the first.
    lab.spawn_agent(
        "web1",
        "",
        &["env", "SCRINIUM_HANG=agent: a directory's turn#2"],
    );
    lab.wait_connected("web1");
    let alarm = lab.wait_for_alarm("source-trouble", "web1");
    assert!(alarm.contains("does not answer"), "{alarm}");
    let row = wait_for_state(&lab, "**/*.log", "not-walked");
    let hung = row["path"].as_str().unwrap();
    let other = ["a", "b"].map(|name| logs.join(name));
    let other = other
        .iter()
        .find(|path| path.to_str() != Some(hung))
        .unwrap();
    write(&other.join("late.log"), "found beside it\n");
    std::fs::create_dir_all(logs.join("c/d")).unwrap();
    write(&logs.join("c/d/new.log"), "found below\n");
    for (words, stream) in [
        ("first", "first.log"),
        ("found beside it", "late.log"),
        ("found below", "new.log"),
    ] {
        let query = format!("\"{words}\" stream:{stream}");
        wait_until(words, PATIENCE, || lab.count(&query) == 1);
    }
    let asked = now();
    lab.stop_agent("web1");
    assert!(now() - asked < Duration::from_secs(10));
}

/// While an agent ships a megabyte a second its state is as fresh and as right as an idle one's.
#[test]
fn an_agent_that_ships_all_the_time_says_its_cache_backlog_and_clock_on_time() {
    // The full length with SCRINIUM_TEST_BUSY=1.
    let seconds = if std::env::var_os("SCRINIUM_TEST_BUSY").is_some() {
        300
    } else {
        20
    };
    let mut lab = Lab::start("busy");
    lab.add_agent("web1", lab.sl, "[spool]\ndisk_bytes_max = \"64 MiB\"\n");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    let log = lab.log("app.log");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stops = stop.clone();
    let writer = std::thread::spawn(move || {
        let mut file = File::options().create(true).append(true).open(log).unwrap();
        let begun = now();
        let mut written: u64 = 0;
        while !stops.load(std::sync::atomic::Ordering::SeqCst) {
            let due = u64::try_from((now() - begun).as_millis()).unwrap() * 1000;
            while written < due {
                let line = format!("{:0>199}\n", written.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                file.write_all(line.as_bytes()).unwrap();
                written += u64::try_from(line.len()).unwrap();
            }
            scrinium_tests::pause(Duration::from_millis(5));
        }
        written
    });
    let begun = now();
    let (mut looks, mut oldest_s) = (0_u32, 0);
    while now() - begun < Duration::from_secs(seconds) {
        let shown = lab.agent("web1");
        let said: Value = shown["state_said"].clone();
        let said_s = said.as_str().map(seconds_of).unwrap();
        oldest_s = oldest_s.max(unix_s().saturating_sub(said_s));
        assert_eq!(shown["state"], "connected", "{shown}");
        assert_eq!(shown["cache_bytes_max"], 64 << 20);
        assert!(
            shown["clock_offset_ms"].as_i64().unwrap().abs() < 2000,
            "{shown}"
        );
        assert!(
            shown["backlog_bytes"].as_u64().unwrap() < 8 << 20,
            "{shown}"
        );
        looks += 1;
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let written = writer.join().unwrap();
    assert!(looks > 10 && written > seconds * 500_000);
    // A laboratory keeps alive every two seconds.
    assert!(oldest_s <= 4, "a state was {oldest_s} s old");
    // What waits is said while it waits.
    lab.stop_server();
    write(&lab.log("later.log"), &"it waits\n".repeat(1000));
    wait_until("the agent holds it", PATIENCE, || {
        let status = lab.agent_status("web1");
        status.is_some_and(|status| status["backlog_entries"].as_u64() >= Some(1000))
    });
    lab.start_server();
    wait_until("it is archived", PATIENCE, || {
        lab.count("stream:later.log") == 1000
    });
    wait_until("nothing waits, says the server", TWO_KEEP_ALIVES, || {
        let shown = lab.agent("web1");
        shown["backlog_entries"]
            .as_u64()
            .is_some_and(|entries| entries < 100)
    });
}

/// The seconds of the day of an RFC 3339 time today, as Unix seconds.
fn seconds_of(time: &str) -> u64 {
    let day = unix_s() / 86_400 * 86_400;
    let part = |from: usize| time.get(from..from + 2).unwrap().parse::<u64>().unwrap();
    let seconds = day + part(11) * 3600 + part(14) * 60 + part(17);
    // It may have been said before midnight.
    if seconds > unix_s() + 43_200 {
        seconds - 86_400
    } else {
        seconds
    }
}
