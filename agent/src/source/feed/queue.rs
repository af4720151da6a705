//! The way from a source to its batches, bounded in entries and in bytes: a local user who sends the longest messages
//! there are must not cost more memory than one who sends short ones.

use std::sync::{Arc, Mutex, PoisonError};
#[cfg(any(test, windows))]
use std::time::Duration;

use scrinium_syslog::{Received, Sink as SyslogSink};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{Item, Waker};
use crate::clock;

/// Where a source puts its entries.
#[derive(Clone)]
pub(crate) struct Sink {
    items: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
    waker: Waker,
    trouble: Trouble,
}

/// Why nothing comes of a source, while that is so.
#[derive(Clone, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    pub(super) fn get(&self) -> Option<String> {
        let trouble = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.clone()
    }
}

/// Where they are taken from.
pub(crate) struct Queue(mpsc::Receiver<Queued>);

/// An entry, and the bytes it counts for until it is taken.
struct Queued {
    item: Item,
    _room: OwnedSemaphorePermit,
}

/// A queue of at most `items_max` entries and [`BYTES_MAX`] bytes.
pub(super) fn queue(items_max: usize, waker: Waker) -> (Sink, Queue) {
    let (items, received) = mpsc::channel(items_max);
    let room = Arc::new(Semaphore::new(BYTES_MAX));
    let sink = Sink {
        items,
        room,
        waker,
        trouble: Trouble::default(),
    };
    (sink, Queue(received))
}

impl Queue {
    pub(super) fn try_next(&mut self) -> Option<Item> {
        self.0.try_recv().ok().map(|queued| queued.item)
    }

    #[cfg(test)]
    pub(crate) async fn recv(&mut self) -> Option<Item> {
        self.0.recv().await.map(|queued| queued.item)
    }

    #[cfg(test)]
    pub(crate) fn blocking_recv(&mut self) -> Option<Item> {
        self.0.blocking_recv().map(|queued| queued.item)
    }

    /// Nothing more comes in; what came stays.
    pub(super) fn close(&mut self) {
        self.0.close();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Sink {
    /// Says why nothing comes of the source, or that something does again.
    pub(crate) fn set_trouble(&self, trouble: Option<String>) {
        *self
            .trouble
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Where that is read.
    pub(super) fn trouble(&self) -> Trouble {
        self.trouble.clone()
    }

    /// Waits for room; `false` when the source is no longer wanted.
    pub(crate) async fn put_item(&self, item: Item) -> bool {
        let taken = tokio::select! {
            biased;
            () = self.items.closed() => false,
            room = self.room.clone().acquire_many_owned(cost_of(&item)) => match room {
                Ok(room) => self.items.send(Queued { item, _room: room }).await.is_ok(),
                Err(_) => false,
            },
        };
        self.waker.wake();
        taken
    }

    /// The same, on a thread of one's own.
    #[cfg(any(test, windows))]
    #[expect(
        clippy::disallowed_methods,
        reason = "the thread is the caller's own, and has nothing else to do"
    )]
    pub(super) fn put_item_blocking(&self, item: Item) -> bool {
        let taken = loop {
            match self.room.clone().try_acquire_many_owned(cost_of(&item)) {
                Ok(room) => {
                    break self
                        .items
                        .blocking_send(Queued { item, _room: room })
                        .is_ok();
                }
                Err(_) if self.items.is_closed() => break false,
                // The spool is full: it takes as long as it takes, and a semaphore wakes no thread that is not of the runtime.
                Err(_) => std::thread::sleep(ROOM_RETRY),
            }
        };
        self.waker.wake();
        taken
    }

    #[cfg(test)]
    pub(crate) fn for_test(items_max: usize) -> (Self, Queue) {
        let (commands, _nobody) = std::sync::mpsc::sync_channel(1);
        queue(items_max, Waker::new(commands))
    }
}

impl SyslogSink for Sink {
    fn now_us(&self) -> u64 {
        clock::unix_us()
    }

    fn now(&self) -> std::time::Instant {
        clock::now()
    }

    fn try_put(&self, received: Received) -> bool {
        let item = Item::from(received);
        let room = self.room.clone().try_acquire_many_owned(cost_of(&item));
        let taken = room.is_ok_and(|room| {
            let queued = Queued { item, _room: room };
            self.items.try_send(queued).is_ok()
        });
        self.waker.wake();
        taken
    }

    async fn put(&self, received: Received) -> bool {
        self.put_item(received.into()).await
    }
}

/// The bytes an entry counts for.
fn cost_of(item: &Item) -> u32 {
    let bytes = item.bytes.len() + item.stream.name.len() + item.bookmark.len() + ITEM_COST;
    u32::try_from(bytes.min(BYTES_MAX)).unwrap_or(u32::MAX)
}

/// Bytes between one source and its batches. A burst of datagrams has as much before they are dropped and counted.
const BYTES_MAX: usize = 8 << 20;
/// What an entry costs besides its bytes.
const ITEM_COST: usize = 128;
/// Pause before a thread looks for room again.
#[cfg(any(test, windows))]
const ROOM_RETRY: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use scrinium_protocol::entry::{ENTRY_LEN_MAX, EntryFlags};
    use scrinium_protocol::identity::StreamKind;

    use super::*;

    fn received(len: usize) -> Received {
        Received {
            kind: StreamKind::SyslogUdp,
            name: "192.0.2.1".into(),
            connection: 0,
            time_us: 1,
            flags: EntryFlags::NONE,
            bytes: vec![b'x'; len],
        }
    }

    #[tokio::test]
    async fn the_queue_is_full_by_bytes_as_by_entries_and_what_is_taken_makes_room() {
        let (sink, mut queue) = Sink::for_test(4096);
        let count = |len: usize| {
            (0..5000)
                .take_while(|_| sink.try_put(received(len)))
                .count()
        };
        let long = count(ENTRY_LEN_MAX);
        assert!((100..=BYTES_MAX / ENTRY_LEN_MAX).contains(&long), "{long}");
        while queue.try_next().is_some() {}
        assert_eq!(count(100), 4096);
        while queue.try_next().is_some() {}
        assert_eq!(count(ENTRY_LEN_MAX), long);
        // Who can wait does, and goes on when there is room, or nobody is there any more.
        let waits = sink.put(received(ENTRY_LEN_MAX));
        tokio::pin!(waits);
        tokio::select! {
            biased;
            _ = &mut waits => panic!("there is no room"),
            () = std::future::ready(()) => {}
        }
        queue.try_next().unwrap();
        assert!(waits.await);
        let waits = sink.put(received(ENTRY_LEN_MAX));
        drop(queue);
        assert!(!waits.await);
        let own = sink.clone();
        let puts = move || own.put_item_blocking(received(ENTRY_LEN_MAX).into());
        assert!(!std::thread::spawn(puts).join().unwrap());
    }
}
