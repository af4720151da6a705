//! What an agent that means no good does to catalogue, trail and itself: little, and it is said.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use scrinium_protocol::entry::EntryFlags;
use scrinium_protocol::sl::message::{ConfigurationAnswer, KeepAlive};
use scrinium_protocol::sl::session::AgentEvent;
use scrinium_protocol::sl::sources::{SourceReport, SourceReports, SourceState};
use scrinium_tests::client::Client;
use scrinium_tests::hostile::{Stream, enrol};
use scrinium_tests::lab::{Lab, text};
use scrinium_tests::package::{Parts, verify};
use scrinium_tests::strangers::connect;
use scrinium_tests::{now, wait_until};

/// Each answer to its configuration that differed from the one before was a commit of the catalogue and an entry of the
/// trail that is kept for years.
#[test]
fn answers_that_change_again_and_again_are_counted_and_not_written() {
    let lab = Lab::start("hostile-answers");
    let mut client = enrol(&lab);
    lab.write("central.toml", b"[[source]]\nfile = \"/nowhere/*.log\"\n");
    let file = lab.dir.join("central.toml").display().to_string();
    let done = lab.server(&["agent", "configure", "evil1", "--file", &file]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let mut version = 0;
    wait_until("it has its configuration", PATIENCE, || {
        let (events, _) = client.breathe();
        for event in events {
            if let AgentEvent::Configuration(wanted) = event {
                version = wanted.version;
            }
        }
        version > 0
    });
    for n in 0..3000 {
        let answer = ConfigurationAnswer {
            version,
            rejected: Some(format!("reason {n}")),
            in_force: Vec::new(),
        };
        let sent = client.session.send_configuration_answer(answer, now());
        sent.unwrap();
        if n % 50 == 0 {
            assert!(client.breathe().1);
        }
    }
    wait_until("all are read, and counted", PATIENCE, || {
        assert!(client.breathe().1);
        // The first one is free, 24 changes are written.
        trouble(&lab).contains("2,975 further answers")
    });
    assert_eq!(lab.trail("configured").len(), 25);
    let said = lab.wait_for_alarm("agent-trouble", "evil1");
    assert!(said.contains("more than 24 times in a day"), "{said}");
    // What was written last is what is known.
    let shown = lab.agent("evil1")["configuration"]["rejected"].clone();
    assert_eq!(shown, "reason 24");
    // A person who asks anew is answered, whatever came before.
    let done = lab.server(&["agent", "configure", "evil1", "--file", &file]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let answer = ConfigurationAnswer {
        version: version + 1,
        rejected: None,
        in_force: Vec::new(),
    };
    wait_until("the next version is answered", PATIENCE, || {
        let (events, stands) = client.breathe();
        assert!(stands);
        let came = |event: &AgentEvent| matches!(event, AgentEvent::Configuration(_));
        if events.iter().any(came) {
            let sent = client
                .session
                .send_configuration_answer(answer.clone(), now());
            sent.unwrap();
        }
        lab.agent("evil1")["configuration"]["answered"] == version + 1
    });
    // Who is always heard ends all the same when somebody says so.
    let disabled = lab.server(&["agent", "disable", "evil1"]);
    assert!(disabled.status.success(), "{}", text(&disabled.stderr));
    let mut n = 0;
    wait_until("its session ends", PATIENCE, || {
        for _ in 0..200 {
            n += 1;
            let answer = ConfigurationAnswer {
                version: version + 1,
                rejected: Some(format!("again {n}")),
                in_force: Vec::new(),
            };
            let sent = client.session.send_configuration_answer(answer, now());
            sent.unwrap();
        }
        !client.breathe().1
    });
}

/// Each name of a source that an agent made up, and said to need a person, was an alarm and an entry of the trail.
#[test]
fn sources_that_an_agent_makes_up_are_not_an_alarm_each() {
    let lab = Lab::start("hostile-sources");
    let mut client = enrol(&lab);
    for round in 0..10 {
        let row = |n: u32| SourceReport {
            source: format!("/made/up/{round}/{n}"),
            state: SourceState::Unreadable,
            needs_person: true,
            files: 1,
            path: String::new(),
            cause: "because".into(),
        };
        let sources = SourceReports {
            rows: (0..60).map(row).collect(),
            more: 0,
        };
        let state = KeepAlive {
            sources: Some(sources),
            ..KeepAlive::default()
        };
        client.session.send_keep_alive(state, now()).unwrap();
        assert!(client.breathe().1);
    }
    let of_sources = |alarm: &serde_json::Value| alarm["kind"] == "source-trouble";
    wait_until("all are heard", PATIENCE, || {
        assert!(client.breathe().1);
        let alarms = lab.alarms();
        let counts = alarms.iter().filter(|alarm| of_sources(alarm));
        counts
            .map(|alarm| alarm["count"].as_u64().unwrap())
            .sum::<u64>()
            == 600
    });
    let alarms: Vec<_> = lab.alarms().into_iter().filter(of_sources).collect();
    assert_eq!(alarms.len(), 257);
    let more = alarms.iter().find(|alarm| alarm["count"] == 344).unwrap();
    let said = more["text"].as_str().unwrap();
    assert!(said.contains("more than 256 times in a day"), "{said}");
    assert_eq!(lab.agent("evil1")["state"], "connected");
}

/// New streams that came too fast stopped the reading of their session: no keep-alive was heard, and nothing else of the agent
/// was archived meanwhile.
#[test]
fn new_streams_that_come_too_fast_wait_alone() {
    let lab = Lab::start_with(
        "hostile-pace",
        "keep_alive_s = 1\n[limits]\nagent_new_streams_per_minute_max = 300",
    );
    let mut client = enrol(&lab);
    let mut known = Stream::new(&client, "/known.log");
    known.open(&mut client);
    known.send(&mut client);
    wait_until("it is archived", PATIENCE, || acked(&mut client) == 1);
    // 300 at once, and 5 a second: the last 60 take 12 seconds.
    let mut streams: Vec<Stream> = (0..360)
        .map(|n| Stream::new(&client, &format!("/new{n}.log")))
        .collect();
    let mut received = 0;
    for stream in &mut streams {
        stream.open(&mut client);
        stream.send(&mut client);
        stream.send(&mut client);
        received += acked(&mut client);
    }
    let begun = now();
    wait_until("what is allowed is archived", PATIENCE, || {
        received += acked(&mut client);
        trouble(&lab).contains("new streams wait")
    });
    // Some receipts are for several batches: what is known is what the archive says.
    let mut waits = Vec::new();
    for n in 0..20_u32 {
        let before = now();
        known.send(&mut client);
        wait_until("a known stream goes on", PATIENCE, || {
            let (events, stands) = client.breathe();
            assert!(stands, "the session stands");
            events.iter().any(
                |event| matches!(event, AgentEvent::Acked(receipt) if receipt.stream == known.id),
            )
        });
        waits.push(now().duration_since(before));
        assert!(n > 3 || trouble(&lab).contains("new streams wait"));
    }
    waits.sort();
    assert!(waits[18] < Duration::from_secs(2), "{waits:?}");
    let said = lab.wait_for_alarm("too-many-streams", "evil1");
    assert!(
        said.contains("agent_new_streams_per_minute_max, 300"),
        "{said}"
    );
    wait_until("all of them are archived", PATIENCE, || {
        assert!(client.breathe().1, "with keep-alives of a second");
        lab.metric("scrinium_streams ") >= 361 && trouble(&lab).is_empty()
    });
    assert!(now().duration_since(begun) > Duration::from_secs(6));
    assert_eq!(lab.agent("evil1")["state"], "connected");
    assert_eq!(lab.count("agent:evil1 hostile"), 720 + 21);
    let (code, said) = lab.verify();
    assert_eq!(code, 0, "{said}");
}

/// A gap entry behind a piece of a line made every package by a query differ from its manifest: what says that something is
/// missing goes into all of them.
#[test]
fn gap_entries_amid_lines_leave_packages_of_others_whole() {
    let lab = Lab::start("hostile-gaps");
    let mut client = enrol(&lab);
    let mut honest = connect(Ipv4Addr::new(127, 0, 0, 7), lab.syslog_tcp).unwrap();
    honest.write_all(b"<13>evidence of others\n").unwrap();
    let (piece, gap) = (EntryFlags::FRAGMENT, EntryFlags::GAP);
    let both = piece.and(gap);
    let whole = EntryFlags::NONE;
    let shapes: [&[(&[u8], EntryFlags)]; 6] = [
        &[(b"evidence a", piece), (b"gap x\n", gap)],
        &[
            (b"evidence b", piece),
            (b"gap x\n", gap),
            (b"rest\n", whole),
        ],
        &[(b"gap: W", both), (b"evidence c\n", whole)],
        &[(b"gap: W", both)],
        &[(b"gap: W", both), (b"gap x\n", gap), (b"evidence d", piece)],
        &[
            (b"", gap),
            (b"evidence", piece),
            (b" e", piece),
            (b"", piece),
        ],
    ];
    for (n, entries) in shapes.iter().enumerate() {
        let mut stream = Stream::new(&client, &format!("/{n}.log"));
        stream.open(&mut client);
        stream.send_entries(&mut client, entries);
    }
    let mut received = 0;
    wait_until("all is archived", PATIENCE, || {
        received += acked(&mut client);
        received == shapes.len() && lab.count("evidence agent:server") == 1
    });
    for (n, query) in ["evidence", "evidence agent:server", "agent:evil1", "x"]
        .iter()
        .enumerate()
    {
        let package = lab.dir.join(format!("{n}.tar"));
        let path = package.to_str().unwrap();
        let done = lab.server(&[
            "export",
            "--query",
            query,
            "--authority",
            "A",
            "--out",
            path,
        ]);
        assert!(done.status.success(), "{}", text(&done.stderr));
        let (code, said) = verify(&package, &[]);
        assert_eq!(code, Some(0), "{query}: {said}");
    }
    // A line that nothing ends is a line, and the gap behind it is none of its words.
    let found = text(
        &lab.server(&["search", "evidence agent:evil1", "--format", "json"])
            .stdout,
    );
    assert!(found.lines().all(|line| !line.contains("gap x")), "{found}");
    assert_eq!(lab.verify().0, 0);
}

/// What agents say is missing is in every package that may be about it, and one of them said it a million times.
#[test]
fn an_agent_that_says_very_often_what_is_missing_does_not_fill_packages_of_others() {
    let lab = Lab::start("hostile-many-gaps");
    let mut client = enrol(&lab);
    let mut honest = connect(Ipv4Addr::new(127, 0, 0, 7), lab.syslog_tcp).unwrap();
    honest.write_all(b"<13>evidence of others\n").unwrap();
    let gaps = vec![(&b"gap\n"[..], EntryFlags::GAP); 4096];
    let mut stream = Stream::new(&client, "/gaps.log");
    stream.open(&mut client);
    for _ in 0..BATCHES_OF_GAPS {
        stream.send_entries(&mut client, &gaps);
        assert!(client.breathe().1);
    }
    let last = [
        (&b"evidence of its own\n"[..], EntryFlags::NONE),
        (b"gap\n", EntryFlags::GAP),
        (b"gap: evidence\n", EntryFlags::GAP),
    ];
    stream.send_entries(&mut client, &last);
    wait_until("all is archived", PATIENCE, || {
        assert!(client.breathe().1);
        lab.count("evidence") == 3
    });
    let package = lab.dir.join("package.tar");
    let path = package.to_str().unwrap();
    let request = [
        "export",
        "--query",
        "evidence",
        "--authority",
        "A",
        "--out",
        path,
    ];
    let done = lab.server(&request);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let (code, said) = verify(&package, &[]);
    assert_eq!(code, Some(0), "{said}");
    // The first ten thousand of it and the rest of a batch; what matches is shown, however much came before.
    let parts = Parts::of(&std::fs::read(&package).unwrap());
    let manifest = parts.manifest();
    let left_out = (BATCHES_OF_GAPS - 3) * 4096 + 1;
    let not_shown = format!("what {left_out} more gap entries of evil1 say: they are not shown");
    assert!(said.contains(&not_shown), "{said}");
    assert_eq!(manifest["gaps_left_out"]["evil1"], left_out, "{manifest}");
    assert_eq!(
        (&manifest["lines"], &manifest["gaps"]),
        (&2.into(), &(3 * 4096 + 1).into())
    );
    let sheet = text(parts.get("custody.html"));
    assert!(sheet.contains("more statements that something is missing are not shown"));
}

/// More than a package shows of one agent, by far.
const BATCHES_OF_GAPS: usize = 20;

/// What the agent's page says is wrong.
/// An epoch that was left is not begun again: the archive had two entries under one number, called itself rewritten, and gave
/// one of them in an export.
#[test]
fn an_epoch_that_was_left_is_not_begun_again() {
    let lab = Lab::start("hostile-left-epoch");
    let mut client = enrol(&lab);
    let mut stream = Stream::new(&client, "/pay.log");
    stream.open(&mut client);
    stream.send_entries(&mut client, &[(b"100 euro\n", EntryFlags::NONE)]);
    stream.begin(&client, 8);
    stream.send_entries(&mut client, &[(b"another epoch\n", EntryFlags::NONE)]);
    let mut received = 0;
    wait_until("both are archived", PATIENCE, || {
        received += acked(&mut client);
        lab.count("agent:evil1") == 2
    });
    stream.begin(&client, 7);
    stream.send_entries(&mut client, &[(b"7 euro\n", EntryFlags::NONE)]);
    wait_until("the session is over", PATIENCE, || !client.breathe().1);
    let _alarm = lab.wait_for_alarm("conflicting-batch", "evil1");
    assert_eq!(lab.count("\"7 euro\""), 0);
    assert_eq!(
        lab.export("evil1", Path::new("/pay.log")),
        b"100 euro\nanother epoch\n"
    );
    assert_eq!(lab.verify().0, 0);
}

/// Each new epoch costs the archive a block, and searches a look: an agent has as many as it has reason for.
#[test]
fn an_agent_begins_a_few_epochs_in_a_day() {
    let lab = Lab::start("hostile-many-epochs");
    let mut client = enrol(&lab);
    let mut stream = Stream::new(&client, "/app.log");
    stream.open(&mut client);
    stream.send(&mut client);
    let mut ended = false;
    for epoch in 8..40 {
        stream.begin(&client, epoch);
        stream.send(&mut client);
        let (events, stands) = client.breathe();
        ended |= !stands
            || events
                .iter()
                .any(|event| matches!(event, AgentEvent::Closed { .. }));
        if ended {
            break;
        }
    }
    wait_until("the session is over", PATIENCE, || {
        ended || !client.breathe().1
    });
    assert_eq!(lab.count("agent:evil1"), 25);
    assert_eq!(lab.verify().0, 0);
}

fn trouble(lab: &Lab) -> String {
    let trouble = lab.agent("evil1")["trouble"].clone();
    trouble.as_str().unwrap_or_default().to_owned()
}

/// Receipts that came.
fn acked(client: &mut Client) -> usize {
    let (events, stands) = client.breathe();
    assert!(stands, "the session stands");
    let acked = events.iter();
    acked
        .filter(|event| matches!(event, AgentEvent::Acked(_)))
        .count()
}

const PATIENCE: Duration = Duration::from_secs(60);
