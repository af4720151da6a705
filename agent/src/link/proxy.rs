//! A tunnel through a proxy: `CONNECT` of HTTP (RFC 9110, 9.3.6) and SOCKS 5 (RFC 1928, RFC 1929).
//!
//! The proxy is a stranger: it is told the name of the server, resolves it, and passes on what it cannot read. What it
//! answers is bounded, and its caller bounds how long that takes.

use anyhow::{Context as _, Result, bail, ensure};
use data_encoding::BASE64;
use scrinium_protocol::route::{Address, Password, Proxy, ProxyKind};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use zeroize::Zeroizing;

/// The proxy does not let us pass with what we show, or without it. Whoever repeats that soon may have an account locked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotLetPass(String);

/// Has the proxy at the other end of `stream` connect to `target`; from then on the stream leads there.
pub(super) async fn open<S>(stream: &mut S, proxy: &Proxy, target: &Address) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    match proxy.kind {
        ProxyKind::Http => open_http(stream, proxy, target).await,
        ProxyKind::Socks5 => open_socks(stream, proxy, target).await,
    }
}

async fn open_http<S>(stream: &mut S, proxy: &Proxy, target: &Address) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut request = Zeroizing::new(format!(
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: scrinium-agent/{}\r\n",
        env!("CARGO_PKG_VERSION")
    ));
    if let Some(user) = &proxy.user {
        //= https://www.rfc-editor.org/rfc/rfc7617#section-2
        let credential = Zeroizing::new(format!("{user}:{}", password_of(proxy)));
        let encoded = Zeroizing::new(BASE64.encode(credential.as_bytes()));
        request.push_str("Proxy-Authorization: Basic ");
        request.push_str(&encoded);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut received = Vec::new();
    loop {
        let head = read_head(stream, &mut received).await?;
        match head.status {
            // Interim: the answer follows.
            100..=199 => {}
            //= https://www.rfc-editor.org/rfc/rfc9110#section-9.3.6
            200..=299 => {
                // The server says nothing before the agent does.
                ensure!(
                    received.is_empty(),
                    "the proxy sent something before the server could"
                );
                return Ok(());
            }
            407 => return Err(NotLetPass(head.refusal(proxy, target)).into()),
            _ => bail!("{}", head.refusal(proxy, target)),
        }
    }
}

/// The head of an answer.
struct Head {
    status: u16,
    reason: String,
    /// The schemes of `Proxy-Authenticate`.
    schemes: Vec<String>,
}

impl Head {
    /// Reads the lines of a head.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut words = lines.next()?.splitn(3, ' ');
        words.next().filter(|word| word.starts_with("HTTP/1."))?;
        let status = words.next().filter(|word| word.len() == 3)?.parse().ok()?;
        let reason = words.next().unwrap_or_default().trim();
        let end = reason.floor_char_boundary(REASON_LEN_MAX);
        let schemes = lines.filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            let scheme = value.split_whitespace().next()?;
            let is_it = name.eq_ignore_ascii_case("proxy-authenticate");
            let end = scheme.floor_char_boundary(SCHEME_LEN_MAX);
            is_it.then(|| scheme.get(..end).unwrap_or_default().to_owned())
        });
        Some(Self {
            status,
            reason: reason.get(..end).unwrap_or_default().to_owned(),
            schemes: schemes.take(SCHEMES_MAX).collect(),
        })
    }

    fn refusal(&self, proxy: &Proxy, target: &Address) -> String {
        let Self { status, reason, .. } = self;
        let said = match reason.is_empty() {
            true => status.to_string(),
            false => format!("{status} {reason}"),
        };
        let has_basic = |scheme: &String| scheme.eq_ignore_ascii_case("basic");
        match status {
            407 if !self.schemes.is_empty() && !self.schemes.iter().any(has_basic) => format!(
                "the proxy wants to know who asks by {}, which agents do not speak: let this machine pass, or allow Basic ({said})",
                self.schemes.join(", ")
            ),
            407 if proxy.user.is_none() => format!("{WANTS_CREDENTIAL} ({said})"),
            407 => format!("the proxy does not take the name and the password ({said})"),
            403 => format!("the proxy does not allow connections to {target} ({said})"),
            405 | 501 => format!("the proxy does not open connections, or is none ({said})"),
            502..=504 => format!("the proxy does not reach {target} ({said})"),
            _ => format!("the proxy refused to connect to {target} ({said})"),
        }
    }
}

/// Reads one head, and leaves what follows it in `received`.
async fn read_head<S>(stream: &mut S, received: &mut Vec<u8>) -> Result<Head>
where
    S: AsyncRead + Unpin + Send,
{
    let mut searched = 0;
    loop {
        if let Some(len) = head_len(received, searched) {
            let rest = received.split_off(len);
            let head = core::mem::replace(received, rest);
            return Head::parse(&String::from_utf8_lossy(&head))
                .context("what answers there is no HTTP proxy");
        }
        // The end may have begun already.
        searched = received.len().saturating_sub(3);
        ensure!(
            received.len() < HEAD_LEN_MAX,
            "the answer of the proxy has no end within {} KiB",
            HEAD_LEN_MAX >> 10
        );
        let mut part = [0; 1024];
        let n = stream.read(&mut part).await?;
        ensure!(n > 0, "the proxy closed the connection without an answer");
        received.extend_from_slice(part.get(..n).unwrap_or_default());
    }
}

/// The length of a head with the empty line that ends it, if that is there. A line feed alone ends a line, too
/// (RFC 9112, 2.2).
fn head_len(bytes: &[u8], from: usize) -> Option<usize> {
    let tail = bytes.get(from..)?;
    let full = memchr::memmem::find(tail, b"\r\n\r\n").map(|at| from + at + 4);
    let bare = memchr::memmem::find(tail, b"\n\n").map(|at| from + at + 2);
    match (full, bare) {
        (Some(full), Some(bare)) => Some(full.min(bare)),
        (full, bare) => full.or(bare),
    }
}

async fn open_socks<S>(stream: &mut S, proxy: &Proxy, target: &Address) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    //= https://www.rfc-editor.org/rfc/rfc1928#section-3
    let methods: &[u8] = match proxy.user {
        Some(_) => &[METHOD_NONE, METHOD_PASSWORD],
        None => &[METHOD_NONE],
    };
    let mut greeting = vec![SOCKS_VERSION, u8::try_from(methods.len())?];
    greeting.extend_from_slice(methods);
    stream.write_all(&greeting).await?;
    let [version, method] = read(stream).await?;
    ensure!(
        version == SOCKS_VERSION,
        "what answers there is no SOCKS 5 proxy"
    );
    match method {
        METHOD_NONE => {}
        METHOD_PASSWORD if proxy.user.is_some() => {
            //= https://www.rfc-editor.org/rfc/rfc1929#section-2
            let mut shown = Zeroizing::new(vec![PASSWORD_VERSION]);
            for text in [
                proxy.user.as_deref().unwrap_or_default(),
                password_of(proxy),
            ] {
                shown.push(u8::try_from(text.len()).context("a route bounds a credential")?);
                shown.extend_from_slice(text.as_bytes());
            }
            stream.write_all(&shown).await?;
            let [_, status] = read(stream).await?;
            if status != 0 {
                let refusal = "the proxy does not take the name and the password";
                return Err(NotLetPass(refusal.into()).into());
            }
        }
        _ => {
            let refusal = match proxy.user {
                None => WANTS_CREDENTIAL,
                Some(_) => "the proxy wants to know who asks in a way that agents do not speak",
            };
            return Err(NotLetPass(refusal.into()).into());
        }
    }
    //= https://www.rfc-editor.org/rfc/rfc1928#section-4
    let mut request = vec![SOCKS_VERSION, COMMAND_CONNECT, 0];
    match target.host.parse() {
        Ok(std::net::IpAddr::V4(ip)) => {
            request.push(ADDRESS_V4);
            request.extend_from_slice(&ip.octets());
        }
        Ok(std::net::IpAddr::V6(ip)) => {
            request.push(ADDRESS_V6);
            request.extend_from_slice(&ip.octets());
        }
        Err(_) => {
            request.push(ADDRESS_NAME);
            request.push(u8::try_from(target.host.len()).context("a route bounds a name")?);
            request.extend_from_slice(target.host.as_bytes());
        }
    }
    request.extend_from_slice(&target.port.to_be_bytes());
    stream.write_all(&request).await?;
    //= https://www.rfc-editor.org/rfc/rfc1928#section-6
    let [version, reply, _, kind] = read(stream).await?;
    ensure!(
        version == SOCKS_VERSION,
        "what answers there is no SOCKS 5 proxy"
    );
    match reply {
        0 => {}
        2 => bail!("the proxy does not allow connections to {target}"),
        3 | 4 | 6 => bail!("the proxy does not reach {target}: there is no way, or no answer"),
        5 => bail!("the proxy does not reach {target}: the connection was refused"),
        code => bail!("the proxy refused to connect to {target} (code {code})"),
    }
    // Where the proxy itself connects from: of no use to us.
    let len = match kind {
        ADDRESS_V4 => 4,
        ADDRESS_V6 => 16,
        ADDRESS_NAME => {
            let [len] = read(stream).await?;
            usize::from(len)
        }
        _ => bail!("what answers there is no SOCKS 5 proxy"),
    };
    let mut bound = vec![0; len + 2];
    read_all(stream, &mut bound).await
}

async fn read<const N: usize, S>(stream: &mut S) -> Result<[u8; N]>
where
    S: AsyncRead + Unpin + Send,
{
    let mut bytes = [0; N];
    read_all(stream, &mut bytes).await?;
    Ok(bytes)
}

async fn read_all<S>(stream: &mut S, bytes: &mut [u8]) -> Result<()>
where
    S: AsyncRead + Unpin + Send,
{
    let read = stream.read_exact(bytes).await;
    read.context("the proxy closed the connection without an answer")?;
    Ok(())
}

fn password_of(proxy: &Proxy) -> &str {
    proxy.password.as_ref().map_or("", Password::expose)
}

const WANTS_CREDENTIAL: &str = "the proxy wants a name and a password: put the name into server.proxy and the password into the file of server.proxy_password_file";
/// Bytes of an answer's head; curl takes no more of a line.
const HEAD_LEN_MAX: usize = 16 << 10;
/// Bytes of a proxy's own words that are shown.
const REASON_LEN_MAX: usize = 100;
const SCHEME_LEN_MAX: usize = 32;
const SCHEMES_MAX: usize = 8;
const SOCKS_VERSION: u8 = 5;
const METHOD_NONE: u8 = 0;
const METHOD_PASSWORD: u8 = 2;
const PASSWORD_VERSION: u8 = 1;
const COMMAND_CONNECT: u8 = 1;
const ADDRESS_V4: u8 = 1;
const ADDRESS_NAME: u8 = 3;
const ADDRESS_V6: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    /// What `open` says to a proxy that answers with `answers`, one after each thing that it is sent.
    async fn tried(proxy: &str, target: &str, answers: &[&[u8]]) -> (Vec<u8>, Result<()>) {
        let proxy = Proxy::parse(proxy).unwrap();
        let target = Address::parse(target).unwrap();
        let (mut ours, mut theirs) = tokio::io::duplex(64 << 10);
        let answering = async {
            let mut heard = Vec::new();
            for answer in answers {
                let mut part = [0; 1024];
                let n = theirs.read(&mut part).await.unwrap();
                heard.extend_from_slice(&part[..n]);
                for byte in answer.chunks(if answer.len() < 200 { 1 } else { 4096 }) {
                    // Whoever has heard enough does not listen any more.
                    let _gone = theirs.write_all(byte).await;
                }
            }
            let _gone = theirs.shutdown().await;
            theirs.read_to_end(&mut heard).await.unwrap();
            heard
        };
        let opening = async {
            let opened = open(&mut ours, &proxy, &target).await;
            drop(ours);
            opened
        };
        let (opened, heard) = tokio::join!(opening, answering);
        (heard, opened)
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(future)
    }

    fn refusal(proxy: &str, answer: &[u8]) -> String {
        let (_, opened) = run(tried(proxy, "logs.example.net:720", &[answer]));
        format!("{:#}", opened.unwrap_err())
    }

    #[test]
    fn connect_is_asked_for_and_answered() {
        let answer = b"HTTP/1.1 103 Early\r\nx: y\r\n\r\nHTTP/1.0 200 Connection established\r\nContent-Length: 7\r\n\r\n";
        let (heard, opened) = run(tried("http://p:1", "[2001:db8::1]:720", &[answer]));
        opened.unwrap();
        let heard = String::from_utf8(heard).unwrap();
        assert!(
            heard.starts_with("CONNECT [2001:db8::1]:720 HTTP/1.1\r\nHost: [2001:db8::1]:720\r\n"),
            "{heard}"
        );
        assert!(heard.ends_with("\r\n\r\n") && !heard.contains("Authorization"));
        let (heard, opened) = run(tried(
            "http://Aladdin:open%20sesame@p:1",
            "logs.example.net:720",
            &[b"HTTP/1.1 200 OK\n\n"],
        ));
        opened.unwrap();
        // The example of RFC 7617, 2.
        let heard = String::from_utf8(heard).unwrap();
        assert!(
            heard.contains("\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n"),
            "{heard}"
        );
    }

    #[test]
    fn what_a_proxy_refuses_is_said_in_a_sentence() {
        for (proxy, answer, words) in [
            (
                "http://p:1",
                "HTTP/1.1 407 Auth\r\n\r\n",
                "server.proxy_password_file",
            ),
            (
                "http://u:secret@p:1",
                "HTTP/1.1 407 Auth\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n",
                "does not take the name",
            ),
            (
                "http://u:secret@p:1",
                "HTTP/1.1 407 Auth\r\nproxy-authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n\r\n",
                "Negotiate, NTLM",
            ),
            (
                "http://p:1",
                "HTTP/1.1 403 Forbidden\r\n\r\n",
                "does not allow connections to logs.example.net:720 (403 Forbidden)",
            ),
            (
                "http://p:1",
                "HTTP/1.1 502 Bad Gateway\r\n\r\n",
                "does not reach",
            ),
            ("http://p:1", "HTTP/1.1 302 \r\n\r\n", "refused"),
            ("http://p:1", "SSH-2.0-OpenSSH\r\n\r\n", "no HTTP proxy"),
            ("http://p:1", "HTTP/1.1 20 OK\r\n\r\n", "no HTTP proxy"),
            ("http://p:1", "HTTP/1.1 200 OK\r\n", "closed the connection"),
            (
                "http://p:1",
                "HTTP/1.1 200 OK\r\n\r\nmore",
                "before the server could",
            ),
        ] {
            let said = refusal(proxy, answer.as_bytes());
            assert!(said.contains(words), "{answer:?}: {said}");
            assert!(!said.contains("secret"), "{said}");
        }
        let long = format!("HTTP/1.1 403 {}\r\n\r\n", "x".repeat(5000));
        assert!(refusal("http://p:1", long.as_bytes()).len() < 300);
    }

    #[test]
    fn an_answer_without_an_end_is_not_read_for_ever() {
        let mut endless = b"HTTP/1.1 200 OK\r\n".to_vec();
        endless.resize(HEAD_LEN_MAX + 4096, b'x');
        assert!(refusal("http://p:1", &endless).contains("no end within 16 KiB"));
        let mut fits = b"HTTP/1.1 200 OK\r\nx: ".to_vec();
        fits.resize(HEAD_LEN_MAX - 4, b'x');
        fits.extend_from_slice(b"\r\n\r\n");
        let (_, opened) = run(tried("http://p:1", "a:1", &[&fits]));
        opened.unwrap();
    }

    /// Whatever a proxy says is an opened tunnel or a refusal, and soon.
    #[test]
    fn any_answer_is_one_or_a_refusal() {
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            usize::try_from(state >> 33).unwrap() % below
        };
        let parts: [&[u8]; 12] = [
            b"HTTP/1.1 ",
            b"200",
            b"407",
            b"103 x",
            b"\r\n",
            b"\r\n\r\n",
            b"\n\n",
            b"Proxy-Authenticate: ",
            b"\x05\x00",
            b"\x05\x02\x01\x00",
            b"\x00\x03\xff",
            b"\xff\x00\x80",
        ];
        for _ in 0..2000 {
            let count = 1 + random(12);
            let answer: Vec<u8> = (0..count)
                .flat_map(|_| parts[random(parts.len())].to_vec())
                .collect();
            for proxy in ["http://u:pw@p:1", "socks5://u:pw@p:1", "socks5://p:1"] {
                let (_, opened) = run(tried(proxy, "logs.example.net:720", &[&answer]));
                drop(opened);
            }
        }
    }

    #[test]
    fn socks_is_spoken_to_the_byte() {
        let done = b"\x05\x00\x00\x03\x04name\x00\x01";
        let (heard, opened) = run(tried(
            "socks5://p:1",
            "logs.example.net:720",
            &[b"\x05\x00", done],
        ));
        opened.unwrap();
        assert_eq!(
            heard,
            b"\x05\x01\x00\x05\x01\x00\x03\x10logs.example.net\x02\xd0"
        );
        let (heard, opened) = run(tried(
            "socks5://me:pw@p:1",
            "192.0.2.1:720",
            &[
                b"\x05\x02",
                b"\x01\x00",
                b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00",
            ],
        ));
        opened.unwrap();
        assert_eq!(
            heard,
            b"\x05\x02\x00\x02\x01\x02me\x02pw\x05\x01\x00\x01\xc0\x00\x02\x01\x02\xd0"
        );
    }

    #[test]
    fn what_socks_refuses_is_said_in_a_sentence() {
        for (proxy, answers, words) in [
            (
                "socks5://p:1",
                &[&b"\x05\xff"[..]][..],
                "server.proxy_password_file",
            ),
            ("socks5://u:pw@p:1", &[b"\x05\xff"], "do not speak"),
            // A method that was not offered.
            ("socks5://p:1", &[b"\x05\x02"], "wants a name"),
            (
                "socks5://u:pw@p:1",
                &[b"\x05\x02", b"\x01\x01"],
                "does not take",
            ),
            ("socks5://p:1", &[b"HT"], "no SOCKS 5 proxy"),
            (
                "socks5://p:1",
                &[b"\x05\x00", b"\x05\x02\x00\x01"],
                "does not allow",
            ),
            (
                "socks5://p:1",
                &[b"\x05\x00", b"\x05\x05\x00\x01"],
                "was refused",
            ),
            (
                "socks5://p:1",
                &[b"\x05\x00", b"\x05\x00\x00\x09"],
                "no SOCKS 5 proxy",
            ),
            ("socks5://p:1", &[b"\x05\x00", b"\x05\x00"], "closed"),
        ] {
            let (_, opened) = run(tried(proxy, "logs.example.net:720", answers));
            let said = format!("{:#}", opened.unwrap_err());
            assert!(said.contains(words), "{answers:?}: {said}");
        }
    }
}
