//! Times that people write: RFC 3339, a date and an hour of a zone, a date, or how long ago.
//!
//! A time without a zone is of the zone that was asked for, else UTC. That it was taken so is said: see [`Asked::note`].

use anyhow::Result;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::clock;
use crate::present::rfc3339;
use crate::said::{Said, said};

/// Where a time without a zone is.
#[derive(Clone, Debug)]
pub(crate) struct Zone {
    zone: TimeZone,
    /// Somebody chose it.
    is_chosen: bool,
}

/// A time that somebody wrote.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Unix µs.
    pub(crate) us: u64,
    /// That it was taken as UTC, and how, when it had no zone and none was chosen.
    pub(crate) note: Option<Said>,
}

/// From when to when.
#[derive(Clone, Debug, Default)]
pub(crate) struct Range {
    pub(crate) from_us: Option<u64>,
    pub(crate) to_us: Option<u64>,
    pub(crate) notes: Vec<Said>,
}

impl Zone {
    /// The zone that is called so: `local`, `UTC`, an offset like `+02:00`, or a name like `Europe/Rome`.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn named(field: &str, name: Option<&str>) -> Result<Self> {
        let Some(name) = name else {
            return Ok(Self {
                zone: TimeZone::UTC,
                is_chosen: false,
            });
        };
        let zone = match name {
            "local" => TimeZone::try_system().ok(),
            "Z" | "z" => Some(TimeZone::UTC),
            _ => of_offset(name).or_else(|| TimeZone::get(name).ok()),
        };
        let zone = zone.ok_or_else(|| said!("time.zone", field, name))?;
        Ok(Self {
            zone,
            is_chosen: true,
        })
    }
}

/// `+HH:MM`, or with a minus.
fn of_offset(text: &str) -> Option<TimeZone> {
    let (sign, rest) = match text.strip_prefix('+') {
        Some(rest) => (1, rest),
        None => (-1, text.strip_prefix('-')?),
    };
    let (hours, minutes) = rest.split_once(':').unwrap_or((rest, "0"));
    let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
    if !(0..=14).contains(&hours) || !(0..60).contains(&minutes) {
        return None;
    }
    let offset = jiff::tz::Offset::from_seconds(sign * (hours * 3600 + minutes * 60));
    Some(TimeZone::fixed(offset.ok()?))
}

impl Range {
    /// Reads where a range begins and ends, of the fields that are called so.
    ///
    /// # Errors
    /// One of them is no time, or the range ends before it begins.
    pub(crate) fn parse(
        (from_field, from): (&str, Option<&str>),
        (to_field, to): (&str, Option<&str>),
        zone: &Zone,
    ) -> Result<Self> {
        let from = from.map(|text| parse(from_field, text, zone)).transpose()?;
        let to = to.map(|text| parse(to_field, text, zone)).transpose()?;
        let range = Self {
            from_us: from.as_ref().map(|time| time.us),
            to_us: to.as_ref().map(|time| time.us),
            notes: from
                .into_iter()
                .chain(to)
                .filter_map(|time| time.note)
                .collect(),
        };
        check_order((from_field, range.from_us), (to_field, range.to_us))?;
        Ok(range)
    }
}

/// Refuses a range that ends before it begins, or when it begins.
pub(crate) fn check_order(
    (from_field, from_us): (&str, Option<u64>),
    (to_field, to_us): (&str, Option<u64>),
) -> Result<()> {
    if let (Some(from), Some(to)) = (from_us, to_us)
        && from >= to
    {
        let (from, to) = (rfc3339(from), rfc3339(to));
        return Err(said!("time.reversed", from_field, from, to_field, to).into());
    }
    Ok(())
}

/// Reads a time.
///
/// # Errors
/// It is none; the error shows how one is written.
pub(crate) fn parse(field: &str, text: &str, zone: &Zone) -> Result<Asked> {
    let text = text.trim();
    let whole = |us| Ok(Asked { us, note: None });
    if let Some(ago_us) = ago(text) {
        return whole(clock::unix_us().saturating_sub(ago_us));
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return whole(unix_us(time));
    }
    let wrong = || said!("time.wrong", field, text);
    // A civil time would be read without the zone that is written behind it.
    if text.contains('[') {
        return Err(said!("time.bracket", field, text).into());
    }
    let civil: DateTime = text.parse().map_err(|_| wrong())?;
    let time = civil.to_zoned(zone.zone.clone()).map_err(|_| wrong())?;
    let us = unix_us(time.timestamp());
    let note = || said!("time.as_utc", field, text, rfc3339(us));
    Ok(Asked {
        us,
        note: (!zone.is_chosen).then(note),
    })
}

fn unix_us(time: Timestamp) -> u64 {
    u64::try_from(time.as_microsecond()).unwrap_or(0)
}

/// How long ago, µs: `90m`, `24h`, `7d`.
fn ago(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(seconds * 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, zone: Option<&str>) -> Asked {
        parse("--from", text, &Zone::named("--zone", zone).unwrap()).unwrap()
    }

    #[test]
    fn a_time_without_a_zone_has_its_hour_and_is_said_to_be_taken_as_utc() {
        let exact = at("2026-11-27T18:07:07Z", None);
        assert!(exact.note.is_none());
        for text in ["2026-11-27T18:07:07", "2026-11-27 18:07:07"] {
            let time = at(text, None);
            assert_eq!(time.us, exact.us, "{text}");
            let note = time.note.unwrap().to_string();
            assert!(
                note.contains("2026-11-27T18:07:07.000Z") && note.contains("--zone"),
                "{note}"
            );
        }
        assert_eq!(at("2026-11-27T18:07", None).us, exact.us - 7_000_000);
        assert_eq!(
            at("2026-11-27", None).us,
            at("2026-11-27T00:00:00Z", None).us
        );
    }

    #[test]
    fn a_zone_moves_a_time_and_is_told_by_name_or_offset() {
        let exact = at("2026-11-27T18:07:07Z", None).us;
        for (text, zone) in [
            ("2026-11-27T19:07:07", Some("+01:00")),
            ("2026-11-27 15:37:07", Some("-02:30")),
            ("2026-11-27T18:07:07", Some("UTC")),
            ("2026-11-27T20:07:07+02:00", Some("+01:00")),
        ] {
            let time = at(text, zone);
            assert_eq!((time.us, time.note), (exact, None), "{text} {zone:?}");
        }
        for zone in ["Mars/Olympus", "+25:00", "+1:99", ""] {
            let error = Zone::named("--zone", Some(zone)).unwrap_err().to_string();
            assert!(error.contains("Europe/Rome"), "{error}");
        }
    }

    #[test]
    fn what_is_no_time_and_a_range_that_ends_before_it_begins_are_refused() {
        let zone = Zone::named("--zone", None).unwrap();
        for text in [
            "27/11/2026",
            "yesterday",
            "2026-13-01",
            "",
            "h",
            "-5h",
            "2026-11-27T25:00",
            "12:00",
            "2026-11-27T18:07:07[Europe/Rome]",
        ] {
            let error = parse("--from", text, &zone).unwrap_err().to_string();
            let remedy = ["2026-01-31", "--zone"];
            assert!(
                error.contains("--from") && remedy.iter().any(|word| error.contains(word)),
                "{error}"
            );
        }
        let range = |from, to| Range::parse(("--from", Some(from)), ("--to", Some(to)), &zone);
        for (from, to) in [
            ("1h", "2h"),
            ("2026-11-28", "2026-11-27"),
            ("2026-11-27", "2026-11-27"),
        ] {
            let error = range(from, to).unwrap_err().to_string();
            assert!(
                error.contains("--from") && error.contains("--to"),
                "{error}"
            );
        }
        let right = range("2h", "2026-11-27T10:00").map(|range| range.notes.len());
        assert!(right.is_err() || right.unwrap() == 1);
    }
}
