//! What people and programs are told of the time: whether it is confirmed, why not, and until when what waits.

use serde::Serialize;

use super::confirmation::{AGENTS_MIN, STEP_US_MAX, Verdict, distance};
use crate::catalogue::records::{Step, StepKind, TimeRecord};
use crate::clock::Clocks;
use crate::present::rfc3339;
use crate::said::{Said as Sentence, said};

/// Why what cannot be undone waits.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Waits {
    /// One sentence or two.
    pub(crate) why: String,
    /// The same for whoever reads it.
    #[serde(skip)]
    pub(crate) said: Sentence,
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
                let reason = said!("unconfirmed.believed", rfc3339(until_us));
                (reason, Some(until_us))
            }
            Verdict::Held { left_us } => {
                let until_us = until(left_us);
                let reason = said!("unconfirmed.held", rfc3339(until_us));
                (reason, Some(until_us))
            }
            Verdict::Nobody { left_us } => {
                let until_us = until(left_us);
                let reason = said!("unconfirmed.nobody", AGENTS_MIN, rfc3339(until_us));
                (reason, Some(until_us))
            }
            Verdict::Behind { floor_us, by_us } => {
                let (by, floor) = (duration_said(by_us), rfc3339(floor_us));
                let reason = said!("unconfirmed.behind", by, floor);
                (reason, None)
            }
            Verdict::Unheard { left_us } => {
                let until_us = until(left_us);
                let reason = said!("unconfirmed.unheard", AGENTS_MIN, rfc3339(until_us));
                (reason, Some(until_us))
            }
            Verdict::Contradicted { agents, median_us } => {
                let reason = said!("unconfirmed.contradicted", contradiction(agents, median_us));
                (reason, None)
            }
        };
        let said = match step {
            Some(step) => said!("unconfirmed.step", step.said(), reason),
            None => said!("unconfirmed.clock", reason),
        };
        let is_news = step.is_some() || until_us.is_none();
        Some(Self {
            why: said.to_string(),
            said,
            until_us,
            is_news,
        })
    }
}

impl Step {
    /// What happened, without its full stop.
    pub(crate) fn said(&self) -> Sentence {
        let (by_us, way) = self.by();
        let (shown, expected) = (rfc3339(self.shown_us), rfc3339(self.expected_us));
        let (by, at) = (duration_said(by_us), rfc3339(self.at_us));
        match self.kind {
            StepKind::Set => said!("step.set", way, by, at, shown, expected),
            StepKind::Behind => said!("step.behind", at, by, way, shown, expected),
            StepKind::Ahead => said!("step.ahead", by, shown, expected),
        }
    }

    fn by(&self) -> (u64, Sentence) {
        let by_us = self.shown_us.abs_diff(self.expected_us);
        let way = if self.shown_us > self.expected_us {
            said!("step.forward")
        } else {
            said!("step.back")
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
        Verdict::Contradicted { agents, median_us } => contradiction(agents, median_us).to_string(),
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

fn contradiction(agents: usize, median_us: i64) -> Sentence {
    let by = duration_said(median_us.unsigned_abs());
    match median_us > 0 {
        true => said!("unconfirmed.median_behind", by, agents),
        false => said!("unconfirmed.median_ahead", by, agents),
    }
}

/// A length of time as people say it.
pub(crate) fn duration(us: u64) -> String {
    duration_said(us).to_string()
}

/// The same for whoever reads it.
pub(crate) fn duration_said(us: u64) -> Sentence {
    let seconds = us.saturating_add(500_000) / 1_000_000;
    let of = |unit: u64| (seconds + unit / 2) / unit;
    match seconds {
        172_800.. => said!("lasts_for.days", of(86_400)),
        7200.. => said!("lasts_for.hours", of(3600)),
        120.. => said!("lasts_for.minutes", of(60)),
        _ if us < STEP_US_MAX => {
            let tenths = format!("{}.{}", us / 1_000_000, us / 100_000 % 10);
            said!("lasts_for.seconds", tenths)
        }
        _ => said!("lasts_for.seconds", seconds),
    }
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
