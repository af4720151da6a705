//! Files beside a stream's own that are not taken, or not yet; and what is said of them.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use tracing::warn;

use super::FileStream;
use super::chain::Past;
use super::survey::{Found, Survey, What, counts_upwards};
use crate::source::bookmark::{FileId, Mark};
use crate::source::content::Packing;
use crate::source::follow::Follow;

/// How many files of a kind there were when that was said last. It is said again when there are twice as many: who makes
/// many of them does not fill the stream with it.
#[derive(Default)]
pub(super) struct Told(usize);

impl Told {
    fn is_news(&mut self, count: usize) -> bool {
        let is_news = count > 0 && count >= self.0.saturating_mul(2).max(1);
        if is_news {
            self.0 = count;
        }
        is_news
    }
}

/// What was said of files that were not taken.
#[derive(Default)]
pub(super) struct Aside {
    foreign: Told,
    forgotten: Told,
    unreadable: Told,
}

impl FileStream {
    /// Whose generations count: root's, the agent's own user's, and those of whom the file at the path and the one that
    /// is read belong to. In a directory that many may write to, who puts a file beside another's says nothing in its name.
    /// Where nothing is known of an owner, nobody's are refused.
    pub(super) fn owners(&self, survey: &Survey) -> Option<BTreeSet<u32>> {
        let owner = |follow: &Follow| follow.content.stat().ok().map(|stat| stat.owner);
        let found = survey.at_path.iter().chain(&survey.beside);
        let found =
            found.filter(|found| found.what == What::Current || found.path == self.place.path);
        let found = found.filter_map(|found| found.follow.as_ref());
        let current = self.chain.current.iter();
        let mut owners: BTreeSet<u32> = found.chain(current).filter_map(owner).collect();
        if owners.is_empty() {
            let past = survey.beside.iter();
            let past = past.filter(|found| matches!(found.what, What::Past(_)));
            owners.extend(
                past.filter_map(|found| found.follow.as_ref())
                    .filter_map(owner),
            );
        }
        if owners.is_empty() {
            return None;
        }
        owners.extend([ROOT, self.place.disk.user()]);
        Some(owners)
    }

    /// Whether what came after a file that was renamed is found: its name is a generation's, or one that a source names,
    /// and those after it are called in the same way. Of another name nobody knows what those are called.
    pub(super) fn is_traced(&self, found: &Found) -> bool {
        found.rank.is_some() || (self.place.named)(&found.path)
    }

    /// Files that are named as generations and belong to others.
    pub(super) fn say_foreign(&mut self, count: usize) {
        if self.aside.foreign.is_news(count) {
            let path = self.place.path.display();
            warn!(%path, count, "files of other users are named as old ones of a file, and are not collected as such");
            self.output.push_gap(&format!(
                "{count} files are named as old ones of this one and belong to other users; they were not collected as its own"
            ));
        }
    }

    /// Files that are older than all that is remembered.
    pub(super) fn say_forgotten(&mut self, count: usize) {
        if self.aside.forgotten.is_news(count) {
            let path = self.place.path.display();
            warn!(%path, count, "rotated files are older than what is remembered of others, though not by their names; they are passed over");
            self.output.push_gap(&format!(
                "{count} rotated files were written before those that are remembered, though not by their names; what of them was not collected before is not collected"
            ));
        }
    }

    /// Files beside the one that is read that may not be read: one more reason to say what is missing, none to stop.
    pub(super) fn refuse(
        &mut self,
        unreadable: Vec<(PathBuf, FileId, io::Error)>,
        were_there: bool,
    ) {
        // Whoever compressed a settled file kept it to himself.
        let past = self.chain.past.iter();
        let mut compressed = past.filter(|past| past.path.is_none()).count();
        self.refused
            .retain(|key| unreadable.iter().any(|(_, id, _)| id.key() == *key));
        let mut further = 0;
        for (path, id, error) in unreadable {
            if were_there {
                let seen = self.place.disk.look(&path).ok().flatten();
                let seen = seen.filter(|seen| seen.id == id);
                // Another stream may have read it when that was allowed: its content tells when it is so again.
                let marks = self.inherited.marks(id);
                let len = seen.map_or(0, |seen| seen.len);
                let known = marks.into_iter().find(|mark| mark.offset <= len);
                self.chain.settle_first(Past {
                    path: Some(path),
                    seen: seen.filter(|_| known.is_none()),
                    ..Past::lost(known.unwrap_or_else(|| Mark::of_id(id)))
                });
                continue;
            }
            if self.refused.contains(&id.key()) {
                continue;
            }
            if self.refused.len() >= REFUSED_MAX {
                further += 1;
                continue;
            }
            self.refused.insert(id.key());
            warn!(path = %path.display(), %error, "a rotated file cannot be read; trying again");
            if Packing::of(&path).is_some() && compressed > 0 {
                compressed -= 1;
                continue;
            }
            let name = path.file_name().unwrap_or_default().display();
            self.output.push_gap(&format!(
                "the rotated file {name} cannot be read ({error}); what it has that was not collected before is collected when it can be"
            ));
        }
        if self.aside.unreadable.is_news(further) {
            warn!(path = %self.place.path.display(), further, "further rotated files cannot be read; trying again");
            self.output.push_gap(&format!(
                "{further} further rotated files cannot be read; what they have that was not collected before is collected when they can be"
            ));
        }
    }
}

/// Whether a file that counts as forgotten by its time is, by its name, not older than all that is known: time is what
/// its owner may set.
pub(super) fn is_out_of_order(found: &Found, survey: &Survey) -> bool {
    let known = survey.beside.iter();
    let known = known.filter(|known| matches!(known.what, What::Past(_)));
    let is_upwards = counts_upwards(known.clone());
    let ranks = known.filter_map(|known| known.rank.as_ref());
    match is_upwards {
        true => ranks
            .max()
            .is_none_or(|lowest| found.rank.as_ref() < Some(lowest)),
        false => ranks
            .min()
            .is_none_or(|earliest| found.rank.as_ref() > Some(earliest)),
    }
}

const ROOT: u32 = 0;
/// Files of which it is remembered that they could not be read, and of each of which it is said: what is more is counted.
const REFUSED_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_many_is_said_again_when_they_are_twice_as_many() {
        let mut told = Told::default();
        let said: Vec<usize> = (0..=100).filter(|&count| told.is_news(count)).collect();
        assert_eq!(said, [1, 2, 4, 8, 16, 32, 64]);
        assert!(!told.is_news(127) && !told.is_news(0));
    }
}
