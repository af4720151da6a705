//! A unit for systemd (systemd.service(5), systemd.exec(5)).

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use scrinium_segment::durable;

use super::{below, system};

pub(super) fn install(program: &Path, root: Option<&Path>) -> Result<()> {
    let program = program
        .to_str()
        .context("the program's path is not UTF-8")?;
    if program.contains(|c: char| c.is_whitespace() || "\"'\\%$".contains(c)) {
        bail!(
            "'{program}' cannot stand in a unit: move the program to a path without spaces and signs"
        );
    }
    let unit = below(root, UNIT_PATH);
    let users = below(root, USERS_PATH);
    for path in [&unit, &users] {
        let dir = path.parent().unwrap_or_else(|| Path::new("/"));
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    durable::write_file(&unit, unit_text(program).as_bytes())?;
    durable::write_file(&users, USERS.as_bytes())?;
    make_readable(&unit)?;
    make_readable(&users)?;
    writeln!(
        std::io::stdout(),
        "wrote {} and {}",
        unit.display(),
        users.display()
    )?;
    if root.is_some() {
        return Ok(());
    }
    system("systemd-sysusers", &[USERS_PATH])?;
    system("systemctl", &["daemon-reload"])?;
    system("systemctl", &["enable", "--now", UNIT])?;
    writeln!(std::io::stdout(), "{UNIT} is installed and runs")?;
    Ok(())
}

pub(super) fn uninstall(root: Option<&Path>) -> Result<()> {
    if root.is_none() {
        system("systemctl", &["disable", "--now", UNIT])?;
    }
    for path in [UNIT_PATH, USERS_PATH] {
        let path = below(root, path);
        if path.try_exists()? {
            durable::remove(&path)?;
        }
    }
    if root.is_none() {
        system("systemctl", &["daemon-reload"])?;
    }
    writeln!(
        std::io::stdout(),
        "{UNIT} is removed; state and spool stay in /var/lib/scrinium/agent"
    )?;
    Ok(())
}

pub(super) fn start() -> Result<()> {
    system("systemctl", &["start", UNIT])
}

pub(super) fn stop() -> Result<()> {
    system("systemctl", &["stop", UNIT])
}

/// Everybody may read how a service is run.
fn make_readable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))?;
    Ok(())
}

/// A user of its own, which may read every log and nothing else it could not.
fn unit_text(program: &str) -> String {
    format!(
        "[Unit]
Description=Scrinium agent: ships the logs of this machine
Documentation=man:scrinium-agent(8)
After=network.target local-fs.target
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={program} run
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=2
WatchdogSec=60
TimeoutStopSec=60
User=scrinium-agent
Group=scrinium-agent
StateDirectory=scrinium/agent
StateDirectoryMode=0700
UMask=0077
LimitNOFILE=8192
LimitCORE=0
OOMScoreAdjust=-200
AmbientCapabilities=CAP_DAC_READ_SEARCH
CapabilityBoundingSet=CAP_DAC_READ_SEARCH
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
MemorySwapMax=0
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources

[Install]
WantedBy=multi-user.target
"
    )
}

const UNIT: &str = "scrinium-agent.service";
const UNIT_PATH: &str = "/etc/systemd/system/scrinium-agent.service";
const USERS_PATH: &str = "/etc/sysusers.d/scrinium-agent.conf";
const USERS: &str = "u scrinium-agent - \"Scrinium agent\" /var/lib/scrinium/agent\n";
