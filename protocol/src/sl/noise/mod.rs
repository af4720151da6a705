//! The Noise protocol framework, revision 34, for `25519_AESGCM_SHA256`: one file per object of the
//! specification, with its names.

mod cipher_state;
mod handshake_state;
mod symmetric_state;

pub use cipher_state::CipherState;
pub(crate) use cipher_state::nonce_bytes;
pub use handshake_state::{HandshakeState, KeyPair, Pattern, Role, Split};
