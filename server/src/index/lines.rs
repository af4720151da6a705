//! The lines of a batch that match a query.

use std::borrow::Cow;
use std::ops::{ControlFlow, Range};

use scrinium_protocol::entry::{EntryMeta, view};

use super::hits::{Hit, Place};
use super::query::Query;
use crate::archive::block::{StoredBatch, is_of_the_future, order_us};

/// One line: an entry, or several that are its fragments.
#[derive(Clone, Debug)]
pub(crate) struct Line<'a> {
    /// The numbers of its entries in the batch.
    pub(crate) entries: Range<usize>,
    /// By which it is ordered, Unix µs: when it was collected; see [`order_us`].
    pub(crate) time_us: u64,
    /// When it was collected as its agent says, where that is after its receipt, Unix µs.
    pub(crate) claimed_us: Option<u64>,
    /// It is a collector's statement that something is missing.
    pub(crate) is_gap: bool,
    /// Its text, whatever its bytes are.
    pub(crate) text: Cow<'a, [u8]>,
}

impl Line<'_> {
    /// Where it stands among all.
    pub(crate) fn place(&self, batch: &StoredBatch) -> Place {
        Place {
            time_us: self.time_us,
            stream: batch.header.stream,
            sequence: batch
                .header
                .first
                .0
                .saturating_add(self.entries.start as u64),
            epoch: batch.header.epoch,
        }
    }

    pub(crate) fn into_hit(self, batch: &StoredBatch) -> Hit {
        Hit {
            place: self.place(batch),
            claimed_us: self.claimed_us,
            received_us: batch.received_us,
            bytes: self.text.into_owned(),
            is_gap: self.is_gap,
        }
    }
}

/// Calls `each` with every line of `batch` that matches, and with `gaps`, with what a collector says is missing
/// in that time, whatever the words. Whether it came to the end: `is_over` is asked now and then, and ends it.
pub(crate) fn for_each_line<'a>(
    query: &Query,
    batch: &'a StoredBatch,
    gaps: bool,
    is_over: impl Fn() -> bool,
    mut each: impl FnMut(Line<'a>),
) -> ControlFlow<()> {
    let gaps = gaps && batch.entries.iter().any(|(meta, _)| meta.flags.is_gap());
    let text = batch.entries.bytes();
    // One word decides quickly that a whole batch has nothing, where bytes are the text.
    let is_text = batch.entries.is_text();
    let first = query.terms.iter().find(|term| is_text && !term.negated);
    let mut next_match = first.and_then(|term| term.find_at(text, 0));
    if first.is_some() && next_match.is_none() && !gaps {
        return ControlFlow::Continue(());
    }
    let received_us = query.receipts.true_receipt_us(batch.received_us);
    let mut asked = 0;
    let mut start = 0;
    let mut offset = 0;
    let mut line_head = None;
    let mut entries = batch.entries.iter().enumerate().peekable();
    while let Some((i, (meta, bytes))) = entries.next() {
        let (index, said_us) = *line_head.get_or_insert((i, meta.time_us));
        offset += bytes.len();
        if offset >= asked || i % ENTRIES_BETWEEN == 0 {
            asked = offset + BYTES_BETWEEN;
            if is_over() {
                return ControlFlow::Break(());
            }
        }
        // What a collector says is missing is a line of its own, whatever stands before it.
        let is_gap = meta.flags.is_gap();
        let goes_on = |(_, (next, _)): &(usize, (EntryMeta, &[u8]))| !next.flags.is_gap();
        if meta.flags.is_fragment() && !is_gap && entries.peek().is_some_and(goes_on) {
            continue;
        }
        line_head = None;
        let (line_start, line_end) = (start, offset);
        start = offset;
        let any_words = gaps && is_gap;
        if let Some(term) = first.filter(|_| !any_words) {
            if next_match.is_some_and(|at| at < line_start) {
                next_match = term.find_at(text, line_start);
            }
            match next_match {
                None if gaps => continue,
                None => return ControlFlow::Continue(()),
                Some(at) if at >= line_end => continue,
                Some(_) => {}
            }
        }
        let time_us = order_us(said_us, received_us);
        let in_time = query.from_us.is_none_or(|from| time_us >= from)
            && query.to_us.is_none_or(|to| time_us < to);
        let line = text.get(line_start..line_end).unwrap_or_default();
        let line = if is_text {
            Cow::Borrowed(line)
        } else {
            view(line, meta.flags)
        };
        if in_time && (any_words || query.matches(&line)) {
            each(Line {
                entries: index..i + 1,
                time_us,
                claimed_us: is_of_the_future(said_us, received_us).then_some(said_us),
                is_gap,
                text: line,
            });
        }
    }
    ControlFlow::Continue(())
}

/// How much is compared before somebody may end it: well under a millisecond.
const BYTES_BETWEEN: usize = 64 << 10;
const ENTRIES_BETWEEN: usize = 256;
