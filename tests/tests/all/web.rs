//! The console as a web server: where it leads, what it tells strangers, its certificate, and what bounds texts.

use std::process::Command;
use std::time::Duration;

use scrinium_tests::console::Console;
use scrinium_tests::days::Days;
use scrinium_tests::lab::{Lab, PASSWORD, free_address, text};
use scrinium_tests::{has_tool, wait_until};

/// A form that another site sends leads to no other site, whatever a browser makes of the text.
#[test]
fn redirects_lead_to_pages_of_the_console_alone() {
    let lab = Lab::start("web-back");
    for (back, status, location) in [
        ("/agents/web1?x=1", "303", "/agents/web1?x=1"),
        ("//evil.example", "303", "/"),
        ("/\\evil.example", "303", "/"),
        ("https://evil.example/", "303", "/"),
        ("/agents//evil.example", "303", "/"),
        ("/\t/evil.example", "400", ""),
        ("/\r\nSet-Cookie: a=b", "400", ""),
        ("/\u{7f}", "400", ""),
    ] {
        for path in ["/language", "/sign-in"] {
            let back = format!("back={back}");
            let mut words = vec!["--data-urlencode", &*back];
            match path {
                "/language" => words.extend(["-d", "language=it"]),
                _sign_in => words.extend([
                    "-d",
                    "user=admin",
                    "--data-urlencode",
                    "password=correct horse battery",
                ]),
            }
            assert_eq!(
                post(&lab, path, &words),
                format!("{status} {location}"),
                "{path} {back:?}"
            );
        }
    }
    // What was wanted before the sign-in comes after it.
    let wanted = format!("https://{}/search?q=%22a+b%22&range=7d", lab.console);
    let asked = curl(&[
        "-w",
        "%{http_code} %{redirect_url}",
        "-o",
        "/dev/null",
        &wanted,
    ]);
    let sign_in = format!("303 https://{}/sign-in?back=", lab.console);
    let back = asked
        .strip_prefix(&sign_in)
        .expect("a sign-in that leads back");
    let page = curl(&[&format!("https://{}/sign-in?back={back}", lab.console)]);
    assert!(
        page.contains("name=\"back\" value=\"/search?q=%22a+b%22"),
        "{page}"
    );
    let page = curl(&[&format!(
        "https://{}/sign-in?back=//evil.example",
        lab.console
    )]);
    assert!(!page.contains("evil"), "{page}");
}

/// What a page asks by itself is nobody's act, and no act makes a session last for ever.
#[test]
fn a_page_that_refreshes_itself_keeps_no_session_alive() {
    let Some(days) = Days::start("web-refresh") else {
        return;
    };
    let console = Console::sign_in(&days.lab, PASSWORD);
    days.minutes(10);
    assert_eq!(console.status("/", true), 200);
    days.minutes(16);
    assert_eq!(console.status("/", true), 303);
    let console = Console::sign_in(&days.lab, PASSWORD);
    days.minutes(26);
    assert_eq!(console.status("/agents", false), 200);
    days.minutes(40);
    assert_eq!(console.status("/", true), 200);
    // A person at work, all day long.
    let mut lived = 0;
    for minutes in (40..16 + 13 * 60).step_by(14) {
        days.minutes(minutes);
        if console.status("/agents", false) == 200 {
            lived = minutes - 16;
        }
    }
    assert!((12 * 60 - 14..=12 * 60).contains(&lived), "{lived} minutes");
}

/// Numbers are for who signed in, and for programs on a listener of their own.
#[test]
fn metrics_are_not_told_to_strangers_on_the_consoles_port() {
    let mut lab = Lab::start("web-metrics");
    let metrics = format!("https://{}/metrics", lab.console);
    let anonymous = curl(&["-w", "%{http_code}", &metrics]);
    assert_eq!(anonymous, "401");
    let numbers = "scrinium_entries_total ";
    assert!(
        Console::sign_in(&lab, PASSWORD)
            .get("/metrics")
            .contains(numbers)
    );
    // Off unless it is configured; a port alone is on loopback.
    let address = free_address();
    let port = address.port().to_string();
    lab.server_environment
        .push(("SCRINIUM_LISTEN_METRICS".into(), port));
    lab.stop_server();
    lab.start_server();
    assert!(curl(&[&format!("http://{address}/metrics")]).contains(numbers));
    let other = curl(&[
        "-w",
        "%{http_code}",
        "-o",
        "/dev/null",
        &format!("http://{address}/"),
    ]);
    assert_eq!(other, "404");
    // A page elsewhere that gives its own name this address is told nothing.
    for (host, status) in [
        ("Host: evil.example:9720", "421"),
        ("Host: localhost", "200"),
    ] {
        let url = format!("http://{address}/metrics");
        let words = ["-H", host, "-w", "%{http_code}", "-o", "/dev/null", &url];
        assert_eq!(curl(&words), status, "{host}");
    }
}

/// It is made for this machine, is a server's alone, and stays until it has to be another.
#[test]
fn the_consoles_own_certificate_is_one_that_browsers_take() {
    if !has_tool("openssl") {
        return;
    }
    let mut lab = Lab::start("web-certificate");
    let (certificate, shown) = certificate(&lab);
    for part in [
        "O = Scrinium console, CN = ",
        "DNS:localhost",
        "IP Address:127.0.0.1",
        "Digital Signature",
        "TLS Web Server Authentication",
        "CA:FALSE",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    lab.write("console.pem", certificate.as_bytes());
    let pem = lab.dir.join("console.pem").display().to_string();
    let checkend = |days: u32| {
        let seconds = (days * 86_400).to_string();
        let checked = Command::new("openssl")
            .args(["x509", "-noout", "-in", &pem, "-checkend", &seconds])
            .output();
        checked.unwrap().status.success()
    };
    assert!(checkend(394) && !checkend(398));
    // Whoever trusts it needs no exception.
    let trusted = Command::new("curl")
        .args(["-s", "--cacert", &pem])
        .arg(format!("https://{}/healthz", lab.console))
        .output()
        .unwrap();
    assert_eq!(text(&trusted.stdout), "ok\n", "{}", text(&trusted.stderr));
    lab.stop_server();
    lab.start_server();
    assert_eq!(self::certificate(&lab).0, certificate);
    assert_eq!(
        lab.trail("console certificate made").len(),
        0,
        "it is of init"
    );
    // Another name, and it is made anew with the same key.
    let key = |pem: &str| {
        let shown = Command::new("openssl")
            .args(["x509", "-noout", "-pubkey", "-in", pem])
            .output();
        text(&shown.unwrap().stdout)
    };
    let before = key(&pem);
    lab.server_environment
        .push(("SCRINIUM_ADDRESS".into(), "logs.example.net:720".into()));
    lab.stop_server();
    lab.start_server();
    let (other, shown) = self::certificate(&lab);
    assert!(
        other != certificate && shown.contains("DNS:logs.example.net"),
        "{shown}"
    );
    lab.write("console.pem", other.as_bytes());
    assert_eq!(key(&pem), before);
    let made = lab.trail("console certificate made");
    assert!(
        made.len() == 1 && made[0].to_string().contains("a name of this machine"),
        "{made:?}"
    );
}

/// A task that panics is not just gone: the process ends, says why, and the next start goes on.
#[test]
fn a_part_that_panics_ends_the_server_with_a_last_word() {
    let mut lab = Lab::start("web-panic");
    lab.stop_server();
    let environment = (
        "SCRINIUM_PANIC".to_owned(),
        "server: entries of its own taken#8".to_owned(),
    );
    lab.server_environment.push(environment);
    lab.start_server();
    wait_until("the server has ended", Duration::from_secs(30), || {
        // Each search is an act, and each act an entry.
        let search = std::os::unix::net::UnixStream::connect(lab.data().join("control.sock"));
        if search.is_ok() {
            let _outcome = Console::sign_in(&lab, PASSWORD);
        }
        lab.server_has_ended()
    });
    assert_eq!(lab.wait_for_server_exit(Duration::from_secs(1)), Some(70));
    let said = std::fs::read_to_string(lab.dir.join("server.out")).unwrap();
    assert!(
        said.contains("a part of the server, local, met a fault of the program"),
        "{said}"
    );
    lab.server_environment.clear();
    lab.start_server();
    let starts = lab.trail("server started");
    assert!(
        starts.last().unwrap().to_string().contains("NOT in order"),
        "{starts:?}"
    );
}

/// No text is looked up, remembered or written down before its length is known.
#[test]
fn a_text_that_is_too_long_is_refused_before_anything_is_written_down() {
    let lab = Lab::start("web-bounds");
    let console = Console::sign_in(&lab, PASSWORD);
    let long = "n".repeat(200);
    let text_of = "x".repeat(60_001);
    for (path, fields) in [
        ("enabled", vec![("enabled", "false")]),
        ("approve", vec![("since_us", "1")]),
        ("configuration", vec![("text", "a")]),
    ] {
        let (status, said) = console.post("/enrol", &format!("/agents/{long}/{path}"), &fields);
        assert_eq!(status, 422, "{said}");
        assert!(said.contains("has 200 bytes and may have 128"), "{said}");
    }
    let fields = [("text", &*text_of)];
    let (status, said) = console.post("/enrol", "/agents/web1/configuration", &fields);
    assert!(
        status == 422 && said.contains("60001 bytes and may have 60000"),
        "{said}"
    );
    let reason = "r".repeat(1001);
    let user = "u".repeat(129);
    lab.write("good", b"a password that is fine");
    let file = lab.dir.join("good").display().to_string();
    for words in [
        &["agent", "disable", &long][..],
        &["policy", "hold", "case-1", "--reason", &reason],
        &["policy", "release", &long, "--reason", "over"],
        &["user", "password", &user, "--password-file", &file],
    ] {
        let refused = lab.server(words);
        assert!(!refused.status.success());
        assert!(
            text(&refused.stderr).contains("and may have"),
            "{}",
            text(&refused.stderr)
        );
    }
    for action in [
        "agent enabled",
        "agent approved",
        "agent configured",
        "policy changed",
        "password set",
    ] {
        assert_eq!(lab.trail(action).len(), 0, "{action}");
    }
}

/// The certificate that is shown, in PEM and in words.
fn certificate(lab: &Lab) -> (String, String) {
    let pem = Command::new("sh")
        .args([
            "-c",
            "openssl s_client -connect $0 </dev/null 2>/dev/null | openssl x509",
            &lab.console.to_string(),
        ])
        .output()
        .unwrap();
    lab.write("shown.pem", &pem.stdout);
    let words = Command::new("openssl")
        .args(["x509", "-noout", "-text", "-nameopt", "oneline", "-in"])
        .arg(lab.dir.join("shown.pem"))
        .output()
        .unwrap();
    (text(&pem.stdout), text(&words.stdout))
}

/// Sends a form; returns the status and where it leads, on this server.
fn post(lab: &Lab, path: &str, words: &[&str]) -> String {
    let url = format!("https://{}{path}", lab.console);
    let mut all = vec!["-o", "/dev/null", "-w", "%{http_code} %{redirect_url}"];
    all.extend(words);
    all.push(&url);
    curl(&all).replace(&format!("https://{}", lab.console), "")
}

fn curl(words: &[&str]) -> String {
    text(
        &Command::new("curl")
            .arg("-sk")
            .args(words)
            .output()
            .unwrap()
            .stdout,
    )
}
