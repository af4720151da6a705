//! The commands of `scrinium-agent`.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use scrinium_protocol::identity::StreamName;
use scrinium_protocol::shown;
use scrinium_protocol::token::Token;
use scrinium_segment::lock::DirLock;
use serde_json::json;
use tokio::sync::watch;
use tracing::info;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::identity::binding::{Binding, Opened};
use crate::identity::{Identity, no_agent};
use crate::join::{self, FirstToken};
use crate::link;
use crate::service::Action;
#[cfg(unix)]
use crate::service::notify::Notifier;
use crate::shipper::Refused;
use crate::source::discover::{Discovery, Found};
use crate::status::{self, Status};
use crate::uplink;

/// Tails the logs of this machine and ships them to a Scrinium server.
#[derive(Parser)]
#[command(
    version,
    name = "scrinium-agent",
    after_help = "Example: scrinium-agent enroll --token-file - && scrinium-agent run"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args)]
struct StateDir {
    /// Directory of the agent's state and spool.
    #[arg(
        long,
        env = "SCRINIUM_STATE",
        default_value = DEFAULT_STATE
    )]
    state: PathBuf,
}

#[derive(clap::Args)]
struct ConfigFile {
    /// Configuration file; /etc/scrinium/agent.toml if it is there.
    #[arg(long)]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Joins a server with a one-time token. Every user of this machine sees the words of a command while it runs:
    /// give the token by a file, by standard input or in the environment.
    #[command(
        visible_alias = "enrol",
        after_help = "Examples: scrinium-agent enroll --token-file -\n          SCRINIUM_TOKEN=SCRINIUM1-AQAT… scrinium-agent enroll"
    )]
    Enroll {
        /// The token, seen by every user of this machine.
        #[arg(env = "SCRINIUM_TOKEN", hide_env_values = true)]
        token: Option<Zeroizing<String>>,
        /// Read the token from this file; from standard input if it is `-`. It counts before the others.
        #[arg(long)]
        token_file: Option<PathBuf>,
        #[command(flatten)]
        state: StateDir,
    },
    /// Collects and ships until stopped. Where there is no agent yet, or the state of a machine that this one was cloned
    /// from, it enrols first with a token, if it is given one.
    #[command(
        after_help = "Examples: scrinium-agent run --config /etc/scrinium/agent.toml\n          scrinium-agent run --token-file /etc/scrinium/token"
    )]
    Run {
        /// A token, from the environment: as the option it is seen by every user of this machine.
        #[arg(long, env = "SCRINIUM_TOKEN", hide_env_values = true)]
        token: Option<Zeroizing<String>>,
        /// Read the token from this file, when one is needed.
        #[arg(long, env = "SCRINIUM_TOKEN_FILE")]
        token_file: Option<PathBuf>,
        #[command(flatten)]
        state: StateDir,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Shows how the running agent does.
    #[command(after_help = "Example: scrinium-agent status --json")]
    Status {
        #[command(flatten)]
        state: StateDir,
        #[arg(long)]
        json: bool,
    },
    /// Checks configuration, state and the way to the server.
    #[command(after_help = "Example: scrinium-agent check --config /etc/scrinium/agent.toml")]
    Check {
        #[command(flatten)]
        state: StateDir,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Lists what is collected; `sources test` says whether a file, a journal or a channel would be.
    #[command(after_help = "Example: scrinium-agent sources test /var/log/auth.log")]
    Sources {
        #[command(flatten)]
        config: ConfigFile,
        #[command(subcommand)]
        test: Option<SourcesTest>,
        #[arg(long)]
        json: bool,
    },
    /// Installs, removes, starts or stops the agent as a service of this system.
    #[command(after_help = "Example: scrinium-agent service install")]
    Service {
        #[command(subcommand)]
        action: Action,
    },
}

#[derive(Subcommand)]
enum SourcesTest {
    /// Says whether a file, a journal or a channel would be collected.
    Test {
        /// A path, or the name of a journal or channel.
        source: PathBuf,
        #[command(flatten)]
        config: ConfigFile,
    },
}

impl Cli {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let outcome = runtime.block_on(self.command.run());
        runtime.shutdown_timeout(Duration::from_secs(1));
        outcome
    }
}

impl Command {
    async fn run(self) -> Result<ExitCode> {
        match self {
            Self::Enroll {
                token,
                token_file,
                state,
            } => {
                let token = token_of(token, token_file.as_deref())?;
                join::enrol::enrol(&token, &state.state).await?;
            }
            Self::Run {
                token,
                token_file,
                state,
                config,
            } => {
                let first = || first_token(token.clone(), token_file.as_deref());
                run(&state.state, load(&config)?, &first).await?;
            }
            Self::Status { state, json } => return show_status(&state.state, json).await,
            Self::Check { state, config } => check(&state.state, &load(&config)?).await?,
            Self::Service { action } => action.run()?,
            Self::Sources { config, test, json } => match test {
                None => sources(&load(&config)?, json)?,
                Some(SourcesTest::Test { source, config }) => {
                    let config = load(&config)?;
                    let path = std::path::absolute(&source)?;
                    let collected = Discovery::new(&config).files().contains(&path)
                        || config
                            .feeds
                            .iter()
                            .any(|feed| source.as_os_str() == &*feed.own_stream().name);
                    say(if collected {
                        "collected"
                    } else {
                        "not collected: no source names it, it is denied, or there is no such file"
                    })?;
                    if !collected {
                        return Ok(ExitCode::FAILURE);
                    }
                }
            },
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The token of a file, else of the command line, else of the environment.
fn token_of(token: Option<Zeroizing<String>>, file: Option<&Path>) -> Result<Zeroizing<String>> {
    let Some(file) = file else {
        let missing =
            "there is no token: give it with --token-file FILE, --token-file - or SCRINIUM_TOKEN";
        return token.ok_or_else(|| UsageError(missing.into()).into());
    };
    let mut text = Zeroizing::new(String::new());
    let read = match file == Path::new("-") {
        true => std::io::stdin()
            .take(TOKEN_FILE_LEN_MAX)
            .read_to_string(&mut text),
        false => std::fs::File::open(file)
            .and_then(|file| file.take(TOKEN_FILE_LEN_MAX).read_to_string(&mut text)),
    };
    read.with_context(|| format!("reading the token from {}", file.display()))?;
    Ok(Zeroizing::new(text.trim().to_owned()))
}

/// The token of a first start. A file that is not there is not needed any more: a token is removed once it was used.
fn first_token(token: Option<Zeroizing<String>>, file: Option<&Path>) -> Result<Option<Token>> {
    let file = match file {
        Some(file) if file != Path::new("-") && !file.try_exists()? => None,
        file => file,
    };
    if file.is_none() && token.is_none() {
        return Ok(None);
    }
    let text = token_of(token, file)?;
    join::enrol::parse(&text).map(Some)
}

async fn run(dir: &Path, config: Config, token: FirstToken<'_>) -> Result<()> {
    if !dir.try_exists()? {
        if token()?.is_none() {
            bail!(no_agent(dir));
        }
        join::make_dir(dir)?;
    }
    let _lock = DirLock::acquire(dir)?;
    let (stop, mut stopped) = watch::channel(false);
    let (status, shown) = watch::channel(Status::default());
    tokio::spawn(async move {
        wait_for_signal().await;
        info!("stopping");
        stop.send_replace(true);
    });
    let state = dir.to_owned();
    tokio::spawn(async move { status::serve(&state, shown).await });
    #[cfg(unix)]
    let _watchdog = tokio::spawn(tell_manager(Notifier::from_environment(), stopped.clone()));
    let changes_max = config.machine_changes_max;
    let found = join::agent(dir, changes_max, token, &status, &mut stopped).await?;
    let Some((identity, key)) = found else {
        return Ok(());
    };
    uplink::run(config, dir, &key, identity, stopped, status).await
}

/// Tells the service manager that we are ready, that we live, and that we stop.
#[cfg(unix)]
async fn tell_manager(notifier: Notifier, mut stopped: watch::Receiver<bool>) {
    notifier.say("READY=1");
    while !*stopped.borrow() {
        // The runtime has one thread: when it hangs, nobody says this any more.
        let pause = notifier.watchdog.unwrap_or(Duration::MAX);
        tokio::select! {
            () = tokio::time::sleep(pause) => notifier.say("WATCHDOG=1"),
            _ = stopped.changed() => {}
        }
    }
    notifier.say("STOPPING=1");
}

#[cfg(unix)]
async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

#[cfg(not(unix))]
async fn wait_for_signal() {
    tokio::select! {
        stopped = tokio::signal::ctrl_c() => drop(stopped),
        () = crate::service::windows::stopped() => {}
    }
}

/// Runs with the default directory and configuration.
#[cfg(windows)]
pub(crate) fn run_as_service() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let dir =
        std::env::var_os("SCRINIUM_STATE").map_or_else(|| DEFAULT_STATE.into(), PathBuf::from);
    let text = std::env::var("SCRINIUM_TOKEN").ok().map(Zeroizing::new);
    let file = std::env::var_os("SCRINIUM_TOKEN_FILE").map(PathBuf::from);
    let first = || first_token(text.clone(), file.as_deref());
    runtime.block_on(run(&dir, load(&ConfigFile { config: None })?, &first))
}

async fn show_status(dir: &Path, json: bool) -> Result<ExitCode> {
    let text = status::ask(dir).await?;
    if json {
        say(&shown::json(&text))?;
        return Ok(ExitCode::SUCCESS);
    }
    let status: serde_json::Value = serde_json::from_str(&text)?;
    let number = |key: &str| {
        status
            .get(key)
            .and_then(serde_json::Value::as_u64)
            .unwrap_or(0)
    };
    let is_connected = status
        .get("connected")
        .and_then(serde_json::Value::as_bool)
        .unwrap_or(false);
    say(if is_connected {
        "connected"
    } else {
        "not connected"
    })?;
    if let Some(problem) = status.get("problem").and_then(serde_json::Value::as_str) {
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
    for (what, key) in [("key", "key"), ("the server's key", "server_key")] {
        if let Some(key) = status.get(key).and_then(serde_json::Value::as_str) {
            say(&format!("{what}: {key}"))?;
        }
    }
    if let Some(seconds) = status
        .get("cache_lasts_s")
        .and_then(serde_json::Value::as_u64)
    {
        let minutes = seconds / 60;
        say(&format!(
            "at the present rate the disk cache outlasts an outage of {} h {} min",
            minutes / 60,
            minutes % 60
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn check(dir: &Path, config: &Config) -> Result<()> {
    let Found { files, refused } = Discovery::new(config).look();
    say(&format!("configuration: fine; {} files match", files.len()))?;
    for (path, reason) in refused {
        say(&format!("not collected: {}: {reason}", path.display()))?;
    }
    for path in files.keys() {
        if let Err(error) = std::fs::File::open(path) {
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
    link::can_connect(&identity.state.address)
        .await
        .context("server")?;
    say(&format!("server: {} answers", identity.state.address))?;
    Ok(())
}

fn sources(config: &Config, json: bool) -> Result<()> {
    let files = Discovery::new(config).files();
    let files = files.iter().map(|path| path.display().to_string());
    let feeds = config.feeds.iter().map(|feed| {
        let StreamName { kind, name } = feed.own_stream();
        format!("{}:{name}", kind.name())
    });
    let all: Vec<String> = files.chain(feeds).collect();
    if json {
        return say(&shown::json(&json!(all).to_string()));
    }
    for source in all {
        say(&source)?;
    }
    Ok(())
}

fn load(config: &ConfigFile) -> Result<Config> {
    Config::load(config.config.as_deref()).map_err(|error| UsageError(format!("{error:#}")).into())
}

/// An error of usage or configuration: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(String);

impl UsageError {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }
}

/// The exit code of an error.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<UsageError>() {
        2
    } else if error.is::<Refused>() {
        4
    } else {
        1
    }
}

/// Prints a line: whatever others called things, it is one, and moves no cursor.
pub(crate) fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{}", shown::sentence(line))?;
    Ok(())
}

#[cfg(not(windows))]
const DEFAULT_STATE: &str = "/var/lib/scrinium/agent";
#[cfg(windows)]
const DEFAULT_STATE: &str = "C:/ProgramData/Scrinium/agent";
/// Bytes read of a file that is said to hold a token.
const TOKEN_FILE_LEN_MAX: u64 = 64 << 10;
