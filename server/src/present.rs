//! Entries and agents as people and programs see them: fields derived from bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use scrinium_protocol::identity::{AgentId, StreamId, StreamKind};
use scrinium_protocol::shown;
use scrinium_protocol::sl::sources::SourceReport;
use scrinium_protocol::syslog::message::{Message, parse};
use scrinium_syslog::senders::{UNKNOWN_SENDERS, split_sender};
use serde_json::{Value, json};

use crate::agents::Live;
use crate::audit::NotWritten;
use crate::catalogue::records::{AgentRecord, StreamRecord};
use crate::clock;
use crate::core::Core;
use crate::i18n::Language;
use crate::index::hits::Hit;
use crate::index::turns::Busy;
use crate::said::Said;

/// What is shown of one entry.
pub(crate) struct View {
    pub(crate) agent: String,
    pub(crate) stream: String,
    pub(crate) kind: StreamKind,
    pub(crate) sequence: u64,
    /// When it happened, as the entry says, interpreted; else when it was collected. Unix µs.
    pub(crate) event_us: u64,
    pub(crate) received_us: u64,
    /// When it was collected as its agent says, where that is after its receipt: it is ordered and found by that then.
    pub(crate) claimed: Option<String>,
    pub(crate) host: String,
    pub(crate) severity: Option<u8>,
    pub(crate) app: String,
    /// The line without its terminator, undecodable bytes replaced.
    pub(crate) text: String,
    pub(crate) is_gap: bool,
}

impl View {
    pub(crate) fn new(
        hit: &Hit,
        agents: &BTreeMap<AgentId, String>,
        streams: &BTreeMap<StreamId, StreamRecord>,
    ) -> Self {
        let stream = streams.get(&hit.place.stream);
        let agent = stream
            .and_then(|stream| agents.get(&stream.agent))
            .cloned()
            .unwrap_or_default();
        let kind = stream.map_or(StreamKind::File, |stream| stream.kind);
        let name = stream.map_or_else(String::new, |stream| stream.name.to_string());
        let line = trim_end(&hit.bytes);
        // An unknown sender's address stands before what it sent.
        let unknown = (name == UNKNOWN_SENDERS).then(|| split_sender(line));
        let unknown = unknown.flatten();
        let message: Message<'_> = if hit.is_gap {
            Message::default()
        } else {
            parse(unknown.map_or(line, |(_, message)| message))
        };
        let event_us = message
            .time
            .and_then(|time| u64::try_from(time.resolve(hit.place.time_us.cast_signed())).ok());
        let sender = matches!(kind, StreamKind::SyslogUdp | StreamKind::SyslogTcp);
        let sender =
            sender.then(|| unknown.map_or_else(|| name.clone(), |(address, _)| address.to_owned()));
        Self {
            host: message
                .host
                .map(str::to_owned)
                .or(sender)
                .unwrap_or_else(|| agent.clone()),
            severity: message.severity,
            app: message.app.unwrap_or_default().to_owned(),
            text: String::from_utf8_lossy(line).into_owned(),
            event_us: event_us.unwrap_or(hit.place.time_us),
            received_us: hit.received_us,
            claimed: hit.claimed_us.map(claimed),
            sequence: hit.place.sequence,
            is_gap: hit.is_gap,
            agent,
            stream: name,
            kind,
        }
    }

    /// Its fields, exactly.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "time": rfc3339(self.event_us),
            "received": rfc3339(self.received_us),
            "time_claimed": self.claimed,
            "agent": self.agent,
            "stream": self.stream,
            "kind": self.kind.name(),
            "sequence": self.sequence,
            "host": self.host,
            "severity": self.severity.map(severity_name),
            "app": self.app,
            "gap": self.is_gap,
            "text": self.text,
        })
    }

    /// A row of a table; characters without a picture are escaped as in [`shown::cell`], so that no table moves a
    /// cursor or turns a text round. A line feed in a text stays, as RFC 4180 has it, but on a terminal, where it would
    /// look like another row.
    pub(crate) fn to_csv(&self, to_terminal: bool) -> String {
        let fields: [&str; 11] = [
            &rfc3339(self.event_us),
            &rfc3339(self.received_us),
            &self.agent,
            &self.stream,
            &self.sequence.to_string(),
            &self.host,
            self.severity.map(severity_name).unwrap_or_default(),
            &self.app,
            &self.text,
            self.claimed.as_deref().unwrap_or_default(),
            if self.is_gap { "gap" } else { "" },
        ];
        let seen = |field: &str| {
            csv_field(&match to_terminal {
                true => Cow::Owned(shown::line(field.as_bytes())),
                false => shown::cell(field),
            })
        };
        fields.map(seen).join(",")
    }
}

/// What a table begins with that goes to a file or a pipe, so that spreadsheets read it as UTF-8: without it they show
/// every accent as two letters.
pub(crate) const CSV_MARK: &str = "\u{feff}";
/// The first row of a table of [`View::to_csv`].
pub(crate) const CSV_NAMES: &str =
    "time,received,agent,stream,sequence,host,severity,app,text,time_claimed,gap";

/// Writes an entry as a line, whatever is in it: on a terminal with its further lines behind a mark. One that begins as
/// what a collector says is missing, and is none, begins with `\x67`: no line speaks for the collector.
pub(crate) fn write_line(out: &mut Vec<u8>, bytes: &[u8], is_gap: bool, to_terminal: bool) {
    let entry = trim_end(bytes);
    let (lead, entry) = match entry.strip_prefix(b"g") {
        Some(rest) if !is_gap && rest.starts_with(b"ap:") => (&b"\\x67"[..], rest),
        _ => (&b""[..], entry),
    };
    out.extend_from_slice(lead);
    if to_terminal {
        out.extend_from_slice(shown::entry(entry).as_bytes());
    } else {
        out.extend_from_slice(&shown::plain(entry));
    }
    out.push(b'\n');
}

/// A field that no spreadsheet takes for a formula.
fn csv_field(text: &str) -> String {
    // Spreadsheets leave out what stands before, and some take the wide forms of the signs for the signs.
    let skipped = |c: char| c.is_whitespace() || c.is_control() || c == '\u{feff}';
    let begins = text.trim_start_matches(skipped).starts_with(FORMULA_BEGINS);
    let guard = if begins || text.starts_with(['\t', '\r', '\n']) {
        "'"
    } else {
        ""
    };
    format!("\"{guard}{}\"", text.replace('"', "\"\""))
}

/// How an agent does, one word; see [`state_of`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum AgentState {
    Connected,
    /// Connected, and entries wait on its side.
    Buffering,
    Silent,
    Refused,
    Disabled,
    NeverSeen,
}

impl AgentState {
    /// The word of the API, the style sheet and the catalogues.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Buffering => "buffering",
            Self::Silent => "silent",
            Self::Refused => "refused",
            Self::Disabled => "disabled",
            Self::NeverSeen => "never-seen",
        }
    }
}

/// The state of an agent, from its session and keep-alives; true within two keep-alives.
pub(crate) fn state_of(agent: &AgentRecord, live: &Live, core: &Core) -> AgentState {
    if !agent.enabled {
        return AgentState::Disabled;
    }
    let keep_alive_us = u64::try_from(core.keep_alive.as_micros()).unwrap_or(u64::MAX);
    let silent_us = clock::unix_us().saturating_sub(live.heard_us);
    if live.connected && silent_us <= keep_alive_us.saturating_mul(2) {
        let waits = live.keep_alive.oldest_us > 0
            && clock::unix_us().saturating_sub(live.keep_alive.oldest_us) > BUFFERING_US;
        return if waits {
            AgentState::Buffering
        } else {
            AgentState::Connected
        };
    }
    if live.refused {
        return AgentState::Refused;
    }
    // Its enrolment is a connection of its own, and the first generation of its credential.
    if live.state_us == 0 && agent.generation <= 1 {
        return AgentState::NeverSeen;
    }
    AgentState::Silent
}

/// The key an agent signs with, as people compare it; `None` before it was enrolled.
pub(crate) fn signing_key(agent: &AgentRecord) -> Option<String> {
    let key = &agent.signing_public;
    (*key != [0; 32]).then(|| shown::key(key))
}

/// Every agent for the API and the command.
pub(crate) fn agents_json(core: &Core) -> Value {
    let last = core.archive.last_of_agents();
    let agents = core.agents.list();
    let rows = agents.iter().map(|(agent, live)| {
        // What it has not said since this server began is not known.
        let said = (live.state_us > 0).then_some(&live.keep_alive);
        let sources = live.sources.rows.iter().map(source_json);
        json!({
            "name": agent.name,
            "id": agent.id.to_string(),
            "key": signing_key(agent),
            "site": agent.site,
            "state": state_of(agent, live, core).name(),
            "host": agent.host_name,
            "version": agent.version,
            "os": agent.os,
            "address": live.address.map(|address| address.to_string()),
            "last_durable": last.get(&agent.id).copied().map(rfc3339),
            "last_keep_alive": (live.heard_us > 0).then(|| rfc3339(live.heard_us)),
            "backlog_entries": said.map(|said| said.backlog_entries),
            "backlog_bytes": said.map(|said| said.backlog_bytes),
            "cache_bytes": said.map(|said| said.disk_bytes),
            "cache_bytes_max": said.map(|said| said.disk_bytes_max),
            "oldest_entry": said.filter(|said| said.oldest_us > 0).map(|said| rfc3339(said.oldest_us)),
            "state_said": (live.state_us > 0).then(|| rfc3339(live.state_us)),
            "sources": sources.collect::<Vec<Value>>(),
            "sources_more": live.sources.more,
            "cache_lasts_s": Some(live.keep_alive.cache_lasts_s).filter(|&lasts| lasts > 0),
            "clock_offset_ms": live.clock_offset_us.map(|offset_us| offset_us / 1000),
            "credential_generation": agent.generation,
            "trouble": live.trouble().map(|trouble| trouble.to_string()),
            "integrity_only": agent.integrity_only,
            "quarantine": agent.quarantine.as_ref().map(|seen| json!({
                "reason": Said::from(seen.reason.clone()).to_string(),
                "address": seen.address,
                "host": seen.host_name,
                "since": rfc3339(seen.since_us),
                "approved": seen.approved,
            })),
            "configuration": agent.configuration.as_ref().map(|wanted| json!({
                "version": wanted.version,
                "answered": wanted.answered,
                "rejected": wanted.rejected,
            })),
            "in_force": live.in_force.iter().map(|setting| json!({
                "name": setting.name,
                "value": setting.value,
                "from": setting.origin.name(),
            })).collect::<Vec<_>>(),
        })
    });
    Value::Array(rows.collect())
}

/// How one source of an agent does.
fn source_json(row: &SourceReport) -> Value {
    json!({
        "source": row.source,
        "state": row.state.name(),
        "path": row.path,
        "cause": row.cause,
        "files": row.files,
        "needs_person": row.needs_person,
    })
}

/// Every alarm for the API and the command, newest first.
pub(crate) fn alarms_json(core: &Core, t: Language) -> Value {
    let rows = core.alarms.list().into_iter().map(|alarm| {
        json!({
            "id": alarm.id,
            "kind": alarm.kind.name(),
            "agent": alarm.agent,
            "severity": alarm.kind.severity().name(),
            "text": alarm.said(t),
            "said": alarm.said,
            "addresses": alarm.addresses,
            "first": rfc3339(alarm.first_us),
            "last": rfc3339(alarm.last_us),
            "count": alarm.count,
            "acknowledged_by": alarm.acknowledged_by,
            "acknowledged": alarm.acknowledged_by.is_some().then(|| rfc3339(alarm.acknowledged_us)),
            "over": (alarm.over_us > 0).then(|| rfc3339(alarm.over_us)),
            "over_why": alarm.over(t),
            "told": alarm.told,
        })
    });
    Value::Array(rows.collect())
}

/// What whoever is refused something reads of it.
pub(crate) fn refusal(t: Language, error: &anyhow::Error) -> String {
    match (error.downcast_ref::<NotWritten>(), error.is::<Busy>()) {
        // English readers get the numbers.
        (None, true) if t != Language::En => t.text("refused.busy").to_owned(),
        (Some(NotWritten::Unavailable), _) => t.text("error.unwritable").to_owned(),
        _ => t.refusal(error),
    }
}

/// Names of RFC 5424 §6.2.1, table 2.
pub(crate) fn severity_name(severity: u8) -> &'static str {
    const NAMES: [&str; 8] = [
        "emergency",
        "alert",
        "critical",
        "error",
        "warning",
        "notice",
        "info",
        "debug",
    ];
    NAMES.get(usize::from(severity)).copied().unwrap_or("")
}

/// Unix µs as RFC 3339 in UTC, to the millisecond.
pub(crate) fn rfc3339(us: u64) -> String {
    format_time(us, "%Y-%m-%dT%H:%M:%S%.3fZ")
}

/// A time that somebody says; of years that no calendar has, the number.
fn claimed(us: u64) -> String {
    match rfc3339(us) {
        unknown if unknown == UNKNOWN_TIME => format!("{us} µs after 1970"),
        time => time,
    }
}

/// Unix µs in UTC by a `strftime` pattern.
pub(crate) fn format_time(us: u64, pattern: &str) -> String {
    let timestamp = i64::try_from(us)
        .ok()
        .and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
    timestamp.map_or_else(
        || UNKNOWN_TIME.to_owned(),
        |time| time.strftime(pattern).to_string(),
    )
}

/// Bytes as people read them.
pub(crate) fn human_bytes(bytes: u64) -> String {
    for (unit, name) in [
        (1_u64 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ] {
        if bytes >= unit {
            let tenths = u128::from(bytes) * 10 / u128::from(unit);
            return format!("{}.{} {name}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

/// A line without its terminator.
pub(crate) fn trim_end(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., b'\n' | b'\r'] = bytes {
        bytes = rest;
    }
    bytes
}

const UNKNOWN_TIME: &str = "?";
/// What a spreadsheet takes for the begin of a formula.
const FORMULA_BEGINS: [char; 8] = [
    '=', '+', '-', '@', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}',
];
/// Entries that wait longer than this are a backlog.
const BUFFERING_US: u64 = 15_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_csv_field_cannot_be_a_formula() {
        assert_eq!(csv_field("=cmd()"), "\"'=cmd()\"");
        for text in [
            "=cmd()",
            "+1",
            "-1",
            "@SUM(A1)",
            " \t =cmd()",
            "\tplain",
            "\rplain",
            "\n=cmd()",
            "\u{ff1d}cmd()",
            "\u{feff}=cmd()",
            "\u{a0}=cmd()",
        ] {
            assert!(csv_field(text).starts_with("\"'"), "{text:?}");
        }
        assert_eq!(csv_field("a=b"), "\"a=b\"");
        assert_eq!(csv_field("say \"hi\""), "\"say \"\"hi\"\"\"");
    }

    #[test]
    fn bytes_are_readable() {
        assert_eq!(human_bytes(512), "512 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_bytes(5 << 30), "5.0 GiB");
    }
}
