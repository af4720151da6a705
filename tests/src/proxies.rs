//! Proxies as sites have them: `CONNECT` of HTTP and SOCKS 5, with a name and a password, that know the names of servers
//! which nobody else knows; and some that misbehave.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use data_encoding::BASE64;

/// How it is spoken to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Connect,
    Socks5,
}

/// How a `CONNECT` is answered that could be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    Opened,
    /// The same, each byte in a packet of its own.
    ByteByByte,
    /// A line like `403 Forbidden`.
    Refused(&'static str),
    /// A head without an end.
    Endless,
    /// Nothing.
    Silent,
}

/// A proxy that leads to one server.
#[derive(Debug)]
pub struct SiteProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    kind: Kind,
    /// Whom it lets pass; anybody, if nobody is named.
    user: Option<(String, String)>,
    /// The name of the server, as `HOST:PORT`, and where that is.
    name: String,
    server: SocketAddr,
    answer: Mutex<Answer>,
    asked: Mutex<Vec<String>>,
    turned_away: AtomicU64,
}

impl SiteProxy {
    /// Listens on a free port, and leads who asks for `name` to `server`.
    #[must_use]
    pub fn start(kind: Kind, user: Option<(&str, &str)>, name: &str, server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            kind,
            user: user.map(|(name, password)| (name.to_owned(), password.to_owned())),
            name: name.to_owned(),
            server,
            answer: Mutex::new(Answer::Opened),
            asked: Mutex::default(),
            turned_away: AtomicU64::new(0),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = accepting.clone();
                std::thread::spawn(move || {
                    let served = match shared.kind {
                        Kind::Connect => shared.serve_connect(client),
                        Kind::Socks5 => shared.serve_socks(client),
                    };
                    // Whoever went away did not want it.
                    drop(served);
                });
            }
        });
        Self { address, shared }
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn set_answer(&self, answer: Answer) {
        *self.shared.answer.lock().unwrap() = answer;
    }

    /// How often somebody showed a wrong password, or none.
    #[must_use]
    pub fn turned_away(&self) -> u64 {
        self.shared.turned_away.load(Ordering::SeqCst)
    }

    /// What was asked for by whom it let pass, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Shared {
    fn serve_connect(&self, mut client: TcpStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte)?;
            head.extend_from_slice(&byte);
        }
        let head = String::from_utf8(head).unwrap();
        if let Some((user, password)) = &self.user {
            let expected = BASE64.encode(format!("{user}:{password}").as_bytes());
            let line = format!("\r\nProxy-Authorization: Basic {expected}\r\n");
            if !head.contains(&line) {
                self.turned_away.fetch_add(1, Ordering::SeqCst);
                let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"site\"\r\n\r\n";
                return client.write_all(refusal);
            }
        }
        let target = head.split(' ').nth(1).unwrap_or_default();
        self.asked.lock().unwrap().push(target.to_owned());
        let answer = *self.answer.lock().unwrap();
        let opened = "HTTP/1.1 200 Connection established\r\nProxy-Agent: site\r\n\r\n";
        match answer {
            _ if target != self.name => {
                return client.write_all(b"HTTP/1.1 503 No such host\r\n\r\n");
            }
            Answer::Refused(line) => {
                return client.write_all(format!("HTTP/1.1 {line}\r\n\r\n").as_bytes());
            }
            Answer::Endless => loop {
                client.write_all(&[b'x'; 1024])?;
            },
            Answer::Silent => {
                // Until the client has had enough.
                let _ended = client.read(&mut [0])?;
                return Ok(());
            }
            Answer::Opened => client.write_all(opened.as_bytes())?,
            Answer::ByteByByte => {
                client.set_nodelay(true)?;
                for byte in opened.as_bytes() {
                    client.write_all(&[*byte])?;
                }
            }
        }
        self.lead(client)
    }

    fn serve_socks(&self, mut client: TcpStream) -> std::io::Result<()> {
        let [_, count] = read(&mut client)?;
        let mut methods = vec![0; usize::from(count)];
        client.read_exact(&mut methods)?;
        let wanted = if self.user.is_some() { 2 } else { 0 };
        if !methods.contains(&wanted) {
            return client.write_all(&[5, 0xff]);
        }
        client.write_all(&[5, wanted])?;
        if let Some((user, password)) = &self.user {
            let [_version] = read(&mut client)?;
            let shown = [read_text(&mut client)?, read_text(&mut client)?];
            let is_known = shown == [user.as_str(), password.as_str()];
            client.write_all(&[1, u8::from(!is_known)])?;
            if !is_known {
                return Ok(());
            }
        }
        let [_, _, _, kind] = read(&mut client)?;
        // Who asks for an address has resolved the name, which is not to be.
        assert_eq!(kind, 3, "a name");
        let host = read_text(&mut client)?;
        let port = u16::from_be_bytes(read(&mut client)?);
        let target = format!("{host}:{port}");
        self.asked.lock().unwrap().push(target.clone());
        if target != self.name {
            return client.write_all(&[5, 4, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
        client.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 0])?;
        self.lead(client)
    }

    fn lead(&self, client: TcpStream) -> std::io::Result<()> {
        let server = TcpStream::connect(self.server)?;
        let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
        std::thread::spawn(move || {
            let _broken = std::io::copy(&mut from, &mut to);
            let _gone = to.shutdown(Shutdown::Both);
        });
        let (mut from, mut to) = (server, client);
        let copied = std::io::copy(&mut from, &mut to);
        let _gone = to.shutdown(Shutdown::Both);
        copied.map(drop)
    }
}

fn read<const N: usize>(stream: &mut TcpStream) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_text(stream: &mut TcpStream) -> std::io::Result<String> {
    let [len] = read(stream)?;
    let mut bytes = vec![0; usize::from(len)];
    stream.read_exact(&mut bytes)?;
    Ok(String::from_utf8(bytes).unwrap())
}
