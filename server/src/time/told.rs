//! What people and programs are told of the time: whether it is confirmed, why not, and until when what waits.

use serde::Serialize;

use super::confirmation::{AGENTS_MIN, STEP_US_MAX, Verdict, distance};
use crate::catalogue::records::{Step, StepKind, TimeRecord};
use crate::clock::Clocks;
use crate::present::rfc3339;

/// Why what cannot be undone waits.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Waits {
    /// One sentence or two.
    pub(crate) why: String,
    /// Server time at which it goes on if nothing else happens; none when a person has to do something first.
    pub(crate) until_us: Option<u64>,
    /// Something happened that a person should know of; else nobody has confirmed the clock of a young server yet.
    pub(crate) is_news: bool,
}

/// The state of the time.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Said {
    /// What the machine's clock shows, and what the server goes by: RFC 3339.
    pub(crate) wall: String,
    pub(crate) server: String,
    pub(crate) confirmed: bool,
    /// The latest time that was confirmed.
    pub(crate) confirmed_until: Option<String>,
    /// What confirms it, or why nothing does.
    pub(crate) why: String,
    /// `synchronised`, `unsynchronised` or `unknown`.
    pub(crate) kernel: &'static str,
    /// Agents whose clocks are known, and how far the median of them is ahead of this clock.
    pub(crate) agents: usize,
    pub(crate) agents_median_ms: Option<i64>,
    /// What was seen last of a clock that went another way.
    pub(crate) step: Option<SaidStep>,
    /// What deletion waits for.
    pub(crate) waits: Option<String>,
    pub(crate) waits_until: Option<String>,
}

/// A step, for programs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SaidStep {
    pub(crate) kind: StepKind,
    pub(crate) at: String,
    pub(crate) expected: String,
    pub(crate) shown: String,
    pub(crate) seconds: i64,
}

impl Waits {
    /// Why it waits, if it does.
    pub(super) fn of(
        record: &TimeRecord,
        verdict: Verdict,
        clocks: &Clocks,
        wait_us: u64,
    ) -> Option<Self> {
        let now_us = record.server_us(clocks.boot_us);
        let wait_left_us = record.wait_left_us(clocks.boot_us, wait_us);
        let step = record.step.filter(|_| wait_left_us.is_some());
        let until = |left_us: u64| now_us.saturating_add(left_us.max(wait_left_us.unwrap_or(0)));
        let (reason, until_us) = match verdict {
            Verdict::Kernel | Verdict::Agents { .. } | Verdict::Steady | Verdict::Still => {
                let until_us = until(wait_left_us?);
                let reason = format!(
                    "It is confirmed now, and believed at {} if it is not set again",
                    rfc3339(until_us)
                );
                (reason, Some(until_us))
            }
            Verdict::Held { left_us } => {
                let until_us = until(left_us);
                let reason = format!(
                    "It is confirmed when it still stands so at {}",
                    rfc3339(until_us)
                );
                (reason, Some(until_us))
            }
            Verdict::Nobody { left_us } => {
                let until_us = until(left_us);
                let reason = format!(
                    "It is confirmed when the kernel says that it is synchronised, when {AGENTS_MIN} agents' clocks agree with it, or when it has run steadily until {}",
                    rfc3339(until_us)
                );
                (reason, Some(until_us))
            }
            Verdict::Behind { floor_us, by_us } => {
                let reason = format!(
                    "It stands {} before {}, which is certain: it is confirmed when it has been set right, or has passed that",
                    duration(by_us),
                    rfc3339(floor_us)
                );
                (reason, None)
            }
            Verdict::Unheard { left_us } => {
                let until_us = until(left_us);
                let reason = format!(
                    "Agents' clocks contradicted it: it is confirmed when {AGENTS_MIN} agree with it, or when so many were not heard until {}",
                    rfc3339(until_us)
                );
                (reason, Some(until_us))
            }
            Verdict::Contradicted { agents, median_us } => {
                let reason = format!(
                    "{}: it is confirmed when it has been set right, or theirs have",
                    contradiction(agents, median_us)
                );
                (reason, None)
            }
        };
        let why = match step {
            Some(step) => format!("{}. {reason}.", step.sentence()),
            None => format!("this server's clock is not confirmed. {reason}."),
        };
        let is_news = step.is_some() || until_us.is_none();
        Some(Self {
            why,
            until_us,
            is_news,
        })
    }
}

impl Step {
    /// What happened, without its full stop.
    pub(crate) fn sentence(&self) -> String {
        let (by_us, way) = self.by();
        let (shown, expected) = (rfc3339(self.shown_us), rfc3339(self.expected_us));
        match self.kind {
            StepKind::Set => format!(
                "the clock was set {way} by {} at {}: it showed {shown} in place of {expected}",
                duration(by_us),
                rfc3339(self.at_us)
            ),
            StepKind::Behind => format!(
                "when the server was started after {} the clock stood {} {way}: it showed {shown}, and had shown {expected} before",
                rfc3339(self.at_us),
                duration(by_us)
            ),
            StepKind::Ahead => format!(
                "the clock went on by {} while the machine was off: it showed {shown} at the start, and {expected} before",
                duration(by_us)
            ),
        }
    }

    fn by(&self) -> (u64, &'static str) {
        let by_us = self.shown_us.abs_diff(self.expected_us);
        let way = if self.shown_us > self.expected_us {
            "forward"
        } else {
            "back"
        };
        (by_us, way)
    }
}

impl Said {
    pub(super) fn new(
        record: &TimeRecord,
        verdict: Verdict,
        clocks: &Clocks,
        agents_us: &[u64],
        waits: Option<Waits>,
    ) -> Self {
        let mut sorted = agents_us.to_vec();
        sorted.sort_unstable();
        let median_us = sorted.get(sorted.len() / 2);
        Self {
            wall: rfc3339(clocks.wall_us),
            server: rfc3339(record.server_us(clocks.boot_us)),
            confirmed: record.is_confirmed,
            confirmed_until: Some(record.confirmed_us)
                .filter(|&time_us| time_us > 0)
                .map(rfc3339),
            why: why(verdict),
            kernel: match clocks.synchronised {
                Some(true) => "synchronised",
                Some(false) => "unsynchronised",
                None => "unknown",
            },
            agents: agents_us.len(),
            agents_median_ms: median_us.map(|&time_us| distance(time_us, clocks.wall_us) / 1000),
            step: record.step.map(|step| SaidStep {
                kind: step.kind,
                at: rfc3339(step.at_us),
                expected: rfc3339(step.expected_us),
                shown: rfc3339(step.shown_us),
                seconds: distance(step.shown_us, step.expected_us) / 1_000_000,
            }),
            waits_until: waits.as_ref().and_then(|waits| waits.until_us).map(rfc3339),
            waits: waits.map(|waits| waits.why),
        }
    }
}

/// What confirms the time, or what does not.
fn why(verdict: Verdict) -> String {
    match verdict {
        Verdict::Kernel => "the kernel says that the clock is synchronised".to_owned(),
        Verdict::Agents { agents } => format!("the median of {agents} agents' clocks agrees"),
        Verdict::Steady => "the clock has run steadily for 24 hours".to_owned(),
        Verdict::Still => "the clock was confirmed and has run steadily since".to_owned(),
        Verdict::Behind { floor_us, by_us } => format!(
            "the clock stands {} before {}, which is certain",
            duration(by_us),
            rfc3339(floor_us)
        ),
        Verdict::Contradicted { agents, median_us } => contradiction(agents, median_us),
        Verdict::Unheard { left_us } => format!(
            "agents' clocks contradicted the clock, and fewer than {AGENTS_MIN} were heard since; {} are left until they are given up",
            duration(left_us)
        ),
        Verdict::Held { left_us } => format!(
            "the clock was set away from the server's time; {} are left to see whether it stays so",
            duration(left_us)
        ),
        Verdict::Nobody { left_us } => format!(
            "neither the kernel nor {AGENTS_MIN} agents confirm the clock; {} are left until it has run steadily for 24 hours",
            duration(left_us)
        ),
    }
}

fn contradiction(agents: usize, median_us: i64) -> String {
    let way = if median_us > 0 { "behind" } else { "ahead of" };
    format!(
        "the clock is {} {way} the median of {agents} agents' clocks",
        duration(median_us.unsigned_abs())
    )
}

/// A length of time as people say it.
pub(crate) fn duration(us: u64) -> String {
    let seconds = us.saturating_add(500_000) / 1_000_000;
    for (unit, name) in [(86_400, "days"), (3600, "hours"), (60, "minutes")] {
        if seconds >= 2 * unit {
            return format!("{} {name}", (seconds + unit / 2) / unit);
        }
    }
    if us < STEP_US_MAX {
        return format!("{}.{} seconds", us / 1_000_000, us / 100_000 % 10);
    }
    format!("{seconds} seconds")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_is_said_as_people_say_it() {
        for (us, said) in [
            (34_559_999_400_000, "400 days"),
            (93_600_000_000, "26 hours"),
            (7_300_000_000, "2 hours"),
            (61_000_000, "61 seconds"),
            (1_250_000, "1.2 seconds"),
        ] {
            assert_eq!(duration(us), said);
        }
    }
}
