//! A double of the operating system's answers (`tests/refusals/refuse.c`): errors, and the clocks.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::has_tool;
use crate::lab::text;

/// The double, built in a directory.
#[derive(Clone, Debug)]
pub struct Refusals {
    library: PathBuf,
    rules: PathBuf,
}

impl Refusals {
    /// `None` where it cannot be built.
    #[must_use]
    pub fn build(dir: &Path) -> Option<Self> {
        if !has_tool("cc") {
            return None;
        }
        let library = dir.join("refuse.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/refusals/refuse.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(source)
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", text(&built.stderr));
        let refusals = Self {
            library,
            rules: dir.join("rules"),
        };
        refusals.rule("");
        Some(refusals)
    }

    /// From now on this is refused, in place of what was; in one step, so that nobody reads half of it.
    pub fn rule(&self, rule: &str) {
        let new = self.rules.with_extension("new");
        let mut file = File::create(&new).unwrap();
        writeln!(file, "{rule}").unwrap();
        #[expect(clippy::disallowed_methods, reason = "nothing of a test is durable")]
        std::fs::rename(new, &self.rules).unwrap();
    }

    /// What a process needs in its environment to be behind it.
    #[must_use]
    pub fn environment(&self) -> [(String, String); 2] {
        let variable = |name: &str, path: &Path| (name.to_owned(), path.display().to_string());
        [
            variable("LD_PRELOAD", &self.library),
            variable("REFUSE_RULES", &self.rules),
        ]
    }
}
