//! How the bodies of records are protected.

/// Chosen by the port an agent dials, said in the preamble, never negotiated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Suite {
    /// AES-256-GCM.
    Encrypted,
    /// Bodies in clear, authenticated with HMAC-SHA-256 cut to 128 bits (RFC 4868 §2.3): for networks
    /// whose law or tools want to read what passes. The handshake, and all it protects, stays as it is.
    IntegrityOnly,
}

impl Suite {
    /// The preamble's byte.
    #[must_use]
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Encrypted => 1,
            Self::IntegrityOnly => 2,
        }
    }

    /// The suite of a preamble's byte.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Encrypted),
            2 => Some(Self::IntegrityOnly),
            _ => None,
        }
    }
}
