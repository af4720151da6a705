//! A file system of its own, whose power can fail.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{has_tool, skipped};

/// A disk with what a directory held, in the place of the directory. Taken away when it is dropped.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// `None` where it cannot be made: that needs the right to mount.
    #[must_use]
    pub fn in_place_of(dir: &Path, image: &Path, mib: u64) -> Option<Self> {
        for tool in ["mount", "mkfs.ext4", "python3"] {
            if !has_tool(tool) {
                return None;
            }
        }
        File::create(image).unwrap().set_len(mib << 20).unwrap();
        let made = Command::new("mkfs.ext4").arg("-q").arg(image).status();
        assert!(made.unwrap().success());
        let before = dir.with_extension("before");
        run("mv", &[dir, &before]);
        std::fs::create_dir(dir).unwrap();
        let disk = Self {
            image: image.to_owned(),
            at: dir.to_owned(),
        };
        if !disk.mount() {
            skipped("a disk of its own needs the right to mount one");
            return None;
        }
        run("cp", &[Path::new("-a"), &before.join("."), dir]);
        // Not those of other tests: what they have not synced is what they look at.
        run("sync", &[Path::new("-f"), dir]);
        Some(disk)
    }

    /// `EXT4_IOC_SHUTDOWN` without flushing the journal: from here on the disk takes and keeps nothing.
    pub fn shut_down(&self) {
        let script = "import fcntl,os,struct,sys\nd=os.open(sys.argv[1],os.O_RDONLY)\nfcntl.ioctl(d,0x8004587d,struct.pack('I',2))";
        run(
            "python3",
            &[Path::new("-c"), Path::new(script), self.at.as_path()],
        );
    }

    /// The machine starts again.
    pub fn start_again(&self) {
        run("umount", &[&self.at]);
        assert!(self.mount());
    }

    fn mount(&self) -> bool {
        // The journal is not written by itself within a round.
        let mut command = Command::new("mount");
        command.args(["-o", "loop,commit=300"]);
        command.arg(&self.image).arg(&self.at).stderr(Stdio::null());
        command.status().unwrap().success()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut command = Command::new("umount");
        command.arg("-l").arg(&self.at).stderr(Stdio::null());
        let _best_effort = command.status();
    }
}

fn run(program: &str, words: &[&Path]) {
    let done = Command::new(program).args(words).status();
    assert!(done.unwrap().success(), "{program} {words:?}");
}
