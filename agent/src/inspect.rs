//! What the commands say that look and change nothing: `status`, `check`, `sources`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use scrinium_protocol::identity::StreamName;
use scrinium_protocol::shown;
use scrinium_protocol::sl::sources::SourceState;
use serde_json::{Value, json};

use crate::commands::say;
use crate::config::Config;
use crate::identity::Identity;
use crate::identity::binding::{Binding, Opened};
use crate::link::{self, Way};
use crate::source::discover::Discovery;
use crate::source::round::{self, Found, Met};
use crate::source::standing;
use crate::status;

/// How the running agent does.
pub(crate) async fn status(dir: &Path, json: bool) -> Result<ExitCode> {
    let text = status::ask(dir).await?;
    if json {
        say(&shown::json(&text))?;
        return Ok(ExitCode::SUCCESS);
    }
    let status: Value = serde_json::from_str(&text)?;
    let number = |key: &str| status.get(key).and_then(Value::as_u64).unwrap_or(0);
    let is_connected = status
        .get("connected")
        .and_then(Value::as_bool)
        .unwrap_or(false);
    say(if is_connected {
        "connected"
    } else {
        "not connected"
    })?;
    if let Some(problem) = status.get("problem").and_then(Value::as_str) {
        say(&format!("problem: {problem}"))?;
    }
    say(&format!(
        "waiting: {} entries, {} bytes; on disk {} of {} bytes; acked since start: {} entries",
        number("backlog_entries"),
        number("backlog_bytes"),
        number("disk_bytes"),
        number("disk_bytes_max"),
        number("acked_entries")
    ))?;
    for (what, key) in [("server", "way"), ("upload", "upload")] {
        let sentence = status.get(key).and_then(|part| part.get("sentence"));
        if let Some(sentence) = sentence.and_then(Value::as_str) {
            say(&format!("{what}: {sentence}"))?;
        }
    }
    for (what, key) in [("key", "key"), ("the server's key", "server_key")] {
        if let Some(key) = status.get(key).and_then(Value::as_str) {
            say(&format!("{what}: {key}"))?;
        }
    }
    if let Some(seconds) = status.get("cache_lasts_s").and_then(Value::as_u64) {
        let minutes = seconds / 60;
        say(&format!(
            "at the present rate the disk cache outlasts an outage of {} h {} min",
            minutes / 60,
            minutes % 60
        ))?;
    }
    for row in status
        .get("sources")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let field = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default();
        let files = match row.get("files").and_then(Value::as_u64) {
            Some(files @ 1..) => format!("{files} files"),
            _ => String::new(),
        };
        let about = [field("path"), &files, field("cause")];
        let about: Vec<&str> = about.into_iter().filter(|text| !text.is_empty()).collect();
        let (state, source) = (field("state"), field("source"));
        say(&format!("source {source}: {state} {}", about.join(": ")))?;
    }
    if let Some(more @ 1..) = status.get("sources_more").and_then(Value::as_u64) {
        say(&format!("and {more} more findings"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Configuration, state and the way to the server.
pub(crate) async fn check(dir: &Path, config: &Config) -> Result<()> {
    let discovery = Discovery::new(config);
    let Found { files, met, .. } = round::look(&discovery);
    let findings = met.iter().flat_map(|met| met.findings.iter());
    let said = match findings.filter(|finding| finding.needs_person).count() {
        0 => String::new(),
        wrong => format!("; {wrong} things that the sources name cannot be collected"),
    };
    say(&format!(
        "configuration: fine; {} files match{said}",
        files.len()
    ))?;
    for row in rows(config, &discovery, &met) {
        // What is read is no news here.
        if row.state != "matches" {
            let Row {
                source,
                state,
                path,
                cause,
                ..
            } = row;
            say(&format!(
                "not collected: {path}: {cause} ({state}; source {source})"
            ))?;
        }
    }
    for path in files.keys() {
        if let Err(error) = open(path) {
            say(&format!("unreadable: {}: {error}", path.display()))?;
        }
    }
    let binding = match Binding::open(dir)? {
        Opened::Here(binding) => binding,
        Opened::Elsewhere(elsewhere) => bail!("{}: {}", dir.display(), elsewhere.in_words()),
    };
    let identity = Identity::open(dir, binding.key())?;
    say(&format!("state: fine; agent {}", identity.state.agent))?;
    if !binding.changed().is_empty() {
        let changed = binding.changed().join(", ");
        say(&format!(
            "changed of this machine: {changed}; the state is bound to it as it is now when the agent starts"
        ))?;
    }
    let way = Way::new(
        &config.reach,
        &identity.state.address,
        config.integrity_only.as_deref(),
        link::variable,
        0,
    )?;
    let mut problem = None;
    for hop in way.each() {
        match link::can_connect(&hop).await {
            Ok(()) => say(&format!("server: {} answers", hop.named()))?,
            Err(error) => {
                let error = error.context(format!("server: {}", hop.named()));
                if let Some(before) = problem.replace(error) {
                    say(&format!("{before:#}"))?;
                }
            }
        }
    }
    problem.map_or(Ok(()), Err)
}

/// What is collected; as JSON, how each source does besides.
pub(crate) fn sources(config: &Config, json: bool) -> Result<()> {
    let discovery = Discovery::new(config);
    let Found { files, met, .. } = round::look(&discovery);
    if json {
        let of = |place: usize| {
            let names = files.iter().filter(move |(_, source)| **source == place);
            names.map(|(path, _)| path.display().to_string())
        };
        let rows = rows(config, &discovery, &met).into_iter().map(|row| {
            let files: Vec<String> = match row.place {
                Some(place) => of(place).collect(),
                None => Vec::new(),
            };
            json!({
                "source": row.source, "state": row.state, "path": row.path, "cause": row.cause,
                "files": files,
            })
        });
        return say(&shown::json(&Value::Array(rows.collect()).to_string()));
    }
    let files = files.keys().map(|path| path.display().to_string());
    let feeds = config.feeds.iter().map(standing::name_of);
    for source in files.chain(feeds) {
        say(&source)?;
    }
    for row in rows(config, &discovery, &met) {
        if row.state != "matches" {
            say(&format!(
                "{}: {} {}: {}",
                row.source, row.state, row.path, row.cause
            ))?;
        }
    }
    Ok(())
}

/// Whether a file, a journal or a channel would be collected, and why not.
pub(crate) fn test(config: &Config, source: &Path) -> Result<ExitCode> {
    let path = std::path::absolute(source)?;
    let is_feed = |name: StreamName| source.as_os_str() == &*name.name;
    if config.feeds.iter().any(|feed| is_feed(feed.own_stream())) {
        say("collected")?;
        return Ok(ExitCode::SUCCESS);
    }
    let discovery = Discovery::new(config);
    let Found { files, met, .. } = round::look(&discovery);
    if files.contains_key(&path) {
        return Ok(match open(&path) {
            Ok(()) => {
                say("collected")?;
                ExitCode::SUCCESS
            }
            Err(error) => {
                say(&format!(
                    "not collected: a source names it, and it is unreadable: {error}"
                ))?;
                ExitCode::FAILURE
            }
        });
    }
    // A directory above it that cannot be listed is the reason as well.
    let why = met.iter().flat_map(|met| met.findings.iter());
    let why = why
        .filter(|finding| path.starts_with(&finding.path))
        .max_by_key(|finding| finding.path.as_os_str().len());
    let said = match why {
        Some(why) => format!(
            "not collected: {}: {} ({})",
            why.path.display(),
            why.cause,
            why.state.name()
        ),
        None if discovery.is_denied(&path) => {
            "not collected: the configuration of this machine denies it".to_owned()
        }
        None if discovery.wants(&path) => match std::fs::symlink_metadata(&path) {
            Err(error) => {
                format!("not collected: a source names it, and it cannot be found: {error}")
            }
            Ok(_) => "not collected: a source names it, and it is no regular file".to_owned(),
        },
        None => {
            "not collected: no source names it, it is denied, or there is no such file".to_owned()
        }
    };
    say(&said)?;
    Ok(ExitCode::FAILURE)
}

/// A source, or something that was found about it.
struct Row {
    source: String,
    /// Which of the sources of files, when the row is about all of it.
    place: Option<usize>,
    state: &'static str,
    path: String,
    cause: String,
}

fn rows(config: &Config, discovery: &Discovery, met: &[Met]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (place, met) in met.iter().enumerate() {
        let source = discovery.glob(place).to_owned();
        if met.files > 0 || !met.findings.say_why_none() {
            let (state, cause) = match met.files {
                0 => (SourceState::NoMatch.name(), "no file is found for it"),
                _ => ("matches", ""),
            };
            rows.push(Row {
                place: Some(place),
                state,
                path: source.clone(),
                cause: cause.to_owned(),
                source: source.clone(),
            });
        }
        rows.extend(met.findings.iter().map(|finding| Row {
            source: source.clone(),
            place: None,
            state: finding.state.name(),
            path: finding.path.display().to_string(),
            cause: finding.cause.clone(),
        }));
        if met.findings.more() > 0 {
            rows.push(Row {
                source: source.clone(),
                place: None,
                state: SourceState::NotWalked.name(),
                path: source,
                cause: format!("and {} more findings", met.findings.more()),
            });
        }
    }
    rows.extend(config.feeds.iter().map(|feed| Row {
        source: standing::name_of(feed),
        place: None,
        state: "matches",
        path: String::new(),
        cause: String::new(),
    }));
    rows
}

/// Whether a file can be opened; one that became a FIFO meanwhile is not waited for.
fn open(path: &Path) -> std::io::Result<()> {
    crate::source::can_open(path)
}
