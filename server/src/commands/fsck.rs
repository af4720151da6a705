//! `fsck`: the catalogue of a stopped server, checked and made again.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use scrinium_segment::{durable, fault};
use serde_json::json;

use super::{complain, say, say_json};
use crate::archive::{Archive, fsck, losses};
use crate::catalogue::{Catalogue, copies};
use crate::clock;
use crate::core::{make_catalogue, open_catalogue};
use crate::stopped;
use crate::volume::rest::{self, ACTS_FILE};
use crate::volume::{ACKED_DIR, Volume};

/// Whether the catalogue is the one that was left, with every row.
fn check(catalogue: &Catalogue) -> Result<()> {
    catalogue.check()?;
    match catalogue.put_back() {
        [] => Ok(()),
        [(file, problem), ..] => bail!("{file}: {problem}"),
    }
}

/// Runs the command to its end.
pub(super) fn run(dir: &Path, rebuild: bool, json: bool) -> Result<ExitCode> {
    let volume = Volume::open(dir)?;
    if !rebuild {
        let checked = open_catalogue(&volume).and_then(|catalogue| check(&catalogue));
        return match checked {
            Ok(()) => {
                say("the catalogue is whole; whether the archive is, verify tells")?;
                Ok(ExitCode::SUCCESS)
            }
            Err(error) => {
                say(&format!(
                    "DAMAGED the catalogue: {error:#}. Make it again: scrinium-server fsck --rebuild --data {}",
                    dir.display()
                ))?;
                Ok(ExitCode::from(3))
            }
        };
    }
    let checked = open_catalogue(&volume).and_then(|catalogue| check(&catalogue));
    if checked.is_ok() {
        say("the catalogue is whole: it is not made again")?;
        return Ok(ExitCode::SUCCESS);
    }
    let (rows, generation) =
        copies::read(&volume).context("the catalogue's copies cannot be read: restore a backup")?;
    let remembered = Archive::writes_remembered(&volume)?;
    // First of all, so that nothing is replaced without a word.
    stopped::note(
        &volume,
        "catalogue made again",
        json!({ "rows": rows.len(), "copied_at_write": generation, "writes_remembered": remembered }),
    )?;
    fault::point("server: rebuilding noted");
    rest::forget_but(&volume, ACTS_FILE)?;
    // Kept for whoever wants to know what happened to it.
    for file in ["catalogue.db", "catalogue.db-wal", "catalogue.db-shm"] {
        let path = dir.join(file);
        if path.try_exists()? {
            durable::rename(
                &path,
                &dir.join(format!("{file}.damaged-{}", clock::unix_s())),
            )?;
        }
    }
    let catalogue = Arc::new(make_catalogue(&volume)?);
    catalogue.import(&rows)?;
    let archive = Archive::open_to_rebuild(&volume, &catalogue)?;
    let missed = remembered.saturating_sub(generation);
    let mut losses = Vec::new();
    if missed > 0 {
        let problem = format!(
            "it was made again from copies that are {missed} writes older: agents, accounts, holds and policy are what they were then"
        );
        complain(&format!(
            "catalogue.db: {problem}. Every verification says so from now on"
        ));
        losses.push(("catalogue.db".to_owned(), problem));
    }
    let rebuilt = fsck::rebuild(&archive, &catalogue)?;
    let is_remembered = archive.adopt_acknowledgements(&catalogue, &Archive::acked_key(&volume))?;
    if !is_remembered && volume.is_counted() {
        let problem =
            "the catalogue was made again, and nothing says how far the log was acknowledged";
        complain(&format!(
            "{ACKED_DIR}: {problem}. Every verification says so from now on"
        ));
        losses.push((ACKED_DIR.to_owned(), problem.to_owned()));
    }
    losses::write_down(&catalogue, losses.into_iter())?;
    rest::expect(&catalogue)?;
    if json {
        say_json(&rebuilt)?;
    } else {
        say(&format!(
            "the catalogue was made again: {} segments, {} streams, {} entries; {} segments had been replaced or deleted. Run verify.",
            rebuilt.segments, rebuilt.streams, rebuilt.entries, rebuilt.replaced
        ))?;
        for finding in &rebuilt.findings {
            say(&format!("DAMAGED {finding}"))?;
        }
    }
    Ok(if rebuilt.findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}
