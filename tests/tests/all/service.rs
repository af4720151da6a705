//! Agent and server as services: what is installed, and what their manager hears.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use scrinium_tests::lab::{Lab, text};
use scrinium_tests::{has_tool, program};

/// The unit has a user of its own and one capability; systemd itself finds nothing wrong with it.
#[test]
fn the_installed_unit_is_valid_and_has_one_capability() {
    let root = std::env::temp_dir().join(format!("scrinium-root-{}", std::process::id()));
    let service = |words: &[&str]| {
        let mut command = Command::new(program("scrinium-agent"));
        let output = command
            .arg("service")
            .args(words)
            .arg("--root")
            .arg(&root)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    service(&["install"]);
    let path = root.join("etc/systemd/system/scrinium-agent.service");
    let unit = std::fs::read_to_string(&path).unwrap();
    for line in [
        "User=scrinium-agent",
        "AmbientCapabilities=CAP_DAC_READ_SEARCH",
        "CapabilityBoundingSet=CAP_DAC_READ_SEARCH",
        "Type=notify",
        "ProtectSystem=strict",
        "ExecReload=/bin/kill -HUP $MAINPID",
        &format!("ExecStart={} run", program("scrinium-agent").display()),
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}: {unit}");
    }
    let users = std::fs::read_to_string(root.join("etc/sysusers.d/scrinium-agent.conf")).unwrap();
    assert!(users.starts_with("u scrinium-agent "), "{users}");
    if has_tool("systemd-analyze") {
        let verified = Command::new("systemd-analyze")
            .arg("verify")
            .arg(&path)
            .output()
            .unwrap();
        let said = text(&verified.stderr);
        let about_us: Vec<&str> = said
            .lines()
            .filter(|line| line.contains("scrinium"))
            .collect();
        assert!(
            about_us
                .iter()
                .all(|line| line.contains("Documentation") || line.contains("man")),
            "{said}"
        );
    }
    service(&["uninstall"]);
    assert!(!path.try_exists().unwrap());
    std::fs::remove_dir_all(root).unwrap();
}

/// sd_notify: ready when it collects, alive as often as asked, stopping when it is told to.
#[test]
fn the_service_manager_hears_that_the_agent_is_ready_lives_and_stops() {
    let mut lab = Lab::start("notify");
    lab.add_agent("web1", lab.sl, "");
    let path = lab.dir.join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let notify = format!("NOTIFY_SOCKET={}", path.display());
    lab.spawn_agent("web1", "", &["env", &notify, "WATCHDOG_USEC=600000"]);
    let next = || {
        let mut buffer = [0; 64];
        let len = socket.recv(&mut buffer).unwrap();
        text(&buffer[..len])
    };
    assert_eq!(next(), "READY=1");
    for _ in 0..3 {
        assert_eq!(next(), "WATCHDOG=1");
    }
    lab.stop_agent("web1");
    assert!((0..20).any(|_| next() == "STOPPING=1"));
}

/// The server's unit has a user of its own, two capabilities, descriptors enough and a watchdog; systemd itself finds
/// nothing wrong with it.
#[test]
fn the_installed_unit_of_the_server_is_valid_and_hardened() {
    let root = std::env::temp_dir().join(format!("scrinium-server-root-{}", std::process::id()));
    let service = |words: &[&str]| {
        let mut command = Command::new(program("scrinium-server"));
        command.arg("service").args(words).arg("--root").arg(&root);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    service(&["install"]);
    let path = root.join("etc/systemd/system/scrinium-server.service");
    let unit = std::fs::read_to_string(&path).unwrap();
    for line in [
        "User=scrinium-server",
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_DAC_READ_SEARCH",
        "Type=notify",
        "WatchdogSec=60",
        "LimitNOFILE=524288",
        "NoNewPrivileges=yes",
        "Restart=on-failure",
        "ExecReload=/bin/kill -HUP $MAINPID",
        &format!("ExecStart={} run", program("scrinium-server").display()),
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}: {unit}");
    }
    let users = root.join("etc/sysusers.d/scrinium-server.conf");
    let users = std::fs::read_to_string(users).unwrap();
    assert!(users.starts_with("u scrinium-server "), "{users}");
    if has_tool("systemd-analyze") {
        let mut command = Command::new("systemd-analyze");
        let said = text(&command.arg("verify").arg(&path).output().unwrap().stderr);
        let about_us = said.lines().filter(|line| line.contains("scrinium"));
        let wrong: Vec<&str> = about_us
            .filter(|line| !line.contains("Documentation") && !line.contains("man"))
            .collect();
        assert!(wrong.is_empty(), "{said}");
    }
    service(&["uninstall"]);
    assert!(!path.try_exists().unwrap());
}

/// The manager hears that the server is ready when its ports are open, that it lives, and that it stops.
#[test]
fn the_manager_of_the_server_hears_when_it_is_ready_alive_and_stopping() {
    let mut lab = Lab::start("server-notify");
    lab.stop_server();
    let path = lab.dir.join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    lab.server_environment = vec![
        ("NOTIFY_SOCKET".into(), path.display().to_string()),
        ("WATCHDOG_USEC".into(), "600000".into()),
    ];
    lab.start_server();
    let hear = || {
        let mut buffer = [0; 256];
        let len = socket.recv(&mut buffer).unwrap();
        text(&buffer[..len])
    };
    assert_eq!(hear(), "READY=1");
    assert_eq!((hear(), hear()), ("WATCHDOG=1".into(), "WATCHDOG=1".into()));
    lab.stop_server();
    let said = std::iter::from_fn(|| Some(hear())).find(|said| said != "WATCHDOG=1");
    assert_eq!(said.unwrap(), "STOPPING=1");
}
