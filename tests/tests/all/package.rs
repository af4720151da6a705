//! An export package is checked without the server; any change is noticed.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::Duration;

use scrinium_tests::corpus::Corpus;
use scrinium_tests::lab::{Lab, text};
use scrinium_tests::program;

#[test]
fn a_package_is_whole_until_any_byte_of_it_changes() {
    let mut lab = Lab::start("package");
    lab.add_agent("web1", lab.sl, "");
    let path = lab.log("app.log");
    let mut lines = Vec::new();
    Corpus::new().lines(5000, &mut lines);
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .unwrap()
        .write_all(&lines)
        .unwrap();
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &path, lines.len(), Duration::from_secs(30));
    let package = lab.dir.join("package.tar");
    let out = package.to_str().unwrap();
    let exported = lab.server(&[
        "export",
        "--agent",
        "web1",
        "--path",
        path.to_str().unwrap(),
        "--out",
        out,
    ]);
    assert!(exported.status.success(), "{}", text(&exported.stderr));

    let check = || {
        let output = Command::new(program("scrinium-verify"))
            .arg(&package)
            .output()
            .unwrap();
        (
            output.status.code(),
            text(&output.stdout) + &text(&output.stderr),
        )
    };
    assert_eq!(check().0, Some(0), "{}", check().1);
    // Stock tools read it.
    let log = Command::new("tar")
        .arg("xOf")
        .arg(&package)
        .arg("log.txt")
        .output()
        .unwrap();
    assert!(log.stdout == lines);

    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&package)
        .unwrap();
    let len = file.metadata().unwrap().len();
    let flip = |at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    };
    for at in [600, 1800, len / 3, len / 2, len * 9 / 10] {
        flip(at);
        assert_ne!(check().0, Some(0), "byte {at} of {len}: {}", check().1);
        flip(at);
    }
    assert_eq!(check().0, Some(0));
}
