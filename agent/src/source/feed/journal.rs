//! The systemd journal, read through `journalctl`, the only reader that knows every version of its files.
//!
//! ```text
//! journalctl --output=export --follow --cursor=… ─▶ [Export] fields ─▶ an RFC 5424 message per entry
//! ```
//!
//! The cursor is the bookmark, never a time: a clock that steps back hides nothing. Reading goes on *at*
//! the cursor, whose entry must come first; when it does not, the entries after it are gone, and a gap
//! entry gives both ends.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use scrinium_protocol::identity::{StreamKind, StreamName};
use scrinium_protocol::syslog::message::timestamp;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tracing::warn;

use super::{Item, Sink};
use crate::config::Deny;

/// What of the journal is collected.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Journal {
    /// Where its files are; the machine's own journal when none is named.
    pub(crate) directory: Option<PathBuf>,
    /// `FIELD=value` or `+`, as `journalctl` takes them.
    pub(crate) matches: Vec<String>,
}

impl Journal {
    pub(crate) fn stream(&self) -> StreamName {
        let directory = self.directory.as_ref();
        let name = directory.map_or_else(|| "system".into(), |path| path.display().to_string());
        StreamName {
            kind: StreamKind::Journal,
            name: [vec![name], self.matches.clone()].concat().join(" "),
        }
    }

    /// Reads on after the entry with the cursor in `bookmark`, for as long as entries are wanted.
    pub(crate) async fn run(self, bookmark: Vec<u8>, deny: Deny, sink: Sink) {
        let stream = self.stream();
        // It came from the server: a word of the journal's own kind, or none.
        let is_cursor = |text: &String| text.bytes().all(|byte| byte.is_ascii_graphic());
        let cursor = String::from_utf8(bookmark).ok().filter(is_cursor);
        let mut cursor = cursor.unwrap_or_default();
        let mut pause = RESTART_MIN;
        let mut complained = false;
        loop {
            let before = cursor.clone();
            let error = match self.follow(&stream, &mut cursor, &deny, &sink).await {
                Ok(()) => return,
                Err(error) => error,
            };
            if cursor != before {
                complained = false;
                pause = RESTART_MIN;
            } else {
                sink.set_trouble(Some(format!("the journal cannot be read: {error:#}")));
            }
            if cursor == before && !complained {
                warn!(journal = %stream.name, error = format!("{error:#}"), "the journal cannot be read; trying again");
                complained = true;
            }
            // A journal that cannot be read is not asked in a loop.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RESTART_MAX);
        }
    }

    /// Follows the journal until that fails; `Ok` when its entries are no longer wanted.
    async fn follow(
        &self,
        stream: &StreamName,
        cursor: &mut String,
        deny: &Deny,
        sink: &Sink,
    ) -> Result<()> {
        // Where the directory leads, and what is in it, may be something else than when it was configured.
        if let Some(path) = deny.forbids_journal(self.directory.as_deref()) {
            bail!("{} is denied on this machine", path.display());
        }
        let mut arguments = vec!["--follow", "--no-tail"];
        let at = format!("--cursor={cursor}");
        if !cursor.is_empty() {
            arguments.push(&at);
        }
        let (mut child, output) = self.spawn(&arguments)?;
        let mut export = Export(BufReader::new(output));
        let mut expected = (!cursor.is_empty()).then(|| cursor.clone());
        loop {
            let read = tokio::time::timeout(SILENCE_MAX, export.next());
            let entry = match read.await {
                Ok(entry) => entry?,
                // Nothing to say, or hung?
                Err(_) if self.last_cursor().await? == *cursor => {
                    sink.set_trouble(None);
                    continue;
                }
                Err(_) => bail!("journalctl is silent although there are new entries"),
            };
            let Some(entry) = entry else {
                bail!("journalctl ended with {}", child.wait().await?);
            };
            sink.set_trouble(None);
            let own = entry.text("__CURSOR");
            if let Some(expected) = expected.take()
                && expected != own
            {
                let gap = Item::gap(stream, &missing(&expected, &own));
                if !sink.put_item(gap).await {
                    return Ok(());
                }
                if sequence(&expected).0 != sequence(&own).0 {
                    // Another journal: read it from its start.
                    cursor.clear();
                    bail!("the journal is another one than before");
                }
            } else if own == *cursor {
                continue;
            }
            for item in entry.items(stream, &own) {
                if !sink.put_item(item).await {
                    return Ok(());
                }
            }
            *cursor = own;
        }
    }

    async fn last_cursor(&self) -> Result<String> {
        let (_child, output) = self.spawn(&["--lines=1"])?;
        let mut export = Export(BufReader::new(output));
        let entry = tokio::time::timeout(SILENCE_MAX, export.next()).await??;
        Ok(entry
            .map(|entry| entry.text("__CURSOR"))
            .unwrap_or_default())
    }

    fn spawn(&self, arguments: &[&str]) -> Result<(Child, ChildStdout)> {
        let mut command = Command::new("journalctl");
        command.args(["--output=export", "--all", "--quiet", "--no-pager"]);
        if let Some(directory) = &self.directory {
            command.arg("--directory").arg(directory); // absolute: no option
        }
        let mut child = command
            .args(arguments)
            .arg("--") // whatever follows is no option
            .args(&self.matches)
            .env_remove("SCRINIUM_TOKEN")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("journalctl cannot be run")?;
        let output = child.stdout.take().context("journalctl has no output")?;
        Ok((child, output))
    }
}

/// The id of the sequence a cursor counts in, and its number.
fn sequence(cursor: &str) -> (&str, Option<u64>) {
    let field = |name| cursor.split(';').find_map(|field| field.strip_prefix(name));
    let number = field("i=").and_then(|hex| u64::from_str_radix(hex, 16).ok());
    (field("s=").unwrap_or_default(), number)
}

/// What is said when the entry at `expected` is not there any more and `found` comes first.
fn missing(expected: &str, found: &str) -> String {
    let (expected_id, expected_number) = sequence(expected);
    let (found_id, found_number) = sequence(found);
    match expected_number.zip(found_number) {
        Some((expected, found)) if expected_id == found_id => format!(
            "the journal no longer holds its entry {expected}, the last one collected; it goes on with entry {found}, and those between, if any, were not collected"
        ),
        _ => format!(
            "the journal is another one than the one collected before, up to {expected}; what that one had after this was not collected"
        ),
    }
}

/// An entry of the journal: its fields, in their order.
#[derive(Debug, Default, Eq, PartialEq)]
struct Entry {
    fields: Vec<(String, Vec<u8>)>,
    /// Fields that were too long, and how long they were.
    cut: Vec<(String, u64)>,
}

impl Entry {
    fn field(&self, name: &str) -> Option<&[u8]> {
        let mut fields = self.fields.iter();
        fields
            .find(|(own, _)| own == name)
            .map(|(_, value)| &**value)
    }

    fn text(&self, name: &str) -> String {
        let value = self.field(name).unwrap_or_default();
        String::from_utf8_lossy(value).into_owned()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name).parse().ok()
    }

    /// The entry as a message of RFC 5424: what the header has no place for is structured data.
    fn to_message(&self) -> Vec<u8> {
        let severity = self.number("PRIORITY").filter(|&n| n < 8).unwrap_or(6);
        let facility = self
            .number("SYSLOG_FACILITY")
            .filter(|&n| n < 24)
            .unwrap_or(1);
        let source = self.number("_SOURCE_REALTIME_TIMESTAMP");
        let time = source.or_else(|| self.number("__REALTIME_TIMESTAMP"));
        let time = time.and_then(|us| i64::try_from(us).ok());
        let word = |names: &[&str], len: usize| {
            let found = names.iter().map(|name| self.text(name));
            let found = found.map(|text| {
                let printable = text.chars().filter(char::is_ascii_graphic);
                printable.take(len).collect::<String>()
            });
            found
                .into_iter()
                .find(|text| !text.is_empty())
                .unwrap_or_else(|| "-".into())
        };
        let mut line = format!(
            "<{}>1 {} {} {} {} {} [journal@0",
            facility * 8 + severity,
            time.map_or_else(|| "-".into(), timestamp),
            word(&["_HOSTNAME"], 255),
            word(&["SYSLOG_IDENTIFIER", "_COMM"], 48),
            word(&["SYSLOG_PID", "_PID"], 128),
            word(&["MESSAGE_ID"], 32),
        )
        .into_bytes();
        for (name, value) in &self.fields {
            if IN_HEADER.contains(&&**name) {
                continue;
            }
            line.extend_from_slice(format!(" {name}=\"").as_bytes());
            for &byte in value {
                if matches!(byte, b'"' | b'\\' | b']') {
                    line.push(b'\\');
                }
                line.push(byte);
            }
            line.push(b'"');
        }
        line.extend_from_slice(b"] ");
        line.extend_from_slice(self.field("MESSAGE").unwrap_or_default());
        line.push(b'\n');
        line
    }

    /// The entry as entries of a stream; reading goes on at `cursor` after the last one.
    fn items(&self, stream: &StreamName, cursor: &str) -> Vec<Item> {
        let mut items = Item::pieces(stream, &self.to_message(), cursor.as_bytes());
        for (name, len) in &self.cut {
            let text = format!(
                "the field {name} of the entry before has {len} bytes; {FIELD_LEN_MAX} of them were collected"
            );
            items.push(Item::gap(stream, &text));
        }
        items
    }
}

/// Reads the Journal Export Format (systemd, `JOURNAL_EXPORT_FORMATS.md`).
struct Export<R>(R);

impl<R: AsyncBufRead + Unpin> Export<R> {
    /// The next entry; `None` at the end. One that is not complete there is none.
    async fn next(&mut self) -> Result<Option<Entry>> {
        let mut entry = Entry::default();
        loop {
            let (mut line, len, ended) = self.line().await?;
            if !ended {
                return Ok(None);
            }
            if len == 0 {
                if entry.fields.is_empty() {
                    continue;
                }
                return Ok(Some(entry));
            }
            let split = line.iter().position(|&byte| byte == b'=');
            let (name, value, len) = match split {
                Some(at) => {
                    let value = line.split_off(at + 1);
                    line.truncate(at);
                    (line, value, len - at as u64 - 1)
                }
                None => {
                    let (value, len) = self.binary().await?;
                    (line, value, len)
                }
            };
            let name = String::from_utf8(name).context("a field's name is not text")?;
            if entry.fields.len() >= FIELDS_MAX {
                bail!("an entry has more than {FIELDS_MAX} fields");
            }
            if (value.len() as u64) < len {
                entry.cut.push((name.clone(), len));
            }
            entry.fields.push((name, value));
        }
    }

    /// A line without its end: as much as a field may have of it, how long it is, whether it has an end.
    async fn line(&mut self) -> Result<(Vec<u8>, u64, bool)> {
        let (mut line, mut len) = (Vec::new(), 0);
        loop {
            let available = self.0.fill_buf().await?;
            if available.is_empty() {
                return Ok((line, len, false));
            }
            let end = available.iter().position(|&byte| byte == b'\n');
            let part = available
                .get(..end.unwrap_or(available.len()))
                .unwrap_or_default();
            let room = (FIELD_LEN_MAX + NAME_LEN_MAX).saturating_sub(line.len());
            line.extend_from_slice(part.get(..room).unwrap_or(part));
            len += part.len() as u64;
            let used = part.len() + usize::from(end.is_some());
            self.0.consume(used);
            if end.is_some() {
                return Ok((line, len, true));
            }
        }
    }

    /// A value with its length before it, and a line's end behind it.
    async fn binary(&mut self) -> Result<(Vec<u8>, u64)> {
        let len = self.0.read_u64_le().await?;
        let kept = len.min(FIELD_LEN_MAX as u64);
        let mut value = Vec::new();
        (&mut self.0).take(kept).read_to_end(&mut value).await?;
        let mut rest = (&mut self.0).take(len - kept);
        let skipped = tokio::io::copy_buf(&mut rest, &mut tokio::io::sink()).await?;
        if value.len() as u64 + skipped < len || self.0.read_u8().await? != b'\n' {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok((value, len))
    }
}

/// Fields that the header of the message says, and the cursor, which the others make up.
const IN_HEADER: [&str; 9] = [
    "__CURSOR",
    "MESSAGE",
    "MESSAGE_ID",
    "PRIORITY",
    "SYSLOG_FACILITY",
    "SYSLOG_IDENTIFIER",
    "SYSLOG_PID",
    "SYSLOG_RAW",
    "_HOSTNAME",
];
/// More of a field is not collected, and that is said.
const FIELD_LEN_MAX: usize = 1 << 20;
/// Longer than any name of a field.
const NAME_LEN_MAX: usize = 256;
const FIELDS_MAX: usize = 1024;
/// Silence after which it is asked whether there really is nothing.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Pause before `journalctl` is started again, at first and at most.
const RESTART_MIN: Duration = Duration::from_millis(500);
const RESTART_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use scrinium_protocol::syslog::message::parse;

    use super::*;

    const CURSOR: &str = "s=aa;i=1f;b=bb;m=1;t=2;x=3";

    async fn entries(mut text: &[u8]) -> Vec<Entry> {
        let mut export = Export(&mut text);
        let mut all = Vec::new();
        while let Ok(Some(entry)) = export.next().await {
            all.push(entry);
        }
        all
    }

    fn example() -> Vec<u8> {
        let mut text = format!("__CURSOR={CURSOR}\n__REALTIME_TIMESTAMP=1795000000000001\nPRIORITY=3\nSYSLOG_FACILITY=10\n_HOSTNAME=web1\nSYSLOG_IDENTIFIER=sshd\n_PID=77\nODD=a]b\"c\\d\nMESSAGE\n").into_bytes();
        text.extend_from_slice(&12_u64.to_le_bytes());
        text.extend_from_slice(b"two\nlines \xff\x00\n\n");
        text
    }

    #[tokio::test]
    async fn an_entry_becomes_a_message_with_all_its_fields() {
        let all = entries(&example()).await;
        let [entry] = &all[..] else { panic!("{all:?}") };
        let items = entry.items(
            &StreamName {
                kind: StreamKind::Journal,
                name: "system".into(),
            },
            CURSOR,
        );
        let [item] = &items[..] else {
            panic!("{}", items.len())
        };
        let expected = b"<83>1 2026-11-18T11:06:40.000001Z web1 sshd 77 - [journal@0 __REALTIME_TIMESTAMP=\"1795000000000001\" _PID=\"77\" ODD=\"a\\]b\\\"c\\\\d\"] two\nlines \xff\x00\n";
        assert_eq!(
            String::from_utf8_lossy(&item.bytes),
            String::from_utf8_lossy(expected)
        );
        assert_eq!(item.bytes, expected);
        assert_eq!(item.bookmark, CURSOR.as_bytes());
        let message = parse(&item.bytes);
        assert_eq!(message.severity, Some(3));
        assert_eq!((message.host, message.app), (Some("web1"), Some("sshd")));
        assert!(message.text.starts_with(b"two\nlines \xff"));
    }

    #[tokio::test]
    async fn an_entry_cut_anywhere_is_none() {
        let text = example();
        for len in 0..text.len() {
            assert_eq!(entries(&text[..len]).await, [], "{len}");
        }
    }

    #[tokio::test]
    async fn a_field_that_is_too_long_is_cut_and_that_is_said() {
        let long = vec![b'x'; FIELD_LEN_MAX + 1];
        let mut text = b"A=".to_vec();
        text.extend_from_slice(&long);
        text.extend_from_slice(b"\nB\n");
        text.extend_from_slice(&(long.len() as u64).to_le_bytes());
        text.extend_from_slice(&long);
        text.extend_from_slice(b"\nMESSAGE=short\n\n");
        let all = entries(&text).await;
        let cut: Vec<(&str, u64)> = all[0]
            .cut
            .iter()
            .map(|(name, len)| (&**name, *len))
            .collect();
        assert_eq!(cut, [("B", long.len() as u64)]);
        assert_eq!(all[0].field("MESSAGE"), Some(&b"short"[..]));
    }

    #[test]
    fn a_cursor_that_is_gone_is_said_with_both_ends() {
        let other = CURSOR.replace("i=1f", "i=2a");
        assert!(missing(CURSOR, &other).contains("entry 31"));
        assert!(missing(CURSOR, &other).contains("entry 42"));
        assert!(missing(CURSOR, "s=zz;i=1").contains("another"));
    }
}
