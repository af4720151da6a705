//! Asks the server for the key of a state that does not open here.

use std::time::Duration;

use anyhow::{Result, bail};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::session::AgentEvent;
use tracing::warn;

use super::conversation::Conversation;
use crate::identity::asking::Asking;
use crate::link::Dial;

/// Asks until it is given; `say` hears why it is not yet.
pub(super) async fn until_granted(asking: &Asking, say: impl Fn(&str)) -> Secret<32> {
    let mut said = String::new();
    loop {
        match once(asking).await {
            Ok(key) => return key,
            Err(error) => {
                let problem = format!("{error:#}");
                say(&problem);
                if problem != said {
                    warn!(problem, "the server does not give the key of the state");
                    said = problem;
                }
            }
        }
        tokio::time::sleep(crate::uplink::jittered(ASK_AGAIN)).await;
    }
}

async fn once(asking: &Asking) -> Result<Secret<32>> {
    let (stream, established) = Dial::to_ask(asking)?.run().await?;
    let mut conversation = Conversation::new(stream, established);
    loop {
        match conversation.next().await? {
            AgentEvent::StateKey(key) => return Ok(key),
            AgentEvent::Closed { reason } => bail!("the server ended the session: {reason}"),
            AgentEvent::CredentialRolled
            | AgentEvent::Enrolled { .. }
            | AgentEvent::StreamState { .. }
            | AgentEvent::Ready { .. }
            | AgentEvent::Configuration(_)
            | AgentEvent::Acked(_)
            | AgentEvent::PeerSilent => {}
        }
    }
}

/// Between two attempts: a person is to decide, and the server writes each down in sums.
const ASK_AGAIN: Duration = Duration::from_secs(10);
