//! The package: a tar of `manifest.json`, `log.txt`, `batches.bin` and `evidence.json`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use anyhow::{Context as _, Result, bail};
use ed25519_dalek::VerifyingKey;
use scrinium_protocol::batch::{Relation, SealedBatch, StreamPosition};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::evidence::interval::Reached;
use scrinium_protocol::identity::{AgentId, StreamId};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::evidence::Evidence;

/// What was found, in sentences.
#[derive(Debug, Default, Serialize)]
pub struct Verdict {
    pub whole: bool,
    pub proven: Vec<String>,
    pub not_proven: Vec<String>,
    pub problems: Vec<String>,
}

/// The manifest's fields that are checked; a newer one may have more.
#[derive(Deserialize)]
struct Manifest {
    format: String,
    agent: String,
    agent_id: String,
    agent_key: String,
    stream: String,
    stream_id: String,
    entries: u64,
    gaps: u64,
    bytes: u64,
    sha256: String,
    last_head: Option<String>,
}

/// Checks a package; `trusted` are public keys of agent and server, in hexadecimal, got from elsewhere.
///
/// # Errors
/// It is no package, is cut, or cannot be read. That it is not whole is a verdict.
pub fn check(file: &mut File, trusted: Option<&[String]>) -> Result<Verdict> {
    let members = members(file)?;
    let extent = |name: &str| {
        members
            .get(name)
            .copied()
            .with_context(|| format!("the package has no {name}"))
    };
    let text = small(file, extent("manifest.json")?, "manifest.json")?;
    let manifest: Manifest = serde_json::from_slice(&text).context("manifest.json")?;
    if manifest.format != "scrinium-package-1" {
        bail!(
            "the package's format is {}; this program knows scrinium-package-1",
            manifest.format
        );
    }
    let mut log = part(file, extent("log.txt")?)?;
    let mut batches = part(file, extent("batches.bin")?)?;
    let evidence = match members.get("evidence.json") {
        Some(place) => Some(Evidence::parse(&small(file, *place, "evidence.json")?)?),
        None => None,
    };
    let mut verdict = Verdict::default();
    let stream = manifest
        .stream_id
        .parse()
        .context("manifest.json: stream_id")?;
    let included = match &evidence {
        Some(evidence) => match evidence.check(stream)? {
            Ok(included) => Some(included),
            Err(error) => {
                verdict.problems.push(format!("evidence.json: {error}"));
                None
            }
        },
        None => None,
    };
    let mut sealed = included.as_ref().map(|included| Sealed {
        reached: included.reached,
        entries: None,
    });
    let problem = walk(
        &manifest,
        &mut log,
        &mut batches,
        sealed.as_mut(),
        &mut verdict,
    )?;
    verdict.problems.extend(problem);
    let is_trusted = |key: &str| {
        let mut keys = trusted.into_iter().flatten();
        keys.any(|trusted| trusted.eq_ignore_ascii_case(key))
    };
    let server_key = evidence.as_ref().map(|evidence| &*evidence.server_key);
    let knows_agent = is_trusted(&manifest.agent_key);
    let knows_server = server_key.is_some_and(is_trusted);
    if trusted.is_some() && !knows_agent && !knows_server {
        verdict
            .problems
            .push("the package is signed with another key than the trusted one".into());
    }
    match (included, sealed.and_then(|sealed| sealed.entries)) {
        (Some(included), Some(entries)) => verdict.proven.push(format!(
            "the first {entries} entries were sealed by the server until {}, in interval {} of the {} that its checkpoint of {} signs",
            time(included.to_us),
            included.interval,
            included.checkpoint.leaves,
            included.checkpoint.origin
        )),
        (Some(included), None) if verdict.problems.is_empty() => verdict.problems.push(format!(
            "interval {} was sealed over entries that are not in the package",
            included.interval
        )),
        (Some(_), None) => {}
        (None, _) if evidence.is_some() => {}
        (None, _) => verdict.not_proven.push(
            "that the server has not changed it since it came: nothing was sealed over it yet".into(),
        ),
    }
    verdict.whole = verdict.problems.is_empty();
    if verdict.whole {
        verdict.proven.push(format!(
            "log.txt holds {} lines or parts of lines, {} bytes, exactly as agent {} signed them for {}",
            manifest.entries, manifest.bytes, manifest.agent, manifest.stream
        ));
        verdict.proven.push(
            "none between the first and the last is missing, doubled, moved or altered".into(),
        );
    }
    if manifest.gaps > 0 {
        verdict.not_proven.push(format!(
            "the agent itself says in {} gap entries that something was not collected",
            manifest.gaps
        ));
    }
    for (whose, key, is_known) in [
        ("agent", Some(&*manifest.agent_key), knows_agent),
        ("server", server_key, knows_server),
    ] {
        let Some(key) = key else { continue };
        if is_known {
            verdict
                .proven
                .push(format!("the {whose}'s key is a trusted one"));
        } else {
            verdict.not_proven.push(format!(
                "that the key {key} is the {whose}'s: compare it with the one shown in the console, or give --trust"
            ));
        }
    }
    verdict
        .not_proven
        .push("when it happened: times are the agent's and the server's own clocks".into());
    Ok(verdict)
}

/// What the server sealed about the stream.
struct Sealed {
    reached: Reached,
    /// How many entries were before it, once that is known.
    entries: Option<u64>,
}

/// Walks batches and log side by side; returns the first thing that is wrong.
fn walk(
    manifest: &Manifest,
    log: &mut dyn Read,
    batches: &mut dyn Read,
    mut sealed: Option<&mut Sealed>,
    verdict: &mut Verdict,
) -> Result<Option<String>> {
    let agent: AgentId = manifest
        .agent_id
        .parse()
        .context("manifest.json: agent_id")?;
    let stream: StreamId = manifest
        .stream_id
        .parse()
        .context("manifest.json: stream_id")?;
    let key = VerifyingKey::from_bytes(&key_bytes(&manifest.agent_key)?)
        .context("manifest.json: agent_key")?;
    let mut position: Option<StreamPosition> = None;
    let (mut entries, mut gaps, mut bytes, mut count) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut digest = Sha256::new();
    let mut buffer = Vec::new();
    while let Some(encoded) = next_batch(batches)? {
        count += 1;
        let whole = SealedBatch::decode(&encoded, "batch")
            .map_err(anyhow::Error::from)
            .and_then(|batch| {
                let opened = batch.open()?;
                batch.header.verify_signature(&key)?;
                Ok((batch, opened))
            });
        let (batch, opened) = match whole {
            Ok(whole) => whole,
            Err(error) => return Ok(Some(format!("batch {count}: {error}"))),
        };
        let header = &batch.header;
        if header.stream != stream {
            return Ok(Some(format!("batch {count} belongs to another stream")));
        }
        let start = StreamPosition::start(agent, stream, header.epoch);
        let before = position
            .take()
            .filter(|position| position.epoch == header.epoch)
            .unwrap_or(start);
        if header.relation_to(&before) != Relation::Follows {
            return Ok(Some(format!(
                "batch {count} does not follow the one before: something is missing, doubled or moved"
            )));
        }
        for (meta, entry) in opened.iter() {
            if meta.flags.is_gap() {
                gaps += 1;
                continue;
            }
            buffer.resize(entry.len(), 0);
            if log.read_exact(&mut buffer).is_err() || buffer != entry {
                let sequence = header.first.0 + entries;
                return Ok(Some(format!(
                    "log.txt differs from what was signed, at byte {bytes} (near sequence {sequence})"
                )));
            }
            digest.update(entry);
            entries += 1;
            bytes += entry.len() as u64;
        }
        let after = header.position_after();
        if let Some(sealed) = sealed.as_deref_mut()
            && (after.epoch, after.next) == (sealed.reached.epoch, sealed.reached.next)
        {
            if after.head != sealed.reached.head {
                return Ok(Some(format!(
                    "batch {count} ends another history than the one the server sealed"
                )));
            }
            sealed.entries = Some(entries + gaps);
        }
        position = Some(after);
    }
    if log.read(&mut [0])? != 0 {
        return Ok(Some("log.txt goes on after the last signed entry".into()));
    }
    let head = position.map(|position| position.head.to_string());
    if head != manifest.last_head {
        return Ok(Some(
            "the last chain head is not the manifest's: batches are missing at the end".into(),
        ));
    }
    let sha256: String = digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if (entries, gaps, bytes) != (manifest.entries, manifest.gaps, manifest.bytes)
        || sha256 != manifest.sha256
    {
        return Ok(Some(
            "the counts or the digest of the manifest are not those of the entries".into(),
        ));
    }
    verdict.proven.push(format!(
        "{count} batches: every Merkle root, chain head and signature was recomputed"
    ));
    Ok(None)
}

/// The next batch of `batches.bin`, without its receive time.
fn next_batch(batches: &mut dyn Read) -> Result<Option<Vec<u8>>> {
    let mut len = [0; 4];
    match batches.read(&mut len)? {
        0 => return Ok(None),
        n => batches
            .read_exact(len.get_mut(n..).unwrap_or_default())
            .context("batches.bin is cut")?,
    }
    let len = u64::from(u32::from_be_bytes(len));
    if !(8..=BATCH_LEN_MAX).contains(&len) {
        bail!("batches.bin: a batch of {len} bytes");
    }
    let mut received = [0; 8];
    batches
        .read_exact(&mut received)
        .context("batches.bin is cut")?;
    let mut encoded = Vec::new();
    batches.take(len - 8).read_to_end(&mut encoded)?;
    Ok(Some(encoded))
}

/// Offsets and lengths of the members of a ustar archive, by name.
fn members(file: &mut File) -> Result<BTreeMap<String, (u64, u64)>> {
    let mut found = BTreeMap::new();
    let end = file.metadata()?.len();
    let mut at = 0;
    while at + 512 <= end {
        file.seek(SeekFrom::Start(at))?;
        let mut header = [0; 512];
        file.read_exact(&mut header)?;
        let field = |from: usize, to: usize| {
            let text = header
                .get(from..to)
                .and_then(|bytes| str::from_utf8(bytes).ok())
                .unwrap_or_default();
            text.trim_matches(['\0', ' ']).to_owned()
        };
        let name = field(0, 100);
        if name.is_empty() {
            break;
        }
        let sum: u64 = header
            .iter()
            .enumerate()
            .map(|(i, &byte)| {
                if (148..156).contains(&i) {
                    32
                } else {
                    u64::from(byte)
                }
            })
            .sum();
        if u64::from_str_radix(&field(148, 156), 8).ok() != Some(sum) {
            bail!("the package's entry for {name} is damaged");
        }
        let len = u64::from_str_radix(&field(124, 136), 8)
            .ok()
            .filter(|len| at + 512 + len <= end);
        let len = len.with_context(|| format!("the package is cut in {name}"))?;
        found.insert(name, (at + 512, len));
        at += 512 + len.div_ceil(512) * 512;
    }
    Ok(found)
}

/// A reader of one member, with a file position of its own.
fn part(file: &File, (start, len): (u64, u64)) -> Result<impl Read + use<>> {
    Ok(BufReader::with_capacity(
        1 << 18,
        Part {
            file: file.try_clone()?,
            at: start,
            end: start + len,
        },
    ))
}

struct Part {
    file: File,
    at: u64,
    end: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        // Clones of a file share one position: set it for every read.
        self.file.seek(SeekFrom::Start(self.at))?;
        let n = (&self.file).take(self.end - self.at).read(buffer)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// A member that is read as a whole.
fn small(file: &mut File, (start, len): (u64, u64), name: &str) -> Result<Vec<u8>> {
    if len > SMALL_LEN_MAX {
        bail!("{name} is longer than any can be");
    }
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A time as a person reads it.
fn time(us: u64) -> String {
    let seconds = i64::try_from(us / 1_000_000).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| us.to_string(), |time| time.to_string())
}

pub(crate) fn key_bytes(hex: &str) -> Result<[u8; 32]> {
    let mut key = [0; 32];
    for (i, byte) in key.iter_mut().enumerate() {
        let digits = hex.get(i * 2..i * 2 + 2);
        *byte = digits
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .context("a key is 64 hexadecimal digits")?;
    }
    Ok(key)
}

/// What the intervals of very many streams need.
const SMALL_LEN_MAX: u64 = 128 << 20;
const BATCH_LEN_MAX: u64 = 1 << 20;
