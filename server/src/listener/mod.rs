//! Where bytes come in: SL from agents, syslog from everything else.

pub(crate) mod sl;
pub(crate) mod syslog;

use std::net::SocketAddr;

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
