//! The commands of `scrinium-agent`.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use scrinium_protocol::route::Proxy;
use scrinium_protocol::shown;
use scrinium_protocol::token::Token;
use scrinium_segment::lock::DirLock;
use tokio::sync::{mpsc, watch};
use zeroize::Zeroizing;

use crate::config::Config;
#[cfg(unix)]
use crate::ending;
use crate::ending::Ending;
use crate::identity::no_agent;
use crate::inspect;
use crate::join::{self, FirstToken, Heeded};
use crate::service::Action;
use crate::shipper::Refused;
use crate::signals;
use crate::source::standing::Health;
use crate::status::{self, Status};
use crate::uplink::{self, Setting};
#[cfg(unix)]
use scrinium_segment::notify::Notifier;

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
        /// Reach the server through this proxy from now on: http://HOST:PORT or socks5://HOST:PORT, with USER@ before HOST where it asks for a name.
        #[arg(long)]
        proxy: Option<String>,
        #[command(flatten)]
        state: StateDir,
        #[command(flatten)]
        config: ConfigFile,
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
                proxy,
                state,
                config,
            } => {
                let token = token_of(token, token_file.as_deref())?;
                let config = load(&config)?;
                let proxy = proxy.as_deref().map(proxy_of).transpose()?;
                join::enrol::enrol(&token, &state.state, proxy, &config).await?;
            }
            Self::Run {
                token,
                token_file,
                state,
                config,
            } => {
                let first = || first_token(token.clone(), token_file.as_deref());
                run(&state.state, &config, &first).await?;
            }
            Self::Status { state, json } => return inspect::status(&state.state, json).await,
            Self::Check { state, config } => inspect::check(&state.state, &load(&config)?).await?,
            Self::Service { action } => action.run()?,
            Self::Sources { config, test, json } => match test {
                None => inspect::sources(&load(&config)?, json)?,
                Some(SourcesTest::Test { source, config }) => {
                    return inspect::test(&load(&config)?, &source);
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

/// A proxy that is named on a command line, which every user of this machine sees.
fn proxy_of(text: &str) -> Result<Proxy> {
    let proxy = Proxy::parse(text).map_err(|error| UsageError(format!("--proxy: {error}")))?;
    if proxy.password.is_some() {
        let wrong = "--proxy: every user of this machine sees the words of a command; put the password into the file that server.proxy_password_file of the configuration names";
        return Err(UsageError(wrong.into()).into());
    }
    Ok(proxy)
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

async fn run(dir: &Path, file: &ConfigFile, token: FirstToken<'_>) -> Result<()> {
    let (stop, mut stopped) = watch::channel(false);
    let (reload, mut reloads) = mpsc::channel(1);
    let ending = Ending::new(dir);
    // First of all: from here on no signal ends us as it would another program.
    // What was read from a file is read from it again: were that gone, the defaults would collect much else.
    let path = Config::file(file.config.as_deref());
    signals::watch(path, stop, reload, ending.clone())?;
    let mut config = load(file)?;
    if !dir.try_exists()? {
        if token()?.is_none() {
            bail!(no_agent(dir));
        }
        join::make_dir(dir)?;
    }
    let _lock = DirLock::acquire(dir)?;
    let (status, shown) = watch::channel(Status::default());
    ending.tell_the_last();
    let health = Health::new(&config);
    let (state, told) = (dir.to_owned(), health.clone());
    tokio::spawn(async move { status::serve(&state, shown, told).await });
    #[cfg(unix)]
    let _watchdog = tokio::spawn(ending::tell_manager(
        Notifier::from_environment(),
        stopped.clone(),
        health.beat.clone(),
    ));
    let heeded = &mut Heeded {
        config: &mut config,
        reloads: &mut reloads,
        status: &status,
        stop: &mut stopped,
    };
    let found = join::agent(dir, token, heeded).await?;
    let Some((identity, key)) = found else {
        return Ok(());
    };
    let setting = Setting {
        config,
        stop: stopped,
        reloads,
        status,
        health,
        ending,
    };
    uplink::run(dir, &key, identity, setting).await
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
    let token_file = std::env::var_os("SCRINIUM_TOKEN_FILE").map(PathBuf::from);
    let first = || first_token(text.clone(), token_file.as_deref());
    runtime.block_on(run(&dir, &ConfigFile { config: None }, &first))
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
