//! One round over all sources: what their globs match now, found in steps.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use scrinium_protocol::sl::sources::SourceState;

use super::discover::{Discovery, FILES_MAX, FILES_OF_USERS_MAX};
use super::findings::{Finding, Findings, Tally};
use super::mounts::Mounts;
use super::shares;
use super::walk::{Budget, Scene, Seen, Walk};
use crate::clock;

/// What the globs match.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Files, each with the first source that names it.
    pub(crate) files: BTreeMap<PathBuf, usize>,
    /// Named paths at which there is no file any more, only old generations beside.
    pub(super) left: BTreeMap<PathBuf, Left>,
    /// What was met for each source.
    pub(crate) met: Vec<Met>,
}

/// The old generations of a file that is not there.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Left {
    /// One of them.
    pub(super) one: PathBuf,
    /// What the file system calls them.
    pub(super) numbers: BTreeSet<u64>,
}

/// What was met for one source.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Met {
    /// The directory in which its glob begins is there.
    pub(super) has_root: bool,
    /// Files that it names.
    pub(crate) files: u32,
    pub(crate) findings: Findings,
    /// Sources before it that name some of its files too: those are theirs.
    pub(super) shared_with: BTreeSet<usize>,
}

/// A round on its way.
pub(super) struct Round {
    /// Of the source after those that are done.
    walk: Option<(Walk, Met)>,
    found: Found,
    left_out: Tally,
    /// Those of users for which there was no room, though there is for the system's.
    left_out_of_users: Tally,
    /// Files that are not there, of whose old generations too many are found.
    left_out_of_left: Tally,
    mounts: Mounts,
}

impl Round {
    pub(super) fn new() -> Self {
        Self {
            walk: None,
            found: Found::default(),
            left_out: Tally::default(),
            left_out_of_users: Tally::default(),
            left_out_of_left: Tally::default(),
            mounts: Mounts::read(),
        }
    }

    /// Goes on; returns the files that are new in this round, and whether it is over.
    pub(super) fn step(
        &mut self,
        discovery: &Discovery,
        hung: &[PathBuf],
        budget: &mut Budget,
        at: &dyn Fn(&Path),
    ) -> (BTreeMap<PathBuf, usize>, bool) {
        let mut new = BTreeMap::new();
        while self.found.met.len() < discovery.len() {
            let source = self.found.met.len();
            let walk = self
                .walk
                .get_or_insert_with(|| (Walk::new(discovery, source), Met::default()));
            let scene = Scene {
                discovery,
                source,
                mounts: &self.mounts,
                hung,
                at,
            };
            let mut seen = Seen::default();
            let (walk, met) = walk;
            let is_over = walk.step(&scene, budget, &mut seen);
            met.has_root |= seen.has_root;
            for finding in seen.findings.iter() {
                met.findings.push(finding.clone());
            }
            met.files = met
                .files
                .saturating_add(u32::try_from(seen.files.len()).unwrap_or(u32::MAX));
            for path in seen.files {
                if let Some(&owner) = self.found.files.get(&path) {
                    if owner != source {
                        met.shared_with.insert(owner);
                    }
                    continue;
                }
                if self.found.files.len() >= FILES_OF_USERS_MAX && !shares::is_of_system(&path) {
                    self.left_out_of_users.count(&path);
                    continue;
                }
                if self.found.files.len() >= FILES_MAX {
                    self.left_out.count(&path);
                    continue;
                }
                new.insert(path.clone(), source);
                self.found.files.insert(path, source);
            }
            for (path, one, number) in seen.left {
                self.note_left(path, one, number);
            }
            if !is_over {
                return (new, false);
            }
            if let Some((_, mut met)) = self.walk.take() {
                for (left_out, cause) in [
                    (
                        &mut self.left_out_of_left,
                        format!("there are old files of more than {LEFT_MAX} that are not there"),
                    ),
                    (
                        &mut self.left_out,
                        format!(
                            "the sources name more files than the {FILES_MAX} that are followed"
                        ),
                    ),
                    (
                        &mut self.left_out_of_users,
                        format!(
                            "half of the {FILES_MAX} files that are followed are found: further ones of users are left out"
                        ),
                    ),
                ] {
                    let left_out = core::mem::take(left_out);
                    if let Some(finding) = left_out.finding(SourceState::NotWalked, &cause) {
                        met.findings.push(Finding {
                            needs_person: true,
                            ..finding
                        });
                    }
                }
                self.found.met.push(met);
            }
        }
        (new, true)
    }

    /// Notes an old generation of a file that is not there, as far as is known now.
    fn note_left(&mut self, path: PathBuf, one: PathBuf, number: u64) {
        let Found { files, left, .. } = &mut self.found;
        if files.contains_key(&path) {
            return;
        }
        if left.len() >= LEFT_MAX && !left.contains_key(&path) {
            // Of some the files were found meanwhile.
            left.retain(|path, _| !files.contains_key(path));
        }
        if left.len() >= LEFT_MAX && !left.contains_key(&path) {
            self.left_out_of_left.count(&path);
            return;
        }
        let left = left.entry(path).or_default();
        if left.numbers.len() < NUMBERS_MAX {
            left.numbers.insert(number);
        }
        left.one = one;
    }

    /// What was found so far; of the source that is being walked, that it is.
    pub(super) fn so_far(&self, discovery: &Discovery) -> Vec<Met> {
        let mut met = self.found.met.clone();
        if let Some((walk, so_far)) = &self.walk {
            let mut so_far = so_far.clone();
            let (root, _) = discovery.area(met.len());
            let cause = format!(
                "the walk goes on: at least {} directories were not yet looked into",
                walk.waiting()
            );
            let finding = Finding::new(SourceState::NotWalked, root, cause);
            so_far.findings.push(finding);
            met.push(so_far);
        }
        met
    }

    /// All that was found, once it is over.
    pub(super) fn finish(&mut self) -> Found {
        let mut found = core::mem::take(&mut self.found);
        let Found { files, left, .. } = &mut found;
        left.retain(|path, _| !files.contains_key(path));
        found
    }
}

/// What the globs match now, for a command that somebody waits for: what takes longer than [`LOOK_MAX`] is a finding.
pub(crate) fn look(discovery: &Discovery) -> Found {
    let mut round = Round::new();
    let mut budget = Budget::new(u32::MAX, clock::now() + LOOK_MAX);
    let (_, is_over) = round.step(discovery, &[], &mut budget, &|_| {});
    if !is_over {
        round.found.met = round.so_far(discovery);
    }
    let mut found = round.finish();
    found.met.resize_with(discovery.len(), Met::default);
    found
}

/// So many are looked for; more are heard of when there is a file at their path again.
const LEFT_MAX: usize = 10_000;
/// So many old generations of each are told from others.
const NUMBERS_MAX: usize = 256;
/// How long a command looks for files.
const LOOK_MAX: Duration = Duration::from_secs(30);
