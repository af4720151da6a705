//! Which time-stamp tokens came: a row for each, so that one that is taken away or exchanged is missed.

use std::path::Path;

use anyhow::Result;
use data_encoding::HEXLOWER;
use scrinium_protocol::kdf::sha256;

use crate::catalogue::Catalogue;
use crate::catalogue::records::StampRecord;

/// Writes a row for every token in `dir` that has none: those of today, and of version 0.1.0.
pub(super) fn register(dir: &Path, catalogue: &Catalogue) -> Result<()> {
    let known = catalogue.load::<StampRecord>()?;
    for entry in std::fs::read_dir(dir)? {
        let token = entry?.path();
        if token.extension().is_none_or(|extension| extension != "tsr") {
            continue;
        }
        let day = token.file_stem().and_then(|day| day.to_str());
        let Some(day) = day.filter(|day| known.iter().all(|known| known.day != *day)) else {
            continue;
        };
        catalogue.put(&StampRecord {
            day: day.to_owned(),
            token: hashed(&std::fs::read(&token)?),
            checkpoint: hashed(&std::fs::read(token.with_extension("checkpoint"))?),
        })?;
    }
    Ok(())
}

/// SHA-256 in hexadecimal.
pub(super) fn hashed(bytes: &[u8]) -> String {
    HEXLOWER.encode(&sha256(&[bytes]))
}
