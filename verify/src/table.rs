//! Which members a package has, and in which order: a fixed table for each format.
//!
//! ```text
//! format 3                                    format 2 (0.1.0)
//! manifest.json                               manifest.json
//! manifest.sig                                manifest.sig
//! custody.html                                custody.html
//! log.txt.gz, log.2.txt.gz, …                 log.txt
//! entries.csv.gz, … or entries.jsonl.gz, …    entries.csv or entries.jsonl      (may be absent)
//! batches.bin, batches.2.bin, …               batches.bin
//! evidence.json                               evidence.json
//! stamped/DAY.checkpoint, stamped/DAY.tsr     the same                          (for each day, in order; may be absent)
//! ```

use anyhow::{Result, bail, ensure};
use scrinium_protocol::shown;

/// A format of packages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Format {
    /// What 0.1.0 wrote.
    Two,
    Three,
}

impl Format {
    /// The format that a manifest names.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        match name {
            "scrinium-package-2" => Some(Self::Two),
            "scrinium-package-3" => Some(Self::Three),
            _ => None,
        }
    }

    /// What precedes a manifest under the server's signature.
    pub(crate) fn signed_as(self) -> &'static [u8] {
        match self {
            Self::Two => b"scrinium package v2\n",
            Self::Three => b"scrinium package v3\n",
        }
    }

    fn steps(self) -> &'static [Step] {
        match self {
            Self::Two => &STEPS_2,
            Self::Three => &STEPS_3,
        }
    }
}

/// What stands at one place of the table.
struct Step {
    stem: &'static str,
    /// One of them.
    ends: &'static [&'static str],
    is_required: bool,
    /// It may go on in further members.
    has_parts: bool,
}

impl Step {
    const fn one(stem: &'static str, ends: &'static [&'static str]) -> Self {
        Self {
            stem,
            ends,
            is_required: true,
            has_parts: false,
        }
    }

    const fn parts(self) -> Self {
        Self {
            has_parts: true,
            ..self
        }
    }

    const fn optional(self) -> Self {
        Self {
            is_required: false,
            ..self
        }
    }
}

/// Where a reader stands in the table.
pub(crate) struct Table {
    steps: &'static [Step],
    at: usize,
    /// The end that was chosen at this place, and the parts seen.
    seen: Option<(&'static str, usize)>,
    /// The last stamped day, and whether its token is still to come.
    day: String,
    waits_for_token: bool,
    days: usize,
}

impl Table {
    pub(crate) fn new(format: Format) -> Self {
        Self {
            steps: format.steps(),
            at: 0,
            seen: None,
            day: String::new(),
            waits_for_token: false,
            days: 0,
        }
    }

    /// Takes the next member.
    ///
    /// # Errors
    /// It must not stand here.
    pub(crate) fn take(&mut self, name: &str) -> Result<()> {
        while let Some(step) = self.steps.get(self.at) {
            match self.seen {
                None => {
                    let mut ends = step.ends.iter();
                    let is_it = |end: &&&str| name.strip_prefix(step.stem) == Some(**end);
                    if let Some(end) = ends.find(is_it) {
                        self.seen = Some((end, 1));
                        return Ok(());
                    }
                    if step.is_required {
                        bail!(
                            "{} stands where {}{} must stand",
                            shown::name(name),
                            step.stem,
                            step.ends.first().unwrap_or(&"")
                        );
                    }
                }
                Some((end, parts)) => {
                    let next = format!("{}.{}{end}", step.stem, parts + 1);
                    if step.has_parts && name == next && parts < PARTS_MAX {
                        self.seen = Some((end, parts + 1));
                        return Ok(());
                    }
                }
            }
            self.at += 1;
            self.seen = None;
        }
        self.take_stamped(name)
    }

    fn take_stamped(&mut self, name: &str) -> Result<()> {
        let rest = name.strip_prefix("stamped/");
        let is_taken = if self.waits_for_token {
            self.waits_for_token = false;
            rest.and_then(|rest| rest.strip_suffix(".tsr")) == Some(&*self.day)
        } else {
            let day = rest.and_then(|rest| rest.strip_suffix(".checkpoint"));
            let day = day.filter(|day| is_day(day) && *day > &*self.day && self.days < DAYS_MAX);
            self.day = day.unwrap_or_default().to_owned();
            self.waits_for_token = day.is_some();
            self.days += 1;
            day.is_some()
        };
        ensure!(
            is_taken,
            "{} is no member of a package, or stands in a wrong place",
            shown::name(name)
        );
        Ok(())
    }

    /// Says that there is no further member.
    ///
    /// # Errors
    /// One is missing.
    pub(crate) fn finish(self) -> Result<()> {
        let behind = self.at + usize::from(self.seen.is_some());
        let missing = self.steps.iter().skip(behind).find(|step| step.is_required);
        if let Some(step) = missing {
            bail!(
                "{}{} is missing",
                step.stem,
                step.ends.first().unwrap_or(&"")
            );
        }
        ensure!(!self.waits_for_token, "stamped/{}.tsr is missing", self.day);
        Ok(())
    }
}

/// Whether it has the form of a date.
fn is_day(text: &str) -> bool {
    text.len() == 10
        && text.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

/// More than an exabyte of text needs.
const PARTS_MAX: usize = 100_000;
/// A token a day for a century.
const DAYS_MAX: usize = 36_525;

const STEPS_2: [Step; 7] = [
    Step::one("manifest", &[".json"]),
    Step::one("manifest", &[".sig"]),
    Step::one("custody", &[".html"]),
    Step::one("log", &[".txt"]),
    Step::one("entries", &[".csv", ".jsonl"]).optional(),
    Step::one("batches", &[".bin"]),
    Step::one("evidence", &[".json"]),
];
const STEPS_3: [Step; 7] = [
    Step::one("manifest", &[".json"]),
    Step::one("manifest", &[".sig"]),
    Step::one("custody", &[".html"]),
    Step::one("log", &[".txt.gz"]).parts(),
    Step::one("entries", &[".csv.gz", ".jsonl.gz"])
        .parts()
        .optional(),
    Step::one("batches", &[".bin"]).parts(),
    Step::one("evidence", &[".json"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn check(format: Format, names: &[&str]) -> Result<()> {
        let mut table = Table::new(format);
        names.iter().try_for_each(|name| table.take(name))?;
        table.finish()
    }

    const SMALLEST: [&str; 6] = [
        "manifest.json",
        "manifest.sig",
        "custody.html",
        "log.txt.gz",
        "batches.bin",
        "evidence.json",
    ];

    fn with(at: usize, more: &[&'static str]) -> Vec<&'static str> {
        let mut names = SMALLEST.to_vec();
        names.splice(at..at, more.iter().copied());
        names
    }

    #[test]
    fn what_a_server_writes_is_taken() {
        let stamped = ["stamped/2026-01-01.checkpoint", "stamped/2026-01-01.tsr"];
        let later = ["stamped/2026-01-02.checkpoint", "stamped/2026-01-02.tsr"];
        for names in [
            SMALLEST.to_vec(),
            with(4, &["log.2.txt.gz", "log.3.txt.gz"]),
            with(4, &["entries.csv.gz", "entries.2.csv.gz"]),
            with(4, &["entries.jsonl.gz"]),
            with(5, &["batches.2.bin"]),
            with(6, &stamped),
            with(6, &[stamped, later].concat()),
        ] {
            check(Format::Three, &names).unwrap();
        }
        let old = [
            "manifest.json",
            "manifest.sig",
            "custody.html",
            "log.txt",
            "entries.csv",
            "batches.bin",
            "evidence.json",
        ];
        check(Format::Two, &old).unwrap();
        check(Format::Two, &[&old[..], &stamped].concat()).unwrap();
        assert!(check(Format::Three, &old).is_err());
        assert!(check(Format::Two, &SMALLEST).is_err());
    }

    #[test]
    fn every_member_but_one_and_every_other_order_is_refused() {
        for (at, own) in SMALLEST.into_iter().enumerate() {
            let mut names = SMALLEST.to_vec();
            names.remove(at);
            assert!(check(Format::Three, &names).is_err(), "{names:?}");
            for to in 0..at {
                let mut names = SMALLEST.to_vec();
                names.swap(at, to);
                assert!(check(Format::Three, &names).is_err(), "{names:?}");
            }
            assert!(check(Format::Three, &with(at, &[own])).is_err());
        }
    }

    #[test]
    fn what_no_server_writes_is_refused_wherever_it_stands() {
        for name in [
            "log.txt",
            "log.1.txt.gz",
            "log.3.txt.gz",
            "log.02.txt.gz",
            "entries.csv",
            "entries.2.csv.gz",
            "batches.3.bin",
            "custody.2.html",
            "more.txt",
            " ",
            "./log.txt.gz",
            "../x",
            "/x",
            "stamped/",
            "stamped/2026-01-01.tsr",
            "stamped/2026-1-01.checkpoint",
            "stamped/2026-01-01.checkpoint",
            "stamped/../../../x.checkpoint",
            "log.txt.gz ",
            "LOG.TXT.GZ",
        ] {
            for at in 0..=SMALLEST.len() {
                assert!(check(Format::Three, &with(at, &[name])).is_err(), "{name}");
            }
        }
        for more in [
            &["entries.csv.gz", "entries.jsonl.gz"][..],
            &["entries.csv.gz", "entries.2.jsonl.gz"],
            &["log.2.txt.gz", "log.2.txt.gz"],
        ] {
            assert!(check(Format::Three, &with(4, more)).is_err(), "{more:?}");
        }
        let day = |day: &str, end: &str| format!("stamped/2026-01-{day}.{end}");
        for days in [
            ["02", "02", "01", "01"],
            ["01", "01", "01", "01"],
            ["01", "02", "03", "03"],
        ] {
            let names: Vec<String> = days
                .iter()
                .zip(["checkpoint", "tsr"].iter().cycle())
                .map(|(at, end)| day(at, end))
                .collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let all = [&SMALLEST[..], &names].concat();
            assert!(check(Format::Three, &all).is_err(), "{all:?}");
        }
    }
}
