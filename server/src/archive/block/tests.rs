//! Blocks: what goes in comes out, and bytes stay what they are.

use ed25519_dalek::SigningKey;
use scrinium_protocol::batch::BatchBuilder;
use scrinium_protocol::compress::Compressor;
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::kdf::sha256;

use super::*;

#[test]
fn batches_of_anything_come_back_as_they_were_signed() {
    let odd: [&[u8]; 9] = [
        b"a line\n",
        b"two\nlines\n",
        b"no end",
        b"",
        b"\n",
        b"\xff\xfe\0\n",
        b"Nov  1 00:00:00 srv-12 kernel: [591200.1] IN=eth0\n",
        b"Nov  2 10:20:30 srv-7 kernel: [5.17] IN=eth1\n",
        b"{\"ts\":\"2026-11-01T00:00:00Z\",\"n\":1}\n",
    ];
    let alike: Vec<&[u8]> = vec![b"x\n"; 3000];
    let batches = batches(&[&odd, &alike, &odd, &[b"12\n"]]);
    let raw = encode(&batches);
    assert_eq!(raw.first(), Some(&PACKED));
    assert_same(&raw, &batches);
    // Nothing of it may be cut or go on.
    for len in 0..raw.len().min(400) {
        assert!(decode_packed(&raw[..len]).is_err(), "cut at {len}");
    }
    let mut longer = raw;
    longer.push(b'x');
    assert!(decode_packed(&longer).is_err());
}

/// So that it can be cut where a block may end, and costs little.
#[test]
fn of_many_signatures_the_last_is_kept_and_one_now_and_then() {
    let long = vec![b'x'; 30_000];
    let line: &[&[u8]] = &[&long];
    let batches = batches(&vec![line; 40]);
    let raw = encode(&batches);
    assert_same(&raw, &batches);
    let signed = |batches: &[StoredBatch]| -> Vec<usize> {
        let numbers = batches.iter().enumerate();
        let signed = numbers.filter(|(_, batch)| batch.header.is_signed());
        signed.map(|(number, _)| number).collect()
    };
    let thinned = decode_packed(&raw).unwrap();
    assert_eq!(signed(&thinned), [8, 17, 26, 35, 39]);
    // Packed again it is the same; cut where a signature is, it is a block of its own.
    assert_eq!(encode(&thinned), raw);
    assert_same(&encode(&thinned[..18]), &batches[..18]);
    // Cut elsewhere, it keeps what there is.
    assert_eq!(encode(&thinned[..19]).first(), Some(&VERBATIM));
}

#[test]
fn a_block_of_each_version_is_the_same_for_ever() {
    let batches = batches(&[&[b"one\n", b"two\n"], &[b"three\n"]]);
    let digest = |raw: &[u8]| data_encoding::HEXLOWER.encode(&sha256(&[raw]));
    assert_eq!(
        digest(&encode_packed(&batches).unwrap()),
        "132a2487f7d14c53fb8a9d99985955ab8bb4ad2eb6b3f86193c0854ad387ac53"
    );
    assert_eq!(
        digest(&encode_verbatim(&batches)),
        "256f5813397df28124bfec94da6c95cc0f90c914fdb5173e1aa72614981bf5f9"
    );
    assert_same(&encode_verbatim(&batches), &batches);
}

#[test]
fn a_table_that_is_not_the_shortest_is_kept_as_it_came() {
    let mut batches = batches(&[&[b"one\n"]]);
    // Times that would overflow are moved to the last there is: what was written is not what is read.
    let body = [&[0, 0, 0, 12][..], &[4, 0], &[0xff; 9], &[1], b"one\n"].concat();
    let header = &mut batches[0].header;
    header.time_first_us = u64::MAX - 1;
    header.raw_len = u32::try_from(body.len()).unwrap();
    batches[0].entries = Entries::parse(body, header).unwrap();
    let raw = encode(&batches);
    assert_eq!(raw.first(), Some(&VERBATIM));
    assert_same(&raw, &batches);
}

fn batches(contents: &[&[&[u8]]]) -> Vec<StoredBatch> {
    let key = SigningKey::from_bytes(&[1; 32]);
    let (agent, stream) = (AgentId([2; 16]), StreamId([3; 16]));
    let mut position = StreamPosition::start(agent, stream, Epoch([4; 16]));
    let mut compressor = Compressor::new(1);
    let mut made = Vec::new();
    for (n, entries) in (0_u64..).zip(contents) {
        let mut builder = BatchBuilder::new();
        for (i, bytes) in (0_u64..).zip(*entries) {
            let flags = EntryFlags::NONE;
            let time_us = 1_000_000 * n + i * i;
            assert!(builder.push(bytes, EntryMeta { time_us, flags }));
        }
        let bookmark = vec![u8::try_from(n).unwrap(); 5];
        let (batch, after) = builder.seal(stream, &position, bookmark, &key, &mut compressor);
        position = after;
        made.push(StoredBatch {
            received_us: 5_000_000 - n,
            agent,
            entries: batch.open().unwrap(),
            header: batch.header,
        });
    }
    made
}

fn decode_packed(raw: &[u8]) -> Result<Vec<StoredBatch>> {
    let packed = Compressor::new(1).compress(raw);
    decode(&packed, u32::try_from(raw.len())?)
}

fn assert_same(raw: &[u8], batches: &[StoredBatch]) {
    let decoded = decode_packed(raw).unwrap();
    assert_eq!(decoded.len(), batches.len());
    assert!(decoded.last().unwrap().header.is_signed());
    for (decoded, batch) in decoded.iter().zip(batches) {
        let mut header = batch.header.clone();
        if !decoded.header.is_signed() {
            header.signature = [0; 64];
        }
        assert_eq!(decoded.header, header);
        assert_eq!(decoded.received_us, batch.received_us);
        assert_eq!(decoded.agent, batch.agent);
        assert_eq!(decoded.entries.raw(), batch.entries.raw());
    }
}
