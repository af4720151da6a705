//! No request takes the machine, and no sender owns the view.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use scrinium_protocol::batch::{BatchBuilder, StreamPosition};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::compress::Compressor;
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::identity::{Epoch, StreamId, StreamKind};
use scrinium_protocol::sl::message::Lane;
use scrinium_protocol::sl::session::AgentEvent;
use scrinium_protocol::token::Token;
use scrinium_tests::client::Client;
use scrinium_tests::console::Console;
use scrinium_tests::lab::{
    Lab, PASSWORD, cpu_seconds, forget_peak, peak_bytes, resident_bytes, text,
};
use scrinium_tests::{has_tool, now, pause, unix_s, wait_until};
use serde_json::Value;

/// 480 MB of lines that are 2 MiB on the disk: whoever asks for all of them gets them, newest first and once, and the
/// server needs the memory of a page. When the one who asked is gone, it stops.
#[test]
fn a_search_takes_the_memory_of_a_page_and_ends_with_who_asked() {
    let lab = Lab::start("pages");
    let long = "x".repeat(60_000);
    send_lines(
        &lab,
        (0..8000).map(|number| format!("number {number:05} {long}")),
    );
    wait_until("all is archived", Duration::from_secs(60), || {
        lab.count("number") == 8000
    });
    let server = lab.server_pid();
    let before = resident_bytes(server);
    forget_peak(server);
    for format in ["raw", "csv", "json"] {
        let found = found_numbers(&lab, format);
        assert_eq!(found.len(), 8000, "{format}");
        let newest_first = found.iter().rev().copied();
        assert!(newest_first.eq(0..8000), "{format}");
    }
    let peak = peak_bytes(server);
    eprintln!(
        "{} MiB before, {} MiB at the peak, {} MiB after",
        before >> 20,
        peak >> 20,
        resident_bytes(server) >> 20
    );
    assert!(peak < PEAK_MAX, "{peak} bytes");
    wait_until("memory goes back", Duration::from_secs(10), || {
        resident_bytes(server) < before + (64 << 20)
    });

    // Thirty words that are nowhere, each compared with all of it: a search of many seconds.
    let words: Vec<String> = (0..30).map(|number| format!("-nowhere{number}")).collect();
    let query = format!("number {}", words.join(" "));
    let begun = cpu_seconds(server);
    let asking = search(&lab, &[&query, "--count"]);
    ends_with_its_client(server, asking, begun);
}

/// An answer whose end does not come is an error, however much of it came.
#[test]
fn an_answer_that_breaks_off_is_an_error() {
    let mut lab = Lab::start("broken-off");
    let long = "x".repeat(60_000);
    send_lines(
        &lab,
        (0..300).map(|number| format!("number {number} {long}")),
    );
    wait_until("all is archived", Duration::from_secs(30), || {
        lab.count("number") == 300
    });
    let mut asking = search(&lab, &["number"]);
    let mut out = asking.stdout.take().unwrap();
    let mut some = vec![0; 70_000];
    out.read_exact(&mut some).unwrap();
    lab.kill_server();
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    let ended = asking.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let said = text(&ended.stderr);
    assert!(said.contains("broke off"), "{said}");
}

/// Four accounts that take their downloads as slowly as they may held all places, for everybody.
#[test]
fn accounts_that_read_slowly_leave_answers_to_everybody_else() {
    if !has_tool("curl") {
        return;
    }
    let lab = Lab::start("slow-readers");
    let long = "x".repeat(60_000);
    send_lines(
        &lab,
        (0..600).map(|number| format!("number {number:05} {long}")),
    );
    wait_until("all is archived", Duration::from_secs(60), || {
        lab.count("number") == 600
    });
    let mut held = Vec::new();
    let sign_in = |user: &str| {
        lab.add_user(user, PASSWORD);
        Console::sign_in_as(&lab, user, PASSWORD)
    };
    for user in ["slow1", "slow2", "slow3", "slow4"] {
        let console = sign_in(user);
        for number in 0..4 {
            let file = lab.dir.join(format!("{user}-{number}"));
            let path = match number {
                0 => "/export?q=number",
                _ => "/search/raw?q=number&range=all",
            };
            // A little more than what ends a connection.
            let download = console.begin(path, &file, 20 << 10);
            held.push((download, file));
        }
    }
    let honest = sign_in("honest");
    let begun = |(_, file): &&(Child, PathBuf)| file.metadata().is_ok_and(|file| file.len() > 0);
    // As many as four accounts can take.
    wait_until("places are taken", Duration::from_secs(40), || {
        held.iter().filter(begun).count() >= 12
    });
    let asked = now();
    let found = honest.get("/api/v1/search?q=number&range=all&limit=1");
    assert!(found.contains("number 00599"), "{found}");
    let file = lab.dir.join("honest.tar");
    assert_eq!(honest.download("/export?q=%22number+00007%22", &file), 200);
    assert!(std::fs::read(&file).unwrap().starts_with(b"manifest.json"));
    assert_eq!(lab.count("number"), 600);
    let took = now().duration_since(asked);
    assert!(took < Duration::from_secs(10), "{took:?}");
    for (mut download, _) in held {
        download.kill().unwrap();
        download.wait().unwrap();
    }
}

/// Five accounts that searched without end held all places for 20 s at a time: a sixth one's search waited for theirs.
#[test]
fn a_sixth_account_searches_while_five_search_without_end() {
    if !has_tool("curl") {
        return;
    }
    let lab = Lab::start("fair-turns");
    let long = "x".repeat(2000);
    send_lines(
        &lab,
        (0..20_000).map(|number| format!("number {number:05} {long}")),
    );
    wait_until("all is archived", Duration::from_secs(60), || {
        lab.count("number") == 20_000
    });
    assert!(lab.server(&["compact"]).status.success());
    send_lines(
        &lab,
        (0..30).map(|number| format!("needle{number} is here")),
    );
    wait_until("these too", Duration::from_secs(20), || {
        lab.count("\"is here\"") == 30
    });
    let sign_in = |user: &str| {
        lab.add_user(user, PASSWORD);
        Console::sign_in_as(&lab, user, PASSWORD)
    };
    // Compared with all of it; each that ends is begun again.
    let words: Vec<String> = (0..8).map(|number| format!("-nowhere{number}")).collect();
    let heavy = format!(
        "/api/v1/search?q=number+{}&range=all&limit=1",
        words.join("+")
    );
    let endless: Vec<Console> = (0..5).map(|n| sign_in(&format!("endless{n}"))).collect();
    let small = sign_in("small");
    let asked = |console: &Console, n: usize| {
        let file = lab.dir.join(format!("endless-{n}"));
        console.begin(&heavy, &file, 16 << 10)
    };
    let mut under_way: Vec<Child> = (0..10).map(|n| asked(&endless[n / 2], n)).collect();
    wait_until("all search", Duration::from_secs(20), || {
        lab.metric("scrinium_searches_waiting ") >= 5
    });
    let mut waits = Vec::new();
    for number in 0..30 {
        for (n, search) in under_way.iter_mut().enumerate() {
            if search.try_wait().unwrap().is_some() {
                *search = asked(&endless[n / 2], n);
            }
        }
        let begun = now();
        let found = small.get(&format!(
            "/api/v1/search?q=needle{number}&range=15m&limit=1"
        ));
        assert!(found.contains("is here"), "{found}");
        waits.push(now().duration_since(begun));
    }
    for mut search in under_way {
        search.kill().unwrap();
        search.wait().unwrap();
    }
    waits.sort();
    let p99 = waits[waits.len() - 1];
    eprintln!(
        "a small search beside ten endless ones: median {:?}, p99 {p99:?}",
        waits[15]
    );
    assert!(p99 < Duration::from_secs(4), "{waits:?}");
    assert!(waits[15] < Duration::from_secs(2), "{waits:?}");
}

/// Each package of what grew since the last one published an interval, and all of them are kept for ever.
#[test]
fn packages_of_what_grows_share_intervals() {
    let lab = Lab::start("export-shares");
    send_lines(&lab, ["it grows".to_owned()]);
    wait_until("it is archived", Duration::from_secs(20), || {
        lab.count("grows") == 1
    });
    let intervals = || lab.metric("scrinium_intervals_total ");
    let (before, begun) = (intervals(), now());
    let is_over = AtomicBool::new(false);
    let make = |name: String| {
        let file = lab.dir.join(name).display().to_string();
        let output = lab.server(&["export", "--query", "grows", "--out", &file]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    let make = &make;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                send_lines(&lab, ["it grows".to_owned()]);
                pause(Duration::from_millis(20));
            }
        });
        let makers: Vec<_> = (0..4)
            .map(|maker| scope.spawn(move || (0..4).for_each(|n| make(format!("{maker}-{n}.tar")))))
            .collect();
        let made: Vec<_> = makers.into_iter().map(|maker| maker.join()).collect();
        is_over.store(true, Ordering::Relaxed);
        assert!(made.iter().all(Result::is_ok));
    });
    let (made, seconds) = (intervals() - before, now().duration_since(begun).as_secs());
    assert!(made >= 1, "each of them has all that was there");
    // One at once, one each three seconds, and perhaps one of those that come by themselves.
    assert!(made <= seconds / 3 + 2, "{made} in {seconds} s");
}

/// An export read all of the archive, several times, for a client that was gone; and each one published an interval.
#[test]
fn an_export_ends_with_who_asked_and_publishes_nothing_that_is_sealed() {
    let lab = Lab::start("export-ends");
    send_lines(&lab, ["quiet one".to_owned()]);
    wait_until("it is archived", Duration::from_secs(20), || {
        lab.count("quiet") == 1
    });
    let intervals = || lab.metric("scrinium_intervals_total ");
    let export = |query: &str, file: &str| {
        let file = lab.dir.join(file).display().to_string();
        let words = ["export", "--query", query, "--out", &file];
        lab.server_command(&words)
    };
    let made = |query: &str, number: u32| {
        let output = export(query, &format!("{number}.tar")).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    made("quiet", 0);
    let before = intervals();
    for number in 1..6 {
        made("quiet", number);
    }
    assert_eq!(intervals(), before);
    send_lines(&lab, ["quiet two".to_owned()]);
    wait_until("it is archived", Duration::from_secs(20), || {
        lab.count("quiet") == 2
    });
    made("quiet", 6);
    assert_eq!(intervals(), before + 1);

    let long = "x".repeat(60_000);
    send_lines(
        &lab,
        (0..4000).map(|number| format!("number {number:05} {long}")),
    );
    wait_until("all is archived", Duration::from_secs(60), || {
        lab.count("number") == 4000
    });
    let server = lab.server_pid();
    let begun = cpu_seconds(server);
    let asking = export("number", "left.tar").spawn().unwrap();
    ends_with_its_client(server, asking, begun);
    let log = std::fs::read_to_string(lab.dir.join("server.out")).unwrap();
    assert!(
        log.contains("an export ended: whoever asked went away"),
        "{log}"
    );
}

/// Lines that are nothing but what is looked for, with another letter before: each place of each line may be it.
#[test]
fn a_query_that_nearly_matches_everywhere_is_answered_quickly() {
    let lab = Lab::start("bomb");
    let words = "aa ".repeat(20_000);
    let lines = (0..64).map(|number| match number % 2 {
        0 => format!("b{}", "a".repeat(60_000)),
        _ => words.clone(),
    });
    send_lines(&lab, lines.chain(["the end".to_owned()]));
    wait_until("all is archived", Duration::from_secs(30), || {
        lab.count("\"the end\"") == 1
    });
    let begun = cpu_seconds(lab.server_pid());
    let long = "a".repeat(256);
    // What begins in a word, ends in one, and does both; the last word of a phrase that is never the last.
    let phrase = format!("\"{}a\"", "aa ".repeat(80));
    for query in [&long, &format!("{}*", "a".repeat(255)), &phrase, "\"a aa\""] {
        assert_eq!(lab.count(query), 0, "{query}");
    }
    assert_eq!(lab.count(&format!("\"{}aa\"", "aa ".repeat(80))), 32);
    let used = cpu_seconds(lab.server_pid()) - begun;
    assert!(used < 5.0, "{used} s of processor");
    let refused = lab.server(&["search", &"a".repeat(257)]);
    assert!(!refused.status.success());
    let said = text(&refused.stderr);
    assert!(said.contains("257 bytes and may have 256"), "{said}");
}

/// More matches than are given: each way to ask says so where its answer ends.
#[test]
fn an_answer_that_is_not_all_says_so_where_it_ends() {
    let lab = Lab::start("cut");
    let tail = "served in 12 ms";
    send_lines(
        &lab,
        (0..100_400).map(|number| format!("request {number} {tail}")),
    );
    wait_until("all is archived", Duration::from_secs(60), || {
        lab.count("request") == 100_400
    });
    for format in ["raw", "csv", "json"] {
        let found = lab.server(&["search", "request", "--format", format]);
        let said = text(&found.stderr);
        assert!(
            said.contains("the newest 1000 entries were given, and there are older ones"),
            "{said}"
        );
        assert!(found.status.success());
        let lines = text(&found.stdout);
        let expected = 1000 + usize::from(format != "raw");
        assert_eq!(lines.lines().count(), expected, "{format}");
        if format == "json" {
            let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
            assert_eq!(last["partial"]["limit"], 1000);
        }
    }
    // Who asked for a number gets it, and hears that there is more.
    let found = lab.server(&["search", "request", "--format", "json", "--limit", "3"]);
    assert_eq!(text(&found.stdout).lines().count(), 3);
    assert!(text(&found.stderr).contains("the newest 3 entries"));
    // All of it is all of it.
    let found = lab.server(&["search", "request", "--limit", "100400"]);
    assert_eq!(text(&found.stderr), "");
    assert_eq!(text(&found.stdout).lines().count(), 100_400);

    let console = Console::sign_in(&lab, PASSWORD);
    let raw = console.get("/search/raw?q=request&range=all");
    assert_eq!(raw.lines().count(), 100_400);
    assert!(raw.lines().all(|line| line.contains(tail)));
    let answer: Value =
        serde_json::from_str(&console.get("/api/v1/search?q=request&range=all&limit=5")).unwrap();
    assert_eq!(answer["count"], 100_400);
    assert_eq!(answer["entries"].as_array().unwrap().len(), 5);
    assert_eq!(answer["left_out"]["limit"], 5);
    let answer: Value =
        serde_json::from_str(&console.get("/api/v1/search?q=%22request+7%22&range=all")).unwrap();
    assert_eq!(answer["entries"].as_array().unwrap().len(), 1);
    assert_eq!(answer["left_out"], serde_json::json!({}));
}

/// An agent that says that its lines were collected at the end of time stands where it was received: in order, in
/// ranges and on the overview, before the archive is sealed and after. What it said is kept, and marked.
#[test]
fn who_claims_the_future_does_not_own_the_view() {
    let lab = Lab::start("future");
    let token = Token::parse(&lab.token("liar", lab.sl)).unwrap();
    let mut client = Client::enrol(&token, lab.sl, 1);
    wait_until("it is ready", Duration::from_secs(10), || {
        let (_, stands) = client.breathe();
        stands && client.is_ready
    });
    let year_9999 = 253_370_764_800_000_000;
    let tomorrow = (unix_s() + 86_400) * 1_000_000;
    send_claims(
        &mut client,
        &[
            (0, "lie of the beginning"),
            (tomorrow, "lie of tomorrow"),
            (year_9999, "lie of a year"),
            (u64::MAX, "lie of the end"),
        ],
    );
    send_lines(&lab, (0..10).map(|number| format!("honest {number}")));
    wait_until(
        "the honest ones are archived",
        Duration::from_secs(20),
        || lab.count("honest") == 10,
    );
    let check = |lab: &Lab| {
        // What came later stands before it.
        let found = lab.search("");
        let honest = |entry: &Value| entry["text"].as_str().unwrap().contains("honest");
        assert_eq!(found.len(), 14);
        assert!(found[..10].iter().all(honest), "{found:?}");
        let claimed: Vec<&Value> = found.iter().map(|entry| &entry["time_claimed"]).collect();
        assert_eq!(claimed[10], "18446744073709551615 µs after 1970");
        assert_eq!(claimed[11], "9999-01-01T00:00:00.000Z");
        assert!(
            claimed[12].is_string() && claimed[13].is_null(),
            "{claimed:?}"
        );
        assert!(claimed[..10].iter().all(|claimed| claimed.is_null()));
        // They are found by when they were received, and by nothing else.
        for (range, count) in [
            (&["--from", "1h"][..], 3),
            (&["--from", "1h", "--to", "2100-01-01"], 3),
            (&["--to", "2020-01-01"], 1),
            (&["--from", "2100-01-01"], 0),
        ] {
            let words = [&["search", "lie", "--count"], range].concat();
            let counted = lab.server(&words);
            assert_eq!(text(&counted.stdout).trim(), count.to_string(), "{range:?}");
        }
        let csv = lab.server(&["search", "\"lie of a year\"", "--format", "csv"]);
        assert!(text(&csv.stdout).contains("\"9999-01-01T00:00:00.000Z\""));
        let console = Console::sign_in(lab, PASSWORD);
        let latest = console.get("/");
        let (_, latest) = latest.split_once("Latest entries").unwrap();
        assert!(
            latest.contains("honest 9") && !latest.contains("lie of"),
            "{latest}"
        );
        let page = console.get("/search?q=lie&range=1h");
        assert!(page.contains("says it was collected 9999-01-01"), "{page}");
        assert!(!page.contains("lie of the beginning"));
        // One claim of 1970 does not make the chart one of decades.
        let all = console.get("/search?q=&range=all");
        assert!(!all.contains("1970-01-01 00:00"), "{all}");
        assert!(all.contains("lie of the beginning"));
    };
    check(&lab);
    assert!(lab.server(&["compact"]).status.success());
    check(&lab);
    let exported = lab.export("liar", std::path::Path::new("/liar.log"));
    assert_eq!(text(&exported).lines().count(), 4);
    assert_eq!(lab.verify().0, 0);
}

/// Sends lines to the server's syslog port, one after the other.
fn send_lines(lab: &Lab, lines: impl IntoIterator<Item = String>) {
    let mut stream = TcpStream::connect(lab.syslog_tcp).unwrap();
    let mut buffer = Vec::new();
    for line in lines {
        buffer.extend_from_slice(format!("<13>{line}\n").as_bytes());
        if buffer.len() > 1 << 20 {
            stream.write_all(&buffer).unwrap();
            buffer.clear();
        }
    }
    stream.write_all(&buffer).unwrap();
}

/// One batch of lines that are claimed to have been collected at these times, acknowledged.
fn send_claims(client: &mut Client, lines: &[(u64, &str)]) {
    let id = StreamId::derive(client.agent, StreamKind::File, "/liar.log");
    let opened = client
        .session
        .send_stream_open(id, StreamKind::File, "/liar.log", now());
    opened.unwrap();
    let start = StreamPosition::start(client.agent, id, Epoch([7; 16]));
    let mut builder = BatchBuilder::new();
    for (time_us, line) in lines {
        let meta = EntryMeta {
            time_us: *time_us,
            flags: EntryFlags::NONE,
        };
        assert!(builder.push(format!("{line}\n").as_bytes(), meta));
    }
    let key = Client::signing();
    let (batch, _) = builder.seal(id, &start, Vec::new(), &key, &mut Compressor::new(1));
    let sent = client
        .session
        .send_batch(Lane::Live, &batch.header, batch.encoded(), now());
    sent.unwrap().unwrap();
    wait_until("the claims are acked", Duration::from_secs(10), || {
        let (events, _) = client.breathe();
        events
            .iter()
            .any(|event| matches!(event, AgentEvent::Acked(_)))
    });
}

/// Begins a search; nobody reads what it says yet.
fn search(lab: &Lab, words: &[&str]) -> Child {
    let mut command = lab.server_command(&[&["search"], words].concat());
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The numbers of the lines that a search for all of them gives, in its order.
fn found_numbers(lab: &Lab, format: &str) -> Vec<u32> {
    let mut asking = search(lab, &["number", "--limit", "1000000", "--format", format]);
    let out = std::io::BufReader::new(asking.stdout.take().unwrap());
    let lines = std::io::BufRead::lines(out);
    let number = |line: String| {
        let (_, rest) = line.split_once("number ")?;
        rest.get(..5)?.parse().ok()
    };
    let found = lines.filter_map(|line| number(line.unwrap())).collect();
    assert!(asking.wait().unwrap().success());
    found
}

/// What the server may have resident while it gives 480 MB to somebody: 8 MiB of lines, the blocks that its threads
/// take apart, and what it has anyway.
const PEAK_MAX: u64 = 256 << 20;

/// What the server does for `asking` since it had used `begun` seconds of processor ends when that is killed.
fn ends_with_its_client(server: u32, mut asking: Child, begun: f64) {
    wait_until("the server works", Duration::from_secs(20), || {
        cpu_seconds(server) > begun + 0.5
    });
    asking.kill().unwrap();
    asking.wait().unwrap();
    let killed = cpu_seconds(server);
    wait_until("the server stops working", Duration::from_secs(5), || {
        let before = cpu_seconds(server);
        pause(Duration::from_millis(300));
        cpu_seconds(server) - before < 0.05
    });
    let used = cpu_seconds(server) - killed;
    assert!(
        used < 1.0,
        "{used} s of processor after the client was gone"
    );
}
