//! Runs a query over the archive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use scrinium_protocol::identity::{AgentId, StreamId, StreamKind};

use super::filter;
use super::lines::for_each_line;
use super::query::Query;
use crate::archive::block::StoredBatch;
use crate::archive::container::Access;
use crate::archive::keys::Unreadable;
use crate::archive::{Archive, EVER, Extent, is_out_of_descriptors};
use crate::clock;

/// One line found.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    pub(crate) stream: StreamId,
    /// Sequence of its (first) entry.
    pub(crate) sequence: u64,
    /// When it was collected, Unix µs.
    pub(crate) time_us: u64,
    /// When the server received it, Unix µs.
    pub(crate) received_us: u64,
    pub(crate) bytes: Vec<u8>,
    /// It is a collector's statement that something is missing.
    pub(crate) is_gap: bool,
}

/// What a search gives.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Newest first, at most as many as asked for.
    pub(crate) hits: Vec<Hit>,
    /// All lines that match.
    pub(crate) count: u64,
    /// Lines per bucket of the asked width; key is the bucket's start, Unix µs.
    pub(crate) histogram: BTreeMap<u64, u64>,
    /// Extents that could not be read: the rest was served.
    pub(crate) damaged: u64,
    /// Extents that could not be read because no file descriptor was left; see [`Found::checked`].
    pub(crate) lacking: u64,
    /// Extents of the second container, which were not read.
    pub(crate) sealed: u64,
    /// The time was up before all was read.
    pub(crate) partial: bool,
}

impl Found {
    /// What was found, unless parts were not searched for want of file descriptors: that is no answer.
    pub(crate) fn checked(self) -> Result<Self> {
        ensure!(
            self.lacking == 0,
            "{} parts of the archive were not searched: the server has no file descriptor left. Nothing is damaged; search again, or raise the server's LimitNOFILE",
            self.lacking
        );
        Ok(self)
    }
}

/// What to return.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) hits_max: usize,
    /// Width of a histogram bucket in µs; 0 for none. Without histogram and count, a search ends
    /// when no older extent can hold a newer hit.
    pub(crate) bucket_us: u64,
    pub(crate) count_all: bool,
    pub(crate) deadline: Option<Duration>,
}

/// Searches the archive. `agents` are those whose entries may be returned, with their names.
pub(crate) fn search(
    archive: &Archive,
    agents: &BTreeMap<AgentId, String>,
    query: &Query,
    wanted: Wanted,
    access: &Access,
) -> Found {
    let started = clock::now();
    let streams = matching_streams(archive, agents, query);
    let last_us = query.to_us.map_or(EVER.1, |to| to.saturating_sub(1));
    let times_us = (query.from_us.unwrap_or(EVER.0), last_us);
    let found = archive.extents(|stream| streams.contains(&stream), times_us);
    let lacking = found.damaged.iter();
    let lacking = lacking.filter(|(_, error)| is_out_of_descriptors(error));
    let lacking = lacking.count() as u64;
    let damaged = found.damaged.len() as u64 - lacking;
    let mut extents = found.list;
    let is_open = |extent: &Extent| {
        let block = extent.block();
        block.is_none_or(|(segment, _)| archive.may_read(&segment.group, access))
    };
    let all = extents.len();
    extents.retain(is_open);
    let sealed = (all - extents.len()) as u64;
    if query.is_everything() && wanted.hits_max == 0 && wanted.bucket_us == 0 {
        return Found {
            count: extents.iter().map(Extent::entries).sum(),
            damaged,
            lacking,
            sealed,
            ..Found::default()
        };
    }
    exclude_by_filter(archive, query, false, access, &mut extents);
    extents.sort_by_key(|extent| core::cmp::Reverse(extent.times_us.1));

    let scan = Scan {
        archive,
        query,
        wanted,
        access,
        extents: &extents,
        next: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        deadline: wanted.deadline.map(|deadline| started + deadline),
        found: Mutex::new(Found {
            damaged,
            lacking,
            sealed,
            ..Found::default()
        }),
    };
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(extents.len())
        .max(1);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| scan.run());
        }
        scan.run();
    });
    let mut found = scan
        .found
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    sort_hits(&mut found.hits, wanted.hits_max);
    found
}

/// The streams that can answer a query.
pub(crate) fn matching_streams(
    archive: &Archive,
    agents: &BTreeMap<AgentId, String>,
    query: &Query,
) -> BTreeSet<StreamId> {
    archive.matching(|stream| {
        let Some(agent) = agents.get(&stream.agent) else {
            return false;
        };
        // What server and agents say of themselves answers only when it is asked for: every search would
        // find itself, and what is said of a file is not in the file.
        let is_own = matches!(stream.kind, StreamKind::Audit | StreamKind::Agent);
        if is_own && query.streams.is_empty() {
            return false;
        }
        query
            .agents
            .iter()
            .all(|wanted| wanted.eq_ignore_ascii_case(agent))
            && query
                .streams
                .iter()
                .all(|wanted| stream.name.contains(wanted.as_str()))
    })
}

/// Leaves out the extents whose filter says that nothing matches; with `gaps`, those that may hold what a
/// collector says is missing stay.
pub(crate) fn exclude_by_filter(
    archive: &Archive,
    query: &Query,
    gaps: bool,
    access: &Access,
    extents: &mut Vec<Extent>,
) {
    let tokens = query.tokens();
    let gap = filter::tokens(GAP_WORD).into_iter().map(|(hash, _)| hash);
    let gap: Vec<u64> = gap.collect();
    if tokens.is_empty() {
        return;
    }
    // Segment by segment, so that one file is open at a time, however many the archive has.
    let mut of_segment: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (at, extent) in extents.iter().enumerate() {
        if let Some((segment, _)) = extent.block() {
            of_segment.entry(segment.number).or_default().push(at);
        }
    }
    let mut excluded = BTreeSet::new();
    for at in of_segment.into_values() {
        let blocks = at.into_iter().filter_map(|at| {
            let (segment, block) = extents.get(at)?.block()?;
            Some((at, segment, block))
        });
        let mut reader = None;
        for (at, segment, block) in blocks {
            // A filter that cannot be read excludes nothing: what is wrong shows when the block is read.
            let reader = reader.get_or_insert_with(|| archive.open_segment(segment).ok());
            let filter = reader
                .as_ref()
                .and_then(|reader| archive.read_filter(reader, segment, block, access).ok());
            let may_hold = filter.is_none_or(|filter| {
                filter::may_hold(&filter, &tokens) || gaps && filter::may_hold(&filter, &gap)
            });
            if !may_hold {
                excluded.insert(at);
            }
        }
    }
    let mut at = 0..;
    extents.retain(|_| at.next().is_none_or(|at| !excluded.contains(&at)));
}

struct Scan<'a> {
    archive: &'a Archive,
    query: &'a Query,
    wanted: Wanted,
    access: &'a Access,
    extents: &'a [Extent],
    next: AtomicUsize,
    stop: AtomicBool,
    deadline: Option<Instant>,
    found: Mutex<Found>,
}

impl Scan<'_> {
    fn run(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let Some(extent) = self.extents.get(self.next.fetch_add(1, Ordering::Relaxed)) else {
                return;
            };
            if self
                .deadline
                .is_some_and(|deadline| clock::now() >= deadline)
            {
                self.lock().partial = true;
                self.stop.store(true, Ordering::Relaxed);
                return;
            }
            if self.is_settled(extent) {
                self.stop.store(true, Ordering::Relaxed);
                return;
            }
            let mut local = Found::default();
            match self.archive.read(extent, self.access) {
                Ok(batches) => {
                    for batch in &batches {
                        self.scan_batch(batch, &mut local);
                    }
                }
                Err(error) => match error.downcast_ref() {
                    Some(Unreadable::Sealed) => local.sealed = 1,
                    Some(Unreadable::Forgotten) => {}
                    None if is_out_of_descriptors(&error) => local.lacking = 1,
                    None => local.damaged = 1,
                },
            }
            self.merge(local);
        }
    }

    /// Whether nothing in this extent or an older one can change the answer.
    fn is_settled(&self, extent: &Extent) -> bool {
        if self.wanted.count_all || self.wanted.bucket_us != 0 {
            return false;
        }
        let found = self.lock();
        found.hits.len() >= self.wanted.hits_max
            && found
                .hits
                .iter()
                .map(|hit| hit.time_us)
                .min()
                .is_none_or(|oldest| extent.times_us.1 < oldest)
    }

    fn scan_batch(&self, batch: &StoredBatch, found: &mut Found) {
        for_each_line(self.query, batch, false, |line| {
            found.count += 1;
            if let Some(bucket) = line.time_us.checked_div(self.wanted.bucket_us) {
                *found
                    .histogram
                    .entry(bucket * self.wanted.bucket_us)
                    .or_default() += 1;
            }
            if self.wanted.hits_max > 0 {
                found.hits.push(line.into_hit(batch));
            }
        });
    }

    fn merge(&self, mut local: Found) {
        if local.hits.len() > self.wanted.hits_max {
            sort_hits(&mut local.hits, self.wanted.hits_max);
        }
        let mut found = self.lock();
        found.count += local.count;
        found.damaged += local.damaged;
        found.lacking += local.lacking;
        found.sealed += local.sealed;
        for (bucket, count) in local.histogram {
            *found.histogram.entry(bucket).or_default() += count;
        }
        found.hits.append(&mut local.hits);
        if found.hits.len() > self.wanted.hits_max * 4 {
            let hits_max = self.wanted.hits_max;
            sort_hits(&mut found.hits, hits_max);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What every gap entry begins with.
const GAP_WORD: &[u8] = b"gap";

/// Newest first; entries of one stream collected at once keep their order.
fn sort_hits(hits: &mut Vec<Hit>, hits_max: usize) {
    hits.sort_by_key(|hit| core::cmp::Reverse((hit.time_us, hit.stream, hit.sequence)));
    hits.truncate(hits_max);
}
