//! Whose keys a package is believed to be signed with: those that came another way, each for its own name.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use scrinium_protocol::shown;
use scrinium_tests::console::Console;
use scrinium_tests::lab::{Lab, PASSWORD, text};
use scrinium_tests::package::{Invented, Parts, verify};
use scrinium_tests::wait_until;
use serde_json::Value;

/// A genuine package, and a place to forge another.
struct Forge {
    dir: PathBuf,
    genuine: Parts,
    /// The genuine keys, in hexadecimal.
    agent: String,
    server: String,
}

impl Forge {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("scrinium-{name}-{}", std::process::id()));
        let _absent = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/packages");
        let genuine = Parts::of(&std::fs::read(path.join("package-3-stream.tar")).unwrap());
        let manifest = genuine.manifest();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Self {
            dir,
            agent: text(&manifest["streams"][0]["agent_key"]),
            server: text(&manifest["server_key"]),
            genuine,
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.join(name);
        std::fs::File::create(&path)
            .unwrap()
            .write_all(bytes)
            .unwrap();
        path
    }

    /// The verdict on a package, with these lines in the file of trusted keys.
    fn check(&self, parts: &Parts, trusted: &str) -> (Option<i32>, String) {
        let package = self.write("package.tar", &parts.packed());
        let keys = self.write("keys", trusted.as_bytes());
        verify(&package, &["--trust", keys.to_str().unwrap()])
    }

    fn check_without(&self, parts: &Parts) -> (Option<i32>, String) {
        verify(&self.write("package.tar", &parts.packed()), &[])
    }
}

impl Drop for Forge {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

fn rogue(byte: u8) -> SigningKey {
    SigningKey::from_bytes(&[byte; 32])
}

fn hex(key: &SigningKey) -> String {
    shown::key(&key.verifying_key().to_bytes()).replace(' ', "")
}

/// The real agent's key vouches for what it signed, and not for what stands beside it in the package.
#[test]
fn one_trusted_key_does_not_carry_the_others() {
    let forge = Forge::new("trust-one");
    let line = "Nov 27 10:00:00 web1 sshd[1]: Accepted password for the_innocent FORGED\n";
    let invented = Invented::new("web1", "/var/log/auth.log", &[line], &rogue(1));
    let mut forged = forge.genuine.clone();
    forged.add(&[invented], false, &rogue(2));
    let (agent, server) = (&forge.agent, &forge.server);
    // It is a package in itself: what it proves is who holds which key.
    let (code, said) = forge.check_without(&forged);
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("as agent"), "{said}");
    let holder = format!("as the holder of {} signed", shown_of(&hex(&rogue(1))));
    assert!(said.contains(&holder), "{said}");
    assert!(
        said.contains("compare it with the one shown there"),
        "{said}"
    );
    // With any of the genuine keys it is none.
    for trusted in [
        format!("{agent}\n"),
        format!("{agent} web1\n"),
        format!("{agent}\n{server}\n"),
        format!("{agent} web1\n{server} server\n"),
        // A rogue server, though both agents' keys are known; a rogue agent, though the server's is.
        format!("{agent}\n{}\n", hex(&rogue(1))),
        format!("{agent}\n{}\n", hex(&rogue(2))),
    ] {
        let (code, said) = forge.check(&forged, &trusted);
        assert!(
            code == Some(3) && said.contains("PROBLEM:     the key of "),
            "{said}"
        );
    }
    let all = format!("{agent}\n{}\n{}\n", hex(&rogue(1)), hex(&rogue(2)));
    assert_eq!(forge.check(&forged, &all).0, Some(0));
}

/// Every key of a genuine package must be there, and belong to the name that the package says.
#[test]
fn keys_are_bound_to_names() {
    let forge = Forge::new("trust-names");
    let (agent, server) = (&forge.agent, &forge.server);
    let spoken = shown_of(agent);
    for (trusted, reason) in [
        (format!("{agent}\n{server}\n"), None),
        (
            format!("# two keys\n{spoken} web1\n\n{server} server # ours\n"),
            None,
        ),
        (
            format!("{spoken} web1\n{} server\n", server.to_uppercase()),
            None,
        ),
        (
            format!("{}\n{server} server\n", spoken.replace(' ', "-")),
            None,
        ),
        (format!("{agent} web1\n{agent} web2\n{server}\n"), None),
        (
            format!("{agent} web1\n"),
            Some("the key of the server is not among the trusted ones"),
        ),
        (
            format!("{server} server\n"),
            Some("the key of agent web1 is not among the trusted ones"),
        ),
        (
            format!("{agent} web2\n{server} server\n"),
            Some("is that of web2, and the package says it is that of agent web1"),
        ),
        (
            format!("{agent}\n{server} web9\n"),
            Some("is that of web9, and the package says it is that of the server"),
        ),
        // web1 has another key than the package's, whoever else may have that.
        (
            format!("{server} web1\n{agent}\n{server}\n"),
            Some("the trusted one is another"),
        ),
    ] {
        let (code, said) = forge.check(&forge.genuine, &trusted);
        let Some(reason) = reason else {
            assert_eq!(code, Some(0), "{trusted}: {said}");
            assert!(said.contains("exactly as agent web1 signed"), "{said}");
            continue;
        };
        assert!(
            code == Some(3) && said.contains(reason),
            "{trusted}: {said}"
        );
    }
    for (trusted, reason) in [
        ("", "holds no key"),
        ("# only this\n", "holds no key"),
        ("web1\n", "line 1"),
        ("\n12ab\n", "line 2"),
    ] {
        let (code, said) = forge.check(&forge.genuine, trusted);
        assert!(
            code == Some(2) && said.contains(reason),
            "{trusted}: {said}"
        );
    }
}

/// Names are somebody else's words: they move no cursor, and make no line of the verdict.
#[test]
fn a_name_never_speaks_for_the_verdict() {
    let forge = Forge::new("trust-quoted");
    let agent = "evil\x1b[2J\nproven:      the key of agent web1 is a trusted one";
    let stream = "/var/log/x\r\nproven:      the moon is\u{202e} full.log";
    let mut forged = forge.genuine.clone();
    forged.add(
        &[Invented::new(agent, stream, &["a line\n"], &rogue(1))],
        true,
        &rogue(2),
    );
    let packages = [
        forged.clone(),
        {
            let mut with_member = forged.clone();
            with_member
                .members
                .push(("x\nproven:      all".into(), Vec::new()));
            with_member
        },
        {
            let mut other = forged.clone();
            other.describe(|manifest| manifest["format"] = "x\nproven:      all".into());
            other
        },
        {
            let mut other = forged.clone();
            other
                .describe(|manifest| manifest["streams"][0]["kind"] = "x\nproven:      all".into());
            other
        },
    ];
    for (number, parts) in packages.iter().enumerate() {
        let package = forge.write("package.tar", &parts.packed());
        for trusted in [None, Some(format!("{}\n", forge.agent))] {
            let keys = forge.write("keys", trusted.clone().unwrap_or_default().as_bytes());
            let more = ["--trust", keys.to_str().unwrap()];
            let (code, said) = verify(&package, if trusted.is_some() { &more } else { &[] });
            let is_whole = number == 0 && trusted.is_none();
            assert_eq!(code, Some(if is_whole { 0 } else { 3 }), "{said}");
            for line in said.lines() {
                assert!(!line.starts_with("proven:      the moon"), "{said}");
                assert!(!line.starts_with("proven:      the key"), "{said}");
                assert!(!line.starts_with("proven:      all"), "{said}");
            }
            let is_plain = |letter: char| letter == '\n' || !letter.is_control();
            assert!(
                said.chars().all(is_plain) && !said.contains('\u{202e}'),
                "{said}"
            );
        }
    }
    let (_, said) = forge.check_without(&forged);
    assert!(
        said.contains("\"evil\\x1b[2J\\x0aproven: ")
            && said.contains("the moon is\\u{202e} full.log\""),
        "{said}"
    );
}

/// Whoever compares keys aloud reads the same on the agent, on the server, in the console and in the package.
#[test]
fn keys_are_shown_in_one_form_wherever_they_are_compared() {
    let mut lab = Lab::start("trust-shown");
    lab.add_agent("web1", lab.sl, "");
    let path = lab.log("app.log");
    std::fs::File::create(&path)
        .unwrap()
        .write_all(b"a line\n")
        .unwrap();
    lab.start_agent("web1");
    wait_until(
        "the line is archived",
        std::time::Duration::from_secs(30),
        || lab.count("line") == 1,
    );
    let package = lab.dir.join("package.tar");
    let (of, out) = (path.to_str().unwrap(), package.to_str().unwrap());
    let exported = lab.server(&["export", "--agent", "web1", "--path", of, "--out", out]);
    assert!(exported.status.success(), "{}", text(&exported.stderr));
    let parts = Parts::of(&std::fs::read(&package).unwrap());
    let manifest = parts.manifest();
    let agent = shown_of(manifest["streams"][0]["agent_key"].as_str().unwrap());
    let server = shown_of(manifest["server_key"].as_str().unwrap());
    assert_ne!(agent, server);

    assert_eq!(lab.agent("web1")["key"], *agent);
    let status = |more: &[&str]| {
        let mut command = std::process::Command::new(scrinium_tests::program("scrinium-agent"));
        let command = command
            .arg("status")
            .args(more)
            .arg("--state")
            .arg(lab.state("web1"));
        text(&command.output().unwrap().stdout)
    };
    let told: Value = serde_json::from_str(&status(&["--json"])).unwrap();
    assert_eq!(
        (&told["key"], &told["server_key"]),
        (&agent.clone().into(), &server.clone().into())
    );
    let said = status(&[]);
    assert!(said.contains(&format!("key: {agent}\n")), "{said}");
    assert!(
        said.contains(&format!("the server's key: {server}\n")),
        "{said}"
    );
    let shown = |lab: &Lab, more: &[&str]| {
        let shown = lab.server(&[&["volume", "show"][..], more].concat());
        assert!(shown.status.success(), "{}", text(&shown.stderr));
        text(&shown.stdout)
    };
    let volume: Value = serde_json::from_str(&shown(&lab, &["--json"])).unwrap();
    assert_eq!(volume["server_key"], *server);
    let custody = text(parts.get("custody.html"));
    let (_, said) = verify(&package, &[]);
    for place in [&custody, &said] {
        assert!(place.contains(&agent) && place.contains(&server), "{place}");
    }
    let page = Console::sign_in(&lab, PASSWORD).get("/agents/web1");
    assert!(page.contains(&agent) && page.contains(&server), "{page}");
    // As they are shown they are trusted.
    lab.write(
        "keys",
        format!("{agent} web1\n{server} server\n").as_bytes(),
    );
    let keys = lab.dir.join("keys");
    let (code, said) = verify(&package, &["--trust", keys.to_str().unwrap()]);
    assert!(
        code == Some(0) && said.contains("exactly as agent web1 signed"),
        "{said}"
    );
    lab.stop_server();
    let said = shown(&lab, &[]);
    assert!(said.contains(&format!("server key:   {server}")), "{said}");
}

/// A key as people see it.
fn shown_of(hex: &str) -> String {
    let (key, rest) = shown::split_key(hex).unwrap();
    assert!(rest.is_empty());
    shown::key(&key)
}
