//! What an authority asks for is handed over: what matches and nothing else, for it alone, years later too.

use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use scrinium_tests::days::{Days, ship_a_line};
use scrinium_tests::lab::{Lab, text};
use scrinium_tests::package::{unpack, verify};
use scrinium_tests::strangers::{connect, send};
use scrinium_tests::wait_until;
use scrinium_tests::writer::append;
use serde_json::Value;

/// Two agents, a few lines each that match among many that do not, over several batches.
#[test]
fn a_package_by_a_query_proves_what_matches_and_tells_nothing_of_the_rest() {
    let mut lab = Lab::start("export-query");
    lab.stop_server();
    let config = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    let config = config + "[evidence]\ninterval_s = 1\n";
    lab.write("server.toml", config.as_bytes());
    lab.start_server();
    for (agent, lines) in [("web1", 3000), ("web2", 40)] {
        let noise = (0..lines).map(|n| match n % 1000 {
            7 => format!("{n} session of 203.0.113.7 opened\n"),
            8 => format!("{n} =cmd of 203.0.113.7, \"quoted\"\n"),
            _ => format!(
                "{n} UNRELATED business of somebody else {}\n",
                "x".repeat(80)
            ),
        });
        ship_a_line(
            &mut lab,
            agent,
            &format!("FIRST{agent} line\n{}", noise.collect::<String>()),
        );
        wait_until("all of it is archived", PATIENCE, || {
            lab.count(&format!("agent:{agent}")) > lines
        });
    }
    let matching = "203.0.113.7";
    assert_eq!(lab.count(matching), 8);
    let of = ["--authority", "Procura <di> Roma", "--language", "it"];
    let words = [&["--query", matching][..], &of].concat();
    let package = lab.dir.join("package.tar");
    wait_until("all of it is sealed", PATIENCE, || {
        let _first = std::fs::remove_file(&package);
        export(&lab, &words);
        let said = verify(&package, &[]).1;
        !said.contains("nothing was sealed over them yet")
    });
    let (code, said) = verify(&package, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("log.txt holds 6 lines of"), "{said}");
    assert!(said.contains("that nothing else matches"), "{said}");
    // Nothing of the rest, not even packed: every batch is opened.
    let parts = lab.dir.join("parts");
    unpack(&package, &parts);
    let read = |name: &str| text(&std::fs::read(parts.join(name)).unwrap());
    let log = read("log.txt");
    assert_eq!(log.lines().count(), 8);
    assert!(log.lines().all(|line| line.contains(matching)));
    let mut packed = Vec::new();
    std::fs::File::open(&package)
        .unwrap()
        .read_to_end(&mut packed)
        .unwrap();
    assert!(!holds(&packed, b"UNRELATED"));
    for name in ["log.txt", "entries.csv"] {
        assert!(!read(name).contains("UNRELATED"));
    }
    // As a table that spreadsheets take for text, and as a sheet that browsers take for text.
    let table = read("entries.csv");
    assert_eq!(table.lines().count(), 9);
    assert!(
        table.contains("\"\"quoted\"\"") && table.contains("\"web2\""),
        "{table}"
    );
    let sheet = read("custody.html");
    assert!(
        sheet.contains("Catena di custodia") && sheet.contains("Procura &#60;di&#62; Roma"),
        "{sheet}"
    );
    assert!(!sheet.contains(">?<"));
    let manifest: Value = serde_json::from_str(&read("manifest.json")).unwrap();
    assert_eq!(
        (&manifest["lines"], &manifest["gaps"]),
        (&8.into(), &0.into())
    );
    assert_eq!(manifest["streams"].as_array().unwrap().len(), 2);
    assert_eq!(manifest["request"]["authority"], "Procura <di> Roma");
    // What is missing belongs to what an authority is told, whatever the words.
    let path = lab.dir.join("logs-web2/app.log");
    append(&path).write_all(b"never read\n").unwrap();
    std::fs::remove_file(&path).unwrap();
    append(&path).write_all(b"two\n").unwrap();
    lab.start_agent("web2");
    wait_until("the agent says that some is gone", PATIENCE, || {
        lab.count("agent:web2 two") == 1
    });
    lab.stop_agent("web2");
    let gap = export_to(&lab, "gap.tar", &["--query", matching]);
    let (code, said) = verify(&gap, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("say in 1 gap entries that something"),
        "{said}"
    );
    unpack(&gap, &parts);
    assert!(text(&std::fs::read(parts.join("log.txt")).unwrap()) == log);
    let table = text(&std::fs::read(parts.join("entries.csv")).unwrap());
    assert!(table.contains("gap: "), "{table}");
    // Packed again, with what one signature vouches for: a line a batch.
    let path = lab.dir.join("logs-web1/app.log");
    lab.start_agent("web1");
    for n in 0..6 {
        append(&path).write_all(b"a line by itself\n").unwrap();
        wait_until("it is archived", PATIENCE, || {
            lab.count("\"a line by itself\"") == n + 1
        });
    }
    lab.stop_agent("web1");
    let compacted = lab.server(&["compact"]);
    assert!(compacted.status.success(), "{}", text(&compacted.stderr));
    assert_eq!(lab.verify().0, 0);
    for (name, words) in [
        ("some.tar", &["--query", "\"line by itself\""][..]),
        (
            "all.tar",
            &["--agent", "web1", "--path", path.to_str().unwrap()],
        ),
        ("again.tar", &["--query", matching]),
    ] {
        let package = export_to(&lab, name, words);
        let (code, said) = verify(&package, &[]);
        assert_eq!(code, Some(0), "{name}: {said}");
    }

    // The same on a stopped server's volume, as raw lines, within a time, and nothing at all.
    lab.stop_server();
    let raw = lab.server(&[
        "export", "--query", matching, "--format", "raw", "--out", "-",
    ]);
    assert_eq!(text(&raw.stdout), log);
    let early = ["--query", matching, "--to", "2020-01-01", "--table", "none"];
    let nothing = export_to(&lab, "nothing.tar", &early);
    let (code, said) = verify(&nothing, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("0 batches"), "{said}");
    for (words, refused) in [
        (&["--agent", "web1"][..], "--path"),
        (
            &["--query", "x", "--agent", "web1", "--path", "y"],
            "cannot be used with",
        ),
        (&["--query", "\"x"], "quote"),
        (
            &["--query", "x", "--from", "2026-02-01", "--to", "2026-01-01"],
            "must be before --to",
        ),
        (&["--query", "x", "--recipient", "age1x"], "age recipient"),
        (&["--agent", "nobody", "--path", "y"], "no agent is named"),
    ] {
        let out = lab.dir.join("refused.tar");
        let mut command = lab.server_command(&["export"]);
        let output = command.args(words).arg("--out").arg(&out).output().unwrap();
        assert!(
            !output.status.success() && !out.try_exists().unwrap(),
            "{words:?}"
        );
        let said = text(&output.stderr);
        assert!(said.contains(refused), "{words:?}: {said}");
    }
}

/// What lies far apart is shown in runs of their own, and nothing twice when one sealed place serves both.
#[test]
fn what_matches_far_apart_is_shown_once() {
    let mut lab = Lab::start("export-apart");
    lab.stop_server();
    let config = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    let config = config + "[evidence]\ninterval_s = 12\n";
    lab.write("server.toml", config.as_bytes());
    lab.start_server();
    ship_a_line(&mut lab, "web1", "NEEDLE first\n");
    let path = lab.dir.join("logs-web1/app.log");
    lab.start_agent("web1");
    // Each a batch of its own.
    for n in 0..24 {
        append(&path).write_all(b"of no interest\n").unwrap();
        wait_until("it is archived", PATIENCE, || {
            lab.count("\"of no interest\"") == n + 1
        });
    }
    append(&path).write_all(b"NEEDLE second\n").unwrap();
    wait_until("the last is archived", PATIENCE, || {
        lab.count("NEEDLE") == 2
    });
    lab.stop_agent("web1");
    let package = lab.dir.join("package.tar");
    let mut said = String::new();
    wait_until("both are sealed", PATIENCE, || {
        let _first = std::fs::remove_file(&package);
        export(&lab, &["--query", "NEEDLE"]);
        said = verify(&package, &[]).1;
        said.contains("2 entries of") && !said.contains("nothing was sealed over them yet")
    });
    let (code, said) = verify(&package, &[]);
    assert_eq!(code, Some(0), "{said}");
    let parts = lab.dir.join("parts");
    unpack(&package, &parts);
    let log = std::fs::read(parts.join("log.txt")).unwrap();
    assert_eq!(text(&log), "NEEDLE first\nNEEDLE second\n");
}

/// Only the recipient reads it; whoever else has it is told so.
#[test]
fn a_package_for_a_recipient_is_read_by_nobody_else() {
    let mut lab = Lab::start("export-recipient");
    ship_a_line(&mut lab, "web1", "MARKERONE of web1\n");
    let authority = age::x25519::Identity::generate();
    let recipient = authority.to_public().to_string();
    let sealed = export(&lab, &["--query", "MARKERONE", "--recipient", &recipient]);
    let bytes = std::fs::read(&sealed).unwrap();
    for plain in [&b"MARKERONE"[..], b"manifest", b"web1"] {
        assert!(!holds(&bytes, plain));
    }
    let (code, said) = verify(&sealed, &[]);
    assert!(
        code == Some(1) && said.contains("encrypted to a recipient"),
        "{said}"
    );
    let file = std::fs::File::open(&sealed).unwrap();
    let decryptor = age::Decryptor::new(file).unwrap();
    let identities = std::iter::once(&authority as &dyn age::Identity);
    let mut opened = Vec::new();
    let mut reader = decryptor.decrypt(identities).unwrap();
    reader.read_to_end(&mut opened).unwrap();
    lab.write("opened.tar", &opened);
    let (code, said) = verify(&lab.dir.join("opened.tar"), &[]);
    assert_eq!(code, Some(0), "{said}");
}

/// Its first day is forgotten; the rest is exported whole, with the server's word on what is not there.
#[test]
fn a_source_whose_first_days_were_deleted_is_exported_with_the_certificate() {
    let Some(mut days) = Days::start("export-deleted") else {
        return;
    };
    let keep = ["policy", "class", "general", "--keep-days", "30"];
    let kept = days.lab.server(&keep);
    assert!(kept.status.success(), "{}", text(&kept.stderr));
    ship_a_line(&mut days.lab, "web1", "MARKERONE of web1\n");
    let path = days.lab.dir.join("logs-web1/app.log");
    days.go_to(20);
    let lab = &mut days.lab;
    append(&path).write_all(b"MARKERTWO of web1\n").unwrap();
    lab.start_agent("web1");
    wait_until("the second day is archived", PATIENCE, || {
        lab.count("MARKERTWO") == 1
    });
    lab.stop_agent("web1");
    let words = ["--agent", "web1", "--path", path.to_str().unwrap()];
    let whole = export_to(lab, "whole.tar", &words);
    let (code, said) = verify(&whole, &[]);
    assert!(
        code == Some(0) && said.contains("log.txt holds 2 lines"),
        "{said}"
    );

    days.go_to(31);
    let lab = &mut days.lab;
    wait_until("the first day is gone", PATIENCE, || {
        lab.count("MARKERONE") == 0 && lab.count("stream:deletions certificate") >= 1
    });
    let rest = export_to(lab, "rest.tar", &words);
    let (code, said) = verify(&rest, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("log.txt holds 1 lines"), "{said}");
    assert!(
        said.contains("1 more entries of")
            && said.contains("deleted, as the holder of the server's key certified"),
        "{said}"
    );
    assert_eq!(lab.export("web1", &path), b"MARKERTWO of web1\n");
}

/// One datagram in the name of a sender took the place of all that its connection brought.
#[test]
fn a_name_that_streams_of_several_kinds_have_is_asked_about() {
    let lab = Lab::start("export-kinds");
    let sender = Ipv4Addr::new(127, 0, 0, 5);
    let mut connection = connect(sender, lab.syslog_tcp).unwrap();
    connection.write_all(b"<13>EVIDENCE of tcp\n").unwrap();
    wait_until("it is archived", PATIENCE, || lab.count("EVIDENCE") == 1);
    let source = ["--agent", "server", "--path", "127.0.0.5"];
    let raw = |more: &[&str]| {
        let words = ["export", "--format", "raw", "--out", "-"];
        lab.server(&[&words[..], &source, more].concat())
    };
    assert_eq!(raw(&[]).stdout, b"<13>EVIDENCE of tcp\n");
    let link = lab.server(&[&["export", "--link"][..], &source].concat());
    assert!(link.status.success(), "{}", text(&link.stderr));
    send(sender, lab.syslog_udp, "<13>SPOOFED innocent line");
    wait_until("it is archived", PATIENCE, || lab.count("SPOOFED") == 1);
    let refused = raw(&[]);
    let said = text(&refused.stderr);
    assert!(!refused.status.success() && refused.stdout.is_empty());
    let kinds = "several streams '127.0.0.5', of the kinds syslog-udp, syslog-tcp";
    assert!(said.contains(kinds) && said.contains("--kind"), "{said}");
    let tcp = raw(&["--kind", "syslog-tcp"]);
    assert_eq!(
        tcp.stdout,
        b"<13>EVIDENCE of tcp\n",
        "{}",
        text(&tcp.stderr)
    );
    assert_eq!(
        raw(&["--kind", "syslog-udp"]).stdout,
        b"<13>SPOOFED innocent line\n"
    );
    let said = text(&raw(&["--kind", "syslog"]).stderr);
    assert!(said.contains("is none of file, syslog-udp"), "{said}");
    let said = text(&raw(&["--kind", "journal"]).stderr);
    assert!(
        said.contains("has no stream '127.0.0.5' of kind journal"),
        "{said}"
    );
    // The link means what it meant when it was made.
    let links = text(&lab.server(&["link", "list"]).stdout);
    assert!(links.contains("server syslog-tcp 127.0.0.5"), "{links}");
}

fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

fn export(lab: &Lab, words: &[&str]) -> PathBuf {
    export_to(lab, "package.tar", words)
}

fn export_to(lab: &Lab, name: &str, words: &[&str]) -> PathBuf {
    let package = lab.dir.join(name);
    let mut command = lab.server_command(&["export"]);
    let output = command
        .args(words)
        .arg("--out")
        .arg(&package)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    package
}

const PATIENCE: Duration = Duration::from_secs(30);
