//! What both sides of a session share: records in both directions, and when they passed.

use std::time::{Duration, Instant};

use super::renewal::Renewal;
use super::{KEEP_ALIVE_DEFAULT, KEEP_ALIVES_MISSED_MAX, SLOWEST_LINK};
use crate::error::{Error, PeerMisbehaved};
use crate::sl::handshake::Established;
use crate::sl::message::Message;
use crate::sl::noise::KeyPair;
use crate::sl::record::{HEADER_LEN, Interference, RecordOpener, RecordSealer};

fn interference(
    opener: &RecordOpener,
    header: &[u8; HEADER_LEN],
    error: &Error,
) -> Option<Interference> {
    let is_one = matches!(
        error,
        Error::PeerMisbehaved(PeerMisbehaved::BadTag | PeerMisbehaved::BadLengthCheck)
    );
    is_one.then(|| opener.interference(header))
}

/// Records in both directions, and when they passed.
#[derive(Debug)]
pub(super) struct Channel {
    sealer: RecordSealer,
    opener: RecordOpener,
    renewal: Renewal,
    /// Data, and not only keep-alives, went out under the keys in use.
    has_carried: bool,
    /// Received and not yet opened.
    input: Vec<u8>,
    /// Sealed and not yet written.
    output: Vec<u8>,
    pub(super) keep_alive: Duration,
    heard_at: Instant,
    /// Length of the record that has begun to come: its header is authentic, its body is on the way.
    awaited: usize,
    sent_at: Instant,
    pub(super) closed: bool,
    /// What was seen of a record that was not the one that must have come.
    pub(super) interference: Option<Interference>,
}

impl Channel {
    pub(super) fn new(established: Established, now: Instant) -> Self {
        let Established {
            suite,
            sealer,
            opener,
            renewal_psk,
            hash,
            ..
        } = established;
        Self {
            sealer,
            opener,
            renewal: Renewal::new(suite, hash, renewal_psk, now),
            has_carried: false,
            input: Vec::new(),
            output: Vec::new(),
            keep_alive: KEEP_ALIVE_DEFAULT,
            heard_at: now,
            awaited: 0,
            sent_at: now,
            closed: false,
            interference: None,
        }
    }

    /// Opens every whole record of `bytes` and what was left before.
    pub(super) fn handle_bytes(
        &mut self,
        bytes: &[u8],
        now: Instant,
        messages: &mut Vec<Message>,
    ) -> Result<(), Error> {
        let mut input = core::mem::take(&mut self.input);
        input.extend_from_slice(bytes);
        let mut start = 0;
        while !self.closed {
            let rest = input.get_mut(start..).unwrap_or_default();
            let Some((header, rest)) = rest.split_first_chunk_mut::<HEADER_LEN>() else {
                break;
            };
            let body_len = self.opener.body_len(header);
            let body_len = body_len.inspect_err(|error| {
                self.interference = interference(&self.opener, header, error);
            })?;
            let Some(body) = rest.get_mut(..body_len) else {
                input.reserve(body_len);
                if self.awaited == 0 {
                    self.awaited = body_len;
                    self.heard_at = now;
                }
                break;
            };
            let number = self.opener.number();
            let opened = self.opener.open(header, body);
            let (kind, payload) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    self.interference = interference(&self.opener, header, &error);
                    return Err(error);
                }
            };
            let message = Message::decode(kind, payload)?;
            start += HEADER_LEN + body_len;
            self.heard_at = now;
            self.awaited = 0;
            if let Message::Renewal(renewal) = message {
                self.handle_renewal(renewal, number, now)?;
            } else if message == Message::Renewed {
                self.opener = self.renewal.finish()?;
            } else {
                self.closed = matches!(message, Message::Close { .. });
                messages.push(message);
            }
        }
        input.drain(..start);
        // An idle session keeps no buffer.
        if !input.is_empty() {
            self.input = input;
        }
        Ok(())
    }

    fn handle_renewal(&mut self, message: Vec<u8>, number: u64, now: Instant) -> Result<(), Error> {
        if let Some((sealer, opener)) = self.renewal.handle(message, number, now)? {
            self.send(&Message::Renewed, now)?;
            // At this point the old keys are dropped, and zeroized with that.
            self.sealer = sealer;
            self.opener = opener;
            self.has_carried = false;
        }
        Ok(())
    }

    /// Agent: asks for new keys.
    pub(super) fn ask_renewal(&mut self, ephemeral: KeyPair, now: Instant) -> Result<(), Error> {
        let message = self.renewal.ask(ephemeral, self.sealer.number())?;
        self.send(&message, now)
    }

    /// Server: answers the agent's wish for new keys, if there is one.
    pub(super) fn answer_renewal(&mut self, ephemeral: KeyPair, now: Instant) -> Result<(), Error> {
        if let Some((message, sealer)) = self.renewal.answer(ephemeral, now)? {
            self.send(&message, now)?;
            self.sealer = sealer;
            self.has_carried = false;
        }
        Ok(())
    }

    /// Server: whether the agent asked for new keys and has no answer yet.
    pub(super) fn is_renewal_asked(&self) -> bool {
        self.renewal.is_asked()
    }

    /// Agent: whether it is time to ask for new keys.
    pub(super) fn is_renewal_due(&self, now: Instant) -> bool {
        let is_worn = self.sealer.is_worn() || self.opener.is_worn();
        let is_old = self.has_carried && now >= self.renewal.due_at();
        self.renewal.is_idle() && (is_worn || is_old)
    }

    pub(super) fn send(&mut self, message: &Message, now: Instant) -> Result<(), Error> {
        let mut payload = Vec::new();
        message.encode_payload(&mut payload);
        self.sealer
            .seal(message.kind(), &payload, &mut self.output)?;
        self.sent_at = now;
        self.has_carried |= !matches!(message, Message::KeepAlive(_));
        Ok(())
    }

    pub(super) fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        (!self.output.is_empty()).then(|| core::mem::take(&mut self.output))
    }

    pub(super) fn is_peer_silent(&self, now: Instant) -> bool {
        now >= self.silent_at()
    }

    /// What the peer says is only listened to from `now` on.
    pub(super) fn defer_silence(&mut self, now: Instant) {
        self.heard_at = self.heard_at.max(now);
    }

    pub(super) fn is_keep_alive_due(&self, now: Instant) -> bool {
        now >= self.sent_at + self.keep_alive
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.silent_at().min(self.sent_at + self.keep_alive)
    }

    /// When the peer is gone if nothing is heard. A long record on a slow link takes its time, which
    /// is bounded by its length.
    pub(super) fn silent_at(&self) -> Instant {
        let on_the_way = u32::try_from(self.awaited).unwrap_or(u32::MAX) / SLOWEST_LINK;
        let on_the_way = Duration::from_secs(u64::from(on_the_way));
        self.heard_at + self.keep_alive * KEEP_ALIVES_MISSED_MAX + on_the_way
    }
}
