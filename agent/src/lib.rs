//! The agent: tails files and ships them, losing nothing.
//!
//! ```text
//! source ─▶ batch ─▶ [spool] ─▶ [shipper] ─▶ uplink ═ SL/1 ═▶ server
//! ```
//!
//! A library so that the simulation can drive the shipper over a link of its own, and fuzzers its
//! parsers.

mod clock;
mod commands;
pub mod config;
mod governor;
pub mod identity;
mod link;
mod production;
mod service;
pub mod shipper;
pub mod source;
pub mod spool;
mod status;
mod uplink;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = commands::Cli::parse();
    let filter = EnvFilter::try_from_env("SCRINIUM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            let _best_effort = writeln!(std::io::stderr(), "scrinium-agent: {error:#}");
            ExitCode::from(commands::exit_code(&error))
        }
    }
}
