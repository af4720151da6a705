//! An export package is checked without the server; any change is noticed.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::excerpt::Excerpt;
use scrinium_tests::corpus::Corpus;
use scrinium_tests::lab::{Lab, text};
use scrinium_tests::package::{unpack, verify};
use scrinium_tests::wait_until;
use scrinium_tests::writer::append;
use serde_json::{Value, json};

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

    let check = || verify(&package, &[]);
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

/// Whoever repacks a package, with whatever care, is told what is wrong with it.
#[test]
fn a_package_altered_in_a_dozen_ways_is_refused_each_time_for_the_right_reason() {
    let mut lab = Lab::start("package-altered");
    lab.stop_server();
    let config = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    lab.write(
        "server.toml",
        format!("{config}[evidence]\ninterval_s = 1\n").as_bytes(),
    );
    lab.start_server();
    lab.add_agent("web1", lab.sl, "");
    lab.start_agent("web1");
    let (log, other) = (lab.log("app.log"), lab.log("other.log"));
    let mut lines = Vec::new();
    for round in 1..=4 {
        // A batch each.
        let line = format!("round {round} {}\n", "x".repeat(100)).repeat(20);
        append(&log).write_all(line.as_bytes()).unwrap();
        lines.extend_from_slice(line.as_bytes());
        lab.wait_for_bytes("web1", &log, lines.len(), Duration::from_secs(20));
    }
    let dir = lab.dir.join("parts");
    let package = lab.dir.join("package.tar");
    let export = |log: &Path| {
        let _absent = std::fs::remove_file(&package);
        let (log, out) = (log.to_str().unwrap(), package.to_str().unwrap());
        let exported = lab.server(&["export", "--agent", "web1", "--path", log, "--out", out]);
        assert!(exported.status.success(), "{}", text(&exported.stderr));
    };
    let check = |more: &[&str]| verify(&package, more);
    wait_until("all of it is sealed", Duration::from_secs(20), || {
        export(&log);
        check(&[]).1.contains("the first 80 entries of")
    });
    let pack = || {
        let done = Command::new("tar")
            .args(["--format=ustar", "-cf"])
            .arg(&package)
            .arg("-C")
            .arg(&dir)
            .args(PARTS)
            .args(["manifest.sig", "custody.html", "entries.csv"])
            .status();
        assert!(done.unwrap().success());
    };
    // In an interval of its own.
    append(&other).write_all(b"another file\n").unwrap();
    lab.wait_for_bytes("web1", &other, 13, Duration::from_secs(20));
    wait_until("the other is sealed", Duration::from_secs(20), || {
        export(&other);
        check(&[]).1.contains("the first 1 entries of")
    });
    let foreign = lab.dir.join("foreign");
    unpack(&package, &foreign);
    let foreign = std::fs::read(foreign.join("evidence.json")).unwrap();
    export(&log);
    unpack(&package, &dir);
    pack();
    let (code, said) = check(&[]);
    assert_eq!(code, Some(0), "{said}");

    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::File::create(dir.join(name))
            .unwrap()
            .write_all(bytes)
            .unwrap();
    };
    let whole: Vec<Vec<u8>> = PARTS.iter().map(|name| read(name)).collect();
    let batches = batches_of(&whole[2]);
    assert!(batches.len() >= 4, "{} batches", batches.len());
    let manifest: Value = serde_json::from_slice(&whole[0]).unwrap();
    let evidence: Value = serde_json::from_slice(&whole[3]).unwrap();
    let with = |json: &Value, path: &[&str], value: Value| {
        let mut json = json.clone();
        *json.pointer_mut(&format!("/{}", path.join("/"))).unwrap() = value;
        json.to_string().into_bytes()
    };
    let changed = |json: &Value, field: &str, value: Value| with(json, &[field], value);
    let flipped = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let mut longer = whole[1].clone();
    longer.extend_from_slice(b"one more\n");
    let mut swapped = batches.clone();
    swapped.swap(1, 2);
    let interval = evidence["intervals"][0]["leaf"].as_str().unwrap();
    let note = evidence["checkpoint"].as_str().unwrap();
    let key = manifest["streams"][0]["agent_key"].as_str().unwrap();
    let server_key = manifest["server_key"].as_str().unwrap();
    let stream = &manifest["streams"][0]["stream_id"];
    let mut foreign: Value = serde_json::from_slice(&foreign).unwrap();
    foreign["intervals"][0]["streams"] = json!([stream]);
    let alterations: [(&str, usize, Vec<u8>, &str); 14] = [
        (
            "a byte of the log",
            1,
            flipped(&whole[1], 300),
            "log.txt differs from what was signed",
        ),
        (
            "a line more",
            1,
            longer,
            "log.txt goes on after the last signed entry",
        ),
        (
            "a line less",
            1,
            whole[1][..whole[1].len() - 109].to_vec(),
            "log.txt differs",
        ),
        (
            "a byte of a batch",
            2,
            flipped(&whole[2], batches[0].len() - 5),
            "batch 1: ",
        ),
        (
            "no first batch",
            2,
            batches[1..].concat(),
            "does not follow the one before",
        ),
        (
            "no last batch",
            2,
            batches[..batches.len() - 1].concat(),
            "batches are missing at the end",
        ),
        (
            "a batch left out",
            2,
            [&batches[..1], &batches[2..]].concat().concat(),
            "does not follow",
        ),
        (
            "two batches swapped",
            2,
            swapped.concat(),
            "does not follow the one before",
        ),
        (
            "another count",
            0,
            changed(&manifest, "entries", json!(79)),
            "the counts of the manifest",
        ),
        (
            "another key",
            0,
            with(&manifest, &["streams", "0", "agent_key"], json!(server_key)),
            "batch 1: ",
        ),
        (
            "a changed interval",
            3,
            with(
                &evidence,
                &["intervals", "0", "leaf"],
                json!(interval.replacen('A', "B", 1)),
            ),
            "evidence.json: the ",
        ),
        (
            "no path",
            3,
            with(&evidence, &["intervals", "0", "path"], json!([])),
            "not part of what the checkpoint signs",
        ),
        (
            "an older checkpoint",
            3,
            changed(
                &evidence,
                "checkpoint",
                json!(note.replacen("time 1", "time 2", 1)),
            ),
            "the checkpoint: it is not signed by this server's key",
        ),
        (
            "another stream's interval",
            3,
            foreign.to_string().into_bytes(),
            "evidence.json: the interval says nothing of this stream",
        ),
    ];
    for (what, index, bytes, reason) in alterations {
        write(PARTS[index], &bytes);
        pack();
        let (code, said) = check(&[]);
        assert_eq!(code, Some(3), "{what}: {said}");
        assert!(said.contains(reason), "{what}: {said}");
        let part = PARTS[index];
        let by_manifest = match part {
            "manifest.json" => "manifest.json: it is not signed by the server it names".into(),
            _ => format!("{part} is not the one that the manifest describes"),
        };
        assert!(said.contains(&by_manifest), "{what}: {said}");
        write(part, &whole[index]);
    }

    // A member more, and one less.
    write("more.txt", b"more\n");
    let repack = |names: &[&str]| {
        let mut command = Command::new("tar");
        command.args(["--format=ustar", "-cf"]).arg(&package);
        let done = command.arg("-C").arg(&dir).args(names).status();
        assert!(done.unwrap().success());
        check(&[])
    };
    let all = [&PARTS[..], &["manifest.sig", "custody.html", "entries.csv"]].concat();
    let (code, said) = repack(&[&all[..], &["more.txt"]].concat());
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("holds more.txt, which its manifest does not name"),
        "{said}"
    );
    let (code, said) = repack(&all[..all.len() - 1]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("entries.csv is missing"), "{said}");
    let (code, said) = repack(&[&all[..], &["log.txt"]].concat());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("holds log.txt twice"), "{said}");

    // Everything of the package cut back to an earlier state that was whole: what was sealed tells, whoever signs.
    let kept = &batches[..batches.len() - 1];
    let last = kept.last().unwrap();
    let header = Excerpt::decode(&last[4..], "batch").unwrap().header;
    let entries = header.next().0;
    let bytes = &whole[1][..usize::try_from(entries).unwrap() * 109];
    let mut cut = manifest.clone();
    for path in ["", "/streams/0"] {
        let counts = cut.pointer_mut(path).unwrap();
        counts["entries"] = json!(entries);
        counts["lines"] = json!(entries);
        counts["bytes"] = json!(bytes.len());
    }
    cut["streams"][0]["runs"][0]["next"] = json!(entries);
    cut["streams"][0]["runs"][0]["head"] = json!(header.head().to_string());
    write("manifest.json", cut.to_string().as_bytes());
    write("log.txt", bytes);
    write("batches.bin", &kept.concat());
    pack();
    let (code, said) = check(&[]);
    assert!(
        code == Some(3) && said.contains("sealed over entries that are not in the package"),
        "{said}"
    );

    // Keys got elsewhere are compared.
    for (name, bytes) in PARTS.iter().zip(&whole) {
        write(name, bytes);
    }
    pack();
    lab.write("keys", format!("{key}\n{server_key}\n").as_bytes());
    lab.write("wrong", "0".repeat(64).as_bytes());
    let (keys, wrong) = (lab.dir.join("keys"), lab.dir.join("wrong"));
    let (code, said) = check(&["--trust", keys.to_str().unwrap()]);
    assert!(
        code == Some(0) && !said.contains("compare it with"),
        "{said}"
    );
    let (code, said) = check(&["--trust", wrong.to_str().unwrap()]);
    assert!(
        code == Some(3) && said.contains("another key than the trusted one"),
        "{said}"
    );
}

/// `batches.bin`, a batch each.
fn batches_of(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut batches = Vec::new();
    let mut rest = bytes;
    while let Some((len, _)) = rest.split_first_chunk::<4>() {
        let len = u32::from_be_bytes(*len) as usize + 4;
        batches.push(rest[..len].to_vec());
        rest = &rest[len..];
    }
    batches
}

const PARTS: [&str; 4] = ["manifest.json", "log.txt", "batches.bin", "evidence.json"];
