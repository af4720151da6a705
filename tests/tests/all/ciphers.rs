//! The ciphers of the archive: chosen by configuration, seen in `policy`, and nothing readable under any.

use std::time::Duration;

use scrinium_tests::lab::{Lab, text};
use scrinium_tests::wait_until;
use scrinium_tests::writer::append;

#[test]
fn each_cipher_seals_what_is_written_while_it_is_chosen_and_all_of_it_stays_readable() {
    let mut lab = Lab::start("ciphers");
    lab.add_agent("web1", lab.sl, "");
    let log = lab.log("app.log");
    lab.start_agent("web1");
    let config = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    let mut written = Vec::new();
    for cipher in ["aes-256-gcm", "serpent-256", "twofish-256"] {
        lab.stop_server();
        let config = format!("{config}cipher = \"{cipher}\"\n");
        lab.write("server.toml", config.as_bytes());
        lab.start_server();
        // More than a log of 1 MiB: some of it is sealed into a segment, some is not.
        for n in 0..40_000 {
            let line = format!("zqMARKERqz {cipher} {n:06} {:x}\n", n * 0x9e37_79b9_u64);
            written.extend_from_slice(line.as_bytes());
        }
        let known = std::fs::metadata(&log).map_or(0, |file| file.len());
        let fresh = &written[usize::try_from(known).unwrap()..];
        std::io::Write::write_all(&mut append(&log), fresh).unwrap();
        lab.wait_for_bytes("web1", &log, written.len(), Duration::from_secs(60));
        wait_until("some of it is sealed", Duration::from_secs(30), || {
            let policy = policy(&lab);
            policy["cipher"] == cipher && policy["sealed"][cipher]["files"].as_u64() > Some(1)
        });
    }
    assert!(lab.export("web1", &log) == written);
    for cipher in ["aes", "serpent", "twofish"] {
        assert_eq!(lab.count(&format!("MARKERqz {cipher}")), 0);
        assert_eq!(lab.count(&format!("zqMARKERqz {cipher}")), 40_000);
    }
    for secret in ["zqMARKERqz", "app.log", "web1"] {
        assert_eq!(Lab::holds(&lab.data(), secret.as_bytes()), None, "{secret}");
    }
    assert_eq!(lab.verify().0, 0);
    let shown = text(&lab.server(&["policy"]).stdout);
    assert!(
        shown.starts_with("what is written now is sealed with: twofish-256\n"),
        "{shown}"
    );

    // A byte changed under any cipher is found.
    lab.stop_server();
    let segments: Vec<_> = std::fs::read_dir(lab.data().join("archive"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    for segment in &segments {
        let mut bytes = std::fs::read(segment).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let mut file = std::fs::File::create(segment).unwrap();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
    }
    let (code, report) = lab.verify();
    assert_eq!(code, 3, "{report}");
    for segment in &segments {
        let name = segment.file_name().unwrap().to_str().unwrap();
        assert!(report.contains(name), "{name} is not in {report}");
    }
}

fn policy(lab: &Lab) -> serde_json::Value {
    let shown = lab.server(&["policy", "--json"]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    serde_json::from_slice(&shown.stdout).unwrap()
}
