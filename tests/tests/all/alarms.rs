//! Alarms on their way: raised, again, over by themselves, told to people by mail, webhook and syslog.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use scrinium_protocol::sl::message::KeepAlive;
use scrinium_protocol::token::Token;
use scrinium_tests::client::{Client, refused_tokens};
use scrinium_tests::console::Console;
use scrinium_tests::lab::{Lab, PASSWORD, free_address, text};
use scrinium_tests::peers::MailServer;
use scrinium_tests::{has_tool, now, wait_until};
use serde_json::Value;

/// A silent agent is an alarm that ends when the agent is heard again, and another one the next time.
#[test]
fn an_agent_that_is_silent_and_back_and_silent_again_is_two_alarms() {
    let mut lab = Lab::start_with("alarms-silent", "silent_after_s = 10\n");
    let address = lab.sl;
    lab.add_agent("web1", address, "");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    for count in 1..=2 {
        lab.stop_agent("web1");
        wait_until("silence is an alarm", Duration::from_secs(40), || {
            standing(&lab, "agent-silent").len() == 1
        });
        lab.start_agent("web1");
        wait_until("its end ends the alarm", Duration::from_secs(40), || {
            standing(&lab, "agent-silent").is_empty()
        });
        let alarms = of_kind(&lab, "agent-silent");
        assert_eq!(alarms.len(), count);
        let alarm = &alarms[0];
        assert!(
            alarm["over_why"].as_str().unwrap().contains("heard again"),
            "{alarm}"
        );
        assert_eq!(alarm["acknowledged_by"], Value::Null);
        assert_eq!(lab.trail("alarm ended").len(), count);
    }
    // A command speaks the language of its environment, and says what is over.
    let mut list = lab.server_command(&["alarm", "list"]);
    let listed = text(&list.env("LC_ALL", "it_IT.UTF-8").output().unwrap().stdout);
    assert!(
        listed.contains("non si sente niente") && listed.contains("finito"),
        "{listed}"
    );
}

/// A configuration that an agent does not take is an alarm until it takes one; so is the server's own file.
#[test]
fn a_configuration_that_is_not_taken_is_an_alarm_until_one_is() {
    let mut lab = Lab::start("alarms-configuration");
    let address = lab.sl;
    lab.add_agent("web1", address, "");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    lab.write("wrong.toml", b"[[source]]\nfile = 7\n");
    lab.write("right.toml", b"[limits]\ncpu_percent_max = 50\n");
    let send = |file: &str| {
        let path = lab.dir.join(file).display().to_string();
        let sent = lab.server(&["agent", "configure", "web1", "--file", &path]);
        assert!(sent.status.success(), "{}", text(&sent.stderr));
    };
    send("wrong.toml");
    let said = lab.wait_for_alarm("configuration-rejected", "web1");
    assert!(said.contains("version 1"), "{said}");
    send("right.toml");
    wait_until("the alarm ends", Duration::from_secs(30), || {
        standing(&lab, "configuration-rejected").is_empty()
    });
    let config = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    let hang_up = || {
        let pid = lab.server_pid().to_string();
        assert!(
            Command::new("kill")
                .args(["-HUP", &pid])
                .status()
                .unwrap()
                .success()
        );
    };
    lab.write("server.toml", format!("{config}\n[nonsense]\n").as_bytes());
    hang_up();
    let said = lab.wait_for_alarm("configuration-rejected", "server");
    assert!(said.contains("nonsense"), "{said}");
    lab.write("server.toml", config.as_bytes());
    hang_up();
    wait_until("the alarm ends", Duration::from_secs(30), || {
        standing(&lab, "configuration-rejected").is_empty()
    });
}

/// A cache that is nearly full is one alarm until it has room again, however it goes to and fro meanwhile.
#[test]
fn a_cache_that_is_nearly_full_is_one_alarm_until_it_has_room() {
    let lab = Lab::start("alarms-cache");
    let token = Token::parse(&lab.token("web1", lab.sl)).unwrap();
    let mut client = Client::enrol(&token, lab.sl, 1);
    wait_until("it is let in", Duration::from_secs(20), || {
        client.breathe().1 && client.is_ready
    });
    // It lives on while it is waited for.
    let mut say_until = |disk_bytes: u64, is_so: &dyn Fn() -> bool| {
        let state = KeepAlive {
            disk_bytes,
            disk_bytes_max: 100,
            ..KeepAlive::default()
        };
        // What it says by itself in between says nothing of a cache.
        wait_until("it is seen", Duration::from_secs(30), || {
            let said = client.session.send_keep_alive(state.clone(), now());
            said.unwrap();
            assert!(client.breathe().1);
            is_so()
        });
    };
    let stands = || standing(&lab, "cache-full").len() == 1;
    say_until(96, &stands);
    say_until(90, &stands);
    say_until(97, &stands);
    say_until(70, &|| standing(&lab, "cache-full").is_empty());
    let all = of_kind(&lab, "cache-full");
    assert_eq!((all.len(), &all[0]["count"]), (1, &1.into()));
    let said = all[0]["text"].as_str().unwrap();
    assert!(said.contains("96 %"), "{said}");
}

/// Datagrams that come while nobody takes them are lost, and that is an alarm with their number.
#[test]
fn datagrams_that_are_dropped_are_an_alarm() {
    let lab = Lab::start("alarms-datagrams");
    let signal = |name: &str| {
        let pid = lab.server_pid().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .unwrap()
                .success()
        );
    };
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let datagram = vec![b'x'; 60_000];
    signal("-STOP");
    // More than the largest receive buffer takes.
    for _ in 0..2000 {
        let _full = socket.send_to(&datagram, lab.syslog_udp);
    }
    signal("-CONT");
    // It is looked at every few seconds.
    wait_until("it is an alarm", Duration::from_secs(30), || {
        !of_kind(&lab, "datagrams-dropped").is_empty()
    });
    let said = lab.wait_for_alarm("datagrams-dropped", "server");
    assert!(said.contains("datagrams of syslog"), "{said}");
}

/// An alarm leaves as a letter, as an object for a program, and as a line of syslog, and a test shows that they would.
#[test]
fn an_alarm_leaves_by_mail_webhook_and_syslog() {
    let mut lab = Lab::start("alarms-sent");
    let none = lab.server(&["alarm", "test"]);
    assert!(
        text(&none.stderr).contains("alarms.mail_to"),
        "{}",
        text(&none.stderr)
    );
    let Some(mut server) = MailServer::new(&lab.dir) else {
        return;
    };
    server.listen();
    let (hook, posted) = webhook(200);
    let (syslog, lines) = syslog_server();
    let mail = format!(
        "[mail]\nrelay = \"{}\"\nfrom = \"Scrinium <scrinium@example.org>\"\n",
        server.url()
    );
    let alarms = format!(
        "[alarms]\nlanguage = \"it\"\nmail_to = [\"ops@example.org\"]\nmail_severity = \"notice\"\n\
         webhook = \"http://{hook}/hook\"\nwebhook_severity = \"notice\"\nsyslog = \"udp://{syslog}\"\n"
    );
    let config = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    lab.write("server.toml", (config + &mail + &alarms).as_bytes());
    lab.server_environment = vec![server.environment()];
    lab.stop_server();
    lab.start_server();
    let tested = lab.server(&["alarm", "test"]);
    let said = text(&tested.stdout);
    assert!(
        tested.status.success() && said.contains("ops@example.org"),
        "{said} {}",
        text(&tested.stderr)
    );
    assert_eq!(said.lines().count(), 3, "{said}");
    let limit = Duration::from_secs(30);
    let object: Value = serde_json::from_str(&posted.recv_timeout(limit).unwrap()).unwrap();
    assert_eq!(object["test"], true);
    assert!(
        lines
            .recv_timeout(limit)
            .unwrap()
            .contains(" scrinium - test - ")
    );
    wait_until("the letter is there", limit, || server.letters().len() == 1);

    let token = token(&lab);
    refused_tokens(&token, lab.sl, 1, 0);
    let object: Value = serde_json::from_str(&posted.recv_timeout(limit).unwrap()).unwrap();
    let kind = &object["kinds"][0];
    assert_eq!(
        (&kind["kind"], &kind["raised"]),
        (&"token-refused".into(), &1.into())
    );
    let said = kind["alarms"][0]["text"].as_str().unwrap();
    assert!(said.contains("questo token di registrazione"), "{said}");
    let line = lines.recv_timeout(limit).unwrap();
    assert!(
        line.starts_with("<109>1 ") && line.contains("questo token"),
        "{line}"
    );
    wait_until("the letter is there", limit, || server.letters().len() == 2);
    let opened = lab.dir.join("opened");
    let mut letters = server.letters();
    letters.sort_by_key(|letter| std::fs::metadata(letter).unwrap().modified().unwrap());
    MailServer::open(&letters[1], &opened);
    let read = |name: &str| std::fs::read_to_string(opened.join(name)).unwrap();
    assert!(
        read("subject").contains("avviso: Token rifiutato"),
        "{}",
        read("subject")
    );
    assert!(
        read("text").contains("questo token di registrazione"),
        "{}",
        read("text")
    );
    wait_until("it is known to have left", limit, || {
        let told = of_kind(&lab, "token-refused")[0]["told"].to_string();
        told.contains("mail") && told.contains("webhook") && told.contains("syslog")
    });
    // What has left does not leave again after a restart.
    lab.stop_server();
    lab.start_server();
    refused_tokens(&token, lab.sl, 1, 1);
    let object: Value = serde_json::from_str(&posted.recv_timeout(limit).unwrap()).unwrap();
    assert_eq!(object["kinds"][0]["raised"], 0, "{object}");
}

/// A webhook that does not answer is an alarm, is tried less and less often, and gets all of it in the end.
#[test]
fn what_cannot_be_sent_is_an_alarm_and_is_sent_when_it_can_be() {
    let mut lab = Lab::start("alarms-away");
    let address = free_address();
    add_webhook(&lab, address);
    lab.stop_server();
    lab.start_server();
    refused_tokens(&token(&lab), lab.sl, 3, 0);
    let said = lab.wait_for_alarm("alarms-not-sent", "server");
    assert!(
        said.contains("webhook") && !said.contains("secret"),
        "{said}"
    );
    let posted = listen_at(address, 200);
    let object = posted.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(object.contains("token-refused"), "{object}");
    wait_until("the alarm ends", Duration::from_secs(30), || {
        standing(&lab, "alarms-not-sent").is_empty()
    });
}

/// Ten thousand alarms in a minute are a handful of messages, which say how many there were.
#[test]
fn ten_thousand_alarms_in_a_minute_are_fewer_than_twenty_messages() {
    let agents = "handshakes_per_s = 10000\nhalf_open_max = 4096\n";
    let mut lab = Lab::start_with("alarms-flood", agents);
    let (address, posted) = webhook(200);
    add_webhook(&lab, address);
    lab.stop_server();
    lab.start_server();
    let token = token(&lab);
    let begun = now();
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let (token, sl) = (token.clone(), lab.sl);
            std::thread::spawn(move || refused_tokens(&token, sl, 2500, thread * 2500))
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    eprintln!("10,000 refused tokens in {:?}", now().duration_since(begun));
    wait_until("all are counted", Duration::from_secs(60), || {
        of_kind(&lab, "token-refused")[0]["count"] == 10_000
    });
    let messages = posted.try_iter().count();
    assert!((1..20).contains(&messages), "{messages}");
    assert_eq!(of_kind(&lab, "token-refused").len(), 1);
    // The trail has it each time that it has become twice as many.
    assert_eq!(lab.trail("alarm again").len(), 13);
}

/// No alarm and no trouble is in English on an Italian or French page.
#[test]
fn alarms_are_in_the_words_of_who_reads_them() {
    if !has_tool("curl") {
        return;
    }
    let mut lab = Lab::start_with("alarms-language", "silent_after_s = 10\n");
    let address = lab.sl;
    lab.add_agent("web1", address, "");
    lab.start_agent("web1");
    lab.wait_connected("web1");
    refused_tokens(&token(&lab), lab.sl, 1, 0);
    lab.stop_agent("web1");
    let _said = lab.wait_for_alarm("agent-silent", "web1");
    let _said = lab.wait_for_alarm("token-refused", "");
    for (language, words) in [
        ("it", ["non si sente niente", "questo token"]),
        ("fr", ["rien entendu", "ce jeton"]),
    ] {
        let page = Console::sign_in(&lab, PASSWORD)
            .in_language(language)
            .get("/");
        for word in words {
            assert!(page.contains(word), "{language}: {word}");
        }
        assert!(!page.contains("nothing was heard") && !page.contains("this enrolment token"));
        let json = Console::sign_in(&lab, PASSWORD)
            .in_language(language)
            .get("/api/v1/alarms");
        assert!(
            json.contains(words[0]) && json.contains("\"id\":\"alarm_text.silent"),
            "{json}"
        );
    }
}

/// Messages that wait for a test to look at them: more than any test expects.
const TAKEN_MAX: usize = 1000;

fn add_webhook(lab: &Lab, address: SocketAddr) {
    let config = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    let alarms =
        format!("[alarms]\nwebhook = \"http://{address}/secret\"\nwebhook_severity = \"notice\"\n");
    lab.write("server.toml", (config + &alarms).as_bytes());
}

/// A token that nobody will take: it was revoked.
fn token(lab: &Lab) -> Token {
    let made = lab.server(&[
        "agent",
        "enroll",
        "never",
        "--address",
        &lab.sl.to_string(),
        "--json",
    ]);
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let revoked = lab.server(&["agent", "revoke-token", made["id"].as_str().unwrap()]);
    assert!(revoked.status.success(), "{}", text(&revoked.stderr));
    Token::parse(made["token"].as_str().unwrap()).unwrap()
}

fn of_kind(lab: &Lab, kind: &str) -> Vec<Value> {
    let alarms = lab.alarms().into_iter();
    alarms.filter(|alarm| alarm["kind"] == kind).collect()
}

fn standing(lab: &Lab, kind: &str) -> Vec<Value> {
    let alarms = of_kind(lab, kind).into_iter();
    let stands = |alarm: &Value| alarm["over"].is_null() && alarm["acknowledged_by"].is_null();
    alarms.filter(stands).collect()
}

/// An HTTP server that answers everything with one status; what is posted to it.
fn webhook(status: u16) -> (SocketAddr, Receiver<String>) {
    let address = free_address();
    (address, listen_at(address, status))
}

fn listen_at(address: SocketAddr, status: u16) -> Receiver<String> {
    let listener = TcpListener::bind(address).unwrap();
    let (sender, posted) = sync_channel(TAKEN_MAX);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut bytes = Vec::new();
            let mut chunk = [0; 65_536];
            let body = loop {
                let read = stream.read(&mut chunk).unwrap_or(0);
                if read == 0 {
                    break None;
                }
                bytes.extend_from_slice(&chunk[..read]);
                let request = String::from_utf8_lossy(&bytes).into_owned();
                let Some((head, body)) = request.split_once("\r\n\r\n") else {
                    continue;
                };
                let head = head.to_ascii_lowercase();
                let (_, len) = head.split_once("content-length: ").unwrap();
                let len: usize = len.lines().next().unwrap().trim().parse().unwrap();
                if body.len() >= len {
                    break Some(body.to_owned());
                }
            };
            let answer = format!(
                "HTTP/1.1 {status} Answer\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            let _gone = stream.write_all(answer.as_bytes());
            if let Some(body) = body
                && sender.send(body).is_err()
            {
                return;
            }
        }
    });
    posted
}

fn syslog_server() -> (SocketAddr, Receiver<String>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let (sender, lines) = sync_channel(TAKEN_MAX);
    std::thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok(len) = socket.recv(&mut buffer) {
            if sender.send(text(&buffer[..len])).is_err() {
                return;
            }
        }
    });
    (address, lines)
}
