//! The walk over the directories of one source, in steps of a bounded number of names.
//!
//! ```text
//! root ─▶ [directories, level by level] ─▶ names ─▶ files that match
//!              ▲ after all of them                └─▶ links ─ where each may lead ─┐
//!              └───────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Invariants:
//! 1. A directory is entered a few times at most, whatever leads to it, and never from below itself: links and mounts
//!    that lead in circles cost no more than the directories that there are.
//! 2. A directory counts by its own name before it does by a link to it: a file keeps its path.
//! 3. The files of a directory come out together: what rotation made of one file is never half known.
//! 4. Nothing is left out in silence: it is a finding.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use scrinium_protocol::sl::sources::SourceState;
use scrinium_segment::fault;

use super::bookmark::FileId;
use super::content::Packing;
use super::discover::{DEPTH_MAX, Discovery, Wanted};
use super::disk::{RealDisk, is_absent};
use super::entries::{Entries, Kind};
use super::findings::{Finding, Findings, Tally};
use super::generations;
use super::mounts::Mounts;
use super::trust::{self, identity};
use crate::clock;

/// How much one step may take.
pub(super) struct Budget {
    names: u32,
    until: Instant,
    /// Names since the last look at the clock.
    unlooked: u32,
}

impl Budget {
    pub(super) fn new(names: u32, until: Instant) -> Self {
        Self {
            names,
            until,
            unlooked: 0,
        }
    }

    fn take(&mut self, names: u32) {
        self.names = self.names.saturating_sub(names);
        self.unlooked += names;
        if self.unlooked >= CLOCK_EVERY {
            self.unlooked = 0;
            if clock::now() >= self.until {
                self.names = 0;
            }
        }
    }

    fn is_used_up(&self) -> bool {
        self.names == 0
    }
}

/// What a walk goes by.
pub(super) struct Scene<'a> {
    pub(super) discovery: &'a Discovery,
    /// Which of its sources.
    pub(super) source: usize,
    pub(super) mounts: &'a Mounts,
    /// Paths at which an earlier walk still waits for an answer.
    pub(super) hung: &'a [PathBuf],
    /// Told what is asked about next, should there never be an answer.
    pub(super) at: &'a dyn Fn(&Path),
}

/// The walk of one source.
pub(super) struct Walk {
    root: PathBuf,
    /// The same without links.
    root_real: PathBuf,
    depth_max: usize,
    /// The source names one file, and no directory need be listed.
    literal: Option<PathBuf>,
    /// Directories by their own names, the highest first.
    own: VecDeque<Directory>,
    /// Those that links lead to.
    linked: VecDeque<Directory>,
    open: Option<Open>,
    /// How often each was entered.
    entered: BTreeMap<FileId, u8>,
    /// Directories below each of those in the root.
    branches: Vec<u32>,
    directories: u32,
    denied: Tally,
    odd: Tally,
    /// Directories that lie deeper than a walk goes.
    deep: Tally,
    circles: Tally,
    left_out: Tally,
}

struct Directory {
    path: PathBuf,
    /// The same without links, where that is another.
    real: Option<PathBuf>,
    depth: usize,
    /// Which of the directories in the root it lies in.
    branch: Option<usize>,
    above: Option<Arc<Above>>,
}

impl Directory {
    fn real(&self) -> &Path {
        self.real.as_ref().unwrap_or(&self.path)
    }
}

/// A directory, and those above it.
struct Above {
    id: FileId,
    above: Option<Arc<Self>>,
}

impl Above {
    fn has(mut this: Option<&Self>, id: FileId) -> bool {
        while let Some(Self { id: own, above }) = this {
            if *own == id {
                return true;
            }
            this = above.as_deref();
        }
        false
    }
}

/// A directory whose names are being read.
struct Open {
    directory: Directory,
    inside: Option<Arc<Above>>,
    names: Entries,
    files: Vec<PathBuf>,
}

/// What the steps of a walk found.
#[derive(Default)]
pub(super) struct Seen {
    /// Paths that it names, of whose files there are old generations: one of these each, and what the file system calls
    /// it. Whether there are files is not looked at.
    pub(super) left: Vec<(PathBuf, PathBuf, u64)>,
    /// The root is there.
    pub(super) has_root: bool,
    pub(super) files: Vec<PathBuf>,
    pub(super) findings: Findings,
}

impl Walk {
    pub(super) fn new(discovery: &Discovery, source: usize) -> Self {
        let (root, depth_max) = discovery.area(source);
        let mut walk = Self {
            root_real: root.to_owned(),
            root: root.to_owned(),
            depth_max,
            literal: discovery.literal(source),
            own: VecDeque::new(),
            linked: VecDeque::new(),
            open: None,
            entered: BTreeMap::new(),
            branches: Vec::new(),
            directories: 0,
            denied: Tally::default(),
            odd: Tally::default(),
            deep: Tally::default(),
            circles: Tally::default(),
            left_out: Tally::default(),
        };
        walk.own.push_back(Directory {
            path: walk.root.clone(),
            real: None,
            depth: 0,
            branch: None,
            above: None,
        });
        walk
    }

    /// How many directories are still to be read.
    pub(super) fn waiting(&self) -> usize {
        self.own.len() + self.linked.len() + usize::from(self.open.is_some())
    }

    /// Walks on; whether all is walked.
    pub(super) fn step(&mut self, scene: &Scene<'_>, budget: &mut Budget, seen: &mut Seen) -> bool {
        while !budget.is_used_up() {
            if let Some(open) = self.open.take() {
                self.read_on(open, scene, budget, seen);
                continue;
            }
            budget.take(DIRECTORY_COST);
            let next = self.own.pop_front().or_else(|| self.linked.pop_front());
            match next {
                Some(directory) if directory.depth == 0 => self.begin(directory, scene, seen),
                Some(directory) => self.enter(directory, scene, seen),
                None => {
                    self.conclude(seen);
                    return true;
                }
            }
        }
        false
    }

    /// The root, which is taken as it is named.
    fn begin(&mut self, mut root: Directory, scene: &Scene<'_>, seen: &mut Seen) {
        (scene.at)(&root.path);
        if is_hung(&root.path, scene, seen) {
            return;
        }
        // The way to it is looked at, too: a directory of a user may be a link by now.
        #[cfg(unix)]
        if let Some(refused) = refusal_of(&root.path, scene) {
            return seen.findings.push(refused);
        }
        match std::fs::canonicalize(&root.path) {
            Ok(real) => {
                self.root_real = real;
                seen.has_root = true;
            }
            Err(error) => return refuse(&root.path, &error, true, seen),
        }
        if let Some(path) = self.literal.take() {
            let found = std::fs::symlink_metadata(&path);
            match found {
                Ok(metadata) if metadata.is_dir() => {
                    let cause = "it is a directory";
                    seen.findings
                        .push(Finding::new(SourceState::NoMatch, &path, cause));
                }
                Ok(metadata) => {
                    let mut files = Vec::new();
                    let kind = (metadata.file_type().into(), 0);
                    root.real = Some(self.root_real.clone());
                    root.depth = self.depth_max;
                    self.consider(path, kind, (&root, None), (scene, &mut files, seen));
                    seen.files.append(&mut files);
                }
                Err(error) => {
                    refuse(&path, &error, true, seen);
                    if is_absent(&error) {
                        // Its old generations may lie there.
                        root.real = Some(self.root_real.clone());
                        root.depth = self.depth_max;
                        self.enter(root, scene, seen);
                    }
                }
            }
            return;
        }
        // The root lies in directories too, and a link may lead back to one.
        for ancestor in self.root_real.ancestors().skip(1) {
            if let Ok(id) = identity(ancestor) {
                let above = root.above.take();
                root.above = Some(Arc::new(Above { id, above }));
            }
        }
        root.real = Some(self.root_real.clone());
        self.enter(root, scene, seen);
    }

    fn enter(&mut self, directory: Directory, scene: &Scene<'_>, seen: &mut Seen) {
        (scene.at)(&directory.path);
        fault::point("agent: a directory's turn");
        // What is mounted there is known without a question to it.
        if is_hung(&directory.path, scene, seen)
            || self.is_foreign(&directory.path, directory.real(), scene, seen)
        {
            return;
        }
        let is_root = directory.depth == 0;
        // What is listed is what was asked about, whatever takes its place meanwhile.
        let root = scene.discovery.root_of(Some(scene.source), &directory.path);
        let (id, names) = match trust::list(&RealDisk::default(), &directory.path, &root) {
            Ok(listed) => listed,
            Err(error) if trust::is_refusal(&error) => {
                return seen.findings.push(refused(&directory.path, &error));
            }
            Err(error) => return refuse(&directory.path, &error, is_root, seen),
        };
        let entered = self.entered.entry(id).or_default();
        if *entered >= ENTERED_MAX || Above::has(directory.above.as_deref(), id) {
            self.circles.count(&directory.path);
            return;
        }
        *entered += 1;
        let above = directory.above.clone();
        self.open = Some(Open {
            directory,
            inside: Some(Arc::new(Above { id, above })),
            names,
            files: Vec::new(),
        });
    }

    fn read_on(&mut self, mut open: Open, scene: &Scene<'_>, budget: &mut Budget, seen: &mut Seen) {
        while !budget.is_used_up() {
            let Some(entry) = open.names.next() else {
                seen.files.append(&mut open.files);
                return;
            };
            budget.take(1);
            match entry {
                Ok(entry) => {
                    let path = open.directory.path.join(entry.name);
                    let kind = (entry.kind, entry.inode);
                    if entry.kind == Kind::Link {
                        budget.take(LINK_COST);
                    }
                    let place = (&open.directory, open.inside.as_ref());
                    self.consider(path, kind, place, (scene, &mut open.files, seen));
                }
                // It is gone again.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let path = &open.directory.path;
                    seen.findings.push(Finding::unreadable(path, &error));
                    seen.files.append(&mut open.files);
                    return;
                }
            }
        }
        self.open = Some(open);
    }

    /// What is at one name.
    fn consider(
        &mut self,
        path: PathBuf,
        (kind, inode): (Kind, u64),
        (directory, inside): (&Directory, Option<&Arc<Above>>),
        (scene, files, seen): (&Scene<'_>, &mut Vec<PathBuf>, &mut Seen),
    ) {
        let depth = directory.depth + 1;
        let may_enter = depth < self.depth_max;
        if kind == Kind::Directory {
            if may_enter {
                let real = path.file_name().and_then(|name| {
                    let real = directory.real.as_ref()?.join(name);
                    (real != path).then_some(real)
                });
                self.plan(path, real, directory, inside, false);
            } else if scene.discovery.goes_deeper(scene.source) {
                self.deep.count(&path);
            }
            return;
        }
        let wanted = scene.discovery.wanted(scene.source, &path);
        if kind == Kind::Link {
            if may_enter || wanted != Wanted::No {
                let place = (directory, inside, may_enter);
                self.consider_link(path, wanted, place, (scene, files, seen));
            }
            return;
        }
        match wanted {
            Wanted::No if kind == Kind::File && Packing::of(&path).is_none() => {
                let bases = generations::bases_of(&path);
                let named =
                    |base: &PathBuf| scene.discovery.wanted(scene.source, base) == Wanted::Yes;
                let left = bases.filter(named);
                seen.left
                    .extend(left.map(|base| (base, path.clone(), inode)));
            }
            Wanted::No => {}
            Wanted::Denied => self.denied.count(&path),
            Wanted::Yes if kind == Kind::File => files.push(path),
            Wanted::Yes => self.odd.count(&path),
        }
    }

    fn consider_link(
        &mut self,
        path: PathBuf,
        wanted: Wanted,
        (directory, inside, may_enter): (&Directory, Option<&Arc<Above>>, bool),
        (scene, files, seen): (&Scene<'_>, &mut Vec<PathBuf>, &mut Seen),
    ) {
        (scene.at)(&path);
        if is_hung(&path, scene, seen) {
            return;
        }
        // What it says is looked at before anybody is asked about what is there.
        let Ok(said) = std::fs::read_link(&path) else {
            return; // gone again
        };
        let target = plain(&directory.real().join(said));
        if self.is_foreign(&path, &target, scene, seen) {
            return;
        }
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            // It leads nowhere now, and may lead somewhere later.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                if wanted == Wanted::Yes {
                    seen.findings.push(Finding::unreadable(&path, &error));
                }
                return;
            }
        };
        let is_dir = metadata.is_dir();
        if !(is_dir && may_enter || !is_dir && wanted != Wanted::No) {
            return;
        }
        #[cfg(unix)]
        if let Some(refused) = refusal_of(&path, scene) {
            return seen.findings.push(refused);
        }
        if is_dir {
            // Whatever is wrong with the way there is said when it is entered.
            let real = std::fs::canonicalize(&path).unwrap_or(target);
            if !self.is_foreign(&path, &real, scene, seen) {
                self.plan(path, Some(real), directory, inside, true);
            }
            return;
        }
        match wanted {
            Wanted::No => {}
            Wanted::Denied => self.denied.count(&path),
            Wanted::Yes if metadata.is_file() => files.push(path),
            Wanted::Yes => self.odd.count(&path),
        }
    }

    /// A directory is to be entered later, if there is room for it.
    fn plan(
        &mut self,
        path: PathBuf,
        real: Option<PathBuf>,
        parent: &Directory,
        inside: Option<&Arc<Above>>,
        is_linked: bool,
    ) {
        let branch = parent.branch.unwrap_or(self.branches.len());
        if branch == self.branches.len() {
            self.branches.push(0);
        }
        let below = self.branches.get_mut(branch);
        let has_room = self.directories < DIRECTORIES_MAX
            && below
                .as_ref()
                .is_none_or(|below| **below < BRANCH_DIRECTORIES_MAX);
        if !has_room {
            self.left_out.count(&path);
            return;
        }
        self.directories += 1;
        if let Some(below) = below {
            *below += 1;
        }
        let directory = Directory {
            path,
            real,
            depth: parent.depth + 1,
            branch: Some(branch),
            above: inside.cloned(),
        };
        match is_linked {
            true => self.linked.push_back(directory),
            false => self.own.push_back(directory),
        }
    }

    fn is_foreign(&self, path: &Path, real: &Path, scene: &Scene<'_>, seen: &mut Seen) -> bool {
        let kind = scene.mounts.foreign(real, &self.root_real);
        if let Some(kind) = kind {
            let cause = format!(
                "a file system of kind {kind} is there, which is walked only when a source names a directory in it"
            );
            seen.findings
                .push(Finding::new(SourceState::NotWalked, path, cause));
        }
        kind.is_some()
    }

    fn conclude(&self, seen: &mut Seen) {
        let not_walked = SourceState::NotWalked;
        let all = [
            self.denied.finding(
                SourceState::Denied,
                "the configuration of this machine denies it",
            ),
            self.odd.finding(
                not_walked,
                "it is no regular file (a FIFO, a socket or a device)",
            ),
            self.circles.finding(
                not_walked,
                "it leads to a directory that is walked already, under other names or because it lies in it",
            ),
        ];
        for finding in all.into_iter().flatten() {
            seen.findings.push(finding);
        }
        let cause = format!(
            "it lies deeper than is walked: {DEPTH_MAX} levels below where the glob begins; a source of its own may begin there"
        );
        if let Some(finding) = self.deep.finding(not_walked, &cause) {
            seen.findings.push(finding);
        }
        let cause = format!(
            "there are more directories than are walked: {DIRECTORIES_MAX} of a source, {BRANCH_DIRECTORIES_MAX} in each directory of its first level"
        );
        if let Some(finding) = self.left_out.finding(not_walked, &cause) {
            seen.findings.push(Finding {
                needs_person: true,
                ..finding
            });
        }
    }
}

/// Why a link on the way to a path is not followed, if one is not.
#[cfg(unix)]
fn refusal_of(path: &Path, scene: &Scene<'_>) -> Option<Finding> {
    if scene.discovery.follows_all_links(scene.source) {
        return None;
    }
    let led_to = trust::leads_to(&RealDisk::default(), path, Path::new(trust::ROOT_DIR));
    let error = led_to.err().filter(trust::is_refusal)?;
    Some(refused(path, &error))
}

fn refused(path: &Path, error: &io::Error) -> Finding {
    Finding::trouble(SourceState::RefusedLink, path, error.to_string())
}

/// Whether an earlier walk still waits for an answer about this very path.
fn is_hung(path: &Path, scene: &Scene<'_>, seen: &mut Seen) -> bool {
    let is_hung = scene.hung.iter().any(|hung| hung == path);
    if is_hung {
        let cause = "the file system does not answer";
        let finding = Finding::trouble(SourceState::NotWalked, path, cause);
        seen.findings.push(finding);
    }
    is_hung
}

/// A directory or file cannot be looked at; one that vanished is none any more, unless it is `named`.
fn refuse(path: &Path, error: &io::Error, named: bool, seen: &mut Seen) {
    if !is_absent(error) {
        seen.findings.push(Finding::unreadable(path, error));
    } else if named {
        let cause = "it is not there";
        seen.findings
            .push(Finding::new(SourceState::NoMatch, path, cause));
    }
}

/// The path with its `.` and `..` taken as they are written.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => {
                out.push(component);
            }
        }
    }
    out
}

/// How often a directory is entered: by its own name, and by links to it. A pattern may want it by more than one name
/// (`current` and `latest` of a release); more than these lead in circles.
const ENTERED_MAX: u8 = 5;
/// Directories of one source: each costs some hundred bytes while it waits, and its place among those entered.
const DIRECTORIES_MAX: u32 = 200_000;
/// Directories in each of those of the root's first level: who may write into one of them cannot take the room of the
/// others.
const BRANCH_DIRECTORIES_MAX: u32 = 50_000;
/// What entering a directory and following a link cost, in names.
const DIRECTORY_COST: u32 = 4;
const LINK_COST: u32 = 8;
/// How many names are taken between two looks at the clock.
const CLOCK_EVERY: u32 = 64;

#[cfg(test)]
#[cfg(unix)]
mod tests;
