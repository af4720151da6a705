//! `evidence.json`: that the server sealed where the streams stood, in what it signed those days; and what it
//! certifies to have deleted.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use data_encoding::BASE64;
use ed25519_dalek::{Signature, VerifyingKey};
use scrinium_protocol::evidence::inclusion::{Inclusion, InvalidInclusion};
use scrinium_protocol::evidence::interval::Reached;
use scrinium_protocol::identity::{Epoch, Head, StreamId};
use scrinium_protocol::shown;
use serde::Deserialize;

use crate::token;

/// The member's fields.
#[derive(Deserialize)]
struct Fields {
    checkpoint: Option<String>,
    intervals: Vec<Interval>,
    deletions: Vec<String>,
}

#[derive(Deserialize)]
struct Interval {
    leaf: String,
    path: Vec<String>,
    streams: Vec<String>,
    stamped: Option<Stamped>,
}

#[derive(Deserialize)]
struct Stamped {
    checkpoint: String,
    token: String,
    path: Vec<String>,
}

/// A place of a stream that the server sealed.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    pub(crate) head: Head,
    pub(crate) interval: u64,
    /// End of the interval, Unix µs.
    pub(crate) to_us: u64,
    /// What the server's clock showed then, Unix µs, if its time was not confirmed.
    pub(crate) doubted_us: Option<u64>,
    /// How many intervals the checkpoint signs, and of which archive.
    pub(crate) leaves: u64,
    pub(crate) origin: String,
    /// When somebody else saw it, Unix seconds, and whether that authority is trusted.
    pub(crate) stamped: Option<(u64, bool)>,
}

/// Consecutive entries that a certificate says were deleted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deleted {
    pub(crate) first: u64,
    pub(crate) next: u64,
    /// The chain head after them.
    pub(crate) head: Head,
    pub(crate) certificate: u64,
}

/// What was proven of the member.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) sealed: BTreeMap<(StreamId, Epoch, u64), Sealed>,
    pub(crate) deleted: BTreeMap<(StreamId, Epoch), Vec<Deleted>>,
    pub(crate) problems: Vec<String>,
}

impl Evidence {
    /// Checks everything by itself. `file` gives other members of the package.
    ///
    /// # Errors
    /// It has not the form it must have.
    pub(crate) fn check(
        text: &[u8],
        key: &VerifyingKey,
        authorities: Option<&[u8]>,
        mut file: impl FnMut(&str) -> Result<Vec<u8>>,
    ) -> Result<Self> {
        let fields: Fields = serde_json::from_slice(text).context("evidence.json")?;
        let mut evidence = Self::default();
        let mut stamps = Stamps {
            authorities,
            checked: BTreeMap::new(),
        };
        for interval in &fields.intervals {
            let leaf = bytes(&interval.leaf, "leaf")?;
            let inclusion = |path, note: &str| {
                Ok::<_, anyhow::Error>(Inclusion {
                    leaf: leaf.clone(),
                    path: hashes(path)?,
                    note: note.to_owned(),
                })
            };
            let note = fields.checkpoint.as_deref().unwrap_or_default();
            let opened = match inclusion(&interval.path, note)?.open(key) {
                Ok(opened) => opened,
                Err(error) => {
                    evidence.problems.push(format!("evidence.json: {error}"));
                    continue;
                }
            };
            let mut seen = None;
            if let Some(stamped) = &interval.stamped {
                let (note, said) = stamps.check(stamped, &mut file)?;
                let opened = inclusion(&stamped.path, &note)?.open(key);
                let checkpoint = || shown::name(&stamped.checkpoint);
                match (opened, said) {
                    (Ok(_), Ok(stamped)) => seen = Some((stamped.time_s, stamped.is_trusted)),
                    (Err(error), _) => {
                        evidence.problems.push(format!("{}: {error}", checkpoint()));
                    }
                    (_, Err(problem)) => evidence.problems.push(problem),
                }
            }
            let reached = opened.interval.streams.iter();
            let reached: BTreeMap<StreamId, &Reached> =
                reached.map(|reached| (reached.stream, reached)).collect();
            for stream in &interval.streams {
                let stream: StreamId = stream.parse().context("evidence.json: streams")?;
                let Some(reached) = reached.get(&stream) else {
                    let error = InvalidInclusion::OtherStream;
                    evidence.problems.push(format!("evidence.json: {error}"));
                    continue;
                };
                evidence.sealed.insert(
                    (stream, reached.epoch, reached.next.0),
                    Sealed {
                        head: reached.head,
                        interval: opened.interval.number,
                        to_us: opened.interval.to_us,
                        doubted_us: opened.interval.doubt.map(|doubt| doubt.wall_us),
                        leaves: opened.checkpoint.leaves,
                        origin: opened.checkpoint.origin.clone(),
                        stamped: seen,
                    },
                );
            }
        }
        for certificate in &fields.deletions {
            if let Err(error) = evidence.certificate(certificate, key) {
                let problem = format!("evidence.json: a certificate of deletion: {error:#}");
                evidence.problems.push(problem);
            }
        }
        for ranges in evidence.deleted.values_mut() {
            ranges.sort_by_key(|range| range.first);
        }
        Ok(evidence)
    }

    /// Notes what a certificate says, if the server signed it.
    fn certificate(&mut self, line: &str, key: &VerifyingKey) -> Result<()> {
        let (text, signature) = line
            .trim_end()
            .strip_suffix("\"}")
            .and_then(|line| line.rsplit_once(",\"signature\":\""))
            .context("it has no signature")?;
        let signature = Signature::from_slice(&bytes(signature, "signature")?)?;
        let signed = format!("scrinium deletion v1\n{text}}}");
        key.verify_strict(signed.as_bytes(), &signature)
            .ok()
            .context("it is not signed by the server's key")?;
        let certificate: Certificate = serde_json::from_str(&format!("{text}}}"))?;
        for stream in certificate.streams {
            let id: StreamId = stream.id.parse().context("id")?;
            for range in stream.ranges {
                let epoch: Epoch = range.epoch.parse().context("epoch")?;
                self.deleted.entry((id, epoch)).or_default().push(Deleted {
                    first: range.first,
                    next: range.next,
                    head: range.head.parse().context("head")?,
                    certificate: certificate.certificate,
                });
            }
        }
        Ok(())
    }

    /// The certificates that say that the entries from `first` until `next` were deleted, and that the chain's head
    /// behind them was `head`; `None` when they do not say so of all of them.
    pub(crate) fn lawfully_gone(
        &self,
        stream: StreamId,
        epoch: Epoch,
        (first, next): (u64, u64),
        head: Head,
    ) -> Option<Vec<u64>> {
        let mut at = first;
        let mut named = Vec::new();
        for range in self.deleted.get(&(stream, epoch))? {
            if range.first == at && range.next <= next {
                at = range.next;
                named.push(range.certificate);
                if at == next {
                    return (range.head == head).then_some(named);
                }
            }
        }
        None
    }
}

/// Tokens over checkpoints, each checked once.
struct Stamps<'a> {
    authorities: Option<&'a [u8]>,
    /// By the names of checkpoint and token: the checkpoint, and what the token says or why it is not believed.
    checked: BTreeMap<(String, String), (String, Result<token::Stamped, String>)>,
}

impl Stamps<'_> {
    fn check(
        &mut self,
        stamped: &Stamped,
        mut file: impl FnMut(&str) -> Result<Vec<u8>>,
    ) -> Result<(String, Result<token::Stamped, String>)> {
        let names = (stamped.checkpoint.clone(), stamped.token.clone());
        if let Some(checked) = self.checked.get(&names) {
            return Ok(checked.clone());
        }
        let (note, token) = (file(&stamped.checkpoint)?, file(&stamped.token)?);
        let said = token::check(&token, &note, self.authorities);
        let said = said.map_err(|error| format!("{}: {error:#}", shown::name(&stamped.token)));
        let checked = (String::from_utf8_lossy(&note).into_owned(), said);
        self.checked.insert(names, checked.clone());
        Ok(checked)
    }
}

/// What a certificate says of streams; it says more.
#[derive(Deserialize)]
struct Certificate {
    certificate: u64,
    streams: Vec<CertifiedStream>,
}

#[derive(Deserialize)]
struct CertifiedStream {
    id: String,
    ranges: Vec<Range>,
}

#[derive(Deserialize)]
struct Range {
    epoch: String,
    first: u64,
    next: u64,
    head: String,
}

fn bytes(text: &str, field: &'static str) -> Result<Vec<u8>> {
    let decoded = BASE64.decode(text.as_bytes());
    decoded.with_context(|| format!("evidence.json: {field} is not base64"))
}

fn hashes(path: &[String]) -> Result<Vec<[u8; 32]>> {
    let hash = |text: &String| {
        let hash = <[u8; 32]>::try_from(bytes(text, "path")?);
        hash.ok().context("evidence.json: path")
    };
    path.iter().map(hash).collect()
}
