//! Where SL comes in. Syslog has a crate of its own, because agents listen to it too.

pub(crate) mod admission;
pub(crate) mod sl;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::net::{TcpListener, TcpStream};
use tracing::warn;

/// Binds every address of one configuration key.
pub(crate) async fn bind_tcp(field: &str, addresses: &[String]) -> Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses {
        let listener = TcpListener::bind(address).await;
        listeners
            .push(listener.with_context(|| format!("listen.{field}: cannot listen on {address}"))?);
    }
    Ok(listeners)
}

/// Waits for the next connection. When accepting fails (no descriptors left, say) it pauses and tries
/// again: without the pause the error would come back at once, for ever.
pub(crate) async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// The address a listener really got; port 0 asks for any.
pub(crate) fn local_address(listener: &TcpListener) -> Option<SocketAddr> {
    listener.local_addr().ok()
}

/// Pause after a failed accept.
pub(crate) const ACCEPT_RETRY: Duration = Duration::from_millis(50);
