//! What a syslog message says of itself: RFC 5424, RFC 3164, and what senders make of them.
//!
//! Parsing never fails and never changes the bytes: what is not recognised is message text. The
//! fields are derived; the bytes are the record.

/// A parsed message, borrowing from its bytes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Message<'a> {
    /// 0 (kernel) to 23 (local7).
    pub facility: Option<u8>,
    /// 0 (emergency) to 7 (debug).
    pub severity: Option<u8>,
    pub time: Option<EventTime>,
    pub host: Option<&'a str>,
    pub app: Option<&'a str>,
    pub process: Option<&'a str>,
    pub message_id: Option<&'a str>,
    /// The text after all headers and structured data.
    pub text: &'a [u8],
}

/// A time as the sender wrote it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EventTime {
    /// With year and zone: Unix µs.
    Instant(i64),
    /// Without year and zone, as RFC 3164 has it.
    Yearless {
        /// 1 to 12.
        month: u8,
        /// 1 to 31.
        day: u8,
        hour: u8,
        minute: u8,
        second: u8,
    },
}

impl EventTime {
    /// Interprets a yearless time in UTC in the year that brings it nearest to when it was
    /// received; returns Unix µs.
    #[must_use]
    pub fn resolve(self, received_us: i64) -> i64 {
        match self {
            Self::Instant(us) => us,
            Self::Yearless {
                month,
                day,
                hour,
                minute,
                second,
            } => {
                let (year, _, _) = civil_from_days(received_us.div_euclid(DAY_US));
                let clock = (i64::from(hour) * 60 + i64::from(minute)) * 60 + i64::from(second);
                [year - 1, year, year + 1]
                    .into_iter()
                    .filter(|&year| u32::from(day) <= days_in_month(year, month.into()))
                    .map(|year| {
                        let days = days_from_civil(year, month.into(), day.into());
                        days * DAY_US + clock * 1_000_000
                    })
                    .min_by_key(|us| us.abs_diff(received_us))
                    .unwrap_or(received_us)
            }
        }
    }
}

/// Parses a message without its transport framing.
#[must_use]
pub fn parse(bytes: &[u8]) -> Message<'_> {
    let mut message = Message::default();
    let bytes = trim_end(bytes);
    let mut rest = bytes;
    if let Some((priority, after)) = priority(rest) {
        message.facility = Some(priority >> 3);
        message.severity = Some(priority & 7);
        rest = after;
    }
    if message.severity.is_some() && rfc5424(rest, &mut message).is_some() {
        return message;
    }
    rfc3164(rest, &mut message);
    message
}

/// `<PRI>`, 0 to 191.
fn priority(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let rest = bytes.strip_prefix(b"<")?;
    let len = rest.iter().take(4).position(|&byte| byte == b'>')?;
    let (digits, rest) = rest.split_at_checked(len)?;
    let value: u8 = number(digits)?.try_into().ok()?;
    if value > 191 {
        return None;
    }
    Some((value, rest.get(1..)?))
}

//= https://www.rfc-editor.org/rfc/rfc5424#section-6
//# HEADER = PRI VERSION SP TIMESTAMP SP HOSTNAME SP APP-NAME SP PROCID SP MSGID
fn rfc5424<'a>(rest: &'a [u8], message: &mut Message<'a>) -> Option<()> {
    let rest = rest.strip_prefix(b"1 ")?;
    let (time, rest) = field(rest)?;
    let time = match time {
        "-" => None,
        text => Some(EventTime::Instant(rfc3339(text.as_bytes())?)),
    };
    let (host, rest) = field(rest)?;
    let (app, rest) = field(rest)?;
    let (process, rest) = field(rest)?;
    let (message_id, rest) = field(rest)?;
    let rest = structured_data(rest)?;
    message.time = time;
    message.host = nil(host);
    message.app = nil(app);
    message.process = nil(process);
    message.message_id = nil(message_id);
    let text = rest.strip_prefix(b" ").unwrap_or(rest);
    message.text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    Some(())
}

/// Skips `-` or a run of `[id name="value" …]`; returns what follows.
fn structured_data(bytes: &[u8]) -> Option<&[u8]> {
    if let Some(rest) = bytes.strip_prefix(b"-") {
        return Some(rest);
    }
    let mut rest = bytes;
    while let Some(element) = rest.strip_prefix(b"[") {
        let (mut quoted, mut escaped) = (false, false);
        let end = element.iter().position(|&byte| {
            if escaped {
                escaped = false;
                return false;
            }
            match byte {
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                b']' => return !quoted,
                _ => {}
            }
            false
        })?;
        rest = element.get(end + 1..)?;
    }
    (rest.len() < bytes.len()).then_some(rest)
}

/// `Mmm dd hh:mm:ss HOST TAG[pid]: text`, with each part optional; or an RFC 3339 time instead, as
/// rsyslog's file format has it; or Meraki's `1 epoch.nanoseconds HOST text`.
fn rfc3164<'a>(rest: &'a [u8], message: &mut Message<'a>) {
    message.text = rest;
    let Some((time, after)) = leading_time(rest) else {
        tag(rest, message);
        return;
    };
    message.time = Some(time);
    message.text = after;
    let Some((host, after_host)) = field(after) else {
        return;
    };
    // A host name has no colon or bracket at its end: that is the tag of a sender without host.
    if host.ends_with(':') || host.contains('[') {
        tag(after, message);
        return;
    }
    message.host = Some(host);
    message.text = after_host;
    tag(after_host, message);
}

fn leading_time(rest: &[u8]) -> Option<(EventTime, &[u8])> {
    if let Some((time, after)) = bsd_time(rest) {
        return Some((time, after));
    }
    let (word, after) = field(rest)?;
    if let Some(us) = rfc3339(word.as_bytes()) {
        return Some((EventTime::Instant(us), after));
    }
    if word == "1" {
        let (epoch, after) = field(after)?;
        return Some((EventTime::Instant(epoch_us(epoch.as_bytes())?), after));
    }
    None
}

//= https://www.rfc-editor.org/rfc/rfc3164#section-4.1.2
//# The TIMESTAMP field is the local time and is in the format of "Mmm dd hh:mm:ss"
fn bsd_time(bytes: &[u8]) -> Option<(EventTime, &[u8])> {
    let (name, rest) = bytes.split_at_checked(3)?;
    let month = MONTHS.iter().position(|month| month.as_bytes() == name)?;
    let rest = rest.strip_prefix(b" ")?;
    let rest = rest.strip_prefix(b" ").unwrap_or(rest); // day padded with a space, or not
    let digits = rest
        .iter()
        .take(2)
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let (day, rest) = rest.split_at_checked(digits)?;
    let rest = rest.strip_prefix(b" ")?;
    // Cisco writes the year between day and time.
    let (year, rest) = match rest.split_at_checked(5) {
        Some((year, after)) if year.ends_with(b" ") && number(year.get(..4)?).is_some() => {
            (number(year.get(..4)?), after)
        }
        _ => (None, rest),
    };
    let (clock, after) = rest.split_at_checked(8)?;
    let [h1, h2, b':', m1, m2, b':', s1, s2] = *clock else {
        return None;
    };
    let (hour, minute, second) = (number(&[h1, h2])?, number(&[m1, m2])?, number(&[s1, s2])?);
    let (day, month) = (number(day)?, u32::try_from(month).ok()? + 1);
    if hour > 23 || minute > 59 || second > 60 || !(1..=31).contains(&day) {
        return None;
    }
    let after = match after.strip_prefix(b".") {
        Some(fraction) => {
            let digits = fraction
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .count();
            fraction.get(digits..)?
        }
        None => after,
    };
    let after = after.strip_prefix(b":").unwrap_or(after);
    let after = after.strip_prefix(b" ").unwrap_or(after);
    let time = match year {
        Some(year) => {
            let year = i64::from(year);
            if day > days_in_month(year, month) {
                return None;
            }
            let days = days_from_civil(year, month, day);
            let clock = i64::from((hour * 60 + minute) * 60 + second);
            EventTime::Instant(days * DAY_US + clock * 1_000_000)
        }
        None => EventTime::Yearless {
            month: month.try_into().ok()?,
            day: day.try_into().ok()?,
            hour: hour.try_into().ok()?,
            minute: minute.try_into().ok()?,
            second: second.try_into().ok()?,
        },
    };
    Some((time, after))
}

/// `TAG[pid]: text`; the text keeps everything when there is no tag.
fn tag<'a>(bytes: &'a [u8], message: &mut Message<'a>) {
    let len = bytes
        .iter()
        .take(TAG_LEN_MAX + 1)
        .take_while(|byte| {
            byte.is_ascii_graphic() && !matches!(byte, b':' | b'[' | b'<' | b'"' | b'=')
        })
        .count();
    if len == 0 || len > TAG_LEN_MAX {
        return;
    }
    let Some((name, rest)) = bytes.split_at_checked(len) else {
        return;
    };
    let Ok(name) = str::from_utf8(name) else {
        return;
    };
    let (process, rest) = match rest.strip_prefix(b"[") {
        Some(inner) => {
            let Some(end) = inner
                .iter()
                .take(TAG_LEN_MAX)
                .position(|&byte| byte == b']')
            else {
                return;
            };
            let (process, rest) = inner.split_at(end);
            (
                str::from_utf8(process).ok(),
                rest.get(1..).unwrap_or_default(),
            )
        }
        None => (None, rest),
    };
    let Some(text) = rest.strip_prefix(b":") else {
        return;
    };
    message.app = Some(name);
    message.process = process;
    message.text = text.strip_prefix(b" ").unwrap_or(text);
}

/// `YYYY-MM-DDThh:mm:ss[.fraction](Z|±hh:mm)` to Unix µs (RFC 3339 §5.6).
fn rfc3339(text: &[u8]) -> Option<i64> {
    let (date, rest) = text.split_at_checked(19)?;
    let [
        y1,
        y2,
        y3,
        y4,
        b'-',
        o1,
        o2,
        b'-',
        d1,
        d2,
        b'T' | b't',
        h1,
        h2,
        b':',
        m1,
        m2,
        b':',
        s1,
        s2,
    ] = *date
    else {
        return None;
    };
    let year = i64::from(number(&[y1, y2, y3, y4])?);
    let (month, day) = (number(&[o1, o2])?, number(&[d1, d2])?);
    let (hour, minute, second) = (number(&[h1, h2])?, number(&[m1, m2])?, number(&[s1, s2])?);
    if !(1..=12).contains(&month) || day == 0 || day > days_in_month(year, month) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (micros, rest) = match rest.strip_prefix(b".") {
        Some(fraction) => fraction_us(fraction)?,
        None => (0, rest),
    };
    let offset_s = match *rest {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (number(&[h1, h2])?, number(&[m1, m2])?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let offset = i64::from(hours * 60 + minutes) * 60;
            if sign == b'-' { -offset } else { offset }
        }
        _ => return None,
    };
    let clock = i64::from((hour * 60 + minute) * 60 + second);
    let days = days_from_civil(year, month, day);
    Some((days * 86_400 + clock - offset_s) * 1_000_000 + micros)
}

/// `seconds.fraction` since 1970 to Unix µs.
fn epoch_us(text: &[u8]) -> Option<i64> {
    let dot = text.iter().position(|&byte| byte == b'.')?;
    let (seconds, fraction) = text.split_at_checked(dot)?;
    let (micros, rest) = fraction_us(fraction.get(1..)?)?;
    (rest.is_empty() && (8..=10).contains(&seconds.len())).then_some(())?;
    let seconds = str::from_utf8(seconds).ok()?.parse::<i64>().ok()?;
    Some(seconds * 1_000_000 + micros)
}

/// Digits after a point to µs, and what follows them.
fn fraction_us(text: &[u8]) -> Option<(i64, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 || digits > 9 {
        return None;
    }
    let mut micros = 0;
    for place in 0..6 {
        let digit = text
            .get(place)
            .filter(|_| place < digits)
            .map_or(0, |byte| byte - b'0');
        micros = micros * 10 + i64::from(digit);
    }
    Some((micros, text.get(digits..)?))
}

/// The next word and what follows its space.
fn field(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes
        .iter()
        .take(FIELD_LEN_MAX + 1)
        .position(|&byte| byte == b' ');
    let end = end.or_else(|| (bytes.len() <= FIELD_LEN_MAX).then_some(bytes.len()))?;
    let (word, rest) = bytes.split_at_checked(end)?;
    if word.is_empty() || !word.iter().all(u8::is_ascii_graphic) {
        return None;
    }
    Some((
        str::from_utf8(word).ok()?,
        rest.get(1..).unwrap_or_default(),
    ))
}

fn nil(text: &str) -> Option<&str> {
    (text != "-").then_some(text)
}

fn number(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || digits.len() > 9 {
        return None;
    }
    digits.iter().try_fold(0, |value: u32, byte| {
        byte.is_ascii_digit()
            .then(|| value * 10 + u32::from(byte - b'0'))
    })
}

/// Senders end messages with a line feed, a NUL, both or neither.
fn trim_end(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., b'\n' | b'\r' | 0] = bytes {
        bytes = rest;
    }
    bytes
}

/// Days since 1970-01-01 of a proleptic Gregorian date.
fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    // Counts years from March, so the leap day is the last of the year.
    let (year, month) = if month <= 2 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let day_of_year = (153 * i64::from(month) + 2) / 5 + i64::from(day) - 1;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year
        - 719_468
}

/// A time in Unix µs as RFC 5424 section 6.2.3 writes it, in UTC.
#[must_use]
pub fn timestamp(unix_us: i64) -> String {
    let (year, month, day) = civil_from_days(unix_us.div_euclid(DAY_US));
    let us = unix_us.rem_euclid(DAY_US);
    let (hour, minute) = (us / 3_600_000_000, us / 60_000_000 % 60);
    let (second, micros) = (us / 1_000_000 % 60, us % 1_000_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Year, month and day of a day since 1970-01-01.
fn civil_from_days(days: i64) -> (i64, u32, u32) {
    // Never past the year looked for: years have 365 or 366 days.
    let mut year = 1970 + days.div_euclid(if days < 0 { 365 } else { 366 });
    while days_from_civil(year + 1, 1, 1) <= days {
        year += 1;
    }
    let mut month = 1;
    while month < 12 && days_from_civil(year, month + 1, 1) <= days {
        month += 1;
    }
    let day = days - days_from_civil(year, month, 1) + 1;
    (year, month, u32::try_from(day).unwrap_or(1))
}

fn days_in_month(year: i64, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

const DAY_US: i64 = 86_400_000_000;
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
const FIELD_LEN_MAX: usize = 255;
const TAG_LEN_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5424 §6.5, example 1 and 3.
    #[test]
    fn rfc_5424_messages_give_every_field() {
        let message = parse(b"<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \xef\xbb\xbf'su root' failed");
        assert_eq!((message.facility, message.severity), (Some(4), Some(2)));
        assert_eq!(
            message.time,
            Some(EventTime::Instant(1_065_910_455_003_000))
        );
        assert_eq!(message.host, Some("mymachine.example.com"));
        assert_eq!(
            (message.app, message.process, message.message_id),
            (Some("su"), None, Some("ID47"))
        );
        assert_eq!(message.text, b"'su root' failed");

        let message = parse(br#"<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 evntslog - ID47 [a@1 x="q\"]"][b y="2"] text"#);
        assert_eq!(
            message.time,
            Some(EventTime::Instant(1_061_727_255_000_003))
        );
        assert_eq!(message.text, b"text");
    }

    #[test]
    fn rfc_3164_messages_give_host_tag_and_pid() {
        let message = parse(b"<38>Oct  9 22:33:20 hlfedora auth[1234]: login ok\n\0");
        assert_eq!(message.severity, Some(6));
        assert_eq!(message.host, Some("hlfedora"));
        assert_eq!((message.app, message.process), (Some("auth"), Some("1234")));
        assert_eq!(message.text, b"login ok");
    }

    #[test]
    fn what_is_not_recognised_is_text() {
        for text in [
            &b"plain words"[..],
            b"<999>x",
            b"<13",
            b"",
            b"<1>1 garbage",
            b"\xff\xfe",
        ] {
            let message = parse(text);
            assert!(text.ends_with(message.text), "{text:?}");
            assert_eq!(message.host, None);
        }
    }

    #[test]
    fn meraki_lines_are_parsed_with_or_without_priority() {
        for prefix in ["", "<134>"] {
            let line = format!("{prefix}1 948136486.721741837 MR24 flows src=192.168.1.1");
            let message = parse(line.as_bytes());
            assert_eq!(message.time, Some(EventTime::Instant(948_136_486_721_741)));
            assert_eq!(message.host, Some("MR24"));
        }
    }

    #[test]
    fn a_yearless_time_takes_the_nearest_year() {
        let received = |text: &str| rfc3339(text.as_bytes()).unwrap();
        let time = |text: &[u8]| parse(text).time.unwrap();
        let late = time(b"<1>Dec 31 23:59:59 h a: b");
        let early = time(b"<1>Jan  1 00:00:01 h a: b");
        assert_eq!(
            late.resolve(received("2026-01-01T00:00:01Z")),
            received("2025-12-31T23:59:59Z")
        );
        assert_eq!(
            early.resolve(received("2025-12-31T23:59:59Z")),
            received("2026-01-01T00:00:01Z")
        );
        let leap = time(b"<1>Feb 29 12:00:00 h a: b");
        assert_eq!(
            leap.resolve(received("2025-03-01T00:00:00Z")),
            received("2024-02-29T12:00:00Z")
        );
    }

    #[test]
    fn days_count_both_ways() {
        for days in (-800_000..800_000).step_by(97) {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
        assert_eq!(civil_from_days(0), (1970, 1, 1));
        assert_eq!(civil_from_days(19_782), (2024, 2, 29));
    }
}
