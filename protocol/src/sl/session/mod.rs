//! An established session: who may say what, when; acks, window and liveness.
//!
//! ```text
//! spool ─send_batch─▶ AgentSession ─poll_transmit─▶ socket ─handle_bytes─▶ ServerSession ─▶ ingest
//! spool ◀─poll_event─ AgentSession ◀─handle_bytes─ socket ◀─poll_transmit─ ServerSession ◀─ receipts
//! ```
//!
//! Sans-IO: bytes and time come in through `handle_*`, commands are verbs, and what is to be done
//! goes out through `poll_*` until `None`. After an error the session is dead: drop it.

mod agent;
mod channel;
mod credits;
mod renewal;
mod server;

use std::time::Duration;

pub use agent::{AgentEvent, AgentSession, WindowFull};
pub use server::{ServerEvent, ServerSession};

/// Interval of keep-alives unless the server says otherwise.
pub const KEEP_ALIVE_DEFAULT: Duration = Duration::from_secs(10);
const KEEP_ALIVE_MIN: Duration = Duration::from_millis(100);
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(600);
/// A peer that missed this many keep-alives is gone.
pub const KEEP_ALIVES_MISSED_MAX: u32 = 2;
/// Bytes a second that the slowest link carries: a record on its way is waited for so long.
const SLOWEST_LINK: u32 = 4 << 10;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::batch::{BatchBuilder, SealedBatch, StreamPosition};
    use crate::codec::Codec as _;
    use crate::compress::Compressor;
    use crate::entry::{EntryFlags, EntryMeta};
    use crate::error::PeerMisbehaved;
    use crate::identity::Epoch;
    use crate::identity::{AgentId, StreamId};
    use crate::kdf::sha256;
    use crate::secret::Secret;
    use crate::sl::handshake::Established;
    use crate::sl::handshake::{
        AgentHello, AgentKeys, ExpectAgentStart, Purpose, ServerHello, start,
    };
    use crate::sl::message::{KeepAlive, Lane, Message, Ready, Receipt};
    use crate::sl::noise::KeyPair;
    use crate::sl::suite::Suite;

    #[test]
    fn a_batch_is_acked_once_and_opens_the_window_again() {
        let mut link = Link::ready();
        let batch = batch();
        let encoded = batch.encoded();
        assert_eq!(
            link.agent
                .send_batch(Lane::Live, &batch.header, encoded.clone(), link.now),
            Ok(Ok(()))
        );
        let second = link
            .agent
            .send_batch(Lane::Live, &batch.header, vec![0; 900], link.now);
        assert_eq!(second, Ok(Err(WindowFull)));
        assert!(link.agent.has_window(Lane::Backlog, 900));
        link.exchange();
        assert_eq!(link.server.poll_event(), Some(ServerEvent::Batch(encoded)));

        link.send(&Message::Receipt(receipt(&batch)));
        let event = link.agent.poll_event();
        assert_eq!(event, Some(AgentEvent::Acked(receipt(&batch))));
        assert!(link.agent.has_window(Lane::Live, 900));
    }

    #[test]
    fn i3_a_receipt_for_what_was_never_sent_ends_the_session() {
        let mut link = Link::ready();
        link.server
            .send(&Message::Receipt(receipt(&batch())), link.now)
            .unwrap();
        let bytes = link.server.poll_transmit().unwrap();
        assert_eq!(
            link.agent.handle_bytes(&bytes, link.now),
            Err(PeerMisbehaved::AckOfUnsentBatch.into())
        );
    }

    #[test]
    fn a_forged_receipt_ends_the_session() {
        let mut link = Link::ready();
        let batch = batch();
        link.agent
            .send_batch(Lane::Live, &batch.header, batch.encoded(), link.now)
            .unwrap()
            .unwrap();
        let mut forged = receipt(&batch);
        forged.sign(&SigningKey::from_bytes(&[66; 32]));
        link.server
            .send(&Message::Receipt(forged), link.now)
            .unwrap();
        let bytes = link.server.poll_transmit().unwrap();
        assert_eq!(
            link.agent.handle_bytes(&bytes, link.now),
            Err(PeerMisbehaved::WrongSignature.into())
        );
    }

    #[test]
    fn messages_of_the_other_side_are_refused() {
        let mut link = Link::ready();
        link.agent
            .channel
            .send(
                &Message::Enrolled {
                    agent: AgentId([1; 16]),
                },
                link.now,
            )
            .unwrap();
        let bytes = link.agent.poll_transmit().unwrap();
        assert_eq!(
            link.server.handle_bytes(&bytes, link.now),
            Err(PeerMisbehaved::UnexpectedMessage.into())
        );
    }

    /// Whatever else it sends, an agent tells its state at the start of a session and then every interval.
    #[test]
    fn a_busy_agent_tells_its_state_as_often_as_an_idle_one() {
        let mut link = Link::ready();
        let mut told = Vec::new();
        let start = link.now;
        while link.now < start + KEEP_ALIVE_DEFAULT * 3 {
            let receipt = receipt_of_a_batch(&mut link.agent, link.now);
            link.send(&Message::Receipt(receipt));
            if link.agent.is_keep_alive_due(link.now) {
                told.push(link.now - start);
                let state = KeepAlive::default();
                link.agent.send_keep_alive(state, link.now).unwrap();
            }
            assert!(link.agent.poll_timeout() <= link.now + KEEP_ALIVE_DEFAULT);
            link.exchange();
            link.now += Duration::from_secs(1);
        }
        let expected = [0, 10, 20].map(Duration::from_secs);
        assert_eq!(told, expected);
    }

    fn receipt_of_a_batch(agent: &mut AgentSession, now: Instant) -> Receipt {
        let batch = batch();
        let sent = agent.send_batch(Lane::Live, &batch.header, batch.encoded(), now);
        sent.unwrap().unwrap();
        receipt(&batch)
    }

    #[test]
    fn silence_is_noticed_after_two_keep_alives() {
        let mut link = Link::ready();
        link.now += KEEP_ALIVE_DEFAULT * 2 - Duration::from_millis(1);
        link.agent.handle_timeout(link.now);
        assert_eq!(link.agent.poll_event(), None);
        assert!(link.agent.is_keep_alive_due(link.now));
        link.now += Duration::from_millis(1);
        link.agent.handle_timeout(link.now);
        assert_eq!(link.agent.poll_event(), Some(AgentEvent::PeerSilent));
        link.server.handle_timeout(link.now, 0).unwrap();
        assert_eq!(link.server.poll_event(), Some(ServerEvent::PeerSilent));
    }

    #[test]
    fn a_long_record_on_a_slow_link_is_waited_for_by_its_length_and_no_longer() {
        let mut link = Link::ready();
        let mut builder = BatchBuilder::new();
        let meta = EntryMeta {
            time_us: 1,
            flags: EntryFlags::NONE,
        };
        let noise: Vec<u8> = (0..40_000_u32)
            .flat_map(|i| sha256(&[&i.to_be_bytes()]).into_iter().take(1))
            .collect();
        assert!(builder.push(&noise, meta));
        let batch = seal(builder);
        let sent = link
            .agent
            .send_batch(Lane::Live, &batch.header, batch.encoded(), link.now);
        assert_eq!(sent, Ok(Ok(())));
        let bytes = link.agent.poll_transmit().unwrap();
        let (first, _) = bytes.split_at(bytes.len() / 2);
        link.server.handle_bytes(first, link.now).unwrap();
        let record = Duration::from_secs(bytes.len() as u64 / (4 << 10));
        assert!(record >= Duration::from_secs(9));
        link.now += KEEP_ALIVE_DEFAULT * 2 + record - Duration::from_secs(1);
        link.server.handle_timeout(link.now, 0).unwrap();
        assert_eq!(link.server.poll_event(), None);
        link.now += Duration::from_secs(1);
        link.server.handle_timeout(link.now, 0).unwrap();
        assert_eq!(link.server.poll_event(), Some(ServerEvent::PeerSilent));
    }

    #[test]
    fn bytes_may_come_one_at_a_time() {
        let mut link = Link::ready();
        link.agent.send_close("done", link.now).unwrap();
        for byte in link.agent.poll_transmit().unwrap() {
            assert_eq!(link.server.poll_event(), None);
            link.server.handle_bytes(&[byte], link.now).unwrap();
        }
        let closed = ServerEvent::Closed {
            reason: "done".into(),
        };
        assert_eq!(link.server.poll_event(), Some(closed));
    }

    #[test]
    fn keys_are_renewed_while_data_flows_in_both_directions() {
        for suite in [Suite::Encrypted, Suite::IntegrityOnly] {
            let mut link = Link::ready_with(suite);
            let batch = batch();
            for round in 0..3 {
                assert!(!link.agent.is_renewal_due(link.now), "round {round}");
                link.agent
                    .send_batch(Lane::Live, &batch.header, batch.encoded(), link.now)
                    .unwrap()
                    .unwrap();
                link.exchange();
                link.now += Duration::from_secs(121);
                assert!(link.agent.is_renewal_due(link.now));
                link.agent.renew(pair(30 + round), link.now).unwrap();
                assert!(!link.agent.is_renewal_due(link.now));
                // Data before, between and after each message of the renewal.
                link.agent.send_sign_of_life(link.now);
                let asked = link.agent.poll_transmit().unwrap();
                link.server.handle_bytes(&asked, link.now).unwrap();
                assert!(matches!(
                    link.server.poll_event(),
                    Some(ServerEvent::Batch(_))
                ));
                link.server.send(&keep_alive(), link.now).unwrap();
                let events: Vec<_> = core::iter::from_fn(|| link.server.poll_event()).collect();
                assert!(events.contains(&ServerEvent::RenewalAsked), "{events:?}");
                link.server.renew(pair(40 + round), link.now).unwrap();
                link.server
                    .send(&Message::Receipt(receipt(&batch)), link.now)
                    .unwrap();
                link.agent.send_sign_of_life(link.now);
                link.exchange();
                assert_eq!(
                    link.agent.poll_event(),
                    Some(AgentEvent::Acked(receipt(&batch)))
                );
                link.agent.send_sign_of_life(link.now);
                link.exchange();
                let heard = core::iter::from_fn(|| link.server.poll_event()).count();
                assert_eq!(heard, 2, "the keep-alives sent around the change of keys");
            }
        }
    }

    #[test]
    fn an_altered_renewal_ends_the_session() {
        let mut link = Link::ready();
        let forged = Message::Renewal(vec![9; 48]);
        link.agent.channel.send(&forged, link.now).unwrap();
        let bytes = link.agent.poll_transmit().unwrap();
        link.server.handle_bytes(&bytes, link.now).unwrap();
        let refused = link.server.renew(pair(40), link.now);
        assert_eq!(refused, Err(PeerMisbehaved::BadTag.into()));
        for early in [Message::Renewed, Message::Ready(ready())] {
            let mut link = Link::ready();
            link.agent.channel.send(&early, link.now).unwrap();
            let bytes = link.agent.poll_transmit().unwrap();
            let refused = link.server.handle_bytes(&bytes, link.now);
            assert_eq!(refused, Err(PeerMisbehaved::UnexpectedMessage.into()));
        }
    }

    #[test]
    fn an_idle_session_renews_nothing_and_keeps_no_buffer() {
        let mut link = Link::ready();
        link.now += Duration::from_secs(3600);
        link.agent.send_sign_of_life(link.now);
        assert!(!link.agent.is_renewal_due(link.now));
    }

    struct Link {
        agent: AgentSession,
        server: ServerSession,
        now: Instant,
    }

    impl Link {
        fn ready() -> Self {
            Self::ready_with(Suite::Encrypted)
        }

        fn ready_with(suite: Suite) -> Self {
            #[expect(clippy::disallowed_methods, reason = "the epoch of virtual time")]
            let now = Instant::now();
            let (agent, server) = established(suite);
            let mut link = Self {
                agent: AgentSession::new(agent, now),
                server: ServerSession::new(server, KEEP_ALIVE_DEFAULT, now),
                now,
            };
            link.send(&Message::Ready(ready()));
            assert_eq!(link.agent.poll_event(), Some(AgentEvent::CredentialRolled));
            let ready = link.agent.poll_event();
            assert!(matches!(ready, Some(AgentEvent::Ready { .. })));
            link
        }

        fn send(&mut self, message: &Message) {
            self.server.send(message, self.now).unwrap();
            self.exchange();
        }

        fn exchange(&mut self) {
            while let Some(bytes) = self.agent.poll_transmit() {
                self.server.handle_bytes(&bytes, self.now).unwrap();
            }
            while let Some(bytes) = self.server.poll_transmit() {
                self.agent.handle_bytes(&bytes, self.now).unwrap();
            }
        }
    }

    fn established(suite: Suite) -> (Established, Established) {
        let keys = AgentKeys {
            suite,
            static_keys: pair(1),
            ephemeral: pair(2),
            server_public: *pair(3).public(),
            psk: Secret::new([5; 32]),
        };
        let (sent, agent) = start(keys, "", Purpose::Connect).unwrap();
        let server = ExpectAgentStart::new(suite, &sent[..5], pair(3), pair(4));
        let (_, server) = server.handle(&sent[8..]).unwrap();
        let (sent, server) = server.answer(&ServerHello::Welcome { time_us: 0 }).unwrap();
        let (_, agent) = agent.handle(&sent[3..]).unwrap();
        let (sent, agent) = agent.finish(&AgentHello::default()).unwrap();
        let (_, _, server) = server.handle(&sent[3..], &[Secret::new([5; 32])]).unwrap();
        (agent, server)
    }

    fn ready() -> Ready {
        Ready {
            live_bytes_max: 1000,
            backlog_bytes_max: 1000,
            keep_alive_ms: 10_000,
            signing_public: server_key().verifying_key().to_bytes(),
            restored: false,
        }
    }

    fn keep_alive() -> Message {
        Message::KeepAlive(KeepAlive::default())
    }

    impl AgentSession {
        /// Something that changes nothing.
        fn send_sign_of_life(&mut self, now: Instant) {
            self.channel.send(&keep_alive(), now).unwrap();
        }
    }

    fn pair(seed: u8) -> KeyPair {
        KeyPair::from_secret(&Secret::new([seed; 32]))
    }

    fn batch() -> SealedBatch {
        let mut builder = BatchBuilder::new();
        assert!(builder.push(
            b"line\n",
            EntryMeta {
                time_us: 1,
                flags: EntryFlags::NONE,
            },
        ));
        seal(builder)
    }

    fn seal(mut builder: BatchBuilder) -> SealedBatch {
        let stream = StreamId([2; 16]);
        let position = StreamPosition::start(AgentId([1; 16]), stream, Epoch([3; 16]));
        let key = SigningKey::from_bytes(&[5; 32]);
        builder
            .seal(stream, &position, Vec::new(), &key, &mut Compressor::new(1))
            .0
    }

    fn receipt(batch: &SealedBatch) -> Receipt {
        let mut receipt = Receipt {
            stream: batch.header.stream,
            epoch: batch.header.epoch,
            next: batch.header.next(),
            head: batch.header.head(),
            log: 1,
            offset: 2,
            signature: [0; 64],
        };
        receipt.sign(&server_key());
        receipt
    }

    fn server_key() -> SigningKey {
        SigningKey::from_bytes(&[6; 32])
    }
}
