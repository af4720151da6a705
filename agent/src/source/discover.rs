//! Which files the globs match now.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::config::{Config, Pattern};

/// The globs, and where to look for what they match.
pub(crate) struct Discovery {
    sources: Vec<(PathBuf, Pattern)>,
    deny: Vec<Pattern>,
}

impl Discovery {
    pub(crate) fn new(config: &Config) -> Self {
        let sources = config
            .sources
            .iter()
            .map(|pattern| (fixed_part(&pattern.text), pattern.clone()));
        Self {
            sources: sources.collect(),
            deny: config.deny.clone(),
        }
    }

    /// The regular files that match a source and are not denied, by path.
    pub(crate) fn files(&self) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        for (root, pattern) in &self.sources {
            let depth = if pattern.text.contains("**") {
                DEPTH_MAX
            } else {
                depth_of(root, &pattern.text)
            };
            for entry in WalkDir::new(root)
                .max_depth(depth)
                .follow_links(true)
                .into_iter()
                .flatten()
            {
                let path = entry.path();
                if !pattern.matcher.is_match(path) || is_compressed(path) || self.is_denied(path) {
                    continue;
                }
                if entry.file_type().is_file() && found.len() < FILES_MAX {
                    found.insert(entry.into_path());
                }
            }
        }
        found
    }

    /// Whether the administrator of this machine forbids the path, or what it links to.
    fn is_denied(&self, path: &Path) -> bool {
        if self.deny.is_empty() {
            return false;
        }
        let real = std::fs::canonicalize(path);
        self.deny.iter().any(|pattern| {
            pattern.matcher.is_match(path)
                || real
                    .as_ref()
                    .is_ok_and(|real| pattern.matcher.is_match(real))
        })
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

/// Whether a file is named as a compressed one: its lines were collected before it was compressed.
fn is_compressed(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| COMPRESSED.contains(&extension))
}

/// The directories of a glob before its first special character.
fn fixed_part(text: &str) -> PathBuf {
    let special = text.find(['*', '?', '[', '{']).unwrap_or(text.len());
    let fixed = text.get(..special).unwrap_or_default();
    let end = fixed.rfind('/').map_or(0, |at| at.max(1));
    PathBuf::from(fixed.get(..end).unwrap_or("/"))
}

fn depth_of(root: &Path, text: &str) -> usize {
    let all = Path::new(text).components().count();
    all.saturating_sub(root.components().count()).max(1)
}

const COMPRESSED: [&str; 8] = ["Z", "bz2", "gz", "lz4", "tgz", "xz", "zip", "zst"];
const DEPTH_MAX: usize = 16;
/// Files followed at once.
const FILES_MAX: usize = 20_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walk_starts_where_the_glob_becomes_special() {
        assert_eq!(fixed_part("/var/log/**/*.log"), Path::new("/var/log"));
        assert_eq!(fixed_part("/var/log/syslog"), Path::new("/var/log"));
        assert_eq!(fixed_part("/*.log"), Path::new("/"));
        assert_eq!(depth_of(Path::new("/var/log"), "/var/log/*/x.log"), 2);
    }
}
