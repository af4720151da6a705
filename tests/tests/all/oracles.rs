//! What other programs read in a package is what was verified, or the package is refused: GNU tar, bsdtar, Python and
//! 7-Zip are asked.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use scrinium_tests::forge::{Forged, forge, forge_whole};
use scrinium_tests::has_tool;
use scrinium_tests::lab::text;
use scrinium_tests::package::{Parts, hex, verdict, verify};
use scrinium_tests::random::Random;

/// Whoever alters a package, with keys of his own or without any, cannot have another program show other bytes than
/// those that were called whole.
#[test]
fn no_altered_package_that_is_whole_says_something_else_to_another_program() {
    let tools: Vec<&str> = TOOLS.into_iter().filter(|tool| has_tool(tool)).collect();
    let dir = std::env::temp_dir().join(format!("scrinium-oracles-{}", std::process::id()));
    let _absent = std::fs::remove_dir_all(&dir);
    std::fs::create_dir(&dir).unwrap();
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/packages");
    let bases = ["3-stream", "3-query", "3-own", "2-stream", "2-query"];
    let bases = bases.map(|name| {
        let bytes = std::fs::read(vectors.join(format!("package-{name}.tar"))).unwrap();
        (Parts::of(&bytes), bytes)
    });
    let mut random = Random::from_env_or(13);
    let (mut whole, mut refused) = (Vec::new(), Vec::new());
    for (number, (_, bytes)) in bases.iter().enumerate() {
        let path = save(&dir, &format!("unaltered-{number}"), bytes);
        whole.push(("unaltered", path, bytes.clone()));
    }
    let mut altered = 0;
    while altered < ALTERED {
        let (base, genuine) = &bases[altered % bases.len()];
        let Forged { how, bytes } = forge(base, &mut random);
        if bytes == *genuine {
            continue;
        }
        altered += 1;
        let path = save(&dir, &format!("{altered}"), &bytes);
        let verdict = verdict(&path);
        if altered % 20 == 0 {
            let (code, said) = verify(&path, &[]);
            assert_eq!(
                code,
                Some(if verdict.whole { 0 } else { 3 }),
                "{how}: {said}"
            );
        }
        if verdict.whole {
            // What is whole is written in one way alone, which another writer finds too.
            assert!(Parts::of(&bytes).packed() == bytes, "{how}");
            whole.push((how, path, bytes));
        } else {
            assert!(!verdict.problems.is_empty(), "{how}");
            refused.push((how, path, bytes));
        }
    }
    assert!(refused.len() > ALTERED / 2, "{} are refused", refused.len());
    for number in 0..10 * WHOLE {
        let (base, _) = &bases[number % bases.len()];
        let Forged { how, bytes } = forge_whole(base, &mut random);
        let path = save(&dir, &format!("whole-{number}"), &bytes);
        if verdict(&path).whole {
            whole.push((how, path, bytes));
        }
        if whole.len() > WHOLE {
            break;
        }
    }
    assert!(whole.len() > WHOLE, "{} are whole", whole.len());
    // A sample: enough to show that the programs would be deceived.
    refused.truncate(REFUSED_ASKED);
    std::thread::scope(|scope| {
        for tool in tools {
            let (whole, refused, dir) = (&whole, &refused, dir.join(tool));
            scope.spawn(move || ask(tool, whole, refused, &dir));
        }
    });
    std::fs::remove_dir_all(dir).unwrap();
}

/// What was done to a package, where it lies, and its bytes.
type Altered = (&'static str, PathBuf, Vec<u8>);

/// Has a program extract what is whole, where it must see what was verified, and some of what was refused, where it
/// must be deceived.
fn ask(tool: &str, whole: &[Altered], refused: &[Altered], dir: &Path) {
    for ((how, _, bytes), (done, found)) in whole.iter().zip(extract(tool, whole, dir)) {
        let parts = Parts::of(bytes);
        let expected = parts.members.iter();
        let expected: BTreeMap<String, String> = expected
            .map(|(name, content)| (name.clone(), hex(content)))
            .collect();
        assert!(done && found == expected, "{tool}: {how}: {found:?}");
        for (name, described) in parts.manifest()["members"].as_object().unwrap() {
            assert_eq!(described["sha256"], found[name], "{tool}: {how}: {name}");
        }
    }
    let mut deceived = 0;
    for ((_, _, bytes), (done, found)) in refused.iter().zip(extract(tool, refused, dir)) {
        let shows_forgery = found.values().any(|digest| *digest == hex(EVIL));
        deceived += usize::from(done && shows_forgery && holds(bytes, EVIL));
    }
    assert!(
        deceived >= 10,
        "{tool} was deceived {deceived} times: the test tests nothing"
    );
}

fn save(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(format!("{name}.tar"));
    std::fs::File::create(&path)
        .unwrap()
        .write_all(bytes)
        .unwrap();
    path
}

fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

/// Has a program extract packages; of each, whether it found nothing wrong, and the digests of all that it wrote.
fn extract(tool: &str, packages: &[Altered], dir: &Path) -> Vec<(bool, BTreeMap<String, String>)> {
    let _absent = std::fs::remove_dir_all(dir);
    std::fs::create_dir(dir).unwrap();
    let places: Vec<PathBuf> = (0..packages.len())
        .map(|number| dir.join(number.to_string()))
        .collect();
    for place in &places {
        std::fs::create_dir(place).unwrap();
    }
    let paths = packages.iter().map(|(_, path, _)| path);
    let done: Vec<bool> = if tool == "python3" {
        // It takes long to start.
        let mut command = Command::new(tool);
        let command = command.current_dir(dir).args(["-c", PYTHON]).args(paths);
        let command = command.stdin(Stdio::null()).stderr(Stdio::null());
        let said = command.output().unwrap().stdout;
        text(&said).lines().map(|line| line == "done").collect()
    } else {
        let extracted = paths.zip(&places).map(|(path, place)| {
            let mut command = Command::new(tool);
            match tool {
                "7z" => command.args(["x", "-y", "-bd"]).arg(path),
                _ => command.arg("-xf").arg(path),
            };
            let command = command.current_dir(place).stdin(Stdio::null());
            let done = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
            done.unwrap().success()
        });
        extracted.collect()
    };
    assert_eq!(done.len(), packages.len(), "{tool}");
    let found = places.iter().map(|place| {
        let mut found = BTreeMap::new();
        collect(place, "", &mut found);
        found
    });
    done.into_iter().zip(found).collect()
}

fn collect(dir: &Path, prefix: &str, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            collect(&entry.path(), &format!("{name}/"), found);
        } else if kind.is_file() {
            let content = std::fs::read(entry.path()).unwrap_or_default();
            found.insert(name, hex(&content));
        } else {
            found.insert(name, "no file".into());
        }
    }
}

const TOOLS: [&str; 4] = ["tar", "bsdtar", "python3", "7z"];
/// Only below the directory of each, whatever the version of Python.
const PYTHON: &str = "import sys, tarfile
for number, path in enumerate(sys.argv[1:]):
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if not member.name.startswith('/') and '..' not in member.name.split('/'):
                    tar.extract(member, str(number))
        print('done')
    except Exception:
        print('failed')
";
const ALTERED: usize = 1200;
const WHOLE: usize = 1000;
const REFUSED_ASKED: usize = 150;
const EVIL: &[u8] = b"FORGED LOG: nothing happened here\n";
