//! Asking others over HTTP or HTTPS. What they are asked, and what they answer, proves itself: nobody on the way can
//! gain by changing it. Whoever asks for HTTPS gets what this machine trusts, nothing else.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use reqwest::{Client, Url};

/// Whether `url` is one that [`post`] can ask.
pub(crate) fn is_url(url: &str) -> bool {
    let parsed = Url::parse(url);
    parsed.is_ok_and(|url| ["http", "https"].contains(&url.scheme()) && url.has_host())
}

/// Who is asked. Of a URL the rest may be a secret, or a name and a password: it is in no message.
pub(crate) fn host_of(url: &str) -> String {
    let url = Url::parse(url).ok();
    let host = url.as_ref().and_then(Url::host_str);
    host.unwrap_or_default().to_owned()
}

/// Posts `body` and reads what is answered.
///
/// # Errors
/// Nobody answers in time, or with success.
pub(crate) async fn post(url: &str, content_type: &str, body: Vec<u8>) -> Result<Vec<u8>> {
    let client = Client::builder()
        .timeout(ANSWER_MAX)
        .redirect(Policy::none());
    let request = client.build()?.post(url).header(CONTENT_TYPE, content_type);
    let mut response = request
        .body(body)
        .send()
        .await
        .map_err(reqwest::Error::without_url)?;
    let status = response.status();
    ensure!(status.is_success(), "it answered {status}");
    let mut answer = Vec::new();
    loop {
        let chunk = response.chunk().await;
        let chunk = chunk.map_err(reqwest::Error::without_url);
        let Some(chunk) = chunk.context("reading its answer")? else {
            break;
        };
        answer.extend_from_slice(&chunk);
        ensure!(answer.len() <= ANSWER_LEN_MAX, "its answer is too long");
    }
    Ok(answer)
}

const ANSWER_MAX: Duration = Duration::from_secs(30);
const ANSWER_LEN_MAX: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_urls_that_can_be_asked_are_taken() {
        assert!(is_url("http://tsa.example/tsr") && is_url("http://127.0.0.1:3161"));
        assert!(is_url("https://tsa.example"));
        assert_eq!(
            host_of("https://me:secret@tsa.example:1/T0/key?a=1"),
            "tsa.example"
        );
        assert!(!is_url("ftp://tsa.example") && !is_url("tsa.example") && !is_url(""));
    }
}
