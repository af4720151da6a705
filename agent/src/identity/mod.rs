//! Who this agent is: its state, and what that is bound to.
//!
//! ```text
//! [binding] machine.json ─▶ key ─▶ [state] state.a, state.b, and the spool
//!     └─ too much of the machine changed ─▶ [asking] the server, where a person decides; or [aside], for a new one
//! ```
//!
//! A copied directory opens on its machine alone: the key is wrapped for what tells this machine from others, and for the
//! server. One characteristic may change (`machine_changes_max`), and the wrapping is renewed then.

mod aside;
pub(crate) mod asking;
pub(crate) mod binding;
mod state;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use scrinium_protocol::secret::Secret;
use scrinium_segment::slots::Slots;
use scrinium_segment::{durable, fault};
use zeroize::Zeroizing;

pub(crate) use self::aside::set_aside;
use self::binding::Binding;
pub use self::state::{Central, State, Trial};

/// The state and the files it lives in.
#[derive(Debug)]
pub struct Identity {
    slots: Slots,
    pub state: State,
    /// What is kept as it should be, and how many characteristics may change.
    binding: Option<(Binding, usize)>,
}

/// Prepares a state directory: makes it and its binding when they are not there. Returns its key.
///
/// # Errors
/// Those of the file system; the directory holds the state of another machine.
pub fn prepare(dir: &Path) -> Result<Secret<32>> {
    durable::create_dir(dir).with_context(|| format!("creating {}", dir.display()))?;
    Ok(Binding::prepare(dir)?.key().clone())
}

impl Identity {
    /// Opens the state of an enrolled agent.
    ///
    /// # Errors
    /// There is none, it is damaged, or a newer program wrote it.
    pub fn open(dir: &Path, key: &Secret<32>) -> Result<Self> {
        let (slots, bytes) = Slots::open(dir, STATE_NAME, key)
            .with_context(|| format!("{}: the agent's state is damaged", dir.display()))?;
        let Some(bytes) = bytes else {
            bail!(no_agent(dir));
        };
        let state = State::decode(&bytes).context("the agent's state is of a newer version")?;
        Ok(Self {
            slots,
            state,
            binding: None,
        })
    }

    /// Whether a state that opens is there.
    pub(crate) fn is_there(dir: &Path, key: &Secret<32>) -> Result<bool> {
        let there = Slots::open(dir, STATE_NAME, key);
        let (_, state) =
            there.with_context(|| format!("{}: the agent's state is damaged", dir.display()))?;
        Ok(state.is_some())
    }

    /// Writes the state of an agent about to be enrolled.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(dir: &Path, key: &Secret<32>, state: State) -> Result<Self> {
        let (slots, _) = Slots::open(dir, STATE_NAME, key)?;
        let mut identity = Self {
            slots,
            state,
            binding: None,
        };
        identity.save()?;
        Ok(identity)
    }

    /// From now on its binding is kept as it should be, with so many characteristics that may change: see
    /// [`Identity::renew_binding`].
    pub(crate) fn keep_binding(&mut self, binding: Binding, changes_max: usize) {
        self.binding = Some((binding, changes_max));
    }

    /// Whether the binding is as version 0.1.0 made it: once it is renewed that program opens the state no more.
    pub(crate) fn is_of_0_1(&self) -> bool {
        let binding = self.binding.as_ref();
        binding.is_some_and(|(binding, _)| binding.is_of_0_1())
    }

    /// Makes the binding what it should be now: for what the machine is today, and for the server. Returns whether it was
    /// something else.
    ///
    /// # Errors
    /// The disk does not take it; the binding is as it was.
    pub(crate) fn renew_binding(&mut self) -> Result<bool> {
        let Some((binding, changes_max)) = &mut self.binding else {
            return Ok(false);
        };
        binding
            .renew(*changes_max, &self.state)
            .context("writing what the agent's state is bound to")
    }

    /// From now on the server may know more than what is written down here: `behind`, durably.
    pub(crate) fn note_behind(&mut self) -> Result<()> {
        if !self.state.behind {
            self.state.behind = true;
            self.save()?;
            fault::point("agent: behind durable");
        }
        Ok(())
    }

    /// Makes the state durable.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn save(&mut self) -> Result<()> {
        let bytes = Zeroizing::new(self.state.encode());
        self.slots.save(&bytes).context("writing the agent's state")
    }
}

/// Why nothing can be done on a directory without an agent.
pub(crate) fn no_agent(dir: &Path) -> String {
    format!(
        "{} holds no agent; enrol one with: scrinium-agent enroll --token-file FILE --state {0}",
        dir.display()
    )
}

const STATE_NAME: &str = "state";
