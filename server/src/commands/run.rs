//! `scrinium-server run`: every listener on an open volume, until a signal.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use scrinium_protocol::sl::suite::Suite;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tracing::info;

use crate::catalogue::copies;
use crate::config::Config;
use crate::core::{Running, host_name};
use crate::local::SyslogSink;
use crate::volume::Volume;
use crate::{
    backup, certificates, console, control, evidence, listener, silence, statistics, stopped, time,
    verification,
};

/// Runs until SIGTERM or SIGINT.
pub(crate) async fn run(dir: &Path, config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let server = Server::start(dir, config).await?;
    info!(data = %dir.display(), "the server is ready");
    let signal = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    info!(signal, "stopping");
    server.stop(signal).await;
    Ok(())
}

/// A running server and where it listens.
pub(crate) struct Server {
    running: Running,
    tasks: JoinSet<()>,
    pub(crate) console: Option<SocketAddr>,
}

impl Server {
    /// Opens the volume, then the archive, then the listeners: from the end of the pipe.
    pub(crate) async fn start(dir: &Path, config: Config) -> Result<Self> {
        let volume = Volume::open(dir)?;
        let sl = listener::bind_tcp("sl", &config.sl).await?;
        let sl_integrity = listener::bind_tcp("sl_integrity", &config.sl_integrity).await?;
        let syslog_tcp = listener::bind_tcp("syslog_tcp", &config.syslog_tcp).await?;
        let console = listener::bind_tcp("console", &config.console).await?;
        let udp: Vec<_> = config
            .syslog_udp
            .iter()
            .map(|address| scrinium_syslog::bind_udp(address).context("listen.syslog_udp"))
            .collect::<Result<_>>()?;
        let address = dialled_address(&config, sl.first().and_then(listener::local_address));
        let console_address = console.first().and_then(listener::local_address);
        let control = control::bind(dir)?;

        let running = Running::open(volume, address, &config, true)?;
        let tls = console::tls::config(&running.core, config.certificate.as_ref())?;
        // Nothing can fail from here on, and nothing is in the trail of this run before its start.
        stopped::begin(&running.core).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(control::run(running.core.clone(), control));
        for socket in udp {
            tasks.spawn(scrinium_syslog::run_udp(
                socket,
                SyslogSink(running.local.clone()),
            ));
        }
        if !syslog_tcp.is_empty() {
            tasks.spawn(scrinium_syslog::tell_refusals(
                running.core.doors.syslog.clone(),
                SYSLOG_TCP_NAME.to_owned(),
                SyslogSink(running.local.clone()),
            ));
        }
        for listener in syslog_tcp {
            tasks.spawn(scrinium_syslog::run_tcp(
                listener,
                SyslogSink(running.local.clone()),
                running.core.doors.syslog.clone(),
                config.connections.syslog_idle_max,
            ));
        }
        tasks.spawn(listener::doors::tell(running.core.clone()));
        for listener in console {
            tasks.spawn(console::serve(running.core.clone(), listener, tls.clone()));
        }
        for (suite, listeners) in [(Suite::Encrypted, sl), (Suite::IntegrityOnly, sl_integrity)] {
            for listener in listeners {
                tasks.spawn(listener::sl::run(running.core.clone(), suite, listener));
            }
        }
        tasks.spawn(silence::watch(running.core.clone()));
        tasks.spawn(time::watch::run(
            running.core.clone(),
            config.clock_offset_max,
        ));
        tasks.spawn(certificates::run(running.core.clone()));
        tasks.spawn(control::waiting::run(running.core.clone()));
        tasks.spawn(copies::run(running.core.clone()));
        tasks.spawn(statistics::run(running.core.clone()));
        tasks.spawn(verification::nightly(running.core.clone()));
        if let Some(backup) = config.backup {
            tasks.spawn(backup::run(running.core.clone(), backup));
        }
        tasks.spawn(evidence::run(
            running.core.clone(),
            config.interval,
            config.elsewhere,
        ));
        Ok(Self {
            running,
            tasks,
            console: console_address,
        })
    }

    /// Stops from the beginning of the pipe: listeners, then what is in it drains to the disk. `by` is what ends it.
    pub(crate) async fn stop(mut self, by: &str) {
        self.tasks.shutdown().await;
        stopped::end(&self.running.core, by).await;
        let socket = self.running.core.data_dir().join("control.sock");
        self.running.close().await;
        drop(std::fs::remove_file(socket));
    }

    pub(crate) fn core(&self) -> &std::sync::Arc<crate::core::Core> {
        &self.running.core
    }
}

/// The stream that is told which connections of senders were refused.
const SYSLOG_TCP_NAME: &str = "tcp listeners";

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
pub(crate) fn beside(name: &str) -> Result<std::path::PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let path = own.with_file_name(name);
    anyhow::ensure!(
        path.is_file(),
        "{} is not there; build it with: cargo build --release",
        path.display()
    );
    Ok(path)
}
