//! What commands ask of download links.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::export::ExportRequest;
use super::{Failure, caller};
use crate::catalogue::records::LinkRecord;
use crate::clock;
use crate::core::Core;
use crate::links;
use crate::present;

/// A link, as commands show it.
#[derive(Deserialize, Serialize)]
pub(crate) struct Link {
    pub(crate) id: String,
    /// Where it is on the console.
    pub(crate) path: String,
    pub(crate) subject: String,
    pub(crate) by: String,
    pub(crate) made: String,
    pub(crate) until: String,
    pub(crate) over: bool,
    pub(crate) downloads: u64,
}

impl Link {
    fn of(link: &LinkRecord) -> Self {
        Self {
            id: link.id.clone(),
            path: link.path(),
            subject: link.request.subject(),
            by: link.by.clone(),
            made: present::rfc3339(link.made_us),
            until: present::rfc3339(link.end_us),
            over: link.is_over(clock::unix_us()),
            downloads: link.downloads,
        }
    }
}

#[derive(Deserialize, Serialize)]
pub(crate) struct EndRequest {
    pub(crate) id: String,
}

pub(super) async fn handle_list(State(core): State<Arc<Core>>) -> Json<Vec<Link>> {
    Json(core.links.list().iter().map(Link::of).collect())
}

pub(super) async fn handle_make(
    State(core): State<Arc<Core>>,
    Json(request): Json<ExportRequest>,
) -> Result<Json<Link>, Failure> {
    Ok(Json(Link::of(
        &links::make(&core, request, &caller::local()).await?,
    )))
}

pub(super) async fn handle_end(
    State(core): State<Arc<Core>>,
    Json(EndRequest { id }): Json<EndRequest>,
) -> Result<Json<Link>, Failure> {
    Ok(Json(Link::of(
        &links::end(&core, &id, &caller::local()).await?,
    )))
}
