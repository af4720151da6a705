//! What an agent does at present, and who said so: a part of its answer about configurations.
//!
//! ```text
//! settings = { origin (u8) · name (u16, UTF-8) · value (u16, UTF-8) } …      at most SETTINGS_LEN_MAX bytes
//! ```

use crate::codec::{Reader, put_bytes16, truncated};
use crate::error::InvalidMessage;

/// One thing that is in force on an agent, or was wanted and is not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Setting {
    pub origin: Origin,
    /// As the configuration calls it: `source.file`, `spool.disk_bytes_max`. At most [`NAME_LEN_MAX`] bytes.
    pub name: String,
    /// At most [`VALUE_LEN_MAX`] bytes; empty when there is no limit.
    pub value: String,
}

/// Who said it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// Nobody: it is so unless somebody says otherwise.
    Default,
    /// The machine's own configuration.
    Machine,
    /// The configuration from the server.
    Server,
    /// The server wanted it, and the machine does not let it have it.
    NotTaken,
}

impl Origin {
    const ALL: [Self; 4] = [Self::Default, Self::Machine, Self::Server, Self::NotTaken];

    /// For programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Machine => "machine",
            Self::Server => "server",
            Self::NotTaken => "not-taken",
        }
    }
}

/// Appends as many settings as fit; the last one then says how many more there are.
pub(super) fn put(settings: &[Setting], out: &mut Vec<u8>) {
    let mut bytes = Vec::new();
    for (n, setting) in settings.iter().enumerate() {
        let before = bytes.len();
        put_one(setting, &mut bytes);
        if bytes.len() > SETTINGS_LEN_MAX - MORE_LEN_MAX && n + 1 < settings.len()
            || bytes.len() > SETTINGS_LEN_MAX
        {
            bytes.truncate(before);
            let more = Setting {
                origin: Origin::Default,
                name: MORE.into(),
                value: (settings.len() - n).to_string(),
            };
            put_one(&more, &mut bytes);
            break;
        }
    }
    put_bytes16(out, &bytes);
}

fn put_one(setting: &Setting, out: &mut Vec<u8>) {
    let at = Origin::ALL.iter().position(|one| *one == setting.origin);
    out.push(u8::try_from(at.unwrap_or_default()).unwrap_or_default());
    put_bytes16(out, truncated(&setting.name, NAME_LEN_MAX).as_bytes());
    put_bytes16(out, truncated(&setting.value, VALUE_LEN_MAX).as_bytes());
}

/// Reads what [`put`] wrote; nothing, if an agent of before says nothing of it.
pub(super) fn read(r: &mut Reader<'_>) -> Result<Vec<Setting>, InvalidMessage> {
    let mut settings = Vec::new();
    if r.is_empty() {
        return Ok(settings);
    }
    let mut r = Reader::new(r.bytes16(SETTINGS_LEN_MAX, "settings")?);
    while !r.is_empty() {
        let origin = Origin::ALL
            .get(usize::from(r.u8("origin of a setting")?))
            .ok_or(InvalidMessage::NotCanonical("origin of a setting"))?;
        settings.push(Setting {
            origin: *origin,
            name: r.text16(NAME_LEN_MAX, "name of a setting")?,
            value: r.text16(VALUE_LEN_MAX, "value of a setting")?,
        });
    }
    Ok(settings)
}

/// The name of the setting that stands for those for which there is no room; its value is their number.
pub const MORE: &str = "more";
/// Bytes of the name of a setting.
pub const NAME_LEN_MAX: usize = 64;
/// Bytes of a value: a path, most of them.
pub const VALUE_LEN_MAX: usize = 512;
/// Bytes of all settings of an agent. The server keeps them in memory: 160 MiB, if each of 20,000 agents says as much.
pub const SETTINGS_LEN_MAX: usize = 8 << 10;
/// Bytes of the setting [`MORE`].
const MORE_LEN_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(origin: Origin, name: &str, value: &str) -> Setting {
        Setting {
            origin,
            name: name.into(),
            value: value.into(),
        }
    }

    fn again(settings: &[Setting]) -> Vec<Setting> {
        let mut out = Vec::new();
        put(settings, &mut out);
        assert!(out.len() <= 2 + SETTINGS_LEN_MAX);
        read(&mut Reader::new(&out)).unwrap()
    }

    #[test]
    fn settings_read_back_and_what_has_no_room_is_counted() {
        let one = setting(Origin::NotTaken, "spool.disk_bytes_max", "2 GiB");
        let mut golden = Vec::new();
        put(std::slice::from_ref(&one), &mut golden);
        assert_eq!(
            golden,
            b"\x00\x1e\x03\x00\x14spool.disk_bytes_max\x00\x052 GiB"
        );
        let few: Vec<Setting> = Origin::ALL
            .map(|origin| setting(origin, "source.file", "/var/log/\u{e9}*.log"))
            .into();
        assert_eq!(again(&few), few);
        assert_eq!(again(&[]), []);
        let long = "\u{e9}".repeat(VALUE_LEN_MAX);
        let many = vec![setting(Origin::Server, "source.file", &long); 300];
        let read = again(&many);
        let (last, shown) = read.split_last().unwrap();
        assert!(shown.iter().all(|one| one.value.len() == VALUE_LEN_MAX));
        let more = (300 - shown.len()).to_string();
        assert_eq!(*last, setting(Origin::Default, MORE, &more));
    }

    #[test]
    fn settings_of_an_agent_of_before_are_none_and_unknown_origins_are_refused() {
        assert_eq!(read(&mut Reader::new(b"")).unwrap(), []);
        for wrong in [
            &b"\x00\x05\x04\x00\x00\x00\x00"[..],
            b"\x00\x01\x00",
            b"\x20\x01",
        ] {
            read(&mut Reader::new(wrong)).unwrap_err();
        }
    }
}
