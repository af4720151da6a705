//! One stream on its way out: entries become sealed batches, each after the one before.

use std::collections::{BTreeMap, BTreeSet};

use scrinium_protocol::batch::{BatchBuilder, StreamPosition};
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::identity::{AgentId, Epoch, StreamId, StreamName};

use tracing::{error, info};

use super::Context;
use crate::clock;
use crate::shipper::Produced;

/// Where streams that are not open stand.
pub(crate) struct Positions {
    agent: AgentId,
    epoch: Epoch,
    positions: BTreeMap<StreamId, StreamPosition>,
    rewinds: BTreeMap<StreamId, u64>,
    /// Streams of which something sealed is gone, until that is said.
    lost: BTreeSet<StreamId>,
}

impl Positions {
    pub(crate) fn new(
        agent: AgentId,
        epoch: Epoch,
        positions: BTreeMap<StreamId, StreamPosition>,
        lost: BTreeSet<StreamId>,
    ) -> Self {
        Self {
            agent,
            epoch,
            positions,
            rewinds: BTreeMap::new(),
            lost,
        }
    }

    pub(crate) fn id(&self, name: &StreamName) -> StreamId {
        name.id(self.agent)
    }

    /// Where the source of a stream goes on; empty at its start.
    pub(crate) fn bookmark(&self, name: &StreamName) -> Vec<u8> {
        let position = self.positions.get(&self.id(name));
        position.map_or_else(Vec::new, |position| position.bookmark.clone())
    }

    /// Should the stream be opened again, it goes on after what it sealed; its source may start anew.
    pub(crate) fn close(&mut self, output: &Output, starts_anew: bool) {
        let mut position = output.position.clone();
        if starts_anew {
            position.bookmark.clear();
        }
        self.positions.insert(output.id, position);
    }

    pub(crate) fn rewind(
        &mut self,
        stream: StreamId,
        position: StreamPosition,
        rewinds: u64,
        lost: bool,
    ) {
        info!(%stream, next = position.next.0, lost, "going on where the server stands");
        if lost {
            self.lost.insert(stream);
        }
        self.positions.insert(stream, position);
        self.rewinds.insert(stream, rewinds);
    }

    /// Lets an open stream go on where it is to stand now; what it did not seal yet comes after that.
    pub(crate) fn put_back(&self, output: &mut Output) {
        let Output {
            position, rewinds, ..
        } = self.open(output.name.clone());
        output.position = position;
        output.rewinds = rewinds;
    }

    /// Says in a stream whose source cannot be asked again that something of it is gone.
    pub(crate) fn state_loss(&mut self, output: &mut Output) {
        if self.lost.remove(&output.id) {
            output.push_gap(
                "the server does not have what this stream sent before, and it is not here any more",
            );
        }
    }

    /// Whether a stream was opened before.
    pub(crate) fn knows(&self, stream: StreamId) -> bool {
        self.positions.contains_key(&stream)
    }

    /// Opens a stream where it stands.
    pub(crate) fn open(&self, name: StreamName) -> Output {
        let id = self.id(&name);
        let start = || StreamPosition::start(self.agent, id, self.epoch);
        Output {
            id,
            name,
            rewinds: self.rewinds.get(&id).copied().unwrap_or(0),
            position: self.positions.get(&id).cloned().unwrap_or_else(start),
            builder: BatchBuilder::new(),
            in_line: false,
        }
    }
}

/// What a source puts its entries into.
pub(crate) struct Output {
    id: StreamId,
    name: StreamName,
    rewinds: u64,
    /// After the last sealed batch.
    position: StreamPosition,
    builder: BatchBuilder,
    /// The last entry was a fragment: its line is still open.
    pub(crate) in_line: bool,
}

impl Output {
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

    /// Whether so many entries of `len` bytes together fit, and after them what may have to be said before the batch
    /// is sealed.
    pub(crate) fn has_room_for(&self, entries: u32, len: usize) -> bool {
        self.builder.has_room_for(
            entries.saturating_add(STATEMENTS_MAX),
            len + STATEMENTS_BYTES_MAX,
        )
    }

    /// The same for an entry.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.has_room_for(1, len)
    }

    /// Adds an entry, for which there is room.
    pub(crate) fn push(&mut self, bytes: &[u8], flags: EntryFlags, time_us: u64) {
        if !self.builder.push(bytes, EntryMeta { time_us, flags }) {
            error!(
                stream = %self.id, bytes = bytes.len(),
                "an entry did not fit into its batch and is lost; please report this"
            );
            return;
        }
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

    /// Says that the configuration ends the stream here.
    pub(crate) fn push_end(&mut self) {
        let next = self.position.next.0;
        self.push_gap(&format!(
            "the configuration names this source no longer; collecting ends after entry {next}, and what it says until it is named again is not collected unless it is still there then"
        ));
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

/// Gap entries and ends of lines that find room in a batch that is full for everything else: a pass says a few at most
/// before it seals.
const STATEMENTS_MAX: u32 = 16;
/// Their bytes: each names a file, whose path has 4 KiB at most.
const STATEMENTS_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use scrinium_protocol::identity::StreamKind;

    use super::*;

    /// A pass that fills a batch to its last entry, and then has to say that the source ends: that was a panic.
    #[test]
    fn a_batch_that_is_full_has_room_for_what_must_be_said() {
        let positions = Positions::new(
            AgentId([1; 16]),
            Epoch::default(),
            BTreeMap::new(),
            BTreeSet::new(),
        );
        let name = StreamName {
            kind: StreamKind::File,
            name: "x".repeat(4096),
        };
        for line in [&b""[..], &[b'x'; 60 << 10]] {
            let mut output = positions.open(name.clone());
            while output.has_room(line.len()) {
                output.push(line, EntryFlags::FRAGMENT, 1);
            }
            for _ in 0..4 {
                output.push_gap(&"p".repeat(4096));
            }
            output.push_end();
            assert!(!output.in_line, "all of it was taken");
        }
    }
}
