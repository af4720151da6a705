//! What a message about alarms says: a letter, an object for programs, lines of syslog.

use std::collections::BTreeMap;

use scrinium_protocol::shown;
use serde_json::{Value, json};

use crate::alarms::news::{Change, News};
use crate::alarms::{AlarmKind, Severity};
use crate::bounds;
use crate::catalogue::records::AlarmRecord;
use crate::clock;
use crate::core::{Core, host_name};
use crate::i18n::Language;
use crate::present::rfc3339;
use crate::said::said;

/// A message in all its forms.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) subject: String,
    pub(super) text: String,
    pub(super) json: Value,
    /// RFC 5424, one for each kind.
    pub(super) lines: Vec<String>,
}

impl Message {
    /// About what happened; the gravest first.
    pub(super) fn new(core: &Core, t: Language, due: &BTreeMap<AlarmKind, News>) -> Self {
        Self::of(&Place::of(core), t, due)
    }

    /// That nothing happened, and that this is how it would be told.
    pub(super) fn test(core: &Core, t: Language) -> Self {
        let place = Place::of(core);
        let text = t.say(&said!("notice.test", &place.host));
        Self {
            subject: format!("[Scrinium] {text}"),
            text: format!("{text}\n"),
            json: json!({
                "server": place.host, "time": rfc3339(clock::unix_us()), "test": true, "kinds": [],
            }),
            lines: vec![line(&place.host, Severity::Notice, "test", &text)],
        }
    }

    fn of(place: &Place, t: Language, due: &BTreeMap<AlarmKind, News>) -> Self {
        let mut kinds: Vec<(&AlarmKind, &News)> = due.iter().collect();
        kinds.sort_by_key(|(kind, _)| core::cmp::Reverse(kind.severity()));
        let mut text = String::new();
        for (kind, news) in &kinds {
            text.push_str(&heading(t, **kind, news));
            text.push('\n');
            for (change, alarm) in news.samples.values() {
                text.push_str(&format!("  {}\n", sentence(t, *change, alarm)));
            }
            if news.more() > 0 {
                text.push_str(&format!(
                    "  {}\n",
                    t.say(&said!("notice.more", news.more()))
                ));
            }
            text.push('\n');
        }
        text.push_str(&t.say(&said!("notice.where", &place.host)));
        text.push('\n');
        let (worst, first) = match kinds.first() {
            Some((kind, news)) => (kind.severity(), subject(t, **kind, news)),
            None => (Severity::Notice, String::new()),
        };
        let others = match kinds.len().saturating_sub(1) {
            0 => String::new(),
            others => format!(" {}", t.say(&said!("notice.others", others))),
        };
        let severity = t.text(&format!("severity.{}", worst.name()));
        Self {
            subject: format!("[Scrinium {}] {severity}: {first}{others}", place.host),
            text,
            json: json!({
                "server": place.host,
                "time": rfc3339(clock::unix_us()),
                "severity": worst.name(),
                "kinds": kinds.iter().map(|(kind, news)| object(t, **kind, news)).collect::<Vec<_>>(),
            }),
            lines: kinds
                .iter()
                .map(|(kind, news)| {
                    let first = news.samples.values().next();
                    let first = first.map_or_else(String::new, |(change, alarm)| {
                        format!(": {}", sentence(t, *change, alarm))
                    });
                    let text = format!("{}{first}", heading(t, **kind, news));
                    line(&place.host, kind.severity(), kind.name(), &text)
                })
                .collect(),
        }
    }
}

/// Whose alarms they are.
struct Place {
    host: String,
}

impl Place {
    fn of(core: &Core) -> Self {
        // What agents dial names the server where the machine has no name.
        let host = host_name().unwrap_or_else(|| core.address.clone());
        Self { host }
    }
}

/// A kind and how often what happened: `Agent silent: 3 raised, 1 over`.
fn heading(t: Language, kind: AlarmKind, news: &News) -> String {
    let counts = [
        (news.raised, said!("notice.raised", news.raised)),
        (news.again, said!("notice.again", news.again)),
        (news.over, said!("notice.over", news.over)),
    ];
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let counts: Vec<String> = counts.map(|(_, said)| t.say(said)).collect();
    format!("{}: {}", title(t, kind), counts.join(", "))
}

/// A kind, and of which agent if it is one.
fn subject(t: Language, kind: AlarmKind, news: &News) -> String {
    let mut agents = news.samples.values().map(|(_, alarm)| alarm.agent.as_str());
    let agent = agents.next().unwrap_or_default();
    if agent.is_empty() || agents.any(|other| other != agent) || news.more() > 0 {
        return heading(t, kind, news);
    }
    format!("{} ({agent})", heading(t, kind, news))
}

fn title(t: Language, kind: AlarmKind) -> &'static str {
    t.text(&format!("alarm.{}", kind.name()))
}

/// One alarm, a line whatever is in it.
fn sentence(t: Language, change: Change, alarm: &AlarmRecord) -> String {
    let who = match alarm.agent.as_str() {
        "" => String::new(),
        agent => format!("{agent}: "),
    };
    let text = match change {
        Change::Over => {
            let why = alarm.over(t).unwrap_or_default();
            t.say(&said!("notice.is_over", why, alarm.said(t)))
        }
        Change::Raised | Change::Again => alarm.said(t),
    };
    let times = match alarm.count {
        0 | 1 => String::new(),
        count => format!(" ({})", t.with("alarm.times", t.number(count))),
    };
    let line = format!(
        "{} #{} {who}{text}{times}",
        rfc3339(alarm.last_us),
        alarm.id
    );
    bounds::cut(&shown::sentence(&line), SENTENCE_LEN_MAX)
}

fn object(t: Language, kind: AlarmKind, news: &News) -> Value {
    let alarms = news.samples.values().map(|(change, alarm)| {
        json!({
            "id": alarm.id,
            "state": match change {
                Change::Raised => "raised",
                Change::Again => "again",
                Change::Over => "over",
            },
            "agent": alarm.agent,
            "text": alarm.said(t),
            "said": alarm.said,
            "over": alarm.over(t),
            "count": alarm.count,
            "first": rfc3339(alarm.first_us),
            "last": rfc3339(alarm.last_us),
        })
    });
    json!({
        "kind": kind.name(),
        "severity": kind.severity().name(),
        "title": title(t, kind),
        "raised": news.raised,
        "again": news.again,
        "over": news.over,
        "alarms": alarms.collect::<Vec<_>>(),
        "more": news.more(),
    })
}

/// A line of RFC 5424 of the facility "log audit".
fn line(host: &str, severity: Severity, kind: &str, text: &str) -> String {
    let priority = u32::from(FACILITY) * 8 + u32::from(severity.number());
    let plain = |text: &str, len_max: usize| -> String {
        let plain = text.chars().filter(char::is_ascii_graphic);
        plain.take(len_max).collect()
    };
    let host = match plain(host, HOST_LEN_MAX) {
        host if host.is_empty() => "-".to_owned(),
        host => host,
    };
    let time = rfc3339(clock::unix_us());
    let text = bounds::cut(text, LINE_LEN_MAX);
    format!("<{priority}>1 {time} {host} scrinium - {kind} - \u{feff}{text}")
}

/// RFC 5424 §6.2.1, table 1: log audit.
const FACILITY: u8 = 13;
/// RFC 5424 §6: as long as a host's name may be.
const HOST_LEN_MAX: usize = 255;
/// Every receiver of syslog takes messages of 2048 bytes, RFC 5424 §6.1.
const LINE_LEN_MAX: usize = 1700;
/// Bytes of one alarm in a message.
const SENTENCE_LEN_MAX: usize = 1500;

#[cfg(test)]
mod tests {
    use super::*;

    fn due(count: u64, text: &str) -> BTreeMap<AlarmKind, News> {
        let mut news = News::default();
        for id in 1..=count {
            let alarm = json!({
                "id": id, "kind": "agent-silent", "agent": "web1", "text": text, "key": "", "first_us": 1,
                "last_us": 2, "count": 1, "acknowledged_by": null, "acknowledged_us": 0,
            });
            news.add(Change::Raised, &serde_json::from_value(alarm).unwrap());
        }
        BTreeMap::from([(AlarmKind::AgentSilent, news)])
    }

    fn message(t: Language, due: &BTreeMap<AlarmKind, News>) -> Message {
        let place = Place {
            host: "logs1".into(),
        };
        Message::of(&place, t, due)
    }

    #[test]
    fn a_message_names_the_gravest_kind_counts_all_and_shows_the_first() {
        let mut due = due(30, "nothing was heard");
        due.insert(AlarmKind::DiskFull, due[&AlarmKind::AgentSilent].clone());
        let message = message(Language::En, &due);
        assert!(
            message.subject.starts_with("[Scrinium logs1] critical: "),
            "{}",
            message.subject
        );
        assert!(
            message.text.contains("30") && message.text.contains("20 more"),
            "{}",
            message.text
        );
        assert_eq!(
            message.json["kinds"][1]["alarms"].as_array().unwrap().len(),
            10
        );
        assert_eq!(message.json["kinds"][1]["more"], 20);
        assert_eq!(message.lines.len(), 2);
        assert!(message.lines[0].starts_with("<106>1 ") && message.lines[1].starts_with("<108>1 "));
    }

    #[test]
    fn what_others_wrote_makes_no_line_and_no_header_of_its_own() {
        let few = due(1, "x\r\nBcc: all@example.org\u{1b}[2J");
        for t in Language::ALL {
            let message = message(t, &few);
            assert!(
                !message.subject.contains(['\r', '\n']),
                "{}",
                message.subject
            );
            assert!(!message.text.contains(['\r', '\u{1b}']));
            assert!(!message.text.lines().any(|line| line.starts_with("Bcc")));
            assert!(!message.lines[0].contains(['\r', '\n', '\u{1b}']));
        }
        let long = message(Language::En, &due(1, &"é".repeat(100_000)));
        assert!(long.lines[0].len() < 2048 && long.text.len() < 4096);
    }
}
