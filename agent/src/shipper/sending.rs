//! What the sources made, on its way through the spool to the link.

use std::time::Instant;

use anyhow::Result;
use ed25519_dalek::SigningKey;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::message::Lane;
use scrinium_protocol::sl::noise::KeyPair;
use scrinium_segment::{fault, random};

use super::{Produced, Shipper};

impl Shipper {
    /// Whether another batch can be taken; spills for it when it must and may.
    pub fn has_room(&mut self) -> bool {
        if self.spool.has_ram() {
            return true;
        }
        if self.disk_problem.is_some() {
            return false;
        }
        // While the link is up, files wait: they are their own buffer, and the disk is spared; but what
        // waits behind a backlog on the disk must not keep other streams out of RAM.
        let spilled = if self.is_ready() {
            if !self.spool.has_backlog_in_ram() || !self.spool.has_disk() {
                return false;
            }
            // What is sent from there was not yet known when positions were written down last.
            self.identity
                .note_behind()
                .and_then(|()| self.spool.spill_backlog())
        } else if self.spool.has_disk() {
            self.spill()
        } else {
            return false;
        };
        self.note_disk(spilled) && self.spool.has_ram()
    }

    /// Moves RAM to the disk, and writes down that the disk knows everything.
    ///
    /// # Errors
    /// The disk does not take it; RAM still holds what it held.
    pub fn spill(&mut self) -> Result<()> {
        self.spool.spill()?;
        fault::point("agent: spilled");
        // At this point the segments are durable; if we die now, `behind` makes us ask the server first.
        self.identity.state.behind = false;
        self.identity.state.positions.clone_from(&self.positions);
        self.identity.save()?;
        fault::point("agent: positions durable");
        Ok(())
    }

    /// Takes a batch from the sources.
    pub fn take(&mut self, produced: Produced) {
        let Produced {
            name,
            rewinds,
            mut batch,
        } = produced;
        let stream = batch.header.stream;
        if rewinds != self.rewinds.get(&stream).copied().unwrap_or(0) {
            // Made before the stream was rewound.
            let Some(position) = self.positions.get(&stream) else {
                return;
            };
            if name.kind.can_be_read_again() {
                return;
            }
            let signing = SigningKey::from_bytes(self.identity.state.signing.expose());
            batch.header.relink(position, &signing);
            // What the source makes from now on must follow it.
            let after = batch.header.position_after();
            self.rewind(stream, after, false);
        }
        self.positions.insert(stream, batch.header.position_after());
        if self.aside.has(stream) {
            self.aside
                .give_up(name.kind, &name.name, batch.header.count);
            return;
        }
        self.moved.insert(stream);
        self.produced_bytes += batch.body.len() as u64;
        self.spool.add(&name, &batch);
    }

    /// Sends one batch if the session takes one: of the live lane first. Returns whether it did.
    ///
    /// # Errors
    /// The connection is over.
    pub fn send_next(&mut self, now: Instant) -> Result<bool> {
        let Some(link) = self.link.as_mut().filter(|link| link.ready_since.is_some()) else {
            return Ok(false);
        };
        if link.session.is_renewal_due(now) {
            let ephemeral = KeyPair::from_secret(&Secret::new(random()?));
            link.session.renew(ephemeral, now)?;
        }
        if link.is_behind(now) {
            return Ok(false);
        }
        for lane in [Lane::Live, Lane::Backlog] {
            let Some(next) = self.spool.peek(lane)? else {
                continue;
            };
            if !link.session.has_window(lane, next.encoded.len()) {
                continue;
            }
            if next.is_in_ram {
                let noted = self.identity.note_behind();
                if noted.is_err() {
                    // Unsent: after a crash we would not know that the server knows more.
                    return Ok(self.note_disk(noted));
                }
            }
            let (stream, reached) = (next.header.stream, next.header.next());
            if link.opened.insert(stream) {
                link.session
                    .send_stream_open(stream, next.name.kind, &next.name.name, now)?;
            }
            let sent = link
                .session
                .send_batch(lane, &next.header, next.encoded, now)?;
            if sent.is_ok() {
                link.in_flight.push_back((stream, reached, now));
                self.spool.advance(lane);
                return Ok(true);
            }
        }
        Ok(false)
    }
}
