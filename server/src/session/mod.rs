//! One agent's session at work: the [`Receiver`] between a socket and the writer.

pub(crate) mod budget;
mod epochs;
pub(crate) mod held;
mod left;
pub(crate) mod receiver;
mod statement;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use scrinium_protocol::sl::handshake::Established;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

use self::receiver::{Effect, Receiver};
use crate::agents::{Accepted, Begun, Told};
use crate::audit::Actor;
use crate::clock;
use crate::core::Core;
use crate::ingest::{Outcome, Submission};
use crate::said::said;
use crate::waits::{self, Place};

/// Runs the session to its end.
pub(crate) async fn run(
    core: Arc<Core>,
    stream: TcpStream,
    address: SocketAddr,
    accepted: Accepted,
    established: Established,
) {
    let id = accepted.agent.id;
    let place = core.at_work.take().await;
    let begun = core.agents.begin_session(id, established.suite, address);
    drop(place);
    let number = begun.number;
    info!(agent = %id, "an agent connected");
    let outcome = drive(&core, stream, accepted, established, begun).await;
    let trouble = match outcome {
        Ok(reason) => {
            info!(agent = %id, reason, "an agent's session ended");
            None
        }
        Err(error) => {
            warn!(agent = %id, error = format!("{error:#}"), "an agent's session broke");
            let broke = || said!("session.broke", format!("{error:#}"));
            Some(error.downcast_ref().cloned().unwrap_or_else(broke))
        }
    };
    let _place = core.at_work.take().await;
    core.agents.end_session(id, number, trouble);
}

async fn drive(
    core: &Core,
    stream: TcpStream,
    accepted: Accepted,
    established: Established,
    begun: Begun,
) -> Result<String> {
    let Begun {
        mut told, older, ..
    } = begun;
    let mut end = told.clone();
    // An older session may wait for a disk that does not answer. Whoever waits behind it goes when a newer one comes, or
    // when its agent does: connections do not pile up.
    let settled = async {
        // One connection of an agent holds memory, and not as many as it makes.
        older.ended().await;
        // What an older session of this agent submitted must be settled before we state where it stands.
        let (barrier, settled) = oneshot::channel();
        submit(core, Submission::Barrier(barrier)).await?;
        settled.await.context("the writer stopped")
    };
    match unless_over(&stream, &mut end, settled).await? {
        None => return Ok(TOLD.to_owned()),
        Some(settled) => settled?,
    }
    let place = core.at_work.take().await;
    let mut receiver = Receiver::new(core.sessions.clone(), &accepted, established, clock::now())?;
    drop(place);
    drop(accepted);
    let (reader, mut writer) = stream.into_split();
    loop {
        let begun = clock::now();
        while !told.borrow().ended
            && let Some(effect) = receiver.poll_effect()
        {
            // Boxed, here and below: what is rarely done is not kept by every idle session.
            let is_submission = matches!(effect, Effect::Submit(_));
            let done = Box::pin(carry_out(core, effect));
            if is_submission {
                // The writer may take nothing, and who is told to end has nothing for it.
                tokio::select! {
                    biased;
                    _ = end.wait_for(|told| told.ended) => {}
                    done = done => done?,
                }
            } else {
                done.await?;
            }
        }
        loop {
            let Some(place) = place_unless_over(core, &mut end).await else {
                break;
            };
            let Some(bytes) = receiver.poll_transmit(clock::now())? else {
                break;
            };
            drop(place);
            let is_written = tokio::select! {
                biased;
                _ = end.wait_for(|told| told.ended) => false,
                written = write(&mut writer, &bytes) => {
                    written?;
                    true
                }
            };
            if !is_written {
                // A record may be cut: nothing more is written.
                receiver.forget_submissions();
                Box::pin(settle(core, &mut receiver)).await;
                return Ok(TOLD.to_owned());
            }
        }
        receiver.was_busy(begun, clock::now());
        let deadline = receiver.poll_timeout();
        let has_room = receiver.has_room();
        let has_next = receiver.has_next();
        // What comes from outside and what time demands is looked at first, and again after every moment of work at what
        // the agent sent: one that always says something, and has always something acknowledged, puts off neither its end nor its
        // keep-alives.
        let ended = tokio::select! {
            biased;
            changed = told.changed() => {
                let now = *told.borrow_and_update();
                if changed.is_err() || now.ended {
                    // What it sent last is not wanted any more: it was not acknowledged.
                    receiver.forget_submissions();
                    Some(TOLD.to_owned())
                } else {
                    let _place = core.at_work.take().await;
                    receiver.send_configuration(clock::now())?;
                    None
                }
            }
            () = tokio::time::sleep_until(deadline.into()) => {
                let Some(place) = place_unless_over(core, &mut end).await else {
                    continue;
                };
                // What came while the session was at work is heard first: that was no silence.
                let heard = if has_room { read(&reader, &mut receiver) } else { Ok(()) };
                if heard.is_err() {
                    drop(place);
                    Box::pin(finish(core, &mut receiver, &mut writer)).await;
                    heard?;
                    continue;
                }
                receiver.handle_timeout(clock::now(), clock::unix_us())?
            }
            answer = next_answer(&mut receiver.waiting) => {
                let place = core.at_work.take().await;
                let answered = receiver.handle_answers(Some(answer), clock::now());
                drop(place);
                if answered.is_err() {
                    Box::pin(finish(core, &mut receiver, &mut writer)).await;
                }
                answered?;
                None
            }
            // It yields: others go on, and what is above is looked at with a fresh budget of the runtime.
            () = tokio::task::yield_now(), if has_room && has_next => {
                let Some(place) = place_unless_over(core, &mut end).await else {
                    continue;
                };
                // Milliseconds of hashing and decompression: other sessions go on meanwhile.
                let handled = tokio::task::block_in_place(|| handle_some(&mut receiver));
                drop(place);
                if handled.is_err() {
                    Box::pin(finish(core, &mut receiver, &mut writer)).await;
                }
                handled?
            }
            readable = reader.readable(), if has_room && !has_next => {
                readable?;
                let Some(place) = place_unless_over(core, &mut end).await else {
                    continue;
                };
                let read = read(&reader, &mut receiver);
                drop(place);
                if read.is_err() {
                    Box::pin(finish(core, &mut receiver, &mut writer)).await;
                }
                read?;
                None
            }
        };
        if let Some(reason) = ended {
            Box::pin(finish(core, &mut receiver, &mut writer)).await;
            return Ok(reason);
        }
    }
}

/// What the session still wants done when it is over: alarms, and receipts of what is durable.
async fn finish(core: &Core, receiver: &mut Receiver, writer: &mut OwnedWriteHalf) {
    settle(core, receiver).await;
    if let Some(bytes) = receiver.poll_farewell() {
        let _gone = tokio::time::timeout(FAREWELL_MAX, write(writer, &bytes)).await;
    }
}

/// The part of it that is for this server.
async fn settle(core: &Core, receiver: &mut Receiver) {
    while let Some(effect) = receiver.poll_effect() {
        if let Err(error) = carry_out(core, effect).await {
            warn!(error = format!("{error:#}"), "a session could not finish");
        }
    }
}

async fn carry_out(core: &Core, effect: Effect) -> Result<()> {
    match effect {
        Effect::Submit(submission) => submit(core, submission).await?,
        Effect::Raise(raise) => {
            let noted = {
                let _place = core.at_work.take().await;
                core.alarms.note(&raise, None)
            };
            core.alarms.tell_noted(noted).await;
        }
        Effect::Audit(action, detail) => {
            let by = Actor::of("agent");
            core.unsaid.tell(&by, action, detail).await;
        }
        Effect::Unmet(receipt) => {
            let _place = core.at_work.take().await;
            core.catalogue.write(|changes| receipt.keep(changes))?;
        }
    }
    Ok(())
}

/// Takes what the socket has, through a buffer that sessions share: an idle one has none.
fn read(reader: &OwnedReadHalf, receiver: &mut Receiver) -> Result<()> {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_LEN]);
    }
    BUFFER.with_borrow_mut(|buffer| match reader.try_read(buffer) {
        Ok(0) => Err(said!("session.truncated").into()),
        Ok(n) => {
            let bytes = buffer.get(..n).unwrap_or_default();
            // It decrypts: other sessions go on meanwhile.
            tokio::task::block_in_place(|| receiver.take_bytes(bytes, clock::now()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error.into()),
    })
}

/// Handles what came, for a moment; one thing at least. Returns why the session is over, when it is on purpose.
fn handle_some(receiver: &mut Receiver) -> Result<Option<String>> {
    let until = clock::now() + MOMENT;
    loop {
        let ended = receiver.handle_next(clock::now())?;
        let has_more = receiver.has_next() && receiver.has_room();
        if ended.is_some() || !has_more || clock::now() >= until {
            return Ok(ended);
        }
    }
}

/// Writes all of `bytes`. An agent that takes nothing for too long is gone: else its session would wait for it for ever,
/// deaf to whoever disables it.
async fn write(writer: &mut OwnedWriteHalf, bytes: &[u8]) -> Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = tokio::time::timeout(STALLED_MAX, writer.write(rest)).await;
        let written = written.context("the agent takes nothing of what is sent to it")??;
        anyhow::ensure!(written > 0, "the agent's connection takes nothing more");
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// Waits for the oldest answer; for ever when none is due.
async fn next_answer(waiting: &mut VecDeque<oneshot::Receiver<Outcome>>) -> Outcome {
    let Some(front) = waiting.front_mut() else {
        return std::future::pending().await;
    };
    let outcome = front.await.unwrap_or(Outcome::NotWritten);
    waiting.pop_front();
    outcome
}

async fn submit(core: &Core, submission: Submission) -> Result<()> {
    // Waits while the writer's queue is full: the agent's window closes, its spool fills.
    let sent = waits::send(&core.ingest, submission, &core.at_work).await;
    sent.context("the writer stopped")
}

/// A place to work at what may wait for a disk; none when the session is told to end before it gets one.
async fn place_unless_over<'a>(
    core: &'a Core,
    end: &mut watch::Receiver<Told>,
) -> Option<Place<'a>> {
    tokio::select! {
        biased;
        _ = end.wait_for(|told| told.ended) => None,
        place = core.at_work.take() => Some(place),
    }
}

/// Waits for something; none when this session is told to end before.
///
/// # Errors
/// The agent went before.
async fn unless_over<T>(
    stream: &TcpStream,
    told: &mut watch::Receiver<Told>,
    something: impl Future<Output = T>,
) -> Result<Option<T>> {
    tokio::select! {
        biased;
        _ = told.wait_for(|told| told.ended) => Ok(None),
        done = something => Ok(Some(done)),
        () = gone(stream) => Err(said!("session.went").into()),
    }
}

/// Waits until the other end has closed its connection. What it sent before stays there: it is for the session to read.
async fn gone(stream: &TcpStream) {
    loop {
        match stream.ready(Interest::READABLE).await {
            Ok(ready) if !ready.is_read_closed() => tokio::time::sleep(GONE_EVERY).await,
            Ok(_) | Err(_) => return,
        }
    }
}

/// Why a session ended that was told to.
const TOLD: &str = "replaced by a newer session, disabled, or no longer allowed in clear";
/// How long what came is worked at before the session looks up: small batches are some tens, a large one is one.
const MOMENT: Duration = Duration::from_millis(2);
const READ_LEN: usize = 256 << 10;
/// How often a session that waits for an older one looks whether its agent is still there, when that has sent something.
const GONE_EVERY: Duration = Duration::from_secs(1);
/// How long the last words of a session may take: a newer one of the same agent waits for that.
const FAREWELL_MAX: Duration = Duration::from_secs(5);
/// As long as a link of 8 KiB a second needs to empty a third of a large send buffer.
const STALLED_MAX: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(listener.accept(), TcpStream::connect(address));
        (ours.unwrap().0, theirs.unwrap())
    }

    /// What it waits for never comes: the disk of the older session does not answer.
    #[tokio::test]
    async fn a_session_that_waits_for_an_older_one_ends_when_it_is_told_to() {
        let (ours, _theirs) = pair().await;
        let (tell, mut told) = watch::channel(Told::default());
        let waiting = unless_over(&ours, &mut told, std::future::pending::<()>());
        let end = async { tell.send_modify(|told| told.ended = true) };
        let (waited, ()) = tokio::join!(waiting, end);
        assert!(waited.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_session_that_waits_for_an_older_one_ends_when_its_agent_goes() {
        let (ours, mut theirs) = pair().await;
        let (_tell, mut told) = watch::channel(Told::default());
        // It sent something first, which nobody reads.
        theirs.write_all(b"hello").await.unwrap();
        let waiting = unless_over(&ours, &mut told, std::future::pending::<()>());
        let go = async {
            ours.readable().await.unwrap();
            drop(theirs);
        };
        let (waited, ()) = tokio::join!(waiting, go);
        assert!(waited.is_err());
        // Who stays waits until what it waits for is there.
        let (ours, _theirs) = pair().await;
        let waited = unless_over(&ours, &mut told, async { 7 }).await;
        assert_eq!(waited.unwrap(), Some(7));
    }
}
