//! SIGHUP: the configuration file is read again. The console's certificate is shown at once; of everything else that
//! changed it is said that a restart brings it into force. A file that cannot be taken changes nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::sign::CertifiedKey;
use serde_json::json;
use toml::{Table, Value};
use tracing::{error, info, warn};

use crate::alarms::{AlarmKind, Raise};
use crate::audit::Actor;
use crate::config::Config;
use crate::console::tls::{Shown, installed};
use crate::core::{Core, OWN_NAME};
use crate::said::said;

/// What is in force, and where it came from.
pub(super) struct Reload {
    path: Option<PathBuf>,
    in_force: Table,
    has_certificate: bool,
}

/// What a file says now.
struct Read {
    table: Table,
    certificate: Option<((PathBuf, PathBuf), CertifiedKey)>,
}

impl Reload {
    /// Of the file that `config` was read from.
    pub(super) fn new(path: Option<PathBuf>, config: &Config) -> Result<Self> {
        Ok(Self {
            in_force: table_of(path.as_deref())?,
            has_certificate: config.certificate.is_some(),
            path,
        })
    }

    /// Reads the file again, and takes of it what can be taken.
    pub(super) async fn run(&self, core: &Core, shown: &Arc<Shown>) {
        let path = self.path.clone();
        // Files may lie on a disk that does not answer.
        let read = tokio::task::spawn_blocking(move || Read::new(path.as_deref()));
        let read = match read
            .await
            .map_err(anyhow::Error::from)
            .and_then(|read| read)
        {
            Ok(read) => read,
            Err(error) => {
                let error = format!("{error:#}");
                error!(
                    error,
                    "the configuration was not read again: what was in force stays"
                );
                let detail = json!({ "error": &error });
                let by = Actor::of(ACTOR);
                core.unsaid
                    .tell(&by, "configuration not taken", detail)
                    .await;
                let raise = Raise {
                    kind: AlarmKind::ConfigurationRejected,
                    agent: OWN_NAME.to_owned(),
                    text: said!("alarm_text.configuration-own", error),
                    key: String::new(),
                };
                core.alarms.raise(raise).await;
                return;
            }
        };
        let over = said!("over.configuration");
        let kind = AlarmKind::ConfigurationRejected;
        core.alarms.end(kind, OWN_NAME, over).await;
        let mut changed = differences(&self.in_force, &read.table);
        let certificate = read.certificate.filter(|_| self.has_certificate);
        let is_shown = certificate.is_some();
        if let Some((files, certified)) = certificate {
            shown.show_files(files, certified);
            changed.retain(|key| !LIVE.contains(&key.as_str()));
        }
        info!(
            certificate = is_shown,
            "the configuration was read again; a certificate of the administrator's is shown as its files are now"
        );
        if !changed.is_empty() {
            let keys = changed
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ");
            warn!(
                keys,
                "these settings changed, and are in force after a restart"
            );
        }
        let detail = json!({ "certificate": is_shown, "after_a_restart": changed });
        let by = Actor::of(ACTOR);
        core.unsaid
            .tell(&by, "configuration read again", detail)
            .await;
    }
}

impl Read {
    fn new(path: Option<&Path>) -> Result<Self> {
        let config = Config::load(path)?;
        let certified = config.certificate.as_ref().map(installed).transpose()?;
        Ok(Self {
            table: table_of(path)?,
            certificate: config.certificate.zip(certified),
        })
    }
}

fn table_of(path: Option<&Path>) -> Result<Table> {
    let Some(path) = path else {
        return Ok(Table::new());
    };
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("reading {}", path.display()))?;
    Ok(text.parse()?)
}

/// The settings, by table and name, that one has and the other has not, or otherwise.
fn differences(one: &Table, other: &Table) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for name in one.keys().chain(other.keys()) {
        let inner = |table: &Table| table.get(name).and_then(Value::as_table).cloned();
        match (inner(one), inner(other)) {
            (None, None) if one.get(name) == other.get(name) => {}
            (None, None) => drop(found.insert(name.clone())),
            (before, after) => {
                let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
                let keys = before.keys().chain(after.keys());
                let changed = keys.filter(|key| before.get(*key) != after.get(*key));
                found.extend(changed.map(|key| format!("{name}.{key}")));
            }
        }
    }
    found
}

/// Who is in the audit trail for it.
const ACTOR: &str = "signal";
/// What needs no restart.
const LIVE: [&str; 2] = ["console.certificate", "console.key"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_by_table_and_key() {
        let table = |text: &str| text.parse::<Table>().unwrap();
        let before = table("[listen]\nsl = ['a']\nconsole = ['b']\n[agents]\nkeep_alive_s = 2\n");
        let after = table("[listen]\nsl = ['a']\nconsole = ['c']\n[mail]\nrelay = 'x'\n");
        let found = differences(&before, &after);
        let found: Vec<&str> = found.iter().map(String::as_str).collect();
        assert_eq!(
            found,
            ["agents.keep_alive_s", "listen.console", "mail.relay"]
        );
        assert!(differences(&before, &before).is_empty());
    }
}
