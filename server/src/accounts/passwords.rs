//! Which passwords are refused when they are set: short ones, known ones, and those that take no guessing.
//!
//! There are no rules of composition: they make passwords that are alike. The list is that of what has been found in
//! leaks (`assets/common-passwords.txt`, which says where it is from); what stands before and after a known word
//! counts for nothing while it is short and no letter, because that is what is tried first.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};

use crate::bounds::{PASSWORD_CHARS_MIN, PASSWORD_LEN_MAX, check_len};

/// Whether `password` may be the one of the account `name`.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub(super) fn check(name: &str, password: &str) -> Result<()> {
    ensure!(
        password.chars().count() >= PASSWORD_CHARS_MIN,
        "the password must have at least {PASSWORD_CHARS_MIN} characters"
    );
    check_len("the password", password, PASSWORD_LEN_MAX)?;
    let lower = password.to_lowercase();
    if is_known(&lower) {
        bail!(
            "this password, or what is left of it without the digits and signs around it, is in a list of passwords that have leaked; choose one that nobody has used, such as four words that do not belong together"
        );
    }
    for word in [name, "scrinium"] {
        ensure!(
            !leans_on(&lower, &word.to_lowercase()),
            "the password is little more than '{word}'; choose one that does not go by the name of the account or of this program"
        );
    }
    ensure!(
        !repeats(&lower),
        "the password repeats itself; choose one that does not"
    );
    ensure!(
        !is_row(&lower),
        "the password is a row of letters, digits or keys; choose one that is not"
    );
    Ok(())
}

/// Whether it, or its core, is on the list.
fn is_known(lower: &str) -> bool {
    // Read through: it takes a moment, and passwords are seldom set.
    let is_listed = |text: &str| LIST.lines().any(|line| line == text);
    if is_listed(lower) {
        return true;
    }
    let around = |c: char| !c.is_alphabetic();
    let core = lower.trim_start_matches(around);
    let core = core.trim_end_matches(|c| around(c) && !matches!(c, '@' | '$'));
    let before_and_after = lower.chars().count() - core.chars().count();
    let core: String = core.chars().map(as_letter).collect();
    before_and_after < AROUND_MIN && is_listed(&core)
}

/// Digits and signs that stand for letters.
fn as_letter(c: char) -> char {
    match c {
        '@' | '4' => 'a',
        '3' => 'e',
        '1' | '!' => 'i',
        '0' => 'o',
        '$' | '5' => 's',
        '7' => 't',
        c => c,
    }
}

/// Whether little is left without the word.
fn leans_on(lower: &str, word: &str) -> bool {
    if word.chars().count() < WORD_MIN || !lower.contains(word) {
        return false;
    }
    lower.replace(word, "").chars().count() < LEFT_MIN
}

/// Whether it is one piece several times, or of a few characters alone.
fn repeats(lower: &str) -> bool {
    let chars: Vec<char> = lower.chars().collect();
    let different: BTreeSet<_> = chars.iter().collect();
    if different.len() < DIFFERENT_MIN {
        return true;
    }
    (1..=chars.len() / 2).any(|period| {
        let again = chars.iter().skip(period);
        chars.iter().zip(again).all(|(a, b)| a == b)
    })
}

/// Whether most characters are what follows the one before: in the alphabet, in counting, on the keyboard.
fn is_row(lower: &str) -> bool {
    let follows = lower
        .chars()
        .zip(lower.chars().skip(1))
        .filter(|(a, b)| is_next(*a, *b));
    let steps = lower.chars().count().saturating_sub(1);
    follows.count() * 4 >= steps * 3
}

fn is_next(a: char, b: char) -> bool {
    let (one, other) = (u32::from(a), u32::from(b));
    if one.abs_diff(other) <= 1 || matches!((a, b), ('9', '0') | ('0', '9')) {
        return true;
    }
    ROWS.iter().any(|row| {
        let pairs = row.chars().zip(row.chars().skip(1));
        let mut pairs = pairs.filter(|pair| [*pair, (pair.1, pair.0)].contains(&(a, b)));
        pairs.next().is_some()
    })
}

/// Sorted lines, lower case, digits and signs that stand for letters written as these.
const LIST: &str = include_str!("../../assets/common-passwords.txt");
/// Rows of keyboards.
const ROWS: [&str; 6] = [
    "qwertyuiop[]",
    "asdfghjkl;'",
    "zxcvbnm,./",
    "qwertzuiop",
    "azertyuiop",
    "yxcvbnm",
];
/// From so many characters before and after a known word on, it is another password.
const AROUND_MIN: usize = 10;
/// Shorter names are in every text.
const WORD_MIN: usize = 4;
/// Characters that have to be left without the account's name.
const LEFT_MIN: usize = 8;
/// Different characters of a password.
const DIFFERENT_MIN: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_guessed_first_is_refused_with_a_sentence() {
        for (password, says) in [
            ("short", "at least 12 characters"),
            ("aaaaaaaaaaaa", "leaked"),
            ("kwpzmkwpzmkw", "repeats"),
            ("xqxqvxqqvvxq", "repeats"),
            ("abcabcabcabc", "repeats"),
            ("passwordpassword", "leaked"),
            ("Password2024!", "leaked"),
            ("P@ssw0rd12345", "leaked"),
            ("123qwertyuiop", "leaked"),
            ("monkey!!!!!!!", "leaked"),
            ("123456789012", "leaked"),
            ("0987654321098", "row"),
            ("abcdefghijkl", "leaked"),
            ("ghijklmnopqrs", "row"),
            ("qazwsxedcrfv", "leaked"),
            ("iloveyou1234", "leaked"),
            ("Operatrix-2026", "'operatrix'"),
            ("Scrinium-2026", "'scrinium'"),
        ] {
            let error = check("operatrix", password).unwrap_err().to_string();
            assert!(error.contains(says), "{password}: {error}");
        }
        assert!(check("bob", &"x1y2z3w4".repeat(200)).is_err());
    }

    #[test]
    fn what_nobody_guesses_is_taken() {
        for password in [
            "correct horse battery",
            "right password",
            "another good password",
            "the password of bob",
            "tK7#pw-93kd-Lq",
            "grüne Äpfel im Regen",
            "monkey-84-61-99-52-70-13",
        ] {
            check("admin", password).unwrap();
        }
        for _ in 0..100 {
            let made = super::super::random_password().unwrap();
            check("admin", &made).unwrap();
        }
    }

    #[test]
    fn the_list_is_sorted_and_says_where_it_is_from() {
        let lines: Vec<&str> = LIST
            .lines()
            .filter(|line| !line.starts_with("# "))
            .collect();
        assert!(lines.is_sorted() && lines.len() > 10_000);
        assert!(LIST.starts_with("# "));
    }
}
