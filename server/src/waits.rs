//! What may wait for a disk, or for who waits for one, leaves the threads that serve everybody.
//!
//! ```text
//! task ─▶ worker thread ─▶ [off_worker]: the worker's other tasks go to another thread ─▶ disk
//! ```
//!
//! A few worker threads drive all sessions, pages and commands. One that waits for a write of the catalogue, or for a lock that
//! is held while somebody else writes, drives nobody. Every lock of the server that is held over a write is taken by [`lock`],
//! [`read`] or [`write()`] (`structure.rs` looks after that), and the catalogue is read and written in [`off_worker`].

use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{
    Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Places for what may wait, of those who are very many: sessions, and agents that shake hands. A thread that waits is one of
/// the runtime's [`THREADS_MAX`], and without any it drives nobody. Who has no place waits as a task.
#[derive(Debug)]
pub(crate) struct Places(Semaphore);

/// A place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place<'a>(
    #[expect(dead_code, reason = "it is held")] Option<SemaphorePermit<'a>>,
);

impl Places {
    pub(crate) fn new() -> Self {
        Self(Semaphore::new(PLACES))
    }

    /// Waits for a place. It is not kept while its holder waits for somebody's network.
    pub(crate) async fn take(&self) -> Place<'_> {
        // It is never closed.
        Place(self.0.acquire().await.ok())
    }
}

/// Hands something to a thread that takes it from a queue of bounded length, and waits while that is full; in one of the
/// `places`. None when that thread is gone.
pub(crate) async fn send<T>(queue: &SyncSender<T>, what: T, places: &Places) -> Option<()> {
    let what = match queue.try_send(what) {
        Ok(()) => return Some(()),
        Err(TrySendError::Full(what)) => what,
        Err(TrySendError::Disconnected(_)) => return None,
    };
    let _place = places.take().await;
    off_worker(|| queue.send(what).ok())
}

/// Does what may wait. Outside of the server's runtime it is just done.
pub(crate) fn off_worker<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current() {
        Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(work)
        }
        Ok(_) | Err(_) => work(),
    }
}

/// Takes a lock that may be held over a write. A free one costs what it always does.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => {
            off_worker(|| mutex.lock().unwrap_or_else(PoisonError::into_inner))
        }
    }
}

/// The same, to read.
pub(crate) fn read<T>(shared: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    match shared.try_read() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => {
            off_worker(|| shared.read().unwrap_or_else(PoisonError::into_inner))
        }
    }
}

/// The same, to change.
pub(crate) fn write<T>(shared: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    match shared.try_write() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => {
            off_worker(|| shared.write().unwrap_or_else(PoisonError::into_inner))
        }
    }
}

/// Threads that wait at once for those who are very many. More would wait for the same disk.
const PLACES: usize = 64;
/// Threads of the runtime that wait, or do what takes long: [`PLACES`], a few hundred browsers, and searches. Each is a few
/// tens of KiB while it is there.
pub(crate) const THREADS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::sync_channel;

    use scrinium_protocol::secret::Secret;

    use super::*;
    use crate::catalogue::Catalogue;

    /// One worker thread, and a write of the catalogue that takes as long as the test wants: others are served meanwhile, those
    /// who want to write or to read it, or wait for a lock that is held, too.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn who_waits_for_the_disk_keeps_no_worker() {
        let path = std::env::temp_dir().join(format!("scrinium-waits-{}.db", std::process::id()));
        drop(std::fs::remove_file(&path));
        let catalogue = Arc::new(Catalogue::create(&path, &Secret::new([7; 32])).unwrap());
        let held = Arc::new((Mutex::new(0), RwLock::new(0)));
        let (begun, has_begun) = sync_channel(1);
        let (end, ends) = sync_channel::<()>(1);
        let slow = std::thread::spawn({
            let (catalogue, held) = (catalogue.clone(), held.clone());
            move || {
                let _locks = (lock(&held.0), write(&held.1));
                let written = catalogue.write(|_| {
                    begun.send(()).unwrap();
                    ends.recv().unwrap();
                    Ok(())
                });
                written.unwrap();
            }
        });
        has_begun.recv().unwrap();
        let mut waiting = tokio::task::JoinSet::new();
        for n in 0..8 {
            let (catalogue, held) = (catalogue.clone(), held.clone());
            waiting.spawn(async move {
                match n % 4 {
                    0 => catalogue.write(|_| Ok(())).unwrap(),
                    1 => drop(
                        catalogue
                            .load::<crate::catalogue::records::TokenRecord>()
                            .unwrap(),
                    ),
                    2 => *lock(&held.0) += 1,
                    _ => {
                        let seen = *read(&held.1);
                        *write(&held.1) = seen + 1;
                    }
                }
            });
        }
        // Tasks that come after them are driven.
        for _ in 0..20 {
            tokio::spawn(tokio::task::yield_now()).await.unwrap();
        }
        assert!(waiting.try_join_next().is_none(), "they wait");
        end.send(()).unwrap();
        while let Some(done) = waiting.join_next().await {
            done.unwrap();
        }
        slow.join().unwrap();
        assert_eq!(*lock(&held.0), 2);
        // Outside of a runtime, and in one of a single thread, it is just done.
        assert_eq!(std::thread::spawn(|| off_worker(|| 5)).join().unwrap(), 5);
        std::fs::remove_file(&path).unwrap();
    }

    /// A writer that takes nothing, and more sessions that have something for it than the runtime has threads.
    #[test]
    fn very_many_who_wait_for_the_writer_leave_threads_for_everybody_else() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(PLACES + 16)
            .enable_all()
            .build()
            .unwrap();
        let (queue, taken) = sync_channel::<usize>(1);
        let places = Arc::new(Places::new());
        runtime.block_on(async {
            let mut waiting = tokio::task::JoinSet::new();
            for n in 0..500 {
                let (queue, places) = (queue.clone(), places.clone());
                waiting.spawn(async move { send(&queue, n, &places).await.unwrap() });
            }
            drop(queue);
            // Each yields until all of them have begun to wait: then others are driven, and get a thread to wait with.
            for _ in 0..1000 {
                tokio::spawn(tokio::task::yield_now()).await.unwrap();
            }
            let done = tokio::task::spawn_blocking(|| 7);
            assert_eq!(done.await.unwrap(), 7);
            let mut seen: Vec<usize> = tokio::task::spawn_blocking(move || taken.iter().collect())
                .await
                .unwrap();
            while let Some(sent) = waiting.join_next().await {
                sent.unwrap();
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..500).collect::<Vec<_>>());
        });
    }

    #[tokio::test]
    async fn one_thread_alone_does_what_there_is_to_do() {
        assert_eq!(off_worker(|| 5), 5);
    }
}
