//! How rotation names old files: which names are generations of which.

use std::path::{Path, PathBuf};

use super::content::plain_name;
use super::disk::Disk;
use super::trust;

/// Whether `sibling` is named as rotation names old files: the same name with a number or a date
/// behind it or before its extension, compressed or not.
pub(super) fn is_generation_of(path: &Path, sibling: &Path) -> bool {
    suffix(path, sibling).is_some()
}

/// What the file system calls the generations of a file.
pub(super) fn numbers_of(disk: &dyn Disk, path: &Path) -> Vec<u64> {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    let names = match (path.parent(), stem) {
        (Some(dir), Some(stem)) => {
            let root = Path::new(trust::ROOT_DIR);
            disk.names((dir, root), stem, 0, false).unwrap_or_default()
        }
        _ => Vec::new(),
    };
    let names = names
        .into_iter()
        .filter(|name| is_generation_of(path, &name.path));
    names.map(|name| name.inode).collect()
}

/// Where the name of a generation puts it among the others, the oldest first.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Rank {
    /// The highest number is the oldest: numbers below 0, the lowest first.
    Number(Vec<i64>),
    /// The earliest date is the oldest.
    Date(Vec<i64>),
}

/// The rank of a generation; `None` when it is none.
pub(super) fn rank(path: &Path, sibling: &Path) -> Option<Rank> {
    let suffix = suffix(path, sibling)?;
    let numbers = suffix.split(|c: char| !c.is_ascii_digit());
    let numbers: Vec<i64> = numbers.filter_map(|number| number.parse().ok()).collect();
    let is_date = numbers.first().is_some_and(|&first| first >= FIRST_YEAR);
    Some(match is_date {
        true => Rank::Date(numbers),
        // `app.log.old` is the latest of those that are left.
        false if numbers.is_empty() => Rank::Number(vec![-1]),
        false => Rank::Number(numbers.into_iter().map(|number| -number).collect()),
    })
}

/// What rotation put behind the name or before its extension.
fn suffix(path: &Path, sibling: &Path) -> Option<String> {
    let sibling = &plain_name(sibling);
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    let (own, other) = (name(path)?, name(sibling)?);
    let is_suffix = |text: &&str| {
        let is_number = text.starts_with(['.', '-', '_'])
            && text.bytes().any(|byte| byte.is_ascii_digit())
            && text.bytes().all(is_of_a_time);
        is_number || OLD.contains(text)
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

/// What dates and times are written with: `2026-01-15T10:30:00Z`, `20260115-103000+01:00`.
fn is_of_a_time(byte: u8) -> bool {
    byte.is_ascii_digit() || b".-_:+TZ".contains(&byte)
}

/// The paths a file may have had before rotation gave it its name: `app.log` of `app.log.1`,
/// `app.log-20261121`, `app.1.log` and `app-2026-11-21.log`.
pub(super) fn bases_of(path: &Path) -> impl Iterator<Item = PathBuf> + use<'_> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let strip = |text: &str| {
        let stem = OLD.iter().find_map(|old| text.strip_suffix(old));
        let is_of_a_time = |c: char| u8::try_from(c).is_ok_and(is_of_a_time);
        let stem = stem.unwrap_or_else(|| text.trim_end_matches(is_of_a_time));
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

/// Names of the one old file that some keep.
const OLD: [&str; 1] = [".old"];
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
            (
                "web1.log.2026-01-15T10:30:00Z",
                "web1.log.2026-01-15T10:30:01Z",
            ),
            ("web1.log.2", "web1.log.old"),
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
            ("app.log.old", true),
            ("app.log.2026-01-15T10:30:00Z", true),
            ("app.log.20260115-103000+01:00", true),
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
