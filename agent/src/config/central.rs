//! What a configuration from the server may say on this machine.
//!
//! A server that was taken over, or an account of its console, is a stranger here: it names what is to be
//! collected, within bounds, and only this machine's own configuration says what else may happen.

use std::path::{Component, Path};

use anyhow::{Context as _, Result, bail};
use tracing::warn;

use super::deny::real_of;
use super::{Config, FeedSource, Origin, Pattern, raw};
use crate::source::discover::fixed_part;
use crate::source::feed::syslog::Syslog;

/// Where the server may let the agent listen: what `allow_listen` says.
#[derive(Clone, Debug)]
pub(crate) enum Allowed {
    /// Sockets at the paths of a glob.
    Sockets(Pattern),
    /// One address.
    Address(Syslog),
}

impl Allowed {
    pub(super) fn parse(text: &str) -> Result<Self> {
        Ok(match text.strip_prefix("unix://") {
            Some(path) => Self::Sockets(Pattern::new("allow_listen", path)?),
            None => Self::Address(Syslog::parse("allow_listen", text, 0)?),
        })
    }

    fn allows(&self, syslog: &Syslog) -> bool {
        match (self, syslog) {
            (Self::Sockets(pattern), Syslog::Unix { path, .. }) => {
                let plain =
                    |component| matches!(component, Component::RootDir | Component::Normal(_));
                pattern.is_match(path)
                    && path.components().all(plain)
                    && stays_below(path, &pattern.text)
            }
            (Self::Address(address), other) => address == other,
            (Self::Sockets(_), _) => false,
        }
    }
}

/// Whether the directory of `path` is below the fixed part of the glob also where it really leads.
fn stays_below(path: &Path, glob: &str) -> bool {
    let Ok(allowed) = std::fs::canonicalize(fixed_part(glob)) else {
        return true; // neither is there: nothing can be bound yet
    };
    real_of(path).is_none_or(|real| real.starts_with(allowed))
}

impl Config {
    /// Reads the text of a configuration from the server.
    ///
    /// # Errors
    /// A field is unknown, out of its bounds, or not the server's to set; the error names it.
    pub fn parse_central(text: &str) -> Result<Self> {
        Self::parse_from(text, Origin::Server)
    }

    /// The same, and whether everything in it is allowed on this machine.
    ///
    /// # Errors
    /// It is not; the error names the source.
    pub(crate) fn accept_central(&self, text: &str) -> Result<Self> {
        let central = Self::parse_central(text)?;
        if let Some(reason) = self.refused_of(&central).next() {
            bail!("{reason}");
        }
        Ok(central)
    }

    /// The configuration of the server that was in force before, as far as it can be read here, and what of it is
    /// not allowed here: an agent or its own configuration that was renewed may allow less than before.
    pub(crate) fn resume_central(&self, text: &str) -> (Option<Self>, Option<String>) {
        match Self::parse_central(text) {
            Ok(central) => {
                let left_out: Vec<String> = self.refused_of(&central).collect();
                let reason = (!left_out.is_empty())
                    .then(|| format!("in force without: {}", left_out.join("; ")));
                (Some(central), reason)
            }
            Err(error) => {
                let reason =
                    format!("only this machine's own configuration is in force: {error:#}");
                (None, Some(reason))
            }
        }
    }

    /// What is in force, with what the server wants on top if it wants anything.
    pub(crate) fn under(&self, central: Option<&Self>) -> Self {
        central.map_or_else(|| self.clone(), |central| self.with_central(central))
    }

    /// This configuration with what the server wants on top: its sources and those named here, and of each limit the
    /// smaller. What it does not name stays as it is here; what is denied here stays denied.
    pub(crate) fn with_central(&self, central: &Self) -> Self {
        // The usual sources are for who names none.
        let replaces = self.has_default_sources && !central.has_default_sources;
        let local = self.sources.iter().filter(|_| !replaces);
        let own = || self.feeds.iter().filter(|_| !replaces);
        let deny = self.deny.and(&central.deny);
        let allowed = central.feeds.iter().filter(|feed| {
            // Who listens here already does so as this machine says.
            !self.listens_as(feed) && self.refusal_of(feed).is_none()
        });
        let mut feeds: Vec<FeedSource> = allowed.cloned().collect();
        feeds.extend(own().filter(|own| !central.feeds.contains(own)).cloned());
        feeds.extend(
            central
                .feeds
                .iter()
                .filter(|feed| self.listens_as(feed))
                .filter_map(|feed| self.feeds.iter().find(|own| is_same_listener(own, feed)))
                .cloned(),
        );
        let mut unique: Vec<FeedSource> = Vec::with_capacity(feeds.len());
        for feed in feeds {
            if !unique.contains(&feed) && feed.denied_by(&deny).is_none() {
                unique.push(feed);
            }
        }
        Self {
            sources: central.sources.iter().chain(local).cloned().collect(),
            feeds: unique,
            has_default_sources: self.has_default_sources && !replaces,
            deny,
            allow_listen: self.allow_listen.clone(),
            named: self.named.under(&central.named),
            uploads: self.uploads.under(&central.uploads),
            reach: self.reach.clone(),
            revert_after: self.revert_after,
            integrity_only: self.integrity_only.clone(),
            machine_changes_max: self.machine_changes_max,
            migrate_after: self.migrate_after,
        }
    }

    /// Leaves out what this machine's own configuration names and denies.
    pub(super) fn leave_out_denied(&mut self) {
        let deny = self.deny.clone();
        self.feeds.retain(|feed| {
            let denied = feed.denied_by(&deny);
            if let Some(reason) = &denied {
                warn!(reason, "a source is not collected");
            }
            denied.is_none()
        });
    }

    fn listens_as(&self, feed: &FeedSource) -> bool {
        self.feeds.iter().any(|own| is_same_listener(own, feed))
    }

    /// Why the sources of a configuration from the server cannot be here, each that cannot.
    fn refused_of(&self, central: &Self) -> impl Iterator<Item = String> {
        central
            .feeds
            .iter()
            .filter_map(|feed| self.refusal_of(feed))
    }

    /// Why the server may not have this source here.
    fn refusal_of(&self, feed: &FeedSource) -> Option<String> {
        if let Some(denied) = feed.denied_by(&self.deny) {
            return Some(denied);
        }
        let FeedSource::Syslog(syslog) = feed else {
            return None;
        };
        let is_allowed = self.listens_as(feed)
            || self
                .allow_listen
                .iter()
                .any(|allowed| allowed.allows(syslog));
        (!is_allowed).then(|| {
            format!(
                "source.syslog '{}': this machine's own configuration does not let the server listen there; it says where in allow_listen",
                feed.own_stream().name
            )
        })
    }
}

fn is_same_listener(one: &FeedSource, other: &FeedSource) -> bool {
    matches!((one, other), (FeedSource::Syslog(_), FeedSource::Syslog(_)))
        && one.own_stream() == other.own_stream()
}

/// Compares the counts of a configuration from the server with their bounds, before anything is made of it.
pub(super) fn check_counts(raw: &raw::Config) -> Result<()> {
    if raw.deny.len() > DENY_MAX {
        bail!("deny: a configuration from the server has at most {DENY_MAX} patterns there");
    }
    let mut excludes = 0;
    let mut counts = [0; BOUNDS.len()];
    for (index, source) in raw.source.iter().enumerate() {
        let named = || format!("source {} ({})", index + 1, source.named());
        for (count, (what, max, counts_it)) in counts.iter_mut().zip(BOUNDS) {
            *count += usize::from(counts_it(source));
            if *count > *max {
                bail!(
                    "{}: a configuration from the server names at most {max} {what}",
                    named()
                );
            }
        }
        excludes += source.exclude.len();
        if source.exclude.len() > EXCLUDES_EACH_MAX || excludes > EXCLUDES_MAX {
            bail!(
                "{}: a configuration from the server has at most {EXCLUDES_EACH_MAX} patterns in a source.exclude, and {EXCLUDES_MAX} in all",
                named()
            );
        }
        if source.matches.len() > MATCHES_MAX {
            bail!(
                "{}: source.matches has at most {MATCHES_MAX} items",
                named()
            );
        }
        if source.command.is_some() {
            bail!("source.command can be set on the machine alone");
        }
    }
    Ok(())
}

/// The octal permissions of a socket: on this machine's word any, on the server's none for everybody.
pub(super) fn socket_mode(text: Option<&str>, origin: Origin) -> Result<u32> {
    let Some(text) = text else {
        return Ok(match origin {
            Origin::Machine => SOCKET_MODE,
            Origin::Server => SOCKET_MODE_CENTRAL,
        });
    };
    let mode = u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777);
    let mode = mode.with_context(|| format!("source.mode: '{text}' must be like \"0660\""))?;
    if origin == Origin::Server && mode & !SOCKET_MODE_CENTRAL != 0 {
        bail!(
            "source.mode: '{text}' is more than the server may open a socket to, {SOCKET_MODE_CENTRAL:04o}; the machine's own configuration may"
        );
    }
    Ok(mode)
}

/// What is counted of a source, how many may be, and what it costs.
type Bound = (&'static str, usize, fn(&raw::Source) -> bool);

const BOUNDS: &[Bound; 5] = &[
    // Each is matched against every file that is found.
    ("sources", 256, |_| true),
    // A process, some 10 MiB, each.
    ("journals", 8, |source| source.journal.is_some()),
    // A thread each.
    ("channels of the event log", 64, |source| {
        source.event_log.is_some()
    }),
    // A port or socket, and room for 4096 messages, each.
    ("places to listen", 16, |source| source.syslog.is_some()),
    // Up to 1 MiB each, when used: see `PATTERN_SIZE_MAX_CENTRAL`.
    ("multiline patterns", 32, |source| {
        source.multiline_start.is_some()
    }),
];
/// Patterns, each some 100 KiB at most when used: see `pattern.rs`. Every file that is found is compared with those of
/// its source and with all that is denied.
const DENY_MAX: usize = 256;
const EXCLUDES_MAX: usize = 512;
const EXCLUDES_EACH_MAX: usize = 64;
/// Arguments of one `journalctl`.
const MATCHES_MAX: usize = 32;
/// As `/dev/log` is: every program of the machine says something there.
const SOCKET_MODE: u32 = 0o666;
/// For the agent's user and group: who else is to write, the machine's own configuration says.
const SOCKET_MODE_CENTRAL: u32 = 0o660;

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(local: &str, central: &str) -> String {
        let local = Config::parse(local).unwrap();
        let refused = local.accept_central(central).map(drop);
        refused.map_or_else(|error| format!("{error:#}"), |()| String::new())
    }

    #[test]
    fn the_server_lets_listen_only_where_this_machine_says() {
        let wants = |place: &str| format!("[[source]]\nsyslog = '{place}'\n");
        let allows = "allow_listen = ['unix:///run/scrinium/**', 'udp://127.0.0.1:5514']\n[[source]]\nsyslog = 'tcp://127.0.0.1:5140'\n";
        for (place, fits) in [
            ("unix:///run/scrinium/log", true),
            ("unix:///run/scrinium/app/log", true),
            ("unix:///run/scrinium/../docker.sock", false),
            ("unix:///run/docker.sock", false),
            ("udp://127.0.0.1:5514", true),
            ("udp://0.0.0.0:5514", false),
            ("udp://127.0.0.1:5515", false),
            ("tcp://127.0.0.1:5514", false),
            ("tcp://127.0.0.1:5140", true),
        ] {
            let refused = refusal(allows, &wants(place));
            assert_eq!(refused.is_empty(), fits, "{place}: {refused}");
            assert!(fits || refused.contains(place) && refused.contains("allow_listen"));
            assert!(refusal("", &wants(place)).contains("allow_listen"));
        }
    }

    #[test]
    fn counts_of_the_server_are_bounded_and_the_refusal_names_source_and_limit() {
        let times = |count: usize, text: &str| text.repeat(count);
        for (what, max, text) in [
            ("sources", 256, "[[source]]\nfile = '/x'\n"),
            (
                "places to listen",
                16,
                "[[source]]\nsyslog = 'udp://127.0.0.1:1'\n",
            ),
            (
                "multiline patterns",
                32,
                "[[source]]\nfile = '/x'\nmultiline_start = '^x'\n",
            ),
            #[cfg(unix)]
            ("journals", 8, "[[source]]\njournal = 'system'\n"),
        ] {
            assert!(Config::parse_central(&times(max, text)).is_ok(), "{what}");
            let error = Config::parse_central(&times(max + 1, text)).unwrap_err();
            let error = format!("{error:#}");
            let expected = format!("at most {max} {what}");
            assert!(error.contains(&expected), "{error}");
            assert!(error.contains(&format!("source {} (", max + 1)), "{error}");
            // What this machine's own administrator writes has no such bound.
            assert!(Config::parse(&times(max + 1, text)).is_ok());
        }
        let denied = |count: usize| format!("deny = [{}]", "'/x',".repeat(count));
        let excluded = |each: usize, sources: usize| {
            let patterns = "'/x',".repeat(each);
            times(
                sources,
                &format!("[[source]]\nfile = '/x'\nexclude = [{patterns}]\n"),
            )
        };
        for (fits, too_many, words) in [
            (denied(256), denied(257), "at most 256 patterns"),
            (excluded(64, 8), excluded(64, 9), "512 in all"),
            (excluded(64, 1), excluded(65, 1), "at most 64 patterns"),
        ] {
            assert!(Config::parse_central(&fits).is_ok());
            let error = format!("{:#}", Config::parse_central(&too_many).unwrap_err());
            assert!(error.contains(words), "{error}");
            assert!(Config::parse(&too_many).is_ok());
        }
        let large = "[[source]]\nfile = '/x'\nmultiline_start = '(?:[a-z]{900}){9}'\n";
        assert!(Config::parse(large).is_ok());
        let error = format!("{:#}", Config::parse_central(large).unwrap_err());
        assert!(
            error.contains("multiline_start") && error.contains("size limit"),
            "{error}"
        );
    }

    #[cfg(unix)]
    #[test]
    fn options_are_no_matches_and_what_is_denied_is_no_journal() {
        let journal = |matches: &str| {
            Config::parse(&format!(
                "[[source]]\njournal = '/j'\nmatches = ['{matches}']\n"
            ))
        };
        for fits in ["_SYSTEMD_UNIT=ssh.service", "A1_=", "MESSAGE=--x", "+"] {
            assert!(journal(fits).is_ok(), "{fits}");
        }
        for wrong in [
            "--cursor-file=/x",
            "-u=x",
            "a=b",
            "1A=b",
            "/bin/sh",
            "A",
            "=x",
            "++",
        ] {
            let error = format!("{:#}", journal(wrong).unwrap_err());
            assert!(error.contains("source.matches"), "{error}");
        }
        let wanted = "[[source]]\njournal = '/var/log/private/j'\n";
        let refused = refusal("deny = ['/var/log/private/**']\n", wanted);
        assert!(refused.contains("denied"), "{refused}");
        let socket = "[[source]]\nsyslog = 'unix:///var/log/private/s'\n";
        let refused = refusal(
            "deny = ['/var/log/private/**']\nallow_listen = ['unix:///**']",
            socket,
        );
        assert!(refused.contains("denied"), "{refused}");
    }

    #[cfg(unix)]
    #[test]
    fn a_socket_of_the_server_is_not_for_everybody_and_one_of_the_machine_is_as_it_says() {
        let mode = |config: &Config| match &config.feeds[..] {
            [FeedSource::Syslog(Syslog::Unix { mode, .. })] => *mode,
            other => panic!("{other:?}"),
        };
        let socket = "[[source]]\nsyslog = 'unix:///run/x'\n";
        let with = |mode: &str| format!("{socket}mode = '{mode}'\n");
        assert_eq!(mode(&Config::parse(socket).unwrap()), 0o666);
        assert_eq!(mode(&Config::parse(&with("0620")).unwrap()), 0o620);
        assert_eq!(mode(&Config::parse_central(socket).unwrap()), 0o660);
        for wrong in ["0666", "0770", "rw", "1777"] {
            let error = format!("{:#}", Config::parse_central(&with(wrong)).unwrap_err());
            assert!(error.contains("source.mode"), "{error}");
        }
        // What both name is bound once, as this machine says.
        let local = Config::parse(socket).unwrap();
        let both = local.with_central(&local.accept_central(socket).unwrap());
        assert_eq!(mode(&both), 0o666);
    }

    #[test]
    fn what_was_in_force_and_is_not_allowed_any_more_is_left_out_and_said() {
        let local = Config::parse("").unwrap();
        let central =
            "[[source]]\nfile = '/central/*.log'\n[[source]]\nsyslog = 'udp://0.0.0.0:514'\n";
        let (config, reason) = local.resume_central(central);
        let config = local.with_central(&config.unwrap());
        assert_eq!((config.sources.len(), config.feeds.len()), (1, 0));
        assert!(reason.unwrap().contains("udp://0.0.0.0:514"));
        let (config, reason) = local.resume_central("nonsense");
        assert!(config.is_none() && reason.is_some());
        let (_, reason) = local.resume_central("[[source]]\nfile = '/central/*.log'\n");
        assert_eq!(reason, None);
    }
}
