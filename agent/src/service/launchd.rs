//! A daemon for launchd (launchd.plist(5)).

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use scrinium_segment::durable;

use scrinium_segment::systemd::{below, system};

pub(super) fn install(program: &Path, root: Option<&Path>) -> Result<()> {
    let program = program
        .to_str()
        .context("the program's path is not UTF-8")?;
    if program.contains(['<', '>', '&']) {
        bail!("'{program}' cannot stand in a property list: move the program");
    }
    let path = below(root, PLIST_PATH);
    let dir = path.parent().unwrap_or_else(|| Path::new("/"));
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    durable::write_file(&path, plist(program).as_bytes())?;
    writeln!(std::io::stdout(), "wrote {}", path.display())?;
    if root.is_some() {
        return Ok(());
    }
    system("launchctl", &["bootstrap", "system", PLIST_PATH])
}

pub(super) fn uninstall(root: Option<&Path>) -> Result<()> {
    if root.is_none() {
        system("launchctl", &["bootout", TARGET])?;
    }
    let path = below(root, PLIST_PATH);
    if path.try_exists()? {
        durable::remove(&path)?;
    }
    Ok(())
}

pub(super) fn start() -> Result<()> {
    system("launchctl", &["kickstart", TARGET])
}

pub(super) fn stop() -> Result<()> {
    system("launchctl", &["kill", "SIGTERM", TARGET])
}

fn plist(program: &str) -> String {
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key><string>{LABEL}</string>
  <key>ProgramArguments</key><array><string>{program}</string><string>run</string></array>
  <key>RunAtLoad</key><true/>
  <key>KeepAlive</key><true/>
  <key>ThrottleInterval</key><integer>2</integer>
  <key>Umask</key><integer>63</integer>
  <key>SoftResourceLimits</key><dict><key>NumberOfFiles</key><integer>8192</integer></dict>
</dict>
</plist>
"#
    )
}

const LABEL: &str = "org.scrinium.agent";
const TARGET: &str = "system/org.scrinium.agent";
const PLIST_PATH: &str = "/Library/LaunchDaemons/org.scrinium.agent.plist";
