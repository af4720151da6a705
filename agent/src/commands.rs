//! The commands of `scrinium-agent`.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use scrinium_protocol::identity::{AgentId, Epoch};
use scrinium_protocol::route::{Proxy, Route};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::shown;
use scrinium_protocol::sl::handshake::refusal_of;
use scrinium_protocol::sl::session::{AgentEvent, AgentSession};
use scrinium_protocol::token::Token;
use scrinium_segment::lock::DirLock;
use scrinium_segment::{fault, random};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use zeroize::Zeroizing;

use crate::clock;
use crate::config::Config;
#[cfg(unix)]
use crate::ending;
use crate::ending::Ending;
use crate::identity::{self, Identity, State};
use crate::inspect;
use crate::link::{self, Connected, Dial, Way};
use crate::service::Action;
#[cfg(unix)]
use crate::service::notify::Notifier;
use crate::shipper::Refused;
use crate::signals;
use crate::source::standing::Health;
use crate::status::{self, Status};
use crate::uplink::{self, Setting};

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
        /// Reach the server through this proxy, http://[USER@]HOST:PORT or socks5://[USER@]HOST:PORT, from now on.
        #[arg(long)]
        proxy: Option<String>,
        #[command(flatten)]
        state: StateDir,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Collects and ships until stopped.
    #[command(after_help = "Example: scrinium-agent run --config /etc/scrinium/agent.toml")]
    Run {
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
                enroll(&token, &state.state, proxy.as_deref(), &config).await?;
            }
            Self::Run { state, config } => run(&state.state, &config).await?,
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

/// Uses the token: one handshake, in which the server names this agent.
async fn enroll(text: &str, dir: &Path, proxy: Option<&str>, config: &Config) -> Result<()> {
    let token = Token::parse(text)
        .map_err(|error| UsageError(format!("the token is not valid: {error}; copy it whole")))?;
    if clock::unix_us() / 1_000_000 >= token.expires_s {
        bail!(
            "this enrolment token has expired; make a new one with: scrinium-server agent enroll"
        );
    }
    let mut route = Route::parse(&token.address)
        .map_err(|error| UsageError(format!("the address in the token is not valid: {error}")))?;
    if let Some(text) = proxy {
        let through = route.through(proxy_of(text)?);
        route = through.map_err(|error| UsageError(format!("--proxy: {error}")))?;
    }
    let key = identity::prepare(dir)?;
    let _lock = DirLock::acquire(dir)?;
    let mut identity = match Identity::open(dir, &key) {
        Ok(identity) if identity.state.token.is_none() => {
            bail!(
                "{} holds an enrolled agent; choose another --state directory",
                dir.display()
            );
        }
        // We died while using this token: the same keys use it again.
        Ok(mut identity) if identity.state.token == Some(token.id) => {
            identity.state.address = route.to_string();
            identity
        }
        _ => {
            let state = State {
                agent: AgentId::default(),
                address: route.to_string(),
                server_public: token.server_public,
                noise: Secret::new(random()?),
                signing: Secret::new(random()?),
                credential: token.secret.clone(),
                token: Some(token.id),
                recovery: None,
                server_signing: None,
                central: None,
                trial: None,
                reverted: None,
                epoch: Epoch(random()?),
                behind: false,
                positions: BTreeMap::new(),
                receipts: BTreeMap::new(),
            };
            Identity::create(dir, &key, state)?
        }
    };
    // An agent joins by the port that encrypts, whatever it sends by later.
    let mut way = Way::new(
        &config.reach,
        &identity.state.address,
        None,
        link::variable,
        0,
    )?;
    let dial = Dial::new(&identity.state, &identity.state.credential, false);
    let (_, connected) = dial.run(way.round(clock::now())).await;
    let Connected {
        mut stream,
        established,
        hop,
        peer,
    } = connected?;
    way.note_up(hop, peer, clock::now());
    let next = established.next_psk.clone();
    let recovery = established.recovery_psk.clone();
    let mut session = AgentSession::new(established, clock::now());
    let mut buffer = vec![0; 4096];
    let mut received = Vec::new();
    loop {
        let read = tokio::time::timeout(ANSWER_MAX, stream.read(&mut buffer)).await;
        let n = read.context("the server did not answer in time")??;
        received.extend_from_slice(buffer.get(..n).unwrap_or_default());
        if let Some(refusal) = refusal_of(&received) {
            return Err(Refused::new(refusal).into());
        }
        if n == 0 {
            bail!("the server closed the connection");
        }
        session.handle_bytes(buffer.get(..n).unwrap_or_default(), clock::now())?;
        while let Some(event) = session.poll_event() {
            if let AgentEvent::Enrolled { agent } = event {
                identity.state.agent = agent;
                identity.state.credential = next;
                identity.state.token = None;
                identity.state.recovery = Some(recovery);
                identity.save()?;
                fault::point("agent: enrolment durable");
                session.send_credential_stored(clock::now())?;
                session.send_close("enrolled", clock::now())?;
                if let Some(bytes) = session.poll_transmit() {
                    stream.write_all(&bytes).await?;
                }
                say(&format!(
                    "enrolled as {agent} with {}; start it with: scrinium-agent run",
                    way.shown(clock::now())
                ))?;
                return Ok(());
            }
        }
    }
}

async fn run(dir: &Path, file: &ConfigFile) -> Result<()> {
    let (stop, stopped) = watch::channel(false);
    let (reload, reloads) = mpsc::channel(1);
    let ending = Ending::new(dir);
    // First of all: from here on no signal ends us as it would another program.
    // What was read from a file is read from it again: were that gone, the defaults would collect much else.
    let path = Config::file(file.config.as_deref());
    signals::watch(path, stop, reload, ending.clone())?;
    let config = load(file)?;
    let key = identity::key_of(dir)?;
    let _lock = DirLock::acquire(dir)?;
    let identity = Identity::open(dir, &key)?;
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
    runtime.block_on(run(&dir, &ConfigFile { config: None }))
}

fn load(config: &ConfigFile) -> Result<Config> {
    Config::load(config.config.as_deref()).map_err(|error| UsageError(format!("{error:#}")).into())
}

/// An error of usage or configuration: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(String);

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
const ANSWER_MAX: Duration = Duration::from_secs(15);
