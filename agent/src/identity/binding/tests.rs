use std::path::PathBuf;

use super::super::state::tests::sample;
use super::*;
use crate::identity::Identity;

fn machine(changes: &[(&'static str, &str)]) -> Vec<Characteristic> {
    let as_it_was = [
        ("machine-id", "id"),
        ("cpu-model", "cpu"),
        ("network-cards", "cards"),
        ("dmi-uuid", "uuid"),
        ("root-file-system", "root"),
    ];
    let value_of = |name: &str, value: &str| {
        let change = changes.iter().find(|(changed, _)| *changed == name);
        change.map_or(value, |(_, value)| value).as_bytes().to_vec()
    };
    let all = as_it_was.map(|(name, value)| Characteristic {
        name,
        value: value_of(name, value),
    });
    all.into_iter()
        .filter(|one| !one.value.is_empty())
        .collect()
}

fn directory(name: &str) -> PathBuf {
    let name = format!("scrinium-binding-{name}-{}", std::process::id());
    let dir = std::env::temp_dir().join(name);
    drop(std::fs::remove_dir_all(&dir));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Binds the state `sample` in `dir` to this machine; its key is all ones.
fn bind(dir: &Path, found: &[Characteristic], changes_max: usize) -> Secret<32> {
    let (install, key) = (Secret::new([2; 32]), Secret::new([1; 32]));
    let asking = Asking::new(&sample(), &key).unwrap();
    let sealed = Sealed::new(found, changes_max, &install, &key, asking).unwrap();
    sealed.write(&dir.join(FILE_NAME)).unwrap();
    key
}

fn here(dir: &Path, found: &[Characteristic]) -> Option<Binding> {
    match Binding::open_on(dir, found).unwrap() {
        Opened::Here(binding) => Some(binding),
        Opened::Elsewhere(_) => None,
    }
}

fn elsewhere(dir: &Path, found: &[Characteristic]) -> Elsewhere {
    match Binding::open_on(dir, found).unwrap() {
        Opened::Elsewhere(elsewhere) => elsewhere,
        Opened::Here(_) => panic!("it opens"),
    }
}

/// J7: every single characteristic may be exchanged or gone, and is named; two may not, at the same time.
#[test]
fn j7_any_one_characteristic_may_change_and_two_may_not() {
    let dir = directory("one");
    let key = bind(&dir, &machine(&[]), 1);
    assert!(here(&dir, &machine(&[])).unwrap().changed().is_empty());
    let names = names_of(&machine(&[]));
    for (n, name) in machine(&[]).iter().map(|found| found.name).enumerate() {
        for value in ["other", ""] {
            let binding = here(&dir, &machine(&[(name, value)])).unwrap();
            assert_eq!((binding.key(), binding.changed()), (&key, &names[n..=n]));
        }
        for second in machine(&[]).iter().map(|found| found.name).skip(n + 1) {
            let refused = elsewhere(&dir, &machine(&[(name, "other"), (second, "")]));
            assert_eq!(refused.changed, [name, second]);
            assert!(refused.in_words().contains("another machine"));
        }
    }
    // What is new says nothing of what was.
    let fewer = machine(&[("dmi-uuid", ""), ("network-cards", "")]);
    bind(&dir, &fewer, 1);
    assert!(here(&dir, &machine(&[])).unwrap().changed().is_empty());
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn two_characteristics_stay_whatever_may_change() {
    let dir = directory("two");
    bind(&dir, &machine(&[]), CHANGES_MAX);
    let three = [("cpu-model", "x"), ("dmi-uuid", "x"), ("machine-id", "x")];
    assert_eq!(here(&dir, &machine(&three)).unwrap().changed().len(), 3);
    let four = [&three[..], &[("network-cards", "x")]].concat();
    assert_eq!(elsewhere(&dir, &machine(&four)).changed.len(), 4);
    // A machine that has three, two, one or none of them.
    let gone = [("dmi-uuid", ""), ("root-file-system", "")];
    bind(&dir, &machine(&gone), CHANGES_MAX);
    let other = [&gone[..], &[("cpu-model", "x")]].concat();
    assert!(here(&dir, &machine(&other)).is_some());
    let others = [&other[..], &[("machine-id", "x")]].concat();
    assert!(here(&dir, &machine(&others)).is_none());
    let gone = [&gone[..], &[("network-cards", "")]].concat();
    bind(&dir, &machine(&gone), CHANGES_MAX);
    assert!(here(&dir, &machine(&gone)).is_some());
    assert!(here(&dir, &machine(&[&gone[..], &[("cpu-model", "x")]].concat())).is_none());
    bind(&dir, &machine(&[])[..1], CHANGES_MAX);
    assert!(here(&dir, &machine(&[("machine-id", "x")])).is_none());
    bind(&dir, &[], CHANGES_MAX);
    assert!(here(&dir, &machine(&[])).is_some());
    std::fs::remove_dir_all(dir).unwrap();
}

/// One change after the other, each renewed: the state follows its machine, and opens on the first one no more.
#[test]
fn a_binding_is_renewed_for_what_the_machine_is_now() {
    let dir = directory("renewed");
    let key = bind(&dir, &machine(&[]), 1);
    let state = sample();
    let first = machine(&[("cpu-model", "second")]);
    let second = machine(&[("cpu-model", "second"), ("network-cards", "second")]);
    for changed in [&first, &second] {
        let mut binding = here(&dir, changed).unwrap();
        assert!(binding.renew_on(changed, 1, &state).unwrap());
        assert!(!binding.renew_on(changed, 1, &state).unwrap());
        assert_eq!(here(&dir, changed).unwrap().key(), &key);
    }
    assert!(here(&dir, &machine(&[])).is_none());
    // Another number, another server address: it is written anew.
    let mut binding = here(&dir, &second).unwrap();
    assert!(binding.renew_on(&second, 2, &state).unwrap());
    let mut moved = sample();
    moved.address = "elsewhere:720".into();
    assert!(binding.renew_on(&second, 2, &moved).unwrap());
    assert!(!binding.renew_on(&second, 2, &moved).unwrap());
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn the_servers_part_opens_it_anywhere_and_no_file_holds_that() {
    let dir = directory("server");
    let key = bind(&dir, &machine(&[]), 1);
    let other = [("machine-id", "x"), ("cpu-model", "x"), ("dmi-uuid", "x")];
    let other = machine(&other);
    let recovery = sample().recovery.unwrap();
    for wrong in [asking_part(&recovery), Secret::new([0; 32])] {
        assert!(elsewhere(&dir, &other).open_with(&wrong).is_err());
    }
    let part = scrinium_segment::key::state_key(&recovery);
    let mut binding = elsewhere(&dir, &other).open_with(&part).unwrap();
    assert_eq!(binding.key(), &key);
    assert!(binding.renew_on(&other, 1, &sample()).unwrap());
    assert!(here(&dir, &other).is_some() && here(&dir, &machine(&[])).is_none());
    // Neither the server's name, nor a credential, nor a key stands there to be read.
    let text = std::fs::read_to_string(dir.join(FILE_NAME)).unwrap();
    for secret in [&key, &part, &recovery, &asking_part(&recovery)] {
        assert!(!text.contains(&HEXLOWER.encode(secret.expose())));
    }
    assert!(!text.contains("localhost"));
    std::fs::remove_dir_all(dir).unwrap();
}

fn asking_part(recovery: &Secret<32>) -> Secret<32> {
    scrinium_segment::key::asking_credential(recovery)
}

/// K5: version 0.1.0 wrote the two names alone, and refused every other; what it wrote is opened, and left as it is until
/// it is renewed. Then that program refuses it with a sentence, and nothing of the state was touched.
#[test]
fn k5_a_binding_of_0_1_0_is_left_as_it_is_until_it_is_renewed_and_refused_by_that_program_then() {
    let dir = directory("0.1.0");
    let found = machine::characteristics();
    let old = serde_json::json!({
        "characteristics": found.iter().map(|found| found.name).collect::<Vec<_>>(),
        "secret": "07".repeat(32),
    });
    let old = serde_json::to_vec(&old).unwrap();
    let path = dir.join(FILE_NAME);
    durable::write_file(&path, &old).unwrap();
    let names: Vec<String> = found.iter().map(|found| found.name.to_owned()).collect();
    let key = machine::bind(&names, &Secret::new([7; 32])).unwrap();
    drop(Identity::create(&dir, &key, sample()).unwrap());
    let state = || ["state.a", "state.b"].map(|name| std::fs::read(dir.join(name)).ok());
    let written = state();

    let mut binding = here(&dir, &machine::of_agents()).unwrap();
    assert!(binding.is_of_0_1());
    assert_eq!(binding.key(), &key);
    assert_eq!(std::fs::read(&path).unwrap(), old);
    assert!(binding.renew(1, &sample()).unwrap());
    assert!(!binding.is_of_0_1());

    let now = std::fs::read(&path).unwrap();
    let Err(refused) = serde_json::from_slice::<Of01>(&now) else {
        panic!("version 0.1.0 opens it");
    };
    let refused = refused.to_string();
    assert!(
        refused.contains("a newer scrinium-agent, which alone opens it"),
        "{refused}"
    );
    assert_eq!(state(), written);
    let binding = here(&dir, &machine::of_agents()).unwrap();
    assert_eq!(binding.key(), &key);
    Identity::open(&dir, &key).unwrap();

    // A state of version 0.1.0 that does not open says so, and cannot ask.
    durable::write_file(&path, &old).unwrap();
    let other = String::from_utf8(old).unwrap().replace("07", "08");
    durable::write_file(&path, other.as_bytes()).unwrap();
    let refused = elsewhere(&dir, &machine::of_agents());
    assert!(refused.asking.is_none() && refused.in_words().contains("not known"));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_damaged_or_newer_file_is_named() {
    let dir = directory("damaged");
    for (text, expected) in [
        ("", "machine.json is damaged"),
        ("{}", "machine.json is damaged"),
        (
            "{\"characteristics\":[],\"secret\":\"00\"}",
            "machine.json is damaged",
        ),
    ] {
        durable::write_file(&dir.join(FILE_NAME), text.as_bytes()).unwrap();
        let error = format!("{:#}", Binding::open_on(&dir, &[]).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
    bind(&dir, &machine(&[]), 1);
    let text = std::fs::read_to_string(dir.join(FILE_NAME)).unwrap();
    let newer = text.replace("opens it\": 2", "opens it\": 3");
    assert_ne!(text, newer);
    durable::write_file(&dir.join(FILE_NAME), newer.as_bytes()).unwrap();
    let error = Binding::open_on(&dir, &[]).unwrap_err().to_string();
    assert!(error.contains("newer than this program"), "{error}");
    std::fs::remove_file(dir.join(FILE_NAME)).unwrap();
    let error = Binding::open_on(&dir, &[]).unwrap_err().to_string();
    assert!(error.contains("holds no agent"), "{error}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn choices_are_listed_once_each_the_smaller_first() {
    let names = ["a", "b", "c", "d", "e"].map(str::to_owned);
    let sizes = |max| {
        let all = subsets(&names, max);
        let mut once = all.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), all.len());
        assert!(all.is_sorted_by_key(Vec::len));
        all.len()
    };
    assert_eq!([0, 1, 2, 3].map(sizes), [1, 6, 16, 26]);
    assert_eq!(subsets(&[], 2).len(), 1);
}
