//! Bounds of the texts that people write into forms and commands, held where they enter the server: before they are
//! looked up, remembered, or written into the audit trail.
//!
//! What agents say is bounded by the protocol, which knows no longer text: `protocol/src/sl/handshake.rs` (host,
//! version, operating system: 256 bytes) and `protocol/src/sl/message.rs` (names of streams 4 KiB, problems 512
//! bytes, configurations 60,000). The bodies of forms are bounded in `console/mod.rs`.

use anyhow::Result;
use data_encoding::HEXLOWER;
use scrinium_protocol::kdf::sha256;

use crate::said::said;

/// Refuses a text that is longer than `bytes_max`.
pub(crate) fn check_len(field: &str, text: &str, bytes_max: usize) -> Result<()> {
    if text.len() > bytes_max {
        return Err(said!(
            "refused.long",
            field,
            text.len().to_string(),
            bytes_max.to_string()
        )
        .into());
    }
    Ok(())
}

/// Refuses more of something than `count_max`.
pub(crate) fn check_count(what: &str, count: usize, count_max: usize) -> Result<()> {
    if count > count_max {
        return Err(said!("refused.many", what, count, count_max).into());
    }
    Ok(())
}

/// Refuses a text that is longer than `bytes_max`, or that is not one line of plain text.
pub(crate) fn check(field: &str, text: &str, bytes_max: usize) -> Result<()> {
    check_len(field, text, bytes_max)?;
    if text.chars().any(char::is_control) {
        return Err(said!("refused.control", field).into());
    }
    Ok(())
}

/// The same of what need not be given.
pub(crate) fn check_given(field: &str, text: Option<&str>, bytes_max: usize) -> Result<()> {
    text.map_or(Ok(()), |text| check(field, text, bytes_max))
}

/// A text of the server's own that holds words of others, cut to `bytes_max`; that it was cut is seen.
pub(crate) fn cut(text: &str, bytes_max: usize) -> String {
    match text.get(..text.floor_char_boundary(bytes_max)) {
        Some(begin) if begin.len() < text.len() => format!("{begin}…"),
        _ => text.to_owned(),
    }
}

/// A name of an earlier version that is longer than one may be today: its beginning, and what tells it from others.
pub(crate) fn shortened(text: &str) -> String {
    if text.len() <= NAME_LEN_MAX {
        return text.to_owned();
    }
    let begin = text.get(..text.floor_char_boundary(BEGIN_LEN));
    format!(
        "{}… ({} bytes, SHA-256 {})",
        begin.unwrap_or_default(),
        text.len(),
        HEXLOWER.encode(&sha256(&[text.as_bytes()]))
    )
}

/// Sites, tenants, names of agents as they are asked for, and other names, bytes.
pub(crate) const NAME_LEN_MAX: usize = 128;
/// Names of accounts as they are typed, bytes: nothing longer is looked up, remembered or compared.
pub(crate) const USER_LEN_MAX: usize = 128;
/// Passwords that are set, bytes.
pub(crate) const PASSWORD_LEN_MAX: usize = 1024;
/// Passwords that are set, characters at least.
pub(crate) const PASSWORD_CHARS_MIN: usize = 12;
/// Reasons and purposes, bytes.
pub(crate) const REASON_LEN_MAX: usize = 1000;
/// Who asks for a package, and what they call the matter, bytes.
pub(crate) const REFERENCE_LEN_MAX: usize = 256;
/// Names of streams, and patterns of them, bytes: as long as an agent may say.
pub(crate) const STREAM_LEN_MAX: usize = 4096;
/// Queries, bytes, of searches, exports, links and holds: where they enter, and where they are read.
pub(crate) const QUERY_LEN_MAX: usize = 4096;
/// What names an opening, a link, or an act that waits, bytes: the server made it, and none it makes is longer.
pub(crate) const ID_LEN_MAX: usize = 128;
/// Directories, buckets, and files that a command names, bytes: the longest path of the system.
pub(crate) const LOCATION_LEN_MAX: usize = 4096;
/// Days that are opened at once: ten years.
pub(crate) const OPENED_MAX: usize = 3660;
/// Checkpoints that one verification compares with, and the bytes of each.
pub(crate) const CHECKPOINTS_MAX: usize = 256;
pub(crate) const CHECKPOINT_LEN_MAX: usize = 64 << 10;
/// Where a form leads back to, bytes.
pub(crate) const BACK_LEN_MAX: usize = 20 << 10;
/// The text of an alarm, bytes: what others say in it is cut where it enters, and this is more.
pub(crate) const ALARM_LEN_MAX: usize = 4 << 10;
/// The body of a command, bytes: the checkpoints are the longest there is.
pub(crate) const COMMAND_LEN_MAX: usize = 20 << 20;
const BEGIN_LEN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_names_field_and_length_and_refuses_what_is_no_line() {
        check("site", &"é".repeat(64), NAME_LEN_MAX).unwrap();
        let error = check("site", &"x".repeat(129), NAME_LEN_MAX).unwrap_err();
        assert_eq!(
            error.to_string(),
            "site has 129 bytes and may have 128; shorten it"
        );
        assert!(check("--reason", "two\nlines", REASON_LEN_MAX).is_err());
        assert!(check_given("purpose", None, 0).is_ok());
    }

    #[test]
    fn a_text_is_cut_between_characters_and_shows_it() {
        assert_eq!(cut("rome", 4), "rome");
        assert_eq!(cut("éé", 3), "é…");
    }

    #[test]
    fn a_long_name_is_shortened_and_still_told_from_another() {
        assert_eq!(shortened("rome"), "rome");
        let (one, two) = ("é".repeat(33_000), "é".repeat(33_001));
        assert!(shortened(&one).len() < 256 && shortened(&one) != shortened(&two));
        assert!(shortened(&one).contains("66000 bytes, SHA-256 "));
    }
}
