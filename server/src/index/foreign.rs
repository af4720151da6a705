//! What a person types who knows another product: operators, fields and patterns that a search does not have.
//!
//! As words they would be looked for as they stand and not be found, and who asked would believe that nothing happened.
//! So they are refused, with what there is instead. In quotes everything is text.

use std::net::IpAddr;

use anyhow::Result;

use crate::said::{Said, said};

/// Refuses a word that is not meant as one.
pub(super) fn check(word: &str) -> Result<()> {
    match meant(word) {
        Some(said) => Err(said.into()),
        None => Ok(()),
    }
}

/// What to answer to a word that is none.
fn meant(word: &str) -> Option<Said> {
    match word {
        "OR" | "AND" | "NOT" | "&&" | "||" | "&" | "|" => {
            return Some(said!("query.operator", word));
        }
        _ => {}
    }
    if word.starts_with('(') || (word.ends_with(')') && !word.contains('(')) {
        return Some(said!("query.parenthesis", word));
    }
    if word.starts_with('!') && word.len() > 1 {
        return Some(said!("query.operator", "!"));
    }
    if is_pattern(word) {
        return Some(said!("query.regex", word));
    }
    if is_network(word) {
        return Some(said!("query.network", word));
    }
    let inner = word.strip_suffix('*').unwrap_or(word);
    if !inner.is_empty() && inner.contains('*') {
        return Some(said!("query.star", word));
    }
    if is_comparison(word) {
        return Some(said!("query.comparison", word));
    }
    field(word).map(|field| said!("query.field", field, word))
}

/// `/text/`, as others write regular expressions.
fn is_pattern(word: &str) -> bool {
    let inner = word
        .strip_prefix('/')
        .and_then(|word| word.strip_suffix('/'));
    inner.is_some_and(|inner| !inner.is_empty() && !inner.contains('/'))
}

/// An address and the length of a prefix.
fn is_network(word: &str) -> bool {
    let Some((address, len)) = word.split_once('/') else {
        return false;
    };
    address.parse::<IpAddr>().is_ok() && len.parse::<u8>().is_ok_and(|len| len <= 128)
}

/// `name>=value` and the like. An equals sign alone is in very many lines, and is text.
fn is_comparison(word: &str) -> bool {
    let Some(at) = word.find(['<', '>', '!', '=']) else {
        return false;
    };
    let (name, rest) = word.split_at(at);
    let signs = [">=", "<=", "!=", "==", ">", "<"];
    let value = signs.iter().find_map(|sign| rest.strip_prefix(sign));
    // `a->b` is an arrow.
    !name.ends_with('-')
        && is_name(name)
        && value.is_some_and(|value| value.starts_with(|c: char| c.is_alphanumeric() || c == '"'))
}

/// The field, if a word is `field:value`. Addresses, times, URLs, paths of Windows, names of C++, and a colon at the end
/// are text.
fn field(word: &str) -> Option<&str> {
    let (name, value) = word.split_once(':')?;
    let is_text = value.is_empty()
        || value.starts_with(':')
        || value.starts_with("//")
        || name.len() == 1
        || mac(word).is_some()
        || word.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    (!is_text && is_name(name)).then_some(name)
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '@')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-.@".contains(c))
}

/// The twelve digits of a MAC address that is written in pairs.
pub(super) fn mac(word: &str) -> Option<String> {
    let separator = word.chars().nth(2).filter(|c| matches!(c, ':' | '-'))?;
    let pairs: Vec<&str> = word.split(separator).collect();
    let is_pair =
        |pair: &&str| pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_hexdigit());
    (pairs.len() == 6 && pairs.iter().all(is_pair)).then(|| pairs.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_products_understand_is_refused_with_what_there_is() {
        for (word, holds) in [
            ("OR", "OR"),
            ("AND", "AND"),
            ("NOT", "-word"),
            ("||", "||"),
            ("|", "|"),
            ("!alice", "-word"),
            ("(error", "(error"),
            ("warning)", "warning)"),
            ("*refused", "prefix*"),
            ("conn*ion", "prefix*"),
            ("**", "prefix*"),
            ("/re/", "/re/"),
            ("/conn.*ion/", "/conn.*ion/"),
            ("192.168.10.0/24", "192.168.10.0/24"),
            ("fe80::/10", "fe80::/10"),
            ("status>=500", "status>=500"),
            ("bytes<10", "bytes<10"),
            ("user!=bob", "user!=bob"),
            ("user:alice", "agent:NAME"),
            ("host:web1", "stream:TEXT"),
            ("status:500", "status:500"),
            ("@source.ip:10.0.0.1", "@source.ip"),
        ] {
            let error = check(word).unwrap_err().to_string();
            assert!(error.contains(holds), "{word}: {error}");
        }
    }

    #[test]
    fn what_stands_in_lines_is_text() {
        for word in [
            "or",
            "and",
            "fail*",
            "error:",
            "sshd[123]:",
            "10.0.0.5:443",
            "12:30:45",
            "2026-11-27T18:07:07",
            "https://example.org/a/b?c=d",
            "C:\\Windows",
            "std::vector",
            "fe80::1",
            "[fe80::1]",
            "00:18:0a:12:34:56",
            "ac:de:48:00:11:22",
            "/var/log/auth.log",
            "/var/log/",
            "key=value",
            "a->b",
            "<134>",
            "main()",
            "sshd(pam_unix)",
            "!",
            "100%",
        ] {
            assert_eq!(meant(word), None, "{word}");
        }
    }
}
