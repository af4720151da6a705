//! Asks the server for the key of a state that does not open here.

use std::time::Duration;

use anyhow::{Result, bail};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::session::AgentEvent;
use tracing::warn;

use super::conversation::{Conversation, way_of};
use crate::config::Config;
use crate::identity::asking::Asking;
use crate::link::{Dial, Way};

/// Asks until it is given; `say` hears why it is not yet.
pub(super) async fn until_granted(
    asking: &Asking,
    config: &Config,
    say: impl Fn(&str),
) -> Secret<32> {
    let mut said = String::new();
    let mut way = None;
    loop {
        match once(asking, config, &mut way).await {
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
        // A person approves on the server, which calls nobody.
        tokio::time::sleep(crate::uplink::jittered(ASK_AGAIN)).await;
    }
}

async fn once(asking: &Asking, config: &Config, way: &mut Option<Way>) -> Result<Secret<32>> {
    let way = match way {
        Some(way) => way,
        None => way.insert(way_of(config, &asking.address)?),
    };
    let mut conversation = Conversation::begin(Dial::to_ask(asking)?, way).await?;
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
