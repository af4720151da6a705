//! What a server that was taken over, or any account of its console, can make an agent do: name files, within
//! bounds, and nothing that this machine's own configuration does not allow.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use scrinium_tests::lab::{Lab, free_address, resident_bytes, text};
use scrinium_tests::wait_until;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

/// A lab with a connected agent whose own configuration is `own`, and every `*.log` of the lab.
fn lab(name: &str, own: impl Fn(&Path) -> String) -> Lab {
    let mut lab = Lab::start(name);
    lab.add_agent("web1", lab.sl, "");
    let logs = lab.dir.join("logs");
    let config = format!(
        "{}\n[[source]]\nfile = \"{}/*.log\"\n",
        own(&lab.dir),
        logs.display()
    );
    lab.write("web1.toml", config.as_bytes());
    lab.start_agent("web1");
    lab.wait_connected("web1");
    lab
}

/// Has the server send a configuration; returns why it was rejected, when it was answered.
fn configure(lab: &Lab, config: &str) -> Option<String> {
    lab.write("central.toml", config.as_bytes());
    let file = lab.dir.join("central.toml").display().to_string();
    let before = lab.agent("web1")["configuration"]["version"].as_u64();
    let done = lab.server(&["agent", "configure", "web1", "--file", &file]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let mut rejected = None;
    wait_until("it is answered", PATIENCE, || {
        let state = lab.agent("web1")["configuration"].clone();
        rejected = state["rejected"].as_str().map(str::to_owned);
        state["version"].as_u64() > before && state["answered"] == state["version"]
    });
    rejected
}

fn write(path: &Path, text: &str) {
    let mut file = File::create(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn rejected(lab: &Lab, config: &str, words: &[&str]) {
    let reason = configure(lab, config).unwrap_or_default();
    for word in words {
        assert!(reason.contains(word), "{word} is not in: {reason}");
    }
}

/// A journal, a socket or a file that is denied here is denied to every kind of source; words that
/// `journalctl` would take for options never reach it.
#[test]
fn what_is_denied_here_is_denied_to_every_source_and_options_are_no_matches() {
    let lab = lab("deny", |dir| {
        let dir = dir.display();
        format!("deny = [\"{dir}/private/**\"]\nallow_listen = [\"unix://{dir}/**\"]")
    });
    let private = lab.dir.join("private");
    std::fs::create_dir_all(&private).unwrap();
    std::os::unix::fs::symlink(&private, lab.dir.join("public")).unwrap();
    write(&private.join("x.txt"), "denied words\n");
    for dir in ["private", "public"] {
        let dir = lab.dir.join(dir);
        let dir = dir.display();
        rejected(
            &lab,
            &format!("[[source]]\njournal = \"{dir}\"\n"),
            &["denied", "journal"],
        );
        let socket = format!("[[source]]\nsyslog = \"unix://{dir}/s.sock\"\n");
        rejected(&lab, &socket, &["denied", "s.sock"]);
        let file = format!("[[source]]\nfile = \"{dir}/*.txt\"\n");
        assert_eq!(configure(&lab, &file), None);
    }
    let owned = lab.dir.join("owned-by-the-server");
    for word in [
        format!("--cursor-file={}", owned.display()),
        "--vacuum-files=1".into(),
        "-ufoo=bar".into(),
        "/bin/sh".into(),
    ] {
        let config = format!("[[source]]\njournal = \"system\"\nmatches = [\"{word}\"]\n");
        rejected(&lab, &config, &["source.matches", &word]);
    }
    assert!(!owned.try_exists().unwrap());
    // A generation of a file that is allowed may be denied.
    let logs = lab.dir.join("logs");
    write(&logs.join("two.txt.1"), "denied words\n");
    write(&logs.join("two.txt"), "two\n");
    let generations = format!(
        "deny = [\"{0}/*.1\"]\n[[source]]\nfile = \"{0}/*.txt\"\n[[source]]\nfile = \"{0}/*.txt.*\"\n",
        logs.display()
    );
    assert_eq!(configure(&lab, &generations), None);
    lab.wait_for_bytes("web1", &logs.join("two.txt"), 4, PATIENCE);
    // One that is fine is taken up after all of them, and nothing denied was collected meanwhile.
    let log = lab.log("app.log");
    write(&log, "allowed\n");
    lab.wait_for_bytes("web1", &log, 8, PATIENCE);
    assert_eq!(lab.count("\"denied words\""), 0);
}

/// The server opens no socket or port that this machine does not allow, and takes none from another program.
#[test]
fn the_server_lets_listen_only_where_the_machine_allows_and_takes_no_socket_away() {
    let allowed = free_address();
    let lab = lab("listen", |dir| {
        format!(
            "allow_listen = [\"unix://{}/run/**\", \"udp://{allowed}\"]",
            dir.display()
        )
    });
    let run = lab.dir.join("run");
    std::fs::create_dir_all(&run).unwrap();
    let listen = |place: &str| format!("[[source]]\nsyslog = \"{place}\"\n");
    let unix = |path: &Path| listen(&format!("unix://{}", path.display()));
    for place in [
        format!("udp://{}", free_address()),
        format!("tcp://{allowed}"),
        format!("unix://{}/docker.sock", lab.dir.display()),
        format!("unix://{}/../docker.sock", run.display()),
    ] {
        rejected(&lab, &listen(&place), &[&place, "allow_listen"]);
    }
    // In the allowed directory another program listens: its socket stays, with its mode.
    let served = run.join("served.sock");
    let listener = UnixListener::bind(&served).unwrap();
    std::fs::set_permissions(&served, std::fs::Permissions::from_mode(0o600)).unwrap();
    let free = run.join("free.sock");
    let both = unix(&served) + &unix(&free);
    assert_eq!(configure(&lab, &both), None);
    let datagrams = UnixDatagram::unbound().unwrap();
    wait_until("the free one is bound", PATIENCE, || {
        datagrams.send_to(b"<13>free words", &free).is_ok()
    });
    wait_until("the other is refused", PATIENCE, || {
        lab.count("stream:scrinium-agent \"another program may listen there\"") == 1
    });
    UnixStream::connect(&served).expect("its program still serves it");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&served), mode(&free)), (0o600, 0o660));
    wait_until(
        "what was sent to the free one is archived",
        PATIENCE,
        || lab.count("\"free words\"") == 1,
    );
    drop(listener);
    rejected(&lab, &(unix(&free) + "mode = \"0666\"\n"), &["source.mode"]);
    let address = listen(&format!("udp://{allowed}"));
    assert_eq!(configure(&lab, &address), None);
}

/// Sources, processes, ports and patterns are bounded, and a refusal names source and bound.
#[test]
fn what_a_configuration_of_the_server_costs_is_bounded() {
    let lab = lab("bounds", |_| String::new());
    let before = resident_bytes(lab.agent_pid("web1"));
    let many =
        |count: usize, each: &dyn Fn(usize) -> String| (0..count).map(each).collect::<String>();
    let journals = many(200, &|n| {
        format!("[[source]]\njournal = \"system\"\nmatches = [\"A={n}\"]\n")
    });
    rejected(
        &lab,
        &journals,
        &["source 9 (journal = 'system')", "at most 8 journals"],
    );
    let ports = many(500, &|n| {
        format!("[[source]]\nsyslog = \"udp://127.0.0.1:{}\"\n", 21_000 + n)
    });
    rejected(
        &lab,
        &ports,
        &["source 17 (", "at most 16 places to listen"],
    );
    let pattern = |n: usize| {
        format!(
            "[[source]]\nfile = \"/nowhere/{n}\"\nmultiline_start = '(?:[a-z]{{900}}){{9}}{n}'\n"
        )
    };
    rejected(
        &lab,
        &many(300, &pattern),
        &["at most 32 multiline patterns"],
    );
    rejected(&lab, &pattern(1), &["multiline_start", "size limit"]);
    let files = many(300, &|n| format!("[[source]]\nfile = \"/nowhere/{n}\"\n"));
    rejected(
        &lab,
        &files,
        &["source 257 (file = '/nowhere/256')", "at most 256 sources"],
    );
    let children = Command::new("ps")
        .args(["--ppid", &lab.agent_pid("web1").to_string(), "-o", "comm="])
        .output()
        .unwrap();
    assert_eq!(text(&children.stdout), "");
    let after = resident_bytes(lab.agent_pid("web1"));
    assert!(after < before + (32 << 20), "{before} {after}");
}

/// An agent or its own configuration that was renewed may allow less than before: what is not allowed is
/// left out, the rest goes on, and the server is told.
#[test]
fn what_was_in_force_and_is_not_allowed_any_more_is_left_out_and_told() {
    let place = free_address();
    let mut lab = lab("renewed", |_| format!("allow_listen = [\"udp://{place}\"]"));
    let more = lab.dir.join("more");
    std::fs::create_dir_all(&more).unwrap();
    let config = format!(
        "[[source]]\nfile = \"{}/*.txt\"\n[[source]]\nsyslog = \"udp://{place}\"\n",
        more.display()
    );
    assert_eq!(configure(&lab, &config), None);
    lab.stop_agent("web1");
    lab.write("web1.toml", b"[[source]]\nfile = \"/nowhere/*.log\"\n");
    lab.start_agent("web1");
    let mut told = Value::Null;
    wait_until("the server is told", PATIENCE, || {
        told = lab.agent("web1")["configuration"]["rejected"].clone();
        told.is_string()
    });
    let told = told.as_str().unwrap();
    assert!(
        told.contains("in force without") && told.contains(&place.to_string()),
        "{told}"
    );
    let file = more.join("x.txt");
    write(&file, "goes on\n");
    lab.wait_for_bytes("web1", &file, 8, PATIENCE);
}

/// What the server does not name stays as the machine has it: sources, and limits that were set at installation. What
/// it names above them is not taken, and the server's side shows each thing with who said it.
#[test]
fn what_a_configuration_of_the_server_does_not_name_stays_as_the_machine_has_it() {
    let lab = lab("unnamed", |_| {
        "[spool]\ndisk_bytes_max = \"32 MiB\"\n[limits]\ncpu_percent_max = 60\nupload_bytes_per_s_max = \"10 MiB\"".into()
    });
    let own = format!("{}/*.log", lab.dir.join("logs").display());
    let more = lab.dir.join("more");
    std::fs::create_dir_all(&more).unwrap();
    let shown = |lab: &Lab| -> Vec<String> {
        let agent = lab.agent("web1");
        let settings = agent["in_force"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        settings
            .map(|one| {
                format!(
                    "{} {} {}",
                    text(&one["from"]),
                    text(&one["name"]),
                    text(&one["value"])
                )
            })
            .collect()
    };
    let limits = |disk: &str, ram: &str, upload: &str| {
        [
            format!("{ram} spool.ram_bytes_max 16 MiB"),
            format!("{disk} spool.disk_bytes_max 32 MiB"),
            "default limits.deleted_bytes_max 1 GiB".to_owned(),
            format!("{upload} limits.upload_bytes_per_s_max 10 MiB"),
            "machine limits.cpu_percent_max 60 %".to_owned(),
        ]
    };
    let machine = [
        vec![format!("machine source.file {own}")],
        limits("machine", "default", "machine").into(),
    ]
    .concat();
    // It says so although nothing was sent to it yet.
    wait_until("it says what is in force", PATIENCE, || {
        shown(&lab) == machine
    });

    assert_eq!(configure(&lab, "deny = [\"/nowhere/**\"]\n"), None);
    let mut expected = machine.clone();
    expected.insert(1, "server deny /nowhere/**".into());
    assert_eq!(shown(&lab), expected);
    let log = lab.log("app.log");
    write(&log, "still collected\n");
    lab.wait_for_bytes("web1", &log, 16, PATIENCE);

    let source = format!("[[source]]\nfile = \"{}/*.txt\"\n", more.display());
    assert_eq!(configure(&lab, &source), None);
    let mut expected = machine;
    expected.insert(0, format!("server source.file {}/*.txt", more.display()));
    assert_eq!(shown(&lab), expected);
    let disk_max = || {
        lab.agent_status("web1")
            .and_then(|status| status["disk_bytes_max"].as_u64())
    };
    assert_eq!(disk_max(), Some(32 << 20));

    let above = "[spool]\ndisk_bytes_max = \"1 TiB\"\n[limits]\nupload_bytes_per_s_max = \"1 GiB\"\ncpu_percent_max = 90\n";
    assert_eq!(configure(&lab, above), None);
    let refused = |lab: &Lab| -> Vec<String> {
        let refused = shown(lab).into_iter();
        refused
            .filter(|one| one.starts_with("not-taken "))
            .collect()
    };
    assert_eq!(
        refused(&lab),
        [
            "not-taken spool.disk_bytes_max 1 TiB",
            "not-taken limits.upload_bytes_per_s_max 1 GiB",
            "not-taken limits.cpu_percent_max 90 %",
        ]
    );
    assert_eq!(disk_max(), Some(32 << 20));
    // Nothing of this machine but what was named was collected.
    let kinds = lab.search("agent:web1");
    let foreign = kinds.iter().filter(|hit| {
        let stream = hit["stream"].as_str().unwrap_or_default();
        stream.starts_with("/var/log")
    });
    assert_eq!(foreign.count(), 0);
}

/// A file that is denied is denied by each of its names, and with what rotation made of it.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "a log is renamed as its owner does it"
)]
fn what_is_denied_is_denied_by_links_and_with_its_generations() {
    let lab = lab("names", |dir| {
        let dir = dir.display();
        format!("deny = [\"{dir}/private/secret.log\", \"{dir}/linked/by-link.log\"]")
    });
    let (private, links) = (lab.dir.join("private"), lab.dir.join("links"));
    for dir in [&private, &links] {
        std::fs::create_dir_all(dir).unwrap();
    }
    let link = |to: &Path, from: &Path| std::os::unix::fs::symlink(to, from).unwrap();
    link(&private, &lab.dir.join("linked"));
    write(&private.join("secret.log"), "denied words\n");
    write(&private.join("secret.log.1"), "denied words of before\n");
    write(&private.join("by-link.log"), "denied words by a link\n");
    link(&private.join("secret.log"), &links.join("one.log"));
    link(&links.join("one.log"), &links.join("two.log"));
    link(&private, &links.join("dir"));
    write(&private.join("open.log"), "open words\n");
    let config = format!(
        "[[source]]\nfile = \"{0}/**/*.log\"\n[[source]]\nfile = \"{0}/**/*.log.*\"\n[[source]]\nfile = \"{1}/**\"\n",
        private.display(),
        links.display()
    );
    assert_eq!(configure(&lab, &config), None);
    wait_until("what is not denied is collected", PATIENCE, || {
        lab.count("\"open words\"") == 1
    });
    // Looked for again, and once more after it was rotated.
    std::fs::rename(private.join("secret.log.1"), private.join("secret.log.2")).unwrap();
    let log = lab.log("app.log");
    for n in 1..=3 {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        file.write_all(b"allowed\n").unwrap();
        lab.wait_for_bytes("web1", &log, 8 * n, PATIENCE);
    }
    assert_eq!(lab.count("agent:web1 \"denied words\""), 0);
}
