//! The way to the server: names with addresses that swallow packets, several addresses, proxies, and how fast it may be
//! used at which hour.

use std::fs::File;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use scrinium_tests::lab::{Lab, text};
use scrinium_tests::network::in_own_network;
use scrinium_tests::proxies::{Answer, Kind, SiteProxy};
use scrinium_tests::proxy::Proxy;
use scrinium_tests::random::Random;
use scrinium_tests::{now, pause, program, unix_s, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// A token with a way of the test's own.
fn token(lab: &Lab, agent: &str, more: &[&str]) -> String {
    let words = [&["agent", "enroll", agent], more].concat();
    let made = lab.server(&words);
    assert!(made.status.success(), "{}", text(&made.stderr));
    text(&made.stdout).trim().to_owned()
}

/// Enrols with the configuration that the laboratory has for the agent, and more variables in the environment.
fn enrol_command(lab: &Lab, agent: &str, token: &str, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program("scrinium-agent"));
    command
        .args(["enroll", token, "--state"])
        .arg(lab.state(agent))
        .arg("--config")
        .arg(lab.dir.join(format!("{agent}.toml")))
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    command
}

fn enrol(lab: &Lab, agent: &str, token: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = enrol_command(lab, agent, token, variables);
    command.output().unwrap()
}

fn append(lab: &Lab, bytes: &[u8]) {
    let log = File::options()
        .append(true)
        .create(true)
        .open(lab.log("app.log"));
    log.unwrap().write_all(bytes).unwrap();
}

/// Which of the server's addresses a connected agent uses; the first is 1.
fn number(lab: &Lab, agent: &str) -> Option<u64> {
    let status = lab.agent_status(agent)?;
    let number = status["way"]["number"].as_u64();
    number.filter(|_| status["connected"] == true)
}

/// Script 15: a name has an address whose packets are dropped, as by a firewall, before one that works.
#[test]
fn an_address_of_a_name_that_swallows_packets_does_not_keep_the_agent_from_another() {
    let hosts = std::env::temp_dir().join(format!("scrinium-hosts-{}", std::process::id()));
    let setup = format!(
        "ip -6 addr add fd77::1/128 dev lo nodad && \
         nft add table inet t && \
         nft add chain inet t in '{{ type filter hook input priority 0; }}' && \
         nft add rule inet t in ip6 daddr fd77::1 tcp flags syn drop && \
         nft add rule inet t in ip daddr 127.0.0.9 tcp flags syn drop && \
         printf '127.0.0.1 localhost\\nfd77::1 logs.test\\n127.0.0.9 logs.test\\n127.0.0.1 logs.test\\n' > {0} && \
         mount --bind {0} /etc/hosts",
        hosts.display()
    );
    let test =
        "way::an_address_of_a_name_that_swallows_packets_does_not_keep_the_agent_from_another";
    if !in_own_network(test, &setup) {
        let _absent = std::fs::remove_file(hosts);
        return;
    }
    let resolved = Command::new("getent")
        .args(["ahosts", "logs.test"])
        .output();
    let resolved = text(&resolved.unwrap().stdout);
    assert!(resolved.starts_with("fd77::1"), "{resolved}");
    let mut lab = Lab::start("swallowed");
    let address = format!("logs.test:{}", lab.sl.port());
    let token = token(&lab, "web1", &["--address", &address]);
    lab.configure_agent("web1", "");
    let began = now();
    let enrolled = enrol(&lab, "web1", &token, &[]);
    assert!(enrolled.status.success(), "{}", text(&enrolled.stderr));
    // Two addresses before it, a quarter of a second each; the others are on their way for 10 s.
    assert!(now() - began < Duration::from_secs(8));
    lab.start_agent("web1");
    append(&lab, b"arrived\n");
    lab.wait_for_bytes("web1", &lab.log("app.log"), 8, SOON);
    let way = lab.agent_status("web1").unwrap()["way"].clone();
    assert_eq!(way["peer"], lab.sl.to_string(), "{way}");
    assert_eq!(way["sentence"], format!("{address} at 127.0.0.1"));
}

#[test]
fn several_addresses_are_tried_in_order_and_the_first_is_gone_back_to_without_a_loss() {
    let mut lab = Lab::start("several");
    let (first, second) = (Proxy::start(lab.sl), Proxy::start(lab.sl));
    let addresses = format!("{},{}", first.address(), second.address());
    let token = token(&lab, "web1", &["--address", &addresses]);
    lab.configure_agent("web1", "[server]\nreturn_after_s = 5");
    first.cut();
    let enrolled = enrol(&lab, "web1", &token, &[]);
    assert!(enrolled.status.success(), "{}", text(&enrolled.stderr));
    assert!(text(&enrolled.stdout).contains("number 2 of 2"));
    lab.start_agent("web1");
    let mut written = Vec::new();
    let mut write = |lab: &Lab| {
        let line = format!("line {}\n", written.len());
        append(lab, line.as_bytes());
        written.extend_from_slice(line.as_bytes());
        written.clone()
    };
    for (expected, act) in [
        (2, (|_, _| ()) as fn(&Proxy, &Proxy)),
        // It is back after the stated time; something is on its way meanwhile.
        (1, |first, _| first.mend()),
        (2, |first, _| first.cut()),
        (1, |first, second| {
            first.mend();
            second.cut();
        }),
    ] {
        act(&first, &second);
        let what = format!("address {expected} is used");
        wait_until(&what, SOON, || {
            write(&lab);
            number(&lab, "web1") == Some(expected)
        });
        let written = write(&lab);
        lab.wait_for_bytes("web1", &lab.log("app.log"), written.len(), SOON);
        assert_eq!(lab.export("web1", &lab.log("app.log")), written);
    }
    // It stays at the first: there is nothing to go back to.
    let status = lab.agent_status("web1").unwrap();
    assert!(status["way"]["returns_in_s"].is_null(), "{status}");
    assert_eq!(lab.verify().0, 0);
    let alarms = lab.alarms();
    assert!(
        alarms.iter().all(|alarm| alarm["agent"] != "web1"),
        "{alarms:?}"
    );
}

const PASSWORD: &str = "pa:ss wörd";

#[test]
fn a_proxy_with_a_password_leads_to_a_server_whose_name_it_alone_knows() {
    let mut lab = Lab::start("connect");
    let site = ("site", PASSWORD);
    let start = || SiteProxy::start(Kind::Connect, Some(site), "logs.invalid:720", lab.sl);
    let (proxy, silent) = (start(), start());
    silent.set_answer(Answer::Silent);
    let token = token(&lab, "web1", &["--address", "logs.invalid:720"]);
    lab.write("proxy.password", format!("{PASSWORD}\n").as_bytes());
    lab.write("wrong.password", b"another\n");
    let configured = |lab: &mut Lab, agent: &str, proxy: &SiteProxy, file: Option<&str>| {
        let user = if file.is_some() { "site@" } else { "" };
        let file = file.map(|file| {
            let path = lab.dir.join(file);
            format!("proxy_password_file = \"{}\"", path.display())
        });
        let more = format!(
            "[server]\nproxy = \"http://{user}{}\"\n{}",
            proxy.address(),
            file.unwrap_or_default()
        );
        lab.configure_agent(agent, &more);
    };
    // One that never answers: 20 s, beside the others.
    configured(&mut lab, "silent", &silent, Some("proxy.password"));
    let mut waiting = enrol_command(&lab, "silent", &token, &[]);
    let waiting = waiting
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();

    for (file, answer, words) in [
        (None, Answer::Opened, "server.proxy_password_file"),
        (
            Some("wrong.password"),
            Answer::Opened,
            "does not take the name",
        ),
        (Some("absent.password"), Answer::Opened, "absent.password"),
        (
            Some("proxy.password"),
            Answer::Refused("403 Forbidden"),
            "does not allow connections to logs.invalid:720 (403 Forbidden)",
        ),
        (Some("proxy.password"), Answer::Endless, "within 16 KiB"),
    ] {
        configured(&mut lab, "refused", &proxy, file);
        proxy.set_answer(answer);
        let refused = enrol(&lab, "refused", &token, &[]);
        assert_eq!(refused.status.code(), Some(1));
        let said = text(&refused.stderr);
        assert!(said.contains(words) && !said.contains(PASSWORD), "{said}");
    }

    configured(&mut lab, "web1", &proxy, Some("proxy.password"));
    proxy.set_answer(Answer::ByteByByte);
    let enrolled = enrol(&lab, "web1", &token, &[]);
    assert!(enrolled.status.success(), "{}", text(&enrolled.stderr));
    lab.start_agent("web1");
    append(&lab, b"through the proxy\n");
    lab.wait_for_bytes("web1", &lab.log("app.log"), 18, SOON);
    let way = lab.agent_status("web1").unwrap()["way"].clone();
    let named = format!("http://site@{}", proxy.address());
    assert_eq!(way["proxy"], named, "{way}");
    assert_eq!(way["proxy_named_by"], "configuration");
    for words in [&["status"][..], &["check", "--config", "web1.toml"]] {
        let said = Command::new(program("scrinium-agent"))
            .args(words)
            .arg("--state")
            .arg(lab.state("web1"))
            .current_dir(&lab.dir)
            .output()
            .unwrap();
        let said = text(&said.stdout) + &text(&said.stderr);
        assert!(said.contains(&named) && !said.contains(PASSWORD), "{said}");
    }
    let log = std::fs::read_to_string(lab.dir.join("web1.out")).unwrap();
    assert!(log.contains(&named) && !log.contains(PASSWORD), "{log}");
    // The name was resolved by nobody else.
    let asked = proxy.asked();
    assert!(asked.iter().all(|asked| asked == "logs.invalid:720"));

    // Somebody changes the password: the account is not to be locked by who tries the old one again and again.
    lab.stop_agent("web1");
    lab.write("proxy.password", b"of yesterday\n");
    let before = proxy.turned_away();
    lab.start_agent("web1");
    wait_until("the agent says why", SOON, || {
        let status = lab.agent_status("web1");
        status.is_some_and(|status| {
            let problem = status["problem"].as_str().unwrap_or_default();
            problem.contains("does not take the name")
        })
    });
    pause(Duration::from_secs(3)); // that nobody tries again is under test; to a dead link four tries are made
    assert_eq!(proxy.turned_away(), before + 1);

    let unanswered = waiting.wait_with_output().unwrap();
    assert_eq!(unanswered.status.code(), Some(1));
    let said = text(&unanswered.stderr);
    assert!(said.contains("did not answer in time"), "{said}");
}

#[test]
fn the_environment_the_token_and_the_command_name_a_proxy_too() {
    let mut lab = Lab::start("socks");
    let name = "logs.invalid:720";
    let proxy = SiteProxy::start(Kind::Socks5, Some(("site", "secret")), name, lab.sl);
    let open = SiteProxy::start(Kind::Socks5, None, name, lab.sl);
    let of_environment = format!("socks5h://site:secret@{}", proxy.address());
    let all = [("ALL_PROXY", of_environment.as_str())];

    let by_environment = token(&lab, "web1", &["--address", name]);
    lab.configure_agent("web1", "");
    let wrong = of_environment.replace("secret", "wrong");
    let refused = enrol(&lab, "web1", &by_environment, &[("ALL_PROXY", &wrong)]);
    let said = text(&refused.stderr);
    assert!(said.contains("does not take the name"), "{said}");
    let enrolled = enrol(&lab, "web1", &by_environment, &all);
    assert!(enrolled.status.success(), "{}", text(&enrolled.stderr));
    lab.spawn_agent("web1", "", &["env", &format!("ALL_PROXY={of_environment}")]);

    let through = format!("socks5://{}", open.address());
    let by_token = token(&lab, "web2", &["--address", name, "--proxy", &through]);
    lab.configure_agent("web2", "");
    // What the token names counts before the environment.
    let enrolled = enrol(&lab, "web2", &by_token, &all);
    assert!(enrolled.status.success(), "{}", text(&enrolled.stderr));
    lab.spawn_agent("web2", "", &["env", &format!("ALL_PROXY={of_environment}")]);

    // The command's counts before the token's, and is kept.
    let dead = ["--address", name, "--proxy", "http://127.0.0.1:1"];
    let by_command = token(&lab, "web3", &dead);
    lab.configure_agent("web3", "");
    let mut seen = enrol_command(&lab, "web3", &by_command, &[]);
    let seen = seen.args(["--proxy", "socks5://u:secret@127.0.0.1:1"]);
    let seen = seen.output().unwrap();
    assert_eq!(seen.status.code(), Some(2));
    assert!(!text(&seen.stderr).contains("secret"));
    let mut enrolled = enrol_command(&lab, "web3", &by_command, &[]);
    let enrolled = enrolled.args(["--proxy", &through]).output().unwrap();
    assert!(enrolled.status.success(), "{}", text(&enrolled.stderr));
    lab.start_agent("web3");

    for (agent, named_by, proxy) in [
        ("web1", "ALL_PROXY", &proxy),
        ("web2", "token", &open),
        ("web3", "token", &open),
    ] {
        wait_until(agent, SOON, || number(&lab, agent) == Some(1));
        let way = lab.agent_status(agent).unwrap()["way"].clone();
        assert_eq!(way["proxy_named_by"], named_by, "{way}");
        let shown = way["proxy"].as_str().unwrap();
        assert!(shown.ends_with(&proxy.address().to_string()), "{way}");
        assert!(!way.to_string().contains("secret"));
        assert!(proxy.asked().iter().all(|asked| asked == name));
    }
    append(&lab, b"three times\n");
    for agent in ["web1", "web2", "web3"] {
        lab.wait_for_bytes(agent, &lab.log("app.log"), 12, SOON);
    }
    // What no agent could use is refused where it is named.
    for wrong in [
        &["--address", "here"][..],
        &["--address", "a:1,b"],
        &["--proxy", "ftp://a:1"],
        &["--proxy", "http://u:secret@a:1"],
    ] {
        let refused = lab.server(&[&["agent", "enroll", "web4"], wrong].concat());
        let said = text(&refused.stderr);
        assert!(
            !refused.status.success() && !said.contains("secret"),
            "{said}"
        );
    }
}

#[test]
fn the_upload_follows_the_hour_of_this_machine() {
    let mut lab = Lab::start("hours");
    let limit = "[[limits.upload]]\nhours = '10:00-16:00'\nbytes_per_s_max = '16 KiB'\n";
    lab.add_agent("web1", lab.sl, limit);
    // Lines that do not become shorter.
    let mut random = Random::new(7);
    let mut some = |len: usize| {
        let letters = (0..len).map(|n| match n % 64 {
            63 => b'\n',
            _ => b'!' + u8::try_from(random.below(90)).unwrap(),
        });
        letters.collect::<Vec<u8>>()
    };
    // A time zone in which it is some hour now (POSIX says west of Greenwich).
    let hour = i64::try_from(unix_s() / 3600 % 24).unwrap();
    let zone = |local: i64| format!("TZ=TST{:+}", hour - local);
    let upload = |lab: &Lab| {
        lab.agent_status("web1")
            .map(|status| status["upload"].clone())
    };

    let first = some(128 << 10);
    append(&lab, &first);
    let began = now();
    lab.spawn_agent("web1", "", &["env", &zone(13)]);
    lab.wait_for_bytes("web1", &lab.log("app.log"), first.len(), SOON);
    // Six and a half bits of each byte, less the part that is being written.
    let took = now() - began;
    assert!(took > Duration::from_secs(5), "{took:?}");
    let shown = upload(&lab).unwrap();
    assert_eq!(shown["bytes_per_s_max"], 16 << 10, "{shown}");
    assert_eq!(shown["sentence"], "16 KiB/s until 16:00");

    lab.stop_agent("web1");
    lab.spawn_agent("web1", "", &["env", &zone(20)]);
    wait_until("the limit is shown", SOON, || {
        upload(&lab).is_some_and(|shown| !shown.is_null())
    });
    let shown = upload(&lab).unwrap();
    assert!(shown["bytes_per_s_max"].is_null(), "{shown}");
    let sentence = shown["sentence"].as_str().unwrap();
    assert!(
        sentence.starts_with("no limit until ") && sentence.ends_with("10:00"),
        "{sentence}"
    );
    let second = some(128 << 10);
    append(&lab, &second);
    lab.wait_for_bytes("web1", &lab.log("app.log"), 256 << 10, SOON);
    assert_eq!(
        lab.export("web1", &lab.log("app.log")),
        [first, second].concat()
    );
}
