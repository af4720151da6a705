//! What the fuzzers drive, one function per parser and one for the operations of a session. A function
//! panics when a property does not hold; whatever comes in must not make it.
//!
//! `tests/fuzz/` runs them under libFuzzer; the normal tests replay the corpora it found.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use scrinium_agent::source::bookmark::Bookmark;
use scrinium_protocol::batch::{BatchBuilder, SealedBatch, StreamPosition};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::compress::Compressor;
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::evidence::checkpoint::Checkpoint;
use scrinium_protocol::evidence::inclusion::Inclusion;
use scrinium_protocol::evidence::interval::Interval;
use scrinium_protocol::excerpt::Excerpt;
use scrinium_protocol::identity::{AgentId, Epoch, StreamId, StreamKind};
use scrinium_protocol::route::{Proxy, Route};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::{
    AgentHello, ExpectAgentStart, FrameHead, PREAMBLE_HEAD_LEN, Preamble, Purpose, ServerHello,
    parse_refusal, refusal_of, start,
};
use scrinium_protocol::sl::message::{KeepAlive, Lane, Message, Ready, Receipt};
use scrinium_protocol::sl::record::{
    HEADER_LEN, PAYLOAD_LEN_MAX, RecordKeys, RecordOpener, RecordSealer,
};
use scrinium_protocol::sl::session::{AgentEvent, AgentSession, ServerEvent, ServerSession};
use scrinium_protocol::sl::suite::Suite;
use scrinium_protocol::syslog::frame::{Deframer, MESSAGE_LEN_MAX};
use scrinium_protocol::syslog::message::parse;
use scrinium_protocol::token::Token;
use scrinium_segment::Kind;
use scrinium_segment::reader::{Next, SegmentReader};
use scrinium_server::index::filter::{FilterBuilder, may_hold};
use scrinium_server::index::query::Query;

use crate::client::{established, fixed_keys, pair};
use crate::package::{Parts, gzip};

/// A fuzz target: its name, and what it does with the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 18] = [
    ("handshake", handshake),
    ("message", message),
    ("batch", batch),
    ("record", record),
    ("session", session),
    ("syslog_frame", syslog_frame),
    ("syslog_message", syslog_message),
    ("token", token),
    ("segment", segment),
    ("query", query),
    ("configuration", configuration),
    ("bookmark", bookmark),
    ("package", package),
    ("evidence", evidence),
    ("excerpt", excerpt),
    ("stamp", stamp),
    ("block", block),
    ("index", index),
];

/// Preamble, frames and hellos; and every state of the server's side fed with frames of a stranger.
pub fn handshake(data: &[u8]) {
    if let Some(head) = data.first_chunk::<PREAMBLE_HEAD_LEN>() {
        let _outcome = Preamble::hint_len(head, Suite::Encrypted);
    }
    if let Some(head) = data.first_chunk() {
        let _outcome = FrameHead::parse(*head);
    }
    let _outcome = refusal_of(data);
    let _outcome = parse_refusal(data);
    let _outcome = Purpose::decode(data, "purpose");
    let _outcome = ServerHello::decode(data, "hello");
    if let Ok(hello) = AgentHello::decode(data, "hello") {
        let again = AgentHello::decode(&hello.encoded(), "hello");
        assert_eq!(again.as_ref(), Ok(&hello));
    }
    let suite = Suite::Encrypted;
    let keys = fixed_keys(suite);
    let (sent, _) = start(keys, "", Purpose::Connect).expect("our keys are fine");
    let expect = |ephemeral| ExpectAgentStart::new(suite, &sent[..5], pair(3), pair(ephemeral));
    assert!(expect(4).handle(data).is_err(), "a stranger knows no key");
    let (_, server) = expect(4).handle(&sent[8..]).expect("our own message");
    let (_, server) = server
        .answer(&ServerHello::Welcome { time_us: 0 })
        .expect("our own answer");
    let _outcome = server.claimed_static(data);
    assert!(server.handle(data, &[Secret::new([5; 32])]).is_err());
}

/// Every message: what decodes is encoded to something that decodes to the same.
pub fn message(data: &[u8]) {
    let Some((&kind, payload)) = data.split_first() else {
        return;
    };
    if let Ok(message) = Message::decode(kind, payload) {
        let mut encoded = Vec::new();
        message.encode_payload(&mut encoded);
        assert_eq!(Message::decode(message.kind(), &encoded), Ok(message));
    }
}

/// A batch of a stranger; and the same bytes as the body of one whose header is right.
pub fn batch(data: &[u8]) {
    if let Ok(batch) = SealedBatch::decode(data, "batch") {
        assert_eq!(batch.encoded(), data, "one encoding");
        let _outcome = batch.open();
    }
    let mut sealed = sealed(b"line\n", 0);
    sealed.body = data.to_vec();
    assert!(sealed.open().is_err() || sealed.body == self::sealed(b"line\n", 0).body);
}

/// Records of a stranger, which never open; and the same bytes sealed, which do.
pub fn record(data: &[u8]) {
    for suite in [Suite::Encrypted, Suite::IntegrityOnly] {
        let keys = || RecordKeys {
            suite,
            body: Secret::new([1; 32]),
            length: Secret::new([2; 32]),
        };
        let (mut sealer, mut opener) = (RecordSealer::new(keys()), RecordOpener::new(keys()));
        if let Some((header, body)) = data.split_first_chunk::<HEADER_LEN>() {
            let _outcome = opener.body_len(header);
            assert!(opener.open(header, &mut body.to_vec()).is_err());
        }
        let payload = data.get(..PAYLOAD_LEN_MAX).unwrap_or(data);
        let mut wire = Vec::new();
        sealer.seal(7, payload, &mut wire).expect("new keys");
        let (header, body) = wire.split_first_chunk::<HEADER_LEN>().expect("a header");
        assert_eq!(opener.body_len(header), Ok(body.len()));
        assert_eq!(opener.open(header, &mut body.to_vec()), Ok((7, payload)));
    }
}

fn sealed(line: &[u8], sequence: u64) -> SealedBatch {
    let stream = StreamId([2; 16]);
    let mut position = StreamPosition::start(AgentId([1; 16]), stream, Epoch([3; 16]));
    position.next.0 = sequence;
    let mut builder = BatchBuilder::new();
    let meta = EntryMeta {
        time_us: 1,
        flags: EntryFlags::NONE,
    };
    assert!(builder.push(line, meta));
    let key = SigningKey::from_bytes(&[5; 32]);
    builder
        .seal(stream, &position, Vec::new(), &key, &mut Compressor::new(1))
        .0
}

/// Two sessions and what happens between them, an operation a byte. As long as nothing on the way was
/// altered and neither side broke a rule, neither finds fault with the other.
pub fn session(data: &[u8]) {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    let mut now = *BEGIN.get_or_init(crate::now);
    let mut ops = data.iter().copied();
    let suite = if ops.next().unwrap_or(0) % 2 == 0 {
        Suite::Encrypted
    } else {
        Suite::IntegrityOnly
    };
    let (agent, server) = established(suite);
    let interval = Duration::from_secs(10);
    let (mut agent, mut server) = (
        AgentSession::new(agent, now),
        ServerSession::new(server, interval, now),
    );
    let signing = SigningKey::from_bytes(&[6; 32]);
    let ready = Ready {
        live_bytes_max: 1 << 20,
        backlog_bytes_max: 1 << 10,
        keep_alive_ms: 10_000,
        signing_public: signing.verifying_key().to_bytes(),
        restored: false,
    };
    server.send(&Message::Ready(ready), now).unwrap();
    let (mut up, mut down): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
    let (mut is_honest, mut sequence) = (true, 0);
    let mut received: Vec<SealedBatch> = Vec::new();
    while let Some(op) = ops.next() {
        let outcome = match op % 13 {
            0 => agent.send_keep_alive(KeepAlive::default(), now),
            1 => agent.send_stream_open(StreamId([2; 16]), StreamKind::File, "x", now),
            2 | 3 => {
                let lane = if op % 13 == 2 {
                    Lane::Live
                } else {
                    Lane::Backlog
                };
                let batch = sealed(&[op; 20], sequence);
                let sent = agent.send_batch(lane, &batch.header, batch.encoded(), now);
                sequence += u64::from(sent == Ok(Ok(())));
                sent.map(drop)
            }
            4 => match received.pop() {
                Some(batch) => {
                    let mut receipt = Receipt {
                        stream: batch.header.stream,
                        epoch: batch.header.epoch,
                        next: batch.header.next(),
                        head: batch.header.head(),
                        log: 1,
                        offset: 1,
                        signature: [0; 64],
                    };
                    receipt.sign(&signing);
                    // The last of all: everything before it is acked with it.
                    received.clear();
                    server.send(&Message::Receipt(receipt), now)
                }
                None => Ok(()),
            },
            5 if agent.is_renewal_due(now) => agent.renew(pair(op), now),
            6 | 7 => {
                let n = usize::from(ops.next().unwrap_or(0)) * 8;
                let bytes: Vec<u8> = up.drain(..n.min(up.len())).collect();
                server.handle_bytes(&bytes, now)
            }
            8 | 9 => {
                let n = usize::from(ops.next().unwrap_or(0)) * 8;
                let bytes: Vec<u8> = down.drain(..n.min(down.len())).collect();
                agent.handle_bytes(&bytes, now)
            }
            10 => {
                now += Duration::from_millis(u64::from(ops.next().unwrap_or(0)) * 1000);
                agent.handle_timeout(now);
                server.handle_timeout(now, 0)
            }
            11 => {
                // An attacker on the way.
                let (at, bit) = (
                    usize::from(ops.next().unwrap_or(0)),
                    ops.next().unwrap_or(0),
                );
                let pipe = if bit & 0x80 == 0 { &mut up } else { &mut down };
                if let Some(byte) = pipe.get_mut(at) {
                    *byte ^= 1 << (bit % 8);
                    is_honest = false;
                }
                Ok(())
            }
            12 => {
                is_honest = false;
                server.handle_bytes(&[op; 9], now)
            }
            _ => Ok(()),
        };
        if let Err(error) = outcome {
            assert!(!is_honest, "{error}");
            return;
        }
        while let Some(event) = server.poll_event() {
            match event {
                ServerEvent::Batch(bytes) => {
                    let batch = SealedBatch::decode(&bytes, "batch").expect("what was sent");
                    received.push(batch);
                }
                ServerEvent::RenewalAsked => {
                    if let Err(error) = server.renew(pair(op ^ 0x7f), now) {
                        assert!(!is_honest, "{error}");
                        return;
                    }
                }
                ServerEvent::CredentialStored
                | ServerEvent::StreamOpen { .. }
                | ServerEvent::KeepAlive(_)
                | ServerEvent::Receipt(_)
                | ServerEvent::ConfigurationAnswer(_)
                | ServerEvent::Closed { .. }
                | ServerEvent::PeerSilent => {}
            }
        }
        while let Some(event) = agent.poll_event() {
            if let AgentEvent::Acked(receipt) = event {
                assert!(receipt.next.0 <= sequence, "acked what was never sent");
            }
        }
        up.extend(agent.poll_transmit().unwrap_or_default());
        down.extend(server.poll_transmit().unwrap_or_default());
    }
}

/// A stream of syslog over TCP: its frames are the same whatever the pieces it comes in.
pub fn syslog_frame(data: &[u8]) {
    let Some((&piece, bytes)) = data.split_first() else {
        return;
    };
    let frames = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut deframer = Deframer::new();
        let mut frames = Vec::new();
        for piece in pieces {
            deframer.handle_bytes(piece);
            while let Some(frame) = deframer.poll_frame() {
                frames.push(frame);
            }
        }
        frames.extend(deframer.finish());
        frames
    };
    let whole = frames(&mut std::iter::once(bytes));
    let pieces = frames(&mut bytes.chunks(usize::from(piece) + 1));
    assert_eq!(whole, pieces);
    assert!(
        whole
            .iter()
            .all(|frame| frame.bytes.len() <= MESSAGE_LEN_MAX)
    );
}

/// One syslog message.
pub fn syslog_message(data: &[u8]) {
    let message = parse(data);
    assert!(message.severity.is_none_or(|severity| severity < 8));
    let text = message.text;
    assert!(text.is_empty() || data.windows(text.len()).any(|window| window == text));
}

/// An enrolment token as typed; the way to the server that stands in it, and proxies.
pub fn token(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data) {
        if let Ok(route) = Route::parse(text) {
            let shown = route.to_string();
            // Without a password, which is not written down.
            assert_eq!(Route::parse(&shown).unwrap().to_string(), shown);
        }
        let _outcome = Proxy::parse(text);
    }
    if let Ok(text) = str::from_utf8(data)
        && let Ok(token) = Token::parse(text)
    {
        assert!(Token::parse(&token.to_text()).is_ok());
    }
}

/// A file where a segment should be: refused, or read to a place that is said.
pub fn segment(data: &[u8]) {
    let path = temporary(data);
    for kind in [Kind::Log, Kind::Spool, Kind::Archive] {
        // The golden segment's key: what is left of it opens.
        let Ok(reader) = SegmentReader::open(&path, &Secret::new([1; 32]), kind) else {
            continue;
        };
        let mut cursor = reader.start();
        for _ in 0..1000 {
            let at = cursor;
            match reader.next(&mut cursor) {
                Ok(Next::Record(record)) => {
                    assert!(reader.read(record.place).is_ok());
                }
                Ok(Next::End | Next::Torn { .. }) => break,
                Err(_) => match reader.skip(&mut cursor, at) {
                    Ok(true) => {}
                    Ok(false) | Err(_) => break,
                },
            }
        }
    }
}

/// What was typed into the search bar, and a line it is looked for in.
pub fn query(data: &[u8]) {
    let (text, line) = match data.iter().position(|&byte| byte == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, data),
    };
    let Ok(query) = str::from_utf8(text)
        .map_err(drop)
        .and_then(|text| Query::parse(text).map_err(drop))
    else {
        return;
    };
    // A search skips what the filter of a block says cannot match: it must not skip a match.
    if query.matches(line) {
        let mut filter = FilterBuilder::new();
        filter.add(line);
        assert!(may_hold(&filter.build(), &query.tokens()));
    }
}

/// The configuration files of both programs, and the one a server sends.
pub fn configuration(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let _outcome = scrinium_server::config::Config::parse(text);
    let local = scrinium_agent::config::Config::parse(text);
    let central = scrinium_agent::config::Config::parse_central(text);
    assert!(
        central.is_err() || local.is_ok(),
        "the server may say less, never more"
    );
}

/// A source's bookmark, after it was with the server.
pub fn bookmark(data: &[u8]) {
    if let Ok(bookmark) = Bookmark::decode(data) {
        let again = Bookmark::decode(&bookmark.encode());
        assert_eq!(again.as_ref(), Ok(&bookmark));
    }
}

/// An interval, and a checkpoint as it is kept elsewhere: what is read is what is written, and nothing but what
/// the key signed is believed.
pub fn evidence(data: &[u8]) {
    if let Ok(interval) = Interval::decode(data, "interval") {
        let again = interval.encoded();
        assert!(data.starts_with(&again));
        assert_eq!(Interval::decode(&again, "interval"), Ok(interval));
    }
    let Ok(note) = str::from_utf8(data) else {
        return;
    };
    let key = SigningKey::from_bytes(&[5; 32]);
    if let Ok(checkpoint) = Checkpoint::of_note(note, &key.verifying_key()) {
        // Ed25519 signs one text one way: whoever can make such a note holds the key.
        let own = checkpoint.to_note(&key);
        assert!(note.starts_with(own.lines().next().unwrap_or_default()));
        assert_eq!(
            Checkpoint::of_note(&own, &key.verifying_key()),
            Ok(checkpoint)
        );
    }
    let inclusion = Inclusion {
        leaf: data.to_vec(),
        path: data.as_chunks::<32>().0.to_vec(),
        note: note.to_owned(),
    };
    let _verdict = inclusion.check(StreamId([1; 16]), &key.verifying_key());
}

/// A file where a package should be: a verdict, and only what is written in the one way there is is whole. Bytes that begin
/// with `S` or `D` are of one who forges: a package in which the rest replaces members' bytes, signed anew, with `D`
/// without evidence, so that it may be whole.
pub fn package(data: &[u8]) {
    static GOLDEN: OnceLock<Parts> = OnceLock::new();
    let check = |bytes: &[u8]| {
        let path = temporary(bytes);
        let file = std::fs::File::open(path).expect("it was just written");
        let checked = scrinium_verify::package::check(&file, &Default::default());
        let Ok(checked) = checked else {
            assert!(
                bytes.starts_with(b"age-encryption.org/v1"),
                "it can be read"
            );
            return;
        };
        if checked.verdict.whole {
            assert!(Parts::of(bytes).packed() == bytes, "one way to write it");
        } else {
            assert!(!checked.verdict.problems.is_empty(), "why it is not whole");
        }
    };
    check(data);
    let Some((&how @ (b'S' | b'D'), mut ops)) = data.split_first() else {
        return;
    };
    let golden = include_bytes!("../vectors/packages/package-3-query.tar");
    let mut parts = GOLDEN.get_or_init(|| Parts::of(golden)).clone();
    // Each operation: which member, where in its text, and what stands there then.
    while let Some((&[member, high, low, byte], rest)) = ops.split_first_chunk::<4>() {
        ops = rest;
        let at = usize::from(u16::from_be_bytes([high, low]));
        let count = parts.members.len();
        let name = parts.members[usize::from(member) % count].0.clone();
        let mut text = match name.ends_with(".gz") {
            true => parts.text(&name),
            false => parts.get(&name).to_vec(),
        };
        if name == "manifest.sig" || text.is_empty() {
            continue;
        }
        let at = at % text.len();
        text[at] = byte;
        if name == "manifest.json" && !is_manifest(&text) {
            continue;
        }
        let content = if name.ends_with(".gz") {
            gzip(&text)
        } else {
            text
        };
        parts.set(&name, content);
    }
    let key = SigningKey::from_bytes(&[7; 32]);
    match how {
        b'S' => parts.sign(&key),
        _ => parts.disown(|_| {}, &key),
    }
    check(&parts.packed());
}

/// Whether whoever forges can go on with it.
fn is_manifest(text: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(text).is_ok_and(|manifest| {
        let streams = manifest
            .get("streams")
            .and_then(|streams| streams.as_array());
        streams.is_some_and(|streams| streams.iter().all(serde_json::Value::is_object))
    })
}

/// One batch of a package, as far as it is shown.
pub fn excerpt(data: &[u8]) {
    if let Ok(excerpt) = Excerpt::decode(data, "excerpt") {
        assert_eq!(excerpt.encoded(), data);
        let key = SigningKey::from_bytes(&[5; 32]).verifying_key();
        let _verdict = excerpt.open(&key);
    }
}

/// The answer of a time-stamp authority, whom nobody trusts and whom somebody trusts.
pub fn stamp(data: &[u8]) {
    for authorities in [None, Some(data)] {
        let _verdict = scrinium_verify::token::check(data, data, authorities);
    }
}

/// A block of the archive.
pub fn block(data: &[u8]) {
    assert_ne!(scrinium_server::formats::block(data), Some(false));
}

/// The index of a segment of the archive.
pub fn index(data: &[u8]) {
    assert_ne!(scrinium_server::formats::index(data), Some(false));
}

/// A file of these bytes, the same one every time, in memory where there is such a place.
fn temporary(data: &[u8]) -> std::path::PathBuf {
    let memory = std::path::Path::new("/dev/shm");
    let dir = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    let path = dir.join(format!("scrinium-fuzz-{}", std::process::id()));
    let written = std::fs::File::create(&path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, data));
    written.expect("a temporary file");
    path
}
