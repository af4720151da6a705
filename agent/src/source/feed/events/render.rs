//! An event as a message of RFC 5424: the header from its `System` part, then its text, then its XML as it
//! came.

use super::Event;

/// What the `System` part of an event says (Windows Event Schema, `SystemPropertiesType`). What it does
/// not say, or says in a way that is not understood, is left out of the header; the XML has it all.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct System {
    pub(super) record_id: Option<u64>,
    time: Option<String>,
    computer: Option<String>,
    provider: Option<String>,
    process: Option<String>,
    event_id: Option<String>,
    level: Option<u8>,
    keywords: u64,
}

impl System {
    pub(super) fn of(xml: &str) -> Self {
        let part = xml.split_once("<System>").map_or("", |(_, rest)| rest);
        let part = part.split_once("</System>").map_or(part, |(part, _)| part);
        let keywords = element(part, "Keywords").unwrap_or_default();
        let keywords = keywords.strip_prefix("0x").unwrap_or_default();
        Self {
            record_id: element(part, "EventRecordID").and_then(|text| text.parse().ok()),
            time: attribute(part, "TimeCreated", "SystemTime"),
            computer: element(part, "Computer"),
            provider: attribute(part, "Provider", "Name"),
            process: attribute(part, "Execution", "ProcessID"),
            event_id: element(part, "EventID"),
            level: element(part, "Level").and_then(|text| text.parse().ok()),
            keywords: u64::from_str_radix(keywords, 16).unwrap_or(0),
        }
    }

    /// The severity of RFC 5424 that fits the level: 0 is "always", which auditing uses.
    fn severity(&self) -> u8 {
        match self.level {
            Some(1) => 2,
            Some(2) => 3,
            Some(3) => 4,
            Some(5..) => 7,
            _ if self.keywords & AUDIT_FAILURE != 0 => 4,
            _ => 6,
        }
    }

    /// The whole entry.
    pub(super) fn to_message(&self, channel: &str, event: &Event) -> Vec<u8> {
        let facility = if channel == "Security" {
            AUTHPRIV
        } else {
            USER
        };
        let id = self
            .record_id
            .map_or_else(|| "-".into(), |id| id.to_string());
        let mut out = format!(
            "<{}>1 {} {} {} {} {} [event@0 Channel=\"{}\" EventRecordID=\"{id}\"] ",
            facility * 8 + self.severity(),
            self.time(),
            word(self.computer.as_deref(), 255),
            word(self.provider.as_deref(), 48),
            word(self.process.as_deref(), 128),
            word(self.event_id.as_deref(), 32),
            quoted(channel),
        );
        if let Some(message) = &event.message {
            out.push_str(message.trim_end());
            out.push('\n');
        }
        out.push_str(event.xml.trim_end());
        out.push('\n');
        out.into_bytes()
    }

    /// The time in as many digits as RFC 5424 allows; the XML has them all.
    fn time(&self) -> String {
        let Some(time) = &self.time else {
            return timestamp_unknown();
        };
        let (seconds, fraction) = time.split_once('.').unwrap_or((time, "0Z"));
        let digits: String = fraction
            .chars()
            .take_while(char::is_ascii_digit)
            .take(6)
            .collect();
        let is_time = seconds.len() == TIME_LEN
            && seconds
                .bytes()
                .all(|byte| byte.is_ascii_digit() || b"-:T".contains(&byte));
        match is_time {
            true => format!("{seconds}.{digits:0<6}Z"),
            false => timestamp_unknown(),
        }
    }
}

/// Who published an event.
#[cfg(windows)]
pub(super) fn provider(xml: &str) -> Option<String> {
    System::of(xml).provider
}

/// `NILVALUE` of RFC 5424.
fn timestamp_unknown() -> String {
    "-".into()
}

/// What may stand in the header: printable, without spaces, so long.
fn word(text: Option<&str>, len: usize) -> String {
    let text: String = text
        .unwrap_or_default()
        .chars()
        .filter(char::is_ascii_graphic)
        .take(len)
        .collect();
    if text.is_empty() { "-".into() } else { text }
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '"' | '\\' | ']') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// The text of the first element `name` in a part in which elements of this name do not nest.
fn element(part: &str, name: &str) -> Option<String> {
    let rest = start(part, name)?;
    let (tag, rest) = rest.split_once('>')?;
    if tag.ends_with('/') {
        return None;
    }
    let (text, _) = rest.split_once('<')?;
    Some(decoded(text.trim()))
}

/// The attribute `attribute` of the first element `name`.
fn attribute(part: &str, name: &str, attribute: &str) -> Option<String> {
    let (tag, _) = start(part, name)?.split_once('>')?;
    let mut rest = tag;
    loop {
        let (before, after) = rest.split_once('=')?;
        let quote = after.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let (value, left) = after.get(1..)?.split_once(quote)?;
        if before.trim() == attribute {
            return Some(decoded(value));
        }
        rest = left;
    }
}

/// What follows the name of the first element `name`.
fn start<'a>(part: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = part;
    loop {
        let (_, after) = rest.split_once('<')?;
        if let Some(tail) = after.strip_prefix(name)
            && tail.starts_with([' ', '>', '/', '\t', '\r', '\n'])
        {
            return Some(tail);
        }
        rest = after;
    }
}

/// Character references and the five entities of XML.
fn decoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        let Some((name, left)) = after.split_once(';') else {
            out.push('&');
            rest = after;
            continue;
        };
        let number = name.strip_prefix('#').and_then(|number| {
            let code = match number.strip_prefix('x') {
                Some(hex) => u32::from_str_radix(hex, 16).ok(),
                None => number.parse().ok(),
            };
            char::from_u32(code?)
        });
        let known = match name {
            "amp" => Some('&'),
            "lt" => Some('<'),
            "gt" => Some('>'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            _ => number,
        };
        match known {
            Some(c) => {
                out.push(c);
                rest = left;
            }
            None => {
                out.push('&');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// `YYYY-MM-DDTHH:MM:SS`
const TIME_LEN: usize = 19;
/// The keyword of an audited attempt that failed.
const AUDIT_FAILURE: u64 = 0x0010_0000_0000_0000;
/// Facilities of RFC 5424: what users' programs say, and what concerns security.
const USER: u8 = 1;
const AUTHPRIV: u8 = 10;

#[cfg(test)]
mod tests {
    use scrinium_protocol::syslog::message::parse;

    use super::*;

    const LOGON_FAILED: &str = "<Event xmlns='http://schemas.microsoft.com/win/2004/08/events/event'><System><Provider Name='Microsoft-Windows-Security-Auditing' Guid='{54849625-5478-4994-A5BA-3E3B0328C30D}'/><EventID>4625</EventID><Version>0</Version><Level>0</Level><Task>12544</Task><Opcode>0</Opcode><Keywords>0x8010000000000000</Keywords><TimeCreated SystemTime='2026-11-22T08:15:01.123456700Z'/><EventRecordID>229977</EventRecordID><Correlation/><Execution ProcessID='516' ThreadID='3240'/><Channel>Security</Channel><Computer>DC01.example.test</Computer><Security/></System><EventData><Data Name='TargetUserName'>anna &amp; co</Data></EventData></Event>";

    fn rendered(xml: &str, message: Option<&str>) -> String {
        let event = Event {
            xml: xml.into(),
            message: message.map(str::to_owned),
            bookmark: String::new(),
        };
        String::from_utf8(System::of(xml).to_message("Security", &event)).unwrap()
    }

    #[test]
    fn an_event_has_a_header_its_text_and_its_xml() {
        let line = rendered(LOGON_FAILED, Some("An account failed to log on.\r\n"));
        let head = "<84>1 2026-11-22T08:15:01.123456Z DC01.example.test Microsoft-Windows-Security-Auditing 516 4625 [event@0 Channel=\"Security\" EventRecordID=\"229977\"] An account failed to log on.\n";
        assert_eq!(line, format!("{head}{LOGON_FAILED}\n"));
        let message = parse(line.as_bytes());
        assert_eq!(message.severity, Some(4));
        assert_eq!(message.host, Some("DC01.example.test"));
        assert_eq!(message.message_id, Some("4625"));
    }

    #[test]
    fn an_event_nobody_can_render_is_kept_as_xml() {
        assert!(rendered(LOGON_FAILED, None).ends_with(&format!("] {LOGON_FAILED}\n")));
        for odd in [
            "",
            "<Event/>",
            "<Event><System><EventRecordID>x</EventRecordID><TimeCreated SystemTime='today'/></System>",
            "<System><Provider Name=",
            "<System><Level>2</Level",
        ] {
            let line = rendered(odd, None);
            assert!(line.ends_with(&format!("] {odd}\n")), "{line}");
            assert!(parse(line.as_bytes()).severity.is_some());
        }
    }

    #[test]
    fn pretty_printed_xml_and_entities_are_read() {
        let xml = "<System>\n  <Provider Name=\"A &lt;b&gt; &#x41;&unknown;\">\n  </Provider>\n  <EventID Qualifiers=\"0\">15</EventID>\n  <EventRecordID>\n426 </EventRecordID></System>";
        let system = System::of(xml);
        assert_eq!(system.provider.as_deref(), Some("A <b> A&unknown;"));
        assert_eq!(system.event_id.as_deref(), Some("15"));
        assert_eq!(system.record_id, Some(426));
    }
}
