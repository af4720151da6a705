//! A time-stamp token over a checkpoint (RFC 3161): somebody else's word on when it was there.
//!
//! ```text
//! SHA-256(checkpoint) ─▶ query ─HTTP─▶ authority ─▶ DATA/evidence/DATE.tsr, beside DATE.checkpoint
//! ```
//!
//! What comes back is stored as it is, once it answers our question; whether its signature is to be believed is
//! for whoever trusts that authority to check, with `openssl ts -verify`.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use scrinium_protocol::kdf::sha256;
use scrinium_segment::random;

use super::http;
use crate::clock;
use crate::der::element;

/// Asks the authority at `url` for a token over `note`.
///
/// # Errors
/// It cannot be reached, refuses, or answers another question.
pub(super) async fn token(url: &str, note: &str) -> Result<Vec<u8>> {
    let digest = sha256(&[note.as_bytes()]);
    let nonce: [u8; 8] = random()?;
    let query = query(&digest, &nonce);
    let response = http::post(url, "application/timestamp-query", query).await?;
    check(&response, &digest, &nonce)?;
    check_time(time_us(&response, &digest), clock::unix_us())?;
    Ok(response)
}

/// Refuses a token of a time that is still to come. Once kept it says that the clock of this machine cannot be before it:
/// one of the year 2099 would keep everything from being deleted until then. Whoever is on the way to the authority can
/// make one, for its signature is checked by whoever has its certificate, not here.
fn check_time(token_us: Option<u64>, now_us: u64) -> Result<()> {
    let Some(ahead_us) = token_us.map(|token_us| token_us.saturating_sub(now_us)) else {
        return Ok(());
    };
    if ahead_us > AHEAD_MAX_US {
        bail!(
            "its time is {} hours ahead of the clock of this machine; one of the two is wrong, and the token is not kept",
            ahead_us / HOUR_US
        );
    }
    Ok(())
}

const HOUR_US: u64 = 3_600_000_000;
/// How far the clock of this machine may be behind an authority's: one that is set by hand.
const AHEAD_MAX_US: u64 = 24 * HOUR_US;

/// A `TimeStampReq` for a SHA-256 digest, which asks for the authority's certificates too.
//= https://www.rfc-editor.org/rfc/rfc3161#section-2.4.1
//# The nonce, if included, allows the client to verify the timeliness of the response when no local clock is available.
fn query(digest: &[u8; 32], nonce: &[u8; 8]) -> Vec<u8> {
    let imprint = der(
        0x30,
        &[&der(0x30, &[SHA256, &[0x05, 0x00]]), &der(0x04, &[digest])],
    );
    der(
        0x30,
        &[
            &[0x02, 0x01, 0x01],
            &imprint,
            &integer(nonce),
            &[0x01, 0x01, 0xff],
        ],
    )
}

/// A positive INTEGER, in as few bytes as DER allows.
fn integer(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let digits = bytes.get(zeros..).unwrap_or_default();
    match digits.first() {
        None => der(0x02, &[&[0]]),
        Some(0x80..) => der(0x02, &[&[0], digits]),
        Some(_) => der(0x02, &[digits]),
    }
}

fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut out = vec![tag];
    match u8::try_from(content.len()) {
        Ok(len @ ..0x80) => out.push(len),
        // What is made here is short.
        len => out.extend([0x81, len.unwrap_or(u8::MAX)]),
    }
    out.extend(content);
    out
}

/// The time of the last token in a directory of evidence, Unix µs; 0 where there is none.
pub(super) fn last_us(dir: &Path) -> u64 {
    let Ok(files) = std::fs::read_dir(dir) else {
        return 0;
    };
    let paths = files.flatten().map(|file| file.path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "tsr"))
        .collect();
    // Their names are days.
    paths.sort();
    let last = paths.iter().rev().take(LOOKED_AT).filter_map(|path| {
        let note = std::fs::read(path.with_extension("checkpoint")).ok()?;
        time_us(&std::fs::read(path).ok()?, &sha256(&[&note]))
    });
    last.max().unwrap_or(0)
}

/// When a token over `digest` says that it was made, Unix µs.
//= https://www.rfc-editor.org/rfc/rfc3161#section-2.4.2
//# genTime is the time at which the time-stamp token has been created by the TSA.
fn time_us(token: &[u8], digest: &[u8; 32]) -> Option<u64> {
    let imprint = der(0x04, &[digest]);
    let at = token
        .windows(imprint.len())
        .position(|window| window == imprint)?;
    // Behind the imprint follow the token's serial number and its time.
    let rest = token.get(at + imprint.len()..)?;
    let (0x02, _, rest) = element(rest)? else {
        return None;
    };
    let (0x18, text, _) = element(rest)? else {
        return None;
    };
    let text = core::str::from_utf8(text).ok()?;
    let text = text.trim_end_matches('Z');
    let whole = text.split_once('.').map_or(text, |(whole, _)| whole);
    crate::der::time_us(whole)
}

/// Checks that the answer grants, and that it is one to this question.
fn check(response: &[u8], digest: &[u8; 32], nonce: &[u8; 8]) -> Result<()> {
    let malformed = "its answer is no time-stamp response";
    let (tag, response, _) = element(response).context(malformed)?;
    let (status_tag, status, token) = element(response).context(malformed)?;
    let (_, status, _) = element(status).context(malformed)?;
    if (tag, status_tag) != (0x30, 0x30) {
        bail!(malformed);
    }
    // Granted, or granted with modifications.
    if !matches!(status, [0 | 1]) || token.is_empty() {
        bail!("it refused, with status {status:02x?}");
    }
    let holds = |wanted: &[u8]| token.windows(wanted.len()).any(|window| window == wanted);
    if !holds(&der(0x04, &[digest])) || !holds(&integer(nonce)) {
        bail!("it answered another question");
    }
    Ok(())
}

/// Tokens that are read for the last one: the clock that named them may have been set meanwhile.
const LOOKED_AT: usize = 8;
/// The object identifier of SHA-256: 2.16.840.1.101.3.4.2.1.
const SHA256: &[u8] = &[
    0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01,
];

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    /// The bytes of `openssl ts -query -sha256 -cert`, but for the nonce.
    #[test]
    fn a_query_has_the_bytes_that_openssl_writes() {
        let made = query(&[0x11; 32], &[0, 0x80, 2, 3, 4, 5, 6, 7]);
        let expected = format!(
            "30430201013031300d060960864801650304020105000420{}02080080020304050607{}",
            "11".repeat(32),
            "0101ff"
        );
        assert_eq!(HEXLOWER.encode(&made), expected);
        assert_eq!(integer(&[0, 0]), [2, 1, 0]);
        assert_eq!(integer(&[0, 0x7f]), [2, 1, 0x7f]);
    }

    #[test]
    fn a_token_of_a_time_to_come_is_not_kept() {
        let now_us = 1_795_342_272_000_000;
        for kept in [None, Some(0), Some(now_us), Some(now_us + AHEAD_MAX_US)] {
            assert!(check_time(kept, now_us).is_ok(), "{kept:?}");
        }
        let refused = check_time(Some(now_us + 72 * 365 * 24 * HOUR_US), now_us);
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("630720 hours ahead")
        );
    }

    #[test]
    fn a_token_says_when_it_was_made() {
        let digest = [0x11; 32];
        let token = |time: &[u8]| {
            let imprint = der(0x30, &[&der(0x30, &[SHA256]), &der(0x04, &[&digest])]);
            der(0x30, &[&imprint, &integer(&[9, 9]), &der(0x18, &[time])])
        };
        let at = |time: &[u8]| time_us(&token(time), &digest);
        assert_eq!(at(b"20261122101112Z"), Some(1_795_342_272_000_000));
        assert_eq!(at(b"20261122101112.25Z"), Some(1_795_342_272_000_000));
        for wrong in [&b"20261322101112Z"[..], b"", b"now", b"2026112210"] {
            assert_eq!(at(wrong), None);
        }
        assert_eq!(time_us(&token(b"20261122101112Z"), &[0x12; 32]), None);
    }

    #[test]
    fn only_a_granted_answer_to_this_question_is_taken() {
        let (digest, nonce) = ([0x11; 32], [1; 8]);
        let token = der(0x30, &[&der(0x04, &[&digest]), &integer(&nonce)]);
        let answer = |status: u8, token: &[u8]| {
            let status = der(0x30, &[&[0x02, 0x01, status]]);
            der(0x30, &[&status, token])
        };
        assert!(check(&answer(0, &token), &digest, &nonce).is_ok());
        assert!(check(&answer(1, &token), &digest, &nonce).is_ok());
        for (answer, says) in [
            (answer(2, &token), "refused"),
            (answer(0, &[]), "refused"),
            (
                answer(0, &der(0x30, &[&der(0x04, &[&digest])])),
                "another question",
            ),
            (
                answer(0, &der(0x30, &[&integer(&nonce)])),
                "another question",
            ),
            (Vec::new(), "no time-stamp response"),
            (vec![0x30, 0x84, 1, 1, 1, 1], "no time-stamp response"),
            (vec![0x30, 0x05, 0x30], "no time-stamp response"),
        ] {
            let error = check(&answer, &digest, &nonce).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
