//! Commands about download links.

use anyhow::Result;
use clap::Subcommand;

use super::{Data, client, close, say, say_json};
use crate::control::links::{EndRequest, Link as Shown};
use crate::control::{self, Client};

#[derive(Subcommand)]
pub(super) enum Link {
    /// Lists the links, newest first; `export --link` makes one.
    #[command(after_help = "Example: scrinium-server link list --json")]
    List {
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        json: bool,
    },
    /// Ends a link before its time.
    #[command(after_help = "Example: scrinium-server link end ID")]
    End {
        id: String,
        #[command(flatten)]
        data: Data,
    },
}

impl Link {
    /// Runs the command to its end.
    pub(super) async fn run(self) -> Result<()> {
        let data = match &self {
            Self::List { data, .. } | Self::End { data, .. } => data,
        };
        let (client, running) = client(data).await?;
        let done = self.ask(&client).await;
        close(client, running).await;
        done
    }

    async fn ask(&self, client: &Client) -> Result<()> {
        let json = match self {
            Self::End { id, .. } => {
                let id = id.clone();
                client.post("/links/end", &EndRequest { id }).await?;
                return Ok(());
            }
            Self::List { json, .. } => *json,
        };
        let value = control::json_of(client.get("/links").await?).await?;
        if json {
            return say_json(&value);
        }
        let links: Vec<Shown> = serde_json::from_value(value)?;
        for link in links {
            let state = if link.over { "over since" } else { "until" };
            say(&format!(
                "{}  {state} {}  {} downloads  by {}  {}",
                link.id, link.until, link.downloads, link.by, link.subject
            ))?;
        }
        Ok(())
    }
}
