//! What the state is bound to, once the program has proven itself.
//!
//! A state of version 0.1.0 is left as it is until batches have flowed for a while: until then the program before this one
//! opens it, should somebody go back to it. A new agent's binding learns of the server when it is enrolled.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::Shipper;

/// When the binding is looked after.
#[derive(Debug)]
pub(super) struct Migration {
    after: Duration,
    /// Not before.
    not_before: Option<Instant>,
    done: bool,
}

impl Default for Migration {
    fn default() -> Self {
        Self {
            after: MIGRATE_AFTER,
            not_before: None,
            done: false,
        }
    }
}

impl Shipper {
    /// Sets how long batches flow before a state of version 0.1.0 is taken over.
    pub fn set_migrate_after(&mut self, after: Option<Duration>) {
        self.migration.after = after.unwrap_or(MIGRATE_AFTER);
    }

    /// Makes the binding what it should be, when it is time.
    pub fn review_binding(&mut self, now: Instant) {
        let ready_since = self.link.as_ref().and_then(|link| link.ready_since);
        let Some(ready_since) = ready_since.filter(|_| !self.migration.done) else {
            return;
        };
        let after = match self.identity.is_of_0_1() {
            true => self.migration.after,
            false => Duration::ZERO,
        };
        let is_early = now < ready_since + after;
        if is_early || self.migration.not_before.is_some_and(|until| now < until) {
            return;
        }
        let was_of_0_1 = self.identity.is_of_0_1();
        match self.identity.renew_binding() {
            Ok(is_news) => {
                self.migration.done = true;
                if is_news && was_of_0_1 {
                    info!(
                        "the state was taken over: the program of version 0.1.0 opens it no more"
                    );
                }
            }
            Err(error) => {
                let error = format!("{error:#}");
                warn!(
                    error,
                    "what the state is bound to could not be written; trying again"
                );
                self.migration.not_before = Some(now + TRY_AGAIN);
            }
        }
    }
}

/// How long batches flow before a state of version 0.1.0 is taken over: as long as a configuration is on trial.
const MIGRATE_AFTER: Duration = Duration::from_secs(600);
/// A disk that refuses is asked again so often.
const TRY_AGAIN: Duration = Duration::from_secs(60);
