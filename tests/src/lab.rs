//! A server and its agents in a directory of their own.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::{pause, program, wait_until};

/// A running laboratory; everything in it ends when it is dropped.
#[derive(Debug)]
pub struct Lab {
    pub dir: PathBuf,
    pub sl: SocketAddr,
    /// Where agents may send in clear that are allowed to.
    pub sl_integrity: SocketAddr,
    pub console: SocketAddr,
    pub syslog_udp: SocketAddr,
    pub syslog_tcp: SocketAddr,
    /// Where it tells its numbers.
    pub metrics: SocketAddr,
    /// Two of the recovery shares.
    pub shares: Vec<String>,
    /// What the server's processes get in their environment.
    pub server_environment: Vec<(String, String)>,
    server: Option<Child>,
    agents: Vec<(String, Option<Child>)>,
}

/// The administrator's password in every laboratory.
pub const PASSWORD: &str = "correct horse battery";

impl Lab {
    /// Makes a volume and starts the server on free ports.
    #[must_use]
    pub fn start(name: &str) -> Self {
        Self::start_with(name, "")
    }

    /// The same, with more lines in the server's `[agents]` table.
    #[must_use]
    pub fn start_with(name: &str, agents: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("scrinium-lab-{name}-{}", std::process::id()));
        let _absent = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("logs")).unwrap();
        let ports: Vec<SocketAddr> = (0..6).map(|_| free_address()).collect();
        let mut lab = Self {
            sl: ports[0],
            console: ports[1],
            syslog_udp: ports[2],
            syslog_tcp: ports[3],
            sl_integrity: ports[4],
            metrics: ports[5],
            shares: Vec::new(),
            server_environment: Vec::new(),
            server: None,
            agents: Vec::new(),
            dir,
        };
        let keep_alive = if agents.contains("keep_alive_s") {
            ""
        } else {
            "keep_alive_s = 2"
        };
        let config = format!(
            "[listen]\nsl = [\"{}\"]\nsl_integrity = [\"{}\"]\nconsole = [\"{}\"]\nsyslog_udp = [\"{}\"]\nsyslog_tcp = [\"{}\"]\nmetrics = [\"{}\"]\n[agents]\n{keep_alive}\n{agents}\n[archive]\nlog_mib_max = 1\n",
            lab.sl, lab.sl_integrity, lab.console, lab.syslog_udp, lab.syslog_tcp, lab.metrics
        );
        lab.write("server.toml", config.as_bytes());
        lab.write("password", PASSWORD.as_bytes());
        let (password, recovery) = (lab.dir.join("password"), lab.dir.join("recovery"));
        let made = lab
            .server_command(&["init"])
            .arg("--admin-password-file")
            .arg(password)
            .arg("--recovery-out")
            .arg(&recovery)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", text(&made.stderr));
        lab.shares = std::fs::read_to_string(&recovery)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect();
        // What the test knows must not be found where the product keeps its state.
        std::fs::remove_file(recovery).unwrap();
        lab.start_server();
        lab
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        let mut file = File::create(self.dir.join(name)).unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
    }

    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.join("server")
    }

    #[must_use]
    pub fn state(&self, agent: &str) -> PathBuf {
        self.dir.join(format!("agent-{agent}"))
    }

    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(name)
    }

    /// A command of the server on this volume.
    #[must_use]
    pub fn server_command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program("scrinium-server"));
        command
            .envs(self.server_environment.iter().cloned())
            .args(words)
            .arg("--data")
            .arg(self.data())
            .arg("--config")
            .arg(self.dir.join("server.toml"));
        command
    }

    /// Runs a command of the server to its end.
    #[must_use]
    pub fn server(&self, words: &[&str]) -> Output {
        self.server_command(words).output().unwrap()
    }

    /// Starts the server and waits until commands reach it.
    pub fn start_server(&mut self) {
        self.spawn_server("");
        self.wait_for_socket();
    }

    /// Waits until commands reach the server.
    pub fn wait_for_socket(&self) {
        let console = self.console;
        let socket = self.data().join("control.sock");
        wait_until("the server listens", Duration::from_secs(60), || {
            TcpStream::connect(console).is_ok()
                && std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
    }

    /// Starts the server, to die at the fault point `fault`.
    pub fn spawn_server(&mut self, fault: &str) {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.dir.join("server.out"))
            .unwrap();
        self.spawn_server_into(fault, log.into());
    }

    /// The same, with its standard error elsewhere.
    pub fn spawn_server_into(&mut self, fault: &str, stderr: Stdio) {
        let child = self
            .server_command(&["run"])
            .env("SCRINIUM_FAULT", fault)
            .stderr(stderr)
            .stdout(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.server = Some(child);
    }

    #[must_use]
    pub fn server_pid(&self) -> u32 {
        self.server.as_ref().unwrap().id()
    }

    /// Whether the server has ended by itself.
    pub fn server_has_ended(&mut self) -> bool {
        let server = self.server.as_mut().unwrap();
        server.try_wait().unwrap().is_some()
    }

    /// Waits until the server has ended by itself.
    pub fn wait_for_server_end(&mut self, limit: Duration) {
        let mut server = self.server.take().unwrap();
        wait_until("the server ends", limit, || {
            server.try_wait().unwrap().is_some()
        });
    }

    /// Waits until the server has ended by itself, and says with which exit code.
    pub fn wait_for_server_exit(&mut self, limit: Duration) -> Option<i32> {
        let mut server = self.server.take().unwrap();
        let mut code = None;
        wait_until("the server ends", limit, || {
            code = server.try_wait().unwrap();
            code.is_some()
        });
        code.unwrap().code()
    }

    /// `kill -9`.
    pub fn kill_server(&mut self) {
        kill(self.server.as_mut());
        self.server = None;
    }

    /// SIGTERM, and waits for the end.
    pub fn stop_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            terminate(&mut server);
        }
    }

    /// Makes a token; `address` is what the agent dials.
    #[must_use]
    pub fn token(&self, agent: &str, address: SocketAddr) -> String {
        let made = self.server(&["agent", "enroll", agent, "--address", &address.to_string()]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        text(&made.stdout).trim().to_owned()
    }

    /// Uses a token.
    #[must_use]
    pub fn enrol(&self, agent: &str, token: &str) -> Output {
        self.enrol_with_fault(agent, token, "")
    }

    /// Uses a token, to die at the fault point `fault`.
    #[must_use]
    pub fn enrol_with_fault(&self, agent: &str, token: &str, fault: &str) -> Output {
        Command::new(program("scrinium-agent"))
            .args(["enroll", token, "--state"])
            .arg(self.state(agent))
            .env("SCRINIUM_FAULT", fault)
            .output()
            .unwrap()
    }

    /// Enrols an agent and writes its configuration: every `*.log` of the laboratory, and `more`.
    pub fn add_agent(&mut self, agent: &str, address: SocketAddr, more: &str) {
        let token = self.token(agent, address);
        let enrolled = self.enrol(agent, &token);
        assert!(enrolled.status.success(), "{}", text(&enrolled.stderr));
        self.configure_agent(agent, more);
    }

    /// Takes an agent that is enrolled already into the laboratory.
    pub fn adopt_agent(&mut self, agent: &str) {
        self.configure_agent(agent, "");
    }

    /// Takes an agent into the laboratory: its configuration is every `*.log`, and `more`.
    pub fn configure_agent(&mut self, agent: &str, more: &str) {
        let config = format!(
            "[[source]]\nfile = \"{}/*.log\"\n{more}\n",
            self.dir.join("logs").display()
        );
        self.write(&format!("{agent}.toml"), config.as_bytes());
        self.agents.push((agent.to_owned(), None));
    }

    pub fn start_agent(&mut self, agent: &str) {
        self.spawn_agent(agent, "", &[]);
    }

    /// Starts an agent to die at the fault point `fault`, behind the words of `wrapper`.
    pub fn spawn_agent(&mut self, agent: &str, fault: &str, wrapper: &[&str]) {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.dir.join(format!("{agent}.out")))
            .unwrap();
        let agent_program = program("scrinium-agent");
        let mut command = match wrapper.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(agent_program);
                command
            }
            None => Command::new(agent_program),
        };
        let child = command
            .arg("run")
            .arg("--state")
            .arg(self.state(agent))
            .arg("--config")
            .arg(self.dir.join(format!("{agent}.toml")))
            .env("SCRINIUM_FAULT", fault)
            .stderr(log)
            .stdout(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let slot = self
            .agents
            .iter_mut()
            .find(|(name, _)| name == agent)
            .unwrap();
        slot.1 = Some(child);
    }

    /// The process of a running agent.
    #[must_use]
    pub fn agent_pid(&self, agent: &str) -> u32 {
        let slot = self.agents.iter().find(|(name, _)| name == agent);
        slot.unwrap().1.as_ref().unwrap().id()
    }

    pub fn kill_agent(&mut self, agent: &str) {
        let slot = self
            .agents
            .iter_mut()
            .find(|(name, _)| name == agent)
            .unwrap();
        kill(slot.1.as_mut());
        slot.1 = None;
    }

    /// Whether an agent has ended by itself.
    pub fn agent_has_ended(&mut self, agent: &str) -> bool {
        let slot = self.agents.iter_mut().find(|(name, _)| name == agent);
        let child = slot.unwrap().1.as_mut().unwrap();
        child.try_wait().unwrap().is_some()
    }

    /// Waits until an agent has ended by itself.
    pub fn wait_for_agent_end(&mut self, agent: &str, limit: Duration) {
        let slot = self
            .agents
            .iter_mut()
            .find(|(name, _)| name == agent)
            .unwrap();
        let mut child = slot.1.take().unwrap();
        wait_until("the agent ends", limit, || {
            child.try_wait().unwrap().is_some()
        });
    }

    /// A copy of a stopped or running agent's directory and configuration, as an agent of its own name.
    pub fn copy_agent(&mut self, from: &str, to: &str) {
        let copied = Command::new("cp")
            .arg("-a")
            .arg(self.state(from))
            .arg(self.state(to))
            .status();
        assert!(copied.unwrap().success());
        // A running agent's socket is not part of what a copy holds.
        let _absent = std::fs::remove_file(self.state(to).join("status.sock"));
        let config = std::fs::read(self.dir.join(format!("{from}.toml"))).unwrap();
        self.write(&format!("{to}.toml"), &config);
        self.agents.push((to.to_owned(), None));
    }

    /// What the server knows of an agent.
    #[must_use]
    pub fn agent(&self, name: &str) -> Value {
        let shown = self.server(&["agent", "show", name, "--json"]);
        assert!(shown.status.success(), "{}", text(&shown.stderr));
        serde_json::from_slice(&shown.stdout).unwrap()
    }

    /// Waits until the server says that an agent is connected.
    pub fn wait_connected(&self, name: &str) {
        wait_until("the agent is connected", Duration::from_secs(30), || {
            self.agent(name)["state"] == "connected"
        });
    }

    /// The alarms, newest first.
    #[must_use]
    pub fn alarms(&self) -> Vec<Value> {
        let listed = self.server(&["alarm", "list", "--json"]);
        assert!(listed.status.success(), "{}", text(&listed.stderr));
        serde_json::from_slice(&listed.stdout).unwrap()
    }

    /// Waits for an alarm of a kind about an agent; returns its text.
    #[must_use]
    pub fn wait_for_alarm(&self, kind: &str, agent: &str) -> String {
        let mut found = None;
        wait_until(kind, Duration::from_secs(40), || {
            let alarms = self.alarms();
            let alarm = alarms
                .iter()
                .find(|alarm| alarm["kind"] == kind && alarm["agent"] == agent);
            found = alarm.map(|alarm| alarm["text"].as_str().unwrap().to_owned());
            found.is_some()
        });
        found.unwrap()
    }

    pub fn stop_agent(&mut self, agent: &str) {
        let slot = self
            .agents
            .iter_mut()
            .find(|(name, _)| name == agent)
            .unwrap();
        if let Some(mut child) = slot.1.take() {
            terminate(&mut child);
        }
    }

    /// Processor seconds that server and agents have used since they were started last.
    #[must_use]
    pub fn cpu_seconds(&self) -> f64 {
        let agents = self.agents.iter().filter_map(|(_, child)| child.as_ref());
        agents
            .chain(&self.server)
            .map(|child| cpu_seconds(child.id()))
            .sum()
    }

    /// What `/metrics` says of a name.
    #[must_use]
    pub fn metric(&self, name: &str) -> u64 {
        let mut asker = TcpStream::connect(self.metrics).unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        asker.write_all(request).unwrap();
        let mut answer = String::new();
        asker.read_to_string(&mut answer).unwrap();
        let line = answer.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name}: {answer}"))
            .trim()
            .parse()
            .unwrap()
    }

    /// Makes an account with a password.
    pub fn add_user(&self, name: &str, password: &str) {
        self.write("user-password", password.as_bytes());
        let file = self.dir.join("user-password").display().to_string();
        let made = self.server(&["user", "password", name, "--password-file", &file]);
        assert!(made.status.success(), "{}", text(&made.stderr));
    }

    /// How many lines match.
    #[must_use]
    pub fn count(&self, query: &str) -> u64 {
        let found = self.server(&["search", query, "--count"]);
        assert!(found.status.success(), "{}", text(&found.stderr));
        text(&found.stdout).trim().parse().unwrap()
    }

    /// The entries found, as the API gives them.
    #[must_use]
    pub fn search(&self, query: &str) -> Vec<Value> {
        let found = self.server(&["search", query, "--format", "json"]);
        assert!(found.status.success(), "{}", text(&found.stderr));
        text(&found.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            // The last line says what was left out.
            .filter(|line: &Value| line.get("partial").is_none())
            .collect()
    }

    /// What the audit trail has of an action, in order; the entries as they are, parts apart.
    #[must_use]
    pub fn trail(&self, action: &str) -> Vec<Value> {
        let mut found: Vec<(u64, Value)> = self
            .search(&format!("agent:server stream:audit \"{action}\""))
            .into_iter()
            .map(|hit| {
                let line = serde_json::from_str(hit["text"].as_str().unwrap());
                (hit["sequence"].as_u64().unwrap(), line.expect("JSON"))
            })
            .filter(|(_, line): &(u64, Value)| line["action"] == action)
            .collect();
        found.sort_by_key(|(sequence, _)| *sequence);
        found.into_iter().map(|(_, line)| line).collect()
    }

    /// The exact bytes archived of a file.
    #[must_use]
    pub fn export(&self, agent: &str, path: &Path) -> Vec<u8> {
        let exported = self.try_export(agent, path);
        assert!(exported.status.success(), "{}", text(&exported.stderr));
        exported.stdout
    }

    /// The same, while something may be deleted: an export that meets that breaks off.
    #[must_use]
    pub fn try_export(&self, agent: &str, path: &Path) -> Output {
        let path = path.to_str().unwrap();
        self.server(&[
            "export", "--agent", agent, "--path", path, "--format", "raw", "--out", "-",
        ])
    }

    /// Runs `verify`; the exit code and what it says.
    #[must_use]
    pub fn verify(&self) -> (i32, String) {
        let output = self.server(&["verify"]);
        (
            output.status.code().unwrap_or(-1),
            text(&output.stdout) + &text(&output.stderr),
        )
    }

    /// What the agent says of itself.
    #[must_use]
    pub fn agent_status(&self, agent: &str) -> Option<Value> {
        let output = Command::new(program("scrinium-agent"))
            .args(["status", "--json", "--state"])
            .arg(self.state(agent))
            .output()
            .unwrap();
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Waits until exactly `expected` bytes of a file are archived.
    pub fn wait_for_bytes(&self, agent: &str, path: &Path, expected: usize, limit: Duration) {
        wait_until("everything is archived", limit, || {
            pause(Duration::from_millis(200));
            let path = path.to_str().unwrap();
            let exported = self.server(&[
                "export", "--agent", agent, "--path", path, "--format", "raw", "--out", "-",
            ]);
            exported.status.success() && exported.stdout.len() >= expected
        });
    }

    /// Whether any file below `dir` holds `needle`.
    #[must_use]
    pub fn holds(dir: &Path, needle: &[u8]) -> Option<PathBuf> {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                if let Some(found) = Self::holds(&path, needle) {
                    return Some(found);
                }
            } else if let Ok(bytes) = std::fs::read(&path)
                && bytes.windows(needle.len()).any(|window| window == needle)
            {
                return Some(path);
            }
        }
        None
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for (_, child) in &mut self.agents {
            kill(child.as_mut());
        }
        kill(self.server.as_mut());
        if !std::thread::panicking() {
            let _best_effort = std::fs::remove_dir_all(&self.dir);
        }
    }
}

fn kill(child: Option<&mut Child>) {
    if let Some(child) = child {
        let _gone = child.kill();
        let _reaped = child.wait();
    }
}

fn terminate(child: &mut Child) {
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    wait_until("the program stops", Duration::from_secs(30), || {
        child.try_wait().unwrap().is_some()
    });
}

/// A loopback address nobody listens on, below the ports that outgoing connections are given: else a
/// program that dials a stopped server could be given the server's own port.
#[must_use]
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 100).unwrap() * 100;
    loop {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

/// Processor seconds of one process, from `/proc`.
#[must_use]
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0 // USER_HZ of every Linux that matters
}

/// Resident memory of one process, in bytes, from `/proc`.
#[must_use]
pub fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() << 10
}

/// The most memory that a process had resident since [`forget_peak`], in bytes.
#[must_use]
pub fn peak_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() << 10
}

/// Begins a new peak of a process's resident memory, from what it has now.
pub fn forget_peak(pid: u32) {
    let mut file = File::options()
        .write(true)
        .open(format!("/proc/{pid}/clear_refs"))
        .unwrap();
    std::io::Write::write_all(&mut file, b"5").unwrap();
}

/// Bytes of a program as text.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
