//! The enrolment token: everything an agent needs to find and trust its server, once.
//!
//! ```text
//! "SCRINIUM1-" base64url( version (1) | server address (2 + n) | server public key (32)
//!                         | token id (16) | secret (32) | expiry, Unix seconds (8) | uses (4) | check (4) )
//! ```
//!
//! Version 1 is for one agent and has no uses; version 2 is for 2 to [`USES_MAX`]. Agents of version 0.1.0 read the first.
//!
//! The check is the start of a SHA-256 over the rest: a token that lost a character in an e-mail is
//! told apart from one that was never valid.

use data_encoding::BASE64URL_NOPAD;

use crate::codec::{Reader, put_bytes16};
use crate::error::InvalidMessage;
use crate::kdf::sha256;
use crate::secret::Secret;

/// A parsed enrolment token. Whoever holds it can enrol as many agents as it says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Token {
    /// Where the agent dials: a [`crate::route::Route`].
    pub address: String,
    pub server_public: [u8; 32],
    pub id: [u8; 16],
    /// PSK of the first handshake, 256 bits from the operating system.
    pub secret: Secret<32>,
    /// Not valid from this time on, in seconds since 1970-01-01T00:00Z.
    pub expires_s: u64,
    /// How many agents it enrols.
    pub uses_max: u32,
}

impl Token {
    /// Parses the text an administrator pasted.
    ///
    /// # Errors
    /// Says which part is not as it must be.
    pub fn parse(text: &str) -> Result<Self, InvalidMessage> {
        let Some(encoded) = text.trim().strip_prefix(PREFIX) else {
            return Err(InvalidMessage::NotCanonical("token prefix"));
        };
        if encoded.len() > 1024 {
            return Err(InvalidMessage::TooLong("token"));
        }
        let bytes = BASE64URL_NOPAD
            .decode(encoded.as_bytes())
            .map_err(|_| InvalidMessage::NotCanonical("token"))?;
        let Some((rest, check)) = bytes.split_last_chunk::<4>() else {
            return Err(InvalidMessage::MissingData("token"));
        };
        if check_of(rest) != *check {
            return Err(InvalidMessage::NotCanonical("token check"));
        }
        let mut r = Reader::new(rest);
        let version = r.u8("token version")?;
        if ![VERSION_ONE, VERSION_MANY].contains(&version) {
            return Err(InvalidMessage::UnknownType(version));
        }
        let mut token = Self {
            address: r.text16(ADDRESS_LEN_MAX, "server address")?,
            server_public: r.array("server public key")?,
            id: r.array("token id")?,
            secret: Secret::new(r.array("token secret")?),
            expires_s: r.u64("token expiry")?,
            uses_max: 1,
        };
        if version == VERSION_MANY {
            token.uses_max = r.u32("token uses")?;
            if !(2..=USES_MAX).contains(&token.uses_max) {
                return Err(InvalidMessage::NotCanonical("token uses"));
            }
        }
        r.finish("token")?;
        Ok(token)
    }

    /// The text to hand to the administrator of the machine.
    ///
    /// # Panics
    /// If the address is longer than [`ADDRESS_LEN_MAX`]; the command that makes tokens checks it.
    #[must_use]
    pub fn to_text(&self) -> String {
        assert!(
            self.address.len() <= ADDRESS_LEN_MAX,
            "checked where it was entered"
        );
        let is_for_one = self.uses_max <= 1;
        let mut bytes = vec![if is_for_one {
            VERSION_ONE
        } else {
            VERSION_MANY
        }];
        put_bytes16(&mut bytes, self.address.as_bytes());
        bytes.extend_from_slice(&self.server_public);
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(self.secret.expose());
        bytes.extend_from_slice(&self.expires_s.to_be_bytes());
        if !is_for_one {
            bytes.extend_from_slice(&self.uses_max.to_be_bytes());
        }
        let check = check_of(&bytes);
        bytes.extend_from_slice(&check);
        format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

fn check_of(bytes: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = sha256(&[b"scrinium token v1", bytes]);
    [a, b, c, d]
}

/// Longest route in a token, in bytes.
pub const ADDRESS_LEN_MAX: usize = 300;
/// Agents that one token enrols at most: more than a server takes.
pub const USES_MAX: u32 = 100_000;
const VERSION_ONE: u8 = 1;
const VERSION_MANY: u8 = 2;
const PREFIX: &str = "SCRINIUM1-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back() {
        assert_eq!(Token::parse(&sample().to_text()), Ok(sample()));
    }

    #[test]
    fn the_text_of_a_token_is_frozen() {
        assert_eq!(
            sample().to_text(),
            "SCRINIUM1-AQATbG9nLmV4YW1wbGUubmV0OjcyMAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAgICAgICAgICAgICAgICAgMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAAAAAGtJ0gCf1pGp"
        );
    }

    #[test]
    fn a_token_of_several_uses_reads_back_and_says_how_many() {
        for uses_max in [2, 500, USES_MAX] {
            let token = Token {
                uses_max,
                ..sample()
            };
            assert_eq!(Token::parse(&token.to_text()), Ok(token));
        }
        for uses_max in [USES_MAX + 1, u32::MAX] {
            let token = Token {
                uses_max,
                ..sample()
            };
            let refused = Err(InvalidMessage::NotCanonical("token uses"));
            assert_eq!(Token::parse(&token.to_text()), refused);
        }
    }

    #[test]
    fn a_token_with_any_character_changed_is_refused() {
        let good = sample().to_text();
        for at in 0..good.len() {
            let mut bad = good.clone().into_bytes();
            bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
            assert!(
                Token::parse(str::from_utf8(&bad).unwrap()).is_err(),
                "character {at}"
            );
        }
    }

    fn sample() -> Token {
        Token {
            address: "log.example.net:720".into(),
            server_public: [1; 32],
            id: [2; 16],
            secret: Secret::new([3; 32]),
            expires_s: 1_800_000_000,
            uses_max: 1,
        }
    }
}
