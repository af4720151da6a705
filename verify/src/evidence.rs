//! `evidence.json`: that the server sealed where the stream stood, in what it signed that day.

use anyhow::{Context as _, Result};
use data_encoding::BASE64;
use ed25519_dalek::VerifyingKey;
use scrinium_protocol::evidence::inclusion::{Included, Inclusion, InvalidInclusion};
use scrinium_protocol::identity::StreamId;
use serde::Deserialize;

use crate::package::key_bytes;

/// The member's fields.
#[derive(Deserialize)]
pub(crate) struct Evidence {
    pub(crate) server_key: String,
    checkpoint: String,
    interval: String,
    path: Vec<String>,
}

impl Evidence {
    pub(crate) fn parse(text: &[u8]) -> Result<Self> {
        serde_json::from_slice(text).context("evidence.json")
    }

    /// Checks it all by itself.
    pub(crate) fn check(&self, stream: StreamId) -> Result<Result<Included, InvalidInclusion>> {
        let bytes = |text: &str, field: &'static str| {
            let decoded = BASE64.decode(text.as_bytes());
            decoded.with_context(|| format!("evidence.json: {field} is not base64"))
        };
        let key = VerifyingKey::from_bytes(&key_bytes(&self.server_key)?);
        let key = key.context("evidence.json: server_key")?;
        let hash = |text: &String| {
            let hash = bytes(text, "path")?;
            <[u8; 32]>::try_from(hash)
                .ok()
                .context("evidence.json: path")
        };
        let inclusion = Inclusion {
            leaf: bytes(&self.interval, "interval")?,
            path: self.path.iter().map(hash).collect::<Result<_>>()?,
            note: self.checkpoint.clone(),
        };
        Ok(inclusion.check(stream, &key))
    }
}
