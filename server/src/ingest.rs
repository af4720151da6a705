//! The only writer of the archive, and the only maker of acks.
//!
//! ```text
//! sessions ─┐                                            ┌─▶ readers (live log)
//! syslog ───┼─▶ queue ─▶ compare ─▶ append ─▶ ONE fsync ─┴─▶ receipts
//! audit ────┘
//! ```
//!
//! Invariants:
//! 1. A receipt is built in [`Ingest::commit`] alone, after the sync.
//! 2. Batch, chain head and bookmark are one record: one durable write moves all three.
//! 3. What is acknowledged is noted in a second place before (`archive/acked.rs`).
//! 4. After a failed write or sync the log is left as it is and a new one begun: nothing of the
//!    failed round is acked, and whoever sent it sends it again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Result;
use ed25519_dalek::SigningKey;
use scrinium_protocol::batch::{BatchHeader, Relation, SealedBatch};
use scrinium_protocol::evidence::interval::Reached;
use scrinium_protocol::identity::{AgentId, StreamId};
use scrinium_protocol::sl::message::Receipt;
use scrinium_segment::writer::SegmentWriter;
use scrinium_segment::{Kind, fault};
use tokio::sync::oneshot;
use tracing::{error, warn};

use crate::archive::Archive;
use crate::archive::block::log_head;
use crate::archive::log::{
    Inside, Log, LogBatch, RECORD_BATCH, RECORD_LIMIT, RECORD_MARK, RECORD_STREAM, apply,
    encode_stream, starts_anew,
};
use crate::archive::troubles::Trouble;
use crate::archive::upkeep::Work;
use crate::catalogue::records::{LogEnd, StreamRecord};
use crate::clock;
use crate::vital::Watch;

/// What the writer is asked to do.
pub(crate) enum Submission {
    /// A stream not seen before; precedes its first batch.
    Stream(StreamRecord),
    /// A verified batch.
    Batch(BatchSubmission),
    /// Answers when everything before it was answered.
    Barrier(oneshot::Sender<()>),
    /// Finishes the log after what came before it; answers with the number of the next.
    Roll(oneshot::Sender<u64>),
}

/// A batch whose signature and root were checked.
pub(crate) struct BatchSubmission {
    pub(crate) agent: AgentId,
    pub(crate) batch: SealedBatch,
    pub(crate) encoded: Vec<u8>,
    /// What only whoever opened the batch knows.
    pub(crate) inside: Inside,
    pub(crate) answer: oneshot::Sender<Outcome>,
}

/// What became of a batch.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// Durable now, or already before.
    Durable(Box<Receipt>),
    /// Another history of this stream is archived.
    Conflict,
    /// Something of this stream is archived that comes after it. Whether it is the same as what is
    /// archived in its place is for the sender's session to look up.
    Stale(Box<BatchHeader>),
    /// The disk did not take it; it may be sent again.
    NotWritten,
}

/// The way to the writer. Sending waits while [`QUEUE_MAX`] submissions wait: 16 MiB at most.
pub(crate) type Queue = SyncSender<Submission>;

/// Starts the writer's thread. It ends when every sender is gone.
pub(crate) fn start(
    watch: Watch,
    archive: Arc<Archive>,
    signing: SigningKey,
    finished_logs: SyncSender<Work>,
    limits: LogLimits,
) -> Result<(Queue, std::thread::JoinHandle<()>)> {
    let (queue, submissions) = sync_channel(QUEUE_MAX);
    let mut ingest = Ingest::new(archive, signing, finished_logs, limits)?;
    let thread = std::thread::Builder::new()
        .name("ingest".into())
        .spawn(move || {
            let _watch = watch;
            ingest.run(&submissions);
        })?;
    Ok((queue, thread))
}

/// When a log is finished: at this length, at this age, or with so many entries, whichever comes first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogLimits {
    pub(crate) bytes_max: u64,
    pub(crate) age_max: Duration,
    pub(crate) entries_max: u64,
}

/// The writer.
pub(crate) struct Ingest {
    archive: Arc<Archive>,
    signing: SigningKey,
    finished_logs: SyncSender<Work>,
    limits: LogLimits,
    log: Option<ActiveLog>,
    /// A log that was left after a failed write, and its committed bytes.
    left: Option<(u64, u64)>,
    /// How the log before ended, until it is written down with the key of the next.
    ended: Option<(u64, LogEnd)>,
    /// Why the log could not be written last.
    refused: String,
}

struct ActiveLog {
    writer: SegmentWriter,
    shown: Arc<Log>,
    begun: Instant,
    /// Bytes made durable by the last good sync.
    committed: u64,
    entries: u64,
}

/// A batch appended in this round.
struct Appended {
    submission: BatchSubmission,
    shown: LogBatch,
}

impl Ingest {
    pub(crate) fn new(
        archive: Arc<Archive>,
        signing: SigningKey,
        finished_logs: SyncSender<Work>,
        limits: LogLimits,
    ) -> Result<Self> {
        let mut ingest = Self {
            log: None,
            left: None,
            ended: None,
            refused: String::new(),
            limits,
            archive,
            signing,
            finished_logs,
        };
        ingest.open_log()?;
        Ok(ingest)
    }

    fn run(&mut self, submissions: &Receiver<Submission>) {
        loop {
            let first = match submissions.recv_timeout(IDLE_INTERVAL) {
                Ok(submission) => Some(submission),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let round: Vec<Submission> = first
                .into_iter()
                .chain(submissions.try_iter().take(ROUND_MAX))
                .collect();
            if !round.is_empty() {
                self.round(round);
            }
            self.roll_if_due();
            if self.log.is_some() {
                // A log could be begun, and nothing was refused since: it takes entries again.
                let troubles = self.archive.troubles();
                troubles.end_if_quiet(Trouble::Archiving, QUIET);
            }
            if let Err(error) = self.archive.acked().sync_if_due() {
                let error = format!("{error:#}");
                error!(error, "how far the log is acknowledged could not be synced");
                self.archive.troubles().meet(Trouble::Archiving, error);
            }
        }
        self.finish_log();
        if let Some((number, end)) = self.ended.take()
            && let Err(error) = self.archive.end_log(number, end)
        {
            let error = format!("{error:#}");
            error!(error, "the end of the log could not be written down");
        }
    }

    /// Finishes the log, if one is open.
    fn finish_log(&mut self) {
        let Some(log) = self.log.take() else {
            return;
        };
        let number = log.shown.number();
        let committed = log.writer.len();
        let finished = log.writer.finish();
        if let Err(error) = &finished {
            error!(%error, "the log could not be finished; its entries are durable");
        }
        let finished = finished.is_ok();
        self.ended = Some((
            number,
            LogEnd {
                committed,
                finished,
            },
        ));
    }

    /// Takes everything that waits, makes it durable with one sync, answers.
    pub(crate) fn round(&mut self, round: Vec<Submission>) {
        let mut streams: BTreeMap<StreamId, StreamRecord> = BTreeMap::new();
        let mut new_streams = Vec::new();
        let mut appended = Vec::new();
        let mut repeated = Vec::new();
        let mut barriers = Vec::new();
        let mut rolls = Vec::new();
        let mut failed = false;
        for submission in round {
            match submission {
                Submission::Barrier(answer) => barriers.push(answer),
                Submission::Roll(answer) => rolls.push(answer),
                Submission::Stream(stream) => {
                    if self.archive.stream(stream.id).is_none() && !streams.contains_key(&stream.id)
                    {
                        failed |= !self.append_stream(&stream);
                        streams.insert(stream.id, stream.clone());
                        new_streams.push(stream);
                    }
                }
                Submission::Batch(submission) => {
                    let id = submission.batch.header.stream;
                    let known = streams
                        .get(&id)
                        .cloned()
                        .or_else(|| self.archive.stream(id));
                    let Some(mut stream) = known.filter(|stream| stream.agent == submission.agent)
                    else {
                        answer(submission.answer, Outcome::Conflict);
                        continue;
                    };
                    match relation(&stream, &submission.batch) {
                        Relation::Conflict => answer(submission.answer, Outcome::Conflict),
                        Relation::Repeated => repeated.push(submission),
                        Relation::Follows => {
                            let received_us = clock::unix_us();
                            let place = self.append_batch(&submission, received_us);
                            let Some(place) = place.filter(|_| !failed) else {
                                failed = true;
                                answer(submission.answer, Outcome::NotWritten);
                                continue;
                            };
                            let inside = submission.inside;
                            let header = &submission.batch.header;
                            apply(&mut stream, header, inside.bytes, received_us);
                            streams.insert(id, stream);
                            let shown = LogBatch::new(header, place, received_us, inside);
                            appended.push(Appended { submission, shown });
                        }
                    }
                }
            }
        }
        let is_idle = appended.is_empty() && new_streams.is_empty();
        if !is_idle {
            failed |= !self.append_mark();
            fault::point("server: appended");
        }
        failed = failed || (!is_idle && !self.sync());
        if failed {
            self.archive
                .troubles()
                .meet(Trouble::Archiving, self.refused.clone());
            self.abandon_log();
            for item in appended {
                answer(item.submission.answer, Outcome::NotWritten);
            }
            for item in repeated {
                answer(item.answer, Outcome::NotWritten);
            }
        } else {
            self.commit(new_streams, streams, appended, repeated);
        }
        for barrier in barriers {
            let _gave_up = barrier.send(());
        }
        if !rolls.is_empty() {
            self.roll();
        }
        for roll in rolls {
            // Whoever asks hears nothing while there is no log.
            if let Some(log) = &self.log {
                let _gave_up = roll.send(log.shown.number());
            }
        }
    }

    fn append_stream(&mut self, stream: &StreamRecord) -> bool {
        let Some(log) = &mut self.log else {
            return false;
        };
        log.writer
            .append(RECORD_STREAM, &[&encode_stream(stream)])
            .inspect_err(|error| refused(&mut self.refused, error))
            .is_ok()
    }

    /// Writes how much is durable of what says how far the log is acknowledged.
    fn append_mark(&mut self) -> bool {
        let mark = self.archive.acked().take_mark();
        let (Some(log), Some((number, records))) = (&mut self.log, mark) else {
            return true;
        };
        log.writer
            .append(
                RECORD_MARK,
                &[&number.to_be_bytes(), &records.to_be_bytes()],
            )
            .inspect_err(|error| refused(&mut self.refused, error))
            .is_ok()
    }

    fn append_batch(
        &mut self,
        submission: &BatchSubmission,
        received_us: u64,
    ) -> Option<scrinium_segment::Place> {
        let log = self.log.as_mut()?;
        log.entries += u64::from(submission.batch.header.count);
        let head = log_head(received_us, submission.agent);
        log.writer
            .append(RECORD_BATCH, &[&head, &submission.encoded])
            .inspect_err(|error| refused(&mut self.refused, error))
            .ok()
    }

    fn sync(&mut self) -> bool {
        let Some(log) = &mut self.log else {
            return false;
        };
        if let Err(error) = log.writer.sync() {
            error!(%error, "the log could not be made durable; nothing is acked");
            self.refused = error.to_string();
            return false;
        }
        log.committed = log.writer.len();
        fault::point("server: synced");
        true
    }

    /// Everything of this round is durable: show it, then ack it.
    fn commit(
        &self,
        new_streams: Vec<StreamRecord>,
        streams: BTreeMap<StreamId, StreamRecord>,
        appended: Vec<Appended>,
        repeated: Vec<BatchSubmission>,
    ) {
        let Some(log) = &self.log else {
            return;
        };
        let number = log.shown.number();
        let mut noted = Ok(());
        for stream in new_streams {
            noted = noted.and_then(|()| self.archive.acked().introduce(&stream));
            self.archive.define_stream(stream);
        }
        let moved = streams.values().filter(|stream| stream.entries > 0);
        let moved: Vec<Reached> = moved.map(StreamRecord::reached).collect();
        self.archive.advance(streams.into_values().collect());
        for item in &appended {
            log.shown.push(item.shown);
        }
        fault::point("server: shown");
        // After it is shown: an interval that begins another file has what was noted in the one before.
        if !moved.is_empty() {
            let moved = moved.into_iter();
            noted = noted.and_then(|()| self.archive.acked().note(number, log.committed, moved));
        }
        if let Err(error) = noted {
            // Archived, and not acknowledged: whoever sent it asks again where the archive stands.
            let error = format!("{error:#}");
            error!(error, "how far the log is acknowledged could not be noted");
            self.archive.troubles().meet(Trouble::Archiving, error);
            let answers = appended.into_iter().map(|item| item.submission.answer);
            for to in answers.chain(repeated.into_iter().map(|item| item.answer)) {
                answer(to, Outcome::NotWritten);
            }
            return;
        }
        fault::point("server: noted");
        self.archive.troubles().end(Trouble::Archiving);
        // At this point readers see it; if we die now, recovery finds it and the sender, having no
        // receipt, learns it from the next statement.
        for item in appended {
            let receipt = self.receipt(&item.submission.batch, number, item.shown.place.offset);
            answer(item.submission.answer, Outcome::Durable(Box::new(receipt)));
        }
        for item in repeated {
            // Known again only when it is the very batch that stands last; whoever sends an older one
            // asks anew where the archive stands.
            let stands = self.archive.stream(item.batch.header.stream);
            let same =
                stands.is_some_and(|stream| stream.position == item.batch.header.position_after());
            let outcome = if same {
                Outcome::Durable(Box::new(self.receipt(&item.batch, number, 0)))
            } else {
                Outcome::Stale(Box::new(item.batch.header))
            };
            answer(item.answer, outcome);
        }
    }

    fn receipt(&self, batch: &SealedBatch, log: u64, offset: u64) -> Receipt {
        let mut receipt = Receipt {
            stream: batch.header.stream,
            epoch: batch.header.epoch,
            next: batch.header.next(),
            head: batch.header.head(),
            log,
            offset,
            signature: [0; 64],
        };
        receipt.sign(&self.signing);
        receipt
    }

    /// Leaves a log whose writes failed: what reached the disk is read back at the next start, and
    /// readers keep what was committed before.
    fn abandon_log(&mut self) {
        if let Some(log) = self.log.take() {
            warn!(
                log = log.shown.number(),
                "leaving a log after a failed write"
            );
            let (number, committed) = (log.shown.number(), log.committed);
            self.left = Some((number, committed));
            let finished = false;
            self.ended = Some((
                number,
                LogEnd {
                    committed,
                    finished,
                },
            ));
        }
        self.begin_log();
    }

    pub(crate) fn roll_if_due(&mut self) {
        let due = match &self.log {
            None => true,
            Some(log) => {
                let old = clock::now().duration_since(log.begun) >= self.limits.age_max;
                log.writer.len() >= self.limits.bytes_max
                    || log.entries >= self.limits.entries_max
                    || (old && !log.writer.is_empty())
            }
        };
        if due {
            self.roll();
        }
    }

    fn roll(&mut self) {
        self.finish_log();
        self.begin_log();
    }

    /// Begins a log; where that is refused, it is tried again with the next round.
    fn begin_log(&mut self) {
        if let Err(error) = self.open_log() {
            let error = format!("{error:#}");
            error!(
                error,
                "no new log can be opened; nothing is acked until one can"
            );
            self.refused.clone_from(&error);
            self.archive.troubles().meet(Trouble::Archiving, error);
        }
    }

    fn open_log(&mut self) -> Result<()> {
        let number = self.archive.next_log_number()?;
        let dir = self.archive.log_dir();
        let key = self.archive.keys().make_log_key(number, self.ended)?;
        self.ended = None;
        let cipher = self.archive.cipher();
        let mut writer = SegmentWriter::create(&dir, &key, cipher, Kind::Log, number, [0; 16])?;
        if let Some((left, committed)) = self.left {
            writer.append(
                RECORD_LIMIT,
                &[&left.to_be_bytes(), &committed.to_be_bytes()],
            )?;
        }
        writer.sync()?;
        self.left = None;
        let shown = Arc::new(Log::open(writer.path(), &key)?);
        self.archive.add_log(shown.clone());
        let committed = writer.len();
        self.log = Some(ActiveLog {
            writer,
            shown,
            begun: clock::now(),
            committed,
            entries: 0,
        });
        // The sealer looks for logs before this one; if it is busy, it hears of the next.
        let _busy = self.finished_logs.try_send(Work::Finished(number));
        Ok(())
    }
}

/// Keeps why the log could not be written.
fn refused(why: &mut String, error: &scrinium_segment::Error) {
    error!(%error, "writing the log failed");
    *why = error.to_string();
}

fn relation(stream: &StreamRecord, batch: &SealedBatch) -> Relation {
    if starts_anew(stream, batch) {
        return Relation::Follows;
    }
    batch.header.relation_to(&stream.position)
}

fn answer(to: oneshot::Sender<Outcome>, outcome: Outcome) {
    // A session that ended no longer waits; the agent learns at the next statement.
    let _ended = to.send(outcome);
}

/// A log is finished with so many entries, whatever its length is: a search reads all of a log, and only what is sealed has
/// filters. Of a byte each, which compress to next to nothing, a log of 64 MiB would have a thousand million. Of ordinary
/// lines the length comes first.
pub(crate) const LOG_ENTRIES_MAX: u64 = 1 << 24;
/// Submissions waiting for the writer.
const QUEUE_MAX: usize = 64;
/// Most submissions made durable by one sync.
const ROUND_MAX: usize = 256;
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// Without a refusal for so long, and with a log that could be begun, entries are taken again: whoever was refused may be
/// gone, and then nothing else says so.
const QUIET: Duration = Duration::from_secs(10);
