//! What both sides of a session share: records in both directions, and when they passed.

use std::time::{Duration, Instant};

use super::{KEEP_ALIVE_DEFAULT, KEEP_ALIVES_MISSED_MAX};
use crate::error::Error;
use crate::sl::handshake::Established;
use crate::sl::message::Message;
use crate::sl::record::{HEADER_LEN, RecordOpener, RecordSealer};

/// Records in both directions, and when they passed.
#[derive(Debug)]
pub(super) struct Channel {
    sealer: RecordSealer,
    opener: RecordOpener,
    /// Received and not yet opened.
    input: Vec<u8>,
    /// Sealed and not yet written.
    output: Vec<u8>,
    pub(super) keep_alive: Duration,
    heard_at: Instant,
    sent_at: Instant,
    pub(super) closed: bool,
}

impl Channel {
    pub(super) fn new(established: Established, now: Instant) -> Self {
        Self {
            sealer: established.sealer,
            opener: established.opener,
            input: Vec::new(),
            output: Vec::new(),
            keep_alive: KEEP_ALIVE_DEFAULT,
            heard_at: now,
            sent_at: now,
            closed: false,
        }
    }

    /// Opens every whole record of `bytes` and what was left before.
    pub(super) fn handle_bytes(
        &mut self,
        bytes: &[u8],
        now: Instant,
        messages: &mut Vec<Message>,
    ) -> Result<(), Error> {
        self.input.extend_from_slice(bytes);
        let mut start = 0;
        while !self.closed {
            let rest = self.input.get_mut(start..).unwrap_or_default();
            let Some((header, rest)) = rest.split_first_chunk_mut::<HEADER_LEN>() else {
                break;
            };
            let body_len = self.opener.body_len(header)?;
            let Some(body) = rest.get_mut(..body_len) else {
                self.input.reserve(body_len);
                break;
            };
            let (kind, payload) = self.opener.open(header, body)?;
            let message = Message::decode(kind, payload)?;
            start += HEADER_LEN + body_len;
            self.heard_at = now;
            self.closed = matches!(message, Message::Close { .. });
            messages.push(message);
        }
        self.input.drain(..start);
        Ok(())
    }

    pub(super) fn send(&mut self, message: &Message, now: Instant) -> Result<(), Error> {
        let mut payload = Vec::new();
        message.encode_payload(&mut payload);
        self.sealer
            .seal(message.kind(), &payload, &mut self.output)?;
        self.sent_at = now;
        Ok(())
    }

    pub(super) fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        (!self.output.is_empty()).then(|| core::mem::take(&mut self.output))
    }

    pub(super) fn is_peer_silent(&self, now: Instant) -> bool {
        now >= self.heard_at + self.keep_alive * KEEP_ALIVES_MISSED_MAX
    }

    pub(super) fn is_keep_alive_due(&self, now: Instant) -> bool {
        now >= self.sent_at + self.keep_alive
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        let silence = self.heard_at + self.keep_alive * KEEP_ALIVES_MISSED_MAX;
        silence.min(self.sent_at + self.keep_alive)
    }
}
