//! What an unprivileged user of an agent's machine can do to it: neither read what he may not, nor fill the archive, nor
//! keep others from being collected, nor see its secrets.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use scrinium_tests::lab::{Lab, cpu_seconds, text};
use scrinium_tests::{program, skipped, wait_until};

const PATIENCE: Duration = Duration::from_secs(40);
const NOBODY: u32 = 65534;

fn lab(name: &str) -> Lab {
    let mut lab = Lab::start(name);
    lab.add_agent("web1", lab.sl, "");
    let logs = lab.dir.join("logs");
    let config = format!("[[source]]\nfile = \"{}/**/*.log\"\n", logs.display());
    lab.write("web1.toml", config.as_bytes());
    std::fs::create_dir_all(logs.join("app")).unwrap();
    lab
}

fn write(path: &Path, text: &str) {
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// The agent reads everything; a user's link must not make it read for him. His own files, root's links, and
/// what his links would hide stay collected.
#[test]
fn a_link_of_a_user_does_not_make_the_agent_read_what_he_may_not() {
    let mut lab = lab("links-of-users");
    let (secret, own) = (lab.dir.join("secret"), lab.dir.join("own"));
    write(&secret, "root:$6$topsecret:1::\n");
    write(&own, "words of his own\n");
    write(&lab.log("system.log"), "words of the system\n");
    lchown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
    let link = |target: &Path, name: &str| {
        let path = lab.log(name);
        symlink(target, &path).unwrap();
        lchown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    };
    link(&secret, "app/link.log");
    link(&lab.dir, "app/dir");
    link(&own, "app/own.log");
    // Before the file's own name, which must not be taken for another name of his.
    link(&lab.log("system.log"), "app/a.log");
    symlink(&own, lab.log("roots.log")).unwrap();
    // A file that is collected, and becomes a link.
    let turned = lab.log("app/turned.log");
    write(&turned, "before it turned\n");
    lab.start_agent("web1");
    for words in [
        "words of his own",
        "words of the system",
        "before it turned",
    ] {
        wait_until(words, PATIENCE, || lab.count(&format!("\"{words}\"")) == 1);
    }
    std::fs::remove_file(&turned).unwrap();
    symlink(&secret, &turned).unwrap();
    lchown(&turned, Some(NOBODY), Some(NOBODY)).unwrap();
    wait_until("it is said in the stream", PATIENCE, || {
        lab.count("stream:turned.log \"gap: a symbolic link of user 65534\"") == 1
    });
    wait_until("it is said in the agent's own", PATIENCE, || {
        lab.count("stream:scrinium-agent \"is not followed\" link.log") == 1
    });
    // The agent looks again and again, and says it once.
    write(&lab.log("system.log"), "later words\n");
    wait_until("later", PATIENCE, || lab.count("\"later words\"") == 1);
    assert_eq!(lab.count("topsecret"), 0);
    assert_eq!(
        lab.count("stream:scrinium-agent \"is not followed\" link.log"),
        1
    );
    assert_eq!(lab.count("\"words of the system\""), 1);
    let check = Command::new(program("scrinium-agent"))
        .arg("check")
        .arg("--state")
        .arg(lab.state("web1"))
        .arg("--config")
        .arg(lab.dir.join("web1.toml"))
        .output()
        .unwrap();
    let said = text(&check.stdout);
    assert!(
        said.contains("not collected: ") && said.contains("app/link.log"),
        "{said}"
    );
}

/// Where a glob begins may be a directory of a user, who puts a link in its place: it is not followed, and said.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "a directory is renamed as its owner does it"
)]
fn a_directory_of_a_user_that_becomes_a_link_is_not_followed() {
    let mut lab = lab("swapped");
    let (home, etc) = (lab.dir.join("home"), lab.dir.join("etc"));
    let logs = home.join("logs");
    for dir in [&logs, &etc] {
        std::fs::create_dir_all(dir).unwrap();
    }
    for path in [&home, &logs] {
        lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    write(&etc.join("shadow.log"), "root:$6$topsecret:1::\n");
    write(&logs.join("app.log"), "words of the program\n");
    let config = format!(
        "[[source]]\nfile = \"{0}/logs/*.log\"\n[[source]]\nfile = \"{0}/logs/shadow.log\"\n[[source]]\nfile = \"{1}/*.log\"\n",
        home.display(),
        lab.dir.join("logs").display()
    );
    lab.write("web1.toml", config.as_bytes());
    lab.start_agent("web1");
    wait_until("his directory is collected", PATIENCE, || {
        lab.count("\"words of the program\"") == 1
    });
    std::fs::rename(&logs, home.join("before")).unwrap();
    symlink(&etc, &logs).unwrap();
    lchown(&logs, Some(NOBODY), Some(NOBODY)).unwrap();
    wait_until("it is said", PATIENCE, || {
        lab.count("stream:scrinium-agent \"is not followed\" home logs") >= 1
    });
    // His own directory, by a link of his own, is his affair.
    std::fs::remove_file(&logs).unwrap();
    symlink(home.join("before"), &logs).unwrap();
    lchown(&logs, Some(NOBODY), Some(NOBODY)).unwrap();
    write(&home.join("before/later.log"), "later words\n");
    lchown(home.join("before/later.log"), Some(NOBODY), Some(NOBODY)).unwrap();
    wait_until("his own is collected", PATIENCE, || {
        lab.count("\"later words\"") == 1
    });
    assert_eq!(lab.count("topsecret"), 0);
    assert_eq!(lab.count("\"words of the program\""), 1);
}

/// A file of a tebibyte without a block on the disk costs a gap entry; what is written into it later is collected.
#[test]
fn a_hole_to_the_end_of_a_file_is_a_gap_entry_and_not_read() {
    let mut lab = lab("hole");
    let sparse = lab.log("app/sparse.log");
    let begun = lab.log("app/begun.log");
    write(&begun, "a begun line\n");
    for path in [&sparse, &begun] {
        let file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        file.set_len(1 << 40).unwrap();
    }
    lab.start_agent("web1");
    wait_until("both holes are said", PATIENCE, || {
        lab.count("\"gap: the file has a hole of\" \"to its end\"") == 2
    });
    let log = lab.log("other.log");
    write(&log, "others are collected\n");
    lab.wait_for_bytes("web1", &log, 21, PATIENCE);
    let cpu = cpu_seconds(lab.agent_pid("web1"));
    assert!(cpu < 5.0, "{cpu} s");
    write(&sparse, "behind the hole\n");
    wait_until("what is behind it is collected", PATIENCE, || {
        lab.count("\"behind the hole\"") == 1
    });
    let archived = lab.server(&["search", "stream:sparse.log", "--format", "json"]);
    assert!(archived.stdout.len() < 10_000);
    // A restart neither says nor sends anything again.
    lab.stop_agent("web1");
    lab.start_agent("web1");
    write(&begun, "and once more\n");
    wait_until("it goes on", PATIENCE, || {
        lab.count("\"and once more\"") == 1
    });
    assert_eq!(lab.count("stream:sparse.log \"to its end\""), 1);
}

/// A compressed generation that unpacks to a thousand times its length is left, others are read meanwhile.
#[test]
fn a_compressed_generation_that_is_a_bomb_is_left_with_a_gap_entry() {
    let mut lab = lab("bomb");
    write(&lab.log("app/x.log.2"), "the oldest generation\n");
    let bomb = lab.log("app/x.log.1.gz");
    let made = Command::new("sh")
        .args([
            "-c",
            "head -c 400000000 /dev/zero | tr '\\0' 'a' | gzip -9 > \"$0\"",
        ])
        .arg(&bomb)
        .status()
        .unwrap();
    assert!(made.success());
    write(&lab.log("app/x.log"), "after the generation\n");
    // Old generations are asked for too.
    let logs = lab.dir.join("logs");
    let config = format!(
        "[[source]]\nfile = \"{0}/**/*.log\"\n[[source]]\nfile = \"{0}/**/*.log.*\"\n",
        logs.display()
    );
    lab.write("web1.toml", config.as_bytes());
    lab.start_agent("web1");
    wait_until("the bomb is being read", PATIENCE, || {
        lab.count("\"the oldest generation\"") == 1
    });
    let log = lab.log("other.log");
    write(&log, "others are collected\n");
    lab.wait_for_bytes("web1", &log, 21, Duration::from_secs(5));
    wait_until("it is left", Duration::from_secs(120), || {
        lab.count("stream:x.log \"is left after byte\" \"it unpacks to more than\"") == 1
    });
    wait_until("what came after it is read", PATIENCE, || {
        lab.count("\"after the generation\"") == 1
    });
}

/// A restored server makes an agent of many files go on elsewhere with each: it does, and does not end.
#[test]
fn an_agent_of_many_files_goes_on_after_its_server_was_restored() {
    const FILES: usize = 1500;
    let mut lab = lab("rewinds");
    for n in 0..FILES {
        write(&lab.log(&format!("{n:04}.log")), &format!("first of {n}\n"));
    }
    lab.start_agent("web1");
    let all = |lab: &Lab, word: &str| {
        wait_until(word, Duration::from_secs(90), || {
            lab.count(&format!("{word} stream:.log agent:web1 of")) == FILES as u64
        });
    };
    all(&lab, "first");
    lab.stop_server();
    let (kept, data) = (lab.dir.join("kept"), lab.data());
    let copy = |from: &Path, to: &Path| {
        let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
        assert!(copied.unwrap().success());
    };
    copy(&data, &kept);
    lab.start_server();
    for n in 0..FILES {
        write(
            &lab.log(&format!("{n:04}.log")),
            &format!("second of {n}\n"),
        );
    }
    all(&lab, "second");
    // The server is as it was: of every file it lacks what it had acknowledged.
    lab.kill_server();
    std::fs::remove_dir_all(&data).unwrap();
    copy(&kept, &data);
    lab.start_server();
    // Its credential is a later one than the server knows: a person lets it in.
    wait_until("it waits for a person", PATIENCE, || {
        lab.agent("web1")["quarantine"]["approved"] == false
    });
    let approved = lab.server(&["agent", "approve", "web1"]);
    assert!(approved.status.success(), "{}", text(&approved.stderr));
    lab.wait_connected("web1");
    all(&lab, "second");
    assert!(!lab.agent_has_ended("web1"));
    assert_eq!(lab.count("first stream:.log agent:web1 of"), FILES as u64);
}

/// A token or a share given by file, standard input or environment is in no list of processes.
#[test]
fn secrets_are_given_by_file_standard_input_or_environment() {
    let mut lab = Lab::start("secrets");
    let enrol = |name: &str| {
        let mut command = Command::new(program("scrinium-agent"));
        command
            .args(["enroll", "--state"])
            .arg(lab.state(name))
            .env_remove("SCRINIUM_TOKEN")
            .stdin(Stdio::null());
        command
    };
    let file = lab.dir.join("token");
    write(&file, &(lab.token("one", lab.sl) + "\n"));
    let by_file = enrol("one")
        .arg("--token-file")
        .arg(&file)
        .output()
        .unwrap();
    assert!(by_file.status.success(), "{}", text(&by_file.stderr));
    std::fs::remove_file(&file).unwrap();
    write(&file, &lab.token("two", lab.sl));
    let by_input = enrol("two")
        .args(["--token-file", "-"])
        .stdin(File::open(&file).unwrap())
        .output()
        .unwrap();
    assert!(by_input.status.success(), "{}", text(&by_input.stderr));
    let by_environment = enrol("three")
        .env("SCRINIUM_TOKEN", lab.token("three", lab.sl))
        .output()
        .unwrap();
    assert!(
        by_environment.status.success(),
        "{}",
        text(&by_environment.stderr)
    );
    let by_none = enrol("four").output().unwrap();
    assert_eq!(by_none.status.code(), Some(2), "{}", text(&by_none.stderr));
    lab.stop_server();
    let shares = [lab.dir.join("share.1"), lab.dir.join("share.2")];
    for (share, file) in lab.shares.iter().zip(&shares) {
        write(file, share);
    }
    let recovered = lab
        .server_command(&["recover"])
        .arg("--share-file")
        .arg(&shares[0])
        .arg("--share-file")
        .arg(&shares[1])
        .output();
    // `recover` takes no --config: the laboratory's word for every command.
    let recovered = recovered.unwrap();
    assert!(recovered.status.success(), "{}", text(&recovered.stderr));
    lab.start_server();
    lab.wait_for_socket();
}

/// Directories that hold keys are closed to others at the start, files are made for their owner alone, and nobody
/// but root looks into the memory.
#[test]
fn what_both_programs_keep_and_hold_in_memory_is_closed_to_others() {
    let mut lab = lab("modes");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    lab.stop_agent("web1");
    lab.stop_server();
    let (data, state) = (lab.data(), lab.state("web1"));
    for dir in [&data, &state] {
        std::fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
    }
    lab.start_server();
    lab.start_agent("web1");
    lab.wait_connected("web1");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&data), mode(&state)), (0o700, 0o700));
    let said = std::fs::read_to_string(lab.dir.join("server.out")).unwrap();
    assert!(said.contains("was open to other users"), "{said}");
    let mut dirs = vec![data, state];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
            if path.is_dir() {
                dirs.push(path);
            }
        }
    }
    for pid in [lab.server_pid(), lab.agent_pid("web1")] {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("Umask:\t0077"), "{status}");
        // proc(5): these files are root's when the process is not dumpable, whoever runs it.
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"));
        let words: Vec<&str> = core.unwrap().split_whitespace().collect();
        assert_eq!(words[4..6], ["0", "0"]);
    }
    assert!(is_closed_to_its_own_user(&lab));
    // Where the limit lets it, no memory is written to swap; with the usual limit nothing is locked.
    let locked = |lab: &Lab| {
        let pid = lab.agent_pid("web1");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmLck:"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap()
    };
    for (limit, is_locked) in [("65536", false), ("unlimited", true)] {
        let memlock = format!("--memlock={limit}:{limit}");
        let can = Command::new("prlimit").args([&memlock, "true"]).status();
        if !can.unwrap().success() {
            skipped(&format!(
                "the limit of locked memory cannot be made {limit} here"
            ));
            continue;
        }
        lab.stop_agent("web1");
        lab.spawn_agent("web1", "", &["prlimit", &memlock]);
        lab.wait_connected("web1");
        assert_eq!(locked(&lab) > 0, is_locked, "{limit}");
    }
}

/// Whether another process of the same unprivileged user may not look into the memory of the agent.
fn is_closed_to_its_own_user(lab: &Lab) -> bool {
    let dir = std::env::temp_dir().join(format!("scrinium-nobody-{}", std::process::id()));
    drop(std::fs::remove_dir_all(&dir));
    std::fs::create_dir_all(&dir).unwrap();
    let copy = dir.join("scrinium-agent");
    std::fs::copy(program("scrinium-agent"), &copy).unwrap();
    lchown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
    std::fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
    let as_nobody = |script: &str| {
        let mut command = Command::new("setpriv");
        command
            .args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "sh",
                "-c",
            ])
            .arg(script)
            .arg(&copy)
            .arg(lab.token("nobody", lab.sl));
        command.output().unwrap()
    };
    let script = "d=$(dirname \"$0\"); printf '[[source]]\\nfile = \"/nowhere\"\\n' > $d/c; SCRINIUM_TOKEN=\"$1\" \"$0\" enroll --state $d/state >&2 || exit 9
\"$0\" run --state $d/state --config $d/c 2>/dev/null & p=$!
n=0; until [ -S $d/state/status.sock ] || [ $n -ge 300 ]; do n=$((n+1)); sleep 0.1; done
cat /proc/$p/environ >/dev/null 2>&1; echo read $?; kill $p; wait $p";
    let output = as_nobody(script);
    let said = text(&output.stdout);
    std::fs::remove_dir_all(dir).unwrap();
    assert!(said.contains("read "), "{said} {}", text(&output.stderr));
    !said.contains("read 0")
}

/// Whoever writes an agent's configuration, the server too, could have it collect the keys with which it signs.
#[test]
fn the_agents_own_state_is_no_log_whatever_leads_there() {
    let mut lab = Lab::start("machine-own");
    let state = lab.state("web1");
    let by_root = format!("/proc/thread-self/root{}", state.display());
    symlink(&state, lab.dir.join("way")).unwrap();
    let more = format!(
        "[[source]]\nfile = \"{}/**\"\n[[source]]\nfile = \"{}/way/machine.json\"\n[[source]]\nfile = \"{by_root}/state.a\"\n",
        state.display(),
        lab.dir.display()
    );
    lab.add_agent("web1", lab.sl, &more);
    let log = lab.log("app.log");
    write(&log, "before\n");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 7, Duration::from_secs(30));
    wait_until("it is said", Duration::from_secs(30), || {
        lab.agent("web1")["sources"]
            .to_string()
            .contains("never collected")
    });
    write(&log, "after\n");
    lab.wait_for_bytes("web1", &log, 13, Duration::from_secs(30));
    for name in ["machine.json", "state.a", "state.b"] {
        assert_eq!(lab.count(&format!("agent:web1 stream:{name}")), 0, "{name}");
    }
    assert_eq!(lab.count("agent:web1 stream:agent-web1"), 0);
}
