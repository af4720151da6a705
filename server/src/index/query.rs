//! What a person typed into the search bar.
//!
//! ```text
//! word            a whole word, in any case        "two words"     a phrase
//! prefix*         words that begin so              -word           not this word
//! agent:NAME      of this agent                    stream:TEXT     of streams whose name holds TEXT
//! ```
//!
//! Everything must match. Quotes also go around values: `stream:"/var/log/app one.log"`.

use anyhow::{Result, bail};
use regex::bytes::{Regex, RegexBuilder};

use super::filter::{is_token_byte, tokens};

/// A parsed query.
#[derive(Debug, Default)]
pub struct Query {
    pub(crate) terms: Vec<Term>,
    pub(crate) agents: Vec<String>,
    pub(crate) streams: Vec<String>,
    /// Collection time, Unix µs, first included and last excluded.
    pub(crate) from_us: Option<u64>,
    pub(crate) to_us: Option<u64>,
}

/// One word or phrase.
#[derive(Debug)]
pub(crate) struct Term {
    pub(crate) negated: bool,
    pattern: Regex,
    starts_in_token: bool,
    ends_in_token: bool,
    /// Tokens that must be in a block for this to be in it.
    pub(crate) tokens: Vec<u64>,
}

impl Query {
    /// Reads what was typed.
    ///
    /// # Errors
    /// A quote is not closed, a term is empty, a field is negated, or there is too much of it.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > QUERY_LEN_MAX {
            bail!("the query is longer than {QUERY_LEN_MAX} bytes");
        }
        let mut query = Self::default();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let (negated, after) = match rest.strip_prefix('-') {
                Some(after) if !after.starts_with(char::is_whitespace) && !after.is_empty() => {
                    (true, after)
                }
                _ => (false, rest),
            };
            let field = ["agent:", "stream:"]
                .into_iter()
                .find(|field| after.starts_with(field));
            let value_text =
                field.map_or(after, |field| after.strip_prefix(field).unwrap_or(after));
            let (value, quoted, remaining) = word(value_text)?;
            match field {
                Some(_) if negated => bail!("a field cannot be negated"),
                Some("agent:") => query.agents.push(value.to_owned()),
                Some(_) => query.streams.push(value.to_owned()),
                None => query.terms.push(Term::new(value, quoted, negated)?),
            }
            rest = remaining.trim_start();
        }
        if query.terms.len() > TERMS_MAX {
            bail!("the query has more than {TERMS_MAX} terms");
        }
        Ok(query)
    }

    /// Whether entries need not be read to answer how many there are.
    pub(crate) fn is_everything(&self) -> bool {
        self.terms.is_empty() && self.from_us.is_none() && self.to_us.is_none()
    }

    /// Whether a line matches every term.
    #[must_use]
    pub fn matches(&self, line: &[u8]) -> bool {
        self.terms
            .iter()
            .all(|term| term.is_in(line) != term.negated)
    }

    /// The tokens a block must hold.
    #[must_use]
    pub fn tokens(&self) -> Vec<u64> {
        let wanted = self.terms.iter().filter(|term| !term.negated);
        wanted
            .flat_map(|term| term.tokens.iter().copied())
            .collect()
    }
}

impl Term {
    fn new(text: &str, quoted: bool, negated: bool) -> Result<Self> {
        let (text, prefix) = match text.strip_suffix('*') {
            Some(text) if !quoted => (text, true),
            _ => (text, false),
        };
        if text.is_empty() {
            bail!("a term of the query is empty");
        }
        let pattern = RegexBuilder::new(&regex::escape(text))
            .case_insensitive(true)
            .unicode(false)
            .build()?;
        let bytes = text.as_bytes();
        let ends_in_token = !prefix && bytes.last().is_some_and(|&byte| is_token_byte(byte));
        // The last word of a prefix is only begun.
        let begun = prefix && bytes.last().is_some_and(|&byte| is_token_byte(byte));
        let wanted = tokens(bytes).into_iter();
        let wanted = wanted.filter(|(_, end)| !(begun && *end == bytes.len()));
        let wanted = wanted.map(|(hash, _)| hash).collect();
        Ok(Self {
            negated,
            pattern,
            starts_in_token: bytes.first().is_some_and(|&byte| is_token_byte(byte)),
            ends_in_token,
            tokens: wanted,
        })
    }

    /// Finds the next match at or after `from`: whole words only.
    pub(crate) fn find_at(&self, text: &[u8], from: usize) -> Option<usize> {
        let mut from = from;
        loop {
            let found = self.pattern.find_at(text, from)?;
            let before = found.start().checked_sub(1).and_then(|at| text.get(at));
            let after = text.get(found.end());
            let starts = !self.starts_in_token || !before.is_some_and(|&byte| is_token_byte(byte));
            let ends = !self.ends_in_token || !after.is_some_and(|&byte| is_token_byte(byte));
            if starts && ends {
                return Some(found.start());
            }
            from = found.start() + 1;
        }
    }

    fn is_in(&self, line: &[u8]) -> bool {
        self.find_at(line, 0).is_some()
    }
}

/// The next word or quoted text, and what follows it.
fn word(text: &str) -> Result<(&str, bool, &str)> {
    if let Some(inner) = text.strip_prefix('"') {
        let Some((value, rest)) = inner.split_once('"') else {
            bail!("a quote of the query is not closed");
        };
        return Ok((value, true, rest));
    }
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    let (value, rest) = text.split_at(end);
    Ok((value, false, rest))
}

const QUERY_LEN_MAX: usize = 4096;
const TERMS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_match_whole_and_in_any_case() {
        let line = b"Failed password for invalid user admin99 from 10.0.0.51 port 22";
        for (query, expected) in [
            ("failed", true),
            ("FAILED password", true),
            ("fail", false),
            ("fail*", true),
            ("10.0.0.5", false),
            ("10.0.0.51", true),
            ("\"password for\"", true),
            ("\"for password\"", false),
            ("failed -admin99", false),
            ("failed -root", true),
            ("", true),
        ] {
            assert_eq!(
                Query::parse(query).unwrap().matches(line),
                expected,
                "{query}"
            );
        }
    }

    #[test]
    fn fields_are_told_from_words() {
        let query = Query::parse("agent:web1 stream:\"/var/log/app one.log\" error").unwrap();
        assert_eq!(query.agents, ["web1"]);
        assert_eq!(query.streams, ["/var/log/app one.log"]);
        assert_eq!(query.terms.len(), 1);
        assert!(Query::parse("\"open").is_err());
        assert!(Query::parse("\"\"").is_err());
        assert!(Query::parse("*").is_err());
    }

    #[test]
    fn the_tokens_of_what_matches_are_in_its_filter() {
        let mut builder = super::super::filter::FilterBuilder::new();
        builder.add(b"Failed password from 10.0.0.51\n");
        let filter = builder.build();
        for query in ["fail*", "10.0.0.51", "\"failed PASSWORD\"", "password -x"] {
            let tokens = Query::parse(query).unwrap().tokens();
            assert!(super::super::filter::may_hold(&filter, &tokens), "{query}");
        }
    }
}
