//! A disk that refuses: what is not sent waits in its source, what can be sent is, and the server is told.

use std::time::Instant;

use anyhow::Result;
use scrinium_segment::fault;
use tracing::{info, warn};

use super::Shipper;

impl Shipper {
    /// Makes the credential agreed in this session the one of the next, if it is not yet. A disk that
    /// does not take it does not end the session: the one before stays good until the server hears
    /// otherwise.
    pub(super) fn store_credential(&mut self, now: Instant) -> Result<()> {
        let Some(link) = self.link.as_mut().filter(|link| !link.is_rolled) else {
            return Ok(());
        };
        let state = &mut self.identity.state;
        let before = core::mem::replace(&mut state.credential, link.next_credential.clone());
        fault::point("agent: first record opened");
        if let Err(error) = self.identity.save() {
            self.identity.state.credential = before;
            self.note_disk(Err(error));
            return Ok(());
        }
        fault::point("agent: credential durable");
        // At this point the next credential is ours; if we die before saying so, the server learns it
        // from the next connection.
        link.is_rolled = true;
        link.session.send_credential_stored(now)?;
        Ok(())
    }

    /// What the server has needs no place on the disk; that it cannot be removed ends nothing.
    pub(super) fn remove_acked(&mut self) {
        let removed = self.spool.remove_acked();
        if removed.is_err() {
            self.note_disk(removed);
        }
    }

    /// After the disk refused something it is tried now and then, not with everything that comes.
    pub(super) fn probe_disk(&mut self) {
        if self.disk_problem.is_some() {
            let probed = self.spool.probe_disk();
            if self.note_disk(probed) {
                info!("the agent's disk takes data again");
            }
        }
    }

    /// Notes what the disk did with what it was to take; whether it took it.
    pub(super) fn note_disk(&mut self, outcome: Result<()>) -> bool {
        match outcome {
            Ok(()) => self.disk_problem = None,
            Err(error) => {
                let error = format!("{error:#}");
                if self.disk_problem.as_ref() != Some(&error) {
                    warn!(
                        error,
                        "the agent's disk does not take what it must; what is not sent waits in its source"
                    );
                    self.disk_problem = Some(error);
                }
            }
        }
        self.disk_problem.is_none()
    }
}
