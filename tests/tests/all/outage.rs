//! The link is cut: RAM, then sealed segments on the disk, then everything arrives.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Duration;

use scrinium_tests::corpus::Corpus;
use scrinium_tests::lab::Lab;
use scrinium_tests::proxy::Proxy;
use scrinium_tests::{now, pause, wait_until};

#[test]
fn e10_an_outage_fills_sealed_segments_that_drain_afterwards_and_nothing_is_readable_anywhere() {
    let mut lab = Lab::start("outage");
    let proxy = Proxy::start(lab.sl);
    lab.add_agent(
        "laptop-of-mrossi",
        proxy.address(),
        "[spool]\nram_bytes_max = \"1 MiB\"\n",
    );
    let path = lab.log("app.log");
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .unwrap();
    let mut corpus = Corpus::new();
    let mut all = Vec::new();
    let mut write = |count| {
        let mut chunk = Vec::new();
        corpus.lines(count, &mut chunk);
        for line in chunk.split_inclusive_mut(|&byte| byte == b'\n') {
            line[..MARKER.len()].copy_from_slice(MARKER);
        }
        file.write_all(&chunk).unwrap();
        all.extend_from_slice(&chunk);
        all.len()
    };
    let len = write(1000);
    lab.start_agent("laptop-of-mrossi");
    lab.wait_for_bytes("laptop-of-mrossi", &path, len, Duration::from_secs(30));

    proxy.cut();
    let cut_at = now();
    let spool = lab.state("laptop-of-mrossi").join("spool");
    let mut segments_max = 0;
    let mut len = 0;
    while now().duration_since(cut_at) < outage() || segments_max < 2 {
        len = write(2000);
        pause(Duration::from_millis(50));
        segments_max = segments_max.max(std::fs::read_dir(&spool).unwrap().count());
        assert!(
            now().duration_since(cut_at) < Duration::from_secs(240),
            "the disk cache does not fill"
        );
    }
    nothing_readable(&lab, &proxy);
    // A kill during the outage loses nothing that was spilled, and files hold the rest.
    lab.kill_agent("laptop-of-mrossi");
    lab.start_agent("laptop-of-mrossi");
    proxy.mend();
    lab.wait_for_bytes("laptop-of-mrossi", &path, len, Duration::from_secs(120));
    assert!(
        lab.export("laptop-of-mrossi", &path) == all,
        "archived and written differ"
    );
    wait_until("the disk cache drains", Duration::from_secs(30), || {
        lab.agent_status("laptop-of-mrossi")
            .is_some_and(|status| status["disk_bytes"] == 0)
    });
    assert_eq!(std::fs::read_dir(&spool).unwrap().count(), 0);
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
    assert!(report.contains("; 0 gap entries"), "{report}");
    nothing_readable(&lab, &proxy);
}

fn nothing_readable(lab: &Lab, proxy: &Proxy) {
    assert!(proxy.passed() > 2_000);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    // A host name of a few letters is found in any random bytes.
    let host = Some(host.trim()).filter(|host| host.len() >= 6);
    let secrets = [
        Some("zqMARKERqz"),
        Some("mrossi"),
        Some("app.log"),
        Some("correct horse"),
        host,
    ];
    for secret in secrets.into_iter().flatten() {
        for dir in [lab.data(), lab.state("laptop-of-mrossi")] {
            assert_eq!(
                Lab::holds(&dir, secret.as_bytes()),
                None,
                "{secret} in {}",
                dir.display()
            );
        }
        assert!(!proxy.saw(secret.as_bytes()), "{secret} on the wire");
    }
    // Nor is it when one of them crashes.
    for pid in [lab.server_pid(), lab.agent_pid("laptop-of-mrossi")] {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"));
        let core: Vec<&str> = core.unwrap().split_whitespace().collect();
        assert_eq!(core[4..6], ["0", "0"]);
    }
    assert_eq!(Lab::holds(&lab.data(), b"admin"), None);
}

/// How long the link is cut: SCRINIUM_TEST_OUTAGE_S seconds, 15 in the normal run.
fn outage() -> Duration {
    let seconds = std::env::var("SCRINIUM_TEST_OUTAGE_S")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(15))
}

const MARKER: &[u8] = b"zqMARKERqz";
