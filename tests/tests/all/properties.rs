//! Bytes from anywhere decode or fail, and never panic; what is encoded reads back.

use proptest::prelude::*;
use scrinium_protocol::batch::{BatchBuilder, SealedBatch, StreamPosition};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::compress::Compressor;
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::identity::{AgentId, Epoch, StreamId};
use scrinium_protocol::sl::handshake::{AgentHello, FrameHead, Preamble};
use scrinium_protocol::sl::message::Message;
use scrinium_protocol::sl::suite::Suite;
use scrinium_protocol::syslog::frame::{Deframer, MESSAGE_LEN_MAX};
use scrinium_protocol::syslog::message::parse;
use scrinium_protocol::token::Token;

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(kind: u8, bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _outcome = Message::decode(kind, &bytes);
        let _outcome = SealedBatch::decode(&bytes, "batch").map(|batch| batch.open());
        let _outcome = AgentHello::decode(&bytes, "hello");
        if let Some(head) = bytes.first_chunk() {
            let _outcome = FrameHead::parse(*head);
        }
        if let Some(head) = bytes.first_chunk() {
            let _outcome = Preamble::hint_len(head, Suite::Encrypted);
        }
    }

    #[test]
    fn any_text_is_a_token_or_not(text in "(SCRINIUM1-)?[A-Za-z0-9_-]{0,300}") {
        let _outcome = Token::parse(&text);
    }

    #[test]
    fn parsing_keeps_the_text(text in "<[0-9]{1,3}>(1 )?[ -~]{0,80}(\\[[ -~]{0,40}\\])?[ -~]{0,40}") {
        let message = parse(text.as_bytes());
        prop_assert!(text.as_bytes().windows(message.text.len().max(1)).any(|window| window == message.text) || message.text.is_empty());
        prop_assert!(message.severity.is_none_or(|severity| severity < 8));
    }

    #[test]
    fn any_bytes_are_framed_whatever_their_pieces(
        bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b' '), b'0'..=b'9', any::<u8>()], 0..400),
        piece in 1_usize..40,
    ) {
        let frames = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let mut deframer = Deframer::new();
            let mut frames = Vec::new();
            for piece in pieces {
                deframer.handle_bytes(piece);
                while let Some(frame) = deframer.poll_frame() {
                    frames.push(frame);
                }
            }
            frames.extend(deframer.finish());
            frames
        };
        let whole = frames(&mut std::iter::once(&bytes[..]));
        prop_assert_eq!(&whole, &frames(&mut bytes.chunks(piece)));
        prop_assert!(whole.iter().all(|frame| frame.bytes.len() <= MESSAGE_LEN_MAX));
    }

    #[test]
    fn any_entries_survive_a_batch(lines in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..40), times in proptest::collection::vec(any::<u32>(), 40)) {
        let mut builder = BatchBuilder::new();
        for (line, time) in lines.iter().zip(&times) {
            builder.push(line, EntryMeta { time_us: u64::from(*time), flags: EntryFlags::FRAGMENT });
        }
        let stream = StreamId([1; 16]);
        let position = StreamPosition::start(AgentId([2; 16]), stream, Epoch([3; 16]));
        let key = ed25519_dalek::SigningKey::from_bytes(&[4; 32]);
        let (batch, after) = builder.seal(stream, &position, b"here".to_vec(), &key, &mut Compressor::new(1));
        let read = SealedBatch::decode(&batch.encoded(), "batch").unwrap();
        let entries = read.open().unwrap();
        prop_assert_eq!(entries.iter().map(|(_, bytes)| bytes.to_vec()).collect::<Vec<_>>(), lines);
        prop_assert_eq!(read.header.position_after(), after);
    }
}
