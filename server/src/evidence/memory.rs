//! Where the evidence stood a while ago, so that a start does not read a year of intervals.
//!
//! A cache: without it, or when it does not fit, everything is read. What it skips, `verify` reads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use data_encoding::{BASE64, HEXLOWER};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::evidence::interval::{Interval, Reached};
use scrinium_protocol::identity::StreamId;
use scrinium_protocol::merkle::MerkleTree;
use scrinium_protocol::secret::Secret;
use serde::{Deserialize, Serialize};

use super::Ends;
use super::leaves::Position;
use crate::backup::copy;

/// What is remembered.
pub(super) struct Memory {
    pub(super) tree: MerkleTree,
    pub(super) count: u64,
    pub(super) ends: Ends,
    pub(super) reached: BTreeMap<StreamId, Reached>,
    pub(super) end: Position,
}

#[derive(Deserialize, Serialize)]
struct Manifest {
    count: u64,
    to_us: u64,
    /// None in what an earlier version wrote, whose intervals were all taken for confirmed.
    #[serde(default)]
    confirmed_us: Option<u64>,
    frontier: Vec<String>,
    /// Where each stream stood, as an interval of its own, in base 64.
    reached: String,
    end: Position,
}

/// Writes it down; what was there is replaced.
pub(super) fn write(dir: &Path, key: &Secret<32>, memory: Memory) -> Result<()> {
    let frontier = memory.tree.frontier().iter();
    let reached = Interval {
        number: memory.count,
        from_us: 0,
        to_us: memory.ends.last_us,
        doubt: None,
        streams: memory.reached.into_values().collect(),
    };
    let manifest = Manifest {
        count: memory.count,
        to_us: memory.ends.last_us,
        confirmed_us: Some(memory.ends.confirmed_us),
        frontier: frontier.map(|hash| HEXLOWER.encode(hash)).collect(),
        reached: BASE64.encode(&reached.encoded()),
        end: memory.end,
    };
    copy::write(&path(dir), key, memory.count, &manifest, &[])
}

/// Reads it back.
pub(super) fn read(dir: &Path, key: &Secret<32>) -> Result<Memory> {
    let (manifest, _): (Manifest, _) = copy::read(&path(dir), key)?;
    let frontier = manifest
        .frontier
        .iter()
        .map(|hash| {
            let bytes = HEXLOWER.decode(hash.as_bytes()).ok();
            bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
        })
        .collect::<Option<Vec<_>>>();
    let tree = frontier.and_then(|frontier| MerkleTree::from_frontier(manifest.count, frontier));
    let reached = BASE64.decode(manifest.reached.as_bytes())?;
    let reached = Interval::decode(&reached, "where the streams stood")?;
    Ok(Memory {
        tree: tree.context("the frontier does not fit")?,
        count: manifest.count,
        ends: Ends {
            last_us: manifest.to_us,
            confirmed_us: manifest.confirmed_us.unwrap_or(manifest.to_us),
        },
        reached: reached
            .streams
            .into_iter()
            .map(|reached| (reached.stream, reached))
            .collect(),
        end: manifest.end,
    })
}

fn path(dir: &Path) -> PathBuf {
    dir.join("memory")
}
