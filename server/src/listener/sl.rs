//! Accepts agents: what [`super::doors`] let in shakes hands, then has a session task of its own; or asks for a key,
//! which is a word and its answer.

mod asking;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use data_encoding::HEXLOWER;
use scrinium_protocol::identity::AgentId;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::{
    AgentHello, Established, ExpectAgentHello, ExpectAgentStart, FRAME_HEAD_LEN, FrameHead,
    PREAMBLE_HEAD_LEN, Preamble, Purpose, ServerHello, refusal_frame,
};
use scrinium_protocol::sl::noise::KeyPair;
use scrinium_protocol::sl::suite::Suite;
use scrinium_segment::random;
use scrinium_syslog::accept;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::agents::{Accepted, News, Proven, Refused};
use crate::alarms::{AlarmKind, MORE, Raise};
use crate::audit::Actor;
use crate::catalogue::records::TokenRecord;
use crate::core::Core;
use crate::listener::seats::NoSeat;
use crate::refusals::{self, Refusal, What};
use crate::said::said;
use crate::{clock, session};

/// Accepts until the task is dropped.
pub(crate) async fn run(core: Arc<Core>, suite: Suite, listener: TcpListener) {
    let mut sessions = JoinSet::new();
    loop {
        let (stream, address) = tokio::select! {
            accepted = accept(&listener, &core.doors.sl) => accepted,
            Some(_) = sessions.join_next() => continue,
        };
        let Some(half_open) = core.doors.sl.admit(address.ip(), clock::now()) else {
            debug!(%address, "not admitted");
            continue;
        };
        let session = match core.doors.sessions.take(address.ip()) {
            Ok(session) => session,
            Err(NoSeat::Full) => {
                core.doors.sl.note_full();
                continue;
            }
            Err(NoSeat::OverShare) => {
                core.doors.sl.note_over_share();
                continue;
            }
        };
        let core = core.clone();
        sessions.spawn(async move {
            drop(stream.set_nodelay(true));
            let mut stream = stream;
            // Boxed: what a handshake needs is not kept by the session after it.
            let handshake = Box::pin(handshake(&core, suite, &mut stream, address));
            let handshake = tokio::time::timeout(HANDSHAKE_MAX, handshake);
            let handshake = tokio::select! {
                ended = handshake => ended,
                () = half_open.displaced() => {
                    debug!(%address, "a handshake made room for another");
                    return;
                }
            };
            if matches!(handshake, Ok(Ok(_))) {
                half_open.prove(clock::now());
            }
            drop(half_open);
            match handshake {
                Ok(Ok(None)) => debug!(%address, "a key was given"),
                Ok(Ok(Some((accepted, established)))) => {
                    session::run(core, stream, address, accepted, established).await;
                }
                Ok(Err(error)) => {
                    debug!(%address, error = format!("{error:#}"), "a handshake failed");
                }
                Err(_) => debug!(%address, "a handshake took too long"),
            }
            drop(session);
        });
    }
}

async fn handshake(
    core: &Core,
    suite: Suite,
    stream: &mut TcpStream,
    address: SocketAddr,
) -> Result<Option<(Accepted, Established)>> {
    let mut preamble = [0; PREAMBLE_HEAD_LEN].to_vec();
    stream.read_exact(&mut preamble).await?;
    let head = preamble
        .first_chunk()
        .context("the preamble has its length")?;
    let hint_len = Preamble::hint_len(head, suite)?;
    preamble.resize(PREAMBLE_HEAD_LEN + hint_len, 0);
    stream
        .read_exact(preamble.get_mut(PREAMBLE_HEAD_LEN..).unwrap_or_default())
        .await?;

    let frame = read_frame(stream).await?;
    let ephemeral = KeyPair::from_secret(&Secret::new(random()?));
    let expect = ExpectAgentStart::new(suite, &preamble, core.noise.clone(), ephemeral);
    let (purpose, send) = expect.handle(&frame)?;

    let token = match purpose {
        Purpose::Connect | Purpose::Ask { .. } => Ok(None),
        Purpose::Enrol { token } => {
            let _place = core.at_work.take().await;
            core.agents.check_token(&token).map(Some)
        }
    };
    let token = match token {
        Ok(token) => token,
        Err(refused) => {
            note_token(core, &refused, address).await;
            let reason = refused.to_string();
            let (answer, _) = send.answer(&ServerHello::Refused { reason })?;
            stream.write_all(&answer).await?;
            bail!("{refused}");
        }
    };
    let is_enrolment = token.is_some();
    let time_us = clock::unix_us();
    let (answer, expect) = send.answer(&ServerHello::Welcome { time_us })?;
    stream.write_all(&answer).await?;

    let frame = read_frame(stream).await?;
    let static_public = expect.claimed_static(&frame)?;
    let arrival = Arrival {
        suite,
        address,
        static_public: &static_public,
    };
    if let Purpose::Ask { agent } = purpose {
        let granted = asking::grant(core, &arrival, agent, &frame, expect).await;
        return match granted {
            Ok((key, established)) => {
                asking::answer(core, stream, &arrival, agent, key, established).await?;
                Ok(None)
            }
            Err(refused) => refuse(core, stream, Some(agent), &refused, address).await,
        };
    }
    let accepted = finish(core, &arrival, token, &frame, expect).await;
    match accepted {
        Ok((accepted, established)) => {
            if accepted.enrolled {
                let agent = &accepted.agent;
                info!(agent = %agent.id, "enrolled an agent");
                let mut detail = json!({ "agent": agent.name, "address": address.to_string() });
                let of_many = accepted.token.as_ref().filter(|token| token.uses_max > 1);
                if let (Some(token), Some(detail)) = (of_many, detail.as_object_mut()) {
                    detail.insert("token".into(), HEXLOWER.encode(&token.id).into());
                    detail.insert("uses".into(), token.uses.into());
                    detail.insert("uses_max".into(), token.uses_max.into());
                    detail.insert("host".into(), agent.host_name.clone().into());
                }
                let replaced = accepted
                    .token
                    .as_ref()
                    .is_some_and(|token| token.replaces != [0; 16]);
                let action = if replaced { "replaced" } else { "enrolled" };
                let by = Actor::of("agent");
                core.unsaid.tell(&by, action, detail).await;
            }
            note_changes(core, &accepted, address).await;
            Ok(Some((accepted, established)))
        }
        Err(refused) if is_enrolment => {
            note_token(core, &refused, address).await;
            let frame = refusal_frame(refused.code(), &refused.to_string());
            stream.write_all(&frame).await?;
            bail!("{refused}");
        }
        Err(refused) => {
            let agent = core.agents.with_static(&static_public);
            refuse(core, stream, agent, &refused, address).await
        }
    }
}

/// Tells an agent that it is not let in, and people who must hear of it.
async fn refuse<T>(
    core: &Core,
    stream: &mut TcpStream,
    agent: Option<AgentId>,
    refused: &Refused,
    address: SocketAddr,
) -> Result<T> {
    warn!(%address, reason = %refused, "refused an agent");
    let detail = json!({ "reason": refused.to_string(), "address": address.to_string() });
    note_refused(core, What::Agent, "refused", detail, address).await;
    let raise = agent.and_then(|agent| core.agents.note_refusal(agent, refused, address));
    if let Some(raise) = raise {
        core.alarms.raise_from(raise, address.ip()).await;
    }
    let frame = refusal_frame(refused.code(), &refused.to_string());
    stream.write_all(&frame).await?;
    bail!("{refused}");
}

/// Who comes, before it is known whether it is who it says.
struct Arrival<'a> {
    suite: Suite,
    address: SocketAddr,
    static_public: &'a [u8; 32],
}

/// Takes frame 3. An agent that was started again comes before the end of its last connection may
/// have been noticed: it is given a moment.
async fn finish(
    core: &Core,
    arrival: &Arrival<'_>,
    token: Option<TokenRecord>,
    frame: &[u8],
    expect: ExpectAgentHello,
) -> Result<(Accepted, Established), Refused> {
    let static_public = arrival.static_public;
    let place = core.at_work.take().await;
    let (_, credentials) = core.agents.candidates(token.clone(), static_public)?;
    drop(place);
    let (hello, used, established) = expect
        .handle(frame, &credentials)
        .map_err(|_| Refused::WrongCredential)?;
    let proven = arrival.proven(&credentials, used, &hello, &established)?;
    let accepted = unless_in_use(core, || {
        let (candidate, _) = core.agents.candidates(token.clone(), static_public)?;
        core.agents.accept(candidate, &proven)
    });
    match accepted.await {
        Ok(accepted) => Ok((accepted, established)),
        Err(refused) => {
            if let (Refused::InUse, Some(id)) = (&refused, core.agents.with_static(static_public)) {
                core.agents.note_rival(id, &proven);
            }
            Err(refused)
        }
    }
}

impl Arrival<'_> {
    fn proven<'a>(
        &'a self,
        credentials: &'a [Secret<32>],
        used: usize,
        hello: &'a AgentHello,
        established: &'a Established,
    ) -> Result<Proven<'a>, Refused> {
        Ok(Proven {
            suite: self.suite,
            address: self.address,
            static_public: self.static_public,
            used: credentials.get(used).ok_or(Refused::WrongCredential)?,
            hello,
            established,
        })
    }
}

/// Tries until the agent is not connected any more, for a moment.
async fn unless_in_use<T>(
    core: &Core,
    mut attempt: impl FnMut() -> Result<T, Refused>,
) -> Result<T, Refused> {
    let deadline = clock::now() + INCUMBENT_MAX;
    loop {
        // It may write the catalogue.
        let attempted = {
            let _place = core.at_work.take().await;
            attempt()
        };
        match attempted {
            Err(Refused::InUse) if clock::now() < deadline => {
                tokio::time::sleep(INCUMBENT_STEP).await;
            }
            outcome => return outcome,
        }
    }
}

/// What changed of an agent that was let in is written down: its machine, or that its state is a
/// restored one.
async fn note_changes(core: &Core, accepted: &Accepted, address: SocketAddr) {
    let agent = &accepted.agent;
    let detail =
        |what: Value| json!({ "agent": agent.name, "address": address.to_string(), "what": what });
    if accepted.changed.is_empty() && !agent.restored {
        return;
    }
    // One that comes with something else again and again fills neither the trail nor the list of alarms.
    let over = core.agents.over(agent.id, News::Arrivals);
    if over.is_power_of_two() {
        warn!(agent = %agent.id, over, "an agent came with another machine, or a state of before, more often than is written down in a day");
    }
    if !accepted.changed.is_empty() && over == 0 {
        let detail = detail(json!(accepted.changed));
        let by = Actor::of("agent");
        core.unsaid.tell(&by, "machine changed", detail).await;
    }
    // What a person approved is known to one.
    if (1..=core.agents.changes_max()).contains(&accepted.changed.len()) {
        let names = accepted.changed.join(", ");
        let raise = Raise {
            kind: AlarmKind::MachineChanged,
            agent: agent.name.clone(),
            text: said!("alarm_text.machine-changed", &names, address.to_string()),
            key: if over == 0 { names } else { MORE.to_owned() },
        };
        core.alarms.raise(raise).await;
    }
    if agent.restored && over == 0 {
        let detail = detail(json!("restored from a copy; a new epoch begins"));
        let by = Actor::of("agent");
        core.unsaid.tell(&by, "rollback", detail).await;
    }
}

/// A token that is refused is somebody's mistake, or somebody's attempt.
async fn note_token(core: &Core, refused: &Refused, address: SocketAddr) {
    info!(%address, reason = %refused, "refused an enrolment");
    let detail = json!({ "reason": refused.to_string(), "address": address.to_string() });
    note_refused(core, What::Enrolment, "enrolment refused", detail, address).await;
    let raise = Raise {
        kind: AlarmKind::TokenRefused,
        agent: String::new(),
        text: said!("alarm_text.came-from", refused.said(), address.to_string()),
        key: String::new(),
    };
    core.alarms.raise_from(raise, address.ip()).await;
}

async fn note_refused(core: &Core, what: What, action: &str, detail: Value, from: SocketAddr) {
    let refusal = Refusal {
        what,
        actor: &Actor::of("agent"),
        action,
        detail,
        from,
    };
    refusals::note_late(core, refusal).await;
}

async fn read_frame(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut head = [0; FRAME_HEAD_LEN];
    stream.read_exact(&mut head).await?;
    let FrameHead::Message(len) = FrameHead::parse(head)? else {
        bail!("an agent cannot refuse");
    };
    let mut frame = vec![0; len];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long a new process of an agent waits for the end of the old one's session.
const INCUMBENT_MAX: Duration = Duration::from_secs(2);
const INCUMBENT_STEP: Duration = Duration::from_millis(50);
