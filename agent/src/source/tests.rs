//! The sources as a whole, over a real directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};

use scrinium_protocol::identity::{AgentId, Epoch};
use scrinium_protocol::sl::sources::SourceState;
use tokio::sync::{mpsc, watch};

use super::round::Left;
use super::*;

/// Sources over a directory of their own; nothing is read before somebody says so.
struct Scene {
    sources: Sources,
    dir: PathBuf,
    _commands: Receiver<Command>,
    produced: mpsc::Receiver<Produced>,
    _runtime: tokio::runtime::Runtime,
}

impl Drop for Scene {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

impl Scene {
    fn new(name: &str, text: impl Fn(&std::path::Path) -> String) -> Self {
        let own = format!("scrinium-sources-{name}-{}", std::process::id());
        let dir = std::env::temp_dir().join(own);
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(dir.join("state")).unwrap();
        std::fs::create_dir_all(dir.join("log")).unwrap();
        let dir = std::fs::canonicalize(dir).unwrap();
        let config = Config::parse(&text(&dir)).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _inside = runtime.enter();
        let (told, commands) = sync_channel(COMMANDS_MAX);
        let (out, produced) = mpsc::channel(1000);
        let (heard, _) = watch::channel(Heard::default());
        let tells = Tells {
            heard,
            health: Health::new(&config),
        };
        let sources = prepare(
            &config,
            SigningKey::from_bytes(&[1; 32]),
            Positions::new(
                AgentId([1; 16]),
                Epoch([2; 16]),
                BTreeMap::new(),
                BTreeSet::new(),
            ),
            out,
            tells,
            Since::open(&dir.join("state"), true),
            Waker::new(told),
        );
        Self {
            sources: sources.unwrap(),
            dir,
            _commands: commands,
            produced,
            _runtime: runtime,
        }
    }

    #[expect(clippy::disallowed_methods, reason = "nothing of a test is durable")]
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn found(&self, names: &[&str]) -> BTreeMap<PathBuf, usize> {
        let paths = names.iter().map(|name| (self.dir.join(name), 0));
        paths.collect()
    }

    /// Lets every stream have its turn; what they produced, by their names.
    fn read(&mut self) -> BTreeMap<String, String> {
        self.read_at(clock::now())
    }

    fn read_at(&mut self, now: Instant) -> BTreeMap<String, String> {
        self.sources.due.all_at = None;
        while self.sources.pass(now) == Pass::Busy {}
        let mut all: BTreeMap<String, String> = BTreeMap::new();
        while let Ok(produced) = self.produced.try_recv() {
            let text = all.entry(produced.name.name).or_default();
            for (_, bytes) in produced.batch.open().unwrap().iter() {
                text.push_str(&String::from_utf8_lossy(bytes));
            }
        }
        all
    }
}

#[expect(clippy::disallowed_methods, reason = "nothing of a test is durable")]
fn rename(from: &std::path::Path, to: &std::path::Path) {
    std::fs::rename(from, to).unwrap();
}

fn globs(dir: &std::path::Path) -> String {
    format!("[[source]]\nfile = \"{}/log/*.log\"\n", dir.display())
}

fn left(one: &std::path::Path, numbers: &[u64]) -> Left {
    Left {
        one: one.to_owned(),
        numbers: numbers.iter().copied().collect(),
    }
}

/// Who makes ten thousand files must not make the old generations of the others unseen for ever.
#[test]
fn an_old_generation_for_which_there_was_no_room_is_taken_up_when_there_is() {
    let mut scene = Scene::new("left", globs);
    let old = scene.write("log/app.log.1", "old\n");
    let base = scene.dir.join("log/app.log");
    let of_it = || BTreeMap::from([(base.clone(), left(&old, &[7]))]);
    let (source, none) = (Some(0), Arc::default());
    for n in 0..AWAKE_MAX / 2 {
        let path = scene.dir.join(format!("log/{n}.log"));
        scene.sources.open(path, source, false, &none);
    }
    scene.sources.open_left(of_it());
    assert!(!scene.sources.streams.contains_key(&base));
    scene.sources.streams.clear();
    scene.sources.open_left(of_it());
    assert!(scene.sources.streams.contains_key(&base));
    // One that was opened is so again when there are others.
    scene.sources.streams.clear();
    scene.sources.open_left(of_it());
    assert!(scene.sources.streams.is_empty());
    let others = BTreeMap::from([(base.clone(), left(&old, &[7, 8]))]);
    scene.sources.open_left(others);
    assert!(scene.sources.streams.contains_key(&base));
}

/// Only the system's own files have the last places, and who waits for one is said.
#[test]
fn files_that_cannot_be_read_give_their_places_to_others_and_who_waits_is_said() {
    let mut scene = Scene::new("places", globs);
    scene.write("log/new.log", "new\n");
    let (source, none) = (Some(0), Arc::default());
    for n in 0..AWAKE_MAX {
        let path = scene.dir.join(format!("log/{n:05}.log"));
        scene.sources.open(path, source, false, &none);
    }
    let found = scene.found(&["log/new.log"]);
    scene.sources.take_up(&found, false);
    let path = scene.dir.join("log/new.log");
    assert!(!scene.sources.streams.contains_key(&path));
    let now = clock::now();
    let said = scene.sources.stuck(now);
    let [(0, finding)] = &*said else {
        panic!("{said:?}")
    };
    assert!(finding.needs_person && finding.state == SourceState::NotWalked);
    assert_eq!(finding.path, path);
    scene.sources.streams.clear();
    scene.sources.take_up(&found, true);
    assert!(scene.sources.streams.contains_key(&path));
    assert!(scene.sources.stuck(now).is_empty());
}

/// A file that cannot be read rests when others need its place: what is wrong with it stays said, and it is tried again.
#[test]
fn a_file_in_trouble_rests_and_is_said_and_tried_again() {
    let mut scene = Scene::new("trouble", globs);
    let secret = scene.write("secret", "secret\n");
    let link = scene.dir.join("log/link.log");
    std::os::unix::fs::symlink(&secret, &link).unwrap();
    let others = std::os::unix::fs::lchown(&link, Some(1000), None);
    if others.is_err() {
        return; // only root can give a link away
    }
    let found = scene.found(&["log/link.log"]);
    scene.sources.take_up(&found, true);
    scene.read();
    let now = clock::now() + Duration::from_secs(10);
    scene.sources.rest(now);
    assert!(scene.sources.streams.is_empty());
    let troubles: Vec<_> = scene.sources.resting.troubles().collect();
    let [(0, finding)] = &*troubles else {
        panic!("{troubles:?}")
    };
    assert_eq!(finding.state, SourceState::RefusedLink);
    let seen = scene.sources.disk.look(&link).unwrap().unwrap();
    let disk = scene.sources.disk.clone();
    let is_quiet = |after| {
        let resting = &scene.sources.resting;
        resting.is_unchanged(&*disk, &link, seen, now + Duration::from_secs(after))
    };
    assert!(is_quiet(59) && !is_quiet(60));
}

/// A renamed file is still written to when the one at its path rests.
#[test]
fn what_is_written_late_to_a_renamed_file_is_collected_though_the_one_at_its_path_rests() {
    let mut scene = Scene::new("late", globs);
    let own = scene.write("log/app.log", "one\n");
    let found = scene.found(&["log/app.log"]);
    scene.sources.take_up(&found, true);
    scene.read();
    rename(&own, &scene.dir.join("log/app.log.1"));
    scene.write("log/app.log", "two\n");
    scene.read();
    // Who needs descriptors closes them, and there are very many files.
    scene.sources.descriptors_max = 0;
    scene.read();
    let start = clock::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    // Where the renamed one is, is not known before settled files were looked at.
    scene.sources.rest(at(4));
    assert!(!scene.sources.streams.is_empty());
    scene.read_at(at(10));
    scene.read_at(at(20));
    scene.sources.rest(at(25));
    assert!(scene.sources.streams.is_empty());
    scene.sources.take_up(&found, true);
    assert!(scene.sources.streams.is_empty());
    scene.write("log/app.log.1", "one\nlate\n");
    scene.sources.take_up(&found, true);
    assert!(!scene.sources.streams.is_empty());
    scene.sources.descriptors_max = 100;
    // Settled files are looked at some seconds after a stream is opened.
    let text = (30..50).map(|second| scene.read_at(at(second)));
    let text: String = text.flat_map(BTreeMap::into_values).collect();
    assert_eq!(text, "late\n");
}

/// A link that may not be followed any more, and what begins an entry.
#[test]
fn what_a_new_configuration_says_holds_for_files_that_are_open() {
    let text = |more: &'static str| {
        move |dir: &std::path::Path| {
            let glob = format!("{}/log/*.log", dir.display());
            format!("{more}\n[[source]]\nfile = \"{glob}\"\n")
        }
    };
    let mut scene = Scene::new("reload", text(""));
    scene.write("log/app.log", "one\n");
    let found = scene.found(&["log/app.log"]);
    scene.sources.take_up(&found, true);
    scene.read();
    let glob = format!("{}/log/*.log", scene.dir.display());
    let multiline = format!("[[source]]\nfile = \"{glob}\"\nmultiline_start = \"^[a-z]\"\n");
    scene.sources.configure(&Config::parse(&multiline).unwrap());
    scene.write("log/app.log", "one\ntwo\n  more\nthree\n");
    let mut produced = Vec::new();
    let start = clock::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    for second in 0..5 {
        scene.sources.due.all_at = None;
        scene.sources.pass(at(second));
        while let Ok(one) = scene.produced.try_recv() {
            let batch = one.batch.open().unwrap();
            produced.extend(batch.iter().map(|(_, bytes)| bytes.to_vec()));
        }
    }
    assert!(
        produced.contains(&b"two\n  more\n".to_vec()),
        "{produced:?}"
    );
    // A generation that is forbidden now and open.
    let path = scene.dir.join("log/app.log");
    let generation = scene.dir.join("log/app.log.1");
    rename(&path, &generation);
    scene.read();
    let denied = format!(
        "deny = [\"{}\"]\n[[source]]\nfile = \"{glob}\"\n",
        generation.display()
    );
    scene.sources.configure(&Config::parse(&denied).unwrap());
    scene.write("log/app.log.1", "one\ntwo\n  more\nthree\nforbidden\n");
    scene.write("log/app.log", "four\n");
    let all = (6..60).map(|second| scene.read_at(at(second)));
    let all: String = all.flat_map(BTreeMap::into_values).collect();
    assert!(
        all.contains("four\n") && !all.contains("forbidden"),
        "{all}"
    );
}

/// That a file was there is all that is known of one that was gone when it was to be opened.
#[test]
fn a_file_that_came_and_went_unread_is_a_gap_entry_of_its_path() {
    let mut scene = Scene::new("vanished", globs);
    let now = clock::now();
    let path = |scene: &Scene, name: &str| scene.dir.join("log").join(name);
    let (short, old, other) = (
        path(&scene, "short.log"),
        path(&scene, "moved.log"),
        path(&scene, "short.txt"),
    );
    let appeared = BTreeSet::from([short.clone(), old.clone(), other.clone()]);
    // One that a stream reads was renamed, and is nothing new.
    let from = scene.write("log/app.log", "app\n");
    let found = scene.found(&["log/app.log"]);
    scene.sources.take_up(&found, true);
    let made = |from| watching::Made {
        from,
        times: 1,
        is_made: true,
        ..watching::Made::default()
    };
    let made = [
        (short.clone(), made(None)),
        (old, made(Some(from))),
        (other, made(None)),
    ];
    let made = BTreeMap::from(made);
    scene.sources.meet(appeared, &made, now);
    scene.sources.say_vanished();
    let read = scene.read();
    let of = |path: &std::path::Path| read.get(&discover::name_of(path));
    assert!(of(&short).unwrap().contains("gone before it was opened"));
    assert_eq!(read.len(), 2, "{read:?}");
    // One that was found, and is gone when its stream has its turn.
    let soon = scene.write("log/soon.log", "soon\n");
    let found = scene.found(&["log/soon.log"]);
    scene.sources.take_up(&found, false);
    std::fs::remove_file(&soon).unwrap();
    let read = scene.read();
    let text = &read[&discover::name_of(&soon)];
    assert!(text.contains("gone before it was opened"), "{text}");
    // It comes again, and is collected like any other.
    scene.write("log/short.log", "short\n");
    let found = scene.found(&["log/short.log"]);
    scene.sources.take_up(&found, false);
    let read = scene.read();
    assert_eq!(read[&discover::name_of(&short)], "short\n");
}

/// savelog -t makes `app.log.new`, and moves it to `app.log`: what is named for a moment, and named otherwise then, is read there.
#[test]
#[expect(clippy::disallowed_methods, reason = "nothing of a test is durable")]
fn a_file_that_is_made_and_moved_to_where_it_is_read_has_not_come_and_gone() {
    let globs =
        |dir: &std::path::Path| format!("[[source]]\nfile = \"{}/log/*.log*\"\n", dir.display());
    let mut scene = Scene::new("savelog", globs);
    let (own, new) = (
        scene.dir.join("log/app.log"),
        scene.dir.join("log/app.log.new"),
    );
    scene.write("log/app.log", "first\n");
    let found = scene.found(&["log/app.log"]);
    scene.sources.take_up(&found, true);
    scene.read();
    let save = |n: u32| {
        rename(&own, &own.with_extension(format!("log.{n}")));
        std::fs::write(&new, "").unwrap();
    };
    // It was moved on before it was looked at: as often as one was made.
    let is_gone = |read: &BTreeMap<String, String>| read.contains_key(&discover::name_of(&new));
    let told = |moved: u32| {
        let mut news = watching::News::default();
        for n in 0..2 {
            news.made(new.clone(), None, true);
            if n < moved {
                news.made(own.clone(), None, false);
                news.made(own.clone(), Some(new.clone()), false);
            }
        }
        news.made
    };
    save(9);
    rename(&new, &own);
    let appeared = BTreeSet::from([new.clone()]);
    scene.sources.meet(appeared.clone(), &told(2), clock::now());
    scene.sources.say_vanished();
    assert!(!is_gone(&scene.read()));
    // One of two was moved on.
    scene.sources.meet(appeared, &told(1), clock::now());
    scene.sources.say_vanished();
    assert!(is_gone(&scene.read()));
    // It was found, and moved on before its stream had its turn.
    save(8);
    let found = scene.found(&["log/app.log.new"]);
    scene.sources.take_up(&found, false);
    rename(&new, &own);
    assert!(!is_gone(&scene.read()));
}
