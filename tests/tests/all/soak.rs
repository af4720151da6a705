//! Everything at once: a link that is cut, small buffers that fill, kills of both sides, rotations.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use scrinium_tests::corpus::Corpus;
use scrinium_tests::lab::{Lab, resident_bytes};
use scrinium_tests::proxy::Proxy;
use scrinium_tests::random::Random;
use scrinium_tests::{now, pause, wait_until};

#[test]
fn whatever_happens_together_every_line_arrives_once_and_in_order() {
    let mut random = Random::from_env_or(7);
    let mut lab = Lab::start("soak");
    let proxy = Proxy::start(lab.sl);
    // RAM for two batches, and a disk that fills within the soak: sources wait, files hold the rest.
    let spool = "[spool]\nram_bytes_max = \"512 KiB\"\ndisk_bytes_max = \"2 MiB\"\n";
    lab.add_agent("web1", proxy.address(), spool);
    lab.start_agent("web1");
    let names = ["a.log", "b.log", "c.log"];
    let mut corpora = [Corpus::new(), Corpus::new(), Corpus::new()];
    let mut written = [Vec::new(), Vec::new(), Vec::new()];
    let mut files = names.map(|name| append(&lab.log(name)));
    let (mut cut, mut rotations) = (false, [0_u32; 3]);
    let end = now() + duration();
    while now() < end {
        for i in 0..names.len() {
            let mut lines = Vec::new();
            corpora[i].lines(random.below(3000), &mut lines);
            scramble(&mut lines, &mut random);
            // Pieces end anywhere: in the middle of lines too.
            let split = usize::try_from(random.below(lines.len() as u64 + 1)).unwrap();
            for piece in [&lines[..split], &lines[split..]] {
                files[i].write_all(piece).unwrap();
            }
            written[i].extend_from_slice(&lines);
        }
        match random.below(12) {
            0 | 1 if !cut => {
                proxy.cut();
                cut = true;
            }
            0..=2 => {
                proxy.mend();
                cut = false;
            }
            3 => {
                lab.kill_agent("web1");
                lab.start_agent("web1");
            }
            4 => {
                lab.stop_agent("web1");
                lab.start_agent("web1");
            }
            5 => {
                lab.kill_server();
                lab.start_server();
            }
            6 => {
                // Renamed to a name of its own, so that any number of generations waits to be read.
                let i = usize::try_from(random.below(3)).unwrap();
                rotations[i] += 1;
                let path = lab.log(names[i]);
                #[expect(clippy::disallowed_methods, reason = "what logrotate does")]
                std::fs::rename(
                    &path,
                    path.with_extension(format!("log.{:04}", rotations[i])),
                )
                .unwrap();
                pause(Duration::from_millis(20));
                files[i] = append(&path);
            }
            _ => pause(Duration::from_millis(random.below(300))),
        }
    }
    proxy.mend();
    for (name, written) in names.iter().zip(&written) {
        let path = lab.log(name);
        lab.wait_for_bytes("web1", &path, written.len(), Duration::from_secs(120));
        let archived = lab.export("web1", &path);
        let differ = archived.iter().zip(written).position(|(a, b)| a != b);
        assert!(
            differ.is_none() && archived.len() == written.len(),
            "{name}: archived {}, written {}, first difference at {differ:?}, rotations {rotations:?}",
            archived.len(),
            written.len()
        );
    }
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
    assert!(report.contains("; 0 gap entries"), "{report}");
}

/// F7: one process through outages, full buffers and rotations: neither its memory nor its descriptors grow.
#[test]
fn f7_memory_and_descriptors_do_not_grow_while_it_works() {
    let mut lab = Lab::start("slope");
    let proxy = Proxy::start(lab.sl);
    let spool = "[spool]\nram_bytes_max = \"1 MiB\"\ndisk_bytes_max = \"8 MiB\"\n";
    lab.add_agent("web1", proxy.address(), spool);
    lab.start_agent("web1");
    lab.wait_connected("web1");
    let path = lab.log("app.log");
    let mut file = append(&path);
    let mut corpus = Corpus::new();
    let (mut written, mut shipped, mut seen) = (0, 0, Vec::new());
    let pid = lab.agent_pid("web1");
    // Each round: an outage that fills the cache, a rotation in it, and the way back.
    let end = now() + duration();
    for round in 0.. {
        if now() > end && seen.len() >= 12 {
            break;
        }
        proxy.cut();
        for half in 0..2 {
            let mut lines = Vec::new();
            corpus.lines(20_000, &mut lines);
            file.write_all(&lines).unwrap();
            written += lines.len();
            if half == 0 {
                #[expect(clippy::disallowed_methods, reason = "what logrotate does")]
                std::fs::rename(&path, path.with_extension(format!("log.{round:06}"))).unwrap();
                file = append(&path);
            }
        }
        proxy.mend();
        lab.wait_connected("web1");
        shipped += 40_000;
        wait_until("the round is shipped", Duration::from_secs(60), || {
            lab.agent_status("web1").unwrap()["acked_entries"].as_u64() >= Some(shipped)
        });
        let old = path.with_extension(format!("log.{round:06}"));
        std::fs::remove_file(old).unwrap();
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count();
        seen.push((resident_bytes(pid), descriptors));
    }
    assert_eq!(lab.agent_pid("web1"), pid);
    let third = seen.len() / 3;
    let most = |part: &[(u64, usize)]| {
        let memory = part.iter().map(|(memory, _)| *memory).max().unwrap();
        (
            memory,
            part.iter()
                .map(|(_, descriptors)| *descriptors)
                .max()
                .unwrap(),
        )
    };
    let (middle, last) = (most(&seen[third..2 * third]), most(&seen[2 * third..]));
    assert!(
        last.0 <= middle.0 + middle.0 / 10 && last.1 <= middle.1 + 3,
        "{seen:?}"
    );
    lab.wait_for_bytes("web1", &path, written, Duration::from_secs(60));
    assert_eq!(lab.export("web1", &path).len(), written);
    assert!(lab.verify().1.contains("; 0 gap entries"));
}

/// Makes lines that compress badly, so that the small spool really fills.
fn scramble(lines: &mut [u8], random: &mut Random) {
    for line in lines.split_mut(|&byte| byte == b'\n') {
        let len = line.len().saturating_sub(20);
        for byte in line.iter_mut().take(len) {
            if byte.is_ascii_lowercase() {
                *byte = b'a' + u8::try_from(random.below(26)).unwrap();
            }
        }
    }
}

fn append(path: &Path) -> std::fs::File {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .unwrap()
}

/// SCRINIUM_TEST_SOAK_S seconds, 20 in the normal run.
fn duration() -> Duration {
    let seconds = std::env::var("SCRINIUM_TEST_SOAK_S")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}
