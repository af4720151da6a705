//! Published vectors against the very functions SL uses.

use data_encoding::HEXLOWER;
use ed25519_dalek::VerifyingKey;
use scrinium_protocol::aead::Aead;
use scrinium_protocol::error::PeerMisbehaved;
use scrinium_protocol::kdf::{hkdf_sha256, hmac_sha256};
use scrinium_protocol::secret::Secret;
use scrinium_protocol::signature;
use scrinium_protocol::sl::noise::{CipherState, HandshakeState, KeyPair, Pattern, Role};
use serde_json::Value;

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
fn wycheproof_aes_gcm() {
    let checked = each(
        include_str!("../../vectors/wycheproof/aes_gcm.json"),
        |group, test| {
            let ours = group["keySize"] == 256 && group["ivSize"] == 96 && group["tagSize"] == 128;
            if !ours {
                return false;
            }
            let aead = Aead::new(&array(&test["key"]));
            let (nonce, ad) = (array(&test["iv"]), bytes(&test["aad"]));
            let sealed = [bytes(&test["ct"]), bytes(&test["tag"])].concat();
            let mut text = sealed.clone();
            let opened = aead.open(&nonce, &ad, &mut text);
            if test["result"] == "valid" {
                assert_eq!(text[..opened.unwrap()], bytes(&test["msg"]), "{test}");
                let mut again = bytes(&test["msg"]);
                aead.seal(&nonce, &ad, &mut again, 0);
                assert_eq!(again, sealed, "{test}");
            } else {
                assert_eq!(opened, Err(PeerMisbehaved::BadTag), "{test}");
            }
            true
        },
    );
    assert!(checked > 60, "{checked}");
}

#[test]
fn wycheproof_ed25519() {
    let checked = each(
        include_str!("../../vectors/wycheproof/ed25519.json"),
        |group, test| {
            let key = VerifyingKey::from_bytes(&array(&group["publicKey"])).unwrap();
            let verified = match bytes(&test["sig"]).try_into() {
                Ok(signature) => signature::verify(&key, &bytes(&test["msg"]), &signature).is_ok(),
                Err(_) => false, // the type refuses other lengths
            };
            assert_eq!(verified, test["result"] == "valid", "{test}");
            true
        },
    );
    assert_eq!(checked, 151);
}

#[test]
fn wycheproof_hmac() {
    let checked = each(
        include_str!("../../vectors/wycheproof/hmac_sha256.json"),
        |group, test| {
            let mac = hmac_sha256(&bytes(&test["key"]), &[&bytes(&test["msg"])]);
            let len = usize::try_from(group["tagSize"].as_u64().unwrap() / 8).unwrap();
            assert_eq!(
                mac[..len] == bytes(&test["tag"]),
                test["result"] == "valid",
                "{test}"
            );
            true
        },
    );
    assert_eq!(checked, 174);
}

#[test]
fn wycheproof_hkdf() {
    let checked = each(
        include_str!("../../vectors/wycheproof/hkdf_sha256.json"),
        |_, test| {
            let size = usize::try_from(test["size"].as_u64().unwrap()).unwrap();
            if test["result"] != "valid" {
                assert!(size > 255 * 32, "only lengths past the limit are invalid");
                return true;
            }
            let mut out = vec![0; size];
            hkdf_sha256(
                &bytes(&test["salt"]),
                &bytes(&test["ikm"]),
                &bytes(&test["info"]),
                &mut out,
            );
            assert_eq!(out, bytes(&test["okm"]), "{test}");
            true
        },
    );
    assert_eq!(checked, 86);
}

/// Every shared secret is the published one, except that all-zero ones are refused: they do not
/// depend on our key.
#[test]
fn wycheproof_x25519_and_low_order_keys_are_refused() {
    let mut refused = 0;
    let checked = each(
        include_str!("../../vectors/wycheproof/x25519.json"),
        |_, test| {
            let pair = KeyPair::from_secret(&Secret::new(array(&test["private"])));
            let shared = pair.diffie_hellman(&array(&test["public"]));
            if bytes(&test["shared"]) == [0; 32] {
                assert_eq!(shared.unwrap_err(), PeerMisbehaved::LowOrderKey, "{test}");
                refused += 1;
            } else {
                assert_eq!(
                    shared.unwrap().expose()[..],
                    bytes(&test["shared"]),
                    "{test}"
                );
            }
            true
        },
    );
    assert_eq!((checked, refused), (518, 31));
}

/// Runs `check` on every test of a set; returns how many it took part in.
fn each(set: &str, mut check: impl FnMut(&Value, &Value) -> bool) -> usize {
    let set: Value = serde_json::from_str(set).unwrap();
    let mut checked = 0;
    for group in set["testGroups"].as_array().unwrap() {
        for test in group["tests"].as_array().unwrap() {
            checked += usize::from(check(group, test));
        }
    }
    checked
}

fn bytes(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}
