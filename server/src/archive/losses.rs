//! What was acknowledged and is not there any more, or is not as it was left: found when the volume is opened,
//! written down, and said by every verification from then on.
//!
//! ```text
//! keys of logs, how they ended ─┐
//! acknowledgements (acked.rs) ──┼─▶ [find] ─▶ rows of the catalogue ─▶ alarm, verify
//! logs as they were read back ──┘
//! ```
//!
//! A tail of the log that was never acknowledged is no loss: it is sent again.

use std::collections::BTreeMap;

use anyhow::Result;
use scrinium_protocol::identity::StreamId;
use scrinium_segment::{HEADER_LEN, Kind, segment_name};

use super::acked::Remembered;
use super::log::Found;
use crate::catalogue::Catalogue;
use crate::catalogue::records::{AckedRecord, LogEnd, LossRecord, LostEntries, StreamRecord};
use crate::clock;
use crate::volume::{ACKED_DIR, LOG_DIR};

/// What is compared.
pub(super) struct Left<'a> {
    pub(super) remembered: &'a Remembered,
    /// What the catalogue knows of the files of acknowledgements; none of version 0.1.0.
    pub(super) known: Option<AckedRecord>,
    /// Logs that are not sealed, and how they ended.
    pub(super) keys: &'a BTreeMap<u64, Option<LogEnd>>,
    /// The logs that are there, as far as they could be read back.
    pub(super) logs: &'a BTreeMap<u64, Found>,
    pub(super) streams: &'a BTreeMap<StreamId, StreamRecord>,
    /// How often the catalogue was written.
    pub(super) generation: u64,
    /// It states for the first time what its rows are.
    pub(super) is_begun: bool,
}

/// Compares what is there with what is remembered.
pub(super) fn find(left: &Left<'_>) -> Vec<LossRecord> {
    let mut losses = Vec::new();
    let mut lose = |file: String, problem: String, entries| {
        losses.push(LossRecord {
            number: 0,
            time_us: clock::unix_us(),
            file,
            problem,
            entries,
            told: false,
        });
    };
    let remembered = left.remembered;
    for (name, problem) in &remembered.damage {
        lose(in_dir(ACKED_DIR, name), problem.clone(), None);
    }
    let has_files = !remembered.records.is_empty();
    if has_files && (left.known.is_none() || left.is_begun) {
        let problem = "what it knew of the acknowledgements, or of its own rows, was taken away";
        lose("catalogue.db".into(), problem.into(), None);
    }
    if left.known.is_some() && !remembered.has_head {
        lose(
            in_dir(ACKED_DIR, "head"),
            "it is gone: it says how far the log was acknowledged last".into(),
            None,
        );
    }
    if let Some(known) = left.known
        && !remembered.records.contains_key(&known.number)
    {
        let name = segment_name(Kind::Acked, known.number);
        lose(
            in_dir(ACKED_DIR, &name),
            "it is gone, with how far the log was acknowledged since the last interval".into(),
            None,
        );
    } else if left.known.is_some() && left.generation < remembered.generation {
        lose(
            "catalogue.db".into(),
            format!(
                "it was put back: it was written {} times, and {} were remembered",
                left.generation, remembered.generation
            ),
            None,
        );
    }
    for (&number, end) in left.keys {
        let noted = remembered.logs.get(&number).copied().unwrap_or(0);
        let committed = end.map_or(noted, |end| end.committed.max(noted));
        let file = in_dir(LOG_DIR, &segment_name(Kind::Log, number));
        let Some(found) = left.logs.get(&number) else {
            if committed > HEADER_LEN as u64 {
                lose(
                    file,
                    format!("it is gone; {committed} bytes of it were acknowledged"),
                    None,
                );
            }
            continue;
        };
        if found.bytes < committed {
            let bytes = found.bytes;
            lose(
                file,
                format!("it was cut: {bytes} bytes are left of {committed} that were acknowledged"),
                None,
            );
        } else if end.is_some_and(|end| end.finished) && !found.finished {
            lose(file, "its end was cut off or altered".into(), None);
        }
    }
    // A mark names a file that may be gone since: what was in it is in an interval.
    let marks = left.logs.values().filter_map(|found| found.mark);
    let mut marks = marks.filter_map(|(number, marked)| {
        let records = *remembered.records.get(&number)?;
        (records < marked).then_some((number, records, marked))
    });
    if let Some((number, records, marked)) = marks.next() {
        lose(
            in_dir(ACKED_DIR, &segment_name(Kind::Acked, number)),
            format!("it was cut or put back: {records} records are left of {marked}"),
            None,
        );
    }
    if !losses.is_empty() {
        losses.extend(missing_entries(left));
    }
    losses
}

/// The entries that went with what is missing, by stream.
fn missing_entries(left: &Left<'_>) -> Vec<LossRecord> {
    let reached = left.remembered.reached.values();
    let missing = reached.filter_map(|reached| {
        let stream = left.streams.get(&reached.stream);
        let stands = stream.map(|stream| &stream.position);
        // An epoch begins at sequence 0; one that is not there at all is missing from there on.
        let next = stands
            .filter(|position| position.epoch == reached.epoch)
            .map_or(0, |position| position.next.0);
        if next >= reached.next.0 {
            return None;
        }
        let introduced = stream.or_else(|| left.remembered.introduced.get(&reached.stream));
        let entries = LostEntries {
            stream: reached.stream,
            name: introduced.map(|stream| stream.name.to_string()),
            agent: introduced.map(|stream| stream.agent).unwrap_or_default(),
            epoch: reached.epoch,
            sequences: (next, reached.next.0),
            head: reached.head,
        };
        Some(LossRecord {
            number: 0,
            time_us: clock::unix_us(),
            file: LOG_DIR.to_owned(),
            problem: "entries that were acknowledged are missing".to_owned(),
            entries: Some(entries),
            told: false,
        })
    });
    missing.collect()
}

/// Gives new losses their numbers and leaves out what is known already.
pub(super) fn number(found: Vec<LossRecord>, known: &[LossRecord]) -> Vec<LossRecord> {
    let last = known.iter().map(|loss| loss.number).max().unwrap_or(0);
    let is_known = |loss: &LossRecord| {
        known.iter().any(|known| {
            (&known.file, &known.problem, &known.entries)
                == (&loss.file, &loss.problem, &loss.entries)
        })
    };
    let new = found.into_iter().filter(|loss| !is_known(loss));
    new.zip(last + 1..)
        .map(|(loss, number)| LossRecord { number, ..loss })
        .collect()
}

/// Writes down entries that an interval has and the archive does not.
pub(crate) fn write_down_entries(catalogue: &Catalogue, lost: Vec<LostEntries>) -> Result<()> {
    let found = lost.into_iter().map(|entries| LossRecord {
        number: 0,
        time_us: clock::unix_us(),
        file: LOG_DIR.to_owned(),
        problem: "entries are missing that are in a published interval".to_owned(),
        entries: Some(entries),
        told: false,
    });
    keep(catalogue, found.collect())
}

/// Writes down what is not as it was left, found elsewhere than here.
pub(crate) fn write_down(
    catalogue: &Catalogue,
    found: impl Iterator<Item = (String, String)>,
) -> Result<()> {
    let found = found.map(|(file, problem)| LossRecord {
        number: 0,
        time_us: clock::unix_us(),
        file,
        problem,
        entries: None,
        told: false,
    });
    keep(catalogue, found.collect())
}

fn keep(catalogue: &Catalogue, found: Vec<LossRecord>) -> Result<()> {
    let new = number(found, &catalogue.load()?);
    if new.is_empty() {
        return Ok(());
    }
    catalogue.write(|changes| new.iter().try_for_each(|loss| changes.put(loss)))
}

fn in_dir(dir: &str, name: &str) -> String {
    format!("{dir}/{name}")
}
