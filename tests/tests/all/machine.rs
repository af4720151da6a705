//! A volume opens on its own machine only, or with two recovery shares.

use std::process::Command;

use scrinium_tests::lab::{Lab, text};
use scrinium_tests::{has_tool, program, skipped};

#[test]
fn a_copied_volume_refuses_another_machine_and_two_shares_open_it() {
    if !has_tool("unshare") || !is_root() {
        skipped("another machine is made with mount namespaces, which need root");
        return;
    }
    let mut lab = Lab::start("machine");
    lab.stop_server();
    let copy = lab.dir.join("copy");
    assert!(
        Command::new("cp")
            .arg("-a")
            .arg(lab.data())
            .arg(&copy)
            .status()
            .unwrap()
            .success()
    );

    let refused = elsewhere(
        &lab,
        &format!(
            "{} verify --data {}",
            program("scrinium-server").display(),
            copy.display()
        ),
    );
    assert_eq!(refused.0, 1);
    assert!(
        refused.1.contains("bound to another machine"),
        "{}",
        refused.1
    );

    let one = format!(
        "{} recover --data {} --share {}",
        program("scrinium-server").display(),
        copy.display(),
        lab.shares[0]
    );
    assert_ne!(elsewhere(&lab, &one).0, 0);
    let two = format!("{one} --share {}", lab.shares[2]);
    let opened = elsewhere(&lab, &two);
    assert_eq!(opened.0, 0, "{}", opened.1);
    let verified = elsewhere(
        &lab,
        &format!(
            "{} verify --data {}",
            program("scrinium-server").display(),
            copy.display()
        ),
    );
    assert_eq!(verified.0, 0, "{}", verified.1);
    // The copy belongs to the other machine now; the original still to this one.
    assert_eq!(lab.verify().0, 0);
    let here = Command::new(program("scrinium-server"))
        .args(["verify", "--data"])
        .arg(&copy)
        .output()
        .unwrap();
    assert_ne!(here.status.code(), Some(0));
}

/// Runs a command on a machine with another identity: a mount namespace of its own in which
/// `/etc/machine-id` is another file.
fn elsewhere(lab: &Lab, command: &str) -> (i32, String) {
    lab.write("machine-id", b"00112233445566778899aabbccddeeff\n");
    let script = format!(
        "mount --bind {} /etc/machine-id && exec {command}",
        lab.dir.join("machine-id").display()
    );
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()
        .unwrap();
    (
        output.status.code().unwrap_or(-1),
        text(&output.stdout) + &text(&output.stderr),
    )
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    text(&id.stdout).trim() == "0"
}
