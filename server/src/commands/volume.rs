//! Commands about what opens the volume.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Subcommand;
use scrinium_protocol::shown;
use scrinium_segment::durable;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::shares::Shares;
use super::{Data, client, close, say, say_json, say_lines, usage};
use crate::audit::NotWritten;
use crate::control::{Client, caller, json_of};
use crate::core::public_key;
use crate::volume::{Binding, BoundTo, UseTpm, Volume};

#[derive(Subcommand)]
pub(super) enum VolumeCommand {
    /// Shows what must be as it was for the volume to open by itself.
    #[command(after_help = "Example: scrinium-server volume show")]
    Show {
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        json: bool,
    },
    /// Binds the volume to this machine anew: with another install secret, to what the options say, and with
    /// --new-shares, for new recovery shares. The data is not written again. The server must be stopped.
    #[command(
        after_help = "Examples: scrinium-server volume rekey --may-change cpu-model\n          scrinium-server volume rekey --tpm /dev/tpmrm0\n          scrinium-server volume rekey --new-shares --share-file FILE --share-file FILE"
    )]
    Rekey {
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        bind: Bind,
        /// Deal new recovery shares; takes two of those there are, which open nothing afterwards.
        #[arg(long)]
        new_shares: bool,
        #[command(flatten)]
        shares: Shares,
        /// Write the new shares to this file (mode 0600) instead of printing them.
        #[arg(long, requires = "new_shares")]
        recovery_out: Option<PathBuf>,
    },
}

/// What a volume is bound to.
#[derive(clap::Args)]
pub(super) struct Bind {
    /// A characteristic of the machine that may change: machine-id, cpu-model, dmi-system, dmi-board. May be given
    /// more than once; all others must stay.
    #[arg(long)]
    may_change: Vec<String>,
    /// The TPM 2.0 that must give its part: a device or socket; auto, if this machine has one that works; none.
    #[arg(long, default_value = "auto")]
    tpm: String,
}

impl Bind {
    pub(super) fn binding(self) -> Binding {
        Binding {
            may_change: self.may_change,
            tpm: match &*self.tpm {
                "auto" => UseTpm::IfThere,
                "none" => UseTpm::No,
                path => UseTpm::At(path.into()),
            },
        }
    }
}

impl VolumeCommand {
    /// Runs the command to its end.
    pub(super) async fn run(self) -> Result<()> {
        match self {
            Self::Show { data, json } => {
                let mut bound = Volume::bound_to(&data.data)?;
                let key = server_key(&data).await;
                let problem = key.as_ref().err().map(|error| format!("{error:#}"));
                bound.server_key = key.ok();
                if json {
                    return say_json(&bound);
                }
                say_lines(&bound.to_lines())?;
                match problem {
                    None => Ok(()),
                    Some(problem) => say(&format!("server key:   not shown: {problem}")),
                }
            }
            Self::Rekey {
                data,
                bind,
                new_shares,
                shares,
                recovery_out,
            } => {
                if new_shares != shares.are_given() {
                    return Err(usage(anyhow!(
                        "--new-shares takes two shares there are, with --share-file or --share, and nothing else does"
                    )));
                }
                let shares = shares.read()?;
                if Client::connect(&data.data).await.is_some() {
                    bail!("the server runs on this volume; stop it first");
                }
                let place = match shares.is_empty() {
                    true => None,
                    false => Some(SharesPlace::prepare(recovery_out.as_deref(), false)?),
                };
                let binding = bind.binding();
                audit(&data, &binding, !shares.is_empty()).await?;
                let dealt = Volume::rekey(&data.data, &binding, &shares)?;
                // First of all what cannot be shown again.
                if let Some(place) = place {
                    place.hand_out(&dealt)?;
                }
                say_lines(&Volume::bound_to(&data.data)?.to_lines())
            }
        }
    }
}

/// The key others know the server by: of the running server, or of the volume, if this machine opens it.
async fn server_key(data: &Data) -> Result<String> {
    let Some(client) = Client::connect(&data.data).await else {
        let volume = Volume::open(&data.data)?;
        return Ok(shown::key(&public_key(&volume)?));
    };
    let told = json_of(client.get("/volume").await?).await?;
    let key = told.get("server_key").and_then(Value::as_str);
    Ok(key.context("the server does not tell its key")?.to_owned())
}

impl BoundTo {
    fn to_lines(&self) -> Vec<String> {
        let list = |names: &[String]| match names {
            [] => "nothing".to_owned(),
            names => names.join(", "),
        };
        let tpm = self.tpm.as_ref();
        let tpm = tpm.map_or_else(|| "none".to_owned(), |path| path.display().to_string());
        let mut lines = vec![
            format!("volume:       {}", self.volume),
            format!("must stay:    {}", list(&self.bound)),
            format!("may change:   {}", list(&self.may_change)),
            format!("TPM:          {tpm}"),
        ];
        let key = self.server_key.as_ref();
        lines.extend(key.map(|key| format!("server key:   {key}")));
        lines
    }
}

/// Writes down in the archive what is about to be done to the volume.
async fn audit(data: &Data, binding: &Binding, new_shares: bool) -> Result<()> {
    let (client, running) = client(data).await?;
    let detail = json!({
        "may_change": binding.may_change, "tpm": format!("{:?}", binding.tpm), "new_shares": new_shares,
    });
    let written = match &running {
        Some(running) => {
            let audit = &running.core.audit;
            audit.note(&caller::local(), "volume rekeyed", detail).await
        }
        None => Err(NotWritten::Unavailable),
    };
    close(client, running).await;
    Ok(written?)
}

/// Where recovery shares go. What would go wrong is found before there are any: they are shown once.
pub(super) struct SharesPlace<'a> {
    /// A file that was made for them; else they are printed.
    file: Option<&'a Path>,
    is_done: bool,
}

impl<'a> SharesPlace<'a> {
    /// Makes the file, or prints a line where shares or a password will be printed.
    ///
    /// # Errors
    /// The file is there already or cannot be made, or standard output takes nothing.
    pub(super) fn prepare(file: Option<&'a Path>, prints: bool) -> Result<Self> {
        if file.is_none() || prints {
            let printed = say("what follows is shown now and never again");
            printed.context("what is shown once could not be shown, so nothing was made")?;
        }
        if let Some(path) = file {
            let made = durable::create_new(path);
            made.with_context(|| {
                format!(
                    "--recovery-out {}: it must be a new file in a directory that is there; nothing was made",
                    path.display()
                )
            })?;
        }
        Ok(Self {
            file,
            is_done: false,
        })
    }

    /// Shows the shares, or writes them to the file.
    pub(super) fn hand_out(mut self, shares: &[Zeroizing<String>]) -> Result<()> {
        let shares: Vec<&str> = shares.iter().map(|share| share.as_str()).collect();
        if let Some(path) = self.file {
            let text = Zeroizing::new(shares.join("\n") + "\n");
            durable::write_file(path, text.as_bytes())
                .with_context(|| format!("writing {}", path.display()))?;
            self.is_done = true;
            return Ok(());
        }
        say(
            "recovery shares: any two open the volume on another machine. Give them to three persons; they",
        )?;
        say("are shown now and never again.")?;
        shares.into_iter().try_for_each(say)
    }
}

impl Drop for SharesPlace<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.file.filter(|_| !self.is_done) {
            // It is empty, and was made here.
            drop(std::fs::remove_file(path));
        }
    }
}
