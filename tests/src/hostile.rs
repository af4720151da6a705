//! An agent that is let in and means no good: what it sends, made by hand.

use std::time::Duration;

use scrinium_protocol::batch::{BatchBuilder, SealedBatch, StreamPosition};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::compress::Compressor;
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::identity::{Epoch, StreamId, StreamKind};
use scrinium_protocol::sl::handshake::AgentHello;
use scrinium_protocol::sl::message::Lane;
use scrinium_protocol::token::Token;

use crate::client::Client;
use crate::lab::Lab;
use crate::{now, wait_until};

/// A connected agent without a program: `evil1`.
#[must_use]
pub fn enrol(lab: &Lab) -> Client {
    enrol_as(lab, Client::hello(1))
}

/// The same, and says of itself what is in `hello`.
#[must_use]
pub fn enrol_as(lab: &Lab, hello: AgentHello) -> Client {
    let token = Token::parse(&lab.token("evil1", lab.sl)).unwrap();
    let mut client = Client::enrol_as(&token, lab.sl, 1, hello);
    wait_until_ready(&mut client);
    client
}

/// Waits until the server has stated everything.
pub fn wait_until_ready(client: &mut Client) {
    wait_until("it is let in", Duration::from_secs(60), || {
        let (_, stands) = client.breathe();
        assert!(stands);
        client.is_ready
    });
}

/// A stream of such an agent.
#[derive(Debug)]
pub struct Stream {
    pub id: StreamId,
    name: String,
    position: StreamPosition,
}

impl Stream {
    #[must_use]
    pub fn new(client: &Client, name: &str) -> Self {
        let id = StreamId::derive(client.agent, StreamKind::File, name);
        Self {
            id,
            name: name.to_owned(),
            position: StreamPosition::start(client.agent, id, Epoch([7; 16])),
        }
    }

    pub fn open(&self, client: &mut Client) {
        let sent = client
            .session
            .send_stream_open(self.id, StreamKind::File, &self.name, now());
        sent.unwrap();
    }

    /// Goes on in another epoch, from its start.
    pub fn begin(&mut self, client: &Client, epoch: u8) {
        self.position = StreamPosition::start(client.agent, self.id, Epoch([epoch; 16]));
    }

    /// A batch of one entry.
    pub fn send(&mut self, client: &mut Client) {
        let entries: [&[u8]; 1] = [b"a line of a hostile agent\n"];
        let batch = self.seal(&entries, Vec::new());
        self.send_batch(client, batch);
    }

    /// A batch of entries that are of a kind each.
    pub fn send_entries(&mut self, client: &mut Client, entries: &[(&[u8], EntryFlags)]) {
        let batch = self.seal_kinds(entries, Vec::new());
        self.send_batch(client, batch);
    }

    /// A batch that comes next.
    #[must_use]
    pub fn seal(&self, entries: &[&[u8]], bookmark: Vec<u8>) -> SealedBatch {
        let plain: Vec<(&[u8], EntryFlags)> = entries
            .iter()
            .map(|entry| (*entry, EntryFlags::NONE))
            .collect();
        self.seal_kinds(&plain, bookmark)
    }

    fn seal_kinds(&self, entries: &[(&[u8], EntryFlags)], bookmark: Vec<u8>) -> SealedBatch {
        let mut builder = BatchBuilder::new();
        for (bytes, flags) in entries.iter().copied() {
            assert!(builder.push(bytes, EntryMeta { time_us: 1, flags }));
        }
        let mut compressor = Compressor::new(1);
        let key = Client::signing();
        let sealed = builder.seal(self.id, &self.position, bookmark, &key, &mut compressor);
        sealed.0
    }

    /// Sends a batch as the next one, wherever it was before: only its header is made anew.
    pub fn send_batch(&mut self, client: &mut Client, mut batch: SealedBatch) {
        batch.header.relink(&self.position, &Client::signing());
        let encoded = batch.encoded();
        let taken = client
            .session
            .send_batch(Lane::Live, &batch.header, encoded, now());
        taken.unwrap().unwrap();
        self.position = batch.header.position_after();
    }
}
