//! Configuration: what the file says (`raw`), then what the program runs on ([`Config`]).

mod raw;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lettre::message::Mailbox;
use scrinium_protocol::route::Route;
use scrinium_segment::cipher::Cipher;

use crate::alarms::Severity;
use crate::backup::target::Location;
use crate::evidence::{Correspondence, Elsewhere, http};
use crate::i18n::Language;
use crate::mail::Relay;
use crate::notices::{Channel, Way};

/// The server's configuration. Every field is checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) sl: Vec<String>,
    /// For agents that may send in clear; nobody else is let in there.
    pub(crate) sl_integrity: Vec<String>,
    pub(crate) console: Vec<String>,
    /// Plain HTTP with `/metrics` alone; a port alone is on loopback.
    pub(crate) metrics: Vec<String>,
    pub(crate) syslog_udp: Vec<String>,
    pub(crate) syslog_tcp: Vec<String>,
    /// What agents dial, put into tokens; `HOST:PORT`.
    pub(crate) address: Option<String>,
    pub(crate) keep_alive: Duration,
    /// Components of a machine that may change before its agent is quarantined.
    pub(crate) machine_changes_max: usize,
    /// An enrolled agent that was not heard for this long raises an alarm.
    pub(crate) silent_after: Duration,
    /// An agent whose clock is further from the server's raises an alarm.
    pub(crate) clock_offset_max: Duration,
    /// How long after a step of the clock nothing is deleted.
    pub(crate) step_wait: Duration,
    pub(crate) handshakes: Handshakes,
    pub(crate) connections: Connections,
    pub(crate) senders: Senders,
    pub(crate) agent_streams: AgentStreams,
    /// A log is finished, and then sealed, at this length.
    pub(crate) log_bytes_max: u64,
    /// A log is finished at this age, whatever its length.
    pub(crate) log_age_max: Duration,
    /// Days within which every byte of the archive is read again.
    pub(crate) reread_days: u32,
    /// What is written from now on is sealed with.
    pub(crate) cipher: Cipher,
    /// How often an interval is sealed.
    pub(crate) interval: Duration,
    /// Directories that get every checkpoint.
    pub(crate) checkpoint_copies: Vec<PathBuf>,
    /// Who else sees them.
    pub(crate) elsewhere: Elsewhere,
    /// Where a backup is made by itself, and how often.
    pub(crate) backup: Option<Backup>,
    /// How alarms leave.
    pub(crate) channels: Vec<Channel>,
    /// PEM files that replace the certificate made at `init`.
    pub(crate) certificate: Option<(PathBuf, PathBuf)>,
}

/// A backup that is made by itself.
#[derive(Clone, Debug)]
pub(crate) struct Backup {
    pub(crate) to: Location,
    pub(crate) keys: PathBuf,
    pub(crate) every: Duration,
}

/// What is let in before anything is known of who it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handshakes {
    /// From one address, in the long run; four times as many at once.
    pub(crate) per_second: u32,
    pub(crate) half_open_max: usize,
    pub(crate) sessions_max: usize,
}

/// Connections of the console and of senders of syslog.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connections {
    pub(crate) console_max: usize,
    /// From one IPv4 address or IPv6 /64; the same below.
    pub(crate) console_each_max: usize,
    pub(crate) syslog_max: usize,
    pub(crate) syslog_each_max: usize,
    /// A sender's connection on which nothing came for so long is closed; none: never.
    pub(crate) syslog_idle_max: Option<Duration>,
}

/// Senders of syslog that become streams of their own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Senders {
    /// That were not seen before, in one day.
    pub(crate) new_per_day_max: usize,
    pub(crate) max: usize,
}

/// What one agent may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AgentStreams {
    pub(crate) max: usize,
    /// New ones in a minute.
    pub(crate) new_per_minute_max: usize,
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
        let mut config = Self::parse(&text).with_context(|| {
            format!(
                "in {}",
                path.map_or_else(|| "the defaults".into(), |path| path.display().to_string())
            )
        })?;
        for (name, field) in [
            ("SCRINIUM_LISTEN_SL", &mut config.sl),
            ("SCRINIUM_LISTEN_SL_INTEGRITY", &mut config.sl_integrity),
            ("SCRINIUM_LISTEN_CONSOLE", &mut config.console),
            ("SCRINIUM_LISTEN_METRICS", &mut config.metrics),
            ("SCRINIUM_LISTEN_SYSLOG_UDP", &mut config.syslog_udp),
            ("SCRINIUM_LISTEN_SYSLOG_TCP", &mut config.syslog_tcp),
        ] {
            if let Ok(value) = std::env::var(name) {
                *field = value
                    .split(',')
                    .map(str::trim)
                    .filter(|part| !part.is_empty())
                    .map(str::to_owned)
                    .collect();
            }
        }
        if let Ok(address) = std::env::var("SCRINIUM_ADDRESS") {
            config.address = Some(address);
        }
        on_loopback(&mut config.metrics);
        config.check()?;
        Ok(config)
    }

    /// Reads the text of a configuration file.
    ///
    /// # Errors
    /// A field is unknown or out of its bounds; the error names it.
    pub fn parse(text: &str) -> Result<Self> {
        let raw: raw::Config = toml::from_str(text)?;
        let certificate = match (raw.console.certificate, raw.console.key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => bail!("console.key must be given with console.certificate"),
            (None, Some(_)) => bail!("console.certificate must be given with console.key"),
        };
        let backup = match (raw.backup.to, raw.backup.keys) {
            (Some(to), Some(keys)) => Some(Backup {
                to: Location::parse(&to).context("backup.to")?,
                keys,
                every: Duration::from_secs(raw.backup.every_h.saturating_mul(3600)),
            }),
            (None, None) => None,
            (Some(_), None) => bail!("backup.keys must be given with backup.to"),
            (None, Some(_)) => bail!("backup.to must be given with backup.keys"),
        };
        let mail_to = raw.evidence.mail_to.iter().map(|to| {
            let mailbox: Result<Mailbox, _> = to.parse();
            mailbox.with_context(|| format!("evidence.mail_to: '{to}'"))
        });
        let mail_to = mail_to.collect::<Result<Vec<Mailbox>>>()?;
        let relay = raw.mail.relay()?;
        let channels = raw.alarms.channels(relay.as_ref())?;
        let correspondence = match (relay, mail_to.is_empty()) {
            (Some(relay), false) => Some(Correspondence { relay, to: mail_to }),
            (None, false) => bail!("mail.relay must be given with evidence.mail_to"),
            (_, true) => None,
        };
        let mut config = Self {
            sl: raw.listen.sl,
            sl_integrity: raw.listen.sl_integrity,
            console: raw.listen.console,
            metrics: raw.listen.metrics,
            syslog_udp: raw.listen.syslog_udp,
            syslog_tcp: raw.listen.syslog_tcp,
            address: raw.agents.address,
            keep_alive: Duration::from_secs(raw.agents.keep_alive_s),
            machine_changes_max: raw.agents.machine_changes_max,
            silent_after: Duration::from_secs(raw.agents.silent_after_s),
            clock_offset_max: Duration::from_secs(raw.agents.clock_offset_max_s),
            step_wait: Duration::from_secs(raw.retention.step_wait_h.saturating_mul(3600)),
            handshakes: Handshakes {
                per_second: raw.agents.handshakes_per_s,
                half_open_max: raw.agents.half_open_max,
                sessions_max: raw.agents.sessions_max,
            },
            connections: Connections {
                console_max: raw.limits.console_connections_max,
                console_each_max: raw.limits.console_connections_each_max,
                syslog_max: raw.limits.syslog_connections_max,
                syslog_each_max: raw.limits.syslog_connections_each_max,
                syslog_idle_max: match raw.limits.syslog_idle_h {
                    0 => None,
                    hours => Some(Duration::from_secs(hours.saturating_mul(3600))),
                },
            },
            senders: Senders {
                new_per_day_max: raw.limits.syslog_new_senders_per_day_max,
                max: raw.limits.syslog_senders_max,
            },
            agent_streams: AgentStreams {
                max: raw.limits.agent_streams_max,
                new_per_minute_max: raw.limits.agent_new_streams_per_minute_max,
            },
            log_bytes_max: raw.archive.log_mib_max.saturating_mul(1 << 20),
            log_age_max: Duration::from_secs(raw.archive.log_minutes_max.saturating_mul(60)),
            reread_days: raw.archive.reread_days,
            cipher: Cipher::named(&raw.archive.cipher).with_context(|| {
                let names = Cipher::ALL.map(Cipher::name).join(", ");
                format!("archive.cipher must be one of {names}")
            })?,
            interval: Duration::from_secs(raw.evidence.interval_s),
            checkpoint_copies: raw.evidence.copies,
            elsewhere: Elsewhere {
                authority: raw.evidence.time_stamp_authority,
                witnesses: raw.evidence.witnesses,
                correspondence,
            },
            backup,
            channels,
            certificate,
        };
        on_loopback(&mut config.metrics);
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        for (field, addresses) in [
            ("listen.sl", &self.sl),
            ("listen.sl_integrity", &self.sl_integrity),
            ("listen.console", &self.console),
            ("listen.metrics", &self.metrics),
            ("listen.syslog_udp", &self.syslog_udp),
            ("listen.syslog_tcp", &self.syslog_tcp),
        ] {
            for address in addresses {
                if address
                    .rsplit_once(':')
                    .is_none_or(|(_, port)| port.parse::<u16>().is_err())
                {
                    bail!("{field}: '{address}' must be ADDRESS:PORT");
                }
            }
        }
        let route = self.address.as_deref().map(Route::parse).transpose();
        let route = route.context("agents.address")?;
        if route.is_some_and(|route| route.proxy.is_some_and(|proxy| proxy.password.is_some())) {
            bail!("agents.address: a token holds no password of a proxy");
        }
        if !(1 << 20..=4096 << 20).contains(&self.log_bytes_max) {
            bail!("archive.log_mib_max must be between 1 and 4096");
        }
        if !(1..=365).contains(&self.reread_days) {
            bail!("archive.reread_days must be between 1 and 365");
        }
        if !(1..=1440).contains(&(self.log_age_max.as_secs() / 60)) {
            bail!("archive.log_minutes_max must be between 1 and 1440");
        }
        if !(1..=300).contains(&self.interval.as_secs()) {
            bail!("evidence.interval_s must be between 1 and 300");
        }
        if let Some(relative) = self.checkpoint_copies.iter().find(|dir| !dir.is_absolute()) {
            bail!(
                "evidence.copies: '{}' must be an absolute path",
                relative.display()
            );
        }
        let authority = self.elsewhere.authority.as_ref();
        if authority.is_some_and(|url| !http::is_url(url)) {
            bail!("evidence.time_stamp_authority must be http://HOST[:PORT]/PATH, or https");
        }
        let mut witnesses = self.elsewhere.witnesses.iter();
        if let Some(wrong) = witnesses.find(|url| !http::is_url(url)) {
            bail!("evidence.witnesses: '{wrong}' must be http://HOST[:PORT]/PATH, or https");
        }
        let every_h = self
            .backup
            .as_ref()
            .map(|backup| backup.every.as_secs() / 3600);
        if every_h.is_some_and(|every_h| !(1..=744).contains(&every_h)) {
            bail!("backup.every_h must be between 1 and 744");
        }
        if !(1..=600).contains(&self.keep_alive.as_secs()) {
            bail!("agents.keep_alive_s must be between 1 and 600");
        }
        if !(10..=30 * 86_400).contains(&self.silent_after.as_secs()) {
            bail!("agents.silent_after_s must be between 10 and 2592000");
        }
        if !(1..=86_400).contains(&self.clock_offset_max.as_secs()) {
            bail!("agents.clock_offset_max_s must be between 1 and 86400");
        }
        if !(1..=720).contains(&(self.step_wait.as_secs() / 3600)) {
            bail!("retention.step_wait_h must be between 1 and 720");
        }
        for (field, value, max) in [
            (
                "handshakes_per_s",
                self.handshakes.per_second as usize,
                10_000,
            ),
            ("half_open_max", self.handshakes.half_open_max, 65_536),
            ("sessions_max", self.handshakes.sessions_max, 1_000_000),
        ] {
            if !(1..=max).contains(&value) {
                bail!("agents.{field} must be between 1 and {max}");
            }
        }
        let connections = &self.connections;
        for (field, value, max) in [
            ("console_connections_max", connections.console_max, 65_536),
            (
                "console_connections_each_max",
                connections.console_each_max,
                65_536,
            ),
            ("syslog_connections_max", connections.syslog_max, 65_536),
            (
                "syslog_connections_each_max",
                connections.syslog_each_max,
                65_536,
            ),
            (
                "syslog_new_senders_per_day_max",
                self.senders.new_per_day_max,
                1_000_000,
            ),
            ("syslog_senders_max", self.senders.max, 1_000_000),
            ("agent_streams_max", self.agent_streams.max, 1_000_000),
            (
                "agent_new_streams_per_minute_max",
                self.agent_streams.new_per_minute_max,
                1_000_000,
            ),
        ] {
            if !(1..=max).contains(&value) {
                bail!("limits.{field} must be between 1 and {max}");
            }
        }
        let idle_h = connections
            .syslog_idle_max
            .map(|idle| idle.as_secs() / 3600);
        if idle_h.is_some_and(|hours| hours > 8760) {
            bail!("limits.syslog_idle_h must be between 0 (never) and 8760");
        }
        Ok(())
    }
}

/// An address that is a port alone is on loopback.
fn on_loopback(addresses: &mut [String]) {
    for address in addresses {
        if address.parse::<u16>().is_ok() {
            *address = format!("127.0.0.1:{address}");
        }
    }
}

impl raw::Mail {
    /// The relay, if one is named.
    fn relay(self) -> Result<Option<Relay>> {
        let account = match (self.user, self.password_file) {
            (Some(user), Some(file)) => Some((user, file)),
            (None, None) => None,
            (Some(_), None) => bail!("mail.password_file must be given with mail.user"),
            (None, Some(_)) => bail!("mail.user must be given with mail.password_file"),
        };
        match (self.relay, self.from) {
            (Some(url), Some(from)) => Relay::new(url, &from, account).map(Some),
            (None, None) => Ok(None),
            (Some(_), None) => bail!("mail.from must be given with mail.relay"),
            (None, Some(_)) => bail!("mail.relay must be given with mail.from"),
        }
    }
}

impl raw::Alarms {
    /// The channels that are named.
    fn channels(self, relay: Option<&Relay>) -> Result<Vec<Channel>> {
        let language = Language::from_code(&self.language);
        let language = language.context("alarms.language must be en, it or fr")?;
        let channel = |field: &str, way, severity: &str| {
            let severity = Severity::named(severity);
            let words = Severity::ALL.map(Severity::name).join(", ");
            let severity = severity
                .with_context(|| format!("alarms.{field}_severity must be one of {words}"))?;
            anyhow::Ok(Channel {
                way,
                severity,
                language,
            })
        };
        let mut channels = Vec::new();
        if !self.mail_to.is_empty() {
            let relay = relay.context("mail.relay must be given with alarms.mail_to")?;
            let to = self.mail_to.iter().map(|to| {
                let mailbox: Result<Mailbox, _> = to.parse();
                mailbox.with_context(|| format!("alarms.mail_to: '{to}'"))
            });
            let way = Way::Mail {
                relay: relay.clone(),
                to: to.collect::<Result<_>>()?,
            };
            channels.push(channel("mail", way, &self.mail_severity)?);
        }
        if let Some(url) = self.webhook {
            if !http::is_url(&url) {
                bail!("alarms.webhook must be http://HOST[:PORT]/PATH, or https");
            }
            channels.push(channel(
                "webhook",
                Way::Webhook(url),
                &self.webhook_severity,
            )?);
        }
        if let Some(url) = self.syslog {
            let way = Way::syslog(&url).context("alarms.syslog")?;
            channels.push(channel("syslog", way, &self.syslog_severity)?);
        }
        Ok(channels)
    }
}

/// Where the configuration is looked for when none is named.
const DEFAULT_PATH: &str = "/etc/scrinium/server.toml";

#[cfg(test)]
mod tests;
