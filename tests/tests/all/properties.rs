//! Bytes from anywhere decode or fail, and never panic; what is encoded reads back.

use proptest::prelude::*;
use scrinium_protocol::batch::{BatchBuilder, SealedBatch, StreamPosition};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::compress::Compressor;
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::identity::{AgentId, Epoch, StreamId};
use scrinium_tests::fuzz;

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(kind: u8, bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        fuzz::message(&[&[kind], &bytes[..]].concat());
        fuzz::batch(&bytes);
        fuzz::handshake(&bytes);
        fuzz::record(&bytes);
    }

    #[test]
    fn any_text_is_a_token_or_not(text in "(SCRINIUM1-)?[A-Za-z0-9_-]{0,300}") {
        fuzz::token(text.as_bytes());
    }

    #[test]
    fn parsing_keeps_the_text(text in "<[0-9]{1,3}>(1 )?[ -~]{0,80}(\\[[ -~]{0,40}\\])?[ -~]{0,40}") {
        fuzz::syslog_message(text.as_bytes());
    }

    #[test]
    fn any_bytes_are_framed_whatever_their_pieces(
        bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b' '), b'0'..=b'9', any::<u8>()], 0..400),
        piece in 0_u8..40,
    ) {
        fuzz::syslog_frame(&[&[piece], &bytes[..]].concat());
    }

    #[test]
    fn any_entries_survive_a_batch(lines in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..40), times in proptest::collection::vec(any::<u32>(), 40)) {
        let mut builder = BatchBuilder::new();
        for (line, time) in lines.iter().zip(&times) {
            assert!(builder.push(line, EntryMeta { time_us: u64::from(*time), flags: EntryFlags::FRAGMENT }));
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
