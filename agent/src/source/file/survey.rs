//! Which files lie at a path and beside it, and what is known of each.
//!
//! Files are opened by name while somebody else renames them, so what was seen counts only when every name still
//! means the same file afterwards. A file is known by its content; its number only says what to compare it with first.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::FileStream;
use super::chain::Past;
use super::choice::{Candidate, NAMES_MAX, OPENS_MAX, begins_like};
use super::strange::Asking;
use super::unpack::is_unpacking;
use crate::clock;
use crate::source::bookmark::{Bookmark, FileId, Mark};
use crate::source::content::plain_name;
use crate::source::disk::{Name, Seen, is_absent};
use crate::source::follow::{self, Follow, look_within};
use crate::source::generations::{Rank, rank};
use crate::source::trust;

/// What was seen.
#[derive(Default)]
pub(super) struct Survey {
    /// At the path.
    pub(super) at_path: Option<Found>,
    /// What the file system calls that.
    id: Option<FileId>,
    /// When it was made.
    pub(super) made: Option<(FileId, Option<SystemTime>)>,
    /// What stood in the way there.
    pub(super) error: Option<io::Error>,
    /// Beside it: generations, and others that are known.
    pub(super) beside: Vec<Found>,
    /// Generations that may not be read, and may hold what is not collected.
    pub(super) unreadable: Vec<(PathBuf, FileId, io::Error)>,
    /// Files that may not be read, and have the numbers of settled ones perhaps: until it is known what the others are.
    closed: Vec<Closed>,
    /// Generations that nobody knows yet and for which there was no room, oldest first: younger than those in `beside`.
    pub(super) rest: Vec<Found>,
    /// A directory in which its files lie refused to be listed: what was not found there is no proof of anything.
    pub(super) is_blind: bool,
    /// How many files are named as generations and belong to others.
    pub(super) foreign: usize,
    /// How many were passed over unopened because by their times they are forgotten, though not by their names.
    pub(super) forgotten: usize,
}

/// The names beside the path.
#[derive(Eq, PartialEq)]
struct Beside {
    names: Vec<Name>,
    /// See [`Survey::is_blind`].
    is_blind: bool,
}

struct Closed {
    found: Found,
    error: io::Error,
    /// The settled file of the same number, and how far that was collected.
    like: Option<(u64, u64)>,
}

/// A file, and what is known of it.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) seen: Seen,
    /// What its name says, when it is named as rotation does.
    pub(super) rank: Option<Rank>,
    /// `None`: it is as it was when it was looked at last.
    pub(super) follow: Option<Follow>,
    pub(super) what: What,
}

/// Why somebody looks around.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Why {
    /// It is time to.
    Upkeep,
    /// Something was renamed.
    Renamed,
    /// The current file was truncated.
    Truncated,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum What {
    /// The file that is read.
    Current,
    /// Another with the same content, up to where that was read.
    CopyOfCurrent,
    /// A copy of what the file at the path begins with.
    CopyOfPath,
    /// The settled one of this serial number, or a copy of it.
    Past(u64),
    /// A copy of one that is open, made before all was written that was read of that.
    Part,
    Unknown,
}

impl FileStream {
    /// Looks around.
    pub(super) fn survey(&mut self, why: Why) -> io::Result<Survey> {
        let began = clock::now();
        let mut survey = self.look_around(why, began);
        if let Ok(found) = &mut survey {
            let is_anothers = |found: &mut Found| self.strange.is_anothers(found.seen.id);
            if found.at_path.take_if(is_anothers).is_some() {
                found.made = None; // nor are there copies of it
            }
            let unknown: Vec<(PathBuf, Seen)> = found.to_be_asked(self).collect();
            if self.strange.ask(unknown, began) {
                if let Ok(found) = survey {
                    self.unpack.get_mut().keep(found);
                }
                return Err(io::Error::other(Asking));
            }
            found.beside.retain(|found| {
                found.what != What::Unknown || !self.strange.is_anothers(found.seen.id)
            });
        }
        if let Ok(found) = &mut survey
            && found.at_path.is_some()
            && let Some((bookmark, head)) = self.cut.take()
        {
            self.pass_over_part_of(found, &bookmark, head.as_deref())?;
        }
        if !survey.as_ref().is_err_and(is_unpacking) {
            self.unpack.get_mut().end();
        }
        let took = clock::now().saturating_duration_since(began);
        let is_hasty = |error: &io::Error| error.get_ref().is_some_and(|inner| inner.is::<Hasty>());
        self.toll.add(took, survey.as_ref().is_err_and(is_hasty));
        survey
    }

    fn look_around(&self, why: Why, began: Instant) -> io::Result<Survey> {
        let current = self.chain.current.as_ref();
        let current = current.map(|follow| follow.bookmark(false));
        let current = current.or_else(|| self.chain.closed.clone());
        let is_urgent = why != Why::Upkeep;
        for _ in 0..LOOKS_MAX {
            let before = self.names(current.as_ref(), is_urgent);
            let (at_path, names) = match before {
                Ok(names) => (Ok(names.0), names.1),
                Err(error) => (Err(error), self.beside(current.as_ref(), is_urgent)?),
            };
            let is_refused = at_path.is_err();
            let mut survey = self.look_at(at_path, &names.names, current.as_ref());
            survey.is_blind = names.is_blind;
            if let Err(error) = self.identify(&mut survey, current.as_ref(), why) {
                if is_unpacking(&error) {
                    self.unpack.borrow_mut().keep(survey);
                }
                return Err(error);
            }
            let is_same = match self.names(current.as_ref(), is_urgent) {
                Ok((_, again)) => !is_refused && again == names && self.is_still(&survey),
                Err(_) => is_refused,
            };
            if is_same {
                return Ok(survey);
            }
            if clock::now().saturating_duration_since(began) > LOOKS_LAST {
                break;
            }
        }
        Err(io::Error::other(Hasty))
    }

    fn is_still(&self, survey: &Survey) -> bool {
        let at_path = self.place.disk.look(&self.place.path).ok().flatten();
        at_path.map(|seen| seen.id) == survey.id
    }

    fn names(
        &self,
        current: Option<&Bookmark>,
        is_urgent: bool,
    ) -> io::Result<(Option<Seen>, Beside)> {
        let (disk, path, root) = (&*self.place.disk, &self.place.path, &self.place.root);
        let at_path = look_within(disk, path, root, None)?;
        Ok((at_path, self.beside(current, is_urgent)?))
    }

    /// The paths whose generations are looked for: the stream's own, and what a link there leads or led to.
    pub(super) fn bases(&self) -> Vec<PathBuf> {
        let mut bases = vec![self.place.path.clone()];
        if let Ok(Some(_)) = self.place.disk.read_link(&self.place.path) {
            bases.extend(self.place.disk.canonical(&self.place.path).ok());
        }
        bases.extend(self.target.clone());
        let mut seen = BTreeSet::new();
        bases.retain(|base| seen.insert(base.clone()));
        bases
    }

    fn beside(&self, current: Option<&Bookmark>, is_urgent: bool) -> io::Result<Beside> {
        let inode = current.map_or(0, |current| current.id.inode);
        let (mut all, mut is_blind) = (Vec::new(), false);
        for base in self.bases() {
            let (Some(dir), Some(stem)) = (base.parent(), base.file_stem()) else {
                continue;
            };
            let dir = (dir, &*self.place.root);
            let names = match self.place.disk.names(dir, stem, inode, is_urgent) {
                // There is no such directory any more, or a file; or a link leads there that does not count.
                Err(error) if is_absent(&error) => continue,
                Err(error) if trust::is_refusal(&error) => {
                    is_blind = true;
                    continue;
                }
                names => names?,
            };
            all.extend(names);
        }
        all.retain(|name| name.path != self.place.path && !self.place.deny.forbids(&name.path));
        all.dedup();
        if all.len() > NAMES_MAX {
            self.keep_likely(&mut all, inode);
        }
        Ok(Beside {
            names: all,
            is_blind,
        })
    }

    /// Opens what is not as it was.
    fn look_at(
        &self,
        at_path: io::Result<Option<Seen>>,
        names: &[Name],
        current: Option<&Bookmark>,
    ) -> Survey {
        let mut survey = Survey::default();
        let path = &self.place.path;
        let mut ids = BTreeSet::new();
        survey.id = at_path
            .as_ref()
            .ok()
            .and_then(|seen| seen.map(|seen| seen.id));
        match at_path {
            Err(error) => survey.error = Some(error),
            Ok(None) => {}
            Ok(Some(seen))
                if self
                    .chain
                    .current
                    .as_ref()
                    .is_some_and(|own| own.id == seen.id) =>
            {
                ids.insert(seen.id);
                survey.at_path = Some(Found {
                    path: path.clone(),
                    seen,
                    rank: None,
                    follow: None,
                    what: What::Current,
                });
            }
            Ok(Some(seen)) => {
                ids.insert(seen.id);
                match self.open(path) {
                    Ok(None) => {}
                    Err(error) => survey.error = Some(error),
                    Ok(Some(follow)) => {
                        let open = self.chain.open_past(follow.id);
                        survey.at_path = Some(Found {
                            path: path.clone(),
                            seen,
                            rank: None,
                            follow: Some(follow),
                            what: open.map_or(What::Unknown, What::Past),
                        });
                    }
                }
            }
        }
        let bases = self.bases();
        let mut candidates = Vec::new();
        for name in names {
            let Ok(Some(seen)) = self.place.disk.look(&name.path) else {
                continue;
            };
            // One file with two names is one.
            if !ids.insert(seen.id) {
                continue;
            }
            let rank = bases.iter().find_map(|base| rank(base, &name.path));
            let is_one = |past: &&Past| past.mark.key == seen.id.key() && past.identifies(seen);
            let mut known = self.chain.past.iter().filter(is_one);
            let as_it_was = known.clone().find(|past| past.seen == Some(seen));
            let known = as_it_was.or_else(|| known.next());
            let is_known = known.map(|past| (past.serial, past.seen == Some(seen)));
            let mut found = Found {
                path: name.path.clone(),
                seen,
                rank,
                follow: None,
                what: What::Unknown,
            };
            if self
                .chain
                .current
                .as_ref()
                .is_some_and(|current| current.id == seen.id)
            {
                found.what = What::Current;
                survey.beside.push(found);
                continue;
            }
            let open = self.chain.open_past(seen.id);
            let as_it_was = is_known.filter(|(_, is_same)| *is_same);
            if let Some(serial) = open.or_else(|| as_it_was.map(|(serial, _)| serial)) {
                found.what = What::Past(serial);
                survey.beside.push(found);
                continue;
            }
            // A file of another name may begin alike and be another stream's.
            let is_meant = found.rank.is_some()
                || is_known.is_some()
                || current.is_some_and(|current| current.id == seen.id)
                || bases.iter().any(|base| begins_like(base, &name.path));
            let is_queued = self.chain.queued.iter().any(|queued| queued.id == seen.id);
            if !is_meant || is_queued {
                continue;
            }
            let like = known.map(|past| (past.serial, past.mark.offset));
            candidates.push(Candidate { found, like });
        }
        if candidates.len() > OPENS_MAX {
            self.choose(&mut candidates, &mut survey, current);
        }
        for Candidate { mut found, like } in candidates {
            if self.is_in_the_making(&found.path, names) {
                continue;
            }
            let known = self.unpack.borrow_mut().take(found.seen, &found.path);
            let opened = match known {
                Some(follow) => Ok(Some(follow)),
                None => self.open(&found.path),
            };
            match opened {
                Ok(Some(follow)) if follow.id == found.seen.id => {
                    found.follow = Some(follow);
                    survey.beside.push(found);
                }
                Ok(_) => {}
                Err(error) => survey.closed.push(Closed { found, error, like }),
            }
        }
        survey
    }

    /// Whether a file is compressed this moment from the one that is beside it: that one is whole.
    fn is_in_the_making(&self, path: &Path, names: &[Name]) -> bool {
        let plain = plain_name(path);
        if plain == path || names.iter().all(|name| name.path != plain) {
            return false;
        }
        let start = |path: &Path| self.open(path).ok().flatten()?.start().ok();
        match (start(path), start(&plain)) {
            (Some(packed), Some(plain)) => plain.goes_on(&packed),
            _ => true,
        }
    }

    /// Opens a file at the path or beside it, unless that is forbidden.
    pub(super) fn open(&self, path: &Path) -> io::Result<Option<Follow>> {
        if self.place.deny.forbids(path) {
            return Ok(None);
        }
        // What lies beside the target of a link is no link.
        let root = match path == self.place.path || path.starts_with(&self.place.root) {
            true => &self.place.root,
            false => path.parent().unwrap_or(path),
        };
        let opened = follow::open(&*self.place.disk, path, root)?;
        if let Some(follow) = &opened
            && follow.is_own(&*self.place.disk)
        {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "it is a file of the agent's own state, which is never collected",
            ));
        }
        Ok(opened)
    }
}

impl Survey {
    /// Generations that nobody knows here and that would be collected.
    fn to_be_asked(&self, stream: &FileStream) -> impl Iterator<Item = (PathBuf, Seen)> {
        let is_new = stream.chain.is_new();
        let is_one = move |found: &&Found| {
            let follow = found.follow.as_ref();
            let is_meant = |follow: &Follow| {
                // What was known of others when it was made may be old by now.
                let is_known = !stream.inherited.marks(follow.id).is_empty();
                !is_new || stream.history || is_known || follow.begins_after(stream.began)
            };
            found.what == What::Unknown && found.rank.is_some() && follow.is_some_and(is_meant)
        };
        let unknown = self.beside.iter().filter(is_one);
        unknown.map(|found| (found.path.clone(), found.seen))
    }

    /// What may not be read is taken for the settled file of its number, unless another is that, or it is too short to be.
    pub(super) fn guess(&mut self) {
        for closed in core::mem::take(&mut self.closed) {
            let Closed {
                mut found,
                error,
                like,
            } = closed;
            let len = found.seen.len;
            let is_taken = |serial| {
                self.beside
                    .iter()
                    .any(|other| other.what == What::Past(serial))
            };
            let like = like.filter(|(serial, offset)| {
                (*offset == Mark::ALL || *offset <= len) && !is_taken(*serial)
            });
            let is_settled = like.is_some_and(|(_, offset)| offset == Mark::ALL || offset == len);
            if !is_settled && (like.is_some() || found.rank.is_some()) {
                self.unreadable
                    .push((found.path.clone(), found.seen.id, error));
            }
            if let Some((serial, _)) = like {
                found.what = What::Past(serial);
                self.beside.push(found);
            }
        }
    }

    /// Generations nobody knows yet, oldest first. Those that are younger than the file at the path are copies of it.
    pub(super) fn unknown(&mut self) -> Vec<Found> {
        // Of two nobody could tell, and those that are known lie beside them.
        let ranked = self.beside.iter();
        let ranked = ranked.filter_map(|found| Some((found.rank.as_ref()?, found.seen.modified)));
        let mut ranked: Vec<_> = ranked.collect();
        ranked.sort();
        let is_upwards = ranked.len() > 2 && ranked.is_sorted_by(|(_, a), (_, b)| a > b);
        let is_one = |found: &mut Found| found.what == What::Unknown && found.rank.is_some();
        let mut unknown: Vec<Found> = self.beside.extract_if(.., is_one).collect();
        for follow in unknown.iter_mut().filter_map(|found| found.follow.as_mut()) {
            follow.is_copy = self.is_copy(follow);
        }
        in_order(&mut unknown, is_upwards);
        unknown
    }

    /// Whether a generation is a copy of the file at the path: it is younger.
    pub(super) fn is_copy(&self, follow: &Follow) -> bool {
        let made = self.made;
        made.is_some_and(|(id, created)| follow.is_made_after(id, created))
    }

    /// The time before which a file that nobody knows was forgotten: that of the earliest that is known.
    pub(super) fn earliest_known(&self) -> Option<SystemTime> {
        let known = self
            .beside
            .iter()
            .filter(|found| matches!(found.what, What::Past(_)));
        known.map(|found| found.seen.modified).min()
    }

    pub(super) fn take_current(&mut self) -> Option<Found> {
        let place = self
            .beside
            .iter()
            .position(|found| found.what == What::Current)?;
        Some(self.beside.swap_remove(place))
    }

    /// The copy of the current file; of several the one that was made last.
    pub(super) fn take_copy(&mut self) -> Option<Found> {
        let copies = self.beside.iter().enumerate();
        let copies = copies.filter(|(_, found)| found.what == What::CopyOfCurrent);
        let (place, _) =
            copies.max_by_key(|(_, found)| (found.rank.is_some(), found.seen.modified))?;
        Some(self.beside.swap_remove(place))
    }
}

/// Orders generations by age: as their names say, if those are of one kind; else by when they were written.
/// Some programs count upwards (`is_upwards`): every later number was written later.
pub(super) fn in_order(found: &mut [Found], is_upwards: bool) {
    let is_number = |found: &Found| matches!(found.rank, Some(Rank::Number(_)));
    let is_one_kind = found.iter().all(is_number) || !found.iter().any(is_number);
    // Whoever compressed a file may have kept its second only.
    let is_rough = found
        .iter()
        .any(|found| found.seen.modified == whole_second(found.seen.modified));
    let time = |found: &Found| match is_rough {
        true => whole_second(found.seen.modified),
        false => found.seen.modified,
    };
    let by_name = |a: &Found, b: &Found| (&a.rank, time(a)).cmp(&(&b.rank, time(b)));
    if !is_one_kind {
        found.sort_by(|a, b| (time(a), &a.rank).cmp(&(time(b), &b.rank)));
        return;
    }
    found.sort_by(by_name);
    let is_upwards =
        is_upwards || (found.len() > 2 && found.is_sorted_by(|a, b| time(a) > time(b)));
    if is_upwards && found.iter().all(is_number) {
        found.reverse();
    }
}

/// Whether numbers of generations grow: the one that was written first has the lowest.
pub(super) fn counts_upwards<'a>(found: impl Iterator<Item = &'a Found> + Clone) -> bool {
    let ranked = found.filter_map(|found| Some((found.seen.modified, found.rank.as_ref()?)));
    let (first, last) = (ranked.clone().min(), ranked.max());
    first.zip(last).is_some_and(|((_, first), (_, last))| {
        let are_numbers = matches!((first, last), (Rank::Number(_), Rank::Number(_)));
        are_numbers && first > last
    })
}

pub(super) fn whole_second(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(time, |since| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
    })
}

/// Names changed while they were looked at.
#[derive(Debug)]
struct Hasty;

impl std::error::Error for Hasty {}

impl fmt::Display for Hasty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("files are renamed faster than they are found")
    }
}

/// How often files may be renamed while we look at them.
const LOOKS_MAX: usize = 8;
/// After so long nobody looks once more: others wait for their turn.
const LOOKS_LAST: Duration = Duration::from_millis(250);
