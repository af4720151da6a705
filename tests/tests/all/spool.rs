//! The disk cache under attack, out of room, and larger than expected (scenarios E; L1 and the narrow
//! link of Show 7 beside them).

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use scrinium_tests::lab::{Lab, cpu_seconds, resident_bytes, text};
use scrinium_tests::network::in_own_network;
use scrinium_tests::proxy::Proxy;
use scrinium_tests::random::Random;
use scrinium_tests::writer::{append, line};
use scrinium_tests::{now, pause, wait_until};

/// E2 and E3: a byte flipped, the end cut or zeroed, a segment deleted, two swapped, yesterday's copy in
/// its place: it is noticed, the rest is shipped, and what the files still hold is read again.
#[test]
fn e2_whatever_is_done_to_the_spool_is_noticed_and_nothing_in_the_files_is_lost() {
    let mut random = Random::new(2);
    let attacks: [(&str, Attack); 7] = [
        ("flip", |segments, random| flip(segments, random)),
        ("flip again", |segments, random| flip(segments, random)),
        ("cut", |segments, random| {
            let len = segments[1].metadata().unwrap().len();
            append(&segments[1]).set_len(random.below(len)).unwrap();
        }),
        ("zeroed page", |segments, _| {
            let last = segments.last().unwrap();
            let mut bytes = std::fs::read(last).unwrap();
            let from = bytes.len().saturating_sub(4096);
            bytes[from..].fill(0);
            File::create(last).unwrap().write_all(&bytes).unwrap();
        }),
        ("deleted", |segments, _| {
            std::fs::remove_file(&segments[1]).unwrap()
        }),
        ("swapped", |segments, _| {
            let (one, two) = (
                std::fs::read(&segments[0]).unwrap(),
                std::fs::read(&segments[1]).unwrap(),
            );
            File::create(&segments[0]).unwrap().write_all(&two).unwrap();
            File::create(&segments[1]).unwrap().write_all(&one).unwrap();
        }),
        ("all deleted", |segments, _| {
            for segment in segments {
                std::fs::remove_file(segment).unwrap();
            }
        }),
    ];
    let mut lab = Lab::start("e2");
    lab.add_agent("web1", lab.sl, LIMITS);
    let log = lab.log("app.log");
    let mut written = Vec::new();
    for (n, (name, attack)) in attacks.into_iter().enumerate() {
        lab.stop_server();
        lab.start_agent("web1");
        for _ in 0..3 {
            // A segment for each stop.
            let lines = noise(n as u64, 400, &mut random);
            append(&log).write_all(&lines).unwrap();
            written.extend_from_slice(&lines);
            wait_until("it waits", Duration::from_secs(20), || {
                lab.agent_status("web1")
                    .is_some_and(|status| status["backlog_bytes"].as_u64() > Some(20_000))
            });
            pause(Duration::from_millis(300));
            lab.stop_agent("web1");
            lab.start_agent("web1");
        }
        lab.stop_agent("web1");
        let segments = segments(&lab);
        assert!(segments.len() >= 3, "{name}: {segments:?}");
        attack(&segments, &mut random);
        lab.start_server();
        lab.start_agent("web1");
        lab.wait_for_bytes("web1", &log, written.len(), Duration::from_secs(60));
        assert!(lab.export("web1", &log) == written, "after: {name}");
        lab.stop_agent("web1");
    }
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
    assert_eq!(lab.count("\"gap:\""), 0);
    // What the agent itself had said is nowhere else.
    assert!(lab.count("stream:scrinium-agent \"gap:\"") > 0);
    let said = std::fs::read_to_string(lab.dir.join("web1.out")).unwrap();
    let damaged = said.matches("a segment of the spool is damaged").count();
    let torn = said
        .matches("the end of a segment of the spool is cut or damaged")
        .count();
    assert!(damaged + torn >= 4, "{said}");
    assert!(said.contains("does not follow the one before it"), "{said}");
}

/// E3, rollback: yesterday's copy of the whole spool is put back; the server knows better.
#[test]
fn e3_yesterdays_spool_put_back_is_not_sent_twice() {
    let mut lab = Lab::start("e3");
    lab.add_agent("web1", lab.sl, LIMITS);
    let log = lab.log("app.log");
    lab.stop_server();
    lab.start_agent("web1");
    let mut written = noise(0, 600, &mut Random::new(3));
    append(&log).write_all(&written).unwrap();
    wait_until("it waits", Duration::from_secs(20), || {
        lab.agent_status("web1")
            .is_some_and(|status| status["backlog_bytes"].as_u64() > Some(20_000))
    });
    pause(Duration::from_millis(300));
    lab.stop_agent("web1");
    let (spool, copy) = (lab.state("web1").join("spool"), lab.dir.join("copy"));
    let copied = Command::new("cp").arg("-a").arg(&spool).arg(&copy).status();
    assert!(copied.unwrap().success());
    lab.start_server();
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, written.len(), Duration::from_secs(30));
    lab.stop_agent("web1");
    std::fs::remove_dir_all(&spool).unwrap();
    let copied = Command::new("cp").arg("-a").arg(&copy).arg(&spool).status();
    assert!(copied.unwrap().success());
    let more = noise(1, 10, &mut Random::new(4));
    append(&log).write_all(&more).unwrap();
    written.extend_from_slice(&more);
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, written.len(), Duration::from_secs(30));
    assert!(lab.export("web1", &log) == written);
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
}

/// Show 6: a long outage with a small cache: never more on the disk than allowed plus one segment, the
/// sources wait, and everything the files still hold arrives.
#[test]
fn e7_the_cache_keeps_to_its_limit_and_the_sources_wait() {
    let mut lab = Lab::start("e7");
    let asked = std::env::var("SCRINIUM_TEST_CACHE_MIB").ok();
    let (cache, megabytes) = asked.map_or((8, 24), |text| {
        let cache: u64 = text.parse().unwrap();
        (cache, 10 * cache)
    });
    let limits = format!("[spool]\nram_bytes_max = \"1 MiB\"\ndisk_bytes_max = \"{cache} MiB\"");
    lab.add_agent("web1", lab.sl, &limits);
    let log = lab.log("app.log");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    lab.stop_server();
    let mut written = Vec::new();
    let mut random = Random::new(7);
    let mut most = 0;
    let spool = lab.state("web1").join("spool");
    for n in 0..megabytes {
        let lines = noise(n, 6000, &mut random);
        append(&log).write_all(&lines).unwrap();
        written.extend_from_slice(&lines);
        pause(Duration::from_millis(150));
        most = most.max(bytes_in(&spool));
    }
    assert!(written.len() as u64 > (2 * cache) << 20);
    wait_until("the cache is full", Duration::from_secs(60), || {
        most = most.max(bytes_in(&spool));
        most > (cache - 2) << 20
    });
    // E7: a limit lowered below what is there loses nothing.
    lab.stop_agent("web1");
    let lower = format!(
        "[[source]]\nfile = \"{}/logs/*.log\"\n[spool]\nram_bytes_max = \"1 MiB\"\ndisk_bytes_max = \"2 MiB\"\n",
        lab.dir.display()
    );
    lab.write("web1.toml", lower.as_bytes());
    lab.start_agent("web1");
    pause(Duration::from_secs(1));
    most = most.max(bytes_in(&spool));
    assert!(most <= (cache + 5) << 20, "{most} bytes on the disk");
    lab.start_server();
    lab.wait_for_bytes("web1", &log, written.len(), Duration::from_secs(120));
    assert!(lab.export("web1", &log) == written);
    assert!(lab.verify().1.contains("; 0 gap entries"));
}

/// E6: a backlog of a million lines is no reason to start late or to need much memory.
#[test]
fn e6_an_agent_with_a_million_lines_waiting_starts_at_once_and_ships_them_in_order() {
    let mut lab = Lab::start("e6");
    let limits = "[spool]\nram_bytes_max = \"1 MiB\"\ndisk_bytes_max = \"1 GiB\"";
    lab.add_agent("web1", lab.sl, limits);
    let log = lab.log("app.log");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    lab.stop_server();
    let mut random = Random::new(6);
    let mut written = Vec::new();
    for n in 0..1_000_000_u32 {
        writeln!(
            written,
            "{n} {:016x}{:016x}",
            random.below(u64::MAX),
            random.below(u64::MAX)
        )
        .unwrap();
    }
    append(&log).write_all(&written).unwrap();
    wait_until("all of it waits", Duration::from_secs(60), || {
        let status = lab.agent_status("web1");
        status.is_some_and(|status| status["backlog_entries"].as_u64() >= Some(1_000_000))
    });
    lab.kill_agent("web1");
    let since = now();
    lab.start_agent("web1");
    wait_until("the agent answers", Duration::from_secs(30), || {
        let status = lab.agent_status("web1");
        // What was in RAM is read again from the file when the server has spoken.
        status.is_some_and(|status| status["backlog_entries"].as_u64().unwrap() > 950_000)
    });
    let (took, memory) = (
        now().duration_since(since),
        resident_bytes(lab.agent_pid("web1")),
    );
    println!("up after {} ms with {} KiB", took.as_millis(), memory >> 10);
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(memory < 64 << 20, "{memory} bytes");
    lab.start_server();
    lab.wait_for_bytes("web1", &log, written.len(), Duration::from_secs(90));
    assert!(lab.export("web1", &log) == written);
    assert!(lab.verify().1.contains("; 0 gap entries"));
}

/// E8: two processes, one spool: the second is refused, whatever the first left when it was killed.
#[test]
fn e8_a_second_agent_on_the_same_state_is_refused() {
    let mut lab = Lab::start("e8");
    lab.add_agent("web1", lab.sl, "");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    let second = || {
        let output = Command::new(scrinium_tests::program("scrinium-agent"))
            .arg("run")
            .arg("--state")
            .arg(lab.state("web1"))
            .output()
            .unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let (code, said) = second();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("another process"), "{said}");
    lab.kill_agent("web1");
    lab.start_agent("web1");
    lab.wait_connected("web1");
}

/// L1: never faster than it may, and live lines before the backlog.
#[test]
fn l1_the_upload_keeps_to_its_limit() {
    let mut lab = Lab::start("l1");
    let proxy = Proxy::start(lab.sl);
    lab.add_agent(
        "web1",
        proxy.address(),
        "[limits]\nupload_bytes_per_s_max = \"32 KiB\"",
    );
    let log = lab.log("app.log");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    let lines = noise(0, 2400, &mut Random::new(1));
    let (before, since) = (proxy.passed(), now());
    append(&log).write_all(&lines).unwrap();
    lab.wait_for_bytes("web1", &log, lines.len(), Duration::from_secs(120));
    let took = now().duration_since(since).as_secs_f64();
    let rate = (proxy.passed() - before) as f64 / took;
    assert!(took > 5.0, "too little to measure: {took} s");
    assert!(
        rate < 34_000.0 && rate > 16_000.0,
        "{rate:.0} bytes a second"
    );
}

/// L2: never more of the processor than it may.
#[test]
fn l2_the_agent_keeps_to_its_share_of_the_processor() {
    let mut lab = Lab::start("l2");
    lab.add_agent("web1", lab.sl, "[limits]\ncpu_percent_max = 1");
    let log = lab.log("app.log");
    let lines = noise(0, 300_000, &mut Random::new(2));
    append(&log).write_all(&lines).unwrap();
    lab.start_agent("web1");
    lab.wait_connected("web1");
    let pid = lab.agent_pid("web1");
    let (before, since) = (cpu_seconds(pid), now());
    pause(Duration::from_secs(10));
    let share = (cpu_seconds(pid) - before) / now().duration_since(since).as_secs_f64();
    assert!(share < 0.02, "{share:.3} of a core");
    let archived = lab.export("web1", &log).len();
    assert!(archived < lines.len(), "too little to measure");
    assert!(archived > 1 << 20, "{archived} bytes in ten seconds");
}

/// Show 7: 64 kbit/s and 300 ms there and back: 5 kB of lines a second keep up, and so does the session.
#[test]
fn a_link_of_64_kbit_carries_5_kb_of_lines_a_second() {
    let setup =
        "tc qdisc add dev lo root tbf rate 64kbit burst 1600 latency 5s && ip link set lo mtu 1500";
    if !in_own_network(
        "spool::a_link_of_64_kbit_carries_5_kb_of_lines_a_second",
        setup,
    ) {
        return;
    }
    let mut lab = Lab::start_with("narrow", "keep_alive_s = 10");
    let proxy = Proxy::start(lab.sl);
    lab.add_agent("web1", proxy.address(), "");
    let log = lab.log("app.log");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    proxy.lag(150);
    let mut before = 0;
    let mut written = Vec::new();
    let mut random = Random::new(64);
    for second in 0..30 {
        // Lines as programs write them: most of each is known from the one before.
        let mut lines = String::new();
        while lines.len() < 5000 {
            lines += &format!(
                "{} request {:08x} took {} us\n",
                line(second).trim_end(),
                random.below(1 << 32),
                random.below(9999)
            );
        }
        append(&log).write_all(lines.as_bytes()).unwrap();
        written.extend_from_slice(lines.as_bytes());
        pause(Duration::from_secs(1));
        if second == 5 {
            before = proxy.connections();
        }
    }
    // It kept up: what is still to come is what was written last.
    lab.wait_for_bytes("web1", &log, written.len(), Duration::from_secs(15));
    assert_eq!(lab.export("web1", &log), written);
    assert_eq!(proxy.connections(), before, "the session held");
}

fn flip(segments: &[PathBuf], random: &mut Random) {
    let mut bytes = std::fs::read(&segments[1]).unwrap();
    let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
    bytes[at] ^= 1 << random.below(8);
    File::create(&segments[1])
        .unwrap()
        .write_all(&bytes)
        .unwrap();
}

/// The segments of the spool, oldest first.
fn segments(lab: &Lab) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(lab.state("web1").join("spool")).unwrap();
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "spool")
    });
    paths.sort();
    paths
}

fn bytes_in(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum()
}

/// Lines that hardly compress.
fn noise(salt: u64, count: u64, random: &mut Random) -> Vec<u8> {
    let lines = (0..count).map(|n| {
        let noise: String = (0..10)
            .map(|_| format!("{:016x}", random.below(u64::MAX)))
            .collect();
        format!("{salt} {n} {noise}\n")
    });
    lines.collect::<String>().into_bytes()
}

const LIMITS: &str = "[spool]\nram_bytes_max = \"512 KiB\"\ndisk_bytes_max = \"64 MiB\"";

/// Does something to the segments of a stopped agent.
type Attack = fn(&[PathBuf], &mut Random);
