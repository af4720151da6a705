//! What SL costs: its record layer and a whole session, agent and server on one core, beside the bare
//! cost of zstd, AES-GCM and SHA-256 for the same bytes; and 10,000 idle sessions on one server.
//!
//! ```text
//! cargo build --release && cargo bench -p scrinium-tests --bench session
//! SCRINIUM_BENCH_SESSIONS=1000     so many idle sessions; 10,000 unless said, 0 for none
//! TMPDIR=/dev/shm                  the enrolment of so many is a matter of the disk otherwise
//! ```

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench prints, and stops at the first surprise"
)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use scrinium_protocol::aead::Aead;
use scrinium_protocol::batch::{BatchBuilder, SealedBatch, StreamPosition};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::compress::{AGENT_LEVEL, Compressor, decompress};
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::identity::{AgentId, Epoch, StreamId};
use scrinium_protocol::kdf::sha256;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::message::{Lane, Message, Ready, Receipt};
use scrinium_protocol::sl::record::{HEADER_LEN, RecordKeys, RecordOpener, RecordSealer};
use scrinium_protocol::sl::session::{AgentEvent, AgentSession, ServerEvent, ServerSession};
use scrinium_protocol::sl::suite::Suite;
use scrinium_protocol::token::Token;
use scrinium_tests::client::{Client, Known, established};
use scrinium_tests::corpus::Corpus;
use scrinium_tests::lab::{Lab, cpu_seconds, resident_bytes};
use scrinium_tests::{now, pause};
use serde_json::Value;

fn main() {
    let lines = lines();
    let bytes: usize = lines.iter().map(Vec::len).sum();
    println!("{} lines, {bytes} bytes, one core", lines.len());
    records();
    session(&lines, bytes);
    let sessions = std::env::var("SCRINIUM_BENCH_SESSIONS").ok();
    let sessions = sessions
        .and_then(|text| text.parse().ok())
        .unwrap_or(10_000);
    if sessions > 0 {
        idle(sessions);
    }
}

/// 128 MiB of lines.
fn lines() -> Vec<Vec<u8>> {
    let mut corpus = Corpus::new();
    let mut bytes = Vec::new();
    while bytes.len() < 128 << 20 {
        corpus.lines(10_000, &mut bytes);
    }
    bytes
        .split_inclusive(|&byte| byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect()
}

/// The best of a few rounds: everything else is the machine's other work.
fn seconds(mut run: impl FnMut()) -> f64 {
    let once = |run: &mut dyn FnMut()| {
        let since = now();
        run();
        now().duration_since(since).as_secs_f64()
    };
    (0..3).map(|_| once(&mut run)).fold(f64::MAX, f64::min)
}

fn records() {
    let payload: Vec<u8> = (0..192_u32 << 10).map(|n| n.to_le_bytes()[0]).collect();
    let rounds = 1000_u32;
    let total = f64::from(rounds) * payload.len() as f64 / 1e6;
    let aead = Aead::new(&[1; 32]);
    let bare = seconds(|| {
        for n in 0..rounds {
            let mut nonce = [0; 12];
            nonce[8..].copy_from_slice(&n.to_be_bytes());
            let mut text = payload.clone();
            aead.seal(&nonce, &[], &mut text, 0);
            black_box(aead.open(&nonce, &[], &mut text).unwrap());
        }
    });
    println!("AES-256-GCM, sealed and opened: {:.0} MB/s", total / bare);
    for suite in [Suite::Encrypted, Suite::IntegrityOnly] {
        let keys = || RecordKeys {
            suite,
            body: Secret::new([1; 32]),
            length: Secret::new([2; 32]),
        };
        let (mut sealer, mut opener) = (RecordSealer::new(keys()), RecordOpener::new(keys()));
        let took = seconds(|| {
            for _ in 0..rounds {
                let mut wire = Vec::new();
                sealer.seal(6, &payload, &mut wire).unwrap();
                let (header, body) = wire.split_first_chunk_mut::<HEADER_LEN>().unwrap();
                opener.body_len(header).unwrap();
                black_box(opener.open(header, body).unwrap());
            }
        });
        println!(
            "records, {suite:?}: {:.0} MB/s, {:.2} of bare AES-GCM",
            total / took,
            bare / took
        );
    }
}

fn session(lines: &[Vec<u8>], bytes: usize) {
    let megabytes = bytes as f64 / 1e6;
    // What a batch holds, for the bare cost too.
    let chunks: Vec<Vec<u8>> = batches(lines).iter().map(|batch| batch.concat()).collect();
    let aead = Aead::new(&[1; 32]);
    let bare = seconds(|| {
        let mut compressor = Compressor::new(AGENT_LEVEL);
        for (n, chunk) in (0_u32..).zip(&chunks) {
            let mut nonce = [0; 12];
            nonce[8..].copy_from_slice(&n.to_be_bytes());
            black_box(sha256(&[chunk]));
            let mut text = compressor.compress(chunk);
            aead.seal(&nonce, &[], &mut text, 0);
            let len = aead.open(&nonce, &[], &mut text).unwrap();
            let mut opened = Vec::new();
            decompress(
                &text[..len],
                u32::try_from(chunk.len()).unwrap(),
                &mut opened,
            )
            .unwrap();
            black_box(sha256(&[&opened]));
        }
    });
    println!(
        "zstd, AES-GCM, SHA-256, there and back: {:.0} MB/s",
        megabytes / bare
    );
    for suite in [Suite::Encrypted, Suite::IntegrityOnly] {
        let took = seconds(|| ship(suite, lines));
        println!(
            "whole session, {suite:?}: {:.0} MB/s, {:.2} of bare",
            megabytes / took,
            bare / took
        );
    }
}

/// Lines by the batches they go in, as full as a busy file makes them.
fn batches(lines: &[Vec<u8>]) -> Vec<&[Vec<u8>]> {
    let (mut batches, mut begin, mut len) = (Vec::new(), 0, 0);
    for (n, line) in lines.iter().enumerate() {
        if len + line.len() > BATCH_BYTES || n - begin == BATCH_LINES {
            batches.push(&lines[begin..n]);
            (begin, len) = (n, 0);
        }
        len += line.len();
    }
    batches.push(&lines[begin..]);
    batches
}

/// Every line into batches, through two sessions, verified, and acked.
fn ship(suite: Suite, lines: &[Vec<u8>]) {
    let begun = now();
    let (agent, server) = established(suite);
    let mut agent = AgentSession::new(agent, begun);
    let mut server = ServerSession::new(server, Duration::from_secs(10), begun);
    let (signing, receipts) = (
        SigningKey::from_bytes(&[5; 32]),
        SigningKey::from_bytes(&[6; 32]),
    );
    let verifying = signing.verifying_key();
    let ready = Ready {
        live_bytes_max: 4 << 20,
        backlog_bytes_max: 4 << 20,
        keep_alive_ms: 10_000,
        signing_public: receipts.verifying_key().to_bytes(),
        restored: false,
    };
    server.send(&Message::Ready(ready), begun).unwrap();
    let stream = StreamId([2; 16]);
    let mut position = StreamPosition::start(AgentId([1; 16]), stream, Epoch([3; 16]));
    let mut compressor = Compressor::new(AGENT_LEVEL);
    let mut acked = 0;
    exchange(&mut agent, &mut server, begun);
    while agent.poll_event().is_some() {}
    for batch in batches(lines) {
        let mut builder = BatchBuilder::new();
        for line in batch {
            let meta = EntryMeta {
                time_us: 1,
                flags: EntryFlags::NONE,
            };
            assert!(builder.push(line, meta));
        }
        let (batch, after) = builder.seal(stream, &position, Vec::new(), &signing, &mut compressor);
        position = after;
        let sent = agent.send_batch(Lane::Live, &batch.header, batch.encoded(), begun);
        sent.unwrap().unwrap();
        exchange(&mut agent, &mut server, begun);
        let Some(ServerEvent::Batch(encoded)) = server.poll_event() else {
            panic!("a batch was sent");
        };
        let received = SealedBatch::decode(&encoded, "batch").unwrap();
        received.header.verify_signature(&verifying).unwrap();
        acked += received.open().unwrap().iter().count();
        let mut receipt = Receipt {
            stream,
            epoch: received.header.epoch,
            next: received.header.next(),
            head: received.header.head(),
            log: 1,
            offset: 1,
            signature: [0; 64],
        };
        receipt.sign(&receipts);
        server.send(&Message::Receipt(receipt), begun).unwrap();
        exchange(&mut agent, &mut server, begun);
        assert!(matches!(agent.poll_event(), Some(AgentEvent::Acked(_))));
    }
    assert_eq!(acked, lines.len());
}

fn exchange(agent: &mut AgentSession, server: &mut ServerSession, now: Instant) {
    while let Some(bytes) = agent.poll_transmit() {
        server.handle_bytes(&bytes, now).unwrap();
    }
    while let Some(bytes) = server.poll_transmit() {
        agent.handle_bytes(&bytes, now).unwrap();
    }
}

/// Enrols so many agents, keeps their sessions alive, and looks at the server.
fn idle(count: u32) {
    let limits = "keep_alive_s = 10\nhandshakes_per_s = 10000\nsessions_max = 100000";
    let mut lab = Lab::start_with("idle", limits);
    let server_public = token(&lab, u32::MAX).server_public;
    let since = now();
    // Each enrolment waits for its entry in the audit stream to be durable: many at once.
    let enrolled = all_at_once(count, |n| Client::enrol(&token(&lab, n), lab.sl, n));
    let enrolled: BTreeMap<u32, Known> = enrolled
        .into_iter()
        .map(|agent| agent.leave())
        .map(|agent| (agent.seed, agent))
        .collect();
    println!(
        "{count} agents enrolled in {:.0} s",
        now().duration_since(since).as_secs_f64()
    );
    // A server that knows them all, and has no session.
    lab.stop_server();
    lab.start_server();
    let (before, since) = (resident_bytes(lab.server_pid()), now());
    let address = lab.sl;
    let mut agents = all_at_once(count, |n| enrolled[&n].connect(server_public, address));
    println!(
        "{count} agents connected in {:.0} s",
        now().duration_since(since).as_secs_f64()
    );
    // Let that settle, then look for two keep-alives.
    let rest = |agents: &mut Vec<Client>, seconds: u64| {
        let until = now() + Duration::from_secs(seconds);
        while now() < until {
            agents.iter_mut().for_each(breathe);
            pause(Duration::from_millis(200));
        }
    };
    rest(&mut agents, 10);
    let (cpu, since) = (cpu_seconds(lab.server_pid()), now());
    rest(&mut agents, 30);
    let cpu = cpu_seconds(lab.server_pid()) - cpu;
    let share = cpu / now().duration_since(since).as_secs_f64() * 100.0;
    let after = resident_bytes(lab.server_pid());
    println!(
        "{count} idle sessions: {:.1} KiB resident each, {share:.1} % of one core at a keep-alive every 10 s",
        (after - before) as f64 / f64::from(count) / 1024.0
    );
}

/// Makes so many agents on [`THREADS`] threads; returns when all are ready. Nobody falls silent
/// while others are still being made.
fn all_at_once(count: u32, make: impl Fn(u32) -> Client + Sync) -> Vec<Client> {
    let (ready, make) = (AtomicU32::new(0), &make);
    std::thread::scope(|scope| {
        let ready = &ready;
        let work = move |first: u32| {
            let mut agents: Vec<Client> = Vec::new();
            for n in (first..count).step_by(THREADS as usize) {
                agents.push(make(n));
                if (n / THREADS).is_multiple_of(20) {
                    agents.iter_mut().for_each(breathe);
                }
            }
            while agents.iter().any(|agent| !agent.is_ready) {
                agents.iter_mut().for_each(breathe);
                pause(Duration::from_millis(50));
            }
            ready.fetch_add(1, Ordering::Relaxed);
            while ready.load(Ordering::Relaxed) < THREADS {
                agents.iter_mut().for_each(breathe);
                pause(Duration::from_millis(200));
            }
            agents
        };
        let workers: Vec<_> = (0..THREADS)
            .map(|first| scope.spawn(move || work(first)))
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap())
            .collect()
    })
}

fn breathe(agent: &mut Client) {
    let (events, stands) = agent.breathe();
    assert!(stands && events.is_empty(), "{events:?}");
}

/// A token, by the control socket: ten thousand processes would measure themselves.
fn token(lab: &Lab, n: u32) -> Token {
    let body = format!(
        "{{\"name\":\"idle{n}\",\"site\":\"\",\"ttl_s\":3600,\"address\":\"{}\"}}",
        lab.sl
    );
    let mut socket = UnixStream::connect(lab.data().join("control.sock")).unwrap();
    let request = format!(
        "POST /agents/enroll HTTP/1.1\r\nhost: local\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).unwrap();
    let json = response.split("\r\n\r\n").nth(1).unwrap();
    let made: Value = serde_json::from_str(json).unwrap();
    Token::parse(made["token"].as_str().unwrap()).unwrap()
}

/// That enrol agents.
const THREADS: u32 = 32;
/// Below the limits of a batch.
const BATCH_BYTES: usize = 180_000;
const BATCH_LINES: usize = 4000;
