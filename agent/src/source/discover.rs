//! Which files the globs match now.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use regex::bytes::Regex;
use scrinium_protocol::kdf::sha256;
use scrinium_protocol::sl::message::STREAM_NAME_LEN_MAX;
use walkdir::{DirEntry, WalkDir};

use super::content::Packing;
#[cfg(unix)]
use super::disk::RealDisk;
#[cfg(unix)]
use super::trust;
use crate::config::{Config, Deny, FileSource};

/// The globs, and where to look for what they match.
pub(crate) struct Discovery {
    sources: Vec<(PathBuf, FileSource)>,
    deny: Deny,
}

/// What the globs match now.
#[derive(Default)]
pub(crate) struct Found {
    /// Files, each with what begins its entries if they have several lines.
    pub(crate) files: BTreeMap<PathBuf, Option<Regex>>,
    /// Links that are not followed, and why.
    pub(crate) refused: BTreeMap<PathBuf, String>,
}

impl Discovery {
    pub(crate) fn new(config: &Config) -> Self {
        let sources = config
            .sources
            .iter()
            .map(|source| (fixed_part(&source.files.text), source.clone()));
        Self {
            sources: sources.collect(),
            deny: config.deny.clone(),
        }
    }

    /// The regular files that match a source and are not denied, by path.
    pub(crate) fn files(&self) -> BTreeSet<PathBuf> {
        self.look().files.into_keys().collect()
    }

    /// The same, each with what begins its entries if they have several lines. The first source that
    /// names a file says so.
    pub(crate) fn look(&self) -> Found {
        let mut found = Found::default();
        for (root, source) in &self.sources {
            let pattern = &source.files;
            let depth = if pattern.text.contains("**") {
                DEPTH_MAX
            } else {
                depth_of(root, &pattern.text)
            };
            let refused = &mut found.refused;
            let walk = WalkDir::new(root).max_depth(depth).follow_links(true);
            let walk = walk.into_iter().filter_entry(|entry| {
                let is_wanted =
                    entry.file_type().is_dir() || self.is_wanted_by(source, entry.path());
                is_wanted && (source.follows_all_links || follows(entry, root, refused))
            });
            for entry in walk.flatten() {
                if !entry.file_type().is_file() {
                    continue;
                }
                if found.files.len() < FILES_MAX && !found.files.contains_key(entry.path()) {
                    let path = entry.into_path();
                    found.files.insert(path, source.multiline.clone());
                }
            }
        }
        found
    }

    /// Below which directory the first source that names the path follows links by their owners.
    pub(crate) fn root_of(&self, path: &Path) -> PathBuf {
        let mut sources = self.sources.iter();
        let names_it = sources.find(|(_, source)| self.is_wanted_by(source, path));
        let parent = || path.parent().unwrap_or(path).to_owned();
        names_it.map_or_else(parent, |(root, source)| match source.follows_all_links {
            // Below the file there are no links.
            true => path.join("-"),
            false => root.clone(),
        })
    }

    /// Whether a source names the path and nobody forbids it, be there a file or not.
    pub(crate) fn wants(&self, path: &Path) -> bool {
        let mut sources = self.sources.iter();
        sources.any(|(_, source)| self.is_wanted_by(source, path))
    }

    fn is_wanted_by(&self, source: &FileSource, path: &Path) -> bool {
        source.files.matcher.is_match(path)
            && !is_compressed(path)
            && !source
                .exclude
                .iter()
                .any(|glob| glob.matcher.is_match(path))
            && !self.deny.forbids(path)
    }

    /// The directories in which matching files lie or may appear.
    pub(crate) fn directories(&self, files: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
        let parents = files
            .iter()
            .filter_map(|path| path.parent().map(Path::to_owned));
        let roots = self
            .sources
            .iter()
            .map(|(root, _)| root.clone())
            .filter(|root| root.is_dir());
        roots.chain(parents).collect()
    }
}

/// Whether an entry is no link, or one that is followed; else it is noted.
#[cfg(unix)]
fn follows(entry: &DirEntry, root: &Path, refused: &mut BTreeMap<PathBuf, String>) -> bool {
    if entry.depth() == 0 || !entry.path_is_symlink() {
        return true;
    }
    match trust::leads_to(&RealDisk::default(), entry.path(), root) {
        Err(error) if trust::is_refusal(&error) => {
            if refused.len() < REFUSED_MAX {
                refused.insert(entry.path().to_owned(), error.to_string());
            }
            false
        }
        // Whatever else is wrong with it is said when it is opened.
        _ => true,
    }
}

/// Links have no owners that could be compared.
#[cfg(not(unix))]
fn follows(_entry: &DirEntry, _root: &Path, _refused: &mut BTreeMap<PathBuf, String>) -> bool {
    true
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
    let special = text.find(['*', '?', '[', '{']).unwrap_or(text.len());
    let fixed = text.get(..special).unwrap_or_default();
    let end = fixed
        .rfind(std::path::is_separator)
        .map_or(0, |at| at.max(1));
    // With the system's own separators: what is found below is called so, however the glob was written.
    Path::new(fixed.get(..end).unwrap_or("/"))
        .components()
        .collect()
}

fn depth_of(root: &Path, text: &str) -> usize {
    let all = Path::new(text).components().count();
    all.saturating_sub(root.components().count()).max(1)
}

/// Compressed in ways we do not read.
const COMPRESSED: [&str; 6] = ["Z", "bz2", "lz4", "tgz", "xz", "zip"];
const DEPTH_MAX: usize = 16;
/// Links that are noted in one look; see the same of all looks.
const REFUSED_MAX: usize = 1000;
/// Files followed at once.
pub(crate) const FILES_MAX: usize = 250_000;

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
