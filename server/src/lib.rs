//! The server: receives logs, archives them encrypted, proves, searches and shows them.
//!
//! ```text
//! listener ─▶ session ─▶ ingest ─▶ archive ─▶ index ─▶ console
//! ```
//!
//! A library so that tests can drive its parsers.

mod absence;
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
mod der;
mod disk;
mod duties;
mod evidence;
pub mod formats;
mod health;
mod i18n;
pub mod index;
mod ingest;
mod links;
mod listener;
mod local;
mod mail;
mod markup;
mod measure;
mod notices;
mod package;
mod places;
mod policy;
mod present;
mod refusals;
mod ring;
mod said;
mod self_signed;
mod session;
mod silence;
#[cfg(test)]
mod simulation;
mod statistics;
mod stopped;
mod time;
mod times;
mod unsaid;
mod verification;
mod vital;
mod volume;
mod waits;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use scrinium_protocol::shown;
use scrinium_segment::say;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format;

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    allocator::share_arenas();
    say::start();
    scrinium_segment::process::raise_descriptors();
    // Libraries that ask for the process's provider get the one that everything here uses.
    drop(rustls::crypto::ring::default_provider().install_default());
    let cli = commands::Cli::parse();
    let filter = EnvFilter::try_from_env("SCRINIUM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| say::Stderr)
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
    let code = match cli.run() {
        Ok(code) => code,
        // Whoever reads what is printed has enough: `| head`. Secrets that are shown once may be among what was not read.
        Err(error) if error.is::<commands::OutputClosed>() => ExitCode::from(OUTPUT_CLOSED_CODE),
        Err(error) => {
            let code = if error.is::<commands::UsageError>() {
                2
            } else if error.is::<said::Refused>() {
                4
            } else if error.is::<vital::PartFell>() {
                vital::EXIT_CODE
            } else {
                1
            };
            commands::complain(&format!("scrinium-server: {error:#}"));
            ExitCode::from(code)
        }
    };
    say::flush();
    code
}

/// What a shell shows of a program that ended because nobody read what it printed: 128 and the number of SIGPIPE.
const OUTPUT_CLOSED_CODE: u8 = 141;
