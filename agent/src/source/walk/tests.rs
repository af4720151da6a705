use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::time::Duration;

use super::*;
use crate::config::Config;
use crate::source::round::{self, Found, Round};

/// A directory of its own for a test, and what a glob below it matches.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("scrinium-walk-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(dir.join("logs")).unwrap();
        // The system's directory of temporary files may be a link.
        Self(std::fs::canonicalize(dir).unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn dir(&self, name: &str) {
        std::fs::create_dir_all(self.path(name)).unwrap();
    }

    fn file(&self, name: &str) {
        std::fs::File::create(self.path(name)).unwrap();
    }

    fn discovery(&self, globs: &[&str]) -> Discovery {
        let sources = globs
            .iter()
            .map(|glob| format!("[[source]]\nfile = \"{}/{glob}\"\n", self.0.display()));
        Discovery::new(&Config::parse(&sources.collect::<String>()).unwrap())
    }

    fn look(&self, glob: &str) -> Found {
        round::look(&self.discovery(&[glob]))
    }

    fn names(&self, found: &Found) -> BTreeSet<String> {
        let names = found.files.keys().map(|path| {
            let name = path.strip_prefix(&self.0).unwrap();
            name.to_str().unwrap().to_owned()
        });
        names.collect()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn finding(found: &Found, state: SourceState) -> &Finding {
    let mut all = found.met[0].findings.iter();
    let found = all.find(|finding| finding.state == state);
    found.unwrap_or_else(|| panic!("{state:?}"))
}

/// Fifteen directories with four links each to the next are 4^14 paths; links to `.`, `..` and `/` are without end.
#[test]
fn links_that_lead_in_circles_or_to_everywhere_cost_no_more_than_the_directories_there_are() {
    let tree = Tree::new("farm");
    for k in 0..15 {
        tree.dir(&format!("farm/d{k}"));
    }
    for k in 0..14 {
        for j in 0..4 {
            let next = format!("../d{}", k + 1);
            symlink(next, tree.path(&format!("farm/d{k}/l{j}"))).unwrap();
        }
    }
    tree.file("farm/d14/end.log");
    tree.dir("logs/loop");
    symlink("../farm/d0", tree.path("logs/farm")).unwrap();
    symlink(".", tree.path("logs/loop/self")).unwrap();
    symlink("..", tree.path("logs/loop/up")).unwrap();
    symlink("/", tree.path("logs/loop/z:")).unwrap();
    tree.file("logs/loop/own.log");
    tree.file("logs/main.log");
    let discovery = tree.discovery(&["logs/**/*.log"]);
    let mut round = Round::new();
    // Entering each directory five times and looking at each link takes fewer names than this.
    let far = clock::now() + Duration::from_secs(3600);
    let mut budget = Budget::new(5 * 15 * (4 * (9 + 4) + 4) + 300, far);
    let (_, is_over) = round.step(&discovery, &[], &mut budget, &|_| {});
    assert!(is_over);
    let found = round.finish();
    let names = tree.names(&found);
    assert!(names.contains("logs/main.log") && names.contains("logs/loop/own.log"));
    assert!(names.len() <= 2 + usize::from(ENTERED_MAX), "{names:?}");
    let circles = finding(&found, SourceState::NotWalked);
    assert!(circles.cause.contains("walked already"), "{circles:?}");
    assert!(!circles.needs_person);
}

/// `current` names a release that the walk meets by its own name too.
#[test]
fn a_file_keeps_its_own_path_and_a_link_that_a_glob_wants_is_followed() {
    let tree = Tree::new("release");
    tree.dir("logs/releases/7");
    tree.file("logs/releases/7/app.log");
    symlink("releases/7", tree.path("logs/a-link")).unwrap();
    symlink("releases/7", tree.path("logs/current")).unwrap();
    let all = tree.look("logs/**/*.log");
    assert!(tree.names(&all).contains("logs/releases/7/app.log"));
    let current = tree.look("logs/**/current/*.log");
    let expected = BTreeSet::from(["logs/current/app.log".to_owned()]);
    assert_eq!(tree.names(&current), expected);
}

/// A glob with `**` names what lies deeper than is looked, and one without does not.
#[test]
fn directories_that_lie_too_deep_are_said() {
    let tree = Tree::new("deep");
    let nested = |levels: usize| format!("logs{}", "/d".repeat(levels));
    tree.dir(&nested(15));
    tree.file(&format!("{}/seen.log", nested(15)));
    let found = tree.look("logs/**/*.log");
    assert_eq!(tree.names(&found).len(), 1);
    assert_eq!(found.met[0].findings.iter().count(), 0);
    tree.dir(&nested(17));
    tree.dir(&format!("{}/other", nested(15)));
    tree.file(&format!("{}/unseen.log", nested(17)));
    let found = tree.look("logs/**/*.log");
    assert_eq!(tree.names(&found).len(), 1);
    let deep = finding(&found, SourceState::NotWalked);
    assert!(
        deep.cause.contains("16 levels") && deep.cause.contains("1 more"),
        "{deep:?}"
    );
    let found = tree.look("logs/*/*.log");
    assert_eq!(found.met[0].findings.iter().count(), 0);
}

#[test]
fn what_is_no_regular_file_or_cannot_be_entered_is_said() {
    let tree = Tree::new("odd");
    tree.file("logs/good.log");
    let socket = std::os::unix::net::UnixListener::bind(tree.path("logs/socket.log")).unwrap();
    std::os::unix::net::UnixListener::bind(tree.path("logs/another.log")).unwrap();
    symlink("nowhere", tree.path("logs/dangling.log")).unwrap();
    symlink("/proc", tree.path("logs/z:")).unwrap();
    let found = tree.look("logs/**/*.log");
    assert_eq!(tree.names(&found).len(), 1);
    let all: Vec<&Finding> = found.met[0].findings.iter().collect();
    let has = |text: &str| all.iter().any(|finding| finding.cause.contains(text));
    assert!(has("no regular file") && has("1 more"), "{all:?}");
    #[cfg(target_os = "linux")]
    assert!(has("kind proc"), "{all:?}");
    drop(socket);
    let missing = tree.look("nothing/*.log");
    let why = finding(&missing, SourceState::NoMatch);
    assert_eq!(why.path, tree.path("nothing"));
}

/// One file among very many names is found without a list of them, and what is there instead is said.
#[test]
fn a_source_without_special_characters_is_looked_up() {
    let tree = Tree::new("literal");
    tree.file("logs/a.log");
    tree.dir("logs/dir.log");
    assert_eq!(tree.names(&tree.look("logs/a.log")).len(), 1);
    assert_eq!(
        tree.discovery(&["logs/a.log"]).literal(0),
        Some(tree.path("logs/a.log"))
    );
    assert_eq!(tree.discovery(&["logs/[a].log"]).literal(0), None);
    for name in ["logs/none.log", "logs/dir.log", "none/a.log"] {
        let found = tree.look(name);
        assert!(found.files.is_empty());
        finding(&found, SourceState::NoMatch);
    }
}

/// A walk stops after so many names and goes on there; the files of one directory come out together, with
/// what rotation made of them.
#[test]
fn a_walk_in_steps_finds_what_one_without_finds_and_each_directory_as_a_whole() {
    let tree = Tree::new("steps");
    for d in 0..20 {
        tree.dir(&format!("logs/d{d}/e"));
        for n in 0..30 {
            tree.file(&format!("logs/d{d}/e/{n}.log"));
            tree.file(&format!("logs/d{d}/{n}.log"));
        }
    }
    let globs = ["logs/**/*.log", "logs/d1/*.log"];
    let discovery = tree.discovery(&globs);
    let whole = round::look(&discovery);
    assert_eq!(whole.files.len(), 1200);
    // A file belongs to the first source that names it, and counts for each.
    assert_eq!((whole.met[0].files, whole.met[1].files), (1200, 30));
    let mut round = Round::new();
    let far = clock::now() + Duration::from_secs(3600);
    let mut steps = 0;
    loop {
        let mut budget = Budget::new(50, far);
        let (new, is_over) = round.step(&discovery, &[], &mut budget, &|_| {});
        let mut by_directory: BTreeMap<&Path, usize> = BTreeMap::new();
        for path in new.keys() {
            *by_directory.entry(path.parent().unwrap()).or_default() += 1;
        }
        assert!(by_directory.values().all(|count| *count == 30));
        steps += 1;
        if is_over {
            break;
        }
        let met = round.so_far(&discovery);
        let on_the_way = met.last().unwrap().findings.iter().last().unwrap();
        assert_eq!(on_the_way.state, SourceState::NotWalked);
    }
    assert!(steps > 20);
    assert_eq!(round.finish().files, whole.files);
}

/// A path about which the file system was asked and did not answer is left out, and that needs a person.
#[test]
fn a_path_that_does_not_answer_is_left_out_and_the_rest_is_walked() {
    let tree = Tree::new("hung");
    tree.dir("logs/dead");
    tree.file("logs/dead/a.log");
    tree.file("logs/b.log");
    let discovery = tree.discovery(&["logs/**/*.log"]);
    let far = clock::now() + Duration::from_secs(3600);
    let asked = std::cell::RefCell::new(Vec::new());
    let at = |path: &Path| asked.borrow_mut().push(path.to_owned());
    let hung = [tree.path("logs/dead")];
    let mut round = Round::new();
    let (_, is_over) = round.step(&discovery, &hung, &mut Budget::new(1000, far), &at);
    assert!(is_over);
    let found = round.finish();
    assert_eq!(
        tree.names(&found),
        BTreeSet::from(["logs/b.log".to_owned()])
    );
    assert!(finding(&found, SourceState::NotWalked).needs_person);
    assert!(asked.borrow().contains(&tree.path("logs")));
}

/// Of a file that is named outright and not there, the walk looks for old generations: who reads must not ask a file
/// system that may not answer.
#[test]
fn old_generations_are_found_by_the_walk_also_of_what_is_named_outright() {
    let tree = Tree::new("left");
    for name in [
        "app.log.1",
        "app.log.2",
        "app.log.3.gz",
        "apps.log.1",
        "app.log.d/app.log.9",
    ] {
        tree.dir("logs/app.log.d");
        tree.file(&format!("logs/{name}"));
    }
    for glob in ["logs/app.log", "logs/*.log"] {
        let found = tree.look(glob);
        let left = &found.left[&tree.path("logs/app.log")];
        assert_eq!(left.numbers.len(), 2, "{glob}");
        assert!(left.one.starts_with(tree.path("logs")));
        assert!(found.files.is_empty());
    }
    finding(&tree.look("logs/app.log"), SourceState::NoMatch);
    // Where it is, nothing is left.
    tree.file("logs/app.log");
    assert!(tree.look("logs/app.log").left.is_empty());
    assert!(
        !tree
            .look("logs/*.log")
            .left
            .contains_key(&tree.path("logs/app.log"))
    );
    // Where nobody answers, nobody asks.
    std::fs::remove_file(tree.path("logs/app.log")).unwrap();
    let discovery = tree.discovery(&["logs/app.log"]);
    let far = clock::now() + Duration::from_secs(3600);
    let hung = [tree.path("logs")];
    let mut round = Round::new();
    round.step(&discovery, &hung, &mut Budget::new(1000, far), &|_| {});
    assert!(round.finish().left.is_empty());
}
