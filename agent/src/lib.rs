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
mod join;
mod link;
mod log;
mod production;
mod service;
pub mod shipper;
pub mod source;
pub mod spool;
mod status;
mod uplink;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use scrinium_protocol::shown;

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    scrinium_segment::process::raise_descriptors();
    let cli = commands::Cli::parse();
    log::start();
    scrinium_segment::process::close_to_others();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            let _best_effort = writeln!(
                std::io::stderr(),
                "{}",
                shown::message(&format!("scrinium-agent: {error:#}"))
            );
            ExitCode::from(commands::exit_code(&error))
        }
    }
}
