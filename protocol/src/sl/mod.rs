//! SL/1, the Secure Log transfer protocol (`docs/SL.md`).
//!
//! ```text
//! preamble, handshake frames     [handshake]   Noise XKpsk3, next credential
//! records                        [record]      length check, AES-256-GCM or HMAC ([suite]), padding
//! messages                       [message]     what a record carries; [in_force]: an agent's settings in one of them
//! states of sources              [sources]     what a keep-alive says of them
//! sessions                       [session]     who may say what when; acks, window, keep-alive
//! ```

pub mod handshake;
pub mod in_force;
pub mod message;
pub mod noise;
pub mod record;
pub mod session;
pub mod sources;
pub mod suite;
