//! Sources that are no files: they listen, ask or run, and hand over entries as these come.
//!
//! ```text
//! task of the source ─▶ bounded channel ─▶ [Feed] one output per stream ─▶ batches
//! ```
//!
//! A full spool leaves the channel full: whatever can wait then waits (a TCP sender, a pipe, the journal),
//! and what cannot (a datagram) is counted and becomes a gap entry.

pub(crate) mod command;
#[cfg(any(test, windows))]
pub(crate) mod events;
#[cfg(unix)]
pub(crate) mod journal;
pub(crate) mod own;
mod queue;
pub(crate) mod syslog;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Once};
use std::time::Instant;

use scrinium_protocol::batch::BOOKMARK_LEN_MAX;
use scrinium_protocol::entry::{ENTRY_LEN_MAX, EntryFlags};
use scrinium_protocol::identity::{StreamId, StreamName};
use scrinium_syslog::Received;
use scrinium_syslog::senders::{Placed, SenderLimits, Senders, is_sender};
use tokio::task::AbortHandle;
use tracing::warn;

pub(crate) use self::queue::Sink;
use self::queue::{Queue, Trouble};
use super::file::Pass;
use super::output::{Output, Positions};
use super::standing::FeedStanding;
use super::{Command, Context};
use crate::clock;
use crate::config::FeedSource;

/// One entry on its way from a source.
pub(crate) struct Item {
    pub(crate) stream: StreamName,
    pub(crate) bytes: Vec<u8>,
    pub(crate) flags: EntryFlags,
    /// When it was collected, Unix µs.
    pub(crate) time_us: u64,
    /// Where the source goes on after it; empty when that is where it would have gone on before it.
    pub(crate) bookmark: Vec<u8>,
    /// The connection of a relay that it came on; 0 where there is none.
    pub(crate) connection: u64,
}

impl Item {
    /// A line as it came, at this moment.
    pub(crate) fn line(stream: &StreamName, mut bytes: Vec<u8>) -> Self {
        if bytes.last() != Some(&b'\n') {
            bytes.push(b'\n');
        }
        Self {
            stream: stream.clone(),
            bytes,
            flags: EntryFlags::NONE,
            time_us: clock::unix_us(),
            bookmark: Vec::new(),
            connection: 0,
        }
    }

    /// A message of any length, in linked pieces; the source goes on at `bookmark` after the last one, and
    /// before that says all of it again.
    fn pieces(stream: &StreamName, message: &[u8], bookmark: &[u8]) -> Vec<Self> {
        let time_us = clock::unix_us();
        let mut pieces = message.chunks(ENTRY_LEN_MAX).peekable();
        let mut items = Vec::with_capacity(1);
        while let Some(piece) = pieces.next() {
            let (flags, bookmark) = match pieces.peek() {
                Some(_) => (EntryFlags::FRAGMENT, &[][..]),
                None => (EntryFlags::NONE, bookmark),
            };
            items.push(Self {
                stream: stream.clone(),
                bytes: piece.to_vec(),
                flags,
                time_us,
                bookmark: bookmark.to_vec(),
                connection: 0,
            });
        }
        items
    }

    /// The statement that something is missing here.
    pub(crate) fn gap(stream: &StreamName, text: &str) -> Self {
        Self {
            flags: EntryFlags::GAP,
            ..Self::line(stream, format!("gap: {text}\n").into_bytes())
        }
    }
}

/// Ends the wait of the thread of the sources.
#[derive(Clone)]
pub(super) struct Waker {
    commands: SyncSender<Command>,
    /// A wake-up lies in the channel: one is enough, and leaves it room for commands.
    pending: Arc<AtomicBool>,
}

impl Waker {
    pub(super) fn new(commands: SyncSender<Command>) -> Self {
        Self {
            commands,
            pending: Arc::default(),
        }
    }

    pub(super) fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            // A full channel wakes whoever reads it; one that ended needs nobody.
            if self.commands.try_send(Command::Wake).is_err() {
                self.pending.store(false, Ordering::Release);
            }
        }
    }

    /// The wake-up was taken out of the channel.
    pub(super) fn handle_wake(&self) {
        self.pending.store(false, Ordering::Release);
    }
}

impl From<Received> for Item {
    fn from(received: Received) -> Self {
        Self {
            stream: StreamName {
                kind: received.kind,
                name: received.name,
            },
            bytes: received.bytes,
            flags: received.flags,
            time_us: received.time_us,
            bookmark: Vec::new(),
            connection: received.connection,
        }
    }
}

impl From<Item> for Received {
    fn from(item: Item) -> Self {
        Self {
            kind: item.stream.kind,
            name: item.stream.name,
            connection: item.connection,
            time_us: item.time_us,
            flags: item.flags,
            bytes: item.bytes,
        }
    }
}

/// A source at work, and its streams.
pub(super) struct Feed {
    source: FeedSource,
    items: Queue,
    task: AbortHandle,
    ended: bool,
    /// Its streams are still to say that the configuration ended them.
    says_end: bool,
    streams: BTreeMap<StreamId, Stream>,
    /// The items of one line for which there was no room yet.
    waiting: Option<Vec<Item>>,
    /// When something came last, and why nothing does.
    taken_at: Option<Instant>,
    trouble: Trouble,
}

struct Stream {
    output: Output,
    bookmark: Vec<u8>,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Feed {
    /// Starts the source where its streams stand.
    pub(super) fn start(
        source: FeedSource,
        positions: &Positions,
        context: &Context,
        waker: Waker,
    ) -> Self {
        let (sink, items) = queue::queue(ITEMS_MAX, waker);
        let trouble = sink.trouble();
        let bookmark = source.stream().map(|stream| positions.bookmark(&stream));
        let bookmark = bookmark.unwrap_or_default();
        let task = {
            let run = source.clone().run(bookmark, context.deny.clone(), sink);
            context.runtime.spawn(run)
        };
        Self {
            source,
            items,
            task: task.abort_handle(),
            ended: false,
            says_end: false,
            streams: BTreeMap::new(),
            waiting: None,
            taken_at: None,
            trouble,
        }
    }

    pub(super) fn source(&self) -> &FeedSource {
        &self.source
    }

    /// How it does, unless it is the agent's own log, which nobody configured.
    pub(super) fn standing(&self) -> Option<FeedStanding> {
        let is_own = matches!(self.source, FeedSource::Own);
        (!is_own && !self.ended).then(|| FeedStanding {
            source: self.source.clone(),
            taken_at: self.taken_at,
            trouble: self.trouble.get(),
        })
    }

    /// Nothing more comes in; what came is still sealed by the next passes. With `positions`, because the
    /// configuration wants it so, which its streams say.
    pub(super) fn end(&mut self, positions: Option<&Positions>) {
        if core::mem::replace(&mut self.ended, true) {
            return;
        }
        self.task.abort();
        self.items.close();
        if let Some(positions) = positions {
            let own = self.source.own_stream();
            let id = positions.id(&own);
            self.streams.entry(id).or_insert_with(|| Stream {
                bookmark: positions.bookmark(&own),
                output: positions.open(own),
            });
            self.says_end = true;
        }
    }

    /// Whether it has ended and everything is sealed.
    pub(super) fn is_over(&self) -> bool {
        let mut outputs = self.streams.values().map(|stream| &stream.output);
        self.ended
            && !self.says_end
            && self.waiting.is_none()
            && self.items.is_empty()
            && outputs.all(Output::is_empty)
    }

    /// Its streams may be opened again.
    pub(super) fn close(self, positions: &mut Positions) {
        for stream in self.streams.values() {
            positions.close(&stream.output, None);
        }
    }

    /// A stream goes on where the server stands, as `positions` says. Returns whether it is this
    /// source's, and the source is to be asked again from there. What one that cannot be asked sent
    /// meanwhile is lost.
    pub(super) fn rewind(&mut self, stream: StreamId, positions: &mut Positions) -> bool {
        let own = self.source.stream().map(|own| positions.id(&own));
        if let Some(stream) = self.streams.get_mut(&stream) {
            positions.put_back(&mut stream.output);
            if own.is_none() {
                positions.state_loss(&mut stream.output);
            }
        }
        own == Some(stream)
    }

    /// The next item; several, of one line, when its sender has no stream of its own.
    fn next_line(&mut self, positions: &Positions, senders: &mut Senders) -> Option<Vec<Item>> {
        let item = self.items.try_next()?;
        if !is_sender(item.stream.kind, &item.stream.name) {
            return Some(vec![item]);
        }
        let id = positions.id(&item.stream);
        let streams = &self.streams;
        let has_stream = |_: &Received| streams.contains_key(&id) || positions.knows(id);
        match senders.place(item.into(), has_stream) {
            Placed::Own { line_end, entry } => {
                let entries = line_end.into_iter().chain([entry]);
                Some(entries.map(Item::from).collect())
            }
            Placed::Unknown(entries) => Some(entries.into_iter().map(Item::from).collect()),
        }
    }

    /// Seals what came since the last pass.
    pub(super) fn pass(&mut self, positions: &mut Positions, context: &mut Context) -> Pass {
        let mut taken = 0;
        while taken < PASS_BYTES {
            if context.is_blocked() {
                return Pass::Blocked;
            }
            let waiting = self.waiting.take();
            let line = waiting.or_else(|| self.next_line(positions, &mut context.senders));
            let Some((line, first)) = line.and_then(|line| {
                let stream = line.first()?.stream.clone();
                Some((line, stream))
            }) else {
                break;
            };
            let len: usize = line.iter().map(|item| item.bytes.len()).sum();
            taken += len + ITEM_COST;
            let id = positions.id(&first);
            let stream = self.streams.entry(id).or_insert_with(|| {
                let mut output = positions.open(first.clone());
                if !first.kind.can_be_read_again() {
                    positions.state_loss(&mut output);
                }
                Stream {
                    bookmark: positions.bookmark(&first),
                    output,
                }
            });
            let items = u32::try_from(line.len()).unwrap_or(u32::MAX);
            if !stream.output.has_room_for(items, len) {
                stream.output.seal(stream.bookmark.clone(), context);
                self.waiting = Some(line);
                continue;
            }
            for item in line {
                stream.output.push(&item.bytes, item.flags, item.time_us);
                if item.bookmark.len() > BOOKMARK_LEN_MAX {
                    // The source goes on from the one before then, and says again what came after it.
                    static SAID: Once = Once::new();
                    SAID.call_once(|| {
                        warn!(
                            bytes = item.bookmark.len(),
                            "a source's position is longer than one can be and is not kept"
                        );
                    });
                } else if !item.bookmark.is_empty() {
                    stream.bookmark = item.bookmark;
                }
            }
        }
        if taken > 0 {
            self.taken_at = Some(clock::now());
        }
        if core::mem::take(&mut self.says_end) {
            for stream in self.streams.values_mut() {
                stream.output.push_end();
            }
        }
        for stream in self.streams.values_mut() {
            if !stream.output.is_empty() {
                if context.is_blocked() {
                    return Pass::Blocked;
                }
                stream.output.seal(stream.bookmark.clone(), context);
                stream.output.shrink();
            }
        }
        if self.streams.len() > STREAMS_MAX {
            for stream in core::mem::take(&mut self.streams).into_values() {
                positions.close(&stream.output, None);
            }
        }
        match taken >= PASS_BYTES || context.stopped {
            true => Pass::Busy,
            false => Pass::Idle,
        }
    }
}

/// Who of those that send syslog to relays of this agent has a stream: all its relays together, since what the server
/// lets an agent have is for all of them.
pub(super) fn senders() -> Senders {
    Senders::new(SENDERS, 0)
}

/// Senders that get a stream of their own.
const SENDERS: SenderLimits = SenderLimits {
    new_per_day: 20_000,
    max: 100_000,
};
/// Entries between a source and its batches; their bytes are bounded too, see `queue.rs`.
const ITEMS_MAX: usize = 4096;
/// Bytes taken from one source before the next one's turn.
const PASS_BYTES: usize = 4 << 20;
/// What an entry costs besides its bytes.
const ITEM_COST: usize = 64;
/// Streams of one source that are kept open.
const STREAMS_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use scrinium_protocol::identity::StreamKind;

    use super::*;

    /// A crash between two pieces of one message must not make the source go on after it.
    #[test]
    fn only_the_last_piece_of_a_message_moves_the_bookmark() {
        let stream = StreamName {
            kind: StreamKind::Journal,
            name: "system".into(),
        };
        let message = vec![b'x'; ENTRY_LEN_MAX * 2 + 1];
        let items = Item::pieces(&stream, &message, b"after");
        let seen: Vec<(usize, bool, &[u8])> = items
            .iter()
            .map(|item| (item.bytes.len(), item.flags.is_fragment(), &*item.bookmark))
            .collect();
        let whole = (ENTRY_LEN_MAX, true, &b""[..]);
        assert_eq!(seen, [whole, whole, (1, false, &b"after"[..])]);
        assert!(Item::gap(&stream, "something").bookmark.is_empty());
    }
}
