//! What people are shown: a public key in the one form that can be compared aloud, and names that cannot pretend to
//! be anything else.
//!
//! ```text
//! key   e0b1 4f7a 90c2 …     64 hexadecimal digits, 16 groups of 4
//! name  /var/log/auth.log    as it is, when it is made of letters, digits and ._-/:@+ alone
//!       "a\nb \u{202e}c"     else in quotation marks, with everything escaped that is not seen as itself
//! ```

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
        if matches!(letter, '"' | '\\') {
            quoted.push('\\');
            quoted.push(letter);
        } else {
            push_seen(&mut quoted, letter);
        }
    }
    quoted.push('"');
    quoted
}

/// A sentence in which everything is escaped that is not seen as itself: it stays one line, and moves no cursor.
#[must_use]
pub fn sentence(text: &str) -> String {
    let mut seen = String::new();
    for letter in text.chars() {
        push_seen(&mut seen, letter);
    }
    seen
}

/// Control characters, characters that change direction, and others without a picture are escaped.
fn push_seen(out: &mut String, letter: char) {
    let is_own_picture = letter == '"' || letter == '\'' || letter == '\\';
    if is_own_picture || letter.escape_debug().len() == 1 {
        out.push(letter);
    } else if letter.is_ascii() {
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
}
