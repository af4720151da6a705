//! Which batches an export shows, and which of their entries.
//!
//! ```text
//! what was asked for ─▶ extents ─▶ runs: batches that follow one another, from the first that has something
//!                                  to the next place that was sealed
//! ```
//!
//! Between the last batch that is shown and that place, batches are shown without their entries, so that the chain
//! of heads leads there. Where what was found lies far apart, a new run begins: it has a sealed place of its own.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use scrinium_protocol::entry::EntryMeta;
use scrinium_protocol::identity::{AgentId, StreamId};

use super::gaps::{Budgets, Ends, Seen};
use crate::archive::block::StoredBatch;
use crate::archive::container::Access;
use crate::archive::{Archive, EVER, Extent, is_out_of_descriptors};
use crate::catalogue::records::StreamRecord;
use crate::core::Core;
use crate::evidence::{Inclusions, Seal, Seals, Stretch, inclusions};
use crate::index::lines::{Line, for_each_line};
use crate::index::query::Query;
use crate::index::reading::Reading;
use crate::index::search::{exclude_by_filter, matching_streams};

/// What is asked for.
pub(crate) struct Wanted {
    /// This stream alone.
    pub(crate) stream: Option<StreamId>,
    /// The lines that match, and what collectors say is missing in that time.
    pub(crate) query: Query,
    /// Nothing of a batch that was received later, Unix µs: agents that were away bring what they collected before.
    pub(crate) received_until_us: Option<u64>,
}

impl Wanted {
    /// All of one stream.
    #[cfg(test)]
    pub(crate) fn whole(stream: StreamId) -> Self {
        Self {
            stream: Some(stream),
            query: Query::default(),
            received_until_us: None,
        }
    }

    /// The streams that it is about.
    pub(crate) fn streams(
        &self,
        archive: &Archive,
        names: &BTreeMap<AgentId, String>,
    ) -> BTreeSet<StreamId> {
        match self.stream {
            Some(stream) => BTreeSet::from([stream]),
            None => matching_streams(archive, names, &self.query),
        }
    }

    /// Whether it is all of one stream.
    pub(super) fn is_whole_stream(&self) -> bool {
        self.stream.is_some() && self.query.is_everything() && self.received_until_us.is_none()
    }
}

/// What is shown.
pub(super) struct Selection {
    query: Query,
    gaps: Ends,
    received_until_us: u64,
    pub(super) runs: Vec<Run>,
    /// Every extent of the streams.
    extents: BTreeMap<StreamId, Vec<Extent>>,
}

/// Batches that follow one another.
pub(super) struct Run {
    pub(super) stream: StreamRecord,
    /// Its batches; at the end, behind what was asked for, some that only lead to what was sealed.
    pub(super) stretch: Stretch,
    /// What was sealed over it: all of it, or as much as there is; and as much of it as is under a token.
    pub(super) seals: Vec<Seal>,
    /// Its extents among those of its stream, both ends included.
    extents: (usize, usize),
}

/// A batch of a run, with the lines of it that are shown.
pub(super) struct Piece<'a> {
    /// The run's number.
    pub(super) number: usize,
    pub(super) run: &'a Run,
    pub(super) batch: &'a StoredBatch,
    pub(super) lines: Vec<Line<'a>>,
}

impl Piece<'_> {
    /// The entries that are shown, with their numbers in the batch.
    pub(super) fn entries(&self) -> impl Iterator<Item = (usize, EntryMeta, &[u8])> {
        let mut lines = self.lines.iter().peekable();
        let entries = self.batch.entries.iter().enumerate();
        entries.filter_map(move |(at, (meta, bytes))| {
            while lines.next_if(|line| line.entries.end <= at).is_some() {}
            let line = lines.peek()?;
            line.entries.contains(&at).then_some((at, meta, bytes))
        })
    }
}

impl Selection {
    /// Finds what is wanted.
    ///
    /// # Errors
    /// Some of it cannot be read: an export is complete or there is none.
    pub(super) fn find(
        archive: &Archive,
        names: &BTreeMap<AgentId, String>,
        wanted: Wanted,
        access: &Access,
        reading: &Reading,
    ) -> Result<Self> {
        let is_whole_stream = wanted.is_whole_stream();
        let streams = wanted.streams(archive, names);
        let query = wanted.query;
        let received_until_us = wanted.received_until_us.unwrap_or(u64::MAX);
        reading.step()?;
        let extents = readable_extents(archive, &streams, &query)?;
        let mut runs = Vec::new();
        let mut gaps = Ends::default();
        let mut matching = Matching {
            archive,
            query: &query,
            received_until_us,
            access,
            reading,
            budgets: Budgets::default(),
            gaps: &mut gaps,
        };
        for (&id, extents) in &extents {
            let stream = archive.stream(id).context("a stream of the archive")?;
            if is_whole_stream {
                runs.extend(whole_stream(&stream, extents));
            } else {
                runs.extend(matching.runs(&stream, extents)?);
            }
        }
        // Runs of one stream stay in its order.
        runs.sort_by(|a, b| {
            let key = |run: &Run| (run.stream.agent, run.stream.name.clone(), run.stream.id);
            key(a).cmp(&key(b))
        });
        Ok(Self {
            query,
            gaps,
            received_until_us,
            runs,
            extents,
        })
    }

    /// What agents say is missing and is not shown, because they say so much: how many statements of each.
    pub(super) fn gaps_left_out(&self) -> &BTreeMap<AgentId, u64> {
        self.gaps.left_out()
    }

    /// Makes every run reach to where the server sealed it, if it did.
    pub(super) fn lead_to_seals(&mut self, core: &Core, access: &Access) -> Result<Inclusions> {
        let server = core.signing.verifying_key();
        let stretches: Vec<Stretch> = self.runs.iter().map(|run| run.stretch).collect();
        let (seals, inclusions) = inclusions(&core.volume, &server, &stretches)?;
        let mut joined: Vec<(Run, Seals)> = Vec::new();
        for (run, seals) in core::mem::take(&mut self.runs).into_iter().zip(seals) {
            match joined.last_mut() {
                // What leads to the end of one would show the beginning of the other again.
                Some((before, of_before))
                    if self.leads_into(before, of_before, &run, core, access) =>
                {
                    before.reach(run.extents.1, run.stretch.sequences.1);
                    *of_before = seals.after(core::mem::take(of_before));
                }
                _ => joined.push((run, seals)),
            }
        }
        for (mut run, seals) in joined {
            let mut last_seal = seals.part;
            if let Some(all) = seals.all {
                let (last, until) = (run.extents.1, all.reached.next.0);
                let extents = self.extents_of(&run);
                // If what leads to it is not there any more, the last place before has to do.
                if let Some(last) = extent_of_end(&core.archive, extents, last, until, access) {
                    run.extents.1 = last;
                    run.stretch.sequences.1 = until;
                    last_seal = Some(all);
                }
            }
            run.seals.extend(seals.stamped);
            run.seals.extend(last_seal);
            self.runs.push(run);
        }
        Ok(inclusions)
    }

    /// Whether the place where a run was sealed lies behind the beginning of the next one.
    fn leads_into(
        &self,
        run: &Run,
        seals: &Seals,
        next: &Run,
        core: &Core,
        access: &Access,
    ) -> bool {
        let same =
            (run.stretch.stream, run.stretch.epoch) == (next.stretch.stream, next.stretch.epoch);
        let begin = next.stretch.sequences.0;
        let until = seals.all.as_ref().map(|seal| seal.reached.next.0);
        let extents = self.extents_of(run);
        same && until.is_some_and(|until| until > begin)
            && extent_of_end(&core.archive, extents, run.extents.1, begin, access).is_some()
    }

    /// All extents of a run's stream.
    fn extents_of(&self, run: &Run) -> &[Extent] {
        let extents = self.extents.get(&run.stream.id);
        extents.map(Vec::as_slice).unwrap_or_default()
    }

    /// Hands over every batch that is shown, in order.
    pub(super) fn for_each_piece(
        &self,
        archive: &Archive,
        access: &Access,
        reading: &Reading,
        mut each: impl FnMut(&Piece<'_>) -> Result<()>,
    ) -> Result<()> {
        // Where the batches end that were handed over, by stream and epoch: the signature that a run ends with may
        // lie behind the beginning of the next run, which then begins later.
        let mut handed_over: BTreeMap<_, u64> = BTreeMap::new();
        for (number, run) in self.runs.iter().enumerate() {
            let until = handed_over.entry((run.stretch.stream, run.stretch.epoch));
            let until = until.or_default();
            let mut next = run.stretch.sequences.0.max(*until);
            // A run ends with a signature: batches before it may have lost theirs.
            let mut is_signed = true;
            let (first, last) = run.extents;
            let stream = run.stream.id;
            let extents = self.extents_of(run).get(first..=last);
            let extents = extents.context("the extents of a run")?;
            for (number_of_extent, extent) in (run.extents.0..).zip(extents) {
                reading.step()?;
                for batch in &archive.read(extent, access)? {
                    reading.step()?;
                    let (first, after) = (batch.header.first.0, batch.header.next().0);
                    let (begin, end) = run.stretch.sequences;
                    if after <= begin.max(*until) || (first >= end && is_signed) {
                        continue;
                    }
                    ensure!(
                        first == next || is_pruned(archive, run, (next, first)),
                        "{}: entries are missing before {first}; run verify",
                        extent.place_name()
                    );
                    next = after;
                    *until = after;
                    is_signed = batch.header.is_signed();
                    let mut lines = Vec::new();
                    let is_over = || reading.is_over();
                    let at = (number_of_extent, first);
                    // One that came later is shown without its entries, as one in which nothing was found.
                    if batch.received_us <= self.received_until_us {
                        let end = for_each_line(&self.query, batch, true, is_over, |line| {
                            if self.gaps.shows(&self.query, stream, at, &line) {
                                lines.push(line);
                            }
                        });
                        ensure!(end.is_continue(), "a batch was not read to its end");
                    }
                    each(&Piece {
                        number,
                        run,
                        batch,
                        lines,
                    })?;
                }
            }
        }
        Ok(())
    }
}

/// The extents of streams, all of them for their order. What a query is about must be readable.
fn readable_extents(
    archive: &Archive,
    streams: &BTreeSet<StreamId>,
    query: &Query,
) -> Result<BTreeMap<StreamId, Vec<Extent>>> {
    let found = archive.extents(|stream| streams.contains(&stream), EVER);
    let (from, to) = times_of(query);
    for (segment, error) in found.damaged {
        if segment.times_us.0 <= to && from <= segment.times_us.1 {
            let what = match is_out_of_descriptors(&error) {
                true => "the server has no file descriptor left; ask again",
                false => "what is asked for cannot all be read; run verify",
            };
            return Err(error.context(what));
        }
    }
    let mut of_stream: BTreeMap<StreamId, Vec<Extent>> = BTreeMap::new();
    for extent in found.list {
        of_stream.entry(extent.stream).or_default().push(extent);
    }
    Ok(of_stream)
}

/// Collection times that a query is about, both ends included, Unix µs.
fn times_of(query: &Query) -> (u64, u64) {
    let last = query.to_us.map_or(EVER.1, |to| to.saturating_sub(1));
    (query.from_us.unwrap_or(EVER.0), last)
}

impl Run {
    fn new(stream: &StreamRecord, extent: &Extent, at: usize, sequences: (u64, u64)) -> Self {
        Self {
            stream: stream.clone(),
            stretch: Stretch {
                stream: stream.id,
                epoch: extent.epoch,
                sequences,
            },
            seals: Vec::new(),
            extents: (at, at),
        }
    }

    fn reach(&mut self, at: usize, end: u64) {
        self.extents.1 = at;
        self.stretch.sequences.1 = end;
    }
}

/// One run for each epoch of a stream.
fn whole_stream(stream: &StreamRecord, extents: &[Extent]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (at, extent) in extents.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if run.stretch.epoch == extent.epoch => run.reach(at, extent.sequences.1),
            _ => runs.push(Run::new(stream, extent, at, extent.sequences)),
        }
    }
    runs
}

/// Looks for what matches, stream by stream.
struct Matching<'a> {
    archive: &'a Archive,
    query: &'a Query,
    received_until_us: u64,
    access: &'a Access,
    reading: &'a Reading,
    budgets: Budgets,
    gaps: &'a mut Ends,
}

impl Matching<'_> {
    /// The runs of one stream with something that matches, or that its agent says is missing.
    fn runs(&mut self, stream: &StreamRecord, extents: &[Extent]) -> Result<Vec<Run>> {
        let Self {
            archive,
            query,
            received_until_us,
            access,
            reading,
            ..
        } = *self;
        let (from, to) = times_of(query);
        let in_time = |extent: &&Extent| extent.times_us.0 <= to && from <= extent.times_us.1;
        let mut candidates: Vec<Extent> = extents.iter().filter(in_time).cloned().collect();
        for extent in &candidates {
            ensure!(may_read(archive, extent, access), IN_SECOND_CONTAINER);
        }
        reading.step()?;
        let is_over = || reading.is_over();
        exclude_by_filter(archive, query, true, access, is_over, &mut candidates);
        let wanted: BTreeSet<(u64, u32)> = candidates.iter().map(|extent| extent.order).collect();
        let mut runs: Vec<Run> = Vec::new();
        for (at, extent) in extents.iter().enumerate() {
            if !wanted.contains(&extent.order) {
                continue;
            }
            reading.step()?;
            for batch in &archive.read(extent, access)? {
                reading.step()?;
                if batch.received_us > received_until_us {
                    continue;
                }
                let mut seen = Seen::default();
                let end = for_each_line(query, batch, true, is_over, |line| seen.add(query, &line));
                ensure!(end.is_continue(), "a batch was not read to its end");
                let (first, end) = (batch.header.first.0, batch.header.next().0);
                let whose = (stream.agent, stream.id);
                if !self.budgets.take(whose, (at, first), &seen, self.gaps) {
                    continue;
                }
                match runs.last_mut() {
                    Some(run) if goes_on(run, extents, at) => run.reach(at, end),
                    _ => runs.push(Run::new(stream, extent, at, (first, end))),
                }
            }
        }
        Ok(runs)
    }
}

/// Whether extent `at` is near enough to a run, and everything between is there.
fn goes_on(run: &Run, extents: &[Extent], at: usize) -> bool {
    let last = run.extents.1;
    let between = extents.get(last..=at).unwrap_or_default();
    let follow = |pair: &[Extent]| matches!(pair, [a, b] if follows(a, b));
    at - last <= SKIPPED_MAX && between.windows(2).all(follow)
}

/// Whether nothing is between two extents of a stream.
fn follows(before: &Extent, extent: &Extent) -> bool {
    (before.epoch, before.sequences.1) == (extent.epoch, extent.sequences.0)
}

/// The extent in which, or at whose end, a sequence stands that is not before the end of extent `last`.
fn extent_of_end(
    archive: &Archive,
    extents: &[Extent],
    last: usize,
    until: u64,
    access: &Access,
) -> Option<usize> {
    let mut at = last;
    let mut extent = extents.get(last)?;
    while extent.sequences.1 < until {
        let next = extents.get(at + 1)?;
        if !follows(extent, next) || !may_read(archive, next, access) {
            return None;
        }
        (at, extent) = (at + 1, next);
    }
    Some(at)
}

fn may_read(archive: &Archive, extent: &Extent, access: &Access) -> bool {
    let block = extent.block();
    block.is_none_or(|(segment, _)| archive.may_read(&segment.group, access))
}

/// Whether entries of a run were deleted lawfully.
fn is_pruned(archive: &Archive, run: &Run, (first, end): (u64, u64)) -> bool {
    let pruned = archive.pruned();
    let ranges = pruned.get(&run.stretch.stream).into_iter().flatten();
    let mut own = ranges.filter(|range| range.epoch == run.stretch.epoch);
    own.any(|range| range.sequences.0 <= first && end <= range.sequences.1)
}

const IN_SECOND_CONTAINER: &str =
    "part of what is asked for is in the second container; open it and give --opening";
/// Extents without anything that are read to keep a run going, instead of beginning another.
const SKIPPED_MAX: usize = 16;
