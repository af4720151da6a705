//! `scrinium-server demo`: the whole product on loopback, in one process tree, unprivileged.
//!
//! ```text
//! this machine's logs ─┐
//! an application's log ┴─▶ scrinium-agent (child) ═SL═▶ server ─▶ archive ─▶ console
//! a firewall, a switch … ───────── syslog over UDP ═══▶
//! ```

use std::io::Write as _;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use scrinium_segment::durable;
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;

use super::run::{Server, beside};
use super::{ADMIN, init, say, say_lines};
use crate::accounts::random_password;
use crate::agents::{Allowance, NewAgent};
use crate::catalogue::records::FIRST_TENANT;
use crate::clock;
use crate::config::Config;
use crate::control::{audit_as, caller};
use crate::volume::Binding;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where volume, agent state and generated logs lie; kept between runs.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Do not try to open a browser.
    #[arg(long)]
    no_browser: bool,
}

/// Runs until Ctrl-C, or until its terminal is closed.
pub(super) async fn run(args: Args) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // The terminal was closed: its agent does not end by itself.
    let mut hangup = signal(SignalKind::hangup())?;
    let agent_program = beside("scrinium-agent")?;
    let dir = match args.dir {
        Some(dir) => std::path::absolute(dir)?,
        None => default_dir()?,
    };
    durable::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let (volume, state, sources) = (dir.join("server"), dir.join("agent"), dir.join("sources"));
    durable::create_dir(&sources)?;

    let config = demo_config()?;
    let (password, shares) = if volume.join("volume.json").try_exists()? {
        (None, Vec::new())
    } else {
        let made = init(&volume, &config, None, &Binding::default())?;
        (Some(made.password), made.shares)
    };
    let mut server = Server::start(&volume, config.clone()).await?;
    let password = match password {
        Some(password) => password,
        None => {
            let password = random_password()?;
            let core = server.core();
            let detail = json!({ "user": ADMIN });
            audit_as(core, &caller::local(), "password set", detail).await?;
            core.accounts.set_password(ADMIN, &password)?;
            password
        }
    };
    let agent = start_agent(&server, &agent_program, &state, &sources).await?;

    let url = server
        .console
        .map_or_else(String::new, |address| format!("https://{address}/"));
    // One place of ours is named in it, and nothing of others.
    let banner = format!(
        "\n  Scrinium demo\n\n  console    {url}\n  user       {ADMIN}\n  password   {}   (made for this run)\n\n  \
         The certificate is self-signed: let the browser pass once.\n  Try:  echo \"hello from $USER\" >> {}\n        \
         then search for: hello\n  Try:  logger -n 127.0.0.1 -P {} -d \"switch port 7 is up\"\n  Stop with Ctrl-C. Everything lies in {}\n",
        password.as_str(),
        sources.join("app.log").display(),
        config
            .syslog_udp
            .first()
            .and_then(|address| address.rsplit_once(':'))
            .map_or("15514", |(_, port)| port),
        dir.display(),
    );
    let mut banner: Vec<String> = banner.lines().map(str::to_owned).collect();
    if !shares.is_empty() {
        let said = "  Recovery shares: any two open the volume on another machine. They are shown now and never again.";
        banner.push(said.to_owned());
        banner.extend(shares.iter().map(|share| format!("    {}", share.as_str())));
        banner.push(String::new());
    }
    // Whoever started it may have read enough and closed the pipe: the demo goes on.
    if let Err(error) = say_lines(&banner) {
        warn!(%error, "standard output takes no more");
    }
    if !args.no_browser {
        open_browser(&url);
    }
    let generator = tokio::spawn(generate(
        sources.join("app.log"),
        config.syslog_udp.first().cloned(),
    ));
    let supervisor = tokio::spawn(supervise(
        agent,
        agent_program,
        state.clone(),
        dir.join("agent.toml"),
    ));
    let signal = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        _ = hangup.recv() => "SIGHUP",
        fell = server.first_fallen() => return Err(fell.into()),
    };
    let _nobody_reads = say("stopping …");
    generator.abort();
    // Aborting the supervisor drops the agent, which ends it; its state is safe against that.
    supervisor.abort();
    drop(supervisor.await);
    drop(generator.await);
    server.stop(signal).await;
    Ok(())
}

fn default_dir() -> Result<PathBuf> {
    let data = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute());
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    let Some(base) = data.or(home) else {
        bail!("there is no home directory; choose one with --dir");
    };
    Ok(base.join("scrinium-demo"))
}

fn demo_config() -> Result<Config> {
    let mut config = Config::load(None)?;
    // What the environment set explicitly stays; everything else is on loopback, above 1023.
    for (name, field, port) in [
        ("SCRINIUM_LISTEN_SL", &mut config.sl, 17_200),
        ("SCRINIUM_LISTEN_CONSOLE", &mut config.console, 18_443),
        ("SCRINIUM_LISTEN_SYSLOG_UDP", &mut config.syslog_udp, 15_514),
        ("SCRINIUM_LISTEN_SYSLOG_TCP", &mut config.syslog_tcp, 15_140),
    ] {
        if std::env::var_os(name).is_none() {
            *field = vec![format!("127.0.0.1:{port}")];
        }
    }
    config.keep_alive = Duration::from_secs(5);
    Ok(config)
}

/// Enrols the agent the first time, then starts it.
async fn start_agent(
    server: &Server,
    program: &Path,
    state: &Path,
    sources: &Path,
) -> Result<Child> {
    let core = server.core();
    if core
        .agents
        .list()
        .iter()
        .all(|(agent, _)| agent.name != AGENT_NAME)
    {
        if state.try_exists()? {
            std::fs::remove_dir_all(state)?;
        }
        let agent = NewAgent {
            name: AGENT_NAME,
            site: "demo",
            tenant: FIRST_TENANT,
            by: "",
        };
        let detail = json!({ "agent": agent.name, "site": agent.site });
        audit_as(core, &caller::local(), "token made", detail).await?;
        let token = core.agents.make_token(
            &agent,
            &core.address,
            *core.noise.public(),
            Allowance::once(600),
        )?;
        let enrolled = Command::new(program)
            .arg("enroll")
            .arg(token.to_text())
            .arg("--state")
            .arg(state)
            .stdout(Stdio::null())
            .status()
            .await?;
        anyhow::ensure!(enrolled.success(), "the demo's agent could not be enrolled");
    }
    let patterns = ["/var/log/**/*.log", "/var/log/syslog", "/var/log/messages"];
    let own = sources.join("*.log");
    let files = patterns
        .iter()
        .map(|p| (*p).to_owned())
        .chain([own.display().to_string()]);
    let text: String = files
        .map(|file| format!("[[source]]\nfile = {file:?}\n"))
        .collect();
    let config = state.with_file_name("agent.toml");
    durable::write_file(&config, text.as_bytes())?;
    spawn_agent(program, state, &config)
}

fn spawn_agent(program: &Path, state: &Path, config: &Path) -> Result<Child> {
    let child = Command::new(program)
        .arg("run")
        .arg("--state")
        .arg(state)
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    child.with_context(|| format!("starting {}", program.display()))
}

/// Starts the agent again whenever it ends.
async fn supervise(mut agent: Child, program: PathBuf, state: PathBuf, config: PathBuf) {
    loop {
        let ended = agent.wait().await;
        warn!(?ended, "the demo's agent ended; starting it again");
        // An agent that cannot run must not be started in a tight loop.
        tokio::time::sleep(Duration::from_secs(2)).await;
        match spawn_agent(&program, &state, &config) {
            Ok(child) => agent = child,
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "the demo's agent cannot be started"
                );
                return;
            }
        }
    }
}

/// Writes lines like those of an application to a file, and sends lines like those of network gear.
async fn generate(path: PathBuf, syslog: Option<String>) {
    let socket = UdpSocket::bind("127.0.0.1:0").ok();
    let mut tick = tokio::time::interval(Duration::from_millis(400));
    for n in 0_u64.. {
        tick.tick().await;
        let us = clock::unix_us();
        let time = |pattern| crate::present::format_time(us, pattern);
        let (a, b) = (n * 7919 % 250 + 1, n * 104_729 % 60_000 + 1024);
        let line = match n % 3 {
            0 => format!(
                "{} INFO  order {} paid by customer {} in {} ms",
                time("%Y-%m-%dT%H:%M:%S%.3fZ"),
                40_000 + n,
                a,
                b % 400
            ),
            1 => format!(
                "{} WARN  slow query on table invoices: {} ms",
                time("%Y-%m-%dT%H:%M:%S%.3fZ"),
                500 + b % 3000
            ),
            _ => format!(
                "{} INFO  GET /api/v1/orders/{} 200 {} bytes",
                time("%Y-%m-%dT%H:%M:%S%.3fZ"),
                40_000 + n,
                b
            ),
        };
        let file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path);
        drop(file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())));
        let bsd = time("%b %e %H:%M:%S");
        let message = match n % 5 {
            0 => format!(
                "<134>{bsd} fw-edge %ASA-6-302013: Built outbound TCP connection {n} for outside:203.0.113.{a}/443 to inside:10.0.3.{a}/{b}"
            ),
            1 => format!(
                "<134>1 {} MX84 flows src=10.0.8.{a} dst=198.51.100.{a} protocol=tcp sport={b} dport=443 pattern: allow all",
                time("%s.%9f")
            ),
            2 => format!(
                "<30>{bsd} dhcp-core dhcpd[812]: DHCPACK on 10.0.8.{a} to 00:1b:44:11:3a:{:02x} via vlan8",
                a % 256
            ),
            3 => format!(
                "<38>{bsd} bastion sshd[{b}]: Failed password for invalid user admin from 198.51.100.{a} port {b} ssh2"
            ),
            _ => format!(
                "<189>{bsd} sw-floor2 LINK-3-UPDOWN: Interface GigabitEthernet0/{}, changed state to up",
                a % 48
            ),
        };
        if let (Some(socket), Some(to)) = (&socket, &syslog) {
            drop(socket.send_to(message.as_bytes(), to));
        }
    }
}

fn open_browser(url: &str) {
    if std::env::var_os("DISPLAY").is_none() && std::env::var_os("WAYLAND_DISPLAY").is_none() {
        return;
    }
    let opened = std::process::Command::new("xdg-open")
        .arg(url)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    drop(opened);
}

const AGENT_NAME: &str = "this-machine";
