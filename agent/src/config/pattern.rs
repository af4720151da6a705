//! Globs over absolute paths, compiled within bounds: a server sends them, too.

use std::borrow::Cow;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use globset::GlobBuilder;
use regex::bytes::{Regex, RegexBuilder};

/// A glob over absolute paths.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    pub(crate) text: String,
    matcher: Regex,
}

impl Pattern {
    /// Reads the pattern of a field.
    ///
    /// # Errors
    /// It is none, or costs too much; the error names the field.
    pub(super) fn new(field: &str, text: &str) -> Result<Self> {
        if !Path::new(text).is_absolute() {
            bail!("{field}: '{text}' must be an absolute path or glob");
        }
        if let Some(problem) = scrinium_protocol::bounds::glob_problem(text) {
            bail!("{field}: the pattern {problem}");
        }
        let glob = GlobBuilder::new(text)
            .literal_separator(true)
            .case_insensitive(cfg!(windows))
            .build();
        let glob = glob.with_context(|| format!("{field}: '{text}' is not a glob"))?;
        // As globset would, but for its 10 MiB of cache for each.
        let matcher = RegexBuilder::new(glob.regex())
            .dot_matches_new_line(true)
            .size_limit(SIZE_MAX)
            .dfa_size_limit(CACHE_MAX)
            .build();
        Ok(Self {
            text: text.to_owned(),
            matcher: matcher.with_context(|| format!("{field}: the pattern is too large"))?,
        })
    }

    pub(crate) fn is_match(&self, path: &Path) -> bool {
        self.matcher
            .is_match(&with_slashes(path.as_os_str().as_encoded_bytes()))
    }
}

/// With the one separator that globs know.
fn with_slashes(path: &[u8]) -> Cow<'_, [u8]> {
    let is_other = |byte: u8| byte != b'/' && std::path::is_separator(char::from(byte));
    if !path.iter().any(|byte| is_other(*byte)) {
        return path.into();
    }
    let slash = |byte: &u8| if is_other(*byte) { b'/' } else { *byte };
    path.iter().map(slash).collect::<Vec<u8>>().into()
}

/// The directories of a glob before its first special character, and what follows them.
pub(crate) fn split_fixed(text: &str) -> (&str, &str) {
    let special = text.find(SPECIAL).unwrap_or(text.len());
    let fixed = text.get(..special).unwrap_or_default();
    let end = fixed
        .rfind(std::path::is_separator)
        .map_or(0, |at| at.max(1));
    text.split_at_checked(end).unwrap_or((text, ""))
}

/// Whether the text means one path.
pub(super) fn is_path(text: &str) -> bool {
    !text.contains(SPECIAL)
}

const SPECIAL: [char; 4] = ['*', '?', '[', '{'];
/// Memory of one compiled pattern, in bytes: a path of 4096 bytes takes 200 KiB. It grows with the text and not
/// faster, so that the 60,000 bytes of a configuration from the server are some megabytes.
const SIZE_MAX: usize = 1 << 20;
/// Memory of one pattern at work, in bytes. Of the 1,024 patterns that a server may name it is 64 MiB at worst.
const CACHE_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_paths_and_stars_stay_in_their_directory() {
        for (pattern, path, expected) in [
            ("/var/log/**/*.log", "/var/log/x.log", true),
            ("/var/log/**/*.log", "/var/log/a/b/x.log", true),
            ("/var/log/*.log", "/var/log/a/x.log", false),
            ("/var/log/*.log", "/var/log/x.log.1", false),
            ("/var/log/**", "/var/log/a/b", true),
            ("/a/{b,c?}.[xy]", "/a/cd.y", true),
            ("/a/b", "/a/b/c", false),
            ("/a/*", "/a/new\nline", true),
        ] {
            let matches = Pattern::new("x", pattern)
                .unwrap()
                .is_match(Path::new(path));
            assert_eq!(matches, expected, "{pattern} {path}");
        }
        #[cfg(unix)]
        {
            use std::os::unix::ffi::OsStrExt as _;
            let path = Path::new(std::ffi::OsStr::from_bytes(b"/a/\xff.log"));
            assert!(Pattern::new("x", "/a/?.log").unwrap().is_match(path));
        }
        let longest = format!("/{}", "?".repeat(4095));
        assert!(Pattern::new("x", &longest).is_ok());
    }

    #[test]
    fn the_fixed_part_ends_before_the_directory_that_is_special() {
        assert_eq!(split_fixed("/var/log/**/*.log"), ("/var/log", "/**/*.log"));
        assert_eq!(split_fixed("/var/log/syslog"), ("/var/log", "/syslog"));
        assert_eq!(split_fixed("/*.log"), ("/", "*.log"));
        assert!(is_path("/var/log/x") && !is_path("/var/log/[x]"));
    }
}
