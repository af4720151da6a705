//! Directories that misbehave: what lies in them, leads out of them and comes and goes costs the good files nothing.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use scrinium_tests::lab::{Lab, cpu_seconds, peak_bytes, resident_bytes, text};
use scrinium_tests::{now, pause, unix_s, wait_until};

const PATIENCE: Duration = Duration::from_secs(40);

fn write(path: &Path, text: &str) {
    let mut file = File::options().create(true).append(true).open(path);
    file.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
}

fn make_fifo(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

fn lab(name: &str) -> Lab {
    let mut lab = Lab::start(name);
    lab.add_agent("web1", lab.sl, "");
    let logs = lab.dir.join("logs");
    let config = format!("[[source]]\nfile = \"{}/**/*.log\"\n", logs.display());
    lab.write("web1.toml", config.as_bytes());
    lab
}

/// logrotate/logrotate#607: a FIFO where a log was. Whoever opens it would wait for a writer for ever.
#[test]
fn a_fifo_in_place_of_a_followed_file_stops_no_other_and_is_said() {
    let mut lab = lab("fifo");
    let (app, other) = (lab.log("app.log"), lab.log("other.log"));
    make_fifo(&lab.log("plain-fifo.log"));
    write(&app, "app 1\n");
    write(&other, "other 1\n");
    lab.start_agent("web1");
    for words in ["app 1", "other 1"] {
        wait_until(words, PATIENCE, || lab.count(&format!("\"{words}\"")) == 1);
    }
    scrinium_segment::durable::rename(&app, &lab.log("app.was")).unwrap();
    make_fifo(&app);
    write(&other, "other 2\n");
    wait_until("other 2", PATIENCE, || lab.count("\"other 2\"") == 1);
    // The file that is still followed is truncated: every name beside it is opened.
    drop(File::create(lab.log("app.was")).unwrap());
    wait_until("the truncation is noticed", PATIENCE, || {
        lab.count("stream:app.log \"gap: the file was truncated\"") == 1
    });
    write(&other, "other 3\n");
    wait_until("other 3", PATIENCE, || lab.count("\"other 3\"") == 1);
    wait_until("the server knows of it", PATIENCE, || {
        let shown = lab.agent("web1")["sources"].to_string();
        shown.contains("no regular file")
    });
    let asked = now();
    lab.stop_agent("web1");
    assert!(now() - asked < Duration::from_secs(10));
}

/// osquery/osquery#6462 and others: a link to /proc, a farm of links, links to themselves. A new line arrives as fast
/// as ever, for next to no processor time.
#[test]
fn a_link_to_everywhere_and_a_farm_of_links_cost_nothing_and_are_said() {
    let mut lab = lab("farm");
    let main = lab.log("main.log");
    write(&main, "one\n");
    lab.start_agent("web1");
    wait_until("one", PATIENCE, || lab.count("one stream:main.log") == 1);
    for dir in ["logs/.wine/dosdevices", "logs/loop", "farm"] {
        std::fs::create_dir_all(lab.dir.join(dir)).unwrap();
    }
    for (n, target) in ["/proc", "/", "/sys"].iter().enumerate() {
        symlink(target, lab.log(".wine/dosdevices").join(format!("{n}:"))).unwrap();
    }
    symlink(".", lab.log("loop/self")).unwrap();
    symlink("..", lab.log("loop/up")).unwrap();
    for k in 0..15 {
        std::fs::create_dir_all(lab.dir.join(format!("farm/d{k}"))).unwrap();
    }
    for k in 0..14 {
        for j in 0..4 {
            let link = lab.dir.join(format!("farm/d{k}/l{j}"));
            symlink(format!("../d{}", k + 1), link).unwrap();
        }
    }
    symlink("../farm/d0", lab.log("farm")).unwrap();
    write(&lab.dir.join("farm/d14/deep.log"), "deep in the farm\n");
    let (before, began) = (cpu_seconds(lab.agent_pid("web1")), now());
    wait_until("the walk has been everywhere", PATIENCE, || {
        lab.count("\"deep in the farm\"") == 1
    });
    for n in 0..5 {
        write(&main, &format!("line {n}\n"));
        let words = format!("\"line {n}\"");
        wait_until("a new line", Duration::from_secs(5), || {
            lab.count(&words) == 1
        });
    }
    let share = (cpu_seconds(lab.agent_pid("web1")) - before) / (now() - began).as_secs_f64();
    assert!(share < 0.3, "{share}");
    let mut said = String::new();
    wait_until("it is said", PATIENCE, || {
        said = lab.agent("web1")["sources"].to_string();
        said.contains("kind proc") && said.contains("kind sysfs") && said.contains("walked already")
    });
    assert!(!said.contains("\"needs_person\":true"), "{said}");
    assert_eq!(lab.agent("web1")["state"], "connected");
}

/// A file lives for a moment between two looks; what is created is opened when it appears.
#[test]
fn files_that_live_for_less_than_a_second_are_collected() {
    let mut lab = lab("short-lived");
    write(&lab.log("first.log"), "first\n");
    lab.start_agent("web1");
    wait_until("it collects", PATIENCE, || {
        lab.count("first stream:first.log") == 1
    });
    for n in 0..8 {
        let path = lab.log(&format!("job{n}.log"));
        write(&path, &format!("job {n} says so\n"));
        pause(Duration::from_millis(500));
        std::fs::remove_file(path).unwrap();
    }
    wait_until("all are archived", PATIENCE, || {
        lab.count("\"says so\"") == 8
    });
}

/// How many of the very many names a source wants: a server takes about 80 new streams a second of one agent.
const MATCHING: usize = 2_500;

/// The size of the show, or of the normal run.
struct Size {
    names: usize,
    seconds: u64,
}

/// Fifty directories with all that there is, and one good file with a thousand lines a second.
#[test]
fn a_good_file_among_fifty_misbehaving_directories_is_archived_within_two_seconds() {
    let full = std::env::var_os("SCRINIUM_TEST_MISBEHAVING").is_some();
    let size = match full {
        true => Size {
            names: 100_000,
            seconds: 120,
        },
        false => Size {
            names: 2_500,
            seconds: 15,
        },
    };
    let mut lab = lab("misbehaving");
    let logs = lab.dir.join("logs");
    let _sockets = misbehave(&logs, size.names);
    lab.start_agent("web1");
    lab.wait_connected("web1");
    let stop = Arc::new(AtomicBool::new(false));
    let vanishing = vanish(logs.join("vanishing"), stop.clone());
    // What is odd is taken up first, and what it costs then is not counted: it is paid once.
    let good = lab.log("good.log");
    write(&good, "begin\n");
    wait_until("the good file is collected", PATIENCE * 4, || {
        lab.count("begin stream:good.log") == 1
    });
    if full {
        wait_until("all odd names are taken up", PATIENCE * 10, || {
            lab.count("an odd one") >= MATCHING as u64
        });
    }
    let (before, began) = (cpu_seconds(lab.agent_pid("web1")), now());
    let mut lines: u64 = 0;
    let mut file = File::options().append(true).open(&good).unwrap();
    while now() - began < Duration::from_secs(size.seconds) {
        let due = u64::try_from((now() - began).as_millis()).unwrap();
        while lines < due {
            writeln!(file, "good {lines} {}", unix_us()).unwrap();
            lines += 1;
        }
        pause(Duration::from_millis(10));
    }
    let share = (cpu_seconds(lab.agent_pid("web1")) - before) / (now() - began).as_secs_f64();
    stop.store(true, Ordering::SeqCst);
    wait_until("every line is archived", PATIENCE, || {
        lab.count("stream:good.log good") >= lines
    });
    let found = lab.server(&[
        "search",
        "stream:good.log good",
        "--format",
        "json",
        "--limit",
        "200000",
    ]);
    let mut delays: Vec<u64> = text(&found.stdout).lines().filter_map(delay_of).collect();
    assert!(
        delays.len() as u64 >= lines.min(100_000) / 2,
        "{} of {lines}",
        delays.len()
    );
    delays.sort_unstable();
    let p99 = delays[delays.len() * 99 / 100 - 1];
    vanishing.join().unwrap();
    let pid = lab.agent_pid("web1");
    println!(
        "lines {lines}, p99 delay {p99} ms, processor {:.1} %, resident {} KiB, peak {} KiB",
        share * 100.0,
        resident_bytes(pid) >> 10,
        peak_bytes(pid) >> 10
    );
    assert!(p99 < 2000, "{p99} ms");
    if full {
        assert!(share < 0.15, "{share}");
    }
    let asked = now();
    lab.stop_agent("web1");
    assert!(now() - asked < Duration::from_secs(10));
}

/// Makes fifty directories below `logs`; returns what must live as long as they do.
fn misbehave(logs: &Path, names: usize) -> Vec<UnixListener> {
    let mut sockets = Vec::new();
    for n in 0..50 {
        let dir = logs.join(format!("odd{n:02}"));
        std::fs::create_dir_all(&dir).unwrap();
        match n % 7 {
            0 => (0..5).for_each(|k| make_fifo(&dir.join(format!("{k}.log")))),
            1 => sockets
                .extend((0..5).map(|k| UnixListener::bind(dir.join(format!("{k}.log"))).unwrap())),
            2 => {
                for (k, minor) in ["1", "3", "5"].iter().enumerate() {
                    let path = dir.join(format!("{k}.log"));
                    // It takes root; else there are devices by links.
                    let made = Command::new("mknod")
                        .arg(&path)
                        .args(["c", "1", minor])
                        .status();
                    if !made.unwrap().success() {
                        symlink("/dev/zero", path).unwrap();
                    }
                }
                symlink("/dev/tty", dir.join("tty.log")).unwrap();
            }
            3 => {
                for k in 0..15 {
                    std::fs::create_dir_all(dir.join(format!("d{k}"))).unwrap();
                }
                for k in 0..14 {
                    for j in 0..4 {
                        let link = dir.join(format!("d{k}/l{j}"));
                        symlink(format!("../d{}", k + 1), link).unwrap();
                    }
                }
                symlink("/proc", dir.join("proc")).unwrap();
                symlink("/", dir.join("root")).unwrap();
            }
            4 => {
                let closed = dir.join("closed");
                std::fs::DirBuilder::new()
                    .mode(0o000)
                    .create(&closed)
                    .unwrap();
                symlink(dir.join("missing"), dir.join("dangling.log")).unwrap();
            }
            5 => {
                for k in 0..20_u8 {
                    let name = OsString::from_vec(vec![
                        b'n',
                        0xff,
                        0xfe,
                        b'0' + k,
                        b'\n',
                        b'.',
                        b'l',
                        b'o',
                        b'g',
                    ]);
                    write(&dir.join(name), "a name that is no text\n");
                }
            }
            _ => {}
        }
    }
    let many = logs.join("odd06");
    for n in 0..names {
        let extension = match n % (names / MATCHING) {
            0 => "log",
            _ => "txt",
        };
        write(&many.join(format!("{n:06}.{extension}")), "an odd one\n");
    }
    sockets
}

/// Directories and files that come and go all the time.
fn vanish(dir: PathBuf, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut n: u64 = 0;
        while !stop.load(Ordering::SeqCst) {
            let one = dir.join(format!("{}/deep", n % 10));
            std::fs::create_dir_all(&one).unwrap();
            write(&one.join("x.log"), "short\n");
            pause(Duration::from_millis(20));
            std::fs::remove_dir_all(dir.join((n % 10).to_string())).unwrap();
            n += 1;
        }
    })
}

/// Milliseconds between the line that an entry is and its receipt.
fn delay_of(hit: &str) -> Option<u64> {
    let hit: serde_json::Value = serde_json::from_str(hit).ok()?;
    let written_us: u64 = hit["text"].as_str()?.split(' ').nth(2)?.parse().ok()?;
    let received = hit["received"].as_str()?;
    let part = |from: usize, len: usize| received.get(from..from + len)?.parse::<u64>().ok();
    let of_day_ms = ((part(11, 2)? * 60 + part(14, 2)?) * 60 + part(17, 2)?) * 1000 + part(20, 3)?;
    let day_ms = unix_s() / 86_400 * 86_400_000;
    Some((day_ms + of_day_ms).saturating_sub(written_us / 1000))
}

#[expect(clippy::disallowed_methods, reason = "real processes need real time")]
fn unix_us() -> u128 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_micros()
}
