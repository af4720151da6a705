//! Signing in while others try passwords: nobody is locked out, nothing is filled, and weak passwords are not taken.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use scrinium_tests::lab::{Lab, PASSWORD, resident_bytes, text};
use scrinium_tests::{now, wait_until};

/// Twenty addresses try passwords, more than a person mistypes, and one of them knows the right one by then.
#[test]
fn strangers_lock_nobody_out_and_fill_neither_memory_nor_trail() {
    let mut lab = Lab::start("signin-strangers");
    let home = "127.0.0.1";
    assert_eq!(status(try_from(&lab, home, "admin", PASSWORD)), "303");
    let before = resident_bytes(lab.server_pid());
    let mut refused = 0;
    for round in 0..12 {
        let tries: Vec<Child> = (2..22)
            .map(|n| try_from(&lab, &format!("127.0.0.{n}"), "admin", "a wrong password"))
            .collect();
        for tried in tries {
            let status = status(tried);
            assert!(
                status == "401" || status == "429",
                "round {round}: {status}"
            );
            refused += 1;
        }
    }
    // A wrong one that was looked at begins another wait, of seconds.
    wait_until("a wrong one is looked at", Duration::from_secs(90), || {
        refused += 1;
        status(try_from(&lab, "127.0.0.2", "admin", "a wrong password")) == "401"
    });
    // From a stranger's address not even the right password is looked at; the account is as free as before.
    assert_eq!(
        status(try_from(&lab, "127.0.0.2", "admin", PASSWORD)),
        "429"
    );
    refused += 1;
    for address in [home, "127.0.0.99"] {
        assert_eq!(status(try_from(&lab, address, "admin", PASSWORD)), "303");
    }
    // A name that nobody can have costs nothing, and is not kept.
    let long = "x".repeat(100_000);
    assert_eq!(status(try_from(&lab, "127.0.0.50", &long, PASSWORD)), "401");
    refused += 1;
    // Two buffers of Argon2 are kept, 38 MiB together; before, each try left more.
    let grown = resident_bytes(lab.server_pid()).saturating_sub(before);
    assert!(grown < 80 << 20, "{} MiB", grown >> 20);
    // One alarm, which counts.
    let alarms = lab.alarms();
    let of_kind = |kind: &str| alarms.iter().filter(|alarm| alarm["kind"] == kind).count();
    assert_eq!(of_kind("sign-ins-refused"), 1, "{alarms:?}");
    let alarm = alarms
        .iter()
        .find(|alarm| alarm["kind"] == "sign-ins-refused")
        .unwrap();
    assert!(alarm["count"].as_u64().unwrap() > 100, "{alarm}");
    assert!(
        alarm["text"]
            .as_str()
            .unwrap()
            .contains(" addresses, first from 127.0.0."),
        "{alarm}"
    );
    // The trail has a few of them, and the rest in a sum: none is missing.
    lab.stop_server();
    lab.start_server();
    let mut single = 0;
    for action in [
        "sign-in refused: wrong name or password",
        "sign-in refused: too many wrong passwords",
    ] {
        single += lab.trail(action).len() as u64;
    }
    let sums = lab.trail("sign-ins refused, in sum");
    let summed: u64 = sums
        .iter()
        .map(|sum| sum["detail"]["count"].as_u64().unwrap())
        .sum();
    assert!(
        single <= 10 && sums.len() <= 4,
        "{single} entries and {} sums",
        sums.len()
    );
    assert_eq!(single + summed, refused, "{sums:?}");
    assert!(
        sums[0]["detail"]["addresses"]["named"]["127.0.0.3"]
            .as_u64()
            .unwrap()
            > 1
    );
    assert!(
        sums[0]["detail"]["accounts"]["named"]["admin"]
            .as_u64()
            .unwrap()
            > 1
    );
}

/// A hundred strangers from one network, and a hundred from as many, try at the same time as somebody signs in.
#[test]
fn a_crowd_of_tries_does_not_make_an_honest_sign_in_wait() {
    let lab = Lab::start("signin-crowd");
    assert_eq!(
        status(try_from(&lab, "127.0.0.1", "admin", PASSWORD)),
        "303"
    );
    let crowd: Vec<Child> = (0..200)
        .map(|n| {
            let address = match n % 2 {
                0 => "127.0.1.1".to_owned(),
                _ => format!("127.0.2.{}", n / 2 + 1),
            };
            try_from(&lab, &address, &format!("user{n}"), "a wrong password")
        })
        .collect();
    let begun = now();
    assert_eq!(
        status(try_from(&lab, "127.0.0.1", "admin", PASSWORD)),
        "303"
    );
    let known = begun.elapsed();
    let begun = now();
    assert_eq!(
        status(try_from(&lab, "127.0.0.77", "admin", PASSWORD)),
        "303"
    );
    let unknown = begun.elapsed();
    for stranger in crowd {
        let status = status(stranger);
        assert!(["401", "429", "503"].contains(&&*status), "{status}");
    }
    // Most of that is two hundred handshakes on a machine that the tests share.
    let limit = Duration::from_secs(15);
    assert!(known < limit && unknown < limit, "{known:?}, {unknown:?}");
}

/// Somebody at an administrator's own address tries passwords: the administrator waits in no browser that is known, and
/// the tries tell nothing of who signs in from there.
#[test]
fn who_shares_an_address_with_an_attacker_signs_in_with_a_known_browser() {
    let lab = Lab::start("signin-shared");
    let jar = lab.dir.join("jar").display().to_string();
    let home = "127.0.0.1";
    let keep = ["-c", &*jar];
    assert_eq!(
        status(try_with(&lab, home, "admin", PASSWORD, &keep)),
        "303"
    );
    let kept = std::fs::read_to_string(&jar).unwrap();
    assert!(kept.contains("__Host-scrinium-device-"), "{kept}");
    // Until the wait is long enough for what follows.
    let retry = ["-w", "%{http_code} %header{retry-after}"];
    wait_until("the address waits", Duration::from_secs(60), || {
        let answer = status(try_with(&lab, home, "admin", "a wrong password", &retry));
        let seconds = answer
            .strip_prefix("429 ")
            .map(|wait| wait.trim().parse::<u32>());
        seconds.is_some_and(|seconds| seconds.unwrap() > 10)
    });
    assert_eq!(status(try_from(&lab, home, "admin", PASSWORD)), "429");
    let shown = ["-b", &*jar];
    assert_eq!(
        status(try_with(&lab, home, "admin", PASSWORD, &shown)),
        "303"
    );
    // It is no password.
    assert_eq!(
        status(try_with(&lab, home, "admin", "a wrong password", &shown)),
        "401"
    );
}

/// Wherever a password is set.
#[test]
fn a_password_that_has_leaked_is_taken_nowhere() {
    let lab = Lab::start("signin-weak");
    for (password, says) in [
        ("Password2024!", "have leaked"),
        ("aaaaaaaaaaaa", "have leaked"),
        ("kwpzmkwpzmkwpzm", "repeats itself"),
        ("hijklmnopqrstu", "a row of"),
        ("operatrix-2026", "little more than 'operatrix'"),
        ("elevenchars", "at least 12 characters"),
    ] {
        lab.write("weak", password.as_bytes());
        let file = lab.dir.join("weak").display().to_string();
        let set = lab.server(&["user", "password", "operatrix", "--password-file", &file]);
        assert_eq!(set.status.code(), Some(1));
        assert!(text(&set.stderr).contains(says), "{}", text(&set.stderr));
        assert!(!text(&set.stderr).contains(password), "it is not repeated");
    }
    // No volume is made that would have to be removed.
    lab.write("weak", b"Password2024!");
    let data = lab.dir.join("another");
    let made = Command::new(scrinium_tests::program("scrinium-server"))
        .args(["init", "--data"])
        .arg(&data)
        .arg("--admin-password-file")
        .arg(lab.dir.join("weak"))
        .output()
        .unwrap();
    assert_eq!(made.status.code(), Some(1));
    assert!(text(&made.stderr).contains("have leaked") && !data.try_exists().unwrap());
}

/// Begins to sign in from an address of this machine.
fn try_from(lab: &Lab, address: &str, user: &str, password: &str) -> Child {
    try_with(lab, address, user, password, &[])
}

/// The same, with more words for curl.
fn try_with(lab: &Lab, address: &str, user: &str, password: &str, words: &[&str]) -> Child {
    let mut form = tempfile(lab, user, password);
    form.insert(0, '@');
    Command::new("curl")
        .args([
            "-sk",
            "-m",
            "60",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--interface",
            address,
            "-d",
            &form,
        ])
        .args(words)
        .arg(format!("https://{}/sign-in", lab.console))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A form in a file of its own: a long one is no argument, and others are read meanwhile.
fn tempfile(lab: &Lab, user: &str, password: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let encoded = password.replace(' ', "+");
    let name = format!("form-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    lab.write(&name, format!("user={user}&password={encoded}").as_bytes());
    lab.dir.join(name).display().to_string()
}

fn status(tried: Child) -> String {
    text(&tried.wait_with_output().unwrap().stdout)
}
