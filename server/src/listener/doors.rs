//! The places of this server's listeners: how many, whose, and what is said when they are short.
//!
//! ```text
//! configuration ─┐
//! descriptors ───┴─▶ [Doors]: SL handshakes, sessions, console, syslog ─▶ log, alarm
//! ```
//!
//! Every connection is a file descriptor. What the listeners may have together leaves a reserve for commands,
//! logs and segments.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;
use scrinium_syslog::admission::{Admission, Counts, Limits};
use scrinium_syslog::senders::UNKNOWN_SENDERS;
use scrinium_syslog::tcp_limits;
use tracing::warn;

use super::seats::Seats;
use crate::alarms::{AlarmKind, Raise};
use crate::clock;
use crate::config::{Connections, Handshakes};
use crate::core::{Core, OWN_NAME};
use crate::duties::keep::{Duty, Plan};
use crate::said::said;

/// Who may come in where.
pub(crate) struct Doors {
    /// Handshakes of agents.
    pub(crate) sl: Arc<Admission>,
    /// Agents that shook hands.
    pub(crate) sessions: Arc<Seats>,
    pub(crate) console: Arc<Admission>,
    pub(crate) syslog: Arc<Admission>,
    /// All listeners of `listen.metrics` together.
    pub(crate) metrics: Arc<Admission>,
}

impl Doors {
    /// The doors as configured, narrower where there are not so many `descriptors`.
    pub(crate) fn new(
        handshakes: Handshakes,
        connections: Connections,
        descriptors: Option<u64>,
    ) -> Self {
        let wanted = [
            handshakes.half_open_max,
            handshakes.sessions_max,
            connections.console_max,
            connections.syslog_max,
        ];
        let places = fit(wanted, descriptors);
        if places != wanted {
            let [half_open, sessions, console, syslog] = places;
            warn!(
                descriptors,
                half_open,
                sessions,
                console,
                syslog,
                "fewer connections than configured are let in, because this process may not open more files: raise LimitNOFILE"
            );
        }
        let [half_open, sessions, console, syslog] = places;
        Self {
            sl: Admission::new(Limits {
                places: half_open,
                each: half_open.div_ceil(SHARE),
                kept: half_open / 2,
                per_second: Some(handshakes.per_second),
                rests_after: HANDSHAKE_RESTS_AFTER,
            }),
            sessions: Seats::new(sessions),
            console: Admission::new(Limits {
                places: console,
                each: connections.console_each_max.min(console),
                kept: console / CONSOLE_KEPT_SHARE,
                per_second: None,
                rests_after: CONSOLE_RESTS_AFTER,
            }),
            syslog: Admission::new(tcp_limits(syslog, connections.syslog_each_max.min(syslog))),
            metrics: Admission::new(METRICS_LIMITS),
        }
    }

    /// Every door, by its name in what is said of it.
    pub(crate) fn all(&self) -> [(&'static str, &Arc<Admission>); DOORS] {
        [
            ("SL", &self.sl),
            ("console", &self.console),
            ("syslog", &self.syslog),
            ("metrics", &self.metrics),
        ]
    }
}

/// Each number, or its part of what there is: half of the descriptors, or all but [`RESERVE`] when that is more.
fn fit<const N: usize>(wanted: [usize; N], descriptors: Option<u64>) -> [usize; N] {
    let Some(descriptors) = descriptors.and_then(|count| usize::try_from(count).ok()) else {
        return wanted;
    };
    let room = (descriptors / 2).max(descriptors.saturating_sub(RESERVE));
    let all: usize = wanted.iter().sum();
    if all <= room {
        return wanted;
    }
    // No door is closed, whatever the numbers are.
    wanted.map(|places| (places.saturating_mul(room) / all).max(2))
}

/// Logs what the listeners refused or closed, and which senders have no stream of their own, and raises alarms.
pub(crate) struct Telling {
    core: Arc<Core>,
    told: [Counts; DOORS],
    told_unknown: u64,
    told_dropped: u64,
    /// When datagrams were dropped last, while the alarm of it lasts.
    dropped_at: Option<Instant>,
}

impl Telling {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            told: [Counts::default(); DOORS],
            told_unknown: 0,
            told_dropped: 0,
            // One that stood when the server started ends too.
            dropped_at: Some(clock::now()),
        }
    }
}

impl Duty for Telling {
    async fn round(&mut self) -> Result<()> {
        let core = self.core.clone();
        let core = &core;
        self.tell_dropped().await;
        let unknown = core.unknown_senders.entries();
        if unknown > self.told_unknown {
            let entries = unknown - self.told_unknown;
            self.told_unknown = unknown;
            tell_unknown(core, entries).await;
        }
        for ((name, door), told) in core.doors.all().into_iter().zip(&mut self.told) {
            let now = door.counts();
            let new = now.since(*told);
            *told = now;
            if new.is_nothing() {
                continue;
            }
            let (used, busiest) = door.used();
            let most = busiest.map_or_else(String::new, |(peer, count)| {
                format!("; {count} of them are of {peer}")
            });
            let open = match busiest {
                Some((peer, count)) => {
                    said!("alarm_text.places-of", used, count, peer.to_string())
                }
                None => said!("alarm_text.places-open", used),
            };
            if name != "syslog" {
                // Of syslog its own task says it, and tells the archive.
                warn!(listener = name, "connections: {new}; {used} are open{most}");
            }
            let raise = Raise {
                kind: AlarmKind::PlacesShort,
                agent: String::new(),
                text: said!("alarm_text.places-short", name, new.to_string(), open),
                key: name.to_owned(),
            };
            core.alarms.raise(raise).await;
        }
        Ok(())
    }
}

impl Telling {
    /// One alarm while datagrams are dropped, and for a while after.
    async fn tell_dropped(&mut self) {
        let (alarms, dropped) = (&self.core.alarms, self.core.dropped.load(Ordering::Relaxed));
        if dropped > self.told_dropped {
            self.dropped_at = Some(clock::now());
            let new = dropped - self.told_dropped;
            self.told_dropped = dropped;
            let raise = Raise {
                kind: AlarmKind::DatagramsDropped,
                agent: OWN_NAME.to_owned(),
                text: said!("alarm_text.datagrams-dropped", new, dropped),
                key: String::new(),
            };
            alarms.raise(raise).await;
        } else if self
            .dropped_at
            .is_some_and(|at| clock::now().duration_since(at) >= CALM)
        {
            self.dropped_at = None;
            let over = said!("over.datagrams");
            alarms
                .end(AlarmKind::DatagramsDropped, OWN_NAME, over)
                .await;
        }
    }
}

/// Datagrams that are dropped now and then are one alarm.
const CALM: Duration = Duration::from_secs(600);

async fn tell_unknown(core: &Core, entries: u64) {
    warn!(
        entries,
        "entries of new senders went into the stream of unknown senders"
    );
    let raise = Raise {
        kind: AlarmKind::ManySenders,
        agent: String::new(),
        text: said!("alarm_text.many-senders", entries, UNKNOWN_SENDERS),
        key: String::new(),
    };
    core.alarms.raise(raise).await;
}

const DOORS: usize = 4;
/// Connections that ask for numbers: who monitors makes one every few seconds. They are descriptors of the reserve.
const METRICS_LIMITS: Limits = Limits {
    places: 16,
    each: 8,
    kept: 0,
    per_second: None,
    rests_after: METRICS_CONNECTION_MAX,
};
/// Of a connection to `listen.metrics`, from accepting to the end of the answer.
pub(crate) const METRICS_CONNECTION_MAX: Duration = Duration::from_secs(10);
/// One address has at most one part in so many of the half-open handshakes.
const SHARE: usize = 4;
/// One part in so many of the console's places is for addresses from which somebody signed in.
const CONSOLE_KEPT_SHARE: usize = 8;
/// A handshake never proves itself before its end, so it may always make room.
const HANDSHAKE_RESTS_AFTER: Duration = Duration::ZERO;
/// A signed-in person's connection at rest may make room: browsers open another one by themselves.
const CONSOLE_RESTS_AFTER: Duration = Duration::from_secs(5);
/// Descriptors that connections leave: logs, segments that are being read, the catalogue, commands, backups.
const RESERVE: usize = 256;
/// Refusals are told at most so often.
pub(crate) const PLAN: Plan = Plan {
    point: "duty: refused connections",
    every: Duration::from_secs(5),
    long: Duration::from_secs(300),
    raises: false,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_everything_else() {
        let wanted = [512, 20_000, 512, 2048];
        assert_eq!(fit(wanted, None), wanted);
        assert_eq!(fit(wanted, Some(1 << 20)), wanted);
        for descriptors in [64, 100, 1024, 20_000] {
            let places = fit(wanted, Some(descriptors));
            let all = u64::try_from(places.iter().sum::<usize>()).unwrap();
            assert!(
                all <= descriptors - descriptors.min(512) / 2 + 8,
                "{places:?}"
            );
            assert!(places.iter().all(|&places| places >= 2), "{places:?}");
        }
    }
}
