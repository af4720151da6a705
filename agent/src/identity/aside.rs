//! The state of another machine makes room: a cloned image enrols anew, and loses nothing that it came with.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use scrinium_segment::{durable, fault};

/// Moves what a state directory holds of an agent into a directory inside it; returns which. After a death in between the
/// rest is still bound to another machine, and goes into the next one.
pub(crate) fn set_aside(dir: &Path) -> Result<PathBuf> {
    let free = |n: &u32| {
        let aside = dir.join(format!("set-aside-{n}"));
        matches!(aside.try_exists(), Ok(false))
    };
    let n = (1..=SET_ASIDE_MAX).find(free).with_context(|| {
        format!(
            "{} holds {SET_ASIDE_MAX} states that were set aside; remove them, or this state",
            dir.display()
        )
    })?;
    let aside = dir.join(format!("set-aside-{n}"));
    durable::create_dir(&aside)?;
    // The binding last: without it the directory would look as if it held no agent.
    for name in ["state.a", "state.b", "since", "spool", "machine.json"] {
        let from = dir.join(name);
        if from.try_exists()? {
            durable::rename(&from, &aside.join(name))?;
            durable::sync_parent(&from)?;
        }
        fault::point("agent: a part of the state set aside");
    }
    Ok(aside)
}

/// States kept of machines that a directory was copied from: an image that is copied again and again would fill the disk.
const SET_ASIDE_MAX: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_of_what_is_set_aside_and_there_is_a_limit() {
        let dir = std::env::temp_dir().join(format!("scrinium-aside-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        for n in 1..=SET_ASIDE_MAX {
            std::fs::create_dir_all(dir.join("spool")).unwrap();
            durable::write_file(&dir.join("spool/segment"), b"kept").unwrap();
            for name in ["state.a", "machine.json"] {
                durable::write_file(&dir.join(name), b"kept").unwrap();
            }
            let aside = set_aside(&dir).unwrap();
            assert_eq!(aside, dir.join(format!("set-aside-{n}")));
            for name in ["state.a", "machine.json", "spool/segment"] {
                assert_eq!(std::fs::read(aside.join(name)).unwrap(), b"kept");
                assert!(std::fs::read(dir.join(name)).is_err());
            }
        }
        let error = set_aside(&dir).unwrap_err().to_string();
        assert!(error.contains("remove them"), "{error}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
