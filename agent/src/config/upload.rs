//! How fast the agent may send, by day of the week and hour of the day.
//!
//! Hours are those that the clock on this machine's wall shows: where an hour is skipped or comes twice, so does what is
//! said of it. The clock is looked at again and again, so one that was set counts from then on.

use anyhow::{Context as _, Result, bail};
use jiff::civil::{DateTime, Weekday};
use jiff::{Timestamp, ToSpan as _, Zoned};

use super::limits::parse_bytes;
use super::raw;

/// What the configurations say, the machine's and the server's: the lowest limit counts, so none lifts another's.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Uploads {
    each: Vec<Upload>,
}

/// What one configuration says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Upload {
    /// Bytes a second while no window is open.
    otherwise: Option<u64>,
    /// The first that is open counts.
    windows: Vec<Window>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Window {
    /// Whether it opens on a day, from Monday on.
    days: [bool; 7],
    /// Minutes of the day. When it closes before it opens, that is on the next day.
    opens: u16,
    closes: u16,
    /// Bytes a second; `None` for as many as go.
    bytes_per_s_max: Option<u64>,
}

impl Uploads {
    /// Of one configuration.
    pub(super) fn new(raw: &raw::Limits) -> Result<Self> {
        if raw.upload.len() > WINDOWS_MAX {
            bail!("limits.upload has at most {WINDOWS_MAX} windows");
        }
        let otherwise = raw.upload_bytes_per_s_max.as_deref();
        let otherwise = otherwise.map(|text| rate("limits.upload_bytes_per_s_max", text));
        let windows = raw.upload.iter().map(Window::new);
        let upload = Upload {
            otherwise: otherwise.transpose()?,
            windows: windows.collect::<Result<_>>()?,
        };
        Ok(Self { each: vec![upload] })
    }

    /// With what the server says on top.
    pub(super) fn under(&self, central: &Self) -> Self {
        let each = self.each.iter().chain(&central.each).cloned();
        Self {
            each: each.collect(),
        }
    }

    /// Bytes a second at this time of the wall clock; `None` for as many as go.
    pub(crate) fn rate_at(&self, at: DateTime) -> Option<u64> {
        self.each
            .iter()
            .filter_map(|upload| upload.rate_at(at))
            .min()
    }

    /// Whether it depends on the time at all.
    pub(crate) fn has_windows(&self) -> bool {
        self.each.iter().any(|upload| !upload.windows.is_empty())
    }

    /// When [`Self::rate_at`] is something else for the first time after `now`.
    pub(crate) fn changes_after(&self, now: &Zoned) -> Option<Zoned> {
        let rate = self.rate_at(now.datetime());
        let windows = || self.each.iter().flat_map(|upload| &upload.windows);
        let zone = now.time_zone();
        let mut edges: Vec<Timestamp> = Vec::new();
        for day in 0..=DAYS_LOOKED_AHEAD {
            let Ok(date) = now.date().checked_add(day.days()) else {
                break;
            };
            let midnight = date.to_datetime(jiff::civil::Time::midnight());
            let minutes = windows().flat_map(|window| [window.opens, window.closes]);
            for minute in minutes.chain([0]) {
                let Ok(at) = midnight.checked_add(i64::from(minute).minutes()) else {
                    continue;
                };
                // In an hour that comes twice there are two.
                let both = zone.to_ambiguous_zoned(at);
                edges.extend(both.clone().earlier().map(|zoned| zoned.timestamp()));
                edges.extend(both.later().map(|zoned| zoned.timestamp()));
            }
        }
        // What an hour that is skipped or repeated opens and closes.
        let steps = zone.following(now.timestamp());
        edges.extend(steps.take(2).map(|step| step.timestamp()));
        edges.sort_unstable();
        let later = edges.into_iter().filter(|edge| *edge > now.timestamp());
        let mut later = later.map(|edge| edge.to_zoned(zone.clone()));
        later.find(|edge| self.rate_at(edge.datetime()) != rate)
    }
}

impl Upload {
    fn rate_at(&self, at: DateTime) -> Option<u64> {
        let open = self.windows.iter().find(|window| window.is_open(at));
        open.map_or(self.otherwise, |window| window.bytes_per_s_max)
    }
}

impl Window {
    fn new(raw: &raw::Upload) -> Result<Self> {
        if raw.days.is_none() && raw.hours.is_none() {
            bail!("limits.upload: a window says days, hours, or both");
        }
        let days = raw.days.as_deref().map(days).transpose()?;
        let hours = raw.hours.as_deref().map(hours).transpose()?;
        let (opens, closes) = hours.unwrap_or((0, MINUTES));
        let bytes_per_s_max = match raw.bytes_per_s_max.trim() {
            UNLIMITED => None,
            text => Some(rate("limits.upload.bytes_per_s_max", text)?),
        };
        Ok(Self {
            days: days.unwrap_or([true; 7]),
            opens,
            closes,
            bytes_per_s_max,
        })
    }

    fn is_open(&self, at: DateTime) -> bool {
        let minute = u16::try_from(i32::from(at.hour()) * 60 + i32::from(at.minute()));
        let minute = minute.unwrap_or_default();
        let opens_on = |day: Weekday| {
            let index = usize::try_from(day.to_monday_zero_offset()).unwrap_or_default();
            self.days.get(index).copied().unwrap_or_default()
        };
        let today = at.date().weekday();
        if self.opens < self.closes {
            return opens_on(today) && (self.opens..self.closes).contains(&minute);
        }
        opens_on(today) && minute >= self.opens
            || opens_on(today.previous()) && minute < self.closes
    }
}

/// Bytes a second: `64 KiB`.
fn rate(field: &str, text: &str) -> Result<u64> {
    let bytes = parse_bytes(field, text)?;
    if bytes < UPLOAD_MIN {
        bail!("{field} must be at least 1 KiB");
    }
    Ok(bytes)
}

/// `Mon-Fri`, `Sat,Sun`, `Fri-Mon`.
fn days(text: &str) -> Result<[bool; 7]> {
    let wrong = || format!("limits.upload.days: '{text}' must be like \"Mon-Fri\" or \"Sat,Sun\"");
    let day = |name: &str| {
        let mut names = DAYS.iter();
        names.position(|known| known.eq_ignore_ascii_case(name.trim()))
    };
    let mut days = [false; 7];
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = day(first).zip(day(last)).with_context(wrong)?;
        // From Friday to Monday goes through Sunday.
        let count = (last + 7 - first) % 7;
        for step in 0..=count {
            if let Some(day) = days.get_mut((first + step) % 7) {
                *day = true;
            }
        }
    }
    Ok(days)
}

/// `08:00-18:00`, `22:00-06:00`; minutes of the day.
fn hours(text: &str) -> Result<(u16, u16)> {
    let wrong =
        || format!("limits.upload.hours: '{text}' must be like \"08:00-18:00\" or \"22:00-06:00\"");
    let minute = |text: &str| {
        let (hour, minute) = text.trim().split_once(':')?;
        let is_number = |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        if !is_number(hour) || !is_number(minute) {
            return None;
        }
        let (hour, minute) = (hour.parse::<u16>().ok()?, minute.parse::<u16>().ok()?);
        (minute < 60 && hour * 60 + minute <= MINUTES).then_some(hour * 60 + minute)
    };
    let (opens, closes) = text.split_once('-').with_context(wrong)?;
    let (opens, closes) = minute(opens).zip(minute(closes)).with_context(wrong)?;
    if opens == closes || opens == MINUTES {
        bail!("{}", wrong());
    }
    Ok((opens, closes))
}

/// Of a day.
const MINUTES: u16 = 24 * 60;
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
/// A window in which there is no limit, while there is one otherwise.
const UNLIMITED: &str = "none";
/// Less would not carry what an agent says of itself.
const UPLOAD_MIN: u64 = 1 << 10;
/// Of one configuration: each is compared with the clock for every 16 KiB that are sent.
const WINDOWS_MAX: usize = 32;
/// Each day of the week has come by then.
const DAYS_LOOKED_AHEAD: i32 = 8;

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::super::Config;
    use super::*;

    const OFFICE: &str = "[limits]\nupload_bytes_per_s_max = '1 MiB'\n[[limits.upload]]\ndays = 'Mon-Fri'\nhours = '08:00-18:00'\nbytes_per_s_max = '64 KiB'\n[[limits.upload]]\ndays = 'Fri'\nhours = '22:00-06:00'\nbytes_per_s_max = 'none'\n";

    fn uploads(text: &str) -> Uploads {
        Config::parse(text).unwrap().uploads
    }

    fn at(text: &str) -> DateTime {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_open_window_counts_and_the_general_limit_otherwise() {
        let uploads = uploads(OFFICE);
        // 2026-11-27 is a Friday.
        for (time, rate) in [
            ("2026-11-27T07:59", Some(1 << 20)),
            ("2026-11-27T08:00", Some(64 << 10)),
            ("2026-11-27T17:59:59", Some(64 << 10)),
            ("2026-11-27T18:00", Some(1 << 20)),
            ("2026-11-27T22:00", None),
            ("2026-11-28T00:00", None),
            ("2026-11-28T05:59", None),
            ("2026-11-28T06:00", Some(1 << 20)),
            ("2026-11-28T12:00", Some(1 << 20)),
            ("2026-11-28T23:00", Some(1 << 20)),
            ("2026-11-27T05:00", Some(1 << 20)),
        ] {
            assert_eq!(uploads.rate_at(at(time)), rate, "{time}");
        }
    }

    #[test]
    fn the_server_may_lower_what_this_machine_allows_and_never_lift_it() {
        let local = Config::parse(OFFICE).unwrap();
        let with = |central: &str| {
            let central = Config::parse_central(central).unwrap();
            local.with_central(&central).uploads
        };
        let (office, evening, night) = ("2026-11-27T10:00", "2026-11-27T20:00", "2026-11-27T23:00");
        for (central, rates) in [
            ("", [Some(64 << 10), Some(1 << 20), None]),
            (
                "[limits]\nupload_bytes_per_s_max = '1 GiB'",
                [Some(64 << 10), Some(1 << 20), Some(1 << 30)],
            ),
            (
                "[limits]\nupload_bytes_per_s_max = '2 KiB'",
                [Some(2 << 10); 3],
            ),
            (
                "[[limits.upload]]\nhours = '00:00-24:00'\nbytes_per_s_max = 'none'",
                [Some(64 << 10), Some(1 << 20), None],
            ),
            (
                "[[limits.upload]]\nhours = '19:00-21:00'\nbytes_per_s_max = '2 KiB'",
                [Some(64 << 10), Some(2 << 10), None],
            ),
        ] {
            let uploads = with(central);
            let seen = [office, evening, night].map(|time| uploads.rate_at(at(time)));
            assert_eq!(seen, rates, "{central}");
        }
    }

    #[test]
    fn the_next_change_is_known_across_days_and_summer_time() {
        // As in Rome: forward on the last Sunday of March at 2, back on that of October at 3.
        let rome = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let changes = |text: &str, now: &str| {
            let uploads = uploads(text);
            let now = now.parse::<Timestamp>().unwrap();
            let changes = uploads.changes_after(&now.to_zoned(rome.clone()));
            changes.map_or_else(|| "-".into(), |zoned| zoned.timestamp().to_string())
        };
        assert_eq!(
            changes(OFFICE, "2026-11-27T10:00:00Z"),
            "2026-11-27T17:00:00Z"
        );
        // Over the weekend.
        assert_eq!(
            changes(OFFICE, "2026-11-28T10:00:00Z"),
            "2026-11-30T07:00:00Z"
        );
        let general = "[limits]\nupload_bytes_per_s_max = '1 MiB'";
        assert_eq!(changes(general, "2026-11-28T10:00:00Z"), "-");
        let night = "[[limits.upload]]\nhours = '02:30-04:00'\nbytes_per_s_max = '2 KiB'";
        // 02:30 is skipped: it opens at 03:00 of summer time.
        assert_eq!(
            changes(night, "2026-03-29T00:10:00Z"),
            "2026-03-29T01:00:00Z"
        );
        // 02:30 comes twice: it opens with the first, closes when the hour begins again, and opens with the second.
        for (now, expected) in [
            ("2026-10-25T00:10:00Z", "2026-10-25T00:30:00Z"),
            ("2026-10-25T00:40:00Z", "2026-10-25T01:00:00Z"),
            ("2026-10-25T01:10:00Z", "2026-10-25T01:30:00Z"),
            ("2026-10-25T01:40:00Z", "2026-10-25T03:00:00Z"),
        ] {
            assert_eq!(changes(night, now), expected, "{now}");
        }
    }

    #[test]
    fn what_is_wrong_in_a_window_is_named() {
        let window =
            |fields: &str| format!("[[limits.upload]]\nbytes_per_s_max = '2 KiB'\n{fields}");
        for (fields, name) in [
            ("", "limits.upload"),
            ("days = 'Mo'", "limits.upload.days"),
            ("days = ''", "limits.upload.days"),
            ("hours = '8-18'", "limits.upload.hours"),
            ("hours = '08:00-08:00'", "limits.upload.hours"),
            ("hours = '24:00-08:00'", "limits.upload.hours"),
            ("hours = '08:60-09:00'", "limits.upload.hours"),
            ("hours = '08:00-24:01'", "limits.upload.hours"),
            ("hours = '+8:00-09:00'", "limits.upload.hours"),
        ] {
            let error = format!("{:#}", Config::parse(&window(fields)).unwrap_err());
            assert!(error.contains(name), "{fields}: {error}");
        }
        let slow = "[[limits.upload]]\ndays = 'Mon'\nbytes_per_s_max = '1023'";
        let error = format!("{:#}", Config::parse(slow).unwrap_err());
        assert!(error.contains("limits.upload.bytes_per_s_max"), "{error}");
        let day = window("days = 'Sun, fri-MON'\n");
        assert!(Config::parse(&day.repeat(WINDOWS_MAX)).is_ok());
        let error = Config::parse(&day.repeat(WINDOWS_MAX + 1)).unwrap_err();
        assert!(format!("{error:#}").contains("at most 32"));
        let friday_to_monday = [true, false, false, false, true, true, true];
        assert_eq!(days("Fri-Mon").unwrap(), friday_to_monday);
    }
}
