//! The proxy that the environment names, as curl and Go read it: `HTTPS_PROXY`, then `ALL_PROXY`, each in small letters
//! first, and `NO_PROXY` for what is reached without.

use std::net::IpAddr;

use scrinium_protocol::route::{Address, Proxy};
use tracing::warn;

/// The proxy that leads to `address`, and the variable that names it.
pub(super) fn proxy_for(
    address: &Address,
    get: impl Fn(&str) -> Option<String>,
) -> Option<(Proxy, &'static str)> {
    let get = |names: [&'static str; 2]| {
        let mut values = names
            .into_iter()
            .filter_map(|name| get(name).map(|value| (name, value)));
        values.find(|(_, value)| !value.trim().is_empty())
    };
    let (name, url) = get(HTTPS).or_else(|| get(ALL))?;
    if is_local(&address.host) || get(NONE).is_some_and(|(_, list)| is_excepted(address, &list)) {
        return None;
    }
    match Proxy::parse(&url) {
        Ok(proxy) => Some((proxy, name)),
        Err(error) => {
            // It is not ours, and others may live with it.
            warn!(variable = name, %error, "the proxy of the environment is not used");
            None
        }
    }
}

/// What never is elsewhere: as Go has it.
fn is_local(host: &str) -> bool {
    let ip = host.parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.is_loopback())
}

/// `NO_PROXY`: `*`, names (with their subdomains), addresses, networks, each with a port or for all.
fn is_excepted(address: &Address, list: &str) -> bool {
    let words = list.split(|c: char| c == ',' || c.is_whitespace());
    let mut words = words.filter(|word| !word.is_empty());
    words.any(|word| word == "*" || matches_word(address, word))
}

fn matches_word(address: &Address, word: &str) -> bool {
    let host = address.host.trim_end_matches('.');
    if let Ok(ip) = host.parse::<IpAddr>() {
        if let Some((network, len)) = word.split_once('/') {
            let network = network.parse().ok();
            let len = len.parse().ok();
            return network
                .zip(len)
                .is_some_and(|(network, len)| is_within(ip, network, len));
        }
        if let Ok(other) = word.trim_matches(['[', ']']).parse::<IpAddr>() {
            return ip == other;
        }
    }
    // With a port, unless it is part of an address.
    let (name, port) = match word.rsplit_once(':') {
        Some((name, port)) => match port.parse::<u16>() {
            Ok(port) => (name, Some(port)),
            Err(_) => (word, None),
        },
        None => (word, None),
    };
    if port.is_some_and(|port| port != address.port) {
        return false;
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        let other = name.trim_matches(['[', ']']).parse::<IpAddr>();
        return other.is_ok_and(|other| other == ip);
    }
    let name = name.trim_start_matches("*.").trim_matches('.');
    let host = host.to_ascii_lowercase();
    let name = name.to_ascii_lowercase();
    let above = host.strip_suffix(&name);
    !name.is_empty() && above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
}

/// Whether the first `len` bits are those of the network.
fn is_within(ip: IpAddr, network: IpAddr, len: u32) -> bool {
    let (ip, network, bits) = match (ip, network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) => {
            (u128::from(ip.to_bits()), u128::from(network.to_bits()), 32)
        }
        (IpAddr::V6(ip), IpAddr::V6(network)) => (ip.to_bits(), network.to_bits(), 128),
        _ => return false,
    };
    len <= bits && (ip ^ network).checked_shr(bits - len).unwrap_or(0) == 0
}

const HTTPS: [&str; 2] = ["https_proxy", "HTTPS_PROXY"];
const ALL: [&str; 2] = ["all_proxy", "ALL_PROXY"];
const NONE: [&str; 2] = ["no_proxy", "NO_PROXY"];

#[cfg(test)]
mod tests {
    use super::*;

    fn found(address: &str, variables: &[(&str, &str)]) -> Option<(String, &'static str)> {
        let address = Address::parse(address).unwrap();
        let get = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        proxy_for(&address, get).map(|(proxy, name)| (proxy.to_string(), name))
    }

    #[test]
    fn the_variables_count_in_their_order() {
        let all = [
            ("ALL_PROXY", "socks5://all:1080"),
            ("HTTPS_PROXY", "http://upper:3128"),
            ("https_proxy", "lower:3128"),
        ];
        let of = |variables: &[(&str, &str)]| found("logs.example.net:720", variables);
        assert_eq!(of(&all), Some(("http://lower:3128".into(), "https_proxy")));
        assert_eq!(
            of(&all[..2]),
            Some(("http://upper:3128".into(), "HTTPS_PROXY"))
        );
        assert_eq!(
            of(&all[..1]),
            Some(("socks5://all:1080".into(), "ALL_PROXY"))
        );
        // What is empty names none, HTTP_PROXY is for http://, and what cannot be used is not used.
        assert_eq!(of(&[("https_proxy", ""), all[0]]).unwrap().1, "ALL_PROXY");
        assert_eq!(of(&[("HTTP_PROXY", "http://p:1")]), None);
        assert_eq!(of(&[("HTTPS_PROXY", "ftp://p:1")]), None);
        assert_eq!(found("localhost:720", &all), None);
        assert_eq!(found("127.9.9.9:720", &all), None);
        assert_eq!(found("[::1]:720", &all), None);
    }

    #[test]
    fn no_proxy_excepts_names_addresses_and_networks() {
        for (address, list, is_excepted) in [
            ("logs.example.net:720", "*", true),
            ("logs.example.net:720", "example.net", true),
            ("logs.example.net:720", ".example.net", true),
            ("logs.example.net:720", "*.example.net", true),
            ("logs.example.net:720", "EXAMPLE.net.", true),
            ("logs.example.net.:720", "a b,logs.example.net", true),
            ("logs.example.net:720", "ample.net", false),
            ("example.net:720", ".example.net", true),
            ("logs.example.net:720", "example.net:720", true),
            ("logs.example.net:720", "example.net:443", false),
            ("logs.example.net:720", ".", false),
            ("10.1.2.3:720", "10.0.0.0/8", true),
            ("10.1.2.3:720", "0.0.0.0/0", true),
            ("11.1.2.3:720", "10.0.0.0/8", false),
            ("10.1.2.3:720", "10.0.0.0/33", false),
            ("10.1.2.3:720", "10.1.2.3:720", true),
            ("10.1.2.3:720", "3", false),
            ("[2001:db8::1]:720", "2001:db8::/32", true),
            ("[2001:db8::1]:720", "2001:db8::1", true),
            ("[2001:db8::1]:720", "[2001:db8::1]:720", true),
            ("[2001:db9::1]:720", "2001:db8::/32", false),
            ("[2001:db9::1]:720", "::/0", true),
            ("logs.example.net:720", "", false),
        ] {
            let with = [("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", list)];
            assert_eq!(
                found(address, &with).is_none(),
                is_excepted,
                "{address} {list}"
            );
        }
    }
}
