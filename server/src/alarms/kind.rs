//! What an alarm can be of, its word, and how soon a person must look.

use serde::{Deserialize, Serialize};

/// What happened.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AlarmKind {
    /// Two machines, or a copy of one, show the same identity.
    IdentityUsedTwice,
    /// A known agent came with a credential that was never its own.
    WrongCredential,
    /// An agent signed two histories of one stream.
    ConflictingBatch,
    /// An enrolment token was refused.
    TokenRefused,
    /// An agent that should report does not.
    AgentSilent,
    /// An agent says what it suffers from.
    AgentTrouble,
    /// An agent cannot collect all of a source.
    SourceTrouble,
    /// Intervals are not sealed any more.
    EvidenceStopped,
    /// The server's own clock was set.
    ClockStepped,
    /// An agent's clock is far from the server's.
    AgentClock,
    /// A backup that was due could not be made.
    BackupFailed,
    /// What is archived is not what was sealed.
    ArchiveDamaged,
    /// Somebody on the way dropped, doubled, moved, forged or altered a record.
    Interference,
    /// An agent holds receipts for entries that are not there.
    ReceiptUnmet,
    /// A listener refused connections, or closed some for others.
    PlacesShort,
    /// More new senders of syslog came than become streams of their own.
    ManySenders,
    /// An agent wants more streams than it may have.
    TooManyStreams,
    /// Somebody tries passwords.
    SignInsRefused,
    /// Entries are not taken.
    CannotArchive,
    /// Logs are not sealed.
    CannotSeal,
    /// What is due is not deleted.
    CannotDelete,
    /// The disk takes no writes, or has no room.
    DiskFull,
    /// The disk will have no room soon.
    DiskShort,
    /// File descriptors are nearly used up.
    DescriptorsShort,
    /// Something that is done again and again is not done.
    DutyFailed,
    /// A part of the program met a fault of the program.
    ProgramFault,
    /// The console's certificate ends soon, or has ended.
    CertificateEnds,
    /// An agent was let in whose machine is not quite the one it was.
    MachineChanged,
    /// A configuration was sent or read that cannot be taken.
    ConfigurationRejected,
    /// What an agent keeps on its disk until it is acknowledged has no room left, or soon has none.
    CacheFull,
    /// Datagrams of syslog came faster than they were taken.
    DatagramsDropped,
    /// Alarms do not leave by mail, webhook or syslog.
    AlarmsNotSent,
}

impl AlarmKind {
    /// The word of the API, the style sheet and the catalogues.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::IdentityUsedTwice => "identity-used-twice",
            Self::WrongCredential => "wrong-credential",
            Self::ConflictingBatch => "conflicting-batch",
            Self::TokenRefused => "token-refused",
            Self::AgentSilent => "agent-silent",
            Self::AgentTrouble => "agent-trouble",
            Self::SourceTrouble => "source-trouble",
            Self::EvidenceStopped => "evidence-stopped",
            Self::ClockStepped => "clock-stepped",
            Self::AgentClock => "agent-clock",
            Self::BackupFailed => "backup-failed",
            Self::ArchiveDamaged => "archive-damaged",
            Self::Interference => "interference",
            Self::ReceiptUnmet => "receipt-unmet",
            Self::PlacesShort => "places-short",
            Self::ManySenders => "many-senders",
            Self::TooManyStreams => "too-many-streams",
            Self::SignInsRefused => "sign-ins-refused",
            Self::CannotArchive => "cannot-archive",
            Self::CannotSeal => "cannot-seal",
            Self::CannotDelete => "cannot-delete",
            Self::DiskFull => "disk-full",
            Self::DiskShort => "disk-short",
            Self::DescriptorsShort => "descriptors-short",
            Self::DutyFailed => "duty-failed",
            Self::ProgramFault => "program-fault",
            Self::CertificateEnds => "certificate-ends",
            Self::MachineChanged => "machine-changed",
            Self::ConfigurationRejected => "configuration-rejected",
            Self::CacheFull => "cache-full",
            Self::DatagramsDropped => "datagrams-dropped",
            Self::AlarmsNotSent => "alarms-not-sent",
        }
    }

    /// How soon a person must look.
    pub(crate) fn severity(self) -> Severity {
        match self {
            Self::IdentityUsedTwice
            | Self::ConflictingBatch
            | Self::EvidenceStopped
            | Self::ClockStepped
            | Self::ArchiveDamaged
            | Self::Interference
            | Self::ReceiptUnmet
            | Self::CannotArchive
            | Self::CannotSeal
            | Self::CannotDelete
            | Self::DiskFull
            | Self::ProgramFault => Severity::Critical,
            Self::WrongCredential
            | Self::AgentSilent
            | Self::AgentTrouble
            | Self::SourceTrouble
            | Self::AgentClock
            | Self::BackupFailed
            | Self::PlacesShort
            | Self::TooManyStreams
            | Self::SignInsRefused
            | Self::DiskShort
            | Self::DescriptorsShort
            | Self::DutyFailed
            | Self::CertificateEnds
            | Self::ConfigurationRejected
            | Self::CacheFull
            | Self::DatagramsDropped
            | Self::AlarmsNotSent => Severity::Warning,
            Self::TokenRefused | Self::ManySenders | Self::MachineChanged => Severity::Notice,
        }
    }
}

/// Whether what is raised is an alarm that somebody has seen, and that is not over yet: that one is counted then, and nobody is
/// told anew. A server that was restarted says again what lasts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Known {
    /// It happens, and each time is new.
    Never,
    /// It lasts: its agent and key say what.
    ByKey,
    /// It lasts, and its sentence says what.
    BySaid,
}

impl AlarmKind {
    pub(crate) fn known(self) -> Known {
        match self {
            Self::AgentSilent
            | Self::SourceTrouble
            | Self::AgentClock
            | Self::CannotArchive
            | Self::CannotSeal
            | Self::CannotDelete
            | Self::DiskFull
            | Self::DiskShort
            | Self::DescriptorsShort
            | Self::DutyFailed
            | Self::CertificateEnds
            | Self::CacheFull
            | Self::AlarmsNotSent => Known::ByKey,
            Self::AgentTrouble
            | Self::EvidenceStopped
            | Self::BackupFailed
            | Self::ConfigurationRejected => Known::BySaid,
            Self::IdentityUsedTwice
            | Self::WrongCredential
            | Self::ConflictingBatch
            | Self::TokenRefused
            | Self::ClockStepped
            | Self::ArchiveDamaged
            | Self::Interference
            | Self::ReceiptUnmet
            | Self::PlacesShort
            | Self::ManySenders
            | Self::TooManyStreams
            | Self::SignInsRefused
            | Self::ProgramFault
            | Self::MachineChanged
            | Self::DatagramsDropped => Known::Never,
        }
    }
}

/// How soon a person must look at an alarm.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Severity {
    /// At the next opportunity.
    Notice,
    /// Today.
    Warning,
    /// Now: something is lost, attacked, or does not work.
    Critical,
}

impl Severity {
    pub(crate) const ALL: [Self; 3] = [Self::Notice, Self::Warning, Self::Critical];

    /// The word of the configuration and of webhooks.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// The one that is called so.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|severity| severity.name() == name)
    }

    /// Its number in syslog, RFC 5424 §6.2.1, table 2.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Notice => 5,
            Self::Warning => 4,
            Self::Critical => 2,
        }
    }
}

#[cfg(test)]
impl AlarmKind {
    pub(crate) const ALL: [Self; 32] = [
        Self::IdentityUsedTwice,
        Self::WrongCredential,
        Self::ConflictingBatch,
        Self::TokenRefused,
        Self::AgentSilent,
        Self::AgentTrouble,
        Self::SourceTrouble,
        Self::EvidenceStopped,
        Self::ClockStepped,
        Self::AgentClock,
        Self::BackupFailed,
        Self::ArchiveDamaged,
        Self::Interference,
        Self::ReceiptUnmet,
        Self::PlacesShort,
        Self::ManySenders,
        Self::TooManyStreams,
        Self::SignInsRefused,
        Self::CannotArchive,
        Self::CannotSeal,
        Self::CannotDelete,
        Self::DiskFull,
        Self::DiskShort,
        Self::DescriptorsShort,
        Self::DutyFailed,
        Self::ProgramFault,
        Self::CertificateEnds,
        Self::MachineChanged,
        Self::ConfigurationRejected,
        Self::CacheFull,
        Self::DatagramsDropped,
        Self::AlarmsNotSent,
    ];
}
