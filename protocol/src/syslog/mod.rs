//! Syslog as it really arrives: framing over TCP, and what a message says of itself.

pub mod frame;
pub mod message;
