//! Whose files are that streams found at their paths, and generations beside them: all that are asked for at once, in one
//! look at the streams there are.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::bookmark::{FileId, Mark};
use super::claims::Collected;
use super::disk::Seen;
use super::file::FileStream;

/// A file that is asked for.
pub(super) struct Question {
    /// The path of the stream that asks.
    pub(super) by: PathBuf,
    /// Where the file is.
    pub(super) path: PathBuf,
    pub(super) file: Seen,
    /// The file that the stream read last, of which it is asked how far others read it.
    pub(super) last: Option<FileId>,
    /// The stream forgot files that it read: what is known of files whose streams are closed may be of these.
    pub(super) forgot: bool,
}

/// Files that are asked for, and which streams may know each.
pub(super) struct Asked {
    questions: Vec<Question>,
    may_know: Vec<BTreeSet<PathBuf>>,
    by_key: BTreeMap<u64, Vec<usize>>,
}

/// Whose a file is, and how far others read what had or has its number.
pub(super) struct Answer {
    pub(super) whose: Whose,
    pub(super) collected: Collected,
    /// How far others read the file that the stream read last.
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
    /// The files, and the streams there are.
    pub(super) fn of<'a>(
        questions: Vec<Question>,
        streams: impl Iterator<Item = (&'a Path, &'a FileStream)>,
    ) -> Self {
        let mut by_key: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        let mut by_path: BTreeMap<&Path, usize> = BTreeMap::new();
        let mut by_name: BTreeMap<&OsStr, Vec<usize>> = BTreeMap::new();
        for (n, question) in questions.iter().enumerate() {
            let Question {
                by,
                path,
                file,
                last,
                ..
            } = question;
            for id in last.iter().chain([&file.id]) {
                by_key.entry(id.key()).or_default().push(n);
            }
            by_path.insert(path, n);
            if let Some(name) = by.file_name().filter(|_| by != path) {
                by_name.entry(name).or_default().push(n);
            }
        }
        let mut may_know = vec![BTreeSet::new(); questions.len()];
        for (path, stream) in streams {
            let keys = stream.reading().map(FileId::key).chain(stream.known());
            let asked = keys.filter_map(|key| by_key.get(&key)).flatten();
            let led_to = stream.target().and_then(|target| by_path.get(target));
            // What is moved to another directory, and compressed there perhaps, keeps its name.
            let named = path.file_name().and_then(|name| by_name.get(name));
            let named = named.into_iter().flatten().filter(|n| {
                let question = questions.get(**n);
                question.is_some_and(|question| is_near(path, &question.by))
            });
            for n in asked.chain(led_to).chain(named) {
                if let Some(may_know) = may_know.get_mut(*n)
                    && may_know.len() < KNOWING_MAX
                {
                    may_know.insert(path.to_owned());
                }
            }
        }
        Self {
            questions,
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
    ) -> Option<(&Question, Answer)> {
        let question = self.questions.get(n)?;
        let Question {
            by,
            path,
            file,
            last,
            forgot,
        } = question;
        let others = self.may_know.get(n)?.iter();
        let others = others.filter(|other| *other != by);
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
        let copied = others.iter().filter(|other| is_namesake(other.path(), by));
        let copied = copied.flat_map(|other| other.marks());
        let copied = copied.map(|mark: Mark| mark.of_copy(key));
        let marks = marks.chain(copied);
        let collected = match forgot {
            true => Collected::default().of_file(file.id, marks),
            false => closed.of_file(file.id, marks),
        };
        let last = last.map(FileId::key).into_iter();
        let last = last.flat_map(|key| others.iter().flat_map(move |other| other.marks_of(key)));
        let answer = Answer {
            whose,
            collected,
            last: last.collect(),
        };
        Some((question, answer))
    }

    /// What asked for the file of this number may read it by now.
    pub(super) fn note(&mut self, n: usize) {
        let Some(Question { by, file, .. }) = self.questions.get(n) else {
            return;
        };
        for other in self.by_key.get(&file.id.key()).into_iter().flatten() {
            if let Some(may_know) = self.may_know.get_mut(*other) {
                may_know.insert(by.clone());
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.questions.len()
    }
}

/// Whether files of one name lie so that rotation may move one to the other's directory: below it, above it, or beside it.
fn is_near(path: &Path, other: &Path) -> bool {
    let (Some(own), Some(other)) = (path.parent(), other.parent()) else {
        return false;
    };
    own != other
        && (own.starts_with(other) || other.starts_with(own) || own.parent() == other.parent())
}

fn is_namesake(path: &Path, other: &Path) -> bool {
    path.file_name() == other.file_name() && is_near(path, other)
}

/// Streams that are asked for one file: ten thousand containers each have a log of one name.
const KNOWING_MAX: usize = 64;
