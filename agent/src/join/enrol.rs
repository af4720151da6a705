//! Uses a token: one session, in which the server names this agent and says where its streams stand.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use scrinium_protocol::route::{Proxy, Route};
use scrinium_protocol::sl::session::AgentEvent;
use scrinium_protocol::token::Token;
use scrinium_segment::fault;
use scrinium_segment::lock::DirLock;

use super::conversation::{Conversation, way_of};
use super::{make_dir, make_room, state_of};
use crate::clock;
use crate::commands::{UsageError, say};
use crate::config::Config;
use crate::identity::Identity;
use crate::identity::binding::{Binding, Opened};
use crate::link::{Dial, Way};

/// Reads a token as a person gave it.
pub(crate) fn parse(text: &str) -> Result<Token> {
    let token = Token::parse(text);
    token.map_err(|error| {
        UsageError::new(format!("the token is not valid: {error}; copy it whole")).into()
    })
}

/// Enrols the agent of `dir`. The state of another machine is set aside: who gives a token here wants a new one.
pub(crate) async fn enrol(
    text: &str,
    dir: &Path,
    proxy: Option<Proxy>,
    config: &Config,
) -> Result<()> {
    let mut token = parse(text)?;
    if clock::unix_us() / 1_000_000 >= token.expires_s {
        bail!(
            "this enrolment token has expired; make a new one with: scrinium-server agent enroll"
        );
    }
    let mut route = Route::parse(&token.address).map_err(|error| {
        UsageError::new(format!("the address in the token is not valid: {error}"))
    })?;
    if let Some(proxy) = proxy {
        let through = route.through(proxy);
        route = through.map_err(|error| UsageError::new(format!("--proxy: {error}")))?;
    }
    token.address = route.to_string();
    make_dir(dir).with_context(|| format!("creating {}", dir.display()))?;
    let _lock = DirLock::acquire(dir)?;
    let binding = if dir.join("machine.json").try_exists()? {
        match Binding::open(dir)? {
            Opened::Here(binding) => match Identity::is_there(dir, binding.key()) {
                Ok(_) => binding,
                Err(error) => make_room(dir, &format!("{error:#}"))?,
            },
            Opened::Elsewhere(elsewhere) => make_room(dir, &elsewhere.in_words())?,
        }
    } else {
        Binding::prepare(dir)?
    };
    let mut identity = state_of(dir, &binding, Some(&token))?;
    if identity.state.token.is_none() {
        bail!(
            "{} holds an enrolled agent; choose another --state directory",
            dir.display()
        );
    }
    // What an earlier attempt with this token was told.
    identity.state.address.clone_from(&token.address);
    let is_of_0_1 = binding.is_of_0_1();
    identity.keep_binding(binding, config.machine_changes_max);
    let mut way = way_of(config, &identity.state.address)?;
    join(&mut identity, &mut way).await?;
    if !is_of_0_1 {
        // Without it nothing is lost: the first start makes up for it.
        identity.renew_binding()?;
    }
    say(&format!(
        "enrolled as {} with {}; start it with: scrinium-agent run",
        identity.state.agent,
        way.shown(clock::now())
    ))
}

/// The session of an enrolment. The state is written when the server has said everything: after a death before that, the
/// same keys use the token again.
async fn join(identity: &mut Identity, way: &mut Way) -> Result<()> {
    let dial = Dial::new(&identity.state, &identity.state.credential, false);
    let mut conversation = Conversation::begin(dial, way).await?;
    let (next, recovery) = conversation.credentials.clone();
    let (mut named, mut stated) = (None, false);
    loop {
        match conversation.next().await? {
            AgentEvent::Enrolled { agent } => named = Some(agent),
            AgentEvent::StreamState { .. } => stated = true,
            AgentEvent::Closed { reason } => bail!("the server ended the session: {reason}"),
            AgentEvent::Ready { restored, .. } => {
                let state = &mut identity.state;
                state.agent = named.context("the server named no agent")?;
                state.credential = next;
                state.token = None;
                state.recovery = Some(recovery);
                // It takes the place of one whose state is lost: nothing is read before the server has said where it stands.
                state.behind = restored || stated;
                identity.save()?;
                fault::point("agent: enrolment durable");
                conversation.session.send_credential_stored(clock::now())?;
                return conversation.close("enrolled").await;
            }
            AgentEvent::CredentialRolled
            | AgentEvent::Configuration(_)
            | AgentEvent::StateKey(_)
            | AgentEvent::Acked(_)
            | AgentEvent::PeerSilent => {}
        }
    }
}
