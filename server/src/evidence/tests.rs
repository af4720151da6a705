//! What a thief of every key of today can and cannot sign.

use std::sync::Arc;

use super::*;

/// Somebody who took the server's key and the key of the present interval rewrites what an earlier one says, signs
/// everything anew, and is found; so is a chain that begins anew.
#[test]
fn todays_keys_cannot_sign_what_was_said_yesterday() {
    let dir = std::env::temp_dir().join(format!("scrinium-chain-{}", std::process::id()));
    drop(std::fs::remove_dir_all(&dir));
    let (volume, _) = Volume::create(&dir, &crate::volume::Binding::default()).unwrap();
    let catalogue = Arc::new(crate::core::make_catalogue(&volume).unwrap());
    let archive = Archive::open(&volume, &catalogue, Cipher::default()).unwrap();
    let server = SigningKey::from_bytes(&[7; 32]);
    let open = || Evidence::open(&volume, Cipher::default(), server.clone(), vec![]).unwrap();
    let mut evidence = open();
    for minute in 1..=6_u64 {
        if minute == 4 {
            // A stop in between: the key of the next interval is on the disk.
            evidence = open();
        }
        evidence.seal(&archive, minute * 60_000_000, None).unwrap();
        evidence.register(&catalogue).unwrap();
    }
    drop(evidence);
    let key = server.verifying_key();
    let expected = || Expected {
        signed: 6,
        chains: catalogue.load().unwrap(),
        ..Expected::default()
    };
    let problems = || check(&volume, &key, &[], &expected()).problems;
    assert_eq!(problems(), Vec::new());
    assert_eq!(expected().chains.len(), 1);

    let evidence_dir = volume.dir().join(EVIDENCE_DIR);
    let origin = format!("scrinium/{}", volume.id());
    let stolen = Chain::open(
        &evidence_dir,
        &volume.key("keys of intervals"),
        origin.clone(),
    )
    .unwrap();
    // All of it is read, interval 2 is another, and what signs it is made with what the thief has.
    let mut read = Leaves::open(&evidence_dir, volume.key("evidence"), Cipher::default()).unwrap();
    let mut records: Vec<(u8, Vec<u8>)> = Vec::new();
    read.read_all(|leaf| {
        records.push(match leaf {
            Leaf::Interval(bytes, _) => (1, bytes.to_vec()),
            Leaf::Link(link) => link.encode(),
        });
        Ok(())
    })
    .unwrap();
    let forged_leaf = Interval {
        number: 2,
        from_us: 120_000_000,
        to_us: 180_000_000,
        doubt: None,
        streams: vec![Reached {
            stream: StreamId([9; 16]),
            epoch: scrinium_protocol::identity::Epoch([1; 16]),
            next: scrinium_protocol::identity::Sequence(1),
            head: scrinium_protocol::identity::Head([2; 32]),
        }],
    };
    let forged_leaf = forged_leaf.encoded();
    let write = |records: &[(u8, Vec<u8>)]| {
        for path in std::fs::read_dir(&evidence_dir).unwrap().flatten() {
            let path = path.path();
            if path.extension().is_some_and(|extension| extension == "evd") {
                std::fs::remove_file(path).unwrap();
            }
        }
        let mut leaves =
            Leaves::open(&evidence_dir, volume.key("evidence"), Cipher::default()).unwrap();
        let mut tree = MerkleTree::new();
        for (kind, payload) in records {
            leaves.append_record(*kind, payload).unwrap();
            if *kind == 1 {
                tree.push(&[payload]);
            }
        }
        let checkpoint = Checkpoint {
            origin: origin.clone(),
            leaves: 6,
            root: tree.root(),
            time_s: 360,
        };
        let note = checkpoint.to_note(&server);
        durable::write_file(&evidence_dir.join(CHECKPOINT_FILE), note.as_bytes()).unwrap();
    };
    write(&records);
    assert_eq!(problems(), Vec::new());

    // With the signature that was there, and with one by the key he found.
    let at = records
        .iter()
        .position(|(kind, payload)| *kind == 1 && payload[1..9] == 2_u64.to_be_bytes());
    let at = at.unwrap();
    let mut altered = records.clone();
    altered[at].1.clone_from(&forged_leaf);
    write(&altered);
    assert!(
        problems()
            .iter()
            .any(|(_, problem)| problem.contains("interval 2 is not signed"))
    );
    let (kind, payload) = &altered[at + 1];
    let Link::Signed { next, .. } = Link::decode(*kind, payload).unwrap() else {
        panic!("it is signed behind it");
    };
    altered[at + 1] = stolen.forge(2, &forged_leaf, next);
    write(&altered);
    assert!(
        problems()
            .iter()
            .any(|(_, problem)| problem.contains("interval 2 is not signed"))
    );

    // A chain of his own from the beginning.
    let mut own = Vec::new();
    let thief = dir.join("thief");
    durable::create_dir(&thief).unwrap();
    let mut chain = Chain::open(&thief, &Secret::new([3; 32]), origin.clone()).unwrap();
    for (number, (_, leaf)) in (0..).zip(altered.iter().filter(|(kind, _)| *kind == 1)) {
        let leaf = leaf.clone();
        let mut links = Vec::new();
        let sign = |kind, payload: &[u8]| {
            links.push((kind, payload.to_vec()));
            Ok(())
        };
        chain.sign(&server, number, &leaf, sign).unwrap();
        own.push((1, leaf));
        own.append(&mut links);
    }
    write(&own);
    assert!(
        problems()
            .iter()
            .any(|(_, problem)| problem.contains("not the one that is registered"))
    );
    // Or none at all.
    own.retain(|(kind, _)| *kind == 1);
    write(&own);
    assert!(
        problems()
            .iter()
            .any(|(_, problem)| problem.contains("not the one that is registered"))
    );
    drop(volume);
    std::fs::remove_dir_all(&dir).unwrap();
}

/// A server that dies when it has made the first key of a chain, or whose disk is full then, says it again.
#[test]
fn a_chain_that_was_begun_and_not_said_begins_all_the_same() {
    let dir = std::env::temp_dir().join(format!("scrinium-chain-begun-{}", std::process::id()));
    drop(std::fs::remove_dir_all(&dir));
    durable::create_dir(&dir).unwrap();
    let server = SigningKey::from_bytes(&[7; 32]);
    let open = || Chain::open(&dir, &Secret::new([3; 32]), "o".into()).unwrap();
    let mut records = Vec::new();
    // How many records each life makes durable before it ends.
    for lasts in [0, 1, 1, 2] {
        let mut left = lasts;
        let append = |kind, payload: &[u8]| {
            left = usize::checked_sub(left, 1).ok_or_else(|| anyhow::anyhow!("no space"))?;
            records.push((kind, payload.to_vec()));
            Ok(())
        };
        let signed = open().sign(&server, 0, b"leaf", append);
        assert_eq!(signed.is_ok(), lasts == 2);
    }
    let mut chain = open();
    let append = |kind, payload: &[u8]| {
        records.push((kind, payload.to_vec()));
        Ok(())
    };
    assert_eq!(chain.sign(&server, 1, b"next", append).unwrap(), None);
    let mut follower = chain::Follower::default();
    follower.leaf(0, b"leaf");
    for (at, (kind, payload)) in records.iter().enumerate() {
        if at == 4 {
            follower.leaf(1, b"next");
        }
        let link = Link::decode(*kind, payload).unwrap();
        follower.link("o", &server.verifying_key(), &link);
    }
    assert_eq!(records.len(), 5);
    assert_eq!(follower.problems, Vec::<String>::new());
    assert_eq!(follower.roots.len(), 1);
}
