//! Noise §5.3, the HandshakeState object, and the two patterns SL uses.

use x25519_dalek::{PublicKey, StaticSecret};

use super::symmetric_state::SymmetricState;
use crate::aead::TAG_LEN;
use crate::codec::Reader;
use crate::error::{Error, PeerMisbehaved};
use crate::secret::Secret;

/// A handshake pattern.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pattern {
    /// The initiator knows the responder's key; both know a secret; the initiator's key is hidden.
    XKpsk3,
    /// No static keys: inside an authenticated channel, to renew its secrets.
    NNpsk0,
}

/// Who speaks first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    Initiator,
    Responder,
}

/// An X25519 key pair.
#[derive(Clone)]
pub struct KeyPair {
    secret: StaticSecret,
    public: [u8; 32],
}

impl KeyPair {
    /// Makes the pair of a secret key drawn by the caller.
    #[must_use]
    pub fn from_secret(secret: &Secret<32>) -> Self {
        let secret = StaticSecret::from(*secret.expose());
        let public = PublicKey::from(&secret).to_bytes();
        Self { secret, public }
    }

    #[must_use]
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// `DH(key pair, public key)`.
    ///
    /// # Errors
    /// [`PeerMisbehaved::LowOrderKey`] when the result does not depend on our key (RFC 7748 §6.1).
    pub fn diffie_hellman(&self, public: &[u8; 32]) -> Result<Secret<32>, PeerMisbehaved> {
        let shared = self.secret.diffie_hellman(&PublicKey::from(*public));
        if !shared.was_contributory() {
            return Err(PeerMisbehaved::LowOrderKey);
        }
        Ok(Secret::new(shared.to_bytes()))
    }
}

impl core::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("KeyPair(..)")
    }
}

/// What a finished handshake leaves.
#[derive(Debug)]
pub struct Split {
    /// Key of the records the initiator sends.
    pub initiator: Secret<32>,
    /// Key of the records the responder sends.
    pub responder: Secret<32>,
    /// The handshake hash: names this session, binds what is exchanged in it.
    pub hash: [u8; 32],
}

/// A handshake in progress.
#[derive(Clone, Debug)]
pub struct HandshakeState {
    symmetric: SymmetricState,
    pattern: Pattern,
    role: Role,
    static_keys: Option<KeyPair>,
    ephemeral: KeyPair,
    remote_static: Option<[u8; 32]>,
    remote_ephemeral: Option<[u8; 32]>,
    psk: Option<Secret<32>>,
    message: usize,
}

impl HandshakeState {
    /// `Initialize(handshake_pattern, initiator, prologue, s, e, rs, re)`. The ephemeral key is
    /// drawn by the caller, for this handshake only. A responder may leave the PSK to
    /// [`HandshakeState::set_psk`].
    #[must_use]
    pub fn new(
        pattern: Pattern,
        role: Role,
        prologue: &[u8],
        static_keys: Option<KeyPair>,
        ephemeral: KeyPair,
        remote_static: Option<[u8; 32]>,
        psk: Option<Secret<32>>,
    ) -> Self {
        let mut symmetric = SymmetricState::new(pattern.name());
        symmetric.mix_hash(prologue);
        if pattern == Pattern::XKpsk3 {
            // pre-message of XK: <- s
            let responder = match role {
                Role::Initiator => remote_static,
                Role::Responder => static_keys.as_ref().map(|keys| *keys.public()),
            };
            symmetric.mix_hash(&responder.expect("XK is given the responder's static key"));
        }
        Self {
            symmetric,
            pattern,
            role,
            static_keys,
            ephemeral,
            remote_static,
            remote_ephemeral: None,
            psk,
            message: 0,
        }
    }

    /// Names the secret to be mixed by the next message.
    pub fn set_psk(&mut self, psk: Secret<32>) {
        self.psk = Some(psk);
    }

    /// `WriteMessage(payload)`: returns the message.
    ///
    /// # Errors
    /// [`PeerMisbehaved::LowOrderKey`] when the peer's key makes a secret anyone can compute.
    ///
    /// # Panics
    /// If called out of turn or without a PSK that its pattern needs: errors of this crate.
    pub fn write_message(&mut self, payload: &[u8]) -> Result<Vec<u8>, PeerMisbehaved> {
        let mut out = Vec::new();
        for token in self.tokens() {
            match token {
                Token::E => {
                    out.extend_from_slice(self.ephemeral.public());
                    let public = *self.ephemeral.public();
                    self.mix_ephemeral(&public);
                }
                Token::S => {
                    let public = *self.static_keys.as_ref().expect("s has a key").public();
                    self.symmetric.encrypt_and_hash(&public, &mut out)?;
                }
                Token::Ee | Token::Es | Token::Se | Token::Psk => self.mix(*token)?,
            }
        }
        self.symmetric.encrypt_and_hash(payload, &mut out)?;
        self.message += 1;
        Ok(out)
    }

    /// `ReadMessage(message)`: returns the payload.
    ///
    /// # Errors
    /// Fails when the message is cut, or was not made by who the pattern says. The state must then
    /// be dropped.
    ///
    /// # Panics
    /// If called out of turn or without a PSK that its pattern needs: errors of this crate.
    pub fn read_message(&mut self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let mut r = Reader::new(message);
        for token in self.tokens() {
            match token {
                Token::E => {
                    let public = r.array("ephemeral key")?;
                    self.remote_ephemeral = Some(public);
                    self.mix_ephemeral(&public);
                }
                Token::S => self.remote_static = Some(self.read_static(&mut r)?),
                Token::Ee | Token::Es | Token::Se | Token::Psk => self.mix(*token)?,
            }
        }
        let payload = self.symmetric.decrypt_and_hash(r.rest())?;
        self.message += 1;
        Ok(payload)
    }

    /// Reads only the sender's static key from the next message, leaving the state as it was: the
    /// responder of `XKpsk3` looks up the PSK by it.
    ///
    /// # Errors
    /// As [`HandshakeState::read_message`].
    pub fn peek_static(&self, message: &[u8]) -> Result<[u8; 32], Error> {
        self.clone().read_static(&mut Reader::new(message))
    }

    fn read_static(&mut self, r: &mut Reader<'_>) -> Result<[u8; 32], Error> {
        let tag = if self.symmetric.cipher.has_key() {
            TAG_LEN
        } else {
            0
        };
        let text = r.take(32 + tag, "static key")?;
        let public = self.symmetric.decrypt_and_hash(text)?;
        let public = public.try_into().map_err(|_| PeerMisbehaved::BadTag)?;
        Ok(public)
    }

    /// `Split()`, after the last message.
    ///
    /// # Panics
    /// If messages are missing: an error of this crate.
    #[must_use]
    pub fn split(&self) -> Split {
        assert_eq!(
            self.message,
            self.pattern.messages().len(),
            "the handshake is over"
        );
        let [initiator, responder] = self.symmetric.split();
        Split {
            initiator,
            responder,
            hash: *self.symmetric.hash(),
        }
    }

    /// A secret of this handshake for the use named `label`.
    #[must_use]
    pub fn export(&self, label: &str) -> Secret<32> {
        self.symmetric.export(label)
    }

    fn tokens(&self) -> &'static [Token] {
        self.pattern
            .messages()
            .get(self.message)
            .expect("no message follows the last")
    }

    fn mix_ephemeral(&mut self, public: &[u8; 32]) {
        self.symmetric.mix_hash(public);
        // Noise §9.2: in a handshake with PSKs, "e" is followed by MixKey(e.public_key).
        self.symmetric.mix_key(public);
    }

    fn mix(&mut self, token: Token) -> Result<(), PeerMisbehaved> {
        let initiator = self.role == Role::Initiator;
        let own_static = self.static_keys.as_ref();
        let (ours, theirs) = match token {
            Token::Ee => (Some(&self.ephemeral), self.remote_ephemeral),
            Token::Es if initiator => (Some(&self.ephemeral), self.remote_static),
            Token::Es => (own_static, self.remote_ephemeral),
            Token::Se if initiator => (own_static, self.remote_ephemeral),
            Token::Se => (Some(&self.ephemeral), self.remote_static),
            Token::Psk => {
                let psk = self
                    .psk
                    .as_ref()
                    .expect("set before the message that mixes it");
                self.symmetric.mix_key_and_hash(psk.expose());
                return Ok(());
            }
            Token::E | Token::S => return Ok(()),
        };
        let ours = ours.expect("the pattern orders keys before their use");
        let theirs = theirs.expect("the pattern orders keys before their use");
        let shared = ours.diffie_hellman(&theirs)?;
        self.symmetric.mix_key(shared.expose());
        Ok(())
    }
}

impl Pattern {
    fn name(self) -> &'static str {
        match self {
            Self::XKpsk3 => "Noise_XKpsk3_25519_AESGCM_SHA256",
            Self::NNpsk0 => "Noise_NNpsk0_25519_AESGCM_SHA256",
        }
    }

    fn messages(self) -> &'static [&'static [Token]] {
        match self {
            Self::XKpsk3 => &[
                &[Token::E, Token::Es],
                &[Token::E, Token::Ee],
                &[Token::S, Token::Se, Token::Psk],
            ],
            Self::NNpsk0 => &[&[Token::Psk, Token::E], &[Token::E, Token::Ee]],
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Token {
    E,
    S,
    Ee,
    Es,
    Se,
    Psk,
}
