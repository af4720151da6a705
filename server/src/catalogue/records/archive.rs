//! What is archived, what opens it, and what was deleted.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use scrinium_protocol::batch::StreamPosition;
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::evidence::interval::Reached;
use scrinium_protocol::identity::{AgentId, Epoch, Head, StreamId, StreamKind};
use serde::{Deserialize, Serialize};

use super::{StoredSecret, codec, hex, shared_text};
use crate::catalogue::{Changes, Stored};
use crate::clock::Day;

/// A stream and where it stood when the last log was archived.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct StreamRecord {
    #[serde(with = "codec")]
    pub(crate) id: StreamId,
    #[serde(with = "codec")]
    pub(crate) agent: AgentId,
    #[serde(with = "stream_kind")]
    pub(crate) kind: StreamKind,
    /// Shared by every copy: names may be long, and a stream is in several tables.
    #[serde(with = "shared_text")]
    pub(crate) name: Arc<str>,
    #[serde(with = "codec")]
    pub(crate) position: StreamPosition,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    /// When its last batch was received.
    pub(crate) last_us: u64,
}

impl StreamRecord {
    /// Where it stands, as it is noted and as an interval has it.
    pub(crate) fn reached(&self) -> Reached {
        Reached {
            stream: self.id,
            epoch: self.position.epoch,
            next: self.position.next,
            head: self.position.head,
        }
    }
}

impl Stored for StreamRecord {
    const KIND: u8 = 5;

    fn name(&self) -> Vec<u8> {
        self.id.encoded()
    }
}

/// What is kept and forgotten together: one day of one class of one tenant.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) struct Group {
    pub(crate) tenant: String,
    pub(crate) class: String,
    pub(crate) day: Day,
}

/// A sealed segment of the archive; what lies where in it, its own index says.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct SegmentRecord {
    /// Never given twice.
    pub(crate) number: u64,
    pub(crate) group: Group,
    /// Bytes of the file; one more or less is tampering.
    pub(crate) len: u64,
    /// Tag of its header; another file of the same number is noticed.
    #[serde(with = "hex")]
    pub(crate) tag: [u8; 16],
    /// Where its index lies: offset, length and index of the record.
    pub(crate) index: (u64, u32, u64),
    /// Collection times of its entries, Unix µs.
    pub(crate) times_us: (u64, u64),
    pub(crate) entries: u64,
    /// Bytes of its entries.
    pub(crate) bytes: u64,
    /// The logs it was made of, first and last.
    pub(crate) logs: (u64, u64),
    /// It holds a whole day, compressed harder.
    pub(crate) compacted: bool,
}

impl Stored for SegmentRecord {
    const KIND: u8 = 6;

    fn name(&self) -> Vec<u8> {
        self.number.to_be_bytes().to_vec()
    }
}

/// How far the archive is; one row.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct ArchiveMark {
    /// Logs up to here were sealed, and are gone.
    pub(crate) log: u64,
    /// The last segment number that was given.
    pub(crate) segment: u64,
    /// The last certificate number that was given.
    #[serde(default)]
    pub(crate) certificate: u64,
}

impl Stored for ArchiveMark {
    const KIND: u8 = 8;

    fn name(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// A segment that is no longer the archive's, and whose file may still be there.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct RemovedSegment {
    pub(crate) number: u64,
}

impl Stored for RemovedSegment {
    const KIND: u8 = 9;

    fn name(&self) -> Vec<u8> {
        self.number.to_be_bytes().to_vec()
    }
}

/// The key of a log, gone with it.
#[derive(Deserialize, Serialize)]
pub(crate) struct LogKey {
    pub(crate) number: u64,
    pub(crate) key: StoredSecret,
    /// How it ended; none while it is written, and of version 0.1.0.
    #[serde(default)]
    pub(crate) end: Option<LogEnd>,
}

/// How a log ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct LogEnd {
    /// Bytes that are committed, the end record aside.
    pub(crate) committed: u64,
    /// Whether an end record follows them.
    pub(crate) finished: bool,
}

/// The file that says how far the log was acknowledged; one row.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct AckedRecord {
    pub(crate) number: u64,
    /// Intervals that were signed before it began.
    pub(crate) signed: u64,
}

impl Stored for AckedRecord {
    const KIND: u8 = 30;

    fn name(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// Something that is not as it was left, noticed when the volume was opened.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct LossRecord {
    pub(crate) number: u64,
    /// When it was noticed, Unix µs.
    pub(crate) time_us: u64,
    /// The file concerned, below the data directory.
    pub(crate) file: String,
    pub(crate) problem: String,
    /// The entries that are missing, if it is known which.
    pub(crate) entries: Option<LostEntries>,
    /// Whether an alarm says so.
    pub(crate) told: bool,
}

/// Entries of a stream that were acknowledged and are not there.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct LostEntries {
    #[serde(with = "codec")]
    pub(crate) stream: StreamId,
    /// What it is called, if that is known.
    pub(crate) name: Option<String>,
    #[serde(with = "codec")]
    pub(crate) agent: AgentId,
    #[serde(with = "codec")]
    pub(crate) epoch: Epoch,
    /// First sequence, and the one after the last.
    pub(crate) sequences: (u64, u64),
    /// The chain head after them.
    #[serde(with = "codec")]
    pub(crate) head: Head,
}

impl Stored for LossRecord {
    const KIND: u8 = 31;

    fn name(&self) -> Vec<u8> {
        self.number.to_be_bytes().to_vec()
    }
}

/// Entries that an agent holds a receipt for, and that were not there when it showed it. By stream and epoch: one that an agent
/// left is missing as well as the one it is in.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct UnmetReceipt {
    #[serde(with = "codec")]
    pub(crate) stream: StreamId,
    #[serde(with = "codec")]
    pub(crate) agent: AgentId,
    pub(crate) name: String,
    #[serde(with = "codec")]
    pub(crate) epoch: Epoch,
    /// First sequence, and the one after the last.
    pub(crate) sequences: (u64, u64),
    /// The chain head that the receipt names.
    #[serde(default = "no_head", with = "codec")]
    pub(crate) head: Head,
}

/// A head that no chain has.
fn no_head() -> Head {
    Head([0; 32])
}

impl UnmetReceipt {
    /// Writes it down beside what is known of the same epoch: the first that is missing, and the last receipt.
    pub(crate) fn keep(self, changes: &Changes<'_>) -> Result<()> {
        let mut row = self;
        if let Some(before) = changes.get::<Self>(&row.name())? {
            row = row.joined(before);
        }
        // Version 0.1.0 had one row for each stream.
        let of_stream = row.stream.encoded();
        if let Some(before) = changes.get::<Self>(&of_stream)?
            && before.epoch == row.epoch
        {
            row = row.joined(before);
            changes.remove_named::<Self>(&of_stream)?;
        }
        changes.put(&row)
    }

    fn joined(self, other: Self) -> Self {
        let first = self.sequences.0.min(other.sequences.0);
        let mut last = match self.sequences.1 >= other.sequences.1 {
            true => self,
            false => other,
        };
        last.sequences.0 = first;
        last
    }
}

impl Stored for UnmetReceipt {
    const KIND: u8 = 33;

    fn name(&self) -> Vec<u8> {
        [self.stream.encoded(), self.epoch.encoded()].concat()
    }
}

/// The first key of a chain of keys of intervals.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct ChainRecord {
    /// The interval it begins with.
    pub(crate) number: u64,
    #[serde(with = "hex")]
    pub(crate) public: [u8; 32],
    /// The volume was restored since: another chain may follow.
    #[serde(default)]
    pub(crate) ended: bool,
}

impl Stored for ChainRecord {
    const KIND: u8 = 34;

    fn name(&self) -> Vec<u8> {
        self.number.to_be_bytes().to_vec()
    }
}

/// A time-stamp token that came; the token and its checkpoint lie beside the intervals.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct StampRecord {
    /// As `2026-01-31`.
    pub(crate) day: String,
    /// SHA-256, in hexadecimal.
    pub(crate) token: String,
    pub(crate) checkpoint: String,
}

impl Stored for StampRecord {
    const KIND: u8 = 32;

    fn name(&self) -> Vec<u8> {
        self.day.clone().into_bytes()
    }
}

impl Stored for LogKey {
    const KIND: u8 = 10;

    fn name(&self) -> Vec<u8> {
        self.number.to_be_bytes().to_vec()
    }
}

/// A customer whose logs are kept apart.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct TenantRecord {
    pub(crate) name: String,
    /// Wraps the keys of its days.
    pub(crate) key: StoredSecret,
}

impl Stored for TenantRecord {
    const KIND: u8 = 11;

    fn name(&self) -> Vec<u8> {
        self.name.clone().into_bytes()
    }
}

/// The keys of a group, wrapped under its tenant's.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct GroupKeys {
    pub(crate) group: Group,
    pub(crate) keys: WrappedKeys,
}

/// What is left of the keys of a group.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum WrappedKeys {
    /// The key all its streams' keys come from.
    Whole(String),
    /// Some streams were forgotten: the keys of the others, one by one.
    Streams(Vec<(String, String)>),
    /// In the second container: under the officer's key.
    Sealed(SealedKeys),
}

/// The keys of a group that the server alone cannot open.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct SealedKeys {
    /// The officer's age recipient.
    pub(crate) recipient: String,
    /// An age file with the key of this container, in base 64.
    pub(crate) key: String,
    /// Its streams, and their keys under that.
    pub(crate) streams: Vec<(String, String)>,
}

impl Stored for GroupKeys {
    const KIND: u8 = 12;

    fn name(&self) -> Vec<u8> {
        let Group { tenant, class, day } = &self.group;
        format!("{tenant}\0{class}\0{day}").into_bytes()
    }
}

/// The last verification that was not of a range; one row.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct VerificationRecord {
    pub(crate) time_us: u64,
    pub(crate) whole: bool,
    pub(crate) findings: u64,
    /// Of the findings; zeros where there are none.
    #[serde(default, with = "hex")]
    pub(crate) digest: [u8; 32],
    /// When every byte was verified last.
    pub(crate) full_us: u64,
    /// The segments that were found as they were sealed.
    pub(crate) segments: Vec<u64>,
    /// When every byte of each was read last, Unix µs; of version 0.1.0 that is `full_us`.
    #[serde(default)]
    pub(crate) read: BTreeMap<u64, u64>,
}

impl VerificationRecord {
    /// When every byte of a segment was read last, if it was found as it was sealed.
    pub(crate) fn read_us(&self, segment: u64) -> Option<u64> {
        let known = self.segments.contains(&segment);
        known.then(|| self.read.get(&segment).copied().unwrap_or(self.full_us))
    }
}

impl Stored for VerificationRecord {
    const KIND: u8 = 22;

    fn name(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// The last backup that was made, and the last one that was verified; one row.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct BackupRecord {
    pub(crate) to: String,
    pub(crate) made_us: u64,
    pub(crate) generation: u64,
    pub(crate) objects: u64,
    /// Of all objects, and of those that were copied then.
    pub(crate) bytes: u64,
    pub(crate) copied_bytes: u64,
    /// Zero before the first time.
    pub(crate) verified_us: u64,
    /// Whether every object was as it was copied.
    pub(crate) whole: bool,
}

impl Stored for BackupRecord {
    const KIND: u8 = 25;

    fn name(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// What was deleted of a stream, as far as its chain went through it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct PrunedRecord {
    #[serde(with = "codec")]
    pub(crate) stream: StreamId,
    pub(crate) ranges: Vec<PrunedRange>,
}

/// Entries of one epoch that were deleted together.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct PrunedRange {
    #[serde(with = "codec")]
    pub(crate) epoch: Epoch,
    /// Sequences, end excluded.
    pub(crate) sequences: (u64, u64),
    /// The chain head after them.
    #[serde(with = "codec")]
    pub(crate) head: Head,
    /// The last certificate that says so.
    pub(crate) certificate: u64,
}

impl Stored for PrunedRecord {
    const KIND: u8 = 16;

    fn name(&self) -> Vec<u8> {
        self.stream.encoded()
    }
}

/// A certificate of deletion; kept for a while after it is in the archive's own trail, which a backup may not
/// have of the same day.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct CertificateRecord {
    pub(crate) number: u64,
    /// The signed text, one line.
    pub(crate) text: String,
    /// Where the trail stood when it was sent there: behind that, it is in it.
    pub(crate) published_at: Option<u64>,
    pub(crate) made_us: u64,
}

impl Stored for CertificateRecord {
    const KIND: u8 = 17;

    fn name(&self) -> Vec<u8> {
        self.number.to_be_bytes().to_vec()
    }
}

mod stream_kind {
    use scrinium_protocol::identity::StreamKind;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(kind: &StreamKind, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u8(kind.to_byte())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<StreamKind, D::Error> {
        let byte = u8::deserialize(d)?;
        StreamKind::from_byte(byte).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use scrinium_protocol::secret::Secret;

    use super::*;
    use crate::catalogue::Catalogue;

    /// An agent that was restored twice shows a receipt of each epoch; one of them took the place of the other.
    #[test]
    fn each_epoch_of_a_stream_has_its_own_missing_entries_and_the_most_that_was_shown() {
        let path = std::env::temp_dir().join(format!("scrinium-unmet-{}.db", std::process::id()));
        drop(std::fs::remove_file(&path));
        let catalogue = Catalogue::create(&path, &Secret::new([1; 32])).unwrap();
        let keep = |epoch: u8, sequences: (u64, u64)| {
            let row = unmet(epoch, sequences);
            catalogue.write(|changes| row.keep(changes)).unwrap();
        };
        // As version 0.1.0 wrote it.
        let old = unmet(1, (3, 9));
        catalogue
            .write(|changes| changes.put(&OfStream(old)))
            .unwrap();
        keep(1, (5, 20));
        keep(2, (0, 100));
        keep(2, (7, 50));
        let mut rows = catalogue.load::<UnmetReceipt>().unwrap();
        rows.sort_by_key(|row| row.epoch);
        let rows: Vec<_> = rows
            .iter()
            .map(|row| (row.epoch.0[0], row.sequences))
            .collect();
        assert_eq!(rows, [(1, (3, 20)), (2, (0, 100))]);
        let rows = catalogue.load::<UnmetReceipt>().unwrap();
        let last = rows.iter().find(|row| row.epoch.0[0] == 2).unwrap();
        assert_eq!(last.head, Head([100; 32]), "the head of the last one");
        std::fs::remove_file(&path).unwrap();
    }

    fn unmet(epoch: u8, sequences: (u64, u64)) -> UnmetReceipt {
        UnmetReceipt {
            stream: StreamId([7; 16]),
            agent: AgentId([1; 16]),
            name: "/var/log/x".into(),
            epoch: Epoch([epoch; 16]),
            sequences,
            head: Head([u8::try_from(sequences.1).unwrap(); 32]),
        }
    }

    #[derive(Deserialize, Serialize)]
    struct OfStream(UnmetReceipt);

    impl Stored for OfStream {
        const KIND: u8 = UnmetReceipt::KIND;

        fn name(&self) -> Vec<u8> {
            self.0.stream.encoded()
        }
    }
}
