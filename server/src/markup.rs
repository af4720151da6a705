//! What stands between a text and a page: markup is escaped, and so is what has no picture. `askama.toml` names it for
//! every template, so that no page forgets it.

use std::fmt::{self, Write};

use askama::filters::{Escaper, Html};
use scrinium_protocol::shown;

/// Shows texts of others on pages as [`shown::cell`] has them. What a form gives back as it was is for `escape("exact")`.
#[derive(Clone, Copy)]
pub(crate) struct Shown;

impl Escaper for Shown {
    fn write_escaped_str<W: Write>(&self, dest: W, text: &str) -> fmt::Result {
        Html.write_escaped_str(dest, &shown::cell(text))
    }
}

#[cfg(test)]
mod tests {
    use askama::Template;

    #[derive(Template)]
    #[template(source = "{{ text }}|{{ text|escape(\"exact\") }}", ext = "html")]
    struct Page<'a> {
        text: &'a str,
    }

    #[test]
    fn a_page_shows_what_has_no_picture_and_a_form_gives_it_back() {
        let text = "<b>\x1b[2J\n\u{202e}cod.log";
        let page = Page { text }.render().unwrap();
        assert_eq!(
            page,
            "&#60;b&#62;\\x1b[2J\n\\u{202e}cod.log|&#60;b&#62;\x1b[2J\n\u{202e}cod.log"
        );
    }
}
