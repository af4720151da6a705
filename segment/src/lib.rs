//! Sealed append-only files: what the agent's spool and the server's archive are made of.
//!
//! ```text
//! spool ─┐                     ┌─ [writer] ─▶ file ─▶ [reader] ─┐
//!        ├─ key (bound to the  │     every record sealed,       ├─▶ records, or where they stop
//! log  ──┘   [machine]) ───────┘     a fresh key per segment    │
//! state of an agent ──▶ [slots] A/B ────────────────────────────┘
//! ```

#![forbid(unsafe_code)]

pub mod cipher;
pub mod durable;
pub mod fault;
mod format;
pub mod key;
pub mod lock;
pub mod machine;
#[cfg(unix)]
pub mod notify;
pub mod process;
pub mod reader;
pub mod say;
pub mod slots;
#[cfg(unix)]
pub mod systemd;
pub mod wrap;
pub mod writer;

pub use format::{
    Error, HEADER_LEN, Kind, Place, RECORD_LEN_MAX, RECORD_OVERHEAD, random, segment_name,
    segment_numbers,
};
