//! The commands of `scrinium-agent`.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use scrinium_protocol::identity::{AgentId, Epoch, StreamName};
use scrinium_protocol::route::{Proxy, Route};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::shown;
use scrinium_protocol::sl::handshake::refusal_of;
use scrinium_protocol::sl::session::{AgentEvent, AgentSession};
use scrinium_protocol::token::Token;
use scrinium_segment::lock::DirLock;
use scrinium_segment::{fault, random};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use zeroize::Zeroizing;

use crate::clock;
use crate::config::Config;
use crate::identity::{self, Identity, State};
use crate::link::{self, Connected, Dial, Way};
use crate::service::Action;
#[cfg(unix)]
use crate::service::notify::Notifier;
use crate::shipper::Refused;
use crate::signals;
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
        /// Reach the server through this proxy from now on: http://HOST:PORT or socks5://HOST:PORT, with USER@ before HOST where it asks for a name.
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
    // First of all: from here on no signal ends us as it would another program.
    // What was read from a file is read from it again: were that gone, the defaults would collect much else.
    let path = Config::file(file.config.as_deref());
    signals::watch(path, stop, reload)?;
    let config = load(file)?;
    let key = identity::key_of(dir)?;
    let _lock = DirLock::acquire(dir)?;
    let identity = Identity::open(dir, &key)?;
    let (status, shown) = watch::channel(Status::default());
    let state = dir.to_owned();
    tokio::spawn(async move { status::serve(&state, shown).await });
    #[cfg(unix)]
    let _watchdog = tokio::spawn(tell_manager(Notifier::from_environment(), stopped.clone()));
    uplink::run(config, dir, &key, identity, (stopped, reloads), status).await
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
    for (what, key) in [("server", "way"), ("upload", "upload")] {
        let sentence = status.get(key).and_then(|part| part.get("sentence"));
        if let Some(sentence) = sentence.and_then(serde_json::Value::as_str) {
            say(&format!("{what}: {sentence}"))?;
        }
    }
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

/// The way to the server of the agent with this state.
fn way_of(config: &Config, state: &State) -> Result<Way> {
    Way::new(
        &config.reach,
        &state.address,
        config.integrity_only.as_deref(),
        link::variable,
        0,
    )
}

async fn check(dir: &Path, config: &Config) -> Result<()> {
    let Found { files, refused, .. } = Discovery::new(config).look();
    say(&format!("configuration: fine; {} files match", files.len()))?;
    for (path, reason) in refused {
        say(&format!("not collected: {}: {reason}", path.display()))?;
    }
    for path in files.keys() {
        if let Err(error) = std::fs::File::open(path) {
            say(&format!("unreadable: {}: {error}", path.display()))?;
        }
    }
    let key = identity::key_of(dir)?;
    let identity = Identity::open(dir, &key)?;
    say(&format!("state: fine; agent {}", identity.state.agent))?;
    let way = way_of(config, &identity.state)?;
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
