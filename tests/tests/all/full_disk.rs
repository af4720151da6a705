//! The server's disk is full: nothing is acked, nothing is lost, and it goes on by itself.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use scrinium_tests::lab::{Lab, text};
use scrinium_tests::{has_tool, skipped, wait_until};

use crate::health::ready;

#[test]
fn a_full_disk_stops_acks_and_not_the_server_and_nothing_is_lost_or_doubled() {
    if !has_tool("mount") {
        return;
    }
    let mut lab = Lab::start("full-disk");
    lab.add_agent("web1", lab.sl, "");
    lab.stop_server();
    let Some(_small) = SmallDisk::under(&lab.data()) else {
        skipped("a small disk needs the right to mount one");
        return;
    };
    lab.start_server();
    let path = lab.log("app.log");
    let mut app = Noise::into(&path, 1);
    let len = app.write(100_000);
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &path, len, Duration::from_secs(30));

    // Fill what is left, then send more than could ever fit.
    let filler = lab.data().join("filler");
    fill(&filler);
    let len = app.write(3_000_000);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .send_to(b"<13>sent while the disk was full", lab.syslog_udp)
        .unwrap();
    let said = |text: &str| {
        std::fs::read_to_string(lab.dir.join("server.out"))
            .unwrap()
            .contains(text)
    };
    wait_until(
        "the server meets the full disk",
        Duration::from_secs(30),
        || said("No space left"),
    );
    // It says so, to whoever asks without signing in, and to whoever administers it.
    wait_until("it is not ready", Duration::from_secs(30), || {
        let (status, said) = ready(&lab);
        status == 503 && said.contains("entries cannot be archived")
    });
    let alarm = lab.wait_for_alarm("cannot-archive", "server");
    // Whoever of log and catalogue meets it first.
    let says = ["No space left", "disk is full"];
    assert!(says.iter().any(|text| alarm.contains(text)), "{alarm}");
    let _full = lab.wait_for_alarm("disk-full", "server");
    let status = text(&lab.server(&["status", "--json"]).stdout);
    assert!(
        status.contains("\"failing\"") && status.contains("the disk takes no more"),
        "{status}"
    );

    std::fs::remove_file(&filler).unwrap();
    lab.wait_for_bytes("web1", &path, len, Duration::from_secs(90));
    wait_until("it is ready again", Duration::from_secs(30), || {
        ready(&lab).0 == 200
    });
    // What could not be written down then is in the trail now.
    wait_until(
        "the alarms are in the trail",
        Duration::from_secs(30),
        || {
            let told: Vec<String> = lab.trail("alarm").iter().map(ToString::to_string).collect();
            ["cannot-archive", "disk-full"]
                .iter()
                .all(|kind| told.iter().any(|line| line.contains(kind)))
        },
    );
    assert!(
        lab.export("web1", &path) == app.all,
        "archived and written differ"
    );
    wait_until("the datagram is archived", Duration::from_secs(30), || {
        lab.count("\"sent while the disk was full\"") == 1
    });
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");

    // What the failed writes left on the disk is not taken for entries at the next start.
    lab.kill_server();
    lab.start_server();
    assert!(
        lab.export("web1", &path) == app.all,
        "archived and written differ after a start"
    );
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
    assert_eq!(lab.count("\"sent while the disk was full\""), 1);
    lab.stop_server();
}

/// E4: the agent's disk is full, then read-only: its sources wait, what can be sent goes on, the server
/// hears of it, and when the disk takes data again so does the agent.
#[test]
fn e4_an_agent_whose_disk_refuses_says_so_ships_what_it_can_and_loses_nothing() {
    if !has_tool("mount") {
        return;
    }
    let mut lab = Lab::start("e4");
    let limits = "[spool]\nram_bytes_max = \"512 KiB\"\ndisk_bytes_max = \"8 MiB\"\n";
    lab.add_agent("web1", lab.sl, limits);
    let Some(small) = SmallDisk::under(&lab.state("web1")) else {
        skipped("a small disk needs the right to mount one");
        return;
    };
    let path = lab.log("app.log");
    let mut app = Noise::into(&path, 7);
    let settle = |lab: &Lab, len: usize| {
        lab.wait_for_bytes("web1", &path, len, Duration::from_secs(60));
    };
    let trouble = |lab: &Lab| {
        lab.agent("web1")["trouble"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let len = app.write(100_000);
    lab.start_agent("web1");
    settle(&lab, len);

    // Full, in an outage.
    let filler = lab.state("web1").join("filler");
    fill(&filler);
    lab.stop_server();
    let len = app.write(3_000_000);
    let out = lab.dir.join("web1.out");
    let said = |text: &str| std::fs::read_to_string(&out).unwrap().contains(text);
    wait_until(
        "the agent meets the full disk",
        Duration::from_secs(30),
        || said("No space left"),
    );
    lab.start_server();
    settle(&lab, len);
    let alarm = lab.wait_for_alarm("agent-trouble", "web1");
    assert!(alarm.contains("No space left"), "{alarm}");
    assert!(trouble(&lab).contains("No space left"));

    // Read-only: not even the credential of the next session can be written down,
    std::fs::remove_file(&filler).unwrap();
    wait_until("the trouble is over", Duration::from_secs(30), || {
        trouble(&lab).is_empty()
    });
    // nor what is acked be removed.
    lab.stop_server();
    app.write(2_000_000);
    wait_until("a backlog is on the disk", Duration::from_secs(30), || {
        let status = lab.agent_status("web1");
        status.is_some_and(|status| status["disk_bytes"].as_u64().unwrap() > 1 << 20)
    });
    small.cover();
    lab.start_server();
    lab.wait_connected("web1");
    let len = app.write(1_000_000);
    settle(&lab, len);
    wait_until("the trouble is known", Duration::from_secs(30), || {
        trouble(&lab).contains("Read-only")
    });
    lab.stop_server();
    let len = app.write(2_000_000);
    lab.start_server();
    settle(&lab, len);

    // Writable again: killed and started, it is known, and goes on.
    small.uncover();
    wait_until("the trouble is over", Duration::from_secs(30), || {
        trouble(&lab).is_empty()
    });
    lab.kill_agent("web1");
    let len = app.write(100_000);
    lab.start_agent("web1");
    settle(&lab, len);
    lab.stop_server();
    let len = app.write(3_000_000);
    wait_until("the disk is in use", Duration::from_secs(30), || {
        let status = lab.agent_status("web1");
        status.is_some_and(|status| status["disk_bytes"].as_u64().unwrap() > 1 << 20)
    });
    lab.start_server();
    settle(&lab, len);
    assert!(
        lab.export("web1", &path) == app.all,
        "archived and written differ"
    );
    let (code, report) = lab.verify();
    assert!(code == 0 && report.contains("; 0 gap entries"), "{report}");
    lab.stop_agent("web1");
}

/// Writes until the disk takes nothing any more.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for size in [1 << 20, 1 << 12, 1] {
        let block = vec![0; size];
        while file.write_all(&block).is_ok() {}
    }
}

/// A file system of 16 MiB in the place of a directory, with its content.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn under(dir: &Path) -> Option<Self> {
        let before = dir.with_extension("before");
        #[expect(clippy::disallowed_methods, reason = "a test moves a directory")]
        std::fs::rename(dir, &before).unwrap();
        std::fs::create_dir(dir).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs"])
            .arg(dir)
            .output()
            .unwrap();
        if !mounted.status.success() {
            return None;
        }
        let copied = Command::new("cp")
            .arg("-a")
            .arg(before.join("."))
            .arg(dir)
            .status()
            .unwrap();
        assert!(copied.success());
        Some(Self(dir.to_owned()))
    }
}

impl SmallDisk {
    /// From now on nothing can be opened to be written: a read-only view of the directory lies on it.
    fn cover(&self) {
        self.mount(&["--bind"]);
        self.mount(&["-o", "remount,bind,ro"]);
    }

    fn uncover(&self) {
        let done = Command::new("umount").arg(&self.0).status();
        assert!(done.unwrap().success());
    }

    fn mount(&self, how: &[&str]) {
        let twice = [&self.0, &self.0];
        let places = &twice[usize::from(how.len() > 1)..];
        let done = Command::new("mount").args(how).args(places).status();
        assert!(done.unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // With what may lie on it.
        while Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
        {}
    }
}

/// Writes lines that do not compress.
struct Noise {
    state: u64,
    file: File,
    /// Everything written.
    all: Vec<u8>,
}

impl Noise {
    fn into(path: &Path, seed: u64) -> Self {
        Self {
            state: seed,
            file: scrinium_tests::writer::append(path),
            all: Vec::new(),
        }
    }

    /// Writes at least so many bytes more; how many that are in all.
    fn write(&mut self, bytes: usize) -> usize {
        let mut out = Vec::with_capacity(bytes + 100);
        while out.len() < bytes {
            for _ in 0..90 {
                self.state = self
                    .state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let letter = u8::try_from(self.state >> 58).unwrap();
                out.push(b'!' + letter);
            }
            out.push(b'\n');
        }
        self.file.write_all(&out).unwrap();
        self.all.extend_from_slice(&out);
        self.all.len()
    }
}
