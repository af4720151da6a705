//! The verdict on a package.
//!
//! ```text
//! [tar], [table] ─▶ members ─▶ [manifest]: signature, lengths, digests ─▶ [evidence] ─▶ [walk] ─▶ sentences ─▶ [extract]
//! ```
//!
//! Invariants:
//! 1. A whole package is byte for byte what a server writes: whoever reads it with another program gets the bytes that
//!    were verified.
//! 2. Whatever is wrong with the bytes is a verdict. An error means that they could not be read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;

use anyhow::{Context as _, Result, bail, ensure};
use ed25519_dalek::VerifyingKey;
use scrinium_protocol::shown;
use serde::Serialize;

use crate::evidence::Evidence;
use crate::manifest::{Manifest, StreamPart, digest, key_bytes};
use crate::table::{Format, Table};
use crate::tar::{Member, Tar};
use crate::trust::{SERVER, Signers, Trust, whose};
use crate::walk::{Seen, walk};

/// What was found, in sentences.
#[derive(Debug, Default, Serialize)]
pub struct Verdict {
    pub whole: bool,
    pub proven: Vec<String>,
    pub not_proven: Vec<String>,
    pub problems: Vec<String>,
}

/// A package, and the verdict on it.
pub struct Checked<'a> {
    pub verdict: Verdict,
    /// What a whole one holds.
    pub(crate) content: Option<Content<'a>>,
}

/// What a package holds, as far as it was understood.
pub(crate) struct Content<'a> {
    pub(crate) tar: Tar<'a>,
    pub(crate) members: Vec<Member>,
    pub(crate) manifest: Manifest,
    /// Length and SHA-256 of the two members that the manifest cannot name.
    pub(crate) manifest_digest: (u64, String),
    pub(crate) signature_digest: (u64, String),
}

/// Checks a package.
///
/// # Errors
/// It cannot be read, or is encrypted. That it is cut, damaged or no package at all is a verdict.
pub fn check<'a>(file: &'a File, trust: &Trust) -> Result<Checked<'a>> {
    let tar = Tar::new(file)?;
    refuse_encrypted(file)?;
    let mut verdict = Verdict::default();
    let content = match inspect(tar, trust, &mut verdict) {
        Ok(content) => Some(content),
        Err(error) if is_unreadable(&error) => return Err(error),
        Err(error) => {
            verdict.problems.push(format!("{error:#}"));
            None
        }
    };
    verdict.whole = verdict.problems.is_empty();
    if !verdict.whole {
        verdict.proven.clear();
        verdict.not_proven.clear();
    }
    if verdict.problems.len() > PROBLEMS_SAID_MAX {
        let more = verdict.problems.len() - PROBLEMS_SAID_MAX;
        verdict.problems.truncate(PROBLEMS_SAID_MAX);
        verdict.problems.push(format!("and {more} more problems"));
    }
    let Verdict {
        proven,
        not_proven,
        problems,
        ..
    } = &mut verdict;
    // Whatever a package calls things, it makes no line of its own.
    for sentence in [proven, not_proven, problems].into_iter().flatten() {
        *sentence = shown::sentence(sentence);
    }
    Ok(Checked {
        content: content.filter(|_| verdict.whole),
        verdict,
    })
}

/// Whether the system refused to read: its errors have numbers; what is wrong with bytes has none.
fn is_unreadable(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let cause = cause.downcast_ref::<std::io::Error>();
        cause.is_some_and(|cause| cause.raw_os_error().is_some())
    })
}

fn refuse_encrypted(file: &File) -> Result<()> {
    let mut start = Vec::new();
    let beginning = file;
    beginning.take(AGE.len() as u64).read_to_end(&mut start)?;
    if start == AGE {
        bail!("the package is encrypted to a recipient: decrypt it first, with age -d -i IDENTITY");
    }
    Ok(())
}

/// Finds what is wrong, or says what is proven. An error is something wrong too, behind which nothing can be read.
fn inspect<'a>(tar: Tar<'a>, trust: &Trust, verdict: &mut Verdict) -> Result<Content<'a>> {
    let (format, manifest_text, manifest) = begin(&tar)?;
    let mut members = Vec::new();
    let end = complete(&tar, format, &mut members);
    let signature = members.iter().find(|found| found.name == "manifest.sig");
    let signature = signature.map(|found| tar.read(found, SIGNATURE_LEN));
    let signature = signature.transpose()?.unwrap_or_default();
    let server_key = key_bytes(&manifest.server_key)?;
    let server = VerifyingKey::from_bytes(&server_key).context("manifest.json: server_key")?;
    if !Manifest::is_signed(&manifest_text, &signature, format, &server) {
        let problem = "manifest.json: it is not signed by the server it names";
        verdict.problems.push(problem.into());
    }
    // Behind the first broken place is no member.
    end?;
    for name in manifest.missing(&members) {
        verdict.problems.push(format!("{name} is missing"));
    }
    for described in members.iter().filter(|found| !is_own(&found.name)) {
        verdict.problems.extend(manifest.compare(&tar, described)?);
    }
    if format == Format::Three {
        let made_s = manifest.made_s()?;
        if members.iter().any(|member| member.time_s != made_s) {
            let problem = "a member is not of the time at which the manifest says it was made";
            verdict.problems.push(problem.into());
        }
    }

    let by_name = members.iter().map(|member| (&*member.name, member));
    let by_name: BTreeMap<&str, &Member> = by_name.collect();
    let member = |name: &str| {
        let found = by_name.get(name).copied();
        found.with_context(|| format!("the package has no {}", shown::name(name)))
    };
    let text = tar.read(member("evidence.json")?, SMALL_LEN_MAX)?;
    let authorities = trust.authorities.as_deref();
    let evidence = Evidence::check(&text, &server, authorities, |name| {
        tar.read(member(name)?, STAMPED_LEN_MAX)
    })?;
    verdict.problems.extend(evidence.problems.iter().cloned());
    let content = Content {
        tar,
        members,
        manifest,
        manifest_digest: digest(&mut &*manifest_text)?,
        signature_digest: digest(&mut &*signature)?,
    };
    let manifest = &content.manifest;
    let walked = walk(
        manifest,
        &evidence,
        &mut content.joined("log"),
        &mut content.joined("batches"),
    );
    let mut keys = BTreeSet::from([(server_key, SERVER.to_owned())]);
    for part in &manifest.streams {
        keys.extend(
            part.keys()?
                .into_iter()
                .map(|key| (key, part.agent.clone())),
        );
    }
    let keys = keys.into_iter();
    let signers = Signers::new(
        trust.keys.as_ref(),
        keys,
        &server_key,
        &mut verdict.problems,
    );
    match walked {
        Err(error) if is_unreadable(&error) => return Err(error),
        Err(error) => verdict.problems.push(format!("{error:#}")),
        Ok(seen) => {
            verdict.problems.extend(manifest.count(&seen));
            let teller = Teller {
                manifest,
                format,
                server_key,
                signers,
                has_trust: trust.keys.is_some(),
                verdict,
            };
            teller.tell(&seen)?;
        }
    }
    Ok(content)
}

/// The first member, which says what the others must be.
fn begin(tar: &Tar<'_>) -> Result<(Format, Vec<u8>, Manifest)> {
    ensure!(!tar.is_empty(), "this is no package: the file is empty");
    let first = tar.member(0);
    let first = first.context("this is no package that a server wrote")?;
    let (first, _) = first.context("the package is empty")?;
    ensure!(
        first.name == "manifest.json",
        "this is no package that a server wrote: it begins with {}, not with manifest.json",
        shown::name(&first.name)
    );
    let text = tar.read(&first, SMALL_LEN_MAX)?;
    let (format, manifest) = Manifest::parse(&text)?;
    Ok((format, text, manifest))
}

/// Finds the other members, up to the end of the file or the first place that is not as a server writes it.
fn complete(tar: &Tar<'_>, format: Format, members: &mut Vec<Member>) -> Result<()> {
    let mut table = Table::new(format);
    let mut at = 0;
    while let Some((member, next)) = tar.member(at)? {
        table.take(&member.name)?;
        members.push(member);
        at = next;
    }
    table.finish()
}

/// Members that the manifest cannot name.
fn is_own(name: &str) -> bool {
    ["manifest.json", "manifest.sig"].contains(&name)
}

impl<'a> Content<'a> {
    /// The texts of `stem` and its parts, one behind the other.
    fn joined(&self, stem: &'static str) -> Joined<'_, 'a> {
        let mut members: Vec<&Member> = self.members.iter().collect();
        members.retain(|member| member.name.split('.').next() == Some(stem));
        members.reverse();
        Joined {
            content: self,
            waiting: members,
            now: None,
        }
    }
}

/// Reads members one behind the other, one open at a time.
struct Joined<'c, 'a> {
    content: &'c Content<'a>,
    /// The next one last.
    waiting: Vec<&'c Member>,
    now: Option<Box<dyn std::io::Read + 'a>>,
}

impl std::io::Read for Joined<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            if let Some(now) = &mut self.now {
                let n = now.read(buffer)?;
                if n > 0 || buffer.is_empty() {
                    return Ok(n);
                }
            }
            let Some(next) = self.waiting.pop() else {
                return Ok(0);
            };
            let Content { tar, manifest, .. } = self.content;
            let opened = manifest.text(tar, next);
            self.now = Some(opened.map_err(|error| {
                error
                    .downcast::<std::io::Error>()
                    .unwrap_or_else(std::io::Error::other)
            })?);
        }
    }
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
        if !agrees {
            return Some("the counts of the manifest are not those of the entries".to_owned());
        }
        let differs = |(part, seen): &(&StreamPart, &Seen)| {
            part.in_no_interval()
                .is_some_and(|said| said != seen.unsealed)
        };
        let (part, _) = self.streams.iter().zip(seen).find(differs)?;
        Some(format!(
            "the entries of {} that are in no interval are others than the manifest says",
            shown::name(&part.stream)
        ))
    }
}

/// Says what is proven of a package.
struct Teller<'a> {
    manifest: &'a Manifest,
    format: Format,
    server_key: [u8; 32],
    signers: Signers,
    has_trust: bool,
    verdict: &'a mut Verdict,
}

impl Teller<'_> {
    fn proven(&mut self, sentence: impl Into<String>) {
        self.verdict.proven.push(sentence.into());
    }

    fn not_proven(&mut self, sentence: impl Into<String>) {
        self.verdict.not_proven.push(sentence.into());
    }

    fn tell(mut self, seen: &[Seen]) -> Result<()> {
        let batches: u64 = seen.iter().map(|seen| seen.batches).sum();
        self.proven(format!(
            "{batches} batches: every signature, chain head and way to a Merkle root was recomputed"
        ));
        let manifest = self.manifest;
        for (part, seen) in manifest.streams.iter().zip(seen) {
            self.tell_of(part, seen)?;
        }
        if manifest.is_whole_stream {
            self.proven(
                "none between the first and the last is missing, doubled, moved or altered",
            );
        } else {
            self.not_proven(
                "that nothing else matches what was asked for: that is the server's word, under its signature",
            );
        }
        self.not_proven(
            "what the custody sheet, and the table of entries where there is one, say of the lines: that is the word of who signed the manifest; log.txt alone is compared with what was signed at its source",
        );
        if manifest.gaps > 0 {
            self.not_proven(format!(
                "the agents themselves say in {} gap entries that something was not collected",
                manifest.gaps
            ));
        }
        for (agent, gaps) in &manifest.gaps_left_out {
            self.not_proven(format!(
                "what {gaps} more gap entries of {} say: they are not shown",
                shown::name(agent)
            ));
        }
        if self.format == Format::Two {
            self.not_proven(
                "when the files in the package were written: packages of 0.1.0 do not sign their times",
            );
        }
        self.tell_of_keys();
        Ok(())
    }

    fn tell_of(&mut self, part: &StreamPart, seen: &Seen) -> Result<()> {
        let stream = shown::name(&part.stream);
        let keys = part.keys()?;
        let is_trusted = |key: &[u8; 32]| self.signers.is_trusted(key, &part.agent);
        let signer = match &keys[..] {
            keys if !keys.iter().all(is_trusted) => {
                let keys: Vec<String> = keys.iter().map(shown::key).collect();
                format!("the holder of {}", keys.join(" or "))
            }
            [key, ..] => whose(key, &part.agent, &self.server_key),
            [] => anyhow::bail!("an agent has a key"),
        };
        let server = if self.signers.is_trusted(&self.server_key, SERVER) {
            "the server"
        } else {
            "the holder of the server's key"
        };
        self.proven(format!(
            "log.txt holds {} lines of {stream}, {} bytes, exactly as {signer} signed them",
            seen.lines, seen.bytes
        ));
        let shown = seen.entries + seen.gaps;
        let which = if self.manifest.is_whole_stream {
            "the first "
        } else {
            ""
        };
        if let Some(sealed) = &seen.last_sealed {
            self.proven(format!(
                "{which}{} entries of {stream} were sealed by {server} until {}, in interval {} of the {} that its checkpoint of {} signs",
                seen.sealed,
                time(sealed.to_us / 1_000_000),
                sealed.interval,
                sealed.leaves,
                shown::name(&sealed.origin)
            ));
        }
        let doubted = seen.last_sealed.as_ref();
        if let Some((sealed, shown_us)) =
            doubted.and_then(|sealed| Some((sealed, sealed.doubted_us?)))
        {
            self.not_proven(format!(
                "that interval {} ended at {}: the server's clock was not confirmed then, and showed {}",
                sealed.interval,
                time(sealed.to_us / 1_000_000),
                time(shown_us / 1_000_000)
            ));
        }
        if seen.sealed < shown {
            self.not_proven(format!(
                "that the server has not changed {} entries of {stream} since they came: nothing was sealed over them yet, they are in no interval (sequences {})",
                shown - seen.sealed,
                ranges(&seen.unsealed)
            ));
        }
        match seen.last_stamped {
            Some((time_s, true)) => self.proven(format!(
                "{which}{} entries of {stream} were there at {}, says a time-stamp authority that is trusted",
                seen.stamped,
                time(time_s)
            )),
            Some((time_s, false)) => self.not_proven(format!(
                "that {which}{} entries of {stream} were there at {}: give --tsa-ca to believe the token that says so",
                seen.stamped,
                time(time_s)
            )),
            None => {}
        }
        if seen.stamped < shown {
            self.not_proven(format!(
                "when {} entries of {stream} came: times are the agent's and the server's own clocks",
                shown - seen.stamped
            ));
        }
        if seen.deleted > 0 {
            self.proven(format!(
                "{} more entries of {stream} were deleted, as {server} certified: {}",
                seen.deleted,
                names(&seen.certificates)
            ));
        }
        if seen.before > 0 {
            self.not_proven(format!(
                "what became of {} entries of {stream} before the first: no certificate in the package says",
                seen.before
            ));
        }
        Ok(())
    }

    fn tell_of_keys(&mut self) {
        let keys = self.signers.iter();
        let keys: Vec<(String, String, bool)> = keys
            .map(|(key, name, trusted)| {
                let whose = whose(key, name, &self.server_key);
                (whose, shown::key(key), trusted)
            })
            .collect();
        for (whose, key, trusted) in keys {
            if trusted {
                self.proven(format!("the key of {whose} is a trusted one"));
            } else if !self.has_trust {
                self.not_proven(format!(
                    "that the key {key} is that of {whose}: compare it with the one shown there and on the server's console, or give --trust"
                ));
            }
        }
    }
}

/// Sequences, both ends included, as far as a sentence can hold them.
fn ranges(ranges: &[(u64, u64)]) -> String {
    let said = ranges.iter().take(RANGES_SAID_MAX);
    let said = said.map(|(first, next)| format!("{first} to {}", next.saturating_sub(1)));
    let mut said = said.collect::<Vec<_>>().join(", ");
    if ranges.len() > RANGES_SAID_MAX {
        said += &format!(", and {} more ranges", ranges.len() - RANGES_SAID_MAX);
    }
    said
}

fn names(certificates: &BTreeSet<u64>) -> String {
    let numbers: Vec<String> = certificates.iter().map(u64::to_string).collect();
    format!("certificate {}", numbers.join(", "))
}

/// A time as a person reads it.
fn time(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok();
    let time = time.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map_or_else(|| seconds.to_string(), |time| time.to_string())
}

/// Hexadecimal digits.
const SIGNATURE_LEN: u64 = 128;
const RANGES_SAID_MAX: usize = 5;
const PROBLEMS_SAID_MAX: usize = 100;
/// What the intervals of very many streams need.
const SMALL_LEN_MAX: u64 = 128 << 20;
/// More than any token with its certificates, or a checkpoint, has.
const STAMPED_LEN_MAX: u64 = 1 << 20;
/// The first bytes of an age file.
const AGE: &[u8; 21] = b"age-encryption.org/v1";
