//! Messages over connections: RFC 6587, octet-counted or line-framed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use scrinium_protocol::identity::StreamKind;
use scrinium_protocol::syslog::frame::{Deframer, Frame};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::{Sink, sender_name, to_entries};

/// Accepts senders until the task is dropped. A sink that is full makes them wait.
pub async fn run_tcp(listener: TcpListener, sink: impl Sink) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut tasks = JoinSet::new();
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        };
        while tasks.try_join_next().is_some() {}
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Without descriptors, say, the error would come back at once, for ever.
                warn!(%error, "accepting a syslog connection failed");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let sink = sink.clone();
        tasks.spawn(async move {
            if let Err(error) = receive(stream, from, &sink).await {
                debug!(%from, %error, "a syslog connection ended");
            }
            drop(permit);
        });
    }
}

async fn receive(mut stream: TcpStream, from: SocketAddr, sink: &impl Sink) -> Result<()> {
    let name = sender_name(from.ip());
    let mut deframer = Deframer::new();
    let mut buffer = vec![0; READ_LEN];
    loop {
        let read = stream.read(&mut buffer).await;
        let len = *read.as_ref().unwrap_or(&0);
        deframer.handle_bytes(buffer.get(..len).unwrap_or_default());
        while let Some(frame) = deframer.poll_frame() {
            put(&name, &frame, sink).await?;
        }
        if len == 0 {
            // The rest of a connection that ended in the middle of a message is kept too.
            if let Some(frame) = deframer.finish() {
                put(&name, &frame, sink).await?;
            }
            read?;
            return Ok(());
        }
    }
}

async fn put(name: &str, frame: &Frame, sink: &impl Sink) -> Result<()> {
    let time_us = sink.now_us();
    for entry in to_entries(
        StreamKind::SyslogTcp,
        name,
        time_us,
        &frame.bytes,
        frame.is_cut,
    ) {
        let taken = sink.put(entry).await;
        taken.then_some(()).context("no entry is taken any more")?;
    }
    Ok(())
}

/// Pause after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
const READ_LEN: usize = 64 << 10;
const CONNECTIONS_MAX: usize = 1024;
