//! What `search` asks, and how it is answered: lines while they are found, and at the end what was left out.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Failure, audit, caller, container, copy_all};
use crate::answer::{self, Asked, LEFT_OUT, LeftOut, Shape, account_of};
use crate::bounds::{self, QUERY_LEN_MAX};
use crate::core::Core;
use crate::index::search::Wanted;
use crate::times;

/// What `search` asks.
#[derive(Default, Deserialize, Serialize)]
pub(crate) struct SearchRequest {
    pub(crate) query: String,
    pub(crate) from_us: Option<u64>,
    pub(crate) to_us: Option<u64>,
    /// Most lines, if somebody chose; else as many as a person reads.
    pub(crate) limit: Option<usize>,
    pub(crate) format: String,
    pub(crate) count: bool,
    /// The word of an opening of the second container.
    pub(crate) opening: Option<String>,
    /// A person reads it as it comes: nothing in it may move a cursor.
    #[serde(default)]
    pub(crate) to_terminal: bool,
}

pub(super) async fn handle(
    State(core): State<Arc<Core>>,
    Json(request): Json<SearchRequest>,
) -> Result<Response, Failure> {
    bounds::check("the query", &request.query, QUERY_LEN_MAX)?;
    let access = core.archive.openings().access(request.opening.as_deref())?;
    let opening = container::said_of(&access);
    let detail = json!({ "query": request.query, "count": request.count, "container": opening });
    audit(&core, "search", detail).await?;
    let mut query = core.read_query(&request.query)?;
    times::check_order(("--from", request.from_us), ("--to", request.to_us))?;
    query.from_us = request.from_us;
    query.to_us = request.to_us;
    let asked = Asked {
        account: account_of(&caller::local()),
        query,
        access,
        time_max: None,
    };
    if !request.count {
        let limit_is_asked = request.limit.is_some();
        let to_terminal = request.to_terminal;
        let shape = match &*request.format {
            "raw" => Shape::Raw {
                words: None,
                to_terminal,
            },
            "csv" => Shape::Csv { to_terminal },
            "json" => Shape::Json { limit_is_asked },
            other => return Err(anyhow!("format '{other}' must be raw, json or csv").into()),
        };
        let limit = request.limit.unwrap_or(HITS_GIVEN);
        let body = answer::stream(&core, asked, shape, limit, false).await?;
        // What is left out is known when all was given.
        return Ok(([(header::TRAILER, LEFT_OUT.as_str())], body).into_response());
    }
    let wanted = Wanted {
        lines_max: 0,
        bytes_max: 0,
        histogram: None,
        count_all: true,
        deadline: None,
    };
    let found = answer::page(&core, asked, wanted).await?;
    let left_out = LeftOut::of(&found, None);
    Ok((left_out.to_headers(), format!("{}\n", found.count)).into_response())
}

/// Copies what a search found; returns what the answer says at its end.
pub(crate) async fn copy_found(
    response: Response,
    out: &mut (dyn Write + Send),
) -> Result<LeftOut> {
    let at_the_head = LeftOut::from_headers(response.headers());
    let broken_off = "the answer broke off; the server's own log says why";
    let (_, trailers) = copy_all(response, broken_off, out).await?;
    let left_out = at_the_head.or_else(|| LeftOut::from_headers(&trailers));
    left_out.context("the answer has no end; the server's own log says why")
}

/// Lines that a search gives where nobody chose.
const HITS_GIVEN: usize = 1000;
