//! `service`: the server as a service of systemd (systemd.service(5), systemd.exec(5)), with a user of its own.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use scrinium_segment::systemd::{self, Service};

use super::say;

/// What to do with the service.
#[derive(Subcommand)]
pub(super) enum Action {
    /// Installs the service with a user of its own, and starts it now and with the system. `init` comes before.
    #[command(after_help = "Example: scrinium-server service install")]
    Install {
        /// Write the service's files below this directory, of an image being built, and start nothing.
        #[arg(long)]
        root: Option<PathBuf>,
    },
    /// Stops and removes the service; the volume stays.
    Uninstall {
        #[arg(long)]
        root: Option<PathBuf>,
    },
    /// Starts the service.
    Start,
    /// Stops the service.
    Stop,
}

impl Action {
    /// Runs the command to its end.
    pub(super) fn run(&self) -> Result<()> {
        match self {
            Self::Install { root } => {
                let program = std::env::current_exe()?;
                let text = unit_text(systemd::program(&program)?);
                let [unit, users] = SERVICE.install(&text, root.as_deref())?;
                say(&format!("wrote {} and {}", unit.display(), users.display()))?;
                if root.is_none() {
                    say(&format!("{} is installed and runs", SERVICE.unit))?;
                }
                Ok(())
            }
            Self::Uninstall { root } => {
                SERVICE.uninstall(root.as_deref())?;
                let (unit, dir) = (SERVICE.unit, "/var/lib/scrinium/server");
                say(&format!("{unit} is removed; the volume stays in {dir}"))
            }
            Self::Start => Ok(SERVICE.start()?),
            Self::Stop => Ok(SERVICE.stop()?),
        }
    }
}

/// A user of its own, which may listen at ports below 1024, and read what the machine is known by and key files of the
/// administrator; the TPM, and no other device. The volume it made as another user becomes its own with the start.
fn unit_text(program: &str) -> String {
    format!(
        "[Unit]
Description=Scrinium server: receives, keeps and proves logs
Documentation=man:scrinium-server(8)
After=network.target local-fs.target
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={program} run
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=5
WatchdogSec=60
TimeoutStartSec=infinity
TimeoutStopSec=300
User=scrinium-server
Group=scrinium-server
StateDirectory=scrinium/server
StateDirectoryMode=0700
UMask=0077
LimitNOFILE=524288
LimitCORE=0
OOMScoreAdjust=-500
AmbientCapabilities=CAP_NET_BIND_SERVICE CAP_DAC_READ_SEARCH
CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_DAC_READ_SEARCH
NoNewPrivileges=yes
DevicePolicy=closed
DeviceAllow=/dev/tpmrm0 rw
LockPersonality=yes
MemoryDenyWriteExecute=yes
MemorySwapMax=0
PrivateTmp=yes
ProtectControlGroups=yes
ProtectHome=read-only
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=full
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
# The kernel is asked whether its clock is synchronised; setting it needs a capability that is not there.
SystemCallFilter=adjtimex clock_adjtime
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"
    )
}

const SERVICE: Service = Service {
    unit: "scrinium-server.service",
    unit_path: "/etc/systemd/system/scrinium-server.service",
    users_path: "/etc/sysusers.d/scrinium-server.conf",
    // Who may use the TPM is in its group.
    users: "u scrinium-server - \"Scrinium server\" /var/lib/scrinium/server\nm scrinium-server tss\n",
};
