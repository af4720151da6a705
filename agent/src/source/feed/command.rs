//! The output of a command, a line an entry: run again and again, or kept running.

use std::convert::Infallible;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use scrinium_protocol::entry::{ENTRY_LEN_MAX, EntryFlags};
use scrinium_protocol::identity::{StreamKind, StreamName};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::time::Instant;

use super::{Item, Sink};

/// What to run, and when.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Command {
    /// The program, by its absolute path, and its arguments.
    pub(crate) words: Vec<String>,
    /// Run it so often, and end it when it runs longer; without this it is kept running.
    pub(crate) every: Option<Duration>,
}

impl Command {
    pub(crate) fn stream(&self) -> StreamName {
        StreamName {
            kind: StreamKind::Command,
            name: self.words.join(" "),
        }
    }

    /// Runs it for as long as its entries are wanted.
    pub(crate) async fn run(self, sink: Sink) {
        let stream = self.stream();
        let mut pause = RESTART_MIN;
        loop {
            let began = Instant::now();
            let limit = self.every.unwrap_or(Duration::MAX);
            let ran = tokio::time::timeout(limit, self.run_once(&stream, &sink, RESTART_MAX)).await;
            let missing = match ran {
                Ok(Ok(None)) => return,
                Ok(Ok(Some(status))) if status.success() && self.every.is_some() => None,
                Ok(Ok(Some(status))) => Some(format!("the command ended with {status}")),
                Ok(Err(error)) => Some(format!("the command could not be run: {error:#}")),
                Err(_) => Some(format!(
                    "the command ran longer than {} s and was ended",
                    limit.as_secs()
                )),
            };
            sink.set_trouble(missing.clone());
            if let Some(missing) = missing
                && !sink.put_item(Item::gap(&stream, &missing)).await
            {
                return;
            }
            match self.every {
                Some(every) => tokio::time::sleep_until(began + every).await,
                None => {
                    // One that ran for long is started again at once, one that cannot run is not.
                    let lasted = began.elapsed() > RESTART_MAX;
                    pause = if lasted {
                        RESTART_MIN
                    } else {
                        (pause * 2).min(RESTART_MAX)
                    };
                    // A command that ends at once is not started in a loop.
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// `None` when the entries are no longer wanted.
    async fn run_once(
        &self,
        stream: &StreamName,
        sink: &Sink,
        settles: Duration,
    ) -> Result<Option<ExitStatus>> {
        let (program, arguments) = self.words.split_first().context("it has no name")?;
        let mut child = tokio::process::Command::new(program)
            .args(arguments)
            // A token of several uses is no business of other programs.
            .env_remove("SCRINIUM_TOKEN")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stdout.take().context("it has no output")?;
        let mut lines = Lines::new(BufReader::new(output));
        let reading = self.read(&mut lines, stream, sink);
        let wanted = match self.every {
            Some(_) => reading.await?,
            // One that has nothing to say runs, too.
            None => tokio::select! {
                wanted = reading => wanted?,
                never = Self::settle(sink, settles) => match never {},
            },
        };
        match wanted {
            true => Ok(Some(child.wait().await?)),
            false => Ok(None),
        }
    }

    /// What ended it before is over when it runs for so long.
    async fn settle(sink: &Sink, after: Duration) -> Infallible {
        // What it waits for is that time itself: one that is quiet gives no sign of life.
        tokio::time::sleep(after).await;
        sink.set_trouble(None);
        std::future::pending().await
    }

    /// Reads all that it says. Returns whether that is still wanted.
    async fn read<R: AsyncBufRead + Unpin>(
        &self,
        lines: &mut Lines<R>,
        stream: &StreamName,
        sink: &Sink,
    ) -> Result<bool> {
        while let Some((bytes, goes_on)) = lines.next().await? {
            if self.every.is_none() {
                sink.set_trouble(None);
            }
            let mut item = Item::line(stream, Vec::new());
            item.bytes = bytes;
            if goes_on {
                item.flags = EntryFlags::FRAGMENT;
            }
            if !sink.put_item(item).await {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Lines with their ends, in pieces of at most [`ENTRY_LEN_MAX`].
struct Lines<R>(R);

impl<R: AsyncBufRead + Unpin> Lines<R> {
    fn new(from: R) -> Self {
        Self(from)
    }

    /// The next piece, and whether the line goes on after it.
    async fn next(&mut self) -> Result<Option<(Vec<u8>, bool)>> {
        let mut line = Vec::new();
        let mut limited = (&mut self.0).take(ENTRY_LEN_MAX as u64 - 1);
        if limited.read_until(b'\n', &mut line).await? == 0 {
            return Ok(None);
        }
        let goes_on = line.last() != Some(&b'\n') && line.len() == ENTRY_LEN_MAX - 1;
        if line.last() != Some(&b'\n') && !goes_on {
            line.push(b'\n');
        }
        Ok(Some((line, goes_on)))
    }
}

/// Pause before a command that ended is started again, at first and at most.
const RESTART_MIN: Duration = Duration::from_secs(1);
const RESTART_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_entries_and_long_ones_linked_fragments() {
        let mut text = b"one\n\nlast".to_vec();
        text.splice(0..0, vec![b'x'; ENTRY_LEN_MAX].into_iter().chain(*b"\n"));
        let mut lines = Lines::new(&*text);
        let mut all = Vec::new();
        while let Some((bytes, goes_on)) = lines.next().await.unwrap() {
            all.push((bytes.len(), goes_on));
        }
        assert_eq!(
            all,
            [
                (ENTRY_LEN_MAX - 1, true),
                (2, false),
                (4, false),
                (1, false),
                (5, false)
            ]
        );
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_command_that_fails_says_so_in_its_stream() {
        let (sink, mut items) = Sink::for_test(16);
        let words = ["/bin/sh", "-c", "echo a line; exit 3"].map(str::to_owned);
        let every = Some(Duration::from_secs(3600));
        let command = Command {
            words: words.to_vec(),
            every,
        };
        let running = tokio::spawn(command.run(sink));
        assert_eq!(items.recv().await.unwrap().bytes, b"a line\n");
        let gap = items.recv().await.unwrap();
        assert!(gap.flags.is_gap());
        assert!(
            gap.bytes
                .starts_with(b"gap: the command ended with exit status: 3")
        );
        running.abort();
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_command_that_says_nothing_is_in_order_when_it_runs_for_long() {
        let (sink, _items) = Sink::for_test(16);
        let words = ["/bin/sh", "-c", "exec sleep 1000"].map(str::to_owned);
        let command = Command {
            words: words.to_vec(),
            every: None,
        };
        sink.set_trouble(Some("the command ended with exit status: 1".into()));
        let trouble = sink.trouble();
        let stream = command.stream();
        let running = command.run_once(&stream, &sink, Duration::from_millis(1));
        let is_over = async {
            while trouble.get().is_some() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            ended = running => panic!("{ended:?}"),
            () = is_over => {}
        }
    }
}
