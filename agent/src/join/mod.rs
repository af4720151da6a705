//! How an agent comes to be one on this machine, before it works.
//!
//! ```text
//! nothing here       ─ a token ─▶ a state that enrols itself
//! a state that opens ─▶ it; what changed of the machine is said, and the binding renewed
//! one that does not  ─ a token of several uses ─▶ set aside, a new state: this is a clone
//!                    ─ else ─▶ [ask] the server until a person let it in
//! ```

mod ask;
mod conversation;
pub(crate) mod enrol;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::shown;
use scrinium_protocol::token::Token;
use scrinium_segment::durable;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::config::Config;
use crate::identity::binding::{Binding, Elsewhere, Opened};
use crate::identity::{self, Identity, State, no_agent};
use crate::status::Status;

/// The token that this machine was given for its first start; read when it is needed and not before: once it was used it may be
/// gone, or nobody's to read.
pub(crate) type FirstToken<'a> = &'a dyn Fn() -> Result<Option<Token>>;

/// What a machine that has to ask goes by meanwhile: it may take days, and its server may move.
pub(crate) struct Heeded<'a> {
    /// The one that holds; another one after a reload.
    pub(crate) config: &'a mut Config,
    pub(crate) reloads: &'a mut mpsc::Receiver<Config>,
    pub(crate) status: &'a watch::Sender<Status>,
    pub(crate) stop: &'a mut watch::Receiver<bool>,
}

/// The agent of this directory, ready to work, and the key of its files; `None` when it was stopped before there was one.
pub(crate) async fn agent(
    dir: &Path,
    token: FirstToken<'_>,
    heeded: &mut Heeded<'_>,
) -> Result<Option<(Identity, Secret<32>)>> {
    let (binding, token) = if dir.join("machine.json").try_exists()? {
        match Binding::open(dir)? {
            Opened::Here(binding) => {
                let is_enrolled = Identity::is_there(dir, binding.key())?
                    && Identity::open(dir, binding.key())?.state.token.is_none();
                let token = if is_enrolled { None } else { token()? };
                (binding, token)
            }
            Opened::Elsewhere(elsewhere) => match of_several_uses(token) {
                Some(token) => (make_room(dir, &elsewhere.in_words())?, Some(token)),
                None => match wait(dir, elsewhere, heeded).await? {
                    Some(binding) => (binding, None),
                    None => return Ok(None),
                },
            },
        }
    } else {
        let token = token()?.with_context(|| no_agent(dir))?;
        (Binding::prepare(dir)?, Some(token))
    };
    let mut identity = state_of(dir, &binding, token.as_ref())?;
    let changed = binding.changed().to_vec();
    if !changed.is_empty() {
        warn!(
            changed = changed.join(", "),
            "characteristics of this machine are not what they were; the state opened without them and is bound to it as it is now"
        );
    }
    let key = binding.key().clone();
    identity.keep_binding(binding, heeded.config.machine_changes_max);
    // What version 0.1.0 wrote stays until this program has proven itself: see `Shipper::review_binding`.
    if !identity.is_of_0_1() {
        match identity.renew_binding() {
            Ok(true) if changed.is_empty() => {
                info!("the state is bound to more of this machine, or to less, than before");
            }
            Ok(_) => {}
            // It opened, and the shipper tries again: a full disk does not keep an agent from its work.
            Err(error) => {
                let error = format!("{error:#}");
                warn!(error, "what the state is bound to could not be written");
            }
        }
    }
    Ok(Some((identity, key)))
}

/// The token that a clone enrols with. Where it cannot be read the machine asks, as it does without one.
fn of_several_uses(token: FirstToken<'_>) -> Option<Token> {
    match token() {
        Ok(token) => token.filter(|token| token.uses_max > 1),
        Err(error) => {
            let error = format!("{error:#}");
            warn!(error, "the token of a first start cannot be used");
            None
        }
    }
}

/// The state of an agent, or a new one that uses `token`: when there is none, or one that another token was to make.
pub(crate) fn state_of(dir: &Path, binding: &Binding, token: Option<&Token>) -> Result<Identity> {
    let key = binding.key();
    let Some(token) = token else {
        return Identity::open(dir, key);
    };
    if Identity::is_there(dir, key)? {
        let identity = Identity::open(dir, key)?;
        // Enrolled; or we died while using this token, and the same keys use it again.
        if identity.state.token.is_none_or(|used| used == token.id) {
            return Ok(identity);
        }
    }
    Identity::create(dir, key, State::new(token)?)
}

/// Sets a state that does not open aside, and makes a new binding.
pub(crate) fn make_room(dir: &Path, reason: &str) -> Result<Binding> {
    let aside = identity::set_aside(dir)?;
    warn!(
        aside = %aside.display(),
        reason,
        "the state that lay here was set aside, and this machine is enrolled anew; if it is a clone, that was the original's"
    );
    Binding::prepare(dir)
}

/// Asks the server until a person let the machine in.
async fn wait(
    dir: &Path,
    elsewhere: Elsewhere,
    heeded: &mut Heeded<'_>,
) -> Result<Option<Binding>> {
    let words = elsewhere.in_words();
    let Some(asking) = &elsewhere.asking else {
        bail!(
            "{}: {words}. Its server cannot be asked for it: make a token with `scrinium-server agent replace NAME` to go on where it stood, or with `scrinium-server agent enroll` for a new agent, and use it here",
            dir.display()
        );
    };
    warn!(
        reason = words,
        "the state does not open on this machine; the server is asked for its key until a person lets this machine in"
    );
    let status = heeded.status;
    let say = |problem: &str| {
        let problem = Some(shown::sentence(&format!("{words}: {problem}")));
        status.send_modify(|status| status.problem = problem);
    };
    let key = loop {
        tokio::select! {
            key = ask::until_granted(asking, heeded.config, say) => break key,
            Some(config) = heeded.reloads.recv() => {
                info!("the configuration was read again: the server is asked as it says");
                *heeded.config = config;
            }
            () = stopped(heeded.stop) => return Ok(None),
        }
    };
    info!("a person let this machine in: the state opens, and is bound to it from now on");
    elsewhere.open_with(&key).map(Some)
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    while !*stop.borrow() {
        if stop.changed().await.is_err() {
            return;
        }
    }
}

/// Makes the directory of an agent.
pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    Ok(durable::create_dir(dir)?)
}
