//! `custody.html`: a sheet for the hands a package goes through, in their language, to be printed and signed.

use anyhow::Result;
use askama::Template;
use scrinium_protocol::shown;
use serde_json::Value;

use super::{File, Paper};
use crate::i18n::Language;

/// What the sheet says of the package.
pub(super) struct About {
    pub(super) made: String,
    pub(super) server: String,
    pub(super) server_key: String,
    pub(super) lines: u64,
    pub(super) gaps: u64,
    pub(super) bytes: u64,
    pub(super) in_no_interval: u64,
    pub(super) gaps_left_out: u64,
}

#[derive(Template)]
#[template(path = "custody.html")]
struct Sheet<'a> {
    t: Language,
    about: &'a About,
    /// Text and value.
    request: Vec<(&'static str, &'a str)>,
    /// Of everything.
    lines: String,
    bytes: String,
    gaps: String,
    /// Of entries that no interval was published over; `None` if there are none.
    open: Option<String>,
    /// Statements of gaps that are not shown; `None` if there are none.
    left_out: Option<String>,
    streams: Vec<Row<'a>>,
    /// Name, length and SHA-256.
    members: Vec<(&'a str, String, &'a str)>,
}

struct Row<'a> {
    agent: &'a str,
    stream: &'a str,
    lines: String,
    gaps: String,
    key: String,
}

/// Renders it.
pub(super) fn sheet(
    paper: &Paper,
    about: &About,
    streams: &[Value],
    files: &[&File],
) -> Result<Vec<u8>> {
    let t = paper.language;
    let request = REQUEST.iter().filter_map(|field| {
        let value = paper.request.get(field)?;
        Some((t.text(&format!("custody.{field}")), &**value))
    });
    let streams = streams.iter().map(|stream| {
        let text = |field: &str| {
            stream
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let number = |field: &str| {
            stream
                .get(field)
                .and_then(Value::as_u64)
                .unwrap_or_default()
        };
        Row {
            agent: text("agent"),
            stream: text("stream"),
            lines: t.number(number("lines")),
            gaps: t.number(number("gaps")),
            key: shown::split_key(text("agent_key"))
                .map_or_else(String::new, |(key, _)| shown::key(&key)),
        }
    });
    let files = files.iter().map(|file| {
        let (bytes, sha256) = &file.content;
        (&*file.name, t.number(*bytes), &**sha256)
    });
    let sheet = Sheet {
        t,
        about,
        request: request.collect(),
        lines: t.number(about.lines),
        bytes: t.number(about.bytes),
        gaps: t.number(about.gaps),
        open: (about.in_no_interval > 0).then(|| t.number(about.in_no_interval)),
        left_out: (about.gaps_left_out > 0).then(|| t.number(about.gaps_left_out)),
        streams: streams.collect(),
        members: files.collect(),
    };
    Ok(sheet.render()?.into_bytes())
}

/// What is told of a request, in this order.
const REQUEST: [&str; 12] = [
    "authority",
    "reference",
    "purpose",
    "by",
    "recipient",
    "agent",
    "path",
    "query",
    "from",
    "to",
    "opened_by",
    "opened_for",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_request_has_a_word() {
        for field in REQUEST {
            for language in Language::ALL {
                assert_ne!(language.text(&format!("custody.{field}")), "?", "{field}");
            }
        }
    }
}
