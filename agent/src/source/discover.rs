//! What the sources name: by which globs, below which directories.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use regex::bytes::Regex;
use scrinium_protocol::identity::{StreamKind, StreamName};
use scrinium_protocol::kdf::sha256;
use scrinium_protocol::sl::message::STREAM_NAME_LEN_MAX;

use super::content::Packing;
use super::trust;
use crate::config::{Config, Deny, FileSource, split_fixed};

/// The globs, and where to look for what they match.
pub(crate) struct Discovery {
    sources: Vec<(PathBuf, FileSource)>,
    /// What they name, for the streams.
    named: Named,
    deny: Deny,
}

/// Whether a source names a path, unless that is forbidden.
pub(crate) type Named = Arc<dyn Fn(&Path) -> bool + Send + Sync>;

/// Whether a source names a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wanted {
    Yes,
    No,
    /// It does, and the configuration of this machine forbids it.
    Denied,
}

impl Discovery {
    pub(crate) fn new(config: &Config) -> Self {
        let sources = config
            .sources
            .iter()
            .map(|source| (fixed_part(&source.files.text), source.clone()));
        let (named, deny) = (config.sources.clone(), config.deny.clone());
        let named = move |path: &Path| {
            let is_named = |source| is_named_by(source, path);
            named.iter().any(is_named) && !deny.forbids(path)
        };
        Self {
            sources: sources.collect(),
            named: Arc::new(named),
            deny: config.deny.clone(),
        }
    }

    /// How many sources there are; each is known by its place.
    pub(crate) fn len(&self) -> usize {
        self.sources.len()
    }

    /// The globs of all sources.
    pub(super) fn globs(&self) -> impl Iterator<Item = &str> {
        let sources = self.sources.iter();
        sources.map(|(_, source)| &*source.files.text)
    }

    /// The glob of a source, as it is configured.
    pub(crate) fn glob(&self, source: usize) -> &str {
        let source = self.sources.get(source);
        source.map_or("", |(_, source)| &source.files.text)
    }

    /// What the sources name.
    pub(super) fn named(&self) -> Named {
        self.named.clone()
    }

    /// What begins an entry of several lines in the files of a source.
    pub(super) fn multiline(&self, source: usize) -> Option<Regex> {
        self.sources.get(source)?.1.multiline.clone()
    }

    /// The directory in which the files of a source lie, and how many levels below it.
    pub(super) fn area(&self, source: usize) -> (&Path, usize) {
        let Some((root, source)) = self.sources.get(source) else {
            return (Path::new("/"), 0);
        };
        let text = &source.files.text;
        let depth = match text.contains("**") {
            true => DEPTH_MAX,
            false => depth_of(root, text),
        };
        (root, depth)
    }

    /// Whether a source may name files that lie deeper than is looked.
    pub(super) fn goes_deeper(&self, source: usize) -> bool {
        self.glob(source).contains("**")
    }

    /// The one file that a source without special characters names: it is found without listing a directory.
    pub(super) fn literal(&self, source: usize) -> Option<PathBuf> {
        let (_, source) = self.sources.get(source)?;
        let text = &source.files.text;
        let special = |c: char| "*?[]{}!".contains(c) || (c == '\\' && cfg!(unix));
        (!text.contains(special)).then(|| Path::new(text).components().collect())
    }

    /// From where on links on the way to the file at a path are followed by their owners; `source` names it.
    pub(crate) fn root_of(&self, source: Option<usize>, path: &Path) -> PathBuf {
        match source.is_some_and(|source| self.follows_all_links(source)) {
            // Below the file there are no links.
            true => path.join("-"),
            false => trust::ROOT_DIR.into(),
        }
    }

    /// Whether a source follows links whoever made them.
    pub(super) fn follows_all_links(&self, source: usize) -> bool {
        let source = self.sources.get(source);
        source.is_some_and(|(_, source)| source.follows_all_links)
    }

    /// The first source that names the path, unless that is forbidden, be there a file or not.
    pub(crate) fn source_of(&self, path: &Path) -> Option<usize> {
        let mut sources = self.sources.iter();
        sources.position(|(_, source)| self.is_wanted_by(source, path))
    }

    /// Whether a source names the path and nobody forbids it, be there a file or not.
    pub(crate) fn wants(&self, path: &Path) -> bool {
        self.source_of(path).is_some()
    }

    /// Whether a source names the path and the configuration of this machine forbids it.
    pub(crate) fn is_denied(&self, path: &Path) -> bool {
        (0..self.len()).any(|source| self.wanted(source, path) == Wanted::Denied)
    }

    /// Whether this source names the path.
    pub(super) fn wanted(&self, source: usize, path: &Path) -> Wanted {
        match self.sources.get(source) {
            Some((_, source)) if is_named_by(source, path) => match self.deny.forbids(path) {
                true => Wanted::Denied,
                false => Wanted::Yes,
            },
            _ => Wanted::No,
        }
    }

    fn is_wanted_by(&self, source: &FileSource, path: &Path) -> bool {
        is_named_by(source, path) && !self.deny.forbids(path)
    }
}

fn is_named_by(source: &FileSource, path: &Path) -> bool {
    source.files.is_match(path)
        && !is_compressed(path)
        && !source.exclude.iter().any(|glob| glob.is_match(path))
}

/// The stream of a file.
pub(super) fn stream_of(path: &Path) -> StreamName {
    StreamName {
        kind: StreamKind::File,
        name: name_of(path),
    }
}

/// What the stream of a file is called: its path. Names that are no text stay apart from each other and from
/// all that are: each byte that is none is written as [`NO_TEXT`] and two digits, and so is that character
/// itself. One that is too long ends in what tells it from others that begin alike.
pub(super) fn name_of(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes();
    let mut name = String::with_capacity(bytes.len());
    let push_bytes = |name: &mut String, bytes: &[u8]| {
        for byte in bytes {
            name.push(NO_TEXT);
            let _infallible = write!(name, "{byte:02x}");
        }
    };
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character == NO_TEXT {
                push_bytes(&mut name, NO_TEXT.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                name.push(character);
            }
        }
        push_bytes(&mut name, chunk.invalid());
    }
    if name.len() > STREAM_NAME_LEN_MAX {
        let digest = sha256(&[bytes]);
        name.truncate(name.floor_char_boundary(STREAM_NAME_LEN_MAX - digest.len() * 5));
        push_bytes(&mut name, &digest);
    }
    name
}

/// Whether a file is named as a compressed one: its lines were collected before it was compressed.
fn is_compressed(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    Packing::of(path).is_some()
        || extension.is_some_and(|extension| COMPRESSED.contains(&extension))
}

/// The directories of a glob before its first special character.
pub(crate) fn fixed_part(text: &str) -> PathBuf {
    let (fixed, _) = split_fixed(text);
    // With the system's own separators: what is found below is called so, however the glob was written.
    let fixed = if fixed.is_empty() { "/" } else { fixed };
    Path::new(fixed).components().collect()
}

fn depth_of(root: &Path, text: &str) -> usize {
    let all = Path::new(text).components().count();
    all.saturating_sub(root.components().count()).max(1)
}

/// Compressed in ways we do not read.
const COMPRESSED: [&str; 6] = ["Z", "bz2", "lz4", "tgz", "xz", "zip"];
/// Levels below the directory in which a glob with `**` begins: programs do not nest their logs so deep, and whoever makes
/// directories without end keeps nobody waiting.
pub(super) const DEPTH_MAX: usize = 16;
/// Files followed at once.
pub(crate) const FILES_MAX: usize = 250_000;
/// When so many were found, further ones count only if they are no user's: no user keeps the system's own from being
/// collected.
pub(super) const FILES_OF_USERS_MAX: usize = FILES_MAX / 2;

/// The character that stands for what is none.
const NO_TEXT: char = char::REPLACEMENT_CHARACTER;

#[cfg(test)]
mod tests {
    use super::*;

    /// L5.
    #[cfg(unix)]
    #[test]
    fn names_that_are_no_text_or_too_long_stay_apart() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt as _;
        let name = |bytes: &[u8]| name_of(Path::new(OsStr::from_bytes(bytes)));
        assert_eq!(name("/log/\u{fc}.log".as_bytes()), "/log/\u{fc}.log");
        assert_eq!(name(b"/log/\xfc.log"), "/log/\u{fffd}fc.log");
        let looks_like = name("/log/\u{fffd}fc.log".as_bytes());
        assert_eq!(looks_like, "/log/\u{fffd}ef\u{fffd}bf\u{fffd}bdfc.log");
        let long = vec![b'x'; STREAM_NAME_LEN_MAX + 1];
        let longer = vec![b'x'; STREAM_NAME_LEN_MAX + 2];
        assert!(name(&long).len() <= STREAM_NAME_LEN_MAX && name(&long) != name(&longer));
        assert_eq!(name(&long[1..]).as_bytes(), &long[1..]);
    }

    #[test]
    fn the_walk_starts_where_the_glob_becomes_special() {
        assert_eq!(fixed_part("/var/log/**/*.log"), Path::new("/var/log"));
        assert_eq!(fixed_part("/var/log/syslog"), Path::new("/var/log"));
        assert_eq!(fixed_part("/*.log"), Path::new("/"));
        assert_eq!(depth_of(Path::new("/var/log"), "/var/log/*/x.log"), 2);
    }
}
