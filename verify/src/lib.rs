//! `scrinium-verify`: checks an export package without the server, without any secret.
//!
//! ```text
//! package ─▶ [tar], [table] ─▶ [manifest]: signature, digests ─▶ [evidence]: intervals, checkpoints, [token]s, certificates
//!                       └─▶ [walk]: batches and the log's text side by side ─▶ [package]: the verdict ─▶ [extract]
//! ```
//!
//! Says in plain words what is proven, and what is not.
//!
//! A library so that tests can drive its parser.

mod evidence;
mod extract;
mod gzip;
mod manifest;
pub mod package;
mod table;
mod tar;
pub mod token;
pub mod trust;
mod walk;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use scrinium_protocol::shown;

use self::trust::{Trust, TrustedKeys};

/// Checks a package exported by a Scrinium server; needs no server, no secret and no network.
///
/// Exit codes: 0 the package is whole; 3 it is not, or is no package; 1 it could not be read, or nothing could be written;
/// 2 wrong usage.
#[derive(Parser)]
#[command(
    version,
    name = "scrinium-verify",
    after_help = "Example: scrinium-verify scrinium-package.tar --trust KEYS --extract case"
)]
struct Cli {
    /// The package.
    package: PathBuf,
    /// File with the public keys that are trusted, got from elsewhere than the package: a key a line, and behind it the name
    /// it belongs to (of an agent, or "server"). With it every key of the package must be a trusted one.
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
    /// Certificates (PEM) of the time-stamp authorities that are believed.
    #[arg(long, value_name = "FILE")]
    tsa_ca: Option<PathBuf>,
    /// If the package is whole, write what was verified into this directory, unpacked; no file that is there is written over.
    #[arg(long, value_name = "DIR")]
    extract: Option<PathBuf>,
    #[arg(long)]
    json: bool,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            let _best_effort = writeln!(
                std::io::stderr(),
                "{}",
                shown::message(&format!("scrinium-verify: {error:#}"))
            );
            if error.is::<WrongTrust>() {
                return ExitCode::from(2);
            }
            ExitCode::FAILURE
        }
    }
}

/// A file of keys is not what it must be.
#[derive(Debug, thiserror::Error)]
#[error("--trust {path}: {reason}")]
struct WrongTrust {
    path: String,
    reason: String,
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let keys = cli.trust.as_deref().map(read).transpose()?;
    let keys = keys.map(|bytes| TrustedKeys::parse(&bytes)).transpose();
    let keys = keys.map_err(|error| WrongTrust {
        path: cli
            .trust
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
        reason: format!("{error:#}"),
    })?;
    let authorities = cli.tsa_ca.as_deref().map(read).transpose()?;
    let trust = Trust { keys, authorities };
    let opening = || format!("opening {}", cli.package.display());
    // What is no file might never end, or wait for somebody.
    let is_file = std::fs::metadata(&cli.package)
        .with_context(opening)?
        .is_file();
    ensure!(
        is_file,
        "{} is no file; give the package as a file",
        cli.package.display()
    );
    let file = File::open(&cli.package).with_context(opening)?;
    let checked = package::check(&file, &trust);
    let checked = checked.with_context(|| format!("reading {}", cli.package.display()))?;
    let verdict = &checked.verdict;
    let mut out = std::io::stdout();
    if cli.json {
        let verdict = serde_json::to_string_pretty(verdict)?;
        writeln!(out, "{}", shown::json(&verdict))?;
    } else {
        for line in &verdict.proven {
            writeln!(out, "proven:      {line}")?;
        }
        for line in &verdict.not_proven {
            writeln!(out, "not proven:  {line}")?;
        }
        for line in &verdict.problems {
            writeln!(out, "PROBLEM:     {line}")?;
        }
    }
    if let (true, Some(dir)) = (verdict.whole, &cli.extract) {
        let files = checked.extract(dir).context("extracting")?;
        if !cli.json {
            let dir = shown::name(&dir.display().to_string());
            writeln!(out, "extracted:   {files} files in {dir}")?;
        }
    }
    if !cli.json {
        let extracts = cli.extract.is_some();
        let end = match (verdict.whole, extracts) {
            (true, _) => "the package is whole",
            (false, false) => "the package is NOT whole",
            (false, true) => "the package is NOT whole; nothing was extracted",
        };
        writeln!(out, "{end}")?;
    }
    if verdict.whole {
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::from(3))
}

/// A small file of the user's.
fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path);
    let file = file.with_context(|| format!("reading {}", path.display()))?;
    file.take(SMALL_LEN_MAX + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("reading {}", path.display()))?;
    ensure!(
        bytes.len() as u64 <= SMALL_LEN_MAX,
        "{} is longer than {SMALL_LEN_MAX} bytes",
        path.display()
    );
    Ok(bytes)
}

const SMALL_LEN_MAX: u64 = 16 << 20;
