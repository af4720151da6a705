//! Asking others over HTTP. What they are asked, and what they answer, proves itself: nobody on the way can gain by
//! changing it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use axum::body::Body;
use axum::http::{Request, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Whether `url` is one that [`post`] can ask.
pub(crate) fn is_url(url: &str) -> bool {
    let parsed: Option<Uri> = url.parse().ok();
    parsed.is_some_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some())
}

/// Posts `body` and reads what is answered.
///
/// # Errors
/// Nobody answers in time, or with success.
pub(super) async fn post(url: &str, content_type: &str, body: Vec<u8>) -> Result<Vec<u8>> {
    let asked = tokio::time::timeout(ANSWER_MAX, exchange(url, content_type, body)).await;
    asked.context("it did not answer in time")?
}

async fn exchange(url: &str, content_type: &str, body: Vec<u8>) -> Result<Vec<u8>> {
    let uri: Uri = url.parse()?;
    let host = uri.host().context("it has no host")?;
    let port = uri.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::post(path)
        .header("host", uri.authority().map_or(host, |own| own.as_str()))
        .header("content-type", content_type)
        .body(Body::from(body))?;
    let response = sender.send_request(request).await?;
    if !response.status().is_success() {
        bail!("it answered {}", response.status());
    }
    let body = Limited::new(response.into_body(), ANSWER_LEN_MAX)
        .collect()
        .await;
    connection.abort();
    let body = body.map_err(|error| anyhow::anyhow!("reading its answer: {error}"))?;
    Ok(body.to_bytes().to_vec())
}

const ANSWER_MAX: Duration = Duration::from_secs(30);
const ANSWER_LEN_MAX: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_urls_that_can_be_asked_are_taken() {
        assert!(is_url("http://tsa.example/tsr") && is_url("http://127.0.0.1:3161"));
        assert!(!is_url("https://tsa.example") && !is_url("tsa.example") && !is_url(""));
    }
}
