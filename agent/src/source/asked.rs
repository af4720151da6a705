//! Whose files are that streams found at their paths: all that are asked for at once, in one look at the streams there are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::bookmark::{FileId, Mark};
use super::claims::Collected;
use super::disk::Seen;
use super::file::FileStream;

/// What a stream asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    /// Whose is this file?
    pub(super) file: Seen,
    /// How far did others read the one that the stream read last?
    pub(super) last: Option<FileId>,
}

/// Files that are asked for, and which streams may know each.
pub(super) struct Asked {
    files: Vec<(PathBuf, Question)>,
    may_know: Vec<BTreeSet<PathBuf>>,
    by_key: BTreeMap<u64, Vec<usize>>,
}

/// Whose a file is, and how far others read what had or has its number.
pub(super) struct Answer {
    pub(super) whose: Whose,
    pub(super) collected: Collected,
    /// How far others read what has the number of the file that the stream read last.
    pub(super) last: Vec<Mark>,
}

/// Whose a file is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Whose {
    /// Another stream has it open.
    Anothers,
    /// Another stream knows one of its number that begins and ends so: a number is given again.
    AsItSeems,
    Nobodys,
}

impl Asked {
    /// The files, each with the path of the stream that asks, and the streams there are.
    pub(super) fn of<'a>(
        files: Vec<(PathBuf, Question)>,
        streams: impl Iterator<Item = (&'a Path, &'a FileStream)>,
    ) -> Self {
        let mut by_key: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        let mut by_path: BTreeMap<&Path, usize> = BTreeMap::new();
        for (n, (path, Question { file, last })) in files.iter().enumerate() {
            for id in last.iter().chain([&file.id]) {
                by_key.entry(id.key()).or_default().push(n);
            }
            by_path.insert(path, n);
        }
        let mut may_know = vec![BTreeSet::new(); files.len()];
        for (path, stream) in streams {
            let keys = stream.reading().map(FileId::key).chain(stream.known());
            let asked = keys.filter_map(|key| by_key.get(&key)).flatten();
            let led_to = stream.target().and_then(|target| by_path.get(target));
            for n in asked.chain(led_to) {
                if let Some(may_know) = may_know.get_mut(*n) {
                    may_know.insert(path.to_owned());
                }
            }
        }
        Self {
            files,
            may_know,
            by_key,
        }
    }

    /// Whose the file of this number is, and for whom: of the streams that are open, found by `at`, and those that are closed.
    pub(super) fn answer<'a>(
        &self,
        n: usize,
        at: impl Fn(&Path) -> Option<&'a FileStream>,
        closed: &Collected,
    ) -> Option<(&Path, Answer)> {
        let (path, Question { file, last }) = self.files.get(n)?;
        let others = self.may_know.get(n)?.iter();
        let others = others.filter(|other| *other != path);
        let others: Vec<&FileStream> = others.filter_map(|other| at(other)).collect();
        let is_open = |other: &&FileStream| other.reading().any(|id| id == file.id);
        let is_open = others.iter().any(is_open);
        let is_known = || others.iter().any(|other| other.collects(*file, path));
        let whose = match is_open {
            true => Whose::Anothers,
            false if is_known() => Whose::AsItSeems,
            false => Whose::Nobodys,
        };
        let key = file.id.key();
        let marks = others.iter().flat_map(|other| other.marks_of(key));
        let collected = closed.of_file(file.id, marks);
        let last = last.map(FileId::key).into_iter();
        let last = last.flat_map(|key| others.iter().flat_map(move |other| other.marks_of(key)));
        let answer = Answer {
            whose,
            collected,
            last: last.collect(),
        };
        Some((path, answer))
    }

    /// What asked for the file of this number may read it by now.
    pub(super) fn note(&mut self, n: usize) {
        let Some((path, Question { file, .. })) = self.files.get(n) else {
            return;
        };
        for other in self.by_key.get(&file.id.key()).into_iter().flatten() {
            if let Some(may_know) = self.may_know.get_mut(*other) {
                may_know.insert(path.clone());
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }
}
