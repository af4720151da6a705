//! How recovery shares are given: each is a secret, and every user of a machine sees the words of a command.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Two different shares.
#[derive(clap::Args)]
pub(super) struct Shares {
    /// A file with recovery shares, one a line; `-` is standard input. Can be given more than once.
    #[arg(long = "share-file")]
    share_files: Vec<PathBuf>,
    /// A recovery share, seen by every user of this machine while the command runs; give two different ones. Without
    /// this and --share-file they are read from standard input.
    #[arg(long = "share")]
    shares: Vec<String>,
}

impl Shares {
    /// Those given; none may be.
    pub(super) fn read(&self) -> Result<Vec<String>> {
        let mut shares = self.shares.clone();
        for file in &self.share_files {
            shares.extend(lines_of(file)?);
        }
        Ok(shares)
    }

    /// Those given, else those of standard input.
    pub(super) fn read_or_ask(&self) -> Result<Vec<String>> {
        let shares = self.read()?;
        if shares.is_empty() {
            return lines_of(Path::new("-"));
        }
        Ok(shares)
    }

    /// Whether some are given.
    pub(super) fn are_given(&self) -> bool {
        !self.shares.is_empty() || !self.share_files.is_empty()
    }
}

fn lines_of(file: &Path) -> Result<Vec<String>> {
    let mut text = String::new();
    let read = match file == Path::new("-") {
        true => std::io::stdin()
            .take(FILE_LEN_MAX)
            .read_to_string(&mut text),
        false => std::fs::File::open(file)
            .and_then(|file| file.take(FILE_LEN_MAX).read_to_string(&mut text)),
    };
    read.with_context(|| format!("reading recovery shares from {}", file.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(str::to_owned).collect())
}

/// Bytes read of a file that is said to hold shares.
const FILE_LEN_MAX: u64 = 64 << 10;
