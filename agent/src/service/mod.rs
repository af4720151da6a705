//! The agent as a service of its system.
//!
//! ```text
//! Linux    [systemd]: a unit with a user of its own and one capability; it says that it lives
//! macOS    [launchd]: a daemon's property list
//! Windows  [windows]: a service of the service control manager
//! ```

#[cfg(target_os = "macos")]
mod launchd;
#[cfg(target_os = "linux")]
mod systemd;
#[cfg(windows)]
pub(crate) mod windows;

#[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
use std::path::Path;
use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

/// What to do with the service.
#[derive(Subcommand)]
pub(crate) enum Action {
    /// Installs the service, and starts it now and with the system.
    #[command(after_help = "Example: scrinium-agent service install")]
    Install {
        /// Write the service's files below this directory, of an image being built, and start nothing.
        #[arg(long)]
        root: Option<PathBuf>,
    },
    /// Stops and removes the service; state and spool stay.
    Uninstall {
        #[arg(long)]
        root: Option<PathBuf>,
    },
    /// Starts the service.
    Start,
    /// Stops the service.
    Stop,
    /// Runs the agent for the service control manager.
    #[cfg(windows)]
    #[command(hide = true)]
    Dispatch,
}

impl Action {
    pub(crate) fn run(&self) -> Result<()> {
        match self {
            Self::Install { root } => {
                let program = std::env::current_exe()?;
                imp::install(&program, root.as_deref())
            }
            Self::Uninstall { root } => imp::uninstall(root.as_deref()),
            Self::Start => imp::start(),
            Self::Stop => imp::stop(),
            #[cfg(windows)]
            Self::Dispatch => imp::dispatch(),
        }
    }
}

#[cfg(target_os = "macos")]
use launchd as imp;
#[cfg(target_os = "linux")]
use systemd as imp;
#[cfg(windows)]
use windows as imp;

#[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
mod imp {
    use super::{Path, Result};

    pub(super) fn install(program: &Path, _root: Option<&Path>) -> Result<()> {
        anyhow::bail!(
            "this system has no service manager we know; have it run: {} run",
            program.display()
        )
    }

    pub(super) fn uninstall(_root: Option<&Path>) -> Result<()> {
        anyhow::bail!("no service was installed by us on this system")
    }

    pub(super) fn start() -> Result<()> {
        anyhow::bail!("no service was installed by us on this system")
    }

    pub(super) fn stop() -> Result<()> {
        anyhow::bail!("no service was installed by us on this system")
    }
}
