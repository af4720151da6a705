//! Bytes on the disk for each byte of log, beside zstd over the raw file, and the server's processor time from
//! ingest to sealed. Filters, indexes, evidence and catalogue are counted.
//!
//! ```text
//! SCRINIUM_BENCH_CORPUS=FILE cargo bench -p scrinium-tests --bench archive
//! ```
//!
//! Without a file, 200 MB of the tests' own lines. Everything in one run on one machine: the ratios count.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench prints, and stops at what fails"
)]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use scrinium_tests::corpus::Corpus;
use scrinium_tests::lab::{Lab, text};
use scrinium_tests::wait_until;

fn main() {
    let mut lab = Lab::start("bench-archive");
    // As a server is configured that nobody configured.
    let config = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    lab.write(
        "server.toml",
        config.replace("log_mib_max = 1\n", "").as_bytes(),
    );
    lab.stop_server();
    lab.start_server();
    lab.add_agent("web1", lab.sl, "");
    let log = lab.log("corpus.log");
    make_corpus(&log);
    let raw = std::fs::metadata(&log).unwrap().len();
    lab.start_agent("web1");
    let before = lab.cpu_seconds();
    let raw_len = usize::try_from(raw).unwrap();
    lab.wait_for_bytes("web1", &log, raw_len, Duration::from_secs(3600));
    lab.stop_agent("web1");
    // Finishes the log that is written; the archive begins to seal it at once.
    let target = lab.dir.join("target");
    let made = lab
        .server_command(&["backup", "create"])
        .arg("--to")
        .arg(&target)
        .arg("--keys")
        .arg(lab.dir.join("keys"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    let cpu = lab.cpu_seconds() - before;
    let sealed = bytes_of(&lab);
    let compacted_in = lab.cpu_seconds();
    let compacted = lab.server(&["compact"]);
    assert!(compacted.status.success(), "{}", text(&compacted.stderr));
    let compacting = lab.cpu_seconds() - compacted_in;
    wait_until(
        "the old segments are gone",
        Duration::from_secs(120),
        || {
            std::fs::read_dir(lab.data().join("archive"))
                .unwrap()
                .count()
                <= 4
        },
    );
    let compacted = bytes_of(&lab);
    let (z3, z9) = (zstd(&log, 3), zstd(&log, 9));
    let part = |bytes: u64| f(bytes) / f(raw);
    let per_gb = |seconds: f64| seconds / (f(raw) / 1e9);
    println!("{raw} bytes of log, one file of mixed lines");
    println!(
        "sealed:    {:.4} bytes per byte, {:.3} x zstd -3 ({:.4}); {:.1} CPU-s per GB of the server, ingest to sealed, and one backup",
        part(sealed),
        f(sealed) / f(z3),
        part(z3),
        per_gb(cpu)
    );
    println!(
        "compacted: {:.4} bytes per byte, {:.3} x zstd -9 ({:.4}); {:.1} CPU-s per GB more",
        part(compacted),
        f(compacted) / f(z9),
        part(z9),
        per_gb(compacting)
    );
    assert_eq!(lab.verify().0, 0);
}

fn make_corpus(to: &Path) {
    if let Ok(corpus) = std::env::var("SCRINIUM_BENCH_CORPUS") {
        std::fs::copy(corpus, to).unwrap();
        return;
    }
    let mut file = File::create(to).unwrap();
    let mut corpus = Corpus::new();
    let mut written = 0;
    while written < 200_000_000 {
        let mut lines = Vec::new();
        corpus.lines(100_000, &mut lines);
        file.write_all(&lines).unwrap();
        written += lines.len();
    }
}

/// What a volume is for one byte of log: everything but unsealed logs and copies.
fn bytes_of(lab: &Lab) -> u64 {
    let data = lab.data();
    let mut total = 0;
    for dir in ["archive", "evidence"] {
        let files = std::fs::read_dir(data.join(dir)).unwrap().flatten();
        total += files
            .map(|file| file.metadata().unwrap().len())
            .sum::<u64>();
    }
    for file in ["catalogue.db", "catalogue.db-wal"] {
        total += std::fs::metadata(data.join(file)).map_or(0, |metadata| metadata.len());
    }
    total
}

fn zstd(path: &PathBuf, level: i32) -> u64 {
    let mut encoder = zstd::stream::read::Encoder::new(File::open(path).unwrap(), level).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match encoder.read(&mut buffer).unwrap() {
            0 => return total,
            read => total += read as u64,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn f(bytes: u64) -> f64 {
    bytes as f64
}
