//! Configuration: what the file says (`raw`), then what the program runs on (`Config`).

mod central;
mod deny;
mod limits;
mod pattern;
mod raw;
mod reach;
mod settings;
mod upload;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use regex::bytes::{Regex, RegexBuilder};
use scrinium_protocol::identity::StreamName;
use scrinium_protocol::sl::message::STREAM_NAME_LEN_MAX;

use self::central::Allowed;
pub(crate) use self::deny::Deny;
use self::limits::Named;
pub use self::limits::{Limits, Rates};
pub(crate) use self::pattern::{Pattern, split_fixed};
pub(crate) use self::reach::{ProxyChoice, Reach, read_password};
pub(crate) use self::upload::Uploads;
use crate::identity::binding;
use crate::source::feed::Sink;
use crate::source::feed::command::Command;
#[cfg(windows)]
use crate::source::feed::events::Channel;
#[cfg(unix)]
use crate::source::feed::journal::Journal;
use crate::source::feed::own;
use crate::source::feed::syslog::Syslog;

/// The agent's configuration. Every field is checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) sources: Vec<FileSource>,
    /// Sources that are no files.
    pub(crate) feeds: Vec<FeedSource>,
    /// No source was named: of the machine's configuration these are the usual ones, of the server's none.
    has_default_sources: bool,
    /// Paths the administrator of this machine forbids; nothing overrides them.
    pub(crate) deny: Deny,
    /// Where the server may let the agent listen, besides where this configuration does.
    allow_listen: Vec<Allowed>,
    /// Its limits, as far as it names them.
    named: Named,
    /// How fast it may send, by the hour.
    pub(crate) uploads: Uploads,
    /// The way to the server.
    pub(crate) reach: Reach,
    /// How long a configuration from the server may keep it out of reach before it is taken back.
    pub(crate) revert_after: Option<Duration>,
    /// Send in clear, authenticated, to this `HOST:PORT` (or several) of the same server; it must allow it.
    pub(crate) integrity_only: Option<String>,
    /// Characteristics of this machine that may change, and its state still opens.
    pub(crate) machine_changes_max: usize,
    /// How long batches flow before a state of version 0.1.0 is taken over.
    pub(crate) migrate_after: Option<Duration>,
}

/// The files of one glob.
#[derive(Clone, Debug)]
pub(crate) struct FileSource {
    pub(crate) files: Pattern,
    pub(crate) exclude: Vec<Pattern>,
    /// A line that matches begins an entry of several lines.
    pub(crate) multiline: Option<Regex>,
    /// Links are followed whoever made them, to whatever the agent may read.
    pub(crate) follows_all_links: bool,
}

/// A source that is no file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum FeedSource {
    Syslog(Syslog),
    Command(Command),
    #[cfg(unix)]
    Journal(Journal),
    #[cfg(windows)]
    EventLog(Channel),
    /// What the agent itself says.
    Own,
}

impl FeedSource {
    /// The stream of a source that can be asked again for what was lost.
    pub(crate) fn stream(&self) -> Option<StreamName> {
        Some(self.own_stream()).filter(|own| own.kind.can_be_read_again())
    }

    /// The stream of the source itself; a listener's senders have others.
    pub(crate) fn own_stream(&self) -> StreamName {
        match self {
            Self::Syslog(syslog) => syslog.own_stream(),
            Self::Command(command) => command.stream(),
            #[cfg(unix)]
            Self::Journal(journal) => journal.stream(),
            #[cfg(windows)]
            Self::EventLog(channel) => channel.stream(),
            Self::Own => own::stream(),
        }
    }

    /// What a configuration calls it.
    fn field(&self) -> &'static str {
        match self {
            Self::Syslog(_) => "source.syslog",
            Self::Command(_) => "source.command",
            #[cfg(unix)]
            Self::Journal(_) => "source.journal",
            #[cfg(windows)]
            Self::EventLog(_) => "source.event_log",
            Self::Own => "source.own",
        }
    }

    /// Why `deny` does not let it be collected.
    fn denied_by(&self, deny: &Deny) -> Option<String> {
        let what = self.own_stream();
        let path = match self {
            Self::Syslog(Syslog::Unix { path, .. }) => deny.forbids(path).then(|| path.clone()),
            #[cfg(unix)]
            Self::Journal(journal) => deny.forbids_journal(journal.directory.as_deref()),
            _ => None,
        };
        path.map(|path| {
            format!(
                "{} '{}': {} is denied on this machine",
                self.field(),
                what.name,
                path.display()
            )
        })
    }

    /// Collects for as long as entries are wanted, from `bookmark` on if it can be asked, and nothing that `deny`
    /// forbids by then.
    pub(crate) async fn run(self, bookmark: Vec<u8>, deny: Deny, sink: Sink) {
        match self {
            Self::Syslog(syslog) => syslog.run(deny, sink).await,
            Self::Command(command) => command.run(sink).await,
            #[cfg(unix)]
            Self::Journal(journal) => journal.run(bookmark, deny, sink).await,
            #[cfg(windows)]
            Self::EventLog(channel) => channel.run(bookmark, sink).await,
            Self::Own => own::run(sink).await,
        }
    }
}

/// Who says what is in a configuration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Origin {
    /// This machine's administrator, who may do everything here.
    Machine,
    Server,
}

impl Config {
    /// The file that says what is to be done: `path`, or the default one if it is there.
    pub(crate) fn file(path: Option<&Path>) -> Option<PathBuf> {
        let default = Path::new(DEFAULT_PATH);
        let path = path.or_else(|| default.is_file().then_some(default));
        path.map(Path::to_owned)
    }

    /// Reads `path`, or the default file if it is there, and the environment on top.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self> {
        let path = Self::file(path);
        let path = path.as_deref();
        let text = match path {
            Some(path) => std::fs::read_to_string(path)
                .with_context(|| format!("reading {}", path.display()))?,
            None => String::new(),
        };
        let named = || {
            path.map_or_else(
                || "the defaults".to_owned(),
                |path| path.display().to_string(),
            )
        };
        let mut config = Self::parse(&text).with_context(|| format!("in {}", named()))?;
        config.named.take_environment()?;
        #[cfg(target_os = "linux")]
        if config.has_default_sources
            && Path::new(JOURNALD).is_dir()
            && !SYSLOG_FILES.iter().any(|path| Path::new(path).is_file())
        {
            config.feeds.push(FeedSource::Journal(Journal {
                directory: None,
                matches: Vec::new(),
            }));
        }
        config.leave_out_denied();
        Ok(config)
    }

    /// What the spool may use.
    pub(crate) fn limits(&self) -> Limits {
        self.named.limits()
    }

    /// How much of the machine the agent may use.
    pub(crate) fn rates(&self) -> Rates {
        self.named.rates()
    }

    /// Every source that is no file; what the agent itself says always is one.
    pub(crate) fn feeds(&self) -> impl Iterator<Item = FeedSource> {
        self.feeds.iter().cloned().chain([FeedSource::Own])
    }

    /// Reads the text of a configuration file.
    ///
    /// # Errors
    /// A field is unknown or out of its bounds; the error names it.
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_from(text, Origin::Machine)
    }

    fn parse_from(text: &str, origin: Origin) -> Result<Self> {
        let raw: raw::Config = toml::from_str(text)?;
        if origin == Origin::Server {
            central::check_counts(&raw)?;
            for (field, is_set) in [
                ("server.addresses", raw.server.addresses.is_some()),
                ("server.proxy", raw.server.proxy.is_some()),
                (
                    "server.proxy_password_file",
                    raw.server.proxy_password_file.is_some(),
                ),
                ("server.return_after_s", raw.server.return_after_s.is_some()),
                ("server.integrity_only", raw.server.integrity_only.is_some()),
                ("server.revert_after_s", raw.server.revert_after_s.is_some()),
                ("allow_listen", !raw.allow_listen.is_empty()),
                (
                    "state.machine_changes_max",
                    raw.state.machine_changes_max.is_some(),
                ),
                ("state.migrate_after_s", raw.state.migrate_after_s.is_some()),
            ] {
                if is_set {
                    bail!("{field} can be set on the machine alone");
                }
            }
        }
        let has_default_sources = raw.source.is_empty();
        let mut sources = Vec::new();
        let mut feeds = Vec::new();
        // What the server does not name stays as it is here.
        if has_default_sources && origin == Origin::Machine {
            for text in DEFAULT_SOURCES {
                sources.push(FileSource::named(text)?);
            }
            #[cfg(windows)]
            for name in DEFAULT_CHANNELS {
                feeds.push(FeedSource::EventLog(Channel {
                    name: name.into(),
                    query: "*".into(),
                }));
            }
        }
        for source in &raw.source {
            match source {
                raw::Source {
                    file: Some(file), ..
                } => sources.push(FileSource::new(file, source, origin)?),
                _ => feeds.push(FeedSource::new(source, origin)?),
            }
            source.check()?;
        }
        let config = Self {
            sources,
            feeds,
            has_default_sources,
            deny: Deny::new(
                raw.deny
                    .iter()
                    .map(|text| Pattern::new("deny", text))
                    .collect::<Result<_>>()?,
            ),
            allow_listen: raw
                .allow_listen
                .iter()
                .map(|text| Allowed::parse(text))
                .collect::<Result<_>>()?,
            named: Named::new(&raw.spool, &raw.limits)?,
            uploads: Uploads::new(&raw.limits)?,
            reach: Reach::new(&raw.server)?,
            revert_after: raw.server.revert_after_s.map(Duration::from_secs),
            integrity_only: raw.server.integrity_only,
            machine_changes_max: raw
                .state
                .machine_changes_max
                .unwrap_or(binding::CHANGES_MAX_DEFAULT),
            migrate_after: raw.state.migrate_after_s.map(Duration::from_secs),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let is_allowed = |after: Duration| (REVERT_AFTER_MIN..=REVERT_AFTER_MAX).contains(&after);
        if !self.revert_after.is_none_or(is_allowed) {
            bail!("server.revert_after_s must be between 5 and 86400");
        }
        if self.machine_changes_max > binding::CHANGES_MAX {
            bail!(
                "state.machine_changes_max must be at most {}",
                binding::CHANGES_MAX
            );
        }
        if self
            .migrate_after
            .is_some_and(|after| after > MIGRATE_AFTER_MAX)
        {
            bail!("state.migrate_after_s must be at most 31536000");
        }
        Ok(())
    }
}

impl FileSource {
    fn named(text: &str) -> Result<Self> {
        Ok(Self {
            files: Pattern::new("source.file", text)?,
            exclude: Vec::new(),
            multiline: None,
            follows_all_links: false,
        })
    }

    fn new(file: &str, raw: &raw::Source, origin: Origin) -> Result<Self> {
        let exclude = raw.exclude.iter();
        let exclude = exclude.map(|text| Pattern::new("source.exclude", text));
        let multiline = raw.multiline_start.as_deref().map(|text| {
            let pattern = RegexBuilder::new(text)
                .unicode(false)
                .size_limit(match origin {
                    Origin::Machine => PATTERN_SIZE_MAX,
                    Origin::Server => PATTERN_SIZE_MAX_CENTRAL,
                })
                .dfa_size_limit(PATTERN_CACHE_MAX)
                .build();
            pattern.with_context(|| format!("source.multiline_start: '{text}' is not a pattern"))
        });
        if raw.dangerous_follow_links && matches!(origin, Origin::Server) {
            bail!("source.dangerous_follow_links is for the machine's own configuration");
        }
        Ok(Self {
            follows_all_links: raw.dangerous_follow_links,
            exclude: exclude.collect::<Result<_>>()?,
            multiline: multiline.transpose()?,
            ..Self::named(file)?
        })
    }
}

impl FeedSource {
    fn new(raw: &raw::Source, origin: Origin) -> Result<Self> {
        let source = Self::parse(raw, origin)?;
        let len = source.own_stream().name.len();
        if len > STREAM_NAME_LEN_MAX {
            bail!(
                "{}: the stream would be called by all that is said here, {len} bytes, and may have {STREAM_NAME_LEN_MAX}",
                source.field()
            );
        }
        Ok(source)
    }

    fn parse(raw: &raw::Source, origin: Origin) -> Result<Self> {
        if let Some(text) = &raw.syslog {
            let mode = central::socket_mode(raw.mode.as_deref(), origin)?;
            return Ok(Self::Syslog(Syslog::parse("source.syslog", text, mode)?));
        }
        if let Some(words) = &raw.command {
            let program = words.first().map(Path::new);
            if !program.is_some_and(Path::is_absolute) {
                bail!("source.command must begin with the absolute path of a program");
            }
            if raw
                .every_s
                .is_some_and(|every_s| !(1..=EVERY_S_MAX).contains(&every_s))
            {
                bail!("source.every_s must be between 1 and {EVERY_S_MAX}");
            }
            return Ok(Self::Command(Command {
                words: words.clone(),
                every: raw.every_s.map(Duration::from_secs),
            }));
        }
        #[cfg(unix)]
        if let Some(text) = &raw.journal {
            let directory = (text != "system").then(|| PathBuf::from(text));
            if directory.as_ref().is_some_and(|path| !path.is_absolute()) {
                bail!("source.journal: '{text}' must be \"system\" or an absolute path");
            }
            if let Some(wrong) = raw.matches.iter().find(|text| !is_match(text)) {
                bail!("source.matches: '{wrong}' must be FIELD=value, or + between two of them");
            }
            let matches = raw.matches.clone();
            return Ok(Self::Journal(Journal { directory, matches }));
        }
        #[cfg(windows)]
        if let Some(name) = &raw.event_log {
            return Ok(Self::EventLog(Channel {
                name: name.clone(),
                query: raw.query.clone().unwrap_or_else(|| "*".into()),
            }));
        }
        bail!("source must say one of {}", raw::Source::KINDS)
    }
}

/// Whether `journalctl` reads a word as a match and never as an option or a path (journalctl(1), MATCHES).
#[cfg(unix)]
fn is_match(text: &str) -> bool {
    let is_name = |name: &str| {
        let is_word = |byte: u8| byte.is_ascii_uppercase() || byte == b'_' || byte.is_ascii_digit();
        name.bytes().all(is_word) && !name.starts_with(|first: char| first.is_ascii_digit())
    };
    let field = text.split_once('=');
    let is_field = field.is_some_and(|(name, _)| !name.is_empty() && is_name(name));
    (text == "+" || is_field) && !text.contains('\0')
}

/// Where the configuration is looked for when none is named.
#[cfg(not(windows))]
const DEFAULT_PATH: &str = "/etc/scrinium/agent.toml";
#[cfg(windows)]
const DEFAULT_PATH: &str = "C:/ProgramData/Scrinium/agent.toml";
/// What is collected when no source is named: an agent needs only its token.
#[cfg(windows)]
const DEFAULT_SOURCES: [&str; 2] = [
    "C:/inetpub/logs/LogFiles/**/*.log",
    "C:/Windows/System32/LogFiles/**/*.log",
];
/// Where journald listens, if it does.
#[cfg(target_os = "linux")]
const JOURNALD: &str = "/run/systemd/journal";
/// Where one of these is, what the journal holds is in a file too.
#[cfg(target_os = "linux")]
const SYSLOG_FILES: [&str; 2] = ["/var/log/syslog", "/var/log/messages"];
#[cfg(windows)]
const DEFAULT_CHANNELS: [&str; 3] = ["Application", "Security", "System"];
#[cfg(not(windows))]
const DEFAULT_SOURCES: [&str; 3] = ["/var/log/**/*.log", "/var/log/syslog", "/var/log/messages"];
/// A year: who wants to be able to go back for longer keeps a copy.
const MIGRATE_AFTER_MAX: Duration = Duration::from_secs(31_536_000);
const REVERT_AFTER_MIN: Duration = Duration::from_secs(5);
const REVERT_AFTER_MAX: Duration = Duration::from_secs(86_400);
/// A day.
const EVERY_S_MAX: u64 = 86_400;
/// Memory of one compiled pattern, in bytes: of this machine's own configuration and of the server's.
const PATTERN_SIZE_MAX: usize = 1 << 20;
const PATTERN_SIZE_MAX_CENTRAL: usize = 256 << 10;
/// Memory of one pattern at work, in bytes.
const PATTERN_CACHE_MAX: usize = 512 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_collects_the_usual_logs() {
        let config = Config::parse("").unwrap();
        assert_eq!(config.limits().ram_bytes_max, 16 << 20);
        assert!(config.sources.iter().any(|source| {
            source
                .files
                .is_match(Path::new("/var/log/nginx/access.log"))
        }));
        assert!(!config.sources.iter().any(|source| {
            source
                .files
                .is_match(Path::new("/var/log/nginx/access.log.1"))
        }));
    }

    #[test]
    fn the_server_adds_sources_and_sets_limits_but_what_is_denied_here_stays_denied() {
        let local =
            Config::parse("deny = ['/secret/**']\n[[source]]\nfile = '/own/*.log'").unwrap();
        let central = "[[source]]\nfile = '/central/*.log'\n[spool]\nram_bytes_max = '1 MiB'";
        let both = local.with_central(&Config::parse_central(central).unwrap());
        let names: Vec<&str> = both
            .sources
            .iter()
            .map(|source| source.files.text.as_str())
            .collect();
        assert_eq!(names, ["/central/*.log", "/own/*.log"]);
        assert_eq!(both.limits().ram_bytes_max, 1 << 20);
        assert!(both.deny.forbids(Path::new("/secret/x.log")));
        // What is not named stays as it is here.
        for silent in ["", "[limits]\ncpu_percent_max = 5"] {
            let both = local.with_central(&Config::parse_central(silent).unwrap());
            let names: Vec<&str> = both.sources.iter().map(|one| &*one.files.text).collect();
            assert_eq!(names, ["/own/*.log"]);
        }
        let usual = Config::parse("").unwrap();
        let still = usual.with_central(&Config::parse_central("deny = ['/x']").unwrap());
        assert_eq!(still.sources.len(), usual.sources.len());
        let nothing_named = Config::parse("").unwrap();
        let only_central = nothing_named.with_central(&Config::parse_central(central).unwrap());
        assert_eq!(only_central.sources.len(), 1);
        assert!(Config::parse_central("[server]\nintegrity_only = 'a:1'").is_err());
        let state = "[state]\nmachine_changes_max = 3\nmigrate_after_s = 0";
        assert_eq!(Config::parse(state).unwrap().machine_changes_max, 3);
        assert!(Config::parse_central(state).is_err());
    }

    #[test]
    fn unknown_and_bad_fields_are_named() {
        for (text, name) in [
            ("[[source]]\nfil = '/x'", "fil"),
            ("[[source]]\nfile = 'x.log'", "source.file"),
            ("[spool]\nram_bytes_max = '16 MB'", "spool.ram_bytes_max"),
            ("[spool]\nram_bytes_max = '1 KiB'", "spool.ram_bytes_max"),
            (
                "[spool]\ndisk_bytes_max = '511 KiB'",
                "spool.disk_bytes_max",
            ),
            (
                "[spool]\nram_bytes_max = '2 MiB'\ndisk_bytes_max = '1 MiB'",
                "spool.disk_bytes_max",
            ),
            ("[server]\nintegrity_only = 'here'", "server.integrity_only"),
            ("[server]\nrevert_after_s = 4", "server.revert_after_s"),
            ("[server]\nrevert_after_s = 86401", "server.revert_after_s"),
            (
                "[state]\nmachine_changes_max = 4",
                "state.machine_changes_max",
            ),
            (
                "[state]\nmigrate_after_s = 31536001",
                "state.migrate_after_s",
            ),
            ("[[source]]\nfile = '/x'\nexclude = ['y']", "source.exclude"),
            (
                "[[source]]\njournal = 'system'\ndangerous_follow_links = true",
                "source.dangerous_follow_links",
            ),
            (
                "[[source]]\nfile = '/x'\nmultiline_start = '('",
                "source.multiline_start",
            ),
            (
                "[limits]\nupload_bytes_per_s_max = '1023'",
                "limits.upload_bytes_per_s_max",
            ),
            ("[[source]]\nfile = '/x'\nmode = '0660'", "source.mode"),
            ("allow_listen = ['here']", "allow_listen"),
            (
                &format!(
                    "[[source]]\ncommand = ['/bin/sh', '-c', '{}']",
                    "x".repeat(4096)
                ),
                "source.command",
            ),
            #[cfg(unix)]
            (
                &format!(
                    "[[source]]\njournal = 'system'\nmatches = [{}]",
                    format!("'A={}',", "x".repeat(200)).repeat(25)
                ),
                "source.journal",
            ),
            ("[limits]\ncpu_percent_max = 0", "limits.cpu_percent_max"),
            ("[limits]\ncpu_percent_max = 101", "limits.cpu_percent_max"),
            (
                "[limits]\ndeleted_bytes_max = 'x'",
                "limits.deleted_bytes_max",
            ),
        ] {
            let error = format!("{:#}", Config::parse(text).unwrap_err());
            assert!(error.contains(name), "{error}");
        }
    }
}
