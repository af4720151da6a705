//! Where a form leads back to: a page of this console, or nowhere.
//!
//! A link somebody else made may carry any text here, and a browser takes more texts for other hosts than `//`: tabs
//! and line feeds are removed from an address before it is read, a backslash is a slash. So nothing is refused by what
//! it looks like; what is not exactly a page of ours is none.

use crate::bounds::BACK_LEN_MAX;

/// What a text is as an address to go back to.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Back<'a> {
    Page(&'a str),
    /// None of our pages.
    Other,
    /// Nothing that a browser of ours sends: too long, or with control characters.
    Malformed,
}

impl<'a> Back<'a> {
    pub(super) fn read(text: &'a str) -> Self {
        if text.len() > BACK_LEN_MAX || text.chars().any(char::is_control) {
            return Self::Malformed;
        }
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let is_page =
            PAGES.contains(&path) || path.strip_prefix("/agents/").is_some_and(is_segment);
        // What stands behind the question mark is data; what could end it or make another address of it is encoded.
        let is_plain = query.bytes().all(|byte| {
            byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'#' | b'"' | b'<' | b'>')
        });
        match is_page && is_plain {
            true => Self::Page(text),
            false => Self::Other,
        }
    }

    /// The page, if it is one and not the first, which everybody comes to anyway.
    pub(super) fn other_page(self) -> Option<&'a str> {
        match self {
            Self::Page(page) if page != "/" => Some(page),
            Self::Page(_) | Self::Other | Self::Malformed => None,
        }
    }
}

/// One encoded segment of a path that is no way up.
fn is_segment(text: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~%".contains(&byte);
    !text.is_empty() && !matches!(text, "." | "..") && text.bytes().all(fine)
}

/// The pages that a person stands on.
const PAGES: [&str; 6] = [
    "/",
    "/agents",
    "/enrol",
    "/search",
    "/downloads",
    "/sign-in",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_page_of_ours_is_one() {
        for page in [
            "/",
            "/agents",
            "/agents/web1",
            "/agents/w%D0%B5b1",
            "/search?q=%22failed%22&range=24h",
            "/sign-in?back=%2Fsearch",
        ] {
            assert_eq!(Back::read(page), Back::Page(page));
        }
        for other in [
            "",
            "//evil.example",
            "/\\evil.example",
            "https://evil.example",
            "/agents//evil.example",
            "/agents/..",
            "/agents/../../evil",
            "/sign-out",
            "/search?q=a#b",
            "/search?q=\u{e9}",
            "javascript:alert(1)",
        ] {
            assert_eq!(Back::read(other), Back::Other, "{other}");
        }
        let long = format!("/search?q={}", "a".repeat(BACK_LEN_MAX));
        for malformed in ["/\t/evil.example", "/\r\nSet-Cookie: a=b", "/\u{85}", &long] {
            assert_eq!(Back::read(malformed), Back::Malformed);
        }
    }
}
