//! What strangers and one agent do to everybody else: nothing.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use scrinium_protocol::identity::{StreamId, StreamKind};
use scrinium_protocol::sl::session::AgentEvent;
use scrinium_protocol::token::Token;
use scrinium_tests::client::Client;
use scrinium_tests::console::Console;
use scrinium_tests::lab::{Lab, PASSWORD, peak_bytes, resident_bytes, text};
use scrinium_tests::strangers::{
    Browser, Greedy, address, browse, connect, open_many_streams, send,
};
use scrinium_tests::{has_tool, now, pause, wait_until};

/// 1,040 connections that say nothing took all places for as long as they stayed, and nothing was said.
#[test]
fn idle_senders_make_room_for_those_that_speak_and_it_is_said() {
    scrinium_segment::process::raise_descriptors();
    let lab = Lab::start("strangers-idle");
    let mut steady = TcpStream::connect(lab.syslog_tcp).unwrap();
    steady.write_all(b"<13>steadybefore\n").unwrap();
    wait_for_line(&lab, "steadybefore");
    let strangers: Vec<TcpStream> = (0..1040)
        .filter_map(|_| connect(Ipv4Addr::LOCALHOST, lab.syslog_tcp))
        .collect();
    assert_eq!(strangers.len(), 1040);
    for source in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 9)] {
        let word = format!("victim{}", source.octets()[3]);
        let mut victim = connect(source, lab.syslog_tcp).unwrap();
        victim
            .write_all(format!("<13>{word}\n").as_bytes())
            .unwrap();
        wait_for_line(&lab, &word);
    }
    // Who spoke a moment ago keeps the connection, of the same crowded address.
    steady.write_all(b"<13>steadyafter\n").unwrap();
    wait_for_line(&lab, "steadyafter");
    let said = lab.wait_for_alarm("places-short", "");
    assert!(
        said.contains("syslog") && said.contains("closed to make room"),
        "{said}"
    );
    assert!(said.contains("127.0.0.1"), "{said}");
    wait_until("the archive is told", Duration::from_secs(20), || {
        lab.count("stream:\"tcp listeners\" gap closed") >= 1
    });
    let log = std::fs::read_to_string(lab.dir.join("server.out")).unwrap();
    let lines = log
        .lines()
        .filter(|line| line.contains("syslog connections:"));
    assert!(
        (1..10).contains(&lines.count()),
        "said, and not for each: {log}"
    );
    drop(strangers);
}

/// Long lines over a few connections, faster than they can be archived: they wait, in bounded memory, and none is lost.
#[test]
fn long_lines_of_a_few_senders_take_bounded_memory() {
    let lab = Lab::start("strangers-long");
    let line = format!("<34>1 - host app - - - {} longword\n", "x".repeat(60_000));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut sender = TcpStream::connect(lab.syslog_tcp).unwrap();
                for _ in 0..2000 {
                    sender.write_all(line.as_bytes()).unwrap();
                }
            });
        }
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..5000 {
            // What does not fit into the kernel's queue is counted there.
            let _dropped = datagrams.send_to(line.as_bytes(), lab.syslog_udp);
        }
    });
    wait_until("every line is archived", Duration::from_secs(60), || {
        lab.count("longword stream:\"127.0.0.1\"") >= 4000
    });
    let peak = peak_bytes(lab.server_pid());
    assert!(peak < 256 << 20, "{} MiB", peak >> 20);
}

/// What a sender sent before it was closed for another one is kept: a whole message and the begin of one.
#[test]
fn what_a_displaced_sender_sent_is_kept() {
    let lab = Lab::start_with(
        "strangers-kept",
        "[limits]\nsyslog_connections_max = 4\nsyslog_connections_each_max = 2",
    );
    let mut first = connect(address(1), lab.syslog_tcp).unwrap();
    first.write_all(b"<13>halfmessage").unwrap();
    wait_until("it is read", Duration::from_secs(10), || {
        receive_queue_is_empty(&first, &lab)
    });
    let _others: Vec<TcpStream> = (0..2)
        .map(|_| connect(address(1), lab.syslog_tcp).unwrap())
        .collect();
    wait_for_line(&lab, "halfmessage");
}

/// Refusals of this listener were told nobody.
#[test]
fn the_metrics_listener_says_whom_it_refused() {
    let lab = Lab::start("strangers-metrics");
    let held: Vec<TcpStream> = (0..12)
        .filter_map(|_| connect(address(3), lab.metrics))
        .collect();
    let said = lab.wait_for_alarm("places-short", "");
    assert!(
        said.contains("The metrics listener did not serve everybody"),
        "{said}"
    );
    drop(held);
    let gone = lab.metric("scrinium_connections_displaced_total{listener=\"metrics\"} ");
    let refused = lab.metric("scrinium_connections_refused_total{listener=\"metrics\"} ");
    assert_eq!(gone + refused, 4, "of one address 8 are served");
}

/// 512 connections with half a form closed the console, the health check included, for as long as wanted.
#[test]
fn half_sent_forms_do_not_close_the_console() {
    if !has_tool("curl") {
        return;
    }
    scrinium_segment::process::raise_descriptors();
    let lab = Lab::start("strangers-forms");
    let console = Console::sign_in(&lab, PASSWORD);
    assert!(console.get("/").contains("sign-out"));
    let form = "POST /sign-in HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 1000\r\n\r\nuser=a";
    // From one address, the person's own, and from many.
    let from = |n: u32| match n {
        0..200 => Ipv4Addr::LOCALHOST,
        _ => address(n % 50),
    };
    let mut held: Vec<Browser> = (0..700)
        .filter_map(|n| browse(from(n), lab.console, form))
        .collect();
    assert!(held.len() > 600, "{}", held.len());
    let mut waits = Vec::new();
    for _ in 0..20 {
        let begun = now();
        assert!(console.get("/agents").contains("sign-out"));
        assert_eq!(health(&lab, address(2000)), "200");
        waits.push(now().duration_since(begun));
    }
    waits.sort();
    assert!(waits[18] < Duration::from_secs(3), "{waits:?}");
    let said = lab.wait_for_alarm("places-short", "");
    assert!(said.contains("console"), "{said}");
    // The last one, which nobody displaced, ends by itself.
    let mut last = held.pop().unwrap();
    last.sock
        .set_read_timeout(Some(Duration::from_secs(75)))
        .unwrap();
    let mut answer = String::new();
    let _broken = last.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer:?}");
}

/// Who asks for a large answer and takes none of it is cut off, and so is who takes a little; who takes it slowly is not.
#[test]
fn an_answer_that_nobody_takes_ends_and_a_slow_one_does_not() {
    let lab = Lab::start("strangers-reader");
    // Many small answers, asked for at once: more than the sockets hold.
    let ask = "GET /assets/style.css HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3000);
    let mut deaf = browse(address(1), lab.console, "").unwrap();
    let mut slow = browse(address(2), lab.console, "").unwrap();
    let mut dribbling = browse(address(3), lab.console, "").unwrap();
    for browser in [&mut deaf, &mut slow, &mut dribbling] {
        let limit = Some(Duration::from_millis(500));
        browser.sock.set_write_timeout(limit).unwrap();
        browser
            .sock
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        // As much of it as the server takes before it waits for us.
        let _full = browser.write_all(ask.as_bytes());
        let _full = browser.flush();
    }
    let mut taken = 0;
    let mut buffer = vec![0; 16 << 10];
    let begun = now();
    let mut open = 3;
    let mut cut = Vec::new();
    let what = "the deaf and the dribbling one are cut off";
    wait_until(what, Duration::from_secs(120), || {
        // 64 KiB a second, and 4.
        for _ in 0..2 {
            taken += slow.read(&mut buffer).expect("it goes on");
        }
        let _some_or_none = dribbling.read(&mut buffer[..2048]);
        pause(Duration::from_millis(500));
        if open_connections(&lab) < open {
            open -= 1;
            cut.push(now().duration_since(begun));
        }
        open == 1
    });
    assert!(cut[0] > Duration::from_secs(20), "{cut:?}");
    assert!(slow.read(&mut buffer).unwrap() > 0 && taken > 0);
}

/// Each spoofed address was a stream for ever.
#[test]
fn new_senders_past_the_limit_of_a_day_share_a_stream_and_keep_their_address() {
    let lab = Lab::start_with(
        "strangers-udp",
        "[limits]\nsyslog_new_senders_per_day_max = 50",
    );
    send(Ipv4Addr::LOCALHOST, lab.syslog_udp, "<13>honest before");
    wait_for_line(&lab, "before");
    for n in 0..500 {
        send(
            address(n),
            lab.syslog_udp,
            &format!("<11>Nov 27 10:00:00 forged app: spoofed{n}"),
        );
        pause(Duration::from_millis(1));
    }
    send(Ipv4Addr::LOCALHOST, lab.syslog_udp, "<13>honest after");
    wait_until("all is found", Duration::from_secs(20), || {
        lab.count("forged") == 500
    });
    assert_eq!(lab.count("honest"), 2);
    assert_eq!(lab.count("stream:\"unknown senders\" forged"), 451);
    let hit = &lab.search("stream:\"unknown senders\" spoofed499")[0];
    let sent = "<11>Nov 27 10:00:00 forged app: spoofed499";
    assert_eq!(hit["text"], format!("from {}: {sent}", address(499)));
    assert_eq!(
        (&hit["severity"], &hit["app"]),
        (&"error".into(), &"app".into()),
        "{hit}"
    );
    assert!(
        lab.wait_for_alarm("many-senders", "")
            .contains("451 entries")
            || lab.alarms().len() == 1
    );
    assert!(streams(&lab) < 60, "{}", streams(&lab));
    let (code, said) = lab.verify();
    assert_eq!(code, 0, "{said}");
}

/// An agent that opened 25,000 streams with long names and sent nothing had them all, durably.
#[test]
fn a_hostile_agent_opens_streams_for_nothing() {
    let lab = Lab::start("strangers-agent");
    let token = Token::parse(&lab.token("evil1", lab.sl)).unwrap();
    let before = resident_bytes(lab.server_pid());
    let mut client = Client::enrol(&token, lab.sl, 1);
    let mut opened: u32 = 0;
    let mut reason = None;
    wait_until("the agent is told", Duration::from_secs(30), || {
        let (events, stands) = client.breathe();
        reason = reason.take().or_else(|| {
            events.into_iter().find_map(|event| {
                if let AgentEvent::Closed { reason } = event {
                    Some(reason)
                } else {
                    None
                }
            })
        });
        for _ in 0..20 {
            if client.is_ready && stands && opened < 25_000 {
                let name = format!("/{opened}{}", "x".repeat(4000));
                let id = StreamId::derive(client.agent, StreamKind::File, &name);
                let sent = client
                    .session
                    .send_stream_open(id, StreamKind::File, &name, now());
                sent.unwrap();
                opened += 1;
            }
        }
        reason.is_some() || !stands
    });
    let reason = reason.expect("a reason");
    assert!(reason.contains("1024 streams"), "{reason}");
    let said = lab.wait_for_alarm("too-many-streams", "evil1");
    assert!(said.contains("1024"), "{said}");
    let grown = resident_bytes(lab.server_pid()).saturating_sub(before);
    assert!(grown < 48 << 20, "{grown}");
    assert!(streams(&lab) < 10, "{}", streams(&lab));
}

/// Over its budget an agent is told, an alarm is raised, and what it has goes on.
#[test]
fn an_agent_over_its_budget_goes_on_with_the_streams_it_has() {
    let mut lab = Lab::start_with("strangers-budget", "[limits]\nagent_streams_max = 3");
    lab.add_agent("web1", lab.sl, "");
    let old = [lab.log("a.log"), lab.log("b.log")];
    lab.write("logs/a.log", b"a before\n");
    lab.write("logs/b.log", b"b before\n");
    lab.start_agent("web1");
    for path in &old {
        lab.wait_for_bytes("web1", path, 9, Duration::from_secs(20));
    }
    wait_until(
        "the agent's own stream is there",
        Duration::from_secs(20),
        || streams_of(&lab, "agent:web1 stream:scrinium-agent") > 0,
    );
    for n in 0..5 {
        lab.write(&format!("logs/new{n}.log"), format!("new {n}\n").as_bytes());
    }
    let said = lab.wait_for_alarm("too-many-streams", "web1");
    assert!(said.contains("limits.agent_streams_max"), "{said}");
    let told = lab.wait_for_alarm("agent-trouble", "web1");
    assert!(told.contains("limits.agent_streams_max"), "{told}");
    let mut expected = b"a before\n".to_vec();
    for n in 0..20 {
        let line = format!("a goes on {n}\n");
        let file = std::fs::File::options().append(true).open(&old[0]);
        file.unwrap().write_all(line.as_bytes()).unwrap();
        expected.extend_from_slice(line.as_bytes());
    }
    lab.wait_for_bytes("web1", &old[0], expected.len(), Duration::from_secs(20));
    assert!(lab.export("web1", &old[0]) == expected);
    assert_eq!(lab.count("agent:web1 new"), 0);
    // With a budget that is large enough everything is there, once.
    lab.stop_agent("web1");
    lab.stop_server();
    let config = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    lab.write(
        "server.toml",
        config.replace("max = 3", "max = 30").as_bytes(),
    );
    lab.start_server();
    lab.start_agent("web1");
    for n in 0..5 {
        let path = lab.log(&format!("new{n}.log"));
        lab.wait_for_bytes("web1", &path, 6, Duration::from_secs(20));
        assert_eq!(text(&lab.export("web1", &path)), format!("new {n}\n"));
    }
    assert!(lab.export("web1", &old[0]) == expected);
    assert_eq!(lab.verify().0, 0);
}

/// The page of an agent with 25,000 streams had 398 MiB.
#[test]
fn the_page_of_an_agent_with_many_streams_is_pages() {
    if !has_tool("curl") {
        return;
    }
    let mut lab = Lab::start("strangers-pages");
    lab.add_agent("web1", lab.sl, "");
    for n in 0..450 {
        lab.write(&format!("logs/{n:03}.log"), b"a line\n");
    }
    lab.start_agent("web1");
    wait_until("all is archived", Duration::from_secs(60), || {
        lab.count("agent:web1 line") == 450
    });
    let console = Console::sign_in(&lab, PASSWORD);
    let page = |number: u32| console.get(&format!("/agents/web1?page={number}"));
    let pages = [page(1), page(2), page(3)];
    let mut shown: Vec<usize> = Vec::new();
    for page in &pages {
        let logs = (0..450).filter(|n| page.contains(&format!("/{n:03}.log<")));
        shown.push(logs.count());
        assert!(page.len() < 1 << 20, "{}", page.len());
    }
    assert_eq!(shown, [200, 200, 50]);
    assert!(pages[1].contains("Page 2 / 3"));
    assert!(pages[1].contains("?page=1") && pages[1].contains("?page=3"));
    // A page that is not there is the last one.
    assert!(page(99).contains("Page 3 / 3"));
    assert!(console.get("/agents/web1").contains("Page 1 / 3"));
}

/// Idle and slow connections on every listener at once, spoofed senders, an agent that wants 25,000 streams, and accounts
/// with 20 downloads and queries under way: an agent, a sender and a signed-in person are served throughout.
#[test]
fn everybody_known_is_served_while_strangers_fill_every_listener() {
    if !has_tool("curl") {
        return;
    }
    scrinium_segment::process::raise_descriptors();
    let is_full = std::env::var_os("SCRINIUM_TEST_STRANGERS").is_some();
    let (each, senders, streams, more) = match is_full {
        true => (2000, 100_000, 26_000, "agent_streams_max = 25000"),
        false => (1000, 4000, 2500, "agent_streams_max = 2000"),
    };
    let limits = format!("[limits]\nsyslog_new_senders_per_day_max = 1000\n{more}");
    let mut lab = Lab::start_with("strangers-all", &limits);
    lab.add_agent("web1", lab.sl, "");
    let log = lab.log("app.log");
    lab.write("logs/app.log", b"before\n");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 7, Duration::from_secs(20));
    let console = Console::sign_in(&lab, PASSWORD);
    let mut filler = TcpStream::connect(lab.syslog_tcp).unwrap();
    let line = format!("<13>filler {}\n", "x".repeat(60_000));
    for _ in 0..400 {
        filler.write_all(line.as_bytes()).unwrap();
    }
    drop(filler);
    let mut greedy = Greedy::sign_in(&lab, PASSWORD);
    let token = Token::parse(&lab.token("evil1", lab.sl)).unwrap();
    let evil = Client::enrol(&token, lab.sl, 1);
    let stop = Arc::new(AtomicBool::new(false));
    let evil = std::thread::spawn({
        let stop = stop.clone();
        move || open_many_streams(evil, streams, &stop)
    });
    let honest = Ipv4Addr::new(127, 0, 0, 7);
    let mut written = b"before\n".to_vec();
    let mut waits = Waits::default();
    let mut held: Vec<TcpStream> = Vec::new();
    let mut forms: Vec<Browser> = Vec::new();
    let mut worst_rss = 0;
    let form = "POST /sign-in HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 1000\r\n\r\nuser=a";
    let rounds: u32 = 40;
    for round in 0..rounds {
        greedy.ask();
        for n in 0..each / rounds {
            let source = address((round * each + n) % 64);
            let preamble: &[u8] = b"SL\x01\x01";
            for (listener, slow) in [
                (lab.sl, preamble),
                (lab.syslog_tcp, b"<13>unfinished"),
                (lab.console, b"\x16\x03"),
            ] {
                held.extend(connect(source, listener));
                if let Some(mut stream) = connect(source, listener) {
                    let _closed = stream.write_all(slow);
                    held.push(stream);
                }
            }
            // A TLS handshake costs both sides: a part of them goes so far.
            if n % 8 == 0 {
                forms.extend(browse(source, lab.console, form));
            }
        }
        for n in 0..senders / rounds {
            let n = round * (senders / rounds) + n;
            send(
                address(1000 + n),
                lab.syslog_udp,
                &format!("<13>spoofed sender line {n}"),
            );
            if n % 100 == 99 {
                pause(Duration::from_millis(2));
            }
        }
        // The agent ships a line, the sender opens a connection for one, the person looks at a page.
        let line = format!("line {round} among strangers\n");
        let file = std::fs::File::options().append(true).open(&log);
        file.unwrap().write_all(line.as_bytes()).unwrap();
        written.extend_from_slice(line.as_bytes());
        let begun = now();
        let mut sender = connect(honest, lab.syslog_tcp).expect("a known sender is let in");
        sender
            .write_all(format!("<13>honest sender{round}\n").as_bytes())
            .unwrap();
        wait_for_line(&lab, &format!("sender{round}"));
        waits.sender.push(now().duration_since(begun));
        let begun = now();
        assert!(console.get("/agents").contains("sign-out"), "round {round}");
        waits.person.push(now().duration_since(begun));
        let begun = now();
        let found = console.get("/api/v1/search?q=honest&range=15m");
        assert!(
            found.contains(&format!("sender{round}")),
            "round {round}: {found}"
        );
        waits.search.push(now().duration_since(begun));
        let begun = now();
        wait_for_line(&lab, &format!("agent:web1 \"line {round} among\""));
        waits.agent.push(now().duration_since(begun));
        worst_rss = worst_rss.max(resident_bytes(lab.server_pid()));
    }
    wait_until("the agent is told", Duration::from_secs(60), || {
        evil.is_finished()
    });
    stop.store(true, Ordering::Relaxed);
    let evil = evil.join().unwrap();
    let (agent, sender, person) = (p99(waits.agent), p99(waits.sender), p99(waits.person));
    let search = p99(waits.search);
    eprintln!(
        "{} connections and {} forms tried, {senders} spoofed senders, {} streams of a hostile agent, {} downloads and queries; p99: agent {agent:?}, sender {sender:?}, person {person:?}, search {search:?}; resident {} MiB at worst",
        held.len(),
        forms.len(),
        evil.archived,
        greedy.begun,
        worst_rss >> 20
    );
    for wait in [agent, sender, person] {
        assert!(wait < Duration::from_secs(5), "{wait:?}");
    }
    assert!(search < Duration::from_secs(15), "{search:?}");
    let reason = evil.reason.clone().expect("the hostile agent is told");
    let limit = "limits.agent_streams_max";
    // The last ones before that were not acknowledged to it any more.
    let archived = if is_full { 24_900 } else { 1900 };
    assert!(
        reason.contains(limit) && evil.archived > archived,
        "{evil:?}"
    );
    assert!(
        lab.wait_for_alarm("too-many-streams", "evil1")
            .contains(limit)
    );
    assert!(worst_rss < 400 << 20, "{worst_rss}");
    lab.wait_for_bytes("web1", &log, written.len(), Duration::from_secs(20));
    assert!(lab.export("web1", &log) == written);
    assert_eq!(lab.agent("web1")["state"], "connected");
    for listener in ["SL", "console", "syslog"] {
        let listener = format!("The {listener} listener");
        wait_until(&listener, Duration::from_secs(20), || {
            let mut alarms = lab.alarms().into_iter();
            alarms.any(|alarm| {
                let text = alarm["text"].as_str().unwrap();
                alarm["kind"] == "places-short" && text.starts_with(&listener)
            })
        });
    }
    assert!(!lab.wait_for_alarm("many-senders", "").is_empty());
    assert_eq!(lab.count("honest"), u64::from(rounds));
}

#[derive(Default)]
struct Waits {
    agent: Vec<Duration>,
    sender: Vec<Duration>,
    person: Vec<Duration>,
    search: Vec<Duration>,
}

fn p99(mut waits: Vec<Duration>) -> Duration {
    waits.sort();
    let at = (waits.len() * 99).div_ceil(100) - 1;
    waits[at]
}

fn wait_for_line(lab: &Lab, query: &str) {
    wait_until(query, Duration::from_secs(15), || lab.count(query) >= 1);
}

fn health(lab: &Lab, source: Ipv4Addr) -> String {
    let url = format!("https://{}/healthz", lab.console);
    let (source, words) = (
        source.to_string(),
        ["-sk", "-o", "/dev/null", "-m", "15", "-w", "%{http_code}"],
    );
    let asked = Command::new("curl")
        .args(words)
        .args(["--interface", &source, &url])
        .output();
    text(&asked.unwrap().stdout)
}

fn streams(lab: &Lab) -> u64 {
    lab.metric("scrinium_streams ")
}

/// Connections to the console.
fn open_connections(lab: &Lab) -> u64 {
    lab.metric("scrinium_connections{listener=\"console\"} ")
}

fn streams_of(lab: &Lab, query: &str) -> u64 {
    lab.count(query)
}

/// Whether the server has read everything that came on a connection.
fn receive_queue_is_empty(stream: &TcpStream, lab: &Lab) -> bool {
    let port = |port: u16| format!(":{port:04X}");
    let (ours, theirs) = (
        port(stream.local_addr().unwrap().port()),
        port(lab.syslog_tcp.port()),
    );
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.len() > 4
            && fields[1].ends_with(&theirs)
            && fields[2].ends_with(&ours)
            && fields[4].ends_with(":00000000")
    })
}
