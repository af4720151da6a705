//! An export package is checked without the server; any change is noticed.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::excerpt::Excerpt;
use scrinium_tests::corpus::Corpus;
use scrinium_tests::lab::{Lab, text};
use scrinium_tests::package::{Parts, gzip, hex, verdict, verify};
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
    let words = ["--agent", "web1", "--path", path.to_str().unwrap()];
    let export = |lab: &Lab, more: &[&str], parts: &str| {
        let _absent = std::fs::remove_file(&package);
        let mut command = lab.server_command(&["export"]);
        let command = command.args(words).args(more).arg("--out").arg(&package);
        let exported = command.env("SCRINIUM_PART_BYTES_MAX", parts).output();
        let exported = exported.unwrap();
        assert!(exported.status.success(), "{}", text(&exported.stderr));
    };
    export(&lab, &[], "");

    let check = || verify(&package, &[]);
    assert_eq!(check().0, Some(0), "{}", check().1);
    // Stock tools read it.
    let mut unpacked = Command::new("sh");
    unpacked.args(["-c", "tar xOf \"$0\" log.txt.gz | gzip -dc"]);
    let log = unpacked.arg(&package).output().unwrap();
    assert!(log.stdout == lines);

    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&package)
        .unwrap();
    let len = file.metadata().unwrap().len();
    let flip = |at: u64, bit: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
    };
    // Each is a verdict, never an error of the program.
    for n in 0..130 {
        let (at, bit) = (len * n / 130, n % 8);
        flip(at, bit);
        let (code, said) = check();
        assert_eq!(code, Some(3), "bit {bit} of byte {at} of {len}: {said}");
        flip(at, bit);
    }
    assert_eq!(check().0, Some(0));

    // Cut into parts, on a stopped server's volume, whose commands do in their own process what a server does.
    lab.stop_server();
    export(&lab, &["--table", "json"], "100000");
    let (code, said) = check();
    assert_eq!(code, Some(0), "{said}");
    let parts = Parts::of(&std::fs::read(&package).unwrap());
    let names: Vec<&str> = parts.members.iter().map(|(name, _)| &**name).collect();
    for name in ["log.3.txt.gz", "entries.2.jsonl.gz"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let logs = names.iter().filter(|name| name.starts_with("log."));
    let joined: Vec<u8> = logs.flat_map(|name| parts.text(name)).collect();
    assert!(joined == lines);
    let first = names
        .iter()
        .position(|name| *name == "log.2.txt.gz")
        .unwrap();
    let mut moved = parts.clone();
    moved.members.swap(first, first + 1);
    let mut fewer = parts.clone();
    fewer.members.remove(first);
    for altered in [moved, fewer] {
        lab.write("altered.tar", &altered.packed());
        let (code, said) = verify(&lab.dir.join("altered.tar"), &[]);
        assert!(
            code == Some(3) && said.contains("where batches.bin must stand"),
            "{said}"
        );
    }
}

/// Every byte of it, and every length: the packages of this version, and what else was there when it was made.
#[test]
fn every_bit_of_a_golden_package_counts_and_so_does_its_length() {
    let path = std::env::temp_dir().join(format!("scrinium-golden-{}", std::process::id()));
    let check = |bytes: &[u8]| {
        std::fs::File::create(&path)
            .unwrap()
            .write_all(bytes)
            .unwrap();
        verdict(&path)
    };
    for name in ["package-3-stream.tar", "package-2-stream.tar"] {
        let whole = std::fs::read(vector(name)).unwrap();
        assert!(check(&whole).whole);
        let mut parts = Parts::of(&whole);
        let places = parts.places();
        for at in 0..whole.len() {
            let in_header = places
                .iter()
                .find(|place| (**place..**place + 512).contains(&at));
            // Every byte of the headers, and every third of the rest.
            if in_header.is_none() && at % 3 != 0 {
                continue;
            }
            let mut changed = whole.clone();
            changed[at] ^= 1 << (at % 8);
            let verdict = check(&changed);
            let is_noticed = !verdict.whole && !verdict.problems.is_empty();
            assert!(is_noticed && verdict.proven.is_empty(), "{name}: byte {at}");
        }
        for len in (0..whole.len())
            .step_by(512)
            .chain([1, 511, whole.len() - 1])
        {
            assert!(!check(&whole[..len]).whole, "{name}: {len} bytes");
        }
        for more in [&[0][..], &[0; 512], &[0; 9216], b"x", &whole] {
            assert!(!check(&[&whole[..], more].concat()).whole, "{name}");
        }
        // Packed by other hands from the same members, with another time.
        assert_eq!(parts.packed(), whole);
        parts.delay(1);
        assert_eq!(check(&parts.packed()).whole, name.contains("-2-"), "{name}");
    }
    std::fs::remove_file(path).unwrap();
}

/// Released packages are whole for ever, and so say the keys that came another way.
#[test]
fn golden_packages_of_every_version_are_whole() {
    for version in ["2", "3"] {
        let keys = vector(&format!("package-{version}.keys"));
        let authority = vector(&format!("package-{version}.pem"));
        let more = ["--trust", keys.to_str().unwrap()];
        let more = [&more[..], &["--tsa-ca", authority.to_str().unwrap()]].concat();
        for (what, sentence) in [
            ("stream", "exactly as agent web1 signed them"),
            ("query", "that nothing else matches"),
            ("two", "3 lines of /tmp/lab/logs/app.log"),
            ("own", "exactly as the server signed them"),
        ] {
            let package = vector(&format!("package-{version}-{what}.tar"));
            let (code, said) = verify(&package, &more);
            assert_eq!(code, Some(0), "{said}");
            for sentence in [
                sentence,
                "were there at 2026-11-27T",
                "says a time-stamp authority that is trusted",
                "the key of the server is a trusted one",
                "the package is whole",
            ] {
                assert!(
                    said.contains(sentence),
                    "{what} {version}: {sentence}: {said}"
                );
            }
        }
    }
}

/// What is no package is told from one that cannot be read.
#[test]
fn what_is_no_package_is_a_verdict_and_what_cannot_be_read_an_error() {
    let dir = std::env::temp_dir().join(format!("scrinium-no-package-{}", std::process::id()));
    let _absent = std::fs::remove_dir_all(&dir);
    std::fs::create_dir(&dir).unwrap();
    let path = dir.join("package.tar");
    let whole = std::fs::read(vector("package-3-stream.tar")).unwrap();
    let parts = Parts::of(&whole);
    let with_manifest = |manifest: &[u8]| {
        let mut parts = parts.clone();
        parts.set("manifest.json", manifest.to_vec());
        parts.packed()
    };
    let manifest = parts.manifest();
    let with = |field: &str, value: Value| {
        let mut manifest = manifest.clone();
        manifest[field] = value;
        with_manifest(manifest.to_string().as_bytes())
    };
    for (what, bytes, reason) in [
        ("nothing", Vec::new(), "the file is empty"),
        ("zeros", vec![0; 1024], "the package is empty"),
        (
            "text",
            b"a log\n".repeat(200),
            "no package that a server wrote",
        ),
        (
            "another tar",
            [&whole[1024..], &[0; 1024]].concat(),
            "no package",
        ),
        ("no JSON", with_manifest(b"{"), "manifest.json"),
        (
            "deep JSON",
            with_manifest(&b"[".repeat(100_000)),
            "manifest.json",
        ),
        ("no format", with("format", json!(null)), "manifest.json"),
        (
            "a later format",
            with("format", json!("scrinium-package-9")),
            "scrinium-package-9",
        ),
        (
            "no key",
            with("server_key", json!("00")),
            "64 hexadecimal digits",
        ),
        (
            "no time",
            with("made", json!("yesterday")),
            "made is no time",
        ),
    ] {
        std::fs::File::create(&path)
            .unwrap()
            .write_all(&bytes)
            .unwrap();
        let (code, said) = verify(&path, &[]);
        assert!(code == Some(3) && said.contains(reason), "{what}: {said}");
    }
    // A manifest says each thing once.
    let twice = manifest.to_string().replacen(
        "\"members\":{",
        "\"members\":{\"batches.bin\":{\"bytes\":0,\"sha256\":\"\"},",
        1,
    );
    std::fs::File::create(&path)
        .unwrap()
        .write_all(&with_manifest(twice.as_bytes()))
        .unwrap();
    let (code, said) = verify(&path, &[]);
    assert!(
        code == Some(3) && said.contains("batches.bin stands twice"),
        "{said}"
    );
    for (path, reason) in [
        (dir.join("nowhere"), "opening"),
        (dir.clone(), "is no file"),
    ] {
        let (code, said) = verify(&path, &[]);
        assert!(code == Some(1) && said.contains(reason), "{said}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// What is extracted is what was verified, and nothing that is there is touched.
#[test]
fn what_is_verified_can_be_extracted_and_nothing_is_written_over() {
    let dir = std::env::temp_dir().join(format!("scrinium-extract-{}", std::process::id()));
    let _absent = std::fs::remove_dir_all(&dir);
    std::fs::create_dir(&dir).unwrap();
    let out = dir.join("out");
    let more = ["--extract", out.to_str().unwrap()];
    let mode = |path: &Path| {
        let about = std::fs::symlink_metadata(path).unwrap();
        std::os::unix::fs::PermissionsExt::mode(&about.permissions()) & 0o777
    };
    for version in ["2", "3"] {
        let package = vector(&format!("package-{version}-stream.tar"));
        let parts = Parts::of(&std::fs::read(&package).unwrap());
        let (code, said) = verify(&package, &more);
        assert!(code == Some(0) && said.contains("extracted:"), "{said}");
        for (name, content) in &parts.members {
            assert!(std::fs::read(out.join(name)).unwrap() == *content, "{name}");
            if let Some(text) = name.strip_suffix(".gz") {
                assert!(
                    std::fs::read(out.join(text)).unwrap() == parts.text(name),
                    "{name}"
                );
            }
        }
        assert_eq!((mode(&out), mode(&out.join("log.txt"))), (0o700, 0o600));
        // What is there stays, and nothing else comes.
        let log = std::fs::read(out.join("log.txt")).unwrap();
        let (code, said) = verify(&package, &more);
        assert!(
            code == Some(1) && said.contains("must not be there yet"),
            "{said}"
        );
        assert!(std::fs::read(out.join("log.txt")).unwrap() == log);
        std::fs::remove_dir_all(&out).unwrap();
        // A link that waits for us is not followed, be it the directory or a file; what was begun is taken back.
        let elsewhere = dir.join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &out).unwrap();
        let (code, said) = verify(&package, &more);
        assert!(
            code == Some(1) && said.contains("is no directory"),
            "{said}"
        );
        std::fs::remove_file(&out).unwrap();
        std::fs::create_dir(&out).unwrap();
        std::os::unix::fs::symlink(elsewhere.join("log"), out.join("evidence.json")).unwrap();
        let (code, said) = verify(&package, &more);
        assert!(code == Some(1) && said.contains("evidence.json"), "{said}");
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);
        std::fs::remove_dir_all(&out).unwrap();
        std::fs::remove_dir(&elsewhere).unwrap();
        // Of what is not whole nothing is.
        let mut changed = parts.packed();
        let at = changed.len() / 2;
        changed[at] ^= 1;
        let altered = dir.join("altered.tar");
        std::fs::File::create(&altered)
            .unwrap()
            .write_all(&changed)
            .unwrap();
        let (code, said) = verify(&altered, &more);
        assert!(
            code == Some(3) && said.contains("nothing was extracted"),
            "{said}"
        );
        assert!(!out.try_exists().unwrap());
    }
    std::fs::remove_dir_all(dir).unwrap();
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
    let package = lab.dir.join("package.tar");
    let export = |log: &Path| {
        let _absent = std::fs::remove_file(&package);
        let (log, out) = (log.to_str().unwrap(), package.to_str().unwrap());
        let exported = lab.server(&["export", "--agent", "web1", "--path", log, "--out", out]);
        assert!(exported.status.success(), "{}", text(&exported.stderr));
    };
    wait_until("all of it is sealed", Duration::from_secs(20), || {
        export(&log);
        verify(&package, &[]).1.contains("the first 80 entries of")
    });
    // In an interval of its own.
    append(&other).write_all(b"another file\n").unwrap();
    lab.wait_for_bytes("web1", &other, 13, Duration::from_secs(20));
    wait_until("the other is sealed", Duration::from_secs(20), || {
        export(&other);
        verify(&package, &[]).1.contains("the first 1 entries of")
    });
    let foreign = Parts::of(&std::fs::read(&package).unwrap());
    export(&log);
    let whole = Parts::of(&std::fs::read(&package).unwrap());
    let altered = lab.dir.join("altered.tar");
    let check = |parts: &Parts| {
        lab.write("altered.tar", &parts.packed());
        verify(&altered, &[])
    };
    let (code, said) = check(&whole);
    assert_eq!(code, Some(0), "{said}");

    let log = whole.text("log.txt.gz");
    let batches = batches_of(whole.get("batches.bin"));
    assert!(batches.len() >= 4, "{} batches", batches.len());
    let manifest = whole.manifest();
    let evidence: Value = serde_json::from_slice(whole.get("evidence.json")).unwrap();
    let with = |json: &Value, path: &str, value: Value| {
        let mut json = json.clone();
        *json.pointer_mut(path).unwrap() = value;
        json.to_string().into_bytes()
    };
    let flipped = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let mut swapped = batches.clone();
    swapped.swap(1, 2);
    let interval = evidence["intervals"][0]["leaf"].as_str().unwrap();
    let note = evidence["checkpoint"].as_str().unwrap();
    let server_key = manifest["server_key"].as_str().unwrap();
    let stream = &manifest["streams"][0]["stream_id"];
    let mut other: Value = serde_json::from_slice(foreign.get("evidence.json")).unwrap();
    other["intervals"][0]["streams"] = json!([stream]);
    let (logs, batch_file) = ("log.txt.gz", "batches.bin");
    let alterations: [(&str, &str, Vec<u8>, &str); 17] = [
        (
            "a byte of the log",
            logs,
            gzip(&flipped(&log, 300)),
            "log.txt differs from what was signed",
        ),
        (
            "a line more",
            logs,
            gzip(&[&log[..], b"one more\n"].concat()),
            "log.txt goes on after the last signed entry",
        ),
        (
            "a line less",
            logs,
            gzip(&log[..log.len() - 109]),
            "log.txt differs",
        ),
        (
            "a byte of a batch",
            batch_file,
            flipped(whole.get(batch_file), batches[0].len() - 5),
            "batch 1: ",
        ),
        (
            "no first batch",
            batch_file,
            batches[1..].concat(),
            "does not follow the one before",
        ),
        (
            "no last batch",
            batch_file,
            batches[..batches.len() - 1].concat(),
            "batches are missing at the end",
        ),
        (
            "a batch left out",
            batch_file,
            [&batches[..1], &batches[2..]].concat().concat(),
            "does not follow",
        ),
        (
            "two batches swapped",
            batch_file,
            swapped.concat(),
            "does not follow the one before",
        ),
        (
            "another count",
            "manifest.json",
            with(&manifest, "/entries", json!(79)),
            "the counts of the manifest",
        ),
        (
            "another key",
            "manifest.json",
            with(&manifest, "/streams/0/agent_key", json!(server_key)),
            "batch 1: ",
        ),
        (
            "another name of the stream",
            "manifest.json",
            with(&manifest, "/streams/0/stream", json!("/var/log/auth.log")),
            "the stream that was signed is not called /var/log/auth.log",
        ),
        (
            "the stream twice",
            "manifest.json",
            with(
                &manifest,
                "/streams",
                json!([manifest["streams"][0], manifest["streams"][0]]),
            ),
            "all of one stream is said to be several",
        ),
        (
            "entries said to be in no interval",
            "manifest.json",
            with(
                &manifest,
                "/streams/0/in_no_interval",
                json!([{ "first": 79, "next": 80 }]),
            ),
            "in no interval are others than the manifest says",
        ),
        (
            "a changed interval",
            "evidence.json",
            with(
                &evidence,
                "/intervals/0/leaf",
                json!(interval.replacen('A', "B", 1)),
            ),
            "evidence.json: the ",
        ),
        (
            "no path",
            "evidence.json",
            with(&evidence, "/intervals/0/path", json!([])),
            "not part of what the checkpoint signs",
        ),
        (
            "an older checkpoint",
            "evidence.json",
            with(
                &evidence,
                "/checkpoint",
                json!(note.replacen("time 1", "time 2", 1)),
            ),
            "the checkpoint: it is not signed by this server's key",
        ),
        (
            "another stream's interval",
            "evidence.json",
            other.to_string().into_bytes(),
            "evidence.json: the interval says nothing of this stream",
        ),
    ];
    let unsigned = "manifest.json: it is not signed by the server it names";
    for (what, name, bytes, reason) in alterations {
        let mut parts = whole.clone();
        parts.set(name, bytes);
        let (code, said) = check(&parts);
        assert_eq!(code, Some(3), "{what}: {said}");
        let by_manifest = match name {
            "manifest.json" => unsigned.to_owned(),
            _ => format!("{name} is not the one that the manifest describes"),
        };
        assert!(said.contains(&by_manifest), "{what}: {said}");
        // With a manifest that agrees, which nobody signed.
        parts.describe(|_| {});
        let (code, said) = check(&parts);
        assert_eq!(code, Some(3), "{what}: {said}");
        assert!(
            said.contains(reason) && said.contains(unsigned),
            "{what}: {said}"
        );
    }

    // A member more, one less, one twice, and two in another order.
    let more = |at: usize, name: &str, content: &[u8]| {
        let mut parts = whole.clone();
        parts
            .members
            .insert(at, (name.to_owned(), content.to_vec()));
        check(&parts)
    };
    for (at, name, reason) in [
        (7, "more.txt", "more.txt is no member of a package"),
        (
            4,
            "log.txt.gz",
            "log.txt.gz stands where batches.bin must stand",
        ),
        (3, " ", "\" \" stands where log.txt.gz must stand"),
        (7, "../evil", "../evil is no member"),
        (7, "log.txt", "log.txt is no member"),
    ] {
        let (code, said) = more(at, name, b"more\n");
        assert!(code == Some(3) && said.contains(reason), "{name}: {said}");
    }
    let mut fewer = whole.clone();
    fewer.members.retain(|(name, _)| name != "entries.csv.gz");
    let (code, said) = check(&fewer);
    assert!(
        code == Some(3) && said.contains("entries.csv.gz is missing"),
        "{said}"
    );
    let mut moved = whole.clone();
    moved.members.swap(2, 3);
    let (code, said) = check(&moved);
    assert!(
        code == Some(3) && said.contains("stands where custody.html must"),
        "{said}"
    );
    // What is compressed is one member of gzip.
    for (what, bytes) in [
        ("a second one", [whole.get(logs), &gzip(b"")].concat()),
        ("bytes behind it", [whole.get(logs), &[0][..]].concat()),
        (
            "a cut one",
            whole.get(logs)[..whole.get(logs).len() - 1].to_vec(),
        ),
        ("another head", {
            let mut bytes = whole.get(logs).to_vec();
            bytes[9] = 3;
            bytes
        }),
    ] {
        let mut parts = whole.clone();
        parts.set(logs, bytes.clone());
        parts.describe(|manifest| {
            let own = &mut manifest["members"][logs];
            (own["text_bytes"], own["text_sha256"]) = (json!(log.len()), json!(hex(&log)));
            (own["bytes"], own["sha256"]) = (json!(bytes.len()), json!(hex(&bytes)));
        });
        let (code, said) = check(&parts);
        assert!(
            code == Some(3) && said.contains("PROBLEM:     log.txt.gz: "),
            "{what}: {said}"
        );
    }

    // Everything of the package cut back to an earlier state that was whole: what was sealed tells, whoever signs.
    let kept = &batches[..batches.len() - 1];
    let last = kept.last().unwrap();
    let header = Excerpt::decode(&last[4..], "batch").unwrap().header;
    let entries = header.next().0;
    let bytes = &log[..usize::try_from(entries).unwrap() * 109];
    let mut cut = whole.clone();
    cut.set(logs, gzip(bytes));
    cut.set(batch_file, kept.concat());
    cut.describe(|manifest| {
        for path in ["", "/streams/0"] {
            let counts = manifest.pointer_mut(path).unwrap();
            counts["entries"] = json!(entries);
            counts["lines"] = json!(entries);
            counts["bytes"] = json!(bytes.len());
        }
        manifest["streams"][0]["runs"][0]["next"] = json!(entries);
        manifest["streams"][0]["runs"][0]["head"] = json!(header.head().to_string());
    });
    let (code, said) = check(&cut);
    assert!(
        code == Some(3) && said.contains("sealed over entries that are not in the package"),
        "{said}"
    );
}

/// A file of the repository that a release once wrote.
fn vector(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/packages");
    dir.join(name)
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
