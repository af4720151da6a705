//! An agent asks for the key of its state: a person let it in, or it is told to wait for one.

use anyhow::{Context as _, Result};
use scrinium_protocol::identity::AgentId;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::handshake::{Established, ExpectAgentHello};
use scrinium_protocol::sl::message::Message;
use scrinium_protocol::sl::session::ServerSession;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tracing::info;

use super::{Arrival, unless_in_use};
use crate::agents::Refused;
use crate::clock;
use crate::core::Core;

/// The key, for whom a person let in. Who asks for an agent that is connected is another one.
pub(super) async fn grant(
    core: &Core,
    arrival: &Arrival<'_>,
    agent: AgentId,
    frame: &[u8],
    expect: ExpectAgentHello,
) -> Result<(Secret<32>, Established), Refused> {
    // An agent that nobody knows is not told from a wrong credential.
    let credentials: Vec<_> = core.agents.asking_credential(agent).into_iter().collect();
    let (hello, used, established) = expect
        .handle(frame, &credentials)
        .map_err(|_| Refused::WrongCredential)?;
    let proven = arrival.proven(&credentials, used, &hello, &established)?;
    let granted = unless_in_use(core, || core.agents.grant_state_key(agent, &proven)).await;
    if matches!(granted, Err(Refused::InUse)) {
        core.agents.note_rival(agent, &proven);
    }
    Ok((granted?, established))
}

/// Gives the key, which is in the audit trail before it leaves.
pub(super) async fn answer(
    core: &Core,
    stream: &mut TcpStream,
    arrival: &Arrival<'_>,
    agent: AgentId,
    key: Secret<32>,
    established: Established,
) -> Result<()> {
    let name = core.agents.get(agent).map(|agent| agent.name);
    let name = name.context("the agent is gone")?;
    info!(%agent, "gave an agent the key of its state");
    let detail = json!({ "agent": name, "address": arrival.address.to_string() });
    let written = core.audit.record("agent", "state opened", detail).await;
    anyhow::ensure!(written, "the audit stream takes nothing");
    let now = clock::now();
    let mut session = ServerSession::new(established, core.sessions.keep_alive, now);
    session.send(&Message::StateKey(key), now)?;
    let reason = "that is all".to_owned();
    session.send(&Message::Close { reason }, now)?;
    while let Some(bytes) = session.poll_transmit() {
        stream.write_all(&bytes).await?;
    }
    stream.shutdown().await?;
    Ok(())
}
