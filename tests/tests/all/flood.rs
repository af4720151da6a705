//! Strangers at the door: established sessions do not feel them (scenario I6).

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use scrinium_tests::lab::{Lab, resident_bytes};
use scrinium_tests::random::Random;
use scrinium_tests::{now, pause, wait_until};
use socket2::{Domain, Socket, Type};

/// 1,000 silent half-open connections, and 10,000 garbage handshakes a second for 20 s.
#[test]
fn i6_a_flood_of_handshakes_does_not_stop_an_established_session() {
    let mut lab = Lab::start("i6");
    lab.add_agent("web1", lab.sl, "");
    let log = lab.log("app.log");
    lab.write("logs/app.log", b"before\n");
    lab.start_agent("web1");
    lab.wait_for_bytes("web1", &log, 7, Duration::from_secs(20));
    wait_until("the agent says so itself", Duration::from_secs(10), || {
        lab.agent_status("web1")
            .is_some_and(|status| status["acked_entries"].as_u64() >= Some(1))
    });
    let before = resident_bytes(lab.server_pid());

    let silent: Vec<TcpStream> = (0..1000)
        .filter_map(|_| connect(Ipv4Addr::new(127, 0, 0, 2), lab.sl))
        .collect();
    assert_eq!(silent.len(), 1000);
    let stop = AtomicBool::new(false);
    let tried = AtomicU64::new(0);
    let (mut written, mut worst_rss, mut worst_stall) = (b"before\n".to_vec(), 0, Duration::ZERO);
    let begun = now();
    std::thread::scope(|scope| {
        let flooded = lab.sl;
        let (stop, tried) = (&stop, &tried);
        scope.spawn(move || {
            let mut random = Random::new(3);
            while !stop.load(Ordering::Relaxed) {
                garbage(&mut random, flooded);
                let n = tried.fetch_add(1, Ordering::Relaxed);
                // No faster than 10,000 a second.
                let due = Duration::from_micros(n * 100);
                pause(due.saturating_sub(now().duration_since(begun)));
            }
        });
        // Whatever fails here, the flood ends.
        let _ends = Ends(stop);
        let mut acked = (0, now());
        for n in 0.. {
            if now().duration_since(begun) > Duration::from_secs(20) {
                break;
            }
            let line = format!("line {n} in the flood\n");
            let file = std::fs::File::options().append(true).open(&log);
            file.unwrap().write_all(line.as_bytes()).unwrap();
            written.extend_from_slice(line.as_bytes());
            pause(Duration::from_millis(50));
            let status = lab.agent_status("web1").unwrap();
            assert_eq!(status["connected"], true, "{status}");
            let entries = status["acked_entries"].as_u64().unwrap();
            if entries > acked.0 {
                acked = (entries, now());
            }
            worst_stall = worst_stall.max(now().duration_since(acked.1));
            worst_rss = worst_rss.max(resident_bytes(lab.server_pid()));
        }
    });
    let tried = tried.into_inner();
    eprintln!(
        "{} garbage handshakes/s; longest time without an ack {worst_stall:?}; resident {} KiB before, {} KiB at worst",
        tried / 20,
        before >> 10,
        worst_rss >> 10
    );
    assert!(tried >= 100_000, "{tried} were tried in 20 s");
    assert!(worst_stall < Duration::from_secs(2), "{worst_stall:?}");
    assert!(
        worst_rss < before + (32 << 20),
        "{before} became {worst_rss}"
    );
    lab.wait_for_bytes("web1", &log, written.len(), Duration::from_secs(10));
    assert!(lab.export("web1", &log) == written);

    // While the silent ones are still there, somebody new can join from another address.
    let token = lab.token("web2", lab.sl);
    wait_until("a newcomer joins", Duration::from_secs(15), || {
        lab.enrol("web2", &token).status.success()
    });
    // The silent ones are gone after the deadline.
    let mut gone = 0;
    for mut stream in silent {
        stream
            .set_read_timeout(Some(Duration::from_secs(12)))
            .unwrap();
        gone += usize::from(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    }
    assert_eq!(gone, 1000);
}

/// Tells the flood to end when it is dropped.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A preamble that is right, and a first message that is nothing.
fn garbage(random: &mut Random, to: SocketAddr) {
    let Some(mut stream) = connect(Ipv4Addr::LOCALHOST, to) else {
        return;
    };
    let mut bytes = b"SL\x01\x01\0\x01\0\x31".to_vec();
    bytes.extend((0..49).map(|_| u8::try_from(random.below(256)).unwrap()));
    let _refused = stream.write_all(&bytes);
}

/// Connects from `source`; the end of it leaves no port occupied.
fn connect(source: Ipv4Addr, to: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).ok()?;
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket.connect(&to.into()).ok()?;
    Some(socket.into())
}
