//! Configurations from the server: verified, checked, made durable, in force, answered, in this order.

use std::time::{Duration, Instant};

use anyhow::Result;
use ed25519_dalek::VerifyingKey;
use scrinium_protocol::sl::message::{Configuration, ConfigurationAnswer};
use tracing::{info, warn};

use super::{Link, Order, Shipper};
use crate::identity::{Central, Trial};

impl Shipper {
    /// How long a configuration may keep the server out of reach before it is taken back.
    pub fn set_revert_after(&mut self, revert_after: Duration) {
        self.revert_after = revert_after;
    }

    /// Looks at the configuration on trial: it is good once a session has lasted with it, and taken back
    /// when none has for too long. To be called now and then, whether there is a link or not.
    pub fn review_configuration(&mut self, now: Instant) {
        let Some(trial) = &self.identity.state.trial else {
            return;
        };
        if self.disk_problem.is_some() {
            return; // nothing can be decided that lasts
        }
        let since = *self.trial_since.get_or_insert(now);
        let proves = |link: &Link| {
            let begun = link.ready_since?.max(since);
            let lasts = now.duration_since(begun) >= link.session.keep_alive() * PROOF_KEEP_ALIVES;
            // The server waits for a long record on a narrow way; that it never came whole is no proof.
            let carries = link.in_flight.is_empty() || link.acked_at.is_some_and(|at| at >= begun);
            Some(lasts && carries)
        };
        let is_proven = self.link.as_ref().and_then(proves).unwrap_or(false);
        // A session that has yet to last is waited for: it lasts, or breaks.
        let is_early = now.duration_since(since) < self.revert_after || self.is_ready();
        if !is_proven && is_early {
            return;
        }
        let previous = trial.previous.clone();
        let state = &self.identity.state;
        let kept = if is_proven {
            self.put_in_force(state.central.clone(), None, None)
        } else {
            let bad = state.central.as_ref().map(|bad| bad.version);
            self.put_in_force(previous.clone(), None, bad)
        };
        if kept.is_err() {
            self.note_disk(kept);
            return;
        }
        self.trial_since = None;
        if !is_proven {
            warn!(
                version = self.identity.state.reverted,
                "the server was out of reach with the configuration it sent: the one before is in force again"
            );
            let text = previous.map(|previous| previous.text);
            self.orders.push_back(Order::Configure(text));
        }
    }

    /// Makes durable what is in force, what may be gone back to, and what was; changes nothing if that fails.
    fn put_in_force(
        &mut self,
        central: Option<Central>,
        trial: Option<Trial>,
        reverted: Option<u64>,
    ) -> Result<()> {
        let state = &mut self.identity.state;
        let before = (
            core::mem::replace(&mut state.central, central),
            core::mem::replace(&mut state.trial, trial),
            core::mem::replace(&mut state.reverted, reverted),
        );
        let saved = self.identity.save();
        if saved.is_err() {
            let state = &mut self.identity.state;
            (state.central, state.trial, state.reverted) = before;
        }
        saved
    }

    /// Tells the server that what it believes to be in force is not; it may not know yet.
    pub(super) fn tell_reverted(&mut self, now: Instant) -> Result<()> {
        let Some(version) = self.identity.state.reverted else {
            return Ok(());
        };
        if let Some(link) = &mut self.link {
            let rejected = Some(REVERTED.into());
            let answer = ConfigurationAnswer { version, rejected };
            link.session.send_configuration_answer(answer, now)?;
        }
        Ok(())
    }

    /// Applies a configuration, or says why not.
    pub(super) fn handle_configuration(
        &mut self,
        wanted: Configuration,
        now: Instant,
    ) -> ConfigurationAnswer {
        let state = &self.identity.state;
        let in_force = state.central.as_ref().map_or(0, |central| central.version);
        let key = state.server_signing.as_ref();
        let key = key.and_then(|key| VerifyingKey::from_bytes(key).ok());
        let is_signed = key.is_some_and(|key| wanted.verify(state.agent, &key).is_ok());
        let checked = (self.check)(&wanted.text);
        let mut rejected = if !is_signed {
            Some(
                "it is not signed, for this agent, by the server this agent was enrolled with"
                    .into(),
            )
        } else if wanted.version < in_force {
            Some(format!("it is older than the one in force, {in_force}"))
        } else if state
            .reverted
            .is_some_and(|reverted| wanted.version <= reverted)
            && wanted.version != in_force
        {
            Some(REVERTED.into())
        } else if let Err(error) = &checked {
            Some(format!("{error:#}"))
        } else {
            None
        };
        if rejected.is_none() && wanted.version > in_force {
            let previous = state.central.clone();
            // Of several on trial none is known to be good but the one before the first.
            let trial = state.trial.clone().unwrap_or(Trial { previous });
            let (version, text) = (wanted.version, wanted.text.clone());
            let saved = self.put_in_force(Some(Central { version, text }), Some(trial), None);
            if let Err(error) = &saved {
                rejected = Some(format!("the agent's disk does not take it: {error:#}"));
                self.note_disk(saved);
            } else {
                self.trial_since = Some(now);
            }
        }
        if rejected.is_none() {
            // At this point it outlives us; if we die before answering, the server sends it again.
            self.orders.push_back(Order::Configure(Some(wanted.text)));
        }
        let version = wanted.version;
        info!(version, rejected, "a configuration came from the server");
        ConfigurationAnswer { version, rejected }
    }
}

/// A session that lasted so many keep-alives is one that lasts: a server that hears nothing for three ends it.
const PROOF_KEEP_ALIVES: u32 = 8;
const REVERTED: &str = "the server was out of reach with it; the one before it is in force again";

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use scrinium_protocol::identity::AgentId;

    use super::super::REVERT_AFTER;
    use super::super::tests::shipper;
    use super::*;

    /// Never back to an older one, never one of another signer or for another agent.
    #[test]
    fn k3_a_configuration_is_refused_for_its_signer_its_agent_its_age_and_its_text() {
        let dir = std::env::temp_dir().join(format!("scrinium-shipper-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        let (mut shipper, server) = shipper(&dir);
        let agent = shipper.state().agent;
        let now = crate::clock::now();
        let mut answer = |configuration| shipper.handle_configuration(configuration, now);

        let stranger = SigningKey::from_bytes(&[66; 32]);
        let forged = answer(Configuration::new(9, "fine".into(), agent, &stranger));
        assert!(forged.rejected.unwrap().contains("not signed"));
        let foreign = Configuration::new(9, "fine".into(), AgentId([2; 16]), &server);
        assert!(answer(foreign).rejected.unwrap().contains("not signed"));
        let bad = answer(Configuration::new(5, "bad".into(), agent, &server));
        assert_eq!(bad.rejected.as_deref(), Some("the text is bad"));
        let good = Configuration::new(7, "fine".into(), agent, &server);
        assert_eq!(answer(good.clone()).rejected, None);
        // Asked again because the answer was lost: the same answer.
        assert_eq!(answer(good).rejected, None);
        let older = answer(Configuration::new(6, "fine".into(), agent, &server));
        assert!(older.rejected.unwrap().contains("older"));
        let central = shipper.state().central.clone().unwrap();
        assert_eq!((central.version, central.text.as_str()), (7, "fine"));
        drop(shipper);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    /// K2, with the clock in hand.
    #[test]
    fn a_configuration_that_keeps_the_server_out_of_reach_is_taken_back_and_one_that_does_not_stays()
     {
        let dir = std::env::temp_dir().join(format!("scrinium-revert-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        let (mut shipper, server) = shipper(&dir);
        let agent = shipper.state().agent;
        let mut now = crate::clock::now();
        let configuration =
            |version, text: &str| Configuration::new(version, text.into(), agent, &server);
        let told = |shipper: &mut Shipper| {
            let orders = std::iter::from_fn(|| shipper.poll_order());
            let texts = orders.filter_map(|order| match order {
                Order::Configure(text) => Some(text),
                Order::Start { .. } | Order::Rewind { .. } => None,
            });
            texts.collect::<Vec<_>>()
        };
        let answer = shipper.handle_configuration(configuration(1, "fine"), now);
        assert_eq!(answer.rejected, None);
        now += REVERT_AFTER - Duration::from_millis(1);
        shipper.review_configuration(now);
        assert_eq!(told(&mut shipper), [Some("fine".to_owned())]);
        // Two on trial: back to before the first of them.
        let answer = shipper.handle_configuration(configuration(2, "fine too"), now);
        assert_eq!(answer.rejected, None);
        assert_eq!(shipper.state().trial, Some(Trial { previous: None }));
        now += REVERT_AFTER;
        shipper.review_configuration(now);
        assert_eq!(told(&mut shipper), [Some("fine too".to_owned()), None]);
        assert_eq!(shipper.state().central, None);
        // The server did not hear of it, and sends it once more; the next version is another matter.
        let again = shipper.handle_configuration(configuration(2, "fine too"), now);
        assert!(again.rejected.unwrap().contains("out of reach"));
        let next = shipper.handle_configuration(configuration(3, "fine"), now);
        assert_eq!(next.rejected, None);
        assert_eq!(shipper.state().reverted, None);
        drop(shipper);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
