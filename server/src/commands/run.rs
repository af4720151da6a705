//! `scrinium-server run`: every listener on an open volume, until a signal.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use scrinium_protocol::route::{Address, Route};
use scrinium_protocol::sl::suite::Suite;
use scrinium_segment::process::HARMLESS_SIGNALS;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tracing::info;

use super::reload::Reload;
use crate::catalogue::copies;
use crate::config::Config;
use crate::core::{Running, host_name};
use crate::local::{Room, SyslogSink};
use crate::vital::PartFell;
use crate::volume::Volume;
use crate::{
    backup, certificates, console, control, evidence, listener, refusals, self_signed, silence,
    statistics, stopped, time, verification,
};

/// Runs until SIGTERM or SIGINT; SIGHUP reads `file` again, which `config` is from.
pub(crate) async fn run(dir: &Path, config: Config, file: Option<PathBuf>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    for number in HARMLESS_SIGNALS {
        // It stays handled when nobody listens any more.
        drop(signal(SignalKind::from_raw(number))?);
    }
    let reload = Reload::new(file, &config)?;
    let mut server = Server::start(dir, config).await?;
    info!(data = %dir.display(), "the server is ready");
    let signal = loop {
        tokio::select! {
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
            _ = hangup.recv() => reload.run(&server.running.core, &server.shown).await,
            // Nothing is drained: what would drain it is what fell.
            fell = server.first_fallen() => return Err(fell.into()),
        }
    };
    info!(signal, "stopping");
    server.stop(signal).await;
    Ok(())
}

/// A part of the server that runs until it stops.
type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A running server and where it listens.
pub(crate) struct Server {
    running: Running,
    tasks: JoinSet<()>,
    pub(crate) console: Option<SocketAddr>,
    /// The certificate of the console.
    shown: Arc<console::tls::Shown>,
}

impl Server {
    /// Opens the volume, then the archive, then the listeners: from the end of the pipe.
    pub(crate) async fn start(dir: &Path, config: Config) -> Result<Self> {
        let volume = Volume::open(dir)?;
        let sl = listener::bind_tcp("sl", &config.sl).await?;
        let sl_integrity = listener::bind_tcp("sl_integrity", &config.sl_integrity).await?;
        let syslog_tcp = listener::bind_tcp("syslog_tcp", &config.syslog_tcp).await?;
        let console = listener::bind_tcp("console", &config.console).await?;
        let metrics = listener::bind_tcp("metrics", &config.metrics).await?;
        let udp: Vec<_> = config
            .syslog_udp
            .iter()
            .map(|address| scrinium_syslog::bind_udp(address).context("listen.syslog_udp"))
            .collect::<Result<_>>()?;
        let address = dialled_address(&config, sl.first().and_then(listener::local_address));
        let console_address = console.first().and_then(listener::local_address);
        let control = control::bind(dir)?;

        let running = Running::open(volume, address, &config, true)?;
        let installed = config.certificate.as_ref().map(console::tls::installed);
        let installed = installed.transpose()?;
        // What is configured is right from here on, and nothing is in the trail of this run before its start.
        stopped::begin(&running.core).await?;
        let names = console_names(&config);
        let metrics_names: Arc<[String]> = names.clone().into();
        let (tls, shown) = console::tls::config(&running.core, installed, &names).await?;
        let mut tasks = JoinSet::new();
        let vital = &running.vital;
        let mut spawn = |part, task: Task| tasks.spawn(vital.clone().watched(part, task));
        let core = || running.core.clone();
        let room = Room::new();
        let sink = || SyslogSink {
            queue: running.local.clone(),
            room: room.clone(),
        };
        spawn("control", Box::pin(control::run(core(), control)));
        for socket in udp {
            let sink = sink();
            spawn(
                "syslog over UDP",
                Box::pin(scrinium_syslog::run_udp(socket, sink)),
            );
        }
        if !syslog_tcp.is_empty() {
            let task = scrinium_syslog::tell_refusals(
                running.core.doors.syslog.clone(),
                SYSLOG_TCP_NAME.to_owned(),
                sink(),
            );
            spawn("refused senders", Box::pin(task));
        }
        for listener in syslog_tcp {
            let sink = sink();
            let door = running.core.doors.syslog.clone();
            let idle_max = config.connections.syslog_idle_max;
            spawn(
                "syslog over TCP",
                Box::pin(scrinium_syslog::run_tcp(listener, sink, door, idle_max)),
            );
        }
        spawn(
            "refused connections",
            Box::pin(listener::doors::tell(core())),
        );
        for listener in console {
            let task = console::serve(core(), listener, tls.clone());
            spawn("console", Box::pin(task));
        }
        if config.certificate.is_none() {
            let task = console::tls::keep(core(), names, shown.clone());
            spawn("console certificate", Box::pin(task));
        }
        for listener in metrics {
            let task = console::metrics::serve(core(), listener, metrics_names.clone());
            spawn("metrics", Box::pin(task));
        }
        for (suite, listeners) in [(Suite::Encrypted, sl), (Suite::IntegrityOnly, sl_integrity)] {
            for listener in listeners {
                let task = listener::sl::run(core(), suite, listener);
                spawn("listener of agents", Box::pin(task));
            }
        }
        spawn("refusals", Box::pin(refusals::run(core())));
        spawn("silence", Box::pin(silence::watch(core())));
        let offset_max = config.clock_offset_max;
        spawn("time", Box::pin(time::watch::run(core(), offset_max)));
        spawn("certificates", Box::pin(certificates::run(core())));
        spawn("waiting acts", Box::pin(control::waiting::run(core())));
        spawn("catalogue copies", Box::pin(copies::run(core())));
        spawn("statistics", Box::pin(statistics::run(core())));
        spawn("verification", Box::pin(verification::nightly(core())));
        if let Some(backup) = config.backup {
            spawn("backup", Box::pin(backup::run(core(), backup)));
        }
        let evidence = evidence::run(core(), config.interval, config.elsewhere);
        spawn("evidence", Box::pin(evidence));
        Ok(Self {
            running,
            tasks,
            console: console_address,
            shown,
        })
    }

    /// Stops from the beginning of the pipe: listeners, then what is in it drains to the disk. `by` is what ends it.
    pub(crate) async fn stop(mut self, by: &str) {
        self.tasks.shutdown().await;
        refusals::write_sums(&self.running.core, true).await;
        stopped::end(&self.running.core, by).await;
        let socket = self.running.core.data_dir().join("control.sock");
        self.running.close().await;
        drop(std::fs::remove_file(socket));
    }

    /// Waits for the first part that panics.
    pub(crate) async fn first_fallen(&mut self) -> PartFell {
        self.running.fallen.first().await
    }

    pub(crate) fn core(&self) -> &Arc<crate::core::Core> {
        &self.running.core
    }
}

/// The stream that is told which connections of senders were refused.
const SYSLOG_TCP_NAME: &str = "tcp listeners";
/// What browsers call the console: this machine's names, and those that are configured.
pub(crate) fn console_names(config: &Config) -> Vec<String> {
    let route = config.address.as_deref().map(Route::parse);
    let dialled = route.and_then(Result::ok).map(|route| route.addresses);
    let dialled: Vec<String> = dialled.iter().flatten().map(Address::to_string).collect();
    let addresses = config.console.iter().chain(&dialled);
    self_signed::names(host_name().as_deref(), addresses.map(String::as_str))
}

/// What agents dial: as configured, or this machine's name and the port of the SL listener.
pub(crate) fn dialled_address(config: &Config, bound: Option<SocketAddr>) -> String {
    if let Some(address) = &config.address {
        return address.clone();
    }
    let configured = config
        .sl
        .first()
        .and_then(|address| address.parse::<SocketAddr>().ok());
    let listening = bound.or(configured);
    let port = listening.map_or(720, |address| address.port());
    match listening {
        Some(address) if !address.ip().is_unspecified() => address.to_string(),
        _ => format!(
            "{}:{port}",
            host_name().unwrap_or_else(|| "localhost".to_owned())
        ),
    }
}

/// Checks that a program beside this one is there.
pub(crate) fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let path = own.with_file_name(name);
    anyhow::ensure!(
        path.is_file(),
        "{} is not there; build it with: cargo build --release",
        path.display()
    );
    Ok(path)
}
