//! One place that checkpoints go to, and one try to bring one there.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use scrinium_segment::durable;
use tracing::info;

use super::letter::Enclosed;
use super::{Correspondence, Elsewhere, Evidence, Signed, day, http, timestamp};
use crate::catalogue::Catalogue;
use crate::core::Core;
use crate::{clock, places, waits};

/// Where a checkpoint goes.
#[derive(Clone, Debug)]
pub(super) enum Destination {
    /// A directory, on another machine.
    Copies(PathBuf),
    /// Who is posted every one.
    Witness(String),
    /// Who time-stamps one a day (RFC 3161).
    Authority(String),
    /// Mailboxes, which get one a day.
    Mail(Correspondence),
}

impl Destination {
    /// All that are configured. Mail stands behind the authority, whose token it encloses.
    pub(super) fn all(copies: &[PathBuf], elsewhere: Elsewhere) -> Vec<Self> {
        let copies = copies.iter().cloned().map(Self::Copies);
        let witnesses = elsewhere.witnesses.into_iter().map(Self::Witness);
        let authority = elsewhere.authority.into_iter().map(Self::Authority);
        let mail = elsewhere.correspondence.into_iter().map(Self::Mail);
        copies
            .chain(witnesses)
            .chain(authority)
            .chain(mail)
            .collect()
    }

    /// What an alarm of it is known by, and people read. What of a URL may be a secret is not in it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Copies(dir) => format!("copies {}", dir.display()),
            Self::Witness(url) => format!("witness {}", http::host_of(url)),
            Self::Authority(url) => format!("authority {}", http::host_of(url)),
            Self::Mail(_) => "mail".to_owned(),
        }
    }

    /// A sentence for people: what did not happen, and what is done about it.
    pub(super) fn failed(&self, error: &anyhow::Error) -> String {
        match self {
            Self::Copies(_) => format!(
                "a checkpoint was signed and did not leave this machine: {error:#}. It is tried again."
            ),
            Self::Witness(url) => format!(
                "a checkpoint was signed and did not reach the witness {}: {error:#}. It is tried again, with the newest one.",
                http::host_of(url)
            ),
            Self::Authority(url) => format!(
                "no time-stamp token came from {}: {error:#}. It is asked again.",
                http::host_of(url)
            ),
            Self::Mail(_) => {
                format!("today's checkpoint was not mailed: {error:#}. It is tried again.")
            }
        }
    }

    /// Brings a checkpoint there.
    ///
    /// # Errors
    /// It did not take it.
    pub(super) async fn show(&self, core: &Core, signed: &Signed) -> Result<()> {
        let evidence = &core.evidence;
        match self {
            // A disk of another machine may take as long as it likes.
            Self::Copies(dir) => {
                waits::off_worker(|| copy(dir, &evidence.name(), &core.catalogue, signed))
            }
            Self::Witness(url) => {
                let note = signed.note.clone().into_bytes();
                let answered = http::post(url, "text/plain; charset=utf-8", note).await;
                answered.map(drop)
            }
            Self::Authority(url) => {
                let day = day(clock::unix_us())?;
                if evidence.dir.join(format!("{day}.tsr")).try_exists()? {
                    return Ok(());
                }
                evidence.stamp(url, &day, &signed.note).await?;
                // One that came says how late it is, and is missed when it is taken away.
                core.time.raise_floor(evidence.certain_us());
                evidence.register(&core.catalogue)
            }
            Self::Mail(correspondence) => {
                let enclosed = evidence.enclosed(signed)?;
                correspondence.write(&evidence.dir, enclosed).await
            }
        }
    }
}

/// Leaves the checkpoint where others keep it: the last one, and the last one of each day.
pub(super) fn copy(dir: &Path, name: &str, catalogue: &Catalogue, signed: &Signed) -> Result<()> {
    let day = day(signed.time_us)?;
    let (kind, place) = (places::Kind::Copies, dir.display().to_string());
    let has_mark = dir.join(format!("{name}.checkpoint")).try_exists()?;
    let checked = places::check(
        catalogue,
        kind,
        &place,
        has_mark,
        "Mount it; if what was there is gone for good, put a copy of evidence/checkpoint there under its old name",
    );
    checked.with_context(|| format!("evidence.copies ({name}.checkpoint)"))?;
    for file in [
        format!("{name}.checkpoint"),
        format!("{name}-{day}.checkpoint"),
    ] {
        let written = durable::write_file(&dir.join(file), signed.note.as_bytes());
        written.with_context(|| {
            format!(
                "evidence.copies: copying the checkpoint to {}",
                dir.display()
            )
        })?;
    }
    places::remember(catalogue, kind, &place)
}

impl Evidence {
    /// Asks for a token over a note, and keeps both, here and wherever copies go.
    async fn stamp(&self, url: &str, day: &str, note: &str) -> Result<()> {
        let token = timestamp::token(url, note).await?;
        let name = self.name();
        let own = [(self.dir.clone(), day.to_owned())];
        let elsewhere = self
            .copies
            .iter()
            .map(|dir| (dir.clone(), format!("{name}-{day}-stamped")));
        waits::off_worker(|| {
            for (dir, name) in own.into_iter().chain(elsewhere) {
                // The token comes last: it says that the checkpoint beside it is the one.
                durable::write_file(&dir.join(format!("{name}.checkpoint")), note.as_bytes())?;
                durable::write_file(&dir.join(format!("{name}.tsr")), &token)?;
            }
            anyhow::Ok(())
        })?;
        info!(day, "today's checkpoint is time-stamped");
        Ok(())
    }

    /// What today's letter holds: the checkpoint that was stamped, if one was, else the one just signed.
    fn enclosed(&self, signed: &Signed) -> Result<Enclosed> {
        let day = day(clock::unix_us())?;
        let (mut note, mut token) = (signed.note.clone(), None);
        let stamp = self.dir.join(format!("{day}.tsr"));
        if stamp.try_exists()? {
            note = std::fs::read_to_string(stamp.with_extension("checkpoint"))?;
            token = Some(std::fs::read(stamp)?);
        }
        Ok(Enclosed {
            name: self.name(),
            day,
            note,
            token,
        })
    }

    /// What files of it are called elsewhere.
    pub(super) fn name(&self) -> String {
        self.origin.replace('/', "-")
    }
}
