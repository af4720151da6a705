//! What `status` shows, and the local way to it: a socket in the state directory, or a named pipe.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;
use tracing::{info, warn};

use self::local::Listener;
use crate::clock;
use crate::source::standing::Health;
use crate::spool::Fill;
use crate::{governor, link, upload};

/// How the agent does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status {
    pub(crate) connected: bool,
    pub(crate) fill: Fill,
    pub(crate) problem: Option<String>,
    pub(crate) acked_entries: u64,
    /// How long an outage the disk outlasts at the present rate.
    pub(crate) lasts: Option<Duration>,
    /// The key this agent signs with, and the one it trusts as the server's, as people compare them.
    pub(crate) key: Option<String>,
    pub(crate) server_key: Option<String>,
    /// Where the server is, or is sought.
    pub(crate) way: Option<link::Shown>,
    /// How fast may be sent, if there is a limit.
    pub(crate) upload: Option<upload::Shown>,
}

impl Status {
    /// Says it in the agent's own log.
    pub(crate) fn say(&self) {
        info!(
            connected = self.connected,
            problem = self.problem,
            backlog_entries = self.fill.entries,
            backlog_bytes = self.fill.bytes,
            disk_bytes = self.fill.disk_bytes,
            disk_bytes_max = self.fill.disk_bytes_max,
            acked_entries = self.acked_entries,
            cache_lasts_s = self.lasts.map(|lasts| lasts.as_secs()),
            processor_s = governor::used().as_secs(),
            "health"
        );
    }

    fn to_json(&self, health: &Health) -> Value {
        let reports = health.reports();
        let rows = reports.rows.iter().map(|row| {
            json!({
                "source": row.source,
                "state": row.state.name(),
                "path": row.path,
                "cause": row.cause,
                "files": row.files,
                "needs_person": row.needs_person,
            })
        });
        json!({
            "sources": rows.collect::<Vec<Value>>(),
            "sources_more": reports.more,
            "connected": self.connected,
            // A thread that hangs now is said now, whatever was wrong a moment ago.
            "problem": health.hang(clock::now()).or_else(|| self.problem.clone()),
            "backlog_entries": self.fill.entries,
            "backlog_bytes": self.fill.bytes,
            "oldest_us": self.fill.oldest_us,
            "disk_bytes": self.fill.disk_bytes,
            "disk_bytes_max": self.fill.disk_bytes_max,
            "acked_entries": self.acked_entries,
            "cache_lasts_s": self.lasts.map(|lasts| lasts.as_secs()),
            "key": self.key,
            "server_key": self.server_key,
            "way": self.way,
            "upload": self.upload,
        })
    }
}

/// Answers every connection with one line of JSON; numbers and the last problem, no log content.
pub(crate) async fn serve(dir: &Path, shown: watch::Receiver<Status>, health: Health) {
    let mut listener = match Listener::bind(dir) {
        Ok(listener) => listener,
        Err(error) => {
            warn!(%error, "status cannot be asked for");
            return;
        }
    };
    loop {
        let Ok(mut stream) = listener.accept().await else {
            // No descriptors left, say: the error would come back at once.
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        let line = format!("{}\n", shown.borrow().to_json(&health));
        drop(stream.write_all(line.as_bytes()).await);
    }
}

/// Asks the agent that runs on `dir`; its answer is a line of JSON.
///
/// # Errors
/// None runs there.
pub(crate) async fn ask(dir: &Path) -> Result<String> {
    let connected = local::connect(dir).await;
    let mut stream = connected.with_context(|| {
        format!(
            "no agent runs on {}; start it with: scrinium-agent run",
            dir.display()
        )
    })?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text.trim_end().to_owned())
}

#[cfg(unix)]
mod local {
    use std::io;
    use std::path::Path;

    use tokio::net::{UnixListener, UnixStream};

    pub(super) struct Listener(UnixListener);

    impl Listener {
        pub(super) fn bind(dir: &Path) -> io::Result<Self> {
            let path = dir.join(NAME);
            drop(std::fs::remove_file(&path));
            UnixListener::bind(&path).map(Self)
        }

        #[expect(
            clippy::needless_pass_by_ref_mut,
            reason = "on other systems it is one"
        )]
        pub(super) async fn accept(&mut self) -> io::Result<UnixStream> {
            Ok(self.0.accept().await?.0)
        }
    }

    pub(super) async fn connect(dir: &Path) -> io::Result<UnixStream> {
        UnixStream::connect(dir.join(NAME)).await
    }

    const NAME: &str = "status.sock";
}

#[cfg(windows)]
mod local {
    use std::io;
    use std::path::Path;

    use scrinium_protocol::kdf::sha256;
    use tokio::net::windows::named_pipe::{
        ClientOptions, NamedPipeClient, NamedPipeServer, ServerOptions,
    };

    pub(super) struct Listener {
        name: String,
        next: NamedPipeServer,
    }

    impl Listener {
        pub(super) fn bind(dir: &Path) -> io::Result<Self> {
            let name = name(dir)?;
            let next = options().first_pipe_instance(true).create(&name)?;
            Ok(Self { name, next })
        }

        pub(super) async fn accept(&mut self) -> io::Result<NamedPipeServer> {
            self.next.connect().await?;
            let next = options().create(&self.name)?;
            Ok(core::mem::replace(&mut self.next, next))
        }
    }

    #[expect(clippy::unused_async, reason = "on other systems it waits")]
    pub(super) async fn connect(dir: &Path) -> io::Result<NamedPipeClient> {
        ClientOptions::new().write(false).open(name(dir)?)
    }

    /// Pipes that only say.
    fn options() -> ServerOptions {
        let mut options = ServerOptions::new();
        options.access_inbound(false);
        options
    }

    /// One name for every state directory.
    fn name(dir: &Path) -> io::Result<String> {
        let dir = std::fs::canonicalize(dir)?;
        let [a, b, c, d, ..] = sha256(&[dir.to_string_lossy().to_lowercase().as_bytes()]);
        let number = u32::from_be_bytes([a, b, c, d]);
        Ok(format!(r"\\.\pipe\scrinium-agent-{number:08x}"))
    }
}

/// Pause after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
