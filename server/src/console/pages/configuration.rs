//! What an agent is told to collect, from its page: one text, sent at once, in force when the agent says so.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Path, State};
use axum::response::Response;
use scrinium_protocol::sl::in_force::{MORE, Origin, Setting};
use scrinium_protocol::sl::message::CONFIGURATION_LEN_MAX;
use serde::Deserialize;
use serde_json::json;

use super::agents::{act, outcome};
use crate::agents::Live;
use crate::audit::long_text;
use crate::bounds::{self, NAME_LEN_MAX};
use crate::catalogue::records::{AgentConfiguration, AgentRecord};
use crate::console::auth::SignedIn;
use crate::console::given::Taken;
use crate::control::or_said;
use crate::core::{Core, OWN_NAME};
use crate::i18n::Language;

/// The configuration of one agent, to be read and changed.
pub(super) struct Editor {
    /// What was sent last; an example when nothing was.
    pub(super) text: String,
    pub(super) sent: Option<Sent>,
    /// Finds who sent what before.
    pub(super) history: String,
    /// What the agent says it does.
    pub(super) in_force: Vec<InForce>,
}

/// One thing that is in force, or was wanted and is not.
pub(super) struct InForce {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) from: &'static str,
    /// The server wanted it in vain.
    pub(super) is_refused: bool,
}

/// What became of it.
pub(super) struct Sent {
    pub(super) version: u64,
    pub(super) said: String,
    /// The style of that.
    pub(super) class: &'static str,
}

impl Editor {
    pub(super) fn new(t: Language, agent: &AgentRecord, live: &Live) -> Self {
        let sent = agent.configuration.as_ref();
        let example = || t.text("configuration.example").to_owned();
        Self {
            text: sent.map_or_else(example, |sent| sent.text.clone()),
            sent: sent.map(|sent| Sent::new(t, sent)),
            history: format!(
                "agent:{OWN_NAME} stream:audit \"agent configured\" \"{}\"",
                agent.name
            ),
            in_force: live
                .in_force
                .iter()
                .map(|setting| InForce::new(t, setting))
                .collect(),
        }
    }
}

impl InForce {
    fn new(t: Language, setting: &Setting) -> Self {
        let from = match setting.origin {
            Origin::Default => "in_force.default",
            Origin::Machine => "in_force.machine",
            Origin::Server => "in_force.server",
            Origin::NotTaken => "in_force.not_taken",
        };
        let value = match setting.value.is_empty() {
            true => t.text("in_force.no_limit").to_owned(),
            false => setting.value.clone(),
        };
        let is_more = setting.name == MORE;
        Self {
            name: match is_more {
                true => t.text("in_force.more").to_owned(),
                false => setting.name.clone(),
            },
            value,
            from: if is_more { "" } else { t.text(from) },
            is_refused: setting.origin == Origin::NotTaken,
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
    Taken(Path(name)): Taken<Path<String>>,
    Taken(Form(form)): Taken<Form<ConfigurationForm>>,
) -> Response {
    // Browsers end lines as the network does.
    let text = form.text.replace("\r\n", "\n");
    let checked = bounds::check("agent name", &name, NAME_LEN_MAX);
    if let Err(error) =
        checked.and_then(|()| bounds::check_len("the configuration", &text, CONFIGURATION_LEN_MAX))
    {
        return outcome(who.language, Err(error), &name);
    }
    let detail = json!({ "agent": name, "configuration": long_text(&text) });
    if let Err(refused) = act(&core, &who, &form.csrf, "agent configured", detail).await {
        return refused;
    }
    let done = core.agents.configure(&name, &text).map(drop);
    let done = or_said(&core, &who.actor, "agent configured", done).await;
    outcome(who.language, done, &name)
}
