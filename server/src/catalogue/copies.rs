//! The catalogue once more, beside it: what nothing else could give back if it were damaged.
//!
//! `keys.copy` has what opens the archive and what was deleted of it, rewritten with every key; `catalogue.copy`
//! has agents, users, policy and the server's own keys, rewritten a second after they change.
//! Segments and streams are read from the segments themselves.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use scrinium_protocol::secret::Secret;
use serde::{Deserialize, Serialize};

use super::records::{
    AckedRecord, ArchiveMark, CertificateRecord, GroupKeys, LogKey, PrunedRecord, RemovedSegment,
    SegmentRecord, StreamRecord, TenantRecord,
};
use super::{Catalogue, Row, Stored as _};
use crate::backup::copy;
use crate::core::Core;
use crate::duties::keep::{Duty, Plan};
use crate::volume::Volume;

#[derive(Deserialize, Serialize)]
struct Manifest {
    rows: usize,
    /// How often the catalogue had been written; of version 0.1.0 it is not said.
    #[serde(default)]
    generation: u64,
}

/// Rows that open the archive, and what was deleted of it.
pub(crate) fn is_of_the_keys(kind: u8) -> bool {
    [
        TenantRecord::KIND,
        GroupKeys::KIND,
        LogKey::KIND,
        PrunedRecord::KIND,
        CertificateRecord::KIND,
        ArchiveMark::KIND,
        RemovedSegment::KIND,
    ]
    .contains(&kind)
}

/// Rows that nothing else could give back, the keys aside.
fn is_of_the_rest(kind: u8) -> bool {
    // Files beside the log, as they are now, say how far it is acknowledged.
    let elsewhere = [SegmentRecord::KIND, StreamRecord::KIND, AckedRecord::KIND];
    !is_of_the_keys(kind) && !elsewhere.contains(&kind)
}

/// The copy of the keys, and what it is sealed with.
pub(crate) fn keys_of(volume: &Volume) -> (PathBuf, Secret<32>) {
    (volume.dir().join("keys.copy"), volume.key("keys copy"))
}

fn rest_of(volume: &Volume) -> (PathBuf, Secret<32>) {
    (
        volume.dir().join("catalogue.copy"),
        volume.key("catalogue copy"),
    )
}

/// Writes a copy of the rows that are `wanted`.
pub(crate) fn write(
    catalogue: &Catalogue,
    path: &Path,
    key: &Secret<32>,
    wanted: impl Fn(u8) -> bool,
) -> Result<()> {
    let rows = catalogue.export(wanted)?;
    let manifest = Manifest {
        rows: rows.len(),
        generation: catalogue.generation(),
    };
    let number = u64::from(path.ends_with("keys.copy"));
    copy::write(path, key, number, &manifest, &rows)
}

/// Writes the copy of the rest.
pub(crate) fn write_rest(volume: &Volume, catalogue: &Catalogue) -> Result<()> {
    let (path, key) = rest_of(volume);
    write(catalogue, &path, &key, is_of_the_rest)
}

/// Keeps the copy of the rest a second or two behind the catalogue: many changes in a row are one copy.
pub(crate) struct Copying {
    core: Arc<Core>,
    /// The generation that was copied.
    copied: Option<u64>,
}

impl Copying {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core, copied: None }
    }
}

impl Duty for Copying {
    async fn round(&mut self) -> Result<()> {
        let generation = self.core.catalogue.generation();
        if self.copied == Some(generation) {
            return Ok(());
        }
        let core = self.core.clone();
        let write = move || write_rest(&core.volume, &core.catalogue);
        let written = tokio::task::spawn_blocking(write).await?;
        written.context("writing the catalogue's copy")?;
        self.copied = Some(generation);
        Ok(())
    }
}

/// The rows of both copies, and how often the catalogue had been written when that of the rest was.
pub(crate) fn read(volume: &Volume) -> Result<(Vec<Row>, u64)> {
    let mut all = Vec::new();
    let mut generation = 0;
    for (path, key) in [keys_of(volume), rest_of(volume)] {
        let (manifest, rows): (Manifest, _) = copy::read(&path, &key)?;
        // The rest comes last; the keys are written when they change.
        generation = manifest.generation;
        all.extend(rows);
    }
    Ok((all, generation))
}

pub(crate) const PLAN: Plan = Plan {
    point: "duty: copies of the catalogue",
    every: Duration::from_secs(1),
    long: Duration::from_secs(60),
    raises: false,
};
