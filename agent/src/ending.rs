//! How the agent ends: when it is told to, in bounded time, whatever hangs; and that its manager hears whether it lives.
//!
//! ```text
//! signal ─▶ [signals](crate::signals) ─▶ stop ─▶ uplink: sources end, what they had goes to the disk ─▶ end
//!                └─ END_MAX later, should all that hang ─▶ note ─▶ end
//! note ─at the next start─▶ the agent's own log
//! ```

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use scrinium_segment::durable;
#[cfg(unix)]
use tokio::sync::watch;
use tracing::{error, warn};

#[cfg(unix)]
use crate::clock;
#[cfg(unix)]
use crate::source::beat::Beat;
#[cfg(unix)]
use scrinium_segment::notify::Notifier;

/// What is left to say when the end is cut short.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    note: PathBuf,
    /// What the agent does to end.
    stage: Arc<Mutex<String>>,
}

impl Ending {
    /// Notes are kept in `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            note: dir.join(NOTE),
            stage: Arc::new(Mutex::new("it did not begin to end".to_owned())),
        }
    }

    /// What the last end left is logged.
    pub(crate) fn tell_the_last(&self) {
        let note = &self.note;
        let mut text = Vec::new();
        if let Ok(file) = File::open(note)
            && let Ok(1..) = file.take(NOTE_LEN_MAX).read_to_end(&mut text)
        {
            let text = String::from_utf8_lossy(&text).into_owned();
            warn!(
                left = text,
                "the agent was stopped before it had ended; what it had not handed over then is sent again or said to be missing"
            );
            if let Err(error) = durable::remove(note) {
                warn!(%error, "the note about the last end cannot be removed");
            }
        }
    }

    /// What the agent does now to end; said when it goes no further.
    pub(crate) fn at(&self, stage: impl Into<String>) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage.into();
    }

    /// Leaves a note for the next start. A disk that hangs is not waited for.
    pub(crate) fn leave_note(&self, text: &str) {
        let (path, text) = (self.note.clone(), text.to_owned());
        let (done, written) = sync_channel(1);
        let write = move || {
            let _nobody_waits = done.send(durable::write_file(&path, text.as_bytes()).is_ok());
        };
        let thread = std::thread::Builder::new().name("note".into()).spawn(write);
        if thread.is_err() || !written.recv_timeout(NOTE_MAX).unwrap_or(false) {
            error!("a note about the end cannot be written");
        }
    }

    /// Ends the process when it was told to end [`END_MAX`] ago.
    pub(crate) async fn cut_short(self) {
        // What it waits for is that time itself: whoever ends before takes this task along.
        tokio::time::sleep(END_MAX).await;
        let stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        let text = format!("after {} s: {stage}", END_MAX.as_secs());
        error!(text, "the agent does not end; it is ended");
        self.leave_note(&text);
        std::process::exit(1);
    }
}

/// Tells the service manager that we are ready, that we live, and that we stop. We live when this task, which shares its
/// thread with the shipping, and the thread that reads both do: one that hangs is for the manager to end.
#[cfg(unix)]
pub(crate) async fn tell_manager(
    notifier: Notifier,
    mut stopped: watch::Receiver<bool>,
    beat: Beat,
) {
    notifier.say("READY=1");
    let mut was_silent = false;
    while !*stopped.borrow() {
        let pause = notifier.watchdog_pause().unwrap_or(Duration::MAX);
        tokio::select! {
            // The manager wants a sign of life so often, whatever happens here.
            () = tokio::time::sleep(pause) => {
                let limit = notifier.watchdog.unwrap_or(Duration::MAX);
                let silent = beat.silent_for(clock::now(), limit);
                if let Some((silent, path)) = &silent && !was_silent {
                    error!(
                        path = %path.display(), silent_s = silent.as_secs(),
                        "the thread that reads hangs; the service manager is no longer told that the agent lives"
                    );
                    notifier.say(&format!("STATUS=the thread that reads hangs at {}", path.display()));
                }
                was_silent = silent.is_some();
                if !was_silent {
                    notifier.say("WATCHDOG=1");
                }
            }
            _ = stopped.changed() => {}
        }
    }
    notifier.say("STOPPING=1");
}

/// How long the agent takes to end when something hangs: systemd and Kubernetes kill after 30 s and more, people
/// lose patience before.
const END_MAX: Duration = Duration::from_secs(9);
/// How long a note is waited for.
const NOTE_MAX: Duration = Duration::from_millis(500);
const NOTE: &str = "unfinished";
const NOTE_LEN_MAX: u64 = 4 << 10;
