//! What proves years later that nothing was changed or taken away.
//!
//! ```text
//! every few minutes: [interval] where each stream stands ─▶ leaf of an RFC 6962 tree ─▶ root
//!                                                           signed [checkpoint] ─▶ copies elsewhere
//! ```
//!
//! A stream's head vouches for everything in it, a leaf for all heads, a checkpoint for all leaves: whoever
//! kept one checkpoint can tell whether an archive shown later is the one of that day.

pub mod checkpoint;
pub mod inclusion;
pub mod interval;
