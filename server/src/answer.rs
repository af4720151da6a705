//! Answers to searches: given while they are found, in the memory of a page, and ended when nobody takes them.
//!
//! ```text
//! [turns] ─▶ page of [search] ─▶ lines in the shape that was asked for ─▶ chunks ─▶ control socket, console
//!    ▲──────────────────────────────────────────────────────────────────────┘ next page
//! ```
//!
//! An answer that is not all that matches says so where it ends, and what was left out: see [`LeftOut`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::StreamBody;
use hyper::body::Frame;
use scrinium_protocol::identity::{AgentId, StreamId};
use scrinium_protocol::shown;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::warn;

use crate::allocator;
use crate::archive::container::Access;
use crate::audit::Actor;
use crate::catalogue::records::StreamRecord;
use crate::clock;
use crate::core::Core;
use crate::i18n::Language;
use crate::index::cancelled::{CancelOnDrop, Cancelled};
use crate::index::gate::Gate;
use crate::index::hits::Hit;
use crate::index::query::Query;
use crate::index::search::{Found, Search, Wanted};
use crate::index::turns::{AnswerTurn, LOCAL, ScanTurn};
use crate::present::{self, View};
use crate::said::{Said, said};

/// What somebody asks.
pub(crate) struct Asked {
    pub(crate) account: String,
    pub(crate) query: Query,
    pub(crate) access: Access,
    /// The processors search so long for it.
    pub(crate) time_max: Option<Duration>,
}

/// How lines are given, newest first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Shape {
    /// One after the other; with words at the end of a file that is not complete.
    Raw {
        words: Option<Language>,
        to_terminal: bool,
    },
    Csv {
        to_terminal: bool,
    },
    /// An object a line; at the end what was left out. That a number of lines was reached which was asked for is not
    /// left out.
    Json {
        limit_is_asked: bool,
    },
    /// One object with all.
    Api,
}

/// What is missing in an answer.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub(crate) struct LeftOut {
    /// So many lines were given, and there are older ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<usize>,
    /// Why the answer ended before everything was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ended: Option<String>,
    /// The same for who reads another language.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<Said>,
    /// Parts of the archive that are damaged.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) damaged: u64,
    /// Parts of the archive that are in the second container.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) sealed: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl LeftOut {
    /// What a page left out.
    pub(crate) fn of(found: &Found, time_max: Option<Duration>) -> Self {
        let mut left_out = Self::default();
        left_out.add(found, time_max);
        left_out
    }

    fn add(&mut self, found: &Found, time_max: Option<Duration>) {
        self.damaged += found.damaged;
        self.sealed += found.sealed;
        if found.lacking > 0 {
            self.end(said!("left_out.lacking", found.lacking));
        } else if let Some(busy) = found.busy {
            self.end(busy.to_string().into());
        } else if found.partial {
            let seconds = time_max.unwrap_or_default().as_secs();
            self.end(said!("left_out.time", seconds));
        }
    }

    fn end(&mut self, why: Said) {
        self.ended = Some(why.to_string());
        self.why = Some(why);
    }

    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// What is missing, a sentence each.
    pub(crate) fn sentences(&self, t: Language) -> Vec<String> {
        let mut all = Vec::new();
        if let Some(limit) = self.limit {
            all.push(said!("left_out.limit", limit.to_string()));
        }
        match (&self.why, &self.ended) {
            (Some(why), _) => all.push(said!("left_out.ended", why.clone())),
            (None, Some(why)) => all.push(said!("left_out.ended", why)),
            (None, None) => {}
        }
        if self.sealed > 0 {
            all.push(said!("left_out.sealed", self.sealed));
        }
        if self.damaged > 0 {
            all.push(said!("left_out.damaged", self.damaged));
        }
        all.iter().map(|said| t.say(said)).collect()
    }

    /// What the head, or the end, of a message of the control socket says.
    pub(crate) fn to_headers(&self) -> HeaderMap {
        let text = serde_json::to_string(self).unwrap_or_default();
        let mut headers = HeaderMap::new();
        // Everything in it is plain ASCII.
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(LEFT_OUT, value);
        }
        headers
    }

    /// Reads what a head or an end says.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        serde_json::from_slice(headers.get(LEFT_OUT)?.as_bytes()).ok()
    }
}

/// Whose share an answer takes. All who use the control socket are one.
pub(crate) fn account_of(actor: &Actor) -> String {
    match actor.is_account {
        true => format!("account {}", actor.name),
        false => LOCAL.to_owned(),
    }
}

/// One page, for who shows it as a whole.
pub(crate) async fn page(core: &Arc<Core>, asked: Asked, wanted: Wanted) -> Result<Found> {
    let turn = core.turns.answer(&asked.account).await?;
    let scan = turn.scan().await?;
    let cancelled = Cancelled::default();
    let _guard = cancelled.guard();
    let time_max = asked.time_max;
    let core = core.clone();
    let gate = Gate::new(scan, Handle::current(), cancelled.clone());
    let work = move || {
        let deadline = time_max.map(|time| clock::now() + time);
        let mut search = search(&core, asked, cancelled, deadline, &gate);
        let found = search.page(Wanted { deadline, ..wanted }, &gate);
        drop((search, gate, turn));
        if found.read_bytes > GIVEN_BACK_MIN {
            allocator::give_back();
        }
        found
    };
    let found = tokio::task::spawn_blocking(work).await?;
    tell_damage(found.damaged);
    Ok(found)
}

/// The newest `limit` lines as they are found, in a shape. Counted is what matches in all if `is_counted`.
pub(crate) async fn stream(
    core: &Arc<Core>,
    asked: Asked,
    shape: Shape,
    limit: usize,
    is_counted: bool,
) -> Result<Body> {
    let turn = core.turns.answer(&asked.account).await?;
    let scan = turn.scan().await?;
    let cancelled = Cancelled::default();
    let guard = cancelled.guard();
    let (chunks, receiver) = mpsc::channel(CHUNKS_MAX);
    let answer = Answer {
        core: core.clone(),
        turn,
        writer: Writer {
            shape,
            names: core.agent_names(),
            streams: BTreeMap::new(),
            lines: 0,
        },
        chunks,
        buffer: Vec::with_capacity(CHUNK_LEN),
        limit,
        is_counted,
        time_max: asked.time_max,
    };
    tokio::spawn(async move {
        // Whoever waited is gone then, or what is to be said was said.
        if let Err(error) = answer.give(asked, cancelled, scan).await {
            warn!(
                error = format!("{error:#}"),
                "an answer to a search broke off"
            );
        }
    });
    Ok(body_of(receiver, guard))
}

/// A part of an answer, or its end.
enum Chunk {
    Data(Bytes),
    End(HeaderMap),
}

/// A body of what comes through a channel. It breaks off, and is seen to, where the end does not come.
fn body_of(receiver: mpsc::Receiver<Chunk>, guard: CancelOnDrop) -> Body {
    let parts = futures_util::stream::unfold(Some((receiver, guard)), |state| async {
        let (mut receiver, guard) = state?;
        match receiver.recv().await {
            Some(Chunk::Data(bytes)) => Some((Ok(Frame::data(bytes)), Some((receiver, guard)))),
            Some(Chunk::End(headers)) => Some((Ok(Frame::trailers(headers)), None)),
            None => Some((Err(std::io::Error::other(BROKEN_OFF)), None)),
        }
    });
    Body::new(StreamBody::new(parts))
}

struct Answer {
    core: Arc<Core>,
    turn: AnswerTurn,
    writer: Writer,
    chunks: mpsc::Sender<Chunk>,
    buffer: Vec<u8>,
    limit: usize,
    is_counted: bool,
    time_max: Option<Duration>,
}

impl Answer {
    async fn give(mut self, asked: Asked, cancelled: Cancelled, first: ScanTurn) -> Result<()> {
        let mut time_left = self.time_max;
        let mut left_out = LeftOut::default();
        let mut count = 0;
        let mut read_bytes = 0;
        let mut remaining = self.limit;
        let mut scan = first;
        let mut search = None;
        let mut asked = Some(asked);
        self.writer.begin(&mut self.buffer);
        loop {
            // Held until all of the page was handed on.
            let room = self.turn.page_room();
            let wanted = Wanted {
                // One more tells whether there are older ones.
                lines_max: remaining.saturating_add(1),
                bytes_max: room.bytes(),
                histogram: None,
                count_all: self.is_counted && search.is_none(),
                deadline: None,
            };
            let is_first = search.is_none();
            let (core, before) = (self.core.clone(), search.take());
            let (asked, cancelled) = (asked.take(), cancelled.clone());
            let gate = Gate::new(scan, Handle::current(), cancelled.clone());
            let work = move || {
                let started = clock::now();
                let deadline = time_left.map(|time| started + time);
                let mut search = match (before, asked) {
                    (Some(search), _) => search,
                    (None, Some(asked)) => self::search(&core, asked, cancelled, deadline, &gate),
                    (None, None) => return Err(anyhow!("a search without a question")),
                };
                let found = search.page(Wanted { deadline, ..wanted }, &gate);
                let waited = gate.waited();
                drop(gate);
                // Who takes it slowly keeps no more than the page meanwhile.
                if found.read_bytes > GIVEN_BACK_MIN {
                    allocator::give_back();
                }
                let took = clock::now().duration_since(started);
                Ok((search, found, took.saturating_sub(waited)))
            };
            let (left, mut found, took) = tokio::task::spawn_blocking(work).await??;
            search = Some(left);
            time_left = time_left.map(|time| time.saturating_sub(took));
            read_bytes += found.read_bytes;
            if is_first {
                count = found.count;
            }
            left_out.add(&found, self.time_max);
            if found.hits.len() > remaining {
                left_out.limit = Some(self.limit);
                found.hits.truncate(remaining);
            }
            remaining -= found.hits.len();
            let streams = found.hits.iter().map(|hit| hit.place.stream);
            self.writer.streams = self.core.archive.streams_among(streams);
            for hit in core::mem::take(&mut found.hits) {
                self.writer.hit(&hit, &mut self.buffer);
                if self.buffer.len() >= CHUNK_LEN {
                    self.send().await?;
                }
            }
            if left_out.limit.is_some() || found.partial || !found.goes_on {
                break;
            }
            self.send().await?;
            let next = tokio::select! {
                // It had one already: what was begun is not lost to a crowd.
                next = self.turn.scan_again() => next,
                () = self.chunks.closed() => return Ok(()),
            };
            match next {
                Ok(turn) => scan = turn,
                Err(busy) => {
                    left_out.ended = Some(busy.to_string());
                    break;
                }
            }
        }
        drop(search);
        tell_damage(left_out.damaged);
        self.writer.end(&left_out, count, &mut self.buffer);
        self.send().await?;
        let end = Chunk::End(left_out.to_headers());
        let _whoever_left = timeout(STALL_MAX, self.chunks.send(end)).await;
        if read_bytes > GIVEN_BACK_MIN {
            drop(self);
            tokio::task::spawn_blocking(allocator::give_back).await?;
        }
        Ok(())
    }

    async fn send(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let buffer = core::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_LEN));
        send(&self.chunks, buffer).await
    }
}

/// Hands over a part of an answer.
///
/// # Errors
/// Nobody took anything for [`STALL_MAX`], or nobody is there.
async fn send(chunks: &mpsc::Sender<Chunk>, buffer: Vec<u8>) -> Result<()> {
    let sent = timeout(STALL_MAX, chunks.send(Chunk::Data(buffer.into()))).await;
    let sent = sent.with_context(|| {
        format!(
            "whoever asked took nothing of it for {} s",
            STALL_MAX.as_secs()
        )
    })?;
    sent.map_err(|_| anyhow!("whoever asked went away"))
}

/// Lines in the shape that was asked for.
struct Writer {
    shape: Shape,
    names: BTreeMap<AgentId, String>,
    streams: BTreeMap<StreamId, StreamRecord>,
    lines: u64,
}

impl Writer {
    fn begin(&self, out: &mut Vec<u8>) {
        match self.shape {
            Shape::Csv { to_terminal } => {
                if !to_terminal {
                    out.extend_from_slice(present::CSV_MARK.as_bytes());
                }
                out.extend_from_slice(present::CSV_NAMES.as_bytes());
                out.push(b'\n');
            }
            Shape::Api => out.extend_from_slice(b"{\"entries\":["),
            Shape::Raw { .. } | Shape::Json { .. } => {}
        }
    }

    fn hit(&mut self, hit: &Hit, out: &mut Vec<u8>) {
        let view = || View::new(hit, &self.names, &self.streams);
        let json = || shown::json(&view().to_json().to_string()).into_bytes();
        match self.shape {
            Shape::Raw { to_terminal, .. } => {
                present::write_line(out, &hit.bytes, hit.is_gap, to_terminal);
            }
            Shape::Csv { to_terminal } => {
                out.extend_from_slice(view().to_csv(to_terminal).as_bytes());
                out.push(b'\n');
            }
            Shape::Json { .. } => {
                out.extend(json());
                out.push(b'\n');
            }
            Shape::Api => {
                if self.lines > 0 {
                    out.push(b',');
                }
                out.extend(json());
            }
        }
        self.lines += 1;
    }

    /// What was left out, where a reader of the shape finds it.
    fn end(&self, left_out: &LeftOut, count: u64, out: &mut Vec<u8>) {
        let said = match self.shape {
            Shape::Raw { words: Some(t), .. } if !left_out.is_nothing() => {
                let sentences = left_out.sentences(t).join("; ");
                format!("scrinium: {}\n", t.say(&said!("left_out.file", sentences)))
            }
            Shape::Json { limit_is_asked } => {
                let mut said = left_out.clone();
                said.limit = said.limit.filter(|_| !limit_is_asked);
                match said.is_nothing() {
                    true => String::new(),
                    false => format!("{}\n", json!({ "partial": said })),
                }
            }
            Shape::Api => format!(
                "],\"count\":{count},\"partial\":{},\"damaged\":{},\"left_out\":{}}}",
                left_out.ended.is_some(),
                left_out.damaged,
                json!(left_out)
            ),
            Shape::Raw { .. } | Shape::Csv { .. } => String::new(),
        };
        out.extend_from_slice(said.as_bytes());
    }
}

fn search(
    core: &Core,
    asked: Asked,
    cancelled: Cancelled,
    deadline: Option<std::time::Instant>,
    gate: &Gate,
) -> Search {
    let Asked {
        mut query, access, ..
    } = asked;
    query.receipts = core.time.spans();
    let names = core.agent_names();
    Search::new(
        core.archive.clone(),
        &names,
        query,
        access,
        cancelled,
        deadline,
        gate,
    )
}

fn tell_damage(extents: u64) {
    if extents > 0 {
        warn!(
            extents,
            "a search met damaged parts of the archive; run verify"
        );
    }
}

/// What the end of an answer says of it.
pub(crate) const LEFT_OUT: HeaderName = HeaderName::from_static("x-left-out");
const BROKEN_OFF: &str = "the answer broke off";
const CHUNK_LEN: usize = 256 << 10;
/// Chunks that wait for who takes them: 1 MiB.
const CHUNKS_MAX: usize = 4;
/// Who takes nothing for so long is let go: an answer holds one of few places.
const STALL_MAX: Duration = Duration::from_secs(120);
/// Who has read more than this gives memory back to the system; it costs about a millisecond.
const GIVEN_BACK_MIN: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_said_where_each_shape_ends() {
        let writer = |shape| Writer {
            shape,
            names: BTreeMap::new(),
            streams: BTreeMap::new(),
            lines: 0,
        };
        let end = |shape, left_out: &LeftOut| {
            let mut out = Vec::new();
            writer(shape).end(left_out, 7, &mut out);
            String::from_utf8(out).unwrap()
        };
        let found = Found {
            partial: true,
            damaged: 2,
            ..Found::default()
        };
        let left_out = LeftOut::of(&found, Some(Duration::from_secs(20)));
        let raw = Shape::Raw {
            words: Some(Language::En),
            to_terminal: false,
        };
        let csv = Shape::Csv { to_terminal: false };
        let said = end(raw, &left_out);
        assert!(said.starts_with("scrinium: this file does not hold everything"));
        assert!(
            said.contains("the time of 20 s was up") && said.contains("damaged"),
            "{said}"
        );
        let json = Shape::Json {
            limit_is_asked: true,
        };
        let partial = end(json, &left_out);
        assert!(partial.starts_with("{\"partial\":{\"damaged\":2,\"ended\":\"the time of 20 s"));
        let api = format!("{{\"entries\":[{}", end(Shape::Api, &left_out));
        let api: serde_json::Value = serde_json::from_str(&api).unwrap();
        assert_eq!(
            (&api["count"], &api["partial"], &api["damaged"]),
            (&json!(7), &json!(true), &json!(2))
        );
        // What is complete says nothing, and a number that was asked for is no news on a line of JSON.
        let limit = LeftOut {
            limit: Some(3),
            ..LeftOut::default()
        };
        for shape in [raw, csv, json] {
            assert_eq!(end(shape, &LeftOut::default()), "");
        }
        assert_eq!(end(json, &limit), "");
        assert_eq!(
            end(
                Shape::Json {
                    limit_is_asked: false
                },
                &limit
            ),
            "{\"partial\":{\"limit\":3}}\n"
        );
        assert!(limit.sentences(Language::En)[0].contains("the newest 3 entries"));
    }

    #[test]
    fn what_is_left_out_comes_over_the_socket() {
        let all = LeftOut {
            limit: Some(1),
            ended: Some("why".into()),
            why: Some(said!("left_out.time", 20_u64)),
            damaged: 2,
            sealed: 3,
        };
        for left_out in [LeftOut::default(), all] {
            let headers = left_out.to_headers();
            assert_eq!(LeftOut::from_headers(&headers), Some(left_out));
        }
        assert_eq!(LeftOut::from_headers(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn a_body_without_its_end_is_an_error() {
        use http_body_util::BodyExt as _;
        let cancelled = Cancelled::default();
        let (chunks, receiver) = mpsc::channel(2);
        let body = body_of(receiver, cancelled.guard());
        chunks.send(Chunk::Data("some".into())).await.unwrap();
        drop(chunks);
        assert!(body.collect().await.is_err());
        // Whoever made it stops.
        assert!(cancelled.is_set());
    }
}
