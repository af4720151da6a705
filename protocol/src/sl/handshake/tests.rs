use super::*;

#[test]
fn both_sides_agree_on_keys_and_on_the_next_credential() {
    let (mut agent, mut server, hello, used) = run(&[[8; 32], [7; 32]]).unwrap();
    assert_eq!(hello.host_name, "web1");
    assert_eq!(used, 1);
    assert_eq!(agent.next_psk, server.next_psk);
    assert_eq!(agent.recovery_psk, server.recovery_psk);
    assert_ne!(agent.recovery_psk, agent.next_psk);
    assert_eq!(agent.hash, server.hash);

    let mut wire = Vec::new();
    agent.sealer.seal(3, b"up", &mut wire).unwrap();
    let (header, body) = wire.split_first_chunk().unwrap();
    assert_eq!(
        server.opener.open(header, &mut body.to_vec()),
        Ok((3, &b"up"[..]))
    );
}

#[test]
fn a_wrong_credential_is_refused() {
    assert_eq!(run(&[[8; 32]]).unwrap_err(), PeerMisbehaved::BadTag.into());
}

#[test]
fn an_altered_preamble_is_noticed() {
    let (mut sent, _) = start(agent_keys(), "", Purpose::Connect).unwrap();
    sent[3] ^= 2;
    let server = ExpectAgentStart::new(Suite::Encrypted, &sent[..5], pair(20), pair(21));
    assert_eq!(
        server.handle(&sent[8..]).unwrap_err(),
        PeerMisbehaved::BadTag.into()
    );
}

#[test]
fn low_order_keys_are_refused() {
    let mut keys = agent_keys();
    keys.server_public = [0; 32];
    assert_eq!(
        start(keys, "", Purpose::Connect).unwrap_err(),
        PeerMisbehaved::LowOrderKey.into()
    );
}

#[test]
fn other_protocols_are_told_apart() {
    let hint_len = |head: &[u8; 5]| Preamble::hint_len(head, Suite::Encrypted);
    assert_eq!(hint_len(b"GET /"), Err(PeerIncompatible::NotSl.into()));
    let version = hint_len(b"SL\x02\x01\0");
    assert_eq!(version, Err(PeerIncompatible::Version(2).into()));
    for suite in [0, 2, 3] {
        let head = [b'S', b'L', 1, suite, 0];
        let refused = Preamble::hint_len(&head, Suite::Encrypted);
        assert_eq!(refused, Err(PeerIncompatible::Suite(suite).into()));
    }
    assert_eq!(hint_len(b"SL\x01\x01\x04"), Ok(4));
    let other_port = Preamble::hint_len(b"SL\x01\x01\0", Suite::IntegrityOnly);
    assert_eq!(other_port, Err(PeerIncompatible::Suite(1).into()));
}

#[test]
fn a_refusal_is_told_from_a_record_and_reads_back() {
    for code in [RefusalCode::Other, RefusalCode::Credential] {
        let frame = refusal_frame(code, "no");
        assert_eq!(refusal_of(&frame), Some((code, "no".to_owned())));
        assert_eq!(refusal_of(&frame[..frame.len() - 1]), None);
    }
    assert_eq!(refusal_of(&[0; 100]), None);
    assert_eq!(parse_refusal(b""), (RefusalCode::Other, String::new()));
}

#[test]
fn purposes_have_their_bytes_and_an_unknown_one_is_refused() {
    let agent = AgentId([7; 16]);
    for (purpose, first) in [
        (Purpose::Connect, 1),
        (Purpose::Enrol { token: [7; 16] }, 2),
        (Purpose::Ask { agent }, 3),
    ] {
        let bytes = purpose.encoded();
        assert_eq!(bytes[0], first);
        assert!(bytes[1..].iter().all(|byte| *byte == 7));
        assert_eq!(Purpose::decode(&bytes, "purpose"), Ok(purpose));
    }
    let unknown = Purpose::decode(&[4; 17], "purpose");
    assert_eq!(unknown, Err(InvalidMessage::UnknownType(4)));
}

fn run(credentials: &[[u8; 32]]) -> Result<(Established, Established, AgentHello, usize), Error> {
    let (sent, agent) = start(agent_keys(), "", Purpose::Enrol { token: [4; 16] })?;
    let server = ExpectAgentStart::new(Suite::Encrypted, &sent[..5], pair(20), pair(21));
    let (purpose, server) = server.handle(&sent[8..])?;
    assert_eq!(purpose, Purpose::Enrol { token: [4; 16] });
    let (sent, server) = server.answer(&ServerHello::Welcome { time_us: 5 })?;
    let (welcome, agent) = agent.handle(&sent[3..])?;
    assert_eq!(welcome, ServerHello::Welcome { time_us: 5 });
    let hello = AgentHello {
        host_name: "web1".into(),
        fingerprint: vec![("machine-id".into(), [1; 16])],
        ..AgentHello::default()
    };
    let (sent, agent) = agent.finish(&hello)?;
    assert_eq!(server.claimed_static(&sent[3..])?, *pair(10).public());
    let credentials: Vec<_> = credentials.iter().copied().map(Secret::new).collect();
    let (hello, used, server) = server.handle(&sent[3..], &credentials)?;
    Ok((agent, server, hello, used))
}

fn agent_keys() -> AgentKeys {
    AgentKeys {
        suite: Suite::Encrypted,
        static_keys: pair(10),
        ephemeral: pair(11),
        server_public: *pair(20).public(),
        psk: Secret::new([7; 32]),
    }
}

fn pair(seed: u8) -> KeyPair {
    KeyPair::from_secret(&Secret::new([seed; 32]))
}
