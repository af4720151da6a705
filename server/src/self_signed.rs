//! The certificate that the console has until an administrator gives it another one.
//!
//! ```text
//! start, and every few hours ─▶ does it end, was it another version's, is a name missing? ─▶ made anew, same key
//! ```
//!
//! Invariants:
//! 1. It names this machine as browsers may call it, is for servers alone, and lives 397 days: browsers take no longer.
//! 2. Its key stays, so that whoever noted the key finds it again. The certificate is durable before it is shown.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use data_encoding::HEXUPPER;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SerialNumber, date_time_ymd,
};
use scrinium_protocol::kdf::sha256;
use scrinium_segment::random;

use crate::catalogue::records::ServerKeys;
use crate::clock::Day;

/// What the console is called: this machine's names, then the hosts of `addresses`.
pub(crate) fn names<'a>(
    host: Option<&str>,
    addresses: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    names_of(host, &hosts, addresses)
}

fn names_of<'a>(
    host: Option<&str>,
    hosts: &str,
    addresses: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let mut names = Vec::new();
    if let Some(host) = host {
        // The file says the name with its domain, when there is one.
        let lines = hosts.lines().filter_map(|line| line.split('#').next());
        let mut of_host =
            lines.filter(|line| line.split_whitespace().skip(1).any(|name| name == host));
        let full = of_host.find_map(|line| {
            let mut named = line.split_whitespace().skip(1);
            named.find(|name| name.starts_with(&format!("{host}.")))
        });
        names.extend(full.map(str::to_owned));
        names.push(host.to_owned());
        names.extend(host.split_once('.').map(|(short, _)| short.to_owned()));
    }
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    names.extend(addresses.filter_map(|address| {
        let (host, _) = address.rsplit_once(':')?;
        Some(host.trim_matches(['[', ']']).to_owned())
    }));
    let mut seen = BTreeSet::new();
    names.retain(|name| is_name(name) && seen.insert(name.clone()));
    names.truncate(NAMES_MAX);
    names
}

/// Whether a browser may call a server so.
fn is_name(name: &str) -> bool {
    if let Ok(address) = name.parse::<IpAddr>() {
        return !address.is_unspecified();
    }
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    (1..=253).contains(&name.len()) && name.chars().all(fine)
}

/// Why a new one has to be made, if one has.
pub(crate) fn is_due(keys: &ServerKeys, names: &[String], now_us: u64) -> Option<&'static str> {
    let (ends_us, now) = (keys.certificate_ends_us, Day::of(now_us));
    if keys.certificate.is_empty() {
        return Some("there is none yet");
    }
    if ends_us == 0 {
        return Some("the one before is of an earlier version");
    }
    if Day::of(ends_us) < now.plus(RENEWED_DAYS) {
        return Some("the one before ends soon");
    }
    if Day::of(ends_us) > now.plus(LIFE_DAYS) {
        return Some("the one before was made on another clock and is not valid yet");
    }
    let has = |name: &String| keys.certificate_names.contains(name);
    (!names.iter().all(has)).then_some("a name of this machine was not in the one before")
}

/// Makes a new one for `keys`, which keep their key if they have one.
pub(crate) fn renew(keys: &mut ServerKeys, names: &[String], now_us: u64) -> Result<()> {
    let key = if keys.certificate_key.is_empty() {
        KeyPair::generate()
    } else {
        KeyPair::from_pem(&keys.certificate_key)
    };
    let key = key.context("the key of the console's certificate")?;
    let mut params = CertificateParams::new(names.to_vec())?;
    let mut subject = DistinguishedName::new();
    let common = names.iter().find(|name| name.len() <= COMMON_NAME_LEN_MAX);
    subject.push(DnType::OrganizationName, "Scrinium console");
    subject.push(
        DnType::CommonName,
        common.map_or("localhost", String::as_str),
    );
    params.distinguished_name = subject;
    // A clock that is a little behind takes it, too.
    let begin = Day::of(now_us).before(1);
    let end = begin.plus(LIFE_DAYS);
    let (year, month, day) = date(begin)?;
    params.not_before = date_time_ymd(year, month, day);
    let (year, month, day) = date(end)?;
    params.not_after = date_time_ymd(year, month, day);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // Browsers refuse another certificate of the same issuer and number.
    let [first, rest @ ..] = random::<16>()?;
    let serial = [&[(first & 0x3f) | 0x40][..], &rest].concat();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let made = params
        .self_signed(&key)
        .context("making the console's certificate")?;
    keys.certificate = made.pem();
    keys.certificate_key = key.serialize_pem();
    keys.certificate_ends_us = end.begin_us();
    keys.certificate_names = names.to_vec();
    Ok(())
}

/// The fingerprint by which people compare it: SHA-256 of its DER, as browsers show it.
pub(crate) fn fingerprint(der: &[u8]) -> String {
    let digest = HEXUPPER.encode(&sha256(&[der]));
    let pairs = digest.as_bytes().chunks(2);
    let pairs: Vec<&str> = pairs.filter_map(|pair| str::from_utf8(pair).ok()).collect();
    pairs.join(":")
}

/// Year, month and day.
fn date(day: Day) -> Result<(i32, u8, u8)> {
    let seconds = i64::try_from(day.begin_us() / 1_000_000)?;
    let time = jiff::Timestamp::from_second(seconds)?;
    let date = time.to_zoned(jiff::tz::TimeZone::UTC).date();
    Ok((
        i32::from(date.year()),
        u8::try_from(date.month())?,
        u8::try_from(date.day())?,
    ))
}

/// From its first to its last day.
const LIFE_DAYS: u32 = 397;
/// Made anew so many days before its end: whoever installed it somewhere has a month.
const RENEWED_DAYS: u32 = 30;
const NAMES_MAX: usize = 32;
/// `ub-common-name` of RFC 5280, appendix A.1.
const COMMON_NAME_LEN_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use scrinium_protocol::identity::AgentId;
    use scrinium_protocol::secret::Secret;

    use super::*;
    use crate::catalogue::records::StoredSecret;
    use crate::clock::DAY_US;

    #[test]
    fn it_has_the_names_that_browsers_use() {
        let hosts = "127.0.0.1 localhost\n192.0.2.5 logs.example.net logs # ours\n";
        let addresses = [
            "0.0.0.0:8443",
            "192.0.2.5:8443",
            "[2001:db8::1]:8443",
            "a b:1",
            "log.example.org:720",
        ];
        let names = names_of(Some("logs"), hosts, addresses.into_iter());
        assert_eq!(
            names,
            [
                "logs.example.net",
                "logs",
                "localhost",
                "127.0.0.1",
                "::1",
                "192.0.2.5",
                "2001:db8::1",
                "log.example.org"
            ]
        );
        let names = names_of(Some("logs.example.net"), "", std::iter::empty());
        assert_eq!(names.first().unwrap(), "logs.example.net");
        assert!(names.contains(&"logs".to_owned()));
    }

    #[test]
    fn it_is_made_anew_before_it_ends_and_keeps_its_key() {
        let mut keys = keys();
        let names = ["logs".to_owned(), "127.0.0.1".to_owned()];
        let now_us = 20_000 * DAY_US;
        assert_eq!(is_due(&keys, &names, now_us), Some("there is none yet"));
        renew(&mut keys, &names, now_us).unwrap();
        assert_eq!(is_due(&keys, &names, now_us), None);
        assert_eq!(keys.certificate_ends_us, now_us + 396 * DAY_US);
        let (first, key) = (keys.certificate.clone(), keys.certificate_key.clone());
        assert_eq!(is_due(&keys, &names, now_us + 366 * DAY_US), None);
        let late_us = now_us + 367 * DAY_US;
        assert_eq!(
            is_due(&keys, &names, late_us),
            Some("the one before ends soon")
        );
        renew(&mut keys, &names, late_us).unwrap();
        assert!(keys.certificate != first && keys.certificate_key == key);
        assert!(is_due(&keys, &["logs2".to_owned()], late_us).is_some());
        assert!(
            is_due(&keys, &names, now_us)
                .unwrap()
                .contains("another clock")
        );
    }

    fn keys() -> ServerKeys {
        ServerKeys {
            noise: StoredSecret(Secret::new([1; 32])),
            signing: StoredSecret(Secret::new([2; 32])),
            agent: AgentId([3; 16]),
            certificate: String::new(),
            certificate_key: String::new(),
            certificate_ends_us: 0,
            certificate_names: Vec::new(),
        }
    }
}
