//! Whose keys are trusted: a file that did not come with the package.
//!
//! ```text
//! # a comment
//! e0b1 4f7a … 90c2 web1       this key is that of the agent web1, and web1 has no other
//! 77d0…02                      this key is trusted, whosever it is
//! 11aa…ff server               this is the server's          # a comment too
//! ```
//!
//! A key may be bound to several names, and a name have several keys (an agent that was enrolled again).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use scrinium_protocol::shown;

/// What is trusted and did not come with the package.
#[derive(Debug, Default)]
pub struct Trust {
    /// Public keys of agents and servers.
    pub keys: Option<TrustedKeys>,
    /// Certificates of time-stamp authorities, PEM.
    pub authorities: Option<Vec<u8>>,
}

/// Keys, each with the names it may have.
#[derive(Debug, Default)]
pub struct TrustedKeys {
    /// Those that may have any.
    any: BTreeSet<[u8; 32]>,
    bound: BTreeSet<([u8; 32], String)>,
}

impl TrustedKeys {
    /// Reads the file.
    ///
    /// # Errors
    /// A line is none of the above, or no line has a key.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let text = str::from_utf8(bytes).context("the file is not UTF-8 text")?;
        let mut keys = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            keys.line(line)
                .with_context(|| format!("line {number}: a key is 64 hexadecimal digits, then maybe the name it belongs to"))?;
        }
        ensure!(
            !keys.any.is_empty() || !keys.bound.is_empty(),
            "the file holds no key"
        );
        Ok(keys)
    }

    fn line(&mut self, line: &str) -> Option<()> {
        let mut rest = line.trim();
        while !rest.is_empty() && !rest.starts_with('#') {
            let (key, behind) = shown::split_key(rest)?;
            rest = behind;
            if rest.is_empty() || rest.starts_with('#') || shown::split_key(rest).is_some() {
                // As 0.1.0 had it: keys, with spaces between them.
                self.any.insert(key);
            } else {
                let name = rest.split_once(" #").map_or(rest, |(name, _)| name);
                self.bound.insert((key, name.trim_end().to_owned()));
                return Some(());
            }
        }
        Some(())
    }

    /// Whether a key may be that of `name`; else what is wrong. `whose` says who that is, in a sentence.
    pub(crate) fn judge(&self, key: &[u8; 32], name: &str, whose: &str) -> Result<(), String> {
        if self.bound.contains(&(*key, name.to_owned())) {
            return Ok(());
        }
        let shown = shown::key(key);
        if self.bound.iter().any(|(_, bound)| bound == name) {
            return Err(format!(
                "the key of {whose} in the package is {shown}: the trusted one is another"
            ));
        }
        if self.any.contains(key) {
            return Ok(());
        }
        let of_key = self.bound.iter().filter(|(bound, _)| bound == key);
        let names: Vec<String> = of_key.map(|(_, name)| shown::name(name)).collect();
        if names.is_empty() {
            return Err(format!(
                "the key of {whose} is not among the trusted ones: {shown}"
            ));
        }
        Err(format!(
            "the key {shown} is that of {}, and the package says it is that of {whose}",
            names.join(", ")
        ))
    }
}

/// Who signed what, as far as that is known.
pub(crate) struct Signers {
    trusted: BTreeMap<([u8; 32], String), bool>,
}

impl Signers {
    /// Judges keys by name; says what is wrong.
    pub(crate) fn new(
        trust: Option<&TrustedKeys>,
        keys: impl Iterator<Item = ([u8; 32], String)>,
        server: &[u8; 32],
        problems: &mut Vec<String>,
    ) -> Self {
        let mut trusted = BTreeMap::new();
        for (key, name) in keys {
            let whose = whose(&key, &name, server);
            let judged = trust.map(|trust| trust.judge(&key, &name, &whose));
            if let Some(Err(problem)) = &judged {
                problems.push(problem.clone());
            }
            trusted.insert((key, name), matches!(judged, Some(Ok(()))));
        }
        Self { trusted }
    }

    pub(crate) fn is_trusted(&self, key: &[u8; 32], name: &str) -> bool {
        let known = self.trusted.get(&(*key, name.to_owned()));
        known.copied().unwrap_or(false)
    }

    /// Keys, the names the package gives them, and whether those are believed.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8; 32], &str, bool)> {
        let all = self.trusted.iter();
        all.map(|((key, name), trusted)| (key, &**name, *trusted))
    }
}

/// How a holder of a key is called in a sentence.
pub(crate) fn whose(key: &[u8; 32], name: &str, server: &[u8; 32]) -> String {
    if key == server && name == SERVER {
        "the server".to_owned()
    } else {
        format!("agent {}", shown::name(name))
    }
}

/// What the server is called in a trust file, and in its own streams.
pub(crate) const SERVER: &str = "server";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TrustedKeys> {
        TrustedKeys::parse(text.as_bytes())
    }

    fn hex(byte: u8) -> String {
        format!("{byte:02x}").repeat(32)
    }

    #[test]
    fn a_key_with_a_name_is_that_names_and_a_bare_one_anybodys() {
        let (a, b, c) = ([0xaa; 32], [0xbb; 32], [0xcc; 32]);
        let text = format!(
            "\u{feff}# keys\r\n\n{} web1  # in the cellar\r\n  {} # whoever\n{} my agent\n",
            shown::key(&a),
            hex(0xbb),
            hex(0xcc)
        );
        let keys = parse(&text).unwrap();
        let judge = |key: &[u8; 32], name: &str| keys.judge(key, name, name);
        assert_eq!(judge(&a, "web1"), Ok(()));
        assert_eq!(judge(&b, "anybody"), Ok(()));
        assert_eq!(judge(&c, "my agent"), Ok(()));
        // Names are bound both ways.
        assert!(judge(&a, "web2").unwrap_err().contains("is that of web1"));
        assert!(
            judge(&b, "web1")
                .unwrap_err()
                .contains("the trusted one is another")
        );
        assert!(
            judge(&[1; 32], "web9")
                .unwrap_err()
                .contains("not among the trusted")
        );
        // As 0.1.0 had it.
        let bare = parse(&format!("{} {}\n", hex(0xaa), hex(0xbb))).unwrap();
        assert!(bare.judge(&a, "x", "x").is_ok() && bare.judge(&b, "x", "x").is_ok());
    }

    #[test]
    fn what_is_no_file_of_keys_is_refused_and_the_line_is_named() {
        for (text, reason) in [
            ("", "no key"),
            ("# nothing\n\n", "no key"),
            ("web1\n", "line 1"),
            (&*format!("{}\nabcd web1\n", hex(1)), "line 2"),
            (&*format!("{}0\n", hex(1)), "line 1"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert!(TrustedKeys::parse(b"\xff\xfe").is_err());
    }
}
