//! Places beside the volume: a disk that is not mounted looks like a directory that is empty, or like none.
//!
//! The catalogue remembers where backups and copies of checkpoints went. A place that had some and has none now is
//! refused: what would be written there fills another disk, and is missed when it is needed. The mark is what was
//! written there itself, so that places of earlier versions have theirs.

use anyhow::{Result, bail};

use crate::catalogue::Catalogue;
use crate::catalogue::records::{BackupRecord, PlaceRecord};
use crate::clock;
use crate::present::rfc3339;

/// What lies in a place.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Backup,
    Copies,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Copies => "copies",
        }
    }
}

/// Whether the place is remembered. Version 0.1.0 remembered the last backup alone.
pub(crate) fn find(catalogue: &Catalogue, kind: Kind, place: &str) -> Result<Option<PlaceRecord>> {
    let is_it = |known: &str| normal(known) == normal(place);
    let places = catalogue.load::<PlaceRecord>()?.into_iter();
    let mut places = places.filter(|known| known.what == kind.name() && is_it(&known.place));
    if let Some(known) = places.next() {
        return Ok(Some(known));
    }
    let Kind::Backup = kind else {
        return Ok(None);
    };
    let last = catalogue.load::<BackupRecord>()?.pop();
    // One that was only verified was not made here.
    let last = last.filter(|last| last.made_us > 0 && is_it(&last.to));
    Ok(last.map(|last| PlaceRecord {
        what: kind.name().to_owned(),
        place: last.to,
        since_us: last.made_us,
    }))
}

/// A place as it is compared: however many strokes and dots it is written with.
fn normal(place: &str) -> String {
    let (scheme, path) = match place.split_once("://") {
        Some((scheme, path)) => (Some(scheme), path),
        None => (None, place),
    };
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    let path = parts.collect::<Vec<_>>().join("/");
    match scheme {
        Some(scheme) => format!("{scheme}://{path}"),
        None => format!("/{path}"),
    }
}

/// Refuses a place that had something and has nothing now; `has_mark` says whether something is there.
///
/// # Errors
/// It was written to before, and nothing of that is there.
pub(crate) fn check(
    catalogue: &Catalogue,
    kind: Kind,
    place: &str,
    has_mark: bool,
    remedy: &str,
) -> Result<()> {
    if !has_mark && let Some(known) = find(catalogue, kind, place)? {
        bail!(
            "{place} was written to since {} and has nothing of it now: it is not mounted, or was emptied. Nothing is written there. {remedy}",
            rfc3339(known.since_us)
        );
    }
    Ok(())
}

/// Remembers the place, once something is there.
pub(crate) fn remember(catalogue: &Catalogue, kind: Kind, place: &str) -> Result<()> {
    let places = catalogue.load::<PlaceRecord>()?;
    let is_it =
        |known: &PlaceRecord| known.what == kind.name() && normal(&known.place) == normal(place);
    if places.iter().any(is_it) {
        return Ok(());
    }
    let mut of_kind: Vec<PlaceRecord> = places
        .into_iter()
        .filter(|known| known.what == kind.name())
        .collect();
    of_kind.sort_by_key(|known| known.since_us);
    catalogue.write(|changes| {
        // Of very many the oldest is no longer watched.
        let many = (of_kind.len() + 1).saturating_sub(PLACES_MAX);
        for oldest in of_kind.iter().take(many) {
            changes.remove(oldest)?;
        }
        changes.put(&PlaceRecord {
            what: kind.name().to_owned(),
            place: place.to_owned(),
            since_us: clock::unix_us(),
        })
    })
}

/// Places of one kind that are remembered.
const PLACES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use scrinium_protocol::secret::Secret;

    use super::*;

    /// A volume of version 0.1.0, whose backups are on a disk that is not mounted after the upgrade.
    #[test]
    fn the_place_of_the_last_backup_of_an_earlier_version_is_known_however_it_is_written() {
        let path = std::env::temp_dir().join(format!("scrinium-places-{}.db", std::process::id()));
        drop(std::fs::remove_file(&path));
        let catalogue = Catalogue::create(&path, &Secret::new([1; 32])).unwrap();
        let check = |place: &str| check(&catalogue, Kind::Backup, place, false, "Mount it.");
        check("/mnt/backup").unwrap();
        let mut last = BackupRecord {
            to: "/mnt/backup".into(),
            ..BackupRecord::default()
        };
        catalogue.put(&last).unwrap();
        check("/mnt/backup").unwrap();
        last.made_us = 1_800_000_000_000_000;
        catalogue.put(&last).unwrap();
        for place in ["/mnt/backup", "/mnt/backup/", "/mnt//./backup"] {
            let refused = check(place).unwrap_err().to_string();
            assert!(refused.contains("not mounted"), "{refused}");
        }
        check("/mnt/other").unwrap();
        remember(&catalogue, Kind::Copies, "/mnt/copies/").unwrap();
        remember(&catalogue, Kind::Copies, "/mnt/copies").unwrap();
        assert_eq!(catalogue.load::<PlaceRecord>().unwrap().len(), 1);
        assert!(
            find(&catalogue, Kind::Copies, "/mnt/./copies")
                .unwrap()
                .is_some()
        );
        assert_eq!(normal("sftp://a@b:22/x//y/"), "sftp://a@b:22/x/y");
        assert_ne!(normal("sftp://a/x"), normal("sftp://b/x"));
        std::fs::remove_file(&path).unwrap();
    }
}
