//! What the agent itself says, as a source of its own: the server has every agent's log, and how it does.

use scrinium_protocol::identity::{StreamKind, StreamName};

use super::{Item, Sink};
use crate::log::LOG;

/// The stream of every agent's own log.
pub(crate) fn stream() -> StreamName {
    StreamName {
        kind: StreamKind::Agent,
        name: "scrinium-agent".into(),
    }
}

/// Hands over what was said, for as long as it is wanted.
pub(crate) async fn run(sink: Sink) {
    let stream = stream();
    loop {
        let (lines, dropped) = LOG.take().await;
        let gap = (dropped > 0).then(|| {
            Item::gap(
                &stream,
                &format!("{dropped} lines of the agent's own log were not kept; its system's log has them"),
            )
        });
        let items = lines.into_iter().map(|line| Item::line(&stream, line));
        for item in items.chain(gap) {
            if !sink.put_item(item).await {
                return;
            }
        }
    }
}
