//! What the spool and the agent may use: as a configuration names it, and as it is in force.

use anyhow::{Context as _, Result, bail};

use super::raw;

/// What the spool may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub ram_bytes_max: u64,
    pub disk_bytes_max: u64,
}

/// How much of the machine the agent may use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rates {
    /// Percent of one processor core.
    pub cpu_percent_max: Option<u8>,
    /// Disk space of deleted files that are kept open until they are read.
    pub deleted_bytes_max: u64,
}

/// What of all that one configuration names, each in its bounds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Named {
    pub(super) ram_bytes_max: Option<u64>,
    pub(super) disk_bytes_max: Option<u64>,
    pub(super) deleted_bytes_max: Option<u64>,
    pub(super) upload_bytes_per_s_max: Option<u64>,
    pub(super) cpu_percent_max: Option<u8>,
}

impl Named {
    pub(super) fn new(spool: &raw::Spool, limits: &raw::Limits) -> Result<Self> {
        let bytes = |field: &str, text: &Option<String>| {
            let text = text.as_deref();
            text.map(|text| parse_bytes(field, text)).transpose()
        };
        let named = Self {
            ram_bytes_max: bytes(RAM, &spool.ram_bytes_max)?,
            disk_bytes_max: bytes(DISK, &spool.disk_bytes_max)?,
            deleted_bytes_max: bytes(DELETED, &limits.deleted_bytes_max)?,
            upload_bytes_per_s_max: bytes(UPLOAD, &limits.upload_bytes_per_s_max)?,
            cpu_percent_max: limits.cpu_percent_max,
        };
        named.check()?;
        Ok(named)
    }

    /// Takes what the environment says on top.
    pub(super) fn take_environment(&mut self) -> Result<()> {
        for (name, field, limit) in [
            ("SCRINIUM_RAM_BYTES_MAX", RAM, &mut self.ram_bytes_max),
            ("SCRINIUM_DISK_BYTES_MAX", DISK, &mut self.disk_bytes_max),
        ] {
            if let Ok(text) = std::env::var(name) {
                *limit = Some(parse_bytes(field, &text)?);
            }
        }
        self.check()
    }

    fn check(&self) -> Result<()> {
        if self.ram_bytes_max.is_some_and(|ram| ram < RAM_BYTES_MIN) {
            bail!("{RAM} must be at least 512 KiB: one batch and the next");
        }
        if self.disk_bytes_max.is_some_and(|disk| disk < RAM_BYTES_MIN) {
            bail!("{DISK} must be at least 512 KiB: what RAM holds must go there");
        }
        let upload = self.upload_bytes_per_s_max;
        if upload.is_some_and(|bytes| bytes < UPLOAD_MIN) {
            bail!("{UPLOAD} must be at least 1 KiB");
        }
        let cpu = self.cpu_percent_max;
        if cpu.is_some_and(|percent| !(1..=100).contains(&percent)) {
            bail!("{CPU} must be between 1 and 100");
        }
        if self.limits().disk_bytes_max < self.limits().ram_bytes_max {
            bail!("{DISK} must be at least {RAM}");
        }
        Ok(())
    }

    /// The limits of the spool, when nobody else has a say.
    pub(super) fn limits(&self) -> Limits {
        let disk_bytes_max = self.disk_bytes_max.unwrap_or(DISK_BYTES);
        // Who names little disk alone means RAM too: it goes there.
        let ram = self.ram_bytes_max;
        let ram = ram.unwrap_or_else(|| RAM_BYTES.min(disk_bytes_max));
        Limits {
            ram_bytes_max: ram,
            disk_bytes_max,
        }
    }

    pub(super) fn rates(&self) -> Rates {
        Rates {
            cpu_percent_max: self.cpu_percent_max,
            deleted_bytes_max: self.deleted_bytes_max.unwrap_or(DELETED_BYTES),
        }
    }

    /// What is in force when the server names `central`: of each the smaller. What it does not name stays; what
    /// it names above what is here, be that a default, is not taken: a server that was taken over must not fill
    /// disk or memory of this machine.
    pub(super) fn under(&self, central: &Self) -> Self {
        let (limits, rates) = (self.limits(), self.rates());
        let disk = at_most(limits.disk_bytes_max, central.disk_bytes_max);
        let ram = at_most(limits.ram_bytes_max, central.ram_bytes_max);
        Self {
            ram_bytes_max: Some(ram.min(disk)),
            disk_bytes_max: Some(disk),
            deleted_bytes_max: Some(at_most(rates.deleted_bytes_max, central.deleted_bytes_max)),
            upload_bytes_per_s_max: smaller(
                self.upload_bytes_per_s_max,
                central.upload_bytes_per_s_max,
            ),
            cpu_percent_max: smaller(self.cpu_percent_max, central.cpu_percent_max),
        }
    }

    /// Each by its name: the number that this configuration says, whether it is one of bytes, and the one when
    /// nobody says any.
    pub(super) fn each(&self) -> [(&'static str, Option<u64>, bool, Option<u64>); 5] {
        let cpu = self.cpu_percent_max.map(u64::from);
        let ram = Self {
            ram_bytes_max: None,
            ..*self
        };
        let ram = ram.limits().ram_bytes_max;
        [
            (RAM, self.ram_bytes_max, true, Some(ram)),
            (DISK, self.disk_bytes_max, true, Some(DISK_BYTES)),
            (DELETED, self.deleted_bytes_max, true, Some(DELETED_BYTES)),
            (UPLOAD, self.upload_bytes_per_s_max, true, None),
            (CPU, cpu, false, None),
        ]
    }
}

fn at_most(own: u64, central: Option<u64>) -> u64 {
    central.map_or(own, |central| central.min(own))
}

/// The smaller of two limits, where none is no limit.
fn smaller<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// A number of bytes: `1048576`, `512 KiB`, `16 MiB`, `1 GiB`.
pub(super) fn parse_bytes(field: &str, text: &str) -> Result<u64> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at_checked(digits).unwrap_or((text, ""));
    let unit = unit.trim();
    let unit = match UNITS.iter().find(|(name, _)| *name == unit) {
        Some((_, bytes)) => *bytes,
        None if unit.is_empty() => 1,
        None => bail!("{field}: unit '{unit}' must be B, KiB, MiB, GiB or TiB"),
    };
    let number = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit));
    number.with_context(|| format!("{field}: '{text}' must be a number of bytes like \"16 MiB\""))
}

/// The same, written: in the largest unit of which it is a whole number.
pub(super) fn shown_bytes(bytes: u64) -> String {
    let fits = |(_, unit): &&(&str, u64)| bytes.is_multiple_of(*unit) && bytes >= *unit;
    let (name, unit) = UNITS.iter().rev().find(fits).unwrap_or(&("B", 1));
    format!("{} {name}", bytes / unit)
}

const UNITS: [(&str, u64); 5] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];
const RAM: &str = "spool.ram_bytes_max";
const DISK: &str = "spool.disk_bytes_max";
const DELETED: &str = "limits.deleted_bytes_max";
const UPLOAD: &str = "limits.upload_bytes_per_s_max";
const CPU: &str = "limits.cpu_percent_max";
/// What is in force when nobody says anything, in bytes.
const RAM_BYTES: u64 = 16 << 20;
const DISK_BYTES: u64 = 1 << 30;
const DELETED_BYTES: u64 = 1 << 30;
const RAM_BYTES_MIN: u64 = 512 << 10;
const UPLOAD_MIN: u64 = 1 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_they_are_read() {
        for (text, bytes) in [
            ("16 MiB", 16 << 20),
            ("1 GiB", 1 << 30),
            ("1536 KiB", 1536 << 10),
            ("1025 B", 1025),
            ("0 B", 0),
        ] {
            assert_eq!(shown_bytes(bytes), text);
            assert_eq!(parse_bytes("x", text).unwrap(), bytes);
        }
    }

    #[test]
    fn the_server_narrows_what_the_machine_says_and_never_widens_it() {
        let own = Named {
            disk_bytes_max: Some(64 << 20),
            cpu_percent_max: Some(20),
            ..Named::default()
        };
        let nothing = own.under(&Named::default());
        assert_eq!(nothing.limits().disk_bytes_max, 64 << 20);
        assert_eq!(nothing.limits().ram_bytes_max, RAM_BYTES);
        assert_eq!(nothing.rates(), own.rates());
        let more = Named {
            ram_bytes_max: Some(1 << 40),
            disk_bytes_max: Some(1 << 40),
            deleted_bytes_max: Some(1 << 40),
            upload_bytes_per_s_max: Some(5 << 10),
            cpu_percent_max: Some(90),
        };
        let both = own.under(&more);
        assert_eq!(both.limits().disk_bytes_max, 64 << 20);
        assert_eq!(both.limits().ram_bytes_max, RAM_BYTES);
        let rates = both.rates();
        assert_eq!(rates.deleted_bytes_max, DELETED_BYTES);
        assert_eq!(rates.cpu_percent_max, Some(20));
        let less = Named {
            disk_bytes_max: Some(1 << 20),
            ..Named::default()
        };
        let both = own.under(&less).limits();
        assert_eq!(
            (both.ram_bytes_max, both.disk_bytes_max),
            (1 << 20, 1 << 20)
        );
    }
}
