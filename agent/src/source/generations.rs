//! How rotation names old files: which names are generations of which.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::content::plain_name;

/// Regular files beside `path` whose names begin like its own.
pub(super) fn siblings(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(stem)) = (
        path.parent(),
        path.file_stem().and_then(|stem| stem.to_str()),
    ) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let begins = name.to_str().is_some_and(|name| name.starts_with(stem));
        if begins && entry.path() != path && entry.file_type()?.is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    // While a file is being compressed both are there: the plain one is whole.
    let plain: BTreeSet<PathBuf> = found.iter().cloned().collect();
    found.retain(|path| {
        let name = plain_name(path);
        name == *path || !plain.contains(&name)
    });
    Ok(found)
}

/// Whether `sibling` is named as rotation names old files: the same name with a number or a date
/// behind it or before its extension, compressed or not.
pub(super) fn is_generation_of(path: &Path, sibling: &Path) -> bool {
    suffix(path, sibling).is_some()
}

/// Where the name of a generation puts it among the others, the oldest first: the highest number, or
/// the earliest date. `None` when it is none.
pub(super) fn rank(path: &Path, sibling: &Path) -> Option<Vec<i64>> {
    let suffix = suffix(path, sibling)?;
    let numbers = suffix.split(|c: char| !c.is_ascii_digit());
    let numbers: Vec<i64> = numbers.filter_map(|number| number.parse().ok()).collect();
    let is_date = numbers.first().is_some_and(|&first| first >= FIRST_YEAR);
    let sign = if is_date { 1 } else { -1 };
    Some(numbers.into_iter().map(|number| sign * number).collect())
}

/// What rotation put behind the name or before its extension.
fn suffix(path: &Path, sibling: &Path) -> Option<String> {
    let sibling = &plain_name(sibling);
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    let (own, other) = (name(path)?, name(sibling)?);
    let is_suffix = |text: &&str| {
        text.starts_with(['.', '-', '_'])
            && text.bytes().any(|byte| byte.is_ascii_digit())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || b".-_T".contains(&byte))
    };
    let suffix = match other.strip_prefix(&own) {
        Some(suffix) => suffix,
        None => {
            let (stem, extension) = own.rsplit_once('.')?;
            let middle = other.strip_prefix(stem)?;
            middle.strip_suffix(&format!(".{extension}"))?
        }
    };
    Some(suffix).filter(is_suffix).map(str::to_owned)
}

/// The paths a file may have had before rotation gave it its name: `app.log` of `app.log.1`,
/// `app.log-20261121`, `app.1.log` and `app-2026-11-21.log`.
pub(super) fn bases_of(path: &Path) -> impl Iterator<Item = PathBuf> + use<'_> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let strip = |text: &str| {
        let stem = text.trim_end_matches(|c: char| c.is_ascii_digit() || ".-_T".contains(c));
        stem.to_owned()
    };
    let inner = name
        .rsplit_once('.')
        .map(|(stem, extension)| format!("{}.{extension}", strip(stem)));
    let bases =
        [Some(strip(name)), inner].map(|base| path.with_file_name(base.unwrap_or_default()));
    bases
        .into_iter()
        .filter(move |base| base != path && is_generation_of(base, path))
}

/// What a file may have been called before rotation renamed and compressed it, but for its own name.
pub(crate) fn names_before(path: &Path) -> impl Iterator<Item = PathBuf> + use<'_> {
    let plain = plain_name(path);
    let bases: Vec<PathBuf> = bases_of(&plain).collect();
    let plain = Some(plain).filter(|plain| plain != path);
    plain.into_iter().chain(bases)
}

/// A number that high is a year, or the date it begins.
const FIRST_YEAR: i64 = 1970;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_is_older() {
        let own = Path::new("/var/log/web1.log");
        for (older, newer) in [
            ("web1.log.10.gz", "web1.log.9"),
            ("web1.2.log", "web1.1.log"),
            ("web1.log-20261121.gz", "web1.log-20261122"),
            ("web1.log-20261121", "web1.log-20261121-1795000000"),
            ("web1-2026-09-30.log", "web1-2026-10-01.log"),
        ] {
            let of = |name: &str| rank(own, &own.with_file_name(name)).unwrap();
            assert!(of(older) < of(newer), "{older} {newer}");
        }
        assert_eq!(rank(own, own), None);
    }

    #[test]
    fn rotated_names_are_told_from_others() {
        let own = Path::new("/var/log/app.log");
        for (name, expected) in [
            ("app.log.1", true),
            ("app.log-20261121", true),
            ("app-2026-11-21.log", true),
            ("app.1.log", true),
            ("app.log.1.gz", true),
            ("app.log-20261121.zst", true),
            ("app.log.gz", false),
            ("app.log.1.bz2", false),
            ("app.log.bak", false),
            ("app2.log", false),
            ("application.log", false),
        ] {
            assert_eq!(
                is_generation_of(own, &own.with_file_name(name)),
                expected,
                "{name}"
            );
        }
    }
}
