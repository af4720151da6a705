//! What a machine's own configuration says of the way to the server.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use scrinium_protocol::route::{Address, Password, Proxy, Route};
use zeroize::Zeroizing;

use super::raw;

/// How the server is to be reached, as far as this machine's administrator says it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Reach {
    /// In their order; none for those of the token.
    pub(crate) addresses: Vec<Address>,
    /// `None` for what the token or the environment names.
    pub(crate) proxy: Option<ProxyChoice>,
    /// Holds the password that goes with the name of the proxy's user, whoever named the proxy.
    pub(crate) password_file: Option<PathBuf>,
    /// After this time away from the first address it is looked for again.
    pub(crate) return_after: Duration,
}

/// A proxy, or the word that there is to be none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum ProxyChoice {
    Direct,
    Through(Proxy),
}

impl Reach {
    pub(super) fn new(raw: &raw::Server) -> Result<Self> {
        let texts: Vec<&str> = match &raw.addresses {
            None => Vec::new(),
            Some(raw::OneOrMany::One(text)) => text.split(',').collect(),
            Some(raw::OneOrMany::Many(texts)) => texts.iter().map(String::as_str).collect(),
        };
        let addresses = match raw.addresses {
            None => Vec::new(),
            Some(_) => Address::parse_all(texts).context("server.addresses")?,
        };
        let proxy = match raw.proxy.as_deref() {
            None => None,
            Some(DIRECT) => Some(ProxyChoice::Direct),
            Some(text) => Some(ProxyChoice::Through(
                Proxy::parse(text).context("server.proxy")?,
            )),
        };
        if let Some(ProxyChoice::Through(Proxy { user: None, .. })) = &proxy
            && raw.proxy_password_file.is_some()
        {
            bail!("server.proxy_password_file needs a user in server.proxy: http://USER@HOST:PORT");
        }
        if let Some(text) = &raw.integrity_only {
            let route = Route::parse(text).context("server.integrity_only")?;
            if route.proxy.is_some() {
                bail!("server.integrity_only: the proxy belongs into server.proxy");
            }
        }
        let return_after = raw.return_after_s.map_or(RETURN_AFTER, Duration::from_secs);
        if !(RETURN_AFTER_MIN..=RETURN_AFTER_MAX).contains(&return_after) {
            bail!("server.return_after_s must be between 5 and 86400");
        }
        Ok(Self {
            addresses,
            proxy,
            password_file: raw.proxy_password_file.clone(),
            return_after,
        })
    }
}

/// The password that the file of `server.proxy_password_file` holds: its first line.
///
/// # Errors
/// The file cannot be read, or holds no password.
pub(crate) fn read_password(path: &Path) -> Result<Password> {
    let named = || format!("server.proxy_password_file {}", path.display());
    let mut text = Zeroizing::new(String::new());
    let file = std::fs::File::open(path).with_context(named)?;
    let mut file = file.take(PASSWORD_FILE_LEN_MAX);
    file.read_to_string(&mut text).with_context(named)?;
    let line = text.lines().next().unwrap_or_default();
    let password = Password::new(line.to_owned()).with_context(named)?;
    Ok(password)
}

/// What `server.proxy` says to go without one, whatever token and environment name.
const DIRECT: &str = "none";
/// Long enough to be no flapping, short enough that a machine at the second site is back before anybody asks.
const RETURN_AFTER: Duration = Duration::from_secs(600);
const RETURN_AFTER_MIN: Duration = Duration::from_secs(5);
const RETURN_AFTER_MAX: Duration = Duration::from_secs(86_400);
/// Bytes read of a file that is said to hold a password.
const PASSWORD_FILE_LEN_MAX: u64 = 4 << 10;

#[cfg(test)]
mod tests {
    use super::super::Config;

    #[test]
    fn what_is_wrong_about_the_way_is_named_without_its_password() {
        for (text, name) in [
            ("addresses = []", "server.addresses"),
            ("addresses = ['here']", "server.addresses"),
            ("addresses = 'a:1,b'", "server.addresses"),
            ("proxy = 'http://u:secret@'", "server.proxy"),
            ("proxy = 'https://p:1'", "server.proxy"),
            (
                "proxy_password_file = '/x'\nproxy = 'http://p:1'",
                "server.proxy",
            ),
            ("integrity_only = 'here'", "server.integrity_only"),
            ("integrity_only = 'a:1 via p:1'", "server.integrity_only"),
            ("return_after_s = 4", "server.return_after_s"),
            ("return_after_s = 86401", "server.return_after_s"),
        ] {
            let error = Config::parse(&format!("[server]\n{text}")).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(name) && !error.contains("secret"), "{error}");
        }
        for central in [
            "addresses = 'a:1'",
            "proxy = 'p:1'",
            "proxy_password_file = '/x'",
            "return_after_s = 60",
        ] {
            let error = Config::parse_central(&format!("[server]\n{central}")).unwrap_err();
            assert!(format!("{error:#}").contains("on the machine alone"));
        }
    }
}
