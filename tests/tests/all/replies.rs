//! Others whom the server asks: relays that answer without an end.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use scrinium_tests::lab::{Lab, forget_peak, peak_bytes};
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

fn configure(lab: &mut Lab, more: &str) {
    lab.stop_server();
    let config = std::fs::read_to_string(lab.dir.join("server.toml")).unwrap();
    lab.write("server.toml", (config + more).as_bytes());
    lab.start_server();
}

fn of_kind(lab: &Lab, kind: &str) -> Vec<Value> {
    let alarms = lab.alarms().into_iter();
    alarms.filter(|alarm| alarm["kind"] == kind).collect()
}

fn standing(lab: &Lab, kind: &str) -> Vec<Value> {
    let alarms = of_kind(lab, kind).into_iter();
    alarms.filter(|alarm| alarm["over"].is_null()).collect()
}
