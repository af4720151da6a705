//! What a person typed into the search bar.
//!
//! ```text
//! word            a whole word, in any case        "two words"     a phrase
//! prefix*         words that begin so              -word           not this word
//! agent:NAME      of this agent                    stream:TEXT     of streams whose name holds TEXT
//! ```
//!
//! Everything must match. Quotes also go around values: `stream:"/var/log/app one.log"`. A word of twelve hexadecimal
//! digits in pairs is a MAC address, and is found in every notation.
//!
//! What other products understand and this does not is refused, with what there is instead: see `foreign`.

use std::collections::BTreeSet;

use anyhow::Result;
use regex::bytes::{Regex, RegexBuilder};

use super::filter::{is_token_byte, tokens};
use super::foreign;
use crate::bounds::QUERY_LEN_MAX;
use crate::said::said;
use crate::time::spans::Spans;

/// A parsed query.
#[derive(Debug, Default)]
pub struct Query {
    pub(crate) terms: Vec<Term>,
    pub(crate) agents: Vec<String>,
    pub(crate) streams: Vec<String>,
    /// Collection time, Unix µs, first included and last excluded.
    pub(crate) from_us: Option<u64>,
    pub(crate) to_us: Option<u64>,
    /// What was received while server time was behind: a collection time is compared with the true time of receipt.
    pub(crate) receipts: Spans,
}

/// One word or phrase.
#[derive(Debug)]
pub(crate) struct Term {
    pub(crate) negated: bool,
    /// The text, and what must follow it for its last word to end.
    pattern: Regex,
    /// The same with what must precede it. It decides in one pass where the other would begin anew very often.
    bounded: Option<Regex>,
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
            return Err(said!("query.long", QUERY_LEN_MAX).into());
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
            let word = word(value_text)?;
            match field {
                Some(field) if negated => return Err(said!("query.negated", field).into()),
                Some(field) => query.add_field(field, &word)?,
                None => {
                    if !word.quoted {
                        foreign::check(&word.text)?;
                    }
                    query
                        .terms
                        .push(Term::new(&word.text, word.quoted, negated)?);
                }
            }
            rest = word.rest.trim_start();
        }
        if query.terms.len() > TERMS_MAX {
            return Err(said!("query.terms", TERMS_MAX).into());
        }
        Ok(query)
    }

    fn add_field(&mut self, field: &str, word: &Word<'_>) -> Result<()> {
        if word.text.is_empty() {
            return Err(said!("query.empty_field", field).into());
        }
        if !word.quoted && word.text.contains('*') {
            return Err(said!("query.field_star", field).into());
        }
        let is_agent = field == "agent:";
        if is_agent && !self.agents.is_empty() {
            return Err(said!("query.agents").into());
        }
        let values = if is_agent {
            &mut self.agents
        } else {
            &mut self.streams
        };
        values.push(word.text.clone());
        Ok(())
    }

    /// Refuses agents that are none of `known`: nothing of theirs would be found, and nobody would hear why.
    ///
    /// # Errors
    /// One is not known; the error names those that are.
    pub(crate) fn check_agents(&self, known: &BTreeSet<String>) -> Result<()> {
        let is_known = |wanted: &str| known.iter().any(|name| name.eq_ignore_ascii_case(wanted));
        let Some(wanted) = self.agents.iter().find(|wanted| !is_known(wanted)) else {
            return Ok(());
        };
        let named: Vec<&str> = known.iter().map(String::as_str).take(NAMED_MAX).collect();
        let (named, more) = (named.join(", "), known.len().saturating_sub(NAMED_MAX));
        Err(match more {
            0 => said!("query.agent", wanted, named),
            more => said!("query.agent_of_many", wanted, named, more),
        }
        .into())
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
            return Err(said!("query.empty").into());
        }
        if text.len() > TERM_LEN_MAX {
            return Err(said!("query.term_long", text.len(), TERM_LEN_MAX).into());
        }
        if let Some(digits) = foreign::mac(text).filter(|_| !quoted && !prefix) {
            return Self::of_mac(&digits, negated);
        }
        let bytes = text.as_bytes();
        let starts_in_token = bytes.first().is_some_and(|&byte| is_token_byte(byte));
        let ends_in_token = !prefix && bytes.last().is_some_and(|&byte| is_token_byte(byte));
        let end = if ends_in_token { WORD_ENDS } else { "" };
        let pattern = format!("{}{end}", regex::escape(text));
        let bounded = starts_in_token.then(|| compile(&format!("{WORD_BEGINS}{pattern}")));
        // The last word of a prefix is only begun.
        let begun = prefix && bytes.last().is_some_and(|&byte| is_token_byte(byte));
        let wanted = tokens(bytes).into_iter();
        let wanted = wanted.filter(|(_, end)| !(begun && *end == bytes.len()));
        let wanted = wanted.map(|(hash, _)| hash).collect();
        Ok(Self {
            negated,
            pattern: compile(&pattern)?,
            bounded: bounded.transpose()?,
            tokens: wanted,
        })
    }

    /// A MAC address in every notation: `00:18:0a:12:34:56`, with dashes, as `0018.0a12.3456`, and without anything.
    fn of_mac(digits: &str, negated: bool) -> Result<Self> {
        let mut pattern = String::new();
        for (at, digit) in digits.chars().enumerate() {
            match at {
                0 => {}
                4 | 8 => pattern.push_str("[:.-]?"),
                _ if at % 2 == 0 => pattern.push_str("[:-]?"),
                _ => {}
            }
            pattern.push(digit);
        }
        pattern.push_str(WORD_ENDS);
        Ok(Self {
            negated,
            bounded: Some(compile(&format!("{WORD_BEGINS}{pattern}"))?),
            pattern: compile(&pattern)?,
            // Each notation has other tokens: every block is read.
            tokens: Vec::new(),
        })
    }

    /// Finds the next match at or after `from`: whole words only. It takes time linear in the text.
    pub(crate) fn find_at(&self, text: &[u8], from: usize) -> Option<usize> {
        let is_token = |at: usize| text.get(at).is_some_and(|&byte| is_token_byte(byte));
        let mut from = from;
        for _ in 0..REJECTED_MAX {
            let start = self.pattern.find_at(text, from)?.start();
            let begins = start.checked_sub(1).is_none_or(|before| !is_token(before));
            if begins || self.bounded.is_none() {
                return Some(start);
            }
            // The next word that begins may be it, and nothing before that.
            let rest = text.get(start..).unwrap_or_default();
            let word = rest.iter().position(|&byte| !is_token_byte(byte))?;
            from = start + word;
        }
        // What precedes the match is part of the pattern: the byte before `from` must be looked at too.
        let from = if from > 0 && !is_token(from - 1) {
            from - 1
        } else {
            from
        };
        let found = self.bounded.as_ref()?.find_at(text, from)?;
        let begins_line = found.start() == 0 && is_token(0);
        Some(found.start() + usize::from(!begins_line))
    }

    fn is_in(&self, line: &[u8]) -> bool {
        self.find_at(line, 0).is_some()
    }
}

/// A word or a quoted text, and what follows it.
struct Word<'a> {
    text: String,
    quoted: bool,
    rest: &'a str,
}

/// Reads the next one. In quotes `\"` is a quote; any other backslash is itself.
fn word(text: &str) -> Result<Word<'_>> {
    let Some(mut rest) = text.strip_prefix('"') else {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        let (text, rest) = text.split_at(end);
        return Ok(Word {
            text: text.to_owned(),
            quoted: false,
            rest,
        });
    };
    let mut value = String::new();
    loop {
        let Some((before, after)) = rest.split_once('"') else {
            return Err(said!("query.open_quote").into());
        };
        rest = after;
        match before.strip_suffix('\\') {
            Some(before) => {
                value.push_str(before);
                value.push('"');
            }
            None => {
                value.push_str(before);
                return Ok(Word {
                    text: value,
                    quoted: true,
                    rest,
                });
            }
        }
    }
}

fn compile(pattern: &str) -> Result<Regex> {
    let regex = RegexBuilder::new(pattern)
        .case_insensitive(true)
        .unicode(false)
        .build()?;
    Ok(regex)
}

/// A byte of no token, or the beginning; see [`is_token_byte`].
const WORD_BEGINS: &str = r"(?:\A|[^0-9A-Za-z_\x80-\xFF])";
const WORD_ENDS: &str = r"(?:[^0-9A-Za-z_\x80-\xFF]|\z)";
/// Bytes of one word or phrase: every one of them may be compared with every byte of the archive.
const TERM_LEN_MAX: usize = 256;
const TERMS_MAX: usize = 32;
/// Agents that a refusal names.
const NAMED_MAX: usize = 10;
/// Matches in the middle of a word after which one pass decides: each costs the length of the term.
const REJECTED_MAX: usize = 16;

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
    fn a_term_is_found_where_a_plain_comparison_finds_it() {
        // Every text of so few letters, against a comparison that knows nothing of patterns.
        let letters = b"aAb \xc3_";
        let terms = ["a", "ab", "a a", "a*", "a b*", " a", "a ", "aa*", "_a"];
        let terms = terms.map(|term| (term, Term::new(term, false, false).unwrap()));
        let mut text = vec![0; 7];
        for number in 0..letters.len().pow(7) {
            let mut rest = number;
            for byte in &mut text {
                *byte = letters[rest % letters.len()];
                rest /= letters.len();
            }
            if !number.is_multiple_of(7) {
                continue;
            }
            for (term, built) in &terms {
                for from in [0, 1, 3] {
                    assert_eq!(
                        built.find_at(&text, from),
                        plain(term, &text, from),
                        "{term:?} in {text:?} from {from}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_term_is_found_behind_very_many_that_are_not_it() {
        for (term, rejected) in [
            ("a a", "ba a"),
            ("a", "ba"),
            ("aaa", "aaaaaaa"),
            ("a*", "ba"),
        ] {
            let text = format!("{rejected} ").repeat(100) + term;
            let built = Term::new(term, false, false).unwrap();
            let text = text.as_bytes();
            for from in [0, 1, 5, 299] {
                assert_eq!(built.find_at(text, from), plain(term, text, from), "{term}");
            }
        }
    }

    #[test]
    fn a_term_is_as_long_as_it_may_be() {
        assert!(Query::parse(&"a".repeat(TERM_LEN_MAX)).is_ok());
        let error = Query::parse(&"a".repeat(TERM_LEN_MAX + 1)).unwrap_err();
        assert!(error.to_string().contains("may have 256"), "{error}");
    }

    /// What [`Term::find_at`] must give, byte by byte.
    fn plain(term: &str, text: &[u8], from: usize) -> Option<usize> {
        let wanted = term.strip_suffix('*').unwrap_or(term).as_bytes();
        let edge = |at: Option<usize>| {
            at.and_then(|at| text.get(at))
                .is_none_or(|&byte| !is_token_byte(byte))
        };
        (from..text.len()).find(|&at| {
            let end = at + wanted.len();
            let begins = !is_token_byte(wanted[0]) || edge(at.checked_sub(1));
            let ends =
                term.ends_with('*') || !is_token_byte(wanted[wanted.len() - 1]) || edge(Some(end));
            text.get(at..end)
                .is_some_and(|found| found.eq_ignore_ascii_case(wanted))
                && begins
                && ends
        })
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
    fn a_phrase_may_hold_quotes_and_backslashes() {
        let line = br#"user "John Smith" of C:\Windows\x {"level":"error"}"#;
        for (query, expected) in [
            (r#""user \"John Smith\"""#, true),
            (r#""\"level\":\"error\"""#, true),
            (r#""C:\Windows\x""#, true),
            (r#""John Smith" of"#, true),
            (r#""\"Smith""#, false),
        ] {
            assert_eq!(
                Query::parse(query).unwrap().matches(line),
                expected,
                "{query}"
            );
        }
        assert!(Query::parse(r#""open \""#).is_err());
    }

    #[test]
    fn a_mac_address_is_found_in_every_notation() {
        for query in ["00:18:0A:12:34:56", "00-18-0a-12-34-56"] {
            let query = Query::parse(query).unwrap();
            for text in [
                "00:18:0a:12:34:56",
                "00-18-0A-12-34-56",
                "0018.0a12.3456",
                "00180a123456",
            ] {
                assert!(query.matches(format!("mac={text};").as_bytes()), "{text}");
            }
            assert!(!query.matches(b"mac 00:18:0a:12:34:567 100:18:0a:12:34:56"));
        }
        assert!(
            !Query::parse("\"00:18:0a:12:34:56\"")
                .unwrap()
                .matches(b"00-18-0a-12-34-56")
        );
    }

    #[test]
    fn what_a_refused_network_is_told_finds_its_addresses() {
        let query = Query::parse("10.0.3.*").unwrap();
        assert!(query.matches(b"from 10.0.3.77 port 1") && !query.matches(b"110.0.3.7 10.0.31.7"));
        assert!(query.tokens().is_empty());
    }

    #[test]
    fn agents_that_are_not_there_and_fields_without_a_meaning_are_refused() {
        let known: BTreeSet<String> = (0..20).map(|n| format!("web{n:02}")).collect();
        let query = Query::parse("agent:WEB03 x").unwrap();
        query.check_agents(&known).unwrap();
        let error = Query::parse("agent:nosuch").unwrap().check_agents(&known);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("nosuch") && error.contains("web00") && error.contains("10"),
            "{error}"
        );
        for query in [
            "agent:",
            "agent:a*",
            "agent:a agent:b",
            "stream:",
            "stream:*.log",
            "-agent:a",
        ] {
            assert!(Query::parse(query).is_err(), "{query}");
        }
        assert!(Query::parse("agent:\"a*\" stream:a stream:b").is_ok());
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
