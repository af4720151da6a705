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

    /// What a name was found to be, or what it last was.
    fn settle(
        &mut self,
        host: &Address,
        found: Result<Vec<SocketAddr>, String>,
    ) -> Result<Vec<SocketAddr>> {
        let known = self.hosts.get(host).map(|known| known.resolved.clone());
        match (found, known.filter(|known| !known.is_empty())) {
            (Ok(found), _) => {
                if found.len() > TRIED_MAX {
                    debug!(%host, addresses = found.len(), "a name has more addresses than are tried");
                }
                let known = self.hosts.entry(host.clone()).or_default();
                known.resolved.clone_from(&found);
                Ok(found)
            }
            (Err(problem), Some(known)) => {
                warn!(%host, problem, "a name cannot be resolved: its last addresses are tried");
                Ok(known)
            }
            (Err(problem), None) => bail!("resolving {}: {problem}", host.host),
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
        if attempts.is_empty() && next_at.is_none() {
            break;
        }
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
    let found = match looked_up {
        Ok(Ok(found)) if !found.is_empty() => Ok(found),
        Ok(Ok(_)) => Err("it has no address".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the resolver does not answer".to_owned()),
    };
    memory.settle(host, found)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    fn addresses() -> Vec<SocketAddr> {
        ["127.0.0.1:720", "127.0.0.2:720"]
            .map(|text| text.parse().unwrap())
            .into()
    }

    #[test]
    fn a_name_that_cannot_be_resolved_any_more_is_where_it_last_was() {
        let mut memory = Memory::default();
        let (known, other) = (host("a:720"), host("b:720"));
        let none = || Err("no answer".to_owned());
        let error = memory.settle(&known, none()).unwrap_err();
        assert_eq!(error.to_string(), "resolving a: no answer");
        assert_eq!(memory.settle(&known, Ok(addresses())).unwrap(), addresses());
        assert_eq!(memory.settle(&known, none()).unwrap(), addresses());
        assert!(memory.settle(&other, none()).is_err());
        // It moved.
        let moved = vec![addresses()[1]];
        memory.settle(&known, Ok(moved.clone())).unwrap();
        assert_eq!(memory.settle(&known, none()).unwrap(), moved);
    }

    #[test]
    fn what_led_nowhere_is_last_for_a_while() {
        let start = clock::now();
        let mut memory = Memory::default();
        let host = host("a:720");
        let [first, second] = addresses()[..] else {
            unreachable!()
        };
        memory.note_bad(&host, first, start);
        let order = |memory: &Memory, now| memory.order(&host, &addresses(), now);
        assert_eq!(order(&memory, start), [second, first]);
        assert_eq!(order(&memory, start + BAD_FOR), [first, second]);
        memory.note_good(&host, second);
        assert_eq!(order(&memory, start + BAD_FOR), [second, first]);
        memory.note_bad(&host, second, start + BAD_FOR);
        assert_eq!(order(&memory, start + BAD_FOR), [first, second]);
        memory.note_good(&host, second);
        assert_eq!(order(&memory, start + BAD_FOR), [second, first]);
    }

    /// One that refuses is passed over at once, and both are named when none answers.
    #[test]
    fn the_first_that_answers_is_used() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let localhost = Address {
                host: "127.0.0.1".into(),
                port,
            };
            let mut memory = Memory::default();
            let (_, peer) = connect(&localhost, &mut memory).await.unwrap();
            assert_eq!(peer, listener.local_addr().unwrap());
            drop(listener);
            let error = connect(&localhost, &mut memory)
                .await
                .unwrap_err()
                .to_string();
            assert!(error.contains("connecting to 127.0.0.1"), "{error}");
        });
    }
}
