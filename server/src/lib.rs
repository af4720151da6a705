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
mod allocator;
mod answer;
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
mod markup;
mod measure;
mod package;
mod policy;
mod present;
mod refusals;
mod self_signed;
mod session;
mod silence;
#[cfg(test)]
mod simulation;
mod statistics;
mod stopped;
mod time;
mod verification;
mod vital;
mod volume;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use scrinium_protocol::shown;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format;

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    scrinium_segment::process::raise_descriptors();
    // Libraries that ask for the process's provider get the one that everything here uses.
    drop(rustls::crypto::ring::default_provider().install_default());
    let cli = commands::Cli::parse();
    let filter = EnvFilter::try_from_env("SCRINIUM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // A line is a line, whatever others called things.
        .fmt_fields(
            format::debug_fn(|writer, field, value| {
                writer.write_str(&shown::field(field.name(), value))
            })
            .delimited(" "),
        )
        .init();
    scrinium_segment::process::close_to_others();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            let code = if error.is::<commands::UsageError>() {
                2
            } else if error.is::<control::Refused>() {
                4
            } else if error.is::<vital::PartFell>() {
                vital::EXIT_CODE
            } else {
                1
            };
            drop(commands::complain(&format!("scrinium-server: {error:#}")));
            ExitCode::from(code)
        }
    }
}
