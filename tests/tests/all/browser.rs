//! The console in a real browser, in three languages, wide and narrow.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use data_encoding::BASE64;
use scrinium_tests::browser::Browser;
use scrinium_tests::corpus::Corpus;
use scrinium_tests::lab::{Lab, PASSWORD, text};
use scrinium_tests::package::verify;
use scrinium_tests::{has_tool, program, wait_until};

#[test]
fn sign_in_enrol_agents_and_search_work_in_three_languages_wide_and_narrow() {
    if !has_tool("chromedriver") || !has_tool("chromium") || !has_tool("logger") {
        return;
    }
    let mut lab = Lab::start("browser");
    lab.add_agent("fw-gateway", lab.sl, "");
    lab.start_agent("fw-gateway");
    feed(&lab, "app.log", 3000);
    wait_until("lines arrive", Duration::from_secs(30), || {
        lab.count("seq*") == 3000
    });
    for message in [
        "<134>Nov 21 10:00:00 sw-floor2 LINK-3-UPDOWN: Interface Gi0/7, changed state to up",
        "<38>Nov 21 10:00:01 bastion sshd[411]: Failed password for invalid user admin from 198.51.100.7 port 4242 ssh2",
    ] {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(message.as_bytes(), lab.syslog_udp).unwrap();
    }
    for (transport, port) in [("-d", lab.syslog_udp.port()), ("-T", lab.syslog_tcp.port())] {
        let sent = Command::new("logger")
            .args([
                "-n",
                "127.0.0.1",
                "-P",
                &port.to_string(),
                transport,
                "-p",
                "auth.warning",
                "-t",
                "myapp",
            ])
            .arg("zqloggerqz says hello")
            .status();
        assert!(sent.unwrap().success());
    }
    wait_until("both are archived", Duration::from_secs(10), || {
        lab.count("zqloggerqz") == 2
    });
    for (language, width, words) in [
        (
            "en",
            1280,
            ["Sign in", "Overview", "Agents", "Enrol an agent", "entries"],
        ),
        (
            "it",
            1280,
            [
                "Accesso",
                "Panoramica",
                "Agenti",
                "Registra un agente",
                "righe",
            ],
        ),
        (
            "fr",
            1280,
            [
                "Connexion",
                "Vue d’ensemble",
                "Agents",
                "Enrôler un agent",
                "entrées",
            ],
        ),
        (
            "en",
            390,
            ["Sign in", "Overview", "Agents", "Enrol an agent", "entries"],
        ),
        (
            "it",
            390,
            [
                "Accesso",
                "Panoramica",
                "Agenti",
                "Registra un agente",
                "righe",
            ],
        ),
        (
            "fr",
            390,
            [
                "Connexion",
                "Vue d’ensemble",
                "Agents",
                "Enrôler un agent",
                "entrées",
            ],
        ),
    ] {
        walk(&lab, language, width, words);
    }
}

fn walk(
    lab: &Lab,
    language: &str,
    width: u32,
    [sign_in, overview, agents, enrol, entries]: [&str; 5],
) {
    let browser = Browser::start(width, language);
    let url = |path: &str| format!("https://{}{path}", lab.console);
    let shot = |name: &str| {
        assert!(
            browser.fits(),
            "{name} in {language} at {width} is wider than the window"
        );
        browser.screenshot(&screenshots().join(format!("{name}-{language}-{width}.png")));
    };
    // Nothing but the sign-in answers without a session.
    browser.open(&url("/search"));
    assert!(browser.url().ends_with("/sign-in?back=%2Fsearch"));
    browser.open(&url("/sign-in"));
    assert_eq!(browser.text("h1"), sign_in);
    shot("sign-in");
    browser.type_into("input[name=user]", "admin");
    browser.type_into("input[name=password]", "not the password");
    browser.click("button.primary");
    wait_until("the refusal is shown", Duration::from_secs(10), || {
        !browser.text(".problem").is_empty()
    });
    browser.type_into("input[name=user]", "admin");
    browser.type_into("input[name=password]", PASSWORD);
    browser.click("button.primary");
    wait_until("the overview is shown", Duration::from_secs(10), || {
        browser.text("h1") == overview
    });
    shot("overview");

    browser.click("nav a[href='/agents']");
    assert_eq!(browser.text("h1"), agents);
    assert!(browser.text("tbody").contains("fw-gateway"));
    wait_until("the agent is green", Duration::from_secs(20), || {
        browser.run("return !!document.querySelector('tbody .pill.connected')") == true
    });
    shot("agents");
    browser.open(&url("/agents/fw-gateway"));
    assert!(browser.text("main").contains("app.log"));
    shot("agent");

    // Enrolling: the token is used by a real agent, and the page turns green at its first entry.
    browser.click("nav a[href='/enrol']");
    assert_eq!(browser.text("h1"), enrol);
    let name = format!("web-{language}-{width}");
    browser.type_into("input[name=name]", &name);
    browser.type_into("input[name=address]", &lab.sl.to_string());
    browser.click("form.stack button.primary");
    wait_until("the token is shown", Duration::from_secs(10), || {
        browser.text("#command").contains("SCRINIUM1-")
    });
    let token = browser
        .run("return document.getElementById('token').textContent")
        .as_str()
        .unwrap()
        .to_owned();
    shot("enrol-waiting");
    let enrolled = Command::new(program("scrinium-agent"))
        .args(["enroll", &token, "--state"])
        .arg(lab.state(&name))
        .output()
        .unwrap();
    assert!(enrolled.status.success());
    let log = lab.dir.join(format!("{name}.txt"));
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(&log)
        .unwrap()
        .write_all(b"first entry\n")
        .unwrap();
    lab.write(
        &format!("{name}.toml"),
        format!("[[source]]\nfile = {:?}\n", log.display().to_string()).as_bytes(),
    );
    let mut agent = Command::new(program("scrinium-agent"))
        .arg("run")
        .arg("--state")
        .arg(lab.state(&name))
        .arg("--config")
        .arg(lab.dir.join(format!("{name}.toml")))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the page turns green", Duration::from_secs(20), || {
        browser.run("return document.querySelector('.watch').dataset.state") == "receiving"
    });
    shot("enrol-receiving");
    agent.kill().unwrap();
    agent.wait().unwrap();

    browser.open(&url("/search?range=all&q=failed"));
    assert!(
        browser.text("#count").contains(entries),
        "{}",
        browser.text("#count")
    );
    assert!(
        browser.text("tbody").contains("bastion"),
        "{}",
        browser.text("tbody")
    );
    assert!(
        browser
            .run("return document.querySelectorAll('.histogram .bar').length")
            .as_u64()
            .unwrap()
            > 10
    );
    shot("search");
    // A link to what was found: the form knows the query, the list then has it.
    browser.click("#link");
    assert_eq!(browser.text("h1"), browser.text("nav a[aria-current]"));
    browser.type_into(
        "input[name=authority]",
        &format!("Procura {language} {width}"),
    );
    browser.type_into("input[name=purpose]", "art. 254-bis c.p.p.");
    shot("downloads");
    browser.click("#make");
    wait_until("the link is listed", Duration::from_secs(10), || {
        browser
            .text("tbody tr:first-child")
            .contains(&format!("Procura {language} {width}"))
    });
    assert!(browser.text("tbody tr:first-child").contains("failed"));
    shot("downloads-listed");
    // What logger sent over UDP and TCP stands there with its host, time and severity.
    browser.open(&url("/search?range=all&q=zqloggerqz"));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for row in 1..=2 {
        let cell = |column: u32| {
            browser.text(&format!(
                ".results tbody tr:nth-child({row}) td:nth-child({column})"
            ))
        };
        assert!(cell(2).starts_with(host.trim()), "{}", cell(2));
        assert!(cell(3).starts_with("warning"), "{}", cell(3));
        // The page shows the time the sender wrote: that of the line itself.
        assert!(
            cell(4).contains(cell(1).get(..8).unwrap()),
            "{} in {}",
            cell(1),
            cell(4)
        );
    }
    // A line with markup is text.
    browser.type_into("#q", "zqmarkupqz");
    feed_line(
        lab,
        b"zqmarkupqz <script>window.hacked = 1</script> <b>bold</b>\n",
    );
    wait_until(
        "the markup line is archived",
        Duration::from_secs(10),
        || lab.count("zqmarkupqz") > 0,
    );
    browser.click(".searchbar button");
    wait_until("the markup line is shown", Duration::from_secs(10), || {
        browser.text("tbody").contains("<b>bold</b>")
    });
    assert!(browser.run("return window.hacked === undefined") == true);
    browser.open(&url("/search?range=all&q=nowhere-to-be-found"));
    shot("search-empty");
    let downloaded = browser.run("const r = new XMLHttpRequest(); r.open('GET', '/search/raw?range=all&q=bastion', false); r.send(); return r.responseText;");
    assert!(
        downloaded
            .as_str()
            .unwrap()
            .starts_with("<38>Nov 21 10:00:01 bastion"),
        "{downloaded}"
    );
    // What the page offers for an authority is a package, with a sheet in the reader's language.
    browser.open(&url("/search?range=all&q=bastion"));
    let packed = browser.run("const r = new XMLHttpRequest(); r.open('GET', document.getElementById('package').href, false); r.overrideMimeType('text/plain; charset=x-user-defined'); r.send(); return btoa([...r.responseText].map(c => String.fromCharCode(c.charCodeAt(0) & 255)).join(''));");
    let packed = BASE64.decode(packed.as_str().unwrap().as_bytes()).unwrap();
    lab.write("console.tar", &packed);
    let (code, said) = verify(&lab.dir.join("console.tar"), &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(text(&packed).contains(&format!("<html lang=\"{language}\">")));
}

#[test]
fn whoever_tries_passwords_is_told_how_long_to_wait() {
    if !has_tool("chromedriver") || !has_tool("chromium") {
        return;
    }
    let lab = Lab::start("wait");
    let browser = Browser::start(1280, "en");
    browser.open(&format!("https://{}/sign-in", lab.console));
    let answer_to = |password: &str| {
        browser.type_into("input[name=user]", "admin");
        browser.type_into("input[name=password]", password);
        let _removed = browser.run("document.querySelector('.problem')?.remove()");
        browser.click("button.primary");
        wait_until("an answer", Duration::from_secs(10), || {
            !browser.text(".problem").is_empty()
        });
        browser.text(".problem")
    };
    assert!(answer_to("wrong password").contains("wrong"));
    // Each delay is twice the one before; how many seconds pass between two tries is the browser's.
    let seconds = |answer: &str| {
        let words = answer.split(' ');
        words.filter_map(|word| word.parse::<u64>().ok()).next()
    };
    wait_until("a long delay", Duration::from_secs(120), || {
        seconds(&answer_to("wrong password")).is_some_and(|seconds| seconds >= 12)
    });
    // The right one does not help from there.
    assert!(seconds(&answer_to(PASSWORD)).is_some());
    browser.screenshot(&screenshots().join("sign-in-wait-en-1280.png"));
}

fn feed(lab: &Lab, name: &str, count: u64) {
    let mut lines = Vec::new();
    Corpus::new().lines(count, &mut lines);
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(lab.log(name))
        .unwrap()
        .write_all(&lines)
        .unwrap();
}

fn feed_line(lab: &Lab, line: &[u8]) {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(lab.log("app.log"))
        .unwrap()
        .write_all(line)
        .unwrap();
}

/// Where the pictures go: looked at by people, and the README's is one of them.
fn screenshots() -> PathBuf {
    let target = program("scrinium-server");
    target
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("screenshots")
}

/// An agent restored from a copy: the overview shows the alarm, its page asks, and a click lets it in.
#[test]
fn an_alarm_is_seen_and_a_quarantined_agent_approved_in_the_console() {
    if !has_tool("chromedriver") || !has_tool("chromium") {
        return;
    }
    let mut lab = Lab::start("browser-alarms");
    lab.add_agent("web1", lab.sl, "");
    lab.write("logs/app.log", b"one\n");
    let log = lab.log("app.log");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 4, Duration::from_secs(20));
    lab.stop_agent("web1");
    lab.copy_agent("web1", "yesterday");
    for _ in 0..2 {
        lab.start_agent("web1");
        lab.wait_connected("web1");
        lab.stop_agent("web1");
    }
    lab.start_agent("yesterday");
    let alarm = lab.wait_for_alarm("identity-used-twice", "web1");
    assert!(alarm.contains("restored"), "{alarm}");

    let visits = ["en", "it", "fr"].map(|language| [(language, 1280), (language, 390)]);
    for (language, width) in visits.into_iter().flatten() {
        let browser = Browser::start(width, language);
        sign_in(&browser, &lab);
        assert!(browser.text("main").contains("web1"));
        let shot = |name: &str| {
            assert!(browser.fits(), "{name} in {language} at {width}");
            let path = screenshots().join(format!("{name}-{language}-{width}.png"));
            browser.screenshot(&path);
        };
        shot("alarms");
        browser.open(&format!("https://{}/agents/web1", lab.console));
        let restored = match language {
            "it" => "ripristinato",
            "fr" => "restauré",
            _ => "restored",
        };
        assert!(browser.text("main").contains(restored));
        shot("quarantine");
    }

    let browser = Browser::start(1280, "en");
    sign_in(&browser, &lab);
    browser.click(".alarm button");
    wait_until("the alarm is seen", Duration::from_secs(10), || {
        // The newest stands first, here and there.
        lab.alarms()[0]["acknowledged_by"] == "admin"
    });
    browser.open(&format!("https://{}/agents/web1", lab.console));
    browser.click("form[action$='/approve'] button");
    lab.write("logs/app.log", b"one\ntwo\n");
    lab.wait_for_bytes("web1", &log, 8, Duration::from_secs(40));
}

/// What waits is shown on the overview, and a click stops it.
#[test]
fn what_waits_is_seen_and_stopped_in_the_console() {
    if !has_tool("chromedriver") || !has_tool("chromium") {
        return;
    }
    let lab = Lab::start("browser-waiting");
    let words = [
        "policy",
        "class",
        "forever",
        "--keep-days",
        "3650",
        "--ceiling-days",
        "3650",
    ];
    assert_eq!(lab.server(&words).status.code(), Some(4));
    let visits = ["en", "it", "fr"].map(|language| [(language, 1280), (language, 390)]);
    for (language, width) in visits.into_iter().flatten() {
        let browser = Browser::start(width, language);
        sign_in(&browser, &lab);
        assert!(browser.text("main").contains("local command"));
        assert!(browser.fits(), "{language} at {width}");
        browser.screenshot(&screenshots().join(format!("waiting-{language}-{width}.png")));
    }
    let browser = Browser::start(1280, "en");
    sign_in(&browser, &lab);
    browser.click("form[action$='/stop'] button");
    wait_until("it is stopped", Duration::from_secs(10), || {
        let pending = lab.server(&["policy", "pending"]).stdout;
        String::from_utf8_lossy(&pending).contains("nothing waits")
    });
}

/// K1 and K2, as a person sees them.
#[test]
fn a_configuration_is_sent_from_the_console_and_what_became_of_it_is_shown() {
    if !has_tool("chromedriver") || !has_tool("chromium") {
        return;
    }
    let mut lab = Lab::start("browser-configuration");
    lab.add_agent("web1", lab.sl, "");
    lab.write("logs/app.log", b"one\n");
    lab.write("logs/other.txt", b"not a log\n");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    let url = format!("https://{}/agents/web1", lab.console);
    let browser = Browser::start(1280, "en");
    sign_in(&browser, &lab);
    browser.open(&url);
    assert!(
        browser
            .text("#configuration")
            .contains("Nothing was sent to this agent")
    );
    let send = |version: &str, text: &str| {
        browser.type_into("textarea", text);
        browser.click("#configuration button.primary");
        wait_until("it is sent", Duration::from_secs(10), || {
            browser.text("#configuration").contains(version)
        });
    };
    let shows = |words: &str| {
        wait_until(words, Duration::from_secs(20), || {
            browser.open(&url);
            browser.text("#configuration").contains(words)
        });
    };
    send("1 ·", "[[source]]\nfile = \"relative.log\"\n");
    shows("1 · rejected: source.file");
    let good = format!("[[source]]\nfile = \"{}/logs/*.txt\"\n", lab.dir.display());
    send("2 ·", &good);
    shows("2 · applied");
    lab.wait_for_bytes("web1", &lab.log("other.txt"), 10, Duration::from_secs(20));
    // Who sent what is found from there.
    browser.click("#configuration a");
    wait_until("what was sent is listed", Duration::from_secs(10), || {
        browser.text("main").contains("relative.log")
    });
    for (language, width) in ["en", "it", "fr"]
        .into_iter()
        .flat_map(|language| [(language, 1280), (language, 390)])
    {
        let browser = Browser::start(width, language);
        sign_in(&browser, &lab);
        browser.open(&url);
        assert!(browser.fits(), "{language} at {width}");
        let _shown = browser.run("document.querySelector('#configuration').scrollIntoView()");
        browser.screenshot(&screenshots().join(format!("configuration-{language}-{width}.png")));
    }
}

fn sign_in(browser: &Browser, lab: &Lab) {
    browser.open(&format!("https://{}/", lab.console));
    browser.type_into("input[name=user]", "admin");
    browser.type_into("input[name=password]", PASSWORD);
    browser.click("button.primary");
    wait_until("the overview is shown", Duration::from_secs(10), || {
        !browser.text(".tiles").is_empty()
    });
}
