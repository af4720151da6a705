//! The next connection of a listener, through every shortage.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tracing::warn;

use crate::admission::Admission;

/// Waits for the next connection. When accepting fails (no descriptors left, say) it pauses and tries
/// again: without the pause the error would come back at once, for ever. It is said once in ten seconds.
pub async fn accept(listener: &TcpListener, admission: &Admission) -> (TcpStream, SocketAddr) {
    let mut failed: u32 = 0;
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                if failed.is_multiple_of(SAID_EVERY) {
                    warn!(%error, "no connection can be accepted; trying again");
                }
                failed = failed.wrapping_add(1);
                admission.note_not_accepted();
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
/// Failures in a row of which one is logged: ten seconds' worth.
const SAID_EVERY: u32 = 200;
