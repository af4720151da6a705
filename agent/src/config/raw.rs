//! The configuration file, field for field. Nothing but [`super::Config`] sees these types.

use std::path::PathBuf;

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Config {
    pub(super) source: Vec<Source>,
    pub(super) deny: Vec<String>,
    pub(super) allow_listen: Vec<String>,
    pub(super) spool: Spool,
    pub(super) server: Server,
    pub(super) limits: Limits,
    pub(super) state: State,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct State {
    pub(super) machine_changes_max: Option<usize>,
    pub(super) migrate_after_s: Option<u64>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) upload_bytes_per_s_max: Option<String>,
    pub(super) upload: Vec<Upload>,
    pub(super) cpu_percent_max: Option<u8>,
    pub(super) deleted_bytes_max: Option<String>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Upload {
    pub(super) days: Option<String>,
    pub(super) hours: Option<String>,
    pub(super) bytes_per_s_max: String,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Server {
    #[serde(alias = "address")]
    pub(super) addresses: Option<OneOrMany>,
    pub(super) proxy: Option<String>,
    pub(super) proxy_password_file: Option<PathBuf>,
    pub(super) return_after_s: Option<u64>,
    pub(super) integrity_only: Option<String>,
    pub(super) revert_after_s: Option<u64>,
}

/// A text, or a list of them.
#[derive(serde::Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    pub(super) file: Option<String>,
    #[serde(default)]
    pub(super) exclude: Vec<String>,
    pub(super) multiline_start: Option<String>,
    #[serde(default)]
    pub(super) dangerous_follow_links: bool,
    pub(super) syslog: Option<String>,
    pub(super) mode: Option<String>,
    pub(super) journal: Option<String>,
    #[serde(default)]
    pub(super) matches: Vec<String>,
    pub(super) event_log: Option<String>,
    pub(super) query: Option<String>,
    pub(super) command: Option<Vec<String>>,
    pub(super) every_s: Option<u64>,
}

impl Source {
    pub(super) const KINDS: &str = "file, syslog, command, journal (Linux) and event_log (Windows)";

    /// What it is, for people.
    pub(super) fn named(&self) -> String {
        let command = self.command.as_ref().map(|words| words.join(" "));
        let kinds = [
            ("file", &self.file),
            ("syslog", &self.syslog),
            ("journal", &self.journal),
            ("event_log", &self.event_log),
            ("command", &command),
        ];
        let named = kinds.into_iter().find_map(|(kind, text)| {
            let text = text.as_ref()?;
            let end = text.floor_char_boundary(NAMED_LEN_MAX);
            Some(format!(
                "{kind} = '{}'",
                text.get(..end).unwrap_or_default()
            ))
        });
        named.unwrap_or_else(|| "of no kind".into())
    }

    fn is_socket(&self) -> bool {
        let syslog = self.syslog.as_deref();
        syslog.is_some_and(|place| place.starts_with("unix://"))
    }

    /// A field that another kind of source has is a mistake.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let kinds = [
            self.file.is_some(),
            self.syslog.is_some(),
            self.journal.is_some() && cfg!(unix),
            self.event_log.is_some() && cfg!(windows),
            self.command.is_some(),
        ];
        if kinds.into_iter().filter(|&is_it| is_it).count() != 1 {
            anyhow::bail!("source must say exactly one of {}", Self::KINDS);
        }
        for (field, is_set, fits) in [
            ("exclude", !self.exclude.is_empty(), self.file.is_some()),
            (
                "multiline_start",
                self.multiline_start.is_some(),
                self.file.is_some(),
            ),
            (
                "dangerous_follow_links",
                self.dangerous_follow_links,
                self.file.is_some(),
            ),
            ("matches", !self.matches.is_empty(), self.journal.is_some()),
            ("mode", self.mode.is_some(), self.is_socket()),
            ("query", self.query.is_some(), self.event_log.is_some()),
            ("every_s", self.every_s.is_some(), self.command.is_some()),
        ] {
            if is_set && !fits {
                anyhow::bail!("source.{field} does not belong to a source of this kind");
            }
        }
        Ok(())
    }
}

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Spool {
    pub(super) ram_bytes_max: Option<String>,
    pub(super) disk_bytes_max: Option<String>,
}

/// Bytes of a source's name in a refusal.
const NAMED_LEN_MAX: usize = 200;
