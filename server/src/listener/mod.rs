//! Where SL comes in. Syslog has a crate of its own, because agents listen to it too; who may hold a connection
//! of any listener is said there as well. [`doors`] are the limits of this server.

pub(crate) mod doors;
pub(crate) mod seats;
pub(crate) mod sl;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::net::TcpListener;

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

/// The address a listener really got; port 0 asks for any.
pub(crate) fn local_address(listener: &TcpListener) -> Option<SocketAddr> {
    listener.local_addr().ok()
}

/// Pause after a failed accept.
pub(crate) const ACCEPT_RETRY: Duration = Duration::from_millis(50);
