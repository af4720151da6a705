//! Forgetting: what is due, and how it goes.
//!
//! ```text
//! class, holds ─▶ due ─▶ one step of the catalogue: keys gone, segments gone, pruned ranges, certificate
//!                        └─▶ files gone ─▶ certificate in the archive's own trail
//! ```
//!
//! Invariants:
//! 1. Nothing is forgotten before its class says so, or a person did; nothing that is held.
//! 2. Keys and certificate change in one step: nothing goes without a certificate, and no certificate speaks
//!    of what can still be read.
//! 3. Age counts from the true day of receipt, on a time that is confirmed: see [`crate::time`].
//! 4. A crash anywhere leaves files that nobody can read; the start removes them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use data_encoding::{BASE64, HEXLOWER};
use ed25519_dalek::{Signer as _, SigningKey};
use scrinium_protocol::identity::{AgentId, StreamId};
use scrinium_segment::fault;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Archive;
use super::segment::{Block, Introduced};
use super::upkeep::Upkeep;
use crate::bounds;
use crate::catalogue::records::{
    CertificateRecord, Group, PrunedRange, PrunedRecord, RemovedSegment, SegmentRecord,
};
use crate::clock::{self, Day};
use crate::policy::{Owner, Policy};
use crate::present;
use crate::time::Spans;

/// What is to be forgotten of one group.
pub(crate) struct Due {
    pub(crate) group: Group,
    /// The day its age counts from: that of the group, or a later one where the server's time had been behind.
    pub(crate) received: Day,
    pub(crate) reason: Reason,
    /// The streams that go, with what the archive has of them there.
    pub(crate) gone: BTreeMap<StreamId, Gone>,
    /// The streams that stay, with the holds that keep them.
    pub(crate) kept: BTreeMap<StreamId, Vec<String>>,
    /// The group's segments.
    segments: Vec<SegmentRecord>,
    /// Those whose index cannot be read: what was in them is not known any more.
    unreadable: Vec<u64>,
}

/// What is forgotten of one stream.
pub(crate) struct Gone {
    stream: Introduced,
    ranges: Vec<PrunedRange>,
    /// Bytes of its entries.
    bytes: u64,
}

/// Why something is forgotten.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reason {
    /// Its class keeps it so many days, and no longer.
    Expired { keep_days: u32 },
    /// So many days passed since the contract with its tenant ended.
    ContractEnded { days: u32 },
    /// Its agent was deleted.
    AgentDeleted { by: String, why: String },
}

impl Gone {
    pub(crate) fn entries(&self) -> u64 {
        let counts = self.ranges.iter();
        counts
            .map(|range| range.sequences.1 - range.sequences.0)
            .sum()
    }
}

impl Due {
    pub(crate) fn entries(&self) -> u64 {
        self.gone.values().map(Gone::entries).sum()
    }

    /// Bytes of files that go; a file goes with the last of its streams.
    pub(crate) fn file_bytes(&self) -> u64 {
        if self.kept.is_empty() {
            self.segments.iter().map(|segment| segment.len).sum()
        } else {
            0
        }
    }
}

/// What is to be forgotten on `today`.
pub(crate) fn due(archive: &Archive, policy: &Policy, spans: &Spans, today: Day) -> Vec<Due> {
    let groups = archive.keys().groups().into_iter();
    let due = groups.filter_map(|group| {
        let received = spans.counted_from(group.day);
        let reason = policy.reason_to_forget(&group, received, today)?;
        let due = of_group(archive, group, received, reason, |stream, day| {
            let owner = policy.owner_of(stream.agent);
            holds_between(policy, &owner, &stream.name, (day, received))
        });
        // What may be held and cannot be told apart stays.
        let mut days = days_between(due.group.day, received);
        let doubtful = !due.unreadable.is_empty() && days.any(|day| policy.holds_day(day));
        let goes = !due.gone.is_empty() || due.kept.is_empty();
        (goes && !doubtful).then_some(due)
    });
    due.collect()
}

/// The holds that keep what was received on one of the days from the first to the last.
fn holds_between(
    policy: &Policy,
    owner: &Owner,
    stream: &str,
    (first, last): (Day, Day),
) -> Vec<String> {
    let holds = days_between(first, last).flat_map(|day| policy.holds_on(owner, stream, day));
    let holds: BTreeSet<String> = holds.collect();
    holds.into_iter().collect()
}

/// The first and the last day, and those between; of very many the ends.
fn days_between(first: Day, last: Day) -> impl Iterator<Item = Day> {
    let between = last.0.saturating_sub(first.0).min(DAYS_BETWEEN_MAX);
    let days = (0..=between).map(move |n| first.plus(n));
    days.chain([last])
}

/// What is there of an agent, to be forgotten now, or the holds that forbid it.
pub(crate) fn of_agent(
    archive: &Archive,
    policy: &Policy,
    spans: &Spans,
    agent: AgentId,
    reason: &Reason,
) -> Result<Vec<Due>, BTreeSet<String>> {
    let owner = policy.owner_of(agent);
    let mut found = Vec::new();
    let mut holding = BTreeSet::new();
    for group in archive.keys().groups() {
        let received = spans.counted_from(group.day);
        let due = of_group(archive, group, received, reason.clone(), |stream, day| {
            if stream.agent != agent {
                return vec![String::new()]; // somebody else's stays
            }
            let days = (day, received);
            holding.extend(holds_between(policy, &owner, &stream.name, days));
            Vec::new()
        });
        if !due.gone.is_empty() {
            found.push(due);
        }
    }
    if holding.is_empty() {
        Ok(found)
    } else {
        Err(holding)
    }
}

fn of_group(
    archive: &Archive,
    group: Group,
    received: Day,
    reason: Reason,
    mut holds: impl FnMut(&Introduced, Day) -> Vec<String>,
) -> Due {
    let (segments, _) = archive.parts();
    let segments = segments.iter().filter(|segment| segment.group == group);
    let segments: Vec<SegmentRecord> = segments.map(|segment| (**segment).clone()).collect();
    let still = archive.keys().kept(&group);
    let mut due = Due {
        group,
        received,
        reason,
        gone: BTreeMap::new(),
        kept: BTreeMap::new(),
        segments,
        unreadable: Vec::new(),
    };
    let mut blocks: BTreeMap<StreamId, Vec<Block>> = BTreeMap::new();
    for segment in &due.segments {
        let Ok(index) = archive.index(segment) else {
            due.unreadable.push(segment.number);
            continue;
        };
        for (&id, stream) in index.streams.iter().filter(|(id, _)| still.has(**id)) {
            let holds = holds(stream, due.group.day);
            if holds.is_empty() {
                due.gone.entry(id).or_insert_with(|| Gone {
                    stream: stream.clone(),
                    ranges: Vec::new(),
                    bytes: 0,
                });
            } else {
                due.kept.insert(id, holds);
            }
        }
        for block in &index.blocks {
            blocks.entry(block.stream).or_default().push(block.clone());
        }
    }
    for (id, gone) in &mut due.gone {
        let mut blocks = blocks.remove(id).unwrap_or_default();
        blocks.sort_by_key(|block| block.order);
        for block in blocks {
            gone.bytes += block.bytes;
            let range = PrunedRange {
                epoch: block.epoch,
                sequences: block.sequences,
                head: block.head,
                certificate: 0,
            };
            add_range(&mut gone.ranges, range);
        }
    }
    due
}

/// Adds a range behind or between others, as one with those it touches.
fn add_range(ranges: &mut Vec<PrunedRange>, range: PrunedRange) {
    ranges.push(range);
    ranges.sort_by_key(|range| (range.epoch, range.sequences.0));
    ranges.dedup_by(|next, range| {
        let touches = next.epoch == range.epoch && next.sequences.0 == range.sequences.1;
        if touches {
            range.sequences.1 = next.sequences.1;
            range.head = next.head;
            range.certificate = range.certificate.max(next.certificate);
        }
        touches
    });
}

impl Upkeep {
    /// Forgets everything that is due today.
    pub(crate) fn expire(&self, today: Day) -> Result<()> {
        let spans = self.time.spans();
        self.forget(&due(&self.archive, &self.policy, &spans, today))
    }

    /// Forgets what is due; the certificates are durable when this returns, and nothing of it can be read.
    pub(crate) fn forget(&self, due: &[Due]) -> Result<()> {
        if due.is_empty() {
            return Ok(());
        }
        let forgotten: Result<Vec<Vec<u64>>> =
            due.iter().map(|due| self.forget_group(due)).collect();
        // Once for all of them, whether or not all went: until then the copy still opens what is gone.
        self.archive.keys().write_copy()?;
        self.catalogue.forget_old_pages()?;
        self.remove_files(&forgotten?.concat())
    }

    /// Destroys the keys of what is due of one group; the segments that go with them.
    fn forget_group(&self, due: &Due) -> Result<Vec<u64>> {
        let kept: BTreeSet<StreamId> = due.kept.keys().copied().collect();
        let leaving: Vec<u64> = if kept.is_empty() {
            due.segments.iter().map(|segment| segment.number).collect()
        } else {
            Vec::new()
        };
        let mut mark = self.archive.mark();
        let mut pruned = BTreeMap::new();
        let known = self.archive.pruned();
        let mut certificates = Vec::new();
        for part in parts(due, &self.policy) {
            mark.certificate += 1;
            let number = mark.certificate;
            let text = certificate(&self.signing, &self.policy, due, number, &part, &leaving)?;
            certificates.push(CertificateRecord {
                number,
                text,
                published_at: None,
                made_us: clock::unix_us(),
            });
        }
        for (id, gone) in &due.gone {
            let mut ranges = known.get(id).cloned().unwrap_or_default();
            for range in &gone.ranges {
                let certificate = mark.certificate;
                let range = PrunedRange {
                    certificate,
                    ..*range
                };
                add_range(&mut ranges, range);
            }
            pruned.insert(*id, ranges);
        }
        self.catalogue.write(|changes| {
            self.archive.keys().forget(changes, &due.group, &kept)?;
            for (&stream, ranges) in &pruned {
                let ranges = ranges.clone();
                changes.put(&PrunedRecord { stream, ranges })?;
            }
            for segment in due.segments.iter().filter(|_| kept.is_empty()) {
                changes.remove(segment)?;
                let number = segment.number;
                changes.put(&RemovedSegment { number })?;
            }
            for certificate in &certificates {
                changes.put(certificate)?;
            }
            changes.put(&mark)
        })?;
        // At this point nothing of it can be read, and the certificate is durable; if we die now, the start
        // removes the files.
        fault::point("server: keys destroyed");
        self.archive.keys().forgotten(&due.group, &kept);
        self.archive.leave(&leaving, pruned, mark);
        tracing::info!(
            day = %due.group.day, class = due.group.class, tenant = due.group.tenant,
            entries = due.entries(), streams = due.gone.len(), "forgot what was due"
        );
        Ok(leaving)
    }

    /// Removes the files of segments that the catalogue has let go.
    pub(crate) fn remove_files(&self, numbers: &[u64]) -> Result<()> {
        for &number in numbers {
            scrinium_segment::durable::remove(&self.archive.segment_path(number))?;
            fault::point("server: segment removed");
        }
        if !numbers.is_empty() {
            self.catalogue.write(|changes| {
                numbers
                    .iter()
                    .try_for_each(|&number| changes.remove(&RemovedSegment { number }))
            })?;
        }
        self.archive.left(numbers);
        Ok(())
    }
}

/// What certificates say of the streams that go, in parts that fit into an entry each.
fn parts(due: &Due, policy: &Policy) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for (id, gone) in &due.gone {
        let owner = policy.owner_of(gone.stream.agent);
        for (nth, ranges) in gone.ranges.chunks(RANGES_MAX).enumerate() {
            // Said once, with the first of its ranges.
            let bytes = if nth == 0 { gone.bytes } else { 0 };
            let entries = ranges
                .iter()
                .map(|range| range.sequences.1 - range.sequences.0)
                .sum();
            let ranges = ranges.iter().map(|range| {
                json!({
                    "epoch": range.epoch.to_string(), "first": range.sequences.0,
                    "next": range.sequences.1, "head": range.head.to_string(),
                })
            });
            let stream = json!({
                "id": id.to_string(), "agent": owner.agent, "site": bounds::shortened(&owner.site),
                "kind": gone.stream.kind.name(), "stream": &*gone.stream.name,
                "entries": entries, "bytes": bytes, "ranges": ranges.collect::<Vec<_>>(),
            });
            let len = stream.to_string().len();
            match parts.last_mut() {
                Some(part) if part.len + len <= PART_LEN_MAX => {
                    part.add(stream, (entries, bytes), len)
                }
                _ => {
                    let mut part = Part::default();
                    part.add(stream, (entries, bytes), len);
                    parts.push(part);
                }
            }
        }
    }
    if parts.is_empty() && !due.segments.is_empty() {
        // Segments of which nothing can be told any more do not go without a word either.
        parts.push(Part::default());
    }
    parts
}

/// Streams of one certificate.
#[derive(Default)]
struct Part {
    streams: Vec<serde_json::Value>,
    entries: u64,
    bytes: u64,
    len: usize,
}

impl Part {
    fn add(&mut self, stream: serde_json::Value, (entries, bytes): (u64, u64), len: usize) {
        self.streams.push(stream);
        self.entries += entries;
        self.bytes += bytes;
        self.len += len;
    }
}

/// The signed text of a certificate: one line of JSON, with the signature over all of it before the signature.
fn certificate(
    signing: &SigningKey,
    policy: &Policy,
    due: &Due,
    number: u64,
    part: &Part,
    segments: &[u64],
) -> Result<String> {
    let rule = policy
        .classes()
        .into_iter()
        .find(|class| class.name == due.group.class);
    // What no class speaks of any more has no floor.
    let floor_ended = rule.as_ref().map(|rule| due.received.plus(rule.floor_days));
    let inside_floor = floor_ended.is_some_and(|ended| Day::of(clock::unix_us()) <= ended);
    ensure!(
        !inside_floor || !matches!(due.reason, Reason::Expired { .. }),
        "{} of class {} is inside its floor: it is kept",
        due.group.day,
        due.group.class
    );
    let holds: BTreeSet<&String> = due
        .kept
        .values()
        .flatten()
        .filter(|hold| !hold.is_empty())
        .collect();
    let text = json!({
        "certificate": number,
        "time": present::rfc3339(clock::unix_us()),
        "reason": due.reason,
        "tenant": due.group.tenant,
        "class": due.group.class,
        "rule": rule,
        "day": due.group.day.to_string(),
        "counted_from": due.received.to_string(),
        "floor_ended": floor_ended.map(|day| day.to_string()),
        "inside_floor": inside_floor,
        "entries": part.entries,
        "bytes": part.bytes,
        "streams": part.streams,
        "streams_kept": due.kept.len(),
        "holds": holds,
        "segments": segments,
        "segments_unreadable": due.unreadable,
        "server_key": HEXLOWER.encode(signing.verifying_key().as_bytes()),
    });
    let text = text.to_string();
    let signature = signing.sign(format!("{SIGNED_AS}{text}").as_bytes());
    let body = text.strip_suffix('}').context("an object")?;
    let signature = BASE64.encode(&signature.to_bytes());
    Ok(format!("{body},\"signature\":\"{signature}\"}}\n"))
}

/// What precedes a certificate's text under its signature.
pub(crate) const SIGNED_AS: &str = "scrinium deletion v1\n";
/// Bytes of the streams of one certificate; all of it is one entry.
const PART_LEN_MAX: usize = 48 << 10;
/// Ranges of a stream in one certificate.
const RANGES_MAX: usize = 100;
/// Days of receipt of one group that holds are looked for on.
const DAYS_BETWEEN_MAX: u32 = 40_000;
