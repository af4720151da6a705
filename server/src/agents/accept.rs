//! Who may finish a handshake: credentials, machines, and what to do about copies.
//!
//! ```text
//! credential      next ─▶ proves it │ current │ superseded, recovery ─▶ quarantine, unless approved
//! machine         a few characteristics changed ─▶ written down │ more ─▶ quarantine, unless approved
//! another process of the agent is connected ─▶ refused, and an alarm when that one is still there
//! ```
//!
//! Invariants:
//! 1. What is refused here changes nothing that the incumbent needs: credential, session, fingerprint.
//! 2. An approval is for the machine that was seen, and ends with the first credential proven on it.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use data_encoding::HEXLOWER;
use scrinium_protocol::identity::AgentId;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::{AgentHello, Established, RefusalCode};
use scrinium_protocol::sl::suite::Suite;
use scrinium_segment::fault;
use tracing::warn;

use super::enrol::{check_use, new_agent};
use super::live::Limit;
use super::news::News;
use super::{Agents, Rival, State};
use crate::alarms::{AlarmKind, Raise};
use crate::catalogue::records::{AgentRecord, Quarantine, StoredSecret, TokenRecord};
use crate::clock;
use crate::said::{Arg, Said, said};

/// Why a handshake is refused; told to the agent in these words.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("this enrolment token is not known to the server")]
    UnknownToken,
    #[error("this enrolment token has expired; make a new one with: scrinium-server agent enroll")]
    ExpiredToken,
    #[error(
        "this enrolment token was already used; make a new one with: scrinium-server agent enroll"
    )]
    UsedToken,
    #[error(
        "this enrolment token was used as often as it may be; make a new one with: scrinium-server agent enroll NAME --uses N"
    )]
    UsedUpToken,
    #[error("this enrolment token was revoked; make a new one with: scrinium-server agent enroll")]
    RevokedToken,
    #[error("{0}; make a new token with: scrinium-server agent enroll")]
    Name(Said),
    #[error("this agent is not known to the server; enrol it again")]
    UnknownAgent,
    #[error("the credential or the token is wrong")]
    WrongCredential,
    #[error(
        "quarantined: {0}. An administrator lets it in on the agent's page, or with: scrinium-server agent approve NAME"
    )]
    Quarantined(Said),
    #[error("another process of this agent is connected; this one is let in when that one is gone")]
    InUse,
    #[error("this agent may not send in clear: scrinium-server agent integrity-only NAME --allow")]
    SuiteNotAllowed,
    #[error("this agent is disabled on the server")]
    Disabled,
    #[error("the server cannot write its catalogue now")]
    Unavailable,
}

impl Refused {
    /// The same for whoever reads an alarm.
    pub(crate) fn said(&self) -> Said {
        match self {
            Self::UnknownToken => said!("token.unknown"),
            Self::ExpiredToken => said!("token.expired"),
            Self::UsedToken => said!("token.used"),
            Self::UsedUpToken => said!("token.used_up"),
            Self::RevokedToken => said!("token.revoked"),
            Self::WrongCredential => said!("token.credential"),
            Self::Quarantined(why) => why.clone(),
            Self::Name(why) => said!("token.name", why.clone()),
            Self::UnknownAgent => said!("token.agent"),
            Self::InUse => said!("token.in_use"),
            Self::SuiteNotAllowed => said!("token.suite"),
            Self::Disabled => said!("token.disabled"),
            Self::Unavailable => said!("token.unavailable"),
        }
    }

    /// What an agent's program makes of it.
    pub(crate) fn code(&self) -> RefusalCode {
        match self {
            Self::WrongCredential => RefusalCode::Credential,
            Self::UnknownToken
            | Self::ExpiredToken
            | Self::UsedToken
            | Self::UsedUpToken
            | Self::RevokedToken
            | Self::Name(_)
            | Self::UnknownAgent
            | Self::Quarantined(_)
            | Self::InUse
            | Self::SuiteNotAllowed
            | Self::Disabled
            | Self::Unavailable => RefusalCode::Other,
        }
    }
}

/// Who may finish a handshake with which credential.
pub(crate) enum Candidate {
    Enrol(Box<TokenRecord>),
    Connect,
}

/// A finished handshake, to be accepted or refused.
pub(crate) struct Proven<'a> {
    pub(crate) suite: Suite,
    pub(crate) address: SocketAddr,
    pub(crate) static_public: &'a [u8; 32],
    /// The credential that was used.
    pub(crate) used: &'a Secret<32>,
    pub(crate) hello: &'a AgentHello,
    pub(crate) established: &'a Established,
}

/// An agent that was let in.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) agent: AgentRecord,
    pub(crate) enrolled: bool,
    /// The token that was used, as it is now.
    pub(crate) token: Option<TokenRecord>,
    /// Components of its machine that are other than before.
    pub(crate) changed: Vec<String>,
}

/// Which of an agent's secrets was used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Held {
    Next,
    Current,
    Superseded,
    Recovery,
}

impl Held {
    fn of(agent: &AgentRecord, used: &Secret<32>) -> Option<Self> {
        credentials_of(agent)
            .find(|(_, secret)| *secret == used)
            .map(|(held, _)| held)
    }
}

/// Every secret a handshake of `agent` may use, the likeliest first.
fn credentials_of(agent: &AgentRecord) -> impl Iterator<Item = (Held, &Secret<32>)> {
    let held = [
        (Held::Next, agent.credential_next.as_ref()),
        (Held::Current, Some(&agent.credential)),
        (Held::Superseded, agent.credential_superseded.as_ref()),
        (Held::Recovery, agent.recovery.as_ref()),
    ];
    held.into_iter()
        .filter_map(|(held, secret)| Some((held, &secret?.0)))
}

impl Agents {
    /// Finds who claims to connect with `static_public`, and the credentials to try, newest first.
    pub(crate) fn candidates(
        &self,
        token: Option<TokenRecord>,
        static_public: &[u8; 32],
    ) -> Result<(Candidate, Vec<Secret<32>>), Refused> {
        let state = self.lock();
        if let Some(token) = token {
            check_use(&state, &token, static_public)?;
            let psk = token.secret.0.clone();
            return Ok((Candidate::Enrol(Box::new(token)), vec![psk]));
        }
        let agent = agent_with(&state, static_public).ok_or(Refused::UnknownAgent)?;
        let credentials = credentials_of(agent).map(|(_, secret)| secret.clone());
        Ok((Candidate::Connect, credentials.collect()))
    }

    /// Accepts a finished handshake; makes the next credential durable. When this returns, records may
    /// leave.
    pub(crate) fn accept(
        &self,
        candidate: Candidate,
        proven: &Proven<'_>,
    ) -> Result<Accepted, Refused> {
        let mut state = self.lock();
        let (mut agent, token, changed) = match candidate {
            Candidate::Enrol(token) => {
                if proven.suite != Suite::Encrypted {
                    return Err(Refused::SuiteNotAllowed);
                }
                let (mut agent, token) = new_agent(&state, &token.id, proven)?;
                agent.fingerprint = hex_fingerprint(proven.hello);
                (agent, Some(token), Vec::new())
            }
            Candidate::Connect => {
                let (agent, changed) = self.admit(&mut state, proven)?;
                (agent, None, changed)
            }
        };
        let hello = proven.hello;
        agent.signing_public = hello.signing_public; // at enrolment; the same ever after
        agent.instance = hello.instance;
        agent.host_name.clone_from(&hello.host_name);
        agent.version.clone_from(&hello.version);
        agent.os.clone_from(&hello.os);
        fault::point("server: handshake proven");
        let written = self.catalogue.write(|changes| {
            changes.put(&agent)?;
            token.iter().try_for_each(|token| changes.put(token))
        });
        if let Err(error) = written {
            let error = format!("{error:#}");
            warn!(error, "an agent's credential could not be made durable");
            return Err(Refused::Unavailable);
        }
        fault::point("server: next credential durable");
        // At this point both credentials work; if we die now, the agent comes back with the one it has.
        let enrolled = token.is_some();
        if let Some(token) = &token {
            state.tokens.insert(token.id, token.clone());
        }
        state.agents.insert(agent.id, agent.clone());
        Ok(Accepted {
            agent,
            enrolled,
            token,
            changed,
        })
    }

    /// The agent as it will be when it is let in, and what changed of its machine.
    fn admit(
        &self,
        state: &mut State,
        proven: &Proven<'_>,
    ) -> Result<(AgentRecord, Vec<String>), Refused> {
        // Looked up again: another session of this agent may have moved it on meanwhile.
        let current = agent_with(state, proven.static_public).ok_or(Refused::UnknownAgent)?;
        let mut agent = current.clone();
        if !agent.enabled {
            return Err(Refused::Disabled);
        }
        if agent.id != proven.hello.agent {
            return Err(Refused::UnknownAgent);
        }
        if proven.suite == Suite::IntegrityOnly && !agent.integrity_only {
            return Err(Refused::SuiteNotAllowed);
        }
        let held = Held::of(&agent, proven.used).ok_or(Refused::WrongCredential)?;
        if agent.signing_public != proven.hello.signing_public {
            // What it signed before could no longer be verified. No agent of ours does that.
            return Err(Refused::WrongCredential);
        }
        let seen = hex_fingerprint(proven.hello);
        let is_connected = state.sessions.contains_key(&agent.id);
        if is_connected && agent.instance != proven.hello.instance {
            return Err(Refused::InUse);
        }
        let changed = changed_components(&agent.fingerprint, &seen);
        let reason = match held {
            Held::Superseded => Some(said!("quarantine.superseded")),
            Held::Recovery => Some(said!("quarantine.recovery")),
            Held::Next | Held::Current if changed.len() > self.changes_max => {
                Some(said!("quarantine.machine", changed.join(", ")))
            }
            Held::Next | Held::Current => None,
        };
        if let Some(reason) = reason {
            let is_approved = agent
                .quarantine
                .as_ref()
                .is_some_and(|quarantine| quarantine.approved && quarantine.fingerprint == seen);
            if !is_approved {
                let seen = waiting(proven, &reason, seen);
                return Err(self.quarantine(state, agent, reason, seen));
            }
            agent.restored |= matches!(held, Held::Superseded | Held::Recovery);
        }
        agent.fingerprint = seen;
        if held == Held::Next {
            prove_next(&mut agent);
        }
        agent.credential_next = Some(StoredSecret(proven.established.next_psk.clone()));
        Ok((agent, changed))
    }

    /// Writes down what was seen, for a person to decide about. Nothing else of the agent changes.
    pub(super) fn quarantine(
        &self,
        state: &mut State,
        mut agent: AgentRecord,
        reason: Said,
        seen: Quarantine,
    ) -> Refused {
        let is_new = agent.quarantine.as_ref().is_none_or(|known| {
            !known.is_because_of(&reason) || known.fingerprint != seen.fingerprint
        });
        if !is_new {
            return Refused::Quarantined(reason);
        }
        agent.quarantine = Some(seen);
        // Who shows another machine each time chooses how often that is: a person sees the last one, and after a restart the
        // last one that was written.
        let counted = state.over(agent.id, News::Quarantines);
        if counted > 0 {
            let said = said!("agent_says.machines", News::Quarantines.a_day(), counted);
            let live = state.live.entry(agent.id).or_default();
            live.reach(Limit::Machines, said);
        } else if let Err(error) = self.catalogue.put(&agent) {
            let error = format!("{error:#}");
            warn!(error, "a quarantine could not be made durable");
            return Refused::Unavailable;
        }
        state.agents.insert(agent.id, agent);
        Refused::Quarantined(reason)
    }

    /// Somebody was refused because the agent is connected, and it stayed connected: should it be heard
    /// again, there are two.
    pub(crate) fn note_rival(&self, id: AgentId, proven: &Proven<'_>) {
        let mut state = self.lock();
        if let Some(agent) = state.agents.get(&id) {
            let rival = rival(agent, proven, &hex_fingerprint(proven.hello));
            state.rivals.entry(id).or_insert(rival);
        }
    }

    /// Whose static key this is.
    pub(crate) fn with_static(&self, static_public: &[u8; 32]) -> Option<AgentId> {
        Some(agent_with(&self.lock(), static_public)?.id)
    }

    /// Lets in what waits in quarantine; only the machine that was seen, and only if that is what was
    /// seen at `since_us`, when that is said: it may have changed under a person's eyes.
    pub(crate) fn approve(&self, name: &str, since_us: Option<u64>) -> Result<()> {
        self.change(name, |agent| {
            let quarantine = agent.quarantine.as_mut();
            let quarantine =
                quarantine.with_context(|| format!("nothing waits for approval as '{name}'"))?;
            anyhow::ensure!(
                since_us.is_none_or(|since_us| since_us == quarantine.since_us),
                "somebody else waits for approval by now; look again"
            );
            quarantine.approved = true;
            Ok(())
        })?;
        Ok(())
    }

    /// The agent says it holds the next credential: the one before is superseded.
    pub(crate) fn credential_stored(&self, id: AgentId, next: &Secret<32>) -> Result<()> {
        let mut state = self.lock();
        let Some(agent) = state.agents.get_mut(&id) else {
            return Ok(());
        };
        if agent
            .credential_next
            .as_ref()
            .is_some_and(|held| held.0 == *next)
        {
            let mut moved = agent.clone();
            prove_next(&mut moved);
            fault::point("server: credential stored heard");
            self.catalogue.put(&moved)?;
            fault::point("server: credential superseded");
            *agent = moved;
        }
        Ok(())
    }

    /// Notes a refusal, so that a person sees it on the agent's row; returns the alarm it deserves.
    pub(crate) fn note_refusal(
        &self,
        id: AgentId,
        refused: &Refused,
        address: SocketAddr,
    ) -> Option<Raise> {
        let mut state = self.lock();
        let agent = state.agents.get(&id)?.clone();
        let live = state.live.entry(agent.id).or_default();
        let incumbent = live.address.map_or_else(
            || Arg::from(said!("token.nowhere")),
            |at| at.to_string().into(),
        );
        let reason = refused.said();
        if !matches!(refused, Refused::InUse) {
            live.trouble = Some(said!("token.from", reason.clone(), address.to_string()));
            live.refused = true;
        }
        let kind = match refused {
            Refused::Quarantined(_) => AlarmKind::IdentityUsedTwice,
            Refused::WrongCredential => AlarmKind::WrongCredential,
            Refused::UnknownToken
            | Refused::ExpiredToken
            | Refused::UsedToken
            | Refused::UsedUpToken
            | Refused::RevokedToken
            | Refused::UnknownAgent
            | Refused::InUse
            | Refused::SuiteNotAllowed
            | Refused::Disabled
            | Refused::Name(_)
            | Refused::Unavailable => return None,
        };
        Some(Raise {
            kind,
            agent: agent.name,
            text: said!(
                "alarm_text.refused",
                reason.clone(),
                address.to_string(),
                incumbent,
                &agent.host_name
            ),
            // Another reason is another alarm; another address is not, and neither is another set of what changed: whoever
            // asks chooses that.
            key: reason.id,
        })
    }
}

/// What a person is to decide about.
pub(super) fn waiting(
    proven: &Proven<'_>,
    reason: &Said,
    fingerprint: Vec<(String, String)>,
) -> Quarantine {
    Quarantine {
        reason: reason.clone().into(),
        address: proven.address.to_string(),
        host_name: proven.hello.host_name.clone(),
        fingerprint,
        since_us: clock::unix_us(),
        approved: false,
    }
}

fn agent_with<'a>(state: &'a State, static_public: &[u8; 32]) -> Option<&'a AgentRecord> {
    state
        .agents
        .values()
        .find(|agent| agent.static_public == *static_public)
}

fn rival(agent: &AgentRecord, proven: &Proven<'_>, seen: &[(String, String)]) -> Rival {
    let changed = changed_components(&agent.fingerprint, seen);
    Rival {
        address: proven.address,
        host_name: proven.hello.host_name.clone(),
        differs: if changed.is_empty() {
            "with the same fingerprint".to_owned()
        } else {
            format!("with another {}", changed.join(", "))
        },
        heard_us: None,
    }
}

pub(super) fn hex_fingerprint(hello: &AgentHello) -> Vec<(String, String)> {
    let components = hello.fingerprint.iter();
    components
        .map(|(name, hash)| (name.clone(), HEXLOWER.encode(hash)))
        .collect()
}

/// Names of the known components that are gone or other now. New ones say nothing about the old machine.
pub(super) fn changed_components(
    known: &[(String, String)],
    seen: &[(String, String)],
) -> Vec<String> {
    let changed = known.iter().filter(|component| !seen.contains(component));
    changed.map(|(name, _)| name.clone()).collect()
}

/// n+1 was proven: it becomes n, and n is superseded. What was let in by approval is the agent now.
fn prove_next(agent: &mut AgentRecord) {
    if let Some(next) = agent.credential_next.take() {
        let before = core::mem::replace(&mut agent.credential, next);
        agent.credential_superseded = Some(before);
        agent.generation += 1;
        if agent
            .quarantine
            .as_ref()
            .is_some_and(|quarantine| quarantine.approved)
        {
            agent.quarantine = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::catalogue::Catalogue;

    /// Whoever shows an identity with another machine each time has a person see the last one, and the disk a few.
    #[test]
    fn very_many_machines_that_wait_for_approval_are_a_few_writes_and_a_sum() {
        let path =
            std::env::temp_dir().join(format!("scrinium-machines-{}.db", std::process::id()));
        drop(std::fs::remove_file(&path));
        let key = Secret::new([1; 32]);
        let catalogue = Arc::new(Catalogue::create(&path, &key).unwrap());
        catalogue.put(&AgentRecord::named("web1", 1, 0)).unwrap();
        let agents = Agents::load(catalogue.clone(), 0).unwrap();
        let id = AgentId([1; 16]);
        let reason = said!("quarantine.machine", "disk");
        for n in 1..=1000 {
            let mut state = agents.lock();
            let seen = Quarantine {
                reason: reason.clone().into(),
                address: "192.0.2.1:5".into(),
                host_name: "evil".into(),
                fingerprint: vec![("disk".into(), n.to_string())],
                since_us: n,
                approved: false,
            };
            // Shown again it says nothing new.
            for _ in 0..2 {
                let agent = state.agents[&id].clone();
                let refused = agents.quarantine(&mut state, agent, reason.clone(), seen.clone());
                assert!(matches!(refused, Refused::Quarantined(_)), "{refused}");
            }
        }
        let written = catalogue.load::<AgentRecord>().unwrap().remove(0);
        assert_eq!(
            written.quarantine.unwrap().since_us,
            News::Quarantines.a_day()
        );
        let state = agents.lock();
        let seen = state.agents[&id].quarantine.clone().unwrap();
        assert_eq!(seen.since_us, 1000);
        drop(state);
        let sums = agents.news_due(true);
        assert_eq!(sums.iter().map(|sum| sum.count).sum::<u64>(), 976);
        std::fs::remove_file(path).unwrap();
    }
}
