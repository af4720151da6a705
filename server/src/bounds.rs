//! Bounds of the texts that people write into forms and commands, held where they enter the server.

use anyhow::{Result, ensure};
use data_encoding::HEXLOWER;
use scrinium_protocol::kdf::sha256;

/// Refuses a text that is longer than `bytes_max`, or that is not one line of plain text.
pub(crate) fn check(field: &str, text: &str, bytes_max: usize) -> Result<()> {
    ensure!(
        text.len() <= bytes_max,
        "{field} has {} bytes and may have {bytes_max}; shorten it",
        text.len()
    );
    ensure!(
        !text.chars().any(char::is_control),
        "{field} must be one line without control characters"
    );
    Ok(())
}

/// The same of what need not be given.
pub(crate) fn check_given(field: &str, text: Option<&str>, bytes_max: usize) -> Result<()> {
    text.map_or(Ok(()), |text| check(field, text, bytes_max))
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

/// Sites, tenants, and other names.
pub(crate) const NAME_LEN_MAX: usize = 128;
/// Reasons and purposes.
pub(crate) const REASON_LEN_MAX: usize = 1000;
/// Who asks for a package, and what they call the matter.
pub(crate) const REFERENCE_LEN_MAX: usize = 256;
/// Names of streams, and patterns of them: as long as an agent may say.
pub(crate) const STREAM_LEN_MAX: usize = 4096;
/// Queries.
pub(crate) const QUERY_LEN_MAX: usize = 16 << 10;
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
    fn a_long_name_is_shortened_and_still_told_from_another() {
        assert_eq!(shortened("rome"), "rome");
        let (one, two) = ("é".repeat(33_000), "é".repeat(33_001));
        assert!(shortened(&one).len() < 256 && shortened(&one) != shortened(&two));
        assert!(shortened(&one).contains("66000 bytes, SHA-256 "));
    }
}
