//! `export`.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};

use super::{Data, TimeRange, client, close, say, usage};
use crate::control::export::ExportRequest;
use crate::control::links::Link;
use crate::control::{Client, copy_to, json_of};
use crate::times::Range;

#[derive(clap::Args)]
pub(super) struct Export {
    #[command(flatten)]
    data: Data,
    /// The source's agent.
    #[arg(long, requires = "path", required_unless_present = "query")]
    agent: Option<String>,
    /// The source: a file's path, or the stream's name.
    #[arg(long, requires = "agent")]
    path: Option<String>,
    /// The kind of the source, where several have that name: file, syslog-udp, syslog-tcp ...
    #[arg(long, requires = "path")]
    kind: Option<String>,
    /// Everything that matches, as `search` has it: words, "phrases", prefix*, -not, agent:NAME, stream:TEXT.
    #[arg(long, conflicts_with = "agent")]
    query: Option<String>,
    #[command(flatten)]
    range: TimeRange,
    #[arg(long, default_value = "package", value_parser = ["raw", "package"])]
    format: String,
    /// How the package shows the entries besides their bytes.
    #[arg(long, default_value = "csv", value_parser = ["csv", "json", "none"])]
    table: String,
    /// Who asks for it; for the custody sheet.
    #[arg(long)]
    authority: Option<String>,
    /// What they call it.
    #[arg(long)]
    reference: Option<String>,
    /// What for.
    #[arg(long)]
    purpose: Option<String>,
    /// Language of the custody sheet.
    #[arg(long, default_value = "en", value_parser = ["en", "it", "fr"])]
    language: String,
    /// Encrypts it to this age recipient (age1…): nobody else can read it.
    #[arg(long)]
    recipient: Option<String>,
    /// File to write, which must not exist; - for standard output.
    #[arg(long, required_unless_present = "link")]
    out: Option<PathBuf>,
    /// Makes a link instead, which the console lets be downloaded for 31 days.
    #[arg(long, conflicts_with_all = ["out", "opening"])]
    link: bool,
    /// The word of an opening of the second container.
    #[arg(long)]
    opening: Option<String>,
}

impl Export {
    /// Runs the command to its end.
    pub(super) async fn run(self) -> Result<()> {
        let to_terminal =
            self.out.as_deref() == Some(Path::new("-")) && std::io::stdout().is_terminal();
        if to_terminal {
            // Exact bytes would drive it, and escaped ones were no export.
            return Err(usage(anyhow!(
                "--out - is a terminal here, and an export is the exact bytes: name a file, or a pipe; search shows entries"
            )));
        }
        let Range { from_us, to_us, .. } = self.range.read()?;
        let request = ExportRequest {
            agent: self.agent,
            path: self.path,
            kind: self.kind,
            query: self.query,
            from_us,
            to_us,
            received_until_us: None,
            format: self.format,
            table: self.table,
            language: self.language,
            authority: self.authority,
            reference: self.reference,
            purpose: self.purpose,
            recipient: self.recipient,
            opening: self.opening,
        };
        let (client, running) = client(&self.data).await?;
        let written = match &self.out {
            Some(out) => write(&client, &request, out).await,
            None => link(&client, &request).await,
        };
        close(client, running).await;
        written
    }
}

async fn link(client: &Client, request: &ExportRequest) -> Result<()> {
    let made = json_of(client.post("/links/make", request).await?).await?;
    let link: Link = serde_json::from_value(made)?;
    say(&format!(
        "{} on the console, until {}",
        link.path, link.until
    ))
}

async fn write(client: &Client, request: &ExportRequest, path: &Path) -> Result<()> {
    let response = client.post("/export", request).await?;
    if path == Path::new("-") {
        let mut stdout = std::io::stdout();
        copy_to(response, &mut stdout).await?;
        return Ok(stdout.flush()?);
    }
    let file = scrinium_segment::durable::create_new(path);
    let mut file = file.with_context(|| format!("creating {}", path.display()))?;
    if let Err(error) = copy_to(response, &mut file).await {
        // Half an export must not be taken for one.
        scrinium_segment::durable::remove(path)?;
        return Err(error);
    }
    Ok(file.sync_all()?)
}
