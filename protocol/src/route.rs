//! How an agent reaches its server: addresses in their order, and the proxy before them.
//!
//! ```text
//! route   = address *( "," address ) [ " via " proxy ]
//! address = host ":" port                                   ; an IPv6 address stands in brackets
//! proxy   = [ "http://" | "socks5://" ] [ user [ ":" password ] "@" ] host [ ":" port ] [ "/" ]
//! ```
//!
//! It is one line of text: it stands in a token, in the state of an agent and in the configuration of a server. All its
//! addresses are of one server, which has one key. Programs of version 0.1.0 read a route of one address without a proxy.

use core::fmt;
use core::net::Ipv6Addr;

use zeroize::Zeroizing;

use crate::token::ADDRESS_LEN_MAX;

/// Where an agent finds its server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Route {
    /// At least one, in the order in which they are tried; none twice.
    pub addresses: Vec<Address>,
    pub proxy: Option<Proxy>,
}

/// A host and a port.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Address {
    /// A name, or an IP address without brackets.
    pub host: String,
    pub port: u16,
}

/// Who opens connections for us.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Proxy {
    pub kind: ProxyKind,
    pub address: Address,
    pub user: Option<String>,
    pub password: Option<Password>,
}

/// How a proxy is spoken to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProxyKind {
    /// `CONNECT` of HTTP/1.1.
    Http,
    /// SOCKS version 5.
    Socks5,
}

/// What a proxy wants to hear besides a name; never shown.
#[derive(Clone, Eq, PartialEq)]
pub struct Password(Zeroizing<String>);

/// A text that is no route.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRoute {
    #[error("'{}' must be HOST:PORT", .0.escape_debug())]
    Address(String),
    #[error("a server has at most {ADDRESSES_MAX} addresses")]
    TooManyAddresses,
    #[error("addresses and proxy have at most {ADDRESS_LEN_MAX} bytes together")]
    TooLong,
    // The text may hold a password: it is not repeated.
    #[error("a proxy must be http://[USER@]HOST[:PORT] or socks5://[USER@]HOST[:PORT]")]
    Proxy,
    #[error(
        "a proxy is spoken to by http:// or socks5://, not by '{}': what passes is encrypted by itself",
        .0.escape_debug()
    )]
    ProxyScheme(String),
    #[error(
        "name and password of a proxy have at most {CREDENTIAL_LEN_MAX} bytes each, no control characters, and the name no colon"
    )]
    ProxyCredential,
}

impl Route {
    /// Reads the text of a token, of a state, or of a configuration.
    ///
    /// # Errors
    /// Says which part is not as it must be.
    pub fn parse(text: &str) -> Result<Self, InvalidRoute> {
        if text.len() > ADDRESS_LEN_MAX {
            return Err(InvalidRoute::TooLong);
        }
        let (addresses, proxy) = match text.split_once(VIA) {
            Some((addresses, proxy)) => (addresses, Some(Proxy::parse(proxy)?)),
            None => (text, None),
        };
        let addresses = Address::parse_all(addresses.split(','))?;
        let route = Self { addresses, proxy };
        // As it is written down it may be a little longer than it was typed.
        if route.to_string().len() > ADDRESS_LEN_MAX {
            return Err(InvalidRoute::TooLong);
        }
        Ok(route)
    }

    /// The same addresses through another proxy.
    ///
    /// # Errors
    /// Both do not fit where a route is written down.
    pub fn through(self, proxy: Proxy) -> Result<Self, InvalidRoute> {
        let proxy = Some(proxy);
        let route = Self { proxy, ..self };
        if route.to_string().len() > ADDRESS_LEN_MAX {
            return Err(InvalidRoute::TooLong);
        }
        Ok(route)
    }
}

impl Address {
    /// Reads `HOST:PORT`.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str) -> Result<Self, InvalidRoute> {
        let text = text.trim();
        let wrong = || {
            let end = text.floor_char_boundary(SHOWN_LEN_MAX);
            InvalidRoute::Address(text.get(..end).unwrap_or_default().to_owned())
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port != 0);
        let host = host_of(host).ok_or_else(wrong)?;
        let port = port.ok_or_else(wrong)?;
        Ok(Self { host, port })
    }

    /// Reads several; one that is named again counts where it was named first.
    ///
    /// # Errors
    /// There is none, there are too many, or one is something else.
    pub fn parse_all<'a>(
        texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<Self>, InvalidRoute> {
        let mut addresses = Vec::new();
        for text in texts {
            let address = Self::parse(text)?;
            if !addresses.contains(&address) {
                addresses.push(address);
            }
            if addresses.len() > ADDRESSES_MAX {
                return Err(InvalidRoute::TooManyAddresses);
            }
        }
        if addresses.is_empty() {
            return Err(InvalidRoute::Address(String::new()));
        }
        Ok(addresses)
    }
}

impl Proxy {
    /// Reads a URL, or `HOST:PORT` of an HTTP proxy.
    ///
    /// # Errors
    /// It is something else; the error does not repeat it.
    pub fn parse(text: &str) -> Result<Self, InvalidRoute> {
        let text = text.trim();
        if text.len() > PROXY_LEN_MAX {
            return Err(InvalidRoute::Proxy);
        }
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let (kind, port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (ProxyKind::Http, HTTP_PORT),
            // The `h` of curl: names are resolved by the proxy. Ours always are.
            "socks5" | "socks5h" => (ProxyKind::Socks5, SOCKS_PORT),
            scheme if scheme.len() <= SCHEME_LEN_MAX => {
                return Err(InvalidRoute::ProxyScheme(scheme.to_owned()));
            }
            _ => return Err(InvalidRoute::Proxy),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (credential, place) = match rest.rsplit_once('@') {
            Some((credential, place)) => (Some(credential), place),
            None => (None, rest),
        };
        let address = place_of(place, port).ok_or(InvalidRoute::Proxy)?;
        let mut proxy = Self {
            kind,
            address,
            user: None,
            password: None,
        };
        if let Some(credential) = credential {
            let (user, password) = match credential.split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (credential, None),
            };
            let user = decoded(user).ok_or(InvalidRoute::Proxy)?;
            if !is_credential(&user) || user.is_empty() || user.contains(':') {
                return Err(InvalidRoute::ProxyCredential);
            }
            proxy.user = Some(user);
            if let Some(password) = password {
                let password = decoded(password).ok_or(InvalidRoute::Proxy)?;
                proxy.password = Some(Password::new(password)?);
            }
        }
        Ok(proxy)
    }
}

impl Password {
    /// # Errors
    /// It is too long, or has control characters.
    pub fn new(text: String) -> Result<Self, InvalidRoute> {
        let text = Zeroizing::new(text);
        if !is_credential(&text) {
            return Err(InvalidRoute::ProxyCredential);
        }
        Ok(Self(text))
    }

    /// Shows it to the proxy.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, address) in self.addresses.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            write!(f, "{address}")?;
        }
        if let Some(proxy) = &self.proxy {
            write!(f, "{VIA}{proxy}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// As it was written, without the password.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            ProxyKind::Http => "http://",
            ProxyKind::Socks5 => "socks5://",
        })?;
        if let Some(user) = &self.user {
            // RFC 3986, 2.3: what need not be encoded.
            for byte in user.bytes() {
                match byte {
                    b'-' | b'.' | b'_' | b'~' => write!(f, "{}", char::from(byte))?,
                    byte if byte.is_ascii_alphanumeric() => write!(f, "{}", char::from(byte))?,
                    byte => write!(f, "%{byte:02X}")?,
                }
            }
            f.write_str("@")?;
        }
        write!(f, "{}", self.address)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// A host without its brackets, if it can be one: nothing that could end a line or a word of a request.
fn host_of(text: &str) -> Option<String> {
    let bare = match text.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']')?,
        None => text,
    };
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:%".contains(&byte);
    let fits = (1..=HOST_LEN_MAX).contains(&bare.len()) && bare.bytes().all(is_host);
    // Colons are in IPv6 addresses alone; a zone may follow.
    let numbers = bare.split_once('%').map_or(bare, |(numbers, _)| numbers);
    let is_named = !bare.contains([':', '%']) && bare == text;
    (fits && (is_named || numbers.parse::<Ipv6Addr>().is_ok())).then(|| bare.to_owned())
}

/// `HOST`, or `HOST:PORT`.
fn place_of(text: &str, port: u16) -> Option<Address> {
    let has_port = match text.strip_prefix('[') {
        Some(rest) => !rest.ends_with(']'),
        None => text.contains(':'),
    };
    if has_port {
        return Address::parse(text).ok();
    }
    let host = host_of(text)?;
    Some(Address { host, port })
}

fn is_credential(text: &str) -> bool {
    text.len() <= CREDENTIAL_LEN_MAX && !text.chars().any(char::is_control)
}

/// Percent-decoded, if that is text.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let high = char::from(bytes.next()?).to_digit(16)?;
        let low = char::from(bytes.next()?).to_digit(16)?;
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out).ok()
}

/// Each may take a minute until it has failed: a round of all of them is not to last longer than people wait.
pub const ADDRESSES_MAX: usize = 8;
/// RFC 1929, 2: the length is one byte. Names and passwords of HTTP proxies are no longer.
pub const CREDENTIAL_LEN_MAX: usize = 255;
/// RFC 1035, 2.3.4, without the last dot.
const HOST_LEN_MAX: usize = 253;
/// Bytes of a whole URL: every byte of name and password encoded, and a host.
const PROXY_LEN_MAX: usize = 2048;
const SCHEME_LEN_MAX: usize = 16;
const SHOWN_LEN_MAX: usize = 64;
/// RFC 9110, 4.2.1.
const HTTP_PORT: u16 = 80;
/// RFC 1928, 3.
const SOCKS_PORT: u16 = 1080;
const VIA: &str = " via ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_reads_back() {
        for text in [
            "log.example.net:720",
            "a:720,b:721,192.0.2.1:720,[2001:db8::1]:720",
            "[fe80::1%eth0]:720",
            "a:720 via http://proxy.example.net:3128",
            "a:720,b:720 via socks5://scrinium%40site@[2001:db8::2]:1080",
        ] {
            assert_eq!(Route::parse(text).unwrap().to_string(), text);
        }
        let twice = Route::parse("a:1, b:2 ,a:1").unwrap();
        assert_eq!(twice.to_string(), "a:1,b:2");
        // What is longer when it is written down is counted so.
        let user = |len: usize| format!("a:1 via http://{}@p", "é".repeat(len));
        assert!(Route::parse(&user(40)).is_ok());
        assert_eq!(Route::parse(&user(60)), Err(InvalidRoute::TooLong));
        let long = Proxy::parse(&format!("http://{}@p", "é".repeat(60))).unwrap();
        assert!(Route::parse("a:1").unwrap().through(long).is_err());
        // Version 0.1.0 took an IPv6 address without brackets.
        let bare = Route::parse("::1:720").unwrap();
        assert_eq!(bare.to_string(), "[::1]:720");
    }

    #[test]
    fn what_is_no_route_is_refused() {
        let many = |count: usize| (0..count).map(|n| format!("a{n}:1,")).collect::<String>();
        let too_many = many(ADDRESSES_MAX + 1);
        for text in [
            "",
            "a",
            "a:",
            ":720",
            "a:0",
            "a:65536",
            "a:720,",
            "a b:720",
            "a\r\nb:720",
            "[::1:720",
            "::g:720",
            "user@a:720",
            "a:720 via ",
            "a:720 via ftp://p:1",
            "a:720 via https://p:1",
            "a:720 via http://p:1/path",
            "a:720 via http://p:x",
            too_many.trim_end_matches(','),
            &"a".repeat(ADDRESS_LEN_MAX),
        ] {
            assert!(Route::parse(text).is_err(), "{text}");
        }
        assert!(Route::parse(many(ADDRESSES_MAX).trim_end_matches(',')).is_ok());
        assert!(Route::parse(&format!("{}:1", "a".repeat(HOST_LEN_MAX))).is_ok());
        assert!(Route::parse(&format!("{}:1", "a".repeat(HOST_LEN_MAX + 1))).is_err());
    }

    #[test]
    fn a_proxy_is_a_url_and_never_shows_its_password() {
        let parsed = |text: &str| Proxy::parse(text).unwrap();
        assert_eq!(parsed("proxy:3128"), parsed("http://proxy:3128/"));
        assert_eq!(parsed("http://proxy").address.port, 80);
        assert_eq!(parsed("SOCKS5H://[::1]").address.port, 1080);
        let proxy = parsed("http://us%65r:p%40ss%3a@proxy:3128");
        assert_eq!(proxy.user.as_deref(), Some("user"));
        assert_eq!(proxy.password.as_ref().unwrap().expose(), "p@ss:");
        assert_eq!(proxy.to_string(), "http://user@proxy:3128");
        assert!(!format!("{proxy:?}").contains("p@ss"));
        let long = |len: usize| format!("http://u:{}@proxy:1", "x".repeat(len));
        assert!(Proxy::parse(&long(CREDENTIAL_LEN_MAX)).is_ok());
        for wrong in [
            long(CREDENTIAL_LEN_MAX + 1),
            "http://u:secret%0d@proxy:1".into(),
            "http://u%3av:secret@proxy:1".into(),
            "http://:secret@proxy:1".into(),
            "http://u:secret%4@proxy:1".into(),
            "http://u:secret@proxy:1:2".into(),
            "secret://u:secret@proxy:1".into(),
        ] {
            let error = Proxy::parse(&wrong).unwrap_err().to_string();
            assert!(!error.contains("u:"), "{error}");
        }
    }
}
