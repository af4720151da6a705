//! The verified bytes, as files: what was read is compared once more while it is written.
//!
//! ```text
//! DIR (0700)  manifest.json … stamped/DAY.tsr    the members of the package
//!             log.txt, entries.csv               the texts in those that are compressed
//! ```
//!
//! Nothing that is there is written over, and no link is followed. What fails leaves nothing behind.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::manifest::{PACKED, copy};
use crate::package::{Checked, Content};

impl Checked<'_> {
    /// Writes what a whole package holds into `dir`, which is made if it is not there. Returns how many files.
    ///
    /// # Errors
    /// The package is not whole, or changes while it is read; a file is there already, or cannot be written.
    pub fn extract(&self, dir: &Path) -> Result<usize> {
        let content = self.content.as_ref();
        let content = content.context("the package is not whole")?;
        let mut made = Made::default();
        let written = content.write(dir, &mut made);
        if let Err(error) = written {
            made.undo();
            return Err(error);
        }
        Ok(made.files.len())
    }
}

/// What was made so far.
#[derive(Default)]
struct Made {
    dirs: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl Made {
    /// Takes back what was made, as far as that is possible.
    fn undo(&self) {
        for file in &self.files {
            drop(std::fs::remove_file(file));
        }
        for dir in self.dirs.iter().rev() {
            drop(std::fs::remove_dir(dir));
        }
    }

    /// Makes a directory that only its owner may enter, or takes the one that is there.
    fn dir(&mut self, path: &Path) -> Result<()> {
        let mut builder = DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        match builder.create(path) {
            Ok(()) => self.dirs.push(path.to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let is_dir = std::fs::symlink_metadata(path)?.is_dir();
                ensure!(
                    is_dir,
                    "{} is there already and is no directory; name another",
                    path.display()
                );
            }
            Err(error) => {
                return Err(error).with_context(|| format!("creating {}", path.display()));
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        path: &Path,
        from: &mut dyn Read,
        expected: Option<(u64, String)>,
    ) -> Result<()> {
        let mut options = OpenOptions::new();
        // Never what is there, be it a link.
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options
            .open(path)
            .with_context(|| format!("creating {}, which must not be there yet", path.display()))?;
        self.files.push(path.to_owned());
        let found = copy(from, &mut file).and_then(|found| file.sync_all().map(|()| found));
        let found = found.with_context(|| format!("writing {}", path.display()))?;
        if expected.is_some_and(|expected| expected != found) {
            bail!("the package changed while it was read; check it again");
        }
        Ok(())
    }
}

impl Content<'_> {
    fn write(&self, dir: &Path, made: &mut Made) -> Result<()> {
        made.dir(dir)?;
        for member in &self.members {
            // The table of members allows these names alone: none leads out of the directory.
            let path = dir.join(&member.name);
            if let Some((subdirectory, _)) = member.name.split_once('/') {
                made.dir(&dir.join(subdirectory))?;
            }
            let expected = match &*member.name {
                "manifest.json" => Some(self.manifest_digest.clone()),
                "manifest.sig" => Some(self.signature_digest.clone()),
                name => self.manifest.digest_of(name),
            };
            made.file(&path, &mut self.tar.open(member), expected)?;
            if let Some(name) = member.name.strip_suffix(PACKED) {
                let mut text = self.manifest.text(&self.tar, member)?;
                let expected = self.manifest.text_digest_of(&member.name);
                made.file(&dir.join(name), &mut text, expected)?;
            }
        }
        Ok(())
    }
}
