//! Texts of others drive no terminal, and make no line of their own: not in what commands print, not in a table, on a
//! page, in a log, an alarm or a verdict.

use std::io::Write as _;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use proptest::prelude::*;
use scrinium_protocol::shown;
use scrinium_protocol::sl::handshake::AgentHello;
use scrinium_protocol::sl::message::KeepAlive;
use scrinium_protocol::token::Token;
use scrinium_tests::client::Client;
use scrinium_tests::console::Console;
use scrinium_tests::lab::{Lab, PASSWORD, text};
use scrinium_tests::package::{unpack, verify};
use scrinium_tests::terminal::{hidden, on_terminal};
use scrinium_tests::writer::append;
use scrinium_tests::{has_tool, now, program, wait_until};
use serde_json::Value;

/// A screen cleared, a clipboard written, a bell, a text turned round, a C1 introducer, an erased line.
const DRIVES: &str =
    "\x1b[2J\x1b]52;c;ZXZpbA==\x07 \u{202e}gnp.exe\u{200b} \u{9b}31m a\rOVER\u{7f}";

/// A line of a sender that reads as the word of a collector does is told from it, in text and in tables.
#[test]
fn a_line_speaks_for_no_collector() {
    if !has_tool("script") {
        return;
    }
    let mut lab = Lab::start("terminal-gaps");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let forged = "gap: the server was not there between never and now";
    socket.send_to(forged.as_bytes(), lab.syslog_udp).unwrap();
    wait_until("it is archived", PATIENCE, || lab.count("never") == 1);
    lab.stop_server();
    lab.start_server();
    let query = "stream:127.0.0.1 there";
    wait_until("both are there", PATIENCE, || lab.count(query) == 2);
    let check = |shown: &str| {
        let begins = |with: &str| shown.lines().filter(|line| line.starts_with(with)).count();
        assert_eq!((begins("gap: "), begins("\\x67ap: ")), (1, 1), "{shown}");
    };
    let piped = text(&lab.server(&["search", query]).stdout);
    check(&piped);
    assert!(
        piped.lines().any(|line| read_back(line) == forged),
        "{piped}"
    );
    check(&on_terminal(&lab.server_command(&["search", query])).1);
    let table = text(&lab.server(&["search", query, "--format", "csv"]).stdout);
    let is_forged = |row: &&str| row.contains("never");
    let (forged, said): (Vec<&str>, Vec<&str>) =
        table.lines().skip(1).partition(|row| is_forged(row));
    assert!(forged.len() == 1 && forged[0].ends_with(",\"\""), "{table}");
    assert!(said.len() == 1 && said[0].ends_with(",\"gap\""), "{table}");
}

/// What a sender puts into one datagram stays one entry; what it looks like says so wherever lines are read.
#[test]
fn an_entry_is_one_entry_and_drives_nothing_wherever_it_is_read() {
    if !has_tool("script") || !has_tool("curl") {
        return;
    }
    let lab = Lab::start("terminal-entries");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let messages = [
        format!("<13>inj {DRIVES}"),
        "<13>inj first\n<13>inj forged, of somebody else".to_owned(),
        "  | inj of an entry before".to_owned(),
        "<13>inj literal \\x0a \\x1b C:\\temp".to_owned(),
        "<13>inj =1+1, \"quoted\" città".to_owned(),
    ];
    for message in &messages {
        socket.send_to(message.as_bytes(), lab.syslog_udp).unwrap();
    }
    wait_until("all of it is archived", PATIENCE, || lab.count("inj") == 5);
    let exact = |found: &str| messages.iter().any(|message| message == found);

    // In a pipe: an entry a line, else its bytes.
    let piped = text(&lab.server(&["search", "inj"]).stdout);
    assert_eq!(piped.lines().count(), messages.len(), "{piped}");
    assert!(piped.contains("inj first\\x0a<13>inj forged"), "{piped}");
    assert!(
        piped.contains("\x1b[2J") && piped.contains("a\\x0dOVER"),
        "{piped}"
    );
    for line in piped.lines() {
        assert!(exact(&read_back(line)), "{line}");
    }
    // On a terminal: nothing that drives it, and a mark before what continues an entry.
    let on = |words: &[&str]| on_terminal(&lab.server_command(words));
    let (code, shown) = on(&["search", "inj"]);
    assert_eq!((code, hidden(&shown)), (Some(0), String::new()), "{shown}");
    assert!(shown.contains(
        "\\x1b[2J\\x1b]52;c;ZXZpbA==\\x07 \\u{202e}gnp.exe\\u{200b} \\u{9b}31m a\\x0dOVER\\x7f\n"
    ));
    assert!(
        shown.contains("<13>inj first\n  | <13>inj forged, of somebody else\n"),
        "{shown}"
    );
    assert!(
        shown.contains("\\x20 | inj of an entry before\n"),
        "{shown}"
    );
    assert!(
        shown.contains("inj literal \\x5cx0a \\x5cx1b C:\\temp\n"),
        "{shown}"
    );
    let begun = shown.lines().filter(|line| !line.starts_with("  | "));
    assert_eq!(begun.count(), messages.len(), "{shown}");

    // JSON is exact, and ASCII where that is safer.
    for json in [
        text(&lab.server(&["search", "inj", "--json"]).stdout),
        on(&["search", "inj", "--json"]).1,
    ] {
        assert_eq!(hidden(&json), "", "{json}");
        let found: Vec<Value> = json
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(found.len(), messages.len());
        assert!(
            found.iter().all(|hit| exact(hit["text"].as_str().unwrap())),
            "{json}"
        );
    }
    // A table: a line feed is within its quotation marks, and on a terminal no row looks like another.
    let table = text(&lab.server(&["search", "inj", "--format", "csv"]).stdout);
    // In a pipe a spreadsheet hears first that it is UTF-8.
    let table = table.strip_prefix('\u{feff}').unwrap().to_owned();
    assert_eq!(hidden(&table), "", "{table}");
    assert_eq!(rows(&table), messages.len() + 1, "{table}");
    assert!(table.contains("inj first\n<13>inj forged"), "{table}");
    let (_, table) = on(&["search", "inj", "--format", "csv"]);
    assert_eq!(
        (hidden(&table), table.lines().count()),
        (String::new(), messages.len() + 1),
        "{table}"
    );
    assert!(table.contains("inj first\\x0a<13>inj forged"), "{table}");

    // The console: the same lines as a file, and a page that shows what it does not do.
    let console = Console::sign_in(&lab, PASSWORD);
    let raw = lab.dir.join("raw.log");
    assert_eq!(console.download("/search/raw?q=inj&range=all", &raw), 200);
    let raw = text(&std::fs::read(&raw).unwrap());
    assert_eq!(raw, piped);
    let page = console.get("/search?q=inj&range=all");
    assert_eq!(hidden(&page), "", "{page}");
    assert!(
        page.contains("\\x1b[2J") && page.contains("\\u{202e}gnp.exe"),
        "{page}"
    );

    // The exact bytes are for a pipe or a file, and refused to a terminal before anything is written down.
    let export = ["export", "--query", "inj", "--format", "raw", "--out", "-"];
    let bytes = text(&lab.server(&export).stdout);
    assert!(bytes.contains(DRIVES) && bytes.contains("inj first\n<13>inj forged"));
    let (code, said) = on(&export);
    assert!(
        code == Some(2) && said.contains("name a file, or a pipe"),
        "{said}"
    );
    assert_eq!(lab.trail("export").len(), 1);
}

/// Stack traces that were joined into one entry are read as stack traces.
#[test]
fn a_stack_trace_is_readable_and_one_entry() {
    if !has_tool("script") {
        return;
    }
    let mut lab = Lab::start("terminal-trace");
    lab.add_agent("web1", lab.sl, "");
    let logs = lab.dir.join("logs");
    let source = format!(
        "[[source]]\nfile = \"{}/*.log\"\nmultiline_start = '^\\d{{4}}-'\n",
        logs.display()
    );
    lab.write("web1.toml", source.as_bytes());
    lab.start_agent("web1");
    let trace =
        "2026-11-27 ERROR boom\njava.lang.IllegalStateException: boom\n\tat Foo.bar(Foo.java:12)\n";
    append(&lab.log("app.log"))
        .write_all(format!("{trace}2026-11-27 INFO trace over\n").as_bytes())
        .unwrap();
    wait_until("both entries are archived", PATIENCE, || {
        lab.count("agent:web1 stream:app.log") == 2
    });
    let words = ["search", "agent:web1 stream:app.log"];
    let (_, shown) = on_terminal(&lab.server_command(&words));
    assert_eq!(
        shown,
        "2026-11-27 INFO trace over\n2026-11-27 ERROR boom\n  | java.lang.IllegalStateException: boom\n  | \tat Foo.bar(Foo.java:12)\n"
    );
    let piped = text(&lab.server(&words).stdout);
    assert_eq!(
        piped,
        "2026-11-27 INFO trace over\n2026-11-27 ERROR boom\\x0ajava.lang.IllegalStateException: boom\\x0a\tat Foo.bar(Foo.java:12)\n"
    );
    assert_eq!(
        text(&lab.export("web1", &lab.log("app.log"))),
        format!("{trace}2026-11-27 INFO trace over\n")
    );
}

/// What an agent says of itself, its problem and its farewell make no line in lists, alarms, pages and the server's log.
#[test]
fn what_an_agent_says_of_itself_makes_no_line() {
    if !has_tool("script") || !has_tool("curl") {
        return;
    }
    let mut lab = Lab::start("terminal-agent");
    let forged = format!("evil{DRIVES}\n2026-11-27T10:00:00Z INFO FORGED");
    let token = Token::parse(&lab.token("web1", lab.sl)).unwrap();
    let hello = AgentHello {
        host_name: forged.clone(),
        version: forged.clone(),
        os: forged.clone(),
        ..Client::hello(1)
    };
    let mut client = Client::enrol_as(&token, lab.sl, 1, hello);
    wait_until("it is let in", PATIENCE, || {
        client.breathe().1 && client.is_ready
    });
    let state = KeepAlive {
        problem: forged.clone(),
        ..KeepAlive::default()
    };
    client.session.send_keep_alive(state, now()).unwrap();
    let _answers = client.breathe();
    let text_of = lab.wait_for_alarm("agent-trouble", "web1");
    assert!(text_of.contains("FORGED"), "{text_of}");
    let held = lab.server(&["policy", "hold", "case-1", "--reason", "case \u{202e}esac"]);
    assert!(held.status.success(), "{}", text(&held.stderr));
    for (words, lines) in [
        (&["agent", "list"][..], Some(1)),
        (&["agent", "list", "--json"], None),
        (&["agent", "show", "web1"], None),
        (&["alarm", "list"], Some(1)),
        (&["alarm", "list", "--json"], None),
        (&["policy"], None),
        (&["policy", "--json"], None),
        (&["link", "list"], Some(0)),
        (&["verify"], None),
        (&["status"], None),
        (&["volume", "show"], None),
    ] {
        let piped = text(&lab.server(words).stdout);
        let (code, shown) = on_terminal(&lab.server_command(words));
        assert_eq!(code, Some(0), "{words:?}: {shown}");
        for said in [&piped, &shown] {
            assert_eq!(hidden(said), "", "{words:?}: {said}");
            assert!(
                !said
                    .lines()
                    .any(|line| line.starts_with("2026-11-27T10:00:00Z")),
                "{said}"
            );
            assert!(
                lines.is_none_or(|lines| said.lines().count() == lines),
                "{words:?}: {said}"
            );
        }
    }
    assert_eq!(lab.agent("web1")["os"], forged.as_str());
    assert!(text(&lab.server(&["policy"]).stdout).contains("(case \\u{202e}esac)"));
    let console = Console::sign_in(&lab, PASSWORD);
    for path in ["/", "/agents", "/agents/web1"] {
        let page = console.get(path);
        assert_eq!(hidden(&page), "", "{path}: {page}");
        assert!(page.contains("FORGED"), "{path}");
    }
    // Errors name what was asked for, and stay one message.
    let asked = format!("nobody{DRIVES}\nscrinium-server: all is well");
    let (code, said) = on_terminal(&lab.server_command(&["agent", "show", &asked]));
    assert_eq!((code, hidden(&said)), (Some(1), String::new()), "{said}");
    assert!(
        said.lines().skip(1).all(|line| line.starts_with("  | ")),
        "{said}"
    );

    client.session.send_close(&forged, now()).unwrap();
    let _answers = client.breathe();
    wait_until("the session is over", PATIENCE, || {
        lab.agent("web1")["state"] != "connected"
    });
    lab.stop_server();
    let log = std::fs::read_to_string(lab.dir.join("server.out")).unwrap();
    assert_eq!(hidden(&log), "", "{log}");
    assert!(log.matches("FORGED").count() >= 2, "{log}");
    // Every line is one that the server began.
    let begins = |line: &str| {
        line.starts_with("20") && !line.starts_with("2026-11-27T10:00:00Z INFO FORGED")
    };
    assert!(log.lines().all(begins), "{log}");
}

/// The name of a file says nothing in a verdict, on the agent's machine, in a table or on the sheet.
#[test]
fn the_name_of_a_file_speaks_nowhere() {
    if !has_tool("script") {
        return;
    }
    let mut lab = Lab::start("terminal-names");
    lab.add_agent("web1", lab.sl, "");
    let name = "evil\x1b]0;pwned\x07\x1b[2J\nproven:      the moon is <b> \u{202e}cod.log";
    let log = lab.log(name);
    append(&log).write_all(b"injfile hello\n").unwrap();
    lab.start_agent("web1");
    wait_until("it is archived", PATIENCE, || lab.count("injfile") == 1);

    let agent = |words: &[&str], more: &[PathBuf]| {
        let mut command = Command::new(program("scrinium-agent"));
        command.args(words).args(more);
        command
    };
    let state = [PathBuf::from("--state"), lab.state("web1")];
    let config = [PathBuf::from("--config"), lab.dir.join("web1.toml")];
    for (mut command, lines) in [
        (agent(&["status"], &state), None),
        (agent(&["status", "--json"], &state), Some(1)),
        (agent(&["sources"], &config), Some(1)),
        (agent(&["sources", "--json"], &config), Some(1)),
        (agent(&["check"], &[state, config].concat()), None),
    ] {
        let (code, shown) = on_terminal(&command);
        assert_eq!((code, hidden(&shown)), (Some(0), String::new()), "{shown}");
        let piped = text(&command.output().unwrap().stdout);
        assert_eq!(hidden(&piped), "", "{piped}");
        assert!(
            !piped.lines().any(|line| line.starts_with("proven:")),
            "{piped}"
        );
        assert!(
            lines.is_none_or(|lines| piped.lines().count() == lines),
            "{piped}"
        );
    }
    lab.stop_agent("web1");
    let said = std::fs::read_to_string(lab.dir.join("web1.out")).unwrap();
    assert_eq!(hidden(&said), "", "{said}");

    let package = lab.dir.join("package.tar");
    let authority = "Procura \u{202e}amoR";
    let exported = lab.server(&[
        "export",
        "--query",
        "injfile",
        "--authority",
        authority,
        "--out",
        package.to_str().unwrap(),
    ]);
    assert!(exported.status.success(), "{}", text(&exported.stderr));
    let (code, piped) = verify(&package, &[]);
    assert_eq!((code, hidden(&piped)), (Some(0), String::new()), "{piped}");
    assert!(
        !piped
            .lines()
            .any(|line| line.starts_with("proven:      the moon")),
        "{piped}"
    );
    assert!(
        piped.contains("\\x0aproven:      the moon is <b> \\u{202e}cod.log\""),
        "{piped}"
    );
    let mut command = Command::new(program("scrinium-verify"));
    command.arg(&package);
    assert_eq!(on_terminal(&command).1, piped);
    command.arg("--json");
    assert_eq!(hidden(&on_terminal(&command).1), "");
    let mut absent = Command::new(program("scrinium-verify"));
    absent.arg(lab.dir.join(name));
    let (code, said) = on_terminal(&absent);
    assert_eq!((code, hidden(&said)), (Some(1), String::new()), "{said}");
    assert!(
        !said.lines().any(|line| line.starts_with("proven:")),
        "{said}"
    );

    let parts = lab.dir.join("parts");
    unpack(&package, &parts);
    for part in ["entries.csv", "custody.html"] {
        let read = std::fs::read_to_string(parts.join(part)).unwrap();
        // A table begins with the mark of its encoding.
        let read = read.trim_start_matches('\u{feff}');
        assert_eq!(hidden(read), "", "{part}: {read}");
        assert!(read.contains("\\u{202e}cod.log"), "{part}: {read}");
    }
}

proptest! {
    /// Whatever is shown has nothing hidden in it; a line, a cell and a piped line read back to what they show.
    #[test]
    fn any_bytes_are_shown_without_a_trick_and_read_back(bytes in tricky_bytes()) {
        let line = shown::line(&bytes);
        prop_assert!(hidden(&line).is_empty() && !line.contains('\n'), "{:?}", line);
        prop_assert_eq!(read_shown(&line), &bytes[..]);
        let entry = shown::entry(&bytes);
        prop_assert!(hidden(&entry).is_empty(), "{:?}", entry);
        prop_assert!(!entry.starts_with(shown::CONTINUED));
        let breaks = bytes.iter().filter(|byte| **byte == b'\n').count();
        prop_assert_eq!(entry.matches('\n').count(), breaks);
        prop_assert_eq!(entry.matches("\n  | ").count(), breaks);
        let piped = shown::plain(&bytes);
        prop_assert!(!piped.iter().any(|byte| b"\r\n".contains(byte)));
        prop_assert_eq!(read_plain(&piped), &bytes[..]);
        let text = String::from_utf8_lossy(&bytes);
        let cell = shown::cell(&text);
        prop_assert!(hidden(&cell.replace("\r\n", "\n")).is_empty(), "{:?}", cell);
        prop_assert_eq!(read_shown(&cell), text.as_bytes());
        for shown in [shown::sentence(&text), shown::name(&text)] {
            prop_assert!(hidden(&shown).is_empty() && !shown.contains(['\n', '\t']), "{:?}", shown);
            prop_assert_eq!(&shown::sentence(&shown), &shown);
        }
        let json = serde_json::to_string(&*text).unwrap();
        let seen = shown::json(&json);
        prop_assert!(hidden(&seen).is_empty(), "{:?}", seen);
        prop_assert_eq!(serde_json::from_str::<String>(&seen).unwrap(), &*text);
    }
}

/// Letters of all kinds, those that hide more often than others, escapes written out, and bytes that are no text.
fn tricky_bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        any::<char>().prop_map(|letter| letter.to_string().into_bytes()),
        "[ -~]{1,4}".prop_map(String::into_bytes),
        prop_oneof![
            Just("\\x0a"),
            Just("\\x5c"),
            Just("\\u{"),
            Just("\\"),
            Just("  | "),
            Just("\r\n"),
            Just("\n"),
            Just("\r"),
            Just("\t"),
            Just("\x1b["),
            Just("\u{9b}"),
            Just("\u{202e}"),
            Just("\u{301}"),
            Just("\u{200d}"),
            Just("\u{fe0f}"),
            Just("\u{e0061}"),
            Just("\u{2028}"),
            Just("\u{115f}"),
            Just("\u{3164}"),
        ]
        .prop_map(|text| text.as_bytes().to_vec()),
        any::<u8>().prop_map(|byte| vec![byte]),
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// The bytes that a line or cell shows, by the rule of the documents alone.
fn read_shown(shown: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = shown;
    while let Some(letter) = rest.chars().next() {
        let hex = rest.strip_prefix("\\x").and_then(|digits| digits.get(..2));
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            bytes.push(byte);
            rest = rest.get(4..).unwrap();
            continue;
        }
        if let Some((hex, behind)) = rest
            .strip_prefix("\\u{")
            .and_then(|digits| digits.split_once('}'))
        {
            let letter = char::from_u32(u32::from_str_radix(hex, 16).unwrap()).unwrap();
            bytes.extend_from_slice(letter.to_string().as_bytes());
            rest = behind;
            continue;
        }
        bytes.extend_from_slice(letter.to_string().as_bytes());
        rest = rest.get(letter.len_utf8()..).unwrap();
    }
    bytes
}

/// The bytes of a piped line.
fn read_plain(line: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = line;
    while let [byte, behind @ ..] = rest {
        let escaped = [
            (&b"\\x0a"[..], b'\n'),
            (b"\\x0d", b'\r'),
            (b"\\x5c", b'\\'),
            (b"\\x67", b'g'),
        ];
        match escaped
            .into_iter()
            .find(|(escape, _)| rest.starts_with(escape))
        {
            Some((escape, byte)) => {
                bytes.push(byte);
                rest = &rest[escape.len()..];
            }
            None => {
                bytes.push(*byte);
                rest = behind;
            }
        }
    }
    bytes
}

fn read_back(line: &str) -> String {
    text(&read_plain(line.as_bytes()))
}

/// How many rows a table has, by RFC 4180.
fn rows(table: &str) -> usize {
    let mut quoted = false;
    let ends = table.chars().filter(|letter| {
        quoted ^= *letter == '"';
        *letter == '\n' && !quoted
    });
    ends.count()
}

const PATIENCE: Duration = Duration::from_secs(30);
