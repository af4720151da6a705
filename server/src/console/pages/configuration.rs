//! What an agent is told to collect, from its page: one text, sent at once, in force when the agent says so.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Path, State};
use axum::response::Response;
use scrinium_protocol::sl::message::CONFIGURATION_LEN_MAX;
use serde::Deserialize;
use serde_json::json;

use super::agents::{act, outcome};
use crate::audit::long_text;
use crate::bounds::{self, NAME_LEN_MAX};
use crate::catalogue::records::{AgentConfiguration, AgentRecord};
use crate::console::auth::SignedIn;
use crate::console::i18n::Language;
use crate::control::or_said;
use crate::core::{Core, OWN_NAME};

/// The configuration of one agent, to be read and changed.
pub(super) struct Editor {
    /// What was sent last; an example when nothing was.
    pub(super) text: String,
    pub(super) sent: Option<Sent>,
    /// Finds who sent what before.
    pub(super) history: String,
}

/// What became of it.
pub(super) struct Sent {
    pub(super) version: u64,
    pub(super) said: String,
    /// The style of that.
    pub(super) class: &'static str,
}

impl Editor {
    pub(super) fn new(t: Language, agent: &AgentRecord) -> Self {
        let sent = agent.configuration.as_ref();
        let example = || t.text("configuration.example").to_owned();
        Self {
            text: sent.map_or_else(example, |sent| sent.text.clone()),
            sent: sent.map(|sent| Sent::new(t, sent)),
            history: format!(
                "agent:{OWN_NAME} stream:audit \"agent configured\" \"{}\"",
                agent.name
            ),
        }
    }
}

impl Sent {
    fn new(t: Language, sent: &AgentConfiguration) -> Self {
        let (said, class) = match &sent.rejected {
            _ if sent.answered != sent.version => {
                (t.text("agents.configuration_waiting").to_owned(), "hint")
            }
            None => (t.text("agents.configuration_applied").to_owned(), "fine"),
            Some(reason) => (t.with("agents.configuration_rejected", reason), "problem"),
        };
        Self {
            version: sent.version,
            said,
            class,
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct ConfigurationForm {
    csrf: String,
    text: String,
}

/// Sends an agent another configuration.
pub(crate) async fn send(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Path(name): Path<String>,
    Form(form): Form<ConfigurationForm>,
) -> Response {
    // Browsers end lines as the network does.
    let text = form.text.replace("\r\n", "\n");
    let checked = bounds::check("agent name", &name, NAME_LEN_MAX);
    if let Err(error) =
        checked.and_then(|()| bounds::check_len("the configuration", &text, CONFIGURATION_LEN_MAX))
    {
        return outcome(Err(error), &name);
    }
    let detail = json!({ "agent": name, "configuration": long_text(&text) });
    if let Err(refused) = act(&core, &who, &form.csrf, "agent configured", detail).await {
        return refused;
    }
    let done = core.agents.configure(&name, &text).map(drop);
    let done = or_said(&core, &who.actor, "agent configured", done).await;
    outcome(done, &name)
}
