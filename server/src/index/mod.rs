//! Finding entries: prune by stream, time and token filter, then read and scan what is left.
//!
//! ```text
//! text ─▶ [query] ─▶ [turns] ─▶ extents of the archive ─▶ [filter] ─▶ [search]: decrypt, decompress, scan ─▶ [hits]
//! ```
//!
//! Filters are derived from the entries; without them a search is slower, never wrong.

pub(crate) mod cancelled;
pub mod filter;
mod foreign;
pub(crate) mod gate;
pub(crate) mod hits;
pub(crate) mod lines;
mod places;
pub mod query;
pub(crate) mod reading;
pub(crate) mod search;
pub(crate) mod turns;
pub(crate) mod words;
