//! The server's disk is full: nothing is acked, nothing is lost, and it goes on by itself.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use scrinium_tests::lab::Lab;
use scrinium_tests::{has_tool, pause, skipped, wait_until};

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
    let mut noise = Noise(1);
    let mut all = Vec::new();
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .unwrap();
    let mut write = |bytes: usize| {
        let chunk = noise.lines(bytes);
        file.write_all(&chunk).unwrap();
        all.extend_from_slice(&chunk);
        all.len()
    };
    let len = write(100_000);
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &path, len, Duration::from_secs(30));

    // Fill what is left, then send more than could ever fit.
    let filler = lab.data().join("filler");
    fill(&filler);
    let len = write(3_000_000);
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
    pause(Duration::from_secs(3)); // it stays full for a while: several attempts fail

    std::fs::remove_file(&filler).unwrap();
    lab.wait_for_bytes("web1", &path, len, Duration::from_secs(90));
    assert!(
        lab.export("web1", &path) == all,
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
        lab.export("web1", &path) == all,
        "archived and written differ after a start"
    );
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
    assert_eq!(lab.count("\"sent while the disk was full\""), 1);
    lab.stop_server();
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

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _best_effort = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Lines that do not compress.
struct Noise(u64);

impl Noise {
    fn lines(&mut self, bytes: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes + 100);
        while out.len() < bytes {
            for _ in 0..90 {
                self.0 = self
                    .0
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let letter = u8::try_from(self.0 >> 58).unwrap();
                out.push(b'!' + letter);
            }
            out.push(b'\n');
        }
        out
    }
}
