//! What was found about a source besides files: what is left out, what cannot be read, and why.

use std::io;
use std::path::{Path, PathBuf};

use scrinium_protocol::sl::sources::SourceState;

/// One of them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Finding {
    pub(crate) state: SourceState,
    /// It stays so until somebody does something about it.
    pub(crate) needs_person: bool,
    pub(crate) path: PathBuf,
    pub(crate) cause: String,
}

impl Finding {
    /// Something that is as it should be, or that only its owner can want otherwise.
    pub(crate) fn new(state: SourceState, path: &Path, cause: impl Into<String>) -> Self {
        Self {
            state,
            needs_person: false,
            path: path.to_owned(),
            cause: cause.into(),
        }
    }

    /// Something that stays so until somebody does something about it.
    pub(crate) fn trouble(state: SourceState, path: &Path, cause: impl Into<String>) -> Self {
        Self {
            needs_person: true,
            ..Self::new(state, path, cause)
        }
    }

    /// The system does not let it be listed or read.
    pub(crate) fn unreadable(path: &Path, error: &io::Error) -> Self {
        Self::trouble(SourceState::Unreadable, path, error.to_string())
    }
}

/// All of one source, as far as there is room.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Findings {
    found: Vec<Finding>,
    /// Findings that had no room.
    more: u32,
}

impl Findings {
    /// Adds one; those that need a person have room before the others.
    pub(crate) fn push(&mut self, finding: Finding) {
        if self.found.contains(&finding) {
            return;
        }
        if self.found.len() < FINDINGS_MAX {
            self.found.push(finding);
            return;
        }
        self.more = self.more.saturating_add(1);
        let gives_way = self.found.iter().rposition(|other| !other.needs_person);
        let place = gives_way.filter(|_| finding.needs_person);
        if let Some(place) = place.and_then(|place| self.found.get_mut(place)) {
            *place = finding;
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.found.iter()
    }

    /// Whether one of them is why there are no files.
    pub(crate) fn say_why_none(&self) -> bool {
        self.found.iter().any(|finding| {
            let says_why = [
                SourceState::NoMatch,
                SourceState::Denied,
                SourceState::Unreadable,
            ];
            finding.needs_person || says_why.contains(&finding.state)
        })
    }

    pub(crate) fn more(&self) -> u32 {
        self.more
    }
}

/// Many of one kind, said as one: the first, and how many others there are.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    first: Option<PathBuf>,
    others: u64,
}

impl Tally {
    pub(super) fn count(&mut self, path: &Path) {
        match &self.first {
            Some(_) => self.others += 1,
            None => self.first = Some(path.to_owned()),
        }
    }

    /// The finding, of which `cause` says what the first is.
    pub(super) fn finding(&self, state: SourceState, cause: &str) -> Option<Finding> {
        let first = self.first.as_ref()?;
        let cause = match self.others {
            0 => cause.to_owned(),
            others => format!("{cause}; so it is with {others} more"),
        };
        Some(Finding::new(state, first, cause))
    }
}

/// Findings of one source that are kept by name: enough to see what is wrong, and few enough that a directory full of
/// odd things costs nothing.
const FINDINGS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_bounded_and_those_that_need_a_person_stay() {
        let mut findings = Findings::default();
        for n in 0..1000 {
            let path = PathBuf::from(format!("/odd/{n}"));
            findings.push(Finding::new(SourceState::NotWalked, &path, "odd"));
            findings.push(Finding::new(SourceState::NotWalked, &path, "odd"));
        }
        let bad = Path::new("/bad");
        let error = io::Error::from(io::ErrorKind::PermissionDenied);
        findings.push(Finding::unreadable(bad, &error));
        assert_eq!(findings.iter().count(), FINDINGS_MAX);
        assert!(findings.iter().any(|finding| finding.path == bad));
        // Each was pushed twice: what is kept is known again, what is not is counted again.
        assert!(findings.more() >= 985, "{}", findings.more());
        let mut tally = Tally::default();
        assert!(tally.finding(SourceState::NotWalked, "odd").is_none());
        tally.count(bad);
        tally.count(Path::new("/other"));
        let said = tally.finding(SourceState::NotWalked, "odd").unwrap();
        assert_eq!(
            (&*said.path, &*said.cause),
            (bad, "odd; so it is with 1 more")
        );
    }
}
