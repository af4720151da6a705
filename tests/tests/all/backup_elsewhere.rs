//! Backups that leave the machine: into a bucket, and over ssh.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use scrinium_tests::days::ship_a_line;
use scrinium_tests::lab::{Lab, forget_peak, peak_bytes, text};
use scrinium_tests::peers::{ObjectStore, SshServer};
use scrinium_tests::random::Random;
use serde_json::Value;

/// Incremental, checked, and restored on a machine that has nothing but the shares and the keys file.
#[test]
fn a_backup_goes_to_a_bucket_and_comes_back() {
    let mut lab = Lab::start("backup-bucket");
    let Some(store) = ObjectStore::start(&lab.dir) else {
        return;
    };
    lab.server_environment = store.environment();
    lab.stop_server();
    lab.start_server();
    let alter = |name: &str| {
        let object = format!("logs/here/{name}");
        let good = store.get(&object);
        store.put(&object, &altered(&good));
        good
    };
    let put_back = |name: &str, bytes: &[u8]| store.put(&format!("logs/here/{name}"), bytes);
    goes_and_comes_back(&mut lab, "s3://logs/here", alter, put_back);
    let listed = text(&store.get("logs"));
    assert!(listed.contains("here/archive/") && !listed.contains(".part"));

    // No bucket of that name.
    let refused = ask(&lab, "create", "--to", "s3://nowhere/here");
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("NoSuchBucket"));
}

/// The same; who has another key is not let in, and is told so.
#[test]
fn a_backup_goes_over_ssh_and_comes_back() {
    let mut lab = Lab::start("backup-ssh");
    let Some(server) = SshServer::start(&lab.dir) else {
        return;
    };
    let dir = lab.dir.join("far/away");
    let location = server.location(&dir);
    lab.server_environment = vec![server.environment("stranger")];
    lab.stop_server();
    lab.start_server();
    let refused = ask(&lab, "create", "--to", &location);
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(said.contains("Permission denied"), "{said}");

    lab.server_environment = vec![server.environment("own")];
    lab.stop_server();
    lab.start_server();
    let alter = |name: &str| {
        let good = std::fs::read(dir.join(name)).unwrap();
        overwrite(&dir.join(name), &altered(&good));
        good
    };
    let put_back = |name: &str, bytes: &[u8]| overwrite(&dir.join(name), bytes);
    goes_and_comes_back(&mut lab, &location, alter, put_back);
    assert_eq!(Lab::holds(&dir, b"MARKER"), None);
}

/// What is no object is read into memory: it is bounded, and the error says so.
#[test]
fn a_store_that_lists_without_an_end_fails_the_backup_and_costs_no_memory() {
    let store = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = store.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = store.accept() {
            let mut asked = BufReader::new(stream.try_clone().unwrap()).lines();
            while asked.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/xml\r\nconnection: close\r\n\r\n\
                        <?xml version=\"1.0\"?><ListBucketResult>";
            let mut said = stream.write_all(head.as_bytes());
            let more = " ".repeat(1 << 20);
            for _ in 0..1024 {
                said = said.and_then(|()| stream.write_all(more.as_bytes()));
            }
        }
    });
    let mut lab = Lab::start("backup-endless");
    let pairs = [
        ("AWS_ENDPOINT_URL", format!("http://{address}")),
        ("AWS_ALLOW_HTTP", "true".into()),
        ("AWS_REGION", "us-east-1".into()),
        ("AWS_ACCESS_KEY_ID", "scrinium".into()),
        ("AWS_SECRET_ACCESS_KEY", "of-the-test".into()),
    ];
    lab.server_environment = pairs.map(|(name, value)| (name.to_owned(), value)).into();
    lab.stop_server();
    lab.start_server();
    forget_peak(lab.server_pid());
    let refused = ask(&lab, "create", "--to", "s3://logs/here");
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(said.contains("longer than 8 MiB"), "{said}");
    let peak = peak_bytes(lab.server_pid());
    assert!(peak < 256 << 20, "{peak}");
    lab.stop_server();
}

/// `alter` changes an object and returns what it was.
fn goes_and_comes_back(
    lab: &mut Lab,
    location: &str,
    alter: impl Fn(&str) -> Vec<u8>,
    put_back: impl Fn(&str, &[u8]),
) {
    ship_a_line(lab, "web1", "MARKERONE of web1\n");
    let big = ship_a_long_file(lab);
    let first = done(&ask(lab, "create", "--to", location));
    assert!(first["copied_bytes"].as_u64() > Some(16 << 20), "{first}");
    ship_a_line(lab, "web2", "MARKERTWO of web2\n");
    let second = done(&ask(lab, "create", "--to", location));
    assert!(second["objects"].as_u64() > second["copied"].as_u64());
    done(&ask(lab, "verify", "--from", location));

    let segments = std::fs::read_dir(lab.data().join("archive")).unwrap();
    let names = segments.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let segment = names.filter(|name| name.ends_with(".seg")).min().unwrap();
    let object = format!("archive/{segment}");
    let good = alter(&object);
    let damaged = ask(lab, "verify", "--from", location);
    assert_eq!(damaged.status.code(), Some(3));
    assert!(text(&damaged.stdout).contains(&segment));
    put_back(&object, &good);

    lab.stop_server();
    let gone = Command::new("mv")
        .arg(lab.data())
        .arg(lab.dir.join("gone"))
        .status();
    assert!(gone.unwrap().success());
    let mut restore = command(lab, "restore", "--from", location);
    for share in &lab.shares {
        restore.args(["--share", share]);
    }
    done(&restore.output().unwrap());
    lab.start_server();
    assert_eq!((lab.count("MARKERONE"), lab.count("MARKERTWO")), (1, 1));
    assert!(lab.export("web3", &big.0) == big.1);
    let (code, report) = lab.verify();
    assert_eq!(code, 0, "{report}");
}

/// Lines that do not compress: their segment goes in several parts.
fn ship_a_long_file(lab: &mut Lab) -> (PathBuf, Vec<u8>) {
    let mut random = Random::new(7);
    let mut bytes = Vec::new();
    while bytes.len() < 24 << 20 {
        bytes.extend((0..200).map(|_| b'!' + u8::try_from(random.below(90)).unwrap()));
        bytes.push(b'\n');
    }
    lab.add_agent("web3", lab.sl, "");
    let log = lab.log("long.log");
    overwrite(&log, &bytes);
    lab.start_agent("web3");
    lab.wait_for_bytes("web3", &log, bytes.len(), Duration::from_secs(60));
    lab.stop_agent("web3");
    (log, bytes)
}

fn command(lab: &Lab, what: &str, option: &str, location: &str) -> Command {
    std::fs::create_dir_all(lab.dir.join("safe")).unwrap();
    let mut command = lab.server_command(&["backup", what, "--json"]);
    command
        .args([option, location])
        .arg("--keys")
        .arg(lab.dir.join("safe/keys"));
    command
}

fn ask(lab: &Lab, what: &str, option: &str, location: &str) -> Output {
    command(lab, what, option, location).output().unwrap()
}

fn done(output: &Output) -> Value {
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn altered(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    bytes
}

fn overwrite(path: &Path, bytes: &[u8]) {
    let mut file = std::fs::File::create(path).unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
}
