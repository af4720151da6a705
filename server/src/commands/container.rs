//! Commands about the second container. The officer's identity is read by the command alone; the server gets
//! the keys of the days that were asked for.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use zeroize::Zeroizing;

use super::policy::{Acting, day};
use super::{Client, Data, say};
use crate::archive::container::open_with;
use crate::catalogue::records::{FIRST_TENANT, StoredSecret};
use crate::control;
use crate::control::container::{CloseRequest, Container as Sealed, OpenRequest, RangeRequest};

#[derive(Subcommand)]
pub(super) enum Container {
    /// Opens days of the second container for a purpose and a while; prints the word that searches and exports
    /// take as --opening.
    #[command(
        after_help = "Example: scrinium-server container open --identity officer.key --purpose 'requisition 12/2027' --from 2026-01-01 --to 2026-01-31"
    )]
    Open {
        /// The officer's age identity file.
        #[arg(long)]
        identity: PathBuf,
        #[arg(long)]
        purpose: String,
        /// How long it stays open.
        #[arg(long, default_value_t = 4)]
        hours: u64,
        #[arg(long, default_value = FIRST_TENANT)]
        tenant: String,
        /// First day of receipt.
        #[arg(long)]
        from: String,
        /// Last day of receipt.
        #[arg(long)]
        to: String,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        acting: Acting,
    },
    /// Ends an opening before its time.
    #[command(after_help = "Example: scrinium-server container close WORD")]
    Close {
        opening: String,
        #[command(flatten)]
        data: Data,
    },
}

impl Container {
    /// Runs the command to its end.
    pub(super) async fn run(self) -> Result<()> {
        match self {
            Self::Open {
                identity,
                purpose,
                hours,
                tenant,
                from,
                to,
                data,
                acting,
            } => {
                let client = running(&data).await?;
                let range = RangeRequest {
                    tenant,
                    from: day("--from", &from)?,
                    to: day("--to", &to)?,
                };
                let answer = client.post("/container/list", &range).await?;
                let containers: Vec<Sealed> =
                    serde_json::from_value(control::json_of(answer).await?)?;
                let text = std::fs::read_to_string(&identity);
                let text = text.with_context(|| format!("reading {}", identity.display()))?;
                let text = Zeroizing::new(text);
                let keys = containers
                    .into_iter()
                    .map(|container| {
                        let key = open_with(&text, &container.key)?;
                        Ok((container.group, StoredSecret(key)))
                    })
                    .collect::<Result<Vec<_>>>()?;
                let request = OpenRequest {
                    purpose,
                    hours,
                    keys,
                    person: acting.person()?,
                };
                let opened = client.post("/container/open", &request).await?;
                let opened = control::json_of(opened).await?;
                let word = opened.get("opening").and_then(|word| word.as_str());
                say(word.unwrap_or_default())
            }
            Self::Close { opening, data } => {
                let client = running(&data).await?;
                client
                    .post("/container/close", &CloseRequest { opening })
                    .await?;
                Ok(())
            }
        }
    }
}

/// An opening lives in the memory of the server, so it must run.
async fn running(data: &Data) -> Result<Client> {
    let client = Client::connect(&data.data).await;
    client.with_context(|| format!("no server runs on {}", data.data.display()))
}
