//! Places beside the volume: a disk that is not mounted looks like a directory that is empty, or like none.
//!
//! The catalogue remembers where backups and copies of checkpoints went. A place that had some and has none now is
//! refused: what would be written there fills another disk, and is missed when it is needed. The mark is what was
//! written there itself, so that places of earlier versions have theirs.

use anyhow::{Result, bail};

use crate::catalogue::Catalogue;
use crate::catalogue::records::PlaceRecord;
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

/// Whether the place is remembered.
pub(crate) fn find(catalogue: &Catalogue, kind: Kind, place: &str) -> Result<Option<PlaceRecord>> {
    let places = catalogue.load::<PlaceRecord>()?.into_iter();
    let mut places = places.filter(|known| known.what == kind.name() && known.place == place);
    Ok(places.next())
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
    if find(catalogue, kind, place)?.is_some() {
        return Ok(());
    }
    let places = catalogue.load::<PlaceRecord>()?;
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
