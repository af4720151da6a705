//! The configuration: what is taken, and how what is not is named.

use super::*;

#[test]
fn an_empty_file_gives_the_documented_ports() {
    let config = Config::parse("").unwrap();
    assert_eq!(config.sl, ["0.0.0.0:720"]);
    assert_eq!(config.console, ["0.0.0.0:8443"]);
    assert!(config.metrics.is_empty());
    assert_eq!(config.syslog_tcp, ["0.0.0.0:514", "0.0.0.0:5140"]);
}

#[test]
fn metrics_are_on_loopback_unless_an_address_says_otherwise() {
    let text = "[listen]\nmetrics = ['9720', '192.0.2.1:9720']";
    let config = Config::parse(text).unwrap();
    assert_eq!(config.metrics, ["127.0.0.1:9720", "192.0.2.1:9720"]);
}

#[test]
fn unknown_and_bad_fields_are_named() {
    for (text, name) in [
        ("[listen]\nsll = []", "sll"),
        ("[listen]\nsl = ['here']", "listen.sl"),
        ("[listen]\nmetrics = ['here']", "listen.metrics"),
        ("[agents]\naddress = 'logs'", "agents.address"),
        ("[agents]\nkeep_alive_s = 0", "agents.keep_alive_s"),
        ("[agents]\nsilent_after_s = 9", "agents.silent_after_s"),
        (
            "[agents]\nclock_offset_max_s = 0",
            "agents.clock_offset_max_s",
        ),
        (
            "[agents]\nclock_offset_max_s = 86401",
            "agents.clock_offset_max_s",
        ),
        ("[retention]\nstep_wait_h = 0", "retention.step_wait_h"),
        ("[retention]\nstep_wait_h = 721", "retention.step_wait_h"),
        ("[retention]\nwait = 1", "wait"),
        ("[agents]\nhandshakes_per_s = 0", "agents.handshakes_per_s"),
        ("[agents]\nhalf_open_max = 65537", "agents.half_open_max"),
        ("[agents]\nsessions_max = 0", "agents.sessions_max"),
        ("[listen]\nsl_integrity = ['x']", "listen.sl_integrity"),
        ("[archive]\nlog_mib_max = 0", "archive.log_mib_max"),
        ("[archive]\nreread_days = 0", "archive.reread_days"),
        ("[archive]\nlog_minutes_max = 0", "archive.log_minutes_max"),
        (
            "[archive]\nlog_minutes_max = 1441",
            "archive.log_minutes_max",
        ),
        ("[archive]\ncipher = 'rot13'", "archive.cipher"),
        ("[evidence]\ninterval_s = 0", "evidence.interval_s"),
        ("[evidence]\ninterval_s = 301", "evidence.interval_s"),
        ("[evidence]\ncopies = ['x']", "evidence.copies"),
        (
            "[evidence]\ntime_stamp_authority = 'ftp://x'",
            "evidence.time_stamp_authority",
        ),
        ("[evidence]\nwitnesses = ['x']", "evidence.witnesses"),
        ("[alarms]\nmail_to = ['a@b.c']", "mail.relay"),
        ("[alarms]\nwebhook = 'ftp://x'", "alarms.webhook"),
        ("[alarms]\nsyslog = '10.0.0.9:514'", "alarms.syslog"),
        ("[alarms]\nlanguage = 'de'", "alarms.language"),
        (
            "[alarms]\nwebhook = 'http://x/'\nwebhook_severity = 'loud'",
            "alarms.webhook_severity",
        ),
        ("[alarms]\nmail = 'x'", "mail"),
        ("[backup]\nto = '/b'", "backup.keys"),
        ("[backup]\nto = 'ftp://b/c'\nkeys = '/k'", "backup.to"),
        (
            "[backup]\nto = '/b'\nkeys = '/k'\nevery_h = 0",
            "backup.every_h",
        ),
        ("[evidence]\nmail_to = ['a@b']", "mail.relay"),
        ("[evidence]\nmail_to = ['nobody']", "evidence.mail_to"),
        ("[mail]\nrelay = 'smtp://r'", "mail.from"),
        ("[mail]\nrelay = 'http://r'\nfrom = 'a@b'", "mail.relay"),
        ("[mail]\nrelay = 'smtp://r'\nfrom = 'a'", "mail.from"),
        (
            "[mail]\nrelay = 'smtp://me:secret@r'\nfrom = 'a@b'",
            "mail.password_file",
        ),
        ("[mail]\nuser = 'u'", "mail.password_file"),
        ("[mail]\npassword_file = '/p'", "mail.user"),
        ("[console]\nkey = '/k'", "console.certificate"),
        (
            "[limits]\nconsole_connections_max = 0",
            "limits.console_connections_max",
        ),
        (
            "[limits]\nsyslog_connections_each_max = 65537",
            "limits.syslog_connections_each_max",
        ),
        ("[limits]\nsyslog_idle_h = 8761", "limits.syslog_idle_h"),
        (
            "[limits]\nsyslog_senders_max = 0",
            "limits.syslog_senders_max",
        ),
        (
            "[limits]\nagent_streams_max = 1000001",
            "limits.agent_streams_max",
        ),
        ("[limits]\nstreams = 1", "streams"),
    ] {
        let error = format!("{:#}", Config::parse(text).unwrap_err());
        assert!(error.contains(name), "{error}");
    }
}
