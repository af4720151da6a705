//! One stream on its way out: entries become sealed batches, each after the one before.

use scrinium_protocol::batch::{BatchBuilder, StreamPosition};
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::identity::StreamId;

use super::Context;
use crate::clock;
use crate::shipper::Produced;

/// What a source puts its entries into.
pub(crate) struct Output {
    id: StreamId,
    name: String,
    rewinds: u64,
    /// After the last sealed batch.
    position: StreamPosition,
    builder: BatchBuilder,
    /// The last entry was a fragment: its line is still open.
    pub(crate) in_line: bool,
}

impl Output {
    pub(crate) fn new(id: StreamId, name: String, position: StreamPosition, rewinds: u64) -> Self {
        Self {
            id,
            name,
            rewinds,
            position,
            builder: BatchBuilder::new(),
            in_line: false,
        }
    }

    pub(crate) fn id(&self) -> StreamId {
        self.id
    }

    /// After the last sealed batch.
    pub(crate) fn position(&self) -> &StreamPosition {
        &self.position
    }

    /// Nothing waits to be sealed.
    pub(crate) fn is_empty(&self) -> bool {
        self.builder.is_empty()
    }

    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.builder.has_room(len)
    }

    /// Adds an entry, for which there is room.
    pub(crate) fn push(&mut self, bytes: &[u8], flags: EntryFlags, time_us: u64) {
        self.builder.push(bytes, EntryMeta { time_us, flags });
        self.in_line = flags.is_fragment();
    }

    /// Gives back the memory of what was sealed.
    pub(crate) fn shrink(&mut self) {
        if self.builder.is_empty() {
            self.builder = BatchBuilder::new();
        }
    }

    /// Ends an open line, so that what comes next does not go on with it.
    pub(crate) fn close_line(&mut self) {
        if self.in_line {
            self.push(b"", EntryFlags::NONE, clock::unix_us());
        }
    }

    /// Says that something is missing here.
    pub(crate) fn push_gap(&mut self, text: &str) {
        self.close_line();
        let line = format!("gap: {text}\n");
        self.push(line.as_bytes(), EntryFlags::GAP, clock::unix_us());
    }

    /// Seals what was collected and sends it; the source goes on at `bookmark` after it.
    pub(crate) fn seal(&mut self, bookmark: Vec<u8>, context: &mut Context) {
        if self.builder.is_empty() {
            return;
        }
        let (batch, after) = self.builder.seal(
            self.id,
            &self.position,
            bookmark,
            &context.signing,
            &mut context.compressor,
        );
        self.position = after;
        context.send(Produced {
            name: self.name.clone(),
            rewinds: self.rewinds,
            batch,
        });
    }
}
