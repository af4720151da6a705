//! Everything that needs more than one crate: real programs, real sockets, real peers.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a step that fails is a test that fails"
)]

mod alarms;
mod as_it_is;
mod backup;
mod backup_elsewhere;
mod beside;
mod browser;
mod central;
mod ciphers;
mod clock;
mod conserved;
mod container;
mod demo;
mod descriptors;
mod earlier;
mod enrolment;
mod evidence;
mod export;
mod faults;
mod files;
mod flood;
mod fsck;
mod full_disk;
mod fuzz_corpus;
mod health;
mod hostile_agent;
mod hostile_session;
mod identity;
mod interop;
mod joining;
mod law;
mod link;
mod links;
mod machine;
mod machine_users;
mod misbehaving;
mod oracles;
mod outage;
mod package;
mod power;
mod properties;
mod refusals;
mod replies;
mod requests;
mod retention;
mod rotation;
mod said;
mod service;
mod signals;
mod signin;
mod soak;
mod sources;
mod spool;
mod states;
mod statistics;
mod stopped;
mod strangers;
mod structure;
mod syslog;
mod tamper;
mod terminals;
mod trail;
mod trust;
mod upkeep;
mod vectors;
mod way;
mod web;
mod windows;
