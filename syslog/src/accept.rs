//! The next connection of a listener, through every shortage.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tracing::warn;

use crate::admission::Admission;

/// Waits for the next connection. When accepting fails (no descriptors left, say) it pauses and tries
/// again: without the pause the error would come back at once, for ever. It is counted, and said once in ten seconds:
/// what is counted is the listener's, and does not begin anew with each connection that comes in between.
pub async fn accept(listener: &TcpListener, admission: &Admission) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                if admission.note_not_accepted(Instant::now().into_std()) {
                    warn!(%error, "no connection can be accepted; trying again");
                }
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Limits what the kernel holds of what is sent on a connection: so it shows soon whether the other end takes it.
///
/// # Errors
/// The kernel refuses.
pub fn limit_send_buffer(stream: &TcpStream, bytes: usize) -> std::io::Result<()> {
    SockRef::from(stream).set_send_buffer_size(bytes)
}

/// Pause after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
