//! The verdict on a package.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;

use anyhow::{Context as _, Result, bail};
use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::evidence::Evidence;
use crate::tar::{Place, members, part, small};
use crate::walk::{Seen, walk};

/// What was found, in sentences.
#[derive(Debug, Default, Serialize)]
pub struct Verdict {
    pub whole: bool,
    pub proven: Vec<String>,
    pub not_proven: Vec<String>,
    pub problems: Vec<String>,
}

/// What is trusted and did not come with the package.
#[derive(Debug, Default)]
pub struct Trust {
    /// Public keys of agents and servers, in hexadecimal.
    pub keys: Option<Vec<String>>,
    /// Certificates of time-stamp authorities, PEM.
    pub authorities: Option<Vec<u8>>,
}

/// The manifest's fields that are checked; a newer one may have more.
#[derive(Deserialize)]
pub(crate) struct Manifest {
    server_key: String,
    pub(crate) is_whole_stream: bool,
    lines: u64,
    entries: u64,
    gaps: u64,
    bytes: u64,
    pub(crate) streams: Vec<StreamPart>,
    members: BTreeMap<String, Described>,
}

/// What the manifest says of a member.
#[derive(Deserialize)]
struct Described {
    bytes: u64,
    sha256: String,
}

/// What it says of a stream.
#[derive(Deserialize)]
pub(crate) struct StreamPart {
    agent: String,
    pub(crate) agent_id: String,
    pub(crate) agent_key: String,
    stream: String,
    pub(crate) stream_id: String,
    lines: u64,
    entries: u64,
    gaps: u64,
    bytes: u64,
    pub(crate) runs: Vec<RunPart>,
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

/// Checks a package.
///
/// # Errors
/// It is no package, is cut, or cannot be read. That it is not whole is a verdict.
pub fn check(file: &mut File, trust: &Trust) -> Result<Verdict> {
    let mut start = [0; AGE.len()];
    if file.read(&mut start)? == AGE.len() && start == *AGE {
        bail!("the package is encrypted to a recipient: decrypt it first, with age -d -i IDENTITY");
    }
    let members = members(file)?;
    let place = |name: &str| {
        let place = members.get(name).copied();
        place.with_context(|| format!("the package has no {name}"))
    };
    let text = small(file, place("manifest.json")?, "manifest.json")?;
    let form: Form = serde_json::from_slice(&text).context("manifest.json")?;
    if form.format != FORMAT {
        bail!(
            "the package's format is {}; this program knows {FORMAT}",
            form.format
        );
    }
    let manifest: Manifest = serde_json::from_slice(&text).context("manifest.json")?;
    let signature = small(file, place("manifest.sig")?, "manifest.sig")?;
    let server = VerifyingKey::from_bytes(&key_bytes(&manifest.server_key)?);
    let server = server.context("manifest.json: server_key")?;

    let mut verdict = Verdict::default();
    if !is_signed(&text, &signature, &server) {
        let problem = "manifest.json: it is not signed by the server it names";
        verdict.problems.push(problem.into());
    }
    verdict.problems.extend(compare(file, &members, &manifest)?);
    let text = small(file, place("evidence.json")?, "evidence.json")?;
    let other = file.try_clone()?;
    let evidence = Evidence::check(&text, &server, trust.authorities.as_deref(), |name| {
        small(&mut other.try_clone()?, place(name)?, name)
    })?;
    verdict.problems.extend(evidence.problems.iter().cloned());
    let mut log = part(file, place("log.txt")?)?;
    let mut batches = part(file, place("batches.bin")?)?;
    match walk(&manifest, &evidence, &mut log, &mut batches)? {
        Err(problem) => verdict.problems.push(problem),
        Ok(seen) => {
            verdict.problems.extend(manifest.count(&seen));
            if verdict.problems.is_empty() {
                manifest.tell(&seen, &mut verdict);
            }
        }
    }
    manifest.keys(trust, &mut verdict);
    verdict.whole = verdict.problems.is_empty();
    Ok(verdict)
}

/// What every format of the package begins with.
#[derive(Deserialize)]
struct Form {
    format: String,
}

fn is_signed(manifest: &[u8], signature: &[u8], key: &VerifyingKey) -> bool {
    let signature = str::from_utf8(signature).ok().and_then(hex_bytes::<64>);
    signature.is_some_and(|signature| {
        let signed = [SIGNED_AS.as_bytes(), manifest].concat();
        key.verify_strict(&signed, &Signature::from_bytes(&signature))
            .is_ok()
    })
}

/// Compares the members with the manifest.
fn compare(
    file: &File,
    members: &BTreeMap<String, Place>,
    manifest: &Manifest,
) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let named = |name: &String| manifest.members.contains_key(name) || OWN.contains(&&**name);
    for name in members.keys().filter(|name| !named(name)) {
        problems.push(format!(
            "the package holds {name}, which its manifest does not name"
        ));
    }
    for (name, described) in &manifest.members {
        let Some(&place) = members.get(name) else {
            problems.push(format!("{name} is missing"));
            continue;
        };
        let mut digest = Sha256::new();
        std::io::copy(&mut part(file, place)?, &mut Hashing(&mut digest))?;
        if (place.1, &hex(&digest.finalize())) != (described.bytes, &described.sha256) {
            problems.push(format!("{name} is not the one that the manifest describes"));
        }
    }
    Ok(problems)
}

impl Manifest {
    /// Compares what it counts with what was seen.
    fn count(&self, seen: &[Seen]) -> Option<String> {
        let sum = |of: fn(&Seen) -> u64| seen.iter().map(of).sum::<u64>();
        let all = (
            sum(|seen| seen.lines),
            sum(|seen| seen.entries),
            sum(|seen| seen.gaps),
            sum(|seen| seen.bytes),
        );
        let each = self.streams.iter().zip(seen).all(|(part, seen)| {
            (seen.lines, seen.entries, seen.gaps, seen.bytes)
                == (part.lines, part.entries, part.gaps, part.bytes)
        });
        let agrees = all == (self.lines, self.entries, self.gaps, self.bytes) && each;
        let problem = "the counts of the manifest are not those of the entries";
        (!agrees).then(|| problem.to_owned())
    }

    /// Says what is proven of a package without problems.
    fn tell(&self, seen: &[Seen], verdict: &mut Verdict) {
        let batches: u64 = seen.iter().map(|seen| seen.batches).sum();
        verdict.proven.push(format!(
            "{batches} batches: every signature, chain head and way to a Merkle root was recomputed"
        ));
        for (part, seen) in self.streams.iter().zip(seen) {
            self.tell_of(part, seen, verdict);
        }
        if self.is_whole_stream {
            verdict.proven.push(
                "none between the first and the last is missing, doubled, moved or altered".into(),
            );
        } else {
            verdict.not_proven.push(
                "that nothing else matches what was asked for: that is the server's word, under its signature"
                    .into(),
            );
        }
        if self.gaps > 0 {
            verdict.not_proven.push(format!(
                "the agents themselves say in {} gap entries that something was not collected",
                self.gaps
            ));
        }
    }

    fn tell_of(&self, part: &StreamPart, seen: &Seen, verdict: &mut Verdict) {
        let (agent, stream) = (&part.agent, &part.stream);
        let (proven, not_proven) = (&mut verdict.proven, &mut verdict.not_proven);
        proven.push(format!(
            "log.txt holds {} lines of {stream}, {} bytes, exactly as agent {agent} signed them",
            seen.lines, seen.bytes
        ));
        let shown = seen.entries + seen.gaps;
        let which = if self.is_whole_stream {
            "the first "
        } else {
            ""
        };
        if let Some(sealed) = &seen.last_sealed {
            proven.push(format!(
                "{which}{} entries of {stream} were sealed by the server until {}, in interval {} of the {} that its checkpoint of {} signs",
                seen.sealed,
                time(sealed.to_us / 1_000_000),
                sealed.interval,
                sealed.leaves,
                sealed.origin
            ));
        }
        let doubted = seen.last_sealed.as_ref();
        if let Some((sealed, shown_us)) =
            doubted.and_then(|sealed| Some((sealed, sealed.doubted_us?)))
        {
            not_proven.push(format!(
                "that interval {} ended at {}: the server's clock was not confirmed then, and showed {}",
                sealed.interval,
                time(sealed.to_us / 1_000_000),
                time(shown_us / 1_000_000)
            ));
        }
        if seen.sealed < shown {
            not_proven.push(format!(
                "that the server has not changed {} entries of {stream} since they came: nothing was sealed over them yet",
                shown - seen.sealed
            ));
        }
        match seen.last_stamped {
            Some((time_s, true)) => proven.push(format!(
                "{which}{} entries of {stream} were there at {}, says a time-stamp authority that is trusted",
                seen.stamped,
                time(time_s)
            )),
            Some((time_s, false)) => not_proven.push(format!(
                "that {which}{} entries of {stream} were there at {}: give --tsa-ca to believe the token that says so",
                seen.stamped,
                time(time_s)
            )),
            None => {}
        }
        if seen.stamped < shown {
            not_proven.push(format!(
                "when {} entries of {stream} came: times are the agent's and the server's own clocks",
                shown - seen.stamped
            ));
        }
        if seen.deleted > 0 {
            proven.push(format!(
                "{} more entries of {stream} were deleted, as the server certified: {}",
                seen.deleted,
                names(&seen.certificates)
            ));
        }
        if seen.before > 0 {
            not_proven.push(format!(
                "what became of {} entries of {stream} before the first: no certificate in the package says",
                seen.before
            ));
        }
    }

    /// Compares the keys with the trusted ones.
    fn keys(&self, trust: &Trust, verdict: &mut Verdict) {
        let is_trusted = |key: &str| {
            let mut trusted = trust.keys.iter().flatten();
            trusted.any(|trusted| trusted.eq_ignore_ascii_case(key))
        };
        let agents: BTreeSet<(&str, &str)> = self
            .streams
            .iter()
            .map(|part| (&*part.agent, &*part.agent_key))
            .collect();
        let agents = agents.into_iter();
        let agents = agents.map(|(agent, key)| (format!("agent {agent}"), key));
        let server = ("the server".to_owned(), &*self.server_key);
        let mut known = 0;
        for (whose, key) in agents.chain([server]) {
            if is_trusted(key) {
                known += 1;
                verdict
                    .proven
                    .push(format!("the key of {whose} is a trusted one"));
            } else {
                verdict.not_proven.push(format!(
                    "that the key {key} is that of {whose}: compare it with the one shown in the console, or give --trust"
                ));
            }
        }
        if trust.keys.is_some() && known == 0 {
            verdict
                .problems
                .push("the package is signed with another key than the trusted one".into());
        }
    }
}

fn names(certificates: &BTreeSet<u64>) -> String {
    let numbers: Vec<String> = certificates.iter().map(u64::to_string).collect();
    format!("certificate {}", numbers.join(", "))
}

/// Gives what is written to it to a digest.
struct Hashing<'a>(&'a mut Sha256);

impl std::io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A time as a person reads it.
fn time(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok();
    let time = time.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map_or_else(|| seconds.to_string(), |time| time.to_string())
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn hex_bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes());
    bytes.ok()?.try_into().ok()
}

pub(crate) fn key_bytes(hex: &str) -> Result<[u8; 32]> {
    hex_bytes(hex).context("a key is 64 hexadecimal digits")
}

const FORMAT: &str = "scrinium-package-2";
/// What precedes a manifest under the server's signature.
const SIGNED_AS: &str = "scrinium package v2\n";
/// Members that the manifest cannot name.
const OWN: [&str; 2] = ["manifest.json", "manifest.sig"];
/// The first bytes of an age file.
const AGE: &[u8; 21] = b"age-encryption.org/v1";
