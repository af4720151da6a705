//! Writing to the server as fast as it is allowed to, and saying how fast that is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc, watch};
use tracing::debug;

use crate::clock;
use crate::config::Uploads;

/// What was handed to the task that writes and is not written yet.
#[derive(Default)]
pub(crate) struct Queue {
    bytes: AtomicU64,
    /// Some of it was written.
    moved: Notify,
}

impl Queue {
    /// Notes what is handed over.
    pub(crate) fn put(&self, len: usize) {
        self.bytes.fetch_add(len as u64, Ordering::Relaxed);
    }

    /// Waits until some of it was written.
    pub(crate) async fn moved(&self) {
        self.moved.notified().await;
    }

    /// Whether more than a moment's worth waits to be written at the rate that was asked for: what is sent next, such as
    /// the state of the agent, comes behind it.
    pub(crate) fn is_behind(&self, uploads: &Uploads) -> bool {
        rate(uploads).is_some_and(|rate| self.bytes.load(Ordering::Relaxed) > rate)
    }
}

/// Writes what comes until the connection breaks or nothing comes any more.
pub(crate) async fn write_all(
    mut socket: impl AsyncWrite + Unpin,
    mut bytes: mpsc::Receiver<Vec<u8>>,
    uploads: watch::Receiver<Uploads>,
    queue: Arc<Queue>,
) {
    while let Some(bytes) = bytes.recv().await {
        for part in bytes.chunks(PART_LEN) {
            if let Err(error) = socket.write_all(part).await {
                debug!(%error, "writing to the server failed");
                return;
            }
            queue.bytes.fetch_sub(part.len() as u64, Ordering::Relaxed);
            queue.moved.notify_one();
            // Asked for each part: the limit, the hour and the clock may be others by now.
            let rate = rate(&uploads.borrow());
            if let Some(rate) = rate {
                let seconds = part.len() as f64 / rate as f64;
                // So long the part takes at the rate that was asked for.
                tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            }
        }
    }
}

fn rate(uploads: &Uploads) -> Option<u64> {
    match uploads.has_windows() {
        true => uploads.rate_at(clock::local().datetime()),
        // Any time will do.
        false => uploads.rate_at(jiff::civil::DateTime::default()),
    }
}

/// What is shown of the limit, worked out now and then.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    last: Option<(Instant, Option<Shown>)>,
}

/// The limit in force, for people and programs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Shown {
    bytes_per_s_max: Option<u64>,
    /// In this machine's local time.
    until: Option<String>,
    sentence: String,
}

impl Pace {
    /// The limit in force; `None` where none is named for any time.
    pub(crate) fn shown(&mut self, uploads: &Uploads, now: Instant) -> Option<Shown> {
        let is_fresh = |(at, _): &&(Instant, Option<Shown>)| now.duration_since(*at) < SHOWN_FOR;
        if let Some((_, shown)) = self.last.as_ref().filter(is_fresh) {
            return shown.clone();
        }
        let shown = Shown::new(uploads, &clock::local());
        self.last = Some((now, shown.clone()));
        shown
    }
}

impl Shown {
    fn new(uploads: &Uploads, now: &jiff::Zoned) -> Option<Self> {
        let rate = uploads.rate_at(now.datetime());
        let until = uploads
            .has_windows()
            .then(|| uploads.changes_after(now))
            .flatten();
        if rate.is_none() && until.is_none() {
            return None;
        }
        let mut sentence = match rate {
            Some(rate) if rate % 1024 == 0 => format!("{} KiB/s", rate / 1024),
            Some(rate) => format!("{rate} bytes/s"),
            None => "no limit".to_owned(),
        };
        if let Some(until) = &until {
            let is_today = until.date() == now.date();
            let form = if is_today { "%H:%M" } else { "%a %H:%M" };
            sentence += &format!(" until {}", until.strftime(form));
        }
        Some(Self {
            bytes_per_s_max: rate,
            until: until.map(|until| until.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()),
            sentence,
        })
    }
}

/// Written at once; a limit on the rate is kept from one to the next.
const PART_LEN: usize = 16 << 10;
/// A window opens and closes by the minute; what is shown may be a little late.
const SHOWN_FOR: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;
    use crate::config::Config;

    #[test]
    fn what_is_in_force_is_said_with_its_end() {
        let said = |config: &str, now: &str| {
            let config = Config::parse(config).unwrap();
            let now = now.parse::<jiff::civil::DateTime>().unwrap();
            let now = now.to_zoned(TimeZone::posix("CET-1").unwrap()).unwrap();
            let shown = Shown::new(&config.uploads, &now);
            let shown = shown?;
            Some(format!(
                "{} {}",
                shown.sentence,
                shown.until.unwrap_or_default()
            ))
        };
        let office = "[[limits.upload]]\ndays = 'Mon-Fri'\nhours = '08:00-18:00'\nbytes_per_s_max = '64 KiB'";
        assert_eq!(
            said(office, "2026-11-27T09:00").unwrap(),
            "64 KiB/s until 18:00 2026-11-27T18:00:00+01:00"
        );
        assert_eq!(
            said(office, "2026-11-27T19:00").unwrap(),
            "no limit until Mon 08:00 2026-11-30T08:00:00+01:00"
        );
        assert_eq!(said("", "2026-11-27T09:00"), None);
        let general = "[limits]\nupload_bytes_per_s_max = '1500'";
        assert_eq!(said(general, "2026-11-27T09:00").unwrap(), "1500 bytes/s ");
    }
}
