//! Copies, restored states and changed machines: the agent itself is never locked out, and nothing of it
//! is silent (scenarios J).

use std::io::Write as _;
use std::path::{Path, PathBuf};
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
use scrinium_tests::lab::{Lab, text};
use scrinium_tests::random::Random;
use scrinium_tests::{has_tool, now, pause, skipped, wait_until};

/// J1 (same characteristics): both run, the copy is refused, the alarm names both.
#[test]
fn j1_a_clone_beside_its_running_original_is_refused_and_alarmed_and_the_original_ships_on() {
    let mut lab = Lab::start("j1");
    lab.add_agent("web1", lab.sl, "");
    let log = write_line(&lab, "app.log", "first");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 6, Duration::from_secs(20));
    lab.copy_agent("web1", "clone");
    lab.start_agent("clone");

    let alarm = lab.wait_for_alarm("identity-used-twice", "web1");
    assert_eq!(alarm.matches("127.0.0.1:").count(), 2, "{alarm}");
    write_line(&lab, "app.log", "second");
    lab.wait_for_bytes("web1", &log, 13, Duration::from_secs(10));
    assert_eq!(lab.agent("web1")["state"], "connected");
    // Nothing of it was archived twice, and the clone is told what to do.
    assert_eq!(lab.export("web1", &log), b"first\nsecond\n");
    let refused = std::fs::read_to_string(lab.dir.join("clone.out")).unwrap();
    assert!(refused.contains("refused"), "{refused}");
    assert!(audited(&lab, "identity-used-twice") >= 1);
}

/// J1 (the clone of a virtual machine: the same machine-id, other hardware): quarantined, both addresses
/// named, the original unaffected; and J7: one exchanged component is written down and tolerated.
#[test]
fn j7_one_changed_component_is_noted_and_more_are_quarantined_until_a_person_approves() {
    if !has_root() {
        return;
    }
    let mut lab = Lab::start("j7");
    lab.add_agent("web1", lab.sl, "");
    let log = write_line(&lab, "app.log", "one");
    lab.spawn_agent(
        "web1",
        "",
        &hardware("52:54:00:00:00:01", "uuid-a", "serial-a"),
    );
    lab.wait_for_bytes("web1", &log, 4, Duration::from_secs(20));
    lab.stop_agent("web1");

    // Another network card: noted, let in. (Enrolled on the real machine, it had changed once before.)
    let noted = "\"machine changed\" network-cards";
    let before = audited(&lab, noted);
    lab.spawn_agent(
        "web1",
        "",
        &hardware("52:54:00:00:00:02", "uuid-a", "serial-a"),
    );
    lab.wait_connected("web1");
    assert_eq!(audited(&lab, noted), before + 1);
    lab.copy_agent("web1", "clone");
    lab.stop_agent("web1");

    // Another machine altogether: quarantined, with both addresses in the alarm.
    lab.spawn_agent(
        "clone",
        "",
        &hardware("52:54:00:00:00:03", "uuid-b", "serial-b"),
    );
    let alarm = lab.wait_for_alarm("identity-used-twice", "web1");
    assert!(
        alarm.contains("dmi-uuid") && alarm.contains("dmi-serial"),
        "{alarm}"
    );
    assert_eq!(lab.agent("web1")["quarantine"]["approved"], false);
    lab.kill_agent("clone");

    // The agent itself is let in as before.
    lab.spawn_agent(
        "web1",
        "",
        &hardware("52:54:00:00:00:02", "uuid-a", "serial-a"),
    );
    write_line(&lab, "app.log", "two");
    lab.wait_for_bytes("web1", &log, 8, Duration::from_secs(20));
    lab.stop_agent("web1");

    // Moved to other hardware on purpose: one approval, and it goes on where it stood.
    lab.spawn_agent(
        "web1",
        "",
        &hardware("52:54:00:00:00:04", "uuid-c", "serial-c"),
    );
    wait_until("it waits for approval", Duration::from_secs(20), || {
        lab.agent("web1")["quarantine"]["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("dmi-uuid"))
            && lab.agent("web1")["state"] == "refused"
    });
    approve(&lab, "web1");
    write_line(&lab, "app.log", "three");
    lab.wait_for_bytes("web1", &log, 14, Duration::from_secs(30));
    assert_eq!(lab.export("web1", &log), b"one\ntwo\nthree\n");
    wait_until("the quarantine is over", Duration::from_secs(10), || {
        lab.agent("web1")["quarantine"].is_null()
    });
}

/// J2: the state is from yesterday. It is refused, not locked out: approved, it begins a new epoch where
/// the server stands, and that is archived.
#[test]
fn j2_a_snapshot_reverted_agent_goes_on_in_a_new_epoch_after_approval() {
    let mut lab = Lab::start("j2");
    lab.add_agent("web1", lab.sl, "");
    let log = write_line(&lab, "app.log", "one");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 4, Duration::from_secs(20));
    lab.stop_agent("web1");
    lab.copy_agent("web1", "yesterday");
    // A day's life: several credentials, more lines.
    for (n, line) in ["two", "three"].into_iter().enumerate() {
        write_line(&lab, "app.log", line);
        lab.start_agent("web1");
        lab.wait_for_bytes("web1", &log, 8 + n * 6, Duration::from_secs(20));
        lab.stop_agent("web1");
    }
    let state = lab.state("web1");
    std::fs::remove_dir_all(&state).unwrap();
    copy(&lab.state("yesterday"), &state);
    lab.start_agent("web1");
    let alarm = lab.wait_for_alarm("identity-used-twice", "web1");
    assert!(alarm.contains("restored"), "{alarm}");
    write_line(&lab, "app.log", "four");
    approve(&lab, "web1");
    lab.wait_for_bytes("web1", &log, 19, Duration::from_secs(40));
    assert_eq!(lab.export("web1", &log), b"one\ntwo\nthree\nfour\n");
    assert_eq!(audited(&lab, "rollback \"new epoch\""), 1);
    assert_eq!(lab.verify().0, 0);
}

/// J3: the *server* is from yesterday. What the agent still can read is sent again, into the new history.
#[test]
fn j3_a_server_restored_from_a_backup_gets_again_what_agents_still_hold() {
    let mut lab = Lab::start("j3");
    lab.add_agent("web1", lab.sl, "");
    let log = write_line(&lab, "app.log", "one");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 4, Duration::from_secs(20));
    lab.stop_agent("web1");
    lab.stop_server();
    let backup = lab.dir.join("backup");
    copy(&lab.data(), &backup);
    lab.start_server();
    for (n, line) in ["two", "three"].into_iter().enumerate() {
        write_line(&lab, "app.log", line);
        lab.start_agent("web1");
        lab.wait_for_bytes("web1", &log, 8 + n * 6, Duration::from_secs(20));
        lab.stop_agent("web1");
    }
    lab.stop_server();
    std::fs::remove_dir_all(lab.data()).unwrap();
    copy(&backup, &lab.data());
    lab.start_server();
    assert_eq!(lab.export("web1", &log), b"one\n");

    lab.start_agent("web1");
    let alarm = lab.wait_for_alarm("identity-used-twice", "web1");
    assert!(alarm.contains("restored"), "{alarm}");
    approve(&lab, "web1");
    lab.wait_for_bytes("web1", &log, 14, Duration::from_secs(40));
    assert_eq!(lab.export("web1", &log), b"one\ntwo\nthree\n");
    // They came again, under other numbers: what the server acknowledged before is missing for good, and said.
    let unmet = lab.wait_for_alarm("receipt-unmet", "web1");
    assert!(
        unmet.contains("this server acknowledged entries of stream"),
        "{unmet}"
    );
    let (code, said) = lab.verify();
    assert_eq!(code, 3, "{said}");
    assert!(
        said.contains("holds a receipt for entries that were missing"),
        "{said}"
    );
}

/// J3, for what nobody holds any more: the server's last backup is older than the file's rotation.
#[test]
fn j3_what_neither_server_nor_agent_holds_any_more_is_a_gap_entry() {
    let mut lab = Lab::start("j3-gap");
    lab.add_agent("web1", lab.sl, "");
    let log = write_line(&lab, "app.log", "one");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 4, Duration::from_secs(20));
    lab.stop_agent("web1");
    lab.stop_server();
    let backup = lab.dir.join("backup");
    copy(&lab.data(), &backup);
    lab.start_server();
    write_line(&lab, "app.log", "two");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 8, Duration::from_secs(20));
    lab.stop_agent("web1");
    // The file is rotated away for good, and the server loses what it had since the backup.
    std::fs::remove_file(&log).unwrap();
    write_line(&lab, "app.log", "three");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 14, Duration::from_secs(20));
    lab.stop_agent("web1");
    lab.stop_server();
    std::fs::remove_dir_all(lab.data()).unwrap();
    copy(&backup, &lab.data());
    lab.start_server();

    lab.start_agent("web1");
    let _alarm = lab.wait_for_alarm("identity-used-twice", "web1");
    approve(&lab, "web1");
    lab.wait_for_bytes("web1", &log, 10, Duration::from_secs(40));
    assert_eq!(lab.export("web1", &log), b"one\nthree\n");
    let gaps = lab.search("agent:web1 \"gap: the file read up to byte\"");
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert!(
        gaps[0].to_string().contains("up to byte 4 is gone"),
        "{gaps:?}"
    );
    // And it is missing for good: the agent holds a receipt for it.
    let _alarm = lab.wait_for_alarm("receipt-unmet", "web1");
    let (code, report) = lab.verify();
    assert_eq!(code, 3, "{report}");
    assert!(
        report.contains("holds a receipt for entries that were missing"),
        "{report}"
    );
    // One of the file, and one of what the agent said of itself meanwhile.
    assert!(report.contains("; 2 gap entries"), "{report}");
}

/// J4: see `enrolment.rs` for each refusal; here, that somebody hears of it.
#[test]
fn j4_a_refused_token_is_an_alarm_and_an_entry_of_the_audit_stream() {
    let lab = Lab::start("j4");
    let token = lab.token("web1", lab.sl);
    assert!(lab.enrol("one", &token).status.success());
    assert_eq!(lab.enrol("two", &token).status.code(), Some(4));
    let alarm = lab.wait_for_alarm("token-refused", "");
    assert!(alarm.contains("already used"), "{alarm}");
    assert_eq!(audited(&lab, "\"enrolment refused\""), 1);
}

/// J6: no certificate and no credential expires while an agent is away. What can get out of step comes
/// back by approval; with neither credential it never does.
#[test]
fn j6_an_agent_that_was_away_comes_back_and_an_unproven_one_never_does() {
    let mut lab = Lab::start("j6");
    lab.add_agent("web1", lab.sl, "");
    lab.add_agent("web2", lab.sl, "");
    let log = write_line(&lab, "app.log", "one");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 4, Duration::from_secs(20));
    lab.stop_agent("web1");
    lab.stop_server();
    lab.start_server();
    lab.start_agent("web1");
    lab.wait_connected("web1");
    // An agent with another's credential: nothing to approve, it proves nothing.
    let approved = lab.server(&["agent", "approve", "web2"]);
    assert!(!approved.status.success());
    let said = text(&approved.stderr);
    assert!(said.contains("nothing waits for approval"), "{said}");
}

/// J8: an agent that no longer reports is an alarm.
#[test]
fn j8_an_agent_that_was_led_away_is_missed() {
    let mut lab = Lab::start_with("j8", "silent_after_s = 10");
    lab.add_agent("web1", lab.sl, "");
    let log = write_line(&lab, "app.log", "one");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 4, Duration::from_secs(20));
    lab.stop_agent("web1");
    let alarm = lab.wait_for_alarm("agent-silent", "web1");
    assert!(alarm.contains("nothing was heard"), "{alarm}");
    let id = lab.alarms()[0]["id"].to_string();
    assert!(lab.server(&["alarm", "acknowledge", &id]).status.success());
    assert_eq!(lab.alarms()[0]["acknowledged_by"], "local");
}

/// An agent that began a new epoch may hold receipts of the one before: the archive has what they are for.
#[test]
fn a_receipt_of_an_epoch_that_the_agent_left_is_no_alarm() {
    let lab = Lab::start("left-epoch");
    let token = Token::parse(&lab.token("web1", lab.sl)).unwrap();
    let mut client = Client::enrol(&token, lab.sl, 1);
    wait_until("it is ready", Duration::from_secs(10), || {
        let (_, stands) = client.breathe();
        stands && client.is_ready
    });
    let id = StreamId::derive(client.agent, StreamKind::File, "/app.log");
    // One entry in each epoch; the receipt for it.
    let receipt = |client: &mut Client, epoch: u8| {
        let opened = client
            .session
            .send_stream_open(id, StreamKind::File, "/app.log", now());
        opened.unwrap();
        let start = StreamPosition::start(client.agent, id, Epoch([epoch; 16]));
        let mut builder = BatchBuilder::new();
        let meta = EntryMeta {
            time_us: 1,
            flags: EntryFlags::NONE,
        };
        assert!(builder.push(format!("of epoch {epoch}\n").as_bytes(), meta));
        let key = Client::signing();
        let mut compressor = Compressor::new(1);
        let (batch, _) = builder.seal(id, &start, Vec::new(), &key, &mut compressor);
        let sent = client
            .session
            .send_batch(Lane::Live, &batch.header, batch.encoded(), now());
        sent.unwrap().unwrap();
        let mut acked = None;
        wait_until("it is acked", Duration::from_secs(10), || {
            let (events, stands) = client.breathe();
            assert!(stands);
            acked = events.into_iter().find_map(|event| {
                if let AgentEvent::Acked(receipt) = event {
                    Some(receipt)
                } else {
                    None
                }
            });
            acked.is_some()
        });
        acked.unwrap()
    };
    let first = receipt(&mut client, 7);
    let _second = receipt(&mut client, 8);
    client.session.send_receipt(first, now()).unwrap();
    // What the server makes of it is done before it takes what comes behind.
    let _third = receipt(&mut client, 9);
    let kinds = lab.alarms();
    assert!(
        kinds.iter().all(|alarm| alarm["kind"] != "receipt-unmet"),
        "{kinds:?}"
    );
    assert_eq!(lab.trail("receipt for entries that are missing").len(), 0);
    assert_eq!(lab.verify().0, 0);
}

/// Two histories of one stream under one signature: the archive keeps the first, and somebody hears of it.
#[test]
fn a_batch_that_contradicts_the_archive_is_an_alarm_and_changes_nothing() {
    let lab = Lab::start("conflict");
    contradict(&lab);
    assert_eq!(
        lab.export("web1", Path::new("/app.log")),
        b"what happened\nand then\n"
    );
    assert_eq!(lab.verify().0, 0);
}

/// Where the batch stands is found without all else that is archived: an old segment that cannot be read hides nothing.
#[test]
fn a_batch_that_contradicts_the_archive_is_found_though_an_old_segment_is_damaged() {
    let mut lab = Lab::start("conflict-damaged");
    let archive = lab.data().join("archive");
    let segments = || -> Vec<PathBuf> {
        let files = std::fs::read_dir(&archive).unwrap().flatten();
        files
            .map(|file| file.path())
            .filter(|path| path.is_file())
            .collect()
    };
    lab.stop_server();
    lab.start_server();
    wait_until("what was is sealed", Duration::from_secs(20), || {
        !segments().is_empty()
    });
    lab.stop_server();
    for segment in segments() {
        let mut bytes = std::fs::read(&segment).unwrap();
        let half = bytes.len() / 2;
        bytes[half..].fill(0);
        let mut file = std::fs::File::create(&segment).unwrap();
        file.write_all(&bytes).unwrap();
    }
    lab.start_server();
    contradict(&lab);
}

/// An agent signs two histories of one stream.
fn contradict(lab: &Lab) {
    let token = Token::parse(&lab.token("web1", lab.sl)).unwrap();
    let mut client = Client::enrol(&token, lab.sl, 1);
    wait_until("it is ready", Duration::from_secs(10), || {
        let (_, stands) = client.breathe();
        stands && client.is_ready
    });
    let id = StreamId::derive(client.agent, StreamKind::File, "/app.log");
    let begun = now();
    let opened = client
        .session
        .send_stream_open(id, StreamKind::File, "/app.log", begun);
    opened.unwrap();
    let start = StreamPosition::start(client.agent, id, Epoch([7; 16]));
    let send = |line: &[u8], position: &StreamPosition, client: &mut Client| {
        let mut builder = BatchBuilder::new();
        let meta = EntryMeta {
            time_us: 1,
            flags: EntryFlags::NONE,
        };
        assert!(builder.push(line, meta));
        let key = Client::signing();
        let mut compressor = Compressor::new(1);
        let (batch, after) = builder.seal(id, position, Vec::new(), &key, &mut compressor);
        let sent = client
            .session
            .send_batch(Lane::Live, &batch.header, batch.encoded(), now());
        sent.unwrap().unwrap();
        after
    };
    let after = send(b"what happened\n", &start, &mut client);
    let _end = send(b"and then\n", &after, &mut client);
    wait_until("both are acked", Duration::from_secs(10), || {
        let (events, _) = client.breathe();
        events
            .iter()
            .any(|event| matches!(event, AgentEvent::Acked(receipt) if receipt.next.0 == 2))
    });
    // Not even the last one: the archive is asked what stands in its place.
    let _other = send(b"what did not\n", &start, &mut client);
    wait_until("the session ends", Duration::from_secs(10), || {
        !client.breathe().1
    });
    let alarm = lab.wait_for_alarm("conflicting-batch", "web1");
    assert!(alarm.contains("contradicts"), "{alarm}");
}

/// A configuration from the server: applied live, answered truthfully, never back to an older one.
#[test]
fn k1_a_configuration_is_applied_or_rejected_with_its_reason_and_survives_a_restart() {
    let mut lab = Lab::start("configuration");
    lab.add_agent("web1", lab.sl, "");
    let more = lab.dir.join("more");
    std::fs::create_dir_all(&more).unwrap();
    lab.start_agent("web1");
    lab.wait_connected("web1");
    let other = more.join("other.txt");
    append(&other, "from the other file\n");
    lab.write("bad.toml", b"[[source]]\nfile = 'relative.log'\n");
    let good = format!("[[source]]\nfile = \"{}/*.txt\"\n", more.display());
    lab.write("good.toml", good.as_bytes());

    configure(&lab, "bad.toml");
    wait_until("it is rejected", Duration::from_secs(10), || {
        lab.agent("web1")["configuration"]["rejected"]
            .as_str()
            .is_some_and(|reason| reason.contains("source.file"))
    });
    assert_eq!(lab.count("other"), 0);
    configure(&lab, "good.toml");
    lab.wait_for_bytes("web1", &other, 20, Duration::from_secs(20));
    let state = lab.agent("web1")["configuration"].clone();
    assert_eq!(
        (&state["answered"], &state["rejected"]),
        (&2.into(), &serde_json::Value::Null)
    );

    // It outlives the agent's process, and the local sources stay.
    lab.kill_agent("web1");
    lab.start_agent("web1");
    append(&other, "more of it\n");
    lab.wait_for_bytes("web1", &other, 31, Duration::from_secs(20));
    let log = write_line(&lab, "app.log", "local");
    lab.wait_for_bytes("web1", &log, 6, Duration::from_secs(20));
}

/// K2: with a configuration that leaves too narrow a way to the server the agent goes back, by itself, to the
/// one before, says so, and nothing is lost meanwhile.
#[test]
fn k2_a_configuration_that_puts_the_server_out_of_reach_is_taken_back() {
    let mut lab = Lab::start("k2");
    lab.add_agent("web1", lab.sl, "[server]\nrevert_after_s = 12");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    lab.write(
        "bad.toml",
        b"[limits]\nupload_bytes_per_s_max = \"1 KiB\"\n",
    );
    configure(&lab, "bad.toml");
    wait_until("it is applied", Duration::from_secs(10), || {
        lab.agent("web1")["configuration"]["answered"] == 1
    });
    // What does not get smaller by compression, and so takes minutes at this rate.
    let mut random = Random::from_env_or(2);
    let mut lines = String::new();
    while lines.len() < 400_000 {
        lines += &format!(
            "{:016x}{:016x}\n",
            random.below(u64::MAX),
            random.below(u64::MAX)
        );
    }
    let log = lab.log("app.log");
    append(&log, &lines);
    wait_until("it is taken back", Duration::from_secs(60), || {
        lab.agent("web1")["configuration"]["rejected"]
            .as_str()
            .is_some_and(|reason| reason.contains("out of reach"))
    });
    lab.wait_for_bytes("web1", &log, lines.len(), Duration::from_secs(60));
    assert_eq!(lab.export("web1", &log), lines.as_bytes());

    // A good one is kept for good.
    lab.write(
        "good.toml",
        b"[limits]\nupload_bytes_per_s_max = \"1 MiB\"\n",
    );
    configure(&lab, "good.toml");
    wait_until("the good one is applied", Duration::from_secs(10), || {
        let state = lab.agent("web1")["configuration"].clone();
        state["answered"] == 2 && state["rejected"].is_null()
    });
}

/// K4: a source that is taken out says where it ends; named again, it goes on there.
#[test]
fn k4_a_source_that_is_taken_out_ends_with_a_marker_and_goes_on_when_it_is_named_again() {
    let mut lab = Lab::start("k4");
    lab.add_agent("web1", lab.sl, "");
    let more = lab.dir.join("more");
    std::fs::create_dir_all(&more).unwrap();
    let socket = lab.dir.join("relay.sock");
    let with = format!(
        "[[source]]\nfile = \"{}/*.txt\"\n[[source]]\nsyslog = \"unix://{}\"\n",
        more.display(),
        socket.display()
    );
    lab.write("with.toml", with.as_bytes());
    let own = format!(
        "allow_listen = [\"unix://{}\"]\n[[source]]\nfile = \"{}/*.log\"\n",
        socket.display(),
        lab.dir.join("logs").display()
    );
    lab.write("web1.toml", own.as_bytes());
    lab.write("without.toml", b"[[source]]\nfile = \"/nowhere/*.txt\"\n");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    let other = more.join("other.txt");
    append(&other, "one\n");
    configure(&lab, "with.toml");
    lab.wait_for_bytes("web1", &other, 4, Duration::from_secs(20));
    let sender = std::os::unix::net::UnixDatagram::unbound().unwrap();
    sender.send_to(b"<13>relayed first", &socket).unwrap();
    wait_until("it is relayed", Duration::from_secs(20), || {
        lab.count("relayed") == 1
    });

    configure(&lab, "without.toml");
    let marked = |count| {
        wait_until("the end is said", Duration::from_secs(20), || {
            lab.count("\"the configuration names this source no longer\"") == count
        });
    };
    marked(2);
    append(&other, "two\n");
    configure(&lab, "with.toml");
    wait_until("it goes on", Duration::from_secs(20), || {
        lab.count("stream:other.txt two") == 1
    });
    sender.send_to(b"<13>relayed second", &socket).unwrap();
    wait_until("it is relayed", Duration::from_secs(20), || {
        lab.count("relayed") == 2
    });
    configure(&lab, "without.toml");
    marked(4);
    assert_eq!(text(&lab.export("web1", &other)), "one\ntwo\n");
    for entry in [1, 3] {
        let said = format!("stream:other.txt \"ends after entry {entry},\"");
        assert_eq!(lab.count(&said), 1, "{said}");
    }
}

/// How many entries of the audit stream match, those about searches aside.
pub(crate) fn audited(lab: &Lab, query: &str) -> u64 {
    lab.count(&format!("stream:audit {query} -search"))
}

fn configure(lab: &Lab, file: &str) {
    let path = lab.dir.join(file);
    let done = lab.server(&[
        "agent",
        "configure",
        "web1",
        "--file",
        path.to_str().unwrap(),
    ]);
    assert!(done.status.success(), "{}", text(&done.stderr));
}

pub(crate) fn approve(lab: &Lab, agent: &str) {
    let approved = lab.server(&["agent", "approve", agent]);
    assert!(approved.status.success(), "{}", text(&approved.stderr));
}

pub(crate) fn write_line(lab: &Lab, name: &str, line: &str) -> PathBuf {
    let path = lab.log(name);
    append(&path, &format!("{line}\n"));
    path
}

fn append(path: &Path, bytes: &str) {
    let file = std::fs::File::options()
        .append(true)
        .create(true)
        .open(path);
    std::io::Write::write_all(&mut file.unwrap(), bytes.as_bytes()).unwrap();
    // Two writes within one timer tick would look like one to a reader that compares times.
    pause(Duration::from_millis(5));
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status();
    assert!(copied.unwrap().success());
}

pub(crate) fn has_root() -> bool {
    let root = std::process::Command::new("id").arg("-u").output().unwrap();
    let is_root = text(&root.stdout).trim() == "0" && has_tool("unshare");
    if !is_root {
        skipped("other machines are made with mount namespaces, which need root");
    }
    is_root
}

/// A machine with this network card, board and serial number, as its kernel would show them.
fn hardware<'a>(card: &'a str, uuid: &'a str, serial: &'a str) -> [&'a str; 9] {
    let script = "mount -t tmpfs tmpfs /sys/class && mkdir -p /sys/class/net/eth0/device /sys/class/dmi/id && \
        echo $1 > /sys/class/net/eth0/address && echo $2 > /sys/class/dmi/id/product_uuid && \
        echo $3 > /sys/class/dmi/id/board_serial && shift 3 && exec \"$@\"";
    [
        "unshare", "-m", "sh", "-c", script, "sh", card, uuid, serial,
    ]
}
