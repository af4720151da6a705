//! Channels of the Windows Event Log.
//!
//! ```text
//! channel ─▶ [EventLog] subscription after a bookmark ─▶ [Reader] what is missing is said
//!                └─ [windows] wevtapi; in tests a simulator ─▶ [render] XML and text as a message
//! ```
//!
//! The system's own bookmark says where reading goes on, strictly: when the event it names is gone, the
//! system says so instead of going on silently somewhere else, and a gap entry gives both record ids.

mod render;
#[cfg(test)]
mod simulator;
#[cfg(windows)]
mod windows;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use scrinium_protocol::identity::{StreamKind, StreamName};
use tracing::{info, warn};

use self::render::System;
use super::{Item, Sink};
use crate::clock;

/// What of a channel is collected.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Channel {
    pub(crate) name: String,
    /// An `XPath` expression of the Event Log; `*` is everything.
    pub(crate) query: String,
}

/// What the system has to offer.
trait EventLog {
    type Subscription: Subscription;

    /// Subscribes after `bookmark` or, without one, from the oldest event.
    fn subscribe(
        &mut self,
        channel: &Channel,
        bookmark: Option<&str>,
    ) -> Result<Self::Subscription, Failure>;
}

/// A place in a channel.
trait Subscription {
    /// The next events in order; none when none came within `patience`.
    fn next(&mut self, patience: Duration) -> Result<Vec<Event>, Failure>;
}

/// An event, as the system renders it.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Event {
    xml: String,
    /// The text its publisher gives it; none when the publisher is not installed.
    message: Option<String>,
    /// The system's bookmark of this event.
    bookmark: String,
}

/// Why there are no events.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
enum Failure {
    #[error("the event of the bookmark is gone")]
    Stale,
    #[error("there is no such channel")]
    NoChannel,
    #[error("the system refuses it: the agent may not read it")]
    #[cfg_attr(
        not(windows),
        expect(dead_code, reason = "the simulator never refuses")
    )]
    Denied,
    /// The Event Log service was restarted, a handle became invalid, and the like.
    #[error("the Event Log answers with error {0}")]
    Lost(u32),
}

impl Channel {
    pub(crate) fn stream(&self) -> StreamName {
        let name = match &*self.query {
            "*" => self.name.clone(),
            query => format!("{} {query}", self.name),
        };
        StreamName {
            kind: StreamKind::EventLog,
            name,
        }
    }

    /// Reads on after `bookmark`, for as long as entries are wanted.
    #[cfg(windows)]
    pub(crate) async fn run(self, bookmark: Vec<u8>, sink: Sink) {
        /// Ends the thread with the task.
        struct Stop(Arc<AtomicBool>);
        impl Drop for Stop {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let stop = Stop(Arc::default());
        let stopped = stop.0.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut reader = Reader::new(self, &bookmark, stopped);
            reader.run(&mut windows::Wevtapi::default(), &sink);
        });
        drop(reading.await);
        drop(stop);
    }

    /// Whether the record ids of the channel count its events: those of forwarded events are of the
    /// machines they come from, and a query leaves some out.
    fn is_counted(&self) -> bool {
        self.query == "*" && self.name != "ForwardedEvents"
    }
}

/// Reads a channel: subscribes, subscribes again, and says what is missing.
struct Reader {
    channel: Channel,
    stream: StreamName,
    /// The last event collected: its record id, and the system's bookmark of it. In a batch's bookmark one
    /// stands behind the other.
    last: Option<(u64, String)>,
    /// The last event is gone: what comes first now says how much.
    stale: bool,
    complained: Option<Failure>,
    stop: Arc<AtomicBool>,
}

impl Reader {
    fn new(channel: Channel, bookmark: &[u8], stop: Arc<AtomicBool>) -> Self {
        let last = bookmark.split_first_chunk().map(|(id, xml)| {
            let xml = String::from_utf8_lossy(xml).into_owned();
            (u64::from_be_bytes(*id), xml)
        });
        Self {
            stream: channel.stream(),
            channel,
            last,
            stale: false,
            complained: None,
            stop,
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Collects until entries are no longer wanted.
    fn run(&mut self, log: &mut impl EventLog, sink: &Sink) {
        let mut pause = RETRY_MIN;
        while !self.is_stopped() {
            match self.collect(log, sink) {
                Ok(()) => return,
                Err(Failure::Stale) if !self.stale => {
                    self.stale = true;
                    continue;
                }
                Err(failure) => {
                    // Once for each kind of failure, until it is over.
                    if self.complained != Some(failure) {
                        warn!(channel = %self.channel.name, error = %failure, "events are not collected; trying again");
                        self.complained = Some(failure);
                        pause = RETRY_MIN;
                    }
                }
            }
            let until = clock::now() + pause;
            pause = (pause * 2).min(RETRY_MAX);
            while !self.is_stopped()
                && let Some(left) = until.checked_duration_since(clock::now())
                && !left.is_zero()
            {
                std::thread::park_timeout(left.min(STOP_CHECK));
            }
        }
    }

    /// One subscription; `Ok` when entries are no longer wanted.
    fn collect(&mut self, log: &mut impl EventLog, sink: &Sink) -> Result<(), Failure> {
        let bookmark = self.last.as_ref().map(|(_, xml)| xml.as_str());
        let bookmark = bookmark.filter(|_| !self.stale);
        let mut subscription = log.subscribe(&self.channel, bookmark)?;
        info!(channel = %self.channel.name, "collecting events");
        loop {
            if self.is_stopped() {
                return Ok(());
            }
            for event in subscription.next(STOP_CHECK)? {
                self.complained = None;
                for item in self.items(event) {
                    if !sink.put_item_blocking(item) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// An event as entries, behind what is missing before it.
    fn items(&mut self, event: Event) -> Vec<Item> {
        let system = System::of(&event.xml);
        let id = system.record_id.unwrap_or(0);
        let mut items = Vec::with_capacity(1);
        if let Some(missing) = self.missing(id) {
            warn!(channel = %self.channel.name, "{missing}");
            items.push(Item::gap(&self.stream, &missing));
        }
        self.stale = false;
        let bookmark = [&id.to_be_bytes(), event.bookmark.as_bytes()].concat();
        let message = system.to_message(&self.channel.name, &event);
        items.extend(Item::pieces(&self.stream, &message, &bookmark));
        self.last = Some((id, event.bookmark));
        items
    }

    /// What is to be said before the event `id`.
    fn missing(&self, id: u64) -> Option<String> {
        let (last, _) = self.last.as_ref()?;
        let name = &self.channel.name;
        if self.channel.is_counted() && id == last + 1 {
            return None;
        }
        if self.stale && id > last + 1 && self.channel.is_counted() {
            return Some(format!(
                "event {last} of {name}, the last one collected, was overwritten or cleared; {} events, {} to {}, were not collected",
                id - last - 1,
                last + 1,
                id - 1
            ));
        }
        if self.stale {
            return Some(format!(
                "event {last} of {name}, the last one collected, was overwritten or cleared; collecting goes on with its oldest, event {id}, and what was between, if anything, was not collected"
            ));
        }
        if !self.channel.is_counted() {
            return None;
        }
        Some(match id > *last {
            true => format!(
                "{} events of {name}, {} to {}, were overwritten before they were collected",
                id - last - 1,
                last + 1,
                id - 1
            ),
            false => format!(
                "the numbers of {name} go from {last} back to {id}: it was cleared or made anew; what it had after {last}, if anything, was not collected"
            ),
        })
    }
}

/// Pause before a channel is subscribed to again, at first and at most.
const RETRY_MIN: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How soon the end is noticed.
const STOP_CHECK: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::Queue;
    use super::simulator::Simulator;
    use super::*;

    /// A reader at work on a simulated channel, and what it said so far.
    struct Rig {
        log: Simulator,
        items: Option<Queue>,
        thread: Option<std::thread::JoinHandle<()>>,
        stop: Arc<AtomicBool>,
        bookmark: Vec<u8>,
        texts: Vec<String>,
        events: Vec<u64>,
        missing: BTreeSet<u64>,
    }

    impl Rig {
        fn new() -> Self {
            let mut rig = Self {
                log: Simulator::new(),
                items: None,
                thread: None,
                stop: Arc::default(),
                bookmark: Vec::new(),
                texts: Vec::new(),
                events: Vec::new(),
                missing: BTreeSet::new(),
            };
            rig.start();
            rig
        }

        fn start(&mut self) {
            let (sink, items) = Sink::for_test(3);
            self.items = Some(items);
            self.stop = Arc::default();
            let (mut log, stop) = (self.log.clone(), self.stop.clone());
            let bookmark = self.bookmark.clone();
            let channel = Channel {
                name: "Security".into(),
                query: "*".into(),
            };
            self.thread = Some(std::thread::spawn(move || {
                Reader::new(channel, &bookmark, stop).run(&mut log, &sink);
            }));
        }

        /// Ends the reader; what it had not handed over is lost with it, as at a power cut.
        fn stop(&mut self) {
            self.stop.store(true, Ordering::Relaxed);
            self.items = None;
            self.thread.take().unwrap().join().unwrap();
        }

        fn take(&mut self, item: Item) {
            let text = String::from_utf8(item.bytes).unwrap();
            if !item.bookmark.is_empty() {
                self.bookmark = item.bookmark;
            }
            if item.flags.is_gap() {
                // "… events, FIRST to LAST, …"
                let words: Vec<&str> = text.split([' ', ',']).collect();
                if let Some(at) = words.windows(2).position(|pair| pair == ["to", "were"]) {
                    panic!("{at} {text}");
                }
                if let Some(at) = words.iter().position(|word| *word == "to")
                    && let (Ok(first), Ok(last)) =
                        (words[at - 1].parse::<u64>(), words[at + 1].parse())
                {
                    self.missing.extend(first..=last);
                }
            } else {
                let id = text.split("EventRecordID=\"").nth(1).unwrap();
                self.events
                    .push(id.split('"').next().unwrap().parse().unwrap());
            }
            self.texts.push(text);
        }

        /// Takes items until the event `id` was collected.
        fn settle(&mut self, id: u64) {
            while self.events.last() != Some(&id) {
                let item = self.items.as_mut().unwrap().blocking_recv().unwrap();
                self.take(item);
            }
        }

        fn gaps(&self) -> Vec<&str> {
            let texts = self.texts.iter().map(String::as_str);
            texts.filter(|text| text.starts_with("gap: ")).collect()
        }
    }

    impl Drop for Rig {
        fn drop(&mut self) {
            self.stop.store(true, Ordering::Relaxed);
            self.items = None;
        }
    }

    #[test]
    fn g1_a_clear_is_collected_and_the_reading_goes_on() {
        let mut rig = Rig::new();
        rig.log.write(10);
        rig.settle(10);
        rig.log.clear();
        rig.log.write(5);
        rig.settle(16);
        assert_eq!(rig.events, (1..=16).collect::<Vec<_>>());
        assert_eq!(rig.gaps(), [""; 0]);

        // Cleared while nobody looked, after three more events.
        rig.stop();
        rig.log.write(3);
        rig.log.clear();
        rig.start();
        rig.settle(20);
        let [gap] = rig.gaps()[..] else {
            panic!("{:?}", rig.gaps())
        };
        assert!(
            gap.contains("event 16 of Security") && gap.contains("3 events, 17 to 19"),
            "{gap}"
        );
    }

    #[test]
    fn g2_a_bookmark_that_was_overwritten_is_a_gap_with_both_ids_and_then_the_oldest() {
        let mut rig = Rig::new();
        rig.log.write(5);
        rig.settle(5);
        rig.stop();
        rig.log.write(100);
        rig.log.wrap(20);
        rig.start();
        rig.settle(105);
        assert_eq!(rig.missing, (6..=85).collect());
        assert_eq!(rig.events, (1..=5).chain(86..=105).collect::<Vec<_>>());
    }

    #[test]
    fn g3_a_restart_of_the_service_loses_and_repeats_nothing() {
        let mut rig = Rig::new();
        for round in 1..=20 {
            rig.log.write(10);
            if round % 3 == 0 {
                rig.log.fail(Failure::Lost(6));
            }
            rig.log.restart();
            rig.settle(round * 10);
        }
        assert_eq!(rig.events, (1..=200).collect::<Vec<_>>());
        assert_eq!(rig.gaps(), [""; 0]);
    }

    #[test]
    fn g4_an_event_without_a_text_is_collected_as_xml() {
        let mut rig = Rig::new();
        rig.log.write(3);
        rig.settle(3);
        assert!(rig.texts[1].contains("] event 2 happened\n<Event>"));
        assert!(rig.texts[2].contains("] <Event><System><EventRecordID>3<"));
    }

    #[test]
    fn g5_a_channel_that_comes_goes_and_is_made_anew_is_collected() {
        let mut rig = Rig::new();
        rig.stop();
        rig.log.set_exists(false);
        rig.start();
        rig.log.write(2);
        rig.log.set_exists(true);
        rig.settle(2);
        rig.log.set_exists(false);
        rig.log.restart();
        rig.log.make_anew();
        rig.log.set_exists(true);
        rig.settle(1);
        assert_eq!(rig.events, [1, 2, 1]);
        assert!(
            rig.gaps()[0].contains("event 2 of Security"),
            "{:?}",
            rig.gaps()
        );
    }

    #[test]
    fn g6_forwarded_events_are_collected_whatever_their_numbers() {
        let channel = Channel {
            name: "ForwardedEvents".into(),
            query: "*".into(),
        };
        let mut reader = Reader::new(channel, &[], Arc::default());
        for id in [7, 3, 3, 900, 1] {
            let event = Event {
                xml: format!("<System><EventRecordID>{id}</EventRecordID></System>"),
                message: None,
                bookmark: String::new(),
            };
            assert_eq!(reader.items(event).len(), 1);
        }
    }

    /// G7, G8, G9: whatever happens to the log and to the reader, every event is collected or counted as
    /// missing, and none is collected twice.
    #[test]
    fn g7_g8_g9_every_event_is_collected_once_or_counted() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut roll = |sides: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % sides
        };
        for _ in 0..40 {
            let mut rig = Rig::new();
            rig.log.write(1);
            rig.settle(1);
            for _ in 0..30 {
                match roll(8) {
                    0 => rig.log.wrap(usize::try_from(roll(30)).unwrap()),
                    1 => rig.log.clear(),
                    2 => rig.log.restart(),
                    3 => rig.log.fail(Failure::Lost(1734)),
                    4 => {
                        rig.stop();
                        rig.log.write(roll(60));
                        rig.start();
                    }
                    5 => {
                        for _ in 0..roll(10) {
                            if let Some(item) = rig.items.as_mut().unwrap().try_next() {
                                rig.take(item);
                            }
                        }
                    }
                    _ => rig.log.write(roll(40)),
                }
            }
            rig.log.write(1);
            let last = rig.log.last();
            rig.settle(last);
            let unique: BTreeSet<u64> = rig.events.iter().copied().collect();
            assert_eq!(unique.len(), rig.events.len(), "something came twice");
            assert!(unique.is_disjoint(&rig.missing));
            let all: BTreeSet<u64> = unique.union(&rig.missing).copied().collect();
            assert_eq!(all, (1..=last).collect());
        }
    }
}
