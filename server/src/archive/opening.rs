//! Opens an archive: finishes what a crash left half done, reads back the logs that were not yet sealed, and compares what is
//! there with what was acknowledged.
//!
//! What is missing is written down before the files that remember the acknowledgements begin anew: whoever dies in between finds
//! the same again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use anyhow::Result;
use scrinium_protocol::evidence::interval::Reached;
use scrinium_protocol::secret::Secret;
use scrinium_segment::cipher::Cipher;
use scrinium_segment::{Kind, durable, segment_name, segment_numbers};
use tracing::error;

use super::acked::{self, Acked, Remembered};
use super::container::Openings;
use super::keys::Keyring;
use super::log::{Found, Log};
use super::losses::{self, Left};
use super::{Archive, State};
use crate::catalogue::Catalogue;
use crate::catalogue::records::{
    AckedRecord, LogEnd, PrunedRecord, RemovedSegment, SegmentRecord, StreamRecord,
};
use crate::volume::{ACKED_DIR, Volume};

impl Archive {
    /// Opens the archive of a volume, reads back the logs that were not yet sealed, and compares them with what was
    /// acknowledged.
    pub(crate) fn open(
        volume: &Volume,
        catalogue: &Arc<Catalogue>,
        cipher: Cipher,
    ) -> Result<Self> {
        Self::open_with(volume, catalogue, cipher, true)
    }

    /// The same for a catalogue that is made again and does not know yet what was sealed: nothing is compared.
    pub(crate) fn open_to_rebuild(volume: &Volume, catalogue: &Arc<Catalogue>) -> Result<Self> {
        Self::open_with(volume, catalogue, Cipher::default(), false)
    }

    /// What the files of acknowledgements are sealed with.
    pub(crate) fn acked_key(volume: &Volume) -> Secret<32> {
        volume.key("acknowledgements")
    }

    fn open_with(
        volume: &Volume,
        catalogue: &Arc<Catalogue>,
        cipher: Cipher,
        is_compared: bool,
    ) -> Result<Self> {
        let acked_dir = volume.dir().join(ACKED_DIR);
        durable::create_dir(&acked_dir)?;
        let acked_key = Self::acked_key(volume);
        let remembered = acked::read(&acked_dir, &acked_key)?;
        let acked = Acked::new(acked_dir, acked_key, cipher, catalogue.clone(), &remembered);
        let archive = Self {
            acked: Mutex::new(acked),
            dir: volume.dir().to_owned(),
            keys: Keyring::load(volume, catalogue.clone())?,
            archive_key: volume.key("archive"),
            cipher,
            state: RwLock::default(),
            indexes: Mutex::default(),
            openings: Openings::default(),
            troubles: Arc::default(),
        };
        let mut state = State::default();
        for stream in catalogue.load::<StreamRecord>()? {
            state.streams.insert(stream.id, stream);
        }
        state.archived = state.streams.clone();
        for segment in catalogue.load::<SegmentRecord>()? {
            state.segments.insert(segment.number, Arc::new(segment));
        }
        state.mark = catalogue.load()?.pop().unwrap_or_default();
        for pruned in catalogue.load::<PrunedRecord>()? {
            state.pruned.insert(pruned.stream, pruned.ranges);
        }
        archive.finish_what_was_begun(catalogue, &state)?;
        let numbers = segment_numbers(&archive.log_dir(), Kind::Log)?;
        let path_of = |number: u64| archive.log_dir().join(segment_name(Kind::Log, number));
        let limits: BTreeMap<u64, u64> = numbers
            .iter()
            .filter_map(|&number| {
                Log::limit_of_previous(&path_of(number), &archive.keys.log_key(number)?)
            })
            .collect();
        let mut found = BTreeMap::new();
        for &number in &numbers {
            let path = path_of(number);
            if number <= state.mark.log {
                // Sealed, but we died before its removal.
                durable::remove(&path)?;
                continue;
            }
            let Some(key) = archive.keys.log_key(number) else {
                // Its key goes with the step that seals it: this catalogue is not the one of this log.
                error!(log = %path.display(), "the catalogue has no key for a log: it is set aside");
                durable::rename(&path, &path.with_extension("log.unreadable"))?;
                state.set_aside.push(segment_name(Kind::Log, number));
                continue;
            };
            let limit = limits.get(&number).copied();
            if let Some(log) = Log::recover(&path, &key, limit, &mut state.streams)? {
                found.insert(number, log.found);
                state.logs.push(Arc::new(log));
            }
        }
        if is_compared {
            // Streams whose introduction is gone with a log keep their names.
            for (&id, stream) in &remembered.introduced {
                state.streams.entry(id).or_insert_with(|| stream.clone());
            }
            archive.take_stock(catalogue, &state, &remembered, &found)?;
        }
        *archive
            .state
            .write()
            .unwrap_or_else(PoisonError::into_inner) = state;
        Ok(archive)
    }

    /// Compares what is there with what was acknowledged, writes down what is missing, and begins to note anew.
    fn take_stock(
        &self,
        catalogue: &Arc<Catalogue>,
        state: &State,
        remembered: &Remembered,
        found: &BTreeMap<u64, Found>,
    ) -> Result<()> {
        let mut keys = self.keys.logs();
        keys.retain(|number, _| *number > state.mark.log);
        let losses = losses::find(&Left {
            remembered,
            known: catalogue.load()?.pop(),
            keys: &keys,
            logs: found,
            streams: &state.streams,
            generation: catalogue.generation(),
            is_begun: catalogue.is_begun(),
        });
        let losses = losses::number(losses, &catalogue.load()?);
        for loss in &losses {
            error!(
                file = loss.file,
                problem = loss.problem,
                "the volume is not as it was left"
            );
        }
        let present: Vec<u64> = found.keys().copied().collect();
        let gone = self.keys.logs_but(&present);
        let ended = found.iter().filter_map(|(&number, found)| {
            let (committed, finished) = (found.bytes, found.finished);
            let end = LogEnd {
                committed,
                finished,
            };
            self.keys.ended(number, end)
        });
        let ended: Vec<_> = ended.collect();
        catalogue.write(|changes| {
            for loss in &losses {
                changes.put(loss)?;
            }
            for ended in &ended {
                changes.put(ended)?;
            }
            gone.iter()
                .try_for_each(|&number| Keyring::forget_log(changes, number))
        })?;
        self.keys.forgot_logs_but(&present);
        // At this point what is missing is written down; if we die now, the same is found again.
        let mut acked = self.acked();
        let number = acked.begin(&state.introduced())?;
        for (&log, found) in found {
            acked.note(log, found.bytes, core::iter::empty())?;
        }
        let moved = remembered.reached.keys();
        let moved: Vec<Reached> = moved
            .filter_map(|stream| state.streams.get(stream))
            .map(StreamRecord::reached)
            .collect();
        if let Some((&log, found)) = found.last_key_value() {
            acked.note(log, found.bytes, moved.into_iter())?;
        }
        acked.remove_before(number)
    }

    /// Files of segments that the catalogue knows take their place, unfinished ones and removed ones go.
    fn finish_what_was_begun(&self, catalogue: &Catalogue, state: &State) -> Result<()> {
        for number in segment_numbers(&self.sealing_dir(), Kind::Archive)? {
            if state.segments.contains_key(&number) {
                self.settle(number)?;
            } else {
                durable::remove(&self.sealing_dir().join(segment_name(Kind::Archive, number)))?;
            }
        }
        // What else was being made when the server ended is made anew.
        for entry in std::fs::read_dir(self.sealing_dir())? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "seg") {
                durable::remove(&path)?;
            }
        }
        for removed in catalogue.load::<RemovedSegment>()? {
            durable::remove(&self.segment_path(removed.number))?;
            catalogue.write(|changes| changes.remove(&removed))?;
        }
        Ok(())
    }

    /// How often the catalogue was written, as far as the files of acknowledgements remember.
    pub(crate) fn writes_remembered(volume: &Volume) -> Result<u64> {
        let dir = volume.dir().join(ACKED_DIR);
        if !dir.try_exists()? {
            return Ok(0);
        }
        Ok(acked::read(&dir, &Self::acked_key(volume))?.generation)
    }

    /// A catalogue that was made again goes on where the files of acknowledgements stand; false where there are none.
    pub(crate) fn adopt_acknowledgements(
        &self,
        catalogue: &Catalogue,
        key: &Secret<32>,
    ) -> Result<bool> {
        let remembered = acked::read(&self.dir.join(ACKED_DIR), key)?;
        let Some(&number) = remembered.records.keys().max() else {
            return Ok(false);
        };
        catalogue.go_on_from(remembered.generation)?;
        let signed = remembered.signed;
        catalogue.put(&AckedRecord { number, signed })?;
        Ok(true)
    }
}
