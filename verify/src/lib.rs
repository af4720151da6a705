//! `scrinium-verify`: checks an export package without the server, without any secret.
//!
//! ```text
//! package ─▶ [tar] ─▶ manifest, its signature, every digest ─▶ [evidence]: intervals, checkpoints, [token]s, certificates
//!                 └─▶ [walk]: batches and log.txt side by side ─▶ [package]: the verdict
//! ```
//!
//! Says in plain words what is proven, and what is not.
//!
//! A library so that tests can drive its parser.

mod evidence;
pub mod package;
mod tar;
pub mod token;
mod walk;

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;

use self::package::Trust;

/// Checks a package exported by a Scrinium server; needs no server, no secret and no network.
#[derive(Parser)]
#[command(
    version,
    name = "scrinium-verify",
    after_help = "Example: scrinium-verify scrinium-package.tar --trust agent.key"
)]
struct Cli {
    /// The package.
    package: PathBuf,
    /// File with public keys (64 hexadecimal digits, one a line) of the agent, the server or both, got from
    /// elsewhere than the package.
    #[arg(long)]
    trust: Option<PathBuf>,
    /// Certificates (PEM) of the time-stamp authorities that are believed.
    #[arg(long)]
    tsa_ca: Option<PathBuf>,
    #[arg(long)]
    json: bool,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            let _best_effort = writeln!(std::io::stderr(), "scrinium-verify: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let mut file =
        File::open(&cli.package).with_context(|| format!("opening {}", cli.package.display()))?;
    let read =
        |path: &PathBuf| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    let keys = cli.trust.as_ref().map(read).transpose()?.map(|text| {
        let text = String::from_utf8_lossy(&text).into_owned();
        text.split_whitespace().map(str::to_owned).collect()
    });
    let trust = Trust {
        keys,
        authorities: cli.tsa_ca.as_ref().map(read).transpose()?,
    };
    let verdict = package::check(&mut file, &trust)?;
    let mut out = std::io::stdout();
    if cli.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&verdict)?)?;
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
        writeln!(
            out,
            "{}",
            if verdict.whole {
                "the package is whole"
            } else {
                "the package is NOT whole"
            }
        )?;
    }
    if verdict.whole {
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::from(3))
}
