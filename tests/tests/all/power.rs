//! The power fails: what the page cache held is gone, and only what was made durable is there at the next
//! start. The agent's disk is a file system of its own, shut down without flushing its journal.

#![expect(clippy::disallowed_methods, reason = "what other programs do to files")]

use std::fs::remove_file;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use scrinium_tests::disk::Disk;
use scrinium_tests::lab::{Lab, text};
use scrinium_tests::proxy::Proxy;
use scrinium_tests::random::Random;
use scrinium_tests::writer::{append, line};
use scrinium_tests::{has_tool, pause, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

/// The spool always opens, and everything is conserved: files that are still there, and, from the spool
/// alone, those that were deleted after it had spilled them.
#[test]
fn fifty_power_cuts_during_spill_and_drain_lose_and_repeat_nothing() {
    let Some(mut rig) = Rig::start("power", None) else {
        return;
    };
    for round in 0..50 {
        let (gone, kept) = rig.cut_power(round);
        rig.settle(&gone);
        rig.settle(&kept);
    }
    let (code, report) = rig.lab.verify();
    assert!(code == 0 && report.contains("; 0 gap entries"), "{report}");
    rig.lab.stop_agent("web1");
}

/// The same without `fsync` loses the deleted files: the test can fail.
#[test]
fn power_cuts_without_fsync_do_lose_lines() {
    if !has_tool("cc") {
        return;
    }
    let dir = std::env::temp_dir().join(format!("scrinium-nosync-{}", std::process::id()));
    let (source, library) = (dir.with_extension("c"), dir.with_extension("so"));
    std::fs::write(
        &source,
        "int fsync(int f) { return 0; }\nint fdatasync(int f) { return 0; }\n",
    )
    .unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status();
    assert!(built.unwrap().success());
    let Some(mut rig) = Rig::start("power-control", Some(&library)) else {
        return;
    };
    let (gone, kept) = rig.cut_power(0);
    rig.settle(&kept);
    let archived = rig.lab.server(&[
        "export",
        "--agent",
        "web1",
        "--path",
        gone.path.to_str().unwrap(),
        "--format",
        "raw",
        "--out",
        "-",
    ]);
    let lost = gone.bytes.len().saturating_sub(archived.stdout.len());
    assert!(lost > 100_000, "only {lost} bytes were lost");
    rig.lab.kill_agent("web1");
    for path in [source, library] {
        remove_file(path).unwrap();
    }
}

struct Rig {
    /// Where the agent's state lies. Gone before the laboratory.
    disk: Disk,
    lab: Lab,
    proxy: Proxy,
    /// Loaded into the agent before everything else.
    preload: Option<PathBuf>,
    random: Random,
    next: u64,
}

struct Written {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Rig {
    fn start(name: &str, preload: Option<&Path>) -> Option<Self> {
        let mut lab = Lab::start(name);
        let proxy = Proxy::start(lab.sl);
        let limits = "[spool]\nram_bytes_max = \"512 KiB\"\ndisk_bytes_max = \"64 MiB\"\n";
        lab.add_agent("web1", proxy.address(), limits);
        let disk = Disk::in_place_of(&lab.state("web1"), &lab.dir.join("disk.img"), 128)?;
        let mut rig = Self {
            disk,
            lab,
            proxy,
            preload: preload.map(Path::to_owned),
            random: Random::from_env_or(50),
            next: 0,
        };
        rig.start_agent();
        Some(rig)
    }

    fn start_agent(&mut self) {
        match &self.preload {
            Some(library) => {
                let preload = format!("LD_PRELOAD={}", library.display());
                self.lab.spawn_agent("web1", "", &["env", &preload]);
            }
            None => self.lab.start_agent("web1"),
        }
        if self.preload.is_some() {
            self.approve_if_asked();
        }
        self.lab.wait_connected("web1");
    }

    /// An agent whose credential was not durable looks like a copy of itself.
    fn approve_if_asked(&self) {
        let mut asks = false;
        wait_until("the agent connects or waits for a person", PATIENCE, || {
            let agent = self.lab.agent("web1");
            asks = !agent["quarantine"].is_null();
            asks || agent["state"] == "connected"
        });
        if asks {
            let approved = self.lab.server(&["agent", "approve", "web1"]);
            assert!(approved.status.success(), "{}", text(&approved.stderr));
        }
    }

    /// Writes a file of `count` lines that do not compress well.
    fn write(&mut self, name: &str, count: u64) -> Written {
        use std::io::Write as _;
        let mut bytes = Vec::new();
        for _ in 0..count {
            let noise: Vec<u8> = (0..80)
                .map(|_| b'0' + u8::try_from(self.random.below(64)).unwrap())
                .collect();
            bytes.extend_from_slice(text(&noise).as_bytes());
            bytes.extend_from_slice(line(self.next).as_bytes());
            self.next += 1;
        }
        let path = self.lab.log(name);
        append(&path).write_all(&bytes).unwrap();
        Written { path, bytes }
    }

    fn wait_for_backlog(&self, entries: u64) {
        wait_until("the agent holds them", PATIENCE, || {
            let status = self.lab.agent_status("web1");
            status.is_some_and(|status| status["backlog_entries"].as_u64().unwrap() >= entries)
        });
    }

    /// An outage, in which one file is spilled and deleted and another is being spilled; then the power
    /// fails, with the link down or while the spool drains; then the machine starts.
    fn cut_power(&mut self, round: u64) -> (Written, Written) {
        self.proxy.cut();
        let gone = self.write(&format!("gone-{round}.log"), 6_000);
        self.wait_for_backlog(6_000);
        let kept = self.write(&format!("kept-{round}.log"), 8_000);
        // More than RAM holds: all of the first file is on the disk.
        self.wait_for_backlog(14_000);
        remove_file(&gone.path).unwrap();
        if !round.is_multiple_of(3) {
            self.proxy.mend();
        }
        pause(Duration::from_millis(self.random.below(700)));
        self.disk.shut_down();
        self.lab.kill_agent("web1");
        self.disk.start_again();
        self.proxy.mend();
        self.start_agent();
        (gone, kept)
    }

    fn settle(&self, written: &Written) {
        self.lab
            .wait_for_bytes("web1", &written.path, written.bytes.len(), PATIENCE);
        let archived = self.lab.export("web1", &written.path);
        assert!(
            archived == written.bytes,
            "{} differs",
            written.path.display()
        );
    }
}
