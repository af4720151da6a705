//! The commands of `scrinium-server`.

mod agent;
mod alarm;
mod backup;
mod container;
pub(crate) mod demo;
mod duties;
mod export;
mod fsck;
mod link;
mod policy;
mod reload;
mod run;
mod service;
mod shares;
mod status;
mod volume;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use scrinium_protocol::shown;
use scrinium_segment::say;
use serde::Serialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use self::agent::Agent;
use self::alarm::Alarm;
use self::backup::Backup;
use self::container::Container;
use self::export::Export;
use self::link::Link;
use self::policy::Policy;
use self::shares::Shares;
use self::volume::{Bind, SharesPlace, VolumeCommand};
use crate::accounts::{Accounts, BROWSERS_KEY, check_password, random_password};
use crate::archive::verify::Report;
use crate::config::Config;
use crate::control::search::SearchRequest;
use crate::control::{self, Client, VerifyRequest};
use crate::core::{Running, make_catalogue, make_keys};
use crate::i18n::Language;
use crate::present::human_bytes;
use crate::times::{Range, Zone};
use crate::volume::{Binding, Volume};
use crate::{clock, console, stopped, waits};

/// Receives logs, archives them encrypted, proves, searches and shows them.
#[derive(Parser)]
#[command(
    version,
    name = "scrinium-server",
    after_help = "Example: scrinium-server demo"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args, Clone)]
struct Data {
    /// Directory of the volume.
    #[arg(
        long,
        env = "SCRINIUM_DATA",
        default_value = "/var/lib/scrinium/server"
    )]
    data: PathBuf,
    /// Configuration file; /etc/scrinium/server.toml if it is there.
    #[arg(long)]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the whole product on loopback, tailing this machine's own logs.
    #[command(after_help = "Example: scrinium-server demo --dir /tmp/scrinium-demo")]
    Demo(demo::Args),
    /// Creates the volume and the first administrator; prints password and recovery shares once.
    #[command(after_help = "Example: scrinium-server init --data /var/lib/scrinium/server")]
    Init {
        #[command(flatten)]
        data: Data,
        /// Take the administrator's password from this file instead of making one.
        #[arg(long)]
        admin_password_file: Option<PathBuf>,
        /// Write the recovery shares to this file (mode 0600) instead of printing them.
        #[arg(long)]
        recovery_out: Option<PathBuf>,
        #[command(flatten)]
        bind: Bind,
    },
    /// Runs the server.
    #[command(after_help = "Example: scrinium-server run --data /var/lib/scrinium/server")]
    Run {
        #[command(flatten)]
        data: Data,
    },
    /// Opens the volume with recovery shares on a machine it was not made on, and binds it here.
    #[command(
        after_help = "Example: scrinium-server recover --data DIR --share-file FILE --share-file FILE"
    )]
    Recover {
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        shares: Shares,
    },
    /// Shows and changes what opens the volume.
    #[command(subcommand, after_help = "Example: scrinium-server volume show")]
    Volume(VolumeCommand),
    /// Makes, lists, shows, enables and disables agents. Works on a stopped server's volume too.
    #[command(subcommand, after_help = "Example: scrinium-server agent enroll web1")]
    Agent(Agent),
    /// What a person must hear of. Works on a stopped server's volume too.
    #[command(subcommand, after_help = "Example: scrinium-server alarm list")]
    Alarm(Alarm),
    /// Finds entries, newest first. Works on a stopped server's volume too.
    #[command(
        after_help = "Example: scrinium-server search 'failed \"invalid user\" -backup' --from 24h --format json"
    )]
    Search {
        /// Words, "phrases", prefix*, -not, agent:NAME, stream:TEXT; empty for everything.
        #[arg(default_value = "")]
        query: String,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        range: TimeRange,
        #[arg(long, default_value = "raw", value_parser = ["raw", "json", "csv"])]
        format: String,
        /// Same as --format json.
        #[arg(long)]
        json: bool,
        /// Most entries to print; 1000 without it.
        #[arg(long)]
        limit: Option<usize>,
        /// Print only how many there are.
        #[arg(long)]
        count: bool,
        /// The word of an opening of the second container.
        #[arg(long)]
        opening: Option<String>,
    },
    /// Exports one source, or what matches a query: the exact bytes, or a package an authority can check. Works
    /// on a stopped server's volume too.
    #[command(
        after_help = "Examples: scrinium-server export --agent web1 --path /var/log/auth.log --format raw --out -\n          scrinium-server export --query 203.0.113.7 --from 2026-01-01 --to 2026-02-01 --authority 'Procura di Roma' --out package.tar"
    )]
    Export(Box<Export>),
    /// Download links: `export --link` makes one.
    #[command(subcommand, after_help = "Example: scrinium-server link list")]
    Link(Link),
    /// Recomputes every root, chain and signature; exits 3 when the archive is not whole. Works on a
    /// stopped server's volume too.
    #[command(after_help = "Example: scrinium-server verify --data /var/lib/scrinium/server")]
    Verify {
        #[command(flatten)]
        data: Data,
        /// A checkpoint that was kept elsewhere; may be given more than once.
        #[arg(long = "checkpoint")]
        checkpoints: Vec<PathBuf>,
        /// Read only what was sealed since the last time; of the rest, that it is there and follows.
        #[arg(long, conflicts_with_all = ["from", "to", "zone"])]
        incremental: bool,
        #[command(flatten)]
        range: TimeRange,
        #[arg(long)]
        json: bool,
    },
    /// Opens what only the security officer's key opens, for a purpose and a while.
    #[command(subcommand)]
    Container(Container),
    /// Checks the catalogue of a stopped server; with --rebuild, makes it again from its copies and the segments.
    #[command(after_help = "Example: scrinium-server fsck --rebuild")]
    Fsck {
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        rebuild: bool,
        #[arg(long)]
        json: bool,
    },
    /// Copies the archive elsewhere, checks the copy, makes a volume of it.
    #[command(subcommand)]
    Backup(Backup),
    /// Shows how the running server does: health, its time, what waits and why. Exits 1 when it does not run.
    #[command(after_help = "Example: scrinium-server status --json")]
    Status {
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        json: bool,
    },
    /// Shows what the running server does again and again: how often, when it was good last, when it is due, and what it
    /// says when it fails. Exits 1 when one fails, or no server runs.
    #[command(after_help = "Example: scrinium-server duties --json")]
    Duties {
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        json: bool,
    },
    /// Seals what came so far and packs all of it as hard as a day that is over; the server does that by itself.
    #[command(after_help = "Example: scrinium-server compact")]
    Compact {
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        json: bool,
    },
    /// Shows what is kept for how long and sealed with what, and changes it.
    #[command(after_help = "Example: scrinium-server policy preview --days 7")]
    Policy(Box<Policy>),
    /// Installs and controls the server as a service of systemd.
    #[command(subcommand, after_help = "Example: scrinium-server service install")]
    Service(service::Action),
    /// Console accounts. Works on a stopped server's volume too.
    #[command(
        subcommand,
        after_help = "Example: scrinium-server user password admin --password-file FILE"
    )]
    User(User),
}

#[derive(Subcommand)]
enum User {
    /// Creates an account or sets its password.
    #[command(after_help = "Example: scrinium-server user password admin --password-file FILE")]
    Password {
        name: String,
        #[command(flatten)]
        data: Data,
        /// File with the password; without it one is made and printed.
        #[arg(long)]
        password_file: Option<PathBuf>,
    },
}

impl Cli {
    /// Runs the command to its end.
    pub(crate) fn run(self) -> Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .max_blocking_threads(waits::THREADS_MAX)
            .build()?;
        let outcome = runtime.block_on(self.command.run());
        runtime.shutdown_timeout(Duration::from_secs(2));
        outcome
    }
}

impl Command {
    async fn run(self) -> Result<ExitCode> {
        match self {
            Self::Demo(args) => demo::run(args).await?,
            Self::Init {
                data,
                admin_password_file,
                recovery_out,
                bind,
            } => {
                let config = load_config(&data)?;
                let password = admin_password_file.as_deref();
                let recovery_out = recovery_out.as_deref();
                let show_password = password.is_none();
                Volume::check_new(&data.data)?;
                let place = SharesPlace::prepare(recovery_out, show_password)?;
                let made = init(&data.data, &config, password, &bind.binding())?;
                made.print(show_password, place)?;
            }
            Self::Run { data } => {
                let config = load_config(&data)?;
                run::run(&data.data, config, Config::file(data.config.as_deref())).await?;
            }
            Self::Recover { data, shares } => recover(&data.data, &shares)?,
            Self::Volume(volume) => volume.run().await?,
            Self::Agent(agent) => agent.run().await?,
            Self::Alarm(alarm) => return alarm.run().await,
            Self::Search {
                query,
                data,
                range,
                format,
                json,
                limit,
                count,
                opening,
            } => {
                let Range { from_us, to_us, .. } = range.read()?;
                let request = SearchRequest {
                    query,
                    from_us,
                    to_us,
                    limit,
                    format: if json { "json".into() } else { format },
                    count,
                    opening,
                    to_terminal: std::io::stdout().is_terminal(),
                };
                let (client, running) = client(&data).await?;
                let response = client.post("/search", &request).await?;
                let left_out = control::search::copy_found(response, &mut std::io::stdout()).await;
                close(client, running).await;
                let left_out = left_out?;
                let said = left_out.sentences(Language::of_environment());
                said.iter().for_each(|text| complain(text));
                if left_out.ended.is_some() {
                    return Ok(ExitCode::FAILURE);
                }
            }
            Self::Export(export) => export.run().await?,
            Self::Link(link) => link.run().await?,
            Self::Verify {
                data,
                checkpoints,
                incremental,
                range,
                json,
            } => {
                let Range { from_us, to_us, .. } = range.read()?;
                let read = |path: &PathBuf| {
                    let text = std::fs::read_to_string(path);
                    text.with_context(|| format!("reading {}", path.display()))
                };
                let checkpoints = checkpoints.iter().map(read).collect::<Result<_>>()?;
                let request = VerifyRequest {
                    checkpoints,
                    only_new: incremental,
                    from_us,
                    to_us,
                };
                let (client, running) = client(&data).await?;
                let value = control::json_of(client.post("/verify", &request).await?).await?;
                close(client, running).await;
                let report: Report = serde_json::from_value(value)?;
                if json {
                    say_json(&report)?;
                } else {
                    say_lines(&report.to_lines())?;
                }
                if !report.whole {
                    return Ok(ExitCode::from(3));
                }
            }
            Self::Policy(policy) => policy.run().await?,
            Self::Service(action) => action.run()?,
            Self::Fsck {
                data,
                rebuild,
                json,
            } => return fsck::run(&data.data, rebuild, json),
            Self::Container(container) => container.run().await?,
            Self::Backup(backup) => {
                if !backup.run().await? {
                    return Ok(ExitCode::from(3));
                }
            }
            Self::Status { data, json } => return status::run(&data.data, json).await,
            Self::Duties { data, json } => return duties::run(&data.data, json).await,
            Self::Compact { data, json } => {
                let (client, running) = client(&data).await?;
                let done = client.post("/compact", &json!({})).await;
                let done = match done {
                    Ok(done) => control::json_of(done).await,
                    Err(error) => Err(error),
                };
                close(client, running).await;
                let done = done?;
                let number = |key: &str| done.get(key).and_then(Value::as_u64).unwrap_or(0);
                if json {
                    say_json(&done)?;
                } else {
                    say(&format!(
                        "{} entries, {} of log in {} on the disk, {} segments",
                        number("entries"),
                        human_bytes(number("bytes")),
                        human_bytes(number("bytes_on_disk")),
                        number("segments")
                    ))?;
                }
            }
            Self::User(User::Password {
                name,
                data,
                password_file,
            }) => {
                let password = match &password_file {
                    Some(path) => read_password(path)?,
                    None => random_password()?,
                };
                let (client, running) = client(&data).await?;
                let body = json!({ "name": name, "password": password.as_str() });
                client.post("/users/password", &body).await?;
                close(client, running).await;
                if password_file.is_none() {
                    say(&password)?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What `init` made and will never show again.
struct Made {
    password: Zeroizing<String>,
    shares: Vec<Zeroizing<String>>,
}

/// Creates the volume and the administrator.
fn init(
    dir: &Path,
    config: &Config,
    password_file: Option<&Path>,
    binding: &Binding,
) -> Result<Made> {
    let password = match password_file {
        Some(path) => read_password(path)?,
        None => random_password()?,
    };
    // Before there is a volume that would be half made.
    check_password(ADMIN, &password)?;
    if let Some(files) = &config.certificate {
        console::tls::installed(files)?;
    }
    let (volume, shares) = Volume::create(dir, binding)?;
    let fill = || {
        let catalogue = std::sync::Arc::new(make_catalogue(&volume)?);
        // Whoever signs in is known again by the server that runs.
        let accounts = Accounts::load(catalogue.clone(), volume.key(BROWSERS_KEY))?;
        accounts.set_password(ADMIN, &password)?;
        make_keys(&catalogue, &run::console_names(config))?;
        stopped::note(&volume, "volume made", json!({ "user": ADMIN }))
    };
    fill().with_context(|| {
        format!(
            "the volume in {} is half made: remove the directory and run init again",
            dir.display()
        )
    })?;
    Ok(Made { password, shares })
}

impl Made {
    fn print(&self, show_password: bool, place: SharesPlace<'_>) -> Result<()> {
        if show_password {
            say(&format!("administrator:  {ADMIN}"))?;
            say(&format!("password:       {}", self.password.as_str()))?;
            say("")?;
        }
        place.hand_out(&self.shares)
    }
}

fn recover(dir: &Path, shares: &Shares) -> Result<()> {
    let shares = shares.read_or_ask()?;
    let note = |volume: &Volume| stopped::note(volume, "volume recovered with shares", json!({}));
    drop(Volume::recover(dir, &shares, note)?);
    say("the volume is open and bound to this machine now")
}

/// The running server, or the stopped one's volume in this process.
async fn client(data: &Data) -> Result<(Client, Option<Running>)> {
    let deadline = clock::now() + STARTING_MAX;
    let volume = loop {
        if let Some(client) = Client::connect(&data.data).await {
            return Ok((client, None));
        }
        match Volume::open(&data.data) {
            Ok(volume) => break volume,
            // A server that starts or ends, or another command: it is asked, or gone, in a moment.
            Err(error) if is_in_use(&error) && clock::now() < deadline => {
                tokio::time::sleep(STARTING_STEP).await;
            }
            Err(error) => return Err(error),
        }
    };
    let config = load_config(data)?;
    let running = Running::open(volume, run::dialled_address(&config, None), &config, false)?;
    stopped::publish(&running.core).await?;
    let router = control::router(running.core.clone());
    Ok((Client::InProcess(router), Some(running)))
}

/// Whether another process has the volume.
fn is_in_use(error: &anyhow::Error) -> bool {
    let mut causes = error.chain();
    causes.any(|cause| {
        let cause = cause.downcast_ref::<std::io::Error>();
        cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::WouldBlock)
    })
}

/// How long a command waits for a server that has the volume and does not listen yet, or no longer: one with a large log
/// takes some seconds to start.
const STARTING_MAX: Duration = Duration::from_secs(20);
const STARTING_STEP: Duration = Duration::from_millis(200);

async fn close(client: Client, running: Option<Running>) {
    drop(client);
    if let Some(running) = running {
        running.close().await;
    }
}

fn load_config(data: &Data) -> Result<Config> {
    Config::load(data.config.as_deref()).map_err(usage)
}

fn read_password(path: &Path) -> Result<Zeroizing<String>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let text = Zeroizing::new(text);
    Ok(Zeroizing::new(
        text.trim_end_matches(['\n', '\r']).to_owned(),
    ))
}

/// From when to when, as options give it.
#[derive(clap::Args, Clone)]
struct TimeRange {
    /// Collected at or after: 2026-01-31T10:00:00Z, '2026-01-31 10:00' or 2026-01-31 in the zone, or 24h ago.
    #[arg(long)]
    from: Option<String>,
    /// Collected before.
    #[arg(long)]
    to: Option<String>,
    /// Zone of times without one: local, UTC, +02:00, or a name like Europe/Rome; without it they are UTC.
    #[arg(long)]
    zone: Option<String>,
}

impl TimeRange {
    /// Reads it, and says on standard error what was taken as UTC.
    fn read(&self) -> Result<Range> {
        let t = Language::of_environment();
        let read = || {
            let zone = Zone::named("--zone", self.zone.as_deref())?;
            let (from, to) = (self.from.as_deref(), self.to.as_deref());
            Range::parse(("--from", from), ("--to", to), &zone)
        };
        let range = read().map_err(|error| UsageError(t.refusal(&error)))?;
        range.notes.iter().for_each(|note| complain(&t.say(note)));
        Ok(range)
    }
}

fn parse_ttl(text: &str) -> Result<u64> {
    let parsed = text
        .split_at_checked(text.len().saturating_sub(1))
        .and_then(|(number, unit)| {
            let seconds: u64 = match unit {
                "s" => 1,
                "m" => 60,
                "h" => 3600,
                "d" => 86_400,
                _ => return None,
            };
            number.parse::<u64>().ok()?.checked_mul(seconds)
        });
    match parsed {
        Some(seconds) => Ok(seconds),
        None => bail!("--ttl '{text}' must be like 30m, 1h or 7d"),
    }
}

/// An error of usage or configuration: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(String);

fn usage(error: anyhow::Error) -> anyhow::Error {
    UsageError(format!("{error:#}")).into()
}

/// Prints a line on standard output: whatever others called things, it is one, and moves no cursor.
pub(crate) fn say(line: &str) -> Result<()> {
    print(&shown::sentence(line))
}

fn print(line: &str) -> Result<()> {
    let printed = writeln!(std::io::stdout(), "{line}");
    printed.map_err(|error| {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            OutputClosed.into()
        } else {
            anyhow::Error::from(error).context("writing to standard output")
        }
    })
}

/// Nobody reads standard output any more: whoever did has enough, and nothing is wrong.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads standard output any more")]
pub(crate) struct OutputClosed;

/// Prints lines on standard output.
pub(crate) fn say_lines(lines: &[String]) -> Result<()> {
    lines.iter().try_for_each(|line| say(line))
}

/// Prints a value as JSON on standard output.
pub(crate) fn say_json(value: &impl Serialize) -> Result<()> {
    let text = shown::json(&serde_json::to_string_pretty(value)?);
    print(&text)
}

/// Prints a message on standard error.
pub(crate) fn complain(message: &str) {
    say::put(format!("{}\n", shown::message(message)).as_bytes());
}

/// The first account.
pub(crate) const ADMIN: &str = "admin";
