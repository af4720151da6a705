//! Runs a query over the archive, newest first, page by page.
//!
//! ```text
//! extents ─▶ those that may hold something ─▶ threads read and scan ─▶ the newest lines of a page ─▶ the next page
//! ```
//!
//! A page has a bound of lines and one of bytes, and holds exactly the newest lines that were not given yet. The next
//! page reads again what may hold older ones: a search of any length takes the memory of one page.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use scrinium_protocol::identity::{AgentId, StreamId, StreamKind};

use super::cancelled::Cancelled;
use super::filter;
use super::gate::Gate;
use super::hits::{Hit, Newest, Place};
use super::lines::for_each_line;
use super::query::Query;
use super::turns::Busy;
use crate::archive::block::{AHEAD_US_MAX, StoredBatch};
use crate::archive::container::Access;
use crate::archive::keys::Unreadable;
use crate::archive::{Archive, EVER, Extent, is_out_of_descriptors};
use crate::clock::{self, DAY_US};

/// A search that gives its lines page by page.
pub(crate) struct Search {
    archive: Arc<Archive>,
    query: Query,
    access: Access,
    cancelled: Cancelled,
    candidates: Vec<Candidate>,
    /// Older than this is what was not given yet.
    given: Option<Place>,
    damaged: u64,
    /// Not looked at, for want of file descriptors.
    lacking: u64,
    sealed: u64,
}

/// What a page gives.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Newest first.
    pub(crate) hits: Vec<Hit>,
    /// All lines that match, if they were counted.
    pub(crate) count: u64,
    /// Lines per bucket; key is the bucket's start, Unix µs.
    pub(crate) histogram: BTreeMap<u64, u64>,
    /// Extents that could not be read: the rest was served.
    pub(crate) damaged: u64,
    /// Extents that could not be read because no file descriptor was left: that is no answer.
    pub(crate) lacking: u64,
    /// Extents of the second container, which were not read.
    pub(crate) sealed: u64,
    /// The time was up before all was read.
    pub(crate) partial: bool,
    /// No place to search came for very long, before all was read.
    pub(crate) busy: Option<Busy>,
    /// There may be older lines than the page has.
    pub(crate) goes_on: bool,
    /// How much was read for it, in bytes.
    pub(crate) read_bytes: u64,
}

/// What to return.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) lines_max: usize,
    /// Bytes of lines that are held at once; one line is given however long it is.
    pub(crate) bytes_max: usize,
    pub(crate) histogram: Option<Buckets>,
    /// Without it, and without a histogram, a page ends when nothing older can hold a newer line.
    pub(crate) count_all: bool,
    pub(crate) deadline: Option<Instant>,
}

/// The buckets of a histogram; what is outside is counted, not charted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buckets {
    /// The first bucket's start and the last one's end, Unix µs.
    pub(crate) range_us: (u64, u64),
    pub(crate) width_us: u64,
}

/// An extent that may hold lines that were not given yet.
struct Candidate {
    extent: Extent,
    /// None of them is ordered later, Unix µs.
    newest_us: u64,
}

impl Search {
    /// Finds what may hold an answer. `agents` are those whose entries may be returned, with their names.
    pub(crate) fn new(
        archive: Arc<Archive>,
        agents: &BTreeMap<AgentId, String>,
        query: Query,
        access: Access,
        cancelled: Cancelled,
        deadline: Option<Instant>,
        gate: &Gate,
    ) -> Self {
        let streams = matching_streams(&archive, agents, &query);
        let last_us = query.to_us.map_or(EVER.1, |to| to.saturating_sub(1));
        let times_us = (query.from_us.unwrap_or(EVER.0), last_us);
        let found = archive.extents(|stream| streams.contains(&stream), times_us);
        let mut extents = found.list;
        let is_open = |extent: &Extent| {
            let block = extent.block();
            block.is_none_or(|(segment, _)| archive.may_read(&segment.group, &access))
        };
        let all = extents.len();
        extents.retain(is_open);
        let sealed = (all - extents.len()) as u64;
        let is_over = || gate.step().is_err() || cancelled.is_set() || gate.is_past(deadline);
        if !query.is_everything() {
            exclude_by_filter(&archive, &query, false, &access, is_over, &mut extents);
        }
        // Nothing is ordered later than it was received, give or take how far a clock may be ahead.
        let now_us = clock::unix_us();
        let candidates = extents.into_iter().map(|extent| {
            let received_us = extent.block().map_or(now_us, |(segment, _)| {
                let day = query.receipts.counted_from(segment.group.day);
                now_us.min(day.begin_us().saturating_add(DAY_US))
            });
            let latest_us = received_us.saturating_add(AHEAD_US_MAX);
            let newest_us = extent.times_us.1.min(latest_us);
            Candidate { extent, newest_us }
        });
        let candidates = candidates
            .filter(|candidate| candidate.newest_us >= times_us.0)
            .collect();
        let lacking = found.damaged.iter();
        let lacking = lacking.filter(|(_, error)| is_out_of_descriptors(error));
        let lacking = lacking.count() as u64;
        Self {
            damaged: found.damaged.len() as u64 - lacking,
            lacking,
            archive,
            query,
            access,
            cancelled,
            candidates,
            given: None,
            sealed,
        }
    }

    /// The newest lines that were not given yet.
    pub(crate) fn page(&mut self, wanted: Wanted, gate: &Gate) -> Found {
        let mut found = Found {
            damaged: core::mem::take(&mut self.damaged),
            lacking: core::mem::take(&mut self.lacking),
            sealed: core::mem::take(&mut self.sealed),
            ..Found::default()
        };
        if self.query.is_everything() && wanted.lines_max == 0 && wanted.histogram.is_none() {
            let extents = self.candidates.iter();
            found.count = extents.map(|candidate| candidate.extent.entries()).sum();
            return found;
        }
        self.candidates
            .sort_by_key(|candidate| core::cmp::Reverse(candidate.newest_us));
        let scan = Scan {
            search: self,
            wanted,
            gate,
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            state: Mutex::new(State {
                newest: Newest::new(wanted.lines_max, wanted.bytes_max),
                found,
                read: BTreeMap::new(),
                settled: false,
            }),
        };
        let threads = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(THREADS_MAX)
            .min(self.candidates.len())
            .max(1);
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|| scan.run());
            }
            scan.run();
        });
        let state = scan.state.into_inner();
        let state = state.unwrap_or_else(PoisonError::into_inner);
        let mut found = state.found;
        let (hits, left_out) = state.newest.finish();
        found.goes_on = left_out || state.settled;
        found.hits = hits;
        if let Some(oldest) = found.hits.last() {
            self.given = Some(oldest.place);
        }
        self.forget_what_was_given(&state.read);
        found
    }

    /// Leaves out the extents that hold nothing that is older than what was given. `read` has the oldest and the
    /// newest line of each that was read to its end, by their numbers.
    fn forget_what_was_given(&mut self, read: &BTreeMap<usize, Option<(u64, u64)>>) {
        let given_us = self.given.map_or(u64::MAX, |given| given.time_us);
        let mut number = 0;
        self.candidates.retain_mut(|candidate| {
            let lines = read.get(&number).copied();
            number += 1;
            candidate.newest_us = candidate.newest_us.min(given_us);
            match lines {
                None => true,
                Some(None) => false,
                Some(Some((oldest_us, newest_us))) => {
                    candidate.newest_us = candidate.newest_us.min(newest_us);
                    oldest_us <= given_us
                }
            }
        });
    }
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
                .all(|wanted| holds(&stream.name, wanted))
    })
}

/// Whether a name holds a text, in any case.
fn holds(name: &str, text: &str) -> bool {
    name.contains(text) || name.to_lowercase().contains(&text.to_lowercase())
}

/// Leaves out the extents whose filter, or whose words, say that nothing matches; with `gaps`, those that may hold what a
/// collector says is missing stay, and so do all when it `is_over`.
pub(crate) fn exclude_by_filter(
    archive: &Archive,
    query: &Query,
    gaps: bool,
    access: &Access,
    is_over: impl Fn() -> bool,
    extents: &mut Vec<Extent>,
) {
    let tokens = query.tokens();
    let gap = filter::tokens(filter::GAP_WORD)
        .into_iter()
        .map(|(hash, _)| hash);
    let gap: Vec<u64> = gap.collect();
    if tokens.is_empty() {
        return;
    }
    extents.retain(|extent| {
        extent
            .words()
            .is_none_or(|words| words.may_hold(&tokens) || gaps && words.may_hold(&gap))
    });
    // Segment by segment, so that one file is open at a time, however many the archive has.
    let mut of_segment: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (at, extent) in extents.iter().enumerate() {
        if let Some((segment, _)) = extent.block() {
            of_segment.entry(segment.number).or_default().push(at);
        }
    }
    let mut excluded = BTreeSet::new();
    for at in of_segment.into_values() {
        if is_over() {
            break;
        }
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

/// One page being made.
struct Scan<'a> {
    search: &'a Search,
    wanted: Wanted,
    gate: &'a Gate,
    next: AtomicUsize,
    stop: AtomicBool,
    state: Mutex<State>,
}

struct State {
    newest: Newest,
    found: Found,
    /// What was read to its end: by number, the times of its oldest and newest line that was not given before.
    read: BTreeMap<usize, Option<(u64, u64)>>,
    /// What was not read holds nothing newer.
    settled: bool,
}

/// What one extent has.
struct Part {
    newest: Newest,
    count: u64,
    histogram: BTreeMap<u64, u64>,
    times_us: Option<(u64, u64)>,
    read_bytes: u64,
}

impl Scan<'_> {
    fn run(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let _working = match self.gate.step() {
                Ok(working) => working,
                Err(busy) => {
                    self.end(|state| {
                        state.found.partial = true;
                        state.found.busy = Some(busy);
                    });
                    return;
                }
            };
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(candidate) = self.search.candidates.get(number) else {
                return;
            };
            if self.is_over() {
                self.end(|state| state.found.partial = true);
                return;
            }
            if self.is_settled(candidate) {
                self.end(|state| state.settled = true);
                return;
            }
            let read = self
                .search
                .archive
                .read(&candidate.extent, &self.search.access);
            let batches = match read {
                Ok(batches) => batches,
                Err(error) => {
                    let mut state = self.lock();
                    state.read.insert(number, None);
                    match error.downcast_ref() {
                        Some(Unreadable::Sealed) => state.found.sealed += 1,
                        Some(Unreadable::Forgotten) => {}
                        None if is_out_of_descriptors(&error) => state.found.lacking += 1,
                        None => state.found.damaged += 1,
                    }
                    continue;
                }
            };
            let mut part = Part {
                newest: self.lock().newest.beside(),
                count: 0,
                histogram: BTreeMap::new(),
                times_us: None,
                read_bytes: 0,
            };
            let scanned = batches
                .iter()
                .try_for_each(|batch| self.scan_batch(batch, &mut part));
            self.merge(number, part, scanned.is_continue());
            if scanned.is_break() {
                self.end(|state| state.found.partial = true);
                return;
            }
        }
    }

    fn is_over(&self) -> bool {
        self.search.cancelled.is_set() || self.gate.is_past(self.wanted.deadline)
    }

    fn end(&self, say: impl FnOnce(&mut State)) {
        say(&mut self.lock());
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether nothing in this extent or an older one can change the page.
    fn is_settled(&self, candidate: &Candidate) -> bool {
        if self.wanted.count_all || self.wanted.histogram.is_some() {
            return false;
        }
        let floor = self.lock().newest.floor();
        floor.is_some_and(|floor| candidate.newest_us < floor.time_us)
    }

    fn scan_batch(&self, batch: &StoredBatch, part: &mut Part) -> ControlFlow<()> {
        let Search { query, given, .. } = self.search;
        part.read_bytes += batch.entries.raw().len() as u64;
        for_each_line(
            query,
            batch,
            false,
            || self.is_over(),
            |line| {
                let place = line.place(batch);
                if given.is_some_and(|given| place >= given) {
                    return;
                }
                part.count += 1;
                let (oldest, newest) = part.times_us.unwrap_or((place.time_us, place.time_us));
                part.times_us = Some((oldest.min(place.time_us), newest.max(place.time_us)));
                if let Some(bucket) = self
                    .wanted
                    .histogram
                    .and_then(|buckets| buckets.of(place.time_us))
                {
                    *part.histogram.entry(bucket).or_default() += 1;
                }
                part.newest.offer(place, || line.into_hit(batch));
            },
        )
    }

    fn merge(&self, number: usize, part: Part, is_whole: bool) {
        let mut state = self.lock();
        state.newest.merge(part.newest);
        state.found.count += part.count;
        state.found.read_bytes += part.read_bytes;
        for (bucket, count) in part.histogram {
            *state.found.histogram.entry(bucket).or_default() += count;
        }
        if is_whole {
            state.read.insert(number, part.times_us);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buckets {
    /// The start of the bucket that a time is in.
    fn of(self, time_us: u64) -> Option<u64> {
        let (from, to) = self.range_us;
        let number = time_us.checked_div(self.width_us)?;
        (from..to)
            .contains(&time_us)
            .then_some(number * self.width_us)
    }
}

/// Of one search; each holds a block of up to 6 MiB, and as much again while it is taken apart.
const THREADS_MAX: usize = 16;
