//! The Event Log of Windows, through `wevtapi`.

#![expect(
    unsafe_code,
    reason = "the Event Log has no safe interface; every call is one function of wevtapi"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use windows::Win32::Foundation::{
    CloseHandle, ERROR_ACCESS_DENIED, ERROR_EVT_CHANNEL_NOT_FOUND, ERROR_EVT_QUERY_RESULT_STALE,
    ERROR_INSUFFICIENT_BUFFER, ERROR_NO_MORE_ITEMS, ERROR_NOT_FOUND, ERROR_TIMEOUT, HANDLE,
    WIN32_ERROR,
};
use windows::Win32::System::EventLog::{
    EVT_HANDLE, EvtClose, EvtCreateBookmark, EvtFormatMessage, EvtFormatMessageEvent, EvtNext,
    EvtOpenPublisherMetadata, EvtRender, EvtRenderBookmark, EvtRenderEventXml, EvtSubscribe,
    EvtSubscribeStartAfterBookmark, EvtSubscribeStartAtOldestRecord, EvtSubscribeStrict,
    EvtUpdateBookmark,
};
use windows::Win32::System::Threading::{CreateEventW, ResetEvent, WaitForSingleObject};
use windows::core::{HSTRING, PCWSTR};

use super::render::provider;
use super::{Channel, Event, EventLog, Failure, Subscription};

/// The log of this machine.
pub(super) struct Wevtapi {
    /// Events asked for at once by the next subscription.
    batch: Arc<AtomicUsize>,
}

impl Default for Wevtapi {
    fn default() -> Self {
        let batch = Arc::new(AtomicUsize::new(BATCH_MAX));
        Self { batch }
    }
}

/// A handle of the Event Log, closed at the end.
struct Handle(EVT_HANDLE);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, open, and not used again.
        let _closed = unsafe { EvtClose(self.0) };
    }
}

/// What the system signals new events with, closed at the end.
struct Signal(HANDLE);

impl Drop for Signal {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, open, and not used again.
        let _closed = unsafe { CloseHandle(self.0) };
    }
}

/// A subscription; it ends before its signal does.
pub(super) struct Pull {
    subscription: Handle,
    signal: Signal,
    bookmark: Handle,
    batch: usize,
    next_batch: Arc<AtomicUsize>,
    /// By provider; `None` for those that are not installed.
    publishers: BTreeMap<String, Option<Handle>>,
}

impl EventLog for Wevtapi {
    type Subscription = Pull;

    fn subscribe(&mut self, channel: &Channel, bookmark: Option<&str>) -> Result<Pull, Failure> {
        let name = HSTRING::from(&channel.name);
        let query = HSTRING::from(&channel.query);
        let place = bookmark.map(HSTRING::from);
        let place = place
            .as_ref()
            .map_or(PCWSTR::null(), |xml| PCWSTR(xml.as_ptr()));
        // SAFETY: a manual-reset event, signalled at first, without a name.
        let signal = unsafe { CreateEventW(None, true, true, PCWSTR::null()) };
        let signal = Signal(signal.map_err(|error| failure(&error))?);
        // SAFETY: `place` is null or a string that outlives the call.
        let own = unsafe { EvtCreateBookmark(place) };
        let own = Handle(own.map_err(|error| failure(&error))?);
        let (flags, after) = match bookmark {
            Some(_) => (
                EvtSubscribeStartAfterBookmark.0 | EvtSubscribeStrict.0,
                Some(own.0),
            ),
            None => (EvtSubscribeStartAtOldestRecord.0, None),
        };
        // SAFETY: strings and handles outlive the call; without a callback there is no context.
        let subscription = unsafe {
            EvtSubscribe(
                None,
                Some(signal.0),
                &name,
                &query,
                after,
                None,
                None,
                flags,
            )
        };
        Ok(Pull {
            subscription: Handle(subscription.map_err(|error| failure(&error))?),
            signal,
            bookmark: own,
            batch: self.batch.swap(BATCH_MAX, Ordering::Relaxed),
            next_batch: self.batch.clone(),
            publishers: BTreeMap::new(),
        })
    }
}

impl Subscription for Pull {
    fn next(&mut self, patience: Duration) -> Result<Vec<Event>, Failure> {
        let mut handles = [0; BATCH_MAX];
        let wanted = handles.get_mut(..self.batch).unwrap_or_default();
        let mut got = 0;
        // SAFETY: the system writes at most as many handles as there is room for, and says how many.
        let next = unsafe { EvtNext(self.subscription.0, wanted, 0, 0, &raw mut got) };
        if let Err(error) = next {
            let code = WIN32_ERROR::from_error(&error);
            if matches!(code, Some(ERROR_NO_MORE_ITEMS | ERROR_TIMEOUT)) {
                let wait_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
                // SAFETY: the signal is ours and open. Reset before asking again: nothing is missed.
                unsafe {
                    WaitForSingleObject(self.signal.0, wait_ms);
                    let _reset = ResetEvent(self.signal.0);
                }
                return Ok(Vec::new());
            }
            if code == Some(RPC_S_INVALID_BOUND) {
                // These events are more than a call may carry: the next subscription asks for one.
                self.next_batch.store(1, Ordering::Relaxed);
            }
            return Err(failure(&error));
        }
        let got = usize::try_from(got).unwrap_or(0);
        let handles: Vec<Handle> = handles
            .iter()
            .take(got)
            .map(|&h| Handle(EVT_HANDLE(h)))
            .collect();
        handles.iter().map(|event| self.read(event)).collect()
    }
}

impl Pull {
    fn read(&mut self, event: &Handle) -> Result<Event, Failure> {
        let xml = render(event.0, EvtRenderEventXml.0)?;
        // SAFETY: both handles are open.
        let updated = unsafe { EvtUpdateBookmark(self.bookmark.0, event.0) };
        updated.map_err(|error| failure(&error))?;
        Ok(Event {
            message: self.message(&xml, event),
            bookmark: render(self.bookmark.0, EvtRenderBookmark.0)?,
            xml,
        })
    }

    /// The text the event's publisher gives it.
    fn message(&mut self, xml: &str, event: &Handle) -> Option<String> {
        let provider = provider(xml)?;
        if self.publishers.len() > PUBLISHERS_MAX {
            self.publishers.clear();
        }
        let publisher = self.publishers.entry(provider).or_insert_with_key(|name| {
            let name = HSTRING::from(name);
            // SAFETY: the name outlives the call.
            let opened = unsafe { EvtOpenPublisherMetadata(None, &name, PCWSTR::null(), 0, 0) };
            opened.ok().map(Handle)
        });
        let publisher = publisher.as_ref()?.0;
        let mut buffer = vec![0_u16; TEXT_LEN];
        for _ in 0..2 {
            let mut used = 0;
            // SAFETY: both handles are open; the system writes into the buffer only.
            let formatted = unsafe {
                EvtFormatMessage(
                    Some(publisher),
                    Some(event.0),
                    0,
                    None,
                    EvtFormatMessageEvent.0,
                    Some(&mut buffer),
                    &raw mut used,
                )
            };
            let used = usize::try_from(used).unwrap_or(0);
            match formatted {
                Ok(()) => return Some(text(&buffer, used)),
                Err(error) if is_too_small(&error) && used <= TEXT_LEN_MAX => {
                    buffer.resize(used, 0)
                }
                Err(_) => return None,
            }
        }
        None
    }
}

/// An event as XML, or a bookmark.
fn render(handle: EVT_HANDLE, what: u32) -> Result<String, Failure> {
    let mut buffer = vec![0_u16; TEXT_LEN];
    loop {
        let (mut used, mut properties) = (0, 0);
        let len = u32::try_from(buffer.len() * 2).unwrap_or(0);
        // SAFETY: the handle is open; the system writes at most `len` bytes into the buffer.
        let rendered = unsafe {
            EvtRender(
                None,
                handle,
                what,
                len,
                Some(buffer.as_mut_ptr().cast()),
                &raw mut used,
                &raw mut properties,
            )
        };
        let used = usize::try_from(used).unwrap_or(0) / 2;
        match rendered {
            Ok(()) => return Ok(text(&buffer, used)),
            Err(error) if is_too_small(&error) && (buffer.len()..=TEXT_LEN_MAX).contains(&used) => {
                buffer.resize(used + 1, 0);
            }
            Err(error) => return Err(failure(&error)),
        }
    }
}

fn text(buffer: &[u16], used: usize) -> String {
    let text = buffer.get(..used).unwrap_or(buffer);
    let end = text
        .iter()
        .position(|&unit| unit == 0)
        .unwrap_or(text.len());
    String::from_utf16_lossy(text.get(..end).unwrap_or_default())
}

fn is_too_small(error: &windows::core::Error) -> bool {
    WIN32_ERROR::from_error(error) == Some(ERROR_INSUFFICIENT_BUFFER)
}

fn failure(error: &windows::core::Error) -> Failure {
    match WIN32_ERROR::from_error(error) {
        Some(ERROR_NOT_FOUND | ERROR_EVT_QUERY_RESULT_STALE) => Failure::Stale,
        Some(ERROR_EVT_CHANNEL_NOT_FOUND) => Failure::NoChannel,
        Some(ERROR_ACCESS_DENIED) => Failure::Denied,
        Some(code) => Failure::Lost(code.0),
        None => Failure::Lost(error.code().0.cast_unsigned()),
    }
}

/// Events asked for at once. More can be more than a call may carry (`RPC_S_INVALID_BOUND`).
const BATCH_MAX: usize = 16;
/// Characters of an event, at first and at most.
const TEXT_LEN: usize = 8 << 10;
const TEXT_LEN_MAX: usize = 16 << 20;
const PUBLISHERS_MAX: usize = 512;
/// "The array bounds are invalid" (winerror.h): these events are more than a call may carry.
const RPC_S_INVALID_BOUND: WIN32_ERROR = WIN32_ERROR(1734);
