//! What the system's signals make the agent do.
//!
//! ```text
//! SIGTERM, SIGINT ─▶ stop        SIGHUP ─▶ the configuration file is read again ─▶ [uplink](crate::uplink)
//! ```
//!
//! A file that cannot be taken leaves what is in force; others end nothing.

use std::path::PathBuf;

use tokio::sync::{mpsc, watch};
use tracing::info;
#[cfg(unix)]
use tracing::warn;

use crate::config::Config;

/// Watches for signals until one ends the agent, and says `stop` then.
#[cfg(unix)]
pub(crate) fn watch(
    path: Option<PathBuf>,
    stop: watch::Sender<bool>,
    reloads: mpsc::Sender<Config>,
) -> std::io::Result<()> {
    use scrinium_segment::process::HARMLESS_SIGNALS;
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    for number in HARMLESS_SIGNALS {
        // It stays handled when nobody listens any more.
        drop(signal(SignalKind::from_raw(number))?);
    }
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => reload(path.clone(), &reloads).await,
            }
        }
        info!("stopping");
        stop.send_replace(true);
    });
    Ok(())
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
pub(crate) fn watch(
    _path: Option<PathBuf>,
    stop: watch::Sender<bool>,
    reloads: mpsc::Sender<Config>,
) -> std::io::Result<()> {
    tokio::spawn(async move {
        let _nothing_is_read_again = reloads;
        tokio::select! {
            stopped = tokio::signal::ctrl_c() => drop(stopped),
            () = crate::service::windows::stopped() => {}
        }
        info!("stopping");
        stop.send_replace(true);
    });
    Ok(())
}
