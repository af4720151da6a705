//! Shipping one file to durable storage over loopback, encrypted: Scrinium beside rsyslog's RELP over
//! TLS, in one run.
//!
//! ```text
//! cargo build --release && cargo bench -p scrinium-tests --bench ship
//! SCRINIUM_BENCH_MB=1000        size of the file; 200 unless said
//! SCRINIUM_BENCH_CORPUS=FILE    ship this file instead of a generated one
//! ```
//!
//! Wall time runs from the start of the agent, its server already listening, until every line is
//! counted at the server; CPU is that of agent and server together. Scrinium compresses, signs,
//! encrypts twice, and syncs before each ack; rsyslog writes plain text and does not sync.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench prints, and stops at the first surprise"
)]

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use scrinium_tests::lab::{Lab, cpu_seconds};
use scrinium_tests::{has_tool, now, pause, wait_until};

fn main() {
    let work = std::env::temp_dir().join(format!("scrinium-bench-{}", std::process::id()));
    std::fs::create_dir_all(&work).unwrap();
    let corpus = match std::env::var_os("SCRINIUM_BENCH_CORPUS") {
        Some(path) => PathBuf::from(path),
        None => generate(&work),
    };
    let bytes = std::fs::metadata(&corpus).unwrap().len();
    let lines = std::fs::read(&corpus)
        .unwrap()
        .iter()
        .filter(|&&byte| byte == b'\n')
        .count() as u64;
    println!("{lines} lines, {bytes} bytes");
    let ours = scrinium(&corpus, lines);
    print("scrinium", bytes, ours);
    print(
        "  through its disk",
        bytes,
        through_the_disk(&corpus, lines),
    );
    if has_tool("rsyslogd") && has_tool("openssl") {
        let peer = rsyslog(&work, &corpus, bytes);
        print("rsyslog RELP TLS", bytes, peer);
        println!(
            "ratio: {:.1} times the speed, {:.1} % of the CPU",
            peer.wall / ours.wall,
            ours.cpu / peer.cpu * 100.0
        );
    }
    std::fs::remove_dir_all(&work).unwrap();
}

#[derive(Clone, Copy)]
struct Measured {
    wall: f64,
    cpu: f64,
}

fn print(name: &str, bytes: u64, measured: Measured) {
    let bytes = bytes as f64;
    println!(
        "{name:20} {:7.1} MB/s {:7.1} CPU-s/GB  ({:.2} s, {:.2} CPU-s)",
        bytes / 1e6 / measured.wall,
        measured.cpu / bytes * 1e9,
        measured.wall,
        measured.cpu
    );
}

fn scrinium(corpus: &Path, lines: u64) -> Measured {
    let mut lab = Lab::start("bench");
    lab.add_agent("bench", lab.sl, "");
    lab.write(
        "bench.toml",
        format!("[[source]]\nfile = {:?}\n", corpus.display().to_string()).as_bytes(),
    );
    let before = lab.cpu_seconds();
    let started = now();
    lab.start_agent("bench");
    wait_until("every line is durable", Duration::from_secs(600), || {
        pause(Duration::from_millis(100));
        lab.count("agent:bench") >= lines
    });
    Measured {
        wall: now().duration_since(started).as_secs_f64(),
        cpu: lab.cpu_seconds() - before,
    }
}

/// The same with everything in the disk cache before the server takes any of it: the time until it lies
/// there, and the time from the server's start until every line is durable.
fn through_the_disk(corpus: &Path, lines: u64) -> Measured {
    let mut lab = Lab::start("bench-disk");
    lab.add_agent("bench", lab.sl, "");
    let config = format!(
        "[[source]]\nfile = {:?}\n[spool]\nram_bytes_max = \"1 MiB\"\ndisk_bytes_max = \"16 GiB\"\n",
        corpus.display().to_string()
    );
    lab.write("bench.toml", config.as_bytes());
    lab.stop_server();
    let started = now();
    lab.start_agent("bench");
    wait_until("every line waits", Duration::from_secs(600), || {
        pause(Duration::from_millis(100));
        let status = lab.agent_status("bench");
        status.is_some_and(|status| status["backlog_entries"].as_u64() >= Some(lines))
    });
    let filled = now().duration_since(started);
    lab.start_server();
    lab.wait_connected("bench");
    let started = now();
    wait_until("every line is durable", Duration::from_secs(600), || {
        pause(Duration::from_millis(100));
        lab.count("agent:bench") >= lines
    });
    let drained = now().duration_since(started);
    println!(
        "  ({:.2} s into the cache, {:.2} s out of it)",
        filled.as_secs_f64(),
        drained.as_secs_f64()
    );
    Measured {
        wall: (filled + drained).as_secs_f64(),
        cpu: lab.cpu_seconds(),
    }
}

fn rsyslog(work: &Path, corpus: &Path, bytes: u64) -> Measured {
    certificates(work);
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let dir = work.display();
    let out = work.join("out.log");
    let server = format!(
        "global(workDirectory=\"{dir}\" maxMessageSize=\"64k\")\nmodule(load=\"imrelp\" tls.tlslib=\"openssl\")\n\
         template(name=\"raw\" type=\"string\" string=\"%msg:2:$%\\n\")\n\
         input(type=\"imrelp\" port=\"{port}\" address=\"127.0.0.1\" maxDataSize=\"64k\" tls=\"on\" tls.caCert=\"{dir}/ca.crt\" tls.myCert=\"{dir}/peer.crt\" tls.myPrivKey=\"{dir}/peer.key\" tls.authMode=\"name\" tls.permittedPeer=[\"localhost\"] ruleset=\"w\")\n\
         ruleset(name=\"w\" queue.type=\"Direct\") {{ action(type=\"omfile\" file=\"{}\" template=\"raw\") }}\n",
        out.display()
    );
    let agent = format!(
        "global(workDirectory=\"{dir}\" maxMessageSize=\"64k\")\nmodule(load=\"imfile\" mode=\"inotify\")\nmodule(load=\"omrelp\" tls.tlslib=\"openssl\")\n\
         input(type=\"imfile\" file=\"{}\" tag=\"bench\" persistStateInterval=\"1000\" ruleset=\"ship\")\n\
         ruleset(name=\"ship\" queue.type=\"Direct\") {{ action(type=\"omrelp\" target=\"127.0.0.1\" port=\"{port}\" windowSize=\"1024\" tls=\"on\" tls.caCert=\"{dir}/ca.crt\" tls.myCert=\"{dir}/peer.crt\" tls.myPrivKey=\"{dir}/peer.key\" tls.authMode=\"name\" tls.permittedPeer=[\"localhost\"] action.resumeRetryCount=\"-1\" \
         queue.type=\"LinkedList\" queue.filename=\"fwd\" queue.maxDiskSpace=\"4g\" queue.saveOnShutdown=\"on\" queue.size=\"50000\" queue.dequeueBatchSize=\"1024\" queue.fullDelayMark=\"30000\" queue.highWatermark=\"45000\") }}\n",
        corpus.display()
    );
    let start = |name: &str, text: &str| -> Child {
        let config = work.join(name);
        File::create(&config)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        let mut command = Command::new("/usr/sbin/rsyslogd");
        command
            .args(["-n", "-f"])
            .arg(&config)
            .arg("-i")
            .arg(work.join(format!("{name}.pid")));
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut receiver = start("server.conf", &server);
    wait_until("rsyslog listens", Duration::from_secs(30), || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        table
            .lines()
            .any(|line| line.contains(&format!("0100007F:{port:04X} 00000000:0000 0A")))
    });
    let started = now();
    let mut sender = start("agent.conf", &agent);
    wait_until(
        "rsyslog has written everything",
        Duration::from_secs(900),
        || {
            pause(Duration::from_millis(80));
            std::fs::metadata(&out).is_ok_and(|meta| meta.len() >= bytes)
        },
    );
    let measured = Measured {
        wall: now().duration_since(started).as_secs_f64(),
        cpu: cpu_seconds(receiver.id()) + cpu_seconds(sender.id()),
    };
    for child in [&mut sender, &mut receiver] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    measured
}

/// A throw-away authority and one certificate that both rsyslogs use.
fn certificates(work: &Path) {
    let openssl = |args: &str| {
        let done = Command::new("openssl")
            .args(args.split(' '))
            .current_dir(work)
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    };
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -subj /CN=bench -days 30 -addext basicConstraints=critical,CA:TRUE",
    );
    openssl(
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout peer.key -out peer.csr -subj /CN=localhost",
    );
    File::create(work.join("peer.ext"))
        .unwrap()
        .write_all(b"subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        .unwrap();
    openssl(
        "x509 -req -in peer.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out peer.crt -days 30 -extfile peer.ext",
    );
}

/// Lines of six kinds with random users, addresses, ports and numbers: they compress like real ones.
fn generate(work: &Path) -> PathBuf {
    let megabytes = std::env::var("SCRINIUM_BENCH_MB")
        .ok()
        .and_then(|text| text.parse::<u64>().ok())
        .unwrap_or(200);
    let path = work.join("corpus.log");
    let mut file = BufWriter::new(File::create(&path).unwrap());
    let mut state = 20_121_u64;
    let mut random = |bound: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let users = [
        "root",
        "admin",
        "mrossi",
        "gbianchi",
        "dupont",
        "martin",
        "svc-deploy",
        "nagios",
        "jsmith",
        "cmoreau",
    ];
    let (mut written, mut n) = (0, 0_u64);
    let mut line = String::new();
    while written < megabytes * 1_000_000 {
        line.clear();
        let ip = [10, 172, 192, 45, 91, 185][usize::try_from(random(6)).unwrap()];
        let (a, b, c, port) = (
            random(256),
            random(256),
            random(254) + 1,
            1024 + random(64_000),
        );
        let user = users[usize::try_from(random(10)).unwrap()];
        let (hour, minute, second) = (n / 180_000 % 24, n / 3000 % 60, n / 50 % 60);
        match random(6) {
            0 => write!(line, "2026-11-01T{hour:02}:{minute:02}:{second:02}.{:06}+00:00 srv-{:02} sshd[{}]: Failed password for invalid user {user}{} from {ip}.{a}.{b}.{c} port {port} ssh2 seq={n:012}", random(1_000_000), random(20), 500 + random(60_000), random(99)),
            1 => write!(line, "1 {}.{:09} MX-srv-{:02} flows src={ip}.{a}.{b}.{c} dst={}.{}.{}.{} mac=6B:6A:8E:{:02X}:{:02X}:7D protocol=tcp sport={port} dport=443 pattern: allow all seq={n:012}", 1_793_491_200 + n / 50, random(1_000_000_000), random(20), random(200), random(256), random(256), random(254), random(256), random(256)),
            2 => write!(line, "Nov  1 {hour:02}:{minute:02}:{second:02} srv-{:02} kernel: [{}.{:06}] IN=eth0 OUT= SRC={ip}.{a}.{b}.{c} DST=10.0.3.{} LEN={} TTL={} ID={} DF PROTO=TCP SPT={port} DPT=445 WINDOW={} SYN URGP=0 seq={n:012}", random(20), 100_000 + n / 50, random(1_000_000), random(254), 40 + random(1400), 32 + random(200), random(65_535), random(65_535)),
            3 => write!(line, "Nov  1 2026 {hour:02}:{minute:02}:{second:02} fw-srv-{:02} : %ASA-6-302014: Teardown TCP connection {} for outside:{ip}.{a}.{b}.{c}/443 to inside:10.0.3.{}/{port} duration 0:{:02}:{:02} bytes {} TCP FINs seq={n:012}", random(20), 1_000_000 + n / 3, random(254), random(60), random(60), random(5_000_000)),
            4 => write!(line, "{ip}.{a}.{b}.{c} - {user} [01/Nov/2026:{hour:02}:{minute:02}:{second:02} +0000] \"GET /api/v1/orders/{} HTTP/1.1\" 200 {} \"-\" \"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/128.0.0.0 Safari/537.36\" rt={}.{:03} seq={n:012}", random(100_000), random(90_000), random(2), random(1000)),
            _ => write!(line, "{{\"ts\":\"2026-11-01T{hour:02}:{minute:02}:{second:02}.{:06}Z\",\"level\":\"info\",\"service\":\"billing\",\"host\":\"srv-{:02}\",\"trace_id\":\"{:016x}{:016x}\",\"user\":\"{user}\",\"client_ip\":\"{ip}.{a}.{b}.{c}\",\"duration_ms\":{}.{:02},\"msg\":\"request completed\",\"id\":\"seq={n:012}\"}}", random(1_000_000), random(20), random(u64::MAX), random(u64::MAX), random(900), random(100)),
        }
        .unwrap();
        line.push('\n');
        file.write_all(line.as_bytes()).unwrap();
        written += line.len() as u64;
        n += 1;
    }
    file.flush().unwrap();
    path
}
