//! The audit trail: what people and commands did, as a stream of the archive like any other.
//!
//! ```text
//! who did what ─▶ a line of JSON, or linked parts ─▶ local ─▶ durable ─▶ the act is done
//! ```
//!
//! Invariants:
//! 1. An act is durable in the trail, with all its parts, before it is answered.
//! 2. No record is cut. One that does not fit into an entry is several: each is JSON of its own and has the same
//!    `record`, its `part` of so many `parts`, and in `text` its share of the detail. The shares in order are the
//!    detail byte for byte (`bytes`, `sha256`). Fewer parts than `parts` say that the server died meanwhile.
//! 3. A record with more than [`DETAIL_LEN_MAX`] of detail is refused, and its act with it.

use std::net::SocketAddr;
use std::time::Duration;

use data_encoding::HEXLOWER;
use scrinium_protocol::entry::{ENTRY_LEN_MAX, EntryFlags};
use scrinium_protocol::identity::StreamKind;
use scrinium_protocol::kdf::sha256;
use scrinium_segment::random;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tracing::error;

use crate::clock;
use crate::local::{LocalEntry, LocalQueue};

/// Where acts are written down.
#[derive(Clone)]
pub(crate) struct Audit(LocalQueue);

/// Who acts, and from where.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Actor {
    pub(crate) name: String,
    /// The peer's address, or that it is a process of this machine; empty when it is the server itself.
    pub(crate) address: String,
    /// It is an account that proved itself.
    pub(crate) is_account: bool,
}

/// An act that was done when nothing could be written into the trail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LateAct<'a> {
    /// Names it; the trail has it once.
    pub(crate) record: &'a str,
    /// When it was done, Unix µs.
    pub(crate) time_us: u64,
    pub(crate) action: &'a str,
    pub(crate) detail: &'a Value,
}

/// Why an act is not written down; it must then not be done.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum NotWritten {
    #[error("the archive takes nothing now, so the act cannot be written down and is refused")]
    Unavailable,
    #[error(
        "what has to be written down of this act has {bytes} bytes and may have {DETAIL_LEN_MAX}; the act is refused: do it in smaller steps"
    )]
    TooLong { bytes: usize },
}

impl Actor {
    /// The server itself, or an agent of its.
    pub(crate) fn of(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            address: String::new(),
            is_account: false,
        }
    }

    /// Whoever is at the other end of a connection; whether it is the account it names is not proven.
    pub(crate) fn peer(name: &str, address: SocketAddr) -> Self {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        Self {
            address: address.to_string(),
            ..Self::of(name)
        }
    }

    /// An account that signed in to the console.
    pub(crate) fn signed_in(name: &str, address: SocketAddr) -> Self {
        Self {
            is_account: true,
            ..Self::peer(name, address)
        }
    }
}

impl Audit {
    pub(crate) fn new(queue: LocalQueue) -> Self {
        Self(queue)
    }

    /// Writes down that `actor`, who has no address, did `action`; returns when it is durable. `false` when it is
    /// not: the act must then be refused.
    pub(crate) async fn record(&self, actor: &str, action: &str, detail: Value) -> bool {
        self.note(&Actor::of(actor), action, detail).await.is_ok()
    }

    /// Writes down that `actor` did `action`; returns when it is durable.
    pub(crate) async fn note(
        &self,
        actor: &Actor,
        action: &str,
        detail: Value,
    ) -> Result<(), NotWritten> {
        let head = Head {
            time_us: clock::unix_us(),
            late_us: None,
            action,
            actor: &actor.name,
            address: &actor.address,
            record: None,
        };
        self.write_lines(AUDIT, lines(&head, &detail)?).await
    }

    /// Writes down what was done before, at a time when nothing could be written.
    pub(crate) async fn note_late(
        &self,
        actor: &Actor,
        act: LateAct<'_>,
    ) -> Result<(), NotWritten> {
        let head = Head {
            time_us: act.time_us,
            late_us: Some(clock::unix_us()),
            action: act.action,
            actor: &actor.name,
            address: &actor.address,
            record: Some(act.record),
        };
        self.write_lines(AUDIT, lines(&head, act.detail)?).await
    }

    /// Writes a line into one of the server's own trails; returns when it is durable. `false` when the archive
    /// takes nothing now. A line longer than an entry becomes linked fragments.
    pub(crate) async fn write(&self, trail: &str, bytes: Vec<u8>) -> bool {
        if bytes.len() > LINE_LEN_MAX {
            error!(
                trail,
                bytes = bytes.len(),
                "a line is longer than any trail takes and is refused"
            );
            return false;
        }
        self.write_lines(trail, vec![bytes]).await.is_ok()
    }

    async fn write_lines(&self, trail: &str, lines: Vec<Vec<u8>>) -> Result<(), NotWritten> {
        let written = tokio::time::timeout(PATIENCE, self.write_all(trail, lines)).await;
        written.unwrap_or(Err(NotWritten::Unavailable))
    }

    /// Waits for as long as it takes: the queue may be full, and the disk too.
    async fn write_all(&self, trail: &str, lines: Vec<Vec<u8>>) -> Result<(), NotWritten> {
        let mut waiting = Vec::with_capacity(lines.len());
        for bytes in lines {
            let (durable, done) = oneshot::channel();
            let entry = LocalEntry {
                kind: StreamKind::Audit,
                name: trail.to_owned(),
                time_us: clock::unix_us(),
                flags: EntryFlags::NONE,
                bytes,
                durable: Some(durable),
                room: None,
            };
            let sent = self.0.send(entry).await;
            sent.map_err(|_| NotWritten::Unavailable)?;
            waiting.push(done);
        }
        for done in waiting {
            done.await.map_err(|_| NotWritten::Unavailable)?;
        }
        Ok(())
    }
}

/// A text that may be long, after its length and digest: a reader compares it without having all of it.
pub(crate) fn long_text(text: &str) -> Value {
    json!({
        "bytes": text.len(),
        "sha256": HEXLOWER.encode(&sha256(&[text.as_bytes()])),
        "text": text,
    })
}

/// What every entry of a record begins with, in this order.
#[derive(Clone, Copy, Serialize)]
struct Head<'a> {
    time_us: u64,
    /// When it was written down, if that is later.
    #[serde(skip_serializing_if = "Option::is_none")]
    late_us: Option<u64>,
    action: &'a str,
    actor: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    address: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<&'a str>,
}

#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    detail: &'a Value,
}

#[derive(Serialize)]
struct Part<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    part: usize,
    parts: usize,
    /// Of the whole detail.
    bytes: usize,
    sha256: &'a str,
    text: &'a str,
}

/// The entries of a record.
fn lines(head: &Head<'_>, detail: &Value) -> Result<Vec<Vec<u8>>, NotWritten> {
    let whole = line(&Whole {
        head: *head,
        detail,
    })?;
    if whole.len() <= ENTRY_LEN_MAX {
        return Ok(vec![whole]);
    }
    let text = detail.to_string();
    if text.len() > DETAIL_LEN_MAX {
        return Err(NotWritten::TooLong { bytes: text.len() });
    }
    let made: [u8; 16] = random().map_err(|_| NotWritten::Unavailable)?;
    let (made, digest) = (
        HEXLOWER.encode(&made),
        HEXLOWER.encode(&sha256(&[text.as_bytes()])),
    );
    let head = Head {
        record: Some(head.record.unwrap_or(&made)),
        ..*head
    };
    let texts = slices(&text);
    let parts = texts.len();
    let lines = texts.into_iter().zip(1..).map(|(piece, part)| {
        line(&Part {
            head,
            part,
            parts,
            bytes: text.len(),
            sha256: &digest,
            text: piece,
        })
    });
    lines.collect()
}

fn line(what: &impl Serialize) -> Result<Vec<u8>, NotWritten> {
    let mut line = serde_json::to_vec(what).map_err(|_| NotWritten::Unavailable)?;
    line.push(b'\n');
    Ok(line)
}

/// Cuts a text between characters into pieces that have at most [`PIECE_LEN_MAX`] bytes as a string of JSON.
fn slices(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut len = 0;
        let end = rest.char_indices().find(|(_, c)| {
            len += match c {
                '"' | '\\' => 2,
                c if c.is_control() => 6,
                c => c.len_utf8(),
            };
            len > PIECE_LEN_MAX
        });
        let (piece, after) = rest.split_at(end.map_or(rest.len(), |(at, _)| at));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// The trail of what was done.
pub(crate) const AUDIT: &str = "audit";
/// The trail of certificates of deletion.
pub(crate) const DELETIONS: &str = "deletions";
/// What is left of each day in numbers.
pub(crate) const STATISTICS: &str = "statistics";
/// Bytes of the detail of one record.
const DETAIL_LEN_MAX: usize = 4 << 20;
/// Bytes of detail in one part. The rest of an entry is for what every part begins with: names have at most 128
/// bytes and actions are this program's.
const PIECE_LEN_MAX: usize = 56 << 10;
/// Bytes of a line of any trail.
const LINE_LEN_MAX: usize = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_fits_is_one_entry_with_what_matters_first() {
        let lines = lines(&head(), &json!({ "a": 1 })).unwrap();
        assert_eq!(
            String::from_utf8(lines.concat()).unwrap(),
            "{\"time_us\":7,\"action\":\"agent configured\",\"actor\":\"admin\",\"address\":\"192.0.2.1:1\",\"detail\":{\"a\":1}}\n"
        );
    }

    #[test]
    fn no_record_is_cut_and_its_parts_are_the_whole_detail() {
        let texts = [
            "\n".repeat(34_000) + "hidden-from-audit",
            "x".repeat(ENTRY_LEN_MAX - 20),
            "\"\\é\u{1F512}".repeat(40_000),
            "\u{1}".repeat(60_000),
        ];
        for text in texts {
            let detail = json!({ "agent": "web1", "text": long_text(&text) });
            let lines = lines(&head(), &detail).unwrap();
            assert!(lines.len() > 1);
            let mut joined = String::new();
            let mut records = Vec::new();
            for (line, number) in lines.iter().zip(1..) {
                assert!(line.len() <= ENTRY_LEN_MAX, "{}", line.len());
                let part: Value = serde_json::from_slice(line).unwrap();
                assert_eq!(part["action"], "agent configured");
                assert_eq!(part["part"], number);
                assert_eq!(part["parts"], lines.len());
                records.push(part["record"].clone());
                joined.push_str(part["text"].as_str().unwrap());
                assert_eq!(part["bytes"], detail.to_string().len());
            }
            records.dedup();
            assert_eq!(records.len(), 1);
            assert_eq!(joined, detail.to_string());
        }
    }

    #[test]
    fn a_record_beyond_the_bound_is_refused_with_its_length() {
        let fits = Value::from("x".repeat(DETAIL_LEN_MAX - 2));
        assert!(lines(&head(), &fits).is_ok());
        let long = Value::from("x".repeat(DETAIL_LEN_MAX - 1));
        let bytes = DETAIL_LEN_MAX + 1;
        assert_eq!(lines(&head(), &long), Err(NotWritten::TooLong { bytes }));
    }

    fn head() -> Head<'static> {
        Head {
            time_us: 7,
            late_us: None,
            action: "agent configured",
            actor: "admin",
            address: "192.0.2.1:1",
            record: None,
        }
    }
}
