//! Sessions of an agent that means no good: they end when they are told to, hold little memory, make no accusation that is
//! not true, and the trail says what they did in bounded room.

use std::time::Duration;

use scrinium_protocol::sl::message::Receipt;
use scrinium_protocol::sl::session::AgentEvent;
use scrinium_protocol::token::Token;
use scrinium_tests::client::Client;
use scrinium_tests::hostile::{Stream, enrol, enrol_as, wait_until_ready};
use scrinium_tests::lab::{Lab, resident_bytes, text};
use scrinium_tests::{now, wait_until};
use serde_json::Value;

/// All that had come was worked through before a session looked whether it was to end: thousands of batches, each of them a
/// few bytes that take milliseconds.
#[test]
fn a_session_that_always_has_something_to_read_ends_when_it_is_told_to() {
    let lab = Lab::start("hostile-deaf");
    let mut client = enrol(&lab);
    let server_public = server_public(&lab);
    flood(&mut client, "/a");
    // Another one of the same process takes its place at once.
    let begun = now();
    let mut second = client.known().connect(server_public, lab.sl);
    wait_until_ready(&mut second);
    assert!(now().duration_since(begun) < SOON, "replaced late");
    wait_until("the older one has ended", PATIENCE, || !client.breathe().1);
    flood(&mut second, "/b");
    let disabled = lab.server(&["agent", "disable", "evil1"]);
    assert!(disabled.status.success(), "{}", text(&disabled.stderr));
    let begun = now();
    wait_until("its session ends", PATIENCE, || !second.breathe().1);
    assert!(now().duration_since(begun) < SOON, "ended late");
    let archived = lab.metric("scrinium_entries_total ");
    assert!(archived < 2 * FLOOD * 4096, "all was read: {archived}");
    let (code, said) = lab.verify();
    assert_eq!(code, 0, "{said}");
}

/// Where each stream stands was made for all streams at once, in memory, for each connection; and a connection that took
/// nothing of it was deaf for two minutes.
#[test]
fn connections_that_nobody_reads_take_little_memory() {
    let lab = Lab::start("hostile-unread");
    let mut client = enrol(&lab);
    let server_public = server_public(&lab);
    let mut acked = 0;
    for n in 0..STREAMS {
        let mut stream = Stream::new(&client, &format!("/s{n}"));
        stream.open(&mut client);
        let bookmark = n.to_be_bytes().repeat(256);
        let batch = stream.seal(&[b"x\n"], bookmark);
        stream.send_batch(&mut client, batch);
        if n % 100 == 99 {
            client.push();
            wait_until("they are archived", PATIENCE, || {
                acked += receipts(&mut client).len();
                acked > n as usize
            });
        }
    }
    let known = client.leave();
    let before = resident_bytes(lab.server_pid());
    let connect = || {
        let client = known.connect(server_public, lab.sl);
        client.wait_for_word();
        client
    };
    let mut unread: Vec<Client> = (0..30).map(|_| connect()).collect();
    let mut last = connect();
    let mut stated = Vec::new();
    wait_until("the last one is told everything", PATIENCE, || {
        let (events, stands) = last.breathe();
        assert!(stands);
        for event in events {
            if let AgentEvent::StreamState { position, .. } = event {
                stated.push(position.bookmark);
            }
        }
        last.is_ready
    });
    let grown = resident_bytes(lab.server_pid()).saturating_sub(before);
    assert!(grown < 32 << 20, "{} KiB", grown >> 10);
    stated.sort();
    let expected = (0..STREAMS).map(|n| n.to_be_bytes().repeat(256));
    assert!(
        stated.into_iter().eq(expected),
        "each stream is stated once"
    );
    for client in &mut unread {
        wait_until("the older ones have ended", PATIENCE, || {
            !client.breathe().1
        });
        assert!(!client.is_ready);
    }
    assert_eq!(lab.agent("evil1")["state"], "connected");
}

/// What the archive had of epochs that an agent left was looked up once in a session; so a true receipt of one that it left
/// after that was an accusation: entries are missing.
#[test]
fn a_true_receipt_of_an_epoch_that_was_left_meanwhile_accuses_nobody() {
    let lab = Lab::start("hostile-epochs");
    let mut client = enrol(&lab);
    let mut stream = Stream::new(&client, "/x.log");
    stream.open(&mut client);
    let mut epoch = |client: &mut Client, epoch: u8| -> Receipt {
        stream.begin(client, epoch);
        stream.send(client);
        stream.send(client);
        let mut last = None;
        wait_until("it is archived", PATIENCE, || {
            let came = receipts(client).into_iter();
            last = came.last().or_else(|| last.take());
            last.as_ref().is_some_and(|receipt| receipt.next.0 == 2)
        });
        last.unwrap()
    };
    let first = epoch(&mut client, 1);
    epoch(&mut client, 2);
    client.session.send_receipt(first, now()).unwrap();
    let third = epoch(&mut client, 3);
    epoch(&mut client, 4);
    client.session.send_receipt(third, now()).unwrap();
    // What is archived after it says that it was looked at.
    epoch(&mut client, 5);
    assert_eq!(lab.alarms(), [] as [Value; 0]);
    assert_eq!(lab.trail("receipt for entries that are missing").len(), 0);
    let (code, said) = lab.verify();
    assert_eq!(code, 0, "{said}");
}

/// Each record that was spoiled was an entry of a trail that is kept for years.
#[test]
fn records_that_are_spoiled_again_and_again_are_a_few_entries_and_a_sum() {
    let mut lab = Lab::start("hostile-spoiled");
    let mut client = enrol(&lab);
    let server_public = server_public(&lab);
    for _ in 0..SPOILED {
        client.spoil();
        wait_until("its session ends", PATIENCE, || !client.breathe().1);
        client = client.leave().connect(server_public, lab.sl);
        wait_until_ready(&mut client);
    }
    wait_until("the alarm counts them all", PATIENCE, || {
        let alarms = lab.alarms();
        let mut of_spoils = alarms
            .iter()
            .filter(|alarm| alarm["kind"] == "interference");
        of_spoils.any(|alarm| alarm["count"] == SPOILED)
    });
    lab.stop_server();
    lab.start_server();
    let single = lab.trail("interference on the wire");
    let sums = lab.trail("interference on the wire, in sum");
    assert_eq!((single.len(), sums.len()), (24, 1), "{sums:?}");
    assert_eq!(sums[0]["detail"]["agent"], "evil1");
    assert_eq!(count(&sums), SPOILED - 24);
}

/// What an agent was over the limit of a day was counted, and nowhere in the trail.
#[test]
fn an_agent_that_comes_with_another_machine_each_time_is_a_few_entries_and_a_sum() {
    let mut lab = Lab::start("hostile-machines");
    let hello = |n: u8| {
        let mut hello = Client::hello(1);
        hello.fingerprint = vec![("disk".into(), [n; 16]), ("board".into(), [0; 16])];
        hello
    };
    let mut client = enrol_as(&lab, hello(0));
    let server_public = server_public(&lab);
    for n in 1..=40 {
        let known = client.leave();
        client = known.connect_as(server_public, lab.sl, hello(n));
        wait_until_ready(&mut client);
    }
    assert_eq!(lab.trail("machine changed").len(), 24);
    lab.stop_server();
    lab.start_server();
    let sums = lab.trail("machine changed or state of before, in sum");
    assert_eq!((sums.len(), count(&sums)), (1, 16), "{sums:?}");
}

/// Batches of few bytes that take long, all of them in the server's socket or on the way to it.
fn flood(client: &mut Client, name: &str) {
    let mut stream = Stream::new(client, name);
    stream.open(client);
    let batch = stream.seal(&[b"".as_slice(); 4096], Vec::new());
    for _ in 0..FLOOD {
        stream.send_batch(client, batch.clone());
    }
    client.push();
}

fn server_public(lab: &Lab) -> [u8; 32] {
    let token = Token::parse(&lab.token("nobody1", lab.sl)).unwrap();
    token.server_public
}

/// Receipts that came.
fn receipts(client: &mut Client) -> Vec<Receipt> {
    let (events, stands) = client.breathe();
    assert!(stands, "the session stands");
    let mut receipts = Vec::new();
    for event in events {
        if let AgentEvent::Acked(receipt) = event {
            receipts.push(receipt);
        }
    }
    receipts
}

/// What sums of the trail count together.
fn count(sums: &[Value]) -> u64 {
    sums.iter()
        .map(|sum| sum["detail"]["count"].as_u64().unwrap())
        .sum()
}

/// Batches that are sent at once; as many as the window takes.
const FLOOD: u64 = 1500;
/// With their bookmarks more than the buffers of a connection take.
const STREAMS: u32 = 8000;
const SPOILED: u64 = 40;
/// Far less than the batches that wait take.
const SOON: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_secs(60);
