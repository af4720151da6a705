//! The recovery key, as three texts of which any two give it back (Shamir's secret sharing).

use anyhow::{Context as _, Result, bail};
use blahaj::{Share, Sharks};
use data_encoding::BASE32_NOPAD;
use scrinium_protocol::kdf::sha256;
use scrinium_protocol::secret::Secret;
use zeroize::Zeroizing;

/// The shares of a key.
pub(super) fn deal(recovery: &Secret<32>) -> Vec<Zeroizing<String>> {
    let shares = Sharks(NEEDED).dealer(recovery.expose());
    shares
        .take(usize::from(DEALT))
        .map(|share| share_text(&share))
        .collect()
}

/// The key that shares were dealt of; another one if they do not belong together.
pub(super) fn join(needed: u8, shares: &[String]) -> Result<Secret<32>> {
    let shares: Vec<Share> = shares
        .iter()
        .map(|text| parse_share(text))
        .collect::<Result<_>>()?;
    let recovery = Sharks(needed)
        .recover(&shares)
        .map_err(|_| anyhow::anyhow!("{needed} different shares are needed"))?;
    let recovery = Zeroizing::new(recovery);
    let recovery = <[u8; 32]>::try_from(recovery.as_slice());
    Ok(Secret::new(
        recovery.context("these shares do not belong together")?,
    ))
}

fn share_text(share: &Share) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new(Vec::from(share));
    let [a, b, c, ..] = sha256(&[b"scrinium share v1", &bytes]);
    bytes.extend_from_slice(&[a, b, c]);
    Zeroizing::new(format!("{SHARE_PREFIX}{}", BASE32_NOPAD.encode(&bytes)))
}

fn parse_share(text: &str) -> Result<Share> {
    let wrong = "is not a recovery share; it begins with SCRINIUM-SHARE-";
    let encoded = text
        .trim()
        .strip_prefix(SHARE_PREFIX)
        .with_context(|| format!("'{text}' {wrong}"))?;
    let bytes = BASE32_NOPAD.decode(encoded.as_bytes()).ok();
    let bytes = Zeroizing::new(bytes.context("a recovery share has a wrong character")?);
    let (share, check) = bytes
        .split_last_chunk::<3>()
        .context("a recovery share is cut short")?;
    let [a, b, c, ..] = sha256(&[b"scrinium share v1", share]);
    if [a, b, c] != *check {
        bail!("a recovery share was copied with a mistake");
    }
    Share::try_from(share).map_err(|_| anyhow::anyhow!("a recovery share is cut short"))
}

/// How many there are, and how many are needed.
pub(super) const DEALT: u8 = 3;
pub(super) const NEEDED: u8 = 2;
const SHARE_PREFIX: &str = "SCRINIUM-SHARE-";
