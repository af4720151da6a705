//! Others whom the server asks: relays and witnesses that answer without an end, now and then, or not at all.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use scrinium_tests::lab::{Lab, forget_peak, peak_bytes, text};
use scrinium_tests::wait_until;
use serde_json::Value;

use crate::evidence::tls_server;

/// One endless line, and endless lines, in clear and over TLS: neither is held in memory, each is said, and the next letter goes.
#[test]
fn a_mail_relay_that_answers_without_an_end_costs_no_memory_and_the_next_letter_goes() {
    for (name, begin, more) in [
        ("relay-line", "220-", "A".repeat(1 << 20)),
        ("relay-lines", "", "220-and more\r\n".repeat(80_000)),
        ("relay-tls", "220-", "A".repeat(1 << 20)),
    ] {
        let (tls, certificate) = tls_server();
        let is_encrypted = name == "relay-tls";
        let relay = Relay::start(begin, more, is_encrypted.then_some(tls));
        let mut lab = Lab::start(name);
        lab.write("relay.pem", certificate.as_bytes());
        let trusted = lab.dir.join("relay.pem").display().to_string();
        lab.server_environment = vec![("SSL_CERT_FILE".into(), trusted)];
        let url = match is_encrypted {
            true => format!("smtps://localhost:{}", relay.address.port()),
            false => format!("smtp://{}", relay.address),
        };
        let mail = format!(
            "[mail]\nrelay = \"{url}\"\nfrom = \"scrinium@example.org\"\n\
             [alarms]\nmail_to = [\"ops@example.org\"]\nmail_severity = \"notice\"\n\
             [evidence]\ninterval_s = 1\nmail_to = [\"officer@example.org\"]\n"
        );
        configure(&mut lab, &mail);
        forget_peak(lab.server_pid());
        for kind in ["evidence-stopped", "alarms-not-sent"] {
            let said = lab.wait_for_alarm(kind, "server");
            assert!(said.contains("more than 64 KiB"), "{said}");
        }
        let peak = peak_bytes(lab.server_pid());
        assert!(peak < MEMORY_MAX, "{peak}");
        assert_eq!(relay.letters.load(Ordering::Relaxed), 0);
        relay.is_honest.store(true, Ordering::Relaxed);
        wait_until("both letters come", Duration::from_secs(60), || {
            relay.letters.load(Ordering::Relaxed) >= 2
        });
        wait_until("it is over", Duration::from_secs(60), || {
            standing(&lab, "evidence-stopped").is_empty()
        });
        lab.stop_server();
    }
}

/// Each has its own turn: intervals are sealed, and copied to where they can be, as if the others were not there.
#[test]
fn ten_mute_witnesses_and_a_mute_relay_delay_no_interval() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = mute.local_addr().unwrap();
    let asked = Arc::new(AtomicU64::new(0));
    let counted = asked.clone();
    std::thread::spawn(move || {
        // Nobody is answered, and nobody is let go.
        let mut held = Vec::new();
        while let Ok((stream, _)) = mute.accept() {
            counted.fetch_add(1, Ordering::Relaxed);
            held.push(stream);
        }
    });
    let witnesses: Vec<String> = (0..10)
        .map(|n| format!("\"http://{address}/{n}\""))
        .collect();
    let mut lab = Lab::start("witnesses-mute");
    let kept = lab.dir.join("kept");
    std::fs::create_dir(&kept).unwrap();
    let config = format!(
        "[mail]\nrelay = \"smtp://{address}\"\nfrom = \"scrinium@example.org\"\n\
         [evidence]\ninterval_s = 1\nmail_to = [\"officer@example.org\"]\n\
         copies = [\"{}\"]\nwitnesses = [{}]\n",
        kept.display(),
        witnesses.join(", ")
    );
    configure(&mut lab, &config);
    wait_until("all are asked", Duration::from_secs(20), || {
        asked.load(Ordering::Relaxed) == 11
    });
    let sealed = || status(&lab)["intervals"]["count"].as_u64().unwrap();
    let before = sealed();
    wait_until("more is sealed", Duration::from_secs(20), || {
        sealed() >= before + 5
    });
    let copied = || {
        let files = std::fs::read_dir(&kept).unwrap().flatten();
        let notes = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
        let counts = notes.filter_map(|note| note.lines().nth(1)?.parse::<u64>().ok());
        counts.max().unwrap_or(0)
    };
    wait_until("it is copied", Duration::from_secs(20), || {
        copied() >= before + 5
    });
    // One try each, however many intervals there were meanwhile.
    assert_eq!(asked.load(Ordering::Relaxed), 11);
    // Each is an alarm of its own, which names it.
    wait_until("each is said", Duration::from_secs(90), || {
        standing(&lab, "evidence-stopped").len() == 11
    });
    lab.stop_server();
}

/// A success does not make it forgotten that it fails all the time; what it has not seen is counted.
#[test]
fn a_witness_that_answers_every_other_time_is_one_trouble_and_not_one_each_time() {
    let witness = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = witness.local_addr().unwrap();
    let posts = Arc::new(AtomicU64::new(0));
    let counted = posts.clone();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = witness.accept() {
            let n = counted.fetch_add(1, Ordering::Relaxed);
            // Each failure says something else.
            let status = if n.is_multiple_of(2) {
                200
            } else {
                500 + n % 90
            };
            answer_post(stream, u16::try_from(status).unwrap());
        }
    });
    let mut lab = Lab::start("witness-flaps");
    let config = format!("[evidence]\ninterval_s = 1\nwitnesses = [\"http://{address}/w\"]\n");
    configure(&mut lab, &config);
    let mut counted = false;
    wait_until("it was asked often", Duration::from_secs(90), || {
        let said = lab.server(&["duties", "--json"]);
        counted |= text(&said.stdout).contains("witness 127.0.0.1 has not seen the last ");
        counted && posts.load(Ordering::Relaxed) >= 16
    });
    let alarms = of_kind(&lab, "evidence-stopped");
    assert!((1..=2).contains(&alarms.len()), "{alarms:?}");
    assert!(lab.trail("alarm again").len() <= 4);
    lab.stop_server();
}

/// What the server takes, with all it does, in 2 s of an endless answer.
const MEMORY_MAX: u64 = 192 << 20;

/// A relay that never ends its greeting, until it is honest.
struct Relay {
    address: SocketAddr,
    is_honest: Arc<AtomicBool>,
    letters: Arc<AtomicU64>,
}

impl Relay {
    fn start(begin: &'static str, more: String, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Self {
            address: listener.local_addr().unwrap(),
            is_honest: Arc::default(),
            letters: Arc::default(),
        };
        let (is_honest, letters) = (relay.is_honest.clone(), relay.letters.clone());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let endless = (!is_honest.load(Ordering::Relaxed)).then_some((begin, &*more));
                let _gone = match &tls {
                    None => speak(stream, endless, &letters),
                    Some(config) => {
                        let connection = ServerConnection::new(config.clone()).unwrap();
                        speak(StreamOwned::new(connection, stream), endless, &letters)
                    }
                };
            }
        });
        relay
    }
}

/// What nobody's memory is meant for.
const ENDLESS_MIB: u32 = 1024;

/// Says what has no end; or takes letters, as a relay should.
fn speak<S: Read + Write>(
    stream: S,
    endless: Option<(&str, &str)>,
    letters: &AtomicU64,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    if let Some((begin, more)) = endless {
        reader.get_mut().write_all(begin.as_bytes())?;
        for _ in 0..ENDLESS_MIB {
            reader.get_mut().write_all(more.as_bytes())?;
        }
        return Ok(());
    }
    reader.get_mut().write_all(b"220 relay\r\n")?;
    let (mut is_letter, mut line) = (false, String::new());
    while reader.read_line(&mut line)? > 0 {
        let answer: &[u8] = match line.trim_end() {
            "." => {
                is_letter = false;
                letters.fetch_add(1, Ordering::Relaxed);
                b"250 taken\r\n"
            }
            _ if is_letter => b"",
            "DATA" => {
                is_letter = true;
                b"354 go on\r\n"
            }
            "QUIT" => b"221 bye\r\n",
            _ => b"250 good\r\n",
        };
        reader.get_mut().write_all(answer)?;
        reader.get_mut().flush()?;
        line.clear();
    }
    Ok(())
}

/// Reads one request, whose body needs no second read, and answers it.
fn answer_post(mut stream: TcpStream, status: u16) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
    let answer =
        format!("HTTP/1.1 {status} Answer\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let _gone = stream.write_all(answer.as_bytes());
}

fn configure(lab: &mut Lab, more: &str) {
    lab.stop_server();
    let config = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    lab.write("server.toml", (config + more).as_bytes());
    lab.start_server();
}

fn status(lab: &Lab) -> Value {
    let said = lab.server(&["status", "--json"]);
    serde_json::from_slice(&said.stdout).unwrap()
}

fn of_kind(lab: &Lab, kind: &str) -> Vec<Value> {
    let alarms = lab.alarms().into_iter();
    alarms.filter(|alarm| alarm["kind"] == kind).collect()
}

fn standing(lab: &Lab, kind: &str) -> Vec<Value> {
    let alarms = of_kind(lab, kind).into_iter();
    alarms.filter(|alarm| alarm["over"].is_null()).collect()
}
