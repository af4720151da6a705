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
    let sibling = &plain_name(sibling);
    let name = |path: &Path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .map(str::to_owned)
    };
    let (Some(own), Some(other)) = (name(path), name(sibling)) else {
        return false;
    };
    let is_suffix = |text: &str| {
        text.starts_with(['.', '-', '_'])
            && text.bytes().any(|byte| byte.is_ascii_digit())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || b".-_T".contains(&byte))
    };
    if let Some(suffix) = other.strip_prefix(&own) {
        return is_suffix(suffix);
    }
    let Some((stem, extension)) = own.rsplit_once('.') else {
        return false;
    };
    let middle = other
        .strip_prefix(stem)
        .and_then(|rest| rest.strip_suffix(&format!(".{extension}")));
    middle.is_some_and(is_suffix)
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

#[cfg(test)]
mod tests {
    use super::*;

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
