//! A volume that does not open on this machine: written down where it happened.
//!
//! Nothing can be sealed without the volume's key, so `refused-openings` in its directory holds plain lines: when, by
//! which user, and the names of what differed, never a value. The machine's system log gets the same sentence. The
//! next start that does open the volume puts the lines into the audit trail.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use scrinium_segment::durable;
use serde_json::json;
use tracing::warn;

use crate::clock;
use crate::present::rfc3339;

/// Writes down that the volume in `dir` did not open, and what differed.
pub(super) fn note(dir: &Path, differs: &[String]) {
    let uid = std::fs::metadata("/proc/self").map(|own| own.uid()).ok();
    let line = json!({ "time": rfc3339(clock::unix_us()), "uid": uid, "differs": differs });
    let path = path(dir);
    let written = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .and_then(|mut file| {
            if file.metadata()?.len() < LEN_MAX {
                writeln!(file, "{line}")?;
                file.sync_data()?;
            }
            Ok(())
        });
    if let Err(error) = written {
        warn!(file = %path.display(), %error, "the refusal could not be written down");
    }
    let names = if differs.is_empty() {
        "it is not known what".to_owned()
    } else {
        differs.join(", ")
    };
    // LOG_AUTHPRIV, LOG_CRIT
    let sentence = format!(
        "<82>scrinium-server: a volume was not opened: it is bound to another machine; differs: {names}"
    );
    let told = std::os::unix::net::UnixDatagram::unbound()
        .and_then(|socket| socket.send_to(sentence.as_bytes(), "/dev/log"));
    if let Err(error) = told {
        warn!(%error, "this machine's system log did not take the refusal");
    }
}

/// The refusals that were written down here.
pub(crate) fn read(dir: &Path) -> Result<Vec<String>> {
    match std::fs::read(path(dir)) {
        Ok(bytes) => {
            let bytes = bytes.get(..usize::try_from(LEN_MAX)?).unwrap_or(&bytes);
            let text = String::from_utf8_lossy(bytes);
            Ok(text.lines().map(str::to_owned).collect())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Forgets them: they are in the trail.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    durable::remove(&path(dir))?;
    Ok(())
}

fn path(dir: &Path) -> PathBuf {
    dir.join("refused-openings")
}

const LEN_MAX: u64 = 64 << 10;
