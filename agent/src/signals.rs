//! What the system's signals make the agent do, on a thread and a runtime of their own: the others may hang.
//!
//! ```text
//! SIGTERM, SIGINT ─▶ stop ─▶ [ending](crate::ending)
//! SIGHUP ─▶ the configuration file is read again ─▶ [uplink](crate::uplink)
//! ```
//!
//! A file that cannot be taken leaves what is in force; others end nothing.

use std::path::PathBuf;

use tokio::sync::{mpsc, watch};
use tracing::info;
#[cfg(unix)]
use tracing::warn;

use crate::config::Config;
use crate::ending::Ending;

/// Watches for signals until one ends the agent, says `stop` then, and sees that it ends.
pub(crate) fn watch(
    path: Option<PathBuf>,
    stop: watch::Sender<bool>,
    reloads: mpsc::Sender<Config>,
    ending: Ending,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let told_to_end = {
        let _entered = runtime.enter();
        listen(path, reloads)?
    };
    let wait = move || {
        runtime.block_on(told_to_end);
        info!("stopping");
        stop.send_replace(true);
        runtime.block_on(ending.cut_short());
    };
    let thread = std::thread::Builder::new().name("signals".into());
    thread.spawn(wait).map(drop)
}

/// Takes the signals; what comes of it is over when one ends the agent.
#[cfg(unix)]
fn listen(
    path: Option<PathBuf>,
    reloads: mpsc::Sender<Config>,
) -> std::io::Result<impl Future<Output = ()> + Send> {
    use scrinium_segment::process::HARMLESS_SIGNALS;
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    for number in HARMLESS_SIGNALS {
        // It stays handled when nobody listens any more.
        drop(signal(SignalKind::from_raw(number))?);
    }
    Ok(async move {
        // Reading may take long, and so may taking: neither keeps the agent from ending.
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                reload(path.clone(), &reloads).await;
            }
        });
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Reads the configuration again; signals that come meanwhile are one.
#[cfg(unix)]
async fn reload(path: Option<PathBuf>, reloads: &mpsc::Sender<Config>) {
    // The file may be on a disk that does not answer.
    let load = tokio::task::spawn_blocking(move || Config::load(path.as_deref()));
    match load
        .await
        .map_err(anyhow::Error::from)
        .and_then(|loaded| loaded)
    {
        Ok(config) => drop(reloads.send(config).await),
        Err(error) => {
            let error = format!("{error:#}");
            warn!(
                error,
                "the configuration file is not taken: the one before stays in force"
            );
        }
    }
}

/// The same where the service control manager says it; a file is read again by a restart there.
#[cfg(not(unix))]
fn listen(
    _path: Option<PathBuf>,
    reloads: mpsc::Sender<Config>,
) -> std::io::Result<impl Future<Output = ()> + Send> {
    Ok(async move {
        let _nothing_is_read_again = reloads;
        tokio::select! {
            stopped = tokio::signal::ctrl_c() => drop(stopped),
            () = crate::service::windows::stopped() => {}
        }
    })
}
