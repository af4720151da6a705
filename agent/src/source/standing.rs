//! How each configured source does, said when that changes: to who asks here, and to the server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scrinium_protocol::identity::StreamName;
use scrinium_protocol::sl::sources::{SourceReport, SourceReports, SourceState};
use tokio::sync::watch;
use tracing::{info, warn};

use super::beat::Beat;
use super::discover::Discovery;
use super::findings::{Finding, Findings};
use super::round::Met;
use crate::config::{Config, FeedSource};

/// What a source that is no file came to.
pub(super) struct FeedStanding {
    pub(super) source: FeedSource,
    /// When something came of it last.
    pub(super) taken_at: Option<Instant>,
    /// Why nothing comes.
    pub(super) trouble: Option<String>,
}

/// What the streams of one source came to.
#[derive(Default)]
pub(super) struct StreamsStanding {
    /// When something was read last.
    pub(super) read_at: Option<Instant>,
    pub(super) troubles: Findings,
}

/// What the states are made of.
pub(super) struct Facts<'a> {
    pub(super) discovery: &'a Discovery,
    /// What the last walk met; `None` before the first.
    pub(super) met: Option<&'a [Met]>,
    /// By source.
    pub(super) streams: BTreeMap<usize, StreamsStanding>,
    pub(super) feeds: Vec<FeedStanding>,
    /// The spool takes nothing.
    pub(super) is_blocked: bool,
    pub(super) now: Instant,
}

impl Facts<'_> {
    /// A row for each source, and one for each finding of it behind that.
    fn reports(&self) -> SourceReports {
        let (mut rows, mut more) = (Vec::new(), 0_u32);
        for source in 0..self.discovery.len() {
            more = more.saturating_add(self.push_files(source, &mut rows));
        }
        for feed in &self.feeds {
            rows.push(self.of_feed(feed));
        }
        SourceReports::bounded(rows, more)
    }

    /// Adds the rows of a source of files; returns how many findings have none.
    fn push_files(&self, source: usize, rows: &mut Vec<SourceReport>) -> u32 {
        let name = self.discovery.glob(source);
        let (root, _) = self.discovery.area(source);
        let met = self.met.and_then(|met| met.get(source));
        let streams = self.streams.get(&source);
        let shared = met.into_iter().flat_map(|met| &met.shared_with);
        let all = shared.copied().chain([source]);
        let read_at = all
            .filter_map(|source| self.streams.get(&source)?.read_at)
            .max();
        let files = met.map_or(0, |met| met.files);
        let findings = met.into_iter().flat_map(|met| met.findings.iter());
        let troubles = streams.into_iter().flat_map(|one| one.troubles.iter());
        let findings: Vec<&Finding> = findings.chain(troubles).collect();
        let own = |state, cause: &str| {
            let is_about_root = [SourceState::NoMatch, SourceState::NotWalked].contains(&state);
            let path = match is_about_root {
                true => shown(root),
                false => String::new(),
            };
            SourceReport {
                source: name.to_owned(),
                state,
                needs_person: false,
                files,
                path,
                cause: cause.to_owned(),
            }
        };
        let row = match met {
            None => Some(own(
                SourceState::NotWalked,
                "its files are being looked for",
            )),
            Some(_) if self.is_blocked && files > 0 => Some(own(SourceState::Waiting, FULL)),
            Some(_) if files > 0 => Some(match self.is_recent(read_at) {
                true => own(SourceState::Collecting, ""),
                false => own(SourceState::Quiet, ""),
            }),
            // Why there is none is said below.
            Some(met) if met.findings.say_why_none() => None,
            Some(_) => Some(own(
                SourceState::NoMatch,
                "no file has a name that it matches",
            )),
        };
        rows.extend(row);
        rows.extend(findings.iter().map(|finding| SourceReport {
            source: name.to_owned(),
            state: finding.state,
            needs_person: finding.needs_person,
            files: 0,
            path: shown(&finding.path),
            cause: finding.cause.clone(),
        }));
        let more = met.map_or(0, |met| met.findings.more());
        more.saturating_add(streams.map_or(0, |streams| streams.troubles.more()))
    }

    fn of_feed(&self, feed: &FeedStanding) -> SourceReport {
        let (state, cause) = match &feed.trouble {
            Some(trouble) => (SourceState::Ended, trouble.as_str()),
            None if self.is_blocked => (SourceState::Waiting, FULL),
            None if self.is_recent(feed.taken_at) => (SourceState::Collecting, ""),
            None => (SourceState::Quiet, ""),
        };
        SourceReport {
            source: name_of(&feed.source),
            state,
            needs_person: state == SourceState::Ended,
            files: 0,
            path: String::new(),
            cause: cause.to_owned(),
        }
    }

    fn is_recent(&self, at: Option<Instant>) -> bool {
        at.is_some_and(|at| self.now.saturating_duration_since(at) < QUIET_AFTER)
    }
}

/// A path as text; each byte that is none is seen.
fn shown(path: &std::path::Path) -> String {
    super::discover::name_of(path)
}

/// What a source that is no file is called.
pub(crate) fn name_of(source: &FeedSource) -> String {
    let StreamName { kind, name } = source.own_stream();
    format!("{}:{name}", kind.name())
}

/// How the sources do, for who asks on another thread.
#[derive(Clone)]
pub(crate) struct Health {
    pub(crate) beat: Beat,
    pub(super) reports: watch::Sender<Arc<SourceReports>>,
}

impl Health {
    /// Before anything is collected.
    pub(crate) fn new(config: &Config) -> Self {
        let cause = "nothing is collected before the server has said where each stream stands";
        let (reports, _) = watch::channel(Arc::new(not_begun(config, cause)));
        Self {
            beat: Beat::default(),
            reports,
        }
    }

    pub(crate) fn reports(&self) -> Arc<SourceReports> {
        self.reports.borrow().clone()
    }

    /// Where the thread that reads hangs; empty when that is not known.
    pub(crate) fn hung_at(&self, now: Instant) -> Option<String> {
        let (_, path) = self.beat.silent_for(now, HUNG_AFTER)?;
        Some(match path.as_os_str().is_empty() {
            true => String::new(),
            false => shown(&path),
        })
    }

    /// That the thread that reads hangs, and where.
    pub(crate) fn hang(&self, now: Instant) -> Option<String> {
        let at = self.hung_at(now)?;
        let at = match at.is_empty() {
            true => at,
            false => format!(", since it looked at {at}"),
        };
        Some(format!(
            "the thread that reads hangs{at}: nothing is collected"
        ))
    }
}

/// The states before anything is collected, and why that is.
fn not_begun(config: &Config, cause: &str) -> SourceReports {
    let globs = config
        .sources
        .iter()
        .map(|source| source.files.text.clone());
    let rows = globs.chain(config.feeds.iter().map(name_of));
    let rows = rows.map(|source| SourceReport {
        source,
        state: SourceState::Waiting,
        needs_person: false,
        files: 0,
        path: String::new(),
        cause: cause.to_owned(),
    });
    SourceReports::bounded(rows.collect(), 0)
}

/// The states as they were said last.
pub(super) struct Standing {
    said: watch::Sender<Arc<SourceReports>>,
    /// What was logged as wrong, when, and whether its end is still to be logged.
    logged: BTreeMap<(String, PathBuf), (Instant, bool)>,
    next_at: Option<Instant>,
}

impl Standing {
    pub(super) fn new(said: watch::Sender<Arc<SourceReports>>) -> Self {
        Self {
            said,
            logged: BTreeMap::new(),
            next_at: None,
        }
    }

    /// Whether it is time to look again.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next_at.is_none_or(|at| now >= at)
    }

    /// Says how the sources do, if that is news.
    pub(super) fn say(&mut self, facts: &Facts<'_>) {
        self.next_at = Some(facts.now + LOOK_INTERVAL);
        let reports = facts.reports();
        self.log(&reports, facts.now);
        self.said.send_if_modified(|said| {
            let is_news = **said != reports;
            if is_news {
                *said = Arc::new(reports);
            }
            is_news
        });
    }

    /// Logs what is wrong now and was not, and what is right again.
    fn log(&mut self, reports: &SourceReports, now: Instant) {
        let before = self.said.borrow().clone();
        let has = |reports: &SourceReports, row: &SourceReport| {
            let mut rows = reports.rows.iter();
            rows.any(|other| {
                (&other.source, other.state, &other.path) == (&row.source, row.state, &row.path)
            })
        };
        for row in self.loggable(reports, now) {
            let SourceReport {
                source,
                path,
                cause,
                ..
            } = row;
            if row.state == SourceState::RefusedLink {
                warn!(path, reason = cause, source, "a link is not collected");
            } else if row.state == SourceState::NoMatch {
                info!(source, path, cause, "a source matches no file");
            } else {
                let state = row.state.name();
                warn!(
                    state,
                    source, path, cause, "something that a source names is not collected"
                );
            }
        }
        for row in before.rows.iter().filter(|row| row.needs_person) {
            let logged = self.logged.get_mut(&key_of(row));
            if !has(reports, row)
                && let Some((_, stands)) = logged.filter(|(_, stands)| *stands)
            {
                *stands = false;
                let (source, path) = (&row.source, &row.path);
                info!(
                    source,
                    path,
                    was = row.state.name(),
                    "what was wrong is over"
                );
            }
        }
    }

    /// What is wrong and was not logged for a while: it may stand for days, and somebody looks at the last hours.
    fn loggable<'a>(&mut self, reports: &'a SourceReports, now: Instant) -> Vec<&'a SourceReport> {
        let wrong = |row: &&SourceReport| row.needs_person || row.state == SourceState::NoMatch;
        let rows = reports.rows.iter().filter(wrong);
        rows.filter(|row| self.may_log(row, now)).collect()
    }

    /// Whether a row is logged: somebody may make and mend the same trouble all day long.
    fn may_log(&mut self, row: &SourceReport, now: Instant) -> bool {
        self.logged
            .retain(|_, (at, _)| now.saturating_duration_since(*at) < LOGGED_AGAIN_AFTER);
        let has_room = self.logged.len() < LOGGED_MAX;
        let key = key_of(row);
        let is_new = !self.logged.contains_key(&key);
        if is_new && has_room {
            self.logged.insert(key, (now, true));
        }
        is_new && has_room
    }
}

fn key_of(row: &SourceReport) -> (String, PathBuf) {
    (row.source.clone(), (&row.path).into())
}

/// A thread that gave no sign of life for so long hangs: a file is read in parts, and each is one.
const HUNG_AFTER: Duration = Duration::from_secs(15);
const FULL: &str = "the spool is full; what is not read waits where it is";
/// A source of which nothing was read for so long is quiet.
const QUIET_AFTER: Duration = Duration::from_secs(60);
/// How often it is looked how the sources do.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The same trouble at the same path is logged again after so long, and so many are remembered.
const LOGGED_AGAIN_AFTER: Duration = Duration::from_secs(3600);
const LOGGED_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::clock;

    fn facts<'a>(discovery: &'a Discovery, met: Option<&'a [Met]>) -> Facts<'a> {
        Facts {
            discovery,
            met,
            streams: BTreeMap::new(),
            feeds: Vec::new(),
            is_blocked: false,
            now: clock::now(),
        }
    }

    fn discovery() -> Discovery {
        let config = Config::parse("[[source]]\nfile = \"/var/log/app/*.log\"\n").unwrap();
        Discovery::new(&config)
    }

    fn states(facts: &Facts<'_>) -> Vec<(SourceState, String, bool)> {
        let rows = facts.reports().rows.into_iter();
        rows.map(|row| (row.state, row.path, row.needs_person))
            .collect()
    }

    #[test]
    fn a_source_without_files_says_why_and_one_with_files_how_it_does() {
        let discovery = discovery();
        let root = "/var/log/app".to_owned();
        assert_eq!(
            states(&facts(&discovery, None)),
            [(SourceState::NotWalked, root.clone(), false)]
        );
        let met = [Met::default()];
        assert_eq!(
            states(&facts(&discovery, Some(&met))),
            [(SourceState::NoMatch, root, false)]
        );
        let mut met = [Met::default()];
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let secret = Path::new("/var/log/app/secret");
        met[0].findings.push(Finding::unreadable(secret, &denied));
        let unreadable = (SourceState::Unreadable, shown(secret), true);
        assert_eq!(
            states(&facts(&discovery, Some(&met))),
            std::slice::from_ref(&unreadable)
        );
        met[0].files = 3;
        let mut of_files = facts(&discovery, Some(&met));
        let quiet = (SourceState::Quiet, String::new(), false);
        assert_eq!(states(&of_files), [quiet, unreadable]);
        let streams = of_files.streams.entry(0).or_default();
        streams.read_at = Some(of_files.now);
        assert_eq!(states(&of_files)[0].0, SourceState::Collecting);
        of_files.is_blocked = true;
        assert_eq!(states(&of_files)[0].0, SourceState::Waiting);
        of_files.is_blocked = false;
        of_files.now += QUIET_AFTER;
        assert_eq!(states(&of_files)[0].0, SourceState::Quiet);
    }

    #[test]
    fn the_same_trouble_is_logged_once_an_hour_and_of_many_a_thousand() {
        let (said, _hears) = watch::channel(Arc::default());
        let mut standing = Standing::new(said);
        let row = |n: usize| SourceReport {
            source: "s".into(),
            state: SourceState::Unreadable,
            needs_person: true,
            files: 0,
            path: format!("/{n}"),
            cause: String::new(),
        };
        let now = clock::now();
        assert!(standing.may_log(&row(0), now));
        assert!(!standing.may_log(&row(0), now));
        let logged = (0..2 * LOGGED_MAX).filter(|n| standing.may_log(&row(*n), now));
        assert_eq!(logged.count(), LOGGED_MAX - 1);
        assert!(standing.may_log(&row(0), now + LOGGED_AGAIN_AFTER));
        // What stands for hours is logged each hour.
        let (said, _hears) = watch::channel(Arc::default());
        let mut standing = Standing::new(said);
        let reports = SourceReports::bounded(vec![row(0)], 0);
        let mut logged = |minutes: u64| {
            let now = now + Duration::from_secs(minutes * 60);
            let logged = standing.loggable(&reports, now).len();
            standing.said.send_replace(Arc::new(reports.clone()));
            logged
        };
        assert_eq!([0, 1, 59, 60, 61, 120].map(&mut logged), [1, 0, 0, 1, 0, 1]);
    }
}
