//! Independent peers and published vectors for the Noise handshake.

use data_encoding::HEXLOWER;
use scrinium_protocol::secret::Secret;
use scrinium_protocol::sl::noise::{CipherState, HandshakeState, KeyPair, Pattern, Role};
use serde_json::Value;

const PARAMS: &str = "Noise_XKpsk3_25519_AESGCM_SHA256";

/// The vectors of the cacophony set for the two patterns SL uses.
#[test]
fn published_vectors_match_byte_for_byte() {
    let mut checked = 0;
    let vectors: Value = serde_json::from_str(include_str!("../../vectors/noise.json")).unwrap();
    for vector in vectors.as_array().unwrap() {
        let text = |key: &str| vector.get(key).and_then(Value::as_str).unwrap_or_default();
        let bytes = |key: &str| HEXLOWER.decode(text(key).as_bytes()).unwrap();
        let key = |name: &str| Secret::new(bytes(name).try_into().unwrap());
        let pair = |name: &str| KeyPair::from_secret(&key(name));
        let pattern = if text("protocol_name").contains("XKpsk3") {
            Pattern::XKpsk3
        } else {
            Pattern::NNpsk0
        };
        let psk = || {
            let psks = vector.get("init_psks").and_then(Value::as_array).unwrap();
            let psk = HEXLOWER
                .decode(psks[0].as_str().unwrap().as_bytes())
                .unwrap();
            Some(Secret::new(psk.try_into().unwrap()))
        };
        let (init_static, resp_static, remote) = match pattern {
            Pattern::XKpsk3 => (
                Some(pair("init_static")),
                Some(pair("resp_static")),
                Some(*pair("resp_static").public()),
            ),
            Pattern::NNpsk0 => (None, None, None),
        };
        let prologue = bytes("init_prologue");
        let mut initiator = HandshakeState::new(
            pattern,
            Role::Initiator,
            &prologue,
            init_static,
            pair("init_ephemeral"),
            remote,
            psk(),
        );
        let mut responder = HandshakeState::new(
            pattern,
            Role::Responder,
            &prologue,
            resp_static,
            pair("resp_ephemeral"),
            None,
            psk(),
        );
        let handshake_messages = if pattern == Pattern::XKpsk3 { 3 } else { 2 };
        let mut ciphers: Option<[CipherState; 4]> = None;
        for (n, message) in vector["messages"].as_array().unwrap().iter().enumerate() {
            let payload = HEXLOWER
                .decode(message["payload"].as_str().unwrap().as_bytes())
                .unwrap();
            let expected = HEXLOWER
                .decode(message["ciphertext"].as_str().unwrap().as_bytes())
                .unwrap();
            if n < handshake_messages {
                let (from, to) = if n % 2 == 0 {
                    (&mut initiator, &mut responder)
                } else {
                    (&mut responder, &mut initiator)
                };
                assert_eq!(
                    from.write_message(&payload).unwrap(),
                    expected,
                    "{} message {n}",
                    text("protocol_name")
                );
                assert_eq!(to.read_message(&expected).unwrap(), payload);
            } else {
                let [i_send, r_receive, r_send, i_receive] = ciphers.get_or_insert_with(|| {
                    let (i, r) = (initiator.split(), responder.split());
                    assert_eq!(i.hash, r.hash);
                    [&i.initiator, &r.initiator, &r.responder, &i.responder]
                        .map(|key| CipherState::new(key.expose()))
                });
                let (send, receive) = if n % 2 == 0 {
                    (i_send, r_receive)
                } else {
                    (r_send, i_receive)
                };
                // XK ends on the initiator's turn, so transport turns go on alternating.
                let mut sealed = payload.clone();
                send.encrypt(&[], &mut sealed, 0).unwrap();
                assert_eq!(sealed, expected, "{} message {n}", text("protocol_name"));
                let len = receive.decrypt(&[], &mut sealed).unwrap();
                assert_eq!(sealed[..len], payload);
            }
        }
        checked += 1;
    }
    assert_eq!(checked, 2);
}

#[test]
fn snow_as_responder_and_as_initiator_agrees_on_handshake_and_transport() {
    let ours = KeyPair::from_secret(&Secret::new([11; 32]));
    let theirs = [22; 32];
    let their_public = *KeyPair::from_secret(&Secret::new(theirs)).public();
    let psk = [33; 32];
    for we_initiate in [true, false] {
        let builder = snow::Builder::new(PARAMS.parse().unwrap())
            .prologue(b"hello")
            .unwrap()
            .local_private_key(&theirs)
            .unwrap()
            .psk(3, &psk)
            .unwrap();
        let ephemeral = KeyPair::from_secret(&Secret::new([44; 32]));
        let secret = Some(Secret::new(psk));
        let (mut us, mut peer) = if we_initiate {
            let us = HandshakeState::new(
                Pattern::XKpsk3,
                Role::Initiator,
                b"hello",
                Some(ours.clone()),
                ephemeral,
                Some(their_public),
                secret,
            );
            (us, builder.build_responder().unwrap())
        } else {
            let us = HandshakeState::new(
                Pattern::XKpsk3,
                Role::Responder,
                b"hello",
                Some(ours.clone()),
                ephemeral,
                None,
                secret,
            );
            (
                us,
                builder
                    .remote_public_key(ours.public())
                    .unwrap()
                    .build_initiator()
                    .unwrap(),
            )
        };
        let mut buffer = vec![0; 1024];
        for turn in 0..3 {
            let payload = format!("payload {turn}");
            if (turn % 2 == 0) == we_initiate {
                let message = us.write_message(payload.as_bytes()).unwrap();
                let n = peer.read_message(&message, &mut buffer).unwrap();
                assert_eq!(&buffer[..n], payload.as_bytes());
            } else {
                let n = peer.write_message(payload.as_bytes(), &mut buffer).unwrap();
                assert_eq!(us.read_message(&buffer[..n]).unwrap(), payload.as_bytes());
            }
        }
        let split = us.split();
        assert_eq!(split.hash, peer.get_handshake_hash());
        let mut peer = peer.into_transport_mode().unwrap();
        let (send, receive) = if we_initiate {
            (&split.initiator, &split.responder)
        } else {
            (&split.responder, &split.initiator)
        };
        let (mut send, mut receive) = (
            CipherState::new(send.expose()),
            CipherState::new(receive.expose()),
        );
        let mut sealed = b"up".to_vec();
        send.encrypt(&[], &mut sealed, 0).unwrap();
        let n = peer.read_message(&sealed, &mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"up");
        let n = peer.write_message(b"down", &mut buffer).unwrap();
        let mut text = buffer[..n].to_vec();
        let n = receive.decrypt(&[], &mut text).unwrap();
        assert_eq!(&text[..n], b"down");
    }
}
