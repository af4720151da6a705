//! One stream on its way out: entries become sealed batches, each after the one before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use scrinium_protocol::batch::{BatchBuilder, StreamPosition};
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::identity::{AgentId, Epoch, StreamId, StreamName};

use tracing::{error, info};

use super::Context;
use super::discover::stream_of;
use crate::clock;
use crate::shipper::Produced;

/// Where streams that are not open stand.
pub(crate) struct Positions {
    agent: AgentId,
    epoch: Epoch,
    positions: BTreeMap<StreamId, StreamPosition>,
    rewinds: BTreeMap<StreamId, u64>,
    /// Streams that were closed since that was asked last; `None` when any may stand elsewhere than before.
    closed: Option<BTreeSet<StreamId>>,
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
            closed: None,
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

    /// Should the stream be opened again, it goes on after what it sealed; its source may know better where it stands.
    pub(crate) fn close(&mut self, output: &Output, bookmark: Option<Vec<u8>>) {
        let mut position = output.position.clone();
        if let Some(bookmark) = bookmark {
            position.bookmark = bookmark;
        }
        self.positions.insert(output.id, position);
        if let Some(closed) = &mut self.closed {
            closed.insert(output.id);
        }
    }

    /// Where streams stand that were closed since this was asked last. With `true`, and of all: some may stand before
    /// where they stood then.
    pub(crate) fn closed(&mut self) -> (bool, Vec<&[u8]>) {
        match self.closed.replace(BTreeSet::new()) {
            None => (true, self.bookmarks().collect()),
            Some(closed) => {
                let closed = closed.iter().filter_map(|id| self.positions.get(id));
                (false, closed.map(|position| &*position.bookmark).collect())
            }
        }
    }

    /// Where all streams stand that are not open.
    pub(crate) fn bookmarks(&self) -> impl Iterator<Item = &[u8]> {
        self.positions.values().map(|position| &*position.bookmark)
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
        self.closed = None;
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

    /// Whether the stream of a file was opened before.
    pub(crate) fn knows_file(&self, path: &Path) -> bool {
        self.knows(self.id(&stream_of(path)))
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
            statements: VecDeque::new(),
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
    /// What was said when the batch had no room for it: said in the next one, before anything else.
    statements: VecDeque<(Vec<u8>, EntryFlags, u64)>,
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
        self.builder.is_empty() && self.statements.is_empty()
    }

    /// Whether there is room for so many entries of `len` bytes together, and for what is said at any place without
    /// asking for room.
    pub(crate) fn has_room_for(&self, entries: u32, len: usize) -> bool {
        let (entries, bytes) = (entries.saturating_add(STATEMENTS), len + STATEMENTS_LEN);
        self.statements.is_empty() && self.builder.has_room_for(entries, bytes)
    }

    /// The same for one entry.
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

    /// Adds what is said between entries, whether or not there is room.
    fn state(&mut self, bytes: &[u8], flags: EntryFlags) {
        let time_us = clock::unix_us();
        if self.statements.is_empty() && self.builder.has_room(bytes.len()) {
            self.push(bytes, flags, time_us);
        } else {
            self.statements.push_back((bytes.to_vec(), flags, time_us));
            self.in_line = flags.is_fragment();
        }
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
            self.state(b"", EntryFlags::NONE);
        }
    }

    /// Says that something is missing here.
    pub(crate) fn push_gap(&mut self, text: &str) {
        self.close_line();
        let line = format!("gap: {text}\n");
        self.state(line.as_bytes(), EntryFlags::GAP);
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
        let in_line = self.in_line;
        loop {
            while let Some((bytes, flags, time_us)) = self.statements.pop_front() {
                if !self.builder.has_room(bytes.len()) {
                    self.statements.push_front((bytes, flags, time_us));
                    break;
                }
                self.push(&bytes, flags, time_us);
            }
            if self.builder.is_empty() {
                break;
            }
            let (batch, after) = self.builder.seal(
                self.id,
                &self.position,
                bookmark.clone(),
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
        self.in_line = in_line;
    }
}

/// What is said between two entries finds room in their batch: so many entries, so many bytes. More of it is said
/// in the next batch.
const STATEMENTS: u32 = 8;
const STATEMENTS_LEN: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use scrinium_protocol::compress::{AGENT_LEVEL, Compressor};
    use scrinium_protocol::identity::StreamKind;
    use tokio::sync::mpsc;

    use super::*;
    use crate::config::Deny;
    use crate::source::pace::Pace;

    /// A statement comes wherever something is found missing, and a batch may be full just then.
    #[test]
    fn what_is_missing_is_said_in_its_place_however_full_a_batch_is() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (out, mut produced) = mpsc::channel(100);
        let mut context = Context {
            signing: ed25519_dalek::SigningKey::from_bytes(&[1; 32]),
            compressor: Compressor::new(AGENT_LEVEL),
            out,
            runtime: runtime.handle().clone(),
            stopped: false,
            parks: false,
            deny: Deny::default(),
            senders: crate::source::feed::senders(),
            unpacking: Pace::new(1),
            comparing: Pace::new(1),
            beat: crate::source::beat::Beat::default(),
            patience: std::time::Duration::ZERO,
            vanished: crate::source::vanished::Vanished::default(),
        };
        for len in [1, 1000, 60_000] {
            let (positions, none) = (BTreeMap::new(), BTreeSet::new());
            let positions = Positions::new(AgentId([1; 16]), Epoch([2; 16]), positions, none);
            let mut output = positions.open(StreamName {
                kind: StreamKind::File,
                name: "/x".into(),
            });
            let mut expected = 0;
            while output.has_room(len) {
                output.push(&vec![b'x'; len], EntryFlags::FRAGMENT, 1);
                expected += 1;
            }
            // The line is closed, and each is said.
            expected += 1;
            for n in 0..5000 {
                output.push_gap(&format!("{n} is missing"));
                expected += 1;
            }
            assert!(!output.has_room(0) && !output.is_empty());
            output.seal(b"bookmark".to_vec(), &mut context);
            assert!(output.is_empty() && output.has_room(60_000) && !output.in_line);
            assert_eq!(output.position().next.0, expected);
            let mut counted = 0;
            while let Ok(sealed) = produced.try_recv() {
                counted += u64::from(sealed.batch.header.count);
            }
            assert_eq!(counted, expected);
        }
    }
}
