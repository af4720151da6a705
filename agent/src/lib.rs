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
mod ending;
mod governor;
pub mod identity;
mod inspect;
mod join;
mod link;
mod log;
mod production;
mod service;
pub mod shipper;
mod signals;
pub mod source;
pub mod spool;
mod status;
mod uplink;
mod upload;

use std::process::ExitCode;

use clap::Parser as _;
use scrinium_protocol::shown;
use scrinium_segment::say;

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    say::start();
    scrinium_segment::process::raise_descriptors();
    let cli = commands::Cli::parse();
    log::start();
    scrinium_segment::process::close_to_others();
    let code = match cli.run() {
        Ok(code) => code,
        Err(error) => {
            let said = shown::message(&format!("scrinium-agent: {error:#}"));
            say::put(format!("{said}\n").as_bytes());
            ExitCode::from(commands::exit_code(&error))
        }
    };
    say::flush();
    code
}
