//! Who is at the other end of the control socket: the kernel says which user's process it is.

use std::os::unix::fs::MetadataExt as _;

use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use tokio::net::UnixStream;

use super::LOCAL;
use crate::audit::Actor;
use crate::i18n::Language;

tokio::task_local! {
    /// The user of the process whose request this task serves.
    static USER: Option<u32>;
    /// What whoever asks reads.
    static LANGUAGE: Language;
}

/// Serves a request in the language that it names.
pub(super) async fn in_language(request: Request, next: Next) -> Response {
    let header = request.headers().get(header::ACCEPT_LANGUAGE);
    let header = header.and_then(|value| value.to_str().ok());
    let language = Language::accepted(header.unwrap_or_default());
    LANGUAGE.scope(language, next.run(request)).await
}

/// The language of the request that is served.
pub(super) fn language() -> Language {
    LANGUAGE
        .try_with(|language| *language)
        .unwrap_or(Language::En)
}

/// The user of the process at the other end of a connection.
pub(super) fn user_of(stream: &UnixStream) -> Option<u32> {
    stream.peer_cred().ok().map(|peer| peer.uid())
}

/// Serves a connection as that of a process of `user`.
pub(super) async fn serving<F: Future>(user: Option<u32>, served: F) -> F::Output {
    USER.scope(user, served).await
}

/// Whoever runs the command that is served: its process is on this machine, and no account has proven itself.
pub(crate) fn local() -> Actor {
    Actor {
        name: LOCAL.to_owned(),
        address: address(),
        is_account: false,
    }
}

/// An account that proved itself to a command.
pub(super) fn account(name: &str) -> Actor {
    Actor {
        name: name.to_owned(),
        address: address(),
        is_account: true,
    }
}

fn address() -> String {
    // Without a connection the command serves itself.
    let user = USER.try_with(|user| *user).unwrap_or_else(|_| own());
    match user {
        Some(user) => format!("local, uid {user}"),
        None => "local".to_owned(),
    }
}

/// The user of this process.
fn own() -> Option<u32> {
    let process = std::fs::metadata("/proc/self").ok()?;
    Some(process.uid())
}
