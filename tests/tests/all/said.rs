//! What is not understood is refused, with what there is instead, in the words of who asks.

use std::io::Write as _;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use scrinium_tests::console::Console;
use scrinium_tests::lab::{Lab, PASSWORD, text};
use scrinium_tests::{has_tool, wait_until};
use serde_json::Value;

/// Operators, fields, patterns and agents that there are not: an error that names the remedy, never a silent zero.
#[test]
fn what_a_search_does_not_understand_is_refused() {
    let lab = Lab::start("said-query");
    send_line(&lab, "alice failed from 10.0.3.7 status=500");
    wait_until("it is archived", Duration::from_secs(20), || {
        lab.count("alice") == 1
    });
    for (query, remedy) in [
        ("user:alice", "agent:NAME and stream:TEXT"),
        ("host:web1", "agent:NAME and stream:TEXT"),
        ("failed OR accepted", "search twice"),
        ("failed NOT alice", "-word"),
        ("10.0.3.0/24", "10.0.3.*"),
        ("al*ce", "prefix*"),
        ("/ali.e/", "prefix*"),
        ("status>=500", "quotes"),
        ("(alice)", "quotes"),
        ("alice | count", "no operator"),
        ("agent:nosuch", "there are: server"),
        ("agent:", "no value"),
    ] {
        let asked = lab.server(&["search", query, "--count"]);
        let said = text(&asked.stderr);
        assert!(
            !asked.status.success() && said.contains(remedy),
            "{query}: {said}"
        );
        assert_eq!(text(&asked.stdout), "", "{query}");
        let exported = lab.server(&["export", "--query", query, "--out", "never.tar"]);
        assert!(text(&exported.stderr).contains(remedy), "{query}");
    }
    // In quotes everything is text, and a prefix is the way to a network.
    for query in [
        "10.0.3.*",
        "\"status=500\"",
        "stream:127.0.0.1",
        "\"from 10.0.3.7\"",
    ] {
        assert_eq!(lab.count(query), 1, "{query}");
    }
}

/// A time without a zone keeps its hour, is UTC unless a zone is chosen, and says so; a range that ends before it begins is
/// an error.
#[test]
fn a_time_without_a_zone_keeps_its_hour_and_says_that_it_is_utc() {
    let lab = Lab::start("said-time");
    send_line(&lab, "marker77");
    wait_until("it is archived", Duration::from_secs(20), || {
        lab.count("marker77") == 1
    });
    let count = |words: &[&str]| {
        let asked = lab.server(&[&["search", "marker77", "--count"], words].concat());
        (text(&asked.stdout).trim().to_owned(), text(&asked.stderr))
    };
    let (early, late) = (stamp(-600), stamp(600));
    for (words, expected) in [
        (vec!["--from", &late], "0"),
        (vec!["--to", &late], "1"),
        (vec!["--from", &early, "--to", &late], "1"),
    ] {
        let (found, said) = count(&words);
        assert_eq!(found, expected, "{words:?}");
        assert!(
            said.contains("taken as 20") && said.contains("--zone"),
            "{said}"
        );
    }
    // The same hour of a zone that is two hours ahead was two hours ago.
    let (found, said) = count(&["--from", &late, "--zone", "+02:00"]);
    assert_eq!((found.as_str(), said.as_str()), ("1", ""));
    let (_, said) = count(&["--from", &late, "--zone", "Mars/Olympus"]);
    assert!(said.contains("Europe/Rome"), "{said}");
    let (found, said) = count(&["--from", "1h", "--to", "2h"]);
    assert!(
        found.is_empty() && said.contains("must be before"),
        "{said}"
    );
    let reversed = lab.server(&["verify", "--from", "1h", "--to", "2h"]);
    assert_eq!(reversed.status.code(), Some(2));
}

/// A program that gives a parameter which is not understood hears of it, and of those that are.
#[test]
fn a_parameter_that_has_no_meaning_is_refused() {
    if !has_tool("curl") {
        return;
    }
    let lab = Lab::start("said-parameters");
    send_line(&lab, "marker78");
    wait_until("it is archived", Duration::from_secs(20), || {
        lab.count("marker78") == 1
    });
    let console = Console::sign_in(&lab, PASSWORD);
    let ask = |path: &str| -> Value { serde_json::from_str(&console.get(path)).unwrap() };
    for (query, word) in [
        ("q=x&offset=7", "q, range, from, to, zone, limit, opening"),
        ("q=x&range=2h", "15m, 1h, 24h, 7d, 30d, all"),
        ("q=x&limit=all", "100,000"),
        ("q=x&range=1h&from=2026-01-01", "either"),
        ("q=x&from=2026-01-02&to=2026-01-01", "before"),
        ("q=user:x", "agent:NAME"),
    ] {
        let path = format!("/api/v1/search?{query}");
        assert_eq!(console.status(&path, false), 422, "{query}");
        let said = ask(&path);
        assert!(said["error"].as_str().unwrap().contains(word), "{said}");
    }
    // A range is what it says.
    let (early, late) = (stamp(-600), stamp(600));
    let between = |from: &str, to: &str| format!("q=marker78&from={from}&to={to}");
    for (range, expected) in [
        (between(&early, &late), 1),
        (between("2020-01-01", "2020-01-02"), 0),
        (format!("q=marker78&from={late}"), 0),
    ] {
        assert_eq!(
            ask(&format!("/api/v1/search?{range}"))["count"],
            expected,
            "{range}"
        );
        let page = console.get(&format!("/search?{range}"));
        assert!(page.contains("id=\"between\""), "{range}");
    }
    for path in ["/api/v1/alarms?state=open", "/api/v1/agents?page=2"] {
        assert_eq!(console.status(path, false), 422, "{path}");
    }
    // What a page offers to download is what it shows, to the second.
    let page = console.get("/search?q=marker78&range=15m");
    let (_, link) = page.split_once("/downloads?q=marker78").unwrap();
    let (link, _) = link.split_once('"').unwrap();
    assert!(
        link.contains("from=20") && link.contains("to=20") && link.matches("%3A").count() == 4,
        "{link}"
    );
}

/// What is called collected are the bytes of the lines, as the file has them.
#[test]
fn what_was_collected_is_counted_without_what_is_around_it() {
    if !has_tool("curl") {
        return;
    }
    let mut lab = Lab::start("said-collected");
    let (address, log) = (lab.sl, lab.log("twelve.log"));
    lab.write("logs/twelve.log", b"hello world\n");
    lab.add_agent("web1", address, "");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 12, Duration::from_secs(30));
    let shown = |lab: &Lab| {
        let page = Console::sign_in(lab, PASSWORD).get("/agents/web1");
        let (_, after) = page.split_once("twelve.log").unwrap();
        after.split_once("</tr>").unwrap().0.to_owned()
    };
    assert!(shown(&lab).contains(">12 B<"), "{}", shown(&lab));
    // Sealed, and read again at a start, it is as much.
    assert!(lab.server(&["compact"]).status.success());
    lab.stop_server();
    lab.start_server();
    assert!(shown(&lab).contains(">12 B<"), "{}", shown(&lab));
}

/// Who has read enough of a list and goes away is no error.
#[test]
fn a_list_that_nobody_reads_to_its_end_is_no_error() {
    let lab = Lab::start("said-head");
    for words in [
        &["agent", "list", "--json"][..],
        &["alarm", "list", "--json"],
        &["status"],
        &["duties"],
    ] {
        let mut command = lab.server_command(words);
        // The reader is gone before the command begins: what it writes never finds room in the pipe.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdout(writer).stderr(Stdio::piped());
        let ended = command.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(text(&ended.stderr), "", "{words:?}");
        assert_eq!(ended.status.code(), Some(141), "{words:?}");
    }
}

/// Every refusal that a page or a command can show, asked for in Italian and French: no English in any of them.
#[test]
fn a_refusal_is_in_the_words_of_who_is_refused() {
    if !has_tool("curl") {
        return;
    }
    let mut lab = Lab::start("said-language");
    let address = lab.sl;
    lab.add_agent("web1", address, "");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    // What waits is on the overview.
    let waits = lab.server(&["policy", "class", "general", "--ceiling-days", "4000"]);
    assert_eq!(waits.status.code(), Some(4), "{}", text(&waits.stderr));
    let mut seen = std::collections::BTreeMap::new();
    for language in ["en", "it", "fr"] {
        let console = Console::sign_in(&lab, PASSWORD).in_language(language);
        let mut said = Vec::new();
        let overview = console.get("/");
        let waits = between(&overview, "<li class=\"alarm waits\">", "</li>");
        said.push(("what waits".to_owned(), between(&waits, "<b>", "</b>")));
        for query in [
            "user:alice",
            "a OR b",
            "(a",
            "/re/",
            "10.0.0.0/8",
            "a*b",
            "a>1",
            "agent:nosuch",
            "agent:",
            "agent:a*",
            "agent:web1 agent:web1",
            "-agent:web1",
            "\"open",
            "\"\"",
        ] {
            let page = console.get(&format!("/search?q={}", percent(query)));
            said.push((
                format!("page {query}"),
                between(&page, "role=\"alert\">", "<"),
            ));
        }
        for path in [
            "/search/raw?offset=1",
            "/search/raw?range=2h",
            "/search/raw?from=27/11/2026",
            "/search/raw?from=1h&to=2h",
            "/search/raw?limit=x",
            "/search/raw?q=a&q=b",
            "/search/raw?range=1h&from=1h",
            "/search/raw?zone=x&from=1h",
            "/search/raw?from=2026-01-01T00:00[Europe/Rome]",
            "/api/v1/alarms?x=1",
            "/nowhere",
            "/search/raw?opening=x",
            "/export?agent=nobody&path=x",
            "/export?agent=web1&path=x",
        ] {
            let path = path.replace('[', "%5B").replace(']', "%5D");
            said.push((path.clone(), console.get(&path)));
        }
        for (form, path, fields) in [
            (
                "/downloads",
                "/downloads",
                &[("q", "x"), ("recipient", "age1wrong")][..],
            ),
            (
                "/downloads",
                "/downloads",
                &[("q", "x"), ("from", "2026-13-01")],
            ),
            (
                "/downloads",
                "/downloads",
                &[("q", "x"), ("from", "2026-02-01"), ("to", "2026-01-01")],
            ),
            (
                "/enrol",
                "/enrol",
                &[
                    ("name", "web1"),
                    ("address", "a:1"),
                    ("ttl_s", "60"),
                    ("uses", "1"),
                ],
            ),
            (
                "/enrol",
                "/enrol",
                &[
                    ("name", "a b"),
                    ("address", "a:1"),
                    ("ttl_s", "60"),
                    ("uses", "1"),
                ],
            ),
            (
                "/enrol",
                "/enrol",
                &[
                    ("name", ".a"),
                    ("address", "a:1"),
                    ("ttl_s", "60"),
                    ("uses", "1"),
                ],
            ),
            (
                "/enrol",
                "/enrol",
                &[
                    ("name", "server"),
                    ("address", "a:1"),
                    ("ttl_s", "60"),
                    ("uses", "1"),
                ],
            ),
            (
                "/enrol",
                "/enrol",
                &[
                    ("name", "new"),
                    ("address", "nowhere"),
                    ("ttl_s", "60"),
                    ("uses", "1"),
                ],
            ),
            (
                "/enrol",
                "/enrol",
                &[
                    ("name", "new"),
                    ("address", "a:1"),
                    ("ttl_s", "0"),
                    ("uses", "1"),
                ],
            ),
            (
                "/enrol",
                "/enrol",
                &[
                    ("name", "new"),
                    ("address", "a:1"),
                    ("ttl_s", "60"),
                    ("uses", "0"),
                ],
            ),
        ] {
            let (_, page) = console.post(form, path, fields);
            said.push((
                format!("{path} {fields:?}"),
                between(&page, "role=\"alert\">", "<"),
            ));
        }
        for (path, fields) in [
            ("/agents/web1/replace", &[][..]),
            ("/agents/nobody/enabled", &[("enabled", "true")]),
            ("/alarms/77/acknowledge", &[]),
            ("/waiting/none/stop", &[]),
            ("/alarms/none/acknowledge", &[]),
            ("/agents/web1/enabled", &[]),
            ("/downloads/none/end", &[]),
        ] {
            let (status, answer) = console.post("/downloads", path, fields);
            assert!(status >= 400, "{path}: {status} {answer}");
            said.push((path.to_owned(), answer));
        }
        for words in [
            &["search", "user:alice"][..],
            &["search", "x", "--from", "yesterday"],
            &["search", "x", "--from", "1h", "--to", "2h"],
            &["agent", "disable", "nobody"],
            &["alarm", "acknowledge", "77"],
            &["alarm", "test"],
            &["policy", "class", "general", "--ceiling-days", "4000"],
        ] {
            let mut command = lab.server_command(words);
            let asked = command
                .env("LC_ALL", format!("{language}_XX.UTF-8"))
                .output()
                .unwrap();
            assert!(!asked.status.success(), "{words:?}");
            said.push((format!("{words:?}"), text(&asked.stderr)));
        }
        for (what, sentence) in said {
            assert!(sentence.trim().len() > 8, "{language} {what}: {sentence:?}");
            let all: &mut Vec<String> = seen.entry(what).or_default();
            all.push(sentence);
        }
    }
    for (what, said) in seen {
        let [en, it, fr] = said.as_slice() else {
            panic!("{what}: {said:?}");
        };
        for (language, sentence) in [("it", it), ("fr", fr)] {
            assert_ne!(en, sentence, "{what} in {language}");
            for word in [
                " the ",
                " must ",
                " there ",
                " is ",
                " not ",
                " and ",
                " of ",
                "in inglese",
                "en anglais",
            ] {
                assert!(!sentence.contains(word), "{what} in {language}: {sentence}");
            }
        }
    }
}

fn between(page: &str, before: &str, after: &str) -> String {
    let found = page
        .split_once(before)
        .and_then(|(_, rest)| rest.split_once(after));
    found.map(|(found, _)| found.to_owned()).unwrap_or_default()
}

fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn send_line(lab: &Lab, line: &str) {
    let mut stream = TcpStream::connect(lab.syslog_tcp).unwrap();
    stream
        .write_all(format!("<13>{line}\n").as_bytes())
        .unwrap();
}

/// The time so many seconds from now, in UTC and without saying so.
fn stamp(seconds: i64) -> String {
    let at = i64::try_from(scrinium_tests::unix_s()).unwrap() + seconds;
    let mut date = Command::new("date");
    date.args(["-u", "-d", &format!("@{at}"), "+%Y-%m-%dT%H:%M:%S"]);
    text(&date.output().unwrap().stdout).trim().to_owned()
}
