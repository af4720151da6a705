//! `scrinium-server run`: every listener on an open volume, until a signal.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use scrinium_protocol::route::{Address, Route};
use scrinium_protocol::sl::suite::Suite;
use scrinium_segment::notify::Notifier;
use scrinium_segment::process::HARMLESS_SIGNALS;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tracing::info;

use super::reload::Reload;
use crate::alarms::AlarmKind;
use crate::backup::schedule::{self, Schedule};
use crate::catalogue::copies::{self, Copying};
use crate::certificates::{self, Publishing};
use crate::config::Config;
use crate::console::tls::Keeping;
use crate::control::waiting::WhatWaits;
use crate::core::{Core, OWN_NAME, Running, host_name};
use crate::duties::keep::{Duty, Plan, keep};
use crate::evidence::Intervals;
use crate::evidence::showing::{self, Showing};
use crate::health::{self, Health};
use crate::listener::doors::{self, Telling};
use crate::local::{Room, SyslogSink};
use crate::refusals::{self, Sums};
use crate::said::said;
use crate::silence::{self, Silence};
use crate::statistics::{self, Statistics};
use crate::verification::{self, Nightly};
use crate::vital::{PartFell, Vital};
use crate::volume::Volume;
use crate::{console, control, evidence, listener, notices, self_signed, stopped, time};

/// Runs until SIGTERM or SIGINT; SIGHUP reads `file` again, which `config` is from.
pub(crate) async fn run(dir: &Path, config: Config, file: Option<PathBuf>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hangup = signal(SignalKind::hangup())?;
    for number in HARMLESS_SIGNALS {
        // It stays handled when nobody listens any more.
        drop(signal(SignalKind::from_raw(number))?);
    }
    let reload = Reload::new(file, &config)?;
    let notifier = Arc::new(Notifier::from_environment());
    let mut server = Server::start(dir, config).await?;
    notifier.say("READY=1");
    info!(data = %dir.display(), "the server is ready");
    server.heed(hangup, reload);
    let alive = tokio::spawn(say_alive(notifier.clone()));
    let signal = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        // Nothing is drained: what would drain it is what fell.
        fell = server.first_fallen() => return Err(fell.into()),
    };
    info!(signal, "stopping");
    notifier.say("STOPPING=1");
    alive.abort();
    server.stop(signal).await;
    Ok(())
}

/// Tells the service manager that tasks are still run; one that does not hear it for long starts the server anew.
async fn say_alive(notifier: Arc<Notifier>) {
    let Some(pause) = notifier.watchdog_pause() else {
        return;
    };
    loop {
        notifier.say("WATCHDOG=1");
        tokio::time::sleep(pause).await;
    }
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
        // Before anybody can connect.
        let installed = match config.certificate.clone() {
            Some(files) => {
                let certified = console::tls::installed(&files)?;
                Some((files, certified))
            }
            None => None,
        };
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
        // What is configured is right from here on, and nothing is in the trail of this run before its start.
        stopped::begin(&running.core, &running.local).await?;
        let names = console_names(&config);
        let metrics_names: Arc<[String]> = names.clone().into();
        let (tls, shown) = console::tls::config(&running.core, installed, &names).await?;
        let mut tasks = JoinSet::new();
        let vital = &running.vital;
        let mut spawn = |part, task: Task| tasks.spawn(vital.clone().endless(part, task));
        let core = || running.core.clone();
        let room = Room::new();
        let sink = || SyslogSink {
            queue: running.local.clone(),
            room: room.clone(),
            dropped: running.core.dropped.clone(),
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
        for listener in console {
            let task = console::serve(core(), listener, tls.clone());
            spawn("console", Box::pin(task));
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
        let mut keep = Keeper {
            core: &running.core,
            vital,
            tasks: &mut tasks,
            names: BTreeSet::new(),
        };
        keep.duty(health::PLAN, Health::new);
        keep.duty(doors::PLAN, Telling::new);
        keep.duty(refusals::PLAN, Sums);
        keep.duty(silence::PLAN, Silence::new);
        keep.duty(notices::PLAN, notices::Sending::new);
        let offset_max = config.clock_offset_max;
        keep.duty(time::watch::PLAN, move |core| {
            time::watch::Watch::new(core, offset_max)
        });
        keep.duty(certificates::PLAN, Publishing);
        keep.duty(control::waiting::PLAN, WhatWaits::new);
        keep.duty(copies::PLAN, Copying::new);
        keep.duty(statistics::PLAN, Statistics);
        keep.duty(verification::PLAN, Nightly::new);
        let kept = shown.clone();
        keep.duty(Keeping::plan(config.certificate.as_ref()), move |core| {
            Keeping::new(core, names.clone(), kept.clone())
        });
        if let Some(config) = config.backup {
            keep.duty(schedule::PLAN, move |core| Schedule {
                core,
                config: config.clone(),
            });
        }
        let elsewhere = config.elsewhere;
        keep.duty(evidence::plan(config.interval), Intervals::new);
        keep.duty(showing::PLAN, move |core| {
            Showing::new(core, elsewhere.clone())
        });
        let duties = keep.names;
        end_unkept(&running.core, &duties).await;
        Ok(Self {
            running,
            tasks,
            console: console_address,
            shown,
        })
    }

    /// Reads the configuration again at each signal. A file on a disk that does not answer keeps no other signal from being heard.
    fn heed(&mut self, mut hangup: Signal, reload: Reload) {
        let (core, shown) = (self.running.core.clone(), self.shown.clone());
        let read = async move {
            while hangup.recv().await.is_some() {
                reload.run(&core, &shown).await;
            }
        };
        let vital = self.running.vital.clone();
        self.tasks
            .spawn(vital.endless("reading the configuration", read));
    }

    /// Stops from the beginning of the pipe: listeners, then what is in it drains to the disk. `by` is what ends it.
    pub(crate) async fn stop(mut self, by: &str) {
        self.tasks.shutdown().await;
        // What waits in memory and can be written is written.
        let alarms = self.running.core.alarms.write_down();
        let _rest_is_lost = tokio::time::timeout(PATIENCE, alarms).await;
        refusals::write_sums(&self.running.core, true).await;
        stopped::keep_unsaid(&self.running.core);
        stopped::end(&self.running.core, by).await;
        let socket = self.running.core.data_dir().join("control.sock");
        self.running.close().await;
        drop(std::fs::remove_file(socket));
    }

    /// Waits for the first part that panics.
    pub(crate) async fn first_fallen(&mut self) -> PartFell {
        self.running.fallen.first().await
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.running.core
    }
}

/// Ends the alarms of what the last run of the server did, and this one does not, or did not yet take: a configuration that was
/// refused was read now.
async fn end_unkept(core: &Core, duties: &BTreeSet<String>) {
    let alarms = &core.alarms;
    alarms.end_all_but(AlarmKind::DutyFailed, duties).await;
    if core.backup.is_none() {
        let none = BTreeSet::new();
        alarms.end_all_but(AlarmKind::BackupFailed, &none).await;
    }
    notices::end_unkept(core).await;
    let over = said!("over.configuration");
    let kind = AlarmKind::ConfigurationRejected;
    alarms.end(kind, OWN_NAME, over).await;
}

/// Begins duties.
struct Keeper<'a> {
    core: &'a Arc<Core>,
    vital: &'a Vital,
    tasks: &'a mut JoinSet<()>,
    names: BTreeSet<String>,
}

impl Keeper<'_> {
    /// Keeps a duty, which is made of the core, and made anew after a panic.
    fn duty<D: Duty>(&mut self, plan: Plan, make: impl Fn(Arc<Core>) -> D + Send + 'static) {
        self.names.insert(plan.name().to_owned());
        let core = self.core.clone();
        let made_of = core.clone();
        let kept = keep(core, plan, move || make(made_of.clone()));
        self.tasks
            .spawn(self.vital.clone().endless("keeper of duties", kept));
    }
}

/// The stream that is told which connections of senders were refused.
const SYSLOG_TCP_NAME: &str = "tcp listeners";
/// A stop does not wait longer for alarms that could not be written down before.
const PATIENCE: Duration = Duration::from_secs(5);
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
