//! Commands about backups.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use serde_json::Value;

use super::shares::Shares;
use super::{Data, client, close, say, say_json};
use crate::backup;
use crate::backup::Status;
use crate::backup::target::Location;
use crate::control::{self, BackupRequest};
use crate::present::{human_bytes, rfc3339};

#[derive(Subcommand)]
pub(super) enum Backup {
    /// Copies what is new, while the server runs, and replaces the keys file.
    #[command(
        after_help = "Example: scrinium-server backup create --to /mnt/nas/scrinium --keys /mnt/safe/scrinium.keys"
    )]
    Create {
        #[command(flatten)]
        data: Data,
        /// Where to: a directory, s3://BUCKET/PREFIX or sftp://USER@HOST:PORT/DIR.
        #[arg(long)]
        to: String,
        /// The file with the keys of days, somewhere else: each backup replaces it, so that what was deleted
        /// cannot be read from an old backup.
        #[arg(long)]
        keys: PathBuf,
        /// Begin anew in a place that had backups and has none now: it is refused otherwise, because it may not be mounted.
        #[arg(long)]
        anew: bool,
        #[arg(long)]
        json: bool,
    },
    /// Checks every object of the newest backup, and its keys file.
    #[command(
        after_help = "Example: scrinium-server backup verify --from /mnt/nas/scrinium --keys /mnt/safe/scrinium.keys"
    )]
    Verify {
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        from: String,
        #[arg(long)]
        keys: PathBuf,
        #[arg(long)]
        json: bool,
    },
    /// When the last one was made and verified, and when one is made by itself.
    #[command(after_help = "Example: scrinium-server backup status --json")]
    Status {
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        json: bool,
    },
    /// Makes the volume of the newest backup on this machine; takes two recovery shares.
    #[command(
        after_help = "Example: scrinium-server backup restore --from /mnt/nas/scrinium --keys /mnt/safe/scrinium.keys --data /var/lib/scrinium/server"
    )]
    Restore {
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        from: String,
        #[arg(long)]
        keys: PathBuf,
        #[command(flatten)]
        shares: Shares,
        #[arg(long)]
        json: bool,
    },
}

impl Backup {
    /// Says what is known of backups.
    async fn status(data: &Data, json: bool) -> Result<()> {
        let (client, running) = client(data).await?;
        let answer = match client.get("/backup").await {
            Ok(answer) => control::json_of(answer).await,
            Err(error) => Err(error),
        };
        close(client, running).await;
        let value = answer?;
        if json {
            return say_json(&value);
        }
        let status: Status = serde_json::from_value(value)?;
        match (status.to, status.every_h) {
            (Some(to), Some(every_h)) => say(&format!("every {every_h} h to {to}"))?,
            _ => say("none is made by itself: name a place in [backup] of server.toml")?,
        }
        let Some(last) = status.last else {
            return say("none was made yet");
        };
        let late = if status.late { "LATE: " } else { "" };
        say(&format!(
            "{late}last made {} to {}: {} objects, {}",
            rfc3339(last.made_us),
            last.to,
            last.objects,
            human_bytes(last.bytes)
        ))?;
        match (last.verified_us, last.whole) {
            (0, _) => say("never verified: run backup verify"),
            (time_us, true) => say(&format!("verified {}: whole", rfc3339(time_us))),
            (time_us, false) => say(&format!("verified {}: DAMAGED", rfc3339(time_us))),
        }
    }

    /// Runs the command to its end; whether everything was right.
    pub(super) async fn run(self) -> Result<bool> {
        let (value, json) = match self {
            Self::Status { data, json } => return Self::status(&data, json).await.map(|()| true),
            Self::Create {
                data,
                to,
                keys,
                anew,
                json,
            } => {
                let request = BackupRequest {
                    location: to,
                    keys,
                    anew,
                };
                (ask(&data, "/backup/create", request).await?, json)
            }
            Self::Verify {
                data,
                from,
                keys,
                json,
            } => {
                let request = BackupRequest {
                    location: from,
                    keys,
                    anew: false,
                };
                (ask(&data, "/backup/verify", request).await?, json)
            }
            Self::Restore {
                data,
                from,
                keys,
                shares,
                json,
            } => {
                let shares = shares.read_or_ask()?;
                let from = Location::parse(&from).context("--from")?;
                let restore = move || backup::restore(&data.data, &from, &keys, &shares);
                let done = tokio::task::spawn_blocking(restore).await??;
                (serde_json::to_value(done)?, json)
            }
        };
        let findings = value.get("findings").and_then(Value::as_array);
        let findings: Vec<&str> = findings
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let whole = findings.is_empty();
        if json {
            say_json(&value)?;
            return Ok(whole);
        }
        let number = |key: &str| value.get(key).and_then(Value::as_u64).unwrap_or(0);
        let mut line = format!(
            "backup {}: {} objects, {}",
            number("generation"),
            number("objects"),
            human_bytes(number("bytes"))
        );
        if number("copied") > 0 {
            line.push_str(&format!(
                "; {} of them new, {}",
                number("copied"),
                human_bytes(number("copied_bytes"))
            ));
        }
        if number("forgotten") > 0 {
            line.push_str(&format!(
                "; {} segments are of days that were deleted since",
                number("forgotten")
            ));
        }
        say(&line)?;
        for finding in findings {
            say(&format!("DAMAGED {finding}"))?;
        }
        Ok(whole)
    }
}

async fn ask(data: &Data, route: &str, request: BackupRequest) -> Result<Value> {
    let (client, running) = client(data).await?;
    let answer = client.post(route, &request).await;
    let answer = match answer {
        Ok(answer) => control::json_of(answer).await,
        Err(error) => Err(error),
    };
    close(client, running).await;
    answer
}
