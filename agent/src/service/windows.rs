//! A service of Windows' service control manager.
//!
//! ```text
//! service install ─▶ SCM ─▶ scrinium-agent service dispatch ─▶ the agent; a stop of the SCM stops it
//! ```

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::Notify;
use tracing::error;
use windows_service::service::{
    ServiceAccess, ServiceAction, ServiceActionType, ServiceControl, ServiceControlAccept,
    ServiceErrorControl, ServiceExitCode, ServiceFailureActions, ServiceFailureResetPeriod,
    ServiceInfo, ServiceStartType, ServiceState, ServiceStatus, ServiceType,
};
use windows_service::service_control_handler::{self, ServiceControlHandlerResult};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};
use windows_service::{define_windows_service, service_dispatcher};

pub(super) fn install(program: &Path, root: Option<&Path>) -> Result<()> {
    if root.is_some() {
        bail!("--root: a service of Windows is installed where it runs");
    }
    let access = ServiceManagerAccess::CONNECT | ServiceManagerAccess::CREATE_SERVICE;
    let manager = ServiceManager::local_computer(None::<&OsStr>, access)
        .context("the service manager; is this an administrator's prompt?")?;
    let info = ServiceInfo {
        name: NAME.into(),
        display_name: "Scrinium agent".into(),
        service_type: ServiceType::OWN_PROCESS,
        start_type: ServiceStartType::AutoStart,
        error_control: ServiceErrorControl::Normal,
        executable_path: program.to_owned(),
        launch_arguments: vec!["service".into(), "dispatch".into()],
        dependencies: Vec::new(),
        account_name: None, // LocalSystem: it reads every log
        account_password: None,
    };
    let access = ServiceAccess::CHANGE_CONFIG | ServiceAccess::START;
    let service = manager.create_service(&info, access)?;
    service.set_description("Ships the logs of this machine to a Scrinium server")?;
    let again = ServiceAction {
        action_type: ServiceActionType::Restart,
        delay: Duration::from_secs(2),
    };
    service.update_failure_actions(ServiceFailureActions {
        reset_period: ServiceFailureResetPeriod::After(Duration::from_secs(60)),
        reboot_msg: None,
        command: None,
        actions: Some(vec![again.clone(), again.clone(), again]),
    })?;
    service.start::<&OsStr>(&[])?;
    writeln!(std::io::stdout(), "{NAME} is installed and runs")?;
    Ok(())
}

pub(super) fn uninstall(_root: Option<&Path>) -> Result<()> {
    let service = open(ServiceAccess::QUERY_STATUS | ServiceAccess::STOP | ServiceAccess::DELETE)?;
    if service.query_status()?.current_state != ServiceState::Stopped {
        service.stop()?;
    }
    service.delete()?;
    writeln!(std::io::stdout(), "{NAME} is removed; state and spool stay")?;
    Ok(())
}

pub(super) fn start() -> Result<()> {
    Ok(open(ServiceAccess::START)?.start::<&OsStr>(&[])?)
}

pub(super) fn stop() -> Result<()> {
    open(ServiceAccess::STOP)?.stop()?;
    Ok(())
}

fn open(access: ServiceAccess) -> Result<windows_service::service::Service> {
    let manager = ServiceManager::local_computer(None::<&OsStr>, ServiceManagerAccess::CONNECT)?;
    let service = manager.open_service(NAME, access);
    service.with_context(|| {
        format!("the service {NAME}; install it with: scrinium-agent service install")
    })
}

/// Runs the agent for the service control manager, until that stops it.
pub(super) fn dispatch() -> Result<()> {
    entry::start().context("only the service manager starts the agent so; use: scrinium-agent run")
}

/// Waits until the service control manager wants the agent to stop.
pub(crate) async fn stopped() {
    STOP.get_or_init(Notify::new).notified().await;
}

/// The entry point that the system calls.
mod entry {
    use super::{NAME, define_windows_service, main, service_dispatcher};

    define_windows_service!(ffi_main, main);

    pub(super) fn start() -> windows_service::Result<()> {
        service_dispatcher::start(NAME, ffi_main)
    }
}

fn main(_arguments: Vec<OsString>) {
    if let Err(error) = serve() {
        error!(error = format!("{error:#}"), "the service failed");
    }
}

fn serve() -> Result<()> {
    let status = service_control_handler::register(NAME, |control| {
        let known = matches!(control, ServiceControl::Stop | ServiceControl::Shutdown);
        if known {
            STOP.get_or_init(Notify::new).notify_one();
        }
        if known || matches!(control, ServiceControl::Interrogate) {
            ServiceControlHandlerResult::NoError
        } else {
            ServiceControlHandlerResult::NotImplemented
        }
    })?;
    let say = |state, code| {
        let accepted = if state == ServiceState::Running {
            ServiceControlAccept::STOP | ServiceControlAccept::SHUTDOWN
        } else {
            ServiceControlAccept::empty()
        };
        status.set_service_status(ServiceStatus {
            service_type: ServiceType::OWN_PROCESS,
            current_state: state,
            controls_accepted: accepted,
            exit_code: ServiceExitCode::Win32(code),
            checkpoint: 0,
            wait_hint: Duration::from_secs(30),
            process_id: None,
        })
    };
    say(ServiceState::Running, 0)?;
    let outcome = crate::commands::run_as_service();
    say(ServiceState::Stopped, u32::from(outcome.is_err()))?;
    outcome
}

static STOP: OnceLock<Notify> = OnceLock::new();
const NAME: &str = "scrinium-agent";
