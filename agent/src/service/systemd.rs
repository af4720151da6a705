//! A unit for systemd (systemd.service(5), systemd.exec(5)).

use std::io::Write as _;
use std::path::Path;

use anyhow::Result;
use scrinium_segment::systemd::{self, Service};

pub(super) fn install(program: &Path, root: Option<&Path>) -> Result<()> {
    let text = unit_text(systemd::program(program)?);
    let [unit, users] = SERVICE.install(&text, root)?;
    let (unit, users) = (unit.display(), users.display());
    let mut out = std::io::stdout();
    writeln!(out, "wrote {unit} and {users}")?;
    if root.is_none() {
        writeln!(out, "{} is installed and runs", SERVICE.unit)?;
    }
    Ok(())
}

pub(super) fn uninstall(root: Option<&Path>) -> Result<()> {
    SERVICE.uninstall(root)?;
    writeln!(
        std::io::stdout(),
        "{} is removed; state and spool stay in /var/lib/scrinium/agent",
        SERVICE.unit
    )?;
    Ok(())
}

pub(super) fn start() -> Result<()> {
    Ok(SERVICE.start()?)
}

pub(super) fn stop() -> Result<()> {
    Ok(SERVICE.stop()?)
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

const SERVICE: Service = Service {
    unit: "scrinium-agent.service",
    unit_path: "/etc/systemd/system/scrinium-agent.service",
    users_path: "/etc/sysusers.d/scrinium-agent.conf",
    users: "u scrinium-agent - \"Scrinium agent\" /var/lib/scrinium/agent\n",
};
