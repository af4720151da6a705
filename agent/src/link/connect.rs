//! A connection to a host: its addresses, and a socket to the one that answers first.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use scrinium_protocol::route::Address;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::race::{Race, TRIED_MAX, order};
use crate::clock;

/// What is remembered of the hosts on the way, as long as this process lives.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    hosts: BTreeMap<Address, Host>,
}

#[derive(Clone, Debug, Default)]
struct Host {
    /// What the name was last resolved to.
    resolved: Vec<SocketAddr>,
    /// Where the server, or the proxy, was found last.
    good: Option<SocketAddr>,
    /// What took a connection and led nowhere, and when.
    bad: BTreeMap<SocketAddr, Instant>,
}

impl Memory {
    /// The server was found there.
    pub(super) fn note_good(&mut self, host: &Address, address: SocketAddr) {
        let host = self.hosts.entry(host.clone()).or_default();
        host.good = Some(address);
        host.bad.remove(&address);
    }

    /// Something took the connection, and it was not the server.
    pub(super) fn note_bad(&mut self, host: &Address, address: SocketAddr, now: Instant) {
        let host = self.hosts.entry(host.clone()).or_default();
        host.bad
            .retain(|_, since| now.duration_since(*since) < BAD_FOR);
        if host.bad.len() < TRIED_MAX {
            host.bad.insert(address, now);
        }
    }

    fn order(&self, host: &Address, resolved: &[SocketAddr], now: Instant) -> Vec<SocketAddr> {
        let Some(known) = self.hosts.get(host) else {
            return order(resolved, None, |_| false);
        };
        order(resolved, known.good, |address| {
            let since = known.bad.get(address);
            since.is_some_and(|since| now.duration_since(*since) < BAD_FOR)
        })
    }
}

/// Connects to the first address of a host that answers. The socket, and where it leads.
pub(super) async fn connect(
    host: &Address,
    memory: &mut Memory,
) -> Result<(TcpStream, SocketAddr)> {
    let resolved = resolve(host, memory).await?;
    let ordered = memory.order(host, &resolved, clock::now());
    debug!(%host, addresses = ?ordered, "connecting");
    let count = ordered.len();
    let mut race = Race::new(ordered, clock::now());
    // What is still on its way ends with the first that answers: the set is dropped.
    let mut attempts = JoinSet::new();
    let mut problems = Vec::new();
    loop {
        while let Some(address) = race.poll_attempt(clock::now()) {
            attempts.spawn(async move { (address, attempt(address).await) });
        }
        let next_at = race.poll_timeout();
        let wait = async {
            match next_at {
                Some(next_at) => tokio::time::sleep_until(next_at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(done) = attempts.join_next() => match done.context("connecting")? {
                (address, Ok(stream)) => return Ok((stream, address)),
                (address, Err(error)) => {
                    problems.push(format!("{}: {error}", address.ip()));
                    race.handle_failed(clock::now());
                }
            },
            () = wait => {}
            // Nothing is on its way, and nothing is left.
            else => break,
        }
        if attempts.is_empty() && race.poll_timeout().is_none() {
            break;
        }
    }
    match &problems[..] {
        [one] if count == 1 => bail!("connecting to {host}: {one}"),
        all => bail!("connecting to {host}: {}", all.join(", ")),
    }
}

async fn attempt(address: SocketAddr) -> io::Result<TcpStream> {
    let connected = tokio::time::timeout(ATTEMPT_MAX, TcpStream::connect(address)).await;
    connected.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer")))
}

/// What the system's resolver says, which asks for both families at once; what it said last, if it says nothing now.
async fn resolve(host: &Address, memory: &mut Memory) -> Result<Vec<SocketAddr>> {
    static LOOKUPS: Semaphore = Semaphore::const_new(LOOKUPS_MAX);
    let asked = host.clone();
    let looked_up = async {
        let permit = LOOKUPS.acquire().await.map_err(io::Error::other)?;
        let lookup = tokio::task::spawn_blocking(move || {
            let found = (asked.host.as_str(), asked.port).to_socket_addrs();
            // Given back when the resolver has answered, however long ago we left.
            drop(permit);
            found.map(|found| found.take(RESOLVED_MAX).collect::<Vec<_>>())
        });
        lookup.await.map_err(io::Error::other)?
    };
    let looked_up = tokio::time::timeout(RESOLVE_MAX, looked_up).await;
    let problem = match looked_up {
        Ok(Ok(found)) if !found.is_empty() => {
            if found.len() > TRIED_MAX {
                debug!(%host, addresses = found.len(), "a name has more addresses than are tried");
            }
            let known = memory.hosts.entry(host.clone()).or_default();
            known.resolved.clone_from(&found);
            return Ok(found);
        }
        Ok(Ok(_)) => "it has no address".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the resolver does not answer".to_owned(),
    };
    let known = memory.hosts.get(host).map(|known| known.resolved.clone());
    match known.filter(|known| !known.is_empty()) {
        Some(known) => {
            warn!(%host, problem, "a name cannot be resolved: its last addresses are tried");
            Ok(known)
        }
        None => bail!("resolving {}: {problem}", host.host),
    }
}

/// The system tries for two minutes: that is too long while another way may be open.
const ATTEMPT_MAX: Duration = Duration::from_secs(10);
/// glibc asks twice with 5 s each.
const RESOLVE_MAX: Duration = Duration::from_secs(12);
/// Threads that a resolver without an answer may hold.
const LOOKUPS_MAX: usize = 4;
/// Addresses of one name that are kept.
const RESOLVED_MAX: usize = 64;
/// So long an address that led nowhere comes after the others.
const BAD_FOR: Duration = Duration::from_secs(600);
