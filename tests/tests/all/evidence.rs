//! What was sealed must be there as it was, and a checkpoint kept elsewhere says so even against whoever holds
//! the server and all its keys.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use scrinium_tests::lab::{Lab, free_address, text};
use scrinium_tests::package::{unpack, verify};
use scrinium_tests::peers::MailServer;
use scrinium_tests::writer::append;
use scrinium_tests::{has_tool, wait_until};

/// As root on a stopped server: the whole volume as it was before, which is whole in itself; the intervals
/// without their end; another server's checkpoint; the checkpoint changed or gone.
#[test]
fn what_was_taken_back_or_away_is_seen_by_a_checkpoint_that_was_kept() {
    let mut lab = Lab::start("evidence");
    let kept = lab.dir.join("kept");
    std::fs::create_dir(&kept).unwrap();
    seal_every_second(&mut lab, &kept);
    lab.add_agent("web1", lab.sl, "");
    let log = lab.log("app.log");
    lab.start_agent("web1");
    write(&lab, &log, 1);
    lab.stop_server();
    let early = lab.dir.join("early");
    copy(&lab.data(), &early);

    lab.start_server();
    write(&lab, &log, 2);
    let checkpoint = checkpoint_in(&kept);
    assert!(
        checkpoint.lines().nth(1).unwrap().parse::<u64>().unwrap() > 2,
        "{checkpoint}"
    );
    lab.write("outside", checkpoint.as_bytes());
    let outside = lab.dir.join("outside");
    // While the server runs, and when it does not.
    let (code, said) = verify_with(&lab, Some(&outside));
    assert_eq!(code, 0, "{said}");
    lab.stop_agent("web1");
    lab.stop_server();
    let (code, said) = verify_with(&lab, Some(&outside));
    assert!(
        code == 0 && !said.contains("; 0 sealed intervals"),
        "{said}"
    );
    let whole = lab.dir.join("whole");
    copy(&lab.data(), &whole);

    // The whole volume as it was: nothing in it contradicts itself.
    restore(&lab, &early);
    assert_eq!(verify_with(&lab, None).0, 0);
    let (code, said) = verify_with(&lab, Some(&outside));
    assert!(
        code == 3 && said.contains("the rest was taken away"),
        "{said}"
    );

    // The same, and another history from there on, signed with the server's own keys.
    let sealed: u64 = checkpoint.lines().nth(1).unwrap().parse().unwrap();
    lab.start_server();
    let own = lab.data().join("evidence/checkpoint");
    wait_until(
        "as many intervals as before",
        Duration::from_secs(60),
        || {
            let note = std::fs::read_to_string(&own).unwrap();
            note.lines().nth(1).unwrap().parse::<u64>().unwrap() > sealed
        },
    );
    lab.stop_server();
    assert_eq!(verify_with(&lab, None).0, 0);
    let (code, said) = verify_with(&lab, Some(&outside));
    assert!(
        code == 3 && said.contains("history was rewritten"),
        "{said}"
    );

    // The catalogue and what is archived as they were, the intervals as they are: entries are missing.
    restore(&lab, &whole);
    for part in ["catalogue.db", "log", "archive"] {
        let own = lab.data().join(part);
        remove(&own);
        copy(&early.join(part), &own);
    }
    let (code, said) = verify_with(&lab, None);
    assert!(
        code == 3 && said.contains("entries that are not here"),
        "{said}"
    );

    // The last intervals are gone, and so is a file of them.
    restore(&lab, &whole);
    let mut files = files(&lab.data().join("evidence"));
    files.retain(|path| path.extension().is_some_and(|extension| extension == "evd"));
    remove(files.last().unwrap());
    let (code, said) = verify_with(&lab, None);
    assert!(
        code == 3 && said.contains("the checkpoint of this archive does not match"),
        "{said}"
    );
    restore(&lab, &whole);
    remove(&files[0]);
    let (code, said) = verify_with(&lab, None);
    assert!(
        code == 3 && said.contains("does not follow the file before it"),
        "{said}"
    );
    // A server that finds less than it signed seals nothing more, and says so.
    lab.start_server();
    assert!(
        lab.wait_for_alarm("evidence-stopped", "server")
            .contains("does not follow")
    );
    lab.stop_server();

    // The checkpoint itself.
    restore(&lab, &whole);
    let changed = std::fs::read_to_string(&own)
        .unwrap()
        .replacen("time 1", "time 2", 1);
    let mut file = std::fs::File::create(&own).unwrap();
    file.write_all(changed.as_bytes()).unwrap();
    let (code, said) = verify_with(&lab, None);
    assert!(
        code == 3 && said.contains("not signed by this server's key"),
        "{said}"
    );
    restore(&lab, &whole);
    let other = Lab::start("evidence-other");
    let foreign = other.data().join("evidence/checkpoint");
    wait_until("the other server has one", Duration::from_secs(20), || {
        foreign.is_file()
    });
    let (code, said) = verify_with(&lab, Some(&foreign));
    assert!(
        code == 3 && said.contains("not signed by this server's key"),
        "{said}"
    );
    assert_eq!(verify_with(&lab, Some(&outside)).0, 0);
}

/// A copy that cannot be made is not taken for one that was.
#[test]
fn a_checkpoint_that_does_not_leave_the_machine_is_an_alarm() {
    let mut lab = Lab::start("evidence-copies");
    let elsewhere = lab.dir.join("not/mounted");
    seal_every_second(&mut lab, &elsewhere);
    let alarm = lab.wait_for_alarm("evidence-stopped", "server");
    assert!(
        alarm.contains("did not leave this machine") && alarm.contains("not/mounted"),
        "{alarm}"
    );
    assert_eq!(lab.verify().0, 0);
}

/// A letter a day, to whom the configuration names; a relay that is not trusted gets none, and is an alarm.
#[test]
fn a_checkpoint_a_day_is_mailed() {
    let mut lab = Lab::start("evidence-mail");
    let Some(mut server) = MailServer::new(&lab.dir) else {
        return;
    };
    server.listen();
    let kept = lab.dir.join("kept");
    std::fs::create_dir(&kept).unwrap();
    let config = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    let mail = format!(
        "[mail]\nrelay = \"{}\"\nfrom = \"Scrinium <scrinium@example.org>\"\n",
        server.url()
    );
    let to = "[evidence]\nmail_to = [\"officer@example.org\"]\n";
    lab.write("server.toml", (config + &mail + to).as_bytes());
    seal_every_second(&mut lab, &kept);
    let alarm = lab.wait_for_alarm("evidence-stopped", "server");
    assert!(
        alarm.contains("was not mailed") && alarm.contains("certificate"),
        "{alarm}"
    );
    assert_eq!(server.letters(), Vec::<PathBuf>::new());

    lab.server_environment = vec![server.environment()];
    for _ in 0..2 {
        lab.stop_server();
        lab.start_server();
        wait_until("a letter comes", Duration::from_secs(20), || {
            server.letters().len() == 1
        });
        let sealed = || sealed(&kept);
        let before = sealed();
        wait_until("more is sealed", Duration::from_secs(20), || {
            sealed() >= before + 3
        });
    }
    let letters = server.letters();
    assert_eq!(letters.len(), 1);
    let opened = lab.dir.join("opened");
    MailServer::open(&letters[0], &opened);
    let subject = std::fs::read_to_string(opened.join("subject")).unwrap();
    assert!(subject.contains(": checkpoint of 20"), "{subject}");
    let enclosed = files(&opened)
        .into_iter()
        .find(|path| path.extension().is_some_and(|e| e == "checkpoint"))
        .unwrap();
    assert_eq!(verify_with(&lab, Some(&enclosed)).0, 0);
    let name = enclosed.file_name().unwrap().to_str().unwrap();
    let said = std::fs::read_to_string(opened.join("text")).unwrap();
    assert!(said.contains(&format!("--checkpoint {name}")), "{said}");
}

/// A witness that is away is an alarm; what it was shown is a checkpoint like any other that was kept.
#[test]
fn every_checkpoint_is_shown_to_a_witness() {
    let mut lab = Lab::start("evidence-witness");
    let (address, kept) = (free_address(), lab.dir.join("kept"));
    std::fs::create_dir(&kept).unwrap();
    let server = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    let url = format!("https://localhost:{}/seen", address.port());
    let config = format!("[evidence]\nwitnesses = [\"{url}\"]\n");
    let (tls, certificate) = tls_server();
    lab.write("witness.pem", certificate.as_bytes());
    let trusted = lab.dir.join("witness.pem").display().to_string();
    lab.server_environment = vec![("SSL_CERT_FILE".into(), trusted)];
    lab.write("server.toml", (server + &config).as_bytes());
    seal_every_second(&mut lab, &kept);
    let alarm = lab.wait_for_alarm("evidence-stopped", "server");
    assert!(alarm.contains("did not reach the witness"), "{alarm}");
    let seen = lab.dir.join("seen.checkpoint");
    let file = seen.clone();
    answer_posts(address, Some(tls), move |note| {
        let next = file.with_extension("next");
        let mut written = std::fs::File::create(&next).unwrap();
        written.write_all(note).unwrap();
        let moved = Command::new("mv").arg(next).arg(&file).status();
        assert!(moved.unwrap().success());
        Vec::new()
    });
    wait_until("the witness is shown one", Duration::from_secs(20), || {
        seen.try_exists().unwrap()
    });
    let note = std::fs::read_to_string(&seen).unwrap();
    assert!(note.starts_with("scrinium/"), "{note}");
    assert_eq!(verify_with(&lab, Some(&seen)).0, 0);
    // Another history is told by what the witness saw.
    lab.write(
        "changed.checkpoint",
        note.replacen('\n', "\n9", 1).as_bytes(),
    );
    let changed = lab.dir.join("changed.checkpoint");
    assert_eq!(verify_with(&lab, Some(&changed)).0, 3);
}

/// Between the interval and its checkpoint, and with the file of the next intervals just begun.
#[test]
fn a_crash_while_an_interval_is_sealed_leaves_evidence_that_goes_on() {
    let mut lab = Lab::start("evidence-crash");
    let kept = lab.dir.join("kept");
    std::fs::create_dir(&kept).unwrap();
    seal_every_second(&mut lab, &kept);
    let sealed = || sealed(&kept);
    for point in [
        "server: interval durable",
        "segment: created#2",
        "segment: synced#2",
    ] {
        let before = sealed();
        lab.stop_server();
        lab.spawn_server(point);
        lab.wait_for_server_end(Duration::from_secs(20));
        lab.start_server();
        wait_until(point, Duration::from_secs(20), || sealed() >= before + 2);
        let (code, said) = lab.verify();
        assert_eq!(code, 0, "{point}: {said}");
    }
    assert_eq!(lab.alarms(), Vec::<serde_json::Value>::new());
}

/// RFC 3161: an authority that is away is an alarm and asked again; its token is one that openssl accepts, for
/// that checkpoint and no other.
#[test]
fn a_checkpoint_a_day_is_time_stamped_by_somebody_else() {
    if !has_tool("openssl") {
        return;
    }
    let mut lab = Lab::start("evidence-stamp");
    let address = free_address();
    let kept = lab.dir.join("kept");
    std::fs::create_dir(&kept).unwrap();
    let authority = Authority::new(&lab.dir);
    let config = format!("time_stamp_authority = \"http://{address}/tsr\"\n");
    let server = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    lab.write(
        "server.toml",
        (server + "[evidence]\n" + &config).as_bytes(),
    );
    seal_every_second(&mut lab, &kept);
    let alarm = lab.wait_for_alarm("evidence-stopped", "server");
    assert!(alarm.contains("no time-stamp token came from"), "{alarm}");
    authority.listen(address);
    let mut token = None;
    for dir in [lab.data().join("evidence"), kept] {
        wait_until("a token is there", Duration::from_secs(30), || {
            token = files(&dir)
                .into_iter()
                .find(|path| path.extension().is_some_and(|e| e == "tsr"));
            token.is_some()
        });
        let token = token.clone().unwrap();
        let checkpoint = token.with_extension("checkpoint");
        assert!(authority.accepts(&token, &checkpoint));
        let other = lab.dir.join("changed");
        let note = std::fs::read_to_string(&checkpoint).unwrap();
        lab.write("changed", note.replacen("time 1", "time 2", 1).as_bytes());
        assert!(!authority.accepts(&token, &other));
    }
    a_package_brings_the_token(&lab, &authority);
}

/// Whoever trusts the authority needs nothing but the package to know when it was there.
fn a_package_brings_the_token(lab: &Lab, authority: &Authority) {
    let package = lab.dir.join("package.tar");
    let wanted = ["export", "--query", "stream:audit"];
    let mut export = lab.server_command(&wanted);
    let exported = export.arg("--out").arg(&package).output().unwrap();
    assert!(exported.status.success(), "{}", text(&exported.stderr));
    let certificate = |of: &Authority| of.0.join("ca.crt").to_str().unwrap().to_owned();
    let (code, said) = verify(&package, &[]);
    let unbelieved = "give --tsa-ca to believe the token that says so";
    assert!(code == Some(0) && said.contains(unbelieved), "{said}");
    let (code, said) = verify(&package, &["--tsa-ca", &certificate(authority)]);
    let believed = "says a time-stamp authority that is trusted";
    assert!(code == Some(0) && said.contains(believed), "{said}");
    // Another authority of the same name.
    let elsewhere = lab.dir.join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let other = Authority::new(&elsewhere);
    let (code, said) = verify(&package, &["--tsa-ca", &certificate(&other)]);
    assert!(
        code == Some(3) && said.contains("no authority of --tsa-ca vouches for it"),
        "{said}"
    );
    // With stock tools: the token and what it is over lie in the package as they are.
    let unpacked = lab.dir.join("unpacked");
    unpack(&package, &unpacked);
    let stamped = files(&unpacked.join("stamped"));
    let token = stamped
        .iter()
        .find(|path| path.extension().is_some_and(|e| e == "tsr"));
    let token = token.expect("the package has a token");
    assert!(authority.accepts(token, &token.with_extension("checkpoint")));
}

/// A time-stamp authority of our own, made of openssl.
#[derive(Clone)]
struct Authority(PathBuf);

impl Authority {
    fn new(dir: &Path) -> Self {
        let own = Self(dir.join("authority"));
        std::fs::create_dir(&own.0).unwrap();
        let write = |name: &str, text: &str| {
            let mut file = std::fs::File::create(own.0.join(name)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        write("ext", "extendedKeyUsage=critical,timeStamping\n");
        write("serial", "01\n");
        write(
            "tsa.cnf",
            "[tsa]\ndefault_tsa = own\n[own]\nserial = serial\nsigner_cert = tsa.crt\ncerts = ca.crt\nsigner_key = tsa.key\nsigner_digest = sha256\ndefault_policy = 1.2.3.4.1\ndigests = sha256\ness_cert_id_alg = sha256\n",
        );
        for command in [
            "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -subj /CN=authority -days 10",
            "req -newkey rsa:2048 -nodes -keyout tsa.key -out tsa.csr -subj /CN=stamps",
            "x509 -req -in tsa.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out tsa.crt -days 10 -extfile ext",
        ] {
            let (done, said) = own.openssl(&command.split(' ').collect::<Vec<_>>());
            assert!(done, "{said}");
        }
        own
    }

    fn openssl(&self, words: &[&str]) -> (bool, String) {
        let output = Command::new("openssl")
            .args(words)
            .current_dir(&self.0)
            .output()
            .unwrap();
        (
            output.status.success(),
            text(&output.stdout) + &text(&output.stderr),
        )
    }

    /// Answers queries over HTTP for as long as the test runs.
    fn listen(&self, address: SocketAddr) {
        let own = self.clone();
        answer_posts(address, None, move |query| own.answer(query));
    }

    fn answer(&self, query: &[u8]) -> Vec<u8> {
        let mut file = std::fs::File::create(self.0.join("query")).unwrap();
        file.write_all(query).unwrap();
        let reply = "ts -reply -config tsa.cnf -queryfile query -out reply";
        let (done, said) = self.openssl(&reply.split(' ').collect::<Vec<_>>());
        assert!(done, "{said}");
        std::fs::read(self.0.join("reply")).unwrap()
    }

    fn accepts(&self, token: &Path, data: &Path) -> bool {
        let (token, data) = (token.to_str().unwrap(), data.to_str().unwrap());
        self.openssl(&[
            "ts", "-verify", "-in", token, "-data", data, "-CAfile", "ca.crt",
        ])
        .0
    }
}

/// How many intervals the checkpoint in a directory says.
fn sealed(dir: &Path) -> u64 {
    let note = checkpoint_in(dir);
    note.lines().nth(1).unwrap().parse().unwrap()
}

/// The exit code of `verify`, with a checkpoint that was kept, and all it says.
fn verify_with(lab: &Lab, outside: Option<&Path>) -> (i32, String) {
    let mut command = lab.server_command(&["verify"]);
    if let Some(outside) = outside {
        command.arg("--checkpoint").arg(outside);
    }
    let output = command.output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    (output.status.code().unwrap(), said)
}

/// What a server at `localhost` needs to speak TLS, and the certificate that is to be trusted.
pub(crate) fn tls_server() -> (Arc<ServerConfig>, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (Arc::new(config), made.cert.pem())
}

/// Answers what is posted to an address for as long as the test runs.
fn answer_posts(
    address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static,
) {
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _gone = match &tls {
                None => answer_post(stream, &answer),
                Some(config) => {
                    let connection = ServerConnection::new(config.clone()).unwrap();
                    answer_post(StreamOwned::new(connection, stream), &answer)
                }
            };
        }
    });
}

fn answer_post<S: Read + Write>(
    stream: S,
    answer: &dyn Fn(&[u8]) -> Vec<u8>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut len, mut line) = (0, String::new());
    while reader.read_line(&mut line)? > 2 {
        let header = line.to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            len = value.trim().parse().map_err(std::io::Error::other)?;
        }
        line.clear();
    }
    let mut posted = vec![0; len];
    reader.read_exact(&mut posted)?;
    let answer = answer(&posted);
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
        answer.len()
    );
    let mut stream = reader.into_inner();
    stream.write_all(head.as_bytes())?;
    stream.write_all(&answer)?;
    stream.flush()
}

fn seal_every_second(lab: &mut Lab, copies: &Path) {
    lab.stop_server();
    let config = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    let copies = copies.display();
    // Into the table that a test has begun, if it has.
    let table = if config.contains("[evidence]") {
        ""
    } else {
        "[evidence]\n"
    };
    let config = format!("{config}{table}interval_s = 1\ncopies = [\"{copies}\"]\n");
    lab.write("server.toml", config.as_bytes());
    lab.start_server();
}

/// Writes lines, and waits until an interval was sealed over them.
fn write(lab: &Lab, log: &Path, round: u32) {
    let before = std::fs::metadata(log).map_or(0, |file| file.len());
    let lines = format!("round {round}\n").repeat(100);
    append(log).write_all(lines.as_bytes()).unwrap();
    let len = usize::try_from(before).unwrap() + lines.len();
    lab.wait_for_bytes("web1", log, len, Duration::from_secs(20));
    let kept = lab.dir.join("kept");
    let size = |kept: &Path| {
        checkpoint_in(kept)
            .lines()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let sealed = size(&kept);
    wait_until("two more intervals", Duration::from_secs(20), || {
        size(&kept) >= sealed + 2
    });
}

/// The last checkpoint that left the machine.
fn checkpoint_in(dir: &Path) -> String {
    let mut found = String::new();
    wait_until("a checkpoint is there", Duration::from_secs(20), || {
        let last = files(dir).into_iter().find(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.ends_with(".checkpoint") && name.matches('-').count() == 1
        });
        found = last.map_or_else(String::new, |path| std::fs::read_to_string(path).unwrap());
        found.lines().count() > 4
    });
    found
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| !path.ends_with("checkpoint") || dir.ends_with("kept"));
    paths.sort();
    paths
}

fn restore(lab: &Lab, from: &Path) {
    remove(&lab.data());
    copy(from, &lab.data());
}

fn copy(from: &Path, to: &Path) {
    assert!(
        Command::new("cp")
            .arg("-a")
            .arg(from)
            .arg(to)
            .status()
            .unwrap()
            .success()
    );
}

fn remove(path: &Path) {
    assert!(
        Command::new("rm")
            .arg("-r")
            .arg(path)
            .status()
            .unwrap()
            .success()
    );
}
