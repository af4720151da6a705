//! A volume opens on its own machine only, or with two recovery shares.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use scrinium_tests::days::ship_a_line;
use scrinium_tests::lab::{Lab, text};
use scrinium_tests::{has_tool, program, skipped, wait_until};

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
        refused
            .1
            .contains("bound to another machine: machine-id differs"),
        "{}",
        refused.1
    );
    // Written down where it happened, without a value; the trail of whoever opens it has it.
    let noted = std::fs::read_to_string(copy.join("refused-openings")).unwrap();
    assert!(
        noted.lines().count() == 1 && noted.contains("\"differs\":[\"machine-id\"]"),
        "{noted}"
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

/// What may change is left out of the binding; new shares take two of the old ones and end them; a death between
/// secret and slots locks nobody out.
#[test]
fn a_volume_is_rekeyed_without_its_data_being_written_again() {
    if !has_tool("unshare") || !is_root() {
        skipped("another machine is made with mount namespaces, which need root");
        return;
    }
    let mut lab = Lab::start("rekey");
    ship_a_line(&mut lab, "web1", "MARKERONE of web1\n");
    let running = lab.server(&["volume", "rekey"]);
    assert!(text(&running.stderr).contains("stop it first"));
    lab.stop_server();
    let files = || contents(&lab.data().join("archive"));
    let (before, secret) = (files(), read(&lab, "install.secret"));
    let wrong = lab.server(&["volume", "rekey", "--may-change", "colour"]);
    assert!(text(&wrong.stderr).contains("this machine is told by machine-id"));
    for fault in [
        "server: next install secret written",
        "server: slots written",
    ] {
        let mut command = lab.server_command(&["volume", "rekey"]);
        let died = command.env("SCRINIUM_FAULT", fault).output().unwrap();
        assert!(!died.status.success(), "{fault}");
        assert_eq!(lab.verify().0, 0, "{fault}");
        let left = lab.data().join("install.secret.next");
        assert!(!left.try_exists().unwrap(), "{fault}");
    }
    let verify = format!(
        "{} verify --data {}",
        program("scrinium-server").display(),
        lab.data().display()
    );
    assert_eq!(elsewhere(&lab, &verify).0, 1);
    let looser = lab.server(&["volume", "rekey", "--may-change", "machine-id"]);
    assert!(looser.status.success(), "{}", text(&looser.stderr));
    assert!(
        text(&looser.stdout).contains("may change:   machine-id"),
        "{}",
        text(&looser.stdout)
    );
    let (code, said) = elsewhere(&lab, &verify);
    assert_eq!(code, 0, "{said}");
    assert_ne!(read(&lab, "install.secret"), secret);

    let one = ["volume", "rekey", "--new-shares", "--share", &lab.shares[0]];
    assert!(!lab.server(&one).status.success());
    let two = [&one[..], &["--share", &lab.shares[1], "--recovery-out"]].concat();
    let file = lab.dir.join("new-shares");
    let mut command = lab.server_command(&two[..two.len() - 1]);
    let dealt = command.arg("--recovery-out").arg(&file).output().unwrap();
    assert!(dealt.status.success(), "{}", text(&dealt.stderr));
    let new = std::fs::read_to_string(&file).unwrap();
    let new: Vec<&str> = new.lines().collect();
    assert_eq!(new.len(), 3);
    let recover = |one: &str, two: &str| lab.server(&["recover", "--share", one, "--share", two]);
    let old = recover(&lab.shares[1], &lab.shares[2]);
    assert!(
        text(&old.stderr).contains("were replaced by others"),
        "{}",
        text(&old.stderr)
    );
    assert!(!recover(new[0], &lab.shares[1]).status.success());
    assert!(recover(new[2], new[0]).status.success());
    lab.start_server();
    assert_eq!(lab.count("MARKERONE"), 1);
    assert!(lab.count("stream:audit \"volume rekeyed\"") >= 2);
    let after = contents(&lab.data().join("archive"));
    assert!(
        before.iter().all(|file| after.contains(file)),
        "data was written again"
    );
}

/// A volume that is bound to a TPM opens with that chip and no other, whoever knows the machine.
#[test]
fn a_volume_bound_to_a_tpm_opens_with_that_chip_alone() {
    if !has_tool("swtpm") {
        return;
    }
    let dir = std::env::temp_dir().join(format!("scrinium-tpm-{}", std::process::id()));
    let _absent = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let own = Chip::start(&dir, "own");
    let (data, shares) = (dir.join("data"), dir.join("shares"));
    let server = |words: &[&str]| {
        let mut command = Command::new(program("scrinium-server"));
        command.args(words).arg("--data").arg(&data);
        command
    };
    std::fs::File::create(dir.join("password"))
        .unwrap()
        .write_all(b"correct horse battery\n")
        .unwrap();
    let made = server(&["init", "--tpm", own.path()])
        .arg("--recovery-out")
        .arg(&shares)
        .arg("--admin-password-file")
        .arg(dir.join("password"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    let show = server(&["volume", "show"]).output().unwrap();
    assert!(
        text(&show.stdout).contains(own.path()),
        "{}",
        text(&show.stdout)
    );
    let opens = || {
        let output = server(&["verify"]).output().unwrap();
        (output.status.success(), text(&output.stderr))
    };
    assert!(opens().0, "{}", opens().1);

    // The chip is not there; it is another one; it is the same again.
    let own = own.stop();
    let (opened, said) = opens();
    assert!(
        !opened && said.contains("bound to another machine") && said.contains("TPM"),
        "{said}"
    );
    let other = Chip::start(&dir, "other");
    std::os::unix::fs::symlink(other.path(), &own.socket).unwrap();
    let (opened, said) = opens();
    assert!(
        !opened && said.contains("not the one that sealed the key"),
        "{said}"
    );
    std::fs::remove_file(&own.socket).unwrap();
    let own = own.start_again();
    assert!(opens().0, "{}", opens().1);

    // Two shares open it without the chip, and then without any.
    drop(own);
    let shares = std::fs::read_to_string(&shares).unwrap();
    let mut recover = server(&["recover"]);
    for share in shares.lines().take(2) {
        recover.args(["--share", share]);
    }
    let recovered = recover.output().unwrap();
    assert!(recovered.status.success(), "{}", text(&recovered.stderr));
    assert!(opens().0);
    let bound = server(&["volume", "rekey", "--tpm", other.path()])
        .output()
        .unwrap();
    assert!(bound.status.success(), "{}", text(&bound.stderr));
    assert!(opens().0);
    drop(other);
    assert!(!opens().0);
    std::fs::remove_dir_all(&dir).unwrap();
}

/// A software TPM.
struct Chip {
    name: String,
    dir: PathBuf,
    socket: PathBuf,
    child: Option<Child>,
}

impl Chip {
    fn start(dir: &Path, name: &str) -> Self {
        let chip = Self {
            name: name.to_owned(),
            dir: dir.to_owned(),
            socket: dir.join(format!("{name}.sock")),
            child: None,
        };
        std::fs::create_dir(dir.join(name)).unwrap();
        chip.start_again()
    }

    fn start_again(mut self) -> Self {
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", self.dir.join(&self.name).display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", self.socket.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}.ctrl", self.socket.display()))
            .spawn();
        self.child = Some(child.unwrap());
        wait_until("the chip is there", Duration::from_secs(20), || {
            self.socket.try_exists().unwrap()
        });
        self
    }

    fn path(&self) -> &str {
        self.socket.to_str().unwrap()
    }

    fn stop(mut self) -> Self {
        self.end();
        self
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
            let _gone = std::fs::remove_file(&self.socket);
        }
    }
}

impl Drop for Chip {
    fn drop(&mut self) {
        self.end();
    }
}

fn read(lab: &Lab, name: &str) -> Vec<u8> {
    std::fs::read(lab.data().join(name)).unwrap()
}

/// Every file of a directory, with its bytes.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = std::fs::read_dir(dir)
        .unwrap()
        .map(|file| file.unwrap().path());
    files
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
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
