//! Accepts agents: bounded half-open handshakes, then one session task each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::{
    AgentHello, Established, ExpectAgentStart, FRAME_HEAD_LEN, FrameHead, PREAMBLE_HEAD_LEN,
    Preamble, Purpose, ServerHello, refusal_frame,
};
use scrinium_protocol::sl::noise::KeyPair;
use scrinium_segment::random;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::accept;
use crate::agents::Refused;
use crate::catalogue::records::AgentRecord;
use crate::core::Core;
use crate::{clock, session};

/// Accepts until the task is dropped.
pub(crate) async fn run(core: Arc<Core>, listener: TcpListener) {
    let half_open = Arc::new(Semaphore::new(HALF_OPEN_MAX));
    let mut sessions = JoinSet::new();
    loop {
        let (stream, address) = tokio::select! {
            accepted = accept(&listener) => accepted,
            Some(_) = sessions.join_next() => continue,
        };
        // Past the cap new connections are closed at once: established sessions do not feel it.
        let Ok(permit) = half_open.clone().try_acquire_owned() else {
            debug!("too many half-open handshakes");
            continue;
        };
        let core = core.clone();
        sessions.spawn(async move {
            drop(stream.set_nodelay(true));
            let mut stream = stream;
            let handshake =
                tokio::time::timeout(HANDSHAKE_MAX, handshake(&core, &mut stream, address)).await;
            drop(permit);
            match handshake {
                Ok(Ok((agent, enrolled, established))) => {
                    session::run(core, stream, address, agent, enrolled, established).await;
                }
                Ok(Err(error)) => {
                    debug!(%address, error = format!("{error:#}"), "a handshake failed")
                }
                Err(_) => debug!(%address, "a handshake took too long"),
            }
        });
    }
}

async fn handshake(
    core: &Core,
    stream: &mut TcpStream,
    address: SocketAddr,
) -> Result<(AgentRecord, bool, Established)> {
    let mut preamble = [0; PREAMBLE_HEAD_LEN].to_vec();
    stream.read_exact(&mut preamble).await?;
    let head = preamble
        .first_chunk()
        .context("the preamble has its length")?;
    let hint_len = Preamble::hint_len(head)?;
    preamble.resize(PREAMBLE_HEAD_LEN + hint_len, 0);
    stream
        .read_exact(preamble.get_mut(PREAMBLE_HEAD_LEN..).unwrap_or_default())
        .await?;

    let ephemeral = KeyPair::from_secret(&Secret::new(random()?));
    let expect = ExpectAgentStart::new(&preamble, core.noise.clone(), ephemeral);
    let frame = read_frame(stream).await?;
    let (purpose, send) = expect.handle(&frame)?;

    let token = match purpose {
        Purpose::Connect => Ok(None),
        Purpose::Enrol { token } => core.agents.check_token(&token).map(Some),
    };
    let token = match token {
        Ok(token) => token,
        Err(refused) => {
            info!(%address, reason = %refused, "refused an enrolment");
            core.audit.record("agent", "enrolment refused", serde_json::json!({ "reason": refused.to_string(), "address": address.to_string() })).await;
            let reason = refused.to_string();
            let (answer, _) = send.answer(&ServerHello::Refused { reason })?;
            stream.write_all(&answer).await?;
            bail!("{refused}");
        }
    };
    let time_us = clock::unix_us();
    let (answer, expect) = send.answer(&ServerHello::Welcome { time_us })?;
    stream.write_all(&answer).await?;

    let frame = read_frame(stream).await?;
    let static_public = expect.claimed_static(&frame)?;
    let accepted =
        core.agents
            .candidates(token, &static_public)
            .and_then(|(candidate, credentials)| {
                let (hello, used, established): (AgentHello, usize, Established) = expect
                    .handle(&frame, &credentials)
                    .map_err(|_| Refused::WrongCredential)?;
                let used = credentials.get(used).ok_or(Refused::WrongCredential)?;
                let (agent, enrolled) = core.agents.accept(
                    candidate,
                    used,
                    &established.next_psk,
                    &static_public,
                    &hello,
                )?;
                Ok((agent, enrolled, established))
            });
    match accepted {
        Ok((agent, enrolled, established)) => {
            if enrolled {
                info!(agent = %agent.id, "enrolled an agent");
                core.audit
                    .record(
                        "agent",
                        "enrolled",
                        serde_json::json!({ "agent": agent.name, "address": address.to_string() }),
                    )
                    .await;
            }
            Ok((agent, enrolled, established))
        }
        Err(refused) => {
            warn!(%address, reason = %refused, "refused an agent");
            core.agents.note_trouble(&static_public, &refused, address);
            core.audit.record("agent", "refused", serde_json::json!({ "reason": refused.to_string(), "address": address.to_string() })).await;
            stream
                .write_all(&refusal_frame(&refused.to_string()))
                .await?;
            bail!("{refused}");
        }
    }
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

/// Handshakes not yet finished, at most 6 KiB each.
const HALF_OPEN_MAX: usize = 512;
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
