//! Alarms on their way to people: by mail, to a webhook, to a syslog server.
//!
//! ```text
//! [crate::alarms] news ─▶ of each channel: by kind, waits ─▶ one message with all that is due ─▶ [channel]
//!                                            └─ a kind that was told lately waits ─┘   └─ failed: later and later
//! ```
//!
//! A flood of one kind is one message with its number, and a channel is used every few seconds at most: ten thousand alarms
//! in a minute are a handful of messages. What could not be sent is kept as numbers and the first few, and sent when the
//! channel works again; alarms that stand and were not sent before a stop are sent after it.

mod channel;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use tracing::{error, info};

pub(crate) use self::channel::{Channel, Way};
use self::text::Message;
use crate::alarms::news::News;
use crate::alarms::{AlarmKind, Raise};
use crate::clock;
use crate::core::{Core, OWN_NAME};
use crate::duties::keep::{Duty, Plan};
use crate::said::said;

/// The duty.
pub(crate) struct Sending {
    core: Arc<Core>,
    /// Of each mailbox one.
    queues: Vec<(Channel, Queue)>,
}

impl Sending {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        let now = clock::now();
        // What was told before the server was restarted ends too.
        let failed = core.alarms.lasting_of_server(AlarmKind::AlarmsNotSent);
        let queues = core.channels.iter().flat_map(Channel::each);
        let queues = queues.map(|channel| {
            let mut queue = Queue::new(now);
            let name = channel.full_name();
            queue.is_alarmed = failed.contains(&name);
            queue.add(core.alarms.untold(&name, channel.name()), &channel);
            (channel, queue)
        });
        Self {
            queues: queues.collect(),
            core,
        }
    }
}

impl Duty for Sending {
    async fn round(&mut self) -> Result<()> {
        let core = self.core.clone();
        let news = core.alarms.take_news();
        for (channel, queue) in &mut self.queues {
            queue.add(news.clone(), channel);
        }
        // One that does not answer holds the others up for one message at most.
        let rounds = self.queues.iter_mut();
        let rounds = rounds.map(|(channel, queue)| send_due(&core, channel, queue));
        futures_util::future::join_all(rounds).await;
        Ok(())
    }
}

/// Sends what is due by one channel.
async fn send_due(core: &Core, channel: &Channel, queue: &mut Queue) {
    let now = clock::now();
    let due = queue.due(now);
    if due.is_empty() {
        return;
    }
    let name = &*channel.full_name();
    let message = Message::new(core, channel.language, &due);
    match channel.send(&message).await {
        Ok(()) => {
            let ids = due.values().flat_map(|news| news.ids.iter().copied());
            core.alarms.told(&ids.collect(), name);
            if queue.failures > 0 {
                info!(channel = name, "alarms leave again");
            }
            if queue.is_alarmed {
                queue.is_alarmed = false;
                let over = said!("over.sent");
                core.alarms
                    .end_of(AlarmKind::AlarmsNotSent, OWN_NAME, name, over)
                    .await;
            }
            queue.sent(due.keys().copied(), clock::now());
        }
        Err(error) => {
            queue.failed(due, clock::now());
            let error = format!("{error:#}");
            error!(
                channel = name,
                error,
                times = queue.failures,
                "alarms could not be sent; it is tried again"
            );
            if queue.failures == FAILURES_MIN {
                queue.is_alarmed = true;
                let raise = Raise {
                    kind: AlarmKind::AlarmsNotSent,
                    agent: OWN_NAME.to_owned(),
                    text: said!("alarm_text.alarms-not-sent", name, error),
                    key: name.to_owned(),
                };
                core.alarms.raise(raise).await;
            }
        }
    }
}

/// What waits for a channel.
#[derive(Debug)]
struct Queue {
    waiting: BTreeMap<AlarmKind, News>,
    /// When each kind was told last, and for how long it waits then.
    told: BTreeMap<AlarmKind, (Instant, Duration)>,
    /// Nothing is sent before.
    free_at: Instant,
    failures: u32,
    /// The alarm that it does not work lasts.
    is_alarmed: bool,
}

impl Queue {
    fn new(now: Instant) -> Self {
        Self {
            waiting: BTreeMap::new(),
            told: BTreeMap::new(),
            free_at: now,
            failures: 0,
            is_alarmed: false,
        }
    }

    /// Adds what is grave enough for the channel.
    fn add(&mut self, news: BTreeMap<AlarmKind, News>, channel: &Channel) {
        for (kind, news) in news {
            if kind.severity() >= channel.severity {
                self.waiting.entry(kind).or_default().merge(news);
            }
        }
    }

    /// Takes what is to be sent now, all in one message.
    fn due(&mut self, now: Instant) -> BTreeMap<AlarmKind, News> {
        if now < self.free_at {
            return BTreeMap::new();
        }
        let told = &self.told;
        let is_due = |kind: &AlarmKind| {
            told.get(kind)
                .is_none_or(|(at, wait)| now.duration_since(*at) >= *wait)
        };
        let (due, later) = core::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(kind, _)| is_due(kind));
        self.waiting = later;
        due
    }

    fn sent(&mut self, kinds: impl Iterator<Item = AlarmKind>, now: Instant) {
        self.failures = 0;
        self.free_at = now + GAP;
        for kind in kinds {
            let before = self.told.get(&kind);
            // What comes again as soon as it may is told less and less often.
            let wait = match before {
                Some((at, wait)) if now.duration_since(*at) < wait.saturating_mul(2) => {
                    wait.saturating_mul(2).min(HOLD_MAX)
                }
                _ => HOLD,
            };
            self.told.insert(kind, (now, wait));
        }
    }

    fn failed(&mut self, due: BTreeMap<AlarmKind, News>, now: Instant) {
        for (kind, mut before) in due {
            // What happened first stays first.
            if let Some(later) = self.waiting.remove(&kind) {
                before.merge(later);
            }
            self.waiting.insert(kind, before);
        }
        let wait = RETRY.saturating_mul(1 << self.failures.min(RETRY_DOUBLINGS_MAX));
        self.failures = self.failures.saturating_add(1);
        self.free_at = now + wait.min(RETRY_MAX);
    }
}

/// Ends the alarms of channels that are not configured any more.
pub(crate) async fn end_unkept(core: &Core) {
    let kept = core.channels.iter().flat_map(Channel::each);
    let kept: BTreeSet<String> = kept.map(|channel| channel.full_name()).collect();
    let kind = AlarmKind::AlarmsNotSent;
    core.alarms.end_all_but(kind, &kept).await;
}

/// What became of a test of one channel.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Tested {
    pub(crate) channel: String,
    /// Who or what it goes to.
    pub(crate) to: String,
    /// Why it did not leave.
    pub(crate) error: Option<String>,
}

/// Sends a message that says that it is a test by every channel.
///
/// # Errors
/// None is configured.
pub(crate) async fn test(core: &Core) -> Result<Vec<Tested>> {
    if core.channels.is_empty() {
        bail!(said!("refused.no_channel"));
    }
    let mut tested = Vec::new();
    for channel in core.channels.iter().flat_map(Channel::each) {
        let message = Message::test(core, channel.language);
        let sent = channel.send(&message).await;
        tested.push(Tested {
            channel: channel.name().to_owned(),
            to: channel.to(),
            error: sent.err().map(|error| format!("{error:#}")),
        });
    }
    Ok(tested)
}

pub(crate) const PLAN: Plan = Plan {
    point: "duty: alarms to people",
    every: Duration::from_secs(1),
    // A relay may take a minute to say no, for each who is to get it.
    long: Duration::from_secs(600),
    raises: true,
};
/// Between two messages of a channel: a mailbox and a pager are used six times a minute at most.
const GAP: Duration = Duration::from_secs(10);
/// A kind that was told waits so long, twice as long each time it comes again at once, and so long at most.
const HOLD: Duration = Duration::from_secs(300);
const HOLD_MAX: Duration = Duration::from_secs(3600);
/// After a failure; twice as long each time, and so long at most.
const RETRY: Duration = Duration::from_secs(10);
const RETRY_DOUBLINGS_MAX: u32 = 12;
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// In a row: a relay that is restarted is no alarm.
const FAILURES_MIN: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alarms::Severity;
    use crate::alarms::news::Change;
    use crate::catalogue::records::AlarmRecord;

    fn alarm(id: u64, kind: AlarmKind) -> AlarmRecord {
        let text = format!(
            r#"{{"id":{id},"kind":"{}","agent":"web{id}","text":"x","key":"","first_us":1,"last_us":2,"count":1,
                "acknowledged_by":null,"acknowledged_us":0}}"#,
            kind.name()
        );
        serde_json::from_str(&text).unwrap()
    }

    fn news(kind: AlarmKind, ids: std::ops::Range<u64>) -> BTreeMap<AlarmKind, News> {
        let mut news = News::default();
        ids.for_each(|id| news.add(Change::Raised, &alarm(id, kind)));
        BTreeMap::from([(kind, news)])
    }

    fn channel(severity: Severity) -> Channel {
        Channel {
            way: Way::Webhook("http://127.0.0.1:1/".into()),
            severity,
            language: crate::i18n::Language::En,
        }
    }

    #[test]
    fn ten_thousand_alarms_in_a_minute_are_a_handful_of_messages() {
        let channel = channel(Severity::Notice);
        let begun = clock::now();
        let mut queue = Queue::new(begun);
        let (mut messages, mut told) = (0, 0);
        // Of every kind, all the time, as fast as a duty looks.
        for second in 0..60 {
            let now = begun + Duration::from_secs(second);
            for (at, kind) in AlarmKind::ALL.into_iter().enumerate() {
                let first = second * 1000 + at as u64 * 10;
                queue.add(news(kind, first..first + 6), &channel);
            }
            let due = queue.due(now);
            if !due.is_empty() {
                messages += 1;
                told += due.values().map(|news| news.raised).sum::<u64>();
                queue.sent(due.into_keys(), now);
            }
        }
        assert!(messages < 6, "{messages}");
        // The rest is not forgotten: it is one message more.
        let due = queue.due(begun + HOLD + Duration::from_secs(60));
        let rest: u64 = due.values().map(|news| news.raised).sum();
        assert_eq!(told + rest, 60 * 6 * AlarmKind::ALL.len() as u64);
        assert!(
            due.values()
                .all(|news| news.samples.len() <= 10 && news.more() > 0)
        );
    }

    #[test]
    fn what_goes_on_is_told_less_and_less_often_and_at_once_after_a_calm() {
        let channel = channel(Severity::Notice);
        let begun = clock::now();
        let mut queue = Queue::new(begun);
        let mut at = Vec::new();
        for minute in 0..24 * 60 {
            let now = begun + Duration::from_secs(minute * 60);
            queue.add(news(AlarmKind::TokenRefused, minute..minute + 1), &channel);
            let due = queue.due(now);
            if !due.is_empty() {
                at.push(minute);
                queue.sent(due.into_keys(), now);
            }
        }
        assert_eq!(at.get(..4), Some(&[0, 5, 15, 35][..]));
        assert!(at.len() < 32, "{at:?}");
        let calm = begun + Duration::from_secs(48 * 3600);
        queue.waiting.clear();
        queue.add(news(AlarmKind::TokenRefused, 0..1), &channel);
        let due = queue.due(calm);
        assert_eq!(due.len(), 1);
        queue.sent(due.into_keys(), calm);
        assert_eq!(queue.told[&AlarmKind::TokenRefused].1, HOLD);
    }

    #[test]
    fn a_channel_takes_what_is_grave_enough_and_what_fails_is_kept_and_tried_later_and_later() {
        let channel = channel(Severity::Critical);
        let begun = clock::now();
        let mut queue = Queue::new(begun);
        queue.add(news(AlarmKind::AgentSilent, 0..5), &channel);
        assert!(queue.due(begun).is_empty());
        queue.add(news(AlarmKind::DiskFull, 0..5), &channel);
        let (mut now, mut tries) = (begun, 0);
        while now < begun + Duration::from_secs(24 * 3600) {
            let due = queue.due(now);
            if !due.is_empty() {
                tries += 1;
                queue.failed(due, now);
            }
            now += Duration::from_secs(1);
        }
        assert!((20..40).contains(&tries), "{tries}");
        queue.add(news(AlarmKind::DiskFull, 5..7), &channel);
        assert_eq!(queue.due(now + RETRY_MAX)[&AlarmKind::DiskFull].raised, 7);
    }

    /// A relay of mail that refuses everybody called `gone`; who got a letter is sent to `got`.
    async fn relay(listener: tokio::net::TcpListener, got: tokio::sync::mpsc::Sender<String>) {
        use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
        while let Ok((stream, _)) = listener.accept().await {
            let got = got.clone();
            tokio::spawn(async move {
                let (reader, mut writer) = stream.into_split();
                let mut lines = tokio::io::BufReader::new(reader).lines();
                let (mut to, mut is_letter) = (String::new(), false);
                writer.write_all(b"220 relay\r\n").await.unwrap();
                while let Ok(Some(line)) = lines.next_line().await {
                    let answer = match &*line {
                        "." => {
                            is_letter = false;
                            got.try_send(to.clone()).unwrap();
                            "250 taken"
                        }
                        _ if is_letter => continue,
                        line if line.starts_with("RCPT TO:<gone@") => "550 nobody is called so",
                        line if line.starts_with("RCPT TO:") => {
                            to = line.replace("RCPT TO:", "");
                            "250 good"
                        }
                        "DATA" => {
                            is_letter = true;
                            "354 go on"
                        }
                        "QUIT" => "221 bye",
                        _ => "250 good",
                    };
                    if writer
                        .write_all(format!("{answer}\r\n").as_bytes())
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_mailbox_that_is_refused_keeps_no_letter_from_the_others_and_gives_them_none_twice()
    {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (got, mut letters) = tokio::sync::mpsc::channel(64);
        let relaying = tokio::spawn(relay(listener, got));
        let dir = crate::core::tests::new_volume("mailboxes", |_| {});
        let config = format!(
            "[mail]\nrelay = \"smtp://{address}\"\nfrom = \"scrinium@example.org\"\n\
             [alarms]\nmail_to = [\"ada@example.org\", \"gone@example.org\", \"bob@example.org\"]\n"
        );
        let running = crate::core::tests::running_with(&dir, &config);
        let core = running.core.clone();
        let raise = |key: &str| Raise {
            kind: AlarmKind::DiskFull,
            agent: OWN_NAME.to_owned(),
            text: "x".into(),
            key: key.to_owned(),
        };
        core.alarms.raise(raise("1")).await;
        let mut sending = Sending::new(core.clone());
        for _ in 0..4 {
            sending.round().await.unwrap();
            // It may be tried again at once.
            let now = clock::now();
            sending
                .queues
                .iter_mut()
                .for_each(|(_, queue)| queue.free_at = now);
        }
        let mut told = Vec::new();
        while let Ok(to) = letters.try_recv() {
            told.push(to);
        }
        told.sort();
        assert!(told.len() <= 4, "{told:?}");
        // The second letter of a mailbox that works tells that another one does not.
        told.dedup();
        assert_eq!(told, ["<ada@example.org>", "<bob@example.org>"]);
        let failed = core.alarms.lasting_of_server(AlarmKind::AlarmsNotSent);
        assert_eq!(failed, BTreeSet::from(["mail gone@example.org".to_owned()]));
        let alarm = core.alarms.list().pop().unwrap();
        let expected = ["mail ada@example.org", "mail bob@example.org"].map(str::to_owned);
        assert_eq!(alarm.told, BTreeSet::from(expected));
        drop((core, sending));
        relaying.abort();
        running.close().await;
        std::fs::remove_dir_all(dir).unwrap();
    }
}
