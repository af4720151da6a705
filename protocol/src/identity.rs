//! Names of agents, streams, epochs and sequences.

use core::fmt;

use data_encoding::HEXLOWER;

use crate::codec::{Codec, Reader};
use crate::error::InvalidMessage;
use crate::kdf::sha256;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $field:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(pub [u8; $len]);

        impl Codec for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.0);
            }

            fn read(r: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
                Ok(Self(r.array($field)?))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl core::str::FromStr for $name {
            type Err = InvalidMessage;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let bytes = HEXLOWER
                    .decode(text.as_bytes())
                    .map_err(|_| InvalidMessage::NotCanonical($field))?;
                let bytes = bytes
                    .try_into()
                    .map_err(|_| InvalidMessage::NotCanonical($field))?;
                Ok(Self(bytes))
            }
        }
    };
}

id!(
    /// An agent, named by the server at enrolment.
    AgentId, 16, "agent id"
);
id!(
    /// One ordered source of one agent: a file path, an event channel, a syslog sender.
    StreamId, 16, "stream id"
);
id!(
    /// A life of an agent's streams: random, new at install, restore or detected rollback.
    Epoch, 16, "epoch"
);
id!(
    /// The chain head after a batch: vouches for every entry before it.
    Head, 32, "chain head"
);

impl StreamId {
    /// Derives the id of the stream of `kind` named `name`; the same on every run of the agent.
    #[must_use]
    pub fn derive(agent: AgentId, kind: StreamKind, name: &str) -> Self {
        let hash = sha256(&[
            b"scrinium stream v1",
            &agent.0,
            &[kind.to_byte()],
            name.as_bytes(),
        ]);
        let [head @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = hash;
        Self(head)
    }
}

/// What a stream is called by people.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct StreamName {
    pub kind: StreamKind,
    /// A path, an address, a channel: at most [`crate::sl::message::STREAM_NAME_LEN_MAX`] bytes.
    pub name: String,
}

impl StreamName {
    /// The id of this stream of `agent`.
    #[must_use]
    pub fn id(&self, agent: AgentId) -> StreamId {
        StreamId::derive(agent, self.kind, &self.name)
    }
}

/// Number of an entry in its stream and epoch, counted from 0.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Sequence(pub u64);

/// What a stream's entries were before they were entries.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum StreamKind {
    /// A file, by its path.
    File,
    /// A syslog sender over UDP, by its address.
    SyslogUdp,
    /// A syslog sender over TCP, by its address.
    SyslogTcp,
    /// What the server itself did: sign-ins, exports, deletions.
    Audit,
    /// The systemd journal, by its directory.
    Journal,
    /// A channel of the Windows Event Log, by its name.
    EventLog,
    /// What a command prints.
    Command,
    /// A local syslog socket, by its path.
    SyslogUnix,
    /// What an agent itself did and noticed.
    Agent,
}

impl StreamKind {
    /// Every kind this build knows.
    pub const ALL: [Self; 9] = [
        Self::File,
        Self::SyslogUdp,
        Self::SyslogTcp,
        Self::Audit,
        Self::Journal,
        Self::EventLog,
        Self::Command,
        Self::SyslogUnix,
        Self::Agent,
    ];

    #[must_use]
    pub fn to_byte(self) -> u8 {
        match self {
            Self::File => 1,
            Self::SyslogUdp => 2,
            Self::SyslogTcp => 3,
            Self::Audit => 4,
            Self::Journal => 5,
            Self::EventLog => 6,
            Self::Command => 7,
            Self::SyslogUnix => 8,
            Self::Agent => 9,
        }
    }

    /// # Errors
    /// [`InvalidMessage::UnknownType`] for a kind this build does not know.
    pub fn from_byte(byte: u8) -> Result<Self, InvalidMessage> {
        let known = Self::ALL.into_iter().find(|kind| kind.to_byte() == byte);
        known.ok_or(InvalidMessage::UnknownType(byte))
    }

    /// Whether its source still holds what it said, and can be asked again: what a sender, a command or
    /// the agent itself said is nowhere else once it was taken.
    #[must_use]
    pub fn can_be_read_again(self) -> bool {
        match self {
            Self::File | Self::Journal | Self::EventLog => true,
            Self::SyslogUdp
            | Self::SyslogTcp
            | Self::SyslogUnix
            | Self::Command
            | Self::Agent
            | Self::Audit => false,
        }
    }

    /// The word used in commands, the API and the console.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::SyslogUdp => "syslog-udp",
            Self::SyslogTcp => "syslog-tcp",
            Self::Audit => "audit",
            Self::Journal => "journal",
            Self::EventLog => "event-log",
            Self::Command => "command",
            Self::SyslogUnix => "syslog-unix",
            Self::Agent => "agent",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_stream_is_frozen() {
        let id = StreamId::derive(AgentId([1; 16]), StreamKind::File, "/var/log/syslog");
        assert_eq!(id.to_string(), "af9057a7d49c9b26818fae2ee345e281");
    }
}
