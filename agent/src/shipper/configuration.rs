//! Configurations from the server: verified, checked, made durable, taken up by the thread that collects,
//! answered, in this order.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use ed25519_dalek::VerifyingKey;
use scrinium_protocol::identity::{Epoch, Sequence, StreamId};
use scrinium_protocol::sl::in_force::Setting;
use scrinium_protocol::sl::message::{Configuration, ConfigurationAnswer};
use tracing::{info, warn};

use super::{Check, Order, REVERT_AFTER, Shipper};
use crate::identity::{Central, Trial};

/// How a configuration on trial does.
#[derive(Debug)]
pub(super) struct Progress {
    since: Instant,
    /// Batches that the spool had taken when it came: later ones are new since then.
    taken: u64,
    /// What each stream waited for when its time was up, as long as it waits.
    waiting: Option<BTreeMap<StreamId, (Epoch, Sequence)>>,
}

impl Progress {
    fn new(since: Instant, taken: u64) -> Self {
        Self {
            since,
            taken,
            waiting: None,
        }
    }
}

impl Shipper {
    /// How long a configuration may keep the server out of reach before it is taken back; ten minutes if nobody
    /// says.
    pub fn set_revert_after(&mut self, revert_after: Option<Duration>) {
        self.revert_after = revert_after.unwrap_or(REVERT_AFTER);
    }

    /// Checks what comes from now on by this: the machine's own configuration is another one.
    pub fn set_check(&mut self, check: Check) {
        self.check = check;
    }

    /// What is in force from now on. The server is told when the sources took it up, and in each session.
    pub fn set_in_force(&mut self, settings: Vec<Setting>) {
        self.in_force = settings;
    }

    /// Looks at the configuration on trial. It is good once entries were acked that are new since it came, and so
    /// was what each stream waited for when its time was up. It is taken back when its time is up and the link is
    /// gone. To be called now and then, whether there is a link or not.
    pub fn review_configuration(&mut self, now: Instant) {
        let Some(trial) = &self.identity.state.trial else {
            return;
        };
        if self.disk_problem.is_some() {
            return; // nothing can be decided that lasts
        }
        let (taken, acked) = self.spool.progress();
        let progress = self.trial.get_or_insert_with(|| Progress::new(now, taken));
        if now.duration_since(progress.since) < self.revert_after {
            return;
        }
        let spool = &self.spool;
        let waiting = progress.waiting.get_or_insert_with(|| spool.fronts());
        waiting.retain(|stream, front| spool.waits(*stream, *front));
        // That a session lasts proves nothing: keep-alives pass where a batch never comes whole.
        let is_proven = acked > progress.taken && waiting.is_empty();
        // While there is a link it may still be proven: what is on its way arrives, or the link breaks.
        if !is_proven && self.is_ready() {
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
        self.trial = None;
        if !is_proven {
            warn!(
                version = self.identity.state.reverted,
                "the server was out of reach with the configuration it sent: it is taken back"
            );
            let text = previous.map(|previous| previous.text);
            let answers = None;
            self.orders.push_back(Order::Configure { text, answers });
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

    /// Why the configuration of the server is not in force, or not all of it; none when it is. The server is told.
    pub fn set_refused(&mut self, reason: Option<String>) {
        if let Some(reason) = &reason {
            warn!(
                reason,
                "the configuration of the server does not fit this machine"
            );
        }
        self.refused = reason;
    }

    /// Tells the server what is in force; that what it believes to be is not, which it may not know yet.
    pub(super) fn tell_in_force(&mut self, now: Instant) -> Result<()> {
        let state = &self.identity.state;
        let central = state.central.as_ref().map(|central| central.version);
        let reverted = state
            .reverted
            .map(|version| (version, self.reverted_said()));
        let (version, rejected) = match reverted.or_else(|| central.zip(self.refused.clone())) {
            Some((version, reason)) => (version, Some(reason)),
            // Of no configuration: whether the last one was taken up is said when it was.
            None => (0, None),
        };
        self.answer_configuration(version, rejected, now)
    }

    /// That a configuration was taken back, and what is in force since: of the one before it perhaps nothing, when this
    /// version of the agent, or this machine's own configuration, no longer takes it.
    fn reverted_said(&self) -> String {
        let before = self.identity.state.central.is_some();
        match &self.refused {
            Some(refused) if before => format!("{OUT_OF_REACH}. Of the one before it, {refused}"),
            Some(_) | None if before => {
                format!("{OUT_OF_REACH}; the one before it is in force again")
            }
            Some(_) | None => {
                format!("{OUT_OF_REACH}; this machine's own configuration is in force again")
            }
        }
    }

    /// The thread that collects has taken up a configuration: of this version, or this machine's own one, read
    /// again.
    ///
    /// # Errors
    /// The connection is over.
    pub fn handle_configured(&mut self, version: Option<u64>, now: Instant) -> Result<()> {
        let in_force = self.identity.state.central.as_ref();
        match version {
            Some(version) if in_force.is_some_and(|central| central.version == version) => {
                self.answer_configuration(version, self.refused.clone(), now)
            }
            // The machine's own; or that one was taken back or replaced meanwhile, and what is in force then has an
            // answer of its own.
            _ => self.tell_in_force(now),
        }
    }

    /// Without a session the server asks again in the next one.
    pub(super) fn answer_configuration(
        &mut self,
        version: u64,
        rejected: Option<String>,
        now: Instant,
    ) -> Result<()> {
        let answer = ConfigurationAnswer {
            version,
            rejected,
            in_force: self.in_force.clone(),
        };
        if let Some(link) = self.link.as_mut().filter(|link| link.ready_since.is_some()) {
            link.session.send_configuration_answer(answer, now)?;
        }
        Ok(())
    }

    /// Orders a configuration, or says why not.
    pub(super) fn handle_configuration(
        &mut self,
        wanted: Configuration,
        now: Instant,
    ) -> Option<String> {
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
            Some(self.reverted_said())
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
                self.trial = Some(Progress::new(now, self.spool.progress().0));
            }
        }
        let version = wanted.version;
        info!(version, rejected, "a configuration came from the server");
        if rejected.is_none() {
            self.refused = None;
            // At this point it outlives us; if we die before answering, the server sends it again.
            self.orders.push_back(Order::Configure {
                text: Some(wanted.text),
                answers: Some(version),
            });
            return None;
        }
        rejected
    }
}

const OUT_OF_REACH: &str = "the server was out of reach with it";

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use scrinium_protocol::batch::{BatchBuilder, StreamPosition};
    use scrinium_protocol::compress::{AGENT_LEVEL, Compressor};
    use scrinium_protocol::entry::{EntryFlags, EntryMeta};
    use scrinium_protocol::identity::{AgentId, StreamKind, StreamName};

    use super::super::Produced;
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
        assert!(forged.unwrap().contains("not signed"));
        let foreign = Configuration::new(9, "fine".into(), AgentId([2; 16]), &server);
        assert!(answer(foreign).unwrap().contains("not signed"));
        let bad = answer(Configuration::new(5, "bad".into(), agent, &server));
        assert_eq!(bad.as_deref(), Some("the text is bad"));
        let good = Configuration::new(7, "fine".into(), agent, &server);
        assert_eq!(answer(good.clone()), None);
        // Asked again because the answer was lost: the same answer.
        assert_eq!(answer(good), None);
        let older = answer(Configuration::new(6, "fine".into(), agent, &server));
        assert!(older.unwrap().contains("older"));
        // Nothing was answered yet: the thread that collects says when it has taken it up.
        let ordered = std::iter::from_fn(|| shipper.poll_order());
        let answers = ordered.filter_map(|order| match order {
            Order::Configure { answers, .. } => Some(answers),
            Order::Start { .. } | Order::Rewind { .. } => None,
        });
        assert_eq!(answers.collect::<Vec<_>>(), [Some(7), Some(7)]);
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
                Order::Configure { text, .. } => Some(text),
                Order::Start { .. } | Order::Rewind { .. } => None,
            });
            texts.collect::<Vec<_>>()
        };
        let answer = shipper.handle_configuration(configuration(1, "fine"), now);
        assert_eq!(answer, None);
        now += REVERT_AFTER - Duration::from_millis(1);
        shipper.review_configuration(now);
        assert_eq!(told(&mut shipper), [Some("fine".to_owned())]);
        // Two on trial: back to before the first of them.
        let answer = shipper.handle_configuration(configuration(2, "fine too"), now);
        assert_eq!(answer, None);
        assert_eq!(shipper.state().trial, Some(Trial { previous: None }));
        now += REVERT_AFTER;
        shipper.review_configuration(now);
        assert_eq!(told(&mut shipper), [Some("fine too".to_owned()), None]);
        assert_eq!(shipper.state().central, None);
        // The server did not hear of it, and sends it once more; the next version is another matter.
        let again = shipper.handle_configuration(configuration(2, "fine too"), now);
        assert!(again.unwrap().contains("out of reach"));
        let next = shipper.handle_configuration(configuration(3, "fine"), now);
        assert_eq!(next, None);
        assert_eq!(shipper.state().reverted, None);
        // One that was good before, and that this version of the agent, or this machine, no longer takes.
        shipper
            .put_in_force(shipper.state().central.clone(), None, None)
            .unwrap();
        let answer = shipper.handle_configuration(configuration(4, "fine too"), now);
        assert_eq!(answer, None);
        shipper.review_configuration(now);
        now += REVERT_AFTER;
        shipper.review_configuration(now);
        assert_eq!(told(&mut shipper).last(), Some(&Some("fine".to_owned())));
        shipper.set_refused(Some("only this machine's own is in force: why".to_owned()));
        let again = shipper.handle_configuration(configuration(4, "fine too"), now);
        let said = again.unwrap();
        assert!(
            said.contains("out of reach")
                && said.contains("only this machine's own is in force: why"),
            "{said}"
        );
        drop(shipper);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    /// Sessions that last prove nothing, and neither does what was collected before.
    #[test]
    fn acknowledged_entries_that_are_new_prove_a_configuration_and_nothing_else_does() {
        let cases = [
            // acked before its time was up: old entries, new ones; what waits then is acked after it
            (true, false, true, false),
            (true, true, false, false),
            (false, false, true, false),
            (true, true, true, true),
        ];
        for (old, new, late, stays) in cases {
            let dir = std::env::temp_dir().join(format!("scrinium-proof-{}", std::process::id()));
            drop(std::fs::remove_dir_all(&dir));
            let (mut shipper, server) = shipper(&dir);
            let agent = shipper.state().agent;
            let now = crate::clock::now();
            let up = now + REVERT_AFTER;
            shipper.take(produced(agent, "old"));
            let sent = Configuration::new(1, "fine".into(), agent, &server);
            assert_eq!(shipper.handle_configuration(sent, now), None);
            shipper.take(produced(agent, "new"));
            shipper.take(produced(agent, "late"));
            let ack = |shipper: &mut Shipper, name: &str| {
                let stream = StreamId::derive(agent, StreamKind::File, name);
                shipper.spool.ack(stream, Sequence(1));
            };
            if old {
                ack(&mut shipper, "old");
            }
            if new {
                ack(&mut shipper, "new");
            }
            shipper.review_configuration(up - Duration::from_millis(1));
            assert!(shipper.state().trial.is_some());
            if late {
                // Everything that waited at the end arrives.
                let progress = shipper.trial.as_mut().unwrap();
                progress.waiting = Some(shipper.spool.fronts());
                ack(&mut shipper, "late");
            }
            shipper.review_configuration(up);
            let kept = shipper.state().central.is_some();
            assert_eq!(kept, stays, "{old} {new} {late}");
            assert_eq!(shipper.state().trial, None);
            drop(shipper);
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }

    fn produced(agent: AgentId, name: &str) -> Produced {
        let name = StreamName {
            kind: StreamKind::File,
            name: name.into(),
        };
        let stream = StreamId::derive(agent, name.kind, &name.name);
        let mut builder = BatchBuilder::new();
        let meta = EntryMeta {
            time_us: 1,
            flags: EntryFlags::NONE,
        };
        assert!(builder.push(b"line\n", meta));
        let start = StreamPosition::start(agent, stream, Epoch([5; 16]));
        let key = SigningKey::from_bytes(&[2; 32]);
        let mut compressor = Compressor::new(AGENT_LEVEL);
        let (batch, _) = builder.seal(stream, &start, Vec::new(), &key, &mut compressor);
        Produced {
            name,
            rewinds: 0,
            batch,
        }
    }
}
