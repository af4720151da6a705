//! The end: sources first, then what they had read, then the connection; each in bounded time.

use std::time::Duration;

use anyhow::Result;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{Socket, Uplink};
use crate::clock;
use crate::ending::Ending;
use crate::shipper::Produced;
use crate::source::Command;

impl Uplink {
    /// Stops: sources first, then what they had read goes to the disk unless it was acked. A thread that hangs is not
    /// waited for.
    pub(super) async fn finish(
        mut self,
        mut produced: mpsc::Receiver<Produced>,
        ending: &Ending,
    ) -> Result<()> {
        let had_started = self.sources.is_some();
        if let Some((commands, thread)) = self.sources.take() {
            ending.at("the thread that reads did not end");
            let _best_effort = commands.try_send(Command::Stop);
            drop(commands);
            let joined = tokio::task::spawn_blocking(move || thread.join());
            // The thread may wait for room in the channel: keep taking until it ends.
            let mut joined = joined;
            let deadline = clock::now() + JOIN_MAX;
            loop {
                tokio::select! {
                    item = produced.recv() => match item {
                        Some(item) => self.shipper.take(item),
                        None => break,
                    },
                    _ = &mut joined => break,
                    () = tokio::time::sleep_until(deadline.into()) => {
                        let (silent, path) = self.health.beat.silent_for(clock::now(), Duration::ZERO).unwrap_or_default();
                        let text = format!(
                            "the thread that reads did not end within {} s; for {} s it was at {}",
                            JOIN_MAX.as_secs(), silent.as_secs(), path.display()
                        );
                        warn!("{text}");
                        ending.leave_note(&text);
                        break;
                    }
                }
            }
            while let Ok(item) = produced.try_recv() {
                self.shipper.take(item);
            }
        }
        // Sources that never started know nothing new: the server is still to be asked first.
        if had_started {
            ending.at("the disk did not take what was read");
            self.shipper.spill()?;
        }
        ending.at("the connection did not end");
        if let Socket::Up(up) = self.socket {
            if let Some(bytes) = self.shipper.close("the agent stops", clock::now()) {
                up.queue.put(bytes.len());
                let _best_effort = up.writes.try_send(bytes);
            }
            drop(up.writes);
            drop(tokio::time::timeout(CLOSE_MAX, up.writer).await);
        }
        info!(waiting = self.shipper.fill().entries, "stopped");
        Ok(())
    }
}

/// How long the thread that reads may take to end. With the end of the connection it is less than what
/// [`Ending`] allows for all.
const JOIN_MAX: Duration = Duration::from_secs(5);
const CLOSE_MAX: Duration = Duration::from_secs(2);
