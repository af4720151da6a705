//! The agent's Windows program, under Wine: real sockets, files with Windows' sharing rules, services of its
//! service manager. Its Event Log is a test double (`tests/windows/wevtapi.c`), since Wine's is a stub.

#![expect(clippy::disallowed_methods, reason = "what other programs do to files")]

use std::fs::{create_dir_all, remove_dir_all, write};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use scrinium_tests::lab::{Lab, text};
use scrinium_tests::writer::{append, line};
use scrinium_tests::{skipped, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
const SERVICE_STATE: &str = "C:/ProgramData/Scrinium";

/// A Windows machine, such as it is, and a server beside it.
struct Rig {
    lab: Lab,
    /// Where `tests/windows/setup.sh` put everything.
    own: PathBuf,
    /// The service manager goes on while a user's process does.
    user: Child,
    agent: Option<Child>,
    /// There is one such machine.
    _turn: MutexGuard<'static, ()>,
}

impl Rig {
    fn start(name: &str) -> Option<Self> {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/windows");
        if !own.join("agent/scrinium-agent.exe").is_file() {
            skipped("the agent for Windows was not built: sh tests/windows/setup.sh says why");
            return None;
        }
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lab = Lab::start(name);
        lab.adopt_agent("win1");
        let quiet = || Stdio::null();
        let user = Command::new(own.join("wine"))
            .args(["cmd", "/c", "pause"])
            .stdin(Stdio::piped())
            .stdout(quiet())
            .stderr(quiet())
            .spawn()
            .unwrap();
        let rig = Self {
            lab,
            own,
            user,
            agent: None,
            _turn: turn,
        };
        for dir in ["lab", "events", "ProgramData/Scrinium"] {
            let _absent = remove_dir_all(rig.path(dir));
        }
        for dir in ["lab/logs", "events", "ProgramData/Scrinium"] {
            create_dir_all(rig.path(dir)).unwrap();
        }
        Some(rig)
    }

    /// The path of a file of drive C.
    fn path(&self, name: &str) -> PathBuf {
        self.own.join("prefix/drive_c").join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.own.join("wine"));
        let program = self.own.join("agent/scrinium-agent.exe");
        match words {
            ["agent", rest @ ..] => command.arg(program).args(rest),
            words => command.args(words),
        };
        command.stdin(Stdio::null());
        command
    }

    /// Runs a program of Windows; `agent` is ours. Whether it succeeded, and what it said.
    fn wine(&self, words: &[&str]) -> (bool, String) {
        // Through a file: Wine's own processes would keep a pipe open.
        let out = self.lab.dir.join("wine.out");
        let file = std::fs::File::create(&out).unwrap();
        let mut child = self
            .command(words)
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        wait_until(&format!("{words:?} ends"), PATIENCE, || {
            child.try_wait().unwrap().is_some()
        });
        let status = child.wait().unwrap();
        (status.success(), text(&std::fs::read(out).unwrap()))
    }

    fn succeed(&self, words: &[&str]) -> String {
        let (succeeded, said) = self.wine(words);
        assert!(succeeded, "{words:?}: {said}");
        said
    }

    fn run_agent(&mut self) {
        let out = append(&self.lab.dir.join("win1.out"));
        let words = [
            "agent",
            "run",
            "--state",
            "C:/lab/state",
            "--config",
            "C:/lab/agent.toml",
        ];
        let agent = self
            .command(&words)
            .stderr(out)
            .stdout(Stdio::null())
            .spawn();
        self.agent = Some(agent.unwrap());
    }

    /// What a power cut does to it.
    fn kill_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    fn enrol(&self, state: &str) {
        let token = self.lab.token("win1", self.lab.sl);
        self.succeed(&["agent", "enroll", "--state", state, &token]);
    }

    fn write(&self, name: &str, bytes: &str) {
        append(&self.path(name))
            .write_all(bytes.as_bytes())
            .unwrap();
    }

    fn settle(&self, name: &str, written: &str) {
        let path = format!("C:\\{}", name.replace('/', "\\"));
        let path = Path::new(&path);
        self.lab
            .wait_for_bytes("win1", path, written.len(), PATIENCE);
        assert_eq!(text(&self.lab.export("win1", path)), *written);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.agent.is_some() {
            self.kill_agent();
        }
        let _ended = self.user.kill();
        let _reaped = self.user.wait();
        let server = Command::new("wineserver")
            .arg("-k")
            .env("WINEPREFIX", self.own.join("prefix"))
            .status();
        let _ended = server;
    }
}

/// L3 and the rest: enrols, tails, ships, goes on after a kill; the writer may rename and delete what the
/// agent reads.
#[test]
fn l3_the_windows_agent_tails_through_renames_and_kills() {
    let Some(mut rig) = Rig::start("windows") else {
        return;
    };
    rig.enrol("C:/lab/state");
    write(
        rig.path("lab/agent.toml"),
        "[[source]]\nfile = 'C:/lab/logs/*.log'\n",
    )
    .unwrap();
    rig.run_agent();
    wait_until("its status is shown", PATIENCE, || {
        let (succeeded, said) = rig.wine(&["agent", "status", "--state", "C:/lab/state"]);
        succeeded && said.starts_with("connected")
    });
    let log = "lab/logs/app.log";
    let mut written = String::new();
    let mut number = 0;
    for round in 0..3 {
        for _ in 0..200 {
            rig.write(log, &line(number));
            written.push_str(&line(number));
            number += 1;
        }
        rig.settle(log, &written);
        match round {
            // Renamed by a program of Windows, to whom an open file says no unless it was opened to share.
            0 => {
                rig.succeed(&["cmd", "/c", "ren C:\\lab\\logs\\app.log app.log.1"]);
            }
            1 => {
                rig.kill_agent();
                rig.write(log, &line(number));
                written.push_str(&line(number));
                number += 1;
                rig.run_agent();
            }
            _ => {}
        }
    }
    // Nor is a deletion refused; that the file is gone at once is beyond Wine.
    assert_eq!(
        rig.succeed(&["cmd", "/c", "del C:\\lab\\logs\\app.log"]),
        ""
    );
    let (code, report) = rig.lab.verify();
    assert_eq!(code, 0);
    assert!(report.contains("; 0 gap entries"), "{report}");
}

/// The functions of the Event Log are called as they are declared; what Windows does behind them is
/// simulated in the agent's own tests (scenarios G).
#[test]
fn channels_of_the_event_log_are_collected_across_a_kill_and_a_lost_bookmark() {
    let Some(mut rig) = Rig::start("events") else {
        return;
    };
    rig.enrol("C:/lab/state");
    let others = ["Application", "System", "Acme-Sync/Operational"];
    let mut source = "[[source]]\nevent_log = 'Absent'\n".to_owned();
    for channel in others.iter().chain(&["Security"]) {
        source += &format!("[[source]]\nevent_log = '{channel}'\n");
    }
    write(rig.path("lab/agent.toml"), source).unwrap();
    let events_of = |computer: &str, from: u32, to: u32| {
        let event = |id: u32| {
            let provider = if id.is_multiple_of(2) {
                "Known"
            } else {
                "Removed"
            };
            format!(
                "{id}\t<Event xmlns='http://schemas.microsoft.com/win/2004/08/events/event'><System><Provider Name='{provider}'/><EventID>4624</EventID><Level>2</Level><TimeCreated SystemTime='2026-11-22T08:15:01.1234567Z'/><EventRecordID>{id}</EventRecordID><Execution ProcessID='4' ThreadID='5'/><Computer>{computer}</Computer></System><EventData><Data Name='order'>n{id:05}</Data></EventData></Event>\n"
            )
        };
        (from..to).map(event).collect::<String>()
    };
    let events = |from, to| events_of("DC01", from, to);
    create_dir_all(rig.path("events/Acme-Sync")).unwrap();
    let write_others = |rig: &Rig, from, to| {
        for (number, channel) in others.iter().enumerate() {
            let more = events_of(&format!("PC{number}"), from, to);
            rig.write(&format!("events/{channel}.txt"), &more);
        }
    };
    // Each is a stream of its own, under its name.
    let wait_for_others = |rig: &Rig, count| {
        for (number, channel) in others.iter().enumerate() {
            let query = format!("agent:win1 stream:{channel} PC{number}");
            wait_until(channel, PATIENCE, || rig.lab.count(&query) == count);
        }
    };
    rig.write("events/Security.txt", &events(1, 101));
    write_others(&rig, 1, 11);
    rig.run_agent();
    wait_until("they are archived", PATIENCE, || {
        rig.lab.count("agent:win1 DC01") == 100
    });
    let known = &rig.lab.search("n00042")[0];
    assert!(
        known["text"]
            .as_str()
            .unwrap()
            .contains("Something known happened: 42."),
        "{known}"
    );
    assert_eq!(
        (known["host"].as_str(), known["severity"].as_str()),
        (Some("DC01"), Some("error"))
    );
    assert!(
        rig.lab.search("n00043")[0]["text"]
            .as_str()
            .unwrap()
            .contains("] <Event xmlns")
    );

    wait_for_others(&rig, 10);

    rig.kill_agent();
    rig.write("events/Security.txt", &events(101, 201));
    write_others(&rig, 11, 21);
    rig.run_agent();
    wait_until("the next are archived", PATIENCE, || {
        rig.lab.count("agent:win1 DC01") == 200
    });
    wait_for_others(&rig, 20);
    assert!(rig.lab.verify().1.contains("; 0 gap entries"));

    rig.kill_agent();
    write(rig.path("events/Security.txt"), events(251, 301)).unwrap();
    rig.run_agent();
    wait_until("the oldest are archived", PATIENCE, || {
        rig.lab.count("agent:win1 DC01") == 250
    });
    assert_eq!(
        rig.lab
            .count("\"50 events, 201 to 250, were not collected\""),
        1
    );
}

/// Installed, started, stopped and removed as a service.
#[test]
fn the_windows_service_is_installed_ships_and_is_removed() {
    let Some(rig) = Rig::start("winservice") else {
        return;
    };
    rig.enrol(&format!("{SERVICE_STATE}/agent"));
    let config = rig.path("ProgramData/Scrinium/agent.toml");
    write(config, "[[source]]\nfile = 'C:/lab/logs/*.log'\n").unwrap();
    let _absent = rig.wine(&["agent", "service", "uninstall"]);
    rig.succeed(&["agent", "service", "install"]);
    let log = "lab/logs/app.log";
    rig.write(log, &line(1));
    rig.settle(log, &line(1));
    let state = || rig.succeed(&["sc", "query", "scrinium-agent"]);
    assert!(state().contains("RUNNING"), "{}", state());

    rig.succeed(&["agent", "service", "stop"]);
    wait_until("it has stopped", PATIENCE, || state().contains("STOPPED"));
    rig.write(log, &line(2));
    rig.succeed(&["agent", "service", "start"]);
    rig.settle(log, &format!("{}{}", line(1), line(2)));

    rig.succeed(&["agent", "service", "uninstall"]);
    wait_until("it is removed", PATIENCE, || {
        !rig.wine(&["sc", "query", "scrinium-agent"]).0
    });
}
