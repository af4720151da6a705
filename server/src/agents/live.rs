//! What is known of an agent while the server runs: what it says of itself, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use scrinium_protocol::identity::{AgentId, Epoch, Sequence, StreamId};
use scrinium_protocol::sl::in_force::Setting;
use scrinium_protocol::sl::message::{DISK, HANG, INTERFERENCE, KeepAlive, NO_STREAMS};
use scrinium_protocol::sl::sources::{SourceReport, SourceReports, SourceState};

use super::{Agents, News, Rival, State};
use crate::alarms::{AlarmKind, MORE, Raise};
use crate::clock;
use crate::said::{Said, said};

/// What is known of an agent while the server runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live {
    pub(crate) connected: bool,
    pub(crate) address: Option<SocketAddr>,
    /// When its last record was opened, Unix µs.
    pub(crate) heard_us: u64,
    /// What its last keep-alive said, and when that came, Unix µs; 0 when none came yet.
    pub(crate) keep_alive: KeepAlive,
    pub(crate) state_us: u64,
    /// How its sources do, as it said last in this session; nothing of one that does not say it.
    pub(crate) sources: Arc<SourceReports>,
    /// What of them it was told that needs a person, and still does.
    told: BTreeSet<(String, SourceState)>,
    /// The sequence after the last entry it collected, per stream, as it said.
    pub(crate) marks: BTreeMap<StreamId, Sequence>,
    /// Its clock minus ours, µs, when its last keep-alive came.
    pub(crate) clock_offset_us: Option<i64>,
    /// What its clock showed, Unix µs, and our boot time then; of its last keep-alive.
    pub(crate) clock_us: Option<(u64, u64)>,
    /// What it does and who said so, in its own words; empty when it never said.
    pub(crate) in_force: Arc<[Setting]>,
    /// Why its last session broke, or why the server refused it.
    pub(crate) trouble: Option<Said>,
    /// The server refused it.
    pub(crate) refused: bool,
    /// The epoch that it began last, since this server started.
    pub(super) epoch: Option<Epoch>,
    /// Which limits hold it up, and what that means.
    limits: BTreeMap<Limit, Said>,
}

/// What may hold an agent up while the rest of it goes on.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Limit {
    /// Streams that are new come faster than it may have them.
    NewStreams,
    /// It changes its answer to its configuration too often.
    Answers,
    /// Very many machines showed its identity.
    Machines,
}

impl Live {
    /// A session began at `now`, Unix µs. What the agent says of itself it is still to say.
    pub(super) fn begin_session(&mut self, address: SocketAddr, now: u64) {
        self.connected = true;
        self.address = Some(address);
        self.trouble = None;
        self.refused = false;
        self.heard_us = now;
        self.limits.clear();
        // One of an earlier version says nothing of them.
        self.sources = Arc::default();
    }

    /// A limit holds it up, in words.
    pub(super) fn reach(&mut self, limit: Limit, said: Said) {
        self.limits.insert(limit, said);
    }

    /// A limit holds it up no longer.
    pub(super) fn leave(&mut self, limit: Limit) {
        self.limits.remove(&limit);
    }

    /// How its sources do; what needs a person now and did not before is for an alarm.
    fn hear_sources(&mut self, agent: &str, sources: SourceReports) -> Vec<Raise> {
        let wrong = sources.rows.iter().filter(|row| row.needs_person);
        let wrong: Vec<&SourceReport> = wrong.collect();
        let key = |row: &SourceReport| (row.source.clone(), row.state);
        let now: BTreeSet<(String, SourceState)> = wrong.iter().map(|row| key(row)).collect();
        let mut raises = Vec::new();
        for (source, state) in now.difference(&self.told) {
            let mut rows = wrong
                .iter()
                .filter(|row| (&row.source, row.state) == (source, *state));
            let Some(first) = rows.next() else {
                continue;
            };
            let others = rows.count();
            let about = match first.path.is_empty() {
                true => String::new(),
                false => format!("{}: ", first.path),
            };
            raises.push(Raise {
                kind: AlarmKind::SourceTrouble,
                agent: agent.to_owned(),
                text: {
                    let word = Said::new(&format!("source.{}", state.name()), Vec::new());
                    let cause = format!("{about}{}", first.cause);
                    match others {
                        0 => said!("alarm_text.source-trouble", source, cause, word),
                        others => said!("alarm_text.source-troubles", source, cause, word, others),
                    }
                },
                key: format!("{} {source}", state.name()),
            });
        }
        self.told = now;
        self.sources = Arc::new(sources);
        raises
    }

    /// Whether an alarm of one of its sources, known by its key, still stands for something.
    pub(crate) fn has_source_trouble(&self, key: &str) -> bool {
        let mut told = self.told.iter();
        told.any(|(source, state)| format!("{} {source}", state.name()) == key)
    }

    /// How many of its sources need a person.
    pub(crate) fn sources_in_trouble(&self) -> usize {
        let wrong = self.sources.rows.iter().filter(|row| row.needs_person);
        let wrong: BTreeSet<&str> = wrong.map(|row| row.source.as_str()).collect();
        wrong.len()
    }

    /// What is wrong with it: as we see it, else as it says.
    pub(crate) fn trouble(&self) -> Option<Said> {
        let says = Some(self.keep_alive.problem.as_str());
        let says = says.filter(|says| !says.is_empty() && !says.starts_with(INTERFERENCE));
        let seen = self
            .trouble
            .as_ref()
            .or_else(|| self.limits.values().next());
        seen.cloned().or_else(|| says.map(said_by_agent))
    }
}

/// What an agent suffers from, for readers of any language. One of an earlier or later version is quoted.
fn said_by_agent(problem: &str) -> Said {
    if let Some(error) = problem.strip_prefix(DISK) {
        return said!("agent_says.disk", error);
    }
    if let Some(path) = problem.strip_prefix(HANG) {
        return match path {
            "" => said!("agent_says.hangs"),
            path => said!("agent_says.hangs_at", path),
        };
    }
    let waits = problem.strip_prefix(NO_STREAMS);
    let waits = waits.and_then(|waits| waits.split_once(' '));
    let waits = waits.and_then(|(lost, why)| Some((lost.parse::<u64>().ok()?, why)));
    match waits {
        Some((0, why)) => said!("agent_says.streams", limit_of(why)),
        Some((lost, why)) => said!("agent_says.streams_lost", limit_of(why), lost),
        None => Said::from(problem),
    }
}

/// The setting that a limit is called by, in what the agent was told of it.
fn limit_of(why: &str) -> &str {
    let is_of_name = |c: char| c.is_ascii_lowercase() || "._".contains(c);
    let mut words = why.split(|c| !is_of_name(c));
    let name = words.find(|word| word.starts_with("limits."));
    name.map_or("limits.agent_streams_max", |name| {
        name.trim_end_matches('.')
    })
}

/// Somebody interfered with the session of an agent.
pub(crate) fn interference_with(agent: &str, seen: &str) -> Raise {
    Raise {
        kind: AlarmKind::Interference,
        agent: agent.to_owned(),
        text: said!("alarm_text.interference", seen),
        key: String::new(),
    }
}

impl Agents {
    /// A limit holds an agent up, in words; or not any longer.
    pub(crate) fn limit(&self, id: AgentId, limit: Limit, said: Option<Said>) {
        if let Some(live) = self.lock().live.get_mut(&id) {
            match said {
                Some(said) => live.reach(limit, said),
                None => live.leave(limit),
            }
        }
    }

    /// Notes a sign of life. Returns the alarm it proves: who else showed this identity meanwhile is
    /// not this agent.
    pub(crate) fn heard(&self, id: AgentId, keep_alive: Option<KeepAlive>) -> Vec<Raise> {
        let now = clock::unix_us();
        let mut state = self.lock();
        let rival = proven_rival(&mut state.rivals, id, now);
        let live = state.live.entry(id).or_default();
        live.heard_us = now;
        let (mut trouble, mut sources) = (None, None);
        if let Some(mut keep_alive) = keep_alive {
            sources = keep_alive.sources.take();
            let (before, says) = (&live.keep_alive.problem, &keep_alive.problem);
            trouble = Some(says.clone()).filter(|says| !says.is_empty() && says != before);
            live.state_us = now;
            let offset_us = keep_alive.time_us.cast_signed();
            live.clock_offset_us = Some(offset_us.saturating_sub(now.cast_signed()));
            live.clock_us = Some((keep_alive.time_us, clock::boot_us()));
            for (stream, next) in &keep_alive.marks {
                if live.marks.len() < MARKS_MAX || live.marks.contains_key(stream) {
                    live.marks.insert(*stream, *next);
                }
            }
            live.keep_alive = keep_alive;
        }
        let ours = live.address.map_or_else(String::new, |at| at.to_string());
        let State { agents, live, .. } = &mut *state;
        let (Some(agent), Some(live)) = (agents.get(&id), live.get_mut(&id)) else {
            return Vec::new();
        };
        let name = agent.name.clone();
        let sources = sources.map(|sources| live.hear_sources(&name, sources));
        let mut sources = sources.unwrap_or_default();
        for raise in &mut sources {
            if state.over(id, News::Sources) > 0 {
                // One alarm that counts, whatever names it makes up.
                raise.key = MORE.to_owned();
                raise.text = said!(
                    "alarm_text.sources-more",
                    News::Sources.a_day(),
                    core::mem::take(&mut raise.text)
                );
            }
        }
        let is_interference = |says: &String| says.starts_with(INTERFERENCE);
        let is_over = trouble.as_ref().is_some_and(|says| !is_interference(says))
            && state.over(id, News::Troubles) > 0;
        let Some(agent) = state.agents.get(&id) else {
            return Vec::new();
        };
        let twice = rival.map(|rival| Raise {
            kind: AlarmKind::IdentityUsedTwice,
            agent: agent.name.clone(),
            text: said!(
                "alarm_text.identity-used-twice",
                &rival.differs,
                &rival.host_name,
                rival.address.to_string(),
                &agent.host_name,
                ours
            ),
            // One that counts: whoever has the identity may come from anywhere.
            key: "rival".to_owned(),
        });
        let interference = trouble
            .as_ref()
            .and_then(|says| says.strip_prefix(INTERFERENCE));
        if let Some(seen) = interference {
            let raise = interference_with(&agent.name, seen);
            return twice.into_iter().chain([raise]).chain(sources).collect();
        }
        let trouble = trouble.map(|problem| Raise {
            kind: AlarmKind::AgentTrouble,
            agent: agent.name.clone(),
            text: match is_over {
                false => said!("alarm_text.agent-trouble", said_by_agent(&problem)),
                true => said!(
                    "alarm_text.agent-troubles",
                    News::Troubles.a_day(),
                    said_by_agent(&problem)
                ),
            },
            // Whatever it says, further ones of a day are one alarm that counts.
            key: match is_over {
                false => String::new(),
                true => MORE.to_owned(),
            },
        });
        twice.into_iter().chain(trouble).chain(sources).collect()
    }
}

/// The rival of an agent that was heard twice since, with some time between: what its socket still held
/// when it died would be heard at once.
fn proven_rival(rivals: &mut BTreeMap<AgentId, Rival>, id: AgentId, now_us: u64) -> Option<Rival> {
    let rival = rivals.get_mut(&id)?;
    let heard_us = *rival.heard_us.get_or_insert(now_us);
    if now_us.saturating_sub(heard_us) < RIVAL_PROOF_US {
        return None;
    }
    rivals.remove(&id)
}

const RIVAL_PROOF_US: u64 = 1_500_000;
/// High-water marks remembered per agent.
const MARKS_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn row(source: &str, state: SourceState, needs_person: bool) -> SourceReport {
        SourceReport {
            source: source.into(),
            state,
            needs_person,
            files: 1,
            path: format!("{source}/x"),
            cause: "because".into(),
        }
    }

    fn reports(rows: &[SourceReport]) -> SourceReports {
        SourceReports {
            rows: rows.to_vec(),
            more: 0,
        }
    }

    /// One alarm for each source and state, whatever paths come and go; another when it is wrong again.
    #[test]
    fn what_needs_a_person_is_an_alarm_once_until_it_is_mended() {
        let mut live = Live::default();
        let good = row("/a", SourceState::Collecting, false);
        let bad = row("/a", SourceState::Unreadable, true);
        let mut moved = bad.clone();
        moved.path = "/a/y".into();
        let raised =
            live.hear_sources("web1", reports(&[good.clone(), bad.clone(), moved.clone()]));
        let [raise] = &*raised else {
            panic!("{raised:?}")
        };
        assert!(
            raise
                .text
                .to_string()
                .contains("/a/x: because (Unreadable). So it is with 1 more.")
        );
        assert_eq!(live.sources_in_trouble(), 1);
        assert!(live.hear_sources("web1", reports(&[moved])).is_empty());
        // The same in the next session is no news.
        live.begin_session("192.0.2.1:5".parse().unwrap(), 1);
        assert!(live.sources.rows.is_empty());
        assert!(
            live.hear_sources("web1", reports(std::slice::from_ref(&bad)))
                .is_empty()
        );
        assert!(live.hear_sources("web1", reports(&[good])).is_empty());
        assert_eq!(live.sources_in_trouble(), 0);
        assert_eq!(live.hear_sources("web1", reports(&[bad])).len(), 1);
    }

    #[test]
    fn what_an_agent_suffers_from_is_worded_for_who_reads_and_an_unknown_one_is_quoted() {
        use crate::i18n::Language::{En, Fr, It};
        for (problem, words) in [
            (format!("{DISK}ENOSPC"), "ENOSPC"),
            (HANG.to_owned(), "nothing is collected"),
            (format!("{HANG}/mnt/x.log"), "/mnt/x.log"),
            (
                format!("{NO_STREAMS}0 entries are lost; two"),
                "new streams",
            ),
            (format!("{NO_STREAMS}7 entries are lost; two"), "7 entries"),
            (
                format!("{NO_STREAMS}0 entries are lost; 5 new ones, limits.other_max."),
                ": limits.other_max",
            ),
        ] {
            let said = said_by_agent(&problem);
            let [en, it, fr] = [En, It, Fr].map(|t| t.say(&said));
            assert!(en.contains(words), "{en}");
            assert!(en != it && it != fr && en != fr, "{en} {it} {fr}");
        }
        for problem in ["something of another version", NO_STREAMS] {
            assert_eq!(En.say(&said_by_agent(problem)), problem);
        }
    }
}
