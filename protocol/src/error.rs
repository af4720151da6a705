//! What can go wrong, told apart by whose fault it is.

/// Why a session ended.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer sent bytes that are not a message.
    #[error("malformed message: {0}")]
    InvalidMessage(#[from] InvalidMessage),

    /// The peer sent a well-formed message that the protocol forbids here: log it as an attack.
    #[error("peer misbehaved: {0}")]
    PeerMisbehaved(#[from] PeerMisbehaved),

    /// The peer speaks something this build does not.
    #[error("peer is incompatible: {0}")]
    PeerIncompatible(#[from] PeerIncompatible),
}

/// Bytes that do not decode.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidMessage {
    #[error("{0} is cut short")]
    MissingData(&'static str),
    #[error("{0} is longer than allowed")]
    TooLong(&'static str),
    #[error("bytes follow {0}")]
    TrailingData(&'static str),
    #[error("{0} is not UTF-8")]
    NotUtf8(&'static str),
    #[error("{0} is not in its only allowed form")]
    NotCanonical(&'static str),
    #[error("{0} is empty")]
    Empty(&'static str),
    #[error("message type {0:#04x} is unknown")]
    UnknownType(u8),
    #[error("{0} does not decompress to its declared length")]
    BadCompression(&'static str),
}

/// Messages that decode but break a rule of the protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerMisbehaved {
    #[error("a record or handshake message failed authentication")]
    BadTag,
    #[error("the length of a record was altered")]
    BadLengthCheck,
    #[error("sent a low-order public key")]
    LowOrderKey,
    #[error("acknowledged a batch that was never sent")]
    AckOfUnsentBatch,
    #[error("sent a message that only the other side may send, or out of order")]
    UnexpectedMessage,
    #[error("the Merkle root of a batch does not match its entries")]
    WrongRoot,
    #[error("the chain head of a batch does not follow the previous one")]
    WrongChain,
    #[error("the signature of a batch or receipt is not the signer's")]
    WrongSignature,
    #[error("ended the stream without an authenticated close")]
    Truncated,
    #[error("used more records than one key may protect")]
    KeyExhausted,
}

/// Versions and options that do not meet.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerIncompatible {
    #[error("it does not speak SL")]
    NotSl,
    #[error("it speaks SL version {0}, this build speaks 1")]
    Version(u8),
    #[error("cipher suite {0} is not offered")]
    Suite(u8),
}
