//! The few bytes of DER that are read here: time-stamp tokens, and when a certificate ends.

use anyhow::{Context as _, Result};

/// The tag and content of the first element, and what follows it.
pub(crate) fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let ([tag, first], rest) = bytes.split_first_chunk::<2>()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            let len = digits
                .iter()
                .fold(0, |len, digit| len << 8 | usize::from(*digit));
            (len, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((*tag, content, rest))
}

/// A time as `20261122101112` in UTC, Unix µs.
pub(crate) fn time_us(digits: &str) -> Option<u64> {
    let time = jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", digits).ok()?;
    let time = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    u64::try_from(time.timestamp().as_microsecond()).ok()
}

/// When a certificate ends, Unix µs.
//= https://www.rfc-editor.org/rfc/rfc5280#section-4.1
//# TBSCertificate  ::=  SEQUENCE  { version [0], serialNumber, signature, issuer, validity, …
pub(crate) fn certificate_ends_us(certificate: &[u8]) -> Result<u64> {
    ends_us(certificate).context("the certificate does not say when it ends")
}

fn ends_us(certificate: &[u8]) -> Option<u64> {
    let (SEQUENCE, certificate, _) = element(certificate)? else {
        return None;
    };
    let (SEQUENCE, signed, _) = element(certificate)? else {
        return None;
    };
    // The version is there in all but those of 1988.
    let after_version = match element(signed)? {
        (VERSION, _, rest) => rest,
        _ => signed,
    };
    let (_serial, _, rest) = element(after_version)?;
    let (_signature, _, rest) = element(rest)?;
    let (_issuer, _, rest) = element(rest)?;
    let (SEQUENCE, validity, _) = element(rest)? else {
        return None;
    };
    let (_begin, _, rest) = element(validity)?;
    let (tag, text, _) = element(rest)?;
    let text = core::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    match tag {
        //= https://www.rfc-editor.org/rfc/rfc5280#section-4.1.2.5.1
        //# Where YY is greater than or equal to 50, the year SHALL be interpreted as 19YY
        UTC_TIME => {
            let year: u32 = text.get(..2)?.parse().ok()?;
            let century = if year < 50 { "20" } else { "19" };
            time_us(&format!("{century}{text}"))
        }
        GENERALIZED_TIME => time_us(text),
        _ => None,
    }
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_says_when_it_ends_and_what_is_none_says_so() {
        let key = rcgen::KeyPair::generate().unwrap();
        for (year, ends_us) in [(2031, 1_924_992_000_000_000), (2061, 2_871_763_200_000_000)] {
            let mut params = rcgen::CertificateParams::new(vec!["logs".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let made = params.self_signed(&key).unwrap();
            assert_eq!(certificate_ends_us(made.der()).unwrap(), ends_us);
            // Cut anywhere, it says nothing and breaks nothing.
            for len in 0..120 {
                assert!(certificate_ends_us(&made.der()[..len]).is_err());
            }
        }
        assert!(certificate_ends_us(b"0\x03\x02\x01\x01").is_err());
    }
}
