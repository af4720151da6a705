//! What commands and the console ask to be exported.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Write};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use scrinium_protocol::identity::StreamKind;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tracing::{info, warn};

use super::{Failure, audit_as, caller, container};
use crate::allocator;
use crate::answer::account_of;
use crate::archive::container::{Access, parse_recipient};
use crate::audit::Actor;
use crate::bounds::{
    self, NAME_LEN_MAX, QUERY_LEN_MAX, REASON_LEN_MAX, REFERENCE_LEN_MAX, STREAM_LEN_MAX,
};
use crate::catalogue::records::StreamRecord;
use crate::core::Core;
use crate::i18n::Language;
use crate::index::cancelled::Cancelled;
use crate::index::reading::Reading;
use crate::package::{self, Form, Order, Paper, Table, Wanted};
use crate::said::said;
use crate::{present, times};

/// What `export` asks: one source, or what matches a query.
#[derive(Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct ExportRequest {
    /// The source: an agent's name, and a path.
    pub(crate) agent: Option<String>,
    pub(crate) path: Option<String>,
    /// Its kind, where streams of several kinds have that name, as the one of a sender over UDP and over TCP.
    pub(crate) kind: Option<String>,
    pub(crate) query: Option<String>,
    /// Collected at or after, and before: Unix µs.
    pub(crate) from_us: Option<u64>,
    pub(crate) to_us: Option<u64>,
    /// Nothing that was received later, Unix µs: a link gives what was there when it was made.
    pub(crate) received_until_us: Option<u64>,
    /// `raw` or `package`.
    pub(crate) format: String,
    /// `csv`, `json` or `none`.
    pub(crate) table: String,
    /// Of the sheet that goes with a package: `en`, `it` or `fr`.
    pub(crate) language: String,
    /// Who wants it, what they call it, and what for.
    pub(crate) authority: Option<String>,
    pub(crate) reference: Option<String>,
    pub(crate) purpose: Option<String>,
    /// An age recipient who alone can read it.
    pub(crate) recipient: Option<String>,
    /// The word of an opening of the second container.
    pub(crate) opening: Option<String>,
}

impl ExportRequest {
    /// What is wanted, in a line: a source, or a query.
    pub(crate) fn subject(&self) -> String {
        match (&self.agent, &self.path) {
            (Some(agent), Some(path)) => match &self.kind {
                Some(kind) => format!("{agent} {kind} {path}"),
                None => format!("{agent} {path}"),
            },
            _ => self.query.clone().unwrap_or_default(),
        }
    }

    /// What it is called when it is a file.
    pub(crate) fn file_name(&self) -> &'static str {
        match (self.format.as_str(), self.recipient.is_some()) {
            ("raw", false) => "scrinium.log",
            ("raw", true) => "scrinium.log.age",
            (_, false) => "scrinium-package.tar",
            (_, true) => "scrinium-package.tar.age",
        }
    }

    /// A package with everything that it can hold.
    pub(crate) fn package(language: Language) -> Self {
        Self {
            format: "package".into(),
            table: "csv".into(),
            language: language.code().into(),
            ..Self::default()
        }
    }
}

pub(super) async fn handle(
    State(core): State<Arc<Core>>,
    Json(request): Json<ExportRequest>,
) -> Result<Response, Failure> {
    Ok(begin(core, request, &caller::local())
        .await?
        .into_response())
}

/// A body that is what `by` asks for; it breaks off if the export fails. It is in the audit trail first.
pub(crate) async fn begin(core: Arc<Core>, request: ExportRequest, by: &Actor) -> Result<Body> {
    request.check_texts()?;
    let access = core.archive.openings().access(request.opening.as_deref())?;
    let about = request.about(&by.name, &access);
    let order = request.order(&core, about.clone())?;
    let turn = core.turns.answer(&account_of(by)).await?;
    let scan = turn.scan().await?;
    let audited = json!({
        "format": request.format, "request": about, "container": container::said_of(&access),
    });
    audit_as(&core, by, "export", audited).await?;
    let is_package = request.format != "raw";
    let (chunks, receiver) = mpsc::channel::<Result<Bytes>>(CHUNKS_MAX);
    let cancelled = Cancelled::default();
    let guard = cancelled.guard();
    let reading = Reading::begin(turn, scan, cancelled);
    tokio::task::spawn_blocking(move || {
        let mut out = ChunkWriter {
            chunks: chunks.clone(),
            reading: &reading,
            waited: 0,
            buffer: Vec::with_capacity(CHUNK_LEN),
        };
        if is_package {
            // It may wait for others who ask: without a processor. Who went away meanwhile is noticed by what reads.
            let published = reading.rest(|| publish(&core, &order.wanted));
            if let Ok(Err(error)) = published {
                // The package says what is in no interval.
                let error = format!("{error:#}");
                warn!(error, "no interval was published before an export");
            }
        }
        let done = package::write(&core, order, &access, &reading, &mut out);
        let done = done.and_then(|()| Ok(out.flush()?));
        allocator::give_back();
        match done {
            Ok(()) => {}
            Err(_) if reading.is_over() => info!("an export ended: whoever asked went away"),
            Err(error) => {
                warn!(error = format!("{error:#}"), "an export failed");
                drop(chunks.blocking_send(Err(error)));
            }
        }
    });
    let stream = futures_util::stream::unfold((receiver, guard), |(mut receiver, guard)| async {
        let chunk = receiver.recv().await?;
        Some((chunk.map_err(Error::other), (receiver, guard)))
    });
    Ok(Body::from_stream(stream))
}

/// Publishes an interval, so that all of what is wanted can be proven, unless all of it is in one already.
fn publish(core: &Core, wanted: &Wanted) -> Result<()> {
    let streams = wanted.streams(&core.archive, &core.agent_names());
    let doubt = || core.time.doubt();
    core.evidence.publish(&core.archive, &streams, doubt)
}

impl ExportRequest {
    /// What manifest and audit trail say of who asked for what; the fields that were given.
    fn about(&self, by: &str, access: &Access) -> BTreeMap<&'static str, String> {
        let opening = access.opening();
        let fields = [
            ("by", Some(by.to_owned())),
            ("agent", self.agent.clone()),
            ("path", self.path.clone()),
            ("kind", self.kind.clone()),
            ("query", self.query.clone()),
            ("from", self.from_us.map(present::rfc3339)),
            ("to", self.to_us.map(present::rfc3339)),
            ("authority", self.authority.clone()),
            ("reference", self.reference.clone()),
            ("purpose", self.purpose.clone()),
            ("recipient", self.recipient.clone()),
            ("opened_by", opening.map(|opening| opening.by.clone())),
            ("opened_for", opening.map(|opening| opening.purpose.clone())),
        ];
        let given = fields.into_iter();
        given
            .filter_map(|(field, value)| Some((field, value?)))
            .collect()
    }

    /// Whether what was written into it keeps to its bounds.
    fn check_texts(&self) -> Result<()> {
        let fields = [
            ("--agent", &self.agent, NAME_LEN_MAX),
            ("--path", &self.path, STREAM_LEN_MAX),
            ("--kind", &self.kind, NAME_LEN_MAX),
            ("--query", &self.query, QUERY_LEN_MAX),
            ("--authority", &self.authority, REFERENCE_LEN_MAX),
            ("--reference", &self.reference, REFERENCE_LEN_MAX),
            ("--purpose", &self.purpose, REASON_LEN_MAX),
            ("--recipient", &self.recipient, REASON_LEN_MAX),
        ];
        let mut fields = fields.into_iter();
        fields.try_for_each(|(field, text, max)| bounds::check_given(field, text.as_deref(), max))
    }

    /// Whether it can be asked for. From here on it means the stream that it means now, whatever others are given its name.
    pub(crate) fn settle(&mut self, core: &Core) -> Result<()> {
        self.check_texts()?;
        if let (Some(agent), Some(path)) = (&self.agent, &self.path) {
            let stream = find_stream(core, agent, path, self.kind.as_deref())?;
            self.kind = Some(stream.kind.name().to_owned());
        }
        self.order(core, BTreeMap::new()).map(drop)
    }

    fn order(&self, core: &Core, about: BTreeMap<&'static str, String>) -> Result<Order> {
        let stream = match (&self.agent, &self.path, &self.query) {
            (Some(agent), Some(path), None) => {
                Some(find_stream(core, agent, path, self.kind.as_deref())?.id)
            }
            (None, None, Some(_)) if self.kind.is_none() => None,
            _ => bail!("what to export: --agent with --path and perhaps --kind, or --query"),
        };
        let mut query = core.read_query(self.query.as_deref().unwrap_or_default())?;
        times::check_order(("--from", self.from_us), ("--to", self.to_us))?;
        (query.from_us, query.to_us) = (self.from_us, self.to_us);
        query.receipts = core.time.spans();
        let recipient = self.recipient.as_deref().map(parse_recipient).transpose();
        let form = match &*self.format {
            "raw" => Form::Raw,
            "package" => Form::Package(Paper {
                table: match &*self.table {
                    "csv" => Table::Csv,
                    "json" => Table::Json,
                    "none" => Table::None,
                    other => bail!("--table '{other}' must be csv, json or none"),
                },
                request: about,
                language: Language::from_code(&self.language).with_context(|| {
                    format!("--language '{}' must be en, it or fr", self.language)
                })?,
            }),
            other => bail!("--format '{other}' must be raw or package"),
        };
        Ok(Order {
            wanted: Wanted {
                stream,
                query,
                received_until_us: self.received_until_us,
            },
            form,
            recipient: recipient?,
        })
    }
}

/// Finds the stream of an agent by its path, and by its kind where that does not say which: anybody may send datagrams in
/// the name of a sender that has a connection.
fn find_stream(core: &Core, agent: &str, path: &str, kind: Option<&str>) -> Result<StreamRecord> {
    let names = core.agent_names();
    let id = names
        .iter()
        .find(|(_, name)| *name == agent)
        .map(|(id, _)| *id);
    let id = id.ok_or_else(|| said!("refused.no_agent", agent))?;
    let named = |text: &str| StreamKind::ALL.into_iter().find(|kind| kind.name() == text);
    let kind = kind.map(|text| {
        let kinds = StreamKind::ALL.map(StreamKind::name).join(", ");
        named(text).ok_or_else(|| said!("refused.kind", text, kinds))
    });
    let kind = kind.transpose()?;
    let kinds = StreamKind::ALL.into_iter();
    let meant = kinds.filter(|one| kind.is_none_or(|kind| kind == *one));
    let mut streams: Vec<StreamRecord> = meant
        .filter_map(|kind| core.archive.find_stream(id, kind, path))
        .collect();
    let Some(stream) = streams.pop() else {
        return Err(match kind {
            None => said!("refused.no_stream", agent, path),
            Some(kind) => said!("refused.no_stream_of_kind", agent, path, kind.name()),
        }
        .into());
    };
    let others: Vec<&str> = streams.iter().map(|other| other.kind.name()).collect();
    if !others.is_empty() {
        let kinds = format!("{}, {}", others.join(", "), stream.kind.name());
        return Err(said!("refused.several_streams", agent, path, kinds).into());
    }
    Ok(stream)
}

struct ChunkWriter<'a> {
    chunks: mpsc::Sender<Result<Bytes>>,
    reading: &'a Reading,
    /// How often it waited for its client.
    waited: usize,
    buffer: Vec<u8>,
}

impl Write for ChunkWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK_LEN {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let chunk = core::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_LEN));
        match self.chunks.try_send(Ok(chunk.into())) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(_)) => Err(Error::new(ErrorKind::BrokenPipe, GONE)),
            // Who takes it slowly holds no processor meanwhile.
            Err(TrySendError::Full(chunk)) => {
                if self.waited.is_multiple_of(CHUNKS_BETWEEN) {
                    // What was read and compared before goes back to the system; it costs about a millisecond.
                    allocator::give_back();
                }
                self.waited += 1;
                let sent = self.reading.rest(|| self.chunks.blocking_send(chunk));
                let sent = sent.map_err(Error::other)?;
                sent.map_err(|_| Error::new(ErrorKind::BrokenPipe, GONE))
            }
        }
    }
}

const GONE: &str = "whoever asked went away";
/// Chunks between two times that memory is given back: 16 MiB.
const CHUNKS_BETWEEN: usize = 64;
const CHUNK_LEN: usize = 256 << 10;
const CHUNKS_MAX: usize = 8;
