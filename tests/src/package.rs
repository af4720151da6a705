//! Export packages, as whoever gets one handles them.

use std::path::Path;
use std::process::Command;

use crate::lab::text;
use crate::program;

/// The exit code of `scrinium-verify` on a package, and all it says.
#[must_use]
pub fn verify(package: &Path, more: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(program("scrinium-verify"));
    let output = command.arg(package).args(more).output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    (output.status.code(), said)
}

/// Unpacks it with stock tar into a directory, which is made anew.
pub fn unpack(package: &Path, to: &Path) {
    let _absent = std::fs::remove_dir_all(to);
    std::fs::create_dir(to).unwrap();
    let mut tar = Command::new("tar");
    let done = tar.arg("xf").arg(package).arg("-C").arg(to).status();
    assert!(done.unwrap().success());
}
