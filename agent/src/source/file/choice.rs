//! Which of very many files beside a stream's are looked into: who makes names by the hundred thousand is heard, but not
//! at the cost of all others.

use std::collections::BTreeSet;
use std::path::Path;

use super::FileStream;
use super::aside::is_out_of_order;
use super::survey::{Found, Survey, in_order};
use crate::source::bookmark::Bookmark;
use crate::source::disk::Name;
use crate::source::generations::rank;

/// A file that is to be opened, and the settled file of the same number and how far that was collected.
pub(super) struct Candidate {
    pub(super) found: Found,
    pub(super) like: Option<(u64, u64)>,
}

impl FileStream {
    /// Of very many names that begin alike, those of generations and of what is known count, and a few others.
    pub(super) fn keep_likely(&self, names: &mut Vec<Name>, inode: u64) {
        let past = self.chain.past.iter().filter_map(|past| past.seen);
        let known: BTreeSet<u64> = past.map(|seen| seen.id.inode).chain([inode]).collect();
        let bases = self.bases();
        let mut others = 0;
        names.retain(|name| {
            let is_known = name.inode != 0 && known.contains(&name.inode);
            if is_known || bases.iter().any(|base| rank(base, &name.path).is_some()) {
                return true;
            }
            let may_be_copy = bases.iter().any(|base| begins_like(base, &name.path));
            others += usize::from(may_be_copy);
            may_be_copy && others <= OTHERS_MAX
        });
    }

    /// Of very many, those that may be known are opened, then the oldest that are not: the others have their turn when
    /// these are settled.
    pub(super) fn choose(
        &self,
        candidates: &mut Vec<Candidate>,
        survey: &mut Survey,
        current: Option<&Bookmark>,
    ) {
        let may_be_known = |candidate: &Candidate| {
            let is_current = current.is_some_and(|own| own.id == candidate.found.seen.id);
            candidate.like.is_some() || is_current
        };
        let (mut chosen, others): (Vec<Candidate>, Vec<Candidate>) = core::mem::take(candidates)
            .into_iter()
            .partition(may_be_known);
        let settled = chosen.iter().filter(|one| one.like.is_some());
        let settled = settled.map(|one| one.found.seen.modified);
        let earliest = settled.chain(survey.earliest_known()).min();
        let earliest = earliest.filter(|_| self.chain.forgot);
        let forgotten = self.chain.forgotten_until.or(earliest);
        let path = &self.place.path;
        let owners = self.owners(survey).map(|mut owners| {
            owners.extend(self.place.disk.owner(path, true).map(|(_, owner)| owner));
            owners
        });
        let (ranked, others): (Vec<Found>, Vec<Found>) = others
            .into_iter()
            .map(|one| one.found)
            .partition(|found| found.rank.is_some());
        let mut unknown = Vec::new();
        let mut out_of_order = 0;
        for found in ranked {
            let owner = self.place.disk.owner(&found.path, false);
            let is_foreign = |owners: &BTreeSet<u32>| {
                owner
                    .as_ref()
                    .is_ok_and(|(_, owner)| !owners.contains(owner))
            };
            if owners.as_ref().is_some_and(is_foreign) {
                survey.foreign += 1;
            } else if forgotten.is_none_or(|time| found.seen.modified > time) {
                unknown.push(found);
            } else {
                out_of_order += usize::from(is_out_of_order(&found, survey));
            }
        }
        survey.forgotten = out_of_order;
        in_order(&mut unknown, false);
        let room = OPENS_MAX.saturating_sub(chosen.len());
        survey.rest = unknown.split_off(room.min(unknown.len()));
        let others = others.into_iter().take(OTHERS_MAX);
        let found = unknown.into_iter().chain(others);
        chosen.extend(found.map(|found| Candidate { found, like: None }));
        *candidates = chosen;
    }
}

/// Whether a copy of the file at `path` may be at `sibling`: the same name with more behind it.
pub(super) fn begins_like(path: &Path, sibling: &Path) -> bool {
    let names = path.file_name().zip(sibling.file_name());
    names.is_some_and(|(own, other)| {
        let (own, other) = (own.as_encoded_bytes(), other.as_encoded_bytes());
        other.starts_with(own)
    })
}

/// Of more names that begin alike only those count that say more than that; ordinary directories have fewer.
pub(super) const NAMES_MAX: usize = 1000;
/// Files opened by one look: each is a descriptor until they were compared.
pub(super) const OPENS_MAX: usize = 64;
/// Files of other names that are looked into where there are very many: one may be a copy.
const OTHERS_MAX: usize = 32;
