//! What people are shown: a public key in the one form that can be compared aloud, and texts of others that cannot
//! pretend to be anything else. Nothing here lets a control character, one that changes direction, or one without a
//! picture through.
//!
//! ```text
//! key       e0b1 4f7a 90c2 …      64 hexadecimal digits, 16 groups of 4
//! name      /var/log/auth.log     as it is, when it is made of letters, digits and ._-/:@+ alone
//!           "a\nb \u{202e}c"      else in quotation marks, with everything escaped that is not seen as itself
//! sentence  cannot read a\x0ab    our own words with texts of others in them: one line; shown twice is the same
//! line      café \x1b[2J \xff     an entry as one line; reads back to its bytes
//! entry     first                 an entry on a terminal: its further lines behind a mark that no entry begins with
//!             | second
//! cell      first⏎second          an entry where something else says where it ends (a table, a page); reads back
//! plain     first\x0asecond       an entry in a pipe: one line, else its bytes; reads back
//! json      {"a":"\u202e"}        JSON that says the same
//! ```
//!
//! Escapes: `\xHH` is a control character of ASCII, or a byte that is not UTF-8; `\u{H…}` any other letter. A backslash
//! of the text itself stays as it is, but where it would be read as one of these: there it is `\x5c`.

use std::borrow::Cow;

use data_encoding::HEXLOWER;

/// A public key as it is shown wherever a person may compare it: 16 groups of 4 hexadecimal digits.
#[must_use]
pub fn key(bytes: &[u8; 32]) -> String {
    let groups: Vec<String> = bytes
        .as_chunks::<2>()
        .0
        .iter()
        .map(|group| HEXLOWER.encode(group))
        .collect();
    groups.join(" ")
}

/// Reads a public key from the front of `text`, in the form of [`key()`] or without its spaces; upper case, hyphens and
/// colons between digits do not matter. Returns what follows it.
#[must_use]
pub fn split_key(text: &str) -> Option<([u8; 32], &str)> {
    let mut key = [0; 32];
    let mut digits = 0;
    for (at, letter) in text.char_indices() {
        if let Some(digit) = letter
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
        {
            let byte = key.get_mut(digits / 2)?;
            *byte = *byte << 4 | digit;
            digits += 1;
            if digits == 2 * key.len() {
                let rest = text.get(at + 1..)?;
                // A longer number is no key.
                let ends = rest.chars().next().is_none_or(char::is_whitespace);
                return ends.then(|| (key, rest.trim()));
            }
        } else if digits == 0 || !matches!(letter, ' ' | '\t' | '-' | ':') {
            return None;
        }
    }
    None
}

/// A name of somebody else's, so that it is seen for what it is and makes no line of its own.
#[must_use]
pub fn name(name: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@+".contains(&byte);
    if !name.is_empty() && name.bytes().all(is_plain) {
        return name.to_owned();
    }
    let mut quoted = String::from("\"");
    for letter in name.chars() {
        // Stricter than sentences: a name that only seems to be another one is none.
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            '\'' => quoted.push(letter),
            letter if is_printable(letter) => quoted.push(letter),
            letter => push_escaped(&mut quoted, letter),
        }
    }
    quoted.push('"');
    quoted
}

/// A sentence of ours that may hold texts of others: it stays one line, and moves no cursor. What is shown already is
/// not changed again, so backslashes stay, and it does not read back.
#[must_use]
pub fn sentence(text: &str) -> String {
    let mut seen = String::with_capacity(text.len());
    let mut has_base = false;
    for letter in text.chars() {
        has_base = has_picture(letter, has_base);
        if has_base {
            seen.push(letter);
        } else {
            push_escaped(&mut seen, letter);
        }
    }
    seen
}

/// A sentence of more than one line, as parsers of configurations say them: each further line begins with
/// [`CONTINUED`], so that it is not taken for another sentence.
#[must_use]
pub fn message(text: &str) -> String {
    let mut lines = text.trim_end().split('\n');
    let shown = |line: &str| sentence(line.strip_suffix('\r').unwrap_or(line));
    let first = shown(lines.next().unwrap_or_default());
    lines.fold(first, |mut seen, line| {
        seen.push('\n');
        seen.push_str(CONTINUED);
        seen.push_str(&shown(line));
        seen
    })
}

/// A field of a line of a program's own log, as `name=value`; the sentence of the line itself, which is called
/// "message", without its name. It makes no line of its own, whatever is in it.
#[must_use]
pub fn field(name: &str, value: &dyn core::fmt::Debug) -> String {
    let value = sentence(&format!("{value:?}"));
    if name == "message" {
        return value;
    }
    format!("{name}={value}")
}

/// An entry as one line; tabs stay. It reads back to the very bytes.
#[must_use]
pub fn line(bytes: &[u8]) -> String {
    exact(bytes, LineFeeds::Escaped)
}

/// An entry on a terminal. Each further line of it begins with [`CONTINUED`], and no entry begins with that: who sees a
/// line without it sees the beginning of an entry. A carriage return before a line feed is not shown.
#[must_use]
pub fn entry(bytes: &[u8]) -> String {
    let shown = exact(bytes, LineFeeds::Marked);
    match shown.strip_prefix(CONTINUED) {
        // It begins with a space.
        Some(_) => shown.replacen(' ', "\\x20", 1),
        None => shown,
    }
}

/// An entry in a field of a table or on a page, where its line feeds make no other one. It reads back.
#[must_use]
pub fn cell(text: &str) -> Cow<'_, str> {
    if text.bytes().all(is_plain_ascii) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(exact(text.as_bytes(), LineFeeds::Kept))
}

/// An entry as its bytes, in one line: line feeds and carriage returns alone are escaped, and the letter g where a line
/// would begin as what a collector says is missing (`\x67`: whoever writes lines does that). It reads back.
#[must_use]
pub fn plain(bytes: &[u8]) -> Cow<'_, [u8]> {
    if !bytes.iter().any(|byte| b"\n\r\\".contains(byte)) {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len() + 8);
    let mut rest = bytes;
    while let [byte, behind @ ..] = rest {
        match byte {
            b'\n' => out.extend_from_slice(b"\\x0a"),
            b'\r' => out.extend_from_slice(b"\\x0d"),
            b'\\'
                if [&b"x0a"[..], b"x0d", b"x5c", b"x67"]
                    .iter()
                    .any(|escape| behind.starts_with(escape)) =>
            {
                out.extend_from_slice(b"\\x5c");
            }
            byte => out.push(*byte),
        }
        rest = behind;
    }
    Cow::Owned(out)
}

/// JSON that says the same, with `\uHHHH` in place of whatever is not seen as itself. Its own line feeds stay.
#[must_use]
pub fn json(text: &str) -> String {
    let mut seen = String::with_capacity(text.len());
    for letter in text.chars() {
        // JSON itself is of ASCII, and escapes the controls below the space.
        let is_seen = if letter.is_ascii() {
            letter != '\u{7f}'
        } else {
            has_picture(letter, true)
        };
        if is_seen {
            seen.push(letter);
            continue;
        }
        for unit in letter.encode_utf16(&mut [0; 2]) {
            seen.push_str(&format!("\\u{unit:04x}"));
        }
    }
    seen
}

/// What the further lines of an entry or message begin with.
pub const CONTINUED: &str = "  | ";

#[derive(Clone, Copy, Eq, PartialEq)]
enum LineFeeds {
    Escaped,
    /// As they are, with a carriage return before them.
    Kept,
    /// As a line feed and [`CONTINUED`].
    Marked,
}

fn exact(bytes: &[u8], line_feeds: LineFeeds) -> String {
    let mut seen = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        let text = chunk.valid();
        let mut has_base = false;
        for (at, letter) in text.char_indices() {
            let behind = text.get(at + letter.len_utf8()..).unwrap_or_default();
            has_base = has_picture(letter, has_base);
            match letter {
                '\\' if begins_escape(behind) => seen.push_str("\\x5c"),
                '\t' => seen.push('\t'),
                '\n' if line_feeds == LineFeeds::Kept => seen.push('\n'),
                '\n' if line_feeds == LineFeeds::Marked => {
                    seen.push('\n');
                    seen.push_str(CONTINUED);
                }
                '\r' if behind.starts_with('\n') && line_feeds == LineFeeds::Kept => {
                    seen.push('\r')
                }
                '\r' if behind.starts_with('\n') && line_feeds == LineFeeds::Marked => {}
                letter if has_base => seen.push(letter),
                letter => push_escaped(&mut seen, letter),
            }
        }
        for byte in chunk.invalid() {
            seen.push_str(&format!("\\x{byte:02x}"));
        }
    }
    seen
}

/// Whether a backslash before `text` would be read as an escape; upper case too, for people do.
fn begins_escape(text: &str) -> bool {
    match text.as_bytes() {
        [b'x', high, low, ..] => high.is_ascii_hexdigit() && low.is_ascii_hexdigit(),
        [b'u', b'{', ..] => true,
        _ => false,
    }
}

/// ASCII that [`cell`] shows as it is, whatever stands beside it.
fn is_plain_ascii(byte: u8) -> bool {
    byte != b'\\' && (byte == b' ' || byte == b'\t' || byte == b'\n' || byte.is_ascii_graphic())
}

/// Whether a letter is seen as itself: it has a picture, or is a space. `has_base`: the one before is, so that an accent
/// stands upon it.
fn has_picture(letter: char, has_base: bool) -> bool {
    if letter.is_ascii() {
        return letter == ' ' || letter.is_ascii_graphic();
    }
    if letter.is_whitespace() {
        // All of these but the ends of lines and paragraphs are spaces of some width.
        return !letter.is_control() && !matches!(letter, '\u{2028}' | '\u{2029}');
    }
    if is_printable(letter) {
        return true;
    }
    // The standard library escapes an accent where it begins a text, and nowhere else.
    let mut accented = String::from("a");
    accented.push(letter);
    has_base && has_own_picture(letter) && accented.escape_debug().nth(1) == Some(letter)
}

/// Whether a letter is seen by itself, whatever stands before it; of quotation marks and backslashes it is not asked.
fn is_printable(letter: char) -> bool {
    has_own_picture(letter) && letter.escape_debug().len() == 1
}

fn has_own_picture(letter: char) -> bool {
    !NO_PICTURE.iter().any(|range| range.contains(&letter))
}

/// Letters, marks and symbols that the standard library takes for printable, and that are not to be seen: those of
/// `Default_Ignorable_Code_Point` (Unicode 17, DerivedCoreProperties.txt) that are no format characters, and the blank of
/// Braille.
const NO_PICTURE: [core::ops::RangeInclusive<char>; 9] = [
    '\u{34f}'..='\u{34f}',
    '\u{115f}'..='\u{1160}',
    '\u{17b4}'..='\u{17b5}',
    '\u{180b}'..='\u{180f}',
    '\u{2800}'..='\u{2800}',
    '\u{3164}'..='\u{3164}',
    '\u{fe00}'..='\u{fe0f}',
    '\u{ffa0}'..='\u{ffa0}',
    '\u{e0000}'..='\u{e0fff}',
];

fn push_escaped(out: &mut String, letter: char) {
    if letter.is_ascii() {
        out.push_str(&format!("\\x{:02x}", u32::from(letter)));
    } else {
        out.push_str(&format!("\\u{{{:x}}}", u32::from(letter)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_in_every_form_people_type() {
        let mut bytes = [0xe0; 32];
        bytes[31] = 0x0f;
        let shown = key(&bytes);
        assert_eq!(shown.len(), 16 * 4 + 15);
        assert!(
            shown.starts_with("e0e0 e0e0 ") && shown.ends_with(" e00f"),
            "{shown}"
        );
        for typed in [
            shown.clone(),
            shown.replace(' ', ""),
            shown.replace(' ', "-").to_uppercase(),
            shown.replace(' ', ":"),
        ] {
            assert_eq!(split_key(&typed), Some((bytes, "")), "{typed}");
            let named = format!("{typed} \t web 1 ");
            assert_eq!(split_key(&named), Some((bytes, "web 1")), "{named}");
        }
    }

    #[test]
    fn what_is_no_key_is_not_read_as_one() {
        let shown = key(&[0xab; 32]);
        for text in [
            "",
            " ",
            "web1",
            shown.strip_prefix('a').unwrap(),
            shown.strip_suffix('b').unwrap(),
            &format!("-{shown}"),
            &format!("{shown}a"),
            &format!("{shown},"),
            &shown.replace(' ', "_"),
            &shown.replacen('a', "ａ", 1),
        ] {
            assert_eq!(split_key(text), None, "{text}");
        }
    }

    #[test]
    fn a_name_is_one_word_or_quoted_and_never_a_line() {
        for (given, shown) in [
            ("web1", "web1"),
            ("/var/log/auth.log", "/var/log/auth.log"),
            ("", "\"\""),
            ("a b", "\"a b\""),
            ("say \"hi\" \\", "\"say \\\"hi\\\" \\\\\""),
            ("x\nproven: y", "\"x\\x0aproven: y\""),
            ("\x1b[2J\u{7f}\u{9b}", "\"\\x1b[2J\\x7f\\u{9b}\""),
            ("a\u{202e}gol", "\"a\\u{202e}gol\""),
            (
                "a\u{2028}\u{200b}\u{feff}",
                "\"a\\u{2028}\\u{200b}\\u{feff}\"",
            ),
            ("città", "\"città\""),
        ] {
            assert_eq!(name(given), shown);
        }
        assert_eq!(sentence("it's \"a\\b\"\r\n"), "it's \"a\\b\"\\x0d\\x0a");
    }

    #[test]
    fn an_entry_is_one_line_for_each_of_its_own_and_forges_none() {
        for (given, line_shown, entry_shown) in [
            (&b"caf\xc3\xa9\ttab"[..], "café\ttab", "café\ttab"),
            (b"a\nproven: b", "a\\x0aproven: b", "a\n  | proven: b"),
            (b"a\r\nb", "a\\x0d\\x0ab", "a\n  | b"),
            (b"a\rb", "a\\x0db", "a\\x0db"),
            (b"  | a", "  | a", "\\x20 | a"),
            (b"\n  | a", "\\x0a  | a", "\n  |   | a"),
            (b"C:\\x64\\xfile", "C:\\x5cx64\\xfile", "C:\\x5cx64\\xfile"),
            (b"\\u{1f} \\u1f", "\\x5cu{1f} \\u1f", "\\x5cu{1f} \\u1f"),
            (
                b"\xff\xc2\x9b\x1b[2J",
                "\\xff\\u{9b}\\x1b[2J",
                "\\xff\\u{9b}\\x1b[2J",
            ),
        ] {
            assert_eq!(line(given), line_shown);
            assert_eq!(entry(given), entry_shown);
        }
        assert_eq!(cell("a\r\nb\rc\x1b"), "a\r\nb\\x0dc\\x1b");
        let piped = plain(b"a\nb\r\x1b \\x0a \\x1b \\x5cx0a");
        assert_eq!(&*piped, b"a\\x0ab\\x0d\x1b \\x5cx0a \\x1b \\x5cx5cx0a");
    }

    #[test]
    fn scripts_are_read_and_what_has_no_picture_is_seen() {
        // Hindi, Thai and accents of their own; spaces of French and Japanese.
        for text in [
            "नमस्ते",
            "สวัสดี",
            "e\u{301}te\u{301}",
            "l’échec\u{a0}: 10\u{202f}%",
            "登录\u{3000}失败 🦀",
        ] {
            assert_eq!(sentence(text), text);
            assert_eq!(line(text.as_bytes()), text);
        }
        for letter in "\u{ad}\u{61c}\u{115f}\u{200b}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2060}\u{2066}\u{2069}\u{3164}\u{fe0f}\u{feff}\u{e0041}\u{e0100}\u{85}".chars() {
            let escape = format!("a\\u{{{:x}}}", u32::from(letter));
            let text = format!("a{letter}");
            assert_eq!(sentence(&text), escape);
            assert_eq!(name(&text), format!("\"{escape}\""));
            assert_eq!(line(text.as_bytes()), escape);
            assert_eq!(cell(&text), escape);
        }
        // An accent upon nothing would stand upon what we wrote before it.
        assert_eq!(line("\u{338}a\t\u{338}".as_bytes()), "\\u{338}a\t\\u{338}");
        assert_eq!(
            json("{\"a\":\"\u{9b}\u{7f}\u{e0041}é\"}"),
            "{\"a\":\"\\u009b\\u007f\\udb40\\udc41é\"}"
        );
    }

    #[test]
    fn what_is_shown_twice_is_shown_the_same() {
        let shown = sentence("a \x1b\u{301}\n\u{202e} \\x1b");
        assert_eq!(shown, "a \\x1b\\u{301}\\x0a\\u{202e} \\x1b");
        assert_eq!(sentence(&shown), shown);
        assert_eq!(
            message("in a.toml: no\r\n  |\n3 | \x1b\n"),
            "in a.toml: no\n  |   |\n  | 3 | \\x1b"
        );
        assert_eq!(field("message", &format_args!("a\nb")), "a\\x0ab");
        assert_eq!(field("error", &"a\nb"), "error=\"a\\nb\"");
    }
}
