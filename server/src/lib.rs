//! The server: receives logs, archives them encrypted, proves, searches and shows them.
//!
//! ```text
//! listener ─▶ session ─▶ ingest ─▶ archive ─▶ index ─▶ console
//! ```
//!
//! A library so that tests can drive its parsers.

mod accounts;
mod agents;
mod alarms;
mod archive;
mod audit;
mod backup;
mod bounds;
mod catalogue;
mod certificates;
mod clock;
mod commands;
pub mod config;
mod console;
mod control;
mod core;
mod evidence;
pub mod formats;
pub mod index;
mod ingest;
mod links;
mod listener;
mod local;
mod mail;
mod measure;
mod package;
mod policy;
mod present;
mod session;
mod silence;
#[cfg(test)]
mod simulation;
mod statistics;
mod stopped;
mod time;
mod verification;
mod volume;
mod wrap;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    // Libraries that ask for the process's provider get the one that everything here uses.
    drop(rustls::crypto::ring::default_provider().install_default());
    let cli = commands::Cli::parse();
    let filter = EnvFilter::try_from_env("SCRINIUM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    scrinium_segment::process::close_to_others();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            let code = if error.is::<commands::UsageError>() {
                2
            } else if error.is::<control::Refused>() {
                4
            } else {
                1
            };
            drop(commands::complain(&format!("scrinium-server: {error:#}")));
            ExitCode::from(code)
        }
    }
}
