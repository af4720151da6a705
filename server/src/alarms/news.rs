//! What happened to alarms of a kind since people were told last: how often, and the first few in full.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalogue::records::AlarmRecord;

/// What happened to an alarm.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Change {
    Raised,
    Again,
    Over,
}

/// What happened to all alarms of a kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct News {
    pub(crate) raised: u64,
    pub(crate) again: u64,
    pub(crate) over: u64,
    /// The first few, as they are now, by their numbers.
    pub(crate) samples: BTreeMap<u64, (Change, AlarmRecord)>,
    /// All of them, the newest if there are very many.
    pub(crate) ids: BTreeSet<u64>,
}

impl News {
    pub(crate) fn add(&mut self, change: Change, alarm: &AlarmRecord) {
        match change {
            Change::Raised => self.raised += 1,
            Change::Again => self.again += 1,
            Change::Over => self.over += 1,
        }
        self.sample(change, alarm);
        self.ids.insert(alarm.id);
        self.bound();
    }

    /// Adds what happened later.
    pub(crate) fn merge(&mut self, later: Self) {
        self.raised += later.raised;
        self.again += later.again;
        self.over += later.over;
        for (change, alarm) in later.samples.values() {
            self.sample(*change, alarm);
        }
        self.ids.extend(later.ids);
        self.bound();
    }

    /// Alarms of which nothing is said but that they are.
    pub(crate) fn more(&self) -> u64 {
        (self.ids.len() as u64)
            .max(self.raised)
            .saturating_sub(self.samples.len() as u64)
    }

    fn sample(&mut self, change: Change, alarm: &AlarmRecord) {
        let known = self.samples.get(&alarm.id).map(|(change, _)| *change);
        if known.is_none() && self.samples.len() >= SAMPLES_MAX {
            return;
        }
        // That one is new is not forgotten because it came again before anybody was told.
        let change = match (known, change) {
            (Some(Change::Raised), Change::Again) => Change::Raised,
            _ => change,
        };
        self.samples.insert(alarm.id, (change, alarm.clone()));
    }

    fn bound(&mut self) {
        while self.ids.len() > IDS_MAX {
            self.ids.pop_first();
        }
    }
}

/// Alarms of one kind that a message has in full: what people read.
const SAMPLES_MAX: usize = 10;
/// As many alarms as are kept.
const IDS_MAX: usize = 1000;
