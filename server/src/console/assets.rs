//! Style sheet, script and icon, in the program itself, under names that change with their content.

use std::sync::OnceLock;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use data_encoding::HEXLOWER;
use scrinium_protocol::kdf::sha256;

/// The URL of an asset by its plain name; panics never, an unknown name is shown as it is.
pub(crate) fn url(name: &str) -> String {
    let found = assets().iter().find(|asset| asset.name == name);
    found.map_or_else(
        || name.to_owned(),
        |asset| format!("/assets/{}", asset.hashed),
    )
}

/// Serves an asset by its hashed name.
pub(crate) async fn serve(Path(name): Path<String>) -> Response {
    let Some(asset) = assets().iter().find(|asset| asset.hashed == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, asset.content_type),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
    ];
    (headers, asset.content).into_response()
}

struct Asset {
    name: &'static str,
    content_type: &'static str,
    content: &'static str,
    hashed: String,
}

fn assets() -> &'static [Asset] {
    static ASSETS: OnceLock<Vec<Asset>> = OnceLock::new();
    ASSETS.get_or_init(|| {
        [
            (
                "style.css",
                "text/css; charset=utf-8",
                include_str!("../../assets/style.css"),
            ),
            (
                "app.js",
                "text/javascript; charset=utf-8",
                include_str!("../../assets/app.js"),
            ),
            (
                "icon.svg",
                "image/svg+xml",
                include_str!("../../assets/icon.svg"),
            ),
        ]
        .into_iter()
        .map(|(name, content_type, content)| {
            let [a, b, c, d, e, f, ..] = sha256(&[content.as_bytes()]);
            let hashed = format!("{}-{name}", HEXLOWER.encode(&[a, b, c, d, e, f]));
            Asset {
                name,
                content_type,
                content,
                hashed,
            }
        })
        .collect()
    })
}
