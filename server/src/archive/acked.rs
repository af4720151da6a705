//! How far the log was acknowledged, once more, in files beside it.
//!
//! ```text
//! ingest ─ log is durable ─▶ [note] ─▶ receipts        NUMBER.ack: one record for each round
//! evidence ─ an interval begins ─▶ [begin] a new file; the files before it go when the interval is signed
//! start ─▶ [read] what is remembered ─▶ compared with what the log holds (losses.rs)
//!
//! record 1: log (8) | its committed bytes (8) | generation of the catalogue (8) | signed intervals (8)
//!           | for each stream that moved: id (16) | epoch (16) | next sequence (8) | head (32)
//! record 2: a stream that no segment knows, as the log introduces it
//!
//! head: nonce (12) | log (8), its committed bytes (8), sealed with AES-256-GCM | tag (16)
//! ```
//!
//! `head` is overwritten in place with each round: files that only grow can be cut to an earlier moment together, this
//! one cannot.
//!
//! Invariants:
//! 1. A receipt leaves only after the record of its round was handed to the kernel: a killed server has
//!    written it. It is synced within [`SYNC_INTERVAL`]; a power cut may cost so much of it, never of the log.
//! 2. The log holds a mark of how much of this file was synced: one that is shorter was cut or put back.
//! 3. What is in a file that was removed is in a signed interval.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aes_gcm::aead::Aead as _;
use aes_gcm::{Aes256Gcm, KeyInit as _};
use anyhow::{Context as _, Result, anyhow, ensure};
use scrinium_protocol::codec::{Codec as _, Reader};
use scrinium_protocol::evidence::interval::Reached;
use scrinium_protocol::identity::{Epoch, Head, Sequence, StreamId};
use scrinium_protocol::secret::Secret;
use scrinium_segment::cipher::Cipher;
use scrinium_segment::key::derive;
use scrinium_segment::reader::{Next, Record, SegmentReader};
use scrinium_segment::writer::SegmentWriter;
use scrinium_segment::{
    Error, HEADER_LEN, Kind, durable, fault, random, segment_name, segment_numbers,
};

use super::log::{decode_stream, encode_stream};
use crate::catalogue::Catalogue;
use crate::catalogue::records::{AckedRecord, StreamRecord};
use crate::clock;

/// The file being written.
pub(crate) struct Acked {
    dir: PathBuf,
    key: Secret<32>,
    cipher: Cipher,
    catalogue: Arc<Catalogue>,
    number: u64,
    writer: Option<SegmentWriter>,
    records: u64,
    /// Since when something is written and not synced.
    unsynced: Option<Instant>,
    /// What was synced since the log was told last: number of the file, records of it.
    mark: Option<(u64, u64)>,
    /// The log and its committed bytes, as noted last.
    log: (u64, u64),
    signed: u64,
    head: Option<File>,
    head_cipher: Aes256Gcm,
}

/// What the files say.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    /// Committed bytes of each log.
    pub(super) logs: BTreeMap<u64, u64>,
    /// Where each stream stood that moved.
    pub(super) reached: BTreeMap<StreamId, Reached>,
    /// Streams that no segment knew.
    pub(super) introduced: BTreeMap<StreamId, StreamRecord>,
    pub(super) generation: u64,
    /// Intervals that were signed.
    pub(crate) signed: u64,
    /// Records of each file.
    pub(super) records: BTreeMap<u64, u64>,
    /// The file that is overwritten with each round is there.
    pub(super) has_head: bool,
    /// What is wrong with the files themselves, with their names.
    pub(super) damage: Vec<(String, String)>,
}

impl Acked {
    /// For the files in `dir`; [`Acked::begin`] begins the first.
    pub(super) fn new(
        dir: PathBuf,
        key: Secret<32>,
        cipher: Cipher,
        catalogue: Arc<Catalogue>,
        remembered: &Remembered,
    ) -> Self {
        Self {
            head: None,
            head_cipher: head_cipher(&key),
            dir,
            key,
            cipher,
            catalogue,
            number: remembered.records.keys().max().copied().unwrap_or(0),
            writer: None,
            records: 0,
            unsynced: None,
            mark: None,
            log: (0, 0),
            signed: remembered.signed,
        }
    }

    /// Begins the next file, with the streams that no segment knows; durable when this returns, and the catalogue
    /// knows it. Returns its number: with it [`Acked::remove_before`] may be called when everything noted before is
    /// in a signed interval.
    ///
    /// # Errors
    /// The disk does not take it; the file before goes on.
    pub(crate) fn begin(&mut self, introduced: &[StreamRecord]) -> Result<u64> {
        let number = self.number + 1;
        // What is left of an attempt that failed.
        durable::remove(&self.path(number))?;
        let writer = SegmentWriter::create(
            &self.dir,
            &self.key,
            self.cipher,
            Kind::Acked,
            number,
            [0; 16],
        )?;
        let before = self.writer.replace(writer);
        let records = core::mem::take(&mut self.records);
        let begun = self.append(&[]);
        let begun = begun.and_then(|()| {
            introduced
                .iter()
                .try_for_each(|stream| self.introduce(stream))
        });
        let begun = begun.and_then(|()| self.sync());
        if begun.is_err() {
            // The file that failed is made anew the next time.
            self.writer = before;
            self.records = records;
            begun?;
        }
        self.number = number;
        self.mark = Some((number, self.records));
        if self.head.is_none() {
            let path = self.dir.join(HEAD_FILE);
            if !path.try_exists()? {
                durable::write_file(&path, &seal_head(&self.head_cipher, self.log)?)?;
            }
            self.head = Some(OpenOptions::new().write(true).open(&path)?);
        }
        fault::point("server: acknowledgements begun");
        // At this point it is there; if we die now, the start reads it beside the one before.
        let signed = self.signed;
        self.catalogue.put(&AckedRecord { number, signed })?;
        Ok(number)
    }

    /// Notes that the log is durable up to `committed`, and where the streams stand that moved.
    ///
    /// # Errors
    /// The disk does not take it: nothing of this may be acknowledged.
    pub(crate) fn note(
        &mut self,
        log: u64,
        committed: u64,
        moved: impl Iterator<Item = Reached>,
    ) -> Result<()> {
        self.log = (log, committed);
        if self.writer.is_none() {
            self.begin(&[])?;
        }
        let moved: Vec<Reached> = moved.collect();
        let noted = moved
            .chunks(STREAMS_MAX)
            .try_for_each(|moved| self.append(moved));
        let flushed = noted.and_then(|()| {
            let writer = self.writer.as_mut().context("it was begun")?;
            writer.flush()?;
            if let Some(head) = &self.head {
                durable::write_all_at(head, &seal_head(&self.head_cipher, self.log)?, 0)?;
            }
            Ok(())
        });
        if flushed.is_err() {
            // What reached the disk is unknown: the next round begins another file.
            self.writer = None;
            return flushed;
        }
        self.unsynced.get_or_insert_with(clock::now);
        self.sync_if_due()
    }

    /// Notes a stream that no segment knows; its first entries are noted after it.
    pub(crate) fn introduce(&mut self, stream: &StreamRecord) -> Result<()> {
        if self.writer.is_none() {
            self.begin(&[])?;
        }
        let writer = self.writer.as_mut().context("no file is begun")?;
        writer.append(RECORD_STREAM, &[&encode_stream(stream)])?;
        self.records += 1;
        Ok(())
    }

    /// Notes how many intervals are signed, for whoever compares the checkpoint with it.
    ///
    /// # Errors
    /// The disk does not take it.
    pub(crate) fn note_signed(&mut self, signed: u64) -> Result<()> {
        self.signed = signed;
        self.append(&[])?;
        self.sync()
    }

    /// Syncs what is older than [`SYNC_INTERVAL`].
    pub(crate) fn sync_if_due(&mut self) -> Result<()> {
        let now = clock::now();
        match self.unsynced {
            Some(since) if now.duration_since(since) >= SYNC_INTERVAL => self.sync(),
            _ => Ok(()),
        }
    }

    /// Intervals that were signed, at least.
    pub(crate) fn signed(&self) -> u64 {
        self.signed
    }

    /// What was synced and is not marked in the log yet: number of the file, records of it.
    pub(crate) fn take_mark(&mut self) -> Option<(u64, u64)> {
        self.mark.take()
    }

    /// Removes the files before `number`.
    pub(crate) fn remove_before(&self, number: u64) -> Result<()> {
        for old in segment_numbers(&self.dir, Kind::Acked)? {
            if old < number {
                durable::remove(&self.path(old))?;
            }
        }
        Ok(())
    }

    fn append(&mut self, moved: &[Reached]) -> Result<()> {
        let writer = self.writer.as_mut().context("no file is begun")?;
        let numbers = [
            self.log.0,
            self.log.1,
            self.catalogue.generation(),
            self.signed,
        ];
        let mut payload: Vec<u8> = numbers
            .iter()
            .flat_map(|number| number.to_be_bytes())
            .collect();
        for reached in moved {
            reached.stream.encode(&mut payload);
            reached.epoch.encode(&mut payload);
            payload.extend_from_slice(&reached.next.0.to_be_bytes());
            reached.head.encode(&mut payload);
        }
        writer.append(RECORD_ROUND, &[&payload])?;
        self.records += 1;
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        if let Err(error) = writer.sync() {
            self.writer = None;
            return Err(error.into());
        }
        self.unsynced = None;
        self.mark = Some((self.number, self.records));
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(segment_name(Kind::Acked, number))
    }
}

/// Reads every file in `dir`, in order.
///
/// # Errors
/// The directory cannot be listed, or the disk does not answer.
pub(super) fn read(dir: &Path, key: &Secret<32>) -> Result<Remembered> {
    let mut remembered = Remembered::default();
    match std::fs::read(dir.join(HEAD_FILE)) {
        Ok(bytes) => {
            remembered.has_head = true;
            match open_head(&head_cipher(key), &bytes) {
                Some((log, committed)) if log > 0 => {
                    remembered.logs.insert(log, committed);
                }
                Some(_) => {}
                None => {
                    let problem = "it was altered".to_owned();
                    remembered.damage.push((HEAD_FILE.to_owned(), problem));
                }
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    for number in segment_numbers(dir, Kind::Acked)? {
        let name = segment_name(Kind::Acked, number);
        let path = dir.join(&name);
        remembered.records.insert(number, 0);
        let reader = match SegmentReader::open(&path, key, Kind::Acked) {
            Ok(reader) => reader,
            // We died between creating the file and its first sync; the catalogue does not know it.
            Err(_) if std::fs::metadata(&path)?.len() <= HEADER_LEN as u64 => {
                remembered.records.remove(&number);
                continue;
            }
            Err(Error::Header { .. }) => {
                let problem = "its header is damaged, or it is of another volume";
                remembered.damage.push((name, problem.into()));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let mut cursor = reader.start();
        loop {
            match reader.next(&mut cursor) {
                Ok(Next::Record(record)) => {
                    remembered
                        .take(&record)
                        .with_context(|| path.display().to_string())?;
                    *remembered.records.entry(number).or_default() += 1;
                }
                // After a power cut the end that was not synced may be anything. Whether what is behind was, the mark
                // in the log tells.
                Ok(Next::End | Next::Torn { .. }) | Err(Error::Record { .. }) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(remembered)
}

impl Remembered {
    fn take(&mut self, record: &Record) -> Result<()> {
        if record.kind == RECORD_STREAM {
            let stream = decode_stream(&record.payload)?;
            self.introduced.insert(stream.id, stream);
            return Ok(());
        }
        ensure!(
            record.kind == RECORD_ROUND,
            "record kind {} is of a newer version",
            record.kind
        );
        let mut r = Reader::new(&record.payload);
        let (log, committed) = (r.u64("log")?, r.u64("committed bytes")?);
        if log > 0 {
            let known = self.logs.entry(log).or_default();
            *known = committed.max(*known);
        }
        self.generation = r.u64("generation of the catalogue")?;
        self.signed = r.u64("signed intervals")?;
        while !r.is_empty() {
            let reached = Reached {
                stream: StreamId::read(&mut r)?,
                epoch: Epoch::read(&mut r)?,
                next: Sequence(r.u64("next sequence")?),
                head: Head::read(&mut r)?,
            };
            self.reached.insert(reached.stream, reached);
        }
        Ok(())
    }
}

fn head_cipher(key: &Secret<32>) -> Aes256Gcm {
    Aes256Gcm::new(derive(key, None, &[b"head"]).expose().into())
}

fn seal_head(cipher: &Aes256Gcm, (log, committed): (u64, u64)) -> Result<Vec<u8>> {
    let nonce: [u8; 12] = random()?;
    let text = [log.to_be_bytes(), committed.to_be_bytes()].concat();
    let sealed = cipher.encrypt(&nonce.into(), text.as_slice());
    let sealed = sealed.map_err(|_| anyhow!("sealing how far the log is acknowledged"))?;
    Ok([&nonce[..], &sealed].concat())
}

fn open_head(cipher: &Aes256Gcm, bytes: &[u8]) -> Option<(u64, u64)> {
    let (nonce, sealed) = bytes.split_first_chunk::<12>()?;
    let text = cipher.decrypt(&(*nonce).into(), sealed).ok()?;
    let mut r = Reader::new(&text);
    Some((r.u64("log").ok()?, r.u64("committed bytes").ok()?))
}

const HEAD_FILE: &str = "head";
const RECORD_ROUND: u8 = 1;
const RECORD_STREAM: u8 = 2;
/// Streams of one record: some 14 MB.
const STREAMS_MAX: usize = 200_000;
/// How long something may be written and not synced.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_remembered_and_a_torn_end_costs_the_last_record_alone() {
        let dir = std::env::temp_dir().join(format!("scrinium-acked-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        let key = Secret::new([1; 32]);
        let catalogue = Arc::new(Catalogue::create(&dir.join("catalogue.db"), &key).unwrap());
        let open = || {
            let remembered = read(&dir, &key).unwrap();
            let cipher = Cipher::default();
            Acked::new(
                dir.clone(),
                key.clone(),
                cipher,
                catalogue.clone(),
                &remembered,
            )
        };
        let reached = |stream: u8, next| Reached {
            stream: StreamId([stream; 16]),
            epoch: Epoch([2; 16]),
            next: Sequence(next),
            head: Head([4; 32]),
        };
        let mut acked = open();
        assert_eq!(acked.begin(&[]).unwrap(), 1);
        assert_eq!(acked.take_mark(), Some((1, 1)));
        acked.note(7, 100, [reached(1, 5)].into_iter()).unwrap();
        acked
            .note(7, 200, [reached(1, 9), reached(2, 1)].into_iter())
            .unwrap();
        let remembered = read(&dir, &key).unwrap();
        assert_eq!(remembered.logs, BTreeMap::from([(7, 200)]));
        assert_eq!(remembered.reached.len(), 2);
        assert_eq!(
            remembered.reached.get(&StreamId([1; 16])).unwrap().next,
            Sequence(9)
        );
        assert_eq!(remembered.records, BTreeMap::from([(1, 3)]));
        assert_eq!(catalogue.load::<AckedRecord>().unwrap().len(), 1);

        let path = dir.join(segment_name(Kind::Acked, 1));
        let bytes = std::fs::read(&path).unwrap();
        durable::write_file(&path, &bytes[..bytes.len() - 1]).unwrap();
        // What it said of the streams is gone with it; how far the log is committed, the head says.
        let torn = read(&dir, &key).unwrap();
        assert_eq!(
            (torn.logs.get(&7), torn.records.get(&1)),
            (Some(&200), Some(&2))
        );
        assert!(torn.damage.is_empty());
        let mut altered = bytes.clone();
        altered[HEADER_LEN + 6] ^= 1;
        durable::write_file(&path, &altered).unwrap();
        assert_eq!(read(&dir, &key).unwrap().records.get(&1), Some(&0));

        durable::write_file(&path, &bytes).unwrap();
        let mut acked = open();
        assert_eq!(acked.begin(&[]).unwrap(), 2);
        acked.remove_before(2).unwrap();
        assert_eq!(segment_numbers(&dir, Kind::Acked).unwrap(), [2]);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
