//! Anonymous statistics: how much came in which hour, of which kind of source. They are kept when the entries they
//! were counted from are long deleted.
//!
//! ```text
//! a day that is over ─▶ counts per hour and kind ─▶ counts of too few machines are joined ─▶ stream "statistics"
//! ```
//!
//! Invariants:
//! 1. No word of an entry and no name, address or path of anybody is in them, nor anything computed from one.
//! 2. Every number is of [`MACHINES_MIN`] machines or more. What cannot be joined to so many is left out, and the day
//!    says that it was.
//! 3. No number can be had by subtracting others: each entry is in one count at most, and there are no totals.
//! 4. A day of a tenant is written once. Before it is sent, the catalogue notes where the stream stands; a stream that
//!    stands behind that has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use scrinium_protocol::identity::{AgentId, StreamId, StreamKind};
use serde_json::{Value, json};

use crate::archive::EVER;
use crate::archive::block::StoredBatch;
use crate::archive::container::Access;
use crate::audit::STATISTICS;
use crate::catalogue::records::{Group, StatisticsMark, StreamRecord};
use crate::clock::{DAY_US, Day};
use crate::core::Core;
use crate::duties::keep::{Duty, Plan};

/// A machine that sent something: an agent's, or one that sends syslog itself.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Machine {
    Agent(AgentId),
    Sender(StreamId),
}

/// What is counted together. What is none was joined over all.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Cell {
    hour: Option<u64>,
    kind: Option<&'static str>,
}

/// How much there is in a cell.
#[derive(Clone, Debug, Default)]
struct Count {
    entries: u64,
    bytes: u64,
    machines: BTreeSet<Machine>,
}

impl Count {
    fn join(&mut self, other: Self) {
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.machines.extend(other.machines);
    }

    fn is_enough(&self) -> bool {
        self.machines.len() >= MACHINES_MIN
    }
}

/// One day of one tenant.
#[derive(Debug, Default)]
struct Counts {
    cells: BTreeMap<Cell, Count>,
    /// Some of it could not be read.
    is_incomplete: bool,
}

impl Counts {
    fn add(&mut self, hour: u64, kind: &'static str, machine: Machine, bytes: usize) {
        let cell = Cell {
            hour: Some(hour),
            kind: Some(kind),
        };
        let count = self.cells.entry(cell).or_default();
        count.entries += 1;
        count.bytes += bytes as u64;
        count.machines.insert(machine);
    }

    /// Counts what of a stream was received; on the day, where one is given.
    fn add_batches(
        &mut self,
        core: &Core,
        stream: &StreamRecord,
        day: Option<Day>,
        batches: &[StoredBatch],
    ) {
        let Some(kind) = kind_of(stream.kind) else {
            return;
        };
        let machine = if stream.agent == core.own_agent {
            Machine::Sender(stream.id)
        } else {
            Machine::Agent(stream.agent)
        };
        for batch in batches {
            let received = core.time.day_of_receipt(batch.received_us);
            if day.is_some_and(|day| received != day) {
                continue;
            }
            let hour = batch.received_us % DAY_US / HOUR_US;
            for (meta, bytes) in batch.entries.iter() {
                if !meta.flags.is_gap() {
                    self.add(hour, kind, machine, bytes.len());
                }
            }
        }
    }

    /// What may be said: first hours with too few machines are joined, then kinds; what is then still of too few is
    /// left out. Returns it, and whether something was.
    fn into_anonymous(self) -> (BTreeMap<Cell, Count>, bool) {
        let (mut said, few) = split(self.cells);
        let of_days = joined(few, |cell| Cell { hour: None, ..cell });
        let (enough, few) = split(of_days);
        said.extend(enough);
        let of_all = joined(few, |_| Cell {
            hour: None,
            kind: None,
        });
        let (enough, few) = split(of_all);
        said.extend(enough);
        (said, !few.is_empty())
    }

    fn into_json(self, day: Day, tenant: &str) -> Value {
        let is_incomplete = self.is_incomplete;
        let (said, left_out) = self.into_anonymous();
        let cells = said.into_iter().map(|(cell, count)| {
            json!({
                "hour": cell.hour, "kind": cell.kind, "entries": count.entries, "bytes": count.bytes,
                "machines": count.machines.len(),
            })
        });
        json!({
            "day": day.to_string(), "tenant": tenant, "cells": cells.collect::<Vec<_>>(),
            "left_out": left_out, "incomplete": is_incomplete,
        })
    }
}

/// Those of enough machines, and those of too few.
fn split(counts: BTreeMap<Cell, Count>) -> (BTreeMap<Cell, Count>, BTreeMap<Cell, Count>) {
    counts.into_iter().partition(|(_, count)| count.is_enough())
}

/// Joins counts whose cells become the same.
fn joined(few: BTreeMap<Cell, Count>, into: impl Fn(Cell) -> Cell) -> BTreeMap<Cell, Count> {
    let mut all = BTreeMap::<Cell, Count>::new();
    for (cell, count) in few {
        all.entry(into(cell)).or_default().join(count);
    }
    all
}

/// Writes the days that are over.
pub(crate) struct Statistics(pub(crate) Arc<Core>);

impl Duty for Statistics {
    async fn round(&mut self) -> Result<()> {
        write_due(&self.0).await
    }
}

async fn write_due(core: &Arc<Core>) -> Result<()> {
    // What is sent is not taken back: it is of days that are over on a confirmed time.
    let Some(now_us) = core.time.confirmed_us() else {
        return Ok(());
    };
    let last = Day::of(now_us.saturating_sub(DAY_US + REST_US));
    let mark = core.catalogue.load::<StatisticsMark>()?.pop();
    let begun = mark.map_or(Day(0), |mark| mark.day);
    let mut day = begun.max(last.before(DAYS_BACK));
    while day <= last {
        let counted = {
            let core = core.clone();
            tokio::task::spawn_blocking(move || count(&core, day)).await?
        };
        for (tenant, counts) in counted {
            write(core, day, &tenant, counts).await?;
        }
        day = day.plus(1);
        core.catalogue.put(&StatisticsMark {
            day,
            tenant: String::new(),
            at: 0,
        })?;
    }
    Ok(())
}

/// Writes one day of one tenant, if it was not written.
async fn write(core: &Core, day: Day, tenant: &str, counts: Counts) -> Result<()> {
    let stands = || {
        let stream = core
            .archive
            .find_stream(core.own_agent, StreamKind::Audit, STATISTICS);
        stream.map_or(0, |stream| stream.position.next.0)
    };
    let mark = core.catalogue.load::<StatisticsMark>()?.pop();
    if let Some(mark) = mark.filter(|mark| mark.day == day) {
        let is_there = match tenant.cmp(&mark.tenant) {
            core::cmp::Ordering::Less => true,
            core::cmp::Ordering::Equal => stands() > mark.at,
            core::cmp::Ordering::Greater => false,
        };
        if is_there {
            return Ok(());
        }
    }
    core.catalogue.put(&StatisticsMark {
        day,
        tenant: tenant.to_owned(),
        at: stands(),
    })?;
    let line = format!("{}\n", counts.into_json(day, tenant));
    let durable = core.audit.write(STATISTICS, line.into_bytes()).await;
    ensure!(durable, "the archive takes nothing now");
    Ok(())
}

/// Counts what was received on a day, by tenant.
fn count(core: &Core, day: Day) -> BTreeMap<String, Counts> {
    let streams = core.archive.streams();
    let is_counted = |stream| {
        let stream: Option<&StreamRecord> = streams.get(&stream);
        stream.is_some_and(|stream| kind_of(stream.kind).is_some())
    };
    let found = core.archive.extents(is_counted, EVER);
    let access = Access::operations();
    let mut counted = BTreeMap::<String, Counts>::new();
    for (segment, _) in &found.damaged {
        let Group {
            tenant, day: of, ..
        } = &segment.group;
        if *of == day {
            counted.entry(tenant.clone()).or_default().is_incomplete = true;
        }
    }
    for extent in &found.list {
        let sealed = extent.block().map(|(segment, _)| &segment.group);
        if sealed.is_some_and(|group| group.day != day) {
            continue;
        }
        // What is sealed is of its group's day; what is not may be of several.
        let wanted = sealed.is_none().then_some(day);
        let Some(stream) = streams.get(&extent.stream) else {
            continue;
        };
        let tenant = core.policy.owner_of(stream.agent).tenant;
        let counts = counted.entry(tenant).or_default();
        // What is damaged is the verification's to name.
        match core.archive.read(extent, &access) {
            Ok(batches) => counts.add_batches(core, stream, wanted, &batches),
            Err(_) => counts.is_incomplete = true,
        }
    }
    counted.retain(|_, counts| !counts.cells.is_empty() || counts.is_incomplete);
    counted
}

/// What a kind of stream is called; none for what the product says of itself.
fn kind_of(kind: StreamKind) -> Option<&'static str> {
    match kind {
        StreamKind::File => Some("file"),
        StreamKind::SyslogUdp | StreamKind::SyslogTcp | StreamKind::SyslogUnix => Some("syslog"),
        StreamKind::Journal => Some("journal"),
        StreamKind::EventLog => Some("event log"),
        StreamKind::Command => Some("command"),
        // What the product says of itself, and kinds that are not known here.
        StreamKind::Audit | StreamKind::Agent | _ => None,
    }
}

/// A number of fewer machines could say something of one of them.
const MACHINES_MIN: usize = 5;
/// Days that are made up for after the server stood still.
const DAYS_BACK: u32 = 31;
/// How long a day is over before it is counted.
const REST_US: u64 = 2 * HOUR_US;
const HOUR_US: u64 = 3_600_000_000;
pub(crate) const PLAN: Plan = Plan {
    point: "duty: statistics",
    every: Duration::from_secs(600),
    long: Duration::from_secs(12 * 3600),
    raises: false,
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn machine(n: u8) -> Machine {
        Machine::Agent(AgentId([n; 16]))
    }

    #[test]
    fn hours_and_then_kinds_of_too_few_machines_are_joined_and_the_rest_left_out() {
        let mut counts = Counts::default();
        for n in 0..5 {
            counts.add(9, "file", machine(n), 10);
            // Each in an hour of its own.
            counts.add(u64::from(n), "syslog", machine(n), 7);
        }
        counts.add(9, "journal", machine(0), 100);
        let said = counts.into_json(Day(20_000), "acme");
        assert_eq!(
            said["cells"],
            json!([
                { "hour": null, "kind": "syslog", "entries": 5, "bytes": 35, "machines": 5 },
                { "hour": 9, "kind": "file", "entries": 5, "bytes": 50, "machines": 5 },
            ])
        );
        assert_eq!(said["left_out"], true);
        assert_eq!(said["incomplete"], false);
        assert_eq!(said["day"], "2024-10-04");
    }

    proptest! {
        #[test]
        fn no_number_is_of_few_and_none_is_counted_twice(
            entries in proptest::collection::vec((0u64..24, 0usize..3, 0u8..9, 0usize..200), 0..300),
        ) {
            let kinds = ["file", "journal", "syslog"];
            let mut counts = Counts::default();
            for &(hour, kind, from, bytes) in &entries {
                counts.add(hour, kinds[kind], machine(from), bytes);
            }
            let (said, left_out) = counts.into_anonymous();
            prop_assert!(said.values().all(Count::is_enough));
            let told: u64 = said.values().map(|count| count.entries).sum();
            prop_assert_eq!(told < entries.len() as u64, left_out);
            prop_assert!(told <= entries.len() as u64);
        }
    }
}
