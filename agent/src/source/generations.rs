//! How rotation names old files: which names are generations of which.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::content::plain_name;

/// Whether `sibling` is named as rotation names old files: the same name with a number or a date
/// behind it or before its extension, compressed or not.
pub(super) fn is_generation_of(path: &Path, sibling: &Path) -> bool {
    suffix(path, sibling).is_some()
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
    let numbers = suffix.split(|byte| !byte.is_ascii_digit());
    let numbers = numbers.filter_map(|number| str::from_utf8(number).ok());
    let numbers: Vec<i64> = numbers.filter_map(|number| number.parse().ok()).collect();
    let is_date = numbers.first().is_some_and(|&first| first >= FIRST_YEAR);
    Some(match is_date {
        true => Rank::Date(numbers),
        // `app.log.old` is the latest of those that are left.
        false if numbers.is_empty() => Rank::Number(vec![-1]),
        false => Rank::Number(numbers.into_iter().map(|number| -number).collect()),
    })
}

/// What rotation put behind the name or before its extension. A name need not be text.
fn suffix(path: &Path, sibling: &Path) -> Option<Vec<u8>> {
    let sibling = &plain_name(sibling);
    let (own, other) = (path.file_name()?, sibling.file_name()?);
    let (own, other) = (own.as_encoded_bytes(), other.as_encoded_bytes());
    let is_suffix = |text: &&[u8]| {
        let is_number = matches!(text.first(), Some(b'.' | b'-' | b'_'))
            && text.iter().any(u8::is_ascii_digit)
            && text.iter().copied().all(is_of_a_time);
        is_number || OLD.iter().any(|old| *text == old.as_bytes())
    };
    let suffix = match other.strip_prefix(own) {
        Some(suffix) => suffix,
        None => {
            let (stem, extension) = split_extension(own)?;
            let middle = other.strip_prefix(stem)?;
            middle.strip_suffix(extension)?.strip_suffix(b".")?
        }
    };
    Some(suffix).filter(is_suffix).map(<[u8]>::to_vec)
}

/// A name before and behind its last dot.
fn split_extension(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let dot = name.iter().rposition(|byte| *byte == b'.')?;
    Some((name.get(..dot)?, name.get(dot + 1..)?))
}

/// What dates and times are written with: `2026-01-15T10:30:00Z`, `20260115-103000+01:00`.
fn is_of_a_time(byte: u8) -> bool {
    byte.is_ascii_digit() || b".-_:+TZ".contains(&byte)
}

/// The paths a file may have had before rotation gave it its name: `app.log` of `app.log.1`,
/// `app.log-20261121`, `app.1.log` and `app-2026-11-21.log`.
pub(super) fn bases_of(path: &Path) -> impl Iterator<Item = PathBuf> + use<'_> {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let strip = |text: &[u8]| {
        let stem = OLD.iter().find_map(|old| text.strip_suffix(old.as_bytes()));
        let end = text.iter().rposition(|byte| !is_of_a_time(*byte));
        let stem = stem.or_else(|| text.get(..end.map_or(0, |end| end + 1)));
        stem.unwrap_or_default().to_vec()
    };
    let inner =
        split_extension(name).map(|(stem, extension)| [&*strip(stem), b".", extension].concat());
    let bases = [Some(strip(name)), inner].into_iter().flatten();
    let bases = bases.filter_map(named);
    bases
        .map(|base| path.with_file_name(base))
        .filter(move |base| base != path && is_generation_of(base, path))
}

/// A name of these bytes.
#[cfg(unix)]
#[expect(
    clippy::unnecessary_wraps,
    reason = "elsewhere not all bytes are names"
)]
fn named(bytes: Vec<u8>) -> Option<OsString> {
    use std::os::unix::ffi::OsStringExt as _;
    Some(OsString::from_vec(bytes))
}

/// A name of these bytes, as far as they are text.
#[cfg(not(unix))]
fn named(bytes: Vec<u8>) -> Option<OsString> {
    String::from_utf8(bytes).ok().map(OsString::from)
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

    #[cfg(unix)]
    #[test]
    fn names_that_are_no_text_have_generations_too() {
        use std::os::unix::ffi::OsStrExt as _;
        let path = |name: &[u8]| Path::new(std::ffi::OsStr::from_bytes(name)).to_owned();
        let own = path(b"/log/\xfcber.log");
        for name in [&b"/log/\xfcber.log.1"[..], b"/log/\xfcber-2026-11-21.log"] {
            let old = path(name);
            assert!(is_generation_of(&own, &old) && bases_of(&old).any(|base| base == own));
        }
        assert!(
            rank(&own, &path(b"/log/\xfcber.log.2.gz")) < rank(&own, &path(b"/log/\xfcber.log.1"))
        );
        assert!(!is_generation_of(&own, &path(b"/log/\xfdber.log.1")));
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
