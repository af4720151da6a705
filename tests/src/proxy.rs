//! A TCP link that records what passes, can be cut, and can spoil one record.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::pause;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From the agent to the server.
    Up,
    Down,
}

/// What happens to one record.
#[derive(Clone, Copy, Debug)]
pub enum Spoil {
    Drop,
    Duplicate,
    /// It passes after the one that follows it.
    Swap,
    /// A record of an attacker's passes before it.
    Inject,
    /// One bit of this byte is flipped; counted from the end when negative.
    Flip(isize),
    /// Everything of this direction from here on is swallowed, and the connection stays open.
    BlackHole,
    /// The connection is reset before it passes.
    Reset,
}

/// Forwards every connection to one address.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    cut: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
    recorded: Mutex<Vec<u8>>,
    connections: AtomicU64,
    /// The next connection is cut after this many bytes in both directions together; 0 never.
    cut_after: AtomicU64,
    /// Bytes a second in each direction; 0 without limit.
    pace: AtomicU64,
    /// Milliseconds that everything is held back; and one byte a write.
    delay_ms: AtomicU64,
    /// Milliseconds that everything is held back.
    lag_ms: AtomicU64,
    spoil: Mutex<Option<(Direction, u64, Spoil)>>,
    spoiled: AtomicBool,
}

impl Proxy {
    /// Listens on a free port.
    #[must_use]
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.cut.load(Ordering::SeqCst) {
                    continue; // closed at once, as by a dead link's router
                }
                let Ok(server) = TcpStream::connect(target) else {
                    continue;
                };
                accepting.connections.fetch_add(1, Ordering::SeqCst);
                let left = accepting.cut_after.swap(0, Ordering::SeqCst);
                let left = Arc::new(AtomicU64::new(if left == 0 { u64::MAX } else { left }));
                for (direction, from, to) in [
                    (Direction::Up, &client, &server),
                    (Direction::Down, &server, &client),
                ] {
                    let _best_effort = to.set_nodelay(true);
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (shared, left) = (accepting.clone(), left.clone());
                    std::thread::spawn(move || pump(direction, from, to, &shared, &left));
                }
                accepting.open.lock().unwrap().extend([client, server]);
            }
        });
        Self { address, shared }
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Breaks every connection and refuses new ones.
    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
        self.break_all();
    }

    /// Breaks every connection.
    pub fn break_all(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _gone = stream.shutdown(Shutdown::Both);
        }
    }

    /// Lets connections pass again.
    pub fn mend(&self) {
        self.shared.cut.store(false, Ordering::SeqCst);
    }

    /// Cuts the next connection after `bytes`, both directions together.
    pub fn cut_next_after(&self, bytes: u64) {
        self.shared.cut_after.store(bytes, Ordering::SeqCst);
    }

    /// Lets at most so many bytes a second pass in each direction; 0 for no limit.
    pub fn pace(&self, bytes_per_second: u64) {
        self.shared.pace.store(bytes_per_second, Ordering::SeqCst);
    }

    /// Holds everything back for a while, and writes it byte by byte.
    pub fn delay(&self, milliseconds: u64) {
        self.shared.delay_ms.store(milliseconds, Ordering::SeqCst);
    }

    /// Holds everything back for a while.
    pub fn lag(&self, milliseconds: u64) {
        self.shared.lag_ms.store(milliseconds, Ordering::SeqCst);
    }

    /// Spoils the record numbered `number` (from 0) of `direction` in the next connection that has one.
    pub fn spoil(&self, direction: Direction, number: u64, spoil: Spoil) {
        self.shared.spoiled.store(false, Ordering::SeqCst);
        *self.shared.spoil.lock().unwrap() = Some((direction, number, spoil));
    }

    /// Whether that has happened.
    #[must_use]
    pub fn has_spoiled(&self) -> bool {
        self.shared.spoiled.load(Ordering::SeqCst)
    }

    /// How many connections were made.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Whether `text` passed in clear, in either direction.
    #[must_use]
    pub fn saw(&self, text: &[u8]) -> bool {
        let recorded = self.shared.recorded.lock().unwrap();
        recorded.windows(text.len()).any(|window| window == text)
    }

    /// How many bytes passed.
    #[must_use]
    pub fn passed(&self) -> usize {
        self.shared.recorded.lock().unwrap().len()
    }
}

fn pump(
    direction: Direction,
    mut from: TcpStream,
    mut to: TcpStream,
    shared: &Shared,
    left: &AtomicU64,
) {
    let mut buffer = [0; 16 << 10];
    let mut records = Records::new(direction);
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let bytes = &buffer[..n];
        shared.recorded.lock().unwrap().extend_from_slice(bytes);
        let delay = shared.delay_ms.load(Ordering::SeqCst);
        let lag = shared.lag_ms.load(Ordering::SeqCst);
        pause(Duration::from_millis(delay + lag));
        let pace = shared.pace.load(Ordering::SeqCst);
        if pace > 0 {
            pause(Duration::from_secs_f64(n as f64 / pace as f64));
        }
        let Some(passing) = records.pass(bytes, shared) else {
            break; // reset
        };
        let before = left.fetch_sub(
            (passing.len() as u64).min(left.load(Ordering::SeqCst)),
            Ordering::SeqCst,
        );
        let passes = usize::try_from(before)
            .unwrap_or(usize::MAX)
            .min(passing.len());
        let passing = &passing[..passes];
        let written = if delay > 0 {
            passing.chunks(1).try_for_each(|byte| to.write_all(byte))
        } else {
            to.write_all(passing)
        };
        if written.is_err() || left.load(Ordering::SeqCst) == 0 {
            break;
        }
    }
    let _gone = to.shutdown(Shutdown::Both);
    let _gone = from.shutdown(Shutdown::Both);
}

/// Finds the records in one direction of a connection, to spoil one of them.
struct Records {
    direction: Direction,
    /// Handshake frames still to come; and the preamble.
    frames: u8,
    preamble: bool,
    pending: Vec<u8>,
    number: u64,
    swapped: Option<Vec<u8>>,
    black_hole: bool,
}

impl Records {
    fn new(direction: Direction) -> Self {
        Self {
            direction,
            frames: if direction == Direction::Up { 2 } else { 1 },
            preamble: direction == Direction::Up,
            pending: Vec::new(),
            number: 0,
            swapped: None,
            black_hole: false,
        }
    }

    /// What passes on; `None` when the connection is to be reset.
    fn pass(&mut self, bytes: &[u8], shared: &Shared) -> Option<Vec<u8>> {
        self.pending.extend_from_slice(bytes);
        let mut out = Vec::new();
        if self.preamble {
            let Some(&hint) = self.pending.get(4) else {
                return Some(out);
            };
            let len = 5 + usize::from(hint);
            if self.pending.len() < len {
                return Some(out);
            }
            out.extend(self.pending.drain(..len));
            self.preamble = false;
        }
        while self.frames > 0 {
            let Some(&[_, high, low]) = self.pending.first_chunk() else {
                return Some(out);
            };
            let len = 3 + usize::from(u16::from_be_bytes([high, low]));
            if self.pending.len() < len {
                return Some(out);
            }
            out.extend(self.pending.drain(..len));
            self.frames -= 1;
        }
        while let Some(&[a, b, c]) = self.pending.first_chunk() {
            let len = 8 + u32::from_be_bytes([0, a, b, c]) as usize;
            if self.pending.len() < len {
                break;
            }
            let record: Vec<u8> = self.pending.drain(..len).collect();
            let mut armed = shared.spoil.lock().unwrap();
            let spoil = armed.filter(|(direction, number, _)| {
                *direction == self.direction && *number == self.number
            });
            self.number += 1;
            if self.black_hole {
                continue;
            }
            let Some((_, _, spoil)) = spoil else {
                out.extend_from_slice(&record);
                out.extend(self.swapped.take().unwrap_or_default());
                continue;
            };
            *armed = None;
            shared.spoiled.store(true, Ordering::SeqCst);
            match spoil {
                Spoil::Drop => {}
                Spoil::Duplicate => out.extend([&record[..], &record].concat()),
                Spoil::Swap => self.swapped = Some(record),
                Spoil::Inject => {
                    // As like a record as somebody without keys can make one.
                    let mut forged = record.clone();
                    for byte in &mut forged[4..] {
                        *byte ^= 0x55;
                    }
                    out.extend([&forged[..], &record].concat());
                }
                Spoil::Flip(at) => {
                    let mut record = record;
                    let len = isize::try_from(record.len()).unwrap();
                    let at = usize::try_from(at.rem_euclid(len)).unwrap();
                    record[at] ^= 1;
                    out.extend(record);
                }
                Spoil::BlackHole => self.black_hole = true,
                Spoil::Reset => return None,
            }
        }
        Some(out)
    }
}
