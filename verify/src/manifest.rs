//! The manifest: what a server says of a package, under its signature.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{Read, Write};

use anyhow::{Context as _, Result, ensure};
use ed25519_dalek::{Signature, VerifyingKey};
use scrinium_protocol::identity::{AgentId, StreamId, StreamKind};
use scrinium_protocol::shown;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use sha2::{Digest as _, Sha256};

use crate::gzip::Gunzip;
use crate::table::Format;
use crate::tar::{Member, Tar};

/// The manifest's fields that are checked; a newer one may have more.
#[derive(Deserialize)]
pub(crate) struct Manifest {
    made: String,
    pub(crate) server_key: String,
    pub(crate) is_whole_stream: bool,
    pub(crate) lines: u64,
    pub(crate) entries: u64,
    pub(crate) gaps: u64,
    pub(crate) bytes: u64,
    /// Statements of gaps that are not shown, by agent.
    #[serde(default)]
    pub(crate) gaps_left_out: BTreeMap<String, u64>,
    pub(crate) streams: Vec<StreamPart>,
    #[serde(deserialize_with = "each_once")]
    members: BTreeMap<String, Described>,
}

/// What the manifest says of a member.
#[derive(Deserialize)]
struct Described {
    bytes: u64,
    sha256: String,
    /// Of the text inside, where the member is compressed.
    text_bytes: Option<u64>,
    text_sha256: Option<String>,
}

/// What it says of a stream.
#[derive(Deserialize)]
pub(crate) struct StreamPart {
    pub(crate) agent: String,
    agent_id: String,
    pub(crate) agent_key: String,
    /// Keys of states that it lost, of an agent that was replaced.
    #[serde(default)]
    agent_keys_before: Vec<String>,
    pub(crate) stream: String,
    stream_id: String,
    kind: String,
    pub(crate) lines: u64,
    pub(crate) entries: u64,
    pub(crate) gaps: u64,
    pub(crate) bytes: u64,
    pub(crate) runs: Vec<RunPart>,
    /// What the server says no interval was published over; 0.1.0 did not.
    in_no_interval: Option<Vec<Range>>,
}

/// Consecutive sequences.
#[derive(Deserialize)]
struct Range {
    first: u64,
    next: u64,
}

/// Batches that follow one another.
#[derive(Deserialize)]
pub(crate) struct RunPart {
    pub(crate) epoch: String,
    pub(crate) first: u64,
    pub(crate) next: u64,
    /// The chain heads before and after them.
    pub(crate) after: String,
    pub(crate) head: String,
}

/// What every format begins with.
#[derive(Deserialize)]
struct Form {
    format: String,
}

impl Manifest {
    /// Reads it, and tells which format the package has.
    pub(crate) fn parse(text: &[u8]) -> Result<(Format, Self)> {
        let form: Form = serde_json::from_slice(text).context("manifest.json")?;
        let format = Format::of_name(&form.format).with_context(|| {
            format!(
                "the package's format is {}, which this program does not know: the package is damaged, or newer than the program",
                shown::name(&form.format)
            )
        })?;
        let manifest = serde_json::from_slice(text).context("manifest.json")?;
        Ok((format, manifest))
    }

    /// Whether `server` signed the manifest.
    pub(crate) fn is_signed(
        text: &[u8],
        signature: &[u8],
        format: Format,
        server: &VerifyingKey,
    ) -> bool {
        let signature = str::from_utf8(signature).ok().and_then(hex_bytes::<64>);
        signature.is_some_and(|signature| {
            let signed = [format.signed_as(), text].concat();
            server
                .verify_strict(&signed, &Signature::from_bytes(&signature))
                .is_ok()
        })
    }

    /// When it was made, Unix seconds.
    pub(crate) fn made_s(&self) -> Result<u64> {
        let made = self.made.parse::<jiff::Timestamp>().ok();
        let made = made.and_then(|made| u64::try_from(made.as_second()).ok());
        made.context("manifest.json: made is no time")
    }

    /// Compares a member with what is said of it.
    pub(crate) fn compare(&self, tar: &Tar<'_>, member: &Member) -> Result<Option<String>> {
        let name = shown::name(&member.name);
        let Some(described) = self.members.get(&member.name) else {
            return Ok(Some(format!(
                "the package holds {name}, which its manifest does not name"
            )));
        };
        let found = digest(&mut tar.open(member))?;
        if found != (described.bytes, described.sha256.clone()) {
            return Ok(Some(format!(
                "{name} is not the one that the manifest describes"
            )));
        }
        if member.name.ends_with(PACKED) {
            let text = digest(&mut self.text(tar, member)?);
            let text = text.with_context(|| name.clone())?;
            if Some(text) != described.text() {
                return Ok(Some(format!(
                    "the text in {name} is not the one that the manifest describes"
                )));
            }
        }
        Ok(None)
    }

    /// Members that it names and that are not there.
    pub(crate) fn missing(&self, members: &[Member]) -> Vec<String> {
        let there: BTreeSet<&str> = members.iter().map(|member| &*member.name).collect();
        let missing = self.members.keys().filter(|name| !there.contains(&***name));
        missing.map(|name| shown::name(name)).collect()
    }

    /// Length and SHA-256 of a member as it lies in the package.
    pub(crate) fn digest_of(&self, name: &str) -> Option<(u64, String)> {
        let described = self.members.get(name)?;
        Some((described.bytes, described.sha256.clone()))
    }

    /// The same of the text in it.
    pub(crate) fn text_digest_of(&self, name: &str) -> Option<(u64, String)> {
        self.members.get(name)?.text()
    }

    /// A reader of the text in a member: unpacked, where it is packed.
    pub(crate) fn text<'a>(&self, tar: &Tar<'a>, member: &Member) -> Result<Box<dyn Read + 'a>> {
        let content = tar.open(member);
        if !member.name.ends_with(PACKED) {
            return Ok(Box::new(content));
        }
        let name = || shown::name(&member.name);
        let described = self.members.get(&member.name);
        let len = described.and_then(|described| described.text_bytes);
        let len = len.with_context(|| format!("manifest.json: {} has no text_bytes", name()))?;
        Ok(Box::new(Gunzip::new(content, len).with_context(name)?))
    }
}

impl Described {
    fn text(&self) -> Option<(u64, String)> {
        Some((self.text_bytes?, self.text_sha256.clone()?))
    }
}

impl StreamPart {
    /// What the server says no interval was published over, as sequences: the first, and the one after the last.
    pub(crate) fn in_no_interval(&self) -> Option<Vec<(u64, u64)>> {
        let ranges = self.in_no_interval.as_ref()?.iter();
        Some(ranges.map(|range| (range.first, range.next)).collect())
    }

    /// The ids of agent and stream. The stream's is made of the agent's, its kind and its name, and is what the agent
    /// signs: so is its name.
    pub(crate) fn ids(&self) -> Result<(AgentId, StreamId)> {
        let agent: AgentId = self.agent_id.parse().context("manifest.json: agent_id")?;
        let stream: StreamId = self.stream_id.parse().context("manifest.json: stream_id")?;
        let mut kinds = StreamKind::ALL.into_iter();
        let kind = kinds.find(|kind| kind.name() == self.kind);
        let kind = kind.with_context(|| {
            format!(
                "manifest.json: {} is no kind of stream that this program knows",
                shown::name(&self.kind)
            )
        })?;
        ensure!(
            StreamId::derive(agent, kind, &self.stream) == stream,
            "manifest.json: the stream that was signed is not called {}",
            shown::name(&self.stream)
        );
        Ok((agent, stream))
    }
}

/// A map in which no key stands twice: programs do not agree which of them counts.
fn each_once<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, Described>, D::Error> {
    struct EachOnce;

    impl<'de> Visitor<'de> for EachOnce {
        type Value = BTreeMap<String, Described>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("members by name")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = BTreeMap::new();
            while let Some((name, described)) = map.next_entry::<String, Described>()? {
                let twice = shown::name(&name);
                if members.insert(name, described).is_some() {
                    return Err(A::Error::custom(format!("members: {twice} stands twice")));
                }
            }
            Ok(members)
        }
    }

    from.deserialize_map(EachOnce)
}

/// Length and SHA-256, in hexadecimal, of what is read to its end.
pub(crate) fn digest(from: &mut dyn Read) -> std::io::Result<(u64, String)> {
    copy(from, &mut std::io::sink())
}

/// The same of what is copied.
pub(crate) fn copy(from: &mut dyn Read, to: &mut dyn Write) -> std::io::Result<(u64, String)> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut len = 0;
    loop {
        let n = from.read(&mut buffer)?;
        let read = buffer.get(..n).unwrap_or_default();
        if read.is_empty() {
            break;
        }
        digest.update(read);
        to.write_all(read)?;
        len += n as u64;
    }
    let digest: [u8; 32] = digest.finalize().into();
    Ok((len, data_encoding::HEXLOWER.encode(&digest)))
}

impl StreamPart {
    /// Every key of its agent, the one in use first.
    pub(crate) fn keys(&self) -> Result<Vec<[u8; 32]>> {
        ensure!(
            self.agent_keys_before.len() <= KEYS_MAX,
            "manifest.json: an agent has more than {KEYS_MAX} keys"
        );
        let keys = [&self.agent_key].into_iter().chain(&self.agent_keys_before);
        keys.map(|key| key_bytes(key)).collect()
    }
}

/// A public key as the manifest has it.
pub(crate) fn key_bytes(hex: &str) -> Result<[u8; 32]> {
    hex_bytes(hex).context("manifest.json: a key is 64 hexadecimal digits")
}

/// Lower case alone: there is one way to write a number.
fn hex_bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let bytes = data_encoding::HEXLOWER.decode(text.as_bytes());
    bytes.ok()?.try_into().ok()
}

/// What the names of compressed members end with.
pub(crate) const PACKED: &str = ".gz";

/// Keys of one agent: more than a server lets it be replaced.
const KEYS_MAX: usize = 64;
