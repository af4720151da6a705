//! What version 0.1.0 left on a disk works with the programs of today.

use std::process::Command;

use scrinium_tests::lab::{Lab, text};

/// Sealed segments, a log that was open when its server was killed, one interval, no acknowledgements noted elsewhere.
#[test]
fn a_volume_of_version_0_1_0_opens_is_whole_and_goes_on() {
    let mut lab = Lab::start("earlier");
    lab.stop_server();
    let vectors = concat!(env!("CARGO_MANIFEST_DIR"), "/vectors/volume-0.1.0");
    std::fs::remove_dir_all(lab.data()).unwrap();
    std::fs::create_dir(lab.data()).unwrap();
    let unpacked = Command::new("tar")
        .arg("-C")
        .arg(lab.data())
        .arg("-xzf")
        .arg(format!("{vectors}/volume.tar.gz"))
        .status();
    assert!(unpacked.unwrap().success());
    // It is bound to the machine it was made on.
    let shares = std::fs::read_to_string(format!("{vectors}/shares")).unwrap();
    let mut recover = lab.server_command(&["recover"]);
    for share in shares.lines().filter(|line| !line.is_empty()).take(2) {
        recover.args(["--share", share]);
    }
    let recovered = recover.output().unwrap();
    assert!(recovered.status.success(), "{}", text(&recovered.stderr));

    let (code, said) = lab.verify();
    assert!(code == 0 && said.contains("the archive is whole"), "{said}");
    lab.start_server();
    let counts = ["sealed line", "\"open line\"", "datagram"].map(|query| lab.count(query));
    assert_eq!(counts, [200, 100, 1]);
    assert_eq!(lab.agent("web1")["name"], "web1");
    assert!(lab.count("stream:audit \"server started\"") >= 1);
    let (code, said) = lab.verify();
    assert_eq!(code, 0, "{said}");
    // From now on it is remembered what was acknowledged, and by which keys intervals are signed.
    lab.stop_server();
    let (code, said) = lab.verify();
    assert!(
        code == 0 && said.contains("signed with a key of its own"),
        "{said}"
    );
    let logs = std::fs::read_dir(lab.data().join("log")).unwrap();
    for log in logs.flatten() {
        std::fs::remove_file(log.path()).unwrap();
    }
    assert_eq!(lab.verify().0, 3);
}
