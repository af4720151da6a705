//! What travels, and nothing that moves it.
//!
//! ```text
//! agent  source ─▶ entries ─▶ [batch: Merkle root, chain head, signature] ─▶ [sl: records] ═▶ server
//! gear   syslog bytes ─▶ [syslog: frames, messages] ─▶ server
//! ```
//!
//! No socket, clock, file, thread or random source lives here: bytes, time and randomness are
//! arguments, so a test is a loop and an hour takes a millisecond.

#![forbid(unsafe_code)]

pub mod aead;
pub mod batch;
pub mod bounds;
pub mod codec;
pub mod compress;
pub mod entry;
pub mod error;
pub mod evidence;
pub mod excerpt;
pub mod identity;
pub mod kdf;
pub mod merkle;
pub mod route;
pub mod secret;
pub mod shown;
pub mod signature;
pub mod sl;
pub mod syslog;
pub mod token;

pub use error::{Error, InvalidMessage, PeerMisbehaved};
